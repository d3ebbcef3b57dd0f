"""The apology: in the caller's language as far as it goes, and sayable before it is needed."""

from __future__ import annotations

import pytest

from server.agent.agent import Agent
from server.agent.phrases import apology
from server.app import create_app
from server.carrier.twilio.documents import (
    MAX_TWIML_CHARACTERS,
    check_sayable,
    say_language,
    say_twiml,
)
from server.errors import ConfigurationError
from server.settings.settings import Settings
from server.simulators.gemini import ModelScript
from tests.support.rig import calling

ROOM = MAX_TWIML_CHARACTERS - len(say_twiml("x", "en-US")) + 1


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        *[(tag, "nb-NO") for tag in ("no", "no-NO", "nb", "nb-NO", "nn-NO", "NO", "nb_NO", "nor")],
        *[(tag, "zh-HK") for tag in ("yue", "yue-HK", "zh-yue-HK", "zh-HK", "zh-Hant-HK", "zh-MO")],
        *[
            (tag, "zh-CN")
            for tag in ("cmn", "cmn-CN", "zh", "zh-Hans", "zh-Hans-CN", "zh_SG", "zho")
        ],
        *[(tag, "zh-TW") for tag in ("zh-TW", "zh-Hant-TW", "zh-Hant", "cmn-Hant-TW", "cmn-TW")],
        ("cmn-HK", "zh-CN"),
        *[("pt", "pt-BR"), ("pt_PT", "pt-PT"), ("PT-br", "pt-BR"), ("por", "pt-BR")],
        *[("es-419", "es-MX"), ("es-ES", "es-ES"), ("spa-ES", "es-ES")],
        *[("en", "en-US"), ("en-IE", "en-US"), ("en_gb", "en-GB"), ("eng-AU", "en-AU")],
        *[("xx", "en-US"), ("", "en-US"), ("-", "en-US"), ("de-DE.UTF-8", "de-DE")],
    ],
)
def test_the_language_that_is_said_is_the_nearest_there_is(tag, said):
    assert say_language(tag) == said


@pytest.mark.parametrize(
    ("tag", "spanish"), [("es", True), ("es_MX", True), ("ES-419", True), ("no", False)]
)
def test_our_own_words_are_found_however_the_tag_is_spelt(tag, spanish):
    text, language = apology(tag)

    assert ("Lo siento" in text) is spanish
    assert language == (tag if spanish else "en-US")


@pytest.mark.parametrize(
    "text",
    ["x" * ROOM, "&" * (ROOM // len("&amp;")), "\u4e2d" * ROOM, "two\nlines\tand a \U0001f600"],
)
def test_an_apology_that_just_fits_is_taken(text):
    check_sayable(text, "APOLOGY")

    assert len(say_twiml(text, "zh-TW")) <= MAX_TWIML_CHARACTERS


@pytest.mark.parametrize("text", ["x" * (ROOM + 1), "&" * (ROOM // 5 + 1), "<" * 2_000])
def test_an_apology_longer_than_the_carrier_takes_is_refused_at_the_start(text):
    settings = Settings.load(_env_file=None, apology=text)

    with pytest.raises(ConfigurationError, match="APOLOGY is too long by"):
        create_app(settings)


@pytest.mark.parametrize("text", ["a\0b", "\x1b[1m", "\ufffe", "\ud800"])
def test_an_apology_that_xml_cannot_have_is_refused_with_the_place(text):
    with pytest.raises(ConfigurationError, match="APOLOGY has a character at place"):
        check_sayable(text, "APOLOGY")


async def test_the_operators_own_apology_is_said_in_the_agents_language(autojump_clock):
    deaf = ModelScript(silent_turns=frozenset(range(1, 1_000)), heals=False)
    agent = Agent(language="nb-NO", apology="Beklager.")
    async with calling(
        callee="never-hangs-up", script=deaf, script_after_resume=deaf, agent=agent
    ) as rig:
        await rig.over()

    assert rig.carrier.said == [("Beklager.", "nb-NO")]
