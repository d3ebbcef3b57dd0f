from __future__ import annotations

from server.carrier import CallStatus, StatusUpdate
from server.switchboard.early import EarlyUpdates


def update(call: int, status: CallStatus = CallStatus.RINGING, number: int = 1) -> StatusUpdate:
    return StatusUpdate(f"CA{call:032x}", status, number)


def test_what_came_early_is_given_in_its_order_and_once():
    early = EarlyUpdates()
    for one in (update(1, number=2), update(2), update(1, CallStatus.INITIATED, 0)):
        early.add(one)

    assert [one.sequence_number for one in early.take(update(1).call_sid)] == [0, 2]
    assert early.take(update(1).call_sid) == []
    assert len(early) == 1


def test_the_same_report_is_kept_once():
    early = EarlyUpdates()
    for _ in range(100):
        early.add(update(1))

    assert len(early) == 1


def test_one_call_has_few_and_its_end_is_not_forgotten():
    early = EarlyUpdates(of_one_call=3)
    early.add(update(1, CallStatus.BUSY, 0))
    for number in range(100):
        early.add(update(1, number=number))

    kept = early.take(update(1).call_sid)
    assert [(one.status.value, one.sequence_number) for one in kept] == [
        ("busy", 0),
        ("ringing", 98),
        ("ringing", 99),
    ]
    assert len(early) == 0


def test_there_is_a_bound_for_all_calls_together_and_the_oldest_call_goes():
    early = EarlyUpdates(in_all=10, of_one_call=4)
    for call in range(100):
        for number in range(20):
            early.add(update(call, number=number))

    assert len(early) <= 10
    assert len(early.take(update(99).call_sid)) == 4
    assert early.take(update(0).call_sid) == []
