"""What is left behind by ten thousand calls with everything going wrong?

One server process over real loopback sockets, with the embedded Twilio and Gemini Live, takes one
short call after the other, on a clock that is faster than real time and waits for the machine: it
is as busy as can be. Who answers, how the model behaves, what the carrier does and who ends the
call are drawn at random (with a seed, so that a run can be had again): lines that drop, that fall
silent, that send garbage; connections to the model that break, that are refused, that stay silent;
callbacks that come late or three times; Twilio answering 503. Timers are shortened.

Counted while it goes on, after a garbage collection: memory (RSS), file descriptors, tasks,
threads. Counted at its end: calls without a reason, or without a record in the database.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import httpx2
import trio
from rich import box
from rich.table import Table
from websockets.frames import Close

from benchmarks.options import Options, machine, machine_line
from server import logs
from server.app import OffhookApp, create_app
from server.call.call import Call
from server.call.report.ended import EndedCall
from server.carrier import CallStatus
from server.dialogue.endings import EndReason
from server.serving.listening import listen
from server.serving.single import serve
from server.settings.settings import Settings
from server.simulators import gemini as models
from server.simulators.clock import PatientClock
from server.simulators.phone import (
    GARBAGE,
    Drop,
    FallSilent,
    HangUp,
    HearSpeech,
    PhoneScript,
    Press,
    Say,
    SendRaw,
    Wait,
)
from server.simulators.twilio import Faults, SimulatedCall

SPEED = 20.0
"""Seconds of a call in one of real time. There is more work in a call than would let it go so fast,
so no time is spent waiting."""
CALLS = 10_000
QUICK_CALLS = 300
WARM_UP = 1_000
"""Calls after which nothing may grow: caches, pools and the recent calls are full by then."""
MAX_GROWTH = 0.05
LOOKS = 20
CALL_TIMEOUT_S = 20.0
SETTLED_S = 1.0
"""Nothing has ended or begun for so long: what is there now stays there."""
SETTLE_TIMEOUT_S = 10.0
DESTINATION = "+15005550006"
CALLER = "+15005550166"
PACKAGES = ("trio", "hypercorn", "quart-trio", "websockets", "sqlalchemy")

# ------------------------------------------------------------------------------------------
# What can happen

NOT_PLACED = "503 to the dial"
"""The one trouble in which there is no call at all, and whoever asked for it is told so."""
_MODEL = models.ModelScript(setup_delay_s=0.0, reply_delay_s=0.02, speed=20.0)
_PICKS_UP = PhoneScript("picks up", (HearSpeech(0.3), Wait(0.06), HangUp()), ring_s=0.02)


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that happens to a call, and how the call may end then."""

    name: str
    ends: frozenset[EndReason] = frozenset({EndReason.CALLER_HUNG_UP})
    callee: PhoneScript = _PICKS_UP
    model: models.ModelScript = _MODEL
    faults: Faults = field(default_factory=Faults)
    hang_up_after_s: float | None = None
    """When a client of the API ends the call."""
    is_inbound: bool = False


