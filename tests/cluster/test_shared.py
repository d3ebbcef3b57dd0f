"""Machines of one server that share a Redis: what the calls of one mean to the others."""

from __future__ import annotations

import pytest
import trio

from server.cluster.registry import Holding, Load
from server.dialogue.endings import EndReason
from tests.support.nodes import nodes_with_redis
from tests.support.redis_servers import (
    IGNORES_UNCLOSED,
    PATIENCE_S,
    member,
    redis_server,
    until,
)
from tests.support.serving import CALL_SID

pytestmark = [pytest.mark.sockets, *IGNORES_UNCLOSED]

RINGS_FOR_LONG = "5550105"


@pytest.fixture
def redis():
    with redis_server() as server:
        yield server


async def test_calls_of_all_machines_are_listed_by_each(monkeypatch, redis):
    async with nodes_with_redis(monkeypatch, redis) as servers:
        sids = {(await s.make_call(RINGS_FOR_LONG)).json()["call_sid"] for s in servers}
        lists = [(await server.http.get("/calls")).json() for server in servers]
        for sid in sids:
            await servers[0].http.post(f"/calls/{sid}/hang-up")

    assert len(sids) == 2
    assert [{call["call_sid"] for call in found["calls"]} for found in lists] == [sids, sids]
    assert [found["complete"] for found in lists] == [True, True]


async def test_a_list_says_that_calls_may_be_missing_while_the_registry_is_away(monkeypatch, redis):
    async with nodes_with_redis(monkeypatch, redis) as (first, second):
        sid = (await second.make_call(RINGS_FOR_LONG)).json()["call_sid"]
        redis.kill()
        await until(lambda: first.service.cluster.registry.is_away)
        found = (await first.http.get("/calls")).json()
        await second.http.post(f"/calls/{sid}/hang-up")

    assert not found["complete"]


async def test_a_webhook_that_was_kept_makes_no_call_ours_again_that_has_ended_here(
    monkeypatch, redis
):
    form = {"CallSid": CALL_SID, "From": "+15005550001", "CallStatus": "ringing"}
    async with nodes_with_redis(monkeypatch, redis, ("a",), recent_calls=0) as (server,):
        form["AccountSid"] = server.twilio.account_sid
        ours = server.service.cluster.registry._writing._ours
        await server.signed_post("/twiml", form)
        (call,) = server.service.calls.register.live
        call.end(EndReason.HUNG_UP)
        await until(lambda: not server.service.calls.register.live and not ours.known)
        answer = await server.signed_post("/twiml", form)

        assert "<Hangup" in answer.text
        assert ours.known == 0


@pytest.mark.parametrize("is_written", [True, False], ids=["written", "not written yet"])
async def test_a_call_that_was_refused_once_and_is_taken_when_it_is_asked_about_again_goes_on(
    monkeypatch, redis, is_written
):
    form = {"CallSid": CALL_SID, "From": "+15005550001", "CallStatus": "ringing"}
    async with nodes_with_redis(monkeypatch, redis, ("a",), max_calls=1) as (server,):
        form["AccountSid"] = server.twilio.account_sid
        calls, registry = server.service.calls, server.service.cluster.registry
        ours = registry._writing._ours
        sid = (await server.make_call(RINGS_FOR_LONG)).json()["call_sid"]
        if not is_written:
            monkeypatch.setattr("server.cluster.redis.writing.WRITE_S", 60.0)
        refused = await server.signed_post("/twiml", form)
        if is_written:
            await until(lambda: not ours.unsaid)
        calls.register.get(sid).end(EndReason.HUNG_UP)
        await until(lambda: not calls.live_count)
        taken = await server.signed_post("/twiml", form)
        await until(lambda: not ours.unsaid)
        (call,) = calls.register.live
        goes_on, holding = call.end_reason is None, await registry.owner(CALL_SID)
        call.end(EndReason.HUNG_UP)

    assert "<Connect" not in refused.text
    assert "<Connect" in taken.text
    assert goes_on
    assert holding == Holding(server.service.cluster.me, 1)


