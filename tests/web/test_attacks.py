"""What strangers can do to the server over real sockets, and that its calls do not notice."""

from __future__ import annotations

import json
import socket
import struct
import tomllib
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
import trio
from structlog.testing import capture_logs
from twilio.request_validator import RequestValidator
from websockets.exceptions import InvalidStatus
from websockets.trio.client import connect

from benchmarks.load.attacker import MALFORMED
from benchmarks.load.doors import IGNORED, PINGS
from benchmarks.load.stranger import CONNECTED, UPGRADE, frame
from server.hooks import sockets
from server.serving import single as serving_module
from server.switchboard.strangers import Strangers
from server.web.http_request import LONGEST_BODIES, MAX_BODY_BYTES
from tests.support.raw_connections import connection
from tests.support.serving import (
    CALL_SID,
    Server,
    closing_of,
    media_message,
    open_socket,
    ringing_call,
    serving,
    start_message,
)

pytestmark = pytest.mark.sockets

both_media_paths = pytest.mark.parametrize("media_path", ["fast", "ordinary"])


@pytest.fixture
def quick_deadlines(monkeypatch):
    monkeypatch.setattr(serving_module, "IDLE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(sockets, "UNREAD_TIMEOUT_S", 0.5)


@pytest.fixture
def lines(caplog):
    """What is logged at the ordinary level, by us and by hypercorn."""
    with capture_logs() as ours:
        yield lambda: [
            *(line["event"] for line in ours if line["log_level"] != "debug"),
            *(record.message for record in caplog.records),
        ]


async def rest_of(stream: trio.SocketStream) -> bytes:
    """Everything until the server closes."""
    received = b""
    with trio.fail_after(60):
        try:
            while some := await stream.receive_some():
                received += some
        except trio.BrokenResourceError:
            pass
    return received


@asynccontextmanager
async def good_call(server: Server) -> AsyncGenerator[None]:
    """A call whose caller speaks all the time and has to be heard to the last frame."""
    async with ringing_call(server) as (call_sid, ticket), open_socket(server) as socket:
        await socket.send(start_message(ticket, call_sid))
        sent = 0
        with trio.CancelScope() as speaking:
            async with trio.open_nursery() as nursery:

                async def speak() -> None:
                    nonlocal sent
                    while True:
                        with trio.CancelScope(shield=True):  # sent is sent
                            await socket.send(media_message(b"\xff" * 160))
                        sent += 1
                        await trio.sleep(0.02)

                nursery.start_soon(speak)
                yield
                speaking.cancel()
        await socket.send(json.dumps({"event": "stop", "streamSid": "MZ1", "stop": {}}))
        call = server.service.calls.register.get(call_sid)
        assert call is not None
        with trio.fail_after(60):
            await call.finished.wait()
        record = (await server.http.get(f"/calls/{call_sid}")).json()
        assert record["reason"] == "caller-hung-up"
        assert record["timings"]["caller_audio_s"] == pytest.approx(sent / 50)
        assert record["timings"]["caller_audio_lost_s"] == 0


async def test_a_request_head_that_trickles_in_is_cut_off(quick_deadlines):
    async with serving() as server, await connection(server) as slow:
        await slow.send_all(b"POST /make-call HTTP/1.1\r\nHost: x\r\nX-A: ")

        assert await rest_of(slow) == b""


async def test_a_connection_that_says_nothing_is_closed(quick_deadlines):
    async with serving() as server, await connection(server) as silent:
        assert await rest_of(silent) == b""


async def test_a_body_that_does_not_come_is_not_waited_for():
    async with serving(body_timeout_s=0.2) as server, await connection(server) as slow:
        await slow.send_all(
            b"POST /twiml HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"
            b"Content-Type: application/x-www-form-urlencoded\r\n\r\nCallSid="
        )
        answer = await rest_of(slow)

    assert answer.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/make-call", "application/json"),
        ("/twiml", "application/x-www-form-urlencoded"),
        ("/call-status", "multipart/form-data; boundary=x"),
    ],
)
async def test_a_body_over_the_limit_is_refused(path, kind):
    headers = {"Content-Type": kind}
    length = max(LONGEST_BODIES.get(path, MAX_BODY_BYTES) + 1, 2**20)
    async with serving() as server:
        announced = await server.http.post(path, content=b"x" * length, headers=headers)

        async def unannounced():
            for _ in range(0, length, 2**15):
                yield b"x" * 2**15

        counted = await server.http.post(path, content=unannounced(), headers=headers)

    assert {announced.status_code, counted.status_code} == {413}


