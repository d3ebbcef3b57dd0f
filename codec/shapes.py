"""How a carrier's and a model's audio messages look, as data for the media path.

The path knows no carrier and no model. Whoever joins one to it hands over an
:class:`AudioMessages`: the shape of the messages that come with audio, and what stands around the
audio in those that go.
"""

from __future__ import annotations

from dataclasses import dataclass

from codec._shape import Maybe, Part, Shape

__all__ = ["AudioMessages", "Maybe", "Part", "Shape"]


@dataclass(frozen=True, slots=True)
class AudioMessages:
    """How one side of a call writes audio, both ways.

    Attributes:
        received: The shape of its messages that are audio and nothing else. Every other message
            comes out of the path whole, for a parser that knows them all.
        head: What stands before the base64 in a message to it.
        tail: What stands after that.
    """

    received: Shape
    head: bytes
    tail: bytes
