"""One phone call: from the moment the carrier has accepted it to the record it leaves.

::

                       ┌────────────── Call ──────────────┐
    caller's phone ──▶ │ Hearing ──▶ ear ──────▶ Session ─┼──▶ model
                       │        Conversation              │
    caller's phone ◀── │ Playing ◀── Playout ◀── Speaking │ ◀── model
                       └──────────────────────────────────┘

A :class:`Call` is the life of it: it starts when the call is created, not when it is answered, so
the greeting is ready when the phone leaves the hook; it runs the parts in one nursery, and sees to
the end. What the parts share is the :class:`~server.call.conversation.Conversation`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from typing import Any, Literal

import structlog
import trio

from server.agent.agent import Agent
from server.agent.outcome import Outcome
from server.call.apology import Apology
from server.call.conversation import Conversation, Line, Party, Stage
from server.call.farewell import Farewell
from server.call.handover import Handover
from server.call.hearing import Hearing
from server.call.machine import Machine
from server.call.options import CallOptions
from server.call.playing import Playing
from server.call.report.costs import CostMeter, Prices
from server.call.report.ended import EndedCall
from server.call.report.notes import Notes
from server.call.report.progress import Progress
from server.call.report.report import Report
from server.call.speaking import Speaking
from server.call.takeover.fence import Fence, Ownership
from server.call.takeover.going_on import first_words_of, go_on, standing_of
from server.call.takeover.keeping import Keeping
from server.call.takeover.state import CallState
from server.call.toolbox import Toolbox
from server.call.watch import Watch, briefed
from server.carrier import (
    CallsCarrier,
    CallStatus,
    MachineVerdict,
    MediaStream,
    StatusUpdate,
    StreamStarted,
)
from server.dialogue.cushion import Lateness
from server.dialogue.endings import EndReason
from server.dialogue.voicemail import VoicemailPolicy
from server.errors import ModelError, ServerError, StreamEnded, innermost
from server.hooks.trio_clock import missed_s
from server.logs import masked
from server.media.wide import Wide
from server.metrics import Metrics
from server.model import Model
from server.records.recording import Recordings
from server.records.words import CallRecord
from server.refusal import Kind
from server.signal import Once
from server.voice.judge import Judge

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

GOING_AWAY = 1001
"""The WebSocket close code of an endpoint that leaves (RFC 6455 section 7.4.1)."""
CARRIER_PART = 5 / 6
"""Of the time that the end of a call may take: for the carrier to be told. Whatever becomes of
that, the stream is closed in the rest: then the carrier asks what is next, and gets an apology."""
ASKING_PART = 1 / 2
"""Of that time: for finding out whose a call is that the carrier will not ask about, as it has no
stream. The rest of the carrier's part is for telling it."""
RECORDED_TURN = 0
"""The turn of a recorded greeting: the model counts its own from 1."""


