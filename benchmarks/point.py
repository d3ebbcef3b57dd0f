"""One point of a load benchmark: a fresh server on its core, the generator on the other, a window.

Everything is on loopback, and the servers run as they do in production: with their own checks of
signatures, tickets and keys, and only the addresses of Twilio and Gemini pointing at the doubles.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import secrets
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from benchmarks import processes
from benchmarks.load import asterisk
from benchmarks.load.__main__ import Plan
from benchmarks.load.call import Talk
from benchmarks.ports import free_port
from server.settings.settings import Settings

READY_TIMEOUT_S = 120.0
LOG = "server.log"
"""What the server writes, in the directory where it runs."""
FAULTS = ("bug of ours", "Traceback")
PUBLIC_NAME = "voice.example.com"
"""What a server that ends TLS is called by the carrier; nobody is asked where that is."""
CONSOLE_BYTES = 5_000
"""A console that is told less of a whole run was told nothing."""
RUN_TIMEOUT_S = 300.0
"""Set-up, warm-up and window together."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Accounts made up for one run."""

    account_sid: str = field(default_factory=lambda: "AC" + secrets.token_hex(16))
    auth_token: str = field(default_factory=lambda: secrets.token_hex(16))
    gemini_api_key: str = field(default_factory=lambda: secrets.token_hex(16))
    api_key: str = field(default_factory=lambda: secrets.token_hex(16))


@dataclass(frozen=True, slots=True)
class ServerKind:
    """A server that can be measured."""

    name: str
    module: str
    environment: Mapping[str, str]
    needs: tuple[str, ...] = ()
    """Python modules that must be there."""
    arguments: tuple[str, ...] = ()
    """Its command line, where ``{port}`` and ``{directory}`` are filled in."""
    carrier: str = "twilio"
    """Whose calls it gets."""
    ends_tls: bool = False
    """Whether it is reached by TLS, with the certificate at ``{directory}/server.pem``."""

    @property
    def missing(self) -> list[str]:
        """Why it cannot run here; empty if it can."""
        missing = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if "MEDIA_PATH" in self.environment and not _has_media_path():
            missing.append("the setting MEDIA_PATH")
        return missing

    def command_line(self, port: int, directory: Path) -> list[str]:
        """What follows the module's name."""
        return [one.format(port=port, directory=directory) for one in self.arguments]

    def url(self, port: int) -> str:
        """Where it is reached from this machine."""
        return f"{'https' if self.ends_tls else 'http'}://127.0.0.1:{port}"


def _has_media_path() -> bool:
    return "media_path" in Settings.model_fields


OFFHOOK = ServerKind("offhook", "server", {"MEDIA_PATH": "fast"})
ASTERISK = ServerKind("offhook-asterisk", "server", {"MEDIA_PATH": "fast"}, carrier="asterisk")
"""The same server behind an Asterisk: mu-law in binary frames, both ways."""
ORDINARY = ServerKind(
    "offhook-ordinary", "server", {"MEDIA_PATH": "ordinary"} if _has_media_path() else {}
)
CLASSIC = ServerKind(
    "classic", "benchmarks.peers.classic", {}, ("fastapi", "uvicorn", "uvloop", "audioop")
)
PICOWS = ServerKind("picows", "benchmarks.peers.fastest", {}, ("picows", "uvloop"))
"""The fastest bridge on asyncio that we know how to write."""
KINDS = {kind.name: kind for kind in (OFFHOOK, ORDINARY, CLASSIC, PICOWS)}


@dataclass(frozen=True, slots=True)
class Held:
    """A server whose calls talk, for somebody to do something to."""

    url: str
    pid: int
    keys: Keys
    directory: Path
    """Where the server runs."""
    cores: list[int]
    """The generator's."""
    client: httpx2.Client
    """Of the server's API, with its key."""
    trust: ssl.SSLContext | None
    """To reach the server with, where it ends TLS."""
    call_sids: list[str]
    measure: Callable[[float], dict[str, Any]]
    """Watch the calls for so many seconds: the outcome without what setting them up cost."""
    turn_over: Callable[[float, tuple[float, float]], dict[str, Any]]
    """For so many seconds have calls end, of a length between these, and others begin."""

    def words(self) -> list[str]:
        """The lines that the server has written."""
        return (self.directory / LOG).read_text(errors="replace").splitlines()

    def faults(self) -> dict[str, int]:
        """How many of them tell of a bug, by what they say."""
        words = self.words()
        return {what: n for what in FAULTS if (n := sum(what in word for word in words))}


