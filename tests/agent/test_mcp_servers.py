"""Tools from MCP servers: a real one over stdio, and the same over HTTP."""

from __future__ import annotations

import json
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from server.agent.agent import Agent
from server.agent.mcp_servers import (
    _MAYBE_DONE,
    BUSY_S,
    CHECK_S,
    FIRST_PAUSE_S,
    LOOK_AGAIN_S,
    MAX_DESCRIPTION,
    MAX_TOOLS,
    VERDICT_S,
    McpServers,
    _Connection,
    _Entry,
    _told,
    arguments_for,
    read_servers,
)
from server.agent.results import is_too_big
from server.agent.tool import MAX_ERROR, ToolError, tool
from server.call.toolbox import Toolbox
from server.errors import ConfigurationError
from server.hooks.hypercorn_worker import make_config
from server.metrics import Metrics
from server.model import ToolCall
from server.model.gemini.setup import agent_config, setup_message
from server.settings.settings import Settings
from tests.support.serving import serving
from tests.support.toolboxes import FakeCall

pytest.importorskip("mcp")

from mcp.shared.exceptions import MCPError
from mcp.types import CallToolResult, ListToolsResult, TextContent
from mcp.types import Tool as McpTool

pytestmark = pytest.mark.sockets

SERVER = Path(__file__).parents[1] / "support" / "mcp_server.py"


def stdio(**env: str) -> dict:
    return {"command": sys.executable, "args": [str(SERVER)], "env": env}


@asynccontextmanager
async def connected(servers: dict, connect_timeout_s: float = 50.0):
    mcp = McpServers(read_servers(json.dumps(servers)), connect_timeout_s=connect_timeout_s)
    async with trio.open_nursery() as nursery:
        with trio.fail_after(60):
            await nursery.start(mcp.run)
        yield mcp
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def served(app):
    """An app over HTTP, and where it is."""
    import hypercorn.trio

    config = make_config("127.0.0.1:0", graceful_timeout=0.1, shutdown_timeout=1.0)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        serve = partial(hypercorn.trio.serve, app, config, shutdown_trigger=stop.wait)
        (origin,) = await nursery.start(serve)
        yield origin
        stop.set()


async def run(mcp: McpServers, name: str, **arguments):
    (tool,) = (one for one in mcp.tools if one.name == name)
    with trio.fail_after(60):
        return await tool.run(arguments, FakeCall(), trio.CapacityLimiter(1))


async def test_the_tools_of_a_server_are_offered_and_run():
    async with connected({"shop": stdio(SHOP="north")}) as mcp:
        tools = {tool.name: tool for tool in mcp.tools}
        told = await run(mcp, "shop__stock", item="pear")
        described = await run(mcp, "shop__picture")
        with pytest.raises(ToolError, match="fail"):
            await run(mcp, "shop__fail")
        with pytest.raises(ToolError, match="item"):
            await run(mcp, "shop__stock", colour="red")

    names = ("stock", "picture", "misfit", "fail", "complain", "wait", "die")
    assert set(tools) == {f"shop__{name}" for name in names}
    stock = tools["shop__stock"]
    assert stock.description == "Say how many of an item are left."
    assert stock.parameters["properties"]["item"]["type"] == "string"
    assert stock.parameters["required"] == ["item"]
    assert told == {"item": "pear", "shelf": 1, "left": 7, "shop": "north"}
    assert described == "a pear\n(image, not shown)"


async def test_a_result_that_does_not_fit_is_nothing_to_other_calls(tmp_path, capsys):
    started = tmp_path / "started"
    async with connected({"shop": stdio(STARTED=str(started))}) as mcp:
        (connection,) = mcp._connections
        lost = connection._lost
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(run, mcp, "shop__wait"))
            with pytest.raises(ToolError, match="was run, but what it returned cannot be read"):
                await run(mcp, "shop__misfit")
            told = await run(mcp, "shop__stock", item="pear")
            assert not lost.is_set()
            nursery.cancel_scope.cancel()

    assert told["item"] == "pear"
    assert started.read_text() == "x"
    said = "".join(capsys.readouterr())
    assert "mcp result cannot be read" in said
    assert "sesame" not in said


