"""Every fault of the table: what it needs, what it does, and what is promised.

To add one, write what it does and a row in ``ROWS``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks import processes
from benchmarks.chaos.database import why_no_postgresql
from benchmarks.failover.judge import Bounds, Check, Outcome
from benchmarks.failover.network import why_no_network
from benchmarks.failover.seen import Attempt, noticed, rate_per_s, refused_for_s
from benchmarks.failover.stores import (
    Usage,
    cpu_us_of_a_state,
    keys_of,
    lists_of,
    odd_keys_of,
    states_of,
    why_no_redis,
)
from benchmarks.failover.talk import (
    Fault,
    each_held_once,
    end_calls,
    happens_to_calls,
    held_by,
    judge_all,
    live_sids,
    look_up,
    place,
    see,
)
from benchmarks.failover.world import Node, Spec, World

FROZEN_S = 10.0
CUT_OFF_S = 12.0
RIGHT_S = 5.0
"""How soon lookups have to be right again."""
LOAD_PER_S = 2.0
LOAD_CALL_S = (6.0, 12.0)
STEADY_S = 6.0
"""How long calls come before anything happens, and between one thing and the next."""
DIALS_PER_S = 5.0
DIAL_S = 20.0
TAKEOVERS = 200
ROUNDS = 10
"""In which there are so many: calls begin anew for each, as those that moved stay where nobody is
killed."""
TASKS_OF_A_CONNECTION = 3
"""To the registry: what it is, and who reads and writes it."""
IDLE_ROUNDS = 3
"""In a row that move nothing; then it is given up."""
COST_S = 30.0
IDLE_S = 30.0
COST_MORE = 0.03


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table."""

    name: str
    title: str
    bound: str
    spec: Spec
    act: Callable[[World, int], Outcome]
    bounds: Bounds = field(default_factory=Bounds)
    most_s: float = 300.0
    """No row may take longer, whatever happens."""

    @property
    def why_not(self) -> str:
        """Why it cannot be tried on this machine; empty if it can."""
        if shutil.which("haproxy") is None:
            return "haproxy is not installed"
        if why := why_no_postgresql():
            return why
        if self.spec.registry and (why := why_no_redis()):
            return why
        return why_no_network() if self.spec.has_networks else ""


def _calls(act: Callable[[World], Fault], watch_s: float) -> Callable[[World, int], Outcome]:
    return lambda world, calls: happens_to_calls(world, calls, act, watch_s)


# --- Lines, processes and nodes -------------------------------------------------------------------


def _cut_lines(world: World) -> Fault:
    """The balancer ends every stream it has."""
    at = time.monotonic()
    for node in world.nodes:
        world.tell_balancer(f"shutdown sessions server streams/{node.name}")
    return Fault(at)


def _kill_worker(world: World) -> Fault:
    """One of several processes is gone at once: the one with most calls, as others have none."""
    node = world.nodes[0]
    model = int(node.environment["GEMINI_URL"].rpartition(":")[2])
    victim = max(node.worker_pids, key=lambda pid: processes.connections_to(pid, model))
    at = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    return Fault(at)


def _kill_node(world: World) -> Fault:
    """One node is gone at once."""
    fault = Fault(time.monotonic(), world.nodes[1])
    world.nodes[1].kill()
    others = [world.nodes[0], *world.nodes[2:]]
    fault.is_over = lambda: fault.checks.append(each_held_once(world, others))
    return fault


def _freeze_node(world: World) -> Fault:
    """One node is stopped, and goes on when its calls are somebody else's."""
    fault = Fault(time.monotonic(), world.nodes[1])
    world.nodes[1].signal(signal.SIGSTOP)
    try:
        time.sleep(FROZEN_S)
    finally:
        world.nodes[1].signal(signal.SIGCONT)
    fault.is_over = lambda: fault.checks.append(each_held_once(world, world.nodes))
    return fault


def _cut_off_node(world: World) -> Fault:
    """Frames of one node, and those to it, go to nobody; then they find each other again."""
    network = world.nodes[1].network
    assert network is not None
    fault = Fault(time.monotonic(), world.nodes[1])
    network.cut_off()
    try:
        time.sleep(CUT_OFF_S)
    finally:
        network.heal()
    fault.is_over = lambda: fault.checks.append(each_held_once(world, world.nodes))
    return fault


