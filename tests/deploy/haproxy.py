"""HAProxy with a configuration of ``deploy/haproxy/``, in front of small servers that can fail."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest
import trustme

from tests.support.required import is_required

CONFIGURATIONS = Path(__file__).parents[2] / "deploy" / "haproxy"
HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
needs_haproxy = pytest.mark.skipif(
    HAPROXY is None and not is_required("haproxy"), reason="haproxy (Debian's package) is not here"
)
PATIENCE_S = 60.0
"""Of a test, for what is to happen at some time."""
NAMES = ("calls.example.com", "*.calls.example.com")
NODES = ("n0", "n1")
KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
"""RFC 6455's own example; HAProxy looks whether they fit."""


class Node(ThreadingHTTPServer):
    """A small server that says its name, and fails as it is told to.

    Attributes:
        name: Its NODE.
        fails: Paths whose requests it reads and then closes the connection.
        hangs: Paths whose requests it reads and does not answer until it is closed.
        asked: What it was asked, probes left out.
        headers: The names of the headers that it was last asked with, in small letters.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, name: str, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.name = name
        self.fails: set[str] = set()
        self.hangs: set[str] = set()
        self.asked: list[str] = []
        self.headers: frozenset[str] = frozenset()
        self.closed = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        host, port = self.server_address[:2]
        return f"{host!s}:{port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Somebody has closed a connection amid an answer, as HAProxy does with its probes."""

    def close(self) -> None:
        """It is gone: connections are refused from now on."""
        if not self.closed.is_set():
            self.closed.set()
            self.shutdown()
            self.server_close()
            self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Node

    def do_GET(self) -> None:
        node = self.server
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/healthz":
            node.asked.append(f"{self.command} {self.path}")
            node.headers = frozenset(name.lower() for name in self.headers)
        self.close_connection = True
        if self.path in node.hangs:
            node.closed.wait(PATIENCE_S)
            return
        if self.path in node.fails:
            return
        if self.headers.get("Upgrade"):
            self.connection.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
                b"Upgrade: websocket\r\nSec-WebSocket-Accept: "
                + ACCEPT
                + b"\r\n\r\n"
                + node.name.encode()
            )
            while data := self.connection.recv(4096):
                self.connection.sendall(data)
            return
        body = json.dumps(
            {"node": node.name, "path": self.path, "for": self.headers.get("X-Forwarded-For")}
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """The test says what matters."""


class Balancer:
    """A running HAProxy, and how to ask it."""

    def __init__(self, port: int, admin: Path, authority: trustme.CA) -> None:
        self.url = f"https://127.0.0.1:{port}"
        self._port = port
        self._admin = admin
        self.trust = ssl.create_default_context()
        authority.configure_trust(self.trust)

    def ask(
        self, method: str, path: str, host: str = "calls.example.com", **headers: str
    ) -> httpx2.Response:
        """Ask as the carrier or a client would, over TLS."""
        with httpx2.Client(verify=self.trust, trust_env=False, timeout=PATIENCE_S) as client:
            return client.request(
                method,
                f"{self.url}{path}",
                content=b"CallSid=CA1" if method == "POST" else None,
                headers={"Host": host} | headers,
                extensions={"sni_hostname": host},
            )

    @contextmanager
    def connection(
        self, first: bytes = b"", host: str = "calls.example.com"
    ) -> Generator[ssl.SSLSocket]:
        """Connect with TLS, after some first bytes that are in plain."""
        with socket.create_connection(("127.0.0.1", self._port), PATIENCE_S) as plain:
            plain.sendall(first)
            with self.trust.wrap_socket(plain, server_hostname=host) as secure:
                yield secure

    @contextmanager
    def stream(self, path: str, host: str = "calls.example.com") -> Generator[ssl.SSLSocket]:
        """Upgrade a connection as the carrier does; the answer is to be read."""
        with self.connection(host=host) as secure:
            secure.sendall(
                f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\n"
                "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                f"Sec-WebSocket-Key: {KEY}\r\n\r\n".encode()
            )
            yield secure

    def status_of(self, path: str) -> int:
        """What is answered to a path that is asked for as it stands."""
        with self.connection() as secure:
            secure.sendall(f"GET {path} HTTP/1.1\r\nHost: calls.example.com\r\n\r\n".encode())
            return int(read_head(secure).split()[1])

    def status_of_stream(self, path: str, host: str = "calls.example.com") -> int:
        with self.stream(path, host) as stream:
            return int(read_head(stream).split()[1])

    def states(self) -> dict[str, str]:
        """What it takes each server for, ``backend/server`` to ``UP`` or ``DOWN``."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(PATIENCE_S)
            admin.connect(str(self._admin))
            admin.sendall(b"show stat\n")
            with admin.makefile() as lines:
                rows = [line.split(",") for line in lines if "," in line]
        return {f"{row[0]}/{row[1]}": row[17] for row in rows}

    def wait_for(self, server: str, state: str) -> None:
        """Wait until it takes a server to be up or down."""
        tick = threading.Event()
        for _ in range(int(PATIENCE_S / 0.05)):
            if self.states().get(server, "").startswith(state):
                return
            tick.wait(0.05)
        raise AssertionError(f"{server} is {self.states().get(server)!r}, not {state}")


def read_head(stream: ssl.SSLSocket) -> bytes:
    """Read an answer's head, and not a byte more."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        more = stream.recv(1)
        assert more, head
        head += more
    return head


def read_exactly(stream: ssl.SSLSocket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = stream.recv(length - len(data))
        assert more, data
        data += more
    return data


@contextmanager
def nodes() -> Generator[dict[str, Node]]:
    """Two nodes that are well."""
    with ExitStack() as stack:
        made = {name: Node(name) for name in NODES}
        for node in made.values():
            stack.callback(node.close)
        yield made


@contextmanager
def haproxy(
    file: Path, servers: Mapping[str, str], authority: trustme.CA
) -> Generator[tuple[Balancer, str]]:
    """Run HAProxy with a configuration; the second value is where it listens.

    Args:
        file: The configuration.
        servers: ``NODE_0`` and so on, each with an address.
        authority: Who issues its certificate.
    """
    assert HAPROXY is not None
    with (
        tempfile.TemporaryDirectory(prefix="offhook-haproxy-") as directory,
        # It listens before HAProxy is there, so whoever connects waits instead of being refused.
        socket.create_server(("127.0.0.1", 0), backlog=64) as listener,
    ):
        environment = environment_of(Path(directory), authority, servers)
        environment["LISTEN"] = f"fd@{listener.fileno()}"
        process = subprocess.Popen(
            [HAPROXY, "-db", "-f", str(file)],
            env=environment,
            pass_fds=[listener.fileno()],
        )
        try:
            _wait_started(process, Path(environment["ADMIN"]))
            port = listener.getsockname()[1]
            yield Balancer(port, Path(environment["ADMIN"]), authority), f"127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait(PATIENCE_S)


def _wait_started(process: subprocess.Popen[bytes], admin: Path) -> None:
    tick = threading.Event()
    for _ in range(int(PATIENCE_S / 0.02)):
        assert process.poll() is None, "it has ended; its own words are above"
        if admin.exists():
            return
        tick.wait(0.02)
    raise AssertionError("it has not started")


def environment_of(
    directory: Path, authority: trustme.CA, servers: Mapping[str, str]
) -> dict[str, str]:
    """What a configuration is told, with a certificate in the directory."""
    certificate = directory / "calls.pem"
    authority.issue_cert(*NAMES).private_key_and_cert_chain_pem.write_to_path(str(certificate))
    return {
        "PATH": os.environ["PATH"],
        "CERTIFICATE": str(certificate),
        "ADMIN": str(directory / "admin.sock"),
        **servers,
    }
