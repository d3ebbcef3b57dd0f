"""Handing a caller over to somebody else, and having them back."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import trio
from prometheus_client import CollectorRegistry
from trio._core import _run
from trio.testing import wait_all_tasks_blocked

from server.agent import phrases
from server.agent.agent import Agent
from server.agent.builtin import hang_up, transfer_tool
from server.call.call import Call
from server.call.conversation import Stage
from server.call.handover import LATE_S, TAKEN_S
from server.call.options import CallOptions
from server.call.report.costs import Prices
from server.call.watch import NUDGES
from server.carrier import CallStatus, SendAudio, StatusUpdate, StreamStopped
from server.carrier.asterisk.stream import ABILITIES as UNSAID
from server.carrier.twilio.documents import dial_twiml
from server.carrier.twilio.reports import parse_transfer
from server.dialogue.endings import EndReason
from server.dialogue.remedies import Awaited, Patience
from server.errors import CarrierError, CarrierProtocolError
from server.metrics import Metrics
from server.model import (
    AgentAudio,
    AgentTranscript,
    GenerationComplete,
    ToolCall,
    ToolCallsRequested,
    TurnComplete,
)
from tests.support.fakes import MemoryCarrier, MemoryMedia, MemoryModel

pytestmark = pytest.mark.sockets

SECOND_PCM = b"\x10\x00" * 24_000
AUDIBLE_PCM = b"\x00\x10" * 24_000
SALES = "+15005550123"
PATIENT = Patience(silence_timeout_s=0.0, wrap_up_s=0.0, farewell_timeout_s=0.0)


class Talking:
    """A call on the line, with a hand on everything around it."""

    def __init__(
        self,
        nursery: trio.Nursery,
        agent: Agent | None = None,
        prices: Prices | None = None,
        **options,
    ) -> None:
        self.nursery = nursery
        self.carrier = MemoryCarrier()
        self.model = MemoryModel()
        self.media = MemoryMedia()
        self.call = Call(
            direction="inbound",
            number="+15005550006",
            agent=agent or Agent(greeting=""),
            carrier=self.carrier,
            model=self.model,
            metrics=Metrics(CollectorRegistry()),
            prices=prices,
            options=CallOptions(media_timeout_s=600.0, **options),
        )
        self.call.accept("CA1")
        self.outcome: CallStatus | Exception | None = None

    async def start(self) -> None:
        self.nursery.start_soon(self.call.run)
        self.connect(self.media)
        await wait_all_tasks_blocked()

    def connect(self, media: MemoryMedia) -> None:
        self.media = media
        self.nursery.start_soon(self.call.serve, media, media.start())

    def says(self, seconds: int, turn: int) -> None:
        session = self.model.session
        session.event(AgentAudio(SECOND_PCM * seconds, turn, trio.current_time()))
        session.event(GenerationComplete(turn))
        session.event(TurnComplete(turn, None))

    async def ask_for_transfer(self) -> None:
        try:
            self.outcome = await self.call.transfer("sales", SALES)
        except CarrierError as error:
            self.outcome = error

    async def come_back_unawaited(self) -> None:
        """A transfer that nobody waits for any more fails, and the caller is back."""
        with trio.move_on_after(1.0):
            await self.ask_for_transfer()
        self.media.hang_up()
        await wait_all_tasks_blocked()
        self.call.handover.report(CallStatus.NO_ANSWER)
        self.connect(MemoryMedia())

    async def comes_back(self) -> None:
        """Nobody takes the caller over, and they are back."""
        assert self.call.handover.report(CallStatus.NO_ANSWER)
        self.connect(MemoryMedia())
        await wait_all_tasks_blocked()

    async def transfer(self) -> None:
        """Ask for it, and have the carrier take the stream away."""
        self.nursery.start_soon(self.ask_for_transfer)
        await wait_all_tasks_blocked()
        self.media.hang_up()
        await wait_all_tasks_blocked()


@pytest.fixture
async def talking(nursery):
    talking = Talking(nursery)
    await talking.start()
    yield talking
    talking.call.end(EndReason.HUNG_UP)


async def test_the_caller_is_connected_after_they_have_heard_the_agent(autojump_clock, talking):
    talking.says(2, turn=1)
    await wait_all_tasks_blocked()
    talking.nursery.start_soon(talking.ask_for_transfer)
    await trio.sleep(1.9)
    assert talking.carrier.transferred == []

    talking.media.echo_marks()
    await wait_all_tasks_blocked()
    assert talking.carrier.transferred == [("CA1", SALES)]


async def test_somebody_who_takes_the_caller_over_ends_the_call_and_not_the_line(
    autojump_clock, talking
):
    await talking.transfer()
    assert not talking.call.is_over

    assert talking.call.handover.report(CallStatus.IN_PROGRESS) is False
    await talking.call.finished.wait()

    assert talking.call.end_reason == "transferred"
    assert talking.call.conversation.end_detail == "sales"
    assert talking.carrier.hung_up == []
    assert talking.model.session.closed


@pytest.mark.parametrize("status", ["busy", "no-answer", "failed", "canceled"])
async def test_a_caller_whom_nobody_took_over_comes_back_to_the_same_agent(
    autojump_clock, talking, status
):
    talking.says(1, turn=1)
    await wait_all_tasks_blocked()
    talking.media.echo_marks()
    await talking.transfer()
    await trio.sleep(20.0)
    assert talking.call.conversation.stage is Stage.AWAY

    assert talking.call.handover.report(CallStatus(status)) is True
    again = MemoryMedia()
    talking.connect(again)
    await wait_all_tasks_blocked()
    assert talking.outcome is CallStatus(status)
    assert talking.call.conversation.stage is not Stage.AWAY

    talking.says(1, turn=2)
    again.say(b"\x7f" * 160)
    await wait_all_tasks_blocked()
    assert len(talking.model.sessions) == 1
    assert len(talking.model.session.heard) == 640
    assert sum(isinstance(command, SendAudio) for command in again.commands) >= 1
    assert talking.call.conversation.notes.timings.answer_to_first_audio_s is not None

    again.hang_up()
    await talking.call.finished.wait()
    assert talking.call.end_reason == "caller-hung-up"


async def test_a_caller_who_is_back_before_their_old_line_has_ended_is_served_after_it(
    autojump_clock, talking
):
    talking.nursery.start_soon(talking.ask_for_transfer)
    await wait_all_tasks_blocked()
    talking.call.handover.report(CallStatus.BUSY)
    left, again = talking.media, MemoryMedia()
    talking.connect(again)
    await wait_all_tasks_blocked()
    assert talking.call.conversation.stage is Stage.AWAY

    left.hang_up()
    await wait_all_tasks_blocked()
    talking.says(1, turn=1)
    await wait_all_tasks_blocked()

    assert talking.outcome is CallStatus.BUSY
    assert left.commands == []
    assert sum(isinstance(command, SendAudio) for command in again.commands) >= 1
    assert "caller back" in [what for _, what, _ in talking.call.conversation.notes.timeline]


async def test_nothing_said_while_the_caller_is_away_is_played_when_they_are_back(
    autojump_clock, talking
):
    await talking.transfer()
    talking.says(5, turn=1)
    await wait_all_tasks_blocked()
    talking.call.handover.report(CallStatus.BUSY)
    again = MemoryMedia()
    talking.connect(again)
    await wait_all_tasks_blocked()

    assert again.commands == []


async def test_what_was_said_while_the_caller_was_away_is_unheard_in_the_record_and_to_a_new_model(
    autojump_clock, talking
):
    await talking.transfer()
    talking.model.session.event(AgentTranscript("Are you still there?", 1))
    talking.says(2, turn=1)
    await wait_all_tasks_blocked()
    while_away = talking.call.conversation.history()
    talking.call.handover.report(CallStatus.BUSY)
    talking.connect(MemoryMedia())
    await wait_all_tasks_blocked()
    (turn,) = talking.call.record().as_dict()["transcript"]

    assert (turn["text"], turn["heard_s"], turn["cut"]) == ("", 0.0, True)
    assert turn["unheard"] == "Are you still there?"
    assert while_away == talking.call.conversation.history() == []


async def test_of_a_turn_that_goes_on_while_the_caller_is_away_they_have_heard_what_was_before(
    autojump_clock, talking
):
    session = talking.model.session
    session.event(AgentTranscript("one two three four five six seven eight nine ten", 1))
    session.event(AgentAudio(SECOND_PCM * 12, 1, trio.current_time()))
    await wait_all_tasks_blocked()
    talking.nursery.start_soon(talking.ask_for_transfer)
    await trio.sleep(10.0)  # the carrier is asked
    session.event(AgentAudio(SECOND_PCM * 8, 1, trio.current_time()))
    await wait_all_tasks_blocked()
    assert talking.call.conversation.playout.is_playing(trio.current_time())  # what was sent before
    talking.media.hang_up()
    session.event(GenerationComplete(1))
    await wait_all_tasks_blocked()
    (turn,) = talking.call.record().as_dict()["transcript"]

    assert turn["heard_s"] == pytest.approx(10.0, abs=0.1)
    assert (turn["text"], turn["cut"]) == ("one two three four five", True)


async def test_what_a_transfer_cut_off_counts_as_unheard(autojump_clock, talking):
    talking.says(60, turn=1)  # longer than the farewell may take
    await wait_all_tasks_blocked()
    talking.nursery.start_soon(talking.ask_for_transfer)
    await trio.sleep(20.0)
    talking.media.hang_up()
    await wait_all_tasks_blocked()

    assert talking.call.record().as_dict()["agent_heard_s"] == pytest.approx(20.0, abs=0.1)


async def test_a_transfer_the_carrier_refuses_leaves_the_caller_where_they_are(
    autojump_clock, talking
):
    talking.carrier.transfer_failure = CarrierError("no", status=400, code=21211)
    await talking.ask_for_transfer()

    assert isinstance(talking.outcome, CarrierError)
    assert talking.call.conversation.stage is not Stage.AWAY
    talking.media.say(b"\x7f" * 160)
    await wait_all_tasks_blocked()
    assert len(talking.model.session.heard) == 640


async def test_a_caller_who_hangs_up_just_then_has_hung_up(autojump_clock, talking):
    talking.carrier.transfer_failure = CarrierError("over", status=400, code=21220)
    refused = talking.carrier.transfer

    async def slowly_refused(call_sid, number, *, ring_timeout_s):
        await trio.sleep(1.0)
        await refused(call_sid, number, ring_timeout_s=ring_timeout_s)

    talking.carrier.transfer = slowly_refused
    await talking.transfer()
    await talking.call.finished.wait()

    assert talking.call.end_reason == "caller-hung-up"


UNHEARD = CarrierError("Twilio did not answer within 10 s", outcome_unknown=True)


async def unheard_of(talking: Talking, *, stops_after_s: float, said: bool = True) -> None:
    """A transfer whose answer is lost; the stream ends so much later than it is missed, with a word
    of the carrier's or, as every one of Asterisk's, without."""
    talking.carrier.transfer_failure = UNHEARD
    if not said:
        talking.media.abilities = UNSAID
    talking.nursery.start_soon(talking.ask_for_transfer)
    await wait_all_tasks_blocked()
    await trio.sleep(stops_after_s)
    talking.media.event(StreamStopped(said=said))
    await wait_all_tasks_blocked()


@pytest.mark.parametrize("stops_after_s", [0.0, 1.0])
async def test_a_caller_who_was_transferred_though_nobody_said_so_comes_back(
    autojump_clock, talking, stops_after_s
):
    await unheard_of(talking, stops_after_s=stops_after_s)
    await trio.sleep(20.0)
    await talking.comes_back()

    assert talking.outcome is CallStatus.NO_ANSWER
    assert talking.call.conversation.stage is Stage.TALK


async def test_a_caller_who_was_taken_over_though_nobody_said_so_is_not_hung_up_on(
    autojump_clock, talking
):
    await unheard_of(talking, stops_after_s=0.5)
    talking.call.handover.report(CallStatus.IN_PROGRESS)
    await talking.call.finished.wait()

    assert talking.call.end_reason is EndReason.TRANSFERRED
    assert talking.carrier.hung_up == []


async def test_a_caller_whose_stream_goes_on_was_not_transferred(autojump_clock, talking):
    talking.carrier.transfer_failure = UNHEARD
    await talking.ask_for_transfer()

    assert talking.outcome is UNHEARD
    assert talking.call.conversation.stage is Stage.TALK
    assert not talking.call.handover.is_under_way


async def test_a_caller_who_hangs_up_when_a_transfer_may_have_been_made_has_hung_up(
    autojump_clock, talking
):
    await unheard_of(talking, stops_after_s=0.5)
    talking.call.update_status(StatusUpdate("CA1", CallStatus.COMPLETED, 9))
    await talking.call.finished.wait()

    assert talking.call.end_reason is EndReason.CALLER_HUNG_UP


LATE = [TAKEN_S + 0.5, TAKEN_S + LATE_S - 0.5]


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("stops_after_s", LATE)
async def test_a_caller_who_is_transferred_when_that_was_given_up_comes_back(
    autojump_clock, talking, stops_after_s, said
):
    await unheard_of(talking, stops_after_s=stops_after_s, said=said)
    refused, rings = talking.outcome, talking.call.conversation.stage
    await trio.sleep(25.0)
    await talking.comes_back()

    assert (refused, rings) == (UNHEARD, Stage.AWAY)
    assert talking.call.conversation.stage is Stage.TALK
    assert talking.model.session.texts[-1][1] == phrases.transfer_failed("sales")
    assert talking.call.end_reason is None


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("stops_after_s", LATE)
async def test_a_caller_who_is_taken_over_when_that_was_given_up_is_not_hung_up_on(
    autojump_clock, talking, stops_after_s, said
):
    await unheard_of(talking, stops_after_s=stops_after_s, said=said)
    await trio.sleep(20.0)
    talking.call.handover.report(CallStatus.IN_PROGRESS)
    await talking.call.finished.wait()

    assert talking.call.end_reason is EndReason.TRANSFERRED
    assert talking.carrier.hung_up == []


@pytest.mark.parametrize("said", [True, False])
async def test_a_caller_who_hangs_up_when_a_transfer_may_be_made_late_has_hung_up(
    autojump_clock, talking, said
):
    await unheard_of(talking, stops_after_s=TAKEN_S + 1.0, said=said)
    talking.call.update_status(StatusUpdate("CA1", CallStatus.COMPLETED, 9))
    await talking.call.finished.wait()

    assert talking.call.end_reason is EndReason.CALLER_HUNG_UP


@pytest.mark.parametrize("failure", [UNHEARD, CarrierError("no", status=400, code=21211)])
async def test_a_caller_who_hangs_up_when_no_transfer_can_be_made_any_more_has_hung_up(
    autojump_clock, talking, failure
):
    talking.carrier.transfer_failure = failure
    await talking.ask_for_transfer()
    await trio.sleep(LATE_S + 0.1 if failure is UNHEARD else 1.0)
    talking.media.hang_up()
    await wait_all_tasks_blocked()

    assert talking.call.end_reason is EndReason.CALLER_HUNG_UP


async def test_while_a_transfer_may_be_made_late_there_is_no_other(autojump_clock, talking):
    talking.carrier.transfer_failure = UNHEARD
    await talking.ask_for_transfer()
    talking.carrier.transfer_failure = None
    with pytest.raises(ValueError, match="cannot be transferred now"):
        await talking.call.transfer("sales", SALES)
    await trio.sleep(LATE_S)
    await talking.transfer()

    assert talking.carrier.transferred == [("CA1", SALES)]
    assert talking.call.conversation.stage is Stage.AWAY


@pytest.mark.parametrize("said", [True, False])
async def test_a_carrier_that_asks_what_is_next_has_made_no_late_transfer(
    autojump_clock, talking, said
):
    await unheard_of(talking, stops_after_s=TAKEN_S + 1.0, said=said)
    assert talking.call.handover.has_stayed()
    talking.connect(MemoryMedia())
    await wait_all_tasks_blocked()

    assert talking.call.conversation.stage is Stage.TALK
    assert talking.call.end_reason is None


@pytest.mark.parametrize("asks", ["before that", "never"])
async def test_a_caller_whose_stream_is_replaced_when_a_transfer_may_be_made_late_is_talked_to(
    autojump_clock, talking, asks
):
    talking.carrier.transfer_failure = UNHEARD
    talking.media.abilities = UNSAID
    await talking.ask_for_transfer()
    if asks == "before that":
        assert talking.call.handover.has_stayed()
    talking.media.event(StreamStopped(said=False))
    await wait_all_tasks_blocked()
    talking.connect(MemoryMedia())
    await trio.sleep(TAKEN_S + 0.1)
    talking.says(1, turn=1)
    await wait_all_tasks_blocked()

    assert talking.call.conversation.stage is Stage.TALK
    assert talking.call.end_reason is None
    assert any(isinstance(command, SendAudio) for command in talking.media.commands)


async def test_a_transfer_of_which_nothing_is_ever_heard_ends_the_call(autojump_clock, talking):
    await unheard_of(talking, stops_after_s=0.5)
    await talking.call.finished.wait()

    assert talking.call.end_reason is EndReason.TRANSFERRED
    assert talking.call.conversation.end_detail == "sales, without a report"


async def test_a_carrier_that_asks_what_is_next_has_made_no_transfer(autojump_clock, talking):
    await unheard_of(talking, stops_after_s=0.5)
    assert talking.call.handover.has_stayed()
    talking.connect(MemoryMedia())
    await wait_all_tasks_blocked()

    assert talking.outcome is CallStatus.FAILED
    assert talking.call.conversation.stage is Stage.TALK


async def back_before_it_is_known(talking: Talking) -> None:
    """The stream breaks while the carrier is told of a transfer, the caller comes back, and then
    the carrier's answer is lost."""

    async def unheard(call_sid, number, *, ring_timeout_s):
        await trio.sleep(9.0)
        raise UNHEARD

    talking.carrier.transfer = unheard
    await talking.transfer()
    assert talking.call.handover.has_stayed()