async def test_a_head_over_the_limit_is_refused():
    async with serving() as server, await connection(server) as long:
        with suppress(trio.BrokenResourceError):
            await long.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 2**18)
        answer = await rest_of(long)

    assert answer[:12] in (b"HTTP/1.1 431", b"HTTP/1.1 400", b"")


async def test_a_client_that_does_not_read_is_cut_off(quick_deadlines):
    # Far more answers than the system keeps for somebody who does not read them.
    requests = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 20_000
    async with serving() as server, await connection(server) as deaf:
        with trio.fail_after(60), pytest.raises(trio.BrokenResourceError):
            await deaf.send_all(requests)


def test_both_commands_serve_with_the_same_limits(request):
    text = (request.config.rootpath / "server" / "hypercorn.toml").read_text()
    config = tomllib.loads(text)

    assert config["keep_alive_timeout"] == serving_module.IDLE_TIMEOUT_S
    assert config["websocket_max_message_size"] == serving_module.MAX_MESSAGE_BYTES
    assert config["h11_max_incomplete_size"] == serving_module.MAX_MESSAGE_BYTES


@both_media_paths
async def test_200_sockets_that_never_start_are_closed_and_a_call_is_not_disturbed(
    media_path, patient_clock
):
    settings = {"simulated_ring_s": None, "start_timeout_s": 1.0, "max_strangers_per_address": 50}
    settings["media_path"] = media_path
    codes: list[int | None] = []
    async with serving(**settings) as server, good_call(server), AsyncExitStack() as sockets:
        opened = [await sockets.enter_async_context(open_socket(server)) for _ in range(200)]
        waiting = len(server.service.calls.strangers)

        async def closed(socket) -> None:
            codes.append((await closing_of(socket))[0])

        async with trio.open_nursery() as nursery:
            for socket in opened:
                nursery.start_soon(closed, socket)
        refused = server.service.metrics.registry.get_sample_value(
            "offhook_strangers_refused_total", {"kind": "stream-no-start"}
        )

    assert waiting <= 50
    assert codes == [1008] * 200
    assert refused == 200


@pytest.mark.slow
@both_media_paths
async def test_a_socket_that_stops_reading_ends_with_its_own_call(quick_deadlines, media_path):
    async with (
        serving(simulated_ring_s=None, media_timeout_s=1.0, media_path=media_path) as server,
        ringing_call(server) as (call_sid, ticket),
        good_call(server),
        await connection(server) as deaf,
    ):
        await deaf.send_all(
            b"GET /stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        await deaf.receive_some(1000)
        text = start_message(ticket, call_sid).encode()
        head = b"\x81\xfe" + len(text).to_bytes(2, "big") + b"\0\0\0\0"  # a mask of zeros
        await deaf.send_all(head + text)
        call = server.service.calls.register.get(call_sid)
        with trio.fail_after(60):
            await call.finished.wait()

    assert call.end_reason == "caller-gone"


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="the system cannot")
async def test_of_what_a_media_socket_is_sent_little_waits_where_it_cannot_be_taken_back():
    # What the system keeps can be cleared by nobody; that it is little is trio's doing.
    async with serving(simulated_ring_s=None, media_path="fast") as server, open_socket(server):
        (wire,) = server.service.plane._wires.values()
        kept = wire._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)

    assert 0 < kept <= 32 * 1024


