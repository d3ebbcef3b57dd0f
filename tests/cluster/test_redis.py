"""The registry over a real Redis: several members at once."""

from __future__ import annotations

import gc
import os
import ssl
import sys
import time
from contextlib import AsyncExitStack, suppress
from functools import partial
from itertools import pairwise

import pytest
import trio
from prometheus_client import CollectorRegistry
from trio.testing import wait_all_tasks_blocked

from server.agent.agent import Agent
from server.cluster.cluster import Cluster
from server.cluster.proof import Prover
from server.cluster.redis import redis_registry
from server.cluster.redis.answers import anything
from server.cluster.redis.connection import Connection, open_connection, tls_context
from server.cluster.redis.ours import MAX_KEPT_BYTES
from server.cluster.redis.scripts import _BEGIN as BEGIN
from server.cluster.redis.scripts import _LEAVE as LEAVE
from server.cluster.redis.scripts import _PUT as PUT
from server.cluster.redis.scripts import MEMBERS_TTL_S, Step
from server.cluster.redis.writing import MAX_WRITES
from server.cluster.registry import Holding, Load, Member, RegistryAway, Seized
from server.dialogue.endings import EndReason
from server.errors import ConfigurationError
from server.metrics import RegistryMetrics
from server.settings.cluster import RegistryAddress
from server.settings.settings import Settings
from server.switchboard.rescue import Rescue
from tests.support.nodes import Talk
from tests.support.redis_servers import (
    IGNORES_UNCLOSED,
    SECRET,
    member,
    redis_server,
    surely,
    until,
)
from tests.support.switchboards import make_calls
from tests.support.tls_peers import authority_in

pytestmark = [pytest.mark.sockets, *IGNORES_UNCLOSED]
TRIES = 1_000


@pytest.fixture
def redis():
    with redis_server() as server:
        yield server


@pytest.fixture
async def three(redis):
    async with AsyncExitStack() as stack:
        members = [await stack.enter_async_context(member(redis.url, f"n{i}")) for i in range(3)]
        yield members


async def all_at_once(*asked):
    """What each of these answers, all of them asked at the same time."""
    answers = [None] * len(asked)

    async def ask(place, question):
        answers[place] = await question()

    async with trio.open_nursery() as nursery:
        for place, question in enumerate(asked):
            nursery.start_soon(ask, place, question)
    return answers


async def settled(registry, call_sid):
    """The owner of a call, once all that knows nothing of it is sure."""
    return await surely(partial(registry.owner, call_sid))


async def current(registry, call_sid, generation):
    """Whether a call is a member's own, once that is sure."""
    return await surely(partial(registry.is_current, call_sid, generation))


@pytest.mark.slow
async def test_of_all_who_claim_a_call_at_once_one_has_it_and_all_are_told_the_same(three):
    winners = set()
    for number in range(TRIES):
        holdings = await all_at_once(*(partial(each.claim, f"CA{number}") for each in three))

        assert len(set(holdings)) == 1
        assert holdings[0].generation == 1
        winners.add(holdings[0].member)

    assert winners <= {each.me for each in three}


@pytest.mark.slow
async def test_of_all_who_seize_a_call_at_once_one_has_it(three):
    dead = Member("dead", 1)
    for number in range(TRIES):
        holding = await three[0].claim(f"CA{number}", dead)

        seized = await all_at_once(*(partial(each.seize, f"CA{number}", holding) for each in three))

        assert sorted(seized, key=bool) == [None, None, Seized(2, b"")]
        winner = three[seized.index(Seized(2, b""))]
        assert await three[0].owner(f"CA{number}") == Holding(winner.me, 2)


async def test_a_call_that_is_seized_brings_its_newest_state_with_it(three):
    first, second, _ = three
    holding = await first.claim("CA1")
    first.keep("CA1", 1, b"said hello")
    first.keep("CA1", 1, b"said goodbye")
    await until(lambda: first._writing._ours.unsaid == 0)

    seized = await second.seize("CA1", holding)

    assert seized == Seized(2, b"said goodbye")
    assert await current(second, "CA1", 2)
    assert not await current(first, "CA1", 1)
    assert await first.calls_of(first.me) == {}


async def test_a_process_that_begins_a_call_too_late_does_nothing_to_whoever_has_it(three, nursery):
    first, second, _ = three
    cluster = Cluster(node="n0", secrets=[SECRET], make_registry=lambda me: first)
    calls = make_calls(cluster=cluster, is_current=first.is_current, keep=first.keep)
    Rescue(calls, cluster, Agent, lease_s=60.0)  # is told what is lost
    await nursery.start(calls.run)
    await second.seize("CA1", await second.claim("CA1", first.me))
    await until(lambda: second._writing._ours.unsaid == 0)
    await calls.answer("CA1", "+15005550001", Agent(), generation=1)
    (call,) = calls.register.live
    await call.finished.wait()
    await until(lambda: not calls.register.live)

    assert call.end_reason is EndReason.MOVED
    assert calls.carrier.hung_up == calls.carrier.said == []
    assert await second.owner("CA1") == Holding(second.me, 2)
    assert await current(second, "CA1", 2)


