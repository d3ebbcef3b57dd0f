"""When a session leaves a connection, and what it says again: no socket, no clock."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from server.errors import ModelError, ModelQuotaExceeded, ModelSetupRefused
from server.model import ToolResult, Way
from server.model.gemini.faults import account_refused
from server.model.lasting.plan import FIRST_PATIENCE_S, MAX_DELAY_S, ConnectionPlan, State
from server.model.lasting.unanswered import (
    BYTES_PER_S,
    MAX_KEPT_INPUTS,
    MAX_KEPT_S,
    MAX_MESSAGE_BYTES,
    UnansweredInput,
)
from server.refusal import Kind

CHUNK_BYTES = 640
CHUNK_S = CHUNK_BYTES / BYTES_PER_S


def closed_with(code: int) -> ModelError:
    return ModelError(f"closed with {code}", code=code, reason="", retryable=code != 1007)


DROPPED = closed_with(1006)
INTERNAL = closed_with(1011)
USED_UP = closed_with(1007)
REFUSED = ModelSetupRefused("no", code=1008, reason="not found", retryable=False)
QUOTA = ModelQuotaExceeded("no", code=1011, reason="quota", retryable=False)
UNREADABLE = ModelError("noise", code=None, reason="", retryable=True)


def yes() -> bool:
    return True


def no() -> bool:
    return False


def opened_plan(handle: str | None = "h1", **options: Any) -> ConnectionPlan:
    """A plan whose first connection is open since 0, and works."""
    plan = ConnectionPlan(0.0, jitter=lambda: 0.5, **options)
    plan.begin()
    plan.opened(0.0)
    plan.note_answer()
    plan.note_handle(handle)
    return plan


# --- Leaving


def test_a_connection_is_left_at_its_age_and_in_a_silence() -> None:
    plan = opened_plan(connection_age_s=540.0)
    assert plan.wakes_at(0.0) == 540.0

    plan.tick(539.9, yes)
    assert plan.state is State.OPEN
    plan.tick(540.0, no)
    assert plan.state is State.DUE
    assert plan.wakes_at(540.0) == pytest.approx(540.1)
    plan.tick(900.0, no)
    assert plan.is_open
    plan.tick(900.1, yes)

    assert (plan.state, plan.way, plan.reason) == (State.LEAVING, Way.RESUME, "age")


def test_a_service_that_goes_away_is_left_in_the_next_silence() -> None:
    plan = opened_plan()

    plan.going_away(50.0, 100.0)
    plan.tick(100.0, no)
    plan.tick(107.3, yes)

    assert (plan.state, plan.reason) == (State.LEAVING, "go-away")


def test_ten_seconds_before_the_service_closes_there_is_no_more_waiting() -> None:
    plan = opened_plan()

    plan.going_away(50.0, 100.0)
    plan.tick(139.9, no)
    assert plan.is_open
    assert plan.wakes_at(139.95) == 140.0
    plan.tick(140.0, no)

    assert plan.state is State.LEAVING


def test_half_of_a_short_notice_is_left_for_a_silence() -> None:
    plan = opened_plan()

    plan.going_away(8.0, 100.0)
    plan.tick(103.9, no)
    assert plan.is_open
    plan.tick(104.0, no)

    assert plan.state is State.LEAVING


def test_a_long_notice_is_no_reason_to_leave_at_once() -> None:
    plan = opened_plan()

    plan.going_away(300.0, 1.0)
    plan.tick(200.0, yes)
    assert plan.state is State.OPEN
    assert plan.wakes_at(200.0) == 231.0
    plan.tick(231.0, yes)

    assert plan.state is State.LEAVING


def test_silence_is_looked_for_only_while_a_rotation_is_due() -> None:
    plan = opened_plan()

    def never_asked() -> bool:
        raise AssertionError

    plan.tick(100.0, never_asked)


def test_the_age_counts_from_each_connection() -> None:
    plan = opened_plan(connection_age_s=100.0)
    plan.tick(105.0, yes)
    plan.closed(105.0)
    plan.begin()
    plan.opened(105.5)

    assert plan.wakes_at(106.0) == 205.5


# --- Coming back


def test_a_drop_is_answered_at_once_by_resuming() -> None:
    plan = opened_plan("h7")

    plan.lost(DROPPED, 20.0)
    plan.closed(20.0)
    attempt = plan.begin()

    assert plan.open_at == 20.0
    assert (attempt.way, attempt.handle, attempt.give_up_at) == (Way.RESUME, "h7", 50.0)
    assert plan.reason == "closed-1006"


def test_a_handle_that_says_not_now_does_not_replace_the_one_before() -> None:
    plan = opened_plan("h1")
    plan.note_handle(None)

    plan.lost(INTERNAL, 20.0)
    plan.closed(20.0)

    assert plan.begin().handle == "h1"


def test_without_any_handle_a_fresh_session_is_begun() -> None:
    plan = opened_plan(None)

    plan.lost(DROPPED, 20.0)
    plan.closed(20.0)

    assert plan.begin().way is Way.FRESH


def test_attempts_come_less_and_less_often_until_the_budget_is_used_up() -> None:
    plan = opened_plan(None)
    plan.lost(DROPPED, 20.0)
    plan.closed(20.0)
    times = []
    while plan.state is not State.ENDED:
        times.append(plan.open_at)
        plan.begin()
        plan.failed(UNREADABLE, plan.open_at)

    delays = [round(later - earlier, 3) for earlier, later in pairwise(times)]
    assert delays[:6] == [0.25, 0.5, 1.0, 2.0, 4.0, 4.0]
    assert max(delays) == MAX_DELAY_S
    assert times[-1] < 50.0
    assert plan.error is UNREADABLE


def test_delays_are_spread_so_that_calls_do_not_come_back_in_step() -> None:
    def first_delay(jitter: float) -> float:
        plan = ConnectionPlan(0.0, jitter=lambda: jitter)
        plan.begin()
        plan.failed(DROPPED, 0.0)
        return plan.open_at

    assert [first_delay(jitter) for jitter in (0.0, 0.5, 1.0)] == [0.125, 0.25, 0.375]


def test_a_connection_that_does_not_last_does_not_renew_the_budget() -> None:
    plan = opened_plan()
    now = 20.0
    plan.lost(DROPPED, now)
    for _ in range(50):
        plan.closed(now)
        if plan.state is State.ENDED:
            break
        now = plan.open_at
        plan.begin()
        plan.opened(now)
        plan.lost(DROPPED, now + 0.1)
        now += 0.1

    assert plan.state is State.ENDED
    assert 40.0 < now <= 50.5


def test_a_connection_that_has_lasted_renews_the_budget() -> None:
    plan = opened_plan()
    for now in range(20, 2_000, 20):
        plan.lost(DROPPED, now)
        plan.closed(now)
        assert plan.begin().give_up_at == now + 30.0
        assert plan.open_at == now
        plan.opened(now)


def test_a_refused_set_up_is_never_tried_again() -> None:
    plan = ConnectionPlan(0.0)
    plan.begin()

    plan.failed(REFUSED, 0.3)

    assert (plan.state, plan.error) == (State.ENDED, REFUSED)


def test_a_refused_handle_is_replaced_at_once_by_a_fresh_session() -> None:
    plan = opened_plan()
    plan.lost(DROPPED, 20.0)
    plan.closed(20.0)
    plan.begin()

    plan.failed(REFUSED, 20.3)

    assert (plan.open_at, plan.begin().way) == (20.3, Way.FRESH)


def test_a_handle_that_only_leads_to_failures_is_given_up() -> None:
    plan = opened_plan()
    plan.lost(DROPPED, 20.0)
    plan.closed(20.0)
    ways = []
    for _ in range(4):
        ways.append(plan.begin().way)
        plan.failed(INTERNAL, plan.open_at)

    assert ways == [Way.RESUME, Way.RESUME, Way.RESUME, Way.FRESH]


def test_a_session_that_breaks_as_soon_as_it_is_resumed_is_given_up() -> None:
    plan = opened_plan()
    ways = []
    now = 20.0
    for _ in range(4):
        plan.lost(closed_with(1008), now)
        plan.closed(now)
        now = plan.open_at
        ways.append(plan.begin().way)
        plan.opened(now)

    assert ways == [Way.RESUME, Way.RESUME, Way.RESUME, Way.FRESH]


def test_a_used_up_context_gets_one_fresh_session() -> None:
    plan = opened_plan()

    plan.lost(USED_UP, 100.0)
    plan.closed(100.0)
    assert plan.begin().way is Way.FRESH
    plan.opened(100.3)
    plan.lost(USED_UP, 101.0)
    plan.closed(101.0)

    assert (plan.state, plan.error) == (State.ENDED, USED_UP)


EXPIRED = account_refused(Kind.KEY, "no", code=1007, reason="API key expired.")
BUSY = account_refused(Kind.BUSY, "no", code=1011, reason="overloaded")
RATE = account_refused(Kind.RATE, "no", code=1011, reason="Too many requests.")


@pytest.mark.parametrize("refusal", [QUOTA, EXPIRED])
@pytest.mark.parametrize("during", ["call", "reconnect"])
def test_neither_quota_nor_a_refusal_that_needs_a_person_is_retried(
    during: str, refusal: ModelError
) -> None:
    plan = opened_plan()
    if during == "call":
        plan.lost(refusal, 20.0)
        plan.closed(20.0)
    else:
        plan.lost(DROPPED, 20.0)
        plan.closed(20.0)
        plan.begin()
        plan.failed(refusal, 20.3)

    assert (plan.state, plan.error) == (State.ENDED, refusal)


@pytest.mark.parametrize("refusal", [BUSY, RATE])
def test_a_refusal_that_passes_by_itself_is_retried_in_mid_call_within_the_budget(
    refusal: ModelError,
) -> None:
    plan = opened_plan(budget_s=30.0)
    plan.lost(refusal, 20.0)
    plan.closed(20.0)
    attempts = []
    while plan.error is None:
        attempts.append(plan.begin())
        plan.failed(refusal, plan.open_at)

    assert len(attempts) > 5
    assert plan.open_at == pytest.approx(50.0, abs=MAX_DELAY_S)
    assert {attempt.handle for attempt in attempts} == {"h1"}  # it is not the handle's fault


def test_a_call_that_has_not_begun_is_told_of_a_rate_limit_at_once() -> None:
    plan = ConnectionPlan(0.0)
    plan.begin()
    plan.failed(RATE, 0.3)

    assert plan.error is RATE


def test_a_call_that_has_not_begun_waits_a_little_for_a_service_that_is_overloaded() -> None:
    plan = ConnectionPlan(0.0, jitter=lambda: 0.5)
    attempts = 0
    while plan.error is None:
        attempts += 1
        plan.begin()
        plan.failed(BUSY, plan.open_at)

    assert attempts >= 4
    assert plan.error is BUSY
    assert plan.open_at < FIRST_PATIENCE_S + MAX_DELAY_S


# --- Turning to another model


@pytest.mark.parametrize("failure", [QUOTA, REFUSED, EXPIRED, RATE])
def test_what_cannot_be_retried_is_left_for_the_fallback(failure: ModelError) -> None:
    plan = ConnectionPlan(0.0, has_fallback=True)
    plan.begin()
    plan.failed(failure, 0.3)

    attempt = plan.begin()

    assert (attempt.way, attempt.on_fallback, attempt.handle) == (Way.FALLBACK, True, None)
    assert attempt.give_up_at == 30.3


def test_a_call_stays_with_the_fallback_and_has_no_other() -> None:
    plan = opened_plan(has_fallback=True)
    plan.lost(QUOTA, 20.0)
    plan.closed(20.0)
    plan.begin()
    plan.opened(20.3)
    plan.note_answer()
    plan.note_handle("other")

    plan.lost(DROPPED, 60.0)
    plan.closed(60.0)
    attempt = plan.begin()
    assert (attempt.way, attempt.handle, attempt.on_fallback) == (Way.RESUME, "other", True)
    plan.failed(QUOTA, 60.3)

    assert plan.state is State.ENDED


def test_each_way_can_be_asked_for_where_there_is_one() -> None:
    assert not opened_plan(None).ask(Way.RESUME, "no-reply", 20.0)
    assert not opened_plan().ask(Way.FALLBACK, "no-reply", 20.0)
    for way in Way:
        plan = opened_plan(has_fallback=True)
        assert plan.ask(way, "no-reply", 20.0)
        plan.closed(20.0)
        attempt = plan.begin()
        assert (attempt.way, attempt.on_fallback) == (way, way is Way.FALLBACK)
        assert (attempt.handle is None) == (way is not Way.RESUME)


def test_the_fallback_cannot_be_asked_for_twice() -> None:
    plan = opened_plan(has_fallback=True)
    plan.ask(Way.FALLBACK, "no-reply", 20.0)
    plan.closed(20.0)
    plan.begin()
    plan.opened(20.3)

    assert not plan.ask(Way.FALLBACK, "no-reply", 30.0)
    assert plan.ask(Way.FRESH, "no-reply", 30.0)


# --- What is said again


def silent(number: int = 0) -> bytes:
    return number.to_bytes(2, "little").ljust(CHUNK_BYTES, b"\0")


def loud(number: int = 0) -> bytes:
    return number.to_bytes(2, "little") + b"\x00\x40" * (CHUNK_BYTES // 2 - 1)


def take_all(kept: UnansweredInput) -> list[object]:
    taken: list[object] = []
    while (content := kept.take()) is not None:
        taken.append(content)
        kept.taken_is_sent()
    return taken


def test_input_is_given_out_in_order_and_in_messages_of_at_most_100_ms() -> None:
    kept = UnansweredInput()
    chunks = [loud(n) for n in range(12)]
    for chunk in chunks:
        kept.put(chunk)
    kept.put("a text")
    kept.put(chunks[0])

    messages = take_all(kept)

    assert messages == [
        b"".join(chunks[:5]),
        b"".join(chunks[5:10]),
        b"".join(chunks[10:]),
        "a text",
        chunks[0],
    ]
    assert max(len(m) for m in messages if isinstance(m, bytes)) == MAX_MESSAGE_BYTES


def test_an_unanswered_question_is_said_again_without_the_silence_before_it() -> None:
    kept = UnansweredInput()
    for n in range(100):
        kept.put(silent(n))
    question = [loud(n) for n in range(100, 150)]
    for chunk in question:
        kept.put(chunk)
    take_all(kept)

    kept.rewind(resumed=True)
    again = b"".join(take_all(kept))  # type: ignore[arg-type]

    pre_roll = [silent(n) for n in range(85, 100)]
    assert again == b"".join(pre_roll + question)


def test_silence_alone_is_not_said_again_but_what_waits_is_always_said() -> None:
    kept = UnansweredInput()
    for n in range(100):
        kept.put(silent(n))
    take_all(kept)
    for n in range(100, 110):
        kept.put(silent(n))

    repeated = kept.rewind(resumed=True)

    assert repeated == 0
    assert b"".join(take_all(kept)) == b"".join(silent(n) for n in range(100, 110))  # type: ignore[arg-type]


def test_an_answered_question_is_not_said_again() -> None:
    kept = UnansweredInput()
    kept.put(loud(1))
    take_all(kept)
    position = kept.sent_up_to()
    kept.put(loud(2))
    take_all(kept)
    kept.answered(position)

    kept.rewind(resumed=True)

    assert take_all(kept) == [loud(2)]


def test_what_the_session_remembers_is_said_again_only_to_a_fresh_one() -> None:
    kept = UnansweredInput()
    kept.put("Greet the caller.")
    take_all(kept)
    kept.remembered(kept.sent_up_to())

    kept.rewind(resumed=True)
    assert take_all(kept) == []
    kept.rewind(resumed=False)
    assert take_all(kept) == ["Greet the caller."]


def test_old_audio_makes_room_and_is_lost_only_if_it_was_never_sent() -> None:
    kept = UnansweredInput(max_kept_s=1.0)
    for n in range(50):
        kept.put(loud(n))
    take_all(kept)
    for n in range(50, 110):
        kept.put(loud(n))

    assert kept.lost_bytes == 10 * CHUNK_BYTES
    assert b"".join(take_all(kept)) == b"".join(loud(n) for n in range(60, 110))  # type: ignore[arg-type]


def test_tiny_chunks_make_room_by_their_number_sent_and_waiting_together() -> None:
    kept, tiny = UnansweredInput(), b"\x00\x40"
    for _ in range(MAX_KEPT_INPUTS - 100):
        kept.put(tiny)
    take_all(kept)
    for _ in range(200):
        kept.put(tiny)

    assert kept.lost_bytes == 0
    kept.rewind(resumed=False)
    assert b"".join(take_all(kept)) == tiny * MAX_KEPT_INPUTS  # type: ignore[arg-type]


def test_words_and_tool_answers_outlast_old_audio() -> None:
    kept = UnansweredInput(max_kept_s=1.0)
    results = (ToolResult("1", "look_up", {"output": 1}),)
    kept.put(results)
    kept.put("The caller pressed 5.")
    for n in range(100):
        kept.put(loud(n))

    assert take_all(kept)[:2] == [results, "The caller pressed 5."]


def test_silence_and_what_was_sent_is_no_sound_that_waits() -> None:
    kept = UnansweredInput()
    kept.put(loud())
    assert kept.has_sound()
    take_all(kept)
    kept.put(silent())
    assert not kept.has_sound()
    kept.put("a nudge")
    assert kept.has_sound()


def test_what_was_sent_just_before_is_not_taken_for_noticed() -> None:
    kept = UnansweredInput()
    for n in range(50):
        kept.put(loud(n))
    take_all(kept)

    kept.remembered(kept.sent_up_to(0.5))
    kept.rewind(resumed=True)

    assert b"".join(take_all(kept)) == b"".join(loud(n) for n in range(25, 50))  # type: ignore[arg-type]


def test_what_could_not_be_sent_is_said_again() -> None:
    kept = UnansweredInput()
    kept.put(loud(1))
    kept.take()

    kept.answered(kept.sent_up_to())
    kept.rewind(resumed=True)

    assert take_all(kept) == [loud(1)]


# --- No order of events leaves input dropped for ever


class AnyOrder(RuleBasedStateMachine):
    """A session's runner, its call and a service that may do anything at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0
        self.plan = ConnectionPlan(self.now)
        self.kept = UnansweredInput()
        self.give_up_at = math.inf
        self.quiet = False
        self.handles = 0
        self.put = 0
        self.given: set[int] = set()
        self.not_open_since = self.now

    @initialize(has_fallback=st.booleans(), jitter=st.floats(0, 1))
    def begin(self, has_fallback: bool, jitter: float) -> None:
        self.plan = ConnectionPlan(self.now, has_fallback=has_fallback, jitter=lambda: jitter)

    # The runner.

    def run(self) -> None:
        """Do what is to be done now."""
        plan = self.plan
        if plan.state is State.WAITING and self.now >= plan.open_at:
            self.give_up_at = plan.begin().give_up_at
        elif plan.state is State.OPENING and self.now >= self.give_up_at:
            plan.failed(UNREADABLE, self.now)
        elif plan.is_open:
            plan.tick(self.now, lambda: self.quiet)
        if plan.is_open:
            self.not_open_since = self.now
            while (content := self.kept.take()) is not None:
                self.kept.taken_is_sent()
                assert isinstance(content, bytes)
                self.given |= {
                    int.from_bytes(content[at : at + 2], "little")
                    for at in range(0, len(content), CHUNK_BYTES)
                }

    @rule(elapsed_s=st.sampled_from([0.0, 0.02, 0.1, 0.3, 1.0, 5.0, 31.0, 541.0]))
    def time_passes(self, elapsed_s: float) -> None:
        self.now += elapsed_s
        self.run()

    @precondition(lambda self: self.plan.state is State.LEAVING)
    @rule()
    def the_old_socket_is_closed(self) -> None:
        self.plan.closed(self.now)

    @precondition(lambda self: self.plan.state is State.OPENING)
    @rule()
    def the_connection_opens(self) -> None:
        self.plan.opened(self.now)
        self.kept.rewind(resumed=self.plan.way is Way.RESUME)
        self.run()

    @precondition(lambda self: self.plan.state is State.OPENING)
    @rule(error=st.sampled_from([DROPPED, INTERNAL, USED_UP, REFUSED, QUOTA, UNREADABLE]))
    def the_connection_fails_to_open(self, error: ModelError) -> None:
        self.plan.failed(error, self.now)

    # The service.

    @rule(error=st.sampled_from([DROPPED, INTERNAL, USED_UP, QUOTA, UNREADABLE]))
    def the_connection_is_lost(self, error: ModelError) -> None:
        self.plan.lost(error, self.now)

    @precondition(lambda self: self.plan.is_open)
    @rule(error=st.sampled_from([DROPPED, INTERNAL, UNREADABLE]))
    def the_connection_is_lost_in_a_message(self, error: ModelError) -> None:
        self.kept.put(loud(self.put))
        self.put += 1
        self.kept.take()
        self.plan.lost(error, self.now)

    @rule(time_left_s=st.sampled_from([0.0, 5.0, 50.0, 300.0]))
    def the_service_goes_away(self, time_left_s: float) -> None:
        self.plan.going_away(time_left_s, self.now)

    @precondition(lambda self: self.plan.is_open)
    @rule(resumable=st.booleans())
    def a_handle_comes(self, resumable: bool) -> None:
        self.handles += 1
        self.plan.note_handle(f"h{self.handles}" if resumable else None)
        if resumable:
            self.kept.remembered(self.kept.sent_up_to(0.5))

    @precondition(lambda self: self.plan.is_open)
    @rule(lag_s=st.sampled_from([0.0, 0.5]))
    def the_agent_answers(self, lag_s: float) -> None:
        self.plan.note_answer()
        self.kept.answered(self.kept.sent_up_to(lag_s))

    # The call.

    @rule(way=st.sampled_from(Way))
    def the_watchdog_asks(self, way: Way) -> None:
        self.plan.ask(way, "no-reply", self.now)

    @rule(quiet=st.booleans())
    def it_falls_quiet(self, quiet: bool) -> None:
        self.quiet = quiet

    @rule(chunks=st.integers(1, 600), is_loud=st.booleans())
    def the_caller_speaks(self, chunks: int, is_loud: bool) -> None:
        for _ in range(chunks):
            self.kept.put((loud if is_loud else silent)(self.put))
            self.put += 1
        self.run()

    # What must be true.

    @invariant()
    def an_end_has_a_reason(self) -> None:
        assert (self.plan.state is State.ENDED) <= (self.plan.error is not None)

    @invariant()
    def what_is_kept_is_bounded(self) -> None:
        assert self.kept._audio_bytes <= MAX_KEPT_S * BYTES_PER_S

    @invariant()
    def nobody_waits_long_for_the_next_attempt(self) -> None:
        if self.plan.state is State.WAITING:
            assert self.plan.open_at <= self.now + 1.5 * MAX_DELAY_S

    def teardown(self) -> None:
        """From here on the service is well: soon the call goes on, and nothing was dropped."""
        self.quiet = True
        plan = self.plan
        for _ in range(20):
            self.run()
            if plan.state is State.LEAVING:
                plan.closed(self.now)
            elif plan.state is State.OPENING:
                self.the_connection_opens()
            elif plan.state is State.WAITING:
                self.now = max(self.now, plan.open_at)
            elif plan.is_open:
                break
        assert plan.is_open or plan.error is not None
        if plan.is_open:
            self.run()
            if plan.state is State.LEAVING:  # a rotation that was due
                plan.closed(self.now)
                plan.begin()
                self.the_connection_opens()
            assert self.kept.take() is None
            assert (self.put - len(self.given)) * CHUNK_BYTES == self.kept.lost_bytes


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
