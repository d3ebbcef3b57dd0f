"""Handing the caller over to somebody else, and having them back if nobody answers.

Part of a :class:`~server.call.call.Call`, which starts :meth:`Handover.run` with its other loops.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from server.carrier import NOT_REACHED, CallStatus
from server.dialogue.endings import EndReason
from server.errors import CarrierError

if TYPE_CHECKING:
    from server.call.call import Call

REPORT_S = 15.0
"""How much later than the ringing ends the carrier may tell us so: its longest webhook wait."""


@dataclass(slots=True)
class _Transfer:
    """The caller on the way to somebody else."""

    destination: str
    number: str
    withdrawn: bool = False
    """Nobody wants it any more; it is too late for that once the carrier has been told."""
    told: bool = False
    """The carrier has been told: the end of the stream is not the end of the call."""
    awaited: bool = True
    """Whoever asked for it still waits for the outcome."""
    outcome: CallStatus | None = None
    """What became of it, if the caller is to come back."""
    settled: trio.Event = field(default_factory=trio.Event)
    """The caller is back, or could not be transferred at all (then without an outcome)."""
    error: CarrierError | None = None


class Handover:
    """The one transfer of a call that may be under way."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._transfer: _Transfer | None = None
        self._wanted = trio.Event()

    @property
    def is_away(self) -> bool:
        """Whether the caller is with somebody else, or ringing there: nothing can be said."""
        return self._transfer is not None and self._transfer.told

    @property
    def is_elsewhere(self) -> bool:
        """Whether the carrier still rings or connects somebody else, and will ask us what is next.

        To change anything about the caller's call would take them away from there.
        """
        return self.is_away and self._transfer is not None and self._transfer.outcome is None

    async def transfer(self, destination: str, number: str) -> CallStatus:
        """Ask for it, and wait for the outcome; see :meth:`Call.transfer`."""
        if self._transfer is not None or self._call.line is None:
            raise ValueError("the caller cannot be transferred now")
        transfer = self._transfer = _Transfer(destination, number)
        self._wanted.set()
        self._call.errands.begin(self.run)
        try:
            await transfer.settled.wait()
        finally:
            transfer.withdrawn, transfer.awaited = True, False
            self._call.pulse()
        if transfer.error is not None:
            raise transfer.error
        return transfer.outcome or CallStatus.COMPLETED

    def report(self, status: CallStatus) -> bool:
        """The carrier says how the transfer stands; True if the caller is to come back."""
        transfer = self._transfer
        if transfer is None or not transfer.told:
            return self._call.line is not None and status in NOT_REACHED  # said twice
        if status in NOT_REACHED:
            transfer.outcome = status
            self._call.pulse()
            return True
        self._call.end(EndReason.TRANSFERRED, transfer.destination)
        return False

    async def run(self) -> None:
        """Carry out what :meth:`transfer` asks for, even if it no longer waits."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            transfer = self._transfer
            assert transfer is not None
            if await self._send_away(transfer) and transfer.outcome is not None:
                self._call.note("transfer failed", outcome=transfer.outcome.value)
                if not transfer.awaited and self._call.session is not None:
                    await self._call.session.send_text(
                        f"The transfer to {transfer.destination} has failed: nobody took the call. "
                        "The caller is back on the line. Tell them, and ask how to go on."
                    )
            self._transfer = None
            transfer.settled.set()

    async def _send_away(self, transfer: _Transfer) -> bool:
        """Have the carrier ring the other number; True when the caller has come back."""
        call = self._call
        with trio.move_on_after(call.options.farewell_timeout_s):
            await call.until(lambda: transfer.withdrawn or call.playout.all_heard)
        if transfer.withdrawn:
            return False
        ring_timeout_s = call.options.transfer_ring_timeout_s
        left = call.line
        call.note("transfer", destination=transfer.destination)
        transfer.told = True
        try:
            await call.carrier.transfer(
                call.call_sid, transfer.number, ring_timeout_s=ring_timeout_s
            )
        except CarrierError as error:
            transfer.error = error
            call.note("transfer refused", code=error.code)
            if call.line is None:  # the caller hung up at the same moment
                call.end(EndReason.CALLER_HUNG_UP)
            return False
        with trio.move_on_after(ring_timeout_s + REPORT_S):
            await call.until(lambda: transfer.outcome is not None)
        if transfer.outcome is None:
            # Had nobody answered, the carrier would have asked us what to do.
            call.end(EndReason.TRANSFERRED, f"{transfer.destination}, without a report")
            return False
        with trio.move_on_after(REPORT_S):
            await call.until(lambda: call.line not in (None, left))
            return True
        call.end(EndReason.CALLER_GONE, "the caller did not come back from a transfer")
        return False
