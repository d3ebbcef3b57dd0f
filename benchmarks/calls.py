"""How many calls does one core carry, and how late is their audio?

For each number of calls, each server gets the same work in a fresh process bound to one core: every
call hears 50 frames a second from its phone, and 2 s turns from its model (40 ms chunks at four
times real time, a turn every 4 s, every second one interrupted). Every frame and chunk is
recognised by its sound where it arrives, so what is lost, doubled, late or stale is counted, and
its way is timed by one clock. Servers take turns point by point, and one whose p99 caller to model
passes 20 ms is out. The way to that verdict is measured twice, and a point again if other programs
had more than a tenth of the server's core meanwhile. With ``--rounds`` each is measured so often,
in turns, and its figures are medians: a virtual machine's cores are as fast as their neighbours
let them be.

``offhook`` is the media path, ``offhook-ordinary`` the same server without it. ``classic`` is
``benchmarks/peers/classic.py``, a bridge as tutorials write it, and ``picows`` is
``benchmarks/peers/fastest.py``, the fastest on asyncio that we know how to write, without features.

``--carrier asterisk`` compares the calls of two carriers instead: the same server behind Twilio's
doubles (JSON, base64) and behind an Asterisk's (binary frames), in turns, point by point.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from benchmarks import plots
from benchmarks.options import Options, machine, machine_line
from benchmarks.point import (
    ASTERISK,
    CLASSIC,
    KINDS,
    OFFHOOK,
    ORDINARY,
    PICOWS,
    ServerKind,
)
from benchmarks.points import IDLE, LIMIT_MS, Measure, Point
from benchmarks.processes import cores, idle_load

CALLS = (1, 10, 25, 40, 50, 100, 200, 300, 400)
QUICK_CALLS = (25, 100)
TLS_CALLS = 100
CARRIER_BOUND = 1.1
"""A call of another carrier may cost so many times what one of Twilio's does in the same run."""
COLOURS = {
    OFFHOOK.name: plots.OURS,
    ASTERISK.name: plots.OTHERS[1],
    ORDINARY.name: "#f59e0b",
    CLASSIC.name: plots.OTHERS[0],
    PICOWS.name: plots.OTHERS[2],
}
PACKAGES = (
    "hypercorn", "quart-trio", "trio", "websockets", "fastapi", "uvicorn", "uvloop", "picows",
    "aiofastnet",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    own = parser.add_argument_group("calls")
    own.add_argument(
        "--calls", type=_numbers, metavar="N,N…", help=f"how many at once (default: {CALLS})"
    )
    own.add_argument(
        "--servers",
        type=lambda words: words.split(","),
        default=list(KINDS),
        metavar="NAME,NAME…",
        help=f"which (default: {','.join(KINDS)})",
    )
    own.add_argument(
        "--carrier",
        choices=("twilio", ASTERISK.carrier),
        default="twilio",
        help="whose calls; those of another than Twilio are measured against Twilio's",
    )
    own.add_argument(
        "--check",
        action="store_true",
        help="fail if calls of another carrier cost too much, or if audio of theirs was lost",
    )
    own.add_argument("--seconds", type=float, help="how long each point is measured (default: 8)")
    own.add_argument(
        "--rounds", type=int, default=1, metavar="N", help="of each point, whose medians count (1)"
    )
    own.add_argument(
        "--tls",
        type=_numbers,
        nargs="?",
        const=[],
        metavar="N,N…",
        help=f"more points, TLS to the model (default: one each, {TLS_CALLS} calls at most)",
    )
    own.add_argument(
        "--consoles",
        type=int,
        default=0,
        metavar="N",
        help="have so many consoles open meanwhile (offhook's)",
    )
    own.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="instead: one process and --calls (default: 100) against N and N times as many",
    )
    own.add_argument(
        "--realtime",
        action="store_true",
        help="prefer both sides to other programs (SCHED_RR), for a machine that is not idle; "
        "Linux keeps 5 %% of each core from such a process",
    )


