"""What becomes of hundreds of calls that come in within a second, and of those that talk already.

A server carries some calls; then a process of its own lets a burst come in: voice webhook, media
stream, greeting. A call that is admitted has to be heard, whatever it costs; one that cannot be
served in time has to be refused, and not lost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from benchmarks import processes
from benchmarks.load.burst import Burst
from benchmarks.options import Options, machine, machine_line
from benchmarks.percentiles import percentiles
from benchmarks.point import OFFHOOK, Held, PointFailed, run_point

RUNNING = 50
BURST = 300
QUIET_S = 5.0
BURST_S = 6.0
"""The running calls are watched for so long from the first call of the burst on."""
MOST_P99_MS = 20.0
"""What a running call may notice of it: a frame's own length."""
TIMEOUT_S = 300.0
NICENESS = -19
WAYS = {"caller to model": "caller_to_model_ms", "agent to caller": "agent_to_caller_ms"}
SHOWN = ("p50", "p95", "max")
UNREAD = "refused unread"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark alone is told."""
    parser.add_argument("--running", type=int, default=RUNNING, metavar="N", help="calls before")
    parser.add_argument("--burst", type=int, default=BURST, metavar="N", help="calls that come in")
    parser.add_argument(
        "--within", type=float, default=1.0, metavar="S", help="from the first of them to the last"
    )
    parser.add_argument("--realtime", action="store_true", help="prefer us to other programs")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the server"
    )
    parser.add_argument(
        "--check", action="store_true", help="fail if an admitted call was not heard, or lost"
    )


def run(options: Options) -> dict[str, object]:
    """Measure one burst, and print what became of it."""
    console, chosen = options.console, options.arguments
    facts = machine()
    console.print(machine_line(facts), highlight=False)
    outcome = measure(
        chosen.running,
        chosen.burst,
        within_s=chosen.within,
        realtime=chosen.realtime,
        settings=dict(pair.split("=", 1) for pair in chosen.set),
    )
    console.print(_calls_table(outcome))
    console.print(_running_table(outcome, chosen.running))
    console.print(
        f"set-up: {outcome['setup_cpu_ms']:.1f} ms of CPU a call that was heard, "
        f"what it said meanwhile included; the server's own words: {outcome['log'] or 'none'}"
    )
    found = faults(outcome)
    if chosen.check and found:
        raise SystemExit("; ".join(found))
    return {"versions": facts["versions"], **outcome}


def faults(outcome: Mapping[str, Any]) -> list[str]:
    """What an admitted or a running call has suffered that none may."""
    came = outcome["came_of_it"]
    known = {"admitted", "refused", "heard", UNREAD}
    found = [f"{count} x {what}" for what, count in came.items() if what not in known]
    if came.get("heard", 0) < came.get("admitted", 0):
        found.append(f"heard {came.get('heard', 0)} of {came['admitted']}")
    if outcome["calls_lost"]:
        found.append(f"{outcome['calls_lost']} running calls were lost")
    found += [f"{count} x {what} in the log" for what, count in outcome["faults"].items()]
    return found


def measure(
    running: int,
    burst: int,
    *,
    within_s: float = 1.0,
    realtime: bool = False,
    settings: Mapping[str, str] | None = None,
    quiet_s: float = QUIET_S,
    burst_s: float = BURST_S,
    warm_s: float = 5.0,
) -> dict[str, Any]:
    """Let a burst come to a server that carries calls.

    Raises:
        PointFailed: There is no figure.
    """

    def let_come(held: Held) -> dict[str, Any]:
        return _burst(
            held, burst, within_s=within_s, quiet_s=quiet_s, burst_s=burst_s, realtime=realtime
        )

    outcome: dict[str, Any] = run_point(
        OFFHOOK,
        running,
        window_s=quiet_s,
        warm_s=warm_s,
        realtime=realtime,
        hold=let_come,
        timeout_s=TIMEOUT_S,
        settings={
            "MAX_CALLS": str(running + burst + 10),
            "MAX_LOOP_LAG_S": "0.05",
            **(settings or {}),
        },
    )["held"]
    return outcome


def _burst(
    held: Held, calls: int, *, within_s: float, quiet_s: float, burst_s: float, realtime: bool
) -> dict[str, Any]:
    if realtime:
        _prefer(held.pid)
    port = int(held.url.rpartition(":")[2])
    means = Burst(
        port, held.url, held.keys.account_sid, held.keys.auth_token, calls, within_s=within_s
    )
    with processes.running(
        "benchmarks.load.burst",
        cores=held.cores,
        realtime=realtime,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as phones:
        assert phones.stdin is not None
        assert phones.stdout is not None
        phones.stdin.write(json.dumps(asdict(means)).encode() + b"\n")
        phones.stdin.flush()
        if not phones.stdout.readline():
            raise PointFailed("the phones ended without a word; their own are above")
        quiet = held.measure(quiet_s)
        watching = threading.Thread(target=lambda: during.update(held.measure(burst_s)))
        during: dict[str, Any] = {}
        cpu_before, began = sum(processes.cpu_s(held.pid).values()), time.monotonic()
        watching.start()
        phones.stdin.write(b"go\n")
        phones.stdin.flush()
        phones.stdout.readline()  # all are heard, or never will be
        cpu_s = sum(processes.cpu_s(held.pid).values()) - cpu_before
        cpu_s -= quiet["server_core"] * (time.monotonic() - began)
        line = phones.stdout.readline()
        watching.join()
        if not line:
            raise PointFailed("the phones ended without a word; their own are above")
        came = json.loads(line)
    after = held.measure(0.1)
    return {
        "came_of_it": came["came_of_it"],
        "took_s": came["took_s"],
        "webhook_s": percentiles(came["webhook_s"], SHOWN),
        "heard_s": percentiles(came["heard_s"], SHOWN),
        "setup_cpu_ms": 1000 * cpu_s / max(1, len(came["heard_s"])),
        "quiet": {way: quiet[way] for way in WAYS.values()},
        "during": {way: during[way] for way in WAYS.values()},
        "generator_late_ms": during["generator_late_ms"],
        "calls_lost": after["calls_lost"],
        "why_lost": after["why_lost"],
        "faults": held.faults(),
        "log": _loud(held.words()),
    }


def _prefer(pid: int) -> None:
    """Prefer the server to other programs by its niceness.

    One with a real-time policy that is busy for a second is stopped for the last 50 ms of it.
    """
    with contextlib.suppress(OSError, AttributeError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setscheduler(int(task.name), os.SCHED_OTHER, os.sched_param(0))
            os.setpriority(os.PRIO_PROCESS, int(task.name), NICENESS)
    processes.prefer_session(pid, NICENESS)


def _loud(words: list[str]) -> dict[str, int]:
    """Warnings and worse, and how often each has been said."""
    found: dict[str, int] = {}
    for word in words:
        try:
            said = json.loads(word)
        except ValueError:
            continue
        if said.get("level") in ("warning", "error", "critical"):
            found[said["event"]] = found.get(said["event"], 0) + 1
    return found


def _calls_table(outcome: Mapping[str, Any]) -> Table:
    shown = Table(title="the burst", box=box.SIMPLE_HEAD)
    for heading in ("what became of the calls", "webhook, s", "heard after, s", "all heard, s"):
        shown.add_column(heading)
    shown.add_row(
        ", ".join(f"{count} {what}" for what, count in outcome["came_of_it"].items()),
        *(
            " / ".join(f"{name} {value:.2f}" for name, value in outcome[what].items())
            for what in ("webhook_s", "heard_s")
        ),
        f"{outcome['took_s']:.2f}",
    )
    return shown


def _running_table(outcome: Mapping[str, Any], running: int) -> Table:
    shown = Table(title=f"{running} calls that talk: ms, quiet / during", box=box.SIMPLE_HEAD)
    for heading in ("", "p50", "p99", "p99.9", ""):
        shown.add_column(heading, justify="right")
    for name, way in WAYS.items():
        quiet, during = outcome["quiet"][way], outcome["during"][way]
        fits = (during["p99"] or 0.0) <= MOST_P99_MS
        shown.add_row(
            name,
            *(f"{quiet[p]:.2f} / {during[p]:.2f}" for p in ("p50", "p99", "p999")),
            "[green]yes[/]" if fits else "[red]no[/]",
        )
    late = outcome["generator_late_ms"]
    shown.caption = f"the generator itself was late by p99 {late['p99']:.2f} ms"
    return shown
