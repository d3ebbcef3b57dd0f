"""When calls pause because the model's account is refused: decisions alone, then calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from server.agent.agent import Agent
from server.carrier.webhooks import RefuseCall, SayAndEndCall
from server.cluster.alone import Alone
from server.cluster.cluster import Cluster
from server.cluster.registry import Member
from server.dialogue.endings import EndReason
from server.errors import CallRefused, ModelError, ModelSetupRefused
from server.model import AgentAudio, SessionEvent, Standing, Way
from server.model.gemini.faults import account_refused
from server.model.lasting.model import LastingModel
from server.refusal import Kind
from server.switchboard.account_pause import LONGEST_PAUSE_S, AccountPause
from server.switchboard.calls import Calls
from server.switchboard.making import refusal_of
from server.switchboard.model_trial import MODEL_ALONE_S, TRY_MODEL_S
from tests.support.fakes import MemoryModel
from tests.support.kept_garbage import garbage_kept
from tests.support.switchboards import make_calls

NUMBER = "+15005550006"
BAD_KEY = account_refused(Kind.KEY, "no", code=1007, reason="API key expired.")
NO_QUOTA = account_refused(Kind.QUOTA, "no", code=1011, reason="quota")
BROKEN = ModelError("lost", code=1006, reason="", retryable=True)


# ------------------------------------------------------------------------------------------
# Decisions


def refusal(pause: AccountPause, now: float) -> CallRefused | None:
    try:
        pause.check(now)
    except CallRefused as refused:
        return refused
    return None


def test_a_pause_says_why_in_words_and_when_to_ask_again():
    pause = AccountPause(60.0)
    pause.refused(Kind.KEY, 100.0)

    refused = refusal(pause, 130.0)

    assert refused is not None
    assert (refused.reason, refused.status, refused.in_words) == ("model-key", 503, True)
    assert refused.retry_after_s == 32.0  # and two for the try itself
    assert "GEMINI_API_KEY" in str(refused)


def test_each_try_that_is_refused_doubles_the_pause_up_to_a_bound():
    pause = AccountPause(60.0)
    pause.refused(Kind.QUOTA, 0.0)
    waits = []
    for _ in range(6):
        now = pause.try_at
        pause.refused(Kind.QUOTA, now)
        waits.append(pause.try_at - now)

    assert waits == [120.0, 240.0, 480.0, LONGEST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_PAUSE_S]


def test_calls_of_before_that_are_refused_too_do_not_lengthen_it():
    pause = AccountPause(60.0)
    pause.refused(Kind.QUOTA, 0.0)
    news = [pause.refused(Kind.QUOTA, 1.0) for _ in range(10)]

    assert news == [False] * 10
    assert pause.try_at == 60.0


def test_another_reason_is_news():
    pause = AccountPause(60.0)

    assert pause.refused(Kind.QUOTA, 0.0)
    assert pause.refused(Kind.KEY, 1.0)
    assert not pause.refused(Kind.KEY, 2.0)


def test_a_try_without_an_answer_is_repeated_after_the_same_pause():
    pause = AccountPause(60.0)
    pause.refused(Kind.QUOTA, 0.0)
    pause.not_known(75.0)

    assert pause.try_at == 135.0
    assert refusal(pause, 76.0) is not None


def test_it_ends_when_a_session_is_taken():
    pause = AccountPause(60.0)
    pause.refused(Kind.QUOTA, 0.0)

    assert pause.accepted(60.0)
    assert refusal(pause, 60.0) is None
    assert not pause.accepted(61.0)


def test_a_service_that_takes_sessions_and_refuses_what_is_said_is_tried_less_and_less_often():
    pause = AccountPause(60.0)
    pause.refused(Kind.CREDITS, 0.0)
    pause.accepted(60.0)
    pause.refused(Kind.CREDITS, 65.0)
    assert pause.try_at == 65.0 + 120.0

    pause.accepted(185.0)
    pause.worked()
    pause.refused(Kind.CREDITS, 190.0)
    assert pause.try_at == 190.0 + 60.0


def test_a_pause_of_no_length_is_none():
    pause = AccountPause(0.0)
    pause.refused(Kind.QUOTA, 0.0)

    assert refusal(pause, 0.0) is None


def test_a_pause_of_another_process_ends_with_its_word():
    pause = AccountPause(60.0)

    assert pause.heard(Kind.QUOTA, until=180.0, try_at=182.0, now=100.0)
    assert not pause.heard(Kind.QUOTA, until=180.0, try_at=182.0, now=101.0)
    refused = refusal(pause, 120.0)
    assert refused is not None
    assert refused.reason == "model-quota"
    assert not pause.is_ours
    assert pause.heard_nothing(120.0)
    assert refusal(pause, 120.0) is None


def test_a_pause_of_another_process_that_runs_out_is_no_word_that_the_model_takes_calls():
    pause = AccountPause(60.0)
    pause.heard(Kind.QUOTA, until=180.0, try_at=182.0, now=100.0)

    assert not pause.heard_nothing(180.0)
    assert pause.is_ours
    assert pause.try_at == 182.0
    assert refusal(pause, 181.0) is not None


def test_of_two_that_were_refused_the_one_that_hears_the_other_leaves_the_trying_to_it():
    pause = AccountPause(60.0)
    pause.refused(Kind.QUOTA, 100.0)

    assert pause.is_ours
    assert not pause.heard(Kind.QUOTA, until=180.0, try_at=182.0, now=101.0)
    assert not pause.is_ours
    assert pause.try_at == 182.0


def test_where_calls_never_pause_they_do_not_for_another_process():
    pause = AccountPause(0.0)

    assert not pause.heard(Kind.QUOTA, until=180.0, try_at=182.0, now=100.0)
    assert refusal(pause, 120.0) is None


# ------------------------------------------------------------------------------------------
# Calls


@pytest.fixture
async def calls(nursery):
    calls = make_calls(limits={"quota_pause_s": 60.0})
    await nursery.start(calls.run)
    nursery.start_soon(calls.model_trial.run)
    return calls


async def refused_call(calls: Calls, failure: ModelError = BAD_KEY):
    calls.model.failure = failure
    call = await calls.place(NUMBER, Agent())
    await call.finished.wait()
    await wait_all_tasks_blocked()
    return call


def paused(calls: Calls) -> bool:
    value = calls.metrics.registry.get_sample_value("offhook_calls_paused")
    return bool(value)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [(BAD_KEY, EndReason.MODEL_REFUSED), (NO_QUOTA, EndReason.MODEL_QUOTA)],
)
async def test_after_a_refusal_of_the_account_no_phone_is_rung(
    autojump_clock, calls, failure, reason
):
    call = await refused_call(calls, failure)

    for _ in range(3):
        with pytest.raises(CallRefused) as refused:
            await calls.place(NUMBER, Agent())
    assert call.end_reason is reason
    assert not calls.load().accepts  # other processes of the server give their calls elsewhere
    assert refused.value.reason == failure.refusal
    assert len(calls.carrier.placed) == 1
    assert paused(calls)


async def test_a_broken_connection_pauses_nothing(autojump_clock, calls):
    await refused_call(calls, BROKEN)

    await calls.place(NUMBER, Agent())
    assert len(calls.carrier.placed) == 2
    assert not paused(calls)


async def test_the_model_is_tried_without_ringing_anybody_until_it_takes_a_session(
    autojump_clock, calls
):
    await refused_call(calls)
    await trio.sleep(60.0 + 120.0 + 1.0)
    assert paused(calls)
    assert len(calls.carrier.placed) == 1

    calls.model.failure = None
    await trio.sleep(240.0)

    assert not paused(calls)
    assert calls.model.session.closed
    assert calls.live_count == 0
    await calls.place(NUMBER, Agent())
    assert len(calls.carrier.placed) == 2


async def test_a_try_that_hangs_or_breaks_does_not_end_the_pause_nor_the_trying(
    autojump_clock, calls
):
    await refused_call(calls)
    calls.model.failure, calls.model.connect_s = None, 1_000.0
    await trio.sleep(100.0)
    assert paused(calls)

    calls.model.failure, calls.model.connect_s = BROKEN, 0.0
    await trio.sleep(100.0)
    assert paused(calls)

    calls.model.failure = None
    await trio.sleep(100.0)
    assert not paused(calls)


async def test_one_line_says_what_to_do_and_one_that_it_is_over(autojump_clock, calls):
    with capture_logs() as lines:
        calls.model.failure, calls.model.connect_s = BAD_KEY, 0.1
        both = [await calls.place(NUMBER, Agent()) for _ in range(2)]
        for call in both:
            await call.finished.wait()
        calls.model.failure = None
        await trio.sleep(70.0)

    said = [line for line in lines if line["event"].startswith("calls ")]
    assert [line["event"].partition(":")[0] for line in said] == ["calls pause", "calls go on"]
    assert said[0]["log_level"] == "error"
    assert said[0]["kind"] == "model-key"
    assert "GEMINI_API_KEY" in said[0]["what_to_do"]


async def test_refusals_are_counted_by_kind(autojump_clock, calls):
    await refused_call(calls)

    def count(kind: Kind) -> float | None:
        return calls.metrics.registry.get_sample_value(
            "offhook_model_refusals_total", {"kind": kind.value}
        )

    assert [count(kind) for kind in (Kind.KEY, Kind.QUOTA)] == [1.0, 0.0]


async def test_a_call_whose_turn_to_be_dialled_comes_in_a_pause_is_not_dialled(
    autojump_clock, nursery
):
    calls = make_calls(model=MemoryModel(failure=BAD_KEY), limits={"calls_per_s": 0.5})
    await nursery.start(calls.run)
    await calls.place(NUMBER, Agent())

    with pytest.raises(CallRefused):
        await calls.place(NUMBER, Agent())
    assert len(calls.carrier.placed) == 1


async def test_a_caller_hears_words_in_a_pause_and_a_busy_tone_when_all_lines_are(
    autojump_clock, calls
):
    await refused_call(calls)

    with pytest.raises(CallRefused) as refused:
        await calls.answer("CA7", NUMBER, Agent())
    full = CallRefused("full", reason="full", status=503)

    told = refusal_of(refused.value, Agent(language="en-GB"))
    assert isinstance(told, SayAndEndCall)
    assert ("I am sorry" in told.text, told.language) == (True, "en-GB")
    assert refusal_of(full, Agent()) == RefuseCall()
    assert calls.register.get("CA7") is None


async def test_a_call_that_is_refused_in_the_middle_pauses_the_next_ones(autojump_clock, calls):
    call = await calls.place(NUMBER, Agent())
    await wait_all_tasks_blocked()
    calls.model.session.event(AgentAudio(bytes(4800), 1, trio.current_time()))
    calls.model.session.event(BAD_KEY)
    await call.finished.wait()
    await wait_all_tasks_blocked()

    assert call.end_reason is EndReason.MODEL_REFUSED
    with pytest.raises(CallRefused):
        await calls.place(NUMBER, Agent())


class _RefusedSession:
    """A session that the model's service refuses."""

    standing = Standing()

    async def run(self) -> None:
        await trio.lowlevel.checkpoint()
        raise account_refused(Kind.QUOTA, "no", code=1011, reason="quota")

    async def wait_ready(self) -> None:
        await trio.sleep_forever()

    async def reconnect(self, way: Way, why: str) -> bool:
        return False  # there is no fallback


