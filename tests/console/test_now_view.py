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
REPEAT = """
globalThis.repeats = [];
const { setTimeout: later } = globalThis;
globalThis.setTimeout = (act, ms, ...facts) => {
  if (ms < 3_000) return later(act, ms, ...facts);
  repeats.push({ act, ms });
};
globalThis.setInterval = () => 0;"""
"""A page that does what is to wait for long when :data:`AGAIN` says so, and takes no channel for
dead."""
AGAIN = "repeats.at(-1).act()"
HIDE = """
globalThis.isHidden = true;
Object.defineProperty(document, "hidden", { get: () => isHidden });"""
SHOW = "isHidden = false; document.dispatchEvent(new Event('visibilitychange'))"
HEAR_LOADS = """async () => {
  const { live } = await import("/static/console/live.js");
  globalThis.loads = 0;
  live.addEventListener("load", () => { loads += 1; });
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


async def test_lists_that_stay_incomplete_are_read_ever_more_seldom_and_told_of_if_they_say_more():
    async with serving(api_key=API_KEY) as server:
        server.http.headers["Authorization"] = f"Bearer {API_KEY}"
        await server.make_call(TALKS_ON)
        [found] = (await server.http.get("/calls?state=live")).json()["calls"]

        def look(page: Any) -> tuple[list[int], list[int], int]:
            listed = [found]
            page.add_init_script(WATCH + REPEAT)
            sign_in(page, server.url)
            page.wait_for_selector("li.call")
            page.route(
                "**/calls?*",
                lambda route: route.fulfill(
                    json={"calls": listed, "next": None, "complete": False}
                ),
            )
            page.evaluate(GAP)
            until(page, "repeats.length === 1")
            page.evaluate(HEAR_LISTS)
            for readings in range(2, 9):
                page.evaluate(AGAIN)
                until(page, f"repeats.length === {readings}")
            lists = [page.evaluate("lists")]
            listed.append({**found, "call_sid": "CA99"})
            page.evaluate(AGAIN)
            until(page, "repeats.length === 9")
            lists.append(page.evaluate("lists"))
            return page.evaluate("repeats.map(({ ms }) => ms / 1000)"), lists, page.evaluate(ROWS)

        pauses, lists, rows = await in_browser(look)
        assert pauses == [3, 6, 12, 24, 48, 60, 60, 60, 60]
        assert (lists, rows) == ([0, 1], 2)


async def test_a_call_that_nobody_names_any_more_is_dropped_though_no_list_is_complete():
    async with serving(api_key=API_KEY) as server:
        server.http.headers["Authorization"] = f"Bearer {API_KEY}"
        named_by_news = (await server.make_call(TALKS_ON)).json()["call_sid"]
        [found] = (await server.http.get("/calls?state=live")).json()["calls"]

        def look(page: Any) -> set[str]:
            listed: list[str] = []
            page.add_init_script(WATCH + REPEAT)
            sign_in(page, server.url)
            page.wait_for_selector("li.call")
            page.evaluate(HEAR_LOADS)
            page.route(
                "**/calls?*",
                lambda route: route.fulfill(
                    json={
                        "calls": [{**found, "call_sid": sid} for sid in listed],
                        "next": None,
                        "complete": False,
                    }
                ),
            )
            listed[:] = ["CA-dead", "CA-listed"]
            page.evaluate(GAP)
            until(page, "repeats.length === 1")
            for readings, names in enumerate(([], ["CA-listed"], []), start=2):
                listed[:] = names
                page.evaluate(AGAIN)
                until(page, f"repeats.length === {readings}")
                page.evaluate("ahead_ms += 60_000; loads = 0")
                until(page, "loads > 0")
            return {row.get_attribute("data-call") for row in page.locator("li.call").all()}

        assert await in_browser(look) == {named_by_news, "CA-listed"}


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


async def test_a_page_in_the_background_opens_no_channel_until_somebody_looks_at_it():
    async with serving(api_key=API_KEY) as server:

        def look(page: Any) -> list[int]:
            page.add_init_script(WATCH + HIDE)
            sign_in(page, server.url)
            opened = [page.evaluate("channels.length")]
            page.evaluate(SHOW)
            page.wait_for_selector(".connection[data-state=open]")
            return [*opened, page.evaluate("channels.length")]

        assert await in_browser(look) == [0, 1]


@pytest.mark.parametrize(
    ("button", "path"), [("li.call button", "**/hang-up"), ("text=Drain", "**/drain")]
)
async def test_why_something_was_not_done_is_there_to_be_read_until_it_is_tried_again(button, path):
    async with serving(api_key=API_KEY) as server:
        server.http.headers["Authorization"] = f"Bearer {API_KEY}"
        await server.make_call(TALKS_ON)

        def look(page: Any) -> list[str]:
            answers = [
                {"status": 404, "json": {"error": "no", "message": "It is not done."}},
                {"json": {}},
            ]
            page.route(path, lambda route: route.fulfill(**answers.pop(0)))
            sign_in(page, server.url)
            seen = []
            for said in ("It is not done.", ""):
                page.click(button)
                page.click("dialog button[value=yes]")
                page.wait_for_selector("dialog", state="detached")
                until(page, f"document.querySelector('main .problem')?.textContent === '{said}'")
                seen.append(page.is_visible("main .problem"))
            return seen

        assert await in_browser(look) == [True, False]


async def test_one_form_places_a_call_and_is_there_before_the_agents_are(tmp_path):
    (tmp_path / "orders.toml").write_text('name = "orders"\n')
    async with serving(api_key=API_KEY, agents=tmp_path) as server:

        def look(page: Any) -> tuple[int, int, str]:
            held: list[Any] = []
            page.route("**/agents", lambda route: held.append(route))
            sign_in(page, server.url)
            page.dblclick("text=Place a call")
            page.fill("#place-number", "+1500")
            asked = len(held)
            for route in held:
                route.continue_()
            page.select_option("#place-agent", "orders")
            return asked, page.locator("dialog").count(), page.input_value("#place-number")

        assert await in_browser(look) == (1, 1, "+1500")
