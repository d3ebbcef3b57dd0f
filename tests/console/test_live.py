"""The live channel: what happens, in order, without a gap, and bounded."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import h11
import httpx2
import pytest
import trio
from structlog.testing import capture_logs

from server.app import create_app
from server.console import live as live_module
from server.console.channel import (
    BEGIN_S,
    MAX_CHANNELS,
    MAX_OF_CLIENT,
    Places,
    read_positions,
    written_positions,
)
from server.console.journal import MAX_BATCH, MAX_BYTES, MAX_NEWS, WATCHED_S, Batch, Journal
from server.console.live import Live
from server.service import Service
from server.settings.settings import Settings
from server.web.keys import hash_key
from tests.support.access import SIMULATED
from tests.support.nodes import Store, two_nodes
from tests.support.processes import NUMBER, TWO_PROCESSES, server_process
from tests.support.serving import Server, serving

RINGS_FOR_LONG, TALKS_ON = "5550105", "5550108"


# -- the journal --------------------------------------------------------------------------------


def test_news_are_numbered_and_given_from_where_one_left_off():
    journal = Journal()
    journal.watch(0.0)
    begin = journal.last
    for number in range(3):
        journal.write("line", 1.0, number=number)

    first = journal.since(begin)
    assert [json.loads(each)["number"] for each in first.news] == [0, 1, 2]
    assert journal.since(first.upto) == Batch(first.upto, [])
    assert journal.since(begin + 2).news == first.news[2:]


def test_nothing_is_written_down_while_nobody_watches_and_that_is_a_gap():
    journal = Journal()
    journal.watch(0.0)
    known = journal.last
    journal.write("line", WATCHED_S + 1.0)
    assert journal.since(known).news == []

    journal.watch(WATCHED_S + 2.0)
    assert journal.since(known).has_gap
    assert not journal.since(journal.last).has_gap


@pytest.mark.parametrize("size", [10, 2_000])
def test_it_is_bounded_in_count_and_in_bytes_and_says_what_is_missing(size):
    journal = Journal()
    journal.watch(0.0)
    begin = journal.last
    for _ in range(MAX_NEWS + 500):
        journal.write("line", 1.0, text="x" * size)

    kept = [batch for at in range(begin, journal.last) if (batch := journal.since(at)).news]
    assert journal.since(begin) == Batch(journal.last, [], has_gap=True)
    assert len(kept) <= MAX_NEWS
    assert len(kept) * (size + 20) <= MAX_BYTES + 100_000
    assert max(len(batch.news) for batch in kept) == MAX_BATCH


async def test_a_line_with_what_json_cannot_say_harms_neither_its_call_nor_its_readers():
    app = create_app(Settings.load(_env_file=None, **SIMULATED))
    live = Live(app.service)
    after = live.watch()

    facts = {"took_ms": float("nan"), "name": "\ud800", "odd": object(), "at_s": "noon", "what": 1}
    live.noted("CA1", 1.0, "tool", facts)

    (news,) = [each for each in live._journal.since(after).news if "line" in each]
    line = json.loads(news, parse_constant=pytest.fail)["line"]
    assert (line["at_s"], line["what"], line["took_ms"]) == (1.0, "tool", None)


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "0~xyz~1", "0~1", "0~1~-1", "~1~1", "0~1~" + "9" * 30, "a b~1~1", ",,,"],
)
def test_what_is_no_position_is_none(text):
    assert read_positions(text) == {}


def test_positions_are_read_as_they_were_written():
    positions = {"0": ("1f", 12), "node-a.1": ("abc", 3)}

    assert read_positions(written_positions(positions)) == positions


# -- over HTTP ----------------------------------------------------------------------------------


class Reader:
    """What a browser's EventSource does, as far as it matters here."""

    def __init__(self, next_event: Callable[[], Awaitable[h11.Event]]) -> None:
        self._next_event = next_event
        self._unread = b""
        self.last_id = ""
        self.news: list[dict[str, Any]] = []
        self.gaps = 0

    async def read(self) -> tuple[str, dict[str, Any]]:
        """The next event."""
        while True:
            while b"\n\n" not in self._unread:
                piece = await self._next_event()
                assert isinstance(piece, h11.Data), "the channel is over"
                self._unread += piece.data
            event, _, self._unread = self._unread.partition(b"\n\n")
            fields = dict(line.split(": ", 1) for line in event.decode().split("\n"))
            self.last_id = fields.get("id", self.last_id)
            if "event" not in fields:
                continue
            said = json.loads(fields["data"])
            self.gaps += fields["event"] == "gap"
            if fields["event"] == "news":
                self.news.append(said)
            return fields["event"], said

    async def until(self, wanted) -> dict[str, Any]:
        """Read up to the first news for which this is true."""
        with trio.fail_after(60):
            while True:
                kind, said = await self.read()
                if kind == "news" and wanted(said):
                    return said

    @property
    def lines_of_calls(self) -> list[tuple[str, str]]:
        return [(each["call_sid"], each["line"]["what"]) for each in self.news if "line" in each]


