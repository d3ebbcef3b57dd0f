"""How long callers wait for an answer, stage by stage: from their last word to the agent's first.

Most figures of this kind begin at the model's first byte and leave out what the caller waits for
before (until it is clear that they have finished) and after (until it is played). These begin when
the caller stopped speaking, as judged locally, and end when the first mark behind the agent's audio
comes back from the carrier.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

MAX_REPLIES = 1_000

_MARK = re.compile(r"([0-9]{1,9}):([0-9]{1,9})(?::|$)")
"""The name of a playout's mark; a carrier may send any other."""


@dataclass(slots=True)
class Reply:
    """One agent turn that answers the caller; times on the call's clock."""

    turn: int
    ended_at: float
    """The caller's last sound."""
    noticed_at: float
    """When our own detector took the caller's turn for over."""
    received_at: float
    """The first audible agent audio, read from the model."""
    sent_at: float | None = None
    heard_at: float | None = None
    """When the caller began to hear it, as its first mark tells."""

    def stages_s(self) -> dict[str, float]:
        """Durations that add up to ``total``; only those that are known yet."""
        noticed_at = min(self.noticed_at, self.received_at)
        stages = {"vad": noticed_at - self.ended_at, "model": self.received_at - noticed_at}
        if self.sent_at is not None:
            stages["codec"] = self.sent_at - self.received_at
            if self.heard_at is not None:
                stages["playout"] = max(0.0, self.heard_at - self.sent_at)
                stages["total"] = sum(stages.values())
        return stages

    def as_dict(self) -> dict[str, Any]:
        """The reply as the API shows it, in milliseconds."""
        stages = {f"{name}_ms": round(s * 1000, 1) for name, s in self.stages_s().items()}
        return {"turn": self.turn, **stages}


class Replies:
    """The replies of a call, in order; fed by its loops."""

    def __init__(self) -> None:
        self.all: list[Reply] = []
        self._ended_at: float | None = None
        self._noticed_at = 0.0
        self._newest_turn = -1

    def caller_started(self) -> None:
        """The caller speaks (on): only the end of this counts."""
        self._ended_at = None

    def caller_ended(self, ended_at: float, noticed_at: float) -> None:
        """The caller's turn is over."""
        self._ended_at, self._noticed_at = ended_at, noticed_at

    def audio_received(self, turn: int, at: float) -> None:
        """The first audible audio of a turn has come; it answers the caller if they spoke before.

        The model may be sooner than our detector: then ``caller_ended`` has not been told yet, and
        the turn counts as no reply, for lack of a beginning.
        """
        if turn <= self._newest_turn:
            return
        self._newest_turn = turn
        if self._ended_at is not None:
            self.all.append(Reply(turn, self._ended_at, self._noticed_at, at))
            del self.all[:-MAX_REPLIES]
            self._ended_at = None

    def audio_sent(self, turn: int, at: float) -> Reply | None:
        """Audio of a turn went to the carrier; the reply, if it is its first."""
        reply = self._of(turn)
        if reply is None or reply.sent_at is not None:
            return None
        reply.sent_at = at
        return reply

    def mark_reached(self, name: str, at: float) -> Reply | None:
        """A mark came back; the reply, if it is its first.

        Args:
            name: As the playout made it: ``turn:milliseconds``.
            at: When it came. The audio before it began to sound that many milliseconds earlier.
        """
        if (mark := _MARK.match(name)) is None:
            return None  # that of keys that were pressed, or none of ours
        reply = self._of(int(mark[1]))
        if reply is None or reply.sent_at is None or reply.heard_at is not None:
            return None
        reply.heard_at = max(reply.sent_at, at - int(mark[2]) / 1000)
        return reply

    def _of(self, turn: int) -> Reply | None:
        if self.all and self.all[-1].turn == turn:
            return self.all[-1]
        return None