async def test_a_call_whose_webhook_is_given_up_before_it_begins_is_given_back(monkeypatch, redis):
    form = {"CallSid": CALL_SID, "From": "+15005550001", "CallStatus": "ringing"}
    async with nodes_with_redis(monkeypatch, redis, ("a",)) as (server,):
        form["AccountSid"] = server.twilio.account_sid
        ours = server.service.cluster.registry._writing._ours
        asked = trio.Event()

        async def choose_for_ever(call):
            asked.set()
            await trio.sleep_forever()

        monkeypatch.setattr(server.service, "choose_agent", choose_for_ever)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.signed_post, "/twiml", form)
            await asked.wait()
            known = ours.known
            nursery.cancel_scope.cancel()
        await until(lambda: not ours.known)

        assert known == 1
        assert not [key for key in list(redis.keys()) if CALL_SID in key]


async def test_a_call_of_another_machine_is_looked_up_and_hung_up(monkeypatch, redis):
    async with nodes_with_redis(monkeypatch, redis) as (first, second):
        sid = (await first.make_call(RINGS_FOR_LONG)).json()["call_sid"]
        record = await second.http.get(f"/calls/{sid}")
        hung_up = await second.http.post(f"/calls/{sid}/hang-up")
        ended = await second.http.get(f"/calls/{sid}")

    assert (record.status_code, record.json()["state"]) == (200, "live")
    assert hung_up.json()["reason"] == "hung-up"
    assert ended.json()["state"] == "ended"


async def test_calls_of_all_machines_count_for_the_lines(monkeypatch, redis):
    async with nodes_with_redis(monkeypatch, redis, max_calls=1) as (first, second):
        sid = (await first.make_call(RINGS_FOR_LONG)).json()["call_sid"]
        await until(lambda: second.service.cluster.live_elsewhere == 1)
        refused = await second.make_call()
        await first.http.post(f"/calls/{sid}/hang-up")
        await until(lambda: second.service.cluster.live_elsewhere == 0)
        taken = await second.make_call(RINGS_FOR_LONG)
        await second.http.post(f"/calls/{taken.json()['call_sid']}/hang-up")

    assert (refused.status_code, refused.json()["error"]) == (503, "full")
    assert taken.status_code == 201


@pytest.mark.slow
async def test_calls_of_a_machine_that_is_silent_count_no_more(monkeypatch, redis):
    async with (
        nodes_with_redis(monkeypatch, redis) as (first, _),
        member(redis.url, "c") as silent,
    ):
        silent.publish(Load(live=7, accepts=True))
        await until(lambda: first.service.cluster.live_elsewhere == 7)
        monkeypatch.setattr(silent, "_beat", _says_nothing)
        await until(lambda: first.service.cluster.live_elsewhere == 0)
        is_remembered = "c" in first.service.cluster.seen()

    assert is_remembered  # until somebody has made sure that it is gone


async def _says_nothing(connection) -> None:
    await trio.lowlevel.checkpoint()


async def test_a_request_that_another_machine_works_on_is_refused(monkeypatch, redis):
    key = {"Idempotency-Key": "once"}
    body = {"destination_number": f"+1500{RINGS_FOR_LONG}"}
    async with nodes_with_redis(monkeypatch, redis) as (first, second):
        registry = second.service.cluster.registry
        begun, go_on = trio.Event(), trio.Event()
        place = first.service.calls.place

        async def place_slowly(*args, **options):
            begun.set()
            await go_on.wait()
            return await place(*args, **options)

        monkeypatch.setattr(first.service.calls, "place", place_slowly)
        answers = []

        async def ask() -> None:
            answers.append(await first.http.post("/make-call", json=body, headers=key))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await begun.wait()
            same = await second.http.post("/make-call", json=body, headers=key)
            another = await second.http.post(
                "/make-call", json=body | {"max_duration_s": 9}, headers=key
            )
            go_on.set()
        sid = answers[0].json()["call_sid"]
        await first.http.post(f"/calls/{sid}/hang-up")
        after = await registry.begin_request("", "once", b"")

    assert (same.status_code, same.json()["error"]) == (409, "in-flight")
    assert (another.status_code, another.json()["error"]) == (422, "idempotency-key-reused")
    assert answers[0].status_code == 201
    assert after is None


async def test_a_request_that_another_machine_has_answered_is_answered_the_same(
    monkeypatch, redis, tmp_path
):
    key = {"Idempotency-Key": "once"}
    body = {"destination_number": f"+1500{RINGS_FOR_LONG}"}
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    async with nodes_with_redis(monkeypatch, redis, database_url=url) as (first, second):
        answer = await first.http.post("/make-call", json=body, headers=key)
        again = await second.http.post("/make-call", json=body, headers=key)
        await first.http.post(f"/calls/{answer.json()['call_sid']}/hang-up")

    assert again.json() == answer.json()
    assert again.headers["Idempotent-Replayed"] == "true"