@asynccontextmanager
async def reading(
    http: httpx2.AsyncClient, last_id: str = "", *, key: str = ""
) -> AsyncGenerator[Reader]:
    """A channel over a socket of its own, which is cut at the end of the block."""
    url = http.base_url
    connection = h11.Connection(h11.CLIENT)
    headers = {"Host": f"{url.host}:{url.port}", "Accept": "text/event-stream"}
    headers |= {"Authorization": http.headers.get("Authorization", "none")}
    headers |= {"Last-Event-ID": last_id} if last_id else {}
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    request = h11.Request(method="GET", target="/events", headers=list(headers.items()))
    async with await trio.open_tcp_stream(url.host, url.port) as stream:
        await stream.send_all(connection.send(request) + connection.send(h11.EndOfMessage()))

        async def next_event() -> h11.Event:
            while (event := connection.next_event()) is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(65_536))
            return event

        answer = await next_event()
        facts = dict(answer.headers)
        assert answer.status_code == 200
        assert facts[b"content-type"].startswith(b"text/event-stream")
        assert facts[b"cache-control"] == b"no-store"
        yield Reader(next_event)


def is_call(state: str):
    return lambda said: said["type"] == "call" and said["call"]["state"] == state


def is_line(what: str):
    return lambda said: said["type"] == "line" and said["line"]["what"] == what


@pytest.mark.slow
@pytest.mark.sockets
async def test_a_call_is_told_of_from_its_beginning_to_its_end(fast_clock):
    async with serving() as server, reading(server.http) as reader:
        await reader.read()
        call_sid = (await server.make_call("5550102")).json()["call_sid"]
        await reader.until(is_call("ended"))

    whats = [what for sid, what in reader.lines_of_calls if sid == call_sid]
    assert reader.gaps == 1
    assert [what for what in whats if what in ("answered", "barge-in", "ended")][-1] == "ended"
    assert "barge-in" in whats
    kinds = [each["type"] for each in reader.news]
    assert kinds.index("call") < kinds.index("line")
    rows = [row for each in reader.news if each["type"] == "load" for row in each["calls"]]
    assert {"agent", "caller"} <= {row[2] for row in rows}
    assert any(row[4] > 20 for row in rows)


@pytest.mark.sockets
async def test_a_channel_that_broke_off_goes_on_without_a_gap():
    async with serving() as server:
        async with reading(server.http) as reader:
            await reader.read()
            call_sid = (await server.make_call(RINGS_FOR_LONG)).json()["call_sid"]
            await reader.until(is_call("live"))
        await server.http.post(f"/calls/{call_sid}/hang-up")
        async with reading(server.http, reader.last_id) as again:
            await again.until(is_call("ended"))

    assert again.gaps == 0
    both = reader.lines_of_calls + again.lines_of_calls
    noted = [line[1] for line in both if line[0] == call_sid]
    assert noted.count("ended") == 1
    assert len(both) == len(set(both))


@pytest.mark.sockets
async def test_a_channel_keeps_no_server_from_stopping(nursery):
    stop = trio.Event()

    async def serve(task_status: trio.TaskStatus[Server]) -> None:
        async with serving(close_timeout_s=60.0) as server:
            task_status.started(server)
            await stop.wait()

    server = await nursery.start(serve)
    async with reading(server.http) as reader:
        await reader.read()
        stop.set()
        with pytest.raises(AssertionError, match="the channel is over"):
            await reader.until(lambda said: False)


@pytest.mark.sockets
async def test_there_are_so_many_channels_and_one_key_has_no_more_than_its_share(nursery):
    keys = {name: hash_key(name) for name in ("ana", "eva", "leo")}
    async with serving(api_keys=keys) as server:
        opened = trio.Semaphore(0)

        async def open_one(key: str) -> None:
            async with reading(server.http, key=key) as reader:
                await reader.read()
                opened.release()
                await trio.sleep_forever()

        async def refused(key: str) -> httpx2.Response:
            for _ in range(MAX_OF_CLIENT):
                nursery.start_soon(open_one, key)
            for _ in range(MAX_OF_CLIENT):
                await opened.acquire()
            return await server.http.get("/events", headers={"X-API-Key": key})

        of_one = await refused("ana")
        await refused("eva")
        of_all = await server.http.get("/events", headers={"X-API-Key": "leo"})
        nursery.cancel_scope.cancel()

    assert MAX_CHANNELS == 2 * MAX_OF_CLIENT
    for answer in (of_one, of_all):
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0


def test_a_place_is_kept_from_the_request_on_and_not_for_who_never_comes():
    places = Places()
    taken = [places.take(number, "ana", 1.0) for number in range(MAX_OF_CLIENT + 1)]
    places.begin(0, "ana")

    assert taken == [True] * MAX_OF_CLIENT + [False]
    assert places.take("another's", "eva", 1.0)
    assert [places.take(f"{n}", "ana", 1.0 + BEGIN_S) for n in range(MAX_OF_CLIENT)] == (
        [True] * (MAX_OF_CLIENT - 1) + [False]
    )
    places.leave(0)
    assert places.take("last", "ana", 1.0 + BEGIN_S)


