"""``python -m benchmarks chaos``: a run from its schedule to its verdict."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import trio
from rich import box
from rich.table import Table

from benchmarks.chaos.calls import CallSeen, Loss
from benchmarks.chaos.faults import BY_NAME, FAULTS, Excuse
from benchmarks.chaos.invariants import (
    INVARIANTS,
    PROBE_TIMEOUT_S,
    Broken,
    Done,
    Held,
    Look,
    Seen,
    fault_at,
    judge,
)
from benchmarks.chaos.lines import LineFailed
from benchmarks.chaos.schedule import Planned, schedule
from benchmarks.chaos.world import World, open_world
from benchmarks.options import Options, machine, machine_line
from benchmarks.weighing import Weighed, said

MINUTES = 5.0
CHECK_MINUTES = 0.75
"""Of the run that is part of checking a change: under a minute with everything around it."""
CALLS = 50
CHECK_CALLS = 10
CALL_S = (20.0, 60.0)
CHECK_CALL_S = (6.0, 15.0)
LOOK_EVERY_S = 0.5
WEIGH_EVERY_S = 5.0
WARM_S = 2.0
LEAVE_S = 20.0
"""How long calls may take to end when everybody has hung up."""
IDLE_S = 30.0
"""How long what was borrowed may take to be given back."""
STOP_S = 40.0
BUSY = "busy machine"
BUSY_SHARE = 0.3
"""Of the time: a server that waits longer for a core than this is not what is judged."""
BUSY_EXCUSE = Excuse(grace_s=3.0, is_deaf=True, is_unready=True)
NONE = "none"
"""In the place of faults: only calls that come and go."""
SHOWN = 12
TIDY_S = 10.0
RECORDING_S = 20.0
"""How long a recording is left alone before it is deleted, or the small disk would be full."""
PACKAGES = ("trio", "hypercorn", "quart-trio", "websockets", "sqlalchemy", "psycopg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    own = parser.add_argument_group("chaos")
    own.add_argument("--seed", type=int, default=1, help="decides everything (%(default)s)")
    own.add_argument("--minutes", type=float, help=f"how long (default: {MINUTES:g})")
    own.add_argument("--calls", type=int, help=f"kept up (default: {CALLS})")
    own.add_argument("--workers", type=int, default=1, help="server processes (%(default)s)")
    own.add_argument("--sqlite", action="store_true", help="records in SQLite, not PostgreSQL")
    own.add_argument(
        "--faults",
        type=lambda words: words.split(","),
        metavar="NAME,NAME…",
        help=f"only these, of {', '.join(BY_NAME)}; or {NONE}: a soak",
    )
    own.add_argument(
        "--realtime",
        action="store_true",
        help="prefer all of it to other programs, on a machine that is not idle",
    )
    own.add_argument("--log", type=Path, metavar="FILE", help="keep what the server wrote")
    own.add_argument("--plan", action="store_true", help="print the schedule, and do nothing")
    own.add_argument(
        "--check",
        action="store_true",
        help=f"a short run ({CHECK_CALLS} calls, {60 * CHECK_MINUTES:g} s) that ends with status 1 "
        "if anything did not hold",
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for."""

    seed: int
    minutes: float
    calls: int
    call_s: tuple[float, float]
    workers: int
    faults: tuple[str, ...] | None
    is_sqlite: bool

    def takes(self, name: str) -> bool:
        """Whether a kind of fault is among those that were asked for."""
        return self.faults is None or name in self.faults

    def schedule(self, possible: Callable[[str], bool]) -> list[Planned]:
        """What is to happen when, without what is not possible here."""
        kinds = [fault.kind for fault in FAULTS if self.takes(fault.kind.name)]
        if not kinds:
            return []
        planned = schedule(self.seed, 60 * self.minutes, kinds)
        return [one for one in planned if possible(one.name)]

    @property
    def command(self) -> str:
        """What repeats it."""
        words = [f"--seed {self.seed} --minutes {self.minutes:g} --calls {self.calls}"]
        words += [f"--workers {self.workers}"] if self.workers > 1 else []
        words += [f"--faults {','.join(self.faults)}"] if self.faults else []
        words += ["--sqlite"] if self.is_sqlite else []
        words += ["--check"] if self.call_s == CHECK_CALL_S else []
        return "python -m benchmarks chaos " + " ".join(words)