@pytest.mark.parametrize("comes_after_s", [1.0, 9.5])
async def test_a_caller_who_is_back_before_a_transfer_is_known_to_have_failed_is_talked_to(
    autojump_clock, talking, comes_after_s
):
    await back_before_it_is_known(talking)
    await trio.sleep(comes_after_s)
    talking.connect(MemoryMedia())
    await trio.sleep(9.0 - min(comes_after_s, 9.0) + TAKEN_S + 0.1)

    assert talking.call.conversation.stage is Stage.TALK
    assert talking.outcome is CallStatus.FAILED
    assert talking.call.end_reason is None


async def test_a_caller_who_is_back_is_transferred_all_the_same_if_the_carrier_does_it_then(
    autojump_clock, talking
):
    await back_before_it_is_known(talking)
    await trio.sleep(1.0)
    talking.connect(MemoryMedia())
    await trio.sleep(8.5)
    talking.media.hang_up()
    await trio.sleep(20.0)
    rings = talking.call.conversation.stage, talking.call.end_reason
    talking.call.handover.report(CallStatus.IN_PROGRESS)
    await talking.call.finished.wait()

    assert rings == (Stage.AWAY, None)
    assert talking.call.end_reason is EndReason.TRANSFERRED
    assert talking.carrier.hung_up == []


