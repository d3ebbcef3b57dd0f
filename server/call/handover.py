"""Handing the caller over to somebody else, and having them back if nobody answers.

It runs as an errand of the call, begun when it is wanted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from server.agent import phrases
from server.call.conversation import Conversation, Line, Stage
from server.call.takeover.fence import NotOurs
from server.carrier import NOT_REACHED, CallStatus
from server.dialogue.endings import EndReason
from server.dialogue.remedies import Awaited
from server.errors import CarrierError
from server.signal import Signal

CANNOT = "the caller cannot be transferred now"
REPORT_S = 15.0
"""How much later than the ringing ends the carrier may tell us so: its longest webhook wait."""
RINGS_LONGER_S = 5.0
"""What a carrier may add to the time for which it is told to ring: Twilio does."""
TAKEN_S = 2.0
"""A carrier that was lost while it was told ends the stream by then, if it has understood us."""
LATE_S = 10.0
"""For so much longer it may still do it: as long as its answers may take (``CARRIER_TIMEOUT_S``).
The caller is talked to meanwhile; should their line end, it is taken to have done it then."""


@dataclass(slots=True)
class _Transfer:
    """The caller on the way to somebody else."""

    destination: str
    number: str
    withdrawn: bool = False
    """Nobody wants it any more; it is too late for that once the carrier has been told."""
    asked: bool = False
    """The carrier is told, if it has not been already: whether it does it is not known."""
    accepted: bool = False
    """The carrier has taken the caller away, and asks how the transfer went before all else."""
    is_sure: bool = True
    """Whether it has said so itself: its answer was lost, or another process, before it could."""
    awaited: bool = True
    """Whoever asked for it still waits for the outcome."""
    left: Line | None = None
    """The line that the caller was taken from."""
    outcome: CallStatus | None = None
    """What became of it, if the caller is to come back."""
    settled: trio.Event = field(default_factory=trio.Event)
    """The caller is back, or could not be transferred at all (then without an outcome)."""
    error: CarrierError | ValueError | None = None
    leg: str = ""
    """The other party's call, as far as the carrier has named it."""


