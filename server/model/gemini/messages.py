"""What Gemini Live is sent after the set-up."""

from __future__ import annotations

import binascii
from collections.abc import Sequence

import msgspec

from server.model import (
    CALLER_RATE_HZ,
    ToolResult,
)
from server.model.gemini.dialects import Dialect

_AUDIO_HEAD = b'{"realtimeInput":{"audio":{"mimeType":"audio/pcm;rate=%d","data":"' % CALLER_RATE_HZ
_AUDIO_TAIL = b'"}}}'


def audio_message(pcm: bytes) -> bytes:
    """Write caller audio: signed 16-bit little-endian mono at 16 kHz."""
    return _AUDIO_HEAD + binascii.b2a_base64(pcm, newline=False) + _AUDIO_TAIL


def text_message(dialect: Dialect, text: str) -> bytes:
    """Write text from the caller's side so that the model answers it, silent or not so far."""
    if dialect.text_by == "clientContent":
        return client_content_message([("user", text)], turn_complete=True)
    return msgspec.json.encode({"realtimeInput": {"text": text}})


def client_content_message(turns: Sequence[tuple[str, str]], *, turn_complete: bool) -> bytes:
    """Write turns of conversation, such as a history to go on from.

    Args:
        turns: Pairs of role (``"user"`` or ``"model"``) and text, oldest first.
        turn_complete: True to have the model answer; with False it waits for more. Either way
            what it is saying is cut off.
    """
    contents = [{"role": role, "parts": [{"text": text}]} for role, text in turns]
    return msgspec.json.encode(
        {"clientContent": {"turns": contents, "turnComplete": turn_complete}}
    )


def tool_results_message(results: Sequence[ToolResult]) -> bytes:
    """Write the answers to tool calls, several in one message."""
    responses = [
        {"id": result.id, "name": result.name, "response": result.response} for result in results
    ]
    return msgspec.json.encode({"toolResponse": {"functionResponses": responses}})
