"""One call's audio on a connection of Asterisk's ``chan_websocket``, both ways."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
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
from server.carrier.asterisk.messages import AsteriskProtocol
from server.carrier.transport import Transport
from server.errors import CarrierProtocolError, StreamEnded
from server.media.words import SoundPath

ABILITIES = StreamAbilities(buffer_s=18.0, sends_silence=False, comes_back=True)
"""Its queue takes 900 frames, and drops without a word what is beyond 1,000. Where the caller's
side sends no RTP there are no frames. When a stream has ended, we bring the call another."""
MAX_CLOSE_REASON_BYTES = 123
"""RFC 6455, 5.5: a control frame carries 125 bytes, and two are the code."""


class AsteriskMediaStream:
    """A :class:`server.carrier.MediaStream` over one WebSocket that Asterisk opened.

    Args:
        transport: The socket.
        wait_joined: Waits until the media channel of this name hears and is heard by the caller:
            what is sent before that nobody would hear.
    """

    abilities = ABILITIES

    def __init__(self, transport: Transport, wait_joined: Callable[[str], Awaitable[None]]) -> None:
        self._transport = transport
        self._wait_joined = wait_joined
        self._protocol = AsteriskProtocol()
        self._relay: SoundPath | None = None
        self._counted = 0
        self._over = False

    @property
    def stream_sid(self) -> str:
        """The media channel's name; empty until the stream has started."""
        return self._protocol.stream_sid

    @property
    def counts(self) -> StreamCounts:
        """What the stream has carried and what was wrong with it."""
        self._count_passed()
        return self._protocol.counts

    async def receive_start(self) -> StreamStarted | None:
        """Wait until the stream says which call it is; None if it ends without that.

        Raises:
            CarrierProtocolError: See :meth:`AsteriskProtocol.receive`; close with 1008.
        """
        while not self._over:
            try:
                message = await self._transport.receive()
            except StreamEnded:
                self._over = True
                return None
            event = self._protocol.receive(message, trio.current_time())
            if isinstance(event, StreamStarted):
                await self._wait_joined(event.stream_sid)
                return event
        return None

    def send(self, command: CarrierCommand) -> None:
        """Send one command.

        Raises:
            StreamEnded: The stream has ended, or has not started.
        """
        if self._over:
            raise StreamEnded("the stream is over")
        messages = self._protocol.send(command)
        if isinstance(command, Clear):
            self._transport.forget_unsent()
        for message in messages:
            self._transport.send(message)

    def listen(self, on_events: Listener, relay: SoundPath) -> None:
        """Push events from now on; if the socket is a wire, the relay's path takes the audio."""

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

        with suppress(StreamEnded):  # the listener is told of it
            self._transport.send(self._protocol.begin())
        self._transport.listen(on_messages)
        if not self._over and self._transport.join(relay):
            self._relay = relay
            relay.path.start("", self._protocol.audio_messages())
            self._counted = relay.path.counts()[0]
            self._hand_over()

    def leave(self) -> None:
        """Push nothing more and leave the relay."""
        self._over = True
        self._leave_relay()

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close the socket; its media channel ends, and what becomes of the call is the carrier's.

        Args:
            code: A WebSocket close code.
            reason: What else to say, shortened if it is long.
        """
        self._leave_relay()
        fitting = reason.encode()[:MAX_CLOSE_REASON_BYTES].decode(errors="ignore")
        await self._transport.aclose(code, fitting)

    def _read(self, message: str | bytes) -> CarrierEvent | None:
        self._count_passed()
        event = self._protocol.receive(message, trio.current_time())
        self._hand_over()
        return event

    def _socket_ended(self) -> StreamStopped:
        self._over = True
        self._leave_relay()
        # Whatever the code: that the call is over is an event, and else another stream comes.
        return StreamStopped(said=False)

    def _leave_relay(self) -> None:
        if self._relay is not None:
            self._count_passed()
            self._transport.leave(self._relay)
            self._relay = None

    def _hand_over(self) -> None:
        """The path is to count on from where the protocol has got to."""
        if self._relay is not None:
            self._relay.path.resume(last_chunk=0, timestamp_ms=self._protocol.timestamp_ms)

    def _count_passed(self) -> None:
        """The protocol is to count on from where the path has got to."""
        if self._relay is not None:
            path = self._relay.path
            before, self._counted = self._counted, path.counts()[0]
            self._protocol.count_elsewhere(
                self._counted - before, timestamp_ms=path.timestamp_ms, heard_at=path.heard_at
            )