async def test_without_the_registry_a_request_is_done_once_by_the_machine_it_came_to(
    monkeypatch, redis
):
    key = {"Idempotency-Key": "once"}
    body = {"destination_number": f"+1500{RINGS_FOR_LONG}"}
    async with nodes_with_redis(monkeypatch, redis) as (first, _):
        redis.kill()
        await until(lambda: first.service.cluster.registry.is_away)
        answer = await first.http.post("/make-call", json=body, headers=key)
        again = await first.http.post("/make-call", json=body, headers=key)
        await first.http.post(f"/calls/{answer.json()['call_sid']}/hang-up")

    assert answer.status_code == 201
    assert again.json() == answer.json()


@pytest.mark.slow
async def test_a_pause_that_one_machine_has_told_is_every_machines_until_it_ends_it(redis):
    async with member(redis.url, "a") as first, member(redis.url, "b") as second:
        first.tell_pause("model-quota", 600.0)
        await until(lambda: second.pause() is not None)
        kind, left_s = second.pause()
        own = first.pause()
        second.tell_pause("model-quota", 0.0)  # which it has not told
        await until(lambda: second._members._to_tell is None)
        still = second.pause()
        first.tell_pause("model-quota", 0.0)
        await until(lambda: second.pause() is None)

    assert (kind, own) == ("model-quota", None)
    assert 500.0 < left_s <= 600.0
    assert still is not None


async def test_a_pause_is_told_again_to_a_registry_that_has_lost_it(redis):
    async with member(redis.url, "a") as first, member(redis.url, "b") as second:
        first.tell_pause("model-quota", 600.0)
        await until(lambda: second.pause() is not None)
        redis.ask("FLUSHALL")
        await until(lambda: b"offhook:{nodes}:pause" in redis.ask("KEYS", "*"))
        await until(lambda: second.pause() is not None)


async def test_a_call_that_talks_where_it_is_not_any_more_ends_there_in_silence(monkeypatch, redis):
    async with nodes_with_redis(monkeypatch, redis) as (first, second):
        sid = (await second.make_call(RINGS_FOR_LONG)).json()["call_sid"]
        call = second.service.calls.register.get(sid)
        await until(lambda: second.service.cluster.registry._writing._ours.has_state(sid))
        asked = len(second.twilio.account.requests)
        await first.service.cluster.registry.seize(sid, Holding(second.service.cluster.me, 1))
        call.conversation.notes.keep_soon()  # as whenever it has something new to say
        await call.finished.wait()
        by_the_old = len(second.twilio.account.requests) - asked

    assert call.end_reason is EndReason.MOVED
    assert by_the_old == 0


async def test_a_call_is_found_by_all_machines_before_its_client_is_told_of_it(monkeypatch, redis):
    async with nodes_with_redis(monkeypatch, redis) as (first, second):
        monkeypatch.setattr("server.cluster.redis.registry.WHOLE_AFTER_S", 0.0)
        monkeypatch.setattr("server.cluster.redis.writing.WRITE_S", 60.0)  # all else comes late
        sid = (await first.make_call(RINGS_FOR_LONG)).json()["call_sid"]
        record = await second.http.get(f"/calls/{sid}")
        await first.http.post(f"/calls/{sid}/hang-up")

    assert (record.status_code, record.json()["state"]) == (200, "live")


async def test_a_machine_that_stops_tells_the_registry_last_that_its_records_are_written(
    monkeypatch, redis
):
    monkeypatch.setattr("server.records.store.GATHER_S", PATIENCE_S)  # only the stop writes them
    async with nodes_with_redis(monkeypatch, redis) as (first, _):
        call_sid = (await first.make_call("5550105")).json()["call_sid"]
        registry = first.service.cluster.registry
        await until(lambda: registry._writing._ours.has_state(call_sid))
        await first.http.post(f"/calls/{call_sid}/hang-up")
        await until(lambda: not registry._writing._ours.unsaid)
        (key,) = (name for name in list(redis.keys()) if call_sid in name)
        left = redis.ask("HSTRLEN", key, "s")

    assert left != b":0\r\n"
    assert redis.ask("HSTRLEN", key, "s") == b":0\r\n"
