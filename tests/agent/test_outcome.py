"""What a call was for, as data: its schema, what fits, and when it is whole."""

from __future__ import annotations

import enum
from datetime import date
from typing import Annotated, Any

import pytest
import trio
from pydantic import BaseModel, ConfigDict, Field, field_validator

from server.agent.loading import load_tools
from server.agent.outcome import (
    MAX_OUTCOME_BYTES,
    Outcome,
    SchemaWrong,
    outcome_schema,
    outcome_tool,
)
from server.agent.tool import ToolError
from server.errors import ConfigurationError
from server.events.handlers import load_handlers

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


NULLABLE = {"properties": {"note": {"type": ["string", "null"]}, "count": {"type": "integer"}}}


def test_null_is_no_news_of_what_is_known():
    order = outcome(NULLABLE)

    assert order.fill({"note": None}, "agent") == []
    unsaid = dict(order.values)
    assert order.fill({"note": "olives"}, "agent") == []
    assert order.fill({"note": None, "count": 2}, "agent") == []

    assert unsaid == {"note": None}
    assert order.values == {"note": "olives", "count": 2}


DEPENDENT = {
    "required": ["street"],
    "properties": {"street": {}, "number": {}, "door": {}, "colour": {"enum": ["red"]}},
    "dependentRequired": {"street": ["number"], "number": ["door"]},
}


@pytest.mark.parametrize("more", [{}, {"colour": "green"}])
def test_parts_that_need_others_are_taken_in_together(more):
    read = {"street": "Ancha", "number": 5, "door": "b"}
    order = outcome(DEPENDENT)

    order.fill_missing(read | more, "transcript")

    assert order.values == read


def test_what_another_process_has_brought_is_gone_on_with_as_it_was():
    there = {"street": "Ancha", "number": 5, "door": "b", "note": None}
    schema = DEPENDENT | {"properties": DEPENDENT["properties"] | {"note": {}}}
    order = outcome(schema)

    order.go_on(there)

    assert order.as_dict() == {
        "values": there,
        "source": "agent",
        "complete": True,
        "missing": [],
    }


def test_of_what_another_process_has_brought_what_fits_here_is_gone_on_with():
    order = outcome()

    order.go_on({"pizza": "hawaii", "count": "two", "colour": "red"})

    assert order.values == {"pizza": "hawaii"}


def test_nothing_brought_has_no_source():
    order = outcome()

    order.go_on({})

    assert order.as_dict()["source"] is None


class Node(BaseModel):
    next: Node | None = None


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (Node, "must be an object"),
        (int | str, "must be an object"),
        (Annotated[int | str, Field(strict=True)], "must be a class that pydantic knows"),
        (Annotated[str, Field(pattern="(")], "must be a class that pydantic knows"),
        ({"properties": {"x" * 300: {}}}, "name that is too long"),
    ],
)
def test_a_schema_of_which_nothing_could_be_kept_is_refused(said, told):
    with pytest.raises(SchemaWrong, match=told):
        outcome_schema(said)


def test_a_module_that_exits_when_it_is_imported_is_refused(tmp_path, monkeypatch):
    (tmp_path / "exits_at_once.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(SchemaWrong, match="SystemExit"):
        outcome_schema("exits_at_once.Order")
    with pytest.raises(ConfigurationError, match="TOOLS: exits_at_once"):
        load_tools(["exits_at_once"])
    with pytest.raises(ConfigurationError, match="EVENT_HANDLERS: exits_at_once"):
        load_handlers(["exits_at_once"])


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


def test_half_a_character_lets_nothing_in():
    order = outcome()

    assert order.fill({"wishes": ["no \ud83d"]}, "agent") == [
        "it cannot be checked: UnicodeEncodeError"
    ]
    assert order.values == {}


class Feedback(BaseModel):
    stars: int = 5
    words: str = ""


@pytest.mark.parametrize("said", [Feedback, {**ORDER, "required": []}])
def test_what_requires_nothing_is_whole_from_the_beginning(said):
    order = outcome(said)

    assert order.schema.required == ()
    assert (order.missing, order.is_complete) == ((), True)


class Visit(BaseModel):
    model_config = ConfigDict(strict=True)

    day: date
    size: Size


def test_a_class_of_exact_types_is_filled_in_from_json():
    visit = outcome(Visit)

    assert visit.fill({"day": "2026-12-24"}, "agent") == []
    assert visit.fill({"size": "large"}, "agent") == []

    assert visit.is_complete


def test_what_does_not_say_what_it_requires_requires_all_of_it():
    order = outcome({key: value for key, value in ORDER.items() if key != "required"})

    assert order.missing == ("pizza", "count", "wishes")


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


def test_a_validator_that_fails_lets_nothing_in_and_what_it_was_given_is_in_no_log(capsys):
    class Delivery(BaseModel):
        street: str

        @field_validator("street")
        @classmethod
        def _known(cls, given: str) -> str:
            return {"Elm": "Elm Street"}[given]

    order = outcome(Delivery)

    problems = order.fill({"street": "Oak 4111"}, "agent")

    said = "".join(capsys.readouterr())
    assert problems == ["it cannot be checked: KeyError"]
    assert order.values == {}
    assert "in _known" in said
    assert "4111" not in said