class PointFailed(Exception):
    """There is no figure: the server or the generator did not come through."""


def run_point(
    kind: ServerKind,
    calls: int,
    *,
    window_s: float,
    warm_s: float = 5.0,
    talk: Talk | None = None,
    answers: int = 0,
    samples: bool = False,
    settings: Mapping[str, str] | None = None,
    rooms: Sequence[bytes] = (),
    tls: bool = False,
    workers: int = 1,
    realtime: bool = False,
    consoles: int = 0,
    look: Callable[[httpx2.Client, Mapping[str, Any]], Any] | None = None,
    hold: Callable[[Held], Any] | None = None,
    timeout_s: float = RUN_TIMEOUT_S,
) -> dict[str, Any]:
    """Start a server, load it, and stop it.

    Args:
        kind: Which server.
        calls: How many at once.
        window_s: How long is measured.
        warm_s: How long the calls talk before that.
        talk: How the agent talks.
        answers, samples: See :class:`benchmarks.load.__main__.Plan`.
        settings: Environment variables of the server that shall not have their defaults.
        rooms: Mu-law that callers' lines have, in turn; every tenth is quiet, and is measured.
        tls: Reach the model by TLS.
        workers: Server processes, each on a core of its own.
        realtime: See :func:`benchmarks.processes.running`.
        consoles: How many consoles are open meanwhile: each reads the live channel.
        look: Called with a client of the server's API and the outcome, while the server still
            runs; its value is the outcome's ``"looked"``.
        hold: Called in place of the window, while the calls talk; its value is the outcome's
            ``"held"``, and there are no other figures.
        timeout_s: No point may take longer, whatever happens.

    Returns:
        The figures of :mod:`benchmarks.load.__main__`, with ``"media_paths"``, the paths that the
        server says its calls took.

    Raises:
        PointFailed: With the server's last words.
    """
    keys = Keys()
    server_cores, generator_cores = _share_cores(workers)
    with tempfile.TemporaryDirectory(prefix="offhook-bench-") as name:
        directory = Path(name)
        files = [directory / f"room-{number}" for number in range(len(rooms))]
        for file, room in zip(files, rooms, strict=True):
            file.write_bytes(room)
        plan = Plan(
            calls=calls,
            window_s=window_s,
            warm_s=warm_s,
            talk=talk or Talk(),
            answers=answers,
            samples=samples,
            tls=tls,
            account_sid=keys.account_sid,
            auth_token=keys.auth_token,
            gemini_api_key=keys.gemini_api_key,
            directory=name,
            carrier=kind.carrier,
            rooms=tuple(map(str, files)),
            others=hold is not None,
        )
        with _generator(generator_cores, timeout_s, realtime=realtime) as generator:
            doubles = _ask(generator, asdict(plan))
            port = free_port()
            url = kind.url(port)
            # No carrier can reach this machine's own address by TLS, so the server refuses it.
            public_url = f"https://{PUBLIC_NAME}:{port}" if kind.ends_tls else url
            with started(
                kind,
                directory,
                port,
                {
                    **environment_of(keys, port, public_url, doubles, calls, kind.carrier),
                    **kind.environment,
                    **(settings or {}),
                },
                more=["--workers", str(workers)] if workers > 1 else [],
                cores=server_cores,
                realtime=realtime,
            ) as server:
                wait_ready(url, server.process, server.trust)
                told = {"server_url": url, "pid": server.process.pid, "stay": hold is not None}
                told |= {"trusted": str(server.trusted or ""), "public_url": public_url}
                with _consoles(url, keys.api_key, consoles):
                    outcome = _ask(generator, told)
                with httpx2.Client(
                    base_url=url,
                    headers={"Authorization": f"Bearer {keys.api_key}"},
                    # An idle connection may be closed just as it is used again.
                    limits=httpx2.Limits(max_keepalive_connections=0),
                    trust_env=False,
                    verify=server.trust or True,
                ) as client:
                    metrics = _metrics(client)
                    outcome["media_paths"] = _media_paths(metrics)
                    outcome["stalls"] = stalls_in(metrics)
                    outcome["looked"] = look(client, outcome) if look else None
                    if hold is not None:
                        held = Held(
                            url,
                            server.process.pid,
                            keys,
                            directory,
                            generator_cores,
                            client,
                            server.trust,
                            outcome["call_sids"],
                            lambda window_s: _ask(generator, {"window_s": window_s}),
                            lambda turn_over_s, call_s: _ask(
                                generator, {"turn_over_s": turn_over_s, "call_s": call_s}
                            ),
                        )
                        outcome["held"] = hold(held)
    return outcome | {"backend": doubles["backend"]}


