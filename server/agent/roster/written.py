"""An agent as a module of the user's describes it::

from server.agent import Agent, NewCall

order_desk = Agent("order-desk", numbers="+584125550001", prompt="You take orders.", voice="Kore")


async def route(call: NewCall):
    return order_desk
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any


class Agent:
    """An agent by the keys that a file has: see docs/agents.md. They are checked when it is loaded.

    Args:
        name: What requests and records call it.
        said: Keys and values; ``tools`` may have functions with ``@tool`` among its modules.

    Attributes:
        name: As given.
        said: All of it.
        line: Where in its file it stands.
    """

    def __init__(self, name: str, **said: Any) -> None:
        self.name = name
        self.said: Mapping[str, Any] = {"name": name, **said}
        self.line = sys._getframe(1).f_lineno

    def __repr__(self) -> str:
        return f"<Agent {self.name!r}>"
