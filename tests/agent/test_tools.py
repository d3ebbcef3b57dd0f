"""Functions made into tools: what the model is told of them, and the modules they are found in."""

from __future__ import annotations

import math
import threading
from datetime import date
from decimal import Decimal
from enum import StrEnum
from functools import partial
from typing import Annotated, Any, Literal, cast
from uuid import UUID

import pytest
import trio
from pydantic import BaseModel, ConfigDict, Field

from server.agent.agent import Agent
from server.agent.builtin import TRANSFER_NAME, hang_up, transfer_tool
from server.agent.loading import check_names, load_tools
from server.agent.results import Result
from server.agent.tool import LiveCall, ToolError, tool
from server.errors import ConfigurationError
from server.model.gemini.setup import agent_config, setup_message
from tests.support.toolboxes import FakeCall, echo


class Address(BaseModel):
    street: str
    number: int = 1


def test_the_schema_comes_from_the_signature_and_the_docstring():
    @tool
    async def book(
        guests: int,
        when: Literal["today", "tomorrow"],
        note: Annotated[str, Field(max_length=80, description="Wishes.")] = "",
        call: LiveCall | None = None,
    ) -> str:
        """Book a table.

        Only after the caller has agreed.

        Args:
            guests: How many people,
                children included.
            when: The day.

        Returns:
            Nothing the model should read.
        """
        return ""

    assert book.name == "book"
    assert book.description == "Book a table.\n\nOnly after the caller has agreed."
    assert book.parameters == {
        "type": "object",
        "properties": {
            "guests": {"type": "integer", "description": "How many people, children included."},
            "when": {"type": "string", "enum": ["today", "tomorrow"], "description": "The day."},
            "note": {"type": "string", "maxLength": 80, "description": "Wishes."},
        },
        "required": ["guests", "when"],
    }


def look_up(table: str, key: str) -> str:
    """Look something up.

    Args:
        key: What.
    """
    return f"{key} of {table}"


def test_what_is_said_of_a_function_beside_it_counts():
    made = tool(look_up, name="find", timeout_s=30.0, filler="One moment.")

    assert (made.name, made.timeout_s, made.filler) == ("find", 30.0, "One moment.")


def test_a_function_with_some_arguments_given_is_described_as_the_function_is():
    made = tool(partial(look_up, "prices"), name="price")

    assert made.description == "Look something up."
    assert made.parameters["properties"] == {"key": {"type": "string", "description": "What."}}
    assert made(key="hawaii") == "hawaii of prices"


@pytest.mark.parametrize("made", [tool, tool(timeout_s=3.0)])
def test_what_has_no_name_of_its_own_is_refused_without_one(made):
    with pytest.raises(TypeError, match="has no name of its own"):
        made(partial(look_up, "prices"))


def test_the_model_is_told_what_to_say_before_it_calls_what_takes_long():
    @tool(filler="One moment, please.")
    def look_up(name: str) -> str:
        """Look somebody up."""
        return name

    @tool
    def quick() -> None:
        """Do it at once."""

    config = agent_config(Agent(tools=(look_up, quick)))

    message, _ = setup_message("gemini-3.8-live", config)
    slow, fast = message["setup"]["tools"][0]["functionDeclarations"]
    assert look_up.description == "Look somebody up."
    assert slow["description"].startswith("Look somebody up.")
    assert 'say "One moment, please."' in slow["description"]
    assert fast["description"] == "Do it at once."


@pytest.mark.parametrize("filler", ["x" * 201, 'Say "yes"'])
def test_what_is_no_filler_is_refused(filler):
    with pytest.raises(TypeError, match="filler"):

        @tool(filler=filler)
        def look_up() -> None:
            """Look somebody up."""


def test_an_argument_may_be_called_anything_a_dictionary_key_may():
    @tool
    def file(title: str, json: str, copy: bool, schema: list[str], items: dict[str, int]) -> None:
        """File it."""

    assert set(file.parameters["properties"]) == {"title", "json", "copy", "schema", "items"}


def test_a_model_of_the_users_is_described_by_its_fields():
    @tool
    def deliver(title: str, to: Address) -> None:
        """Deliver it."""

    address = deliver.parameters["$defs"]["Address"]
    assert address["properties"]["street"] == {"type": "string"}
    assert address["required"] == ["street"]


def test_a_tool_may_have_another_name_and_a_longer_time():
    @tool(name="look_up", timeout_s=60)
    def find(what: str) -> str:
        """Find it."""
        return what

    assert (find.name, find.timeout_s) == ("look_up", 60)


def test_a_tool_can_be_called_like_the_function_it_was():
    @tool
    def double(n: int) -> int:
        """Double it."""
        return 2 * n

    assert double(21) == 42


def _no_docstring(what: str) -> None:
    pass


def _no_type(what) -> None:
    """Do it."""


def _any_number(*what: str) -> None:
    """Do it."""


def _no_schema(what: threading.Lock) -> None:
    """Do it."""


