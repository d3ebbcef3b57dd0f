"""Hostile bytes over real TCP at servers as they are run in production, and at none at all.

``python -m tests.fuzz_server --target socket`` does the same for long.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections import Counter

import pytest
import trio

from benchmarks.load.killers import KILLERS, fields, h2_frame, settings_of
from tests.fuzz_socket import (
    Fuzzer,
    Report,
    fuzz,
    fuzz_beside_calls,
    judged,
    server_kind,
    serving,
)
from tests.support.socket_inputs import (
    KINDS,
    MAKERS,
    MAX_BYTES,
    Conversation,
    Part,
    named,
    numbered,
)

pytestmark = [pytest.mark.sockets, pytest.mark.slow]

reads_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

WAYS_TO_SERVE = {
    "python": {},
    "python, ordinary path": {"media_path": "ordinary"},
    "python, 2 workers": {"workers": 2},
    "hypercorn": {"command": "hypercorn"},
    "hypercorn, 2 workers": {"command": "hypercorn", "workers": 2},
    "hypercorn, TLS": {"command": "hypercorn", "tls": True},
}
QUICK = {"start_timeout_s": "1", "body_timeout_s": "1"}


# ------------------------------------------------------------------------------------------
# What is said


def test_a_conversation_is_repeated_by_its_number():
    assert numbered(1, 17) == numbered(1, 17)
    assert len({numbered(1, number) for number in range(50)}) == 50
    assert numbered(2, 17) != numbered(1, 17)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_input_is_bounded(kind):
    rng = random.Random(kind)

    for _ in range(200):
        said = MAKERS[kind][1](rng)
        assert said
        assert all(isinstance(data, bytes) for data in said)
    for number in range(200):
        assert all(len(part.data) <= MAX_BYTES for part in numbered(3, number).parts)


def test_pieces_are_the_whole_input():
    part = Part("request", (b"GET / ", b"HTTP/1.1"), 0.0, 0.0)

    assert part.data == b"GET / HTTP/1.1"


def test_frames_of_http_2_are_what_its_own_rfc_has():
    assert h2_frame(6, b"12345678", flags=1) == b"\0\0\x08\x06\x01\0\0\0\0" + b"12345678"
    # RFC 7541, C.2.1, without an index; and a length that needs a second byte (C.1.2).
    assert fields([(b"custom-key", b"custom-header")]) == b"\0\x0acustom-key\x0dcustom-header"
    assert fields([(b"x", b"y" * 1337)])[3:6] == b"\x7f\xba\x09"
    assert settings_of((3, 100)) == b"AAMAAABk"


# ------------------------------------------------------------------------------------------
# What comes of it


@pytest.fixture(scope="module", params=WAYS_TO_SERVE)
def victim(request):
    ways = WAYS_TO_SERVE[request.param]
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    with serving(server_kind(**ways), **QUICK) as running:
        yield running


@pytest.mark.parametrize("name", KILLERS)
def test_what_once_ended_a_server_ends_its_own_connection(victim, name):
    report = Report(victim.kind)

    with judged(victim, report):
        trio.run(Fuzzer(victim, [(0, named(name))], report).run)

    assert report.findings == []
    assert report.inputs


def test_a_server_is_the_same_after_a_hundred_hostile_connections(victim):
    last_words: Counter[str] = Counter()
    for seed in range(1, 20):
        report = fuzz(victim, seed=seed, connections=100)
        assert report.findings == []
        assert report.connections >= 100
        assert report.inputs > report.connections
        last_words += report.endings
        if any(words.startswith("101") for words in last_words):
            return  # on a busy machine many leave before they are answered, and none gets so far

    pytest.fail(f"nobody got as far as a WebSocket: {last_words}")


@reads_proc
def test_calls_beside_hostile_connections_lose_no_audio():
    quick = {name.upper(): value for name, value in QUICK.items()}
    report = fuzz_beside_calls(
        server_kind(),
        calls=2,
        warm_s=2.0,
        settings=quick,
        seed=2,
        longest_s=2.0,
        window_s=1.0,
    )

    assert report.findings == []
    assert report.calls == 2
    assert report.frames
    assert report.connections


@reads_proc
def test_a_server_that_dies_is_found_with_its_suspects():
    asked = Part("polite", (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",), 0.0, 0.1)
    endless = ((number, Conversation((asked,), "leave", "")) for number in range(10**9))

    async def kill(fuzzer: Fuzzer) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fuzzer.run)
            os.kill(fuzzer.victim.pid, signal.SIGKILL)

    with serving(server_kind()) as running:
        report = Report(running.kind)
        trio.run(kill, Fuzzer(running, endless, report, longest_s=30.0))

    assert report.findings == ["the server died"]
    assert report.suspects
