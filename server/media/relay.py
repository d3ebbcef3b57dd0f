"""The two wires of a call and the media path between them: the way of nearly every chunk.

::

    phone's wire ── pump ── path.next_from_phone() ── pump ──▶ model's wire      audio, in C
         │                      │
         │                      '──▶ on_caller: something was found, held, or is to be written down
         '──▶ messages that are not audio: to whoever listens to the wire, or receives from it

Audio goes from socket to socket within the read that brought it. Python is called when there is
something to decide, and for every other message, in order; and for audio, too, where a pump cannot
be (Python's TLS, one of the wires alone).
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from trio import current_time

from codec.latency import Histogram, Latencies
from codec.path import MediaPath
from codec.pump import Pump
from codec.shapes import AudioMessages
from server.media.words import Wire


def nobody() -> None:
    """Nobody is told anything."""


class Relay:
    """Joins what is there: a wire of the phone's, a wire of the model's, either or both.

    Args:
        path: The call's media path.
        caller_latencies: Take how long caller audio took from socket to socket, in seconds.
        agent_latencies: Take how long agent audio took, in seconds.

    Attributes:
        path: The call's media path.
        on_caller: Called when ``path.has_caller_news()``.
        on_agent: Called when ``path.run_is_over()``.
    """

    def __init__(
        self,
        path: MediaPath,
        *,
        on_caller: Callable[[], None] = nobody,
        on_agent: Callable[[], None] = nobody,
        caller_latencies: tuple[Latencies, Histogram],
        agent_latencies: tuple[Latencies, Histogram],
    ) -> None:
        self.path = path
        self.on_caller = on_caller
        self.on_agent = on_agent
        self._caller_latencies = caller_latencies
        self._agent_latencies = agent_latencies
        self._phone: Wire | None = None
        self._model: Wire | None = None
        self._from_phone: Pump | None = None
        self._from_model: Pump | None = None

    @property
    def has_phone(self) -> bool:
        """Whether there is a wire of the phone's."""
        return self._phone is not None

    def join_phone(self, wire: Wire) -> None:
        """Have caller audio go through the path from now on; the wire's inbox must be empty."""
        self.path.phone = wire.websocket
        self._phone = wire
        self._connect()

    def leave_phone(self, wire: Wire) -> None:
        """Have whoever listens to the wire read what else comes: the stream is over."""
        if wire is self._phone:
            self._phone = None
            self.path.stop()
            self._connect()
            wire.read_through(wire.websocket.next_message)

    def join_model(self, wire: Wire, messages: AudioMessages) -> None:
        """Have caller audio go out on this wire from now on, and agent audio come in by it.

        Args:
            wire: The model's connection.
            messages: How the model writes audio.
        """
        self.path.join_model(wire.websocket, messages)
        self._model = wire
        self._connect()

    def leave_model(self, wire: Wire) -> None:
        """Take a connection off the path that is of no use any more."""
        if wire is self._model:
            self._model = None
            self._connect()
            wire.read_through(wire.websocket.next_message)

    def _connect(self) -> None:
        """Have both wires read through the path, by pumps if there are both."""
        path, phone, model = self.path, self._phone, self._model
        self._from_phone = self._from_model = None
        if phone is not None and model is not None:
            caller, agent = phone.descriptor, model.descriptor
            self._from_phone = Pump(path, caller, agent, *self._caller_latencies, from_phone=True)
            self._from_model = Pump(path, agent, caller, *self._agent_latencies, from_phone=False)
        if phone is not None:
            flush_model = None if model is None else model.flush
            phone.read_through(self._next_from_phone, self._from_phone, flush_model)
        if model is not None:
            flush_phone = None if phone is None else phone.flush
            model.read_through(self._next_from_model, self._from_model, flush_phone)

    def _next_from_phone(self) -> bytes | None:
        path, model, pump, began = self.path, self._model, self._from_phone, perf_counter()
        message = None if pump is None else pump.take_message()
        if message is None:
            message = path.next_from_phone(current_time())
        if model is not None and model.websocket.output_bytes:
            model.flush()
            if pump is not None:
                pump.passed(perf_counter() - began)
        if path.has_caller_news():
            self.on_caller()
        return message

    def _next_from_model(self) -> bytes | None:
        path, phone, pump, began = self.path, self._phone, self._from_model, perf_counter()
        message = None if pump is None else pump.take_message()
        if message is None:
            message = path.next_from_model(current_time())
        if phone is not None and phone.websocket.output_bytes:
            phone.flush()
            if pump is not None:
                pump.passed(perf_counter() - began)
        if path.run_is_over():
            self.on_agent()
        return message
