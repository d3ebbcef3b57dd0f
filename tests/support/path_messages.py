"""Messages for a media path."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

from hypothesis import strategies as st

SID = "MZ0123456789abcdef0123456789abcdef"


def media(payload: bytes, number: int = 1, **other: Any) -> bytes:
    """One chunk as Twilio writes it; ``other`` replaces fields, None removes them."""
    fields = {
        "track": "inbound",
        "chunk": str(number),
        "timestamp": str(20 * (number - 1)),
        "payload": base64.b64encode(payload).decode(),
    }
    fields |= {name: value for name, value in other.items() if name in fields}
    message = {
        "event": "media",
        "sequenceNumber": str(number + 1),
        "streamSid": other.get("streamSid", SID),
        "media": {name: value for name, value in fields.items() if value is not None},
    }
    return json.dumps(message, separators=(",", ":")).encode()


def audio(pcm: bytes, **other: Any) -> bytes:
    """One message of agent audio; ``other`` goes beside ``modelTurn``."""
    blob = {"mimeType": "audio/pcm;rate=24000", "data": base64.b64encode(pcm).decode()}
    content = {"modelTurn": {"parts": [{"inlineData": blob}]}} | other
    return json.dumps({"serverContent": content}, separators=(",", ":")).encode()


pcm = st.one_of(
    st.integers(0, 3000).map(lambda size: random.Random(size).randbytes(size)),
    st.sampled_from([b"", b"\0", b"\0\0", bytes(960), bytes(50_000)]),
)
