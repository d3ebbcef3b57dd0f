"""The caller's side of a call, judged from audio: what the model hears, what the agent must do."""

from __future__ import annotations

from array import array

import pytest

from codec import decode_mulaw
from codec.ear import SpeechEnded, SpeechStarted, Stop
from server.carrier import SendMark
from server.dialogue.ear import BargeInMode, Ear
from server.dialogue.opening import Opening
from server.dialogue.playout import Playout
from server.simulators.phone import load_speech
from tests.support.sounds import agent_speech, echo_of, frames_of, quiet


def ear_of(mode: BargeInMode, **settings) -> tuple[Ear, Playout]:
    playout = Playout(remember=True)
    playout.open(0.0)
    return Ear(playout, Opening(greets=False), mode=mode, **settings), playout


def play(playout: Playout, payload: bytes, now: float = 0.0) -> None:
    playout.push(payload, turn=1)
    while playout.next_command(now) is not None:
        pass


def listen(ear: Ear, payload: bytes, arrivals: list[float] | None = None):
    """Give it caller audio, frame by frame; what the model hears, and what was found and when."""
    passed, found = [], []
    for n, frame in enumerate(frames_of(payload)):
        at = (n + 1) * 0.02
        heard = ear.hear(frame, arrivals[n] if arrivals else at)
        passed.append(heard.payload)
        found += [(round(at, 2), event) for event in heard.found]
    return b"".join(passed), found


