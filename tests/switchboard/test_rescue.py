"""Calls that outlive their process: who acts, when, and that two never do."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from server.agent.agent import Agent
from server.call.call import Call
from server.call.options import CallOptions
from server.call.takeover.state import AwayState, CallState
from server.carrier import CallStatus, StatusUpdate, TransferUpdate
from server.carrier.webhooks import ConnectStream
from server.cluster.choosing import suspects
from server.cluster.cluster import Cluster
from server.cluster.lookout import HELD_UP_S, SETTLE_S, Absence
from server.cluster.registry import Holding, Load, Member, RegistryAway, Seen, Seized
from server.dialogue.endings import EndReason
from server.dialogue.remedies import Patience
from server.errors import CallNotInProgress, CallRefused, CarrierError
from server.events.event import CallTold
from server.records.database.database import Database
from server.records.database.tables import FOUND_OVER, fitted
from server.records.database.url import database_url
from server.switchboard.calls import Calls
from server.switchboard.rescue import REPLACES_S, TRY_AGAIN_S, CallLost, Rescue, Unsettled
from server.switchboard.tickets import MAX_STREAMS_PER_MIN, Tickets
from tests.call.test_call_state import state
from tests.records.test_records import record
from tests.support.fakes import KeptRecords, MemoryCarrier, MemoryMedia
from tests.support.nodes import SECRET, Shared, Store
from tests.support.switchboards import make_calls, serve_stream

SID = "CA" + "1" * 32
GONE = Member("gone", 7)
OTHER = Member("other", 9)
LEASE_S = 3.0
OPTIONS = CallOptions(
    line_lost_timeout_s=60.0,
    media_timeout_s=600.0,
    patience=Patience(silence_timeout_s=0.0, reply_timeout_s=900.0),
)


def seen(member: Member, age_s: float) -> Seen:
    return Seen(member, Load(), age_s, "http://192.0.2.1:8000")


# -- decisions -------------------------------------------------------------------------------


def test_who_is_silent_is_asked_before_the_lease_is_over_the_longest_silent_first():
    others = {
        "a": seen(Member("a", 1), 0.6),
        "b": seen(Member("b", 1), 2.1),
        "c": seen(Member("c", 1), 9.0),
        "d@3": seen(Member("d", 3), 4.0),
    }

    assert suspects(others, {}, lease_s=3.0, now=0.0) == ["c", "d@3", "b"]
    assert suspects(others, {}, lease_s=20.0, now=0.0) == []


def test_who_has_answered_is_left_alone_for_a_while_and_who_has_no_calls_for_good():
    others = {"a": seen(Member("a", 1), 9.0), "b": seen(Member("b", 1), 9.0)}
    left_alone = {Member("a", 1): 13.0, Member("b", 1): inf}

    assert suspects(others, left_alone, lease_s=3.0, now=12.9) == []
    assert suspects(others, left_alone, lease_s=3.0, now=13.0) == ["a"]


def test_a_process_that_was_held_up_has_been_away_until_its_calls_are_looked_at():
    absence = Absence(2.0, is_away=False)

    assert not absence.is_over(2.0 + HELD_UP_S / 2, is_away=False)
    assert absence.is_over(2.0 + HELD_UP_S, is_away=False)
    assert absence.is_over(2.0 + HELD_UP_S, is_away=False)
    absence.told(2.0 + HELD_UP_S)
    assert not absence.is_over(2.0 + HELD_UP_S, is_away=False)


def test_a_process_whose_registry_was_away_has_been_away_when_that_is_back():
    absence = Absence(0.0, is_away=False)

    assert not absence.is_over(0.0, is_away=True)
    assert not absence.is_over(9.0, is_away=True)
    assert absence.is_over(9.0, is_away=False)


def test_a_process_whose_registry_has_lost_what_was_in_it_has_been_away():
    absence = Absence(0.0, is_away=False)

    assert absence.is_over(0.0, is_away=False, losses=1)
    absence.told(0.0)
    assert not absence.is_over(0.0, is_away=False, losses=1)
    assert absence.is_over(0.0, is_away=False, losses=2)


def test_what_may_be_ours_is_tried_again_ever_more_seldom_until_it_is_settled():
    unsettled, now, tried = Unsettled(), 0.0, []
    unsettled.add(SID, now)
    while now < 3 * sum(TRY_AGAIN_S):
        now += 0.25
        tried += [now] * len(unsettled.due(now))
        unsettled.add("CA-settled", now)
        unsettled.settle("CA-settled")

    assert tried == [0.5, 1.5, 3.5, 7.5, 15.5, 45.5, 75.5, 105.5, 135.5]
    unsettled.settle(SID)
    assert unsettled.due(inf) == []


def test_what_is_being_tried_already_is_not_tried_sooner():
    unsettled = Unsettled()
    unsettled.add(SID, 0.0)
    first = unsettled.due(0.5)
    unsettled.add(SID, 0.5)  # it has failed again

    assert first == [SID]
    assert unsettled.due(1.0) == []
    assert unsettled.due(1.5) == [SID]


def test_a_stream_that_the_carrier_is_told_to_bring_has_a_ticket_of_its_own():
    tickets, call = Tickets(900.0), object()
    unasked = tickets.issue_unasked(call, 0.0)
    asked = tickets.issue_again(call, 0.0)
    tickets.use(asked, 1.0)
    tickets.drop(call)

    assert unasked is not None
    assert asked != unasked
    assert tickets.of(call) == [unasked]
    tickets.forget(call)
    assert tickets.of(call) == []


def test_a_carrier_that_has_asked_is_not_told_to_bring_a_stream():
    tickets, call = Tickets(900.0), object()
    tickets.issue_again(call, 0.0)

    assert tickets.issue_unasked(call, 0.0) is None


def test_streams_that_nobody_asked_for_count_among_those_of_a_call():
    tickets, call = Tickets(900.0), object()
    given = []
    for _ in range(MAX_STREAMS_PER_MIN + 1):
        given.append(tickets.issue_unasked(call, 0.0))
        tickets.use(given[-1] or "", 0.0)

    assert given.index(None) == MAX_STREAMS_PER_MIN


# -- one process, and what another has left ---------------------------------------------------


@dataclass
class Peers:
    """The other processes, of which one may answer."""

    answering: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    async def answers(self, name: str, *, by: str, timeout_s: float) -> bool:
        self.asked.append(name)
        if name not in self.answering:
            await trio.sleep(timeout_s)
        return name in self.answering

    def wall_time(self) -> float:
        return time.time()

    async def aclose(self) -> None:
        pass


class Process:
    """A process, the store it shares, and who is silent in it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.carrier = MemoryCarrier()
        self.records = KeptRecords()
        self.kept = self.records.kept
        self.cluster = Cluster(node="a", secrets=[SECRET], make_registry=partial(Shared, store))
        self.peers = self.cluster.peers = Peers()  # type: ignore[assignment]
        registry = self.cluster.registry
        self.calls: Calls = make_calls(
            carrier=self.carrier,
            cluster=self.cluster,
            options=OPTIONS,
            records=self.records,
            is_current=registry.is_current,
            keep=registry.keep,
        )
        self.events: list[Any] = []
        self.rescue = Rescue(self.calls, self.cluster, Agent, lease_s=LEASE_S, events=self.events)

    def left(self, **differences: Any) -> Holding:
        """A process is gone, and this is what it has left of a call."""
        self.store.seen["gone"] = seen(GONE, 60.0)
        holding = self.store.calls[SID] = Holding(GONE, 1)
        now = time.time()
        talked: dict[str, Any] = {
            "kept_at": now, "created_at": now, "answered_at": now, "ends_at": now + 3600.0,
            "away": None, "machine": None, "tools": (),
        }  # fmt: skip
        left: CallState = msgspec.structs.replace(state(), **(talked | differences))
        self.store.states[SID] = left.encode()
        self.store.ended.discard(SID)
        return holding


