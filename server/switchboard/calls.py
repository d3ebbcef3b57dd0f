"""Every call of this process: who may be placed, which stream belongs to which, what is kept.

Each call runs in a nursery of its own inside :meth:`Calls.run`; a call that fails takes nothing
with it. A media socket proves its call by a single-use ticket that the carrier was told. Where a
server has several processes, limits are for all of them, and each says which calls are its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

import structlog
import trio
from typing_extensions import Unpack

from server.agent.agent import Agent
from server.call.call import Call
from server.call.report.drawing import Drawing
from server.call.report.ended import EndedCall
from server.call.takeover.state import CallState
from server.carrier import (
    NOT_REACHED,
    Carrier,
    MachineVerdict,
    MediaStream,
    StatusUpdate,
    TransferUpdate,
    VoiceRequest,
)
from server.carrier.webhooks import ConnectStream, EndCall, Reply
from server.cluster.cluster import Cluster
from server.cluster.registry import Load
from server.dialogue.endings import EndReason
from server.dialogue.voicemail import VoicemailPolicy
from server.errors import (
    CallRefused,
    CarrierError,
    CarrierProtocolError,
    StreamEnded,
)
from server.hooks.trio_clock import missed_s
from server.logs import Sparing, log_stranger
from server.records.database.tables import FIRST_GENERATION
from server.records.store import Records
from server.records.traces import NoTraces, Traces
from server.switchboard.admission import Admission, Limits, draining, failed
from server.switchboard.early import EarlyUpdates
from server.switchboard.inquiry import Inquiry, Patience
from server.switchboard.making import CallMaker, Wishes, apology_of, one_calls_trouble, setup_of
from server.switchboard.model_trial import ModelTrial
from server.switchboard.register import CallIsOver, Register
from server.switchboard.strangers import Strangers
from server.switchboard.tickets import Claim, Tickets

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

POLICY_VIOLATION = 1008


class Calls:
    """Places and answers calls, runs them, and tells each what the carrier reports of it.

    Args:
        carrier: Places the calls.
        maker: Makes them.
        admission: Whether and when a call may be placed.
        records: Keeps what is left of each; None keeps the recent ones only.
        ticket_ttl_s: How long a ticket may wait for its stream.
        start_timeout_s: How long a media socket may take to say which call it is.
        recent_calls: How many ended calls stay in memory, for the carrier's late callbacks.
        traces: Where traces of ended calls go.
        strangers: The media sockets that have not shown a ticket yet.
        cluster: This process among those of its server.
        drawing: Draws from transcripts what outcomes lack; None for nobody.
        callback_wait_s: How long the carrier may say nothing of a call before it is asked.
    """

    def __init__(
        self,
        *,
        carrier: Carrier,
        maker: CallMaker,
        admission: Admission | None = None,
        records: Records | None = None,
        ticket_ttl_s: float = 900.0,
        start_timeout_s: float = 10.0,
        recent_calls: int = 200,
        strangers: Strangers | None = None,
        traces: Traces | None = None,
        drawing: Drawing | None = None,
        cluster: Cluster | None = None,
        callback_wait_s: float = 10.0,
    ) -> None:
        self.carrier = carrier
        self._new = maker
        model, metrics = self.model, self.metrics = maker.model, maker.metrics
        self.draining = False
        self._drained: trio.Event | None = None
        self._options = maker.options
        self.admission = admission or Admission(Limits(), metrics)
        for direction in ("inbound", "outbound"):
            for reason in EndReason:
                # From the start, so that the first one is seen as an increase and not as news.
                metrics.calls_ended.labels(direction, reason.value)
        self.strangers = Strangers() if strangers is None else strangers
        self._strays = Sparing()
        self._traces = traces or NoTraces()
        self._drawing = drawing
        self._cluster = cluster or Cluster()
        self.register = Register(records, recent_calls)
        self.tickets = Tickets(ticket_ttl_s)
        pause = self.admission.account_pause
        self.model_trial = ModelTrial(model, pause, metrics, self._cluster, maker.find_agent)
        self._start_timeout_s = start_timeout_s
        self._dialling = 0
        self._early = EarlyUpdates()
        patience = Patience(callback_wait_s)
        self._inquiry = Inquiry(carrier, self.update_status, patience, maker.is_current)
        self._empty = trio.Event()
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
                        nursery.start_soon(self._run, call, questions)
                        if call.direction == "outbound":
                            questions.start_soon(self._inquiry.follow, call)
                        del call  # or the last one would stay until the next
                finally:
                    # Nobody would run another call: it is refused, before anybody's phone rings.
                    self.has_failed = not self.draining
                    take = self._accepted_out.receive_nowait
                    while self._accepted_out.statistics().current_buffer_used:
                        nursery.start_soon(self._run, take(), questions)
                    self._accepted_out.close()
            questions.cancel_scope.cancel("the last call has ended")

    async def _run(self, call: Call, questions: trio.Nursery) -> None:
        try:
            await call.run()
        except* Exception as failures:
            logger.exception(
                "call failed by a bug of ours", call_sid=call.call_sid, exc_info=failures
            )
        finally:
            self._put_away(call)
            if call.is_unended and call.direction == "inbound":
                questions.start_soon(self._inquiry.follow, call)

    def _put_away(self, call: Call) -> None:
        """The call is over: give back what it held, and keep what is left of it."""
        call.finished.set()
        is_moved = call.end_reason is EndReason.MOVED
        self.tickets.forget(call)
        record = None
        with one_calls_trouble(call):
            if not is_moved:  # else whoever has it writes its record
                record = call.record()
                self.register.tell_turns(call)
        let_go = partial(
            self._cluster.let_go, call.call_sid, call.ownership.generation, is_moved=is_moved
        )
        if not is_moved:
            forgotten, left = self.register.end(call, record, let_go)
        else:
            forgotten, left = (), None
            self.register.forget(call)
            with one_calls_trouble(call):
                let_go()
        with one_calls_trouble(call):
            self.model_trial.learn(call)
        with one_calls_trouble(call):
            if record is not None:
                self._traces.call_ended(record)
        with one_calls_trouble(call):
            if left is not None and self._drawing is not None:
                agent = call.conversation.party.agent
                drawn = partial(self.register.outcome_drawn, left, agent.events_url)
                self._drawing.ended(call.conversation.notes, agent.name, drawn)
        for call_sid in forgotten:
            with one_calls_trouble(call):
                self._cluster.release(call_sid)
        with one_calls_trouble(call):
            recorder = call.conversation.let_go()
            if recorder is not None and left is not None:
                self.register.follow(recorder, left)
        self._tell_if_empty()
        with one_calls_trouble(call):
            self._cluster.publish()

    async def aclose(self) -> None:
        """Take no more calls; :meth:`run` returns when the live ones have ended."""
        self.draining = True
        self._cluster.publish()
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
        on_dial: Callable[[], None] = lambda: None,
    ) -> Call:
        """Dial a number; the call runs from the moment the carrier has accepted it.

        Args:
            destination_number: E.164.
            agent: Who speaks.
            client: Whose call it is; clients take turns when calls have to wait.
            max_duration_s: The longest it may last, if shorter than the setting.
            metadata: Kept in the record.
            on_dial: Told when the carrier is about to be asked.

        Raises:
            CallRefused: Full, draining, overloaded, or too many wait to be dialled.
            CarrierError: The carrier refused or could not be reached.
        """
        self.check_admission()
        self._dialling += 1
        try:
            await self.admission.wait_turn(client)
            if self.draining:
                raise draining()
            self.admission.account_pause.check(trio.current_time())  # it may have begun meanwhile
            if self.has_failed:
                raise failed()
            call = self._new.make(
                self.carrier,
                "outbound",
                destination_number,
                agent,
                max_duration_s,
                metadata,
                client=client,
            )
            on_dial()
            # Once it is sent, a dial request is seen through, whoever goes away: otherwise a
            # phone would ring with nobody behind it. The carrier's own deadline bounds it.
            try:
                with trio.CancelScope(shield=True):
                    await self._dial(call)
            except BaseException:
                call.conversation.let_go()
                raise
        finally:
            self._dialling -= 1
            self._tell_if_empty()
        return call

    async def _dial(self, call: Call) -> None:
        ticket, options = self.tickets.issue(call, trio.current_time()), call.conversation.options
        try:
            placed = await self.carrier.place_call(
                call.number,
                ticket=ticket,
                max_duration_s=options.max_duration_s,
                detect_machine=options.voicemail is not VoicemailPolicy.IGNORE,
            )
        except BaseException as error:
            self.tickets.drop(call)
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

    async def answer(
        self, call_sid: str, number: str, agent: Agent, **wishes: Unpack[Wishes]
    ) -> Reply:
        """What answers this call; it is idempotent, as webhooks are repeated.

        A call that has had its stream, or is over, needs no answer: whoever asks for one has kept a
        request of the carrier's, and gets neither a ticket nor a model session for it.

        Args:
            call_sid: The call.
            number: Who calls, or is called.
            agent: Who speaks.
            wishes: What may be different about it.

        Raises:
            CallRefused: Full, draining or overloaded.
        """
        call = self.register.get_live(call_sid)
        if self.register.has_ended(call_sid) or (
            call is not None and call.conversation.answered_at is not None
        ):
            return self.register.end_of(call_sid)
        if call is None:
            try:
                self.check_admission()
                call = self._new.make(self.carrier, "inbound", number, agent, **wishes)
                self._begin(call, call_sid)
            except CallRefused:
                # It was to be ours. Should it be asked about again, there may be room for it.
                self._cluster.release(call_sid, wishes.get("generation", 1), has_begun=False)
                raise
        if call.apology.fetch():
            return apology_of(call.conversation.party.agent)
        return ConnectStream(self.tickets.issue(call, trio.current_time()))

    async def go_on(self, request: VoiceRequest, agent: Agent) -> Reply:
        """The reply to a voice webhook that begins no call: a call of ours, or nobody's.

        A call that we have placed is answered, if it has not been. What only reports how a call
        stands is taken for a status callback, and nobody reads the answer. Anything else, as a call
        that somebody else has placed, is ended there, and costs nothing here.

        Raises:
            CallRefused: Never for a call of ours.
        """
        if request.report is not None:
            stray = "status callback came to the voice webhook: the carrier has the wrong address"
            if self.register.get(request.call_sid) is not None:
                self.update_status(request.report)
        elif self.register.get_live(request.call_sid) is not None:
            return await self.answer(request.call_sid, request.number, agent)
        else:
            stray = "voice webhook of a call that was not placed here: it is hung up"
        self._strays.log(trio.current_time(), logger.warning, stray)
        return EndCall()

    async def resume(
        self, call_sid: str, agent: Agent, *, is_orphan: bool = False, by_caller: bool = False
    ) -> Reply:
        """How a call goes on whose stream has ended, by the carrier's word: only a live one does.

        Args:
            call_sid: The call.
            agent: Who apologises for a call that is not known here.
            is_orphan: Whether another process had it, which is gone.
            by_caller: See :meth:`server.call.hearing.Hearing.wait_line_over`.
        """
        call = self.register.get_live(call_sid)
        if call is None:
            return apology_of(agent) if is_orphan else self.register.end_of(call_sid)
        if call.apology.fetch():
            return apology_of(call.conversation.party.agent)
        if not call.handover.has_stayed():  # then the carrier asks about the transfer, not this
            return EndCall()
        with call.apology.may_fetch():
            is_over = await call.hearing.wait_line_over(by_caller=by_caller)
            if call.end_reason is not None and call.apology.fetch(line_is_over=is_over):
                return apology_of(call.conversation.party.agent)  # it has failed meanwhile
        if not is_over or call.end_reason is not None:
            return EndCall()
        ticket = self.tickets.issue_again(call, trio.current_time())
        if ticket is None:
            call.end(EndReason.CALLER_GONE, "its stream was lost again and again")
            return EndCall()
        return ConnectStream(ticket)

    def take_up(self, call_sid: str, state: bytes, generation: int, agent: Agent) -> Call:
        """Go on with a call that another process had: its line is lost, and waits for its stream.

        Whoever asks has seized it. It is greeted no more, and its model knows what has been said;
        see :meth:`resume` for the stream.

        Args:
            call_sid: The call.
            state: What its last owner has left of it.
            generation: For the how-manieth time it is somebody's.
            agent: Who answers here: has the tools, and the recording of a greeting.

        Raises:
            StateUnreadable: Nobody can go on from there.
            CallIsOver: It has ended here.
            CallRefused: Nobody runs calls here any more; see :meth:`check_takeover` for before.
        """
        call = self.register.get_live(call_sid)
        if call is not None and call.end_reason is None and call.ownership.generation >= generation:
            return call
        if self.register.has_ended(call_sid, generation - 1):
            raise CallIsOver("the call is over")
        left = CallState.decode(state)
        if call is not None:  # it was ours before, and we were not told that we had lost it
            call.conversation.disown()
            self.register.forget(call)
        call = self._new.go_on(self.carrier, left, generation, agent)
        self._begin(call, call_sid)
        return call

    def check_takeover(self) -> None:
        """Refuse to go on with another process's call, if this one cannot.

        Raises:
            CallRefused: It cannot, with the reason.
        """
        if self.draining:
            raise draining()
        if self.has_failed:
            raise failed()
        self.admission.check_takeover(self.live_count)

    def check_admission(self) -> None:
        """Refuse the next call if it could not be taken now.

        Raises:
            CallRefused: It could not, with the reason.
        """
        if self.draining:
            raise draining()
        if self.has_failed:
            raise failed()
        calls = self.live_count + self._cluster.live_elsewhere
        self.admission.check(calls, trio.current_time())

    def _begin(self, call: Call, call_sid: str) -> None:
        """Have a call run that the carrier has named; nothing in here waits, or loses it.

        Raises:
            CallRefused: Nobody runs calls any more.
        """
        call.accept(call_sid)
        try:
            self._accepted_in.send_nowait(call)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.tickets.drop(call)
            raise (failed() if self.has_failed else draining()) from None
        self.register.add(call)
        self.admission.setups.begin(partial(setup_of, call), trio.current_time() + missed_s())
        with one_calls_trouble(call):
            self._cluster.hold(call_sid, call.ownership.generation)
        for update in self._early.take(call_sid):
            call.update_status(update)

    # -- what the carrier tells ------------------------------------------------------------

    def update_status(self, update: StatusUpdate) -> None:
        """What the carrier says about a call, in any order and any number of times."""
        call = self.register.get(update.call_sid)
        if isinstance(call, EndedCall):  # the carrier's last word may come after the end
            self.register.update(call, update)
        elif call is not None:
            call.update_status(update)
        elif update.sequence_number is not None and not self.register.has_ended(update.call_sid):
            # It can overtake the answer to our own dial request.
            self._early.add(update)

    def update_machine(self, verdict: MachineVerdict) -> None:
        """Machine detection's verdict, any number of times; about a call that is over, nothing."""
        call = self.register.get_live(verdict.call_sid)
        if call is not None:
            call.report_machine(verdict)

    async def update_transfer(self, update: TransferUpdate, agent: Agent) -> Reply:
        """How the caller's call goes on, as far as the carrier asks for that.

        Where it is on no transfer, that nobody was reached says nothing of its line: who repeats
        it may have kept a request of the carrier's, and is answered like any that asks how it goes
        on; see :meth:`resume`.

        Args:
            update: What the carrier says.
            agent: Who apologises for a call that is not known here.
        """
        call = self.register.get_live(update.call_sid)
        is_on = call is not None and call.end_reason is None
        if call is not None and is_on and call.handover.report(update.status, update.leg):
            return ConnectStream(self.tickets.issue(call, trio.current_time()))
        if update.wants_document and update.status in NOT_REACHED:
            return await self.resume(update.call_sid, agent)
        return EndCall()

    async def claim(self, media: MediaStream, address: str = "") -> Claim | None:
        """Find the call that a new media socket belongs to; whoever has no ticket is sent away.

        Args:
            media: The socket, accepted.
            address: Where it comes from, if the carrier has not signed it; see :class:`Strangers`.
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
                call = await self.tickets.claim(started)
            except CarrierProtocolError as error:
                kind, refusal = "protocol", error.reason
        if started is None or call is None:
            self.metrics.strangers_refused.labels(f"stream-{kind}").inc()
            log_stranger(logger.warning, "media stream refused", reason=refusal)
            with trio.move_on_after(self._options.close_timeout_s), suppress(StreamEnded):
                await media.aclose(POLICY_VIOLATION, refusal)
            return None
        ownership = call.ownership
        is_answer = call.conversation.answered_at is None and call.end_reason is None
        if is_answer and ownership.generation > FIRST_GENERATION:
            # Whose it is could not be said when it began, and another may have it as much as we;
            # the caller is here. One that ends is given back at the generation that it has.
            ownership.generation += 1
            self._cluster.hold(call.call_sid, ownership.generation)
        return Claim(call, started)

    # -- how full it is, and its end -------------------------------------------------------

    @property
    def live_count(self) -> int:
        """Calls that wait to be dialled, ring or talk."""
        return self.register.live_count + self._dialling

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
            running=self.register.live_count,
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
        self._cluster.publish()
        last = list(self.register.live)
        logger.info("draining", live=self.live_count, goodbye_in_s=timeout_s)
        with trio.move_on_after(timeout_s):
            await self.wait_empty()
        for call in list(self.register.live):
            with one_calls_trouble(call):
                call.farewell.begin(EndReason.DRAINED)
        goodbye_s = self._options.farewell_timeout_s + 2 * self._options.close_timeout_s
        with trio.move_on_after(goodbye_s):
            await self.wait_empty()
        # What began to be dialled before the drain may have been accepted after it.
        for call in list(self.register.live):
            call.end(EndReason.DRAINED)
        with trio.move_on_after(2 * self._options.close_timeout_s):
            await self.wait_empty()
        # A listener that is closed now would miss the carrier's last word: the minutes it bills.
        with trio.move_on_after(self._options.close_timeout_s):
            for call in last:
                await call.progress.settled.wait()
        logger.info("drained", live=self.live_count)
        self._drained.set()

    async def wait_empty(self) -> None:
        """Wait until no call is live."""
        while self.live_count:
            await self._empty.wait()

    def _tell_if_empty(self) -> None:
        if not self.live_count:
            self._empty.set()
            self._empty = trio.Event()
