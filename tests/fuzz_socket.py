"""Throw hostile bytes at a real server over real TCP, with calls beside it that must not notice.

    python -m tests.fuzz_server socket                        a minute, 5 calls beside it
    python -m tests.fuzz_socket --inputs 1000000              so many inputs
    python -m tests.fuzz_socket --server hypercorn --workers 2 --tls --media-path ordinary
    python -m tests.fuzz_socket --seed 7 --only 1234          one connection again
    python -m tests.fuzz_socket --killers                     each known one, on a new server

The server is a process of its own, started as in production. Some connections at a time say what
:mod:`tests.support.socket_inputs` makes of their numbers: requests, bodies, upgrades, frames,
HTTP/2, TLS and other look-alikes, cut anywhere, and torn down in every way. Meanwhile the server
must answer ``/healthz``, and its calls are recognised frame by frame (``benchmarks/load``).
Afterwards it and
its workers are the same processes, have as many descriptors open as before, and have written
neither a traceback nor more lines a second than strangers are allowed.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import itertools
import os
import re
import secrets
import socket
import ssl
import struct
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

from benchmarks import processes
from benchmarks.hostile import FLOOR_MS, WAYS, Outcome, watched_window
from benchmarks.load.killers import KILLERS
from benchmarks.point import (
    LOG,
    READY_TIMEOUT_S,
    Held,
    PointFailed,
    ServerKind,
    run_point,
    started,
    wait_ready,
)
from benchmarks.ports import free_port
from tests.support.socket_inputs import (
    HALF_CLOSE,
    LEAVE,
    RESET,
    STAY,
    Conversation,
    Part,
    named,
    numbered,
)

HOST = "127.0.0.1"
CONNECTIONS = 12
"""At once: a handful, so that what is tried is what they say, not how many they are."""
STAYING = 40
"""Connections that are left open at once, to see that the server closes them."""
SEND_S = 2.0
"""The server may leave unread what it does not want; then nothing more is said."""
LEAVE_S = 0.05
"""A last answer is waited for so long."""
HEALTH_EVERY_S = 0.5
HEALTH_TIMEOUT_S = 30.0
LOOK_EVERY_S = 0.1
DYING_S = 5.0
"""Between two looks at the server's processes."""
LIFE_S = 30.0
"""No socket lives longer without a ticket, whatever it says: 10 s for a body or a ``start``, 5 s
for a head before that and 5 s of idling after it; and a server needs no longer for the last one."""
LINES_PER_S = 10.0
"""Log lines a second and process that strangers may cause, over the whole run."""
LINES_AT_ONCE = 60
"""The same at the beginning, when each kind of line is logged for the first time."""
GROWN_KIB = 32 * 1024
"""More memory than this kept after the second half of the inputs is a leak."""
WINDOW_S = 5.0
TIMEOUT_S = 24 * 3_600.0
SUSPECTS = 4 * CONNECTIONS
"""So many of the last connections are tried one by one when the server has died."""
READY = '"event": "offhook ready"'
READY_MESSAGE_BYTES = 4_096
TRACEBACK = re.compile(r"Traceback \(most recent call last\)|by a bug of ours")


# ------------------------------------------------------------------------------------------
# Servers


def server_kind(
    command: str = "python", *, workers: int = 1, media_path: str = "fast", tls: bool = False
) -> ServerKind:
    """A way to serve.

    Args:
        command: ``"python"`` for ``python -m server``, or ``"hypercorn"``.
        workers: How many processes.
        media_path: The setting ``MEDIA_PATH``.
        tls: Whether the server itself ends TLS; only hypercorn's command can.

    Raises:
        ValueError: That combination is none.
    """
    name = " ".join([command, media_path, *([f"{workers} workers"] if workers > 1 else [])])
    environment = {"MEDIA_PATH": media_path, "LOG_JSON": "true"}
    if command == "python":
        if tls:
            raise ValueError("python -m server ends no TLS")
        some = ("--workers", str(workers)) if workers > 1 else ()
        return ServerKind(name, "server", environment, arguments=some)
    if command != "hypercorn":
        raise ValueError(f"no such command: {command}")
    arguments = ["-c", f"{processes.ROOT}/server/hypercorn.toml", "-b", HOST + ":{port}"]
    if workers > 1:
        arguments += ["-w", str(workers)]
    if tls:
        arguments += ["--certfile", "{directory}/server.pem", "--keyfile", "{directory}/server.pem"]
    return ServerKind(
        name + " TLS" * tls,
        "hypercorn",
        environment,
        arguments=(*arguments, "server.asgi:app"),
        ends_tls=tls,
    )


