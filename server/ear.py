"""Everything that is found out from caller audio before the model hears it.

One object per call, fed payload as it comes: it finds speech, tells echoes of the agent from it,
decides whether the agent has to stop for it, and at the beginning of a call keeps the model from
hearing a mere hello. It has no clock and does no I/O; what it finds is given back in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from server.opening import Opening
from server.playout import Playout
from server.voice_activity import (
    FRAME_BYTES,
    FRAME_S,
    LINE_RATE_HZ,
    BargeIn,
    Echo,
    Frame,
    SpeechEnded,
    SpeechStarted,
    Stop,
    VoiceActivity,
    loudness,
)

SILENCE = b"\xff" * FRAME_BYTES
MAX_JITTER_S = 1.0
"""A network that is later than this has lost something."""
DRIFT = 0.002
"""Of the lateness of each chunk that is taken for the clocks' and not the network's."""


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
    found: tuple[SpeechStarted | SpeechEnded | Stop, ...] = ()


class Ear:
    """The caller's side of one call, judged locally.

    Args:
        playout: What the caller hears of the agent.
        opening: The beginning of the call.
        mode: Who decides about interruptions.
        end_silence_s: Silence that ends a turn.
        confirm_s: Voiced speech that makes an interruption certain (mode ``LOCAL``).
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
        self._playout = playout
        self._opening = opening
        self._mode = mode
        self._voice = VoiceActivity(end_silence_s=end_silence_s)
        self._echo = Echo()
        self._barge_in = (
            BargeIn(confirm_s=confirm_s)
            if mode is BargeInMode.LOCAL
            else BargeIn(confirm_s=self.BOTH_CONFIRM_S, agree_s=self.AGREE_S)
        )
        self._last_speech_at = float("-inf")
        self._heard_at = float("-inf")
        self.echo_frames = 0

    @property
    def caller_speaks(self) -> bool:
        """Whether the caller is in the middle of a turn."""
        return self._voice.speaking

    @property
    def has_echo(self) -> bool:
        """Whether the agent's voice comes back on this line."""
        return self._echo.delay_frames is not None

    def spoke_since(self, at: float) -> bool:
        """Whether the caller themselves was heard speaking after this time."""
        return self._last_speech_at > at

    def agent_cut(self) -> None:
        """The agent has been cut; nothing is held any more."""
        self._barge_in.settled()

    def hear(self, payload: bytes, at: float) -> Heard:
        """Take caller audio.

        Args:
            payload: Mu-law at 8 kHz, any length.
            at: When its last sample was received.
        """
        found: list[SpeechStarted | SpeechEnded | Stop] = []
        echoes: list[int] = []
        frames = self._voice.frames(payload, self._steady(at, len(payload) / LINE_RATE_HZ))
        for number, frame in enumerate(frames):
            echo = self._is_echo(frame)
            if echo:
                echoes.append(number)
            self._judge(frame, echo, found)
        if echoes and len(payload) == len(frames) * FRAME_BYTES:
            # The model would take the agent's own voice for the caller's, and interrupt itself.
            self.echo_frames += len(echoes)
            payload = b"".join(
                SILENCE if number in echoes else frame.payload
                for number, frame in enumerate(frames)
            )
        return Heard(self._opening.hear(payload, at), tuple(found))

    def _steady(self, at: float, duration_s: float) -> float:
        """When audio that came at some time would have come on a network without jitter.

        What comes late was not spoken late: its time follows from what came before it. Only what
        comes early says something about the line, and slowly the drift between the two clocks.
        """
        expected = self._heard_at + duration_s
        if at - expected > MAX_JITTER_S:
            expected = at  # the stream has just begun, or audio was lost
        self._heard_at = min(at, expected + DRIFT * (at - expected))
        return self._heard_at

    def _is_echo(self, frame: Frame) -> bool:
        if self._mode is BargeInMode.MODEL:
            return False
        playout = self._playout
        if not playout.is_playing(frame.at - FRAME_S) and not self._echo_tail(frame.at):
            self._echo.pause()
            return False
        knew = self.has_echo
        played = loudness(playout.played(frame.at, FRAME_BYTES))
        echo = self._echo.hear(frame.loudness, played)
        if self.has_echo and not knew:
            # What has been heard up to now was the agent, too.
            self._voice.forget()
            self._opening.was_echo()
        return echo

    def _echo_tail(self, at: float) -> bool:
        """Whether an echo may still come back of what has been played."""
        longest_s = (Echo.MAX_DELAY_FRAMES + Echo.TAIL_FRAMES) * FRAME_S
        return at - self._playout.audible_until(at) < longest_s

    def _judge(
        self, frame: Frame, echo: bool, found: list[SpeechStarted | SpeechEnded | Stop]
    ) -> None:
        speech = frame.speech and not echo
        if speech:
            self._last_speech_at = frame.at
        event = self._voice.hear(frame, echo=echo)
        if isinstance(event, SpeechStarted):
            self._opening.speech_started(event.at)
            found.append(event)
        elif isinstance(event, SpeechEnded):
            self._opening.speech_ended(frame.at)
            found.append(event)
        if self._mode is not BargeInMode.MODEL and not self._opening.holding:
            heard = self._playout.is_playing(frame.at)
            if stop := self._barge_in.hear(frame, speech=speech, agent_heard=heard):
                found.append(stop)
