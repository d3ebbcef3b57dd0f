"""Making calls: what all calls of a process have in common, and those that others have begun."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, TypedDict

import structlog

from server.agent import phrases
from server.agent.agent import Agent
from server.call.call import Call
from server.call.options import CallOptions
from server.call.report.costs import Prices
from server.call.report.ended import EndedCall
from server.call.takeover.fence import Keep, Ownership
from server.call.takeover.going_on import agent_of
from server.call.takeover.state import CallState
from server.carrier import Carrier
from server.carrier.webhooks import RefuseCall, Reply, SayAndEndCall
from server.dialogue.cushion import Lateness
from server.errors import CallRefused
from server.metrics import Metrics
from server.model import Model
from server.records.recording import Recordings
from server.switchboard.capacity import SetUp
from server.voice.judge import Judge

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Wishes(TypedDict, total=False):
    """What may be different about a call that comes in, beside its agent."""

    generation: int
    """For the how-manieth time it is somebody's."""
    client: str
    """Whose call it is."""
    max_duration_s: float | None
    """The longest it may last, if shorter than the setting."""
    metadata: Mapping[str, str] | None
    """Kept in the record."""
    answer_timeout_s: float
    """How long it waits for its first stream."""
    wide: bool
    """Whether that has more than a telephone's band."""


@dataclass(slots=True)
class CallMaker:
    """Makes calls.

    Attributes:
        model: Opens their sessions.
        metrics: The process's metrics.
        options: Settings of each call.
        prices: What their cost is estimated with.
        recordings: Records them; None for none.
        is_current: Says whether a call is still ours, by its name and generation, as
            :meth:`server.cluster.registry.Registry.is_current` does; None where nobody else could
            have it.
        keep: What :meth:`server.cluster.registry.Registry.keep` is; None if nobody wants it.
        find_agent: The agent of this name, as it is now; None if there is none.
        voices: Tells voices from noise; None where nobody does.
        wall_time: The time as all machines have it.
    """

    model: Model
    metrics: Metrics
    options: CallOptions
    prices: Prices | None = None
    recordings: Recordings | None = None
    is_current: Callable[[str, int], Awaitable[bool]] | None = None
    keep: Keep | None = None
    find_agent: Callable[[str], Agent | None] = lambda name: None
    voices: Judge | None = None
    wall_time: Callable[[], float] = lambda: time.time()
    _lateness: Lateness = field(default_factory=Lateness)

    def make(
        self,
        carrier: Carrier,
        direction: Literal["inbound", "outbound"],
        number: str,
        agent: Agent,
        max_duration_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
        *,
        client: str = "",
        generation: int = 1,
        state: CallState | None = None,
        answer_timeout_s: float | None = None,
        wide: bool = False,
    ) -> Call:
        """Make a call; one with a state goes on from there."""
        options = self.options if agent.settings is None else CallOptions.of(agent.settings)
        if answer_timeout_s is not None:
            options = replace(options, answer_timeout_s=answer_timeout_s)
        if wide:
            options = replace(options, wide=True)
        if max_duration_s is not None:
            shorter_s = min(max_duration_s, options.max_duration_s)
            options = replace(options, max_duration_s=shorter_s)
        return Call(
            direction=direction,
            number=number,
            agent=agent,
            carrier=carrier,
            model=self.model,
            metrics=self.metrics,
            options=options,
            prices=self.prices,
            lateness=self._lateness,
            voices=self.voices,
            recordings=self.recordings if agent.is_recorded else None,
            metadata=metadata,
            ownership=Ownership(
                generation,
                client,
                self.is_current,
                self.keep,
                has_carried=state is None,
                wall_time=self.wall_time,
            ),
            state=state,
        )

    def go_on(self, carrier: Carrier, state: CallState, generation: int, agent: Agent) -> Call:
        """Make a call that goes on where another process has left it.

        Args:
            carrier: Steers it.
            state: As it was left.
            generation: For the how-manieth time it is somebody's.
            agent: Who answers here if the call's agent is not known any more.
        """
        agent = self.find_agent(state.agent.name) or agent
        return self.make(
            carrier,
            state.direction,
            state.number,
            agent_of(state, agent),
            state.max_duration_s,
            state.metadata,
            client=state.client,
            generation=generation,
            state=state,
        )


def refusal_of(refused: CallRefused, agent: Agent) -> Reply:
    """What refuses an inbound call: a busy tone, or words.

    A busy tone costs nothing and says what it should when another try may do better. While the
    model's account is refused it would not, so the caller is told.
    """
    return apology_of(agent) if refused.in_words else RefuseCall()


def apology_of(agent: Agent) -> Reply:
    """What is said to a caller whose call cannot go on, before it ends."""
    return SayAndEndCall(*phrases.apology_of(agent))


@contextmanager
def one_calls_trouble(call: Call | EndedCall) -> Generator[None]:
    """Do something on the way out of a call, which is not worth the other calls if it fails."""
    try:
        yield
    except Exception:
        logger.exception("call not put away whole by a bug of ours", call_sid=call.call_sid)


def setup_of(call: Call) -> SetUp:
    """Whether a call waits for nothing of ours any more; its phone may still ring."""
    c = call.conversation
    is_there = c.connected.is_set()
    if call.is_over or c.end_reason is not None:
        has_failed = c.end_reason is not None and c.end_reason.is_our_failure
        return SetUp.DONE if is_there and not has_failed else SetUp.LEFT
    has_session = c.session.is_ready or not (is_there or c.options.prewarm)
    is_done = has_session and (is_there or call.direction == "outbound")
    return SetUp.DONE if is_done else SetUp.GOES_ON
