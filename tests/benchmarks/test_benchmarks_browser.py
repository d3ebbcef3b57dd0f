"""What the benchmark of calls from a browser is held to."""

from __future__ import annotations

from benchmarks.browser import GREETING_MS, INTERRUPTION_MS, broken_bounds


def calls(greeting_ms: float, *interruptions_ms: float | None) -> list[dict[str, float | None]]:
    return [{"greeting_ms": greeting_ms, "interruption_ms": each} for each in interruptions_ms]


def test_bounds_that_are_met_to_the_millisecond_hold():
    figures = {"wide, prepared": calls(GREETING_MS, INTERRUPTION_MS, None)}

    assert broken_bounds(figures) == []


def test_a_greeting_is_held_to_its_bound_where_it_was_prepared():
    late = calls(GREETING_MS + 1, 10.0)

    broken = broken_bounds({"wide, prepared": late, "wide, not prepared": late})

    assert broken == ["greeting of a call (wide, prepared): p95 is 301 ms, at most 300"]


def test_an_interruption_that_is_late_or_was_never_heard_breaks_its_bound():
    figures = {
        "wide, not prepared": calls(900.0, INTERRUPTION_MS + 1),
        "telephone, prepared": calls(10.0, None),
    }

    assert broken_bounds(figures) == [
        "interruption of a call (wide, not prepared): p95 is 151 ms, at most 150",
        "interruption of a call (telephone, prepared): not measured",
    ]
