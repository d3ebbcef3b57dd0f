"""One session of as many connections as a call needs."""

from __future__ import annotations

import math
from collections import deque
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import msgspec
import structlog
import trio

from codec import MulawDecoder
from server.agent.agent import Agent
from server.errors import ModelError
from server.logs import Sparing
from server.media.relay import Relay
from server.model import (
    CALLER_RATE_HZ,
    AgentAudio,
    AgentTranscript,
    CallerTranscript,
    Conversation,
    EventListener,
    GenerationComplete,
    GoingAway,
    Interrupted,
    Reconnected,
    ResumptionHandle,
    Session,
    SessionEvent,
    ToolCall,
    ToolCallsCancelled,
    ToolCallsRequested,
    ToolResult,
    TurnComplete,
    Way,
    Working,
)
from server.model.lasting.plan import Attempt, ConnectionPlan, State
from server.model.lasting.unanswered import (
    BYTES_PER_S,
    CERTAIN_AFTER_S,
    Input,
    Passed,
    UnansweredInput,
)

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)
CONNECTION_LOST = "CONNECTION_LOST"
"""Reason of a :class:`TurnComplete` that the service did not send."""
ONSET_S = 0.3
"""What the caller has begun to say may not be known for speech yet: a sound is enough to wait …"""
NOISE_POLLS = 50
"""… but not for ever: there are lines on which it is never silent."""
CUT_OFF_TEXT = (
    "The connection failed while you were answering the caller. Take up your answer again, or ask "
    "for the question if you do not know it."
)
MAX_CALLS_KEPT = 64
"""Tool calls that are remembered after their answers, to tell a new connection of them in words."""
STALL_S = 5.0
"""A message that cannot be sent for this long was sent into a dead connection."""


class Service(Protocol):
    """Opens sessions that live as long as their connection: :class:`GeminiModel`."""

    @property
    def name(self) -> str:
        """The model's name."""
        ...

    def open_session(
        self,
        agent: Agent,
        conversation: Conversation,
        *,
        handle: str | None = None,
        first_turn: int = 1,
    ) -> AbstractAsyncContextManager[JoinableSession]:
        """Connect and set the agent up; with a handle, go on with the session it stands for."""
        ...


class JoinableSession(Session, Protocol):
    """What a service opens: a session whose one connection can be joined to a relay and left."""

    def leave(self, relay: Relay) -> None:
        """Undo :meth:`join`."""
        ...


