"""The service: what lives as long as the server does, and knows nothing of HTTP."""

from __future__ import annotations

import gc
import math
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Protocol

import structlog
import trio
from prometheus_client import CollectorRegistry

from server import garbage
from server.accounts import Accounts
from server.agent.agent import Agent
from server.agent.mcp_servers import McpServers, read_servers
from server.agent.roster.agents import NewCall
from server.agent.roster.roster import Roster
from server.agent.roster.routing import choose
from server.call.options import CallOptions
from server.call.report.costs import Prices
from server.call.report.drawing import Drawing
from server.call.report.ended import EndedCall
from server.carrier import (
    MachineVerdict,
    ResumeRequest,
    StatusUpdate,
    TransferUpdate,
    VoiceRequest,
)
from server.carrier.webhooks import PassOn, Reply, Report
from server.cluster.cluster import Cluster, chosen_for
from server.cluster.redis import redis_registry
from server.cluster.registry import RegistryAway
from server.errors import CallRefused
from server.events.events import Events
from server.events.handlers import load_handlers
from server.hooks.trio_clock import PausingClock, pausing_clock, tell_of_pauses
from server.logs import log_stranger
from server.media import plane
from server.metrics import Metrics, RegistryMetrics, VoiceMetrics
from server.records.recording import Recordings, check_directory
from server.records.store import Records
from server.records.traces import open_traces
from server.settings.events import read_secret
from server.settings.settings import Settings
from server.stalls.watch import AVAILABLE, Watch
from server.supervision import Helper, Start, keep_going, without_start
from server.switchboard.account_turns import AccountTurns
from server.switchboard.admission import Admission, Limits
from server.switchboard.calls import Calls
from server.switchboard.destinations import Destinations
from server.switchboard.making import CallMaker, refusal_of
from server.switchboard.rescue import CallLost, Rescue
from server.switchboard.strangers import Strangers
from server.voice.judge import MAX_CALLS, Judge
from server.voice.silero import Silero, is_installed

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

ON_ITS_WAY_S = 5.0
"""Who was asked for a new call before others were chosen has it in hand by then, and a connection
that was kept open has been closed."""

ASK_AGAIN_S, ASKS = 2.0, 150
"""While the registry is away: how often it is asked whose a call is, and how many times."""
LOOKS = 5
"""How many times it is looked at once whose a call is that others take just then."""


class Streams(Protocol):
    """Whoever serves the media sockets that have no request any more."""

    async def run(self) -> None:
        """Serve media sockets until closed and empty."""
        ...

    async def aclose(self) -> None:
        """Take no more media sockets; :meth:`run` returns when the last is closed."""
        ...


