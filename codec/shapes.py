"""How a carrier's and a model's audio messages look, as data for the media path.

The path knows no carrier and no model. Whoever joins one to it hands over an
:class:`AudioMessages`: the shape of the messages that come with audio, and what stands around the
audio in those that go. A carrier whose audio is binary frames needs neither.
"""

from __future__ import annotations

from dataclasses import dataclass

from codec._kernels import decode_alaw, decode_mulaw, encode_alaw, encode_mulaw
from codec._shape import Maybe, Part, Shape

__all__ = ["ALAW", "AudioMessages", "Law", "Maybe", "Part", "Shape"]


@dataclass(frozen=True, slots=True)
class Law:
    """How another law of G.711 than mu-law is turned into that and back, code by code.

    Attributes:
        to_mulaw: The mu-law code of each of its 256 codes.
        of_mulaw: Its own code of each of mu-law's.
    """

    to_mulaw: bytes
    of_mulaw: bytes


_CODES = bytes(range(256))
ALAW = Law(encode_mulaw(decode_alaw(_CODES)), encode_alaw(decode_mulaw(_CODES)))
"""A-law, as in Europe and on most trunks outside North America and Japan."""


@dataclass(frozen=True, slots=True)
class AudioMessages:
    """How one side of a call writes audio, both ways.

    Attributes:
        received: The shape of its messages that are audio and nothing else. Every other message
            comes out of the path whole, for a parser that knows them all. None where audio is
            binary frames: then every one of them is audio as it is, and no text is.
        head: What stands before the base64 in a message to it.
        tail: What stands after that.
        law: How its audio is to be turned into mu-law; None if it is that, or the model's.
    """

    received: Shape | None
    head: bytes = b""
    tail: bytes = b""
    law: Law | None = None
