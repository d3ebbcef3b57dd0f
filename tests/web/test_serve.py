"""The whole server over real sockets: HTTP, webhooks, media streams and the model."""

from __future__ import annotations

import json
from contextlib import suppress
from importlib.metadata import PackageNotFoundError

import pytest
import structlog.testing
import trio
from websockets.exceptions import ConnectionClosed

from tests.support.limits import no_threads
from tests.support.serving import (
    CALL_SID,
    closing_of,
    media_message,
    open_socket,
    ringing_call,
    serving,
    start_message,
)

pytestmark = pytest.mark.sockets

TOKEN = "the-account-token"


async def _all_at_once(function, arguments) -> None:
    async with trio.open_nursery() as nursery:
        for each in arguments:
            nursery.start_soon(function, *each)


@pytest.mark.parametrize("media_path", ["fast", "ordinary"])
async def test_calls_of_every_kind_at_once_each_end_as_they_should(media_path, fast_clock):
    endings = {
        "interrupts": "5550102",
        "hangs-up": "5550103",
        "busy": "5550104",
        "no-answer": "5550105",
        "drops": "5550106",
        "garbage": "5550107",
    }
    records: dict[str, dict] = {}
    async with serving(ring_timeout_s=5, media_path=media_path) as server:

        async def place(name: str, ending: str) -> None:
            answer = await server.make_call(ending)
            assert answer.status_code == 201
            records[name] = await server.finished(answer.json()["call_sid"])

        with trio.fail_after(50):
            await _all_at_once(place, endings.items())
        phones = list(server.twilio.calls.values())
        sessions = list(server.gemini.sessions)

    assert {name: record["reason"] for name, record in records.items()} == {
        "interrupts": "caller-hung-up",
        "hangs-up": "caller-hung-up",
        "busy": "busy",
        "no-answer": "no-answer",
        "drops": "caller-hung-up",  # the carrier says so, and no other stream comes
        "garbage": "caller-hung-up",
    }
    for record in records.values():
        assert record["timings"]["caller_audio_lost_s"] == 0
    assert sum(phone.bytes_after_clear for phone in phones) == 0
    interrupted = records["interrupts"]["transcript"]
    assert interrupted[0]["cut"]
    assert any(turn["speaker"] == "agent" and not turn["cut"] for turn in interrupted[1:])
    assert all(session.ended.is_set() for session in sessions)


async def test_an_inbound_call_is_answered_and_talks(fast_clock):
    async with serving() as server:
        phone = server.twilio.dial_in(
            f"{server.url}/twiml", from_number="+15005550199", script="hangs-up"
        )
        with trio.fail_after(60):
            await phone.wait_ended()
        record = (await server.http.get(f"/calls/{phone.call_sid}")).json()

    assert record["direction"] == "inbound"
    assert record["reason"] == "caller-hung-up"
    assert record["agent_heard_s"] > 0.2
    assert "5550199" not in json.dumps(record)


async def test_simulators_find_a_server_whose_address_nobody_set(fast_clock):
    async with serving(public_url=None) as server:  # as under hypercorn's -b
        record = await server.finished((await server.make_call("5550103")).json()["call_sid"])

    assert record["reason"] == "caller-hung-up"
    assert record["agent_heard_s"] > 0.2


async def test_who_comes_by_another_address_does_not_change_what_streams_are_signed_for():
    async with serving(public_url=None) as server:
        await server.http.get("/healthz")
        accounts = server.service.accounts
        known = accounts.public_url, accounts.webhooks.stream_url

        accounts.note_address("http", ("127.0.0.2", 8000))

        assert (accounts.public_url, accounts.webhooks.stream_url) == known


async def test_hanging_up_through_the_api_ends_the_call_everywhere(fast_clock):
    async with serving() as server:
        call_sid = (await server.make_call("5550108")).json()["call_sid"]
        phone = server.twilio.calls[call_sid]
        with trio.fail_after(60):
            await phone.wait_status("in-progress")
            ended = await server.http.post(f"/calls/{call_sid}/hang-up")
            await phone.wait_ended()

    assert ended.json()["reason"] == "hung-up"
    assert phone.status == "completed"


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, {"destination_number"}),
        ({"destination_number": "0412"}, {"destination_number"}),
        ({"destination_number": 5}, {"destination_number"}),
        ({"destination_number": "+15005550101", "max_duration_s": -1}, {"max_duration_s"}),
        ({"destination_number": "+15005550101", "colour": "red"}, {"colour"}),
    ],
)
async def test_a_wrong_request_is_answered_field_by_field(body, fields):
    async with serving() as server:
        answer = await server.http.post("/make-call", json=body)

    assert answer.status_code == 422
    assert set(answer.json()["fields"]) == fields


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'"x"', b"\xff\xfe"])
async def test_a_body_that_is_no_json_object_is_a_bad_request(content):
    async with serving() as server:
        answer = await server.http.post(
            "/make-call", content=content, headers={"Content-Type": "application/json"}
        )

    assert answer.status_code == 400
    assert answer.json()["error"] == "invalid"


