"""The lists of calls and of latencies: they show what they say, whatever comes when."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.browser import STEP_MS, in_browser, sign_in, until
from tests.support.chromium import WAIT_MS, needs_chromium
from tests.support.processes import API_KEY
from tests.support.serving import serving

pytestmark = [pytest.mark.sockets, pytest.mark.slow, needs_chromium]
PAGE = 50
TELL = """async (call) => {
  const { live } = await import("/static/console/live.js");
  live.dispatchEvent(new CustomEvent("calls", { detail: call }));
}"""
READINGS = "Number(document.querySelector('tbody').dataset.read)"
ROWS = "document.querySelectorAll('tbody tr').length"


def call(number: int, **facts: Any) -> dict[str, Any]:
    """A call of a list, the newest with the highest number."""
    usual = {"state": "live", "reason": None, "agent": "sales", "direction": "inbound"}
    names = {"call_sid": f"CA{number}", "number": "+15005550101", "created_at": 1e9 + number}
    return {**usual, **names, "duration_s": 1.0, **facts}


def calls_of(count: int) -> Any:
    """Answers ``GET /calls`` as a server with so many calls."""

    def answer(route: Any) -> None:
        query = dict(part.split("=") for part in route.request.url.partition("?")[2].split("&"))
        first, limit = int(query.get("before", count)), int(query["limit"])
        last = max(0, first - limit)
        found = [call(each) for each in range(first - 1, last - 1, -1)]
        route.fulfill(json={"calls": found, "next": str(last) if last else None, "complete": True})

    return answer


@pytest.mark.parametrize("detail", [call(99, state="ended", reason="drained"), None])
async def test_a_list_of_more_than_a_page_is_read_again_when_something_happens(detail):
    async with serving(api_key=API_KEY) as server:

        def look(page: Any) -> str:
            page.route("**/calls?*", calls_of(60))
            sign_in(page, server.url, view="calls")
            until(page, f"{ROWS} === {PAGE}")
            page.route("**/calls?*", calls_of(61))
            page.evaluate(TELL, detail)
            page.wait_for_selector("[data-call=CA60]")
            return page.locator("tbody tr").first.get_attribute("data-call")

        assert await in_browser(look) == "CA60"


async def test_a_list_that_was_continued_is_kept_and_of_it_only_what_is_told_of_changes():
    async with serving(api_key=API_KEY) as server:

        def look(page: Any) -> tuple[int, int, bool]:
            page.route("**/calls?*", calls_of(60))
            sign_in(page, server.url, view="calls")
            until(page, f"{ROWS} === {PAGE}")
            page.click("button:has-text('More')")
            until(page, f"{ROWS} === 60")
            page.focus("[data-call=CA5] a")
            page.evaluate(TELL, call(5, state="ended", reason="drained"))
            page.wait_for_selector("[data-call=CA5] .faint")
            is_focused = page.evaluate("document.activeElement.matches('[data-call=CA5] a')")
            rows, readings = page.evaluate(ROWS), page.evaluate(READINGS)
            page.evaluate(TELL, None)
            until(page, f"{READINGS} > {readings}")
            return rows, page.evaluate(ROWS), is_focused

        assert await in_browser(look) == (60, 60, True)


def latencies(agent: str) -> dict[str, Any]:
    facts = {"call_sid": "CA1", "agent": agent, "model": "m", "created_at": 1e9}
    times = {"replies_ms": [1.0], "answer_ms": 1.0, "slowest_clear_ms": 1.0}
    return {"calls": [{**facts, **times}]}


def wait_asked(page: Any, asked: list[Any], count: int) -> None:
    """Wait until the page has asked so often."""
    for _ in range(WAIT_MS // STEP_MS):
        if len(asked) >= count:
            return
        page.wait_for_timeout(STEP_MS)
    pytest.fail(f"the page has asked {len(asked)} times, not {count}")


async def test_a_slow_answer_for_another_span_is_not_shown_for_the_one_that_is_chosen():
    async with serving(api_key=API_KEY) as server:

        def look(page: Any) -> str:
            asked: list[Any] = []
            page.route("**/latency?*", lambda route: asked.append(route))
            sign_in(page, server.url, view="latency")
            wait_asked(page, asked, 1)
            page.select_option("#span", "1")
            wait_asked(page, asked, 2)
            asked[1].fulfill(json=latencies("newer"))
            page.wait_for_selector("tbody th:has-text('newer')")
            asked[0].fulfill(json=latencies("older"))
            page.evaluate("fetch('agents').then((answer) => answer.text())")
            return page.inner_text("tbody")

        text = await in_browser(look)

    assert "newer" in text
    assert "older" not in text


async def test_latencies_that_cannot_be_read_leave_none_of_another_span_and_come_back():
    async with serving(api_key=API_KEY) as server:

        def look(page: Any) -> tuple[int, str]:
            page.route("**/latency?*", lambda route: route.fulfill(json=latencies("sales")))
            sign_in(page, server.url, view="latency")
            page.wait_for_selector("tbody th")
            refusal = {"message": "no such span"}
            page.route("**/latency?*", lambda route: route.fulfill(status=422, json=refusal))
            page.select_option("#span", "1")
            page.wait_for_selector("[role=alert]:has-text('no such span')")
            shown = page.locator("tbody th").count()
            page.route("**/latency?*", lambda route: route.fulfill(json=latencies("sales")))
            page.select_option("#span", "30")
            page.wait_for_selector("tbody th")
            return shown, page.inner_text("[role=alert]")

        assert await in_browser(look) == (0, "")
