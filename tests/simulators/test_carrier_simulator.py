"""The simulated Twilio over real sockets, used by the real client; the oracle is their package."""

import socket
import struct
import wave
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import httpx2
import hypercorn.trio
import pytest
import trio
from quart import Response, request
from quart_trio import QuartTrio
from twilio.request_validator import RequestValidator
from websockets.exceptions import ConnectionClosed
from websockets.trio.server import serve

from server.carrier import CallerAudio, CallStatus, SendAudio, StreamStopped
from server.carrier.twilio.reports import parse_machine_verdict, parse_status, parse_transfer
from server.carrier.twilio.rest import TwilioCarrier
from server.carrier.twilio.signature import WebhookVerifier
from server.carrier.twilio.webhooks import TwilioWebhooks
from server.carrier.webhooks import ConnectStream
from server.errors import CarrierError, StreamEnded
from server.hooks.hypercorn_worker import make_config
from server.simulators.phone import (
    PHONE_SCRIPTS,
    SILENCE,
    Beep,
    HangUp,
    HearSpeech,
    PhoneScript,
    Say,
    StreamEnd,
    Wait,
    load_speech,
)
from server.simulators.twilio import Faults, TwilioSimulator
from tests.support import streams

pytestmark = pytest.mark.sockets

ACCOUNT = "AC0123456789abcdef0123456789abcdef"
TOKEN = "0123456789abcdef0123456789abcdef"
NUMBER = "+15005550006"
LOUD_S = bytes([0x00, 0x80]) * 4000
QUICK = PhoneScript("quick", (Say("hello", break_off_s=0.1), HangUp()), ring_s=0.02)
STAYS = PhoneScript("stays", ring_s=0.02)


class ServerSocket:
    """Our side of a media stream on a websockets server."""

    def __init__(self, websocket):
        self._websocket = websocket

    async def receive(self):
        try:
            return await self._websocket.recv()
        except ConnectionClosed:
            raise StreamEnded("closed") from None

    def receive_nowait(self):
        return None

    async def send(self, text):
        try:
            await self._websocket.send(text)
        except ConnectionClosed:
            raise StreamEnded("closed") from None

    async def aclose(self, code=1000, reason=""):
        await self._websocket.aclose(code, reason)


@dataclass
class World:
    """A server that says ``greeting`` on every stream, and what it has seen."""

    public_url: str = ""
    stream_url: str = ""
    document: str = ""
    documents: dict = field(default_factory=dict)
    voice_status: int = 200
    failed_reports: int = 0
    """So many webhooks that end in ``-status`` are answered 503 from now on."""
    greeting: bytes = b""
    close_with: tuple | None = None
    statuses: list = field(default_factory=list)
    requests: list = field(default_factory=list)
    upgrades: list = field(default_factory=list)
    streams: list = field(default_factory=list)
    forged: int = 0
    hold: trio.Event | None = None
    held: trio.Event = field(default_factory=trio.Event)
    """Whether who asks for ``slow`` has to wait, and whether somebody does."""

    async def webhook(self, path):
        form = await request.form
        url = f"{self.public_url}/{path}"
        signature = request.headers["X-Twilio-Signature"]
        if not RequestValidator(TOKEN).validate(url, form, signature):
            self.forged += 1
        self.requests.append((path, form.to_dict()))
        if path == "slow" and self.hold is not None:
            self.held.set()
            await self.hold.wait()
        if path.endswith("-status"):
            if self.failed_reports:
                self.failed_reports -= 1
                return Response("", status=503)
            if path == "call-status":
                self.statuses.append(form.to_dict())
            return Response("", status=204)
        document = self.documents.get(path, self.document)
        return Response(document, status=self.voice_status, content_type="text/xml")

    async def stream(self, websocket):
        headers = dict(websocket.request.headers.raw_items())
        self.upgrades.append((websocket.request.path, headers))
        async with streams.listening(ServerSocket(websocket)) as stream:
            events = [stream.started]
            self.streams.append((stream, events))
            if self.greeting:
                stream.send(SendAudio(self.greeting))
            if self.close_with:
                await stream.aclose(*self.close_with)
            while not isinstance(events[-1], StreamStopped):
                events.append(await stream.receive())


