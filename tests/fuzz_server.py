"""Throw hostile input at everything that reads what strangers, carriers and models send.

    python -m tests.fuzz_server                         every target, a minute each
    python -m tests.fuzz_server --inputs 1000000 twilio one target, so many inputs
    python -m tests.fuzz_server --coverage              guided by atheris (pip install atheris)
    python -m tests.fuzz_server --target socket         raw bytes at a server, calls beside it

A target takes bytes and says how they ended. Any exception it lets out is a crash; Python memory
or objects that grow with the inputs are a leak, and so is a process that does. Each input has a
number, so that a failure is repeated by ``--only NUMBER``. Two are another process, a server:
``openapi`` is asked by schemathesis what its own description says, and what it does not;
``socket`` is what :mod:`tests.fuzz_socket` says, and how it may be served.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import logging
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
import tracemalloc
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

import structlog
import trio
import trio.testing
from mcp.types import CallToolResult
from prometheus_client import CollectorRegistry
from pydantic import ValidationError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from twilio.request_validator import RequestValidator
from werkzeug.datastructures import MultiDict

from server.agent.builtin import transfer_tool
from server.agent.loading import load_tools
from server.agent.mcp_servers import _told
from server.agent.tool import ToolError, tool
from server.app import OffhookApp, create_app
from server.call.toolbox import Toolbox, _response
from server.carrier import CallerAudio, CarrierEvent
from server.carrier.twilio.messages import TwilioProtocol
from server.carrier.twilio.reports import (
    check_fields,
    parse_machine_verdict,
    parse_status,
    parse_transfer,
    parse_voice,
)
from server.carrier.twilio.signature import WebhookVerifier
from server.dialogue.endings import EndReason
from server.errors import CarrierProtocolError, ModelError
from server.metrics import Metrics
from server.model import AgentAudio, ToolCallsRequested, ToolResult
from server.model.gemini.protocol import GeminiProtocol
from server.settings.settings import Settings
from server.simulators.phone import HangUp, HearSpeech, PhoneScript, SendRaw, Wait
from server.switchboard.destinations import Destinations
from server.switchboard.strangers import client_address
from server.web.api import MakeCall, field_errors
from server.web.keys import Keys, hash_key
from tests import fuzz_path, fuzz_socket
from tests.fuzz_codec import Fuzz as CodecFuzz
from tests.fuzz_path import mutate
from tests.support.rig import calling
from tests.support.toolboxes import FakeCall, is_busy

SID = "MZ" + "0" * 32
CALL_SID = "CA" + "0" * 32
NUMBER = re.compile(r"^\+[1-9]\d{4,16}$")
LEAK_INPUTS = 4_000
"""Memory is watched over so many inputs of a long run."""
LEAK_BYTES = 256 * 1024
"""More than this kept after the second half of the inputs, beyond the first's, is a leak."""
LEAK_OBJECTS = 1_000
"""The same, in objects that the garbage collector knows."""
LEAK_KIB = 8 * 1024
"""The same, in memory of the process: C's is in it, and what the allocators have not given back."""

# ------------------------------------------------------------------------------------------
# Inputs: nearly right, so that they get past the first check


ODD_VALUES: list[Any] = [
    None, True, 0, -1, 2**31, 2**63, 2**64, 10**30, -0.5, 1e308, "", " ", "0", "-1", "1e9", "NaN",
    "\x00", "\ud800", "\u202e+1", "a" * 5_000, "%00", "../../etc/passwd", "';--", "{sid}", "é",
    [], {}, [[]], [None], {"": ""}, {"a": {"a": {"a": {}}}}, "AA==", "AA=", "_-8=", "/" * 400,
]  # fmt: skip


