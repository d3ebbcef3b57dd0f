"""Which connection a session uses, and when it takes another: no socket, no clock."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from server.errors import ModelError, ModelQuotaExceeded, ModelSetupRefused
from server.model import (
    Way,
)
from server.model.lasting.since_handle import SinceHandle
from server.pace import Spread, doubled_s
from server.refusal import Kind

GO_AWAY_MARGIN_S = 10.0
"""A rotation waits for a silence until this long before the service closes, and no longer."""
GO_AWAY_WINDOW_S = 60.0
"""How long before that moment a silence is looked for: a service once said 300 s, at once."""
QUIET_POLL_S = 0.1
"""How often a rotation that is due looks for its silence."""
AGE_JITTER = 0.1
"""A connection is rotated up to this part of its age sooner: calls that began together do not stay
in step."""
GO_AWAY_SPREAD_S = 2.0
"""A silence is looked for up to so much later, and half of the time there is at most: a service
that goes away tells all its sessions at once."""
REDIALS_PER_S = 50.0
REDIALS_AT_ONCE = 3
LONGEST_SPREAD_S = 2.0
"""Sessions of a process that lose their connections at once are not to call the service at once:
to set one up costs both sides milliseconds, and services answer a storm with refusals. The first
few dial at once, a hundred within two seconds, and of more nobody waits longer."""
FIRST_DELAY_S = 0.25
MAX_DELAY_S = 4.0
RESUME_TRIES = 3
"""Attempts to resume before a fresh session is tried instead."""
FIRST_PATIENCE_S = 5.0
"""For so long a service that is overloaded may keep a call waiting for its first connection: there
is somebody on the line who hears nothing."""
SETTLED_S = 10.0
"""A connection that has lasted this long, or on which the agent has finished a turn, works."""
TAKEN_UP = "taken-up"
"""Why there is another connection: the process that had the last one is gone."""
MIN_CONNECTION_S = 1.0
"""A connection is not left sooner than that because it is going away: one that says so at once, and
the next one, too, would have us do nothing but connect."""


class State(Enum):
    """Where a session is between two connections."""

    WAITING = auto()  # no connection: the next attempt has its time
    OPENING = auto()  # a connection is being made and set up
    OPEN = auto()  # input goes straight through
    DUE = auto()  # the same, and the next silence will be used for a rotation
    LEAVING = auto()  # the old socket is being closed: the service allows no other before
    ENDED = auto()  # given up


TRANSITIONS: Mapping[State, Mapping[str, State]] = {
    State.WAITING: {"begin": State.OPENING},
    State.OPENING: {"opened": State.OPEN, "failed": State.WAITING, "given up": State.ENDED},
    State.OPEN: {"due": State.DUE, "leave": State.LEAVING},
    State.DUE: {"leave": State.LEAVING},
    State.LEAVING: {"closed": State.WAITING, "given up": State.ENDED},
    State.ENDED: {},
}
"""Whatever is not here is a bug of ours: a ``KeyError``."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A connection to be made."""

    way: Way
    handle: str | None
    """What to resume with; None for a new session."""
    on_fallback: bool
    give_up_at: float
    """When the budget is used up."""