@pytest.fixture
async def process(nursery):
    one = Process(Store())
    await nursery.start(one.calls.run)
    yield one
    for call in one.calls.register.live:
        call.end(EndReason.HUNG_UP)
    await wait_all_tasks_blocked()


async def test_a_call_is_taken_over_once_however_often_that_is_asked_for(
    autojump_clock, process, nursery
):
    holding = process.left()
    taken = []

    async def take() -> None:
        taken.append(await process.rescue.take(SID, holding))

    async with trio.open_nursery() as both:
        both.start_soon(take)
        both.start_soon(take)

    (call,) = process.calls.register.live
    assert sorted(taken, key=bool) == [None, call]
    assert call.ownership.generation == 2
    assert process.store.calls == {SID: Holding(process.cluster.me, 2)}


async def test_a_call_that_has_left_no_state_is_given_back(autojump_clock, process):
    holding = process.left()
    del process.store.states[SID]

    with pytest.raises(CallLost, match="state") as lost:
        await process.rescue.take(SID, holding)

    assert not lost.value.has_ended
    assert process.store.calls == {}
    assert process.calls.register.live == []


async def test_a_call_that_had_ended_before_its_process_was_gone_is_over(autojump_clock, process):
    holding = process.left()
    process.store.states[SID] = b""

    with pytest.raises(CallLost, match="ended") as lost:
        await process.rescue.take(SID, holding)

    assert lost.value.has_ended
    assert process.store.calls == {}
    assert process.calls.register.live == []