@pytest.fixture
async def world(nursery):
    world = World()
    app = QuartTrio(__name__)
    app.add_url_rule("/<path:path>", view_func=world.webhook, methods=["POST"])
    config = make_config("127.0.0.1:0", graceful_timeout=0.1)
    (world.public_url,) = await nursery.start(
        partial(hypercorn.trio.serve, app, config, shutdown_trigger=trio.sleep_forever)
    )
    server = await nursery.start(
        partial(serve, world.stream, port=0, host="127.0.0.1", compression=None)
    )
    port = server.listeners[0].socket.getsockname()[1]
    world.stream_url = f"ws://127.0.0.1:{port}/stream"
    return world


class WebhooksOfTwoPorts(TwilioWebhooks):
    """The test's streams have a port of their own."""

    def __init__(self, world):
        super().__init__(ACCOUNT, TOKEN, world.public_url)
        self._world = world

    @property
    def stream_url(self):
        return self._world.stream_url


@asynccontextmanager
async def twilio(world, **settings):
    """A simulator that runs and a carrier that talks to it."""
    simulator = TwilioSimulator(
        account_sid=ACCOUNT, auth_token=TOKEN, phone_number=NUMBER, **settings
    )
    async with trio.open_nursery() as nursery:
        api_url = await nursery.start(simulator.run)
        assert api_url == simulator.api_url
        async with TwilioCarrier(
            account_sid=ACCOUNT,
            auth_token=TOKEN,
            phone_number=NUMBER,
            webhooks=WebhooksOfTwoPorts(world),
            api_url=api_url,
        ) as carrier:
            with trio.fail_after(60):
                yield simulator, carrier
        nursery.cancel_scope.cancel()


async def place(simulator, carrier, number="+15005550123", **limits):
    placed = await carrier.place_call(number, ticket="t1", **{"max_duration_s": 60, **limits})
    assert placed.status is CallStatus.QUEUED
    return simulator.calls[placed.call_sid]


async def test_a_call_from_dialling_to_its_end(world, tmp_path, fast_clock):
    world.greeting = LOUD_S[:160]

    async with twilio(world, script=QUICK, recordings_dir=tmp_path) as (simulator, carrier):
        call = await place(simulator, carrier)
        await call.wait_ended()

    assert call.status is CallStatus.COMPLETED
    ((stream, events),) = world.streams
    assert events[0].parameters == {"ticket": "t1"}
    assert events[0].call_sid == call.call_sid
    assert events[-1] == StreamStopped(said=True)
    said = b"".join(event.payload for event in events if isinstance(event, CallerAudio))
    assert said == call.said == load_speech("hello")[:800]
    assert LOUD_S[:160] in call.heard
    assert stream.counts.missing_chunks == stream.counts.malformed == 0
    with wave.open(str(call.recording_path)) as recording:
        assert recording.getparams()[:4] == (2, 2, 8000, len(call.said))


async def test_status_callbacks_are_signed_ordered_and_complete(world, fast_clock):
    async with twilio(world, script=QUICK) as (simulator, carrier):
        call = await place(simulator, carrier)
        await call.wait_ended()

    updates = [parse_status(form) for form in world.statuses]
    assert [(update.sequence_number, update.status.value) for update in updates] == [
        (0, "initiated"),
        (1, "ringing"),
        (2, "in-progress"),
        (3, "completed"),
    ]
    assert updates[-1].facts["duration_s"] == "1"
    assert world.forged == 0
    assert call.reports == [(update.status, 204) for update in updates]


