"""What a run of chaos is judged by, from what was seen of it."""

from __future__ import annotations

from array import array
from dataclasses import replace

import pytest
from sqlalchemy.engine import make_url

from benchmarks.chaos.calls import OVERTAKEN, CallSeen, Loss, SessionSeen, judge_call
from benchmarks.chaos.command import tracebacks
from benchmarks.chaos.faults import BY_NAME, FAULTS, Excuse
from benchmarks.chaos.invariants import INVARIANTS, Done, Held, Look, Seen, judge
from benchmarks.chaos.numbered import levels_of
from benchmarks.chaos.world import Record, records_aside
from benchmarks.load.trail import SILENCE
from benchmarks.weighing import Weighed
from server.records.aside import Aside

SID = "CA" + "1" * 32
OTHER = "CA" + "2" * 32
GOOD = CallSeen(
    call_sid=SID,
    number=7,
    direction="inbound",
    began=10.0,
    answered=10.5,
    ended=40.0,
    hung_up=True,
    streams=["the callee hung up"],
    notes=[],
    unanswered=0,
)


def ended(call_sid: str) -> Record:
    return Record(call_sid, "ended", "caller-hung-up")


def run(*calls: CallSeen, **facts) -> Seen:
    """A run in which everything was well, but for these facts."""
    seen = Seen(
        began=0.0,
        ended=60.0,
        calls=list(calls),
        looks=[Look(5.0, 0.01, 200)],
        records=[ended(call.call_sid) for call in calls],
        before=Held(50, 10, 100 * 2**20),
        after=Held(50, 10, 110 * 2**20),
        drained=Look(60.0, 0.01, 503, "draining"),
        status=0,
    )
    for name, value in facts.items():
        setattr(seen, name, value)
    return seen


def broken(seen: Seen) -> set[str]:
    return {one.invariant for one in judge(seen)}


def fault(name: str, began: float = 20.0, ended: float = 22.0, **facts) -> Done:
    return Done(name, began, ended, BY_NAME[name].excuse, **facts)


def test_a_run_in_which_everything_is_well_breaks_nothing():
    assert broken(run(GOOD)) == set()


def test_a_call_that_its_own_telephone_did_not_end_is_broken():
    ended = replace(GOOD, hung_up=False, streams=["closed by the server"])

    assert broken(run(ended)) == {"calls live"}


def test_a_pause_is_no_excuse_for_a_call_to_end():
    ended = replace(GOOD, hung_up=False, ended=21.0)

    assert broken(run(ended, faults=[fault("pause")])) == {"calls live"}


def test_a_killed_worker_may_end_calls_of_which_nothing_was_kept_yet_and_no_other():
    talks = replace(GOOD, hung_up=False, ended=21.0)
    young = replace(talks, began=19.5)
    unasked = replace(talks, notes=[(10.9, "error 11205: /resume was not reached")])

    assert broken(run(talks, faults=[fault("kill-worker")])) == {"calls live"}
    assert broken(run(young, faults=[fault("kill-worker")])) == set()
    assert broken(run(unasked, faults=[fault("kill-worker")])) == set()
    assert broken(run(young)) == {"calls live"}


def test_a_carrier_that_is_reset_excuses_the_end_of_calls_it_could_not_ask_about_and_no_other():
    ended = replace(GOOD, hung_up=False, ended=21.0, streams=["closed by the server"])
    unasked = replace(ended, notes=[(10.9, "error 11205: /resume was not reached")])
    refused = replace(ended, notes=[(10.9, "error 11200: /resume answered 500")])

    assert broken(run(unasked, faults=[fault("carrier-resets")])) == set()
    assert broken(run(unasked)) == {"calls live"}
    assert broken(run(unasked, faults=[fault("media-cut")])) == {"calls live"}
    assert broken(run(ended, faults=[fault("carrier-resets")])) == {"calls live"}
    assert broken(run(refused, faults=[fault("carrier-resets")])) == {"calls live"}


def test_a_line_that_the_carrier_never_misses_may_be_given_up():
    ended = replace(GOOD, hung_up=False, ended=28.0)

    assert broken(run(ended, faults=[fault("media-lost-by-us", may_end=5)])) == set()


def test_a_call_that_never_begins_needs_a_reason():
    refused = replace(GOOD, streams=[], hung_up=False, ended=12.0)

    assert broken(run(refused, records=[])) == {"calls begin"}
    assert broken(run(refused, records=[], faults=[fault("burst", 11.0, 11.0)])) == set()


