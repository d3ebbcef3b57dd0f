"""Nodes of a server and everything around them, for one fault."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx2

from benchmarks import processes
from benchmarks.chaos.database import PostgreSql
from benchmarks.chaos.lines import LineProcess
from benchmarks.chaos.world import records_aside
from benchmarks.failover import balancer
from benchmarks.failover.balancer import Place, Tunnel
from benchmarks.failover.guardian import Guardian
from benchmarks.failover.network import Network, make_networks
from benchmarks.failover.seen import Record
from benchmarks.failover.stores import (
    PRIMARY,
    Redis,
    sentinel_configuration,
    wait_answer,
)
from benchmarks.pinned import REALTIME_PRIORITY
from benchmarks.point import Keys, wait_ready
from benchmarks.ports import free_port

ROOM = 40
"""Calls that a node takes beyond all that there are."""
LEASE_S = 3.0
DOWN_AFTER_S = 1.0
"""When sentinels miss a primary."""
HTTP_TIMEOUT_S = 5.0
STARTED_S = 10.0


@dataclass(frozen=True, slots=True)
class Spec:
    """What there is to be of one fault's world."""

    nodes: int = 3
    workers: int = 1
    registry: Literal["", "redis", "sentinels"] = "redis"
    has_networks: bool = False
    """Whether each node has a network of its own."""
    are_apart: bool = False
    """Whether each node is a server of its own, and only the one in the middle has a registry."""
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Node:
    """One process, or one parent of several, of the server."""

    name: str
    url: str
    """Where it is reached from here, past the balancer."""
    rest: str
    """The host and port at which it alone asks the carrier's API."""
    environment: Mapping[str, str]
    directory: Path
    guardian: Guardian
    realtime: bool = False
    arguments: Sequence[str] = ()
    network: Network | None = None
    process: subprocess.Popen[bytes] = field(init=False)
    _running: list[tuple[subprocess.Popen[bytes], ExitStack]] = field(default_factory=list)

    def start(self, *more: str) -> None:
        """Start it, beside what runs of it already; does not wait."""
        stack = ExitStack()
        log = stack.enter_context((self.directory / "server.log").open("ab"))
        self.process = stack.enter_context(
            processes.running(
                *("server", *self.arguments, *more),
                environment=self.environment,
                realtime=self.realtime,
                directory=self.directory,
                before=self.network.command if self.network else (),
                stdout=log,
                stderr=log,
            )
        )
        self.guardian.told("pid", self.process.pid)
        self._running.append((self.process, stack))

    def wait_ready(self) -> None:
        """Wait until it answers.

        Raises:
            PointFailed: It has ended, or takes too long.
        """
        wait_ready(self.url, self.process)

    @property
    def pids(self) -> list[int]:
        """Its processes, the first one first."""
        return processes.family(self.process.pid)

    @property
    def worker_pids(self) -> list[int]:
        """Those that serve."""
        found = []
        for pid in self.pids[1:] or self.pids:
            with suppress(OSError):
                if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def signal(self, number: int) -> None:
        """Send a signal to all of its processes at once."""
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """It is gone at once."""
        self.signal(signal.SIGKILL)
        self.process.wait(10.0)

    def wait_ended(self, within_s: float) -> bool:
        """Whether it ends within so long."""
        try:
            self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """End all that was started of it."""
        for process, stack in self._running:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
            stack.close()
        self._running.clear()


@dataclass
class World:
    """Everything there is for one fault."""

    spec: Spec
    directory: Path
    keys: Keys
    guardian: Guardian
    doubles: LineProcess
    realtime: bool = False
    """Whether all of it is preferred to other programs."""
    database: PostgreSql | None = None
    redis: list[Redis] = field(default_factory=list)
    """The primary first."""
    nodes: list[Node] = field(default_factory=list)
    public_url: str = ""
    admin: Path = Path()
    others: list[subprocess.Popen[bytes]] = field(default_factory=list)
    """Programs that are not ours."""

    @property
    def urls(self) -> list[str]:
        """Where each node is reached from here, past the balancer."""
        return [node.url for node in self.nodes]

    def tell_balancer(self, command: str) -> str:
        """Say something to the balancer's runtime API."""
        return balancer.tell(self.admin, command)

    def client(self, url: str) -> httpx2.Client:
        """What a user of the API asks with."""
        return httpx2.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {self.keys.api_key}"},
            trust_env=False,
            timeout=HTTP_TIMEOUT_S,
        )

    def records(self) -> list[Record]:
        """What the database has of each call, and the files of what it did not take."""
        query = (
            "SELECT call_sid, state, reason, duration_s, "
            "CASE json_typeof(details->'transcript') WHEN 'array' "
            "THEN json_array_length(details->'transcript') ELSE 0 END, "
            "details->>'not_whole' FROM offhook_calls"
        )
        rows = self.database.rows(query) if self.database is not None else []
        aside = [
            Record(one.call_sid, one.state, one.reason, 0.0)
            for node in self.nodes
            for one in records_aside(node.directory)
        ]
        return [Record(*row) for row in rows] + aside


