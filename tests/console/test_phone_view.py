"""The console as a telephone: the whole way from the button to the agent, and back to the page."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from benchmarks.microphone import speech_file
from tests.support.browser import in_browser, sign_in, until, with_a_made_up_phone
from tests.support.chromium import needs_chromium
from tests.support.processes import API_KEY
from tests.support.serving import serving

pytestmark = [pytest.mark.sockets, pytest.mark.slow, needs_chromium]
HELLO = Path(str(files("server").joinpath("speech", "caller-hello.wav")))
LEVEL = "Number(document.querySelector('.phone .meter.agent').style.getPropertyValue('--level'))"
PRESSED = "document.querySelector('[aria-pressed]').ariaPressed"
LEAVE = "location.hash = '#/health'"
LINES = "document.querySelectorAll('.story li').length"


async def test_somebody_who_is_signed_in_talks_with_an_agent_and_sees_it(tmp_path):
    microphone = speech_file(tmp_path / "hello.wav", speech=HELLO, before_s=6.0, after_s=60.0)
    database = f"sqlite:///{tmp_path}/calls.db"
    settings = {"api_key": API_KEY, "recordings_dir": tmp_path, "database_url": database}
    async with serving(**settings) as server:

        def look(page: Any) -> tuple[str, int, int, str, str]:
            sign_in(page, server.url, view="phone")
            page.click("button.big.primary:enabled")
            page.wait_for_selector(".phone-state[data-state=talking]")
            until(page, f"{LEVEL} > 0.05")
            page.wait_for_selector(".timeline[data-drawn=live]")
            before = page.evaluate(LINES)
            until(page, f"{LINES} > {before}")
            after = page.evaluate(LINES)
            call_sid = page.get_attribute("a[download$='.json']", "download")
            page.click(".phone >> text=Hang up")
            page.wait_for_selector(".phone-state[data-state=over]")
            page.wait_for_selector(".timeline[data-drawn=ended]")
            return call_sid.removesuffix(".json"), before, after, page.url, page.title()

        call_sid, before, after, url, title = await in_browser(look, microphone=microphone)
        server.http.headers["Authorization"] = f"Bearer {API_KEY}"
        record = (await server.http.get(f"/calls/{call_sid}")).json()

    assert after > before
    assert (record["state"], record["reason"]) == ("ended", "caller-hung-up")
    assert record["agent_heard_s"] > 0
    assert call_sid not in url + title


async def test_a_call_begins_unmuted_and_the_button_says_so_whatever_the_one_before_was():
    async with serving(api_key=API_KEY) as server:

        def look(page: Any) -> list[tuple[str, bool]]:
            with_a_made_up_phone(page)
            page.route("**/calls/browser", lambda route: route.fulfill(json={}))
            sign_in(page, server.url, view="phone")
            seen = []

            def note() -> None:
                seen.append((page.evaluate(PRESSED), page.evaluate("phones.at(-1).muted")))

            for _ in range(2):
                page.click("button.big.primary:enabled")
                page.wait_for_selector("[data-state=talking]")
                note()
                page.click("text=Mute")
                note()
                page.click(".phone >> text=Hang up")
                page.wait_for_selector("[data-state=over]")
            return seen

        seen = await in_browser(look)

    assert seen == [("false", False), ("true", True)] * 2


async def test_a_button_that_is_pressed_looks_pressed():
    async with serving(api_key=API_KEY) as server:

        def look(page: Any) -> tuple[str, str]:
            with_a_made_up_phone(page)
            page.route("**/calls/browser", lambda route: route.fulfill(json={}))
            sign_in(page, server.url, view="phone")
            page.click("button.big.primary:enabled")
            page.wait_for_selector("[data-state=talking]")
            colour = "getComputedStyle(document.querySelector('[aria-pressed]')).borderColor"
            before = page.evaluate(colour)
            page.click("text=Mute")
            return before, page.evaluate(colour)

        before, after = await in_browser(look)

    assert before != after


WHY = "the microphone is in use elsewhere"
FAIL = f"""() => {{
  phones[0].tell("problem", {{ message: "{WHY}" }});
  phones[0].tell("state", {{ state: "over", reason: "failed" }});
}}"""
LAST_WORDS = """() => {
  phones[1].tell("say", { text: "Goodbye.", language: "en" });
  phones[1].tell("state", { state: "over", reason: "failed" });
}"""


async def test_why_a_call_failed_stays_to_be_read_until_the_next_one():
    async with serving(api_key=API_KEY) as server:

        def look(page: Any) -> list[str]:
            with_a_made_up_phone(page)
            page.route("**/calls/browser", lambda route: route.fulfill(json={}))
            sign_in(page, server.url, view="phone")
            seen = []
            for fail in (FAIL, LAST_WORDS):
                page.click("button.big.primary:enabled")
                page.wait_for_selector("[data-state=talking]")
                seen.append(page.inner_text(".phone [role=alert]"))
                page.evaluate(fail)
                page.wait_for_selector("[data-state=over]")
                seen.append(page.inner_text(".phone [role=alert]"))
            return seen

        assert await in_browser(look) == ["", WHY, "", "Goodbye."]


async def test_a_call_that_is_made_when_its_view_was_left_is_not_shown_and_takes_no_keys():
    async with serving(api_key=API_KEY) as server:

        def look(page: Any) -> tuple[bool, list[str]]:
            asked: list[Any] = []
            with_a_made_up_phone(page)
            page.route("**/calls/browser", lambda route: asked.append(route))
            sign_in(page, server.url, view="phone")
            with page.expect_request("**/calls/browser"):
                page.click("button.big.primary:enabled")
            page.evaluate("location.hash = '#/health'")
            page.wait_for_selector(".view-health h1")
            shown: list[str] = []
            page.on("request", lambda request: shown.append(request.url))
            asked[0].fulfill(json={"call_sid": "BR" + "0" * 32})
            until(page, "phones[0].state === 'talking'")
            key = "new KeyboardEvent('keydown', { key: ' ', bubbles: true, cancelable: true })"
            goes_on = page.evaluate(f"document.body.dispatchEvent({key})")
            return goes_on, [url for url in shown if "/calls/BR" in url]

        assert await in_browser(look) == (True, [])


@pytest.mark.parametrize("end", ["document.querySelector('.phone .danger').click()", LEAVE])
async def test_another_language_ends_no_call_which_is_still_shown_and_ended(end):
    async with serving(api_key=API_KEY) as server:

        def look(page: Any) -> tuple[str, str, int]:
            with_a_made_up_phone(page)
            made = {"call_sid": "BR" + "0" * 32}
            page.route("**/calls/browser", lambda route: route.fulfill(json=made))
            sign_in(page, server.url, view="phone")
            page.click("button.big.primary:enabled")
            page.wait_for_selector("[data-state=talking]")
            page.click("text=Mute")
            page.select_option("select[aria-label=Language]", "es")
            page.wait_for_selector("select[aria-label=Idioma]", state="attached")
            page.wait_for_selector(".phone-state[data-state=talking]")
            page.wait_for_selector(".below .problem:not(:empty)")  # of the call that there is not
            seen = page.evaluate("phones[0].state"), page.evaluate(PRESSED)
            page.evaluate(end)
            until(page, "phones[0].state === 'over'")
            return *seen, page.evaluate("phones.length")

        assert await in_browser(look) == ("talking", "true", 1)
