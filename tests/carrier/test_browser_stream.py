"""A page's media stream while our own process is held up."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

import pytest
import trio
import trio.testing
from websockets.frames import Frame, Opcode

from codec.path import WebSocket
from server.carrier import CallerAudio
from server.carrier.browser import messages
from server.carrier.browser.carrier import ALIVE_EVERY_S, BrowserCarrier
from server.carrier.browser.stream import BrowserMediaStream
from server.carrier.transport import QueuedTransport
from server.hooks.trio_clock import missed_s, pausing_clock
from server.simulators.phone.transport import memory_transports
from tests.carrier.test_browser_protocol import media, start
from tests.support.streams import nobodys_relay
from tests.support.websocket_oracle import write_frames

AHEAD_S, HELD_UP_S = 0.2, 1.5
CHUNK = b"\x7f" * 800
"""A tenth of a second."""


@pytest.fixture(autouse=True)
def little_may_be_ahead(monkeypatch):
    monkeypatch.setattr(messages, "MAX_AHEAD_S", AHEAD_S)


def hold_up() -> None:
    """Do what SIGSTOP does to the loop."""
    time.sleep(HELD_UP_S)


def nobody_minds(*_: object) -> None:
    pass


def chunks(seconds: float, first: int = 1) -> list[str]:
    """What a page says in so many seconds."""
    numbers = range(first, first + round(10 * seconds))
    return [media(CHUNK, at_ms=100 * (number - 1), chunk=number) for number in numbers]


async def test_what_a_page_has_said_while_we_were_held_up_is_no_flood(nursery):
    events: list[object] = []
    ours, page = memory_transports()
    transport = QueuedTransport(ours)
    with pausing_clock():
        stream = BrowserMediaStream(transport, nobody_minds, nobody_minds)
        await page.send(start())
        await stream.receive_start()
        stream.listen(events.extend, nobodys_relay())
        nursery.start_soon(transport.run)
        await trio.testing.wait_all_tasks_blocked()
        hold_up()
        for said in chunks(HELD_UP_S):
            await page.send(said)
        await trio.testing.wait_all_tasks_blocked()
        was_missed_s = missed_s()

    assert was_missed_s > AHEAD_S
    assert [type(event) for event in events] == [CallerAudio] * round(10 * HELD_UP_S)


class OnPath:
    """A transport whose audio goes by a path, which hands up what it is not sure of."""

    def __init__(self) -> None:
        self.relay = nobodys_relay()
        self.path = self.relay.path
        self.path.phone = WebSocket(is_client=False, max_message_bytes=64 * 1024)
        self._push: Callable[[Sequence[str | bytes], bool], None] = nobody_minds

    async def receive(self) -> str:
        return start()

    def listen(self, on_messages: Callable[[Sequence[str | bytes], bool], None]) -> None:
        self._push = on_messages

    def join(self, relay: object) -> bool:
        return True

    def leave(self, relay: object) -> None:
        pass

    def bring(self, texts: Sequence[str]) -> None:
        frames = [Frame(Opcode.TEXT, text.encode()) for text in texts]
        self.path.phone.receive(write_frames(frames, masked=True))
        while (message := self.path.next_from_phone(trio.current_time())) is not None:
            self._push([message.decode()], False)


async def test_nor_is_it_where_the_audio_goes_by_the_compiled_path():
    events: list[object] = []
    wire = OnPath()
    with pausing_clock():
        stream = BrowserMediaStream(wire, nobody_minds, nobody_minds)
        await stream.receive_start()
        stream.listen(events.extend, wire.relay)
        wire.bring(chunks(0.1))
        await trio.testing.wait_all_tasks_blocked()
        by_path = len(wire.path.take_caller())
        hold_up()
        wire.bring(chunks(HELD_UP_S, first=2))

    heard = [event for event in events if isinstance(event, CallerAudio)]
    by_path += len(wire.path.take_caller())
    assert len(heard) == len(events)
    assert by_path >= len(CHUNK)
    assert by_path + sum(len(one.payload) for one in heard) == 8_000 * (HELD_UP_S + 0.1)


async def nobody_asks(_: object) -> None:
    pass


async def test_pages_are_told_that_they_are_served_for_as_long_as_they_are(nursery, autojump_clock):
    carrier = BrowserCarrier(["secret"])
    nursery.start_soon(carrier.run, nobody_asks)
    pages = []
    for _ in range(2):
        ours, page = memory_transports()
        transport = QueuedTransport(ours)
        stream = carrier.new_stream(transport)
        await page.send(start())
        await stream.receive_start()
        stream.listen(nobody_minds, nobodys_relay())
        nursery.start_soon(transport.run)
        pages.append((stream, page))
    [(first, page_of_first), (_, page_of_second)] = pages

    began = trio.current_time()
    told = [json.loads(await page.receive()) for _, page in pages]
    first.leave()
    await page_of_second.receive()

    assert told == [{"event": "alive", "streamSid": "MZ1"}] * 2
    assert trio.current_time() - began == 2 * ALIVE_EVERY_S
    assert page_of_first.receive_nowait() is None
