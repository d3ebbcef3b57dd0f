"""The text model that reads transcripts, asked by Google's own client."""

from __future__ import annotations

import pytest

from server.errors import ModelError
from server.model.gemini.reader import GeminiReader
from tests.support.text_model import text_model

pytestmark = pytest.mark.sockets

SCHEMA = {"type": "object", "properties": {"pizza": {"type": "string"}}}


def reader(url: str) -> GeminiReader:
    return GeminiReader(api_key="the-key", model="gemini-flash-latest", url=url, timeout_s=30.0)


def test_it_is_asked_for_the_form_and_gives_what_it_says():
    with text_model() as model:
        model.text = '{"pizza": "hawaii"}'
        read = reader(model.url).read(SCHEMA, "caller: One hawaii, please.")
        ((path, headers, body),) = model.asked

    assert read == {"pizza": "hawaii"}
    assert path.endswith("/models/gemini-flash-latest:generateContent")
    assert headers["x-goog-api-key"] == "the-key"
    assert body["contents"][0]["parts"] == [{"text": "caller: One hawaii, please."}]
    assert body["generationConfig"]["responseJsonSchema"] == SCHEMA


@pytest.mark.parametrize(
    ("status", "text", "told"),
    [
        (500, "{}", "the service answered 500"),
        (403, "{}", "the service answered 403"),
        (200, "hawaii", "its answer cannot be read"),
        (200, "", "its answer cannot be read"),
        (200, "[1]", "its answer is no form"),
    ],
)
def test_what_goes_wrong_is_told_without_the_services_words(status, text, told):
    with text_model() as model:
        model.status, model.text = status, text
        with pytest.raises(ModelError) as caught:
            reader(model.url).read(SCHEMA, "caller: Hello.")

    assert told in caught.value.loggable
    assert "secret" not in caught.value.loggable


def test_a_service_that_is_not_there_is_told():
    with pytest.raises(ModelError, match="ConnectError"):
        reader("http://127.0.0.1:9").read(SCHEMA, "caller: Hello.")


def test_its_key_is_in_no_repr():
    assert "the-key" not in repr(reader("http://127.0.0.1:9"))
