"""What a session may be told, and what may go wrong with its connections."""

from __future__ import annotations

from server.errors import ModelError, ModelQuotaExceeded, ModelSetupRefused
from server.model.lasting.unanswered import PCM_BYTES_PER_S, UnansweredInput

CHUNK_BYTES = 640
CHUNK_S = CHUNK_BYTES / PCM_BYTES_PER_S


def silent(number: int = 0) -> bytes:
    return number.to_bytes(2, "little").ljust(CHUNK_BYTES, b"\0")


def loud(number: int = 0) -> bytes:
    return number.to_bytes(2, "little") + b"\x00\x40" * (CHUNK_BYTES // 2 - 1)


def take_all(kept: UnansweredInput) -> list[object]:
    taken: list[object] = []
    while (content := kept.take()) is not None:
        taken.append(content)
        kept.taken_is_sent()
    return taken


def closed_with(code: int) -> ModelError:
    return ModelError(f"closed with {code}", code=code, reason="", retryable=code != 1007)


DROPPED = closed_with(1006)
INTERNAL = closed_with(1011)
USED_UP = closed_with(1007)
REFUSED = ModelSetupRefused("no", code=1008, reason="not found", retryable=False)
QUOTA = ModelQuotaExceeded("no", code=1011, reason="quota", retryable=False)
UNREADABLE = ModelError("noise", code=None, reason="", retryable=True)
