"""Asterisk's carrier against a small ARI of ours: what it asks for when all goes well, and not."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import pytest
import trio
import trio.testing

from server.carrier import (
    CallStatus,
    ResumeRequest,
    StatusUpdate,
    TransferUpdate,
    VoiceRequest,
)
from server.carrier.asterisk import carrier as carriers
from server.carrier.asterisk import hands, stand_in
from server.carrier.asterisk import left as left_calls
from server.carrier.asterisk.ari import Ari
from server.carrier.asterisk.carrier import AsteriskCarrier
from server.carrier.asterisk.events import EVENTS
from server.carrier.asterisk.exchange import bridge_of, call_of
from server.carrier.asterisk.steps import Drop, OpenStream
from server.carrier.webhooks import (
    ConnectStream,
    EndCall,
    PassOn,
    RefuseCall,
    Reply,
    Report,
    SayAndEndCall,
)
from server.errors import CallNotInProgress, CarrierError, ConfigurationError
from tests.support.ari import ALWAYS, Asked, FakeAri, fake_ari

pytestmark = pytest.mark.sockets

IN = "1764.1"
THEM = "+15005550101"


@dataclass
class Desk:
    """Answers what is asked, and keeps what is told."""

    answers: Mapping[type, object] = field(default_factory=dict)
    told: list[Report] = field(default_factory=list)
    news: trio.Event = field(default_factory=trio.Event)

    async def __call__(self, report: Report) -> Reply | PassOn | None:
        self.told.append(report)
        news, self.news = self.news, trio.Event()
        news.set()
        answer = self.answers.get(type(report))
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def is_told(self, kind: type, count: int = 1) -> list:
        """Wait for reports of a kind."""
        with trio.fail_after(60):
            while len(found := [one for one in self.told if isinstance(one, kind)]) < count:
                await self.news.wait()
        return found

    @property
    def statuses(self) -> list[CallStatus]:
        return [one.status for one in self.told if isinstance(one, StatusUpdate)]


ANSWERS = {VoiceRequest: ConnectStream("tick"), ResumeRequest: EndCall()}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """Nothing here depends on how long is waited before something is tried again."""
    monkeypatch.setattr(carriers, "AGAIN_S", (0.0, 0.01, 0.01))
    monkeypatch.setattr(carriers, "PAUSES_S", (0.01,))


def carrier_of(pbx: FakeAri, process: str = "", **settings: object) -> AsteriskCarrier:
    ari = Ari(pbx.url, "offhook", "secret", timeout_s=20.0)
    facts = {
        "app": "offhook",
        "client": "offhook",
        "number": "+15005550006",
        "dial": "PJSIP/{number}@trunk",
        "law": "ulaw",
        "transfer_context": "offhook-transfer",
        "apology": "sound:sorry",
        "ring_timeout_s": 30.0,
    }
    return AsteriskCarrier(ari, **facts | settings, process=process)


@asynccontextmanager
async def hearing(
    pbx: FakeAri, desk: Desk, process: str = "", **settings: object
) -> AsyncGenerator[AsteriskCarrier]:
    """A carrier that hears events."""
    app = f"offhook-{process}" if process else "offhook"
    async with carrier_of(pbx, process, **settings) as carrier, trio.open_nursery() as nursery:
        nursery.start_soon(carrier.run, desk)
        await pbx.until(lambda: app in pbx.apps)
        filtered = f"PUT /ari/applications/{app}/eventFilter"
        await pbx.until(lambda: filtered in [str(one) for one in pbx.asked])
        yield carrier
        nursery.cancel_scope.cancel()


@pytest.fixture
async def pbx():
    async with fake_ari() as one:
        yield one


def media_of(pbx: FakeAri, call: str) -> list[str]:
    """The media channels of a call that are there."""
    media = [name for name in pbx.channels if name.startswith("offhook.media.")]
    return [name for name in media if call_of(name) == call]


def talks(pbx: FakeAri, call: str) -> bool:
    """Whether a call and a media channel hear each other."""
    return any(pbx.bridges.get(bridge_of(name)) == {call, name} for name in media_of(pbx, call))


def requests(pbx: FakeAri, method: str, *ends: str) -> int:
    """How many requests there were whose path ends so."""
    return sum(one.method == method and one.path.endswith(ends) for one in pbx.asked)


async def place(carrier: AsteriskCarrier) -> str:
    return (await carrier.place_call(THEM, ticket="tick", max_duration_s=60.0)).call_sid


async def taken_over_unheard(
    pbx: FakeAri, first: Desk, other: AsteriskCarrier, call: str = IN, *, app: str = "offhook-0"
) -> bool:
    """Have another process take a call over while the first one hears nothing; whether they still
    talk when that one hears again, and has told its desk.
    """
    (media,) = media_of(pbx, call)
    pbx.fails("GET", "/asterisk/info", status=503, left=ALWAYS)
    await pbx.apps[app].aclose()
    await pbx.until(lambda: app not in pbx.apps)
    await other.reconnect(call, "tock")
    await pbx.until(lambda: talks(pbx, call) and media not in pbx.channels)
    pbx.faults.clear()
    await first.is_told(StatusUpdate, 2)
    return talks(pbx, call)


async def takes_another(pbx: FakeAri) -> None:
    """Another call comes in, and talks."""
    await pbx.calls_in("offhook", "1764.2")
    await pbx.until(lambda: talks(pbx, "1764.2"))
    await pbx.ends("1764.2")


async def is_left_with_somebody_else(pbx: FakeAri) -> None:
    """A caller is transferred, and the process that did it, ``0``, ends."""
    async with hearing(pbx, Desk(ANSWERS), "0") as carrier:
        await pbx.calls_in("offhook-0", IN)
        await pbx.until(lambda: talks(pbx, IN))
        await carrier.transfer(IN, THEM, ring_timeout_s=20.0)
        await pbx.until(lambda: not media_of(pbx, IN))


# -- inbound -------------------------------------------------------------------------------


async def test_a_call_that_comes_in_is_answered_and_has_an_end_at_asterisk(pbx):
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk):
        await pbx.calls_in("offhook", IN, "X-Agent=sales", exten="+15005550006")
        await pbx.until(lambda: talks(pbx, IN))
        await pbx.until(lambda: IN in pbx.variables)
        await pbx.ends(IN)
        await pbx.until(lambda: not pbx.channels and not pbx.bridges)
        updates = await desk.is_told(StatusUpdate, 2)

    (asked,) = await desk.is_told(VoiceRequest)
    assert (asked.number, asked.called) == ("+15005550100", "+15005550006")
    assert asked.headers == {"X-Agent": "sales"}
    assert pbx.variables[IN] == {"TIMEOUT(absolute)": "14460"}  # no agent may have more
    assert [one.status for one in updates] == [CallStatus.IN_PROGRESS, CallStatus.COMPLETED]


async def test_a_call_that_the_dialplan_has_answered_ends_as_one_that_talked(pbx):
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk):
        await pbx.calls_in("offhook", IN, state="Up")
        await pbx.until(lambda: talks(pbx, IN))
        await pbx.ends(IN)
        updates = await desk.is_told(StatusUpdate, 2)

    assert requests(pbx, "POST", "/answer") == 0
    assert [one.status for one in updates] == [CallStatus.IN_PROGRESS, CallStatus.COMPLETED]
    assert "duration_s" in updates[-1].facts


async def test_a_refused_call_goes_on_in_the_dialplan_where_another_process_may_have_it(pbx):
    async with hearing(pbx, Desk({VoiceRequest: RefuseCall()})):
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: pbx.sent_away)

    assert pbx.sent_away == [IN]
    assert pbx.channels[IN]["state"] == "Ring"


async def test_the_apology_ends_the_call_when_it_has_been_heard(pbx):
    async with hearing(pbx, Desk({VoiceRequest: SayAndEndCall("Sorry.", "en")})):
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: IN not in pbx.channels)

    assert requests(pbx, "POST", "/play") == 1
    assert pbx.variables[IN] == {"TIMEOUT(absolute)": "60"}  # should nobody hear its end


@pytest.mark.parametrize("ends", ["/answer", "/externalMedia", "/addChannel"])
async def test_a_call_whose_answer_cannot_be_carried_out_is_ended(pbx, ends):
    desk = Desk(ANSWERS)
    pbx.fails("POST", ends, status=500)
    async with hearing(pbx, desk):
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: IN not in pbx.channels)
        await desk.is_told(VoiceRequest)


async def test_a_call_about_which_the_desk_fails_is_ended(pbx):
    async with hearing(pbx, Desk({VoiceRequest: RuntimeError("a bug of ours")})):
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: IN not in pbx.channels)


async def test_an_asterisk_that_can_set_no_end_to_a_call_has_it_all_the_same(pbx):
    pbx.fails("POST", "/variable", status=500, query="TIMEOUT", left=ALWAYS)
    async with hearing(pbx, Desk(ANSWERS)) as carrier:
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN) and requests(pbx, "POST", "/variable") == 1)
        await carrier.transfer(IN, THEM, ring_timeout_s=20.0)

    assert pbx.sent_away == [IN]


async def test_a_refused_call_that_was_sent_on_without_our_being_told_is_left_alone(pbx):
    pbx.fails("POST", "/continue", is_done=True)
    async with hearing(pbx, Desk({VoiceRequest: RefuseCall()})):
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: requests(pbx, "GET", "/applications/offhook") == 2)
        await trio.testing.wait_all_tasks_blocked(0.1)

    assert pbx.sent_away == [IN]
    assert IN in pbx.channels


async def test_a_call_whose_replaced_stream_fails_late_goes_on_with_the_other(pbx):
    may_fail = trio.Event()
    pbx.fails("POST", "/addChannel", status=500, until=may_fail)
    async with hearing(pbx, Desk(ANSWERS)) as carrier:
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: requests(pbx, "POST", "/addChannel") == 1)
        await carrier.reconnect(IN, "tock")
        await pbx.until(lambda: talks(pbx, IN))
        may_fail.set()
        await trio.testing.wait_all_tasks_blocked(0.1)
        goes_on = talks(pbx, IN)

    assert goes_on
    assert requests(pbx, "DELETE", f"/channels/{IN}") == 0


@pytest.mark.parametrize("is_refused", [False, True])
async def test_nothing_is_kept_of_a_stream_that_is_opened_when_its_call_is_over(pbx, is_refused):
    media = f"offhook.media.1.{IN}"
    if is_refused:
        pbx.fails("POST", "/externalMedia", status=500)
    async with hearing(pbx, Desk(ANSWERS)) as carrier:
        await carrier._hands.do(Drop(media))
        with pytest.raises(CarrierError) if is_refused else nullcontext():
            await carrier._hands.do(OpenStream(IN, media, "tick"))
        await pbx.until(lambda: media not in pbx.channels)
        kept = carrier._hands._joins

    assert kept == {}


async def test_a_hang_up_that_fails_is_tried_again(pbx):
    pbx.fails("DELETE", IN, status=503, left=2)
    async with hearing(pbx, Desk({VoiceRequest: EndCall()})):
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: IN not in pbx.channels)

    assert requests(pbx, "DELETE", IN) == 3


async def test_a_report_that_the_desk_fails_at_takes_neither_the_connection_nor_the_next(pbx):
    desk = Desk({StatusUpdate: RuntimeError("a bug of ours"), **ANSWERS})
    async with hearing(pbx, desk):
        for call in ("1764.1", "1764.2"):
            await pbx.calls_in("offhook", call)
            await pbx.until(partial(talks, pbx, call))
        await desk.is_told(StatusUpdate, 2)

    assert requests(pbx, "PUT", "/eventFilter") == 1


# -- exactly once --------------------------------------------------------------------------


async def test_a_call_is_placed_answered_and_gets_its_stream(pbx):
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk) as carrier:
        call = await place(carrier)
        await pbx.answers(call)
        await pbx.until(lambda: talks(pbx, call))

    assert desk.statuses == [CallStatus.IN_PROGRESS]
    assert pbx.variables[call] == {"TIMEOUT(absolute)": "150", "OFFHOOK_APP": "offhook"}


@pytest.mark.parametrize("status", [0, 500, 503])
async def test_a_dial_whose_answer_was_lost_is_one_call(pbx, status):
    pbx.fails("POST", "/channels", status=status, is_done=True)
    async with hearing(pbx, Desk(ANSWERS)) as carrier:
        call = await place(carrier)
        await pbx.answers(call)
        await pbx.until(lambda: talks(pbx, call))

    assert pbx.dialled == [call]


async def test_without_events_the_name_tells_that_a_dial_was_heard(pbx):
    pbx.fails("POST", "/channels", is_done=True)
    async with carrier_of(pbx) as carrier:
        call = await place(carrier)

    assert pbx.dialled == [call]
    assert requests(pbx, "POST", "/channels") == 2


async def test_a_call_that_was_over_before_its_dial_was_answered_rings_no_second_time(pbx):
    desk, is_over = Desk(ANSWERS), trio.Event()
    pbx.fails("POST", "/channels", is_done=True, until=is_over)
    call: list[str] = []

    async def dial(carrier: AsteriskCarrier) -> None:
        call.append(await place(carrier))

    async with hearing(pbx, desk) as carrier, trio.open_nursery() as nursery:
        nursery.start_soon(dial, carrier)
        await pbx.until(lambda: pbx.dialled)
        await pbx.ends(pbx.dialled[0], cause=17)
        await desk.is_told(StatusUpdate)
        is_over.set()

    assert pbx.dialled == call
    assert desk.statuses == [CallStatus.BUSY]


async def test_a_dial_that_is_never_answered_leaves_no_phone_ringing(pbx):
    pbx.fails("POST", "/channels", status=500, left=ALWAYS)
    async with carrier_of(pbx) as carrier:
        with pytest.raises(CarrierError) as failed:
            await place(carrier)

    (name,) = {one.query["channelId"] for one in pbx.asked if one.path.endswith("/channels")}
    assert requests(pbx, "POST", "/channels") == 3
    assert requests(pbx, "DELETE", name) == 1
    assert failed.value.outcome_unknown  # it may have rung, and be over: there is none to end


async def test_a_dial_that_is_never_answered_and_was_taken_back_is_known_to_be_no_call(pbx):
    pbx.fails("POST", "/channels", status=500, is_done=True, left=ALWAYS)
    async with carrier_of(pbx) as carrier:
        with pytest.raises(CarrierError) as failed:
            await place(carrier)

    assert len(pbx.dialled) == 1
    assert pbx.channels == {}
    assert not failed.value.outcome_unknown


async def test_a_dial_that_cannot_be_taken_back_may_have_been_done(pbx):
    pbx.fails("POST", "/channels", left=ALWAYS)
    pbx.fails("DELETE", "", left=ALWAYS)
    async with carrier_of(pbx) as carrier:
        with pytest.raises(CarrierError) as failed:
            await place(carrier)

    assert failed.value.outcome_unknown


async def test_a_dial_that_is_given_up_is_taken_back(pbx):
    pbx.fails("POST", "/channels", is_done=True, until=trio.Event())
    async with carrier_of(pbx) as carrier, trio.open_nursery() as nursery:
        nursery.start_soon(place, carrier)
        await pbx.until(lambda: pbx.dialled)
        nursery.cancel_scope.cancel()

    assert pbx.channels == {}


async def test_a_refused_dial_is_not_made_again(pbx):
    pbx.fails("POST", "/channels", status=400)
    async with carrier_of(pbx) as carrier:
        with pytest.raises(CarrierError) as failed:
            await place(carrier)

    assert (failed.value.status, failed.value.outcome_unknown) == (400, False)
    assert [str(one) for one in pbx.asked if one.method != "GET"] == ["POST /ari/channels"]


async def test_a_call_of_ours_that_is_answered_though_it_was_given_up_is_ended(pbx):
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk):
        pbx.channels["offhook-late"] = {"state": "Up", "app": "offhook"}
        await pbx.tell("offhook", "StasisStart", "offhook-late", args=[])
        await pbx.until(lambda: not pbx.channels)

    assert [type(one) for one in desk.told] == [StatusUpdate, ResumeRequest]


# -- between processes ---------------------------------------------------------------------


@pytest.mark.parametrize("call", [IN, "offhook-theirs"])
async def test_a_call_that_is_taken_over_goes_on_and_nobody_is_asked(pbx, call):
    first, second = Desk(ANSWERS), Desk(ANSWERS)
    async with hearing(pbx, second, "1") as survivor:
        async with hearing(pbx, first, "0") as carrier:
            if call == IN:
                await pbx.calls_in("offhook-0", IN)
            else:
                pbx.channels[call] = {"state": "Up", "app": "offhook-0"}
                await carrier.reconnect(call, "tick")
            await pbx.until(lambda: talks(pbx, call))
            (theirs,) = media_of(pbx, call)
            await survivor.reconnect(call, "tock")
            await pbx.until(lambda: talks(pbx, call) and theirs not in pbx.channels)
            await first.is_told(StatusUpdate, 2)
        (media,) = media_of(pbx, call)
        await pbx.ends(call)
        await pbx.until(lambda: not pbx.channels and not pbx.bridges)
        *before, over = await second.is_told(StatusUpdate, 1 if call == IN else 2)

    assert pbx.variables[media] == {"OFFHOOK_CALL": call, "OFFHOOK_TICKET": "tock"}
    assert [type(one) for one in second.told] == [StatusUpdate] * (1 if call == IN else 2)
    assert {one.status for one in before} <= {CallStatus.IN_PROGRESS}
    assert (over.status, dict(over.facts)) == (CallStatus.COMPLETED, {})
    assert not [one for one in first.told if isinstance(one, ResumeRequest)]


async def test_a_call_that_is_gone_cannot_be_taken_over(pbx):
    async with hearing(pbx, Desk(ANSWERS), "1") as carrier:
        for ask in (
            carrier.reconnect("1764.9", "tock"),
            carrier.say_and_hang_up("1764.9", "Sorry.", "en"),
            carrier.transfer("1764.9", THEM, ring_timeout_s=5.0),
        ):
            with pytest.raises(CallNotInProgress):
                await ask


@pytest.fixture
def quick_looks(monkeypatch):
    """Nothing here depends on how long is waited before it is looked again."""
    monkeypatch.setattr(stand_in, "LOOK_S", 0.01)
    monkeypatch.setattr(stand_in, "AGAIN_S", 0.01)
    monkeypatch.setattr(hands, "FETCH_AGAIN_S", 0.01)
    monkeypatch.setattr(hands, "FETCH_LATER_S", 0.01)
    monkeypatch.setattr(hands, "ANSWER_S", 0.05)


@pytest.mark.slow
async def test_a_phone_that_rings_when_its_process_goes_is_answered_by_another(pbx, quick_looks):
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk, "1") as survivor:
        async with hearing(pbx, Desk(ANSWERS), "0") as carrier:
            call = await place(carrier)
        await survivor.reconnect(call, "tock")
        await pbx.until(lambda: "offhook-0" in pbx.apps)
        await pbx.answers(call)
        await pbx.until(lambda: talks(pbx, call))
        await pbx.until(lambda: "offhook-0" not in pbx.apps)
        (media,) = media_of(pbx, call)

    assert pbx.variables[media]["OFFHOOK_TICKET"] == "tock"
    assert desk.told == [StatusUpdate(call, CallStatus.IN_PROGRESS, 3)]


async def test_a_phone_that_rings_for_one_of_our_name_gets_its_stream_when_it_is_answered(pbx):
    async with hearing(pbx, Desk(ANSWERS), "1") as carrier:
        call = await place(carrier)
    desk = Desk()  # what it is asked about is under way already
    async with hearing(pbx, desk, "1") as carrier:
        await carrier.reconnect(call, "tock")
        had_stream = media_of(pbx, call)
        await pbx.answers(call)
        await pbx.until(lambda: talks(pbx, call))

    assert had_stream == []
    assert desk.statuses == [CallStatus.IN_PROGRESS]


async def test_a_phone_that_was_answered_while_it_was_taken_over_is_fetched(pbx, quick_looks):
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk, "1") as survivor:
        async with hearing(pbx, Desk(ANSWERS), "0") as carrier:
            call = await place(carrier)
        may_answer = trio.Event()
        pbx.fails("POST", "/subscription", status=200, is_done=True, until=may_answer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(survivor.reconnect, call, "tock")
            await pbx.until(lambda: pbx.followed and "offhook-0" in pbx.apps)
            pbx.followed.clear()  # nobody hears of the answer
            await pbx.answers(call)
            may_answer.set()
        await pbx.until(lambda: pbx.channels[call]["app"] == "offhook-1" and talks(pbx, call))

    assert desk.statuses == [CallStatus.IN_PROGRESS]


async def test_no_app_is_stood_in_for_that_has_a_process_again(pbx, quick_looks):
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk, "1", is_there=lambda name: name == "0") as survivor:
        async with hearing(pbx, Desk(ANSWERS), "0") as carrier:
            call = await place(carrier)
        await survivor.reconnect(call, "tock")
        async with hearing(pbx, Desk(), "0"):  # of which none is told whose the call is
            await pbx.answers(call)
            await pbx.until(lambda: talks(pbx, call))
            replaced = [one for one in pbx.apps if one == "offhook-0"]

    assert replaced == ["offhook-0"]
    assert desk.statuses == [CallStatus.IN_PROGRESS]


async def test_the_app_of_a_process_that_hears_it_is_not_taken(pbx, quick_looks, monkeypatch):
    monkeypatch.setattr(hands, "ANSWER_S", 60.0)
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk, "1") as survivor, hearing(pbx, Desk(), "0") as carrier:
        theirs = pbx.apps["offhook-0"]
        call = await place(carrier)
        await survivor.reconnect(call, "tock")
        await pbx.until(lambda: requests(pbx, "POST", "offhook.there") > 1)
        heard_by = pbx.apps["offhook-0"]
        await pbx.answers(call)
        await pbx.until(lambda: pbx.channels[call]["app"] == "offhook-1" and talks(pbx, call))

    assert heard_by is theirs


@pytest.mark.slow
async def test_an_app_is_stood_in_for_until_it_has_a_process_again(pbx, quick_looks, monkeypatch):
    there: dict[str, bool | None] = {"0": None}  # the registry is away
    looked = trio.Semaphore(0)

    def is_there(name: str) -> bool | None:
        looked.release()
        return there[name]

    async def has_looked() -> None:
        with trio.fail_after(60):
            for _ in range(looked.value + 3):
                await looked.acquire()

    async with hearing(pbx, Desk(ANSWERS), "1", is_there=is_there) as survivor:
        async with hearing(pbx, Desk(ANSWERS), "0") as carrier:
            call = await place(carrier)
        await pbx.until(lambda: "offhook-0" not in pbx.apps)
        await survivor.reconnect(call, "tock")
        await has_looked()
        stood_in = ["offhook-0" in pbx.apps]
        there["0"] = False
        await pbx.until(lambda: "offhook-0" in pbx.apps)
        there["0"] = None
        await has_looked()
        stood_in.append("offhook-0" in pbx.apps)
        there["0"] = True
        await pbx.until(lambda: "offhook-0" not in pbx.apps)
        is_ringing = call in pbx.channels

    assert stood_in == [False, True]
    assert is_ringing


def test_who_stands_in_keeps_nothing_from_the_process_that_is_back():
    assert set(stand_in.EVENTS) == set(EVENTS)


@pytest.mark.parametrize("is_back", [False, True], ids=["process gone", "process back"])
async def test_a_caller_who_comes_back_long_after_the_dial_comes_to_another_process(
    pbx, quick_looks, monkeypatch, is_back
):
    monkeypatch.setattr(hands, "FETCHES", 2)
    desk = Desk({TransferUpdate: ConnectStream("tock")})
    async with hearing(pbx, desk, "1", is_there=lambda name: is_back) as survivor:
        await is_left_with_somebody_else(pbx)
        await survivor.follow(IN)
        async with AsyncExitStack() as stack:
            if is_back:  # and knows nothing of the call, which is another's
                await stack.enter_async_context(hearing(pbx, Desk(), "0"))
            else:
                await pbx.until(lambda: "offhook-0" in pbx.apps)
            who = {"caller": pbx.shown(IN), "peer": {"id": "1764.98", "state": "Down"}}
            await pbx.tell("offhook-1", "Dial", dialstatus="BUSY", **who)
            await pbx.until(lambda: requests(pbx, "POST", f"{IN}/move") > 5)
            await pbx.comes_back(IN, "BUSY")
            await pbx.until(lambda: talks(pbx, IN))

    assert desk.told == [TransferUpdate(IN, CallStatus.BUSY, wants_document=True)]


async def test_a_caller_who_is_back_unheard_is_found_where_their_process_is_back(pbx, quick_looks):
    desk = Desk({TransferUpdate: ConnectStream("tock")})
    async with hearing(pbx, desk, "1", is_there=lambda name: True) as survivor:
        await is_left_with_somebody_else(pbx)
        await survivor.follow(IN)
        pbx.followed.clear()  # nothing is told of how the dial ended
        async with hearing(pbx, Desk(), "0"):
            await pbx.comes_back(IN, "BUSY")
            await pbx.until(lambda: talks(pbx, IN))

    assert desk.told == [TransferUpdate(IN, CallStatus.BUSY, wants_document=True)]


async def test_a_caller_who_comes_back_when_their_process_is_gone_comes_to_another(
    pbx, quick_looks
):
    desk = Desk({TransferUpdate: ConnectStream("tock")})
    async with hearing(pbx, desk, "1") as survivor:
        await is_left_with_somebody_else(pbx)
        await survivor.follow(IN)
        await pbx.until(lambda: "offhook-0" in pbx.apps)
        await pbx.comes_back(IN, "BUSY")
        await pbx.until(lambda: talks(pbx, IN))

    assert desk.told == [TransferUpdate(IN, CallStatus.BUSY, wants_document=True)]


@pytest.mark.parametrize("variables", [{}, {"OFFHOOK_APP": "offhook-0"}], ids=["asked", "told"])
async def test_a_caller_whom_a_process_that_is_gone_was_about_to_send_away_goes_on(
    pbx, quick_looks, variables
):
    desk = Desk({TransferUpdate: ConnectStream("tock")})
    async with hearing(pbx, desk, "1") as survivor:
        async with hearing(pbx, Desk(ANSWERS), "0"):
            await pbx.calls_in("offhook-0", IN)
            await pbx.until(lambda: talks(pbx, IN) and IN in pbx.variables)
            (theirs,) = media_of(pbx, IN)
        pbx.variables[IN] |= variables
        await survivor.follow(IN)
        await pbx.until(lambda: any(name != theirs for name in media_of(pbx, IN)))
        (media,) = (name for name in media_of(pbx, IN) if name != theirs)
        await pbx.until(lambda: pbx.bridges.get(bridge_of(media)) == {IN, media})

    assert desk.told == [TransferUpdate(IN, CallStatus.FAILED, wants_document=True)]
    assert pbx.channels[IN]["app"] == "offhook-1"


async def test_a_caller_who_talks_by_now_with_somebody_else_is_told_of(pbx):
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk, "1") as survivor:
        await is_left_with_somebody_else(pbx)
        pbx.bridges["of-the-dialplan"] = {IN, "1764.99"}
        await survivor.follow(IN)
        await desk.is_told(TransferUpdate)

    assert desk.told == [TransferUpdate(IN, CallStatus.IN_PROGRESS, wants_document=False)]


async def test_a_caller_who_has_left_meanwhile_cannot_be_followed(pbx):
    async with hearing(pbx, Desk(ANSWERS), "1") as survivor:
        with pytest.raises(CallNotInProgress):
            await survivor.follow(IN)


async def test_a_new_call_that_comes_to_an_app_that_is_stood_in_for_is_answered(pbx, quick_looks):
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk, "1") as survivor:
        async with hearing(pbx, Desk(ANSWERS), "0") as carrier:
            call = await place(carrier)
        await survivor.reconnect(call, "tock")
        await pbx.until(lambda: "offhook-0" in pbx.apps)
        await pbx.calls_in("offhook-0", IN, "X-Agent=sales")
        await pbx.until(lambda: talks(pbx, IN))
        (asked,) = await desk.is_told(VoiceRequest)

    assert asked.headers == {"X-Agent": "sales"}


async def test_a_caller_is_fetched_once_though_several_were_called(pbx, quick_looks):
    desk = Desk({TransferUpdate: ConnectStream("tock")})
    async with hearing(pbx, desk, "1") as survivor:
        await is_left_with_somebody_else(pbx)
        await survivor.follow(IN)
        await pbx.until(lambda: "offhook-0" in pbx.apps)
        for _ in range(3):
            who = {"caller": pbx.shown(IN), "peer": {"id": "1764.98", "state": "Down"}}
            await pbx.tell("offhook-1", "Dial", dialstatus="BUSY", **who)
        await pbx.comes_back(IN, "BUSY")
        await pbx.until(lambda: talks(pbx, IN))

    assert len(desk.told) == 1


async def nobodys(call_sid: str) -> bool:
    """The registry's answer about a call that it does not know."""
    return False


