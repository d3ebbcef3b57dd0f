"""How long does a chunk stay in the server, through one whole call?

One call at a time on an otherwise idle server, timed from outside by the load generator: how soon
a prepared greeting is heard after the answer, how long audio takes each way, how soon the agent is
silent after an interruption, and whether all of the audio came. Beside it stands what the server
says of itself (``GET /calls/{call_sid}``), so that its own part can be told from the sockets'.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import httpx2
from rich import box
from rich.table import Table

from benchmarks import plots
from benchmarks.load.call import Talk
from benchmarks.options import Options, machine, machine_line
from benchmarks.point import OFFHOOK, ORDINARY, PointFailed, ServerKind, run_point
from benchmarks.processes import idle_load

TALK = Talk(turn_s=0.8, cycle_s=0.5, cut_every=1, cut_delays_s=(0.0, 0.005, 0.02, 0.1))
"""A turn twice a second, 20 chunks in 0.2 s, and every one is interrupted."""
ANSWERS = 30
CUTS = 110
QUICK_CUTS = 30
PACKAGES = ("hypercorn", "quart-trio", "trio", "websockets", "uvloop", "picows")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    own = parser.add_argument_group("chunk")
    own.add_argument(
        "--realtime",
        action="store_true",
        help="prefer both sides to other programs (SCHED_RR), for a machine that is not idle; "
        "Linux keeps 5 %% of each core from such a process",
    )


def run(options: Options) -> dict[str, object]:
    """Measure each of our paths, and print what the first version had to reach."""
    console = options.console
    facts = machine(PACKAGES)
    console.print(machine_line(facts), highlight=False)
    if (busy := idle_load()) > 0.1:
        console.print(
            f"[yellow]this machine is not idle[/]: a core is {busy:.0%} busy before we begin, "
            "and these figures will show it"
        )
    window_s = (QUICK_CUTS if options.quick else CUTS) * TALK.cycle_s
    paths: dict[str, dict[str, Any]] = {}
    for kind in (OFFHOOK, ORDINARY):
        if kind.missing:
            console.print(f"[yellow]{kind.name} is left out[/]: {', '.join(kind.missing)}")
            continue
        try:
            with console.status(f"{kind.name}, {window_s:.0f} s"):
                paths[kind.name] = _measure(kind, window_s, realtime=options.arguments.realtime)
        except PointFailed as failure:
            console.print(f"[red]{kind.name}: no figure[/]\n{failure}")
    for name, outcome in paths.items():
        console.print(stages_table(name, outcome))
        console.print(bounds_table(name, outcome))
    samples = {
        f"{name}, {way.replace('_', ' ')}": ways
        for name, outcome in paths.items()
        for way, ways in outcome.pop("samples_ms").items()
    }
    if options.plots is not None and samples and plots.have_matplotlib():
        path = options.plots / "chunk-latency.png"
        plots.latency_cdf(samples, path, "one call: a chunk, in to out")
        console.print(f"plot: {path}")
    return {"versions": facts["versions"], "paths": paths}


def _measure(kind: ServerKind, window_s: float, *, realtime: bool) -> dict[str, Any]:
    outcome = run_point(
        kind,
        1,
        window_s=window_s,
        talk=TALK,
        answers=ANSWERS,
        samples=True,
        realtime=realtime,
        look=_own_timings,
    )
    outcome["own"] = outcome.pop("looked")
    del outcome["call_sids"]
    return outcome


def _own_timings(client: httpx2.Client, outcome: Mapping[str, Any]) -> dict[str, Any]:
    """What the server noted itself about the call, while it lasted."""
    answer = client.get(f"/calls/{outcome['call_sids'][0]}")
    if answer.status_code != 200:
        raise PointFailed(f"/calls answered {answer.status_code}")
    timings: dict[str, Any] = answer.json()["timings"]
    return timings


def stages_table(name: str, outcome: Mapping[str, Any]) -> Table:
    """Each way from outside, and the server's own part of it, in milliseconds."""
    shown = Table(title=f"{name}: one call, ms", box=box.SIMPLE_HEAD)
    for heading in ("", "p50", "p95", "p99", "p99.9"):
        shown.add_column(heading, justify="left" if not heading else "right")
    own = outcome["own"]
    for what, outside, inside in (
        ("caller to model", "caller_to_model_ms", "caller_to_model"),
        ("agent to caller", "agent_to_caller_ms", "model_to_caller"),
        ("interrupted to clear", "interrupt_to_clear_ms", "interrupt_to_clear"),
    ):
        seen, noted = outcome[outside], own.get(inside) or {}
        shown.add_row(what, *(_ms(seen[place]) for place in ("p50", "p95", "p99", "p999")))
        if noted.get("p50_ms") is not None:
            rest = [
                None if seen[place] is None else max(0.0, seen[place] - noted[f"{place}_ms"])
                for place in ("p50", "p99")
            ]
            shown.add_row(
                "   message read to written", _ms(noted["p50_ms"]), "", _ms(noted["p99_ms"]), ""
            )
            shown.add_row("   sockets, framing, wake-up", _ms(rest[0]), "", _ms(rest[1]), "")
    answer = outcome["answer_ms"]
    shown.add_row(
        "answer to first agent audio",
        *(_ms(answer[place]) for place in ("p50", "p95", "p99", "p999")),
    )
    return shown


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def bounds_table(name: str, outcome: Mapping[str, Any]) -> Table:
    """The bounds of the first whole version, and what this run shows."""
    shown = Table(title=f"{name}: bounds", box=box.SIMPLE_HEAD)
    for heading in ("", "bound", "measured", ""):
        shown.add_column(heading)

    def row(what: str, bound: str, measured: str, holds: bool) -> None:
        shown.add_row(what, bound, measured, "[green]yes[/]" if holds else "[red]no[/]")

    answer = outcome["answer_ms"]["p99"]
    row(
        f"answer to first agent audio, {ANSWERS} calls, p99",
        "5 ms",
        f"{answer:.2f} ms",
        answer <= 5,
    )
    clear = outcome["interrupt_to_clear_ms"]["p99"]
    cuts = f"interrupted to clear, {outcome['clears']} times, p99"
    row(cuts, "3 ms", f"{clear:.2f} ms", clear <= 3)
    for what, way in (
        ("caller to model p50 / p99", "caller_to_model_ms"),
        ("agent to caller p50 / p99", "agent_to_caller_ms"),
    ):
        p50, p99 = outcome[way]["p50"], outcome[way]["p99"]
        row(what, "1.5 / 5 ms", f"{p50:.2f} / {p99:.2f} ms", p50 <= 1.5 and p99 <= 5)
    row(
        "agent audio after the clear of a cut turn", "0 ms", f"{outcome['stale_ms']:g} ms",
        outcome["stale_ms"] == 0,
    )  # fmt: skip
    wrong = outcome["lost_ms"] + outcome["doubled_ms"]
    row("audio lost or doubled", "0 ms", f"{wrong:g} ms", wrong == 0)
    return shown
