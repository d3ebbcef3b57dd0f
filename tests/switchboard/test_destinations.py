from __future__ import annotations

import pytest

from server.switchboard.destinations import Destinations

COSTLY = {
    "+19005551234": "premium",
    "+5809001234567": "premium",
    "+448712345678": "premium",
    "+443031231234": "universal access",
    "+447012345678": "personal",
    "+80812345678": "shared-cost",
    "+870773111632": "satellite",
    "+881612345678": "satellite",
    "+88213123456": "international networks",
    "+883510012345": "international networks",
    "+979123456789": "premium",
}
ORDINARY = ["+584125551234", "+442079460000", "+8801712345678", "+886912345678", "+18765551234"]


@pytest.mark.parametrize("number", [*COSTLY, *ORDINARY])
def test_a_simulation_calls_anything(number):
    assert Destinations((), refuse_costly=False).refusal(number) is None


@pytest.mark.parametrize(("number", "kind"), COSTLY.items())
def test_costly_ranges_are_refused_and_named(number, kind):
    assert kind in (Destinations((), refuse_costly=True).refusal(number) or "")


@pytest.mark.parametrize("number", [*ORDINARY, "+15005550006"])
def test_ordinary_numbers_and_the_carriers_test_numbers_are_called(number):
    assert Destinations((), refuse_costly=True).refusal(number) is None


@pytest.mark.parametrize(
    ("prefixes", "number", "allowed"),
    [
        (("+58",), "+584125551234", True),
        (("+58",), "+442079460000", False),
        (("+58", "+44"), "+442079460000", True),
        (("+1",), "+19005551234", False),  # a country does not open its premium-rate numbers
        (("+1900",), "+19005551234", True),
        (("+8",), "+881612345678", False),
        (("+881",), "+881612345678", True),
        (("+8816",), "+881612345678", True),
    ],
)
def test_prefixes_say_what_may_be_called(prefixes, number, allowed):
    refusal = Destinations(prefixes, refuse_costly=True).refusal(number)

    assert (refusal is None) is allowed
