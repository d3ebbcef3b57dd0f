"""What a caller hears while the agent is at work."""

from __future__ import annotations

from array import array

import pytest
import trio

from codec import decode_mulaw, encode_mulaw
from server.agent.agent import Agent
from server.agent.tool import tool
from server.call.playing import THINKING_AFTER_S
from server.dialogue.remedies import Patience
from server.simulators.gemini.scripts import FunctionCall, ModelScript
from server.simulators.phone import load_speech
from server.simulators.phone.steps import HangUp, HearPause, HearSpeech, PhoneScript, Say, Wait
from tests.support.rig import Rig, calling

LOUDNESS = 412
LOOP = encode_mulaw(array("h", (LOUDNESS, -LOUDNESS) * 2_000).tobytes())
CODES = frozenset(LOOP)
FRAME_S = 0.02
ASKED_S = 12.0
PATIENT = Patience(greeting_retry_s=10.0)


@tool
async def look_up() -> str:
    """Look something up."""
    await trio.sleep(3.0)
    return "found"


AGENT = Agent(thinking_sound=LOOP, tools=(look_up,))
ASKS = PhoneScript(
    "asks", (Wait(ASKED_S), Say("question"), HearSpeech(60.0), HearPause(), HangUp())
)


def sounding(rig: Rig) -> list[float]:
    """When, in seconds of the stream, nothing but the sound was heard: each frame of it."""
    heard = rig.phone.heard
    frames = [heard[at : at + 160] for at in range(0, len(heard), 160)]
    return [number * FRAME_S for number, frame in enumerate(frames) if set(frame) <= CODES]


def first_word(rig: Rig, after_s: float) -> float:
    heard = rig.phone.heard
    for at in range(round(after_s * 8_000), len(heard), 160):
        if max(map(abs, array("h", decode_mulaw(heard[at : at + 160])))) > 3 * LOUDNESS:
            return at / 8_000
    raise AssertionError("the agent has not answered")


@pytest.mark.parametrize("kind", ["answer", "function"])
async def test_it_is_heard_when_an_answer_or_a_function_takes_long(autojump_clock, kind):
    slow = ModelScript(reply_delay_s=4.0)
    calls = ModelScript(functions=(FunctionCall("look_up"),), function_turns=frozenset({2}))

    async with calling(
        callee=ASKS, script=slow if kind == "answer" else calls, agent=AGENT, patience=PATIENT
    ) as rig:
        await rig.over()

    asked_s = ASKED_S + len(load_speech("question")) / 8_000
    answered_s = first_word(rig, asked_s + 1.0)
    heard = sounding(rig)
    assert asked_s + THINKING_AFTER_S < heard[0] < asked_s + 0.5 + THINKING_AFTER_S + 0.3
    assert answered_s - 0.2 < heard[-1] < answered_s
    assert len(heard) * FRAME_S > 1.0
    assert rig.call.conversation.playout.heard_s(trio.current_time()) < answered_s
    said = [turn for turn in rig.record["transcript"] if turn["speaker"] == "agent"]
    assert all(turn["heard_s"] <= turn["made_s"] for turn in said if "made_s" in turn)
    assert "agent held" not in rig.noted


async def test_nothing_is_heard_where_the_answer_comes_soon(autojump_clock):
    async with calling(callee=ASKS, agent=AGENT, patience=PATIENT) as rig:
        await rig.over()

    assert sounding(rig) == []


async def test_it_falls_silent_for_a_caller_who_goes_on(autojump_clock):
    goes_on = PhoneScript(
        "goes on", (Wait(ASKED_S), Say("question"), Wait(2.5), Say("question"), HearSpeech(60.0))
    )

    async with calling(
        callee=goes_on, script=ModelScript(reply_delay_s=4.0), agent=AGENT, patience=PATIENT
    ) as rig:
        await rig.over()

    question_s = len(load_speech("question")) / 8_000
    spoke_at = ASKED_S + question_s + 2.5
    during = [at for at in sounding(rig) if spoke_at + 0.3 < at < spoke_at + question_s]
    assert [at for at in sounding(rig) if at < spoke_at]
    assert during == []
