"""What the agent can do. The model calls these, and their docstrings are all it is told of them."""

from server.agent.tool import LiveCall, ToolError, tool
from shop.menu import PRICES


@tool
def price_of(pizza: str, call: LiveCall, count: int = 1) -> str:
    """Look up what pizzas cost.

    Args:
        pizza: Which one, as on the menu.
        count: How many of it.
    """
    # `def`, not `async def`: it runs in a thread, and may wait for a database. With `async def` it
    # would run on trio's loop, among all calls: there it must await what it waits for, by trio.
    if pizza not in PRICES:
        raise ToolError(f"That is not on the menu. There are {', '.join(PRICES)}.")
    call.note("asked for a price")
    return f"{count * PRICES[pizza]:.2f} dollars"