async def test_a_call_that_has_not_begun_is_whoevers_is_asked_next(three):
    first, second, third = three
    await second.claim("CA1", first.me)
    first.release("CA1", 1, has_begun=False)
    await until(lambda: first._writing._ours.unsaid == 0)

    assert await second.claim("CA1", third.me) == Holding(third.me, 1)
    assert first._writing._ours.known == 0
    assert first.losses == 0


async def test_a_call_that_is_anothers_or_kept_or_over_is_not_given_back(three):
    first, second, _ = three
    await first.claim("CA-theirs", second.me)
    await first.claim("CA-kept")
    first.keep("CA-kept", 1, b"state")
    await first.claim("CA-over")
    first.release("CA-over", 1)
    await until(lambda: first._writing._ours.unsaid == 0)

    for call_sid in ("CA-theirs", "CA-kept", "CA-over"):
        first.release(call_sid, 1, has_begun=False)
    await until(lambda: first._writing._ours.unsaid == 0)

    assert await first.owner("CA-theirs") == Holding(second.me, 1)
    assert await second.seize("CA-kept", Holding(first.me, 1)) == Seized(2, b"state")
    assert await settled(first, "CA-over") is None
    assert await second.seize("CA-over", Holding(first.me, 1)) is None


async def test_a_call_that_was_anothers_and_has_not_begun_stays_with_whoever_has_seized_it(three):
    first, second, third = three
    await second.seize("CA1", await second.claim("CA1", first.me))
    second.release("CA1", 2, has_begun=False)
    await until(lambda: second._writing._ours.unsaid == 0)

    assert await third.claim("CA1") == Holding(second.me, 2)
    second.announce("CA1", 2)
    await until(lambda: second._writing._ours.unsaid == 0)
    assert await current(second, "CA1", 2)


async def test_a_state_is_made_when_it_is_written_of_the_call_as_it_is_then(three):
    first, second, _ = three
    talk = Talk()
    holding = await first.claim("CA1")
    for word in ("good", "morning"):
        talk.said.append(word)
        first.keep("CA1", 1, talk.state)
    await until(lambda: first._writing._ours.unsaid == 0)

    assert talk.made == ["good morning"]
    assert await second.seize("CA1", holding) == Seized(2, b"good morning")


@pytest.mark.parametrize("odd", [lambda: None, lambda: bytes(MAX_KEPT_BYTES + 1)])
async def test_a_state_that_cannot_be_made_leaves_the_one_before(three, odd):
    first, second, _ = three
    holding = await first.claim("CA1")
    for state in (b"before", odd):
        first.keep("CA1", 1, state)
        await until(lambda: first._writing._ours.unsaid == 0)

    assert await second.seize("CA1", holding) == Seized(2, b"before")


async def test_what_an_owner_that_lost_its_call_says_counts_for_nothing(three, redis):
    first, second, _ = three
    holding = await first.claim("CA1")
    await second.seize("CA1", holding)

    first.keep("CA1", 1, b"late")
    first.release("CA1", 1)
    await until(lambda: first._writing._ours.unsaid == 0)

    assert await first.owner("CA1") == Holding(second.me, 2)
    assert await second.seize("CA1", Holding(second.me, 2)) == Seized(3, b"")


async def test_the_name_of_a_process_that_was_killed_is_its_successors(redis, monkeypatch):
    async def leave() -> None:
        await trio.lowlevel.checkpoint()

    # What they are told apart by says nothing of who came first.
    monkeypatch.setattr("tests.support.redis_servers._born", iter((9, 2, 5)))
    async with member(redis.url, "n0") as killed:
        killed._leave = leave
    async with member(redis.url, "n0") as successor, member(redis.url, "n1") as other:
        await until(lambda: len(other.others()) == 2)
        others = {name: seen.member for name, seen in other.others().items()}

    assert others == {"n0": successor.me, "n0@9": killed.me}


async def test_whoever_says_something_of_a_call_that_is_anothers_by_now_is_told_so(three):
    first, second, _ = three
    lost: list[tuple[str, int]] = []
    first.on_lost = lambda call_sid, generation: lost.append((call_sid, generation))
    await first.claim("CA-kept")
    holding = await first.claim("CA1")
    await second.seize("CA1", holding)
    for call_sid in ("CA1", "CA-kept"):
        first.keep(call_sid, 1, b"state")
    await until(lambda: first._writing._ours.unsaid == 0)

    assert lost == [("CA1", 1)]


async def test_what_ended_here_and_is_anothers_by_now_keeps_nothing_from_being_written(three):
    first, second, third = three
    lost: list[str] = []
    first.on_lost = lambda call_sid, generation: lost.append(call_sid)
    held = {f"CA{number}": await first.claim(f"CA{number}") for number in range(MAX_WRITES)}
    live = await first.claim("CA-live")
    await until(lambda: first._writing._ours.unsaid == 0)
    for call_sid, holding in held.items():
        await second.seize(call_sid, holding)

    for call_sid in held:  # they have ended while the registry was away
        first.keep(call_sid, 1, b"", has_ended=True)
    first.keep("CA-live", 1, b"state")
    await until(lambda: first._writing._ours.unsaid == 0)

    assert lost == []
    assert await second.owner("CA0") == Holding(second.me, 2)
    assert await third.seize("CA-live", live) == Seized(2, b"state")