def twist(rng: random.Random, value: Any) -> Any:
    """Put something odd somewhere into a JSON value."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice(list(value))
        changed = dict(value)
        match rng.randrange(6):
            case 0:
                del changed[name]
            case 1:
                changed[rng.choice(["event", "type", "sid", name + "x", ""])] = changed[name]
            case _:
                changed[name] = twist(rng, changed[name])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        return [*value[:at], twist(rng, value[at]), *value[at + rng.randrange(2) :]]
    return rng.choice(ODD_VALUES)


def twisted(rng: random.Random, seed: bytes) -> bytes:
    """A line of JSON with an odd value, or with its bytes changed."""
    if rng.random() < 0.5:
        return mutate(rng, seed)
    try:
        return json.dumps(twist(rng, json.loads(seed))).encode()
    except ValueError:
        return mutate(rng, seed)


def lines_from(rng: random.Random, seeds: list[bytes]) -> bytes:
    """Several messages, most of them as they should be."""
    chosen = [rng.choice(seeds) for _ in range(rng.choice([1, 3, 8]))]
    if rng.random() < 0.8:
        chosen.insert(0, seeds[0])
    return b"\n".join(twisted(rng, line) if rng.random() < 0.4 else line for line in chosen)


# ------------------------------------------------------------------------------------------
# Targets


def _twilio(event: str, **facts: Any) -> bytes:
    return json.dumps({"event": event, "sequenceNumber": "3", "streamSid": SID, **facts}).encode()


TWILIO = [
    _twilio(
        "start",
        start={
            "accountSid": "AC0",
            "streamSid": SID,
            "callSid": CALL_SID,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": {"ticket": "t"},
        },
    ),
    b'{"event":"connected","protocol":"Call","version":"1.0.0"}',
    _twilio("media", media={"track": "inbound", "chunk": "2", "timestamp": "5", "payload": "//8="}),
    _twilio("mark", mark={"name": "1:1000"}),
    _twilio("dtmf", dtmf={"track": "inbound_track", "digit": "1"}),
    _twilio("stop", stop={"accountSid": "AC0", "callSid": CALL_SID}),
]


def fuzz_twilio(data: bytes) -> str:
    """Messages of a media stream."""
    protocol = TwilioProtocol()
    events: list[CarrierEvent] = []
    for line in data.split(b"\n"):
        text = line.decode("utf-8", "surrogateescape")
        try:
            event = protocol.receive_text(text if len(line) % 7 else line, 1.0)
        except CarrierProtocolError:
            return "refused"
        if event is not None:
            events.append(event)
            if isinstance(event, CallerAudio):
                assert event.payload
    return f"{len(events)} events" if len(events) < 3 else "3 or more events"


STATUS = [
    b"CallSid=" + CALL_SID.encode() + b"&CallStatus=ringing&SequenceNumber=1&From=%2B15005550006",
    b"CallSid="
    + CALL_SID.encode()
    + b"&CallStatus=completed&CallDuration=12&SipResponseCode=200&SequenceNumber=3",
]


def fuzz_status(data: bytes) -> str:
    """Status callbacks."""
    form = dict(parse_qsl(data.decode("latin-1"), keep_blank_values=True))
    try:
        update = parse_status(form)
    except CarrierProtocolError:
        return "refused"
    assert update.call_sid
    assert update.sequence_number >= 0
    return "read"


MACHINE = [
    b"CallSid=" + CALL_SID.encode() + b"&AnsweredBy=machine_end_beep&MachineDetectionDuration=4200"
]


def fuzz_machine(data: bytes) -> str:
    """Verdicts of machine detection."""
    form = dict(parse_qsl(data.decode("latin-1"), keep_blank_values=True))
    try:
        verdict = parse_machine_verdict(form)
    except CarrierProtocolError:
        return "refused"
    return str(verdict.answered_by)


TRANSFER = [
    b"CallSid=" + CALL_SID.encode() + b"&DialCallStatus=no-answer&DialCallSid=CA1",
    b"ParentCallSid=" + CALL_SID.encode() + b"&CallSid=CA1&CallStatus=in-progress",
]


def fuzz_transfer(data: bytes) -> str:
    """What is posted about a transfer."""
    form = dict(parse_qsl(data.decode("latin-1"), keep_blank_values=True))
    try:
        update = parse_transfer(form)
    except CarrierProtocolError:
        return "refused"
    assert update.call_sid
    return "read"


VOICE = [
    b"CallSid=" + CALL_SID.encode() + b"&CallStatus=ringing&Direction=inbound&From=%2B15005550006",
    b"CallSid="
    + CALL_SID.encode()
    + b"&CallStatus=completed&Direction=outbound-api&CallDuration=7",
]


def fuzz_voice(data: bytes) -> str:
    """Voice webhooks, whatever their fields were cut into."""
    fields = parse_qsl(data.decode("latin-1"), keep_blank_values=True)
    try:
        check_fields(fields)
        request = parse_voice(dict(fields))
    except CarrierProtocolError:
        return "refused"
    assert len(request.call_sid) == 34
    assert not (request.begins and request.report)
    return "begins" if request.begins else "report" if request.report else "asks"


VERIFIER = WebhookVerifier("token", "https://example.com", shared_keys={"KY1": "secret"})
SIGNED = RequestValidator("token").compute_signature(
    "https://example.com/twiml", {"CallSid": "CA0"}
)
SIGNATURES = [
    b"/twiml\n" + SIGNED.encode() + b"\n\nCallSid=CA0",
    b"/stream\n" + SIGNED.encode() + b"\nkey=KY1,algorithm=HMAC_SHA256\n",
    b"/twiml?a=b%20c\nAAAA\nkey=KY1\nCallSid=CA0&CallSid=CA1",
]


def fuzz_signature(data: bytes) -> str:
    """Signatures of webhooks: only the genuine one is right."""
    target, signature, settings, body = [*data.decode("latin-1").split("\n", 3), "", "", ""][:4]
    form = MultiDict(parse_qsl(body, keep_blank_values=True))
    headers = {"x-twilio-signature": signature}
    if settings:
        headers["X-Twilio-Webhooks-Signature-Settings"] = settings
    verified = VERIFIER.verify_signature(target, headers, form)
    VERIFIER.verify_upgrade(target, headers)
    # Twilio joins names and values with nothing between: "CallSidCA0" without a value signs alike.
    joined = "".join(name + "".join(sorted(set(form.getlist(name)))) for name in sorted(set(form)))
    genuine = (target, signature, settings, joined) == ("/twiml", SIGNED, "", "CallSidCA0")
    assert verified is genuine, "a forged signature was believed, or a genuine one was not"
    return "genuine" if verified else "refused"


GEMINI = [
    b'{"setupComplete":{}}',
    b'{"serverContent":{"modelTurn":{"parts":[{"inlineData":{"mimeType":"audio/pcm;rate=24000","data":"AAAA"}}]}}}',
    b'{"serverContent":{"interrupted":true}}',
    b'{"serverContent":{"generationComplete":true},"usageMetadata":{"totalTokenCount":3,"responseTokensDetails":[{"modality":"AUDIO","tokenCount":3}]}}',
    b'{"serverContent":{"turnComplete":true}}',
    b'{"serverContent":{"outputTranscription":{"text":"Hi"},"inputTranscription":{"text":"Hello","finished":true}}}',
    b'{"toolCall":{"functionCalls":[{"id":"1","name":"hang_up","args":{"a":[1]}}]}}',
    b'{"toolCallCancellation":{"ids":["1"]}}',
    b'{"goAway":{"timeLeft":"9.5s"}}',
    b'{"sessionResumptionUpdate":{"newHandle":"h","resumable":true}}',
    b'{"usageMetadata":{"promptTokenCount":3,"totalTokenCount":3}}',
    b'{"usageMetadata":{"toolUsePromptTokenCount":3,"candidatesTokensDetails":[{"modality":"AUDIO","tokenCount":"7"}]}}',
    b'{"serverContent":{"turnComplete":true,"interactionStatus":"IN_PROGRESS"},"interactionStatus":"IDLE"}',
    b'{"error":{"code":400,"message":"no","status":"INVALID_ARGUMENT"}}',
    b'{"serverContent":{"modelTurn":{"parts":[{"inlineData":{"mimeType":"audio/L16;codec=pcm;rate=16000","data":"AAAA"}}]}}}',
]


def fuzz_gemini(data: bytes) -> str:
    """Messages of the model."""
    protocol = GeminiProtocol()
    try:
        events = [event for line in data.split(b"\n") for event in protocol.receive(line, 1.0)]
    except ModelError:
        return "given up"  # fifty unreadable messages in a row
    for event in events:
        if isinstance(event, AgentAudio):
            assert len(event.pcm) % 2 == 0, "half a sample"
    return f"{len(events)} events" if len(events) < 3 else "3 or more events"


@tool
def look_up(order: int, when: str = "", items: list[str] | None = None) -> str:
    """Look an order up.

    Args:
        order: Its number.
        when: A date.
        items: Names.
    """
    return f"{order + 1} {when.upper()} {len(items or [])}"


TOOLS = (
    *load_tools(["server.agent.builtin"]),
    transfer_tool({"sales": "+15005550123"}),
    look_up,
)
TOOL_CALLS = [
    b'{"toolCall":{"functionCalls":[{"id":"1","name":"look_up","args":{"order":5,"when":"x","items":["a"]}}]}}',
    b'{"toolCall":{"functionCalls":[{"id":"2","name":"transfer","args":{"destination":"sales"}}]}}',
    b'{"toolCall":{"functionCalls":[{"id":"3","name":"send_dtmf","args":{"keys":"12#"}},{"id":"4","name":"hang_up","args":{}}]}}',
    b'{"toolCallCancellation":{"ids":["1","2"]}}',
]


@asynccontextmanager
async def toolbox() -> AsyncGenerator[Check]:
    """Functions that a model calls with arguments of its own invention."""
    yield _call_tools


async def _call_tools(data: bytes) -> str:
    protocol = GeminiProtocol()
    try:
        events = [event for line in data.split(b"\n") for event in protocol.receive(line, 1.0)]
    except ModelError:
        return "given up"
    calls = [
        call for event in events if isinstance(event, ToolCallsRequested) for call in event.calls
    ]
    fake = FakeCall()
    box = Toolbox(TOOLS, fake, metrics=Metrics(CollectorRegistry()), timeout_s=1.0)
    answered: list[str] = []
    done = trio.Event()

    def answer(results: tuple[ToolResult, ...]) -> None:
        for result in results:
            json.dumps(result.response)
            answered.append(result.id)
        if not is_busy(box):
            done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(box.run, answer)
        for call in calls:
            box.request([call])
        with trio.fail_after(120):
            if calls:
                await done.wait()
        nursery.cancel_scope.cancel()
    assert set(answered) == {call.id for call in calls}, "a call without an answer"
    assert not fake.transferred or set(fake.transferred) == {("sales", "+15005550123")}
    return f"{len(answered)} answered" if len(answered) < 3 else "3 or more answered"


MCP_RESULTS = [
    b'{"content":[{"type":"text","text":"Seven."}],"isError":false}',
    b'{"content":[],"structuredContent":{"a":[1,{"b":null}]}}',
    b'{"content":[{"type":"image","data":"AAAA","mimeType":"image/png"},{"type":"text","text":""}],"isError":true}',
]


def fuzz_mcp(data: bytes) -> str:
    """Results of functions on MCP servers."""
    try:
        told = _response(_told(CallToolResult.model_validate_json(data)))
    except ValidationError:
        return "refused"
    except ToolError:
        return "an error"
    json.dumps(told)
    return "told"


MAKE_CALL = [
    b'{"destination_number":"+15005550006","prompt":"Be kind.","greeting":"Hi","voice":"Kore",'
    b'"language":"es-VE","metadata":{"order":"1"},"max_duration_s":60}',
    b'{"destination_number":"+44 20 7946 0000"}',
    b'{"destination_number":"+881612345678","max_duration_s":1e3}',
]
DESTINATIONS = Destinations(("+1", "+4420"), refuse_costly=True)


def fuzz_make_call(data: bytes) -> str:
    """Requests for a call: read field by field, and then allowed or not."""
    try:
        request = MakeCall.model_validate_json(data)
    except ValidationError as error:
        json.dumps(field_errors(error))
        return "refused"
    assert NUMBER.match(request.destination_number)
    refusal = DESTINATIONS.refusal(request.destination_number)
    return "not allowed" if refusal else "allowed"


KEYS = Keys({"shop": hash_key("sesame")})
PROXIES = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
HEADERS = [b"Bearer sesame\n10.0.0.1\n203.0.113.9, 10.2.3.4", b"Basic x\nfd00::1\n2001:db8::1"]


def fuzz_headers(data: bytes) -> str:
    """Keys, and where a request comes from."""
    key, peer, forwarded = [*data.decode("latin-1").split("\n", 2), "", ""][:3]
    client = KEYS.identify({"Authorization": key, "X-API-Key": forwarded})
    assert client is None or "sesame" in key + forwarded
    assert isinstance(client_address(peer, {"X-Forwarded-For": forwarded}, PROXIES), str)
    return "known" if client else "unknown"


HTTP = [
    b"POST /make-call\nContent-Type: application/json\nIdempotency-Key: a\n\n" + MAKE_CALL[0],
    b"POST /twiml\nContent-Type: application/x-www-form-urlencoded\nX-Twilio-Signature: x\n\n"
    + STATUS[0],
    b"POST /call-status\nContent-Type: multipart/form-data; boundary=b\n\n--b\r\n"
    b'Content-Disposition: form-data; name="CallSid"\r\n\r\nCA0\r\n--b--\r\n',
    b"GET /calls?limit=5&before=2026-01-01T00:00:00Z\nAccept: */*\n\n",
    b"GET /calls/CA0/recording\nRange: bytes=0-5\n\n",
    b"POST /calls/CA0/hang-up\nX-API-Key: sesame\n\n",
    b"GET /readyz\nX-Forwarded-For: 1.2.3.4\n\n",
]
HTTP_HEADER = re.compile(rb"^([!#$%&'*+.^_`|~0-9A-Za-z-]+): *([^\x00-\x1f\x7f]*)$")


HTTP_TARGET = re.compile(rb"^/[\x21-\x7e]*$")


@asynccontextmanager
async def http_app() -> AsyncGenerator[Check]:
    """The whole app, asked as hypercorn asks it."""
    settings = Settings.load(
        _env_file=None,
        **dict.fromkeys(("twilio_account_sid", "twilio_auth_token", "twilio_phone_number")),
        gemini_api_key=None,
        api_key="sesame",
        simulated_callee="no-answer",
        max_calls=3,
        database_url="sqlite://",
        body_timeout_s=5,
    )
    app = create_app(settings)
    async with app.test_app():
        yield functools.partial(_ask, app)
        for call in app.service.calls.register.live:
            call.end(EndReason.HUNG_UP)


async def _ask(app: OffhookApp, data: bytes) -> str:
    head, _, body = data.partition(b"\n\n")
    first, *lines = head.split(b"\n")
    method, _, target = first.partition(b" ")
    headers = [found.groups() for line in lines if (found := HTTP_HEADER.match(line))]
    if not (method.isalpha() and HTTP_TARGET.match(target)):
        return "no request"  # hypercorn answers these itself
    path, _, query = target.partition(b"?")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1",
        "method": method.decode(),
        "scheme": "http", "path": unquote(path.decode()), "raw_path": path, "query_string": query,
        "root_path": "", "headers": [(name.lower(), value) for name, value in headers],
        "client": ("203.0.113.9", 1), "server": ("127.0.0.1", 8000), "extensions": {}, "state": {},
    }  # fmt: skip
    told = iter([{"type": "http.request", "body": body, "more_body": False}])
    status, answer, done = 0, b"", trio.Event()

    async def receive() -> Any:
        if (event := next(told, None)) is not None:
            return event
        await done.wait()
        return {"type": "http.disconnect"}

    async def send(event: Any) -> None:
        nonlocal status, answer
        if event["type"] == "http.response.start":
            status = event["status"]
        elif event["type"] == "http.response.body":
            answer += event.get("body", b"")
            if not event.get("more_body"):
                done.set()

    with trio.fail_after(20):
        await app(scope, receive, send)
    assert 200 <= status < 600, "no answer"
    assert status not in (500, 501), answer[:500]
    if status >= 400 and method != b"HEAD":
        assert {"error", "ready"} & set(json.loads(answer)), "an error without words"
    return f"{status // 100}xx"


@asynccontextmanager
async def whole_call() -> AsyncGenerator[Check]:
    """A whole call in memory, whose carrier sends what it should not."""
    yield _call


async def _call(data: bytes) -> str:
    text = data.decode("latin-1").replace(SID, "{sid}")  # what the phone puts its own sid for
    odd = tuple(text.split("\n"))
    callee = PhoneScript("odd", (HearSpeech(timeout_s=1.0), SendRaw(odd), Wait(0.1), HangUp()))
    async with calling(callee=callee) as rig:
        await rig.over()
        reason = rig.call.end_reason
    assert reason is not EndReason.ERROR, rig.call.conversation.end_detail
    return str(reason)


# What the fuzzers of the compiled parts make of a number of their own. -----------------------

SEEDS = [bytes(8)]


def any_number(rng: random.Random, seeds: list[bytes]) -> bytes:
    """A seed for a fuzzer that makes its inputs itself."""
    return rng.randbytes(8)


def fuzz_frames(data: bytes) -> str:
    """WebSocket frames, held to what the websockets library makes of them."""
    return fuzz_path.fuzz_frames(random.Random(data))


def fuzz_messages(data: bytes) -> str:
    """Messages of either side, held to what the readable parsers make of them."""
    return fuzz_path.fuzz_messages(random.Random(data))


def fuzz_media_path(data: bytes) -> str:
    """Both sides of a call and every control; the books must balance."""
    return fuzz_path.fuzz_calls(random.Random(data))


CODEC = CodecFuzz(1)


def fuzz_codec(data: bytes) -> str:
    """A stream of audio in chunks of any size, held to the same stream in one."""
    CODEC.random.seed(data)
    CODEC.episode()
    return "episode of some 30 chunks"


# ------------------------------------------------------------------------------------------
# The targets, and how they are run

Check = Callable[[bytes], Awaitable[str]]
Make = Callable[[random.Random, list[bytes]], bytes]


def one_line(rng: random.Random, seeds: list[bytes]) -> bytes:
    """One message, nearly right."""
    seed = rng.choice(seeds)
    return twisted(rng, seed) if rng.random() < 0.95 else seed


def one_request(rng: random.Random, seeds: list[bytes]) -> bytes:
    """One HTTP request, half of them with the key."""
    request = one_line(rng, seeds)
    if rng.random() < 0.5:
        request = request.replace(b"\n", b"\nX-API-Key: sesame\n", 1)
    return request


@dataclass(frozen=True)
class Target:
    """Something that reads input: at once, or within a running program."""

    seeds: list[bytes]
    make: Make = one_line
    check: Callable[[bytes], str] | None = None
    open: Callable[[], AbstractAsyncContextManager[Check]] | None = None
    mock_clock: bool = False
    quick_inputs: int = 2_000
    """So many are a second or two."""


TARGETS = {
    "twilio": Target(TWILIO, lines_from, fuzz_twilio),
    "gemini": Target(GEMINI, lines_from, fuzz_gemini),
    "frames": Target(SEEDS, any_number, fuzz_frames),
    "messages": Target(SEEDS, any_number, fuzz_messages),
    "media-path": Target(SEEDS, any_number, fuzz_media_path, quick_inputs=500),
    "codec": Target(SEEDS, any_number, fuzz_codec, quick_inputs=100),
    "status": Target(STATUS, one_line, fuzz_status),
    "machine": Target(MACHINE, one_line, fuzz_machine),
    "transfer": Target(TRANSFER, one_line, fuzz_transfer),
    "voice": Target(VOICE, one_line, fuzz_voice),
    "signature": Target(SIGNATURES, one_line, fuzz_signature),
    "make-call": Target(MAKE_CALL, one_line, fuzz_make_call),
    "headers": Target(HEADERS, one_line, fuzz_headers),
    "mcp": Target(MCP_RESULTS, one_line, fuzz_mcp),
    "tools": Target(TOOL_CALLS, lines_from, open=toolbox, mock_clock=True, quick_inputs=300),
    "http": Target(HTTP, one_request, open=http_app, quick_inputs=300),
    "call": Target(TWILIO[2:], lines_from, open=whole_call, mock_clock=True, quick_inputs=25),
}
OPENAPI = "openapi"
SOCKET = "socket"
"""The two targets that are another process."""
WHAT = {name: (target.check or target.open).__doc__ for name, target in TARGETS.items()}
WHAT[OPENAPI] = "The API of a server, by its own description."
WHAT[SOCKET] = "Raw bytes over TCP at a server, beside its calls."


def fuzz(name: str, *, inputs: int, seed: int, longest_s: float = float("inf")) -> Tally:
    """Run a target on so many inputs, or for so long.

    Raises:
        Exception: What a target has let out, with the number of the input.
    """
    target = TARGETS[name]
    clock = trio.testing.MockClock(autojump_threshold=0.0) if target.mock_clock else None
    return trio.run(_fuzz, name, range(inputs), seed, longest_s, clock=clock)


@dataclass
class Tally:
    """What became of the inputs."""

    inputs: int = 0
    took_s: float = 0.0
    endings: Counter[str] = field(default_factory=Counter)
    kept_bytes: int = 0
    """Python memory kept after the second half of the inputs watched, beyond the first half's."""
    kept_objects: int = 0
    """Objects kept after the last half of all inputs."""
    kept_kib: int = 0
    """The same, in memory of the process."""
    crashes: int = 0

    @property
    def leaks(self) -> list[str]:
        """What was kept that should not have been."""
        found = []
        if self.kept_bytes >= LEAK_BYTES:
            found.append(f"{self.kept_bytes:,} bytes")
        if self.kept_objects >= LEAK_OBJECTS:
            found.append(f"{self.kept_objects:,} objects")
        if self.kept_kib >= LEAK_KIB:
            found.append(f"{self.kept_kib:,} KiB")
        return found