async def test_a_caller_who_hangs_up_while_it_rings_ends_the_call(autojump_clock, talking):
    await talking.transfer()
    talking.call.update_status(StatusUpdate("CA1", CallStatus.COMPLETED, 9))
    await talking.call.finished.wait()

    assert talking.call.end_reason == "caller-hung-up"


async def test_a_call_whose_caller_is_elsewhere_has_nobody_to_say_goodbye_to(
    autojump_clock, talking
):
    await talking.transfer()
    began = trio.current_time()
    talking.call.farewell.begin(EndReason.DRAINED, "restart")
    await talking.call.finished.wait()

    assert (talking.call.end_reason, talking.call.record().detail) == ("drained", "restart")
    assert trio.current_time() == began
    assert talking.model.session.texts == []


LIMITED = {
    "max_duration_s": EndReason.MAX_DURATION,
    "max_cost_usd": EndReason.COST_CAP,
    "a server that stops": EndReason.DRAINED,
}


@pytest.mark.parametrize("limit", LIMITED)
async def test_a_limit_of_the_agents_time_takes_nobody_away_from_a_phone_that_rings(
    autojump_clock, nursery, limit
):
    limits = {"max_duration_s": 60.0, "max_cost_usd": 0.1}
    options = {limit: limits[limit]} if limit in limits else {}
    prices = Prices(carrier_minute_usd=0.1)
    talking = Talking(nursery, prices=prices, patience=PATIENT, **options)
    await talking.start()
    await trio.sleep(40.0)
    await talking.transfer()
    if limit not in limits:
        talking.call.farewell.begin(EndReason.DRAINED)
    await talking.call.finished.wait()
    noted = [what for _, what, _ in talking.call.conversation.notes.timeline]

    assert talking.call.end_reason is LIMITED[limit]
    assert talking.carrier.hung_up == []
    assert "left to the transfer" in noted