async def test_a_call_that_is_ours_anew_stays_on_our_list_though_an_earlier_word_is_refused(
    three, monkeypatch
):
    first, second, _ = three
    holding = await first.claim("CA1")
    await until(lambda: first._writing._ours.unsaid == 0)
    ask_all, seized = Connection.ask_all, []

    async def ask_all_late(self, steps):
        if any(step.script == PUT for step in steps) and not seized:
            seized.append(None)
            seized[0] = await first.seize("CA1", holding)  # overtakes what was on its way
        return await ask_all(self, steps)

    monkeypatch.setattr(Connection, "ask_all", ask_all_late)
    first.keep("CA1", 1, b"early")
    await until(lambda: seized and seized[0] is not None)
    first.keep("CA1", 2, b"late")
    await until(lambda: not (first._writing._ours.unsaid or first._writing._strike_off))

    assert seized == [Seized(2, b"")]
    assert await second.calls_of(first.me) == {"CA1": Holding(first.me, 2)}


async def test_a_call_that_is_kept_above_an_unknown_claim_is_its_keepers(three):
    first, second, _ = three
    await first.claim("CA1", second.me)  # the answer to which was lost
    first.announce("CA1", 2)
    await until(lambda: first._writing._ours.unsaid == 0)

    assert await second.owner("CA1") == Holding(first.me, 2)
    assert await second.seize("CA1", Holding(second.me, 1)) is None


async def test_a_call_that_is_over_is_nobodys_and_cannot_be_seized_or_claimed_anew(three):
    first, second, _ = three
    holding = await first.claim("CA1")
    first.release("CA1", 1)
    await until(lambda: first._writing._ours.unsaid == 0)

    assert await second.owner("CA1") is None
    assert await second.seize("CA1", holding) is None
    assert await second.claim("CA1") == holding
    assert await first.claim("CA1") == holding
    await until(lambda: first._writing._ours.unsaid == 0)
    assert await second.owner("CA1") is None


async def test_the_list_of_a_members_calls_has_those_that_are_its(three):
    first, second, third = three
    for number in range(150):
        await first.claim(f"CA{number}")
        first.keep(f"CA{number}", 1, b"state")
    await first.claim("CA-no-state")
    await first.claim("CA-ended")
    first.keep("CA-ended", 1, b"state")
    await until(lambda: first._writing._ours.unsaid == 0)
    first.keep("CA-ended", 1, b"")
    await first.claim("CA-over")
    first.release("CA-over", 1)
    await second.claim("CA-second")
    await until(lambda: first._writing._ours.unsaid == 0)
    taken = await second.seize("CA7", Holding(first.me, 1))

    calls = await third.calls_of(first.me)

    assert taken == Seized(2, b"state")
    ended = await second.seize("CA-ended", Holding(first.me, 1))
    assert ended == Seized(2, b"", has_ended=True)
    assert calls == {f"CA{n}": Holding(first.me, 1) for n in range(150) if n != 7}


async def test_calls_that_have_ended_are_on_no_list_and_are_not_said_again(three, redis):
    first, second, _ = three
    for number in range(300):
        await first.claim(f"CA{number}")
        first.keep(f"CA{number}", 1, b"state")
    await until(lambda: first._writing._ours.unsaid == 0)

    for number in range(1, 300):
        first.keep(f"CA{number}", 1, b"")
    await until(lambda: first._writing._ours.unsaid == 0)

    assert redis.ask("SCARD", f"offhook:calls:{first.me}") == b":1\r\n"
    assert await second.owner("CA7") == Holding(first.me, 1)
    first._writing.say_all_again()
    assert first._writing._ours.unsaid == 1


async def test_what_is_left_of_a_call_that_has_ended_is_for_whoever_takes_it_over(three):
    first, second, _ = three
    for sid in ("CA-talks", "CA-ended", "CA-written"):
        await first.claim(sid)
        first.keep(sid, 1, b"a state")
    first.keep("CA-ended", 1, b"a record", has_ended=True)
    first.keep("CA-ended", 1, b"a late state")
    first.keep("CA-written", 1, b"a record", has_ended=True)
    first.keep("CA-written", 1, b"", has_ended=True)
    await until(lambda: not first._writing._ours.unsaid)

    live = await surely(partial(second.calls_of, first.me))
    ended = await surely(partial(second.calls_of, first.me, ended=True))
    seized = await surely(partial(second.seize, "CA-ended", ended["CA-ended"]))
    await until(lambda: not second._writing._ours.unsaid)
    again = await surely(partial(first.calls_of, second.me, ended=True))

    assert {*live} == {"CA-talks"}
    assert {*ended} == {"CA-ended"}
    assert seized == Seized(2, b"a record", has_ended=True)
    assert again == {"CA-ended": Holding(second.me, 2)}  # should that one die as well


