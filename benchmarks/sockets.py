"""Would io_uring, edge-triggered epoll or busy polling make the media plane's sockets much cheaper?

A program in C (``benchmarks/uring/``) passes the messages of many calls on as the media plane does,
in several ways that take turns: a caller's frame every 20 ms to the model, and the model's chunks,
four times as fast as speech and half of the time, to the caller, over loopback TCP. In place of the
codec it spends a fixed time on each message, which is taken off again, so that what is compared is
the sockets' part. The other ends are a process on another core that never sleeps: they are as ready
as a network, and nobody has to wake them.

What is measured is the serving process's CPU time a message, how often it slept, and how long a
message took from one end to the other. Ratios are to the first way, round by round; all figures are
medians of the rounds. The conclusion is about the whole server, by the kernel's share of it.

It needs a C compiler, and for two of the ways liburing (Debian's ``liburing-dev``).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.options import Options, machine, machine_line

SOURCE = Path(__file__).parent / "uring" / "passes.c"
CALLS = (100, 300, 500)
QUICK_CALLS = (300,)
ROUNDS, QUICK_ROUNDS = 5, 3
SECONDS = 1.5
WORK_US = 8.0
"""About what is the server's own of the 21 µs a message that it takes at 400 calls (README.md): it
decides how much of the time the process has nothing to do, and so how many messages a pass has."""
MESSAGES_PER_S = 50 + 25 / 2
"""Of a call: frames, and chunks of an agent that talks half of the time."""
KEPT_UP = 0.95
"""Of what is due: where fewer messages were passed on, passes are not as full as they should be."""
KERNEL_SHARE = 0.61
"""Of the server's CPU time, as it was given for hundreds of calls on the media plane; it was not
measured here. ``stime`` beside ``utime`` in ``/proc/PID/stat`` says what it is on another machine,
and ``--kernel-share`` takes that."""
WORTH_IT = 0.2
"""Less CPU time of the whole than this is not worth another way to serve sockets."""
BUILD_TIMEOUT_S = 120.0
RUN_TIMEOUT_S = 60.0
"""Beyond what is measured: whoever waits in the program gives up before."""

WAYS = {
    "level": "epoll, level (the plane)",
    "edge": "epoll, edge",
    "sends-last": "epoll, sends after all reads",
    "spins": "epoll, busy for 50 µs",
    "gathers": "epoll, 1 ms gathered",
    "uring": "io_uring",
    "uring-deferred": "io_uring, deferred work",
}
LEAST = "level"
NEED_LIBURING = ("uring", "uring-deferred")


class CannotMeasure(Exception):
    """What is missing on this machine, in words for whoever asked."""


@dataclass(frozen=True, slots=True)
class Built:
    """The program, and which ways it knows."""

    program: Path
    ways: tuple[str, ...]
    missing: str
    """Why the other ways are left out, or empty."""


def build(directory: Path) -> Built:
    """Compile the program, without io_uring where liburing is not here.

    Raises:
        CannotMeasure: There is no compiler, no Linux, or the program does not compile.
    """
    if not sys.platform.startswith("linux"):
        raise CannotMeasure("epoll and io_uring are Linux's")
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        raise CannotMeasure("there is no C compiler")
    program = directory / "passes"
    # Nothing of a system's own flags: hardening is not what is compared.
    command = [compiler, "-O2", "-std=gnu11", "-Wall", "-Wextra", str(SOURCE), "-o", str(program)]
    with_uring = _compile([*command, "-luring"])
    if with_uring.returncode == 0:
        ways, missing = tuple(WAYS), ""
        if why := _refused(program):
            ways, missing = _without_uring(), f"the kernel does not have io_uring so: {why}"
        return Built(program, ways, missing)
    without = _compile([*command, "-DWITHOUT_URING"])
    if without.returncode != 0:
        raise CannotMeasure(f"{SOURCE.name} does not compile: {without.stderr.strip()}")
    return Built(program, _without_uring(), "liburing (Debian's liburing-dev) is not here")


def _without_uring() -> tuple[str, ...]:
    return tuple(way for way in WAYS if way not in NEED_LIBURING)


def _compile(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False
    )


def _refused(program: Path) -> str:
    """Why the kernel does not let io_uring be used in each of the ways, or an empty string."""
    for way in NEED_LIBURING:
        try:
            pass_on(program, way, calls=1, seconds=0.0, work_us=0.0, cores=None)
        except CannotMeasure as refusal:
            return str(refusal)
    return ""


def pass_on(
    program: Path,
    way: str,
    *,
    calls: int,
    seconds: float,
    work_us: float,
    cores: tuple[int, int] | None,
) -> dict[str, Any]:
    """Let the program pass messages on for so long, and return what it has counted.

    Args:
        program: See :func:`build`.
        way: One of :data:`WAYS`.
        calls: How many.
        seconds: How long it is measured, after half a second.
        work_us: Spent on each message.
        cores: Where it serves, and where the other ends are; None for anywhere.

    Raises:
        CannotMeasure: It has failed, or messages have not come out whole.
    """
    serving, driving = cores or (-1, -1)
    numbers = [str(calls), str(seconds), str(round(work_us * 1000)), str(serving), str(driving)]
    try:
        done = subprocess.run(
            [program, way, *numbers],
            capture_output=True,
            text=True,
            timeout=seconds + RUN_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CannotMeasure(f"{way}: not done in time") from None
    if done.returncode != 0:
        raise CannotMeasure(f"{way}: {done.stderr.strip() or f'status {done.returncode}'}")
    found: dict[str, Any] = json.loads(done.stdout)
    if found["broken"] or found["got"] != found["sent"]:
        raise CannotMeasure(
            f"{way}: {found['sent']} messages sent, {found['got']} came, {found['broken']} broken"
        )
    return found


def two_cores() -> tuple[int, int] | None:
    """Where to serve and where to drive; None if there is only one core."""
    allowed = sorted(os.sched_getaffinity(0))
    return (allowed[-1], allowed[0]) if len(allowed) > 1 else None


@dataclass(frozen=True, slots=True)
class Row:
    """What one way has shown at one number of calls: medians of its rounds."""

    way: str
    cpu_us: float
    """CPU time a message in the sockets' part: without the time that stands for the codec."""
    ratio: float
    lowest: float
    highest: float
    """Of the rounds: far from each other where other programs have had the cores."""
    wakeups_per_s: float
    per_pass: float
    p50_us: float
    p99_us: float
    p999_us: float


