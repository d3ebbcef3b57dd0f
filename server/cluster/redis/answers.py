"""What Redis answers, read by kind: each has its shape and bounds, and nothing else is believed.

Whoever can write into the registry's keys can put anything there, and so can a server that is none.
What is told of such an answer is its kind, never what is in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

from server.cluster.redis import beats
from server.cluster.redis.ours import MAX_KEPT_BYTES
from server.cluster.redis.scripts import MAX_TURN_S
from server.cluster.registry import Holding, RegistryAway

MAX_NUMBER = 2**53
MAX_LISTED = 200_000
"""Calls of one member, or members twice: far more than there are."""
MAX_NAME_BYTES = 512
"""Of a call, or of a member, or of what the model's service refuses."""
MAX_BEAT_BYTES = 4_096
MAX_SEALED_BYTES = MAX_KEPT_BYTES + 256
MAX_REQUEST_BYTES = 4_096
_GENERATION = re.compile(rb"[0-9]{1,15}")


class OddAnswer(RegistryAway):
    """The registry answers something that no step of ours can be answered.

    Attributes:
        expected: What it should have answered, in words of ours.
    """

    def __init__(self, expected: str, answer: object) -> None:
        super().__init__(f"the registry should answer {expected}, and not {_kind(answer)}")
        self.expected = expected


def _kind(answer: object) -> str:
    """What kind of thing this is; nothing of what is in it, which may be a call's."""
    name = type(answer).__name__
    match answer:
        case bytes() | str() | list() | tuple() | dict() | set():
            return f"{name} of {len(answer)}"
        case _:
            return name


def _is_whole(value: object, least: int, most: int = MAX_NUMBER) -> TypeGuard[int]:
    return type(value) is int and least <= value <= most


def _is_bytes(value: object, most: int) -> TypeGuard[bytes]:
    return type(value) is bytes and len(value) <= most


def holding(answer: object) -> tuple[Holding, bool] | None:
    """Whose a call is, and whether it is over; None for one that nobody has.

    Raises:
        OddAnswer: What is at its place is nothing of ours.
    """
    match answer:
        case [None, _, _]:
            return None
        case [bytes() as name, bytes() as generation, over] if (
            len(name) <= MAX_NAME_BYTES
            and _GENERATION.fullmatch(generation)
            and (over is None or _is_bytes(over, 16))
            and (member := beats.member_of(name)) is not None
        ):
            return Holding(member, int(generation)), over is not None
    raise OddAnswer("with whose a call is, its generation and whether it is over", answer)


@dataclass(frozen=True, slots=True)
class Taken:
    """A call that was somebody else's."""

    generation: int
    sealed: bytes | None
    """Its state; empty if it has ended, None if nothing was kept of it."""


def taken(answer: object) -> Taken | bool:
    """A call that was seized; False if it is another's by now or over, True if there is none.

    Raises:
        OddAnswer: It is neither.
    """
    match answer:
        case -1 | 0 if type(answer) is int:
            return answer == -1
        case [int() as generation, sealed] if _is_whole(generation, 1) and (
            sealed is None or _is_bytes(sealed, MAX_SEALED_BYTES)
        ):
            return Taken(generation, sealed)
    raise OddAnswer("with -1, 0, or a generation and a state", answer)


def flags(answer: object, count: int = 1) -> list[bool]:
    """Whether something was done, of each of so many calls.

    Raises:
        OddAnswer: They are not so many, or one is neither 1 nor 0.
    """
    found = answer if isinstance(answer, list | tuple) else ()
    if len(found) == count and all(_is_whole(one, 0, 1) for one in found):
        return [bool(one) for one in found]
    raise OddAnswer("with 1 or 0 for each call", answer)


NEW = 2
"""What is answered of a call that was put, and of which nothing was known."""


def puts(answer: object, count: int = 1) -> list[int]:
    """What has become of calls that were put: 1, or :data:`NEW`; 0 for one that is not ours.

    Raises:
        OddAnswer: They are not so many, or one is none of these.
    """
    found = answer if isinstance(answer, list | tuple) else ()
    if len(found) == count and all(_is_whole(one, 0, NEW) for one in found):
        return list(found)
    raise OddAnswer("with 0, 1 or 2 for each call", answer)


def begun(answer: object) -> bytes:
    """When the registry has begun, as it stands there.

    Raises:
        OddAnswer: It is no text, or too long.
    """
    if _is_bytes(answer, MAX_NAME_BYTES):
        return answer
    raise OddAnswer("with when it has begun", answer)


def call_sids(answer: object) -> list[str]:
    """The list of a member's calls.

    Raises:
        OddAnswer: It is none.
    """
    if isinstance(answer, list) and len(answer) <= MAX_LISTED:
        sids = [sid.decode(errors="replace") for sid in answer if _is_bytes(sid, MAX_NAME_BYTES)]
        if len(sids) == len(answer):
            return sids
    raise OddAnswer("with the names of calls", answer)


@dataclass(frozen=True, slots=True)
class Heard:
    """How all members are."""

    now_ms: int
    lost: bool
    """Whether the registry has lost what was in it."""
    pause: bytes
    pause_ms: int
    """For how long yet; not above zero if there is none."""
    members: Mapping[bytes, bytes]


def heard(answer: object) -> Heard:
    """What a beat is answered.

    Raises:
        OddAnswer: It is something else.
    """
    match answer:
        case [now_ms, lost, pause, pause_ms, list() as flat] if (
            _is_whole(now_ms, 0)
            and _is_whole(lost, 0, 1)
            and (pause is None or _is_bytes(pause, MAX_NAME_BYTES))
            and _is_whole(pause_ms, -2)
            and len(flat) <= MAX_LISTED
            and len(flat) % 2 == 0
            and all(_is_bytes(name, MAX_NAME_BYTES) for name in flat[::2])
            and all(_is_bytes(beat, MAX_BEAT_BYTES) for beat in flat[1::2])
        ):
            members = dict(zip(flat[::2], flat[1::2], strict=True))
            return Heard(now_ms, bool(lost), pause or b"", pause_ms, members)
    raise OddAnswer("a beat with the time, a pause and all members", answer)


def age_ms(answer: object) -> int:
    """For how long the registry has been whole; -1 if nobody is in it.

    Raises:
        OddAnswer: It is no number of milliseconds.
    """
    if _is_whole(answer, -1):
        return answer
    raise OddAnswer("with its age in milliseconds", answer)


def wait_s(answer: object) -> float | None:
    """In how many seconds a turn to dial is; None if none was taken.

    Raises:
        OddAnswer: It is no number of microseconds, or more than anybody asks for.
    """
    if _is_whole(answer, -1, int(MAX_TURN_S * 1e6)):
        return None if answer < 0 else answer / 1e6
    raise OddAnswer("with a wait in microseconds", answer)


def worked_on(answer: object) -> bytes | None:
    """The fingerprint of a request that somebody else works on; None if nobody does.

    Raises:
        OddAnswer: It is neither.
    """
    if answer is None:
        return None
    if _is_bytes(answer, MAX_REQUEST_BYTES):
        return answer.partition(b"\n")[2]
    raise OddAnswer("with a request that is worked on", answer)


def anything(answer: object) -> None:
    """What nobody has to read."""
