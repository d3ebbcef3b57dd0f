"""How a simulated model behaves: healthy, or at fault in one of the ways that were seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from websockets.frames import Close

from server.model import AGENT_RATE_HZ


@dataclass(frozen=True, slots=True)
class Drop:
    """The connection ends in the middle of what the agent says."""

    turn: int
    """Number of the agent turn, from 1 (the greeting), counted over resumed connections."""
    after_s: float
    """Seconds of that turn's audio sent before."""
    code: int
    """WebSocket close code; 1006 is a connection cut without a word."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A function the model calls, declared or not."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScriptedTurn:
    """What the model makes of one turn of the caller's, where a script says it word for word."""

    hears: str = ""
    """What its recogniser tells; empty for how long it was."""
    calls: tuple[FunctionCall, ...] = ()
    """Functions that it calls first, one after the other."""
    says: str = ""
    """What it says then, in a sound that is no language."""


@dataclass(frozen=True, slots=True)
class ModelScript:
    """How the model behaves; the defaults are a healthy one, quick for a test's sake."""

    setup_delay_s: float = 0.1
    """Seen in the field: 0.1 to 1.1 s."""
    reply_delay_s: float = 0.3
    """From the end of the caller's turn to the first audio."""
    speed: float = 4.4
    """How much faster than real time the audio comes, as measured on 3.8."""
    refuse_setup: Close | None = None
    """Close instead of ``setupComplete``, whatever the set-up."""
    refuse_handshake: tuple[int, str] | None = None
    """Answer the WebSocket handshake with this HTTP status and body."""
    refuse_handles: Close | None = None
    """Close when a session is to be resumed: its handle is lost."""
    pong_delay_s: float = 0.0
    """How late pings are answered: 8 to 30 s were seen from a service that was well."""
    drop: Drop | None = None
    go_away_at_s: float | None = None
    """Seconds after ``setupComplete`` at which ``goAway`` is sent."""
    go_away_left_s: float = 10.0
    """The ``timeLeft`` it announces, after which the connection is closed."""
    silent_turns: frozenset[int] = frozenset()
    """Agent turns that never come: the socket stays open and nothing is sent."""
    empty_turns: frozenset[int] = frozenset()
    """Agent turns that complete without any audio."""
    quiet_turns: frozenset[int] = frozenset()
    """Agent turns whose audio is all there, and so faint that nobody hears it."""
    stalled_turns: frozenset[int] = frozenset()
    """Agent turns that stop in the middle of the audio and are never completed."""
    early_turns: frozenset[int] = frozenset()
    """Agent turns whose ``turnComplete`` comes in the middle of the audio."""
    start_speech_s: float = 0.08
    """Loud audio that it takes for the beginning of a caller's turn."""
    heals: bool = True
    """Whether a new connection in mid-call finds a healthy service; if not, the same faults."""
    only_model: str = ""
    """The model that behaves so, if all others are well."""
    tool_calls: int = 0
    """Functions called, all at once, before each answer to speech, if the set-up declares any."""
    functions: tuple[FunctionCall, ...] = ()
    """More that are called with them, whatever the set-up declares."""
    fills: frozenset[str] = frozenset({"save_outcome"})
    """Functions called once, before the first answer to speech, if the set-up declares them: what
    an agent that listens would have had to say by then."""
    before_functions: str = ""
    """What it says, in the same turn, before it calls any."""
    result_delay_s: float = 0.0
    """From the last of their results to the first audio after it."""
    function_turns: frozenset[int] = frozenset()
    """Agent turns in which functions are called; empty for every answer to speech."""
    cancel_tool_calls: bool = False
    """Whether every other one of those calls is taken back at once."""
    thinking_turns: frozenset[int] = frozenset()
    """Agent turns that only say that an answer is on its way: they complete as ``IN_PROGRESS``, and
    the answer is the next turn."""
    thinking_s: float = 6.0
    """How long that takes."""
    forgets: bool = False
    """Whether it never comes."""
    tells_error: Mapping[str, Any] | None = None
    """Sent as ``error`` instead of ``setupComplete``; the socket stays open."""
    greeting: str = ""
    """What it says first; empty for the recorded one."""
    turns: tuple[ScriptedTurn, ...] = ()
    """Its answers to the caller's first turns; after these it says back what it hears."""
    audio_label: str = f"audio/pcm;rate={AGENT_RATE_HZ}"
    audio_rate_hz: int = AGENT_RATE_HZ
    """What its audio is called, and what it is."""