class Service:
    """Everything that calls need, from the server's start to its end.

    Attributes:
        settings: The process's.
        accounts: The carrier and the model.
        calls: The live and recent calls; there once :meth:`run` has started.
        rescue: Takes over calls of other processes; there with the calls.
        cluster: This process among those of its server.
        roster: The agents, and what reads them again.
        metrics: What this process counts.
        plane: The media plane; None if there is none here, or it is not wanted.
        records: What is left of calls.
        recordings: What was heard in them; None if it is not kept.
        events: Who is told of what happens to calls.
        destinations: Which numbers may be called.
        is_over: Whether the server stops, and its calls have ended.
        failed: Set when the inside has ended by a fault: whoever serves this is to end the process.
    """

    calls: Calls
    rescue: Rescue
    _drawing: Drawing

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.failed = trio.Event()
        self.metrics = Metrics(CollectorRegistry())
        self.cluster = self._open_cluster(settings)
        self._watch = Watch(self.metrics.stalls)
        self.plane: plane.Plane | None = None
        if settings.media_path == "fast" and plane.AVAILABLE:
            self.plane = plane.Plane()
        self.accounts = Accounts(settings, self.cluster, self.plane)
        self.roster = Roster(settings, self.accounts.check_agent)
        secret = settings.mcp_servers
        self._mcp_servers = McpServers(
            read_servers(secret.get_secret_value() if secret is not None else None),
            connect_timeout_s=settings.mcp_connect_timeout_s,
        )
        self._traces = open_traces(wanted=settings.traces)
        self.destinations = Destinations(
            settings.allowed_prefixes, refuse_costly=not self.accounts.are_simulated
        )
        if settings.unsaved_dir is not None:
            check_directory(settings.unsaved_dir, "UNSAVED_DIR")
        self.records = Records(
            settings.database_url.get_secret_value(),
            metrics=self.metrics,
            retention_days=settings.retention_days or None,
            requests_ttl_s=settings.idempotency_ttl_s,
            aside=settings.unsaved_dir,
        )
        self.recordings: Recordings | None = None
        if settings.recordings_dir is not None:
            check_directory(settings.recordings_dir)
            self.recordings = Recordings(
                settings.recordings_dir,
                metrics=self.metrics,
                retention_days=settings.retention_days or None,
            )
        self._voices = self._open_voices()
        self.events = Events(
            records=self.records,
            metrics=self.metrics,
            url=settings.events_url,
            keys=[read_secret(one.get_secret_value()) for one in settings.events_secret],
            allow_private=settings.events_allow_private,
            turns=settings.events_turns,
            public_url=lambda: self.accounts.public_url,
            handlers=load_handlers(settings.event_handlers),
        )
        self.is_over = False
        self._stopping = False
        self._has_waited = False

    def _open_voices(self) -> Judge | None:
        """What tells voices from noise; None where a detector alone has to."""
        metrics = VoiceMetrics(self.metrics.registry)
        if self.settings.voice_judge == "off" or not is_installed():
            return None
        try:
            return Judge(Silero(MAX_CALLS), metrics)
        except Exception as error:  # of somebody else's packages, which may be broken in any way
            metrics.failures.inc()
            logger.warning("the model of voices cannot be loaded", error=repr(error))
            return None

    def _open_cluster(self, settings: Settings) -> Cluster:
        if settings.registry_url is None:
            return Cluster()
        metrics = RegistryMetrics(self.metrics.registry)
        return Cluster(
            node=settings.node_name,
            secrets=[secret.get_secret_value() for secret in settings.cluster_secret],
            make_registry=lambda me: redis_registry(settings, me, metrics),
        )

    @property
    def agent(self) -> Agent:
        """Who answers if nobody else does, with the tools there are at this moment."""
        return self._with_offered(self.roster.agents.default)

    def find_agent(self, name: str) -> Agent | None:
        """The agent of this name, as it is at this moment; None if there is none."""
        agent = self.roster.agents.by_name.get(name)
        return None if agent is None else self._with_offered(agent)

    async def choose_agent(self, call: NewCall) -> Agent:
        """Who is to answer a call: see :func:`server.agent.roster.routing.choose`."""
        timeout_s = self.settings.agents_route_timeout_s
        return self._with_offered(await choose(self.roster.agents, call, timeout_s=timeout_s))

    def _with_offered(self, agent: Agent) -> Agent:
        """The agent with the tools that MCP servers offer at this moment."""
        names = {tool.name for tool in agent.tools}
        offered = tuple(tool for tool in self._mcp_servers.tools if tool.name not in names)
        return replace(agent, tools=(*agent.tools, *offered)) if offered else agent

    # -- what the carrier asks and reports -------------------------------------------------

    async def take_report(self, report: Report) -> Reply | PassOn | None:
        """Take what the carrier tells on a connection of this process, or answer what it asks.

        What comes as a request is brought to the process whose it is before it is answered; here it
        is looked whose a call is by now, and a new one is given to whoever has the most room.

        Returns:
            How the call goes on; None if nobody asks, or it is another process's to say.
        """
        calls = self.calls
        is_live = calls.register.get_live(report.call_sid) is not None
        match report:
            case VoiceRequest(call_sid, begins=True, is_given=is_given) if not is_live:
                other = None if is_given else await chosen_for(call_sid, self.cluster)
                return await self.begin_call(report) if other is None else PassOn(other)
            case VoiceRequest(begins=True) | ResumeRequest():
                return await self._go_on(report)
            case VoiceRequest():
                return await calls.go_on(report, self.agent)
            case StatusUpdate():
                if report.status.is_final and is_live and self.cluster.are_several:
                    await self.rescue.is_ours(report.call_sid)  # else it ends in silence
                calls.update_status(report)
            case MachineVerdict():
                calls.update_machine(report)
            case TransferUpdate(wants_document=False):
                await calls.update_transfer(report, self.agent)
            case TransferUpdate():
                if self.cluster.are_several:  # another may have it by now, or nobody
                    return await self._go_on(report)
                return await calls.update_transfer(report, self.agent)
        return None

    async def _go_on(self, asked: Report) -> Reply | None:
        """How a call goes on whose stream has ended, or that somebody here has left behind; None
        where another process has it, or may take it yet.

        Its carrier asks once. So while nobody can say whose it is, a call that has ended here is
        over, and another's is asked about again.
        """
        call_sid = asked.call_sid
        for left in reversed(range(ASKS)):
            try:
                return await self._go_on_if_ours(asked)
            except RegistryAway as reason:
                if self.calls.register.has_ended(call_sid):
                    return self.calls.register.end_of(call_sid)
                logger.warning("call cannot be taken over", call_sid=call_sid, reason=str(reason))
            if left:
                await trio.sleep(ASK_AGAIN_S)
        return None

    async def _go_on_if_ours(self, asked: Report) -> Reply | None:
        """How a call goes on; raises RegistryAway where nobody can say whose it is."""
        cluster, rescue, calls = self.cluster, self.rescue, self.calls
        call_sid, is_orphan = asked.call_sid, False
        if cluster.are_several and calls.register.get_live(call_sid) is not None:
            if not await rescue.is_ours(call_sid):
                return None
        elif cluster.are_several:
            try:
                for _ in range(LOOKS):
                    if (holding := await cluster.registry.owner(call_sid)) is None:
                        break
                    if holding.member == cluster.me:
                        if rescue.is_here(call_sid, holding.generation):
                            break
                    elif not cluster.is_gone(holding.member):
                        return None
                    if await rescue.take(call_sid, holding) is not None:
                        break
                else:
                    raise RegistryAway("who has this call changes all the time")
            except CallLost as lost:
                is_orphan = not lost.has_ended
            except CallRefused as reason:
                logger.warning("call cannot be taken over", call_sid=call_sid, reason=str(reason))
                return None
        if isinstance(asked, TransferUpdate) and calls.register.get_live(call_sid) is not None:
            return await calls.update_transfer(asked, self.agent)
        return await calls.resume(call_sid, self.agent, is_orphan=is_orphan)

    async def begin_call(self, asked: VoiceRequest, *, generation: int = 1) -> Reply:
        """Answer an inbound call, or refuse it.

        Args:
            asked: What the carrier asks.
            generation: For the how-manieth time the call is somebody's.
        """
        agent = self.agent
        try:
            agent = await self._who_answers(asked)
            return await self.calls.answer(
                asked.call_sid, asked.number, agent, generation=generation
            )
        except CallRefused as refusal:
            self.metrics.calls_refused.labels(refusal.reason).inc()
            log_stranger(logger.warning, "inbound call refused", reason=refusal.reason)
            return refusal_of(refusal, agent)

    async def _who_answers(self, asked: VoiceRequest) -> Agent:
        """The agent of a call that comes in; nobody is looked up for one that gets none."""
        if self.calls.register.get(asked.call_sid) is not None or not self.calls.load().accepts:
            return self.agent
        return await self.choose_agent(
            NewCall("inbound", asked.number, asked.called, asked.headers)
        )

    # -- from start to end -----------------------------------------------------------------

    async def run(
        self,
        streams: Streams,
        passed_on: Helper,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Own what is inside, from start-up to shutdown, and say so if it ends in between.

        HTTP would go on without it, ready and of no use. What is raised before the start is over is
        left to whoever starts it.

        Args:
            streams: Serves the media sockets that outlive their requests.
            passed_on: Takes what other processes pass on; runs if there are any.
            task_status: Told when calls can be taken.
        """
        start = Start(task_status)
        try:
            with pausing_clock():
                await self._run(streams, passed_on, start)
        except* Exception as failures:
            if not start.is_over:
                raise
            logger.critical("the inside of the server has failed", exc_info=failures)
        finally:
            if start.is_over and not self._stopping:
                self.failed.set()

    async def aclose(self) -> None:
        """Take no more calls; :meth:`run` returns when the live ones have ended."""
        self._stopping = True
        await self.calls.aclose()

    async def wind_up(self) -> None:
        """Drain, for good: whatever is open now and is no call is to end by itself.

        Nor is a call to be without a record that another process has left, which is gone: it may
        have died while we were at it, with what it had taken over from one before.
        """
        await self._end_calls()
        has_finished = False
        while (has_left := await self.rescue.end_left()) or not has_finished:
            if has_left:
                with trio.move_on_after(2 * self.settings.close_timeout_s):
                    await self.calls.wait_empty()
            await self._finish()
            has_finished = True
        self.is_over = True

    async def drain(self) -> None:
        """Refuse new calls and end the live ones, within ``drain_timeout_s`` and a goodbye."""
        await self._end_calls()
        await self._finish()

    async def _end_calls(self) -> None:
        await self.calls.drain(0.0 if self._has_waited else self.settings.drain_timeout_s)

    async def _finish(self) -> None:
        """Wait for what is still to be done for calls that have ended."""
        await self._drawing.finish()
        await self.events.handling.finish()

    def step_in(self) -> None:
        """Take new calls from now on."""
        self.cluster.stands_aside = False
        self.cluster.publish()

    async def step_aside(self) -> None:
        """Leave new calls to other processes, and wait until the live ones have ended.

        Nobody is refused meanwhile: what was on its way here, or waits for its turn to be dialled,
        is served. It takes ``drain_timeout_s`` at most, and a drain that follows waits no more.
        """
        calls = self.calls
        self.cluster.stands_aside = True
        self.cluster.publish()
        logger.info("another server has taken over", live=calls.live_count)
        with trio.move_on_after(self.settings.drain_timeout_s):
            await trio.sleep(ON_ITS_WAY_S)
            last = list(calls.register.live)
            await calls.wait_empty()
            # Who goes now would miss the carrier's last word: the minutes it bills.
            with trio.move_on_after(self.settings.close_timeout_s):
                for call in last:
                    await call.progress.settled.wait()
        self._has_waited = True

    async def _run(self, streams: Streams, passed_on: Helper, start: Start) -> None:
        async with (
            AsyncExitStack() as stack,
            trio.open_nursery() as others,
            AsyncExitStack() as after_keepers,
            trio.open_nursery() as keepers,  # what calls need to the very end, even of a fault
            trio.open_nursery() as helpers,
        ):
            # Whatever ends it all: others are told what has been written of calls, to the end.
            telling = trio.CancelScope(shield=True)
            after_keepers.callback(telling.cancel)
            if self.plane is not None:
                await keepers.start(self.plane.run)
            stack.callback(self.cluster.leave)
            await self.accounts.open(keepers)
            await keepers.start(self.records.run)
            await helpers.start(keep_going, "mcp servers", self._mcp_servers.run)
            if self.recordings is not None:
                await keepers.start(keep_going, "recordings", self.recordings.run)
                sweep = without_start(self.recordings.sweep)
                keepers.start_soon(keep_going, "old recordings", sweep)
            await stack.enter_async_context(self.accounts.carrier)
            timeout_s = self.settings.outcome_timeout_s
            self._drawing = Drawing(self.accounts.reader, timeout_s=timeout_s, metrics=self.metrics)
            helpers.start_soon(keep_going, "outcomes", without_start(self._drawing.run))
            calls = self.calls = self._make_calls()
            calls.register.events = self.events
            calls.register.draw = self._draw_inherited
            helpers.start_soon(keep_going, "handlers", without_start(self.events.handling.run))
            if self.events.are_sent:
                helpers.start_soon(keep_going, "events", without_start(self.events.delivery.run))
            self.rescue = Rescue(
                calls,
                self.cluster,
                lambda: self.agent,
                lease_s=self.settings.lease_s,
                events=self.accounts.events,
            )
            admission = calls.admission
            self.accounts.carrier.on_wait = lambda wait_s: admission.pause_dialling(
                trio.current_time() + wait_s
            )
            watch = partial(admission.watch_loop, lambda: calls.live_count)
            helpers.start_soon(keep_going, "loop lag", without_start(watch))
            tell = partial(tell_of_pauses, self.metrics.capacity.paused.inc)
            helpers.start_soon(keep_going, "pauses", without_start(tell))
            # Not under a clock for tests, by which nobody is late.
            is_real = isinstance(trio.lowlevel.current_clock(), PausingClock)
            if self.settings.watch_loop and AVAILABLE and is_real:
                stalls = partial(self._watch.run, lambda: calls.live_count)
                helpers.start_soon(keep_going, "stalls", without_start(stalls))
            watches = self.settings.agents_watch
            if watches is None:
                watches = self.accounts.are_simulated
            read_again = partial(self.roster.run, watches=watches)
            helpers.start_soon(keep_going, "agents", without_start(read_again))
            helpers.start_soon(keep_going, "model tries", without_start(calls.model_trial.run))
            if self._voices is not None:
                keepers.start_soon(keep_going, "voices", without_start(self._voices.run))
            if self.cluster.are_several:
                self.cluster.report = calls.load
                await others.start(_within, telling, partial(keep_going, "cluster", passed_on))
                helpers.start_soon(keep_going, "rescue", without_start(self.rescue.run))
            for events in self.accounts.events:
                hear = partial(events.run, self.take_report)
                helpers.start_soon(keep_going, "carrier events", without_start(hear))
            self._tell_ready()
            # What start-up has made stays for good. To go through it again and again, a tenth of a
            # second at a time, would hold up every call at once.
            gc.collect()
            gc.freeze()
            collect = partial(garbage.collect, lambda: calls.live_count)
            helpers.start_soon(keep_going, "garbage", without_start(collect))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(streams.run)
                await calls.run(start)
                await streams.aclose()
            await self._close_traces()
            helpers.cancel_scope.cancel()
            keepers.cancel_scope.cancel()

    def _make_calls(self) -> Calls:
        settings, accounts = self.settings, self.accounts
        several = self.cluster.registry if self.cluster.has_others else None
        has_nodes = self.cluster.has_nodes
        limits = Limits.of(
            settings,
            is_simulated=accounts.are_simulated,
            processes=self.cluster.count,
            has_nodes=has_nodes,
        )
        turns = None
        if has_nodes and limits.calls_per_s < math.inf:
            account = accounts.carrier_account
            turns = AccountTurns(self.cluster.registry, account, limits.calls_per_s)
        maker = CallMaker(
            model=accounts.model,
            metrics=self.metrics,
            options=CallOptions.of(settings),
            prices=Prices(
                settings.carrier_minute_usd,
                accounts.own_number,
                has_table=accounts.has_price_table,
            ),
            recordings=self.recordings,
            is_current=several.is_current if several else None,
            keep=several.keep if several else None,
            find_agent=self.find_agent,
            voices=self._voices,
            wall_time=self.cluster.peers.wall_time,
        )
        return Calls(
            carrier=accounts.carrier,
            maker=maker,
            admission=Admission(limits, self.metrics, turns),
            records=self.records,
            ticket_ttl_s=settings.ticket_ttl_s,
            start_timeout_s=settings.start_timeout_s,
            recent_calls=settings.recent_calls,
            traces=self._traces,
            drawing=self._drawing,
            strangers=Strangers.of(settings),
            cluster=self.cluster,
            callback_wait_s=settings.callback_wait_s or math.inf,
        )

    def _draw_inherited(self, left: EndedCall, events_url: str | None) -> None:
        """Draw what the outcome lacks of a call that another process has left, if its agent is
        known here, and wants any.
        """
        agent = self.find_agent(str(left.shown(full=False)["agent"]))
        if agent is not None and agent.outcome is not None:
            found = partial(self.calls.register.outcome_drawn, left, events_url)
            self._drawing.inherited(left, agent.outcome, found)

    def _tell_ready(self) -> None:
        accounts, model = self.accounts, self.accounts.model.name
        if self.settings.max_call_cost_usd is not None and Prices().of_model(model) is None:
            logger.warning("MAX_CALL_COST_USD caps the carrier's part only", model=model)
        if self.cluster.speaks_for_all:
            if self._voices is None and self.settings.voice_judge != "off":
                logger.info("voices are told from noise by a detector alone: see offhook[ear]")
            agents = self.roster.agents.by_name.values()
            local = [agent.name for agent in agents if agent.turn_end == "local"]
            if local and self._voices is None:
                logger.warning(
                    "turn_end is local where nothing tells voices from noise: any noise is a turn "
                    "of the caller's (VOICE_JUDGE, offhook[ear])",
                    agents=local,
                )
            if accounts.are_simulated:
                logger.info(
                    "the simulated model follows no prompt: it says its own sentences, or those of "
                    "--model-script FILE",
                    script=str(self.settings.simulated_model_script or "none"),
                )
            for warning in self.settings.warnings:
                logger.warning("a setting may be a mistake", what=warning)
            if (taken := self.calls.admission.max_calls) < self.settings.max_calls:
                logger.warning(
                    "MAX_CALLS is more than there are descriptors for: raise the hard limit "
                    "(ulimit -Hn, LimitNOFILE)",
                    max_calls=self.settings.max_calls,
                    taken=taken,
                )
        logger.info(
            "offhook ready",
            carrier=accounts.carrier.name,
            carriers=accounts.carrier_names,
            model=model,
            model_platform=accounts.model_platform,
            public_url=accounts.public_url,
            simulated=accounts.are_simulated,
            worker=self.cluster.me.name if self.cluster.has_others else None,
        )

    async def _close_traces(self) -> None:
        with trio.move_on_after(self.settings.close_timeout_s):
            try:
                await trio.to_thread.run_sync(self._traces.close, abandon_on_cancel=True)
            except Exception:
                logger.exception("traces not sent")  # somebody else's package, and all is over


async def _within(
    scope: trio.CancelScope, helper: Helper, *, task_status: trio.TaskStatus[None]
) -> None:
    """Run a helper until this scope is cancelled."""
    with scope:
        await helper(task_status=task_status)
