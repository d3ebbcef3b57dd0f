"""The load benchmark, small: every server that can run here carries two calls, all counted."""

from __future__ import annotations

import argparse
import asyncio
import importlib
from collections.abc import Mapping

import pytest
from rich.console import Console

from benchmarks.__main__ import main
from benchmarks.calls import add_arguments, bounds_table, tables
from benchmarks.load.call import Talk
from benchmarks.load.sockets import Backend, Picows, Socket, Websockets, picows, port_of
from benchmarks.point import ASTERISK, CLASSIC, KINDS, OFFHOOK, PICOWS, ServerKind, run_point
from benchmarks.points import Point, middle

pytestmark = [pytest.mark.sockets, pytest.mark.slow]

QUICK_TALK = Talk(turn_s=0.8, cycle_s=1.5, cut_every=2, cut_delays_s=(0.0, 0.02))
"""On a busy machine too a turn that was cut is cleared before the next one begins."""
PERCENTILES = {"p50", "p95", "p99", "p999"}


@pytest.mark.parametrize("kind", [*KINDS.values(), ASTERISK], ids=lambda kind: kind.name)
def test_two_calls_arrive_whole(kind: ServerKind):
    if kind.missing:
        pytest.skip(f"not here: {', '.join(kind.missing)}")

    outcome = run_point(
        kind,
        2,
        window_s=4.5,
        warm_s=0.6,
        talk=QUICK_TALK,
        settings={"GREETING_PROTECT_S": "0"},  # the first seconds are not held back
    )

    assert outcome["calls_lost"] == 0
    assert outcome["frames"] >= 2 * 40
    assert outcome["chunks"] >= 2 * 20
    assert outcome["clears"] >= 2
    assert outcome["missed_clears"] == outcome["unasked_clears"] == 0
    assert outcome["doubled_ms"] == outcome["stale_ms"] == outcome["strange_ms"] == 0
    if kind is CLASSIC:
        # One sample of each frame, because its resampler forgets where it was.
        assert 0 < outcome["lost_ms"] < 0.01 * 20 * outcome["frames"]
    else:
        assert outcome["lost_ms"] == 0
    figures = Point(kind, 2, outcome).as_dict()
    assert set(figures) == {
        "server",
        "calls",
        "cpu_ms_per_call_s",
        "caller_to_model_ms",
        "agent_to_caller_ms",
        "first_chunk_ms",
        "interrupt_to_clear_ms",
        "lost_ms",
        "stale_ms",
        "rss_kib_per_call",
    }
    assert set(figures["caller_to_model_ms"]) == PERCENTILES
    assert set(figures["agent_to_caller_ms"]) == PERCENTILES
    assert set(figures["interrupt_to_clear_ms"]) == PERCENTILES
    assert figures["cpu_ms_per_call_s"] > 0


@pytest.mark.parametrize("kind", [OFFHOOK, PICOWS], ids=lambda kind: kind.name)
def test_calls_arrive_whole_over_tls_to_the_model(kind: ServerKind):
    if kind.missing:
        pytest.skip(f"not here: {', '.join(kind.missing)}")

    outcome = run_point(
        kind,
        2,
        window_s=2.0,
        warm_s=0.6,
        talk=QUICK_TALK,
        tls=True,
        settings={"GREETING_PROTECT_S": "0"},
    )

    assert outcome["calls_lost"] == outcome["lost_ms"] == outcome["doubled_ms"] == 0
    assert outcome["stale_ms"] == outcome["missed_clears"] == 0
    assert outcome["frames"] > 0
    assert outcome["chunks"] > 0


@pytest.mark.skipif(bool(PICOWS.missing), reason=f"not here: {', '.join(PICOWS.missing)}")
def test_the_end_of_either_side_of_the_fastest_bridge_ends_the_other(monkeypatch):
    for name in ("GEMINI_URL", "GEMINI_API_KEY"):
        monkeypatch.setenv(name, "")
    side = importlib.import_module("benchmarks.peers.fastest").Side
    one, other = side(), side()
    one.other, other.other = other, one

    one.on_ws_disconnected(None)

    assert one.is_over
    assert other.is_over
    assert one.other is other.other is None