def run(options: Options) -> dict[str, object]:
    """Run what was asked for, and print what came of it.

    Raises:
        SystemExit: With ``--check``, something did not hold.
    """
    chosen, console = options.arguments, options.console
    is_short = chosen.check or options.quick
    plan = Plan(
        chosen.seed,
        chosen.minutes or (CHECK_MINUTES if is_short else MINUTES),
        chosen.calls or (CHECK_CALLS if is_short else CALLS),
        CHECK_CALL_S if is_short else CALL_S,
        chosen.workers,
        tuple(chosen.faults) if chosen.faults else None,
        chosen.sqlite,
    )
    unknown = sorted(set(plan.faults or ()) - {*BY_NAME, NONE})
    if unknown:
        raise SystemExit(f"no such fault: {', '.join(unknown)}")
    facts = machine(PACKAGES)
    console.print(machine_line(facts), highlight=False)
    console.print(f"seed {plan.seed}: {plan.command}", highlight=False)
    say = partial(console.print, highlight=False, markup=False)
    if chosen.plan:
        for one in plan.schedule(lambda _: True):
            say(f"{one.at_s:8.2f} s  {one.name:22}{one.lasts_s:6.2f} s  {dict(one.facts)}")
        return {}
    with open_world(
        plan.seed, plan.calls, plan.workers, postgresql=not plan.is_sqlite, realtime=chosen.realtime
    ) as world:
        seen = trio.run(Conductor(world, plan, say).conduct)
        if chosen.log is not None:
            shutil.copy(world.log.path, chosen.log)
    broken = judge(seen)
    _print(options, plan, seen, broken)
    if chosen.check and broken:
        raise SystemExit(1)
    return {
        "plan": plan.command,
        "calls": len(seen.calls),
        "faults": dict(Counter(fault.name for fault in seen.faults if fault.name != BUSY)),
        "broken": dict(Counter(one.invariant for one in broken)),
        "memory": [[one.at - seen.began, one.rss_bytes] for one in seen.weighed],
    }


