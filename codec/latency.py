"""Durations counted in C, from Python or from another extension, without an object per duration.

:class:`Latencies` is one call's: percentiles in little memory. :class:`Histogram` is the process's:
exact counts by the bounds that Prometheus is shown.
"""

from codec._latency import Histogram, Latencies

__all__ = ["Histogram", "Latencies"]
