"""Having less of something than there is: limits of this process, for a while."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import pytest


@contextmanager
def at_most(name: str, soft: int) -> Generator[None]:
    """Have no more than this within the block.

    Args:
        name: As the module ``resource`` calls it, without ``RLIMIT_``; skips where there is none.
        soft: How much.
    """
    resource = pytest.importorskip("resource")
    limit = getattr(resource, f"RLIMIT_{name}")
    before = resource.getrlimit(limit)
    resource.setrlimit(limit, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(limit, before)
