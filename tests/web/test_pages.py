"""What browsers are shown: files of ours alone, with nothing that a stranger could use."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from quart import typing

from server.app import create_app
from server.settings.settings import Settings
from server.web.static.files import HERE, PAGES, TYPES, stream_source
from tests.support.access import SIMULATED

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