@dataclass(frozen=True, slots=True)
class Victim:
    """A server that runs."""

    kind: ServerKind
    port: int
    pid: int
    log: Path
    trust: ssl.SSLContext | None
    held: Held | None = None
    """Its calls, if it has any."""

    def members(self) -> list[int]:
        """Its processes that are alive."""
        return sorted(member for member in processes.family(self.pid) if _is_alive(member))

    def descriptors(self) -> dict[int, int]:
        """How many each of its processes has open."""
        counts = {}
        for member in self.members():
            with contextlib.suppress(OSError):
                counts[member] = len(os.listdir(f"/proc/{member}/fd"))  # noqa: PTH208
        return counts

    def answers(self) -> bool:
        """Whether it answers ``/healthz``, over a connection of its own."""
        try:
            with socket.create_connection((HOST, self.port), HEALTH_TIMEOUT_S) as plain:
                secured = (
                    self.trust.wrap_socket(plain, server_hostname=HOST) if self.trust else plain
                )
                with secured:
                    secured.sendall(
                        b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
                    )
                    return secured.recv(15).startswith(b"HTTP/1.1 200")
        except OSError:
            return False


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


@contextlib.contextmanager
def serving(kind: ServerKind, **settings: str) -> Generator[Victim]:
    """A server without calls, in a process of its own, with the simulators.

    Args:
        kind: How it serves.
        settings: Environment variables in lower case.

    Raises:
        PointFailed: It did not start.
    """
    with (
        tempfile.TemporaryDirectory(prefix="offhook-fuzz-") as name,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        directory, port = Path(name), free_port()
        manager.bind(str(directory / "notify"))
        manager.settimeout(READY_TIMEOUT_S)
        url = kind.url(port)
        environment = {
            "HOST": HOST,
            "PORT": str(port),
            "PUBLIC_URL": url,
            "API_KEY": secrets.token_hex(16),
            "DATABASE_URL": "sqlite://",
            "DRAIN_TIMEOUT_S": "0",
            "NOTIFY_SOCKET": manager.getsockname(),
            **kind.environment,
            **{setting.upper(): value for setting, value in settings.items()},
        }
        with started(kind, directory, port, environment) as server:
            wait_ready(url, server.process, server.trust)
            wait_all_ready(kind, server.log)
            if kind.module == "server":  # its parent opens more after its processes are ready
                manager.recv(READY_MESSAGE_BYTES)
            yield Victim(kind, port, server.process.pid, server.log, server.trust)


def wait_all_ready(kind: ServerKind, log: Path) -> None:
    """Wait until each of a server's processes has said that it is ready: one may answer sooner.

    Raises:
        PointFailed: One of them is not.
    """
    deadline = time.monotonic() + READY_TIMEOUT_S
    while (ready := log.read_text(errors="replace").count(READY)) < _workers_of(kind):
        if time.monotonic() > deadline:
            raise PointFailed(f"{ready} of {_workers_of(kind)} processes are ready")
        time.sleep(0.1)


def _workers_of(kind: ServerKind) -> int:
    for name, value in itertools.pairwise(kind.arguments):
        if name in ("-w", "--workers"):
            return int(value)
    return 1


# ------------------------------------------------------------------------------------------
# What is found


@dataclass
class Report:
    """What was tried, and what came of it."""

    kind: ServerKind
    seed: int = 0
    connections: int = 0
    inputs: int = 0
    sent_bytes: int = 0
    took_s: float = 0.0
    said: Counter[str] = field(default_factory=Counter)
    """Inputs by their kinds."""
    endings: Counter[str] = field(default_factory=Counter)
    """Connections by what the server last said, and how they ended."""
    longest_life_s: float = 0.0
    """Of a connection that was left open."""
    slowest_health_s: float = 0.0
    lines: int = 0
    """In the log."""
    grown_kib: int = 0
    kept_kib: int = 0
    """After the second half of the inputs."""
    findings: list[str] = field(default_factory=list)
    """What must not be; empty is well."""
    suspects: list[int] = field(default_factory=list)
    """The last connections before the server died."""
    quiet_ms: dict[str, float] = field(default_factory=dict)
    fuzzed_ms: dict[str, float] = field(default_factory=dict)
    lost_ms: float = 0.0
    doubled_ms: float = 0.0
    calls_lost: int = 0
    frames: int = 0
    """Frames of callers' audio that were recognised at the model."""
    windows: int = 0
    calls: int = 0

    @property
    def calls_unharmed(self) -> bool:
        """Whether no call has ended, or has lost or doubled any audio."""
        return not self.lost_ms + self.doubled_ms + self.calls_lost

    @property
    def calls_in_time(self) -> bool:
        """Whether their 99th percentiles stayed within twice the quiet ones, or a millisecond."""
        return all(
            self.fuzzed_ms[way] <= max(2 * self.quiet_ms[way], FLOOR_MS) for way in self.fuzzed_ms
        )

    def find(self, what: str) -> None:
        """Note what must not be."""
        if what not in self.findings:
            self.findings.append(what)

    def words(self) -> str:
        """All of it, for people."""
        lines = [
            f"{self.kind.name}, seed {self.seed}: {self.inputs:,} inputs over {self.connections:,} "
            f"connections in {self.took_s:.0f} s, {self.sent_bytes / 2**20:,.1f} MiB",
            "said: " + ", ".join(f"{kind} {count:,}" for kind, count in self.said.most_common()),
            "ended: "
            + ", ".join(f"{how} {count:,}" for how, count in self.endings.most_common(12)),
            f"open for {self.longest_life_s:.1f} s at most; /healthz answered in "
            f"{self.slowest_health_s * 1000:.0f} ms at most; {self.lines:,} log lines; memory grew "
            f"by {self.grown_kib:,} KiB, {self.kept_kib:,} of it in the second half",
        ]
        if self.calls:
            ways = ", ".join(
                f"{name} {self.quiet_ms[name]:.2f} -> {self.fuzzed_ms.get(name, 0.0):.2f} ms"
                for name in self.quiet_ms
            )
            lines.append(
                f"{self.calls} calls beside it, {self.frames:,} frames: {self.calls_lost} ended, "
                f"{self.lost_ms:.0f} ms lost, {self.doubled_ms:.0f} ms doubled; p99 {ways} "
                f"(median of {self.windows} windows)"
                + ("" if self.calls_in_time else ", MORE than twice the quiet or 1 ms")
            )
        return "\n".join(lines + [f"FOUND: {what}" for what in self.findings])


class Died(Exception):
    """The server is not what it was: nothing more can be learned from it."""


# ------------------------------------------------------------------------------------------
# Delivery


class Fuzzer:
    """Says conversations to one server, some at a time.

    Args:
        victim: The server.
        conversations: Their numbers, and what they say.
        report: Where it is noted.
        longest_s: No more are begun after that.
        inputs: The same after so many inputs.
        per_s: Connections a second at most; 0 for as many as there can be.
    """

    def __init__(
        self,
        victim: Victim,
        conversations: Iterable[tuple[int, Conversation]],
        report: Report,
        *,
        longest_s: float = float("inf"),
        inputs: float = float("inf"),
        per_s: float = 0.0,
    ) -> None:
        self.victim = victim
        self.report = report
        self._conversations: Iterator[tuple[int, Conversation]] = iter(conversations)
        self._longest_s = longest_s
        self._inputs = inputs
        self._interval_s = 1.0 / per_s if per_s else 0.0
        self._recent: deque[int] = deque(maxlen=SUSPECTS)
        self._staying = 0
        self._next_at = 0.0
        self._members = victim.members()
        self._half_kib: int | None = None
        self._contexts = {protocol: self._context(protocol) for protocol in ("http/1.1", "h2", "")}

    def _context(self, protocol: str) -> ssl.SSLContext | None:
        if self.victim.trust is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if protocol:
            context.set_alpn_protocols([protocol])
        return context

    async def run(self) -> None:
        """Until everything is said, or the server has died."""
        began = self._began = trio.current_time()
        try:
            async with trio.open_nursery() as watching:
                watching.start_soon(self._watch)
                watching.start_soon(self._ask_health)
                async with trio.open_nursery() as nursery:
                    for _ in range(CONNECTIONS):
                        nursery.start_soon(self._say_some, nursery)
                watching.cancel_scope.cancel()
                if self._half_kib is not None:
                    report = self.report
                    report.kept_kib = processes.resident_kib(self.victim.pid) - self._half_kib
                    if report.kept_kib > GROWN_KIB:
                        report.find(f"{report.kept_kib:,} KiB kept after the second half")
        except* Died as group:
            self.report.find(str(next(_leaves(group))))
            self.report.suspects = list(dict.fromkeys(reversed(self._recent)))
        self.report.took_s = trio.current_time() - began

    async def _say_some(self, nursery: trio.Nursery) -> None:
        """One connection after another."""
        while (
            trio.current_time() - self._began < self._longest_s
            and self.report.inputs < self._inputs
        ):
            following = next(self._conversations, None)
            if following is None:
                return
            await self._wait_turn()
            number, conversation = following
            self._recent.append(number)
            stream = await self._connect()
            if stream is None:
                continue
            self.report.connections += 1
            staying = conversation.ending == STAY and self._staying < STAYING
            try:
                secured = await self._secure(stream, conversation)
                if secured is None:
                    continue
                last = await self._say(secured, conversation.parts)
                if staying and last is not None:
                    self._staying += 1
                    nursery.start_soon(self._stay, number, stream, secured)
                    stream = None
                    continue
                await self._end(stream, conversation.ending)
            finally:
                if stream is not None:
                    stream.socket.close()

    async def _wait_turn(self) -> None:
        if self._interval_s:
            mine = max(self._next_at, trio.current_time() - 1.0)
            self._next_at = mine + self._interval_s
            await trio.sleep_until(mine)

    async def _connect(self) -> trio.SocketStream | None:
        plain = trio.socket.socket()
        try:
            with trio.fail_after(HEALTH_TIMEOUT_S):
                await plain.connect((HOST, self.victim.port))
        except (OSError, trio.TooSlowError) as error:
            plain.close()
            if isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL:
                await trio.sleep(0.5)  # every port is in TIME_WAIT: ours, not the server's
                return None
            self._look()
            self.report.endings[f"no connection: {type(error).__name__}"] += 1
            await trio.sleep(LOOK_EVERY_S)
            return None
        return trio.SocketStream(plain)

    async def _secure(
        self, stream: trio.SocketStream, conversation: Conversation
    ) -> trio.abc.Stream | None:
        """TLS, where the server wants it and the conversation does; None where that failed."""
        context = self._contexts.get(conversation.tls)
        if context is None:
            return stream
        secured = trio.SSLStream(stream, context, server_hostname=HOST, https_compatible=True)
        try:
            with trio.fail_after(SEND_S):
                await secured.do_handshake()
        except (trio.BrokenResourceError, trio.TooSlowError, ssl.SSLError):
            self.report.endings["no TLS"] += 1
            return None
        return secured

    async def _say(self, stream: trio.abc.Stream, parts: Iterable[Part]) -> bytes | None:
        """Every part, until the server closes; the value is what it said last, None if it has."""
        heard: bytes | None = b""
        answer = b""
        for part in parts:
            try:
                with trio.fail_after(SEND_S):
                    for piece in part.pieces:
                        await stream.send_all(piece)
                        if part.pause_s:
                            await trio.sleep(part.pause_s)
            except (trio.BrokenResourceError, trio.TooSlowError):
                heard = None
            else:
                self.report.inputs += 1
                self.report.said[part.kind] += 1
                self.report.sent_bytes += sum(map(len, part.pieces))
                heard = await _hear(stream, part.listen_s) if part.listen_s else b""
            if heard is None:
                break
            answer = _later(answer, heard)
        if heard is not None and (more := await _hear(stream, LEAVE_S)):
            answer = _later(answer, more)
        self.report.endings[_ending(answer, closed=heard is None)] += 1
        return None if heard is None else answer

    async def _end(self, stream: trio.SocketStream, ending: str) -> None:
        if ending == RESET:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif ending == HALF_CLOSE:
            with contextlib.suppress(OSError, trio.BrokenResourceError):
                await stream.send_eof()
                with trio.move_on_after(LEAVE_S):
                    while await stream.receive_some():
                        pass

    async def _stay(self, number: int, stream: trio.SocketStream, secured: trio.abc.Stream) -> None:
        """Leave a connection open, and read what comes, until the server closes it."""
        began = trio.current_time()
        try:
            with trio.move_on_after(LIFE_S) as patience:
                while await _hear(secured, LIFE_S) is not None:
                    pass
            life_s = trio.current_time() - began
            self.report.longest_life_s = max(self.report.longest_life_s, life_s)
            if patience.cancelled_caught:
                self.report.find(f"connection {number} is still open after {LIFE_S:g} s")
        finally:
            self._staying -= 1
            stream.socket.close()

    # -- what the server does meanwhile ----------------------------------------------------

    async def _watch(self) -> None:
        while True:
            self._look()
            passed_s = trio.current_time() - self._began
            if self._half_kib is None and (
                self.report.inputs * 2 >= self._inputs or passed_s * 2 >= self._longest_s
            ):
                self._half_kib = processes.resident_kib(self.victim.pid)
            await trio.sleep(LOOK_EVERY_S)

    def _look(self) -> None:
        """Raise Died if any process of the server's has ended."""
        if gone := set(self._members) - set(self.victim.members()):
            if self.victim.pid in gone:
                raise Died("the server died")
            raise Died("a worker died")

    async def _ask_health(self) -> None:
        while True:
            asked_at = trio.current_time()
            if not await trio.to_thread.run_sync(self.victim.answers):
                with trio.move_on_after(DYING_S):  # who is dying is there for a moment longer
                    while True:
                        self._look()
                        await trio.sleep(LOOK_EVERY_S / 10)
                raise Died(f"/healthz was not answered in {HEALTH_TIMEOUT_S:g} s")
            took_s = trio.current_time() - asked_at
            self.report.slowest_health_s = max(self.report.slowest_health_s, took_s)
            await trio.sleep(HEALTH_EVERY_S)


def _leaves(group: BaseExceptionGroup[Exception]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def _hear(stream: trio.abc.Stream, longest_s: float) -> bytes | None:
    """What the server says within this time, or nothing; None when it has closed."""
    with trio.move_on_after(longest_s):
        try:
            return bytes(await stream.receive_some(65_536)) or None
        except trio.BrokenResourceError:
            return None
    return b""


def _later(answer: bytes, heard: bytes) -> bytes:
    """The one of two reads that says more about how it ends: the rest of a body says nothing."""
    return heard if not answer or heard.startswith((b"HTTP/1.1 ", b"\x88")) else answer


def _ending(answer: bytes, *, closed: bool) -> str:
    how = ", closed" if closed else ""
    if answer.startswith(b"HTTP/1.1 "):
        return answer[9:12].decode("latin-1") + how
    if answer[:1] == b"\x88":
        code = int.from_bytes(answer[2:4], "big")
        return f"close {code}{how}"
    if not answer:
        return "closed" if closed else "no answer"
    return f"something else{how}"


# ------------------------------------------------------------------------------------------
# Judgement


MAX_LOOKS = 100


@contextlib.contextmanager
def judged(victim: Victim, report: Report) -> Generator[None]:
    """Look at a server before and after the block; what is wrong then goes into the report."""
    members, descriptors = victim.members(), _settled_descriptors(victim)
    log_bytes, began = victim.log.stat().st_size, time.monotonic()
    before_kib = processes.resident_kib(victim.pid)
    yield
    if victim.members() != members:
        report.find(f"processes were {members} and are {victim.members()}")
        _judge_log(victim, report, log_bytes, began, len(members))
        return
    if not victim.answers():
        report.find("/healthz is not answered afterwards")
    deadline = time.monotonic() + LIFE_S + 5.0
    while any(count > descriptors[member] for member, count in victim.descriptors().items()):
        if time.monotonic() > deadline:
            report.find(f"descriptors were {descriptors} and are {victim.descriptors()}")
            break
        time.sleep(0.05)
    report.grown_kib = processes.resident_kib(victim.pid) - before_kib
    _judge_log(victim, report, log_bytes, began, len(members))


def _settled_descriptors(victim: Victim) -> dict[int, int]:
    """As many as there are for a while: an answer of ours may still be open."""
    looks = [victim.descriptors()]
    while len(looks) < MAX_LOOKS and (
        len(looks) < 5 or any(look != looks[-1] for look in looks[-5:])
    ):
        time.sleep(0.1)
        looks.append(victim.descriptors())
    return looks[-1]


def _judge_log(
    victim: Victim, report: Report, offset: int, began: float, processes_count: int
) -> None:
    with victim.log.open("rb") as log:
        log.seek(offset)
        text = log.read().decode(errors="replace")
    lines = text.splitlines()
    report.lines = len(lines)
    allowed = (LINES_AT_ONCE + LINES_PER_S * (time.monotonic() - began)) * processes_count
    if len(lines) > allowed:
        report.find(f"{len(lines)} log lines, {allowed:.0f} may be")
    if found := [line for line in lines if TRACEBACK.search(line)]:
        report.find(f"{len(found)} tracebacks, the first: {found[0][:4_000]}")


def fuzz(
    victim: Victim,
    *,
    seed: int,
    inputs: float = float("inf"),
    longest_s: float = float("inf"),
    connections: int | None = None,
    first: int = 0,
    per_s: float = 0.0,
    window_s: float = WINDOW_S,
) -> Report:
    """Fuzz a server that runs, from the connection with this number on, and judge it.

    Args:
        victim: The server.
        seed, first: Decide what the connections say.
        inputs, longest_s, connections: When to end, whichever comes first.
        per_s: See :class:`Fuzzer`.
        window_s: Its calls are measured for so long before, and then again and again.
    """
    report = Report(victim.kind, seed)
    numbers = range(first, first + connections if connections is not None else sys.maxsize)
    fuzzer = Fuzzer(
        victim,
        ((number, numbered(seed, number)) for number in numbers),
        report,
        longest_s=longest_s,
        inputs=inputs,
        per_s=per_s,
    )
    with judged(victim, report):
        if victim.held is None:
            trio.run(fuzzer.run)
        else:
            trio.run(_fuzz_beside_calls, fuzzer, victim.held, report, window_s)
    return report


async def _fuzz_beside_calls(fuzzer: Fuzzer, held: Held, report: Report, window_s: float) -> None:
    """Fuzz while the calls are watched, window by window."""
    quiet = await trio.to_thread.run_sync(watched_window, held, window_s)
    if quiet["calls_lost"]:
        raise PointFailed(f"calls ended before anything was said: {quiet['why_lost']}")
    is_over = False
    windows: list[dict[str, Any]] = []

    async def watch_calls() -> None:
        while not is_over:
            windows.append(await trio.to_thread.run_sync(watched_window, held, window_s))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_calls)
        await fuzzer.run()
        is_over = True
    last = await trio.to_thread.run_sync(watched_window, held, 0.1)
    report.calls, report.windows = len(held.call_sids), len(windows)
    report.quiet_ms = {name: Outcome.p99_ms([quiet], way) for name, way in WAYS.items()}
    report.fuzzed_ms = {name: Outcome.p99_ms(windows, way) for name, way in WAYS.items()}
    report.frames = sum(window["frames"] for window in windows)
    report.lost_ms = last["lost_ms"] - quiet["lost_ms"]
    report.doubled_ms = last["doubled_ms"] - quiet["doubled_ms"]
    report.calls_lost = last["calls_lost"] - quiet["calls_lost"]
    if not report.calls_unharmed:
        report.find(
            f"calls were harmed: {report.calls_lost} ended, {report.lost_ms:.0f} ms lost, "
            f"{report.doubled_ms:.0f} ms doubled"
        )


def fuzz_beside_calls(
    kind: ServerKind,
    *,
    calls: int,
    warm_s: float = 5.0,
    realtime: bool = False,
    gives_way: bool = False,
    settings: Mapping[str, str] | None = None,
    **bounds: Any,
) -> Report:
    """Start a server whose calls talk, fuzz it, and judge it and them.

    Args:
        kind: How it serves.
        calls: How many talk.
        warm_s: For how long they have talked before.
        realtime: See :func:`benchmarks.processes.running`.
        gives_way: Have this process give way to others from then on: to the one whose clock the
            calls are measured with, above all.
        settings: Environment variables of the server that shall not have their defaults.
        bounds: See :func:`fuzz`.

    Raises:
        PointFailed: The server or the calls did not begin.
    """
    reports: list[Report] = []

    def attack(held: Held) -> None:
        wait_all_ready(kind, held.directory / LOG)
        if gives_way and hasattr(os, "nice"):
            os.nice(19)
        port = int(held.url.rpartition(":")[2])
        log = held.directory / LOG
        victim = Victim(kind, port, held.pid, log, held.trust, held)
        reports.append(fuzz(victim, **bounds))

    try:
        run_point(
            kind,
            calls,
            window_s=WINDOW_S,
            warm_s=warm_s,
            hold=attack,
            realtime=realtime,
            timeout_s=TIMEOUT_S,
            # A connection that is replaced in time would look like one that was lost.
            settings={
                "MODEL_CONNECTION_AGE_S": f"{2 * TIMEOUT_S:g}",
                "DRAIN_TIMEOUT_S": "0",
                **(settings or {}),
            },
        )
    except PointFailed:
        if not reports:
            raise
    return reports[0]


def culprit(kind: ServerKind, seed: int, suspects: Iterable[int]) -> int | None:
    """Which of the last connections it was: each is said again, to a server of its own."""
    for number in suspects:
        if survives(kind, numbered(seed, number)):
            continue
        return number
    return None


def survives(kind: ServerKind, conversation: Conversation) -> str:
    """Say one conversation to a new server; empty if it has died of that, else how it ended."""
    with serving(kind) as victim:
        report = Report(kind)
        leaving = (
            replace(conversation, ending=LEAVE) if conversation.ending == STAY else conversation
        )
        trio.run(Fuzzer(victim, [(0, leaving)], report).run)
        time.sleep(0.2)
        is_well = victim.answers() and not report.findings
        return ", ".join(report.endings) or "said" if is_well else ""


# ------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this target alone."""
    own = parser.add_argument_group("socket")
    own.add_argument("--server", choices=["python", "hypercorn"], default="python")
    own.add_argument("--workers", type=int, default=1, metavar="N")
    own.add_argument("--media-path", choices=["fast", "ordinary"], default="fast")
    own.add_argument("--tls", action="store_true", help="the server itself ends TLS")
    own.add_argument("--calls", type=int, default=5, help="that talk beside it (default: 5)")
    own.add_argument("--per-s", type=float, default=0.0, help="connections a second at most")
    own.add_argument(
        "--realtime",
        action="store_true",
        help="prefer server and calls to other programs (SCHED_RR), for a machine that is not idle",
    )


def kind_of(chosen: argparse.Namespace) -> ServerKind:
    """The server that was asked for."""
    return server_kind(
        chosen.server, workers=chosen.workers, media_path=chosen.media_path, tls=chosen.tls
    )


def run(
    kind: ServerKind,
    *,
    seed: int,
    inputs: float,
    longest_s: float,
    calls: int,
    per_s: float,
    first: int = 0,
    realtime: bool = False,
) -> Report:
    """Fuzz a server of this kind; one that dies of it is told from its suspects."""
    bounds = {"seed": seed, "inputs": inputs, "longest_s": longest_s, "first": first}
    bounds["per_s"] = per_s
    if calls:
        report = fuzz_beside_calls(kind, calls=calls, realtime=realtime, gives_way=True, **bounds)
    else:
        with serving(kind) as victim:
            report = fuzz(victim, **bounds)
    if report.suspects:
        number = culprit(kind, seed, report.suspects)
        report.find(
            f"by connection {number}: --seed {seed} --only {number}"
            if number is not None
            else f"by none of the last {len(report.suspects)} connections alone"
        )
    return report


def run_asked(chosen: argparse.Namespace, *, first: int = 0) -> Report:
    """Fuzz as the command line has it."""
    return run(
        kind_of(chosen),
        seed=chosen.seed,
        inputs=chosen.inputs,
        longest_s=chosen.longest_s,
        calls=chosen.calls,
        per_s=chosen.per_s,
        first=first,
        realtime=chosen.realtime,
    )


def show(conversation: Conversation) -> str:
    """A conversation as a person reads it."""
    lines = [f"ends with: {conversation.ending}; TLS: {conversation.tls or 'no protocol'}"]
    for part in conversation.parts:
        data = part.data if len(part.data) <= 1_000 else part.data[:1_000] + b"..."
        lines.append(
            f"{part.kind}, {len(part.data)} bytes in {len(part.pieces)} pieces, "
            f"listens {part.listen_s:g} s: {data!r}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Parse arguments, fuzz, and say what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz_socket",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--inputs", type=int, default=10**9)
    parser.add_argument("--longest-s", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--first", type=int, default=0, help="number of the first connection")
    parser.add_argument("--only", type=int, help="just the connection with this number")
    parser.add_argument("--killers", action="store_true", help="the known ones, one by one")
    add_arguments(parser)
    chosen = parser.parse_args(arguments)
    kind = kind_of(chosen)
    if chosen.killers:
        return _try_killers(kind)
    if chosen.only is not None:
        return repeat(kind, chosen.seed, chosen.only)
    report = run_asked(chosen, first=chosen.first)
    sys.stdout.write(report.words() + "\n")
    return 1 if report.findings else 0


def repeat(kind: ServerKind, seed: int, number: int) -> int:
    """Say one conversation again, to a server of its own."""
    conversation = numbered(seed, number)
    sys.stdout.write(show(conversation) + "\n")
    with serving(kind) as victim:
        report = Report(kind, seed)
        with judged(victim, report):
            trio.run(Fuzzer(victim, [(number, conversation)], report).run)
        sys.stdout.write(victim.log.read_text(errors="replace")[-4_000:])
    sys.stdout.write(report.words() + "\n")
    return 1 if report.findings else 0


def _try_killers(kind: ServerKind) -> int:
    dead = 0
    for name in KILLERS:
        how = survives(kind, named(name))
        dead += not how
        sys.stdout.write(f"{name:40} {how or 'DEAD'}\n")
        sys.stdout.flush()
    return 1 if dead else 0


if __name__ == "__main__":
    sys.exit(main())
