"""What does the console look like: every view, light and dark, and on a telephone's screen?

The server is a whole one on the simulators, with calls of a week that were made up and some that
really go on; the browser is Debian's Chromium (Playwright's Python package: ``pip install
playwright``), whose microphone is a recording. ``--plots docs/images`` writes what the pages show,
``--views phone`` only those.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import tempfile
import time
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import trio

from benchmarks.microphone import CHROMIUM, arguments_for, speech_file
from benchmarks.options import Options
from server import logs
from server.app import OffhookApp, create_app
from server.demo.embedded import embedded_settings
from server.serving.listening import listen
from server.serving.single import serve
from server.simulators.clock import PatientClock
from server.simulators.gemini.scripts import ANSWERS, FunctionCall, ModelScript

KEY = "sesame"
LIVE = ("5550108", "5550101", "5550108", "5550120", "5550108", "5550102", "5550108", "5550108")
APART_S = 1.7
"""From one live call to the next, so that they are not all at the same word."""
AGENTS = ("default", "orders", "reception")
BEGINNINGS = ("1500", "5841", "3491")
MADE_UP = 160
COLOURS = 224
WEEK_S = 7 * 86_400.0
WIDE, NARROW = {"width": 1240, "height": 800}, {"width": 390, "height": 780}
VIEWS = ("sign-in", "now", "calls", "call", "latency", "phone", "health")
NARROW_VIEWS = ("now", "call")
EVENTFUL = ModelScript(
    functions=(FunctionCall("look_up_order", {"number": 7}),),
    function_turns=frozenset({2}),
    silent_turns=frozenset({4}),
)
"""How the model behaves in the call that is shown: it runs a function, and then does not answer."""
HELLO = Path(__file__).parent.parent / "server/speech/caller-hello.wav"
TALK_MS = 12_000
"""Of the call that the page itself makes, before its picture is taken."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    own = parser.add_argument_group("screens")
    own.add_argument(
        "--views",
        type=lambda words: words.split(","),
        default=list(VIEWS),
        metavar="NAME,NAME…",
        help=f"which (default: {','.join(VIEWS)})",
    )


def made_up(record: Mapping[str, Any], count: int, *, now: float) -> list[dict[str, Any]]:
    """Records of calls that were never made, like one that was."""
    chance = random.Random(7)
    found = []
    for number in range(count):
        ended = chance.choices(
            ("caller-hung-up", "agent-hung-up", "no-answer", "busy", "voicemail", "model-silent"),
            (60, 20, 8, 4, 5, 3),
        )[0]
        talked = ended not in ("no-answer", "busy")
        slow = chance.random() < 0.03
        agent = chance.choice(AGENTS)

        def around(value: float, slow: bool = slow) -> float:
            return round(value * chance.lognormvariate(0.0, 0.22) * (2.5 if slow else 1.0), 1)

        replies = [
            {
                "turn": 2 + turn,
                "at_s": 5.0 * turn,
                "vad_ms": 515.0,
                "model_ms": around(330),
                "codec_ms": 0.1,
                "playout_ms": around(20),
            }
            for turn in range(chance.randint(2, 14) if talked else 0)
        ]
        for reply in replies:
            reply["total_ms"] = round(sum(v for k, v in reply.items() if k.endswith("_ms")), 1)
        duration_s = round(chance.lognormvariate(4.3, 0.7), 1) if talked else 0.0
        timings = dict(record["timings"]) | {
            "answer_to_first_audio_ms": around(140) if talked else None,
            "interrupt_to_clear": {"count": int(talked), "max_ms": around(1.6)},
        }
        usd = round(duration_s * 0.00035, 5)
        found.append(
            dict(record)
            | {
                "call_sid": f"CA{chance.getrandbits(128):032x}",
                "number": f"+{chance.choice(BEGINNINGS)}*****{chance.randint(10, 99)}",
                "created_at": now - 3_600.0 - WEEK_S * number / count * chance.uniform(0.98, 1.0),
                "direction": chance.choice(("inbound", "outbound", "outbound")),
                "agent": agent,
                "model": "gemini-3.8-live" if agent != "reception" else "gemini-3.1-flash-live",
                "reason": ended,
                "duration_s": duration_s,
                "replies": replies,
                "timings": timings,
                "cost": dict(record["cost"]) | {"known_usd": usd},
                "recording": None,
            }
        )
    return found