def leave(pbx: FakeAri, **calls: str) -> None:
    """Calls that a process has left, in its app's hands, by their states."""
    for name, state in calls.items():
        in_app = {"app_name": "Stasis", "app_data": "offhook-0"}
        pbx.channels[name] = {"state": state, "app": "offhook-0", "dialplan": in_app}


@pytest.fixture
def quick_clearing(monkeypatch):
    """Nothing here depends on how long is waited before what is left counts as that."""
    monkeypatch.setattr(left_calls, "EMPTY_S", 0.01)
    monkeypatch.setattr(hands, "ANSWER_S", 0.05)


async def test_nothing_is_cleared_up_of_a_process_that_is_cut_off_from_all_but_asterisk(
    pbx, monkeypatch
):
    monkeypatch.setattr(hands, "ANSWER_S", 60.0)
    async with hearing(pbx, Desk(ANSWERS), "1") as survivor, hearing(pbx, Desk(), "0") as carrier:
        call = await place(carrier)
        await pbx.calls_in("offhook-0", IN)
        before = len(pbx.asked)
        is_clear = await survivor.clear_up_after("0", nobodys)
        asked = [str(one) for one in pbx.asked[before:]]

    assert not is_clear
    assert asked == [
        "POST /ari/events/user/offhook.asks",
        "POST /ari/events/user/offhook.there",
    ]
    assert pbx.channels.keys() == {call, IN}


