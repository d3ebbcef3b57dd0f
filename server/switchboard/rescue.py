"""Calls that outlive their process: taken over from one that is gone, and given up by one that was.

Two things tell that a call has lost its process. The carrier asks how it goes on, as its stream has
ended: whoever is asked and gets no answer from the call's process takes it over, for the carrier
has one place for what it is told, and whoever answers has the call. Or nobody asks, as nothing has
closed: a process that is silent for as long as its lease lasts, and does not answer either, has its
calls taken over, and the carrier is told where their streams go.

That one is silent counts only while we are sure of our own news of it; that a process of our own
machine is dead, always. And the last process to stop ends what dead ones have left, so that each of
their calls has its record: what is kept of calls on one machine goes with its processes.

Either way only what the registry has given is acted on. A process that was stopped, or cut off, and
comes back looks whose its calls are before it goes on, and ends in silence what is another's.

What may have become ours without our being told so (the registry's answer was lost), or could not
be taken up, is nobody else's to rescue: it is tried again here, and whoever is asked for it by the
carrier, and told that we do not have it, takes it from us.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from math import inf

import structlog
import trio

from server.agent.agent import Agent
from server.call.call import Call
from server.call.report.ended import EndedCall, LeftUnreadable
from server.call.takeover.state import StateUnreadable
from server.carrier.webhooks import Events
from server.cluster.cluster import Cluster
from server.cluster.lookout import Absence, Lookout
from server.cluster.registry import Holding, Member, Registry, RegistryAway, Seized
from server.dialogue.endings import EndReason
from server.errors import CallNotInProgress, CallRefused, CarrierError, ServerError
from server.hooks.trio_clock import missed_s
from server.pace import next_tick
from server.switchboard.calls import Calls
from server.switchboard.register import CallIsOver

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

LOOK_S = 0.25
"""How often it is looked who is silent, and whose the calls are that have lost their line."""
SEIZE_TIMEOUT_S = 2.0
SEIZE_AGAIN_S = 0.1
RECONNECTS_PER_S = 50.0
"""Of all processes together: the carrier answers more of them with refusals."""
CHECKED_AT_ONCE = 16
DOUBT_S = 3.0
"""For so long after another has asked for a call of ours it is looked whose it is: where it had our
answer too late, it has taken the call."""
TELL_AGAIN_S = (0.25, 0.5, 1.0)
"""How long to wait before it is asked again whose a call is that the carrier is to be told about,
where nobody could say."""
CARRIER_TIMEOUT_S = 2.0
"""How long the carrier may take to say how a call stands that is to end with its server."""
REPLACES_S = 3.0
"""For so long after the carrier has taken on to bring a call's stream here, the end of one that is
here already is no hang-up: it was asked for while the carrier was being told."""
TRY_AGAIN_S = (0.5, 1.0, 2.0, 4.0, 8.0, 30.0)
"""How long to wait before each further try to take up what may be ours, and from then on."""


class CallLost(ServerError):
    """A call is ours, but it cannot go on: it is given back, and its caller is owed an apology
    unless it had ended before.

    Attributes:
        has_ended: Its last owner has said so, or it has ended here.
    """

    def __init__(self, reason: str, *, has_ended: bool) -> None:
        super().__init__(reason)
        self.has_ended = has_ended


class Unsettled:
    """Calls that may be ours, though nobody goes on with them here; no clock."""

    def __init__(self) -> None:
        self._tries: dict[str, tuple[int, float]] = {}

    def add(self, call_sid: str, now: float) -> None:
        """A call was not taken up, or it is not known whether it is ours."""
        self._tries.setdefault(call_sid, (1, now + TRY_AGAIN_S[0]))

    def settle(self, call_sid: str) -> None:
        """It is known whose a call is, and it goes on there, or is over."""
        self._tries.pop(call_sid, None)

    def due(self, now: float) -> list[str]:
        """The calls that are to be tried now, and again until that settles something: nobody else
        looks for what is ours, and the registry forgets it when no call lasts any longer."""
        due = [(call_sid, tries) for call_sid, (tries, at) in self._tries.items() if at <= now]
        for call_sid, tries in due:
            pause_s = TRY_AGAIN_S[min(tries, len(TRY_AGAIN_S) - 1)]
            self._tries[call_sid] = tries + 1, now + pause_s
        return [call_sid for call_sid, _ in due]


class Rescue:
    """Takes over the calls of processes that are gone, and gives up those that others took over.

    Args:
        calls: This process's.
        cluster: This process among those of its server.
        agent: Says who answers here at this moment.
        lease_s: How long a process may be silent until it is asked whether it is there.
        events: What carriers tell on connections, where they ask nobody about calls that were left.

    Attributes:
        lookout: Knows who of the others is silent, and who is gone.
    """

    def __init__(
        self,
        calls: Calls,
        cluster: Cluster,
        agent: Callable[[], Agent],
        *,
        lease_s: float,
        events: Sequence[Events] = (),
    ) -> None:
        self._events = events
        self._calls = calls
        self._cluster = cluster
        self._agent = agent
        self._lease_s = lease_s
        self.lookout = Lookout(cluster, lease_s=lease_s)
        self._taking: dict[str, trio.Event] = {}
        self._unsettled = Unsettled()
        self._doubted: dict[str, float] = {}
        self._our_absence = Absence(missed_s(), is_away=cluster.registry.is_away)
        self._under_way: set[Member] = set()
        self._is_checking = self._is_settling = False
        self._goes_on = True
        self._next_at = -inf
        cluster.registry.on_lost = self.lost

    async def run(self) -> None:
        """Look after others' calls and our own, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:  # one task: to be woken costs more than to look
                await trio.sleep_until(next_tick(trio.current_time(), LOOK_S))
                self._look_after_others(nursery)
                if not self._is_checking:
                    self._look_after_ours(nursery)
                if not self._is_settling:
                    self._look_after_unsettled(nursery)

    # -- taking over -----------------------------------------------------------------------

    async def take(self, call_sid: str, holding: Holding, *, ends: bool = False) -> Call | None:
        """Take a call over from a process that is gone; the call then waits for its stream.

        Args:
            call_sid: The call.
            holding: Whose it is; ours, where we were not told that we had it, or have failed.
            ends: Whether it is to end here at once, which needs no room.

        Returns:
            None if it is not that one's any more: it may be ours, another's or over.

        Raises:
            CallRefused: There is no room for it here; it is still that one's.
            RegistryAway: It is not known, and tried again.
            CallLost: It was ours, but nobody can go on with it.
        """
        call = await self._take(call_sid, holding, ends=ends)
        assert not isinstance(call, int)
        return call

    async def take_or_begin(self, call_sid: str, holding: Holding) -> int | None:
        """Take a call over that the carrier says begins; if nothing was kept of it, it does.

        Returns:
            At which generation it is ours; else see :meth:`take`.
        """
        found = await self._take(call_sid, holding, may_begin=True)
        return found.ownership.generation if isinstance(found, Call) else found

    async def _take(
        self, call_sid: str, holding: Holding, *, may_begin: bool = False, ends: bool = False
    ) -> Call | int | None:
        if call_sid in self._taking:
            await self.settled(call_sid)
            return None
        if holding.member != self._cluster.me and not ends:  # else nobody else would
            self._calls.check_takeover()
        self._taking[call_sid] = trio.Event()
        try:
            # What has been sent may have been done, so it is seen through, whoever goes away.
            with trio.CancelScope(shield=True):
                seized = await self._seize(call_sid, holding)
            if seized is None:
                return None
            if may_begin and not (seized.state or seized.has_ended):
                self._unsettled.settle(call_sid)
                return seized.generation
            call = self._take_up(call_sid, seized, holding)
            if not (self._goes_on or ends):
                call.end(EndReason.DRAINED, "its process was gone")
        except CallLost:
            self._unsettled.settle(call_sid)
            raise
        except Exception:
            self._unsettled.add(call_sid, trio.current_time())
            raise
        else:
            self._unsettled.settle(call_sid)
            return call
        finally:
            self._taking.pop(call_sid).set()

    async def _seize(self, call_sid: str, holding: Holding) -> Seized | None:
        give_up_at = trio.current_time() + SEIZE_TIMEOUT_S
        while True:
            try:
                return await self._cluster.registry.seize(call_sid, holding)
            except RegistryAway:
                now = trio.current_time()
                self._unsettled.add(call_sid, now)  # it may have been done
                if now >= give_up_at:
                    raise
            await trio.sleep(SEIZE_AGAIN_S)

    def _take_up(self, call_sid: str, seized: Seized, holding: Holding) -> Call:
        facts = {"call_sid": call_sid, "left_by": str(holding.member)}
        if seized.has_ended:
            self._inherit(call_sid, seized)
            raise CallLost("the call has ended", has_ended=True)
        try:
            call = self._calls.take_up(call_sid, seized.state, seized.generation, self._agent())
        except (StateUnreadable, CallIsOver) as reason:
            logger.warning("call cannot be taken over", reason=str(reason), **facts)
            self._cluster.release(call_sid, seized.generation)
            raise CallLost(str(reason), has_ended=isinstance(reason, CallIsOver)) from reason
        logger.info("call taken over", generation=seized.generation, **facts)
        return call

    def _inherit(self, call_sid: str, seized: Seized) -> None:
        """Do what is left to be done for a call that has ended: write its record, as it is."""
        if not seized.state:
            self._cluster.release(call_sid, seized.generation)
            return
        try:
            wall_time = self._cluster.peers.wall_time()
            left, events_url = EndedCall.taken_over(seized.state, wall_time=wall_time)
        except LeftUnreadable as reason:
            logger.error("record lost", call_sid=call_sid, reason=str(reason))  # noqa: TRY400
            self._cluster.release(call_sid, seized.generation)
            return
        self._cluster.hold(call_sid, seized.generation)
        let_go = partial(self._cluster.let_go, call_sid, seized.generation)
        for other in self._calls.register.inherit(left, seized.generation, events_url, let_go):
            self._cluster.release(other)

    async def settled(self, call_sid: str) -> None:
        """Wait until it is known whether a call that we are about to take over is ours."""
        if (taking := self._taking.get(call_sid)) is not None:
            await taking.wait()

    def is_here(self, call_sid: str, generation: int) -> bool:
        """Whether a call lives here at this generation, or a higher one, or has ended here."""
        if (call := self._calls.register.get_live(call_sid)) is not None:
            return call.ownership.generation >= generation
        return self._calls.register.has_ended(call_sid, generation)

    def has(self, call_sid: str) -> bool:
        """Whether a call lives here, as far as we know, or is about to.

        Another process asks, and may have taken it by the time that it is told: we look.
        """
        if call_sid in self._taking:
            return True
        call = self._calls.register.get_live(call_sid)
        if call is None or call.end_reason is not None:
            return False
        self._doubted[call_sid] = trio.current_time() + DOUBT_S
        return True

    def lost(self, call_sid: str, generation: int) -> None:
        """The registry says that a call is not ours any more: it ends here, in silence."""
        call = self._calls.register.get_live(call_sid)
        if call is not None and call.ownership.generation == generation:
            _disown(call)

    async def is_ours(self, call_sid: str) -> bool:
        """Whether a call is known here, and no other process has it by now."""
        await self.settled(call_sid)
        if (call := self._calls.register.get_live(call_sid)) is not None:
            await self._check([call])
            return call.end_reason is not EndReason.MOVED
        return self._calls.register.has_ended(call_sid)

    # -- others ----------------------------------------------------------------------------

    def _look_after_others(self, nursery: trio.Nursery) -> None:
        suspects = self.lookout.suspects()
        if not suspects or not self.takes_calls():
            return
        for name, member in suspects.items():
            if member not in self._under_way:
                self._under_way.add(member)
                nursery.start_soon(self._look_after, name, member)

    def takes_calls(self) -> bool:
        """Whether this process is one to go on with others' calls: it has room, and stays."""
        try:
            self._calls.check_takeover()
        except CallRefused:
            return False
        return not self._cluster.stands_aside

    async def _look_after(self, name: str, member: Member) -> None:
        try:
            self.lookout.leave_alone(member)
            if await self.lookout.answers(name) or not await self.lookout.lease_is_over(member):
                return
            if not await self._rescue_calls_of(member):
                self.lookout.leave_alone(member, for_good=True)
        except (RegistryAway, CallRefused):
            pass  # it is looked at again
        except Exception:
            logger.exception("calls not rescued by a bug of ours", left_by=str(member))
        finally:
            self._under_way.discard(member)

    async def _rescue_calls_of(self, member: Member) -> bool:
        """Take over what a process has left; returns whether there was anything, or is still."""
        left = list((await self._cluster.registry.calls_of(member)).items())
        self._tell_gone(member, len(left))
        random.shuffle(left)  # others do the same, and each call is one's
        async with trio.open_nursery() as nursery:
            for call_sid, holding in left:
                try:
                    if await self._cluster.registry.owner(call_sid) != holding:
                        continue  # another has it by now, and no turn is to be spent on it
                except RegistryAway:
                    break
                await self._take_turn()
                if not await self.lookout.may_take_from(member) or not self.takes_calls():
                    break
                nursery.start_soon(self._rescue, call_sid, holding)
        has_inherited = await self._inherit_from(member)
        is_clear = True
        for events in self._events:
            if await self.lookout.may_take_from(member):
                is_clear &= await _clear_up_after(member, events, self._cluster.registry)
            else:
                is_clear = False
        return has_inherited or bool(left) or not is_clear

    def _tell_gone(self, member: Member, calls: int) -> None:
        """Say that a process is gone, if it has left calls, and unless it was said."""
        if calls and self.lookout.is_news(member):
            logger.warning("a process is gone", process=str(member), calls=calls)

    async def end_left(self) -> bool:
        """End the calls of gone processes that nobody has taken over: this process stops, and no
        other stays to go on with them. Each leaves its record.

        Returns:
            Whether any has come to be ours by that, which may have yet to end: another process may
            have died meanwhile, so it is to be looked again.
        """
        registry, left = self._cluster.registry, dict[str, tuple[Holding, bool]]()
        self._goes_on = False
        ours = [call for call in self._calls.register.live if call.end_reason is None]
        for call in ours:  # that we went on with while the others were ended
            call.end(EndReason.DRAINED)
        with suppress(RegistryAway):  # which has been told
            for member in await self.lookout.left_to_us():
                live = await registry.calls_of(member)
                ended = await registry.calls_of(member, ended=True)
                self._tell_gone(member, len(live))
                for some, is_live in ((ended, False), (live, True)):
                    left |= {call_sid: (holding, is_live) for call_sid, holding in some.items()}
        async with trio.open_nursery() as nursery:  # at once, however many processes are gone
            for call_sid, (holding, is_live) in left.items():
                nursery.start_soon(partial(self._end, call_sid, holding, is_live=is_live))
        return bool(ours) or any(
            self.is_here(call_sid, holding.generation + 1)
            for call_sid, (holding, _) in left.items()
        )

    async def _end(self, call_sid: str, holding: Holding, *, is_live: bool) -> None:
        """End one call that its process has left: as the carrier says, if it is over there."""
        stands = None
        if is_live:
            with (
                _telling(call_sid),
                suppress(CarrierError),
                trio.move_on_after(CARRIER_TIMEOUT_S),
            ):
                stands = await self._calls.carrier.fetch_status(call_sid)
        with _telling(call_sid):
            call = await self.take(call_sid, holding, ends=True)
            if call is not None:  # and before it has begun here
                if stands is not None:
                    self._calls.update_status(stands)
                call.end(EndReason.DRAINED, "its process was gone")

    async def _inherit_from(self, member: Member) -> bool:
        """Write the records that a process has left, now that nobody waits for its live calls;
        returns whether there were any.
        """
        left = list((await self._cluster.registry.calls_of(member, ended=True)).items())
        random.shuffle(left)
        for call_sid, holding in left:
            if not await self.lookout.may_take_from(member):
                break
            with suppress(CallLost):  # as all of them are
                await self.take(call_sid, holding)
            await trio.lowlevel.checkpoint()  # our own calls have their turn between them
        return bool(left)

    async def _take_turn(self) -> None:
        fresh = sum(s.age_s < self._lease_s for s in self._cluster.registry.others().values())
        turn = max(trio.current_time(), self._next_at)
        self._next_at = turn + (1 + fresh) / RECONNECTS_PER_S
        await trio.sleep_until(turn)

    async def _rescue(self, call_sid: str, holding: Holding) -> None:
        """Take one call over, and have the carrier bring its stream."""
        with _telling(call_sid):
            call = await self.take(call_sid, holding)
            if call is not None and call.end_reason is None:
                if call.handover.has_left:
                    await _follow(call, self._events)
                else:
                    await self._reconnect(call)

    async def _reconnect(self, call: Call) -> None:
        carrier, tickets, hearing = self._calls.carrier, self._calls.tickets, call.hearing

        def ticket() -> str | None:
            c = call.conversation
            # It may have ended while the registry was asked, and its tickets be forgotten for good.
            if c.end_reason is not None or c.line is not None or call.handover.has_left:
                return None
            shown = tickets.issue_unasked(call, trio.current_time())
            if shown is not None:
                hearing.replaced_until = inf
            return shown

        try:
            for pause_s in TELL_AGAIN_S:
                if await call.fence.is_ours() is not None:
                    break
                await trio.sleep(pause_s)
            try:
                with call.conversation.connected.coming():
                    await call.fence.reconnect(call.call_sid, ticket)
            except CallNotInProgress:  # it is over, or still rings
                self._calls.update_status(await carrier.fetch_status(call.call_sid))
        except CarrierError as error:
            # It may have been done all the same; else the call ends when no stream comes.
            logger.warning("call not connected again", call_sid=call.call_sid, error=str(error))
        finally:
            until = trio.current_time() + REPLACES_S
            hearing.replaced_until = min(hearing.replaced_until, until)

    def _look_after_unsettled(self, nursery: trio.Nursery) -> None:
        if self._cluster.registry.is_away:
            return
        if due := self._unsettled.due(trio.current_time()):
            self._is_settling = True
            nursery.start_soon(self._settle_all, due)

    async def _settle_all(self, call_sids: Iterable[str]) -> None:
        """Try again to go on with what may be ours: all that is due, and then what is due next."""
        try:
            async with trio.open_nursery() as nursery:
                for call_sid in call_sids:
                    nursery.start_soon(self._settle, call_sid)
        finally:
            self._is_settling = False

    async def _settle(self, call_sid: str) -> None:
        try:
            holding = await self._cluster.registry.owner(call_sid)
        except RegistryAway:
            return
        if (
            holding is not None
            and holding.member == self._cluster.me
            and not self.is_here(call_sid, holding.generation)
        ):
            await self._rescue(call_sid, holding)
        else:
            self._unsettled.settle(call_sid)

    # -- our own ---------------------------------------------------------------------------

    def _look_after_ours(self, nursery: trio.Nursery) -> None:
        registry, live = self._cluster.registry, self._calls.register.live
        is_away, losses, now = registry.is_away, registry.losses, trio.current_time()
        is_back = self._our_absence.is_over(missed_s(), is_away=is_away, losses=losses)
        if not is_back:
            # Without its line a call may be another's, if we were only slow to answer.
            doubted = {sid: until for sid, until in self._doubted.items() if until > now}
            self._doubted = doubted
            live = [c for c in live if c.conversation.is_lost or c.call_sid in doubted]
        if not is_away and (live or is_back):
            self._is_checking = True
            nursery.start_soon(self._check_ours, live, missed_s() if is_back else None)

    async def _check_ours(self, live: Iterable[Call], missed_s: float | None) -> None:
        """Look whose calls are.

        Args:
            live: Ours, as far as we know.
            missed_s: How long we had been held up, if we have been away; else None.
        """
        try:
            if await self._check(live) and missed_s is not None:
                self._our_absence.told(missed_s)
        finally:
            self._is_checking = False

    async def _check(self, live: Iterable[Call]) -> bool:
        """End what is another's by now; returns whether all could be known."""
        waiting, known = list(live), True

        async def check(call: Call) -> None:
            nonlocal known
            generation = call.ownership.generation
            try:
                ours = await self._cluster.registry.is_current(call.call_sid, generation)
            except RegistryAway:
                known = False
                return
            if not ours and call.ownership.generation == generation:
                _disown(call)  # else its caller has come meanwhile: see Calls.claim

        while waiting and known:
            some, waiting = waiting[:CHECKED_AT_ONCE], waiting[CHECKED_AT_ONCE:]
            async with trio.open_nursery() as nursery:
                for call in some:
                    nursery.start_soon(check, call)
        return known


