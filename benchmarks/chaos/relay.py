"""A bad network between two programs: a relay for TCP whose faults are chosen while it runs.

    client  --up-->  listener of the relay  --up-->  target
            <-down--                        <-down--

As a process (``python -m benchmarks.chaos.relay --seed 1``) it takes one JSON object a line on its
standard input and answers each with one on its standard output; ``{"ok": false, "error": …}`` says
what it did not understand. The end of its input is its end.

| ``do`` | Takes | Does |
| --- | --- | --- |
| ``listen`` | ``name``, ``target`` (``host:port``), ``port`` (0) | listens; answers ``port`` |
| ``set`` | ``way`` (``up``, ``down``, ``both``), and what :class:`Weather` has | for these \
connections, and for new ones unless ``new`` is false |
| ``heal`` | | all of it is well again, and new connections are taken |
| ``cut`` | ``how`` (``rst``, ``fin``), ``side`` (``both``, ``client``, ``target``) | closes. With \
one side only the other is left open, and never hears of it: half-open |
| ``welcome`` | ``how`` (``forward``, ``reset``) | what becomes of new connections |
| ``counts`` | | connections and bytes of each listener |

Where connections are meant, ``listener`` names theirs (all listeners without it), ``share`` is how
many of them (1.0; drawn by the seed), and ``only`` is what their first bytes have to have in them,
such as ``/stream HTTP/1.1``. What is drawn depends on the seed, and on nothing but the number of
each connection and the order of the commands.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import trio

from benchmarks.chaos.lines import answers_only
from benchmarks.chaos.weather import CLEAR, Passage, Weather
from server.signal import Signal

HEAD_BYTES = 256
BACKLOG = 4096
CONNECT_TIMEOUT_S = 10.0
MAX_COMMAND_BYTES = 65_536
_NO_LINGER = struct.pack("ii", 1, 0)
WAYS = {"up": ("up",), "down": ("down",), "both": ("up", "down")}
SIDES = ("both", "client", "target")


class _Way:
    """One direction of a connection: read, kept as long as it takes, written."""

    def __init__(self, dice: random.Random, weather: Weather) -> None:
        self.weather = weather
        self.bytes = 0
        self.came = 0
        """Bytes that were taken in: on their way, let out, or dropped."""
        self.changed = Signal()
        """Something came or went, or the weather changed."""
        self.swallows = False
        """The other side is gone, and this one is not to know."""
        self._passage = Passage(dice)
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._kept_bytes = 0

    def change(self, weather: Weather) -> None:
        """Have this weather from now on; what is on its way has the old one's delay."""
        self.weather = weather
        self.changed.set()

    def swallow(self) -> None:
        """From now on what comes is dropped: there is nobody to give it to."""
        self.swallows = True
        self.change(CLEAR)

    async def wait_passable(self) -> None:
        """Wait until it lets anything through."""
        await self.changed.until(lambda: not self.weather.is_held)

    async def read(
        self, source: trio.SocketStream, sink: trio.SocketStream, saw: Callable[[bytes], None]
    ) -> None:
        """Take in what comes, until the end of it; what is due at once goes out at once."""
        while True:
            await self.changed.until(lambda: self.swallows or not self._is_full)
            data = await source.receive_some(self.weather.read_bytes)
            self.came += len(data)
            self.changed.set()
            if self.swallows:
                if not data:
                    raise trio.BrokenResourceError("the side that was left has gone, too")
                continue
            saw(data)
            now = trio.current_time()
            due = self._passage.due(self.weather, len(data), now)
            if data and due <= now and not self._pieces and not self.weather.is_held:
                await self._send(sink, data)
                continue
            self._pieces.append((due, data))
            self._kept_bytes += len(data)
            self.changed.set()
            if not data:
                return

    @property
    def _is_full(self) -> bool:
        return self.weather.is_held or self._kept_bytes >= self.weather.buffer_bytes

    async def _send(self, sink: trio.SocketStream, data: bytes) -> None:
        await sink.send_all(data)
        self.bytes += len(data)

    async def write(self, sink: trio.SocketStream) -> None:
        """Let out what is due, in its order, and at last its end."""
        while True:
            await self.changed.until(lambda: bool(self._pieces) and not self.weather.is_held)
            due, data = self._pieces[0]
            if due > trio.current_time():
                with trio.move_on_at(due):
                    await self.changed.next().wait()
                continue
            if not data:
                await sink.send_eof()
                return
            await self._send(sink, data)
            self._pieces.popleft()
            self._kept_bytes -= len(data)
            self.changed.set()