async def test_the_end_of_a_call_is_written_though_nothing_else_is_new(three, monkeypatch):
    monkeypatch.setattr("server.cluster.redis.registry.BEAT_S", 3600.0)
    first, second, _ = three
    await first.claim("CA1")
    first.keep("CA1", 1, b"state")
    await until(lambda: first._writing._ours.unsaid == 0)

    first.keep("CA1", 1, b"")

    await until(lambda: first._writing._ours.unsaid == 0)
    assert await second.calls_of(first.me) == {}


async def test_what_is_new_is_written_at_once_though_a_beat_had_nothing_to_say(redis, monkeypatch):
    monkeypatch.setattr("server.cluster.redis.registry.BEAT_S", 3600.0)
    async with member(redis.url) as one:
        await wait_all_tasks_blocked()
        await one._beat(one._connection)  # and the next is an hour off
        await one.claim("CA1")
        one.keep("CA1", 1, b"state")

        await until(lambda: one._writing._ours.unsaid == 0)


async def test_a_process_that_ceases_to_take_calls_says_so_though_it_has_just_beaten(
    redis, monkeypatch
):
    monkeypatch.setattr("server.cluster.redis.registry.BEAT_S", 3600.0)
    async with member(redis.url) as one, member(redis.url, "other") as other:
        await wait_all_tasks_blocked()
        await one._beat(one._connection)
        one.publish(Load(draining=True))

        async def is_heard() -> bool:
            await other._beat(other._connection)
            (seen,) = other.others().values()
            return seen.load.draining

        await until(is_heard)


async def test_what_is_kept_in_haste_is_there_before_a_call_is_said_to_be_ours(three, monkeypatch):
    first, second, _ = three
    await first.claim("CA1")
    first.keep("CA1", 1, b"state")
    await current(first, "CA1", 1)
    await until(lambda: first._writing._ours.unsaid == 0)
    first._writing._wake = lambda **facts: None  # nobody writes by itself any more

    first.keep("CA1", 1, b"about to be transferred", in_haste=True)
    await first.is_current("CA1", 1)
    seized = await second.seize("CA1", Holding(first.me, 1))

    assert seized == Seized(2, b"about to be transferred")


def have_heard_late(registry, meanwhile):
    """Have something done between the answer to whether a call is current and its being heard."""
    connection = registry._connection
    ask_all = connection.ask_all

    async def ask_all_and_wait(steps):
        answers = await ask_all(steps)
        if [step.script for step in steps] == [PUT]:
            connection.ask_all = ask_all
            await meanwhile(connection)
        return answers

    connection.ask_all = ask_all_and_wait


async def test_a_call_that_nobody_claimed_and_that_ends_at_once_is_not_lost(redis, monkeypatch):
    monkeypatch.setattr("server.cluster.redis.registry.WHOLE_AFTER_S", 0.0)
    async with member(redis.url) as one:
        one.keep("CA1", 1, b"about to end", in_haste=True)

        assert await one.is_current("CA1", 1)
        assert not one._writing.has_forgotten
        assert one.losses == 0


async def test_a_new_call_that_is_written_while_it_is_asked_for_is_not_lost(redis, monkeypatch):
    monkeypatch.setattr("server.cluster.redis.registry.WHOLE_AFTER_S", 0.0)
    async with member(redis.url) as one:
        have_heard_late(one, one._writing.write_all)
        one.announce("CA1", 1)

        assert await one.is_current("CA1", 1)
        assert one._writing._ours.unsaid == 0
        assert not one._writing.has_forgotten
        assert one.losses == 0


@pytest.mark.parametrize("news", ["urgent", "written meanwhile", "none"])
async def test_a_call_that_was_lost_is_found_to_be_when_it_is_asked_for(redis, monkeypatch, news):
    monkeypatch.setattr("server.cluster.redis.registry.BEAT_S", 3600.0)
    async with member(redis.url) as one:
        one.keep("CA1", 1, b"state")
        await until(lambda: one._writing._ours.unsaid == 0)
        redis.ask("FLUSHALL")

        if news == "urgent":
            one.keep("CA1", 1, b"about to end", in_haste=True)
        elif news == "written meanwhile":
            have_heard_late(one, one._writing.write_all)
            one.announce("CA1", 1)
        with pytest.raises(RegistryAway, match="has lost this call"):
            await one.is_current("CA1", 1)
        await until(lambda: one.losses > 0 and one._writing._ours.unsaid == 0)

        assert one.losses == 1
        assert not one._writing.has_forgotten


async def test_a_loss_that_is_heard_of_while_a_call_is_asked_for_is_one(redis, monkeypatch):
    monkeypatch.setattr("server.cluster.redis.registry.BEAT_S", 3600.0)
    async with member(redis.url) as one:
        one.keep("CA1", 1, b"state")
        await until(lambda: one._writing._ours.unsaid == 0)
        redis.ask("FLUSHALL")

        have_heard_late(one, one._beat)
        with pytest.raises(RegistryAway, match="not everybody was heard yet"):
            await one.is_current("CA1", 1)

        assert one.losses == 1
        assert not one._writing.has_forgotten


