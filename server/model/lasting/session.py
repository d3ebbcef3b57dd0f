"""One session of as many connections as a call needs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import structlog
import trio

from codec import MulawDecoder
from server.agent import phrases
from server.agent.agent import Agent
from server.errors import ModelError
from server.logs import Sparing
from server.media.words import SoundPath
from server.model import (
    CALLER_RATE_HZ,
    AgentAudio,
    CallerTranscript,
    Conversation,
    EventListener,
    GenerationComplete,
    GoingAway,
    Interrupted,
    Reconnected,
    ResumptionHandle,
    SessionEvent,
    Standing,
    ToolCallsCancelled,
    ToolCallsRequested,
    ToolResult,
    TurnComplete,
    Way,
)
from server.model.lasting.connection import Connection, Service
from server.model.lasting.heard import AgentSide, ToolCallsMade
from server.model.lasting.plan import Attempt, ConnectionPlan, State
from server.model.lasting.told_turns import MAX_BEFORE_S, ToldTurns
from server.model.lasting.unanswered import (
    CERTAIN_AFTER_S,
    MAX_INPUT_BYTES,
    PCM_BYTES_PER_S,
    Edge,
    Input,
    Passed,
    UnansweredInput,
)
from server.signal import Once, Signal

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

ONSET_S = 0.3
"""What the caller has begun to say may not be known for speech yet: a sound is enough to wait …"""
NOISE_POLLS = 50
"""… but not for ever: there are lines on which it is never silent."""
MAX_BEFORE_PAYLOAD = int(MAX_BEFORE_S * 8_000)
STALL_S = 5.0
"""A message that cannot be sent for this long was sent into a dead connection."""


class LastingSession:
    """A :class:`server.model.Session`; made by :class:`~server.model.lasting.model.LastingModel`.

    Its one task, :meth:`run`, makes and leaves the connections. On a wire nothing else stands
    between whoever sends and the socket; any other connection has a task that reads it and one
    that writes to it. It is long because it is two connections' worth: the one that is used, and
    the way to the next.
    """

    def __init__(
        self,
        services: tuple[Service, Service | None],
        agent: Agent,
        conversation: Conversation,
        on_event: EventListener,
        plan: ConnectionPlan,
        refusals_told: Sparing | None = None,
        first_turn: int = 1,
    ) -> None:
        self._refusals_told = refusals_told or Sparing()
        self._services = services
        self._agent = agent
        self._conversation = conversation
        self._tell = on_event
        self._plan = plan
        self._connection: Connection | None = None
        self.text_interrupts = False  # of the connection that was used last
        self._relay: SoundPath | None = None
        self._joined: Connection | None = None  # whose socket the relay's path uses
        self._changed = Signal()  # something that others wait for
        self._opening = trio.CancelScope()  # of the attempt that is made

        self._input = UnansweredInput()
        self._turns = ToldTurns(are_wanted=agent.turn_end == "local")
        self._repeating: MulawDecoder | None = None
        self._lost_bytes_told = 0
        self._wanted = Once()  # there is something to write, if a task has to do that
        self._note_waiting = ""  # for that task
        self._is_sending = False  # that task is at it

        self._agent_side = AgentSide(first_turn - 1)
        self._words_reported = False  # of what the agent has not answered yet
        self._is_resumable = False
        self._noises = 0  # times when a sound alone was in the way of a rotation
        self._calls = ToolCallsMade()
        self._has_results = False  # sent since the agent was last heard

    async def run(self) -> None:
        """Make and leave connections until cancelled; see :meth:`server.model.Session.run`."""
        plan = self._plan
        plan.start(trio.current_time())
        while plan.state is not State.ENDED:
            with trio.move_on_at(plan.open_at) as waiting:
                await self._changed.next().wait()
            if not waiting.cancelled_caught:
                continue  # it may have come to be another time
            attempt = plan.begin()
            opening = self._opening = trio.CancelScope(deadline=attempt.give_up_at)
            try:
                with opening:
                    async with _service(self._services, attempt.on_fallback).open_connection(
                        self._agent,
                        plan.since_handle.story(self._conversation),
                        handle=attempt.handle,
                        first_turn=self._agent_side.turn + 1,
                    ) as connection:
                        if opening.cancel_called:  # in the pass in which it was ready
                            raise _late()
                        opening.deadline = math.inf
                        await self._use(connection, attempt)
            except ModelError as error:
                plan.failed(error, trio.current_time())
                logger.warning("model connection failed", error=error.loggable)
                if attempt.way is not Way.FALLBACK:
                    _tell_refusal(error, plan, self._refusals_told)
            else:
                if opening.cancelled_caught:
                    plan.failed(_late(), trio.current_time())
                else:
                    plan.closed(trio.current_time())
        assert plan.error is not None
        try:
            raise plan.error
        finally:
            plan.error = None  # it has passed this frame, which knows the plan

    async def _use(self, connection: Connection, attempt: Attempt) -> None:
        """Stay on a connection for as long as the plan says."""
        plan = self._plan
        now = trio.current_time()
        plan.opened(now)
        repeated_bytes = self._input.rewind(resumed=attempt.way is Way.RESUME)
        self._repeating, self._has_results = None, False
        self._turns.opened(connection)
        if self._turns.is_on:
            self._input.put(Edge.BEGINS)  # if nothing of it is to be said again
        note = plan.since_handle.opened(
            self._conversation,
            self._agent_side.turn,
            resumed=attempt.way is Way.RESUME,
            takes_notes=connection.note_message("") is not None,
        )
        self._connection = connection
        self.text_interrupts = connection.text_interrupts
        lost_bytes = self._input.lost_bytes - self._lost_bytes_told
        self._lost_bytes_told += lost_bytes
        if plan.opens > 1 or plan.goes_on:
            news = Reconnected(
                reason=plan.reason,
                way=attempt.way,
                model=_service(self._services, attempt.on_fallback).name,
                gap_s=now - plan.left_at,
                lost_s=lost_bytes / PCM_BYTES_PER_S,
                repeated_s=repeated_bytes / PCM_BYTES_PER_S,
                words_repeated=(
                    repeated_bytes > 0 and self._words_reported and self._input.reaches_back
                ),
            )
            logger.info("model reconnected", reason=news.reason, way=news.way, gap_s=news.gap_s)
            self._tell(news)
        said_again = self._input.has_sound() or self._calls.are_open
        if self._agent_side.was_cut_off and not said_again:
            self._input.put(phrases.CUT_OFF)  # what it was answering is no longer here
        self._agent_side.was_cut_off = False
        self._is_resumable = attempt.way is Way.RESUME
        self._noises = 0
        self._changed.set()
        try:
            if note:
                self.send_note(note)  # before all that is said again
            if connection.is_wire:
                connection.listen(partial(self._take, connection))
                self._flush()
                await self._stay()
            else:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read, connection)
                    nursery.start_soon(self._write, connection)
                    await self._stay()
                    nursery.cancel_scope.cancel()
        finally:
            self._connection = None
            self._let_pass()
            self._is_sending = False
            self._note_waiting = ""
        if (ended := self._agent_side.connection_lost()) is not None:
            self._tell(ended)

    async def _stay(self) -> None:
        """Wait until the plan says that the connection is to be left."""
        plan = self._plan
        while True:
            changed = self._changed.next()
            now = trio.current_time()
            plan.tick(now, self._is_quiet)
            if not plan.is_open:
                self._let_pass()
                return
            with trio.move_on_at(plan.wakes_at(now)):
                await changed.wait()

    @property
    def standing(self) -> Standing:
        """How far it has come."""
        plan = self._plan
        service = _service(self._services, plan.on_fallback)
        return Standing(
            self._agent_side.turn, plan.handle, service.name, plan.on_fallback, service.key_name
        )

    async def wait_ready(self) -> None:
        """Wait until the service has taken the first connection and its set-up."""
        await self._changed.until(lambda: self.is_ready)

    @property
    def is_ready(self) -> bool:
        """True once the service has taken a first connection and its set-up."""
        return self._plan.opens > 0

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection just now, so that what is sent need not wait for one."""
        return self._connection is not None and self._plan.is_open

    @property
    def lost_s(self) -> float:
        """Seconds of caller audio that made room for newer before it was ever sent."""
        return self._input.lost_bytes / PCM_BYTES_PER_S

    def _lost(self, connection: Connection, error: ModelError) -> None:
        if connection is self._connection and self._plan.is_open:
            way = self._plan.way
            self._plan.lost(error, trio.current_time())
            self._let_pass()
            logger.warning("model connection lost", error=error.loggable)
            if way is not Way.FALLBACK:
                _tell_refusal(error, self._plan, self._refusals_told)
            self._changed.set()

    def leave(self) -> None:
        """The call is over: push nothing more, and let go of it."""
        self._tell = _tell_nobody
        del self._conversation

    # The media path, which sends caller audio itself while nothing stands in its way.

    def join(self, relay: SoundPath) -> None:
        """Let the relay's path use every connection in its turn."""
        self._relay = relay
        relay.path.keep_sent = True
        relay.path.model_ready = False
        self._let_pass()

    def _let_pass(self) -> None:
        """Let the path use the connection, or not, as things stand now."""
        relay = self._relay
        if relay is None:
            return
        connection = self._connection if self._plan.is_open else None
        if self._joined is not None and self._joined is not connection:
            self.note_passed()
            self._joined.leave(relay)
            self._joined = None
        if connection is not None and self._joined is None and connection.join(relay):
            self._joined = connection
        held_back = self._turns.holds_back(connection)
        relay.path.keep_newest_bytes = MAX_BEFORE_PAYLOAD if held_back else 0
        ready = self._joined is not None and not self._input.is_waiting
        relay.path.model_ready = ready and not held_back

    def note_passed(self) -> None:
        """Write down what the path has sent: it may have to be said again."""
        if self._relay is not None and (payload := self._relay.path.take_sent()):
            self._input.passed(payload)

    @property
    def is_drained(self) -> bool:
        """Whether all that has come has been told, so that audio may be followed."""
        return self._joined is not None and self._joined.is_drained

    def _is_quiet(self) -> bool:
        """True if the connection can be changed now without anybody's noticing."""
        self.note_passed()
        if (
            self._agent_side.is_busy
            or self._calls.are_open
            or self._turns.is_on
            or not (self._is_resumable or self._plan.handle is None)
            or not self._conversation.is_quiet()
        ):
            return False
        if self._input.sounded_within(ONSET_S):
            self._noises += 1
            return self._noises > NOISE_POLLS
        return True

    # Receiving.

    async def _read(self, connection: Connection) -> None:
        """Receive what a connection that is no wire brings, until it is lost or left."""
        try:
            while True:
                self._take(connection, await connection.receive())
        except ModelError as error:
            self._lost(connection, error)

    def _take(self, connection: Connection, event: SessionEvent | ModelError) -> None:
        """An event has come, or the end of the connection."""
        if isinstance(event, ModelError):
            self._lost(connection, event)
        elif connection is self._connection:
            self._note(event)
            self._tell(event)

    def _note(self, event: SessionEvent) -> None:
        """Keep account of what is answered, what can be resumed, and which turn it is."""
        self.note_passed()
        side, unanswered = self._agent_side, self._input
        turn, spoke, cut = side.turn, side.is_speaking, side.is_cut
        answered: int | None = None  # up to where in the input
        side.note(event)
        match event:
            case AgentAudio() if not spoke or side.turn != turn or self._has_results:
                # Some models go on with a turn that has called, when they have the results.
                side.answers_up_to = unanswered.sent_up_to()
                self._has_results = False
            case GenerationComplete() if spoke:
                self._plan.note_answer()
                answered = side.answers_up_to
            case Interrupted() if spoke:
                answered = side.answers_up_to
            case TurnComplete() if spoke and not cut and not self._has_results:
                # One that ends when its functions' results are out has not answered those.
                answered = unanswered.sent_up_to(CERTAIN_AFTER_S)
            case ToolCallsRequested(calls=calls):
                # To say it again would have the functions called twice.
                answered = unanswered.sent_up_to()
                self._calls.requested(calls, self._plan.opens)
            case ToolCallsCancelled(ids=ids):
                self._calls.cancelled(ids)
            case ResumptionHandle(handle=handle):
                self._plan.note_handle(handle)
                self._is_resumable = handle is not None
                if handle is not None:
                    unanswered.remembered(unanswered.sent_up_to(CERTAIN_AFTER_S))
                    self._plan.since_handle.handle_came(side.turn)
            case GoingAway(time_left_s=time_left_s):
                self._plan.going_away(time_left_s, trio.current_time())
                self._changed.set()
            case CallerTranscript():
                self._words_reported = True
            case _:
                pass
        if answered is not None:
            results = unanswered.answered(answered)
            self._plan.since_handle.answered(self._calls.done(results))
            self._words_reported = False

    # Sending. Everything goes through the same queue, so it arrives in the order it was said.

    def send_audio(self, pcm: bytes) -> bool:
        """Send caller audio; what cannot be sent yet is kept, thirteen seconds of it."""
        self.note_passed()
        if self._turns.holds_back(self._connection):
            self._turns.keep(pcm)
            return False
        is_sent = not pcm and self._flush()
        for start in range(0, len(pcm), MAX_INPUT_BYTES):
            # Each goes before the next is put: what has been held for long comes all at once.
            self._input.put(pcm[start : start + MAX_INPUT_BYTES])
            is_sent = self._flush()
        return is_sent

    def caller_begins(self, before_s: float) -> None:
        """The caller has begun to speak: audio from so long ago on is in their turn."""
        if self._turns.begin():
            self._input.put(Edge.BEGINS)
            self.send_audio(self._turns.take(before_s))
            self._let_pass()

    def caller_ends(self) -> None:
        """The caller's turn is over."""
        if self._turns.is_on:
            self.note_passed()
            self._turns.is_on = False
            self._let_pass()
            self._input.put(Edge.ENDS)
            self._flush()

    def send_text(self, text: str) -> None:
        """Say something as the caller's side, as soon as there is a connection."""
        self.note_passed()
        self._input.put(text)
        self._flush()

    def send_tool_results(self, results: tuple[ToolResult, ...]) -> None:
        """Answer tool calls; a new connection that knows nothing of them is told in words."""
        self.note_passed()
        self._input.put(results)
        self._flush()

    def send_note(self, text: str) -> bool:
        """Tell the model something about this moment; it is not kept for another connection."""
        connection = self._connection
        if connection is None or not self._plan.is_open:
            return False
        if (message := connection.note_message(text)) is None:
            return False
        if not connection.is_wire:
            self._note_waiting = f"{self._note_waiting}\n{text}".lstrip()
            self._wanted.set()
            return True
        try:
            connection.send_nowait(message)
        except ModelError as error:
            self._lost(connection, error)
            return False
        return True

    def _flush(self) -> bool:
        """Send what waits, in order; returns whether all of it is on its way."""
        connection = self._connection
        if connection is None or not self._plan.is_open:
            return False
        if not connection.is_wire:
            self._wanted.set()
            return not self._is_sending
        try:
            while (content := self._input.take()) is not None:
                for message in self._messages(connection, content):
                    connection.send_nowait(message)
                self._input.taken_is_sent()
        except ModelError as error:
            self._lost(connection, error)
            return False
        self._let_pass()
        return True

    async def _write(self, connection: Connection) -> None:
        """Send what waits over a connection that is no wire, until it is lost or left."""
        try:
            while True:
                # The event is made before looking, so that what comes meanwhile is seen.
                wanted = self._wanted = Once()
                note, self._note_waiting = self._note_waiting, ""
                self._is_sending = True
                if note and (message := connection.note_message(note)) is not None:
                    await _send(connection, message)
                while (content := self._input.take()) is not None:
                    for message in self._messages(connection, content):
                        await _send(connection, message)
                    self._input.taken_is_sent()
                self._is_sending = False
                await wanted.wait()
        except ModelError as error:
            self._lost(connection, error)

    def _messages(self, connection: Connection, content: Input) -> Iterator[bytes]:
        """The messages by which a connection is told something."""
        if self._turns.leaves_out(connection, content):
            return
        yield from self._turns.messages(connection, content)
        if isinstance(content, Edge):
            return
        if isinstance(content, bytes):
            yield connection.audio_message(content)
        elif isinstance(content, Passed):
            self._repeating = self._repeating or MulawDecoder(CALLER_RATE_HZ)
            yield connection.audio_message(self._repeating.decode(content.payload))
        elif isinstance(content, str):
            yield connection.text_message(self._plan.since_handle.before(content))
        else:
            known, in_words = self._calls.answered(content, self._plan.opens)
            for text in in_words:
                yield connection.text_message(text)
            if known:
                yield connection.tool_results_message(known)
                connection.tool_results_sent()
                self._has_results = True

    # Going on elsewhere.

    async def reconnect(self, way: Way, reason: str) -> bool:
        """Go on over a new connection; see :meth:`server.model.Session.reconnect`."""
        opens = self._plan.opens
        if not self._plan.ask(way, reason, trio.current_time()):
            return False
        if self._plan.unwanted:
            self._opening.cancel("the other model is wanted instead")
        self._let_pass()
        self._changed.set()
        await self._changed.until(lambda: self._plan.opens > opens)
        return True


def _tell_refusal(error: ModelError, plan: ConnectionPlan, told: Sparing) -> None:
    """Somebody should know why the fallback is needed, but not from every call."""
    if error.refusal is None or plan.way is not Way.FALLBACK or plan.error:
        return
    if told.may_log(trio.current_time()):
        logger.error(
            "calls go to the fallback: the model's service refuses the account",
            kind=error.refusal.value,
            what_to_do=error.refusal.advice,
            unlogged=told.take_unlogged(),
        )


def _tell_nobody(event: SessionEvent) -> None:
    """The call is over."""


def _service(services: tuple[Service, Service | None], on_fallback: bool) -> Service:
    service = services[on_fallback]
    assert service is not None
    return service


def _late() -> ModelError:
    return ModelError("no connection in time", code=None, reason="too late", retryable=True)


async def _send(connection: Connection, message: bytes) -> None:
    """Send a message over a connection that is no wire.

    Raises:
        ModelError: The connection is closed, or nobody reads at its other end.
    """
    with trio.move_on_after(STALL_S):
        await connection.send(message)
        return
    reason = f"nothing can be sent for {STALL_S:g} s"
    raise ModelError(f"the connection is dead: {reason}", code=None, reason=reason, retryable=True)
