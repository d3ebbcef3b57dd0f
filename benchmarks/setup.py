"""What does it cost to set one call up, before anybody has said a word?

A server on a core of its own takes calls one after the other: inbound ones (the voice webhook, the
model's session, the media stream) and ones that it places (``/make-call``, the carrier's request,
three status callbacks, the session, the stream). Nobody speaks, so what its process spends until a
call is ready is the call's set-up; then all hang up, and what that takes is its end, the record in
the database included. The doubles are in this process and answer at once.

Beside it stands what the packages take for the same connections, requests and messages with nothing
of ours (:mod:`benchmarks.peers.bare`): no server on them that speaks HTTP and WebSockets by them
can be cheaper.

``--against`` measures another checkout too, round by round in turn, so that whatever else the
machine does meets both alike; compare the two, as a busy machine doubles the figures of both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from xml.etree import ElementTree

import httpx2
from rich import box
from rich.table import Table
from twilio.request_validator import RequestValidator

from benchmarks import processes
from benchmarks.load.call import Heard, LoadCall, Talk, Words
from benchmarks.load.doubles import ModelDouble
from benchmarks.load.sockets import Backend, backend, port_of
from benchmarks.load.wheel import Wheel
from benchmarks.options import Options, machine, machine_line
from benchmarks.point import OFFHOOK, Keys, PointFailed, environment_of, wait_ready
from benchmarks.ports import free_port

CALLS = 100
ROUNDS = 5
WARM_CALLS = 20
"""Whatever a server loads or makes once is there then."""
BOUND_MS = 4.0
WAIT_S = 20.0
DIRECTIONS = ("inbound", "outbound")
BARE = "packages alone"
PACKAGES = ("hypercorn", "quart-trio", "trio", "websockets", "twilio", "httpx2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    own = parser.add_argument_group("setup")
    own.add_argument("--calls", type=int, default=CALLS, help="a round (default: %(default)s)")
    own.add_argument("--rounds", type=int, help=f"of each kind (default: {ROUNDS})")
    own.add_argument("--against", type=Path, metavar="DIR", help="another checkout, compiled")
    own.add_argument(
        "--check",
        action="store_true",
        help=f"end with status 1 if a set-up costs more than {BOUND_MS:g} ms",
    )


@dataclass
class Costs:
    """CPU milliseconds of each round's calls, for one call, by what was done."""

    set_up: dict[str, list[float]] = field(default_factory=lambda: {way: [] for way in DIRECTIONS})
    end: dict[str, list[float]] = field(default_factory=lambda: {way: [] for way in DIRECTIONS})

    def median_ms(self, what: str, direction: str) -> float:
        """The median over rounds."""
        return statistics.median(getattr(self, what)[direction])


def run(options: Options) -> dict[str, object]:
    """Measure, print the table, and with ``--check`` hold it to the bound."""
    console, chosen = options.console, options.arguments
    facts = machine(PACKAGES)
    console.print(machine_line(facts), highlight=False)
    trees = {"this": processes.ROOT}
    if chosen.against is not None:
        trees["against"] = chosen.against.resolve()
    trees[BARE] = processes.ROOT
    costs = {name: Costs() for name in trees}
    rounds = chosen.rounds or (2 if options.quick else ROUNDS)
    cores = processes.cores()
    if len(cores) > 1:
        os.sched_setaffinity(0, cores[1:])
    for number in range(rounds):
        for name, tree in sorted(trees.items(), reverse=number % 2 == 0):  # nobody is always first
            with console.status(f"round {number + 1} of {rounds}, {name}"):
                module = "benchmarks.peers.bare" if name == BARE else "server"
                asyncio.run(one_round(tree, cores[:1], chosen.calls, costs[name], module))
    console.print(_table(costs))
    dearest = max(costs["this"].median_ms("set_up", way) for way in DIRECTIONS)
    if chosen.check:
        is_within = dearest <= BOUND_MS
        console.print(
            f"setup gate: {'ok' if is_within else 'SLOW'}: {dearest:.2f} ms a set-up, "
            f"at most {BOUND_MS:g}"
        )
        if not is_within:
            sys.exit(1)
    return {
        "versions": facts["versions"],
        "costs": {name: {"set_up": one.set_up, "end": one.end} for name, one in costs.items()},
    }