async def test_a_call_that_has_ended_here_is_not_begun_again(autojump_clock, process):
    holding = process.left()
    (await process.rescue.take(SID, holding)).end(EndReason.HUNG_UP)
    await wait_all_tasks_blocked()
    again = process.left()

    with pytest.raises(CallLost, match="over") as lost:
        await process.rescue.take(SID, again)

    assert lost.value.has_ended


async def test_what_was_sent_to_the_registry_is_seen_through(autojump_clock, process, nursery):
    holding = process.left()
    with trio.CancelScope() as scope:
        scope.cancel()
        await process.rescue.take(SID, holding)

    (call,) = process.calls.register.live
    assert process.store.calls[SID] == Holding(process.cluster.me, call.ownership.generation)


async def test_calls_of_one_that_is_silent_and_does_not_answer_are_connected_again(
    autojump_clock, process, nursery
):
    process.left()
    nursery.start_soon(process.rescue.run)
    await trio.sleep(SETTLE_S + 2.0)

    ((call_sid, ticket),) = process.carrier.reconnected
    call = process.calls.register.get_live(SID)
    assert call_sid == SID
    assert process.calls.tickets.of(call) == [ticket]
    assert process.peers.asked[:2] == ["gone", "gone"]
    assert process.carrier.hung_up == []


@dataclass
class Clearing:
    """A carrier that clears up what a process has left, and does not at once get it done."""

    outcomes: list[Any]
    asked: list[str] = field(default_factory=list)

    async def clear_up_after(self, process: str, is_somebodys: Any) -> bool:
        self.asked.append(process)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


async def test_what_a_process_has_left_at_the_carrier_is_cleared_up_until_it_is_done(
    autojump_clock, process, nursery
):
    process.left()
    process.store.calls.clear()  # it has left nothing that the registry knows of
    events = Clearing([False, CarrierError("it answers with 500"), True])
    process.events.append(events)
    nursery.start_soon(process.rescue.run)
    await trio.sleep(SETTLE_S + 20 * LEASE_S)

    assert events.asked == ["gone"] * 3


async def test_one_that_answers_is_left_alone(autojump_clock, process, nursery):
    holding = process.left()
    process.peers.answering.add("gone")
    nursery.start_soon(process.rescue.run)
    await trio.sleep(60.0)

    assert process.store.calls == {SID: holding}
    assert process.carrier.reconnected == []
    assert len(process.peers.asked) < 60.0 / LEASE_S


def test_whether_anybody_is_heard_of_is_not_known_while_the_registry_is_away():
    process = Process(Store())
    process.left()
    heard_of = [process.cluster.is_heard_of("gone", within_s=LEASE_S)]
    process.store.is_away = True
    heard_of.append(process.cluster.is_heard_of("gone", within_s=LEASE_S))

    assert heard_of == [False, None]


async def test_nobody_is_rescued_while_the_registry_is_away_or_just_back(
    autojump_clock, process, nursery
):
    process.left()
    process.store.is_away = True
    nursery.start_soon(process.rescue.run)
    await trio.sleep(60.0)
    process.store.is_away = False
    await trio.sleep(SETTLE_S - 0.5)
    before = list(process.peers.asked)
    await trio.sleep(3.0)

    assert before == []
    assert len(process.carrier.reconnected) == 1


async def test_nobody_is_rescued_just_after_the_registry_has_lost_what_was_in_it(
    autojump_clock, process, nursery
):
    nursery.start_soon(process.rescue.run)
    await trio.sleep(SETTLE_S + 1.0)
    before = process.rescue.lookout.has_settled()
    process.cluster.registry.losses += 1
    process.left()
    await trio.sleep(SETTLE_S - 0.5)
    asked = list(process.peers.asked)
    await trio.sleep(3.0)

    assert before
    assert asked == []
    assert len(process.carrier.reconnected) == 1


async def test_that_a_process_is_gone_is_said_once_however_long_its_calls_cannot_be_taken(
    autojump_clock, process, nursery, monkeypatch, capsys
):
    async def away(call_sid: str, holding: Holding) -> Seized | None:
        await trio.lowlevel.checkpoint()
        raise RegistryAway("it answers no seizure")

    process.left()
    monkeypatch.setattr(process.cluster.registry, "seize", away)
    nursery.start_soon(process.rescue.run)
    await trio.sleep(SETTLE_S + 10 * LEASE_S)
    for_long = capsys.readouterr().out.count("a process is gone")
    process.store.seen["gone"] = seen(GONE, 0.0)
    await trio.sleep(LEASE_S)
    process.store.seen["gone"] = seen(GONE, 60.0)
    await trio.sleep(10 * LEASE_S)

    assert len(process.peers.asked) > 10
    assert for_long == 1
    assert capsys.readouterr().out.count("a process is gone") == 1


