"""How long the agent's audio gathers before it is played: chosen from how late it came before.

A model that sends faster than speech, over a network that does not stall, needs no cushion, and its
first chunk goes straight to the caller. Where audio came late before, a turn begins a little later
instead of having holes in it: as late as nine turns of ten would have needed. A turn that runs dry
all the same gathers some audio before it goes on, or it runs dry again with every chunk; but never
so long that the caller takes it for the end of the turn and speaks.

Lateness is measured against speech: a chunk is late by as much as it comes after the time at which
it would have been played, had the turn's first chunk been played on arrival. A turn that waits that
long has no gap. No clock: times are the owner's.
"""

from __future__ import annotations

from math import ceil, inf

from codec.ear import FRAME_BYTES, LOUD, loudness
from codec.line import BYTES_PER_S

MAX_START_S = 0.4
"""The longest that a first word waits: an answer takes a second or more anyway."""
MAX_PAUSE_S = 0.35
"""The longest that a turn which has run dry waits for more than the model does: speech has such
pauses within a sentence, and callers take up the word after about half a second."""
GATHER_S = 0.1
"""How long a turn that has run dry gathers, and twice as long each time that it does so again."""
LEAST_S = 0.01
"""Lateness that nobody hears."""
LEAST_AWAY_S = 0.04
"""Lateness of marks that says nothing: a frame of the telephone's, and jitter on their way back."""
MODEL_PAUSE_S = 1.0
"""No network is later than this: the model itself has paused, to think or to call a function; and
no gap that the carrier's network has made counts for more."""
THIN_S = 0.1
"""With less than this left to play, a turn that drips may pause where it is quiet."""
SHORTEST_S = 0.5
"""Turns with less audio than this say nothing about how late it comes."""

TURNS, SHARE = 10, 0.9
"""A call remembers so many turns, and wants so many of them without a gap."""
CALLS_TURNS, CALLS_SHARE = 40, 0.5
"""A process remembers so many turns of all its calls: a call begins with what was usual."""


class Lateness:
    """How late audio came, turn by turn, and how late it is to be expected.

    Args:
        turns: How many turns are remembered.
        share: How many of them a cushion is to be long enough for.
    """

    def __init__(self, turns: int = CALLS_TURNS, share: float = CALLS_SHARE) -> None:
        self._turns: list[float] = []
        self._most_turns = turns
        self._share = share

    def note(self, late_s: float) -> None:
        """A turn came so late."""
        self._turns.append(late_s)
        del self._turns[: -self._most_turns]

    @property
    def expected_s(self) -> float:
        """How late the next turn will come, as likely as the share says."""
        if not self._turns:
            return 0.0
        late_s = sorted(self._turns)[ceil(self._share * len(self._turns)) - 1]
        return late_s if late_s > LEAST_S else 0.0


