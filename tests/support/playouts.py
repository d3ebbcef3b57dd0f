"""A playout, opened and drained."""

from __future__ import annotations

from server.carrier import CarrierCommand
from server.dialogue.playout import Playout

SECOND = b"\x00" * 8_000


def drain(playout: Playout, now: float) -> list[CarrierCommand]:
    commands = []
    while (command := playout.next_command(now)) is not None:
        commands.append(command)
    return commands


def opened(**settings: float) -> Playout:
    playout = Playout(**settings)
    playout.open(0.0)
    return playout
