"""What to send the caller and when: the agent's audio on its way to the carrier's buffer.

No I/O and no clock: every decision takes ``now``. The carrier buffers for us and plays at its own
pace, so audio is sent as it comes, at most ``lead_s`` ahead of what has been played; a barge-in
empties that buffer with one clear. Marks say what the caller has really heard: one about every
``mark_every_s`` of audio and one at each turn's end, named ``turn:milliseconds``, because a clear
echoes every outstanding mark at once (twilio: ``clear``) and those must be told from real ones.

The agent can also be held: the buffer is emptied as for a barge-in, but what was in it is kept, and
is sent again if the caller did not mean to interrupt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import inf

import msgspec

from codec.ear import Played
from codec.line import BYTES_PER_S
from server.carrier import CarrierCommand, Clear, SendAudio, SendMark
from server.dialogue.cushion import Cushion
from server.dialogue.key_tones import MAX_PIECE_BYTES, KeyTones, in_pieces
from server.dialogue.thinking import BACKGROUND, ThinkingSound

MAX_QUEUED_BYTES = 600 * BYTES_PER_S
"""Ten minutes that wait to be sent: longer than any answer, and as much as the carrier buffers."""
MAX_QUEUED = 50_000
"""Pieces of it, for a model whose chunks are tiny."""
EARLY_S = 0.5
"""A carrier's clock and ours do not drift so far apart within what it buffers."""
MAX_HOLD_S = 5.0
"""The agent is held for no longer, whoever forgets it: what it was held for is over by then, or was
no interruption. The ear decides within two seconds of the last sound."""
MAX_TURNS = 64
"""Turns that are still accounted for: those before were heard long ago."""


@dataclass(frozen=True, slots=True)
class _Queued:
    turn: int
    payload: bytes | None
    """None where the turn ends."""
    received_at: float
    gathers: bool = True
    """Whether it waits for what comes after it, while there is a cushion to be made."""


@dataclass(slots=True)
class _Turn:
    """One agent turn as the carrier plays it."""

    number: int
    sent_bytes: int = 0
    marked_bytes: int = 0
    finished: bool = False
    cut: bool = False
    starved_s: float = 0.0
    """How long the caller heard nothing in the middle of it, because nothing had come."""
    # Where we last knew what the caller had heard, and when that was.
    anchor_bytes: int = 0
    anchor_at: float = 0.0

    def heard_bytes(self, now: float) -> int:
        if self.cut:
            return self.anchor_bytes
        played = round((now - self.anchor_at) * BYTES_PER_S)
        return min(self.sent_bytes, self.anchor_bytes + max(0, played))

    @property
    def is_over(self) -> bool:
        return self.cut or (self.finished and self.anchor_bytes >= self.sent_bytes)


class HeardTurn(msgspec.Struct, frozen=True):
    """How much of a turn reached the caller's ear."""

    turn: int
    heard_s: float
    sent_s: float
    """Of it, what went to the carrier and was not taken back."""
    made_s: float
    """All of it that has come from the model."""
    cut: bool


