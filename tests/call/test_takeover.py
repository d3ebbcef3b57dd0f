"""A call whose process is gone goes on in another one: two of them, in memory, on a mock clock."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import trio
from msgspec.structs import replace as replaced
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked
from websockets.frames import Close

from codec.ear import SpeechEnded, SpeechStarted
from server.agent import phrases
from server.agent.agent import Agent
from server.agent.builtin import TRANSFER_NAME, hang_up
from server.agent.outcome import outcome_schema, outcome_tool
from server.agent.tool import tool
from server.call.call import Call
from server.call.conversation import Stage
from server.call.options import CallOptions
from server.call.takeover import keeping
from server.call.takeover.fence import HELD_UP_S, KEPT_WITHIN_S
from server.call.takeover.state import (
    AwayState,
    CallState,
    MachineState,
    StateUnreadable,
    ToolState,
)
from server.carrier import (
    AnsweredBy,
    CallStatus,
    DigitPressed,
    MachineVerdict,
    PlacedCall,
    StatusUpdate,
    TransferUpdate,
)
from server.carrier.transport import QueuedTransport
from server.carrier.twilio.stream import TwilioMediaStream
from server.carrier.webhooks import ConnectStream, EndCall, SayAndEndCall
from server.cluster.registry import RegistryAway, State, made
from server.dialogue.endings import EndReason
from server.dialogue.remedies import Patience
from server.dialogue.turns import CONNECTION_LOST
from server.dialogue.voicemail import VoicemailPolicy
from server.errors import CallRefused, CarrierError
from server.events.event import CallTold, outbox_event
from server.metrics import Metrics
from server.model import (
    AgentAudio,
    AgentTranscript,
    CallerTranscript,
    GenerationComplete,
    Interrupted,
    Reconnected,
    ResumptionHandle,
    Standing,
    ToolCall,
    ToolCallsCancelled,
    ToolCallsRequested,
    TurnComplete,
    Usage,
    Way,
)
from server.model.gemini.model import GeminiModel
from server.model.lasting.model import LastingModel
from server.records.recording import Recordings
from server.settings.settings import Settings
from server.signal import Signal
from server.simulators.gemini import GeminiSimulator, ModelScript
from server.simulators.phone import (
    HangUp,
    HearPause,
    HearSpeech,
    PhoneScript,
    Say,
    SimulatedPhone,
    Wait,
    memory_transports,
)
from server.switchboard.calls import Calls
from tests.model.test_lasting_services import WholeService
from tests.support.fakes import MemoryCarrier, MemoryMedia, MemoryModel
from tests.support.switchboards import NUMBER, make_calls, serve_stream, started

SECOND_PCM = b"\x00\x10" * 24_000
SID = "CA" + "1" * 32
QUIET = CallOptions(
    media_timeout_s=600.0,
    line_lost_timeout_s=60.0,
    greeting_protect_s=0.0,
    patience=Patience(silence_timeout_s=0.0, reply_timeout_s=900.0, greeting_retry_s=900.0),
)


@pytest.fixture(autouse=True)
def wall_clock(monkeypatch):
    """The world's time goes with the mock clock's."""
    began = time.time()
    monkeypatch.setattr(time, "time", lambda: began + trio.current_time())


@dataclass
class Registry:
    """Whose a call is, and what is kept of it."""

    generation: int = 1
    is_away: bool = False
    never_answers: bool = False
    asked: int = 0
    written: list[bytes] = field(default_factory=list)
    to_write: State | None = None
    in_haste: list[bool] = field(default_factory=list)
    changed: Signal = field(default_factory=Signal)

    async def is_current(self, call_sid: str, generation: int) -> bool:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if self.is_away:
            raise RegistryAway("gone")
        if self.never_answers:
            await trio.sleep_forever()
        return generation == self.generation

    def keep(self, call_sid: str, generation: int, state: State, *, in_haste: bool = False) -> None:
        if call_sid == SID and generation == self.generation:
            self.to_write = state
            self.in_haste.append(in_haste)
            self.changed.set()

    @property
    def states(self) -> list[bytes]:
        """All that were written, the one of now among them."""
        state, self.to_write = self.to_write, None
        if (content := made(state)) is not None:
            self.written.append(content)
        return self.written

    @property
    def has_handle(self) -> bool:
        return self.state.handle is not None

    @property
    def state(self) -> CallState:
        return CallState.decode(self.states[-1])


class OneCall(MemoryCarrier):
    """A carrier that places one call, the same for both processes."""

    async def place_call(self, *args: Any, **facts: Any) -> PlacedCall:
        await super().place_call(*args, **facts)
        return PlacedCall(SID, CallStatus.QUEUED)


@dataclass
class Kept:
    """The database, as far as one process writes to it."""

    records: list[dict[str, Any]] = field(default_factory=list)

    def keep(self, record: dict[str, Any]) -> None:
        self.records.append(record)


class Process:
    """One of the processes that may have the call."""

    def __init__(self, registry: Registry, model: Any = None, **settings: Any) -> None:
        self.registry = registry
        self.carrier = OneCall()
        self.kept = Kept()
        self.calls: Calls = make_calls(
            carrier=self.carrier,
            model=model or MemoryModel(),
            records=self.kept,
            is_current=registry.is_current,
            keep=registry.keep,
            options=settings.pop("options", QUIET),
            **settings,
        )
        self._scope = trio.CancelScope()

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.calls.run)
                task_status.started()
                await trio.sleep_forever()

    async def die(self) -> None:
        """Be gone: nothing that is done on the way out reaches anybody."""
        assert self.registry.states  # as they were until now
        self.registry.is_away = True
        self._scope.cancel()
        await wait_all_tasks_blocked()
        assert self.carrier.hung_up == self.carrier.said == []
        self.registry.is_away, self.registry.to_write = False, None

    def take_up(self, agent: Agent) -> Any:
        self.registry.generation += 1
        return self.calls.take_up(SID, self.registry.states[-1], self.registry.generation, agent)

    async def connect(self, nursery: trio.Nursery) -> MemoryMedia:
        """The carrier asks how the call goes on, and opens the stream that it is told to."""
        reply = await self.calls.resume(SID, Agent())
        assert isinstance(reply, ConnectStream)
        media = MemoryMedia()
        media.event(media.start(SID, reply.ticket))
        nursery.start_soon(serve_stream, self.calls, media)
        await wait_all_tasks_blocked()
        return media


@asynccontextmanager
async def two(nursery: trio.Nursery, **settings: Any):
    """Two processes, in the first of which a call is on the line."""
    registry = Registry()
    first, second = (Process(registry, **settings) for _ in range(2))
    await nursery.start(first.run)
    await nursery.start(second.run)
    yield registry, first, second
    for process in (first, second):
        process._scope.cancel()


@asynccontextmanager
async def three(nursery: trio.Nursery, **settings: Any):
    """Three processes, which take over from each other."""
    registry = Registry()
    processes = [Process(registry, **settings) for _ in range(3)]
    for process in processes:
        await nursery.start(process.run)
    yield registry, *processes
    for process in processes:
        process._scope.cancel()


async def on_the_line(process: Process, nursery: trio.Nursery, agent: Agent, **facts: Any):
    call = await process.calls.place(NUMBER, agent, client="shop", **facts)
    process.calls.update_status(StatusUpdate(SID, CallStatus.IN_PROGRESS, 2))
    media = MemoryMedia()
    started(process.calls, media, SID)
    nursery.start_soon(serve_stream, process.calls, media)
    await wait_all_tasks_blocked()
    return call, media


async def says(process: Process, media: MemoryMedia, turn: int, text: str) -> None:
    """The agent says something, and all of it is heard."""
    session = process.calls.model.session
    session.event(AgentTranscript(text, turn))
    session.event(AgentAudio(SECOND_PCM, turn, trio.current_time()))
    session.event(GenerationComplete(turn))
    await trio.sleep(1.0)
    media.echo_marks()
    session.standing = Standing(turn, f"handle-{turn}", "memory", False, "KEY")
    session.event(TurnComplete(turn, None))
    session.event(ResumptionHandle(f"handle-{turn}"))
    await trio.sleep(0.2)


RUNS: list[str] = []


@pytest.fixture(autouse=True)
def nothing_has_run():
    RUNS.clear()


@tool
async def book(table: int) -> str:
    """Book a table.

    Args:
        table: Which.
    """
    RUNS.append(f"table {table}")
    await trio.sleep_forever()
    return "done"


AGENT = Agent(prompt="Be brief.", greeting="Greet.", voice="Kore", tools=(book,))
BOOK = ToolCallsRequested((ToolCall("id-1", "book", {"table": 7}),), 1)


def reconnected(way: Way = Way.RESUME) -> Reconnected:
    return Reconnected("closed-1006", way, "memory", gap_s=0.2, lost_s=0.0, repeated_s=0.0)


async def is_booking(process: Process, nursery: trio.Nursery) -> MemoryMedia:
    """A call whose model has greeted, and asked for a table."""
    _, media = await on_the_line(process, nursery, AGENT)
    await says(process, media, 1, "Good morning.")
    process.calls.model.session.event(BOOK)
    await trio.sleep(0.3)
    return media


# --- The state


async def test_a_state_is_kept_at_the_beginning_and_when_something_has_changed(
    autojump_clock, nursery
):
    async with two(nursery) as (registry, first, _):
        await first.calls.place(NUMBER, AGENT, client="shop", metadata={"order": "17"})
        await wait_all_tasks_blocked()
        begun = registry.state
        media = MemoryMedia()
        started(first.calls, media, SID)
        nursery.start_soon(serve_stream, first.calls, media)
        await trio.sleep(0.2)
        answered = registry.state
        await says(first, media, 1, "Good morning.")
        talked = registry.state

    assert (begun.direction, begun.number, begun.client) == ("outbound", NUMBER, "shop")
    assert (begun.metadata, begun.answered_at, begun.greeted) == ({"order": "17"}, None, False)
    assert (begun.agent.prompt, begun.agent.tools) == ("Be brief.", ("book",))
    assert answered.answered_at is not None
    assert answered.ends_at == pytest.approx(answered.answered_at + 3_600.0, abs=0.01)
    assert (talked.turn, talked.handle, talked.key_name, talked.greeted) == (
        *(1, "handle-1", "KEY"),
        True,
    )
    assert [(turn.speaker, turn.text) for turn in talked.transcript] == [("agent", "Good morning.")]


async def test_a_state_has_no_words_where_records_have_none(autojump_clock, nursery):
    options = CallOptions(transcripts=False, greeting_protect_s=0.0, media_timeout_s=600.0)
    async with two(nursery, options=options) as (registry, first, _):
        _, media = await on_the_line(first, nursery, AGENT)
        await says(first, media, 1, "Good morning.")
        first.calls.model.session.event(CallerTranscript("A secret."))
        await says(first, media, 2, "I see.")
        state = registry.state

    assert [(turn.speaker, turn.text) for turn in state.transcript] == [
        ("agent", ""),
        ("caller", ""),
        ("agent", ""),
    ]


async def test_where_nobody_wants_it_nothing_is_kept(autojump_clock, nursery):
    calls = make_calls(options=QUIET)
    async with trio.open_nursery() as running:
        await running.start(calls.run)
        call = await calls.place(NUMBER, AGENT)
        await wait_all_tasks_blocked()
        call.end(EndReason.HUNG_UP)
        await call.finished.wait()
        running.cancel_scope.cancel()

    assert calls.carrier.hung_up == ["CA1"]


# --- Going on


@dataclass
class Told:
    """Keeps what was told of turns, by the ids under which that is sent."""

    turns: dict[str, tuple[int, Any]] = field(default_factory=dict)

    def is_wanted(self, kind: Any, url: str | None) -> bool:
        return True

    def tell(self, kind: Any, told: CallTold, url: str | None) -> None:
        if told.turn is not None:
            number, turn = told.turn
            one = outbox_event(kind, told, "", at=1.0, url="https://a.example/")
            self.turns[one.id] = number, turn["text"]


@pytest.mark.parametrize("is_known", [True, False], ids=["kept since", "not kept since"])
async def test_turns_are_told_of_once_and_numbered_on_by_who_takes_a_call_over(
    autojump_clock, nursery, monkeypatch, is_known
):
    monkeypatch.setattr(keeping, "MAX_TURNS", 2)
    told = Told()
    async with two(nursery) as (registry, first, second):
        first.calls.register.events = second.calls.register.events = told
        call, media = await on_the_line(first, nursery, AGENT)
        await says(first, media, 1, "Good morning.")
        first.calls.model.session.event(CallerTranscript("A table, please."))
        call.conversation.notes.keep_soon()
        await trio.sleep(0.3)
        state = registry.states[-1]
        await says(first, media, 2, "For how many?")
        first.calls.model.session.event(CallerTranscript("Four."))
        call.conversation.notes.keep_soon()
        await trio.sleep(0.3)
        before = list(told.turns.values())
        if not is_known:
            registry.states.append(state)
        first.calls.register.events = None  # whoever is killed tells nothing
        await first.die()
        taken = second.take_up(AGENT)
        again = await second.connect(nursery)
        await says(second, again, 3, "Sorry?")
        taken.end(EndReason.HUNG_UP)
        await taken.finished.wait()
        await wait_all_tasks_blocked()

    said = ["Good morning.", "A table, please.", "For how many?", "Four.", "Sorry?"]
    assert before == [*enumerate(said[:3])]
    after = [*enumerate(said)] if is_known else [*enumerate(said[:3]), (2, "Sorry?")]
    assert list(told.turns.values()) == after


@pytest.mark.parametrize("ahead_s", [-7_200.0, 7_200.0])
async def test_what_is_left_of_a_call_is_as_long_on_a_machine_whose_clock_is_another(
    autojump_clock, nursery, monkeypatch, ahead_s
):
    shared = time.time  # the registry's, which all know
    async with two(nursery, wall_time=lambda: shared()) as (_, first, second):
        call, media = await on_the_line(first, nursery, AGENT)
        await says(first, media, 1, "Good morning.")
        c = call.conversation
        began_at, answered_at, ends_at = c.notes.began_at, c.answered_at, call._time_limit.deadline
        await first.die()
        monkeypatch.setattr(time, "time", lambda: shared() + ahead_s)
        taken = second.take_up(AGENT)
        await wait_all_tasks_blocked()
        c = taken.conversation
        left = c.notes.began_at, c.answered_at, taken._time_limit.deadline
        gap_s = next(
            line["gap_s"] for line in taken.record().as_dict()["timeline"] if "gap_s" in line
        )
        taken.end(EndReason.HUNG_UP)
        await taken.finished.wait()

    assert left == pytest.approx((began_at, answered_at, ends_at), abs=0.01)
    assert gap_s == pytest.approx(0.0, abs=1.0)
    assert taken.report.created_at == pytest.approx(call.report.created_at, abs=0.001)


@pytest.mark.parametrize("is_old", [False, True])
async def test_when_a_call_began_goes_on_from_machine_to_machine_whose_clocks_are_others(
    autojump_clock, nursery, monkeypatch, is_old
):
    shared = time.time  # the registry's, which all know
    monkeypatch.setattr(time, "time", lambda: shared() - 600.0)
    async with three(nursery, wall_time=lambda: shared()) as (registry, first, second, third):
        call, media = await on_the_line(first, nursery, AGENT)
        await says(first, media, 1, "Good morning.")
        created_at, answered_s = call.report.created_at, call.record().details.answered_s
        await first.die()
        if is_old:  # of a program that did not say when it was by the registry's clock
            registry.written.append(replaced(registry.state, began_at=None).encode())
        else:
            monkeypatch.setattr(time, "time", lambda: shared() + 7_200.0)
        taken = second.take_up(AGENT)
        await second.connect(nursery)
        await trio.sleep(1.0)
        await second.die()
        monkeypatch.setattr(time, "time", lambda: shared() - 3_600.0)
        again = third.take_up(AGENT)
        await wait_all_tasks_blocked()
        details = again.record().details
        again.end(EndReason.HUNG_UP)
        await again.finished.wait()

    assert details.answered_s == pytest.approx(answered_s, abs=0.01)
    assert details.timeline[-1][0] == pytest.approx(trio.current_time(), abs=0.01)
    assert again.report.created_at == pytest.approx(created_at, abs=0.001)
    assert again.report.began_at == pytest.approx(taken.report.began_at, abs=0.001)


async def test_a_call_goes_on_where_its_process_has_left_it(autojump_clock, nursery):
    async with two(nursery) as (_, first, second):
        call, media = await on_the_line(first, nursery, AGENT, metadata={"order": "17"})
        await says(first, media, 1, "Good morning.")
        first.calls.model.session.event(CallerTranscript("A table, please."))
        first.calls.model.session.event(Usage({"AUDIO": 900}, {"AUDIO": 100}, 1_000, turn=1))
        await says(first, media, 2, "For how many?")
        ends_at = call._time_limit.deadline
        await first.die()
        taken = second.take_up(AGENT)
        await wait_all_tasks_blocked()
        lost = taken.conversation.is_lost
        await trio.sleep(2.0)
        again = await second.connect(nursery)
        await says(second, again, 3, "Sorry, for how many?")
        agent, session = second.calls.model.agents[-1], second.calls.model.session
        taken.end(EndReason.HUNG_UP)
        await taken.finished.wait()
        await wait_all_tasks_blocked()
        record = taken.record().as_dict()

    assert lost
    assert agent.tools == (book,)
    assert (agent.prompt, agent.voice) == ("Be brief.", "Kore")
    ((_, told),) = session.texts
    assert "interrupted" in told
    assert "For how many?" in told
    assert "Greet." not in told
    assert [(turn["speaker"], turn["text"]) for turn in record["transcript"]] == [
        ("agent", "Good morning."),
        ("caller", "A table, please."),
        ("agent", "For how many?"),
        ("agent", "Sorry, for how many?"),
    ]
    assert taken._time_limit.deadline == pytest.approx(ends_at, abs=0.01)
    assert record["generation"] == 2
    assert record["metadata"] == {"order": "17"}
    assert record["tokens"]["prompt"] == {"AUDIO": 900}
    assert record["agent_heard_s"] == pytest.approx(3.0, abs=0.05)
    assert record["duration_s"] == pytest.approx(5.6, abs=0.2)
    (line,) = [one for one in record["timeline"] if one["what"] == "taken up from another process"]
    assert line["generation"] == 2
    assert line["gap_s"] < 1.0
    assert record["had_trouble"]
    assert [one["call_sid"] for one in second.kept.records] == [SID]
    assert second.carrier.hung_up == [SID]


async def test_the_model_is_not_told_that_was_heard_of_which_only_the_words_had_come(
    autojump_clock, nursery
):
    async with two(nursery) as (_, first, second):
        call, media = await on_the_line(first, nursery, AGENT)
        await says(first, media, 1, "Good morning.")
        first.calls.model.session.event(AgentTranscript("We open at six.", 2))
        call.conversation.notes.keep_soon()
        await first.die()
        second.take_up(AGENT)
        await second.connect(nursery)

    ((_, told),) = second.calls.model.session.texts
    assert "Good morning." in told
    assert "six" not in told


async def test_a_call_that_goes_on_keeps_its_agent_by_name(autojump_clock, nursery):
    ours = replace(AGENT, name="desk", settings=Settings.load(_env_file=None, silence_prompts=9))
    known = {"desk": replace(ours, prompt="Be long.")}
    async with two(nursery, find_agent=known.get) as (_, first, second):
        await on_the_line(first, nursery, replace(ours, prompt="Be brief, Ana.", model="other"))
        await first.die()
        with capture_logs() as logs:
            taken = second.take_up(Agent())
        agent = taken.conversation.party.agent
        record = taken.record().as_dict()

    assert (agent.name, agent.prompt, agent.model) == ("desk", "Be brief, Ana.", "other")
    assert agent.tools == (book,)
    assert taken.conversation.options.patience.silence_prompts == 9
    assert record["agent"] == "desk"
    assert not [line for line in logs if "not known here" in line["event"]]


async def test_a_call_that_goes_on_has_what_was_written_down_of_its_outcome(
    autojump_clock, nursery
):
    schema = outcome_schema({"properties": {"pizza": {"type": "string"}, "count": {}}})
    ours = replace(AGENT, name="desk", outcome=schema)
    async with two(nursery, find_agent={"desk": ours}.get) as (_, first, second):
        call, _ = await on_the_line(first, nursery, ours)
        call.fill_outcome({"pizza": "hawaii"})
        await trio.sleep(1.0)
        await first.die()
        taken = second.take_up(Agent())
        missing = taken.fill_outcome({})
        record = taken.record().as_dict()

    assert missing == ("count",)
    assert record["outcome"]["values"] == {"pizza": "hawaii"}


async def test_a_call_whose_agent_is_not_known_here_goes_on_and_that_is_told(
    autojump_clock, nursery
):
    schema = outcome_schema({"properties": {"pizza": {"type": "string"}, "count": {}}})
    tools = (book, outcome_tool(schema))
    desk = replace(AGENT, name="desk", is_recorded=False, outcome=schema, tools=tools)
    async with two(nursery) as (_, first, second):
        call, _ = await on_the_line(first, nursery, desk)
        call.fill_outcome({"pizza": "hawaii"})
        await trio.sleep(1.0)
        await first.die()
        with capture_logs() as logs:
            taken = second.take_up(Agent(tools=(book,)))
        missing = taken.fill_outcome({})
        agent = taken.conversation.party.agent
        record = taken.record().as_dict()

    assert (agent.name, agent.prompt, agent.is_recorded) == ("desk", "Be brief.", False)
    assert [tool.name for tool in agent.tools] == ["book", "save_outcome"]
    assert (missing, record["outcome"]["values"]) == (("count",), {"pizza": "hawaii"})
    told = [line for line in logs if "agent of a call" in line["event"]]
    assert [line["agent"] for line in told] == ["desk"]


async def test_a_tool_that_was_running_is_never_run_again(autojump_clock, nursery):
    async with two(nursery) as (_, first, second):
        await is_booking(first, nursery)
        await first.die()
        second.take_up(AGENT)
        await second.connect(nursery)
        session = second.calls.model.session
        session.event(BOOK)
        await trio.sleep(0.3)

    ((_, told),) = session.texts
    assert "The call to book was interrupted; its outcome is not known" in told
    assert RUNS == ["table 7"]
    ((answer),) = session.results
    assert "not known" in answer.response["error"]


async def test_a_tool_is_not_run_again_by_whoever_takes_a_call_up_that_was_taken_up_just_before(
    autojump_clock, nursery
):
    async with three(nursery) as (_, first, second, third):
        await is_booking(first, nursery)
        await first.die()
        second.take_up(AGENT)
        await second.connect(nursery)
        await second.die()
        third.take_up(AGENT)
        await third.connect(nursery)
        session = third.calls.model.session
        session.event(BOOK)
        await trio.sleep(0.3)

    ((_, told),) = session.texts
    assert "The call to book was interrupted; its outcome is not known" in told
    assert (session.standing.done, session.standing.interrupted) == ((), ("book",))
    assert RUNS == ["table 7"]


async def test_a_tool_is_forgotten_when_a_model_that_was_told_of_it_can_be_resumed(
    autojump_clock, nursery
):
    async with two(nursery) as (registry, first, second):
        await is_booking(first, nursery)
        await first.die()
        second.take_up(AGENT)
        again = await second.connect(nursery)
        session = second.calls.model.session
        session.event(TurnComplete(2, CONNECTION_LOST))
        session.event(ResumptionHandle("from before it has said anything"))
        before = registry.state.tools
        await says(second, again, 3, "Where were we?")
        after = registry.state.tools

    assert [(tool.id, tool.is_done) for tool in before] == [("id-1", False)]
    assert after == ()


async def has_booked(process: Process, nursery: trio.Nursery) -> MemoryMedia:
    """A call whose model has asked for a table, and has the answer."""
    media = await is_booking(process, nursery)
    process.calls.model.session.event(ToolCallsCancelled(("id-1",)))
    return media


@pytest.mark.parametrize("way", Way)
async def test_a_tool_that_was_run_is_kept_though_a_handle_comes_before_a_new_connection_answers(
    autojump_clock, nursery, way
):
    async with two(nursery) as (registry, first, second):
        await has_booked(first, nursery)
        session = first.calls.model.session
        session.event(TurnComplete(1, CONNECTION_LOST))
        session.event(reconnected(way))
        session.event(ResumptionHandle("from before it has said anything"))
        await trio.sleep(0.3)
        kept = registry.state.tools
        await first.die()
        second.take_up(AGENT)
        await second.connect(nursery)
        ((_, told),) = second.calls.model.session.texts

        standing = second.calls.model.session.standing

    assert [(tool.id, tool.is_done) for tool in kept] == [("id-1", True)]
    assert "You have called book a moment ago, and it was run: do not run it again." in told
    assert (standing.done, standing.interrupted) == (("book",), ())


async def test_a_tool_that_was_run_is_forgotten_when_a_new_connection_has_answered(
    autojump_clock, nursery
):
    async with two(nursery) as (registry, first, _):
        media = await has_booked(first, nursery)
        first.calls.model.session.event(reconnected())
        await says(first, media, 2, "Your table is booked.")
        kept = registry.state.tools

    assert kept == ()


async def test_a_tool_that_still_runs_at_a_reconnect_is_forgotten_only_when_it_is_done(
    autojump_clock, nursery
):
    async with two(nursery) as (registry, first, _):
        media = await is_booking(first, nursery)
        session = first.calls.model.session
        session.event(reconnected())
        await says(first, media, 2, "One moment, please.")
        at_work = registry.state.tools
        session.event(ToolCallsCancelled(("id-1",)))
        await says(first, media, 3, "Your table is booked.")
        done = registry.state.tools

    assert [(tool.id, tool.is_done) for tool in at_work] == [("id-1", False)]
    assert done == ()


@pytest.mark.parametrize("reconnects", [1, 2])
async def test_a_tool_that_was_done_after_a_reconnect_is_kept_until_the_model_has_answered(
    autojump_clock, nursery, reconnects
):
    async with two(nursery) as (registry, first, _):
        media = await is_booking(first, nursery)
        session = first.calls.model.session
        for _ in range(reconnects):
            session.event(reconnected())
        await says(first, media, 2, "One moment, please.")
        session.event(ToolCallsCancelled(("id-1",)))
        session.event(ResumptionHandle("from before it was told of the table"))
        kept, answered = await kept_until_it_says(
            registry, first, media, 3, "Your table is booked."
        )

    assert kept == [("id-1", True)]
    assert answered == ()


async def kept_until_it_says(
    registry: Registry, process: Process, media: MemoryMedia, turn: int, text: str
) -> tuple[list[tuple[str, bool]], tuple[ToolState, ...]]:
    """What is kept of functions, and what is left of that when the model has said something."""
    await trio.sleep(0.3)
    kept = [(tool.id, tool.is_done) for tool in registry.state.tools]
    await says(process, media, turn, text)
    return kept, registry.state.tools


async def test_a_tool_that_is_done_before_the_end_of_what_was_said_meanwhile_is_kept_after_it(
    autojump_clock, nursery
):
    async with two(nursery) as (registry, first, _):
        media = await is_booking(first, nursery)
        session = first.calls.model.session
        session.event(reconnected())
        session.event(AgentAudio(SECOND_PCM, 2, trio.current_time()))
        session.event(GenerationComplete(2))
        session.event(ToolCallsCancelled(("id-1",)))
        session.event(TurnComplete(2, None))
        session.event(ResumptionHandle("from before it was told of the table"))
        kept, answered = await kept_until_it_says(
            registry, first, media, 3, "Your table is booked."
        )

    assert kept == [("id-1", True)]
    assert answered == ()


def breaks_off_in_silence(session: Any, turn: int) -> None:
    """The model is interrupted before anything of this turn has come, and there is a handle."""
    session.event(Interrupted(turn, trio.current_time()))
    session.event(TurnComplete(turn, None))
    session.event(ResumptionHandle("from when it had said nothing"))


async def test_a_tool_that_is_done_before_a_turn_that_is_interrupted_in_silence_is_kept_after_it(
    autojump_clock, nursery
):
    async with two(nursery) as (registry, first, _):
        media = await is_booking(first, nursery)
        session = first.calls.model.session
        session.event(reconnected())
        session.event(ToolCallsCancelled(("id-1",)))
        breaks_off_in_silence(session, 2)
        kept, answered = await kept_until_it_says(
            registry, first, media, 3, "Your table is booked."
        )

    assert kept == [("id-1", True)]
    assert answered == ()


@pytest.mark.parametrize("reason", [None, "NEED_MORE_INPUT"])
async def test_a_tool_of_another_process_is_kept_after_a_turn_in_which_nothing_was_said_of_it(
    autojump_clock, nursery, reason
):
    async with two(nursery) as (registry, first, second):
        await is_booking(first, nursery)
        await first.die()
        second.take_up(AGENT)
        again = await second.connect(nursery)
        session = second.calls.model.session
        breaks_off_in_silence(session, 2)
        session.event(TurnComplete(3, reason))
        session.event(ResumptionHandle("from when it still had said nothing"))
        kept, answered = await kept_until_it_says(registry, second, again, 4, "Where were we?")

    assert kept == [("id-1", False)]
    assert answered == ()


async def test_a_tool_of_another_process_is_told_of_though_a_reconnect_comes_between(
    autojump_clock, nursery
):
    async with two(nursery) as (registry, first, second):
        await is_booking(first, nursery)
        await first.die()
        second.take_up(AGENT)
        again = await second.connect(nursery)
        session = second.calls.model.session
        session.event(TurnComplete(2, None))
        session.event(reconnected())
        session.event(ResumptionHandle("from before it has said anything"))
        before, after = await kept_until_it_says(registry, second, again, 3, "Where were we?")

    assert before == [("id-1", False)]
    assert after == ()


async def test_a_tool_is_kept_in_haste_before_it_runs_and_when_it_is_done(autojump_clock, nursery):
    async with two(nursery) as (registry, first, _):
        _, media = await on_the_line(first, nursery, AGENT)
        await says(first, media, 1, "Good morning.")
        first.calls.model.session.event(BOOK)  # and nothing has run since
        begun, in_haste = registry.state.tools, registry.in_haste[-1]
        await trio.sleep(0.3)
        first.calls.model.session.event(ToolCallsCancelled(("id-1",)))
        done, done_in_haste = registry.state.tools, registry.in_haste[-1]

    assert [(tool.id, tool.is_done) for tool in begun] == [("id-1", False)]
    assert [(tool.id, tool.is_done) for tool in done] == [("id-1", True)]
    assert in_haste
    assert done_in_haste


async def test_a_tool_runs_when_another_process_would_know_of_it(autojump_clock, nursery):
    async with two(nursery) as (_, first, _):
        call, media = await on_the_line(first, nursery, AGENT)
        await says(first, media, 1, "Good morning.")
        answer = trio.Event()
        is_current = call.ownership.is_current

        async def slow(call_sid: str, generation: int) -> bool:
            await answer.wait()
            return await is_current(call_sid, generation)

        call.ownership.is_current = slow
        first.calls.model.session.event(BOOK)
        await trio.sleep(KEPT_WITHIN_S / 2)
        before = list(RUNS)
        answer.set()
        await wait_all_tasks_blocked()

    assert before == []
    assert RUNS == ["table 7"]


async def test_a_tool_does_not_wait_for_a_registry_that_says_nothing(autojump_clock, nursery):
    async with two(nursery) as (registry, first, _):
        call, media = await on_the_line(first, nursery, AGENT)
        await says(first, media, 1, "Good morning.")
        registry.never_answers = True
        first.calls.model.session.event(BOOK)
        await trio.sleep(KEPT_WITHIN_S * 1.01)
        ran, notes = list(RUNS), [what for _, what, _ in call.conversation.notes.timeline]
        registry.never_answers = False

    assert ran == ["table 7"]
    assert "functions run before another process knows of them" in notes


async def test_a_tool_of_a_call_that_is_anothers_by_now_is_not_run(autojump_clock, nursery):
    async with two(nursery) as (registry, first, _):
        call, media = await on_the_line(first, nursery, AGENT)
        await says(first, media, 1, "Good morning.")
        registry.generation = 2
        first.calls.model.session.event(BOOK)
        await call.finished.wait()

    assert RUNS == []
    assert call.end_reason is EndReason.MOVED


async def test_what_was_kept_in_haste_since_is_no_part_of_an_answer_that_is_still_good(
    autojump_clock, nursery
):
    async with two(nursery) as (registry, first, _):
        call, _ = await on_the_line(first, nursery, AGENT)
        await call.fence.is_ours()
        asked = registry.asked
        await call.fence.is_ours()
        good = registry.asked
        call.conversation.notes.keep_now()
        await call.fence.is_ours()

    assert (good, registry.asked) == (asked, asked + 1)


async def test_a_state_that_cannot_be_made_for_a_bug_is_told_once_and_ends_no_call(
    autojump_clock, nursery, monkeypatch, capsys
):
    async with two(nursery) as (registry, first, _):
        call, media = await on_the_line(first, nursery, AGENT)
        monkeypatch.setattr(call.conversation.playout, "heard_s", lambda now: max([]))
        for turn in (1, 2, 3):
            await says(first, media, turn, "Good morning.")
            assert registry.states == []
        first.calls.model.session.event(ToolCallsRequested((ToolCall("id-1", "book", {}),), 1))
        await trio.sleep(0.3)
        lives = call.end_reason is None
        monkeypatch.undo()

    assert lives
    told = capsys.readouterr().out
    assert told.count("by a bug of ours") == 1
    assert "ValueError" in told


async def test_a_call_that_nobody_has_answered_yet_is_greeted_when_somebody_does(
    autojump_clock, nursery
):
    async with two(nursery) as (_, first, second):
        await first.calls.place(NUMBER, AGENT)
        await wait_all_tasks_blocked()
        await first.die()
        taken = second.take_up(AGENT)
        await second.connect(nursery)

    assert second.calls.model.session.texts[0][1] == "Greet."
    assert taken.conversation.answered_at is not None


async def test_a_call_whose_caller_does_not_come_back_ends(autojump_clock, nursery):
    async with two(nursery) as (_, first, second):
        _, media = await on_the_line(first, nursery, AGENT)
        await says(first, media, 1, "Good morning.")
        await first.die()
        taken = second.take_up(AGENT)
        await taken.finished.wait()

    assert taken.end_reason is EndReason.CALLER_GONE
    assert second.carrier.hung_up == [SID]


@pytest.mark.parametrize("reason", [None, EndReason.MODEL_LOST])
async def test_a_call_whose_stream_never_comes_though_it_was_asked_for_is_left_to_the_carrier(
    autojump_clock, nursery, reason
):
    async with two(nursery) as (_, first, second):
        _, media = await on_the_line(first, nursery, AGENT)
        await says(first, media, 1, "Good morning.")
        await first.die()
        taken = second.take_up(AGENT)
        reply = await second.calls.resume(SID, AGENT)
        if reason is not None:
            taken.end(reason)
        await taken.finished.wait()
        await wait_all_tasks_blocked()
        again = await second.calls.resume(SID, AGENT)

    # Whoever has repeated the question may have had it taken from one that talks.
    assert isinstance(reply, ConnectStream)
    assert second.carrier.hung_up == second.carrier.said == []
    assert isinstance(again, EndCall if reason is None else SayAndEndCall)


async def test_a_client_ends_a_call_whose_stream_never_came(autojump_clock, nursery):
    async with two(nursery) as (_, first, second):
        _, media = await on_the_line(first, nursery, AGENT)
        await says(first, media, 1, "Good morning.")
        await first.die()
        taken = second.take_up(AGENT)
        await second.calls.resume(SID, AGENT)
        taken.end(EndReason.HUNG_UP)
        await taken.finished.wait()

    assert second.carrier.hung_up == [SID]


async def test_a_caller_who_was_being_transferred_comes_back_to_who_has_the_call_now(
    autojump_clock, nursery
):
    async with two(nursery) as (registry, first, second):
        call, media = await on_the_line(first, nursery, AGENT)
        await says(first, media, 1, "Good morning.")
        nursery.start_soon(call.transfer, "sales", "+15005550123")
        await trio.sleep(0.3)
        away = registry.state.away
        await first.die()
        taken = second.take_up(AGENT)
        await wait_all_tasks_blocked()
        stage = taken.conversation.stage
        reply = await second.calls.update_transfer(
            TransferUpdate(SID, CallStatus.BUSY, wants_document=True), AGENT
        )
        assert isinstance(reply, ConnectStream)
        back = MemoryMedia()
        back.event(back.start(SID, reply.ticket))
        nursery.start_soon(serve_stream, second.calls, back)
        await wait_all_tasks_blocked()
        texts = [text for _, text in second.calls.model.session.texts]

    assert away is not None
    assert (away.destination, away.number) == ("sales", "+15005550123")
    assert stage is Stage.AWAY
    assert taken.conversation.stage is Stage.TALK
    assert len(texts) == 1
    assert "transfer to sales has failed" in texts[0]


async def test_a_caller_whom_nobody_took_over_is_on_the_way_back_to_whoever_has_the_call_then(
    autojump_clock, nursery
):
    async with two(nursery) as (registry, first, second):
        call, media = await on_the_line(first, nursery, AGENT)
        await says(first, media, 1, "Good morning.")
        nursery.start_soon(_give_up, call)
        await trio.sleep(0.3)
        away = registry.state.away
        busy = TransferUpdate(SID, CallStatus.BUSY, wants_document=True)
        await first.calls.update_transfer(busy, AGENT)
        back, in_haste = registry.state.away, registry.in_haste[-1]
        await first.die()
        taken = second.take_up(AGENT)
        await wait_all_tasks_blocked()
        await second.connect(nursery)
        texts = [text for _, text in second.calls.model.session.texts]

    assert (away.has_failed, back.has_failed, in_haste) == (False, True, True)
    assert taken.conversation.stage is Stage.TALK
    assert len(texts) == 1
    assert "transfer to sales has failed" in texts[0]


async def asked_for_a_transfer(nursery, registry, first):
    """The carrier has been asked to transfer a call, and its process is gone before it answers."""
    call, media = await on_the_line(first, nursery, AGENT)
    await says(first, media, 1, "Good morning.")
    kept = []

    async def transfer(*args: Any, **facts: Any) -> None:
        kept.append((registry.state.away, registry.in_haste[-1]))
        await trio.sleep_forever()

    first.carrier.transfer = transfer
    nursery.start_soon(_give_up, call)
    await trio.sleep(0.3)
    ((away, in_haste),) = kept
    await first.die()
    assert in_haste
    assert (away.destination, away.number, away.is_sure) == ("sales", "+15005550123", False)


async def _give_up(call) -> None:
    with trio.move_on_after(60.0):
        await call.transfer("sales", "+15005550123")


async def test_a_transfer_that_the_carrier_was_asked_for_is_not_asked_for_again(
    autojump_clock, nursery
):
    async with two(nursery) as (registry, first, second):
        await asked_for_a_transfer(nursery, registry, first)
        taken = second.take_up(AGENT)
        await wait_all_tasks_blocked()
        stage, has_left = taken.conversation.stage, taken.handover.has_left
        reply = await second.calls.update_transfer(
            TransferUpdate(SID, CallStatus.COMPLETED, wants_document=True), AGENT
        )
        await taken.finished.wait()

    assert stage is Stage.AWAY
    assert has_left
    assert isinstance(reply, EndCall)
    assert taken.end_reason is EndReason.TRANSFERRED
    assert second.carrier.transferred == []


async def test_a_caller_whose_transfer_never_reached_the_carrier_goes_on_talking(
    autojump_clock, nursery
):
    async with two(nursery) as (registry, first, second):
        await asked_for_a_transfer(nursery, registry, first)
        taken = second.take_up(AGENT)
        await wait_all_tasks_blocked()
        await second.connect(nursery)
        texts = [text for _, text in second.calls.model.session.texts]

    assert taken.conversation.stage is Stage.TALK
    assert second.carrier.transferred == []
    assert len(texts) == 1
    assert "transfer to sales has failed" in texts[0]


def leaves_functions(call: Call) -> None:
    """The model has had two functions run since its handle, and is being transferred by a third."""
    notes = call.conversation.notes
    notes.tools_called((("id-1", "book"), ("id-2", "pay"), ("id-3", TRANSFER_NAME)))
    notes.tools_answered(("id-1",), 1)


@pytest.mark.parametrize("takes_notes", [True, False])
async def test_a_model_is_told_of_another_processes_functions_before_a_transfer_that_has_failed(
    autojump_clock, nursery, takes_notes
):
    service = WholeService(is_wire=True, takes_notes=takes_notes)
    async with two(nursery) as (registry, first, _):
        second = Process(registry, LastingModel(service))
        await nursery.start(second.run)
        call, media = await on_the_line(first, nursery, AGENT)
        await says(first, media, 1, "Good morning.")
        first.calls.model.session.standing = Standing(1, "handle-1", service.name)
        leaves_functions(call)
        nursery.start_soon(_give_up, call)
        await trio.sleep(0.3)
        busy = TransferUpdate(SID, CallStatus.BUSY, wants_document=True)
        await first.calls.update_transfer(busy, AGENT)
        await first.die()
        taken = second.take_up(AGENT)
        await trio.sleep(1.0)
        while_away = list(service.heard)
        await second.connect(nursery)
        heard = "\n".join(message.decode() for message in service.heard)
        taken.end(EndReason.HUNG_UP)
        await taken.finished.wait()
        second._scope.cancel()

    functions, _, failed = heard.partition("The transfer to sales has failed")
    assert failed
    assert "You have called book a moment ago, and it was run" in functions
    assert "The call to pay was interrupted; its outcome is not known" in functions
    assert TRANSFER_NAME not in functions.replace("The transfer to", "")
    assert bool(while_away) == takes_notes
    assert service.opened_with[0][0] == "handle-1"


def hanging_up(state: CallState) -> tuple[ToolState, ...]:
    """The functions of a call that has also called ``hang_up``, beside one that it waits for."""
    return (*state.tools, ToolState("id-4", hang_up.name, is_done=False))


async def test_the_first_words_or_the_session_tell_of_another_processes_functions_and_never_none(
    autojump_clock, nursery
):
    async with two(nursery) as (registry, first, _):
        call, media = await on_the_line(first, nursery, AGENT)
        leaves_functions(call)
        silent = registry.state
        await says(first, media, 1, "Good morning.")
        leaves_functions(call)
        talking = registry.state
        states = {
            "not greeted": silent,
            "talking": talking,
            "leaving": replaced(talking, is_leaving=True, tools=hanging_up(talking)),
            "away": replaced(talking, away=AwayState("sales", NUMBER, has_failed=True)),
            "to a machine": replaced(talking, machine=MachineState(None, "message")),
        }
        await first.die()
        told = {}
        for name, state in states.items():
            process = Process(registry, options=LEAVES_MESSAGES)
            await nursery.start(process.run)
            registry.to_write = None
            registry.written.append(state.encode())
            taken = process.take_up(AGENT)
            await process.connect(nursery)
            session = process.calls.model.session
            words = "".join(text for _, text in session.texts[:1])
            told[name] = session.standing.in_first_words, "You have called book" in words
            assert session.standing.done == ("book",)
            assert session.standing.interrupted == (
                ("pay",) if name == "away" else ("pay", TRANSFER_NAME)
            )
            taken.end(EndReason.HUNG_UP)
            await taken.finished.wait()
            process._scope.cancel()

    assert told.pop("talking") == (True, True)
    assert set(told.values()) == {(False, False)}


TAKES_ITS_TIME = CallOptions(farewell_timeout_s=10.0, media_timeout_s=600.0, greeting_protect_s=0.0)


@pytest.mark.parametrize("is_empty", [False, True], ids=["in silence", "with an empty turn"])
async def test_a_model_that_does_not_say_the_goodbye_of_a_call_that_was_taken_over_is_asked_again(
    autojump_clock, nursery, is_empty
):
    async with two(nursery) as (registry, first, _):
        _, media = await on_the_line(first, nursery, AGENT)
        await says(first, media, 1, "Good morning.")
        leaving = replaced(registry.state, is_leaving=True)
        await first.die()
        process = Process(registry, options=TAKES_ITS_TIME)
        await nursery.start(process.run)
        registry.to_write = None
        registry.written.append(leaving.encode())
        taken = process.take_up(AGENT)
        await process.connect(nursery)
        texts = process.calls.model.session.texts
        if is_empty:
            process.calls.model.session.event(TurnComplete(leaving.turn + 1, None))
        patience_s = taken.conversation.options.patience.reply_timeout_s
        await trio.sleep(patience_s - 0.2)
        before = [text for _, text in texts]
        await trio.sleep(0.4)
        half, asked = taken.end_reason, [text for _, text in texts]
        taken.end(EndReason.HUNG_UP)
        await taken.finished.wait()
        process._scope.cancel()

    assert half is None
    assert before == [phrases.GOODBYE_AGAIN]
    assert asked == [*before, phrases.NUDGE_TO_CONTINUE]


LEAVES_MESSAGES = CallOptions(
    voicemail=VoicemailPolicy.LEAVE_MESSAGE, media_timeout_s=600.0, greeting_protect_s=0.0
)


async def leaves_message(first: Process, nursery: trio.Nursery) -> Call:
    """A call that has met a machine, and has begun to leave its message."""
    call, media = await on_the_line(first, nursery, AGENT)
    await says(first, media, 1, "Good morning.")
    call.report_machine(MachineVerdict(SID, AnsweredBy.MACHINE_END_BEEP, 3.0))
    call.report_voicemail()
    await trio.sleep(4.0)
    return call


async def test_a_message_that_was_being_left_is_left_from_its_beginning(autojump_clock, nursery):
    async with two(nursery, options=LEAVES_MESSAGES) as (registry, first, second):
        await leaves_message(first, nursery)
        kept = registry.state.machine
        await first.die()
        taken = second.take_up(AGENT)
        await second.connect(nursery)
        texts = [text for _, text in second.calls.model.session.texts]

    assert kept is not None
    assert kept.stage == "message"
    assert taken.conversation.stage is Stage.TO_MACHINE
    assert len(texts) == 1
    assert "voicemail system is recording" in texts[0]


@pytest.mark.parametrize("by_key", [False, True])
@pytest.mark.parametrize("connect_s", [0.0, 1.0])
async def test_whoever_answers_a_message_that_is_left_by_another_process_is_a_person(
    autojump_clock, nursery, connect_s, by_key
):
    async with two(nursery, options=LEAVES_MESSAGES) as (_, first, second):
        second.calls.model.connect_s = connect_s
        await leaves_message(first, nursery)
        await first.die()
        taken = second.take_up(AGENT)
        again = await second.connect(nursery)
        now = trio.current_time()
        if by_key:
            again.event(DigitPressed("1"))
        else:
            taken._machine.heard(SpeechStarted(now), now)
            taken._machine.heard(SpeechEnded(now + 0.8, 0.8, now + 0.9), now + 0.9)
        await trio.sleep(connect_s)
        await wait_all_tasks_blocked()
        await says(second, again, 2, "Please call us back.")
        await trio.sleep(0.5)
        texts = [text for _, text in second.calls.model.session.texts]

    assert taken.end_reason is None
    assert taken.conversation.stage is Stage.TALK
    assert texts[1] == phrases.NOT_A_MACHINE


async def test_a_message_of_an_agent_that_has_hung_up_is_left_again_and_ends_the_call(
    autojump_clock, nursery
):
    async with two(nursery, options=LEAVES_MESSAGES) as (registry, first, second):
        call = await leaves_message(first, nursery)
        call.hang_up_when_heard()
        call.conversation.notes.keep_now()
        kept = registry.state
        await first.die()
        taken = second.take_up(AGENT)
        again = await second.connect(nursery)
        texts = [text for _, text in second.calls.model.session.texts]
        await says(second, again, 2, "Please call us back.")
        await taken.finished.wait()

    assert (kept.machine.stage, kept.is_leaving) == ("message", True)
    assert len(texts) == 1
    assert "voicemail system is recording" in texts[0]
    assert taken.end_reason is EndReason.VOICEMAIL


async def test_who_has_answered_is_kept_as_soon_as_it_is_known(autojump_clock, nursery):
    options = CallOptions(
        voicemail=VoicemailPolicy.HANG_UP, media_timeout_s=600.0, greeting_protect_s=0.0
    )
    async with two(nursery, options=options) as (registry, first, second):
        call, media = await on_the_line(first, nursery, AGENT)
        await says(first, media, 1, "Good morning.")
        before = registry.state.machine
        call.report_machine(MachineVerdict(SID, AnsweredBy.MACHINE_END_SILENCE, 3.0))
        reported = registry.state.machine
        said_at = trio.current_time()
        call._machine.heard(SpeechStarted(said_at + 0.1), said_at + 0.1)
        call._machine.heard(SpeechEnded(said_at + 0.9, 0.8, said_at + 1.0), said_at + 1.0)
        await wait_all_tasks_blocked()
        spoken = registry.state.machine
        await first.die()
        taken = second.take_up(AGENT)
        await second.connect(nursery)
        await trio.sleep(10.0)

    assert (before.answered_by, before.stage) == (None, "open")
    assert (reported.answered_by, reported.stage) == (AnsweredBy.MACHINE_END_SILENCE, "open")
    assert spoken.stage == "over"
    assert taken.end_reason is None


async def test_a_message_is_left_though_only_a_process_before_knew_of_the_machine(
    autojump_clock, nursery
):
    async with two(nursery, options=LEAVES_MESSAGES) as (registry, first, second):
        call, media = await on_the_line(first, nursery, AGENT)
        await says(first, media, 1, "Good morning.")
        call.report_voicemail()  # and the announcement goes on
        call.conversation.notes.keep_now()
        kept = registry.state.machine
        await first.die()
        second.take_up(AGENT)
        await second.connect(nursery)
        await trio.sleep(4.0)
        texts = [text for _, text in second.calls.model.session.texts]

    assert (kept.stage, kept.was_told) == ("open", True)
    assert "voicemail system is recording" in texts[-1]


async def test_a_goodbye_is_said_again_and_the_call_then_ends_as_its_agent_wanted(
    autojump_clock, nursery
):
    async with two(nursery) as (_, first, second):
        call, media = await on_the_line(first, nursery, AGENT)
        await says(first, media, 1, "Good morning.")
        call.hang_up_when_heard()
        call.conversation.notes.keep_now()
        await first.die()
        taken = second.take_up(AGENT)
        again = await second.connect(nursery)
        goes_on = taken.end_reason is None
        await says(second, again, 2, "Goodbye.")
        await taken.finished.wait()

    ((_, told),) = second.calls.model.session.texts
    assert goes_on
    assert "Say goodbye once more" in told
    assert taken.end_reason is EndReason.AGENT_HUNG_UP
    assert second.carrier.hung_up == [SID]


async def test_a_greeting_of_which_little_was_heard_is_to_be_said_however_often_a_call_is_taken_up(
    autojump_clock, nursery
):
    async with three(nursery) as (registry, first, second, third):
        call, _ = await on_the_line(first, nursery, AGENT)
        session = first.calls.model.session
        session.event(AgentTranscript("Good morning. This call is recorded.", 1))
        session.event(AgentAudio(2 * SECOND_PCM, 1, trio.current_time()))
        await trio.sleep(0.3)
        call.conversation.notes.keep_soon()
        await first.die()
        second.take_up(AGENT)
        await second.connect(nursery)
        await second.die()
        third.take_up(AGENT)
        again = await third.connect(nursery)
        greeted = registry.state.greeted
        await says(third, again, 2, "Good morning. This call is recorded.")

    assert [text for _, text in third.calls.model.session.texts] == ["Greet."]
    assert not greeted
    assert registry.state.greeted


async def test_a_process_that_does_not_record_leaves_the_parts_of_those_before_it_alone(
    autojump_clock, nursery, tmp_path
):
    registry, parts = Registry(), []
    recordings = Recordings(tmp_path, metrics=Metrics(CollectorRegistry()))
    processes = [Process(registry, recordings=each) for each in (recordings, None, recordings)]
    for process in processes:
        await nursery.start(process.run)
        if registry.states:
            process.take_up(AGENT)
            await process.connect(nursery)
        else:
            _, media = await on_the_line(process, nursery, AGENT)
            await says(process, media, 1, "Good morning.")
        parts.append(registry.state.recording_parts)
        await process.die()

    assert parts == [1, 1, 2]


async def test_a_record_says_when_each_process_began_to_record(autojump_clock, nursery, tmp_path):
    registry, began_at_s = Registry(), []
    recordings = Recordings(tmp_path, metrics=Metrics(CollectorRegistry()))
    for number in range(3):
        process = Process(registry, recordings=recordings)
        await nursery.start(process.run)
        if number:
            call = process.take_up(AGENT)
            began_at_s.append(call.conversation.notes.timeline[0][0])
            await process.connect(nursery)
        else:
            call, media = await on_the_line(process, nursery, AGENT)
            notes = call.conversation.notes
            began_at_s.append(call.conversation.answered_at - notes.began_at)
            await says(process, media, 1, "Good morning.")
        await trio.sleep(5.0)
        assert registry.states
        recording = call.record().as_dict()["recording"]
        await process.die()

    assert len(recording["parts"]) == 3
    assert recording["parts_at_s"] == [pytest.approx(at_s, abs=0.01) for at_s in began_at_s]
    assert began_at_s[2] > began_at_s[1] + 4.9 > began_at_s[0] + 9.8


async def test_what_a_process_was_held_up_is_time_on_the_line_for_the_next_one(
    autojump_clock, nursery, monkeypatch
):
    missed, began = [0.0], time.time() - trio.current_time()
    monkeypatch.setattr("server.call.report.report.missed_s", lambda: missed[0])
    monkeypatch.setattr(time, "time", lambda: began + trio.current_time() + missed[0])
    async with two(nursery) as (_, first, second):
        call, media = await on_the_line(first, nursery, AGENT)
        await says(first, media, 1, "Good morning.")
        missed[0] += 5.0  # of the world's time, and none of trio's
        call.conversation.notes.keep_soon()
        before_s = call.duration_s
        await first.die()
        after_s = second.take_up(AGENT).duration_s

    assert before_s > 6.0
    assert after_s == pytest.approx(before_s, abs=0.01)


# --- Whether it may


async def test_a_call_is_taken_up_above_the_lines_there_are_up_to_a_limit(autojump_clock, nursery):
    async with two(nursery, limits={"max_calls": 1}) as (registry, first, second):
        await first.calls.place(NUMBER, AGENT)
        await wait_all_tasks_blocked()
        await second.calls.place(NUMBER, AGENT)
        second.calls.check_takeover()
        taken = second.calls.take_up("CA8", registry.states[-1], 2, AGENT)
        with pytest.raises(CallRefused) as refused:
            second.calls.check_takeover()
        for call in second.calls.register.live:
            call.end(EndReason.HUNG_UP)

    assert taken.direction == "outbound"
    assert refused.value.reason == "full"


async def test_a_call_of_which_nothing_is_kept_is_not_taken_up(autojump_clock, nursery):
    async with two(nursery) as (_, _, second):
        with pytest.raises(StateUnreadable):
            second.calls.take_up(SID, b"", 2, AGENT)

    assert second.calls.live_count == 0


async def test_a_call_that_is_asked_for_twice_is_taken_up_once(autojump_clock, nursery):
    async with two(nursery) as (registry, first, second):
        _, media = await on_the_line(first, nursery, AGENT)
        await says(first, media, 1, "Good morning.")
        await first.die()
        taken = second.take_up(AGENT)
        same = second.calls.take_up(SID, registry.states[-1], 2, AGENT)

    assert same is taken


# --- The fence


async def lost_to_another(first: Process, nursery: trio.Nursery):
    call, media = await on_the_line(first, nursery, AGENT)
    first.registry.generation = 2
    return call, media


@pytest.mark.parametrize(
    "reason", [EndReason.MAX_DURATION, EndReason.AGENT_HUNG_UP, EndReason.ERROR, EndReason.DRAINED]
)
async def test_a_call_that_is_anothers_by_now_ends_in_silence(autojump_clock, nursery, reason):
    async with two(nursery) as (_, first, _):
        call, media = await lost_to_another(first, nursery)
        call.end(reason)
        await call.finished.wait()
        await wait_all_tasks_blocked()

    assert call.end_reason is EndReason.MOVED
    assert first.carrier.hung_up == first.carrier.said == []
    assert first.kept.records == []
    assert first.calls.register.get(SID) is None
    assert not first.calls.register.has_ended(SID)
    assert media.closed is not None
    assert media.closed[0] == 1001


async def test_what_a_call_has_cost_is_counted_by_whoever_has_it_in_the_end(
    autojump_clock, nursery
):
    async with two(nursery) as (_, first, second):
        call, _ = await on_the_line(first, nursery, AGENT)
        first.calls.model.session.event(Usage({"AUDIO": 900}, {"AUDIO": 100}, 1_000, turn=1))
        call.conversation.notes.keep_soon()
        taken = second.take_up(AGENT)
        await second.connect(nursery)
        for each in (call, taken):
            each.end(EndReason.HUNG_UP)
            await each.finished.wait()
        counted = [
            process.calls.metrics.tokens.labels("prompt", "audio")._value.get()
            for process in (first, second)
        ]

    assert call.end_reason is EndReason.MOVED
    assert counted == [0, 900]


async def test_the_stop_of_a_stream_that_another_has_taken_away_is_no_hang_up(
    autojump_clock, nursery
):
    async with two(nursery) as (_, first, _):
        call, media = await lost_to_another(first, nursery)
        media.hang_up()
        await call.finished.wait()
        await wait_all_tasks_blocked()

    assert call.end_reason is EndReason.MOVED
    assert first.kept.records == []


async def test_a_call_that_is_anothers_is_not_transferred(autojump_clock, nursery):
    async with two(nursery) as (_, first, _):
        call, _ = await lost_to_another(first, nursery)
        nursery.start_soon(_transfer, call)
        await call.finished.wait()

    assert call.end_reason is EndReason.MOVED
    assert first.carrier.transferred == []


async def _transfer(call) -> None:
    with trio.move_on_after(60.0), pytest.raises(CarrierError, match="another process"):
        await call.transfer("sales", "+15005550123")


@pytest.mark.parametrize("how", ["is_away", "never_answers"])
async def test_a_call_of_which_nobody_knows_whose_it_is_is_recorded_and_not_hung_up(
    autojump_clock, nursery, how
):
    async with two(nursery) as (registry, first, _):
        call, media = await on_the_line(first, nursery, AGENT)
        setattr(registry, how, True)
        await trio.sleep(30.0)
        goes_on = call.end_reason
        call.end(EndReason.AGENT_HUNG_UP)
        await call.finished.wait()
        await wait_all_tasks_blocked()

    assert goes_on is None
    assert call.end_reason is EndReason.AGENT_HUNG_UP
    assert first.carrier.hung_up == []
    assert media.closed is not None
    assert [record["reason"] for record in first.kept.records] == ["agent-hung-up"]


async def test_whoever_was_held_up_since_a_call_was_ours_asks_again_before_it_acts(
    autojump_clock, nursery, monkeypatch
):
    missed = [0.0]
    monkeypatch.setattr("server.call.takeover.fence.missed_s", lambda: missed[0])
    async with two(nursery) as (registry, first, _):
        call, _ = await on_the_line(first, nursery, AGENT)
        asked = []
        for held_up_s in (0.0, HELD_UP_S / 2, 2 * HELD_UP_S):
            missed[0] += held_up_s
            before = registry.asked
            await call.fence.is_ours()
            asked.append(registry.asked - before)
        missed[0] += 2 * HELD_UP_S
        registry.generation = 2  # which another has done meanwhile, and no time has passed here
        with pytest.raises(CarrierError, match="another process"):
            await call.fence.hang_up(SID)

    assert asked == [1, 0, 1]
    assert first.carrier.hung_up == []


async def test_an_answer_that_came_before_we_were_held_up_is_asked_for_again(
    autojump_clock, nursery, monkeypatch
):
    missed = [0.0]
    monkeypatch.setattr("server.call.takeover.fence.missed_s", lambda: missed[0])
    async with two(nursery) as (registry, first, _):
        call, _ = await on_the_line(first, nursery, AGENT)
        is_current = call.ownership.is_current

        async def held_up(call_sid: str, generation: int) -> bool:
            was_ours = await is_current(call_sid, generation)
            missed[0] += 5.0
            call.ownership.is_current = is_current
            registry.generation = 2
            return was_ours

        call.ownership.is_current = held_up
        ours = await call.fence.is_ours()

    assert ours is False
    assert call.end_reason is EndReason.MOVED


async def test_a_call_that_is_ours_is_hung_up(autojump_clock, nursery):
    async with two(nursery) as (_, first, _):
        call, _ = await on_the_line(first, nursery, AGENT)
        call.end(EndReason.MAX_DURATION)
        await call.finished.wait()
        await wait_all_tasks_blocked()

    assert first.carrier.hung_up == [SID]
    assert [record["generation"] for record in first.kept.records] == [1]


# --- With a phone, and the model's own protocol


CALLER = PhoneScript(
    "asks, and stays",
    (
        *(HearSpeech(), HearPause(), Say("question"), HearSpeech(), HearPause(), Wait(0.5)),
        *(HearSpeech(), HearPause(), HangUp()),
    ),
)


async def through(process: Process, phone: SimulatedPhone, nursery: trio.Nursery) -> trio.Event:
    """Connect a phone to a process; the event is set when its stream is over."""
    ours, carriers = memory_transports()
    transport, over = QueuedTransport(ours), trio.Event()

    async def serve() -> None:
        async with trio.open_nursery() as serving:
            serving.start_soon(transport.run)
            media = TwilioMediaStream(transport)
            claim = await process.calls.claim(media)
            assert claim is not None
            await claim.call.serve(media, claim.started)
            serving.cancel_scope.cancel()

    async def talk() -> None:
        await phone.run(carriers)
        over.set()

    nursery.start_soon(serve)
    nursery.start_soon(talk)
    return over


@pytest.mark.parametrize("is_refused", [False, True])
async def test_the_model_is_resumed_by_its_handle_or_told_what_has_been_said(
    autojump_clock, nursery, is_refused
):
    refusal = Close(1008, "Requested entity was not found.") if is_refused else None
    gemini = GeminiSimulator(script=ModelScript(refuse_handles=refusal))
    await nursery.start(partial(gemini.run, port=None))

    def model() -> LastingModel:
        url = "ws://memory.invalid"
        return LastingModel(GeminiModel(api_key="simulated", url=url, connect=gemini.connect))

    agent = Agent(prompt="Be brief.")
    registry = Registry()
    options = CallOptions()
    first, second = (Process(registry, model(), options=options) for _ in range(2))
    await nursery.start(first.run)
    await nursery.start(second.run)
    await first.calls.place(NUMBER, agent)
    ticket = first.carrier.ticket
    phone = SimulatedPhone(CALLER, call_sid=SID, parameters={"ticket": ticket})
    await through(first, phone, nursery)
    with trio.fail_after(120.0):
        await registry.changed.until(
            lambda: bool(registry.states) and registry.state.turn == 2 and registry.has_handle
        )
    before = registry.state
    await first.die()
    taken = second.take_up(agent)
    reply = await second.calls.resume(SID, agent)
    assert isinstance(reply, ConnectStream)
    again = phone.on_another_stream({"ticket": reply.ticket})
    over = await through(second, again, nursery)
    with trio.fail_after(120.0):
        await over.wait()
        await taken.finished.wait()
    nursery.cancel_scope.cancel()

    spoken = [turn["speaker"] for turn in taken.record().as_dict()["transcript"]]
    ways = [
        facts["way"]
        for _, what, facts in taken.conversation.notes.timeline
        if what == "model reconnected"
    ]
    assert taken.end_reason is EndReason.CALLER_HUNG_UP
    assert ways == (["fresh"] if is_refused else ["resume"])
    assert len(spoken) > len(before.transcript) >= 3
    assert taken.conversation.agent_turn == 3
    last = gemini.sessions[-1]
    assert len(last.texts) == 1 if not is_refused else last.texts[-1:] != []
    assert "interrupted" in last.texts[-1]
    assert (last.resumed_from is None) == is_refused
    assert again.first_sound_s is not None
    assert again.first_sound_s < 2.0