def figures(cpu_ms: float) -> dict[str, object]:
    percentiles = {"p50": 0.1, "p95": 0.2, "p99": 0.3, "p999": 0.4}
    return {
        "cpu_ms_per_call_s": cpu_ms,
        "server_core": cpu_ms / 10,
        "generator_core": 0.3,
        "others_on_server_core": None,
        "rss_kib_per_call": 80.0,
        "caller_to_model_ms": percentiles,
        "agent_to_caller_ms": percentiles,
        "first_chunk_ms": percentiles,
        "interrupt_to_clear_ms": dict.fromkeys(percentiles),
        "lost_ms": 0.0,
        "doubled_ms": 0.0,
        "late_ms": 0.0,
        "stale_ms": 0.0,
    }


def judged_of(points: list[Point], tls_points: list[Point]) -> dict[str, tuple[str, str]]:
    rows = bounds_table(points, tls_points).columns
    return {
        str(what): (str(measured), str(holds))
        for what, measured, holds in zip(*(rows[n].cells for n in (0, 2, 3)), strict=True)
    }


def test_the_bounds_are_judged_from_the_same_run():
    points = [
        Point(KINDS["offhook"], 100, figures(1.5)),
        Point(KINDS["classic"], 100, figures(6.0)),
    ]

    judged = judged_of(points, [])

    assert judged["CPU per call-second, 100 calls"] == ("1.50 ms", "[green]yes[/]")
    assert judged["CPU against classic, 100 calls"] == ("0.25 x", "[green]yes[/]")
    assert judged["calls with p99 caller to model < 20 ms"] == ("100, core 15%", "[red]no[/]")
    assert all(table.row_count == 2 for table in tables(points))
    assert not any("picows" in what or "300" in what or "25" in what for what in judged)


def test_the_fastest_bridge_is_a_bound_wherever_both_were_measured():
    points = [
        Point(KINDS[name], calls, figures(cpu_ms))
        for calls, ours_ms, theirs_ms in ((100, 1.5, 2.0), (300, 1.5, 1.2), (500, 1.0, 1.0))
        for name, cpu_ms in (("offhook", ours_ms), ("picows", theirs_ms))
    ]
    secure = [
        Point(KINDS[name], 100, figures(cpu_ms), tls=True)
        for name, cpu_ms in (("offhook", 1.5), ("picows", 3.0))
    ]

    judged = judged_of(points, secure)

    assert {what: one for what, one in judged.items() if "picows" in what} == {
        "CPU against picows, 100 calls": ("0.75 x", "[green]yes[/]"),
        "CPU against picows, 300 calls": ("1.25 x", "[red]no[/]"),
        "CPU against picows, 500 calls": ("1.00 x", "[green]yes[/]"),
        "CPU against picows, 100 calls, TLS": ("0.50 x", "[green]yes[/]"),
    }


def test_the_latest_frames_of_many_calls_and_the_first_chunk_of_few_are_bounds():
    late = figures(1.0)
    late["caller_to_model_ms"] = {"p50": 0.1, "p95": 0.2, "p99": 0.9, "p999": 2.5}
    slow = figures(1.0)
    slow["first_chunk_ms"] = {"p50": 0.2, "p95": 0.3, "p99": 0.4, "p999": 0.5}
    points = [Point(OFFHOOK, 25, slow), Point(OFFHOOK, 300, late)]

    judged = judged_of(points, [Point(OFFHOOK, 300, late, tls=True)])

    assert judged["caller to model p99, 300 calls"] == ("0.90 ms", "[red]no[/]")
    assert judged["caller to model p99.9, 300 calls"] == ("2.50 ms", "[red]no[/]")
    assert judged["caller to model p99, 300 calls, TLS"] == ("0.90 ms", "[green]yes[/]")
    assert judged["caller to model p99.9, 300 calls, TLS"] == ("2.50 ms", "[green]yes[/]")
    assert judged["first chunk of a turn p50, 25 calls"] == ("0.20 ms", "[red]no[/]")