@pytest.mark.parametrize(
    ("person", "verdict"),
    [
        (PhoneScript("human", (Wait(1.0), HangUp()), ring_s=0.02, verdict_s=0.1), "human"),
        (
            PhoneScript(
                "machine",
                (Beep(duration_s=0.2), Wait(1.0), HangUp()),
                ring_s=0.02,
                answered_by="machine_end_beep",
                verdict_s=None,
            ),
            "machine_end_beep",
        ),
    ],
)
async def test_the_verdict_of_machine_detection_is_posted_once_and_signed(
    world, person, verdict, fast_clock
):
    async with twilio(world, script=person) as (simulator, carrier):
        call = await place(simulator, carrier, detect_machine=True)
        await call.wait_ended()

    ((_, form),) = [request for request in world.requests if request[0] == "amd-status"]
    assert form.keys() == {"CallSid", "AccountSid", "AnsweredBy", "MachineDetectionDuration"}
    assert parse_machine_verdict(form).answered_by == call.answered_by == verdict
    assert 0 < parse_machine_verdict(form).took_s < 5
    assert world.forged == 0


async def test_who_answers_a_transfer_is_reported_with_the_callers_own_call(world, fast_clock):
    world.document = "<Response><Hangup/></Response>"
    async with twilio(world, script=STAYS, dial_s=0.1, ring_s=0.02) as (simulator, carrier):
        call = await place(simulator, carrier)
        await call.wait_stream()
        await carrier.transfer(call.call_sid, "+15005550123", ring_timeout_s=5)
        await call.wait_ended()

    leg, action = [parse_transfer(form) for path, form in world.requests if "transfer" in path]
    assert (leg.call_sid, leg.status, leg.wants_document) == (call.call_sid, "in-progress", False)
    assert (action.call_sid, action.status) == (call.call_sid, "completed")
    assert world.forged == 0


async def test_what_is_failed_of_a_transfer_is_asked_again(world, fast_clock):
    async with twilio(world, script=STAYS, dial_s=0.1, ring_s=0.02) as (simulator, carrier):
        call = await place(simulator, carrier)
        await call.wait_stream()
        world.failed_reports = 2
        await carrier.transfer(call.call_sid, "+12025550104", ring_timeout_s=5)  # who is busy
        await call.wait_ended()

    actions = [parse_transfer(form) for path, form in world.requests if "transfer" in path]
    assert [action.status for action in actions] == ["busy"] * 3
    assert not any("answered 503" in what for _, what in call.timeline)
    assert world.forged == 0


async def test_only_the_status_callbacks_asked_for_are_posted(world, fast_clock):
    form = {
        "To": "+15005550123",
        "From": NUMBER,
        "Twiml": "<Response/>",
        "StatusCallback": f"{world.public_url}/call-status#rc=3",
    }

    async with twilio(world, script=QUICK) as (simulator, _):
        async with httpx2.AsyncClient(trust_env=False, auth=(ACCOUNT, TOKEN)) as client:
            answer = await client.post(calls_url(simulator), data=form)
        call = simulator.calls[answer.json()["sid"]]
        await call.wait_ended()

    assert [status["CallStatus"] for status in world.statuses] == ["completed"]
    assert world.forged == 0  # The fragment is not signed.


async def test_the_upgrade_is_signed_plain_and_without_compression(world, fast_clock):
    async with twilio(world, script=QUICK) as (simulator, carrier):
        await (await place(simulator, carrier)).wait_ended()

    ((path, headers),) = world.upgrades
    assert path == "/stream"
    assert WebhookVerifier(TOKEN, world.stream_url.replace("ws:", "http:")[:-7]).verify_upgrade(
        path, headers
    )
    assert RequestValidator(TOKEN).validate(world.stream_url, {}, headers["X-Twilio-Signature"])
    assert "Sec-WebSocket-Extensions" not in headers


@pytest.mark.parametrize(
    ("number", "status"),
    [
        ("+12025550104", CallStatus.BUSY),
        ("+12025550105", CallStatus.NO_ANSWER),
        ("+12025550109", CallStatus.FAILED),
    ],
)
async def test_a_call_that_is_not_answered_has_no_stream(world, number, status, fast_clock):
    async with twilio(world, ring_s=0.02) as (simulator, carrier):
        call = await place(simulator, carrier, number)
        await call.wait_ended()

    assert call.status is status
    assert [form["CallStatus"] for form in world.statuses] == ["initiated", "ringing", status]
    assert world.streams == []
    assert call.duration_s == 0
    with pytest.raises(LookupError):
        call.said  # noqa: B018


