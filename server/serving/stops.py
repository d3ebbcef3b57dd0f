"""Which signals stop a server, and what SIGHUP means to it."""

from __future__ import annotations

import signal
import sys

from server.hooks.stopping import StopSignals, hang_up, has_terminal
from server.settings.settings import Settings

STOP = (signal.SIGTERM, signal.SIGINT, *hang_up())
"""What a process of several is held back from until it can take it."""


def stop_signals() -> StopSignals:
    """What stops a server in one process: a second Ctrl+C ends it at once."""
    wanted = {signal.SIGTERM: False, signal.SIGINT: True} | dict.fromkeys(hang_up(), False)
    if sys.platform == "win32":
        wanted[signal.SIGBREAK] = True  # the only one that a parent can send there
    return StopSignals(wanted)


def master_signals() -> StopSignals:
    """What stops a server of several processes."""
    ends_it = {signal.SIGTERM: True, signal.SIGINT: True}
    return StopSignals(ends_it | dict.fromkeys(hang_up(), False))


def choose_hang_up(settings: Settings, signals: StopSignals) -> None:
    """Let SIGHUP mean that agents are read again, where no terminal sends it by closing.

    That is known, and to be said, long before there are agents: what comes until then stops
    nothing, and is met when they are first read.
    """
    if settings.agents is not None and not has_terminal():
        signals.reload_by(hang_up())
