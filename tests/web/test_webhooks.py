"""The carrier's webhooks over real sockets: what is its own, what that does, what went astray."""

from __future__ import annotations

import json
import sqlite3
from urllib.parse import urlencode

import pytest
import trio
from structlog.testing import capture_logs
from twilio.request_validator import RequestValidator
from werkzeug.datastructures import MultiDict

from server.dialogue.endings import EndReason
from server.simulators.twilio import Faults
from tests.support.raw_connections import UPGRADE, connection
from tests.support.serving import (
    CALL_SID,
    Server,
    closing_of,
    open_socket,
    ringing_call,
    serving,
    start_message,
)

pytestmark = pytest.mark.sockets

PUBLIC_URL = "https://phone.example"
OTHER_SID = "CA" + "2" * 32
RINGING = {
    "ApiVersion": "2010-04-01",
    "CallSid": CALL_SID,
    "CallStatus": "ringing",
    "Direction": "inbound",
    "From": "+15005550199",
    "To": "+15005550006",
}
FORMS = {
    "/twiml": RINGING,
    "/call-status": {"CallSid": CALL_SID, "CallStatus": "ringing", "SequenceNumber": "1"},
    "/amd-status": {"CallSid": CALL_SID, "AnsweredBy": "human"},
    "/transfer-status": {"CallSid": CALL_SID, "DialCallStatus": "busy"},
    "/resume": {"CallSid": CALL_SID, "CallStatus": "in-progress"},
}


def signature(server: Server, url: str, form=None) -> dict[str, str]:
    validator = RequestValidator(server.twilio.account.auth_token)
    return {"X-Twilio-Signature": validator.compute_signature(url, form or {})}


async def get(server: Server, path: str, form: dict[str, str], **headers: str):
    target = f"{path}?{urlencode(form)}"
    signed = signature(server, server.service.accounts.public_url + target)
    return await server.http.get(server.url + target, headers=signed | headers)


async def post(server: Server, path: str, form, *, signed_for: str | None = None, **headers: str):
    url = signed_for or server.service.accounts.public_url + path
    signed = signature(server, url, MultiDict(form))
    content = urlencode(list(MultiDict(form).items(multi=True)))
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    url = server.url + path
    return await server.http.post(url, content=content, headers=signed | kind | headers)


def warnings(logs: list[dict]) -> list[dict]:
    return [line for line in logs if line["log_level"] == "warning"]


async def ended_inbound_call(server: Server) -> dict:
    """The record of an inbound call that has come, and is over."""
    begun = await post(server, "/twiml", RINGING)
    assert "<Connect>" in begun.text
    over = {"CallSid": CALL_SID, "CallStatus": "completed", "SequenceNumber": "1"}
    await post(server, "/call-status", over)
    call = server.service.calls.register.get(CALL_SID)
    assert call is not None
    await call.finished.wait()
    assert server.service.records is not None
    await server.service.records.wait_saved()
    return (await server.http.get(f"/calls/{CALL_SID}")).json()


async def test_a_captured_webhook_begins_no_call_again_after_a_restart(tmp_path):
    kept = {"database_url": f"sqlite:///{tmp_path}/offhook.db"}
    async with serving(**kept) as server:
        first = await ended_inbound_call(server)
        path = server.url.rpartition(":")[2]
    async with serving(on_port=int(path), **kept) as server:
        answers = [await post(server, "/twiml", RINGING) for _ in range(2)]
        answers.append(await get(server, "/twiml", RINGING))
        sessions, live = len(server.gemini.sessions), server.service.calls.live_count
        after = (await server.http.get(f"/calls/{CALL_SID}")).json()
        other = await post(server, "/twiml", RINGING | {"CallSid": OTHER_SID})
        await post(server, "/call-status", FORMS["/call-status"] | {"CallSid": OTHER_SID})
        server.service.calls.register.get(OTHER_SID).end(EndReason.HUNG_UP)

    assert [answer.status_code for answer in answers] == [200] * 3
    assert not any("<Connect>" in answer.text for answer in answers)
    assert all("<Hangup" in answer.text for answer in answers)
    assert (sessions, live) == (0, 0)
    assert after == first
    assert "<Connect>" in other.text


async def test_a_call_is_answered_though_the_database_is_away(tmp_path):
    file = tmp_path / "offhook.db"
    async with serving(database_url=f"sqlite:///{file}") as server:
        await ended_inbound_call(server)
        with sqlite3.connect(file) as broken:
            broken.execute("DROP TABLE offhook_calls")
        broken.close()
        other = await post(server, "/twiml", RINGING | {"CallSid": OTHER_SID})
        server.service.calls.register.get(OTHER_SID).end(EndReason.HUNG_UP)

    assert "<Connect>" in other.text


