"""The media plane: every media socket of the process in one epoll, served while trio sleeps.

On the ordinary path a 20 ms frame crosses a reader task, two protocol layers and two queues before
a call sees it. Here the socket is ours, not blocking, and its WebSocket is the codec's: a frame is
one ``recv`` and a few microseconds of C. The nursery of a call still owns everything of its call;
the plane is a service that calls back when bytes have come, and forgets a socket when told.

::

    epoll says "readable" ── Wire ── WebSocket (C) ── messages ──▶ inbox ──▶ the task that receives
    epoll says "writable" ────┘         │                     └─▶ a listener
         the socket  ◀── bytes ─────────┘   pongs, closes, whatever is sent

Everybody has a turn in each pass, and each turn is bounded (``wire.py``).

A call's two wires can be joined (``relay.py``): then audio does not become a message at all.

Linux only, because of epoll: elsewhere :data:`AVAILABLE` is False and the ordinary path serves.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Collection
from time import monotonic

import structlog
import trio

from codec.path import WebSocket
from codec.pump import Left, Pump, Pumps
from server.hooks.trio_clock import steady_time
from server.hooks.trio_loop import serving_while_trio_sleeps
from server.media.bounds import KNOWN, Bounds
from server.media.wire import READABLE, READING, Wire
from server.media.words import MediaSocket

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

AVAILABLE = hasattr(select, "epoll")
# An enumeration is slow to look into.
_NOTHING, _OUTPUT, _ALL = map(int, (Left.NOTHING, Left.OUTPUT, Left.ALL))

ALONE_S = 0.005
"""So long pumps go on by themselves: then trio is asked for its time again, which stands when the
process has been held up. Not at all while it stands, or is another than the world's."""


class Plane:
    """One epoll, served while trio sleeps, or by a task where that cannot be."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wires: dict[int, Wire] = {}
        self._again: set[Wire] = set()
        self._pumps = Pumps()
        self._resting: set[int] = set()  # of no interest at the moment
        self._waiting: trio.CancelScope | None = None  # of the task, where there is one
        self._called_back = False  # Python has been called, and may have given trio work

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve every wire until cancelled."""
        with self._epoll, serving_while_trio_sleeps(self) as trios:
            task_status.started()
            if trios is not None:
                self._epoll.register(trios, select.EPOLLIN)
                await trio.sleep_forever()
            while True:
                if self._again:
                    await trio.lowlevel.checkpoint()
                else:
                    with trio.CancelScope() as self._waiting:
                        await trio.lowlevel.wait_readable(self._epoll.fileno())
                self._serve()

    def serve_until(self, timeout_s: float, wakes_at: int, has_work: Callable[[], bool]) -> bool:
        """Serve until trio's own epoll is readable or a task can run; False if time is over."""
        until = monotonic() + timeout_s
        left_s = timeout_s
        while True:
            if wakes_at in self._serve(0.0 if self._again else left_s):
                return True
            if self._called_back:
                self._called_back = False
                if has_work():
                    return True
            if (left_s := until - monotonic()) <= 0.0:
                return False

    def serve_now(self) -> None:
        """Serve what is ready: trio has been at work for a while, and goes on with it."""
        try:
            self._serve()
        except Exception:  # trio would only stop asking, and audio wait for its next sleep again
            logger.exception("media plane not served by a bug of ours")

    def _serve(self, timeout_s: float = 0.0) -> Collection[int]:
        """Every socket that has something gets one bounded turn, again and again if only pumps do.

        Returns:
            File numbers that were ready and are no wire's.
        """
        others: Collection[int] = ()
        again = self._again
        if again:
            self._again, self._called_back = set(), True
            for wire in again:
                wire.serve(READABLE)
        alone_from = None if again else steady_time()
        ready = self._pumps.serve(self._epoll.fileno(), timeout_s, ALONE_S, alone_from)
        now, pumps, wires = trio.current_time(), self._pumps, self._wires
        for number, events, left in ready:
            if again and wires.get(number) in again:
                # Has been read; a pump would read what nobody in this pass looks at.
                wires[number].serve(events & select.EPOLLOUT)
                continue
            if events == READABLE and (pump := pumps.get(number)) is not None:
                try:
                    if left == _ALL and (left := pump.run(now)) == _NOTHING:
                        continue
                    self._called_back = True  # a sink that fails tells its own session
                    if left == _OUTPUT:
                        wires[number].flush_sink()
                        pump.written()
                        continue
                except Exception:
                    self._called_back = True
                    wires[number].fail_by_a_bug()  # nobody can have closed it since it was asked
                    continue
            if (wire_or_none := wires.get(number)) is None:
                others = (*others, number)
            else:
                self._called_back = True
                wire_or_none.serve(events, READING if left == _ALL else left)
        return others

    def new_wire(
        self,
        sock: MediaSocket,
        websocket: WebSocket,
        early: bytes = b"",
        *,
        bounds: Bounds = KNOWN,
    ) -> Wire:
        """Serve this socket until the wire is closed; see :class:`Wire`."""
        return Wire(self, sock, websocket, early, bounds=bounds)

    def add(self, wire: Wire) -> None:
        """Watch a wire's socket."""
        self._epoll.register(wire.fileno(), select.EPOLLIN)  # may fail: then it is nobody's
        self._wires[wire.fileno()] = wire

    def watch(self, wire: Wire, *, reading: bool, writing: bool) -> None:
        """Change what is waited for; if that is nothing, epoll is silent about its end, too."""
        events = (select.EPOLLIN if reading else 0) | (select.EPOLLOUT if writing else 0)
        number = wire.fileno()
        if self._epoll.closed:  # the server has stopped, and what is left closes by itself
            return
        if not events:
            if number not in self._resting:
                self._epoll.unregister(number)
                self._resting.add(number)
        elif number in self._resting:
            self._epoll.register(number, events)  # may fail: then it rests, and can be forgotten
            self._resting.discard(number)
        else:
            self._epoll.modify(number, events)

    def read_again(self, wire: Wire) -> None:
        """Read the wire in the next pass, too: its TLS buffer has more, which epoll cannot know."""
        self._again.add(wire)
        if self._waiting is not None:
            self._waiting.cancel("a wire has something to be read")

    def pump(self, wire: Wire, pump: Pump | None) -> None:
        """Let this read the wire's socket first, or nobody."""
        self._pumps.remove(wire.fileno())
        if pump is not None and wire.fileno() in self._wires:
            self._pumps.put(wire.fileno(), pump)

    def forget(self, wire: Wire) -> None:
        """Stop watching; done before the socket is closed, as its number will be used again."""
        self._again.discard(wire)
        self._pumps.remove(wire.fileno())
        if self._wires.pop(wire.fileno(), None) is None:
            return
        if wire.fileno() in self._resting:
            self._resting.discard(wire.fileno())
        elif not self._epoll.closed:
            self._epoll.unregister(wire.fileno())

    @property
    def wires(self) -> int:
        """How many sockets are watched."""
        return len(self._wires)
