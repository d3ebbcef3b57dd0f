"""``python -m benchmarks failover``: one row after the other, and the table."""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import time
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from rich import box
from rich.table import Table

from benchmarks.chaos.lines import LineFailed
from benchmarks.failover.judge import Outcome, broken
from benchmarks.failover.rows import BY_NAME, ROWS, Row
from benchmarks.failover.world import World, open_world
from benchmarks.options import Options, machine, machine_line
from benchmarks.point import PointFailed

CALLS = 20
CHECK_CALLS = 4
SHOWN = 5
PACKAGES = ("trio", "hypercorn", "quart-trio", "coredis", "sqlalchemy", "psycopg")


class RowLate(Exception):
    """A row has taken longer than any may."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    own = parser.add_argument_group("failover")
    own.add_argument(
        "--only",
        type=lambda words: words.split(","),
        metavar="ROW,ROW…",
        help=f"only these, of {', '.join(BY_NAME)}",
    )
    own.add_argument("--calls", type=int, help=f"on each node (default: {CALLS})")
    own.add_argument(
        "--check",
        action="store_true",
        help=f"{CHECK_CALLS} calls on each node, and status 1 if a bound is not met",
    )
    own.add_argument(
        "--realtime",
        action="store_true",
        help="prefer all of it to other programs, on a machine that is not idle",
    )
    own.add_argument("--keep", type=Path, metavar="DIR", help="keep what the processes wrote")
    own.add_argument(
        "--abrupt-end-ends-call",
        action="store_true",
        help="have the carrier end a call whose stream breaks off, which is documented nowhere",
    )
    own.add_argument(
        "--updates-wait",
        action="store_true",
        help="have a REST update wait for a <Redirect> that is fetched, documented nowhere, too",
    )


def run(options: Options) -> dict[str, object]:
    """Run what was asked for, and print what came of it.

    Raises:
        SystemExit: There is no such row; or, with ``--check``, a bound was not met.
    """
    chosen, console = options.arguments, options.console
    unknown = sorted(set(chosen.only or ()) - set(BY_NAME))
    if unknown:
        raise SystemExit(f"no such row: {', '.join(unknown)}")
    calls = chosen.calls or (CHECK_CALLS if chosen.check or options.quick else CALLS)
    unknowns = {
        "abrupt_end_ends_call": chosen.abrupt_end_ends_call,
        "updates_wait": chosen.updates_wait,
    }
    console.print(machine_line(machine(PACKAGES)), highlight=False)
    outcomes: dict[str, Outcome] = {}
    skipped: dict[str, str] = {}
    for row in (BY_NAME[name] for name in chosen.only or BY_NAME):
        if why := row.why_not:
            skipped[row.name] = why
            console.print(f"skipped {row.name}: {why}", highlight=False)
            continue
        with console.status(f"{row.title}, {calls} calls on each node"):
            outcomes[row.name] = try_row(
                row, calls, unknowns, chosen.keep, realtime=chosen.realtime
            )
        _print_row(options, row, outcomes[row.name])
    console.print(table(outcomes, calls))
    for name, why in skipped.items():
        console.print(f"not tried: {name}, for {why}", highlight=False)
    found = {name: broken(one, BY_NAME[name].bounds) for name, one in outcomes.items()}
    if chosen.check and any(found.values()):
        raise SystemExit(1)
    return {
        "calls": calls,
        "skipped": skipped,
        "rows": {name: one.figures() | {"broken": found[name]} for name, one in outcomes.items()},
    }


def try_row(
    row: Row,
    calls: int,
    unknowns: dict[str, Any],
    keep: Path | None = None,
    *,
    realtime: bool = False,
) -> Outcome:
    """Do one row in a world of its own; whatever goes wrong is its outcome, and never ours."""
    began = time.monotonic()
    try:
        with (
            at_most(row.most_s),
            open_world(row.spec, calls * row.spec.nodes, unknowns, realtime=realtime) as world,
            _kept(world, keep, row.name),
        ):
            outcome = row.act(world, calls)
    except (
        RowLate,
        PointFailed,
        LineFailed,
        OSError,
        ValueError,
        subprocess.SubprocessError,
        httpx2.HTTPError,
    ) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error}".strip(": ")
        outcome = Outcome(failed=f"{what} ({Path(where.filename).name}:{where.lineno})")
    outcome.seconds = time.monotonic() - began
    return outcome


@contextmanager
def at_most(seconds: float) -> Generator[None]:
    """Raise RowLate in the block when it takes longer, whatever it waits for."""

    def late(number: int, frame: object) -> None:
        raise RowLate(f"not done after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _kept(world: World, keep: Path | None, name: str) -> Generator[None]:
    """Copy what the processes wrote to where somebody wants it."""
    try:
        yield
    finally:
        if keep is not None:
            home = keep / name
            home.mkdir(parents=True, exist_ok=True)
            for file in (*world.directory.glob("*.log"), world.directory / "haproxy.cfg"):
                shutil.copy(file, home)
            for node in world.nodes:
                shutil.copy(node.directory / "server.log", home / f"{node.name}.log")


def _print_row(options: Options, row: Row, outcome: Outcome) -> None:
    """What is to be said of one row beside its line in the table."""
    say = options.console.print
    for check in outcome.checks:
        holds = "" if check.holds else "  [red]no[/]"
        bound = f" (to be: {check.bound})" if check.bound else ""
        say(f"{row.name}: {check.what}: {check.measured}{bound}{holds}", highlight=False)
    for what in broken(outcome, row.bounds)[:SHOWN]:
        say(f"{row.name}: [red]{what}[/]", highlight=False)
    for call in [call for call in outcome.calls if not call.lived or call.is_deaf][:2]:
        say(f"  {call.call_sid}: {'; '.join(call.notes)}", highlight=False, markup=False)
    for what in (*outcome.twice[:SHOWN], *outcome.unsound[:SHOWN]):
        say(f"  {what}", highlight=False, markup=False)


def table(outcomes: dict[str, Outcome], calls: int) -> Table:
    """One row for each fault that was tried."""
    shown = Table(
        title=f"{calls} calls that talk on each node; seconds from the fault, p50 p95 max",
        box=box.SIMPLE_HEAD,
    )
    headings = ("fault", "live", "met", "new stream", "agent heard", "records", "REST", "twice")
    for heading in (*headings, "bound", "met"):
        shown.add_column(heading)
    for name, outcome in outcomes.items():
        row: Row = BY_NAME[name]
        is_met = not broken(outcome, row.bounds)
        whole = "" if outcome.records is None else str(outcome.records - len(outcome.unsound))
        shown.add_row(
            row.title,
            f"{outcome.lived}/{len(outcome.calls)}" if outcome.calls else "",
            str(len(outcome.hit)) if outcome.calls else "",
            _figures(outcome.stream_s),
            _figures(outcome.heard_s),
            f"{whole}/{outcome.records}" if outcome.records is not None else "",
            str(len(outcome.by_old)),
            str(len(outcome.twice)),
            row.bound,
            "[green]yes[/]" if is_met else "[red]no[/]",
        )
    return shown


def _figures(figures: dict[str, float]) -> str:
    return " ".join(f"{value:.2f}" for value in figures.values())


assert len(BY_NAME) == len(ROWS), "two rows have one name"
