"""What tests of whole calls have in common."""

from __future__ import annotations

import trio
from prometheus_client import CollectorRegistry
from trio.testing import wait_all_tasks_blocked

from server.agent.agent import Agent
from server.call.call import Call
from server.call.options import CallOptions
from server.call.report.costs import Prices
from server.carrier import CallStatus, StatusUpdate
from server.metrics import Metrics
from server.model import (
    AgentAudio,
)
from server.voice.judge import Judge
from tests.support.fakes import MemoryCarrier, MemoryMedia, MemoryModel

SECOND_PCM = b"\x00\x10" * 24_000


class Rig:
    """A call with its peers at hand."""

    def __init__(
        self,
        *,
        agent: Agent | None = None,
        model: MemoryModel | None = None,
        prices: Prices | None = None,
        voices: Judge | None = None,
        **options,
    ):
        self.carrier = MemoryCarrier()
        self.model = model or MemoryModel()
        self.media = MemoryMedia()
        self.call = Call(
            direction="outbound",
            number="+15005550006",
            agent=agent or Agent(),
            carrier=self.carrier,
            model=self.model,
            metrics=Metrics(CollectorRegistry()),
            prices=prices,
            voices=voices,
            # Without the beginning's hold the model hears what the caller says, as it is said.
            options=CallOptions(**({"greeting_protect_s": 0.0, "media_timeout_s": 5.0} | options)),
        )
        self.call.accept("CA1")

    @property
    def session(self):
        return self.model.session

    async def begin(self, nursery: trio.Nursery) -> None:
        """Have the call run, and the phone leave the hook."""
        nursery.start_soon(self.call.run)
        nursery.start_soon(self.call.serve, self.media, self.media.start())
        await wait_all_tasks_blocked()

    def audio(self, pcm: bytes, turn: int) -> None:
        self.session.event(AgentAudio(pcm, turn, trio.current_time()))

    def status(self, status: CallStatus, number: int = 1) -> None:
        self.call.update_status(StatusUpdate("CA1", status, number))

    @property
    def noted(self) -> list[str]:
        return [what for _, what, _ in self.call.conversation.notes.timeline]
