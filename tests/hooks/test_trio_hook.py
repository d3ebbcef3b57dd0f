"""The hook into trio: sockets are served while it sleeps, and it wakes for what is its own."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from codec.path import WebSocket
from server.hooks.trio_loop import serving_while_trio_sleeps
from server.media import plane as plane_module
from server.media.plane import Plane
from tests.support.peers import Peer

pytestmark = pytest.mark.skipif(not plane_module.AVAILABLE, reason="needs epoll")


class Bell:
    """Serves one socket: what comes is counted, and given to whoever asked."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.rung = 0
        self.waits = 0
        self.between = 0
        self.on_ring: Callable[[], None] | None = None
        self._epoll = select.epoll()
        self._epoll.register(self.ours, select.EPOLLIN)

    def watch(self, number: int) -> None:
        self._epoll.register(number, select.EPOLLIN)

    def serve_until(self, timeout_s: float, wakes_at: int, has_work: Callable[[], bool]) -> bool:
        while ready := self._epoll.poll(timeout_s):
            self.waits += 1
            for number, _ in ready:
                if number == self.ours.fileno():
                    self.rung += len(self.ours.recv(100))
                    if self.on_ring is not None:
                        self.on_ring()
            if has_work() or any(number == wakes_at for number, _ in ready):
                return True
        return False

    def serve_now(self) -> None:
        self.between += 1

    def close(self) -> None:
        self._epoll.close()
        self.ours.close()
        self.theirs.close()


@contextmanager
def hooked() -> Generator[Bell]:
    bell = Bell()
    try:
        with serving_while_trio_sleeps(bell) as number:
            assert number is not None, "not the trio that trio_loop.py was written for"
            bell.watch(number)
            yield bell
    finally:
        bell.close()


async def test_this_trio_can_be_hooked_and_a_plane_is():
    plane = Plane()
    async with trio.open_nursery() as nursery:
        await nursery.start(plane.run)
        with closing(Bell()) as bell, serving_while_trio_sleeps(bell) as number:
            assert number is None, "only one at a time: the second is an ordinary task"
        nursery.cancel_scope.cancel()

    with hooked():
        pass


async def test_a_second_plane_is_an_ordinary_task_and_serves_as_the_first_does(nursery):
    planes = Plane(), Plane()
    for plane in planes:
        await nursery.start(plane.run)

    for plane in planes:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        wire = plane.new_wire(ours, WebSocket(is_client=False, max_message_bytes=1024))
        peer = Peer(theirs)
        with closing(wire), closing(peer.sock), trio.fail_after(60):
            for _ in range(3):
                await peer.send(b"asked")
                assert await wire.receive() == (b"asked", True)
                wire.send_text(b"answered")
                assert await peer.receive() == b"answered"


async def test_sockets_are_served_without_any_task():
    with hooked() as bell:
        bell.theirs.send(b"x")
        with trio.move_on_after(0.05):
            await trio.sleep_forever()

        assert bell.rung == 1


async def test_what_is_served_can_wake_a_task():
    with hooked() as bell:
        rung = trio.Event()
        bell.on_ring = rung.set
        bell.theirs.send(b"x")
        with trio.fail_after(60):
            await rung.wait()


async def test_an_earlier_deadline_set_by_what_is_served_counts():
    with hooked() as bell, trio.fail_after(60), trio.CancelScope() as scope:

        def hurry() -> None:
            scope.deadline = trio.current_time()

        bell.on_ring = hurry
        bell.theirs.send(b"x")
        await trio.sleep_forever()

    assert scope.cancelled_caught


async def test_trios_own_sockets_threads_and_timers_go_on():
    with hooked() as bell, trio.fail_after(60):
        here, there = trio.socket.socketpair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.send, b"hello")
            assert await there.recv(10) == b"hello"
        here.close()
        there.close()
        assert await trio.to_thread.run_sync(threading.get_ident) != threading.get_ident()
        await trio.sleep(0.001)
        await wait_all_tasks_blocked()

        assert bell.waits > 0


async def test_the_mock_clock_goes_on(autojump_clock):
    with hooked(), trio.fail_after(7200):
        await trio.sleep(3600)


async def test_between_the_tasks_of_a_long_pass_sockets_are_served(monkeypatch):
    monkeypatch.setattr("server.hooks.trio_loop.BETWEEN_S", 0.0)
    with hooked() as bell:
        served: list[int] = []

        async def work() -> None:
            served.append(bell.between)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(work)

    assert served == sorted(set(served))  # once at least between each two of them


async def test_afterwards_trio_is_as_it_was():
    with hooked():
        pass
    await trio.sleep(0.001)
    assert await trio.to_thread.run_sync(lambda: 1) == 1
