"""Offhook: a telephone voice agent's media server.

A **Call** has a **MediaStream** on one side (the carrier) and a **Session** on the other (the
model). It runs three loops in one nursery: ``_hear`` (caller to model), ``_speak`` (model to
playout), ``_play`` (playout to caller). Everything that decides is pure and takes ``now``;
everything that waits is one of those loops.
"""
