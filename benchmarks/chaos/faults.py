"""Every fault there is: what it does, what it may cost, and why it cannot be done here.

To add one, write an async context manager that does it and takes it back, and a row in ``FAULTS``.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from benchmarks.chaos import cgroups
from benchmarks.chaos.calls import AGENT, CALLER, OVERTAKEN
from benchmarks.chaos.database import why_no_postgresql
from benchmarks.chaos.schedule import Kind, Planned
from benchmarks.chaos.world import World, limited

MEDIA = "/stream HTTP/1.1"
"""What the first bytes of a media socket have in them."""
Act = Callable[[World, Planned], AbstractAsyncContextManager[int | None]]
"""Does it; may tell how many connections it has met."""
BOTH = frozenset({CALLER, AGENT, OVERTAKEN})


@dataclass(frozen=True, slots=True)
class Excuse:
    """What may happen because of a fault, from its beginning to so long after its end."""

    grace_s: float = 5.0
    loses: frozenset[str] = frozenset()
    """Directions in which audio may be lost: what was under way in a connection that is cut."""
    ends: str = ""
    """Whose calls may end: ``line`` for those whose carrier is never told that the line is lost,
    ``unasked`` for those whose carrier asked how they go on and has reached nobody, however often
    it tried, ``young`` for these and those of which nothing could have been kept yet."""
    is_deaf: bool = False
    """Whether nothing may answer: probes and webhooks."""
    is_unready: bool = False
    """Whether new calls may be refused."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the table."""

    kind: Kind
    title: str
    act: Act
    excuse: Excuse = field(default_factory=Excuse)
    why_not: Callable[[World], str] = lambda world: ""
    """Why it cannot be done here; empty if it can."""


async def ask_relay(world: World, do: str, **facts: Any) -> dict[str, Any]:
    """Tell the relay something, without holding up who else is waiting."""
    return await trio.to_thread.run_sync(partial(world.relay.ask, do, **facts))


# --- The network ----------------------------------------------------------------------------------


def weather(listener: str, **facts: Any) -> Act:
    """One of the lines is bad for a while, connections that begin meanwhile too."""

    @asynccontextmanager
    async def act(world: World, planned: Planned) -> AsyncGenerator[None]:
        await ask_relay(world, "set", listener=listener, **facts, **planned.facts)
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await ask_relay(world, "heal", listener=listener)

    return act


def cut(*listeners: str, only: str = "", side: str = "both", welcome: bool = True) -> Act:
    """Connections are closed; new ones are taken, or reset as long as it lasts."""

    @asynccontextmanager
    async def act(world: World, planned: Planned) -> AsyncGenerator[int]:
        count = 0
        for listener in listeners:
            if not welcome:
                await ask_relay(world, "welcome", listener=listener, how="reset")
            answer = await ask_relay(
                world, "cut", listener=listener, only=only, side=side, **planned.facts
            )
            count += answer["connections"]
        try:
            yield count
        finally:
            with trio.CancelScope(shield=True):
                for listener in listeners:
                    await ask_relay(world, "welcome", listener=listener, how="forward")

    return act


# --- The process ----------------------------------------------------------------------------------


@contextmanager
def _sigstopped(pids: list[int]) -> Generator[None]:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def pause(world: World, planned: Planned) -> AsyncGenerator[None]:
    """SIGSTOP to all of the server, or to one of its workers."""
    pids = [world.victim] if planned.facts["whom"] == "one" else world.pids
    with _sigstopped(pids):
        yield


@asynccontextmanager
async def freeze(world: World, planned: Planned) -> AsyncGenerator[None]:
    """The freezer, as a container is paused with."""
    with cgroups.frozen(world.pids):
        yield


@asynccontextmanager
async def starve(world: World, planned: Planned) -> AsyncGenerator[None]:
    """A quota of CPU that is not enough."""
    with cgroups.starved(world.pids, planned.facts["share"]):
        yield


@asynccontextmanager
async def full_disk(world: World, planned: Planned) -> AsyncGenerator[None]:
    """No room for recordings, and for SQLite."""
    with world.full_disk():
        yield


@asynccontextmanager
async def unread_log(world: World, planned: Planned) -> AsyncGenerator[None]:
    """Nobody reads what the server writes, and strangers give it much to write."""
    with world.log.unread():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_knock, world.port, 200)
            yield
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def few_descriptors(world: World, planned: Planned) -> AsyncGenerator[None]:
    """Hardly any more descriptors than there are."""
    with limited(world.worker_pids, "NOFILE", more=planned.facts["more"]):
        yield


@asynccontextmanager
async def little_memory(world: World, planned: Planned) -> AsyncGenerator[None]:
    """Hardly any more memory than there is."""
    with limited(world.worker_pids, "AS", more=planned.facts["more_mib"] * 2**20):
        yield