def _nowhere(what: Nowhere) -> None:  # noqa: F821
    """Do it."""


def _strict_union(what: Annotated[int | str, Field(strict=True)]) -> None:
    """Do it."""


def _no_pattern(what: Annotated[str, Field(pattern="(")]) -> None:
    """Do it."""


def _endless_tuple(what: tuple[int, str, ...]) -> None:  # type: ignore[misc]
    """Do it."""


def _no_such_discriminator(what: Annotated[int | str, Field(discriminator="kind")]) -> None:
    """Do it."""


@pytest.mark.parametrize(
    "function",
    [
        *(_no_docstring, _no_type, _any_number, _no_schema, _nowhere),
        *(_strict_union, _no_pattern, _no_such_discriminator, _endless_tuple),
    ],
)
def test_what_the_model_could_not_be_told_is_refused_where_it_is_written(function):
    with pytest.raises(TypeError, match=function.__name__):
        tool(function)


def test_a_name_the_service_would_refuse_is_refused():
    with pytest.raises(TypeError, match="letters"):
        tool(name="1st")(lambda: None)


def test_only_the_destinations_of_the_settings_can_be_asked_for():
    transfer = transfer_tool({"sales": "+15005550123", "the boss": "+15005550124"})

    assert transfer.parameters["properties"]["destination"] == {
        "type": "string",
        "enum": ["sales", "the boss"],
        "description": "With whom.",
    }
    assert "+1500" not in str(transfer.parameters) + transfer.description
    assert transfer.name == TRANSFER_NAME


def test_the_tools_of_a_module_are_found(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "users_tools.py").write_text(
        "from server.agent.tool import tool\n\n"
        "@tool\ndef one() -> int:\n    '''Give one.'''\n    return 1\n\n"
        "@tool\nasync def two() -> int:\n    '''Give two.'''\n    return 2\n"
    )

    assert [found.name for found in load_tools(["users_tools"])] == ["one", "two"]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (None, "cannot be imported"),
        ("import there_is_no_such_module", "cannot be imported"),
        ("1 / 0", "ZeroDivisionError"),
        ("x = 1", "no function with @tool"),
        ("from server.agent.tool import tool\n@tool\ndef f():\n    pass", "docstring"),
    ],
)
def test_a_module_that_is_of_no_use_is_named(tmp_path, monkeypatch, source, problem):
    monkeypatch.syspath_prepend(tmp_path)
    name = f"users_{abs(hash((source, problem)))}"
    if source is not None:
        (tmp_path / f"{name}.py").write_text(source)

    with pytest.raises(ConfigurationError, match=problem) as caught:
        load_tools([name])
    assert "TOOLS" in str(caught.value)
    assert name in str(caught.value)


def test_two_tools_of_one_name_are_refused_but_one_may_be_found_twice():
    assert check_names([echo, hang_up, echo]) == (echo, hang_up)
    with pytest.raises(ConfigurationError, match="hang_up"):
        check_names([hang_up, tool(name="hang_up")(echo.function)])


class Size(StrEnum):
    LARGE = "large"


class Exactly(BaseModel):
    model_config = ConfigDict(strict=True)

    when: date
    of: UUID
    size: Size
    price: Decimal
    pair: tuple[int, str]
    names: set[str]


EXACTLY = {
    "when": "2026-12-24",
    "of": "12345678-1234-5678-1234-567812345678",
    "size": "large",
    "price": "12.50",
    "pair": [1, "a"],
    "names": ["b"],
}


@tool
def take_exactly(order: Exactly, number: float | int | str) -> list:
    """Take it as it is said."""
    return [order, number]


async def taken(order: dict[str, Any], number: Any) -> list:
    arguments = {"order": order, "number": number}
    result = await take_exactly.run(arguments, FakeCall(), trio.CapacityLimiter(1))
    assert isinstance(result, Result)
    return cast("list", result.value)


@pytest.mark.parametrize("number", [2**80, 0.5, math.inf, -math.inf, "ñ"])
async def test_what_is_to_be_of_a_type_exactly_is_read_from_json(number):
    order, told = await taken(EXACTLY, number)

    assert order.when == date(2026, 12, 24)
    assert order.of == UUID(EXACTLY["of"])
    assert order.size is Size.LARGE
    assert order.price == Decimal("12.50")
    assert (order.pair, order.names) == ((1, "a"), {"b"})
    assert (told, type(told)) == (number, type(number))


async def test_what_is_no_number_stays_one_where_types_are_exact():
    _, told = await taken(EXACTLY, math.nan)

    assert math.isnan(told)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"when": "24 December"}, "order.when: Input should be a valid date"),
        ({"pair": ["1", "a"]}, "order.pair.0: Input should be a valid integer"),
        ({"size": "\ud83d"}, "order.size: "),
    ],
)
async def test_what_is_not_of_a_type_exactly_is_told(wrong, told):
    with pytest.raises(ToolError, match=told):
        await taken(EXACTLY | wrong, 1)