async def test_a_caller_who_comes_back_when_the_time_is_up_is_hung_up_on(autojump_clock, nursery):
    talking = Talking(nursery, patience=PATIENT, max_duration_s=60.0)
    await talking.start()
    await trio.sleep(55.0)
    await talking.transfer()
    talking.call.handover.report(CallStatus.BUSY)
    await talking.call.finished.wait()

    assert talking.call.end_reason is EndReason.MAX_DURATION
    assert talking.carrier.hung_up == ["CA1"]


async def test_an_agent_that_hangs_up_while_it_rings_leaves_time_for_an_answer(
    autojump_clock, talking
):
    await talking.transfer()
    talking.call.farewell.leave_it_to_the_agent(EndReason.AGENT_HUNG_UP)
    await trio.sleep(1.0)
    assert not talking.call.is_over

    talking.call.handover.report(CallStatus.IN_PROGRESS)
    await talking.call.finished.wait()

    assert talking.call.end_reason is EndReason.TRANSFERRED
    assert talking.carrier.hung_up == []


async def test_an_agent_that_hangs_up_while_it_rings_for_long_leaves_the_caller_to_come_back(
    autojump_clock, talking
):
    await talking.transfer()
    talking.call.hang_up_when_heard()
    await trio.sleep(25.0)
    assert talking.call.handover.report(CallStatus.NO_ANSWER)
    talking.connect(MemoryMedia())
    await trio.sleep(20.0)

    assert not talking.call.is_over
    assert talking.outcome is CallStatus.NO_ANSWER  # as the agent is told


