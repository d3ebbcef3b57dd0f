"""How many inputs a test makes up, where that is not Hypothesis's own hundred."""

from __future__ import annotations

from hypothesis import settings


def inputs(usual: int) -> int:
    """So many as a rule, and fewer where there are to be fewer of all (the profile ``few``)."""
    return max(1, usual * settings().max_examples // 100)