def _table(costs: dict[str, Costs]) -> Table:
    shown = Table(title="CPU ms a call", box=box.SIMPLE_HEAD)
    for heading in ("checkout", "direction", "set-up", "least", "end"):
        shown.add_column(
            heading, justify="left" if heading in ("checkout", "direction") else "right"
        )
    for name, one in costs.items():
        for way in DIRECTIONS:
            shown.add_row(
                name,
                way,
                f"{one.median_ms('set_up', way):.2f}",
                f"{min(one.set_up[way]):.2f}",
                f"{one.median_ms('end', way):.2f}",
            )
    return shown


async def one_round(
    tree: Path, cores: list[int], calls: int, costs: Costs, module: str = "server"
) -> None:
    """Measure both directions on a fresh server of this checkout, bound to these cores."""
    with tempfile.TemporaryDirectory(prefix="offhook-bench-") as name:
        directory = Path(name)
        keys, driver = Keys(), _Driver()
        doubles = await driver.open(keys)
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        environment = {
            **environment_of(keys, port, url, doubles, calls + WARM_CALLS),
            **OFFHOOK.environment,
            "PYTHONPATH": str(tree),
            "MEDIA_TIMEOUT_S": "600",  # nobody speaks
            "SILENCE_TIMEOUT_S": "0",
            "CALLS_PER_S": "1000",
            "REPLY_TIMEOUT_S": "60",
            "VOICEMAIL": "ignore",
        }
        with (
            (directory / "server.log").open("wb") as log,
            processes.running(
                module,
                cores=cores,
                environment=environment,
                directory=directory,
                stdout=log,
                stderr=log,
            ) as server,
        ):
            await asyncio.to_thread(wait_ready, url, server)
            async with httpx2.AsyncClient(
                base_url=url, trust_env=False, timeout=WAIT_S, verify=False
            ) as http:
                driver.http, driver.url = http, url
                for way in DIRECTIONS:
                    await driver.hang_up(await driver.set_up(way, WARM_CALLS))
                    await asyncio.sleep(0.5)
                    began = _cpu_ms(server.pid)
                    begun = await driver.set_up(way, calls)
                    ready = _cpu_ms(server.pid)
                    costs.set_up[way].append((ready - began) / calls)
                    await driver.hang_up(begun)
                    await asyncio.sleep(0.5)
                    costs.end[way].append((_cpu_ms(server.pid) - ready) / calls)
        driver.close()


def _check(is_well: bool, said: str) -> None:
    if not is_well:
        raise PointFailed(f"the server does not take calls: {said[:500]}")


def _cpu_ms(pid: int) -> float:
    return 1000 * sum(processes.cpu_s(pid).values())


class _Greeted(LoadCall):
    """A call whose model says a short greeting when it is asked: one that is silent is seen to."""

    def model_hears(self, message: bytes) -> None:
        """The server asks for the greeting, and says nothing else here."""
        self.say_all()


