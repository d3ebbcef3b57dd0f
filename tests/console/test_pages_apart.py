"""Several pages of one browser, which share its cookie and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from server.web.keys import hash_key
from tests.support.browser import in_browser, sign_in
from tests.support.chromium import needs_chromium
from tests.support.processes import API_KEY
from tests.support.serving import serving

pytestmark = [pytest.mark.sockets, pytest.mark.slow, needs_chromium]
TALKS_ON = "5550108"


def place_a_call(page: Any) -> None:
    page.click("text=Place a call")
    page.fill("#place-number", f"+1500{TALKS_ON}")
    page.click("dialog button[value=yes]")


async def test_a_page_can_change_something_after_another_has_signed_in_again():
    async with serving(api_key=API_KEY) as server:

        def look(page: Any) -> int:
            asked: list[str] = []
            page.on("request", lambda request: asked.append(request.url))
            sign_in(page, server.url)
            page.context.clear_cookies()
            sign_in(page.context.new_page(), server.url)
            place_a_call(page)
            page.wait_for_selector("li.call .who")
            return sum(url.endswith("/make-call") for url in asked)

        assert await in_browser(look) == 2


async def test_what_is_refused_is_not_asked_again_as_somebody_else():
    keys = {"api_key": API_KEY, "api_keys": {"other": hash_key("another")}}
    async with serving(**keys) as server:

        def look(page: Any) -> int:
            asked: list[str] = []
            page.on("request", lambda request: asked.append(request.url))
            sign_in(page, server.url)
            page.context.clear_cookies()
            sign_in(page.context.new_page(), server.url, "another")
            place_a_call(page)
            page.wait_for_selector(".who:has-text('other')")
            return sum(url.endswith("/make-call") for url in asked)

        assert await in_browser(look) == 1
