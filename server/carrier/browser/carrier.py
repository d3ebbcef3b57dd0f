"""Calls from web pages: what a carrier does for them, beside one for telephones or alone."""

from __future__ import annotations

import hmac
import math
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self

import trio

from server.carrier import CallStatus, Carrier, PlacedCall, StatusUpdate
from server.carrier.browser.messages import CALL_SID
from server.carrier.browser.stream import BrowserMediaStream
from server.carrier.transport import Transport
from server.carrier.webhooks import Desk
from server.errors import CallNotInProgress, CarrierError, StreamEnded

NAME = "browser"
NO_TELEPHONE = "no telephone is connected here: set Twilio's account, or CARRIER=asterisk"
MAX_STREAMS = 100_000
"""Calls whose stream is remembered: more than there can be; of one that another process has taken
over nobody here hears the end."""
ALIVE_EVERY_S = 1.0
"""How often a page is told that its call is served. It looks for another stream when it has heard
nothing for three to four seconds: the process, or the way to it, is gone, and no socket says so."""


class BrowserCarrier:
    """A :class:`server.carrier.Carrier` for calls from pages, and its
    :class:`server.carrier.webhooks.Events`.

    Nobody dials a page, and nothing but its own socket leads to it: so a call is hung up by closing
    that, and is brought another stream when the page asks for it.

    Args:
        secrets_: What the keys of calls are made of; the first is used, the others are understood.
    """

    name = NAME

    def __init__(self, secrets_: Sequence[str]) -> None:
        self.on_wait: Callable[[float], None] = lambda wait_s: None
        self._secrets = [one.encode() for one in secrets_]
        self._streams: OrderedDict[str, BrowserMediaStream] = OrderedDict()
        self._served: set[BrowserMediaStream] = set()
        self._has_served = trio.Event()
        # Of any size: each call has a few reports in it, and they are taken as they come.
        self._reports, self._reported = trio.open_memory_channel[StatusUpdate](math.inf)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._streams.clear()
        self._served.clear()

    # -- names, keys and streams -----------------------------------------------------------

    def new_call_sid(self) -> str:
        """A name for a call: 128 random bits."""
        return f"BR{secrets.token_hex(16)}"

    def key_of(self, call_sid: str) -> str:
        """What a page shows to be given another stream of its call."""
        return _key(self._secrets[0], call_sid)

    def is_key_of(self, call_sid: str, key: str) -> bool:
        """Whether a key is the call's; every process of the server knows, whoever has the call."""
        if CALL_SID.fullmatch(call_sid) is None or not key.isascii():
            return False
        return any(hmac.compare_digest(_key(one, call_sid), key) for one in self._secrets)

    def has(self, call_sid: str) -> bool:
        """Whether a call is a page's."""
        return CALL_SID.fullmatch(call_sid) is not None

    def new_stream(self, transport: Transport) -> BrowserMediaStream:
        """The media stream of a socket that a page has opened."""
        return BrowserMediaStream(transport, self._started, self.hung_up)

    def _started(self, call_sid: str, stream: BrowserMediaStream) -> None:
        self._streams[call_sid] = stream
        if len(self._streams) > MAX_STREAMS:
            self._streams.popitem(last=False)
        self._served.add(stream)
        self._has_served.set()
        self._report(call_sid, CallStatus.IN_PROGRESS)

    def hung_up(self, call_sid: str) -> None:
        """The page has hung up, on its stream or by its call's key."""
        self._streams.pop(call_sid, None)
        self._report(call_sid, CallStatus.COMPLETED)

    def _report(self, call_sid: str, status: CallStatus) -> None:
        self._reports.send_nowait(StatusUpdate(call_sid, status, 2 if status.is_final else 1))

    async def run(self, desk: Desk) -> None:
        """Tell the desk how calls stand, and pages that they are served, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_pages)
            while True:
                await desk(await self._reported.receive())

    async def _tell_pages(self) -> None:
        while True:
            self._has_served = trio.Event()
            if not self._served:
                await self._has_served.wait()
            await trio.sleep(ALIVE_EVERY_S)
            for stream in tuple(self._served):
                try:
                    stream.tell_alive()
                except StreamEnded:
                    self._served.discard(stream)

    async def follow(self, call_sid: str) -> None:
        """Do nothing: a page's caller is never with somebody else."""

    async def clear_up_after(
        self, process: str, is_somebodys: Callable[[str], Awaitable[bool]]
    ) -> bool:
        """Do nothing: whatever a page's process has left ends with its socket."""
        return True

    # -- what is asked of it ---------------------------------------------------------------

    async def place_call(
        self,
        destination_number: str,
        *,
        ticket: str,
        max_duration_s: float,
        detect_machine: bool = False,
    ) -> PlacedCall:
        """Refuse: there is nobody to dial.

        Raises:
            CarrierError: Always.
        """
        raise CarrierError(NO_TELEPHONE)

    async def fetch_status(self, call_sid: str) -> StatusUpdate:
        """How a call stands, by whether its page is there."""
        is_there = call_sid in self._streams
        return StatusUpdate(
            call_sid, CallStatus.IN_PROGRESS if is_there else CallStatus.RINGING, None
        )

    async def hang_up(self, call_sid: str) -> None:
        """A call ends; its socket is closed by whoever has it."""
        was_there = self._streams.pop(call_sid, None) is not None
        self._report(call_sid, CallStatus.COMPLETED if was_there else CallStatus.NO_ANSWER)

    async def say_and_hang_up(self, call_sid: str, text: str, language: str) -> None:
        """Have the page say something, with the browser's own voice, and show it.

        Raises:
            CallNotInProgress: The page is not there.
        """
        stream = self._streams.get(call_sid)
        try:
            if stream is None:
                raise StreamEnded("there is no stream")
            stream.say(text, language)
        except StreamEnded as error:
            raise CallNotInProgress("the page is not there") from error
        await self.hang_up(call_sid)

    async def transfer(self, call_sid: str, number: str, *, ring_timeout_s: float) -> None:
        """Refuse: a page has no line that could be connected with a telephone's.

        Raises:
            CarrierError: Always.
        """
        raise CarrierError("a call from a browser cannot be transferred")

    async def reconnect(self, call_sid: str, ticket: str) -> None:
        """Do nothing: a page whose socket is lost asks for another by itself."""


