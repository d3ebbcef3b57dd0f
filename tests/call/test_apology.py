"""Nobody is hung up on without a word: who is told that the model has failed, and how often."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from server.agent.agent import Agent
from server.call.call import Call
from server.call.options import CallOptions
from server.carrier import CallStatus, StatusUpdate, TransferUpdate
from server.carrier.webhooks import ConnectStream, EndCall, Reply, SayAndEndCall
from server.dialogue.endings import EndReason
from server.errors import CallNotInProgress, CarrierError, ModelError
from server.model.gemini.faults import account_refused
from server.refusal import Kind
from tests.support.fakes import MemoryCarrier, MemoryMedia, MemoryModel
from tests.support.switchboards import make_calls, serve_stream

pytestmark = pytest.mark.sockets

NUMBER = "+15005550006"
REFUSED = account_refused(Kind.CREDITS, "no", code=1011, reason="Credits are depleted.")
LOST = ModelError("gone", code=1006, reason="", retryable=True)
EARLY = CallNotInProgress("Call is not in-progress. Cannot redirect.", status=400, code=21220)


@dataclass
class FailingCarrier(MemoryCarrier):
    """Fails to say sorry in the ways that the test names, one after the other."""

    failures: list[CarrierError] = field(default_factory=list)
    asked_at: list[float] = field(default_factory=list)
    takes_s: float = 0.0

    async def say_and_hang_up(self, call_sid: str, text: str, language: str) -> None:
        self.asked_at.append(trio.current_time())
        await trio.sleep(self.takes_s)
        if self.failures:
            raise self.failures.pop(0)
        await super().say_and_hang_up(call_sid, text, language)


def is_apology(reply: Reply) -> bool:
    return isinstance(reply, SayAndEndCall) and "I am sorry" in reply.text


class Rig:
    """Calls whose model refuses, with their peers at hand."""

    def __init__(self, nursery: trio.Nursery, *failures: CarrierError, **options) -> None:
        self.nursery = nursery
        self.carrier = FailingCarrier(failures=list(failures))
        self.model = MemoryModel(failure=REFUSED, connect_s=0.1)
        self.calls = make_calls(
            carrier=self.carrier,
            model=self.model,
            limits={"quota_pause_s": 0.0},
            options=CallOptions(**options),
        )

    async def start(self) -> None:
        await self.nursery.start(self.calls.run)

    async def answer(self, agent: Agent | None = None) -> tuple[Call, Reply]:
        reply = await self.calls.answer("CA7", NUMBER, agent or Agent())
        call = self.calls.register.get("CA7")
        assert call is not None
        return call, reply

    def connect(self, reply: Reply, call_sid: str = "CA7") -> MemoryMedia:
        assert isinstance(reply, ConnectStream)
        media = MemoryMedia()
        media.event(media.start(call_sid, reply.ticket))
        self.nursery.start_soon(serve_stream, self.calls, media)
        return media

    @property
    def apologies(self) -> int:
        return len(self.carrier.said)


@pytest.fixture
async def rig(nursery):
    rig = Rig(nursery)
    await rig.start()
    return rig


async def failing(nursery, *failures: CarrierError, **options) -> Rig:
    rig = Rig(nursery, *failures, **options)
    await rig.start()
    return rig


# ------------------------------------------------------------------------------------------
# Callers


async def test_a_caller_whose_stream_has_not_come_yet_is_told(autojump_clock, rig):
    call, _ = await rig.answer()
    await call.finished.wait()

    assert call.end_reason is EndReason.MODEL_REFUSED
    assert rig.apologies == 1
    assert rig.carrier.hung_up == []  # the carrier does that when it has spoken
    assert trio.current_time() < 1.0


async def test_the_apology_is_in_the_agents_words_and_language(autojump_clock, rig):
    call, _ = await rig.answer(Agent(apology="Perdón.", language="es-MX"))
    await call.finished.wait()

    assert rig.carrier.said == [("Perdón.", "es-MX")]


async def test_a_bug_of_ours_is_apologised_for_as_well(autojump_clock, rig):
    rig.model.failure = ValueError("a bug")
    call, _ = await rig.answer()
    await call.finished.wait()

    assert call.end_reason is EndReason.ERROR
    assert rig.apologies == 1


async def test_an_update_that_overtakes_the_answer_is_made_again(autojump_clock, nursery):
    rig = await failing(nursery, EARLY, EARLY)
    call, _ = await rig.answer()
    await call.finished.wait()

    assert len(rig.carrier.asked_at) == 3
    assert rig.apologies == 1
    assert rig.carrier.hung_up == []


async def test_a_stream_that_comes_meanwhile_makes_it_again_at_once(autojump_clock, nursery):
    rig = await failing(nursery, EARLY)
    call, reply = await rig.answer()
    await trio.sleep(0.15)  # the model has refused at 0.1, and the carrier was asked then
    media = rig.connect(reply)
    await call.finished.wait()

    assert rig.carrier.asked_at == pytest.approx([0.1, 0.15])
    assert rig.apologies == 1
    assert media.closed is not None


async def test_a_stream_that_comes_while_it_is_being_said_is_closed_and_nothing_said_twice(
    autojump_clock, rig
):
    rig.carrier.takes_s = 0.3
    call, reply = await rig.answer()
    await trio.sleep(0.2)
    media = rig.connect(reply)
    await call.finished.wait()

    assert rig.apologies == 1
    assert media.closed is not None


@pytest.mark.parametrize(
    "failure",
    [
        CarrierError("busy", status=429, code=20429),
        CarrierError("down", status=503, outcome_unknown=True),
        CarrierError("not reached"),
    ],
)
async def test_a_request_that_has_done_nothing_is_made_again(autojump_clock, nursery, failure):
    rig = await failing(nursery, failure)
    call, _ = await rig.answer()
    await call.finished.wait()

    assert rig.apologies == 1


async def test_a_request_that_may_have_done_it_is_not_made_again(autojump_clock, nursery):
    rig = await failing(nursery, CarrierError("no answer", outcome_unknown=True))
    call, _ = await rig.answer()
    await call.finished.wait()

    assert len(rig.carrier.asked_at) == 1
    assert rig.carrier.hung_up == ["CA7"]


async def test_a_carrier_that_fails_every_time_is_told_to_hang_up_within_a_bound(
    autojump_clock, nursery
):
    rig = await failing(nursery, *[EARLY] * 100, close_timeout_s=3.0)
    call, _ = await rig.answer()
    await call.finished.wait()

    assert len(rig.carrier.asked_at) == 4
    assert rig.carrier.hung_up == ["CA7"]
    assert trio.current_time() < 3.2


async def test_a_carrier_that_does_not_answer_holds_nothing_up(autojump_clock, rig):
    rig.carrier.takes_s = 1_000.0
    call, _ = await rig.answer()
    await call.finished.wait()

    assert trio.current_time() == pytest.approx(0.1 + 2.5)


async def test_a_carrier_that_does_not_answer_is_told_when_it_asks_after_its_stream(
    autojump_clock, rig
):
    rig.model.failure, rig.carrier.takes_s = None, 1_000.0
    call, reply = await rig.answer()
    media = rig.connect(reply)
    await trio.sleep(1.0)
    rig.model.session.event(LOST)
    await call.finished.wait()
    await wait_all_tasks_blocked()

    assert media.closed is not None
    assert is_apology(await rig.calls.resume("CA7", Agent()))


async def fails_while_asked_after_its_stream(
    rig: Rig, *, is_heard: bool = False
) -> tuple[Call, Reply]:
    """A call whose model is lost while its stream, of which the carrier has asked, is not over.

    Args:
        rig: Has the call.
        is_heard: Whether it is still heard just before.
    """
    rig.model.failure = None
    call, reply = await rig.answer(Agent(greeting=""))
    media = rig.connect(reply)
    await trio.sleep(1.0)
    media.say(bytes(160))
    replies: list[Reply] = []

    async def ask() -> None:
        replies.append(await rig.calls.resume("CA7", Agent()))

    rig.nursery.start_soon(ask)
    await trio.sleep(0.5)
    if is_heard:
        await trio.sleep(0.3)
        media.say(bytes(160))
    assert not replies
    rig.model.session.event(LOST)
    await trio.sleep(1.0)
    (answer,) = replies
    return call, answer


REFUSES = CarrierError("no", status=400, code=20001)
UNSURE = CarrierError("no answer", outcome_unknown=True)


@pytest.mark.parametrize("takes_s", [0.1, 0.7])
@pytest.mark.parametrize("failures", [(REFUSES,), (UNSURE,)])
async def test_a_call_that_fails_just_when_the_carrier_asks_after_its_stream_is_apologised_for(
    autojump_clock, nursery, takes_s, failures
):
    rig = await failing(nursery, *failures)
    rig.carrier.takes_s = takes_s
    call, answer = await fails_while_asked_after_its_stream(rig)
    await call.finished.wait()
    await wait_all_tasks_blocked()

    assert call.end_reason is EndReason.MODEL_LOST
    assert is_apology(answer)
    assert rig.carrier.hung_up == []  # it would be cut short
    assert is_apology(await rig.calls.resume("CA7", Agent()))  # it has not got the answer


async def test_a_call_is_hung_up_on_if_the_carrier_asks_after_a_stream_that_is_not_over(
    autojump_clock, nursery
):
    rig = await failing(nursery, REFUSES)
    call, answer = await fails_while_asked_after_its_stream(rig, is_heard=True)
    await call.finished.wait()

    assert answer == EndCall()
    assert rig.carrier.hung_up == ["CA7"]


async def test_an_apology_that_the_carrier_asks_for_while_it_is_told_is_not_cut_short(
    autojump_clock, nursery
):
    rig = await failing(nursery, UNSURE)
    rig.carrier.takes_s = 0.7
    call, answer = await fails_while_asked_after_its_stream(rig)
    await call.finished.wait()

    assert is_apology(answer)
    assert rig.carrier.hung_up == []


async def test_an_apology_that_the_carrier_takes_twice_is_one(autojump_clock, nursery):
    rig = await failing(nursery)
    rig.carrier.takes_s = 0.7
    call, answer = await fails_while_asked_after_its_stream(rig)
    await call.finished.wait()

    assert is_apology(answer)
    assert [what for _, what, _ in call.conversation.notes.timeline].count("apology") == 1


async def test_a_call_of_which_the_carrier_was_told_while_it_asked_is_ended(
    autojump_clock, nursery
):
    rig = await failing(nursery)
    _, answer = await fails_while_asked_after_its_stream(rig)

    assert (rig.apologies, answer) == (1, EndCall())


async def test_a_caller_who_has_gone_is_not_apologised_to(autojump_clock, nursery):
    rig = await failing(nursery, EARLY, EARLY, EARLY)
    call, _ = await rig.answer()
    await trio.sleep(0.2)
    rig.calls.update_status(StatusUpdate("CA7", CallStatus.COMPLETED, 1))
    await call.finished.wait()

    assert len(rig.carrier.asked_at) == 1
    assert rig.apologies == 0


async def test_a_webhook_that_comes_again_is_answered_with_the_apology(autojump_clock, nursery):
    rig = await failing(nursery, *[EARLY] * 100)  # the carrier has never got the first answer
    call, _ = await rig.answer()
    await trio.sleep(0.2)

    replies = [await rig.calls.answer("CA7", NUMBER, Agent()) for _ in range(2)]
    await call.finished.wait()
    await wait_all_tasks_blocked()
    replies.append(await rig.calls.answer("CA7", NUMBER, Agent()))

    assert all(is_apology(reply) for reply in replies)
    assert rig.carrier.hung_up == []  # it would be cut short
    assert len(rig.carrier.asked_at) == 1


async def test_one_that_comes_after_the_end_is_told_what_it_was_not_told_before(
    autojump_clock, nursery
):
    rig = await failing(nursery, *[EARLY] * 100)
    call, _ = await rig.answer()
    await call.finished.wait()
    await wait_all_tasks_blocked()

    assert is_apology(await rig.calls.answer("CA7", NUMBER, Agent()))


async def test_who_was_told_is_not_told_again(autojump_clock, rig):
    call, _ = await rig.answer()
    await call.finished.wait()
    await wait_all_tasks_blocked()

    assert await rig.calls.answer("CA7", NUMBER, Agent()) == EndCall()


async def test_a_drain_tells_a_caller_who_has_heard_nothing_yet(autojump_clock, nursery):
    rig = await failing(nursery)
    rig.model.failure = None
    call, _ = await rig.answer()
    await trio.sleep(0.2)
    await rig.calls.drain(0.0)

    assert call.end_reason is EndReason.DRAINED
    assert rig.apologies == 1


async def test_a_caller_who_is_hung_up_on_by_request_is_not_apologised_to(autojump_clock, rig):
    rig.model.failure = None
    call, _ = await rig.answer()
    call.end(EndReason.HUNG_UP)
    await call.finished.wait()

    assert rig.apologies == 0
    assert rig.carrier.hung_up == ["CA7"]


# ------------------------------------------------------------------------------------------
# People we call


async def test_a_phone_that_still_rings_stops_ringing_and_that_is_all(autojump_clock, rig):
    call = await rig.calls.place(NUMBER, Agent())
    rig.calls.update_status(StatusUpdate("CA1", CallStatus.RINGING, 1))
    await call.finished.wait()

    assert rig.carrier.hung_up == ["CA1"]
    assert rig.carrier.asked_at == []


async def test_who_has_just_answered_is_told_before_there_is_a_stream(autojump_clock, rig):
    call = await rig.calls.place(NUMBER, Agent())
    rig.calls.update_status(StatusUpdate("CA1", CallStatus.IN_PROGRESS, 2))
    await call.finished.wait()

    assert rig.apologies == 1
    assert rig.carrier.hung_up == []


# ------------------------------------------------------------------------------------------
# Callers who are with somebody else


async def away(rig: Rig, reason: EndReason = EndReason.MODEL_LOST) -> Call:
    """A caller whom the carrier is connecting with somebody else when the call ends."""
    rig.model.failure = None
    call, reply = await rig.answer(Agent(greeting=""))
    media = rig.connect(reply)
    await trio.sleep(0.2)
    rig.nursery.start_soon(call.transfer, "sales", "+15005550123")
    await wait_all_tasks_blocked()
    media.hang_up()
    await wait_all_tasks_blocked()
    if reason is EndReason.MODEL_LOST:
        rig.model.session.event(LOST)
    else:
        call.end(reason)
    await call.finished.wait()
    await wait_all_tasks_blocked()
    return call


async def test_a_caller_on_the_way_to_somebody_is_left_to_that(autojump_clock, rig):
    call = await away(rig)

    assert call.end_reason is EndReason.MODEL_LOST
    assert rig.carrier.hung_up == []
    assert rig.apologies == 0


async def test_if_nobody_answers_there_the_caller_is_told(autojump_clock, rig):
    await away(rig)

    update = TransferUpdate("CA7", CallStatus.NO_ANSWER, wants_document=True)
    assert is_apology(await rig.calls.update_transfer(update, Agent()))


async def test_if_they_have_talked_there_is_nothing_to_be_sorry_for(autojump_clock, rig):
    await away(rig)

    update = TransferUpdate("CA7", CallStatus.COMPLETED, wants_document=True)
    assert await rig.calls.update_transfer(update, Agent()) == EndCall()


async def test_if_nobody_answers_there_after_the_agents_time_the_call_is_over(autojump_clock, rig):
    await away(rig, EndReason.MAX_DURATION)

    update = TransferUpdate("CA7", CallStatus.NO_ANSWER, wants_document=True)
    assert rig.carrier.hung_up == []
    assert await rig.calls.update_transfer(update, Agent()) == EndCall()
