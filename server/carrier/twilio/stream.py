"""One call's audio on a Twilio media stream, both ways."""

from __future__ import annotations

from collections.abc import Iterable

import trio

from codec.path import MediaPath
from codec.shapes import AudioMessages
from server.carrier import CarrierCommand, CarrierEvent, StreamAbilities
from server.carrier.stream import SocketStream
from server.carrier.transport import Transport
from server.carrier.twilio.messages import TwilioProtocol, audio_messages

ABILITIES = StreamAbilities(buffer_s=600.0, sends_silence=True, comes_back=True)
"""Ten minutes: beyond them Twilio drops audio with warning 31931. Frames come as long as the stream
lasts, whoever speaks. When it has ended, the verbs after ``<Connect>`` are run."""


class TwilioMediaStream(SocketStream[TwilioProtocol]):
    """A :class:`server.carrier.MediaStream` over one WebSocket that Twilio opened."""

    abilities = ABILITIES

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport, TwilioProtocol())

    def _receive(self, message: str | bytes) -> CarrierEvent | None:
        return self._protocol.receive_text(message, trio.current_time())

    def _written(self, command: CarrierCommand) -> tuple[str]:
        return (self._protocol.send(command),)

    def _audio_messages(self) -> AudioMessages:
        return audio_messages(self.stream_sid)

    def _resume(self, path: MediaPath) -> None:
        last_chunk, timestamp_ms = self._protocol.position
        path.resume(last_chunk=last_chunk, timestamp_ms=timestamp_ms)

    def _add(self, passed: Iterable[int], path: MediaPath) -> None:
        self._protocol.count_elsewhere(*passed, position=(path.last_chunk, path.timestamp_ms))
