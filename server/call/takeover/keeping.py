"""Keeping what another process needs of a call, whenever that has changed."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog
import trio

from server.call.conversation import Conversation, Stage
from server.call.handover import Handover
from server.call.machine import Machine
from server.call.report.progress import Progress
from server.call.report.report import Report
from server.call.takeover.fence import Ownership
from server.call.takeover.state import (
    MAX_TOOLS,
    MAX_TURN_CHARS,
    MAX_TURNS,
    AgentState,
    AwayState,
    CallState,
    CostState,
    MachineState,
    ToolState,
    TurnState,
    bounded,
    few,
)
from server.call.watch import briefed
from server.dialogue.transcript import SpokenTurn

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

GATHER_S = 0.1
"""Changes that come so close together are one state."""

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
        machine: Who has answered; None for a call that does nothing about machines.
        ends_at: Says until when the call may last at the longest.
    """

    def __init__(
        self,
        conversation: Conversation,
        ownership: Ownership,
        *,
        progress: Progress,
        report: Report,
        handover: Handover,
        machine: Machine | None,
        ends_at: Callable[[], float],
    ) -> None:
        self._conversation = conversation
        self._ownership = ownership
        self._progress = progress
        self._report = report
        self._handover = handover
        self._machine = machine
        self._ends_at = ends_at
        self._is_told = False
        self._turns: dict[int, tuple[tuple[object, ...], TurnState]] = {}

    async def run(self) -> None:
        """Keep the call's state until cancelled; returns at once if nobody wants it."""
        if (keep := self._ownership.keep) is None:
            return
        c = self._conversation
        while True:
            # The event is made before looking, so that what changes meanwhile is seen.
            news = c.notes.to_keep.next()
            try:
                state = self.state().encode()
            except ValueError as error:
                if not self._is_told:
                    self._is_told = True
                    logger.warning("call cannot be taken over", reason=str(error))
            except Exception:
                if not self._is_told:
                    self._is_told = True
                    logger.exception("call cannot be taken over by a bug of ours")
            else:
                keep(c.call_sid, self._ownership.generation, state)
            await news.wait()
            await trio.sleep(GATHER_S)

    def state(self) -> CallState:
        """The call as it stands."""
        c, now, wall = self._conversation, trio.current_time(), time.time()
        answered = c.answered_at is not None
        session = c.session.standing
        away = self._handover.under_way
        c.passing.collect()
        transcript = self._transcript(now)
        return CallState(
            kept_at=round(wall, 3),
            direction=c.party.direction,
            number=bounded(c.party.number),
            metadata=dict(c.party.metadata),
            client=bounded(self._ownership.client),
            traceparent=bounded(self._report.traceparent),
            agent=self._agent(),
            created_at=round(self._report.created_at, 3),
            answered_at=round(wall - now + c.answered_at, 3) if c.answered_at is not None else None,
            ends_at=round(wall - now + self._ends_at(), 3) if answered else None,
            max_duration_s=c.options.max_duration_s,
            status=self._progress.status,
            sequence_number=self._progress.number,
            turn=max(session.turn, c.agent_turn),
            handle=session.handle,
            model=bounded(session.model),
            on_fallback=session.on_fallback,
            key_name=bounded(session.key_name),
            transcript=transcript,
            greeted=self._is_greeted(),
            first_audio_s=c.notes.timings.answer_to_first_audio_s,
            costs=self._costs(now),
            tools=tuple(
                ToolState(bounded(identity), bounded(name), is_done)
                for identity, (name, is_done) in list(c.notes.tools.items())[-MAX_TOOLS:]
            ),
            away=None if away is None else AwayState(bounded(away[0]), bounded(away[1])),
            machine=self._machine_state(),
            recording_parts=0 if c.passing.recorder is None else c.passing.recorder.part,
        )

    def _agent(self) -> AgentState:
        c = self._conversation
        agent = c.party.agent
        is_played = c.answered_at is not None and bool(agent.greeting_audio)
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
            has_recording=bool(agent.greeting_audio) and not is_played,
            events_url=agent.events_url,
        )

    def _is_greeted(self) -> bool:
        """Whether the agent has nothing to say first, or has said most of it."""
        c = self._conversation
        agent = c.party.agent
        greets = bool(agent.greeting or agent.greeting_text or agent.greeting_audio)
        return not greets or any(
            turn.heard_s and (turn.cut or turn.heard_s >= turn.made_s / 2)
            for turn in c.notes.transcript.turns[-MAX_TURNS:]
        )

    def _transcript(self, now: float) -> tuple[TurnState, ...]:
        """The last turns; most are as they were the last time."""
        c = self._conversation
        c.write_heard(now, last=MAX_CHANGING)
        known, self._turns = self._turns, {}
        for turn in c.notes.transcript.turns[-MAX_TURNS:]:
            version = (len(turn.text), turn.heard_s, turn.made_s, turn.cut, turn.complete)
            before = known.get(id(turn))
            if before is not None and before[0] == version:
                self._turns[id(turn)] = before
            else:
                self._turns[id(turn)] = version, self._turn(turn)
        return tuple(state for _, state in self._turns.values())

    def _turn(self, turn: SpokenTurn) -> TurnState:
        c = self._conversation
        has_words = c.options.transcripts
        return TurnState(
            turn.speaker,
            c.notes.transcript.heard_text(turn)[-MAX_TURN_CHARS:] if has_words else "",
            round(turn.started_s, 3),
            None if turn.heard_s is None else round(turn.heard_s, 3),
            turn.cut,
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
        if self._conversation.stage is Stage.TO_MACHINE:
            return MachineState(machine.answered_by, "message")
        return MachineState(machine.answered_by, "over" if machine.is_over else "open")
