"""Run the app under hypercorn inside our own trio program, with a drain before the shutdown.

hypercorn cuts open connections after its grace period and tells nobody; so on SIGTERM, SIGINT or
SIGHUP the calls are drained first and hypercorn is asked to stop only when the last one has ended.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable
from functools import partial

import structlog
import trio
from hypercorn.utils import wrap_app

from server.app import OffhookApp, create_app
from server.cluster.directory.board import MAX_WORKERS
from server.cluster.directory.meeting import AVAILABLE
from server.errors import CannotListen, ConfigurationError
from server.hooks.hypercorn_worker import make_config, serve_worker
from server.hooks.keeper import FAILED_STATUS
from server.hooks.stopping import StopSignals
from server.serving.listening import listen
from server.serving.notify import Detached
from server.serving.succession import Predecessor, Succession
from server.settings.settings import Settings
from server.supervision import first_of

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_MESSAGE_BYTES = 64 * 1024
"""A Media Streams message is about 350 bytes; nothing of Twilio's comes near this."""


IDLE_TIMEOUT_S = 5
"""A connection that is new, or between requests, must bring a whole request head within this."""


async def serve(
    app: OffhookApp,
    listener: socket.socket,
    *,
    stop: trio.Event,
    before: Callable[[], Awaitable[None]] | None = None,
    relieved: trio.Event | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve on a listening socket, and close it, until ``stop`` is set and the calls have ended.

    It returns at once when ``app.service.failed`` is set.

    Args:
        app: The server.
        listener: Is ours from now on.
        stop: Set by whoever wants this to end.
        before: Awaited when all is ready, before the first connection is accepted.
        relieved: Set when another server has taken over; the calls end by themselves then.
        task_status: Told when connections are accepted.
    """
    relieved = trio.Event() if relieved is None else relieved

    async def wait_over() -> None:
        await relieved.wait()
        await app.service.step_aside()

    config = make_config(
        f"fd://{listener.detach()}",
        errorlog=logging.getLogger("hypercorn.error"),
        max_message_bytes=MAX_MESSAGE_BYTES,
        keep_alive_timeout=IDLE_TIMEOUT_S,
        graceful_timeout=app.service.settings.close_timeout_s,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(
                serve_worker,
                wrap_app(app, config.wsgi_max_body_size, "asgi"),
                config,
                shutdown_trigger=partial(first_of, stop.wait, wait_over),
                before=before or trio.lowlevel.checkpoint,
                relieved=relieved,
                drain=app.service.wind_up,
                failed=app.service.failed,
            )
        )
        task_status.started()


async def run(
    settings: Settings, signals: StopSignals, detached: Detached, *, takes_over: bool
) -> int:
    """Serve in this process until told to stop, or taken over; the value is the exit status.

    Args:
        settings: The process's.
        signals: What stops it.
        detached: Told when it serves.
        takes_over: Whether it takes over from the server that has its address.

    Raises:
        CannotListen: The address is taken, not ours to listen on, or not given to us.
        ConfigurationError: A setting is wrong.
    """
    predecessor = await Predecessor.ask(settings.host, settings.port) if takes_over else None
    stop, refusals = trio.Event(), list[CannotListen]()
    with signals.told(stop):
        try:
            app = create_app(settings)
            app.service.cluster.stands_aside = predecessor is not None
            can_be_met = _join(app, must=takes_over, known=known_places(settings, 1))
            listener = predecessor.listener if predecessor else listen(settings.host, settings.port)
            port = listener.getsockname()[1]
            signals.on_reload = app.service.roster.wanted.set
            succession = None
            if can_be_met:
                reload = partial(read_agents_again, app)
                succession = Succession(listener, settings.host, port, reload, stop.is_set)

            async def begin() -> None:
                if stop.is_set():  # before it has served: whoever serves here goes on
                    return
                if predecessor is not None:
                    try:
                        await predecessor.relieve()
                    except CannotListen as error:
                        refusals.append(error)
                        stop.set()  # what is accepted until that is seen is passed on
                        return
                    app.service.step_in()
                if succession is not None:
                    await waiting.start(succession.run)
                detached.tell_ready()

            async with trio.open_nursery() as waiting:
                relieved = None if succession is None else succession.relieved
                await serve(app, listener, stop=stop, before=begin, relieved=relieved)
                waiting.cancel_scope.cancel("the calls have ended")
        finally:
            if predecessor is not None:
                predecessor.close()
    for refusal in refusals:
        raise refusal
    return FAILED_STATUS if app.service.failed.is_set() else 0


def known_places(settings: Settings, count: int) -> int | None:
    """How many places new calls find their way to, None for all: Asterisk's dialplan names an app
    for each process of a server, and of one that takes over from it.
    """
    return 2 * count if settings.carrier == "asterisk" else None


def _join(app: OffhookApp, *, must: bool, known: int | None) -> bool:
    """Take a place where a server that takes over will find us; False if there is none to take."""
    if not (AVAILABLE or must):
        return False
    try:
        app.service.cluster.join(1, places=MAX_WORKERS, speaks_for_all=True, known=known)
    except (ConfigurationError, OSError) as error:
        if must:
            raise
        logger.warning("this server cannot be taken over", error=str(error))
        return False
    return True


async def read_agents_again(app: OffhookApp) -> str:
    """Read the agents again; returns how many there are.

    Raises:
        ConfigurationError: They are wrong.
    """
    agents = await app.service.roster.reload()
    return f"agents read: {', '.join(sorted(agents.by_name))}"
