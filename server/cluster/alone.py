"""The registry of a process that is alone: all calls are its own, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio

from server.cluster.registry import Holding, Load, Member, Seen, Seized, State, nobody_minds


class Alone:
    """A :class:`server.cluster.registry.Registry` of one.

    Args:
        me: This process.
    """

    is_away = False
    losses = 0
    ahead_s = 0.0

    def __init__(self, me: Member) -> None:
        self.me = me
        self.on_lost: Callable[[str, int], None] = nobody_minds
        self._holding = Holding(me, 1)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be the only one, until cancelled."""
        task_status.started()
        await trio.sleep_forever()

    def publish(self, load: Load) -> None:
        """Nobody asks how we are doing."""

    def others(self) -> Mapping[str, Seen]:
        """There are none."""
        return {}

    async def claim(self, call_sid: str, member: Member | None = None) -> Holding:
        """Every call is ours."""
        return self._holding

    async def owner(self, call_sid: str) -> Holding | None:
        """Every call is ours, if it is anybody's."""
        return self._holding

    async def seize(self, call_sid: str, holding: Holding) -> Seized | None:
        """There is nobody to take a call over from."""
        return None

    async def is_current(self, call_sid: str, generation: int) -> bool:
        """Nobody else can have taken a call over."""
        return True

    async def calls_of(self, member: Member, *, ended: bool = False) -> Mapping[str, Holding]:
        """Nobody else has any."""
        return {}

    def announce(self, call_sid: str, generation: int) -> None:
        """Nobody has to know."""

    def keep(
        self,
        call_sid: str,
        generation: int,
        state: State,
        *,
        in_haste: bool = False,
        has_ended: bool = False,
    ) -> None:
        """Nobody would go on with a call: it is not kept."""

    def release(self, call_sid: str, generation: int, *, has_begun: bool = True) -> None:
        """Nobody has to know."""

    async def dial_turn(self, account: str, calls_per_s: float, max_wait_s: float) -> float | None:
        """The queue of this process keeps the account's whole rate."""
        return 0.0

    async def begin_request(self, client: str, key: str, fingerprint: bytes) -> bytes | None:
        """The memory of this process knows all requests that are being worked on."""
        return None

    async def end_request(self, client: str, key: str) -> None:
        """Nobody else has to know."""

    def tell_pause(self, kind: str, pause_s: float) -> None:
        """Nobody else has to know."""

    def pause(self) -> tuple[str, float] | None:
        """There is nobody else to be refused."""
        return None