async def test_nothing_is_cleared_up_by_a_process_that_would_not_hear_an_answer(
    pbx, quick_clearing, monkeypatch
):
    monkeypatch.setattr(hands, "OWN_ANSWER_S", 0.05)
    leave(pbx, **{"1764.1": "Ring", "1764.2": "Up"})
    async with hearing(pbx, Desk(ANSWERS), "1") as survivor:
        pbx.is_mute = True
        with pytest.raises(CarrierError, match="our own events"):
            await survivor.clear_up_after("0", nobodys)

    assert pbx.channels.keys() == {"1764.1", "1764.2"}
    assert pbx.sent_away == []


async def test_nothing_is_cleared_up_while_somebody_talks_with_a_caller(pbx, quick_clearing):
    leave(pbx, **{"1764.1": "Ring", "1764.2": "Up", "offhook-rings": "Ringing"})
    media, bridge = "offhook.media.x-1.1764.2", "offhook.bridge.x-1.1764.2"
    pbx.channels[media] = {"state": "Up", "app": "offhook-0"}
    pbx.bridges[bridge], pbx.bridge_names[bridge] = {media, "1764.2"}, "offhook-0"
    async with hearing(pbx, Desk(ANSWERS), "1") as survivor:
        is_clear = await survivor.clear_up_after("0", nobodys)
        before = set(pbx.channels)
        await pbx.ends(media)
        is_clear_then = await survivor.clear_up_after("0", nobodys)
        await pbx.until(lambda: "1764.2" not in pbx.channels)

    assert (is_clear, is_clear_then) == (False, True)
    assert before == {"1764.1", "1764.2", "offhook-rings", media}
    assert pbx.channels.keys() == {"1764.1"}
    assert pbx.sent_away == ["1764.1"]