async def test_a_phone_that_rings_too_long_is_given_up(world, fast_clock):
    async with twilio(world, ring_s=2.0) as (simulator, carrier):
        carrier._ring_timeout_s = 0.5  # Rounded up to a second.
        call = await place(simulator, carrier)
        await call.wait_ended()

    assert call.status is CallStatus.NO_ANSWER


async def test_hanging_up_stops_the_stream_and_may_be_repeated(world, fast_clock):
    async with twilio(world, script=STAYS) as (simulator, carrier):
        call = await place(simulator, carrier)
        await call.wait_stream()
        await carrier.hang_up(call.call_sid)
        await call.wait_ended()
        await carrier.hang_up(call.call_sid)
        await carrier.hang_up("CA" + "0" * 32)

    ((_, events),) = world.streams
    assert events[-1] == StreamStopped(said=True)
    assert (call.phone.end, call.status) == (StreamEnd.STOPPED, CallStatus.COMPLETED)


async def test_hanging_up_while_it_rings_cancels(world, fast_clock):
    async with twilio(world, ring_s=60.0) as (simulator, carrier):
        call = await place(simulator, carrier)
        await call.wait_status(CallStatus.RINGING)
        await carrier.hang_up(call.call_sid)
        await call.wait_ended()

    assert call.status is CallStatus.CANCELED
    assert world.statuses[-1]["CallStatus"] == "canceled"


async def test_updating_a_call_that_is_over_is_refused(world, fast_clock):
    async with twilio(world, script=QUICK) as (simulator, carrier):
        call = await place(simulator, carrier)
        await call.wait_ended()
        with pytest.raises(CarrierError) as failure:
            await carrier.update_call(call.call_sid, twiml="<Response/>")

    assert (failure.value.status, failure.value.code) == (400, 21220)


async def test_the_server_closing_the_stream_ends_the_call(world, fast_clock):
    world.close_with = (1008, "bad ticket")

    async with twilio(world, script=STAYS) as (simulator, carrier):
        call = await place(simulator, carrier)
        await call.wait_ended()

    assert call.phone.end is StreamEnd.CLOSED
    assert call.status is CallStatus.COMPLETED
    what = [line for _, line in call.timeline]
    assert "stream closed by the server (1008, 'bad ticket')" in what


async def test_a_dropped_line_is_seen_without_a_stop(world, fast_clock):
    script = replace(PHONE_SCRIPTS["drops"], ring_s=0.02)
    world.greeting = LOUD_S

    async with twilio(world, script=script) as (simulator, carrier):
        call = await place(simulator, carrier)
        await call.wait_ended()

    ((stream, events),) = world.streams
    assert events[-1] == StreamStopped(said=False)
    assert stream.counts.media * 160 == len(call.said)


@pytest.fixture
def no_overtime(monkeypatch):
    monkeypatch.setattr("server.carrier.twilio.rest.OVERTIME_S", 0.0)


async def test_the_time_limit_ends_the_call(world, fast_clock, no_overtime):
    async with twilio(world, script=STAYS) as (simulator, carrier):
        call = await place(simulator, carrier, max_duration_s=0.5)  # Rounded up to a second.
        await call.wait_ended()

    ((_, events),) = world.streams
    assert events[-1] == StreamStopped(said=True)
    assert call.duration_s == pytest.approx(1.0, abs=0.5)


async def test_the_time_limit_does_not_end_a_call_that_was_transferred(
    world, fast_clock, no_overtime
):
    async with twilio(world, script=STAYS, dial_s=5.0, ring_s=0.02) as (simulator, carrier):
        call = await place(simulator, carrier, max_duration_s=3.0)
        await call.wait_stream()
        await carrier.transfer(call.call_sid, "+15005550123", ring_timeout_s=5)
        await call.wait_ended()

    assert "time limit" not in [what for _, what in call.timeline]
    assert call.duration_s > 5.0


