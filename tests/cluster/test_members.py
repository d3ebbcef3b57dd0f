"""What members say of themselves, and what is made of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from server.cluster.choosing import QUIET_S, asked_from_s
from server.cluster.proof import Prover
from server.cluster.redis import beats
from server.cluster.redis.answers import heard
from server.cluster.redis.members import SAME_LOSS_S, Members
from server.cluster.redis.registry import beat_every_s
from server.cluster.redis.scripts import Steps
from server.cluster.registry import Load, Member, Seen

ME, OTHER = Member("n0", 5), Member("n1.2", 7)
PROVER = Prover(["secret"])
NUMBERS = st.floats() | st.integers(-(10**30), 10**30)


def answer(*others, now_ms=1_000, lost=0, pause=None, pause_ms=-2, begun=b"1"):
    """As the registry answers a beat."""
    flat = [b"", begun]
    for name, value in others:
        flat += [name, value]
    return heard([now_ms, lost, pause, pause_ms, flat])


def load_of(member: str, load: Load | None = None, *, address: str = "http://n1:8000") -> bytes:
    """What a member has written of itself, after when that was."""
    return beats.written(address, load or Load(), PROVER.vouch(member, address))


def believes(member: Member, address: str, vouched: str) -> bool:
    return PROVER.is_vouched(str(member), address, vouched)


@pytest.fixture
def members():
    return Members(ME, "http://n0:8000", Steps("offhook:"), PROVER)


@given(st.builds(Load, NUMBERS, NUMBERS, NUMBERS, st.booleans(), st.booleans(), NUMBERS, NUMBERS))
def test_whatever_a_load_is_others_can_read_it(load):
    value = b"400 " + load_of("n1.2@7", load)

    (seen,) = beats.seen({b"n1.2@7": value}, ME, 1_000, believes).values()

    assert (seen.member, seen.address, seen.age_s) == (OTHER, "http://n1:8000", 0.6)
    assert seen.load.accepts is load.accepts
    assert 0 <= seen.load.dials_in_s <= 1e9


@pytest.mark.parametrize("lease_s", [1.0, 1.7, 2.0, 3.0, 60.0])
def test_a_member_that_beats_is_not_taken_for_silent_however_short_a_lease_is(lease_s):
    # It beats just after it was read, and is read just before it beats again.
    longest_s = 2 * beat_every_s(lease_s)

    assert longest_s <= asked_from_s(lease_s)
    assert longest_s < QUIET_S


@given(st.binary(max_size=40), st.binary(max_size=60))
def test_what_is_no_member_is_left_out(name, value):
    written = {name: value, b"n1@1": value, name + b"@1": b"1 []"}

    assert beats.seen(written, ME, 1_000, believes) == {}
    assert len(beats.seen(written, ME, 1_000, lambda *said: True)) <= 1


def test_the_newest_of_a_name_has_it_and_those_before_it_are_told_apart():
    names = ("n1@1", "n1@2", "n0@4", "n0@5")
    written = {name.encode(): b"400 " + load_of(name, address="") for name in names}

    seen = beats.seen(written, ME, 1_000, believes)

    assert {name: each.member for name, each in seen.items()} == {
        "n1": Member("n1", 2),
        "n1@1": Member("n1", 1),
        "n0@4": Member("n0", 4),
    }


def test_a_member_whose_address_is_not_vouched_for_is_left_out_and_told_of_once(members):
    told: list[Any] = []
    evil, shown = "http://evil:8000", PROVER.vouch("n1.2@7", "http://n1:8000")
    for value in (
        b'["http://evil:8000",1,1,0,true,false,0.0,0.0]',  # as versions before have written it
        beats.written(evil, Load(accepts=True), ""),
        beats.written(evil, Load(accepts=True), shown),
        beats.written(evil, Load(accepts=True), Prover(["guess"]).vouch("n1.2@7", evil)),
        load_of("n1.2@6"),
        load_of("n1.2@7", address="unix:/run/docker.sock"),
        load_of("n1.2@7", address="http://n1:8000/../x"),
        load_of("n1.2@7", address="file:///etc"),
    ):
        with capture_logs() as logged:
            members.heard(answer((b"n1.2@7", b"400 " + value)), None, 10.0)
        told += logged

        assert members.others == {}

    assert ["is not proved" in line["event"] for line in told] == [True]


def test_what_was_heard_of_others_grows_old(members):
    load = b"400 " + load_of("n1.2@7", Load(live=3))
    members.heard(answer((b"n1.2@7", load)), None, 10.0)

    seen = members.seen(12.0)

    assert seen == {"n1.2": Seen(OTHER, Load(live=3), pytest.approx(2.6), "http://n1:8000")}


def test_a_member_that_says_nothing_grows_old_though_the_clock_of_redis_was_put_back(members):
    load = load_of("n1.2@7")
    ages = []
    for stamp, now_ms, now in (
        (b"3601000 ", 3_601_000, 10.0),
        (b"3601000 ", 1_750, 10.75),  # put back by an hour
        (b"3601000 ", 5_000, 14.0),
        (b"5700 ", 5_750, 14.75),  # it was only slow
        (b"5700 ", 6_500, 15.5),
    ):
        members.heard(answer((b"n1.2@7", stamp + load), now_ms=now_ms), None, now)
        ages.append(members.seen(now)["n1.2"].age_s)

    assert ages == pytest.approx([0.0, 0.75, 4.0, 0.05, 0.8])


def test_a_member_is_not_silent_for_an_answer_that_was_late_or_was_read_late(members):
    silent = (b"n1.2@7", b"1000 " + load_of("n1.2@7"))
    members.heard(answer(silent, now_ms=1_100), None, 10.0)

    # Asked half a second after that, answered at once, and heard by us five seconds later.
    members.heard(answer(silent, now_ms=1_600), None, 15.5, asked_at=10.5)

    assert members.seen(15.5)["n1.2"].age_s == pytest.approx(0.6)


def test_only_what_decides_who_takes_calls_is_told_at_once(members):
    assert members.publish(Load(accepts=True))
    assert not members.publish(Load(live=9, accepts=True))
    assert members.publish(Load(live=9, accepts=True, draining=True))


def test_a_pause_is_told_until_it_was_heard_and_another_may_come_meanwhile(members):
    members.tell_pause("quota", 60.0)
    step, told = members.beat(10.0)
    assert step.words[-2:] == (50_000, "quota")
    members.tell_pause("key", 100.0)

    members.heard(answer(), told, 10.1)

    step, told = members.beat(20.0)
    assert step.words[-2:] == (80_000, "key")
    members.heard(answer(), told, 20.1)
    assert members.beat(21.0)[0].words[-2:] == (0, "")


def test_a_pause_of_another_ends_by_itself(members):
    members.heard(answer(pause=b"n1.2@7 quota", pause_ms=5_000), None, 10.0)

    assert members.pause(11.0) == ("quota", 4.0)
    assert members.pause(15.0) is None
    members.heard(answer(pause=b"n0@5 quota", pause_ms=5_000), None, 16.0)
    assert members.pause(16.0) is None


@pytest.mark.parametrize("own", [None, b"n0@5 quota"], ids=["no pause", "our own"])
def test_a_pause_of_another_that_was_lost_lasts_until_that_one_has_had_time_to_tell_it_again(
    members, own
):
    members.heard(answer(pause=b"n1.2@7 quota", pause_ms=60_000, now_ms=90_000), None, 10.0)

    said = {"pause": own, "pause_ms": 60_000 if own else -2, "begun": b"100000"}
    members.heard(answer(lost=1, now_ms=100_000, **said), None, 20.0)
    members.heard(answer(now_ms=100_050, **said), None, 20.05)
    meanwhile = members.pause(20.1)
    members.heard(answer(now_ms=103_990, **said), None, 23.99)
    until_then = members.pause(24.0)
    members.heard(answer(now_ms=104_010, **said), None, 24.01)

    assert (meanwhile, until_then) == (("quota", pytest.approx(49.9)), ("quota", 46.0))
    assert members.pause(24.1) is None


def test_a_pause_of_another_that_was_lost_is_believed_when_it_is_told_again(members):
    members.heard(answer(pause=b"n1.2@7 quota", pause_ms=60_000), None, 10.0)
    lost = {"lost": 1, "begun": b"100000"}

    members.heard(answer(now_ms=100_000, pause=b"n2@1 key", pause_ms=5_000, **lost), None, 20.0)

    assert members.pause(21.0) == ("key", 4.0)


@pytest.mark.parametrize("begun", [b"", b"soon", b"9" * 400])
def test_a_pause_ends_where_it_is_not_said_since_when_the_registry_is_whole(members, begun):
    members.heard(answer(pause=b"n1.2@7 quota", pause_ms=60_000), None, 10.0)

    members.heard(answer(begun=begun), None, 20.0)

    assert members.pause(20.0) is None


def test_another_process_of_the_same_name_is_told_of_once(members, caplog):
    load = load_of("n0@4", address="")
    for now in (10.0, 20.0, 30.0):
        said = (b"n0@4", b"%d00 " % now + load)
        members.heard(answer(said, now_ms=round(now * 100) + 100), None, now)

    assert members._has_namesake


@pytest.mark.parametrize("is_sharded", [True, False])
def test_a_loss_that_another_member_has_found_in_a_shard_is_heard_of_once(is_sharded):
    members = Members(ME, "http://n0:8000", Steps("offhook:", is_sharded=is_sharded), PROVER)
    members.heard(answer(begun=b"1"), None, 0.0)

    heard_at = [members.heard(answer(begun=b"7"), None, now) for now in (10.0, 11.0)]
    members.heard(answer(begun=b"8", lost=1), None, 20.0)
    the_same = members.heard(answer(begun=b"9"), None, 20.0 + SAME_LOSS_S / 2)

    assert heard_at == [is_sharded, False]
    assert not the_same