# --- The registry ---------------------------------------------------------------------------------


def _empty_registry(world: World) -> Fault:
    """The registry is gone for a moment, and comes back with nothing."""
    fault = Fault(time.monotonic())
    world.redis[0].kill()
    time.sleep(2.0)
    fault.checks.append(_nothing_denied(world))
    world.redis[0].start()
    fault.checks.append(_right_again(world, time.monotonic()))
    fault.checks.append(
        Check("keys there again", "some", str(keys_of(world.redis[0].port)), holds=True)
    )
    return fault


def _kill_primary(world: World) -> Fault:
    """The registry's primary is gone for good, and sentinels choose another."""
    fault = Fault(time.monotonic())
    world.redis[0].kill()
    fault.checks.append(_right_again(world, fault.at))
    return fault


def _nothing_denied(world: World) -> Check:
    """While the registry is away, who does not know must not say that there is no such call."""
    found = look_up(world, world.nodes, live_sids(world))
    denied = found.get(404, 0)
    return Check("404 of live calls while it is away", "none", f"{denied}, {found}", not denied)


def _right_again(world: World, since: float) -> Check:
    """How soon every node finds every call."""
    sids = live_sids(world)
    deadline = since + 3 * RIGHT_S
    found: dict[int, int] = {}
    while True:
        began = time.monotonic()
        found = look_up(world, world.nodes, sids)
        if set(found) == {200} or began > deadline:
            break
        time.sleep(0.1)
    took_s = began - since
    is_right = set(found) == {200} and took_s <= RIGHT_S
    said = f"{took_s:.1f} s" if set(found) == {200} else f"never, {found}"
    return Check("lookups right again", f"{RIGHT_S:g} s", said, is_right)


# --- Rolling, and in place ------------------------------------------------------------------------


def _under_load(
    world: World, act: Callable[[World, list[Check]], None], refused_s: float
) -> Outcome:
    """New calls all the time while something happens: what became of them."""
    outcome = Outcome()
    began = time.monotonic()
    world.doubles.ask(
        "load",
        urls=[world.public_url] if world.redis else [_front(world)],
        public_url=world.public_url if world.redis else _front(world),
        per_s=LOAD_PER_S,
        call_s=LOAD_CALL_S,
    )
    time.sleep(STEADY_S)
    act(world, outcome.checks)
    time.sleep(STEADY_S)
    until = time.monotonic()
    end_calls(world, outcome)
    seen = see(world)
    traces = [trace for trace in seen.traces if trace.answered is not None]
    outcome.wanted = 1
    for trace in traces:
        first = trace.streams[0].began if trace.streams else began
        call = noticed(trace, first, until)
        outcome.calls = [*outcome.calls, replace(call, stream_s=None, heard_s=None)]
    moved = sum(len(trace.streams) > 1 for trace in traces)
    outcome.checks.append(Check("calls with more than one stream", "", str(moved), holds=True))
    judge_all(world, seen, traces, outcome)
    refused = [one for one in seen.attempts if not one.taken]
    longest_s = refused_for_s(seen.attempts)
    said = f"{len(refused)} of {len(seen.attempts)}, for {longest_s:.1f} s {_why(refused)}"
    bound = f"for at most {refused_s:g} s" if refused_s else "none"
    outcome.checks.append(
        Check(
            "calls refused",
            bound,
            said.strip(),
            longest_s <= refused_s and (bool(refused_s) or not refused),
        )
    )
    return outcome


def _why(refused: list[Attempt]) -> str:
    words = sorted({one.what for one in refused})
    return f"({'; '.join(words[:3])})" if words else ""


def _front(world: World) -> str:
    return str(world.nodes[0].environment["PUBLIC_URL"])


def _roll(world: World, checks: list[Check]) -> None:
    """One node after the other is stopped in order and started again."""
    for node in world.nodes:
        node.process.send_signal(signal.SIGTERM)
        if not node.wait_ended(75.0):
            checks.append(Check(f"{node.name} stops", "75 s", "not", holds=False))
            node.kill()
        node.start()
        node.wait_ready()
        time.sleep(STEADY_S)


