"""The model itself, where it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry

from codec.ear import Ear, Played
from codec.hops import Hops
from server.metrics import VoiceMetrics
from server.simulators.phone import load_speech
from server.voice.judge import MAX_CALLS, Judge
from server.voice.silero import Silero, is_installed, model_file
from tests.support.noises import frames_of, room
from tests.support.rig import calling

pytestmark = pytest.mark.skipif(not is_installed(), reason="offhook[ear] is not installed")


def judged(model: Silero, payload: bytes, place: int = 0, other: int | None = None) -> list[float]:
    ear = Ear(Played(remember=True), barge_in=False)
    ear.rely_on_judge()
    hops, likely = Hops(ear), []
    model.forget(place)
    for at in range(0, len(payload), 160):
        ear.hear(payload[at : at + 160], (at + 160) / 8_000)
        rows = model.rows(1 if other is None else 2)
        if hops.take(rows[0]):
            if other is not None:
                rows[1] = 0.1
            places = [place] if other is None else [place, other]
            likely.append(model.probabilities(places, rows)[0])
    return likely


def test_a_voice_is_told_from_a_room():
    model = Silero(calls=2)

    speech = judged(model, load_speech("question"))
    noise = judged(model, b"".join(frames_of(room("hiss", 3.0))))

    assert sum(each > 0.7 for each in speech) > len(speech) / 2
    assert max(noise) < 0.3


def test_what_is_remembered_of_a_call_is_its_own():
    model = Silero(calls=8)

    alone = judged(model, load_speech("hello"), place=3)
    beside = judged(model, load_speech("hello"), place=5, other=1)

    assert alone == pytest.approx(beside, abs=1e-3)


def test_the_file_is_somebody_elses_package():
    path = model_file()

    assert path is not None
    assert "site-packages" in path.parts or "dist-packages" in path.parts


def test_nothing_is_reported_to_anybody_and_no_thread_is_left(tmp_path: Path):
    opened = """
import os
from server.voice.silero import Silero
Silero(calls=2)
print(len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1)
"""
    silenced = {"CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS"}
    environment = {name: value for name, value in os.environ.items() if name not in silenced}

    threads = subprocess.run(
        [sys.executable, "-c", opened],
        env=environment | {"TMPDIR": str(tmp_path), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        check=True,
        timeout=120,
    )

    assert threads.stdout.split() == [b"1"]
    assert list(tmp_path.iterdir()) == []  # where its reports would wait


@pytest.mark.parametrize(("callee", "is_held"), [("interrupts", True), ("coughs", False)])
async def test_in_a_whole_call_a_caller_holds_the_agent_and_a_cough_does_not(
    autojump_clock, nursery, callee, is_held
):
    judge = Judge(Silero(calls=MAX_CALLS), VoiceMetrics(CollectorRegistry()), in_thread=False)
    nursery.start_soon(judge.run)
    await trio.testing.wait_all_tasks_blocked()

    async with calling(callee=callee, voices=judge) as rig:
        await rig.over()

    assert ("agent held" in rig.noted) is is_held
    assert rig.call.end_reason == "caller-hung-up"
    assert rig.record["transcript"]
