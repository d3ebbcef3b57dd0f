"""A bad network between two programs, over real sockets."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from benchmarks.chaos.relay import Listener, Relay

pytestmark = pytest.mark.sockets
PATIENCE_S = 20.0
RESET = (OSError, trio.BrokenResourceError)
"""A connection that is reset at once may not even be seen to have been made."""
MORE_THAN_SOCKETS_KEEP = 1 << 26
ROOT = Path(__file__).parents[2]


@dataclass
class Far:
    """The program behind the relay: what it got, and its sockets."""

    streams: list[trio.SocketStream] = field(default_factory=list)
    arrived: trio.Event = field(default_factory=trio.Event)

    async def take(self, stream: trio.SocketStream) -> None:
        self.streams.append(stream)
        self.arrived.set()
        await trio.sleep_forever()

    async def latest(self) -> trio.SocketStream:
        await self.arrived.wait()
        return self.streams[-1]


@dataclass
class Net:
    relay: Relay
    port: int
    far: Far
    ends: list[trio.SocketStream] = field(default_factory=list)

    @property
    def line(self) -> Listener:
        return self.relay.listeners["line"]

    def way(self, name: str):
        """One direction of the only connection."""
        (connection,) = self.line.open.values()
        return connection.ways[name]

    async def taken_in(self, name: str, count: int) -> None:
        """Wait until the relay has got so many bytes, and done with them all that it will do."""
        way = self.way(name)
        await way.changed.until(lambda: way.came >= count)
        await wait_all_tasks_blocked()

    async def connect(self) -> trio.SocketStream:
        """A connection, as far as the relay."""
        return await self.connect_to(self.port)

    async def connect_to(self, port: int) -> trio.SocketStream:
        self.ends.append(await trio.open_tcp_stream("127.0.0.1", port))
        return self.ends[-1]

    async def open(self) -> tuple[trio.SocketStream, trio.SocketStream]:
        """A connection that the relay carries already, seen from both of its ends."""
        self.far.arrived = trio.Event()
        near = await self.connect()
        far = await self.far.latest()
        await wait_all_tasks_blocked()
        return near, far


@asynccontextmanager
async def network(seed: int = 1) -> AsyncIterator[Net]:
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            far = Far()
            listeners = await nursery.start(partial(trio.serve_tcp, far.take, 0, host="127.0.0.1"))
            relay = Relay(nursery, seed)
            target = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            net = Net(relay, await relay.listen("line", target), far)
            try:
                yield net
            finally:
                for end in (*net.ends, *far.streams):
                    end.socket.close()
            nursery.cancel_scope.cancel()


async def receive(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await stream.receive_some(count - len(data))
        assert more, f"it ended after {data!r}"
        data += more
    return data


async def test_what_goes_in_comes_out_both_ways():
    async with network() as net:
        near, far = await net.open()

        await near.send_all(b"question")
        heard = await receive(far, 8)
        await far.send_all(b"answer")

        assert (heard, await receive(near, 6)) == (b"question", b"answer")


async def test_the_end_of_one_direction_leaves_the_other_open():
    async with network() as net:
        near, far = await net.open()

        await near.send_eof()
        ended = await far.receive_some()
        await far.send_all(b"still here")

        assert ended == b""
        assert await receive(near, 10) == b"still here"


async def test_a_delay_holds_one_direction_up_and_not_the_other():
    async with network() as net:
        near, far = await net.open()
        await net.relay.obey({"do": "set", "way": "up", "delay_s": 0.3})
        began = trio.current_time()

        await far.send_all(b"down")
        await receive(near, 4)
        await near.send_all(b"up")
        await receive(far, 2)

        assert trio.current_time() - began >= 0.3


async def test_a_line_that_is_held_loses_nothing_and_says_it_all_when_it_is_back():
    async with network() as net:
        near, far = await net.open()
        await net.relay.obey({"do": "set", "is_held": True})

        await near.send_all(b"said into nothing")
        await net.taken_in("up", 17)
        let_out = (await net.relay.obey({"do": "counts"}))["line"]["up"]
        is_heard = far.socket.is_readable()
        await net.relay.obey({"do": "heal"})

        assert (let_out, is_heard) == (0, False)
        assert await receive(far, 17) == b"said into nothing"


async def test_a_new_connection_on_a_held_line_is_accepted_and_reaches_nobody():
    async with network() as net:
        await net.relay.obey({"do": "set", "is_held": True})

        near = await net.connect()
        await near.send_all(b"hello")
        await net.line.changed.until(lambda: net.line.accepted == 1)
        await wait_all_tasks_blocked()
        reached = [connection.target for connection in net.line.open.values()]
        await net.relay.obey({"do": "heal"})

        assert reached == [None]
        assert await receive(await net.far.latest(), 5) == b"hello"


async def test_a_reset_is_a_reset_at_both_ends():
    async with network() as net:
        near, far = await net.open()
        await near.send_all(b"x")
        await receive(far, 1)

        answer = await net.relay.obey({"do": "cut", "how": "rst"})

        assert answer == {"connections": 1}
        for end in (near, far):
            with pytest.raises(trio.BrokenResourceError):
                await end.receive_some()


async def test_an_orderly_cut_is_an_end_at_both_ends():
    async with network() as net:
        near, far = await net.open()
        await near.send_all(b"x")
        await receive(far, 1)

        await net.relay.obey({"do": "cut", "how": "fin"})

        assert [await near.receive_some(), await far.receive_some()] == [b"", b""]


async def test_of_a_half_open_connection_the_other_end_never_hears():
    async with network() as net:
        near, far = await net.open()
        await near.send_all(b"x")
        await receive(far, 1)

        await net.relay.obey({"do": "cut", "side": "client"})
        with pytest.raises(trio.BrokenResourceError):
            await near.receive_some()
        await far.send_all(b"anybody there?")
        await net.taken_in("down", 14)

        assert not far.socket.is_readable()
        assert (await net.relay.obey({"do": "counts"}))["line"]["open"] == 1
        (connection,) = net.relay.listeners["line"].open.values()
        await far.aclose()
        await connection.ended.wait()


async def test_a_slow_reader_holds_its_sender_up():
    async with network() as net:
        await net.relay.obey({"do": "set", "way": "up", "bytes_per_s": 2000, "buffer_bytes": 1000})
        near, far = await net.open()
        read_bytes = net.way("up").weather.read_bytes
        all_sent = trio.Event()

        async def send() -> None:
            await near.send_all(bytes(MORE_THAN_SOCKETS_KEEP))
            all_sent.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await net.taken_in("up", 1000)
            way, is_held_up = net.way("up"), not all_sent.is_set()
            inside = way.came - way.bytes
            await receive(far, 1000)
            nursery.cancel_scope.cancel()

        assert is_held_up
        # The piece that fills what is kept may be over the limit, and another be on its way out.
        assert inside <= 1000 + 2 * read_bytes


async def test_connections_are_chosen_by_what_they_said_first():
    async with network() as net:
        stream_near, stream_far = await net.open()
        other_near, other_far = await net.open()
        await stream_near.send_all(b"GET /stream HTTP/1.1")
        await other_near.send_all(b"GET /calls HTTP/1.1")
        await receive(stream_far, 20)
        await receive(other_far, 19)

        cut = await net.relay.obey({"do": "cut", "how": "fin", "only": "GET /stream"})
        await other_far.send_all(b"fine")

        assert cut == {"connections": 1}
        assert await stream_near.receive_some() == b""
        assert await receive(other_near, 4) == b"fine"


async def test_a_rule_for_some_meets_new_connections_when_they_have_spoken():
    async with network() as net:
        await net.relay.obey({"do": "set", "only": "/stream", "way": "down", "is_held": True})
        near, far = await net.open()
        await near.send_all(b"GET /stream")
        await receive(far, 11)

        await far.send_all(b"not heard")
        await net.taken_in("down", 9)

        assert not near.socket.is_readable()
        assert (await net.relay.obey({"do": "counts"}))["line"]["down"] == 0


async def cut_half(seed: int) -> list[int]:
    """The numbers of the connections that a cut of half of them has left."""
    async with network(seed) as net:
        for _ in range(20):
            await net.open()
        connections = list(net.relay.listeners["line"].open.values())
        await net.relay.obey({"do": "cut", "share": 0.5})
        return [one.number for one in connections if not one.scope.cancel_called]


async def test_a_share_is_drawn_by_the_seed():
    one, same, other = await cut_half(1), await cut_half(1), await cut_half(2)

    assert 0 < len(one) < 20
    assert one == same
    assert one != other


async def test_new_connections_can_be_reset():
    async with network() as net:
        await net.relay.obey({"do": "welcome", "how": "reset"})

        with pytest.raises(RESET):
            await (await net.connect()).receive_some()


async def test_a_target_that_is_not_there_is_a_reset():
    async with network() as net:
        nobody = trio.socket.socket()
        await nobody.bind(("127.0.0.1", 0))  # bound, and not listening
        target = f"127.0.0.1:{nobody.getsockname()[1]}"
        answer = await net.relay.obey({"do": "listen", "name": "nowhere", "target": target})

        with pytest.raises(RESET):
            await (await net.connect_to(answer["port"])).receive_some()
        nobody.close()


def test_as_a_process_it_answers_line_by_line_and_ends_with_its_input():
    lines = [
        {"do": "listen", "name": "line", "target": "127.0.0.1:9"},
        {"do": "set", "listener": "line", "delay_s": 0.1},
        {"do": "set", "weather": "fair"},
        {"do": "fly"},
        {"do": "counts"},
    ]

    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos.relay", "--seed", "3"],
        input="".join(json.dumps(line) + "\n" for line in lines).encode(),
        capture_output=True,
        timeout=60,
        cwd=ROOT,
        check=True,
    )
    listened, was_set, unknown, no_command, counts = map(json.loads, process.stdout.splitlines())

    assert listened["port"] > 0
    assert was_set == {"ok": True, "connections": 0}
    assert [unknown["ok"], no_command["ok"]] == [False, False]
    assert "weather" in unknown["error"]
    assert "fly" in no_command["error"]
    assert counts == {"ok": True, "line": {"accepted": 0, "open": 0, "up": 0, "down": 0}}
    assert process.stderr == b""
