"""What the simulated model says, from a file of the user's."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from server.accounts import Accounts
from server.cluster.cluster import Cluster
from server.errors import ConfigurationError
from server.settings.settings import Settings
from server.simulators.gemini import MODEL_SCRIPTS, FunctionCall, ScriptedTurn, with_words
from tests.support.serving import serving

SCRIPT = """
greeting = "Good day."
[[turns]]
hears = "Two hawaii, please."
says = "Two. Goodbye!"
calls = [{name = "price_of", arguments = {pizza = "hawaii", day = 2026-03-01}}]
[[turns]]
says = "Are you still there?"
"""


def written(tmp_path, text: str):
    path = tmp_path / "model.toml"
    path.write_text(text)
    return path


def test_a_script_says_what_a_file_has_and_behaves_as_before(tmp_path):
    script = with_words(MODEL_SCRIPTS["slow-model"], written(tmp_path, SCRIPT))

    assert script.speed == MODEL_SCRIPTS["slow-model"].speed
    assert script.greeting == "Good day."
    price = FunctionCall("price_of", {"pizza": "hawaii", "day": "2026-03-01"})
    assert script.turns == (
        ScriptedTurn("Two hawaii, please.", (price,), "Two. Goodbye!"),
        ScriptedTurn(says="Are you still there?"),
    )
    assert script.fills == frozenset()  # what it fills in is the file's to say


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("greeting = 5", "Expected `str`, got `int`"),
        ("greting = 'x'", "unknown field `greting`"),
        ("[[turns]]\nsay = 'x'", "unknown field `say`"),
        ("[[turns]]\ncalls = [{arguments = {}}]", "missing required field `name`"),
        ("greeting = \n", "line 1"),
        ("greeting = '" + "x" * 3_000 + "'", "length <= 2000"),
        ("#\n" * 131_073, "has more than 262144 bytes"),
    ],
)
def test_a_file_that_is_no_script_is_refused_at_start(tmp_path, text, why):
    settings = Settings.load(simulated_model_script=written(tmp_path, text))

    with pytest.raises(ConfigurationError) as caught:
        Accounts(settings, Cluster(), None)

    assert "SIMULATED_MODEL_SCRIPT" in str(caught.value)
    assert "model.toml" in str(caught.value)
    assert why in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"none\.toml cannot be read"):
        with_words(MODEL_SCRIPTS["answers"], tmp_path / "none.toml")


@pytest.mark.slow
@pytest.mark.sockets
async def test_a_call_is_talked_by_the_script_and_the_start_says_that_no_prompt_is_followed(
    tmp_path,
):
    path = written(tmp_path, SCRIPT)
    with capture_logs() as lines:
        async with serving(simulated_model_script=path, simulated_callee="asks-once") as server:
            record = await server.finished((await server.make_call("5550117")).json()["call_sid"])

    said = [turn["text"] for turn in record["transcript"] if turn["text"]]
    assert said == ["Good day.", "Two hawaii, please.", "Two. Goodbye!"]
    (told,) = (line for line in lines if "follows no prompt" in line["event"])
    assert told["script"] == str(path)


def test_the_script_in_the_documents_is_one(request, tmp_path):
    page = (request.config.rootpath / "docs" / "builders.md").read_text()
    _, _, rest = page.partition("```toml\n")

    script = with_words(MODEL_SCRIPTS["answers"], written(tmp_path, rest.partition("```")[0]))

    assert script.greeting
    assert script.turns[0].calls == (FunctionCall("price_of", {"pizza": "hawaii"}),)