@pytest.mark.parametrize("path", [*FORMS, "/voice"])
@pytest.mark.parametrize("name", ["", '; name="CallSid"', '; name="a"; filename="b"'])
async def test_a_form_of_another_kind_than_the_carriers_has_no_fields(path, name):
    body = f"--a\r\nContent-Disposition: form-data{name}\r\n\r\nq\r\n--a--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=a", "X-Twilio-Signature": "x"}
    async with serving() as server:
        answer = await server.http.post(path, content=body, headers=headers)

    assert answer.status_code == (404 if path == "/voice" else 403)


# ------------------------------------------------------------------------------------------
# GET


@pytest.mark.parametrize("path", FORMS)
async def test_a_signed_get_is_answered_like_a_post(path):
    async with serving() as server:
        by_get = await get(server, path, FORMS[path])
        by_post = await post(server, path, FORMS[path])
        unsigned = await server.http.get(f"{path}?{urlencode(FORMS[path])}")

    assert by_get.status_code == by_post.status_code in (200, 204)
    assert by_get.headers.get("Content-Type") == by_post.headers.get("Content-Type")
    assert unsigned.status_code == 403


async def test_a_get_is_signed_with_its_query_as_it_came():
    async with serving() as server:
        target = f"/twiml?{urlencode(RINGING)}"
        signed = signature(server, server.url + target)
        changed = await server.http.get(target.replace(CALL_SID, OTHER_SID), headers=signed)
        longer = await server.http.get(f"{target}&A=1", headers=signed)
        as_post = await server.http.post(target, headers=signed)
        live = server.service.calls.live_count

    assert [changed.status_code, longer.status_code] == [403, 403]
    assert as_post.status_code == 400  # a form has the fields of a post, and this one has none
    assert live == 0


async def test_a_post_may_have_a_query_and_its_fields_are_its_forms():
    async with serving() as server:
        answer = await post(server, f"/twiml?CallSid={OTHER_SID}&agent=sales", RINGING)
        calls = [call.call_sid for call in server.service.calls.register.all()]

    assert "<Stream" in answer.text
    assert calls == [CALL_SID]


# ------------------------------------------------------------------------------------------
# Whose call


@pytest.mark.parametrize("path", FORMS)
@pytest.mark.parametrize("call_sid", ["", "CA1", CALL_SID + "0", CALL_SID + "CallStatusringing"])
async def test_a_webhook_without_a_calls_sid_is_refused_in_words(path, call_sid):
    async with serving() as server:
        answer = await post(server, path, FORMS[path] | {"CallSid": call_sid})
        live = server.service.calls.live_count

    assert answer.status_code == 400
    assert "CallSid" in answer.text or "CA and 32 hexadecimal digits" in answer.text
    assert live == 0


async def test_a_captured_webhook_is_worth_the_call_it_was_captured_from_and_no_more():
    async with serving() as server:
        token = server.twilio.account.auth_token
        text = server.url + "/twiml" + "".join(n + v for n, v in sorted(RINGING.items()))
        signed = RequestValidator(token).compute_signature(text, {})
        names = ["CallStatus", "Direction", "From", "To"]
        cuts = []
        for number in range(40):
            # The sid goes on with more and more of what follows it.
            rest = "".join(n + v for n, v in sorted(RINGING.items()) if n in names)
            cuts.append({"ApiVersion": "2010-04-01", "CallSid": CALL_SID + rest[: number + 1]})
            if rest[number + 1 :]:
                cuts[-1][rest[number + 1 :]] = ""
        answers = []
        for form in cuts:
            answer = await server.http.post(
                "/twiml", data=form, headers={"X-Twilio-Signature": signed}
            )
            answers.append(answer.status_code)
        whole = await server.http.post(
            "/twiml", data=RINGING, headers={"X-Twilio-Signature": signed}
        )
        calls = [call.call_sid for call in server.service.calls.register.all()]

    assert 200 not in answers
    assert 400 in answers  # rightly signed, and no call for all that
    assert whole.status_code == 200
    assert calls == [CALL_SID]


async def test_a_field_that_is_there_twice_is_refused():
    async with serving() as server:
        form = [*RINGING.items(), ("CallSid", OTHER_SID)]
        answer = await post(server, "/twiml", form)

    assert answer.status_code == 400
    assert "2 values of CallSid" in answer.text


async def test_a_webhook_of_another_account_is_refused_and_told_of():
    async with serving() as server:
        ours = server.twilio.account_sid
        with capture_logs() as logs:
            other = await post(server, "/twiml", RINGING | {"AccountSid": "AC" + "0" * 32})
        own = await post(server, "/twiml", RINGING | {"AccountSid": ours})

    assert (other.status_code, own.status_code) == (403, 200)
    assert "another account" in warnings(logs)[0]["event"]