def test_audio_that_a_cut_took_is_excused_and_other_audio_is_not():
    lost = replace(GOOD, losses=[Loss("caller", 4, 20.5, 21.0)])

    assert broken(run(lost)) == {"audio whole"}
    assert broken(run(lost, faults=[fault("pause")])) == {"audio whole"}
    assert broken(run(lost, faults=[fault("media-cut", 20.6, 20.6)])) == set()
    assert broken(run(lost, faults=[fault("media-cut", 40.0, 40.0)])) == {"audio whole"}


def test_the_last_words_of_a_caller_are_heard_unless_the_server_was_held_up():
    hung_up = replace(GOOD, caller_tail=100)

    assert broken(run(hung_up)) == {"audio whole"}
    assert broken(run(hung_up, faults=[fault("pause", 35.0, 39.9)])) == set()


def test_somebody_else_s_audio_is_never_excused():
    strange = replace(GOOD, strange_down=20)

    assert broken(run(strange, faults=[fault("media-cut")])) == {"audio own"}


def test_every_call_that_was_served_has_a_record_that_says_how_it_ended():
    assert broken(run(GOOD, records=[])) == {"records"}
    assert broken(run(GOOD, records=[Record(SID, "in-progress", None)])) == {"records"}


def test_a_record_of_a_call_that_never_was_is_one_too_many():
    assert broken(run(GOOD, records=[ended(SID), ended(OTHER)])) == {"records"}


def test_a_record_that_was_written_twice_is_one_too_many():
    found = judge(run(GOOD, records=[ended(SID), ended(SID)]))

    assert [(one.invariant, one.what, one.call_sid) for one in found] == [
        ("records", "there are 2", SID)
    ]


def test_the_record_of_a_call_may_be_gone_with_its_worker_only():
    lost = replace(GOOD, ended=19.0)

    assert broken(run(lost, records=[], faults=[fault("kill-worker")])) == set()
    assert broken(run(lost, records=[], faults=[fault("media-lost-by-us")])) == {"records"}
    assert broken(run(lost, records=[], faults=[fault("kill-worker", 50.0, 50.0)])) == {"records"}


def test_records_that_the_database_did_not_take_are_read_where_they_are_kept(tmp_path):
    aside = Aside(tmp_path, make_url("sqlite:///calls.db"))
    kept = {"call_sid": SID, "state": "ended", "reason": "caller-hung-up", "number": "+1"}
    aside.write("unsaved", [kept], "the database is away")

    assert records_aside(tmp_path) == [ended(SID)]


def test_a_webhook_that_nobody_answers_is_broken_unless_nobody_could():
    unheard = replace(GOOD, unanswered=1, ended=21.0)

    assert broken(run(unheard)) == {"webhooks"}
    assert broken(run(unheard, faults=[fault("pause")])) == set()


def test_a_server_that_is_paused_need_not_answer_its_probes():
    looks = [Look(21.0, None, None)]

    assert broken(run(GOOD, looks=looks)) == {"alive", "ready"}
    assert broken(run(GOOD, looks=looks, faults=[fault("pause")])) == set()


def test_a_log_that_nobody_reads_is_no_excuse_not_to_answer():
    looks = [Look(21.0, None, None)]

    assert "alive" in broken(run(GOOD, looks=looks, faults=[fault("unread-log")]))


def test_a_full_server_says_so_and_is_alive():
    looks = [Look(21.0, 0.01, 503, "full")]

    assert broken(run(GOOD, looks=looks)) == {"ready"}
    assert broken(run(GOOD, looks=looks, faults=[fault("burst")])) == set()


def test_a_server_that_is_full_is_not_ready():
    calls = [GOOD, replace(GOOD, call_sid=OTHER)]

    assert broken(run(*calls, max_calls=2, looks=[Look(21.0, 0.01, 200)])) == {"not ready"}
    assert broken(run(*calls, max_calls=3, looks=[Look(21.0, 0.01, 200)])) == set()
    assert broken(run(*calls, max_calls=2, looks=[Look(39.0, 0.01, 200)])) == set()
    assert broken(run(*calls, max_calls=2, looks=[Look(11.0, 0.01, 200)])) == set()


def test_a_server_that_drains_is_not_ready():
    assert broken(run(GOOD, drained=Look(60.0, 0.01, 200))) == {"not ready"}