async def test_a_call_told_to_open_another_stream_goes_on_with_the_same_person(world, fast_clock):
    script = PhoneScript("says something once", (Say("hello"), Wait(60.0)), ring_s=0.02)

    async with twilio(world, script=script) as (simulator, carrier):
        call = await place(simulator, carrier)
        await call.wait_stream()
        await trio.sleep(3.0)
        await carrier.reconnect(call.call_sid, "t2")
        await call.wait_streams(2)
        await trio.sleep(3.0)
        await carrier.hang_up(call.call_sid)
        await call.wait_ended()

    (_, before), (again, _) = world.streams
    assert before[-1] == StreamStopped(said=True)
    assert again.started.parameters["ticket"] == "t2"
    assert [len(phone.utterances) for phone in call.phones] == [1, 0]


async def test_a_live_call_goes_on_with_another_document(world, fast_clock):
    world.documents["after"] = "<Response><Say>Bye</Say></Response>"
    twiml = (
        "<Response><Say>Hold</Say>"
        f'<Dial timeout="5" action="{world.public_url}/after"><Number>+12025550123</Number></Dial>'
        "<Hangup/></Response>"
    )

    async with twilio(world, script=STAYS, dial_s=0.05) as (simulator, carrier):
        call = await place(simulator, carrier)
        await call.wait_stream()
        await carrier.update_call(call.call_sid, twiml=twiml)
        await call.wait_ended()

    ((_, events),) = world.streams
    assert events[-1] == StreamStopped(said=True)
    what = [line for _, line in call.timeline]
    assert what[what.index("redirected over REST") :] == [
        "redirected over REST",
        "says: Hold",
        "dials +12025550123",
        "bridged",
        "dialled: completed",
        "says: Bye",
        "completed",
    ]
    after = dict(world.requests)["after"]
    assert (after["DialCallStatus"], after["DialCallDuration"]) == ("completed", "1")
    assert world.forged == 0


async def test_a_call_that_comes_in_is_answered_by_the_voice_webhook(world, fast_clock):
    async with twilio(world) as (simulator, carrier):
        world.document = carrier.webhooks.twiml(ConnectStream("t2"))
        call = simulator.dial_in(
            f"{world.public_url}/twiml",
            from_number="+12025550101",
            script=QUICK,
            status_url=f"{world.public_url}/call-status",
        )
        await call.wait_ended()

    ((path, form), (_, status)) = world.requests
    assert (path, form["Direction"], form["CallStatus"]) == ("twiml", "inbound", "ringing")
    assert (form["From"], form["To"]) == ("+12025550101", NUMBER)
    assert status["CallStatus"] == "completed"
    ((_, events),) = world.streams
    assert events[0].parameters == {"ticket": "t2"}
    assert world.forged == 0


async def test_a_call_whose_noise_is_filtered_gets_its_stream(world, fast_clock):
    async with twilio(world) as (simulator, carrier):
        carrier.webhooks._filters_noise = True
        world.document = carrier.webhooks.twiml(ConnectStream("t3"))
        call = simulator.dial_in(
            f"{world.public_url}/twiml", from_number="+12025550101", script=QUICK
        )
        await call.wait_ended()

    noted = [what for _, what in call.timeline]
    assert "filters noise" in noted
    assert not any(what.startswith(("warning", "error")) for what in noted)
    assert len(world.streams) == 1


@pytest.mark.parametrize(
    ("document", "voice_status", "status"),
    [
        ('<Response><Reject reason="busy"/></Response>', 200, CallStatus.BUSY),
        ("<Response><Reject/></Response>", 200, CallStatus.NO_ANSWER),
        ("<Response/>", 200, CallStatus.COMPLETED),
        ("not a document", 200, CallStatus.COMPLETED),
        ("", 403, CallStatus.FAILED),
    ],
)
async def test_a_call_that_comes_in_may_not_get_a_stream(
    world, document, voice_status, status, fast_clock
):
    world.document, world.voice_status = document, voice_status

    async with twilio(world) as (simulator, _):
        call = simulator.dial_in(f"{world.public_url}/twiml", from_number="+12025550101")
        await call.wait_ended()

    assert call.status is status
    assert world.streams == []


