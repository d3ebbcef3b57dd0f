"""What the watch over a silent conversation says to the model."""

from __future__ import annotations

from server.call.watch import NUDGES
from server.dialogue.remedies import Awaited


def test_every_thing_awaited_has_a_nudge_but_the_greeting():
    assert set(NUDGES) == set(Awaited) - {Awaited.GREETING}
