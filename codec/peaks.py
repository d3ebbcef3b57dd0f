"""A recording as a drawing of it needs it: how loud each side is, point by point."""

from codec._peaks import StereoPeaks

__all__ = ["StereoPeaks"]
