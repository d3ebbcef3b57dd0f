"""TwiML: what Twilio reads about how a call goes on."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from twilio.twiml.voice_response import Connect, Dial, VoiceResponse

from server.errors import (
    ConfigurationError,
)
from server.settings.values import is_loopback

# Twilio's <Say> documents these for its basic voices; any other tag is refused with an error and
# the caller hears nothing. The first of each language speaks for its other regions.
_SAY_LANGUAGES = (
    *("en-US", "en-GB", "en-AU", "en-IN", "en-CA", "es-MX", "es-ES", "pt-BR", "pt-PT", "fr-FR"),
    *("fr-CA", "de-DE", "it-IT", "nl-NL", "ca-ES", "da-DK", "fi-FI", "ja-JP", "ko-KR", "nb-NO"),
    *("pl-PL", "ru-RU", "sv-SE", "zh-CN", "zh-TW", "zh-HK"),
)

_SAME_LANGUAGE = {
    **{"no": "nb", "nn": "nb", "nor": "nb", "nob": "nb", "nno": "nb"},
    **{"zho": "zh", "chi": "zh", "cmn": "zh", "wuu": "zh", "hsn": "zh", "gan": "zh"},
    **{"eng": "en", "spa": "es", "por": "pt", "fra": "fr", "fre": "fr", "deu": "de", "ger": "de"},
    **{"ita": "it", "nld": "nl", "dut": "nl", "cat": "ca", "dan": "da", "fin": "fi", "jpn": "ja"},
    **{"kor": "ko", "pol": "pl", "rus": "ru", "swe": "sv"},
}
"""Macro-languages, their members, and codes of three letters, by the code that Twilio uses."""
_CHINESE_REGIONS = {"hk": "HK", "mo": "HK", "tw": "TW"}
MAX_TWIML_CHARACTERS = 4_000
"""Of a document in a request of ours ("Call resource": Twiml)."""


def say_language(tag: str) -> str:
    """The language of ``<Say>`` that is nearest to a BCP 47 tag; US English if none is near."""
    given, *subtags = re.split("[-_]", tag.strip().partition(".")[0].lower())
    if given == "zh" and subtags and len(subtags[0]) == 3 and subtags[0].isalpha():
        given = subtags.pop(0)  # zh-yue and its like, the older spelling
    if given == "yue":
        return "zh-HK"
    language = _SAME_LANGUAGE.get(given, given)
    region = next((one for one in subtags if len(one) == 2 and one.isalpha()), "")
    if language == "zh":
        if not region and "hant" in subtags:
            region = "tw"
        if given == "cmn" and region in ("hk", "mo"):
            region = "cn"  # Mandarin, wherever it is spoken; zh-HK is a Cantonese voice
        region = _CHINESE_REGIONS.get(region, "CN")
    if (exact := f"{language}-{region.upper()}") in _SAY_LANGUAGES:
        return exact
    near = (one for one in _SAY_LANGUAGES if one.startswith(f"{language}-"))
    return next(near, "en-US")


def say_twiml(text: str, language: str) -> str:
    """Write the document that says something and hangs up.

    Args:
        text: Anything; it is escaped.
        language: A BCP 47 tag.
    """
    response = VoiceResponse()
    response.say(text, language=say_language(language))
    response.hangup()
    return str(response)


def check_sayable(text: str, name: str) -> None:
    """Refuse what could not be said when it is wanted.

    Args:
        text: What is to be said by :func:`say_twiml`.
        name: Of the setting it comes from.

    Raises:
        ConfigurationError: It is too long, or has characters that XML cannot have.
    """
    if found := _NOT_XML.search(text):
        raise ConfigurationError(
            f"{name} has a character at place {found.start() + 1} that cannot be said: "
            f"U+{ord(found[0]):04X}"
        )
    if (over := len(say_twiml(text, "en-US")) - MAX_TWIML_CHARACTERS) > 0:
        raise ConfigurationError(
            f"{name} is too long by {over} characters: the carrier takes a document of "
            f"{MAX_TWIML_CHARACTERS} with all that is around the text, and & < > count for more"
        )


_NOT_XML = re.compile(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")


RETRIES = "rc=5&rp=ct,rt,5xx&ct=2000&rt=3000"
"""Twilio's connection overrides, as the fragment of an address: it tries as often again as it may
when it did not reach us, got no answer in time, or one that says to try again; each try is short.
Its default is once more, and only where the connection failed."""


def stream_twiml(
    stream_url: str,
    parameters: Mapping[str, str],
    *,
    resume_url: str,
    filters_noise: bool = False,
) -> str:
    """Write the document that gives a call to a bidirectional media stream.

    When the stream has ended, but the call has not, Twilio asks how it goes on.

    Args:
        stream_url: ``wss://…`` without a query, which Twilio refuses.
        parameters: Arrive with the stream's ``start``; each name and value together under 500
            characters.
        resume_url: What it asks then.
        filters_noise: Whether Twilio is to filter noise, as far as it can (``<MediaFilter>``, which
            its packages for other languages know; this one does not).
    """
    connect = Connect()
    stream = connect.stream(url=stream_url)
    for name, value in parameters.items():
        stream.parameter(name=name, value=value)
    response = VoiceResponse()
    if filters_noise:
        response.start().add_child("MediaFilter", filter_type="noise")
    response.append(connect)
    response.redirect(f"{resume_url}#{RETRIES}", method="POST")
    return str(response)


def dial_twiml(number: str, *, caller_id: str, ring_timeout_s: float, status_url: str) -> str:
    """Write the document that connects a caller with somebody else.

    Twilio reports to ``status_url`` when the other one answers, and asks it for the next document
    when they have not answered or have hung up: without one it hangs up on the caller.
    """
    patient_url = f"{status_url}#{RETRIES}"
    dial = Dial(
        caller_id=caller_id,
        timeout=math.ceil(ring_timeout_s),
        action=patient_url,
        method="POST",
    )
    dial.number(
        number,
        status_callback=patient_url,
        status_callback_event="answered",
        status_callback_method="POST",
    )
    response = VoiceResponse()
    response.append(dial)
    return str(response)


def stream_origin(public_url: str) -> str:
    """``wss://host`` for the world, ``ws://127.0.0.1:port`` for a simulation on this machine."""
    parts = urlsplit(public_url)
    scheme = "ws" if parts.scheme == "http" and is_loopback(public_url) else "wss"
    return f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}"
