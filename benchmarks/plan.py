"""What do so many calls at once need, and what breaks first on the way there? On paper.

Nodes, cores, the registry, the balancer, lines and quotas, computed from figures that were measured
on one machine, that others have published, or that are assumed: each is shown with which of these
it is (:data:`SOURCES`). ``--measured FILE`` takes what ``python -m benchmarks calls --tls --json
FILE`` has found on yours. Nothing is run, and nobody is asked.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.options import Options

MOST_CALLS = 10_000_000
LIMIT_MS = 20.0
"""As :mod:`benchmarks.calls`: p99 caller to model beyond it is the end of a core's range."""
OURS = "offhook"

# What goes over a line, a call and second; TCP, IP and TLS take some 95 bytes a message.
FRAMES_PER_S = 50
OVERHEAD_BYTES = 95
CARRIER_MESSAGE_BYTES = 350
"""One 20 ms frame of Twilio's: mu-law in base64, and JSON around it."""
MODEL_MESSAGE_BYTES = 856 + 100
"""20 ms for Gemini: pcm of 16 kHz in base64, and JSON around it."""
AGENT_CARRIER_BYTES_PER_S = 8_000 * 4 / 3
AGENT_MODEL_BYTES_PER_S = 24_000 * 2 * 4 / 3


@dataclass(frozen=True, slots=True)
class Measured:
    """What a call costs us; :data:`SOURCES` has where each figure is from."""

    calls_per_core: int = 400
    """With p99 within 20 ms."""
    cpu_ms_per_call_s: float = 1.31
    """At 400 calls."""
    tls_ms_per_call_s: float = 0.28
    """What TLS to the model adds, at 100 calls."""
    setup_ms: float = 25.0
    """For a call that we place, and its end; one that comes in takes 14."""
    rss_kib_per_call: float = 130.0
    balancer_ms_per_call_s: float = 1.6
    """Of one that reads HTTP, in plain; TLS comes on top."""
    registry_us: float = 13.0
    """The registry's own CPU an operation; they come many in one go."""
    state_every_s: float = 3.0
    """How often a call that talks writes its state: an operation."""
    state_bytes: int = 2_500
    """A call's state, compressed and sealed."""
    setup_ops: int = 5
    """Registry operations of one call beside its state: its turn to be dialled, claim, end, and
    its place in the list of its process's calls."""
    beat_s: float = 0.75
    """How often a process says how it is and hears how the others are, in one operation."""


@dataclass(frozen=True, slots=True)
class Told:
    """What others allow; ask yours."""

    dials_per_s: float = 1.0
    """For an account; inbound calls have no such limit."""
    model_sessions: int = 1_000
    """For a project."""
    line_gbit_s: float = 10.0
    """One node's network."""
    records_per_s: float = 560.0
    """What one PostgreSQL writes easily."""
    fan_out_nodes: int = 10
    """As many as are sensibly asked for one list."""
    redirects_per_s: float = 50.0
    """How fast calls of a node that is silent are told to come to another, over Twilio's REST API.
    """


