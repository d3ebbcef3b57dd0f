"""Questions put to a demonstration's call when it is over: a check is a sentence and a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from server.agent.thinking import read_thinking
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
THOUGHT_ALOUD: Check = (
    "a sound was heard in the silence before the answer",
    # Its first piece has been faded in.
    lambda outcome: read_thinking(GREETING_WAV)[800:1_600] in outcome.phone.phones[-1].heard,
)
NOISE_FILTERED: Check = (
    "the carrier was asked to filter noise",
    lambda outcome: "filters noise" in [what for _, what in outcome.phone.timeline],
)
TOLD_OF_TURNS: Check = (
    "the model was told of the caller's turns, and heard nothing else",
    lambda outcome: all(
        one.caller.is_manual and one.heard_samples > 0 and one.closed_by_client == 1000
        for one in outcome.sessions
    ),
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
            session.functions.made - session.functions.taken_back == len(session.tool_results)
            and not session.mistakes
            for session in outcome.sessions
        )
        and sum(session.functions.made for session in outcome.sessions) > 0
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
HEARD_AGAIN: Check = (
    "the agent was heard again within a second and a half of the line's return",
    lambda outcome: (outcome.phone.phones[-1].first_sound_s or 9.0) <= 1.5,
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
    """How long the line had been dead when that was noticed."""
    phone = outcome.phone.phone
    dead_s = next(at_s for at_s, what in phone.events if what == "the line is dead")
    moments = {moment["what"]: moment["at_s"] for moment in outcome.record["timeline"]}
    return float(moments["line lost"] - moments["answered"] - dead_s)


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
