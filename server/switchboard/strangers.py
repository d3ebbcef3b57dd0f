"""Media sockets that have not shown a ticket yet: where they come from, and how many may wait.

Anybody can open a WebSocket; only the carrier can show a ticket, and it does so within the time
its first messages take. So few places are enough, and when one address needs more than its share,
its oldest socket goes: an attacker who holds places loses them, the carrier's next call does not
wait for them. Sockets that the carrier has signed come from few addresses, all calls' of a burst at
once, and have places of their own, which nobody else can take: as many as there can be calls. The
signature says nothing of the call, so one that was captured is good for any number of sockets.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager

import trio

from server.headers import Headers, listed
from server.hooks.sockets import file_limit
from server.settings.settings import Settings

IN_ALL = 1_000
"""Media sockets that may wait to show a ticket, over all addresses; as many signed ones beside."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_BRACKETED = re.compile(r"\[([^\[\]]*)\](?::\d+)?")


def client_address(peer: str, headers: Headers, trusted: Iterable[Network]) -> str:
    """Where a request comes from.

    Args:
        peer: The other end of the connection.
        headers: ``X-Forwarded-For`` counts if the peer is a trusted proxy, read from the end of
            its last line: every proxy appends whom it was asked by, on the same line or on one of
            its own, and what stands before the last untrusted address is that client's invention.
        trusted: The proxies in front of this server.

    Returns:
        An address; of IPv6 only the network of 64 bits, of which one client may have all.
    """
    hops = listed(headers, "X-Forwarded-For")
    networks = tuple(trusted)
    address = _parse(peer)
    while hops and address is not None and any(address in network for network in networks):
        before = _parse(_without_port(hops.pop()))
        if before is None:
            break  # no address: whoever wrote that is as far as we can see
        address = before
    if address is None:
        return peer
    if address.version == 6:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def came_by_https(peer: str, headers: Headers, trusted: Iterable[Network]) -> bool:
    """Whether a proxy in front of this server says that it was asked by https.

    Args:
        peer: The other end of the connection.
        headers: ``X-Forwarded-Proto`` counts if the peer is a trusted proxy: its own word, which is
            the last one.
        trusted: The proxies in front of this server.
    """
    address = _parse(peer)
    if address is None or not any(address in network for network in trusted):
        return False
    said = listed(headers, "X-Forwarded-Proto")
    return bool(said) and said[-1].lower() == "https"


def _without_port(hop: str) -> str:
    """A hop's address: some proxies write the port, too, and brackets around an IPv6 address."""
    if match := _BRACKETED.fullmatch(hop):
        return match[1]
    host, colon, port = hop.partition(":")
    return host if colon and port.isdecimal() and "." in host else hop


def _parse(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.split("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def most_strangers(descriptors: int | None) -> int:
    """How many media sockets may wait for a ticket, where there are so many descriptors.

    Each has two of them meanwhile; None: nobody knows how many there are.
    """
    return IN_ALL if descriptors is None else max(1, min(IN_ALL, descriptors // 8))


def most_signed(descriptors: int | None, max_calls: int) -> int:
    """How many signed media sockets may wait for a ticket: no fewer than calls can wait for theirs.

    Args:
        descriptors: How many there are; no more calls than half of that are ever taken.
        max_calls: How many may be live at once.
    """
    fitting = max_calls if descriptors is None else min(max_calls, descriptors // 2)
    return max(most_strangers(descriptors), fitting)


class Strangers:
    """The sockets that wait to show a ticket.

    Args:
        per_address: How many one address may have.
        in_all: How many there may be without a signature.
        signed: How many there may be with one.
    """

    @classmethod
    def of(cls, settings: Settings) -> Strangers:
        """What the settings, and this system's files, allow."""
        descriptors = file_limit()
        return cls(
            per_address=settings.max_strangers_per_address,
            in_all=most_strangers(descriptors),
            signed=most_signed(descriptors, settings.max_calls),
        )

    def __init__(
        self, *, per_address: int = 100, in_all: int = IN_ALL, signed: int = IN_ALL
    ) -> None:
        self._per_address = per_address
        self._most, self._most_signed = in_all, signed
        # Both the oldest first, with their addresses.
        self._waiting: dict[trio.CancelScope, str] = {}
        self._signed: dict[trio.CancelScope, str] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._signed)

    @contextmanager
    def among(self, address: str, scope: trio.CancelScope) -> Generator[None]:
        """Wait in this block; the scope is cancelled if the place is needed for a younger one.

        Args:
            address: Where the socket comes from; empty if the carrier has signed its upgrade.
            scope: Bounds the wait.
        """
        waiting, most = self._waiting, self._most
        if not address:
            waiting, most = self._signed, self._most_signed
        waiting[scope] = address
        if address:
            own = [each for each, other in waiting.items() if other == address]
            if len(own) > self._per_address:
                _send_away(waiting, own[0])
        if len(waiting) > most:
            _send_away(waiting, next(iter(waiting)))
        try:
            yield
        finally:
            waiting.pop(scope, None)


def _send_away(waiting: dict[trio.CancelScope, str], scope: trio.CancelScope) -> None:
    del waiting[scope]
    scope.cancel("a younger socket needs the place")
