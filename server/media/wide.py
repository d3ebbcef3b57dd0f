"""What a telephone line would take from a call's sound, kept beside the mu-law it belongs to.

Everything that decides (ear, playout, recordings) goes by mu-law at 8 kHz. Where both ends have
more than that, this finds, for any piece of it that is passed on, the samples it was made of.
"""

from __future__ import annotations

from collections import deque

from codec import MulawDecoder
from codec.line import BYTES_PER_S, SILENCE

SAID_RATIO, HEARD_RATIO = 6, 4
"""Bytes for one of mu-law: of agent audio at 24 kHz, and of caller audio at 16 kHz."""
MAX_SAID_BYTES = 600 * BYTES_PER_S * SAID_RATIO
"""Ten minutes of what the agent says, as much as waits to be played at most."""
KEPT_SAID_BYTES = 32 * BYTES_PER_S * SAID_RATIO
"""Behind what has been sent: an agent that was held goes on there; no stream is sent more ahead."""
MAX_ROUNDED_BYTES = 480
"""10 ms: an encoder that has taken so many samples may have given out fewer yet."""
MAX_HEARD_BYTES = 14 * BYTES_PER_S
"""Of mu-law: more than is ever withheld from the model at a call's opening."""


class _Turn:
    """One turn of the agent's, as far as it may still be sent."""

    def __init__(self, *, dropped_bytes: int) -> None:
        self.pcm = bytearray()
        self.dropped_bytes = dropped_bytes  # before them
        self.taken_bytes = 0  # how far it has been sent
        self.is_broken = False


class Wide:
    """One call's sound beside its mu-law, both ways; no I/O and no clock."""

    def __init__(self) -> None:
        self._turns: dict[int, _Turn] = {}
        self._said_bytes = 0
        self._heard: deque[tuple[bytes, bytes]] = deque()
        self._heard_bytes = 0

    # -- what the agent says ---------------------------------------------------------------

    def said(self, turn: int, at: int, pcm: bytes) -> None:
        """The agent has said this, which was queued as mu-law.

        Args:
            turn: The agent's turn.
            at: Where in it that begins, in bytes of mu-law.
            pcm: 16-bit samples at 24 kHz.
        """
        if (kept := self._turns.get(turn)) is None:
            kept = self._turns[turn] = _Turn(dropped_bytes=at * SAID_RATIO)
        expected = kept.dropped_bytes + len(kept.pcm)
        is_gap = abs(at * SAID_RATIO - expected) > MAX_ROUNDED_BYTES
        kept.is_broken = kept.is_broken or is_gap or self._said_bytes + len(pcm) > MAX_SAID_BYTES
        if not kept.is_broken:  # what came after a gap would not be found at its place
            kept.pcm += pcm
            self._said_bytes += len(pcm)

    def take(self, turn: int, at: int, size: int) -> bytes:
        """What is sent in the place of a piece of a turn; empty if that is not known here.

        Args:
            turn: The agent's turn.
            at: Where the piece begins, in bytes of the turn's mu-law.
            size: Its bytes of mu-law.
        """
        self._forget_before(turn)
        if (kept := self._turns.get(turn)) is None:
            return b""
        kept.taken_bytes = max(kept.taken_bytes, (at + size) * SAID_RATIO)
        begin = at * SAID_RATIO - kept.dropped_bytes
        end = begin + size * SAID_RATIO
        if begin < 0 or begin >= len(kept.pcm):
            return b""
        piece = bytes(kept.pcm[begin:end])
        if (unneeded := end - 2 * KEPT_SAID_BYTES) > 0:  # seldom, as it moves all the rest
            unneeded += KEPT_SAID_BYTES
            del kept.pcm[:unneeded]
            kept.dropped_bytes += unneeded
            self._said_bytes -= unneeded
        return piece

    def _forget_before(self, turn: int) -> None:
        """Of the turns before this one keep what was sent, while the caller may not have heard it.

        A newer turn is sent ahead while an older one is heard, and a hold takes both back.
        """
        sent_after = 0
        for number in sorted(self._turns, reverse=True):
            kept = self._turns[number]
            if number < turn:
                unsent_from = max(0, kept.taken_bytes - kept.dropped_bytes)
                if sent_after >= KEPT_SAID_BYTES or not unsent_from:
                    unsent_from = 0
                    del self._turns[number]
                self._said_bytes -= len(kept.pcm) - min(unsent_from, len(kept.pcm))
                del kept.pcm[unsent_from:]
            sent_after += kept.taken_bytes

    # -- what the caller says --------------------------------------------------------------

    def heard(self, payload: bytes, pcm: bytes) -> None:
        """The caller has said this.

        Args:
            payload: Mu-law, as everybody else hears it.
            pcm: The same as 16-bit samples at 16 kHz; empty if there is no more than that.
        """
        self._heard.append((payload, pcm))
        self._heard_bytes += len(payload)
        while self._heard_bytes > MAX_HEARD_BYTES:
            self._heard_bytes -= len(self._heard.popleft()[0])

    def decode(self, payload: bytes, decoder: MulawDecoder) -> bytes:
        """What the model is to hear for caller audio that ends with what was heard last.

        What has become of a chunk since (silence, where it was an echo) is decoded from mu-law.
        """
        parts: list[tuple[bytes, bytes]] = []
        left = len(payload)
        for was, pcm in reversed(self._heard):
            if (begin := left - len(was)) < 0:
                break
            part, left = payload[begin:left], begin
            parts.append((part, pcm if part == was else b""))
        parts.append((payload[:left], b""))
        return b"".join(pcm or _decoded(part, decoder) for part, pcm in reversed(parts))


def _decoded(payload: bytes, decoder: MulawDecoder) -> bytes:
    if payload == SILENCE * len(payload):
        return bytes(len(payload) * HEARD_RATIO)
    return decoder.decode(payload)
