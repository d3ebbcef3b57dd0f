"""Who may ask for what, and what the answers say, on the whole app (and nobody called)."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import structlog.testing
import trio
import trio.lowlevel

from server.app import OffhookApp, create_app
from server.dialogue.endings import EndReason
from server.records.words import StoredRequest
from server.settings.settings import Settings
from server.web.api import MakeCall
from server.web.keys import UNNAMED, hash_key
from server.web.once import fingerprint_of
from tests.support.access import ACCOUNT, SIMULATED

pytestmark = pytest.mark.sockets

SHOWN = {"X-API-Key": "sesame"}


@asynccontextmanager
async def running(**settings) -> AsyncGenerator[OffhookApp]:
    app = create_app(Settings.load(_env_file=None, **settings))
    async with app.test_app():
        yield app
        for call in app.service.calls.register.live:
            call.end(EndReason.HUNG_UP)


def paths(app: OffhookApp) -> list[tuple[str, str]]:
    """Every route, as a method and a path with something in its variables."""
    found = []
    for rule in app.url_map.iter_rules():
        if rule.websocket:
            continue
        path = rule.rule
        for name in rule.arguments:
            path = path.replace(f"<{name}>", "CA1")
        found += [(method, path) for method in sorted(rule.methods - {"HEAD", "OPTIONS"})]
    return found


async def test_with_a_real_account_every_route_wants_a_key_or_a_signature():
    async with running(**ACCOUNT, api_key="sesame") as app:
        client = app.test_client()
        answers = {
            path: (await client.open(path, method=method)).status_code
            for method, path in paths(app)
        }
        shown = {"call_sid": "BR" + "0" * 32, "key": "0" * 64}
        wrong = await client.post("/calls/browser/resume", json=shown)

    assert len(answers) > 8
    signed = {path for path, status in answers.items() if status == 403}
    others = {path: status for path, status in answers.items() if status not in (401, 403)}
    assert {"/twiml", "/call-status", "/transfer-status", "/amd-status"} <= signed
    pages = {"/": 302, "/docs": 200, "/phone": 200, "/static/CA1": 404}
    pages |= {"/console": 200, "/static/console/CA1": 404, "/console/session": 200}
    nothing_shown = {"/calls/browser/resume": 400}  # which wants a call's own key, in its body
    assert others == {"/healthz": 200, "/readyz": 200, **pages, **nothing_shown}
    assert wrong.status_code == 403


async def test_a_real_account_without_a_key_gets_one_that_is_shown_once(capsys):
    async with running(**ACCOUNT) as app:
        said = [line for line in capsys.readouterr().err.splitlines() if "no API_KEY" in line]
        (key,) = [line.split()[-1] for line in said]
        client = app.test_client()

        assert (await client.get("/calls")).status_code == 401
        assert (await client.get("/calls", headers={"X-API-Key": key})).status_code == 200


async def test_any_of_several_keys_opens():
    keys = {"shop": hash_key("one"), "crm": hash_key("two")}
    async with running(**ACCOUNT, api_key="sesame", api_keys=keys) as app:
        client = app.test_client()
        shown = ["one", "two", "sesame", "three", "shop"]
        answers = [
            (await client.get("/calls", headers={"X-API-Key": key})).status_code for key in shown
        ]

    assert answers == [200, 200, 200, 401, 401]


async def test_strangers_cannot_fill_the_log():
    with structlog.testing.capture_logs() as logged:
        async with running(**ACCOUNT, api_key="sesame") as app:
            client = app.test_client()
            for number in range(50):
                answer = await client.get("/calls", headers={"X-API-Key": f"guess {number}"})
                assert answer.status_code == 401
            assert (await client.get("/calls", headers=SHOWN)).status_code == 200
            refused = app.service.metrics.registry.get_sample_value(
                "offhook_strangers_refused_total", {"kind": "key"}
            )

    assert refused >= 50
    lines = [line["status"] for line in logged if line["event"] == "request"]
    assert lines == [401, 200]


async def test_whoever_asks_by_a_wrong_method_is_told_the_right_ones():
    async with running(**ACCOUNT, api_key="sesame") as app:
        answer = await app.test_client().put("/make-call", headers=SHOWN)
        error = (await answer.get_json())["error"]

    assert (answer.status_code, error) == (405, "method-not-allowed")
    assert set(answer.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}


@pytest.mark.parametrize(
    ("setting", "path"),
    [
        ("public_metrics", "/metrics"),
        ("public_docs", "/openapi.json"),
    ],
)
async def test_metrics_and_the_description_are_public_only_by_setting(setting, path):
    async with running(**ACCOUNT, api_key="sesame") as app:
        assert (await app.test_client().get(path)).status_code == 401
        assert (await app.test_client().get(path, headers=SHOWN)).status_code == 200
    async with running(**ACCOUNT, api_key="sesame", **{setting: True}) as app:
        assert (await app.test_client().get(path)).status_code == 200


async def test_a_costly_number_is_refused_field_by_field_before_anything_is_dialled():
    async with running(**ACCOUNT, api_key="sesame") as app:
        answer = await app.test_client().post(
            "/make-call", json={"destination_number": "+881612345678"}, headers=SHOWN
        )
        body = await answer.get_json()

    assert answer.status_code == 403
    assert body["error"] == "destination-not-allowed"
    assert "satellite" in body["fields"]["destination_number"]


async def test_a_number_outside_the_prefixes_is_refused_in_a_simulation_too():
    async with running(**SIMULATED, allowed_prefixes="+58") as app:
        answer = await app.test_client().post(
            "/make-call", json={"destination_number": "+15005550006"}
        )

    assert answer.status_code == 403


NUMBER = {"destination_number": "+15005550105"}  # rings for long


async def test_the_same_request_with_its_key_rings_one_phone():
    async with running(**SIMULATED) as app:
        client = app.test_client()
        first = await client.post("/make-call", json=NUMBER, headers={"Idempotency-Key": "a"})
        again = await client.post("/make-call", json=NUMBER, headers={"Idempotency-Key": "a"})
        other = await client.post("/make-call", json=NUMBER, headers={"Idempotency-Key": "b"})
        wrong = await client.post(
            "/make-call",
            json=NUMBER | {"prompt": "Say something else."},
            headers={"Idempotency-Key": "a"},
        )
        bodies = [await answer.get_json() for answer in (first, again, other, wrong)]
        rung = len(app.service.accounts.simulated_twilio.calls)

    assert [first.status_code, again.status_code, other.status_code] == [201, 201, 201]
    assert bodies[0] == bodies[1] != bodies[2]
    assert again.headers["Idempotent-Replayed"] == "true"
    assert (wrong.status_code, bodies[3]["error"]) == (422, "idempotency-key-reused")
    assert rung == 2


async def test_a_request_that_is_being_worked_on_is_a_conflict(nursery):
    async with running(**SIMULATED, calls_per_s=0.5) as app:
        client = app.test_client()
        headers = {"Idempotency-Key": "a"}
        await client.post("/make-call", json=NUMBER)
        gone = trio.CancelScope()

        async def waits() -> None:
            with gone:
                await client.post("/make-call", json=NUMBER, headers=headers)

        nursery.start_soon(waits)
        while not app.service.calls.admission.waiting_count:
            await trio.lowlevel.checkpoint()
        conflict = await client.post("/make-call", json=NUMBER, headers=headers)
        gone.cancel()

    assert conflict.status_code == 409
    assert int(conflict.headers["Retry-After"]) > 0


async def test_a_request_that_was_answered_before_a_restart_rings_no_second_phone(tmp_path):
    stored = SIMULATED | {"database_url": f"sqlite:///{tmp_path}/offhook.db"}
    headers = {"Idempotency-Key": "a"}
    async with running(**stored) as app:
        first = await app.test_client().post("/make-call", json=NUMBER, headers=headers)
    async with running(**stored) as app:
        client = app.test_client()
        again = await client.post("/make-call", json=NUMBER, headers=headers)
        wrong = await client.post(
            "/make-call", json=NUMBER | {"prompt": "Say something else."}, headers=headers
        )
        rung = len(app.service.accounts.simulated_twilio.calls)
        bodies = [await answer.get_json() for answer in (first, again)]

    assert [first.status_code, again.status_code, wrong.status_code] == [201, 201, 422]
    assert bodies[0] == bodies[1]
    assert again.headers["Location"] == first.headers["Location"]
    assert again.headers["Idempotent-Replayed"] == "true"
    assert rung == 0


async def test_a_request_whose_end_nobody_knows_is_not_made_again(tmp_path):
    stored = SIMULATED | {"database_url": f"sqlite:///{tmp_path}/offhook.db"}
    headers = {"Idempotency-Key": "a"}
    content = MakeCall.model_validate(NUMBER).as_content()
    async with running(**stored) as app:  # the process before was killed while it dialled
        working = StoredRequest(fingerprint_of(content).hex())
        await app.service.records.write_request(UNNAMED, "a", working)
        again = await app.test_client().post("/make-call", json=NUMBER, headers=headers)
        body = await again.get_json()
        rung = len(app.service.accounts.simulated_twilio.calls)

    assert (again.status_code, body["error"]) == (409, "outcome-unknown")
    assert rung == 0


async def test_who_went_away_before_it_was_dialled_may_ask_again():
    async with running(**SIMULATED, calls_per_s=0.5, database_url="sqlite://") as app:
        client = app.test_client()
        headers = {"Idempotency-Key": "a"}
        await client.post("/make-call", json=NUMBER)
        with trio.CancelScope() as leaving:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    functools.partial(client.post, "/make-call", json=NUMBER, headers=headers)
                )
                while not app.service.calls.admission.waiting_count:
                    await trio.lowlevel.checkpoint()
                leaving.cancel()
        assert len(app.service.accounts.simulated_twilio.calls) == 1
        again = await client.post("/make-call", json=NUMBER, headers=headers)
        rung = len(app.service.accounts.simulated_twilio.calls)

    assert again.status_code == 201
    assert "Idempotent-Replayed" not in again.headers
    assert rung == 2


async def test_a_refused_request_may_come_again_with_its_key():
    async with running(**SIMULATED, max_calls=1) as app:
        client = app.test_client()
        first = (await (await client.post("/make-call", json=NUMBER)).get_json())["call_sid"]
        headers = {"Idempotency-Key": "a"}
        refused = await client.post("/make-call", json=NUMBER, headers=headers)
        await client.post(f"/calls/{first}/hang-up")
        placed = await client.post("/make-call", json=NUMBER, headers=headers)

    assert (refused.status_code, placed.status_code) == (503, 201)


async def test_too_many_at_once_are_told_their_position_and_when_to_come_back():
    async with running(**SIMULATED, calls_per_s=0.1, max_dial_wait_s=5.0) as app:
        client = app.test_client()
        await client.post("/make-call", json=NUMBER)
        refused = await client.post("/make-call", json=NUMBER)
        body = await refused.get_json()
        metrics = await (await client.get("/metrics")).get_data(as_text=True)

    assert (refused.status_code, body["error"], body["position"]) == (429, "rate", 1)
    assert 4 <= int(refused.headers["Retry-After"]) <= 6
    assert 'offhook_calls_refused_total{reason="rate"} 1.0' in metrics


async def test_an_overloaded_server_is_not_ready_and_takes_no_calls(monkeypatch):
    monkeypatch.setattr("server.switchboard.admission.LagMeter.lag_s", 1.0)
    async with running(**SIMULATED) as app:
        client = app.test_client()
        ready = await client.get("/readyz")
        refused = await client.post("/make-call", json=NUMBER)

    assert (ready.status_code, (await ready.get_json())["reason"]) == (503, "overloaded")
    assert refused.status_code == 503


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/healthz"),
        ("PUT", "/twiml"),
        ("BREW", "/"),
        ("GET", "/nowhere"),
        ("GET", "/docs"),
        ("GET", "/static/docs.js"),
        ("GET", "/static/nothing"),
    ],
)
async def test_strangers_write_one_log_line_in_ten_seconds(method, path):
    with structlog.testing.capture_logs() as logged:
        async with running(**SIMULATED, api_key="sesame", public_docs=True) as app:
            for _ in range(50):
                await app.test_client().open(path, method=method)

    lines = [line for line in logged if line["event"] == "request" and line["log_level"] == "info"]
    assert len(lines) == 1


async def test_every_request_with_a_key_is_logged():
    with structlog.testing.capture_logs() as logged:
        async with running(**SIMULATED, api_key="sesame") as app:
            for _ in range(5):
                headers = {"X-API-Key": "sesame"}
                await app.test_client().get("/calls", headers=headers)

    assert len([line for line in logged if line["event"] == "request"]) == 5


async def test_a_bug_that_strangers_meet_is_logged_once():
    with structlog.testing.capture_logs() as logged:
        async with running(**SIMULATED) as app:

            @app.get("/broken")
            async def broken() -> str:
                raise RuntimeError("a bug")

            statuses = {(await app.test_client().get("/broken")).status_code for _ in range(20)}

    assert statuses == {500}
    assert len([line for line in logged if "bug of ours" in line["event"]]) == 1
