"""``python -m benchmarks NAME [--quick] [--json FILE] [--plots DIR]``."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import signal
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.options import Options, machine

BENCHMARKS = {
    "codec": "what one 20 ms chunk costs, beside every other way to do it",
    "path": "what a chunk costs between the two sockets' bytes, in C and in readable Python",
    "sockets": "whether io_uring, edge-triggered epoll or busy polling would make sockets cheaper",
    "tls": "what TLS to the model costs on the media plane, in C and by Python",
    "ear": "what it costs to judge locally when the caller speaks, and how soon it is right",
    "chunk": "how long a chunk stays in the server, through a whole simulated call",
    "calls": "how many calls one core carries",
    "asterisk": "what somebody on the telephone hears of an agent behind a real Asterisk",
    "setup": "what one call costs before anybody has said a word, and after the last one",
    "turnover": "whether memory stays flat while calls come and go, for as long as one likes",
    "soak": "what ten thousand calls leave behind, with everything going wrong",
    "hostile": "what an attacker gets, and what the calls that are going on notice of it",
    "burst": "what becomes of hundreds of calls that come in within a second",
    "jitter": "what a caller hears of a model that drips, over networks that stall",
    "chaos": "what holds when everything around a server goes wrong, for as long as one likes",
    "plan": "what so many calls need, and what breaks first, on paper",
    "failover": "what calls notice when a process, a node, the registry or the network goes",
    "events": "whether every event arrives, though its receiver fails and its server is killed",
    "browser": "how soon a page hears its agent, and how soon one that is interrupted is silent",
    "console": "how soon the console shows a list, a filter and one call, of ten thousand",
    "screens": "what the console looks like: pictures of every view, made anew",
    "recovery": "what a call notices when its model connection is replaced, or breaks",
}


def main(arguments: list[str]) -> int:
    present = [name for name in BENCHMARKS if importlib.util.find_spec(f"benchmarks.{name}")]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="benchmarks:\n" + "\n".join(f"  {name:10}{BENCHMARKS[name]}" for name in present),
    )
    parser.add_argument("name", choices=present, metavar="NAME", help="which benchmark to run")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="fewer rounds: about two minutes, more on a busy machine",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw figures")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write plots as PNG files")
    if not arguments:
        parser.print_help()
        return 0
    module: Any = None
    if arguments[0] in present:
        module = importlib.import_module(f"benchmarks.{arguments[0]}")
        if hasattr(module, "add_arguments"):
            module.add_arguments(parser)
    chosen = parser.parse_args(arguments)
    if module is None:
        parser.error("NAME comes first")
    # Processes and files of a benchmark are cleaned up however it ends.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if chosen.plots is not None:
        chosen.plots.mkdir(parents=True, exist_ok=True)

    # Tables are cut to 80 columns where there is no terminal to ask for its width.
    console = Console(width=None if sys.stdout.isatty() else 110)
    options = Options(console=console, quick=chosen.quick, plots=chosen.plots, arguments=chosen)
    figures: dict[str, object] = {"machine": machine(), **module.run(options)}

    if chosen.json is not None:
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n")
        options.console.print(f"raw figures: {chosen.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
