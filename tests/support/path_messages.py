"""A media path between Twilio and Gemini without sockets, and messages for it."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

from hypothesis import strategies as st

from codec.ear import Played
from codec.path import MediaPath, WebSocket
from server.carrier.twilio.messages import audio_messages
from server.model.gemini.messages import AUDIO_MESSAGES

SID = "MZ0123456789abcdef0123456789abcdef"
FOR_EVER = 1 << 40
"""More bytes than an agent says."""


def joined_path(*, phone_limit: int = 64 * 1024, model_limit: int = 16 * 2**20) -> MediaPath:
    """A path with a connection on either side whose stream has not started; no audio may pass."""
    path = MediaPath()
    path.phone = WebSocket(is_client=False, max_message_bytes=phone_limit)
    path.join_model(WebSocket(is_client=True, max_message_bytes=model_limit), AUDIO_MESSAGES)
    return path


def open_path(**limits: int) -> MediaPath:
    """A path whose stream has started: all audio may pass either way, whatever the time."""
    path = joined_path(**limits)
    path.start(SID, audio_messages(SID))
    path.caller_passes = True
    path.played = Played()
    path.played.open, path.played.play_end = True, float("inf")
    path.follow(limit_bytes=FOR_EVER)
    return path


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