class LastingSession:
    """A conversation over as many connections as it needs; made by :class:`LastingModel`.

    The task that receives reads the current connection itself, and whoever sends writes to it, so
    that in ordinary times nothing stands between. A task of the session's own makes and leaves the
    connections.
    """

    def __init__(
        self,
        services: tuple[Service, Service | None],
        agent: Agent,
        conversation: Conversation,
        plan: ConnectionPlan,
        refusals_told: Sparing | None = None,
    ) -> None:
        self._refusals_told = refusals_told or Sparing()
        self._services = services
        self._agent = agent
        self._conversation = conversation
        self._plan = plan
        self._connection: JoinableSession | None = None
        self._relay: Relay | None = None
        self._joined: JoinableSession | None = None  # whose connection the relay's path uses
        self._repeating: MulawDecoder | None = None
        self._receiving = trio.CancelScope()
        self._changed = trio.Event()
        self._news: deque[SessionEvent] = deque()
        self._listener: EventListener | None = None
        self._pushes = False  # the connection calls us with its events

        self._input = UnansweredInput()
        self._lost_bytes_told = 0
        self._sending_over: Session | None = None
        self._sending_since: float | None = None

        self._turn = 0  # the newest agent turn
        self._turn_is_open = False
        self._turn_is_cut = False
        self._speaking = False  # audio of the newest turn has come
        self._is_generated = False  # all of it
        self._was_cut_off = False
        self._is_working = False  # the model has said that it is at work on more
        self._answers_up_to = 0
        self._words_reported = False  # of what the agent has not answered yet
        self._is_resumable = False
        self._noises = 0  # times when a sound alone was in the way of a rotation
        self._calls: dict[str, _MadeCall] = {}
        self._calls_open: set[str] = set()

    async def run(self) -> None:
        """Make and leave connections until the session is given up; its owner then cancels."""
        plan = self._plan
        while plan.state is not State.ENDED:
            await trio.sleep_until(plan.open_at)
            attempt = plan.begin()
            try:
                with trio.CancelScope(deadline=attempt.give_up_at) as opening:
                    async with self._open(attempt) as connection:
                        opening.deadline = math.inf
                        await self._use(connection, attempt)
            except ModelError as error:
                plan.failed(error, trio.current_time())
                logger.warning("model connection failed", error=error.loggable)
                if attempt.way is not Way.FALLBACK:
                    self._tell_refusal(error)
            else:
                if opening.cancelled_caught:
                    plan.failed(_late(), trio.current_time())
                else:
                    plan.closed(trio.current_time())
        self._wake()

    def _open(self, attempt: Attempt) -> AbstractAsyncContextManager[JoinableSession]:
        service, fallback = self._services
        if attempt.on_fallback:
            assert fallback is not None
            service = fallback
        return service.open_session(
            self._agent,
            self._conversation,
            handle=attempt.handle,
            first_turn=self._turn + 1,
        )

    async def _use(self, connection: JoinableSession, attempt: Attempt) -> None:
        """Stay on a connection for as long as the plan says."""
        plan = self._plan
        now = trio.current_time()
        plan.opened(now)
        repeated_bytes = self._input.rewind(resumed=attempt.way is Way.RESUME)
        self._repeating = None
        if plan.opens > 1:
            self._tell_reconnected(attempt, repeated_bytes, now)
        if self._was_cut_off and not self._input.has_sound():
            self._input.put(CUT_OFF_TEXT)  # what it was answering is no longer here
        self._was_cut_off = False
        self._is_resumable = attempt.way is Way.RESUME
        self._noises = 0
        self._connection = connection
        self._push_from(connection)
        self._wake()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._flush)
                await self._stay(connection)
                nursery.cancel_scope.cancel()
        finally:
            self._connection = None
            self._pushes = False
            self._let_pass()
            self._receiving.cancel()
            self._sending_since = None
            if self._turn_is_open:
                # What has come of this turn is all that will.
                self._news.append(TurnComplete(self._turn, CONNECTION_LOST))
                self._was_cut_off = not (self._is_generated or self._turn_is_cut)
                self._turn_is_open = self._speaking = False
            if self._is_working:  # it has said that the rest is to come
                self._is_working, self._was_cut_off = False, True
            self._wake()

    async def _stay(self, connection: Session) -> None:
        plan = self._plan
        while True:
            changed = self._changed
            now = trio.current_time()
            if self._sending_since is not None and now >= self._sending_since + STALL_S:
                self._lost(connection, _stalled())
            plan.tick(now, self._is_quiet)
            if not plan.is_open:
                self._let_pass()
                return
            with trio.move_on_at(min(plan.wakes_at(now), now + STALL_S)):
                await changed.wait()

    def _tell_reconnected(self, attempt: Attempt, repeated_bytes: int, now: float) -> None:
        service = self._services[attempt.on_fallback]
        assert service is not None
        lost_bytes = self._input.lost_bytes - self._lost_bytes_told
        self._lost_bytes_told += lost_bytes
        news = Reconnected(
            reason=self._plan.reason,
            way=attempt.way,
            model=service.name,
            gap_s=now - self._plan.left_at,
            lost_s=lost_bytes / BYTES_PER_S,
            repeated_s=repeated_bytes / BYTES_PER_S,
            words_repeated=repeated_bytes > 0 and self._words_reported,
        )
        self._news.append(news)
        logger.info("model reconnected", reason=news.reason, way=news.way, gap_s=news.gap_s)

    def _wake(self) -> None:
        """Something has changed that others wait for."""
        self._changed.set()
        self._changed = trio.Event()

    async def wait_open(self) -> None:
        """Wait for the first connection.

        Raises:
            ModelError: There will be none.
        """
        await self._wait_opened(after=0)

    async def _wait_opened(self, after: int) -> None:
        while self._plan.opens <= after:
            self._check()
            await self._changed.wait()

    def _check(self) -> None:
        if self._plan.error is not None and self._plan.state is State.ENDED:
            raise self._plan.error

    def _lost(self, connection: Session, error: ModelError) -> None:
        if connection is self._connection and self._plan.is_open:
            way = self._plan.way
            self._plan.lost(error, trio.current_time())
            self._let_pass()
            logger.warning("model connection lost", error=error.loggable)
            if way is not Way.FALLBACK:
                self._tell_refusal(error)
            self._wake()

    def _tell_refusal(self, error: ModelError) -> None:
        """Somebody should know why the fallback is needed, but not from every call."""
        if error.refusal is None or self._plan.way is not Way.FALLBACK or self._plan.error:
            return
        if self._refusals_told.may_log(trio.current_time()):
            logger.error(
                "calls go to the fallback: the model's service refuses the account",
                kind=error.refusal.value,
                what_to_do=error.refusal.advice,
                unlogged=self._refusals_told.take_unlogged(),
            )

    # The media path, which sends caller audio itself while nothing stands in its way.

    def join(self, relay: Relay) -> bool:
        """See :meth:`Session.join`; every connection is joined in its turn."""
        self._relay = relay
        relay.path.keep_sent = True
        relay.path.model_ready = False
        self._let_pass()
        return self._joined is not None

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
        relay.path.model_ready = self._joined is not None and not self._input.is_waiting

    def note_passed(self) -> None:
        """Write down what the path has sent: it may have to be said again."""
        if self._relay is not None and (payload := self._relay.path.take_sent()):
            self._input.passed(payload)

    @property
    def is_drained(self) -> bool:
        """See :meth:`Session.is_drained`."""
        return not self._news and self._joined is not None and self._joined.is_drained

    def _is_quiet(self) -> bool:
        """Whether nobody would notice if the connection were changed now."""
        self.note_passed()
        if (
            self._turn_is_open
            or self._is_working
            or self._calls_open
            or not (self._is_resumable or self._plan.handle is None)
            or not self._conversation.is_quiet()
        ):
            return False
        if self._input.sounded_within(ONSET_S):
            self._noises += 1
            return self._noises > NOISE_POLLS
        return True

    # Receiving.

    async def receive(self) -> SessionEvent:
        """Wait for the next event, over all turns and connections; one task at a time.

        Raises:
            ModelError: The session is given up; every later call says the same.
        """
        while True:
            if self._news:
                return self._news.popleft()
            self._check()
            connection = self._connection
            if connection is None or self._pushes or not self._plan.is_open:
                await self._changed.wait()
                continue
            event: SessionEvent | None = None
            with trio.CancelScope() as self._receiving:  # until the connection is left
                try:
                    event = await connection.receive()
                except ModelError as error:
                    self._lost(connection, error)
            if event is not None and connection is self._connection:
                self._note(event)
                return event

    def listen(self, on_event: EventListener) -> bool:
        """See :meth:`Session.listen`; every connection is listened to in its turn."""
        self._listener = on_event
        if self._connection is not None:
            self._push_from(self._connection)
        return self._pushes

    def _push_from(self, connection: JoinableSession) -> None:
        listener = self._listener
        if listener is None or self._pushes:
            return

        def on_event(event: SessionEvent | ModelError) -> None:
            if connection is not self._connection:
                return
            if isinstance(event, ModelError):
                self._lost(connection, event)
                return
            while self._news:
                listener(self._news.popleft())
            self._note(event)
            listener(event)

        self._pushes = connection.listen(on_event)
        if self._pushes:
            self._receiving.cancel()

    def _note(self, event: SessionEvent) -> None:
        """Keep the books: what is answered, what can be resumed, which turn it is."""
        self.note_passed()
        match event:
            case AgentAudio(turn=turn):
                if not self._speaking or turn != self._turn:
                    self._begin_turn(turn)
                    self._speaking = True
                    self._answers_up_to = self._input.sent_up_to()
            case AgentTranscript(turn=turn):
                if not self._turn_is_open or turn != self._turn:
                    self._begin_turn(turn)
            case GenerationComplete():
                self._is_generated = True
                if self._speaking:
                    self._plan.note_answer()
                    self._note_answered(self._answers_up_to)
            case Interrupted(turn=turn):
                self._turn = turn
                self._turn_is_cut = True
                if self._speaking:
                    self._note_answered(self._answers_up_to)
            case TurnComplete(turn=turn, more=more):
                if self._speaking and not self._turn_is_cut:
                    self._note_answered(self._input.sent_up_to(CERTAIN_AFTER_S))
                self._is_working = more
                self._turn = turn
                self._turn_is_open = self._turn_is_cut = self._speaking = False
            case Working(is_on=is_on):
                self._is_working = is_on
            case ToolCallsRequested(calls=calls):
                # To say it again would have the functions called twice.
                self._note_answered(self._input.sent_up_to())
                self._calls |= {call.id: _MadeCall(call, self._plan.opens) for call in calls}
                self._calls_open |= {call.id for call in calls}
                self._forget_calls()
            case ToolCallsCancelled(ids=ids):
                self._calls_open.difference_update(ids)
                for identity in ids:
                    self._calls.pop(identity, None)
            case ResumptionHandle(handle=handle):
                self._plan.note_handle(handle)
                self._is_resumable = handle is not None
                if handle is not None:
                    self._input.remembered(self._input.sent_up_to(CERTAIN_AFTER_S))
            case GoingAway(time_left_s=time_left_s):
                self._plan.going_away(time_left_s, trio.current_time())
                self._wake()
            case CallerTranscript():
                self._words_reported = True
            case _:
                pass

    def _forget_calls(self) -> None:
        """Let go of the oldest calls whose answers have been sent."""
        over = len(self._calls) - MAX_CALLS_KEPT
        if over > 0:
            answered = (one for one in self._calls if one not in self._calls_open)
            for identity in list(islice(answered, over)):
                del self._calls[identity]

    def _note_answered(self, position: int) -> None:
        self._input.answered(position)
        self._words_reported = False

    def _begin_turn(self, turn: int) -> None:
        self._turn = turn
        self._turn_is_open = True
        self._turn_is_cut = self._speaking = self._is_generated = False

    # Sending. Everything goes through the same queue, so it arrives in the order it was said.

    async def send_audio(self, pcm: bytes) -> None:
        """Send caller audio; while there is no connection it is kept, ten seconds of it.

        Raises:
            ModelError: The session is given up.
        """
        await self._send(pcm)

    def send_audio_nowait(self, pcm: bytes) -> bool:
        """Send caller audio if the connection takes it at once and nothing is before it.

        Raises:
            ModelError: The session is given up.
        """
        self._check()
        connection = self._connection
        if connection is None or connection is self._sending_over:
            return False
        if not self._plan.is_open or self._input.is_waiting:
            return False
        try:
            if not connection.send_audio_nowait(pcm):
                return False
        except ModelError as error:
            self._lost(connection, error)
            return False
        self.note_passed()
        self._input.put(pcm)
        self._input.take()
        self._input.taken_is_sent()
        return True

    async def send_text(self, text: str) -> None:
        """Say something as the caller's side, as soon as there is a connection.

        Raises:
            ModelError: The session is given up.
        """
        await self._send(text)

    async def send_note(self, text: str) -> bool:
        """Tell the model something about this moment; it is not kept for another connection.

        Raises:
            ModelError: The session is given up.
        """
        self._check()
        connection = self._connection
        if connection is None or not self._plan.is_open:
            return False
        try:
            return await connection.send_note(text)
        except ModelError as error:
            self._lost(connection, error)
            return False

    async def send_tool_results(self, results: tuple[ToolResult, ...]) -> None:
        """Answer tool calls; a new connection that knows nothing of them is told in words.

        Raises:
            ModelError: The session is given up.
        """
        await self._send(results)

    async def _send(self, content: Input) -> None:
        self._check()
        self.note_passed()
        self._input.put(content)
        await self._flush()

    async def _flush(self) -> None:
        """Send what waits, in order; if another task is at it, that one takes ours along."""
        connection = self._connection
        if connection is None or connection is self._sending_over:
            return
        self._sending_over = connection
        try:
            while connection is self._connection and self._plan.is_open:
                if (content := self._input.take()) is None:
                    break
                self._sending_since = trio.current_time()
                try:
                    await self._send_over(connection, content)
                except ModelError as error:
                    self._lost(connection, error)
                    break
                if connection is self._connection:
                    self._input.taken_is_sent()
        finally:
            # A message may hang on a connection that was left long ago.
            if self._sending_over is connection:
                self._sending_over = None
                self._sending_since = None
            self._let_pass()

    async def _send_over(self, connection: Session, content: Input) -> None:
        if isinstance(content, bytes):
            await connection.send_audio(content)
        elif isinstance(content, Passed):
            self._repeating = self._repeating or MulawDecoder(CALLER_RATE_HZ)
            await connection.send_audio(self._repeating.decode(content.payload))
        elif isinstance(content, str):
            await connection.send_text(content)
        else:
            await self._answer_calls(connection, content)

    async def _answer_calls(self, connection: Session, results: tuple[ToolResult, ...]) -> None:
        known = []
        for result in results:
            call = self._calls.get(result.id)
            if call is None:
                continue  # taken back meanwhile
            if call.opens != self._plan.opens:
                await connection.send_text(call.in_words(result))
            elif result.id in self._calls_open:
                known.append(result)
            self._calls_open.discard(result.id)
        if known:
            await connection.send_tool_results(tuple(known))

    # Going on elsewhere.

    async def reconnect(self, way: Way, reason: str) -> bool:
        """Go on over a new connection; see :meth:`Session.reconnect`.

        Raises:
            ModelError: The session is given up.
        """
        self._check()
        opens = self._plan.opens
        if not self._plan.ask(way, reason, trio.current_time()):
            return False
        self._let_pass()
        self._wake()
        await self._wait_opened(after=opens)
        return True


@dataclass(frozen=True, slots=True)
class _MadeCall:
    """A tool call, and the connection over which it came."""

    call: ToolCall
    opens: int

    def in_words(self, result: ToolResult) -> str:
        """Tell a model that does not remember having called what has come of it."""
        arguments = msgspec.json.encode(self.call.arguments).decode()
        response = msgspec.json.encode(result.response).decode()
        return (
            f"For the caller's last request you called {self.call.name}({arguments}) a moment "
            f"ago. It has returned {response}. Go on from there, and do not call it again."
        )


def _late() -> ModelError:
    return ModelError("no connection in time", code=None, reason="too late", retryable=True)


def _stalled() -> ModelError:
    reason = f"nothing can be sent for {STALL_S:g} s"
    return ModelError(f"the connection is dead: {reason}", code=None, reason=reason, retryable=True)
