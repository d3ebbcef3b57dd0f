"""What does a call notice when its connection to the model is replaced, or breaks?

First an hour's call, in virtual time: a simulated person's phone, our call and a simulated model
that sends its callers away after ten minutes, as the real one does. Every sample of both sides is
counted, and the caller's are compared. Then connections that break in the middle of a sentence, in
real time and over loopback sockets, on a model that takes 300 ms to connect and set up: how long
until the conversation goes on, and until the agent speaks again. With ``--line`` instead: the media
sockets between the carrier and us are cut (``lines.py``).
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import trio
from prometheus_client import CollectorRegistry
from rich import box
from rich.table import Table
from trio.testing import MockClock
from websockets.frames import Close

import codec
from benchmarks.lines import CALLS, QUICK_ROUNDS, ROUNDS, cut_lines, lines_table
from benchmarks.options import Options, machine, machine_line
from benchmarks.percentiles import percentiles
from server import logs
from server.agent.agent import Agent
from server.call.call import Call
from server.call.options import CallOptions
from server.carrier import Carrier
from server.carrier.transport import QueuedTransport
from server.carrier.twilio.stream import TwilioMediaStream
from server.metrics import Metrics
from server.model import AgentAudio, PastTurn, Reconnected, SessionEvent, TurnComplete
from server.model.gemini.model import GeminiModel
from server.model.lasting.model import LastingModel
from server.simulators.clock import PatientClock
from server.simulators.gemini import Drop, GeminiSimulator, ModelScript
from server.simulators.phone import SimulatedPhone, find_script, memory_transports

CALL_S = 3_600.0
QUICK_CALL_S = 600.0
LIFE_S = 550.0
"""``goAway`` 50 s before the ten minutes are over."""
QUICK_LIFE_S = 100.0
CONNECT_S = 0.3
OUTAGES = 60
QUICK_OUTAGES = 20
SHOWN = ("p50", "p95", "max")
PACKAGES = ("trio", "websockets", "google-genai")
CALL_SID = "CA" + "1" * 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this benchmark alone can be told."""
    parser.add_argument(
        "--line", action="store_true", help="cut the lines to the carrier, not those to the model"
    )


def run_lines(options: Options) -> dict[str, object]:
    """Cut the lines on both media paths, and print what callers notice."""
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    outcomes: dict[str, dict[str, Any]] = {}
    for path in ("fast", "ordinary"):
        clock = PatientClock()  # every end of these calls is here, and late when one is
        with options.console.status(f"{rounds} x {CALLS} lines, {path}"):
            outcomes[path] = trio.run(
                partial(cut_lines, rounds, CALLS, media_path=path), clock=clock
            )
        outcomes[path]["withheld_s"] = round(clock.withheld_s, 1)
    options.console.print(lines_table(outcomes))
    return {"lines": outcomes}


def run(options: Options) -> dict[str, object]:
    """Have the long call and the outages, and print what they came to."""
    # The timelines are the log here; failures are what this is about.
    logs.configure(level="ERROR")
    facts = machine(PACKAGES)
    options.console.print(machine_line(facts), highlight=False)
    if options.arguments.line:
        return run_lines(options)
    life_s = QUICK_LIFE_S if options.quick else LIFE_S
    call_s = QUICK_CALL_S if options.quick else CALL_S
    began = time.perf_counter()
    with options.console.status(f"a call of {call_s / 60:.0f} minutes"):
        rotations = trio.run(long_call, call_s, life_s, clock=MockClock(autojump_threshold=0))
    rotations["real_s"] = round(time.perf_counter() - began, 1)
    options.console.print(rotations_table(rotations))
    count = QUICK_OUTAGES if options.quick else OUTAGES
    outages: dict[str, dict[str, Any]] = {}
    for name, fault in FAULTS.items():
        with options.console.status(f"{count} x {name}"):
            outages[name] = trio.run(break_connections, fault, count)
    options.console.print(outages_table(outages, count))
    return {"versions": facts["versions"], "rotations": rotations, "outages": outages}


# --- An hour's call -------------------------------------------------------------------------------


class NoCarrier:
    """The person is on the line already and hangs up themselves: nothing is asked of a carrier."""

    name = "none"


