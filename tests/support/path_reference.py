"""The media path in readable Python, and a driver that puts the compiled one to the same use.

Both take the phone's and the model's messages and give what goes to the other side; messages that
are not audio go through ``TwilioProtocol`` and ``GeminiProtocol`` in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from websockets.frames import Opcode

import codec
from server.carrier import (
    CallerAudio,
    CarrierEvent,
    SendAudio,
    SendMark,
    StreamStarted,
    StreamStopped,
)
from server.carrier.twilio.messages import TwilioProtocol, audio_messages
from server.dialogue.key_tones import in_pieces
from server.model import AGENT_RATE_HZ, CALLER_RATE_HZ, AgentAudio, SessionEvent
from server.model.gemini.messages import audio_message
from server.model.gemini.protocol import GeminiProtocol
from tests.support.path_messages import FOR_EVER, open_path
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
            self.out.to_model += caller_messages(self.decoder, event.payload)
        elif event is not None:
            self.out.carrier_events.append(event)
            # So that the order of audio and everything else shows in the output.
            self.out.to_model.append(b"carrier event")

    def from_model(self, data: bytes) -> None:
        for event in self.gemini.receive(data, 0.0):
            if isinstance(event, AgentAudio):
                self.out.to_phone += agent_messages(self.encoder, event.pcm, self.twilio)
            else:
                self.out.session_events.append(event)
                self.out.to_phone.append(self.twilio.send(SendMark("model event")).encode())


class DrivenPath:
    """The compiled path with Python around it, as a call has it: bytes in, frames out."""

    def __init__(self) -> None:
        self.path = open_path()
        self.path.stop()
        self.twilio = TwilioProtocol()
        self.gemini = GeminiProtocol()
        self.handed_up = 0
        self.out = Outputs()
        self._counted = self.path.counts()

    def from_phone(self, data: bytes) -> None:
        path = self.path
        assert path.phone is not None
        assert path.model is not None
        path.phone.receive(data)
        while (message := path.next_from_phone()) is not None:
            self.handed_up += 1
            self.count()
            event = self.twilio.receive_text(message.decode(), 0.0)
            last_chunk, timestamp_ms = self.twilio.position
            path.resume(last_chunk=last_chunk, timestamp_ms=timestamp_ms)
            match event:
                case None:
                    continue
                case CallerAudio(payload):
                    for text in caller_messages(path.decoder, payload):
                        path.model.send_text(text)
                    continue
                case StreamStarted(stream_sid):
                    path.start(stream_sid, audio_messages(stream_sid))
                case StreamStopped():
                    path.stop()
            self.out.carrier_events.append(event)
            path.model.send_text(b"carrier event")
        self._collect()

    def from_model(self, data: bytes) -> None:
        path = self.path
        assert path.phone is not None
        assert path.model is not None
        path.model.receive(data)
        while (message := path.next_from_model()) is not None:
            self.handed_up += 1
            for event in self.gemini.receive(message, 0.0):
                if isinstance(event, AgentAudio):
                    for text in agent_messages(path.encoder, event.pcm, self.twilio):
                        path.phone.send_text(text)
                else:
                    self.out.session_events.append(event)
                    path.phone.send_text(self.twilio.send(SendMark("model event")).encode())
            path.follow(limit_bytes=FOR_EVER)
        self._collect()

    def count(self) -> None:
        """Add what the path has counted to what the protocol has."""
        before, self._counted = self._counted, self.path.counts()
        self.twilio.count_elsewhere(
            *(now - then for now, then in zip(self._counted, before, strict=True)),
            position=(self.path.last_chunk, self.path.timestamp_ms),
        )

    def _collect(self) -> None:
        assert self.path.phone is not None
        assert self.path.model is not None
        self.out.to_model += texts(self.path.model.take_output(), masked=True)
        self.out.to_phone += texts(self.path.phone.take_output(), masked=False)


def caller_messages(decoder: codec.MulawDecoder, payload: bytes) -> list[bytes]:
    """The messages that tell the model what the caller said."""
    starts = range(0, len(payload), CALLER_MESSAGE_BYTES)
    pieces = [payload[start : start + CALLER_MESSAGE_BYTES] for start in starts]
    return [audio_message(decoder.decode(piece)) for piece in pieces]


def agent_messages(encoder: codec.MulawEncoder, pcm: bytes, twilio: TwilioProtocol) -> list[bytes]:
    """The messages that have the phone play what the agent said."""
    payload = encoder.encode(pcm)
    return [twilio.send(SendAudio(piece)).encode() for piece in in_pieces(payload)]


def texts(data: bytes, *, masked: bool) -> list[bytes]:
    """The text messages in a stream of whole frames."""
    frames = read_frames(data, masked=masked)
    return [bytes(frame.data) for frame in frames if frame.opcode is Opcode.TEXT]


def pieces(data: bytes, cuts: Sequence[int]) -> Iterable[bytes]:
    """Cut bytes at these places, which need not be in order or inside."""
    inside = sorted(min(cut, len(data)) for cut in cuts)
    return [data[a:b] for a, b in zip([0, *inside], [*inside, len(data)], strict=True)]