async def test_a_try_that_is_refused_leaves_nothing_to_the_garbage_collector(monkeypatch):
    trial = make_calls().model_trial
    monkeypatch.setattr(trial._model, "new_session", lambda *_: _RefusedSession())

    async def ask() -> Kind | None:
        failure = await trial._ask_both()
        return None if failure is None else failure.refusal

    await ask()  # what first uses make stays
    with garbage_kept() as left:
        refused = await ask()

    assert left == []
    assert refused is Kind.QUOTA


# ------------------------------------------------------------------------------------------
# Agents with a model of their own


@dataclass
class ModelsOfAnAccount(MemoryModel):
    """Some of which are refused, by their names, or have no such voice."""

    refused: dict[str, ModelError] = field(default_factory=dict)
    unknown_voices: set[str] = field(default_factory=set)

    def new_session(self, agent: Agent, *rest, **options):
        self.failure = self.refused.get(agent.model or self.name)
        if self.failure is None and agent.model is None and agent.voice in self.unknown_voices:
            self.failure = NO_VOICE
        return super().new_session(agent, *rest, **options)


OURS, THEIRS = Agent(name="ours"), Agent(name="theirs", model="retired")
NO_MODEL, NO_PERMISSION, NO_LOCATION, NO_KEY = (
    account_refused(kind, "no", code=1008, reason="no")
    for kind in (Kind.MODEL, Kind.PERMISSION, Kind.LOCATION, Kind.KEY)
)
NO_VOICE = ModelSetupRefused("no such voice", code=1007, reason="voice", retryable=False)


