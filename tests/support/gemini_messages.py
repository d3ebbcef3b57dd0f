"""Gemini's messages, as it sends them."""

from __future__ import annotations

import base64
import json
from typing import Any

PCM = bytes(range(256)) * 15  # 80 ms at 24 kHz; its base64 has both + and /


def audio(pcm: bytes = PCM, **content: Any) -> bytes:
    blob = {"mimeType": "audio/pcm;rate=24000", "data": base64.b64encode(pcm).decode()}
    turn = {"modelTurn": {"parts": [{"inlineData": blob}]}}
    return json.dumps({"serverContent": turn | content}).encode()


def content(**fields: Any) -> bytes:
    return json.dumps({"serverContent": fields}).encode()
