"""Asking the carrier how a call stands, where it does not say so by itself.

Status callbacks can fail to come: the carrier reports to an address that is wrong, or gives up
where a callback was answered with an error. Without them a call that nobody picked up would ring on
here until its time is over, and end as something else than it was.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog
import trio

from server.call.call import Call
from server.call.report.progress import Progress
from server.call.takeover.fence import FENCE_TIMEOUT_S, HELD_UP_S
from server.carrier import Carrier, StatusUpdate
from server.cluster.registry import RegistryAway
from server.dialogue.endings import EndReason
from server.errors import CarrierError
from server.hooks.trio_clock import missed_s
from server.logs import Sparing
from server.pace import doubled_s
from server.supervision import first_of

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_PAUSE_S = 60.0
"""From one question about a call to the next, at most."""
MAX_QUESTIONS_AT_ONCE = 2
"""The carrier bounds requests at once (20429), and dialling and hanging up come first."""
MAX_LAST_QUESTIONS = 3
"""How often a call that is over here is asked about: its minutes are worth no more than that."""
MAX_REFUSALS = 3
"""A carrier that refuses the question so often, about one call, is not asked again."""
HANG_UP_AGAIN_S = 0.5
"""How long after its end a call is hung up that could not be then; twice as long after each try."""
MAX_HANG_UP_PAUSE_S = 15.0
MAX_HANG_UPS = 12
"""Two minutes of tries: twice as long as a phone rings (``RING_TIMEOUT_S``)."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for a report before asking.

    Attributes:
        first_s: From the dial to the first question; infinite for never.
    """

    first_s: float

    def pause_s(self, asked: int, *, was_told: bool) -> float:
        """From the last question, or report, to the next question.

        Args:
            asked: How often the carrier has been asked about this call.
            was_told: Whether any report has come by itself: then they do come, and the next one
                may take as long as a phone rings.
        """
        if was_told:
            return max(self.first_s, MAX_PAUSE_S)
        return doubled_s(self.first_s, max(self.first_s, MAX_PAUSE_S), asked)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A call that has ended here, as far as it is still asked about."""

    call_sid: str
    generation: int
    """For the how-manieth time it was somebody's."""
    progress: Progress

    @classmethod
    def about(cls, call: Call) -> _Asked | None:
        """None for a call that another process has by now, which asks."""
        if call.end_reason is EndReason.MOVED:
            return None
        return cls(call.call_sid, call.ownership.generation, call.progress)


