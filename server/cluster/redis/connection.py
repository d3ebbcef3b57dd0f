"""The client of Redis, as far as it is coredis': opened by address, asked by steps.

coredis' client is a nursery, and ends with whatever befell its connections; so one task owns it
(:meth:`server.cluster.redis.registry.RedisRegistry.run`), and everybody else is told a failure.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from server.cluster.redis.scripts import Step
from server.cluster.registry import RegistryAway
from server.errors import ConfigurationError
from server.settings.cluster import RegistryAddress

if TYPE_CHECKING:
    from coredis import Redis, RedisCluster

MAX_CONNECTIONS = 8
"""Requests share a connection while they wait for answers."""


class Connection:
    """A client that is open.

    Args:
        client: coredis'.
        timeout_s: How long an answer may take, connecting included.
    """

    def __init__(self, client: Redis[Any] | RedisCluster[Any], timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s

    async def ask(self, step: Step) -> Any:
        """Take a step and return its answer.

        Raises:
            Exception: Whatever coredis makes of a failure; ``TooSlowError`` if there is no answer.
        """
        with trio.fail_after(self._timeout_s):
            return await self._client.eval(step.script, step.keys, list(step.words))

    async def ask_all(self, steps: Sequence[Step]) -> list[Any]:
        """Take steps in one go and return their answers.

        Raises:
            Exception: At least one of them may not have been taken.
        """
        if len(steps) == 1:  # a pipeline costs a fifth more
            return [await self.ask(*steps)]
        with trio.fail_after(self._timeout_s):
            pipeline = self._client.pipeline(transaction=False, raise_on_error=False)
            async with pipeline:
                for step in steps:
                    pipeline.eval(step.script, step.keys, list(step.words))
        answers = list(pipeline.results or ())
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers


def check_installed() -> None:
    """Find out whether coredis is there.

    Raises:
        ConfigurationError: It is not; the message says what to install.
    """
    try:
        import coredis
    except ImportError as error:
        raise ConfigurationError(
            f"REGISTRY_URL needs pip install 'offhook[redis]': {error}"
        ) from None
    # It writes a traceback for each attempt that fails; that the registry is away is ours to say.
    logging.getLogger(coredis.__name__).setLevel(logging.CRITICAL)
    coredis.Config.optimized = True  # it would look at each command's version, every time


async def _knock(address: RegistryAddress, timeout_s: float) -> None:
    """Make sure that somebody listens there.

    A connection of coredis' that is refused is garbage that only the collector clears away, and
    that runs seldom here: there is to be none for each attempt of an hour's.

    Raises:
        OSError: Nobody does.
        TooSlowError: Nobody has answered.
    """
    with trio.fail_after(timeout_s):
        if address.kind == "unix":
            await (await trio.open_unix_socket(address.path)).aclose()
            return
        for place, (host, port) in enumerate(address.hosts, 1):
            try:
                with trio.fail_after(timeout_s / len(address.hosts)):
                    await (await trio.open_tcp_stream(host, port)).aclose()
            except (OSError, trio.TooSlowError):
                if place == len(address.hosts):
                    raise
            else:
                return


def tls_context(ca: str | None) -> ssl.SSLContext:
    """What servers are checked with: made once, and again when the authorities' file has changed.

    What coredis makes of a connection that fails is garbage as well, and has this in it. Blocks, to
    read certificates: that takes tens of milliseconds, which calls would hear.

    Args:
        ca: The file; None for the system's authorities.
    """
    return _context_of(ca, 0 if ca is None else Path(ca).stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _context_of(ca: str | None, changed_at_ns: int) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca)


@asynccontextmanager
async def open_connection(address: RegistryAddress, timeout_s: float) -> AsyncGenerator[Connection]:
    """Open a client; when its connections fail, the block ends with a group of what befell them."""
    import coredis
    from coredis.connection import TCPLocation

    await _knock(address, timeout_s)
    timeouts = {"stream_timeout": timeout_s, "connect_timeout": timeout_s}
    theirs: dict[str, Any] = {
        **timeouts,
        "username": address.username,
        "password": address.password,
        "max_connections": MAX_CONNECTIONS,
    }
    context = await trio.to_thread.run_sync(tls_context, address.ca) if address.tls else None
    locations = [TCPLocation(host, port) for host, port in address.hosts]
    match address.kind:
        case "unix":
            async with coredis.Redis(
                unix_socket_path=address.path, db=address.db, **theirs
            ) as client:
                yield Connection(client, timeout_s)
        case "server":
            (host, port), *_ = address.hosts
            async with coredis.Redis(
                host, port, db=address.db, ssl_context=context, **theirs
            ) as client:
                yield Connection(client, timeout_s)
        case "cluster":
            async with coredis.RedisCluster(
                startup_nodes=locations,
                ssl=address.tls,
                ssl_context=context,
                decode_responses=False,
                **theirs,
            ) as client:
                yield Connection(client, timeout_s)
        case "sentinel":
            sentinels = coredis.Sentinel(
                locations,
                sentinel_kwargs={
                    **timeouts,
                    "username": address.sentinel_username,
                    "password": address.sentinel_password,
                    "ssl_context": context,
                },
                db=address.db,
                ssl_context=context,
                **theirs,
            )
            async with sentinels, sentinels.primary_for(address.name) as client:
                yield Connection(client, timeout_s)


def reasons(failure: BaseException) -> Iterator[BaseException]:
    """What a failure consists of, if it is a group."""
    if isinstance(failure, BaseExceptionGroup):
        for each in failure.exceptions:
            yield from reasons(each)
    else:
        yield failure


def is_sharding(failure: BaseException) -> bool:
    """Whether a server turns out to be a cluster's, which takes no step with keys of two calls."""
    return "CrossSlot" in type(failure).__name__ or "CROSSSLOT" in str(failure)


def is_theirs(failure: BaseException) -> bool:
    """Whether a failure is the network's or the server's, and not a bug.

    ``RuntimeError`` is what coredis says of a client that has just ended.
    """
    theirs = OSError, trio.TooSlowError, RuntimeError, RegistryAway
    return isinstance(failure, theirs) or type(failure).__module__.startswith(("coredis", "anyio"))
