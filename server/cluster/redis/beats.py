"""What members say of themselves, as it is written down; nothing that waits."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated

import msgspec

from server.cluster.names import is_name
from server.cluster.registry import Load, Member, Seen

_MOST = 1_000_000_000
_BORN = re.compile(r"[0-9]{1,20}")
_Count = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=_MOST)]


class _Beat(msgspec.Struct, array_like=True):
    """A later version may say more: what comes after is ignored."""

    address: Annotated[str, msgspec.Meta(max_length=512)]
    live: _Count
    running: _Count
    waiting: _Count
    accepts: bool
    draining: bool
    dials_in_s: _Seconds
    dial_every_s: _Seconds


_decoder = msgspec.json.Decoder(_Beat)


def written(address: str, load: Load) -> bytes:
    """How a member is, and where it is reached."""
    counts = (int(_bounded(count)) for count in (load.live, load.running, load.waiting))
    times = _bounded(load.dials_in_s), _bounded(load.dial_every_s)
    return msgspec.json.encode((address, *counts, load.accepts, load.draining, *times))


def _bounded(value: float) -> float:
    return 0.0 if math.isnan(value) else min(max(value, 0.0), _MOST)


def member_of(text: bytes) -> Member | None:
    """The member of this name, or None if it is none's."""
    name, _, born = text.decode("ascii", "replace").rpartition("@")
    return Member(name, int(born)) if is_name(name) and _BORN.fullmatch(born) else None


def seen(members: Mapping[bytes, bytes], me: Member, now_ms: int) -> dict[str, Seen]:
    """The members beside us that were heard of, by name.

    One whose name another has by now is there by name and birth, ``NAME@BORN``: it is gone, but
    calls of it may not be.

    Args:
        members: What was written of each and when.
        me: Who asks.
        now_ms: The time, of the same clock.
    """
    found = [
        each
        for name, value in members.items()
        if name and (each := _one(name, value, now_ms)) is not None and each.member != me
    ]
    newest: dict[str, int] = {}
    for each in found:
        newest[each.member.name] = max(newest.get(each.member.name, 0), each.member.born)
    newest[me.name] = -1
    return {
        each.member.name if newest[each.member.name] == each.member.born else str(each.member): each
        for each in found
    }


def _one(name: bytes, value: bytes, now_ms: int) -> Seen | None:
    member = member_of(name)
    at_ms, _, content = value.partition(b" ")
    if member is None or not at_ms.isdigit() or len(at_ms) > 16:
        return None
    try:
        beat = _decoder.decode(content)
    except msgspec.DecodeError:
        return None
    load = Load(
        beat.live, beat.running, beat.waiting, beat.accepts, beat.draining,
        beat.dials_in_s, beat.dial_every_s,
    )  # fmt: skip
    return Seen(member, load, max(0, now_ms - int(at_ms)) / 1000, beat.address)