async def test_a_stream_that_names_no_call_is_closed_with_1008():
    async with (
        serving(simulated_ring_s=None) as server,
        ringing_call(server) as (_, ticket),
        open_socket(server) as socket,
    ):
        await socket.send(start_message(ticket, "CA1"))
        code, reason = await closing_of(socket)

    assert code == 1008
    assert "32 hexadecimal digits" in (reason or "")


# ------------------------------------------------------------------------------------------
# What begins a call


@pytest.mark.parametrize(
    "changes",
    [
        {"CallStatus": "completed", "CallDuration": "7"},
        {"CallStatus": "busy"},
        {"CallStatus": "canceled"},
        {"Direction": "outbound-api"},
        {"Direction": "outbound-api", "CallStatus": "in-progress"},
        {"Direction": "outbound-dial", "CallStatus": "in-progress"},
        {"CallStatus": "in-progress", "CallbackSource": "call-progress-events"},
    ],
    ids=lambda changes: "-".join(changes.values()),
)
async def test_what_is_not_a_call_that_comes_in_opens_none(changes):
    async with serving() as server:
        answer = await post(server, "/twiml", RINGING | changes)
        live = server.service.calls.live_count
        sessions = len(server.gemini.sessions)

    assert answer.status_code == 200
    assert "<Stream" not in answer.text
    assert (live, sessions) == (0, 0)


async def test_a_status_callback_that_comes_to_the_voice_webhook_counts(fast_clock):
    async with serving(simulated_ring_s=None) as server, ringing_call(server) as (call_sid, _):
        form = {"CallSid": call_sid, "CallStatus": "busy", "Direction": "outbound-api"}
        await post(server, "/twiml", form)
        record = (await server.http.get(f"/calls/{call_sid}")).json()
        call = server.service.calls.register.get(call_sid)
        with trio.fail_after(10):
            await call.finished.wait()

    assert record["status"] == "busy"
    assert call.end_reason == "busy"


async def test_a_call_of_ours_may_ask_for_its_document():
    async with serving(simulated_ring_s=None) as server, ringing_call(server) as (call_sid, _):
        form = {"CallSid": call_sid, "CallStatus": "in-progress", "Direction": "outbound-api"}
        answer = await post(server, "/twiml", form)

    assert "<Stream" in answer.text


# ------------------------------------------------------------------------------------------
# Astray


@pytest.mark.parametrize("path", ["/twiml/", "/", "/voice", "/incoming?a=1", "/calls/"])
@pytest.mark.parametrize("method", [get, post])
async def test_a_signed_webhook_at_a_path_that_is_none_is_refused_and_told_of(path, method):
    form = RINGING if "?" not in path or method is post else {}
    async with serving(public_url=PUBLIC_URL, api_key="sesame") as server:
        with capture_logs() as logs:
            if method is get and "?" in path:
                signed = signature(server, PUBLIC_URL + path)
                answer = await server.http.get(path, headers=signed)
            else:
                answer = await method(server, path, form)

    (line,) = warnings(logs)
    assert answer.status_code == 404
    assert "none at this path" in line["event"]
    assert line["signed_for"] == PUBLIC_URL + path.partition("?")[0]
    assert line["expected"] == f"{PUBLIC_URL}/twiml"
    assert "Stream" not in answer.text


async def test_what_was_probably_meant_is_named():
    async with serving(public_url=PUBLIC_URL) as server:
        with capture_logs() as logs:
            await post(server, "/status", FORMS["/call-status"])

    assert warnings(logs)[0]["expected"] == f"{PUBLIC_URL}/call-status"


async def test_a_stranger_at_a_path_that_is_none_is_told_what_it_always_was():
    async with serving(public_url=PUBLIC_URL, api_key="sesame") as server:
        with capture_logs() as logs:
            forged = await server.http.post(
                "/voice", data=RINGING, headers={"X-Twilio-Signature": "A" * 28}
            )
            large = await server.http.post(
                "/voice", content=b"x" * 60_000, headers={"X-Twilio-Signature": "A" * 28}
            )

    assert (forged.status_code, large.status_code) == (401, 401)
    assert warnings(logs) == []


