"""One connection to Gemini Live."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
)
from typing import Any, Literal, Protocol

import msgspec
import trio

from server.errors import ModelError
from server.media.dial import WireSocket
from server.media.plane import Messages
from server.media.relay import Relay
from server.model import (
    EventListener,
    PastTurn,
    SessionEvent,
    ToolResult,
    Way,
)
from server.model.gemini.dialects import Dialect
from server.model.gemini.faults import Faults
from server.model.gemini.messages import (
    audio_message,
    client_content_message,
    text_message,
    tool_results_message,
)
from server.model.gemini.pace import Pace
from server.model.gemini.protocol import (
    GeminiProtocol,
    ToldError,
)

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


class GeminiSession:
    """A conversation over one connection; opened by a ``GeminiModel``."""

    def __init__(
        self, socket: MessageSocket, dialect: Dialect, faults: Faults, first_turn: int = 1
    ) -> None:
        self._socket = socket
        self._dialect = dialect
        self._faults = faults
        self._protocol = GeminiProtocol(first_turn)
        self._pace = Pace(MESSAGES_PER_S, MAX_MESSAGES_AT_ONCE)
        self._events: deque[SessionEvent] = deque()

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
        return self._events.popleft()

    def listen(self, on_event: EventListener) -> bool:
        """See :meth:`Session.listen`; it takes a wire of the media plane."""
        if not isinstance(self._socket, WireSocket):
            return False
        socket, events = self._socket, self._events

        def on_messages(messages: Messages, ended: bool) -> None:
            try:
                for data, _ in messages:
                    events.extend(self._read(data))
                while events:  # the rest of a message's events are to be seen by is_drained
                    on_event(events.popleft())
                if ended:
                    with self._faults.translated_closing():
                        raise socket.closing()
            except ModelError as error:
                on_event(error)

        socket.wire.listen(on_messages)
        return True

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

    async def send_audio(self, pcm: bytes) -> None:
        """Send caller audio: signed 16-bit little-endian mono at 16 kHz, 20 to 100 ms of it.

        Like every send, safe from several tasks, and not to be used again after one was
        cancelled (half a message may be out).

        Raises:
            ModelError: The connection is closed.
        """
        await self._send(audio_message(pcm))

    def send_audio_nowait(self, pcm: bytes) -> bool:
        """Send caller audio if the socket takes it without waiting; False if it cannot.

        Raises:
            ModelError: The connection is closed.
        """
        if not isinstance(self._socket, WireSocket):
            return False
        with self._faults.translated_closing():
            self._socket.send_nowait(audio_message(pcm))
        return True

    def join(self, relay: Relay) -> bool:
        """See :meth:`Session.join`; for as long as this connection lives."""
        if not isinstance(self._socket, WireSocket):
            return False
        relay.join_model(self._socket.wire)
        return True

    def leave(self, relay: Relay) -> None:
        """Undo that: another connection will take its place."""
        if isinstance(self._socket, WireSocket):
            relay.leave_model(self._socket.wire)

    @property
    def is_drained(self) -> bool:
        """See :meth:`Session.is_drained`."""
        return not (
            self._events
            or self._protocol.is_cutting
            or (isinstance(self._socket, WireSocket) and self._socket.wire.has_inbox)
        )

    def note_passed(self) -> None:
        """Nothing is kept for another connection here."""

    async def send_text(self, text: str) -> None:
        """Say something as the caller's side; the model answers, so this makes it speak first.

        Raises:
            ModelError: The connection is closed.
        """
        await self._send(text_message(self._dialect, text))

    async def send_note(self, text: str) -> bool:
        """Add to the conversation without a turn's end, so that the model goes on listening.

        Raises:
            ModelError: The connection is closed.
        """
        if not self._dialect.takes_notes:
            return False
        await self._send(client_content_message([("user", text)], turn_complete=False))
        return True

    async def send_tool_results(self, results: tuple[ToolResult, ...]) -> None:
        """Answer tool calls, in one message.

        Raises:
            ModelError: The connection is closed.
        """
        await self._send(tool_results_message(results))

    async def reconnect(self, way: Way, reason: str) -> bool:
        """One connection is all this session has."""
        return False

    async def _send(self, message: bytes) -> None:
        with self._faults.translated_closing():
            await self._socket.send(message, text=True)
