"""How soon after the click a page hears its agent, and how soon one that is interrupted is silent.

A real Chromium, whose microphone is a recording, calls a server of its own on the simulators. What
is heard is looked at where it is played, in frames of 20 ms; the interruption is from the first
frame of the caller's voice at the microphone to the first silent one at the speaker.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.microphone import CHROMIUM, arguments_for, speech_file
from benchmarks.options import Options, machine, machine_line
from benchmarks.percentiles import percentiles
from benchmarks.ports import free_port
from benchmarks.processes import ROOT, running

ROUNDS, QUICK_ROUNDS = 10, 3
READY_TIMEOUT_S = 60.0
WAIT_MS = 60_000
SPEAKS_AFTER_S = 3.2
"""In the middle of the greeting, which is 5 s long, and later than it is protected."""
GREETING_MS, INTERRUPTION_MS = 300.0, 150.0
"""What a caller should have to wait at most, with a session that is there before the click."""
SHOWN = ("p50", "p95", "max")
HELD_TO = "p95"
PREPARED, UNPREPARED = "prepared", "not prepared"
CALL = """async ({quality, prepared, loud}) => {
  const { Phone } = await import("/static/phone.js");
  const phone = new Phone({ quality });
  const state = (wanted) => new Promise((done) => phone.addEventListener("state",
    ({ detail }) => detail.state === wanted && done()));
  const levels = [];
  if (prepared) {
    await phone.prepare();
    await new Promise((done) => setTimeout(done, 700)); // the greeting is made
  }
  const clicked = performance.now();
  let heardAt = 0;
  const interrupted = new Promise((done) => phone.addEventListener("level", ({ detail }) => {
    levels.push(detail);
    if (!heardAt && detail.played > loud) heardAt = performance.now();
    const began = levels.findIndex(({ heard, played }) => heard > loud && played >= 0);
    const quiet = levels.slice(-15).every(({ played }) => played < 0.01);
    if (began >= 0 && levels.length > began + 25 && quiet) done(began);
  }));
  await phone.call();
  const began = await interrupted;
  const last = levels.findLastIndex(({ played }) => played > 0.01);
  const wasHeard = levels.slice(Math.max(0, began - 15), began).some(({ played }) => played > loud);
  phone.hangUp();
  return {
    greeting_ms: heardAt - clicked,
    interruption_ms: wasHeard ? Math.max(0, 1000 * (levels[last].at - levels[began].at)) : null,
  };
}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark alone is told."""
    parser.add_argument("--rounds", type=int, metavar="N", help="calls of each kind")
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"end with status 1 if {HELD_TO} of a greeting that was prepared is later than "
        f"{GREETING_MS:g} ms, or of an interruption than {INTERRUPTION_MS:g} ms",
    )


def run(options: Options) -> dict[str, object]:
    """Call from a page a few times in each way, and print what it took.

    Raises:
        SystemExit: With ``--check``, a bound was broken, or nothing could be measured.
    """
    console, checks = options.console, options.arguments.check
    facts = machine(["playwright"])
    console.print(machine_line(facts), highlight=False)
    rounds = options.arguments.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    missing = ""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing = "Playwright is needed: pip install playwright"
    if CHROMIUM is None:
        missing = "there is no chromium on the PATH (Debian's package chromium)"
    if missing:
        console.print(missing, style="red")
        if checks:
            sys.exit(1)
        return {}
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory, _server(Path(directory)) as url:
        words = ROOT / "server" / "speech" / "caller-interrupt.wav"
        microphone = speech_file(
            Path(directory) / "caller.wav", speech=words, before_s=SPEAKS_AFTER_S, after_s=120.0
        )
        with sync_playwright() as playwright:
            for quality in ("telephone", "wide"):
                for prepared in (True, False):
                    name = f"{quality}, {PREPARED if prepared else UNPREPARED}"
                    figures[name] = calls = []
                    for _ in range(rounds):  # a browser each: the microphone begins with it
                        browser = playwright.chromium.launch(
                            executable_path=CHROMIUM, args=arguments_for(microphone)
                        )
                        with contextlib.closing(browser):
                            page = browser.new_page()
                            page.set_default_timeout(WAIT_MS)
                            page.goto(f"{url}/phone")
                            what = {"quality": quality, "prepared": prepared, "loud": 0.05}
                            calls.append(page.evaluate(CALL, what))
    console.print(_table(figures, rounds))
    if checks:
        broken = broken_bounds(figures)
        console.print(
            "\n".join(["browser gate: SLOW", *broken] if broken else ["browser gate: ok"])
        )
        if broken:
            sys.exit(1)
    return {"browser": figures}


def broken_bounds(figures: Mapping[str, Sequence[Mapping[str, float | None]]]) -> list[str]:
    """Which bounds do not hold, a sentence each; what was never measured does not.

    Args:
        figures: What was measured of each call, by the kind of call.
    """
    broken = []
    for name, calls in figures.items():
        for figure, most_ms in (("greeting_ms", GREETING_MS), ("interruption_ms", INTERRUPTION_MS)):
            if figure == "greeting_ms" and name.endswith(UNPREPARED):
                continue  # the model's session is only opened then
            measured = [value for call in calls if (value := call[figure]) is not None]
            what = f"{figure.removesuffix('_ms')} of a call ({name})"
            if not measured:
                broken.append(f"{what}: not measured")
                continue
            found = percentiles(measured, (HELD_TO,), digits=1)[HELD_TO]
            if found > most_ms:
                broken.append(f"{what}: {HELD_TO} is {found:g} ms, at most {most_ms:g}")
    return broken


@contextlib.contextmanager
def _server(directory: Path) -> Generator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {"PUBLIC_URL": url, "DATABASE_URL": "sqlite://", "LOG_LEVEL": "ERROR"}
    with running(
        "server",
        "--port",
        str(port),
        environment=environment,
        directory=directory,
        stderr=subprocess.DEVNULL,
    ):
        give_up_at = time.monotonic() + READY_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/readyz", timeout=5):
                break
            if time.monotonic() > give_up_at:
                raise RuntimeError("the server did not come up")
            time.sleep(0.1)
        yield url


def _table(figures: dict[str, Any], rounds: int) -> Table:
    table = Table(
        "call",
        *(f"greeting {name}" for name in SHOWN),
        *(f"interruption {name}" for name in SHOWN),
        title=f"milliseconds, {rounds} calls of each kind; wanted: {GREETING_MS:.0f} after the "
        f"click if prepared, {INTERRUPTION_MS:.0f} for an interruption",
        title_justify="left",
    )
    for name, calls in figures.items():
        cells = []
        for figure in ("greeting_ms", "interruption_ms"):
            values = [call[figure] for call in calls if call[figure] is not None]
            found = percentiles(values, SHOWN, digits=0)
            cells += [f"{found[place]:.0f}" if found else "-" for place in SHOWN]
        table.add_row(name, *cells)
    return table
