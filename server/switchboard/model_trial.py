"""The model's account: calls pause while it is refused, and the model is tried without a call.

Nobody's phone has to ring for it, and a pause ends whether or not anybody asks for calls. Where
there are several processes, all pause when one is refused: the last of those that were tries the
model, and when it is accepted, all go on.

What is refused of an agent's own model may be that model's trouble or the account's: the server's
model is tried, and calls pause if it is refused the same. What its fallback is refused may concern
one agent alone as well, for which the model itself would not be set up as it asks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import structlog
import trio

from server.agent.agent import Agent
from server.call.call import Call
from server.cluster.cluster import Cluster
from server.cluster.registry import Registry
from server.errors import ModelError, ModelSetupRefused, innermost
from server.logs import Sparing
from server.metrics import Metrics
from server.model import Model, PastTurn, Session, SessionEvent, Way
from server.pace import next_tick
from server.refusal import Kind
from server.switchboard.account_pause import AccountPause

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

TRY_MODEL_S = 15.0
"""How long the model is tried without a call: a connection and a set-up, with air."""
MODEL_ALONE_S = 5.0
"""When the model has not answered for so long, its fallback is asked beside it: it may be that one
that was refused while the model is merely away."""
LISTEN_S = 0.25
"""How often what other processes say of the account is looked at."""
TOLD_S = 3.0
"""For what was tried to be told to all."""
OF_THE_ACCOUNT = frozenset({Kind.KEY, Kind.CREDITS, Kind.REFUSED})
"""What is refused of every model alike; the rest may be of one alone, its quota as well."""
DOUBT_EVERY_S = 60.0
"""Whether it is one model's or the account's is looked at no more often."""
TOLD_EVERY_S, TOLD_AGENTS = 600.0, 10
"""In this time there is one line on each of so many agents whose calls alone may be refused."""
STAGGER_S = 5.0
"""Processes that have heard nothing more of a pause do not all try within the same moment."""


class ModelTrial:
    """Begins pauses when a call was refused, and ends them by trying the model.

    Args:
        model: What is tried.
        pause: Whether calls pause; admission asks it.
        metrics: The process's metrics.
        cluster: This process among those of its server: told when calls begin or cease to pause;
            its registry of what was refused here, and heard for what others were.
        find_agent: The agent of this name, as it is now; None if there is none.
    """

    def __init__(
        self,
        model: Model,
        pause: AccountPause,
        metrics: Metrics,
        cluster: Cluster,
        find_agent: Callable[[str], Agent | None],
    ) -> None:
        self._model = model
        self._pause = pause
        self._metrics = metrics
        self._on_change = cluster.publish
        self._find_agent = find_agent
        self._refused_name = Agent().name  # whose call was refused last
        # What was refused, perhaps to one agent alone: of a model of its own, or not.
        self._doubts: dict[bool, Kind] = {}
        self._doubt_from = {True: -math.inf, False: -math.inf}
        self._own_told = Sparing(TOLD_EVERY_S, lines=TOLD_AGENTS)
        self._registry = cluster.registry if cluster.are_several else None
        self._changed = trio.Event()
        for kind in Kind:
            metrics.model_refusals.labels(kind.value)

    def learn(self, call: Call) -> None:
        """A call has ended: what it says about the account that all calls share."""
        agent = call.conversation.party.agent
        if call.refusal is not None:
            self._refused_name = agent.name
            is_own = agent.model not in (None, self._model.name)
            # A fallback may have an account of its own, which our model does without.
            is_fallbacks = call.conversation.session.standing.on_fallback
            # Our model may have refused only what this agent asks for.
            may_be_its = is_own or (is_fallbacks and _asks_for_something(agent))
            if may_be_its and (is_fallbacks or call.refusal not in OF_THE_ACCOUNT):
                self._perhaps_it_alone(agent, call.refusal, is_own=is_own)
            else:
                self._refused(call.refusal)
        elif call.conversation.agent_turn:
            self._pause.worked()

    async def run(self) -> None:
        """While calls pause, try the model now and then; until cancelled."""
        async with trio.open_nursery() as nursery:
            if self._registry is not None:
                nursery.start_soon(self._listen, self._registry)
            while True:
                changed = self._changed
                if not self._doubts:  # there may be one since the last was looked into
                    with trio.move_on_at(self._pause.try_at):
                        await changed.wait()
                if self._pause.try_at <= trio.current_time():
                    await self._try_once()
                elif self._doubts:
                    is_own, kind = self._doubts.popitem()
                    await self._look_whose_it_is(kind, is_own=is_own)

    async def _listen(self, registry: Registry) -> None:
        """Hear what other processes were refused, and that they are refused no more."""
        stagger_s = registry.me.born % 1000 / 1000 * STAGGER_S
        while True:
            await trio.sleep_until(next_tick(trio.current_time(), LISTEN_S))
            pause, said, now = self._pause, registry.pause(), trio.current_time()
            if said is None:
                since = pause.since
                if pause.heard_nothing(now):
                    self._goes_on(now - since)
                continue
            kind = Kind(said[0]) if said[0] in set(Kind) else Kind.REFUSED
            until = now + said[1]
            if pause.heard(kind, until, until + stagger_s, now):
                logger.warning("calls pause: another process was refused", kind=kind.value)
                self._begin()

    def _tell(self) -> None:
        """Tell the other processes for how long they need not try the model."""
        pause = self._pause
        if self._registry is not None and pause.kind is not None and pause.is_ours:
            left_s = max(pause.try_at - trio.current_time(), 0.0)
            self._registry.tell_pause(pause.kind.value, left_s + TRY_MODEL_S + TOLD_S)

    def _begin(self) -> None:
        """Calls pause, and the model is to be tried."""
        self._metrics.calls_paused.set(1)
        self._wake()
        self._on_change()

    def _wake(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def _goes_on(self, paused_s: float) -> None:
        """The model takes sessions again."""
        self._metrics.calls_paused.set(0)
        logger.info("calls go on: the model's service takes sessions", paused_s=round(paused_s, 1))
        self._on_change()

    def _perhaps_it_alone(self, agent: Agent, kind: Kind, *, is_own: bool) -> None:
        """An agent's call was refused, of which nobody else's may know."""
        now = trio.current_time()
        self._metrics.model_refusals.labels(kind.value).inc()
        if self._pause.kind is None and now >= self._doubt_from[is_own]:
            self._doubts[is_own], self._doubt_from[is_own] = kind, now + DOUBT_EVERY_S
            self._wake()
        if self._own_told.may_log(now, agent.name):
            logger.error(
                "an agent's own model is refused: its calls fail"
                if is_own
                else "an agent's calls fail: the fallback is refused, and the model did not do",
                agent=agent.name,
                model=agent.model or self._model.name,
                kind=kind.value,
                unlogged=self._own_told.take_unlogged(agent.name),
            )

    def _refused(self, kind: Kind) -> None:
        pause, now = self._pause, trio.current_time()
        self._metrics.model_refusals.labels(kind.value).inc()
        try_at = pause.try_at
        is_news = pause.refused(kind, now)
        if pause.try_at != try_at:
            self._tell()
        if is_news:
            logger.error(
                "calls pause: the model's service refuses the account",
                kind=kind.value,
                what_to_do=kind.advice,
                tried_in_s=round(pause.try_at - now, 1),
            )
        if pause.kind is not None:
            self._begin()

    async def _ask(self, *, is_fallback: bool = False) -> bool:
        """Connect a session of the server's model, or of its fallback, for the agent whose call was
        refused last, or for none if that model does not take what this agent asks for.

        Returns:
            False if the fallback was to be asked, and there is none.

        Raises:
            ModelError: It could not be connected.
        """
        # Whoever has seen to it may have changed the agent.
        agent = replace(self._find_agent(self._refused_name) or Agent(), model=None)
        session = self._model.new_session(agent, _Nobody(), _to_nobody)
        try:
            return await _connect_once(session, is_fallback=is_fallback)
        except ModelError as error:
            is_agents = isinstance(error, ModelSetupRefused) and error.refusal is None
            # A session goes to the fallback by itself, and what that one says hides what the model
            # has refused: it may have been what the agent asks for.
            is_fallbacks = session.standing.on_fallback and not is_fallback
            if not (is_agents or (is_fallbacks and _asks_for_something(agent))):
                raise
        # It is not the account that is refused, but what this agent asks for, such as a voice that
        # only its own model has: what the server asks for by itself tells of the account.
        session = self._model.new_session(Agent(), _Nobody(), _to_nobody)
        return await _connect_once(session, is_fallback=is_fallback)

    async def _ask_both(self) -> ModelError | None:
        """Connect a session of the server's model, or beside it one of its fallback.

        Returns:
            None as soon as one is taken; else why the model's is not, or the fallback's where the
            model has not answered in time.
        """
        reason = f"no answer within {TRY_MODEL_S:g} s"
        failure: ModelError | None
        failure = ModelError(reason, code=None, reason=reason, retryable=True)

        async def ask(*, is_fallback: bool) -> None:
            nonlocal failure
            if is_fallback:
                await trio.sleep(MODEL_ALONE_S)
            try:
                if await self._ask(is_fallback=is_fallback):
                    failure = None
            except ModelError as error:
                if failure is not None:  # the other was not taken in this very pass
                    failure = error.with_traceback(None)  # which leads here, and back to it
            if failure is None or not is_fallback:
                nursery.cancel_scope.cancel("that is all")

        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + TRY_MODEL_S
            nursery.start_soon(partial(ask, is_fallback=False))
            nursery.start_soon(partial(ask, is_fallback=True))
        return failure

    async def _look_whose_it_is(self, kind: Kind, *, is_own: bool) -> None:
        """Calls pause if the server's model is refused what an agent's own was: one that does not
        answer was not refused, whatever its fallback may say. If it was the fallback of an agent
        without a model of its own, they pause unless the server's model is well.
        """
        with trio.move_on_after(TRY_MODEL_S) as looking:
            try:
                await self._ask()
            except ModelError as error:
                if error.refusal is kind or (error.refusal is not None and not is_own):
                    self._refused(error.refusal)
            except Exception:  # nobody's call, and no reason to pause any
                logger.exception("the model could not be tried by a bug of ours")
        if looking.cancelled_caught and not is_own:  # there is the fallback alone
            self._refused(kind)

    async def _try_once(self) -> None:
        pause = self._pause
        try:
            failure = await self._ask_both()
        except Exception:
            # Not the calls' fault, nor their end: it is tried again like any other failure.
            logger.exception("the model could not be tried by a bug of ours")
        else:
            kind, now = pause.kind, trio.current_time()
            if failure is not None and failure.refusal is not None:
                self._refused(failure.refusal)
            elif failure is None and pause.accepted(now):
                if self._registry is not None and kind is not None:
                    self._registry.tell_pause(kind.value, 0.0)
                self._goes_on(now - pause.since)
        if trio.current_time() >= pause.try_at:
            pause.not_known(trio.current_time())
            self._tell()


class _Nobody:
    """The conversation of a session that is opened only to see whether it can be."""

    def is_quiet(self) -> bool:
        return True

    def history(self) -> Sequence[PastTurn]:
        return ()


def _asks_for_something(agent: Agent) -> bool:
    """Whether a model may refuse the set-up for what this agent asks for, and take others'."""
    return _asked_for(agent) != _asked_for(Agent())


def _asked_for(agent: Agent) -> tuple[object, ...]:
    return agent.prompt, agent.voice, agent.language, agent.turn_end, agent.tools, agent.outcome


def _to_nobody(event: SessionEvent) -> None:
    """Nobody listens."""


async def _connect_once(session: Session, *, is_fallback: bool) -> bool:
    """Connect a session, and leave it as soon as the service has taken it.

    Args:
        is_fallback: Whether the fallback is connected, and not the model itself.

    Returns:
        False if there is no fallback.

    Raises:
        ModelError: It could not be connected.
    """
    failure: BaseException | None = None
    is_taken = False
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run)
            if is_fallback:
                is_taken = await session.reconnect(Way.FALLBACK, "no-connection")
            else:
                await session.wait_ready()
                is_taken = True
            nursery.cancel_scope.cancel("that is all")
    except* ModelError as failures:
        failure = innermost(failures)
    try:
        if failure is not None:
            raise failure
    finally:
        failure = None  # or it would be kept by this frame, to which it leads back
    return is_taken