@pytest.fixture
async def one_account(nursery):
    roster = {"ours": OURS, "theirs": THEIRS}
    calls = make_calls(
        model=ModelsOfAnAccount(), limits={"quota_pause_s": 60.0}, find_agent=roster.get
    )
    calls.roster = roster
    await nursery.start(calls.run)
    nursery.start_soon(calls.model_trial.run)
    return calls


async def ended(calls: Calls, agent: Agent):
    call = await calls.place(NUMBER, agent)
    await call.finished.wait()
    await wait_all_tasks_blocked()
    return call


@pytest.mark.parametrize("failure", [NO_MODEL, NO_PERMISSION, NO_LOCATION, NO_QUOTA])
async def test_an_agents_own_model_that_is_refused_pauses_nobodys_calls(
    autojump_clock, one_account, failure
):
    one_account.model.refused["retired"] = failure
    with capture_logs() as lines:
        theirs = [await ended(one_account, THEIRS) for _ in range(2)]

    ours = await one_account.place(NUMBER, OURS)
    await trio.sleep(1.0)
    counted = one_account.metrics.registry.get_sample_value(
        "offhook_model_refusals_total", {"kind": failure.refusal.value}
    )
    told = [line for line in lines if line["event"].startswith("an agent's own model")]

    assert {call.end_reason for call in theirs} <= {EndReason.MODEL_REFUSED, EndReason.MODEL_QUOTA}
    assert ours.conversation.session.is_ready
    assert not paused(one_account)
    assert counted == 2.0
    assert [(line["agent"], line["model"]) for line in told] == [("theirs", "retired")]


