"""What a call was for, as data: its schema, what fits, and when it is whole."""

from __future__ import annotations

import enum
from typing import Any

import pytest
import trio
from pydantic import BaseModel, field_validator

from server.agent.outcome import (
    MAX_OUTCOME_BYTES,
    Outcome,
    SchemaWrong,
    outcome_schema,
    outcome_tool,
)
from server.agent.tool import ToolError

ORDER: dict[str, Any] = {
    "description": "One order.",
    "required": ["pizza", "count"],
    "properties": {
        "pizza": {"type": "string", "enum": ["margherita", "hawaii"]},
        "count": {"type": "integer", "minimum": 1, "maximum": 20},
        "wishes": {"type": "array", "items": {"type": "string"}},
    },
}


class Size(enum.StrEnum):
    SMALL = "small"
    LARGE = "large"


class Order(BaseModel):
    """An order, as the shop's own code has it."""

    pizza: str
    size: Size
    count: int = 1

    @field_validator("pizza")
    @classmethod
    def _known(cls, given: str) -> str:
        if given == "sushi":
            raise ValueError("we have none")
        return given


def outcome(said: Any = ORDER) -> Outcome:
    return Outcome(outcome_schema(said))


def test_it_is_filled_in_bit_by_bit_until_it_is_whole():
    order = outcome()

    assert order.fill({"pizza": "hawaii"}, "agent") == []
    first = order.as_dict()
    assert order.fill({"count": 2, "pizza": "margherita"}, "agent") == []

    assert first == {
        "values": {"pizza": "hawaii"},
        "source": "agent",
        "complete": False,
        "missing": ["count"],
    }
    assert order.as_dict() == {
        "values": {"pizza": "margherita", "count": 2},
        "source": "agent",
        "complete": True,
        "missing": [],
    }


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"pizza": "sushi"}, "pizza: 'sushi' is not one of"),
        ({"count": "two"}, "count: 'two' is not of type 'integer'"),
        ({"count": 21}, "count: 21 is greater than the maximum of 20"),
        ({"piza": "hawaii"}, "'piza' was unexpected"),
        ({"wishes": ["olives", 3]}, "wishes.1: 3 is not of type 'string'"),
        ({"wishes": ["x" * MAX_OUTCOME_BYTES]}, "longer than"),
    ],
)
def test_what_does_not_fit_is_told_and_nothing_of_it_is_kept(values, told):
    order = outcome()
    order.fill({"count": 2}, "agent")

    problems = order.fill(values | {"pizza": values.get("pizza", "hawaii")}, "agent")

    assert told in "; ".join(problems)
    assert order.values == {"count": 2}


def test_null_is_what_models_say_for_what_they_do_not_know():
    order = outcome()

    assert order.fill({"pizza": "hawaii", "count": None}, "agent") == []
    assert order.values == {"pizza": "hawaii"}


def test_a_model_that_reads_says_only_what_is_missing_and_fits():
    order = outcome()
    order.fill({"pizza": "hawaii"}, "agent")

    read = {"pizza": "margherita", "count": 3, "wishes": "many", "colour": "red"}
    order.fill_missing(read, "transcript")

    assert order.values == {"pizza": "hawaii", "count": 3}
    assert order.as_dict()["source"] == "agent+transcript"


def test_a_class_is_a_schema_and_its_validators_have_the_last_word():
    order = outcome(Order)

    assert order.fill({"size": "large"}, "agent") == []
    (problem,) = order.fill({"pizza": "sushi"}, "agent")
    assert "we have none" in problem
    assert order.fill({"pizza": "hawaii"}, "agent") == []
    assert order.is_complete


def test_a_class_may_be_named():
    order = outcome({"schema": f"{__name__}.Order"})

    assert order.schema.required == ("pizza", "size")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"properties": {"a": {"type": "strin"}}}, "is no JSON Schema: 'strin' is not valid"),
        ({"type": "array", "items": {}}, "must be an object with properties"),
        ({"properties": {}}, "must be an object with properties"),
        ({"properties": {"a": {}}, "required": ["b"]}, "requires b"),
        ({"schema": "no_such_module_x.Order"}, "cannot be imported"),
        ({"schema": "enum.nothing"}, "cannot be imported"),
        ({"schema": "enum.StrEnum", "required": []}, "has more beside its schema"),
        (3, "must be a class that pydantic knows"),
        ({"properties": {"a": {"enum": ["x" * 40_000]}}}, "more than"),
    ],
)
def test_what_is_no_schema_is_refused(said, told):
    with pytest.raises(SchemaWrong) as caught:
        outcome_schema(said)

    assert told in str(caught.value)


def test_nothing_is_fetched_from_where_a_schema_refers_to():
    schema = outcome_schema({"properties": {"a": {"$ref": "http://127.0.0.1:9/a.json"}}})

    (problem,) = Outcome(schema).fill({"a": 1}, "agent")
    assert problem.startswith("it cannot be checked")


async def test_the_models_function_is_told_what_is_missing_or_wrong():
    order = outcome()

    class Call:
        def fill_outcome(self, values):
            if problems := order.fill(values, "agent"):
                raise ValueError("; ".join(problems))
            return order.missing

    tool = outcome_tool(order.schema)
    threads = trio.CapacityLimiter(1)
    first = await tool.run({"pizza": "hawaii"}, Call(), threads)
    with pytest.raises(ToolError, match="nothing was saved"):
        await tool.run({"count": 0}, Call(), threads)
    last = await tool.run({"count": 1}, Call(), threads)

    assert (tool.name, set(tool.parameters)) == ("save_outcome", {"type", "properties"})
    assert tool.description.endswith("One order.")
    assert first == {"saved": True, "still_missing": ["count"]}
    assert last == {"saved": True, "is_complete": True}