@pytest.mark.parametrize("mode", BargeInMode)
def test_what_the_caller_says_passes_untouched(mode):
    ear, _ = ear_of(mode)
    speech = quiet(0.2) + load_speech("question") + quiet(1.0)

    passed, found = listen(ear, speech)

    assert passed == b"".join(frames_of(speech))
    assert [type(event) for _, event in found] == [SpeechStarted, SpeechEnded] * (len(found) // 2)


def test_in_mode_model_the_agent_is_left_alone():
    ear, playout = ear_of(BargeInMode.MODEL)
    play(playout, agent_speech())

    _, found = listen(ear, quiet(1.0) + load_speech("interrupt"))

    assert not [event for _, event in found if isinstance(event, Stop)]


def test_in_mode_local_it_is_held_and_cut():
    ear, playout = ear_of(BargeInMode.LOCAL)
    play(playout, agent_speech())

    _, found = listen(ear, quiet(1.0) + load_speech("interrupt"))

    stops = [(at, event) for at, event in found if isinstance(event, Stop)]
    assert [event for _, event in stops][:2] == [Stop.HOLD, Stop.CUT]
    assert stops[0][0] <= 1.14
    assert stops[1][0] <= 1.5


def test_the_agent_is_held_in_a_pause_that_its_turn_makes_for_want_of_audio():
    ear, playout = ear_of(BargeInMode.LOCAL)
    play(playout, agent_speech()[:8_000])

    _, found = listen(ear, quiet(1.1) + load_speech("interrupt")[:1_600])

    assert [event for _, event in found if isinstance(event, Stop)] == [Stop.HOLD]
    assert playout.hold(1.2)
    play(playout, agent_speech()[8_000:], 1.2)
    assert not playout.is_playing(1.21)  # what comes now waits until it is decided


def test_nobody_is_held_after_the_end_of_a_turn():
    ear, playout = ear_of(BargeInMode.LOCAL)
    playout.push(agent_speech()[:8_000], turn=1)
    playout.finish_turn(1)
    for command in list(iter(lambda: playout.next_command(0.0), None)):
        if isinstance(command, SendMark):
            playout.mark_reached(command.name, 1.0)

    _, found = listen(ear, quiet(1.1) + load_speech("interrupt")[:1_600])

    assert not [event for _, event in found if isinstance(event, Stop)]
    assert not playout.hold(1.2)


def test_in_mode_both_a_word_is_left_to_the_model():
    ear, playout = ear_of(BargeInMode.BOTH)
    play(playout, agent_speech())
    word = load_speech("goodbye")[: 160 * 12]

    _, found = listen(ear, quiet(1.0) + word + quiet(2.0))

    stops = [event for _, event in found if isinstance(event, Stop)]
    assert stops == [Stop.HOLD, Stop.RESUME]


def test_nothing_is_held_while_the_agent_is_silent():
    ear, _ = ear_of(BargeInMode.LOCAL)

    _, found = listen(ear, quiet(1.0) + load_speech("interrupt"))

    assert not [event for _, event in found if isinstance(event, Stop)]


def test_a_known_echo_is_silence_to_the_model():
    ear, playout = ear_of(BargeInMode.BOTH)
    played = agent_speech() + quiet(0.4) + agent_speech()
    play(playout, played)
    playout.hold = lambda now: False  # type: ignore[method-assign]

    passed, _ = listen(ear, echo_of(played, 0.2, -12))

    assert ear.has_echo
    assert ear.echo_frames > 100
    second = passed[len(agent_speech()) + 8_000 : len(played)]
    loud = [frame for frame in frames_of(second) if frame != b"\xff" * 160]
    assert max(map(_peak, loud), default=0) < 1_500


@pytest.mark.parametrize("mode", [BargeInMode.LOCAL, BargeInMode.BOTH])
def test_an_echo_that_was_taken_for_the_caller_was_nobodys_turn_and_ends_it(mode):
    ear, playout = ear_of(mode)
    play(playout, agent_speech())
    heard = frames_of(echo_of(agent_speech(), 0.2, -12))

    found = []
    for n, frame in enumerate(heard):
        found += ear.hear(frame, (n + 1) * 0.02).found
        if ear.has_echo:
            break

    turns = [event for event in found if not isinstance(event, Stop)]
    assert [type(event) for event in turns[-2:]] == [SpeechStarted, SpeechEnded]
    assert turns[-1] == SpeechEnded(ear.judge.heard_at, 0.0, ear.judge.heard_at)
    assert not ear.caller_speaks
    assert not ear.spoke_since(0.0)


def _peak(frame: bytes) -> int:
    return max(map(abs, array("h", decode_mulaw(frame))))


def test_jitter_does_not_hide_an_echo():
    ear, playout = ear_of(BargeInMode.BOTH)
    played = agent_speech()
    play(playout, played)
    heard = echo_of(played, 0.2, -12)
    # Every half second the network stops for 200 ms, and then everything comes at once.
    arrivals = []
    for n in range(len(heard) // 160 + 1):
        at = (n + 1) * 0.02
        late = at % 0.5
        arrivals.append(at - late + 0.2 if late < 0.2 else at)
    listen(ear, heard, arrivals)

    assert ear.has_echo


def test_a_burst_after_a_stall_is_judged_as_it_was_spoken():
    speech = quiet(1.0) + load_speech("question") + quiet(2.0)
    steady = [(n + 1) * 0.02 for n in range(len(frames_of(speech)))]
    stalled = [1.7 if 0.8 <= at < 1.7 else at for at in steady]
    found = {}
    for name, arrivals in (("steady", steady), ("stalled", stalled)):
        ear, playout = ear_of(BargeInMode.BOTH)
        play(playout, agent_speech())
        _, found[name] = listen(ear, speech, arrivals)

    kinds = [[(at, type(event)) for at, event in found[name]] for name in ("steady", "stalled")]
    assert kinds[0] == kinds[1]
    began_at = [
        event.at for name in found for _, event in found[name] if isinstance(event, SpeechStarted)
    ]
    assert began_at[0] == pytest.approx(began_at[1], abs=0.03)


def test_a_gap_in_the_stream_is_not_taken_for_jitter():
    ear, _ = ear_of(BargeInMode.BOTH)
    speech = load_speech("question")
    listen(ear, speech)

    heard = ear.hear(quiet(0.6), 60.0)

    (ended,) = [event for event in heard.found if isinstance(event, SpeechEnded)]
    assert ended.at <= 60.0
    assert ear.judge.heard_at == 60.0
