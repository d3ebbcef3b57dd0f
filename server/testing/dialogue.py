"""What is said and done in a test's call, and how the model and the phone are told it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any, TypeAlias

from server.simulators.gemini import FunctionCall, ModelScript, ScriptedTurn
from server.simulators.phone import (
    FRAME_BYTES,
    HangUp,
    HearPause,
    HearSpeech,
    PhoneScript,
    Press,
    SayFrames,
    Wait,
    is_loud,
    load_speech,
)

CHARS_PER_S = 15.0
"""How fast people speak."""
FRAMES_PER_S = 50
LONGEST_CALL_S = 7_200.0
"""Of virtual time; a call that takes longer fails the test."""


@dataclass(frozen=True, slots=True)
class AgentSays:
    """The model says this, after what it calls in the same turn."""

    text: str


@dataclass(frozen=True, slots=True, init=False)
class AgentCalls:
    """The model calls a function, and waits for its answer."""

    name: str
    arguments: Mapping[str, Any]

    def __init__(self, name: str, /, **arguments: Any) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "arguments", arguments)


@dataclass(frozen=True, slots=True)
class CallerSays:
    """The caller waits until the agent has spoken, and says this.

    With ``after_s`` they interrupt instead, so long after the agent was first heard.
    """

    text: str
    after_s: float | None = None


@dataclass(frozen=True, slots=True)
class CallerPresses:
    """The caller waits until the agent has spoken, and presses keys."""

    digits: str


@dataclass(frozen=True, slots=True)
class CallerWaits:
    """The caller waits until the agent has spoken, and says nothing for a while.

    What the caller does next is done then: the agent is not waited for once more.
    """

    duration_s: float


Line: TypeAlias = AgentSays | AgentCalls | CallerSays | CallerPresses | CallerWaits


def model_script(dialogue: tuple[Line, ...]) -> ModelScript:
    """What the model does: a greeting, and one turn for each thing that the caller does."""
    greeting: list[str] = []
    turns: list[ScriptedTurn] = []
    for line in dialogue:
        match line:
            case CallerSays(text=text):
                turns.append(ScriptedTurn(hears=text))
            case CallerPresses():
                turns.append(ScriptedTurn())
            case AgentSays(text=text) if turns:
                turns[-1] = replace(turns[-1], says=f"{turns[-1].says} {text}".strip())
            case AgentSays(text=text):
                greeting.append(text)
            case AgentCalls(name=name, arguments=arguments):
                if not turns:
                    raise ValueError("a model calls functions only when the caller has spoken")
                calls = (*turns[-1].calls, FunctionCall(name, dict(arguments)))
                turns[-1] = replace(turns[-1], calls=calls)
            case CallerWaits():
                pass
    return ModelScript(
        greeting=" ".join(greeting), turns=tuple(turns), fills=frozenset(), tool_calls=0
    )


def phone_script(dialogue: tuple[Line, ...]) -> PhoneScript:
    """What the caller does."""
    steps: list[Any] = []
    # However long the agent speaks, nobody but CallerSays(after_s=…) interrupts it.
    listen = (HearSpeech(60.0), HearPause(timeout_s=LONGEST_CALL_S))
    has_waited = False
    for line in dialogue:
        before = () if has_waited else listen
        match line:
            case CallerSays(text=text, after_s=None):
                steps += [*before, SayFrames(_speech(text))]
            case CallerSays(text=text, after_s=float() | int() as after_s):
                steps += [HearSpeech(60.0), Wait(after_s), SayFrames(_speech(text))]
            case CallerPresses(digits=digits):
                steps += [*before, Press(digits)]
            case CallerWaits(duration_s=duration_s):
                steps += [*before, Wait(duration_s)]
            case AgentSays() | AgentCalls():
                continue
        has_waited = isinstance(line, CallerWaits)
    end = () if has_waited else listen
    return PhoneScript("scripted", (*steps, *end, HangUp()), ring_s=0.5)


def _speech(text: str) -> Iterator[bytes]:
    """Frames that sound like somebody who says so much, without a pause."""
    clip = load_speech("question")
    frames = [clip[at : at + FRAME_BYTES] for at in range(0, len(clip), FRAME_BYTES)]
    loud = cycle([frame for frame in frames if len(frame) == FRAME_BYTES and is_loud(frame)])
    count = round(max(1.0, len(text) / CHARS_PER_S) * FRAMES_PER_S)
    return iter([next(loud) for _ in range(count)])
