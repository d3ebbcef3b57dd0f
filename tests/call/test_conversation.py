"""What a caller lives through, on the mock clock: a model that fails, a hello, a cough, an echo."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import trio

from server.agent.agent import Agent
from server.dialogue.ear import BargeInMode
from server.dialogue.opening import GreetingWhen
from server.dialogue.remedies import Patience
from server.model.gemini.model import GeminiModel
from server.model.lasting.model import LastingModel
from server.simulators import gemini as models
from server.simulators.phone import (
    PHONE_SCRIPTS,
    HangUp,
    HearPause,
    HearSpeech,
    PhoneScript,
    Press,
    Say,
    Speakerphone,
    Wait,
    load_speech,
)
from tests.support.rig import Rig, calling

QUICK = Patience(reply_timeout_s=3.0, rung_timeout_s=2.0)
LISTEN = (HearSpeech(), HearPause())
DEAF = models.ModelScript(silent_turns=frozenset(range(1, 1_000)))
"""A model that says nothing, ever."""
MUTE_AFTER_GREETING = models.ModelScript(silent_turns=frozenset(range(2, 1_000)))


def facts_of(rig: Rig, what: str) -> list[dict[str, Any]]:
    return [facts for _, noted, facts in rig.call.conversation.notes.timeline if noted == what]


def rungs(rig: Rig) -> list[str]:
    return [what.split()[1] for what in rig.noted if what.startswith("watchdog ")]


def agent_turns(rig: Rig) -> list[dict[str, Any]]:
    return [turn for turn in rig.record["transcript"] if turn["speaker"] == "agent"]


def counted(rig: Rig, rung: str, fault: str) -> float:
    name, labels = "offhook_watchdog_total", {"rung": rung, "fault": fault}
    return rig.metrics.registry.get_sample_value(name, labels) or 0.0


# --- A model that does not answer


async def test_a_silent_model_is_nudged_then_reconnected_and_then_answers(autojump_clock):
    async with calling(callee="asks-and-waits", script="silent-model", patience=QUICK) as rig:
        await rig.over()

    assert rungs(rig) == ["nudge", "resume"]
    assert rig.call.end_reason == "caller-hung-up"
    assert len(agent_turns(rig)) == 2
    assert rig.sessions[-1].resumed_from is rig.sessions[0]
    assert counted(rig, "nudge", "no-reply") == counted(rig, "resume", "no-reply") == 1


async def test_a_session_that_stays_silent_is_replaced_by_a_fresh_one(autojump_clock):
    async with calling(
        callee="asks-and-waits",
        script=MUTE_AFTER_GREETING,
        # A fresh session counts its turns from 1, one that is resumed goes on counting.
        script_after_resume=models.ModelScript(silent_turns=frozenset(range(3, 1_000))),
        patience=QUICK,
    ) as rig:
        await rig.over()

    assert rungs(rig)[:3] == ["nudge", "resume", "fresh"]
    assert rig.call.end_reason == "caller-hung-up"
    assert rig.sessions[-1].resumed_from is None
    assert len(agent_turns(rig)) >= 2


async def test_another_model_takes_over_from_one_that_stays_silent(autojump_clock):
    def make(gemini: GeminiModel) -> LastingModel:
        other = GeminiModel(
            api_key="simulated",
            url="ws://memory.invalid",
            model="gemini-3.1-flash-live-preview",
            connect=gemini._connect,
        )
        return LastingModel(gemini, fallback=other)

    async with calling(
        callee="asks-and-waits", script="deaf-main-model", make_model=make, patience=QUICK
    ) as rig:
        await rig.over()

    assert rungs(rig) == ["nudge", "resume", "fresh", "fallback"]
    assert rig.call.end_reason == "caller-hung-up"
    assert rig.sessions[-1].setup["model"].endswith("gemini-3.1-flash-live-preview")
    assert agent_turns(rig)[0]["text"] in rig.sessions[-1].texts
    assert len(agent_turns(rig)) == 2


async def test_when_nothing_helps_the_carrier_says_sorry_in_the_agents_language(autojump_clock):
    async with calling(
        callee="asks-and-waits",
        script=MUTE_AFTER_GREETING,
        script_after_resume=DEAF,
        agent=Agent(language="es-VE"),
        patience=QUICK,
    ) as rig:
        await rig.over()

    assert rungs(rig)[-1] == "apology"
    assert rig.call.end_reason == "model-silent"
    ((text, language),) = rig.carrier.said
    assert "Lo siento" in text
    assert language == "es-VE"
    assert "apology" in rig.noted


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("empty-turn", "empty-turn"),
        ("quiet-turn", "quiet-turn"),
        ("early-turn-complete", "broken-off"),
    ],
)
async def test_a_turn_that_completes_wrongly_is_nudged_at_once(autojump_clock, script, fault):
    async with calling(callee="asks-and-waits", script=script) as rig:
        await rig.over()

    assert rungs(rig) == ["nudge"]
    assert rig.record["had_trouble"]
    assert facts_of(rig, "watchdog nudge")[0]["fault"] == fault
    assert rig.call.end_reason == "caller-hung-up"
    assert [turn["heard_s"] > 0.5 for turn in agent_turns(rig)].count(True) >= 2


async def test_a_turn_that_stops_in_the_middle_is_asked_to_go_on(autojump_clock):
    async with calling(callee="asks-patiently", script="stalled-turn") as rig:
        await rig.over()

    assert rungs(rig) == ["nudge"]
    assert facts_of(rig, "watchdog nudge")[0] == {"fault": "stalled", "awaited": "continuation"}
    assert "break off" in rig.sessions[0].texts[-1]
    assert rig.call.end_reason == "caller-hung-up"


async def test_a_model_that_interrupts_itself_for_no_reason_is_asked_to_go_on(autojump_clock):
    callee = PhoneScript("listens", (HearSpeech(), HearPause(quiet_s=4.0), HangUp()))
    async with calling(callee=callee, patience=QUICK) as rig:
        await rig.noted_s("first audio")
        await trio.sleep(1.0)
        rig.sessions[0].agent.cut()  # it believes to have heard somebody
        await rig.over()

    assert facts_of(rig, "barge-in")[0]["by"] == "model"
    assert facts_of(rig, "watchdog nudge")[0]["awaited"] == "continuation"
    assert rig.call.end_reason == "caller-hung-up"


@pytest.mark.parametrize("patience_s", [0.9, 2.0])
async def test_a_model_that_is_slower_than_speech_gets_another_connection(
    autojump_clock, patience_s
):
    # Who is impatient takes its gaps for the end, and does not hear the greeting to its own.
    asks = (HearSpeech(), HearPause(quiet_s=patience_s), Say("question"))
    callee = PhoneScript("talker", (*asks, HearSpeech(), HearPause(quiet_s=2.0), HangUp()))
    async with calling(callee=callee, script="slow-model") as rig:
        await rig.over()

    assert rungs(rig) == ["resume"]
    assert facts_of(rig, "watchdog resume")[0]["fault"] == "slow"
    assert rig.call.end_reason == "caller-hung-up"


async def test_a_greeting_that_never_comes_is_given_up_while_it_rings(autojump_clock):
    async with calling(
        callee="talks", script=DEAF, script_after_resume=DEAF, ring_s=60.0, patience=QUICK
    ) as rig:
        await rig.call.finished.wait()

    assert rig.call.end_reason == "model-silent"
    assert rig.carrier.said == []  # there is nobody on the line to say it to
    assert rig.carrier.hung_up == [rig.call.call_sid]


async def test_a_healthy_call_needs_no_help(autojump_clock):
    for callee in ("talks", "interrupts", "hangs-up", "coughs", "says-hello"):
        async with calling(callee=callee) as rig:
            await rig.over()

        assert rungs(rig) == [], callee
        assert rig.call.end_reason == "caller-hung-up"


# --- The greeting


async def test_a_hello_does_not_kill_the_greeting_and_is_heard_after_it(autojump_clock):
    async with calling(callee="says-hello") as rig:
        await rig.over()

    greeting = agent_turns(rig)[0]
    assert not greeting["cut"]
    assert greeting["heard_s"] == pytest.approx(rig.gemini.greeting.seconds, abs=0.05)
    assert rig.call.conversation.session.lost_s == 0
    # The model has heard all that was said, and silence while it was being kept.
    assert rig.sessions[0].heard_samples >= 2 * len(rig.phone.said) - 2 * 160
    starts = [m.at_s for m in rig.sessions[0].timeline if m.what == "caller starts"]
    answered_s = rig.phone.started_at - rig.call.conversation.notes.began_at
    assert starts[0] - answered_s > rig.gemini.greeting.seconds - 0.5


async def test_without_protection_hello_kills_the_greeting(autojump_clock):
    async with calling(
        callee="says-hello", greeting_protect_s=0.0, barge_in=BargeInMode.MODEL
    ) as rig:
        await rig.over()

    assert agent_turns(rig)[0]["cut"]


async def test_more_than_a_hello_gets_through(autojump_clock):
    callee = PhoneScript("urgent", (Wait(0.2), Say("question"), *LISTEN, HangUp()))
    async with calling(callee=callee) as rig:
        await rig.over()

    greeting = agent_turns(rig)[0]
    assert greeting["cut"]
    assert 1.5 < greeting["heard_s"] < 3.0


async def test_an_agent_that_speaks_after_the_caller_waits_for_their_first_word(autojump_clock):
    async with calling(callee="says-hello", greeting_when=GreetingWhen.AFTER_CALLER) as rig:
        await rig.over()

    hello_ended_s = rig.phone.utterances[0].ended_s
    assert rig.phone.first_sound_s is not None
    assert hello_ended_s < rig.phone.first_sound_s < hello_ended_s + 0.8
    assert not agent_turns(rig)[0]["cut"]


async def test_an_agent_that_speaks_after_the_caller_lets_them_finish(autojump_clock):
    callee = PhoneScript("late", (Wait(1.7), Say("hello", break_off_s=0.5), *LISTEN, HangUp()))
    async with calling(
        callee=callee, greeting_when=GreetingWhen.AFTER_CALLER, greeting_deadline_s=2.0
    ) as rig:
        await rig.over()

    hello_ended_s = rig.phone.utterances[0].ended_s
    assert rig.phone.first_sound_s is not None
    assert 2.0 < hello_ended_s < rig.phone.first_sound_s < hello_ended_s + 0.8
    assert not agent_turns(rig)[0]["cut"]


async def test_it_does_not_wait_for_ever(autojump_clock):
    async with calling(
        callee="talks", greeting_when=GreetingWhen.AFTER_CALLER, greeting_deadline_s=2.0
    ) as rig:
        await rig.over()

    assert rig.phone.first_sound_s == pytest.approx(2.0, abs=0.3)


async def test_a_recorded_greeting_is_played_and_the_model_knows(autojump_clock):
    recording = load_speech("goodbye")
    agent = Agent(greeting_audio=recording, greeting_text="Good evening, this is the bank.")
    async with calling(callee="talks", agent=agent) as rig:
        await rig.over()

    assert rig.phone.heard[: len(recording) + 320].find(recording[400:800]) > 0
    assert rig.call.conversation.notes.timings.answer_to_first_audio_s == pytest.approx(
        0.0, abs=0.001
    )
    greeting = agent_turns(rig)[0]
    assert greeting["text"] == "Good evening, this is the bank."
    assert greeting["heard_s"] == pytest.approx(len(recording) / 8_000, abs=0.01)
    instruction = rig.sessions[0].setup["systemInstruction"]["parts"][0]["text"]
    assert "Good evening, this is the bank." in instruction
    assert rig.sessions[0].texts == []
    assert rig.call.end_reason == "caller-hung-up"


async def test_a_greeting_text_is_asked_for_word_for_word(autojump_clock):
    async with calling(callee="talks", agent=Agent(greeting_text="Hello, Bank here.")) as rig:
        await rig.over()

    assert '"Hello, Bank here."' in rig.sessions[0].texts[0]


# --- Interruptions


@pytest.mark.parametrize("mode", [BargeInMode.LOCAL, BargeInMode.BOTH])
async def test_the_agent_falls_silent_within_100_ms_of_the_callers_first_sound(
    autojump_clock, mode
):
    async with calling(callee="interrupts", barge_in=mode) as rig:
        await rig.over()

    began_s = rig.phone.utterances[0].began_s
    silence_s = 0.04  # the recording begins with as much
    assert rig.phone.clears[0].at_s - began_s - silence_s <= 0.1
    assert rig.phone.bytes_after_clear == 0
    assert agent_turns(rig)[0]["cut"]
    assert len(agent_turns(rig)) >= 2


async def test_the_model_alone_takes_longer(autojump_clock):
    async with calling(callee="interrupts", barge_in=BargeInMode.MODEL) as rig:
        await rig.over()

    assert facts_of(rig, "barge-in")[0]["by"] == "model"
    assert "agent held" not in rig.noted


@pytest.mark.parametrize("mode", [BargeInMode.LOCAL, BargeInMode.BOTH])
async def test_after_a_cough_the_agent_goes_on_where_it_was(autojump_clock, mode):
    # The model's own detector is not to hear the cough: this is about ours.
    async with calling(callee="coughs", barge_in=mode) as rig:
        for session in rig.sessions or [await _first_session(rig)]:
            session.caller.hearing.start_speech_bytes = 10**6
        await rig.noted_s("false alarm")
        for session in rig.sessions:
            session.caller.hearing.start_speech_bytes = 2_560
        await rig.over()

    greeting = agent_turns(rig)[0]
    assert not greeting["cut"]
    assert greeting["heard_s"] == pytest.approx(rig.gemini.greeting.seconds, abs=0.05)
    heard, said = rig.phone.heard, rig.gemini.greeting
    assert rig.phone.clears[0].dropped_bytes > 0
    assert len(heard) / 8_000 > said.seconds  # and there was a pause in it


async def _first_session(rig: Rig) -> models.SimulatedSession:
    await rig.noted_s("model ready")
    return rig.sessions[0]


async def test_a_model_that_never_says_interrupted_is_interrupted_all_the_same(autojump_clock):
    async with calling(callee="interrupts") as rig:
        (await _first_session(rig))._interruptible = False
        await rig.over()

    assert facts_of(rig, "barge-in")[0]["by"] == "local"
    assert agent_turns(rig)[0]["cut"]


@pytest.mark.parametrize("delay_s", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("gain", [0.5, 0.25, 0.1])
@pytest.mark.slow
async def test_a_speakerphone_does_not_make_the_agent_interrupt_itself(
    autojump_clock, delay_s, gain
):
    callee = replace(
        PHONE_SCRIPTS["echoing-speakerphone"], speakerphone=Speakerphone(delay_s, gain)
    )
    async with calling(callee=callee) as rig:
        await rig.over()

    assert [turn["cut"] for turn in agent_turns(rig)] == [False] * len(agent_turns(rig))
    assert len(agent_turns(rig)) == 3  # the greeting, and an answer to each of two sentences
    assert rungs(rig) == []
    assert rig.call.end_reason == "caller-hung-up"


async def test_somebody_at_a_speakerphone_can_still_interrupt(autojump_clock):
    steps = (
        *LISTEN,
        Say("question"),
        HearSpeech(),
        Wait(1.5),
        Say("interrupt"),
        Wait(0.3),
        *LISTEN,
    )
    callee = PhoneScript("table", (*steps, HangUp()), speakerphone=Speakerphone())
    async with calling(callee=callee) as rig:
        await rig.over()

    assert [turn["cut"] for turn in agent_turns(rig)][:2] == [False, True]
    assert len(agent_turns(rig)) >= 3


# --- What was heard, and how soon


async def test_the_transcript_says_what_was_heard_and_what_was_not(autojump_clock):
    async with calling(callee="interrupts") as rig:
        await rig.over()

    greeting = agent_turns(rig)[0]
    whole = rig.gemini.greeting.text
    assert greeting["cut"]
    assert whole.startswith(greeting["text"])
    assert whole.endswith(greeting["unheard"])
    share = greeting["heard_s"] / rig.gemini.greeting.seconds
    assert len(greeting["text"]) == pytest.approx(share * len(whole), abs=8)


@pytest.mark.parametrize("mode", list(BargeInMode))
async def test_the_model_is_told_what_was_heard_if_asked_to(autojump_clock, mode):
    async with calling(callee="interrupts", barge_in=mode, barge_in_hint=True) as rig:
        await rig.over()

    heard = agent_turns(rig)[0]["text"]
    (hint,) = (text for text in rig.sessions[0].texts if "interrupted" in text)
    assert f'"{heard}"' in hint
    # It was not an answer to the hint: there is one for each thing the caller said.
    assert len(agent_turns(rig)) == 3
    assert rungs(rig) == []


async def test_a_dialect_without_notes_is_not_told(autojump_clock):
    def make(model: GeminiModel) -> LastingModel:
        other = GeminiModel(
            api_key="simulated",
            url="ws://memory.invalid",
            model="gemini-3.1-flash-live-preview",
            connect=model._connect,
        )
        return LastingModel(other)

    async with calling(callee="interrupts", barge_in_hint=True, make_model=make) as rig:
        await rig.over()

    assert not [text for text in rig.sessions[0].texts if "interrupted" in text]
    assert rig.call.end_reason == "caller-hung-up"


async def test_how_long_the_caller_waited_is_measured_stage_by_stage(autojump_clock):
    async with calling(callee="talks") as rig:
        await rig.over()

    replies = rig.record["replies"]
    assert len(replies) == 2
    for reply in replies:
        # The recording's last sound, the model's 0.8 s of silence and its 0.3 s of thought.
        assert reply["vad_ms"] == pytest.approx(500, abs=25)
        assert 700 < reply["vad_ms"] + reply["model_ms"] < 1_400
        assert reply["codec_ms"] < 1
        assert reply["playout_ms"] < 50
        assert reply["total_ms"] == pytest.approx(
            sum(reply[f"{stage}_ms"] for stage in ("vad", "model", "codec", "playout")), abs=0.5
        )
    assert rig.record["timings"]["caller_to_reply"]["count"] == 2
    name, labels = "offhook_reply_seconds_count", {"stage": "total"}
    assert rig.metrics.registry.get_sample_value(name, labels) == 2


# --- Endings


async def test_a_caller_who_says_nothing_is_asked_and_then_hung_up_on(autojump_clock):
    patience = Patience(silence_timeout_s=5.0)
    async with calling(callee="silent", patience=patience) as rig:
        await rig.over()

    assert [facts["times"] for facts in facts_of(rig, "caller silent")] == [1, 2]
    assert rig.call.end_reason == "caller-silent"
    farewell = agent_turns(rig)[-1]
    assert farewell["heard_s"] == pytest.approx(rig.gemini.still_here.seconds, abs=0.1)
    assert len(agent_turns(rig)) == 4  # greeting, two questions, goodbye
    assert rig.carrier.hung_up == [rig.call.call_sid]


async def test_a_key_press_is_a_sign_of_life(autojump_clock):
    callee = PhoneScript("presser", (*LISTEN, Wait(8.0), Press("1"), Wait(60.0)))
    async with calling(callee=callee, patience=Patience(silence_timeout_s=10.0)) as rig:
        await rig.noted_s("caller silent")

    (pressed,) = (at for at, what, _ in rig.call.conversation.notes.timeline if what == "digit")
    silent = next(
        at for at, what, _ in rig.call.conversation.notes.timeline if what == "caller silent"
    )
    assert silent > pressed + 10.0


async def test_the_longest_duration_is_announced_and_ends_with_a_goodbye(autojump_clock):
    async with calling(callee="never-hangs-up", max_duration_s=120.0) as rig:
        await rig.over()

    assert rig.call.end_reason == "max-duration"
    assert 105.0 < rig.call.duration_s <= 120.0
    announced = next(
        at for at, what, _ in rig.call.conversation.notes.timeline if what == "time running out"
    )
    answered = next(
        at for at, what, _ in rig.call.conversation.notes.timeline if what == "answered"
    )
    assert 88.0 < announced - answered < 101.0
    assert any("Say goodbye" in text for session in rig.sessions for text in session.texts)


async def test_a_line_that_goes_dead_without_a_word_is_noticed_within_five_seconds(autojump_clock):
    async with calling(callee="vanishes") as rig:
        await rig.over()

    dead_s = next(at for at, what in rig.phone.events if what == "the line is dead")
    assert rig.call.end_reason == "caller-gone"
    lost = next(at for at, what, _ in rig.call.conversation.notes.timeline if what == "line lost")
    assert lost - (rig.phone.started_at - rig.call.conversation.notes.began_at + dead_s) <= 5.0
    assert len(rig.carrier.hung_up) == 1


@pytest.mark.slow
async def test_many_minutes_of_talk_need_no_help_and_lose_nothing(autojump_clock):
    async with calling(callee="never-hangs-up", max_duration_s=600.0) as rig:
        await trio.sleep(300.0)
        lost_s = rig.call.conversation.session.lost_s

    assert rungs(rig) == []
    assert lost_s == 0
    assert len(rig.record["replies"]) > 15
