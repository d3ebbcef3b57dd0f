"""Whether what was seen keeps what is promised: bounds, figures and verdicts, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.failover.seen import Asked, Noticed
from benchmarks.percentiles import percentiles

SHOWN = ("p50", "p95", "max")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is promised of the calls that are up when a fault happens."""

    stream_max_s: float | None = None
    """Until each has its new media stream."""
    heard_p95_s: float | None = None
    """Until the agent is heard again."""
    least_hit: float = 0.0
    """The share of the calls that has to notice something, or nothing was tried."""
    nobody_notices: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """One thing beside the calls that was looked at."""

    what: str
    bound: str
    measured: str
    holds: bool


@dataclass(slots=True)
class Outcome:
    """What came of one fault."""

    wanted: int = 0
    """How many calls were to be up."""
    calls: Sequence[Noticed] = ()
    """Those that were."""
    by_old: Sequence[Asked] = ()
    """What the node that is gone has asked of the carrier about its calls after the fault."""
    twice: Sequence[str] = ()
    """Calls that two had at once, and how that is known."""
    records: int | None = None
    """How many calls have to have a record; None if it was not looked at."""
    unsound: Sequence[str] = ()
    checks: list[Check] = field(default_factory=list)
    failed: str = ""
    """Why there is no more than this, if the row did not come through."""
    seconds: float = 0.0

    @property
    def hit(self) -> list[Noticed]:
        """The calls that noticed something."""
        return [call for call in self.calls if call.is_hit]

    @property
    def lived(self) -> int:
        """How many calls lived."""
        return sum(call.lived for call in self.calls)

    @property
    def stream_s(self) -> dict[str, float]:
        """Until the new stream."""
        return percentiles((c.stream_s for c in self.calls if c.stream_s is not None), SHOWN)

    @property
    def heard_s(self) -> dict[str, float]:
        """Until the agent was heard again."""
        return percentiles((c.heard_s for c in self.calls if c.heard_s is not None), SHOWN)

    def figures(self) -> dict[str, Any]:
        """For a file of JSON."""
        return {
            "failed": self.failed,
            "wanted": self.wanted,
            "calls": len(self.calls),
            "lived": self.lived,
            "noticed": len(self.hit),
            "stream_s": self.stream_s,
            "heard_s": self.heard_s,
            "all_heard_s": sorted(round(c.heard_s, 3) for c in self.calls if c.heard_s is not None),
            "by_old": [f"{one.what} {one.call_sid}" for one in self.by_old],
            "twice": list(self.twice),
            "records": self.records,
            "unsound": list(self.unsound),
            "checks": [
                {"what": c.what, "bound": c.bound, "measured": c.measured, "holds": c.holds}
                for c in self.checks
            ],
            "seconds": round(self.seconds, 1),
        }


def broken(outcome: Outcome, bounds: Bounds) -> list[str]:
    """What was promised and not kept, in whole words; nothing if all was."""
    found = [outcome.failed] if outcome.failed else []
    up, hit = len(outcome.calls), outcome.hit
    if up < outcome.wanted:
        found.append(f"only {up} of {outcome.wanted} calls were up")
    if outcome.lived < up:
        found.append(f"{up - outcome.lived} of {up} calls ended")
    if bounds.nobody_notices and hit:
        found.append(f"{len(hit)} of {up} calls noticed it")
    if len(hit) < bounds.least_hit * up:
        found.append(f"only {len(hit)} of {up} calls were met by it")
    deaf = sum(call.is_deaf for call in hit)
    if deaf:
        found.append(f"{deaf} calls live and have not heard the agent again")
    for name, figures, which, most_s in (
        ("the new stream", outcome.stream_s, "max", bounds.stream_max_s),
        ("the agent", outcome.heard_s, "p95", bounds.heard_p95_s),
    ):
        if most_s is not None and figures and figures[which] > most_s:
            found.append(f"{name} came after {figures[which]:.2f} s ({which}), not {most_s:g}")
    if outcome.by_old:
        found.append(f"the old node asked {len(outcome.by_old)} things of the carrier")
    if outcome.twice:
        found.append(f"{len(outcome.twice)} calls were handled twice")
    if outcome.unsound:
        found.append(f"{len(outcome.unsound)} records are missing or not whole")
    found += [f"{c.what}: {c.measured}, not {c.bound}" for c in outcome.checks if not c.holds]
    return found
