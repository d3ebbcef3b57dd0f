"""A call that goes on where another process has left it."""

from __future__ import annotations

import time
from dataclasses import replace

import structlog
import trio

from server.agent import phrases
from server.agent.agent import Agent
from server.agent.builtin import TRANSFER_NAME, hang_up
from server.agent.outcome import (
    TOOL_NAME,
    OutcomeSchema,
    SchemaWrong,
    outcome_schema,
    outcome_tool,
)
from server.agent.tool import Tool
from server.call.conversation import Conversation, Stage
from server.call.farewell import Farewell
from server.call.handover import Handover
from server.call.machine import Machine
from server.call.report.progress import Progress
from server.call.report.report import Report
from server.call.takeover.state import AgentState, CallState
from server.dialogue.endings import EndReason
from server.dialogue.transcript import SpokenTurn
from server.model import Standing

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def agent_of(state: CallState, ours: Agent) -> Agent:
    """The agent of a call that is taken up.

    Args:
        state: The call, as it was left.
        ours: Who answers here: has the tools, the recording of the greeting and the settings. If it
            is another one, there is none of the call's agent's name any more.
    """
    left: AgentState = state.agent
    if left.name != ours.name:
        logger.warning("the agent of a call that is taken up is not known here", agent=left.name)
    tools: dict[str, Tool] = {tool.name: tool for tool in ours.tools}
    outcome = ours.outcome
    if left.name != ours.name and (outcome := _schema_of(left)) is not None:
        tools[TOOL_NAME] = outcome_tool(outcome)
    if missing := [name for name in left.tools if name not in tools]:
        logger.warning("tools of a call that is taken up are not there", tools=missing)
    same_words = left.greeting_text == ours.greeting_text
    return replace(
        ours,
        prompt=left.prompt,
        greeting=left.greeting,
        greeting_text=left.greeting_text,
        greeting_audio=ours.greeting_audio if left.has_recording and same_words else b"",
        farewell=left.farewell,
        voicemail=left.voicemail,
        apology=left.apology,
        voice=left.voice,
        language=left.language,
        events_url=left.events_url,
        tools=tuple(tools[name] for name in left.tools if name in tools),
        name=left.name,
        model=left.model,
        outcome=outcome,
        is_recorded=left.is_recorded,
    )


def _schema_of(left: AgentState) -> OutcomeSchema | None:
    """The schema of an agent that is not known here, as far as it is data and no code."""
    try:
        return None if left.outcome is None else outcome_schema(left.outcome)
    except SchemaWrong as error:
        logger.warning("an outcome cannot be gone on with", reason=str(error))
        return None


def standing_of(c: Conversation, state: CallState) -> Standing | None:
    """How far the model's session had come; None for one that nobody has talked with.

    Before a call is answered its session is worth nothing: another greets as well. A transfer that
    is under way is gone on with, and the model is told what becomes of it; and so is a goodbye.
    """
    if state.answered_at is None:
        return None
    gone_on_with = {TRANSFER_NAME} if state.away is not None else set()
    if state.is_leaving:
        gone_on_with.add(hang_up.name)
    return Standing(
        state.turn,
        state.handle,
        state.model,
        state.on_fallback,
        state.key_name,
        done=_tools(state, are_done=True),
        interrupted=tuple(
            name for name in _tools(state, are_done=False) if name not in gone_on_with
        ),
        in_first_words=_is_taken_up_talking(c, state),
    )


