"""The wish to stop, however often and whenever it is told."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from math import inf

import pytest
import trio
import trio.testing

from server.hooks import stopping
from server.hooks.stopping import StopSignals, signals_held_back

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


@pytest.fixture
def signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield StopSignals({signal.SIGTERM: False, signal.SIGINT: True})
    for number, handler in before.items():
        signal.signal(number, handler)


async def test_a_wish_from_before_there_was_a_loop_is_known_in_it(signals):
    signals.install()
    signal.raise_signal(signal.SIGTERM)
    stop = trio.Event()

    with signals.told(stop):
        assert stop.is_set()


async def test_the_first_of_any_kind_stops_and_the_same_wish_told_again_says_nothing_new(
    signals, monkeypatch
):
    monkeypatch.setattr(stopping, "AGAIN_AFTER_S", inf)
    signals.install()
    stop, again = trio.Event(), trio.Event()

    with signals.told(stop, again.set):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
        await stop.wait()
        await trio.testing.wait_all_tasks_blocked()

    assert not again.is_set()


async def test_who_asks_again_later_means_it_otherwise(signals, monkeypatch):
    signals.install()
    stop, again = trio.Event(), trio.Event()

    with signals.told(stop, again.set):
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr(stopping, "AGAIN_AFTER_S", 0.0)
        signal.raise_signal(signal.SIGTERM)  # of a kind that never does
        await trio.testing.wait_all_tasks_blocked()
        assert stop.is_set()
        assert not again.is_set()
        signal.raise_signal(signal.SIGINT)
        await again.wait()


async def test_which_signal_asked_again_is_known(signals, monkeypatch):
    signals.install()
    again = trio.Event()
    monkeypatch.setattr(stopping, "AGAIN_AFTER_S", 0.0)

    with signals.told(trio.Event(), again.set):
        signal.raise_signal(signal.SIGTERM)
        await trio.testing.wait_all_tasks_blocked()
        before = signals.again
        signal.raise_signal(signal.SIGINT)
        await again.wait()

    assert before == 0
    assert signals.again == signal.SIGINT
    assert signals.came == {signal.SIGTERM, signal.SIGINT}


async def test_who_asks_again_and_again_does_not_keep_what_is_left_from_being_cleared_away(
    signals, monkeypatch
):
    monkeypatch.setattr(stopping.os, "_exit", lambda status: pytest.fail("ended at once"))
    monkeypatch.setattr(stopping, "AGAIN_AFTER_S", 0.0)
    monkeypatch.setattr(stopping, "INSISTED", 2)
    signals.install()
    again = trio.Event()

    with signals.told(trio.Event(), again.set):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        await again.wait()
    signal.raise_signal(signal.SIGINT)

    assert signals.again == signal.SIGINT


def freeze(seconds: float) -> None:
    """Do what SIGSTOP does to the loop."""
    time.sleep(seconds)


@pytest.mark.parametrize("has_turned", [False, True])
async def test_what_was_said_with_the_first_is_no_second_wish_when_we_were_held_up_between(
    signals, has_turned
):
    signals.install()
    stop, again = trio.Event(), trio.Event()

    with signals.told(stop, again.set):
        signal.raise_signal(signal.SIGTERM)
        if has_turned:
            await stop.wait()
        freeze(stopping.AGAIN_AFTER_S + 0.1)  # and what was sent meanwhile comes first
        signal.raise_signal(signal.SIGINT)
        await trio.testing.wait_all_tasks_blocked()

    assert stop.is_set()
    assert not again.is_set()


async def test_who_insists_is_heard_though_the_loop_hangs(signals, monkeypatch):
    signals.install()
    monkeypatch.setattr(stopping, "AGAIN_AFTER_S", 0.0)
    stop, again = trio.Event(), trio.Event()

    with signals.told(stop, again.set):
        for _ in range(stopping.INSISTED):  # the loop does not turn between them
            signal.raise_signal(signal.SIGINT)
        await trio.testing.wait_all_tasks_blocked()

    assert again.is_set()


async def test_a_first_wish_at_the_very_end_of_a_loop_ends_it_as_ever(signals):
    signals.install()
    stop = trio.Event()

    with signals.told(stop):
        signal.raise_signal(signal.SIGTERM)
    await stop.wait()


async def test_a_signal_after_the_last_loop_does_nothing_by_default(signals):
    signals.install()
    with signals.told(trio.Event()):
        pass

    signal.raise_signal(signal.SIGTERM)  # this process is still here

    assert signals.asked


def test_a_second_ctrl_c_ends_a_process_that_has_no_loop_either():
    script = """
import os, signal, time
from server.hooks import stopping
stopping.StopSignals({signal.SIGINT: True}).install()
signal.raise_signal(signal.SIGINT)
stopping.AGAIN_AFTER_S = 0.0
signal.raise_signal(signal.SIGINT)
"""
    ended = subprocess.run([sys.executable, "-c", script], check=False)

    assert ended.returncode == 128 + signal.SIGINT


@pytest.mark.parametrize(
    ("started_with", "is_caught"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)]
)
def test_a_terminal_that_closes_is_a_wish_to_stop_unless_that_is_ignored(started_with, is_caught):
    script = """
import signal
from server.hooks.stopping import StopSignals, hang_up
signals = StopSignals(dict.fromkeys(hang_up(), False))
signals.install()
signal.raise_signal(signal.SIGHUP)
print(signals.asked)
"""
    before = signal.signal(signal.SIGHUP, started_with)  # which a new process inherits
    try:
        ended = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    finally:
        signal.signal(signal.SIGHUP, before)

    assert ended.stdout.split() == [str(is_caught).encode()]


def test_what_comes_while_a_process_starts_waits_until_it_can_be_caught():
    script = """
import os, signal
os.kill(os.getpid(), signal.SIGTERM)
from server.hooks.stopping import StopSignals
signals = StopSignals({signal.SIGTERM: False})
assert not signals.asked
signals.install()
assert signals.asked
"""
    with signals_held_back(signal.SIGTERM):
        process = subprocess.Popen([sys.executable, "-c", script])

    assert process.wait() == 0
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_process_at_its_very_end_is_not_ended_by_a_wish_to_stop():
    """Its handlers are gone by then, and a thread may be left that would take the signal."""
    code = """
import os, signal, threading, time
from server.hooks.stopping import StopSignals
StopSignals({signal.SIGTERM: False}).install()
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
class Late:
    def __del__(self, kill=os.kill, me=os.getpid(), number=signal.SIGTERM):
        kill(me, number)
late = Late()
"""

    ended = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)

    assert ended.returncode == 0


async def test_a_signal_that_asks_to_read_something_again_stops_nothing(signals):
    signals.install()
    stop, again = trio.Event(), trio.Event()
    signals.on_reload = again.set
    signals.reload_by([signal.SIGTERM])

    with signals.told(stop):
        signal.raise_signal(signal.SIGTERM)
        await again.wait()

    assert not stop.is_set()
    assert not signals.asked
