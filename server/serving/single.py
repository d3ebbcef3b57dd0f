"""Run the app under hypercorn inside our own trio program, with a drain before the shutdown.

hypercorn cuts open connections after its grace period and tells nobody; so on SIGTERM or SIGINT
the calls are drained first and hypercorn is asked to stop only when the last one has ended.
"""

from __future__ import annotations

import errno
import logging
import signal
import socket
import sys
from functools import partial

import trio
from hypercorn.utils import wrap_app

from server.app import OffhookApp
from server.errors import CannotListen
from server.hooks.hypercorn_worker import make_config, serve_worker
from server.hooks.sockets import BACKLOG, holder_of, limit_unread
from server.hooks.stopping import StopSignals

MAX_MESSAGE_BYTES = 64 * 1024
"""A Media Streams message is about 350 bytes; nothing of Twilio's comes near this."""


IDLE_TIMEOUT_S = 5
"""A connection that is new, or between requests, must bring a whole request head within this."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        CannotListen: The address is taken, or not ours to listen on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        limit_unread(listener)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotListen(f"cannot listen on {host}:{port}: {_remedy(error, port)}") from error
    return listener


def _remedy(error: OSError, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            holder = holder_of(port) or "another process"
            return f"{holder} has it; stop that, or choose another port (--port or PORT)"
        case errno.EACCES:
            return "ports below 1024 are for the system's administrator; choose another (PORT)"
        case errno.EADDRNOTAVAIL:
            return "no network interface of this machine has that address (--host or HOST)"
        case _:
            return f"{error.strerror or error} (--host or HOST, --port or PORT)"


async def serve(
    app: OffhookApp,
    listener: socket.socket,
    *,
    stop: trio.Event,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve on a listening socket, and close it, until ``stop`` is set and the calls have ended.

    It returns at once when ``app.service.failed`` is set.
    """
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
                shutdown_trigger=stop.wait,
                drain=app.service.drain,
                failed=app.service.failed,
            )
        )
        task_status.started()


def stop_signals() -> StopSignals:
    """What stops a server in one process: a second Ctrl+C ends it at once."""
    wanted = {signal.SIGTERM: False, signal.SIGINT: True}
    if sys.platform == "win32":
        wanted[signal.SIGBREAK] = True  # the only one that a parent can send there
    return StopSignals(wanted)
