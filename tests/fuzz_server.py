"""Throw hostile input at everything that reads what strangers, carriers and models send.

    python -m tests.fuzz_server                         every target, a minute each
    python -m tests.fuzz_server --inputs 1000000 twilio one target, so many inputs
    python -m tests.fuzz_server --coverage twilio       guided by atheris (pip install atheris)

A target takes bytes and says how they ended; any exception it lets out is a crash, and growing
memory is a leak. Each input has a number, so that a failure is repeated by ``--only NUMBER``.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import logging
import random
import re
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

import structlog
import trio
import trio.testing
from pydantic import ValidationError
from twilio.request_validator import RequestValidator
from werkzeug.datastructures import MultiDict

from server.api import MakeCall, field_errors
from server.app import OffhookApp, create_app
from server.carrier import CallerAudio, CarrierEvent
from server.carrier.phone import HangUp, HearSpeech, Script, SendRaw, Wait
from server.carrier.twilio import TwilioProtocol, WebhookVerifier, parse_status
from server.destinations import Destinations
from server.endings import EndReason
from server.errors import CarrierProtocolError, ModelError
from server.keys import Keys, hash_key
from server.model import AgentAudio
from server.model.gemini import GeminiProtocol
from server.settings import Settings
from server.strangers import client_address
from tests.fuzz_path import mutate
from tests.rig import calling

SID = "MZ" + "0" * 32
NUMBER = re.compile(r"^\+[1-9]\d{4,16}$")
LEAK_INPUTS = 4_000
"""Memory is watched over so many inputs of a long run."""
LEAK_BYTES = 256 * 1024
"""More than this kept after the second half of the inputs, beyond the first's, is a leak."""

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
            "callSid": "CA0",
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": {"ticket": "t"},
        },
    ),
    b'{"event":"connected","protocol":"Call","version":"1.0.0"}',
    _twilio("media", media={"track": "inbound", "chunk": "2", "timestamp": "5", "payload": "//8="}),
    _twilio("mark", mark={"name": "1:1000"}),
    _twilio("dtmf", dtmf={"track": "inbound_track", "digit": "1"}),
    _twilio("stop", stop={"accountSid": "AC0", "callSid": "CA0"}),
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
    b"CallSid=CA0&CallStatus=ringing&SequenceNumber=1&From=%2B15005550006",
    b"CallSid=CA0&CallStatus=completed&CallDuration=12&SipResponseCode=200&SequenceNumber=3",
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
        for call in app.calls.all():
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
    callee = Script("odd", (HearSpeech(timeout_s=1.0), SendRaw(odd), Wait(0.1), HangUp()))
    async with calling(callee=callee) as rig:
        await rig.over()
        reason = rig.call.end_reason
    assert reason is not EndReason.ERROR, rig.call.end_detail
    return str(reason)


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
    "status": Target(STATUS, one_line, fuzz_status),
    "signature": Target(SIGNATURES, one_line, fuzz_signature),
    "gemini": Target(GEMINI, lines_from, fuzz_gemini),
    "make-call": Target(MAKE_CALL, one_line, fuzz_make_call),
    "headers": Target(HEADERS, one_line, fuzz_headers),
    "http": Target(HTTP, one_request, open=http_app, quick_inputs=300),
    "call": Target(TWILIO[2:], lines_from, open=whole_call, mock_clock=True, quick_inputs=25),
}


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
    """Memory kept after the second half of the inputs beyond the first half's."""


async def _fuzz(name: str, numbers: range, seed: int, longest_s: float) -> Tally:
    target, tally = TARGETS[name], Tally()
    began = time.monotonic()
    opened = target.open or functools.partial(_at_once, target)
    async with opened() as check:
        watched = min(len(numbers), LEAK_INPUTS)
        tracemalloc.start()
        half_kept = 0
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
            if time.monotonic() - began >= longest_s:
                break
        tracemalloc.stop()
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


WATCHED = (
    "server.api",
    "server.carrier.twilio",
    "server.destinations",
    "server.keys",
    "server.model.gemini",
    "server.strangers",
)
WATCH = """
import sys, atheris
with atheris.instrument_imports(include={watched!r}):
    import {modules}
from tests.fuzz_server import fuzz_with_coverage
fuzz_with_coverage({name!r}, longest_s={longest_s})
"""


def watch_coverage(name: str, *, longest_s: float) -> int:
    """Run a target under atheris, in a process that has it instrument our modules first."""
    code = WATCH.format(
        watched=list(WATCHED), modules=", ".join(WATCHED), name=name, longest_s=longest_s
    )
    return subprocess.run([sys.executable, "-c", code], check=False).returncode


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
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--inputs", type=int, default=10**9)
    parser.add_argument("--longest-s", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", type=int, help="run just the input with this number")
    parser.add_argument("--coverage", action="store_true", help="let atheris guide one target")
    arguments = parser.parse_args()
    names = arguments.targets or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no such target: {', '.join(unknown)}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    logging.disable()
    if arguments.coverage:
        return watch_coverage(names[0], longest_s=arguments.longest_s)
    if arguments.only is not None:
        return _repeat(names[0], arguments.seed, arguments.only)
    total = 0
    sys.stdout.write(f"seed {arguments.seed}\n")
    for name in names:
        tally = fuzz(
            name, inputs=arguments.inputs, seed=arguments.seed, longest_s=arguments.longest_s
        )
        total += tally.inputs
        leak = "no leak" if tally.kept_bytes < LEAK_BYTES else f"KEPT {tally.kept_bytes:,} bytes"
        endings = ", ".join(f"{ending} {count:,}" for ending, count in tally.endings.most_common(5))
        sys.stdout.write(
            f"{name:<10}{tally.inputs:>12,} inputs, 0 crashes, {leak:<8} {tally.took_s:>5.0f} s"
            f"   {endings}\n"
        )
        sys.stdout.flush()
    sys.stdout.write(f"{total:,} inputs, nothing wrong\n")
    return 0


def _repeat(name: str, seed: int, number: int) -> int:
    target = TARGETS[name]
    clock = trio.testing.MockClock(autojump_threshold=0.0) if target.mock_clock else None
    tally = trio.run(_fuzz, name, range(number, number + 1), seed, float("inf"), clock=clock)
    sys.stdout.write(f"{dict(tally.endings)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
