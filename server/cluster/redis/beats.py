"""What members say of themselves, as it is written down; nothing that waits."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Annotated

import msgspec

from server.cluster.names import is_name
from server.cluster.registry import Load, Member, Seen
from server.settings.values import node_url

_MOST = 1_000_000_000
MAX_MS_DIGITS = 16
"""Of a time as it is written."""
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
    vouched: Annotated[str, msgspec.Meta(max_length=64)] = ""
    """What shows that the address is this member's: see :meth:`Prover.vouch`."""


Believes = Callable[[Member, str, str], bool]
"""Whether a member is reached at an address, as something is to show."""

_decoder = msgspec.json.Decoder(_Beat)


def written(address: str, load: Load, vouched: str) -> bytes:
    """How a member is, and where it is reached, with what shows that."""
    counts = (int(_bounded(count)) for count in (load.live, load.running, load.waiting))
    times = _bounded(load.dials_in_s), _bounded(load.dial_every_s)
    return msgspec.json.encode((address, *counts, load.accepts, load.draining, *times, vouched))


def _bounded(value: float) -> float:
    return 0.0 if math.isnan(value) else min(max(value, 0.0), _MOST)


def member_of(text: bytes) -> Member | None:
    """The member of this name, or None if it is none's."""
    name, _, born = text.decode("ascii", "replace").rpartition("@")
    return Member(name, int(born)) if is_name(name) and _BORN.fullmatch(born) else None


Stamps = dict[bytes, tuple[bytes, float]]
"""When each member has said its newest, as that stands there, and since when it stands there, by a
clock of ours."""


def stamps(members: Mapping[bytes, bytes], before: Stamps, now: float) -> Stamps:
    """When each member has said its newest.

    Args:
        members: What was written of each and when.
        before: What was returned last.
        now: The time by our clock.
    """
    found: Stamps = {}
    for name, value in members.items():
        at_ms = value.partition(b" ")[0]
        known = before.get(name)
        found[name] = known if known is not None and known[0] == at_ms else (at_ms, now)
    return found


def seen(
    members: Mapping[bytes, bytes],
    me: Member,
    now_ms: int,
    believes: Believes,
    silent_s: Callable[[bytes], float] = lambda name: 0.0,
) -> dict[str, Seen]:
    """The members beside us that were heard of, by name.

    One whose name another has by now is there by name and birth, ``NAME@BORN``: it is gone, but
    calls of it may not be.

    Args:
        members: What was written of each and when.
        me: Who asks.
        now_ms: The time, of the same clock.
        believes: Asked of each: who is not believed is left out.
        silent_s: For how long a member has surely said nothing new: more than the clock says that
            was put back.
    """
    found = [
        each
        for name, value in members.items()
        if name
        and (each := _one(name, value, now_ms, believes, silent_s(name)))
        and each.member != me
    ]
    newest: dict[str, int] = {}
    for each in sorted(found, key=lambda one: (-one.age_s, one.member)):
        newest[each.member.name] = each.member.born  # of whoever was heard of last
    newest[me.name] = -1
    return {
        each.member.name if newest[each.member.name] == each.member.born else str(each.member): each
        for each in found
    }


def _one(
    name: bytes, value: bytes, now_ms: int, believes: Believes, silent_s: float
) -> Seen | None:
    member = member_of(name)
    at_ms, _, content = value.partition(b" ")
    if member is None or not at_ms.isdigit() or len(at_ms) > MAX_MS_DIGITS:
        return None
    try:
        beat = _decoder.decode(content)
    except msgspec.DecodeError:
        return None
    if not _is_address(beat.address) or not believes(member, beat.address, beat.vouched):
        return None
    load = Load(
        beat.live, beat.running, beat.waiting, beat.accepts, beat.draining,
        beat.dials_in_s, beat.dial_every_s,
    )  # fmt: skip
    return Seen(member, load, max(silent_s, (now_ms - int(at_ms)) / 1000), beat.address)


@lru_cache(maxsize=4096)  # each member says the same in every beat
def _is_address(text: str) -> bool:
    """Whether this is where a node can be reached, or nowhere."""
    try:
        return not text or node_url(text) == text
    except ValueError:
        return False
