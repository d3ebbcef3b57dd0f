"""How long does the console take to show a list, a filtered list and one call, of ten thousand?

The server is a whole one on the simulators with its records in SQLite; the browser is Debian's
Chromium (Playwright's Python package). Each figure is from the click to the picture: the request,
the answer, and what the page makes of it. ``--check`` ends with status 1 where half of all are
later than the bounds.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import httpx2
import trio
from rich.table import Table

from benchmarks.microphone import CHROMIUM
from benchmarks.options import Options, machine, machine_line
from benchmarks.percentiles import percentiles
from benchmarks.screens import KEY, ended, made_up, serving
from server import logs
from server.simulators.clock import PatientClock

RECORDS = 10_000
ROUNDS, QUICK_ROUNDS = 20, 5
LIST_MS = CALL_MS = 300.0
"""What a reader takes for at once."""
TALKED = "5550102"
AT_ONCE = 2_000
"""Records that are handed over before they are waited for."""
WAIT_MS = 30_000
SHOWN = ("p50", "p95", "max")
LIST, CALL = "list", "one call"
FILTERS: Mapping[str, tuple[str, str]] = {
    "list, of a number": ("number", f"+1500{TALKED}"),
    "list, of an agent": ("agent", "orders"),
    "list, for a reason": ("reason", "voicemail"),
    "list, at least so long": ("min_duration_s", "200"),
    "list, at least so dear": ("min_cost_usd", "0.05"),
    "list, that had trouble": ("trouble", "true"),
}
"""By what is asked: a field of the form, and what is put in."""

OPEN = """([hash, selector]) => new Promise((done) => {
  const began = performance.now();
  const look = () => {
    if (!document.querySelector(selector)) return;
    watch.disconnect();
    requestAnimationFrame(() => setTimeout(() => done(performance.now() - began))); // it is painted
  };
  const watch = new MutationObserver(look);
  watch.observe(document.body, { childList: true, subtree: true, attributes: true });
  location.hash = hash;
})"""
ASK = """([name, value]) => new Promise((done) => {
  const body = document.querySelector("tbody"), before = body.dataset.read;
  const field = document.querySelector(`#filter-${name}`);
  let began = 0;
  const asks = new PerformanceObserver((list) => { // the page waits until nobody types any more
    const asked = list.getEntries().find((each) => each.name.includes("/calls?"));
    if (asked) began ||= asked.startTime;
  });
  asks.observe({ type: "resource" });
  const watch = new MutationObserver(() => {
    if (body.dataset.read === before) return;
    watch.disconnect();
    requestAnimationFrame(() => setTimeout(() => {
      asks.disconnect();
      done(performance.now() - began);
    }));
  });
  watch.observe(body, { attributes: true });
  if (field.type === "checkbox") field.checked = value !== "";
  else field.value = value;
  field.dispatchEvent(new Event("input", { bubbles: true }));
})"""
"""From the request to the picture; without the time that the page leaves to whoever still types."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark alone is told."""
    parser.add_argument("--records", type=int, default=RECORDS, metavar="N", help="how many calls")
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"end with status 1 if a list takes more than {LIST_MS:g} ms, or a call {CALL_MS:g}",
    )


def run(options: Options) -> dict[str, object]:
    """Fill a server with calls, look at them in a browser, and print how long that took.

    Raises:
        SystemExit: With ``--check``, a bound was broken, or nothing could be measured.
    """
    console, arguments = options.console, options.arguments
    logs.configure(level="ERROR")
    console.print(machine_line(machine(["playwright"])), highlight=False)
    if CHROMIUM is None or importlib.util.find_spec("playwright") is None:
        console.print("Chromium and Playwright are needed", style="red")
        sys.exit(1 if arguments.check else 0)
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    with tempfile.TemporaryDirectory(prefix="offhook-console-") as folder:
        measure = partial(main, Path(folder), arguments.records, rounds)
        figures = trio.run(measure, clock=PatientClock())
    console.print(_table(figures, arguments.records))
    if arguments.check:
        broken = broken_bounds(figures)
        console.print(
            "\n".join(["console gate: SLOW", *broken] if broken else ["console gate: ok"])
        )
        if broken:
            sys.exit(1)
    return {"console": {"records": arguments.records, "ms": figures}}


async def main(folder: Path, records: int, rounds: int) -> dict[str, list[float]]:
    headers = {"Authorization": f"Bearer {KEY}"}
    async with serving(folder) as (app, url):
        kept = app.service.records
        async with httpx2.AsyncClient(
            base_url=url, headers=headers, trust_env=False, verify=False, timeout=60
        ) as http:
            told = await ended(http, TALKED)
        for number, record in enumerate(made_up(told, records - 1, now=time.time()), start=1):
            kept.keep(record)
            if not number % AT_ONCE:
                await kept.wait_saved()
        await kept.wait_saved()
        look = partial(look_at, url, told["call_sid"], rounds)
        return await trio.to_thread.run_sync(look)


def look_at(url: str, call_sid: str, rounds: int) -> dict[str, list[float]]:
    """Open everything so many times, in a thread; returns milliseconds."""
    from playwright.sync_api import sync_playwright

    figures: dict[str, list[float]] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(WAIT_MS)
        page.goto(f"{url}/console")
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector(".connection[data-state=open]")

        def measured(name: str, script: str, asked: Sequence[str]) -> None:
            figures.setdefault(name, []).append(page.evaluate(script, list(asked)))

        for _ in range(rounds):
            measured(LIST, OPEN, ("#/calls", "tbody tr"))
            for name, (field, value) in FILTERS.items():
                measured(name, ASK, (field, value))
                page.evaluate(ASK, [field, ""])
            measured(CALL, OPEN, (f"#/call/{call_sid}", "[data-drawn=ended] .tl-turn"))
            page.evaluate(OPEN, ["#/now", ".view-now"])
        browser.close()
    return figures


def broken_bounds(figures: Mapping[str, Sequence[float]]) -> list[str]:
    """Which bounds do not hold, a sentence each; what was never measured does not.

    Args:
        figures: Milliseconds of each time, by what was opened.
    """
    broken = []
    for name in (LIST, *FILTERS, CALL):
        bound_ms, took_ms = CALL_MS if name == CALL else LIST_MS, figures.get(name)
        if not took_ms:
            broken.append(f"{name}: never seen")
        elif (half_ms := percentiles(took_ms, ("p50",))["p50"]) > bound_ms:
            broken.append(f"{name}: half are later than {half_ms:.0f} ms, not {bound_ms:.0f}")
    return broken


def _table(figures: Mapping[str, Sequence[float]], records: int) -> Table:
    table = Table(title=f"from a click to the picture, of {records:,} calls (ms)")
    table.add_column("")
    for name in (*SHOWN, "times"):
        table.add_column(name, justify="right")
    for name, took_ms in figures.items():
        of = percentiles(took_ms, SHOWN)
        table.add_row(name, *(f"{of[share]:.0f}" for share in SHOWN), str(len(took_ms)))
    return table
