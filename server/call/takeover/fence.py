"""The fence: nothing is done to a call that is another process's by now.

A process that was frozen, or cut off, does not know that its calls have been taken over. Whatever
cannot be undone is therefore asked for first.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import inf
from typing import Protocol

import structlog
import trio

from server.call.conversation import Conversation
from server.carrier import CallsCarrier
from server.cluster.registry import RegistryAway, State
from server.dialogue.endings import EndReason
from server.errors import CarrierError
from server.hooks.trio_clock import missed_s

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

FENCE_TIMEOUT_S = 1.0
"""How long the registry may take to say whose a call is; a call's end waits for it."""

SURE_S = 0.2
"""For so long an answer is good: less than what is asked of the carrier then takes."""

KEPT_WITHIN_S = 0.1
"""How long a function that the model has called may wait until another process would know of it."""

ASK_AGAIN_S = 0.2
"""How long after nobody could say whose a call is the registry is asked once more."""

ASKS = 2
HELD_UP_S = 0.2
"""Held up for longer than this, we may have lost the call since it was said to be ours: trio's time
stands meanwhile, and another's does not."""


class Keep(Protocol):
    """Takes what another process needs to go on with a call: :meth:`Registry.keep`."""

    def __call__(
        self, call_sid: str, generation: int, state: State, *, in_haste: bool = False
    ) -> None:
        """A call is now as this says; in haste, what would be done twice otherwise is in it."""


@dataclass(slots=True)
class Ownership:
    """Of one call: what makes it this process's, and what others are told of it.

    Attributes:
        generation: For the how-manieth time it is somebody's.
        client: Whose call it is: the API client's name.
        is_current: Says whether a call is still ours, by its name and generation; None where
            nobody else could have it.
        keep: Given what another process needs to go on; None if nobody wants it, and then nothing
            is made.
        has_carried: Whether the caller was heard while it was this process's. Of a call that was
            taken up, and was over by then, whoever talked with the caller knows better.
        hastes: How often something was kept in haste, which is there once it is said after that
            whose the call is.
        wall_time: The time as all who may have the call have it: what is kept is told by it.
    """

    generation: int = 1
    client: str = ""
    is_current: Callable[[str, int], Awaitable[bool]] | None = None
    keep: Keep | None = None
    has_carried: bool = True
    hastes: int = 0
    wall_time: Callable[[], float] = lambda: time.time()


class NotOurs(CarrierError):
    """The carrier was not told: the call is another process's, or nobody could say whose."""


class Fence:
    """A call's way to its carrier, which is open only while the call is ours.

    Args:
        conversation: The call; it ends in silence when it turns out to be another's.
        carrier: The carrier.
        ownership: Whose the call is.
    """

    def __init__(
        self, conversation: Conversation, carrier: CallsCarrier, ownership: Ownership
    ) -> None:
        self._conversation = conversation
        self._carrier = carrier
        self._ownership = ownership
        self._sure_until = -inf
        self._sure_of = 0
        self._missed_s = 0.0

    async def is_ours(self) -> bool | None:
        """Whether the call is this process's; None if that cannot be known just now."""
        c, own = self._conversation, self._ownership
        if c.end_reason is EndReason.MOVED:
            return False
        if own.is_current is None:
            return True
        is_sure = trio.current_time() < self._sure_until and self._sure_of == own.hastes
        if is_sure and missed_s() - self._missed_s < HELD_UP_S:
            return True
        ours: bool | None = None
        for _ in range(ASKS):
            self._missed_s, ours, hastes = missed_s(), None, own.hastes
            generation = own.generation
            with trio.move_on_after(FENCE_TIMEOUT_S):
                try:
                    ours = await own.is_current(c.call_sid, generation)
                except RegistryAway as away:
                    logger.debug("nobody can say whose a call is", reason=str(away))
            if own.generation != generation:  # its caller has come here meanwhile
                ours = None
            elif missed_s() - self._missed_s < HELD_UP_S:
                break
            if ours:  # or was, before we were held up
                ours = None
        if ours is False:
            c.disown()
        elif ours:
            self._sure_until, self._sure_of = trio.current_time() + SURE_S, hastes
        return ours

    async def is_ours_by(self, at: float, *, again: bool) -> bool | None:
        """Whether the call is this process's; None if that is not known in time.

        Args:
            at: When it has to be known.
            again: Whether to ask until somebody can say.
        """
        ours: bool | None = None
        with trio.move_on_at(at):
            ours = await self.is_ours()
            while again and ours is None:
                await trio.sleep(ASK_AGAIN_S)
                ours = await self.is_ours()
        return ours

    async def wait_kept(self) -> bool:
        """Wait a moment until what was kept in haste is where another process finds it.

        Returns:
            False if the call is another's by now, which alone may do what was asked for here.
        """
        if self._ownership.is_current is None:
            return True
        ours = None
        with trio.move_on_after(KEPT_WITHIN_S):
            ours = await self.is_ours()
        if ours is None:  # a call does not depend on its registry
            self._conversation.notes.note("functions run before another process knows of them")
        return ours is not False

    async def hang_up(self, call_sid: str) -> None:
        """End the call; see :meth:`Steering.hang_up`."""
        await self._pass()
        await self._carrier.hang_up(call_sid)

    async def say_and_hang_up(self, call_sid: str, text: str, language: str) -> None:
        """Let the carrier speak, and end the call; see :meth:`Steering.say_and_hang_up`."""
        await self._pass()
        await self._carrier.say_and_hang_up(call_sid, text, language)

    async def transfer(self, call_sid: str, number: str, *, ring_timeout_s: float) -> None:
        """Connect the caller with another number; see :meth:`Steering.transfer`."""
        await self._pass()
        await self._carrier.transfer(call_sid, number, ring_timeout_s=ring_timeout_s)

    async def reconnect(self, call_sid: str, ticket: Callable[[], str | None]) -> None:
        """Have the carrier bring the call's stream here, though it has not asked.

        Args:
            call_sid: The call.
            ticket: Gives what the stream is to show, when it is known that the call is ours; None
                if by then there is no need for it.

        Raises:
            CallNotInProgress: The call is over.
            CarrierError: Refused or not reached, or the call is not ours.
        """
        await self._pass()
        if (shown := ticket()) is not None:
            await self._carrier.reconnect(call_sid, shown)

    async def _pass(self) -> None:
        ours = await self.is_ours()
        if ours is None:
            # What ends with its stream ends at the carrier, too, when that asks how it goes on.
            raise NotOurs("nobody can say whose the call is", outcome_unknown=True)
        if not ours:
            raise NotOurs("the call is another process's", outcome_unknown=True)