async def test_an_agent_that_transfers_and_hangs_up_at_once_takes_its_leave_by_that(
    autojump_clock, talking
):
    talking.says(2, turn=1)  # "I'll connect you": the transfer waits until it is heard
    await wait_all_tasks_blocked()
    talking.nursery.start_soon(talking.ask_for_transfer)
    await wait_all_tasks_blocked()
    assert talking.call.hang_up_when_heard()
    await trio.sleep(2.0)
    talking.media.echo_marks()
    await wait_all_tasks_blocked()
    assert talking.carrier.transferred == [("CA1", SALES)]
    talking.media.hang_up()
    await wait_all_tasks_blocked()

    talking.call.handover.report(CallStatus.IN_PROGRESS)
    await talking.call.finished.wait()

    assert talking.call.end_reason is EndReason.TRANSFERRED
    assert talking.carrier.hung_up == []


class Order(Random):
    """Has trio run the tasks of a pass in the order in which they became ready, or the other."""

    def __init__(self, *, is_reversed: bool) -> None:
        super().__init__(0)
        self._is_reversed = is_reversed

    def random(self) -> float:
        return 1.0 if self._is_reversed else 0.0  # it takes them from the end

    def shuffle(self, batch: list) -> None:
        if not self._is_reversed:
            batch.reverse()