ASSUMED = "assumed"
SOURCES = {
    "calls_per_core": "python -m benchmarks calls --tls",
    "cpu_ms_per_call_s": "python -m benchmarks calls --tls",
    "tls_ms_per_call_s": "python -m benchmarks calls --tls",
    "setup_ms": "python -m benchmarks setup --quick, on a machine that was not idle",
    "rss_kib_per_call": "python -m benchmarks calls --tls (93 to 106, and what varies)",
    "balancer_ms_per_call_s": f"{ASSUMED}: HAProxy 2.6 with 24 calls of a prototype",
    "registry_us": "python -m benchmarks failover --only cost, Redis 7.0 (10 to 13)",
    "state_every_s": "python -m benchmarks failover --only cost, with agents that never pause",
    "state_bytes": "tests/benchmarks/test_benchmarks_plan.py: 20 turns, 1,000 characters of prompt",
    "setup_ops": f"{ASSUMED}: counted in the program, for a call that we place",
    "beat_s": "the program's own (server/cluster/redis/registry.py)",
    "dials_per_s": "published: Twilio's default",
    "model_sessions": "published: Vertex PayGo; of the Gemini API's tiers 50 and 1,000 are said",
    "line_gbit_s": ASSUMED,
    "records_per_s": f"{ASSUMED}: 560 were written once, and the end was not looked for",
    "fan_out_nodes": f"{ASSUMED}: the program asks ten processes for one list",
    "redirects_per_s": "the program's own (server/switchboard/rescue.py)",
}
"""Where each figure is from: a command that measures it, whoever has published it, or nobody."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for."""

    calls: int
    minutes: float = 3.0
    """A call's length."""
    outbound: float = 1.0
    """The share of calls that we place."""
    speaks: float = 0.5
    """The share of the time in which the agent speaks."""
    node_cores: int = 2
    full: float = 2 / 3
    """How full a core is when nothing is wrong; the rest is for a node's death, and for peaks."""
    balancer_cores: int = 4
    """Of one balancer."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a number of calls needs. A line's rates are a direction's, ``up`` from us."""

    setups_per_s: float
    cores: int
    nodes: int
    spare_nodes: int
    calls_per_node: int
    core_busy: float
    """How busy a core is with its calls and set-ups."""
    node_rss_mib: float
    registry_ops_per_s: float
    registry_core: float
    """The share of the registry's one core."""
    state_mib: float
    state_mb_per_s: float
    balancer_cores: float
    carrier_up_gbit_s: float
    carrier_down_gbit_s: float
    model_up_gbit_s: float
    model_down_gbit_s: float
    node_mbit_s: float
    """The fuller direction of one node's line."""
    dials_per_s: float
    model_quotas: int
    """Projects or keys with a quota of sessions each."""
    death_calls: int
    """Calls that move when a node dies."""
    death_each: float
    """How many of them each other node gets."""
    death_redirects_s: float
    """How long it takes to call all of them back, if the node is silent and does not just end."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Something that holds up to so many calls at once."""

    what: str
    calls: float
    then: str
    """What to do about it."""


def plan(wish: Wish, measured: Measured, told: Told) -> Plan:
    """Work out what the calls need."""
    calls_per_core = max(1, math.floor(measured.calls_per_core * wish.full))
    setups_per_s = wish.calls / (wish.minutes * 60)
    cores = math.ceil(wish.calls / calls_per_core)
    nodes = math.ceil(cores / wish.node_cores)
    spare = max(1, math.ceil(nodes / 20))
    per_node = math.ceil(wish.calls / nodes)
    processes = (nodes + spare) * wish.node_cores
    states_per_s = wish.calls / measured.state_every_s
    ops_per_s = setups_per_s * measured.setup_ops + states_per_s + processes / measured.beat_s
    call_ms = measured.cpu_ms_per_call_s + measured.tls_ms_per_call_s
    setup_ms = measured.setup_ms / (wish.minutes * 60)
    rates = line_bit_s(wish.speaks)
    return Plan(
        setups_per_s=setups_per_s,
        cores=cores,
        nodes=nodes,
        spare_nodes=spare,
        calls_per_node=per_node,
        core_busy=per_node / wish.node_cores * (call_ms + setup_ms) / 1e3,
        node_rss_mib=per_node * measured.rss_kib_per_call / 1024,
        registry_ops_per_s=ops_per_s,
        registry_core=ops_per_s * measured.registry_us / 1e6,
        state_mib=wish.calls * measured.state_bytes / 2**20,
        state_mb_per_s=states_per_s * measured.state_bytes / 1e6,
        balancer_cores=wish.calls * measured.balancer_ms_per_call_s / 1e3,
        carrier_up_gbit_s=wish.calls * rates["carrier up"] / 1e9,
        carrier_down_gbit_s=wish.calls * rates["carrier down"] / 1e9,
        model_up_gbit_s=wish.calls * rates["model up"] / 1e9,
        model_down_gbit_s=wish.calls * rates["model down"] / 1e9,
        node_mbit_s=per_node * fuller_bit_s(rates) / 1e6,
        dials_per_s=setups_per_s * wish.outbound,
        model_quotas=math.ceil(wish.calls / told.model_sessions),
        death_calls=per_node,
        death_each=per_node / (nodes + spare - 1),
        death_redirects_s=per_node / told.redirects_per_s,
    )