async def test_what_a_registry_keeps_for_longer_is_not_ended_with_this_server(
    autojump_clock, process
):
    holding = process.left()
    process.calls.draining = True
    found = await process.rescue.end_left()

    assert not found
    assert process.store.calls == {SID: holding}


@dataclass
class Told:
    """Keeps how calls ended, and by whom that was told."""

    ends: list[tuple[str, int]] = field(default_factory=list)

    def is_wanted(self, kind: str, url: str | None) -> bool:
        return kind != "call.turn"

    def tell(self, kind: str, told: CallTold, url: str | None) -> None:
        if kind == "call.ended":
            self.ends.append((kind, told.generation))


async def over(call_sid: str, ticket: str) -> None:
    """The carrier's answer to whoever would connect a call again that is over."""
    raise CallNotInProgress("it is over", status=400, code=21220)


async def test_a_call_that_was_hung_up_meanwhile_ends_as_the_carrier_says(
    autojump_clock, process, nursery
):
    process.left()
    process.carrier.reconnect = over
    process.carrier.status = CallStatus.COMPLETED
    process.calls.register.events = told = Told()
    nursery.start_soon(process.rescue.run)
    await trio.sleep(SETTLE_S + 3.0)

    (written,) = process.kept
    assert told.ends == [("call.ended", FOUND_OVER)]
    assert (written["call_sid"], written["reason"]) == (SID, "caller-hung-up")
    assert written["generation"] == FOUND_OVER
    assert process.store.states[SID] == b""


async def test_a_call_that_rings_is_not_given_up_because_the_carrier_cannot_say_so(
    autojump_clock, process, nursery
):
    process.left(
        direction="outbound", answered_at=None, ends_at=None, status=CallStatus.RINGING,
        transcript=(), first_audio_s=None,
    )  # fmt: skip
    process.carrier.reconnect = over
    process.carrier.fetch_failures = [CarrierError("too many requests", status=429)]
    nursery.start_soon(process.rescue.run)
    await trio.sleep(SETTLE_S + 2.0)

    (call,) = process.calls.register.live
    assert process.carrier.fetch_failures == []
    assert call.end_reason is None
    assert process.carrier.hung_up == []


async def test_a_caller_who_is_being_transferred_is_left_there(autojump_clock, process, nursery):
    process.left(away=AwayState("sales", "+15005550123"))
    nursery.start_soon(process.rescue.run)
    await trio.sleep(SETTLE_S + 2.0)

    (call,) = process.calls.register.live
    assert call.end_reason is None
    assert process.carrier.reconnected == []


async def test_a_caller_whom_nobody_took_over_is_connected_again(autojump_clock, process, nursery):
    process.left(away=AwayState("sales", "+15005550123", has_failed=True))
    nursery.start_soon(process.rescue.run)
    await trio.sleep(SETTLE_S + 2.0)

    assert [call_sid for call_sid, _ in process.carrier.reconnected] == [SID]


async def test_a_caller_comes_back_to_a_process_that_knows_nothing_of_a_transfer(
    autojump_clock, process, nursery
):
    call = await process.rescue.take(SID, process.left())
    busy = TransferUpdate(SID, CallStatus.BUSY, wants_document=True)
    reply = await process.calls.update_transfer(busy, Agent())
    assert isinstance(reply, ConnectStream)
    await on_stream(process, nursery, reply.ticket)

    assert call.conversation.line is not None


async def test_a_call_of_which_the_carrier_had_said_that_it_is_over_ends_as_that_has_said(
    autojump_clock, process, nursery
):
    process.left(status=CallStatus.COMPLETED)
    nursery.start_soon(process.rescue.run)
    await trio.sleep(SETTLE_S + 2.0)

    (written,) = process.kept
    assert (written["reason"], written["status"]) == ("caller-hung-up", "completed")
    assert process.carrier.reconnected == process.carrier.hung_up == process.carrier.asked == []


async def test_whoever_comes_back_ends_in_silence_what_is_anothers_by_now(
    autojump_clock, process, nursery
):
    await process.rescue.take(SID, process.left())
    process.store.is_away = True
    nursery.start_soon(process.rescue.run)
    await trio.sleep(5.0)
    (call,) = process.calls.register.live
    lived = call.end_reason is None
    process.store.calls[SID] = Holding(GONE, 3)
    process.store.is_away = False
    await trio.sleep(1.0)

    assert lived
    assert call.end_reason is EndReason.MOVED
    assert process.calls.register.live == []
    assert process.carrier.hung_up == process.carrier.said == process.kept == []
    assert process.store.calls == {SID: Holding(GONE, 3)}


