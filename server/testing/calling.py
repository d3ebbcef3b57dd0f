"""One call between a scripted caller and a scripted model, on a virtual clock."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry

from server.agent.agent import DEFAULT_NAME, Agent
from server.agent.results import Result, ToolError
from server.agent.roster.agents import filled
from server.agent.roster.files import read_agents
from server.agent.tool import LiveCall, Tool
from server.call.call import Call
from server.call.options import CallOptions
from server.carrier import CallStatus, StatusUpdate
from server.carrier.transport import QueuedTransport
from server.metrics import Metrics
from server.settings.settings import Settings
from server.simulators.gemini import GeminiSimulator, ModelScript
from server.simulators.in_memory import model_in_memory, stream_in_memory
from server.simulators.phone import PhoneScript, SimulatedPhone, memory_transports, new_sid
from server.testing.dialogue import LONGEST_CALL_S, AgentCalls, Line, model_script, phone_script

CALLER = "+15005550199"


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A function that was called, and what came of it."""

    name: str
    arguments: Mapping[str, Any]
    result: Any = None
    """What it has returned."""
    error: str | None = None
    """What the model was told instead, or the exception that a bug has raised."""


@dataclass(frozen=True, slots=True)
class FinishedCall:
    """What is left of a call."""

    record: Mapping[str, Any]
    """As ``GET /calls/{call_sid}`` shows it."""
    tools: tuple[ToolUse, ...]
    """The functions that were called, in the order in which they were answered."""
    told: tuple[str, ...]
    """What the model was told in words: to greet, to say goodbye, which keys were pressed …"""
    prompt: str
    """The system instruction, as it was filled in."""
    hung_up: bool
    """Whether it was we who ended it."""
    transferred_to: tuple[str, ...]
    """The numbers that the caller was connected with."""

    @property
    def reason(self) -> str:
        """Why it ended, such as ``"caller-hung-up"`` or ``"agent-hung-up"``."""
        return str(self.record["reason"])

    @property
    def outcome(self) -> Mapping[str, Any]:
        """What was filled in of the agent's outcome."""
        return dict((self.record["outcome"] or {}).get("values", {}))

    @property
    def is_complete(self) -> bool:
        """Whether that is all that its schema wants."""
        return bool((self.record["outcome"] or {}).get("complete"))

    @property
    def said(self) -> tuple[str, ...]:
        """What the caller has heard the agent say, turn by turn; cut where they interrupted."""
        return self._words("agent")

    @property
    def heard(self) -> tuple[str, ...]:
        """What the model has understood of the caller, turn by turn."""
        return self._words("caller")

    @property
    def noted(self) -> tuple[str, ...]:
        """The call's timeline, without times."""
        return tuple(line["what"] for line in self.record["timeline"])

    def _words(self, speaker: str) -> tuple[str, ...]:
        turns = self.record["transcript"]
        return tuple(t["text"] for t in turns if t["speaker"] == speaker and t["text"])


def call_agent(
    agents: str | Path | Agent,
    *dialogue: Line,
    agent: str = DEFAULT_NAME,
    variables: Mapping[str, str] | None = None,
    direction: Literal["inbound", "outbound"] = "inbound",
    number: str = CALLER,
    metadata: Mapping[str, str] | None = None,
    **settings: Any,
) -> FinishedCall:
    """Let a scripted caller talk with an agent until the dialogue is over, and somebody hangs up.

    Args:
        agents: A folder or file as ``AGENTS`` names it, or an agent that was made already.
        dialogue: Who does what, in turn. After the last line the caller hears the agent out, and
            hangs up.
        agent: Which of the agents.
        variables: What ``{{name}}`` in its texts stands for.
        direction: Who dials.
        number: The caller's, or of whom is called.
        metadata: Labels as ``POST /make-call`` takes them.
        settings: Settings in lower case; neither the environment nor ``.env`` is read.

    Raises:
        ConfigurationError: The agents or the settings are wrong.
        VariablesMissing: A ``{{name}}`` has no value.
        KeyError: There is no agent of this name.
        ValueError: The agent has no function that is called, or it is called before anybody spoke.
        trio.TooSlowError: It did not end within two hours of its own time.
    """
    if isinstance(agents, Agent):
        base, chosen = _settings(None, settings), agents
    else:
        base = _settings(Path(agents), settings)
        chosen = read_agents(base).by_name[agent]
    chosen = filled(chosen, variables or {})
    functions = {tool.name for tool in chosen.tools}
    for line in dialogue:
        if isinstance(line, AgentCalls) and line.name not in functions:
            there = ", ".join(sorted(functions)) or "none"
            raise ValueError(f"the agent has no function {line.name}; there are: {there}")
    clock = trio.testing.MockClock(autojump_threshold=0.0)
    bench = _Bench(clock, chosen, base, model_script(dialogue), phone_script(dialogue))
    return trio.run(
        partial(bench.run, direction=direction, number=number, metadata=metadata), clock=clock
    )


@pytest.fixture
def agent_call(request: pytest.FixtureRequest) -> Callable[..., FinishedCall]:
    """:func:`call_agent` with the agents of the folder ``agents`` beside your tests' settings."""
    return partial(call_agent, request.config.rootpath / "agents")


def _settings(agents: Path | None, given: Mapping[str, Any]) -> Settings:
    """Settings that depend on nothing but what is given."""
    if unknown := given.keys() - Settings.model_fields.keys():
        raise TypeError(f"there is no setting {', '.join(sorted(unknown))}")
    before = {name: os.environ.pop(name) for name in _set_outside()}
    try:
        return Settings.load(_env_file=None, agents=agents, **given)
    finally:
        os.environ.update(before)


