"""One phone call: from the moment the carrier has accepted it to the record it leaves.

A :class:`Call` has a media stream on one side and a model session on the other, and runs three
loops in one nursery: ``_hear`` (caller to model), ``_speak`` (model to playout) and ``_play``
(playout to caller). It starts when the call is created, not when it is answered, so the greeting
is ready when the phone leaves the hook.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any, Literal

import structlog
import trio

from codec.ear import SpeechEnded, SpeechStarted, Stop
from codec.path import Gate, MediaPath
from server import phrases
from server.agent import Agent
from server.call_options import CallOptions
from server.carrier import (
    CallerAudio,
    CallStatus,
    Carrier,
    CarrierCommand,
    CarrierEvent,
    Clear,
    DigitPressed,
    MachineVerdict,
    MarkReached,
    MediaStream,
    SendAudio,
    StatusUpdate,
    StreamStarted,
    StreamStopped,
)
from server.costs import CostMeter, Prices
from server.ear import BargeInMode, Ear
from server.endings import EndReason
from server.errands import Errands
from server.errors import (
    CallNotInProgress,
    CarrierError,
    CarrierProtocolError,
    ModelError,
    ServerError,
    StreamEnded,
    innermost,
)
from server.farewell import Farewell
from server.handover import Handover
from server.keypad import PressedKeys, tones
from server.logs import masked
from server.machine import Machine
from server.metrics import Metrics, add
from server.model import (
    CALLER_RATE_HZ,
    AgentAudio,
    AgentTranscript,
    CallerTranscript,
    GenerationComplete,
    GoingAway,
    Interrupted,
    Model,
    PastTurn,
    Reconnected,
    ResumptionHandle,
    Session,
    SessionEvent,
    ToolCallsCancelled,
    ToolCallsRequested,
    ToolResult,
    TurnComplete,
    Usage,
    Working,
)
from server.model.refusals import Kind
from server.opening import SILENCE, Opening
from server.playout import HeardTurn, Playout
from server.recording import Recorder, Recordings
from server.relay import Relay
from server.replies import Replies, Reply
from server.timings import Timings
from server.tools import Toolbox
from server.transcript import Transcript
from server.turns import (
    Awaited,
    Turns,
)
from server.voicemail import VoicemailPolicy
from server.watch import Watch, briefed

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_MESSAGE_BYTES = CALLER_RATE_HZ * 2 // 10
"""100 ms of pcm: the longest input chunk the model's guide recommends."""
MAX_UNSENT_BYTES = CALLER_RATE_HZ * 2 * 10
"""Ten seconds of caller audio may wait for the model session; then the oldest goes."""
MAX_GATHERED_BYTES = 800
"""100 ms of payload: as much as one model message takes."""
FRAMES_PER_S = 50
MAX_TIMELINE = 500
COST_CHECK_S = 1.0
AUDIBLE_DBFS = -50.0
"""Agent audio below this cannot be heard on a telephone; the model speaks at about -20."""
EVIDENCE_S = 2.0
"""How long before the model says that it was interrupted the caller must have been heard."""
APOLOGY_AGAIN_S = (0.25, 0.5, 1.0)
"""How long to wait before each further try to have the carrier say sorry."""
RECORDED_TURN = 0
"""The turn of a recorded greeting: the model counts its own from 1."""


@dataclass(slots=True)
class Line:
    """One media stream of the call. A caller whom nobody took over comes back on another."""

    media: MediaStream
    pushes: bool = False
    """It calls us with its events, and takes commands without waiting."""
    heard_at: float = 0.0
    """When it last brought anything (if it pushes)."""
    end: tuple[EndReason, str] | None = None
    """What its last event means for the call."""
    failure: Exception | None = None
    """What went wrong while it pushed: to be raised by the task that waits for it."""
    news: trio.Event = field(default_factory=trio.Event)
    """Something that task has to see to."""
    over: trio.Event = field(default_factory=trio.Event)
    """Its last event has been read."""
    released: trio.Event = field(default_factory=trio.Event)
    """The call has no more use for it."""


