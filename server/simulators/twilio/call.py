"""One call as this Twilio sees it, and what it was asked to be."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import trio

from server.carrier import CallStatus
from server.simulators.phone import PhoneScript, SimulatedPhone

MAX_CALL_S = 14_400.0  # Twilio's default TimeLimit, four hours.


@dataclass(frozen=True, slots=True)
class MachineDetection:
    """Asynchronous answering machine detection, as a call was placed with it."""

    url: str
    """Where the verdict is posted."""
    mode: str
    """``Enable`` or ``DetectMessageEnd``."""
    timeout_s: float


@dataclass(frozen=True, slots=True)
class CallRequest:
    """How a call is to be led: what was asked for over REST, or set for the number called."""

    twiml: str | None = None
    """The first document; without one, the voice webhook is asked for it."""
    voice_url: str | None = None
    status_url: str | None = None
    status_events: frozenset[str] = frozenset({"completed"})
    detection: MachineDetection | None = None
    ring_timeout_s: float = 60.0
    time_limit_s: float = MAX_CALL_S


@dataclass(frozen=True, slots=True)
class GoOn:
    """Told over REST: leave what you are doing and do this document instead."""

    document: str
    base_url: str


@dataclass(frozen=True, slots=True)
class EndCall:
    """Told over REST, or by the clock: hang up."""


@dataclass(slots=True)
class SimulatedCall:
    """One call as this Twilio sees it; everything stays readable after its end."""

    call_sid: str
    account_sid: str
    to: str
    from_number: str
    direction: str
    script: PhoneScript
    request: CallRequest
    status: CallStatus = CallStatus.QUEUED
    phones: list[SimulatedPhone] = field(default_factory=list, repr=False)
    """One for each media stream the call had, usually one."""
    stream_urls: list[str] = field(default_factory=list)
    """Where each of them went."""
    timeline: list[tuple[float, str]] = field(default_factory=list)
    """What happened besides speech, in seconds from the call's creation, for people to read."""
    reports: list[tuple[CallStatus, int | None]] = field(default_factory=list)
    """Status callbacks in order, each with the HTTP status it was answered with."""
    recording_path: Path | None = None
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    created_at: float = field(default_factory=trio.current_time)
    answered_at: float | None = None
    """``trio.current_time()`` when the callee picked up."""
    answered_by: str | None = None
    """What answering machine detection has said, if it was asked for."""
    ended_at: float | None = None

    _ended: trio.Event = field(default_factory=trio.Event)
    _changed: trio.Event = field(default_factory=trio.Event)
    _order: GoOn | EndCall | None = None
    _ordered: trio.Event = field(default_factory=trio.Event)

    @property
    def phone(self) -> SimulatedPhone:
        """The callee's phone on the latest stream.

        Raises:
            LookupError: No stream was opened (yet).
        """
        if not self.phones:
            raise LookupError(f"call {self.call_sid} has no media stream")
        return self.phones[-1]

    @property
    def said(self) -> bytes:
        """Mu-law the callee said on the latest stream, from its start."""
        return bytes(self.phone.said)

    @property
    def heard(self) -> bytes:
        """Mu-law the callee heard on the latest stream, from its start."""
        return self.phone.heard

    @property
    def bytes_after_clear(self) -> int:
        """Agent audio of cut turns, sent after their clear, on all streams."""
        return sum(phone.bytes_after_clear for phone in self.phones)

    @property
    def duration_s(self) -> float:
        """From answer to end, 0 if it was not answered; up to now if it is not over."""
        if self.answered_at is None:
            return 0.0
        return (self.ended_at or trio.current_time()) - self.answered_at

    async def wait_ended(self) -> None:
        """Wait until the call is over, its last status is reported and its recording written."""
        await self._ended.wait()

    async def wait_status(self, *statuses: CallStatus) -> CallStatus:
        """Wait until the call has one of these statuses, or is over; returns its status."""
        while self.status not in statuses and not self.status.is_final:
            await self._changed.wait()
        return self.status

    async def wait_stream(self) -> SimulatedPhone:
        """Wait until a media stream is open.

        Raises:
            LookupError: The call ended without one.
        """
        await self.wait_streams(1)
        return self.phone

    async def wait_streams(self, count: int) -> None:
        """Wait until it has had so many media streams, or is over."""
        while len(self.phones) < count and not self.status.is_final:
            await self._changed.wait()

    def note(self, what: str) -> None:
        """Add a line to the timeline."""
        self.timeline.append((trio.current_time() - self.created_at, what))

    def set_status(self, status: CallStatus) -> None:
        """The call has come to this status."""
        self.status = status
        self.note(status.value)
        self._tell_waiters()

    def add_phone(self, phone: SimulatedPhone, url: str) -> None:
        """The call has a media stream; it is over at once if the call was told to go on."""
        self.phones.append(phone)
        self.stream_urls.append(url)
        self.note("stream opened")
        self._tell_waiters()
        if self.is_ordered:
            phone.stop()

    def limit(self, time_limit_s: float) -> None:
        """Told over REST: from its answer on it may last for so long, whatever was said before."""
        self.request = replace(self.request, time_limit_s=time_limit_s)
        self._tell_waiters()

    async def wait_time_limit(self) -> None:
        """Wait until it has lasted for as long as it may by then."""
        while (left_s := self.request.time_limit_s - self.duration_s) > 0:
            with trio.move_on_after(left_s):
                await self._changed.wait()

    def finish(self) -> None:
        """The call is over, and so is all that follows its end."""
        self._ended.set()

    def _tell_waiters(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # What it is told while it lasts.

    @property
    def is_ordered(self) -> bool:
        """True if it has been told something that it has not done yet."""
        return self._order is not None

    @property
    def is_to_end(self) -> bool:
        """True if it has been told to end."""
        return isinstance(self._order, EndCall)

    def order(self, order: GoOn | EndCall) -> None:
        """Tell the call to end, or to go on with another document; once told to end, it ends."""
        if self.is_to_end:
            return
        self._order = order
        self._ordered.set()
        if self.phones:
            self.phone.stop()

    def take_document(self) -> GoOn | None:
        """The document told over REST, once; a call told to end stays told."""
        if isinstance(self._order, GoOn):
            order, self._order, self._ordered = self._order, None, trio.Event()
            return order
        return None

    async def wait_ordered(self) -> None:
        """Wait until it is told something that it has not done yet."""
        await self._ordered.wait()

    async def pause(self, duration_s: float) -> None:
        """Let time pass unless told something over REST."""
        with trio.move_on_after(duration_s):
            await self._ordered.wait()
