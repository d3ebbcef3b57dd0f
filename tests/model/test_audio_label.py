"""What a model calls its audio: read where it can only be one thing, and at the right speed."""

from __future__ import annotations

import base64
import json
import math
from array import array
from itertools import pairwise
from typing import Any

import pytest

from codec.stretch import Stretcher
from server.model import AgentAudio, GenerationComplete
from server.model.gemini.audio_label import MAX_LABEL, rate_of
from server.model.gemini.protocol import GeminiProtocol
from server.simulators.gemini import MODEL_SCRIPTS
from tests.support.gemini_messages import PCM
from tests.support.path_messages import open_path
from tests.support.rig import calling

SOUND_HZ = 440


def tone(rate_hz: int, seconds: float = 1.0) -> bytes:
    count = round(rate_hz * seconds)
    wave = [round(9_000 * math.sin(2 * math.pi * SOUND_HZ * i / rate_hz)) for i in range(count)]
    return array("h", wave).tobytes()


def message(pcm: bytes, label: str | None, **content: Any) -> bytes:
    blob = {"data": base64.b64encode(pcm).decode()}
    if label is not None:
        blob["mimeType"] = label
    turn = {"modelTurn": {"parts": [{"inlineData": blob}]}}
    return json.dumps({"serverContent": turn | content}).encode()


def played(events: list[Any]) -> bytes:
    return b"".join(event.pcm for event in events if isinstance(event, AgentAudio))


ORDINARY = [
    None,
    "",
    "audio/pcm",
    "audio/pcm;rate=24000",
    "audio/PCM;rate=24000",
    "AUDIO/PCM; RATE=24000",
    'audio/pcm ; rate = "24000"',
    "audio/pcm;rate='24000';",
    "audio/L16;codec=pcm;rate=24000",
    "audio/l16; rate=24000; channels=1",
    "audio/L16",
    "audio/x-pcm;rate=24000",
    "audio/pcm;rate=24000;encoding=linear16;bits=16;endianness=little-endian",
    "audio/pcm;rate=24000;rate=24000",
    "audio/pcm;version=2",
]
UNREADABLE = [
    "audio/pcm;rate=4000",
    "audio/pcm;rate=96000",
    "audio/pcm;rate=" + "9" * 100,
    "audio/pcm;rate=-24000",
    "audio/pcm;rate=24000;rate=16000",
    "audio/pcm;rate=",
    "audio/pcm;rate=24kHz",
    "audio/pcm;channels=2",
    "audio/pcm;bits=24",
    "audio/pcm;encoding=float",
    "audio/pcm;endianness=big",
    "audio/L16;codec=opus;rate=24000",
    "audio/pcmu;rate=8000",
    "audio/mpeg",
    "audio/wav",
    "image/png",
    "pcm",
    ";rate=24000",
    "audio/pcm" + ";" * MAX_LABEL,
]


@pytest.mark.parametrize("label", ORDINARY)
def test_a_label_that_can_only_mean_the_ordinary_audio_is_taken_for_it(label):
    assert GeminiProtocol().receive(message(PCM, label), 0.0) == [AgentAudio(PCM, 1, 0.0)]


@pytest.mark.parametrize("label", ORDINARY)
def test_the_same_where_there_is_more_in_the_message(label):
    events = GeminiProtocol().receive(message(PCM, label, generationComplete=True), 0.0)

    assert events == [AgentAudio(PCM, 1, 0.0), GenerationComplete(1)]


@pytest.mark.parametrize("label", UNREADABLE)
def test_audio_that_could_be_anything_is_not_played(label):
    assert GeminiProtocol().receive(message(PCM, label), 0.0) == []


@pytest.mark.parametrize("magic", [b"RIFF\0\0\0\0WAVEfmt ", b"OggS\0\0", b"ID3\3\0\0", b"fLaC\0\0"])
def test_a_file_without_a_label_is_not_played(magic):
    assert GeminiProtocol().receive(message(magic, None), 0.0) == []
    assert GeminiProtocol().receive(message(magic, "audio/pcm"), 0.0) != []


@pytest.mark.parametrize("label", [7, [], {}, "x" * 1_000_000])
def test_a_label_that_is_none_is_not_the_same_as_no_label(label):
    blob = {"mimeType": label, "data": base64.b64encode(PCM).decode()}
    content = {"modelTurn": {"parts": [{"inlineData": blob}]}}

    assert GeminiProtocol().receive(json.dumps({"serverContent": content}), 0.0) == []


def test_what_cannot_be_played_is_named_once(capsys):
    protocol = GeminiProtocol()
    for label in ("audio/mpeg", "audio/mpeg;x=1", "audio/mpeg", "video/hologram", "audio/mpeg"):
        protocol.receive(message(PCM, label), 0.0)

    log = capsys.readouterr().out
    assert log.count("audio/mpeg") == 1
    assert log.count("unknown here") == 1
    assert "hologram" not in log


