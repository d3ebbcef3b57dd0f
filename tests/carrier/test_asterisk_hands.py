"""When a stream of Asterisk's may begin: what is said before somebody hears it is lost."""

from __future__ import annotations

import pytest
import trio

from server.carrier.asterisk.ari import Ari
from server.carrier.asterisk.hands import JOIN_TIMEOUT_S, Hands
from server.carrier.asterisk.steps import Drop, Join, OpenStream
from server.errors import CarrierError

CALL, MEDIA = "1764.1", "offhook-media-1764.1"


class SlowAri(Ari):
    """One that is held up: each request of it takes so long."""

    def __init__(self, takes_s: float, refuses: str) -> None:
        super().__init__("http://127.0.0.1:8088", "user", "secret", timeout_s=10.0)
        self._takes_s = takes_s
        self._refuses = refuses

    async def post(self, *path: str, **query: object) -> None:
        await trio.sleep(self._takes_s)
        if self._refuses in path:
            raise CarrierError("refused", status=500)

    async def delete(self, *path: str, **query: object) -> bool:
        await trio.sleep(self._takes_s)
        return True


def hands(takes_s: float, refuses: str = "") -> Hands:
    return Hands(
        SlowAri(takes_s, refuses),
        app="offhook",
        apps="offhook",
        client="offhook",
        law="ulaw",
        apology="sound:sorry",
        process="",
        longest_s=3600.0,
    )


@pytest.mark.parametrize("takes_s", [0.0, 0.005, 1.1, 3.0, 9.9])
async def test_a_stream_begins_when_its_caller_hears_it_however_slow_asterisk_is(
    autojump_clock, nursery, takes_s
):
    one = hands(takes_s)
    await one.do(OpenStream(CALL, MEDIA, "ticket"))
    began = trio.current_time()

    nursery.start_soon(one.do, Join(CALL, MEDIA))

    assert await one.wait_joined(MEDIA)
    assert trio.current_time() - began == pytest.approx(2 * takes_s)  # the bridge, and who is in it


async def test_a_stream_that_is_dropped_before_its_caller_hears_it_waits_no_longer(
    autojump_clock, nursery
):
    one = hands(1.0)
    await one.do(OpenStream(CALL, MEDIA, "ticket"))
    began = trio.current_time()

    nursery.start_soon(one.do, Drop(MEDIA))

    assert not await one.wait_joined(MEDIA)
    assert trio.current_time() == began


async def test_a_stream_whose_join_is_refused_is_not_waited_for(autojump_clock, nursery):
    one = hands(1.0, refuses="addChannel")
    await one.do(OpenStream(CALL, MEDIA, "ticket"))
    began = trio.current_time()

    async def join() -> None:
        with pytest.raises(CarrierError):
            await one.do(Join(CALL, MEDIA))

    nursery.start_soon(join)

    assert not await one.wait_joined(MEDIA)
    assert trio.current_time() - began == pytest.approx(2.0)


async def test_a_stream_of_which_nothing_is_told_is_not_waited_for_for_ever(autojump_clock):
    one = hands(0.0)
    await one.do(OpenStream(CALL, MEDIA, "ticket"))
    began = trio.current_time()

    assert not await one.wait_joined(MEDIA)
    assert trio.current_time() - began == pytest.approx(JOIN_TIMEOUT_S)
