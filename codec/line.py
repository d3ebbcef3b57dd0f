"""The numbers of a telephone line: mu-law at 8 kHz, one byte a sample, in frames of 20 ms."""

LINE_RATE_HZ = 8_000
BYTES_PER_S = LINE_RATE_HZ
FRAME_BYTES = 160
FRAME_S = 0.02
SILENCE = b"\xff"
"""Mu-law's positive zero: one sample of silence."""
