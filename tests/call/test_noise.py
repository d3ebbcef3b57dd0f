"""Calls out of rooms that are never silent, with a model that is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from server.dialogue.belief import BELIEVED_S
from server.simulators.phone import load_speech
from server.simulators.phone.steps import PhoneScript, SayFrames
from tests.support.noises import NOISES, frames_of, linear, room
from tests.support.rig import calling

GREETED_S = 8.0
PATIENT_S = 1.0
"""What a mock clock's twentieths of a second and the ear's half second of silence come to."""


class Asking:
    """Somebody who asks one thing in a room, when the greeting is over, and then waits."""

    def __init__(self, name: str) -> None:
        self.asked_at = 0.0
        samples = room(name, 60.0)
        question = linear(load_speech("question"))
        begins = round(GREETED_S * 8_000)
        samples[begins : begins + len(question)] += question
        self._frames = frames_of(samples)
        self._last = (begins + len(question)) // 160

    def frames(self) -> Iterator[bytes]:
        for number, frame in enumerate(self._frames):
            if number == self._last:
                self.asked_at = trio.current_time()
            yield frame

    @property
    def script(self) -> PhoneScript:
        return PhoneScript("asks in a room", (SayFrames(self.frames()),))


@pytest.mark.parametrize("name", NOISES)
async def test_a_silent_model_is_noticed_in_any_room(autojump_clock, name):
    asking = Asking(name)

    async with calling(callee=asking.script, script="deaf-model") as rig:
        await rig.noted_s("watchdog nudge")
        noticed_s = trio.current_time() - asking.asked_at

    assert 0.0 < noticed_s < BELIEVED_S + PATIENT_S