def refused(code: int, reason: str) -> ModelScript:
    """A service that refuses every session: with a close code, or an HTTP status below 1000."""
    if code < 1000:
        return ModelScript(refuse_handshake=(code, reason))
    return ModelScript(refuse_setup=Close(code, reason))


ANSWERS = ModelScript()
MODEL_SCRIPTS: Mapping[str, ModelScript] = {
    "answers": ANSWERS,
    "go-away": ModelScript(go_away_at_s=6.0, go_away_left_s=15.0),
    "drop-1006": ModelScript(drop=Drop(turn=2, after_s=0.5, code=1006)),
    "drop-1011": ModelScript(drop=Drop(2, 0.5, 1011, "Internal error encountered.")),
    "silent-model": ModelScript(silent_turns=frozenset(range(2, 100))),
    "deaf-model": ModelScript(silent_turns=frozenset(range(2, 1_000)), heals=False),
    "deaf-main-model": ModelScript(
        silent_turns=frozenset(range(2, 1_000)), heals=False, only_model="gemini-3.8-live"
    ),
    "hard-of-hearing": ModelScript(start_speech_s=0.4),
    "empty-turn": ModelScript(empty_turns=frozenset({2})),
    "slow-model": ModelScript(speed=0.8, reply_delay_s=1.2),
    "quiet-turn": ModelScript(quiet_turns=frozenset({2})),
    "stalled-turn": ModelScript(stalled_turns=frozenset({2})),
    "early-turn-complete": ModelScript(early_turns=frozenset({2})),
    "quota": ModelScript(
        refuse_setup=Close(1011, "You exceeded your current quota, please check your plan.")
    ),
    "quota-in-call": ModelScript(
        drop=Drop(2, 0.5, 1011, "You exceeded your current quota, please check your plan.")
    ),
    "no-credits": refused(1011, "Your prepayment credits are depleted."),
    "bad-key": refused(1007, "API key expired. Please renew the API key."),
    "no-permission": refused(
        403, '{"error":{"code":403,"status":"PERMISSION_DENIED","message":"Permission denied."}}'
    ),
    "bad-setup": ModelScript(refuse_setup=Close(1007, "Request contains an invalid argument.")),
    "late-pong": ModelScript(pong_delay_s=30.0),
    "lost-handle": ModelScript(
        drop=Drop(turn=2, after_s=0.5, code=1006),
        refuse_handles=Close(1008, "Requested entity was not found."),
    ),
    "tool-storm": ModelScript(tool_calls=8, cancel_tool_calls=True),
    "thinks": ModelScript(thinking_turns=frozenset({2})),
    "forgets": ModelScript(thinking_turns=frozenset({2}), forgets=True),
    "told-error": ModelScript(
        tells_error={"code": 400, "message": "Invalid value.", "status": "INVALID_ARGUMENT"}
    ),
    "other-rate": ModelScript(audio_label="audio/PCM; rate=16000", audio_rate_hz=16_000),
    "hangs-up": ModelScript(functions=(FunctionCall("hang_up"),)),
    "transfers": ModelScript(
        functions=(FunctionCall("transfer", {"destination": "sales"}),),
        function_turns=frozenset({2}),
    ),
    "presses-keys": ModelScript(
        functions=(FunctionCall("send_dtmf", {"digits": "1w2"}),), function_turns=frozenset({2})
    ),
}
"""Scripts by the name the settings and the demo know them under."""
