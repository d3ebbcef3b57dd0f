"""Bodies of requests as programs of all kinds write them, and text that is none."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from server.settings import numbers
from server.web.api import (
    MAKE_CALL,
    MAX_FIELDS_TOLD,
    MAX_GREETING_CHARS,
    MAX_MEMBERS,
    MAX_METADATA,
    MAX_METADATA_CHARS,
    MAX_PROMPT_CHARS,
    MakeCall,
    e164,
    field_errors,
)
from server.web.browser.words import RESUME, START
from server.web.http_request import LONGEST_BODIES, MAX_BODY_BYTES, read_json
from tests.support.pages import page_on
from tests.support.serving import serving

pytestmark = pytest.mark.sockets

CALL = {"destination_number": "+15005550104", "prompt": "Habla español 你好 😀"}
JSON = {"Content-Type": "application/json"}
ENCODINGS = (
    *("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"),
    "utf-32-be",
)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("escaped", [True, False])
def test_json_in_any_unicode_is_read(encoding, escaped):
    assert read_json(json.dumps(CALL, ensure_ascii=escaped).encode(encoding)) == CALL


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is not JSON: .* line 1, column 1"),
        (b"{'a': 1}", "is not JSON: .* line 1, column 2"),
        (b'{"a": 1,\n"b"}', "line 2"),
        ('{"a": "señor"}'.encode("cp1252"), "is not text: line 1: this is not UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "is not text"),
        (b"\xff\xfe{\0", "is not JSON"),
        (b"\xff\xfe{", "is not text: line 1: this is not UTF-16-LE"),
        (b"\0" * 8, "is not text"),
        (b'{"a": "\0"}', "a NUL"),
        (b"[" * 100_000, "nested too deep"),
        (b"9" * 5_000, "too many digits"),
    ],
)
def test_what_is_not_json_is_told_in_words(content, told):
    with pytest.raises(ValueError, match=told) as caught:
        read_json(content)
    assert type(caught.value) is ValueError


async def test_every_encoding_of_a_request_places_its_call():
    async with serving() as server:
        answers = [
            await server.http.post(
                "/make-call",
                content=json.dumps(CALL | {"metadata": {"as": encoding}}).encode(encoding),
                headers=JSON,
            )
            for encoding in ENCODINGS
        ]
        records = [
            (await server.http.get(f"/calls/{answer.json()['call_sid']}")).json()
            for answer in answers
        ]

    assert [answer.status_code for answer in answers] == [201] * len(ENCODINGS)
    assert [record["metadata"]["as"] for record in records] == list(ENCODINGS)


def longest(character: str) -> dict:
    """What a call may be told at most, in texts of this character's."""
    names = [f"{character * (MAX_METADATA_CHARS - 2)}{n:02}" for n in range(MAX_METADATA)]
    facts = dict.fromkeys(names, character * MAX_METADATA_CHARS)
    return {
        "prompt": character * MAX_PROMPT_CHARS,
        "greeting": character * MAX_GREETING_CHARS,
        "metadata": facts,
        "variables": facts,
    }


@pytest.mark.parametrize("character", ["漢", "я", "😀", '"', "\x01"])
async def test_the_longest_call_of_any_characters_reaches_the_model(character, fast_clock):
    body = longest(character)
    async with serving(simulated_ring_s=0.1) as server:
        answer = await server.http.post(
            MAKE_CALL,
            content=json.dumps(body | {"destination_number": "+15005550103"}, indent=4).encode(),
            headers=JSON,
        )
        assert answer.status_code == 201, answer.text
        record = await server.finished(answer.json()["call_sid"])
        (session,) = server.gemini.sessions

    assert record["reason"] == "caller-hung-up"
    assert session.setup["systemInstruction"]["parts"][0]["text"].startswith(body["prompt"])


