"""How the ear does in real rooms, and how other detectors do there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial

import webrtcvad
from prometheus_client import CollectorRegistry
from rich.table import Table

from benchmarks import ear_goals, listening, plots, rooms
from benchmarks.listening import MakeEar
from benchmarks.options import Options
from codec import decode_mulaw
from codec.ear import SpeechEnded, SpeechStarted, Stop
from server.dialogue.ear import BargeInMode, Ear, Found
from server.dialogue.opening import Opening
from server.dialogue.playout import Playout
from server.metrics import VoiceMetrics
from server.voice.judge import MAX_CALLS, Judge
from server.voice.silero import Silero, is_installed

LEVELS_DB = (None, 20.0, 15.0, 10.0)
"""How far the room is under the caller; None for a quiet line."""
ALONE_DB = (15.0, 5.0)
BEHIND = ("city", "office", "forest", "traffic", "car")
"""Rooms behind somebody who speaks, one after the other."""
COUGHS = 60
LOSSES = (0.0, 0.03, 0.08)
DETECTOR, JUDGED = "offhook", "offhook, judged"
CALLS = (1, 100, 400)
ROUNDS = 3
"""The least of so many: what else runs on the machine makes it more, never less."""
COSTED_S = 10.0
"""Of each call, for what it costs."""


def run(options: Options) -> dict[str, object]:
    console = options.console
    for package in rooms.missing():
        console.print(f"not installed, and left out: {package.name} ({package.install})")
    material = _Material.gather(options)
    if not material.sentences or not material.alone:
        console.print("no rooms without voices and noise")
        return {}
    figures = {name: _figures(make, material) for name, make in _ears().items()}
    for print_table in (_print_alarms, _print_onsets, _print_ends, _print_watchdog):
        print_table(options, figures)
    _print_losses(options, material)
    costs = _costs_ms(material)
    _print_costs(options, costs)
    missed = _print_goals(options, figures, costs)
    if options.plots is not None and plots.have_matplotlib():
        _plot(options, figures)
    plain: dict[str, object] = json.loads(json.dumps({n: asdict(f) for n, f in figures.items()}))
    return plain | {"cost_ms": costs, "missed": missed}


@dataclass(frozen=True, slots=True)
class _Material:
    """The same for every ear."""

    alone: Mapping[tuple[str, float], bytes]
    sentences: Mapping[float | None, list[rooms.Mix]]
    words: Mapping[float | None, list[rooms.Mix]]
    coughs: list[bytes]
    questions: Mapping[str, tuple[rooms.Mix, bytes]]

    @classmethod
    def gather(cls, options: Options) -> _Material:
        said = rooms.sentences(30 if options.quick else 120)
        words = rooms.words(50 if options.quick else 200)
        seconds = 40.0 if options.quick else 120.0
        names = [name for name in (*rooms.NOISES, *rooms.VOICES) if rooms.is_there(name)]
        behind = [name for name in BEHIND if name in names]

        def mixes(what: list[rooms.Utterance], snr_db: float | None) -> list[rooms.Mix]:
            return [
                rooms.said_in(
                    each, behind[n % len(behind)] if snr_db is not None else None, snr_db or 0.0, n
                )
                for n, each in enumerate(what)
            ]

        return cls(
            alone={
                (name, snr_db): rooms.room_alone(name, seconds, snr_db)
                for name in names
                for snr_db in ALONE_DB
            },
            sentences={snr_db: mixes(said, snr_db) for snr_db in LEVELS_DB} if said else {},
            words={snr_db: mixes(words, snr_db) for snr_db in LEVELS_DB},
            coughs=[rooms.coughed(seed) for seed in range(COUGHS)],
            questions={
                name: (
                    rooms.said_in(said[0], name, 15.0, 1),
                    rooms.room_alone(name, listening.WATCHED_S, 15.0),
                )
                for name in names
                if said
            },
        )


@dataclass(frozen=True, slots=True)
class _Figures:
    holds: Mapping[str, float]
    """In ten minutes of each room, 15 dB under a caller; and at 5 dB."""
    holds_at_5_db: Mapping[str, float]
    starts: Mapping[str, float]
    speaking: Mapping[str, float]
    coughs: float
    sentences: Mapping[str, listening.Soon]
    words: Mapping[str, listening.Soon]
    turns: Mapping[str, listening.Soon]
    """Short words while the agent is silent."""
    ends: Mapping[str, listening.Soon]
    noticed_s: Mapping[str, float | None]


def _figures(make: MakeEar, material: _Material) -> _Figures:
    def alone(measure: Callable[[MakeEar, bytes], float], wanted_db: float) -> dict[str, float]:
        return {
            name: measure(make, payload)
            for (name, snr_db), payload in material.alone.items()
            if snr_db == wanted_db
        }

    def soon(
        measure: Callable[[MakeEar, Iterable[rooms.Mix]], listening.Soon],
        mixes: Mapping[float | None, list[rooms.Mix]],
    ) -> dict[str, listening.Soon]:
        return {_level(snr_db): measure(make, each) for snr_db, each in mixes.items()}

    return _Figures(
        holds=alone(listening.false_holds, 15.0),
        holds_at_5_db=alone(listening.false_holds, 5.0),
        starts=alone(listening.false_starts, 15.0),
        speaking=alone(listening.share_speaking, 15.0),
        coughs=sum(listening.false_holds(make, each) > 0 for each in material.coughs) / COUGHS,
        sentences=soon(listening.held, material.sentences),
        words=soon(listening.held, material.words),
        turns=soon(listening.started, material.words),
        ends=soon(listening.ended, material.sentences),
        noticed_s={
            name: listening.noticed_s(make, *each) for name, each in material.questions.items()
        },
    )


def _level(snr_db: float | None) -> str:
    return "quiet line" if snr_db is None else f"{snr_db:.0f} dB"


# ---- Ears ----


def _ears() -> dict[str, MakeEar]:
    judged: dict[str, MakeEar] = {}
    if is_installed():
        model = Silero(MAX_CALLS)
        judged = {
            JUDGED: partial(_judged, model),
            f"{JUDGED}, caller known": partial(_judged, model, caller_dbfs=rooms.CALLER_DBFS),
        }
    return {
        DETECTOR: _ours,
        **judged,
        "WebRTC 2": partial(_webrtc, 2),
        "WebRTC 3": partial(_webrtc, 3),
    }


def _ours(agent_heard: bool) -> listening.Hear:
    ear = _ear(agent_heard, None)
    return lambda frame, at: ear.hear(frame, at).found


def _judged(model: Silero, agent_heard: bool, caller_dbfs: float | None = None) -> listening.Hear:
    """Judged as a server does, which looks every 20 ms (``judge.TICK_S``) and asks in a thread.

    Its ticks are as unlucky as can be: each comes right before a frame, so that what a frame has
    completed is judged when the next is there. What the thread takes is less than that, and in it.
    """
    now = 0.0
    judge = Judge(model, VoiceMetrics(CollectorRegistry()), now=lambda: now)
    ear = _ear(agent_heard, judge)
    ear._verdicts.caller_dbfs = caller_dbfs
    later: list[Found] = []
    ear.on_found = later.extend

    def hear(frame: bytes, at: float) -> list[Found]:
        nonlocal now
        now = at
        later.clear()
        judge.judge_now()
        return [*later, *ear.hear(frame, at).found]

    return hear


def _ear(agent_heard: bool, voices: Judge | None) -> Ear:
    playout, opening = Playout(remember=True), Opening(greets=False)
    ear = Ear(playout, opening, mode=BargeInMode.BOTH, voices=voices)
    ear.judge.played.open = True
    ear.judge.played.marks_out = int(agent_heard)
    return ear


def _webrtc(aggressiveness: int, agent_heard: bool) -> listening.Hear:
    """The detector by itself: three frames in a row are speech, half a second without its end."""
    detector = webrtcvad.Vad(aggressiveness)
    on = off = 0
    speaks = False

    def hear(frame: bytes, at: float) -> list[Found]:
        nonlocal on, off, speaks
        is_speech = detector.is_speech(decode_mulaw(frame), rooms.RATE_HZ)
        on, off = (on + 1, 0) if is_speech else (0, off + 1)
        if not speaks and on >= 3:
            speaks = True
            return [SpeechStarted(at - 0.06), Stop.HOLD]
        if speaks and off >= 25:
            speaks = False
            return [SpeechEnded(at - 0.5, 0.5, at), Stop.RESUME]
        return []

    return hear


# ---- What it costs ----


def _costs_ms(material: _Material) -> dict[str, dict[int, float]]:
    """Processor time a call and second: of the ear, and of the judge with it, of so many calls.

    Calls come from all rooms, half of the agents speak, and all frames of 20 ms come at once: the
    judge is asked once for all of them. What a thread costs comes on top.
    """
    rooms_alone = [material.alone[name, 15.0] for name in rooms.NOISES if rooms.is_there(name)]
    quiet = [rooms.room_alone("white", COSTED_S, 40.0)]
    model = Silero(MAX_CALLS) if is_installed() else None
    found: dict[str, dict[int, float]] = {}
    for lines, payloads in (("quiet lines", quiet), ("rooms", rooms_alone)):
        for ear, chosen in ((DETECTOR, None), (JUDGED, model)):
            if chosen is not None or ear == DETECTOR:
                costs = {
                    calls: min(_cost_ms(chosen, payloads, calls) for _ in range(ROUNDS))
                    for calls in CALLS
                }
                found[f"{ear}, {lines}"] = costs
    return found


def _cost_ms(model: Silero | None, payloads: list[bytes], calls: int) -> float:
    now = 0.0
    judge = None
    if model is not None:
        judge = Judge(model, VoiceMetrics(CollectorRegistry()), now=lambda: now)
        judge.judge_now()
    ears = [_ear(bool(number % 2), judge) for number in range(calls)]
    cut = [rooms.frames(payload) for payload in payloads]
    count = round(COSTED_S / listening.FRAME_S)
    began = time.process_time()
    for number in range(count):
        now += listening.FRAME_S
        for which, ear in enumerate(ears):
            frames = cut[which % len(cut)]
            ear.hear(frames[(number + 37 * which) % len(frames)], now)
        if judge is not None and judge.is_busy:
            judge.judge_now()
    return 1_000 * (time.process_time() - began) / calls / COSTED_S


# ---- Tables ----


def _print_goals(
    options: Options, figures: Mapping[str, _Figures], costs: Mapping[str, Mapping[int, float]]
) -> list[str]:
    """Print what has to be reached, by the detector before and by the judge; says what is not."""
    noises = [name for name in rooms.NOISES if rooms.is_there(name)]
    found = {
        ear: ear_goals.goals(figures[ear], noises) for ear in (DETECTOR, JUDGED) if ear in figures
    }
    options.console.print(ear_goals.table_of(found))
    if JUDGED not in found:
        options.console.print("no judge: pip install offhook[ear]")
        return ["the judge is not installed"]
    cost = ear_goals.cost_goals(costs, JUDGED, DETECTOR)
    options.console.print(ear_goals.table_of({JUDGED: cost}))
    options.console.print("audio p99 at 100 calls with and without it: python -m benchmarks calls")
    return [goal.what for goal in (*found[JUDGED], *cost) if not goal.is_met]


def _print_losses(options: Options, material: _Material) -> None:
    """How a judge does where a network has lost frames, in rooms 20 dB under the caller."""
    columns = [f"{share:.0%} lost" for share in LOSSES]
    title = "Sentence holds, 20 dB, frames lost in bursts: p50 ms / p95 ms / missed"
    table = Table("ear", *columns, title=title)
    for ear, make in _ears().items():
        cells = []
        for share in LOSSES:
            mixes = [
                replace(mix, payload=rooms.dropped(mix.payload, share, seed)) if share else mix
                for seed, mix in enumerate(material.sentences[20.0])
            ]
            cells.append(str(listening.held(make, mixes)))
        table.add_row(ear, *cells)
    options.console.print(table)


def _print_costs(options: Options, costs: Mapping[str, Mapping[int, float]]) -> None:
    columns = [f"{calls} calls" for calls in CALLS]
    table = Table("ear", *columns, title="Processor time, milliseconds a call and second")
    for ear, each in costs.items():
        table.add_row(ear, *(f"{each[calls]:.2f}" for calls in CALLS))
    options.console.print(table)


def _print_alarms(options: Options, figures: Mapping[str, _Figures]) -> None:
    for what, key, form in (
        ("the agent is held, times in ten minutes, 15 dB under a caller", "holds", "{:.0f}"),
        ("the same, 5 dB under a caller", "holds_at_5_db", "{:.0f}"),
        ("a turn begins, times in ten minutes, 15 dB under a caller", "starts", "{:.0f}"),
        ("somebody is taken to speak, share of the time", "speaking", "{:.0%}"),
    ):
        names = list(getattr(next(iter(figures.values())), key))
        table = Table("ear", *names, title=f"Nobody speaks to the agent: {what}")
        for ear, each in figures.items():
            table.add_row(ear, *(form.format(getattr(each, key)[name]) for name in names))
        options.console.print(table)
    for ear, each in figures.items():
        options.console.print(f"coughs that hold the agent, {ear}: {each.coughs:.0%}")


def _print_onsets(options: Options, figures: Mapping[str, _Figures]) -> None:
    levels = [_level(snr_db) for snr_db in LEVELS_DB]
    title = "From the first sound: p50 ms / p95 ms / missed"
    table = Table("ear", "what", *levels, title=title)
    for ear, each in figures.items():
        for what, soons in (
            ("sentence holds", each.sentences),
            ("word holds", each.words),
            ("word begins turn", each.turns),
        ):
            table.add_row(ear, what, *(str(soons[level]) for level in levels))
        table.add_section()
    options.console.print(table)


def _print_ends(options: Options, figures: Mapping[str, _Figures]) -> None:
    levels = [_level(snr_db) for snr_db in LEVELS_DB]
    title = "From the last sound of a sentence to the end of the turn: p50 ms / p95 ms / never"
    table = Table("ear", *levels, title=title)
    for ear, each in figures.items():
        table.add_row(ear, *(str(each.ends[level]) for level in levels))
    options.console.print(table)


def _print_watchdog(options: Options, figures: Mapping[str, _Figures]) -> None:
    names = list(next(iter(figures.values())).noticed_s)
    title = "A model that never answers is noticed after seconds, the room 15 dB under the caller"
    table = Table("ear", *names, title=title)
    for ear, each in figures.items():
        found = (each.noticed_s[name] for name in names)
        table.add_row(ear, *("never" if at is None else f"{at:.1f}" for at in found))
    options.console.print(table)


def _plot(options: Options, figures: Mapping[str, _Figures]) -> None:
    assert options.plots is not None
    drawing, ((left, right),) = plots.figure(columns=2)
    colours = plots.colours(list(figures))
    for ear, each in figures.items():
        names = list(each.holds)
        left.plot(names, list(each.holds.values()), "o-", label=ear, color=colours[ear])
        levels = list(each.sentences)
        right.plot(levels, [each.sentences[level].p50_ms for level in levels], "o-",
                   label=ear, color=colours[ear])  # fmt: skip
    left.set(ylabel="false holds in 10 min", title="nobody speaks")
    left.tick_params(axis="x", rotation=60)
    right.set(ylabel="ms to the hold, p50", title="somebody speaks")
    left.legend(fontsize=8)
    plots.save(drawing, options.plots / "ear-rooms.png")
