"""Keeping what another process needs of a call, whenever that has changed."""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal

import msgspec
import structlog
import trio

from server.agent.agent import Agent
from server.call.conversation import Conversation
from server.call.farewell import Farewell
from server.call.handover import Handover
from server.call.machine import Machine
from server.call.report.progress import Progress
from server.call.report.report import Report
from server.call.takeover.fence import Ownership
from server.call.takeover.state import (
    MAX_PARTS,
    MAX_TOOLS,
    MAX_TURN_CHARS,
    MAX_TURNS,
    AgentState,
    AwayState,
    CallState,
    CostState,
    MachineState,
    StateTooLong,
    StateWriter,
    ToolState,
    TurnState,
    bounded,
    few,
)
from server.call.watch import briefed
from server.dialogue.transcript import SpokenTurn

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_CHANGING = 4
"""Turns of which more may have been heard since the state before."""


class Keeping:
    """Makes the state of one call when it has changed, and gives it away.

    Args:
        conversation: The call.
        ownership: Who wants it.
        progress: How far the call has come.
        report: When it began, and what it costs.
        handover: Whether the carrier has the caller.
        farewell: Whether the agent has hung up.
        machine: Who has answered; None for a call that does nothing about machines.
        ends_at: Says until when the call may last at the longest.
        state: Where another process has left it; None for a call that begins.
    """

    def __init__(
        self,
        conversation: Conversation,
        ownership: Ownership,
        *,
        progress: Progress,
        report: Report,
        handover: Handover,
        farewell: Farewell,
        machine: Machine | None,
        ends_at: Callable[[], float],
        state: CallState | None,
    ) -> None:
        self._conversation = conversation
        self._ownership = ownership
        self._progress = progress
        self._report = report
        self._handover = handover
        self._farewell = farewell
        self._machine = machine
        self._ends_at = ends_at
        self._writer = StateWriter()
        self._fixed_of: tuple[object, ...] = ()
        self._has_greeted = state is not None and state.greeted
        self._recorded_before = () if state is None else state.recorded_at_s
        self._told: list[str] = []
        self._turns = _Turns()

    @contextmanager
    def going_on(self) -> Generator[None]:
        """Have the call's state kept whenever that has changed; nothing if nobody wants it."""
        if self._ownership.keep is None:
            yield
            return
        notes = self._conversation.notes
        before = notes.keep_soon, notes.keep_now
        notes.keep_soon, notes.keep_now = self._keep, partial(self._keep, in_haste=True)
        try:
            self._keep()
            yield
        finally:
            notes.keep_soon, notes.keep_now = before

    def _keep(self, *, in_haste: bool = False) -> None:
        """Say that the call has changed: how it is then is asked when that is written."""
        own = self._ownership
        assert own.keep is not None
        own.hastes += in_haste
        try:
            own.keep(self._conversation.call_sid, own.generation, self._made, in_haste=in_haste)
        except Exception as error:
            self._tell(error)

    def _made(self) -> bytes | None:
        try:
            return self.written()
        except Exception as error:
            self._tell(error)
            return None

    def _tell(self, error: Exception) -> None:
        """Whatever is wrong with a state is told once, and ends no call."""
        call_sid, is_bound = self._conversation.call_sid, isinstance(error, StateTooLong)
        if not self._is_news("a bound" if is_bound else type(error).__name__):
            return
        if is_bound:
            logger.warning("call cannot be taken over", call_sid=call_sid, reason=str(error))
        else:
            words = "call cannot be taken over by a bug of ours"
            logger.error(words, call_sid=call_sid, exc_info=error)

    def _is_news(self, what: str) -> bool:
        if what in self._told:
            return False
        self._told.append(what)
        return True

    def written(self) -> bytes:
        """The call as it stands, written down.

        Raises:
            StateTooLong: It is beyond all bounds.
        """
        self._fix()
        return self._writer.write(self._moving(trio.current_time(), self._ownership.wall_time()))

    def _fix(self) -> None:
        """Write down what hardly ever changes, if it has."""
        c, report, client = self._conversation, self._report, self._ownership.client
        agent, metadata = c.party.agent, c.party.metadata
        is_played = c.answered_at is not None and bool(agent.greeting_audio)
        began = report.created_at, report.began_at
        fixed_of = agent, is_played, metadata, client, report.traceparent, *began
        if self._fixed_of and all(map(operator.is_, fixed_of, self._fixed_of)):
            return
        fixed: dict[str, object] = {
            "direction": c.party.direction,
            "number": bounded(c.party.number),
            "metadata": metadata,
            "client": bounded(client),
            "traceparent": bounded(report.traceparent),
            "agent": _agent_state(agent, is_played=is_played),
            "created_at": round(report.created_at, 3),
            "max_duration_s": c.options.max_duration_s,
            "began_at": round(report.began_at, 3),
        }
        self._writer.fix(fixed)
        self._fixed_of = fixed_of

    def _moving(self, now: float, wall: float) -> dict[str, object]:
        """All else, as :class:`CallState` has it.

        What the media path has passed on is not collected for this, as that would take the turn
        out of the path's hands: each event of the session's does so before it says what is new.
        """
        c, session, away = self._conversation, self._conversation.session.standing, None
        c.write_heard(now, last=MAX_CHANGING)
        turns, told = c.notes.transcript.counts
        transcript = self._turns.written(c.notes.transcript.turns, turns, self._turn)
        if (transfer := self._handover.under_way) is not None:
            destination, number, is_sure, has_failed = transfer
            away = AwayState(bounded(destination), bounded(number), is_sure, has_failed)
        is_answered, parts_at_s = c.answered_at is not None, self._parts_at_s()
        return {
            "kept_at": round(wall, 3),
            "answered_at": round(wall - self._report.duration_s(now), 3) if is_answered else None,
            "ends_at": round(wall - now + self._ends_at(), 3) if is_answered else None,
            "status": self._progress.status,
            "sequence_number": self._progress.number,
            "turn": max(session.turn, c.agent_turn),
            "handle": session.handle,
            "model": bounded(session.model),
            "on_fallback": session.on_fallback,
            "key_name": bounded(session.key_name),
            "transcript": transcript,
            "turns_before": turns - len(transcript),
            "turns_told": told,
            "greeted": self._is_greeted(),
            "first_audio_s": c.notes.timings.answer_to_first_audio_s,
            "costs": self._costs(now),
            "tools": [
                ToolState(bounded(identity), bounded(name), is_done)
                for identity, (name, is_done) in list(c.notes.tools.items())[-MAX_TOOLS:]
            ],
            "away": away,
            "machine": self._machine_state(),
            "is_leaving": self._farewell.is_the_agents,
            "outcome": {} if c.notes.outcome is None else dict(c.notes.outcome.values),
            "recording_parts": len(parts_at_s),
            "parts_at_s": parts_at_s,
        }

    def _parts_at_s(self) -> tuple[float | None, ...]:
        """When each part of the recording began, as far as they are counted; a process that makes
        none leaves those before it alone."""
        recorder = self._conversation.passing.recorder
        parts_at_s = self._recorded_before if recorder is None else recorder.parts_at_s
        return parts_at_s[:MAX_PARTS]

    def _is_greeted(self) -> bool:
        """Whether the agent has nothing to say first, or has said most of it."""
        if not self._has_greeted:
            c = self._conversation
            agent = c.party.agent
            greets = bool(agent.greeting or agent.greeting_text or agent.greeting_audio)
            self._has_greeted = not greets or any(
                turn.heard_s and (turn.cut or turn.heard_s >= turn.made_s / 2)
                for turn in c.notes.transcript.turns[-MAX_TURNS:]
                if turn.number is not None  # of others it is not known how long they were
            )
        return self._has_greeted

    def _turn(self, turn: SpokenTurn) -> bytes:
        c = self._conversation
        has_words = c.options.transcripts and not turn.is_ahead
        return msgspec.json.encode(
            TurnState(
                turn.speaker,
                c.notes.transcript.heard_text(turn)[-MAX_TURN_CHARS:] if has_words else "",
                round(turn.started_s, 3),
                None if turn.heard_s is None else round(turn.heard_s, 3),
                turn.cut,
            )
        )

    def _costs(self, now: float) -> CostState:
        c = self._conversation
        tokens, usd, is_complete = c.notes.costs.until_now()
        return CostState(
            prompt=few(tokens["prompt"]),
            response=few(tokens["response"]),
            other=tokens["other"],
            usd=usd,
            is_complete=is_complete,
            caller_audio_s=round(c.notes.timings.caller_audio_s, 3),
            agent_audio_s=round(c.playout.heard_s(now), 3),
        )

    def _machine_state(self) -> MachineState | None:
        if (machine := self._machine) is None:
            return None
        stage: Literal["open", "message", "over"] = "over" if machine.is_over else "open"
        if self._conversation.speaks_to_machine:  # to the end, though the agent has hung up
            stage = "message"
        return MachineState(machine.answered_by, stage, machine.was_told)


