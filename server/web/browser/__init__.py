"""For web pages that call: how they are given a call, and another stream of it."""
