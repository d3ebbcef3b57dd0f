from collections.abc import Mapping
from enum import IntEnum
from typing import TypeAlias

Members: TypeAlias = Mapping[str, "Pattern | Maybe"]
Pattern: TypeAlias = Part | str | tuple[str, ...] | Members | list["Pattern"]

class Part(IntEnum):
    AUDIO = 0
    STREAM = 1
    TIMESTAMP_MS = 2
    CHUNK_NUMBER = 3
    TEXT = 4

class Maybe:
    @property
    def value(self) -> Pattern: ...
    def __init__(self, value: Pattern) -> None: ...

class Shape:
    def __init__(self, message: Members, *, ignores_others: bool) -> None: ...
