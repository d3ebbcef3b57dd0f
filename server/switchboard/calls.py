"""Every call of this process: who may be placed, which stream belongs to which, what is kept.

Each call runs in a nursery of its own inside :meth:`Calls.run`; a call that fails takes nothing
with it. A media socket proves its call by a single-use ticket that we put into the TwiML. Where a
server has several processes, limits are for all of them, and each says which calls are its own.
"""

from __future__ import annotations

import math
import secrets
from collections import OrderedDict
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import structlog
import trio

from server.agent import phrases
from server.agent.agent import Agent
from server.call.call import Call
from server.call.costs import Prices
from server.call.options import CallOptions
from server.carrier import (
    NOT_REACHED,
    Carrier,
    MachineVerdict,
    MediaStream,
    StatusUpdate,
    StreamStarted,
    TransferUpdate,
    VoiceRequest,
)
from server.cluster.board import Load
from server.cluster.workers import Workers
from server.dialogue.endings import EndReason
from server.dialogue.voicemail import VoicemailPolicy
from server.errors import (
    CallRefused,
    CarrierError,
    CarrierProtocolError,
    ModelError,
    StreamEnded,
    innermost,
)
from server.logs import Sparing, log_stranger
from server.metrics import Metrics
from server.model import Model, PastTurn, Session, SessionEvent
from server.records.recording import Recordings
from server.records.store import Records
from server.records.traces import NoTraces, Traces
from server.records.words import Cursor, RecordsUnavailable
from server.refusal import Kind
from server.switchboard.admission import Admission, Limits
from server.switchboard.early import EarlyUpdates
from server.switchboard.inquiry import Inquiry, Patience
from server.switchboard.strangers import Strangers

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_ENDED = 10_000
"""CallSids of ended calls that are remembered: a webhook that comes again begins no call again."""
MAX_TICKETS = 5
"""Unused tickets of one call: more than a carrier whose webhook is repeated ever needs."""
POLICY_VIOLATION = 1008
TRY_MODEL_S = 15.0
"""How long the model is tried without a call: a connection and a set-up, with air."""


@dataclass(frozen=True, slots=True)
class Page:
    """Part of the list of calls."""

    rows: list[dict[str, Any]]
    more: bool
    """Whether there are calls after these."""
    is_complete: bool
    """False when the database could not be asked, and only what is in memory is shown."""

    def joined(self, other: Page, limit: int) -> Page:
        """What two processes know together; of a call that both know, the other's word counts."""
        rows = {row["call_sid"]: row for row in self.rows}
        rows |= {row["call_sid"]: row for row in other.rows}
        newest = sorted(rows.values(), key=Cursor.of, reverse=True)
        return Page(
            newest[:limit],
            self.more or other.more or len(newest) > limit,
            self.is_complete and other.is_complete,
        )

    @property
    def next(self) -> Cursor | None:
        """Where the next page begins; None when this was the last."""
        return Cursor.of(self.rows[-1]) if self.rows and self.more else None


@dataclass(frozen=True, slots=True)
class Claim:
    """A media socket has shown the ticket of a call."""

    call: Call
    started: StreamStarted


@dataclass(frozen=True, slots=True)
class _Ticket:
    call: Call
    expires_at: float


class _Nobody:
    """The conversation of a session that is opened only to see whether it can be."""

    def is_quiet(self) -> bool:
        return True

    def history(self) -> Sequence[PastTurn]:
        return ()


def _to_nobody(event: SessionEvent) -> None:
    """Nobody listens."""


async def _connect_once(session: Session) -> None:
    """Connect a session, and leave it as soon as the service has taken it.

    Raises:
        ModelError: It could not be connected.
    """
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run)
            await session.wait_ready()
            nursery.cancel_scope.cancel("that is all")
    except* ModelError as failures:
        failure = innermost(failures)
    if failure is not None:
        raise failure


def _failed() -> CallRefused:
    return CallRefused(
        "the server has failed and is about to end", reason="failed", status=503, retry_after_s=10
    )


@contextmanager
def _one_calls_trouble(call: Call) -> Generator[None]:
    """Do something on the way out of a call, which is not worth the other calls if it fails."""
    try:
        yield
    except Exception:
        logger.exception("call not put away whole by a bug of ours", call_sid=call.call_sid)


def _draining() -> CallRefused:
    return CallRefused("the server is draining", reason="draining", status=503, retry_after_s=60)


