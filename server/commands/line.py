"""Reads the command line and does what it says."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from server.commands.serve import add_options, serve
from server.errors import CannotListen, ConfigurationError

SHELLS = ("bash", "zsh", "tcsh")
DESCRIPTION = """Offhook answers and places phone calls and has Gemini Live talk on them.

Without a command it serves; the settings come from the environment and from .env."""


def parser_of(program: str) -> argparse.ArgumentParser:
    """The whole command line.

    Args:
        program: What it is called, for the help.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, has_defaults=True)
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    add_options(
        commands.add_parser("serve", help="answer and place calls, until told to stop"),
        has_defaults=False,
    )
    demo = commands.add_parser(
        "demo",
        help="place one simulated call and show it live",
        description="Place one simulated call through the real API and show it live.",
    )
    demo.add_argument(
        "--script",
        default="interrupts",
        help="what the callee and the model do, or all (default: %(default)s)",
    )
    demo.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where the recording goes, a WAV file (left: caller, right: agent)",
    )
    key = commands.add_parser("new-key", help="make an API key and show what goes into API_KEYS")
    key.add_argument("name", help="whom it is for: lower-case letters, digits, - and _")
    key.add_argument(
        "--read-only", action="store_true", help="a key that places and ends no call, for who looks"
    )
    completion = commands.add_parser(
        "completion", help="print what completes this command line in a shell"
    )
    completion.add_argument("shell", choices=SHELLS)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and do it; the value is the exit status."""
    name = Path(sys.argv[0]).name
    parser = parser_of("offhook" if name.startswith("offhook") else "python -m server")
    chosen = parser.parse_args(arguments)
    try:
        return _do(parser, chosen)
    except ConfigurationError as error:
        print(f"offhook: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except CannotListen as error:
        print(f"offhook: {error}", file=sys.stderr)  # noqa: T201
        return 1


def _do(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> int:
    match chosen.command:
        case "demo":
            # The demo brings a terminal display that serving does without.
            from server.demo.command import run_demo

            return run_demo(chosen.script, chosen.out)
        case "new-key":
            from server.commands.keys import show_new_key

            return show_new_key(chosen.name, may_only_look=chosen.read_only)
        case "completion":
            print(_completion(chosen.shell))  # noqa: T201
            return 0
    return serve(parser, chosen)


def _completion(shell: str) -> str:
    try:
        import shtab
    except ImportError:
        raise ConfigurationError(
            "completion needs shtab: pip install 'offhook[completion]'"
        ) from None
    return str(shtab.complete(parser_of("offhook"), shell))
