"""The model's account: calls pause while it is refused, and the model is tried without a call.

Nobody's phone has to ring for it, and a pause ends whether or not anybody asks for calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog
import trio

from server.agent.agent import Agent
from server.call.call import Call
from server.errors import ModelError, innermost
from server.metrics import Metrics
from server.model import Model, PastTurn, Session, SessionEvent
from server.refusal import Kind
from server.switchboard.account_pause import AccountPause

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

TRY_MODEL_S = 15.0
"""How long the model is tried without a call: a connection and a set-up, with air."""


class ModelTrial:
    """Begins pauses when a call was refused, and ends them by trying the model.

    Args:
        model: What is tried.
        pause: Whether calls pause; admission asks it.
        metrics: The process's metrics.
        on_change: Called when calls begin or cease to pause.
    """

    def __init__(
        self,
        model: Model,
        pause: AccountPause,
        metrics: Metrics,
        on_change: Callable[[], object],
    ) -> None:
        self._model = model
        self._pause = pause
        self._metrics = metrics
        self._on_change = on_change
        self._refused_agent = Agent()
        self._paused = trio.Event()
        for kind in Kind:
            metrics.model_refusals.labels(kind.value)

    def learn(self, call: Call) -> None:
        """A call has ended: what it says about the account that all calls share."""
        if call.refusal is not None:
            self._refused_agent = call.conversation.party.agent
            self._refused(call.refusal)
        elif call.conversation.agent_turn:
            self._pause.worked()

    async def run(self) -> None:
        """While calls pause, try the model now and then; until cancelled."""
        while True:
            await self._paused.wait()
            while self._pause.kind is not None:
                await trio.sleep_until(self._pause.try_at)
                await self._try_once()
            self._paused = trio.Event()

    def _refused(self, kind: Kind) -> None:
        pause, now = self._pause, trio.current_time()
        self._metrics.model_refusals.labels(kind.value).inc()
        if pause.refused(kind, now):
            logger.error(
                "calls pause: the model's service refuses the account",
                kind=kind.value,
                what_to_do=kind.advice,
                tried_in_s=round(pause.try_at - now, 1),
            )
        if pause.kind is not None:
            self._metrics.calls_paused.set(1)
            self._paused.set()
        self._on_change()

    async def _try_once(self) -> None:
        pause = self._pause
        with trio.move_on_after(TRY_MODEL_S):
            try:
                session = self._model.new_session(self._refused_agent, _Nobody(), _to_nobody)
                await _connect_once(session)
            except ModelError as error:
                if error.refusal is not None:
                    self._refused(error.refusal)
            except Exception:
                # Not the calls' fault, nor their end: it is tried again like any other failure.
                logger.exception("the model could not be tried by a bug of ours")
            else:
                now = trio.current_time()
                paused_s = round(now - pause.since, 1)
                if pause.accepted(now):
                    self._metrics.calls_paused.set(0)
                    logger.info(
                        "calls go on: the model's service takes sessions", paused_s=paused_s
                    )
                    self._on_change()
        if trio.current_time() >= pause.try_at:
            pause.not_known(trio.current_time())


class _Nobody:
    """The conversation of a session that is opened only to see whether it can be."""

    def is_quiet(self) -> bool:
        return True

    def history(self) -> Sequence[PastTurn]:
        return ()


def _to_nobody(event: SessionEvent) -> None:
    """Nobody listens."""


async def _connect_once(session: Session) -> None:
    """Connect a session, and leave it as soon as the service has taken it.

    Raises:
        ModelError: It could not be connected.
    """
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run)
            await session.wait_ready()
            nursery.cancel_scope.cancel("that is all")
    except* ModelError as failures:
        failure = innermost(failures)
    if failure is not None:
        raise failure
