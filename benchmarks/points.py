"""Points of a comparison: one server under so many calls, measured in turns with others."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.options import Options
from benchmarks.point import CLASSIC, PICOWS, PointFailed, ServerKind, run_point

WINDOW_S = 8.0
"""Two turns of every call, one of them interrupted."""
LIMIT_MS = 20.0
"""A frame's own length: p99 caller to model beyond it is the end of a server's range."""
IDLE = 0.1
"""A core busier than this before we begin is somebody else's."""
TRIES = 3
"""Looks at a point that somebody else has disturbed; then it is taken as it is, and said."""


@dataclass(frozen=True, slots=True)
class Point:
    """One server under so many calls."""

    kind: ServerKind
    calls: int
    outcome: dict[str, Any]
    tls: bool = False

    @property
    def p99_ms(self) -> float:
        p99: float | None = self.outcome["caller_to_model_ms"]["p99"]
        return float("inf") if p99 is None else p99

    @property
    def others(self) -> float:
        """How much of the server's core other programs had, the machine's own included."""
        return self.outcome["others_on_server_core"] or 0.0

    @property
    def is_disturbed(self) -> bool:
        """Whether that is too much to speak of the server alone."""
        return self.others > IDLE

    def is_better_than(self, other: Point) -> bool:
        """Whether this says more about the server than another look at the same."""
        return (self.is_disturbed, self.p99_ms) < (other.is_disturbed, other.p99_ms)

    def as_dict(self) -> dict[str, Any]:
        """The figures other tools read."""
        outcome = self.outcome
        return {
            "server": self.kind.name,
            "calls": self.calls,
            "cpu_ms_per_call_s": round(outcome["cpu_ms_per_call_s"], 4),
            "caller_to_model_ms": outcome["caller_to_model_ms"],
            "agent_to_caller_ms": outcome["agent_to_caller_ms"],
            "first_chunk_ms": outcome["first_chunk_ms"],
            "interrupt_to_clear_ms": outcome["interrupt_to_clear_ms"],
            "lost_ms": round(outcome["lost_ms"], 3),
            "stale_ms": round(outcome["stale_ms"], 3),
            "rss_kib_per_call": round(outcome["rss_kib_per_call"], 1),
        }


WORST = ("lost_ms", "doubled_ms", "late_ms", "stale_ms", "calls_lost", "missed_clears")
"""Of several looks the worst counts, and not the median."""


def middle(looks: Sequence[Point]) -> Point:
    """What several looks at the same come to: the median of each figure."""
    first = looks[0]
    outcomes = [look.outcome for look in looks]
    worst = {name: max(each[name] for each in outcomes) for name in WORST if name in first.outcome}
    return Point(first.kind, first.calls, _medians(outcomes) | worst, first.tls)


def _medians(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in outcomes[0].items():
        values = [each[name] for each in outcomes if each.get(name) is not None]
        if isinstance(value, Mapping):
            found[name] = _medians(values)
        elif values and all(isinstance(each, int | float) for each in values):
            found[name] = statistics.median(values)
        else:
            found[name] = value
    return found


class Measure:
    """Runs points, and says so."""

    def __init__(self, options: Options) -> None:
        self.failures: list[dict[str, Any]] = []
        self._console = options.console
        self._window_s = options.arguments.seconds or (4.0 if options.quick else WINDOW_S)
        self._realtime = options.arguments.realtime
        self._consoles = options.arguments.consoles
        self._rounds = options.arguments.rounds

    def points(
        self, kinds: Sequence[ServerKind], numbers: Sequence[int], *, tls: bool = False
    ) -> list[Point]:
        """Each server under each number of calls, in turns, until its audio is late."""
        points, running = [], list(kinds)
        for calls in numbers:
            looks: dict[str, list[Point]] = {kind.name: [] for kind in running}
            for _ in range(self._rounds):
                for kind in running:
                    if (point := self.point(kind, calls, tls=tls)) is not None:
                        looks[kind.name].append(point)
            measured = [middle(each) for each in looks.values() if each]
            points += measured
            running = [point.kind for point in measured if point.p99_ms <= LIMIT_MS]
        return points

    def point(
        self, kind: ServerKind, calls: int, *, tls: bool = False, workers: int = 1
    ) -> Point | None:
        """One point; None if the server did not get that far."""
        best = None
        for attempt in range(1, TRIES + 1):
            with self._console.status(f"{calls} calls, {kind.name}{', TLS' if tls else ''}"):
                point = self._once(kind, calls, tls, workers)
            if point is not None and (best is None or point.is_better_than(best)):
                best = point
            # A pause of the machine is no verdict on a server: the end is looked at twice, and so
            # is a point in which somebody else had the core.
            if best is not None and not best.is_disturbed:
                if best.p99_ms <= LIMIT_MS or attempt >= 2:
                    break
                continue
            if best is not None and attempt < TRIES:
                self._console.print(
                    f"{kind.name}, {calls} calls: measured again, as other programs had "
                    f"{best.others:.0%} of the server's core"
                )
        return best

    def _once(self, kind: ServerKind, calls: int, tls: bool, workers: int) -> Point | None:
        try:
            outcome = run_point(
                kind,
                calls,
                window_s=self._window_s,
                tls=tls,
                workers=workers,
                realtime=self._realtime,
                consoles=0 if kind in (CLASSIC, PICOWS) else self._consoles,
            )
        except PointFailed as failure:
            self._console.print(f"[red]{kind.name}, {calls} calls: no figure[/]\n{failure}")
            self.failures.append({"server": kind.name, "calls": calls, "why": str(failure)})
            return None
        del outcome["call_sids"], outcome["looked"], outcome["samples_ms"]
        self._check_path(kind, calls, outcome["media_paths"])
        return Point(kind, calls, outcome, tls)

    def _check_path(self, kind: ServerKind, calls: int, paths: dict[str, float]) -> None:
        """The server itself says which path its calls took."""
        wanted = kind.environment.get("MEDIA_PATH")
        if wanted is None:
            return
        if not paths:
            self._console.print(f"{kind.name} does not say which path its calls took")
        elif any(count for path, count in paths.items() if path != wanted):
            self._console.print(
                f"[red]{kind.name}, {calls} calls: not all on the {wanted} path[/]: {paths}"
            )
