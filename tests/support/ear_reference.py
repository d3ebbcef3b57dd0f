"""``codec.ear`` once more in plain Python, and scenes in which both have to find the same.

Sums of floats go from left to right, as in C: ``sum`` does it more exactly in newer Pythons.
"""

from __future__ import annotations

import functools
import math
import random
from collections import deque
from dataclasses import dataclass, field
from itertools import accumulate, cycle
from operator import mul

import webrtcvad

import codec
from codec.ear import Ear, EchoFound, Played, SpeechEnded, SpeechStarted, Stop
from server.simulators.gemini import GREETING, load_agent_speech
from server.simulators.phone import load_speech

FRAME, FRAME_S, RATE = 160, 0.02, 8_000
LOUD, START_FRAMES = 14.0, 3
WINDOW, MAX_DELAY, TAIL = 50, 30, 5


LOUDNESS, SIGNS = bytes(~code & 0x7F for code in range(256)), bytes(c >> 7 for c in range(256))


def loudness(frame: bytes) -> float:
    return sum(frame.translate(LOUDNESS)) / len(frame)


def is_voiced(frame: bytes) -> bool:
    signs = frame.translate(SIGNS)
    return signs.count(b"\0\1") + signs.count(b"\1\0") <= 40


@dataclass
class Piece:
    turn: int
    payload: bytes
    plays_at: float

    @property
    def played_at(self) -> float:
        return self.plays_at + len(self.payload) / RATE


class ReferencePlayed:
    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.open, self.marks_out, self.turn, self.play_end = False, 0, 0, 0.0

    def sent(self, payload: bytes, plays_at: float) -> None:
        if payload:
            self.pieces.append(Piece(self.turn, payload, plays_at))
        self.play_end = plays_at + len(payload) / RATE

    def passed(self, now: float) -> None:
        while self.pieces and self.pieces[0].played_at < now - 2.0:
            del self.pieces[0]

    def forget(self, now: float) -> None:
        while self.pieces and self.pieces[-1].plays_at >= now:
            self.pieces.pop()
        if self.pieces and self.pieces[-1].played_at > now:
            last = self.pieces[-1]
            last.payload = last.payload[: round((now - last.plays_at) * RATE)]
        self.play_end = now

    def is_playing(self, now: float) -> bool:
        return self.open and (self.marks_out > 0 or now < self.play_end)

    def played(self, now: float, size: int) -> bytes:
        began, heard = now - size / RATE, b""
        for piece in self.pieces:
            if piece.played_at <= began:
                continue
            at = round((piece.plays_at - began) * RATE)
            if at >= size or len(heard) >= size:
                break
            heard = heard.ljust(at, b"\xff") if at > 0 else heard
            skipped = max(0, -at)
            heard += piece.payload[skipped : skipped + size - len(heard)]
        return heard.ljust(size, b"\xff")

    def tail(self, size: int, turn: int | None = None) -> bytes:
        chosen = b"".join(p.payload for p in self.pieces if turn in (None, p.turn))
        return chosen[max(0, len(chosen) - size) :]


class ReferenceSpeech:
    def __init__(self, end_silence_s: float) -> None:
        self.end_silence_frames = max(1, round(end_silence_s / FRAME_S))
        self.in_a_row = self.frames = self.silent_frames = 0
        self.last_at = 0.0
        self.speaking = False

    def hear(self, speech: bool, at: float) -> SpeechStarted | SpeechEnded | None:
        if speech:
            self.in_a_row += 1
            self.frames += 1
            self.silent_frames = 0
            self.last_at = at
            if not self.speaking and self.in_a_row >= START_FRAMES:
                self.speaking = True
                return SpeechStarted(at - START_FRAMES * FRAME_S)
            return None
        self.in_a_row = 0
        if not self.speaking:
            self.frames = 0
            return None
        self.silent_frames += 1
        if self.silent_frames < self.end_silence_frames:
            return None
        ended = SpeechEnded(self.last_at, self.frames * FRAME_S, at)
        self.forget()
        return ended

    def forget(self) -> None:
        self.speaking = False
        self.in_a_row = self.frames = 0


