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


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A port that is joined to another one."""

    name: str
    at: str
    to: str


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
        places: The nodes.
        port: Where it listens on loopback.
        admin: The socket of its runtime API.
        tunnels: What else it joins.

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