async def test_a_call_may_be_created_with_a_url(world, fast_clock):
    world.documents["first"] = "<Response><Redirect>second</Redirect><Say>Never</Say></Response>"
    world.documents["second"] = '<Response><Pause length="0.01"/><Hangup/></Response>'
    form = {"To": "+15005550123", "From": NUMBER, "Url": f"{world.public_url}/first"}

    async with twilio(world, script=QUICK) as (simulator, _):
        async with httpx2.AsyncClient(trust_env=False, auth=(ACCOUNT, TOKEN)) as client:
            answer = await client.post(calls_url(simulator), data=form)
        call = simulator.calls[answer.json()["sid"]]
        await call.wait_ended()

    assert [path for path, _ in world.requests] == ["first", "second"]
    assert [line for _, line in call.timeline][-2:] == ["hangs up", "completed"]
    assert world.forged == 0


async def test_webhooks_that_nobody_answers_do_not_stop_a_call(world, fast_clock):
    async with twilio(world, script=QUICK) as (simulator, carrier):
        carrier.webhooks.reach_at("http://127.0.0.1:1")  # the streams' address stays
        call = await place(simulator, carrier)
        await call.wait_ended()

    assert call.status is CallStatus.COMPLETED
    assert [answered for _, answered in call.reports] == [None] * 4


async def test_a_stream_that_cannot_be_opened_ends_the_call(world, fast_clock):
    async with twilio(world, script=QUICK) as (simulator, carrier):
        for url, error in [
            ("ws://127.0.0.1:1/stream", "error 31901"),
            (f"{world.public_url}/stream".replace("http:", "ws:"), "error 31920"),
            (f"{world.stream_url}?x=1", "error 31920"),
            ("https://127.0.0.1/stream", "error 31920"),
        ]:
            world.stream_url = url
            call = await place(simulator, carrier)
            await call.wait_ended()
            assert call.status is CallStatus.COMPLETED
            assert any(line.startswith(error) for _, line in call.timeline)


async def test_a_connection_that_is_reset_before_it_is_a_stream_ends_its_call(
    world, fast_clock, nursery
):
    async def reset(stream):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()

    listeners = await nursery.start(partial(trio.serve_tcp, reset, 0, host="127.0.0.1"))
    port = listeners[0].socket.getsockname()[1]
    async with twilio(world, script=QUICK) as (simulator, carrier):
        world.stream_url = f"ws://127.0.0.1:{port}/stream"
        call = await place(simulator, carrier)
        await call.wait_ended()

    assert call.status is CallStatus.COMPLETED
    assert any(line.startswith("error 319") for _, line in call.timeline)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        ("+15005550001", 21217),
        ("+15005550002", 21214),
        ("+15005550003", 21215),
        ("+15005550004", 21216),
        ("12345", 21211),
        ("+0123456789", 21211),
        ("", 21201),
    ],
)
async def test_numbers_twilio_refuses_are_refused(world, number, code, fast_clock):
    async with twilio(world) as (simulator, carrier):
        with pytest.raises(CarrierError) as failure:
            await place(simulator, carrier, number)

    assert (failure.value.status, failure.value.code) == (400, code)
    assert simulator.calls == {}


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"From": ""}, 400, 21213),
        ({"From": "+15005550001"}, 400, 21212),
        ({"From": "+15005550007"}, 400, 21210),
        ({"Twiml": ""}, 400, 21205),
        ({"Twiml": "x" * 4001}, 400, 20001),
        ({"StatusCallback": "/call-status"}, 400, 21609),
        ({"Timeout": "soon"}, 400, 20001),
        ({"MachineDetection": "Perhaps", "AsyncAmd": "true"}, 400, 20001),
        ({"MachineDetection": "Enable"}, 400, 20001),
        (
            {
                "MachineDetection": "Enable",
                "AsyncAmd": "true",
                "AsyncAmdStatusCallback": "/amd-status",
            },
            400,
            21609,
        ),
    ],
)
async def test_requests_twilio_refuses_are_refused(world, changes, status, code, fast_clock):
    form = {"To": "+15005550123", "From": NUMBER, "Twiml": "<Response/>", **changes}

    async with (
        twilio(world) as (simulator, _),
        httpx2.AsyncClient(trust_env=False, auth=(ACCOUNT, TOKEN)) as client,
    ):
        answer = await client.post(calls_url(simulator), data=form)

    assert answer.status_code == status
    assert answer.json().keys() == {"code", "message", "more_info", "status"}
    assert answer.json()["code"] == code