async def _fuzz(name: str, numbers: range, seed: int, longest_s: float) -> Tally:
    target, tally = TARGETS[name], Tally()
    began = time.monotonic()
    opened = target.open or functools.partial(_at_once, target)
    async with opened() as check:
        watched = min(len(numbers), LEAK_INPUTS)
        tracemalloc.start()
        half_kept = 0
        half: tuple[int, int] | None = None
        for number in numbers:
            data = target.make(random.Random(f"{seed}:{name}:{number}"), target.seeds)
            try:
                tally.endings[await check(data)] += 1
            except Exception as error:
                error.add_note(f"input {data!r}")
                repeat = f"python -m tests.fuzz_server {name} --seed {seed} --only {number}"
                error.add_note(f"repeat with: {repeat}")
                raise
            tally.inputs += 1
            if tally.inputs == watched // 2:
                half_kept = _kept()
            elif tally.inputs == watched:
                tally.kept_bytes = _kept() - half_kept
                tracemalloc.stop()  # it takes most of the time
            if half is None and (
                tally.inputs * 2 >= len(numbers) or time.monotonic() - began >= longest_s / 2
            ):
                half = _alive()
            if time.monotonic() - began >= longest_s:
                break
        tracemalloc.stop()
        if half is not None and tally.inputs > watched:
            objects, kib = _alive()
            tally.kept_objects, tally.kept_kib = objects - half[0], kib - half[1]
    tally.took_s = time.monotonic() - began
    return tally


