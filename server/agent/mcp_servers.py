"""Tools from MCP servers (Model Context Protocol), over stdio or streamable HTTP.

``MCP_SERVERS`` is JSON, or the path of a file with it, in the form other MCP clients use::

    {"mcpServers": {
        "shop": {"command": "python", "args": ["shop_server.py"], "env": {"SHOP": "north"}},
        "crm": {"url": "https://crm.example.com/mcp", "headers": {"Authorization": "Bearer …"}}
    }}

One connection to each server is kept for all calls. One that is lost is opened again; meanwhile
its tools are not offered to new calls, and tell the calls that know them so. Needs ``pip install
'offhook[mcp]'``; the package is imported only if there are servers to connect to.
"""

from __future__ import annotations

import json
import math
import random
import re
import sys
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote

import httpx2
import structlog
import trio
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from server.agent.results import MAX_RESULT_BYTES, ToolError, is_too_big
from server.agent.tool import (
    MAX_ERROR,
    LiveCall,
    Tool,
    has_parameters_elsewhere,
    without_extra,
)
from server.errors import ConfigurationError, innermost
from server.pace import Backoff
from server.settings.file import read_text

if TYPE_CHECKING:
    from mcp import Client
    from mcp.types import CallToolResult
    from mcp.types import Tool as McpTool

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

CHECK_S = 60.0
"""Between two looks at what a server offers, which also shows whether it is still there."""
LOOK_AGAIN_S = 1.0
"""Between two looks at a server whose answers make it doubtful that it is still there, at least."""
VERDICT_S = 2.0
"""A function that came to nothing is told of after so long, though the look is not over yet."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""Between two attempts to reach a server that is not there: at first, and at most."""
BUSY_S = 300.0
"""A server that is running functions is not given up before it has answered nothing for so long."""
MAX_NAME = 128
"""Of a function, in the Live API."""
MAX_TOOLS = 128
"""Tools of one server that are offered: every call's set-up describes all of them."""
MAX_DESCRIPTION = 4_000
"""Characters of a tool's description; the rest is left out."""
MAX_SCHEMA_BYTES = 32 * 1024
"""Of a tool's parameters; one with more is not offered."""
MAX_NAMES = 8
"""Names for one another that the schema of a tool's parameters may begin with."""
MAX_PARTS = 100
"""Parts of a result that are told."""
_OUTCOME_UNKNOWN = (
    "the connection to this function was lost before it answered; its outcome is not known. Ask "
    "the caller before you try it again."
)
_MAYBE_DONE = "; whether it was done is not known. Ask the caller before you try it again."


class _Entry(BaseModel):
    """One server as the setting writes it; keys of other clients are left alone."""

    command: str = ""
    args: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    cwd: str | None = None
    url: str = ""
    headers: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_way_to_reach_it(self) -> _Entry:
        if bool(self.command) == bool(self.url):
            raise ValueError("must have either a command or a url")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError("its url must begin with http:// or https://")
        return self


_read_entries = TypeAdapter(
    dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}$")], _Entry]
).validate_python


def read_servers(setting: str | None) -> Mapping[str, _Entry]:
    """Read ``MCP_SERVERS``: JSON, or a file with JSON.

    Raises:
        ConfigurationError: It cannot be read, or the mcp package is not there; the variable is
            named.
    """
    if not setting:
        return {}
    try:
        text = setting
        if not setting.lstrip().startswith("{"):
            text = read_text(Path(setting).read_bytes(), f"MCP_SERVERS: {setting}")
        given = json.loads(text)
    except OSError as error:
        raise ConfigurationError(f"MCP_SERVERS: cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"MCP_SERVERS: not JSON: {error}") from None
    if isinstance(given, dict) and isinstance(given.get("mcpServers"), dict):
        given = given["mcpServers"]
    try:
        entries = _read_entries(given)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in issue['loc'])}: {issue['msg']}"
            for issue in error.errors(include_input=False)
        )
        raise ConfigurationError(f"MCP_SERVERS: {problems}") from None
    try:
        import mcp  # noqa: F401
    except ImportError:
        raise ConfigurationError(
            "MCP_SERVERS needs the mcp package: pip install 'offhook[mcp]'"
        ) from None
    return entries