@pytest.mark.parametrize("own", [None, "memory"])
async def test_the_servers_own_model_that_is_refused_pauses_all_calls(
    autojump_clock, one_account, own
):
    one_account.model.refused["memory"] = NO_MODEL
    await ended(one_account, Agent(name="ours", model=own))

    assert paused(one_account)


@pytest.mark.parametrize("failure", [NO_PERMISSION, NO_QUOTA])
async def test_what_is_refused_of_the_servers_model_as_of_an_agents_own_pauses_all_calls(
    autojump_clock, one_account, failure
):
    one_account.model.refused = {"retired": failure, "memory": failure}
    await ended(one_account, THEIRS)
    at_once = paused(one_account)
    await trio.sleep(70.0)
    before = paused(one_account)
    del one_account.model.refused["memory"]
    await trio.sleep(130.0)

    assert (at_once, before, paused(one_account)) == (True, True, False)


async def test_what_is_refused_of_the_servers_model_for_another_reason_pauses_nobodys_calls(
    autojump_clock, one_account
):
    one_account.model.refused = {"retired": NO_QUOTA, "memory": NO_MODEL}
    await ended(one_account, THEIRS)

    assert not paused(one_account)


async def test_a_key_that_is_refused_over_an_own_model_pauses_all_calls(
    autojump_clock, one_account
):
    one_account.model.refused["retired"] = NO_KEY
    await ended(one_account, THEIRS)

    assert paused(one_account)


