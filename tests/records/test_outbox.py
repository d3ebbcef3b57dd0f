"""The outbox: what is to be sent next, and by whom, in every database."""

from __future__ import annotations

import pytest
import sqlalchemy as sql

from server.events.places import Places
from server.records.database.database import Database
from server.records.database.tables import FOUND_OVER
from server.records.database.url import database_url
from server.records.outbox import Outbox, OutboxEvent, Sent
from tests.support.databases import postgresql

pytestmark = pytest.mark.sockets
LATER = 1_000.0


@pytest.fixture(scope="module")
def postgresql_url():
    with postgresql() as url:
        yield url


@pytest.fixture(params=["sqlite", "memory", "postgresql"])
def database(request, tmp_path):
    url = f"sqlite:///{tmp_path}/offhook.db"
    if request.param == "memory":
        url = "sqlite://"
    elif request.param == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    database = Database(database_url(url))
    yield database
    with database.transaction() as connection:
        connection.execute(sql.text("DELETE FROM offhook_events"))
    database.close()


@pytest.fixture
def outbox(database):
    return Outbox(database)


def event(name: str, *, call: str = "CA1", at: float = 1.0, generation: int = 1, **facts):
    return OutboxEvent(
        **{
            "id": name,
            "call_sid": call,
            "generation": generation,
            "at": at,
            "type": "call.ended",
            "target": "https://a.example:443",
            "url": "https://a.example/hook",
            "payload": "{}",
            **facts,
        }
    )


def places(*answering: str) -> Places:
    """Room for ten events at once; these answer, and nothing is known of all others."""
    room = Places(10)
    for host in answering:
        room.learn(f"https://{host}.example:443", 0.1)
    return room


def claim(outbox, *sent, lease="us", now=LATER, free=10, room=None) -> list[str]:
    step = outbox.step(
        sent,
        lease=lease,
        now=now,
        until=now + 30.0,
        free=free,
        places=room or places("a", "b"),
    )
    return sorted(one.event.id for one in step.claimed)


def test_events_of_a_call_are_sent_one_after_the_other(outbox):
    first, second, other = event("1", at=1.0), event("2", at=2.0), event("3", call="CA2")
    outbox.put([second, first, other])

    assert claim(outbox) == ["1", "3"]
    assert claim(outbox, Sent(first, is_done=True)) == ["2"]


def test_what_one_process_sends_another_does_not_until_its_lease_runs_out(outbox):
    outbox.put([event("1")])

    assert claim(outbox, lease="us") == ["1"]
    assert claim(outbox, lease="others") == []
    assert claim(outbox, lease="others", now=LATER + 31.0) == ["1"]


def test_whose_lease_has_run_out_changes_nothing_any_more(outbox):
    one = event("1")
    outbox.put([one])
    claim(outbox, lease="us")
    claim(outbox, lease="others", now=LATER + 31.0)

    claim(outbox, Sent(one, is_done=True), lease="us", now=LATER + 32.0, free=0)

    assert outbox.waiting().waiting == 1
    claim(outbox, Sent(one, is_done=True), lease="others", now=LATER + 32.0)
    assert outbox.waiting().waiting == 0


def test_what_was_not_taken_waits_and_so_does_what_follows_it(outbox):
    first, second = event("1", at=1.0), event("2", at=2.0)
    outbox.put([first, second])
    claim(outbox)

    step = outbox.step(
        [Sent(first, next_at=LATER + 60.0, error="answered 500")],
        lease="us", now=LATER, until=LATER + 30.0, free=10, places=places("a"),
    )  # fmt: skip

    assert (list(step.claimed), step.next_at) == ([], LATER + 60.0)
    [again] = outbox.step(
        [], lease="us", now=LATER + 61.0, until=LATER + 90.0, free=10, places=places("a")
    ).claimed
    assert (again.event, again.attempts, again.since) == (first, 1, 1.0)


def test_what_is_given_up_makes_way_and_can_be_sent_again(outbox):
    first, second = event("1", at=1.0), event("2", at=2.0)
    outbox.put([first, second])
    claim(outbox)

    assert claim(outbox, Sent(first, error="answered 410")) == ["2"]
    [dead] = outbox.dead(10)
    assert (dead["id"], dead["error"], dead["attempts"]) == ("1", "answered 410", 1)
    assert "payload" not in dead
    assert (outbox.waiting().waiting, outbox.waiting().dead) == (1, 1)
    assert [outbox.replay("1", LATER) for _ in range(2)] == [True, False]
    assert claim(outbox, Sent(second, is_done=True)) == ["1"]


def test_all_that_was_given_up_can_be_sent_again(outbox):
    events = [event(str(number), call=f"CA{number}") for number in range(3)]
    outbox.put(events)
    claim(outbox)
    claim(outbox, *(Sent(one) for one in events))

    assert outbox.replay_all(LATER) == 3
    assert claim(outbox) == ["0", "1", "2"]


