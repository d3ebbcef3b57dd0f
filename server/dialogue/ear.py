"""Everything that is found out from caller audio before the model hears it.

One object per call, fed payload as it comes: it finds speech, tells echoes of the agent from it,
decides whether the agent has to stop for it (all of that is :mod:`codec.ear`), and at the beginning
of a call keeps the model from hearing a mere hello. It has no clock and does no I/O; what it finds
is given back in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import codec.ear
from codec.ear import EchoFound, SpeechEnded, SpeechStarted, Stop
from server.dialogue.opening import Opening
from server.dialogue.playout import Playout

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

    Attributes:
        judge: What does the judging, for those who feed it themselves: see :meth:`take`.
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
    ) -> None:
        self._opening = opening
        alone = mode is BargeInMode.LOCAL
        self.judge = codec.ear.Ear(
            playout.timeline,
            barge_in=mode is not BargeInMode.MODEL,
            end_silence_s=end_silence_s,
            confirm_s=confirm_s if alone else self.BOTH_CONFIRM_S,
            agree_s=0.0 if alone else self.AGREE_S,
        )
        self.follow_opening()

    @property
    def caller_speaks(self) -> bool:
        """Whether the caller is in the middle of a turn."""
        return self.judge.caller_speaks

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
        return self.judge.spoke_since(at)

    def agent_cut(self) -> None:
        """The agent has been cut; nothing is held any more."""
        self.judge.agent_cut()

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
                case EchoFound():
                    self._opening.was_echo()
                    continue
                case SpeechStarted(at=at):
                    self._opening.speech_started(at)
                case SpeechEnded(known_at=known_at):
                    self._opening.speech_ended(known_at)
            found.append(event)
        return tuple(found)

    def follow_opening(self) -> None:
        """The opening may have changed: no interruptions while it holds what the caller says."""
        self.judge.judges_barge_in = not self._opening.holding
        self.judge.judges_after = self._opening.open_until