@pytest.mark.parametrize(
    "after",
    [Held(90, 10, 100 * 2**20), Held(50, 40, 100 * 2**20), Held(50, 10, 300 * 2**20)],
    ids=["descriptors", "threads", "memory"],
)
def test_what_is_left_when_all_calls_are_over_is_a_leak(after):
    assert broken(run(GOOD, after=after)) == {"no leak"}


def test_a_call_that_nobody_has_any_more_is_a_leak():
    assert broken(run(GOOD, left_calls=1)) == {"no leak"}


def weighed(*sizes: float, minutes: float = 20.0, pids=(1,)) -> list[Weighed]:
    """Memory in MiB at even distances."""
    every_s = 60 * minutes / len(sizes)
    return [
        Weighed((index + 1) * every_s, pids, round(size * 2**20))
        for index, size in enumerate(sizes)
    ]


def test_memory_that_grows_after_five_minutes_is_broken():
    grows = weighed(*(100 + 3 * index for index in range(20)))

    assert broken(run(GOOD, weighed=grows)) == {"flat"}


@pytest.mark.parametrize(
    "sizes",
    [
        weighed(100, 120, 140, 160, 180, *[200, 203, 198] * 5),
        weighed(*range(100, 120), minutes=9.0),
        weighed(*[100] * 10) + weighed(*[100] * 10, *[200] * 10, pids=(2,))[10:],
    ],
    ids=["while it settles", "in a short run", "as another process is there"],
)
def test_memory_may_grow_where_there_is_something_to_fill(sizes):
    assert not broken(run(GOOD, weighed=sizes))


def test_a_server_that_ends_by_itself_is_broken():
    assert broken(run(GOOD, died=30.0, status=1)) == {"up"}
    assert broken(run(GOOD, status=None)) == {"up"}


def test_a_traceback_in_the_log_is_broken_and_counted_by_its_kind(tmp_path):
    log = tmp_path / "server.log"
    log.write_text(
        '{"event": "hello"}\n'
        '{"exception": "Traceback (most recent call last):\\n  x\\nValueError: 17 is odd"}\n'
        '{"exception": "Traceback (most recent call last):\\n  x\\nValueError: 19 is odd"}\n'
    )

    found = tracebacks(log)

    assert found == ["2 x ValueError: N is odd"]
    assert broken(run(GOOD, tracebacks=found)) == {"log"}


def test_every_broken_invariant_is_one_that_is_promised():
    everything = run(
        replace(GOOD, hung_up=False, losses=[Loss("agent", 1, 20.0, 20.0)], unanswered=1),
        records=[],
        left_calls=1,
        status=3,
    )

    assert broken(everything) <= set(INVARIANTS)


def test_only_a_killed_worker_and_a_line_nobody_misses_or_asks_about_may_end_calls():
    assert {one.kind.name for one in FAULTS if one.excuse.ends == "young"} == {"kill-worker"}
    assert {one.kind.name for one in FAULTS if one.excuse.ends == "line"} == {"media-lost-by-us"}
    assert {one.kind.name for one in FAULTS if one.excuse.ends == "unasked"} == {"carrier-resets"}


def test_no_fault_but_of_the_network_or_a_worker_s_death_excuses_lost_audio():
    excused = {one.kind.name for one in FAULTS if one.excuse != Excuse() and one.excuse.loses}

    assert excused.isdisjoint({"starve", "full-disk", "unread-log", "burst", "strangers"})
    for one in FAULTS:
        assert one.kind.name not in STAND or one.excuse.loses == {OVERTAKEN}


STAND = {"pause", "freeze"}
"""Faults that excuse only what is said to a process whose call another has."""


# --- One call -------------------------------------------------------------------------------------


def facts() -> dict:
    return {
        name: getattr(GOOD, name)
        for name in (
            *("call_sid", "number", "direction", "began", "answered", "ended"),
            *("hung_up", "streams", "notes", "unanswered"),
        )
    }


def times(count: int, began: float = 11.0) -> array[float]:
    return array("d", (began + 0.02 * at for at in range(count)))


def judged(said: bytes, got: bytes, heard: bytes, moments, frames_of) -> CallSeen:
    session = SessionSeen(got, times(len(got)), moments)
    return judge_call(
        said=said,
        heard=(heard, times(len(heard))),
        sessions=[session],
        frames_of=frames_of,
        **facts(),
    )


