"""Tests of seeing the event loop stand still."""
