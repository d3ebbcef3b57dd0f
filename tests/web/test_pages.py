"""What browsers are shown: files of ours alone, with nothing that a stranger could use."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from quart import typing
from werkzeug.datastructures import Headers

from server.app import create_app
from server.settings.settings import Settings
from server.web.static.files import HERE, PAGES, TYPES, StaticFile, stream_source
from tests.support.access import SIMULATED
from tests.support.growth import FEW, growth

pytestmark = pytest.mark.sockets
FILES = sorted(path.name for path in HERE.iterdir() if path.suffix in TYPES)
MAX_BYTES = 150_000


@asynccontextmanager
async def stranger() -> AsyncGenerator[typing.TestClientProtocol]:
    app = create_app(Settings.load(_env_file=None, **SIMULATED, api_key="sesame"))
    async with app.test_app():
        yield app.test_client()


async def test_the_front_door_leads_to_the_description():
    async with stranger() as client:
        answer = await client.get("/")

    assert (answer.status_code, answer.headers["Location"]) == (302, "docs")


@pytest.mark.parametrize("path", [*PAGES, *(f"/static/{n}" for n in FILES if ".html" not in n)])
async def test_a_page_is_for_everybody_and_takes_nothing_from_elsewhere(path):
    async with stranger() as client:
        answer = await client.get(path)
        text = (await answer.get_data()).decode()

    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert re.findall(r"https?://[^\s'\"`]+", text) == []
    assert re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text) == []
    assert re.findall(r"\sstyle=|\son[a-z]+=|<style|<script(?![^>]* src=)", text) == []


@pytest.mark.parametrize(
    ("stream_url", "source"),
    [
        (None, ""),
        ("wss://media.example.com:8443", "wss://media.example.com:8443"),
        ("ws://127.0.0.1:5000", "ws://127.0.0.1:5000"),
        ("wss://{node}.calls.example.com", "wss://*.calls.example.com"),
        ("wss://media-{node}.example.com:8443", "wss://*.example.com:8443"),
        ("wss://a.example; script-src *", ""),
        ("wss://ñandú.example.com", ""),
    ],
)
def test_a_policy_names_where_streams_go_beside_the_page(stream_url, source):
    assert stream_source(stream_url) == source


@pytest.mark.parametrize("path", ["/phone", "/console", "/static/phone.js"])
@pytest.mark.parametrize("streams_at", [None, "wss://media.example.com"])
async def test_a_page_that_calls_may_open_its_stream_where_streams_go(path, streams_at):
    given = SIMULATED | {"api_key": "sesame", "stream_url": streams_at}
    app = create_app(Settings.load(_env_file=None, **given))
    async with app.test_app():
        answer = await app.test_client().get(path)

    allowed = re.findall(r"connect-src ([^;]*)", answer.headers["Content-Security-Policy"])
    assert allowed == [" ".join(filter(None, ("'self'", streams_at)))]


async def test_a_file_that_is_unchanged_is_not_sent_again():
    async with stranger() as client:
        first = await client.get("/static/docs.js")
        again = await client.get(
            "/static/docs.js", headers={"If-None-Match": first.headers["ETag"]}
        )

    assert again.status_code == 304
    assert await again.get_data() == b""
    assert again.headers["Content-Security-Policy"] == first.headers["Content-Security-Policy"]


FILE = StaticFile(HERE / "docs.js", {})


@pytest.mark.parametrize(
    ("lines", "is_known"),
    [
        ([f'"{FILE.tag}"'], True),
        ([f'W/"{FILE.tag}"'], True),  # a proxy that has compressed it says so
        ([f'"a" , W/"b",\t"{FILE.tag}"'], True),
        (['"a"', f'"{FILE.tag}"'], True),
        (["*"], True),
        ([FILE.tag], False),
        ([f'"{FILE.tag}x"'], False),
        ([""], False),
        ([], False),
    ],
)
def test_whoever_has_a_file_already_says_so_in_any_of_the_forms_there_are(lines, is_known):
    headers = Headers([("If-None-Match", line) for line in lines])

    assert FILE.is_known(headers) is is_known


@pytest.mark.parametrize("piece", [" ", "\t", "\x85", "\xa0", "\x1c", ",", '"', 'W/"a",', "a"])
def test_what_a_stranger_says_of_tags_is_read_in_time_with_its_length(piece):
    def read(size: int) -> None:
        FILE.is_known(Headers({"If-None-Match": "a" + piece * (size // len(piece)) + "\x00"}))

    assert growth(read, 4_000) < FEW


async def test_no_page_is_given_out_by_a_parser_whose_time_grows_with_the_square(monkeypatch):
    def parsed(*_: object) -> None:
        raise AssertionError("werkzeug has parsed a header that anybody may send")

    for parser in ("parse_etags", "parse_options_header", "parse_cookie"):
        monkeypatch.setattr(f"werkzeug.sansio.request.{parser}", parsed)
    hostile = dict.fromkeys(("If-None-Match", "Content-Type", "Cookie"), "a; b=c")
    json = {"Content-Type": "application/json;" + ";" * 8_000}
    async with stranger() as client:
        page = await client.get("/static/docs.js", headers=hostile)
        resumed = await client.post("/calls/browser/resume", data="{}", headers=json)
        signed = hostile | {"X-Twilio-Signature": "x"}
        forged = await client.post("/twiml", data="a=b", headers=signed)

    assert (page.status_code, resumed.status_code, forged.status_code) == (200, 422, 403)


@pytest.mark.parametrize(
    "name",
    ["files.py", "docs.html", "../files.py", "..%2f..%2fapp.py", "%2e%2e/guard.py", "", "x" * 999],
)
async def test_nothing_else_is_given_out(name):
    async with stranger() as client:
        answer = await client.get(f"/static/{name}")

    assert answer.status_code in (401, 404)
    assert b"import" not in await answer.get_data()


def test_all_of_it_is_small():
    assert sum((HERE / name).stat().st_size for name in FILES) < MAX_BYTES