@pytest.mark.slow
@pytest.mark.sockets
async def test_a_call_that_cannot_be_looked_at_keeps_no_other_from_sight(monkeypatch):
    async with serving() as server, reading(server.http) as reader:
        broken = (await server.make_call(TALKS_ON)).json()["call_sid"]

        def look(call: Any, now: float) -> list[Any]:
            if call.call_sid == broken:
                raise KeyError("no such thing")
            return look_at(call, now)

        look_at = live_module._row
        monkeypatch.setattr(live_module, "_row", look)
        with capture_logs() as logs:
            whole = (await server.make_call(TALKS_ON)).json()["call_sid"]
            for _ in range(2):
                both = await reader.until(lambda said: said.get("load", {}).get("live") == 2)

    assert [row[0] for row in both["calls"]] == [whole]
    told = [each["call_sid"] for each in logs if "not looked at" in each["event"]]
    assert told == [broken]


def test_all_calls_of_a_process_are_looked_at_in_turn_and_new_ones_at_once(monkeypatch):
    monkeypatch.setattr(live_module, "MAX_LOOKED_AT", 2)
    monkeypatch.setattr(live_module, "_row", lambda call, now: [call.call_sid])
    monkeypatch.setattr(Live, "load", lambda live: {})
    calls = [SimpleNamespace(call_sid=sid) for sid in "ABCDE"]
    register = SimpleNamespace(live=calls)
    live = Live(cast(Service, SimpleNamespace(calls=SimpleNamespace(register=register))))
    live._journal.watch(0.0)

    def look(now: float) -> str:
        live._look(now)
        [news] = live._journal.since(live._journal.last - 1).news
        return "".join(sid for [sid] in json.loads(news)["calls"])

    in_turn = [look(1.0), look(2.0), look(3.0)]
    del calls[1]
    calls.append(SimpleNamespace(call_sid="F"))

    assert in_turn == ["AB", "CD", "EA"]
    assert [look(4.0), look(5.0)] == ["FC", "DA"]


@pytest.mark.slow
@pytest.mark.sockets
async def test_a_reader_that_takes_nothing_loses_its_channel_and_holds_up_nobody(monkeypatch):
    monkeypatch.setattr("server.hooks.connections.UNREAD_TIMEOUT_S", 0.5)
    async with serving() as server, reading(server.http) as reader:
        await reader.read()
        stuck = trio.socket.socket()
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        await stuck.connect((server.http.base_url.host, server.http.base_url.port))
        await stuck.send(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        live = server.app._console._live
        for number in range(60):
            for _ in range(200):
                live.noted("CA1", float(number), "x" * 500, {})
            await reader.until(lambda said, at=number: said.get("line", {}).get("at_s") == at)
        received = 0
        with trio.fail_after(60):
            while piece := await stuck.recv(1_000_000):
                received += len(piece)
        stuck.close()

    assert received < 60 * 200 * 500 / 2


@pytest.mark.sockets
async def test_either_of_two_machines_tells_of_the_calls_of_both(monkeypatch):
    async with two_nodes(monkeypatch, Store(), api_key="sesame") as (first, second):
        for server in (first, second):
            server.http.headers["Authorization"] = "Bearer sesame"
        async with reading(first.http) as reader:
            while reader.gaps < 2:
                await reader.read()
            call_sid = (await second.make_call(RINGS_FOR_LONG)).json()["call_sid"]
            begun = await reader.until(is_call("live"))
        await first.http.post(f"/calls/{call_sid}/hang-up")
        async with reading(second.http, reader.last_id) as again:
            ended = await again.until(is_call("ended"))

    assert (reader.gaps, again.gaps) == (2, 0)
    assert begun["call"]["call_sid"] == ended["call"]["call_sid"] == call_sid


@pytest.mark.sockets
@pytest.mark.slow
async def test_of_two_processes_either_tells_of_the_calls_of_both(tmp_path):
    command = next(iter(TWO_PROCESSES))
    async with server_process(tmp_path, command) as server:
        await server.both_ready()
        async with reading(server.http) as reader:
            heard = set()
            while len(heard) < 2:
                said = await reader.until(lambda said: said["type"] == "load")
                heard.add(said["load"]["process"])
            calls = {(await server.make_call(NUMBER)).json()["call_sid"] for _ in range(4)}
            ended = set()
            while ended != calls:
                ended.add((await reader.until(is_call("ended")))["call"]["call_sid"])
        async with reading(server.http, reader.last_id) as again:
            while {each["load"]["process"] for each in again.news if "load" in each} != heard:
                await again.read()

    assert again.gaps == 0
    with_calls = {each["load"]["process"] for each in reader.news if each.get("calls")}
    assert with_calls == heard