def _run(world: World, command: list[str], log: str) -> subprocess.Popen[bytes]:
    """Start a program that is not ours; the guardian ends it."""
    with (world.directory / log).open("ab") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=world.directory
        )
    world.guardian.told("pid", process.pid)
    world.others.append(process)
    if world.realtime:  # not allowed to everybody, and a figure is worth something without it
        with suppress(OSError):
            os.sched_setscheduler(process.pid, os.SCHED_RR, os.sched_param(REALTIME_PRIORITY))
    return process


@contextmanager
def open_world(
    spec: Spec, calls: int, unknowns: Mapping[str, Any], *, realtime: bool = False
) -> Generator[World]:
    """Start everything, and end it with the block.

    Args:
        spec: What there is to be.
        calls: How many calls there will be at once, at most.
        unknowns: What of the carrier's behaviour is documented nowhere; fields of its faults.
        realtime: Prefer all of it to other programs.

    Raises:
        PointFailed, LineFailed, OSError, subprocess.SubprocessError: Something did not come up.
    """
    keys = Keys()
    with ExitStack() as stack:
        guardian = Guardian()
        stack.callback(guardian.close)
        directory = Path(tempfile.mkdtemp(prefix="offhook-failover-"))
        guardian.told("directory", str(directory))
        directory.chmod(0o755)
        doubles = LineProcess(
            "doubles",
            stack.enter_context(
                processes.running(
                    "benchmarks.failover.doubles",
                    realtime=realtime,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            ),
        )
        world = World(spec, directory, keys, guardian, doubles, realtime)
        stack.callback(_end_others, world)
        homes = doubles.ask(
            "keys",
            account_sid=keys.account_sid,
            auth_token=keys.auth_token,
            gemini_api_key=keys.gemini_api_key,
            api_key=keys.api_key,
            unknowns=dict(unknowns),
        )
        _start_database(world, stack)
        if spec.registry:
            _start_registry(world)
        _start_nodes(world, stack, homes, calls)
        yield world


def _end_others(world: World) -> None:
    for process in world.others:
        with suppress(ProcessLookupError):
            process.kill()
    for process in world.others:
        with suppress(subprocess.TimeoutExpired):
            process.wait(5.0)


def _start_database(world: World, stack: ExitStack) -> None:
    home = world.directory / "postgresql"
    home.mkdir()
    world.database = database = PostgreSql(home, free_port())
    database.create()
    database.start()
    world.guardian.told("pid", database.pids[0])

    def stop() -> None:
        with suppress(OSError, subprocess.SubprocessError):
            database.stop("immediate")

    stack.callback(stop)


def _start_registry(world: World) -> None:
    def new(port: int, replica_of: int | None = None) -> Redis:
        return Redis(
            world.directory, port, lambda command: _run(world, command, "redis.log"), replica_of
        )

    primary = new(free_port())
    primary.start()
    world.redis.append(primary)
    if world.spec.registry != "sentinels":
        return
    replica = new(free_port(), primary.port)
    replica.start()
    world.redis.append(replica)
    for number in range(3):
        home = world.directory / f"sentinel-{number}"
        home.mkdir()
        port, file = free_port(), home / "sentinel.conf"
        file.write_text(sentinel_configuration(port, primary.port, home, DOWN_AFTER_S))
        _run(world, ["redis-server", str(file), "--sentinel"], f"sentinel-{number}.log")
        wait_answer(port)
        world.redis.append(new(port))


def _registry_url(world: World, port_of: Mapping[int, int]) -> str:
    ports = [port_of.get(one.port, one.port) for one in world.redis]
    if world.spec.registry == "sentinels":
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports[2:])
        return f"redis+sentinel://{hosts}/{PRIMARY}"
    return f"redis://127.0.0.1:{ports[0]}/0"