async def test_a_server_that_dies_is_started_again_and_the_call_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("server.agent.mcp_servers.random.uniform", lambda a, b: 0.01)
    monkeypatch.setattr("server.agent.mcp_servers.VERDICT_S", 60.0)  # however busy the machine is
    started = tmp_path / "started"
    async with connected({"shop": stdio(STARTED=str(started))}) as mcp:
        with pytest.raises(ToolError, match="its outcome is not known"):
            await run(mcp, "shop__die")
        with trio.fail_after(60):
            while started.read_text() != "xx" or not mcp.tools:  # noqa: ASYNC110 - another process
                await trio.sleep(0.02)
        told = await run(mcp, "shop__stock", item="plum")

    assert told["item"] == "plum"


async def test_an_error_of_a_servers_own_is_told_and_is_nothing_to_other_calls(tmp_path):
    started = tmp_path / "started"
    async with connected({"shop": stdio(STARTED=str(started))}) as mcp:
        lost = mcp._connections[0]._lost
        with pytest.raises(ToolError, match="the till is locked"):
            await run(mcp, "shop__complain")
        told = await run(mcp, "shop__stock", item="pear")

    assert told["item"] == "pear"
    assert started.read_text() == "x"
    assert mcp._connections[0]._lost is lost


async def test_a_server_that_is_deployed_anew_is_connected_to_again_at_once(monkeypatch):
    from tests.support.mcp_server import server

    monkeypatch.setattr("server.agent.mcp_servers.random.uniform", lambda a, b: 0.01)
    monkeypatch.setattr("server.agent.mcp_servers.VERDICT_S", 60.0)  # however busy the machine is
    app, is_away = server.streamable_http_app(), False

    async def deployed(scope, receive, send):
        if is_away:
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await app(scope, receive, send)

    async with (
        served(deployed) as origin,
        connected({"crm": {"url": f"{origin}/mcp"}}) as mcp,
    ):
        lost = mcp._connections[0]._lost
        is_away = True
        with pytest.raises(ToolError, match="its outcome is not known"):
            await run(mcp, "crm__stock", item="lime")
        assert lost.is_set()
        is_away = False
        with trio.fail_after(60):
            while not mcp.tools:  # noqa: ASYNC110 - a server's answers
                await trio.sleep(0.02)
        told = await run(mcp, "crm__stock", item="lime")

    assert told["item"] == "lime"


async def test_a_tool_that_takes_too_long_is_given_up_and_the_connection_stays():
    async with connected({"shop": stdio()}) as mcp, trio.open_nursery() as nursery:
        answers: list = []
        news = trio.Event()

        def answer(results):
            answers.extend(result.response for result in results)
            news.set()

        box = Toolbox(mcp.tools, FakeCall(), metrics=Metrics(CollectorRegistry()), timeout_s=0.3)
        nursery.start_soon(box.run, answer)
        box.request([ToolCall("a", "shop__wait", {})])
        with trio.fail_after(60):
            await news.wait()
        told = await run(mcp, "shop__stock", item="fig")
        nursery.cancel_scope.cancel()

    assert "0.3 seconds" in answers[0]["error"]
    assert told["item"] == "fig"


@pytest.mark.parametrize(
    "entry",
    [
        {"command": "/no/such/program"},
        {"command": sys.executable, "args": ["-c", "raise SystemExit(1)"]},
        {"command": sys.executable, "args": ["-c", "import time; time.sleep(60)"]},
        {"url": "http://127.0.0.1:9/mcp"},
    ],
    ids=["missing", "ends", "silent", "refused"],
)
async def test_a_server_that_is_not_there_keeps_nobody_waiting(entry):
    async with connected({"gone": entry}, connect_timeout_s=1.0) as mcp:
        assert mcp.tools == ()


async def test_two_servers_may_have_tools_of_the_same_name():
    async with connected({"north": stdio(SHOP="north"), "south": stdio(SHOP="south")}) as mcp:
        told = [await run(mcp, f"{name}__stock", item="kiwi") for name in ("north", "south")]

    assert [one["shop"] for one in told] == ["north", "south"]


async def test_a_server_may_be_reached_over_http(no_certificates_in_the_loop):
    from tests.support.mcp_server import server

    async with (
        served(server.streamable_http_app()) as origin,
        connected({"crm": {"url": f"{origin}/mcp", "headers": {"X-Key": "1"}}}) as mcp,
    ):
        told = await run(mcp, "crm__stock", item="lime")

    assert told["item"] == "lime"


