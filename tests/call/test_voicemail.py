"""Answering machines: found by more than one sign, and spoken to after the beep."""

from __future__ import annotations

import math
import random
from array import array
from dataclasses import replace

import pytest
import trio

import codec
from server.agent.agent import Agent
from server.agent.builtin import voicemail_reached
from server.carrier import AnsweredBy, MachineVerdict
from server.carrier.keypad import key_tone
from server.carrier.twilio.reports import parse_machine_verdict
from server.dialogue.endings import EndReason
from server.dialogue.voicemail import (
    FRAME_BYTES,
    AnsweringMachine,
    BeepDetector,
    Finding,
    VoicemailPolicy,
    tone_hz,
)
from server.errors import CarrierProtocolError
from server.simulators.gemini import MODEL_SCRIPTS, FunctionCall
from server.simulators.phone import (
    PHONE_SCRIPTS,
    SILENCE,
    Beep,
    HangUp,
    PhoneScript,
    Say,
    Wait,
    act,
    load_speech,
)
from tests.support.rig import Rig, calling
from tests.support.serving import CALL_SID, serving

pytestmark = pytest.mark.sockets

CLIPS = ("question", "goodbye", "hello", "interrupt", "followup", "voicemail")
BEEP = AnsweredBy.MACHINE_END_BEEP


def mulaw(samples: list[float]) -> bytes:
    return codec.encode_mulaw(array("h", [round(sample) for sample in samples]).tobytes())


def tone(hz: float, duration_s: float = 0.3, peak: float = 8_000.0, noise: float = 0.0) -> bytes:
    source = random.Random(1)
    return mulaw(
        [
            peak * math.sin(2 * math.pi * hz * n / 8_000) + source.gauss(0, noise)
            for n in range(int(duration_s * 8_000))
        ]
    )


def beeps(*pieces: bytes) -> int:
    detector = BeepDetector()
    audio = b"".join((*pieces, SILENCE * 10))
    return sum(detector.hear(audio[at : at + 200]) for at in range(0, len(audio), 200))


# ------------------------------------------------------------------------------------------
# The beep


@pytest.mark.parametrize("hz", [620, 800, 1_000, 1_400, 1_850, 2_000, 2_350])
@pytest.mark.parametrize("peak", [600.0, 8_000.0, 30_000.0])
def test_a_beep_of_any_pitch_and_loudness_is_heard_once(hz, peak):
    assert beeps(SILENCE * 20, tone(hz, peak=peak)) == 1


@pytest.mark.parametrize("duration_s", [0.14, 0.2, 0.5, 1.0, 2.5])
def test_a_beep_may_be_short_or_long(duration_s):
    assert beeps(SILENCE, tone(1_000, duration_s)) == 1


def test_a_beep_is_heard_through_a_noisy_line():
    assert beeps(tone(1_000, 0.4, peak=8_000, noise=1_000)) == 1


def test_the_frequency_is_measured():
    assert tone_hz(tone(1_000)[:FRAME_BYTES]) == pytest.approx(1_000, abs=5)


def test_a_beep_is_over_when_it_is_silent_again():
    detector = BeepDetector()

    assert not detector.hear(tone(1_000, 0.4))
    assert detector.sounding
    assert detector.hear(SILENCE)
    assert not detector.sounding


@pytest.mark.parametrize("clip", CLIPS)
def test_nobodys_speech_is_a_beep(clip):
    assert beeps(load_speech(clip)) == 0


@pytest.mark.parametrize("key", "159#D")
def test_a_key_is_not_a_beep(key):
    assert beeps(key_tone(key) * 5) == 0


@pytest.mark.parametrize(
    "audio",
    [
        tone(1_000, 0.06),  # a click
        tone(1_000, 4.0),  # a fax, or the network
        tone(440, 1.0),  # ringing
        tone(425, 0.5),
        tone(3_000, 0.5),
        tone(1_000, 0.5, peak=100),  # from another room
        mulaw([random.Random(2).gauss(0, 4_000) for _ in range(8_000)]),
        b"".join(tone(600 + 40 * n, 0.02) for n in range(40)),  # a siren
    ],
    ids=["click", "endless", "ringing", "ringing-eu", "high", "faint", "noise", "siren"],
)
def test_other_sounds_are_no_beeps(audio):
    assert beeps(audio) == 0


# ------------------------------------------------------------------------------------------
# The decision


def heard_beep(machine: AnsweringMachine, at: float) -> None:
    machine.hear(tone(1_000), at)
    assert machine.hear(SILENCE, at)


