"""What Gemini Live is sent after the set-up, and how its audio comes."""

from __future__ import annotations

import binascii
from collections.abc import Callable, Sequence

import msgspec

from codec.shapes import AudioMessages, Maybe, Part, Shape
from server.model import AGENT_RATE_HZ, CALLER_RATE_HZ, ToolResult
from server.model.gemini.dialects import Dialect

AUDIO_MESSAGES = AudioMessages(
    received=Shape(
        {
            "serverContent": {
                "modelTurn": {
                    "parts": [
                        {
                            "inlineData": {
                                # The model has one rate; when it does not say which, it is that.
                                "mimeType": (f"audio/pcm;rate={AGENT_RATE_HZ}", "audio/pcm"),
                                "data": Part.AUDIO,
                            }
                        }
                    ],
                    "role": Maybe(Part.TEXT),
                }
            }
        },
        ignores_others=False,
    ),
    head=b'{"realtimeInput":{"audio":{"mimeType":"audio/pcm;rate=%d","data":"' % CALLER_RATE_HZ,
    tail=b'"}}}',
)
"""Messages that are audio and nothing else, for the media path."""


def audio_message(pcm: bytes) -> bytes:
    """Write caller audio: signed 16-bit little-endian mono at 16 kHz."""
    audio = binascii.b2a_base64(pcm, newline=False)
    return AUDIO_MESSAGES.head + audio + AUDIO_MESSAGES.tail


def turn_message(*, begins: bool) -> bytes:
    """Write that a turn of the caller's begins, or ends; audio outside of one closes the session.

    Only for a session whose set-up has said that it is told (``told_turns``).
    """
    return b'{"realtimeInput":{"%b":{}}}' % (b"activityStart" if begins else b"activityEnd")


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


def tool_results_message(
    results: Sequence[ToolResult], *, has_made: Callable[[str], bool]
) -> bytes:
    """Write the answers to tool calls, several in one message.

    Args:
        results: The answers.
        has_made: Whether an id is one of ours. It is left out then: Vertex AI, which has called
            without one, does not know it, and goes by the name.
    """
    responses = []
    for result in results:
        response: dict[str, object] = {"name": result.name, "response": result.response}
        if not has_made(result.id):
            response["id"] = result.id
        responses.append(response)
    return msgspec.json.encode({"toolResponse": {"functionResponses": responses}})