async def test_the_agent_of_the_next_call_has_them(tmp_path):
    config = tmp_path / "servers.json"
    config.write_text(json.dumps({"mcpServers": {"shop": stdio()}}))
    async with serving(mcp_servers=str(config), mcp_connect_timeout_s=50.0) as server:
        names = [tool.name for tool in server.service.agent.tools]
        made = await server.make_call("5550108")
        call_sid = made.json()["call_sid"]
        with trio.fail_after(60):
            await server.twilio.calls[call_sid].wait_status("in-progress")
            await server.http.post(f"/calls/{call_sid}/hang-up")
        (session,) = server.gemini.sessions

    declared = [
        function["name"]
        for tool in session.setup["tools"]
        for function in tool["functionDeclarations"]
    ]
    assert "shop__stock" in names
    assert declared == names


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("/no/such/file.json", "cannot be read"),
        ("{", "not JSON"),
        ('{"shop": {}}', "either a command or a url"),
        ('{"shop": {"command": "x", "url": "http://y"}}', "either a command or a url"),
        ('{"shop": {"url": "ftp://y"}}', "http"),
        ('{"1 shop": {"command": "x"}}', "pattern"),
        ('{"shop": "python server.py"}', "shop"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_at_the_start(setting, problem):
    with pytest.raises(ConfigurationError, match=problem) as caught:
        read_servers(setting)

    assert "MCP_SERVERS" in str(caught.value)


def test_no_setting_is_no_server():
    assert read_servers(None) == {}
    assert McpServers({}).tools == ()


def test_what_other_clients_write_there_too_is_left_alone():
    servers = read_servers('{"shop": {"type": "stdio", "command": "x", "disabled": false}}')

    assert servers["shop"].command == "x"


def test_without_the_package_the_start_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp", None)

    with pytest.raises(ConfigurationError, match=r"pip install 'offhook\[mcp\]'"):
        read_servers('{"shop": {"command": "x"}}')


def test_keys_in_the_setting_are_not_shown():
    settings = Settings.load(_env_file=None, mcp_servers='{"a": {"url": "http://sesame"}}')

    assert "sesame" not in repr(settings)


# --- Whether a server is still there, as its answers and its silence tell


class Shop:
    """A client of a server that answers as it is told to."""

    def __init__(self) -> None:
        self.looks: list[float] = []
        self.error: Exception | None = None
        self.look_s = 0.0
        self.look_error: Exception | None = None
        self.call_s = 0.0
        self.close_s = 0.0
        self.opened_at: list[float] = []

    async def list_tools(self, cursor: str | None) -> ListToolsResult:
        self.looks.append(trio.current_time())
        await trio.sleep(self.look_s)
        if self.look_error is not None:
            raise self.look_error
        return ListToolsResult(tools=[McpTool(name="stock", input_schema=ITEM)])

    async def call_tool(self, name: str, arguments: dict) -> CallToolResult:
        await trio.sleep(self.call_s)
        if self.error is not None:
            raise self.error
        return CallToolResult(content=[TextContent(type="text", text="7")])


@asynccontextmanager
async def connected_to(shop: Shop, monkeypatch, connect_timeout_s: float = 10.0):
    """A connection to this client, whichever is asked for."""

    @asynccontextmanager
    async def opened(connection: _Connection):
        shop.opened_at.append(trio.current_time())
        try:
            yield shop
        finally:
            await trio.sleep(shop.close_s)

    monkeypatch.setattr(_Connection, "_open", opened)
    connection = _Connection("shop", _Entry(url="http://127.0.0.1:1/mcp"), connect_timeout_s)
    async with trio.open_nursery() as nursery:
        await nursery.start(connection.run)
        yield connection
        nursery.cancel_scope.cancel()


async def test_a_server_that_errs_on_every_call_is_looked_at_once_a_second(
    monkeypatch, autojump_clock
):
    shop = Shop()
    async with connected_to(shop, monkeypatch) as connection:
        lost = connection._lost
        shop.error = MCPError(-32000, "the till is locked")
        for _ in range(40):
            with pytest.raises(ToolError, match="the till is locked"):
                await connection._call("stock", {})
            await trio.sleep(0.1)

        assert connection._lost is lost
        assert not lost.is_set()
    between = [later - earlier for earlier, later in pairwise(shop.looks)]
    assert len(between) > 2
    assert min(between) >= LOOK_AGAIN_S


async def test_what_was_asked_of_a_server_that_is_gone_may_have_been_done(
    monkeypatch, autojump_clock
):
    shop = Shop()
    async with connected_to(shop, monkeypatch) as connection:
        shop.error = BrokenPipeError()
        with pytest.raises(ToolError, match="its outcome is not known"):
            await connection._call("stock", {})
        shop.error = MCPError(-32603, "Server returned an error response")
        shop.look_error = MCPError(-32603, "Server returned an error response")
        with pytest.raises(ToolError, match="its outcome is not known"):
            await connection._call("stock", {})
        with pytest.raises(ToolError, match="cannot be reached now"):
            await connection._call("stock", {})


@pytest.mark.parametrize(
    ("code", "message", "told"),
    [
        (-32603, "Server returned an error response", "Server returned an error response"),
        (-32000, "SSE stream ended without a response", "SSE stream ended without a response"),
        (-32700, "Failed to parse JSON response: no", "Failed to parse JSON response: no"),
        (-32603, "Internal server error.", "Internal server error"),
        (-32603, "", "the function failed"),
        (-32001, "timed out", "timed out"),
        (-32600, "Unexpected content type: text/html", "Unexpected content type: text/html"),
        (-32603, "x" * MAX_ERROR, "x" * (MAX_ERROR - len(_MAYBE_DONE))),
    ],
)
async def test_what_may_have_been_done_before_its_answer_was_lost_is_not_to_be_tried_again(
    monkeypatch, autojump_clock, code, message, told
):
    """The look is answered: by another of a server's processes, behind the same address."""
    shop = Shop()
    async with connected_to(shop, monkeypatch) as connection:
        shop.error = MCPError(code, message)

        with pytest.raises(ToolError) as caught:
            await connection._call("stock", {})

        assert not connection._lost.is_set()
    assert str(caught.value) == told + _MAYBE_DONE


@pytest.mark.parametrize("code", [-32600, -32601, -32602, 404])
async def test_what_a_server_has_refused_is_told_as_it_says_it(monkeypatch, autojump_clock, code):
    shop = Shop()
    async with connected_to(shop, monkeypatch) as connection:
        shop.error = MCPError(code, "no such item")

        with pytest.raises(ToolError, match=r"^no such item$"):
            await connection._call("stock", {})


async def test_a_function_whose_process_dies_behind_a_proxy_may_have_been_done():
    from tests.support.mcp_server import server

    app, is_dying = server.streamable_http_app(), False

    async def behind_a_proxy(scope, receive, send):
        message = await receive()
        if is_dying and b"tools/call" in message.get("body", b""):
            await send({"type": "http.response.start", "status": 502, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        first = [message]

        async def received():
            return first.pop() if first else await receive()

        await app(scope, received, send)

    async with (
        served(behind_a_proxy) as origin,
        connected({"crm": {"url": f"{origin}/mcp"}}) as mcp,
    ):
        lost = mcp._connections[0]._lost
        is_dying = True
        with pytest.raises(ToolError, match="whether it was done is not known"):
            await run(mcp, "crm__stock", item="lime")
        is_dying = False
        told = await run(mcp, "crm__stock", item="lime")
        assert mcp._connections[0]._lost is lost
        assert not lost.is_set()

    assert told["item"] == "lime"


async def test_an_error_is_told_though_the_server_is_slow_to_be_looked_at(
    monkeypatch, autojump_clock
):
    shop = Shop()
    async with connected_to(shop, monkeypatch) as connection:
        shop.error = MCPError(-32602, "no such item")
        shop.look_s = float("inf")
        began = trio.current_time()
        with pytest.raises(ToolError, match="no such item"):
            await connection._call("stock", {})

    assert trio.current_time() - began == pytest.approx(VERDICT_S)


@pytest.mark.parametrize("call_s", [65.0, 150.0], ids=["answers meanwhile", "is busy for long"])
async def test_a_server_that_is_late_because_it_runs_functions_stays_connected(
    monkeypatch, autojump_clock, call_s
):
    shop = Shop()
    async with connected_to(shop, monkeypatch) as connection:
        lost, shop.call_s, shop.look_s = connection._lost, call_s, float("inf")

        assert await connection._call("stock", {}) == "7"

        assert trio.current_time() > CHECK_S
        shop.look_s = 0.0
        await trio.sleep(2 * CHECK_S)
        assert connection._lost is lost
        assert not lost.is_set()


async def test_a_server_that_is_late_with_nothing_to_do_is_lost(monkeypatch, autojump_clock):
    shop = Shop()
    async with connected_to(shop, monkeypatch, connect_timeout_s=10.0) as connection:
        shop.look_s = float("inf")

        await connection._lost.wait()

    assert trio.current_time() == pytest.approx(CHECK_S + 10.0)


async def test_a_server_that_answers_nothing_for_long_is_lost_though_functions_are_under_way(
    monkeypatch, autojump_clock, nursery
):
    shop = Shop()
    async with connected_to(shop, monkeypatch) as connection:
        shop.call_s = shop.look_s = float("inf")
        nursery.start_soon(connection._call, "stock", {})

        await connection._lost.wait()
        nursery.cancel_scope.cancel()

    assert BUSY_S <= trio.current_time() <= BUSY_S + 2 * CHECK_S


async def test_a_server_that_errs_and_then_is_silent_is_lost(monkeypatch, autojump_clock):
    shop = Shop()
    async with connected_to(shop, monkeypatch, connect_timeout_s=10.0) as connection:
        shop.look_s, shop.error = (
            float("inf"),
            MCPError(-32603, "Server returned an error response"),
        )
        with pytest.raises(ToolError, match="error response"):
            await connection._call("stock", {})

        await connection._lost.wait()

    assert trio.current_time() <= LOOK_AGAIN_S + 10.0


async def test_a_server_that_does_not_let_go_of_its_connection_is_connected_to_again(
    monkeypatch, autojump_clock
):
    shop = Shop()
    async with connected_to(shop, monkeypatch, connect_timeout_s=10.0) as connection:
        shop.close_s, shop.look_error = 300.0, ConnectionError()
        shop.error = MCPError(-32603, "an error response")
        with pytest.raises(ToolError, match="not known"):
            await connection._call("stock", {})
        lost_at, shop.look_error = trio.current_time(), None
        while connection._lost.is_set():  # noqa: ASYNC110 - the clock is ours
            await trio.sleep(0.1)
        shop.close_s = 0.0

    assert shop.opened_at[1] - lost_at <= 10.0 + 2 * FIRST_PAUSE_S


# --- What a server may ask of us


NO_PARAMETERS = {"type": "object", "properties": {}}
ITEM = {"type": "object", "properties": {"item": {"type": "string"}}}
SHELF = {"type": "object", "properties": {"shelf": {"type": "integer"}}}
NEEDS_ITEM = {"required": ["item"]}
CLOSED = ITEM | {"additionalProperties": False}
ONE_OF = {"oneOf": [{"required": ["item"]}, {"required": ["shelf"]}]}


@pytest.mark.parametrize(
    ("schema", "given", "passed"),
    [
        (NO_PARAMETERS, {"reason": "why not"}, {}),
        (NO_PARAMETERS, {"colour": "red"}, {}),
        (ITEM, {"item": "pear", "reason": "asked"}, {"item": "pear"}),
        (ITEM, {"item": "pear", "colour": "red"}, {"item": "pear", "colour": "red"}),
        (NO_PARAMETERS | {"additionalProperties": True}, {"a": 1}, {"a": 1}),
        (NO_PARAMETERS | {"additionalProperties": {}}, {"a": 1}, {"a": 1}),
        (ITEM | {"unevaluatedProperties": {}}, {"reason": "asked"}, {"reason": "asked"}),
        (CLOSED | ONE_OF, {"item": "pear", "reason": "asked"}, {"item": "pear"}),
        (CLOSED | ONE_OF, {"colour": "red"}, {"colour": "red"}),
        (ITEM | ONE_OF, {"reason": "asked"}, {"reason": "asked"}),
        (CLOSED | {"patternProperties": {"^r": {}}}, {"reason": "a"}, {"reason": "a"}),
        ({"additionalProperties": False, "allOf": [ITEM]}, {"item": "pear"}, {"item": "pear"}),
        ({"properties": None}, {"a": 1}, {}),
        ({"type": "object", "anyOf": [ITEM]}, {"item": "pear"}, {"item": "pear"}),
        ({"$ref": "https://elsewhere.example"}, {"item": "pear"}, {"item": "pear"}),
    ],
)
def test_arguments_that_a_function_does_not_have_are_left_out(schema, given, passed):
    assert arguments_for(schema, given) == passed


@pytest.mark.parametrize(
    ("value", "big"),
    [
        ("x" * 900, False),
        ("x" * 1_100, True),
        ([1] * 400, False),
        ([1] * 1_000_000, True),
        ({str(key): {} for key in range(1_000_000)}, True),
        ({"a": [["x" * 600], {"b": "y" * 600}]}, True),
        (None, False),
    ],
)
def test_the_size_of_an_answer_is_known_without_writing_it(value, big):
    assert is_too_big(value, 1_000) is big


def test_an_answer_of_many_parts_is_told_as_far_as_it_fits():
    parts = [TextContent(type="text", text=f"{index}") for index in range(10_000)]

    told = _told(CallToolResult(content=parts))

    assert str(told).endswith("(9900 more parts, not shown)")
    assert len(str(told)) < 1_000


def test_an_error_of_a_servers_is_told_as_far_as_it_fits():
    parts = [TextContent(type="text", text="x" * 1_000_000)]

    with pytest.raises(ToolError) as caught:
        _told(CallToolResult(content=parts, is_error=True))

    assert len(str(caught.value)) == MAX_ERROR


def test_structure_that_is_too_long_is_refused_before_it_is_gone_through():
    result = CallToolResult(content=[], structured_content={"rows": [0] * 1_000_000})

    with pytest.raises(ToolError, match="too long"):
        _told(result)


def test_of_a_servers_tools_so_many_are_offered_and_none_with_an_endless_schema():
    huge = ITEM | {"description": "x" * 100_000}
    found = [McpTool(name="huge", input_schema=huge)]
    found += [
        McpTool(name=f"t{index}", description="y" * 100_000, input_schema=ITEM)
        for index in range(1_000)
    ]
    connection = _Connection("shop", _Entry(url="http://127.0.0.1:1/mcp"), 1.0)

    connection._offer(None, found)  # type: ignore[arg-type]

    assert len(connection.tools) == MAX_TOOLS
    assert connection.tools[0].name == "shop__t0"
    assert len(connection.tools[0].description) == MAX_DESCRIPTION


def test_of_a_servers_tools_that_come_to_have_one_name_the_first_is_offered():
    found = [
        McpTool(name=name, description=name, input_schema=ITEM)
        for name in ("a/b", "a_b", "a b", "c")
    ]
    connection = _Connection("shop", _Entry(url="http://127.0.0.1:1/mcp"), 1.0)

    connection._offer(None, found)  # type: ignore[arg-type]

    assert [tool.name for tool in connection.tools] == ["shop__a_b", "shop__c"]
    assert connection.tools[0].description == "a/b"


def test_a_schema_may_have_a_key_of_no_letters():
    connection = _Connection("shop", _Entry(url="http://127.0.0.1:1/mcp"), 1.0)

    connection._offer(None, [McpTool(name="odd", input_schema=ITEM | {"": 1, "$id": "x"})])  # type: ignore[arg-type]

    schema = connection.tools[0].parameters
    assert "" in schema
    assert "$id" not in schema


@pytest.mark.parametrize(
    ("schema", "declared"),
    [
        (NO_PARAMETERS, None),
        ({"type": "object"}, None),
        ({"type": "object", "additionalProperties": False, "x-shop": 1}, None),
        ({"$ref": "#/$defs/A", "$defs": {"A": ITEM}}, ITEM | {"$defs": {"A": ITEM}}),
        (
            {
                "$ref": "#/definitions/A",
                "definitions": {"A": {"$ref": "#/definitions/B"}, "B": ITEM},
            },
            ITEM | {"definitions": {"A": {"$ref": "#/definitions/B"}, "B": ITEM}},
        ),
        (
            NO_PARAMETERS | {"$ref": "#/$defs/A", "$defs": {"A": ITEM}},
            ITEM | {"$defs": {"A": ITEM}},
        ),
        (
            SHELF | {"required": ["shelf"], "$ref": "#/x/A", "x": {"A": ITEM | NEEDS_ITEM}},
            {
                "type": "object",
                "properties": ITEM["properties"] | SHELF["properties"],
                "required": ["item", "shelf"],
                "x": {"A": ITEM | NEEDS_ITEM},
            },
        ),
        (
            {"properties": None, "required": None, "$ref": "#/x/A", "x": {"A": ITEM | NEEDS_ITEM}},
            ITEM | NEEDS_ITEM | {"x": {"A": ITEM | NEEDS_ITEM}},
        ),
        (ITEM | {"": {"None": {}}}, ITEM | {"": {"None": {}}}),
        (ITEM | {"$ref": "#/$defs/nowhere"}, ITEM),
        (ITEM | {"$ref": None}, ITEM),
        (
            {"$ref": "#/x/an%20order/a~1b", "x": {"an order": {"a/b": ITEM}}},
            ITEM | {"x": {"an order": {"a/b": ITEM}}},
        ),
        (NO_PARAMETERS | {"patternProperties": {"^x": {}}}, None),
        (NO_PARAMETERS | {"additionalProperties": {"type": "string"}}, None),
        (NO_PARAMETERS | {"additionalProperties": {}}, None),
        *(
            ({"type": "object", key: value}, {"type": "object", key: value})
            for key, value in {
                "anyOf": [ITEM],
                "oneOf": [ITEM],
                "allOf": [ITEM],
            }.items()
        ),
    ],
)
def test_parameters_are_declared_wherever_a_servers_schema_has_them(schema, declared):
    connection = _Connection("shop", _Entry(url="http://127.0.0.1:1/mcp"), 1.0)
    connection._offer(None, [McpTool(name="stock", input_schema=schema)])  # type: ignore[arg-type]

    config = agent_config(Agent(tools=connection.tools))

    message, _ = setup_message("gemini-3.8-live", config)
    (function,) = message["setup"]["tools"][0]["functionDeclarations"]
    assert function.get("parametersJsonSchema") == declared


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}},
        {"$ref": "https://elsewhere.example"},
        NO_PARAMETERS | {"$ref": "#/$defs/nowhere"},
        {"type": "object", "$ref": None},
    ],
)
def test_a_function_whose_schema_is_elsewhere_is_not_offered_and_that_is_said_once(schema):
    connection = _Connection("shop", _Entry(url="http://127.0.0.1:1/mcp"), 1.0)
    found = [McpTool(name="stock", input_schema=schema)]

    with capture_logs() as logged:
        connection._offer(None, found)  # type: ignore[arg-type]
        connection._offer(None, found)  # type: ignore[arg-type]
        alone = connection.tools
        connection._offer(None, [*found, McpTool(name="price", input_schema=ITEM)])  # type: ignore[arg-type]

    assert alone == ()
    assert [tool.name for tool in connection.tools] == ["shop__price"]
    warnings = [
        (line["tools"], line["schema_elsewhere"])
        for line in logged
        if line["event"] == "mcp tools are not offered"
    ]
    assert warnings == [(1, 1)] * 2  # and where what is offered has changed