@pytest.mark.parametrize("verdict", [v for v in AnsweredBy if v.is_machine and v != "fax"])
def test_the_carriers_word_and_a_beep_are_a_machine(verdict):
    machine = AnsweringMachine()
    heard_beep(machine, 5.0)
    assert machine.decide(5.1, agent_until=20.0) is None
    machine.verdict(verdict, 5.5)

    assert machine.decide(5.5, agent_until=20.0) is Finding.MACHINE
    assert machine.decide(5.6, agent_until=20.0) is None  # said once


def test_the_carriers_word_alone_is_not():
    machine = AnsweringMachine()
    machine.verdict(BEEP, 5.0)

    assert machine.decide(9.0, agent_until=8.0) is None


def test_the_carriers_word_and_nobody_answering_are_a_machine():
    machine = AnsweringMachine()
    machine.verdict(AnsweredBy.MACHINE_END_SILENCE, 5.0)

    assert machine.next_due(agent_until=8.0) == 11.0
    assert machine.decide(10.9, agent_until=8.0) is None
    assert machine.decide(11.0, agent_until=8.0) is Finding.MACHINE


def test_somebody_who_answers_is_a_person_whatever_the_carrier_says():
    machine = AnsweringMachine()
    machine.verdict(BEEP, 5.0)
    machine.speech_started(9.0)
    assert machine.next_due(agent_until=8.0) == math.inf
    machine.speech_ended(10.0, speech_s=0.5)

    assert machine.decide(10.0, agent_until=8.0) is Finding.PERSON
    assert machine.decide(60.0, agent_until=8.0) is None


def test_an_announcement_that_goes_on_is_no_person():
    machine = AnsweringMachine()
    machine.verdict(AnsweredBy.MACHINE_START, 3.0)
    machine.speech_started(3.5)
    machine.speech_ended(9.0, speech_s=5.0)
    assert machine.decide(9.0, agent_until=0.0) is None
    heard_beep(machine, 9.5)

    assert machine.decide(9.5, agent_until=0.0) is Finding.MACHINE


def test_what_was_said_before_the_verdict_was_the_announcement():
    machine = AnsweringMachine()
    machine.speech_started(1.0)
    machine.verdict(BEEP, 5.0)
    machine.speech_ended(5.2, speech_s=4.0)
    heard_beep(machine, 5.4)

    assert machine.decide(5.4, agent_until=0.0) is Finding.MACHINE


def test_a_cough_is_no_person():
    machine = AnsweringMachine()
    machine.verdict(BEEP, 5.0)
    machine.speech_started(6.0)
    machine.speech_ended(6.7, speech_s=0.2)

    assert machine.decide(6.7, agent_until=0.0) is None
    assert machine.decide(9.7, agent_until=0.0) is Finding.MACHINE


def test_a_beep_that_a_detector_takes_for_speech_is_no_person():
    machine = AnsweringMachine()
    machine.verdict(AnsweredBy.MACHINE_END_OTHER, 5.0)
    machine.hear(tone(1_000), 6.0)
    machine.speech_started(6.0)
    machine.hear(SILENCE, 6.3)
    machine.speech_ended(6.8, speech_s=0.4)

    assert machine.decide(6.8, agent_until=0.0) is Finding.MACHINE


def test_a_key_after_the_announcement_is_a_person():
    machine = AnsweringMachine()
    machine.verdict(AnsweredBy.MACHINE_END_SILENCE, 5.0)
    machine.key_pressed(10.0)

    assert machine.decide(10.0, agent_until=8.0) is Finding.PERSON


def test_a_key_in_an_announcement_is_no_person():
    before, in_it, goes_on, told = [AnsweringMachine() for _ in range(4)]
    before.key_pressed(4.0)
    before.verdict(BEEP, 5.0)
    in_it.speech_started(1.0)
    in_it.verdict(AnsweredBy.MACHINE_END_OTHER, 4.5)
    in_it.key_pressed(5.0)
    in_it.speech_ended(5.0, speech_s=4.0)
    goes_on.verdict(AnsweredBy.MACHINE_START, 3.0)
    goes_on.key_pressed(5.0)
    told.verdict(AnsweredBy.MACHINE_END_SILENCE, 3.0)
    told.told(4.0)
    told.key_pressed(5.0)

    for machine in (before, in_it, goes_on, told):
        assert machine.decide(5.1, agent_until=0.0) is None
        heard_beep(machine, 5.5)
        assert machine.decide(5.5, agent_until=0.0) is Finding.MACHINE
        assert not machine.somebody_spoke


