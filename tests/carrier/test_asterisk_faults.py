"""What Asterisk can refuse, lose or say that nobody can read: no call is left, and others go on."""

from __future__ import annotations

import pytest
import trio

from server.carrier import (
    CallStatus,
    ResumeRequest,
    StatusUpdate,
    TransferUpdate,
    VoiceRequest,
)
from server.carrier.asterisk import carrier as carriers
from server.carrier.asterisk.ari import MAX_EVENT_BYTES, Ari
from server.carrier.webhooks import ConnectStream, SayAndEndCall
from server.errors import CarrierError, ConfigurationError
from tests.carrier.test_asterisk_carrier import (
    ANSWERS,
    IN,
    THEM,
    Desk,
    carrier_of,
    hearing,
    media_of,
    place,
    requests,
    takes_another,
    talks,
)
from tests.support.ari import ALWAYS, fake_ari

pytestmark = pytest.mark.sockets

STATUSES = (0, 400, 401, 404, 409, 412, 422, 500, 503)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """Nothing here depends on how long is waited before something is tried again."""
    monkeypatch.setattr(carriers, "AGAIN_S", (0.0, 0.01, 0.01))
    monkeypatch.setattr(carriers, "PAUSES_S", (0.01,))


@pytest.fixture
async def pbx():
    async with fake_ari() as one:
        yield one


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("ends", ["/answer", "/externalMedia", "/bridges", "/addChannel"])
async def test_a_new_call_of_which_a_step_is_refused_is_ended_and_the_next_talks(pbx, ends, status):
    pbx.fails("POST", ends, status=status)
    async with hearing(pbx, Desk(ANSWERS)):
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: IN not in pbx.channels)
        await pbx.until(lambda: not pbx.channels and not pbx.bridges)
        await takes_another(pbx)
        await pbx.until(lambda: not pbx.channels and not pbx.bridges)


@pytest.mark.parametrize("status", STATUSES)
async def test_a_call_whose_apology_cannot_be_played_is_ended(pbx, status):
    pbx.fails("POST", "/play", status=status)
    async with hearing(pbx, Desk({VoiceRequest: SayAndEndCall("Sorry.", "en")})):
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: IN not in pbx.channels)


@pytest.mark.parametrize("status", [status for status in STATUSES if status != 404])
async def test_what_is_refused_when_a_call_is_cleared_away_is_asked_for_again(pbx, status):
    async with hearing(pbx, Desk(ANSWERS)):
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN))
        (media,) = media_of(pbx, IN)
        pbx.fails("DELETE", f"/channels/{media}", status=status)
        await pbx.ends(IN)
        await pbx.until(lambda: not pbx.channels and not pbx.bridges)


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("ends", ["/subscription", "/variable", "/continue"])
async def test_a_transfer_of_which_a_step_is_refused_leaves_the_call_to_its_agent(
    pbx, ends, status
):
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk) as carrier:
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN) and IN in pbx.variables)
        query = "OFFHOOK_RING_S" if ends == "/variable" else ""
        pbx.fails("POST", ends, status=status, query=query)
        with pytest.raises(CarrierError):
            await carrier.transfer(IN, THEM, ring_timeout_s=20.0)
        still_talks = talks(pbx, IN)
        await pbx.ends(IN)
        await desk.is_told(StatusUpdate, 2)

    assert still_talks
    assert desk.statuses[-1] is CallStatus.COMPLETED


