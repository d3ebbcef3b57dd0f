"""Calls through a real Asterisk, judged at the telephone: what it hears, and how it ends."""

from __future__ import annotations

import json
from math import cos, hypot, pi, sin, sqrt
from pathlib import Path

import pytest
import trio
from websockets.trio.client import connect

import codec
from codec.shapes import ALAW
from server.agent.greeting import read_greeting
from server.call.call import Call
from server.carrier import MAX_CALL_SID_CHARS
from tests.asterisk.conftest import exchange_of
from tests.support.asterisk import (
    APOLOGY,
    CONFIGURATION,
    SECRET,
    USER,
    asterisk,
    needs_asterisk,
    until,
)
from tests.support.sip_phone import Ended, open_phone

pytestmark = [needs_asterisk, pytest.mark.sockets, pytest.mark.slow]

SPEECH = Path(__file__).parent.parent.parent / "server" / "speech"
US = "+15005550006"
THEM = "+15005550101"
ANSWERED_BEFORE = "100"
"""An extension that answers, and then gives the call to the server."""


def loudness(frame: bytes) -> float:
    """Root mean square of a frame's samples."""
    samples = memoryview(codec.decode_mulaw(frame)).cast("h")
    return sqrt(sum(sample * sample for sample in samples) / max(1, len(samples)))


async def hears_speech(phone, frames: int = 10, after: int = 0) -> float:
    """Wait until a telephone has heard so many loud frames; returns when the first of them came."""
    loud: list[float] = []

    async def are_heard() -> bool:
        loud[:] = [at for at, one in phone.heard[after:] if loudness(one) > 200]
        return len(loud) >= frames

    await until(are_heard)
    return loud[0]


async def noted(call, what: str) -> None:
    """Wait until something is in a call's timeline."""

    async def is_noted() -> bool:
        return what in happened(call)

    await until(is_noted)


def happened(call) -> list[str]:
    """What is in a call's timeline."""
    return [what for _, what, _ in call.conversation.notes.timeline]


async def ended(exchange, call) -> None:
    """Wait until a call is over, here and at Asterisk."""
    with trio.fail_after(60):
        await call.finished.wait()
        await exchange.nothing_left()


async def talk_shortly(exchange, phone, nursery):
    """Have somebody call, be greeted and hang up: the call, which is over."""
    nursery.start_soon(phone.run)
    await phone.call(US)
    await hears_speech(phone)
    call = await exchange.only_call()
    await phone.hang_up()
    await ended(exchange, call)
    return call


async def test_a_caller_is_greeted_and_hangs_up(exchange, nursery):
    async with exchange.phone() as phone:
        call = await talk_shortly(exchange, phone, nursery)

    assert call.end_reason == "caller-hung-up"
    assert call.direction == "inbound"
    assert call.progress.status == "completed"


async def test_a_call_that_the_dialplan_answered_before_us_is_in_progress_and_completed(
    exchange, nursery
):
    async with exchange.phone() as phone:
        nursery.start_soon(phone.run)
        await phone.call(ANSWERED_BEFORE)
        await hears_speech(phone)
        call = await exchange.only_call()
        during = call.progress.status
        await phone.hang_up()
        await ended(exchange, call)

    assert during == "in-progress"
    assert call.end_reason == "caller-hung-up"
    assert call.progress.status == "completed"


async def test_a_call_with_the_longest_name_talks_and_is_found_in_its_record(nursery, tmp_path):
    systemname = "pbx-" + "x" * (MAX_CALL_SID_CHARS - len("pbx--1700000000.99"))
    options = f"{CONFIGURATION['asterisk.conf']}[options]\nsystemname = {systemname}\n"
    database = f"sqlite:///{tmp_path}/offhook.db"
    async with (
        asterisk(files={"asterisk.conf": options}) as pbx,
        exchange_of(pbx, database_url=database, recent_calls=0) as exchange,
        exchange.phone() as phone,
    ):
        call = await talk_shortly(exchange, phone, nursery)
        await exchange.server.service.records.wait_saved()
        found = await exchange.server.http.get(f"/calls/{call.call_sid}")

    assert call.call_sid.startswith(systemname)
    assert found.json()["call_sid"] == call.call_sid