class Connection:
    """One connection through the relay."""

    def __init__(self, listener: Listener, number: int, client: trio.SocketStream) -> None:
        self.listener = listener
        self.number = number
        self.head = b""
        """The first bytes that its client sent."""
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        dice = f"{listener.seed}/{listener.name}/{number}"
        self.ways = {way: _Way(random.Random(f"{dice}/{way}"), CLEAR) for way in WAYS["both"]}
        self.client: trio.SocketStream | None = client
        self.target: trio.SocketStream | None = None

    async def run(self) -> None:
        """Carry both directions until both have ended, or it is cut."""
        client = self.client
        assert client is not None
        try:
            with self.scope:
                await self.ways["up"].wait_passable()
                with trio.fail_after(CONNECT_TIMEOUT_S):
                    self.target = await trio.open_tcp_stream(*self.listener.target)
                await self._carry(client, self.target)
        except (OSError, trio.TooSlowError):
            for stream in (client, self.target):
                reset(stream)
        finally:
            for stream in (client, self.target):
                if stream is not None:
                    stream.socket.close()

    async def _carry(self, client: trio.SocketStream, target: trio.SocketStream) -> None:
        up, down = self.ways["up"], self.ways["down"]
        is_broken = False

        async def guarded(work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
            nonlocal is_broken
            try:
                await work(*arguments)
            except trio.ClosedResourceError:
                pass  # one side was cut by us; the other is not to notice
            except trio.BrokenResourceError:
                is_broken = True
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(guarded, up.read, client, target, self._saw)
            nursery.start_soon(guarded, up.write, target)
            nursery.start_soon(guarded, down.read, target, client, lambda data: None)
            nursery.start_soon(guarded, down.write, client)
        if is_broken:
            for stream in (client, target):
                reset(stream)

    def _saw(self, data: bytes) -> None:
        if data and not self.head:
            self.head = data[:HEAD_BYTES]
            self.listener.apply_rule(self)

    def cut(self, how: str, side: str) -> None:
        """Close one side or both."""
        if side == "both":
            if how == "rst":
                for stream in (self.client, self.target):
                    reset(stream)
            self.scope.cancel()
            return
        gone = self.client if side == "client" else self.target
        if gone is None:
            self.scope.cancel()
            return
        for way in self.ways.values():
            way.swallow()
        if how == "rst":
            reset(gone)
        gone.socket.close()


class Listener:
    """One port, what is behind it, and the connections through it."""

    def __init__(self, name: str, target: tuple[str, int], seed: str) -> None:
        self.name = name
        self.target = target
        self.seed = seed
        self.welcome = "forward"
        self.dice = random.Random(f"{seed}/{name}")
        self.open: dict[int, Connection] = {}
        self.accepted = 0
        self.changed = Signal()
        """A connection has come."""
        self.bytes = {"up": 0, "down": 0}
        self._rules: dict[str, Any] = {}

    def keep_rule(self, ways: tuple[str, ...], facts: dict[str, Any], chosen: Chosen) -> None:
        """Have new connections under the same weather."""
        self._rules = {"ways": ways, "facts": facts, "chosen": chosen}

    def forget_rule(self) -> None:
        """New connections have nothing to fear."""
        self._rules = {}

    def apply_rule(self, connection: Connection) -> None:
        """The weather for a connection that was not there when it began."""
        if self._rules and self._rules["chosen"].takes(connection, self.dice):
            for way in self._rules["ways"]:
                half = connection.ways[way]
                half.change(half.weather.changed(self._rules["facts"]))

    async def serve(self, sockets: trio.socket.SocketType) -> None:
        """Accept until cancelled."""
        with sockets:
            async with trio.open_nursery() as nursery:
                while True:
                    accepted, _ = await sockets.accept()
                    stream = trio.SocketStream(accepted)
                    if self.welcome == "reset":
                        reset(stream)
                        accepted.close()
                        continue
                    self.accepted += 1
                    connection = Connection(self, self.accepted, stream)
                    self.open[connection.number] = connection
                    self.apply_rule(connection)
                    self.changed.set()
                    nursery.start_soon(self._run, connection)

    async def _run(self, connection: Connection) -> None:
        try:
            await connection.run()
        finally:
            del self.open[connection.number]
            connection.ended.set()
            for name, way in connection.ways.items():
                self.bytes[name] += way.bytes

    def counts(self) -> dict[str, int]:
        """Connections and bytes so far."""
        return {
            "accepted": self.accepted,
            "open": len(self.open),
            **{
                name: count + sum(one.ways[name].bytes for one in self.open.values())
                for name, count in self.bytes.items()
            },
        }


class Chosen:
    """Which connections are meant: a share of those whose first bytes have something in them."""

    def __init__(self, share: float, only: str) -> None:
        if not 0 <= share <= 1:
            raise ValueError("share is between 0 and 1")
        self.share = share
        self.only = only.encode()

    def takes(self, connection: Connection, dice: random.Random) -> bool:
        """Draw for one connection."""
        if self.only not in connection.head:
            return False
        return self.share == 1 or dice.random() < self.share


class Relay:
    """All listeners of one relay.

    Args:
        seed: Decides everything that is drawn.
        nursery: Where listeners are served; the owner's, cancelled by the owner.
    """

    def __init__(self, nursery: trio.Nursery, seed: int = 0) -> None:
        self.listeners: dict[str, Listener] = {}
        self._nursery = nursery
        self._seed = seed

    async def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        """Do what one command says; the answer to it.

        Raises:
            ValueError, TypeError, KeyError: There is no such command, or not like that.
            OSError: The port is taken.
        """
        facts = dict(command)
        match facts.pop("do"):
            case "listen":
                return {"port": await self.listen(**facts)}
            case "set":
                ways = WAYS[facts.pop("way", "both")]
                listeners, chosen, is_new = self._pick(facts)
                CLEAR.changed(facts)  # refused before anything is changed
                count = 0
                for listener in listeners:
                    for connection in self._matching(listener, chosen):
                        count += 1
                        for way in ways:
                            half = connection.ways[way]
                            half.change(half.weather.changed(facts))
                    if is_new:
                        listener.keep_rule(ways, facts, chosen)
                return {"connections": count}
            case "heal":
                for listener in self._pick(facts)[0]:
                    listener.welcome = "forward"
                    listener.forget_rule()
                    for connection in listener.open.values():
                        for half in connection.ways.values():
                            half.change(CLEAR)
                return {}
            case "cut":
                how, side = facts.pop("how", "rst"), facts.pop("side", "both")
                if how not in ("rst", "fin") or side not in SIDES:
                    raise ValueError(f"how is rst or fin, side is one of {', '.join(SIDES)}")
                listeners, chosen, _ = self._pick(facts)
                cut = [one for each in listeners for one in self._matching(each, chosen)]
                for connection in cut:
                    connection.cut(how, side)
                return {"connections": len(cut)}
            case "welcome":
                how = facts.pop("how")
                if how not in ("forward", "reset"):
                    raise ValueError("how is forward or reset")
                for listener in self._pick(facts)[0]:
                    listener.welcome = how
                return {}
            case "counts":
                return {name: one.counts() for name, one in self.listeners.items()}
            case other:
                raise ValueError(f"there is no command {other!r}")

    async def listen(self, name: str, target: str, port: int = 0) -> int:
        """Listen on loopback; the port."""
        host, _, number = target.rpartition(":")
        listening = trio.socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await listening.bind(("127.0.0.1", port))
        listener = Listener(name, (host, int(number)), str(self._seed))
        self.listeners[name] = listener
        listening.listen(BACKLOG)
        self._nursery.start_soon(listener.serve, listening)
        return int(listening.getsockname()[1])

    def _pick(self, facts: dict[str, Any]) -> tuple[list[Listener], Chosen, bool]:
        """Take out of a command what says which connections are meant."""
        name = facts.pop("listener", None)
        listeners = list(self.listeners.values()) if name is None else [self.listeners[name]]
        chosen = Chosen(facts.pop("share", 1.0), facts.pop("only", ""))
        return listeners, chosen, bool(facts.pop("new", True))

    @staticmethod
    def _matching(listener: Listener, chosen: Chosen) -> Iterator[Connection]:
        for _, connection in sorted(listener.open.items()):
            if chosen.takes(connection, listener.dice):
                yield connection


def reset(stream: trio.SocketStream | None) -> None:
    """Let a connection end with an RST when it is closed."""
    if stream is not None:
        with suppress(OSError):
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)


async def answer_lines(seed: int, commands: trio.abc.ReceiveStream, out: trio.abc.Stream) -> None:
    """Be a relay for whoever writes these lines, until they end."""
    kept = b""
    async with trio.open_nursery() as nursery:
        relay = Relay(nursery, seed)
        async for data in commands:
            kept += data
            while b"\n" in kept:
                line, _, kept = kept.partition(b"\n")
                await out.send_all(json.dumps(await _answer(relay, line)).encode() + b"\n")
            if len(kept) > MAX_COMMAND_BYTES:
                break
        nursery.cancel_scope.cancel()


async def _answer(relay: Relay, line: bytes) -> dict[str, Any]:
    try:
        return {"ok": True, **await relay.obey(json.loads(line))}
    except (ValueError, TypeError, KeyError, OSError) as error:
        return {"ok": False, "error": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Run as a process."""
    parser = argparse.ArgumentParser(description="a bad network, controlled by lines of JSON")
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed

    async def on_standard_streams() -> None:
        commands = trio.lowlevel.FdStream(os.dup(0))
        async with commands, trio.lowlevel.FdStream(answers_only()) as out:
            await answer_lines(seed, commands, out)

    trio.run(on_standard_streams)


if __name__ == "__main__":
    main()