async def long_call(call_s: float, life_s: float) -> dict[str, Any]:
    """Talk for so long to a model whose connections live so long; count everything."""
    lives = ModelScript(go_away_at_s=life_s, go_away_left_s=50.0, setup_delay_s=CONNECT_S)
    gemini = GeminiSimulator(script=lives, script_after_resume=lives, keep_heard_s=call_s + life_s)
    service = GeminiModel(api_key="simulated", url="ws://memory.invalid", connect=gemini.connect)
    # Every other cause of a rotation is left to the service.
    model = LastingModel(service, connection_age_s=math.inf)
    phone = SimulatedPhone(find_script("never-hangs-up"), call_sid=CALL_SID)
    call = Call(
        direction="outbound",
        number="+15005550006",
        agent=Agent(),
        carrier=cast(Carrier, NoCarrier()),
        model=model,
        metrics=Metrics(CollectorRegistry()),
        # While the greeting is protected the model hears silence, and the caller after it: that
        # would be counted as two seconds too many.
        options=CallOptions(max_duration_s=2 * call_s, greeting_protect_s=0.0),
    )
    call.accept(CALL_SID)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(gemini.run, port=None))
        nursery.start_soon(call.run)
        await trio.sleep(3.0)  # it rings
        ours, carriers = memory_transports()
        nursery.start_soon(phone.run, carriers)
        transport = QueuedTransport(ours)
        media = TwilioMediaStream(transport)
        started = await media.receive_start()
        assert started is not None
        nursery.start_soon(transport.run)
        nursery.start_soon(call.serve, media, started)
        await trio.sleep(call_s)
        # Whoever hangs up between two connections has said their last word to nobody, whatever
        # anybody does: the next connection is waited for.
        while _connection_age_s(call) > life_s - 1.0:  # noqa: ASYNC110  # its end is bounded
            await trio.sleep(0.1)
        phone.stop()
        await call.finished.wait()
        await gemini.sessions[-1].ended.wait()
        nursery.cancel_scope.cancel()

    said = digest(decoded(bytes(phone.said)))
    heard = digest(bytes(session.heard) for session in gemini.sessions)
    agent_s = sum(session.agent.said_samples for session in gemini.sessions) / 24_000
    played_s = sum(length for _, length in phone.received) / 8_000
    cleared_s = sum(clear.dropped_bytes for clear in phone.clears) / 8_000
    return {
        "call_s": call.duration_s,
        "end": str(call.end_reason),
        "rotations": [
            {"at_s": round(at_s, 2), **facts}
            for at_s, what, facts in call.conversation.notes.timeline
            if what == "model reconnected"
        ],
        "caller_samples": 2 * len(phone.said),
        "caller_samples_lost": 2 * len(phone.said) - sum(s.heard_samples for s in gemini.sessions),
        "caller_audio_identical": said == heard,
        "agent_s": round(agent_s, 3),
        "agent_cut_ms": round(
            1000 * sum(session.agent.unsaid_samples for session in gemini.sessions) / 24_000
            + 1000 * max(0.0, agent_s - played_s)
            + 1000 * cleared_s,
            3,
        ),
        "agent_turns": sum(
            1 for turn in call.conversation.notes.transcript.turns if turn.speaker == "agent"
        ),
        "still_open": sum(session.is_open for session in gemini.sessions),
    }


def _connection_age_s(call: Call) -> float:
    """How long the last connection to the model has been there, the one before it included."""
    notes = call.conversation.notes
    came_s = [at_s for at_s, what, _ in notes.timeline if what == "model reconnected"]
    return trio.current_time() - notes.began_at - (came_s[-1] if came_s else 0.0)


def decoded(payload: bytes) -> Iterator[bytes]:
    """The caller's mu-law as the model is given it."""
    decoder = codec.MulawDecoder(16_000)
    for start in range(0, len(payload), 8_000):
        yield decoder.decode(payload[start : start + 8_000])


def digest(pieces: Iterator[bytes]) -> str:
    """One number for all of it."""
    total = hashlib.sha256()
    for piece in pieces:
        total.update(piece)
    return total.hexdigest()


def rotations_table(outcome: dict[str, Any]) -> Table:
    minutes = outcome["call_s"] / 60
    shown = Table(
        title=f"one call of {minutes:.0f} minutes, {outcome['agent_turns']} agent turns "
        f"({outcome['real_s']} s of real time)",
        box=box.SIMPLE_HEAD,
    )
    for heading in ("", "bound", "measured", ""):
        shown.add_column(heading)

    def row(what: str, bound: str, measured: str, holds: bool) -> None:
        shown.add_row(what, bound, measured, "[green]yes[/]" if holds else "[red]no[/]")

    rotations = outcome["rotations"]
    gaps_ms = [round(1000 * one["gap_s"]) for one in rotations]
    row("rotations", ">= 5", str(len(rotations)), len(rotations) >= 5)
    row("agent speech cut", "0 ms", f"{outcome['agent_cut_ms']:g} ms", not outcome["agent_cut_ms"])
    lost = outcome["caller_samples_lost"]
    row(f"caller audio lost, of {outcome['caller_samples']:,} samples", "0", str(lost), lost == 0)
    identical = outcome["caller_audio_identical"]
    row("caller audio, as said and as heard", "identical", str(identical), identical)
    shown.add_row("old connection closed to new one ready, ms", "", str(gaps_ms), "")
    shown.add_row("why", "", ", ".join(sorted({one["reason"] for one in rotations})), "")
    return shown