@pytest.mark.parametrize(
    ("auth", "account", "status", "code"),
    [
        (None, ACCOUNT, 401, 20003),
        ((ACCOUNT, "wrong"), ACCOUNT, 401, 20003),
        ((ACCOUNT, TOKEN), "AC" + "0" * 32, 404, 20404),
    ],
)
async def test_strangers_are_turned_away(world, auth, account, status, code, fast_clock):
    async with (
        twilio(world) as (simulator, _),
        httpx2.AsyncClient(trust_env=False, auth=auth) as client,
    ):
        answer = await client.post(calls_url(simulator, account), data={})

    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_a_call_can_be_fetched(world, fast_clock):
    async with twilio(world, script=QUICK) as (simulator, carrier):
        call = await place(simulator, carrier)
        await call.wait_ended()
        fetched = await carrier._client.calls(call.call_sid).fetch_async()
        with pytest.raises(Exception, match="was not found"):
            await carrier._client.calls("CA" + "1" * 32).fetch_async()

    assert (fetched.sid, fetched.status, fetched.to) == (call.call_sid, "completed", call.to)
    assert fetched.direction == "outbound-api"
    assert int(fetched.duration) >= 1


@pytest.mark.parametrize("body", [{"Status": "busy"}, {}, {"Twiml": "<a/>", "Url": "http://h/x"}])
async def test_updates_that_make_no_sense_are_refused(world, body, fast_clock):
    async with (
        twilio(world, ring_s=60.0) as (simulator, carrier),
        httpx2.AsyncClient(trust_env=False, auth=(ACCOUNT, TOKEN)) as client,
    ):
        call = await place(simulator, carrier)
        url = calls_url(simulator).replace(".json", f"/{call.call_sid}.json")
        answer = await client.post(url, data=body)

    assert (answer.status_code, answer.json()["code"]) == (400, 20001)


async def test_ten_calls_at_once_do_not_mix(world, fast_clock):
    async with twilio(world, script=QUICK) as (simulator, carrier):
        calls = [await place(simulator, carrier, f"+1202556{n:04}") for n in range(10)]
        for call in calls:
            await call.wait_ended()

    by_call = {events[0].call_sid: events for _, events in world.streams}
    assert by_call.keys() == {call.call_sid for call in calls}
    assert all(events[-1] == StreamStopped(said=True) for events in by_call.values())
    assert all(call.said == load_speech("hello")[:800] for call in calls)


async def test_agent_audio_is_heard_where_it_was_sent(world, fast_clock):
    world.greeting = LOUD_S
    script = PhoneScript("listens", (HearSpeech(), Wait(0.3), HangUp()), ring_s=0.02)

    async with twilio(world, script=script) as (simulator, carrier):
        call = await place(simulator, carrier)
        await call.wait_ended()

    silent = len(call.heard) - len(call.heard.lstrip(SILENCE[:1]))
    assert silent / 8000 == pytest.approx(call.phone.received[0][0], abs=0.04)
    assert len(call.heard) == len(call.said)


async def test_requests_are_counted_by_the_address_that_each_was_told(world, fast_clock):
    async with twilio(world, script=STAYS) as (simulator, carrier):
        call = await place(simulator, carrier)
        await call.wait_stream()
        other_name = calls_url(simulator).replace("127.0.0.1", "localhost")
        other_name = other_name.replace(".json", f"/{call.call_sid}.json")
        async with httpx2.AsyncClient(trust_env=False, auth=(ACCOUNT, TOKEN)) as client:
            await client.post(other_name, data={"Status": "completed"})
            await call.wait_ended()
            await client.post(other_name, data={"Status": "completed"})
        port = simulator.api_url.rpartition(":")[2]

    seen = [
        (one.asked_at, one.what, one.call_sid, one.status) for one in simulator.account.requests
    ]
    assert seen == [
        (f"127.0.0.1:{port}", "create", "", 201),
        (f"localhost:{port}", "update", call.call_sid, 200),
        (f"localhost:{port}", "update", call.call_sid, 400),
    ]


