"""What an ear that is judged tells, and the audio that its judge gets."""

from __future__ import annotations

from array import array
from itertools import pairwise

import pytest

import codec
from codec.ear import Ear, Played, SpeechEnded, SpeechStarted, Stop, Suspected
from codec.hops import HOP_S, HOP_SAMPLES, Hops
from server.simulators.phone import load_speech
from tests.support.sounds import noise, quiet

FRAME = 160
CONTEXT = 64


def judged_ear(*, agent_heard: bool = False) -> Ear:
    played = Played(remember=True)
    played.open, played.marks_out = True, int(agent_heard)
    ear = Ear(played, barge_in=True)
    assert ear.rely_on_judge()
    return ear


def hear(ear: Ear, payload: bytes, began_s: float = 0.0) -> list[object]:
    found = []
    for at in range(0, len(payload), FRAME):
        ear.hear(payload[at : at + FRAME], began_s + (at + FRAME) / 8_000)
        found += ear.take_found()
    return found


def row() -> memoryview:
    return memoryview(array("f", bytes(4 * HOP_SAMPLES)))


def taken(hops: Hops) -> list[list[float]]:
    rows = []
    while hops.take(into := row()):
        rows.append(into.tolist())
    return rows


# --- The ear
def test_speech_is_suspected_once_and_nothing_else_is_said_about_it():
    found = hear(judged_ear(agent_heard=True), quiet(1.0) + load_speech("question"))

    assert [type(one) for one in found] == [Suspected]
    assert 1.0 < found[0].at < 1.3


def test_on_a_quiet_line_nothing_is_suspected():
    assert hear(judged_ear(), noise(20.0, 8.0)) == []


def test_a_steady_room_is_not_suspected_once_it_is_known():
    found = hear(judged_ear(), noise(20.0, 400.0))

    assert all(one.at < 5.0 for one in found)


def test_what_comes_back_later_is_suspected_again():
    speech = load_speech("hello")

    found = hear(judged_ear(), quiet(1.0) + speech + quiet(3.0) + speech)

    assert len(found) == 2


def test_nothing_changes_to_a_judge_in_the_middle_of_a_word():
    ear = Ear(Played(remember=True), barge_in=True)
    speech = load_speech("question")
    hear(ear, speech[: FRAME * 40])
    assert ear.caller_speaks

    assert not ear.rely_on_judge()
    found = hear(ear, speech[FRAME * 40 :] + quiet(1.0), 0.8)

    assert isinstance(found[-1], SpeechEnded)
    assert ear.rely_on_judge()


def test_an_ear_that_loses_its_judge_ends_what_was_begun():
    ear = judged_ear(agent_heard=True)
    hear(ear, load_speech("question"))

    ear.rely_on_detector(speaking=True, holding=True, speech_s=0.0, last_at=0.0, voiced_s=0.0)
    found = hear(ear, quiet(2.0), 3.0)

    assert {type(one) for one in found} == {SpeechEnded, Stop}
    assert Stop.RESUME in found
    assert any(isinstance(one, SpeechStarted) for one in hear(ear, load_speech("question"), 5.0))


# --- The audio
def test_hops_are_what_the_decoder_makes_of_the_audio_without_a_gap():
    ear, speech = judged_ear(), load_speech("question")[: FRAME * 100]
    hear(ear, speech[: FRAME * 16])
    hops = Hops(ear)
    rows = taken(hops)
    for frame in range(16, 100):
        hear(ear, speech[frame * FRAME : (frame + 1) * FRAME], frame / 50)
        rows += taken(hops)

    heard = [sample for each in rows for sample in each[CONTEXT:]]
    pcm = array("h", codec.MulawDecoder(16_000).decode(speech))
    assert heard == [pytest.approx(sample / 32_768) for sample in pcm[: len(heard)]]
    assert len(heard) > len(pcm) - 512
    for before, after in pairwise(rows):
        assert after[:CONTEXT] == before[-CONTEXT:]


def test_the_last_hop_of_what_is_remembered_ends_with_the_newest_sample():
    ear = judged_ear()
    hear(ear, load_speech("question")[: FRAME * 57])

    hops = Hops(ear)

    assert len(taken(hops)) == 10
    assert hops.at == pytest.approx(57 * 0.02)
    assert hops.behind_s == 0.0


def test_what_is_due_is_told_by_how_much_audio_waits():
    ear = judged_ear()
    hops = Hops(ear)
    hear(ear, quiet(0.1))

    assert hops.behind_s == pytest.approx(0.1)
    assert hops.take(row())
    assert hops.behind_s == pytest.approx(0.1 - HOP_S)
    assert hops.at == pytest.approx(HOP_S)


def test_whoever_has_not_asked_for_too_long_begins_anew():
    ear = judged_ear()
    hops = Hops(ear)
    hear(ear, quiet(2.0))

    assert len(taken(hops)) == 10


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match=f"{HOP_SAMPLES} samples"):
        Hops(judged_ear()).take(memoryview(array("f", bytes(400))))


def test_what_is_an_echo_is_silence_to_the_judge():
    ear = judged_ear()
    hear(ear, quiet(0.4))
    hops = Hops(ear)

    assert all(abs(sample) < 0.001 for each in taken(hops) for sample in each)


# --- What a network has lost
STEADY = codec.encode_mulaw(array("h", (3_000, 3_000, -3_000, -3_000) * 4_000).tobytes())


def kept(payload: bytes) -> list[float]:
    """How loud each hop is that a judge gets, all of it asked for as it comes."""
    ear = judged_ear()
    hops, found = Hops(ear), []
    for at in range(0, len(payload), FRAME):
        hear(ear, payload[at : at + FRAME], at / 8_000)
        while hops.take(row()):
            found.append(hops.level_dbfs)
    return found


def test_a_frame_that_was_lost_is_the_one_before_it_once_more_and_quieter():
    holed = STEADY[: FRAME * 10] + quiet(0.04) + STEADY[FRAME * 12 : FRAME * 24]

    whole, filled = kept(STEADY[: FRAME * 24]), kept(holed)

    assert min(filled) > min(whole) - 7.0  # two frames, 3 dB quieter each
    assert filled[-1] == pytest.approx(whole[-1], abs=0.1)


def test_a_pause_is_filled_for_a_moment_only():
    filled = kept(STEADY[: FRAME * 10] + quiet(1.0))

    assert filled[-1] < -90.0
    assert sum(level > -80.0 for level in filled) * HOP_S < 0.2 + 0.1 + HOP_S


def test_a_line_on_which_nothing_was_said_has_no_holes():
    assert max(kept(quiet(1.0))) < -90.0


def test_a_suspicion_goes_on_over_what_was_lost():
    ear = judged_ear()
    speech = load_speech("question")
    hear(ear, quiet(1.0) + speech[: FRAME * 20])
    before_s = ear.suspicious_s

    hear(ear, b"\xff" * FRAME, 1.4)

    assert ear.suspicious_s == before_s