RATES_HZ = [8_000, 11_025, 12_000, 16_000, 22_050, 32_000, 44_100, 48_000]


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_another_rate_is_played_at_the_right_speed(rate_hz):
    protocol = GeminiProtocol()
    sound = tone(rate_hz)
    label = f"audio/L16;codec=pcm;rate={rate_hz}"
    step = 2 * (rate_hz // 25)

    events = []
    for at in range(0, len(sound), step):
        events += protocol.receive(message(sound[at : at + step], label), 0.0)
    events += protocol.receive(b'{"serverContent":{"generationComplete":true}}', 0.0)

    samples = array("h", played(events))
    assert len(samples) == pytest.approx(24_000, abs=300)
    wave = samples[:23_000]  # without what rings on in the filter
    crossings = sum(a < 0 <= b for a, b in pairwise(wave))
    assert crossings == pytest.approx(SOUND_HZ * 23 / 24, abs=2)
    assert max(samples) == pytest.approx(9_000, rel=0.1)
    assert isinstance(events[-1], GenerationComplete)


def test_the_rate_may_change_within_a_turn():
    protocol = GeminiProtocol()

    events = protocol.receive(message(tone(16_000, 0.5), "audio/pcm;rate=16000"), 0.0)
    events += protocol.receive(message(tone(24_000, 0.5), "audio/pcm;rate=24000"), 0.0)
    events += protocol.receive(message(tone(8_000, 0.5), "audio/pcm;rate=8000"), 0.0)

    assert len(played(events)) == pytest.approx(2 * 1.5 * 24_000, abs=600)


def test_an_interrupted_turn_does_not_ring_on_in_the_next():
    protocol = GeminiProtocol()
    protocol.receive(message(tone(16_000, 0.1), "audio/pcm;rate=16000"), 0.0)
    protocol.receive(b'{"serverContent":{"interrupted":true,"turnComplete":true}}', 0.0)

    silence = played(protocol.receive(message(bytes(640), "audio/pcm;rate=16000"), 0.0))

    assert silence == bytes(len(silence))


def test_a_label_is_read_in_bounded_time():
    assert rate_of("audio/pcm;rate=24000" + " " * 10_000_000) is None


# --- By the compiled path


@pytest.mark.parametrize("label", [*ORDINARY, *UNREADABLE, "audio/pcm;rate=16000"])
def test_the_compiled_path_leaves_every_label_but_two_to_the_parser(label):
    path = open_path()
    given = message(PCM, label)
    frame = b"\x81\x7e" + len(given).to_bytes(2, "big") + given
    path.model.receive(frame)

    came = path.next_from_model()

    if label in ("audio/pcm", "audio/pcm;rate=24000"):
        assert came is None
        assert path.take_run()[0] == len(PCM) // 6
    else:
        assert came == given
        assert path.take_run()[0] == 0


async def test_a_whole_call_with_another_rate_is_heard_at_the_right_speed(autojump_clock):
    heard_s = []
    for script in ("answers", "other-rate"):
        async with calling(callee="says-hello", script=MODEL_SCRIPTS[script]) as rig:
            await rig.over()
        heard_s.append(rig.record["transcript"][0]["heard_s"])

    assert heard_s[0] == pytest.approx(heard_s[1], abs=0.1)


# --- Any rate at all


@pytest.mark.parametrize("rate_hz", [1_000, 9_999, *RATES_HZ])
def test_a_stretched_stream_is_the_same_however_it_is_cut(rate_hz):
    sound = tone(rate_hz, 0.3)
    whole = Stretcher(rate_hz).stretch(sound)

    cut, stretcher = b"", Stretcher(rate_hz)
    for at in range(0, len(sound), 14):
        cut += stretcher.stretch(sound[at : at + 14])

    assert cut == whole
    assert len(whole) // 2 == pytest.approx(0.3 * 48_000, abs=1 + 48_000 / rate_hz)


def test_a_stretched_line_is_straight_and_no_sample_wraps_round():
    ramp = array("h", [-32_768, 32_767, -32_768]).tobytes()

    stretched = array("h", Stretcher(12_000).stretch(ramp))

    assert list(stretched) == [-32_768, -16_385, -1, 16_383, 32_767, 16_384, 0, -16_384]


@pytest.mark.parametrize("rate_hz", [0, -1, 999, 48_001])
def test_a_rate_that_cannot_be_stretched_is_refused(rate_hz):
    with pytest.raises(ValueError, match="input_rate_hz"):
        Stretcher(rate_hz)


def test_half_a_sample_cannot_be_stretched():
    with pytest.raises(ValueError, match="whole samples"):
        Stretcher(16_000).stretch(b"\0\0\0")


def test_a_stretcher_begins_anew():
    stretcher = Stretcher(16_000)
    first = stretcher.stretch(tone(16_000, 0.01))
    stretcher.reset()

    assert stretcher.stretch(tone(16_000, 0.01)) == first
    assert stretcher.stretch(b"") == b""