async def test_the_servers_model_is_tried_once_a_minute_for_an_agents_own_that_is_refused(
    autojump_clock, one_account
):
    one_account.model.refused["retired"] = NO_QUOTA
    tried = []
    for _ in range(3):
        await ended(one_account, THEIRS)
        tried.append(sum(agent.model is None for agent in one_account.model.agents))
        await trio.sleep(40.0)

    assert tried == [1, 1, 2]


@pytest.mark.parametrize("mended", [Agent(name="theirs", model="better"), None])
async def test_the_try_is_made_with_the_agent_as_it_is_now(autojump_clock, one_account, mended):
    one_account.model.refused = {"retired": NO_QUOTA, "memory": NO_QUOTA}
    await ended(one_account, THEIRS)
    one_account.roster["theirs"] = mended
    del one_account.model.refused["memory"]
    await trio.sleep(70.0)

    assert not paused(one_account)
    assert one_account.model.agents[-1].name == (mended or Agent()).name


OF_ANOTHER_VOICE = Agent(name="theirs", model="retired", voice="theirs")


async def test_a_pause_ends_though_the_servers_model_has_no_such_voice_as_an_agents_own(
    autojump_clock, one_account
):
    one_account.roster["theirs"] = OF_ANOTHER_VOICE
    one_account.model.unknown_voices.add("theirs")
    one_account.model.refused = {"retired": NO_KEY, "memory": NO_KEY}
    await ended(one_account, OF_ANOTHER_VOICE)
    await trio.sleep(70.0)
    before = paused(one_account)
    one_account.model.refused.clear()
    await trio.sleep(130.0)

    assert (before, paused(one_account)) == (True, False)


async def test_whose_a_refusal_is_is_found_out_though_the_servers_model_has_no_such_voice(
    autojump_clock, one_account
):
    one_account.roster["theirs"] = OF_ANOTHER_VOICE
    one_account.model.unknown_voices.add("theirs")
    one_account.model.refused = {"retired": NO_QUOTA}
    made = one_account.model.new_session

    def out_of_quota_without_a_voice(agent: Agent, *rest, **options):
        one_account.model.refused = {"retired": NO_QUOTA}
        if agent.voice is None:
            one_account.model.refused["memory"] = NO_QUOTA
        return made(agent, *rest, **options)

    one_account.model.new_session = out_of_quota_without_a_voice
    await ended(one_account, OF_ANOTHER_VOICE)

    assert paused(one_account)


# ------------------------------------------------------------------------------------------
# Calls of several processes


class Told:
    """What several processes of one server say of the account."""

    def __init__(self) -> None:
        self.by: Member | None = None
        self.kind = ""
        self.until = 0.0


class OneOf(Alone):
    """One of them."""

    def __init__(self, told: Told, me: Member) -> None:
        super().__init__(me)
        self._told = told

    def tell_pause(self, kind: str, pause_s: float) -> None:
        told = self._told
        if pause_s > 0 or told.by == self.me:
            told.by, told.kind, told.until = self.me, kind, trio.current_time() + pause_s

    def pause(self) -> tuple[str, float] | None:
        left_s = self._told.until - trio.current_time()
        return (self._told.kind, left_s) if self._told.by != self.me and left_s > 0 else None


@pytest.fixture
async def processes(nursery):
    """Three of them; their model is one."""
    told, model, found = Told(), MemoryModel(), []
    for number in range(3):
        cluster = Cluster(node=f"n{number}", make_registry=partial(OneOf, told))
        found.append(make_calls(cluster=cluster, model=model, limits={"quota_pause_s": 60.0}))
        await nursery.start(found[-1].run)
        nursery.start_soon(found[-1].model_trial.run)
    return found


