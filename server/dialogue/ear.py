"""Everything that is found out from caller audio before the model hears it.

One object per call, fed payload as it comes: it finds speech, tells echoes of the agent from it,
decides whether the agent has to stop for it (all of that is :mod:`codec.ear`), and at the beginning
of a call keeps the model from hearing a mere hello. It has no clock and does no I/O; what it finds
is given back in order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import codec.ear
from codec.ear import EchoFound, SpeechEnded, SpeechStarted, Stop, Suspected
from server.dialogue.opening import Opening
from server.dialogue.playout import Playout
from server.voice.judge import Judge
from server.voice.verdicts import Verdicts

Found = SpeechStarted | SpeechEnded | Stop


class BargeInMode(StrEnum):
    """Whose word counts when the caller speaks over the agent."""

    MODEL = "model"
    """The model's: the agent stops when it says so; 0.4 s after the caller began, or 1.5 s."""
    LOCAL = "local"
    """Ours: the agent stops at 60 ms, and it is cut as soon as that was certainly speech."""
    BOTH = "both"
    """We stop it, the model cuts it: what the model does not call an interruption was none."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of a piece of caller audio."""

    payload: bytes
    """What the model is to hear."""
    found: tuple[Found, ...] = ()


class Ear:
    """The caller's side of one call, judged locally.

    Args:
        playout: What the caller hears of the agent.
        opening: The beginning of the call.
        mode: Who decides about interruptions.
        end_silence_s: Silence that ends a turn.
        confirm_s: Voiced speech that makes an interruption certain (mode ``LOCAL``).
        voices: Tells voices from noise; None where a detector alone has to.

    Attributes:
        judge: What does the judging, for those who feed it themselves: see :meth:`take`.
        on_found: Called with what was found after the audio had gone by.
    """

    BOTH_CONFIRM_S = 0.8
    """In mode ``BOTH`` that much voice needs nobody's consent: a model that still has not noticed
    is one that does not notice at all."""
    AGREE_S = 1.0
    """How long after a short word the model may still call it an interruption."""

    def __init__(
        self,
        playout: Playout,
        opening: Opening,
        *,
        mode: BargeInMode,
        end_silence_s: float = 0.5,
        confirm_s: float = 0.2,
        voices: Judge | None = None,
    ) -> None:
        self._opening = opening
        alone = mode is BargeInMode.LOCAL
        barge_in = mode is not BargeInMode.MODEL
        confirm_s = confirm_s if alone else self.BOTH_CONFIRM_S
        agree_s = 0.0 if alone else self.AGREE_S
        self.judge = codec.ear.Ear(
            playout.timeline,
            barge_in=barge_in,
            end_silence_s=end_silence_s,
            confirm_s=confirm_s,
            agree_s=agree_s,
        )
        self.on_found: Callable[[tuple[Found, ...]], None] = _nobody
        self._voices = voices
        self._verdicts = Verdicts(
            barge_in=barge_in, end_silence_s=end_silence_s, confirm_s=confirm_s, agree_s=agree_s
        )
        if voices is not None:
            self.judge.rely_on_judge()
        self.follow_opening()

    @property
    def caller_speaks(self) -> bool:
        """Whether the caller is in the middle of a turn."""
        return self._verdicts.speaking if self.judge.judged else self.judge.caller_speaks

    @property
    def has_echo(self) -> bool:
        """Whether the agent's voice comes back on this line."""
        return self.judge.has_echo

    @property
    def echo_frames(self) -> int:
        """How many frames were no more than an echo, and silence to the model."""
        return self.judge.echo_frames

    def spoke_since(self, at: float) -> bool:
        """Whether the caller themselves was heard speaking after this time."""
        return self.judge.spoke_since(at) or self._verdicts.last_at > at

    def understood(self) -> None:
        """The model has understood what was said last: it was the caller who spoke."""
        self._verdicts.understood()

    def agent_cut(self) -> None:
        """The agent has been cut; nothing is held any more."""
        self.judge.agent_cut()
        self._verdicts.agent_cut()

    def hear(self, payload: bytes, at: float) -> Heard:
        """Take caller audio.

        Args:
            payload: Mu-law at 8 kHz, any length.
            at: When its last sample was received.
        """
        self.follow_opening()
        payload = self.judge.hear(payload, at)
        found = self.take() if self.judge.has_news else ()
        return Heard(self._opening.hear(payload, at), found)

    def take(self) -> tuple[Found, ...]:
        """What was found in audio that :attr:`judge` has been given without :meth:`hear`.

        Only for when the opening holds nothing (any more), or it would not see that audio.
        """
        found: list[Found] = []
        for event in self.judge.take_found():
            match event:
                case EchoFound(at=at):
                    self._opening.was_echo()
                    found += self._verdicts.was_echo(at)
                case Suspected():
                    if self._voices is not None:
                        self._voices.watch(self.judge, self)
                case _:
                    self._tell_opening(event)
                    found.append(event)
        return tuple(found)

    def _tell_opening(self, event: Found) -> None:
        match event:
            case SpeechStarted(at=at):
                self._opening.speech_started(at)
            case SpeechEnded(known_at=known_at):
                self._opening.speech_ended(known_at)

    # -- what the judge of voices tells ---------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether something has to be judged to its end, though nothing is suspicious any more."""
        return self._verdicts.is_open

    def hop(self, probability: float, at: float, level_dbfs: float) -> None:
        """So likely is it that the caller spoke in the 32 ms that were over then, so loud."""
        judge = self.judge
        heard, may_stop = judge.played.is_speaking(at), judge.judges_barge_in
        found = self._verdicts.hop(
            probability,
            at,
            level_dbfs=level_dbfs,
            agent_heard=heard,
            agent_until=judge.played.play_end,
            may_stop=may_stop,
            is_quiet=judge.room_loudness < codec.ear.LOUD,
            suspicious_s=judge.suspicious_s,
        )
        if not found:
            return
        for event in found:
            self._tell_opening(event)
            if isinstance(event, SpeechStarted) and event.at > judge.judges_after:
                judge.judges_barge_in = True
        self.on_found(tuple(found))

    def gone(self) -> None:
        """Nothing has been heard of the caller for long: their turn is over, and so is a hold."""
        if found := self._over():
            self.on_found(found)

    def line_over(self) -> tuple[Found, ...]:
        """The caller's line is over: says what ends with it.

        What comes on another line has nothing to do with it for a judge; a detector, which is told
        of every frame, finds the end of what it was in the middle of there.
        """
        if self._voices is None or not self.judge.judged:
            return ()
        self._voices.leave(self.judge)
        self.judge.rely_on_judge()  # whatever comes is suspicious anew
        return self._over()

    def _over(self) -> tuple[Found, ...]:
        found = self._verdicts.gone(self.judge.heard_at)
        for event in found:
            self._tell_opening(event)
        return tuple(found)

    def do_without(self) -> None:
        """Nobody tells voices from noise for the time being: a detector alone has to."""
        verdicts = self._verdicts
        self.judge.rely_on_detector(
            speaking=verdicts.speaking,
            holding=verdicts.holding,
            speech_s=verdicts.speech_s,
            last_at=verdicts.last_at,
            voiced_s=verdicts.voiced_s,
        )
        verdicts.speaking = verdicts.holding = False

    def close(self) -> None:
        """The call is over: nobody is told of what is found any more."""
        self.on_found = _nobody
        if self._voices is not None:
            self._voices.let_go(self.judge, self)

    def rely_again(self) -> bool:
        """Voices are told from noise again; False in the middle of a word."""
        return self.judge.rely_on_judge()

    def follow_opening(self) -> None:
        """The opening may have changed: no interruptions while it holds what the caller says."""
        self.judge.judges_barge_in = not self._opening.holding
        self.judge.judges_after = self._opening.open_until


def _nobody(found: tuple[Found, ...]) -> None:
    """Nobody listens yet."""