async def test_whoever_has_taken_a_call_over_has_it_though_its_end_is_said_of_old(three, redis):
    first, second, _ = three
    holding = await first.claim("CA1")
    await second.seize("CA1", holding)
    await until(lambda: second._writing._ours.unsaid == 0)
    redis.ask("FLUSHALL")
    await first._ask(first._steps.over("CA1", str(first.me), 1), anything)

    second._writing.say_all_again()
    await until(lambda: second._writing._ours.unsaid == 0)

    assert await settled(first, "CA1") == Holding(second.me, 2)


async def test_what_is_not_ours_in_the_registry_is_told_once_and_ends_nothing(three, redis, capsys):
    first = three[0]
    for number in range(5):
        redis.ask("HSET", f"offhook:{{CA{number}}}", "n", "x" * 700, "g", "many")

    for number in range(5):
        with pytest.raises(RegistryAway, match="whose a call is"):
            await first.owner(f"CA{number}")

    assert not first.is_away
    assert await first.claim("CA9") == Holding(first.me, 1)
    assert capsys.readouterr().out.count("has something that is not ours") == 1


async def test_nothing_is_left_but_what_ends_by_itself(redis):
    async with member(redis.url, "n0") as first, member(redis.url, "n1") as second:
        for number in range(120):
            await first.claim(f"CA{number}")
            first.keep(f"CA{number}", 1, b"state")
        taken = await second.seize("CA0", Holding(first.me, 1))
        for number in range(1, 120):
            first.release(f"CA{number}", 1)
        second.release("CA0", taken.generation)
        await first.dial_turn("AC1", 5.0, 1.0)
        assert await first.begin_request("shop", "key", b"print") is None
        await first.end_request("shop", "key")

    keys = redis.keys()
    dial = max(
        keys.pop(key, 0) for key in ("offhook:dial:AC1", "offhook:dial-at:{offhook:dial:AC1}")
    )
    assert set(keys) == {f"offhook:{{CA{number}}}" for number in range(120)}
    assert all(0 < ttl <= 900 for ttl in keys.values())
    assert dial < 2


async def test_a_member_sees_the_others_and_how_they_do(three):
    first, second, _ = three

    second.publish(Load(live=7, accepts=True, dials_in_s=float("inf")))

    await until(lambda: first.others().keys() >= {"n1", "n2"} and first.others()["n1"].load.accepts)
    seen = first.others()["n1"]
    assert (seen.member, seen.load.live, seen.address) == (second.me, 7, "http://n1:8000")
    assert seen.load.dials_in_s == 1e9
    assert first.me.name not in first.others()


async def test_a_member_that_left_is_gone_and_one_that_was_killed_is_silent(redis):
    async with member(redis.url, "n0") as first:
        async with member(redis.url, "n1"):
            await until(lambda: "n1" in first.others())
        async with member(redis.url, "n2") as killed:
            await until(lambda: "n2" in first.others())
            killed._is_away = True  # who is away has nobody to say goodbye to
        await until(lambda: "n1" not in first.others())

        await until(lambda: first.others()["n2"].age_s > 1.0)


async def test_a_member_that_was_killed_is_silent_though_the_clock_of_redis_was_put_back(redis):
    async with member(redis.url, "n0") as first:
        async with member(redis.url, "n1") as killed:
            await until(lambda: "n1" in first.others())
            killed._is_away = True  # who is away has nobody to say goodbye to
        vouched = Prover([SECRET]).vouch(str(killed.me), "")
        hour_s = int(time.time()) + 3_600
        load = f'["",0,0,0,false,false,0,0,"{vouched}"]'
        redis.ask("HSET", "offhook:{nodes}", str(killed.me), f"{hour_s}000 {load}")

        await until(lambda: first.others()["n1"].age_s > 2.0)

        assert "n1" in first.others()


async def test_a_call_that_nobody_has_is_nobodys_though_the_clock_of_redis_was_put_back(
    redis, capsys
):
    async with member(redis.url) as one:
        redis.ask("HSET", "offhook:{nodes}", "", f"{int(time.time()) + 3_600}000")

        assert await settled(one, "CA-never") is None
        assert one.losses == 0

    assert "not ours" not in capsys.readouterr().out


async def test_the_predecessor_of_a_member_is_there_by_name_and_birth(redis):
    vouched = {name: Prover([SECRET]).vouch(name, "") for name in ("n0@0", "n1@0")}
    load = f'["",0,0,0,false,false,0,0,"{vouched["n0@0"]}"]'
    redis.ask("HSET", "offhook:{nodes}", "n0@0", f"1 {load}")
    redis.ask("HSET", "offhook:{nodes}", "n1@0", "99999999999999 nonsense")
    async with member(redis.url, "n1") as second:
        load = f'["",0,0,0,false,false,0,0,"{vouched["n1@0"]}","new"]'
        redis.ask("HSET", "offhook:{nodes}", "n1@0", f"9999999999999 {load}")
        await until(lambda: "n1@0" in second.others())

        assert "n0" not in second.others()  # silent for too long