@asynccontextmanager
async def kill_worker(world: World, planned: Planned) -> AsyncGenerator[None]:
    """One worker is gone at once."""
    with suppress(ProcessLookupError):
        os.kill(world.victim, signal.SIGKILL)
    yield


# --- The database ---------------------------------------------------------------------------------


@asynccontextmanager
async def database_down(world: World, planned: Planned) -> AsyncGenerator[None]:
    """It is stopped, and started again when it is over."""
    database = world.database
    assert database is not None
    await trio.to_thread.run_sync(database.stop, planned.facts["mode"])
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(database.start)


@asynccontextmanager
async def database_stopped(world: World, planned: Planned) -> AsyncGenerator[None]:
    """SIGSTOP to all of it."""
    assert world.database is not None
    with _sigstopped(world.database.pids):
        yield


@asynccontextmanager
async def database_locked(world: World, planned: Planned) -> AsyncGenerator[None]:
    """Somebody else holds the table."""
    assert world.database is not None
    locked = world.database.locked("offhook_calls")
    await trio.to_thread.run_sync(locked.__enter__)
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(locked.__exit__, None, None, None)


@asynccontextmanager
async def database_killed(world: World, planned: Planned) -> AsyncGenerator[None]:
    """Its connections are ended."""
    assert world.database is not None
    await trio.to_thread.run_sync(world.database.kill_connections)
    yield


# --- Too many -------------------------------------------------------------------------------------


@asynccontextmanager
async def burst(world: World, planned: Planned) -> AsyncGenerator[None]:
    """So many people call in at once."""
    count = planned.facts["calls"]
    await trio.to_thread.run_sync(partial(world.doubles.ask, "ring", calls=count))
    yield


