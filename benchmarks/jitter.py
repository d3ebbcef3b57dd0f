"""What does a caller hear of a model that drips, over networks that delay, jitter and lose?

Conversations in virtual time, without sockets and without an event loop: a model says recorded
sentences at some speed, a network brings its messages late, the playout decides, another network
brings what is sent to the carrier, and an ear listens to what the carrier plays. TCP loses nothing:
a lost packet is a stall, and then everything at once. Every schedule comes from a seed, and each
way to wait is tried on the same ones.

A gap is what the caller hears between the first and the last sound of a turn. Some of them the
model has made: one that sends nine seconds of speech in ten has to be silent for the tenth. What is
over that, the networks and we have made.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from math import inf
from typing import Any

from rich import box
from rich.table import Table

from benchmarks import jitter_calls
from benchmarks.options import Options, machine, machine_line
from codec.ear import LOUD, loudness
from codec.line import BYTES_PER_S, FRAME_BYTES
from server.carrier import Clear, SendAudio, SendMark
from server.dialogue.cushion import MAX_PAUSE_S, MAX_START_S, Cushion, Lateness
from server.dialogue.playout import Playout
from server.media.wav import data_of

CALLS, QUICK_CALLS = 60, 12
TURNS = 12
SOCKET_CALLS, SOCKET_TURNS, SPEEDS = 20, 6, (4.4, 1.0)
LONG_S = MAX_PAUSE_S + 0.05
"""A gap that is longer may be taken for the end of a turn."""
LEAST_GAIN, MOST_LONG = 0.5, 0.15
COLUMNS = {
    "no gap": ("gapless_share", "{:.0%}"),
    "gaps a turn": ("gaps_per_turn", "{:.1f}"),
    "not the model's": ("unmade_ms_per_turn", "{:.0f} ms"),
    "too long": ("long_per_turn", "{:.2f}"),
    "waited": ("waited_p50_ms", "{:.0f} ms"),
}
"""What is shown of each row, and how; of these two ways to wait."""
SHOWN = ("fixed", "measured")
HEARD_S = 0.01
"""A gap that is shorter is not heard as one."""
PACKET_BYTES = 1_400
CHUNK_BYTES_PER_S = 64_000
"""A second of agent audio on the wire: 24 kHz, 16 bits, in base64."""


# --- What there is to be heard --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Model:
    """How a model sends a turn."""

    speed: float
    """Seconds of speech in a second."""
    chunk_ms: tuple[int, ...]
    turn_s: tuple[float, float] = (2.0, 7.0)


BURSTS = (40, 80, 120, 200, 100, 160)
MODELS = {
    "4.4x": Model(4.4, BURSTS),
    "1.0x": Model(1.0, (160, 320, 640, 240)),
    "1.0x, small chunks": Model(1.0, (40,)),
    "0.9x": Model(0.9, BURSTS, (3.0, 3.0)),
    "0.9x, long turns": Model(0.9, BURSTS, (8.0, 8.0)),
}


@dataclass(frozen=True, slots=True)
class Network:
    """One connection over TCP, one way."""

    delay_s: float = 0.005
    jitter_s: float = 0.0
    loss: float = 0.0
    """Of packets: each is a stall of one or two round trips, and then all that has waited."""
    stall_every_s: float = inf
    stall_s: tuple[float, float] = (0.1, 0.5)


NETWORKS = {
    "clean": Network(),
    "80 ms +- 20": Network(0.08, 0.02),
    "80 ms +- 20, 1 % lost": Network(0.08, 0.02, 0.01),
    "stalls of 0.1-0.5 s": Network(0.08, 0.02, 0.0, 4.0),
}


class Passage:
    """What a network does to messages, in their order."""

    def __init__(self, network: Network, dice: random.Random) -> None:
        self._network = network
        self._dice = dice
        self._last_at = 0.0
        self._stalls_at = self._next_stall(0.0)

    def arrival(self, sent_at: float, size: int) -> float:
        """When a message of so many bytes on the wire arrives whole."""
        network, dice = self._network, self._dice
        at = sent_at + network.delay_s + dice.uniform(-network.jitter_s, network.jitter_s)
        for _ in range(-(-size // PACKET_BYTES)):
            if dice.random() < network.loss:
                at = max(at, sent_at + network.delay_s * dice.uniform(3.0, 5.5))
        while sent_at >= self._stalls_at:
            at = max(at, self._stalls_at + dice.uniform(*network.stall_s))
            self._stalls_at = self._next_stall(self._stalls_at)
        self._last_at = max(self._last_at, at)
        return self._last_at

    def _next_stall(self, after: float) -> float:
        if self._network.stall_every_s == inf:
            return inf
        return after + self._dice.expovariate(1 / self._network.stall_every_s)


def spoken() -> bytes:
    """Some seconds of the agent's recorded voice, as mu-law."""
    names = ("agent-greeting", "agent-voicemail", "agent-i-heard", "agent-still-here")
    folder = resources.files("server").joinpath("speech")
    return b"".join(data_of((folder / f"{name}.wav").read_bytes()) for name in names)


