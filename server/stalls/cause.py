"""Why a step of the event loop was late, and what the log is told of it: all without a clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from types import CodeType

PAUSE_S = 1.0
"""No scheduler keeps a thread that is ready from a core for so long: the machine was paused, be it
that its clock of our CPU time went on."""
SAY_FROM_S = 0.02
"""From here on a frame of every call is late, which callers may hear."""
SAY_EVERY_S = 60.0
"""The log has no more than one line in this time."""
INNERMOST = 4
"""Frames of a stack that are told, besides what code of ours has called."""
DEEPEST = 200


class Cause(StrEnum):
    """What kept the loop."""

    CODE = "code"
    """Its thread ran: Python code, or C that Python code has called."""
    BLOCKED = "blocked"
    """Its thread waited though it had a core: a call that blocks, a disk, or another thread that
    had the interpreter's lock."""
    COLLECTOR = "collector"
    """Garbage was collected."""
    STARVED = "starved"
    """Its thread was ready and had no core, or the whole process stood still."""


@dataclass(frozen=True, slots=True)
class Stall:
    """One step of the loop that was late, or a wait of it that was over late.

    Attributes:
        late_s: How long it took, or how much later than planned the loop awoke.
        ran_s: What the loop's thread has run meanwhile.
        waited_s: How long that thread was ready and had no core.
        watch_late_s: How late the watching thread was meanwhile, which needs next to nothing.
        collected_s: How long garbage was collected, in whichever thread.
    """

    late_s: float
    ran_s: float = 0.0
    waited_s: float = 0.0
    watch_late_s: float = 0.0
    collected_s: float = 0.0


def cause_of(stall: Stall) -> Cause:
    """What most of a stall's time went to.

    The watching thread may be late because the loop has the only core: what the loop's thread ran
    was no starvation.
    """
    if stall.watch_late_s >= max(PAUSE_S, stall.late_s / 2):
        return Cause.STARVED
    idle_s = max(0.0, stall.late_s - stall.ran_s)
    starved_s = min(max(stall.waited_s, stall.watch_late_s), idle_s)
    collected_s = min(stall.collected_s, stall.late_s - starved_s)
    code_s = max(0.0, min(stall.ran_s, stall.late_s) - collected_s)
    shares = {
        Cause.STARVED: starved_s,
        Cause.COLLECTOR: collected_s,
        Cause.CODE: code_s,
        Cause.BLOCKED: stall.late_s - starved_s - collected_s - code_s,
    }
    return max(shares, key=lambda cause: shares[cause])


def is_heard(cause: Cause, late_s: float) -> bool:
    """Whether the log is told of it: callers may hear it, and there is a place to look at.

    That a process was starved is nobody's code: metrics have it, and the log what is a pause.
    """
    return cause is not Cause.STARVED and late_s >= SAY_FROM_S


def told(stack: Iterator[tuple[CodeType, int]], ours: str) -> list[str]:
    """The innermost places of a stack, and further out what code of ours has called.

    That is a function of the user's, or of a package: whoever wrote it finds it there, however deep
    it went.

    Args:
        stack: Each frame's code and line, from the innermost out.
        ours: The folder of our own files, with a slash at its end.
    """
    places: list[str] = []
    called: tuple[CodeType, int] | None = None
    is_found = False
    for depth, (code, line) in enumerate(stack):
        if depth < INNERMOST:
            places.append(place(code, line))
        if not is_found and code.co_filename.startswith(ours):
            is_found = True
            if depth > INNERMOST and called is not None:
                places.append(place(*called))
        if depth >= DEEPEST or (is_found and depth + 1 >= INNERMOST):
            break
        called = code, line
    return places


def place(code: CodeType, line: int) -> str:
    """Where that is: the end of the file's path by which its reader knows it, line and function."""
    file = "/".join(code.co_filename.replace("\\", "/").split("/")[-2:])
    return f"{file}:{line} {code.co_qualname}"
