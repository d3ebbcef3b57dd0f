"""Design the three low-pass filters: ``python -m codec.design_filters`` prints filters.json.

The codec itself reads only the committed ``filters.json``; this file is the proof of where those
numbers come from, and a test derives them again. It needs scipy and mpmath (the ``test`` extra).

One prototype serves every rate change by the same factor, because a filter knows frequencies only
as fractions of a rate. They are written down for a telephone line, 8 kHz on the slow side: speech
to 3.4 kHz passes, and 4.2 kHz is the first frequency that may not be heard. (The band between
3.4 and 4.2 kHz is where a cheaper filter lets images through that a listener does hear.)
"""

import json
from typing import Any

import mpmath
import numpy
import scipy.signal

LINE_RATE_HZ = 8000
PASS_HZ = 3400
STOP_HZ = 4200
TAPS_PER_FACTOR = 40
STOP_WEIGHT = 50
# The passband's ripple is centred on 0 dB over the band a telephone carries.
TELEPHONE_BAND_HZ = (300, 3400)


def linear_phase(factor: int) -> numpy.ndarray[Any, Any]:
    """The equiripple low-pass for a rate change by ``factor`` (Parks and McClellan)."""
    fast_rate_hz = factor * LINE_RATE_HZ
    taps: numpy.ndarray[Any, Any] = scipy.signal.remez(
        TAPS_PER_FACTOR * factor,
        [0, PASS_HZ, STOP_HZ, fast_rate_hz / 2],
        [1, 0],
        weight=[1, STOP_WEIGHT],
        fs=fast_rate_hz,
        maxiter=500,
        grid_density=64,
    )
    return taps


def minimum_phase(taps: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
    """The filter of the same length and magnitude with the least delay.

    Every zero outside the unit circle is moved to its mirror image inside, which leaves the
    magnitude alone but for a constant. ``scipy.signal.minimum_phase`` is another thing: it halves
    the order. Double precision loses the product of 240 zeros, so the zeros are polished and
    multiplied out with 40 digits.
    """
    with mpmath.workdps(40):
        polynomial = [mpmath.mpf(float(tap)) for tap in taps]
        zeros = mpmath.polyroots(
            polynomial[::-1],
            asc=True,
            maxsteps=200,
            extraprec=60,
            roots_init=[mpmath.mpc(zero) for zero in numpy.roots(taps)],
        )
        product = [mpmath.mpf(1)]
        for zero in zeros:
            inside = 1 / mpmath.conj(zero) if abs(zero) > 1 + mpmath.mpf("1e-6") else zero
            product = [
                high - inside * low for high, low in zip([*product, 0], [0, *product], strict=True)
            ]
        return numpy.array([float(mpmath.re(tap)) for tap in product])


def normalised(taps: numpy.ndarray[Any, Any], factor: int) -> numpy.ndarray[Any, Any]:
    """Scale to 0 dB in the middle of the passband's ripple."""
    frequencies_hz = numpy.linspace(*TELEPHONE_BAND_HZ, 4001)
    _, response = scipy.signal.freqz(taps, worN=frequencies_hz, fs=factor * LINE_RATE_HZ)
    magnitude = numpy.abs(response)
    return numpy.asarray(taps / numpy.sqrt(magnitude.min() * magnitude.max()))


def design(factor: int) -> list[float]:
    """The committed filter for a rate change by ``factor``: float32 values, DC gain about 1."""
    taps = normalised(minimum_phase(linear_phase(factor)), factor)
    return [float(tap) for tap in taps.astype(numpy.float32)]


if __name__ == "__main__":
    filters = {str(factor): design(factor) for factor in (2, 3, 6)}
    print(json.dumps(filters, indent=1))  # noqa: T201