class Handover:
    """The one transfer of a call that may be under way."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._transfer: _Transfer | None = None
        self._spent: tuple[str, ...] = ()  # legs of transfers that are over
        self._wanted = Signal()

    @property
    def is_under_way(self) -> bool:
        """Whether the caller is being connected with somebody else, or is to be."""
        return self._transfer is not None

    @property
    def is_elsewhere(self) -> bool:
        """Whether the carrier still rings or connects somebody else, and will ask us what is next.

        To change anything about the caller's call would take them away from there.
        """
        away = self._conversation.stage is Stage.AWAY
        return away and self._transfer is not None and self._transfer.outcome is None

    @property
    def has_left(self) -> bool:
        """Whether the carrier has taken the caller away, and not yet said how that went."""
        transfer = self._transfer
        return self.is_elsewhere and transfer is not None and transfer.accepted

    @property
    def under_way(self) -> tuple[str, str, bool, bool] | None:
        """To whom the carrier has taken the caller, or is about to, in words and by number; whether
        it has said so, and whether nobody took the call there, so that the caller comes back.
        """
        transfer, away = self._transfer, self._conversation.stage is Stage.AWAY
        if transfer is None or not away or not (transfer.asked or transfer.accepted):
            return None
        is_sure = transfer.accepted and transfer.is_sure
        return transfer.destination, transfer.number, is_sure, transfer.outcome is not None

    def go_on(self, destination: str, number: str, *, is_sure: bool, has_failed: bool) -> None:
        """The carrier had taken the caller away when another process had the call.

        Args:
            destination: What timeline and model call them.
            number: Their number, E.164.
            is_sure: Whether it had said so. It is not asked again: should it have been, somebody's
                phone would ring twice.
            has_failed: Whether nobody took the call there, so that the caller comes back.
        """
        self._transfer = _Transfer(
            destination,
            number,
            accepted=True,
            awaited=False,
            is_sure=is_sure,
            outcome=CallStatus.FAILED if has_failed else None,
        )
        self._conversation.errands.begin(self._run)

    def has_stayed(self) -> bool:
        """The carrier asks how the call goes on; returns whether that is not for a transfer that
        somebody has taken, of which it would ask first."""
        transfer = self._transfer
        if transfer is not None and self.has_left and not transfer.is_sure:
            transfer.outcome = CallStatus.FAILED  # it has never been asked for it
            self._conversation.changed.set()
        return not self.has_left

    async def transfer(self, destination: str, number: str) -> CallStatus:
        """Connect the caller with somebody else; once they have answered, this call is over.

        Args:
            destination: What timeline and model call them.
            number: Their number, E.164.

        Returns:
            Why they could not be reached, when the caller is back on the line. (COMPLETED if they
            took over, for as long as there is anybody to be told.)

        Raises:
            CarrierError: The carrier would not do it; the caller has never left.
            ValueError: The caller is already on the way to somebody, or not on the line; or the
                call is about to end, or a message is being left.
        """
        c = self._conversation
        is_there = c.line is not None or c.is_lost
        if self._transfer is not None or not is_there or not c.may("sent away"):
            raise ValueError(CANNOT)
        if c.line is not None and trio.current_time() < c.line.taken_by:
            raise ValueError(CANNOT)  # two phones would ring
        transfer = self._transfer = _Transfer(destination, number)
        self._wanted.set()
        c.errands.begin(self._run)
        try:
            await transfer.settled.wait()
        finally:
            transfer.withdrawn, transfer.awaited = True, False
            c.changed.set()
        if transfer.error is not None:
            try:
                raise transfer.error
            finally:
                transfer.error = None  # it has passed this frame, which knows the transfer
        return transfer.outcome or CallStatus.COMPLETED

    def report(self, status: CallStatus, leg: str = "") -> bool:
        """The carrier says how the transfer stands; True if the caller is to come back from it.

        Args:
            status: How.
            leg: The other party's call; empty if it is not said which.
        """
        c, transfer = self._conversation, self._transfer
        if transfer is None or c.stage is not Stage.AWAY or leg in self._spent:
            return False  # said late or again, or to a process that knows nothing of it
        transfer.leg = leg
        if status in NOT_REACHED:
            transfer.outcome = status
            c.changed.set()
            c.notes.keep_now()  # else the caller who comes back to another process is away to it
            return True
        c.end(EndReason.TRANSFERRED, transfer.destination)
        return False

    def line_stopped(self, line: Line) -> None:
        """A line has ended: for a transfer that the carrier has made this late, it may be.

        Not every carrier says that it has stopped one. If the caller has hung up, it says so
        elsewhere; if they are still there, it asks, or brings another.
        """
        c = self._conversation
        if line.taken_to is None or trio.current_time() >= line.taken_by or not c.may("sent away"):
            return
        destination, number = line.taken_to
        c.notes.note_trouble("transfer not confirmed", destination=destination)
        c.move("sent away")
        self._transfer = _Transfer(
            destination, number, accepted=True, is_sure=False, awaited=False, left=line
        )
        c.notes.keep_now()
        self._wanted.set()

    async def _run(self) -> None:
        """Carry out what :meth:`transfer` asks for, even if it no longer waits."""
        c = self._conversation
        while True:
            wanted = self._wanted.next()
            if (transfer := self._transfer) is None:
                await wanted.wait()
                continue
            if await self._send_away(transfer) and transfer.outcome is not None:
                c.notes.note("transfer failed", outcome=transfer.outcome.value)
                if not transfer.awaited:
                    c.turns.ask(Awaited.ANSWER, trio.current_time())
                    c.session.send_text(phrases.transfer_failed(transfer.destination))
            if c.stage is Stage.AWAY:
                c.move("back")
            self._transfer = None
            if transfer.leg:
                self._spent = (*self._spent, transfer.leg)
            c.notes.keep_now()
            transfer.settled.set()

    async def _send_away(self, transfer: _Transfer) -> bool:
        """Have the carrier ring the other number; True when the caller has come back."""
        if not transfer.accepted and not await self._tell_carrier(transfer):
            return False
        return await self._wait_back(transfer)

    async def _tell_carrier(self, transfer: _Transfer) -> bool:
        """Have the carrier take the caller away, when they have heard what is being said."""
        c = self._conversation
        if c.agent_turn > c.finished_turn and c.agent_turn in c.turns.tools_open.values():
            # A model that does not end its turn at a call waits for this one's outcome: all that
            # is to be heard before has come, and its mark says when it was.
            c.playout.finish_turn(c.agent_turn)
            c.unsent.set()
        with trio.move_on_after(c.options.farewell_timeout_s):
            await c.changed.until(
                lambda: transfer.withdrawn or (c.playout.all_heard and not c.is_lost)
            )
        if transfer.withdrawn:
            return False
        if c.is_lost or not c.may("sent away"):  # it has come to something else meanwhile
            transfer.error = ValueError(CANNOT)
            return False
        left = c.line
        c.notes.note("transfer", destination=transfer.destination)
        c.move("sent away")
        transfer.asked = True
        c.notes.keep_now()  # and the fence lets us pass when that is written
        try:
            await c.carrier.transfer(
                c.call_sid, transfer.number, ring_timeout_s=c.options.transfer_ring_timeout_s
            )
        except CarrierError as error:
            if not await self._may_be_away(transfer, left, error):
                transfer.error = error
                c.notes.note("transfer refused", code=error.code)
                if c.line is None and left is not None:
                    await self._miss(left)
                return False
            c.notes.note_trouble("transfer not confirmed", code=error.code)
        transfer.accepted, transfer.left = True, left
        c.notes.keep_now()
        return True

    async def _may_be_away(
        self, transfer: _Transfer, left: Line | None, error: CarrierError
    ) -> bool:
        """Whether the carrier may have taken the caller away, though its answer was lost: it ends
        their line with that, or asks what is next. If they have hung up, it says so elsewhere."""
        if left is None or not error.outcome_unknown or isinstance(error, NotOurs):
            return False
        transfer.accepted, transfer.is_sure = True, False
        transfer.accepted = await _is_taken(left) or transfer.outcome is not None
        if not transfer.accepted:
            left.taken_to = transfer.destination, transfer.number
            left.taken_by = trio.current_time() + LATE_S
        return transfer.accepted

    async def _wait_back(self, transfer: _Transfer) -> bool:
        """Wait until the carrier says how that went; True when the caller has come back."""
        c = self._conversation

        def is_back() -> bool:
            return c.line not in (None, transfer.left)

        def is_there_unasked() -> bool:
            # The carrier asks how a transfer went before it brings the caller back from one. Who
            # is here without that came before it was known whether it has taken the transfer.
            return not transfer.is_sure and is_back()

        rings_s = c.options.transfer_ring_timeout_s + RINGS_LONGER_S
        with trio.move_on_after(rings_s + REPORT_S):
            while transfer.outcome is None:
                await c.changed.until(lambda: transfer.outcome is not None or is_there_unasked())
                if transfer.outcome is None and not await _is_taken(c.line):
                    transfer.outcome = transfer.outcome or CallStatus.FAILED
        if transfer.outcome is None:
            # Had nobody answered, the carrier would have asked us what to do.
            c.end(EndReason.TRANSFERRED, f"{transfer.destination}, without a report")
            return False
        if await c.line_comes(is_back, REPORT_S):
            return True
        c.end(EndReason.CALLER_GONE, "the caller did not come back from a transfer")
        return False

    async def _miss(self, left: Line) -> None:
        """The caller's line has ended, though they were not sent away: it may come back."""
        c = self._conversation
        if not (left.may_come_back and await c.comes_back()):
            c.end(*(left.end or (EndReason.CALLER_HUNG_UP, "")))


async def _is_taken(line: Line | None) -> bool:
    """Whether the carrier ends a line now, from which it may have taken the caller."""
    with trio.move_on_after(TAKEN_S):
        if line is not None:
            await line.over.wait()
    return line is None or line.over.is_set()  # also in the very pass in which the wait ended
