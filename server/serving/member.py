"""A process of several: it serves as one alone does, and heeds what its parent says."""

from __future__ import annotations

import multiprocessing
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import trio

from server import logs
from server.app import create_app
from server.cluster.directory.board import MAX_WORKERS
from server.errors import ConfigurationError
from server.hooks.keeper import FAILED_STATUS
from server.hooks.sockets import raise_file_limit
from server.hooks.stopping import StopSignals
from server.logs import output
from server.serving.single import known_places, serve
from server.serving.stops import STOP, choose_hang_up
from server.serving.words import MAX_WORD_BYTES, READ_AGENTS, READY, STEP_ASIDE, STEP_IN
from server.settings.settings import Settings
from server.signal import Signal
from server.supervision import first_of


def work(
    listener: socket.socket,
    overrides: Mapping[str, Any],
    count: int,
    index: int,
    master: Connection,
) -> None:
    """What a process of several does: serve, until it or its parent is told to stop."""
    # A service manager or a terminal tells every process, and the parent tells them again: once is
    # enough. They have been held back since before this process began, and until it is known what
    # SIGHUP means.
    signals = StopSignals(dict.fromkeys(STOP, False))
    output.take_over()
    try:
        settings = Settings.load(**overrides)
        choose_hang_up(settings, signals)
        signals.install()
        logs.configure(level=settings.log_level, json=settings.log_json)
        raise_file_limit()
        status = trio.run(_serve, settings, listener, count, index, master, signals)
    except ConfigurationError as error:
        print(f"offhook: {error}", file=sys.stderr)  # noqa: T201
        status = 2
    sys.exit(status)


async def _serve(
    settings: Settings,
    listener: socket.socket,
    count: int,
    index: int,
    master: Connection,
    signals: StopSignals,
) -> int:
    app = create_app(settings)
    service = app.service
    known = known_places(settings, count)
    service.cluster.join(count, places=MAX_WORKERS, speaks_for_all=index == 0, known=known)
    service.cluster.stands_aside = True
    stop, begun, relieved = trio.Event(), trio.Event(), trio.Event()

    async def begin() -> None:
        # One that is to stop takes nothing over: what it accepts until then is passed on.
        if not stop.is_set() or begun.is_set():
            with suppress(OSError):  # the parent has gone already
                master.send_bytes(READY)
            await first_of(begun.wait, stop.wait, service.failed.wait)
        if begun.is_set():
            service.step_in()

    signals.on_reload = service.roster.wanted.set
    words: Mapping[bytes, trio.Event | Signal] = {
        STEP_IN: begun,
        STEP_ASIDE: relieved,
        READ_AGENTS: service.roster.wanted,
    }
    with signals.told(stop):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_with_parent, stop)
            nursery.start_soon(_heed, master, words)
            await serve(app, listener, stop=stop, before=begin, relieved=relieved)
            nursery.cancel_scope.cancel("the calls have ended")
    return FAILED_STATUS if app.service.failed.is_set() else 0


async def _heed(master: Connection, words: Mapping[bytes, trio.Event | Signal]) -> None:
    """Set what belongs to each word that the parent says."""
    with suppress(OSError, EOFError):  # it has gone, which is another's to see
        while True:
            await trio.lowlevel.wait_readable(master.fileno())
            words[master.recv_bytes(MAX_WORD_BYTES)].set()


async def _stop_with_parent(stop: trio.Event) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    await trio.lowlevel.wait_readable(parent.sentinel)
    stop.set()