class _Turns:
    """The last turns as they are written down: once, as nothing more is heard of most."""

    def __init__(self) -> None:
        self._old: list[msgspec.Raw] = []
        self._old_count = 0
        self._newest: dict[int, tuple[object, msgspec.Raw]] = {}

    def written(
        self, turns: Sequence[SpokenTurn], count: int, write: Callable[[SpokenTurn], bytes]
    ) -> list[msgspec.Raw]:
        """The last of them.

        Args:
            turns: The call's, but for those that were dropped from the beginning.
            count: How many there were, with those.
            write: Writes one down.
        """
        old = max(0, count - MAX_CHANGING)
        first = max(self._old_count, old - MAX_TURNS, count - len(turns))
        for number in range(first, old):
            self._old.append(self._one(number, turns[number - count], write))
        self._old_count = old
        del self._old[:-MAX_TURNS]
        newest = range(max(old, count - len(turns)), count)
        contents = [self._one(number, turns[number - count], write) for number in newest]
        self._newest = {number: self._newest[number] for number in newest}
        return [*self._old, *contents][-MAX_TURNS:]

    def _one(
        self, number: int, turn: SpokenTurn, write: Callable[[SpokenTurn], bytes]
    ) -> msgspec.Raw:
        version = len(turn.text), turn.heard_s, turn.made_s, turn.cut, turn.complete
        if (known := self._newest.get(number)) is None or known[0] != version:
            known = self._newest[number] = version, msgspec.Raw(write(turn))
        return known[1]


def _agent_state(agent: Agent, *, is_played: bool) -> AgentState:
    """The agent as another process needs it.

    Args:
        agent: The call's.
        is_played: Whether its greeting is a recording that has been played.
    """
    has_recording = bool(agent.greeting_audio) and not is_played
    if is_played:
        agent = briefed(agent)
    return AgentState(
        prompt=agent.prompt,
        greeting=agent.greeting,
        greeting_text=agent.greeting_text,
        farewell=agent.farewell,
        voicemail=agent.voicemail,
        apology=agent.apology,
        voice=agent.voice,
        language=agent.language,
        tools=tuple(tool.name for tool in agent.tools),
        has_recording=has_recording,
        name=agent.name,
        model=agent.model,
        is_recorded=agent.is_recorded,
        outcome=None if agent.outcome is None else dict(agent.outcome.schema),
        events_url=agent.events_url,
    )