@asynccontextmanager
async def strangers(world: World, planned: Planned) -> AsyncGenerator[None]:
    """So many connections of nobody's, which say nothing or nonsense."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_knock, world.port, planned.facts["count"])
        yield
        nursery.cancel_scope.cancel()


NONSENSE = (
    b"",
    b"GET",
    b"\x16\x03\x01\x02\x00\x01\xfc\x03",
    b"GET /calls HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /twiml HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nCallSid=x",
    b"GET /stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n",
)


async def _knock(port: int, count: int) -> None:
    async def knock(number: int) -> None:
        with suppress(OSError, trio.BrokenResourceError):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            async with stream:
                await stream.send_all(NONSENSE[number % len(NONSENSE)])
                while await stream.receive_some(4096):
                    pass

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(knock, number)
            await trio.sleep(0.002)


# --- The table ------------------------------------------------------------------------------------


def _no_freezer(world: World) -> str:
    return cgroups.why_not("freezer")


def _no_quota(world: World) -> str:
    return cgroups.why_not("cpu")


def _no_database(world: World) -> str:
    return why_no_postgresql() or ("" if world.database else "records are in SQLite")


def _one_process(world: World) -> str:
    return "" if world.workers > 1 else "there is one process only (--workers 2)"


_LOSES = Excuse(loses=BOTH, grace_s=8.0)
# What a model says to a process that stands is not heard if another has the call meanwhile.
_STOPS = Excuse(loses=frozenset({OVERTAKEN}), is_deaf=True, is_unready=True)
_SHARE: Mapping[str, Any] = {"share": (0.2, 1.0)}
_HOW: Mapping[str, Any] = {"how": ("rst", "fin")}

FAULTS: tuple[Fault, ...] = (
    Fault(
        Kind("carrier-jitter", (3.0, 10.0)),
        "80 ms, jitter 20 ms, 1 % loss, both ways, carrier",
        weather("carrier", delay_s=0.08, jitter_s=0.02, loss=0.01),
    ),
    Fault(
        Kind("model-jitter", (3.0, 10.0)),
        "80 ms, jitter 20 ms, 1 % loss, both ways, model",
        weather("model", delay_s=0.08, jitter_s=0.02, loss=0.01),
    ),
    Fault(
        Kind("carrier-silent", (0.5, 3.0), _SHARE),
        "nothing passes between carrier and us",
        weather("carrier", is_held=True),
        Excuse(loses=BOTH, is_unready=True, grace_s=8.0),
    ),
    Fault(
        Kind("model-silent", (0.5, 4.0), _SHARE),
        "nothing passes between us and the model",
        weather("model", is_held=True),
        Excuse(loses=BOTH, is_unready=True, grace_s=8.0),
    ),
    Fault(
        Kind("media-cut", (0.0, 0.0), {**_HOW, **_SHARE}),
        "media sockets are cut",
        cut("carrier", only=MEDIA),
        _LOSES,
    ),
    Fault(
        Kind("media-half-open", (0.0, 0.0), {"share": (0.1, 0.3)}),
        "the carrier's side of media sockets is reset, ours hears nothing",
        cut("carrier", only=MEDIA, side="client"),
        _LOSES,
    ),
    Fault(
        Kind("media-lost-by-us", (0.0, 0.0), {"share": (0.1, 0.2)}),
        "our side of media sockets is reset, the carrier's hears nothing",
        cut("carrier", only=MEDIA, side="target"),
        Excuse(loses=BOTH, ends="line", grace_s=15.0),
    ),
    Fault(
        Kind("carrier-resets", (0.5, 2.0)),
        "connections of the carrier's are reset, the new ones too",
        cut("carrier", welcome=False),
        Excuse(loses=BOTH, is_unready=True, is_deaf=True, ends="unasked", grace_s=10.0),
    ),
    Fault(
        Kind("carrier-reads-slowly", (1.0, 4.0)),
        "the carrier takes 6 kB/s of each call",
        weather("carrier", way="down", bytes_per_s=6_000.0, buffer_bytes=4_096),
    ),
    Fault(
        Kind("rest-silent", (1.0, 4.0)),
        "the carrier's REST API is silent",
        weather("rest", is_held=True),
        Excuse(is_unready=True),
    ),
    Fault(
        Kind("model-cut", (0.0, 0.0), {**_HOW, **_SHARE}),
        "connections to the model are cut",
        cut("model"),
        _LOSES,
    ),
    Fault(
        Kind("model-half-open", (0.0, 0.0), {"share": (0.1, 0.5)}),
        "the model's side is reset, ours hears nothing",
        cut("model", side="target"),
        Excuse(loses=BOTH, grace_s=30.0),
    ),
    Fault(
        Kind("model-resets", (0.5, 3.0)),
        "connections to the model are reset, the new ones too",
        cut("model", welcome=False),
        Excuse(loses=BOTH, is_unready=True, grace_s=8.0),
    ),
    Fault(
        Kind("model-drips", (2.0, 5.0)),
        "the model's audio comes slower than speech",
        weather("model", way="down", bytes_per_s=45_000.0, buffer_bytes=65_536),
    ),
    Fault(
        Kind("both-cut", (0.0, 0.0), _SHARE),
        "media sockets and connections to the model are cut",
        cut("carrier", "model", only="GET /"),
        Excuse(loses=BOTH, is_unready=True, is_deaf=True, grace_s=8.0),
    ),
    Fault(
        Kind("pause", (0.3, 8.0), {"whom": ("all", "one")}),
        "SIGSTOP",
        pause,
        _STOPS,
    ),
    Fault(Kind("freeze", (0.3, 6.0)), "the freezer", freeze, _STOPS, _no_freezer),
    Fault(
        Kind("starve", (2.0, 8.0), {"share": (0.03, 0.15)}),
        "a quota of CPU that is not enough",
        starve,
        Excuse(is_deaf=True, is_unready=True, grace_s=8.0),
        _no_quota,
    ),
    Fault(Kind("full-disk", (2.0, 6.0)), "the disk is full", full_disk),
    Fault(Kind("unread-log", (3.0, 8.0)), "nobody reads stdout and stderr", unread_log),
    Fault(
        Kind("few-descriptors", (2.0, 5.0), {"more": (5, 40)}),
        "hardly any descriptors left",
        few_descriptors,
        Excuse(is_unready=True),
    ),
    Fault(
        Kind("little-memory", (2.0, 5.0), {"more_mib": (16, 64)}),
        "hardly any memory left",
        little_memory,
        Excuse(is_unready=True),
    ),
    Fault(
        Kind("kill-worker", (0.0, 0.0)),
        "kill -9 of one worker",
        kill_worker,
        # The carrier gives up a question after 15 s: so late it may be that nobody has answered.
        Excuse(loses=BOTH, ends="young", is_unready=True, is_deaf=True, grace_s=20.0),
        _one_process,
    ),
    Fault(
        Kind("database-down", (1.0, 5.0), {"mode": ("fast", "immediate")}),
        "the database is stopped",
        database_down,
        why_not=_no_database,
    ),
    Fault(
        Kind("database-stopped", (1.0, 8.0)),
        "SIGSTOP to the database",
        database_stopped,
        why_not=_no_database,
    ),
    Fault(
        Kind("database-locked", (1.0, 8.0)),
        "somebody else holds the table",
        database_locked,
        why_not=_no_database,
    ),
    Fault(
        Kind("database-killed", (0.0, 0.0)),
        "the database's connections are ended",
        database_killed,
        why_not=_no_database,
    ),
    Fault(
        Kind("database-silent", (1.0, 8.0)),
        "nothing passes between us and the database",
        weather("database", is_held=True),
        why_not=_no_database,
    ),
    Fault(
        Kind("burst", (0.0, 0.0), {"calls": (20, 60)}),
        "calls that come in all at once",
        burst,
        Excuse(is_unready=True),
    ),
    Fault(
        Kind("strangers", (1.0, 4.0), {"count": (100, 300)}),
        "connections of nobody's",
        strangers,
    ),
)
BY_NAME = {fault.kind.name: fault for fault in FAULTS}
