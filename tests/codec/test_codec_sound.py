"""What the codec does to sound, measured from outside through 16-bit samples."""

import json
from importlib import resources

import pytest

import codec

numpy = pytest.importorskip("numpy")
pytest.importorskip("scipy")

from benchmarks import measure  # noqa: E402
from benchmarks.peers.codecs import DIRECTIONS, find_peer  # noqa: E402

OPEN = find_peer("offhook").open_resampler
RATES_HZ = (8000, 16000, 24000, 48000)


@pytest.mark.parametrize("factor", [2, 3, 6])
@pytest.mark.slow
def test_the_committed_filters_come_out_of_their_design_again(factor):
    pytest.importorskip("mpmath")
    from codec.design_filters import design

    filters = json.loads((resources.files("codec") / "filters.json").read_text("ascii"))

    # Remez exchange may end elsewhere in the last digits with another release of scipy.
    assert numpy.abs(numpy.array(filters[str(factor)]) - design(factor)).max() < 1e-6


@pytest.mark.parametrize("way", DIRECTIONS, ids=lambda way: way.name)
def test_speech_passes_and_images_and_aliases_do_not(way):
    response = measure.response(OPEN, way, 200)

    assert response.ripple_db() <= 0.05
    assert response.stop_db() >= 86


@pytest.mark.parametrize("way", DIRECTIONS, ids=lambda way: way.name)
def test_the_delay_is_what_the_stream_says_it_is(way):
    stream = codec.Resampler(way.input_rate_hz, way.output_rate_hz)

    delay_s = measure.group_delay_s(OPEN, way, 1000)

    assert delay_s == pytest.approx(stream.delay_s, abs=2e-6)
    assert delay_s <= 0.30e-3
    assert max(measure.group_delay_s(OPEN, way, hz) for hz in (300, 1700, 3000, 3400)) <= 1.1e-3


@pytest.mark.parametrize("way", DIRECTIONS, ids=lambda way: way.name)
def test_nothing_is_late_but_by_the_delay(way):
    assert measure.lateness_s(OPEN, way, 0.0) == pytest.approx([0.0] * 500)


@pytest.mark.parametrize("output_rate_hz", RATES_HZ)
@pytest.mark.parametrize("input_rate_hz", RATES_HZ)
def test_a_tone_comes_out_of_every_rate_change_as_loud_and_as_late_as_promised(
    input_rate_hz, output_rate_hz
):
    resampler = codec.Resampler(input_rate_hz, output_rate_hz)

    out = numpy.frombuffer(resampler.resample(measure.tone(1000, input_rate_hz)), numpy.int16)

    # One second from the end, so that the tone is there in full and is one line of the spectrum.
    at = numpy.arange(len(out) - output_rate_hz, len(out))
    turn = numpy.exp(-2j * numpy.pi * 1000 * (at / output_rate_hz - resampler.delay_s))
    line = 2j * numpy.mean(out[at] * turn)
    assert abs(line) == pytest.approx(measure.TONE_AMPLITUDE, rel=0.005)
    # The phase tells the phase delay and delay_s is the group delay, which lie close at 1 kHz.
    assert abs(numpy.angle(line)) / (2 * numpy.pi * 1000) < 0.1e-3


@pytest.mark.parametrize("rates_hz", [(8000, 24000), (24000, 16000), (48000, 8000), (16000, 24000)])
def test_other_tones_than_the_one_put_in_are_86_db_down(rates_hz):
    input_rate_hz, output_rate_hz = rates_hz
    resampler = codec.Resampler(input_rate_hz, output_rate_hz)

    out = numpy.frombuffer(resampler.resample(measure.tone(1007, input_rate_hz)), numpy.int16)

    levels = numpy.abs(numpy.fft.rfft(out[-output_rate_hz:].astype(float)))
    tone = levels[1007]
    levels[1007] = 0
    assert 20 * numpy.log10(levels.max() / tone) < -86