def line_bit_s(speaks: float) -> dict[str, float]:
    """What one call's audio takes of a line, by the other end and direction (``up`` from us).

    Args:
        speaks: The share of the time in which the agent speaks; the caller's audio always comes.
    """
    return {
        "carrier down": FRAMES_PER_S * (CARRIER_MESSAGE_BYTES + OVERHEAD_BYTES) * 8,
        "carrier up": speaks * AGENT_CARRIER_BYTES_PER_S * 1.1 * 8,  # JSON and TLS: a tenth
        "model up": FRAMES_PER_S * (MODEL_MESSAGE_BYTES + OVERHEAD_BYTES) * 8,
        "model down": speaks * AGENT_MODEL_BYTES_PER_S * 1.1 * 8,
    }


def fuller_bit_s(rates: Mapping[str, float]) -> float:
    """What a call takes of a node's line in the direction that takes more."""
    return max(rates["carrier up"] + rates["model up"], rates["carrier down"] + rates["model down"])


def limits(wish: Wish, measured: Measured, told: Told) -> list[Limit]:
    """What breaks, the first to break first, as the number of calls grows."""
    call_s = wish.minutes * 60
    per_node = math.floor(measured.calls_per_core * wish.full) * wish.node_cores
    beats = wish.node_cores / measured.beat_s / per_node
    ops = 1 / measured.state_every_s + measured.setup_ops / call_s + beats
    found = [
        Limit(
            "one node",
            per_node,
            "more nodes: a registry, names in paths, a balancer (deploy/)",
        ),
        Limit(
            "the model's sessions",
            told.model_sessions,
            "a contract, or several keys with a quota each",
        ),
        Limit(
            "the balancer that reads HTTP",
            wish.balancer_cores * wish.full * 1e3 / measured.balancer_ms_per_call_s,
            "host names for nodes behind layer 4 (deploy/haproxy/l4.cfg)",
        ),
        Limit(
            "lists and sums over all nodes",
            told.fan_out_nodes * per_node,
            "GET /calls of the database; each node's own /metrics, summed by Prometheus",
        ),
        Limit(
            "a node's line",
            # Both ends of a call are on it; a node that is not full has room for another's calls.
            math.inf
            if per_node * fuller_bit_s(line_bit_s(wish.speaks)) <= told.line_gbit_s * 1e9
            else told.line_gbit_s * 1e9 / fuller_bit_s(line_bit_s(wish.speaks)),
            "smaller nodes, or a faster line",
        ),
        Limit(
            "one Redis",
            wish.full * 1e6 / measured.registry_us / ops,
            "Redis Cluster: a call's keys are in one slot",
        ),
        Limit(
            "one PostgreSQL",
            told.records_per_s * call_s,
            "a larger one",
        ),
    ]
    if wish.outbound > 0:
        found.append(
            Limit(
                "the carrier's dial rate",
                told.dials_per_s * call_s / wish.outbound,
                "an approved rate (CALLS_PER_S), or more accounts",
            )
        )
    return sorted((one for one in found if one.calls < math.inf), key=lambda one: one.calls)