def test_the_tables_fit_a_hundred_columns():
    points = [
        Point(kind, 1_000, figures(100.0) | {
            name: dict.fromkeys(("p50", "p95", "p99", "p999"), 9999.0)
            for name in ("caller_to_model_ms", "agent_to_caller_ms", "interrupt_to_clear_ms")
        }, tls=True)
        for kind in KINDS.values()
    ]  # fmt: skip
    console = Console(width=200)

    assert all(console.measure(table).maximum <= 100 for table in tables(points))


@pytest.mark.parametrize(
    ("words", "numbers"),
    [([], None), (["--tls"], []), (["--tls", "--quick"], []), (["--tls", "100,300"], [100, 300])],
)
def test_more_points_have_tls_where_it_is_asked_for(words: list[str], numbers: list[int] | None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    add_arguments(parser)

    assert parser.parse_args(words).tls == numbers


@pytest.mark.parametrize("name", ["calls", "chunk"])
def test_the_options_are_explained(name, capsys):
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])

    assert left.value.code == 0
    assert "--realtime" in capsys.readouterr().out


class Echo:
    """A peer that answers, and one that waits for an answer."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.changed = asyncio.Event()
        self.socket: Socket

    def opened(self, socket: Socket) -> None:
        self.socket = socket

    def received(self, message: bytes) -> None:
        self.messages.append(message)
        self.changed.set()

    def closed(self) -> None:
        self.changed.set()


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param(Picows(), marks=pytest.mark.skipif(picows is None, reason="no picows")),
        Websockets(),
    ],
    ids=lambda backend: backend.name,
)
def test_both_kinds_of_sockets_carry_messages_both_ways(backend: Backend):
    server, client = Echo(), Echo()
    asked: list[tuple[str, str | None]] = []

    def welcome(path: str, headers: Mapping[str, str]) -> Echo | None:
        asked.append((path, headers.get("x-key")))
        return server if path == "/yes" else None

    async def talk() -> None:
        listening = await backend.serve(welcome, None)
        url = f"ws://127.0.0.1:{port_of(listening)}"
        await backend.connect(f"{url}/yes", {"x-key": "1"}, client)
        client.socket.send(b"a question")
        await asyncio.wait_for(server.changed.wait(), 5)
        server.socket.send_prepared(backend.prepare(b"an answer"))
        await asyncio.wait_for(client.changed.wait(), 5)
        client.changed.clear()
        server.socket.close()
        await asyncio.wait_for(client.changed.wait(), 5)
        with pytest.raises(Exception, match="404"):
            await backend.connect(f"{url}/no", {}, Echo())
        listening.close()

    asyncio.run(talk())

    assert server.messages == [b"a question"]
    assert client.messages == [b"an answer"]
    assert asked == [("/yes", "1"), ("/no", None)]


def test_of_several_looks_at_a_point_the_median_counts_and_of_lost_audio_the_worst():
    looks = [
        Point(
            OFFHOOK,
            100,
            {
                "cpu_ms_per_call_s": cpu,
                "caller_to_model_ms": {"p50": 0.1, "p99": p99},
                "others_on_server_core": None,
                "lost_ms": lost,
                "backend": "any",
            },
        )
        for cpu, p99, lost in ((2.0, None, 0.0), (9.0, 0.5, 40.0), (2.2, 0.7, 0.0))
    ]

    found = middle(looks)

    assert (found.kind, found.calls) == (OFFHOOK, 100)
    assert found.outcome == {
        "cpu_ms_per_call_s": 2.2,
        "caller_to_model_ms": {"p50": 0.1, "p99": 0.6},
        "others_on_server_core": None,
        "lost_ms": 40.0,
        "backend": "any",
    }
