"""What the model is told in a call: that the caller has not said it, all of it in one place."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.agent import phrases

SERVER = Path(__file__).parents[2] / "server"
NOT_ASIDE = {
    "verbatim": "the words to be said show the language",
    "already_greeted": "a part of the system instruction",
    "under_way": "a part of the system instruction",
    "apology": "said by the carrier",
    "apology_of": "said by the carrier",
}
TOLD = {
    "NUDGE_TO_ANSWER": [phrases.NUDGE_TO_ANSWER],
    "NUDGE_TO_CONTINUE": [phrases.NUDGE_TO_CONTINUE],
    "NUDGE_TO_ASK": [phrases.NUDGE_TO_ASK],
    "STILL_THERE": [phrases.STILL_THERE],
    "WRAP_UP": [phrases.WRAP_UP.format(seconds=30.0)],
    "CUT_OFF": [phrases.CUT_OFF],
    "GOODBYE_AGAIN": [phrases.GOODBYE_AGAIN],
    "NOT_A_MACHINE": [phrases.NOT_A_MACHINE],
    "aside": [phrases.aside("Say goodbye.")],
    "barge_in_hint": [phrases.barge_in_hint(heard) for heard in ("", "Hola.")],
    "forgotten": [
        phrases.forgotten(said, done=done)
        for said, done in (("Caller: Hola.", ()), ("", [("look_up({})", '{"output":"azul"}')]))
    ]
    + [phrases.forgotten("", done=(), interrupted=["look_up"])],
    "keys_pressed": [phrases.keys_pressed(keys) for keys in ("9", "42#")],
    "leave_message": [phrases.leave_message("")],
    "line_back": [phrases.line_back(heard, heard_s=s) for heard, s in (("Hola.", 1.0), ("", 0.0))],
    "line_was_lost": [
        phrases.line_was_lost(9.0, heard=heard, goes_on=goes_on)
        for heard in (None, "", "Hola.")
        for goes_on in (False, True)
    ],
    "taken_up": [phrases.taken_up("Hola.", interrupted=["look_up"], done=["send_dtmf"])],
    "transfer_failed": [phrases.transfer_failed("ventas")],
    "was_called": [phrases.was_called("look_up", '{"order":7}', '{"output":"azul"}')],
}


@pytest.mark.parametrize("name", TOLD)
def test_what_the_model_is_told_in_a_call_does_not_change_its_language(name):
    for text in TOLD[name]:
        assert text.startswith("(Not said by the caller; go on in the language of the call. ")
        assert text.count("(Not said by the caller") == 1


def test_every_phrase_is_told_as_an_aside_or_does_not_have_to_be():
    phrases_there = {
        name
        for name, value in vars(phrases).items()
        if not name.startswith("_")
        and (isinstance(value, str) or inspect.getmodule(value) is phrases)
    }

    assert phrases_there == TOLD.keys() | NOT_ASIDE.keys()


def told_to_models(tree: ast.Module) -> Iterator[ast.expr]:
    """What is given to a session to be said to its model."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="send_text" | "send_note"), args=[text]):
                yield text
            case ast.Call(
                func=ast.Attribute(attr="put", value=ast.Attribute(attr="_input")), args=[text]
            ):
                yield text
            case ast.Assign(targets=[ast.Attribute(attr="hint")], value=text):
                yield text


def has_words(text: ast.expr, tree: ast.Module) -> bool:
    """Whether some of it is written where it is told, or above in that file."""
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    names = {part.id for part in ast.walk(text) if isinstance(part, ast.Name)}
    written = [text, *(constants[name] for name in names & constants.keys())]
    return any(
        isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value
        for one in written
        for part in ast.walk(one)
    )


def test_nothing_is_worded_for_a_model_where_it_is_told():
    found, worded = 0, []
    for room in ("call", "model"):
        for path in sorted((SERVER / room).rglob("*.py")):
            tree = ast.parse(path.read_text())
            for text in told_to_models(tree):
                found += 1
                if has_words(text, tree):
                    worded.append(f"{path.relative_to(SERVER)}:{text.lineno}")

    assert worded == []
    assert found > 10
