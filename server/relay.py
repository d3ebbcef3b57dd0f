"""The two wires of a call and the media path between them: the way of nearly every chunk.

::

    phone's wire ── path.next_from_phone() ──▶ model's wire      audio, in C
         │                  │
         │                  '──▶ on_caller: something was found, held, or is to be written down
         '──▶ messages that are not audio: to whoever listens to the wire, or receives from it

Audio goes from socket to socket within the call that read it. Python is called when there is
something to decide, and for every other message, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import perf_counter

from trio import current_time

from codec.path import MediaPath
from server.plane import Wire


class Relay:
    """Joins what is there: a wire of the phone's, a wire of the model's, either or both.

    Args:
        path: The call's media path.
        on_caller: Called when ``path.caller_news``.
        on_agent: Called when ``path.run_is_over``.
        caller_passed: Each is told how long caller audio took from socket to socket, in seconds.
        agent_passed: The same of agent audio.

    Attributes:
        path: The call's media path.
        heard_at: When the phone's wire was last read.
    """

    def __init__(
        self,
        path: MediaPath,
        *,
        on_caller: Callable[[], None],
        on_agent: Callable[[], None],
        caller_passed: Iterable[Callable[[float], object]],
        agent_passed: Iterable[Callable[[float], object]],
    ) -> None:
        self.path = path
        self.heard_at = 0.0
        self._on_caller = on_caller
        self._on_agent = on_agent
        self._caller_passed = tuple(caller_passed)
        self._agent_passed = tuple(agent_passed)
        self._phone: Wire | None = None
        self._model: Wire | None = None

    @property
    def has_phone(self) -> bool:
        """Whether there is a wire of the phone's."""
        return self._phone is not None

    def join_phone(self, wire: Wire) -> None:
        """From now on caller audio goes through the path; the wire's inbox must be empty."""
        self.path.phone = wire.websocket
        self._phone = wire
        self.heard_at = current_time()
        wire.read_through(self._next_from_phone)

    def leave_phone(self, wire: Wire) -> None:
        """The stream is over: what else comes is read by whoever listens."""
        if wire is self._phone:
            self._phone = None
            self.path.stop()
            wire.read_through(wire.websocket.next_message)

    def join_model(self, wire: Wire) -> None:
        """From now on caller audio goes out on this wire, and agent audio comes in by it."""
        self.path.model = wire.websocket
        self._model = wire
        wire.read_through(self._next_from_model)

    def leave_model(self, wire: Wire) -> None:
        """The connection is of no use any more."""
        if wire is self._model:
            self._model = None
            wire.read_through(wire.websocket.next_message)

    def _next_from_phone(self) -> bytes | None:
        path, model, began = self.path, self._model, perf_counter()
        self.heard_at = now = current_time()
        message = path.next_from_phone(now)
        if model is not None and model.websocket.output_bytes:
            model.flush()
            took_s = perf_counter() - began
            for passed in self._caller_passed:
                passed(took_s)
        if path.caller_news:
            self._on_caller()
        return message

    def _next_from_model(self) -> bytes | None:
        path, phone, began = self.path, self._phone, perf_counter()
        message = path.next_from_model(current_time())
        if phone is not None and phone.websocket.output_bytes:
            phone.flush()
            took_s = perf_counter() - began
            for passed in self._agent_passed:
                passed(took_s)
        if path.run_is_over:
            self._on_agent()
        return message