class _Driver:
    """Has calls begin and end, from outside."""

    http: httpx2.AsyncClient
    url: str

    def __init__(self) -> None:
        self._backend: Backend = backend()
        self._words = Words(self._backend)
        self._heard = Heard()
        self._wheel = Wheel()
        self._number = 0

    async def open(self, keys: Keys) -> dict[str, str]:
        """Start the doubles; the value is where they are."""
        self._keys = keys
        self._wheel.start()
        self._validator = RequestValidator(keys.auth_token)
        self._model = ModelDouble(
            self._backend, self._words, keys.gemini_api_key, takes_others=True
        )
        self._carrier = _Carrier()
        return {
            "gemini_url": await self._model.serve(None),
            "twilio_url": await self._carrier.serve(),
            "trusted": "",
        }

    def close(self) -> None:
        """Stop the doubles."""
        self._wheel.stop()
        self._model.close()
        self._carrier.close()

    async def set_up(self, direction: str, count: int) -> list[LoadCall]:
        """Set so many calls up, one after the other."""
        begin = self._inbound if direction == "inbound" else self._outbound
        return [await self._with_timeout(begin) for _ in range(count)]

    async def _with_timeout(self, begin: Callable[[LoadCall], Any]) -> LoadCall:
        call = _Greeted(
            self._number,
            account_sid=self._keys.account_sid,
            wheel=self._wheel,
            words=self._words,
            heard=self._heard,
            talk=Talk(turn_s=0.2, cut_every=0),
        )
        self._number += 1
        self._model.expecting = call
        async with asyncio.timeout(WAIT_S):
            await begin(call)
            await call.session_ready.wait()
        return call

    async def _inbound(self, call: LoadCall) -> None:
        form = self._form(call, "ringing", number=None) | {"Direction": "inbound"}
        answer = await self._signed("/twiml", form)
        await self._stream(call, answer.text)

    async def _outbound(self, call: LoadCall) -> None:
        self._carrier.sids.append(call.call_sid)
        answer = await self.http.post(
            "/make-call",
            json={"destination_number": f"+1202555{call.number % 10_000:04}"},
            headers={"Authorization": f"Bearer {self._keys.api_key}"},
        )
        _check(answer.is_success, answer.text)
        for number, status in enumerate(("initiated", "ringing", "in-progress")):
            await self._signed("/call-status", self._form(call, status, number=number))
        await self._stream(call, self._carrier.documents.pop(call.call_sid))

    async def _stream(self, call: LoadCall, twiml: str) -> None:
        stream = ElementTree.fromstring(twiml).find("Connect/Stream")
        _check(stream is not None, twiml)
        assert stream is not None
        url = stream.attrib["url"]
        signature = self._validator.compute_signature(url, {})
        await self._backend.connect(url, {"X-Twilio-Signature": signature}, call)
        call.start({one.attrib["name"]: one.attrib["value"] for one in stream.iter("Parameter")})

    async def hang_up(self, calls: list[LoadCall]) -> None:
        """End calls as a caller does."""
        for call in calls:
            call.hang_up()
            await self._signed("/call-status", self._form(call, "completed", number=3))
        async with asyncio.timeout(WAIT_S):
            for call in calls:
                await call.session_closed.wait()

    def _form(self, call: LoadCall, status: str, *, number: int | None) -> dict[str, str]:
        form = {
            "CallSid": call.call_sid,
            "AccountSid": self._keys.account_sid,
            "From": f"+1202555{call.number % 10_000:04}",
            "To": "+15005550006",
            "CallStatus": status,
            "Direction": "outbound-api",
            "ApiVersion": "2010-04-01",
        }
        if number is not None:
            form |= {
                "SequenceNumber": str(number),
                "CallbackSource": "call-progress-events",
                "Timestamp": "Thu, 01 Jan 2026 00:00:00 +0000",
            }
        return form

    async def _signed(self, path: str, form: dict[str, str]) -> httpx2.Response:
        headers = {"X-Twilio-Signature": self._validator.compute_signature(self.url + path, form)}
        answer = await self.http.post(path, data=form, headers=headers)
        _check(answer.is_success, answer.text)
        return answer


class _Carrier:
    """Twilio's REST API, as far as placing and ending a call asks anything of it.

    Connections are kept, as the real one's are.
    """

    def __init__(self) -> None:
        self.sids: list[str] = []
        """The names of the next calls."""
        self.documents: dict[str, str] = {}
        """What calls shall do when they are answered."""

    async def serve(self) -> str:
        """Listen; returns the base URL."""
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        return f"http://127.0.0.1:{port_of(self._server)}"

    def close(self) -> None:
        """Listen no more."""
        self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                request, *lines = head.decode().split("\r\n")
                fields = {
                    name.lower(): value
                    for name, _, value in (line.partition(": ") for line in lines)
                }
                content = await reader.readexactly(int(fields.get("content-length", "0")))
                call_sid = request.split()[1].rpartition("/")[2].removesuffix(".json")
                if call_sid == "Calls":
                    call_sid = self.sids.pop(0)
                    self.documents[call_sid] = parse_qs(content.decode())["Twiml"][0]
                body = json.dumps({"sid": call_sid, "status": "queued"}).encode()
                writer.write(
                    b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
                )
        except (asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.close()  # the server has gone, or we go
