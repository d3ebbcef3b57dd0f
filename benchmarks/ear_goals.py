"""What the ear has to reach, and whether it does: a table, with the ear of a detector beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rich.table import Table

from benchmarks.listening import Soon
from server.dialogue.remedies import Patience

ALL_BUT = 2
"""In so many noises a hold or two in ten minutes is borne; in all others there is to be none."""
BORNE = 5.0
COSTED_CALLS = 100
CALL_MS = 1.4
"""What a call costs of a core in a second, at the least that was ever measured."""


class Figures(Protocol):
    """What was measured of an ear."""

    @property
    def holds(self) -> Mapping[str, float]: ...
    @property
    def holds_at_5_db(self) -> Mapping[str, float]: ...
    @property
    def coughs(self) -> float: ...
    @property
    def sentences(self) -> Mapping[str, Soon]: ...
    @property
    def turns(self) -> Mapping[str, Soon]: ...
    @property
    def ends(self) -> Mapping[str, Soon]: ...
    @property
    def noticed_s(self) -> Mapping[str, float | None]: ...


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure of an ear's, in words, and whether it is what is wanted."""

    what: str
    wanted: str
    found: str
    is_met: bool


def goals(figures: Figures, noises: Sequence[str]) -> list[Goal]:
    """What has to be so of an ear's figures.

    Args:
        figures: The ear's.
        noises: Names of noises in which nobody speaks, as far as they are there.
    """
    levels = ("quiet line", "20 dB", "15 dB")
    holds = [figures.holds[name] for name in noises]
    noticed = [figures.noticed_s.get(name) for name in noises]
    late_s = max((math.inf if at is None else at for at in noticed), default=math.inf)
    return [
        Goal(
            f"false holds in 10 min, 15 dB: {' '.join(noises)}",
            f"< 1, in {ALL_BUT} of them <= {BORNE:g}",
            " ".join(f"{each:.0f}" for each in holds),
            sum(each >= 1 for each in holds) <= ALL_BUT and max(holds) <= BORNE,
        ),
        _at_most(
            "the same, 5 dB, the worst of them",
            BORNE,
            max(figures.holds_at_5_db[name] for name in noises),
        ),
        _each("hold after the first sound, p50 ms", levels, (80, 90, 110),
              lambda level: figures.sentences[level].p50_ms),
        _each("sentences without a hold, %", levels, (0, 3, 3),
              lambda level: 100 * figures.sentences[level].missed),
        _each("short words that begin no turn, agent silent, %", levels, (2, 5, 8),
              lambda level: 100 * figures.turns[level].missed),
        _at_most("coughs that hold, %", 5, 100 * figures.coughs),
        _at_most("end of speech found, p95 ms, 15 dB", 900, figures.ends["15 dB"].p95_ms),
        _at_most("end of speech never found, %, 10 dB", 3, 100 * figures.ends["10 dB"].missed),
        _at_most(
            "silent model noticed in each noise, s", Patience().reply_timeout_s + 1.0, late_s
        ),
    ]  # fmt: skip


def cost_goals(costs: Mapping[str, Mapping[int, float]], ear: str, before: str) -> list[Goal]:
    """What the judge may cost; a busy machine says nothing about it."""
    rooms = costs[f"{ear}, rooms"][COSTED_CALLS] - costs[f"{before}, rooms"][COSTED_CALLS]
    quiet = costs[f"{ear}, quiet lines"][COSTED_CALLS]
    without = costs[f"{before}, quiet lines"][COSTED_CALLS]
    return [
        _at_most("more CPU, noise on 100 lines, ms a call and second", 0.6, rooms),
        _at_most("more CPU, 100 quiet lines, % of a call", 2, 100 * (quiet - without) / CALL_MS),
    ]


def table_of(found: Mapping[str, Sequence[Goal]]) -> Table:
    """All goals, of every ear."""
    table = Table("what", "wanted", *found, title="Must be shown")
    for rows in zip(*found.values(), strict=True):
        cells = (f"{goal.found}{'' if goal.is_met else ' (missed)'}" for goal in rows)
        table.add_row(rows[0].what, rows[0].wanted, *cells)
    return table


def _at_most(what: str, bound: float, found: float) -> Goal:
    return Goal(what, f"<= {bound:g}", f"{found:.3g}", found <= bound)


def _each(
    what: str,
    levels: Sequence[str],
    bounds: Sequence[float],
    figure: Callable[[str], float],
) -> Goal:
    found = [figure(level) for level in levels]
    return Goal(
        f"{what}, {' / '.join(levels)}",
        "<= " + " / ".join(f"{bound:g}" for bound in bounds),
        " / ".join(f"{each:.3g}" for each in found),
        all(each <= bound for each, bound in zip(found, bounds, strict=True)),
    )
