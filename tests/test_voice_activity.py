"""Speech, echo and barge-in, judged from recordings, a frame at a time."""

from __future__ import annotations

import math
import random
from array import array
from itertools import pairwise

import pytest

import codec
from server.carrier.phone import SILENCE, load_speech
from server.model.simulator import _GREETING
from server.model.simulator import load_speech as load_agent
from server.voice_activity import (
    FRAME_S,
    LOUD,
    BargeIn,
    Echo,
    SpeechEnded,
    SpeechStarted,
    Stop,
    VoiceActivity,
    loudness,
)

CLIPS = ("hello", "question", "interrupt", "followup", "goodbye")


def quiet(seconds: float) -> bytes:
    return b"\xff" * round(seconds * 8_000)


def samples(payload: bytes) -> array:
    return array("h", codec.decode_mulaw(payload))


def payload_of(wave) -> bytes:
    held = (max(-32_768, min(32_767, round(sample))) for sample in wave)
    return codec.encode_mulaw(array("h", held).tobytes())


def noise(seconds: float, amplitude: float, seed: int = 1) -> bytes:
    generator = random.Random(seed)
    return payload_of(generator.gauss(0, amplitude) for _ in range(round(seconds * 8_000)))


def cough(seed: int) -> bytes:
    """Two bursts of breath: the burst of the glottis and the rush of air after it."""
    generator = random.Random(seed)
    wave: list[float] = []
    for seconds, amplitude in ((0.10, 12_000), (0.06, 0), (0.22, 5_000)):
        count = round(seconds * 8_000)
        wave += [
            generator.gauss(0, amplitude) * min(1, n / 40) * math.exp(-3 * n / count)
            for n in range(count)
        ]
    return payload_of(wave)


def agent_speech() -> bytes:
    greeting = load_agent(*_GREETING)
    return codec.MulawEncoder(24_000).encode(greeting.pcm)


def echo_of(payload: bytes, delay_s: float, gain_db: float) -> bytes:
    """What a telephone on loudspeaker sends back: late, quieter, with a room and a line's noise."""
    generator = random.Random(5)
    spoken = samples(payload)
    gain = 10 ** (gain_db / 20)
    wave = [generator.gauss(0, 20) for _ in range(len(spoken) + 8_000)]
    for after_s, share in ((0.0, 1.0), (0.04, 0.4), (0.09, 0.2)):
        offset = round((delay_s + after_s) * 8_000)
        for n, sample in enumerate(spoken):
            wave[n + offset] += gain * share * sample
    return payload_of(wave)


def mixed(one: bytes, other: bytes, at_s: float) -> bytes:
    wave = [float(sample) for sample in samples(one)]
    for n, sample in enumerate(samples(other)):
        wave[n + round(at_s * 8_000)] += sample
    return payload_of(wave)


def frames_of(payload: bytes):
    return [payload[at : at + 160].ljust(160, b"\xff") for at in range(0, len(payload), 160)]


def events_in(payload: bytes, chunk_bytes: int = 160):
    voice = VoiceActivity()
    events = []
    for at in range(0, len(payload), chunk_bytes):
        chunk = payload[at : at + chunk_bytes]
        for frame in voice.frames(chunk, (at + len(chunk)) / 8_000):
            if event := voice.hear(frame):
                events.append((frame.at, event))
    return events


# --- Speech