@pytest.mark.parametrize("is_reversed", [False, True])
@pytest.mark.parametrize("names", [("hang_up", "transfer"), ("transfer", "hang_up")])
async def test_whoever_is_to_be_transferred_is_not_hung_up_on_by_the_same_message(
    names, is_reversed, autojump_clock, nursery, monkeypatch
):
    tools = (hang_up, transfer_tool({"sales": SALES}))
    talking = Talking(nursery, Agent(greeting="", tools=tools))
    await talking.start()
    monkeypatch.setattr(_run, "_r", Order(is_reversed=is_reversed))
    calls = [
        ToolCall(name, name, {"destination": "sales"} if name == "transfer" else {})
        for name in names
    ]
    talking.model.session.event(ToolCallsRequested(tuple(calls), 1))
    await trio.sleep(30.0)
    transferred = list(talking.carrier.transferred)
    talking.media.hang_up()
    await wait_all_tasks_blocked()
    talking.call.handover.report(CallStatus.IN_PROGRESS)
    await talking.call.finished.wait()

    assert transferred == [("CA1", SALES)]
    assert talking.call.end_reason is EndReason.TRANSFERRED
    assert talking.carrier.hung_up == []


async def test_without_any_report_the_caller_counts_as_taken_over(autojump_clock, talking):
    await talking.transfer()
    await talking.call.finished.wait()

    assert talking.call.end_reason == "transferred"


