"""A call's two wires joined by its media path, over real sockets."""

from __future__ import annotations

import base64
import json
import os
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import codec
from codec.ear import Ear, Played, SpeechStarted
from codec.latency import Histogram, Latencies
from codec.path import MediaPath, WebSocket
from server.carrier.twilio.messages import audio_messages
from server.media import plane as plane_module
from server.media.plane import Plane
from server.media.relay import Relay
from server.media.wire import MESSAGES_PER_PASS, Wire
from server.model.gemini.messages import AUDIO_MESSAGES
from tests.support.path_messages import SID, audio, media
from tests.support.peers import Peer

pytestmark = pytest.mark.skipif(not plane_module.AVAILABLE, reason="needs epoll")

CHUNK = bytes(range(160))
SPEECH = bytes(960)
MARK = b'{"event":"mark","streamSid":"%b","mark":{"name":"1:20"}}' % SID.encode()
COMPLETE = b'{"serverContent":{"generationComplete":true}}'


@dataclass
class Joined:
    """Both wires, who is at their other ends, and what Python was told."""

    relay: Relay
    phone: Peer
    model: Peer
    phone_wire: Wire
    model_wire: Wire
    told: list[object] = field(default_factory=list)
    on_caller: Callable[[], object] | None = None

    @property
    def path(self) -> MediaPath:
        return self.relay.path

    async def model_hears(self, chunks: int) -> bytes:
        pcm = b""
        for _ in range(chunks):
            message = await self.model.receive()
            assert message is not None
            pcm += base64.b64decode(json.loads(message)["realtimeInput"]["audio"]["data"])
        return pcm

    async def phone_hears(self) -> bytes:
        message = await self.phone.receive()
        assert message is not None
        return base64.b64decode(json.loads(message)["media"]["payload"])


@pytest.fixture
async def plane(nursery) -> Plane:
    plane = Plane()
    await nursery.start(plane.run)
    return plane


@asynccontextmanager
async def joined(plane: Plane) -> AsyncGenerator[Joined]:
    """A streaming phone and a ready model; the caller's audio may pass."""
    wires, peers = [], []
    for is_client in (False, True):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        wires.append(Wire(plane, ours, WebSocket(is_client=is_client, max_message_bytes=65536)))
        peer = Peer(theirs)
        peer.websocket = WebSocket(is_client=not is_client, max_message_bytes=65536)
        peers.append(peer)
    told: list[object] = []

    def on_caller() -> None:
        if call.on_caller is not None:
            call.on_caller()
        else:
            told.append(relay.path.take_caller())

    relay = Relay(
        MediaPath(),
        on_caller=on_caller,
        on_agent=lambda: told.append(relay.path.take_run()[0]),
        caller_latencies=(Latencies(), Histogram([1.0])),
        agent_latencies=(Latencies(), Histogram([1.0])),
    )
    wires[0].listen(lambda messages, ended: told.extend([*(m for m, _ in messages), ended]))
    relay.join_phone(wires[0])
    relay.join_model(wires[1], AUDIO_MESSAGES)
    relay.path.start(SID, audio_messages(SID))
    relay.path.caller_passes = True
    relay.path.played = Played()
    relay.path.played.open = True
    relay.path.played.play_end = trio.current_time() + 3600.0
    call = Joined(relay, *peers, *wires, told)
    try:
        yield call
    finally:
        for wire, peer in zip(wires, peers, strict=True):
            wire.close()
            peer.sock.close()


async def until(condition: Callable[[], object]) -> None:
    """Let the plane run until this is so."""
    with trio.fail_after(60):
        while not condition():
            await trio.lowlevel.checkpoint()


async def test_caller_audio_goes_through_and_nobody_is_told(plane):
    async with joined(plane) as call:
        await call.phone.send(*(media(CHUNK, number) for number in range(1, 51)))

        pcm = await call.model_hears(50)
        await wait_all_tasks_blocked()

        assert pcm == codec.MulawDecoder(16_000).decode(CHUNK * 50)
        assert call.told == []