@pytest.mark.parametrize(
    ("public_url", "signed_for", "headers"),
    [
        (PUBLIC_URL, "http://phone.example/twiml", {}),
        (PUBLIC_URL, "https://www.phone.example/twiml", {}),
        (f"{PUBLIC_URL}:84", "https://phone.example:94/twiml", {"Host": "phone.example:94"}),
        (PUBLIC_URL, "https://x.ngrok.app/twiml", {"Host": "x.ngrok.app"}),
        (PUBLIC_URL, "https://x.ngrok.app/twiml", {"X-Forwarded-Host": "a, x.ngrok.app"}),
        (f"{PUBLIC_URL}/voice", "https://phone.example/twiml", {}),
        (PUBLIC_URL, "https://phone.example/voice/twiml", {"X-Forwarded-Prefix": "/voice"}),
        (PUBLIC_URL, "https://phone.example/twiml/", {}),
    ],
)  # fmt: skip
async def test_a_webhook_that_was_signed_for_another_address_is_told_apart(
    public_url, signed_for, headers
):
    async with serving(public_url=public_url) as server:
        with capture_logs() as logs:
            answer = await post(server, "/twiml", RINGING, signed_for=signed_for, **headers)
        live = server.service.calls.live_count

    (line,) = warnings(logs)
    assert answer.status_code == 403
    assert "for another address" in line["event"]
    assert line["signed_for"] == signed_for
    assert line["expected"] == f"{public_url}/twiml"
    assert live == 0


async def test_forged_webhooks_are_logged_sparingly_and_do_not_hide_the_other_kind():
    async with serving(public_url=PUBLIC_URL) as server:
        with capture_logs() as logs:
            for _ in range(5):
                await server.http.post(
                    "/twiml", data=RINGING, headers={"X-Twilio-Signature": "A" * 28}
                )
            for _ in range(5):
                await post(server, "/twiml", RINGING, signed_for="http://phone.example/twiml")

    events = [line["event"] for line in warnings(logs)]
    assert len(events) == 2
    assert "wrong or missing" in events[0]
    assert "for another address" in events[1]


@pytest.mark.parametrize(("more", "status"), [(0, 200), (300, 403)])
async def test_a_webhook_of_more_fields_than_there_are_is_not_read(more, status):
    async with serving(public_url=PUBLIC_URL) as server:
        many = RINGING | {f"Field{number}": "x" for number in range(more)}
        answer = await post(server, "/twiml", many)

    assert answer.status_code == status


async def test_no_address_in_the_log_has_a_query():
    async with serving(public_url=PUBLIC_URL) as server:
        with capture_logs() as logs:
            target = f"/twiml?{urlencode(RINGING)}"
            signed = signature(server, f"http://phone.example{target}")
            await server.http.get(target, headers=signed)
            await get(server, "/voice", RINGING)

    assert len(warnings(logs)) == 2
    assert "5550199" not in json.dumps(logs)


# ------------------------------------------------------------------------------------------
# Lines that come twice


async def test_the_address_that_a_proxy_has_written_counts_whoever_wrote_the_first_line():
    settings = {"trusted_proxies": "127.0.0.0/8", "max_strangers_per_address": 1}
    async with (
        serving(start_timeout_s=600.0, **settings) as server,
        await connection(server) as first,
        await connection(server) as second,
    ):
        for number, raw in enumerate((first, second)):
            lines = (f"198.51.100.{number}, 192.0.2.{number}", "203.0.113.7")
            head = "".join(f"X-Forwarded-For: {line}\r\n" for line in lines).encode()
            await raw.send_all(UPGRADE.removesuffix(b"\r\n") + head + b"\r\n")
            assert b" 101 " in await raw.receive_some(1000)
        with trio.fail_after(60):
            made_room = await first.receive_some(1000)

    assert made_room[:1] == b"\x88"


async def test_two_idempotency_keys_are_none():
    async with serving() as server:
        answer = await server.http.post(
            "/make-call",
            json={"destination_number": "+15005550101"},
            headers=[("Idempotency-Key", "a"), ("Idempotency-Key", "b")],
        )
        live = server.service.calls.live_count

    assert answer.status_code == 422
    assert live == 0


# ------------------------------------------------------------------------------------------
# A carrier that has too much to do


async def test_a_client_is_told_what_the_carrier_has_told_us_and_the_next_is_not_dialled():
    async with serving() as server:
        server.twilio.account.misbehave(Faults(busy_for_s=100.0))
        first = await server.make_call()
        second = await server.make_call()
        asked = server.twilio.account.dial_requests
        ready = await server.http.get("/readyz")

    assert first.status_code == 502
    assert first.json()["carrier_status"] == 429
    assert 95 <= int(first.headers["Retry-After"]) <= 100
    assert second.status_code == 503
    assert second.json()["error"] == "carrier-busy"
    assert 95 <= int(second.headers["Retry-After"]) <= 100
    assert asked == 1
    assert ready.status_code == 200  # calls that come in are taken