class Cushion:
    """The wait before audio of one call, and what it is chosen from.

    Args:
        usual: How late it has come to all calls of the process; this call's turns are added.

    Attributes:
        until: Nothing that gathers goes out before; 0 when nothing gathers.
    """

    def __init__(self, usual: Lateness | None = None) -> None:
        self.until = 0.0
        self._usual = usual or Lateness()
        self._lately = Lateness(TURNS, SHARE)
        if expected_s := self._usual.expected_s:
            self._lately.note(expected_s)
        self._turn: int | None = None
        self._on_time_at = 0.0  # when the turn's first sample came, or would have
        self._made_s = 0.0
        self._late_s = self._silent_s = self._carrier_late_s = 0.0
        self._least_trip_s = inf
        self._wanted_s = 0.0
        self._longest_bytes = 0
        self._drips_after = 1
        self._gathered = 0  # how often, in this turn

    # -- what comes ------------------------------------------------------------------------

    def take(
        self,
        payload: bytes,
        turn: int,
        now: float,
        *,
        made_s: float,
        play_end: float,
        goes_on: bool,
    ) -> int:
        """Audio of a turn has come.

        Args:
            payload: The audio.
            turn: Its turn.
            now: When it came.
            made_s: How much of the turn came before.
            play_end: When the caller has heard all that was sent.
            goes_on: Whether it follows at once what the caller hears, or heard last.

        Returns:
            How many bytes of it are not to gather, but to go out at once in any case.
        """
        if made_s == 0.0:
            self._begin(turn, now, play_end)
        elif goes_on and now > play_end:
            self._run_dry(turn, made_s, now, play_end)
        else:
            self.came(turn, made_s, now)
            is_thin = goes_on and play_end - now < self.thin_s(turn)
            if is_thin and (place := quiet_place(payload)):
                self._pause(now, play_end + place / BYTES_PER_S)
                return place
        return 0

    def came(self, turn: int, made_s: float, now: float) -> None:
        """Audio of a turn has come, so much of which had come before."""
        if turn == self._turn:
            self._late_s = max(self._late_s, now - self._on_time_at - made_s)
            self._made_s = max(self._made_s, made_s)

    def hold(self, size: int, queued_bytes: int) -> None:
        """So many bytes gather, and with them so many in all, which may be enough.

        A model at the speed of speech is never ahead by more than a chunk. One that is sends
        faster, or in a burst after a stall, and need not be waited for.
        """
        self._longest_bytes = max(self._longest_bytes, size)
        if queued_bytes >= self._wanted_s * BYTES_PER_S + self._longest_bytes:
            self.until = 0.0

    def late_s(self, turn: int) -> float:
        """How late the latest audio of a turn has come from the model; 0 for an older turn."""
        return self._late_s if turn == self._turn else 0.0

    def thin_s(self, turn: int) -> float:
        """How little of a turn may be left to play before each chunk is to be taken here.

        0 unless the turn drips: then it will run dry, and had better pause where it is quiet.
        """
        return THIN_S if turn == self._turn and self._gathered > self._drips_after else 0.0

    def trip(self, seconds: float) -> None:
        """A mark came back so long after the caller should have heard what is before it.

        What is more than the shortest of the call is a gap that the carrier's network has made,
        in which the carrier had nothing to play; or the mark itself was late. One that comes before
        the caller can have heard that says nothing: it is our own clock that has stood.
        """
        if seconds < -LEAST_AWAY_S:
            return
        self._least_trip_s = min(self._least_trip_s, seconds)
        late_s = seconds - self._least_trip_s
        if late_s > LEAST_AWAY_S:
            self._carrier_late_s = max(self._carrier_late_s, min(late_s, MODEL_PAUSE_S))

    def another_line(self) -> None:
        """Marks come from another stream from now on, which may be farther away."""
        self._least_trip_s = inf

    # -- how long it waits -----------------------------------------------------------------

    def _begin(self, turn: int, now: float, play_end: float) -> None:
        if self._turn is not None and self._made_s >= SHORTEST_S:
            late_s = self._late_s + self._carrier_late_s
            self._lately.note(late_s)
            self._usual.note(late_s)
        self._drips_after = 1 if self._late_s <= MAX_START_S else -1
        self._turn, self._on_time_at = turn, now
        self._late_s = self._silent_s = self._carrier_late_s = self._made_s = 0.0
        self._gathered = 0
        wanted_s = min(MAX_START_S, self._lately.expected_s)
        if play_end < now + wanted_s:
            self._gather(wanted_s, now + wanted_s)

    def _run_dry(self, turn: int, made_s: float, now: float, play_end: float) -> None:
        if turn == self._turn and now - play_end > MODEL_PAUSE_S:
            self._on_time_at = now - made_s - self._late_s
        self.came(turn, made_s, now)
        self._silent_s += now - play_end
        if self._silent_s >= LEAST_S:
            self._silent_s = 0.0
            self._pause(now, play_end)

    def _pause(self, now: float, since: float) -> None:
        """Gather some audio in a silence that the caller hears since then, or will hear."""
        wanted_s = max(
            GATHER_S * 2**self._gathered,
            self._lately.expected_s - max(0.0, now - since),
        )
        self._gathered += 1
        self._gather(wanted_s, max(now, min(max(now, since) + wanted_s, since + MAX_PAUSE_S)))

    def _gather(self, wanted_s: float, until: float) -> None:
        self._wanted_s, self.until, self._longest_bytes = wanted_s, until, 0


def quiet_place(payload: bytes) -> int:
    """Where the last quiet frame of mu-law ends, in bytes; 0 if there is none.

    A pause there falls between two words, or before a consonant that begins with a silence.
    """
    for end in range(len(payload) - len(payload) % FRAME_BYTES, 0, -FRAME_BYTES):
        if loudness(payload[end - FRAME_BYTES : end]) < LOUD:
            return end
    return 0