@dataclass(frozen=True, slots=True)
class Started:
    """A server in a process of its own, which need not be ready yet."""

    process: subprocess.Popen[bytes]
    log: Path
    """What it writes."""
    trusted: Path | None
    """What to trust, where it ends TLS."""
    trust: ssl.SSLContext | None


@contextlib.contextmanager
def started(
    kind: ServerKind,
    directory: Path,
    port: int,
    environment: Mapping[str, str],
    *,
    more: Sequence[str] = (),
    cores: Sequence[int] = (),
    realtime: bool = False,
) -> Generator[Started]:
    """Start a server, and stop it at the end.

    Args:
        kind: Which one.
        directory: Where it runs.
        port: Where it listens.
        environment: Its settings.
        more: What follows its command line.
        cores: See :func:`benchmarks.processes.running`.
        realtime: See there.

    Raises:
        PointFailed: As the block has raised it, with what the server has said last.
    """
    trusted = certified(directory) if kind.ends_tls else None
    trust = ssl.create_default_context(cafile=trusted) if trusted else None
    log = directory / LOG
    with (
        log.open("wb") as output,
        processes.running(
            kind.module,
            *kind.command_line(port, directory),
            *more,
            cores=cores,
            realtime=realtime,
            environment=environment,
            directory=directory,
            stdout=output,
            stderr=output,
        ) as process,
    ):
        try:
            yield Started(process, log, trusted, trust)
        except PointFailed as failure:
            words = log.read_text(errors="replace").strip().splitlines()[-8:]
            raise PointFailed("\n".join([str(failure), *words])) from None