async def test_a_call_is_placed_answered_and_ended_by_us(exchange, nursery):
    async with exchange.phone(is_callee=True) as phone:
        nursery.start_soon(phone.run)
        call_sid = await exchange.make_call(THEM)
        call = await exchange.only_call()
        dialled = await phone.take_call()
        await hears_speech(phone)
        await exchange.server.http.post(f"/calls/{call_sid}/hang-up")
        await ended(exchange, call)
        with trio.fail_after(10):
            await phone.ended.wait()

    assert dialled == THEM
    assert call.call_sid == call_sid
    assert [what for what in happened(call) if what in ("ringing", "in-progress", "answered")] == [
        "ringing",
        "in-progress",
        "answered",
    ]


@pytest.mark.parametrize(
    ("given", "reason"),
    [({"refuse": 486}, "busy"), ({"refuse": 503}, "failed"), ({"ignore": True}, "no-answer")],
    ids=["busy", "unavailable", "no answer"],
)
async def test_a_call_that_nobody_takes_ends_as_what_it_was(exchange, nursery, given, reason):
    async with exchange.phone(is_callee=True) as phone:
        await exchange.make_call(THEM)
        call = await exchange.only_call()
        with pytest.raises(Ended):
            await phone.take_call(**given)
        await ended(exchange, call)

    assert call.end_reason == reason


async def test_a_caller_interrupts(exchange, nursery):
    async with exchange.phone() as phone:
        nursery.start_soon(phone.run)
        await phone.call(US)
        await hears_speech(phone, frames=100)
        call = await exchange.only_call()
        phone.says += read_greeting(SPEECH / "caller-interrupt.wav")
        await noted(call, "barge-in")
        heard = len(phone.heard)
        await hears_speech(phone, after=heard)
        await phone.hang_up()
        await ended(exchange, call)

    assert "agent held" in happened(call)
    assert call.conversation.notes.transcript.turns[0].cut


async def test_keys_that_the_caller_presses_are_told_to_the_model(exchange, nursery):
    async with exchange.phone() as phone:
        nursery.start_soon(phone.run)
        await phone.call(US)
        await hears_speech(phone)
        call = await exchange.only_call()
        for key in "42#":
            await phone.press(key)
        await noted(call, "digit")
        await phone.hang_up()
        await ended(exchange, call)

    assert happened(call).count("digit") == 3