async def test_a_registry_that_is_away_is_tried_again_until_it_says_whose_a_call_is(
    autojump_clock, process, monkeypatch
):
    holding, answers = process.left(), [True, True, False]
    registry = process.cluster.registry
    seize = registry.seize

    async def late(call_sid: str, from_: Holding) -> Seized | None:
        process.store.is_away = answers.pop(0)
        return await seize(call_sid, from_)

    monkeypatch.setattr(registry, "seize", late)

    assert await process.rescue.take(SID, holding) is not None


async def test_a_call_that_has_ended_is_left_to_others_until_its_record_is_written(
    autojump_clock, process
):
    holding = process.left()
    call = await process.rescue.take(SID, holding)
    process.records.is_slow = True
    call.end(EndReason.HUNG_UP)
    await wait_all_tasks_blocked()
    before = process.store.states[SID]
    process.records.on_written(SID)

    assert before
    assert process.store.states[SID] == b""


async def ended_unwritten(process) -> dict[str, Any]:
    """A call has ended, and its record waits for the database; returns that."""
    call = await process.rescue.take(SID, process.left())
    process.records.is_slow = True
    call.end(EndReason.HUNG_UP, "a word")
    await wait_all_tasks_blocked()
    (written,) = process.kept
    return written


async def another_process(process, nursery) -> Process:
    """The first is gone, and this one is there."""
    one = Process(process.store)
    process.store.seen = {str(process.cluster.me): seen(process.cluster.me, 60.0)}
    await nursery.start(one.calls.run)
    return one


async def test_a_record_that_dies_with_its_process_is_written_as_it_is_by_who_takes_the_call_over(
    autojump_clock, process, nursery
):
    written = await ended_unwritten(process)
    one = await another_process(process, nursery)

    nursery.start_soon(one.rescue.run)
    await trio.sleep(SETTLE_S + 2.0)

    assert one.kept == [written]
    assert one.calls.register.live == []  # nobody talks with a model, or the carrier, for it
    assert one.calls.model.sessions == []
    assert one.carrier.reconnected == one.carrier.hung_up == one.carrier.asked == []
    assert one.calls.register.has_ended(SID)
    assert one.store.states[SID] == b""


async def test_what_a_carrier_says_late_of_a_call_changes_the_record_that_another_has_left(
    autojump_clock, process, nursery
):
    await ended_unwritten(process)
    one = await another_process(process, nursery)
    with pytest.raises(CallLost):
        await one.rescue.take(SID, one.store.calls[SID])

    one.calls.update_status(StatusUpdate(SID, CallStatus.COMPLETED, sequence_number=99))

    assert one.kept[-1]["status"] == "completed"
    assert one.calls.register.get_recent(SID).shown()["detail"] == "a word"


async def test_records_that_a_process_has_left_come_after_its_live_calls(
    autojump_clock, process, nursery, monkeypatch
):
    await ended_unwritten(process)
    left, seized = process.store.states[SID], []
    one = await another_process(process, nursery)
    for number in range(40):
        sid = f"CA{number}"
        process.store.calls[sid] = process.store.calls[SID]
        process.store.states[sid] = left if number % 2 else state().encode()
        process.store.ended |= {sid} if number % 2 else set()
    seize = one.cluster.registry.seize

    async def noting(call_sid: str, holding: Holding) -> Seized | None:
        seized.append(call_sid in one.store.ended)
        return await seize(call_sid, holding)

    monkeypatch.setattr(one.cluster.registry, "seize", noting)
    nursery.start_soon(one.rescue.run)
    await trio.sleep(SETTLE_S + 5.0)
    for call in one.calls.register.live:
        call.conversation.disown()

    assert seized == [False] * 20 + [True] * 21


async def test_a_record_that_cannot_be_read_is_given_up_and_told(
    autojump_clock, process, nursery, capsys
):
    await ended_unwritten(process)
    process.store.states[SID] = b"1{}"
    one = await another_process(process, nursery)

    with pytest.raises(CallLost):
        await one.rescue.take(SID, one.store.calls[SID])

    assert one.kept == []
    assert SID not in one.store.calls
    assert "record lost" in capsys.readouterr().out