async def test_three_clients_dial_at_the_rate_of_one_account(three, redis):
    def next_turn_us():
        return int(redis.ask("GET", "offhook:dial:AC1").split()[1])

    def fifty_of_each():
        ask = (partial(each.dial_turn, "AC1", 5.0, 600.0) for each in three for _ in range(50))
        return all_at_once(*ask)

    waits = await fifty_of_each()
    before_us = next_turn_us()
    waits += await fifty_of_each()

    # By Redis's clock and whoever asks: one every 0.2 s, and no two at once.
    assert next_turn_us() - before_us == 150 * 200_000
    assert len(set(waits)) == 300
    assert max(waits) <= 300 * 0.2


async def test_a_turn_to_dial_that_would_come_too_late_is_not_taken(three):
    assert await three[0].dial_turn("AC1", 0.01, 1.0) == 0.0

    assert await three[1].dial_turn("AC1", 0.01, 1.0) is None
    wait_s = await three[2].dial_turn("AC1", 0.01, 1_000.0)

    assert 0 < wait_s <= 100.0
    assert await three[0].dial_turn("AC2", 0.01, 0.0) == 0.0


def put_back(redis, by_s: float, *keys: str) -> None:
    """Do to what stands in the registry what its clock does that is put back."""
    for key in keys:
        written_us = int(redis.ask("GET", key).split()[1])
        redis.ask("SET", key, str(written_us + round(by_s * 1e6)))


@pytest.mark.parametrize("would_come_too_late", [False, True])
async def test_turns_come_as_before_after_the_clock_of_redis_was_put_back(
    redis, three, would_come_too_late
):
    for _ in range(3):
        await three[0].dial_turn("AC1", 0.1, 600.0)

    put_back(redis, 3_600.0, "offhook:dial:AC1", "offhook:dial-at:{offhook:dial:AC1}")
    if would_come_too_late:
        assert await three[1].dial_turn("AC1", 0.1, 1.0) is None
    waits = [await each.dial_turn("AC1", 0.1, 600.0) for each in three]

    # After the three that were taken: what time has passed is not what the clock says.
    assert 0 < waits[0] <= 30.0
    assert [after - before for before, after in pairwise(waits)] == pytest.approx([10.0] * 2, abs=5)


async def test_a_turn_that_an_older_program_has_written_is_taken_as_it_is(redis, three):
    await three[0].dial_turn("AC1", 0.1, 600.0)
    written_us = int(redis.ask("GET", "offhook:dial:AC1").split()[1])
    redis.ask("DEL", "offhook:dial-at:{offhook:dial:AC1}")
    redis.ask("SET", "offhook:dial:AC1", str(written_us + 20_000_000))

    assert 10.0 < await three[1].dial_turn("AC1", 0.1, 600.0) <= 30.0
    assert redis.ask("GET", "offhook:dial:AC1").split()[1].isdigit()


async def test_a_request_is_worked_on_by_one_process(three):
    first, second, _ = three

    assert await first.begin_request("shop", "k", b"print\n1") is None
    assert await second.begin_request("shop", "k", b"print 2") == b"print\n1"
    assert await first.begin_request("shop", "k", b"print 2") == b"print\n1"
    assert await second.begin_request("crm", "k", b"print 2") is None
    await second.end_request("shop", "k")
    assert await second.begin_request("shop", "k", b"print 2") == b"print\n1"
    await first.end_request("shop", "k")
    assert await second.begin_request("shop", "k", b"print 2") is None


@pytest.mark.parametrize("is_theirs", [False, True])
@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_request_whose_beginning_was_not_answered_is_worked_on_by_nobody_when_it_ends(
    three, monkeypatch, is_theirs, is_cancelled
):
    first, second, third = three
    ask, written = Connection.ask, trio.CancelScope()

    async def ask_in_vain(self, step):
        answer = await ask(self, step)
        if step.script == BEGIN:
            written.cancel()
            await trio.lowlevel.checkpoint()
            raise trio.TooSlowError
        return answer

    if is_theirs:
        await second.begin_request("shop", "k", b"theirs")
    with monkeypatch.context() as patched:
        patched.setattr(Connection, "ask", ask_in_vain)
        if is_cancelled:
            with written:
                await first.begin_request("shop", "k", b"print")
        else:
            with pytest.raises(RegistryAway):
                await first.begin_request("shop", "k", b"print")
            await first.end_request("shop", "k")

    assert written.cancelled_caught is is_cancelled
    assert await third.begin_request("shop", "k", b"print") == (b"theirs" if is_theirs else None)


async def test_what_one_is_refused_by_the_model_everybody_else_knows(three):
    first, second, third = three

    first.tell_pause("quota", 60.0)

    await until(lambda: second.pause() and third.pause())
    kind, left_s = second.pause()
    assert kind == "quota"
    assert 0 < left_s <= 60.0
    assert first.pause() is None


async def test_a_pause_that_the_registry_has_lost_goes_on_until_it_is_told_again(
    redis, monkeypatch
):
    monkeypatch.setattr("server.cluster.redis.registry.BEAT_S", 3600.0)
    async with member(redis.url, "n0") as refused, member(redis.url, "n1") as other:
        refused.tell_pause("quota", 600.0)

        async def is_heard() -> bool:
            await other._beat(other._connection)
            return other.pause() is not None

        await until(is_heard)
        redis.ask("FLUSHALL")
        for _ in range(2):  # the second finds nothing lost, and no pause
            await other._beat(other._connection)
        meanwhile = other.pause()
        for _ in range(2):
            await refused._beat(refused._connection)
        told = redis.ask("GET", "offhook:{nodes}:pause")

    assert meanwhile is not None
    assert f"{refused.me} quota".encode() in told


