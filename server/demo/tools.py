"""Functions for the demonstration ``tool-storm``: quick ones, slow ones, and ones that go wrong.

Also an example of a module for ``TOOLS``.
"""

from __future__ import annotations

from typing import Literal

import trio

from server.agent.tool import LiveCall, tool


@tool
async def look_up_order(number: int, call: LiveCall) -> dict[str, str | int]:
    """Look an order up.

    Args:
        number: As it stands on the bill.
    """
    await trio.sleep(0.3)
    return {"order": number, "state": "on its way", "asked_for_in": call.direction}


@tool
def opening_hours(day: Literal["weekday", "weekend"]) -> str:
    """Say when the shop is open."""
    return "nine to five" if day == "weekday" else "closed"


@tool
async def read_meter(meter: str) -> float:
    """Read a meter; this one always fails."""
    raise RuntimeError(f"no meter {meter}")


@tool(timeout_s=0.8)
async def ask_the_warehouse(question: str) -> str:
    """Ask somebody who never answers."""
    await trio.sleep_forever()
    return question
