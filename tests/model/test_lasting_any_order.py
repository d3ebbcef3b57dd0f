"""No order of events leaves what the caller said dropped for ever, or a call without an end."""

from __future__ import annotations

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from server.errors import ModelError
from server.model import Way
from server.model.lasting.plan import MAX_DELAY_S, ConnectionPlan, State
from server.model.lasting.unanswered import (
    MAX_WAITING_S,
    PCM_BYTES_PER_S,
    UnansweredInput,
)
from tests.support.inputs import inputs
from tests.support.lasting_inputs import (
    CHUNK_BYTES,
    DROPPED,
    INTERNAL,
    QUOTA,
    REFUSED,
    UNREADABLE,
    USED_UP,
    loud,
    silent,
)


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
        assert self.kept._audio_bytes <= MAX_WAITING_S * PCM_BYTES_PER_S

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
TestAnyOrder.settings = settings(max_examples=inputs(150), stateful_step_count=40)