@asynccontextmanager
async def _at_once(target: Target) -> AsyncGenerator[Check]:
    async def check(data: bytes) -> str:
        assert target.check is not None
        return target.check(data)

    yield check


def _kept() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def _alive(pid: int | None = None) -> tuple[int, int]:
    """Objects there are, and KiB of memory in use by this process or another."""
    gc.collect()
    statm = Path(f"/proc/{pid or 'self'}/statm")
    pages = int(statm.read_text().split()[1]) if statm.exists() else 0
    return len(gc.get_objects()), pages * 4


# ------------------------------------------------------------------------------------------
# The API, by its own description


@contextmanager
def api_server(log: Path) -> Generator[tuple[str, int]]:
    """A server in a process of its own, where no phone is ever answered: its URL and id."""
    with log.open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.one_server"],
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "API_KEY": "sesame", "SIMULATED_CALLEE": "no-answer"}
            | {"DATABASE_URL": "sqlite://"},
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process.pid
    finally:
        process.terminate()
        process.communicate(timeout=60)


def fuzz_openapi(*, inputs: int, longest_s: float) -> Tally:
    """Ask every operation, as described and as not, in turns.

    Raises:
        AssertionError: The server has failed, or answered as it does not say.
    """
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.specs.openapi import checks

    tally, began = Tally(), time.monotonic()
    shown = {"X-API-Key": "sesame"}
    conforms = [checks.content_type_conformance, checks.response_schema_conformance]
    half: tuple[int, int] | None = None
    with tempfile.TemporaryDirectory(prefix="offhook-fuzz-") as directory:
        log = Path(directory) / "log"
        with api_server(log) as (url, pid):

            def ask(case: Any) -> None:
                answer = case.call(headers=shown)
                tally.inputs += 1
                tally.endings[f"{answer.status_code // 100}xx"] += 1
                assert answer.status_code not in (500, 501), answer.text
                described = case.operation.definition.raw["responses"]
                assert not described or str(answer.status_code) in described, answer.text
                case.validate_response(answer, checks=conforms)

            schema = schemathesis.openapi.from_url(f"{url}/openapi.json", headers=shown)
            operations = schema.exclude(path="/drain").get_all_operations()  # for good
            asked = [
                (found.ok(), mode) for found in operations for mode in schemathesis.GenerationMode
            ]
            is_over = False
            while not is_over:
                for operation, mode in asked:
                    is_over = tally.inputs >= inputs or time.monotonic() - began >= longest_s
                    if is_over:
                        break
                    hold = given(operation.as_strategy(generation_mode=mode))(ask)
                    settings(
                        max_examples=50,
                        deadline=None,
                        database=None,
                        phases=[Phase.generate],
                        suppress_health_check=list(HealthCheck),
                    )(hold)()
                    if half is None and (
                        tally.inputs * 2 >= inputs or time.monotonic() - began >= longest_s / 2
                    ):
                        half = _alive(pid)
            if half is not None:
                tally.kept_kib = _alive(pid)[1] - half[1]
        assert "by a bug of ours" not in log.read_text(), log.read_text()[-2000:]
    tally.took_s = time.monotonic() - began
    return tally


