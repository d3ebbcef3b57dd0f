"""G.711 and rate changes between telephone and model: bytes in, bytes out, nothing withheld.

``MulawDecoder`` takes caller audio to the model's rate and ``MulawEncoder`` takes agent audio back
to the telephone's; each keeps the state of one direction of one call. A-law has the same two, and
``Resampler`` changes the rate of plain PCM. ``decode_mulaw`` and its kin are G.711 alone.
"""

from codec._kernels import (
    AlawDecoder,
    AlawEncoder,
    Converter,
    Decoder,
    Encoder,
    MulawDecoder,
    MulawEncoder,
    Resampler,
    decode_alaw,
    decode_mulaw,
    encode_alaw,
    encode_mulaw,
)

__all__ = [
    "AlawDecoder",
    "AlawEncoder",
    "Converter",
    "Decoder",
    "Encoder",
    "MulawDecoder",
    "MulawEncoder",
    "Resampler",
    "decode_alaw",
    "decode_mulaw",
    "encode_alaw",
    "encode_mulaw",
]
