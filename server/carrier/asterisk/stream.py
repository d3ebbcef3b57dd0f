"""One call's audio on a connection of Asterisk's ``chan_websocket``, both ways."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import replace

import trio

from codec.path import MediaPath
from codec.shapes import AudioMessages
from server.carrier import (
    CarrierCommand,
    CarrierEvent,
    Listener,
    StreamAbilities,
    StreamStarted,
)
from server.carrier.asterisk.messages import AsteriskProtocol
from server.carrier.stream import SocketStream
from server.carrier.transport import Transport
from server.errors import StreamEnded
from server.media.words import SoundPath

ABILITIES = StreamAbilities(buffer_s=18.0, sends_silence=False, comes_back=True)
"""Its queue takes 900 frames, and drops without a word what is beyond 1,000. Where the caller's
side sends no RTP there are no frames. When a stream has ended, we bring the call another."""


class AsteriskMediaStream(SocketStream[AsteriskProtocol]):
    """A :class:`server.carrier.MediaStream` over one WebSocket that Asterisk opened.

    Args:
        transport: The socket.
        wait_joined: Waits until the media channel of this name hears and is heard by the caller;
            False if that will not be.
    """

    abilities = ABILITIES

    def __init__(self, transport: Transport, wait_joined: Callable[[str], Awaitable[bool]]) -> None:
        super().__init__(transport, AsteriskProtocol())
        self._wait_joined = wait_joined

    async def receive_start(self) -> StreamStarted | None:
        """As all do; what is sent before the caller is joined to the stream nobody would hear."""
        started = await super().receive_start()
        return None if started is None else replace(started, wait_heard=self._wait_heard)

    async def _wait_heard(self) -> float | None:
        if not await self._wait_joined(self.stream_sid):
            return None
        return self._protocol.joined(trio.current_time())

    def listen(self, on_events: Listener, relay: SoundPath) -> None:
        """Push events from now on; audio need not come in whole frames from then on."""
        with suppress(StreamEnded):  # the listener is told of it
            self._transport.send(self._protocol.begin())
        super().listen(on_events, relay)

    def _receive(self, message: str | bytes) -> CarrierEvent | None:
        return self._protocol.receive(message, trio.current_time())

    def _written(self, command: CarrierCommand) -> list[str | bytes]:
        if self._over:
            raise StreamEnded("the stream is over")
        return self._protocol.send(command)

    def _audio_messages(self) -> AudioMessages:
        return self._protocol.audio_messages()

    def _resume(self, path: MediaPath) -> None:
        path.resume(last_chunk=0, timestamp_ms=self._protocol.timestamp_ms)

    def _add(self, passed: Iterable[int], path: MediaPath) -> None:
        media, *_ = passed
        self._protocol.count_elsewhere(
            media, timestamp_ms=path.timestamp_ms, heard_at=path.heard_at
        )