async def test_whoever_finds_a_call_over_does_not_write_over_what_was_written_by_who_talked(
    autojump_clock, process, nursery
):
    """Its process has written the record, but could not say so: it was cut off, and then killed."""
    holding = process.left()
    process.carrier.reconnect = over
    process.carrier.status = CallStatus.COMPLETED
    with closing(Database(database_url("sqlite://"))) as database:
        database.write([record(1, call_sid=SID, detail="by who talked", generation=1)])

        await process.rescue._rescue(SID, holding)
        await wait_all_tasks_blocked()
        (found,) = process.kept
        database.write([fitted(found)])
        kept = database.get(SID)

    assert found["state"] == "ended"
    assert kept["detail"] == "by who talked"


async def test_a_call_that_ended_here_and_went_on_elsewhere_since_is_taken_up_again(
    autojump_clock, process
):
    await ended_unwritten(process)
    process.left()
    later = process.store.calls[SID] = Holding(GONE, 7)

    call = await process.rescue.take(SID, later)

    assert call is not None
    assert call.ownership.generation == 8
    assert not process.rescue.is_here("CA-else", 1)
    assert not process.calls.register.has_ended(SID)


# -- what goes wrong on the way --------------------------------------------------------------


def loses_answers(process, monkeypatch, count: int) -> None:
    """So many seizures are done, but not answered."""
    registry, left = process.cluster.registry, [count]
    seize = registry.seize

    async def unanswered(call_sid: str, from_: Holding) -> Seized | None:
        seized = await seize(call_sid, from_)
        if left[0] > 0:
            left[0] -= 1
            raise RegistryAway("the answer was lost")
        return seized

    monkeypatch.setattr(registry, "seize", unanswered)


@pytest.mark.parametrize("count", [1, 1_000])
async def test_a_seizure_that_was_done_but_not_answered_is_found_and_the_call_goes_on(
    autojump_clock, process, nursery, monkeypatch, count
):
    process.left()
    loses_answers(process, monkeypatch, count)
    nursery.start_soon(process.rescue.run)
    await trio.sleep(SETTLE_S + 4.0)
    monkeypatch.undo()
    await trio.sleep(10.0)

    ((call_sid, _),) = process.carrier.reconnected
    (call,) = process.calls.register.live
    holding = process.store.calls[SID]
    assert call_sid == SID
    assert holding.member == process.cluster.me
    assert call.ownership.generation == holding.generation


async def test_a_call_that_was_not_taken_up_for_a_bug_is_tried_again(
    autojump_clock, process, nursery, monkeypatch
):
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    process.left()
    with monkeypatch.context() as patch:
        patch.setattr(process.calls, "take_up", fail)
        nursery.start_soon(process.rescue.run)
        await trio.sleep(SETTLE_S + 2.0)
        before = [*process.calls.register.live]
    await trio.sleep(10.0)

    assert before == []
    assert len(process.calls.register.live) == 1
    assert len(process.carrier.reconnected) == 1


async def test_a_call_for_which_there_is_no_room_stays_where_it_is(
    autojump_clock, process, nursery
):
    holding = process.left()
    process.calls.draining = True
    with pytest.raises(CallRefused):
        await process.rescue.take(SID, holding)
    nursery.start_soon(process.rescue.run)
    await trio.sleep(SETTLE_S + 4.0)
    refused = dict(process.store.calls)
    process.calls.draining = False
    await trio.sleep(LEASE_S + 2.0)

    assert refused == {SID: holding}
    assert len(process.carrier.reconnected) == 1


async def test_a_call_that_was_seized_just_before_a_drain_is_taken_up(
    autojump_clock, process, monkeypatch
):
    holding, registry = process.left(), process.cluster.registry
    seize = registry.seize

    async def late(call_sid: str, from_: Holding) -> Seized | None:
        process.calls.draining = True
        return await seize(call_sid, from_)

    monkeypatch.setattr(registry, "seize", late)

    assert await process.rescue.take(SID, holding) is not None


async def test_a_call_of_ours_that_nobody_has_here_is_gone_on_with(autojump_clock, process):
    process.left()
    ours = process.store.calls[SID] = Holding(process.cluster.me, 2)
    known = process.rescue.is_here(SID, 2)
    call = await process.rescue.take(SID, ours)

    assert not known
    assert call is not None
    assert process.rescue.is_here(SID, 3)
    assert not process.rescue.is_here(SID, 4)


async def test_the_carrier_is_not_told_about_a_call_that_is_anothers_by_then(
    autojump_clock, process, nursery, monkeypatch
):
    async def is_current(call_sid: str, generation: int) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    process.left()
    nursery.start_soon(process.rescue.run)
    await trio.sleep(SETTLE_S - 1.0)
    monkeypatch.setattr(process.calls._new, "is_current", is_current)
    await trio.sleep(3.0)

    assert process.carrier.reconnected == []
    assert process.calls.register.live == []


