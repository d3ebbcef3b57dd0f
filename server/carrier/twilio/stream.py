"""One call's audio on a Twilio media stream, both ways."""

from __future__ import annotations

from collections.abc import Sequence

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
from server.carrier.transport import Transport
from server.carrier.twilio.messages import TwilioProtocol, audio_messages
from server.errors import (
    CarrierProtocolError,
    StreamEnded,
)
from server.media.words import SoundPath

ABILITIES = StreamAbilities(buffer_s=600.0, sends_silence=True, comes_back=True)
"""Ten minutes: beyond them Twilio drops audio with warning 31931. Frames come as long as the stream
lasts, whoever speaks. When it has ended, the verbs after ``<Connect>`` are run."""
_MAX_CLOSE_REASON_BYTES = 123  # RFC 6455, 5.5: a control frame carries 125, two are the code.


class TwilioMediaStream:
    """A :class:`server.carrier.MediaStream` over one WebSocket that Twilio opened."""

    abilities = ABILITIES

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._protocol = TwilioProtocol()
        self._relay: SoundPath | None = None
        self._counted = (0, 0, 0, 0)
        self._over = False

    @property
    def stream_sid(self) -> str:
        """Twilio's name for this stream; empty until it has started."""
        return self._protocol.stream_sid

    @property
    def counts(self) -> StreamCounts:
        """What the stream has carried and what was wrong with it."""
        self._count_passed()
        return self._protocol.counts

    async def receive_start(self) -> StreamStarted | None:
        """Wait until the stream says which call it is; None if it ends without that.

        Raises:
            CarrierProtocolError: See :meth:`TwilioProtocol.receive_text`; close with 1008.
        """
        while not self._over:
            try:
                text = await self._transport.receive()
            except StreamEnded:
                self._over = True
                return None
            if isinstance(event := self._read(text), StreamStarted):
                return event
        return None

    def send(self, command: CarrierCommand) -> None:
        """Send one command.

        Raises:
            StreamEnded: The stream has stopped or the socket is closed.
            ValueError: The stream has not started.
        """
        text = self._protocol.send(command)
        if isinstance(command, Clear):
            self._transport.forget_unsent()
        self._transport.send(text)

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

        self._transport.listen(on_messages)
        if not self._over and self._transport.join(relay):
            self._relay = relay
            relay.path.start(self.stream_sid, audio_messages(self.stream_sid))
            self._counted = relay.path.counts()
            self._hand_over()

    def leave(self) -> None:
        """Push nothing more and leave the relay."""
        self._over = True
        self._leave_relay()

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close the socket; Twilio then goes on with the TwiML, and asks us how the call does."""
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
            self._transport.leave(self._relay)
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
