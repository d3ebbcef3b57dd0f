"""Debian's Chromium, driven by Playwright in a thread, while the server runs in the test's loop."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from tests.support.chromium import WAIT_MS, chromium

T = TypeVar("T")
STEP_MS = 40
ALLOWED = (
    "Failed to load resource: the server responded with a status of 401",
    "Failed to load resource: the server responded with a status of 403",
    "Failed to load resource: the server responded with a status of 404",
    "Failed to load resource: the server responded with a status of 422",
)
"""What the browser's console says of answers that a page expects."""
NETWORK = "Failed to load resource: net::ERR_"
PHONE = """globalThis.phones = [];
export class Phone extends EventTarget {
  muted = false;
  state = "idle";
  constructor(wishes) { super(); this.wishes = wishes; phones.push(this); }
  tell(kind, detail) {
    this.state = detail.state ?? this.state;
    this.dispatchEvent(new CustomEvent(kind, { detail }));
  }
  async call() {
    this.tell("state", { state: "preparing" });
    await this.wishes.ask?.({ agent: this.wishes.agent });
    this.tell("state", { state: "talking" });
  }
  mute(on) { this.muted = on; }
  hangUp() { this.tell("state", { state: "over", reason: "hung-up" }); }
}"""
"""What ``/static/phone.js`` offers, as far as other modules know it; all that are made are kept."""


@contextmanager
def browser_page(
    *, microphone: Path | None = None, is_cut: bool = False, **context: Any
) -> Generator[Any]:
    """A page of a new browser, with nothing kept; it has no error of its own at the end.

    Args:
        microphone: A WAV that ``benchmarks.microphone`` has written; None where there is none.
        is_cut: Its connections are cut, so that it complains of the network.
        context: Of the browser, as Playwright has it.
    """
    wrong: list[str] = []
    allowed = (*ALLOWED, NETWORK) if is_cut else ALLOWED

    def told(message: Any) -> None:
        # A server on a busy machine may not be ready for another call: that is what was asked.
        is_unready = "503" in message.text and message.location["url"].endswith("/readyz")
        if message.type == "error" and not message.text.startswith(allowed) and not is_unready:
            wrong.append(message.text)

    with chromium(microphone=microphone) as browser:
        opened = browser.new_context(**{"locale": "en-GB", "timezone_id": "UTC", **context})
        opened.set_default_timeout(WAIT_MS)
        page = opened.new_page()
        page.on("console", told)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        yield page
        page.unroute_all(behavior="ignoreErrors")  # what it asks while it is closed is nobody's
    if wrong:
        pytest.fail(f"the page has errors: {wrong}")


def until(page: Any, expression: str) -> None:
    """Wait until this is true in the page, whose policy lets nobody evaluate text in it."""
    for _ in range(WAIT_MS // STEP_MS):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(STEP_MS)
    pytest.fail(f"it never came to be: {expression}")


async def in_browser(look: Callable[[Any], T], **context: Any) -> T:
    """Have a function look at a page, in a thread; it may do things here by ``here``."""

    def run() -> T:
        with browser_page(**context) as page:
            return look(page)

    return await trio.to_thread.run_sync(run)


def here(function: Callable[..., Any], *arguments: Any) -> Any:
    """Do something in the test's own loop, from the browser's thread."""
    return trio.from_thread.run(function, *arguments)


def sign_in(page: Any, url: str, key: str = "sesame", view: str = "now") -> None:
    """Open the console and sign in."""
    page.goto(f"{url}/console#/{view}")
    page.fill("#key", key)
    page.keyboard.press("Enter")
    page.wait_for_selector(f".view-{view.partition('/')[0]}")


def with_a_made_up_phone(page: Any) -> None:
    """Have pages telephone with :data:`PHONE`, without a microphone, sound or a socket."""
    page.route(
        "**/static/phone.js",
        lambda route: route.fulfill(body=PHONE, content_type="text/javascript"),
    )
