"""G.711 against the Recommendation's own tables, never against a function of ours.

``g711_ref.csv`` lists all mu-law codes with their value and decision interval on the 16-bit scale
(four times the Recommendation's 14-bit one). The hashes are of the ITU-T reference code's output
(G.191 software tool library), whose test vector holds every 16-bit sample; it also settles what
the Recommendation leaves open: a sample that lies exactly on a decision value.
"""

import csv
import hashlib
import itertools
from array import array
from pathlib import Path

import codec

G191_ENCODED_SHA256 = "90c29de505fb68e766118303bd552a16005dcf810873698bee1d8f3b247ce28c"
G191_DECODED_SHA256 = "3dab54339e520bb2c924826e3b72a917a2b612e9fd12fc867500f1d983a75827"

EVERY_CODE = bytes(range(256))
EVERY_SAMPLE = array("h", range(-32768, 32768))


def mulaw_table() -> list[dict[str, int]]:
    path = Path(__file__).parents[1] / "data" / "g711_ref.csv"
    with path.open(newline="") as file:
        return [{name: int(value) for name, value in row.items()} for row in csv.DictReader(file)]


def alaw_table() -> list[int]:
    """The 128 positive values of G.711 table 1a, on the 16-bit scale, by ascending size.

    Decision values are 2 apart to 64 and then, doubling the distance, in segments of 16 to 4096;
    each value lies in the middle of its interval.
    """
    decisions = [*range(0, 64, 2)]
    for step, start in ((4 << i, 64 << i) for i in range(6)):
        decisions += range(start, 2 * start, step)
    decisions.append(4096)
    return [8 * (low + high) // 2 for low, high in itertools.pairwise(decisions)]


def test_every_mulaw_code_decodes_to_the_value_in_the_table():
    decoded = array("h", codec.decode_mulaw(EVERY_CODE))

    assert decoded.tolist() == [row["decoded_int16"] for row in mulaw_table()]
    assert hashlib.sha256(decoded).hexdigest() == G191_DECODED_SHA256


def test_every_sample_encodes_to_the_mulaw_code_of_its_decision_interval():
    table = mulaw_table()

    encoded = codec.encode_mulaw(EVERY_SAMPLE)

    for sample, code in zip(EVERY_SAMPLE, encoded, strict=True):
        row = table[code]
        # The last interval takes everything up to full scale; a tie may go either way here.
        highest = 32768 if code & 0x7F == 0 else row["upper_decision_x4"]
        assert row["lower_decision_x4"] <= abs(sample) <= highest
        assert sample == 0 or (code >= 0x80) == (sample > 0)


def test_every_sample_encodes_to_mulaw_as_the_itu_reference_code_does():
    assert hashlib.sha256(codec.encode_mulaw(EVERY_SAMPLE)).hexdigest() == G191_ENCODED_SHA256


def test_every_alaw_code_decodes_to_the_value_in_the_table():
    values = alaw_table()

    decoded = array("h", codec.decode_alaw(EVERY_CODE))

    for code, value in enumerate(decoded):
        plain = code ^ 0x55  # the Recommendation inverts the even bits on the line
        assert value == (values[plain & 0x7F] if plain & 0x80 else -values[plain & 0x7F])


def test_every_sample_encodes_to_the_nearest_alaw_value_of_its_sign():
    values = alaw_table()

    encoded = codec.encode_alaw(EVERY_SAMPLE)

    for sample, code in zip(EVERY_SAMPLE, encoded, strict=True):
        plain = code ^ 0x55
        value = values[plain & 0x7F]
        # Inside a segment the nearest value has the sample within half a step of it.
        half_step = 8 if (plain & 0x70) <= 0x10 else 8 << (((plain & 0x70) >> 4) - 1)
        assert bool(plain & 0x80) == (sample >= 0)
        assert abs(abs(sample) - value) <= half_step


def test_every_code_survives_decoding_and_encoding():
    # mu-law has two zeros and PCM one, so only 0x7F (minus zero) comes back as another code.
    mulaw = bytes(0xFF if code == 0x7F else code for code in EVERY_CODE)

    assert codec.encode_mulaw(codec.decode_mulaw(EVERY_CODE)) == mulaw
    assert codec.encode_alaw(codec.decode_alaw(EVERY_CODE)) == EVERY_CODE