def _start_nodes(world: World, stack: ExitStack, homes: dict[str, Any], calls: int) -> None:
    """Start the balancer and the nodes, each with tunnels of its own to what is around them."""
    spec, directory = world.spec, world.directory
    names = [f"n{number}" for number in range(spec.nodes)]
    networks = make_networks(names, world.guardian) if spec.has_networks else []
    assert world.database is not None
    targets = {
        "rest": int(homes["twilio_url"].rpartition(":")[2]),
        "model": int(homes["gemini_url"].rpartition(":")[2]),
        "database": world.database.port,
        "registry": world.redis[0].port if world.redis else 0,
    }
    places, tunnels, front = [], [], free_port()
    world.public_url = f"http://127.0.0.1:{front}"
    secret = secrets.token_hex(32)
    for number, name in enumerate(names):
        network = networks[number] if networks else None
        ports = {"rest": free_port()}  # whose requests these are is known by it
        host = "127.0.0.1"
        if network is not None:
            host = network.theirs
            ports = {what: free_port() for what, port in targets.items() if port}
        inside = []
        for what, port in ports.items():
            ours = network.ours if network is not None else "127.0.0.1"
            tunnels.append(Tunnel(f"{what}-{name}", f"{ours}:{port}", f"127.0.0.1:{targets[what]}"))
            inside.append(Tunnel(what, f"127.0.0.1:{port}", f"{ours}:{port}"))
        reached = targets | ports
        place = Place(name, f"{host}:{free_port()}")
        places.append(place)
        home = directory / name
        home.mkdir()
        if network is not None:
            file = home / "tunnels.cfg"
            file.write_text(balancer.tunnel_configuration(inside, home / "tunnels.sock"))
            _run(world, [*network.command, "haproxy", "-db", "-f", str(file)], "tunnels.log")
        own_port = place.address.rpartition(":")[2]
        is_in = bool(world.redis) and (not spec.are_apart or number == len(names) // 2)
        alone = spec.are_apart or not is_in
        environment = {
            "HOST": host,
            "PORT": own_port,
            "PUBLIC_URL": f"http://{place.address}" if alone else world.public_url,
            "TWILIO_ACCOUNT_SID": world.keys.account_sid,
            "TWILIO_AUTH_TOKEN": world.keys.auth_token,
            "TWILIO_PHONE_NUMBER": "+15005550006",
            "TWILIO_API_URL": f"http://127.0.0.1:{reached['rest']}",
            "GEMINI_API_KEY": world.keys.gemini_api_key,
            "GEMINI_URL": f"ws://127.0.0.1:{reached['model']}",
            "API_KEY": world.keys.api_key,
            "DATABASE_URL": f"postgresql://offhook@127.0.0.1:{reached['database']}/postgres",
            "MAX_CALLS": str(calls + ROOM),
            "CALLS_PER_S": "50",
            "LOG_JSON": "true",
            # What is numbered is never speech: nobody is asked whether they are there, and no
            # greeting is protected from them.
            "SILENCE_TIMEOUT_S": "0",
            "GREETING_PROTECT_S": "0",
            # All of it shares the cores of one machine, and is late by more than a phone would bear
            "MAX_LOOP_LAG_S": "1",
            "DRAIN_TIMEOUT_S": "60",
        }
        if is_in:
            environment |= {
                "REGISTRY_URL": _registry_url(
                    world, {world.redis[0].port: reached["registry"]} if network else {}
                ),
                "NODE": name,
                "NODE_URL": f"http://{place.address}",
                "CLUSTER_SECRET": secret,
                "LEASE_S": f"{LEASE_S:g}",
            }
        node = Node(
            name,
            f"http://{place.address}",
            f"127.0.0.1:{reached['rest']}",
            environment | dict(spec.settings),
            home,
            world.guardian,
            world.realtime,
            ("--workers", str(spec.workers)) if spec.workers > 1 else (),
            network,
        )
        world.nodes.append(node)
    world.admin = directory / "haproxy.sock"
    file = directory / "haproxy.cfg"
    has_front = bool(world.redis) and not spec.are_apart
    if has_front:
        shipped = balancer.SHIPPED.read_text()
        file.write_text(balancer.expanded(shipped, places, front, world.admin, tunnels))
    else:  # who calls a server of one machine comes to it directly
        file.write_text(balancer.tunnel_configuration(tunnels, world.admin))
    haproxy = _run(world, ["haproxy", "-db", "-f", str(file)], "haproxy.log")
    _wait_there(world.admin, haproxy, directory / "haproxy.log")
    for node in world.nodes:
        stack.callback(node.close)
        node.start()
    for node in world.nodes:
        node.wait_ready()
    if has_front:
        _wait_up(world)


def _wait_up(world: World) -> None:
    """Wait until the balancer knows that all nodes are there.

    Raises:
        OSError: It does not find out.
    """
    deadline = time.monotonic() + STARTED_S
    while not all(
        balancer.are_up(world.tell_balancer("show stat"), backend)
        for backend in ("streams", "resumes", "requests")
    ):
        if time.monotonic() > deadline:
            raise OSError("the balancer does not find the nodes")
        time.sleep(0.1)


def _wait_there(path: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a process has made its socket.

    Raises:
        OSError: It has ended, or takes too long.
    """
    deadline = time.monotonic() + STARTED_S
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise OSError(f"{path.name} is not there: {log.read_text(errors='replace')[-500:]}")
        time.sleep(0.05)