async def test_state_of_another_secret_is_no_state(redis):
    async with (
        member(redis.url, "n0", secrets=("a" * 32,)) as first,
        member(redis.url, "n1", secrets=("b" * 32,)) as stranger,
        member(redis.url, "n2", secrets=("c" * 32, "a" * 32)) as rotated,
    ):
        for call_sid in ("CA1", "CA2"):
            await first.claim(call_sid)
            first.keep(call_sid, 1, b"state")
        await until(lambda: first._writing._ours.unsaid == 0)

        assert await stranger.seize("CA1", Holding(first.me, 1)) == Seized(2, b"")
        assert await rotated.seize("CA2", Holding(first.me, 1)) == Seized(2, b"state")


async def test_a_registry_that_is_begun_again_empty_is_told_all_of_it(three, redis):
    first, second, _ = three
    await first.claim("CA1")
    first.keep("CA1", 1, b"state")
    await first.claim("CA2", second.me)
    second.announce("CA2", 1)
    await until(lambda: not (first._writing._ours.unsaid or second._writing._ours.unsaid))

    redis.kill()
    await until(lambda: all(each.is_away for each in three))
    with pytest.raises(RegistryAway):
        await second.owner("CA1")
    first.announce("CA3", 1)
    second.release("CA2", 1)
    redis.start()

    await until(lambda: not any(each.is_away for each in three))
    assert await settled(second, "CA2") is None
    assert await settled(second, "CA1") == Holding(first.me, 1)
    assert await settled(second, "CA3") == Holding(first.me, 1)
    assert await second.seize("CA1", Holding(first.me, 1)) == Seized(2, b"state")


@pytest.mark.slow
async def test_what_has_just_been_lost_is_unknown_and_not_nobodys(three, redis):
    first, second, _ = three
    await first.claim("CA1")
    await until(lambda: first._writing._ours.unsaid == 0)

    redis.ask("FLUSHALL")

    assert await settled(second, "CA1") == Holding(first.me, 1)
    assert await settled(second, "CA-never") is None


async def test_what_could_not_be_struck_off_a_list_is_struck_off_later(three, monkeypatch):
    first, second, _ = three
    await first.claim("CA1")
    first.keep("CA1", 1, b"a state")
    await until(lambda: not first._writing._ours.unsaid)
    with monkeypatch.context() as patch:
        ask_all = Connection.ask_all

        async def fail(self, steps):
            if any(step.script == LEAVE for step in steps):
                raise OSError("lost on the way")
            return await ask_all(self, steps)

        patch.setattr(Connection, "ask_all", fail)
        seized = await surely(partial(second.seize, "CA1", Holding(first.me, 1)))
        await until(lambda: second.is_away)
        struck_off = second._writing._strike_off[str(first.me)]
    await until(lambda: not second._writing._strike_off)

    async def is_struck_off() -> bool:
        step = second._steps.calls_of(str(first.me))
        return await second._connection.ask(step) == [] if second._connection else False

    await until(is_struck_off)
    assert seized == Seized(2, b"a state")
    assert [*struck_off] == ["CA1"]


async def test_the_time_that_is_proved_to_others_is_the_registrys(three, monkeypatch):
    first, *_ = three
    monkeypatch.setattr(time, "time", lambda: 1_000.0)  # a clock that nobody has set
    await first._beat(first._connection)
    monkeypatch.undo()

    shared = 1_000.0 + first.ahead_s

    assert abs(shared - time.time()) < 60.0


async def test_each_member_notices_that_the_registry_has_lost_what_was_in_it(three, redis):
    before = [one.losses for one in three]
    redis.ask("FLUSHALL")

    await until(lambda: [one.losses for one in three] == [1, 1, 1])

    assert before == [0, 0, 0]


@pytest.mark.slow
async def test_a_member_that_was_away_for_long_does_not_make_others_doubt_the_registry(redis):
    async with member(redis.url) as there, member(redis.url, "n1") as back:
        await surely(partial(there.owner, "CA-never"))
        async with there._writing._one_go:  # whoever has been away says so only now
            redis.ask("HDEL", there._steps._members, str(back.me))
            back._members._last_ms -= MEMBERS_TTL_S * 1000 + 1
            await until(lambda: back.losses == 1)
        doubts = [await there.owner("CA-never"), there.losses]

    assert doubts == [None, 0]


async def test_a_new_member_is_known_to_whoever_is_told_that_it_has_a_call(redis, monkeypatch):
    async with member(redis.url) as first:
        monkeypatch.setattr("server.cluster.redis.registry.BEAT_S", 3600.0)
        await first._beat(first._connection)  # and then it hears of nobody for an hour
        async with member(redis.url, "new") as new:
            await new.claim("CA1")
            before = [*first.others()]
            holding = await first.owner("CA1")
            known = [*first.others()]

    assert (before, known) == ([], ["new"])
    assert holding == Holding(new.me, 1)