class Call:
    """One phone call. ``run`` is its whole life; everything else tells it something.

    Args:
        direction: Who dialled.
        number: The other party's number; masked in logs, and in the record unless set otherwise.
        agent: Who answers.
        carrier: Hangs the call up when it is we who end it.
        model: Opens the session.
        metrics: The process's metrics.
        options: Settings.
        prices: What its cost is estimated with.
        recordings: Records it; None for a call that is not recorded.
        metadata: The API client's own labels, handed back in the record.
    """

    def __init__(
        self,
        *,
        direction: Literal["inbound", "outbound"],
        number: str,
        agent: Agent,
        carrier: Carrier,
        model: Model,
        metrics: Metrics,
        options: CallOptions,
        prices: Prices | None = None,
        recordings: Recordings | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.direction = direction
        self.number = number
        self.agent = agent
        self.metadata = dict(metadata or {})
        self.call_sid = ""
        self.status = CallStatus.QUEUED
        self.end_reason: EndReason | None = None
        self.end_detail = ""
        self.refusal: Kind | None = None
        """What about the account the model's service has refused, if that has ended the call."""
        self._logged_detail: str | None = None  # if it is another than the record's
        self.transcript = Transcript()
        self.timings = Timings()
        self.costs = CostMeter(
            prices or Prices(), model=model.name, direction=direction, number=number
        )
        self.created_at = time.time()
        self.traceparent = ""
        """Whose trace this call belongs to: W3C Trace Context, from whoever asked for the call."""
        self.timeline: deque[tuple[float, str, dict[str, Any]]] = deque(maxlen=MAX_TIMELINE)
        self.accepted = trio.Event()
        self.finished = trio.Event()
        self.settled = trio.Event()
        """Set when the carrier has said its last word about it, which may be after its end."""

        self._recordings = recordings
        self._recorder: Recorder | None = None
        self.carrier = carrier
        self._model = model
        self.metrics = metrics
        self.options = options
        self.began_at = trio.current_time()
        self._answered_at: float | None = None
        self._ended_at: float | None = None
        self._status_number = -1
        self.told_at: float | None = None
        """When the last status callback came."""
        self._over = trio.Event()
        self._failed_steps: set[str] = set()
        self._stopped_by_server = False
        self._time_limit = trio.CancelScope()
        self._has_apologised = False
        self._apology_was_fetched = False

        self.line: Line | None = None
        self._connected = trio.Event()  # set while there is a line
        self._news = trio.Event()  # pulses when something was said, heard or decided
        self._toolbox = Toolbox(
            agent.tools, self, metrics=metrics, timeout_s=options.tool_timeout_s
        )
        self.session: Session | None = None
        self._unsent = bytearray()
        self._caller_latency = metrics.chunk_latency.labels("caller")
        self._agent_latency = metrics.chunk_latency.labels("agent")
        self._path = MediaPath()
        self._path.agent_gate = Gate.HAND_UP  # but for turns that are followed
        self._relay = Relay(
            self._path,
            on_caller=self._attend_caller,
            on_agent=self._attend_agent,
            caller_latencies=(self.timings.caller_chunks, self._caller_latency),
            agent_latencies=(self.timings.agent_chunks, self._agent_latency),
        )
        self._counted_bytes = 0  # of what the path has passed on
        # What does not go by the path goes through the same filters.
        self._decoder = self._path.decoder
        self._encoder = self._path.encoder
        self._playout = Playout(
            lead_s=options.lead_s,
            mark_every_s=options.mark_every_s,
            remember=options.barge_in is not BargeInMode.MODEL,
        )
        self._playout_changed = trio.Event()
        self._opening = Opening(
            greets=bool(agent.greeting or agent.greeting_text or agent.greeting_audio),
            when=options.greeting_when,
            deadline_s=options.greeting_deadline_s,
            protect_s=options.greeting_protect_s,
            hello_s=options.greeting_hello_s,
        )
        self._ear = Ear(
            self._playout,
            self._opening,
            mode=options.barge_in,
            end_silence_s=options.speech_end_s,
            confirm_s=options.barge_in_confirm_s,
        )
        self._path.played = self._playout.timeline
        self._path.ear = self._ear.judge
        self._turns = Turns(options.patience)
        self._replies = Replies()
        self.agent_turn = 0
        self.finished_turn = 0
        self._interrupted_at: float | None = None

        # Its parts that wait, each in a file of its own.
        self.errands = Errands()
        self._watch = Watch(self)
        self._farewell = Farewell(self)
        self._handover = Handover(self)
        self._pressed_keys = PressedKeys(options.dtmf_pause_s)
        self._machine: Machine | None = None
        if direction == "outbound" and options.voicemail is not VoicemailPolicy.IGNORE:
            self._machine = Machine(self)

    # -- what others tell a call -----------------------------------------------------------

    def accept(self, call_sid: str) -> None:
        """The carrier has taken the call and named it."""
        self.call_sid = call_sid
        self.accepted.set()

    def update_status(self, update: StatusUpdate) -> None:
        """The carrier says how the call stands: idempotent, and it never goes back.

        It has said so by a status callback, or because it was asked.
        """
        number, is_back = update.sequence_number, update.status.progress < self.status.progress
        if number is None:  # asked for, so it is news only if it is further on
            stale = is_back or update.status is self.status
        else:
            self.told_at = trio.current_time()
            stale = is_back or number <= self._status_number
        if (stale and not update.status.is_final) or self.status.is_final:
            return
        if number is not None:
            self._status_number = number
        self.status = update.status
        self.note(update.status.value, **update.facts)
        if update.status.is_final:
            if update.facts.get("duration_s", "").isdecimal():
                self.costs.billed_s = float(update.facts["duration_s"])
            self.settled.set()
            self.end(EndReason.of_status(update.status))

    async def serve(self, media: MediaStream, started: StreamStarted) -> None:
        """Give the call a stream; returns when the call is over or has left the stream."""
        if self.line is not None:
            await self.line.released.wait()
        if self.is_over:
            return
        line = self.line = Line(media)
        try:
            if self._answered_at is None:
                self._answer(started.received_at)
            else:
                self.note("caller back")
                self.turns.caller_active(started.received_at)
            if self._recorder is not None:
                self._recorder.line(started.received_at)
            if started.received_at >= self._opening.plays_at:
                self.playout.open(started.received_at)
            self._connected.set()
            self.pulse()
            await line.released.wait()
        finally:
            if self.line is line:
                self.end(EndReason.CALLER_GONE, "the media socket was torn down")

    def _answer(self, now: float) -> None:
        """The phone has left the hook."""
        self._answered_at = now
        ends_at = self._time_limit.deadline = now + self.options.max_duration_s
        self.note("answered")
        self._begin_recording(now)
        self._opening.answered(now)
        self.turns.answered(now, ends_at=ends_at)
        if self.agent.greeting_audio:
            self.transcript.agent_said(self.agent.greeting_text, RECORDED_TURN, 0.0)
            self.playout.push(self.agent.greeting_audio, RECORDED_TURN)
            self.playout.finish_turn(RECORDED_TURN)
            self.transcript.agent_complete(RECORDED_TURN)
        self.reconsider()

    def end(self, reason: EndReason, detail: str = "") -> None:
        """Ask the call to end; the first reason counts, later ones are ignored."""
        if self.end_reason is None:
            self.end_reason = reason
            self.end_detail = detail
            self._over.set()

    def wrap_up(self, reason: EndReason, detail: str = "") -> None:
        """Have the agent say goodbye, then end the call; the first reason counts here too."""
        self._farewell.begin(reason, detail)

    def hang_up_when_heard(self) -> bool:
        """End the call when the agent's own farewell has been heard; False if it ends already."""
        return self._farewell.leave_it_to_the_agent(EndReason.AGENT_HUNG_UP)

    async def transfer(self, destination: str, number: str) -> CallStatus:
        """Connect the caller with somebody else; once they have answered, this call is over.

        Args:
            destination: What timeline and model call them.
            number: Their number, E.164.

        Returns:
            Why they could not be reached, when the caller is back on the line. (COMPLETED if they
            took over, for as long as there is anybody to be told.)

        Raises:
            CarrierError: The carrier would not do it; the caller has never left.
            ValueError: The caller is already on the way to somebody, or not on the line.
        """
        return await self._handover.transfer(destination, number)

    def report_transfer(self, status: CallStatus) -> bool:
        """The carrier says how the transfer stands; True if the caller is to come back."""
        return self._handover.report(status)

    def report_machine(self, verdict: MachineVerdict) -> None:
        """The carrier says who has answered: a hint, which counts once."""
        if self._machine is not None:
            self._machine.report(verdict)

    def report_voicemail(self) -> bool:
        """The model says that a machine has; False if this call does nothing about machines."""
        if self._machine is None:
            return False
        self._machine.told()
        return True

    async def press_keys(self, keys: str) -> None:
        """Play the tones of telephone keys to the other party; returns when they were heard.

        Raises:
            ValueError: There is no such key.
        """
        name = self.playout.push_keys(tones(keys))
        self.note("keys", count=len(keys))  # which ones may be nobody's business
        self._let_out()
        try:
            await self.until(lambda: not self.playout.is_pending(name))
        finally:
            self.playout.withdraw_keys(name)

    # -- the life of a call ----------------------------------------------------------------

    async def run(self) -> None:
        """Bridge both sides until one ends; never raises for what one call can do wrong."""
        with structlog.contextvars.bound_contextvars(call_sid=self.call_sid):
            self.metrics.calls_active.inc()
            try:
                logger.info("call started", direction=self.direction, number=masked(self.number))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._end_when_told, nursery.cancel_scope)
                    nursery.start_soon(self.errands.run)
                    if self.options.max_cost_usd is not None:
                        nursery.start_soon(self._keep_to_budget, self.options.max_cost_usd)
                    nursery.start_soon(self._hear)
                    nursery.start_soon(self._play)
                    if not self.options.prewarm:
                        await self._connected.wait()
                    async with self._model.open_session(briefed(self.agent), self) as session:
                        self.note("model ready")
                        self.session = session
                        session.join(self._relay)
                        self._see_to_keys()
                        nursery.start_soon(self._watch.run, session)
                        if self._machine is not None:
                            nursery.start_soon(self._machine.run, session)
                        await self._speak(session)
            except* ServerError as failures:
                with self._guarded("failure"):
                    self._failed(failures)
            except* Exception as failures:
                self.end(EndReason.ERROR, type(innermost(failures)).__name__)
                logger.exception("call failed by a bug of ours", exc_info=failures)
            finally:
                self._stopped_by_server = self.end_reason is None
                self.end(EndReason.CANCELED, "the server stopped")
                # A hang-up or a shutdown reaches us as Cancelled: without the shield the clean-up
                # would be cancelled too, and the record lost.
                with (
                    self._guarded("close"),
                    trio.move_on_after(self.options.close_timeout_s, shield=True),
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
            self._tell_bug(step)

    def _tell_bug(self, step: str) -> None:
        """Log the exception at hand, once for each step: a record is looked at again and again."""
        if step not in self._failed_steps:
            self._failed_steps.add(step)
            logger.exception(
                "end of a call failed by a bug of ours", step=step, call_sid=self.call_sid
            )

    async def _end_when_told(self, scope: trio.CancelScope) -> None:
        """End of the call: somebody said so, nobody answered, or its time is up."""
        if self._answered_at is None:
            self._time_limit.deadline = trio.current_time() + self.options.answer_timeout_s
        with self._time_limit:
            await self._over.wait()
        if self._time_limit.cancelled_caught:
            if self._answered_at is not None:
                self.end(EndReason.MAX_DURATION)
            elif self.status is CallStatus.IN_PROGRESS:
                self.end(EndReason.CARRIER_FAILED, "it was answered, but its stream never came")
            else:
                self.end(EndReason.NO_ANSWER)
        if self.end_reason is EndReason.CALLER_HUNG_UP and self.line is not None:
            # The status callback may overtake the last audio and the stop message.
            with trio.move_on_after(self.options.close_timeout_s):
                await self.line.over.wait()
        scope.cancel(f"the call ended: {self.end_reason}")

    async def _keep_to_budget(self, max_cost_usd: float) -> None:
        """Wrap up before the call, goodbye included, costs more than it may."""
        ending_s = COST_CHECK_S + self.options.farewell_timeout_s + self.options.close_timeout_s
        while True:
            if self._known_usd(ending_s) > max_cost_usd:
                self.wrap_up(EndReason.COST_CAP)
                return
            await trio.sleep(COST_CHECK_S)

    def _failed(self, failures: ExceptionGroup[ServerError]) -> None:
        """Name the end of a call after the first thing that went wrong on somebody's side."""
        error = innermost(failures)
        assert isinstance(error, ServerError)
        reason = EndReason.of_failure(error, had_session=self.session is not None)
        told = str(error)
        if isinstance(error, ModelError):
            told, self.refusal = error.loggable, error.refusal
        self.end(reason, str(error))
        self._logged_detail = told
        logger.warning("call failed", reason=reason.value, error=told)

    async def _close(self) -> None:
        """Hang up if it is we who end the call, and close the stream."""
        reason = self.end_reason or EndReason.ERROR
        # What the carrier has never reported on may still ring, or wait to be dialled.
        may_ring = reason is EndReason.NO_ANSWER and not self.status.is_final
        is_ours = self._stopped_by_server or may_ring or not reason.is_carriers
        if self.owes_apology and self._handover.is_elsewhere:
            self.note("left to the transfer")  # if nobody answers there, the carrier asks for words
        elif self.call_sid and is_ours:
            try:
                # Before the socket: a stream that is closed by us counts as an error (31921).
                if not await self._apologise():
                    await self.carrier.hang_up(self.call_sid)
            except CarrierError as error:
                logger.warning("hang-up failed", error=str(error))
        if self.line is not None:
            with contextlib.suppress(StreamEnded):
                await self.line.media.aclose(reason.close_code, reason)

    @property
    def owes_apology(self) -> bool:
        """Whether somebody is there who would be hung up on without having heard a word why."""
        if self.end_reason is None or self._has_apologised or self.status.is_final:
            return False
        # A call that is drained says goodbye by itself, if there is a model and a line for it.
        unexplained = self.end_reason.is_our_failure or (
            self.end_reason is EndReason.DRAINED
            and (self.session is None or self._answered_at is None)
        )
        # Who has called us is there before any stream is. Whom we call may still be ringing.
        is_there = (
            self.direction == "inbound"
            or self._answered_at is not None
            or self.status is CallStatus.IN_PROGRESS
        )
        return unexplained and is_there

    @property
    def may_fetch_apology(self) -> bool:
        """Whether a document that the carrier asks for would have to be the apology."""
        return self._apology_was_fetched or (self.line is None and self.owes_apology)

    def fetch_apology(self) -> bool:
        """The carrier asks how the call goes on: whether the answer is to be the apology.

        It is the same for whoever asks again: they have not got the answer.
        """
        if not self.may_fetch_apology:
            return False
        if not self._apology_was_fetched:
            self._has_apologised = self._apology_was_fetched = True
            self.note("apology")
        return True

    async def _apologise(self) -> bool:
        """Let the carrier say sorry and hang up, if somebody has to be told; False if it has not.

        It is tried again where the carrier has surely not begun to say it.
        """
        text, language = phrases.apology_of(self.agent)
        for wait_s in (*APOLOGY_AGAIN_S, None):
            if not self.owes_apology:
                return self._has_apologised
            try:
                await self.carrier.say_and_hang_up(self.call_sid, text, language)
            except CarrierError as error:
                # An inbound call is in progress when the carrier has read how we answer it.
                is_early = isinstance(error, CallNotInProgress) and self._answered_at is None
                if wait_s is None or not (is_early or _is_not_done(error)):
                    logger.warning("apology failed", error=str(error))
                    return False
                if is_early:
                    with trio.move_on_after(wait_s):
                        await self._connected.wait()
                else:
                    await trio.sleep(wait_s)
            else:
                self._has_apologised = True
                self.note("apology")
                return True
        raise AssertionError("unreachable")

    def _keep_record(self) -> None:
        """Leave the books as they are to stay; whatever fails in one of them, the call is over."""
        now = self._ended_at = trio.current_time()
        try:
            with self._guarded("books"):
                self._count_passed()
                self._note_all_heard(now)
            with self._guarded("recording"):
                self._end_recording(now)
            with self._guarded("costs"):
                self._count_costs()
            with self._guarded("metrics"):
                self._count_end()
            with self._guarded("log"):
                self._tell_end(now)
        finally:
            self.finished.set()
            if self.line is not None:
                self.line.released.set()

    def _end_recording(self, now: float) -> None:
        if self._recorder is not None and self._recordings is not None:
            try:
                self._record_passed()
            finally:
                self._recordings.end(self._recorder, now)

    def _count_end(self) -> None:
        self.metrics.calls_active.dec()
        reason = self.end_reason or EndReason.ERROR
        self.metrics.calls_ended.labels(self.direction, reason.value).inc()
        lost_frames = self.timings.caller_audio_lost_s * FRAMES_PER_S
        add(self.metrics.lost_frames.labels("server"), lost_frames)

    def _tell_end(self, now: float) -> None:
        reason = self.end_reason or EndReason.ERROR
        self.note("ended", reason=reason.value)
        logger.info(
            "call ended",
            reason=reason.value,
            detail=self.end_detail if self._logged_detail is None else self._logged_detail,
            duration_s=round(self.duration_s, 1),
            heard_s=round(self.playout.heard_s(now), 1),
        )

    # -- caller to model -------------------------------------------------------------------

    async def _hear(self) -> None:
        """Caller to model: the only task that reads the media stream."""
        while True:
            await self._connected.wait()
            assert self.line is not None
            reason, detail = await self._hear_line(self.line)
            self.line.over.set()
            if not self._handover.is_away:
                self.end(reason, detail)
                return
            self._leave_line()

    async def _hear_line(self, line: Line) -> tuple[EndReason, str]:
        """Pass everything on until the stream is over; says what that means for a call."""
        if await self._hear_pushed(line):
            assert line.end is not None
            return line.end
        event: CarrierEvent | None = None
        while line.end is None:
            if event is None:
                with trio.move_on_after(self.options.media_timeout_s):
                    event = await line.media.receive()
            if isinstance(event, CallerAudio):
                payload, following = self._gather(line.media, event)
                await self._pass_on(payload, event)
                event = following
            else:
                self._take_event(event, line)
                event = None
        return line.end

    def _take_event(self, event: CarrierEvent | None, line: Line) -> None:
        """See to whatever is not audio; None is the silence of a carrier that has gone."""
        match event:
            case MarkReached(name=name, received_at=received_at):
                self._mark_reached(name, received_at)
            case DigitPressed(digit=digit):
                self.note("digit")
                self.turns.caller_active(trio.current_time())
                self._pressed_keys.press(digit)
                self._see_to_keys()
            case StreamStopped(said=said):
                line.end = (EndReason.CALLER_HUNG_UP if said else EndReason.CALLER_GONE), ""
            case None:
                line.end = EndReason.CALLER_GONE, "no audio from the carrier"
            case _:
                pass

    async def _hear_pushed(self, line: Line) -> bool:
        """The same for a stream that pushes; False, at once, if it does not."""
        line.heard_at = trio.current_time()
        line.pushes = line.media.listen(partial(self._take_pushed, line), self._relay)
        while line.pushes and line.end is None:
            # The event is made before looking, so that news that come while we act are seen.
            news = line.news = trio.Event()
            if line.failure is not None:
                raise line.failure
            if self._unsent and self.session is not None:
                await self._send_unsent(self.session)
                continue
            with trio.move_on_at(self._gone_at(line)):
                await news.wait()
            if trio.current_time() >= self._gone_at(line):
                self._take_event(None, line)
        return line.pushes

    def _gone_at(self, line: Line) -> float:
        """When a carrier that says nothing more is taken for gone."""
        heard_at = line.heard_at
        if self._relay.has_phone:
            heard_at = max(heard_at, self._relay.heard_at)
        return heard_at + self.options.media_timeout_s

    def _attend_caller(self) -> None:
        """The path has held caller audio for us, or found something, or it is to be written down.

        Called by the plane: nothing in here waits.
        """
        line, path, heard_at = self.line, self._path, self._relay.heard_at
        assert line is not None
        try:
            payload = path.take_caller()
            if payload:
                began_ms = path.timestamp_ms - len(payload) // 8
                self._pass_on_now(payload, CallerAudio(payload, began_ms, heard_at), judged=True)
            else:
                self._note_found(self._ear.take(), heard_at)
            if self.session is not None:
                self.session.note_passed()
            self._count_passed()
            path.caller_gate = Gate.PASS if self._may_pass() else Gate.HOLD
            self._ear.follow_opening()
        except Exception as error:
            # It is the call's, not the socket's: the call's own task raises it.
            line.failure = error
        if line.failure is not None or self._unsent:
            line.news.set()

    def _may_pass(self) -> bool:
        """Whether caller audio may go to the model without anybody's looking at it."""
        return (
            self.session is not None
            and self._opening.is_over
            and (self._machine is None or self._machine.is_over)
            and not self._unsent
        )

    def _count_passed(self) -> None:
        """Count what the path has passed on since this was last done."""
        sent_bytes = self._path.caller_sent_bytes
        self.timings.caller_audio_s += (sent_bytes - self._counted_bytes) / 8_000
        self._counted_bytes = sent_bytes

    def _caller_passed(self, took_s: float) -> None:
        self.timings.caller_chunks.record(took_s)
        self._caller_latency.observe(took_s)

    def _take_pushed(
        self, line: Line, events: Sequence[CarrierEvent | CarrierProtocolError]
    ) -> None:
        """Called with what has come, the moment it has: nothing in here waits."""
        line.heard_at = trio.current_time()
        try:
            first: CallerAudio | None = None
            payload = b""
            for event in events:
                if isinstance(event, CallerAudio):
                    first = first or event
                    payload += event.payload
                    continue
                if first is not None:
                    self._pass_on_now(payload, first)
                    first, payload = None, b""
                if isinstance(event, CarrierProtocolError):
                    raise event
                self._take_event(event, line)
            if first is not None:
                self._pass_on_now(payload, first)
        except Exception as error:
            # It is the call's, not the socket's: the call's own task raises it.
            line.failure = error
        if self._unsent:
            self._path.caller_gate = Gate.HOLD  # what comes next is to wait behind it
        if line.failure is not None or line.end is not None or self._unsent:
            line.news.set()

    def _gather(self, media: MediaStream, first: CallerAudio) -> tuple[bytes, CarrierEvent | None]:
        """Join what is already waiting; latency is never traded for this while idle."""
        payload = first.payload
        while len(payload) < MAX_GATHERED_BYTES:
            event = media.receive_nowait()
            if not isinstance(event, CallerAudio):
                return payload, event
            payload += event.payload
        return payload, None

    async def _pass_on(self, payload: bytes, first: CallerAudio) -> None:
        """Let the ear and the model hear this, waiting for the model if need be."""
        self._judge(payload, first)
        if self.session is None:
            self._bound_unsent()
        else:
            await self._send_unsent(self.session)
            self._note_passed_on(first.received_at)

    def _pass_on_now(self, payload: bytes, first: CallerAudio, *, judged: bool = False) -> None:
        """The same without waiting; what would have to wait is left to :meth:`_hear_pushed`."""
        session, in_order = self.session, not self._unsent
        self._judge(payload, first, judged=judged)
        if session is None:
            self._bound_unsent()
        elif in_order:
            while self._unsent:
                if not session.send_audio_nowait(bytes(self._unsent[:MAX_MESSAGE_BYTES])):
                    return
                del self._unsent[:MAX_MESSAGE_BYTES]
            self._note_passed_on(first.received_at)

    def _judge(self, payload: bytes, first: CallerAudio, *, judged: bool = False) -> None:
        """Find out what can be from caller audio, and put it where the model will hear it.

        Args:
            payload: One chunk, or several that came together.
            first: The event of the first of them.
            judged: It came by the path: ear and recorder have heard it already.
        """
        if self._recorder is not None:
            self._record_passed()
            if not judged:
                self._recorder.caller(payload, first.timestamp_ms, first.received_at)
        now = trio.current_time()
        self.timings.caller_audio_s += len(payload) / 8_000
        if self._machine is not None:
            self._machine.hear(payload, now)
        if judged:
            found = self._ear.take()
            to_model = self._opening.hear(payload, now)
        else:
            heard = self._ear.hear(payload, now)
            found, to_model = heard.found, heard.payload
        self._note_found(found, now)
        if self._speaks_to_machine:
            to_model = SILENCE * len(payload)
        self._unsent += self._decoder.decode(to_model)

    def _note_found(self, found: Iterable[SpeechStarted | SpeechEnded | Stop], now: float) -> None:
        for one in found:
            self._caller_found(one, now)

    def _bound_unsent(self) -> None:
        if (lost := len(self._unsent) - MAX_UNSENT_BYTES) > 0:
            del self._unsent[:lost]
            self.timings.caller_audio_lost_s += lost / 2 / CALLER_RATE_HZ

    async def _send_unsent(self, session: Session) -> None:
        while self._unsent:
            pcm = bytes(self._unsent[:MAX_MESSAGE_BYTES])
            del self._unsent[:MAX_MESSAGE_BYTES]
            await session.send_audio(pcm)

    def _note_passed_on(self, received_at: float) -> None:
        self._caller_passed(trio.current_time() - received_at)

    def _caller_found(self, found: SpeechStarted | SpeechEnded | Stop, now: float) -> None:
        """What the ear has made of caller audio."""
        if self._machine is not None:
            self._machine.heard(found, now)
            if self._machine.is_spoken_to:
                return
        match found:
            case SpeechStarted():
                self.turns.caller_started(now)
                self._replies.caller_started()
            case SpeechEnded(at=at, speech_s=speech_s):
                agent_until = self.playout.audible_until(now)
                self.turns.caller_ended(at, now, speech_s=speech_s, agent_until=agent_until)
                self._replies.caller_ended(at, now)
                self._let_out()  # the greeting may have waited for this
            case Stop.HOLD:
                if self.playout.hold(now):
                    self._interrupted_at = now
                    self._let_out()
                    self.note("agent held")
            case Stop.RESUME:
                if self.playout.is_held:
                    self.playout.resume()
                    self._let_out()
                    self.note("false alarm")
            case Stop.CUT:
                self.cut(self.agent_turn, now, by="local")
        self.reconsider()

    def _mark_reached(self, name: str, now: float) -> None:
        if (reply := self._replies.mark_reached(name, now)) is not None:
            self._measured(reply, "playout", "total")
        if heard := self.playout.mark_reached(name, now):
            self._note_heard(heard)
        self._let_out()  # and whoever waits for silence is told there

    # -- model to playout ------------------------------------------------------------------

    async def _speak(self, session: Session) -> None:
        """Model to playout: what the session does not push is received here."""
        session.listen(partial(self._take_pushed_event, session))
        while True:
            self._take_session_event(session, await session.receive())

    def _take_pushed_event(self, session: Session, event: SessionEvent | ModelError) -> None:
        """Called by the plane with what has come, the moment it has: nothing in here waits."""
        if isinstance(event, ModelError):
            return  # _speak is told as well
        try:
            self._take_session_event(session, event)
        except Exception as error:
            # It is the call's, not the socket's.
            self.end(EndReason.ERROR, type(error).__name__)
            logger.exception("call failed by a bug of ours", call_sid=self.call_sid)

    def _take_session_event(self, session: Session, event: SessionEvent) -> None:
        match event:
            case AgentAudio(pcm=pcm, turn=turn, received_at=received_at):
                self._agent_says(pcm, turn, received_at)
                self._follow(session, turn)
            case Interrupted(turn=turn, received_at=received_at):
                self._interrupt(turn, received_at)
            case GenerationComplete(turn=turn):
                self.turns.agent_generated(turn)
                self.transcript.agent_complete(turn)
                self._finish_turn(turn)
            case TurnComplete(turn=turn, reason=reason, more=more):
                now, starved_s = trio.current_time(), self.playout.starved_s(turn)
                self.turns.agent_completed(turn, reason, now, starved_s=starved_s, more=more)
                self._finish_turn(turn)
            case Working(is_on=is_on):
                (self.turns.agent_working if is_on else self.turns.agent_idle)(trio.current_time())
                self.reconsider()
            case AgentTranscript(text=text, turn=turn):
                self.turns.agent_text(turn, text)
                self.transcript.agent_said(text, turn, self._since_answer(trio.current_time()))
            case CallerTranscript(text=text):
                self.turns.caller_active(trio.current_time())
                self.transcript.caller_said(text, self._since_answer(trio.current_time()))
            case ToolCallsRequested(calls=calls):
                self.turns.tools_called(call.id for call in calls)
                self.errands.begin(self._toolbox.run, self._answer_tools)
                self._toolbox.request(calls)
            case ToolCallsCancelled(ids=ids):
                self._toolbox.cancel(ids)
                self.turns.tools_answered(ids, trio.current_time())
                self.reconsider()
            case GoingAway(time_left_s=time_left_s):
                self.note("model going away", time_left_s=time_left_s)
            case Reconnected() as news:
                self._reconnected(news)
            case Usage() as usage:
                self.costs.count(usage)
            case ResumptionHandle():
                pass

    def _agent_says(self, pcm: bytes, turn: int, received_at: float) -> None:
        self._settle()
        if self.is_away:
            return  # nobody would hear it now, and nobody wants to hear it later
        if turn != self.agent_turn:
            # A new sentence owes nothing to the filter's memory of a turn that was cut.
            self.agent_turn = turn
            self._encoder.reset()
            self.note("agent turn", turn=turn)
            self.reconsider()
        payload = self._encoder.encode(pcm)
        self._take_note(payload, turn, received_at)
        if self.playout.push(payload, turn, received_at):
            self._let_out()

    def _follow(self, session: Session, turn: int) -> None:
        """Let the path pass on what else comes of this turn, if nobody has to look at it.

        Its books are kept when somebody asks for them: see :attr:`playout`.
        """
        if (
            turn == self.agent_turn
            and self._relay.has_phone
            and not self.is_away
            and session.is_drained
            and self._turns.is_content_with(turn)
        ):
            limit_bytes = self._playout.passable_bytes(turn, trio.current_time())
            if limit_bytes > 0:
                self._path.follow(limit_bytes=limit_bytes, audible_dbfs=AUDIBLE_DBFS)

    def _attend_agent(self) -> None:
        """A mark is due, or the lead is used up. Called by the plane."""
        self._settle()
        self._let_out()
        if self.session is not None:
            self._follow(self.session, self.agent_turn)

    def _settle(self) -> None:
        """Put down in the books what the path has passed on of the agent's turn."""
        if not self._path.has_run:
            return
        passed_bytes, audible_bytes, last_at = self._path.take_run()
        if passed_bytes:
            turn = self.agent_turn
            self._playout.passed(turn, passed_bytes)
            for audible, size in (
                (False, passed_bytes - audible_bytes),
                (True, audible_bytes),
            ):
                if size:
                    self._turns.agent_audio(turn, size / 8_000, audible=audible, now=last_at)

    def _agent_passed(self, took_s: float) -> None:
        self.timings.agent_chunks.record(took_s)
        self._agent_latency.observe(took_s)

    async def _answer_tools(self, results: tuple[ToolResult, ...]) -> None:
        assert self.session is not None
        await self.session.send_tool_results(results)
        self.turns.tools_answered((result.id for result in results), trio.current_time())
        self.reconsider()

    def _take_note(self, payload: bytes, turn: int, received_at: float) -> None:
        """Tell the books what the agent has just said: whether it can be heard, and how soon."""
        audible = self._encoder.level_dbfs > AUDIBLE_DBFS
        if audible:
            self._replies.audio_received(turn, received_at)
        answers = self.turns.agent_audio(
            turn,
            len(payload) / 8_000,
            audible=audible,
            now=received_at,
        )
        if answers:
            self.reconsider()

    def _finish_turn(self, turn: int) -> None:
        self.finished_turn = max(self.finished_turn, turn)
        if turn == self.agent_turn:
            self.playout.push(self._encoder.flush(), turn)
        self.playout.finish_turn(turn)
        self._let_out()
        self.reconsider()

    def _interrupt(self, turn: int, received_at: float) -> None:
        """The model says that the caller has interrupted it; believe it, if that can be."""
        if self._machine is not None and self._machine.is_spoken_to:
            self._machine.interrupted(turn, received_at)
            return
        self.turns.agent_cut(turn, starved_s=self.playout.starved_s(turn))
        self.reconsider()
        mode, spoke = self.options.barge_in, self._ear.spoke_since(received_at - EVIDENCE_S)
        doubtful = mode is BargeInMode.LOCAL or (mode is BargeInMode.BOTH and self._ear.has_echo)
        if doubtful and not spoke:
            self.note("interruption not believed", turn=turn)
        elif self.cut(turn, received_at, by="model") and not spoke:
            self.turns.agent_cut_for_nothing(turn, received_at)

    def cut(self, turn: int, at: float, *, by: str) -> bool:
        """Barge-in: stop the agent before anything else is sent; False if there was nothing."""
        cut = self.playout.interrupt(turn, at)
        self.turns.agent_cut(turn, starved_s=self.playout.starved_s(turn))
        self._ear.agent_cut()
        if cut is None:
            return False
        if self._interrupted_at is None:
            self._interrupted_at = at
        self._let_out()
        self.note("barge-in", turn=cut.turn, by=by, heard_s=round(cut.heard_s, 3))
        self._note_heard(cut)
        if self.options.barge_in_hint and not self._speaks_to_machine:
            heard = self.transcript.agent_heard_text(cut.turn)
            self._watch.hint(phrases.barge_in_hint(heard))
        return True

    def _reconnected(self, news: Reconnected) -> None:
        self.timings.caller_audio_lost_s += news.lost_s
        self.costs.model = news.model
        self.metrics.model_reconnects.labels(news.reason, news.way.value).inc()
        if news.words_repeated:
            self.transcript.caller_repeats()
        self.note(
            "model reconnected",
            reason=news.reason,
            way=news.way.value,
            model=news.model,
            gap_s=round(news.gap_s, 3),
            lost_s=round(news.lost_s, 3),
            repeated_s=round(news.repeated_s, 3),
        )
        self.turns.recovered(trio.current_time())
        self.reconsider()

    @property
    def _speaks_to_machine(self) -> bool:
        return self._machine is not None and self._machine.is_spoken_to

    def _see_to_keys(self) -> None:
        if self.session is not None and self._pressed_keys.are_waiting:
            self.errands.begin(self._pressed_keys.run, self._tell_keys)

    async def _tell_keys(self, pressed: str) -> None:
        """Tell the model which keys the caller has pressed; it answers every message."""
        assert self.session is not None
        self.turns.ask(Awaited.ANSWER, trio.current_time())
        self.reconsider()
        keys = "keys" if len(pressed) > 1 else "key"
        await self.session.send_text(
            f"(The caller pressed the {keys} {' '.join(pressed)} on the telephone keypad.)"
        )

    # -- what the session asks of its call ---------------------------------------------------

    def is_quiet(self) -> bool:
        """Whether neither side can be heard, and neither waits for a word of the other's."""
        heard = self.playout.queued_s or self.playout.is_playing(trio.current_time())
        return not heard and not self.turns.is_busy

    def history(self) -> list[PastTurn]:
        """What has been said so far, as the caller heard it, oldest first."""
        self._note_all_heard(trio.current_time())
        return [
            PastTurn(turn.speaker, text)
            for turn in self.transcript.turns
            if (text := self.transcript.heard_text(turn))
        ]

    # -- playout to caller -----------------------------------------------------------------

    async def _play(self) -> None:
        """Playout to caller: the only task that writes to the media stream."""
        while True:
            await self._connected.wait()
            line = self.line
            assert line is not None
            now = trio.current_time()
            if not self.playout.is_open and now >= self._opening.plays_at:
                self.playout.open(now)
            # The event is made before asking, so that a change while we send is seen.
            changed = self._playout_changed = trio.Event()
            command = self.playout.next_command(trio.current_time())
            if command is None:
                self.pulse()
                opens_at = inf if self.playout.is_open else self._opening.plays_at
                with trio.move_on_at(min(self.playout.next_due(), opens_at)):
                    await changed.wait()
                continue
            try:
                await line.media.send(command)
            except StreamEnded:
                # _hear sees the same end, and says whether it is the call's.
                await line.released.wait()
                continue
            self._note_sent(command, trio.current_time())

    def _let_out(self) -> None:
        """Playout has something new: send it now if the stream takes it, or wake the task."""
        line = self.line
        if line is not None and line.pushes and self.playout.is_open:
            try:
                while (command := self.playout.next_command(trio.current_time())) is not None:
                    line.media.send_nowait(command)
                    self._note_sent(command, trio.current_time())
            except StreamEnded:
                return  # _hear sees the same end
            self.pulse()
            if self.playout.next_due() == inf:
                return
        self._playout_changed.set()

    def _note_sent(self, command: CarrierCommand, now: float) -> None:
        assert self._answered_at is not None
        if self._recorder is not None:
            self._record_passed()
            self._recorder.sent(command, now)
        match command:
            case SendAudio(received_at=received_at, turn=turn):
                if (reply := self._replies.audio_sent(turn, now)) is not None:
                    self._measured(reply, "vad", "model", "codec")
                if self.timings.answer_to_first_audio_s is None:
                    self._opening.greeting_began(now)
                    first_s = now - self._answered_at
                    self.timings.answer_to_first_audio_s = first_s
                    self.metrics.answer_to_audio.observe(first_s)
                    self.note("first audio", after_ms=round(first_s * 1000, 3))
                if received_at > self._answered_at:
                    self._agent_passed(now - received_at)
            case Clear() if self._interrupted_at is not None:
                self.timings.interrupt_to_clear.record(now - self._interrupted_at)
                self.metrics.interrupt_to_clear.observe(now - self._interrupted_at)
                self._interrupted_at = None

    def _leave_line(self) -> None:
        """The stream is over and the call goes on: nothing sent on it will be heard any more."""
        line = self.line
        assert line is not None
        self.line = None
        self._connected = trio.Event()
        if (cut := self.playout.leave(trio.current_time())) is not None:
            self._note_heard(cut)
        self._let_out()
        line.released.set()
        self.pulse()

    # -- what its parts ask of it ----------------------------------------------------------

    @property
    def playout(self) -> Playout:
        """What the caller gets and when, with all in its books that has passed up to now."""
        self._settle()
        return self._playout

    @property
    def turns(self) -> Turns:
        """Whose turn it is, with all that has passed up to now."""
        self._settle()
        return self._turns

    @property
    def is_away(self) -> bool:
        """Whether the caller is with somebody else, or ringing there: nothing can be said."""
        return self._handover.is_away

    @property
    def is_talk(self) -> bool:
        """Whether two are talking: the call is not ending, and no machine or other is there."""
        return not (self._farewell.has_begun or self.is_away or self._speaks_to_machine)

    def reconsider(self) -> None:
        """It may be another's turn now."""
        self._watch.reconsider()

    def pulse(self) -> None:
        """Wake everybody who waits for something to be said or heard."""
        self._news.set()
        self._news = trio.Event()

    async def wait_news(self) -> None:
        """Wait until something was said, heard or decided."""
        await self._news.wait()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until this is so; it is asked whenever something was said, heard or decided."""
        while not condition():
            await self._news.wait()

    # -- the record ------------------------------------------------------------------------

    def note(self, what: str, **facts: Any) -> None:
        """Add a line to the call's timeline; facts are numbers and words of ours, never speech."""
        self.timeline.append((trio.current_time() - self.began_at, what, facts))
        # Webhooks and sockets note things from tasks of their own, without the call's context.
        logger.debug(what, call_sid=self.call_sid, **facts)

    def _note_heard(self, heard: HeardTurn) -> None:
        """A turn was heard to its end, or to where it was cut."""
        self._opening.greeting_over()
        self._farewell.turn_heard(heard)
        self._write_heard(heard)

    def _note_all_heard(self, now: float) -> None:
        for turn in self.transcript.turns:
            if turn.number is not None and (heard := self.playout.turn_heard(turn.number, now)):
                self._write_heard(heard)

    def _write_heard(self, heard: HeardTurn) -> None:
        self.transcript.agent_heard(
            heard.turn, heard_s=heard.heard_s, made_s=heard.made_s, cut=heard.cut
        )

    def _measured(self, reply: Reply, *stages: str) -> None:
        durations_s = reply.stages_s()
        for stage in stages:
            self.metrics.replies.labels(stage).observe(durations_s[stage])
        if "total" in stages:
            self.timings.replies.record(durations_s["total"])

    def _since_answer(self, now: float) -> float:
        return now - (self._answered_at if self._answered_at is not None else now)

    def _begin_recording(self, now: float) -> None:
        if self._recordings is None:
            return
        self._recorder = self._recordings.begin(self.call_sid, now)
        if self._recorder is not None:
            self._recorder.on_stop = self._recording_stopped
            self._recorder.on_take = self._record_passed
            self._path.recording = True

    def _recording_stopped(self, reason: str) -> None:
        self._path.recording = False
        self.note("recording stopped", reason=reason)

    def _record_passed(self) -> None:
        """Give the recorder what the path has passed on meanwhile."""
        if self._recorder is None or not self._path.recording:
            return
        caller, agent = self._path.take_recording()
        if caller:
            began_ms = self._path.recorded_ms - len(caller) // 8
            self._recorder.caller(caller, began_ms, self._relay.heard_at)
        if agent:
            # Each chunk of it came before the caller had heard the one before.
            self._recorder.sent(SendAudio(agent), self.began_at)

    def _known_usd(self, ahead_s: float) -> float:
        """What the call costs at least if it goes on for this long."""
        self._count_passed()
        on_line_s = self.duration_s + ahead_s if self._answered_at is not None else 0.0
        return self.costs.known_usd(
            on_line_s=on_line_s,
            caller_audio_s=self.timings.caller_audio_s,
            agent_audio_s=self.playout.heard_s(trio.current_time()),
        )

    def _count_costs(self) -> None:
        tokens = self.costs.tokens()
        for direction in ("prompt", "response"):
            for modality, count in tokens[direction].items():
                known = modality if modality in ("AUDIO", "TEXT", "IMAGE", "VIDEO") else "other"
                add(self.metrics.tokens.labels(direction, known.lower()), count)
        carrier_usd = self.costs.carrier_usd(self.duration_s) or 0.0
        add(self.metrics.cost.labels("carrier"), carrier_usd)
        add(self.metrics.cost.labels("model"), max(0.0, self._known_usd(0.0) - carrier_usd))

    @property
    def replies(self) -> Iterable[Reply]:
        """The agent turns that answered the caller, in order."""
        return self._replies.all

    @property
    def is_over(self) -> bool:
        """Whether the record is final."""
        return self.finished.is_set()

    @property
    def duration_s(self) -> float:
        """Seconds on the line: from the answer to the end, or to now."""
        if self._answered_at is None:
            return 0.0
        return (self._ended_at or trio.current_time()) - self._answered_at

    def as_dict(self, *, full: bool = True) -> dict[str, Any]:
        """The record as the API shows it; a part of it that cannot be made is left out."""
        now = self._ended_at or trio.current_time()
        record: dict[str, Any] = {
            "call_sid": self.call_sid,
            "direction": self.direction,
            "number": self.number if self.options.full_numbers else masked(self.number),
            "state": "ended" if self.is_over else "live",
            "status": self.status.value,
            "reason": self.end_reason.value if self.end_reason else None,
            "detail": self.end_detail,
            "created_at": round(self.created_at, 3),
            "duration_s": round(self.duration_s, 3),
            "answered_by": self._machine.answered_by if self._machine is not None else None,
            "agent_heard_s": 0.0,
            "metadata": self.metadata,
        }
        self._put(record, "agent_heard_s", lambda: round(self.playout.heard_s(now), 3))
        if full:
            for name, make in self._details(now).items():
                self._put(record, name, make)
        return record

    def _details(self, now: float) -> dict[str, Callable[[], Any]]:
        """The parts of a record that lists do not show."""

        def timings() -> dict[str, Any]:
            self._count_passed()
            return self.timings.as_dict()

        def cost() -> dict[str, Any]:
            return self.costs.as_dict(
                on_line_s=self.duration_s,
                caller_audio_s=self.timings.caller_audio_s,
                agent_audio_s=self.playout.heard_s(now),
            )

        def transcript() -> list[dict[str, Any]]:
            if not self.is_over:
                self._note_all_heard(now)
            return self.transcript.as_list(words=self.options.transcripts)

        return {
            "timings": timings,
            "tokens": self.costs.tokens,
            "cost": cost,
            "replies": lambda: [reply.as_dict() for reply in self._replies.all],
            "recording": lambda: None if self._recorder is None else self._recorder.as_dict(),
            "transcript": transcript,
            "timeline": lambda: [
                {"at_s": round(at_s, 3), "what": what, **facts}
                for at_s, what, facts in self.timeline
            ],
        }

    def _put(self, record: dict[str, Any], name: str, make: Callable[[], Any]) -> None:
        record.setdefault(name, None)
        try:
            record[name] = make()
        except Exception:
            self._tell_bug(name)


def _is_not_done(error: CarrierError) -> bool:
    """Whether the carrier has done nothing of what it was asked: it was not reached, or said so."""
    if error.status is None:
        return not error.outcome_unknown
    return error.status == 429 or error.status >= 500