def _numbers(words: str) -> list[int]:
    return [int(word) for word in words.split(",")]


def run(options: Options) -> dict[str, object]:
    """Measure every point, and print the table and what it says of the bounds."""
    console, chosen = options.console, options.arguments
    facts = machine(PACKAGES)
    console.print(machine_line(facts), highlight=False)
    if len(cores()) < 2:
        console.print("one core for all: the generator takes time from the server it measures")
    busy = idle_load()
    if busy > IDLE:
        console.print(
            f"[yellow]this machine is not idle[/]: a core is {busy:.0%} busy before we begin; "
            "CPU figures hold, but percentiles will be those of a busy machine"
        )
    kinds = []
    is_compared = chosen.carrier == ASTERISK.carrier
    for name in (OFFHOOK.name,) if is_compared else chosen.servers:
        missing = KINDS[name].missing
        if missing:
            console.print(f"[yellow]{name} is left out[/]: {', '.join(missing)} is not here")
        else:
            kinds.append(KINDS[name])

    if is_compared:
        kinds.append(ASTERISK)
    measure = Measure(options)
    if chosen.workers:
        return {
            "versions": facts["versions"],
            "workers": compare_workers(measure, kinds[0], options),
        }
    numbers = chosen.calls or (QUICK_CALLS if options.quick else CALLS)
    points = measure.points(kinds, numbers)
    tls_points = []
    if chosen.tls is not None:
        secure = chosen.tls or [min(TLS_CALLS, max(numbers))]
        tls_points = measure.points(kinds, secure, tls=True)

    for one in tables(points + tls_points):
        console.print(one)
    _say_what_disturbed(points + tls_points, options)
    _say_what_paused(points + tls_points, options)
    bounds = bounds_table(points, tls_points)
    if bounds.row_count:
        console.print(bounds)
    problems = compare_carriers(points, options) if is_compared else []
    if chosen.check and (problems or measure.failures):
        raise SystemExit("\n".join(problems) or "a point has no figure")
    if options.plots is not None:
        if plots.have_matplotlib():
            for path in draw(points, options.plots):
                console.print(f"plot: {path}")
        else:
            console.print("no plots: matplotlib is not installed")
    return {
        "versions": facts["versions"],
        "points": [point.as_dict() for point in points],
        "tls_points": [point.as_dict() for point in tls_points],
        "details": [
            {"server": point.kind.name, "calls": point.calls, "tls": point.tls, **point.outcome}
            for point in points + tls_points
        ],
        "failures": measure.failures,
    }


def compare_workers(measure: Measure, kind: ServerKind, options: Options) -> dict[str, Any]:
    """What several processes make of several times the calls, judged by the CPU time of each call.

    The generator needs a core too, so on a machine of as many cores as processes the calls that
    meet their deadlines say nothing. CPU time does: if a call costs in N processes what it costs in
    one, and the processes share nothing but the listening socket, N cores carry N times the calls.
    """
    console, chosen = options.console, options.arguments
    calls, workers = (chosen.calls or [TLS_CALLS])[0], chosen.workers
    one = measure.point(kind, calls)
    several = measure.point(kind, calls * workers, workers=workers)
    if one is None or several is None:
        return {"failures": measure.failures}
    for each in tables([one, several]):
        console.print(each)
    costs = [point.outcome["cpu_ms_per_call_s"] for point in (one, several)]
    gain = workers * costs[0] / costs[1]
    shares = several.outcome["server_processes"][:workers]
    console.print(
        f"{workers} processes carry {gain:.2f} times the calls of one, by the CPU time of a call: "
        f"{costs[0]:.2f} ms a second in one process with {calls} calls, {costs[1]:.2f} ms in "
        f"{workers} with {calls * workers}. Cores they used: "
        + ", ".join(f"{share:.0%}" for share in shares)
        + (". The generator shared their cores." if workers >= len(cores()) else ".")
    )
    return {
        "workers": workers,
        "gain": round(gain, 3),
        "processes": shares,
        "one": one.as_dict(),
        "several": several.as_dict(),
    }