async def test_what_another_takes_while_it_is_cleared_up_is_left_to_them(pbx, quick_clearing):
    calls = {"1764.1": "Ring", "1764.2": "Up", "offhook-rings": "Ringing"}
    leave(pbx, **calls)

    async def is_somebodys(call_sid: str) -> bool:
        pbx.channels[call_sid]["app"] = "offhook-2"  # just as it is asked
        return False

    async with hearing(pbx, Desk(ANSWERS), "1") as survivor:
        is_clear = await survivor.clear_up_after("0", is_somebodys)

    assert is_clear
    assert pbx.sent_away == []
    assert pbx.channels.keys() == calls.keys()
    assert not any(one.path.endswith(("/move", "/play")) for one in pbx.asked)


@pytest.mark.parametrize(
    ("status", "clears"), [(404, True), (500, False)], ids=["hung up", "refused"]
)
async def test_one_call_that_cannot_be_cleared_up_does_not_keep_the_next(
    pbx, quick_clearing, status, clears
):
    leave(pbx, **{"1764.1": "Up", "1764.2": "Up", "1764.3": "Ring"})
    media = "offhook.media.x-1.1764.9"
    pbx.channels[media] = {"state": "Up", "app": "offhook-0"}
    pbx.fails("POST", "/1764.1/move", status=status, left=ALWAYS)
    pbx.fails("DELETE", media, status=status)
    async with hearing(pbx, Desk(ANSWERS), "1") as survivor:
        is_clear = await survivor.clear_up_after("0", nobodys)
        await pbx.until(lambda: "1764.2" not in pbx.channels)

    assert is_clear is clears
    assert pbx.sent_away == ["1764.3"]
    assert requests(pbx, "POST", "1764.2/play") == 1


