"""The console in a real browser: what people see of calls, and what nobody can make it do."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import wave
from array import array
from collections.abc import Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio

from benchmarks.screens import made_up
from server.console import channel
from server.console.pages import FILES
from server.logs import masked
from server.records.database.tables import NOT_WHOLE, SUMMARY
from server.simulators.clock import PatientClock
from server.web.keys import READ, hash_key
from tests.support.browser import (
    browser_page,
    here,
    in_browser,
    sign_in,
    until,
    with_a_made_up_phone,
)
from tests.support.chromium import needs_chromium
from tests.support.processes import API_KEY, NEVER_HANGS_UP, TWO_PROCESSES, server_process
from tests.support.serving import serving

pytestmark = [pytest.mark.sockets, pytest.mark.slow, needs_chromium]
VIEWS = ("now", "calls", "latency", "phone", "health")
INTERRUPTS, TALKS_ON = "5550102", "5550108"
NEAR_S = 0.05
NARROW = {"viewport": {"width": 390, "height": 780}}
KEYS = {"api_key": API_KEY, "api_keys": {"watcher": hash_key("glass") + READ}}


@dataclass(frozen=True)
class Kept:
    """Where a call is kept that was interrupted, recorded and ended."""

    settings: Mapping[str, Any]
    record: Mapping[str, Any]

    @property
    def call_sid(self) -> str:
        return self.record["call_sid"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Kept:
    folder: Path = tmp_path_factory.mktemp("kept")
    settings = {"recordings_dir": folder, "database_url": f"sqlite:///{folder}/calls.db", **KEYS}

    async def call() -> dict[str, Any]:
        async with serving(**settings) as server:
            headers = server.http.headers
            headers["Authorization"] = f"Bearer {API_KEY}"
            call_sid = (await server.make_call(INTERRUPTS)).json()["call_sid"]
            while True:
                record = (await server.http.get(f"/calls/{call_sid}")).json()
                if record["state"] == "ended" and record["status"] == "completed":
                    return record
                await trio.sleep(0.1)

    return Kept(settings, trio.run(call, clock=PatientClock(speed=10.0)))


# -- who is let in ------------------------------------------------------------------------------


async def test_a_key_opens_it_and_nothing_else_does_and_the_page_keeps_nothing_of_it(kept):
    async with serving(**kept.settings) as server:

        def look(page: Any) -> tuple[str, ...]:
            page.goto(f"{server.url}/console")
            page.fill("#key", "nobody's")
            page.keyboard.press("Enter")
            refused = page.wait_for_selector("[role=alert]:not(:empty)").inner_text()
            page.fill("#key", API_KEY)
            page.keyboard.press("Enter")
            page.wait_for_selector(".view-now")
            page.goto(f"{server.url}/console#/call/{kept.call_sid}")
            page.wait_for_selector("[data-drawn]")
            seen = "document.cookie + JSON.stringify({...localStorage, ...sessionStorage})"
            told = page.evaluate(f"{seen} + document.title")
            page.click("text=Sign out")
            page.wait_for_selector("#key")
            page.reload()
            page.wait_for_selector("#key")
            return refused, told

        refused, told = await in_browser(look)

    assert refused == "There is no such key."
    assert API_KEY not in told
    assert kept.record["number"] not in told
    assert "offhook-console" not in told


async def test_a_key_that_may_only_look_is_shown_no_button_that_it_cannot_use(kept):
    async with serving(**kept.settings) as server:

        def look(page: Any) -> tuple[str, int]:
            sign_in(page, server.url, "glass")
            page.wait_for_selector(".connection[data-state=open]")
            frame, buttons = page.inner_text(".side"), page.locator("text=Place a call").count()
            page.goto(f"{server.url}/console#/call/{kept.call_sid}")
            page.wait_for_selector("[data-drawn]")
            return frame, buttons + page.locator(".danger").count()

        frame, buttons = await in_browser(look)

    assert "read only" in frame
    assert buttons == 0


# -- what is shown ------------------------------------------------------------------------------


@pytest.mark.parametrize("light", ["light", "dark"])
async def test_every_view_is_for_everybody_to_use(kept, light):
    from axe_playwright_python.sync_playwright import Axe

    async with serving(**kept.settings) as server:
        server.http.headers["Authorization"] = f"Bearer {API_KEY}"
        made = await server.make_call(TALKS_ON)
        assert made.status_code == 201

        def look(page: Any) -> dict[str, list[str]]:
            found = {}
            page.goto(f"{server.url}/console")
            page.wait_for_selector("#key")
            found["sign"] = violations(page)
            sign_in(page, server.url)
            for view in (*VIEWS, f"call/{kept.call_sid}"):
                page.goto(f"{server.url}/console#/{view}")
                page.wait_for_selector(f".view-{view.partition('/')[0]}")
                if view == "now":
                    page.wait_for_selector("li.call[data-turn=agent], li.call[data-turn=caller]")
                page.wait_for_load_state("networkidle") if view == "latency" else None
                if view.startswith("call/"):
                    page.wait_for_selector("[data-drawn]")
                found[view] = violations(page)
            return found

        def violations(page: Any) -> list[str]:
            said = Axe().run(page).response["violations"]
            return [
                f"{each['id']}: {[node['target'] for node in each['nodes']][:3]}"
                for each in said
                if each["impact"] in ("serious", "critical")
            ]

        found = await in_browser(look, color_scheme=light, bypass_csp=True)

    assert {view: said for view, said in found.items() if said} == {}


async def test_nothing_is_wider_than_a_telephones_screen(kept):
    async with serving(**kept.settings) as server:

        def look(page: Any) -> dict[str, int]:
            sign_in(page, server.url)
            wide = {}
            for view in (*VIEWS, f"call/{kept.call_sid}"):
                page.goto(f"{server.url}/console#/{view}")
                page.wait_for_selector(f".view-{view.partition('/')[0]} h1")
                wide[view] = page.evaluate("document.documentElement.scrollWidth")
            return wide

        wide = await in_browser(look, **NARROW)

    assert {view: width for view, width in wide.items() if width > 390} == {}


async def test_a_call_appears_while_it_lives_and_is_ended_by_a_button(kept):
    async with serving(**kept.settings) as server:
        server.http.headers["Authorization"] = f"Bearer {API_KEY}"

        def look(page: Any) -> tuple[str, str]:
            sign_in(page, server.url)
            page.wait_for_selector(".connection[data-state=open]")
            made = here(server.make_call, TALKS_ON).json()
            row = f"[data-call={made['call_sid']}]"
            page.wait_for_selector(f"{row}[data-turn=agent], {row}[data-turn=caller]")
            until(page, "document.querySelector('.cost').textContent.startsWith('$')")
            page.click(f"{row} button")
            page.click("dialog button[value=yes]")
            page.wait_for_selector(row, state="detached")
            page.keyboard.press("g")
            page.keyboard.press("c")
            page.wait_for_selector(f"{row} td")
            return made["call_sid"], page.inner_text(row)

        call_sid, row = await in_browser(look)
        record = (await server.http.get(f"/calls/{call_sid}")).json()

    assert "Hung up by us" in row
    assert (record["state"], record["reason"]) == ("ended", "hung-up")


async def test_a_call_is_placed_and_what_is_wrong_with_a_number_is_said(kept):
    async with serving(**kept.settings) as server:

        def look(page: Any) -> tuple[str, str]:
            sign_in(page, server.url)
            page.click("text=Place a call")
            page.fill("#place-number", "12")
            page.click("dialog button[value=yes]")
            wrong = page.wait_for_selector("dialog .problem:not(:empty)").inner_text()
            page.fill("#place-number", f"+1500{TALKS_ON}")
            page.click("dialog button[value=yes]")
            return wrong, page.wait_for_selector("li.call .who").inner_text()

        wrong, who = await in_browser(look)

    assert "+" in wrong
    assert masked(f"+1500{TALKS_ON}") in who


def silent_from_s(path: Path, near_s: float) -> float:
    """When the agent falls silent in a recording, the last time before this."""
    with wave.open(str(path)) as file:
        rate, frames = file.getframerate(), array("h", file.readframes(file.getnframes()))
    right = frames[1::2]
    until = int((near_s + 0.3) * rate)
    return max(at for at in range(until) if abs(right[at]) > 300) / rate


async def test_an_interruption_is_drawn_where_the_recording_falls_silent(kept):
    answered_s = next(one["at_s"] for one in kept.record["timeline"] if one["what"] == "answered")
    async with serving(**kept.settings) as server:

        def look(page: Any) -> float:
            sign_in(page, server.url)
            page.goto(f"{server.url}/console#/call/{kept.call_sid}")
            page.wait_for_selector("[data-drawn]")
            return page.evaluate(
                """() => {
                  const mark = document.querySelector(".tl-mark.barge").getBoundingClientRect();
                  const whole = document.querySelector(".tl-inner").getBoundingClientRect();
                  const until = Number(document.querySelector(".tl-cursor").ariaValueMax);
                  return (mark.left - whole.left) / whole.width * until;
                }"""
            )

        drawn_s = await in_browser(look)
        path = server.service.recordings.path(kept.call_sid, 1)
    silent_s = answered_s + silent_from_s(path, drawn_s - answered_s)

    assert abs(drawn_s - silent_s) < NEAR_S


@asynccontextmanager
async def kept_in_parts(kept: Any, call_sid: str, parts_at_s: tuple[float, ...], **facts: Any):
    """A server that has a call whose recording three processes have made: the same in each part."""
    url = f"/calls/{call_sid}/recording"
    parts = [url, f"{url}?part=2", f"{url}?part=3"]
    recording = kept.record["recording"] | {
        "url": parts[-1],
        "parts": parts,
        "parts_at_s": parts_at_s,
    }
    async with serving(**kept.settings) as server:
        heard = server.service.recordings.path(kept.call_sid, 1)
        for suffix in (".wav", ".2.wav", ".3.wav"):
            shutil.copy(heard, heard.with_name(call_sid + suffix))
        server.service.records.keep(
            dict(kept.record) | {"call_sid": call_sid, "recording": recording} | facts
        )
        await server.service.records.wait_saved()
        yield server


async def test_each_part_of_a_recording_is_drawn_where_it_began(kept):
    # The timeline is that of the last process: how it took the call up, and nothing from before.
    call_sid, parts_at_s = "CA" + "d" * 32, (2.0, 30.0, 60.0)
    timeline = [{"at_s": 60.0, "what": "taken up from another process", "gap_s": 1.0}]
    facts = {"transcript": None, "timeline": timeline}
    async with kept_in_parts(kept, call_sid, parts_at_s, **facts) as server:

        def look(page: Any) -> None:
            sign_in(page, server.url)
            page.goto(f"{server.url}/console#/call/{call_sid}")
            first_s = float(page.wait_for_selector(".tl-turn").get_attribute("data-from"))
            for part in (2, 3, 1):
                page.select_option(".player select:not(#speed)", str(part))
                moved_s = first_s - parts_at_s[0] + parts_at_s[part - 1]
                page.wait_for_function(
                    """(at_s) => {
                      const turn = document.querySelector(".tl-turn");
                      return turn && Math.abs(Number(turn.dataset.from) - at_s) < 0.01;
                    }""",
                    arg=moved_s,
                )

        await in_browser(look)


async def test_another_part_of_a_recording_is_heard_from_where_the_call_was(kept):
    # The first process wrote on for a while when the second one had taken the call up.
    call_sid, parts_at_s = "CA" + "b" * 32, (2.0, 4.0, 60.0)
    async with kept_in_parts(kept, call_sid, parts_at_s) as server:

        def look(page: Any) -> list[tuple[float, float]]:
            page.add_init_script(
                "const A = Audio; window.Audio = function () { return window.heard = new A(); }"
            )
            sign_in(page, server.url)
            page.goto(f"{server.url}/console#/call/{call_sid}")
            page.wait_for_selector("[data-drawn]")
            until(page, "heard.readyState >= 1")
            found = []
            for part, at_s in ((2, 3.0), (3, None), (1, 2.5)):
                if at_s is not None:
                    page.evaluate(f"heard.currentTime = {at_s}")
                    until(page, "!heard.seeking")
                page.select_option(".player select:not(#speed)", str(part))
                until(page, f"heard.src.endsWith('part={part}') && heard.readyState >= 1")
                until(page, "!heard.seeking")
                found.append(
                    tuple(
                        page.evaluate(
                            "[heard.currentTime,"
                            " Number(document.querySelector('.tl-cursor').dataset.cursor)]"
                        )
                    )
                )
            return found

        found = await in_browser(look)

    assert found == [
        pytest.approx((1.0, 5.0), abs=NEAR_S),
        pytest.approx((0.0, 60.0), abs=NEAR_S),
        pytest.approx((0.0, 2.0), abs=NEAR_S),
    ]


async def test_a_call_is_shown_as_far_as_its_record_goes(kept):
    why = "the database did not take the rest of this record"
    summary = {name: kept.record[name] for name in SUMMARY} | {NOT_WHOLE: why}
    unmade = dict.fromkeys(kept.record.keys() - set(SUMMARY))
    async with serving(**kept.settings) as server:
        for call_sid, record in (("CApart", summary), ("CAnone", dict(kept.record) | unmade)):
            server.service.records.keep(record | {"call_sid": call_sid})
        await server.service.records.wait_saved()

        def look(page: Any) -> list[tuple[str, str]]:
            sign_in(page, server.url)
            found = []
            for call_sid in ("CApart", "CAnone"):
                page.goto(f"{server.url}/console#/call/{call_sid}")
                page.wait_for_selector(f"a[download='{call_sid}.json']")
                page.wait_for_selector("[data-drawn=ended]")
                found.append((page.inner_text(".facts"), page.inner_text(".columns")))
            return found

        found = await in_browser(look)

    assert all("hung up" in facts.lower() for facts, _ in found)
    assert [why in rest for _, rest in found] == [True, False]


RANG_S = 20.0


async def test_words_are_where_they_were_said_however_long_the_phone_rang(kept):
    # The transcript counts from the answer, the timeline from when the number was dialled; and of a
    # recorded greeting the timeline has no line, nor has what another process took up an answer.
    words = [
        {"speaker": "agent", "at_s": 0.0, "text": "Greeting.", "heard_s": 2.0, "cut": False},
        {"speaker": "caller", "at_s": 4.5, "text": "Question?", "heard_s": None, "cut": False},
        {"speaker": "agent", "at_s": 6.5, "text": "Answer.", "heard_s": 3.0, "cut": False},
    ]
    lines = [
        {"at_s": RANG_S, "what": "answered"},
        {"at_s": RANG_S + 6.25, "what": "agent turn", "turn": 2},
        {"at_s": RANG_S + 15.0, "what": "ended", "reason": "caller-hung-up"},
    ]
    long = {"transcript": words, "duration_s": 15.0, "recording": None, "replies": []}
    async with serving(**kept.settings) as server:
        for call_sid, timeline in (("CAlong", lines), ("CAlost", lines[1:])):
            record = dict(kept.record) | long | {"call_sid": call_sid, "timeline": timeline}
            server.service.records.keep(record)
        await server.service.records.wait_saved()

        def look(page: Any) -> list[list[list[Any]]]:
            sign_in(page, server.url)
            found = []
            for call_sid in ("CAlong", "CAlost"):
                page.goto(f"{server.url}/console#/call/{call_sid}")
                page.wait_for_selector(f"a[download='{call_sid}.json']")
                found.append(
                    page.evaluate(
                        """() => [
                          [...document.querySelectorAll(".tl-turn.agent")]
                            .map((turn) => Number(turn.dataset.from)),
                          [...document.querySelectorAll(".talk .at")].map((at) => at.textContent),
                        ]"""
                    )
                )
            return found

        found = await in_browser(look)

    turns, at = [RANG_S, RANG_S + 6.25], ["00:20.0", "00:24.5", "00:26.2"]
    assert found == [[turns, at]] * 2


@pytest.mark.parametrize(
    "address", ["call/%", "call/%E0%A4%A", "call/%00", "call/..", "constructor", "no/such", "%"]
)
async def test_an_address_that_somebody_made_up_breaks_nothing(kept, address):
    async with serving(**kept.settings) as server:

        def look(page: Any) -> str:
            sign_in(page, server.url)
            page.goto(f"{server.url}/console#/{address}")
            page.wait_for_selector("main .view")
            page.goto(f"{server.url}/console#/calls")
            page.wait_for_selector(f"[data-call={kept.call_sid}]")
            return page.inner_text("h1")

        assert await in_browser(look) == "Calls"


async def test_a_call_is_read_once_at_a_time_however_much_happens(kept):
    async with serving(**kept.settings) as server:
        server.http.headers["Authorization"] = f"Bearer {API_KEY}"

        def look(page: Any) -> tuple[int, str]:
            sign_in(page, server.url)
            page.wait_for_selector(".connection[data-state=open]")
            call_sid = here(server.make_call, INTERRUPTS).json()["call_sid"]
            asked = {"under way": 0, "most": 0}

            def slowly(route: Any) -> None:
                asked["under way"] += 1
                asked["most"] = max(asked["most"], asked["under way"])
                page.wait_for_timeout(900)  # several times as long as what happens takes to come
                asked["under way"] -= 1
                route.continue_()

            page.route(f"**/calls/{call_sid}", slowly)
            page.goto(f"{server.url}/console#/call/{call_sid}")
            page.wait_for_selector("[data-drawn=live]")
            page.wait_for_selector("[data-drawn=ended]")
            return asked["most"], page.inner_text(".facts")

        most, facts = await in_browser(look)

    assert most == 1
    assert "hung up" in facts.lower()


async def test_the_cursor_is_where_the_sound_is(kept):
    answered_s = next(one["at_s"] for one in kept.record["timeline"] if one["what"] == "answered")
    async with serving(**kept.settings) as server:

        def look(page: Any) -> tuple[float, list[tuple[float, float]]]:
            page.add_init_script(
                "const A = Audio; window.Audio = function () { return window.heard = new A(); }"
            )
            sign_in(page, server.url)
            page.goto(f"{server.url}/console#/call/{kept.call_sid}")
            page.wait_for_selector("[data-drawn]")
            until(page, "heard.readyState >= 1")
            page.click(".tl-mark.barge span")
            until(page, "!heard.seeking && heard.currentTime > 1")
            begun = page.evaluate("heard.currentTime")
            page.select_option("#speed", "2")
            page.click("[aria-label=Play]")
            until(page, f"heard.currentTime > {begun} + 0.5")
            page.click("[aria-label=Pause]")
            until(page, "heard.paused")
            both = page.evaluate(
                "[heard.currentTime, Number(document.querySelector('.tl-cursor').dataset.cursor)]"
            )
            page.evaluate("document.activeElement.blur()")
            page.keyboard.press("ArrowRight")
            until(page, f"heard.currentTime > {both[0]} + 1.9 && !heard.seeking")
            page.wait_for_timeout(50)
            later = page.evaluate(
                "[heard.currentTime, Number(document.querySelector('.tl-cursor').dataset.cursor)]"
            )
            return begun, [tuple(both), tuple(later)]

        begun, places = await in_browser(look)
    held = next(one["at_s"] for one in kept.record["timeline"] if one["what"] == "agent held")

    assert abs(begun + answered_s - held) < NEAR_S
    assert all(abs(sound + answered_s - cursor) < NEAR_S for sound, cursor in places)


async def test_calls_are_filtered_and_exported_as_filtered(kept):
    async with serving(**kept.settings) as server:
        others = made_up(kept.record, 60, now=kept.record["created_at"])
        for record in others:
            server.service.records.keep(record)
        await server.service.records.wait_saved()
        troubled = {
            each["call_sid"]
            for each in others
            if each["reason"] in ("no-answer", "busy", "model-silent")
        }

        def look(page: Any) -> tuple[set[str], list[str], str]:
            sign_in(page, server.url, view="calls")
            page.wait_for_selector("tbody tr")
            page.fill("#filter-number", f"+1500{INTERRUPTS}")
            until(page, "!document.querySelector('a[download]').href.includes('calls.csv')")
            until(page, f"{SHOWN}.includes('{kept.call_sid}')")
            with page.expect_download() as download:
                page.click("a:has-text('JSON Lines')")
            of_number.append((download.value.url, Path(download.value.path()).read_text()))
            page.fill("#filter-number", "")
            page.check("#filter-trouble")
            until(page, f"document.querySelectorAll('tbody tr').length === {len(troubled)}")
            rows = {row.get_attribute("data-call") for row in page.locator("tbody tr").all()}
            files = []
            for name in ("CSV", "JSON Lines"):
                with page.expect_download() as download:
                    page.click(f"a:has-text('{name}')")
                files.append(Path(download.value.path()).read_text())
            page.uncheck("#filter-trouble")
            page.select_option("#filter-direction", "inbound")
            page.fill("#filter-min_cost_usd", "0.05")
            until(page, "document.querySelectorAll('tbody .outbound').length === 0")
            page.fill("#filter-number", "+1500")
            page.wait_for_selector("p[role=status]:not(:empty)")
            return rows, files, page.url

        of_number: list[tuple[str, str]] = []
        rows, files, url = await in_browser(look, accept_downloads=True)

    [(kept_url, kept_text)] = of_number
    assert kept_url.startswith("blob:")
    assert kept.call_sid in kept_text
    assert rows == troubled
    assert len(files[0].splitlines()) == len(troubled) + 1
    assert {json.loads(line)["call_sid"] for line in files[1].splitlines()} == troubled
    assert "1500" not in url.partition("#")[2]


MADE_UP = 40
SHOWN = "[...document.querySelectorAll('tbody tr')].map((row) => row.dataset.call).sort().join()"


def day_of(record: Mapping[str, Any]) -> str:
    return datetime.fromtimestamp(record["created_at"], UTC).date().isoformat()


async def test_each_filter_shows_the_calls_it_names_and_no_other(kept, tmp_path):
    (tmp_path / "orders.toml").write_text('name = "orders"\n')
    own = {"database_url": f"sqlite:///{tmp_path}/calls.db", "agents": tmp_path}
    async with serving(**(dict(kept.settings) | own)) as server:
        records = made_up(kept.record, MADE_UP, now=kept.record["created_at"])
        for record in records:
            server.service.records.keep(record)
        await server.service.records.wait_saved()
        day = day_of(records[MADE_UP // 2])
        longer_s, dearer_usd = (
            statistics.median(each["duration_s"] for each in records),
            statistics.quantiles((each["cost"]["known_usd"] for each in records), n=4)[2],
        )
        takes: dict[str, tuple[str, Callable[[Mapping[str, Any]], bool]]] = {
            "direction": ("inbound", lambda call: call["direction"] == "inbound"),
            "agent": ("orders", lambda call: call["agent"] == "orders"),
            "reason": ("voicemail", lambda call: call["reason"] == "voicemail"),
            "day": (day, lambda call: day_of(call) == day),
            "min_duration_s": (f"{longer_s}", lambda call: call["duration_s"] >= longer_s),
            "min_cost_usd": (
                f"{dearer_usd}",
                lambda call: call["cost"]["known_usd"] >= dearer_usd,
            ),
        }
        wanted = {
            name: ",".join(sorted(call["call_sid"] for call in records if takes_it(call)))
            for name, (_, takes_it) in takes.items()
        }
        both = ",".join(
            sorted(
                call["call_sid"]
                for call in records
                if call["agent"] == "orders" and call["direction"] == "inbound"
            )
        )

        def look(page: Any) -> None:
            sign_in(page, server.url, view="calls")
            page.wait_for_selector("#filter-agent option[value=orders]", state="attached")

            def ask(name: str, value: str) -> None:
                field = page.locator(f"#filter-{name}")
                if field.evaluate("(field) => field.tagName") == "SELECT":
                    field.select_option(value)
                else:
                    field.fill(value)

            for name, (value, _) in takes.items():
                ask(name, value)
                until(page, f"{SHOWN} === '{wanted[name]}'")
                ask(name, "")
                until(page, f"document.querySelectorAll('tbody tr').length === {MADE_UP}")
            ask("agent", "orders")
            ask("direction", "inbound")
            until(page, f"{SHOWN} === '{both}'")

        await in_browser(look)

    assert all(0 < named.count("CA") < MADE_UP for named in [*wanted.values(), both])


async def test_ten_thousand_calls_are_shown_a_page_at_a_time_and_each_is_found(kept):
    async with serving(**kept.settings) as server:
        found: Mapping[str, Any] = {}
        for record in made_up(kept.record, 10_000, now=kept.record["created_at"]):
            server.service.records.keep(record)
            if len(server.service.records._unsaved) > 5_000:
                await server.service.records.wait_saved()
            found = record if record["reason"] == "model-silent" else found
        await server.service.records.wait_saved()
        mended = dict(found) | {"call_sid": "CAmended", "had_trouble": True}
        mended |= {"reason": "agent-hung-up", "created_at": kept.record["created_at"] + 1.0}
        server.service.records.keep(mended)

        def look(page: Any) -> tuple[int, int]:
            sign_in(page, server.url, view="calls")
            page.wait_for_selector("tbody tr")
            page.check("#filter-trouble")
            page.wait_for_selector("[data-call=CAmended] .bad")
            page.select_option("#filter-reason", "agent-hung-up")
            until(page, f"{SHOWN} === 'CAmended'")
            page.click("[data-call=CAmended] a")
            page.wait_for_selector(".view-call [data-drawn=ended]")
            page.go_back()
            page.select_option("#filter-reason", "")
            page.uncheck("#filter-trouble")
            page.wait_for_selector("button:has-text('More')")
            first = page.locator("tbody tr").count()
            page.click("button:has-text('More')")
            until(page, f"document.querySelectorAll('tbody tr').length > {first}")
            more = page.locator("tbody tr").count()
            page.goto(f"{server.url}/console#/latency")
            page.wait_for_selector("[data-drawn='1000']")
            return first, more

        assert await in_browser(look) == (50, 100)


# -- the channel --------------------------------------------------------------------------------

COLLECT = """async () => {
  const { live } = await import("/static/console/live.js");
  window.lines = [];
  live.addEventListener("line", ({ detail: { call_sid, line } }) =>
    lines.push(call_sid + " " + line.at_s + line.what));
}"""


async def test_a_channel_that_ends_again_and_again_loses_nothing(kept, monkeypatch):
    async with serving(**kept.settings) as server:
        server.http.headers["Authorization"] = f"Bearer {API_KEY}"

        def look(page: Any) -> tuple[list[str], str, int, int]:
            asked = []
            page.on("request", lambda request: asked.append(request.url))
            sign_in(page, server.url)
            page.wait_for_selector(".connection[data-state=open]")
            until(page, "document.querySelector('[data-tile=sessions] dd').textContent")
            page.evaluate(COLLECT)
            opened = sum("/events" in url for url in asked)
            lists = sum("/calls?" in url for url in asked)
            call_sid = here(server.make_call, INTERRUPTS).json()["call_sid"]
            until(page, "lines.some((line) => line.endsWith('ended'))")
            opened = sum("/events" in url for url in asked) - opened
            lists = sum("/calls?" in url for url in asked) - lists
            return page.evaluate("lines"), call_sid, opened, lists

        monkeypatch.setattr(channel, "CHANNEL_S", 1.5)
        lines, call_sid, opened, lists = await in_browser(look)
        record = (await server.http.get(f"/calls/{call_sid}")).json()

    whole = [f"{call_sid} {json.dumps(one['at_s'])}{one['what']}" for one in record["timeline"]]
    told = [re.sub(r" (\d+)([a-z])", r" \1.0\2", line) for line in lines]
    missing = [line for line in whole if line not in told and not line.endswith("completed")]
    assert opened >= 3
    assert lists == 0
    assert missing == []
    assert len(told) == len(set(told))


async def test_a_session_that_ends_brings_the_way_in_back_and_asks_no_more(kept, monkeypatch):
    async with serving(**kept.settings) as server:

        def look(page: Any) -> int:
            asked = []
            sign_in(page, server.url)
            page.wait_for_selector(".connection[data-state=open]")
            page.on("request", lambda request: asked.append(request.url))
            page.context.clear_cookies()
            page.wait_for_selector("#key")
            refused = sum("/events" in url for url in asked)
            page.fill("#key", API_KEY)
            page.keyboard.press("Enter")
            page.wait_for_selector(".connection[data-state=open]")
            return refused

        monkeypatch.setattr(channel, "CHANNEL_S", 1.5)
        assert await in_browser(look) == 1


HOLD_LISTS = """
window.held = new Promise((release) => { window.release = release; });
const ask = window.fetch;
window.fetch = async (...asked) => {
  const answer = await ask(...asked);
  if (String(asked[0]).includes("state=live")) {
    window.listed = true;
    await window.held;
  }
  return answer;
};"""
HEAR_CALLS = """async () => {
  const { live } = await import("/static/console/live.js");
  window.heard = [];
  live.addEventListener("calls", ({ detail }) => heard.push(detail?.state ?? "list"));
}"""


async def test_a_list_that_comes_late_brings_no_ended_call_back(kept):
    async with serving(**kept.settings) as server:
        server.http.headers["Authorization"] = f"Bearer {API_KEY}"
        call_sid = (await server.make_call(TALKS_ON)).json()["call_sid"]

        def look(page: Any) -> int:
            page.add_init_script(HOLD_LISTS)
            sign_in(page, server.url)
            page.evaluate(HEAR_CALLS)
            until(page, "window.listed")
            here(server.http.post, f"/calls/{call_sid}/hang-up")
            until(page, "heard.includes('ended')")
            page.evaluate("release()")
            until(page, "heard.includes('list')")
            return page.locator("li.call").count()

        assert await in_browser(look) == 0


async def test_of_two_processes_all_calls_are_shown(tmp_path):
    command = next(iter(TWO_PROCESSES))
    async with server_process(tmp_path, command) as server:
        await server.both_ready()
        url = str(server.http.base_url).rstrip("/")

        def look(page: Any) -> tuple[set[str], set[str]]:
            sign_in(page, url)
            page.wait_for_selector(".connection[data-state=open]")
            made = {here(server.make_call, NEVER_HANGS_UP).json()["call_sid"] for _ in range(4)}
            until(page, "document.querySelectorAll('li.call').length === 4")
            until(
                page,
                "document.querySelectorAll('[data-turn=agent], [data-turn=caller]').length > 0",
            )
            page.wait_for_selector("details table tbody tr:nth-child(2)", state="attached")
            shown = {row.get_attribute("data-call") for row in page.locator("li.call").all()}
            return made, shown

        made, shown = await in_browser(look)

    assert made == shown


# -- what nobody can make it do -----------------------------------------------------------------

SCRIPT = '"><img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'


async def test_whatever_comes_from_outside_is_text(kept):
    async with serving(**kept.settings) as server:
        nasty = dict(kept.record) | {
            "call_sid": "CA" + "e" * 32,
            "number": SCRIPT[:32],
            "agent": SCRIPT[:64],
            "reason": SCRIPT[:64],
            "detail": SCRIPT,
            "model": SCRIPT,
            "answered_by": SCRIPT,
            "created_at": kept.record["created_at"] + 1,
            "metadata": {SCRIPT: SCRIPT},
            "recording": None,
            "outcome": {"values": {SCRIPT: SCRIPT, "list": [SCRIPT]}},
            "tokens": {"prompt": {SCRIPT: 1}, "response": {}},
            "timeline": [
                *kept.record["timeline"],
                {"at_s": 3.0, "what": "tool", "name": SCRIPT, "outcome": SCRIPT, "took_ms": 5.0},
                {"at_s": 3.1, "what": SCRIPT, SCRIPT: SCRIPT},
            ],
            "transcript": [
                {"speaker": "caller", "at_s": 1.0, "text": SCRIPT, "heard_s": None, "cut": False},
                {
                    "speaker": "agent",
                    "at_s": 2.0,
                    "text": SCRIPT,
                    "unheard": SCRIPT,
                    "heard_s": 1.0,
                    "cut": True,
                },
            ],
        }
        server.service.records.keep(nasty)
        await server.service.records.wait_saved()

        def look(page: Any) -> tuple[Any, str]:
            sign_in(page, server.url, view="calls")
            page.wait_for_selector("tbody tr")
            page.click(f"[data-call={nasty['call_sid']}] a")
            page.wait_for_selector("[data-drawn]")
            page.click("summary")
            text = page.inner_text("main")
            for view in ("latency", f"call/{SCRIPT}", "call/%", "now", "calls"):
                page.evaluate("(hash) => { location.hash = hash; }", f"#/{view}")
                page.wait_for_selector(f".view-{view.partition('/')[0]} :is(h1, .problem)")
                page.wait_for_timeout(300)
            return page.evaluate("window.pwned"), text

        pwned, text = await in_browser(look)

    assert pwned is None
    assert text.count(SCRIPT) >= 8


async def test_every_account_is_tried_when_asked_and_what_to_do_is_said(kept):
    async with serving(**kept.settings) as server:

        def look(page: Any) -> list[str]:
            sign_in(page, server.url, view="health")
            page.click("text=Try every account")
            page.wait_for_selector("[data-finding=settings]")
            return [each.inner_text() for each in page.locator(".finding").all()]

        findings = await in_browser(look)

    assert any(text.startswith("Well") and "carrier" in text for text in findings)
    assert any("Fill in the accounts" in text for text in findings)


async def test_the_page_is_a_telephone_with_its_calls_timeline_below(kept):
    async with serving(**kept.settings) as server:

        def look(page: Any) -> tuple[str, list[str], bool]:
            asked = []

            def answer(route: Any) -> None:
                asked.append(route.request.post_data)
                route.fulfill(json={"call_sid": kept.call_sid})

            with_a_made_up_phone(page)
            page.route("**/calls/browser", answer)
            sign_in(page, server.url, view="phone")
            page.click("button.big.primary:enabled")
            page.wait_for_selector("[data-drawn]")
            page.click("text=Mute")
            muted = page.evaluate("phones[0].muted")
            page.click(".phone >> text=Hang up")
            page.wait_for_selector("[data-state=over]")
            return page.inner_text(".phone-state"), asked, muted

        said, asked, muted = await in_browser(look)

    assert said == "Over · Hung up by us"
    assert [json.loads(each) for each in asked] == [{"agent": "default"}]
    assert muted


# -- words --------------------------------------------------------------------------------------


def words_of(language: str) -> dict[str, str]:
    text = (FILES / f"{language}.js").read_text()
    pairs = re.findall(r"(?:\"([^\"]+)\"|(\b[\w-]+)): \"((?:[^\"\\]|\\.)*)\"", text)
    return {quoted or bare: said for quoted, bare, said in pairs}


def test_every_language_has_every_word_with_the_same_facts_in_it():
    english, spanish = words_of("en"), words_of("es")

    assert len(english) > 200
    assert english.keys() == spanish.keys()
    for name, text in english.items():
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(
            re.findall(r"\{\w+\}", spanish[name])
        ), name


def test_every_word_that_the_page_asks_for_is_there():
    asked = set()
    for path in FILES.glob("*.js"):
        asked |= set(re.findall(r"\bt\(\"([^\"]+)\"", path.read_text()))

    assert asked - words_of("en").keys() == set()


async def test_it_speaks_the_readers_language_and_another_when_asked(kept):
    async with serving(**kept.settings) as server:

        def look(page: Any) -> tuple[str, str, str]:
            sign_in(page, server.url)
            spanish = page.inner_text("nav")
            page.select_option("select[aria-label=Idioma]", "en")
            until(page, "document.documentElement.lang === 'en'")
            return spanish, page.inner_text("nav"), page.evaluate("document.documentElement.lang")

        spanish, english, _ = await in_browser(look, locale="es-VE")

    assert "Llamadas" in spanish
    assert "Calls" in english


def test_a_browser_that_finds_an_error_on_a_page_fails_its_test():
    with pytest.raises(pytest.fail.Exception, match="mistake"), browser_page() as page:
        page.goto("data:text/html,<script>throw new Error('a mistake')</script>")
