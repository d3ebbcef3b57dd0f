"""Twilio's account beside its calls: how it stands, and the webhooks of its numbers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from twilio.rest import Client
from twilio.rest.api.v2010.account.incoming_phone_number import IncomingPhoneNumberInstance

from server.carrier.account import TRUNK, AccountState, NumberHooks, OwnNumber
from server.carrier.twilio.webhooks import STATUS, VOICE, TwilioWebhooks
from server.errors import CarrierError

T = TypeVar("T")
MAX_URL_CHARS = 2_000
"""Of a webhook that is there; what is longer is cut."""
PAGE_SIZE = 50
"""Numbers that are looked through for the one that was asked for."""
APPLICATION = "a TwiML application"
NOBODYS = "+15005550001"
"""A number that is no account's (Twilio's "Test credentials")."""


class Request(Protocol):
    """Makes a request of the REST API, and makes it again where that does no harm."""

    def __call__(self, request: Callable[[], Awaitable[T]], *, repeatable: bool) -> Awaitable[T]:
        """Make it."""
        ...


class TwilioNumbers:
    """A :class:`server.carrier.account.Numbers` over Twilio's ``IncomingPhoneNumbers``.

    Args:
        client: The package's.
        account_sid: The account's.
        request: Makes its requests; what it raises is a CarrierError.
        webhooks: The account's, which numbers are to have.
    """

    def __init__(
        self, client: Client, account_sid: str, request: Request, webhooks: TwilioWebhooks
    ) -> None:
        self._client = client
        self._account_sid = account_sid
        self._request = request
        self._webhooks = webhooks

    @property
    def ours(self) -> NumberHooks:
        """What a number has that this server answers; no process of it is named there."""
        webhooks = self._webhooks
        return NumberHooks(webhooks.everyones_url_of(VOICE), webhooks.everyones_url_of(STATUS))

    async def find(self, number: str) -> OwnNumber | None:
        """Look one up by its E.164 number; None if it is not the account's.

        Raises:
            CarrierError: Refused or not reached.
        """
        sid, api = self._account_sid, self._client.api.v2010
        # Not the package's list, whose errors lose the status. The number is a pattern to Twilio.
        page = await self._request(
            lambda: api.fetch_async(
                "GET",
                f"/Accounts/{sid}/IncomingPhoneNumbers.json",
                params={"PhoneNumber": number, "PageSize": PAGE_SIZE},
            ),
            repeatable=True,
        )
        try:
            shown = [
                IncomingPhoneNumberInstance(api, one, sid) for one in page["incoming_phone_numbers"]
            ]
            return next((_own(one) for one in shown if one.phone_number == number), None)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CarrierError("Twilio's answer cannot be read") from error

    async def set_hooks(self, number: OwnNumber, hooks: NumberHooks) -> OwnNumber:
        """Have a number's callers asked about at other addresses.

        A TwiML application that has answered them is taken off the number.

        Raises:
            CarrierError: Refused or not reached.
        """
        taken_off = {"voice_application_sid": ""} if number.answered_by == APPLICATION else {}
        updated = await self._request(
            lambda: self._client.incoming_phone_numbers(number.name).update_async(
                voice_url=hooks.voice_url,
                voice_method=hooks.voice_method,
                status_callback=hooks.status_url,
                status_callback_method=hooks.status_method,
                **taken_off,
            ),
            repeatable=True,
        )
        try:
            return _own(updated)
        except TypeError as error:
            raise CarrierError("Twilio's answer cannot be read", outcome_unknown=True) from error

    async def describe(self) -> AccountState:
        """How the account stands.

        Raises:
            CarrierError: Refused or not reached.
        """
        try:
            account = await self._request(
                lambda: self._client.api.accounts(self._account_sid).fetch_async(),
                repeatable=True,
            )
        except CarrierError as error:
            if error.status not in (401, 403) or self._client.username == self._account_sid:
                raise
            # Standard keys may ask for all but accounts and keys ("API keys overview").
            await self.find(NOBODYS)
            return AccountState("it takes the API key, which may not ask how the account stands")
        status = str(account.status or "of no known status")[:40]
        if status != "active":
            return AccountState(
                f"the account is {status}",
                advice="see to it in the Twilio Console: calls need an active account",
            )
        if str(account.type) == "Trial":
            return AccountState(
                "the account is active",
                doubt="it is a trial: it calls verified numbers only, and says so to callers",
            )
        return AccountState("the account is active")


def _own(one: IncomingPhoneNumberInstance) -> OwnNumber:
    """A number as Twilio shows it.

    Raises:
        TypeError: It is shown as something else.
    """
    if not isinstance(one.sid, str) or not isinstance(one.phone_number, str):
        raise TypeError("a number without its sid")
    capabilities: object = one.capabilities
    answered_by = TRUNK if one.trunk_sid else ""
    if one.voice_application_sid:
        answered_by = APPLICATION
    return OwnNumber(
        name=one.sid,
        number=one.phone_number,
        hooks=NumberHooks(
            _url(one.voice_url),
            _url(one.status_callback),
            _method(one.voice_method),
            _method(one.status_callback_method),
        ),
        takes_calls=not isinstance(capabilities, dict) or bool(capabilities.get("voice", True)),
        answered_by=answered_by,
    )


def _url(given: object) -> str:
    return given[:MAX_URL_CHARS] if isinstance(given, str) else ""


def _method(given: object) -> str:
    """How Twilio asks; by POST where nothing is set."""
    return "GET" if given == "GET" else "POST"