async def test_a_caller_is_back_though_it_rang_longer_than_wanted_and_the_carrier_was_slow_to_ask(
    autojump_clock, talking
):
    await talking.transfer()
    await trio.sleep(talking.call.conversation.options.transfer_ring_timeout_s + 5.0 + 14.0)
    await talking.comes_back()

    assert talking.outcome is CallStatus.NO_ANSWER
    assert talking.call.conversation.stage is Stage.TALK


async def test_a_caller_whose_stream_is_back_is_waited_for_until_they_hear_it(
    autojump_clock, talking
):
    await talking.transfer()
    assert talking.call.handover.report(CallStatus.NO_ANSWER)
    await trio.sleep(10.0)
    media = MemoryMedia()
    media.joins_s = 12.0
    talking.connect(media)
    await trio.sleep(12.1)

    assert talking.outcome is CallStatus.NO_ANSWER
    assert talking.call.conversation.stage is Stage.TALK
    assert talking.call.end_reason is None


async def test_a_caller_who_does_not_come_back_is_gone(autojump_clock, talking):
    await talking.transfer()
    talking.call.handover.report(CallStatus.NO_ANSWER)
    await talking.call.finished.wait()

    assert talking.call.end_reason == "caller-gone"


async def test_a_transfer_nobody_waits_for_any_more_is_told_to_the_model(autojump_clock, talking):
    await talking.come_back_unawaited()
    await wait_all_tasks_blocked()

    assert talking.model.session.texts[-1][1] == phrases.transfer_failed("sales")


async def test_a_model_that_says_nothing_of_a_transfer_that_failed_is_asked_to(
    autojump_clock, nursery
):
    talking = Talking(nursery, patience=replace(PATIENT, reply_timeout_s=6.0))
    await talking.start()
    await talking.come_back_unawaited()
    await trio.sleep(6.5)
    texts = [text for _, text in talking.model.session.texts]
    talking.call.end(EndReason.HUNG_UP)

    assert texts == [phrases.transfer_failed("sales"), NUDGES[Awaited.ANSWER]]


@pytest.mark.parametrize("begun", ["before", "while away"])
async def test_what_is_dropped_of_a_turn_that_was_cut_when_the_caller_left_is_no_answer(
    autojump_clock, nursery, begun
):
    patience = replace(PATIENT, reply_timeout_s=6.0, stall_timeout_s=60.0)
    talking = Talking(nursery, patience=patience)
    await talking.start()
    session = talking.model.session
    if begun == "before":  # and not complete: it is waited for for ten seconds
        session.event(AgentAudio(AUDIBLE_PCM, 1, trio.current_time()))
    with trio.move_on_after(10.1):
        await talking.ask_for_transfer()
    talking.media.hang_up()
    await wait_all_tasks_blocked()
    if begun == "while away":
        session.event(AgentAudio(AUDIBLE_PCM, 1, trio.current_time()))
    talking.call.handover.report(CallStatus.NO_ANSWER)
    talking.connect(MemoryMedia())
    await wait_all_tasks_blocked()
    session.event(AgentAudio(AUDIBLE_PCM, 1, trio.current_time()))
    session.event(GenerationComplete(1))
    session.event(TurnComplete(1, None))
    await trio.sleep(6.5)
    texts = [text for _, text in session.texts]
    talking.call.end(EndReason.HUNG_UP)

    assert talking.media.payload == b""
    assert texts == [phrases.transfer_failed("sales"), NUDGES[Awaited.ANSWER]]


