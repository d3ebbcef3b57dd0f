"""One call's audio on a WebSocket that a page has opened, both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

import trio

from codec.path import MediaPath
from codec.shapes import AudioMessages
from server.carrier import (
    CarrierCommand,
    CarrierEvent,
    Listener,
    StreamAbilities,
    StreamStarted,
    StreamStopped,
)
from server.carrier.browser.messages import BrowserProtocol
from server.carrier.stream import SocketStream
from server.carrier.transport import Transport
from server.errors import StreamEnded
from server.hooks.trio_clock import missed_s
from server.media.words import SoundPath

NARROW = StreamAbilities(buffer_s=30.0, sends_silence=True, comes_back=True)
WIDE = StreamAbilities(buffer_s=30.0, sends_silence=True, comes_back=True, is_wide=True)
"""A page keeps what it is sent in memory, so its queue has a bound of ours. A microphone that is
muted sends silence. A page whose socket is lost asks for another."""


class BrowserMediaStream(SocketStream[BrowserProtocol]):
    """A :class:`server.carrier.MediaStream` over one WebSocket that a page has opened.

    Args:
        transport: The socket.
        on_start: Told of the stream when it has said which call it is.
        on_stop: Told of it when the page has hung up.
    """

    def __init__(
        self,
        transport: Transport,
        on_start: Callable[[str, BrowserMediaStream], None],
        on_stop: Callable[[str], None],
    ) -> None:
        super().__init__(transport, BrowserProtocol())
        self._on_start = on_start
        self._on_stop = on_stop
        self._call_sid = ""
        self._missed_s = missed_s()

    @property
    def abilities(self) -> StreamAbilities:
        """What can be expected of the page on this stream."""
        return WIDE if self._protocol.is_wide else NARROW

    def listen(self, on_events: Listener, relay: SoundPath) -> None:
        """Push events from now on; a narrow stream on a wire leaves the audio to the path."""
        # Listened to by the call whose ticket was shown, and by nobody before.
        self._on_start(self._call_sid, self)
        super().listen(on_events, relay)

    def say(self, text: str, language: str) -> None:
        """Have the page itself say something, and end.

        Raises:
            StreamEnded: The page is not there any more.
        """
        self._transport.send(self._protocol.say(text, language))

    def tell_alive(self) -> None:
        """Tell the page that its call is served.

        Raises:
            StreamEnded: The page, or its call, is not there any more.
        """
        if self._over:
            raise StreamEnded("the page's stream is over")
        self._transport.send(self._protocol.alive())

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close the socket: 1000 tells the page that the call is over, else it asks."""
        with suppress(StreamEnded):
            await super().aclose(code, reason)

    def _read(self, message: str | bytes) -> CarrierEvent | None:
        event = super()._read(message)
        if isinstance(event, StreamStarted):
            self._call_sid = event.call_sid
        elif isinstance(event, StreamStopped):
            self._on_stop(self._call_sid)
        return event

    def _receive(self, message: str | bytes) -> CarrierEvent | None:
        # For the page the time has passed in which we were held up, and it has gone on speaking.
        before_s, self._missed_s = self._missed_s, missed_s()
        self._protocol.due_at -= self._missed_s - before_s
        return self._protocol.receive(message, trio.current_time())

    def _written(self, command: CarrierCommand) -> tuple[str]:
        return (self._protocol.send(command),)

    def _audio_messages(self) -> AudioMessages | None:
        return None if self._protocol.is_wide else self._protocol.audio_messages()

    def _resume(self, path: MediaPath) -> None:
        protocol = self._protocol
        path.resume(
            last_chunk=protocol.last_chunk,
            timestamp_ms=protocol.timestamp_ms,
            due_at=protocol.due_at,
        )

    def _add(self, passed: Iterable[int], path: MediaPath) -> None:
        position = path.last_chunk, path.timestamp_ms
        self._protocol.count_elsewhere(*passed, position=position, due_at=path.due_at)