def test_whoever_has_just_pressed_a_key_has_not_been_silent():
    machine = AnsweringMachine()
    machine.verdict(AnsweredBy.MACHINE_START, 5.0)
    machine.key_pressed(10.0)

    assert machine.next_due(agent_until=8.0) == 13.0


def test_a_key_after_the_decision_is_somebody():
    machine = AnsweringMachine()
    machine.verdict(BEEP, 5.0)
    assert machine.decide(8.0, agent_until=0.0) is Finding.MACHINE
    before = machine.somebody_spoke
    machine.key_pressed(9.0)

    assert (before, machine.somebody_spoke) == (False, True)


def test_an_old_beep_is_none():
    machine = AnsweringMachine()
    heard_beep(machine, 1.0)
    machine.verdict(AnsweredBy.MACHINE_END_SILENCE, 12.0)

    assert machine.decide(12.0, agent_until=0.0) is None


@pytest.mark.parametrize("verdict", [AnsweredBy.HUMAN, AnsweredBy.UNKNOWN])
def test_a_beep_alone_is_nothing(verdict):
    machine = AnsweringMachine()
    machine.verdict(verdict, 4.0)
    heard_beep(machine, 5.0)

    assert machine.decide(60.0, agent_until=0.0) is None


def test_the_model_that_understands_an_announcement_needs_only_the_beep():
    machine = AnsweringMachine()
    machine.verdict(AnsweredBy.HUMAN, 3.0)
    machine.told(4.0)
    machine.speech_started(4.1)
    machine.speech_ended(5.0, speech_s=0.8)  # the rest of the announcement
    assert machine.decide(5.0, agent_until=0.0) is None
    heard_beep(machine, 5.5)

    assert machine.decide(5.5, agent_until=0.0) is Finding.MACHINE


def test_a_fax_is_a_machine_that_nothing_is_said_to():
    machine = AnsweringMachine()
    machine.verdict(AnsweredBy.FAX, 3.0)
    heard_beep(machine, 4.0)

    assert machine.decide(4.0, agent_until=0.0) is Finding.FAX


def test_the_first_verdict_counts():
    machine = AnsweringMachine()
    machine.verdict(AnsweredBy.HUMAN, 3.0)
    machine.verdict(BEEP, 4.0)

    assert machine.answered_by is AnsweredBy.HUMAN


def test_listening_ends_with_the_decision_and_after_a_while():
    decided, old = AnsweringMachine(), AnsweringMachine()
    decided.verdict(BEEP, 0.0)
    assert decided.decide(50.0, agent_until=0.0) is Finding.MACHINE
    assert not old.hear(SILENCE, 0.0)

    for machine in (decided, old):
        machine.hear(tone(1_000), 100.0)
        assert not machine.hear(SILENCE, 100.3)


# ------------------------------------------------------------------------------------------
# Verdicts from the carrier


def test_a_verdict_is_read():
    form = {
        "CallSid": CALL_SID,
        "AnsweredBy": "machine_end_beep",
        "MachineDetectionDuration": "5250",
    }

    assert parse_machine_verdict(form) == MachineVerdict(CALL_SID, BEEP, 5.25)


def test_a_new_word_is_unknown_and_a_missing_duration_nothing():
    form = {"CallSid": CALL_SID, "AnsweredBy": "robot", "MachineDetectionDuration": "soon"}

    assert parse_machine_verdict(form) == MachineVerdict(CALL_SID, AnsweredBy.UNKNOWN, 0.0)


@pytest.mark.parametrize("form", [{}, {"CallSid": CALL_SID}, {"AnsweredBy": "human"}])
def test_what_is_no_verdict_is_refused(form):
    with pytest.raises(CarrierProtocolError):
        parse_machine_verdict(form)


# ------------------------------------------------------------------------------------------
# Whole calls, in memory


async def report(rig: Rig, answered_by: AnsweredBy, at_s: float) -> None:
    """What the carrier says, seconds after the answer."""
    await rig.noted_s("answered")
    await trio.sleep(at_s)
    rig.call.report_machine(MachineVerdict(rig.call.call_sid, answered_by, at_s))


async def report_beep(rig: Rig) -> None:
    await rig.phone.beeped.wait()
    await trio.sleep(0.4)
    rig.call.report_machine(MachineVerdict(rig.call.call_sid, BEEP, 4.0))


def message_s(rig: Rig) -> float:
    return rig.gemini.voicemail.seconds