class PhonesAndPages:
    """A :class:`server.carrier.Carrier` for telephones, with one for pages beside it.

    Args:
        phones: The carrier for telephones.
        pages: That of the calls that are a page's, by their names.
    """

    def __init__(self, phones: Carrier, pages: BrowserCarrier) -> None:
        self._phones = phones
        self._pages = pages

    @property
    def name(self) -> str:
        """That of the carrier for telephones."""
        return self._phones.name

    @property
    def on_wait(self) -> Callable[[float], None]:
        """Called when the carrier asks to be left alone for so many seconds."""
        return self._phones.on_wait

    @on_wait.setter
    def on_wait(self, called: Callable[[float], None]) -> None:
        self._phones.on_wait = called

    async def __aenter__(self) -> Self:
        await self._phones.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._pages.__aexit__(exc_type, exc_value, traceback)
        await self._phones.__aexit__(exc_type, exc_value, traceback)

    def _of(self, call_sid: str) -> Carrier | BrowserCarrier:
        return self._pages if self._pages.has(call_sid) else self._phones

    async def place_call(
        self,
        destination_number: str,
        *,
        ticket: str,
        max_duration_s: float,
        detect_machine: bool = False,
    ) -> PlacedCall:
        """Dial a telephone; see :meth:`server.carrier.Carrier.place_call`."""
        return await self._phones.place_call(
            destination_number,
            ticket=ticket,
            max_duration_s=max_duration_s,
            detect_machine=detect_machine,
        )

    async def fetch_status(self, call_sid: str) -> StatusUpdate:
        """Ask how a call stands."""
        return await self._of(call_sid).fetch_status(call_sid)

    async def hang_up(self, call_sid: str) -> None:
        """End a call in any state."""
        await self._of(call_sid).hang_up(call_sid)

    async def say_and_hang_up(self, call_sid: str, text: str, language: str) -> None:
        """Let the carrier itself speak to the caller, and end the call after that."""
        await self._of(call_sid).say_and_hang_up(call_sid, text, language)

    async def transfer(self, call_sid: str, number: str, *, ring_timeout_s: float) -> None:
        """Connect the caller with another number."""
        await self._of(call_sid).transfer(call_sid, number, ring_timeout_s=ring_timeout_s)

    async def reconnect(self, call_sid: str, ticket: str) -> None:
        """Give a live call another stream with this ticket."""
        await self._of(call_sid).reconnect(call_sid, ticket)


def _key(secret: bytes, call_sid: str) -> str:
    return hmac.digest(secret, f"page of {call_sid}".encode(), "sha256").hex()
