"""A network of its own for each node, where we may make one, and how it is cut off in silence.

Addresses are of the ranges that are kept for documentation, with a blackhole outside, so that
nothing leaves the machine whatever happens to a link. Nobody notices a node that is cut off: its
frames, and those to it, go to a neighbour that is not there.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.failover.guardian import Guardian

RANGES = ("198.51.100.0/24", "203.0.113.0/24", "192.0.2.0/24")
NOBODY = "02:00:00:00:0b:ad"
TIMEOUT_S = 10.0


def why_no_network() -> str:
    """Why none can be made here; empty if one can."""
    if os.geteuid() != 0:
        return "network namespaces are root's"
    if shutil.which("ip") is None:
        return "there is no ip (iproute2)"
    if free_range(_ip("-4", "route", "show", "table", "all")) is None:
        return "every range of addresses for documentation is in use"
    name = f"offhook-try-{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "delete", name)
    except subprocess.SubprocessError as error:
        return f"no network namespace can be made: {_words_of(error)}"
    return ""


def free_range(routes: str) -> ipaddress.IPv4Network | None:
    """The first range for documentation that is in none of these routes."""
    used = []
    for word in routes.split():
        with suppress(ValueError):
            used.append(ipaddress.ip_network(word, strict=False))
    for name in RANGES:
        network = ipaddress.IPv4Network(name)
        if not any(
            isinstance(one, ipaddress.IPv4Network) and one.prefixlen and one.overlaps(network)
            for one in used
        ):
            return network
    return None


def addresses_of(network: ipaddress.IPv4Network, number: int) -> tuple[str, str]:
    """Our end's address and the node's, of the network of the so-manieth node."""
    first = network.network_address + 4 * number
    return str(first + 1), str(first + 2)


@dataclass(frozen=True, slots=True)
class Network:
    """A namespace with one link to ours."""

    name: str
    link: str
    ours: str
    theirs: str
    """Addresses of both ends."""

    @property
    def command(self) -> list[str]:
        """What comes before a command line that is to run there."""
        return ["ip", "netns", "exec", self.name]

    def cut_off(self) -> None:
        """Let frames of both directions go to nobody."""
        _ip("neigh replace", self.theirs, "lladdr", NOBODY, _on(self.link))
        _ip(f"-n {self.name} neigh replace", self.ours, "lladdr", NOBODY, _on("eth0"))

    def heal(self) -> None:
        """Find each other again."""
        for words in (
            f"neigh delete {self.theirs} dev {self.link}",
            f"-n {self.name} neigh delete {self.ours} dev eth0",
        ):
            with suppress(subprocess.SubprocessError):
                _ip(words)


def make_networks(names: list[str], guardian: Guardian) -> list[Network]:
    """Make a network for each node; the guardian is told of all that is made.

    Raises:
        subprocess.SubprocessError: It cannot be done.
    """
    whole = free_range(_ip("-4", "route", "show", "table", "all"))
    if whole is None:
        raise subprocess.SubprocessError("no range of addresses is free")
    guardian.told("route", str(whole))
    _ip("route", "add", "blackhole", str(whole), "metric", "4000")
    made = []
    for number, name in enumerate(names):
        ours, theirs = addresses_of(whole, number)
        network = Network(
            f"offhook-{os.getpid()}-{name}", f"oh{os.getpid() % 100_000}{name}", ours, theirs
        )
        guardian.told("netns", network.name)
        _ip("netns", "add", network.name)
        guardian.told("link", network.link)
        _ip(f"link add {network.link} type veth peer name eth0 netns {network.name}")
        _ip("address", "add", f"{ours}/30", "dev", network.link)
        _ip("link", "set", network.link, "up")
        inside = f"-n {network.name}"
        _ip(f"{inside} link set lo up")
        _ip(f"{inside} address add {theirs}/30 dev eth0")
        _ip(f"{inside} link set eth0 up")
        _ip(f"{inside} route add {whole} via {ours}")  # the other nodes, and nobody else
        # Between nodes we pass frames on, and for nobody else.
        Path(f"/proc/sys/net/ipv4/conf/{network.link}/forwarding").write_text("1")
        made.append(network)
    return made


def _on(link: str) -> str:
    return f"dev {link} nud permanent"


def _ip(*words: str) -> str:
    done = subprocess.run(
        ["ip", *" ".join(words).split()],
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    return done.stdout


def _words_of(error: subprocess.SubprocessError) -> str:
    return str(getattr(error, "stderr", "") or error).strip()
