"""What has been said to a model and may have to be said again: no socket, no clock."""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from itertools import takewhile

import msgspec

from codec import decode_mulaw
from server.model import (
    CALLER_RATE_HZ,
    ToolResult,
)

PCM_BYTES_PER_S = 2 * CALLER_RATE_HZ
MAX_KEPT_S = 10.0
"""Caller audio kept for a new connection once it has been sent; older makes room for newer."""
MAX_WAITING_S = 13.0
"""The same while it waits to be sent: all that the beginning of a call holds, up to 12 s, comes at
once, and more behind it."""
MAX_KEPT_INPUTS = 2_000
"""Inputs kept for a new connection, for a carrier may send its audio in tiny chunks."""
MAX_INPUT_BYTES = PCM_BYTES_PER_S // 10
"""100 ms: the longest input chunk the model's guide recommends."""
PRE_ROLL_S = 0.3
"""Said again from before the first sound, or its beginning would be missing."""
LOUD = 1_000
"""Peak of a chunk that is not silence, of 32,767: speech on a telephone is well above it."""
CERTAIN_AFTER_S = 0.5
"""What was sent so shortly before a handle or the end of a turn may not have been noticed."""
PCM_PER_PAYLOAD = 2 * CALLER_RATE_HZ // 8_000
"""Bytes of pcm that become of a byte of payload."""
MAX_PASSED_BYTES = MAX_INPUT_BYTES // PCM_PER_PAYLOAD
_LOUD_CODES = bytes(
    code
    for code, level in enumerate(memoryview(decode_mulaw(bytes(range(256)))).cast("h"))
    if abs(level) >= LOUD
)
MAX_KEPT_WORDS = 256 * 1024
"""Characters and bytes, about, of texts and tool answers that are kept once they have been sent."""


class Passed(msgspec.Struct, frozen=True, gc=False):
    """Caller audio that the media path has sent: kept as it came, a quarter of the pcm."""

    payload: bytes
    """Mu-law at 8 kHz."""


class Edge(Enum):
    """Where a turn of the caller's begins or ends, for connections that are told."""

    BEGINS = auto()
    ENDS = auto()


Input = bytes | Passed | Edge | str | tuple[ToolResult, ...]
"""Caller audio (pcm, or the payload it was made from), text, answers to tool calls."""


def word_bytes(content: Input) -> int:
    """About how much whatever is not audio takes."""
    if isinstance(content, str):
        return len(content)
    if isinstance(content, tuple):
        return sum(len(msgspec.json.encode(result.response)) for result in content)
    return 0


def audio_bytes(content: Input) -> int:
    """How much caller audio this is, in bytes of pcm; 0 for whatever is not audio."""
    if isinstance(content, Passed):  # as nearly all is
        return PCM_PER_PAYLOAD * len(content.payload)
    return len(content) if isinstance(content, bytes) else 0


