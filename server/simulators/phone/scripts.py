"""The people that a simulated call can reach, by name."""

from __future__ import annotations

from dataclasses import replace

from server.carrier import CallStatus
from server.simulators.phone.steps import (
    Beep,
    Drop,
    FallSilent,
    Forever,
    HangUp,
    HearPause,
    HearSpeech,
    PhoneScript,
    Press,
    Say,
    SendRaw,
    Speakerphone,
    Step,
    Wait,
)

_MEDIA = '{"event":"media","sequenceNumber":"0","streamSid":%s,"media":%s}'
_SOME_AUDIO = '{"track":"inbound","chunk":"1","timestamp":"0","payload":"%s"}'
GARBAGE: tuple[str | bytes, ...] = (
    "{",
    "",
    "null",
    '{"no event": true}',
    '{"event":"weather","streamSid":"{sid}","weather":{"sky":"clear"}}',
    '{"event":"media","streamSid":"{sid}"}',
    _MEDIA % ('"{sid}"', _SOME_AUDIO % "not base64!"),
    _MEDIA % ('"MZ00000000000000000000000000000000"', _SOME_AUDIO % ("AAAA" * 40)),
    _MEDIA % ('"{sid}"', '{"track":"outbound","chunk":"1","timestamp":"0","payload":"AAAA"}'),
    '{"event":"connected","protocol":"Call","version":"1.0.0"}',
    "x" * 60_000,
    b"\x00\x01binary",
)
"""Each is ignored by a server that is worth its name; ``{sid}`` stands for the stream's sid."""

_LISTEN = (HearSpeech(), HearPause())
_STOP = '{"event":"stop","sequenceNumber":"9","streamSid":"{sid}","stop":{}}'

PHONE_SCRIPTS: dict[str, PhoneScript] = {
    script.name: script
    for script in (
        PhoneScript(
            "talks",
            (*_LISTEN, Say("question"), *_LISTEN, Say("goodbye"), *_LISTEN, HangUp()),
        ),
        PhoneScript("asks-once", (*_LISTEN, Say("question"), *_LISTEN, HangUp())),
        PhoneScript(
            "interrupts",
            (
                HearSpeech(),
                Wait(2.2),
                Say("interrupt"),
                Wait(0.3),
                *_LISTEN,
                Say("goodbye"),
                *_LISTEN,
                HangUp(),
            ),
        ),
        PhoneScript(
            "hangs-up",
            (HearSpeech(), Wait(0.4), Say("question", break_off_s=0.8), HangUp()),
        ),
        PhoneScript("busy", ring_s=0.5, outcome=CallStatus.BUSY),
        PhoneScript("no-answer", ring_s=600.0, outcome=CallStatus.NO_ANSWER),
        PhoneScript("fails", ring_s=0.2, outcome=CallStatus.FAILED),
        PhoneScript("drops", (HearSpeech(), Wait(0.4), Say("question", break_off_s=0.8), Drop())),
        PhoneScript(
            "garbage",
            (
                SendRaw(GARBAGE),
                *_LISTEN,
                Say("question"),
                SendRaw(GARBAGE),
                *_LISTEN,
                SendRaw((_STOP, _MEDIA % ('"{sid}"', _SOME_AUDIO % "AAAA"), _STOP)),
                Drop(),
            ),
        ),
        PhoneScript("vanishes", (HearSpeech(), Wait(0.4), Say("question"), FallSilent())),
        # "Hello?", as people say it when they pick up; then they let the other side speak.
        PhoneScript(
            "says-hello",
            (
                Wait(0.2),
                Say("hello", break_off_s=0.5),
                *_LISTEN,
                Say("question"),
                *_LISTEN,
                HangUp(),
            ),
        ),
        PhoneScript(
            "coughs",
            (
                HearSpeech(),
                Wait(2.5),
                Say("cough"),
                *_LISTEN,
                Say("question"),
                HearSpeech(),
                Wait(1.0),
                Say("cough"),
                *_LISTEN,
                HangUp(),
            ),
        ),
        PhoneScript(
            "echoing-speakerphone",
            (*_LISTEN, Say("question"), *_LISTEN, Say("goodbye"), *_LISTEN, HangUp()),
            speakerphone=Speakerphone(),
        ),
        PhoneScript(
            "asks-and-waits", (*_LISTEN, Say("question"), HearSpeech(60.0), HearPause(), HangUp())
        ),
        PhoneScript(
            "voicemail",
            (Say("voicemail"), Wait(0.5), Beep(), Wait(25.0), HangUp()),
            answered_by="machine_end_beep",
            verdict_s=None,
        ),
        PhoneScript(
            "taken-for-a-machine",
            (Say("question"), *_LISTEN, Say("goodbye"), *_LISTEN, HangUp()),
            answered_by="machine_end_silence",
            verdict_s=4.0,
        ),
        # Somebody who does not take the first pause for the end.
        PhoneScript(
            "asks-patiently",
            (
                HearSpeech(),
                HearPause(quiet_s=2.0),
                Say("question"),
                HearSpeech(60.0),
                HearPause(quiet_s=3.0),
                HangUp(),
            ),
        ),
        PhoneScript(
            # Who is told to wait hears something before the answer.
            "asks-and-is-told-to-wait",
            (
                *_LISTEN,
                Say("question"),
                HearSpeech(60.0),
                HearPause(),
                HearSpeech(60.0),
                HearPause(),
                HangUp(),
            ),
        ),
        PhoneScript(
            "types-digits", (*_LISTEN, Press("12#"), HearSpeech(60.0), HearPause(), HangUp())
        ),
        PhoneScript("oversized", (SendRaw(("x" * 2**20,)), *_LISTEN, HangUp())),
        PhoneScript(
            "never-hangs-up",
            (*_LISTEN, Forever((Say("followup"), *_LISTEN, Wait(1.0)))),
        ),
        PhoneScript("silent"),
    )
}
"""The people there are, by name."""


def speaking(script: PhoneScript, speech: bytes) -> PhoneScript:
    """The same person, who says this in the place of every sentence.

    Args:
        script: What they do.
        speech: Mu-law at 8 kHz.
    """

    def said(step: Step) -> Step:
        match step:
            case Say():
                return replace(step, speech=speech)
            case Forever(steps):
                return Forever(tuple(map(said, steps)))
        return step

    return replace(script, steps=tuple(map(said, script.steps)))


def find_script(script: str | PhoneScript) -> PhoneScript:
    """A script by its name, or itself.

    Raises:
        ValueError: There is none of that name; the message has the list.
    """
    if isinstance(script, PhoneScript):
        return script
    if script not in PHONE_SCRIPTS:
        raise ValueError(f"no script {script!r}; there are {', '.join(PHONE_SCRIPTS)}")
    return PHONE_SCRIPTS[script]