def measured_from(figures: Mapping[str, Any], known: Measured) -> Measured:
    """Take what the benchmark ``calls`` has found in place of what is known.

    Args:
        figures: What it wrote with ``--json``.
        known: Everything that it does not say.

    Raises:
        ValueError: There is no figure of this server within its range.
    """
    try:
        points = [
            point
            for point in figures["points"]
            if point["server"] == OURS and _p99_ms(point) <= LIMIT_MS
        ]
        secure = {
            point["calls"]: point["cpu_ms_per_call_s"]
            for point in figures.get("tls_points", ())
            if point["server"] == OURS
        }
        plain = {point["calls"]: point["cpu_ms_per_call_s"] for point in points}
        if not points:
            raise ValueError(f"no point of {OURS} with p99 within {LIMIT_MS:g} ms")
        most = max(points, key=lambda point: point["calls"])
        found = replace(
            known,
            calls_per_core=most["calls"],
            cpu_ms_per_call_s=most["cpu_ms_per_call_s"],
            rss_kib_per_call=most["rss_kib_per_call"],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"these are no figures of the benchmark calls: {error!r}") from None
    both = secure.keys() & plain.keys()
    if both:
        calls = max(both)
        found = replace(found, tls_ms_per_call_s=max(0.0, secure[calls] - plain[calls]))
    return found


def _p99_ms(point: Mapping[str, Any]) -> float:
    p99 = point["caller_to_model_ms"]["p99"]
    return math.inf if p99 is None else float(p99)


# --- The command ----------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark alone is told."""
    own = parser.add_argument_group("plan")
    add, wish, told = own.add_argument, Wish(calls=1), Told()
    add("--calls", type=_count, default=10_000, metavar="N", help="at once (default: 10000)")
    add("--minutes", type=_positive, default=wish.minutes, help="a call's length (default: 3)")
    add("--outbound", type=_share, default=wish.outbound, help="share that we place (default: 1)")
    add("--speaks", type=_share, default=wish.speaks, help="share the agent speaks (default: 0.5)")
    add("--node-cores", type=_count, default=wish.node_cores, help="of one node (default: 2)")
    add("--balancer-cores", type=_count, default=wish.balancer_cores, help="default: 4")
    add("--calls-per-core", type=_count, metavar="N", help="in place of what was measured")
    add(
        "--dials-per-s", type=_positive, default=told.dials_per_s, help="the carrier's (default: 1)"
    )
    add("--sessions", type=_count, default=told.model_sessions, help="the model's (default: 1000)")
    add(
        "--measured",
        type=Path,
        metavar="FILE",
        help="what python -m benchmarks calls --tls --json FILE has found",
    )


def _count(word: str) -> int:
    number = int(word)
    if not 1 <= number <= MOST_CALLS:
        raise argparse.ArgumentTypeError(f"must be 1 to {MOST_CALLS}")
    return number


def _positive(word: str) -> float:
    number = float(word)
    if not 0 < number <= MOST_CALLS:
        raise argparse.ArgumentTypeError("must be more than 0")
    return number


def _share(word: str) -> float:
    number = float(word)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError("must be 0 to 1")
    return number


def run(options: Options) -> dict[str, object]:
    """Show what the calls need, and what breaks first."""
    chosen, console = options.arguments, options.console
    wish = Wish(
        calls=chosen.calls,
        minutes=chosen.minutes,
        outbound=chosen.outbound,
        speaks=chosen.speaks,
        node_cores=chosen.node_cores,
        balancer_cores=chosen.balancer_cores,
    )
    told = replace(Told(), dials_per_s=chosen.dials_per_s, model_sessions=chosen.sessions)
    measured = Measured()
    if chosen.measured is not None:
        try:
            measured = measured_from(json.loads(chosen.measured.read_text()), measured)
        except (OSError, ValueError) as error:
            raise SystemExit(f"{chosen.measured}: {error}") from None
    if chosen.calls_per_core is not None:
        measured = replace(measured, calls_per_core=chosen.calls_per_core)

    needs = plan(wish, measured, told)
    breaks = limits(wish, measured, told)
    console.print(needs_table(wish, needs))
    console.print(limits_table(wish, breaks))
    console.print(
        f"From {measured.calls_per_core} calls a core, {wish.full:.0%} full; "
        f"{measured.cpu_ms_per_call_s:.2f} ms of CPU a call and second and "
        f"{measured.tls_ms_per_call_s:.2f} for TLS to the model. Paper: measure your own by "
        "python -m benchmarks calls --tls --json FILE, and give it here as --measured FILE.",
        highlight=False,
    )
    console.print(sources_table(measured, told))
    return {
        "wish": asdict(wish),
        "measured": asdict(measured),
        "told": asdict(told),
        "sources": SOURCES,
        "plan": asdict(needs),
        "limits": [asdict(one) for one in breaks],
    }