async def test_what_a_process_has_left_that_nobody_has_is_cleared_up(pbx, quick_clearing):
    in_app = {"app_name": "Stasis", "app_data": "offhook-0"}
    left = {
        "1764.1": {"state": "Ring", "app": "offhook-0", "dialplan": in_app},  # nobody saw it
        "1764.2": {"state": "Up", "app": "offhook-0", "dialplan": in_app},  # it was answered
        "1764.3": {"state": "Up", "app": "offhook-0", "dialplan": in_app},  # another has it
        "1764.4": {"state": "Up", "app": "", "dialplan": {"app_name": "Dial"}},  # transferred
        "offhook-rings": {"state": "Ringing", "app": "offhook-0"},
        "offhook.media.x-1.1764.9": {"state": "Up", "app": "offhook-0"},  # of a call that is over
    }
    pbx.channels.update(left)
    pbx.followed.add(("offhook-0", "1764.4"))
    pbx.bridge_names["offhook.bridge.x-1.1764.2"] = "offhook-0"
    pbx.bridges["offhook.bridge.x-1.1764.2"] = {"1764.2"}  # its media channel has ended by itself
    pbx.bridges["offhook.bridge.x-1.1764.7"] = set()
    pbx.bridge_names["offhook.bridge.x-1.1764.7"] = "offhook-0"
    pbx.bridges["offhook.bridge.y-1.1764.8"] = set()  # another's, that has just been made
    pbx.bridge_names["offhook.bridge.y-1.1764.8"] = "offhook-2"

    async def is_somebodys(call_sid: str) -> bool:
        return call_sid == "1764.3"

    async with hearing(pbx, Desk(ANSWERS), "1") as survivor:
        is_clear = await survivor.clear_up_after("0", is_somebodys)
        await pbx.until(lambda: "1764.2" not in pbx.channels)

    assert is_clear
    assert pbx.sent_away == ["1764.1"]
    assert pbx.channels.keys() == {"1764.1", "1764.3", "1764.4"}
    assert pbx.bridges.keys() == {"offhook.bridge.y-1.1764.8"}
    assert requests(pbx, "POST", "1764.2/play") == 1


async def test_nothing_is_cleared_up_of_a_process_that_is_there_again(pbx):
    pbx.channels["1764.1"] = {"state": "Ring", "app": "offhook-0"}

    async def is_somebodys(call_sid: str) -> bool:
        return False

    async with hearing(pbx, Desk(ANSWERS), "1", is_there=lambda name: True) as survivor:
        await survivor.clear_up_after("0", is_somebodys)

    assert pbx.sent_away == []


async def test_nothing_is_cleared_up_while_it_is_not_known_who_is_there(pbx):
    leave(pbx, **{"1764.1": "Ring"})
    async with hearing(pbx, Desk(ANSWERS), "1", is_there=lambda name: None) as survivor:
        is_clear = await survivor.clear_up_after("0", nobodys)

    assert not is_clear
    assert pbx.sent_away == []


async def test_a_call_that_was_taken_over_before_it_was_answered_is_answered(pbx):
    async with hearing(pbx, Desk(ANSWERS), "1") as survivor, hearing(pbx, Desk(), "0"):
        await pbx.calls_in("offhook-0", IN)
        await survivor.reconnect(IN, "tock")
        await pbx.until(lambda: talks(pbx, IN))

    assert pbx.channels[IN]["state"] == "Up"


async def test_a_new_call_is_given_to_the_process_that_was_chosen(pbx):
    first, second = Desk({VoiceRequest: PassOn("1")}), Desk(ANSWERS)
    async with hearing(pbx, first, "0"), hearing(pbx, second, "1"):
        await pbx.calls_in("offhook-0", IN, "X-Agent=sales")
        await pbx.until(lambda: talks(pbx, IN))

    (asked,) = await second.is_told(VoiceRequest)
    assert asked.is_given
    assert asked.headers == {"X-Agent": "sales"}
    assert [type(one) for one in first.told] == [VoiceRequest]


async def test_a_new_call_that_was_given_away_without_our_being_told_goes_on_there(pbx):
    pbx.fails("POST", "/move", status=500, is_done=True)
    first, second = Desk({VoiceRequest: PassOn("1")}), Desk(ANSWERS)
    async with hearing(pbx, first, "0"), hearing(pbx, second, "1"):
        await pbx.calls_in("offhook-0", IN)
        await pbx.until(lambda: requests(pbx, "GET", "/applications/offhook-0") == 2)
        await pbx.until(lambda: talks(pbx, IN))
        await trio.testing.wait_all_tasks_blocked(0.1)
        goes_on = talks(pbx, IN)

    assert goes_on
    assert requests(pbx, "DELETE", f"/channels/{IN}") == 0


async def test_a_new_call_is_asked_about_again_where_the_chosen_process_is_not_there(pbx):
    class Once(Desk):
        async def __call__(self, report: Report) -> Reply | PassOn | None:
            answer = await super().__call__(report)
            is_new = isinstance(report, VoiceRequest) and not report.is_given
            return PassOn("7") if is_new else answer

    desk = Once(ANSWERS)
    async with hearing(pbx, desk, "0"):
        await pbx.calls_in("offhook-0", IN)
        await pbx.until(lambda: talks(pbx, IN))


@pytest.mark.parametrize("state", ["Ring", "Up"])
async def test_a_call_that_comes_when_the_process_goes_is_left_to_the_dialplan(pbx, state):
    asked = trio.Event()

    async def desk(report: Report) -> None:
        if isinstance(report, VoiceRequest):
            asked.set()
            await trio.sleep_forever()

    async with hearing(pbx, desk):
        await pbx.calls_in("offhook", IN, state=state)
        with trio.fail_after(60):
            await asked.wait()

    assert pbx.sent_away == [IN]


async def test_one_call_that_cannot_be_left_to_the_dialplan_does_not_keep_the_next(pbx):
    asked = trio.Semaphore(0)

    async def desk(report: Report) -> None:
        asked.release()
        await trio.sleep_forever()

    pbx.fails("POST", "/channels/1764.1/continue", status=409)
    pbx.fails("POST", "/channels/1764.2/continue", status=500)
    async with hearing(pbx, desk):
        for call in ("1764.1", "1764.2", "1764.3"):
            await pbx.calls_in("offhook", call)
            with trio.fail_after(60):
                await asked.acquire()

    assert pbx.sent_away == ["1764.3"]


# -- events that are lost ------------------------------------------------------------------


