"""``python -m server demo --browser``: a whole simulated server, to be called from a web page."""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Callable
from functools import partial

import trio
from rich.console import Console

from server import logs
from server.app import create_app
from server.demo.embedded import embedded_settings
from server.serving.listening import listen
from server.serving.single import serve
from server.serving.stops import stop_signals


def run_page() -> int:
    """Serve the page and open it, until told to stop; the value is the exit status.

    Raises:
        ConfigurationError: The settings that are left alone do not fit.
    """
    logs.configure(level="ERROR")
    console, stop, signals = Console(), trio.Event(), stop_signals()
    signals.install()

    async def main() -> None:
        with signals.told(stop):
            await serve_page(console, stop, open_page)

    trio.run(main)
    return 0


async def serve_page(console: Console, stop: trio.Event, show: Callable[[str], None]) -> None:
    """Serve until told to stop.

    Args:
        console: Where it is said what to do.
        stop: Set by whoever has had enough.
        show: Shows the page at an address; it may take its time.
    """
    listener = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        app = create_app(embedded_settings(url))
    except BaseException:
        listener.close()
        raise
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, app, listener, stop=stop))
        page = f"{url}/phone"
        console.print(
            f"[bold]offhook[/] on {url}, with a [bold]simulated[/] model: no account, no cost\n"
            f"call it from your browser: [bold]{page}[/] (Ctrl-C ends it)"
        )
        await trio.to_thread.run_sync(show, page, abandon_on_cancel=True)


def open_page(url: str) -> None:
    """Open a page in the user's browser, if there is a screen to show it on."""
    has_screen = sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    if has_screen:  # else a browser of a terminal's would take this one over
        webbrowser.open(url)
