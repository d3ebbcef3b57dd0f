"""What can be demonstrated: who answers, how the model behaves, and what must come of it.

A script is a row of ``SCRIPTS``: settings laid over the demo's own (the simulated callee and model,
timers made shorter) and checks, which are questions put to the finished call. A check is a sentence
and a function; to add a script, add a row, and a check if none here asks the right question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from server.carrier.keypad import key_tone
from server.metrics import Metrics
from server.simulators.gemini import SimulatedSession
from server.simulators.phone import load_speech
from server.simulators.twilio import SimulatedCall


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is left of a call: the server's record, and what each of the other ends saw."""

    record: dict[str, Any]
    """As ``GET /calls/{call_sid}`` shows it."""
    phone: SimulatedCall
    sessions: tuple[SimulatedSession, ...]
    """Every connection to the model, oldest first."""
    metrics: Metrics

    @property
    def agent_turns(self) -> list[dict[str, Any]]:
        """The agent's turns, as heard."""
        return [turn for turn in self.record["transcript"] if turn["speaker"] == "agent"]

    @property
    def happened(self) -> list[str]:
        """What the call's timeline says, without times and facts."""
        return [moment["what"] for moment in self.record["timeline"]]


GREETING_WAV = Path(str(resources.files("server").joinpath("speech", "caller-followup.wav")))
GREETING = load_speech("followup")
GREETING_TEXT = "(a recorded greeting)"
"""Any recording will do."""

Check = tuple[str, Callable[[Outcome], bool]]


