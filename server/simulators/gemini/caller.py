"""The caller as the model hears them: their audio, and where their turns begin and end."""

from __future__ import annotations

import binascii
from array import array
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from server.model import CALLER_RATE_HZ
from server.simulators.gemini.schema import ServiceClosesError

CALLER_BYTES_PER_S = 2 * CALLER_RATE_HZ


class Hearing:
    """Where the caller's turns begin and end, by loudness; in audio time, so it needs no clock.

    Args:
        end_silence_s: Silence that ends a turn.
        start_speech_s: Loud audio that begins one.
    """

    LOUD = 1_000
    """Peak of a loud piece, of 32,767: speech on a telephone is well above, its noise below."""
    PIECE_BYTES = 2 * CALLER_RATE_HZ // 50
    """Loudness is judged every 20 ms."""
    KEPT_BEFORE_S = 0.2
    """Audio kept from before the start was certain, or the first sound would be missing."""
    MAX_TURN_S = 30.0

    def __init__(self, *, end_silence_s: float = 0.8, start_speech_s: float = 0.08) -> None:
        self.speaking = False
        self._end_silence_bytes = int(end_silence_s * CALLER_BYTES_PER_S)
        self.start_speech_bytes = int(start_speech_s * CALLER_BYTES_PER_S)
        self._kept_before_bytes = 2 * int(self.KEPT_BEFORE_S * CALLER_RATE_HZ)
        self._max_turn_bytes = int(self.MAX_TURN_S * CALLER_BYTES_PER_S)
        self._loud_bytes = 0
        self._quiet_bytes = 0
        self._turn = bytearray()

    def hear(self, pcm: bytes) -> Iterable[Literal["start"] | bytes]:
        """Take caller audio at 16 kHz.

        Yields:
            ``"start"`` when the caller has begun to speak, and the turn's pcm when it has ended.
        """
        for position in range(0, len(pcm), self.PIECE_BYTES):
            piece = pcm[position : position + self.PIECE_BYTES]
            # Every fourth sample shows the loudness of speech, at a quarter of the cost.
            samples = memoryview(piece).cast("h")[::4]
            loud = max(samples) >= self.LOUD or min(samples) <= -self.LOUD
            self._turn += piece
            if loud:
                self._loud_bytes += len(piece)
                self._quiet_bytes = 0
            else:
                self._quiet_bytes += len(piece)
                if not self.speaking:
                    self._loud_bytes = 0
            if not self.speaking:
                if self._loud_bytes >= self.start_speech_bytes:
                    self.speaking = True
                    yield "start"
                else:
                    del self._turn[: -self._kept_before_bytes - self._loud_bytes]
            elif (
                self._quiet_bytes >= self._end_silence_bytes
                or len(self._turn) >= self._max_turn_bytes
            ):
                yield self.end()

    def end(self) -> bytes:
        """End the turn here and return its pcm, without the silence at its end."""
        kept = len(self._turn) - max(0, self._quiet_bytes - self._kept_before_bytes)
        turn = bytes(self._turn[:kept])
        self._turn.clear()
        self._loud_bytes = self._quiet_bytes = 0
        self.speaking = False
        return turn


class CallerSide:
    """What one session has heard of its caller; no clock and no socket.

    Args:
        keep_heard_s: How much of the audio is kept.

    Attributes:
        heard: The audio, pcm at 16 kHz, as far as it is kept.
        heard_samples: All of it, counted.
        hearing: Tells turns from silence, unless the client does.
        is_manual: True if the client says when the caller speaks.
    """

    def __init__(self, keep_heard_s: float) -> None:
        self.heard = bytearray()
        self.heard_samples = 0
        self.hearing = Hearing()
        self.is_manual = False
        self._keep_heard_bytes = int(keep_heard_s * CALLER_BYTES_PER_S)
        self._manual_turn = bytearray()
        self._in_manual_turn = False

    def set_up(self, detection: Mapping[str, Any], start_speech_s: float) -> None:
        """Hear as the set-up's ``automaticActivityDetection`` asks for."""
        self.hearing = Hearing(
            end_silence_s=detection.get("silenceDurationMs", 800) / 1000,
            start_speech_s=start_speech_s,
        )
        self.is_manual = detection.get("disabled", False)

    def forget(self) -> None:
        """Let go of the audio, and keep no more of it."""
        self._keep_heard_bytes = 0
        self.heard.clear()

    def begin_manual_turn(self) -> None:
        """The client has said that the caller begins to speak."""
        self._in_manual_turn = True
        self._manual_turn.clear()

    def end_manual_turn(self) -> bytes:
        """The client has said that the caller's turn is over; returns its pcm."""
        self._in_manual_turn = False
        return bytes(self._manual_turn)

    def hear(self, blob: Mapping[str, str]) -> Iterable[Literal["start"] | bytes]:
        """Take an audio message of the client's.

        Returns:
            What :meth:`Hearing.hear` yields; nothing if the client says when the caller speaks.

        Raises:
            ServiceClosesError: It is no audio, or of a kind that the service does not take; or the
                client says when the caller speaks, and this is not then.
        """
        pcm = pcm_of(blob)
        self.heard_samples += len(pcm) // 2
        if len(self.heard) < self._keep_heard_bytes:
            self.heard += pcm
        if not self.is_manual:
            return self.hearing.hear(pcm)
        if not self._in_manual_turn:
            # As the service is reported to.
            raise ServiceClosesError(1007, "Audio was sent outside of an activity.")
        if len(self._manual_turn) < Hearing.MAX_TURN_S * CALLER_BYTES_PER_S:
            self._manual_turn += pcm
        return ()


def pcm_of(blob: Mapping[str, str]) -> bytes:
    """The pcm at 16 kHz in an audio message of the client's; raises ServiceClosesError."""
    kind, _, rate = blob.get("mimeType", "").partition(";rate=")
    try:
        encoded = blob.get("data", "").translate({0x2D: "+", 0x5F: "/"}).rstrip("=")
        pcm = binascii.a2b_base64(encoded + "=" * (-len(encoded) % 4), strict_mode=True)
    except ValueError:
        raise ServiceClosesError(
            1007, "Invalid value at 'realtime_input.audio.data' (TYPE_BYTES), Base64 decoding"
        ) from None
    if kind != "audio/pcm" or len(pcm) % 2:
        raise ServiceClosesError(1007, f"Unsupported audio: {kind}, {len(pcm)} bytes.")
    if rate == "8000":
        samples = array("h", pcm)
        doubled = array("h", bytes(2 * len(pcm)))
        doubled[::2] = doubled[1::2] = samples
        pcm = doubled.tobytes()
    return pcm
