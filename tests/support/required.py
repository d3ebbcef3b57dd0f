"""What whoever runs the tests has provided, so that a test that does without it has failed."""

from __future__ import annotations

import os


def is_required(what: str) -> bool:
    """Whether ``REQUIRE_…`` of a program is set: its tests are not to be skipped then."""
    return bool(os.environ.get(f"REQUIRE_{what.upper()}"))