async def test_the_message_is_left_whole_after_the_beep(autojump_clock, nursery):
    agent = Agent(voicemail="I will call again tomorrow.")
    policy = VoicemailPolicy.LEAVE_MESSAGE
    async with calling(callee="voicemail", agent=agent, voicemail=policy) as rig:
        nursery.start_soon(report_beep, rig)
        await rig.over()

    assert (rig.call.end_reason, rig.call.conversation.end_detail) == ("voicemail", "message left")
    assert rig.record["answered_by"] == "machine_end_beep"
    assert rig.phone.beeped_s is not None
    began_s = await rig.noted_s("leaving message") - await rig.noted_s("answered")
    assert rig.phone.beeped_s < began_s < rig.phone.beeped_s + 0.6
    assert "I will call again tomorrow." in rig.sessions[0].texts[-1]
    message = rig.record["transcript"][-1]
    assert (message["speaker"], message["cut"]) == ("agent", False)
    assert message["heard_s"] == pytest.approx(message_s(rig), abs=0.1)
    assert not rig.phone.marks[-1].cleared
    assert rig.carrier.hung_up == [rig.call.call_sid]


async def test_nothing_the_machine_hears_of_us_is_cut_once_the_message_has_begun(
    autojump_clock, nursery
):
    noisy = PhoneScript("noisy", (Say("voicemail"), Beep(), Wait(2.0), Beep(), Wait(30), HangUp()))
    policy = VoicemailPolicy.LEAVE_MESSAGE
    async with calling(callee=noisy, voicemail=policy) as rig:
        nursery.start_soon(report_beep, rig)
        await rig.over()

    begun_s = await rig.noted_s("leaving message") - await rig.noted_s("answered")
    assert all(clear.at_s <= begun_s + 0.05 for clear in rig.phone.clears)
    assert rig.call.conversation.end_detail == "message left"


async def test_the_model_hears_nothing_of_the_machine_during_the_message(autojump_clock, nursery):
    chatty = PhoneScript("chatty", (Say("voicemail"), Beep(), Wait(1.5), Say("hello"), Wait(30)))
    policy = VoicemailPolicy.LEAVE_MESSAGE
    async with calling(callee=chatty, voicemail=policy) as rig:
        nursery.start_soon(report_beep, rig)
        begun_s = await rig.noted_s("leaving message")
        heard_before = rig.sessions[0].heard_samples
        await rig.noted_s("message left")
        (session,) = rig.sessions
        meanwhile = bytes(session.heard[2 * heard_before : 2 * session.heard_samples])

    assert begun_s > 0
    assert max(memoryview(meanwhile).cast("h"), default=0) < 300


async def test_a_machine_is_not_heard_when_the_call_has_to_end_during_the_message(
    autojump_clock, nursery
):
    chatty = PhoneScript("chatty", (Say("voicemail"), Beep(), Wait(1.5), Say("hello"), Wait(30)))
    policy = VoicemailPolicy.LEAVE_MESSAGE
    async with calling(callee=chatty, voicemail=policy) as rig:
        nursery.start_soon(report_beep, rig)
        await rig.noted_s("leaving message")
        heard_before = rig.sessions[0].heard_samples
        rig.call.farewell.begin(EndReason.COST_CAP)
        await rig.over()
        (session,) = rig.sessions
        meanwhile = bytes(session.heard[2 * heard_before :])

    assert rig.call.end_reason in (EndReason.COST_CAP, EndReason.VOICEMAIL)
    assert max(memoryview(meanwhile).cast("h"), default=0) < 300


async def test_a_person_taken_for_a_machine_is_never_hung_up_on(autojump_clock, nursery):
    policy = VoicemailPolicy.HANG_UP
    async with calling(callee="taken-for-a-machine", voicemail=policy) as rig:
        nursery.start_soon(report, rig, AnsweredBy.MACHINE_END_SILENCE, 4.0)
        await rig.over()

    assert rig.call.end_reason == "caller-hung-up"
    assert "a person after all" in rig.noted


async def test_a_person_who_answers_the_message_gets_their_conversation_back(
    autojump_clock, nursery
):
    puzzled = PhoneScript(
        "puzzled",
        (Wait(1), Beep(), Wait(2.5), Say("hello"), Wait(8), Say("question"), Wait(9), HangUp()),
    )
    policy = VoicemailPolicy.LEAVE_MESSAGE
    async with calling(callee=puzzled, voicemail=policy) as rig:
        nursery.start_soon(report_beep, rig)
        await rig.over()

    assert rig.call.end_reason == "caller-hung-up"
    assert rig.noted.index("message left") < rig.noted.index("a person after all")
    assert len([turn for turn in rig.record["transcript"] if turn["speaker"] == "agent"]) >= 3


