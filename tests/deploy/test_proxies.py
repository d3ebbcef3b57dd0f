"""Caddy and nginx with the snippets that users are given: accepted, and a call goes through."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import trio
import trustme

from benchmarks.ports import free_ports
from tests.deploy.haproxy import PATIENCE_S, Node
from tests.deploy.programs import find, find_all, run
from tests.support.required import is_required
from tests.support.serving import serving

DEPLOY = Path(__file__).parents[2] / "deploy"
CADDYFILE = DEPLOY / "caddy" / "Caddyfile"
SNIPPET = DEPLOY / "nginx" / "offhook.conf"
CADDIES, NGINX = find_all("caddy"), find("nginx")
needs_caddy = pytest.mark.skipif(
    not CADDIES and not is_required("caddy"), reason="caddy (Debian's package) is not here"
)
needs_nginx = pytest.mark.skipif(
    NGINX is None and not is_required("nginx"), reason="nginx (Debian's nginx-light) is not here"
)
EVERY_CADDY = [pytest.param(path, id=f"caddy of {Path(path).parent}") for path in CADDIES] or [
    pytest.param("caddy", marks=needs_caddy, id="caddy")
]
STRANGER = "203.0.113.9"
METRICS = ("/metrics", "/%6Detrics", "/METRICS")


@dataclass(frozen=True)
class Proxy:
    """A running proxy.

    Attributes:
        port: Where it listens, with TLS.
        upstream: The port of what is behind it.
    """

    port: int
    upstream: int

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"


def caddy_of(program: str, directory: Path, port: int, upstream: int) -> list[str]:
    """Write what Caddy needs beside the snippet where many of it run; returns its command line."""
    whole = directory / "Caddyfile"
    whole.write_text(
        "{\n\tadmin off\n\tauto_https disable_redirects\n\tskip_install_trust\n}\n"
        f"import {CADDYFILE}\n"
    )
    told = (f"SITE=https://localhost:{port}", f"UPSTREAM=127.0.0.1:{upstream}")
    at_home = (f"HOME={directory}", f"XDG_DATA_HOME={directory}", f"XDG_CONFIG_HOME={directory}")
    return ["env", *told, *at_home, program, "run", "--config", str(whole)]


def nginx_of(program: str, directory: Path, port: int, upstream: int) -> list[str]:
    """Write a whole configuration around the snippet; returns nginx's command line."""
    certificate, key = directory / "chain.pem", directory / "key.pem"
    issued = trustme.CA().issue_cert("localhost")
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    snippet = SNIPPET.read_text()
    for there, here in {
        "127.0.0.1:8000": f"127.0.0.1:{upstream}",
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "    listen [::]:443 ssl;\n": "",
        "/etc/letsencrypt/live/calls.example.com/fullchain.pem": str(certificate),
        "/etc/letsencrypt/live/calls.example.com/privkey.pem": str(key),
        "/var/log/nginx/offhook.log": str(directory / "access.log"),
    }.items():
        assert there in snippet
        snippet = snippet.replace(there, here)
    temporary = "".join(
        f"    {kind}_temp_path {directory};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole = directory / "nginx.conf"
    whole.write_text(
        f"daemon off;\nmaster_process off;\npid {directory}/nginx.pid;\n"
        f"error_log {directory}/error.log;\nevents {{}}\nhttp {{\n{temporary}{snippet}}}\n"
    )
    return [program, "-p", str(directory), "-e", str(directory / "error.log"), "-c", str(whole)]


@contextmanager
def running(
    prepare: Callable[[str, Path, int, int], list[str]], program: str, directory: Path
) -> Generator[Proxy]:
    """Run a proxy; nothing is behind it yet."""
    port, upstream = free_ports(2)
    log = directory / "said"
    with log.open("wb") as output:
        process = subprocess.Popen(
            prepare(program, directory, port, upstream), stdout=output, stderr=output
        )
    try:
        _wait_secure(process, port, log)
        yield Proxy(port, upstream)
    finally:
        process.kill()
        process.wait(PATIENCE_S)


def _wait_secure(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until TLS is spoken: Caddy makes its certificate after it has begun to listen."""
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    tick = threading.Event()
    for _ in range(int(PATIENCE_S / 0.05)):
        assert process.poll() is None, log.read_text()
        try:
            with (
                socket.create_connection(("127.0.0.1", port), PATIENCE_S) as plain,
                anybody.wrap_socket(plain, server_hostname="localhost"),
            ):
                return
        except OSError:
            tick.wait(0.05)
    raise AssertionError(log.read_text())


EVERY_PROXY = [
    *(pytest.param((caddy_of, *each.values), marks=each.marks, id=each.id) for each in EVERY_CADDY),
    pytest.param((nginx_of, NGINX or "nginx"), marks=needs_nginx, id="nginx"),
]


@pytest.fixture(params=EVERY_PROXY)
def proxy(request, tmp_path) -> Generator[Proxy]:
    prepare, program = request.param
    with running(prepare, program, tmp_path) as proxy:
        yield proxy


def client(proxy: Proxy) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=proxy.url, trust_env=False, verify=False, timeout=PATIENCE_S)


@pytest.mark.slow
@pytest.mark.sockets
async def test_a_call_goes_through_with_signed_webhooks_and_a_media_stream(proxy):
    with trio.fail_after(PATIENCE_S):
        async with (
            serving(
                on_port=proxy.upstream,
                public_url=proxy.url,
                trusted_proxies=("127.0.0.1",),
                simulated_callee="hangs-up",
            ) as server,
            client(proxy) as http,
        ):
            wanted = {"destination_number": "+15005550006"}
            placed = await http.post("/make-call", json=wanted)
            record = await server.finished(placed.json()["call_sid"])
            phone = server.twilio.calls[record["call_sid"]]
            hidden = [(await http.get(path)).status_code for path in METRICS]

    assert placed.status_code == 201
    assert record["reason"] == "caller-hung-up"
    assert record["agent_heard_s"] > 1.0
    assert phone.reports
    assert {status for _, status in phone.reports} == {204}
    assert hidden == [404] * len(METRICS)


@pytest.mark.sockets
def test_the_server_is_told_who_asks_and_not_what_they_say_of_themselves(proxy):
    with (
        closing(Node("offhook", proxy.upstream)),
        httpx2.Client(
            base_url=proxy.url, trust_env=False, verify=False, timeout=PATIENCE_S
        ) as http,
    ):
        answer = http.get("/n/0/call-status?a=%2F..", headers={"X-Forwarded-For": STRANGER})

    assert answer.json()["for"] == "127.0.0.1"
    assert answer.json()["path"] == "/n/0/call-status?a=%2F.."


@pytest.mark.parametrize("program", EVERY_CADDY)
def test_caddy_accepts_the_snippet(program):
    done = run(program, "validate", "--config", str(CADDYFILE), "--adapter", "caddyfile")

    assert done.returncode == 0, done.stderr


@needs_nginx
@pytest.mark.sockets
def test_nginx_accepts_the_snippet(tmp_path):
    command = nginx_of(NGINX, tmp_path, *free_ports(2))

    done = run(*command, "-t")

    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr


def test_no_proxy_cuts_a_stream_in_which_nobody_speaks():
    times = re.findall(r"(?m)^ +proxy_(read|send)_timeout (\w+);", SNIPPET.read_text())

    assert times == [("read", "4h"), ("send", "4h")]
    assert re.findall(r"(?m)^[^#\n]*_timeout", CADDYFILE.read_text()) == []
