"""Sound of any layout and rate, as files have it, mixed into one channel at 8 kHz.

:class:`Survey` looks at what is in the channels, and :class:`Mixdown` makes one of them. Both take
a file in pieces, so a long one costs no more memory than a short one.
"""

from codec._mixdown import MAX_CHANNELS, RATES_HZ, Layout, Mixdown, Survey, to_pcm

__all__ = ["MAX_CHANNELS", "RATES_HZ", "Layout", "Mixdown", "Survey", "to_pcm"]