async def test_one_refusal_pauses_the_calls_of_all(autojump_clock, processes):
    await refused_call(processes[0], NO_QUOTA)
    await trio.sleep(1.0)

    assert [paused(calls) for calls in processes] == [True, True, True]
    assert not any(calls.load().accepts for calls in processes)
    with pytest.raises(CallRefused) as refused:
        await processes[2].place(NUMBER, Agent())
    assert refused.value.reason == "model-quota"


async def test_one_of_them_tries_the_model_and_all_go_on_when_it_is_accepted(
    autojump_clock, processes
):
    for calls in processes:
        await refused_call(calls, NO_QUOTA)
    model = processes[0].model
    before = len(model.sessions)
    await trio.sleep(61.0 + 121.0)
    tries = len(model.sessions) - before
    model.failure = None
    await trio.sleep(241.0)

    assert tries == 2
    assert len(model.sessions) - before == 3
    assert [paused(calls) for calls in processes] == [False, False, False]


async def test_the_others_try_when_the_one_that_was_to_is_gone(autojump_clock, processes):
    await refused_call(processes[0], NO_QUOTA)
    await trio.sleep(1.0)
    processes[0].admission.account_pause.accepted(trio.current_time())  # it tries no more
    await trio.sleep(50.0)
    still = [paused(calls) for calls in processes[1:]]
    processes[0].model.failure = None
    await trio.sleep(40.0)

    assert still == [True, True]
    assert [paused(calls) for calls in processes[1:]] == [False, False]


# ------------------------------------------------------------------------------------------
# A model with a fallback


class Answers:
    """A connection that is taken, and on which nobody says anything."""

    is_wire = takes_turns = text_interrupts = is_drained = False

    def note_message(self, text: str) -> None:
        return None

    async def receive(self) -> SessionEvent:
        await trio.sleep_forever()
        raise AssertionError


@dataclass
class Endpoint:
    """A service that is there, or away, or refuses the account."""

    name: str
    failure: ModelError | None = None
    hangs: bool = False
    takes_s: float = 0.0
    key_name: str = ""
    asked: int = 0
    opened: int = 0
    open: int = 0
    own: Endpoint | None = None  # a model that an agent may have of its own
    unknown_voice: str = ""

    def of_model(self, name: str) -> Endpoint:
        assert self.own is not None
        assert self.own.name == name
        return self.own

    @asynccontextmanager
    async def open_connection(
        self, agent: Agent, *_: Any, **options: Any
    ) -> AsyncIterator[Answers]:
        self.asked += 1
        if self.hangs:
            await trio.sleep_forever()
        await trio.sleep(self.takes_s)
        if self.failure is not None:
            raise self.failure
        if self.unknown_voice and agent.voice == self.unknown_voice:
            raise NO_VOICE
        self.opened += 1
        self.open += 1
        try:
            yield Answers()
        finally:
            self.open -= 1


@pytest.fixture
async def both(nursery):
    """Calls that pause because a model's fallback was refused as well; and the two services."""
    main, fallback = Endpoint("main", NO_QUOTA), Endpoint("fallback", NO_QUOTA)
    calls = make_calls(model=LastingModel(main, fallback=fallback), limits={"quota_pause_s": 60.0})
    await nursery.start(calls.run)
    nursery.start_soon(calls.model_trial.run)
    await ended(calls, Agent())
    assert paused(calls)
    return calls, main, fallback


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_pause_that_a_refused_fallback_began_ends_with_it_while_the_model_is_away(
    autojump_clock, both, hangs
):
    calls, main, fallback = both
    main.failure, main.hangs = BROKEN, hangs

    await trio.sleep(60.0 + TRY_MODEL_S)
    still = paused(calls)
    asked = fallback.asked
    fallback.failure = None
    await trio.sleep(120.0 + TRY_MODEL_S)

    assert (still, asked) == (True, 2)
    assert not paused(calls)
    assert (fallback.opened, fallback.open, main.open) == (1, 0, 0)


