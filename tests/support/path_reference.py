"""The media path in readable Python, and a driver that puts the compiled one to the same use.

Both take the phone's and the model's messages and give what goes to the other side; messages that
are not audio go through ``TwilioProtocol`` and ``GeminiProtocol`` in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from websockets.frames import Opcode

import codec
from codec.path import Gate, MediaPath
from server.carrier import (
    CallerAudio,
    CarrierEvent,
    SendAudio,
    SendMark,
    StreamStarted,
    StreamStopped,
)
from server.carrier.twilio.messages import TwilioProtocol
from server.dialogue.key_tones import MAX_PIECE_BYTES
from server.model import AGENT_RATE_HZ, CALLER_RATE_HZ, AgentAudio, SessionEvent
from server.model.gemini.messages import audio_message
from server.model.gemini.protocol import GeminiProtocol
from tests.support.websocket_oracle import read_frames

CALLER_MESSAGE_BYTES = 800
"""100 ms, the longest chunk of caller audio the model's guide allows."""


@dataclass
class Outputs:
    """What came out of one side or the other."""

    to_model: list[bytes] = field(default_factory=list)
    to_phone: list[bytes] = field(default_factory=list)
    carrier_events: list[CarrierEvent] = field(default_factory=list)
    session_events: list[SessionEvent] = field(default_factory=list)


class ReferencePath:
    """Text in, text out: what one reads in ``server/``, put in a row."""

    def __init__(self) -> None:
        self.twilio = TwilioProtocol()
        self.gemini = GeminiProtocol()
        self.decoder = codec.MulawDecoder(CALLER_RATE_HZ)
        self.encoder = codec.MulawEncoder(AGENT_RATE_HZ)
        self.out = Outputs()

    def from_phone(self, text: str) -> None:
        event = self.twilio.receive_text(text, 0.0)
        if isinstance(event, CallerAudio):
            for start in range(0, len(event.payload), CALLER_MESSAGE_BYTES):
                piece = event.payload[start : start + CALLER_MESSAGE_BYTES]
                self.out.to_model.append(audio_message(self.decoder.decode(piece)))
        elif event is not None:
            self.out.carrier_events.append(event)
            # So that the order of audio and everything else shows in the output.
            self.out.to_model.append(b"carrier event")

    def from_model(self, data: bytes) -> None:
        for event in self.gemini.receive(data, 0.0):
            if isinstance(event, AgentAudio):
                payload = self.encoder.encode(event.pcm)
                for start in range(0, len(payload), MAX_PIECE_BYTES):
                    piece = payload[start : start + MAX_PIECE_BYTES]
                    self.out.to_phone.append(self.twilio.send(SendAudio(piece)).encode())
            else:
                self.out.session_events.append(event)
                self.out.to_phone.append(self.twilio.send(SendMark("model event")).encode())


class DrivenPath:
    """The compiled path with Python around it, as a call has it: bytes in, frames out."""

    def __init__(self, path: MediaPath | None = None) -> None:
        self.path = path or MediaPath()
        self.path.caller_gate = Gate.PASS
        self.twilio = TwilioProtocol()
        self.gemini = GeminiProtocol()
        self.handed_up = 0
        self.out = Outputs()

    def from_phone(self, data: bytes) -> None:
        self.path.phone.receive(data)
        while (message := self.path.next_from_phone()) is not None:
            self.handed_up += 1
            event = self.twilio.receive_text(message.decode(), 0.0)
            match event:
                case None:
                    continue
                case CallerAudio(payload, timestamp_ms):
                    self.path.hear(payload, timestamp_ms=timestamp_ms)
                    continue
                case StreamStarted(stream_sid):
                    self.path.start(stream_sid)
                case StreamStopped():
                    self.path.stop()
            self.out.carrier_events.append(event)
            self.path.model.send_text(b"carrier event")
        self._collect()

    def from_model(self, data: bytes) -> None:
        self.path.model.receive(data)
        while (message := self.path.next_from_model()) is not None:
            self.handed_up += 1
            for event in self.gemini.receive(message, 0.0):
                if isinstance(event, AgentAudio):
                    self.path.say(event.pcm)
                else:
                    self.out.session_events.append(event)
                    self.path.mark("model event")
        self._collect()

    def _collect(self) -> None:
        self.out.to_model += texts(self.path.model.take_output(), masked=True)
        self.out.to_phone += texts(self.path.phone.take_output(), masked=False)


def texts(data: bytes, *, masked: bool) -> list[bytes]:
    """The text messages in a stream of whole frames."""
    frames = read_frames(data, masked=masked)
    return [bytes(frame.data) for frame in frames if frame.opcode is Opcode.TEXT]


def pieces(data: bytes, cuts: Sequence[int]) -> Iterable[bytes]:
    """Cut bytes at these places, which need not be in order or inside."""
    inside = sorted(min(cut, len(data)) for cut in cuts)
    return [data[a:b] for a, b in zip([0, *inside], [*inside, len(data)], strict=True)]
