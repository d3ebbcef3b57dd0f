"""What happens now, as far as the page can know it: all calls, and nothing of who is silent."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.browser import here, in_browser, sign_in, until
from tests.support.chromium import needs_chromium
from tests.support.processes import API_KEY
from tests.support.serving import serving

pytestmark = [pytest.mark.sockets, pytest.mark.slow, needs_chromium]
TALKS_ON = "5550108"
WATCH = """
globalThis.ahead_ms = 0;
const { now } = Date;
Date.now = () => now() + ahead_ms;
globalThis.channels = [];
globalThis.EventSource = class extends EventSource {
  isDead = false;
  constructor(url) { super(url); channels.push(this); }
  addEventListener(kind, act) {
    super.addEventListener(kind, (event) => { if (!this.isDead) act(event); });
  }
};"""
"""A page whose clock can be put forward, and whose channels can be made to bring nothing."""
HEAR_LISTS = """async () => {
  const { live } = await import("/static/console/live.js");
  globalThis.lists = 0;
  live.addEventListener("calls", ({ detail }) => { lists += detail ? 0 : 1; });
}"""
ROWS = "document.querySelectorAll('li.call').length"
STATE = "document.querySelector('[data-tile=state] dd').textContent"
GAP = "channels[0].dispatchEvent(new MessageEvent('gap'))"


async def test_calls_are_shown_however_many_pages_their_list_has():
    async with serving(api_key=API_KEY) as server:
        server.http.headers["Authorization"] = f"Bearer {API_KEY}"
        for _ in range(3):
            assert (await server.make_call(TALKS_ON)).status_code == 201

        def look(page: Any) -> int:
            page.route(
                "**/calls?*limit=1000*",
                lambda route: route.continue_(url=route.request.url.replace("1000", "2")),
            )
            page.add_init_script(WATCH)
            sign_in(page, server.url)
            page.evaluate(HEAR_LISTS)
            page.wait_for_selector("li.call")
            page.evaluate(GAP)
            until(page, "lists > 0")
            return page.evaluate(ROWS)

        assert await in_browser(look) == 3


async def test_a_list_that_is_not_complete_takes_no_call_away_and_is_read_again():
    async with serving(api_key=API_KEY) as server:
        server.http.headers["Authorization"] = f"Bearer {API_KEY}"
        await server.make_call(TALKS_ON)

        def look(page: Any) -> list[int]:
            page.add_init_script(WATCH)
            sign_in(page, server.url)
            page.wait_for_selector("li.call")
            page.evaluate(HEAR_LISTS)
            answers = [
                {"calls": [], "next": None, "complete": False},
                {"calls": [], "next": None, "complete": True},
            ]
            page.route("**/calls?*", lambda route: route.fulfill(json=answers.pop(0)))
            page.evaluate(GAP)
            until(page, "lists === 1")
            rows = [page.evaluate(ROWS)]
            until(page, "lists === 2")
            return [*rows, page.evaluate(ROWS)]

        assert await in_browser(look) == [1, 0]


async def test_of_a_server_that_says_nothing_it_is_not_said_how_it_does():
    async with serving(api_key=API_KEY) as server:

        def look(page: Any) -> tuple[str | None, str | None]:
            page.add_init_script(WATCH)
            sign_in(page, server.url)
            until(page, f"{STATE} === 'Ready'")
            tone = page.get_attribute("[data-tile=state]", "data-tone")
            page.evaluate("channels[0].isDead = true; ahead_ms += 7_000")
            until(page, f"{STATE} === '\u2013'")
            assert {each.inner_text() for each in page.locator(".tiles dd").all()} == {"\u2013"}
            return tone, page.get_attribute("[data-tile=state]", "data-tone")

        assert await in_browser(look) == ("good", None)


async def test_a_channel_that_brings_nothing_for_long_is_replaced():
    async with serving(api_key=API_KEY) as server:
        server.http.headers["Authorization"] = f"Bearer {API_KEY}"

        def look(page: Any) -> int:
            page.add_init_script(WATCH)
            sign_in(page, server.url)
            until(page, f"{STATE} === 'Ready'")
            page.evaluate("channels[0].isDead = true; ahead_ms += 16_000")
            until(page, "channels.length === 2")
            here(server.make_call, TALKS_ON)
            page.wait_for_selector("li.call")
            return page.evaluate("channels[0].readyState")

        assert await in_browser(look) == 2
