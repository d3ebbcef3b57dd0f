"""Having the carrier say sorry where we would hang up on somebody without a word."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import structlog
import trio

from server.agent import phrases
from server.call.conversation import Conversation
from server.call.report.progress import Progress
from server.carrier import CallStatus
from server.dialogue.endings import EndReason
from server.errors import CallNotInProgress, CarrierError

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

AGAIN_S = (0.25, 0.5, 1.0)
"""How long to wait before each further try."""


class Apology:
    """The last words of a call that failed: said by the carrier, at most once.

    The carrier is told to say them, or asks us how the call goes on and reads them in the answer.
    """

    def __init__(self, conversation: Conversation, progress: Progress) -> None:
        self._conversation = conversation
        self._progress = progress
        self._is_said = False
        self._was_fetched = False
        self._asking = 0  # questions of the carrier's that may be answered with it

    @property
    def is_owed(self) -> bool:
        """Whether somebody is there who would be hung up on without having heard a word why."""
        c, status = self._conversation, self._progress.status
        if c.end_reason is None or self._is_said or status.is_final:
            return False
        # A call that is drained says goodbye by itself, if there is a model and a line for it.
        unexplained = c.end_reason.is_our_failure or (
            c.end_reason is EndReason.DRAINED and (not c.session.is_ready or c.answered_at is None)
        )
        # Who has called us is there before any stream is. Whom we call may still be ringing.
        is_there = (
            c.party.direction == "inbound"
            or c.answered_at is not None
            or status is CallStatus.IN_PROGRESS
        )
        return unexplained and is_there

    @property
    def may_be_fetched(self) -> bool:
        """Whether a document that the carrier asks for would have to be the apology."""
        line = self._conversation.line
        has_no_line = line is None or line.is_closed  # else the carrier would not ask
        return self._was_fetched or (has_no_line and self.is_owed)

    def fetch(self, *, line_is_over: bool = False) -> bool:
        """The carrier asks how the call goes on: whether the answer is to be the apology.

        It is the same for whoever asks again: they have not got the answer. The carrier may just be
        told by :meth:`say` as well: should it take both, it begins once more.

        Args:
            line_is_over: Whether the stream is known to be over, though the call still has it.
        """
        if not (self.may_be_fetched or (line_is_over and self.is_owed)):
            return False
        if not self._was_fetched:
            self._is_said = self._was_fetched = True
            self._conversation.notes.note("apology")
        return True

    @contextmanager
    def may_fetch(self) -> Generator[None]:
        """The carrier asks how the call goes on, and has its answer when the block is over."""
        self._asking += 1
        try:
            yield
        finally:
            self._asking -= 1
            self._conversation.changed.set()

    async def say_or_hang_up(self, by: float) -> bool:
        """Have the carrier end the call, and say sorry before if somebody has to be told; False if
        it could not be told by then.

        What it asks meanwhile is answered before it is told to hang up: it may fetch the apology.
        """
        c = self._conversation
        try:
            with trio.fail_at(by):
                is_said = await self.say()
                if not is_said and self.is_owed:
                    await c.changed.until(lambda: not self._asking)
                if not (is_said or self._is_said):
                    await c.carrier.hang_up(c.call_sid)
        except (CarrierError, trio.TooSlowError) as error:
            logger.warning("hang-up failed", error=str(error) or "no answer in time")
            return False
        return True

    async def say(self) -> bool:
        """Let the carrier say sorry and hang up, if somebody has to be told; False if it has not.

        It is tried again where the carrier has surely not begun to say it.
        """
        c = self._conversation
        text, language = phrases.apology_of(c.party.agent)
        for wait_s in (*AGAIN_S, None):
            if not self.is_owed:
                return self._is_said
            try:
                await c.carrier.say_and_hang_up(c.call_sid, text, language)
            except CarrierError as error:
                if self._is_said:
                    return True  # it has asked meanwhile: whoever hung up now would cut it short
                # An inbound call is in progress when the carrier has read how we answer it.
                is_early = isinstance(error, CallNotInProgress) and c.answered_at is None
                if wait_s is None or not (is_early or _is_not_done(error)):
                    logger.warning("apology failed", error=str(error))
                    return False
                if is_early:
                    with trio.move_on_after(wait_s):
                        await c.connected.wait()
                else:
                    await trio.sleep(wait_s)
            else:
                if not self._is_said:
                    self._is_said = True
                    c.notes.note("apology")
                return True
        raise AssertionError("unreachable")


def _is_not_done(error: CarrierError) -> bool:
    """Whether the carrier has done nothing of what it was asked: it was not reached, or said so."""
    if error.status is None:
        return not error.outcome_unknown
    return error.status == 429 or error.status >= 500
