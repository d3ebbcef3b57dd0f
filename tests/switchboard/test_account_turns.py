"""Dialling where other machines dial for the same account: one rate for all of them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import trio
from prometheus_client import CollectorRegistry

from server.cluster.alone import Alone
from server.cluster.registry import Load, Member, RegistryAway, Seen
from server.errors import CallRefused
from server.metrics import Metrics
from server.switchboard.account_turns import AccountTurns, share_s
from server.switchboard.admission import Admission, Limits
from tests.support.redis_servers import IGNORES_UNCLOSED, member, redis_server, until

PER_S = 5.0


def of_redis(test):
    for mark in (pytest.mark.sockets, *IGNORES_UNCLOSED):
        test = mark(test)
    return test


@pytest.fixture
def redis():
    with redis_server() as server:
        yield server


class Turns(Alone):
    """A registry of several processes in one: it knows whose turn it is."""

    def __init__(self) -> None:
        super().__init__(Member("n0", 1))
        self.free_at = 0.0
        self.asked = 0
        self.away = False
        self.seen: list[Seen] = []

    def others(self):
        return {seen.member.name: seen for seen in self.seen}

    async def dial_turn(self, account: str, calls_per_s: float, max_wait_s: float) -> float | None:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if self.away:
            raise RegistryAway("it is away")
        now = trio.current_time()
        turn = max(self.free_at, now)
        if turn - now > max_wait_s:
            return None
        self.free_at = turn + 1 / calls_per_s
        return turn - now


def admission_of(turns: Turns, **limits) -> Admission:
    limits = Limits(calls_per_s=PER_S, **limits)
    metrics = Metrics(CollectorRegistry())
    return Admission(limits, metrics, AccountTurns(turns, "AC1", PER_S))


async def dial(admission: Admission, client: str, dialled: list[tuple[str, float]]) -> None:
    await admission.wait_turn(client)
    dialled.append((client, trio.current_time()))


def other(number: int, age_s: float) -> Seen:
    return Seen(Member(f"n{number}", 1), Load(), age_s, "")


async def test_processes_dial_at_the_accounts_rate_together(autojump_clock):
    turns, dialled = Turns(), []
    processes = [admission_of(turns) for _ in range(3)]
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for admission in processes:
            for _ in range(5):
                nursery.start_soon(dial, admission, "a", dialled)

    times = [at for _, at in dialled]
    assert times == pytest.approx([began + number / PER_S for number in range(15)])


async def test_clients_of_a_process_take_turns_with_its_turns(autojump_clock):
    turns, dialled = Turns(), []
    admission = admission_of(turns)
    async with trio.open_nursery() as nursery:
        for client in ("greedy", "greedy", "greedy", "modest"):
            nursery.start_soon(dial, admission, client, dialled)

    assert sorted(client for client, _ in dialled[:2]) == ["greedy", "modest"]
    assert turns.asked == 4


async def test_a_turn_whose_call_has_gone_is_the_next_ones(autojump_clock):
    turns, dialled = Turns(), []
    admission = admission_of(turns)
    began = trio.current_time()
    turns.free_at = began + 1.0
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0.5):
            await dial(admission, "gone", dialled)
        nursery.start_soon(dial, admission, "stays", dialled)

    assert dialled == [("stays", pytest.approx(began + 1.0))]
    assert turns.asked == 1


async def test_a_turn_that_nobody_has_used_is_no_turn_long_after(autojump_clock):
    turns, dialled = Turns(), []
    admission = admission_of(turns)
    turns.free_at = trio.current_time() + 1.0
    with trio.move_on_after(0.5):
        await dial(admission, "gone", dialled)
    await trio.sleep(60.0)

    await dial(admission, "comes", dialled)

    assert turns.asked == 2


async def test_a_call_whose_turn_would_come_too_late_is_refused_and_takes_none(autojump_clock):
    turns = Turns()
    admission = admission_of(turns, max_dial_wait_s=3.0)
    turns.free_at = taken = trio.current_time() + 10.0

    with pytest.raises(CallRefused) as refused:
        await admission.wait_turn("a")

    assert (refused.value.reason, refused.value.status) == ("rate", 429)
    assert turns.free_at == taken
    assert admission.waiting_count == 0


async def test_while_the_registry_is_away_each_has_the_share_of_those_seen_last(autojump_clock):
    turns, dialled = Turns(), []
    admission = admission_of(turns)
    turns.seen = [other(1, 0.4), other(2, 0.1)]
    await dial(admission, "a", dialled)
    turns.away = True
    for _ in range(3):
        await dial(admission, "a", dialled)

    gaps = [after - before for (_, before), (_, after) in pairwise(dialled)]
    assert gaps == pytest.approx([3 / PER_S] * 3)


async def test_while_the_carrier_wants_no_calls_no_turn_is_taken(autojump_clock):
    turns, dialled = Turns(), []
    admission = admission_of(turns)
    began = trio.current_time()
    admission.pause_dialling(began + 5.0)

    await dial(admission, "a", dialled)

    assert dialled == [("a", pytest.approx(began + 5.0))]
    assert turns.asked == 1


def test_a_share_is_among_those_that_were_there_and_not_those_that_had_died_before():
    assert share_s(5.0, []) == 0.2
    assert share_s(5.0, [other(1, 60.1), other(2, 60.4), other(3, 290.0)]) == pytest.approx(0.6)


@of_redis
async def test_each_turn_is_somebodys_and_none_is_twice(redis):
    async with member(redis.url, "n0") as first, member(redis.url, "n1") as second:
        waits = []
        for registry in (first, second, first, second):
            at = await AccountTurns(registry, "AC1", 0.1).take(trio.current_time() + 100.0)
            waits.append(at - trio.current_time())
        late = await AccountTurns(first, "AC1", 0.1).take(trio.current_time() + 5.0)

    assert [round(wait_s, -1) for wait_s in waits] == [0.0, 10.0, 20.0, 30.0]
    assert late is None


@of_redis
async def test_without_redis_a_turn_comes_all_the_same(redis):
    async with member(redis.url, "n0") as first, member(redis.url, "n1"):
        await until(lambda: "n1" in first.others())
        turns = AccountTurns(first, "AC1", 0.1)
        redis.kill()
        began = trio.current_time()
        times = [await turns.take(began + 100.0) for _ in range(2)]

    assert times[1] - times[0] == pytest.approx(20.0, abs=1e-6)
