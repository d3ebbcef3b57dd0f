"""hypercorn's trio worker as this server needs it, under its own command and in our program.

:func:`serve_worker` is what ``hypercorn.trio.run.worker_serve`` does, with four differences. The
calls are drained before the listeners are closed: hypercorn closes connections after a grace period
and tells nobody, so calls would be cut without a goodbye and the carrier's callbacks refused
meanwhile. Connections are islands that speak HTTP/1.1 (``connections.py``). A listener outlives a
shortage of descriptors. And an app whose inside has failed ends the process, with a status that a
supervisor restarts, where hypercorn would go on serving what nobody answers.

That is no public interface: pyproject.toml pins hypercorn to 0.18, and
tests/hooks/test_hypercorn_hook.py fails when another version goes another way.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from random import randint
from types import FrameType
from typing import Any

import hypercorn.trio
import hypercorn.trio.run
import structlog
import trio
from hypercorn.config import Config, Sockets
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState, LifespanState
from hypercorn.utils import repr_socket_addr

from server.errors import ConfigurationError
from server.hooks.connections import Doors, Listener
from server.hooks.detach import DetachableServer
from server.hooks.keeper import FAILED_STATUS, keep_worker, kept, workers_under_command
from server.hooks.sockets import BACKLOG
from server.hooks.stopping import StopSignals, hang_up, in_main_thread
from server.logs import output
from server.supervision import first_of

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def make_config(
    bind: str,
    *,
    errorlog: logging.Logger | None = None,
    max_message_bytes: int | None = None,
    **settings: Any,
) -> Config:
    """Configure hypercorn for one address.

    Args:
        bind: The address, or ``fd://`` with the number of a listening socket.
        errorlog: Where warnings and errors go; None for nowhere.
        max_message_bytes: The longest head of a request, and WebSocket message.
        settings: More of hypercorn's own.
    """
    config = Config()
    config.bind = [bind]
    config.accesslog = None  # requests are in our own log, without what a path may have in it
    config.errorlog = errorlog
    config.loglevel = "WARNING"  # where it listens is said by our own log
    config.include_server_header = False
    if max_message_bytes is not None:
        config.websocket_max_message_size = max_message_bytes
        config.h11_max_incomplete_size = max_message_bytes
    for name, value in settings.items():
        setattr(config, name, value)
    return config


async def _at_once() -> None:
    pass


async def serve_worker(
    app: AppWrapper,
    config: Config,
    *,
    sockets: Sockets | None = None,
    shutdown_trigger: Callable[..., Awaitable[None]] | None = None,
    drain: Callable[[], Awaitable[None]] = _at_once,
    failed: trio.Event | None = None,
    before: Callable[[], Awaitable[None]] = _at_once,
    relieved: trio.Event | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve an app until it is to stop, and then until its calls are drained.

    Args:
        app: hypercorn's wrapper of it.
        config: hypercorn's; of its protocols HTTP/1.1 is spoken.
        sockets: Where to listen; None opens what the configuration says.
        shutdown_trigger: Returns when the worker is to stop; None: it never is.
        drain: Ends the calls; awaited once, before the listeners are closed.
        failed: Set when the app can serve nobody any more: nothing is waited for then.
        before: Awaited when the app has started, before the first connection is accepted.
        relieved: Set when somebody else accepts connections in our place: those that are open are
            served on.
        task_status: Told the addresses.
    """
    config.alpn_protocols = ["http/1.1"]
    state: LifespanState = {}
    lifespan = Lifespan(app, config, state)
    most = config.max_requests and config.max_requests + randint(0, config.max_requests_jitter)
    context = WorkerContext(most)
    failed = trio.Event() if failed is None else failed
    relieved = trio.Event() if relieved is None else relieved
    doors = Doors()
    doors.keep_spare()
    try:
        async with trio.open_nursery() as lifespan_nursery:
            await lifespan_nursery.start(lifespan.handle_lifespan)
            await lifespan.wait_for_startup()
            async with trio.open_nursery() as connections:

                async def serve_one(stream: Any) -> None:
                    doors.begin()
                    each = ConnectionState(state.copy())
                    await DetachableServer(doors, app, config, context, each, stream).run()

                async def accept() -> None:
                    await trio.serve_listeners(serve_one, listeners, handler_nursery=connections)

                listeners, addresses = _listen(config, sockets or config.create_sockets(), doors)
                await before()
                async with trio.open_nursery() as accepting:
                    accepting.start_soon(first_of, accept, relieved.wait)
                    task_status.started(addresses)
                    reasons = [context.terminate.wait, failed.wait]
                    await first_of(*reasons, *([shutdown_trigger] if shutdown_trigger else []))
                    if not failed.is_set():
                        await first_of(drain, failed.wait)
                    accepting.cancel_scope.cancel("the server stops")
                await context.terminated.set()
                doors.dismiss()
                grace_s = 0.0 if failed.is_set() else config.graceful_timeout
                connections.cancel_scope.deadline = trio.current_time() + grace_s
            if not failed.is_set():
                await lifespan.wait_for_shutdown()
            lifespan_nursery.cancel_scope.cancel("the server has stopped")
    finally:
        doors.close()


def _listen(
    config: Config, sockets: Sockets, doors: Doors
) -> tuple[list[trio.SSLListener[Any] | Listener], list[str]]:
    context = config.create_ssl_context()
    listeners: list[trio.SSLListener[Any] | Listener] = []
    addresses = []
    for sock in (*sockets.secure_sockets, *sockets.insecure_sockets):
        sock.listen(max(config.backlog, BACKLOG))
        listener: trio.SSLListener[Any] | Listener = Listener(sock, doors)
        scheme = "http"
        if sock in sockets.secure_sockets:
            assert context is not None
            scheme = "https"
            listener = trio.SSLListener(listener, context, https_compatible=True)
        listeners.append(listener)
        addresses.append(f"{scheme}://{repr_socket_addr(sock.family, sock.getsockname())}")
    return listeners, addresses