def test_only_so_many_go_to_one_receiver_and_others_do_not_wait_behind_them(outbox):
    outbox.put([event(f"a{n}", call=f"CA{n}", at=1.0 + n) for n in range(5)])
    other = event("b", call="CB", at=9.0, target="https://b.example:443")
    outbox.put([other])

    room = places()

    assert claim(outbox, room=room, free=3) == ["a0", "a1"]
    assert claim(outbox, room=room, free=3) == ["b"]


def test_when_slow_receivers_have_their_part_only_prompt_ones_are_looked_for(outbox):
    room = places("z")
    for number in range(5):
        assert room.take(f"https://slow{number // 2}.example:443")
    silent = [event(f"s{n}", call=f"CA{n}", target=f"https://s{n}.example:443") for n in range(20)]
    outbox.put([*silent, event("z", call="CAz", at=900.0, target="https://z.example:443")])

    assert claim(outbox, room=room, free=5) == ["z"]


def test_an_event_that_is_there_is_not_there_twice(outbox):
    outbox.put([event("1")])
    outbox.put([event("1"), event("2", at=2.0)])

    assert outbox.waiting().waiting == 2


def test_how_a_call_ended_is_told_by_its_last_owner(outbox):
    outbox.put([event("old", is_last=True)])
    outbox.put([event("new", generation=2, is_last=True)])
    outbox.put([event("older still", is_last=True)])

    assert outbox.waiting().waiting == 1
    assert claim(outbox) == ["new"]


def test_how_a_call_ended_is_told_by_who_talked_and_not_by_who_found_it_over(outbox):
    outbox.put([event("began", is_last=False), event("talked", at=2.0, is_last=True)])
    outbox.put([event("found over", at=3.0, generation=FOUND_OVER, is_last=True)])

    began, talked = event("began", is_last=False), event("talked", at=2.0, is_last=True)
    assert claim(outbox) == ["began"]
    assert claim(outbox, Sent(began, is_done=True)) == ["talked"]
    assert claim(outbox, Sent(talked, is_done=True)) == []


def test_who_talked_may_tell_how_a_call_ended_after_who_found_it_over(outbox):
    outbox.put([event("found over", generation=FOUND_OVER, is_last=True)])
    outbox.put([event("talked", at=2.0, is_last=True)])

    assert claim(outbox) == ["talked"]
    assert outbox.waiting().waiting == 1


def test_a_call_that_was_found_over_ends_after_all_else_of_it_and_is_told_of(outbox):
    began = event("began", at=1.0, generation=2)
    outbox.put([began])
    outbox.put([event("found over", at=2.0, generation=FOUND_OVER, is_last=True)])

    assert claim(outbox) == ["began"]
    assert claim(outbox, Sent(began, is_done=True)) == ["found over"]


def test_what_an_earlier_owner_tells_late_comes_before_what_the_later_one_does(outbox):
    outbox.put([event("2", generation=2, at=1.0)])
    outbox.put([event("1", generation=1, at=5.0)])

    assert claim(outbox) == ["1"]


def test_a_process_that_stops_gives_back_what_it_has_not_sent(outbox):
    one = event("1")
    outbox.put([one])
    claim(outbox)

    claim(outbox, Sent(one, next_at=LATER, counts=False), free=0)

    [again] = outbox.step(
        [], lease="others", now=LATER, until=LATER + 30.0, free=1, places=places("a")
    ).claimed
    assert (again.event.id, again.attempts) == ("1", 0)


def test_an_event_is_read_as_it_was_written_in_a_file():
    one = event("1", is_last=True)

    assert OutboxEvent.of_dict(one.as_dict()) == one
    for wrong in ({}, {**one.as_dict(), "at": "soon"}, {**one.as_dict(), "payload": None}):
        with pytest.raises(ValueError, match="no event"):
            OutboxEvent.of_dict(wrong)


def test_many_old_events_are_deleted_in_pieces(outbox):
    outbox.put([event(f"{number}", at=float(number)) for number in range(1, 7)])

    pieces = [outbox.delete_before(6.0, 2) for _ in range(4)]

    assert pieces == [2, 2, 1, 0]
    assert claim(outbox) == ["6"]


def test_what_was_deleted_is_in_no_file_any_more(tmp_path):
    database = Database(database_url(f"sqlite:///{tmp_path}/offhook.db"))
    outbox = Outbox(database)
    outbox.put([event("old", payload="long-forgotten-words")])

    outbox.delete_before(2.0, 10)
    database.forget_deleted()
    left = [file.name for file in tmp_path.iterdir() if b"long-forgotten" in file.read_bytes()]
    database.close()

    assert left == []


@pytest.mark.parametrize("name", ["a\0", "\ud800", "'; --", "x" * 1_000])
def test_an_event_that_cannot_be_is_not_there(outbox, name):
    assert not outbox.replay(name, LATER)
