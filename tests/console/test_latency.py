"""How long callers waited, of many calls at once; calls by cost and end; what a check finds."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from benchmarks.ports import free_port
from server.agent.agent import Agent
from server.app import create_app
from server.console import check
from server.dialogue.endings import EndReason
from server.errors import CallRefused
from server.settings.settings import Settings
from server.web.keys import READ, hash_key
from tests.support.access import SIMULATED

pytestmark = pytest.mark.sockets

RECORD = {
    **{"call_sid": "CA1", "direction": "outbound", "number": "+15*******06", "state": "ended"},
    **{"status": "completed", "reason": "caller-hung-up", "detail": "", "created_at": 1_000.0},
    **{"duration_s": 61.5, "agent_heard_s": 12.25, "metadata": {}, "agent": "default"},
    "model": "gemini-3.8-live",
    "cost": {"known_usd": 0.05},
    "timings": {
        "answer_to_first_audio_ms": 120.5,
        "interrupt_to_clear": {"count": 2, "p50_ms": 1.5, "p99_ms": 4.0, "max_ms": 4.0},
    },
    "replies": [{"turn": 2, "total_ms": 812.0}, {"turn": 3, "vad_ms": 500.0}],
}
SILENT = RECORD | {
    **{"call_sid": "CA2", "created_at": 1_001.0, "reason": "no-answer", "duration_s": 0.0},
    **{"cost": {"known_usd": 0.0}, "timings": None, "replies": None},
}
OLD = RECORD | {
    **{"call_sid": "CA3", "created_at": 900.0, "agent": "orders", "cost": {"known_usd": 1.25}},
    **{"timings": {"interrupt_to_clear": {"count": 0, "max_ms": None}}, "replies": [], "model": 1},
}


async def asked(path: str) -> Any:
    app = create_app(Settings.load(_env_file=None, **SIMULATED, database_url="sqlite://"))
    async with app.test_app():
        for record in (RECORD, SILENT, OLD):
            app.service.records.keep(dict(record) | {"model": str(record["model"])})
        await app.service.records.wait_saved()
        answer = await app.test_client().get(path)
        assert answer.status_code == 200, await answer.get_data(as_text=True)
        return await answer.get_json()


async def test_the_waits_of_each_call_that_talked_are_told_newest_first():
    calls = (await asked("/latency"))["calls"]

    assert calls == [
        {
            "call_sid": "CA1",
            "created_at": 1_000.0,
            "agent": "default",
            "model": "gemini-3.8-live",
            "answer_ms": 120.5,
            "replies_ms": [812.0],
            "slowest_clear_ms": 4.0,
        },
        {
            "call_sid": "CA3",
            "created_at": 900.0,
            "agent": "orders",
            "model": "1",
            "answer_ms": None,
            "replies_ms": [],
            "slowest_clear_ms": None,
        },
    ]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("agent=orders", ["CA3"]),
        ("limit=1", ["CA1"]),
        ("min_cost_usd=1", ["CA3"]),
        ("since=1970-01-01T00:16:00Z", ["CA1"]),
    ],
)
async def test_they_are_filtered_as_lists_are(query, found):
    calls = (await asked(f"/latency?{query}"))["calls"]

    assert [call["call_sid"] for call in calls] == found


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("min_cost_usd=0.05", ["CA1", "CA3"]),
        ("max_cost_usd=0.05", ["CA2", "CA1"]),
        ("min_cost_usd=0.01&max_cost_usd=1", ["CA1"]),
        ("trouble=true", ["CA2"]),
        ("trouble=true&reason=caller-hung-up", []),
        ("trouble=true&reason=no-answer", ["CA2"]),
        ("trouble=false", ["CA2", "CA1", "CA3"]),
    ],
)
async def test_calls_are_found_by_their_cost_and_by_trouble(query, found):
    calls = (await asked(f"/calls?{query}"))["calls"]

    assert [call["call_sid"] for call in calls] == found


async def test_what_a_check_has_found_is_told_again_for_a_while_and_asked_anew_after(monkeypatch):
    asked = []

    async def look(*what: Any) -> Any:
        asked.append(what)
        return await look_at_all(*what)

    look_at_all = check.look
    monkeypatch.setattr(check, "look", look)
    app = create_app(Settings.load(_env_file=None, **SIMULATED, database_url="sqlite://"))
    async with app.test_app():
        client = app.test_client()
        first, again = [await (await client.post("/check")).get_json() for _ in range(2)]
        counts = [len(asked)]
        monkeypatch.setattr(check, "KEPT_S", 0.0)
        anew = await (await client.post("/check")).get_json()
        counts.append(len(asked))

    assert counts == [1, 2]
    assert again["findings"] == first["findings"]
    assert (first["age_s"], anew["age_s"]) == (0.0, 0.0)
    assert again["age_s"] >= 0.0


async def test_two_who_ask_at_once_have_one_check_whoever_of_them_gives_up(monkeypatch):
    begun, asked, answers = trio.Event(), list[int](), list[Any]()
    goes_on = trio.Event()

    async def look(*what: Any) -> Any:
        asked.append(len(asked))
        begun.set()
        await goes_on.wait()
        return await look_at_all(*what)

    async def ask(client: Any) -> None:
        answers.append(await (await client.post("/check")).get_json())

    look_at_all = check.look
    monkeypatch.setattr(check, "look", look)
    app = create_app(Settings.load(_env_file=None, **SIMULATED, database_url="sqlite://"))
    async with app.test_app(), trio.open_nursery() as others:
        client = app.test_client()
        async with trio.open_nursery() as gives_up:
            gives_up.start_soon(ask, client)
            await begun.wait()
            for _ in range(3):
                others.start_soon(ask, client)
            await wait_all_tasks_blocked()
            counts = [len(asked)]
            gives_up.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        counts.append(len(asked))
        goes_on.set()

    assert counts == [1, 2]
    assert len(asked) == 2
    assert len(answers) == 3
    assert all(answer["findings"] == answers[0]["findings"] for answer in answers)


async def test_a_check_counts_as_a_session_while_it_lasts_and_leaves_one_for_a_caller(monkeypatch):
    taken = []

    async def look(settings: Any, accounts: Any, agents: Any, room: Any) -> Any:
        with room():
            admission.check(1, trio.current_time())
            for ask in (room, partial(admission.check, 2, trio.current_time())):
                with pytest.raises(CallRefused) as refused, ask() or nullcontext():
                    pass
                taken.append(refused.value.reason)
        with room():
            taken.append("free again")
        return await look_at_all(settings, accounts, agents, room)

    look_at_all = check.look
    monkeypatch.setattr(check, "look", look)
    limits = {"max_model_sessions": 3}
    app = create_app(Settings.load(_env_file=None, **SIMULATED, **limits, database_url="sqlite://"))
    async with app.test_app():
        calls, client = app.service.calls, app.test_client()
        admission = calls.admission
        call = await calls.place("+15005550105", Agent())
        answer = await client.post("/check")
        call.end(EndReason.HUNG_UP)
        await call.finished.wait()

    assert taken == ["model-sessions", "model-sessions", "free again"]
    assert answer.status_code == 200
    assert (await answer.get_json())["ok"]


@pytest.mark.parametrize("live", [1, 2])
async def test_while_calls_need_the_models_sessions_all_else_is_asked(live, tmp_path):
    given = {
        "max_model_sessions": 2,
        "database_url": f"sqlite:///{tmp_path}/offhook.db",
        "public_url": f"http://127.0.0.1:{free_port()}",  # nobody is there
    }
    app = create_app(Settings.load(_env_file=None, **SIMULATED | given))

    async def found() -> dict[str, str]:
        body = await (await client.post("/check")).get_json()
        return {each["subject"].partition(" ")[0]: each["state"] for each in body["findings"]}

    async with app.test_app():
        calls, client = app.service.calls, app.test_client()
        live_ones = [await calls.place("+15005550105", Agent()) for _ in range(live)]
        full = await found()
        for call in live_ones:
            call.end(EndReason.HUNG_UP)
            await call.finished.wait()
        free = await found()

    assert full["model"] == "doubt"
    assert (full["database"], full["PUBLIC_URL"]) == ("ok", "failed")
    assert free == {**full, "model": "ok"}


async def test_everything_that_is_set_is_tried_once_by_whoever_may_change_something():
    keys = {"shop": hash_key("one"), "watcher": hash_key("two") + READ}
    app = create_app(
        Settings.load(_env_file=None, **SIMULATED, database_url="sqlite://", api_keys=keys)
    )
    async with app.test_app():
        client = app.test_client()
        refused = await client.post("/check", headers={"X-API-Key": "two"})
        answer = await client.post("/check", headers={"X-API-Key": "one"})
        body = await answer.get_json()

    assert (refused.status_code, answer.status_code) == (403, 200)
    assert body["ok"]
    subjects = {finding["subject"].partition(" ")[0] for finding in body["findings"]}
    assert {"settings", "carrier"} <= subjects
