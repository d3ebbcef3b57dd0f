"""What has happened to the calls of this process lately, for whoever watches; no I/O, no clock.

Each piece of news has a number. Whoever watches says up to which number they know, and is given
what is newer, so a channel that broke off goes on without a gap for as long as the journal reaches
back; it is bounded in count and in bytes, and says so when somebody comes too late. While nobody
watches nothing is written down, and costs nothing.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.records.database.tables import shown

MAX_NEWS = 4_000
MAX_BYTES = 1024 * 1024
"""Of all that is kept: some minutes of a busy process."""
MAX_BATCH = 200
"""Pieces of news that are handed out together."""
WATCHED_S = 60.0
"""News are written down for so long after somebody has watched: a browser that has lost its channel
comes back within seconds."""


@dataclass(frozen=True, slots=True)
class Batch:
    """News, oldest first."""

    upto: int
    """The number of the last of them, or of the last there was."""
    news: list[str]
    """Each as JSON."""
    has_gap: bool = False
    """Whether some are missing before them."""

    def as_dict(self) -> dict[str, Any]:
        """The batch as one process gives it to another."""
        return {"upto": self.upto, "news": self.news, "has_gap": self.has_gap}

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Batch:
        """A batch as another process has said it.

        Raises:
            KeyError, TypeError, ValueError: It is none.
        """
        news = [str(each) for each in said["news"]][:MAX_BATCH]
        return cls(int(said["upto"]), news, bool(said["has_gap"]))


class Journal:
    """The news of a process."""

    def __init__(self) -> None:
        self._news: deque[str] = deque()
        self._bytes = 0
        self._last = 0
        self._watched_until = 0.0

    @property
    def last(self) -> int:
        """The number of the newest."""
        return self._last

    def watch(self, now: float) -> None:
        """Somebody watches: what happens from now on is written down."""
        if not self.is_watched(now):
            self._forget()
        self._watched_until = now + WATCHED_S

    def is_watched(self, now: float) -> bool:
        """Whether anybody would read what is written down."""
        return now < self._watched_until

    def write(self, kind: str, now: float, **facts: Any) -> None:
        """Write down what has happened, if anybody watches.

        Args:
            kind: What kind of news it is.
            now: ``trio.current_time()``.
            facts: More of it: what JSON can say.
        """
        if not self.is_watched(now):
            return
        text = json.dumps({"type": kind, **facts}, separators=(",", ":"), default=shown)
        self._news.append(text)
        self._last += 1
        self._bytes += len(text)
        while len(self._news) > MAX_NEWS or (self._bytes > MAX_BYTES and len(self._news) > 1):
            self._bytes -= len(self._news.popleft())

    def since(self, number: int) -> Batch:
        """The news after this number, as far as they go into one batch."""
        first = self._last - len(self._news)
        if not first <= number <= self._last:
            return Batch(self._last, [], has_gap=True)
        begin = number - first
        news = [self._news[at] for at in range(begin, min(begin + MAX_BATCH, len(self._news)))]
        return Batch(number + len(news), news)

    def _forget(self) -> None:
        """Nobody has watched: what happened meanwhile was not written down."""
        self._news.clear()
        self._bytes = 0
        self._last += 1  # whoever knows the last one has missed something