class McpServers:
    """Keeps a connection to each server, and offers what they offer.

    Args:
        servers: As :func:`read_servers` gives them.
        connect_timeout_s: How long one may take to be reached and to say what it offers.
    """

    def __init__(self, servers: Mapping[str, _Entry], *, connect_timeout_s: float = 10.0) -> None:
        self._connections = [
            _Connection(name, entry, connect_timeout_s) for name, entry in servers.items()
        ]

    @property
    def tools(self) -> tuple[Tool, ...]:
        """What the servers that can be reached offer now, each tool as ``server__tool``."""
        every = (tool for one in self._connections for tool in one.tools)
        return tuple(_first_of_each_name(every))

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the connections until cancelled; started when each has been tried once."""
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as first_attempts:
                for connection in self._connections:
                    first_attempts.start_soon(nursery.start, connection.run)
            task_status.started()


def _first_of_each_name(tools: Iterable[Tool]) -> Iterable[Tool]:
    """Some come to have one name: `a/b` and `a_b`; or `b__c` of one server and `c` of another."""
    by_name: dict[str, Tool] = {}
    for tool in tools:
        by_name.setdefault(tool.name, tool)
    return by_name.values()


@dataclass(frozen=True, slots=True)
class _Doubt:
    """Whether a server is still there, as whoever has called a function of its asks."""

    raised: trio.Event = field(default_factory=trio.Event)
    settled: trio.Event = field(default_factory=trio.Event)
    """It has been looked at since, or is lost."""


@dataclass(slots=True)
class _Connection:
    """One server, reached or not."""

    name: str
    entry: _Entry
    connect_timeout_s: float
    tools: tuple[Tool, ...] = ()
    _client: Client | None = None
    _lost: trio.Event = field(default_factory=trio.Event)
    _doubt: _Doubt = field(default_factory=_Doubt)
    _running: int = 0
    """Functions under way."""
    _left_at: float = -math.inf
    """When the last one was over, or nobody waited for it any more."""
    _answered_at: float = -math.inf
    _left_out: int = 0
    """Tools that are not offered."""

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Connect, and connect again, for ever."""
        backoff, tried = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S), False
        while True:
            reason = "not reached in time"
            try:
                with trio.CancelScope() as scope:
                    scope.deadline = trio.current_time() + self.connect_timeout_s
                    async with self._open() as client:
                        self._lost, self._doubt = trio.Event(), _Doubt()
                        try:
                            self._offer(client, await self._list_tools(client))
                            self._answered_at = trio.current_time()
                            # What is open by now would not survive a scope of its own being left.
                            scope.deadline = float("inf")
                            backoff.reset()
                            if not tried:
                                tried = True
                                task_status.started()
                            await self._watch(client)
                        except Exception as error:
                            reason = _reason(error)
                            raise
                        finally:
                            # To close it may take a while, in which it is of no use any more.
                            self._client, self.tools = None, ()
                            self._lost.set()
                            self._doubt.settled.set()
                            scope.deadline = trio.current_time() + self.connect_timeout_s
            except Exception as error:
                reason = _reason(error)
            logger.warning("mcp server not available", server=self.name, reason=reason)
            if not tried:
                tried = True
                task_status.started()
            await trio.sleep(backoff.next_s() * random.uniform(0.8, 1.2))

    @asynccontextmanager
    async def _open(self) -> AsyncGenerator[Client]:
        from mcp import Client, StdioServerParameters
        from mcp.client.stdio import stdio_client
        from mcp.client.streamable_http import streamable_http_client

        entry = self.entry
        async with AsyncExitStack() as stack:
            if entry.url:
                # To load certificates takes up to 0.1 s, in which no call would be heard.
                tls = await trio.to_thread.run_sync(httpx2.create_ssl_context)
                http = await stack.enter_async_context(
                    # An answer may be long in coming; the tool's own deadline is what counts.
                    httpx2.AsyncClient(
                        headers=entry.headers, timeout=httpx2.Timeout(30.0, read=300.0), verify=tls
                    )
                )
                transport = streamable_http_client(entry.url, http_client=http)
            else:
                command = StdioServerParameters(
                    command=entry.command, args=list(entry.args), env=entry.env, cwd=entry.cwd
                )
                transport = stdio_client(command, errlog=sys.__stderr__ or sys.stderr)
            yield await stack.enter_async_context(Client(transport, cache=None))

    async def _list_tools(self, client: Client) -> list[McpTool]:
        found: list[McpTool] = []
        cursor: str | None = None
        for _ in range(100):  # a server that never ends its list is not waited for
            page = await client.list_tools(cursor=cursor)
            found += page.tools
            if not (cursor := page.next_cursor) or len(found) > MAX_TOOLS:
                break
        return found

    def _offer(self, client: Client, found: list[McpTool]) -> None:
        self._client = client
        made = [
            self._tool(one) for one in found if not is_too_big(one.input_schema, MAX_SCHEMA_BYTES)
        ]
        # A name that stands for nothing here is refused by models, and every call with it.
        offered = [tool for tool in made if "$ref" not in tool.parameters]
        tools = tuple(_first_of_each_name(offered[:MAX_TOOLS]))
        left_out = len(found) - len(tools)
        is_new = [tool.name for tool in tools] != [tool.name for tool in self.tools]
        if is_new:
            logger.info("mcp server offers tools", server=self.name, tools=len(tools))
        if left_out and (is_new or left_out != self._left_out):
            logger.warning(
                "mcp tools are not offered",
                server=self.name,
                tools=left_out,
                schema_elsewhere=len(made) - len(offered),
            )
        self.tools, self._left_out = tools, left_out

    async def _watch(self, client: Client) -> None:
        """Look from time to time what is offered, and when in doubt; raises if it is lost."""
        looked_at = trio.current_time()
        while True:
            with trio.move_on_after(CHECK_S):
                await self._doubt.raised.wait()
                await trio.sleep_until(looked_at + LOOK_AGAIN_S)
            # Whoever doubts from now on asks for another look.
            doubt, self._doubt, looked_at = self._doubt, _Doubt(), trio.current_time()
            try:
                await self._look(client)
            finally:  # what is lost is marked so by whoever has it, before anybody goes on
                doubt.settled.set()

    async def _look(self, client: Client) -> None:
        """Ask what is offered.

        Raises:
            trio.TooSlowError: No answer in time, of a server that is not busy with functions: one
                that does one thing at a time says nothing meanwhile.
        """
        began = trio.current_time()
        with trio.move_on_after(self.connect_timeout_s):
            found = await self._list_tools(client)
            self._answered_at = trio.current_time()
            self._offer(client, found)
            return
        is_busy = self._running > 0 or self._left_at > began
        if not is_busy or trio.current_time() - self._answered_at >= BUSY_S:
            raise trio.TooSlowError

    def _tool(self, found: McpTool) -> Tool:
        async def run(
            arguments: Mapping[str, Any], call: LiveCall, threads: trio.CapacityLimiter
        ) -> object:
            return await self._call(found.name, arguments_for(schema, arguments))

        name = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{self.name}__{found.name}")[:MAX_NAME]
        schema = _parameters(found.input_schema)
        description = found.description or found.title or found.name
        return Tool(name, description[:MAX_DESCRIPTION], schema, run)

    async def _call(self, name: str, arguments: dict[str, Any]) -> object:
        from anyio import BrokenResourceError, ClosedResourceError
        from mcp.shared.exceptions import MCPError

        client, lost = self._client, self._lost
        if client is None:
            raise ToolError("this function cannot be reached now")
        try:
            result = await self._asked(client, name, arguments)
        except MCPError as error:
            # Its code does not say whether the server is gone: servers have the same ones for
            # errors of their own, and one that has been deployed anew knows no session.
            if await self._is_gone(lost):
                raise ToolError(_OUTCOME_UNKNOWN) from None
            if _may_be_done(error.code, error.message):
                # Of several processes behind one address the one that ran it may be gone, or what
                # it said lost on the way.
                said = (error.message or "the function failed").rstrip(" .!")
                raise ToolError(said[: MAX_ERROR - len(_MAYBE_DONE)] + _MAYBE_DONE) from None
            raise ToolError(error.message) from None
        except (RuntimeError, ValidationError) as error:
            # The answer has come, and does not fit what the server has said of it, or the protocol.
            # What is wrong with it may hold what somebody said; the connection serves other calls.
            kind = type(error).__name__
            logger.warning("mcp result cannot be read", server=self.name, tool=name, error=kind)
            raise ToolError("the function was run, but what it returned cannot be read") from None
        except (OSError, BrokenResourceError, ClosedResourceError, httpx2.HTTPError) as error:
            logger.warning("mcp call broke off", server=self.name, tool=name, error=_reason(error))
            await self._is_gone(lost)
            raise ToolError(_OUTCOME_UNKNOWN) from None
        return _told(result)

    async def _asked(self, client: Client, name: str, arguments: dict[str, Any]) -> CallToolResult:
        """Call a function of the server's, which is busy with it meanwhile."""
        self._running += 1
        try:
            result = await client.call_tool(name, arguments)
            self._answered_at = trio.current_time()
            return result
        finally:
            self._running -= 1
            self._left_at = trio.current_time()

    async def _is_gone(self, lost: trio.Event) -> bool:
        """Have the server looked at; whether that connection turns out to be lost."""
        if not lost.is_set():
            doubt = self._doubt
            doubt.raised.set()
            with trio.move_on_after(VERDICT_S):
                await doubt.settled.wait()
        return lost.is_set()


