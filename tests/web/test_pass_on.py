"""A media stream that is relayed to its call's process, message by message."""

from __future__ import annotations

import pytest
from websockets.exceptions import ConnectionClosedOK
from websockets.frames import Close

from server.web import pass_on


class Owner:
    """The process that has the call: what it says, and its goodbye."""

    def __init__(self, *said: str | bytes) -> None:
        self._said = list(said)

    async def recv(self) -> str | bytes:
        if not self._said:
            goodbye = Close(1000, "over")
            raise ConnectionClosedOK(goodbye, goodbye, rcvd_then_sent=True)
        return self._said.pop(0)


class Carrier:
    """The carrier's socket, as the process has it that the stream came to."""

    def __init__(self) -> None:
        self.told: list[object] = []

    async def send(self, message: str | bytes) -> None:
        self.told.append(message)

    async def aclose(self, code: int, reason: str) -> None:
        self.told.append((code, reason))


@pytest.mark.parametrize("said", ["a mark of Twilio's", b"\x01" * 160], ids=["text", "binary"])
async def test_whatever_a_carrier_is_told_is_passed_on_as_it_is(said):
    carrier = Carrier()

    await pass_on._from_owner(Owner(said), carrier)

    assert carrier.told == [said, (1000, "over")]