@pytest.mark.slow
@both_media_paths
async def test_a_stream_that_brings_everything_but_audio_is_given_up(media_path):
    mark = b'{"event":"mark","streamSid":"MZ1","mark":{"name":"0:1000"}}'
    async with (
        serving(simulated_ring_s=None, media_timeout_s=0.5, media_path=media_path) as server,
        ringing_call(server) as (call_sid, ticket),
        await connection(server) as silent,
    ):
        await silent.send_all(UPGRADE)
        await silent.receive_some(1000)
        text = start_message(ticket, call_sid).encode()
        await silent.send_all(b"\x81\xfe" + len(text).to_bytes(2, "big") + b"\0\0\0\0" + text)
        call = server.service.calls.register.get(call_sid)
        frames = b"\x81" + bytes([0x80 | len(mark)]) + b"\0\0\0\0" + mark + b"\x8a\x80\0\0\0\0"
        with trio.fail_after(60):
            while not call.is_over:
                with suppress(trio.BrokenResourceError):
                    await silent.send_all(frames)
                await trio.sleep(0.05)

    assert call.record().detail == "no audio from the carrier"


async def close_code_after(server: Server, data: bytes) -> int | None:
    """Open a media socket, send these bytes and nothing more; how the server closes it.

    None without a word: hypercorn's way with frames that are none.
    """
    async with await connection(server) as raw:
        await raw.send_all(UPGRADE)
        assert b" 101 " in await raw.receive_some(1000)
        await raw.send_all(data)
        with trio.fail_after(60):
            frame = await raw.receive_some(1000)
    assert frame[:1] in (b"", b"\x88")
    return int.from_bytes(frame[2:4], "big") if frame else None


@both_media_paths
@pytest.mark.parametrize("sent", [1, 3, 150], ids=lambda size: f"{size} bytes")
async def test_the_rest_of_half_a_frame_is_not_waited_for(media_path, sent):
    whole = b"\x81\xfe\x01\x2c\0\0\0\0" + b"x" * 300
    async with (
        serving(simulated_ring_s=None, start_timeout_s=0.5, media_path=media_path) as server,
        good_call(server),
    ):
        assert await close_code_after(server, whole[:sent]) == 1008


async def test_the_rest_of_half_a_handshake_is_not_waited_for(quick_deadlines):
    async with (
        serving(simulated_ring_s=None) as server,
        good_call(server),
        await connection(server) as half,
    ):
        await half.send_all(UPGRADE[:60])
        assert await rest_of(half) == b""


@both_media_paths
async def test_a_frame_that_is_none_ends_its_own_socket_only(media_path):
    async with (
        serving(simulated_ring_s=None, start_timeout_s=0.5, media_path=media_path) as server,
        good_call(server),
    ):
        codes = [await close_code_after(server, data) for data in MALFORMED]

    silent = set() if media_path == "fast" else {None}
    assert set(codes) <= {1002, 1007, 1008, 1009} | silent


@both_media_paths
async def test_compression_is_never_negotiated(media_path):
    async with (
        serving(media_path=media_path) as server,
        connect(server.stream_url, compression="deflate", proxy=None) as socket,
    ):
        assert socket.response.headers.get("Sec-WebSocket-Extensions") is None


