"""The real accounts that settings can name: which carrier, which model, and what each needs.

The carrier and the model are chosen apart, and each is there whole or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field

from server.errors import ConfigurationError
from server.settings import values

TWILIO = ("twilio_account_sid", "twilio_auth_token", "twilio_phone_number")
ASTERISK = ("asterisk_url", "asterisk_user", "asterisk_secret")
_API_KEY = ("twilio_api_key_sid", "twilio_api_key_secret")


@dataclass(frozen=True, slots=True)
class TwilioAccount:
    """An account at Twilio, complete."""

    account_sid: str
    auth_token: str = field(repr=False)
    phone_number: str
    api_key: tuple[str, str] | None = field(default=None, repr=False)
    """SID and secret of the key that the REST API is asked with, if it is not the token."""


@dataclass(frozen=True, slots=True)
class AsteriskAccount:
    """A user of a PBX's ARI, and how calls go out of it and to it."""

    url: str
    """Of its HTTP server, ``http://host:8088``."""
    user: str
    secret: str = field(repr=False)
    number: str
    """That calls come from; empty for the trunk's own."""
    dial: str
    """What is dialled, with ``{number}`` in it."""
    app: str
    """What the dialplan's ``Stasis`` names."""
    client: str
    """The connection of ``websocket_client.conf`` that media streams come by."""
    law: str
    """``ulaw`` or ``alaw``."""
    transfer_context: str
    apology: str
    """What is played where a call has failed."""


@dataclass(frozen=True, slots=True)
class Account:
    """The real accounts, complete."""

    carrier: TwilioAccount | AsteriskAccount
    gemini_api_key: str = field(repr=False)
    public_url: str
    """Where the carrier reaches this server; of no use where it need not."""


NAMES = (*TWILIO, *ASTERISK, *_API_KEY, "gemini_api_key", "public_url")
"""The settings that say which accounts there are."""


def check_accounts(
    carrier: str, given: Collection[str], public_url: str | None, twilio_api_url: str | None
) -> None:
    """Check that a real account is named whole, and no other beside it.

    Args:
        carrier: Whose lines are wanted.
        given: Those of :data:`NAMES` that are set.
        public_url: Where the carrier is to reach this server.
        twilio_api_url: Where Twilio's REST API is, if it is a double.

    Raises:
        ConfigurationError: What is missing, or too much.
    """
    is_asterisk = carrier == "asterisk"
    ours, others = (ASTERISK, TWILIO) if is_asterisk else (TWILIO, ASTERISK)
    if too_much := [name.upper() for name in others if name in given]:
        raise ConfigurationError(
            f"{', '.join(too_much)} set, but CARRIER is {carrier}: set CARRIER="
            f"{'twilio' if is_asterisk else 'asterisk'}, or leave them out"
        )
    needed = (*ours, "gemini_api_key")
    wanted = needed if is_asterisk else (*needed, "public_url")
    there = [name.upper() for name in needed if name in given]
    if is_asterisk:
        there.append("CARRIER=asterisk")
    missing = [name.upper() for name in wanted if name not in given]
    if there and missing:
        raise ConfigurationError(
            f"{', '.join(there)} set, but not {', '.join(missing)}: set all of them to use "
            "real accounts, or none of the keys to run on the embedded simulators"
        )
    key = [name.upper() for name in _API_KEY if name in given]
    if len(key) == 1 or (key and (is_asterisk or not there)):
        raise ConfigurationError(
            f"{key[0]} set, but not all that belongs to it: an API key is a SID and a secret, "
            "and needs the account's own SID and token beside it, for webhooks are signed "
            "with the token"
        )
    if there and not is_asterisk and public_url is not None:
        _check_public_url(public_url, twilio_api_url)


def _check_public_url(url: str, twilio_api_url: str | None) -> None:
    is_double = values.is_loopback(twilio_api_url)
    if not is_double and not url.startswith("https://"):
        raise ConfigurationError(
            "PUBLIC_URL must be an https:// address that Twilio can reach: Media Streams "
            "connect by wss:// only"
        )
    # Twilio's double on this machine reaches its names, but has no certificate for them.
    if not is_double or (url.startswith("https://") and values.is_loopback(url)):
        problem = values.unreachable(url)
        if problem is not None:
            raise ConfigurationError(
                f"PUBLIC_URL {problem}: name the https:// address of your tunnel or proxy, "
                "where Twilio can reach it"
            )


def dial_string(value: str) -> str:
    """What Asterisk dials: a technology and a place, with ``{number}`` where the number goes.

    Raises:
        ValueError: It is not that.
    """
    is_place = re.fullmatch(r"[\w.+{}:;=-]+/[\w.+{}@:;=/-]+", value) is not None
    if value.count("{number}") != 1 or value.count("{") != 1 or not is_place:
        raise ValueError("must be like PJSIP/{number}@trunk, with {number} in it once")
    return value


def pbx_name(value: str) -> str:
    """A name of the PBX's configuration: of an app, a context or a connection.

    Raises:
        ValueError: It is none.
    """
    if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", value) is None:
        raise ValueError("must be up to 64 letters, digits, _ and -")
    return value


def sound(value: str) -> str:
    """What ARI plays: ``sound:`` and a file's name without its ending.

    Raises:
        ValueError: It is not that.
    """
    if re.fullmatch(r"sound:[\w./-]{1,200}", value) is None or ".." in value:
        raise ValueError("must be sound: and the name of a file without its ending")
    return value
