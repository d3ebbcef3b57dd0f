"""What the parent of several processes and each of them say to one another, a word at a time."""

from __future__ import annotations

READY, STEP_IN, STEP_ASIDE, READ_AGENTS = b"ready", b"step in", b"step aside", b"read agents"
MAX_WORD_BYTES = 16
