"""Media sockets that are cut in the middle of a call, over real sockets on both media paths."""

from __future__ import annotations

import pytest
import trio

from server.carrier import CallStatus
from server.cluster.cluster import Cluster
from server.simulators.twilio import FAULTS
from server.web import media_door
from tests.support.serving import CALL_SID, Server, serving
from tests.web.test_webhooks import FORMS, post

pytestmark = pytest.mark.sockets

PATHS = ("fast", "ordinary")


async def wait_streams(phone, count: int) -> None:
    with trio.fail_after(60):
        await phone.wait_streams(count)


async def until(condition) -> None:
    with trio.fail_after(60):
        while True:
            if condition():
                return
            await trio.sleep(0.02)


async def talking_phone(server: Server, ending: str = "5550108"):
    answer = await server.make_call(ending)
    phone = server.twilio.calls[answer.json()["call_sid"]]
    stream = await phone.wait_stream()
    with trio.fail_after(60):
        await stream.sounded.wait()
    return phone


@pytest.mark.parametrize("media_path", PATHS)
async def test_a_call_goes_on_when_its_media_socket_is_cut(fast_clock, media_path):
    async with serving(media_path=media_path, line_lost_timeout_s=60.0) as server:
        phone = await talking_phone(server)
        call = server.service.calls.register.get(phone.call_sid)
        for count in (2, 3):
            await phone.phone.cut()
            await wait_streams(phone, count)
            with trio.fail_after(60):
                await phone.phone.sounded.wait()
        await server.http.post(f"/calls/{phone.call_sid}/hang-up")
        record = await server.finished(phone.call_sid)
        sessions = server.gemini.sessions
        await until(lambda: not (server.service.plane and server.service.plane._wires))
        lost = (await server.http.get("/metrics")).text

    noted = [moment["what"] for moment in record["timeline"]]
    assert noted.count("line lost") == noted.count("line back") == 2
    assert record["reason"] == "hung-up"
    assert len(sessions) == 1
    assert not call.conversation.passing.relay.has_phone
    assert phone.status is CallStatus.COMPLETED
    assert 'offhook_lines_total{event="back"} 2.0' in lost


@pytest.mark.parametrize("media_path", PATHS)
async def test_the_model_hears_what_the_caller_says_on_the_new_line(fast_clock, media_path):
    # While the greeting is protected the model hears silence, and the caller after it.
    settings = {"media_path": media_path, "greeting_protect_s": 0.0, "line_lost_timeout_s": 60.0}
    async with serving(**settings) as server:
        phone = await talking_phone(server, "5550101")
        await phone.phone.cut()
        record = await server.finished(phone.call_sid)
        (session,) = server.gemini.sessions

    on_lines_s = sum(len(stream.said) for stream in phone.phones) / 8_000
    assert record["reason"] == "caller-hung-up"
    assert [one["cut"] for one in record["transcript"] if one["speaker"] == "agent"][-1] is False
    # A frame or two may be on the way when a socket is cut.
    assert session.heard_samples / 16_000 == pytest.approx(on_lines_s, abs=0.2)


async def test_calls_whose_sockets_are_cut_at_once_all_go_on(fast_clock):
    settings = {"calls_per_s": 1000, "simulated_ring_s": 0.1, "line_lost_timeout_s": 60.0}
    async with serving(**settings) as server:
        phones = []

        async def place():
            phones.append(await talking_phone(server))

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(place)
        for phone in phones:
            await phone.phone.cut()
        for phone in phones:
            await wait_streams(phone, 2)
            with trio.fail_after(60):
                await phone.phone.sounded.wait()
        ended = [call for call in server.service.calls.register.live if call.end_reason]
        live = server.service.calls.live_count
        for phone in phones:
            await server.http.post(f"/calls/{phone.call_sid}/hang-up")

    assert (live, ended) == (8, [])


async def test_a_carrier_that_ends_the_call_with_a_broken_stream_says_so(
    fast_clock,
):
    async with serving(simulated_carrier="line-lost-ends-call") as server:
        answer = await server.make_call("5550108")
        record = await server.finished(answer.json()["call_sid"])

    noted = [moment["what"] for moment in record["timeline"]]
    assert "line lost" in noted
    assert record["reason"] == "caller-hung-up"


async def test_a_call_whose_carrier_stays_away_is_hung_up_there(fast_clock):
    async with serving(line_lost_timeout_s=0.5) as server:
        server.twilio.account.misbehave(FAULTS["line-lost-for-good"])
        answer = await server.make_call("5550108")
        phone = server.twilio.calls[answer.json()["call_sid"]]
        record = await server.finished(phone.call_sid)

    assert record["reason"] == "caller-gone"
    assert phone.status is CallStatus.COMPLETED


async def test_a_resume_that_the_carrier_has_not_signed_gets_nothing(fast_clock):
    async with serving() as server:
        phone = await talking_phone(server)
        await phone.phone.cut()
        form = {"CallSid": phone.call_sid, "CallStatus": "in-progress"}
        unsigned = await server.http.post("/resume", data=form)
        wrong = await server.signed_post("/resume", form, token="another secret of nobody")
        await server.http.post(f"/calls/{phone.call_sid}/hang-up")

    assert [unsigned.status_code, wrong.status_code] == [403, 403]
    assert "Stream" not in unsigned.text + wrong.text


async def test_a_resume_of_a_call_that_talks_is_over_or_is_nobodys_gets_no_stream(fast_clock):
    async with serving() as server:
        phone = await talking_phone(server)
        form = {"CallSid": phone.call_sid, "CallStatus": "in-progress"}
        talking = await post(server, "/resume", form)
        went_on = server.service.calls.live_count
        await server.http.post(f"/calls/{phone.call_sid}/hang-up")
        await server.finished(phone.call_sid)
        over = await post(server, "/resume", form)
        unknown = await post(server, "/resume", FORMS["/resume"] | {"CallSid": CALL_SID})
        live = server.service.calls.live_count

    assert (went_on, live) == (1, 0)
    for answer in (talking, over, unknown):
        assert answer.status_code == 200
        assert "<Hangup />" in answer.text
        assert "Stream" not in answer.text


@pytest.mark.parametrize(
    ("query", "name"),
    [
        (b"process=3", "3"),
        (b"a=b&process=node.2", "node.2"),
        (b"", None),
        (b"process=../x", None),
        (b"process=\xff", None),
    ],
)
def test_a_carrier_of_one_address_names_the_process_in_its_query(query, name):
    cluster = Cluster()
    scope = {"path": "/stream", "query_string": query}

    named = media_door._name(scope, None, cluster)

    assert named == (cluster.me.name if name is None else name)
