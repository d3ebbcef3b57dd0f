"""Percentiles of what was measured, the same way in every benchmark."""

from __future__ import annotations

from collections.abc import Iterable

PLACES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "p999": 0.999, "max": 1.0}


def percentiles(
    values: Iterable[float], names: Iterable[str], *, unit: float = 1.0, digits: int = 3
) -> dict[str, float]:
    """Rank values and take those at some places.

    Args:
        values: In any order.
        names: Of :data:`PLACES`.
        unit: What each is multiplied by: 1000 for milliseconds of values in seconds.
        digits: After the point.

    Returns:
        One of the values for each name, none between two of them; empty if there are no values.
    """
    ranked = sorted(values)
    if not ranked:
        return {}
    last = len(ranked) - 1
    return {
        name: round(unit * ranked[min(last, int(len(ranked) * PLACES[name]))], digits)
        for name in names
    }
