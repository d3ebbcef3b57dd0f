"""``offhook serve``: answer calls until told to stop, in one process or several."""

from __future__ import annotations

import argparse
import re
from functools import partial
from pathlib import Path
from typing import Any

import trio

from server import logs
from server.cluster.directory.board import MAX_WORKERS
from server.cluster.directory.meeting import AVAILABLE
from server.garbage import imported_for_good
from server.hooks.sockets import raise_file_limit
from server.logs import output
from server.serving.master import Master
from server.serving.notify import Detached
from server.serving.stops import choose_hang_up, master_signals, stop_signals
from server.serving.succession import reload_agents
from server.settings.settings import Settings


def add_address_options(parser: argparse.ArgumentParser, *, has_defaults: bool) -> None:
    """Add what every command understands that serves: see :func:`add_options`."""
    default = None if has_defaults else argparse.SUPPRESS
    parser.add_argument("--host", help="address to listen on (HOST)", default=default)
    parser.add_argument("--port", type=int, help="port to listen on (PORT)", default=default)
    parser.add_argument(
        "--model-script",
        type=Path,
        metavar="FILE",
        default=default,
        help="what the simulated model says, a TOML file (SIMULATED_MODEL_SCRIPT)",
    )


def add_options(parser: argparse.ArgumentParser, *, has_defaults: bool) -> None:
    """Add what serving understands.

    Args:
        parser: Of a command line.
        has_defaults: Whether what is not said is as here; otherwise it stays as it was.
    """

    def default(value: object) -> object:
        return value if has_defaults else argparse.SUPPRESS

    add_address_options(parser, has_defaults=has_defaults)
    parser.add_argument(
        "-w",
        "--workers",
        type=_worker_count,
        default=default(1),
        metavar="N",
        help="how many processes (default: 1)",
    )
    parser.add_argument(
        "--take-over",
        action="store_true",
        default=default(False),
        help="take over from the server at this address: it ends when its calls have",
    )
    parser.add_argument(
        "--detach",
        action="store_true",
        default=default(False),
        help="return as soon as the new server serves (with --take-over)",
    )
    parser.add_argument(
        "--reload-agents",
        action="store_true",
        default=default(False),
        help="have the server at this address read its agents again, and return",
    )


def serve(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> int:
    """Serve until told to stop; the value is the exit status.

    Raises:
        ConfigurationError: The settings do not fit.
        CannotListen: The address is taken.
    """
    if chosen.detach and not chosen.take_over:
        parser.error("--detach goes with --take-over")
    if (chosen.take_over or chosen.reload_agents) and not AVAILABLE:
        option = "--take-over" if chosen.take_over else "--reload-agents"
        parser.error(f"{option} needs Unix sockets, which this system does not have")
    overrides = overrides_of(chosen)
    if chosen.reload_agents:
        logs.configure(level="WARNING")
        settings = Settings.load(**overrides)
        print(trio.run(reload_agents, settings.host, settings.port))  # noqa: T201
        return 0
    detached = Detached(wanted=chosen.detach)
    if detached.status is not None:
        return detached.status
    output.take_over()
    signals = stop_signals() if chosen.workers == 1 else master_signals()
    signals.install()
    settings = Settings.load(**overrides)
    choose_hang_up(settings, signals)
    logs.configure(level=settings.log_level, json=settings.log_json)
    raise_file_limit()
    if chosen.workers > 1:
        master = Master(
            settings,
            overrides,
            chosen.workers,
            signals,
            detached,
            takes_over=chosen.take_over,
        )
        return trio.run(master.run)
    with imported_for_good():
        from server.serving.single import run

    return trio.run(partial(run, settings, signals, detached, takes_over=chosen.take_over))


def overrides_of(chosen: argparse.Namespace) -> dict[str, Any]:
    """The settings that a command line has said."""
    said = {
        "host": chosen.host,
        "port": chosen.port,
        "simulated_model_script": chosen.model_script,
    }
    return {name: value for name, value in said.items() if value is not None}


def _worker_count(text: str) -> int:
    if re.fullmatch("[0-9]{1,9}", text) is None or not 1 <= int(text) <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {MAX_WORKERS}")
    return int(text)
