"""Telephone numbers as people write and paste them, in E.164 form: ``+`` and digits."""

from __future__ import annotations

import re
import unicodedata

import phonenumbers

_TOO_WRONG = {
    phonenumbers.ValidationResult.INVALID_COUNTRY_CODE: "the country code does not exist",
    phonenumbers.ValidationResult.TOO_SHORT: "too short for its country",
    phonenumbers.ValidationResult.TOO_LONG: "too long for its country",
    phonenumbers.ValidationResult.INVALID_LENGTH: "the wrong length for its country",
    phonenumbers.ValidationResult.IS_POSSIBLE_LOCAL_ONLY: "the area code is missing",
}
_PLUSES = dict.fromkeys(map(ord, "\uff0b\ufe62\u207a\u208a\u2795"), "+")
"""Full-width, small, raised, lowered and drawn plus signs."""
MAX_CHARS = 250
"""Of a number with all that copying has put around it."""
_NORTH_AMERICAN = re.compile(r"1?([2-9]\d{2}[2-9]\d{6})")


def clean(text: str) -> str:
    """Take out what copying puts around and into a number and nobody sees.

    That is Unicode's format characters (directions, joiners, zero-width spaces, the byte order
    mark), control characters, and an RFC 3966 ``tel:``; every kind of space becomes one, and a
    plus sign of any width a plus.

    Raises:
        ValueError: It is too long for a number.
    """
    if len(text) > MAX_CHARS:
        raise ValueError(f"too long for a phone number: {len(text)} characters")
    shown = (
        " " if unicodedata.category(character).startswith("Z") else character
        for character in text.translate(_PLUSES)
        if unicodedata.category(character) not in ("Cf", "Cc", "Mn", "Me")
    )
    return re.sub(r"(?i)^tel:\s*", "", "".join(shown).strip())


def e164(number: str) -> str:
    """Check a phone number and write it in E.164 form, ``+`` and digits.

    Raises:
        ValueError: What is wrong with it.
    """
    number = clean(number)
    if not number.startswith("+"):
        raise ValueError("must be in E.164 form: + and country code first, as in +584125551234")
    if "phone-context" in number:
        raise ValueError("not a phone number: its context must be written as its beginning")
    try:
        parsed = phonenumbers.parse(number)
    except phonenumbers.NumberParseException as error:
        raise ValueError(f"not a phone number: {str(error).rstrip('.').lower()}") from None
    verdict = phonenumbers.is_possible_number_with_reason(parsed)
    if verdict in _TOO_WRONG:
        raise ValueError(f"not a possible phone number: {_TOO_WRONG[verdict]}")
    if parsed.extension:
        raise ValueError("must not have an extension")
    return phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)


def own_number(text: str) -> str:
    """The number that calls come from, as an account's page shows it.

    North American ones are shown there without their country code, ``(500) 555-0006``. A number
    that people type to be called gets no such help: there it could be anybody's.

    Raises:
        ValueError: What is wrong with it.
    """
    number = clean(text)
    digits = re.sub(r"[\s().\-\u2010-\u2015/]", "", number)
    if digits.isdecimal():
        digits = "".join(str(int(digit)) for digit in digits)
        if found := _NORTH_AMERICAN.fullmatch(digits):
            number = f"+1{found[1]}"
        elif digits.startswith("00"):  # what is dialled abroad for a plus sign
            number = f"+{digits[2:]}"
    return e164(number)