# --- Who waits how --------------------------------------------------------------------------------


class NoCushion(Cushion):
    """Whatever comes goes out."""

    def take(self, *_: object, **__: object) -> int:
        """Nothing gathers."""
        return 0


class FixedCushion(NoCushion):
    """A turn that has run dry waits for 0.1 s, and each time twice as long, up to 0.8 s."""

    _turn = -1

    def take(
        self,
        payload: bytes,
        turn: int,
        now: float,
        *,
        made_s: float,
        play_end: float,
        goes_on: bool,
    ) -> int:
        """Audio that comes too late waits, however long the silence already is."""
        if goes_on and now > play_end:
            self._pause_s = min(0.8, 2 * self._pause_s) if turn == self._turn else 0.1
            self._turn, self.until = turn, now + self._pause_s
        return 0

    def hold(self, size: int, queued_bytes: int) -> None:
        """However much has gathered, the time is waited for."""


POLICIES: dict[str, Callable[[Lateness], Cushion]] = {
    "none": NoCushion,
    "fixed": FixedCushion,
    "measured": Cushion,
}


# --- One call -------------------------------------------------------------------------------------


@dataclass
class Ear:
    """What the carrier plays, and what is heard of it."""

    play_end: float = 0.0
    turn: int = 0
    last: bytes = b""
    began_at: dict[int, float] = field(default_factory=dict)
    gaps: dict[int, list[tuple[float, bool]]] = field(default_factory=dict)
    """Of each turn: how long, and whether it is where the voice is quiet."""

    def play(self, payload: bytes, turn: int, now: float) -> None:
        """The carrier has got this."""
        self.gaps.setdefault(turn, [])
        self.began_at.setdefault(turn, max(now, self.play_end))
        if turn == self.turn and now - self.play_end > HEARD_S:
            quiet = loudness(self.last[-FRAME_BYTES:]) < LOUD
            self.gaps[turn].append((now - self.play_end, quiet))
        self.turn, self.last = turn, payload
        self.play_end = max(now, self.play_end) + len(payload) / BYTES_PER_S


@dataclass(slots=True)
class Turn:
    """What was heard of a turn, and what could have been."""

    waited_s: float
    """Between its first audio's arrival here and its going out."""
    gaps: list[tuple[float, bool]]
    made_s: float
    """Silence that the model has made: an ideal network would have had it, too."""

    @property
    def unmade_s(self) -> float:
        """Silence that the model has not made."""
        return max(0.0, sum(gap for gap, _ in self.gaps) - self.made_s)


def chunks(model: Model, dice: random.Random, speech: bytes) -> Iterator[tuple[float, bytes]]:
    """One turn: when each chunk is sent, from its beginning on, and the chunk."""
    size = int(dice.uniform(*model.turn_s) * BYTES_PER_S)
    at = dice.randrange(len(speech) - 1) // FRAME_BYTES * FRAME_BYTES
    said = (speech[at:] + speech * 3)[:size]
    lengths = itertools.cycle(model.chunk_ms)
    sent = 0
    while sent < len(said):
        yield sent / BYTES_PER_S / model.speed, said[sent : (sent := sent + next(lengths) * 8)]