async def test_a_carrier_that_asks_meanwhile_is_not_told_besides(
    autojump_clock, process, nursery, monkeypatch
):
    asked, answer = trio.Event(), trio.Event()

    async def is_current(call_sid: str, generation: int) -> bool:
        asked.set()
        await answer.wait()
        return True

    process.left()
    monkeypatch.setattr(process.calls._new, "is_current", is_current)
    nursery.start_soon(process.rescue.run)
    await asked.wait()
    reply = await process.calls.resume(SID, Agent())
    answer.set()
    await wait_all_tasks_blocked()

    assert isinstance(reply, ConnectStream)
    assert process.carrier.reconnected == []


async def test_the_carrier_is_not_told_of_a_call_that_ends_while_it_is_asked_whose_it_is(
    autojump_clock, process, nursery, monkeypatch
):
    asked, answer = trio.Event(), trio.Event()

    async def is_current(call_sid: str, generation: int) -> bool:
        if not asked.is_set():
            asked.set()
            await answer.wait()
        return True

    process.left()
    monkeypatch.setattr(process.calls._new, "is_current", is_current)
    nursery.start_soon(process.rescue.run)
    await asked.wait()
    (call,) = process.calls.register.live
    call.end(EndReason.HUNG_UP)
    await wait_all_tasks_blocked()
    was_over = call.is_over
    answer.set()
    await wait_all_tasks_blocked()

    assert was_over
    assert process.carrier.reconnected == []
    assert process.calls.tickets.of(call) == []
    assert process.calls.tickets._again == {}  # or the call would be kept for good


async def on_stream(process, nursery, ticket: str) -> MemoryMedia:
    """The carrier opens a stream with this ticket."""
    media = MemoryMedia()
    media.event(media.start(SID, ticket))
    nursery.start_soon(serve_stream, process.calls, media)
    await wait_all_tasks_blocked()
    return media


async def test_a_stream_that_the_carrier_asked_for_while_it_was_told_of_another_is_no_hang_up(
    autojump_clock, process, nursery
):
    told, answer = trio.Event(), trio.Event()
    reconnect = process.carrier.reconnect

    async def slow(call_sid: str, ticket: str) -> None:
        await reconnect(call_sid, ticket)
        told.set()
        await answer.wait()

    process.left()
    process.carrier.reconnect = slow
    nursery.start_soon(process.rescue.run)
    await told.wait()
    (call,), ((_, ticket),) = process.calls.register.live, process.carrier.reconnected
    reply = await process.calls.resume(SID, Agent())
    asked_for = await on_stream(process, nursery, reply.ticket)
    asked_for.hang_up()  # what a carrier says of a stream that it takes away, too
    await wait_all_tasks_blocked()
    replaced = call.end_reason
    brought = await on_stream(process, nursery, ticket)
    has_line = call.conversation.line is not None
    answer.set()
    await trio.sleep(REPLACES_S)
    brought.hang_up()
    await wait_all_tasks_blocked()

    assert replaced is None
    assert has_line
    assert call.end_reason is EndReason.CALLER_HUNG_UP


async def test_the_carrier_is_told_as_soon_as_somebody_can_say_whose_the_call_is(
    autojump_clock, process, nursery, monkeypatch
):
    answers = [RegistryAway("slow"), RegistryAway("slow"), None]

    async def is_current(call_sid: str, generation: int) -> bool:
        await trio.lowlevel.checkpoint()
        if answers and (away := answers.pop(0)) is not None:
            raise away
        return True

    process.left()
    monkeypatch.setattr(process.calls._new, "is_current", is_current)
    nursery.start_soon(process.rescue.run)
    await trio.sleep(SETTLE_S + 4.0)

    assert answers == []
    assert [call_sid for call_sid, _ in process.carrier.reconnected] == [SID]


async def test_no_turn_is_spent_on_calls_that_others_have_taken_meanwhile(
    autojump_clock, process, nursery, monkeypatch
):
    holding = process.left()
    left = {f"CA{number}": holding for number in range(10_000)} | {SID: holding}

    async def calls_of(member: Member) -> dict[str, Holding]:
        await trio.lowlevel.checkpoint()
        return left

    for call_sid in left.keys() - {SID}:
        process.store.calls[call_sid] = Holding(OTHER, 2)
    monkeypatch.setattr(process.cluster.registry, "calls_of", calls_of)
    nursery.start_soon(process.rescue.run)
    await trio.sleep(SETTLE_S + 2.0)

    assert [call_sid for call_sid, _ in process.carrier.reconnected] == [SID]


# -- calls that are lost, though they talk ---------------------------------------------------