@pytest.mark.slow
@pytest.mark.parametrize("character", ["漢", "😀"])
async def test_the_longest_call_of_a_page_in_any_characters_reaches_the_model(character):
    body = longest(character)
    async with serving() as server:
        answer = await server.http.post(
            START, content=json.dumps(body, indent=4).encode(), headers=JSON
        )
        assert answer.status_code == 201, answer.text
        async with page_on(answer.json()) as page:
            await page.wait(lambda: page.told("media"))
            (session,) = server.gemini.sessions

    assert session.setup["systemInstruction"]["parts"][0]["text"].startswith(body["prompt"])


async def test_one_character_more_is_a_field_that_is_too_long():
    body = CALL | {"prompt": "😀" * (MAX_PROMPT_CHARS + 1)}
    async with serving() as server:
        answer = await server.http.post("/make-call", json=body)

    assert answer.status_code == 422
    assert answer.json()["fields"].keys() == {"prompt"}


def names(number: int) -> dict[str, int]:
    return {f"{n:x}": 0 for n in range(number)}


@pytest.mark.parametrize("path", [MAKE_CALL, START, RESUME])
@pytest.mark.parametrize("part", [None, "metadata", "variables"])
async def test_an_object_with_more_members_than_there_are_is_not_looked_at_one_by_one(path, part):
    many, few = names(MAX_MEMBERS + 1), names(MAX_FIELDS_TOLD + 1)
    async with serving() as server:
        answers = [
            await server.http.post(path, json=body if part is None else {part: body})
            for body in (many, names(5_000), few)
        ]

    told = [answer.json()["fields"] for answer in answers]
    assert [answer.status_code for answer in answers] == [400, 400, 422]
    assert told[:2] == [{"": f"no object in it may have more than {MAX_MEMBERS} members"}] * 2
    assert all(len(answer.content) < 5_000 for answer in answers)


@pytest.mark.parametrize("path", [MAKE_CALL, START, RESUME])
async def test_who_says_a_few_things_too_many_is_told_which(path):
    async with serving() as server:
        answer = await server.http.post(path, json={"colour": 1, "size": 2, "x" * 60_000: 3})

    told = answer.json()["fields"]
    assert answer.status_code == 422
    assert {"colour", "size"} < told.keys()
    assert len(answer.content) < 5_000


@pytest.mark.parametrize(
    ("is_wrong", "told"),
    [(MAX_FIELDS_TOLD, MAX_FIELDS_TOLD), (MAX_FIELDS_TOLD + 1, 1), (8_000, 1)],
)
def test_only_so_many_mistakes_are_told_one_by_one(is_wrong, told):
    with pytest.raises(ValidationError) as caught:
        MakeCall.model_validate({"destination_number": "+15005550104"} | names(is_wrong))

    fields = field_errors(caught.value)
    assert len(fields) == told
    assert is_wrong == told or str(is_wrong) in fields[""]


@pytest.mark.parametrize("path", ["/twiml", "/call-status"])
async def test_other_bodies_are_no_longer_than_before(path):
    async with serving() as server:
        answer = await server.http.post(
            path,
            content=b"a=" + b"x" * MAX_BODY_BYTES,
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        )

    assert answer.status_code == 413


@pytest.mark.parametrize("path", [MAKE_CALL, START, RESUME])
async def test_a_body_that_is_longer_than_all_that_there_is_to_say_is_not_read(path):
    async with serving() as server:
        answer = await server.http.post(
            path, content=b" " * (LONGEST_BODIES[path] + 1), headers=JSON
        )

    assert answer.status_code == 413