@asynccontextmanager
async def serving(folder: Path, **settings: Any) -> AsyncGenerator[tuple[OffhookApp, str]]:
    """A server on the simulators, and its address."""
    listener = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    given: dict[str, Any] = {
        "api_key": KEY,
        "recordings_dir": folder,
        "database_url": f"sqlite:///{folder}/screens.db",
        "tools": ("server.demo.tools",),
        "simulated_ring_s": 0.5,
        "reply_timeout_s": 2.0,
        "rung_timeout_s": 1.5,
        "carrier_minute_usd": 0.014,
        "close_timeout_s": 1.0,
        **settings,
    }
    app, stop = create_app(embedded_settings(url, **given)), trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, app, listener, stop=stop))
        yield app, url
        stop.set()


async def ended(http: httpx2.AsyncClient, number: str) -> dict[str, Any]:
    """Call a number of the simulators', and give its record when that is over."""
    made = await http.post("/make-call", json={"destination_number": f"+1500{number}"})
    call_sid = made.json()["call_sid"]
    while True:
        record: dict[str, Any] = (await http.get(f"/calls/{call_sid}")).json()
        if record["state"] == "ended":
            return record
        await trio.sleep(0.2)


async def main(folder: Path, out: Path, wanted: Collection[str]) -> list[str]:
    headers = {"Authorization": f"Bearer {KEY}"}
    async with serving(folder) as (app, url):
        service = app.service
        async with httpx2.AsyncClient(
            base_url=url, headers=headers, trust_env=False, verify=False, timeout=60
        ) as http:
            assert service.accounts.simulated_gemini is not None
            service.accounts.simulated_gemini.script = EVENTFUL
            told = await ended(http, "5550102")
            service.accounts.simulated_gemini.script = ANSWERS
            for record in made_up(told, MADE_UP, now=time.time()):
                service.records.keep(record)
            await service.records.wait_saved()
            for number in LIVE:
                await http.post("/make-call", json={"destination_number": f"+1500{number}"})
                await trio.sleep(APART_S)
            heard = speech_file(folder / "heard.wav", speech=HELLO, before_s=5.0, after_s=2.0)
            take = partial(shoot, url, told["call_sid"], out, wanted, heard)
            return await trio.to_thread.run_sync(take)


def make_small(path: Path) -> None:
    """Leave a picture as few colours as it needs, where Pillow is there to do it."""
    if importlib.util.find_spec("PIL") is None:
        return
    from PIL import Image

    with Image.open(path) as image:
        image.convert("RGB").quantize(COLOURS).save(path, optimize=True)


def shoot(url: str, call_sid: str, out: Path, wanted: Collection[str], heard: Path) -> list[str]:
    """Take the pictures, in a thread; returns their names."""
    from playwright.sync_api import sync_playwright

    written = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments_for(heard))
        sizes = [("", WIDE, VIEWS, light) for light in ("light", "dark")]
        sizes.append(("-phone", NARROW, NARROW_VIEWS, "light"))
        for name, size, views, light in sizes:
            context = browser.new_context(
                viewport=size, color_scheme=light, locale="en-GB", timezone_id="UTC"
            )
            page = context.new_page()

            def take(view: str, page: Any = page, name: str = name, light: str = light) -> None:
                path = out / f"console-{view}{name}-{light}.png"
                page.screenshot(path=path)
                make_small(path)
                written.append(path.name)

            page.goto(f"{url}/console")
            page.wait_for_selector("#key")
            if "sign-in" in views and "sign-in" in wanted:
                take("sign-in")
            page.fill("#key", KEY)
            page.keyboard.press("Enter")
            page.wait_for_selector("nav a[aria-current]")
            for view in (view for view in views if view in wanted and view != "sign-in"):
                page.goto(f"{url}/console#/{view}" + (f"/{call_sid}" if view == "call" else ""))
                page.wait_for_selector(f".view-{view}")
                if view == "now":
                    page.wait_for_selector("[data-turn=agent], [data-turn=caller]")
                if view == "call":
                    page.wait_for_selector("[data-drawn]")
                    page.keyboard.press("ArrowRight")
                    page.keyboard.press("ArrowRight")
                if view == "phone":
                    page.click("button.big.primary:enabled")
                    page.wait_for_selector(".phone-state[data-state=talking]")
                    page.wait_for_timeout(TALK_MS)
                page.wait_for_timeout(1_500)
                take(view)
            context.close()
        browser.close()
    return written


def run(options: Options) -> dict[str, object]:
    logs.configure(level="ERROR")
    if CHROMIUM is None:
        raise SystemExit("there is no Chromium here: apt-get install chromium")
    with tempfile.TemporaryDirectory(prefix="offhook-screens-") as folder:
        out = options.plots or Path(folder)
        # Every end of these calls is in this process: what is late is late at all of them.
        wanted = options.arguments.views
        written = trio.run(main, Path(folder), out, wanted, clock=PatientClock())
    options.console.print(f"{len(written)} pictures" + ("" if options.plots else "; keep: --plots"))
    return {"pictures": written}