async def test_a_lost_event_connection_takes_no_call_and_is_made_up_for(pbx):
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk) as carrier:
        call = await place(carrier)
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN))
        await pbx.apps["offhook"].aclose()
        await pbx.until(lambda: "offhook" not in pbx.apps)
        pbx.channels[call]["state"] = "Up"  # answered, and nobody has heard of it
        await pbx.until(lambda: talks(pbx, call))

    assert talks(pbx, IN)
    assert desk.statuses == [CallStatus.IN_PROGRESS, CallStatus.IN_PROGRESS]


async def test_what_was_missed_of_one_call_is_made_up_for_though_another_cannot_be_looked_at(pbx):
    desk = Desk(ANSWERS | {ResumeRequest: ConnectStream("tock")})
    async with hearing(pbx, desk) as carrier:
        call = await place(carrier)
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN))
        (media,) = media_of(pbx, IN)
        pbx.fails("GET", f"/channels/{call}", status=503)
        pbx.fails("GET", "/asterisk/info", status=503, left=ALWAYS)
        await pbx.apps["offhook"].aclose()
        await pbx.until(lambda: "offhook" not in pbx.apps)
        pbx.channels[call]["state"] = "Up"  # answered, and nobody has heard of it
        await pbx.ends(media)
        pbx.faults.pop()  # events are heard again
        await pbx.until(lambda: talks(pbx, IN) and talks(pbx, call))

    assert [one for one in desk.told if isinstance(one, ResumeRequest)] == [ResumeRequest(IN)]
    assert requests(pbx, "PUT", "/eventFilter") == 2


async def test_a_call_that_ends_unheard_is_over(pbx):
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk):
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN))
        await pbx.apps["offhook"].aclose()
        await pbx.until(lambda: "offhook" not in pbx.apps)
        await pbx.ends(IN)
        await desk.is_told(StatusUpdate, 2)

    assert desk.statuses[-1] is CallStatus.COMPLETED


async def test_a_call_that_is_taken_over_while_nothing_is_heard_is_let_go_and_may_come_back(pbx):
    first, second = Desk(ANSWERS), Desk(ANSWERS)
    async with hearing(pbx, second, "1") as other, hearing(pbx, first, "0") as carrier:
        await pbx.calls_in("offhook-0", IN)
        await pbx.until(lambda: talks(pbx, IN))
        still_talks = await taken_over_unheard(pbx, first, other)
        await carrier.reconnect(IN, "tack")
        await pbx.until(lambda: talks(pbx, IN) and pbx.channels[IN]["app"] == "offhook-0")

    assert still_talks
    assert first.statuses == [CallStatus.IN_PROGRESS, CallStatus.COMPLETED]
    assert not [one for one in first.told if isinstance(one, ResumeRequest)]


async def test_a_caller_who_is_back_and_is_taken_over_while_nothing_is_heard_is_let_go(pbx):
    first = Desk(ANSWERS | {TransferUpdate: ConnectStream("tack")})
    async with hearing(pbx, Desk(ANSWERS), "1") as other, hearing(pbx, first, "0") as carrier:
        await pbx.calls_in("offhook-0", IN)
        await pbx.until(lambda: talks(pbx, IN))
        await carrier.transfer(IN, THEM, ring_timeout_s=20.0)
        await pbx.until(lambda: not media_of(pbx, IN))
        await pbx.comes_back(IN, "BUSY")
        await pbx.until(lambda: talks(pbx, IN) and not pbx.followed)
        still_talks = await taken_over_unheard(pbx, first, other)

    assert still_talks
    assert first.statuses == [CallStatus.IN_PROGRESS, CallStatus.COMPLETED]
    assert not [one for one in first.told if isinstance(one, ResumeRequest)]


async def test_a_phone_that_was_taken_over_ringing_and_again_while_nothing_is_heard_is_let_go(
    pbx, quick_looks
):
    first = Desk(ANSWERS)
    async with hearing(pbx, Desk(ANSWERS), "2") as other, hearing(pbx, first, "1") as survivor:
        async with hearing(pbx, Desk(ANSWERS), "0") as carrier:
            call = await place(carrier)
        await survivor.reconnect(call, "tack")
        await pbx.until(lambda: "offhook-0" in pbx.apps)
        await pbx.answers(call)
        await pbx.until(lambda: talks(pbx, call) and not pbx.followed)
        still_talks = await taken_over_unheard(pbx, first, other, call, app="offhook-1")

    assert still_talks
    assert first.statuses == [CallStatus.IN_PROGRESS, CallStatus.COMPLETED]
    assert not [one for one in first.told if isinstance(one, ResumeRequest)]


async def test_that_a_caller_is_back_is_not_said_twice_where_the_first_time_may_have_counted(pbx):
    desk = Desk(ANSWERS | {TransferUpdate: ConnectStream("tack")})
    async with hearing(pbx, desk) as carrier:
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN))
        await carrier.transfer(IN, THEM, ring_timeout_s=20.0)
        pbx.fails("DELETE", "/subscription", is_done=True)
        await pbx.comes_back(IN, "BUSY")
        await pbx.until(lambda: talks(pbx, IN) and not pbx.followed)
        pbx.fails("POST", "/subscription", status=403)  # what could be asked again would be by then
        with pytest.raises(CarrierError):
            await carrier.transfer(IN, THEM, ring_timeout_s=20.0)

    assert requests(pbx, "DELETE", "/subscription") == 1


async def test_a_call_that_comes_back_before_it_is_known_where_it_has_been_is_moved_here(pbx):
    first = Desk(ANSWERS)
    async with hearing(pbx, Desk(ANSWERS), "1") as other, hearing(pbx, first, "0") as carrier:
        await pbx.calls_in("offhook-0", IN)
        await pbx.until(lambda: talks(pbx, IN))
        pbx.fails("GET", f"/channels/{IN}", status=500, left=ALWAYS)
        await other.reconnect(IN, "tock")
        await pbx.until(lambda: talks(pbx, IN) and requests(pbx, "GET", f"/channels/{IN}"))
        await carrier.reconnect(IN, "tack")
        await pbx.until(lambda: talks(pbx, IN) and pbx.channels[IN]["app"] == "offhook-0")
        (media,) = media_of(pbx, IN)

    assert pbx.variables[media]["OFFHOOK_TICKET"] == "tack"
    assert first.statuses == [CallStatus.IN_PROGRESS]


@pytest.mark.parametrize("status", [409, 500])
async def test_a_call_that_has_left_and_cannot_be_moved_here_is_let_go(pbx, status):
    first, may_look = Desk(ANSWERS), trio.Event()
    async with hearing(pbx, Desk(ANSWERS), "1") as other, hearing(pbx, first, "0") as carrier:
        await pbx.calls_in("offhook-0", IN)
        await pbx.until(lambda: talks(pbx, IN))
        pbx.fails("GET", f"/channels/{IN}", status=503, until=may_look)
        await other.reconnect(IN, "tock")
        await pbx.until(lambda: talks(pbx, IN) and requests(pbx, "GET", f"/channels/{IN}"))
        pbx.fails("POST", "/move", status=status)
        with pytest.raises(CarrierError):
            await carrier.reconnect(IN, "tack")
        await first.is_told(StatusUpdate, 2)
        still_talks = talks(pbx, IN)
        may_look.set()

    assert still_talks
    assert first.statuses == [CallStatus.IN_PROGRESS, CallStatus.COMPLETED]


async def test_a_caller_whom_the_pbx_takes_and_gives_back_is_asked_about(pbx, monkeypatch):
    monkeypatch.setattr(carriers, "TOLD_S", 60.0)
    desk = Desk(ANSWERS | {ResumeRequest: ConnectStream("tock")})
    async with hearing(pbx, desk):
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN))
        (media,) = media_of(pbx, IN)
        await pbx.goes_round(IN)
        await pbx.until(lambda: talks(pbx, IN) and media not in pbx.channels)

    assert len([one for one in desk.told if isinstance(one, ResumeRequest)]) == 1
    assert desk.statuses == [CallStatus.IN_PROGRESS]


