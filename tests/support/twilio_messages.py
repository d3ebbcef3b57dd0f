"""Twilio's messages, as it sends them."""

from __future__ import annotations

import base64
import json
from typing import Any

STREAM = "MZ0123456789abcdef0123456789abcdef"
CALL = "CA0123456789abcdef0123456789abcdef"
FRAME = bytes(range(160))
CONNECTED = '{"event":"connected","protocol":"Call","version":"1.0.0"}'
STOP = json.dumps({"event": "stop", "streamSid": STREAM, "sequenceNumber": "9", "stop": {}})


def start(**changes: Any) -> str:
    facts = {
        "accountSid": "AC0123456789abcdef0123456789abcdef",
        "streamSid": STREAM,
        "callSid": CALL,
        "tracks": ["inbound"],
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        "customParameters": {"ticket": "t1"},
        **changes,
    }
    return json.dumps(
        {"event": "start", "sequenceNumber": "1", "streamSid": STREAM, "start": facts}
    )


def media(chunk: int = 1, timestamp: int | None = None, **changes: Any) -> str:
    facts = {
        "track": "inbound",
        "chunk": str(chunk),
        "timestamp": str(20 * (chunk - 1) if timestamp is None else timestamp),
        "payload": base64.b64encode(FRAME).decode(),
        **changes,
    }
    return json.dumps(
        {"event": "media", "sequenceNumber": str(chunk + 1), "streamSid": STREAM, "media": facts}
    )