@pytest.mark.parametrize("status", [status for status in STATUSES if status != 404])
async def test_a_transfer_is_one_though_its_stream_cannot_be_taken_away_at_once(pbx, status):
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk) as carrier:
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN) and IN in pbx.variables)
        (media,) = media_of(pbx, IN)
        pbx.fails("DELETE", f"/channels/{media}", status=status)
        await carrier.transfer(IN, THEM, ring_timeout_s=20.0)
        await pbx.until(lambda: not media_of(pbx, IN))

    assert pbx.sent_away
    assert not [one for one in desk.told if isinstance(one, ResumeRequest)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    ["{", "null", '{"type": 5}', '{"type": "StasisStart", "channel": "x"}', "x" * 300_000],
    ids=["cut off", "null", "no type", "no channel", "giant"],
)
async def test_an_event_that_nobody_can_read_takes_neither_calls_nor_what_comes_next(pbx, text):
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk):
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN))
        listener = pbx.apps["offhook"]
        await listener.send(text)
        if len(text) > MAX_EVENT_BYTES:  # that connection is given up
            await pbx.until(lambda: pbx.apps.get("offhook") not in (None, listener))
        await takes_another(pbx)

    assert talks(pbx, IN)


async def test_a_phone_that_is_refused_unheard_does_not_ring_on(pbx):
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk) as carrier:
        call = await place(carrier)
        await pbx.apps["offhook"].aclose()
        await pbx.until(lambda: "offhook" not in pbx.apps)
        await pbx.ends(call, cause=17)
        await desk.is_told(StatusUpdate)

    assert desk.statuses == [CallStatus.FAILED]  # why is nowhere to be asked


async def test_a_phone_that_is_refused_unheard_is_not_completed_when_it_is_asked_about(pbx):
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk) as carrier:
        call = await place(carrier)
        pbx.is_mute = True  # it tells nobody
        await pbx.ends(call, cause=17)
        asked = await carrier.fetch_status(call)
        await desk.is_told(StatusUpdate)

    assert (asked.status, asked.sequence_number) == (CallStatus.INITIATED, None)
    assert desk.statuses == [CallStatus.FAILED]


async def test_why_a_phone_was_refused_counts_though_it_is_told_after_it_was_asked_about(pbx):
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk) as carrier:
        call = await place(carrier)
        pbx.is_mute = True  # for now
        await pbx.ends(call, cause=17)
        await carrier.fetch_status(call)
        pbx.is_mute = False
        await pbx.tell("offhook", "ChannelDestroyed", call, cause=17)
        await desk.is_told(StatusUpdate)

    assert desk.statuses == [CallStatus.BUSY]


async def test_a_caller_who_came_back_unheard_is_asked_about(pbx):
    desk = Desk({VoiceRequest: ConnectStream("tick"), TransferUpdate: ConnectStream("tock")})
    async with hearing(pbx, desk) as carrier:
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN))
        await carrier.transfer(IN, THEM, ring_timeout_s=20.0)
        await pbx.until(lambda: not media_of(pbx, IN))
        pbx.is_mute = True  # it tells nobody
        await pbx.comes_back(IN, "BUSY")
        pbx.is_mute = False
        await pbx.apps["offhook"].aclose()
        await pbx.until(lambda: talks(pbx, IN))

    (update,) = [one for one in desk.told if isinstance(one, TransferUpdate)]
    assert update == TransferUpdate(IN, CallStatus.BUSY, wants_document=True)


async def test_a_caller_who_comes_in_unheard_is_answered(pbx):
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk):
        pbx.is_mute = True  # it tells nobody
        await pbx.calls_in("offhook", IN, "X-Agent=sales")
        pbx.is_mute = False
        await pbx.apps["offhook"].aclose()
        await pbx.until(lambda: talks(pbx, IN))

    (asked,) = [one for one in desk.told if isinstance(one, VoiceRequest)]
    assert (asked.number, asked.headers) == ("+15005550100", {"X-Agent": "sales"})
    assert desk.statuses == [CallStatus.IN_PROGRESS]


async def test_a_phone_that_is_heard_to_be_answered_but_not_to_come_gets_its_stream(pbx):
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk) as carrier:
        call = await place(carrier)
        pbx.channels[call]["state"] = "Up"
        await pbx.tell("offhook", "ChannelStateChange", call)
        pbx.is_mute = True  # the rest is told to nobody
        await pbx.answers(call)
        pbx.is_mute = False
        await desk.is_told(StatusUpdate)
        await pbx.apps["offhook"].aclose()
        await pbx.until(lambda: talks(pbx, call))

    assert desk.statuses == [CallStatus.IN_PROGRESS]


