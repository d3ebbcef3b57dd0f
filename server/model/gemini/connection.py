"""One connection to Gemini Live."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
)
from typing import Any, Literal, Protocol

import msgspec
import trio

from server.errors import ModelError
from server.media.dial import WireSocket
from server.media.words import Messages, SoundPath
from server.model import (
    PastTurn,
    SessionEvent,
    ToolResult,
)
from server.model.gemini.dialects import Dialect
from server.model.gemini.faults import Faults
from server.model.gemini.messages import (
    AUDIO_MESSAGES,
    audio_message,
    client_content_message,
    text_message,
    tool_results_message,
    turn_message,
)
from server.model.gemini.protocol import (
    GeminiProtocol,
    ToldError,
)
from server.pace import Pace

MESSAGES_PER_S, MAX_MESSAGES_AT_ONCE = 500, 5_000
"""More than these from one session are a flood, and it is given up. In the field some 110 a second
come, in the quickest bursts; audio that goes by the media path is not counted."""
MESSAGE_BYTES = 4 * 1024
"""A longer message counts as so many: the longest one is within what may come at once."""


class MessageSocket(Protocol):
    """What a session needs of a WebSocket; raises ``websockets.exceptions.ConnectionClosed``."""

    async def send(self, message: bytes, *, text: bool) -> None:
        """Send a whole message, as a text frame if asked to; safe from several tasks."""
        ...

    async def recv(self, *, decode: Literal[False]) -> bytes:
        """Wait for a whole message, as bytes whatever the frame; one task at a time."""
        ...

    async def aclose(self, code: int, reason: str) -> None:
        """Close, and wait for the other side to agree."""
        ...


Connect = Callable[[str, Mapping[str, str]], AbstractAsyncContextManager[MessageSocket]]
"""Opens a socket: URL and headers in. A model simulator offers one that needs no network."""


class GeminiConnection:
    """A conversation for as long as one socket lasts; opened by a ``GeminiModel``.

    On a wire of the media plane it can push its events and send without waiting; on any other
    socket, one task receives and one sends.

    Attributes:
        takes_turns: Whether it is told where the caller's turns begin and end.
        text_interrupts: Whether text cuts off what the model is about to say: the service says so
            of ``clientContent``.
    """

    def __init__(
        self,
        socket: MessageSocket,
        dialect: Dialect,
        faults: Faults,
        first_turn: int = 1,
        *,
        takes_turns: bool = False,
    ) -> None:
        self.takes_turns = takes_turns
        self.text_interrupts = dialect.text_by == "clientContent"
        self._socket = socket
        self._dialect = dialect
        self._faults = faults
        self._protocol = GeminiProtocol(first_turn, ends_turn_at_call=dialect.ends_turn_at_call)
        self._pace = Pace(MESSAGES_PER_S, MAX_MESSAGES_AT_ONCE)
        self._events: list[SessionEvent] = []

    async def set_up(self, message: Mapping[str, Any], history: Sequence[PastTurn] = ()) -> None:
        """Send the set-up and wait until the service is ready: nothing may be sent before.

        Args:
            message: The set-up.
            history: Turns that the set-up has announced; the service waits for them, and does
                not answer them.
        """
        await self._socket.send(msgspec.json.encode(message), text=True)
        while not self._protocol.ready:
            await self._read_message()
        if history:
            turns = [
                ("model" if turn.speaker == "agent" else "user", turn.text) for turn in history
            ]
            await self._socket.send(client_content_message(turns, turn_complete=True), text=True)

    async def receive(self) -> SessionEvent:
        """Wait for the next event, over all turns; one task at a time, safe to cancel.

        Raises:
            ModelError: The service closed or lost the connection; every later call says the same.
        """
        while not self._events:
            with self._faults.translated_closing():
                await self._read_message()
        return self._events.pop(0)

    @property
    def is_wire(self) -> bool:
        """Whether its socket is on the media plane."""
        return isinstance(self._socket, WireSocket)

    def listen(self, on_event: Callable[[SessionEvent | ModelError], None]) -> None:
        """Call back with events the moment they have come; an error is the last of them.

        Only for a wire. What has come already is told at once.
        """
        socket, events = self._socket, self._events
        assert isinstance(socket, WireSocket)

        def on_messages(messages: Messages, ended: bool) -> None:
            failure: ModelError | None = None
            try:
                for data, _ in messages:
                    events.extend(self._read(data))
                if ended:
                    with self._faults.translated_closing():
                        raise socket.closing()
            except ModelError as error:
                failure = error
            while events:  # the rest of a message's events are to be seen by is_drained
                on_event(events.pop(0))
            if failure is not None:
                on_event(failure)
                failure = None  # or it would be kept by this frame, which it has passed, and so on

        on_messages([], False)
        socket.wire.listen(on_messages)

    async def _read_message(self) -> None:
        self._events += self._read(await self._socket.recv(decode=False))

    def _read(self, data: bytes) -> list[SessionEvent]:
        now = trio.current_time()
        if not self._pace.allows(now, 1 + len(data) // MESSAGE_BYTES):
            raise ModelError(
                "Gemini sends more messages than a call can take",
                code=None,
                reason="too many messages",
                retryable=True,
            )
        try:
            return self._protocol.receive(data, now)
        except ToldError as told:
            error = self._faults.told_error(told, during_setup=not self._protocol.ready)
            raise error from None

    def join(self, relay: SoundPath) -> bool:
        """Let the relay's path use the socket; False if that cannot be."""
        if not isinstance(self._socket, WireSocket):
            return False
        relay.join_model(self._socket.wire, AUDIO_MESSAGES)
        return True

    def leave(self, relay: SoundPath) -> None:
        """Take the socket off the relay: another connection will take its place."""
        if isinstance(self._socket, WireSocket):
            relay.leave_model(self._socket.wire)

    @property
    def is_drained(self) -> bool:
        """Whether all that has come has been told."""
        return not (
            self._events
            or self._protocol.is_between_turns
            or (isinstance(self._socket, WireSocket) and self._socket.wire.has_inbox)
        )

    def audio_message(self, pcm: bytes) -> bytes:
        """The message for caller audio: 16-bit little-endian mono at 16 kHz, up to 100 ms of it."""
        return audio_message(pcm)

    def turn_message(self, *, begins: bool) -> bytes:
        """The message that a turn of the caller's begins, or ends."""
        return turn_message(begins=begins)

    def text_message(self, text: str) -> bytes:
        """The message for something that the caller's side says; the model answers it."""
        return text_message(self._dialect, text)

    def note_message(self, text: str) -> bytes | None:
        """The message for something that the model is told without a turn's end, or None."""
        if not self._dialect.takes_notes:
            return None
        return client_content_message([("user", text)], turn_complete=False)

    def tool_results_message(self, results: tuple[ToolResult, ...]) -> bytes:
        """The message for answers to tool calls."""
        return tool_results_message(results, has_made=self._protocol.has_made)

    def tool_results_sent(self) -> None:
        """The message for answers to tool calls is on its way."""
        self._protocol.calls_answered(trio.current_time())

    async def send(self, message: bytes) -> None:
        """Send a message; not to be used again after it was cancelled (half of it may be out).

        Raises:
            ModelError: The connection is closed.
        """
        with self._faults.translated_closing():
            await self._socket.send(message, text=True)

    def send_nowait(self, message: bytes) -> None:
        """Send a message without waiting. Only for a wire.

        Raises:
            ModelError: The connection is closed.
        """
        assert isinstance(self._socket, WireSocket)
        with self._faults.translated_closing():
            self._socket.send_nowait(message)