async def test_a_pause_ends_with_a_model_that_takes_its_time_though_its_fallback_is_refused(
    autojump_clock, both
):
    calls, main, fallback = both
    main.failure, main.takes_s = None, MODEL_ALONE_S + 1.0

    await trio.sleep(60.0 + MODEL_ALONE_S)
    await trio.sleep(0.5)
    before, asked = paused(calls), fallback.asked
    await trio.sleep(1.0)

    assert (before, asked) == (True, 2)
    assert not paused(calls)
    assert (main.opened, main.open) == (1, 0)


async def test_a_pause_ends_with_the_fallback_where_the_model_takes_longer(autojump_clock, both):
    calls, main, fallback = both
    main.failure, main.takes_s, fallback.failure = None, TRY_MODEL_S - 1.0, None

    await trio.sleep(60.0 + MODEL_ALONE_S + 1.0)

    assert not paused(calls)
    assert (main.opened, fallback.opened, fallback.open) == (0, 1, 0)


async def test_what_a_fallback_is_refused_counts_when_the_model_has_not_answered_in_time(
    autojump_clock, both
):
    calls, main, fallback = both
    main.hangs, fallback.failure = True, NO_LOCATION

    await trio.sleep(60.0 + TRY_MODEL_S - 1.0)
    before = calls.admission.account_pause.kind
    await trio.sleep(2.0)
    pause = calls.admission.account_pause

    assert (before, pause.kind) == (Kind.QUOTA, Kind.LOCATION)
    assert 118.0 < pause.try_at - trio.current_time() < 120.0


async def test_what_is_refused_of_an_agents_own_model_and_the_fallback_pauses_nobody_elses_calls(
    autojump_clock, nursery
):
    main, fallback = Endpoint("main", hangs=True), Endpoint("fallback", NO_QUOTA)
    main.own = Endpoint("retired", NO_QUOTA)
    calls = make_calls(model=LastingModel(main, fallback=fallback), limits={"quota_pause_s": 60.0})
    await nursery.start(calls.run)
    nursery.start_soon(calls.model_trial.run)
    theirs = await ended(calls, THEIRS)
    await trio.sleep(TRY_MODEL_S + 1.0)

    assert theirs.refusal is Kind.QUOTA
    assert (main.asked, fallback.asked) == (1, 1)
    assert not paused(calls)


ONLY_OF_ANOTHER_VOICE = Agent(name="theirs", voice="theirs")


@pytest.fixture
def theirs():
    """An agent with a voice and a model of its own."""
    return OF_ANOTHER_VOICE


@pytest.fixture
async def both_and_own(nursery, theirs):
    """Calls of that agent; and the model and its fallback."""
    main, fallback = Endpoint("main", unknown_voice="theirs"), Endpoint("fallback", NO_QUOTA)
    main.own = Endpoint("retired", NO_QUOTA)
    calls = make_calls(
        model=LastingModel(main, fallback=fallback),
        limits={"quota_pause_s": 60.0},
        find_agent={"theirs": theirs}.get,
    )
    await nursery.start(calls.run)
    nursery.start_soon(calls.model_trial.run)
    return calls, main, fallback


async def test_what_a_fallback_is_refused_pauses_no_calls_of_a_model_that_lacks_an_agents_voice(
    autojump_clock, both_and_own
):
    calls, main, _ = both_and_own
    theirs = await ended(calls, OF_ANOTHER_VOICE)
    await trio.sleep(TRY_MODEL_S + 1.0)

    assert theirs.refusal is Kind.QUOTA
    assert (main.asked, main.opened, main.open) == (2, 1, 0)
    assert not paused(calls)