@pytest.mark.parametrize("waits", [False, True])
async def test_a_document_over_rest_overtakes_one_that_is_fetched_or_waits_for_it(
    waits, world, fast_clock
):
    world.documents["slow"] = "<Response><Say>Late</Say></Response>"
    world.hold = trio.Event()
    faults = Faults(updates_wait=waits)

    async with twilio(world, script=STAYS, faults=faults) as (simulator, carrier):
        call = await place(simulator, carrier)
        await call.wait_stream()
        slow = f"<Response><Redirect>{world.public_url}/slow</Redirect></Response>"
        await carrier.update_call(call.call_sid, twiml=slow)
        await world.held.wait()
        await carrier.update_call(call.call_sid, twiml="<Response><Say>Now</Say></Response>")
        if waits:
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert "says: Now" not in [line for _, line in call.timeline]
            world.hold.set()
        await call.wait_ended()
        world.hold.set()

    assert [line for _, line in call.timeline if line.startswith("says")] == ["says: Now"]


async def test_a_stream_tells_who_asks_how_it_ends(world, fast_clock):
    async with twilio(world, script=STAYS) as (simulator, carrier):
        call = await place(simulator, carrier)
        await call.wait_stream()
        stream = f'<Stream url="{{}}" statusCallback="{world.public_url}/stream-status"/>'
        for url in (world.stream_url, world.stream_url, "ws://127.0.0.1:1/stream"):
            document = f"<Response><Connect>{stream.format(url)}</Connect></Response>"
            await carrier.update_call(call.call_sid, twiml=document)
            if "127.0.0.1:1/" not in url:
                await call.wait_streams(len(call.phones) + 1)
        await call.wait_ended()

    told = [form for path, form in world.requests if path == "stream-status"]
    assert [(form["StreamEvent"], form.get("StreamError", "")[:5]) for form in told] == [
        ("stream-started", ""),
        ("stream-stopped", ""),
        ("stream-started", ""),
        ("stream-stopped", ""),
        ("stream-error", "31901"),
    ]
    assert {form["CallSid"] for form in told} == {call.call_sid}
    assert [form["StreamSid"] for form in told[::2]][:2] == [
        phone.stream_sid for phone in call.phones[1:]
    ]
    assert call.stream_urls == [world.stream_url] * 3
    assert world.forged == 0


async def test_a_stream_that_breaks_off_is_told_as_an_error(world, fast_clock):
    async with twilio(world, script=STAYS) as (simulator, carrier):
        call = await place(simulator, carrier)
        await call.wait_stream()
        status = f'statusCallback="{world.public_url}/stream-status"'
        document = (
            f'<Response><Connect><Stream url="{world.stream_url}" {status}/></Connect></Response>'
        )
        await carrier.update_call(call.call_sid, twiml=document)
        await call.wait_streams(2)
        await call.phone.cut()
        await call.wait_ended()

    told = [form for path, form in world.requests if path == "stream-status"]
    assert [form["StreamEvent"] for form in told] == ["stream-started", "stream-error"]
    assert told[-1]["StreamError"].startswith("31903")


def calls_url(simulator, account=ACCOUNT):
    return f"{simulator.api_url}/2010-04-01/Accounts/{account}/Calls.json"


def test_every_fictional_number_has_its_script():
    simulator = TwilioSimulator(account_sid=ACCOUNT, auth_token=TOKEN, phone_number=NUMBER)

    assert simulator.account.people.at("+12025550102").name == "interrupts"
    assert simulator.account.people.at("+584121234567").name == "talks"


def test_an_unknown_script_is_refused_at_once():
    with pytest.raises(ValueError, match="no script"):
        TwilioSimulator(account_sid=ACCOUNT, auth_token=TOKEN, phone_number=NUMBER, script="sings")