def go_on(
    c: Conversation,
    state: CallState,
    *,
    progress: Progress,
    report: Report,
    handover: Handover,
    farewell: Farewell,
    machine: Machine | None,
    wall_time: float,
) -> float | None:
    """Put a new call where another process has left it: its line is lost, and may come back.

    Args:
        c: The new call.
        state: As it was left.
        progress: How far the call has come.
        report: When it began, and what it costs.
        handover: Whether the carrier has the caller.
        farewell: Whether the agent has hung up.
        machine: Who has answered; None for a call that does nothing about machines.
        wall_time: The time as all who may have the call have it.

    Returns:
        Until when it may last at the longest; None if it has not been answered.
    """
    now = trio.current_time()

    def at(then: float) -> float:
        """When something was, which cannot be later than now, whatever the clocks say."""
        return now - max(0.0, wall_time - then)

    notes = c.notes
    progress.go_on(state.status, state.sequence_number)
    if state.status.is_final:  # and its process was gone before it could end it
        c.end(EndReason.of_status(state.status))
    report.created_at, report.traceparent = state.created_at, state.traceparent
    if (began_at := state.began_at) is None:  # as an older program kept it: our clock has to do
        began_at = state.created_at + wall_time - time.time()
    report.began_at = began_at
    notes.began_at = at(began_at)
    gap_s = round(now - at(state.kept_at), 3)
    taken_up = "taken up from another process"  # whoever has the line, it was lost
    notes.note_trouble(taken_up, gap_s=gap_s, generation=report.generation)
    costs = state.costs
    tokens = {"prompt": costs.prompt, "response": costs.response, "other": costs.other}
    notes.costs.go_on(tokens, costs.usd, is_complete=costs.is_complete)
    notes.go_on({tool.id: (tool.name, tool.is_done) for tool in state.tools})
    if notes.outcome is not None and state.outcome:
        notes.outcome.go_on(state.outcome)
    notes.timings.caller_audio_s = costs.caller_audio_s
    c.playout.heard_before(costs.agent_audio_s)
    if machine is not None and state.machine is not None:
        left = state.machine
        machine.go_on(left.answered_by, is_over=left.stage == "over", was_told=left.was_told)
    if state.answered_at is None or state.ends_at is None:
        return None
    c.agent_turn = c.finished_turn = c.heard_out = state.turn
    turns = [
        SpokenTurn(
            turn.speaker,
            turn.at_s,
            turn.text,
            heard_s=turn.heard_s,
            made_s=turn.heard_s or 0.0,
            complete=True,
            cut=turn.cut,
        )
        for turn in state.transcript
    ]
    before, told = state.turns_before, state.turns_told
    notes.transcript.go_on(turns, before=before, told=before + len(turns) if told is None else told)
    notes.timings.answer_to_first_audio_s = state.first_audio_s
    c.answered_at = at(state.answered_at)
    report.answered()
    ends_at = now + max(0.0, state.ends_at - wall_time)
    c.turns.answered(now, ends_at=ends_at)
    c.opening.answered(now)
    if state.greeted:
        c.opening.greeting_over()
        c.opening.plays_at = min(c.opening.plays_at, now)
    c.stage = Stage.TALK
    if state.away is not None:
        c.stage = Stage.AWAY
        away = state.away
        handover.go_on(
            away.destination, away.number, is_sure=away.is_sure, has_failed=away.has_failed
        )
    elif machine is not None and state.machine is not None and state.machine.stage == "message":
        c.stage = Stage.TO_MACHINE
        machine.go_on_with_message()
    if state.is_leaving and c.stage is not Stage.TO_MACHINE:  # which ends with its message
        farewell.leave_it_to_the_agent(EndReason.AGENT_HUNG_UP)
    return ends_at


def first_words_of(c: Conversation, state: CallState) -> str | None:
    """What the model is told as soon as it is there.

    Returns:
        None to have it greet; empty for nothing.
    """
    if state.answered_at is None:
        return None
    if c.stage is Stage.FAREWELL:
        return phrases.GOODBYE_AGAIN
    if c.stage is not Stage.TALK:
        return ""  # it is told when they are back, or what to leave on the machine
    if not _is_taken_up_talking(c, state):
        return None
    said = (turn.text for turn in reversed(state.transcript) if turn.speaker == "agent")
    heard = next(filter(None, said), "")
    return phrases.taken_up(
        heard,
        interrupted=_tools(state, are_done=False),
        done=_tools(state, are_done=True),
    )


def _is_taken_up_talking(c: Conversation, state: CallState) -> bool:
    """Whether the model is to take up what it was saying, and is told of the functions with that:
    elsewhere its first words are others, or none."""
    return c.stage is Stage.TALK and state.greeted


def _tools(state: CallState, *, are_done: bool) -> tuple[str, ...]:
    """Names of the functions that were done, or were not, each once."""
    return tuple(dict.fromkeys(tool.name for tool in state.tools if tool.is_done is are_done))
