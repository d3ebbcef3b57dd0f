"""One call's audio on a WebSocket that a page has opened, both ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import trio

from server.carrier import (
    CarrierCommand,
    CarrierEvent,
    Clear,
    Listener,
    StreamAbilities,
    StreamCounts,
    StreamStarted,
    StreamStopped,
)
from server.carrier.browser.messages import BrowserProtocol
from server.carrier.transport import Transport
from server.errors import CarrierProtocolError, StreamEnded
from server.media.words import SoundPath

NARROW = StreamAbilities(buffer_s=30.0, sends_silence=True, comes_back=True)
WIDE = StreamAbilities(buffer_s=30.0, sends_silence=True, comes_back=True, is_wide=True)
"""A page keeps what it is sent in memory, so its queue has a bound of ours. A microphone that is
muted sends silence. A page whose socket is lost asks for another."""
MAX_CLOSE_REASON_BYTES = 123
"""RFC 6455, 5.5: a control frame carries 125 bytes, and two are the code."""


class BrowserMediaStream:
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
        self._transport = transport
        self._on_start = on_start
        self._on_stop = on_stop
        self._protocol = BrowserProtocol()
        self._call_sid = ""
        self._relay: SoundPath | None = None
        self._counted = (0, 0, 0, 0)
        self._over = False

    @property
    def abilities(self) -> StreamAbilities:
        """What can be expected of the page on this stream."""
        return WIDE if self._protocol.is_wide else NARROW

    @property
    def stream_sid(self) -> str:
        """The page's name for this stream; empty until it has started."""
        return self._protocol.stream_sid

    @property
    def counts(self) -> StreamCounts:
        """What the stream has carried and what was wrong with it."""
        self._count_passed()
        return self._protocol.counts

    async def receive_start(self) -> StreamStarted | None:
        """Wait until the stream says which call it is; None if it ends without that.

        Raises:
            CarrierProtocolError: See :meth:`BrowserProtocol.receive`; close with 1008.
        """
        while not self._over:
            try:
                text = await self._transport.receive()
            except StreamEnded:
                self._over = True
                return None
            if isinstance(event := self._read(text), StreamStarted):
                self._call_sid = event.call_sid
                return event
        return None

    def listen(self, on_events: Listener, relay: SoundPath) -> None:
        """Push events from now on; a narrow stream on a wire leaves the audio to the path."""

        def on_messages(messages: Sequence[str | bytes], ended: bool) -> None:
            events: list[CarrierEvent | CarrierProtocolError] = []
            try:
                for message in messages:
                    if not self._over and (event := self._read(message)) is not None:
                        events.append(event)
            except CarrierProtocolError as error:
                self._over = True
                events.append(error)
            if ended and not self._over:
                events.append(self._socket_ended())
            if events:
                on_events(events)

        # Listened to by the call whose ticket was shown, and by nobody before.
        self._on_start(self._call_sid, self)
        self._transport.listen(on_messages)
        if not self._over and not self._protocol.is_wide and self._transport.join(relay):
            self._relay = relay
            relay.path.start(self.stream_sid, self._protocol.audio_messages())
            self._counted = relay.path.counts()
            self._hand_over()

    def send(self, command: CarrierCommand) -> None:
        """Send one command.

        Raises:
            StreamEnded: The page has hung up, or its socket is closed.
        """
        text = self._protocol.send(command)
        if isinstance(command, Clear):
            self._transport.forget_unsent()
        self._transport.send(text)

    def say(self, text: str, language: str) -> None:
        """Have the page itself say something, and end.

        Raises:
            StreamEnded: The page is not there any more.
        """
        self._transport.send(self._protocol.say(text, language))

    def leave(self) -> None:
        """Push nothing more and leave the relay."""
        self._over = True
        self._leave_relay()

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close the socket: 1000 tells the page that the call is over, else it asks."""
        self._leave_relay()
        fitting = reason.encode()[:MAX_CLOSE_REASON_BYTES].decode(errors="ignore")
        with suppress(StreamEnded):
            await self._transport.aclose(code, fitting)

    def _read(self, text: str | bytes) -> CarrierEvent | None:
        self._count_passed()
        event = self._protocol.receive(text, trio.current_time())
        self._hand_over()
        if isinstance(event, StreamStopped):
            self._over = True
            self._leave_relay()
            self._on_stop(self._call_sid)
        return event

    def _socket_ended(self) -> StreamStopped:
        self._over = True
        self._leave_relay()
        return StreamStopped(said=False)

    def _leave_relay(self) -> None:
        if self._relay is not None:
            self._count_passed()
            self._transport.leave(self._relay)
            self._relay = None

    def _hand_over(self) -> None:
        """The path is to count on from where the protocol has got to."""
        if self._relay is not None:
            protocol = self._protocol
            self._relay.path.resume(
                last_chunk=protocol.last_chunk,
                timestamp_ms=protocol.timestamp_ms,
                due_at=protocol.due_at,
            )

    def _count_passed(self) -> None:
        """The protocol is to count on from where the path has got to."""
        if self._relay is not None:
            path = self._relay.path
            before, self._counted = self._counted, path.counts()
            self._protocol.count_elsewhere(
                *(now - then for now, then in zip(self._counted, before, strict=True)),
                position=(path.last_chunk, path.timestamp_ms),
                due_at=path.due_at,
            )
