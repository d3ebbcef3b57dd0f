"""What a function costs: thread time side by side, and counts under valgrind."""

from __future__ import annotations

import functools
import inspect
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.codecs import finish

ROUND_S = 0.004
"""Long enough for the clock, short enough that an interruption spoils one round only."""


class Timed:
    """A function over chunks, timed in rounds that alternate with those of others.

    Rounds are short and interleaved so that whatever else the machine does meets every function
    alike; the median over rounds is the figure, and ratios are taken round by round.
    """

    def __init__(
        self,
        convert: Callable[[bytes], Any],
        chunks: Sequence[bytes],
        prepare: Callable[[], object] = lambda: None,
    ) -> None:
        self._convert = convert
        self._chunks = list(chunks)
        self._prepare = prepare
        self.us_per_chunk: list[float] = []
        self._repeat = 1
        self._repeat = max(1, round(ROUND_S / max(self._spend(), 1e-6)))

    def run_round(self) -> None:
        self.us_per_chunk.append(1e6 * self._spend() / (self._repeat * len(self._chunks)))

    def median_us(self) -> float:
        return statistics.median(self.us_per_chunk)

    def times_cheaper_than(self, other: Timed) -> float:
        """How many times the cost of this one the other's is, by the same rounds."""
        return statistics.median(
            theirs / ours
            for theirs, ours in zip(other.us_per_chunk, self.us_per_chunk, strict=True)
        )

    def _spend(self) -> float:
        """CPU seconds of this thread for all chunks, ``_repeat`` times."""
        self._prepare()
        if inspect.iscoroutinefunction(self._convert):
            started = time.thread_time()
            finish(self._convert_all_async())
            return time.thread_time() - started
        convert, chunks = self._convert, self._chunks
        started = time.thread_time()
        for _ in range(self._repeat):
            for chunk in chunks:
                convert(chunk)
        return time.thread_time() - started

    async def _convert_all_async(self) -> bytes:
        convert, chunks = self._convert, self._chunks
        for _ in range(self._repeat):
            for chunk in chunks:
                await convert(chunk)
        return b""


# ---- Counts that no neighbour disturbs ----

COUNTED_CHUNKS = 1000


def has_valgrind() -> bool:
    return shutil.which("valgrind") is not None


def instructions_per_chunk(key: str, direction: str) -> float:
    """Instructions of one chunk, the interpreter's included, by valgrind's callgrind."""
    with tempfile.TemporaryDirectory() as directory:
        return _difference(
            ["--tool=callgrind", f"--callgrind-out-file={directory}/out"],
            r"Collected\s*:\s*([\d,]+)",
            key,
            direction,
            allocator="pymalloc",
        )


def allocations_per_chunk(key: str, direction: str) -> float:
    """Calls of malloc and its kin for one chunk, by valgrind's memcheck.

    Python's own allocator is switched off in it, so small objects are counted too.
    """
    return _difference(
        ["--tool=memcheck", "--leak-check=no", "--undef-value-errors=no"],
        r"total heap usage:\s*([\d,]+) allocs",
        key,
        direction,
        allocator="malloc",
    )


def _difference(
    tool: list[str], pattern: str, key: str, direction: str, *, allocator: str
) -> float:
    """The count for chunks alone: a run with some, less a run with none."""
    without, with_them = (
        _count(tool, pattern, key, direction, chunks, allocator) for chunks in (0, COUNTED_CHUNKS)
    )
    return (with_them - without) / COUNTED_CHUNKS


def _count(
    tool: list[str], pattern: str, key: str, direction: str, chunks: int, allocator: str
) -> int:
    program = (sys.executable, "-m", "benchmarks.counted", key, direction)
    _run(*program, "0", allocator=allocator)  # leaves no module to be compiled in the next
    told = _run("valgrind", *tool, *program, str(chunks), allocator=allocator)
    found = re.search(pattern, told)
    assert found is not None, told
    return int(found[1].replace(",", ""))


@functools.cache
def _run(*command: str, allocator: str) -> str:
    """Run to the end, always in the same environment, and return what went to stderr."""
    return subprocess.run(
        command,
        env={"PYTHONMALLOC": allocator, "PYTHONHASHSEED": "0", "PATH": os.defpath},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    ).stderr