async def test_a_password_that_is_changed_later_is_told_and_taken_up_again(pbx, capsys):
    desk = Desk(ANSWERS)
    async with hearing(pbx, desk):
        await pbx.calls_in("offhook", IN)
        await pbx.until(lambda: talks(pbx, IN))
        asked = requests(pbx, "GET", "/asterisk/info")
        pbx.fails("GET", "/asterisk/info", status=401, left=3)
        await pbx.apps["offhook"].aclose()
        await pbx.until(lambda: requests(pbx, "GET", "/asterisk/info") >= asked + 4)
        await pbx.until(lambda: "offhook" in pbx.apps)
        await takes_another(pbx)

    assert "they must be a user of ari.conf that is not read_only" in capsys.readouterr().out
    assert talks(pbx, IN)


async def test_a_user_who_may_only_read_is_told_of_where_something_is_asked_for(pbx):
    pbx.fails("POST", "/channels", status=403, left=ALWAYS)
    async with hearing(pbx, Desk(ANSWERS)) as carrier:
        with pytest.raises(CarrierError, match="not read_only"):
            await place(carrier)


async def test_a_wrong_password_at_the_start_is_refused_with_what_to_do(pbx):
    pbx.fails("GET", "/asterisk/info", status=401, left=ALWAYS)
    with pytest.raises(ConfigurationError, match="ASTERISK_SECRET"):
        async with carrier_of(pbx):
            pass


async def test_a_second_server_with_the_same_app_is_told_of_and_not_driven_out(pbx, capsys):
    waits: list[float] = []
    async with hearing(pbx, Desk(ANSWERS)) as carrier:
        first, is_told = pbx.apps["offhook"], trio.Event()

        def on_wait(wait_s: float) -> None:
            waits.append(wait_s)
            is_told.set()

        carrier.on_wait = on_wait
        async with hearing(pbx, Desk(ANSWERS)):
            await pbx.until(lambda: pbx.apps["offhook"] is not first)
            second = pbx.apps["offhook"]
            with trio.fail_after(60):
                await is_told.wait()
            still = pbx.apps["offhook"]

    assert waits == [carriers.REPLACED_PAUSE_S]
    assert still is second
    assert "ASTERISK_APP must be one's own" in capsys.readouterr().out


async def test_a_process_that_was_stood_in_for_hears_its_app_at_once_and_drives_nobody_out(
    pbx, monkeypatch, capsys
):
    monkeypatch.setattr(carriers, "STOOD_IN_PAUSE_S", 0.01)
    waits: list[float] = []
    async with hearing(pbx, Desk(ANSWERS), "0") as carrier:
        first, has_waited = pbx.apps["offhook-0"], trio.Event()

        def on_wait(wait_s: float) -> None:
            waits.append(wait_s)
            if len(waits) == 2:
                has_waited.set()

        carrier.on_wait = on_wait
        async with hearing(pbx, Desk(ANSWERS), "0"):
            await pbx.until(lambda: pbx.apps["offhook-0"] is not first)
            with trio.fail_after(60):  # it takes them back, and so does the other
                await has_waited.wait()

    assert waits == [0.01, carriers.REPLACED_PAUSE_S]
    assert capsys.readouterr().out.count("ASTERISK_APP must be one's own") == 1


async def test_an_asterisk_whose_name_is_looked_up_in_vain_was_not_asked(
    autojump_clock, silent_names
):
    async with Ari("http://pbx.example:8088", "offhook", "secret", timeout_s=9.0) as ari:
        with pytest.raises(CarrierError, match="was not reached") as failed:
            await ari.post("channels")

    assert not failed.value.outcome_unknown