def test_of_two_servers_whose_tools_come_to_have_one_name_the_first_is_offered():
    at = {"url": "http://127.0.0.1:1/mcp"}
    servers = McpServers({"a": _Entry(**at), "a__b": _Entry(**at)})
    first, second = servers._connections
    first._offer(None, [McpTool(name="b__c", description="the first", input_schema=ITEM)])  # type: ignore[arg-type]
    second._offer(None, [McpTool(name="c", description="the second", input_schema=ITEM)])  # type: ignore[arg-type]

    (tool,) = servers.tools

    assert (tool.name, tool.description) == ("a__b__c", "the first")


async def test_an_agents_own_function_is_not_replaced_by_a_servers_of_its_name(tmp_path):
    async def shop__stock() -> str:
        """Say what there is."""
        return "ours"

    config = tmp_path / "servers.json"
    config.write_text(json.dumps({"mcpServers": {"shop": stdio()}}))
    async with serving(mcp_servers=str(config), mcp_connect_timeout_s=50.0) as server:
        service = server.service
        own = replace(service.agent, tools=(tool(shop__stock),))
        tools = service._with_offered(own).tools

    assert [one.description for one in tools if one.name == "shop__stock"] == ["Say what there is."]
    assert "shop__picture" in {one.name for one in tools}