class Conductor:
    """Has the calls made, the faults happen, and everything looked at, in real time."""

    def __init__(self, world: World, plan: Plan, say: Callable[[str], object]) -> None:
        self._world = world
        self._plan = plan
        self._say = say
        self._seen = Seen(max_calls=world.max_calls)
        self._over = trio.Event()

    async def conduct(self) -> Seen:
        """Run the whole of it."""
        world, plan, seen = self._world, self._plan, self._seen
        planned = plan.schedule(self._possible().__contains__)
        await trio.sleep(WARM_S)
        seen.before = _held(world)
        await self._ask(
            "begin",
            url=world.url,
            public_url=world.public_url,
            calls=plan.calls,
            call_s=plan.call_s,
        )
        seen.began = time.monotonic()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look)
            nursery.start_soon(self._weigh)
            nursery.start_soon(self._tidy)
            nursery.start_soon(self._watch_server)
            nursery.start_soon(self._watch_machine)
            async with trio.open_nursery() as happening:
                for one in planned:
                    happening.start_soon(self._let_happen, one)
                with trio.move_on_after(60 * plan.minutes):
                    await self._over.wait()
                if self._over.is_set():
                    happening.cancel_scope.cancel()
            await self._let_end()
            nursery.cancel_scope.cancel()
        if seen.died is None:
            await self._stop_server()
        with suppress(Exception):  # whatever is wrong with it, no record is there then
            seen.records = await trio.to_thread.run_sync(world.records)
        seen.tracebacks = tracebacks(world.log.path)
        return seen

    def _possible(self) -> set[str]:
        """What can be done here; the schedule is the same where some of it cannot."""
        found = set()
        for fault in FAULTS:
            if why_not := fault.why_not(self._world):
                if self._plan.takes(fault.kind.name):
                    self._say(f"without {fault.kind.name}: {why_not}")
            else:
                found.add(fault.kind.name)
        return found

    async def _ask(self, do: str, **facts: Any) -> dict[str, Any]:
        return await trio.to_thread.run_sync(
            partial(self._world.doubles.ask, do, **facts), abandon_on_cancel=True
        )

    async def _let_happen(self, planned: Planned) -> None:
        seen, fault = self._seen, BY_NAME[planned.name]
        await trio.sleep(max(0.0, seen.began + planned.at_s - time.monotonic()))
        if self._over.is_set():
            return
        facts = " ".join(f"{name}={value}" for name, value in planned.facts.items())
        self._say(f"{planned.at_s:8.2f} s  {planned.name} {planned.lasts_s:g} s {facts}")
        began = time.monotonic()
        # As long as it lasts its end is not known; everything is excused until then.
        done = Done(planned.name, began, began + 600.0, fault.excuse, planned.facts)
        seen.faults.append(done)
        try:
            async with fault.act(self._world, planned) as met:
                if fault.excuse.ends == "line":
                    index = seen.faults.index(done)
                    done = seen.faults[index] = replace(done, may_end=met or 0)
                await trio.sleep(planned.lasts_s)
        except (OSError, subprocess.SubprocessError, httpx2.HTTPError) as error:
            self._say(f"          {planned.name} could not be done: {error!r}")
        seen.faults[seen.faults.index(done)] = replace(done, ended=time.monotonic())

    def _client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            base_url=self._world.url,
            headers={"Authorization": f"Bearer {self._world.keys.api_key}"},
            trust_env=False,
            timeout=PROBE_TIMEOUT_S,
            limits=httpx2.Limits(max_keepalive_connections=0),
        )

    async def _look(self) -> None:
        async with self._client() as client:
            while True:
                self._seen.looks.append(await _look_once(client))
                await trio.sleep(LOOK_EVERY_S)

    async def _weigh(self) -> None:
        while True:
            await trio.sleep(WEIGH_EVERY_S)
            pids, rss_bytes = tuple(self._world.pids), _held(self._world).rss_bytes
            self._seen.weighed.append(Weighed(time.monotonic(), pids, rss_bytes))

    async def _tidy(self) -> None:
        """Delete recordings of calls that are over: the disk is small on purpose."""
        while True:
            await trio.sleep(TIDY_S)
            for path in self._world.disk.glob("*.wav"):
                with suppress(OSError):
                    if time.time() - path.stat().st_mtime > RECORDING_S:
                        path.unlink()

    async def _watch_server(self) -> None:
        while self._world.server.poll() is None:
            for other in (self._world.doubles, self._world.relay):
                if other.process.poll() is not None:
                    raise LineFailed(f"{other.name} has ended by itself; its last words are above")
            await trio.sleep(0.1)
        self._seen.died, self._seen.status = time.monotonic(), self._world.server.returncode
        self._over.set()

    async def _watch_machine(self) -> None:
        """Note when others have kept the server from the CPU: that is no fault of the schedule."""
        pids = self._world.worker_pids
        since, waited_s = time.monotonic(), sum(map(_waited_s, pids))
        while True:
            await trio.sleep(LOOK_EVERY_S)
            now, pids = time.monotonic(), self._world.worker_pids
            waited_now_s = sum(map(_waited_s, pids))
            # A quota or a stop of our own is not waiting: the scheduler does not count it.
            if waited_now_s - waited_s > BUSY_SHARE * (now - since):
                self._seen.faults.append(Done(BUSY, since, now, BUSY_EXCUSE))
            since, waited_s = now, waited_now_s

    async def _let_end(self) -> None:
        """Have everybody hang up, and look at what is left then."""
        world, seen = self._world, self._seen
        await self._ask("hang_up")
        await self._ask("stop", within_s=LEAVE_S)
        await trio.sleep(WARM_S)
        deadline = time.monotonic() + IDLE_S
        async with self._client() as client:
            while seen.died is None and time.monotonic() < deadline:
                seen.after = _held(world)
                with suppress(httpx2.HTTPError, ValueError):
                    seen.left_calls = (await client.get("/readyz")).json()["live_calls"]
                assert seen.before is not None
                is_back = seen.after.descriptors <= seen.before.descriptors + 2
                if is_back and not seen.left_calls:
                    break
                await trio.sleep(0.5)
        deadline = time.monotonic() + LEAVE_S
        while True:
            answer = await self._ask("ended")
            seen.calls += [_call(facts) for facts in answer["calls"]]
            seen.faults += [
                Done(BUSY, since, until, BUSY_EXCUSE) for since, until in answer["late"]
            ]
            if not (await self._ask("now"))["judging"] or time.monotonic() > deadline:
                break
            await trio.sleep(0.5)
        seen.ended = time.monotonic()

    async def _stop_server(self) -> None:
        """Have it drain, which it says, and end."""
        server = self._world.server
        async with self._client() as client:
            with suppress(httpx2.HTTPError):
                await client.post("/drain")
            self._seen.drained = await _look_once(client)
        with suppress(ProcessLookupError):
            os.kill(server.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._seen.status = await trio.to_thread.run_sync(server.wait, STOP_S)


def _waited_s(pid: int) -> float:
    """How long a process's main thread has waited for a core so far."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


async def _look_once(client: httpx2.AsyncClient) -> Look:
    began = time.monotonic()
    healthy_s: float | None = None
    ready, reason = None, ""
    with suppress(httpx2.HTTPError):
        if (await client.get("/healthz")).status_code == 200:
            healthy_s = time.monotonic() - began
    with suppress(httpx2.HTTPError, ValueError):
        answer = await client.get("/readyz")
        ready, reason = answer.status_code, str(answer.json().get("reason") or "")
    return Look(began, healthy_s, ready, reason)


def _held(world: World) -> Held:
    descriptors = threads = rss_bytes = 0
    for pid in world.pids:
        with suppress(OSError):
            descriptors += len(list(Path(f"/proc/{pid}/fd").iterdir()))
            threads += len(list(Path(f"/proc/{pid}/task").iterdir()))
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            rss_bytes += pages * os.sysconf("SC_PAGE_SIZE")
    return Held(descriptors, threads, rss_bytes, len(world.worker_pids))


def _call(facts: dict[str, Any]) -> CallSeen:
    losses = [Loss(**loss) for loss in facts.pop("losses")]
    notes = [(at_s, what) for at_s, what in facts.pop("notes")]
    return CallSeen(**facts, losses=losses, notes=notes)


def tracebacks(log: Path) -> list[str]:
    """The lines of a log that have one, shortened, each kind once with how often it came."""
    kinds: Counter[str] = Counter()
    for line in log.read_text(errors="replace").splitlines():
        if "Traceback" in line or "bug of ours" in line:
            last = line.rstrip('"}').rpartition("\\n")[2] or line
            kinds[re.sub(r"0x[0-9a-f]+|\d+", "N", last)[-200:]] += 1
    return [f"{count} x {kind}" for kind, count in kinds.most_common()]


# --- What is shown --------------------------------------------------------------------------------


def _print(options: Options, plan: Plan, seen: Seen, broken: Sequence[Broken]) -> None:
    console = options.console
    served = [call for call in seen.calls if call.streams]
    minutes = (seen.ended - seen.began) / 60
    planned = [fault for fault in seen.faults if fault.name != BUSY]
    counts = Counter(one.invariant for one in broken)
    table = Table("invariant", "broken", "under", box=box.SIMPLE, title_justify="left")
    table.title = (
        f"seed {plan.seed}, {minutes:.1f} minutes, {len(served)} calls of {len(seen.calls)}, "
        f"{len(planned)} faults of {len({fault.name for fault in planned})} kinds"
    )
    for name, title in INVARIANTS.items():
        under = Counter(fault_at(seen.faults, one.at) for one in broken if one.invariant == name)
        table.add_row(
            title,
            f"[red]{counts[name]}[/]" if counts[name] else "[green]0[/]",
            "; ".join(f"{where} ({count})" for where, count in under.most_common(4)),
        )
    console.print(table)
    caller_s = sum(call.caller_frames for call in seen.calls) / 50
    agent_s = sum(call.agent_frames for call in seen.calls) / 50
    lost: Counter[str] = Counter()
    for call in seen.calls:
        for loss in call.losses:
            lost[loss.way] += loss.frames
    pauses = sorted(length for call in seen.calls for _, length in call.pauses)
    console.print(
        f"heard: {caller_s / 60:.1f} minutes of callers, {agent_s / 60:.1f} of agents; lost, "
        f"excused or not: {lost['caller'] / 50:.1f} s and {lost['agent'] / 50:.1f} s; "
        f"{len(pauses)} pauses in the middle of a sentence, "
        f"{sum(pauses):.1f} s, the longest {max(pauses, default=0.0):.2f} s",
        highlight=False,
    )
    if seen.weighed:
        console.print(said(seen.weighed, seen.began), highlight=False)
    busy_s = sum(fault.ended - fault.began for fault in seen.faults if fault.name == BUSY)
    if busy_s > 1.0:
        console.print(
            f"[yellow]other programs[/] held the run up for {busy_s:.0f} s", highlight=False
        )
    if not broken:
        return
    shown: Counter[str] = Counter()
    for one in broken:
        shown[one.invariant] += 1
        if shown[one.invariant] > SHOWN // 2:
            continue
        console.print(
            f"{one.at - seen.began:8.2f} s  {one.invariant}: {one.what} {one.call_sid}",
            style="red",
            highlight=False,
            markup=False,
        )
        for fault in planned:
            if fault.covers(one.at - 10.0, one.at):
                console.print(
                    f"            {fault.name} {dict(fault.facts)} from "
                    f"{fault.began - seen.began:.2f} to {fault.ended - seen.began:.2f} s",
                    highlight=False,
                    markup=False,
                )
    console.print(f"again: {plan.command}", highlight=False)
