"""Tools in whole calls: in memory on the mock clock, and over real sockets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from server.agent import phrases
from server.agent.agent import Agent
from server.agent.builtin import hang_up, send_dtmf
from server.agent.tool import tool
from server.carrier.keypad import key_tone
from server.demo.tools import ask_the_warehouse, look_up_order, opening_hours, read_meter
from server.dialogue.remedies import Patience
from server.model import (
    AgentTranscript,
    GenerationComplete,
    ToolCall,
    ToolCallsRequested,
    TurnComplete,
)
from server.simulators.gemini import MODEL_SCRIPTS, FunctionCall
from server.simulators.phone import HangUp, HearPause, HearSpeech, PhoneScript, Say, Wait
from tests.support.calls_on_a_rig import SECOND_PCM
from tests.support.calls_on_a_rig import Rig as MemoryRig
from tests.support.rig import calling
from tests.support.serving import serving

pytestmark = pytest.mark.sockets

QUICK = replace(MODEL_SCRIPTS["answers"], setup_delay_s=0.0, reply_delay_s=0.05)
BRIEF = PhoneScript(
    "brief", (HearSpeech(), Say("question", break_off_s=0.7), HearSpeech(), HearPause(), HangUp())
)
"""Interrupts the greeting with half a sentence, hears the answer out and hangs up."""


# ------------------------------------------------------------------------------------------
# In memory


async def test_a_storm_of_calls_is_weathered(autojump_clock):
    tools = (look_up_order, opening_hours, read_meter, ask_the_warehouse)
    async with calling(callee="talks", script="tool-storm", agent=Agent(tools=tools)) as rig:
        await rig.over()

    (session,) = rig.sessions
    assert rig.call.end_reason == "caller-hung-up"
    assert session.mistakes == []
    assert session.functions.made - session.functions.taken_back == len(session.tool_results) > 0
    assert len([turn for turn in rig.record["transcript"] if turn["speaker"] == "agent"]) >= 3


async def test_functions_nobody_declared_are_answered(autojump_clock):
    script = replace(QUICK, functions=(FunctionCall("fly", {"where": "home"}),))
    async with calling(callee="talks", script=script) as rig:
        await rig.over()

    (session,) = rig.sessions
    errors = [one["error"] for one in session.tool_results.values()]
    assert len(errors) == session.functions.made > 0
    assert all("no function of this name" in error for error in errors)
    assert rig.call.end_reason == "caller-hung-up"


async def test_a_model_that_hangs_up_again_and_again_hangs_up_once_and_is_heard_out(
    autojump_clock,
):
    script = replace(QUICK, functions=(FunctionCall("hang_up"),) * 3)
    async with calling(callee="talks", script=script, agent=Agent(tools=(hang_up,))) as rig:
        await rig.over()

    assert rig.call.end_reason == "agent-hung-up"
    assert len(rig.sessions[0].tool_results) == 3
    last = rig.record["transcript"][-1]
    assert (last["speaker"], last["cut"]) == ("agent", False)
    assert all(not mark.cleared and mark.echoed_s for mark in rig.phone.marks)
    # What was sent last was heard to its end, and nothing was waited for after that.
    assert rig.phone.events[-1][0] - rig.phone.marks[-1].echoed_s < 0.1


async def test_the_tones_of_keys_reach_the_other_end_whole(autojump_clock):
    script = replace(QUICK, functions=(FunctionCall("send_dtmf", {"digits": "42#"}),))
    async with calling(callee="talks", script=script, agent=Agent(tools=(send_dtmf,))) as rig:
        await rig.over()

    assert all(key_tone(key)[:800] in rig.phone.heard for key in "42#")
    assert rig.sessions[0].mistakes == []


async def test_a_caller_who_interrupts_a_function_has_it_cancelled(autojump_clock):
    person = PhoneScript(
        "impatient",
        (
            HearSpeech(),
            HearPause(),
            Say("question"),
            Wait(1.5),
            Say("interrupt"),
            Wait(9),
            HangUp(),
        ),
    )
    cancelled: list[str] = []

    async def run(arguments, call, threads):
        try:
            await trio.sleep(60)
        except trio.Cancelled:
            cancelled.append(call.call_sid)
            raise

    slow = replace(hang_up, name="slow", run=run, timeout_s=60.0)
    script = replace(QUICK, functions=(FunctionCall("slow"),), function_turns=frozenset({2}))
    async with calling(callee=person, script=script, agent=Agent(tools=(slow,))) as rig:
        await rig.over()

    assert cancelled == [rig.call.call_sid]
    assert rig.sessions[0].tool_results == {}
    assert rig.sessions[0].mistakes == []
    assert rig.record["transcript"][-1]["speaker"] == "agent"  # it answered the interruption


LOOK_UP_S = 20.0


@tool(filler="One moment.", timeout_s=30.0)
async def look_up() -> str:
    """Look something up."""
    await trio.sleep(LOOK_UP_S)
    return "found"


@tool(timeout_s=30.0)
async def look_up_unannounced() -> str:
    """Look something up, too."""
    return await look_up()


async def asked_to_wait(rig: MemoryRig, nursery: trio.Nursery, function: str) -> float:
    """Have a caller told to wait for a function; returns when its answer was sent."""
    await rig.begin(nursery)
    rig.audio(SECOND_PCM * 2, turn=1)
    rig.session.event(AgentTranscript("One moment.", 1))
    rig.session.event(GenerationComplete(1))
    rig.session.event(ToolCallsRequested((ToolCall("f1", function, {}),), 1))
    rig.session.event(TurnComplete(1, None))
    rig.session.texts.clear()
    called_at = trio.current_time()
    await trio.sleep(LOOK_UP_S + 0.01)
    assert [result.id for result in rig.session.results] == ["f1"]
    assert rig.session.texts == []  # nobody was asked whether they are there
    return called_at + LOOK_UP_S


@pytest.mark.parametrize("function", ["look_up", "look_up_unannounced"])
async def test_a_model_that_says_nothing_to_a_function_its_caller_waits_for_is_asked_to(
    autojump_clock, nursery, function
):
    patience = Patience()
    rig = MemoryRig(
        agent=Agent(tools=(look_up, look_up_unannounced)), patience=patience, media_timeout_s=60.0
    )
    answered_at = await asked_to_wait(rig, nursery, function)

    await trio.sleep(patience.reply_timeout_s)

    assert rig.session.texts == [(answered_at + patience.reply_timeout_s, phrases.NUDGE_TO_ANSWER)]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("function", "said"), [("look_up", [phrases.NUDGE_TO_ANSWER]), ("look_up_unannounced", [])]
)
async def test_an_empty_turn_is_an_answer_unless_the_agent_has_promised_one(
    autojump_clock, nursery, function, said
):
    rig = MemoryRig(agent=Agent(tools=(look_up, look_up_unannounced)), media_timeout_s=60.0)
    await asked_to_wait(rig, nursery, function)
    rig.session.event(TurnComplete(2, None))
    await trio.sleep(1.0)

    assert [text for _, text in rig.session.texts] == said
    nursery.cancel_scope.cancel()


async def test_nothing_is_asked_of_a_model_that_has_pressed_keys_and_listens(
    autojump_clock, nursery
):
    patience = Patience()
    rig = MemoryRig(agent=Agent(tools=(send_dtmf,)), patience=patience, media_timeout_s=60.0)
    await rig.begin(nursery)
    rig.audio(SECOND_PCM, turn=1)
    rig.session.event(GenerationComplete(1))
    call = ToolCall("f1", "send_dtmf", {"digits": "1"})
    rig.session.event(ToolCallsRequested((call,), 1))
    rig.session.event(TurnComplete(1, None))
    rig.session.texts.clear()
    while not rig.session.results:
        rig.media.echo_marks()
        await trio.sleep(0.1)

    await trio.sleep(patience.reply_timeout_s + 1.0)

    assert rig.session.texts == []
    nursery.cancel_scope.cancel()


# ------------------------------------------------------------------------------------------
# Over real sockets


async def test_the_agent_says_goodbye_and_hangs_up_over_real_sockets(fast_clock):
    async with serving() as server:
        server.twilio.account.people.by_ending["5550190"] = BRIEF
        server.gemini.script = replace(QUICK, functions=(FunctionCall("hang_up"),))
        call_sid = (await server.make_call("5550190")).json()["call_sid"]
        with trio.fail_after(60):
            record = await server.finished(call_sid)
        phone = server.twilio.calls[call_sid]

    assert record["reason"] == "agent-hung-up"
    assert phone.status == "completed"
    assert phone.phone.marks[-1].echoed_s is not None
    assert not phone.phone.marks[-1].cleared


@pytest.mark.parametrize(
    ("sales", "reason", "streams"),
    [("+15005550104", "caller-hung-up", 2), ("+15005550101", "transferred", 1)],
    ids=["nobody-answers", "somebody-answers"],
)
async def test_a_transfer_over_real_sockets(sales, reason, streams, fast_clock):
    async with serving(transfer_targets={"sales": sales}) as server:
        twilio, gemini = (
            server.twilio,
            server.gemini,
        )
        twilio.account.people.by_ending["5550190"] = BRIEF
        gemini.script = replace(MODEL_SCRIPTS["transfers"], setup_delay_s=0.0, reply_delay_s=0.05)
        call_sid = (await server.make_call("5550190")).json()["call_sid"]
        with trio.fail_after(60):
            record = await server.finished(call_sid)
        phone = twilio.calls[call_sid]
        (session,) = gemini.sessions

    assert record["reason"] == reason
    assert len(phone.phones) == streams
    assert session.mistakes == []
    # Somebody who takes the caller over ends our part; with nobody there, the model is told.
    assert [list(result) for result in session.tool_results.values()] == [["error"]] * (streams - 1)
    assert "15005550" not in str(record).replace("+15*******", "")


async def test_a_forged_report_on_a_transfer_is_refused_and_a_stray_one_hangs_up(fast_clock):
    form = {"CallSid": "CA" + "1" * 32, "DialCallStatus": "busy"}
    async with serving() as server:
        unsigned = await server.http.post("/transfer-status", data=form)
        stray = await server.signed_post("/transfer-status", form)
        nonsense = await server.signed_post("/transfer-status", {"CallSid": "CA" + "1" * 32})

    assert unsigned.status_code == 403
    assert stray.status_code == 200
    assert "<Hangup" in stray.text
    assert nonsense.status_code == 400