async def test_hanging_up_needs_no_message(autojump_clock, nursery):
    async with calling(callee="voicemail", voicemail=VoicemailPolicy.HANG_UP) as rig:
        nursery.start_soon(report_beep, rig)
        await rig.over()

    assert (rig.call.end_reason, rig.call.conversation.end_detail) == ("voicemail", "hung up")
    assert "leaving message" not in rig.noted


async def test_by_default_a_verdict_does_nothing(autojump_clock, nursery):
    async with calling(callee="voicemail") as rig:
        nursery.start_soon(report_beep, rig)
        await rig.over()

    assert rig.call.end_reason == "caller-hung-up"
    assert rig.record["answered_by"] is None


async def test_the_model_that_understands_the_announcement_has_the_message_left(
    autojump_clock,
):
    script = replace(
        MODEL_SCRIPTS["answers"], functions=(FunctionCall("voicemail_reached"),), reply_delay_s=0.05
    )
    machine = PhoneScript("machine", (Say("voicemail"), Wait(1.4), Beep(), Wait(20), HangUp()))
    async with calling(
        callee=machine,
        script=script,
        agent=Agent(tools=(voicemail_reached,)),
        voicemail=VoicemailPolicy.LEAVE_MESSAGE,
    ) as rig:
        await rig.over()

    assert (rig.call.end_reason, rig.call.conversation.end_detail) == ("voicemail", "message left")
    assert rig.record["answered_by"] is None  # the carrier has said nothing at all


async def test_a_model_that_does_not_speak_leaves_no_message(autojump_clock, nursery):
    mute = replace(MODEL_SCRIPTS["answers"], silent_turns=frozenset(range(2, 50)))
    policy = VoicemailPolicy.LEAVE_MESSAGE
    async with calling(callee="voicemail", script=mute, voicemail=policy) as rig:
        nursery.start_soon(report_beep, rig)
        await rig.over()

    assert (rig.call.end_reason, rig.call.conversation.end_detail) == (
        "voicemail",
        "no message left",
    )
    assert rig.noted.count("leaving message") == 2


async def test_verdicts_are_idempotent_and_only_asked_for_where_they_matter(
    autojump_clock, nursery
):
    async with calling(callee="talks", voicemail=VoicemailPolicy.HANG_UP) as rig:
        for verdict in (AnsweredBy.HUMAN, AnsweredBy.HUMAN, BEEP):
            nursery.start_soon(report, rig, verdict, 3.0)
        await rig.over()

    assert rig.noted.count("answered by") == 1
    assert rig.call.end_reason == "caller-hung-up"


# ------------------------------------------------------------------------------------------
# Over real sockets


MACHINE = PhoneScript(
    "machine",
    (Say("voicemail", break_off_s=0.8), Wait(0.2), Beep(duration_s=0.2), Wait(15), HangUp()),
    answered_by="machine_end_beep",
    verdict_s=None,
)


async def test_a_message_is_left_over_real_sockets(fast_clock):
    async with serving(voicemail="leave-message", voicemail_message="Call me back.") as server:
        server.twilio.account.people.by_ending["5550190"] = MACHINE
        call_sid = (await server.make_call("5550190")).json()["call_sid"]
        with trio.fail_after(60):
            record = await server.finished(call_sid)
        phone = server.twilio.calls[call_sid]

    assert (record["reason"], record["detail"]) == ("voicemail", "message left")
    assert record["answered_by"] == phone.answered_by == "machine_end_beep"
    last = phone.phone.marks[-1]
    assert last.echoed_s is not None
    assert not last.cleared


async def test_forged_verdicts_are_refused_and_stray_ones_are_nothing(fast_clock):
    form = {"CallSid": CALL_SID, "AnsweredBy": "machine_end_beep", "MachineDetectionDuration": "1"}
    async with serving(voicemail="hang-up") as server:
        unsigned = await server.http.post("/amd-status", data=form)
        stray = [await server.signed_post("/amd-status", form) for _ in range(2)]
        nonsense = await server.signed_post("/amd-status", {"CallSid": CALL_SID})

    assert unsigned.status_code == 403
    assert [answer.status_code for answer in stray] == [204, 204]
    assert nonsense.status_code == 400


def test_the_simulated_machine_beeps_where_its_script_says():
    said = b"".join(
        deed for deed in act(PHONE_SCRIPTS["voicemail"].steps) if isinstance(deed, bytes)
    )

    assert beeps(said) == 1