@pytest.mark.parametrize("is_well", [True, False])
async def test_a_key_of_a_fallback_that_is_refused_over_an_own_model_pauses_calls_with_the_model(
    autojump_clock, both_and_own, is_well
):
    calls, main, fallback = both_and_own
    fallback.failure = NO_KEY
    main.failure = None if is_well else NO_MODEL
    theirs = await ended(calls, OF_ANOTHER_VOICE)
    at_once = paused(calls)
    await trio.sleep(TRY_MODEL_S + 1.0)

    assert theirs.refusal is Kind.KEY
    assert (at_once, paused(calls)) == (not is_well, not is_well)


async def test_a_model_that_is_refused_as_well_pauses_all_calls_though_it_lacks_an_agents_voice(
    autojump_clock, both_and_own
):
    calls, main, _ = both_and_own
    main.failure = NO_QUOTA
    await ended(calls, OF_ANOTHER_VOICE)
    await trio.sleep(TRY_MODEL_S + 1.0)
    at_first = paused(calls)
    main.failure = None
    await trio.sleep(60.0 + TRY_MODEL_S)

    assert (at_first, paused(calls)) == (True, False)


@pytest.mark.parametrize("theirs", [ONLY_OF_ANOTHER_VOICE])
@pytest.mark.parametrize("failure", [NO_QUOTA, NO_KEY])
async def test_what_a_fallback_is_refused_pauses_no_calls_of_a_model_that_took_not_what_one_asks(
    autojump_clock, both_and_own, theirs, failure
):
    calls, main, fallback = both_and_own
    fallback.failure = failure
    with capture_logs() as lines:
        call = await ended(calls, theirs)
        at_once = paused(calls)
        await trio.sleep(TRY_MODEL_S + 1.0)
    told = [line for line in lines if line["event"].startswith("an agent's calls fail")]

    assert call.refusal is failure.refusal
    assert (main.asked, main.opened, main.open) == (3, 1, 0)
    assert (at_once, paused(calls)) == (False, False)
    assert [(line["agent"], line["model"]) for line in told] == [("theirs", "main")]


@pytest.mark.parametrize("theirs", [ONLY_OF_ANOTHER_VOICE])
@pytest.mark.parametrize("failure", [NO_QUOTA, NO_KEY])
async def test_a_model_that_is_refused_as_well_pauses_all_calls_whatever_an_agent_asks_for(
    autojump_clock, both_and_own, theirs, failure
):
    calls, main, _ = both_and_own
    main.failure = failure
    await ended(calls, theirs)

    assert paused(calls)


@pytest.mark.parametrize("theirs", [ONLY_OF_ANOTHER_VOICE])
async def test_a_model_that_is_away_and_a_refused_fallback_pause_all_calls_whatever_is_asked_for(
    autojump_clock, both_and_own, theirs
):
    calls, main, _ = both_and_own
    main.hangs = True
    call = await ended(calls, theirs)
    at_once = paused(calls)
    await trio.sleep(TRY_MODEL_S + 1.0)

    assert call.refusal is Kind.QUOTA
    assert (at_once, paused(calls)) == (False, True)


async def test_what_one_agent_is_refused_is_looked_into_also_while_anothers_own_model_is(
    autojump_clock, both_and_own
):
    calls, main, _ = both_and_own
    main.hangs = True
    await ended(calls, OF_ANOTHER_VOICE)
    main.hangs, main.failure = False, NO_QUOTA
    await ended(calls, ONLY_OF_ANOTHER_VOICE)
    meanwhile = paused(calls)
    await trio.sleep(TRY_MODEL_S + 1.0)

    assert (meanwhile, paused(calls)) == (False, True)


async def test_a_model_without_a_fallback_has_all_the_time_of_a_try(autojump_clock, nursery):
    calls = make_calls(limits={"quota_pause_s": 60.0})
    await nursery.start(calls.run)
    nursery.start_soon(calls.model_trial.run)
    await refused_call(calls, NO_QUOTA)
    calls.model.failure, calls.model.connect_s = None, TRY_MODEL_S - 1.0

    await trio.sleep(60.0 + TRY_MODEL_S)

    assert not paused(calls)