async def test_what_is_not_audio_is_told_in_its_place(plane):
    async with joined(plane) as call:
        await call.phone.send(media(CHUNK, 1), MARK, media(CHUNK, 2))
        await call.model_hears(2)

        assert call.told == [MARK, False]


async def test_audio_that_may_not_pass_is_told_before_what_comes_after_it(plane):
    async with joined(plane) as call:
        call.path.caller_passes = False
        await call.phone.send(media(CHUNK, 1), MARK, media(CHUNK, 2))
        await until(lambda: len(call.told) == 4)

        assert call.told == [CHUNK, MARK, False, CHUNK]


async def test_what_the_ear_has_found_is_told(plane):
    async with joined(plane) as call:
        ear = call.path.ear = Ear(Played(), barge_in=False)
        tone = bytes((0x10 if number % 40 < 20 else 0x90) for number in range(160))
        found: list[object] = []
        call.on_caller = lambda: found.extend(ear.take_found())
        await call.phone.send(*(media(tone, number) for number in range(1, 51)))
        await call.model_hears(50)

        assert [type(one) for one in found] == [SpeechStarted]
        assert ear.caller_speaks


async def test_a_followed_turn_goes_through_until_something_else_comes(plane):
    async with joined(plane) as call:
        call.path.follow(limit_bytes=8_000)
        await call.model.send(audio(SPEECH), audio(SPEECH), COMPLETE, audio(SPEECH))

        payload = await call.phone_hears() + await call.phone_hears()
        with trio.fail_after(60):
            first = await call.model_wire.receive()
            second = await call.model_wire.receive()

        assert payload == codec.MulawEncoder(24_000).encode(SPEECH * 2)
        assert [first, second] == [(COMPLETE, True), (audio(SPEECH), True)]
        assert call.told == []


async def test_somebody_is_told_when_a_mark_is_due(plane):
    async with joined(plane) as call:
        call.path.follow(limit_bytes=200)
        await call.model.send(audio(SPEECH), audio(SPEECH))
        await call.phone_hears()
        await call.phone_hears()
        await wait_all_tasks_blocked()

        assert call.told == [320]


async def test_a_lost_model_holds_the_callers_audio(plane):
    async with joined(plane) as call:
        call.model.sock.close()
        await until(lambda: call.model_wire.websocket.ended)
        await call.phone.send(media(CHUNK, 1))
        await until(lambda: call.told)

        assert call.told == [CHUNK]


async def test_a_stream_that_was_left_gives_whole_messages(plane):
    async with joined(plane) as call:
        call.relay.leave_phone(call.phone_wire)
        await call.phone.send(media(CHUNK, 1))
        await until(lambda: call.told)

        assert call.told == [media(CHUNK, 1), False]


async def test_another_connection_takes_the_models_place(plane):
    async with joined(plane) as call, joined(plane) as other:
        call.relay.leave_model(call.model_wire)
        call.relay.join_model(other.model_wire, AUDIO_MESSAGES)
        await call.phone.send(media(CHUNK, 1))

        assert await other.model_hears(1) == codec.MulawDecoder(16_000).decode(CHUNK)


async def test_what_comes_while_the_rest_of_a_read_is_looked_at_is_not_lost():
    plane = Plane()  # nobody serves it but we
    said = [b'{"number":%d}' % number for number in range(MESSAGES_PER_PASS + 1)]
    heard: list[bytes] = []

    with plane._epoll:
        async with joined(plane) as call:

            def listen(messages, ended) -> None:
                heard.extend(message for message, _ in messages)
                if heard == said:  # the plane has had its second look, and has not asked epoll yet
                    call.model.websocket.send_text(COMPLETE)
                    os.write(call.model.sock.fileno(), call.model.websocket.take_output())

            call.model_wire.listen(listen)
            await call.model.send(*said)
            for _ in range(4):
                plane._serve()

    assert heard == [*said, COMPLETE]
