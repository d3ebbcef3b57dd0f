"""What holds when everything around a server goes wrong for as long as one likes?

A server as users run it, fifty calls that talk all the time, and faults of real operation in an
order that a seed decides: networks that stall, are cut and fall silent, a process that is stopped
and starved, a disk that is full, a log that nobody reads, a database that goes away.

``relay`` is the bad network, ``weather`` what is wrong with it; ``schedule`` decides what happens
when, ``faults`` does it; ``world`` starts the server and what is around it, ``doubles`` is the
telephone company and the model, ``invariants`` judges, ``command`` tells.
"""

from __future__ import annotations

import argparse

from benchmarks.options import Options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    from benchmarks.chaos import command  # what runs as a process of its own needs none of it

    command.add_arguments(parser)


def run(options: Options) -> dict[str, object]:
    """Run what was asked for, and print what came of it."""
    from benchmarks.chaos import command

    return command.run(options)
