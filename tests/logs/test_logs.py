from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
import subprocess
import sys
import time
import timeit
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio

from server.logs import MAX_KINDS, STRANGERS_LINES, Sparing, _Lines, censored, log_stranger, masked


@pytest.mark.parametrize(
    ("number", "shown"), [("+584125551234", "+58********34"), ("+1234", "*****"), ("", "")]
)
def test_a_number_is_shown_without_its_middle(number, shown):
    assert masked(number) == shown


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("cannot call +584125551234.", "cannot call +58********34."),
        ("GET /calls?to=%2B584125551234", "GET /calls?to=+58********34"),
        ("wss://host/live?key=AIzaSecret&alt=ws", "wss://host/live?key=***&alt=ws"),
        ("https://host/mcp?api_key=s3cret", "https://host/mcp?api_key=***"),
        ("https://host/mcp?tavilyApiKey=s3cret&x=1", "https://host/mcp?tavilyApiKey=***&x=1"),
        ("/?access_token=s3cret&client_secret=s3cret", "/?access_token=***&client_secret=***"),
        ("invalid: authorization=Bearer s3cret", "invalid: authorization=***"),
        ('invalid: authorization="Basic s3cret"', 'invalid: authorization=***"'),
        (r'{"event": "api_key=\"s3cret\""}', r'{"event": "api_key=***\""}'),
        ('{"event": "no token=", "n": 1}', '{"event": "no token=", "n": 1}'),
        ("tokens=17 keys=2 monkeys", "tokens=17 keys=2 monkeys"),
        (
            "at 2026-11-22T23:27:09+00:00 it was -5 +12",
            "at 2026-11-22T23:27:09+00:00 it was -5 +12",
        ),
    ],
)
def test_what_others_write_is_censored(line, shown):
    assert censored(line) == shown


@pytest.mark.parametrize("piece", ["a", "key", "api_key", "authorization=bearer ", "key='"])
def test_what_a_line_costs_to_censor_grows_with_its_length_and_no_faster(piece):
    def cost_s(times: int) -> float:
        line = piece * times
        clock = time.process_time  # others' use of the machine does not count
        return min(timeit.repeat(lambda: censored(line), number=1, repeat=5, timer=clock))

    assert cost_s(32_000) < 100 * cost_s(2_000)


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("message", "shown"), [("fine", False), ("not %d", True)])
def test_a_full_disk_costs_lines_and_nothing_else(message, shown, capsys):
    handler = _Lines(FullDisk())
    record = logging.LogRecord("x", logging.INFO, __file__, 1, message, ("a number",), None)
    if not shown:
        record.args = ()

    handler.handle(record)

    assert ("Traceback" in capsys.readouterr().err) is shown


def test_a_warning_that_comes_all_the_time_is_counted():
    sparing = Sparing(every_s=10.0)

    assert [sparing.may_log(now) for now in (0.0, 1.0, 9.9, 10.0)] == [True, False, False, True]
    assert sparing.take_unlogged() == 2
    assert sparing.take_unlogged() == 0


def test_each_kind_has_its_line_and_all_together_have_a_bound():
    sparing = Sparing(every_s=10.0, lines=3)
    kinds = ["a", "a", "b", "c", "d", "a", "d"]

    assert [sparing.may_log(0.0, kind) for kind in kinds] == [
        *(True, False, True, True),
        *(False, False, False),
    ]
    assert [sparing.take_unlogged(kind) for kind in "abcd"] == [2, 0, 0, 2]
    assert sparing.may_log(10.0, "d")


def test_kinds_without_end_take_no_memory_without_end():
    sparing = Sparing(lines=1)
    for number in range(10 * MAX_KINDS):
        sparing.may_log(0.0, str(number))

    assert len(sparing._unlogged) <= MAX_KINDS


async def test_strangers_write_a_few_lines_whatever_they_do(autojump_clock):
    lines: list[tuple[str, dict[str, Any]]] = []

    def log(event: str, **facts: Any) -> None:
        lines.append((event, facts))

    for _ in range(1000):
        for number in range(2 * STRANGERS_LINES):
            log_stranger(log, f"attack {number}", path="/x")
    assert len(lines) == STRANGERS_LINES
    assert lines[0] == ("attack 0", {"unlogged": 0, "path": "/x"})

    await trio.sleep(10.0)
    log_stranger(log, "attack 0")
    log_stranger(log, "attack 19", kind="another")
    assert lines[-2:] == [("attack 0", {"unlogged": 999}), ("attack 19", {"unlogged": 0})]


# ------------------------------------------------------------------------------------------
# Everything that whole calls log, at the lowest level


WAYS = ("--json", "--readable")


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Both kinds of log at once: they mostly wait for people to finish speaking."""
    with ExitStack() as stack:
        started = {}
        for way in WAYS:
            lines = tmp_path_factory.mktemp("logs") / "lines"
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.whole_call", way],
                cwd=Path(__file__).parents[2],
                env={**os.environ, "PYTHONUTF8": "1"},
                stdout=subprocess.PIPE,
                stderr=stack.enter_context(lines.open("w")),
                text=True,
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            started[way] = (process, lines)
        yield started


@pytest.fixture(scope="module", params=WAYS)
def whole_calls(request, processes) -> tuple[str, dict[str, Any]]:
    process, path = processes[request.param]
    out, _ = process.communicate(timeout=120)
    lines = path.read_text()
    assert process.returncode == 0, lines[-4000:]
    return lines, json.loads(out)


@pytest.mark.slow
def test_nothing_anyone_said_no_number_and_no_key_is_in_any_line(whole_calls):
    lines, forbidden = whole_calls
    digits = re.sub(r"[^\d\n]+", " ", lines)

    assert len(forbidden["spoken"]) > 5
    assert [text for text in forbidden["spoken"] if text.lower() in lines.lower()] == []
    # Nor half of a sentence: four words in a row do not happen by accident.
    pieces = {
        " ".join(words[i : i + 4])
        for text in forbidden["spoken"]
        for words in [text.lower().split()]
        for i in range(len(words) - 3)
    }
    assert [piece for piece in pieces if piece in lines.lower()] == []
    assert [text for text in forbidden["secrets"] if text in lines] == []
    assert [number for number in forbidden["numbers"] if number in digits] == []


def test_every_line_is_one_json_object_that_says_when_what_and_how_bad(whole_calls):
    lines, forbidden = whole_calls
    if not lines.startswith("{"):
        pytest.skip("for people to read")

    events = [json.loads(line) for line in lines.splitlines()]
    assert all({"event", "level", "timestamp", "logger"} <= set(event) for event in events)
    assert {"call failed", "request", "offhook ready"} & {event["event"] for event in events}
    # A call's story is under ten lines, its details one level lower.
    story = Counter(
        event["call_sid"] for event in events if event["level"] != "debug" and "call_sid" in event
    )
    assert set(forbidden["calls"]) <= set(story)
    assert max(story.values()) < 10
    debug = Counter(event.get("call_sid") for event in events if event["level"] == "debug")
    assert all(3 < debug[call_sid] < 100 for call_sid in forbidden["calls"])


def test_a_traceback_shows_no_variables(whole_calls):
    lines, _ = whole_calls

    assert "request failed by a bug of ours" in lines
    assert "Traceback" in lines
    assert "locals" not in lines
