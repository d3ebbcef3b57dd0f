"""A model's script from a file of the user's: what it says first, and to each turn of the caller's.

It is TOML. The simulated model hears that somebody has spoken, and not what::

    greeting = "Good day, Pizza Norte. What may it be?"

    [[turns]]                       # its answer to the caller's first turn
    hears = "Two hawaii, please."   # what the transcript says of the caller
    says = "Two hawaii. Is that all?"
    calls = [{name = "price_of", arguments = {pizza = "hawaii"}}]   # before it says so, in order

After the last turn it says back what it hears.
"""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from server.errors import ConfigurationError
from server.settings.file import expanded, read_file
from server.simulators.gemini.scripts import FunctionCall, ModelScript, ScriptedTurn

MAX_FILE_BYTES = 256 * 1024
MAX_TURNS = 500
MAX_CALLS = 20
"""In one turn."""
_Text = Annotated[str, Meta(max_length=2_000)]


class _Call(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    arguments: dict[str, Any] = {}


class _Turn(msgspec.Struct, forbid_unknown_fields=True):
    hears: _Text = ""
    says: _Text = ""
    calls: Annotated[list[_Call], Meta(max_length=MAX_CALLS)] = []


class _Script(msgspec.Struct, forbid_unknown_fields=True):
    greeting: _Text = ""
    turns: Annotated[list[_Turn], Meta(max_length=MAX_TURNS)] = []


def with_words(script: ModelScript, path: Path) -> ModelScript:
    """A script that behaves as before, and says what a file has.

    Raises:
        ConfigurationError: The file cannot be read, or is no such script.
    """
    try:
        text = read_file(expanded(path), MAX_FILE_BYTES, str(path))
        said = msgspec.convert(tomllib.loads(text), _Script)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise ConfigurationError(f"{path}: {error or type(error).__name__}") from None
    turns = tuple(ScriptedTurn(one.hears, _calls_of(one), one.says) for one in said.turns)
    return replace(script, greeting=said.greeting, turns=turns, fills=frozenset())


def _calls_of(turn: _Turn) -> tuple[FunctionCall, ...]:
    # A date of TOML's is text to a function.
    return tuple(FunctionCall(one.name, msgspec.to_builtins(one.arguments)) for one in turn.calls)
