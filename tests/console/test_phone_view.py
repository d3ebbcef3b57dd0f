"""The console as a telephone: the whole way from the button to the agent, and back to the page."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from benchmarks.microphone import speech_file
from tests.support.browser import in_browser, sign_in, until
from tests.support.chromium import needs_chromium
from tests.support.processes import API_KEY
from tests.support.serving import serving

pytestmark = [pytest.mark.sockets, pytest.mark.slow, needs_chromium]
HELLO = Path(str(files("server").joinpath("speech", "caller-hello.wav")))
LEVEL = "Number(document.querySelector('.phone .meter.agent').style.getPropertyValue('--level'))"
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
