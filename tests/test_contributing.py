"""The worked examples of CONTRIBUTING.md are taken from the page and do what it says."""

from __future__ import annotations

import io
import json
import re
import sys
from base64 import b64decode, b64encode
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio
from rich.console import Console
from websockets.trio.client import ClientConnection

from codec import MulawDecoder, MulawEncoder
from server import carrier, service
from server.accounts import Accounts
from server.agent.agent import Agent
from server.agent.loading import load_tools
from server.carrier.transport import QueuedTransport
from server.demo.command import _run_one
from server.dialogue.endings import EndReason
from server.errors import CarrierProtocolError
from server.model import AgentAudio
from server.model.gemini import dialects
from server.model.gemini.setup import agent_config, setup_message
from server.simulators.phone.transport import MemoryTransport, memory_transports
from server.switchboard.calls import Calls
from tests.support.fakes import MemoryModel
from tests.support.serving import open_socket, serving
from tests.support.switchboards import NUMBER, make_calls, serve_stream
from tests.support.toolboxes import Bench

PAGE = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
EXAMPLES = dict(re.findall(r"^```python (\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
MAX_LINES = 280
VOICE = bytes(range(0x80, 0xD0)) * 2
AGENT_PCM = bytes(range(256)) * 20


@pytest.fixture
def example(monkeypatch, request) -> ModuleType:
    """The block of the page that the test names, as a module that can be imported."""
    name = request.param
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    code = compile(EXAMPLES[name], f"CONTRIBUTING.md, {name}", "exec", dont_inherit=True)
    exec(code, module.__dict__)
    return module


def of(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("example", [name], indirect=True)


def test_every_example_of_the_page_is_run():
    assert PAGE.count("```python") == len(EXAMPLES)
    assert EXAMPLES.keys() == {"branches", "dialect", "demonstration", "pigeon"}


def test_the_page_can_be_read_at_one_sitting():
    assert len(PAGE.splitlines()) <= MAX_LINES


# --- A tool
@of("branches")
async def test_the_models_call_of_the_tool_is_answered(example, nursery, autojump_clock):
    bench = Bench(list(load_tools(["branches"])), timeout_s=10.0)
    nursery.start_soon(bench.box.run, bench.answer)

    bench.ask("opening_hours", branch="north")
    bench.ask("opening_hours", branch="south")
    bench.ask("opening_hours", branch="east")
    await bench.wait_answers(3)

    answers = dict(zip(bench.ids, bench.responses, strict=True))
    assert answers["id-1"] == {"output": "nine to five"}
    assert "call back" in answers["id-2"]["error"]
    assert "wrong arguments" in answers["id-3"]["error"]
    assert [what for what, _ in bench.call.notes].count("asked for the hours") == 2


# --- A dialect
@of("dialect")
def test_a_model_of_the_dialect_is_set_up_in_it(example, monkeypatch):
    dialects.dialect_of.cache_clear()
    monkeypatch.setattr(dialects, "DIALECTS", (example.ROW, *dialects.DIALECTS))

    found = dialects.dialect_of("models/gemini-4.2-live-preview")
    message, dropped = setup_message("gemini-4.2-live-preview", agent_config(Agent()))

    assert found is example.ROW
    assert message["setup"]["generationConfig"]["thinkingConfig"] == {"thinkingLevel": "LOW"}
    assert dropped == ()
    dialects.dialect_of.cache_clear()


@pytest.mark.sockets
# --- A demonstration
@of("demonstration")
async def test_the_demonstration_goes_as_its_checks_demand(example, tmp_path, fast_clock):
    page = Console(file=io.StringIO(), width=120)

    passed = await _run_one(page, example.DEMO_SCRIPTS["not-before"], tmp_path)

    assert passed, page.file.getvalue()
    assert "yes the model was opened when the phone was answered" in page.file.getvalue()


# --- A carrier
class Exchange:
    """Pigeon's own end: takes what its API is asked for, and opens streams."""

    def __init__(self, example: ModuleType, nursery: trio.Nursery) -> None:
        self.asked: list[tuple[str, Mapping[str, Any]]] = []
        self._example = example
        self._nursery = nursery

    async def request(self, what: str, facts: Mapping[str, Any]) -> Mapping[str, Any]:
        await trio.lowlevel.checkpoint()
        self.asked.append((what, facts))
        return {"call": "P1", "status": "completed"}

    async def open_stream(self, calls: Calls, call_sid: str, ticket: str) -> MemoryTransport:
        ours, theirs = memory_transports()
        transport = QueuedTransport(ours)
        self._nursery.start_soon(transport.run)
        self._nursery.start_soon(serve_stream, calls, self._example.PigeonStream(transport))
        await theirs.send(json.dumps({"call": call_sid, "ticket": ticket}))
        return theirs


@pytest.fixture
async def exchange(example, nursery) -> Exchange:
    return Exchange(example, nursery)


@pytest.fixture
async def calls(example, exchange, nursery) -> Calls:
    calls = make_calls(carrier=example.PigeonCarrier(exchange.request), model=MemoryModel())
    await nursery.start(calls.run)
    return calls


async def receive(stream: MemoryTransport | ClientConnection, kind: str) -> Any:
    """Wait for the next message of a kind."""
    with trio.fail_after(10):
        while True:
            is_memory = isinstance(stream, MemoryTransport)
            message = json.loads(await (stream.receive() if is_memory else stream.recv()))
            if kind in message:
                return message[kind]


async def talk(calls: Calls, stream: MemoryTransport | ClientConnection) -> bytes:
    """Let both sides say something, and the caller hang up; returns what the caller heard."""
    model = calls.model.session
    await model.wait_ready()
    model.event(AgentAudio(AGENT_PCM, 1, trio.current_time()))
    heard = b64decode(await receive(stream, "play"))
    await stream.send(json.dumps({"voice": b64encode(VOICE).decode(), "at_ms": 0}))
    await stream.send(json.dumps({"bye": True}))
    return heard


@of("pigeon")
async def test_a_call_is_placed_and_both_sides_hear_each_other(
    example, exchange, calls, autojump_clock
):
    call = await calls.place(NUMBER, Agent(greeting=""))
    [(what, facts)] = exchange.asked
    stream = await exchange.open_stream(calls, "P1", facts["ticket"])
    heard = await talk(calls, stream)
    await call.finished.wait()

    assert (what, facts["to"]) == ("dial", NUMBER)
    assert heard == MulawEncoder(24_000).encode(AGENT_PCM)
    assert bytes(calls.model.session.heard) == MulawDecoder(16_000).decode(VOICE)
    assert call.end_reason == "caller-hung-up"
    assert [what for what, _ in exchange.asked] == ["dial"]  # the caller's end needs no hang-up


@of("pigeon")
async def test_an_inbound_call_is_answered_with_a_stream(example, exchange, calls, autojump_clock):
    hooks = example.PigeonWebhooks("secret")

    asked = hooks.read("/pigeon", {"event": "call", "call": "P7", "from": NUMBER})
    reply = await calls.answer(asked.call_sid, asked.number, Agent(greeting=""))
    order = json.loads(hooks.write(reply).text)
    stream = await exchange.open_stream(calls, asked.call_sid, order["ticket"])
    heard = await talk(calls, stream)
    call = calls.register.get("P7")
    await call.finished.wait()

    assert call.direction == "inbound"
    assert heard == MulawEncoder(24_000).encode(AGENT_PCM)
    assert call.end_reason == "caller-hung-up"


@of("pigeon")
async def test_a_call_that_we_end_is_hung_up_and_its_stream_closed(
    example, exchange, calls, autojump_clock
):
    call = await calls.place(NUMBER, Agent(greeting=""))
    stream = await exchange.open_stream(calls, "P1", exchange.asked[0][1]["ticket"])
    await call.conversation.connected.wait()
    call.end(EndReason.HUNG_UP)
    await call.finished.wait()

    assert exchange.asked[-1] == ("end", {"call": "P1"})
    assert stream.closed_by_peer is not None


@of("pigeon")
def test_what_strangers_send_to_the_carriers_webhooks_is_refused(example):
    hooks = example.PigeonWebhooks("secret")

    assert hooks.verify("/pigeon", {"X-Pigeon": "secret"}, {})
    assert not hooks.verify("/pigeon", {"X-Pigeon": "guess"}, {})
    assert not hooks.verify("/pigeon", {}, {})
    with pytest.raises(CarrierProtocolError):
        hooks.read("/pigeon", {"event": "opera", "call": "P1"})


@of("pigeon")
async def test_the_carriers_status_ends_a_call_that_is_not_answered(
    example, exchange, calls, autojump_clock
):
    hooks = example.PigeonWebhooks("secret")
    call = await calls.place(NUMBER, Agent())

    report = hooks.read("/pigeon", {"event": "busy", "call": "P1", "number": "2"})
    calls.update_status(report)
    await call.finished.wait()

    assert call.end_reason == "busy"


@of("pigeon")
@pytest.mark.parametrize(
    ("seam", "made"),
    [
        (carrier.Carrier, lambda example: example.PigeonCarrier(None)),
        (carrier.MediaStream, lambda example: example.PigeonStream(None)),
    ],
    ids=["carrier", "stream"],
)
def test_the_example_has_everything_that_a_carrier_has_to_offer(example, seam, made):
    one = made(example)
    wanted = {name for name in {*vars(seam), *seam.__annotations__} if name[0] != "_"}

    assert wanted - {*vars(one), *vars(type(one))} == set()


@pytest.mark.sockets
@of("pigeon")
@pytest.mark.parametrize("media_path", ["fast", "ordinary"])
async def test_a_whole_server_serves_the_carriers_calls_over_its_own_sockets(
    example, exchange, media_path, monkeypatch
):
    class PigeonAccounts(Accounts):
        new_stream = example.PigeonStream
        webhook_paths = example.PigeonWebhooks.paths

        async def open(self, nursery: trio.Nursery) -> None:
            self.carrier = example.PigeonCarrier(exchange.request)
            self.webhooks = example.PigeonWebhooks("secret")
            self.model = MemoryModel()
            self.own_number = NUMBER
            self.public_url = "https://pigeon.example"

    monkeypatch.setattr(service, "Accounts", PigeonAccounts)
    form = {"event": "call", "call": "P7", "from": NUMBER}
    headers = {"X-Pigeon": "secret"}
    async with serving(media_path=media_path, agent_greeting="") as server:
        forged = await server.http.post("/pigeon", data=form)
        order = (await server.http.post("/pigeon", data=form, headers=headers)).json()
        async with open_socket(server) as socket:
            await socket.send(json.dumps({"call": "P7", "ticket": order["ticket"]}))
            heard = await talk(server.service.calls, socket)
            call = server.service.calls.register.get("P7")
            await call.finished.wait()

    assert forged.status_code == 403
    assert heard == MulawEncoder(24_000).encode(AGENT_PCM)
    assert bytes(server.service.calls.model.session.heard) == MulawDecoder(16_000).decode(VOICE)
    assert call.end_reason == "caller-hung-up"