class Calls:
    """Tickets, and the live and recent calls.

    Args:
        carrier: Places the calls.
        model: Opens their sessions.
        metrics: The process's metrics.
        options: Settings of each call.
        admission: Whether and when a call may be placed.
        records: Keeps what is left of each; None keeps the recent ones only.
        prices: What their cost is estimated with.
        recordings: Records them; None for none.
        ticket_ttl_s: How long a ticket may wait for its stream.
        start_timeout_s: How long a media socket may take to say which call it is.
        recent_calls: How many ended calls stay in memory, for the carrier's late callbacks.
        traces: Where traces of ended calls go.
        strangers: The media sockets that have not shown a ticket yet.
        workers: The other processes of this server.
        callback_wait_s: How long the carrier may say nothing about a call that it has placed until
            it is asked; infinite for as long as it likes.
    """

    def __init__(
        self,
        *,
        carrier: Carrier,
        model: Model,
        metrics: Metrics,
        options: CallOptions,
        admission: Admission | None = None,
        records: Records | None = None,
        prices: Prices | None = None,
        recordings: Recordings | None = None,
        ticket_ttl_s: float = 900.0,
        start_timeout_s: float = 10.0,
        recent_calls: int = 1_000,
        strangers: Strangers | None = None,
        traces: Traces | None = None,
        workers: Workers | None = None,
        callback_wait_s: float = 10.0,
    ) -> None:
        self.carrier = carrier
        self.model = model
        self.metrics = metrics
        self.draining = False
        self._drained: trio.Event | None = None
        self._options = options
        self.admission = admission or Admission(Limits(), metrics)
        self._records = records
        self._prices = prices
        self._recordings = recordings
        for direction in ("inbound", "outbound"):
            for reason in EndReason:
                # From the start, so that the first one is seen as an increase and not as news.
                metrics.calls_ended.labels(direction, reason.value)
        self.strangers = Strangers() if strangers is None else strangers
        self._strays = Sparing()
        self._traces = traces or NoTraces()
        self._workers = workers or Workers()
        self._ticket_ttl_s = ticket_ttl_s
        self._start_timeout_s = start_timeout_s
        self._recent_calls = recent_calls
        self._dialling = 0
        self._live: dict[str, Call] = {}
        self._recent: OrderedDict[str, Call] = OrderedDict()
        self._ended: OrderedDict[str, bool] = OrderedDict()  # whether an apology is still owed
        self._tickets: dict[str, _Ticket] = {}
        self._early = EarlyUpdates()
        self._inquiry = Inquiry(carrier, self.update_status, Patience(callback_wait_s))
        self._empty = trio.Event()
        self._refused_agent = Agent()
        self._paused = trio.Event()
        for kind in Kind:
            metrics.model_refusals.labels(kind.value)
        # Of any size: a call that the carrier has accepted is run, whoever goes away meanwhile.
        self._accepted_in, self._accepted_out = trio.open_memory_channel[Call](math.inf)
        self.has_failed = False
        """Nobody runs calls any more, though nobody has asked for that."""

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run every call, each in its own nursery, until closed and empty, or cancelled."""
        async with trio.open_nursery() as questions:
            async with trio.open_nursery() as nursery:
                task_status.started()
                try:
                    async for call in self._accepted_out:
                        nursery.start_soon(self._run, call)
                        if call.direction == "outbound":
                            questions.start_soon(self._follow, call)
                finally:
                    # Nobody would run another call: it is refused, before anybody's phone rings.
                    self.has_failed = not self.draining
                    while self._accepted_out.statistics().current_buffer_used:
                        nursery.start_soon(self._run, self._accepted_out.receive_nowait())
                    self._accepted_out.close()
            questions.cancel_scope.cancel("the last call has ended")

    async def _run(self, call: Call) -> None:
        try:
            await call.run()
        except* Exception as failures:
            logger.exception(
                "call failed by a bug of ours", call_sid=call.call_sid, exc_info=failures
            )
        finally:
            self._put_away(call)

    def _put_away(self, call: Call) -> None:
        """The call is over: give back what it held, and keep what is left of it."""
        call.finished.set()
        self._live.pop(call.call_sid, None)
        self._recent[call.call_sid] = call
        while len(self._recent) > self._recent_calls:
            self._recent.popitem(last=False)
        self._ended[call.call_sid] = call.apology.may_be_fetched
        # Until then it stays this process's: another one would begin it again.
        forgotten = [
            self._ended.popitem(last=False)[0] for _ in range(len(self._ended) - MAX_ENDED)
        ]
        self._drop_tickets(call)
        with _one_calls_trouble(call):
            self._learn_of_model(call)
        self._keep(call)
        with _one_calls_trouble(call):
            self._traces.call_ended(call.record())
        for call_sid in forgotten:
            with _one_calls_trouble(call):
                self._workers.release(call_sid)
        self._tell_if_empty()
        with _one_calls_trouble(call):
            self._workers.publish()

    # -- the model's account -----------------------------------------------------------------

    def _learn_of_model(self, call: Call) -> None:
        """A call has ended: what it says about the account that all calls share."""
        if call.refusal is not None:
            self._refused_agent = call.conversation.party.agent
            self._pause_calls(call.refusal)
        elif call.conversation.agent_turn:
            self.admission.account_pause.worked()

    def _pause_calls(self, kind: Kind) -> None:
        pause, now = self.admission.account_pause, trio.current_time()
        self.metrics.model_refusals.labels(kind.value).inc()
        if pause.refused(kind, now):
            logger.error(
                "calls pause: the model's service refuses the account",
                kind=kind.value,
                what_to_do=kind.advice,
                tried_in_s=round(pause.try_at - now, 1),
            )
        if pause.kind is not None:
            self.metrics.calls_paused.set(1)
            self._paused.set()
        self._workers.publish()

    async def try_model(self) -> None:
        """While calls pause, try the model without one now and then; runs until cancelled.

        Nobody's phone has to ring for it, and a pause ends whether or not anybody asks for calls.
        """
        pause = self.admission.account_pause
        while True:
            await self._paused.wait()
            while pause.kind is not None:
                await trio.sleep_until(pause.try_at)
                await self._try_model_once()
            self._paused = trio.Event()

    async def _try_model_once(self) -> None:
        pause = self.admission.account_pause
        with trio.move_on_after(TRY_MODEL_S):
            try:
                session = self.model.new_session(self._refused_agent, _Nobody(), _to_nobody)
                await _connect_once(session)
            except ModelError as error:
                if error.refusal is not None:
                    self._pause_calls(error.refusal)
            except Exception:
                # Not the calls' fault, nor their end: it is tried again like any other failure.
                logger.exception("the model could not be tried by a bug of ours")
            else:
                now = trio.current_time()
                paused_s = round(now - pause.since, 1)
                if pause.accepted(now):
                    self.metrics.calls_paused.set(0)
                    logger.info(
                        "calls go on: the model's service takes sessions", paused_s=paused_s
                    )
                    self._workers.publish()
        if trio.current_time() >= pause.try_at:
            pause.not_known(trio.current_time())

    async def _follow(self, call: Call) -> None:
        try:
            await self._inquiry.follow(call)
        except Exception:
            # Of one call, not of the others; it goes on as if the carrier could not be asked.
            logger.exception("question to the carrier failed by a bug of ours")

    def _keep(self, call: Call) -> None:
        if self._records is not None:
            with _one_calls_trouble(call):
                self._records.keep(call.record().as_dict())

    async def aclose(self) -> None:
        """Take no more calls; :meth:`run` returns when the live ones have ended."""
        self.draining = True
        self._workers.publish()
        await self._accepted_in.aclose()

    # -- placing and answering -------------------------------------------------------------

    async def place(
        self,
        destination_number: str,
        agent: Agent,
        *,
        client: str = "",
        max_duration_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Call:
        """Dial a number; the call runs from the moment the carrier has accepted it.

        Args:
            destination_number: E.164.
            agent: Who speaks.
            client: Whose call it is; clients take turns when calls have to wait.
            max_duration_s: The longest it may last, if shorter than the setting.
            metadata: Kept in the record.

        Raises:
            CallRefused: Full, draining, overloaded, or too many wait to be dialled.
            CarrierError: The carrier refused or could not be reached.
        """
        self.check_admission()
        self._dialling += 1
        try:
            await self.admission.wait_turn(client)
            if self.draining:
                raise _draining()
            self.admission.account_pause.check(trio.current_time())  # it may have begun meanwhile
            if self.has_failed:
                raise _failed()
            call = self._new_call("outbound", destination_number, agent, max_duration_s, metadata)
            longest_s = min(max_duration_s or math.inf, self._options.max_duration_s)
            # Once it is sent, a dial request is seen through, whoever goes away: otherwise a
            # phone would ring with nobody behind it. The carrier's own deadline bounds it.
            with trio.CancelScope(shield=True):
                await self._dial(call, destination_number, longest_s)
        finally:
            self._dialling -= 1
            self._tell_if_empty()
        return call

    async def _dial(self, call: Call, number: str, longest_s: float) -> None:
        ticket = self._issue(call)
        try:
            placed = await self.carrier.place_call(
                number,
                ticket=ticket,
                max_duration_s=longest_s,
                detect_machine=self._options.voicemail is not VoicemailPolicy.IGNORE,
            )
        except BaseException as error:
            del self._tickets[ticket]
            if isinstance(error, CarrierError) and error.retry_after_s is not None:
                self.admission.pause_dialling(trio.current_time() + error.retry_after_s)
            known = isinstance(error, CarrierError) and not error.outcome_unknown
            self.metrics.dials.labels("refused" if known else "unknown").inc()
            raise
        self.metrics.dials.labels("accepted").inc()
        call.progress.status = placed.status
        try:
            self._begin(call, placed.call_sid)
        except CallRefused:
            await self.carrier.hang_up(placed.call_sid)
            raise

    async def answer(self, call_sid: str, number: str, agent: Agent) -> str:
        """The document that answers this call; it is idempotent, as webhooks are repeated.

        A call that has its stream, or is over, needs no answer: whoever asks for one has kept a
        request of the carrier's, and gets neither a ticket nor a model session for it.

        Raises:
            CallRefused: Full, draining or overloaded.
        """
        call = self._live.get(call_sid)
        if call_sid in self._ended or (call is not None and call.conversation.line is not None):
            owes_apology = self._ended.get(call_sid, False)
            return self._apology(agent) if owes_apology else self.carrier.hang_up_twiml()
        if call is None:
            try:
                self.check_admission()
            except CallRefused:
                self._workers.release(call_sid)  # another process has chosen this one for it
                raise
            call = self._new_call("inbound", number, agent, None, None)
            self._begin(call, call_sid)
        if call.apology.fetch():
            return self._apology(call.conversation.party.agent)
        return self.carrier.answer_twiml(self._issue(call))

    def refuse(self, refusal: CallRefused, agent: Agent) -> str:
        """The document that refuses an inbound call: a busy tone, or words.

        A busy tone costs nothing and says what it should when another try may do better. While the
        model's account is refused it would not, so the caller is told.
        """
        return self._apology(agent) if refusal.in_words else self.carrier.refuse_twiml()

    def _apology(self, agent: Agent) -> str:
        return self.carrier.say_and_hang_up_twiml(*phrases.apology_of(agent))

    async def go_on(self, request: VoiceRequest, agent: Agent) -> str:
        """The document for a voice webhook that begins no call: a call of ours, or nobody's.

        A call that we have placed is answered, if it has not been. What only reports how a call
        stands is taken for a status callback, and nobody reads the answer. Anything else, as a call
        that somebody else has placed, is ended there, and costs nothing here.

        Raises:
            CallRefused: Never for a call of ours.
        """
        if request.report is not None:
            stray = "status callback came to /twiml: the carrier should post it to /call-status"
            if self.get(request.call_sid) is not None:
                self.update_status(request.report)
        elif request.call_sid in self._live:
            return await self.answer(request.call_sid, request.number, agent)
        else:
            stray = "voice webhook of a call that was not placed here: it is hung up"
        self._strays.log(trio.current_time(), logger.warning, stray)
        return self.carrier.hang_up_twiml()

    def check_admission(self) -> None:
        """Whether the next call would be taken.

        Raises:
            CallRefused: It would not, with the reason.
        """
        if self.draining:
            raise _draining()
        if self.has_failed:
            raise _failed()
        calls = self.live_count + self._workers.live_elsewhere
        self.admission.check(calls, trio.current_time())

    def _new_call(
        self,
        direction: Literal["inbound", "outbound"],
        number: str,
        agent: Agent,
        max_duration_s: float | None,
        metadata: Mapping[str, str] | None,
    ) -> Call:
        options = self._options
        if max_duration_s is not None:
            shorter_s = min(max_duration_s, options.max_duration_s)
            options = replace(options, max_duration_s=shorter_s)
        return Call(
            direction=direction,
            number=number,
            agent=agent,
            carrier=self.carrier,
            model=self.model,
            metrics=self.metrics,
            options=options,
            prices=self._prices,
            recordings=self._recordings,
            metadata=metadata,
        )

    def _begin(self, call: Call, call_sid: str) -> None:
        """Have a call run that the carrier has named; nothing in here waits, or loses it.

        Raises:
            CallRefused: Nobody runs calls any more.
        """
        call.accept(call_sid)
        try:
            self._accepted_in.send_nowait(call)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._drop_tickets(call)
            raise (_failed() if self.has_failed else _draining()) from None
        self._live[call_sid] = call
        with _one_calls_trouble(call):
            self._workers.claim(call_sid)
        for update in self._early.take(call_sid):
            call.update_status(update)

    # -- what the carrier tells ------------------------------------------------------------

    def update_status(self, update: StatusUpdate) -> None:
        """What the carrier says about a call, in any order and any number of times."""
        call = self.get(update.call_sid)
        if call is not None:
            call.update_status(update)
            if call.is_over:  # the carrier's last word may come after the end
                self._keep(call)
        elif update.sequence_number is not None and update.call_sid not in self._ended:
            # It can overtake the answer to our own dial request.
            self._early.add(update)

    def update_machine(self, verdict: MachineVerdict) -> None:
        """Machine detection's verdict, any number of times; about a call that is over, nothing."""
        call = self._live.get(verdict.call_sid)
        if call is not None:
            call.report_machine(verdict)

    def update_transfer(self, update: TransferUpdate) -> str:
        """The document with which the caller's call goes on, as far as the carrier asks for one."""
        call = self._live.get(update.call_sid)
        is_on = call is not None and call.end_reason is None
        if call is not None and is_on and call.handover.report(update.status):
            return self.carrier.answer_twiml(self._issue(call))
        over = self.get(update.call_sid)
        comes_back = update.wants_document and update.status in NOT_REACHED
        if over is not None and comes_back and over.apology.fetch():
            return self._apology(
                over.conversation.party.agent
            )  # the model was lost while the caller was away
        return self.carrier.hang_up_twiml()

    async def serve_stream(self, media: MediaStream, address: str = "") -> None:
        """Find the call that a new media socket belongs to, and serve it until it is over.

        Args:
            media: The socket, accepted.
            address: Where it comes from if nothing has vouched for it yet; see :class:`Strangers`.
        """
        if (claim := await self.claim(media, address)) is not None:
            await claim.call.serve(media, claim.started)

    async def claim(self, media: MediaStream, address: str = "") -> Claim | None:
        """Find the call that a new media socket belongs to; whoever has no ticket is sent away.

        Args:
            media: The socket, accepted.
            address: Where it comes from if nothing has vouched for it yet; see :class:`Strangers`.
        """
        kind, refusal = "no-start", "no start message in time"
        call = started = None
        with trio.move_on_after(self._start_timeout_s) as waiting:
            try:
                with self.strangers.among(address, waiting):
                    started = await media.receive_start()
                if started is None:
                    return None  # it closed without ever starting: nobody is there to be told
                kind, refusal = "ticket", "unknown, used or expired ticket"
                call = await self._claim(started)
            except CarrierProtocolError as error:
                kind, refusal = "protocol", error.reason
        if started is None or call is None:
            self.metrics.strangers_refused.labels(f"stream-{kind}").inc()
            log_stranger(logger.warning, "media stream refused", reason=refusal)
            with trio.move_on_after(self._options.close_timeout_s), suppress(StreamEnded):
                await media.aclose(POLICY_VIOLATION, refusal)
            return None
        return Claim(call, started)

    async def _claim(self, started: StreamStarted) -> Call | None:
        held = self._tickets.pop(started.parameters.get("ticket", ""), None)
        if held is None or held.expires_at <= started.received_at:
            return None
        # The phone may be answered before our own dial request is.
        await held.call.accepted.wait()
        if held.call.call_sid != started.call_sid:
            return None
        self._drop_tickets(held.call)  # those of repeated webhooks
        return held.call

    def _drop_tickets(self, call: Call) -> None:
        for name in self._unused_tickets(call):
            del self._tickets[name]

    def _unused_tickets(self, call: Call) -> list[str]:
        return [name for name, held in self._tickets.items() if held.call is call]

    def _issue(self, call: Call) -> str:
        now = trio.current_time()
        for name in [name for name, held in self._tickets.items() if held.expires_at <= now]:
            del self._tickets[name]
        unused = self._unused_tickets(call)
        if len(unused) >= MAX_TICKETS:
            return unused[-1]
        ticket = secrets.token_urlsafe(16)  # 128 bits
        self._tickets[ticket] = _Ticket(call, now + self._ticket_ttl_s)
        return ticket

    # -- looking and ending ----------------------------------------------------------------

    def get(self, call_sid: str) -> Call | None:
        """A live or recent call."""
        return self._live.get(call_sid) or self._recent.get(call_sid)

    def all(self) -> Iterable[Call]:
        """Live calls, then recent ones, newest first."""
        yield from reversed(self._live.values())
        yield from reversed(self._recent.values())

    async def record(self, call_sid: str) -> dict[str, Any] | None:
        """Everything known about a call, however long ago it was; None if it was never heard of.

        Raises:
            RecordsUnavailable: It is not in memory, and the database cannot be asked.
        """
        if (call := self.get(call_sid)) is not None:
            return call.record().as_dict()
        return None if self._records is None else await self._records.get(call_sid)

    async def page(self, limit: int, before: Cursor | None = None) -> Page:
        """Summaries of calls, live ones among them, newest first.

        Args:
            limit: How many at most.
            before: Where the page before this one ended; None for the first.
        """
        # Memory first: what is written to the database meanwhile is then seen at least once.
        found = {call.call_sid: call.record(full=False).as_dict() for call in self.all()}
        is_complete, more = True, False
        if self._records is not None:
            found = {record["call_sid"]: record for record in self._records.unsaved()} | found
            try:
                kept = await self._records.page(limit, before)
            except RecordsUnavailable:
                kept, is_complete = [], False
            more = len(kept) == limit
            found = {record["call_sid"]: record for record in kept} | found
        after = [row for row in found.values() if before is None or Cursor.of(row) < before]
        after.sort(key=Cursor.of, reverse=True)
        rows = after[:limit]
        more = more or len(after) > limit
        return Page(rows, more, is_complete)

    @property
    def live_count(self) -> int:
        """Calls that wait to be dialled, ring or talk."""
        return len(self._live) + self._dialling

    def load(self) -> Load:
        """How this process is doing, for the others of its server."""
        try:
            self.check_admission()
        except CallRefused:
            accepts = False
        else:
            accepts = True
        return Load(
            live=self.live_count,
            running=len(self._live),
            waiting=self.admission.waiting_count,
            accepts=accepts,
            draining=self.draining,
            dials_in_s=self.admission.dials_in_s(trio.current_time()),
            dial_every_s=self.admission.dial_every_s,
        )

    async def drain(self, timeout_s: float) -> None:
        """Refuse new calls, let live ones finish; at the deadline the rest say goodbye and end.

        Whoever asks again while it goes on waits for the end of the first drain.
        """
        if self._drained is not None:
            await self._drained.wait()
            return
        self._drained = trio.Event()
        self.draining = True
        self._workers.publish()
        last = list(self._live.values())
        logger.info("draining", live=self.live_count)
        with trio.move_on_after(timeout_s):
            await self._wait_empty()
        for call in list(self._live.values()):
            with _one_calls_trouble(call):
                call.farewell.begin(EndReason.DRAINED)
        with trio.move_on_after(
            self._options.farewell_timeout_s + 2 * self._options.close_timeout_s
        ):
            await self._wait_empty()
        # What began to be dialled before the drain may have been accepted after it.
        for call in list(self._live.values()):
            call.end(EndReason.DRAINED)
        with trio.move_on_after(2 * self._options.close_timeout_s):
            await self._wait_empty()
        # A listener that is closed now would miss the carrier's last word: the minutes it bills.
        with trio.move_on_after(self._options.close_timeout_s):
            for call in last:
                await call.progress.settled.wait()
        logger.info("drained", live=self.live_count)
        self._drained.set()

    async def _wait_empty(self) -> None:
        while self.live_count:
            await self._empty.wait()

    def _tell_if_empty(self) -> None:
        if not self.live_count:
            self._empty.set()
            self._empty = trio.Event()