@contextlib.contextmanager
def _generator(
    cores: list[int], timeout_s: float, *, realtime: bool
) -> Generator[subprocess.Popen[bytes]]:
    """The load generator's process, which is not waited for forever."""
    with processes.running(
        "benchmarks.load",
        cores=cores,
        realtime=realtime,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as generator:
        give_up = threading.Timer(timeout_s, generator.kill)
        give_up.start()
        try:
            yield generator
        finally:
            give_up.cancel()


@contextlib.contextmanager
def _consoles(url: str, api_key: str, count: int) -> Generator[None]:
    """So many readers of a server's live channel, in threads of this process.

    Raises:
        PointFailed: One of them was told nothing.
    """
    parts = urlsplit(url)
    asked = (
        f"GET /events HTTP/1.1\r\nHost: {parts.netloc}\r\nAccept: text/event-stream\r\n"
        f"Authorization: Bearer {api_key}\r\n\r\n"
    )
    read_bytes = [0] * count

    def read(number: int, channel: socket.socket) -> None:
        while piece := channel.recv(65_536):
            read_bytes[number] += len(piece)

    with contextlib.ExitStack() as stack:
        for number in range(count):
            channel = socket.create_connection((parts.hostname or "", parts.port or 80))
            stack.callback(channel.close)
            channel.sendall(asked.encode())
            reader = threading.Thread(target=read, args=(number, channel), daemon=True)
            reader.start()
            stack.callback(reader.join)
            stack.callback(channel.shutdown, socket.SHUT_RDWR)
        yield
    if not all(size > CONSOLE_BYTES for size in read_bytes):
        raise PointFailed(f"the consoles were told no more than {read_bytes} bytes")


def _share_cores(workers: int) -> tuple[list[int], list[int]]:
    """Cores of the server and of the generator; none of both where there is but one."""
    cores = processes.cores()
    if len(cores) < 2:
        return [], []
    return cores[:workers], cores[workers:] or cores[-1:]


def environment_of(
    keys: Keys,
    port: int,
    url: str,
    doubles: Mapping[str, str],
    calls: int,
    carrier: str = "twilio",
) -> dict[str, str]:
    """The settings of a server whose carrier and model are doubles."""
    environment = {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "PUBLIC_URL": url,
        "GEMINI_API_KEY": keys.gemini_api_key,
        "GEMINI_URL": doubles["gemini_url"],
        "API_KEY": keys.api_key,
        "MAX_CALLS": str(calls + 10),
        # It would refuse calls at the end of its range, which is what is to be measured.
        "MAX_LOOP_LAG_S": "60",
    }
    if carrier == "asterisk":
        environment |= asterisk.environment(doubles["asterisk_url"])
    else:
        environment |= {
            "TWILIO_ACCOUNT_SID": keys.account_sid,
            "TWILIO_AUTH_TOKEN": keys.auth_token,
            "TWILIO_PHONE_NUMBER": "+15005550006",
            "TWILIO_API_URL": doubles["twilio_url"],
        }
    if doubles["trusted"]:
        environment["SSL_CERT_FILE"] = doubles["trusted"]
    return environment


def certified(directory: Path) -> Path:
    """Make a certificate for a server at 127.0.0.1; the value is what to trust.

    Raises:
        ImportError: trustme is not installed.
    """
    import trustme

    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(directory / "server.pem")
    trusted = directory / "server-authority.pem"
    authority.cert_pem.write_to_path(trusted)
    return trusted


def _ask(generator: subprocess.Popen[bytes], told: Mapping[str, Any]) -> dict[str, Any]:
    """Say a line to the generator and take the line it answers with.

    Raises:
        PointFailed: It has ended, or says what has failed.
    """
    assert generator.stdin is not None
    assert generator.stdout is not None
    generator.stdin.write(json.dumps(told).encode() + b"\n")
    generator.stdin.flush()
    line = generator.stdout.readline()
    if not line:
        raise PointFailed("the load generator ended without a word; its own are above")
    answer: dict[str, Any] = json.loads(line)
    if "failed" in answer:
        raise PointFailed(answer["failed"])
    return answer


def wait_ready(
    url: str, server: subprocess.Popen[bytes], trust: ssl.SSLContext | None = None
) -> None:
    """Wait until a server answers, whatever it says.

    Raises:
        PointFailed: It has ended, or takes too long.
    """
    # Where nothing is verified, there are no certificates to be read, every time anew.
    verify = trust or False
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise PointFailed(f"the server ended with status {server.returncode}")
        try:
            httpx2.get(f"{url}/healthz", trust_env=False, timeout=5.0, verify=verify)
        except httpx2.TransportError:
            time.sleep(0.1)
        else:
            return  # any answer: it serves
    raise PointFailed(f"the server did not answer in {READY_TIMEOUT_S:g} s")


_PATH_SAMPLE = re.compile(r'^offhook_\w*path\w*\{[^}]*path="(\w+)"[^}]*\} ([0-9.e+]+)', re.M)


def _metrics(client: httpx2.Client) -> str:
    """What ``/metrics`` says; empty of a server that has none."""
    answer = client.get("/metrics")
    return answer.text if answer.status_code == 200 else ""


def sum_of(metrics: str, name: str) -> float:
    """All samples of one metric, in Prometheus's text."""
    total = 0.0
    for line in metrics.splitlines():
        if line.startswith((f"{name} ", f"{name}{{")):
            total += float(line.rpartition(" ")[2])
    return total


def _media_paths(metrics: str) -> dict[str, float]:
    """How many calls took which path; empty where nothing is said of it."""
    return {path: float(count) for path, count in _PATH_SAMPLE.findall(metrics)}


_STALL_SAMPLE = re.compile(
    r'^offhook_loop_stall(s|_seconds)_total\{[^}]*cause="(\w+)"[^}]*\} ([0-9.e+-]+)', re.M
)


def stalls_in(metrics: str) -> dict[str, dict[str, float]]:
    """Pauses of 5 ms or more by cause, of all processes: how many, and seconds."""
    found: dict[str, dict[str, float]] = {}
    for kind, cause, value in _STALL_SAMPLE.findall(metrics):
        counts = found.setdefault(cause, {"count": 0.0, "seconds": 0.0})
        counts["count" if kind == "s" else "seconds"] += float(value)
    return found