@contextmanager
def _telling(call_sid: str) -> Generator[None]:
    """Take over one call, and say why if that fails: it is not worth the others."""
    try:
        yield
    except CallLost:
        pass  # which has been told
    except (RegistryAway, CallRefused) as away:
        logger.info("call not rescued", call_sid=call_sid, reason=str(away))
    except Exception:
        logger.exception("call not rescued by a bug of ours", call_sid=call_sid)


def _disown(call: Call) -> None:
    if call.end_reason is not EndReason.MOVED:
        logger.info("call is another process's by now", call_sid=call.call_sid)
        call.conversation.disown()


async def _follow(call: Call, told: Iterable[Events]) -> None:
    """Have the carrier tell us of a caller who is with somebody else."""
    try:
        for events in told:
            await events.follow(call.call_sid)
    except CallNotInProgress as error:
        call.end(EndReason.CALLER_GONE, str(error))
    except CarrierError as error:  # should they come back, they are nobody's there
        logger.warning("caller not followed", call_sid=call.call_sid, error=str(error))


async def _clear_up_after(member: Member, events: Events, registry: Registry) -> bool:
    """Have a carrier see to what a process has left of calls that are nobody's; False if it is to
    be tried again.
    """

    async def is_somebodys(call_sid: str) -> bool:
        return await registry.owner(call_sid) is not None

    try:
        return await events.clear_up_after(member.name, is_somebodys)
    except CarrierError as error:
        logger.warning("calls left at the carrier", left_by=str(member), error=str(error))
        return False
