"""A real Chromium, Debian's, driven by Playwright; its microphone is a file.

Playwright's own loop is asyncio's, so everything that uses a page runs in a thread of its own::

    async with serving() as server:
        await trio.to_thread.run_sync(look_at, server.url)

    def look_at(url):
        with chromium() as browser:
            page = browser.new_page()
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.microphone import CHROMIUM, arguments_for
from tests.support.required import is_required

try:
    from playwright.sync_api import Browser, sync_playwright
except ImportError:  # as on a system that Playwright has no driver for
    sync_playwright = None

WHY_NOT = (
    "Playwright is not installed" if sync_playwright is None else "there is no chromium on the PATH"
)
needs_chromium = pytest.mark.skipif(
    (CHROMIUM is None or sync_playwright is None) and not is_required("chromium"), reason=WHY_NOT
)
WAIT_MS = 60_000
"""For anything on a page: the machine may be busy with other tests."""


@contextmanager
def chromium(*, microphone: Path | None = None) -> Generator[Browser]:
    """A browser that plays to nobody.

    Args:
        microphone: A WAV that ``benchmarks.microphone`` has written, heard again and again; None
            for a browser without one.
    """
    assert CHROMIUM is not None, WHY_NOT
    arguments = [] if microphone is None else arguments_for(microphone)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        try:
            yield browser
        finally:
            browser.close()
