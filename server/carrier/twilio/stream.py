"""One call's audio on a Twilio media stream, both ways."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from server.carrier import (
    CarrierCommand,
    CarrierEvent,
    Listener,
    StreamStopped,
)
from server.carrier.transport import PushTransport, TextTransport
from server.carrier.twilio.messages import StreamCounts, TwilioProtocol
from server.errors import (
    CarrierProtocolError,
    StreamEnded,
)
from server.media.relay import Relay

_MAX_CLOSE_REASON_BYTES = 123  # RFC 6455, 5.5: a control frame carries 125, two are the code.


class TwilioMediaStream:
    """A :class:`server.carrier.MediaStream` over one WebSocket that Twilio opened."""

    def __init__(self, transport: TextTransport) -> None:
        self._transport = transport
        self._push_transport = transport if isinstance(transport, PushTransport) else None
        self._protocol = TwilioProtocol()
        self._relay: Relay | None = None
        self._counted = (0, 0, 0, 0)
        self._over = False

    @property
    def stream_sid(self) -> str:
        """Twilio's name for this stream; empty until :class:`StreamStarted` was received."""
        return self._protocol.stream_sid

    @property
    def counts(self) -> StreamCounts:
        """What the stream has carried and what was wrong with it."""
        self._count_passed()
        return self._protocol.counts

    async def receive(self) -> CarrierEvent:
        """Wait for the next event; :class:`StreamStopped` is always the last and comes once.

        Raises:
            CarrierProtocolError: See :meth:`TwilioProtocol.receive_text`; close with 1008.
            StreamEnded: Called again after :class:`StreamStopped`.
        """
        while True:
            self._check_not_over()
            try:
                text = await self._transport.receive()
            except StreamEnded:
                return self._socket_ended()
            if (event := self._read(text)) is not None:
                return event

    def receive_nowait(self) -> CarrierEvent | None:
        """The next event if it is already here, else None; raises as :meth:`receive` does."""
        while True:
            self._check_not_over()
            try:
                text = self._transport.receive_nowait()
            except StreamEnded:
                return self._socket_ended()
            if text is None:
                return None
            if (event := self._read(text)) is not None:
                return event

    async def send(self, command: CarrierCommand) -> None:
        """Send one command.

        Raises:
            StreamEnded: The stream has stopped or the socket is closed.
            ValueError: The stream has not started.
        """
        await self._transport.send(self._protocol.send(command))

    def listen(self, on_events: Listener, relay: Relay | None = None) -> bool:
        """See :meth:`server.carrier.MediaStream.listen`; it takes a transport that pushes."""
        transport = self._push_transport
        if transport is None:
            return False

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

        transport.listen(on_messages)
        if relay is not None and not self._over and transport.join(relay):
            self._relay = relay
            relay.path.start(self.stream_sid)
            self._counted = relay.path.counts()
            self._hand_over()
        return True

    def send_nowait(self, command: CarrierCommand) -> None:
        """See :meth:`server.carrier.MediaStream.send_nowait`."""
        assert self._push_transport is not None
        self._push_transport.send_nowait(self._protocol.send(command))

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close the socket; Twilio then goes on with the TwiML, and ours has nothing more."""
        self._leave_relay()
        fitting = reason.encode()[:_MAX_CLOSE_REASON_BYTES].decode(errors="ignore")
        await self._transport.aclose(code, fitting)

    def _read(self, text: str | bytes) -> CarrierEvent | None:
        if self._relay is None:
            event = self._protocol.receive_text(text, trio.current_time())
        else:
            # The path counts the chunks it takes; what it does not understand is counted here.
            self._count_passed()
            event = self._protocol.receive_text(text, trio.current_time())
            self._hand_over()
        if isinstance(event, StreamStopped):
            self._over = True
            self._leave_relay()
        return event

    def _socket_ended(self) -> StreamStopped:
        self._over = True
        self._leave_relay()
        return StreamStopped(said=False)

    def _leave_relay(self) -> None:
        if self._relay is not None:
            self._count_passed()
            assert self._push_transport is not None
            self._push_transport.leave(self._relay)
            self._relay = None

    def _hand_over(self) -> None:
        """The path is to count on from where the protocol has got to."""
        if self._relay is not None:
            last_chunk, timestamp_ms = self._protocol.position
            self._relay.path.resume(last_chunk=last_chunk, timestamp_ms=timestamp_ms)

    def _count_passed(self) -> None:
        """The protocol is to count on from where the path has got to."""
        if self._relay is not None:
            path = self._relay.path
            before, self._counted = self._counted, path.counts()
            self._protocol.count_elsewhere(
                *(now - then for now, then in zip(self._counted, before, strict=True)),
                position=(path.last_chunk, path.timestamp_ms),
            )

    def _check_not_over(self) -> None:
        if self._over:
            raise StreamEnded("the stream has already stopped")
