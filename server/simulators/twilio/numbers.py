"""The account's numbers: what they are set to, and the REST API that shows and sets it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from werkzeug.datastructures import MultiDict

from server.simulators.phone import new_sid
from server.simulators.twilio.refusals import ApiRefusal, is_http_url


@dataclass(slots=True)
class SimulatedNumber:
    """A number that calls come in by."""

    sid: str
    number: str
    voice_url: str = ""
    status_url: str = ""
    voice_method: str = "POST"
    status_method: str = "POST"
    voice_application_sid: str = ""
    trunk_sid: str = ""
    takes_calls: bool = True
    updates: int = 0
    """How often its settings were changed."""


class SimulatedNumbers:
    """The numbers of one account by their sid.

    Args:
        account_sid: Whose.
    """

    def __init__(self, account_sid: str) -> None:
        self._account_sid = account_sid
        self._by_sid: dict[str, SimulatedNumber] = {}

    def add(self, number: str) -> SimulatedNumber:
        """Buy another one; its webhooks are not set yet."""
        bought = SimulatedNumber(new_sid("PN"), number)
        self._by_sid[bought.sid] = bought
        return bought

    def get(self, number: str) -> SimulatedNumber:
        """The number, which is the account's."""
        return next(one for one in self._by_sid.values() if one.number == number)

    def list(self, pattern: str) -> dict[str, Any]:
        """The page of those that have this in them; all for an empty one."""
        found = [one for one in self._by_sid.values() if pattern in one.number]
        return {
            "incoming_phone_numbers": [self._resource(one) for one in found],
            "page": 0,
            "page_size": 50,
            "next_page_uri": None,
            "previous_page_uri": None,
            "start": 0,
            "end": max(0, len(found) - 1),
        }

    def update(self, sid: str, form: MultiDict[str, str]) -> dict[str, Any]:
        """Set what a form says of a number.

        Raises:
            ApiRefusal: There is no such number, or an address is none.
        """
        if (number := self._by_sid.get(sid)) is None:
            raise ApiRefusal(404, 20404, f"The requested resource {sid} was not found")
        for field in ("VoiceUrl", "StatusCallback"):
            if form.get(field) and not is_http_url(form[field]):
                raise ApiRefusal(400, 21502, f"{field} is not valid")
        number.voice_url = form.get("VoiceUrl", number.voice_url)
        number.status_url = form.get("StatusCallback", number.status_url)
        number.voice_method = form.get("VoiceMethod", number.voice_method)
        number.status_method = form.get("StatusCallbackMethod", number.status_method)
        number.voice_application_sid = form.get("VoiceApplicationSid", number.voice_application_sid)
        number.trunk_sid = form.get("TrunkSid", number.trunk_sid)
        number.updates += 1
        return self._resource(number)

    def _resource(self, one: SimulatedNumber) -> dict[str, Any]:
        path = f"/2010-04-01/Accounts/{self._account_sid}/IncomingPhoneNumbers/{one.sid}"
        return {
            "sid": one.sid,
            "account_sid": self._account_sid,
            "api_version": "2010-04-01",
            "friendly_name": one.number,
            "phone_number": one.number,
            "capabilities": {"voice": one.takes_calls, "sms": True, "mms": False, "fax": False},
            "status_callback": one.status_url,
            "status_callback_method": one.status_method,
            "voice_url": one.voice_url,
            "voice_method": one.voice_method,
            "voice_application_sid": one.voice_application_sid or None,
            "trunk_sid": one.trunk_sid or None,
            "status": "in-use",
            "uri": f"{path}.json",
        }