class UnansweredInput:
    """All that was said to the model and that it has not answered yet, in order.

    A new connection is told it again: what waits because there was no connection, and what was
    sent and is covered neither by an answer nor by the handle that the session is resumed with.

    Positions are numbers to hand back and to compare: each input has the next one.

    Attributes:
        lost_bytes: Caller audio that had to make room before it was ever sent.
        reaches_back: Whether all sound since the last answer was said again to the newest
            connection: what is recognised then is no less than what was recognised before.
    """

    def __init__(
        self, max_kept_s: float = MAX_KEPT_S, max_waiting_s: float = MAX_WAITING_S
    ) -> None:
        self.lost_bytes = 0
        self.reaches_back = True
        self._max_bytes = int(max_kept_s * PCM_BYTES_PER_S)
        self._max_waiting_bytes = int(max_waiting_s * PCM_BYTES_PER_S)
        self._newest = 0
        self._newest_sent = 0
        self._sent: deque[tuple[int, Input]] = deque()
        self._being_sent: list[tuple[int, Input]] = []
        self._waiting: list[tuple[int, Input]] = []
        self._audio_bytes = 0  # in all three
        self._word_bytes = 0  # of what has been sent
        self._answered = 0
        self._remembered = 0  # by the session that the handle stands for
        self._forgotten = 0  # up to here: the newest sound that has made room

    def put(self, content: Input) -> None:
        """Add what is to be said next."""
        self._newest += 1
        self._waiting.append((self._newest, content))
        self._audio_bytes += audio_bytes(content)
        if self._audio_bytes > self._max_bytes or self._is_crowded:
            self._make_room()

    def passed(self, payload: bytes) -> None:
        """Add caller audio that is on its way already, before all that waits."""
        for start in range(0, len(payload), MAX_PASSED_BYTES):
            self._newest += 1
            self._newest_sent = self._newest
            piece = Passed(payload[start : start + MAX_PASSED_BYTES])
            self._sent.append((self._newest, piece))
        self._audio_bytes += PCM_PER_PAYLOAD * len(payload)
        if self._audio_bytes > self._max_bytes or self._is_crowded:
            self._make_room()

    def take(self) -> Input | None:
        """Take the next message to be sent, of at most 100 ms of audio; None if all is sent."""
        if not self._waiting:
            return None
        content = self._take_one()
        if not isinstance(content, bytes) or not self._waiting:
            return content
        joined = bytearray(content)
        while self._waiting:
            following = self._waiting[0][1]
            if not isinstance(following, bytes):
                break
            if len(joined) + len(following) > MAX_INPUT_BYTES:
                break
            joined += following
            self._take_one()
        return bytes(joined)

    @property
    def is_waiting(self) -> bool:
        """Whether something has not been sent yet."""
        return bool(self._waiting)

    def taken_is_sent(self) -> None:
        """What was taken last is on its way; without this it will be said again."""
        if self._being_sent:
            self._newest_sent = max(self._newest_sent, self._being_sent[-1][0])
        self._sent.extend(self._being_sent)
        self._word_bytes += sum(word_bytes(content) for _, content in self._being_sent)
        self._being_sent.clear()
        while self._word_bytes > MAX_KEPT_WORDS:
            self._drop(self._sent)

    def sent_up_to(self, lag_s: float = 0.0) -> int:
        """The position of what was sent last, or of what was sent so much audio before."""
        room = int(lag_s * PCM_BYTES_PER_S)
        for number, content in reversed(self._sent):
            room -= audio_bytes(content)
            if room < 0 or not lag_s:
                return number
        return self._answered

    def answered(self, position: int) -> list[ToolResult]:
        """The model has answered all that was put in up to here.

        Returns:
            The answers to tool calls among it.
        """
        self._answered = max(self._answered, position)
        results: list[ToolResult] = []
        while self._sent and self._sent[0][0] <= self._answered:
            content = self._sent[0][1]
            if isinstance(content, tuple):
                results += content
            self._drop(self._sent)
        return results

    def remembered(self, position: int) -> None:
        """A resumed session will know all that was put in up to here."""
        self._remembered = max(self._remembered, position)

    def rewind(self, *, resumed: bool) -> int:
        """Say again to a new connection what it does not know, but not the silence before the first
        sound, be it before words that it has to know, or after them.

        Returns:
            Bytes of caller audio that will be sent once more.
        """
        if not resumed:
            self._remembered = self._answered
        start = max(self._answered, self._remembered)
        self._waiting[:0] = self._being_sent
        self._being_sent.clear()
        again: deque[tuple[int, Input]] = deque()
        while self._sent and self._sent[-1][0] > start:
            again.appendleft(self._sent.pop())
            self._word_bytes -= word_bytes(again[0][1])
        quiet: deque[tuple[int, Input]] = deque()  # and words
        while again and not is_sound(again[0][1]):
            quiet.append(again.popleft())
        self.reaches_back = self._forgotten <= self._answered and not any(
            number > self._answered and is_sound(content) for number, content in self._sent
        )
        while quiet and audio_bytes(quiet[0][1]):
            self._sent.append(quiet.popleft())
        words = [item for item in quiet if not audio_bytes(item[1])]
        before, before_bytes = quiet if words else self._sent, 0
        while before and again and before_bytes < PRE_ROLL_S * PCM_BYTES_PER_S:
            number, content = before[-1]
            if number <= start or not audio_bytes(content):
                break
            before_bytes += audio_bytes(content)
            again.appendleft(before.pop())
        self._audio_bytes -= sum(audio_bytes(content) for _, content in quiet)
        self._waiting[:0] = [*words, *again]
        return sum(audio_bytes(content) for _, content in again)

    def sounded_within(self, lag_s: float) -> bool:
        """Whether so much of the audio that was sent last is anything but silence."""
        recent = self.sent_up_to(lag_s)
        newest_first = takewhile(lambda item: item[0] > recent, reversed(self._sent))
        return any(audio_bytes(one) and is_loud(one) for _, one in newest_first)

    def has_sound(self) -> bool:
        """Whether anything but silence waits to be sent."""
        return any(
            is_loud(one) if audio_bytes(one) else not isinstance(one, Edge)
            for _, one in self._waiting
        )

    @property
    def _is_crowded(self) -> bool:
        return len(self._sent) + len(self._waiting) > MAX_KEPT_INPUTS

    def _take_one(self) -> Input:
        item = self._waiting.pop(0)
        self._being_sent.append(item)
        return item[1]

    def _make_room(self) -> None:
        while self._sent and (self._audio_bytes > self._max_bytes or self._is_crowded):
            self._note_forgotten(*self._sent[0])
            self._drop(self._sent)
        index = 0
        while index < len(self._waiting) and (
            self._audio_bytes > self._max_waiting_bytes or self._is_crowded
        ):
            number, content = self._waiting[index]
            if size := audio_bytes(content):
                if number > self._newest_sent:
                    self.lost_bytes += size
                self._note_forgotten(number, content)
                self._audio_bytes -= size
                del self._waiting[index]
            else:
                index += 1  # words and tool answers are few, and worth more than old audio

    def _note_forgotten(self, number: int, content: Input) -> None:
        # To know of one is enough: nothing is looked at twice for this in a turn.
        if self._forgotten <= self._answered < number and is_sound(content):
            self._forgotten = number

    def _drop(self, items: deque[tuple[int, Input]]) -> None:
        content = items.popleft()[1]
        if size := audio_bytes(content):
            self._audio_bytes -= size
        else:
            self._word_bytes -= word_bytes(content)


def is_sound(content: Input) -> bool:
    """Whether this may be of a turn of the caller's: neither silence nor words."""
    return isinstance(content, Edge) or (audio_bytes(content) > 0 and is_loud(content))


def is_loud(content: Input) -> bool:
    """Whether a chunk of audio holds more than a telephone line's noise."""
    if isinstance(content, Passed):
        return len(content.payload.translate(None, _LOUD_CODES)) < len(content.payload)
    pcm = content
    assert isinstance(pcm, bytes)
    # Every fourth sample shows the loudness of speech, at a quarter of the cost.
    samples = memoryview(pcm[: len(pcm) // 2 * 2]).cast("h")[::4]
    return len(samples) > 0 and (max(samples) >= LOUD or min(samples) <= -LOUD)