def row_of(
    way: str, rounds: Sequence[dict[str, Any]], first: Sequence[dict[str, Any]], *, work_us: float
) -> Row:
    """Sum up the rounds of one way.

    Args:
        way: Its key.
        rounds: What :func:`pass_on` has returned each time.
        first: The rounds of the way it is compared with, in the same order.
        work_us: Taken off, as it is no socket's.
    """

    def median(of: str) -> float:
        return statistics.median(float(each[of]) for each in rounds)

    ratios = [
        (mine["cpu_us"] - work_us) / (theirs["cpu_us"] - work_us)
        for mine, theirs in zip(rounds, first, strict=True)
    ]
    return Row(
        way=way,
        cpu_us=median("cpu_us") - work_us,
        ratio=statistics.median(ratios),
        lowest=min(ratios),
        highest=max(ratios),
        wakeups_per_s=median("wakeups_per_s"),
        per_pass=statistics.median(
            each["messages_per_s"] / max(each["passes_per_s"], 1.0) for each in rounds
        ),
        p50_us=median("p50_us"),
        p99_us=median("p99_us"),
        p999_us=median("p999_us"),
    )


def saved_of_the_whole(ratio: float, kernel_share: float) -> float:
    """How much less CPU time the server would take if the kernel took ``ratio`` of its time."""
    return kernel_share * (1.0 - ratio)


def conclusion(rows: Mapping[int, Sequence[Row]], kernel_share: float) -> list[str]:
    """What the ratios mean for the server, a line for each way."""
    lines = []
    for way in (row.way for row in next(iter(rows.values())) if row.way != LEAST):
        of = {calls: row for calls, found in rows.items() for row in found if row.way == way}
        saved = {calls: saved_of_the_whole(row.ratio, kernel_share) for calls, row in of.items()}
        each = ", ".join(f"{share:+.0%} at {calls} calls" for calls, share in saved.items())
        verdict = verdict_on(list(of.values()), kernel_share)
        lines.append(f"{WAYS[way]}: {each} of the server's CPU time saved: {verdict}")
    return lines