def _may_be_done(code: int, message: str) -> bool:
    """Whether an error is one that the client itself makes of an answer that does not come.

    Servers may have the same for errors of their own, of which it is then not known either.
    """
    from mcp.types import CONNECTION_CLOSED, INTERNAL_ERROR, PARSE_ERROR, REQUEST_TIMEOUT

    if code in (CONNECTION_CLOSED, INTERNAL_ERROR, PARSE_ERROR, REQUEST_TIMEOUT):
        return True
    return message.startswith(("Unexpected content type", "server answered a request with 202"))


def _told(result: CallToolResult) -> object:
    """What the model is told of a result: its structure if it has one, else its text.

    Raises:
        ToolError: The server says that it is an error.
    """
    texts: list[str] = []
    others: list[str] = []
    for part in result.content[:MAX_PARTS]:
        if part.type == "text":
            # A character more than may be told: that there was more is noticed where it is told.
            texts.append(part.text[: MAX_RESULT_BYTES + 1])
        else:
            others.append(part.type)
    if result.is_error:
        raise ToolError("\n".join(texts)[:MAX_ERROR] or "the function failed")
    if result.structured_content is not None:
        if is_too_big(result.structured_content, MAX_RESULT_BYTES):
            raise ToolError("the function was run, but what it returned is too long to be read")
        return result.structured_content
    if len(result.content) > MAX_PARTS:
        others.append(f"{len(result.content) - MAX_PARTS} more parts")
    # A telephone has no use for pictures; but that there was one should be known.
    return "\n".join((*texts, *(f"({kind}, not shown)" for kind in others)))


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a tool's arguments as models are told it: an object, not a name for one."""
    schema = dict(given)
    for _ in range(MAX_NAMES):
        if (meant := _meant(schema, schema.get("$ref"))) is None:
            break
        del schema["$ref"]
        schema = _joined(meant, schema)
    if schema.get("properties"):  # it is an object whatever the name beside them stands for
        schema.pop("$ref", None)
    return {
        key: value
        for key, value in schema.items()
        if not key.startswith("$") or key in ("$defs", "$ref")
    }


