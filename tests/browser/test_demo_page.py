"""The demonstration in a browser: a whole simulated server, and the page to call it from."""

from __future__ import annotations

import io
import urllib.request

import pytest
import trio
from rich.console import Console

from server.demo.page import open_page, serve_page

pytestmark = pytest.mark.sockets


async def test_the_demonstration_serves_its_page_until_it_is_told_to_stop():
    stop, shown, console = trio.Event(), [], Console(file=io.StringIO(), width=200)

    def show(url: str) -> None:
        with urllib.request.urlopen(url, timeout=60) as answer:
            shown.append((url, answer.read()))
        trio.from_thread.run_sync(stop.set)

    with trio.fail_after(60):
        await serve_page(console, stop, show)

    ((url, page),) = shown
    assert url.endswith("/phone")
    assert b"phone-page.js" in page
    assert url in console.file.getvalue()


def test_no_browser_of_a_terminals_is_opened_where_there_is_no_screen(monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)

    open_page("http://127.0.0.1/phone")
    monkeypatch.setenv("DISPLAY", ":0")
    open_page("http://127.0.0.1/phone")

    assert opened == ["http://127.0.0.1/phone"]