class Playout:
    """Everything the agent says, from encoded payload to carrier commands.

    One owner calls it: the call's loops. ``push``, ``finish_turn`` and ``interrupt`` come from the
    model's side, ``next_command`` from the one task that writes to the carrier, ``mark_reached``
    from the carrier's events. It is long because what is sent, cleared, held and heard is one
    account: in two hands they would have to agree about every byte.

    Args:
        lead_s: How far ahead of the caller's ear audio may be sent.
        mark_every_s: How much audio lies between two marks.
        remember: Whether to keep what the caller has not heard yet, and the last moments of what
            they have: for :meth:`hold`, and for recordings.
        cushion: How long audio gathers that comes late.
        thinking: A sound for when the agent is at work; empty for none.

    Attributes:
        timeline: What the caller is hearing, piece by piece, and until when.
        cushion: How long audio gathers that comes late.
        keys: Tones of keys, which go before all that is queued.
        thinking: The sound for when the agent is at work.
    """

    def __init__(
        self,
        *,
        lead_s: float = 30.0,
        mark_every_s: float = 1.0,
        remember: bool = False,
        cushion: Cushion | None = None,
        thinking: bytes = b"",
    ) -> None:
        self._lead_s = self._most_lead_s = lead_s
        self._mark_every_bytes = round(mark_every_s * BYTES_PER_S)
        self.timeline = Played(remember=remember)
        self.keys = KeyTones()
        self.thinking = ThinkingSound(thinking)
        self._dies_away = b""  # of it
        self._queue: list[_Queued] = []
        self._queued_bytes = 0
        self._mark: SendMark | None = None
        self._clear = False
        self._held_until = -inf  # where it is held
        self._paused = False  # something of ours stood between two pieces of a turn
        self._holds = 0
        self._turns: list[_Turn] = []
        self._settled = 0  # of them, those at the beginning that are summed up
        self.cushion = cushion or Cushion()
        self._made: dict[int, int] = {}  # bytes of each turn
        self._forgotten = -1  # the newest turn of which nothing is known any more
        self._cut_up_to = -1  # turn 0 is what is played before the model has said anything
        self._marks_out: dict[str, float] = {}  # and when the caller has heard what is before it
        self._heard_before_bytes = 0  # of turns that are forgotten
        self.dropped_bytes = 0
        """Late or queued audio of cut turns that was not sent."""

    # -- from the model's side -------------------------------------------------------------

    def push(
        self, payload: bytes, turn: int, received_at: float = 0.0, *, to_nobody: bool = False
    ) -> bool:
        """Queue what the agent says; False if it was dropped: a turn that was cut, too much, or
        what is said to nobody.
        """
        is_full = (
            self._queued_bytes + len(payload) > MAX_QUEUED_BYTES or len(self._queue) > MAX_QUEUED
        )
        size, made_bytes, cushion = len(payload), self._made.get(turn, 0), self.cushion
        if turn > self._forgotten:
            if turn not in self._made and len(self._made) >= MAX_TURNS:
                del self._made[next(iter(self._made))]
            self._made[turn] = made_bytes + size
        if turn <= self._cut_up_to or is_full or to_nobody:
            self.dropped_bytes += size
            return False
        if received_at > 0.0:
            at_once = cushion.take(
                payload,
                turn,
                received_at,
                made_s=made_bytes / BYTES_PER_S,
                play_end=self.timeline.play_end,
                goes_on=not self._queue and self._is_under_way(turn),
            )
            if at_once:
                for piece in in_pieces(payload[:at_once]):
                    self._queue.append(_Queued(turn, piece, received_at, gathers=False))
                payload = payload[at_once:]
        for piece in in_pieces(payload):
            self._queue.append(_Queued(turn, piece, received_at))
        self._queued_bytes += size
        if cushion.until:
            cushion.hold(len(payload), self._queued_bytes)
        return True

    def finish_turn(self, turn: int) -> None:
        """All of this turn has been pushed: a last mark will say when it has been heard."""
        if turn > self._cut_up_to:
            self._queue.append(_Queued(turn, None, 0.0))
            self.cushion.until = 0.0

    def interrupt(self, turn: int, now: float) -> HeardTurn | None:
        """Cut this turn and every one before it, at what the caller has heard by now.

        What is queued is dropped, what the carrier holds is cleared by the next command, and what
        still arrives for these turns is dropped by :meth:`push`.

        Returns:
            The turn that was cut, one that only waits for more of it included; or None when the
            caller had already heard all there was.
        """
        self._cut_up_to = max(self._cut_up_to, turn)
        self.cushion.until = 0.0
        unsent_bytes = sum(len(item.payload or b"") for item in self._queue if item.turn <= turn)
        self._queue = [item for item in self._queue if item.turn > turn]
        self._queued_bytes -= unsent_bytes
        self.dropped_bytes += unsent_bytes
        # Without an outstanding mark or unmarked audio the carrier's buffer is known to be empty.
        live = [t for t in self._turns if t.number <= turn and not t.is_over]
        at_carrier = bool(self._marks_out) or any(t.marked_bytes < t.sent_bytes for t in live)
        at_carrier = at_carrier and not self.keys.are_sounding  # nothing but keys is there then
        cut: HeardTurn | None = None
        for played in live:
            played.anchor_bytes = played.heard_bytes(now)
            played.cut = True
            cut = self._heard(played, now)
        if at_carrier:
            self._clear = True
            self._forget_buffer(now)
        self._held_until = -inf
        if turn >= self.timeline.turn:
            self.timeline.goes_on = False
        return cut

    def hold(self, now: float) -> bool:
        """Fall silent at once, but forget nothing: :meth:`resume` goes on at the caller's ear.

        The carrier's buffer is cleared by the next command, and what it held goes back to the
        head of the queue. It goes on by itself after :data:`MAX_HOLD_S`.

        Returns:
            Whether there was anything to hold.
        """
        if (
            self.is_held
            or not self.timeline.remember
            or self.keys.are_sounding
            or not self.timeline.is_speaking(now)
        ):
            return False
        unheard: list[_Queued] = []
        for turn in reversed(self._turns):
            missing = turn.sent_bytes - turn.heard_bytes(now)
            if turn.is_over or (missing <= 0 and not turn.finished):
                continue
            if turn.finished:
                turn.finished = False
                unheard.insert(0, _Queued(turn.number, None, 0.0))
            sent_bytes = turn.sent_bytes
            kept = self.timeline.tail(max(0, missing), turn.number)
            turn.sent_bytes -= len(kept)
            unheard[:0] = [_Queued(turn.number, piece, 0.0) for piece in in_pieces(kept)]
            self._queued_bytes += sent_bytes - turn.sent_bytes
            turn.anchor_bytes, turn.anchor_at = turn.sent_bytes, now
            # What is at the carrier from here on is nothing, so there is nothing left to mark;
            # but a turn that was all sent still needs its last mark.
            if turn.sent_bytes < sent_bytes:
                turn.marked_bytes = turn.sent_bytes
            else:
                turn.marked_bytes = min(turn.marked_bytes, turn.sent_bytes - 1)
        self._queue = unheard + self._queue
        self._clear = True
        self._held_until, self._paused = now + MAX_HOLD_S, True
        self._holds += 1
        self._forget_buffer(now)
        return True

    def resume(self) -> None:
        """Go on where the caller stopped hearing: they did not mean to interrupt."""
        self._held_until = -inf

    @property
    def is_held(self) -> bool:
        """Whether the agent has fallen silent and may go on."""
        return self._held_until > -inf

    # -- towards the carrier ---------------------------------------------------------------

    def open(self, now: float, *, buffer_s: float = inf) -> None:
        """The stream has started: what was prepared while the phone rang may go out.

        Args:
            now: When it started.
            buffer_s: How much audio the carrier keeps: never so much is sent ahead, whatever the
                lead.
        """
        self._lead_s = min(self._most_lead_s, max(0.0, buffer_s - MAX_PIECE_BYTES / BYTES_PER_S))
        self.cushion.another_line()
        self.timeline.open = True
        self.timeline.play_end = max(self.timeline.play_end, now)

    def leave(self, now: float, *, waits: bool = False) -> HeardTurn | None:
        """The stream is over, but the call is not: what is left of every turn is lost.

        Args:
            now: Until when the caller may have heard it.
            waits: Whether turns of which nothing has been sent wait for the next stream.

        Returns:
            The turn that was cut by it, if any.
        """
        numbers = [turn.number for turn in self._turns]
        if not waits:
            numbers += [item.turn for item in self._queue]
        cut = self.interrupt(max(numbers), now) if numbers else None
        self.timeline.open = self._clear = False
        self._mark = None
        self._dies_away = b""
        self.keys.forget()
        self.thinking.forget()
        return cut

    def next_command(self, now: float) -> CarrierCommand | None:
        """What to send now, or None: then ask again at :meth:`next_due` or after a change."""
        if not self.timeline.open:
            return None
        if self._clear:
            self._clear = False
            return Clear()
        if self._mark is not None:
            mark, self._mark = self._mark, None
            return mark
        if self._dies_away:
            tail, self._dies_away = self._dies_away, b""
            return SendAudio(tail, turn=BACKGROUND)
        if self.thinking.is_on and (self._queue or self.keys or not self.thinking.wanted):
            self._dies_away = self.thinking.stop(now, self.timeline)
            if self._dies_away:
                return Clear()
        if self.keys:
            self.keys.give_up_lost_mark(self.timeline.play_end, now)
        if self.keys:
            return self._next_key_command(now)
        if now >= self._held_until:
            self.resume()
        while self._queue and not self.is_held:
            if now < self.next_due():
                return None
            item = self._queue.pop(0)
            if item.gathers:
                self.cushion.until = 0.0
            turn = self._turn(item.turn)
            if item.payload is None:
                turn.finished = True
                self.timeline.goes_on = False
                if turn.marked_bytes < turn.sent_bytes:
                    return self._mark_of(turn)
                continue
            at = turn.sent_bytes
            self._account(turn, item.payload, now)
            return SendAudio(item.payload, item.received_at, item.turn, at)
        is_free = not (self._queue or self.is_held)
        if is_free and (piece := self.thinking.next_piece(now, self.timeline)):
            self._paused = True
            return SendAudio(piece, turn=BACKGROUND)
        return None

    def _next_key_command(self, now: float) -> CarrierCommand | None:
        piece = self.keys.next_piece(is_playing=self.is_playing(now))
        if piece is None:
            return None
        payload, mark = piece
        self._paused = True
        self.timeline.play_end = max(now, self.timeline.play_end) + len(payload) / BYTES_PER_S
        if mark is not None:
            self._mark = SendMark(mark)
        return SendAudio(payload)

    def next_due(self) -> float:
        """When the lead allows the next piece to go out; infinity when nothing is queued."""
        if self.timeline.open and self.keys:
            return self.keys.next_due(self.timeline.play_end, marks_are_out=bool(self._marks_out))
        if not self.timeline.open:
            return inf
        if self.is_held:
            return self._held_until
        if not self._queue:
            return self.thinking.next_due(self.timeline)
        gathers_until = self.cushion.until if self._queue[0].gathers else 0.0
        return max(self.timeline.play_end - self._lead_s, gathers_until)

    # -- beside it -------------------------------------------------------------------------

    def passable_bytes(self, number: int, now: float) -> int:
        """How much more of a turn may go to the carrier without a command of ours.

        That is as far as its next mark and the lead allow, while nothing else is to be sent: 0 if
        there is anything to be decided about the next piece.
        """
        last, timeline = self._turns[-1] if self._turns else None, self.timeline
        if last is None or last.number != number or not last.sent_bytes or last.cut:
            return 0
        if last.finished or self._paused or self.is_held or self._clear or self._mark is not None:
            return 0
        if self._queue or self.keys or self.thinking.is_on or not timeline.open:
            return 0
        if now >= timeline.play_end - self.cushion.thin_s(number):
            return 0
        lead_s = self._lead_s - (timeline.play_end - now)
        unmarked_bytes = last.sent_bytes - last.marked_bytes
        return max(0, min(self._mark_every_bytes - unmarked_bytes, int(lead_s * BYTES_PER_S)))

    def passed(self, number: int, size: int, late_at: float) -> None:
        """The media path has sent so many bytes of a turn, which the timeline knows already.

        Args:
            number: The turn.
            size: How many.
            late_at: When the latest of it came, less the playing time of what came before it here.
        """
        turn, made_bytes = self._turn(number), self._made.get(number, 0)
        self.cushion.came(number, made_bytes / BYTES_PER_S, late_at)
        self._made[number] = made_bytes + size
        turn.sent_bytes += size
        self._mark_if_due(turn)

    # -- from the carrier ------------------------------------------------------------------

    def mark_reached(self, name: str, now: float) -> HeardTurn | None:
        """The carrier echoed a mark.

        Returns:
            The turn, if this was the last mark of a finished one: the caller has heard it all.
            None for any other mark, one that a clear brought back, or one that is not ours.
        """
        self.keys.mark_reached(name)
        if name not in self._marks_out:
            return None
        self.cushion.trip(now - self._marks_out.pop(name))
        self.timeline.marks_out = len(self._marks_out)
        number, milliseconds = (int(part) for part in name.split(":")[:2])
        turn = _of(self._turns, number)
        if turn is None or turn.cut:
            return None
        turn.anchor_bytes = milliseconds * (BYTES_PER_S // 1000)
        turn.anchor_at = now
        if not self.keys:  # what they take is in no turn
            _catch_up(self.timeline, turn, self._turns, now)
        if turn.finished and turn.anchor_bytes >= turn.sent_bytes // 8 * 8:
            turn.anchor_bytes = turn.sent_bytes
            return self._heard(turn, now)
        return None

    # -- what the caller hears -------------------------------------------------------------

    def heard_s(self, now: float) -> float:
        """Seconds of agent audio the caller has heard so far, over all turns."""
        live = self._turns[self._settled :]
        heard = self._heard_before_bytes + sum(turn.heard_bytes(now) for turn in live)
        return heard / BYTES_PER_S

    def heard_before(self, seconds: float) -> None:
        """So much agent audio the caller had heard when another process had the call."""
        self._heard_before_bytes += round(seconds * BYTES_PER_S)

    def turn_heard(self, number: int, now: float) -> HeardTurn | None:
        """How much of this turn the caller has heard; None if that is not known (any more)."""
        if (turn := _of(self._turns, number)) is not None:
            return self._heard(turn, now)
        cut = self._forgotten < number <= self._cut_up_to  # before anything was on its way
        if not cut and number not in self._made:
            return None
        made_s = self._made.get(number, 0) / BYTES_PER_S
        return HeardTurn(number, heard_s=0.0, sent_s=0.0, made_s=made_s, cut=cut)

    def starved_s(self, number: int) -> float:
        """How long a turn has left the caller in silence so far, because it came too slowly.

        Or would have, without what the caller waited for it at its beginning.
        """
        turn = _of(self._turns, number)
        return max(0.0 if turn is None else turn.starved_s, self.cushion.late_s(number))

    def is_playing(self, now: float) -> bool:
        """Whether the caller is hearing the agent now, as far as can be known."""
        return self.timeline.is_playing(now)

    def audible_until(self, now: float) -> float:
        """Until when the caller will hear the agent, if nothing more comes."""
        if not self._queue:
            return self.timeline.play_end
        return max(self.timeline.play_end, now) + self.queued_s

    @property
    def all_heard(self) -> bool:
        """Whether every turn is finished and the caller has heard it to its end, or its cut."""
        nothing_left = not (self._queue or self.keys) and self._mark is None
        return nothing_left and all(turn.is_over for turn in self._turns[self._settled :])

    @property
    def queued_s(self) -> float:
        """Audio that has not been sent yet: the greeting while it rings, or beyond the lead."""
        return self._queued_bytes / BYTES_PER_S

    # -- the account -----------------------------------------------------------------------

    def _heard(self, turn: _Turn, now: float) -> HeardTurn:
        return HeardTurn(
            turn=turn.number,
            heard_s=turn.heard_bytes(now) / BYTES_PER_S,
            sent_s=turn.sent_bytes / BYTES_PER_S,
            made_s=self._made.get(turn.number, turn.sent_bytes) / BYTES_PER_S,
            cut=turn.cut,
        )

    def _turn(self, number: int) -> _Turn:
        if (turn := _of(self._turns, number)) is not None:
            return turn
        is_full = len(self._turns) == MAX_TURNS
        for old in self._turns[self._settled :]:
            if not old.is_over and (self._settled or not is_full):
                break
            self._heard_before_bytes += old.anchor_bytes if old.cut else old.sent_bytes
            self._settled += 1
        if is_full:
            self._forgotten = self._turns.pop(0).number
            self._made.pop(self._forgotten, None)
            self._settled -= 1
        turn = _Turn(number)
        self._turns.append(turn)
        return turn

    def _account(self, turn: _Turn, payload: bytes, now: float) -> None:
        sent_bytes = len(payload)
        begins_at = max(now, self.timeline.play_end, self.timeline.background_end)
        if turn.sent_bytes > 0 and not self._paused:
            turn.starved_s += max(0.0, now - self.timeline.play_end)
        self._paused = False
        if turn.sent_bytes == 0 or now >= self.timeline.play_end:
            # It starts to play when the buffer before it is empty, or at once.
            turn.anchor_bytes = turn.sent_bytes
            turn.anchor_at = begins_at
        self.timeline.passed(now)
        self.timeline.turn, self.timeline.goes_on = turn.number, True
        self.timeline.sent(payload, begins_at)
        self._queued_bytes -= sent_bytes
        turn.sent_bytes += sent_bytes
        self._mark_if_due(turn)

    def _mark_if_due(self, turn: _Turn) -> None:
        if turn.sent_bytes - turn.marked_bytes >= self._mark_every_bytes:
            self._mark = self._mark_of(turn)

    def _is_under_way(self, number: int) -> bool:
        """Whether the caller has heard the beginning of this turn, and waits for more."""
        last = self._turns[-1] if self._turns else None
        return last is not None and last.number == number and not last.is_over

    def _forget_buffer(self, now: float) -> None:
        """A clear is on its way: nothing the carrier holds will be heard."""
        self._mark = None
        self._marks_out.clear()
        self.timeline.marks_out = 0
        self.timeline.forget(now)

    def _mark_of(self, turn: _Turn) -> SendMark:
        turn.marked_bytes = turn.sent_bytes
        name = f"{turn.number}:{turn.sent_bytes * 1000 // BYTES_PER_S}"
        if self._holds:
            # The same place may have been marked before it was held, and that mark come back late.
            name += f":{self._holds}"
        self._marks_out[name] = self.timeline.play_end
        self.timeline.marks_out = len(self._marks_out)
        return SendMark(name)


def _of(turns: Sequence[_Turn], number: int) -> _Turn | None:
    """The turn of this number: one of the last, as a rule."""
    for turn in reversed(turns):
        if turn.number == number:
            return turn
    return None


def _catch_up(timeline: Played, marked: _Turn, turns: Sequence[_Turn], now: float) -> None:
    """Believe a mark that comes much too early: it is our clock that has stood for a while."""
    after = takewhile(lambda turn: turn is not marked, reversed(turns))
    later = [turn for turn in after if turn.number > marked.number and not turn.cut]
    unplayed_bytes = sum(turn.sent_bytes - turn.anchor_bytes for turn in (marked, *later))
    early_s = timeline.play_end - now - unplayed_bytes / BYTES_PER_S
    if early_s >= EARLY_S:
        timeline.hasten(early_s)
        for turn in later:
            turn.anchor_at -= early_s