def needs_table(wish: Wish, needs: Plan) -> Table:
    """What the calls need, a line each."""
    shown = Table(
        title=f"{wish.calls:,} calls at once, {wish.minutes:g} minutes each", box=box.SIMPLE_HEAD
    )
    shown.add_column("")
    shown.add_column("needs", justify="right", no_wrap=True)
    shown.add_column("")
    rows = (
        ("set-ups", f"{needs.setups_per_s:,.1f} /s", f"{needs.dials_per_s:,.1f} /s dialled by us"),
        (
            "nodes",
            f"{needs.nodes:,} + {needs.spare_nodes:,}",
            f"{wish.node_cores} cores each, {needs.cores:,} in all; {needs.calls_per_node:,} calls "
            f"a node, its cores {needs.core_busy:.0%} busy, {needs.node_rss_mib:,.0f} MiB of calls",
        ),
        (
            "registry",
            f"{needs.registry_ops_per_s:,.0f} ops/s",
            f"{needs.registry_core:.1%} of its core",
        ),
        (
            "state",
            f"{needs.state_mib:,.0f} MiB",
            f"{needs.state_mb_per_s:,.2f} MB/s written",
        ),
        (
            "balancer",
            f"{needs.balancer_cores:,.1f} cores",
            "reading HTTP, and TLS on top; next to none on layer 4",
        ),
        (
            "carrier's line",
            f"{needs.carrier_up_gbit_s + needs.carrier_down_gbit_s:,.2f} Gbit/s",
            f"{needs.carrier_up_gbit_s:,.2f} from us, {needs.carrier_down_gbit_s:,.2f} to us",
        ),
        (
            "model's line",
            f"{needs.model_up_gbit_s + needs.model_down_gbit_s:,.2f} Gbit/s",
            f"{needs.model_up_gbit_s:,.2f} from us (egress), {needs.model_down_gbit_s:,.2f} to us",
        ),
        ("a node's line", f"{needs.node_mbit_s:,.0f} Mbit/s", "in the fuller direction"),
        ("model's quotas", f"{needs.model_quotas:,}", "projects or keys"),
        (
            "a node's death",
            f"{needs.death_calls:,} calls",
            f"{needs.death_each:,.0f} to each other node; {needs.death_redirects_s:,.0f} s if all "
            "have to be called back",
        ),
    )
    for row in rows:
        shown.add_row(*row)
    return shown


def sources_table(measured: Measured, told: Told) -> Table:
    """Every figure that went in, and where it is from."""
    shown = Table(title="from these figures", box=box.SIMPLE_HEAD)
    shown.add_column("")
    shown.add_column("", justify="right", no_wrap=True)
    shown.add_column("by")
    known = asdict(Measured()) | asdict(Told())
    for name, value in (asdict(measured) | asdict(told)).items():
        source = SOURCES[name] if value == known[name] else "what was given"
        shown.add_row(name, f"{value:,g}", source)
    return shown


def limits_table(wish: Wish, breaks: list[Limit]) -> Table:
    """What breaks first, and what to do about it."""
    shown = Table(title="what breaks first", box=box.SIMPLE_HEAD)
    shown.add_column("")
    shown.add_column("holds up to", justify="right", no_wrap=True)
    shown.add_column("")
    shown.add_column("then")
    for one in breaks:
        reached = one.calls < wish.calls
        shown.add_row(
            one.what,
            f"{math.floor(one.calls):,}",
            "[red]before[/]" if reached else "[green]holds[/]",
            one.then,
        )
    return shown
