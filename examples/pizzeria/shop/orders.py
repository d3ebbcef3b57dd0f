"""An order, as the agent fills it in while it talks, and as the receiver gets it."""

from typing import Annotated

from pydantic import BaseModel, Field

from shop.menu import Pizza


class Item(BaseModel):
    """So many of one pizza."""

    pizza: Pizza
    count: Annotated[int, Field(ge=1, le=20)]


class Order(BaseModel):
    """What one call was for."""

    name: Annotated[str, Field(description="Whom it is for.")]
    items: Annotated[list[Item], Field(min_length=1, max_length=20)]
    confirmed: Annotated[bool, Field(description="Whether the caller agrees to all of it.")]