def verdict_on(rows: Sequence[Row], kernel_share: float) -> str:
    """Whether a way is worth it with any number of calls, if all rounds say the same of that."""
    if all(saved_of_the_whole(row.highest, kernel_share) >= WORTH_IT for row in rows):
        return "worth it"
    if any(saved_of_the_whole(row.lowest, kernel_share) < WORTH_IT for row in rows):
        return "not worth it"
    return "not decided, as rounds differ"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    own = parser.add_argument_group("sockets")
    own.add_argument(
        "--calls",
        type=lambda words: tuple(int(word) for word in words.split(",")),
        metavar="N,N…",
        help=f"how many at once (default: {CALLS})",
    )
    own.add_argument("--rounds", type=int, help=f"how many turns of all ways (default: {ROUNDS})")
    own.add_argument(
        "--seconds", type=float, default=SECONDS, help=f"of each turn (default: {SECONDS})"
    )
    own.add_argument(
        "--work-us",
        type=float,
        default=WORK_US,
        help=f"spent on each message, in place of a codec (default: {WORK_US})",
    )
    own.add_argument(
        "--kernel-share",
        type=float,
        default=KERNEL_SHARE,
        help=f"the kernel's part of the server's CPU time (default: {KERNEL_SHARE})",
    )


def run(options: Options) -> dict[str, object]:
    """Measure, print a table and what follows from it, return the medians."""
    chosen = options.arguments
    numbers = chosen.calls or (QUICK_CALLS if options.quick else CALLS)
    rounds = chosen.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    cores = two_cores()
    found: dict[int, dict[str, list[dict[str, Any]]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        try:
            built = build(Path(directory))
        except CannotMeasure as missing:
            options.console.print(f"not measured: {missing}")
            return {"missing": str(missing)}
        if built.missing:
            options.console.print(f"io_uring left out: {built.missing}")
        for calls in numbers:
            found[calls] = {way: [] for way in built.ways}
            for _ in range(rounds):
                for way, results in found[calls].items():
                    results.append(
                        pass_on(
                            built.program,
                            way,
                            calls=calls,
                            seconds=chosen.seconds,
                            work_us=chosen.work_us,
                            cores=cores,
                        )
                    )

    rows = {
        calls: [
            row_of(way, results, ways[LEAST], work_us=chosen.work_us)
            for way, results in ways.items()
        ]
        for calls, ways in found.items()
    }
    for calls, summed in rows.items():
        options.console.print(_table(calls, summed))
    facts = f"{machine_line(machine())}, Linux {os.uname().release}"
    how = f"{rounds} rounds of {chosen.seconds:g} s, {chosen.work_us:g} µs of work a message"
    options.console.print(f"{facts}; {how}; the kernel is {chosen.kernel_share:.0%} of the server")
    if cores is None:
        options.console.print("one core for both sides: latencies and wakeups mean little")
    if full := sum(each["full"] for ways in found.values() for of in ways.values() for each in of):
        options.console.print(f"{full} times a socket was full: the machine was not quiet")
    slowest = {
        calls: min(each["messages_per_s"] for of in ways.values() for each in of)
        for calls, ways in found.items()
    }
    late = [calls for calls, each in slowest.items() if each < KEPT_UP * calls * MESSAGES_PER_S]
    for calls in late:
        options.console.print(
            f"nothing follows: {slowest[calls]:,.0f} messages a second of {calls} calls, where "
            f"{calls * MESSAGES_PER_S:,.0f} are due: other programs had the cores, or calls are few"
        )
    for line in () if late else conclusion(rows, chosen.kernel_share):
        options.console.print(line)
    return {
        "rounds": rounds,
        "seconds": chosen.seconds,
        "work_us": chosen.work_us,
        "kernel_share": chosen.kernel_share,
        "missing": built.missing,
        "sockets": {str(calls): ways for calls, ways in found.items()},
    }


def _table(calls: int, rows: Sequence[Row]) -> Table:
    table = Table(title=f"{calls} calls: µs of CPU time a message in sockets, µs on its way")
    headings = ("", "CPU", "ratio", "of rounds", "wakeups/s", "a pass", "p50", "p99", "p99.9")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        table.add_row(
            WAYS[row.way],
            f"{row.cpu_us:.2f}",
            f"{row.ratio:.2f}",
            f"{row.lowest:.2f} to {row.highest:.2f}",
            f"{row.wakeups_per_s:,.0f}",
            f"{row.per_pass:.1f}",
            f"{row.p50_us:,.0f}",
            f"{row.p99_us:,.0f}",
            f"{row.p999_us:,.0f}",
        )
    return table
