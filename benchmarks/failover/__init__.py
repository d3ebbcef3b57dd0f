"""What do calls notice when a process, a machine, the registry or the network between them goes?

Several nodes of a server, behind HAProxy, with Redis, PostgreSQL and the doubles of Twilio and
Gemini, all real processes on real sockets; calls that talk all the time; one fault after the other,
each on servers of its own.

``rows`` is the table of faults; ``world`` starts what is needed, of which ``balancer``, ``stores``
and ``network`` are parts, and ``guardian`` cleans up if we are killed; ``doubles`` is the telephone
company and the model; ``seen`` is what came of it, ``judge`` the verdict, ``command`` tells.
"""

from __future__ import annotations

import argparse

from benchmarks.options import Options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    from benchmarks.failover import command  # what runs as a process of its own needs none of it

    command.add_arguments(parser)


def run(options: Options) -> dict[str, object]:
    """Run what was asked for, and print what came of it."""
    from benchmarks.failover import command

    return command.run(options)