async def test_a_caller_whom_the_pbx_gives_to_another_process_comes_back_to_their_own(
    pbx, monkeypatch
):
    monkeypatch.setattr(carriers, "TOLD_S", 60.0)
    desk = Desk(ANSWERS | {ResumeRequest: ConnectStream("tock")})
    other = Desk({VoiceRequest: PassOn("1")})
    async with hearing(pbx, other, "0"), hearing(pbx, desk, "1"):
        await pbx.calls_in("offhook-1", IN)
        await pbx.until(lambda: talks(pbx, IN))
        (media,) = media_of(pbx, IN)
        await pbx.goes_round(IN, "offhook-0")
        await pbx.until(lambda: talks(pbx, IN) and media not in pbx.channels)

    assert pbx.channels[IN]["app"] == "offhook-1"
    assert len([one for one in desk.told if isinstance(one, ResumeRequest)]) == 1
    assert desk.statuses == [CallStatus.IN_PROGRESS]


async def test_a_caller_who_hangs_up_just_when_they_are_to_hear_the_apology_has_hung_up(pbx):
    desk, may_look = Desk(ANSWERS), trio.Event()
    async with hearing(pbx, desk) as carrier:
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN))
        pbx.fails("GET", f"/channels/{IN}", status=404, until=may_look)
        await pbx.ends(IN)
        await pbx.until(lambda: requests(pbx, "GET", f"/channels/{IN}"))
        with pytest.raises(CallNotInProgress):
            await carrier.say_and_hang_up(IN, "Sorry.", "en")
        may_look.set()
        await desk.is_told(StatusUpdate, 2)

    assert desk.statuses[-1] is CallStatus.COMPLETED


async def test_a_call_that_a_process_before_this_one_has_left_is_asked_about(pbx):
    desk = Desk(ANSWERS)
    pbx.channels[IN] = {"state": "Up", "app": "offhook"}
    async with hearing(pbx, desk):
        await pbx.until(lambda: not pbx.channels)

    assert ResumeRequest(IN) in desk.told


@pytest.mark.parametrize("looks", [0, 2], ids=["looked at once", "looked at again"])
async def test_a_transferred_caller_outlives_the_process_and_is_not_followed_any_more(pbx, looks):
    async with hearing(pbx, Desk(ANSWERS)) as carrier:
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN))
        await carrier.transfer(IN, THEM, ring_timeout_s=20.0)
        await pbx.until(lambda: not media_of(pbx, IN))
    pbx.fails("GET", f"/channels/{IN}", status=500, left=looks)

    desk = Desk(ANSWERS)
    async with hearing(pbx, desk):
        await pbx.until(lambda: not pbx.followed)

    assert IN in pbx.channels
    assert desk.told == []


async def test_a_step_that_is_under_way_outlives_the_event_connection(pbx):
    is_asked, may_answer = trio.Event(), trio.Event()

    async def desk(report: Report) -> Reply | None:
        if isinstance(report, VoiceRequest):
            is_asked.set()
            await may_answer.wait()
            return ConnectStream("tick")
        return None

    async with hearing(pbx, desk):
        await pbx.calls_in("offhook", IN)
        with trio.fail_after(60):
            await is_asked.wait()
        await pbx.apps["offhook"].aclose()
        await pbx.until(lambda: requests(pbx, "PUT", "/eventFilter") == 2)
        may_answer.set()
        await pbx.until(lambda: talks(pbx, IN))


async def test_an_event_that_cannot_be_read_is_passed_over(pbx):
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk):
        await pbx.apps["offhook"].send("no JSON at all")
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN))

    assert requests(pbx, "PUT", "/eventFilter") == 1


# -- ARI -----------------------------------------------------------------------------------


async def test_an_asterisk_that_is_too_old_is_refused_at_start(pbx):
    pbx.version = "22.7.0"

    with pytest.raises(ConfigurationError, match="too old"):
        async with carrier_of(pbx):
            pass


@pytest.mark.parametrize(
    ("status", "says"), [(401, "ASTERISK_USER"), (403, "ASTERISK_USER"), (404, "no ARI")]
)
async def test_what_has_to_be_set_is_said_at_start(pbx, status, says):
    pbx.fails("GET", "/asterisk/info", status=status)

    with pytest.raises(ConfigurationError, match=says):
        async with carrier_of(pbx):
            pass


async def test_an_asterisk_that_is_not_there_yet_is_waited_for(pbx):
    pbx.fails("GET", "/asterisk/info", status=503, left=3)
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk):
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN))


async def test_how_a_call_stands_can_be_asked(pbx):
    pbx.channels["offhook-1"] = {"state": "Ringing", "app": "offhook"}
    async with carrier_of(pbx) as carrier:
        known = await carrier.fetch_status("offhook-1")
        unknown = await carrier.fetch_status("offhook-2")

    assert (known.status, unknown.status) == (CallStatus.RINGING, CallStatus.COMPLETED)
    assert (known.is_unknown, unknown.is_unknown) == (False, True)


async def test_a_transferred_call_lasts_as_long_as_it_likes(pbx):
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk) as carrier:
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN) and IN in pbx.variables)
        await carrier.transfer(IN, THEM, ring_timeout_s=20.0)
        await pbx.until(lambda: not media_of(pbx, IN))

    assert pbx.variables[IN]["TIMEOUT(absolute)"] == "0"
    assert pbx.variables[IN]["OFFHOOK_RING_S"] == "20"
    assert pbx.sent_away == [IN]
    assert not [one for one in desk.told if isinstance(one, ResumeRequest)]


async def test_a_transfer_that_is_answered_before_we_are_leaves_the_caller_there(pbx):
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk) as carrier, trio.open_nursery() as nursery:
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN) and IN in pbx.variables)
        (media,) = media_of(pbx, IN)
        may_answer = trio.Event()
        pbx.fails("POST", "/continue", status=200, is_done=True, until=may_answer)
        with trio.CancelScope() as call:

            async def be_told() -> None:
                await pbx.until(lambda: pbx.sent_away)
                who = {"caller": pbx.shown(IN), "peer": {"id": "1764.99", "state": "Up"}}
                await pbx.tell("offhook", "Dial", dialstatus="ANSWER", **who)
                await desk.is_told(TransferUpdate)
                call.cancel()
                may_answer.set()

            nursery.start_soon(be_told)
            await carrier.transfer(IN, THEM, ring_timeout_s=20.0)
        await pbx.until(lambda: media not in pbx.channels)
        await pbx.ends(IN)
        await desk.is_told(StatusUpdate, 2)

    assert not [one for one in desk.told if isinstance(one, ResumeRequest)]
    assert desk.statuses[-1] is CallStatus.COMPLETED


async def test_a_transfer_that_fails_before_we_are_answered_leaves_the_caller_the_new_stream(pbx):
    desk = Desk({VoiceRequest: ConnectStream("tick"), TransferUpdate: ConnectStream("tock")})
    async with hearing(pbx, desk) as carrier, trio.open_nursery() as nursery:
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN) and IN in pbx.variables)
        (media,) = media_of(pbx, IN)
        may_answer = trio.Event()
        pbx.fails("POST", "/continue", status=200, is_done=True, until=may_answer)

        async def come_back() -> None:
            await pbx.until(lambda: pbx.sent_away)
            await pbx.comes_back(IN, "CHANUNAVAIL")
            await pbx.until(lambda: talks(pbx, IN) and media not in pbx.channels)
            may_answer.set()

        nursery.start_soon(come_back)
        await carrier.transfer(IN, THEM, ring_timeout_s=20.0)
        still_talks = talks(pbx, IN)

    assert still_talks
    assert desk.told[-1] == TransferUpdate(IN, CallStatus.FAILED, wants_document=True)


async def test_a_transfer_that_is_given_up_while_it_is_done_takes_the_stream_away(pbx):
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk) as carrier, trio.open_nursery() as nursery:
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN) and IN in pbx.variables)
        may_answer = trio.Event()
        pbx.fails("POST", "/continue", status=200, is_done=True, until=may_answer)
        with trio.CancelScope() as call:

            async def give_up() -> None:
                await pbx.until(lambda: pbx.sent_away)
                call.cancel()
                may_answer.set()

            nursery.start_soon(give_up)
            await carrier.transfer(IN, THEM, ring_timeout_s=20.0)
        left = media_of(pbx, IN)

    assert left == []
    assert not [one for one in desk.told if isinstance(one, ResumeRequest)]