def compare_carriers(points: Sequence[Point], options: Options) -> list[str]:
    """Say what a call behind Asterisk costs against one behind Twilio; returns what is too much."""
    at = {(point.kind.name, point.calls): point.outcome for point in points}
    problems = []
    for calls in sorted({point.calls for point in points}):
        ours, theirs = at.get((ASTERISK.name, calls)), at.get((OFFHOOK.name, calls))
        if ours is None or theirs is None:
            problems.append(f"{calls} calls: there is no figure to compare")
            continue
        ratio = ours["cpu_ms_per_call_s"] / theirs["cpu_ms_per_call_s"]
        wrong = sum(ours[f"{name}_ms"] for name in ("lost", "doubled", "stale", "strange"))
        wrong_calls = ours["calls_lost"] + ours["missed_clears"]
        options.console.print(
            f"{calls} calls: a call-second behind Asterisk costs {ratio:.2f} times one behind "
            f"Twilio (bound {CARRIER_BOUND}); {wrong:.0f} ms of audio lost, doubled or stale"
        )
        if ratio > CARRIER_BOUND:
            problems.append(f"{calls} calls: {ratio:.2f} times the CPU of Twilio's")
        if wrong or wrong_calls:
            problems.append(f"{calls} calls: {wrong:.0f} ms of audio, {wrong_calls} calls wrong")
    return problems


# --- What is shown --------------------------------------------------------------------------------


def tables(points: Sequence[Point]) -> list[Table]:
    """What the calls cost, how late they were and what became of their audio, as measured."""

    def cost(outcome: dict[str, Any]) -> list[str]:
        others = outcome["others_on_server_core"]
        return [
            f"{outcome['cpu_ms_per_call_s']:.2f}",
            f"{outcome['server_core']:.0%}",
            f"{outcome['rss_kib_per_call']:.0f}",
            f"{outcome['generator_core']:.0%}",
            "?" if others is None else f"{others:.0%}",
        ]

    def latency(outcome: dict[str, Any]) -> list[str]:
        caller, agent = outcome["caller_to_model_ms"], outcome["agent_to_caller_ms"]
        clear = outcome["interrupt_to_clear_ms"]
        return [
            *(_ms(caller[place]) for place in ("p50", "p95", "p99", "p999")),
            *(_ms(agent[place]) for place in ("p50", "p99", "p999")),
            *(_ms(clear[place]) for place in ("p50", "p99")),
        ]

    def audio(outcome: dict[str, Any]) -> list[str]:
        return [f"{outcome[f'{name}_ms']:.0f}" for name in ("lost", "doubled", "late", "stale")]

    return [
        _table(
            "cost",
            "CPU ms per\ncall-second", "core\nbusy", "KiB per\ncall", "generator\ncore",
            "others on\nthe core",
            points=points, cells=cost,
        ),
        _table(
            "latency, ms",
            "caller\nto model\np50", "\n\np95", "\n\np99", "\n\np99.9",
            "agent to\ncaller\np50", "\n\np99", "\n\np99.9", "cut to\nclear\np50", "\n\np99",
            points=points, cells=latency,
        ),
        _table(
            "audio of all calls together, ms", "lost", "doubled", "late", "stale",
            points=points, cells=audio,
        ),
    ]  # fmt: skip


def _table(
    title: str,
    *headings: str,
    points: Sequence[Point],
    cells: Callable[[dict[str, Any]], list[str]],
) -> Table:
    shown = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    shown.add_column("calls", justify="right")
    shown.add_column("server", no_wrap=True)
    for heading in headings:
        shown.add_column(heading, justify="right", no_wrap=True)
    for number, point in enumerate(points):
        shown.add_row(
            str(point.calls),
            point.kind.name + (" TLS" if point.tls else ""),
            *cells(point.outcome),
            end_section=number + 1 == len(points) or points[number + 1].calls != point.calls,
        )
    return shown