class Inquiry:
    """Follows calls until they are over at the carrier, too, as far as it does not see to that, and
    outbound ones until it has said its last word about them.

    Args:
        carrier: Is asked.
        on_update: Told what it says.
        patience: When to ask.
        is_current: Says whether a call is still ours, by its name and generation; None where nobody
            else could have it.
    """

    def __init__(
        self,
        carrier: Carrier,
        on_update: Callable[[StatusUpdate], None],
        patience: Patience,
        is_current: Callable[[str, int], Awaitable[bool]] | None = None,
    ) -> None:
        self._carrier = carrier
        self._is_current = is_current
        self._on_update = on_update
        self._patience = patience
        self._turns = trio.Semaphore(MAX_QUESTIONS_AT_ONCE)
        self._resume_at = -math.inf
        self._warnings = Sparing()

    async def follow(self, call: Call) -> None:
        """Ask about a call that we have placed whenever nothing has been heard of it for too long.

        A call with a media stream needs no asking: its stream says when it is over. Then a call
        that the carrier could not be told to hang up is hung up, whoever has begun it; and of one
        that we have placed the carrier's last word, with the minutes it bills, is waited for and
        asked for again. Never raises: it is one call's, and goes on as if the carrier could not be
        asked.
        """
        is_asked_about = call.direction == "outbound" and not math.isinf(self._patience.first_s)
        try:
            refused = await self._until_over(call) if is_asked_about else 0
            await call.finished.wait()
            asked, is_unended = _Asked.about(call), call.is_unended
            # The carrier may say nothing of it for minutes, and the call is not needed for that.
            del call
            if asked is not None and is_unended:
                await self._hang_up(asked)
            if asked is not None and is_asked_about:
                await self._ask_for_last_word(asked, refused)
        except Exception:
            logger.exception("question to the carrier failed by a bug of ours")

    async def _until_over(self, call: Call) -> int:
        """Ask about a call until it is over here; returns how often that was refused at last."""
        dialled_at = trio.current_time()
        asked_at, asked, refused = dialled_at, 0, 0
        while not (call.progress.settled.is_set() or call.is_over) and refused < MAX_REFUSALS:
            told_at = call.progress.told_at
            heard_at = asked_at if told_at is None else max(asked_at, told_at)
            due_at = heard_at + self._patience.pause_s(asked, was_told=told_at is not None)
            if call.conversation.line is not None:
                await call.finished.wait()
            elif trio.current_time() < due_at:
                with trio.move_on_at(due_at):
                    await first_of(call.progress.settled.wait, call.finished.wait)
            else:
                refused = 0 if await self._ask(call.call_sid, call.progress) else refused + 1
                asked_at, asked = trio.current_time(), asked + 1
        return refused

    async def _hang_up(self, asked: _Asked) -> None:
        """Have the carrier end a call that is over here: as soon as it is known whose it is."""
        settled = asked.progress.settled
        for number in range(MAX_HANG_UPS):
            with trio.move_on_after(doubled_s(HANG_UP_AGAIN_S, MAX_HANG_UP_PAUSE_S, number)):
                await settled.wait()
            if settled.is_set():
                return
            ours = await self._is_ours(asked)
            if ours is False:
                return  # whoever has it ends it
            if ours is None:
                continue
            try:
                await self._carrier.hang_up(asked.call_sid)
            except CarrierError as error:
                logger.debug("late hang-up failed", status=error.status, code=error.code)
            else:
                logger.info("call hung up late", call_sid=asked.call_sid)
                return
        logger.warning(
            "call may go on at the carrier: it could not be told to hang up",
            call_sid=asked.call_sid,
        )

    async def _ask_for_last_word(self, asked: _Asked, refused: int) -> None:
        settled = asked.progress.settled
        for number in range(MAX_LAST_QUESTIONS):
            with trio.move_on_after(self._patience.pause_s(number, was_told=False)):
                await settled.wait()
            if settled.is_set() or refused >= MAX_REFUSALS:
                return
            ours = await self._is_ours(asked)
            if ours is False:
                return  # whoever has it asks
            if ours is None:
                continue
            refused = 0 if await self._ask(asked.call_sid, asked.progress) else refused + 1

    async def _is_ours(self, asked: _Asked) -> bool | None:
        """Whether a call that has ended here is not another process's; None if nobody can say, or
        we were held up since that was said."""
        if self._is_current is None:
            return True
        ours, missed_before_s = None, missed_s()
        with trio.move_on_after(FENCE_TIMEOUT_S), suppress(RegistryAway):
            ours = await self._is_current(asked.call_sid, asked.generation)
        return None if ours and missed_s() - missed_before_s >= HELD_UP_S else ours

    async def _ask(self, call_sid: str, progress: Progress) -> bool:
        """Ask once; False if the carrier does not want to be asked about this call."""
        async with self._turns:
            await trio.sleep_until(self._resume_at)
            if progress.settled.is_set():
                return True  # it was told while this waited for its turn
            if progress.told_at is None:
                self._warnings.log(
                    trio.current_time(),
                    logger.warning,
                    "no status callback has come: asking the carrier; "
                    "does PUBLIC_URL reach this server, and is /call-status let through?",
                    call_sid=call_sid,
                )
            try:
                update = await self._carrier.fetch_status(call_sid)
            except CarrierError as error:
                if error.retry_after_s is not None:
                    self._resume_at = trio.current_time() + error.retry_after_s
                logger.debug("question to the carrier failed", status=error.status, code=error.code)
                return error.status is None or error.status in (408, 429) or error.status >= 500
        self._on_update(update)
        return True