def _troubles() -> tuple[Trouble, ...]:
    steps = partial(replace, _PICKS_UP)
    model = partial(replace, _MODEL)
    hung_up = frozenset({EndReason.HUNG_UP})
    either = frozenset({EndReason.CALLER_HUNG_UP, EndReason.CALLER_GONE})
    no_model = frozenset({EndReason.MODEL_UNAVAILABLE, EndReason.CALLER_HUNG_UP})
    invalid = Close(1007, "Request contains an invalid argument.")
    no_quota = frozenset({EndReason.MODEL_QUOTA, EndReason.CALLER_HUNG_UP})
    cut = models.Drop(turn=1, after_s=0.1, code=1006)
    broken = models.Drop(1, 0.1, 1011, "Internal error encountered.")
    talks = (HearSpeech(0.3), Say("question", break_off_s=0.2), Wait(0.1), HangUp())
    return (
        Trouble("none"),
        Trouble("talks", callee=steps(steps=talks)),
        Trouble("presses keys", callee=steps(steps=(Press("1#"), HangUp()))),
        Trouble("hangs up at once", callee=steps(steps=(HangUp(),)), ends=either),
        Trouble("line drops", callee=steps(steps=(Wait(0.1), Drop())), ends=either),
        Trouble("line drops at once", callee=steps(steps=(Drop(),)), ends=either),
        Trouble("line falls silent", callee=steps(steps=(Wait(0.1), FallSilent())), ends=either),
        Trouble("line lost, and back", faults=Faults(cut_after_s=0.1)),
        Trouble("garbage", callee=steps(steps=(SendRaw(GARBAGE), Wait(0.05), HangUp()))),
        Trouble("busy", callee=steps(outcome=CallStatus.BUSY), ends=frozenset({EndReason.BUSY})),
        Trouble(
            "fails", callee=steps(outcome=CallStatus.FAILED), ends=frozenset({EndReason.FAILED})
        ),
        Trouble(
            "ended while it rings", callee=steps(ring_s=5.0), hang_up_after_s=0.03, ends=hung_up
        ),
        Trouble(
            "ended in mid-sentence", callee=steps(steps=()), hang_up_after_s=0.15, ends=hung_up
        ),
        Trouble("inbound", is_inbound=True),
        Trouble("inbound, line drops", callee=steps(steps=(Drop(),)), is_inbound=True, ends=either),
        Trouble("model connection is cut", model=model(drop=cut)),
        Trouble("model breaks", model=model(drop=broken)),
        Trouble("model never speaks", model=model(silent_turns=frozenset(range(1, 50)))),
        Trouble("model says nothing", model=model(empty_turns=frozenset({1}))),
        Trouble("model is slow to connect", model=model(setup_delay_s=0.3)),
        Trouble(
            "model refuses",
            model=model(refuse_setup=invalid),
            ends=no_model,
        ),
        Trouble(
            "no quota",
            model=model(refuse_setup=Close(1011, "You exceeded your current quota.")),
            ends=no_quota,
        ),
        Trouble("model goes away", model=model(go_away_at_s=0.05, go_away_left_s=0.2)),
        Trouble("late callbacks", faults=Faults(callback_delay_s=0.2)),
        Trouble("callbacks three times", faults=Faults(callback_copies=3)),
        Trouble(
            "503 to the hang-up",
            callee=steps(steps=()),
            faults=Faults(failed_updates=1),
            hang_up_after_s=0.1,
            ends=hung_up,
        ),
        Trouble(NOT_PLACED, faults=Faults(failed_dials=1), ends=frozenset()),
    )


TROUBLES = _troubles()

# ------------------------------------------------------------------------------------------
# The run


@dataclass(frozen=True, slots=True)
class Look:
    """What the process holds after so many calls."""

    calls: int
    rss_bytes: int
    descriptors: int
    tasks: int
    threads: int


@dataclass(slots=True)
class Result:
    """What came of the calls."""

    accepted: int = 0
    refused: int = 0
    """Not placed, because the carrier answered 503 to the dial."""
    reasons: Counter[str] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """Calls that hung, or ended in a way that their trouble does not explain."""
    looks: list[Look] = field(default_factory=list)
    recorded: int = 0
    """Records in the database at the end, each with a reason."""
    took_s: float = 0.0

    def growth(self, name: str, since: int) -> float:
        """How much more there is at the end than at the first look after so many calls."""
        after = [look for look in self.looks if look.calls >= since]
        first, last = getattr(after[0], name), getattr(after[-1], name)
        return float(last / first - 1.0)

    def judge(self, warm_up: int) -> Mapping[str, bool]:
        """Whether each promise was kept; that about memory takes a thousand calls to warm up."""
        after = [look for look in self.looks if look.calls >= warm_up]
        promises = {
            "every call ended with a reason that its trouble explains": not self.wrong,
            "no call was refused but those whose dial the carrier failed": (
                self.refused == self.troubles[NOT_PLACED]
            ),
            "every call has its record": self.recorded == self.accepted,
            "no task is left": after[-1].tasks <= after[0].tasks,
            "no file descriptor or socket is left": after[-1].descriptors <= after[0].descriptors,
            "no thread is left": after[-1].threads <= after[0].threads + 2,
        }
        if warm_up >= WARM_UP:
            growth = self.growth("rss_bytes", warm_up)
            promises[f"memory grew by less than {MAX_GROWTH:.0%}"] = growth < MAX_GROWTH
        return promises


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--calls", type=int, help=f"how many, one after the other ({CALLS})")
    parser.add_argument("--seed", type=int, default=1, help="of the dice (%(default)s)")


