"""What can be demonstrated: who answers, how the model behaves, and what must come of it.

A script is a row of ``DEMO_SCRIPTS``: settings laid over the demo's own (the simulated callee and
model, timers made shorter) and checks, which are questions put to the finished call. To add a
script, add a row, and a check to ``checks.py`` if none there asks the right question.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.demo.checks import (
    ANSWERED,
    APOLOGISED,
    ASKED_FOR,
    BARGED_IN,
    CALLER_FIRST,
    CAME_BACK,
    CLOSED_FIRST,
    CUT_BY_OUR_EAR,
    EACH_STATUS_ONCE,
    EVERY_FUNCTION_ANSWERED,
    FAREWELL_HEARD,
    GREETED,
    GREETING_HEARD,
    GREETING_TEXT,
    GREETING_WAV,
    HEARD_AGAIN,
    HUNG_UP_AT_LAST,
    KEYS_HEARD,
    KEYS_TOLD,
    LAST_WORD_AFTER_THE_END,
    LEFT_MESSAGE,
    LEFT_TO_THINK,
    NO_TURN_LOST,
    NOISE_FILTERED,
    NOTHING_CUT,
    NOTHING_LOST,
    NOTICED_IN_TIME,
    ONE_CONNECTION,
    RECORDING_HEARD,
    REPORTS_TAKEN,
    ROTATED,
    STOPPED_DEAD,
    THOUGHT_ALOUD,
    TOLD_OF_TURNS,
    TOLD_THE_STORY,
    TOOK_LEAVE,
    UPDATES_FAILED,
    WAITED_AS_TOLD,
    Check,
    climbed,
    ended,
    happened,
    reconnected,
)


@dataclass(frozen=True, slots=True)
class DemoScript:
    """One demonstration. It must end by itself within 30 s of real time."""

    checks: tuple[Check, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ``Settings`` that differ: ``simulated_callee``, ``simulated_model``, timers."""


_IMPATIENT = {"reply_timeout_s": 2.0, "rung_timeout_s": 1.5}

DEMO_SCRIPTS: dict[str, DemoScript] = {
    "talks": DemoScript(
        (ended("caller-hung-up"), GREETED, ANSWERED, NOTHING_LOST, STOPPED_DEAD),
        {"simulated_callee": "talks"},
    ),
    "interrupts": DemoScript(
        (ended("caller-hung-up"), GREETED, BARGED_IN, ANSWERED, NOTHING_LOST, STOPPED_DEAD),
        {"simulated_callee": "interrupts"},
    ),
    "tells-turns": DemoScript(
        (
            ended("caller-hung-up"),
            GREETED,
            ANSWERED,
            TOLD_OF_TURNS,
            NOISE_FILTERED,
            ONE_CONNECTION,
            NOTHING_LOST,
            STOPPED_DEAD,
        ),
        {"simulated_callee": "talks", "turn_end": "local", "carrier_noise_filter": True},
    ),
    "interrupts-and-tells": DemoScript(
        (
            ended("caller-hung-up"),
            GREETED,
            BARGED_IN,
            ANSWERED,
            TOLD_OF_TURNS,
            ONE_CONNECTION,
            STOPPED_DEAD,
        ),
        {"simulated_callee": "interrupts", "turn_end": "local"},
    ),
    "hangs-up": DemoScript(
        (ended("caller-hung-up"), GREETED, NOTHING_LOST), {"simulated_callee": "hangs-up"}
    ),
    "busy": DemoScript((ended("busy"),), {"simulated_callee": "busy"}),
    "no-answer": DemoScript(
        (ended("no-answer"),), {"simulated_callee": "no-answer", "ring_timeout_s": 5}
    ),
    "drops": DemoScript(
        (ended("caller-hung-up"), GREETED, happened("line lost"), NOTHING_LOST),
        {"simulated_callee": "drops"},
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
    "thinks-aloud": DemoScript(
        (ended("caller-hung-up"), GREETED, ANSWERED, THOUGHT_ALOUD, NOTHING_LOST, STOPPED_DEAD),
        {
            "simulated_callee": "asks-once",
            "simulated_model": "slow-model",
            "thinking_sound": GREETING_WAV,
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
        # Nor do callbacks come through, nor answers to questions.
        {
            "simulated_callee": "vanishes",
            "simulated_carrier": "no-callbacks",
            "callback_wait_s": 60.0,
        },
    ),
    "line-lost": DemoScript(
        (
            ended("caller-hung-up"),
            GREETED,
            happened("line lost"),
            happened("line back"),
            CAME_BACK,
            HEARD_AGAIN,
            ANSWERED,
            NOTHING_LOST,
        ),
        {"simulated_callee": "talks", "simulated_carrier": "line-lost"},
    ),
    "line-lost-for-good": DemoScript(
        (ended("caller-gone"), GREETED, happened("line lost"), HUNG_UP_AT_LAST, NOTHING_LOST),
        {
            "simulated_callee": "talks",
            "simulated_carrier": "line-lost-for-good",
            "line_lost_timeout_s": 2.0,
        },
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