# ------------------------------------------------------------------------------------------
# In hypercorn's own place


@dataclass(frozen=True, slots=True)
class Served:
    """What whoever serves an app has to know of it.

    Attributes:
        drain: Ends the calls; awaited once, in the worker's event loop.
        join: Told how many workers there are, before the app is started. The number is in the
            configuration, of which an app is told nothing.
        failed: Set when the app can serve nobody any more.
    """

    drain: Callable[[], Awaitable[None]] = _at_once
    join: Callable[[int], None] = lambda count: None
    failed: trio.Event | None = None


_SERVED = "_served_by_hypercorn"
"""An app's own attribute: a table of ours would keep it for good, as what is in it leads back."""


def install(app: Any, served: Served) -> None:
    """Have hypercorn serve by :func:`serve_worker` in this process, under its command or not.

    Called when an app is made. Other apps of the process are served like that, too.
    """
    setattr(app, _SERVED, served)
    worker: Any = hypercorn.trio.run  # to mypy, what it imports is not its to give away
    worker.worker_serve = _serve_under_command
    program: Any = hypercorn.trio
    program.worker_serve = _serve_in_program


def _what_is_served(app: AppWrapper) -> Served:
    return getattr(getattr(app, "app", app), _SERVED, Served())


async def _serve_in_program(app: AppWrapper, config: Config, **options: Any) -> None:
    """Stand in for ``worker_serve`` in ``hypercorn.trio.serve``: signals are the program's."""
    served = _what_is_served(app)
    await serve_worker(app, config, drain=served.drain, failed=served.failed, **options)


STOP_SIGNALS = StopSignals(
    {signal.SIGTERM: False, signal.SIGINT: True} | dict.fromkeys(hang_up(), False)
)
"""In a process of the ``hypercorn`` command. Its master sends SIGTERM to each worker still running
when the first has ended, so a later one says nothing new: the drain has a deadline of its own. A
second Ctrl+C ends the process at once."""


def begin_under_command() -> None:
    """Catch signals from now on, if this is the ``hypercorn`` command that imports us.

    With several workers what returns from here is a worker that is kept: see ``keeper.py``.
    """
    if (count := workers_under_command()) is not None and in_main_thread():
        keep_worker(count)
        STOP_SIGNALS.install()


async def _serve_under_command(
    app: AppWrapper,
    config: Config,
    *,
    sockets: Sockets | None = None,
    shutdown_trigger: Callable[..., Awaitable[None]] | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Stand in for ``worker_serve`` in a worker of the ``hypercorn`` command.

    It stops when its signals say so, or the master does, or when the master is gone.
    """
    served, asked = _what_is_served(app), trio.Event()
    try:
        served.join(config.workers)
    except ConfigurationError as error:
        sys.exit(f"offhook: {error}")
    if in_main_thread():
        STOP_SIGNALS.install()
    waits = [asked.wait, *([shutdown_trigger] if shutdown_trigger else [])]
    if (master := multiprocessing.parent_process()) is not None and sys.platform != "win32":
        waits.append(partial(trio.lowlevel.wait_readable, master.sentinel))
    if kept.replaces is not None:
        logger.error("a process of this server ended", status=kept.replaces)

    serve = partial(
        serve_worker,
        app,
        config,
        sockets=sockets,
        shutdown_trigger=partial(first_of, *waits),
        drain=served.drain,
        failed=served.failed,
    )
    with STOP_SIGNALS.told(asked):
        async with trio.open_nursery() as nursery:
            addresses = await nursery.start(serve)
            kept.serves()
            task_status.started(addresses)
    if served.failed is not None and served.failed.is_set():
        sys.exit(FAILED_STATUS)
    if STOP_SIGNALS.came.intersection(hang_up()) and master is not None and master.is_alive():
        # A terminal that closes tells everybody, and hypercorn would begin anew with other workers.
        assert master.pid is not None
        os.kill(master.pid, signal.SIGTERM)


# ------------------------------------------------------------------------------------------
# Other servers

NOT_LOADED = 3
"""gunicorn ends when a worker does so with this status, and starts another after any other."""
OTHER_SERVERS = ("uvicorn", "gunicorn", "daphne", "granian", "waitress", "hypercorn.asyncio")
HOW_TO_SERVE = (
    "serve it with hypercorn's trio worker: hypercorn -c server/hypercorn.toml server.asgi:app "
    "(or -k trio), or with python -m server"
)


def refuse_other_servers() -> None:
    """End this process if another server is about to serve us: every request would fail.

    Called when the app is made, which is while that server imports the application's module.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        name = frame.f_globals.get("__name__") or ""
        for other in OTHER_SERVERS:
            if name == other or name.startswith(f"{other}."):
                print(f"offhook: {other} cannot serve it: {HOW_TO_SERVE}", file=sys.stderr)  # noqa: T201
                _end_master()
                sys.exit(NOT_LOADED)
        frame = frame.f_back


def _end_master() -> None:
    """End the process that has spawned this one to serve, if one has.

    uvicorn's would start another, again and again, and hypercorn's ends with status 0 if its only
    worker does not start; neither asks what a worker has to say, nor lets a signal it can catch
    become its status.
    """
    if multiprocessing.parent_process() is not None and sys.platform != "win32":
        output.drain()
        sys.stderr.flush()  # where it is not ours yet
        os.kill(os.getppid(), signal.SIGKILL)
