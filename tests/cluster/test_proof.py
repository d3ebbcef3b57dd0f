"""What proves to a process that another of ours asks, and that another of ours has answered."""

from __future__ import annotations

import pytest

from server.cluster.proof import MAX_SKEW_S, NotProved, Prover, receiver

NOW = 1_000_000.0
FACTS = {"by": "a", "given": False}
ANSWER = [(b"content-type", b"text/xml"), (b"date", b"today")]


@pytest.fixture
def asked():
    return Prover(["secret"])


def ask(prover: Prover, *, at: float = NOW) -> tuple[bytes, bytes, str]:
    return prover.ask("b.1", "POST", b"/n/b.1/call-status?x=1", b"body", FACTS, wall_time=at)


def check(asked: Prover, peer: bytes, proof: bytes, *, now: float = NOW, **changed):
    request = {"method": "POST", "target": b"/n/b.1/call-status?x=1", "body": b"body", "me": "b.1"}
    return asked.check_request(peer, proof, wall_time=now, **{**request, **changed})


def test_a_request_of_one_of_ours_is_taken_with_its_facts(asked):
    peer, proof, nonce = ask(Prover(["secret"]))

    found = check(asked, peer, proof)

    assert (found.to, found.nonce, found.facts) == ("b.1", nonce, FACTS)
    assert receiver(peer) == "b.1"


@pytest.mark.parametrize(
    "changed",
    [
        {"method": "GET"},
        {"target": b"/n/b.1/call-status?x=2"},
        {"body": b"bodies"},
        {"me": "b.2"},
        {"now": NOW + MAX_SKEW_S + 1},
        {"now": NOW - MAX_SKEW_S - 1},
    ],
)
def test_a_request_that_was_changed_or_is_for_another_or_old_is_not(asked, changed):
    peer, proof, _ = ask(Prover(["secret"]))

    with pytest.raises(NotProved):
        check(asked, peer, proof, **changed)


def test_any_of_several_secrets_is_believed_and_the_first_proves():
    changing, old = Prover(["new", "old"]), Prover(["old"])
    of_old = ask(old)
    of_changing = ask(changing)

    found = check(changing, *of_old[:2])

    assert found.nonce == of_old[2]
    with pytest.raises(NotProved, match="wrong proof"):
        check(old, *of_changing[:2])
    assert check(Prover(["old", "new"]), *of_changing[:2]).nonce == of_changing[2]


def test_a_request_of_somebody_with_another_secret_is_not_taken(asked):
    peer, proof, _ = ask(Prover(["guess"]))

    with pytest.raises(NotProved, match="wrong proof"):
        check(asked, peer, proof)


def test_a_request_is_good_once(asked):
    peer, proof, _ = ask(Prover(["secret"]))
    check(asked, peer, proof)

    with pytest.raises(NotProved, match="repeated"):
        check(asked, peer, proof, now=NOW + MAX_SKEW_S)


def test_what_was_used_is_forgotten_when_nobody_could_use_it_again(asked):
    for number in range(100):
        at = NOW + number * MAX_SKEW_S
        peer, proof, _ = ask(Prover(["secret"]), at=at)
        check(asked, peer, proof, now=at)

    assert len(asked._used) <= 4


def test_too_many_requests_at_once_are_refused_and_not_all_remembered(asked, monkeypatch):
    monkeypatch.setattr("server.cluster.proof.MAX_NONCES", 2)
    for _ in range(2):
        peer, proof, _ = ask(Prover(["secret"]))
        check(asked, peer, proof)
    peer, proof, _ = ask(Prover(["secret"]))

    with pytest.raises(NotProved, match="too many"):
        check(asked, peer, proof)


def test_an_answer_is_proved_for_one_request_and_as_it_is(asked):
    proof = asked.prove_answer("nonce", 200, ANSWER, b"<Response/>")
    other = Prover(["secret"])

    assert other.is_answer("nonce", 200, ANSWER[:1], b"<Response/>", proof)
    assert not other.is_answer("another", 200, ANSWER, b"<Response/>", proof)
    assert not other.is_answer("nonce", 404, ANSWER, b"<Response/>", proof)
    assert not other.is_answer("nonce", 200, ANSWER, b"<Hangup/>", proof)
    assert not other.is_answer("nonce", 200, [], b"<Response/>", proof)
    assert not other.is_answer("nonce", 200, ANSWER, b"<Response/>", b"")
    assert not Prover(["guess"]).is_answer("nonce", 200, ANSWER, b"<Response/>", proof)


@pytest.mark.parametrize("peer", [b"", b"[]", b"{}", b'{"to": "../a"}', b"[" * 4000, b"x" * 5000])
def test_who_says_no_name_asks_nobody(peer):
    assert receiver(peer) is None
