"""What the media streams of all carriers do alike: a socket on one side, a call on the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from codec.path import MediaPath
from codec.shapes import AudioMessages
from server.carrier import (
    CarrierCommand,
    CarrierEvent,
    Clear,
    Listener,
    StreamCounts,
    StreamStarted,
    StreamStopped,
)
from server.carrier.protocol import StreamProtocol
from server.carrier.transport import Transport
from server.errors import CarrierProtocolError, StreamEnded
from server.media.words import SoundPath

MAX_CLOSE_REASON_BYTES = 123
"""RFC 6455, 5.5: a control frame carries 125 bytes, and two are the code."""
P = TypeVar("P", bound=StreamProtocol)


class SocketStream(ABC, Generic[P]):
    """A :class:`server.carrier.MediaStream` over one WebSocket, in some carrier's protocol.

    While a path has the audio, it counts the chunks that it takes, and the protocol whatever it
    does not understand: each goes on from where the other has got to.

    Args:
        transport: The socket.
        protocol: What its messages say.
    """

    def __init__(self, transport: Transport, protocol: P) -> None:
        self._transport = transport
        self._protocol = protocol
        self._relay: SoundPath | None = None
        self._counted = (0, 0, 0, 0)
        self._over = False

    @property
    def stream_sid(self) -> str:
        """The carrier's name for this stream; empty until it has started."""
        return self._protocol.stream_sid

    @property
    def counts(self) -> StreamCounts:
        """What the stream has carried and what was wrong with it."""
        self._count_passed()
        return self._protocol.counts

    async def receive_start(self) -> StreamStarted | None:
        """Wait until the stream says which call it is; None if it ends without that.

        Raises:
            CarrierProtocolError: The stream is of no use; close with 1008.
        """
        while not self._over:
            try:
                message = await self._transport.receive()
            except StreamEnded:
                self._over = True
                return None
            if isinstance(event := self._read(message), StreamStarted):
                return event
        return None

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
                self.leave()
                events.append(StreamStopped(said=False))
            if events:
                on_events(events)

        self._transport.listen(on_messages)
        audio = self._audio_messages()
        if not self._over and audio is not None and self._transport.join(relay):
            self._relay = relay
            relay.path.start(self.stream_sid, audio)
            self._counted = relay.path.counts()
            self._resume(relay.path)

    def send(self, command: CarrierCommand) -> None:
        """Send one command.

        Raises:
            StreamEnded: The stream is over, or its socket is closed.
            ValueError: It cannot be said to this carrier, or not yet.
        """
        messages = self._written(command)
        if isinstance(command, Clear):
            self._transport.forget_unsent()
        for message in messages:
            self._transport.send(message)

    def leave(self) -> None:
        """Push nothing more and leave the relay."""
        self._over = True
        self._leave_relay()

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close the socket; what becomes of the call then is the carrier's.

        Args:
            code: A WebSocket close code.
            reason: What else to say, shortened if it is long.
        """
        self._leave_relay()
        fitting = reason.encode()[:MAX_CLOSE_REASON_BYTES].decode(errors="ignore")
        await self._transport.aclose(code, fitting)

    @abstractmethod
    def _receive(self, message: str | bytes) -> CarrierEvent | None:
        """Read one message by the protocol."""

    @abstractmethod
    def _written(self, command: CarrierCommand) -> Sequence[str | bytes]:
        """A command as messages of the protocol."""

    @abstractmethod
    def _audio_messages(self) -> AudioMessages | None:
        """How audio comes and goes, for a path; None where none can take it."""

    @abstractmethod
    def _resume(self, path: MediaPath) -> None:
        """Have the path count on from where the protocol has got to."""

    @abstractmethod
    def _add(self, passed: Iterable[int], path: MediaPath) -> None:
        """Have the protocol count on from where the path has got to, which has taken so much."""

    def _read(self, message: str | bytes) -> CarrierEvent | None:
        self._count_passed()
        event = self._receive(message)
        if self._relay is not None:
            self._resume(self._relay.path)
        if isinstance(event, StreamStopped):
            self.leave()
        return event

    def _leave_relay(self) -> None:
        if self._relay is not None:
            self._count_passed()
            self._transport.leave(self._relay)
            self._relay = None

    def _count_passed(self) -> None:
        if self._relay is not None:
            path = self._relay.path
            before, now = self._counted, path.counts()
            self._counted = now
            self._add(
                (now[0] - before[0], now[1] - before[1], now[2] - before[2], now[3] - before[3]),
                path,
            )