async def test_a_call_that_fails_ends_with_the_recorded_apology(pbx, nursery):
    async with exchange_of(pbx, model="bad-setup") as exchange, exchange.phone() as phone:
        nursery.start_soon(phone.run)
        await phone.call(US)
        call = await exchange.only_call()
        with trio.fail_after(60):
            await phone.ended.wait()
        await ended(exchange, call)

    apology = read_greeting(SPEECH / APOLOGY)
    heard = b"".join(frame for _, frame in phone.heard)
    middle = apology[len(apology) // 2 :][:800]
    assert middle in heard
    assert "apology" in happened(call)


async def test_a_caller_who_is_gone_without_a_word_is_noticed(nursery):
    async with (
        asterisk(rtp_timeout_s=3) as pbx,
        exchange_of(pbx) as exchange,
        exchange.phone() as phone,
    ):
        nursery.start_soon(phone.run)
        await phone.call(US)
        await hears_speech(phone)
        call = await exchange.only_call()
        phone.is_mute = True
        await ended(exchange, call)

    assert call.end_reason == "caller-hung-up"


async def test_calls_end_when_asterisk_is_gone_and_others_come_when_it_is_back(exchange, nursery):
    pbx = exchange.pbx
    async with exchange.phone() as phone, exchange.phone() as other:
        nursery.start_soon(phone.run)
        nursery.start_soon(other.run)
        await phone.call(US)
        await hears_speech(phone)
        call = await exchange.only_call()
        await pbx.kill()
        with trio.fail_after(60):
            await call.finished.wait()
        await pbx.start()
        await pbx.has_app("offhook")
        await other.call(US)
        await hears_speech(other)
        second = await exchange.only_call()
        await other.hang_up()
        await ended(exchange, second)

    assert call.end_reason == "caller-gone"
    assert second.end_reason == "caller-hung-up"


async def test_a_phone_that_rings_when_asterisk_is_restarted_is_known_to_ring_no_more(pbx, nursery):
    async with (
        exchange_of(pbx, ring_timeout_s=120) as exchange,
        exchange.phone(is_callee=True) as phone,
    ):
        await exchange.make_call(THEM)
        call = await exchange.only_call()
        await phone.rings()
        await noted(call, "ringing")
        await pbx.kill()
        await pbx.start()
        await ended(exchange, call)

    assert call.end_reason == "failed"


def begins_transfer(nursery: trio.Nursery, call: Call) -> tuple[list[str], trio.Event]:
    """Transfer a call's caller to sales; what came of that is in the list once they are back."""
    outcomes: list[str] = []
    is_back = trio.Event()

    async def transfer() -> None:
        outcomes.append(await call.transfer("sales", THEM))
        is_back.set()

    nursery.start_soon(transfer)
    return outcomes, is_back


async def test_a_caller_comes_back_from_a_transfer_that_nobody_takes(exchange, nursery):
    async with exchange.phone() as phone, exchange.phone(is_callee=True) as sales:
        nursery.start_soon(phone.run)
        await phone.call(US)
        await hears_speech(phone)
        call = await exchange.only_call()
        outcomes, is_back = begins_transfer(nursery, call)
        with pytest.raises(Ended):
            await sales.take_call(refuse=486)
        with trio.fail_after(60):
            await is_back.wait()
        heard = len(phone.heard)
        call.conversation.session.send_text("Hello?")
        await hears_speech(phone, after=heard)
        told_of = (await exchange.pbx.ask("applications", "offhook"))["channel_ids"]
        await phone.hang_up()
        await ended(exchange, call)

    assert outcomes == ["busy"]
    assert call.call_sid in told_of  # though it has asked not to be told of them elsewhere
    assert call.end_reason == "caller-hung-up"


async def test_a_transferred_caller_talks_with_somebody_else(exchange, nursery):
    async with exchange.phone() as phone, exchange.phone(is_callee=True) as sales:
        nursery.start_soon(phone.run)
        nursery.start_soon(sales.run)
        await phone.call(US)
        await hears_speech(phone)
        call = await exchange.only_call()
        nursery.start_soon(call.transfer, "sales", THEM)
        await sales.take_call()
        with trio.fail_after(60):
            await call.finished.wait()
        heard = len(phone.heard)
        sales.says += read_greeting(SPEECH / "caller-hello.wav")
        await hears_speech(phone, after=heard)
        await phone.hang_up()
        with trio.fail_after(60):
            await sales.ended.wait()
        await exchange.nothing_left()

    assert call.end_reason == "transferred"


async def test_a_transferred_caller_goes_on_talking_when_the_server_is_restarted(pbx, nursery):
    async def followed() -> list[str]:
        return (await pbx.ask("applications", "offhook")).get("channel_ids", [])

    async def follows_nobody() -> bool:
        return await followed() == []

    async with open_phone(pbx.sip) as phone, open_phone(pbx.sip, port=pbx.callee_port) as sales:
        nursery.start_soon(phone.run)
        nursery.start_soon(sales.run)
        async with exchange_of(pbx) as exchange:
            await phone.call(US)
            await hears_speech(phone)
            call = await exchange.only_call()
            nursery.start_soon(call.transfer, "sales", THEM)
            await sales.take_call()
            with trio.fail_after(60):
                await call.finished.wait()
        left = await followed()
        async with exchange_of(pbx) as exchange:
            await until(follows_nobody)
            heard = len(phone.heard)
            sales.says += read_greeting(SPEECH / "caller-hello.wav")
            await hears_speech(phone, after=heard)
            await phone.hang_up()
            await exchange.nothing_left()

    assert call.end_reason == "transferred"
    assert left == [call.call_sid]


@pytest.mark.parametrize("law", ["ulaw", "alaw"])
async def test_all_that_either_says_is_heard_by_the_other_code_by_code(nursery, law):
    said = read_greeting(SPEECH / "caller-question.wav")
    async with asterisk(law=law) as pbx, exchange_of(pbx, asterisk_law=law) as exchange:
        greeting = codec.MulawEncoder(24_000).encode(exchange.gemini.greeting.pcm)
        async with open_phone(pbx.sip, law=law) as phone:
            nursery.start_soon(phone.run)
            await phone.call(US)
            await hears_speech(phone)

            async def has_heard_all() -> bool:
                return sum(len(frame) for _, frame in phone.heard) >= len(greeting) - 160

            await until(has_heard_all)
            call = await exchange.only_call()
            phone.says += said if law == "ulaw" else said.translate(ALAW.of_mulaw)
            await noted(call, "agent turn")
            session = exchange.gemini.sessions[-1]
            heard_by_model = codec.MulawDecoder(16_000).decode(
                said if law == "ulaw" else said.translate(ALAW.of_mulaw).translate(ALAW.to_mulaw)
            )
            middle = heard_by_model[6_400:-6_400]

            async def model_has_heard() -> bool:
                return middle in session.heard

            await until(model_has_heard)
            await phone.hang_up()
            await ended(exchange, call)

    heard = b"".join(frame for _, frame in phone.heard)
    wanted = greeting[: len(greeting) // 160 * 160]
    assert (wanted if law == "ulaw" else wanted.translate(ALAW.of_mulaw)) in heard
    assert phone.lost == 0


async def test_twenty_callers_at_once_lose_nothing(exchange, nursery):
    greeting = codec.MulawEncoder(24_000).encode(exchange.gemini.greeting.pcm)
    greeting = greeting[: len(greeting) // 160 * 160]
    missed: list[int] = []

    async def call() -> None:
        async with exchange.phone() as phone, trio.open_nursery() as talk:
            talk.start_soon(phone.run)
            await phone.call(US)
            with trio.fail_after(60):
                while sum(len(frame) for _, frame in phone.heard) < len(greeting):
                    await phone.news.wait()
            heard = b"".join(frame for _, frame in phone.heard)
            if greeting not in heard or phone.lost:
                missed.append(phone.lost)
            await phone.hang_up()

    async with trio.open_nursery() as callers:
        for _ in range(20):
            callers.start_soon(call)
    await exchange.nothing_left()

    assert missed == []


def tone(frames: list[bytes], hz: float) -> float:
    """How much of a tone there is in what was heard, of 1 (Goertzel)."""
    samples = memoryview(codec.decode_mulaw(b"".join(frames))).cast("h")
    whole = sqrt(sum(sample * sample for sample in samples) * len(samples) / 2) or 1.0
    turn = 2 * pi * hz / 8_000
    real = sum(sample * cos(turn * at) for at, sample in enumerate(samples))
    imaginary = sum(sample * sin(turn * at) for at, sample in enumerate(samples))
    return hypot(real, imaginary) / whole


async def test_keys_that_the_agent_presses_are_heard_as_tones(pbx, nursery):
    async with exchange_of(pbx, agent_greeting="") as exchange, exchange.phone() as phone:
        nursery.start_soon(phone.run)
        await phone.call(US)
        call = await exchange.only_call()
        await noted(call, "answered")
        with trio.fail_after(30):
            await call.press_keys("5")
        await hears_speech(phone, frames=4)  # they may have played before the test had its turn
        heard = [frame for _, frame in phone.heard if loudness(frame) > 200]
        await phone.hang_up()
        await ended(exchange, call)

    assert len(heard) >= 4
    assert tone(heard[1:4], 770) > 0.5  # ITU-T Q.23: the two tones of a 5
    assert tone(heard[1:4], 1_336) > 0.5
    assert tone(heard[1:4], 941) < 0.3


async def test_a_caller_who_rings_when_another_server_leaves_is_answered(pbx, nursery):
    url = f"ws://127.0.0.1:{pbx.http_port}/ari/events?app=offhook&api_key={USER}:{SECRET}"
    async with open_phone(pbx.sip) as phone:
        nursery.start_soon(phone.run)
        async with connect(url, proxy=None) as another:
            await pbx.has_app("offhook")
            nursery.start_soon(phone.call, US)
            while json.loads(await another.recv())["type"] != "StasisStart":
                pass
        async with exchange_of(pbx) as exchange:
            await hears_speech(phone)
            call = await exchange.only_call()
            await phone.hang_up()
            await ended(exchange, call)

    assert call.end_reason == "caller-hung-up"
    assert call.direction == "inbound"


async def is_heard_again(exchange, phone, call) -> None:
    """Wait until the caller hears the agent over another stream, and then have them hang up."""
    await noted(call, "line back")
    heard = len(phone.heard)
    call.conversation.session.send_text("Hello?")
    await hears_speech(phone, after=heard)
    await phone.hang_up()
    await ended(exchange, call)


async def test_a_lost_stream_is_replaced_while_the_call_goes_on(exchange, nursery):
    async with exchange.phone() as phone:
        nursery.start_soon(phone.run)
        await phone.call(US)
        await hears_speech(phone)
        call = await exchange.only_call()
        (first,) = [one["id"] for one in await pbx_channels(exchange) if "media" in one["id"]]
        await exchange.pbx.delete("channels", first)
        await is_heard_again(exchange, phone, call)

    assert call.end_reason == "caller-hung-up"


async def test_a_caller_whom_the_pbx_sends_to_us_again_is_heard_again(exchange, nursery):
    async with exchange.phone() as phone:
        nursery.start_soon(phone.run)
        await phone.call(US)
        await hears_speech(phone)
        call = await exchange.only_call()
        (name,) = [
            one["name"] for one in await pbx_channels(exchange) if one["id"] == call.call_sid
        ]
        await exchange.pbx.command(f"channel redirect {name} from-trunk,{US},1")
        await is_heard_again(exchange, phone, call)

    assert call.end_reason == "caller-hung-up"


async def test_a_caller_whom_the_pbx_takes_from_a_transfer_and_sends_to_us_is_talked_to(
    exchange, nursery
):
    async with exchange.phone() as phone, exchange.phone(is_callee=True) as sales:
        nursery.start_soon(phone.run)
        await phone.call(US)
        await hears_speech(phone)
        call = await exchange.only_call()
        outcomes, is_back = begins_transfer(nursery, call)
        invite = await sales.rings()
        (caller,) = [one for one in await pbx_channels(exchange) if one["id"] == call.call_sid]
        await exchange.pbx.command(f"channel redirect {caller['name']} from-trunk,{US},1")
        with pytest.raises(Ended):
            await sales.ring_on(invite)
        with trio.fail_after(60):
            await is_back.wait()
        heard = len(phone.heard)
        call.conversation.session.send_text("Hello?")
        await hears_speech(phone, after=heard)
        await phone.hang_up()
        await ended(exchange, call)

    assert caller["dialplan"]["exten"] == THEM  # by which a transfer is told that was made unheard
    assert outcomes == ["failed"]
    assert call.end_reason == "caller-hung-up"


async def pbx_channels(exchange) -> list[dict]:
    """What channels there are at Asterisk."""
    return await exchange.pbx.ask("channels")
