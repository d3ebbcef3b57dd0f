"""Model to playout: what the session tells, one way for every session."""

from __future__ import annotations

import structlog
import trio

from codec.line import BYTES_PER_S
from server.call.conversation import Conversation, Stage
from server.call.machine import Machine
from server.call.passing import AUDIBLE_DBFS
from server.call.playing import Playing
from server.call.toolbox import Toolbox
from server.dialogue.ear import BargeInMode
from server.dialogue.endings import EndReason
from server.dialogue.turns import CONNECTION_LOST
from server.model import (
    AgentAudio,
    AgentTranscript,
    CallerTranscript,
    GenerationComplete,
    GoingAway,
    Interrupted,
    Reconnected,
    ResumptionHandle,
    SessionEvent,
    ToolCallsCancelled,
    ToolCallsRequested,
    ToolResult,
    TurnComplete,
    Usage,
    Working,
)

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

EVIDENCE_S = 2.0
"""How long before the model says that it was interrupted the caller must have been heard."""


class Speaking:
    """Has the caller hear the agent, and the agent's functions run.

    Args:
        conversation: The call.
        playing: Plays what the agent says.
        machine: Told of interruptions while a message is left; None if none is to be left.
        toolbox: Runs functions.
    """

    def __init__(
        self,
        conversation: Conversation,
        playing: Playing,
        machine: Machine | None,
        toolbox: Toolbox,
    ) -> None:
        self._conversation = conversation
        self._playing = playing
        self._machine = machine
        self._toolbox = toolbox
        self._encoder = conversation.passing.path.encoder
        conversation.passing.relay.on_agent = self._take_passed

    def take_event(self, event: SessionEvent) -> None:
        """The session tells this: nothing in here waits."""
        try:
            self._conversation.passing.collect()
            self._take_event(event)
        except Exception as error:
            self._fail(error)

    def _take_event(self, event: SessionEvent) -> None:
        c, turns = self._conversation, self._conversation.turns
        notes, now = c.notes, trio.current_time()
        match event:
            case AgentAudio(pcm=pcm, turn=turn, received_at=received_at):
                self._agent_says(pcm, turn, received_at)
                self._follow(turn)
            case Interrupted(turn=turn, received_at=received_at):
                self._interrupt(turn, received_at)
            case GenerationComplete(turn=turn):
                turns.agent_generated(turn)
                notes.transcript.agent_complete(turn)
                self._finish_turn(turn)
            case TurnComplete(turn=turn, reason=reason, more=more):
                starved_s = c.playout.starved_s(turn)
                turns.agent_completed(turn, reason, now, starved_s=starved_s, more=more)
                self._finish_turn(turn)
                if reason == CONNECTION_LOST or turn > c.agent_turn:  # nothing of it was said
                    notes.keep_soon()
                else:
                    notes.turn_complete(turn)
            case Working(is_on=is_on):
                (turns.agent_working if is_on else turns.agent_idle)(now)
                c.turn_changed.set()
            case AgentTranscript(text=text, turn=turn):
                turns.agent_text(turn, text)
                notes.transcript.agent_said(text, turn, c.since_answer(now))
            case CallerTranscript(text=text):
                turns.spoke_at = now
                turns.caller_active(now)
                c.changed.set()
                c.ear.understood()
                notes.transcript.caller_said(text, c.since_answer(now))
            case ToolCallsRequested(calls=calls, turn=turn, ends_turn=ends_turn):
                words_follow = self._toolbox.words_follow(calls)
                ids = (call.id for call in calls)
                turns.tools_called(ids, turn, words_follow=words_follow, ends_turn=ends_turn)
                c.turn_changed.set()
                notes.tools_called((call.id, call.name) for call in calls)
                c.errands.begin(self._toolbox.run, self._answer_tools)
                self._toolbox.request(calls)
            case ToolCallsCancelled(ids=ids):
                self._toolbox.cancel(ids)
                notes.tools_answered(ids, c.agent_turn)
                turns.tools_answered(ids, now)
                c.turn_changed.set()
            case GoingAway(time_left_s=time_left_s):
                notes.note("model going away", time_left_s=time_left_s)
            case Reconnected() as news:
                self._reconnected(news)
            case Usage() as usage:
                notes.costs.count(usage)
            case ResumptionHandle(handle=handle):
                if handle is not None:
                    notes.remembered()

    # -- what it says --------------------------------------------------------------------------

    def _agent_says(self, pcm: bytes, turn: int, received_at: float) -> None:
        c = self._conversation
        if c.stage is Stage.AWAY:
            # Nobody would hear it now, and nobody wants to hear it later.
            if c.line is None:  # while the carrier is being asked, they still hear what was sent
                c.turns.agent_cut(turn)
                c.playout.interrupt(turn, received_at)
            c.playout.push(self._encoder.encode(pcm), turn, to_nobody=True)
            return
        if turn > c.agent_turn > c.finished_turn:
            # Of a turn that the model has broken off, and that is heard all the same, no end came.
            self._finish_turn(c.agent_turn)
        if turn != c.agent_turn:
            # A new sentence owes nothing to the filter's memory of a turn that was cut.
            c.agent_turn = turn
            self._encoder.reset()
            c.notes.note("agent turn", turn=turn)
            c.turn_changed.set()
        payload = self._encoder.encode(pcm)
        audible = self._encoder.level_dbfs > AUDIBLE_DBFS
        if audible:
            c.notes.replies.audio_received(turn, received_at)
        seconds = len(payload) / BYTES_PER_S
        if c.turns.agent_audio(turn, seconds, audible=audible, now=received_at):
            c.turn_changed.set()
        wide, before = c.passing.wide, None
        if wide is not None:
            before = c.playout.turn_heard(turn, received_at)
        if c.playout.push(payload, turn, received_at):
            if wide is not None:
                made_s = 0.0 if before is None else before.made_s
                wide.said(turn, round(made_s * BYTES_PER_S), pcm)
            self._playing.let_out()

    def _follow(self, turn: int) -> None:
        """Let the path pass on what else comes of this turn, if nobody has to look at it."""
        c = self._conversation
        if (
            turn == c.agent_turn
            and c.passing.relay.has_phone
            and c.stage is not Stage.AWAY
            and c.session.is_drained
            and c.turns.is_content_with(turn)
        ):
            c.passing.follow(turn, trio.current_time())

    def _take_passed(self) -> None:
        """A mark is due, or the lead is used up: nothing in here waits."""
        try:
            self._playing.let_out()
            self._follow(self._conversation.agent_turn)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """End the call for a bug of ours: it is not the socket's that told us."""
        call_sid = self._conversation.call_sid
        logger.error("call failed by a bug of ours", call_sid=call_sid, exc_info=error)
        self._conversation.end(EndReason.ERROR, type(error).__name__)

    def _finish_turn(self, turn: int) -> None:
        c = self._conversation
        c.finished_turn = max(c.finished_turn, turn)
        if turn == c.agent_turn:
            c.playout.push(self._encoder.flush(), turn)
        c.playout.finish_turn(turn)
        self._playing.let_out()
        c.turn_changed.set()

    # -- what else it tells ----------------------------------------------------------------------

    def _interrupt(self, turn: int, received_at: float) -> None:
        """The model says that the caller has interrupted it; believe it, if that can be."""
        c = self._conversation
        if c.speaks_to_machine and self._machine is not None:
            self._machine.interrupted(turn, received_at)
            return
        c.turns.agent_cut(turn, starved_s=c.playout.starved_s(turn))
        c.turns.caller_active(received_at)
        c.turn_changed.set()
        mode, spoke = c.options.barge_in, c.ear.spoke_since(received_at - EVIDENCE_S)
        doubtful = mode is BargeInMode.LOCAL or (mode is BargeInMode.BOTH and c.ear.has_echo)
        if doubtful and not spoke:
            c.notes.note("interruption not believed", turn=turn)
            heard_until = c.playout.audible_until(received_at)
            c.turns.agent_cut_for_nothing(turn, received_at, heard_until=heard_until)
        elif self._playing.cut(turn, received_at, by="model"):
            if spoke:
                # It may have been too little to demand an answer over the agent.
                c.turns.agent_cut(turn, owed_from=received_at)
            else:
                c.turns.agent_cut_for_nothing(turn, received_at)

    def _reconnected(self, news: Reconnected) -> None:
        c, notes = self._conversation, self._conversation.notes
        notes.costs.model = news.model
        notes.reconnected()
        c.metrics.model_reconnects.labels(news.reason, news.way.value).inc()
        notes.transcript.reconnected(c.agent_turn, words_repeated=news.words_repeated)
        note = notes.note if news.is_smooth else notes.note_trouble
        note(
            "model reconnected",
            reason=news.reason,
            way=news.way.value,
            model=news.model,
            gap_s=round(news.gap_s, 3),
            lost_s=round(news.lost_s, 3),
            repeated_s=round(news.repeated_s, 3),
        )
        c.turns.recovered(trio.current_time())
        if self._machine is not None:
            self._machine.reconnected()
        c.turn_changed.set()

    def _answer_tools(self, results: tuple[ToolResult, ...]) -> None:
        c = self._conversation
        c.passing.collect()  # what was said before is no answer to them
        c.session.send_tool_results(results)
        ids, now = [result.id for result in results], trio.current_time()
        c.notes.tools_answered(ids, c.agent_turn)
        c.turns.tools_answered(ids, now, owed_from=c.playout.audible_until(now))
        c.turn_changed.set()
