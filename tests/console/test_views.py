"""The console's views, each of which is a module that is loaded when it is first wanted."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.browser import in_browser, sign_in
from tests.support.chromium import needs_chromium
from tests.support.processes import API_KEY
from tests.support.serving import serving

pytestmark = [pytest.mark.sockets, pytest.mark.slow, needs_chromium]
MODULE = "**/latency.js"


async def test_a_view_that_cannot_be_loaded_says_so_and_is_loaded_by_a_button():
    async with serving(api_key=API_KEY) as server:

        def look(page: Any) -> tuple[str, str]:
            page.route(MODULE, lambda route: route.fulfill(status=404))
            sign_in(page, server.url)
            page.evaluate("location.hash = '#/latency'")
            said = page.inner_text(".view-latency .problem")
            page.unroute(MODULE)
            page.click(".view-latency button")
            return said, page.inner_text(".view-latency h1")

        assert await in_browser(look) == ("This page could not be loaded.", "Latency")


async def test_a_language_that_cannot_be_loaded_leaves_the_page_in_english():
    async with serving(api_key=API_KEY) as server:

        def look(page: Any) -> tuple[str, str]:
            page.route("**/es.js", lambda route: route.fulfill(status=404))
            sign_in(page, server.url)
            return page.inner_text("nav"), page.evaluate("document.documentElement.lang")

        words, language = await in_browser(look, locale="es-VE")

    assert "Calls" in words
    assert language == "en"