def total(values) -> float:
    sum_ = 0.0
    for value in values:
        sum_ += value
    return sum_


class ReferenceEcho:
    def __init__(self) -> None:
        length = WINDOW + MAX_DELAY + TAIL + 1
        self.played: deque[float] = deque(maxlen=length)
        self.caller: deque[float] = deque(maxlen=length)
        self.frames = self.verdicts = 0
        self.candidate: int | None = None
        self.delay: int | None = None
        self.loss = 0.0

    def hear(self, caller: float, played: float) -> bool:
        self.caller.append(caller)
        self.played.append(played)
        self.frames += 1
        if caller >= LOUD and self.frames % 5 == 0:
            self.learn()
        if self.delay is None:
            return False
        newest = len(self.played) - 1 - self.delay
        nearby = list(self.played)[max(0, newest - TAIL) : max(0, newest + 2)]
        expected = max(nearby, default=0.0)
        return expected >= LOUD and caller <= expected - self.loss + 14.0

    def pause(self) -> None:
        self.caller.clear()
        self.played.clear()

    def learn(self) -> None:
        if self.delay is not None:
            around = self.correlations(range(max(0, self.delay - 2), self.delay + 3))
            best = max((correlation for _, correlation in around), default=1.0)
            self.verdicts = self.verdicts + 1 if best < 0.5 else 0
            if self.verdicts >= 3:
                self.delay, self.candidate, self.verdicts = None, None, 0
            return
        found = max(self.correlations(range(MAX_DELAY + 1)), key=lambda it: it[1], default=None)
        if found is None:
            return
        delay, best = found
        if best < 0.8:
            self.candidate, self.verdicts = None, 0
            return
        if self.candidate is None or abs(delay - self.candidate) > 1:
            self.verdicts = 0
        self.candidate = delay
        self.verdicts += 1
        if self.verdicts >= 3:
            self.find_loss(delay)

    def correlations(self, delays):
        caller, played = list(self.caller)[-WINDOW:], list(self.played)
        mean = total(caller) / WINDOW
        deviations = [level - mean for level in caller]
        spread = total(one * one for one in deviations)
        if spread < 1.0:
            return
        sums = [0.0, *accumulate(played)]
        squares = [0.0, *accumulate(level * level for level in played)]
        for delay in delays:
            end = len(played) - delay
            begin = end - WINDOW
            if begin < 0:
                return
            level = sums[end] - sums[begin]
            spread_played = squares[end] - squares[begin] - level * level / WINDOW
            if spread_played < 1.0:
                continue
            product = total(map(mul, deviations, played[begin:end]))
            yield delay, product / math.sqrt(spread * spread_played)

    def find_loss(self, delay: int) -> None:
        end = len(self.played) - delay
        then, caller = list(self.played)[end - WINDOW : end], list(self.caller)[-WINDOW:]
        both = zip(then, caller, strict=True)
        losses = sorted(a - b for a, b in both if a >= LOUD and b >= LOUD)
        if losses:
            self.delay, self.loss, self.verdicts = delay, losses[len(losses) // 3], 0


class ReferenceBargeIn:
    def __init__(self, confirm_s: float, agree_s: float) -> None:
        self.confirm_frames = max(1, round(confirm_s / FRAME_S))
        self.agree_frames = round(agree_s / FRAME_S)
        self.in_a_row = self.frames = self.vowels = self.silence = self.false_alarms = 0
        self.not_before = self.wary_until = self.louder_than = 0.0
        self.loudness: list[float] = []
        self.holding = False

    def hear(
        self, frame: bytes, level: float, at: float, *, speech: bool, agent_heard: bool
    ) -> Stop | None:
        if self.holding:
            return self.decide(frame, level, at, speech)
        if at < self.wary_until and level < self.louder_than:
            speech = False
        if not speech or not agent_heard:
            self.in_a_row = 0
            return None
        self.in_a_row += 1
        if self.in_a_row < START_FRAMES or at < self.not_before:
            return None
        self.holding = True
        self.frames = self.vowels = self.silence = 0
        self.loudness = [level]
        return Stop.HOLD

    def settled(self) -> None:
        self.holding = False
        self.in_a_row = self.false_alarms = 0
        self.wary_until = 0.0

    def decide(self, frame: bytes, level: float, at: float, speech: bool) -> Stop | None:
        self.frames += 1
        self.loudness += [level] if speech else []
        self.silence = 0 if speech else self.silence + 1
        self.vowels += speech and is_voiced(frame)
        if self.vowels >= self.confirm_frames:
            self.settled()
            return Stop.CUT
        word = self.vowels >= 5
        noise = not word and self.frames >= 40
        if self.silence < 6 + (self.agree_frames if word else 0) and not noise:
            return None
        self.holding = False
        self.in_a_row = 0
        if not word:
            self.louder_than = min(total(self.loudness) / len(self.loudness) + 8.0, 30.0)
            self.not_before = at + 0.5
            self.wary_until = at + min(16.0, 2.0 * 2**self.false_alarms)
            self.false_alarms += 1
        return Stop.RESUME


class ReferenceEar:
    def __init__(
        self,
        played: ReferencePlayed,
        *,
        barge_in: bool,
        end_silence_s: float = 0.5,
        confirm_s: float = 0.2,
        agree_s: float = 0.0,
    ) -> None:
        self.played, self.barge_in = played, barge_in
        self.detector = webrtcvad.Vad(2)
        self.speech = ReferenceSpeech(end_silence_s)
        self.echo = ReferenceEcho()
        self.interruptions = ReferenceBargeIn(confirm_s, agree_s)
        self.judges_barge_in, self.judges_after = True, math.inf
        self.heard_at = self.last_speech_at = -math.inf
        self.echo_frames = 0
        self.partial = b""
        self.found: list[SpeechStarted | SpeechEnded | EchoFound | Stop] = []

    def hear(self, payload: bytes, at: float) -> bytes:
        expected = self.heard_at + len(payload) / RATE
        if at - expected > 1.0:
            expected = at
        self.heard_at = min(at, expected + 0.002 * (at - expected))
        data, before = self.partial + payload, len(self.partial)
        whole = len(data) - len(data) % FRAME
        self.partial = data[whole:]
        to_model = bytearray(data)
        for start in range(0, whole, FRAME):
            frame_at = self.heard_at - (whole - start - FRAME) / RATE
            if self.judge(data[start : start + FRAME], frame_at):
                to_model[start : start + FRAME] = b"\xff" * FRAME
        return bytes(to_model[before:])

    def judge(self, frame: bytes, at: float) -> bool:
        level = loudness(frame)
        speech = level >= LOUD and self.detector.is_speech(codec.decode_mulaw(frame), RATE)
        echo = self.barge_in and self.is_echo(level, at)
        speech = speech and not echo
        if speech:
            self.last_speech_at = at
        if event := self.speech.hear(speech, at):
            self.found.append(event)
            if isinstance(event, SpeechStarted) and event.at > self.judges_after:
                self.judges_barge_in = True
        if self.barge_in and self.judges_barge_in:
            heard = self.played.is_playing(at)
            if stop := self.interruptions.hear(frame, level, at, speech=speech, agent_heard=heard):
                self.found.append(stop)
        return echo

    def is_echo(self, level: float, at: float) -> bool:
        longest_s = (MAX_DELAY + TAIL) * FRAME_S
        tail = at - self.played.play_end < longest_s
        self.played.passed(at)
        if not self.played.is_playing(at - FRAME_S) and not tail:
            self.echo.pause()
            return False
        knew = self.echo.delay is not None
        echo = self.echo.hear(level, loudness(self.played.played(at, FRAME)))
        self.echo_frames += echo
        if self.echo.delay is not None and not knew:
            if self.speech.speaking:
                self.found.append(SpeechEnded(at, 0.0, at))
            self.speech.forget()
            self.last_speech_at = -math.inf
            self.found.append(EchoFound(at))
        return echo

    def take_found(self) -> list[SpeechStarted | SpeechEnded | EchoFound | Stop]:
        found, self.found = self.found, []
        return found


# --- Scenes


QUIETER = [
    bytes((code & 0x80) | (~max(0, (~code & 0x7F) - steps) & 0x7F) for code in range(256))
    for steps in range(64)
]
"""Mu-law made quieter by so many of its steps."""


@functools.cache
def sound(kind: str, ticks: int, number: int) -> bytes:
    size = ticks * FRAME
    generator = random.Random(number)
    match kind:
        case "speech":
            clip = ("hello", "question", "interrupt", "followup", "goodbye")[number % 5]
            speech = load_speech(clip)
            return (speech * (size // len(speech) + 1))[:size]
        case "agent":
            speech = codec.MulawEncoder(24_000).encode(load_agent_speech(*GREETING).pcm)
            return (speech * (size // len(speech) + 1))[:size]
        case "noise":
            spread = generator.randrange(1, 128)
            codes = bytes(0xFF - generator.randrange(spread) for _ in range(size // 4 + 1))
            return (codes + codes.translate(bytes(code ^ 0x80 for code in range(256))) * 3)[:size]
        case "bursts":
            burst = generator.randrange(1, 12)
            return b"".join(
                generator.randbytes(FRAME) if tick // burst % 2 else b"\xff" * FRAME
                for tick in range(ticks)
            )
        case _:
            return b"\xff" * size


@dataclass(frozen=True)
class Scene:
    """Who makes what sound, in stretches of (kind, ticks of 20 ms, number), and how it arrives.

    The agent's kinds are sounds, ``silent`` where it sends nothing, and ``clear``, ``leave``,
    ``open``, ``mark`` and ``reached``, which are about the stream. The caller's are sounds and
    ``echo``: with it, what was played comes back, ``delay`` ticks later and ``loss`` steps quieter.
    """

    agent: list[tuple[str, int, int]]
    caller: list[tuple[str, int, int]]
    delay: int = 8
    loss: int = 20
    chunk_bytes: list[int] = field(default_factory=lambda: [FRAME])
    late_s: list[float] = field(default_factory=lambda: [0.0])
    piece_bytes: int = 800
    judged_from: int = 0
    """The chunk from which interruptions are judged."""
    judges_after: float = math.inf
    cut_every: int = 0
    """The agent is cut by somebody else after every so many chunks."""
    settings: dict[str, object] = field(default_factory=lambda: {"barge_in": True})


AGENT_KINDS = (
    *("speech", "speech", "speech", "noise", "bursts", "silent"),
    *("clear", "leave", "open", "mark", "reached"),
)
CALLER_KINDS = ("speech", "noise", "bursts", "quiet", "echo", "echo", "echo")


def random_scene(rng: random.Random) -> Scene:
    def stretches(kinds: tuple[str, ...]) -> list[tuple[str, int, int]]:
        count = rng.randrange(1, 6)
        return [(rng.choice(kinds), rng.randrange(1, 120), rng.randrange(9)) for _ in range(count)]

    sizes = rng.choice([[160], [160, 320], [80], [1, 159, 160], [rng.randrange(1, 999)]])
    return Scene(
        agent=stretches(AGENT_KINDS),
        caller=stretches(CALLER_KINDS),
        delay=rng.randrange(33),
        loss=rng.randrange(64),
        chunk_bytes=sizes,
        late_s=rng.choice([[0.0], [0.0, 0.2, 0.18, 0.1], [rng.random() for _ in range(5)]]),
        piece_bytes=rng.choice([1, 159, 160, 800, 8_000]) * 7,
        judged_from=rng.choice([0, 0, 40]),
        judges_after=rng.choice([math.inf, 0.0, 1.0]),
        cut_every=rng.choice([0, 0, 30]),
        settings={
            "barge_in": rng.random() < 0.9,
            "end_silence_s": rng.choice([0.0, 0.1, 0.5]),
            "confirm_s": rng.choice([0.0, 0.2, 0.8]),
            "agree_s": rng.choice([0.0, 0.3, 1.0]),
        },
    )


def act(played: Played | ReferencePlayed, scene: Scene, stretch: int, now: float) -> None:
    kind, ticks, number = scene.agent[stretch]
    played.turn = stretch
    match kind:
        case "clear":
            played.forget(now)
        case "leave" | "open":
            played.open = kind == "open"
        case "mark" | "reached":
            played.marks_out = int(kind == "mark")
        case "silent":
            pass
        case _:
            payload = sound(kind, ticks, number)
            played.passed(now)
            for at in range(0, len(payload), scene.piece_bytes):
                piece = payload[at : at + scene.piece_bytes]
                played.sent(piece, max(now, played.play_end))


def acts_of(scene: Scene) -> list[tuple[float, int]]:
    """When each of the agent's stretches begins; half as long apart as they are, to pile up."""
    ticks = accumulate((ticks // 2 for _, ticks, _ in scene.agent), initial=0)
    return [(tick * FRAME_S, stretch) for stretch, tick in enumerate(ticks)][:-1]


def caller_audio(scene: Scene) -> bytes:
    played, acts = ReferencePlayed(), acts_of(scene)
    back: list[bytes] = []
    heard = b""
    for kind, ticks, number in scene.caller:
        said = sound(kind, ticks, number)
        for tick in range(ticks):
            now = (len(back) + 1) * FRAME_S
            while acts and acts[0][0] < now:
                act(played, scene, acts.pop(0)[1], now)
            back.append(played.played(now, FRAME).translate(QUIETER[scene.loss]))
            late = len(back) - 1 - scene.delay
            echo = back[late] if late >= 0 else b"\xff" * FRAME
            heard += echo if kind == "echo" else said[tick * FRAME : (tick + 1) * FRAME]
    return heard


def same_in_both(scene: Scene, audio: bytes | None = None) -> list[object]:
    """Play a scene to both ears; what they found, which has to be the same."""
    audio = caller_audio(scene) if audio is None else audio
    played, reference_played = Played(remember=True), ReferencePlayed()
    played.open = reference_played.open = True
    ear = Ear(played, **scene.settings)
    reference = ReferenceEar(reference_played, **scene.settings)
    acts, found = acts_of(scene), []
    sizes, late_s = cycle(scene.chunk_bytes), cycle(scene.late_s)
    at, number = 0, 0
    while at < len(audio):
        chunk = audio[at : at + next(sizes)]
        at, number = at + len(chunk), number + 1
        while acts and acts[0][0] < at / RATE:
            _, stretch = acts.pop(0)
            for one in (played, reference_played):
                act(one, scene, stretch, at / RATE)
        for one in (ear, reference):
            if number <= scene.judged_from:
                one.judges_barge_in = number == scene.judged_from
            one.judges_after = scene.judges_after
        now = at / RATE + next(late_s)

        assert ear.hear(chunk, now) == reference.hear(chunk, now)
        assert ear.has_news == bool(reference.found)
        news = ear.take_found()
        assert news == reference.take_found()
        assert ear.heard_at == reference.heard_at
        assert ear.echo_frames == reference.echo_frames
        assert ear.has_echo == (reference.echo.delay is not None)
        assert ear.caller_speaks == reference.speech.speaking
        assert ear.spoke_since(now - 0.03) == (reference.last_speech_at > now - 0.03)
        assert played.is_playing(now) == reference_played.is_playing(now)
        assert played.tail(500) == reference_played.tail(500)
        found += news
        if scene.cut_every and number % scene.cut_every == 0:
            ear.agent_cut()
            reference.interruptions.settled()
    return found