async def test_no_wait_for_a_frozen_registry_is_without_an_end(redis):
    async with member(redis.url, "n0", timeout_s=0.2) as first:
        await first.claim("CA1")
        redis.freeze()
        try:
            with trio.fail_after(60):  # twelve waits of 0.2 s at most, on however busy a machine
                for ask in (
                    partial(first.claim, "CA2"),
                    partial(first.owner, "CA1"),
                    partial(first.seize, "CA1", Holding(first.me, 1)),
                    partial(first.is_current, "CA1", 1),
                    partial(first.calls_of, first.me),
                    partial(first.dial_turn, "AC1", 1.0, 1.0),
                    partial(first.begin_request, "shop", "k", b"print"),
                ):
                    with pytest.raises(RegistryAway):
                        await ask()
            for number in range(1000):
                first.keep("CA1", 1, b"%d" % number)
            await until(lambda: first.is_away)
        finally:
            redis.thaw()

        await until(lambda: not first.is_away)
        await until(lambda: first._writing._ours.unsaid == 0)
        # The attempt that was not answered may have been made: then it is the same one.
        seized = await first.seize("CA1", Holding(first.me, 1))
        assert seized in (Seized(2, b"999"), None)


async def test_an_attempt_whose_answer_was_lost_has_the_call_when_it_is_made_again(redis):
    async with member(redis.url, "n0") as first, member(redis.url, "n1") as second:
        holding = await first.claim("CA1")
        step = second._steps.seize("CA1", str(second.me), str(first.me), 1, "attempt")
        await second._ask(step, anything)
        second._attempts["CA1"] = "attempt"

        again = await second.seize("CA1", holding)

        assert again == Seized(2, b"")
        assert await second.seize("CA1", holding) is None


async def test_a_registry_that_was_never_there_keeps_nobody_from_starting(tmp_path):
    async with member(f"unix://{tmp_path}/nobody", timeout_s=0.2) as alone:
        assert alone.is_away
        with pytest.raises(RegistryAway):
            await alone.claim("CA1")
        alone.announce("CA1", 1)
        alone.tell_pause("quota", 1.0)

        assert alone.others() == {}


def test_what_is_not_installed_is_named(monkeypatch):
    settings = Settings(
        _env_file=None, registry_url="redis://127.0.0.1", cluster_secret="s" * 32, node="n0"
    )
    monkeypatch.setitem(sys.modules, "coredis", None)

    with pytest.raises(ConfigurationError, match=r"offhook\[redis\]"):
        redis_registry(settings, Member("n0", 1), RegistryMetrics(CollectorRegistry()))


async def test_the_settings_make_a_registry(redis):
    settings = Settings(
        _env_file=None, registry_url=f"{redis.url}?prefix=shop:", cluster_secret="s" * 32,
        node="n0", registry_timeout_s=5.0,
    )  # fmt: skip
    counted = CollectorRegistry()
    registry = redis_registry(settings, Member("n0", 1), RegistryMetrics(counted))
    async with trio.open_nursery() as nursery:
        await nursery.start(registry.run)
        await registry.claim("CA1")

        assert set(redis.keys()) == {"shop:{nodes}", "shop:{CA1}"}
        assert counted.get_sample_value("offhook_registry_away") == 0.0
        assert counted.get_sample_value("offhook_registry_changes_total", {"event": "back"}) == 1.0
        nursery.cancel_scope.cancel("the test is over")


# ------------------------------------------------------------------------------------------
# TLS


def contexts() -> int:
    """How many are in memory, garbage that has not been collected as well."""
    return sum(isinstance(each, ssl.SSLContext) for each in gc.get_objects())


async def test_attempts_at_a_server_that_has_no_tls_cost_one_context(tmp_path, nursery):
    async def hang_up(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.receive_some()

    (listener,) = await nursery.start(partial(trio.serve_tcp, hang_up, 0, host="127.0.0.1"))
    place = listener.socket.getsockname()
    ca = str(authority_in(tmp_path).file)
    address = RegistryAddress("server", (place,), tls=True, ca=ca)
    gc.collect()
    before = contexts()
    gc.disable()  # as while there are calls
    try:
        for _ in range(3):
            with pytest.raises(ExceptionGroup):
                async with open_connection(address, 5.0) as connection:
                    await connection.ask(Step("return 1", "offhook:check"))
        after = contexts()
    finally:
        gc.enable()
        gc.collect()  # while what is left open is ignored

    assert after - before <= 1


def test_authorities_are_read_again_when_their_file_has_changed(tmp_path):
    (tmp_path / "other").mkdir()
    first, other = authority_in(tmp_path), authority_in(tmp_path / "other")
    ca = str(first.file)
    old = tls_context(ca)
    same = tls_context(ca)

    other.file.replace(ca)
    os.utime(ca, ns=(1, 1))
    new = tls_context(ca)

    assert same is old
    assert new.get_ca_certs() != old.get_ca_certs()
