"""What happens when, decided by a seed and nothing else."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FIRST_S = 6.0
"""Before the first fault: so long everything is well."""
LAST_S = 8.0
"""And so long after the last one."""
QUIET_S = (2.0, 6.0)
"""Between the end of a fault and the next one."""
TOGETHER = 0.15
"""How many begin in the middle of the one before."""

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault, as far as a schedule has to know it."""

    name: str
    lasts_s: Range
    draws: Mapping[str, Range | tuple[str, ...]] = field(default_factory=dict)
    """What else is drawn for each of them: a number between two, or one of several words."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault of a schedule."""

    at_s: float
    name: str
    lasts_s: float
    facts: Mapping[str, Any]


def schedule(seed: int, seconds: float, kinds: Sequence[Kind]) -> tuple[Planned, ...]:
    """Plan the faults of a run of so many seconds.

    They are dealt like cards: each kind once, in a new order every time, before any comes again.

    Raises:
        ValueError: There is nothing to choose from.
    """
    if not kinds:
        raise ValueError("a schedule needs at least one kind of fault")
    dice = random.Random(f"schedule/{seed}")
    planned: list[Planned] = []
    deck: list[Kind] = []
    at_s = FIRST_S
    while True:
        if not deck:
            deck = list(kinds)
            dice.shuffle(deck)
        kind = deck.pop()
        lasts_s = round(dice.uniform(*kind.lasts_s), 2)
        facts = {name: _draw(dice, choice) for name, choice in kind.draws.items()}
        if at_s + lasts_s > seconds - LAST_S:
            return tuple(planned)
        planned.append(Planned(round(at_s, 2), kind.name, lasts_s, facts))
        if dice.random() < TOGETHER:
            at_s += lasts_s * dice.random()
        else:
            end_s = max(one.at_s + one.lasts_s for one in planned)
            at_s = end_s + dice.uniform(*QUIET_S)


def _draw(dice: random.Random, choice: Range | tuple[str, ...]) -> Any:
    first = choice[0]
    if isinstance(first, str):
        return dice.choice(choice)
    low, high = choice
    if isinstance(low, int) and isinstance(high, int):
        return dice.randint(low, high)
    return round(dice.uniform(float(low), float(high)), 3)