def _both(percentiles: dict[str, float | None]) -> str:
    return f"{_ms(percentiles['p50'])} / {_ms(percentiles['p99'])}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.{2 if value < 100 else 0}f}"


def _say_what_disturbed(points: Sequence[Point], options: Options) -> None:
    """What a reader must know before believing a percentile."""
    console = options.console
    others = max((point.outcome["others_on_server_core"] or 0.0 for point in points), default=0.0)
    if others > IDLE:
        console.print(
            f"[yellow]other programs had up to {others:.0%} of the server's core[/]: "
            "percentiles and limits are worse than this server's own"
        )
    for point in points:
        outcome = point.outcome
        if outcome["generator_core"] > 0.85 or (outcome["generator_late_ms"]["p99"] or 0) > 2.0:
            console.print(
                f"{point.kind.name}, {point.calls} calls: the generator was at "
                f"{outcome['generator_core']:.0%} of its core and "
                f"{outcome['generator_late_ms']['p99']} ms late (p99), which is in these latencies"
            )
        if outcome["calls_lost"] or outcome["missed_clears"]:
            console.print(
                f"[red]{point.kind.name}, {point.calls} calls: {outcome['calls_lost']} calls lost "
                f"{outcome['why_lost']}, {outcome['missed_clears']} interruptions without clear[/]"
            )


def _say_what_paused(points: Sequence[Point], options: Options) -> None:
    """What has kept each server's loop for 5 ms or more in one go, as it says itself."""
    for point in points:
        said = ", ".join(
            f"{cause} {of['count']:.0f} ({1000 * of['seconds']:.0f} ms)"
            for cause, of in point.outcome["stalls"].items()
            if of["count"]
        )
        if said:
            what = f"{point.kind.name}, {point.calls} calls: pauses over 5 ms by cause"
            options.console.print(f"{what}, its start included: {said}", highlight=False)


