from enum import IntEnum

from codec._latency import Histogram, Latencies
from codec._path import MediaPath

class Left(IntEnum):
    NOTHING = 0
    OUTPUT = 1
    NEWS = 2
    READING = 3
    ALL = 4

READY_PER_PASS: int

class Descriptor:
    number: int
    takes_output: bool
    def __init__(self, number: int, *, takes_output: bool = True) -> None: ...

class Pump:
    def __init__(
        self,
        path: MediaPath,
        source: Descriptor,
        sink: Descriptor,
        summary: Latencies,
        histogram: Histogram,
        *,
        from_phone: bool,
    ) -> None: ...
    def run(self, now: float) -> int: ...
    def passed(self, took_s: float) -> None: ...
    def written(self) -> None: ...
    def take_message(self) -> bytes | None: ...

class Pumps:
    def __len__(self) -> int: ...
    def put(self, number: int, pump: Pump) -> None: ...
    def get(self, number: int) -> Pump | None: ...
    def remove(self, number: int) -> None: ...
    def serve(
        self, epoll: int, timeout_s: float, alone_s: float, now: float | None
    ) -> list[tuple[int, int, int]]: ...
