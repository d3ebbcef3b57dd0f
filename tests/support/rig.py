"""A whole call in memory: a simulated person's phone, our Call, a simulated Gemini Live.

Everything speaks its real wire protocol, but no socket is open and the mock clock decides how long
it takes: an hour's call is a matter of seconds. Use it with ``autojump_clock``::

    async def test_it_answers(autojump_clock):
        async with calling(callee="talks") as rig:
            await rig.over()

        assert rig.call.end_reason == "caller-hung-up"
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import trio
from prometheus_client import CollectorRegistry

from server.agent.agent import Agent
from server.call.call import Call
from server.call.options import CallOptions
from server.carrier import CallStatus, StatusUpdate
from server.carrier.transport import QueuedTransport
from server.carrier.twilio.stream import TwilioMediaStream
from server.dialogue.endings import EndReason
from server.metrics import Metrics
from server.model import Model
from server.model.gemini.model import GeminiModel
from server.model.lasting.model import LastingModel
from server.simulators import gemini as models
from server.simulators import phone as people
from server.simulators.gemini import GeminiSimulator, SimulatedSession
from server.simulators.phone import SimulatedPhone, find_script, memory_transports
from server.voice.judge import Judge
from tests.support.fakes import MemoryCarrier

CALL_SID = "CA" + "1" * 32


@dataclass
class RigCarrier(MemoryCarrier):
    """Steers the rig's one phone as Twilio would: whatever is told ends its stream."""

    phone: SimulatedPhone | None = None

    async def hang_up(self, call_sid: str) -> None:
        await super().hang_up(call_sid)
        assert self.phone is not None
        self.phone.stop()

    async def say_and_hang_up(self, call_sid: str, text: str, language: str) -> None:
        await super().say_and_hang_up(call_sid, text, language)
        assert self.phone is not None
        self.phone.stop()


@dataclass
class Rig:
    """A call and everything around it, to look at and to interfere with."""

    call: Call
    phone: SimulatedPhone
    gemini: GeminiSimulator
    model: Model
    carrier: RigCarrier
    metrics: Metrics
    _phone_over: trio.Event = field(default_factory=trio.Event)

    @property
    def sessions(self) -> list[SimulatedSession]:
        """Connections to the model, oldest first."""
        return list(self.gemini.sessions)

    @property
    def noted(self) -> list[str]:
        """The call's timeline without times and facts."""
        return [what for _, what, _ in self.call.conversation.notes.timeline]

    @property
    def record(self) -> dict[str, Any]:
        return self.call.record().as_dict()

    async def over(self, within_s: float = 7_200.0) -> None:
        """Wait until the call and the phone have ended; fails after this much virtual time."""
        with trio.fail_after(within_s):
            await self.call.finished.wait()
            await self._phone_over.wait()

    async def noted_s(self, what: str, within_s: float = 600.0) -> float:
        """Wait for a line of the timeline; when it was, in seconds since the call began."""
        with trio.fail_after(within_s):
            while True:
                for at_s, noted, _ in self.call.conversation.notes.timeline:
                    if noted == what:
                        return at_s
                await trio.sleep(0.02)


@asynccontextmanager
async def calling(
    *,
    callee: people.PhoneScript | str = "talks",
    script: models.ModelScript | str = "answers",
    script_after_resume: models.ModelScript | str = "answers",
    agent: Agent | None = None,
    ring_s: float | None = None,
    make_model: Callable[[GeminiModel], Model] | None = None,
    voices: Judge | None = None,
    **options: Any,
) -> AsyncGenerator[Rig]:
    """Dial the callee; the call is hung up when the block is left before its end.

    Args:
        callee: Who answers: a script of ``server/simulators/phone/scripts.py`` or its name.
        script: How the model behaves: one of ``server/simulators/gemini/scripts.py`` or its name.
        script_after_resume: How it behaves in sessions that resume another.
        agent: Who calls.
        ring_s: How long it rings, instead of what the callee's script says.
        make_model: Makes the call's model of Gemini's, instead of ``LastingModel(gemini)``.
        voices: Tells voices from noise; somebody has to run it.
        options: Fields of ``CallOptions``.
    """
    person = find_script(callee)
    if ring_s is not None:
        person = replace(person, ring_s=ring_s)
    gemini = GeminiSimulator(
        script=_model_script(script), script_after_resume=_model_script(script_after_resume)
    )
    gemini_model = GeminiModel(
        api_key="simulated", url="ws://memory.invalid", connect=gemini.connect
    )
    model = (make_model or LastingModel)(gemini_model)
    phone = SimulatedPhone(person, call_sid=CALL_SID, parameters={"ticket": "t1"})
    carrier = RigCarrier(phone=phone)
    metrics = Metrics(CollectorRegistry())
    call = Call(
        direction="outbound",
        number="+15005550006",
        agent=agent or Agent(),
        carrier=carrier,
        model=model,
        metrics=metrics,
        options=CallOptions(**options),
        voices=voices,
    )
    call.accept(CALL_SID)
    rig = Rig(call, phone, gemini, model, carrier, metrics)
    async with trio.open_nursery() as nursery:
        await nursery.start(_run_gemini, gemini)
        nursery.start_soon(call.run)
        nursery.start_soon(_ring_and_talk, rig, person)
        yield rig
        call.end(EndReason.HUNG_UP)
        with trio.move_on_after(10.0):
            await call.finished.wait()
            phone.stop()
            await rig._phone_over.wait()
        nursery.cancel_scope.cancel()


def _model_script(script: models.ModelScript | str) -> models.ModelScript:
    return models.MODEL_SCRIPTS[script] if isinstance(script, str) else script


async def _run_gemini(gemini: GeminiSimulator, task_status: trio.TaskStatus[str]) -> None:
    await gemini.run(port=None, task_status=task_status)


async def _ring_and_talk(rig: Rig, person: people.PhoneScript) -> None:
    """What Twilio does between "dialled" and "completed"."""
    number = 0

    def report(status: CallStatus) -> None:
        nonlocal number
        number += 1
        rig.call.update_status(StatusUpdate(CALL_SID, status, number))

    report(CallStatus.RINGING)
    await trio.sleep(person.ring_s)
    report(person.outcome)
    if person.outcome is not CallStatus.IN_PROGRESS:
        rig._phone_over.set()
        return
    ours, carriers = memory_transports()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_serve, rig.call, QueuedTransport(ours))
        end = await rig.phone.run(carriers)
        if end is not people.StreamEnd.DROPPED:
            report(CallStatus.COMPLETED)
        rig._phone_over.set()


async def _serve(call: Call, transport: QueuedTransport) -> None:
    media = TwilioMediaStream(transport)
    started = await media.receive_start()
    assert started is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.run)
        await call.serve(media, started)
        nursery.cancel_scope.cancel()
