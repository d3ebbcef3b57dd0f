"""What proves to a process that another of ours asks, and that another of ours has answered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.cluster.proof import MAX_PEER_BYTES, MAX_SKEW_S, NotProved, Prover
from server.cluster.registry import Member

NOW = 1_000_000.0
ASKED = Member("b.1", 7)
CONTENT = b"who calls: +15005550105"


@pytest.fixture
def prover():
    return Prover(["secret"])


def ask(prover: Prover, *, at: float = NOW):
    return prover.ask(ASKED, CONTENT, wall_time=at)


def test_a_request_of_one_of_ours_is_taken_and_its_answer_comes_back(prover):
    peer, body, asking = ask(Prover(["secret"]))

    asked = prover.check(peer, wall_time=NOW, now=NOW)
    answer = asked.seal_answer(b"the answer")

    assert (asked.to, asked.length) == ("b.1@7", len(body))
    assert asked.unseal(body) == CONTENT
    assert asking.unseal_answer(answer) == b"the answer"


def test_nothing_of_a_request_or_its_answer_can_be_read_without_the_secret(prover):
    peer, body, _ = ask(prover)
    asked = Prover(["secret"]).check(peer, wall_time=NOW, now=NOW)
    answer = asked.seal_answer(b"a record with +15005550105 in it")

    assert b"5550105" not in peer + body + answer
    assert "secret" not in repr(asked)
    assert ask(prover)[1] != body  # two of the same are not seen to be the same


@pytest.mark.parametrize("late_s", [MAX_SKEW_S + 1, -MAX_SKEW_S - 1])
def test_a_request_that_is_old_or_from_the_future_is_not_taken(prover, late_s):
    peer, _, _ = ask(Prover(["secret"]))

    with pytest.raises(NotProved, match="too old"):
        prover.check(peer, wall_time=NOW + late_s, now=NOW + late_s)


@pytest.mark.parametrize("place", range(6))
def test_no_word_of_the_header_can_be_changed(prover, place):
    said = ask(Prover(["secret"]))[0].split(b" ")
    others = ask(Prover(["secret"]), at=NOW + 1)[0].split(b" ")
    others[1], others[4] = b"b.1@8", b"999"
    said[place] = b"3" if place == 0 else others[place]

    with pytest.raises(NotProved):
        prover.check(b" ".join(said), wall_time=NOW, now=NOW)


def test_another_body_is_not_opened(prover):
    peer, body, _ = ask(Prover(["secret"]))
    _, other, _ = ask(Prover(["secret"]))
    asked = prover.check(peer, wall_time=NOW, now=NOW)

    for changed in (other, body[:-1], body[:-1] + bytes([body[-1] ^ 1]), body + b"?", b""):
        with pytest.raises(NotProved):
            asked.unseal(changed)


def test_any_of_several_secrets_is_believed_and_the_answer_is_for_who_has_asked():
    changing, old = Prover(["new", "old"]), Prover(["old"])
    peer, _, asking = ask(old)

    asked = changing.check(peer, wall_time=NOW, now=NOW)

    assert asking.unseal_answer(asked.seal_answer(b"yes")) == b"yes"
    of_changing = ask(changing)[0]
    with pytest.raises(NotProved, match="wrong proof"):
        old.check(of_changing, wall_time=NOW, now=NOW)
    assert Prover(["old", "new"]).check(of_changing, wall_time=NOW, now=NOW).to == "b.1@7"


def test_a_request_of_somebody_with_another_secret_is_not_taken(prover):
    peer, _, _ = ask(Prover(["guess"]))

    with pytest.raises(NotProved, match="wrong proof"):
        prover.check(peer, wall_time=NOW, now=NOW)


def test_a_request_of_another_version_is_told_apart(prover):
    peer, _, _ = ask(Prover(["secret"]))

    with pytest.raises(NotProved, match="version"):
        prover.check(b"3" + peer[1:], wall_time=NOW, now=NOW)


def test_a_request_is_good_once(prover):
    peer, _, _ = ask(Prover(["secret"]))
    prover.check(peer, wall_time=NOW, now=NOW)

    with pytest.raises(NotProved, match="repeated"):
        prover.check(peer, wall_time=NOW + MAX_SKEW_S, now=NOW + MAX_SKEW_S)


def test_a_strangers_request_leaves_nothing_to_be_remembered(prover):
    peer, _, _ = ask(Prover(["guess"]))

    for _ in range(3):
        with pytest.raises(NotProved):
            prover.check(peer, wall_time=NOW, now=NOW)

    assert len(prover._used) == 0


def test_what_was_used_is_forgotten_when_nobody_could_use_it_again(prover):
    for number in range(100):
        at = NOW + number * MAX_SKEW_S
        prover.check(ask(Prover(["secret"]), at=at)[0], wall_time=at, now=at)

    assert len(prover._used) <= 4


def test_too_many_requests_at_once_are_refused_and_not_all_remembered(prover, monkeypatch):
    monkeypatch.setattr("server.cluster.proof.MAX_NONCES", 2)
    for _ in range(2):
        prover.check(ask(Prover(["secret"]))[0], wall_time=NOW, now=NOW)

    with pytest.raises(NotProved, match="too many"):
        prover.check(ask(Prover(["secret"]))[0], wall_time=NOW, now=NOW)


def test_an_answer_is_proved_for_one_request_and_as_it_is(prover):
    one, another = ask(Prover(["secret"])), ask(Prover(["secret"]))
    answer = prover.check(one[0], wall_time=NOW, now=NOW).seal_answer(b"yes")
    changed = answer[:-1] + bytes([answer[-1] ^ 1])

    for asking, shown in (
        *((another[2], answer), (one[2], changed), (one[2], b""), (one[2], answer[:12])),
        (one[2], bytes(12) + one[1]),  # what was asked, sent back
    ):
        with pytest.raises(NotProved):
            asking.unseal_answer(shown)


@given(
    st.binary(max_size=2 * MAX_PEER_BYTES)
    | st.text(alphabet="0123456789abcdef @.-\n\x00é", max_size=400).map(str.encode)
)
def test_whatever_a_stranger_says_is_refused_in_words(peer):
    with pytest.raises(NotProved):
        Prover(["secret"]).check(peer, wall_time=NOW, now=NOW)


@given(st.data())
def test_a_header_that_is_nearly_right_is_refused(data):
    peer, _, _ = ask(Prover(["secret"]))
    at = data.draw(st.integers(0, len(peer) - 1))
    until = data.draw(st.integers(at, len(peer)))
    put = data.draw(st.binary(max_size=4))
    changed = peer[:at] + put + peer[until:]

    if changed == peer:
        return
    with pytest.raises(NotProved):
        Prover(["secret"]).check(changed, wall_time=NOW, now=NOW)


# -- addresses -------------------------------------------------------------------------------


def test_an_address_is_believed_of_the_member_that_it_was_vouched_for(prover):
    shown = prover.vouch("b.1@7", "http://b:8000")
    other = Prover(["new", "secret"])

    assert other.is_vouched("b.1@7", "http://b:8000", shown)
    assert not other.is_vouched("b.1@8", "http://b:8000", shown)
    assert not other.is_vouched("b.1@7", "http://evil:8000", shown)
    assert not other.is_vouched("b.1@7", "http://b:8000", "")
    assert not Prover(["guess"]).is_vouched("b.1@7", "http://b:8000", shown)


@given(st.text(max_size=80))
def test_what_anybody_has_written_vouches_for_nothing(shown):
    assert not Prover(["secret"]).is_vouched("b.1@7", "http://b:8000", shown)


def test_requests_are_told_apart_though_the_clock_is_set_back(monkeypatch):
    monkeypatch.setattr("server.cluster.proof.MAX_NONCES", 2)
    prover, back = Prover(["secret"]), NOW - 3600.0
    prover.check(ask(Prover(["secret"]))[0], wall_time=NOW, now=0.0)
    again = ask(Prover(["secret"]), at=back)[0]

    prover.check(again, wall_time=back, now=1.0)
    with pytest.raises(NotProved, match="repeated"):
        prover.check(again, wall_time=back, now=2.0)
    # What was used before is forgotten in its time, and does not fill the room up.
    for later_s in (100.0, 101.0):
        prover.check(ask(Prover(["secret"]), at=back)[0], wall_time=back, now=later_s)
