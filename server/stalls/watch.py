"""The thread that sees the event loop stand still, and the loop's own count of when it did.

::

    the loop ── beat (C, 0.1 µs) ──▶ late? ──▶ a thread, in C ── looks at its stack ─┐
       └── counts each late step exactly, with the CPU time it took ─────────────────┴─▶ told here

The thread needs the interpreter's lock to look at a stack and for nothing else, so it takes it only
while a step is late, a few times however long that is (``codec/beat.py``).

A server's loop is watched once: of several servers in a process (a demonstration has some) by the
first that has come, and when that ends by another.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import CodeType, FrameType
from typing import cast

import structlog
import trio
from trio.abc import Instrument

import server
from codec.beat import AVAILABLE, Beat
from server.logs import Sparing, authors
from server.metrics import StallMetrics
from server.stalls.cause import SAY_EVERY_S, Stall, cause_of, is_heard, told

__all__ = ["AVAILABLE", "Watch"]

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

OURS = f"{Path(server.__file__).parent}/"
TELL_EVERY_S = 1.0
JOIN_S = 2.0
"""The thread ends at once; should it not, nobody waits for longer."""
MAX_PLACES = 64
"""Stacks that are kept until they are told."""

_is_watching = False  # somebody does, in this process


class Watch:
    """Says of each time that the loop was late what kept it.

    Args:
        metrics: Where it is counted.
        say_every_s: The log has no more than one line in this time.

    Attributes:
        beat: The loop's signs of life.
    """

    def __init__(self, metrics: StallMetrics, *, say_every_s: float = SAY_EVERY_S) -> None:
        self.beat = Beat()
        self._metrics = metrics
        self._sparing = Sparing(say_every_s)
        self._places: dict[int, list[str]] = {}  # of late steps, by number
        self._known: set[int] = set()  # steps whose author has been told

    async def run(self, live_count: Callable[[], int]) -> None:
        """Watch the loop that this runs on until cancelled, or wait for a turn to.

        Args:
            live_count: How many calls there are; without any nobody can have heard it.
        """
        while _is_watching:  # noqa: ASYNC110 - whoever does may be of another loop
            await trio.sleep(TELL_EVERY_S)
        with self._watching() as thread:
            while thread.is_alive():
                await trio.sleep(TELL_EVERY_S)
                self._tell(trio.current_time(), live_count())
        raise RuntimeError("nobody watches the loop: the thread has ended")

    @contextmanager
    def _watching(self) -> Generator[threading.Thread]:
        """Have the loop say that it lives, and a thread that looks, within the block."""
        global _is_watching
        _is_watching = True
        beat, collects = self.beat, self.beat.collects
        thread = threading.Thread(
            target=self._look, args=(threading.get_ident(),), name="offhook-stalls", daemon=True
        )
        instrument = cast("Instrument", beat)  # trio asks for the methods alone
        try:
            beat.begin()
            gc.callbacks.append(collects)
            trio.lowlevel.add_instrument(instrument)
            authors.where = self._where
            thread.start()
            yield thread
        finally:
            authors.where = None
            with suppress(KeyError):
                trio.lowlevel.remove_instrument(instrument)
            with suppress(ValueError):
                gc.callbacks.remove(collects)
            beat.close()
            if thread.ident is not None:
                thread.join(JOIN_S)
            self._places.clear()
            self._known.clear()
            _is_watching = False

    def _look(self, ident: int) -> None:
        """Look where the loop stands whenever a step of it is late; a thread of its own.

        Args:
            ident: The loop's thread.
        """
        beat, places = self.beat, self._places
        while (step := beat.watch()) >= 0:
            if not _stands_still():
                continue
            at = told(_stack(sys._current_frames().get(ident)), OURS)
            # It may have gone on before we had the lock, or while we looked: then it is not known.
            if beat.step == step and (step in places or len(places) < MAX_PLACES):
                places[step] = at

    def at(self, step: int) -> list[str]:
        """Where a late step was seen to stand, innermost first; empty if it was not seen."""
        return self._places.get(step, [])

    def _where(self) -> list[str]:
        """Where the step that is on was seen; its author is told, so the log need not be again."""
        step = self.beat.step
        if len(self._known) < MAX_PLACES:
            self._known.add(step)
        return self.at(step)

    def _tell(self, now: float, live: int) -> None:
        """Count what was late, and say so if calls may have noticed."""
        late = self.beat.take()
        for step, *numbers in late:
            stall = Stall(*numbers)
            cause = cause_of(stall)
            self._metrics.stalls.labels(cause.value).inc()
            self._metrics.seconds.labels(cause.value).inc(stall.late_s)
            if live and step not in self._known and is_heard(cause, stall.late_s):
                self._sparing.log(
                    now,
                    logger.warning,
                    "the event loop stood still",
                    cause=cause.value,
                    late_ms=round(1000 * stall.late_s),
                    at=self.at(step),
                )
        if late:
            last = late[-1][0]
            self._known = {step for step in self._known if step > last}
            for step in [step for step in list(self._places) if step <= last]:
                del self._places[step]


def _stands_still() -> bool:
    """Whether a thread that is looked at cannot go on meanwhile: whoever looks has the only lock.

    In a free-threaded Python there is none, and reading a frame that its thread is just leaving
    may crash the process (CPython's issue 152355).
    """
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def _stack(frame: FrameType | None) -> Iterator[tuple[CodeType, int]]:
    """Each frame's code and line, from the innermost out."""
    while frame is not None:
        yield frame.f_code, frame.f_lineno
        frame = frame.f_back