@dataclass(frozen=True, slots=True)
class DemoScript:
    """One demonstration. It must end by itself within 30 s of real time."""

    checks: tuple[Check, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ``Settings`` that differ: ``simulated_callee``, ``simulated_model``, timers."""


def ended(*reasons: str) -> Check:
    """The call ended for one of these reasons."""
    title = f"the call ended: {' or '.join(reasons)}"
    return title, lambda outcome: outcome.record["reason"] in reasons


def happened(what: str) -> Check:
    """The call's timeline has this line."""
    return f"it came to pass: {what}", lambda outcome: what in outcome.happened


def _was_greeted(outcome: Outcome) -> bool:
    after_ms = outcome.record["timings"]["answer_to_first_audio_ms"]
    return after_ms is not None and after_ms < 100


GREETED: Check = ("the agent was speaking when the phone left the hook", _was_greeted)
NOTHING_LOST: Check = (
    "no caller audio was lost",
    lambda outcome: outcome.record["timings"]["caller_audio_lost_s"] == 0,
)
STOPPED_DEAD: Check = (
    "nothing of a cut turn was sent after its clear",
    lambda outcome: outcome.phone.bytes_after_clear == 0,
)
BARGED_IN: Check = (
    "the caller's barge-in cut the agent",
    lambda outcome: any(turn["cut"] for turn in outcome.agent_turns),
)
ANSWERED: Check = (
    "the agent answered and was heard to the end",
    lambda outcome: any(
        not turn["cut"] and (turn["heard_s"] or 0) > 0.5 for turn in outcome.agent_turns[1:]
    ),
)
ONE_CONNECTION: Check = (
    "one connection to the model was tried, and no other",
    lambda outcome: len(outcome.sessions) == 1,
)
CLOSED_FIRST: Check = (
    "the old connection was closed by us before the new one was asked for",
    lambda outcome: (
        outcome.sessions[0].closed_by_client == 1000
        and not any("in use" in moment.what for one in outcome.sessions for moment in one.timeline)
    ),
)
NO_TURN_LOST: Check = (
    "no sentence of the agent's was cut by it",
    lambda outcome: not any(turn["cut"] for turn in outcome.agent_turns),
)
TOLD_THE_STORY: Check = (
    "the fresh session was told what had been said",
    lambda outcome: any(turn["text"] in outcome.sessions[-1].texts for turn in outcome.agent_turns),
)


def reconnected(reason: str, way: str) -> Check:
    """The model's connection was replaced within a second, once, and for this reason."""

    def check(outcome: Outcome) -> bool:
        found = [one for one in outcome.record["timeline"] if one["what"] == "model reconnected"]
        return (
            len(found) == 1
            and (found[0]["reason"], found[0]["way"]) == (reason, way)
            and found[0]["gap_s"] < 1.0
        )

    return f"the call went on over a new connection within a second: {reason}, {way}", check


ROTATED: Check = (
    "every connection was replaced at its age by one that went on with the same session",
    lambda outcome: (
        len(outcome.sessions) > 1
        and {
            (one["reason"], one["way"])
            for one in outcome.record["timeline"]
            if one["what"] == "model reconnected"
        }
        == {("age", "resume")}
    ),
)
CUT_BY_OUR_EAR: Check = (
    "our own ear cut the agent, before the model said anything",
    lambda outcome: any(
        moment["what"] == "barge-in" and moment["by"] == "local"
        for moment in outcome.record["timeline"]
    ),
)
EVERY_FUNCTION_ANSWERED: Check = (
    "every function the model called was answered once, and those it took back not at all",
    lambda outcome: (
        all(
            session.calls_made - session.calls_taken_back == len(session.tool_results)
            and not session.mistakes
            for session in outcome.sessions
        )
        and sum(session.calls_made for session in outcome.sessions) > 0
    ),
)
KEYS_HEARD: Check = (
    "the tones of both keys were heard",
    lambda outcome: all(key_tone(key)[:800] in outcome.phone.heard for key in "12"),
)
FAREWELL_HEARD: Check = (
    "the agent's last words were heard to the end",
    lambda outcome: (
        not outcome.agent_turns[-1]["cut"]
        and all(
            mark.echoed_s is not None and not mark.cleared for mark in outcome.phone.phone.marks
        )
    ),
)


KEYS_TOLD: Check = (
    "the agent was told in one go what was typed in",
    lambda outcome: any("the keys 1 2 # on" in text for text in outcome.sessions[0].texts),
)


def _left_message(outcome: Outcome) -> bool:
    phone = outcome.phone.phone
    message = outcome.agent_turns[-1]
    began_s = message["at_s"]
    return (
        outcome.record["detail"] == "message left"
        and phone.beeped_s is not None
        and began_s > phone.beeped_s
        and not message["cut"]
        and all(clear.at_s < began_s for clear in phone.clears)
        and phone.marks[-1].echoed_s is not None
        and not phone.marks[-1].cleared
    )


LEFT_MESSAGE: Check = (
    "after the beep the message was left whole, and its last mark came back",
    _left_message,
)
CAME_BACK: Check = (
    "the caller came back on another stream, to the same session",
    lambda outcome: len(outcome.phone.phones) == 2 and len(outcome.sessions) == 1,
)
LAST_WORD_AFTER_THE_END: Check = (
    "the carrier's last word came after the end, and is in the record",
    lambda outcome: (
        outcome.record["status"] == "completed"
        and "ended" in outcome.happened
        and outcome.happened.index("ended") < outcome.happened.index("completed")
    ),
)
ASKED_FOR: Check = (
    "the carrier was asked, and nothing was reported by itself",
    lambda outcome: (
        not outcome.phone.reports
        and any(what == "status asked for over REST" for _, what in outcome.phone.timeline)
    ),
)
WAITED_AS_TOLD: Check = (
    "the call was asked for again when the carrier wanted, and not sooner",
    lambda outcome: any(what == "placed at request 2" for _, what in outcome.phone.timeline),
)
EACH_STATUS_ONCE: Check = (
    "every status counted once, however often it was told",
    lambda outcome: all(
        outcome.happened.count(status) == 1
        for status in ("initiated", "ringing", "in-progress", "completed")
    ),
)
REPORTS_TAKEN: Check = (
    "every callback was taken, copies too",
    lambda outcome: (
        len(outcome.phone.reports) == 16
        and all(answer == 204 for _, answer in outcome.phone.reports)
    ),
)
UPDATES_FAILED: Check = (
    "Twilio answered twice with 503 when asked to hang up",
    lambda outcome: (
        [what for _, what in outcome.phone.timeline].count("update answered with 503") == 2
    ),
)
HUNG_UP_AT_LAST: Check = (
    "the call is over at Twilio, too",
    lambda outcome: outcome.phone.status.value == "completed",
)


def climbed(rung: str, fault: str) -> Check:
    """The watchdog has tried this because of that."""
    return (
        f"the watchdog saw the fault ({fault}) and tried: {rung}",
        lambda outcome: any(
            moment["what"] == f"watchdog {rung}" and moment["fault"] == fault
            for moment in outcome.record["timeline"]
        ),
    )


def _gone_for_s(outcome: Outcome) -> float:
    """How long the line had been dead when the call ended."""
    phone = outcome.phone.phone
    dead_s = next(at_s for at_s, what in phone.events if what == "the line is dead")
    moments = {moment["what"]: moment["at_s"] for moment in outcome.record["timeline"]}
    return float(moments["ended"] - moments["answered"] - dead_s)


GREETING_HEARD: Check = (
    "the greeting was heard to its end",
    lambda outcome: not outcome.agent_turns[0]["cut"] and outcome.agent_turns[0]["heard_s"] > 4.5,
)
CALLER_FIRST: Check = (
    "the agent let the caller say their first word",
    lambda outcome: (
        (outcome.phone.phone.first_sound_s or 0.0) > outcome.phone.phone.utterances[0].ended_s
    ),
)
RECORDING_HEARD: Check = (
    "the recorded greeting was heard, and the model knows what was said in it",
    lambda outcome: (
        GREETING[8_000:16_000] in outcome.phone.heard
        and GREETING_TEXT in str(outcome.sessions[0].setup["systemInstruction"])
    ),
)
NOTHING_CUT: Check = (
    "the agent did not interrupt itself",
    lambda outcome: not any(turn["cut"] for turn in outcome.agent_turns),
)
NOTICED_IN_TIME: Check = (
    "it was noticed within five seconds that the line was dead",
    lambda outcome: _gone_for_s(outcome) <= 5.2,  # the record is rounded, and clocks differ
)
LEFT_TO_THINK: Check = (
    "while the model was thinking it was left alone, and so was the caller",
    lambda outcome: (
        any(moment.what == "thinks on" for moment in outcome.sessions[0].timeline)
        and not any(
            what == "caller silent" or what.startswith("watchdog") for what in outcome.happened
        )
    ),
)
APOLOGISED: Check = (
    "the carrier said sorry to the caller and hung up",
    lambda outcome: any("says: I am sorry" in what for _, what in outcome.phone.timeline),
)
TOOK_LEAVE: Check = (
    "the agent was heard saying goodbye before the line was cut",
    lambda outcome: outcome.agent_turns[-1]["heard_s"] > 0.5 and not outcome.agent_turns[-1]["cut"],
)

_IMPATIENT = {"reply_timeout_s": 2.0, "rung_timeout_s": 1.5}

SCRIPTS: dict[str, DemoScript] = {
    "talks": DemoScript(
        (ended("caller-hung-up"), GREETED, ANSWERED, NOTHING_LOST, STOPPED_DEAD),
        {"simulated_callee": "talks"},
    ),
    "interrupts": DemoScript(
        (ended("caller-hung-up"), GREETED, BARGED_IN, ANSWERED, NOTHING_LOST, STOPPED_DEAD),
        {"simulated_callee": "interrupts"},
    ),
    "hangs-up": DemoScript(
        (ended("caller-hung-up"), GREETED, NOTHING_LOST), {"simulated_callee": "hangs-up"}
    ),
    "busy": DemoScript((ended("busy"),), {"simulated_callee": "busy"}),
    "no-answer": DemoScript(
        (ended("no-answer"),), {"simulated_callee": "no-answer", "ring_timeout_s": 5}
    ),
    "drops": DemoScript(
        (ended("caller-gone"), GREETED, NOTHING_LOST), {"simulated_callee": "drops"}
    ),
    "tool-storm": DemoScript(
        (
            ended("caller-hung-up"),
            GREETED,
            ANSWERED,
            EVERY_FUNCTION_ANSWERED,
            NOTHING_LOST,
            STOPPED_DEAD,
        ),
        {
            "simulated_callee": "asks-once",
            "simulated_model": "tool-storm",
            "tools": ("server.demo.tools",),
            "built_in_tools": ("none",),
        },
    ),
    "agent-hangs-up": DemoScript(
        (ended("agent-hung-up"), GREETED, EVERY_FUNCTION_ANSWERED, FAREWELL_HEARD),
        {"simulated_callee": "asks-once", "simulated_model": "hangs-up"},
    ),
    "interrupts-deaf-model": DemoScript(
        (ended("caller-hung-up"), GREETED, CUT_BY_OUR_EAR, ANSWERED, STOPPED_DEAD),
        {
            "simulated_callee": "interrupts",
            "simulated_model": "hard-of-hearing",
            "barge_in": "local",
        },
    ),
    "types-digits": DemoScript(
        (ended("caller-hung-up"), GREETED, KEYS_TOLD, ANSWERED),
        {"simulated_callee": "types-digits"},
    ),
    "presses-keys": DemoScript(
        (ended("caller-hung-up"), GREETED, EVERY_FUNCTION_ANSWERED, KEYS_HEARD, ANSWERED),
        {"simulated_callee": "asks-once", "simulated_model": "presses-keys"},
    ),
    "voicemail": DemoScript(
        (ended("voicemail"), GREETED, happened("beep"), happened("answered by"), LEFT_MESSAGE),
        {
            "simulated_callee": "voicemail",
            "voicemail": "leave-message",
            "voicemail_message": "I am sorry that I missed you. I will call again tomorrow.",
        },
    ),
    "transfer": DemoScript(
        (ended("transferred"), GREETED, happened("transfer")),
        {
            "simulated_callee": "asks-once",
            "simulated_model": "transfers",
            "transfer_targets": {"sales": "+15005550101"},
        },
    ),
    "transfer-busy": DemoScript(
        (
            ended("caller-hung-up"),
            GREETED,
            happened("transfer failed"),
            CAME_BACK,
            EVERY_FUNCTION_ANSWERED,
            ANSWERED,
        ),
        {
            "simulated_callee": "asks-once",
            "simulated_model": "transfers",
            "transfer_targets": {"sales": "+15005550104"},
        },
    ),
    "garbage": DemoScript(
        (ended("caller-hung-up", "caller-gone"), GREETED, NOTHING_LOST, STOPPED_DEAD),
        {"simulated_callee": "garbage"},
    ),
    "late-callbacks": DemoScript(
        (ended("caller-hung-up"), GREETED, LAST_WORD_AFTER_THE_END, NOTHING_LOST),
        {"simulated_callee": "hangs-up", "simulated_carrier": "late-callbacks"},
    ),
    "duplicate-callbacks": DemoScript(
        (ended("caller-hung-up"), GREETED, EACH_STATUS_ONCE, REPORTS_TAKEN, NOTHING_LOST),
        {"simulated_callee": "hangs-up", "simulated_carrier": "duplicate-callbacks"},
    ),
    "no-callbacks": DemoScript(
        (ended("busy"), ASKED_FOR),
        {
            "simulated_callee": "busy",
            "simulated_carrier": "no-callbacks",
            "callback_wait_s": 1.0,
        },
    ),
    "too-many-requests": DemoScript(
        (ended("caller-hung-up"), WAITED_AS_TOLD, GREETED, NOTHING_LOST),
        {"simulated_callee": "hangs-up", "simulated_carrier": "too-many-requests"},
    ),
    "twilio-5xx": DemoScript(
        (ended("agent-hung-up"), GREETED, UPDATES_FAILED, HUNG_UP_AT_LAST, FAREWELL_HEARD),
        {
            "simulated_callee": "asks-once",
            "simulated_model": "hangs-up",
            "simulated_carrier": "twilio-5xx",
            "close_timeout_s": 6.0,
        },
    ),
    "go-away": DemoScript(
        (
            ended("caller-hung-up"),
            reconnected("go-away", "resume"),
            CLOSED_FIRST,
            NO_TURN_LOST,
            ANSWERED,
            NOTHING_LOST,
        ),
        {"simulated_callee": "talks", "simulated_model": "go-away"},
    ),
    "old-connection": DemoScript(
        (ended("caller-hung-up"), ROTATED, CLOSED_FIRST, NO_TURN_LOST, ANSWERED, NOTHING_LOST),
        {"simulated_callee": "talks", "model_connection_age_s": 6.0},
    ),
    "drop-1006": DemoScript(
        (ended("caller-hung-up"), reconnected("closed-1006", "resume"), ANSWERED, NOTHING_LOST),
        {"simulated_callee": "talks", "simulated_model": "drop-1006"},
    ),
    "drop-1011": DemoScript(
        (ended("caller-hung-up"), reconnected("closed-1011", "resume"), ANSWERED, NOTHING_LOST),
        {"simulated_callee": "talks", "simulated_model": "drop-1011"},
    ),
    "lost-handle": DemoScript(
        (
            ended("caller-hung-up"),
            reconnected("closed-1006", "fresh"),
            TOLD_THE_STORY,
            ANSWERED,
            NOTHING_LOST,
        ),
        {"simulated_callee": "talks", "simulated_model": "lost-handle"},
    ),
    "quota": DemoScript((ended("model-quota"), ONE_CONNECTION), {"simulated_model": "quota"}),
    "no-credits": DemoScript(
        (ended("model-refused"), ONE_CONNECTION), {"simulated_model": "no-credits"}
    ),
    "fallback": DemoScript(
        (
            ended("caller-hung-up"),
            reconnected("closed-1011", "fallback"),
            TOLD_THE_STORY,
            ANSWERED,
            NOTHING_LOST,
        ),
        {
            "simulated_callee": "talks",
            "simulated_model": "quota-in-call",
            "fallback_gemini_model": "gemini-3.1-flash-live-preview",
        },
    ),
    "bad-setup": DemoScript(
        (ended("model-unavailable"), ONE_CONNECTION), {"simulated_model": "bad-setup"}
    ),
    "late-pong": DemoScript(
        (ended("caller-hung-up"), GREETED, ONE_CONNECTION, ANSWERED, NOTHING_LOST),
        {"simulated_callee": "talks", "simulated_model": "late-pong"},
    ),
    "silent-model": DemoScript(
        (
            ended("caller-hung-up"),
            climbed("nudge", "no-reply"),
            climbed("resume", "no-reply"),
            ANSWERED,
            NOTHING_LOST,
        ),
        {"simulated_callee": "asks-and-waits", "simulated_model": "silent-model", **_IMPATIENT},
    ),
    "deaf-model": DemoScript(
        (
            ended("model-silent"),
            climbed("nudge", "no-reply"),
            climbed("resume", "no-reply"),
            climbed("fresh", "no-reply"),
            APOLOGISED,
        ),
        {"simulated_callee": "asks-and-waits", "simulated_model": "deaf-model", **_IMPATIENT},
    ),
    "deaf-main-model": DemoScript(
        (
            ended("caller-hung-up"),
            climbed("fresh", "no-reply"),
            climbed("fallback", "no-reply"),
            TOLD_THE_STORY,
            ANSWERED,
            NOTHING_LOST,
        ),
        {
            "simulated_callee": "asks-and-waits",
            "simulated_model": "deaf-main-model",
            "fallback_gemini_model": "gemini-3.1-flash-live-preview",
            **_IMPATIENT,
        },
    ),
    "empty-turn": DemoScript(
        (ended("caller-hung-up"), climbed("nudge", "empty-turn"), ONE_CONNECTION, ANSWERED),
        {"simulated_callee": "asks-and-waits", "simulated_model": "empty-turn"},
    ),
    "quiet-turn": DemoScript(
        (ended("caller-hung-up"), climbed("nudge", "quiet-turn"), ONE_CONNECTION, ANSWERED),
        {"simulated_callee": "asks-and-waits", "simulated_model": "quiet-turn"},
    ),
    "stalled-turn": DemoScript(
        (ended("caller-hung-up"), climbed("nudge", "stalled"), ONE_CONNECTION, ANSWERED),
        {
            "simulated_callee": "asks-patiently",
            "simulated_model": "stalled-turn",
            "stall_timeout_s": 1.0,
        },
    ),
    "thinks": DemoScript(
        (ended("caller-hung-up"), GREETED, LEFT_TO_THINK, ONE_CONNECTION, ANSWERED, NOTHING_LOST),
        # The callee is silent for all the time it thinks, and so is the model.
        {
            "simulated_callee": "asks-and-is-told-to-wait",
            "simulated_model": "thinks",
            "silence_timeout_s": 3.0,
            **_IMPATIENT,
        },
    ),
    "forgets": DemoScript(
        (ended("caller-hung-up"), climbed("nudge", "no-reply"), ONE_CONNECTION, ANSWERED),
        {
            "simulated_callee": "asks-and-is-told-to-wait",
            "simulated_model": "forgets",
            "thinking_timeout_s": 5.0,
            **_IMPATIENT,
        },
    ),
    "told-error": DemoScript(
        (ended("model-unavailable"), ONE_CONNECTION), {"simulated_model": "told-error"}
    ),
    "other-rate": DemoScript(
        (ended("caller-hung-up"), GREETED, GREETING_HEARD, ANSWERED, NOTHING_LOST),
        {"simulated_callee": "says-hello", "simulated_model": "other-rate"},
    ),
    "early-turn-complete": DemoScript(
        (ended("caller-hung-up"), climbed("nudge", "broken-off"), ONE_CONNECTION, ANSWERED),
        {"simulated_callee": "asks-and-waits", "simulated_model": "early-turn-complete"},
    ),
    "slow-model": DemoScript(
        (ended("caller-hung-up"), climbed("resume", "slow"), ANSWERED, NOTHING_LOST),
        # It pauses for most of a second to gather some audio: who is impatient talks into that.
        {"simulated_callee": "asks-patiently", "simulated_model": "slow-model"},
    ),
    "caller-drops": DemoScript(
        (ended("caller-gone"), GREETED, NOTICED_IN_TIME, NOTHING_LOST),
        {"simulated_callee": "vanishes"},
    ),
    "says-hello": DemoScript(
        (ended("caller-hung-up"), GREETED, GREETING_HEARD, ANSWERED, NOTHING_LOST),
        {"simulated_callee": "says-hello"},
    ),
    "lets-speak-first": DemoScript(
        (ended("caller-hung-up"), CALLER_FIRST, GREETING_HEARD, ANSWERED, NOTHING_LOST),
        {"simulated_callee": "says-hello", "greeting_when": "after-caller"},
    ),
    "recorded-greeting": DemoScript(
        (ended("caller-hung-up"), GREETED, RECORDING_HEARD, ANSWERED, NOTHING_LOST),
        {
            "simulated_callee": "asks-once",
            "greeting_wav": GREETING_WAV,
            "greeting_text": GREETING_TEXT,
        },
    ),
    "coughs": DemoScript(
        (
            ended("caller-hung-up"),
            GREETED,
            happened("agent held"),
            happened("false alarm"),
            GREETING_HEARD,
            ANSWERED,
        ),
        {"simulated_callee": "coughs", "simulated_model": "hard-of-hearing"},
    ),
    "echoing-speakerphone": DemoScript(
        (ended("caller-hung-up"), GREETED, NOTHING_CUT, ANSWERED, NOTHING_LOST),
        {"simulated_callee": "echoing-speakerphone"},
    ),
    "silent-caller": DemoScript(
        (ended("caller-silent"), GREETED, happened("caller silent"), TOOK_LEAVE),
        {"simulated_callee": "silent", "silence_timeout_s": 3.0, "silence_prompts": 1},
    ),
    "too-costly": DemoScript(
        (ended("cost-cap"), GREETED, TOOK_LEAVE),
        {
            "simulated_callee": "never-hangs-up",
            "carrier_minute_usd": 0.01,
            "max_call_cost_usd": 0.0125,
            "farewell_timeout_s": 5.0,
        },
    ),
    "too-long": DemoScript(
        (ended("max-duration"), GREETED, happened("time running out"), TOOK_LEAVE),
        {
            "simulated_callee": "never-hangs-up",
            "max_call_duration_s": 25.0,
            "wrap_up_s": 8.0,
            "farewell_timeout_s": 5.0,
        },
    ),
}
"""By the name that ``python -m server demo --script`` takes."""