def _upgrade(world: World, checks: list[Check]) -> None:
    """A new server is started beside the old one, which drains and ends."""
    node = world.nodes[0]
    for turn in ("first", "second"):
        old = node.process
        node.start("--take-over")
        try:
            old.wait(75.0)
        except subprocess.TimeoutExpired:
            checks.append(Check(f"the old one ends, {turn}", "75 s", "not", holds=False))
        if node.process.poll() is not None:
            status = node.process.returncode
            checks.append(Check(f"the new one serves, {turn}", "", f"ended: {status}", False))
            return
        time.sleep(STEADY_S)


def _rolling(world: World, calls: int) -> Outcome:
    return _under_load(world, _roll, refused_s=1.0)


def _in_place(world: World, calls: int) -> Outcome:
    return _under_load(world, _upgrade, refused_s=0.0)


# --- Rates, leavings and costs --------------------------------------------------------------------


def _dials(world: World, calls: int) -> Outcome:
    """Everybody wants to dial as fast as they may, at all nodes at once."""
    outcome = Outcome()
    world.doubles.ask("dial", urls=world.urls, each=4, seconds=DIAL_S)
    seen = see(world)
    times = [one.at for one in seen.asked if one.what == "create" and one.status == 201]
    rate = rate_per_s(times)
    most = max((sum(at <= other < at + 1.0 for other in times) for at in times), default=0)
    said = f"{rate:.2f} a second, {len(times)} dials, {most} in one second at most"
    holds = abs(rate - DIALS_PER_S) <= 0.1
    outcome.checks.append(Check("dials", f"{DIALS_PER_S:g} ± 0.1 a second", said, holds))
    end_calls(world, outcome)
    return outcome


@dataclass(frozen=True, slots=True)
class _Left:
    """What could be left behind on a node that nobody kills, and in the registry.

    Less the connections to the registry, of which a node keeps as many as it has wanted at once,
    eight at most, and the tasks of each.
    """

    descriptors: int
    threads: int
    tasks: int
    """Of all nodes."""
    calls: int
    lists: int
    """Of live calls, one of each process that has any."""
    states: int
    """Of calls that somebody could go on with."""
    claims: int
    """Calls that the nodes would tell the registry of again."""
    keys: int
    """What would stay there for good, or is neither a member nor the claim of a call that is over,
    which is forgotten in its time."""

    @property
    def has_calls(self) -> bool:
        """Whether anybody knows of a call that lives."""
        return any((self.calls, self.lists, self.states, self.claims, self.keys))

    @classmethod
    def now(cls, world: World) -> _Left:
        """Look."""
        pid = world.nodes[0].process.pid
        port = world.redis[0].port
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
        calls = held_by(world, world.nodes)
        claims = held_by(world, world.nodes, "offhook_registry_calls")
        kept = [processes.connections_to(node.process.pid, port) for node in world.nodes]
        descriptors -= kept[0]
        tasks = held_by(world, world.nodes, "offhook_tasks") - TASKS_OF_A_CONNECTION * sum(kept)
        lists, states, keys = lists_of(port), states_of(port), odd_keys_of(port)
        return cls(descriptors, threads, tasks, calls, lists, states, claims, keys)