class Call:
    """One phone call. ``run`` is its whole life; everything else tells it something.

    It is long because a life is: every stage of it, and everything that may end it, is here.

    Args:
        direction: Who dialled.
        number: The other party's number; masked in logs, and in the record unless set otherwise.
        agent: Who answers.
        carrier: Hangs the call up when it is we who end it.
        model: Makes the session.
        metrics: The process's metrics.
        options: Settings.
        prices: What its cost is estimated with.
        lateness: How late agent audio has come to all calls of the process.
        voices: Tells voices from noise for all calls of the process; None where nobody does.
        recordings: Records it; None for a call that is not recorded.
        metadata: The API client's own labels, handed back in the record.
        ownership: What makes it this process's call, where others could have it.
        state: Where another process has left it; None for a call that begins.

    Attributes:
        conversation: What the parts of the call share.
        progress: How far it has come, as the carrier reports it.
        apology: What the carrier says if the call fails.
        hearing: Hears the caller, on one stream after the other.
        farewell: How it ends politely.
        handover: Connects the caller with somebody else.
        report: Makes its record.
        ownership: What makes it this process's call.
        fence: Its way to the carrier, which is open only while it is this process's.
        accepted: Set when the carrier has named the call.
        finished: Set when the record is final.
        is_unended: Whether the carrier was not told to hang up, though it has to be, and will not
            ask how the call goes on.
        on_answer: Called when the phone leaves the hook.
        refusal: What about the account the model's service has refused, if that ended the call.
    """

    def __init__(
        self,
        *,
        direction: Literal["inbound", "outbound"],
        number: str,
        agent: Agent,
        carrier: CallsCarrier,
        model: Model,
        metrics: Metrics,
        options: CallOptions,
        prices: Prices | None = None,
        lateness: Lateness | None = None,
        voices: Judge | None = None,
        recordings: Recordings | None = None,
        metadata: Mapping[str, str] | None = None,
        ownership: Ownership | None = None,
        state: CallState | None = None,
    ) -> None:
        model_name = agent.model or model.name
        costs = CostMeter(prices or Prices(), model=model_name, direction=direction, number=number)
        self.conversation = c = Conversation(
            Party(direction, number, agent, dict(metadata or {})),
            carrier=carrier,
            options=options,
            notes=Notes(costs, metrics),
            lateness=lateness,
            voices=voices,
        )
        if options.wide:
            c.passing.wide = Wide()
        if agent.outcome is not None:
            c.notes.outcome = Outcome(agent.outcome)
        self.progress = Progress()
        self.accepted = Once()
        self.finished = Once()
        self.is_unended = False
        self.on_answer: Callable[[], None] | None = None
        self.refusal: Kind | None = None
        self._logged_detail: str | None = None  # if it is another than the record's
        self._ended_at: float | None = None
        self._stopped_by_server = False
        self._time_limit = trio.CancelScope()
        self._recordings = recordings

        self.ownership = ownership or Ownership()
        self.fence = c.carrier = Fence(c, carrier, self.ownership)
        self.report = Report(c, time.time(), self.ownership.wall_time())
        self.report.generation = self.ownership.generation
        self.apology = Apology(c, self.progress)
        self.handover = Handover(c)
        self.farewell = Farewell(c, self.handover)
        self._playing = Playing(c)
        self._machine: Machine | None = None
        if direction == "outbound" and options.voicemail is not VoicemailPolicy.IGNORE:
            self._machine = Machine(c, self._playing)
        self.hearing = Hearing(c, self._playing, self._machine, self.handover)
        toolbox = Toolbox(
            agent.tools,
            self,
            metrics=metrics,
            timeout_s=options.tool_timeout_s,
            interrupted=() if state is None else [tool.id for tool in state.tools],
            may_run=self.fence.wait_kept,
            on_run=c.notes.tool_was_run,
        )
        speaking = Speaking(c, self._playing, self._machine, toolbox)
        limit = self._time_limit  # by itself: what knows the call would be a ring
        self._keeping = Keeping(
            c,
            self.ownership,
            progress=self.progress,
            report=self.report,
            handover=self.handover,
            farewell=self.farewell,
            machine=self._machine,
            ends_at=lambda: limit.deadline,
            state=state,
        )
        first_words = None
        if state is not None:
            ends_at = go_on(
                c,
                state,
                report=self.report,
                progress=self.progress,
                handover=self.handover,
                farewell=self.farewell,
                machine=self._machine,
                wall_time=self.ownership.wall_time(),
            )
            if ends_at is not None:
                self._time_limit.deadline = ends_at
            first_words = first_words_of(c, state)
        self._recorded_before = () if state is None else state.recorded_at_s
        self._watch = Watch(c, self.hearing.telling, self.farewell, self._machine, first_words)
        standing = None if state is None else standing_of(c, state)
        c.session = model.new_session(briefed(agent), c, speaking.take_event, standing)
        c.session.join(c.passing.relay)

    # -- what others tell a call -----------------------------------------------------------

    def accept(self, call_sid: str) -> None:
        """The carrier has taken the call and named it."""
        c = self.conversation
        c.notes.call_sid = call_sid
        self.accepted.set()
        if c.answered_at is not None:  # in another process
            self._record_from(trio.current_time())

    def update_status(self, update: StatusUpdate) -> None:
        """The carrier says how the call stands: idempotent, and it never goes back."""
        was_answered = self.conversation.answered_at is not None or (
            self.progress.status is CallStatus.IN_PROGRESS
        )
        if update.is_unknown and self.direction == "outbound" and not was_answered:
            update = replace(update, status=CallStatus.FAILED)  # it rang: nobody has hung up
        if not self.progress.update(update):
            return
        self.note(update.status.value, **update.facts)
        self.conversation.notes.keep_soon()
        self.conversation.notes.costs.bill(update)
        if update.status.is_final:
            self.end(EndReason.of_status(update.status))

    async def serve(self, media: MediaStream, started: StreamStarted) -> None:
        """Give the call a stream; returns when the call is over or has left the stream."""
        c = self.conversation
        now: float | None = started.received_at
        if started.wait_heard is not None:
            with c.connected.coming():
                now = await started.wait_heard()
        if now is None:
            return
        while c.line is not None and not self.is_over:
            if c.stage is not Stage.AWAY:  # there its stop is yet to come
                c.line.lose("another stream took its place")
            await c.line.released.wait()
        if self.is_over:
            return
        was_lost, self.ownership.has_carried = c.is_lost, True
        line = c.line = Line(media)
        if media.abilities.is_wide and c.passing.wide is None:
            c.passing.wide = Wide()
        try:
            if c.answered_at is None:
                self._answer(now)
            elif not was_lost:
                self.note("caller back")
                c.turns.caller_active(now)
            if c.passing.recorder is not None:
                c.passing.recorder.line(now + missed_s())
            if now >= c.opening.plays_at:
                c.playout.open(now, buffer_s=media.abilities.buffer_s)
            c.connected.set()
            c.unsent.set()  # what waited for the line
            c.changed.set()
            await line.released.wait()
            if not self.is_over:
                with (
                    trio.move_on_after(c.options.close_timeout_s),
                    contextlib.suppress(StreamEnded),
                ):
                    await media.aclose(GOING_AWAY, "the call has left this stream")
        finally:
            if c.line is line:
                line.lose("the media socket was torn down")

    def _answer(self, now: float) -> None:
        """The phone has left the hook."""
        c, agent = self.conversation, self.conversation.party.agent
        c.answered_at = now
        self.report.answered()
        ends_at = self._time_limit.deadline = now + c.options.max_duration_s
        self.note("answered")
        self._record_from(now)
        c.opening.answered(now)
        c.turns.answered(now, ends_at=ends_at)
        if agent.greeting_audio:
            transcript = c.notes.transcript
            transcript.agent_said(agent.greeting_text, RECORDED_TURN, 0.0)
            c.playout.push(agent.greeting_audio, RECORDED_TURN)
            c.playout.finish_turn(RECORDED_TURN)
            transcript.agent_complete(RECORDED_TURN)
        c.move("answered")
        c.notes.keep_soon()
        if self.on_answer is not None:
            with self._guarded("answer"):
                self.on_answer()

    def _record_from(self, now: float) -> None:
        c = self.conversation
        if self._recordings is None:
            return
        before, at_s = self._recorded_before, round(now - c.notes.began_at, 3)
        recorder = self._recordings.begin(c.call_sid, now + missed_s(), len(before) + 1)
        if recorder is not None:
            recorder.parts_at_s = (*before, at_s)
            note = c.notes.note_trouble
            c.passing.record(recorder, lambda reason: note("recording stopped", reason=reason))

    def end(self, reason: EndReason, detail: str = "") -> None:
        """Ask the call to end; the first reason counts, later ones are ignored."""
        self.conversation.end(reason, detail)

    def report_machine(self, verdict: MachineVerdict) -> None:
        """The carrier says who has answered: a hint, which counts once."""
        if self._machine is not None:
            self._machine.report(verdict)

    # -- what the agent's functions may do to it; see LiveCall -------------------------------

    @property
    def call_sid(self) -> str:
        """The carrier's name for the call; empty until it has accepted it."""
        return self.conversation.call_sid

    @property
    def direction(self) -> Literal["inbound", "outbound"]:
        """Who dialled."""
        return self.conversation.party.direction

    @property
    def number(self) -> str:
        """The other party's number, in full: not for logs."""
        return self.conversation.party.number

    @property
    def metadata(self) -> Mapping[str, str]:
        """The labels that the API's client gave."""
        return self.conversation.party.metadata

    def note(self, what: str, **facts: object) -> None:
        """Add a line to the call's timeline; facts are numbers and words of ours, never speech."""
        self.conversation.notes.note(what, **facts)

    def hang_up_when_heard(self) -> bool:
        """End the call when the agent's own farewell has been heard; False if it ends already."""
        return self.farewell.leave_it_to_the_agent(EndReason.AGENT_HUNG_UP)

    async def transfer(self, destination: str, number: str) -> CallStatus:
        """Connect the caller with somebody else; see :meth:`Handover.transfer`."""
        return await self.handover.transfer(destination, number)

    def fill_outcome(self, values: Mapping[str, object]) -> tuple[str, ...]:
        """Write down part of what the call was for; see :meth:`Notes.fill_outcome`."""
        return self.conversation.notes.fill_outcome(values)

    def report_voicemail(self) -> Literal["silence", "message"] | None:
        """The model says that a machine has picked up; see :class:`~server.agent.tool.LiveCall`."""
        if self.conversation.speaks_to_machine:
            return "message"
        if self._machine is None or self._machine.is_over:  # it is clear already who has
            return None
        self._machine.told()
        return "silence"

    async def press_keys(self, keys: str) -> None:
        """Play the tones of telephone keys to the other party; see :meth:`Playing.press_keys`."""
        await self._playing.press_keys(keys)

    # -- the life of a call ----------------------------------------------------------------

    async def run(self) -> None:
        """Bridge both sides until one ends; never raises for what one call can do wrong."""
        c = self.conversation
        with structlog.contextvars.bound_contextvars(call_sid=c.call_sid):
            c.metrics.calls_active.inc()
            try:
                logger.info(
                    "call started",
                    direction=self.direction,
                    number=masked(self.number),
                    agent=c.party.agent.name,
                )
                with self._keeping.going_on():
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._end_when_told, nursery)
                        if c.options.max_cost_usd is not None:
                            budget = self.report, c.options.max_cost_usd
                            nursery.start_soon(self.farewell.keep_to_budget, *budget)
                        nursery.start_soon(self.hearing.run)
                        nursery.start_soon(self._playing.run)
                        if c.party.agent.thinking_sound:
                            nursery.start_soon(self._playing.think_aloud)
                        if not c.options.prewarm:
                            await c.connected.wait()
                        nursery.start_soon(c.session.run)
                        await c.session.wait_ready()
                        c.notes.costs.model = c.session.standing.model  # it may be the fallback
                        self.note("model ready")
                        if self._machine is not None:
                            nursery.start_soon(self._machine.run)
                        await self._watch.run()
            except* ServerError as failures:
                with self._guarded("failure"):
                    self._failed(failures)
            except* Exception as failures:
                self.end(EndReason.ERROR, type(innermost(failures)).__name__)
                logger.exception("call failed by a bug of ours", exc_info=failures)
            finally:
                self._stopped_by_server = c.end_reason is None
                self.end(EndReason.CANCELED, "the server stopped")
                # A hang-up or a shutdown reaches us as Cancelled: without the shield the clean-up
                # would be cancelled too, and the record lost.
                with (
                    self._guarded("close"),
                    trio.move_on_after(c.options.close_timeout_s, shield=True),
                ):
                    await self._close()
                self._keep_record()

    @contextlib.contextmanager
    def _guarded(self, step: str) -> Generator[None]:
        """Do one of the call's last steps; one that fails is told of, and the others are done."""
        try:
            yield
        except Exception:
            self.end(EndReason.ERROR, step)
            self.report.tell_bug(step)

    async def _end_when_told(self, nursery: trio.Nursery) -> None:
        """End of the call: somebody said so, nobody answered, or its time is up."""
        c = self.conversation
        if c.answered_at is None:
            self._time_limit.deadline = trio.current_time() + c.options.answer_timeout_s
        with self._time_limit:
            await c.errands.run(nursery)
        ends_at = self._time_limit.deadline
        if c.end_reason is None and ends_at > trio.current_time():
            # It was answered in the very pass in which that came to be too late.
            with trio.move_on_at(ends_at):
                await c.errands.run(nursery)
        if c.end_reason is None:
            if c.answered_at is not None:
                self.end(EndReason.MAX_DURATION)
            elif self.progress.status is CallStatus.IN_PROGRESS:
                self.end(EndReason.CARRIER_FAILED, "it was answered, but its stream never came")
            else:
                self.end(EndReason.NO_ANSWER)
        if c.end_reason is EndReason.CALLER_HUNG_UP and c.line is not None:
            # The status callback may overtake the last audio and the stop message.
            with trio.move_on_after(c.options.close_timeout_s):
                await c.line.over.wait()
        nursery.cancel_scope.cancel(f"the call ended: {c.end_reason}")

    def _failed(self, failures: ExceptionGroup[ServerError]) -> None:
        """Name the end of a call after the first thing that went wrong on somebody's side."""
        error = innermost(failures)
        assert isinstance(error, ServerError)
        c = self.conversation
        reason = EndReason.of_failure(error, had_session=c.session.is_ready)
        told = str(error)
        if isinstance(error, ModelError):
            told, self.refusal = error.loggable, error.refusal
        self.end(reason, str(error))
        self._logged_detail = told
        logger.warning("call failed", reason=reason.value, error=told)

    async def _close(self) -> None:
        """Hang up if it is we who end the call, and close the stream."""
        c, now = self.conversation, trio.current_time()
        told_by = now + c.options.close_timeout_s * CARRIER_PART
        reason = c.end_reason or EndReason.ERROR
        # What the carrier has never reported on may still ring, or wait to be dialled.
        may_ring = reason is EndReason.NO_ANSWER and not self.progress.status.is_final
        is_ours = self._stopped_by_server or may_ring or not reason.is_carriers
        must_know = is_ours and not _is_asked_about(c)  # else it is left to whoever has it
        asked_by = now + c.options.close_timeout_s * ASKING_PART if must_know else told_by
        ours = await self.fence.is_ours_by(asked_by, again=must_know)
        reason = c.end_reason or reason  # it may have moved
        if ours is False or (ours is None and _is_asked_about(c)):
            # Should it be ours: the carrier asks how it goes on when its stream has ended.
            logger.debug("call left to whoever has it", reason=reason.value)
        elif self.handover.is_elsewhere and (reason.is_agents_part or self.apology.is_owed):
            self.note("left to the transfer")  # if nobody answers there, the carrier asks what next
        elif self.hearing.never_came and (reason.is_our_failure or reason is EndReason.CALLER_GONE):
            self.note("left to the carrier")  # which asks again, should nobody talk with the caller
        elif c.call_sid and is_ours:
            # Before the socket: a stream that is closed by us counts as an error (31921).
            is_told = ours is not None and await self.apology.say_or_hang_up(told_by)
            self.is_unended = not (is_told or _is_asked_about(c) or self.apology.may_be_fetched)
        if c.line is not None:
            try:
                with contextlib.suppress(StreamEnded):
                    await c.line.media.aclose(reason.close_code, reason.value)
            finally:
                c.line.is_closed = True

    # -- the record ------------------------------------------------------------------------

    def _keep_record(self) -> None:
        """Leave everything as it is to stay; whatever fails of that, the call is over."""
        c = self.conversation
        now = self._ended_at = trio.current_time()
        self.report.ended()
        try:
            with self._guarded("heard"):
                c.passing.collect()
                c.write_heard(now)
                c.notes.transcript.over()
            with self._guarded("recording"):
                if self._recordings is not None:
                    c.passing.end_recording(self._recordings, now + missed_s())
            with self._guarded("ear"):
                c.ear.close()
            with self._guarded("costs"):
                if c.end_reason is not EndReason.MOVED:  # else whoever has it counts all of them
                    self.report.count_costs(now)
            with self._guarded("metrics"):
                self.report.count_end(c.metrics, c.end_reason or EndReason.ERROR)
            with self._guarded("log"):
                self._tell_end(now)
        finally:
            self.finished.set()
            if c.line is not None:
                c.line.released.set()

    def _tell_end(self, now: float) -> None:
        c = self.conversation
        reason = c.end_reason or EndReason.ERROR
        self.note("ended", reason=reason.value)
        logger.info(
            "call ended",
            agent=c.party.agent.name,
            reason=reason.value,
            detail=c.end_detail if self._logged_detail is None else self._logged_detail,
            duration_s=round(self.duration_s, 1),
            heard_s=round(c.playout.heard_s(now), 1),
        )

    @property
    def end_reason(self) -> EndReason | None:
        """Why the call ends; None while it goes on."""
        return self.conversation.end_reason

    @property
    def is_over(self) -> bool:
        """Whether the record is final."""
        return self.finished.is_set()

    @property
    def duration_s(self) -> float:
        """Seconds on the line: from the answer to the end, or to now."""
        return self.report.duration_s(self._ended_at or trio.current_time())

    def record(self, *, full: bool = True) -> CallRecord:
        """The record as it stands: all of it, or what a list shows."""
        now = self._ended_at or trio.current_time()
        answered_by = None if self._machine is None else self._machine.answered_by
        self.report.generation = self.ownership.generation  # which a claim may have said since
        record = self.report.summary(
            now, status=self.progress.status, answered_by=answered_by, is_over=self.is_over
        )
        return (
            record.with_details(self.report.details(now, is_over=self.is_over)) if full else record
        )

    def left(self, record: dict[str, Any]) -> EndedCall:
        """What stays in memory now that it is over, given its record as the API shows it."""
        now = self._ended_at or trio.current_time()
        return self.report.left(record, now, self.progress, self.finished)


def _is_asked_about(c: Conversation) -> bool:
    """Whether the carrier will ask how a call goes on: its stream ends when the call does."""
    return c.line is not None and c.stage is not Stage.AWAY
