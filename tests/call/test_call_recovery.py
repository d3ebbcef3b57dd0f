"""Whole calls whose model connection is replaced, or breaks: in memory, on the mock clock."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked
from websockets.frames import Close

from codec.ear import SpeechStarted
from server.app import create_app
from server.dialogue.endings import EndReason
from server.errors import ConfigurationError
from server.model import (
    AgentTranscript,
    CallerTranscript,
    GenerationComplete,
    Interrupted,
    PastTurn,
    Reconnected,
    Way,
)
from server.model.gemini.model import GeminiModel
from server.model.lasting.model import LastingModel
from server.model.lasting.plan import MAX_DELAY_S
from server.settings.accounts import DeveloperAccount
from server.settings.settings import Settings
from server.simulators.gemini import MODEL_SCRIPTS, Drop, GeminiSimulator, ModelScript
from tests.support.calls_on_a_rig import SECOND_PCM
from tests.support.calls_on_a_rig import Rig as MemoryRig
from tests.support.rig import calling
from tests.support.serving import serving

pytestmark = pytest.mark.sockets


def reconnects(rig) -> list[tuple[str, str]]:
    return [
        (facts["reason"], facts["way"])
        for _, what, facts in rig.call.conversation.notes.timeline
        if what == "model reconnected"
    ]


EAR_S = 0.1
"""A caller speaks for so long before that is known: until then, nobody does."""


async def test_a_service_that_goes_away_is_left_while_nobody_speaks(autojump_clock):
    async with calling(callee="talks", script="go-away") as rig:
        await rig.over()

    assert rig.call.end_reason == "caller-hung-up"
    assert reconnects(rig) == [("go-away", "resume")]
    assert not rig.record["had_trouble"]
    (at_s,) = [
        at for at, what, _ in rig.call.conversation.notes.timeline if what == "model reconnected"
    ]
    for utterance in rig.phone.utterances:
        began_s = utterance.began_s + rig.phone.started_at - rig.call.conversation.notes.began_at
        assert not began_s + EAR_S <= at_s <= began_s + utterance.ended_s - utterance.began_s
    assert rig.phone.clears == []
    assert sum(session.agent.unsaid_samples for session in rig.sessions) == 0
    assert rig.call.conversation.session.lost_s == 0


@pytest.mark.parametrize(
    ("script", "reconnect"),
    [
        ("drop-1006", ("closed-1006", "resume")),
        ("drop-1011", ("closed-1011", "resume")),
        ("lost-handle", ("closed-1006", "fresh")),
    ],
)
async def test_a_broken_answer_is_given_again_and_written_down_once(
    autojump_clock, script, reconnect
):
    async with calling(callee="talks", script=script) as rig:
        await rig.over()

    assert rig.call.end_reason == "caller-hung-up"
    assert reconnects(rig) == [reconnect]
    assert rig.record["had_trouble"]
    callers = [turn for turn in rig.record["transcript"] if turn["speaker"] == "caller"]
    assert len(callers) == 2
    assert rig.call.conversation.session.lost_s == 0
    assert not any(what.startswith("watchdog") for what in rig.noted)


async def test_a_fresh_session_is_told_what_the_caller_has_heard(autojump_clock):
    async with calling(callee="talks", script="lost-handle") as rig:
        await rig.over()

    greeting = rig.gemini.greeting.text
    assert rig.sessions[-1].texts[0] == greeting


EXPIRED = "API key expired. Please renew the API key."
BUSY = "Rate limit exceeded. Too many requests."


def dropped(reason: str, *, then: Close | None = None) -> ModelScript:
    return ModelScript(drop=Drop(2, 0.5, 1007, reason), refuse_setup=None, refuse_handles=then)


async def test_a_refused_key_in_mid_call_ends_it_at_once_with_an_apology(autojump_clock):
    async with calling(callee="talks", script=dropped(EXPIRED)) as rig:
        await rig.over()

    assert rig.call.end_reason == "model-refused"
    assert rig.call.refusal == "model-key"
    assert len(rig.sessions) == 1
    assert len(rig.carrier.said) == 1


async def test_a_rate_limit_in_mid_call_is_waited_for(autojump_clock):
    async with calling(callee="talks", script=dropped(BUSY)) as rig:
        await rig.over()

    assert rig.call.end_reason == "caller-hung-up"
    assert reconnects(rig) == [("closed-1007", "resume")]


@pytest.mark.parametrize("budget_s", [10.0, 30.0])
async def test_a_rate_limit_that_does_not_pass_ends_the_call_when_the_budget_is_used_up(
    autojump_clock, budget_s
):
    script = dropped(BUSY, then=Close(1011, BUSY))
    patient = partial(LastingModel, reconnect_budget_s=budget_s)
    async with calling(callee="never-hangs-up", script=script, make_model=patient) as rig:
        await rig.noted_s("agent turn")
        await rig.sessions[0].ended.wait()
        lost_at = trio.current_time()
        await rig.over()

    ended_at = rig.call.conversation.notes.began_at + rig.call.conversation.notes.timeline[-1][0]
    assert rig.call.end_reason == "model-quota"
    assert budget_s - 1.5 * MAX_DELAY_S < ended_at - lost_at <= budget_s + 1.0
    # Asked again and again to the end, and never for a session that knows nothing of the call.
    assert len(rig.sessions) > budget_s / (1.5 * MAX_DELAY_S)
    assert all(session.setup == {} for session in rig.sessions[1:])
    assert len(rig.carrier.said) == 1


@pytest.mark.parametrize("refusal", ["no-credits", "bad-key", "no-permission"])
async def test_the_fallback_answers_where_the_account_is_refused_and_nothing_is_refused(
    autojump_clock, refusal
):
    refusing = replace(MODEL_SCRIPTS[refusal], only_model="gemini-3.8-live")

    def with_fallback(gemini):
        other = GeminiModel(
            api_key="simulated",
            model="gemini-3.1-flash-live-preview",
            url="ws://memory.invalid",
            connect=healthy.connect,
        )
        return LastingModel(gemini, fallback=other)

    async with trio.open_nursery() as nursery:
        healthy = GeminiSimulator()
        await nursery.start(partial(healthy.run, port=None))
        with capture_logs() as lines:
            async with calling(callee="talks", script=refusing, make_model=with_fallback) as rig:
                await rig.over()
        nursery.cancel_scope.cancel()

    told = [line for line in lines if line["event"].startswith("calls go to the fallback")]
    assert rig.call.end_reason == "caller-hung-up"
    assert rig.call.refusal is None
    assert len(told) == 1
    assert rig.record["model"] == "gemini-3.1-flash-live-preview"


async def test_quota_ends_a_call_that_has_no_fallback(autojump_clock):
    async with calling(callee="talks", script="quota-in-call") as rig:
        await rig.over()

    assert rig.call.end_reason == "model-quota"
    assert len(rig.sessions) == 1


async def test_a_call_that_nobody_answers_for_long_keeps_its_greeting(autojump_clock):
    rotating = partial(LastingModel, connection_age_s=20.0)
    async with calling(callee="talks", ring_s=50.0, make_model=rotating) as rig:
        await rig.over()

    assert rig.phone.first_sound_s < 0.2
    assert rig.call.end_reason == "caller-hung-up"
    assert reconnects(rig) == [("age", "resume")]  # due while it rang, and done once it was heard


async def test_a_service_that_closes_without_a_word_of_warning_takes_no_speech_along(
    autojump_clock,
):
    # Closed at 8.5 s, in the middle of the question.
    abrupt = ModelScript(go_away_at_s=8.4, go_away_left_s=0.1)
    async with calling(callee="talks", script=abrupt) as rig:
        await rig.over()

    said = rig.phone.utterances[0]
    recognised = next(t["text"] for t in rig.record["transcript"] if t["speaker"] == "caller")
    assert recognised.endswith("seconds of speech)")
    assert float(recognised[1:4]) > said.ended_s - said.began_s
    assert rig.call.conversation.session.lost_s == 0


@pytest.mark.parametrize("name", MODEL_SCRIPTS)
def test_every_script_of_a_models_faults_can_be_set(name):
    create_app(Settings.load(_env_file=None, simulated_model=name))


def test_a_script_that_there_is_not_cannot_be_set():
    with pytest.raises(ConfigurationError, match="SIMULATED_MODEL"):
        create_app(Settings.load(_env_file=None, simulated_model="flawless"))


async def test_the_simulated_model_follows_the_script_that_is_set(fast_clock):
    async with serving(simulated_model="quota-in-call") as server:
        record = await server.finished((await server.make_call("5550100")).json()["call_sid"])

    assert record["reason"] == "model-quota"


@pytest.mark.parametrize(
    "given",
    [
        {"fallback_gemini_model": "gemini-3.1-flash-live-preview"},
        {"fallback_gemini_api_key": "another-key"},
        {"fallback_gemini_url": "wss://europe-west4-aiplatform.googleapis.com"},
    ],
)
def test_one_setting_makes_a_fallback_and_the_rest_is_as_for_the_model(given):
    accounts = create_app(Settings.load(_env_file=None, **given)).service.accounts
    accounts._use_gemini(DeveloperAccount("a-key"), "ws://127.0.0.1:9")

    service, fallback = accounts.model._services

    assert fallback is not None
    assert fallback.name == given.get("fallback_gemini_model", service.name)
    key = given.get("fallback_gemini_api_key", "a-key")
    assert fallback._credentials.headers() == {"x-goog-api-key": key}
    url = given.get("fallback_gemini_url", "ws://127.0.0.1:9")
    assert fallback._endpoint.url.startswith(url)


def test_without_a_setting_there_is_no_fallback():
    accounts = create_app(Settings.load(_env_file=None)).service.accounts
    accounts._use_gemini(DeveloperAccount("a-key"), "ws://127.0.0.1:9")

    assert accounts.model._services[1] is None


async def test_a_new_session_is_not_told_as_said_what_was_only_written_yet(autojump_clock, nursery):
    rig = MemoryRig()
    nursery.start_soon(rig.call.run)
    nursery.start_soon(rig.call.serve, rig.media, rig.media.start())
    await wait_all_tasks_blocked()
    rig.session.event(AgentTranscript("Good morning.", 1))
    rig.audio(SECOND_PCM, 1)
    await trio.sleep(1.0)
    rig.session.event(CallerTranscript("When do you open?"))
    rig.session.event(AgentTranscript("At six.", 2))
    told = rig.call.conversation.history()
    rig.call.end(EndReason.HUNG_UP)
    await rig.call.finished.wait()

    assert told == [PastTurn("agent", "Good morning."), PastTurn("caller", "When do you open?")]


SAID_AGAIN = Reconnected("closed-1006", Way.RESUME, "a model", 0.3, 0.0, 2.0, words_repeated=True)


@pytest.mark.parametrize("is_cut", [False, True])
async def test_a_question_said_again_is_in_the_record_once_however_late_it_is_recognised(
    autojump_clock, nursery, is_cut
):
    rig = MemoryRig()
    await rig.begin(nursery)
    rig.session.event(CallerTranscript("When do"))
    rig.audio(SECOND_PCM, 1)  # without a word, and it breaks off
    rig.session.event(SAID_AGAIN)
    await trio.sleep(0.5)
    rig.audio(SECOND_PCM, 2)
    rig.session.event(AgentTranscript("At six.", 2))
    rig.session.event(GenerationComplete(2))
    rig.session.event(CallerTranscript("When do you open?"))
    if is_cut:
        rig.call.conversation.ear.on_found((SpeechStarted(trio.current_time()),))
        rig.session.event(Interrupted(2, trio.current_time()))
    else:
        await trio.sleep(3.0)
        rig.call.conversation.ear.on_found((SpeechStarted(trio.current_time()),))
    rig.session.event(CallerTranscript("And close?"))
    said = [turn.text for turn in rig.call.conversation.notes.transcript.turns]
    rig.call.end(EndReason.HUNG_UP)
    await rig.call.finished.wait()

    assert said == ["When do you open?", "At six.", "And close?"]


@pytest.mark.parametrize("is_cut", [False, True])
async def test_a_question_said_again_that_is_not_recognised_again_gives_no_place_to_the_next(
    autojump_clock, nursery, is_cut
):
    rig = MemoryRig()
    await rig.begin(nursery)
    rig.session.event(CallerTranscript("When do you open?"))
    rig.session.event(SAID_AGAIN)
    rig.audio(SECOND_PCM, 1)
    rig.session.event(AgentTranscript("At six.", 1))
    if not is_cut:
        rig.session.event(GenerationComplete(1))
        await trio.sleep(3.0)
    rig.call.conversation.ear.on_found((SpeechStarted(trio.current_time()),))
    if is_cut:
        rig.session.event(Interrupted(1, trio.current_time()))
    rig.session.event(CallerTranscript("And close?"))
    said = [turn.text for turn in rig.call.conversation.notes.transcript.turns]
    rig.call.end(EndReason.HUNG_UP)
    await rig.call.finished.wait()

    assert said == ["When do you open?", "At six.", "And close?"]
