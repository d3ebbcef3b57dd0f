"""Reads the command line and does what it says."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from server.commands.here import import_from_here, in_the_way
from server.commands.serve import add_address_options, add_options, serve
from server.errors import ConfigurationError, ServerError

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
    dev = commands.add_parser(
        "dev",
        help="serve while you write: restarts when code changes, opens a tunnel",
        description="Serve, and begin again when code changes; agents are read at once. Where "
        "Twilio has to reach this machine, a tunnel is opened by cloudflared or ngrok, if one is "
        "installed, and the number's webhooks are set to it until the end, after asking once.",
    )
    add_address_options(dev, has_defaults=False)
    dev.add_argument(
        "--tunnel",
        choices=("auto", "none", "cloudflared", "ngrok"),
        default="auto",
        help="what opens one (default: whatever is installed, if Twilio has to reach this machine)",
    )
    dev.add_argument("--yes", action="store_true", help="set the number's webhooks unasked")
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
    demo.add_argument(
        "--browser",
        action="store_true",
        help="serve a page to call the simulated server from, and open it",
    )
    demo.add_argument(
        "--say",
        type=Path,
        metavar="FILE",
        help="what the callee says, a WAV file of yours; the simulated model says it back",
    )
    new = commands.add_parser(
        "new",
        help="write a small project that runs at once",
        description="Write a small project: a pizzeria's agents, tools, tests, and a receiver of "
        "its orders. It runs at once on the simulators. What is there is never overwritten.",
    )
    new.add_argument("folder", type=Path, help="where; it is made, as: offhook new pizzeria")
    check = commands.add_parser(
        "check",
        help="try every account, number and address that is set, once",
        description="Try every account, number and address that is set, once. The exit status is "
        "0 if none of them fails, and 1 otherwise.",
    )
    check.add_argument("--json", action="store_true", help="print what was found for a program")
    number = commands.add_parser(
        "number",
        help="have a number's callers come here",
        description="Set a number's voice and status webhooks to this server (PUBLIC_URL), and "
        "write it into an agent's file. What is so already stays.",
    )
    number.add_argument("number", help="one of the carrier's account, as +584125550001")
    number.add_argument("--agent", help="who answers it, by name", metavar="NAME")
    number.add_argument("--yes", action="store_true", help="do not ask")
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
    _check_options(parser, chosen)
    import_from_here()
    if chosen.command != "check" and (problem := in_the_way()) is not None:
        print(f"offhook: {problem}", file=sys.stderr)  # noqa: T201
    try:
        return _do(parser, chosen)
    except ConfigurationError as error:
        print(f"offhook: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except ServerError as error:
        print(f"offhook: {error}", file=sys.stderr)  # noqa: T201
        return 1


def _check_options(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    """Refuse options of serving in front of a command that does nothing with them."""
    if chosen.command in (None, "serve"):
        return
    understood = ("host", "port", "model_script") if chosen.command == "dev" else ()
    for name in ("host", "port", "model_script", "workers", "take_over", "detach", "reload_agents"):
        if name not in understood and getattr(chosen, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} does not go with {chosen.command}")


def _do(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> int:
    match chosen.command:
        case "demo":
            # The demo brings a terminal display that serving does without.
            if chosen.browser:
                from server.demo.page import run_page

                return run_page()
            from server.demo.command import run_demo

            return run_demo(chosen.script, chosen.out, chosen.say)
        case "dev":
            from server.commands.dev import dev

            return dev(chosen)
        case "new":
            from server.commands.new import write_new

            return write_new(chosen.folder)
        case "check":
            from server.commands.check import check

            return check(as_json=chosen.json)
        case "number":
            from server.commands.number import point_number

            return point_number(chosen.number, chosen.agent, is_sure=chosen.yes)
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