# --- Connections that break -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fault:
    """How connections break, and what it is like after that."""

    code: int
    turn: int
    """In the middle of which agent turn: in the first there is nothing to resume yet."""
    handle_is_lost: bool = False


FAULTS = {
    "1006, resumed": Fault(1006, turn=2),
    "1011, resumed": Fault(1011, turn=2),
    "1006 and the handle lost, fresh": Fault(1006, turn=2, handle_is_lost=True),
    "1007, fresh": Fault(1007, turn=2),
    "1006 in the greeting, fresh": Fault(1006, turn=1),
}


@dataclass
class OneTalk:
    """The call's end of a session."""

    turns: list[PastTurn] = field(default_factory=list)
    broken_at: float = math.nan
    spoke_at: float = math.nan
    news: Reconnected | None = None
    answered: trio.Event = field(default_factory=trio.Event)

    def is_quiet(self) -> bool:
        return True

    def history(self) -> Sequence[PastTurn]:
        return self.turns

    def take(self, event: SessionEvent) -> None:
        now = trio.current_time()
        match event:
            case TurnComplete(reason="CONNECTION_LOST"):
                self.broken_at = now
            case Reconnected() as news:
                self.news = news
            case AgentAudio() if self.news is not None and math.isnan(self.spoke_at):
                self.spoke_at = now
            case TurnComplete():
                self.answered.set()
                self.answered = trio.Event()


async def break_connections(fault: Fault, count: int) -> dict[str, Any]:
    """Break so many sessions at once, in the middle of what the agent says."""
    well = ModelScript(setup_delay_s=CONNECT_S, reply_delay_s=0.2)
    gone = Close(1008, "Requested entity was not found.") if fault.handle_is_lost else None
    faulty = replace(well, drop=Drop(fault.turn, 0.2, fault.code), refuse_handles=gone)
    gemini = GeminiSimulator(script=faulty, script_after_resume=well)
    gemini.greeting = replace(gemini.greeting, pcm=gemini.greeting.pcm[:24_000])
    gemini.still_here = replace(gemini.still_here, pcm=gemini.still_here.pcm[:24_000])
    talks = [OneTalk() for _ in range(count)]
    async with trio.open_nursery() as nursery:
        await nursery.start(gemini.run)
        model = LastingModel(GeminiModel(api_key="simulated", url=gemini.url))
        async with trio.open_nursery() as sessions:
            for number, talk in enumerate(talks):
                sessions.start_soon(hold_session, model, talk, fault, 0.05 * number)
        nursery.cancel_scope.cancel()
    resumed = [talk for talk in talks if talk.news is not None and talk.spoke_at >= talk.broken_at]
    found = [talk.news for talk in resumed if talk.news is not None]
    return {
        "count": len(found),
        "ways": sorted({f"{news.reason}, {news.way}" for news in found}),
        "gap_ms": percentiles((news.gap_s for news in found), SHOWN, unit=1000, digits=1),
        "speaks_ms": percentiles(
            (talk.spoke_at - talk.broken_at for talk in resumed), SHOWN, unit=1000, digits=1
        ),
        "lost_s": sum(news.lost_s for news in found),
    }


async def hold_session(model: LastingModel, talk: OneTalk, fault: Fault, after_s: float) -> None:
    """Greet, ask something if the greeting is not to break, and wait for the answer."""
    await trio.sleep(after_s)
    session = model.new_session(Agent(), talk, talk.take)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run)
        await session.wait_ready()
        talk.turns.append(PastTurn("agent", "Good morning."))
        for _ in range(fault.turn):
            answered = talk.answered
            session.send_text("Say something.")
            with trio.fail_after(30.0):
                await answered.wait()
        nursery.cancel_scope.cancel()


def outages_table(outages: dict[str, dict[str, Any]], count: int) -> Table:
    shown = Table(
        title=f"{count} connections broken in mid-sentence, {1000 * CONNECT_S:.0f} ms to connect "
        "and set up; ms from the break",
        box=box.SIMPLE_HEAD,
    )
    for heading in ("", "until the new one is ready", "until the agent speaks", "p50 <= 1 s"):
        shown.add_column(heading)
    for name, outcome in outages.items():
        gap, speaks = outcome["gap_ms"], outcome["speaks_ms"]
        holds = outcome["count"] == count and gap["p50"] <= 1000
        shown.add_row(
            name,
            "  ".join(f"{which} {value:.0f}" for which, value in gap.items()),
            "  ".join(f"{which} {value:.0f}" for which, value in speaks.items()),
            "[green]yes[/]" if holds else "[red]no[/]",
        )
    return shown
