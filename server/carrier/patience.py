"""How long a request to a carrier may take, and its parts."""

from __future__ import annotations

import httpx2

UNSENT_PART = 1 / 3


def timeouts(timeout_s: float) -> dict[str, float | None]:
    """What a pool of connections is told of a request that may take so long.

    To be sent it has a part of that. The rest is left for the answer: else nobody knows that a
    request has not left.
    """
    unsent_s = timeout_s * UNSENT_PART
    return httpx2.Timeout(timeout_s, connect=unsent_s, pool=unsent_s).as_dict()
