"""Signatures as Standard Webhooks has them, by which receivers know that an event is ours."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable


def headers_of(event_id: str, body: bytes, keys: Iterable[bytes], *, at: float) -> dict[str, str]:
    """The headers that prove an event, one signature for each key.

    Args:
        event_id: Stays the same however often the event is sent.
        body: As it is sent, to the byte.
        keys: The newest first; a receiver needs to know one of them.
        at: When it is sent: seconds since 1970.
    """
    timestamp = str(int(at))
    signed = f"{event_id}.{timestamp}.".encode() + body
    signatures = (
        base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode() for key in keys
    )
    return {
        "webhook-id": event_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