async def test_a_transfer_that_is_withdrawn_in_time_never_happens(autojump_clock, talking):
    talking.says(2, turn=1)
    await wait_all_tasks_blocked()
    with trio.move_on_after(1.0):
        await talking.ask_for_transfer()
    talking.media.echo_marks()
    await trio.sleep(1.0)

    assert talking.carrier.transferred == []
    assert talking.call.conversation.stage is not Stage.AWAY


async def test_only_one_transfer_at_a_time(autojump_clock, talking):
    await talking.transfer()

    with pytest.raises(ValueError, match="cannot be transferred"):
        await talking.call.transfer("support", SALES)


async def test_a_report_that_comes_twice_changes_nothing(autojump_clock, talking):
    await talking.transfer()
    assert talking.call.handover.report(CallStatus.BUSY) is True
    assert talking.call.handover.report(CallStatus.BUSY) is True
    talking.connect(MemoryMedia())
    await wait_all_tasks_blocked()

    assert talking.call.handover.report(CallStatus.BUSY) is False
    assert talking.call.handover.report(CallStatus.COMPLETED) is False
    assert talking.call.end_reason is None


@pytest.mark.parametrize(
    "repeated", [CallStatus.BUSY, CallStatus.IN_PROGRESS, CallStatus.COMPLETED]
)
async def test_what_was_said_of_one_transfer_is_not_taken_for_the_next(
    autojump_clock, talking, repeated
):
    await talking.transfer()
    assert talking.call.handover.report(CallStatus.BUSY, "CA-first") is True
    assert talking.call.handover.report(CallStatus.BUSY, "CA-first") is True
    talking.connect(MemoryMedia())
    await wait_all_tasks_blocked()
    await talking.transfer()

    assert talking.call.handover.report(CallStatus(repeated), "CA-first") is False
    assert talking.call.end_reason is None
    assert talking.call.handover.is_elsewhere
    assert talking.call.handover.report(CallStatus.BUSY, "CA-second") is True


def test_the_document_dials_with_our_number_and_asks_until_it_knows_what_came_of_it():
    patience = "#rc=5&amp;rp=ct,rt,5xx&amp;ct=2000&amp;rt=3000"
    document = dial_twiml(
        SALES,
        caller_id="+15005550006",
        ring_timeout_s=19.5,
        status_url="https://phone.example/transfer-status",
    )

    assert document == (
        '<?xml version="1.0" encoding="UTF-8"?><Response>'
        f'<Dial action="https://phone.example/transfer-status{patience}" '
        'callerId="+15005550006" method="POST" timeout="20">'
        f'<Number statusCallback="https://phone.example/transfer-status{patience}" '
        'statusCallbackEvent="answered" statusCallbackMethod="POST">+15005550123</Number>'
        "</Dial></Response>"
    )


def test_both_kinds_of_report_name_the_callers_own_call():
    caller, other = "CA" + "1" * 32, "CA" + "2" * 32
    action = parse_transfer({"CallSid": caller, "DialCallStatus": "answered", "DialCallSid": other})
    leg = parse_transfer({"CallSid": other, "ParentCallSid": caller, "CallStatus": "in-progress"})

    assert (action.call_sid, action.status, action.wants_document) == (caller, "completed", True)
    assert (leg.call_sid, leg.status, leg.wants_document) == (caller, "in-progress", False)


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"CallSid": "CA" + "1" * 32},
        {"CallSid": "CA" + "1" * 32, "DialCallStatus": "dancing"},
        {"CallSid": "CA" + "2" * 32, "CallStatus": "in-progress"},
        {"CallSid": "CA1", "DialCallStatus": "busy"},
        {"CallSid": "C" * 100, "DialCallStatus": "busy"},
    ],
)
def test_what_is_no_report_on_a_transfer_is_refused(form):
    with pytest.raises(CarrierProtocolError):
        parse_transfer(form)