async def test_the_carriers_own_code_and_message_reach_the_client():
    async with serving() as server:
        answer = await server.make_call("5550003")  # Twilio's magic number: no permission

    assert answer.status_code == 502
    assert answer.json()["carrier_code"] == 21215
    assert answer.json()["message"]


async def test_a_full_server_says_when_to_come_back():
    async with serving(max_calls=1) as server:
        first = await server.make_call("5550108")
        refused = await server.make_call("5550108")
        ready = await server.http.get("/readyz")

    assert first.status_code == 201
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) > 0
    assert ready.status_code == 503


async def test_the_api_key_guards_what_costs_money():
    async with serving(api_key="sesame") as server:
        assert (await server.make_call()).status_code == 401
        assert (await server.http.get("/calls")).status_code == 401
        assert (await server.http.get("/healthz")).status_code == 200
        server.http.headers["Authorization"] = "Bearer sesame"
        assert (await server.http.get("/calls")).status_code == 200


async def test_everything_says_that_it_is_simulated():
    async with serving() as server:
        ready = (await server.http.get("/readyz")).json()
        made = (await server.make_call("5550104")).json()

    assert ready["simulated"] is True
    assert made["carrier"] == "simulator"


async def test_the_api_says_which_version_of_it_is_installed(monkeypatch):
    monkeypatch.setattr("server.app.version", {"offhook": "9.8.7"}.__getitem__)

    async with serving() as server:
        description = (await server.http.get("/openapi.json")).json()

    assert description["info"]["version"] == "9.8.7"


async def test_a_checkout_that_is_not_installed_serves_and_describes_itself(monkeypatch):
    def found(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("server.app.version", found)

    async with serving() as server:
        description = (await server.http.get("/openapi.json")).json()

    assert description["info"]["version"] == "not installed"


async def test_the_api_describes_itself():
    async with serving() as server:
        description = (await server.http.get("/openapi.json")).json()
        page = await server.http.get("/docs")
        metrics = await server.http.get("/metrics")

    assert "/make-call" in description["paths"]
    assert "/call-status" not in description["paths"]
    assert page.status_code == 200
    assert "offhook_calls_active" in metrics.text


@pytest.mark.parametrize("path", ["/twiml", "/call-status"])
async def test_unsigned_and_forged_webhooks_are_refused(path):
    form = {"CallSid": CALL_SID, "From": "+15005550199", "CallStatus": "ringing"}
    async with serving() as server:
        unsigned = await server.http.post(path, data=form)
        forged = await server.signed_post(path, form, token="a guess")
        elsewhere = await server.http.post(path, data=form, headers={"Host": "evil.example"})

    assert [unsigned.status_code, forged.status_code, elsewhere.status_code] == [403, 403, 403]


async def test_status_callbacks_are_idempotent_and_may_come_in_any_order():
    async with serving() as server:
        form = {"CallSid": CALL_SID, "CallStatus": "ringing", "SequenceNumber": "1"}
        answers = [await server.signed_post("/call-status", form) for _ in range(3)]
        unknown = await server.signed_post("/call-status", form | {"CallStatus": "dancing"})

    assert [answer.status_code for answer in answers] == [204, 204, 204]
    assert unknown.status_code == 400


@pytest.mark.parametrize("ticket", [None, "guess"])
async def test_a_stream_without_a_ticket_is_closed_with_1008(ticket):
    async with (
        serving(simulated_ring_s=None) as server,
        ringing_call(server) as (call_sid, _),
        open_socket(server) as socket,
    ):
        await socket.send('{"event":"connected","protocol":"Call","version":"1.0.0"}')
        await socket.send(start_message(ticket or "", call_sid))
        code, reason = await closing_of(socket)

    assert code == 1008
    assert "ticket" in (reason or "")


async def test_a_second_stream_with_the_same_ticket_is_closed_and_the_first_goes_on():
    async with (
        serving(simulated_ring_s=None) as server,
        ringing_call(server) as (call_sid, ticket),
        open_socket(server) as first,
        open_socket(server) as second,
    ):
        await first.send(start_message(ticket, call_sid))
        with trio.fail_after(60):
            assert json.loads(await first.recv())["event"] in ("media", "mark")
        await second.send(start_message(ticket, call_sid))
        code, _ = await closing_of(second)
        record = (await server.http.get(f"/calls/{call_sid}")).json()

    assert code == 1008
    assert record["state"] == "live"


async def test_a_media_format_that_is_not_the_telephones_is_closed_with_1008():
    async with (
        serving(simulated_ring_s=None) as server,
        ringing_call(server) as (call_sid, ticket),
        open_socket(server) as socket,
    ):
        await socket.send(start_message(ticket, call_sid, sampleRate=16000))
        code, reason = await closing_of(socket)

    assert code == 1008
    assert reason


async def test_a_message_over_the_limit_is_closed_with_1009_and_other_calls_go_on():
    async with (
        serving(start_timeout_s=2.0, simulated_ring_s=None) as server,
        ringing_call(server) as (call_sid, ticket),
        open_socket(server) as good,
    ):
        await good.send(start_message(ticket, call_sid))
        async with open_socket(server) as socket:
            with suppress(ConnectionClosed):  # refused at its header, before all of it is out
                await socket.send("x" * 2**20)
            code, _ = await closing_of(socket)
        await good.send(media_message(b"\xff" * 160))
        with trio.fail_after(60):
            assert json.loads(await good.recv())["streamSid"] == "MZ1"

    assert code == 1009


async def test_every_frame_before_stop_is_heard_even_when_the_socket_closes_at_once():
    async with serving(simulated_ring_s=None) as server, ringing_call(server) as (call_sid, ticket):
        async with open_socket(server) as socket:
            await socket.send(media_message(b"\x00" * 160))  # before the start: nobody's
            await socket.send(start_message(ticket, call_sid))
            with trio.fail_after(60):
                await socket.recv()  # the greeting: the model is there
            for _ in range(100):
                await socket.send(media_message(b"\xff" * 160))
            await socket.send(media_message(b"\xff" * 160, stream_sid="MZother"))
            await socket.send('{"event":"stop","sequenceNumber":"9","streamSid":"MZ1","stop":{}}')
            await socket.send(media_message(b"\xff" * 160))  # after the stop: nobody's
        call = server.service.calls.register.get(call_sid)
        with trio.fail_after(60):
            await call.finished.wait()
        record = (await server.http.get(f"/calls/{call_sid}")).json()
        (session,) = server.gemini.sessions

    assert record["reason"] == "caller-hung-up"
    assert record["timings"]["caller_audio_s"] == 2.0
    assert session.heard_samples == 100 * 320


async def _until(condition) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.01)