def _meant(schema: Mapping[str, Any], name: object) -> Mapping[str, Any] | None:
    """What a name stands for in this very schema (a JSON pointer), if it stands for anything."""
    if not (isinstance(name, str) and name.startswith("#/")):
        return None
    at: object = schema
    for step in unquote(name).split("/")[1:]:
        at = at.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(at, Mapping) else None
    return at if isinstance(at, Mapping) else None


def _joined(meant: Mapping[str, Any], beside: Mapping[str, Any]) -> dict[str, Any]:
    """One schema of what a name stands for and what is written beside the name: both hold."""
    joined = {**meant, **beside}
    match meant, beside:  # which often has these too, empty
        case {"properties": Mapping() as one}, {"properties": other}:
            joined["properties"] = {**one, **(other if isinstance(other, Mapping) else {})}
    match meant, beside:
        case {"required": list(needed)}, {"required": other}:
            more = other if isinstance(other, list) else ()
            joined["required"] = [*needed, *(name for name in more if name not in needed)]
    return joined


def arguments_for(schema: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A model's arguments as a server may be given them: see :func:`without_extra`."""
    properties = schema.get("properties")
    named: Mapping[str, Any] = properties if isinstance(properties, Mapping) else {}
    is_closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    if named and is_closed:
        return without_extra(given, named)  # whatever else there is can only say which go together
    if has_parameters_elsewhere(schema):
        return dict(given)  # it wants others, too
    return without_extra(given, named)


def _reason(error: BaseException) -> str:
    """What went wrong, from the depth of an exception group; nothing that may hold a secret."""
    error = innermost(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{type(error).__name__}: {error.strerror}"
    return type(error).__name__
