"""What this process says of itself to the others, and what it last heard of them; no clock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import structlog

from server.cluster.choosing import seen_of
from server.cluster.proof import Prover
from server.cluster.redis import beats
from server.cluster.redis.answers import Heard
from server.cluster.redis.scripts import Step, Steps
from server.cluster.registry import Load, Member, Seen
from server.logs import Sparing

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

NAMESAKE_AFTER_S = 5.0
"""A predecessor of this name that was killed was heard of shortly before us, but not since."""
NAMESAKE_AGE_S = 1.0
WHOLE_AFTER_S = 4.0
"""After the registry has lost what was in it: until then every member has said again which calls
are its own, and what it was refused."""
SAME_LOSS_S = 4.0
"""All members find a loss, one after the other, within a few beats; it is one."""
MAX_PAUSE_S = 900.0
"""Nobody says longer at once, whatever stands there."""

Pause = tuple[str, float]
"""What the model's service refuses, and until when."""


class Members:
    """This member's beats and the others'.

    Args:
        me: This process.
        my_address: Where others reach it.
        steps: The registry's.
        prover: Vouches for our address, and tells others' from those that anybody has written.

    Attributes:
        others: The members beside this one when they were last heard of.
    """

    def __init__(self, me: Member, my_address: str, steps: Steps, prover: Prover) -> None:
        self.others: dict[str, Seen] = {}
        self._me = me
        self._my_address = my_address
        self._steps = steps
        self._prover = prover
        self._vouched = prover.vouch(str(me), my_address)
        self._disbelieved = Sparing(60.0)
        self._load = Load()
        self._began_at: float | None = None
        self._heard_at = 0.0
        self._stamps: beats.Stamps = {}
        self._last_ms = 0
        self._begun, self._lost_at = b"", -math.inf
        self._has_namesake = False
        self._to_tell: Pause | None = None
        self._last_told: Pause | None = None
        self._paused: Pause | None = None

    def publish(self, load: Load) -> bool:
        """How this process is doing; returns whether the others need to know that at once."""
        before, self._load = self._load, load
        return (before.accepts, before.draining) != (load.accepts, load.draining)

    def tell_pause(self, kind: str, until: float) -> None:
        """The model's service refuses the account, until then; the next beat says so."""
        self._to_tell = self._last_told = (kind, until)

    def pause(self, now: float) -> Pause | None:
        """What another process was refused, and for how many seconds yet nobody needs to try."""
        if self._paused is None or self._paused[1] <= now:
            return None
        return self._paused[0], self._paused[1] - now

    def seen(self, now: float) -> Mapping[str, Seen]:
        """The others, as old as the news of them is by now."""
        since_s = max(0.0, now - self._heard_at)
        return {
            name: replace(seen, age_s=seen.age_s + since_s) for name, seen in self.others.items()
        }

    def knows(self, member: Member) -> bool:
        """Whether this member was there when all were last heard of."""
        return member == self._me or seen_of(self.others, member) is not None

    def beat(self, now: float) -> tuple[Step, Pause | None]:
        """What is to be said now, and the pause in it."""
        told = self._to_tell
        pause = None if told is None else (told[0], max(0.0, told[1] - now))
        load = beats.written(self._my_address, self._load, self._vouched)
        return self._steps.beat(str(self._me), load, self._last_ms, pause), told

    def heard(
        self, answer: Heard, told: Pause | None, now: float, *, asked_at: float | None = None
    ) -> bool:
        """The registry has answered a beat.

        Args:
            answer: What it says.
            told: The pause in the beat.
            now: The time.
            asked_at: When the beat was sent, if it is not now: that the answer was on its way, or
                that we were late to read it, is nobody's silence.

        Returns:
            Whether it has lost what was in it, or a part, as far as that has not been said.
        """
        if self._to_tell is told:
            self._to_tell = None
        if self._began_at is None:
            self._began_at = now
        self._heard_at, self._last_ms = now, answer.now_ms
        self._stamps = beats.stamps(answer.members, self._stamps, now)
        asked = now if asked_at is None else asked_at
        self.others = beats.seen(
            answer.members,
            self._me,
            answer.now_ms,
            lambda member, address, shown: self._believes(member, address, shown, now),
            lambda name: max(0.0, asked - self._stamps[name][1]),
        )
        if answer.lost:
            self._to_tell = self._last_told
        pause_s = min(max(answer.pause_ms / 1000, 0.0), MAX_PAUSE_S)
        paused = self._told_by_another(answer.pause, now + pause_s)
        # Whoever has told of a pause that is lost tells of it again, but later than we ask.
        if paused is not None or _is_whole(answer):
            self._paused = paused
        self._look_for_a_namesake(now - self._began_at)
        begun, before = answer.members.get(b"", b""), self._begun
        # Of a shard's loss only those hear whose calls were there; and several, one by one.
        is_said = self._steps.is_sharded and before not in (b"", begun)
        is_lost = answer.lost or (is_said and now - self._lost_at >= SAME_LOSS_S)
        self.has_begun_anew(begun, now if is_lost else self._lost_at)
        return is_lost

    def has_begun_anew(self, begun: bytes, lost_at: float) -> None:
        """When the registry has begun, as it stands there, and when a loss was last found."""
        self._begun, self._lost_at = begun, lost_at

    def _believes(self, member: Member, address: str, shown: str, now: float) -> bool:
        """Whether a member's address is what one of ours has said it is."""
        if self._prover.is_vouched(str(member), address, shown):
            return True
        self._disbelieved.log(
            now,
            logger.error,
            "what the registry says of a node is not proved, and it is left out: it has another "
            "CLUSTER_SECRET or is of an older version, or a stranger writes in the registry",
            member=str(member),
        )
        return False

    def _told_by_another(self, pause: bytes, until: float) -> Pause | None:
        teller, _, kind = pause.partition(b" ")
        if not teller or teller == str(self._me).encode():
            return None
        return kind.decode(errors="replace"), until

    def _look_for_a_namesake(self, for_s: float) -> None:
        if self._has_namesake or for_s < NAMESAKE_AFTER_S:
            return
        for seen in self.others.values():
            if seen.member.name == self._me.name and seen.age_s < NAMESAKE_AGE_S:
                self._has_namesake = True
                logger.error(
                    "another process has this one's name: each node needs a NODE of its own"
                )


def _is_whole(answer: Heard) -> bool:
    """Whether all that members have to say is in the registry, should it have lost something."""
    begun = answer.members.get(b"", b"")
    if not begun.isdigit() or len(begun) > beats.MAX_MS_DIGITS:
        return True  # it does not say since when
    return answer.now_ms - int(begun) >= WHOLE_AFTER_S * 1000