@pytest.mark.parametrize("clip", CLIPS)
def test_a_sentence_begins_within_60_ms_and_ends_when_it_has_ended(clip):
    speech = load_speech(clip)
    loud = [n for n, frame in enumerate(frames_of(speech)) if loudness(frame) >= LOUD]
    events = events_in(quiet(1.0) + speech + quiet(2.0))

    (seen_at, started), (_, ended) = events[0], events[-1]
    assert isinstance(started, SpeechStarted)
    onset = 1.0 + loud[0] * FRAME_S
    assert started.at == pytest.approx(onset, abs=0.041)
    assert seen_at - onset <= 0.1
    assert isinstance(ended, SpeechEnded)
    assert ended.at == pytest.approx(1.0 + (loud[-1] + 1) * FRAME_S, abs=0.15)
    assert [type(event) for _, event in events] == [SpeechStarted, SpeechEnded] * (len(events) // 2)


def test_the_size_of_the_chunks_changes_nothing():
    payload = quiet(0.5) + load_speech("hello") + quiet(1.0)

    one = [event for _, event in events_in(payload, 160)]
    for size in (80, 320, 800, 1_111):
        other = [event for _, event in events_in(payload, size)]
        for a, b in zip(one, other, strict=True):
            assert a.at == pytest.approx(b.at, abs=0.021)


@pytest.mark.parametrize("amplitude", [0, 10, 30])
def test_a_quiet_line_is_no_speech(amplitude):
    assert events_in(noise(5.0, amplitude)) == []


def test_a_click_is_no_speech():
    click = payload_of([20_000.0, -20_000.0] * 80)

    assert events_in(quiet(1.0) + click + quiet(1.0)) == []


def test_speech_seconds_leave_pauses_out():
    speech = load_speech("question")
    events = events_in(quiet(0.2) + speech + quiet(1.0))

    spoken_s = sum(event.speech_s for _, event in events if isinstance(event, SpeechEnded))
    assert 0.5 * len(speech) / 8_000 < spoken_s <= len(speech) / 8_000


# --- Echo


def run_echo(played: bytes, caller: bytes):
    """Which caller frames are speech: '#' somebody's, 'e' an echo, '.' none."""
    echo, voice = Echo(), VoiceActivity()
    verdicts = ""
    learned = None
    ours, theirs = frames_of(played), frames_of(caller)
    for n in range(max(len(ours), len(theirs))):
        frame = voice.frames(theirs[n] if n < len(theirs) else SILENCE, n * FRAME_S)[0]
        is_echo = echo.hear(frame.loudness, loudness(ours[n]) if n < len(ours) else 0.0)
        verdicts += "." if not frame.speech else "e" if is_echo else "#"
        if learned is None and echo.delay_frames is not None:
            learned = n
    return echo, verdicts, learned


def longest(verdicts: str, kind: str) -> int:
    return max(len(run) for run in "".join(c if c == kind else " " for c in verdicts).split(" "))


@pytest.mark.parametrize("delay_s", [0.06, 0.2, 0.45])
@pytest.mark.parametrize("gain_db", [-6, -12, -20])
def test_an_echo_is_recognised_within_three_seconds_and_never_mistaken_again(delay_s, gain_db):
    played = agent_speech() + quiet(1.0) + agent_speech()
    _, verdicts, learned = run_echo(played, echo_of(played, delay_s, gain_db))

    assert learned is not None
    assert learned * FRAME_S < 3.0
    assert longest(verdicts[learned:], "#") < 3  # what it takes to be somebody's speech


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("at_s", [0.0, 0.3, 0.5, 1.0, 1.5, 2.5])
def test_somebody_who_speaks_over_the_agent_is_no_echo(clip, at_s):
    echo, verdicts, _ = run_echo(agent_speech(), quiet(at_s) + load_speech(clip))

    assert echo.delay_frames is None
    assert "e" not in verdicts


@pytest.mark.parametrize("gain_db", [-6, -12, -20])
def test_somebody_who_speaks_over_an_echo_is_heard(gain_db):
    played = agent_speech() + quiet(1.0) + agent_speech()
    both = mixed(echo_of(played, 0.2, gain_db), load_speech("interrupt"), 6.5)
    _, verdicts, _ = run_echo(played, both)

    assert longest(verdicts[325:400], "#") >= 3


def test_an_echo_that_has_gone_is_forgotten():
    played = agent_speech() * 2
    heard = bytearray(echo_of(played, 0.2, -12)[: len(played)])
    half = len(agent_speech())
    heard[half:] = quiet(0.3) + load_speech("question") + load_speech("followup") + quiet(9.0)
    echo, _, _ = run_echo(played, bytes(heard[: len(played)]))

    assert echo.delay_frames is None


# --- Barge-in


def stops(payload: bytes, **settings: float):
    """What the agent does about it, in seconds after the sound's beginning."""
    voice, barge_in = VoiceActivity(), BargeIn(**settings)
    found, onset = [], None
    for n, piece in enumerate(frames_of(payload)):
        frame = voice.frames(piece, (n + 1) * FRAME_S)[0]
        if onset is None and frame.loudness >= LOUD:
            onset = frame.at - FRAME_S
        if stop := barge_in.hear(frame, speech=frame.speech, agent_heard=True):
            found.append((stop, round(frame.at - onset, 2)))
            if stop is Stop.CUT:
                break
    return found


@pytest.mark.parametrize("clip", CLIPS)
def test_an_interruption_holds_at_60_ms_and_cuts_after_a_short_confirmation(clip):
    (held, held_s), (cut, cut_s) = stops(quiet(0.2) + load_speech(clip) + quiet(1.0))

    assert (held, cut) == (Stop.HOLD, Stop.CUT)
    assert held_s <= 0.1
    assert cut_s <= 0.5


@pytest.mark.parametrize("seed", range(5))
def test_a_cough_is_a_false_alarm(seed):
    (held, _), (resumed, resumed_s) = stops(quiet(0.2) + cough(seed) + quiet(1.0))

    assert (held, resumed) == (Stop.HOLD, Stop.RESUME)
    assert resumed_s <= 0.6


def test_a_steady_noise_is_given_up():
    assert [stop for stop, _ in stops(quiet(0.2) + noise(3.0, 4_000))][:2] in (
        [],
        [Stop.HOLD, Stop.RESUME],
    )


def test_after_false_alarms_the_agent_is_held_ever_more_rarely():
    found = stops(b"".join(cough(seed) + quiet(0.6) for seed in range(30)))

    held = [at for stop, at in found if stop is Stop.HOLD]
    pauses = [after - before for before, after in pairwise(held)]
    assert pauses == sorted(pauses)
    assert pauses[-1] > 2 * pauses[0]


def test_a_word_waits_for_the_model_to_agree():
    word = load_speech("goodbye")[: 160 * 10]
    ((_, _), (resumed, resumed_s)) = stops(word + quiet(2.0), confirm_s=0.6, agree_s=0.7)

    assert resumed is Stop.RESUME
    assert resumed_s == pytest.approx(0.2 + 0.12 + 0.7, abs=0.1)