@pytest.fixture
async def talking(process, nursery):
    """A call on the line here."""
    call = await process.rescue.take(SID, process.left())
    reply = await process.calls.resume(SID, Agent())
    media = MemoryMedia()
    media.event(media.start(SID, reply.ticket))
    nursery.start_soon(serve_stream, process.calls, media)
    nursery.start_soon(process.rescue.run)
    await trio.sleep(1.0)
    return call


async def test_a_call_that_another_has_asked_for_is_given_up_when_that_one_has_taken_it(
    autojump_clock, process, talking
):
    process.store.calls[SID] = Holding(OTHER, 3)
    await trio.sleep(5.0)
    unnoticed = talking.end_reason
    known = process.rescue.has(SID)
    await trio.sleep(1.0)

    assert unnoticed is None  # nobody asks for what nothing is wrong with
    assert known
    assert talking.end_reason is EndReason.MOVED
    assert not process.rescue.has(SID)


async def test_a_call_that_talks_is_looked_at_for_a_while_when_another_has_asked_for_it(
    autojump_clock, process, talking
):
    process.rescue.has(SID)
    await trio.sleep(1.0)
    process.store.calls[SID] = Holding(OTHER, 3)  # it had our answer too late
    await trio.sleep(1.0)

    assert talking.end_reason is EndReason.MOVED


async def test_a_call_that_the_registry_says_is_lost_ends_at_once(autojump_clock, process, talking):
    process.cluster.registry.on_lost(SID, 1)
    before = talking.end_reason
    process.cluster.registry.on_lost(SID, 2)

    assert before is None
    assert talking.end_reason is EndReason.MOVED


async def test_of_two_that_have_a_call_as_much_the_one_that_the_caller_talks_with_keeps_it(
    autojump_clock, process, nursery
):
    """The registry was away when it began, and the carrier asked both."""
    other, media = Process(process.store), MemoryMedia()
    await nursery.start(other.calls.run)
    replies = [
        await each.calls.answer(SID, "+15005550001", Agent(), generation=2)
        for each in (process, other)
    ]
    media.event(media.start(SID, replies[0].ticket))
    nursery.start_soon(serve_stream, process.calls, media)
    await wait_all_tasks_blocked()
    held = process.store.calls[SID]
    await other.rescue._check(other.calls.register.live)
    await wait_all_tasks_blocked()

    assert held == Holding(process.cluster.me, 3)
    assert [call.end_reason for call in process.calls.register.live] == [None]
    assert other.calls.register.live == []
    assert other.kept == []


async def test_a_stream_that_comes_when_its_call_ends_does_not_claim_it_anew(
    autojump_clock, process, monkeypatch
):
    asked, answer = trio.Event(), trio.Event()

    async def is_current(call_sid: str, generation: int) -> bool:
        asked.set()
        await answer.wait()
        return True

    monkeypatch.setattr(process.calls._new, "is_current", is_current)
    reply = await process.calls.answer(SID, "+15005550001", Agent(), generation=2)
    (call,) = process.calls.register.live
    call.end(EndReason.HUNG_UP)
    await asked.wait()  # it is not over yet
    media = MemoryMedia()
    media.event(media.start(SID, reply.ticket))
    claim = await process.calls.claim(media)
    answer.set()
    await call.finished.wait()

    assert claim.call is call
    assert call.ownership.generation == 2
    assert process.store.calls[SID] == Holding(process.cluster.me, 2)


async def is_found_out(process: Process, call: Call, by: str) -> None:
    """Whose a call is turns out, by one of those who ask."""
    if by == "rescue":
        await process.rescue._check([call])
    else:
        assert await call.fence.is_ours()


@pytest.mark.parametrize("by", ["rescue", "fence"])
async def test_a_call_whose_caller_comes_while_it_is_asked_whose_it_is_goes_on(
    autojump_clock, process, nursery, monkeypatch, by
):
    """Its generation is another one since, so what is said of the one before says nothing."""
    asked, answer = trio.Event(), trio.Event()
    registry = process.cluster.registry
    is_current = registry.is_current

    async def late(call_sid: str, generation: int) -> bool:
        asked.set()
        await answer.wait()
        return await is_current(call_sid, generation)

    monkeypatch.setattr(registry, "is_current", late)
    monkeypatch.setattr(process.calls._new, "is_current", late)
    reply = await process.calls.answer(SID, "+15005550001", Agent(), generation=2)
    (call,) = process.calls.register.live
    nursery.start_soon(is_found_out, process, call, by)
    await asked.wait()
    await on_stream(process, nursery, reply.ticket)
    answer.set()
    await wait_all_tasks_blocked()

    assert call.ownership.generation == 3
    assert call.end_reason is None
