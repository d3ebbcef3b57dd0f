"""Tools for the agent over the Model Context Protocol: an example to be changed.

``python shop.py`` serves them at http://…:9000/mcp; compose.yaml names that in MCP_SERVERS. It is
for a network of its own: whoever reaches it may call its tools.
"""

from __future__ import annotations

import os

from mcp.server import MCPServer
from mcp.server.transport_security import TransportSecuritySettings

HOURS = {"monday": "closed", "sunday": "noon to ten"}

server = MCPServer("shop")


@server.tool()
def opening_hours(day: str) -> str:
    """Say when the shop is open.

    Args:
        day: A day of the week, in English.
    """
    return HOURS.get(day.lower(), "noon to midnight")


if __name__ == "__main__":
    server.run(
        "streamable-http",
        host=os.environ.get("SHOP_HOST", "0.0.0.0"),
        port=int(os.environ.get("SHOP_PORT", "9000")),
        stateless_http=True,
        # Browsers are kept away by the network: it has no way in.
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )
