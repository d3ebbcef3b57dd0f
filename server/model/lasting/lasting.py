"""A session that outlives its connections: rotated in a silence, renewed when they fail.

The Live API ends every connection after about ten minutes, and sooner when something breaks. A
:class:`LastingSession` hides that from its call: what the caller says meanwhile is kept and said
again, and the conversation goes on in the session the service has kept, or in a fresh one that is
told what has been said.

Top to bottom: when to go on over which connection (``ConnectionPlan``, states in a table), what may
have to be said again (``UnansweredInput``), both without a socket and a clock; then the part that
waits (``LastingSession``, ``LastingModel``).
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from enum import Enum, auto
from itertools import islice, takewhile
from typing import Protocol

import msgspec
import structlog
import trio

from codec import MulawDecoder, decode_mulaw
from server.agent.agent import Agent
from server.errors import ModelError, ModelQuotaExceeded, ModelSetupRefused
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
from server.model.refusals import Kind

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

CONNECTION_LOST = "CONNECTION_LOST"
"""Reason of a :class:`TurnComplete` that the service did not send."""

BYTES_PER_S = 2 * CALLER_RATE_HZ
MAX_KEPT_S = 10.0
"""Caller audio kept for a new connection; older audio makes room for newer."""
MAX_KEPT_INPUTS = 2_000
"""The same bound for a carrier that sends tiny chunks."""
MAX_MESSAGE_BYTES = BYTES_PER_S // 10
"""100 ms: the longest input chunk the model's guide recommends."""
PRE_ROLL_S = 0.3
"""Said again from before the first sound, or its beginning would be missing."""
LOUD = 1_000
"""Peak of a chunk that is not silence, of 32,767: speech on a telephone is well above it."""
CERTAIN_AFTER_S = 0.5
"""What was sent so shortly before a handle or the end of a turn may not have been noticed."""

PCM_PER_PAYLOAD = 2 * CALLER_RATE_HZ // 8_000
"""Bytes of pcm that become of a byte of payload."""
MAX_PASSED_BYTES = MAX_MESSAGE_BYTES // PCM_PER_PAYLOAD
_LOUD_CODES = bytes(
    code
    for code, level in enumerate(memoryview(decode_mulaw(bytes(range(256)))).cast("h"))
    if abs(level) >= LOUD
)

GO_AWAY_MARGIN_S = 10.0
"""A rotation waits for a silence until this long before the service closes, and no longer."""
GO_AWAY_WINDOW_S = 60.0
"""How long before that moment a silence is looked for: a service once said 300 s, at once."""
QUIET_POLL_S = 0.1
"""How often a rotation that is due looks for its silence."""
ONSET_S = 0.3
"""What the caller has begun to say may not be known for speech yet: a sound is enough to wait …"""
NOISE_POLLS = 50
"""… but not for ever: there are lines on which it is never silent."""
FIRST_DELAY_S = 0.25
MAX_DELAY_S = 4.0
RESUME_TRIES = 3
"""Attempts to resume before a fresh session is tried instead."""
FIRST_PATIENCE_S = 5.0
"""For so long a service that is overloaded may keep a call waiting for its first connection: there
is somebody on the line who hears nothing."""
SETTLED_S = 10.0
"""A connection that has lasted this long, or on which the agent has finished a turn, works."""
CUT_OFF_TEXT = (
    "The connection failed while you were answering the caller. Take up your answer again, or ask "
    "for the question if you do not know it."
)
REFUSAL_TOLD_EVERY_S = 600.0
MAX_CALLS_KEPT = 64
"""Tool calls that are remembered after their answers, to tell a new connection of them in words."""
MIN_CONNECTION_S = 1.0
"""A connection is not left sooner than that because it is going away: one that says so at once, and
the next one, too, would have us do nothing but connect."""
MAX_KEPT_WORDS = 256 * 1024
"""Characters and bytes, about, of texts and tool answers that are kept once they have been sent."""
STALL_S = 5.0
"""A message that cannot be sent for this long was sent into a dead connection."""


# --- Which connection, and when -------------------------------------------------------------------


class State(Enum):
    """Where a session is between two connections."""

    WAITING = auto()  # no connection: the next attempt has its time
    OPENING = auto()  # a connection is being made and set up
    OPEN = auto()  # input goes straight through
    DUE = auto()  # the same, and the next silence will be used for a rotation
    LEAVING = auto()  # the old socket is being closed: the service allows no other before
    ENDED = auto()  # given up


TRANSITIONS: Mapping[State, Mapping[str, State]] = {
    State.WAITING: {"begin": State.OPENING},
    State.OPENING: {"opened": State.OPEN, "failed": State.WAITING, "given up": State.ENDED},
    State.OPEN: {"due": State.DUE, "leave": State.LEAVING},
    State.DUE: {"leave": State.LEAVING},
    State.LEAVING: {"closed": State.WAITING, "given up": State.ENDED},
    State.ENDED: {},
}
"""Whatever is not here is a bug of ours: a ``KeyError``."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A connection to be made."""

    way: Way
    handle: str | None
    """What to resume with; None for a new session."""
    on_fallback: bool
    give_up_at: float
    """When the budget is used up."""


class ConnectionPlan:
    """Decides when to leave a connection and how to go on; no socket, no clock.

    Its owner tells it what happens, asks :meth:`tick` at :meth:`wakes_at`, and obeys ``state``:
    WAITING until ``open_at``, then :meth:`begin`; LEAVING: close, then :meth:`closed`.

    Args:
        now: Time, as for every method: ``trio.current_time()``.
        connection_age_s: Age at which a connection is rotated in the next silence.
        budget_s: How long one outage may last.
        has_fallback: Whether there is another model to turn to.
        jitter: Gives numbers between 0 and 1, to keep calls from reconnecting in step.

    Attributes:
        state: See :class:`State`.
        handle: The last one the session could be resumed with.
        open_at: When the next attempt is to begin.
        opens: Connections that were opened so far.
        reason: Why the last connection was left, as in :class:`Reconnected`.
        way: How the conversation goes on.
        left_at: When the last connection was left.
        error: What ended it all, once ENDED.
    """

    def __init__(
        self,
        now: float,
        *,
        connection_age_s: float = 540.0,
        budget_s: float = 30.0,
        has_fallback: bool = False,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.state = State.WAITING
        self.handle: str | None = None
        self.open_at = now
        self.opens = 0
        self.reason = ""
        self.way = Way.FRESH
        self.left_at = now
        self.error: ModelError | None = None
        self._connection_age_s = connection_age_s
        self._budget_s = budget_s
        self._has_fallback = has_fallback
        self._on_fallback = False
        self._jitter = jitter
        self._attempts = 0
        self._outage_began_at = now
        self._opened_at = now
        self._worked = False
        self._seek_quiet_at = math.inf
        self._leave_by = math.inf
        self._rotate_because = "age"

    @property
    def is_open(self) -> bool:
        """Whether input can be sent."""
        return self.state in (State.OPEN, State.DUE)

    # What happens on an open connection.

    def note_handle(self, handle: str | None) -> None:
        """The session can be resumed with this from now on; None while it cannot be."""
        if handle is not None:
            self.handle = handle

    def note_answer(self) -> None:
        """The agent has said something to its end: this connection works."""
        self._worked = True

    def going_away(self, time_left_s: float, now: float) -> None:
        """The service will close the connection."""
        if not self.is_open:
            return
        margin_s = min(GO_AWAY_MARGIN_S, time_left_s / 2)
        self._leave_by = max(now + time_left_s - margin_s, self._opened_at + MIN_CONNECTION_S)
        self._seek_quiet_at = max(now, self._leave_by - GO_AWAY_WINDOW_S)
        self._rotate_because = "go-away"

    def tick(self, now: float, is_quiet: Callable[[], bool]) -> None:
        """Let time pass; ``is_quiet`` is asked only while a rotation is due."""
        if self.state is State.OPEN and now >= self._seek_quiet_at:
            self._move("due")
        if self.state is State.DUE and (now >= self._leave_by or is_quiet()):
            self._leave(self._best_way(), self._rotate_because, now)

    def wakes_at(self, now: float) -> float:
        """When to :meth:`tick` next, if nothing happens before."""
        if self.state is State.DUE:
            return min(now + QUIET_POLL_S, self._leave_by)
        return self._seek_quiet_at

    def ask(self, way: Way, reason: str, now: float) -> bool:
        """Somebody wants another connection; False if there is no such way."""
        if way is Way.RESUME and self.handle is None:
            return False
        if way is Way.FALLBACK and (self._on_fallback or not self._has_fallback):
            return False
        if self.is_open:
            self._leave(way, reason, now)
        return self.state is not State.ENDED

    def lost(self, error: ModelError, now: float) -> None:
        """The connection has failed."""
        if not self.is_open:
            return
        # The context: a resumed session would fail again.
        used_up = error.code == 1007 and error.refusal is None
        worked = self._worked or now - self._opened_at >= SETTLED_S
        final = not error.retryable and not used_up
        if used_up and not worked and self.way is not Way.RESUME:
            final = True  # so soon after a fresh session was begun: the next would fail, too
        if not worked:
            self._doubt_handle()
        attempts, outage_began_at = self._attempts, self._outage_began_at
        self._leave(Way.FRESH if used_up else self._best_way(), reason_of(error), now)
        if not worked:
            # The outage goes on, and with it the growing delays and the budget.
            self._attempts, self._outage_began_at = attempts, outage_began_at
        if final or self._is_out_of_time(now + self._delay_s()):
            self._turn_to_fallback(error, now)

    def closed(self, now: float) -> None:
        """The old socket is closed."""
        self._move("closed" if self.error is None else "given up")
        self.open_at = now + self._delay_s()

    # What happens to an attempt.

    def begin(self) -> Attempt:
        """Say how to connect now."""
        self._move("begin")
        self._attempts += 1
        handle = self.handle if self.way is Way.RESUME else None
        give_up_at = self._outage_began_at + self._budget_s
        return Attempt(self.way, handle, self._on_fallback, give_up_at)

    def opened(self, now: float) -> None:
        """The connection is set up."""
        self._move("opened")
        self.opens += 1
        self._opened_at = now
        self._worked = False
        self._leave_by = math.inf
        self._seek_quiet_at = now + self._connection_age_s
        self._rotate_because = "age"
        if self.way is not Way.RESUME:
            self.handle = None

    def failed(self, error: ModelError, now: float) -> None:
        """The connection could not be made or set up."""
        final = not error.retryable
        self.open_at = now + self._delay_s()
        if self.opens == 0 and error.refusal is not None:
            # A call that has not begun has nothing to lose, and there are others to spare the
            # service: only one that is overloaded is asked again, and not for long.
            patient_until = self._outage_began_at + FIRST_PATIENCE_S
            final = error.refusal is not Kind.BUSY or self.open_at >= patient_until
        is_accounts = error.refusal is not None or isinstance(error, ModelQuotaExceeded)
        if self.way is Way.RESUME and not is_accounts:
            final = False
            if isinstance(error, ModelSetupRefused):
                # The same set-up was accepted before: it is the handle that is refused.
                self.handle = None
                self.open_at = now
            self._doubt_handle()
            self.way = self._best_way()
        if final or self._is_out_of_time(self.open_at):
            self._turn_to_fallback(error, now)
        self._move("failed" if self.error is None else "given up")

    # Decisions.

    def _doubt_handle(self) -> None:
        """Give up a handle that has only led from one failure to the next."""
        if self._attempts >= RESUME_TRIES:
            self.handle = None

    def _best_way(self) -> Way:
        return Way.RESUME if self.handle is not None else Way.FRESH

    def _is_out_of_time(self, at: float) -> bool:
        return at >= self._outage_began_at + self._budget_s

    def _leave(self, way: Way, reason: str, now: float) -> None:
        self._move("leave")
        self.way = way
        self.reason = reason
        self.left_at = now
        self._attempts = 0
        self._outage_began_at = now
        if way is Way.FALLBACK:
            self._on_fallback = True

    def _turn_to_fallback(self, error: ModelError, now: float) -> None:
        """Go on with the other model, or give up if there is none."""
        if self._on_fallback or not self._has_fallback:
            self.error = error
            return
        self._on_fallback = True
        self.way = Way.FALLBACK
        self.handle = None
        self._attempts = 0
        self._outage_began_at = now
        self.open_at = now

    def _delay_s(self) -> float:
        """The first attempt is made at once; later ones wait longer and longer."""
        if self._attempts == 0:
            return 0.0
        delay_s: float = min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** (self._attempts - 1))
        return delay_s * (0.5 + self._jitter())

    def _move(self, what: str) -> None:
        self.state = TRANSITIONS[self.state][what]


def reason_of(error: ModelError) -> str:
    """Name a failure in a short stable word, of which there are few: metrics count them."""
    if error.code is None:
        return "broken"
    return f"closed-{error.code}" if 1000 <= error.code <= 1015 else "closed-other"


# --- What may have to be said again ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Passed:
    """Caller audio that the media path has sent: kept as it came, a quarter of the pcm."""

    payload: bytes
    """Mu-law at 8 kHz."""


Input = bytes | Passed | str | tuple[ToolResult, ...]
"""Caller audio (pcm, or the payload it was made from), text, answers to tool calls."""


def word_bytes(content: Input) -> int:
    """About how much whatever is not audio takes."""
    if isinstance(content, str):
        return len(content)
    if isinstance(content, tuple):
        return sum(len(msgspec.json.encode(result.response)) for result in content)
    return 0


def audio_bytes(content: Input) -> int:
    """How much caller audio this is, in bytes of pcm; 0 for whatever is not audio."""
    if isinstance(content, bytes):
        return len(content)
    return PCM_PER_PAYLOAD * len(content.payload) if isinstance(content, Passed) else 0


class UnansweredInput:
    """All that was said to the model and that it has not answered yet, in order.

    A new connection is told it again: what waits because there was no connection, and what was
    sent and is covered neither by an answer nor by the handle that the session is resumed with.

    Positions are numbers to hand back and to compare: each input has the next one.

    Attributes:
        lost_bytes: Caller audio that had to make room before it was ever sent.
    """

    def __init__(self, max_kept_s: float = MAX_KEPT_S) -> None:
        self.lost_bytes = 0
        self._max_bytes = int(max_kept_s * BYTES_PER_S)
        self._newest = 0
        self._newest_sent = 0
        self._sent: deque[tuple[int, Input]] = deque()
        self._being_sent: list[tuple[int, Input]] = []
        self._waiting: deque[tuple[int, Input]] = deque()
        self._audio_bytes = 0  # in all three
        self._word_bytes = 0  # of what has been sent
        self._answered = 0
        self._remembered = 0  # by the session that the handle stands for

    def put(self, content: Input) -> None:
        """Add what is to be said next."""
        self._newest += 1
        self._waiting.append((self._newest, content))
        self._audio_bytes += audio_bytes(content)
        if self._audio_bytes > self._max_bytes or self._is_crowded:
            self._make_room()

    def passed(self, payload: bytes) -> None:
        """Add caller audio that is on its way already, before all that waits."""
        for start in range(0, len(payload), MAX_PASSED_BYTES):
            self._newest += 1
            self._newest_sent = self._newest
            content = Passed(payload[start : start + MAX_PASSED_BYTES])
            self._sent.append((self._newest, content))
            self._audio_bytes += audio_bytes(content)
        if self._audio_bytes > self._max_bytes or self._is_crowded:
            self._make_room()

    def take(self) -> Input | None:
        """Take the next message to be sent, of at most 100 ms of audio; None if all is sent."""
        if not self._waiting:
            return None
        content = self._take_one()
        if not isinstance(content, bytes) or not self._waiting:
            return content
        joined = bytearray(content)
        while self._waiting:
            following = self._waiting[0][1]
            if not isinstance(following, bytes):
                break
            if len(joined) + len(following) > MAX_MESSAGE_BYTES:
                break
            joined += following
            self._take_one()
        return bytes(joined)

    @property
    def is_waiting(self) -> bool:
        """Whether something has not been sent yet."""
        return bool(self._waiting)

    def taken_is_sent(self) -> None:
        """What was taken last is on its way; without this it will be said again."""
        if self._being_sent:
            self._newest_sent = max(self._newest_sent, self._being_sent[-1][0])
        self._sent.extend(self._being_sent)
        self._word_bytes += sum(word_bytes(content) for _, content in self._being_sent)
        self._being_sent.clear()
        while self._word_bytes > MAX_KEPT_WORDS:
            self._drop(self._sent)

    def sent_up_to(self, lag_s: float = 0.0) -> int:
        """The position of what was sent last, or of what was sent so much audio before."""
        room = int(lag_s * BYTES_PER_S)
        for number, content in reversed(self._sent):
            room -= audio_bytes(content)
            if room < 0 or not lag_s:
                return number
        return self._answered

    def answered(self, position: int) -> None:
        """The model has answered all that was put in up to here."""
        self._answered = max(self._answered, position)
        while self._sent and self._sent[0][0] <= self._answered:
            self._drop(self._sent)

    def remembered(self, position: int) -> None:
        """A resumed session will know all that was put in up to here."""
        self._remembered = max(self._remembered, position)

    def rewind(self, *, resumed: bool) -> int:
        """Say again to a new connection what it does not know, but not the silence before it.

        Returns:
            Bytes of caller audio that will be sent once more.
        """
        if not resumed:
            self._remembered = self._answered
        start = max(self._answered, self._remembered)
        self._waiting.extendleft(reversed(self._being_sent))
        self._being_sent.clear()
        again: deque[tuple[int, Input]] = deque()
        while self._sent and self._sent[-1][0] > start:
            again.appendleft(self._sent.pop())
            self._word_bytes -= word_bytes(again[0][1])
        before_bytes = 0
        while again and audio_bytes(again[0][1]) and not is_loud(again[0][1]):
            self._sent.append(again.popleft())
        while self._sent and again and before_bytes < PRE_ROLL_S * BYTES_PER_S:
            number, content = self._sent[-1]
            if number <= start or not audio_bytes(content):
                break
            before_bytes += audio_bytes(content)
            again.appendleft(self._sent.pop())
        self._waiting.extendleft(reversed(again))
        return sum(audio_bytes(content) for _, content in again)

    def sounded_within(self, lag_s: float) -> bool:
        """Whether so much of the audio that was sent last is anything but silence."""
        recent = self.sent_up_to(lag_s)
        newest_first = takewhile(lambda item: item[0] > recent, reversed(self._sent))
        return any(audio_bytes(one) and is_loud(one) for _, one in newest_first)

    def has_sound(self) -> bool:
        """Whether anything but silence waits to be sent."""
        return any(not audio_bytes(one) or is_loud(one) for _, one in self._waiting)

    @property
    def _is_crowded(self) -> bool:
        return len(self._sent) + len(self._waiting) > MAX_KEPT_INPUTS

    def _take_one(self) -> Input:
        item = self._waiting.popleft()
        self._being_sent.append(item)
        return item[1]

    def _make_room(self) -> None:
        while self._sent and (self._audio_bytes > self._max_bytes or self._is_crowded):
            self._drop(self._sent)
        index = 0
        while index < len(self._waiting) and (
            self._audio_bytes > self._max_bytes or self._is_crowded
        ):
            number, content = self._waiting[index]
            if size := audio_bytes(content):
                if number > self._newest_sent:
                    self.lost_bytes += size
                self._audio_bytes -= size
                del self._waiting[index]
            else:
                index += 1  # words and tool answers are few, and worth more than old audio

    def _drop(self, items: deque[tuple[int, Input]]) -> None:
        content = items.popleft()[1]
        self._audio_bytes -= audio_bytes(content)
        self._word_bytes -= word_bytes(content)


def is_loud(content: Input) -> bool:
    """Whether a chunk of audio holds more than a telephone line's noise."""
    if isinstance(content, Passed):
        return len(content.payload.translate(None, _LOUD_CODES)) < len(content.payload)
    pcm = content
    assert isinstance(pcm, bytes)
    # Every fourth sample shows the loudness of speech, at a quarter of the cost.
    samples = memoryview(pcm[: len(pcm) // 2 * 2]).cast("h")[::4]
    return len(samples) > 0 and (max(samples) >= LOUD or min(samples) <= -LOUD)


# --- The part that waits --------------------------------------------------------------------------


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


class LastingModel:
    """Opens sessions that outlive their connections.

    Args:
        service: The model.
        fallback: Where to turn when the model fails for good or is out of quota: another model,
            key or region.
        connection_age_s: Age at which a connection is replaced in the next silence; the service
            ends them after about ten minutes.
        reconnect_budget_s: How long one outage may last before the session is given up.
    """

    def __init__(
        self,
        service: Service,
        *,
        fallback: Service | None = None,
        connection_age_s: float = 540.0,
        reconnect_budget_s: float = 30.0,
    ) -> None:
        self.name = service.name
        self._services = (service, fallback)
        self._refusals_told = Sparing(REFUSAL_TOLD_EVERY_S)
        self._connection_age_s = connection_age_s
        self._reconnect_budget_s = reconnect_budget_s

    @asynccontextmanager
    async def open_session(
        self, agent: Agent, conversation: Conversation
    ) -> AsyncGenerator[LastingSession]:
        """Connect, set the agent up, wait until the service is ready; close when the block ends.

        Raises:
            ModelSetupRefused: The service refused the set-up; trying again will not help.
            ModelQuotaExceeded: The account's quota is used up.
            ModelError: It could not be reached within the budget.
        """
        plan = ConnectionPlan(
            trio.current_time(),
            connection_age_s=self._connection_age_s,
            budget_s=self._reconnect_budget_s,
            has_fallback=self._services[1] is not None,
        )
        session = LastingSession(self._services, agent, conversation, plan, self._refusals_told)
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run)
            try:
                await session.wait_open()
                yield session
            except Exception as error:
                # Kept out of the nursery, which would put it into a group.
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
