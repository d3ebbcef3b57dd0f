"""Where events may go: to the internet, and not into our own network, whoever names the address.

A name is resolved once, what it stands for is checked, and that address is connected to: a name
that stands for something else a moment later is of no use to anybody.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httpcore2
import trio

from server.errors import ServerError
from server.settings.events import is_public

MAX_ADDRESSES = 4
"""Of one name that are tried, one after the other."""
MAX_NAMES = 16
"""That are resolved at the same time, of those that are trusted as of all others: a thread that
asks for a name goes on asking when nobody waits for it any more."""
CONNECT_TIMEOUT_S = 4.0
SCHEMES = ("https", "http")


class AddressRefused(ServerError):
    """An address that events are not sent to."""


def target_of(url: str) -> str:
    """Whose address it is: scheme, host and port."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return target_at(parts.scheme, parts.hostname or "", port)


def target_at(scheme: str, host: str, port: int) -> str:
    """The same, of an address in parts."""
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"[:300]


def _without_frames(error: Exception) -> Exception:
    """An error, and all that it came of, that leads back to no frame: trio's have it in a list."""
    waiting: list[BaseException] = [error]
    while waiting:
        one = waiting.pop()
        one.__traceback__ = None
        if one.__cause__ is not None:
            waiting.append(one.__cause__)
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
    return error


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Opens connections to what may be connected to.

    Names are resolved in threads of its own: those that hang are in the way of no call's.

    Args:
        allow_private: Anything may.
        is_trusted: Whether a target's name is not resolved beside those of strangers.
        resolve: As :func:`socket.getaddrinfo`.
    """

    def __init__(
        self,
        *,
        allow_private: bool,
        is_trusted: Callable[[str], bool] = lambda target: False,
        resolve: Callable[..., list[Any]] = socket.getaddrinfo,
    ) -> None:
        self._allow_private = allow_private
        self._getaddrinfo = resolve
        self._is_trusted = is_trusted
        self._threads = {one: trio.CapacityLimiter(MAX_NAMES) for one in (True, False)}
        self._below = httpcore2.TrioBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to one of the addresses that a name stands for.

        Raises:
            AddressRefused: None of them may be connected to.
            httpcore2.ConnectError: None of them can be.
        """
        addresses = await self._resolve(host, port)
        failure: Exception | None = None
        for address in addresses[:MAX_ADDRESSES]:
            try:
                return await self._below.connect_tcp(
                    address, port, CONNECT_TIMEOUT_S, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = _without_frames(error)
        try:
            raise failure or httpcore2.ConnectError("the name stands for nothing")
        finally:
            failure = None  # or it would be kept by this frame, to which it leads back

    async def _resolve(self, host: str, port: int) -> list[str]:
        targets = (target_at(scheme, host.lower(), port) for scheme in SCHEMES)
        trusted = any(map(self._is_trusted, targets))
        try:
            found = await trio.to_thread.run_sync(
                partial(self._getaddrinfo, host, port, type=socket.SOCK_STREAM),
                abandon_on_cancel=True,
                limiter=self._threads[trusted],
            )
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError("the name cannot be resolved") from error
        addresses = list(dict.fromkeys(str(one[4][0]) for one in found))
        if self._allow_private:
            return addresses
        if not (public := [one for one in addresses if is_public(ipaddress.ip_address(one))]):
            raise AddressRefused("it is in a private network (EVENTS_ALLOW_PRIVATE)")
        return public

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await trio.sleep(seconds)
