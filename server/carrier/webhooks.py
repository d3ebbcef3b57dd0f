"""What a carrier asks and reports, and what it is answered.

Most do it over HTTP. Each brings its own :class:`Webhooks`: where they are, who may have sent one,
what it says, and how an answer is written. One that tells its news on a connection of ours has
:class:`Events` instead, and carries the answers out itself. The server knows only these words.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from werkzeug.datastructures import MultiDict

from server.carrier import (
    MachineVerdict,
    ResumeRequest,
    StatusUpdate,
    TransferUpdate,
    VoiceRequest,
)
from server.headers import Headers

Report = VoiceRequest | ResumeRequest | StatusUpdate | MachineVerdict | TransferUpdate


@dataclass(frozen=True, slots=True)
class ConnectStream:
    """Give the call a media stream that shows this ticket."""

    ticket: str


@dataclass(frozen=True, slots=True)
class RefuseCall:
    """Refuse an inbound call: the caller hears a busy tone."""


@dataclass(frozen=True, slots=True)
class EndCall:
    """End the call."""


@dataclass(frozen=True, slots=True)
class SayAndEndCall:
    """Let the carrier itself say something, and then end the call."""

    text: str
    language: str
    """A BCP 47 tag; a carrier without it takes the nearest it has."""


Reply = ConnectStream | RefuseCall | EndCall | SayAndEndCall


@dataclass(frozen=True, slots=True)
class PassOn:
    """Another process of this server is to have a new call, and the carrier brings it there.

    Only where the carrier's news comes on a connection: a request is passed on before it is read.
    """

    process: str
    """Its name."""


@dataclass(frozen=True, slots=True)
class Document:
    """A reply as the carrier reads it."""

    text: str
    content_type: str


Desk = Callable[[Report], Awaitable[Reply | PassOn | None]]
"""Answers what a carrier asks; None where it has only reported. It may wait for a second or two."""


class Events(Protocol):
    """What a carrier tells on a connection that we keep open."""

    async def run(self, desk: Desk) -> None:
        """Tell the desk of everything, and do as it answers, until cancelled."""
        ...

    async def follow(self, call_sid: str) -> None:
        """Tell of a caller who is with somebody else, though another process has sent them there,
        which is gone.

        Raises:
            CallNotInProgress: The call is over.
            CarrierError: Refused or not reached.
        """

    async def clear_up_after(
        self, process: str, is_somebodys: Callable[[str], Awaitable[bool]]
    ) -> bool:
        """See to what a process that is gone has left at the carrier, beside the calls that were
        taken over: nobody else is told of it.

        Args:
            process: Its name.
            is_somebodys: Says whether a call is some process's.

        Returns:
            False if something is left, and it is to be tried again.

        Raises:
            CarrierError: Refused or not reached.
        """


class Webhooks(Protocol):
    """One carrier's webhooks: proof of who has sent one, and both directions of its words.

    A carrier that derives from this has the answers of one that says nothing about accounts and
    signs no addresses, and writes the others.

    Attributes:
        paths: Where they are, below the public address.
        signature_headers: The headers, in lower case, that prove who has sent a request.
    """

    paths: tuple[str, ...]
    signature_headers: tuple[str, ...]

    def is_signed(self, headers: Headers) -> bool:
        """True if a request claims to be the carrier's own, with one signature."""
        ...

    def verify(self, target: str, headers: Headers, form: Mapping[str, str] | None) -> bool:
        """True if the carrier has signed this request, for this server.

        Args:
            target: Path and query exactly as requested, with their escapes.
            headers: The request's headers.
            form: The body's fields, all of them, a multi-dict if names repeat; None for a GET.
        """
        ...

    def verify_upgrade(self, target: str, headers: Headers) -> bool:
        """True if the upgrade of a media stream is signed; False is a reason to look twice."""
        return False

    def signed_for(
        self, target: str, headers: Headers, form: Mapping[str, str] | None
    ) -> str | None:
        """The address, without its query, that a webhook which is not ours was signed for."""
        return None

    def check(self, fields: MultiDict[str, str]) -> None:
        """Check that fields whose request is signed are the ones that were signed.

        Raises:
            CarrierProtocolError: They are not.
        """

    def is_ours(self, fields: Mapping[str, str]) -> bool:
        """True if a webhook is about our account, as far as it says."""
        return True

    def read(self, path: str, fields: Mapping[str, str]) -> Report:
        """Read what was sent to one of the paths.

        Raises:
            CarrierProtocolError: It cannot be read.
        """
        ...

    def path_for(self, fields: Mapping[str, str]) -> str:
        """The path that was probably meant, by what a request says."""
        return self.paths[0]

    def write(self, reply: Reply) -> Document:
        """Write a reply as the carrier reads it."""
        ...
