"""Does every event arrive, and in order, though its receiver fails and its server is killed?

A process tells of calls, four events each, and sends them from SQLite's file to a receiver that
answers every other request with 500. Twice it is killed (``SIGKILL``) and begun again. What counts
is what the receiver has taken: every event, each call's in the order in which they happened. Some
come twice, with the same id, as is promised: the one that was on its way when the process died.
Pauses are two seconds at the most, where they would double up to an hour; leases are as they are.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import h11
import trio
from prometheus_client import CollectorRegistry
from rich.table import Table

from benchmarks.options import Options
from benchmarks.processes import running
from server.events import retries
from server.events.event import CallTold, Kind
from server.events.events import Events
from server.metrics import Metrics
from server.records.store import Records
from server.settings.events import read_secret

KINDS: tuple[Kind, ...] = ("call.started", "call.answered", "call.recording", "call.ended")
CALLS, QUICK_CALLS = 2_500, 250
KILLED_AT = (0.1, 0.6)
"""When the process is killed: the part of all events that has been taken by then."""
LONGEST_PAUSE_S = 2.0
TOLD_AT_ONCE = 25
PATIENCE_S = 1_800.0
SECRET = "whsec_" + base64.b64encode(b"of the benchmark's own..").decode()


class Receiver:
    """Takes every other event at random, and remembers what it has taken."""

    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self.requests = 0
        self.taken: dict[str, tuple[str, str]] = {}
        self.again = 0
        self.changed = trio.Event()

    async def serve(self, stream: trio.SocketStream) -> None:
        """Answer one connection's requests."""
        connection = h11.Connection(h11.SERVER)
        body = b""
        with suppress(trio.BrokenResourceError, h11.RemoteProtocolError):
            while True:
                match connection.next_event():
                    case h11.NEED_DATA:
                        connection.receive_data(await stream.receive_some(65_536))
                    case h11.Data(data=data):
                        body += data
                    case h11.EndOfMessage():
                        head = h11.Response(
                            status_code=self._take(body), headers=[("content-length", "0")]
                        )
                        body = b""
                        answer = connection.send(head), connection.send(h11.EndOfMessage())
                        await stream.send_all(b"".join(part or b"" for part in answer))
                        connection.start_next_cycle()
                    case h11.ConnectionClosed() | h11.PAUSED:
                        return

    def _take(self, body: bytes) -> int:
        self.requests += 1
        if self._random.random() < 0.5:
            return 500
        content = json.loads(body)
        call_sid = content["data"]["call"]["call_sid"]
        name = f"{call_sid} {content['type']}"
        self.again += name in self.taken
        self.taken.setdefault(name, (call_sid, content["type"]))
        self.changed.set()
        self.changed = trio.Event()
        return 200

    async def wait_taken(self, count: int) -> None:
        """Wait until so many events have been taken."""
        while len(self.taken) < count:
            await self.changed.wait()


def judged(taken: Sequence[tuple[str, str]], calls: int) -> dict[str, int]:
    """How many events were lost, and of how many calls they came in another order.

    Args:
        taken: Call and kind of each event, as they were first taken.
        calls: How many calls there were.
    """
    of_calls: dict[str, list[str]] = {}
    for call_sid, kind in taken:
        of_calls.setdefault(call_sid, []).append(kind)
    in_order = [[kind for kind in KINDS if kind in kinds] for kinds in of_calls.values()]
    return {
        "lost": calls * len(KINDS) - len(taken),
        "out_of_order": sum(
            kinds != right for kinds, right in zip(of_calls.values(), in_order, strict=True)
        ),
    }


async def _deliver_all(calls: int, directory: Path) -> dict[str, Any]:
    receiver, wanted, began = Receiver(), calls * len(KINDS), time.monotonic()
    told = directory / "told"
    told.write_text("0")
    with trio.move_on_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            serve = partial(trio.serve_tcp, receiver.serve, 0, host="127.0.0.1")
            [listener] = await nursery.start(serve)
            port = listener.socket.getsockname()[1]
            arguments = (f"http://127.0.0.1:{port}/", str(directory), str(calls))
            for count in (*(round(wanted * part) for part in KILLED_AT), wanted):
                with running("benchmarks.events", *arguments) as process:
                    await receiver.wait_taken(count)
                    process.kill()
                    await trio.to_thread.run_sync(process.wait)
            nursery.cancel_scope.cancel("all is there")
    return {
        "events": wanted,
        "requests": receiver.requests,
        "again": receiver.again,
        "took_s": round(time.monotonic() - began, 1),
        **judged(list(receiver.taken.values()), calls),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    own = parser.add_argument_group("events")
    own.add_argument(
        "--check",
        action="store_true",
        help="end with status 1 if an event was lost, or came before an earlier one of its call",
    )


def run(options: Options) -> Mapping[str, object]:
    """Measure, print the table, and with ``--check`` fail if anything was not as promised."""
    calls = QUICK_CALLS if options.quick else CALLS
    with tempfile.TemporaryDirectory() as directory:
        outcome = trio.run(_deliver_all, calls, Path(directory))
    table = Table("events", "lost", "calls out of order", "taken twice", "requests", "seconds")
    names = ("events", "lost", "out_of_order", "again", "requests", "took_s")
    table.add_row(*(str(outcome[name]) for name in names))
    options.console.print(table)
    options.console.print("Half of all requests were answered 500, and the server killed twice.")
    if getattr(options.arguments, "check", False) and (outcome["lost"] or outcome["out_of_order"]):
        sys.exit(1)
    return {"events": outcome}


async def _tell_and_send(url: str, directory: Path, calls: int) -> None:
    """Be the server: tell of those calls that no earlier one has told of, and send what waits."""
    retries.LONGEST_PAUSE_S = LONGEST_PAUSE_S
    metrics = Metrics(CollectorRegistry())
    records = Records(f"sqlite:///{directory}/offhook.db", metrics=metrics)
    events = Events(
        records=records,
        metrics=metrics,
        url=url,
        keys=[read_secret(SECRET)],
        allow_private=True,
    )
    told = directory / "told"
    async with trio.open_nursery() as nursery:
        await nursery.start(records.run)
        nursery.start_soon(events.delivery.run)
        for first in range(int(told.read_text()), calls, TOLD_AT_ONCE):
            last = min(first + TOLD_AT_ONCE, calls)
            for kind in KINDS:
                for number in range(first, last):
                    record = {"call_sid": f"CA{number:032x}", "created_at": 0.0}
                    events.tell(kind, CallTold(record))
            await records.wait_saved()
            next_told = told.with_suffix(".next")
            next_told.write_text(str(last))
            next_told.rename(told)


if __name__ == "__main__":
    trio.run(_tell_and_send, sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
