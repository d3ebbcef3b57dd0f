"""A media stream that is relayed to its call's process, message by message."""

from __future__ import annotations

import pytest
import trio
from trio.testing import memory_stream_pair
from websockets.exceptions import ConnectionClosedOK
from websockets.frames import Close

from server.cluster.passing_on import WorkerLost
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

    def __init__(self, query: bytes = b"") -> None:
        self.told: list[object] = []
        self.scope = {"path": "/n/1/stream", "query_string": query, "headers": []}

    async def send(self, message: str | bytes) -> None:
        self.told.append(message)

    async def aclose(self, code: int, reason: str) -> None:
        self.told.append((code, reason))


@pytest.mark.parametrize("said", ["a mark of Twilio's", b"\x01" * 160], ids=["text", "binary"])
async def test_whatever_a_carrier_is_told_is_passed_on_as_it_is(said):
    carrier = Carrier()

    await pass_on._from_owner(Owner(said), carrier)

    assert carrier.told == [said, (1000, "over")]


@pytest.mark.parametrize("query", [b"a#b", b"a=b"], ids=["no address", "nobody there"])
async def test_the_way_to_another_process_is_closed_if_it_leads_to_none(autojump_clock, query):
    ours, theirs = memory_stream_pair()

    with pytest.raises(WorkerLost):
        await pass_on.relay_media(
            Carrier(query),
            ours,
            {},
            passed_on=(),
            name="1",
            max_message_bytes=1_000,
            timeout_s=1.0,
        )

    asked = b""
    with trio.fail_after(5.0):
        while more := await theirs.receive_some():
            asked += more
    assert asked.startswith(b"GET /n/1/stream?a=b ") or not asked
