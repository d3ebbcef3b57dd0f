"""What the failover benchmark makes of what it has seen, and what it starts and leaves behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from benchmarks import processes
from benchmarks.failover import balancer, guardian
from benchmarks.failover.balancer import Place, Tunnel
from benchmarks.failover.command import RowLate, at_most, table, try_row
from benchmarks.failover.judge import Bounds, Check, Outcome, broken
from benchmarks.failover.network import addresses_of, free_range
from benchmarks.failover.rows import BY_NAME, ROWS, Row, keys_left, registry_words
from benchmarks.failover.seen import (
    Asked,
    Attempt,
    Noticed,
    Record,
    StreamSeen,
    Trace,
    at_once,
    noticed,
    rate_per_s,
    refused_for_s,
    silences,
    sounds_of,
    unsound_records,
)
from benchmarks.failover.stores import Usage, sentinel_configuration
from benchmarks.failover.talk import behind_of
from benchmarks.failover.world import Spec
from benchmarks.point import sum_of
from tests.deploy.haproxy import HAPROXY, needs_haproxy

SID = "CA" + "1" * 32
FAULT, UNTIL = 100.0, 120.0


def call(*streams: StreamSeen, gaps=(), ended=None, hung_up=False) -> Trace:
    return Trace(SID, 50.0, ended, hung_up, streams or (stream(50.0),), gaps)


def stream(began: float, ended=None, sounded_after_s: float | None = 0.2) -> StreamSeen:
    sounded = None if sounded_after_s is None else began + sounded_after_s
    return StreamSeen(began, ended, sounded, "ws://127.0.0.1/n/n0/stream")


def test_a_call_that_nothing_happens_to_notices_nothing():
    seen = noticed(call(ended=130.0, hung_up=True), FAULT, UNTIL)

    assert seen.lived
    assert not seen.is_hit


def test_telephones_that_cannot_keep_up_make_a_row_worth_nothing():
    in_time, late = call(), replace(call(), behind_s=9.7)

    assert behind_of([]) is None
    assert behind_of([in_time, replace(in_time, behind_s=0.9)]) is None
    said = behind_of([in_time, late])
    assert said is not None
    assert not said.holds
    assert said.measured.startswith("9.7 s behind")


def test_a_new_stream_is_timed_from_the_fault_to_it_and_to_the_agent():
    trace = call(stream(50.0, ended=100.1), stream(100.4), gaps=[(100.0, 101.5)])

    seen = noticed(trace, FAULT, UNTIL)

    assert seen.lived
    assert seen.is_hit
    assert seen.stream_s == pytest.approx(0.4)
    assert seen.heard_s == pytest.approx(0.6)


def test_an_agent_that_is_silent_for_long_on_the_same_stream_is_missed_from_the_fault_on():
    seen = noticed(call(gaps=[(101.0, 110.0)]), FAULT, UNTIL)

    assert seen.stream_s is None
    assert seen.heard_s == pytest.approx(10.0)


def test_a_call_whose_agent_is_not_heard_again_is_said_to_be_deaf():
    for trace in (
        call(gaps=[(101.0, 125.0)], ended=125.0, hung_up=True),
        call(stream(50.0, ended=100.1), stream(101.0, sounded_after_s=None), gaps=[(100.0, 140.0)]),
    ):
        seen = noticed(trace, FAULT, UNTIL)

        assert seen.is_deaf
        assert "1 calls live and have not heard the agent again" in broken(
            Outcome(wanted=1, calls=[seen]), Bounds()
        )


def test_a_call_that_ends_before_it_is_to_has_not_lived_unless_its_own_phone_has_ended_it():
    assert not noticed(call(ended=105.0), FAULT, UNTIL).lived
    assert noticed(call(ended=105.0, hung_up=True), FAULT, UNTIL).lived
    assert noticed(call(ended=125.0), FAULT, UNTIL).lived


def test_the_end_of_a_call_is_not_taken_for_its_agent():
    seen = noticed(
        call(stream(50.0, ended=100.1), gaps=[(100.0, 105.0)], ended=105.0), FAULT, UNTIL
    )

    assert not seen.lived
    assert seen.heard_s is None


def test_only_calls_that_are_answered_and_not_over_are_up():
    assert call().was_up(FAULT)
    assert not call(ended=99.0).was_up(FAULT)
    assert not replace(call(), answered=None).was_up(FAULT)
    assert not replace(call(), answered=101.0).was_up(FAULT)


def test_silence_is_what_lies_between_two_sounds_or_after_the_last_one():
    sounds = [(0.0, 1.0), (1.5, 2.0), (4.0, 5.0)]

    assert silences(sounds, until=5.5) == [(2.0, 4.0)]
    assert silences(sounds, until=7.0) == [(2.0, 4.0), (5.0, 7.0)]
    assert silences([], until=7.0) == []


def test_sounds_are_runs_of_frames_that_are_not_silent():
    frames = bytes([9, 9, 1, 2, 9, 3])

    found = sounds_of(10.0, frames, silence=9)

    assert found == [
        (pytest.approx(10.04), pytest.approx(10.08)),
        (pytest.approx(10.10), pytest.approx(10.12)),
    ]


def test_streams_of_a_call_that_overlap_are_counted():
    assert at_once(call(stream(50.0, ended=100.0), stream(100.0))) == 1
    assert at_once(call(stream(50.0, ended=101.0), stream(100.0))) == 2
    assert at_once(call(stream(50.0), stream(100.0))) == 2


def test_how_long_everybody_was_refused_is_from_the_first_to_the_next_who_was_not():
    attempts = [Attempt(at, taken) for at, taken in [(0, True), (1, False), (2, False), (4, True)]]

    assert refused_for_s(attempts) == 3
    assert refused_for_s([*attempts, Attempt(9, taken=False)]) == 3
    assert refused_for_s([]) == 0
    assert refused_for_s([Attempt(0, taken=False), Attempt(7, taken=False)]) == 7


def test_a_rate_is_of_the_time_between_the_first_and_the_last():
    assert rate_per_s([10.0, 10.4, 10.2]) == pytest.approx(5.0)
    assert rate_per_s([10.0]) == rate_per_s([10.0, 10.0]) == 0.0


def test_a_record_has_to_be_there_once_and_of_the_whole_call():
    over = call(ended=110.0)
    good = Record(SID, "ended", "caller-hung-up", 60.2)

    assert unsound_records([over], [good]) == []
    assert unsound_records([over], []) == [f"{SID} has 0 records"]
    assert unsound_records([over], [good, good]) == [f"{SID} has 2 records"]
    assert unsound_records([over], [replace(good, state="live", reason=None)]) == [
        f"{SID} is live in its record"
    ]
    assert unsound_records([over], [replace(good, turns=3)]) == []
    assert unsound_records([over], [replace(good, turns=0)]) == [f"{SID} has no turn in its record"]
    assert unsound_records([over], [replace(good, not_whole="lost")]) == [
        f"{SID} has a summary only: lost"
    ]
    assert unsound_records([over], [replace(good, duration_s=48.0)]) == [
        f"{SID} lasted 60.0 s, recorded 48.0 s"
    ]


@pytest.mark.parametrize(("after", "holds"), [(76, True), (77, False)])
def test_a_registry_has_a_key_for_each_call_at_most(after, holds):
    assert keys_left(10, after, rounds=6, calls=10).holds == holds


GOOD = Outcome(
    wanted=2,
    calls=[Noticed("a", lived=True, stream_s=0.3, heard_s=0.6), Noticed("b", lived=True)],
    records=2,
)
BOUNDS = Bounds(stream_max_s=0.5, heard_p95_s=1.0, least_hit=0.5)


def test_an_outcome_within_all_bounds_is_met():
    assert broken(GOOD, BOUNDS) == []


@pytest.mark.parametrize(
    ("changes", "bounds", "said"),
    [
        ({"failed": "nothing came up"}, BOUNDS, "nothing came up"),
        ({"wanted": 3}, BOUNDS, "only 2 of 3 calls were up"),
        ({"calls": [Noticed("a", lived=False), GOOD.calls[0]]}, BOUNDS, "1 of 2 calls ended"),
        ({}, Bounds(nobody_notices=True), "1 of 2 calls noticed it"),
        ({}, Bounds(least_hit=1.0), "only 1 of 2 calls were met by it"),
        ({}, Bounds(stream_max_s=0.2), "the new stream came after 0.30 s (max), not 0.2"),
        ({}, Bounds(heard_p95_s=0.5), "the agent came after 0.60 s (p95), not 0.5"),
        (
            {"by_old": [Asked(101.0, "127.0.0.1:1", "update", SID, 200)]},
            BOUNDS,
            "the old node asked 1 things of the carrier",
        ),
        ({"twice": ["a: 2 streams at once"]}, BOUNDS, "1 calls were handled twice"),
        ({"unsound": ["a has 0 records"]}, BOUNDS, "1 records are missing or not whole"),
        (
            {"checks": [Check("keys left", "0", "3", holds=False)]},
            BOUNDS,
            "keys left: 3, not 0",
        ),
    ],
)
def test_whatever_is_not_kept_is_said(changes, bounds, said):
    assert broken(replace(GOOD, **changes), bounds) == [said]


def test_figures_are_of_the_calls_that_noticed_something():
    figures = GOOD.figures()

    assert figures["noticed"] == 1
    assert figures["heard_s"] == {"p50": 0.6, "p95": 0.6, "max": 0.6}


def test_every_outcome_has_its_line_in_the_table():
    shown = table({row.name: Outcome(failed="not tried") for row in ROWS}, calls=20)

    assert shown.row_count == len(ROWS) == len(BY_NAME)


def test_a_row_that_takes_too_long_ends_and_is_an_outcome(monkeypatch):
    def hang(*arguments, **options):
        time.sleep(30.0)

    monkeypatch.setattr("benchmarks.failover.command.open_world", hang)
    row = Row("r", "r", "", Spec(registry=""), hang, most_s=0.05)

    outcome = try_row(row, 1, {})

    assert outcome.failed.startswith("RowLate: not done after 0.05 s")
    assert broken(outcome, row.bounds) == [outcome.failed]


def test_what_is_done_in_time_is_left_alone():
    with at_most(60.0):
        pass

    with pytest.raises(RowLate), at_most(0.01):
        time.sleep(30.0)


PLACES = [Place("n0", "198.51.100.2:8000"), Place("n1", "198.51.100.6:8000")]


def test_a_path_that_names_a_node_goes_to_it_and_to_its_processes(tmp_path):
    shipped = balancer.SHIPPED.read_text()

    written = balancer.expanded(shipped, PLACES, 8001, tmp_path / "admin")

    streams, _, rest = written.partition("\nbackend resumes")
    _, _, requests = rest.partition("\nbackend requests")
    assert "    acl of_n1 path_beg /n/n1/ /n/n1." in streams.splitlines()
    assert "    use-server n1 if of_n1" in streams.splitlines()
    named = "    use-server n1 if { path_beg /n/n1/ /n/n1. }"
    assert named in requests.splitlines()
    assert named not in rest.partition("\nbackend requests")[0].splitlines()
    assert "shutdown-sessions" not in written


@needs_haproxy
def test_haproxy_takes_what_is_written_for_it(tmp_path):
    tunnels = [Tunnel("rest-n0", "127.0.0.1:8020", "127.0.0.1:8021")]
    shipped = balancer.SHIPPED.read_text()
    for name, written in (
        ("front", balancer.expanded(shipped, PLACES, 8001, tmp_path / "admin", tunnels)),
        ("tunnels", balancer.tunnel_configuration(tunnels, tmp_path / "admin")),
    ):
        file = tmp_path / name
        file.write_text(written)

        checked = subprocess.run(
            [HAPROXY, "-c", "-f", str(file)], capture_output=True, text=True, timeout=30
        )

        assert checked.returncode == 0, checked.stderr


SHIPPED = """
global
    stats socket "${ADMIN-/run/admin.sock}" mode 600 level admin