async def flood(stream: trio.SocketStream, data: bytes, times: int) -> None:
    """Send the same again and again, until the server has had enough of it."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        for _ in range(times):
            await stream.send_all(data)


async def opened(server: Server, upgrade: bytes = UPGRADE) -> trio.SocketStream:
    raw = await connection(server)
    await raw.send_all(upgrade)
    assert b" 101 " in await raw.receive_some(1000)
    return raw


@both_media_paths
@pytest.mark.parametrize("number", range(len(IGNORED)))
async def test_messages_that_are_ignored_are_not_read_for_long(media_path, number):
    async with (
        serving(simulated_ring_s=None, media_path=media_path, start_timeout_s=600.0) as server,
        good_call(server),
        await opened(server) as raw,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(flood, raw, IGNORED[number], 50)
        with trio.fail_after(60):
            answer = await raw.receive_some(1000)
        nursery.cancel_scope.cancel()

    assert answer[:1] == b"\x88"
    assert int.from_bytes(answer[2:4], "big") == 1008


@both_media_paths
async def test_80_sockets_that_ping_and_do_not_read_hold_nothing_and_are_closed(media_path):
    closed = 0

    async def ping(stream: trio.SocketStream) -> None:
        nonlocal closed
        with suppress(trio.BrokenResourceError):
            while True:  # until the server has had enough of it
                await stream.send_all(PINGS)
        closed += 1  # and not before

    async with (
        serving(simulated_ring_s=None, media_path=media_path, start_timeout_s=600.0) as server,
        AsyncExitStack() as sockets,
    ):
        strangers, plane = server.service.calls.strangers, server.service.plane
        async with good_call(server):
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    for _ in range(80):
                        raw = await sockets.enter_async_context(await opened(server))
                        nursery.start_soon(ping, raw)
        with trio.fail_after(60):
            while len(strangers) or (plane and plane.wires):
                await trio.lowlevel.checkpoint()

    assert closed == 80


@both_media_paths
@pytest.mark.parametrize("talks", [False, True])
async def test_a_socket_that_was_refused_and_stays_is_closed_at_its_bound(media_path, talks):
    async with (
        serving(simulated_ring_s=None, close_timeout_s=0.5, media_path=media_path) as server,
        await opened(server) as raw,
        trio.open_nursery() as nursery,
    ):
        await raw.send_all(frame(start_message("a guess", "CA" + "0" * 32).encode()))
        if talks:  # one message after the other, and never a close
            nursery.start_soon(flood, raw, frame(CONNECTED), 100_000)
        answer = await rest_of(raw)
        nursery.cancel_scope.cancel()

    assert b"\x03\xf0" in answer[:4]


@both_media_paths
async def test_a_process_that_does_not_exist_is_refused_and_no_line_is_written(media_path, lines):
    async with serving(media_path=media_path) as server:
        before = lines()
        for path in (b"/stream/7", b"/stream/1", b"/stream/" + b"9" * 40):
            async with await connection(server) as raw:
                await raw.send_all(UPGRADE.replace(b"/stream", path, 1))
                assert (await raw.receive_some(1000)).startswith(b"HTTP/1.1 404")
        refused = server.service.metrics.registry.get_sample_value(
            "offhook_strangers_refused_total", {"kind": "stream-worker"}
        )
        after = lines()

    assert refused == 3
    assert after == before


def reset(stream: trio.SocketStream) -> None:
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


WAYS_TO_LEAVE = {
    "reset": reset,
    "close": lambda stream: stream.socket.close(),
    "half-close": lambda stream: stream.socket.shutdown(socket.SHUT_WR),
}


@both_media_paths
@pytest.mark.parametrize("step", ["before the 101", "after it", "after a word", "in a frame"])
@pytest.mark.parametrize("way", WAYS_TO_LEAVE)
async def test_whoever_leaves_early_is_no_error(media_path, step, way, lines):
    async with serving(media_path=media_path) as server, AsyncExitStack() as sockets:
        before = lines()
        for at in range(30):
            raw = await sockets.enter_async_context(await connection(server))
            await raw.send_all(UPGRADE)
            if step != "before the 101":
                assert b" 101 " in await raw.receive_some(1000)
            else:
                for _ in range(at):  # at any moment between request and answer
                    await trio.lowlevel.checkpoint()
            if step == "after a word":
                await raw.send_all(frame(CONNECTED))
            elif step == "in a frame":
                await raw.send_all(frame(CONNECTED)[:20])
            WAYS_TO_LEAVE[way](raw)
        with trio.fail_after(60):
            while len(server.service.calls.strangers) or (
                server.service.plane and server.service.plane.wires
            ):
                await trio.lowlevel.checkpoint()
        after = lines()

    assert after == before


@both_media_paths
async def test_strangers_media_sockets_write_a_few_lines_whatever_they_say(media_path, lines):
    odd = [b"x", b"{", b'{"event":"start"}', b"[]", b"\xff"]
    odd += [b'{"event":"kind %d"}' % number for number in range(20)]
    async with serving(media_path=media_path, start_timeout_s=0.3) as server:
        before = len(lines())
        for text in odd * 2:
            async with await opened(server) as raw:
                await raw.send_all(
                    frame(text) + frame(b'{"event":"%s"}' % text[-6:].hex().encode())
                )
                if text == b"x":
                    await rest_of(raw)
        written = lines()[before:]

    assert len(written) <= 10


def stream_signature(server: Server, token: str | None = None) -> dict[str, str]:
    validator = RequestValidator(token or server.twilio.account.auth_token)
    return {"X-Twilio-Signature": validator.compute_signature(server.stream_url, {})}


async def test_a_strict_server_opens_no_socket_that_the_carrier_has_not_signed():
    async with serving(strict_stream_signature=True) as server:
        for headers in ({}, stream_signature(server, token="a guess")):
            with pytest.raises(InvalidStatus) as refused:
                async with connect(server.stream_url, proxy=None, additional_headers=headers):
                    pass
            assert refused.value.response.status_code == 403

        signed = stream_signature(server)
        async with connect(server.stream_url, proxy=None, additional_headers=signed) as socket:
            assert socket.state.name == "OPEN"


async def test_a_captured_signature_of_a_stream_is_not_good_for_any_number_of_sockets():
    async with serving() as server, AsyncExitStack() as sockets:
        server.service.calls.strangers = Strangers(signed=2)
        signed = stream_signature(server)
        opened = [
            await sockets.enter_async_context(
                connect(server.stream_url, proxy=None, additional_headers=signed)
            )
            for _ in range(3)
        ]
        code, _ = await closing_of(opened[0])
        record = await server.finished((await server.make_call("5550103")).json()["call_sid"])

    assert code == 1008
    assert record["reason"] == "caller-hung-up"


async def test_a_simulated_call_passes_a_strict_server():
    async with serving(strict_stream_signature=True) as server:
        record = await server.finished((await server.make_call("5550103")).json()["call_sid"])

    assert record["reason"] == "caller-hung-up"


async def test_a_ticket_that_was_stolen_opens_nothing_for_another_call():
    async with (
        serving(simulated_ring_s=None) as server,
        ringing_call(server) as (_, ticket),
        ringing_call(server) as (other_sid, _),
        open_socket(server) as thief,
    ):
        await thief.send(start_message(ticket, other_sid))
        code, _ = await closing_of(thief)

    assert code == 1008


async def test_a_signature_is_good_for_its_own_request_only():
    form = {"CallSid": CALL_SID, "CallStatus": "ringing", "SequenceNumber": "1"}
    async with serving() as server:
        validator = RequestValidator(server.twilio.account.auth_token)
        signature = validator.compute_signature(server.url + "/call-status", form)
        headers = {"X-Twilio-Signature": signature}
        changed = await server.http.post(
            "/call-status", data=form | {"CallStatus": "completed"}, headers=headers
        )
        longer = await server.http.post("/call-status", data=form | {"A": "1"}, headers=headers)
        elsewhere = await server.http.post("/twiml", data=form, headers=headers)
        query = await server.http.post("/call-status?x=1", data=form, headers=headers)

    statuses = [answer.status_code for answer in (changed, longer, elsewhere, query)]
    assert statuses == [403, 403, 403, 403]


async def test_a_replayed_webhook_changes_nothing():
    async with serving(simulated_ring_s=None) as server, ringing_call(server) as (call_sid, _):
        form = {"CallSid": call_sid, "CallStatus": "ringing", "SequenceNumber": "1"}
        newer = form | {"CallStatus": "in-progress", "SequenceNumber": "2"}
        for each in (form, newer, form, form):
            assert (await server.signed_post("/call-status", each)).status_code == 204
        record = (await server.http.get(f"/calls/{call_sid}")).json()

    assert record["status"] == "in-progress"


async def test_webhooks_signed_with_a_shared_key_are_known():
    form = {"CallSid": CALL_SID, "CallStatus": "ringing", "SequenceNumber": "1"}
    async with serving(twilio_shared_keys="KY1:the-secret") as server:
        answers = []
        for key, secret in (("KY1", "the-secret"), ("KY2", "the-secret"), ("KY1", "guess")):
            signature = RequestValidator(secret).compute_signature(
                server.url + "/call-status", form, "HMAC_SHA256"
            )
            headers = {
                "X-Twilio-Signature": signature,
                "X-Twilio-Webhooks-Signature-Settings": f"key={key},algorithm=HMAC_SHA256",
            }
            answer = await server.http.post("/call-status", data=form, headers=headers)
            answers.append(answer.status_code)

    assert answers == [204, 403, 403]
