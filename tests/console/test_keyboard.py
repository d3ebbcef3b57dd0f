"""The console by keyboard alone: Enter does what it says, and nothing takes the focus away."""

from __future__ import annotations

from typing import Any

import pytest

from server.logs import masked
from tests.support.browser import here, in_browser, sign_in, until
from tests.support.chromium import needs_chromium
from tests.support.processes import API_KEY
from tests.support.serving import serving

pytestmark = [pytest.mark.sockets, pytest.mark.slow, needs_chromium]
TALKS_ON = "5550108"
LOADS = """async (live) => {
  const { loads, live: news } = await import("/static/console/live.js");
  const usual = { waiting: 0, sessions: 0, lag_ms: 1, max_calls: 9, seen: Date.now() + 1e9 };
  for (const process of ["a", "b"]) loads.set(process, { ...usual, process, live });
  news.dispatchEvent(new CustomEvent("load"));
}"""
IS_FOCUSED = "(what) => document.activeElement.matches(what)"
GOES_ON = """(altKey) => document.body.dispatchEvent(new KeyboardEvent("keydown",
  { key: "ArrowLeft", altKey, bubbles: true, cancelable: true }))"""
"""Whether the browser has the key after all modules have seen it."""
LINES = "document.querySelectorAll('.story li').length"


async def test_enter_places_a_call_and_cancel_closes_what_is_not_filled_in():
    async with serving(api_key=API_KEY) as server:

        def look(page: Any) -> str:
            sign_in(page, server.url)
            page.click("text=Place a call")
            page.click("dialog >> text=Cancel")
            page.wait_for_selector("dialog", state="detached")
            page.click("text=Place a call")
            page.fill("#place-number", f"+1500{TALKS_ON}")
            page.keyboard.press("Enter")
            page.wait_for_selector("dialog", state="detached")
            return page.wait_for_selector("li.call .who").inner_text()

        assert masked(f"+1500{TALKS_ON}") in await in_browser(look)


async def test_the_list_of_processes_keeps_the_focus_and_stays_open_as_its_numbers_change():
    async with serving(api_key=API_KEY) as server:

        def look(page: Any) -> tuple[str, bool, str]:
            sign_in(page, server.url)
            page.evaluate(LOADS, 1)
            page.focus("summary")
            page.keyboard.press("Enter")
            page.wait_for_selector("details[open]")
            page.evaluate(LOADS, 7)
            is_open = page.locator("details[open]").count() == 1
            return (
                page.evaluate("document.activeElement.tagName"),
                is_open,
                page.inner_text("tbody"),
            )

        tag, is_open, text = await in_browser(look)

    assert (tag, is_open) == ("SUMMARY", True)
    assert "7" in text


async def test_a_live_call_that_goes_on_takes_the_focus_from_no_button():
    async with serving(api_key=API_KEY) as server:
        server.http.headers["Authorization"] = f"Bearer {API_KEY}"

        def look(page: Any) -> list[bool]:
            call_sid = here(server.make_call, TALKS_ON).json()["call_sid"]
            sign_in(page, server.url)
            page.goto(f"{server.url}/console#/call/{call_sid}")
            page.wait_for_selector("[data-drawn=live]")
            seen = []
            for focus in (".danger", "summary", ".story li:first-child button", ".tl-mark"):
                page.focus(focus)
                if focus == "summary":
                    page.keyboard.press("Enter")
                lines = page.evaluate(LINES)
                until(page, f"{LINES} > {lines}")
                seen.append(page.evaluate(IS_FOCUSED, focus))
            return seen

        assert await in_browser(look) == [True] * 4


async def test_an_arrow_key_moves_in_a_call_and_with_alt_it_is_the_browsers():
    async with serving(api_key=API_KEY) as server:
        server.http.headers["Authorization"] = f"Bearer {API_KEY}"
        call_sid = (await server.make_call(TALKS_ON)).json()["call_sid"]

        def look(page: Any) -> list[bool]:
            sign_in(page, server.url)
            page.goto(f"{server.url}/console#/call/{call_sid}")
            page.wait_for_selector("[data-drawn=live]")
            return [page.evaluate(GOES_ON, alt) for alt in (False, True)]

        assert await in_browser(look) == [False, True]