def _set_outside() -> list[str]:
    return [name for name in os.environ if name.lower() in Settings.model_fields]


# ------------------------------------------------------------------------------------------
# The call


@dataclass
class _Carrier:
    """Steers the one phone as the carrier would: whatever it is told ends the phone's stream."""

    phone: SimulatedPhone
    call: Call | None = None
    hung_up: bool = False
    transferred_to: list[str] = field(default_factory=list)

    async def hang_up(self, call_sid: str) -> None:
        await trio.lowlevel.checkpoint()
        self.hung_up = True
        self.phone.stop()

    async def say_and_hang_up(self, call_sid: str, text: str, language: str) -> None:
        await self.hang_up(call_sid)

    async def transfer(self, call_sid: str, number: str, *, ring_timeout_s: float) -> None:
        await trio.lowlevel.checkpoint()
        self.transferred_to.append(number)
        self.phone.stop()

    async def reconnect(self, call_sid: str, ticket: str) -> None:
        raise AssertionError("nobody takes a call of a test over")


class _Bench:
    """One call and its two ends."""

    def __init__(
        self,
        clock: trio.testing.MockClock,
        agent: Agent,
        settings: Settings,
        script: ModelScript,
        person: PhoneScript,
    ) -> None:
        self._clock = clock
        self._uses: list[ToolUse] = []
        self._running = 0
        # The caller would take a thinking sound for the agent's words, and speak when it is over.
        tools = tuple(self._holding(tool) for tool in agent.tools)
        self._agent = replace(agent, tools=tools, thinking_sound=b"")
        self._options = CallOptions.of(agent.settings or settings)
        self._gemini = GeminiSimulator(script=script, script_after_resume=script)
        self._model = model_in_memory(self._gemini, settings.gemini_model)
        self._person = person
        self._call_sid = new_sid("CA")
        self._phone = SimulatedPhone(
            person, call_sid=self._call_sid, parameters={"ticket": "simulated"}
        )
        self._carrier = _Carrier(self._phone)

    async def run(
        self,
        *,
        direction: Literal["inbound", "outbound"],
        number: str,
        metadata: Mapping[str, str] | None,
    ) -> FinishedCall:
        """Let it happen."""
        call = self._carrier.call = Call(
            direction=direction,
            number=number,
            agent=self._agent,
            carrier=self._carrier,
            model=self._model,
            metrics=Metrics(CollectorRegistry()),
            options=self._options,
            metadata=metadata,
        )
        call.conversation.notes.on_tool = self._write_down
        call.accept(self._call_sid)
        with trio.fail_after(LONGEST_CALL_S):
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(self._gemini.run, port=None))
                nursery.start_soon(self._ring_and_talk, call)
                await call.run()
                self._phone.stop()
                nursery.cancel_scope.cancel("the call is over")
        setups = [session.setup for session in self._gemini.sessions if session.setup]
        parts = setups[0].get("systemInstruction", {}).get("parts", ()) if setups else ()
        return FinishedCall(
            record=call.record().as_dict(),
            tools=tuple(self._uses),
            told=tuple(text for session in self._gemini.sessions for text in session.texts),
            prompt="".join(part.get("text", "") for part in parts),
            hung_up=self._carrier.hung_up,
            transferred_to=tuple(self._carrier.transferred_to),
        )

    def _holding(self, tool: Tool) -> Tool:
        """The tool, but the clock stands still while it is a plain function that runs."""
        is_plain = tool.function is not None and not inspect.iscoroutinefunction(tool.function)

        async def run(
            given: Mapping[str, Any], call: LiveCall, threads: trio.CapacityLimiter
        ) -> object:
            self._hold(is_plain)
            try:
                return await tool.run(given, call, threads)
            finally:
                self._hold(-is_plain)

        return replace(tool, run=run)

    def _write_down(
        self, name: str, arguments: Mapping[str, Any], came: object, response: Mapping[str, Any]
    ) -> None:
        """A function was run, and the model is told what came of it."""
        error = response.get("error")
        if error is None:
            result = came.value if isinstance(came, Result) else came
            self._uses.append(ToolUse(name, arguments, result))
            return
        if isinstance(came, BaseException) and not isinstance(came, ToolError):
            error = repr(came) if isinstance(came, SystemExit) else str(came) or repr(came)
        self._uses.append(ToolUse(name, arguments, error=error))

    def _hold(self, plain: int) -> None:
        """Let no time pass while plain functions run in their threads."""
        self._running += plain
        self._clock.autojump_threshold = float("inf") if self._running else 0.0

    async def _ring_and_talk(self, call: Call) -> None:
        """What the carrier does between "dialled" and "completed"."""
        call.update_status(StatusUpdate(self._call_sid, CallStatus.RINGING, 1))
        await trio.sleep(self._person.ring_s)
        call.update_status(StatusUpdate(self._call_sid, CallStatus.IN_PROGRESS, 2))
        ours, carriers = memory_transports()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve, call, QueuedTransport(ours))
            await self._phone.run(carriers)
            if self._carrier.transferred_to:
                call.handover.report(CallStatus.COMPLETED)  # somebody answered there
            call.update_status(StatusUpdate(self._call_sid, CallStatus.COMPLETED, 3))


async def _serve(call: Call, transport: QueuedTransport) -> None:
    media = stream_in_memory(transport)
    started = await media.receive_start()
    assert started is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.run)
        await call.serve(media, started)
        nursery.cancel_scope.cancel("the call has left its stream")