class ConnectionPlan:
    """Decides when to leave a connection and how to go on; no socket, no clock.

    Its owner tells it what happens, asks :meth:`tick` at :meth:`wakes_at`, and obeys ``state``:
    WAITING until ``open_at``, then :meth:`begin`; LEAVING: close, then :meth:`closed`.

    Args:
        now: Time, as for every method: ``trio.current_time()``.
        connection_age_s: Age at which a connection is rotated in the next silence.
        budget_s: How long one outage may last.
        has_fallback: Whether there is another model to turn to.
        redials: Shared by the sessions of a process: when the first attempt after a loss is made.
        jitter: Gives numbers between 0 and 1, to keep calls from reconnecting in step.

    Attributes:
        state: See :class:`State`.
        handle: The last one the session could be resumed with.
        since_handle: What the session would not know then.
        open_at: When the next attempt is to begin.
        opens: Connections that were opened so far.
        reason: Why the last connection was left, as in :class:`Reconnected`.
        way: How the conversation goes on.
        left_at: When the last connection was left.
        on_fallback: Whether it is the other model that is used.
        unwanted: The attempt that is made is to be given up: the other model is wanted instead.
        goes_on: Whether another process had the session before.
        error: What ended it all, once ENDED.
    """

    def __init__(
        self,
        now: float,
        *,
        connection_age_s: float = 540.0,
        budget_s: float = 30.0,
        has_fallback: bool = False,
        redials: Spread | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.state = State.WAITING
        self.handle: str | None = None
        self.since_handle = SinceHandle()
        self.open_at = now
        self.opens = 0
        self.reason = ""
        self.way = Way.FRESH
        self.left_at = now
        self.error: ModelError | None = None
        self._connection_age_s = connection_age_s
        self._budget_s = budget_s
        self._has_fallback = has_fallback
        self._redials = redials or new_redials()
        self.on_fallback = False
        self.unwanted = False
        self.goes_on = False
        self._jitter = jitter
        self._attempts = 0
        self._outage_began_at = now
        self._opened_at = now
        self._worked = False
        self._seek_quiet_at = math.inf
        self._leave_by = math.inf
        self._rotate_because = "age"

    def start(self, now: float) -> None:
        """The first connection is wanted now, and not when this was made."""
        self.open_at = self.left_at = self._outage_began_at = now
        if self.goes_on:  # as do others of the process that is gone
            self.open_at += min(self._redials.delay_s(now), self._budget_s / 2)

    def go_on(self, handle: str | None, *, on_fallback: bool) -> None:
        """Another process has had the session until now: the first connection is the next one."""
        self.handle, self.on_fallback, self.goes_on = handle, on_fallback, True
        self.way, self.reason = self._best_way(), TAKEN_UP

    @property
    def is_open(self) -> bool:
        """Whether input can be sent."""
        return self.state in (State.OPEN, State.DUE)

    # What happens on an open connection.

    def note_handle(self, handle: str | None) -> None:
        """The session can be resumed with this from now on; None while it cannot be."""
        if handle is not None:
            self.handle = handle

    def note_answer(self) -> None:
        """The agent has said something to its end: this connection works."""
        self._worked = True

    def going_away(self, time_left_s: float, now: float) -> None:
        """The service will close the connection."""
        if not self.is_open:
            return
        margin_s = min(GO_AWAY_MARGIN_S, time_left_s / 2)
        leave_by = max(now + time_left_s - margin_s, self._opened_at + MIN_CONNECTION_S)
        seek_quiet_at = max(now, leave_by - GO_AWAY_WINDOW_S)
        spread_s = min(GO_AWAY_SPREAD_S, (leave_by - seek_quiet_at) / 2)
        self._leave_by = leave_by
        self._seek_quiet_at = seek_quiet_at + spread_s * self._jitter()
        self._rotate_because = "go-away"

    def tick(self, now: float, is_quiet: Callable[[], bool]) -> None:
        """Let time pass; ``is_quiet`` is asked only while a rotation is due."""
        if self.state is State.OPEN and now >= self._seek_quiet_at:
            self._move("due")
        if self.state is State.DUE and (now >= self._leave_by or is_quiet()):
            self._leave(self._best_way(), self._rotate_because, now)

    def wakes_at(self, now: float) -> float:
        """When to :meth:`tick` next, if nothing happens before."""
        if self.state is State.DUE:
            return min(now + QUIET_POLL_S, self._leave_by)
        return self._seek_quiet_at

    def ask(self, way: Way, reason: str, now: float) -> bool:
        """Somebody wants another connection; False if there is no such way."""
        if way is Way.RESUME:
            if self.handle is None:
                return False
            way = self._best_way()
        if way is Way.FALLBACK and not self._has_fallback:
            return False
        if way is Way.FALLBACK and self.on_fallback:
            # It may be on its way there already, and not have come so far.
            is_coming = self.way is Way.FALLBACK and not self.is_open
            return is_coming and self.state is not State.ENDED
        if self.is_open:
            self._leave(way, reason, now)
        elif way is Way.FALLBACK and self.state is State.OPENING:
            self.unwanted = True
        elif way is Way.FALLBACK:
            self._go_to_fallback(now)
        return self.state is not State.ENDED

    def lost(self, error: ModelError, now: float) -> None:
        """The connection has failed."""
        if not self.is_open:
            return
        # The context: a resumed session would fail again.
        used_up = error.code == 1007 and error.refusal is None
        worked = self._worked or now - self._opened_at >= SETTLED_S
        final = not error.retryable and not used_up
        if used_up and not worked and self.way is not Way.RESUME:
            final = True  # so soon after a fresh session was begun: the next would fail, too
        if not worked:
            self._doubt_handle()
        attempts, outage_began_at = self._attempts, self._outage_began_at
        self._leave(Way.FRESH if used_up else self._best_way(), reason_of(error), now)
        if not worked:
            # The outage goes on, and with it the growing delays and the budget.
            self._attempts, self._outage_began_at = attempts, outage_began_at
        if final or self._is_out_of_time(now + self._delay_s()):
            self._turn_to_fallback(error, now)

    def closed(self, now: float) -> None:
        """The old socket is closed."""
        self._move("closed" if self.error is None else "given up")
        wait_s = self._redials.delay_s(now)
        if self._attempts:  # it had not worked
            wait_s += self._delay_s()
        self.open_at = now + min(wait_s, self._budget_s / 2)

    # What happens to an attempt.

    def begin(self) -> Attempt:
        """Say how to connect now."""
        self._move("begin")
        self._attempts += 1
        handle = self.handle if self.way is Way.RESUME else None
        give_up_at = self._outage_began_at + self._budget_s
        return Attempt(self.way, handle, self.on_fallback, give_up_at)

    def opened(self, now: float) -> None:
        """The connection is set up."""
        self._move("opened")
        self.opens += 1
        self._opened_at = now
        self._worked = self.unwanted = False
        self._leave_by = math.inf
        self._seek_quiet_at = now + self._connection_age_s * (1.0 - AGE_JITTER * self._jitter())
        self._rotate_because = "age"
        if self.way is not Way.RESUME:
            self.handle = None

    def failed(self, error: ModelError, now: float) -> None:
        """The connection could not be made or set up."""
        final = not error.retryable
        self.open_at = now + self._delay_s()
        if self.opens == 0 and not self.goes_on and error.refusal is not None:
            # A call that has not begun has nothing to lose, and there are others to spare the
            # service: only one that is overloaded is asked again, and not for long.
            patient_until = self._outage_began_at + FIRST_PATIENCE_S
            final = error.refusal is not Kind.BUSY or self.open_at >= patient_until
        is_accounts = error.refusal is not None or isinstance(error, ModelQuotaExceeded)
        if self.way is Way.RESUME and not is_accounts:
            final = False
            if isinstance(error, ModelSetupRefused):
                # The same set-up was accepted before: it is the handle that is refused.
                self.handle = None
                self.open_at = now
            self._doubt_handle()
            self.way = self._best_way()
            if self.way is Way.FRESH and self.goes_on and not self.opens:
                # Whoever had the session may be stopped, and hold it open for as long; a caller
                # waits, and another session need not wait for that.
                self.open_at = now
        if final or self.unwanted or self._is_out_of_time(self.open_at):
            self._turn_to_fallback(error, now)
        self.unwanted = False
        self._move("failed" if self.error is None else "given up")

    # Decisions.

    def _doubt_handle(self) -> None:
        """Give up a handle that has only led from one failure to the next."""
        if self._attempts >= RESUME_TRIES:
            self.handle = None

    def _best_way(self) -> Way:
        can_resume = self.handle is not None and not self.since_handle.is_beyond_telling
        return Way.RESUME if can_resume else Way.FRESH

    def _is_out_of_time(self, at: float) -> bool:
        return at >= self._outage_began_at + self._budget_s

    def _leave(self, way: Way, reason: str, now: float) -> None:
        self._move("leave")
        self.way = way
        self.reason = reason
        self.left_at = now
        self._attempts = 0
        self._outage_began_at = now
        if way is Way.FALLBACK:
            self.on_fallback = True

    def _turn_to_fallback(self, error: ModelError, now: float) -> None:
        """Go on with the other model, or give up if there is none."""
        if self.on_fallback or not self._has_fallback:
            self.error = error
        else:
            self._go_to_fallback(now)

    def _go_to_fallback(self, now: float) -> None:
        """The next connection is one of the other model's, with a budget of its own."""
        self.on_fallback = True
        self.way = Way.FALLBACK
        self.handle = None
        self._attempts = 0
        self._outage_began_at = now
        self.open_at = now + min(self._redials.delay_s(now), self._budget_s / 2)

    def _delay_s(self) -> float:
        """The first attempt is made in its turn; later ones wait longer and longer."""
        if self._attempts == 0:
            return 0.0
        return doubled_s(FIRST_DELAY_S, MAX_DELAY_S, self._attempts - 1) * (0.5 + self._jitter())

    def _move(self, what: str) -> None:
        self.state = TRANSITIONS[self.state][what]


def new_redials() -> Spread:
    """What the sessions of a process share, so that they do not dial all at once."""
    return Spread(REDIALS_PER_S, REDIALS_AT_ONCE, LONGEST_SPREAD_S)


def reason_of(error: ModelError) -> str:
    """Name a failure in a short stable word, of which there are few: metrics count them."""
    if error.code is None:
        return "broken"
    return f"closed-{error.code}" if 1000 <= error.code <= 1015 else "closed-other"
