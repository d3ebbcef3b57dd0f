"""``python -m server`` serves, ``demo`` shows a call, ``new-key`` makes an API key."""

from __future__ import annotations

import argparse
import re
import sys
from functools import partial

import trio

from server import logs
from server.cluster.directory.board import MAX_WORKERS
from server.cluster.directory.meeting import AVAILABLE
from server.errors import CannotListen, ConfigurationError
from server.hooks.sockets import raise_file_limit
from server.logs import output
from server.serving.master import Master, master_signals
from server.serving.notify import Detached
from server.serving.single import run, stop_signals
from server.serving.succession import reload_agents
from server.settings.settings import Settings
from server.settings.values import KEY_NAME
from server.web.keys import hash_key, new_key


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and do it; the value is the exit status."""
    parser = argparse.ArgumentParser(prog="python -m server", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    demo = commands.add_parser("demo", help="place one simulated call and show it live")
    demo.add_argument(
        "--script",
        default="interrupts",
        help="what the callee and the model do, or all (default: %(default)s)",
    )
    key = commands.add_parser("new-key", help="make an API key and show what goes into API_KEYS")
    key.add_argument("name", help="whom it is for: lower-case letters, digits, - and _")
    parser.add_argument("--host", help="address to listen on (HOST)")
    parser.add_argument("--port", type=int, help="port to listen on (PORT)")
    parser.add_argument(
        "-w",
        "--workers",
        type=_worker_count,
        default=1,
        metavar="N",
        help="how many processes (default: 1)",
    )
    parser.add_argument(
        "--take-over",
        action="store_true",
        help="take over from the server at this address: it ends when its calls have",
    )
    parser.add_argument(
        "--detach",
        action="store_true",
        help="return as soon as the new server serves (with --take-over)",
    )
    parser.add_argument(
        "--reload-agents",
        action="store_true",
        help="have the server at this address read its agents again, and return",
    )
    chosen = parser.parse_args(arguments)
    if chosen.detach and not chosen.take_over:
        parser.error("--detach goes with --take-over")
    if (chosen.take_over or chosen.reload_agents) and not AVAILABLE:
        option = "--take-over" if chosen.take_over else "--reload-agents"
        parser.error(f"{option} needs Unix sockets, which this system does not have")
    if chosen.command == "demo":
        # The demo brings its own dependencies (a terminal display) that serving does without.
        from server.demo.command import run_demo

        try:
            return run_demo(chosen.script)
        except ConfigurationError as error:
            print(f"offhook: {error}", file=sys.stderr)  # noqa: T201
            return 2
    if chosen.command == "new-key":
        return _new_key(chosen.name)
    if chosen.reload_agents:
        return _reload_agents(chosen.host, chosen.port)
    detached = Detached(wanted=chosen.detach)
    if detached.status is not None:
        return detached.status
    output.take_over()
    overrides = {k: v for k, v in (("host", chosen.host), ("port", chosen.port)) if v is not None}
    signals = stop_signals() if chosen.workers == 1 else master_signals()
    signals.install()
    try:
        settings = Settings.load(**overrides)
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
        serve = partial(run, settings, signals, detached, takes_over=chosen.take_over)
        return trio.run(serve)
    except ConfigurationError as error:
        print(f"offhook: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except CannotListen as error:
        print(f"offhook: {error}", file=sys.stderr)  # noqa: T201
        return 1


def _reload_agents(host: str | None, port: int | None) -> int:
    overrides = {k: v for k, v in (("host", host), ("port", port)) if v is not None}
    try:
        settings = Settings.load(**overrides)
        print(trio.run(reload_agents, settings.host, settings.port))  # noqa: T201
    except (ConfigurationError, CannotListen) as error:
        print(f"offhook: {error}", file=sys.stderr)  # noqa: T201
        return 2 if isinstance(error, ConfigurationError) else 1
    return 0


def _worker_count(text: str) -> int:
    if re.fullmatch("[0-9]{1,9}", text) is None or not 1 <= int(text) <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {MAX_WORKERS}")
    return int(text)


def _new_key(name: str) -> int:
    if re.fullmatch(KEY_NAME, name) is None:
        print(f"offhook: {name!r} must be lower-case letters, digits, - and _", file=sys.stderr)  # noqa: T201
        return 2
    key = new_key()
    print(f"key (shown only now, give it to {name}): {key}")  # noqa: T201
    print(f"add to API_KEYS, comma between keys:      {name}:{hash_key(key)}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