@pytest.mark.parametrize("media_path", ["fast", "ordinary"])
async def test_a_refused_account_is_told_to_callers_and_rings_no_phone_until_it_is_taken(
    media_path, fast_clock
):
    async with serving(
        simulated_model="no-credits", quota_pause_s=0.3, media_path=media_path
    ) as server:
        twilio, gemini = (
            server.twilio,
            server.gemini,
        )
        callers = []
        for _ in range(2):  # the first finds out, the second is told at once
            caller = twilio.dial_in(
                f"{server.url}/twiml", from_number="+15005550199", script="never-hangs-up"
            )
            with trio.fail_after(20):
                await caller.wait_ended()
            callers.append(caller)
            await _until(lambda: not server.service.calls.live_count)
        refused = [await server.make_call() for _ in range(3)]
        ready = await server.http.get("/readyz")
        metrics = (await server.http.get("/metrics")).text
        calls = len(twilio.calls)

        gemini.script = gemini.script_after_resume  # somebody has topped the credits up
        pause = server.service.calls.admission.account_pause
        await _until(lambda: pause.kind is None)
        ready_again = await server.http.get("/readyz")
        placed = await server.make_call("5550103")
        record = await server.finished(placed.json()["call_sid"])

    heard = [[what for _, what in caller.timeline if "says: " in what] for caller in callers]
    assert all(len(said) == 1 for said in heard), heard
    assert [answer.status_code for answer in refused] == [503] * 3
    body = refused[0].json()
    assert body["error"] == "model-credits"
    assert "top up" in body["message"]
    assert int(refused[0].headers["Retry-After"]) > 0
    assert calls == 2
    assert (ready.status_code, ready.json()["reason"]) == (503, "model-credits")
    assert "offhook_calls_paused 1.0" in metrics
    assert ready_again.status_code == 200
    assert record["reason"] == "caller-hung-up"


async def test_a_request_that_no_thread_can_be_had_for_may_come_again(tmp_path):
    async with serving(recordings_dir=tmp_path) as server:
        with structlog.testing.capture_logs() as logged, no_threads():
            answers = [await server.http.get(f"/calls/{CALL_SID}/recording") for _ in range(3)]
        later = await server.http.get(f"/calls/{CALL_SID}/recording")

    lines = [line for line in logged if line["event"].startswith("request refused")]
    assert [answer.status_code for answer in answers] == [503] * 3
    assert {answer.json()["error"] for answer in answers} == {"shortage"}
    assert int(answers[0].headers["Retry-After"]) > 0
    assert {line["log_level"] for line in lines} == {"warning"}
    assert later.status_code == 404