def run(options: Options) -> dict[str, object]:
    """Place the calls, and print what they left behind."""
    logs.configure(level="CRITICAL")
    facts = machine(PACKAGES)
    options.console.print(machine_line(facts), highlight=False)
    count = options.arguments.calls or (QUICK_CALLS if options.quick else CALLS)
    warm_up = min(WARM_UP, count // 10)
    with tempfile.TemporaryDirectory(prefix="offhook-soak-") as directory:
        dice = random.Random(options.arguments.seed)
        troubles = [dice.choice(TROUBLES) for _ in range(count)]
        result = trio.run(
            *(soak, troubles, warm_up, Path(directory), options.console.print),
            clock=PatientClock(speed=SPEED),
        )
    _print(options, result, warm_up)
    return {
        "calls": result.accepted,
        "refused": result.refused,
        "reasons": dict(result.reasons),
        "wrong": result.wrong,
        "recorded": result.recorded,
        "took_s": result.took_s,
        "looks": [asdict(look) for look in result.looks],
        "promises": dict(result.judge(warm_up)),
    }


async def soak(
    troubles: Sequence[Trouble], warm_up: int, directory: Path, tell: Callable[[str], None]
) -> Result:
    """Have these calls, one after the other, on a server of their own.

    Args:
        troubles: What happens to each.
        warm_up: After so many calls the process is looked at as it should stay.
        directory: For the database and the recordings.
        tell: Is told how it goes.
    """
    result = Result()
    listener = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    database = directory / "soak.db"
    app = create_app(_settings(url, directory, database))
    stop = trio.Event()
    began = time.perf_counter()
    every = max(1, len(troubles) // LOOKS)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, app, listener, stop=stop))
        assert app.service.accounts.simulated_twilio is not None
        # The server's own recordings are enough.
        app.service.accounts.simulated_twilio.recordings_dir = None
        async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=60.0) as client:
            for number, trouble in enumerate(troubles, start=1):
                await _one_call(app, client, trouble, result, directory)
                is_judged = number in (warm_up, len(troubles))
                if is_judged:
                    await app.service.records.wait_saved()
                    await _settle()
                if number % every == 0 or is_judged:
                    result.looks.append(_look(number))
                    tell(f"{number:6} calls, {result.looks[-1].rss_bytes / 2**20:6.1f} MB")
        stop.set()
    result.took_s = time.perf_counter() - began
    with closing(sqlite3.connect(database)) as connection:
        (result.recorded,) = connection.execute(
            "SELECT count(*) FROM offhook_calls WHERE state = 'ended' AND reason IS NOT NULL"
        ).fetchone()
    return result


def _settings(url: str, directory: Path, database: Path) -> Settings:
    return Settings.load(
        _env_file=None,
        twilio_account_sid=None,
        twilio_auth_token=None,
        twilio_phone_number=None,
        gemini_api_key=None,
        api_key=None,
        public_url=url,
        recordings_dir=directory,
        database_url=f"sqlite:///{database}",
        media_timeout_s=2.0,
        close_timeout_s=2.0,
        farewell_timeout_s=1.0,
        drain_timeout_s=0.0,
        quota_pause_s=0.0,
        max_loop_lag_s=60.0,  # a machine that is busy with something else must not refuse calls
        recent_calls=100,
    )


async def _one_call(
    app: OffhookApp,
    client: httpx2.AsyncClient,
    trouble: Trouble,
    result: Result,
    directory: Path,
) -> None:
    """One call with its trouble, until both ends are done with it."""
    twilio, gemini = app.service.accounts.simulated_twilio, app.service.accounts.simulated_gemini
    assert twilio is not None
    assert gemini is not None
    twilio.account.people.default, gemini.script = trouble.callee, trouble.model
    twilio.account.misbehave(trouble.faults)
    result.troubles[trouble.name] += 1
    with trio.move_on_after(CALL_TIMEOUT_S) as patience:
        phone = await _ring(app, client, trouble)
        if phone is None:
            result.refused += 1
            return
        call = app.service.calls.register.get(phone.call_sid)
        if trouble.hang_up_after_s is not None:
            await trio.sleep(trouble.hang_up_after_s)
            await client.post(f"/calls/{phone.call_sid}/hang-up")
        await phone.wait_ended()
        while call is None:  # an inbound call is ours when its webhook has come
            call = app.service.calls.register.get(phone.call_sid)
            await trio.sleep(0.001)
        await call.finished.wait()
    if patience.cancelled_caught:
        result.wrong.append(f"{trouble.name}: it hung")
        return
    assert call is not None
    result.accepted += 1
    reason = call.end_reason
    result.reasons[reason.value if reason else "none"] += 1
    if reason not in trouble.ends:
        result.wrong.append(f"{trouble.name}: it ended with {reason}: {_detail_of(call)}")
    # What the simulators keep for a look afterwards, and the recording, would fill the disk.
    del twilio.calls[phone.call_sid]
    gemini.sessions.clear()
    (directory / f"{phone.call_sid}.wav").unlink(missing_ok=True)


def _detail_of(call: Call | EndedCall) -> str:
    if isinstance(call, EndedCall):
        return str(call.shown(full=False)["detail"])
    return call.conversation.end_detail


async def _ring(
    app: OffhookApp, client: httpx2.AsyncClient, trouble: Trouble
) -> SimulatedCall | None:
    """Have the call placed by one side or the other; None if it was not."""
    assert app.service.accounts.simulated_twilio is not None
    if trouble.is_inbound:
        return app.service.accounts.simulated_twilio.dial_in(
            f"{client.base_url.join('/twiml')}",
            from_number=CALLER,
            status_url=f"{client.base_url.join('/call-status')}",
        )
    answer = await client.post("/make-call", json={"destination_number": DESTINATION})
    if answer.status_code == 502 and trouble.faults.failed_dials:
        return None
    answer.raise_for_status()
    return app.service.accounts.simulated_twilio.calls[answer.json()["call_sid"]]


async def _settle() -> None:
    """Wait until what ends by itself has ended: connections that nobody uses, late reports."""
    with trio.move_on_after(SETTLE_TIMEOUT_S):
        tasks, since = 0, trio.current_time()
        while trio.current_time() - since < SETTLED_S:
            await trio.sleep(0.05)
            if (now := trio.lowlevel.current_statistics().tasks_living) != tasks:
                tasks, since = now, trio.current_time()


def _look(calls: int) -> Look:
    gc.collect()
    return Look(
        calls=calls,
        rss_bytes=_rss_bytes(),
        descriptors=_descriptors(),
        tasks=trio.lowlevel.current_statistics().tasks_living,
        threads=threading.active_count(),
    )


def _rss_bytes() -> int:
    """Resident memory now, or (where there is no /proc) the most there ever was."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _descriptors() -> int:
    where = Path("/proc/self/fd") if Path("/proc/self/fd").exists() else Path("/dev/fd")
    return len(list(where.iterdir()))


def _print(options: Options, result: Result, warm_up: int) -> None:
    console = options.console
    calls = Table("ended", "calls", box=box.SIMPLE, title="How they ended", title_justify="left")
    for reason, count in result.reasons.most_common():
        calls.add_row(reason, str(count))
    calls.add_row("not placed: the carrier answers 503", str(result.refused))
    console.print(calls)
    held = Table(
        *("calls", "RSS, MB", "descriptors", "tasks", "threads"),
        box=box.SIMPLE,
        title="What the process holds, simulators included",
        title_justify="left",
    )
    for look in result.looks:
        held.add_row(
            str(look.calls),
            f"{look.rss_bytes / 2**20:.1f}",
            str(look.descriptors),
            str(look.tasks),
            str(look.threads),
        )
    console.print(held)
    console.print(
        f"RSS after {warm_up} calls to the end: {result.growth('rss_bytes', warm_up):+.1%}; "
        f"{result.took_s / 60:.1f} minutes, "
        f"{result.took_s / max(1, sum(result.troubles.values())):.3f} s a call"
    )
    for wrong in result.wrong[:20]:
        console.print(wrong, style="red", highlight=False)
    for promise, kept in result.judge(warm_up).items():
        console.print(f"[green]yes[/] {promise}" if kept else f"[red]NO [/] {promise}")