async def test_a_transfer_that_is_given_up_before_it_is_done_leaves_the_call_as_it_was(pbx):
    async with hearing(pbx, Desk(ANSWERS)) as carrier, trio.open_nursery() as nursery:
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN) and IN in pbx.variables)
        (media,) = media_of(pbx, IN)
        never = trio.Event()
        pbx.fails("POST", "/variable", query="OFFHOOK_RING_S", status=200, until=never)
        with trio.CancelScope() as call:

            async def give_up() -> None:
                await pbx.until(lambda: pbx.variables[IN]["TIMEOUT(absolute)"] == "0")
                call.cancel()

            nursery.start_soon(give_up)
            await carrier.transfer(IN, THEM, ring_timeout_s=20.0)
        limit_s = pbx.variables[IN]["TIMEOUT(absolute)"]
        await carrier.reconnect(IN, "tock")
        await pbx.until(lambda: talks(pbx, IN) and media not in pbx.channels)

    assert limit_s == "14460"
    assert pbx.sent_away == []


async def test_a_caller_who_hangs_up_just_when_they_are_to_be_transferred_is_gone(pbx):
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk) as carrier, trio.open_nursery() as nursery:
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN))
        may_answer = trio.Event()
        pbx.fails("POST", "/subscription", status=422, until=may_answer)

        async def hang_up() -> None:
            await pbx.until(lambda: requests(pbx, "POST", "/subscription"))
            await pbx.ends(IN)
            await pbx.calls_in("offhook", "1764.2")  # what is told before that has been heard
            await pbx.until(lambda: talks(pbx, "1764.2"))
            may_answer.set()

        nursery.start_soon(hang_up)
        with pytest.raises(CarrierError):
            await carrier.transfer(IN, THEM, ring_timeout_s=20.0)
        await pbx.until(lambda: not media_of(pbx, IN))
        await desk.is_told(StatusUpdate, 3)

    assert desk.statuses[-1] is CallStatus.COMPLETED


@pytest.mark.parametrize("status", [403, 500])
async def test_a_refused_transfer_leaves_the_call_as_it_was(pbx, status):
    async with hearing(pbx, Desk({VoiceRequest: ConnectStream("tick")})) as carrier:
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN) and IN in pbx.variables)
        pbx.fails("POST", "/continue", status=status)
        with pytest.raises(CarrierError) as failed:
            await carrier.transfer(IN, THEM, ring_timeout_s=20.0)
        goes_on = talks(pbx, IN)
        await pbx.until(lambda: pbx.variables[IN]["TIMEOUT(absolute)"] == "14460")
        await carrier.reconnect(IN, "tock")
        await pbx.until(lambda: talks(pbx, IN))
        if status == 403:  # else they may have been sent away
            await pbx.until(lambda: not pbx.followed)

    assert failed.value.status == status
    assert goes_on
    assert requests(pbx, "DELETE", "/subscription") == (status == 403)


@pytest.mark.parametrize("status", [0, 500])
async def test_a_transfer_that_was_done_without_our_being_told_is_one(pbx, status):
    desk = Desk({VoiceRequest: ConnectStream("tick")})
    async with hearing(pbx, desk) as carrier:
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN) and IN in pbx.variables)
        pbx.fails("POST", "/continue", status=status, is_done=True)
        await carrier.transfer(IN, THEM, ring_timeout_s=20.0)
        await pbx.until(lambda: not media_of(pbx, IN))
        await pbx.ends(IN)
        await desk.is_told(StatusUpdate, 2)

    assert pbx.variables[IN]["TIMEOUT(absolute)"] == "0"
    assert desk.statuses[-1] is CallStatus.COMPLETED


async def test_a_transfer_that_was_done_without_our_being_answered_at_all_is_one(pbx):
    desk = Desk({VoiceRequest: ConnectStream("tick")})
    async with hearing(pbx, desk) as carrier:
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN) and IN in pbx.variables)
        may_fail = trio.Event()
        pbx.fails("POST", "/continue", is_done=True, until=may_fail)
        pbx.fails("GET", f"/channels/{IN}", status=503, left=ALWAYS)

        async def fail() -> None:
            await pbx.until(lambda: pbx.sent_away)
            await takes_another(pbx)  # what is told before that has been heard
            may_fail.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            await carrier.transfer(IN, THEM, ring_timeout_s=20.0)
        await pbx.until(lambda: not media_of(pbx, IN))
        await pbx.ends(IN)
        await desk.is_told(StatusUpdate, 4)

    assert pbx.variables[IN]["TIMEOUT(absolute)"] == "0"
    assert not [one for one in desk.told if isinstance(one, ResumeRequest)]
    assert desk.statuses[-1] is CallStatus.COMPLETED


async def test_a_transfer_of_which_nothing_at_all_is_told_is_found_to_be_one(pbx):
    desk = Desk({VoiceRequest: ConnectStream("tick")})
    async with hearing(pbx, desk) as carrier:
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN) and IN in pbx.variables)
        pbx.fails("POST", "/continue", is_done=True)
        pbx.fails("GET", f"/channels/{IN}", status=503)
        pbx.is_mute = True
        with pytest.raises(CarrierError):
            await carrier.transfer(IN, THEM, ring_timeout_s=20.0)
        await pbx.until(lambda: not media_of(pbx, IN))
        pbx.is_mute = False
        who = {"caller": pbx.shown(IN), "peer": {"id": "1764.99", "state": "Up"}}
        await pbx.tell("offhook", "Dial", dialstatus="ANSWER", **who)
        (update,) = await desk.is_told(TransferUpdate)

    assert update.status is CallStatus.IN_PROGRESS
    assert IN in pbx.channels
    assert not [one for one in desk.told if isinstance(one, ResumeRequest)]


async def test_a_transfer_that_is_made_after_it_was_given_up_lasts_as_long_as_it_likes(pbx):
    desk = Desk(ANSWERS | {TransferUpdate: ConnectStream("tock")})
    async with hearing(pbx, desk) as carrier:
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN) and IN in pbx.variables)
        is_made = trio.Event()
        pbx.fails("POST", "/continue")
        pbx.fails("GET", f"/channels/{IN}", status=503)
        pbx.fails("GET", f"/channels/{IN}", status=503, until=is_made)
        with pytest.raises(CarrierError):
            await carrier.transfer(IN, THEM, ring_timeout_s=20.0)
        late = Asked("POST", f"/ari/channels/{IN}/continue", {"extension": THEM}, None)
        await pbx.answer(late)
        is_made.set()
        await pbx.until(lambda: not media_of(pbx, IN))
        limit_s = pbx.variables[IN]["TIMEOUT(absolute)"]
        await pbx.comes_back(IN, "BUSY")
        await pbx.until(lambda: talks(pbx, IN) and pbx.variables[IN]["TIMEOUT(absolute)"] != "0")

    assert limit_s == "0"
    assert pbx.variables[IN]["TIMEOUT(absolute)"] == "14460"
    assert desk.statuses == [CallStatus.IN_PROGRESS]


@pytest.mark.parametrize("status", [403, 500])
async def test_a_stream_that_ends_while_a_transfer_is_refused_is_replaced(pbx, status):
    desk = Desk(ANSWERS | {ResumeRequest: ConnectStream("tock")})
    async with hearing(pbx, desk) as carrier:
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN) and IN in pbx.variables)
        (media,) = media_of(pbx, IN)
        may_fail = trio.Event()
        pbx.fails("POST", "/continue", status=status, until=may_fail)

        async def fail() -> None:
            await pbx.until(lambda: requests(pbx, "POST", "/continue"))
            await pbx.ends(media)
            await desk.is_told(ResumeRequest)
            await takes_another(pbx)  # what was answered has been done
            may_fail.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            with pytest.raises(CarrierError):
                await carrier.transfer(IN, THEM, ring_timeout_s=20.0)
        await pbx.until(lambda: talks(pbx, IN))

    assert len([one for one in desk.told if isinstance(one, ResumeRequest)]) == 2
