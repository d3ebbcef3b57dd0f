"""Twilio's webhooks: where they are, which are Twilio's own, what they say and are answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from twilio.request_validator import SIGNATURE_HEADER, SIGNATURE_SETTINGS_HEADER
from twilio.twiml.voice_response import VoiceResponse
from werkzeug.datastructures import MultiDict

from server.carrier.twilio.documents import say_twiml, stream_origin, stream_twiml
from server.carrier.twilio.reports import (
    check_fields,
    is_of_account,
    parse_machine_verdict,
    parse_resume,
    parse_status,
    parse_transfer,
    parse_voice,
)
from server.carrier.twilio.signature import WebhookVerifier
from server.carrier.webhooks import (
    ConnectStream,
    Document,
    EndCall,
    RefuseCall,
    Reply,
    Report,
    SayAndEndCall,
)
from server.headers import Headers, single

VOICE = "/twiml"
STATUS = "/call-status"
MACHINE = "/amd-status"
TRANSFER = "/transfer-status"
RESUME = "/resume"
_NOBODYS = (VOICE, RESUME)
"""Asked for by calls whose process is not known, or may be gone."""
_READERS: Mapping[str, Callable[[Mapping[str, str]], Report]] = {
    VOICE: parse_voice,
    STATUS: parse_status,
    MACHINE: parse_machine_verdict,
    TRANSFER: parse_transfer,
    RESUME: parse_resume,
}


class TwilioWebhooks:
    """A :class:`server.carrier.webhooks.Webhooks`: signed forms come, TwiML goes back.

    Args:
        account_sid: ``AC…``.
        auth_token: The account's secret, which Twilio signs with.
        public_url: Where Twilio reaches this server, ``https://host``. With ``http://127.0.0.1…``,
            for a simulation, media streams come over ``ws://`` instead of ``wss://``.
        shared_keys: Secrets of Twilio's newer shared keys by key id, for accounts that use them.
        at: What stands before the paths that are about a call of this process; empty if there is no
            other.
        streams_at: Where the media streams of this process's calls go, ``wss://host``, if that is
            another host than the public one.
        filters_noise: Whether Twilio is asked to filter noise out of calls.
    """

    paths = tuple(_READERS)
    signature_headers: tuple[str, ...] = (
        SIGNATURE_HEADER.lower(),
        SIGNATURE_SETTINGS_HEADER.lower(),
    )

    def __init__(
        self,
        account_sid: str,
        auth_token: str,
        public_url: str,
        *,
        shared_keys: Mapping[str, str] | None = None,
        at: str = "",
        streams_at: str | None = None,
        filters_noise: bool = False,
    ) -> None:
        self._filters_noise = filters_noise
        self._account_sid = account_sid
        self._auth_token = auth_token
        self._shared_keys = shared_keys
        self._at = at
        self._streams_at = streams_at
        self.reach_at(public_url)

    def reach_at(self, public_url: str) -> None:
        """From the next call on, Twilio is told to reach this server there."""
        self._public_url = public_url.rstrip("/")
        self._verifier = WebhookVerifier(
            self._auth_token,
            public_url,
            shared_keys=self._shared_keys,
            streams_at=self._streams_at,
        )

    def url_of(self, path: str) -> str:
        """The whole address of one of them, for a call of this process."""
        return self._public_url + (path if path in _NOBODYS else self._at + path)

    def everyones_url_of(self, path: str) -> str:
        """The whole address of one of them that names no process: for a number's settings."""
        return self._public_url + path

    @property
    def stream_url(self) -> str:
        """Where Twilio opens a call's media stream."""
        return f"{self._streams_at or stream_origin(self._public_url)}{self._at}/stream"

    # -- what comes ------------------------------------------------------------------------

    def is_signed(self, headers: Headers) -> bool:
        """True if a request claims to be Twilio's own, with one signature."""
        return single(headers, SIGNATURE_HEADER) is not None

    def verify(self, target: str, headers: Headers, form: Mapping[str, str] | None) -> bool:
        """True if Twilio has signed this request, for this server."""
        return self._verifier.verify_signature(target, headers, form)

    def verify_upgrade(self, target: str, headers: Headers) -> bool:
        """True if a stream's upgrade is signed; see :meth:`WebhookVerifier.verify_upgrade`."""
        return self._verifier.verify_upgrade(target, headers)

    def signed_for(
        self, target: str, headers: Headers, form: Mapping[str, str] | None
    ) -> str | None:
        """Which other address a webhook was signed for; see :meth:`WebhookVerifier.signed_for`."""
        return self._verifier.signed_for(target, headers, form)

    def check(self, fields: MultiDict[str, str]) -> None:
        """Check that the fields are the ones that were signed.

        Raises:
            CarrierProtocolError: They are not; see :func:`check_fields`.
        """
        check_fields(fields.items(multi=True))

    def is_ours(self, fields: Mapping[str, str]) -> bool:
        """True if a webhook is about our account, as far as it says."""
        return is_of_account(fields, self._account_sid)

    def read(self, path: str, fields: Mapping[str, str]) -> Report:
        """Read what was sent to one of the paths.

        Raises:
            CarrierProtocolError: It cannot be read.
        """
        return _READERS[path](fields)

    def path_for(self, fields: Mapping[str, str]) -> str:
        """The path that was probably meant, by what a request says."""
        if "DialCallStatus" in fields or "ParentCallSid" in fields:
            return TRANSFER
        if "MachineDetectionDuration" in fields:
            return MACHINE
        if "CallbackSource" in fields or "SequenceNumber" in fields or "CallDuration" in fields:
            return STATUS
        return VOICE

    # -- what goes back --------------------------------------------------------------------

    def write(self, reply: Reply) -> Document:
        """Write a reply as TwiML."""
        return Document(self.twiml(reply), "text/xml")

    def twiml(self, reply: Reply) -> str:
        """The TwiML of a reply."""
        match reply:
            case ConnectStream(ticket):
                return stream_twiml(
                    self.stream_url,
                    {"ticket": ticket},
                    resume_url=self.url_of(RESUME),
                    filters_noise=self._filters_noise,
                )
            case SayAndEndCall(text, language):
                return say_twiml(text, language)
            case RefuseCall():  # as busy, which Twilio does not bill
                response = VoiceResponse()
                response.reject(reason="busy")
                return str(response)
            case EndCall():
                response = VoiceResponse()
                response.hangup()
                return str(response)