frontend public
    bind "${LISTEN-:443}" ssl crt /etc/certs
# n0 and n1 are the nodes
backend streams
    acl of_n0 path_beg /n/n0/ /n/n0.
    acl of_n1 path_beg /n/n1/ /n/n1.
    acl of_a_node path_beg /n/n0/ /n/n0.
    acl of_a_node path_beg /n/n1/ /n/n1.
    http-request deny deny_status 503 if of_n0 !{ srv_is_up(streams/n0) }
    http-request deny deny_status 503 if of_n1 !{ srv_is_up(streams/n1) }
    http-request deny deny_status 503 unless of_a_node
    use-server n0 if of_n0
    use-server n1 if of_n1
    server n0 "${NODE_0-node-0:8000}"
    server n1 "${NODE_1-node-1:8000}"
"""


def test_what_users_are_given_is_written_for_as_many_nodes_as_there_are(tmp_path):
    places = [*PLACES, Place("n2", "198.51.100.10:8000")]

    written = balancer.expanded(SHIPPED, places, 8001, tmp_path / "admin")

    assert [line.strip() for line in written.splitlines() if "n2" in line] == [
        "acl of_n2 path_beg /n/n2/ /n/n2.",
        "acl of_a_node path_beg /n/n2/ /n/n2.",
        "http-request deny deny_status 503 if of_n2 !{ srv_is_up(streams/n2) }",
        "use-server n2 if of_n2",
        "server n2 198.51.100.10:8000",
    ]
    assert "bind 127.0.0.1:8001\n" in written
    assert f"stats socket {tmp_path / 'admin'} " in written
    assert "$" not in written
    assert written.count("http-request deny deny_status 503 unless of_a_node\n") == 1
    assert written.count("server n1 198.51.100.6:8000") == 1


def test_another_form_of_what_users_are_given_is_not_guessed_at(tmp_path):
    with pytest.raises(ValueError, match="no line for a node n0"):
        balancer.expanded("global\n", PLACES, 8001, tmp_path / "admin")


def test_a_backend_is_up_when_each_of_its_servers_is():
    text = (
        "# pxname,svname,status,\nstreams,n0,UP,\nstreams,n1,{},\nstreams,BACKEND,UP,\n"
        "requests,n0,DOWN,\n"
    )

    assert balancer.are_up(text.format("UP 1/2"), "streams")
    assert not balancer.are_up(text.format("DOWN"), "streams")
    assert not balancer.are_up(text.format("UP"), "elsewhere")
    assert not balancer.are_up("", "streams")


def test_a_range_of_addresses_that_is_in_use_is_not_taken():
    assert str(free_range("default via 10.0.0.1 dev eth0")) == "198.51.100.0/24"
    assert str(free_range("blackhole 198.51.100.0/24 metric 4000")) == "203.0.113.0/24"
    assert str(free_range("198.51.100.4/30 dev a\n203.0.113.9 dev b")) == "192.0.2.0/24"
    assert free_range("198.51.100.0/24 203.0.113.0/24 default via 192.0.2.1") is None


def test_each_node_has_a_small_network_of_its_own():
    network = free_range("")
    assert network is not None

    assert addresses_of(network, 0) == ("198.51.100.1", "198.51.100.2")
    assert addresses_of(network, 2) == ("198.51.100.9", "198.51.100.10")


def test_sentinels_are_told_of_one_primary(tmp_path):
    written = sentinel_configuration(7001, 7000, tmp_path, down_after_s=1.0)

    assert "sentinel monitor offhook 127.0.0.1 7000 2" in written
    assert "sentinel down-after-milliseconds offhook 1000" in written


def test_samples_of_a_metric_are_added_up():
    text = '# HELP a b\ncalls 1.0\ncalls{worker="1"} 2.0\ncalls_more 9.0\n'

    assert sum_of(text, "calls") == 3.0


def test_the_guardian_ends_and_removes_what_is_left_and_nothing_else(tmp_path):
    ours = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    others = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    left = tmp_path / "left"
    left.mkdir()
    try:
        watch = guardian.Guardian()
        watch.told("pid", ours.pid)
        watch.told("directory", str(left))
        # Its number is somebody else's by now.
        guardian.clean_up([f"pid {others.pid} 1"])

        watch.close()

        assert ours.wait(30) != 0
        assert others.poll() is None
        assert not left.exists()
    finally:
        for process in (ours, others):
            process.kill()
            process.wait()


def test_what_a_call_costs_the_registry_is_what_is_more_than_without_calls():
    seen = [
        Usage(at=100.0, operations=50, cpu_s=1.0, state_bytes=0.0),
        Usage(at=110.0, operations=70, cpu_s=1.01, state_bytes=0.0),
        Usage(at=120.0, operations=200, cpu_s=1.1, state_bytes=900.0),
        Usage(at=140.0, operations=440, cpu_s=1.14, state_bytes=1_100.0),
    ]

    said = registry_words(seen, calls=20)

    assert said == (
        "2.0 operations a second without calls, 0.50 more for each call; 1100 bytes of state a call"
    )


@pytest.mark.sockets
def test_connections_are_counted_for_the_process_that_has_them():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert processes.connections_to(os.getpid(), port) == 0
        with socket.create_connection(("127.0.0.1", port)), server.accept()[0]:
            assert processes.connections_to(os.getpid(), port) == 1
            assert processes.connections_to(os.getppid(), port) == 0