def test_a_call_whose_audio_arrived_both_ways_is_whole():
    said, spoken = levels_of(7, 500), levels_of(1, 100)
    moments = [(11.0, "says 1"), (13.0, "completes")]

    seen = judged(said, said, bytes([SILENCE]) * 30 + spoken, moments, {"1": 100})

    assert (seen.caller_frames, seen.agent_frames) == (500, 100)
    assert (seen.losses, seen.pauses, seen.doubled, seen.strange) == ([], [], 0, 0)


@pytest.mark.parametrize(("closed", "way"), [(12.0, "agent"), (16.0, OVERTAKEN)])
def test_what_was_said_to_a_process_that_was_overtaken_is_lost_in_its_own_way(closed, way):
    first = [(11.0, "says 1"), (11.9, "completes"), (closed, "closed with 1001: moved")]
    second = [(14.0, "says 2"), (15.0, "completes")]

    seen = judge_call(
        said=b"",
        heard=(levels_of(2, 100), times(100, 14.5)),
        sessions=[SessionSeen(b"", times(0), moments) for moments in (first, second)],
        frames_of={"1": 100, "2": 100},
        **facts(),
    )

    assert [(loss.way, loss.frames) for loss in seen.losses] == [(way, 100)]


def test_what_was_held_up_and_is_cut_in_the_end_is_lost_when_it_is_cut():
    spoken = levels_of(1, 200)
    moments = [(11.0, "says 1"), (11.5, "completes")]

    seen = judge_call(
        said=b"",
        heard=(spoken[:195], times(195, 15.5)),  # until 19.4; it was due at 19
        sessions=[SessionSeen(b"", times(0), moments)],
        frames_of={"1": 200},
        **facts(),
    )

    (loss,) = seen.losses
    assert (loss.way, loss.frames) == ("agent", 5)
    assert loss.since <= 19.4 <= loss.until


def test_what_was_held_up_is_not_lost_while_what_is_before_it_is_heard():
    """The caller hangs up in the middle of it."""
    spoken = levels_of(1, 200)
    moments = [(11.0, "says 1"), (11.5, "completes")]

    seen = judge_call(
        said=b"",
        heard=(spoken[:150], times(150, GOOD.ended - 3.2)),
        sessions=[SessionSeen(b"", times(0), moments)],
        frames_of={"1": 200},
        **facts(),
    )

    assert seen.losses == []


def test_a_caller_s_frames_that_did_not_arrive_are_lost_when_they_were_due():
    said = levels_of(7, 500)

    seen = judged(said, said[:200] + said[250:], b"", [], {})

    (loss,) = seen.losses
    assert (loss.way, loss.frames) == ("caller", 50)
    assert loss.since <= 15.02 <= loss.until + 0.02


def test_what_was_not_heard_of_an_interrupted_turn_is_not_lost():
    moments = [(11.0, "says 1"), (12.0, "is interrupted"), (14.0, "says 2"), (16.0, "completes")]
    heard = levels_of(1, 40) + bytes([SILENCE]) * 50 + levels_of(2, 80)

    seen = judged(levels_of(7, 10), levels_of(7, 10), heard, moments, {"1": 100, "2": 80})

    assert seen.losses == []


def test_what_was_not_heard_of_a_turn_that_was_finished_is_lost():
    moments = [(11.0, "says 1"), (12.0, "completes"), (14.0, "says 2"), (16.0, "completes")]
    heard = levels_of(1, 40) + levels_of(2, 80)

    seen = judged(levels_of(7, 10), levels_of(7, 10), heard, moments, {"1": 100, "2": 80})

    assert [(loss.way, loss.frames) for loss in seen.losses] == [("agent", 60)]


def test_an_agent_that_is_never_heard_again_has_lost_what_it_said_long_ago():
    moments = [(11.0, "says 1"), (12.0, "completes"), (14.0, "says 2"), (16.0, "completes")]

    seen = judged(
        levels_of(7, 10), levels_of(7, 10), levels_of(1, 100), moments, {"1": 100, "2": 80}
    )

    assert [(loss.way, loss.frames) for loss in seen.losses] == [("agent", 80)]


def test_silence_in_the_middle_of_a_sentence_is_a_pause():
    spoken = levels_of(1, 100)
    moments = [(11.0, "says 1"), (13.0, "completes")]
    heard = spoken[:60] + bytes([SILENCE]) * 5 + spoken[60:]

    seen = judged(levels_of(7, 10), levels_of(7, 10), heard, moments, {"1": 100})

    assert [length for _, length in seen.pauses] == [pytest.approx(0.1)]
    assert seen.losses == []
