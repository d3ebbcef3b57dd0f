"""Speech, echo and barge-in, judged from recordings, a frame at a time."""

from __future__ import annotations

from array import array
from itertools import pairwise

import pytest

import codec
from codec.ear import FRAME_S, LOUD, Ear, Played, SpeechEnded, SpeechStarted, Stop, loudness
from server.simulators.phone import SILENCE, load_speech
from tests.support.sounds import (
    CLIPS,
    agent_speech,
    cough,
    echo_of,
    frames_of,
    mixed,
    noise,
    payload_of,
    quiet,
)


def events_in(payload: bytes, chunk_bytes: int = 160):
    """What is found of speech, and when the chunk came in which it was."""
    ear = Ear(Played(), barge_in=False)
    events = []
    for at in range(0, len(payload), chunk_bytes):
        chunk = payload[at : at + chunk_bytes]
        heard_at = (at + len(chunk)) / 8_000
        ear.hear(chunk, heard_at)
        events += [(heard_at, event) for event in ear.take_found()]
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
    timeline = Played(remember=True)
    timeline.open = True
    timeline.sent(played, 0.0)
    ear = Ear(timeline, barge_in=True)
    verdicts = ""
    learned = None
    theirs = frames_of(caller)
    for n in range(max(len(played) // 160, len(theirs))):
        at, echoes = (n + 1) * FRAME_S, ear.echo_frames
        ear.hear(theirs[n] if n < len(theirs) else SILENCE, at)
        spoke = ear.spoke_since(at - FRAME_S / 2)
        verdicts += "#" if spoke else "e" if ear.echo_frames > echoes else "."
        if learned is None and ear.has_echo:
            learned = n
    return ear, verdicts, learned


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
    ear, verdicts, _ = run_echo(agent_speech(), quiet(at_s) + load_speech(clip))

    assert not ear.has_echo
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
    ear, _, _ = run_echo(played, bytes(heard[: len(played)]))

    assert not ear.has_echo


# --- Barge-in
def stops(payload: bytes, **settings: float):
    """What the agent does about it, in seconds after the sound's beginning."""
    timeline = Played()
    timeline.open, timeline.marks_out = True, 1
    ear = Ear(timeline, barge_in=True, **settings)
    found, onset = [], None
    for n, frame in enumerate(frames_of(payload)):
        if onset is None and loudness(frame) >= LOUD:
            onset = n * FRAME_S
        ear.hear(frame, (n + 1) * FRAME_S)
        for event in ear.take_found():
            if isinstance(event, Stop):
                found.append((event, round((n + 1) * FRAME_S - onset, 2)))
        if found and found[-1][0] is Stop.CUT:
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


def low_cough(seed: int) -> bytes:
    """Somebody who coughs in the same room, 18 dB under a caller who does."""
    pcm = array("h", codec.decode_mulaw(cough(seed)))
    return codec.encode_mulaw(array("h", [sample // 8 for sample in pcm]).tobytes())


def test_after_false_alarms_the_agent_is_held_ever_more_rarely():
    found = stops(b"".join(low_cough(seed) + quiet(0.6) for seed in range(60)))

    held = [at for stop, at in found if stop is Stop.HOLD]
    pauses = [round(after - before, 2) for before, after in pairwise(held)]
    assert pauses == sorted(pauses)
    assert pauses[-1] > 2 * pauses[0]


@pytest.mark.parametrize("alarms", [1, 4, 8])
def test_after_false_alarms_a_caller_is_heard_who_is_louder_than_they_were(alarms):
    room = b"".join(low_cough(seed) + quiet(0.6) for seed in range(alarms))

    found = stops(room + load_speech("question") + quiet(1.0))

    began_s = len(room) / 8_000
    (held, held_s), (cut, _) = [(stop, at - began_s) for stop, at in found if at > began_s][:2]
    assert (held, cut) == (Stop.HOLD, Stop.CUT)
    assert held_s <= 0.2


def test_after_coughs_however_loud_a_caller_is_heard_within_a_second():
    coughs = b"".join(cough(seed) + quiet(0.6) for seed in range(4))

    found = stops(coughs + load_speech("question") + quiet(1.0))

    began_s = len(coughs) / 8_000
    assert min(at for stop, at in found if stop is Stop.CUT) - began_s <= 1.0


def test_a_word_waits_for_the_model_to_agree():
    word = load_speech("goodbye")[: 160 * 10]
    ((_, _), (resumed, resumed_s)) = stops(word + quiet(2.0), confirm_s=0.6, agree_s=0.7)

    assert resumed is Stop.RESUME
    assert resumed_s == pytest.approx(0.2 + 0.12 + 0.7, abs=0.1)
