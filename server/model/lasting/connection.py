"""What a lasting session is made of: connections, and a service that opens them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from server.agent.agent import Agent
from server.errors import ModelError
from server.media.words import SoundPath
from server.model import Conversation, SessionEvent, ToolResult


class Connection(Protocol):
    """A conversation for as long as one socket lasts.

    On a wire it pushes and sends without waiting; on any other socket one task receives and one
    task sends.
    """

    @property
    def takes_turns(self) -> bool:
        """Whether it is told where the caller's turns begin and end, and takes no other audio."""
        ...

    @property
    def text_interrupts(self) -> bool:
        """Whether text cuts off what the model is about to say, or says."""
        ...

    @property
    def is_wire(self) -> bool:
        """Whether its socket is on the media plane."""
        ...

    async def receive(self) -> SessionEvent:
        """Wait for the next event.

        Raises:
            ModelError: The service closed or lost the connection.
        """
        ...

    def listen(self, on_event: Callable[[SessionEvent | ModelError], None]) -> None:
        """Call back with events the moment they have come; an error is the last of them."""
        ...

    def join(self, relay: SoundPath) -> bool:
        """Let the relay's path use the socket; False if that cannot be."""
        ...

    def leave(self, relay: SoundPath) -> None:
        """Take the socket off the relay."""
        ...

    @property
    def is_drained(self) -> bool:
        """Whether all that has come has been told."""
        ...

    def audio_message(self, pcm: bytes) -> bytes:
        """The message for up to 100 ms of caller audio."""
        ...

    def turn_message(self, *, begins: bool) -> bytes:
        """The message that a turn of the caller's begins, or ends; where it takes turns."""
        ...

    def text_message(self, text: str) -> bytes:
        """The message for something that the caller's side says."""
        ...

    def note_message(self, text: str) -> bytes | None:
        """The message for something that the model is not to answer; None if there is none."""
        ...

    def tool_results_message(self, results: tuple[ToolResult, ...]) -> bytes:
        """The message for answers to tool calls."""
        ...

    def tool_results_sent(self) -> None:
        """That message is on its way: what the model says now may be about them."""
        ...

    async def send(self, message: bytes) -> None:
        """Send a message.

        Raises:
            ModelError: The connection is closed.
        """
        ...

    def send_nowait(self, message: bytes) -> None:
        """Send a message over a wire; raises as :meth:`send` does."""
        ...


class Service(Protocol):
    """Opens connections: :class:`server.model.gemini.model.GeminiModel`."""

    @property
    def name(self) -> str:
        """The model's name."""
        ...

    @property
    def key_name(self) -> str:
        """What the key is called that it is used with."""
        ...

    def of_model(self, name: str) -> Service:
        """The same service with another of its models."""
        ...

    def open_connection(
        self,
        agent: Agent,
        conversation: Conversation,
        *,
        handle: str | None = None,
        first_turn: int = 1,
    ) -> AbstractAsyncContextManager[Connection]:
        """Connect and set the agent up; with a handle, go on with the session it stands for."""
        ...
