"""Asterisk's media stream over a socket in memory."""

from __future__ import annotations

import json

import pytest
import trio
import trio.testing

from server.carrier import CallerAudio, Clear, SendAudio, StreamStarted, StreamStopped
from server.carrier.asterisk.stream import AsteriskMediaStream
from server.carrier.transport import QueuedTransport
from server.errors import StreamEnded
from server.simulators.phone.transport import memory_transports
from tests.carrier.test_asterisk_protocol import FRAME, start
from tests.support.streams import nobodys_relay


class Pbx:
    """Asterisk's end of a stream, and what ours has pushed."""

    def __init__(self) -> None:
        ours, self.socket = memory_transports()
        self.transport = QueuedTransport(ours)
        self.joined, self.is_joined = trio.Event(), True
        self.stream = AsteriskMediaStream(self.transport, self._wait_joined)
        self.events: list[object] = []
        self.asked_for: list[str] = []

    async def _wait_joined(self, media_id: str) -> bool:
        self.asked_for.append(media_id)
        await self.joined.wait()
        return self.is_joined

    async def start(self, nursery: trio.Nursery) -> StreamStarted:
        await self.socket.send(start())
        self.joined.set()
        started = await self.stream.receive_start()
        self.stream.listen(self.events.extend, nobodys_relay())
        nursery.start_soon(self.transport.run)
        return started


async def test_a_stream_is_heard_when_it_is_in_a_bridge_with_the_caller(autojump_clock, nursery):
    pbx = Pbx()
    found: list[float | None] = []

    async def wait() -> None:
        started = await pbx.stream.receive_start()
        assert started is not None
        assert started.wait_heard is not None
        found.append(await started.wait_heard())

    nursery.start_soon(wait)
    await pbx.socket.send(start())
    await trio.sleep(3.0)
    before = list(found)
    pbx.joined.set()
    await trio.testing.wait_all_tasks_blocked()
    joined_at = trio.current_time()
    pbx.stream.listen(pbx.events.extend, nobodys_relay())
    nursery.start_soon(pbx.transport.run)
    await trio.sleep(0.5)
    await pbx.socket.send(FRAME)
    await trio.testing.wait_all_tasks_blocked()
    (audio,) = pbx.events

    assert before == []
    assert pbx.asked_for == ["offhook.media.1.offhook-1"]
    assert found == [joined_at]
    assert isinstance(audio, CallerAudio)
    assert audio.timestamp_ms == 500  # since they hear each other


async def test_a_stream_that_comes_into_no_bridge_is_never_heard():
    pbx = Pbx()
    pbx.is_joined = False
    pbx.joined.set()
    await pbx.socket.send(start())
    started = await pbx.stream.receive_start()
    assert started is not None
    assert started.wait_heard is not None

    assert await started.wait_heard() is None


async def test_audio_goes_both_ways_in_binary_frames(nursery):
    pbx = Pbx()
    await pbx.start(nursery)

    await pbx.socket.send(FRAME)
    pbx.stream.send(SendAudio(b"\x01" * 100))
    await trio.testing.wait_all_tasks_blocked()
    pbx.stream.send(Clear())
    sent = [await pbx.socket.receive() for _ in range(4)]

    assert json.loads(sent[0]) == {"command": "START_MEDIA_BUFFERING"}
    assert sent[1] == b"\x01" * 100
    assert [json.loads(one)["command"] for one in sent[2:]] == [
        "FLUSH_MEDIA",
        "START_MEDIA_BUFFERING",
    ]
    await trio.testing.wait_all_tasks_blocked()
    assert [type(event) for event in pbx.events] == [CallerAudio]


@pytest.mark.parametrize("code", [1000, 1001, 1006])
async def test_the_end_of_a_stream_is_never_that_of_the_call(nursery, code):
    pbx = Pbx()
    await pbx.start(nursery)

    await pbx.socket.aclose(code)
    await trio.testing.wait_all_tasks_blocked()

    assert pbx.events == [StreamStopped(said=False)]
    with pytest.raises(StreamEnded):
        pbx.stream.send(Clear())


async def test_a_socket_that_closes_before_its_start_is_nobodys():
    pbx = Pbx()

    await pbx.socket.aclose()

    assert await pbx.stream.receive_start() is None