def bounds_table(points: Sequence[Point], tls_points: Sequence[Point]) -> Table:
    """What the media path must reach, and what this run shows of it."""
    at = {(point.kind.name, point.calls): point.outcome for point in points}
    tls_at = {(point.kind.name, point.calls): point.outcome for point in tls_points}
    shown = Table(title="bounds of the media path, one core", box=box.SIMPLE_HEAD)
    for heading in ("", "bound", "measured", ""):
        shown.add_column(heading)

    def row(what: str, bound: str, measured: str, holds: bool) -> None:
        shown.add_row(what, bound, measured, "[green]yes[/]" if holds else "[red]no[/]")

    def cpu(outcome: dict[str, Any]) -> float:
        return float(outcome["cpu_ms_per_call_s"])

    fast = OFFHOOK.name
    if hundred := at.get((fast, 100)):
        row(
            "CPU per call-second, 100 calls",
            "1.9 ms",
            f"{cpu(hundred):.2f} ms",
            cpu(hundred) <= 1.9,
        )
    if secure := tls_at.get((fast, 100)):
        row("the same with TLS to the model", "2.6 ms", f"{cpu(secure):.2f} ms", cpu(secure) <= 2.6)
    for other, calls, bound, where, how in (
        (CLASSIC.name, 100, 0.28, at, ""),
        (ORDINARY.name, 40, 0.2, at, ""),
        *((PICOWS.name, calls, 1.0, at, "") for calls in (100, 300, 500)),
        (PICOWS.name, 100, 1.0, tls_at, ", TLS"),
    ):
        ours, theirs = where.get((fast, calls)), where.get((other, calls))
        if ours and theirs:
            ratio = cpu(ours) / cpu(theirs)
            row(
                f"CPU against {other}, {calls} calls{how}", f"{bound} x", f"{ratio:.2f} x",
                ratio <= bound,
            )  # fmt: skip
    for calls, p50, p99 in ((25, 0.15, 0.4), (100, 0.2, 1.2)):
        if outcome := at.get((fast, calls)):
            got = outcome["caller_to_model_ms"]
            row(
                f"caller to model p50 / p99, {calls} calls", f"{p50} / {p99} ms",
                f"{_both(got)} ms", got["p50"] <= p50 and got["p99"] <= p99,
            )  # fmt: skip
    for where, how, p99, p999 in ((at, "", 0.8, 2.0), (tls_at, ", TLS", 1.0, 3.0)):
        if outcome := where.get((fast, 300)):
            got = outcome["caller_to_model_ms"]
            for place, name, bound in (("p99", "p99", p99), ("p999", "p99.9", p999)):
                row(
                    f"caller to model {name}, 300 calls{how}", f"{bound} ms",
                    f"{_ms(got[place])} ms", got[place] <= bound,
                )  # fmt: skip
    few = at.get((fast, 25))
    if few and (p50 := few["first_chunk_ms"]["p50"]) is not None:
        row("first chunk of a turn p50, 25 calls", "0.12 ms", f"{p50:.2f} ms", p50 <= 0.12)
    if hundred and (p99 := hundred["interrupt_to_clear_ms"]["p99"]) is not None:
        row("interrupted to clear p99, 100 calls", "1.2 ms", f"{p99:.2f} ms", p99 <= 1.2)
    own = [point for point in points if point.kind is OFFHOOK]
    if own:
        names = ("lost_ms", "doubled_ms", "stale_ms")
        wrong = sum(point.outcome[name] for point in own for name in names)
        row("lost, doubled, stale audio, all points", "0 ms", f"{wrong:.3f} ms", wrong == 0)
    if kept := [point for point in own if point.p99_ms < LIMIT_MS]:
        most = max(kept, key=lambda point: point.calls)
        load = f"{most.calls}, core {most.outcome['server_core']:.0%}"
        row("calls with p99 caller to model < 20 ms", "400", load, most.calls >= 400)
        kib = most.outcome["rss_kib_per_call"]
        row(f"memory per call, {most.calls} calls", "100 KiB", f"{kib:.0f} KiB", kib <= 100)
    return shown


def draw(points: Sequence[Point], directory: Path) -> list[Path]:
    """Latency percentiles and CPU against the number of calls."""
    lines = {
        name: sorted((point for point in points if point.kind.name == name), key=lambda p: p.calls)
        for name in dict.fromkeys(point.kind.name for point in points)
    }

    def draw_lines(axes: Any, value: Callable[[Point], float], title: str) -> None:
        for name, line in lines.items():
            axes.plot(
                [point.calls for point in line],
                [value(point) for point in line],
                marker=".",
                color=COLOURS[name],
                linewidth=2.6 if name == OFFHOOK.name else 1.4,
                label=name,
            )
        axes.set(xlabel="calls on one core", title=title)
        axes.grid(which="both", alpha=0.25)

    latency, (row,) = plots.figure(columns=2)
    for axes, place in zip(row, ("p50", "p99"), strict=True):
        draw_lines(
            axes,
            lambda point, place=place: point.outcome["caller_to_model_ms"][place],  # type: ignore[misc]
            f"caller to model, {place}",
        )
        axes.axhline(LIMIT_MS, color="grey", linewidth=0.8)
        axes.set_yscale("log")
        axes.set_ylabel("ms")
    row[0].legend()
    plots.save(latency, directory / "calls-latency.png")

    cpu, ((left, right),) = plots.figure(columns=2)
    draw_lines(left, lambda point: point.outcome["server_core"] * 100, "% of the server's core")
    draw_lines(right, lambda point: point.outcome["cpu_ms_per_call_s"], "CPU per call-second, ms")
    for axes in (left, right):
        axes.set_ylim(bottom=0)
    left.legend()
    plots.save(cpu, directory / "calls-cpu.png")
    return [directory / "calls-latency.png", directory / "calls-cpu.png"]
