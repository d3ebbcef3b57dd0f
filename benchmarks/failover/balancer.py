"""HAProxy in front of the nodes: its configuration, made for a run, and a word with it."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Place:
    """A node, as the balancer knows it."""

    name: str
    address: str
    """Host and port."""
    port: int
    """Where it is reached alone, for a server whose addresses do not name its processes."""


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A port that is joined to another one."""

    name: str
    at: str
    to: str


def configuration(
    places: Sequence[Place], port: int, admin: Path, tunnels: Sequence[Tunnel] = ()
) -> str:
    """Write the configuration of a balancer.

    A stream goes to the node that its path names or to nobody; whoever is alive answers
    ``/resume``; any other request goes to the node named, or else to anybody.

    Args:
        places: The nodes.
        port: Where it listens on loopback.
        admin: The socket of its runtime API.
        tunnels: What else it joins.
    """
    return "\n".join(
        [
            *("global", f"  stats socket {admin} mode 600 level admin", "  maxconn 4000"),
            *("defaults", "  mode http", "  timeout connect 300ms", "  timeout client 60s"),
            *("  timeout server 60s", "  timeout tunnel 4h", "  timeout check 1s"),
            *("frontend public", f"  bind 127.0.0.1:{port}"),
            *(f"  bind 127.0.0.1:{place.port}" for place in places),
            "  use_backend streams if { path_end /stream } or { path_beg /stream/ }",
            *("  use_backend resumes if { path_end /resume }", "  default_backend requests"),
            "backend streams",
            *_named(places),
            *_servers(places, "inter 1s fall 3"),
            *("backend resumes", "  balance roundrobin", "  timeout server 1500ms"),
            *_again("conn-failure empty-response response-timeout"),
            *_alone(places),
            *_servers(places, "inter 500ms fall 2 observe layer4 error-limit 1 on-error mark-down"),
            *("backend requests", "  balance roundrobin", *_again("conn-failure empty-response")),
            *_named(places),
            *_servers(places, "inter 500ms fall 2"),
            *tunnel_lines(tunnels),
            "",
        ]
    )


SHIPPED = Path(__file__).parents[2] / "deploy" / "haproxy" / "haproxy.cfg"
"""What users are given, for two nodes: n0 and n1."""
_FIRST, _SECOND = re.compile(r"(?<![a-z0-9])(of_)?n0\b"), re.compile(r"(?<![a-z0-9])(of_)?n1\b")
_ADDRESS = re.compile(r'"?\$\{NODE_0[^}]*\}"?')


def expanded(
    shipped: str, places: Sequence[Place], port: int, admin: Path, tunnels: Sequence[Tunnel] = ()
) -> str:
    """Write the configuration that users are given for these nodes, on loopback and without TLS.

    Args:
        shipped: It, for the nodes n0 and n1.
        places, port, admin, tunnels: As for :func:`configuration`.

    Raises:
        ValueError: It is not of the form that is known here.
    """
    lines: list[str] = []
    for line in shipped.splitlines():
        words = line.strip()
        if words.startswith("#"):
            continue
        if words.startswith("bind "):
            lines.append(f"    bind 127.0.0.1:{port}")
        elif words.startswith("stats socket "):
            lines.append(f"    stats socket {admin} mode 600 level admin")
        elif "of_n0 or of_n1" in line:
            either = " or ".join(f"of_{place.name}" for place in places)
            lines.append(line.replace("of_n0 or of_n1", either))
        elif _FIRST.search(line):
            for place in places:
                name = partial(_renamed, name=place.name)
                lines.append(_ADDRESS.sub(place.address, _FIRST.sub(name, line)))
        elif not _SECOND.search(line):
            lines.append(line)
    written = "\n".join([*lines, *tunnel_lines(tunnels), ""])
    if any(f"server {place.name} {place.address}" not in written for place in places):
        raise ValueError("the configuration that is shipped has no line for a node n0")
    return written


def _renamed(found: re.Match[str], name: str) -> str:
    return f"{found[1] or ''}{name}"


def tunnel_configuration(tunnels: Sequence[Tunnel], admin: Path) -> str:
    """Write the configuration of what only joins ports."""
    return "\n".join(
        [
            *("global", f"  stats socket {admin} mode 600 level admin", "defaults"),
            *("  timeout connect 2s", "  timeout client 4h", "  timeout server 4h"),
            *tunnel_lines(tunnels),
            "",
        ]
    )


def tunnel_lines(tunnels: Sequence[Tunnel]) -> list[str]:
    """The sections of a configuration that join ports."""
    lines = []
    for tunnel in tunnels:
        lines += [f"listen {tunnel.name}", "  mode tcp", f"  bind {tunnel.at}"]
        lines += [
            "  timeout client 4h",
            "  timeout server 4h",
            f"  server there {tunnel.to} no-check",
        ]
    return lines


def _named(places: Sequence[Place]) -> list[str]:
    lines = []
    for place in places:
        named = f"{{ path_beg /n/{place.name}/ /n/{place.name}. }}"
        lines.append(f"  use-server {place.name} if {named}")
    return lines + _alone(places)


def _alone(places: Sequence[Place]) -> list[str]:
    return [f"  use-server {place.name} if {{ dst_port {place.port} }}" for place in places]


def _again(reasons: str) -> list[str]:
    return ["  retries 3", "  option redispatch 1", f"  retry-on {reasons}"]


def _servers(places: Sequence[Place], checked: str) -> list[str]:
    lines = ["  option httpchk GET /healthz"]
    for place in places:
        lines.append(f"  server {place.name} {place.address} check {checked}")
    return lines


def tell(admin: Path, command: str) -> str:
    """Say something to a balancer's runtime API; what it answers.

    Raises:
        OSError: It is not there, or says nothing.
    """
    with socket.socket(socket.AF_UNIX) as talk:
        talk.settimeout(TIMEOUT_S)
        talk.connect(str(admin))
        talk.sendall(command.encode() + b"\n")
        answer = b""
        while data := talk.recv(65_536):
            answer += data
    return answer.decode()


def are_up(statistics: str, backend: str) -> bool:
    """Whether all servers of a backend are, in what a balancer answers to ``show stat``."""
    lines = [line.split(",") for line in statistics.lstrip("# ").splitlines() if "," in line]
    if not lines:
        return False
    name, server, status = (lines[0].index(one) for one in ("pxname", "svname", "status"))
    found = [
        line[status]
        for line in lines[1:]
        if line[name] == backend and line[server] not in ("FRONTEND", "BACKEND")
    ]
    return bool(found) and all(one.startswith("UP") for one in found)
