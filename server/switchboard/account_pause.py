"""A pause in taking calls while the model's service refuses the account.

Every call would be refused like the last: phones would ring once and be dropped. So none is taken,
and the model is tried without a call, less and less often, until it takes one again.
"""

from __future__ import annotations

import math

from server.errors import CallRefused
from server.pace import Backoff
from server.refusal import Kind

LONGEST_PAUSE_S = 600.0
"""What somebody has seen to is noticed within this time."""
SLACK_S = 1.0
"""A pause of another process that ends within so long of its time has run out: it was not ended."""
TRYING_S = 2.0
"""When it may be worth asking again while the model is just being tried."""


class AccountPause:
    """Whether calls pause, why, and when the model is to be tried; no clock.

    Args:
        first_s: How long after a refusal it is tried for the first time; 0 for no pauses at all.
        longest_s: Each time that fails, the next one is twice as far away, up to this.

    Attributes:
        kind: What is refused; None while calls are taken.
        since: When that began.
        try_at: When the model is to be tried next; never while calls are taken.
    """

    def __init__(self, first_s: float, longest_s: float = LONGEST_PAUSE_S) -> None:
        self.kind: Kind | None = None
        self.since = -math.inf
        self.try_at = math.inf
        self._first_s = first_s
        self._backoff = Backoff(first_s, max(first_s, longest_s))
        self._ended_at = -math.inf
        self._another_until = -math.inf

    @property
    def is_ours(self) -> bool:
        """Whether calls pause, and it is this process that tries the model."""
        return self.kind is not None and self._another_until == -math.inf

    def heard(self, kind: Kind, until: float, try_at: float, now: float) -> bool:
        """Another process was refused, and tries the model; True if calls begin to pause for it.

        Args:
            kind: What was refused.
            until: The other one is done with its next try by then, or gone.
            try_at: When it is to be tried here, if nothing more is heard.
            now: ``trio.current_time()``.
        """
        if not self._first_s:
            return False
        is_news = self.kind is None
        if is_news:
            self.kind, self.since = kind, now
        self._another_until, self.try_at = until, try_at
        return is_news

    def heard_nothing(self, now: float) -> bool:
        """No other process pauses; True if that ends a pause: the model has taken its session."""
        until, self._another_until = self._another_until, -math.inf
        return until > now + SLACK_S and self.accepted(now)

    def refused(self, kind: Kind, now: float) -> bool:
        """A call, or a try, was refused; True if that is news to whoever runs the server."""
        if not self._first_s:
            return False
        if self.kind is not None:
            if now >= self.try_at:
                self._backoff.double()
                self.try_at = now + self._backoff.pause_s
            # What calls of before say that end only now changes nothing.
            is_news, self.kind = kind is not self.kind, kind
            return is_news
        if now < self._ended_at + self._backoff.pause_s:
            # A service may take every session and refuse what is said in it.
            self._backoff.double()
        else:
            self._backoff.reset()
        self.kind, self.since, self.try_at = kind, now, now + self._backoff.pause_s
        return True

    def not_known(self, now: float) -> None:
        """The model was tried, and has neither taken nor refused a session: it is tried again."""
        if self.kind is not None:
            self.try_at = now + self._backoff.pause_s

    def accepted(self, now: float) -> bool:
        """The model takes sessions; True if that ends a pause."""
        if self.kind is None:
            return False
        self.kind, self.try_at, self._ended_at = None, math.inf, now
        return True

    def worked(self) -> None:
        """The model has spoken in a call: the next pause begins with the shortest."""
        if self.kind is None:
            self._backoff.reset()
            self._ended_at = -math.inf

    def check(self, now: float) -> None:
        """Whether a call may come, as far as the model's account goes.

        Raises:
            CallRefused: No: why, and when it may be worth asking again.
        """
        if self.kind is not None:
            raise CallRefused(
                f"no calls are taken: {self.kind.advice}",
                reason=self.kind.value,
                status=503,
                retry_after_s=max(self.try_at - now, 0.0) + TRYING_S,
                in_words=True,
            )