def _takeovers(world: World, calls: int) -> Outcome:
    """Nodes die in turn, and come back, until so many calls have been taken over."""
    outcome = Outcome()
    before, wanted = _Left.now(world), min(TAKEOVERS, ROUNDS * calls)
    keys_at_first = keys_of(world.redis[0].port)
    # What is opened when it is first wanted, as a connection to the database, is no leaving.
    is_warm = False
    taken, rounds, idle = 0, 0, 0
    while taken < wanted and rounds < 2 * ROUNDS and idle < IDLE_ROUNDS:
        rounds += 1
        world.doubles.ask("place", urls=world.urls, calls=calls, within_s=30.0)
        victim: Node = world.nodes[1 + rounds % 2]
        at = time.monotonic()
        victim.kill()
        time.sleep(4.0)
        now = time.monotonic()
        up = [trace for trace in see(world).traces if trace.was_up(at)]
        seen = [noticed(trace, at, now) for trace in up]
        moved = sum(call.lived and call.stream_s is not None for call in seen)
        outcome.calls = [*outcome.calls, *(call for call in seen if call.is_hit)]
        victim.start()
        victim.wait_ready()
        taken += moved
        idle = 0 if moved else idle + 1
        end_calls(world, outcome)
        world.doubles.ask("forget")
        if not is_warm:
            time.sleep(STEADY_S)
            before, is_warm = _Left.now(world), True
    after = before
    for _ in range(40):
        after = _Left.now(world)
        # A claim without a state lives on, for the carrier's late words, until many calls later.
        are_few = after.tasks <= before.tasks + 2 * len(world.nodes)
        if after.descriptors <= before.descriptors + 2 and are_few and not after.has_calls:
            break
        time.sleep(0.5)
    outcome.checks += [
        Check("takeovers", f">= {wanted}", f"{taken} in {rounds} rounds", taken >= wanted),
        _left("descriptors", before.descriptors, after.descriptors, 2),
        _left("threads", before.threads, after.threads, 2),
        _left("tasks", before.tasks, after.tasks, 2 * len(world.nodes)),
        _left("calls", before.calls, after.calls, 0),
        _left("lists of calls", before.lists, after.lists, 0),
        _left("states", before.states, after.states, 0),
        _left("claims of live calls", before.claims, after.claims, 0),
        _left("keys", before.keys, after.keys, 0),
        keys_left(keys_at_first, keys_of(world.redis[0].port), rounds, calls * len(world.nodes)),
    ]
    return outcome


def keys_left(before: int, after: int, rounds: int, calls: int) -> Check:
    """Whether a registry has at most one more key for each call, and each node that has come anew.

    Args:
        before: How many it had.
        after: How many it has: claims of calls that are over are among them.
        rounds: How often a node was killed.
        calls: How many were placed each time.
    """
    most = before + rounds * (calls + 1)
    return Check("DBSIZE, claims of calls that are over", f"<= {most}", str(after), after <= most)


def _left(what: str, before: int, after: int, more: int) -> Check:
    return Check(f"{what} left", f"{before}", str(after), after <= before + more)


def registry_words(seen: Sequence[Usage], calls: int) -> str:
    """What a call costs the registry beyond what processes without calls do.

    Args:
        seen: At the beginning and the end of a time without calls, and of one with them.
        calls: How many there were then.
    """
    idle, busy = ((b.operations - a.operations) / (b.at - a.at) for a, b in (seen[:2], seen[2:]))
    return (
        f"{idle:.1f} operations a second without calls, {(busy - idle) / calls:.2f} more for each "
        f"call; {seen[-1].state_bytes:.0f} bytes of state a call"
    )


def _cost(world: World, calls: int) -> Outcome:
    """A server with a registry between two without, each with as many calls, side by side."""
    outcome = Outcome(wanted=calls * len(world.nodes))
    registry = [Usage.of(world.redis[0].port)]
    idle = _cpu_with_and_without(world, IDLE_S)
    registry.append(Usage.of(world.redis[0].port))
    place(world, calls)
    registry.append(Usage.of(world.redis[0].port))
    shares = [[each / calls for each in _cpu_with_and_without(world, COST_S)] for _ in range(2)]
    until = time.monotonic()
    registry.append(Usage.of(world.redis[0].port))
    outcome.calls = [noticed(t, until, until) for t in see(world).traces if t.was_up(until)]
    end_calls(world, outcome)
    said = f"{registry_words(registry, calls)}; {cpu_us_of_a_state(world.redis[0].port):.0f} µs of "
    outcome.checks.append(Check("the registry", "", f"{said}its CPU a state written", holds=True))
    beats = f"{1000 * (idle[0] - idle[1]):.1f} ms a second"
    outcome.checks.append(Check("CPU of a server's beats, without calls", "", beats, holds=True))
    means = [sum(share) / len(shares) for share in zip(*shares, strict=True)]
    own = [mean - without_calls / calls for mean, without_calls in zip(means, idle, strict=True)]
    each = ", ".join(f"{100 * (share[0] / share[1] - 1):+.1f} %" for share in shares)
    outcome.checks.append(
        Check("CPU of a server by its calls, beats included", "", f"{_more(means)} ({each})", True)
    )
    outcome.checks.append(
        Check(
            "CPU of a call with a registry",
            f"at most {100 * COST_MORE:g} % more",
            _more(own),
            own[0] / own[1] - 1 <= COST_MORE,
        )
    )
    return outcome


