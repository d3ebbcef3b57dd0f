"""What a call was for, as data: a schema that the agent's model fills in while it talks.

The schema is JSON Schema (2020-12), or a pydantic class. The model gets a function with its
properties, may call it as often as it likes with what it has just learnt, and is told what does not
fit. What is whole is for the schema to say; whatever came is kept.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import structlog
import trio
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema.exceptions import ValidationError as Unfit
from jsonschema.protocols import Validator
from pydantic import TypeAdapter, ValidationError
from pydantic_core import SchemaError as NoSchema
from referencing import Registry
from referencing.exceptions import Unresolvable

from server.agent.tool import (
    MAX_PROBLEMS,
    LiveCall,
    Tool,
    ToolError,
    plain_schema,
    read_as,
    without_extra,
)
from server.errors import ConfigurationError
from server.logs.authors import place_of

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

TOOL_NAME = "save_outcome"
MAX_SCHEMA_BYTES = 32 * 1024
MAX_PROPERTIES = 100
MAX_OUTCOME_BYTES = 16 * 1024
MAX_PROBLEM_CHARS = 300
MAX_NAME_CHARS = 256
"""Of a property: as long as another process that goes on with the call takes it."""
MAX_ROUNDS = 3
"""So often what was read is tried again with what has come in since: some parts need others."""
_DESCRIPTION = (
    "Write down what this call is about, for whoever acts on it afterwards. Call it as soon as the "
    "caller has told you something of it, and again when they add to it or correct it; only with "
    "what they have said, and only what is new. You need not tell the caller that you do."
)

Source = Literal["agent", "transcript"]
"""Who has filled something in: the model that talked, or one that read what was said."""


class SchemaWrong(ConfigurationError):
    """A schema is none, or none that an outcome can have.

    Attributes:
        where: Keys, from the outermost, of what is wrong in it.
    """

    def __init__(self, text: str, where: Iterable[object] = ()) -> None:
        super().__init__(text)
        self.where = tuple(str(key) for key in where)


@dataclass(frozen=True, slots=True)
class OutcomeSchema:
    """What a call of an agent is to bring, and what it is checked with."""

    schema: Mapping[str, Any]
    """JSON Schema, an object."""
    required: tuple[str, ...]
    """Its properties without which it is not whole; all of them if it does not say."""
    _parts: Validator = field(repr=False, compare=False)
    _whole: Callable[[Mapping[str, Any]], list[str]] = field(repr=False, compare=False)

    @property
    def properties(self) -> Mapping[str, Any]:
        """The schemas of its parts by name."""
        properties: Mapping[str, Any] = self.schema["properties"]
        return properties

    def missing(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """What it needs and does not have yet."""
        return tuple(name for name in self.required if name not in values)

    def problems(self, values: Mapping[str, Any]) -> list[str]:
        """What is wrong with these values, apart from what is missing; sentences for the model."""
        try:
            found = [
                f"{'.'.join(str(part) for part in error.absolute_path) or 'it'}: {error.message}"
                for error in self._parts.iter_errors(dict(values))
            ]
            if not found and not self.missing(values):
                found = self._whole(values)
            size = len(json.dumps(dict(values)))
            json.dumps(dict(values), ensure_ascii=False).encode()  # half a character cannot be kept
        except (Unresolvable, RecursionError, ValueError, TypeError) as error:
            return [f"it cannot be checked: {type(error).__name__}"]
        if size > MAX_OUTCOME_BYTES:
            found.append(f"it is longer than {MAX_OUTCOME_BYTES} characters")
        return [one[:MAX_PROBLEM_CHARS] for one in found[:MAX_PROBLEMS]]


def outcome_schema(said: Any) -> OutcomeSchema:
    """Read a schema.

    Args:
        said: JSON Schema, a table with the name of a class as its ``schema``, or the class.

    Raises:
        SchemaWrong: It is no such thing.
    """
    if isinstance(said, Mapping) and isinstance(said.get("schema"), str):
        if len(said) > 1:
            raise SchemaWrong("has more beside its schema, which says it all", ["schema"])
        return _of_class(_imported(said["schema"]))
    if isinstance(said, str):
        return _of_class(_imported(said))
    if not isinstance(said, Mapping):
        return _of_class(said)
    return _of_schema({"type": "object", **said}, lambda values: [])


def _imported(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    # Whatever a module of the user's may do when it is imported.
    except (Exception, SystemExit) as error:
        raise SchemaWrong(
            f"cannot be imported: {name}: {type(error).__name__}: {error}", ["schema"]
        ) from None


def _of_class(kind: Any) -> OutcomeSchema:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        schema = adapter.json_schema()
        schema.setdefault("required", [])  # a class whose fields all have defaults
    except (RuntimeError, TypeError, ValueError, NoSchema) as error:
        raise SchemaWrong(f"must be a class that pydantic knows: {error}", ["schema"]) from None

    def check(values: Mapping[str, Any]) -> list[str]:
        try:
            read_as(adapter, dict(values))
        except ValidationError as error:
            return [
                f"{'.'.join(str(part) for part in issue['loc']) or 'it'}: {issue['msg']}"
                for issue in error.errors(include_url=False, include_context=False)
            ]
        except Exception as error:  # of a validator of the user's; told without what it was given
            logger.error(  # noqa: TRY400
                "outcome cannot be checked", error=type(error).__name__, where=place_of(error)
            )
            return [f"it cannot be checked: {type(error).__name__}"]
        return []

    return _of_schema(schema, check)


def _of_schema(
    schema: dict[str, Any], whole: Callable[[Mapping[str, Any]], list[str]]
) -> OutcomeSchema:
    try:
        if len(json.dumps(schema)) > MAX_SCHEMA_BYTES:
            raise SchemaWrong(f"has more than {MAX_SCHEMA_BYTES} characters")
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise SchemaWrong(f"is no JSON Schema: {error.message}", error.absolute_path) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise SchemaWrong(f"cannot be written as JSON: {error}") from None
    properties = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(properties, Mapping) or not properties:
        raise SchemaWrong("must be an object with properties")
    if len(properties) > MAX_PROPERTIES:
        raise SchemaWrong(f"has more than {MAX_PROPERTIES} properties", ["properties"])
    if long := next((name for name in (*schema, *properties) if len(name) > MAX_NAME_CHARS), None):
        raise SchemaWrong(f"has a name that is too long: {long[:40]}…", ["properties"])
    required = tuple(schema.get("required", properties))
    if unknown := [name for name in required if name not in properties]:
        raise SchemaWrong(f"requires {', '.join(unknown)}, but has no such property", ["required"])
    parts = {key: value for key, value in schema.items() if key != "required"}
    parts.setdefault("additionalProperties", False)
    # No registry: nothing is fetched from anywhere, whatever a schema refers to.
    validator = Draft202012Validator(
        parts, registry=Registry(), format_checker=Draft202012Validator.FORMAT_CHECKER
    )
    try:
        next(validator.iter_errors({}), None)
    except (Unresolvable, Unfit) as error:
        raise SchemaWrong(f"refers to what is not in it: {error}") from None
    return OutcomeSchema(schema, required, validator, whole)


class Outcome:
    """What one call has brought until now.

    Args:
        schema: What it is to bring.

    Attributes:
        values: What is known, by name.
        sources: Who has said what is in it.
    """

    def __init__(self, schema: OutcomeSchema) -> None:
        self.schema = schema
        self.values: dict[str, Any] = {}
        self.sources: set[Source] = set()
        self._judged: tuple[Mapping[str, Any], bool] | None = None

    def fill(self, values: Mapping[str, Any], source: Source) -> list[str]:
        """Take these values in, all of them or none; returns what is wrong with them."""
        known = self.schema.properties
        given = {
            name: value
            for name, value in without_extra(values, known).items()
            # Models say null for what they do not know, which is no news of what is known.
            if value is not None
            or (name not in self.values and not self.schema.problems({name: None}))
        }
        together = self.values | given
        if problems := self.schema.problems(together):
            return problems
        if given:
            self.values = together
            self.sources.add(source)
        return []

    def fill_missing(self, values: Mapping[str, Any], source: Source) -> None:
        """Take in those of the values that fit and that nobody has said yet.

        All at once, as some may not be without others; those of what does not fit, one by one.
        """
        left = {
            name: value
            for name, value in values.items()
            if name in self.schema.properties and name not in self.values and value is not None
        }
        if not left or not self.fill(left, source):
            return
        for _ in range(MAX_ROUNDS):
            refused = {name: of for name, of in left.items() if self.fill({name: of}, source)}
            if len(refused) == len(left):
                return
            left = refused

    def go_on(self, values: Mapping[str, Any]) -> None:
        """Begin with what the agent has filled in elsewhere, as far as it fits here."""
        if values and not self.schema.problems(values):
            self.values, self.sources = dict(values), {"agent"}
        else:
            self.fill_missing(values, "agent")

    @property
    def missing(self) -> tuple[str, ...]:
        """What it needs and does not have yet."""
        return self.schema.missing(self.values)

    @property
    def is_complete(self) -> bool:
        """Whether it is what its schema wants; looked at again only when it has changed."""
        if self._judged is None or self._judged[0] is not self.values:
            is_whole = not self.missing and not self.schema.problems(self.values)
            self._judged = self.values, is_whole
        return self._judged[1]

    def as_dict(self) -> dict[str, Any]:
        """The outcome as records have it."""
        return {
            "values": dict(self.values),
            "source": "+".join(sorted(self.sources)) or None,
            "complete": self.is_complete,
            "missing": list(self.missing),
        }


def outcome_tool(schema: OutcomeSchema) -> Tool:
    """Make the function that a model fills an outcome in with."""
    parameters = plain_schema({**schema.schema})
    for key in ("required", "additionalProperties", "description", "$schema"):
        parameters.pop(key, None)
    told = schema.schema.get("description", "")

    async def run(
        given: Mapping[str, Any], call: LiveCall, threads: trio.CapacityLimiter
    ) -> object:
        try:
            missing = call.fill_outcome(given)
        except ValueError as error:
            raise ToolError(f"nothing was saved, for this does not fit: {error}") from None
        if missing:
            return {"saved": True, "still_missing": list(missing)}
        return {"saved": True, "is_complete": True}

    return Tool(TOOL_NAME, f"{_DESCRIPTION}\n\n{told}".strip(), parameters, run)
