"""Whole calls whose model connection is replaced, or breaks: in memory, on the mock clock."""

from __future__ import annotations

from functools import partial

import pytest

from server.app import create_app
from server.model.lasting import LastingModel
from server.model.simulator import SCRIPTS, Script
from server.settings import Settings
from tests.rig import calling


def reconnects(rig) -> list[tuple[str, str]]:
    return [
        (facts["reason"], facts["way"])
        for _, what, facts in rig.call.timeline
        if what == "model reconnected"
    ]


async def test_a_service_that_goes_away_is_left_while_nobody_speaks(autojump_clock):
    async with calling(callee="talks", script="go-away") as rig:
        await rig.over()

    assert rig.call.end_reason == "caller-hung-up"
    assert reconnects(rig) == [("go-away", "resume")]
    (at_s,) = [at for at, what, _ in rig.call.timeline if what == "model reconnected"]
    for utterance in rig.phone.utterances:
        began_s = utterance.began_s + rig.phone.started_at - rig.call.began_at
        assert not began_s <= at_s <= began_s + utterance.ended_s - utterance.began_s
    assert rig.phone.clears == []
    assert sum(session.unsaid_samples for session in rig.sessions) == 0
    assert rig.call.timings.caller_audio_lost_s == 0


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
    callers = [turn for turn in rig.record["transcript"] if turn["speaker"] == "caller"]
    assert len(callers) == 2
    assert rig.call.timings.caller_audio_lost_s == 0
    assert not any(what.startswith("watchdog") for what in rig.noted)


async def test_a_fresh_session_is_told_what_the_caller_has_heard(autojump_clock):
    async with calling(callee="talks", script="lost-handle") as rig:
        await rig.over()

    greeting = rig.gemini.greeting.text
    assert rig.sessions[-1].texts[0] == greeting


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


async def test_a_service_that_closes_without_a_word_of_warning_takes_no_speech_along(
    autojump_clock,
):
    # Closed at 8.5 s, in the middle of the question.
    abrupt = Script(go_away_at_s=8.4, go_away_left_s=0.1)
    async with calling(callee="talks", script=abrupt) as rig:
        await rig.over()

    said = rig.phone.utterances[0]
    recognised = next(t["text"] for t in rig.record["transcript"] if t["speaker"] == "caller")
    assert recognised.endswith("seconds of speech)")
    assert float(recognised[1:4]) > said.ended_s - said.began_s
    assert rig.call.timings.caller_audio_lost_s == 0


def test_the_scripts_of_the_models_faults_can_be_set():
    for name in SCRIPTS:
        create_app(Settings.load(_env_file=None, simulated_model=name))


@pytest.mark.parametrize(
    "given",
    [
        {"fallback_gemini_model": "gemini-3.1-flash-live-preview"},
        {"fallback_gemini_api_key": "another-key"},
        {"fallback_gemini_url": "wss://europe-west4-aiplatform.googleapis.com"},
    ],
)
def test_one_setting_makes_a_fallback_and_the_rest_is_as_for_the_model(given):
    app = create_app(Settings.load(_env_file=None, **given))

    service, fallback = app._gemini("a-key", "ws://127.0.0.1:9")._services

    assert fallback is not None
    expected = {
        "name": given.get("fallback_gemini_model", service.name),
        "_api_key": given.get("fallback_gemini_api_key", "a-key"),
    }
    assert {name: getattr(fallback, name) for name in expected} == expected
    url = given.get("fallback_gemini_url", "ws://127.0.0.1:9")
    assert fallback._url.startswith(url)


def test_without_a_setting_there_is_no_fallback():
    app = create_app(Settings.load(_env_file=None))

    assert app._gemini("a-key", "ws://127.0.0.1:9")._services[1] is None
