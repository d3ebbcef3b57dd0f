"""Events of a whole server: what a receiver gets of calls, and what clients may ask."""

from __future__ import annotations

import base64
import sys
import types

import pytest
import trio
from standardwebhooks import Webhook

from server.errors import ConfigurationError
from server.events.handlers import on
from server.settings.settings import Settings
from tests.support.receivers import receiving
from tests.support.serving import serving

pytestmark = pytest.mark.sockets
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


async def test_a_receiver_is_told_of_a_call_from_its_beginning_to_its_whole_record(tmp_path):
    async with receiving() as receiver:
        settings = {
            "events_url": receiver.url,
            "events_secret": SECRET,
            "events_allow_private": True,
            "recordings_dir": tmp_path,
            "database_url": f"sqlite:///{tmp_path}/offhook.db",
        }
        with trio.fail_after(60.0):
            async with serving(**settings) as server:
                call_sid = (await server.make_call("5550103")).json()["call_sid"]
                record = await server.finished(call_sid)
                await receiver.wait_taken(4)

    contents = [Webhook(SECRET).verify(one.body, one.headers) for one in receiver.taken]
    kinds = ["call.started", "call.answered", "call.recording", "call.ended"]
    assert [content["type"] for content in contents] == kinds
    last = contents[-1]["data"]
    assert last["links"]["call"].endswith(f"/calls/{call_sid}")
    later = {"status", "cost", "timeline", "recording"}  # what is known after the end only
    assert last["call"].keys() == record.keys()
    assert {n: v for n, v in last["call"].items() if n not in later} == {
        n: v for n, v in record.items() if n not in later
    }


async def taken(receiver, kind: str) -> None:
    while kind not in [one.content["type"] for one in receiver.taken]:
        await receiver.wait_taken(len(receiver.taken) + 1)


@pytest.mark.slow
@pytest.mark.parametrize("wants", [True, False])
async def test_who_wants_it_is_told_of_each_turn_before_the_end(wants):
    async with receiving() as receiver:
        settings = {
            "events_url": receiver.url,
            "events_secret": SECRET,
            "events_allow_private": True,
            "events_turns": wants,
        }
        with trio.fail_after(60.0):
            async with serving(**settings) as server:
                call_sid = (await server.make_call("5550101")).json()["call_sid"]
                await taken(receiver, "call.turn" if wants else "call.answered")
                await server.http.post(f"/calls/{call_sid}/hang-up")
                await taken(receiver, "call.ended")

    contents = [one.content for one in receiver.taken]
    record = contents[-1]["data"]["call"]
    turns = [one["data"]["turn"] for one in contents if one["type"] == "call.turn"]
    kinds = [one["type"] for one in contents]
    if wants:
        assert [turn.pop("number") for turn in turns] == list(range(len(turns)))
        assert contents[2]["data"]["call"]["state"] == "live"
        assert [turn["text"] for turn in turns] == [one["text"] for one in record["transcript"]]
    assert kinds == [
        "call.started", "call.answered", *["call.turn"] * len(turns), "call.ended",
    ]  # fmt: skip
    assert bool(turns) == wants


async def test_a_call_that_nobody_answers_has_failed_and_its_own_receiver_is_told():
    async with receiving() as usual, receiving() as own:
        settings = {
            "events_url": usual.url,
            "events_secret": SECRET,
            "events_allow_private": True,
        }
        with trio.fail_after(60.0):
            async with serving(**settings) as server:
                made = await server.make_call("5550104", events_url=own.url)
                await own.wait_taken(3)

    assert made.status_code == 201
    assert [one.content["type"] for one in own.taken] == [
        "call.started", "call.failed", "call.ended",
    ]  # fmt: skip
    assert usual.received == []


@pytest.mark.parametrize(
    ("settings", "url", "why"),
    [
        ({}, "https://example.com/", "EVENTS_SECRET"),
        ({"events_secret": SECRET}, "http://example.com/", "https://"),
        ({"events_secret": SECRET}, "https://127.0.0.1/", "private"),
    ],
)
async def test_a_receiver_that_cannot_be_told_is_refused_before_the_call(settings, url, why):
    async with serving(**settings) as server:
        answer = await server.make_call(events_url=url)

    assert answer.status_code == 422
    assert why in answer.json()["fields"]["events_url"]


async def test_a_server_that_stops_has_its_functions_called_with_how_calls_ended(monkeypatch):
    module, seen = types.ModuleType("slow_events"), []

    @on("call.ended")
    async def ended(event):
        await trio.sleep(0.5)
        seen.append(event["data"]["call"]["call_sid"])

    module.ended = ended
    monkeypatch.setitem(sys.modules, "slow_events", module)

    with trio.fail_after(60.0):
        async with serving(event_handlers=["slow_events"]) as server:
            call_sid = (await server.make_call("5550104")).json()["call_sid"]
            await server.finished(call_sid)
            await server.service.drain()
            before_the_end = list(seen)

    assert before_the_end == [call_sid]


async def test_what_was_given_up_is_listed_and_sent_again_by_a_request(tmp_path):
    async with receiving(lambda received: 410) as receiver:
        settings = {
            "events_url": receiver.url,
            "events_secret": SECRET,
            "events_allow_private": True,
            "database_url": f"sqlite:///{tmp_path}/offhook.db",
        }
        with trio.fail_after(60.0):
            async with serving(**settings) as server:
                await server.make_call("5550104")
                await receiver.wait_received(3)
                while True:
                    dead = (await server.http.get("/events/dead")).json()["events"]
                    if len(dead) == 3:
                        break
                    await trio.sleep(0.02)
                receiver.answer = lambda received: 200
                one = await server.http.post(f"/events/{dead[0]['id']}/replay")
                again = await server.http.post(f"/events/{dead[0]['id']}/replay")
                rest = await server.http.post("/events/dead/replay")
                await receiver.wait_taken(3)

    assert {event["error"] for event in dead} == {"answered 410"}
    assert (one.status_code, again.status_code) == (202, 404)
    assert rest.json() == {"replayed": 2}


def test_a_receiver_without_a_secret_is_refused_at_start():
    with pytest.raises(ConfigurationError, match="EVENTS_URL needs EVENTS_SECRET"):
        Settings.load(_env_file=None, events_url="https://example.com/")
    with pytest.raises(ConfigurationError, match="EVENTS_URL must not be in a private network"):
        Settings.load(_env_file=None, events_url="https://10.0.0.1/", events_secret=SECRET)
    with pytest.raises(ConfigurationError, match="EVENTS_SECRET: must be whsec_"):
        Settings.load(_env_file=None, events_secret="word")