def fuzz_sockets(arguments: argparse.Namespace) -> Tally:
    """Raw bytes at a server; what is found is printed, and each is a crash."""
    report = fuzz_socket.run_asked(arguments)
    sys.stdout.write(report.words() + "\n")
    return Tally(
        inputs=report.inputs,
        took_s=report.took_s,
        endings=report.endings,
        kept_kib=report.kept_kib,
        crashes=len(report.findings),
    )


WATCHED = (
    "server.web.api",
    "server.carrier.twilio.messages",
    "server.switchboard.destinations",
    "server.web.keys",
    "server.agent.mcp_servers",
    "server.agent.results",
    "server.model.gemini.protocol",
    "server.model.gemini.fields",
    "server.switchboard.strangers",
    "server.agent.tool",
    "server.agent.builtin",
    "server.call.toolbox",
)
WATCH = """
import sys, atheris
with atheris.instrument_imports(include={watched!r}):
    import {modules}
from tests.fuzz_server import fuzz_with_coverage
fuzz_with_coverage({name!r}, longest_s={longest_s})
"""


def watch_coverage(name: str, *, longest_s: float) -> Tally:
    """Run a target under atheris, in a process that has it instrument our modules first.

    libFuzzer counts what it runs, and looks for leaks of C's by itself.
    """
    code = WATCH.format(
        watched=list(WATCHED), modules=", ".join(WATCHED), name=name, longest_s=longest_s
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    tally = Tally(took_s=time.monotonic() - began)
    found = dict(re.findall(r"stat::(\w+): +(\d+)", done.stderr))
    tally.inputs = int(found.get("number_of_executed_units", 0))
    tally.endings["kept for reaching new code"] = int(found.get("new_units_added", 0))
    if done.returncode or not tally.inputs:
        sys.stderr.write(done.stderr[-4_000:])
        tally.crashes = 1
    return tally


def fuzz_with_coverage(name: str, *, longest_s: float) -> None:
    """Let atheris look for inputs that reach new code; it ends the process."""
    import atheris

    target = TARGETS[name]
    check = target.check
    if check is None:
        raise SystemExit(f"{name} runs within a program; atheris can only call functions")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    logging.disable()
    corpus = Path(tempfile.mkdtemp(prefix="offhook-fuzz-"))
    (corpus / "all").write_bytes(b"\n".join(target.seeds))
    for number, seed in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(seed)
    options = [f"-max_total_time={longest_s:.0f}", "-max_len=4096", "-print_final_stats=1"]
    options.append(f"-artifact_prefix={corpus}/")
    atheris.Setup([sys.argv[0], str(corpus), *options], check)
    atheris.Fuzz()


def main() -> int:
    """Parse arguments, run, print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz_server",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(WHAT))
    parser.add_argument(
        "--target", action="append", default=[], metavar="TARGET", help="another way to say it"
    )
    parser.add_argument("--inputs", type=int, default=10**9)
    parser.add_argument("--longest-s", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", type=int, help="run just the input with this number")
    parser.add_argument("--coverage", action="store_true", help="let atheris guide them")
    fuzz_socket.add_arguments(parser)
    arguments = parser.parse_args()
    at_once = [name for name, target in TARGETS.items() if target.check and target.seeds != SEEDS]
    wanted = arguments.targets + arguments.target
    names = wanted or (at_once if arguments.coverage else list(WHAT))
    if unknown := set(names) - set(WHAT):
        parser.error(f"no such target: {', '.join(unknown)}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    logging.disable()
    if arguments.only is not None:
        if names[0] == SOCKET:
            kind = fuzz_socket.kind_of(arguments)
            return fuzz_socket.repeat(kind, arguments.seed, arguments.only)
        return _repeat(names[0], arguments.seed, arguments.only)
    tallies: dict[str, Tally] = {}
    for name in names:
        bounds = {"inputs": arguments.inputs, "longest_s": arguments.longest_s}
        try:
            if arguments.coverage:
                tallies[name] = watch_coverage(name, longest_s=arguments.longest_s)
            elif name == OPENAPI:
                tallies[name] = fuzz_openapi(**bounds)
            elif name == SOCKET:
                tallies[name] = fuzz_sockets(arguments)
            else:
                tallies[name] = fuzz(name, seed=arguments.seed, **bounds)
        except Exception:
            traceback.print_exc()
            tallies[name] = Tally(crashes=1)
        done = tallies[name]
        sys.stdout.write(f"{name}: {done.inputs:,} inputs in {done.took_s:.0f} s\n")
        sys.stdout.flush()
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table(tallies, arguments.seed))
    return 1 if any(tally.crashes or tally.leaks for tally in tallies.values()) else 0


def table(tallies: dict[str, Tally], seed: int) -> Table:
    """What was tried, and what came of it."""
    total = sum(tally.inputs for tally in tallies.values())
    shown = Table(title=f"{total:,} inputs, seed {seed}", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    shown.add_column("target", no_wrap=True)
    shown.add_column("what is read", max_width=30)
    for heading in ("inputs", "crashes", "leaks", "kept: bytes,\nobjects, KiB", "s"):
        shown.add_column(heading, justify="right")
    shown.add_column("how they ended")
    for name, tally in tallies.items():
        shown.add_row(
            name,
            (WHAT[name] or "").partition("\n")[0],
            f"{tally.inputs:,}",
            str(tally.crashes),
            ", ".join(tally.leaks) or "0",
            f"{tally.kept_bytes:,}, {tally.kept_objects:,}, {tally.kept_kib:,}",
            f"{tally.took_s:.0f}",
            ", ".join(f"{ending} {count:,}" for ending, count in tally.endings.most_common(3)),
        )
    return shown


def _repeat(name: str, seed: int, number: int) -> int:
    target = TARGETS[name]
    clock = trio.testing.MockClock(autojump_threshold=0.0) if target.mock_clock else None
    tally = trio.run(_fuzz, name, range(number, number + 1), seed, float("inf"), clock=clock)
    sys.stdout.write(f"{dict(tally.endings)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
