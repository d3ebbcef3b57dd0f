"""A small MCP server for the tests, over stdio; tests/agent/test_mcp_servers.py starts it."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
from mcp.server import MCPServer
from mcp.shared.exceptions import MCPError
from mcp.types import ImageContent, TextContent, Tool


class Shop(MCPServer):
    """Says of one tool that it returns something else than it does."""

    async def list_tools(self) -> list[Tool]:
        tools = await super().list_tools()
        for one in tools:
            if one.name == "misfit":
                one.output_schema = {"type": "object", "required": ["left"]}
        return tools


server = Shop("shop", log_level="ERROR")


@server.tool()
def stock(item: str, shelf: int = 1) -> dict[str, str | int]:
    """Say how many of an item are left."""
    return {"item": item, "shelf": shelf, "left": 7, "shop": os.environ.get("SHOP", "")}


@server.tool(structured_output=False)
def picture() -> list[TextContent | ImageContent]:
    """Describe it, and show it."""
    return [
        TextContent(type="text", text="a pear"),
        ImageContent(type="image", data="AAAA", mime_type="image/png"),
    ]


@server.tool(structured_output=False)
def misfit() -> str:
    """Return what does not fit."""
    return "sesame"


@server.tool()
def fail() -> str:
    """Fail."""
    raise RuntimeError("out of stock")


@server.tool()
def complain() -> str:
    """Answer with an error of the server's own, with the code that clients have for a lost one."""
    raise MCPError(-32000, "the till is locked")


@server.tool()
async def wait() -> str:
    """Take long."""
    await anyio.sleep(60)
    return "done"


@server.tool()
def die() -> str:
    """End the server in the middle of a call."""
    os._exit(3)


if __name__ == "__main__":
    if started := os.environ.get("STARTED"):
        with Path(started).open("a") as file:
            file.write("x")
    server.run()