def _more(with_and_without: Sequence[float]) -> str:
    with_s, without_s = with_and_without
    more = 100 * (with_s / without_s - 1)
    return f"{1000 * with_s:.2f} ms a second, {1000 * without_s:.2f} without: {more:+.1f} %"


def _cpu_with_and_without(world: World, seconds: float) -> tuple[float, float]:
    """What the node with a registry takes of a core meanwhile, and what one without does: one was
    begun before it and one after it, as that makes half a percent.
    """
    before = [sum(processes.cpu_s(node.process.pid).values()) for node in world.nodes]
    time.sleep(seconds)
    after = [sum(processes.cpu_s(node.process.pid).values()) for node in world.nodes]
    first, with_registry, last = [(b - a) / seconds for a, b in zip(before, after, strict=True)]
    return with_registry, (first + last) / 2


QUICKLY: Mapping[str, str] = {"MAX_STREAMS_PER_MIN": "60"}

ROWS = (
    Row(
        "lines",
        "every media socket cut",
        "all live; stream ≤ 0.5 s, agent ≤ 1 s",
        Spec(),
        _calls(_cut_lines, 8.0),
        Bounds(stream_max_s=0.5, heard_p95_s=1.0, least_hit=1.0),
    ),
    Row(
        "worker",
        "one of 4 workers killed",
        "none ends; agent ≤ 1.5 s",
        Spec(nodes=1, workers=4, registry=""),
        _calls(_kill_worker, 10.0),
        Bounds(heard_p95_s=1.5, least_hit=0.05),
    ),
    Row(
        "node",
        "node killed",
        "none ends; agent ≤ 2 s; records whole",
        Spec(),
        _calls(_kill_node, 10.0),
        Bounds(heard_p95_s=2.0, least_hit=0.2),
    ),
    Row(
        "frozen",
        "node frozen for 10 s",
        "none ends or twice, no REST by the old; agent ≤ 6 s",
        Spec(),
        _calls(_freeze_node, 10.0),
        Bounds(heard_p95_s=6.0, least_hit=0.2),
    ),
    Row(
        "cut-off",
        "node cut off in silence, then back",
        "agent ≤ 6 s; as frozen",
        Spec(has_networks=True),
        _calls(_cut_off_node, 10.0),
        Bounds(heard_p95_s=6.0, least_hit=0.2),
    ),
    Row(
        "empty",
        "Redis restarted empty",
        "nobody notices; lookups right ≤ 5 s",
        Spec(),
        _calls(_empty_registry, 6.0),
        Bounds(nobody_notices=True),
    ),
    Row(
        "sentinels",
        "Redis's primary killed, three sentinels",
        "nobody notices; lookups right ≤ 5 s",
        Spec(registry="sentinels"),
        _calls(_kill_primary, 6.0),
        Bounds(nobody_notices=True),
    ),
    Row(
        "rolling",
        "rolling restart, 2 new calls/s",
        "none cut; refused ≤ 1 s",
        Spec(),
        _rolling,
        most_s=420.0,
    ),
    Row(
        "upgrade",
        "upgrade in place, 2 new calls/s",
        "none cut, none refused",
        Spec(nodes=1, registry=""),
        _in_place,
    ),
    Row(
        "dials",
        "dials at 3 nodes, 5/s",
        "5.0 ± 0.1 a second",
        Spec(settings={"CALLS_PER_S": f"{DIALS_PER_S:g}"}),
        _dials,
    ),
    Row(
        "takeovers",
        f"{TAKEOVERS} takeovers",
        "nothing is left",
        Spec(settings=QUICKLY),
        _takeovers,
        most_s=900.0,
    ),
    Row(
        "cost",
        "CPU of a call, with and without a registry",
        "≤ 3 % more",
        Spec(nodes=3, are_apart=True),
        _cost,
    ),
)
BY_NAME = {row.name: row for row in ROWS}