def call(model: Model, network: Network, cushion: Cushion, seed: str) -> list[Turn]:
    """Have a conversation of some turns; the same for every cushion, as far as can be."""
    playout, ear = Playout(cushion=cushion), Ear()
    dice, speech = random.Random(f"{seed}/model"), spoken()
    model_way, carrier_way, back_way = (
        Passage(network, random.Random(f"{seed}/{way}")) for way in ("model", "carrier", "back")
    )
    events: list[tuple[float, int, str, Any]] = []
    number = itertools.count()
    sent_at: dict[int, float] = {}
    turns: list[Turn] = []

    def at(time: float, kind: str, what: Any = None) -> None:
        heapq.heappush(events, (time, next(number), kind, what))

    now = 1.0
    playout.open(now)
    for turn in range(1, TURNS + 1):
        said = list(chunks(model, dice, speech))
        made_s, before_s, first_at = 0.0, 0.0, inf
        for after_s, chunk in said:
            arrived_at = model_way.arrival(
                now + after_s, len(chunk) * CHUNK_BYTES_PER_S // BYTES_PER_S
            )
            first_at = min(first_at, arrived_at)
            at(arrived_at, "says", chunk)
            made_s = max(made_s, after_s - before_s)
            before_s += len(chunk) / BYTES_PER_S
        at(arrived_at, "ends")
        while events:
            now, _, kind, what = heapq.heappop(events)
            match kind:
                case "says":
                    playout.push(what, turn, now)
                case "ends":
                    playout.finish_turn(turn)
                case "plays":
                    ear.play(*what, now)
                case "marked":
                    at(max(now, ear.play_end), "reached", what)
                case "reached":
                    at(back_way.arrival(now, 100), "heard", what)
                case "heard":
                    playout.mark_reached(what, now)
            while (command := playout.next_command(now)) is not None:
                match command:
                    case SendAudio(payload=payload):
                        sent_at.setdefault(turn, now)
                        arrived_at = carrier_way.arrival(now, len(payload) * 4 // 3 + 80)
                        at(arrived_at, "plays", (payload, turn))
                    case SendMark(name):
                        at(carrier_way.arrival(now, 100), "marked", name)
                    case Clear():
                        raise AssertionError("nobody has interrupted")
            if (due := playout.next_due()) > now and due != inf:
                at(due, "due")
        turns.append(Turn(sent_at[turn] - first_at, ear.gaps[turn], made_s))
        now = max(now, ear.play_end) + 1.0
    return turns


# --- All of them ----------------------------------------------------------------------------------


def run(options: Options) -> dict[str, object]:
    """Have all the calls, print what they came to, and judge it."""
    chosen = options.arguments
    figures: dict[str, object] = {"versions": machine(("trio",))["versions"]}
    options.console.print(machine_line(machine(("trio",))), highlight=False)
    calls = QUICK_CALLS if options.quick else CALLS
    with options.console.status(f"{calls} calls of {TURNS} turns for every row"):
        compared = compare(calls)
    options.console.print(table(compared, calls))
    figures["compared"] = compared
    broken = judge(compared)
    if not options.quick or chosen.calls:
        heard = {}
        for (name, network), speed in itertools.product(jitter_calls.NETWORKS.items(), SPEEDS):
            with options.console.status(
                f"{chosen.calls or SOCKET_CALLS} calls over sockets: {name}"
            ):
                heard[f"{speed}x, {name}"] = jitter_calls.run_calls(
                    network, calls=chosen.calls or SOCKET_CALLS, turns=SOCKET_TURNS, speed=speed
                )
        options.console.print(calls_table(heard))
        figures["calls"] = heard
    for fault in broken:
        options.console.print(f"[red]broken:[/] {fault}")
    if broken and chosen.check:
        sys.exit(1)
    return figures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What else can be said on the command line."""
    parser.add_argument("--check", action="store_true", help="fail if a bound is broken")
    parser.add_argument("--calls", type=int, default=0, metavar="N", help="calls over sockets")


def compare(calls: int) -> dict[str, dict[str, float]]:
    """Every model over every network with every cushion, in calls that follow each other."""
    figures = {}
    for model, network, policy in itertools.product(MODELS, NETWORKS, POLICIES):
        usual = Lateness()
        turns = [
            turn
            for n in range(calls)
            for turn in call(
                MODELS[model], NETWORKS[network], POLICIES[policy](usual), f"{model}/{network}/{n}"
            )
        ]
        figures[f"{model}, {network}, {policy}"] = summary(turns)
    return figures


def summary(turns: list[Turn]) -> dict[str, float]:
    """What all the turns of a kind came to."""
    gaps = [gap for turn in turns for gap, _ in turn.gaps]
    waits_ms = sorted(1000 * turn.waited_s for turn in turns)
    return {
        "turns": len(turns),
        "gapless_share": sum(not turn.gaps for turn in turns) / len(turns),
        "gaps_per_turn": len(gaps) / len(turns),
        "gap_ms_per_turn": 1000 * sum(gaps) / len(turns),
        "unmade_ms_per_turn": 1000 * sum(turn.unmade_s for turn in turns) / len(turns),
        "longest_ms": 1000 * max(gaps, default=0.0),
        "long_per_turn": sum(gap > LONG_S for gap in gaps) / len(turns),
        "quiet_share": sum(quiet for turn in turns for _, quiet in turn.gaps) / max(1, len(gaps)),
        "waited_p50_ms": statistics.median(waits_ms),
        "waited_p95_ms": waits_ms[int(0.95 * (len(waits_ms) - 1))],
    }


def judge(compared: dict[str, dict[str, float]]) -> list[str]:
    """What must hold of every row, as far as it does not."""
    broken = []
    for model, network in itertools.product(MODELS, NETWORKS):
        fixed, measured = (compared[f"{model}, {network}, {one}"] for one in ("fixed", "measured"))
        row = f"{model}, {network}"
        is_fast = MODELS[model].speed >= 1.0
        if (
            network == "clean"
            and is_fast
            and (measured["waited_p95_ms"] > 0 or measured["gaps_per_turn"] > 0)
        ):
            broken.append(f"{row}: a good path is waited for, or has gaps")
        if measured["unmade_ms_per_turn"] > max(5.0, LEAST_GAIN * fixed["unmade_ms_per_turn"]):
            broken.append(f"{row}: more silence that the model has not made than {LEAST_GAIN:.0%}")
        if measured["long_per_turn"] > MOST_LONG:
            broken.append(f"{row}: too many gaps that sound like the end of a turn")
        if measured["waited_p95_ms"] > 1000 * MAX_START_S + 1:
            broken.append(f"{row}: the first word waits longer than its bound")
    return broken


def table(compared: dict[str, dict[str, float]], calls: int) -> Table:
    """Every row, with the three ways to wait beside each other."""
    shown = Table(
        title=f"{calls} calls of {TURNS} turns; cushion {' / '.join(SHOWN)}",
        box=box.SIMPLE_HEAD,
    )
    shown.add_column("model, network")
    for heading in COLUMNS:
        shown.add_column(heading, justify="right")
    for model, network in itertools.product(MODELS, NETWORKS):
        rows = [compared[f"{model}, {network}, {policy}"] for policy in SHOWN]
        shown.add_row(
            f"{model}, {network}",
            *(" / ".join(form.format(one[key]) for one in rows) for key, form in COLUMNS.values()),
        )
    return shown


def calls_table(heard: dict[str, dict[str, Any]]) -> Table:
    """What callers heard over sockets."""
    shown = Table(title="calls over sockets, through relays", box=box.SIMPLE_HEAD)
    headings = (
        "",
        "turns",
        "gapless",
        "gaps, ms a turn",
        "longest, ms",
        "first sound, ms p50, p95",
    )
    for heading in headings:
        shown.add_column(heading, justify="left" if not heading else "right")
    for name, one in heard.items():
        shown.add_row(
            name,
            f"{one['turns']}",
            f"{one['gapless_share']:.0%}",
            f"{one['gap_ms_per_turn']:.0f}",
            f"{one['longest_ms']:.0f}",
            f"{one['first_p50_ms']:.0f}, {one['first_p95_ms']:.0f}",
        )
    return shown