HALF = "\\ud800"
LONE_SURROGATES = {
    "destination_number": f'{{"destination_number": "+1500555{HALF}0104"}}',
    **{
        name: f'{{"destination_number": "+15005550104", "{name}": "a{HALF}b"}}'
        for name in ("prompt", "greeting", "voice", "language")
    },
    "metadata": f'{{"destination_number": "+15005550104", "metadata": {{"a": "{HALF}"}}}}',
    "a name in metadata": (
        f'{{"destination_number": "+15005550104", "metadata": {{"{HALF}": "a"}}}}'
    ),
    "max_duration_s": f'{{"destination_number": "+15005550104", "max_duration_s": "{HALF}"}}',
    "no field": f'{{"destination_number": "+15005550104", "{HALF}": 1}}',
    "the second half": '{"destination_number": "+15005550104", "prompt": "\\udc00\\ud83d"}',
    "a number without end": '{"destination_number": "+15005550104", "max_duration_s": 1e999}',
    "no number": '{"destination_number": "+15005550104", "max_duration_s": NaN}',
    "many digits": f'{{"destination_number": "+15005550104", "max_duration_s": {"9" * 4_000}}}',
    "digits for a number": f'{{"destination_number": {"9" * 4_000}}}',
}


async def test_half_characters_and_endless_numbers_are_refused_in_every_field():
    async with serving() as server:
        answers = {
            name: await server.http.post("/make-call", content=body, headers=JSON)
            for name, body in LONE_SURROGATES.items()
        }
        live = server.service.calls.live_count

    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(
        LONE_SURROGATES, 422
    )
    assert all(answer.json()["fields"] for answer in answers.values())
    assert live == 0


async def test_no_text_is_walked_that_is_too_long_for_a_number(monkeypatch):
    looked_at = list[str]()
    monkeypatch.setattr(numbers, "clean", lambda text: looked_at.append(text) or text)
    async with serving() as server:
        answers = [
            await server.http.post("/make-call", json={"destination_number": long})
            for long in ("+1" + "5" * 39, "+1" * 900_000, "x" * 1_900_000)
        ]

    assert [answer.status_code for answer in answers] == [422] * 3
    assert all(
        "40 characters" in answer.json()["fields"]["destination_number"] for answer in answers
    )
    assert looked_at == []


async def test_odd_headers_and_queries_are_no_fault_of_ours():
    odd = [b"\xed\xa0\x80", b"\xff", b"\xc3\xb1", b"a" * 255]
    async with serving() as server:
        placed = [
            await server.http.post(
                "/make-call",
                json=CALL,
                headers=[(b"Idempotency-Key", text), (b"traceparent", text)],
            )
            for text in odd
        ]
        asked = [
            await server.http.get(path)
            for text in ("%ed%a0%80", "%ff", "%00", "\u2028")
            for path in (f"/calls?before={text}", f"/calls?limit={text}", f"/calls/{text}")
        ]

    assert {answer.status_code for answer in placed} <= {201, 409, 422}
    assert {answer.status_code for answer in asked} <= {404, 422}


@pytest.mark.parametrize(
    "given",
    [
        "\u202a+13105551234\u202c",
        "\u2066+1 310 555 1234\u2069",
        "\u200b+13105551234",
        "\ufeff+13105551234",
        "+1310\u2060555\u200d1234",
        "\uff0b13105551234",
        "\ufe621-310-555-1234",
        "\u207a13105551234",
        "\uff0b\uff11\uff13\uff11\uff10\uff15\uff15\uff15\uff11\uff12\uff13\uff14",
        "+1\u00a0310\u202f555\u20091234",
        "+1\u2011310\u2013555\u20141234",
        "+1 310 555 1234\r\n",
        "\t+13105551234",
        "tel:+1-310-555-1234",
        "TEL:\u200e+13105551234",
        "+1310555\u00ad1234",
    ],
)
def test_what_nobody_sees_in_a_number_is_taken_out(given):
    assert e164(given) == "+13105551234"


@pytest.mark.parametrize(
    "given",
    [
        "13105551234",
        "tel:3105551234;phone-context=+1",
        "+1310555123\u0664\u0664\u0664\u0664",
        "\u200b",
        "",
        "tel:",
        "sip:+13105551234@example.com",
        "+1310555\ud8001234x",
    ],
)
def test_what_is_no_number_stays_none(given):
    with pytest.raises(ValueError, match=r"."):
        e164(given)
