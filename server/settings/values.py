"""What the values of settings must be: each check is a function that answers in words.

No message has the value of a secret in it, nor of anything that could be one in the wrong place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

LONGEST_CALL_S = 14_400.0
"""No call may be set to last longer: Twilio's own limit is four hours."""

WEBHOOK_PATHS = (
    "/twiml",
    "/call-status",
    "/amd-status",
    "/transfer-status",
    "/resume",
    "/stream",
    "/make-call",
)
OWN_PATHS = frozenset(path.removeprefix("/") for path in WEBHOOK_PATHS) | {
    *("agents", "calls", "calls.csv", "calls.jsonl", "check", "console", "docs", "drain", "events"),
    *("healthz", "latency", "metrics", "n", "openapi.json", "phone", "readyz", "static"),
}
"""First parts of our own paths: as a proxy's prefix, one of these could be either."""
# Names that the Live API no longer serves, and what came after them (Google's deprecations page).
RETIRED_MODELS = {
    "gemini-2.5-flash-native-audio-preview-12-2025": "gemini-3.8-live",
    "gemini-2.5-flash-preview-native-audio-dialog": "gemini-3.8-live",
    "gemini-2.5-flash-exp-native-audio-thinking-dialog": "gemini-3.8-live-extended-thinking",
    "gemini-live-2.5-flash-preview": "gemini-3.8-live",
    "gemini-2.0-flash-live-001": "gemini-3.8-live",
}
_MAY_BE_GONE = "is an old preview that may have been shut down; its successor is gemini-3.8-live"
_DOUBTFUL_MODELS = {
    "gemini-live-2.5-flash-native-audio": (
        "is a name of Vertex AI, which retires it on 2026-12-13; its successor is gemini-3.8-live"
    ),
    "gemini-3.1-flash-live-preview": _MAY_BE_GONE,
    "gemini-2.5-flash-native-audio-latest": _MAY_BE_GONE,
    "gemini-2.5-flash-native-audio-preview-09-2025": _MAY_BE_GONE,
    "gemini-2.0-flash-exp": _MAY_BE_GONE,
}
_LIVE_MODELS = ("gemini-3.8-live", "gemini-3.8-live-extended-thinking")
_PLACEHOLDER = re.compile(
    r"[<>{}()\u2026]|\.\.\.|^your$|^your[-_]|^your(domain|server|host|app|subdomain|tunnel|url|name|site)"
    r"|^(xxx+|changeme|placeholder)$",
    re.IGNORECASE,
)
_SID = re.compile(r"[A-Z]{2}[0-9a-fA-F]{32}")
_SID_NAMES = {
    "AC": "an account's SID (AC…)",
    "SK": "an API key's SID (SK…)",
    "PN": "a phone number's SID (PN…)",
    "CA": "a call's SID (CA…)",
    "AP": "an application's SID (AP…)",
}
_HOST_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?")
_PRIVATE_ENDINGS = (
    *(".localhost", ".local", ".internal", ".test", ".home.arpa"),
    *(".lan", ".home", ".corp", ".intranet", ".private", ".localdomain"),
)
"""What no name of the public DNS ends in: what is reserved for that (RFC 6761, 6762, 8375; ICANN),
and what routers and systems use without a word of the root's (RFC 6762, appendix G)."""
_PATH = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)*")


def found(value: str) -> str:
    """What a value is, without the value."""
    if _SID.fullmatch(value):
        return _SID_NAMES.get(value[:2], f"a SID ({value[:2]}…)")
    return "1 character" if len(value) == 1 else f"{len(value)} characters"


# ------------------------------------------------------------------------------------------
# Accounts


def account_sid(value: str) -> str:
    """An account's SID.

    Raises:
        ValueError: It is something else.
    """
    if value.startswith("SK") and _SID.fullmatch(value):
        raise ValueError(
            "holds an API key's SID (SK…): the account's own SID (AC…) belongs here, and the key "
            "in TWILIO_API_KEY_SID with its secret in TWILIO_API_KEY_SECRET"
        )
    if not (value.startswith("AC") and _SID.fullmatch(value)):
        raise ValueError(f"must be AC and 32 digits of 0-9 and a-f, and holds {found(value)}")
    return value


def api_key_sid(value: str) -> str:
    """An API key's SID.

    Raises:
        ValueError: It is something else.
    """
    if not (value.startswith("SK") and _SID.fullmatch(value)):
        raise ValueError(f"must be SK and 32 digits of 0-9 and a-f, and holds {found(value)}")
    return value


KEY_NAME = "[a-z0-9][a-z0-9_-]{0,31}"
"""What a client's key may be called: a pattern for the whole name."""


def secret(value: str) -> str:
    """A secret that can be sent in a header, and is not the name of something.

    Raises:
        ValueError: It is no secret.
    """
    if _SID.fullmatch(value) and value[:2] in _SID_NAMES:
        raise ValueError(f"holds {found(value)}, which is no secret: is it in another's place?")
    if not value.isascii() or not value.isprintable():
        raise ValueError("has a character in it that no key has: a line break, or one not of ASCII")
    return value


def phone_number_text(value: str) -> str:
    """What may be a telephone number.

    Raises:
        ValueError: It is the name of something.
    """
    if _SID.fullmatch(value):
        raise ValueError(f"holds {found(value)}: write the number itself, as in +15005550006")
    return value


# ------------------------------------------------------------------------------------------
# Addresses


def _split(url: str, schemes: tuple[str, ...]) -> SplitResult:
    """The parts of a URL with a host.

    Raises:
        ValueError: What is wrong with it.
    """
    wanted = " or ".join(f"{scheme}://" for scheme in schemes)
    if re.search(r"\s", url):
        raise ValueError("has a space in it")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("is not an address: a bracket is not closed") from None
    try:
        _ = parts.port
    except ValueError:
        raise ValueError("has a port that is none: it must be 1 to 65535") from None
    if parts.scheme.lower() not in schemes or not parts.netloc:
        raise ValueError(f"must be an {wanted} address")
    if parts.port == 0:
        raise ValueError("has a port that is none: it must be 1 to 65535")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must have no user name and no password in it")
    if not parts.hostname:
        raise ValueError("has no host name in it")
    return parts


def public_url(url: str) -> str:
    """The address that the world reaches this server at, as it must appear in what is signed.

    Raises:
        ValueError: What is wrong with it.
    """
    parts = _split(url, ("http", "https"))
    host = parts.hostname or ""
    if any(_PLACEHOLDER.search(label) for label in (host, *host.split("."))):
        raise ValueError("is still a placeholder: put the name of your tunnel or server there")
    if not host.isascii():
        raise ValueError("must have its host name in ASCII (xn--…), as certificates have it")
    if ":" not in host and not _HOST_NAME.fullmatch(host):
        raise ValueError("has a host name that is none")
    if parts.query or parts.fragment or url.endswith(("?", "#")):
        raise ValueError("must have no query and no fragment")
    path = re.sub("/+", "/", parts.path).rstrip("/")
    for ending in WEBHOOK_PATHS:
        if path.endswith(ending):
            raise ValueError(f"must not end in {ending}: what comes before that is wanted here")
    first = unquote(path).removeprefix("/").partition("/")[0]
    if first in OWN_PATHS:
        raise ValueError(f"has a path that begins like one of this server: /{first}")
    if not _PATH.fullmatch(path) or "/." in path:
        raise ValueError("has a path with characters that no path has")
    return f"{_origin_of(parts)}{path}"


def _origin_of(parts: SplitResult) -> str:
    """Scheme, host and port of a web address, as browsers write them."""
    scheme, host, port = parts.scheme.lower(), parts.hostname or "", parts.port
    host = f"[{host}]" if ":" in host else host
    default = {"http": 80, "https": 443}[scheme]
    return f"{scheme}://{host}" + ("" if port in (None, default) else f":{port}")


def is_private_name(host: str) -> bool:
    """Whether only this machine or its network knows a host name: the public DNS never does.

    Args:
        host: In lower case, without a dot at its end, and no address.
    """
    return "." not in host or host.endswith(_PRIVATE_ENDINGS)


def unreachable(url: str) -> str | None:
    """Why nobody outside can reach a public address, or None if it seems that they can."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        address = ip_address(host)
    except ValueError:
        if is_private_name(host):
            return "is a name of this machine or network"
        if "_" in host:
            return "has an underscore in its host name, which Twilio does not accept"
        return None
    return None if address.is_global else "is an address of this machine or network"


def is_loopback(url: str | None) -> bool:
    """Whether a URL is one of this machine."""
    host = urlsplit(url or "").hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def web_url(url: str) -> str:
    """An ``http`` or ``https`` address.

    Raises:
        ValueError: What is wrong with it.
    """
    _split(url, ("http", "https"))
    return url


def node_url(url: str) -> str:
    """Where a node is reached by others: a web address without a path, on a network of their own.

    Raises:
        ValueError: What is wrong with it.
    """
    parts = _split(url, ("http",))
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("must be no more than http://host:port")
    return _origin_of(parts)


def socket_url(url: str) -> str:
    """A ``ws`` or ``wss`` address.

    Raises:
        ValueError: What is wrong with it.
    """
    _split(url, ("ws", "wss"))
    return url


def listening_host(host: str) -> str:
    """An address to listen on, without the brackets that URLs have.

    Raises:
        ValueError: It is more than an address.
    """
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if bare == "*":
        return "0.0.0.0"
    try:
        return str(ip_address(bare.partition("%")[0])) + "".join(bare.partition("%")[1:])
    except ValueError:
        if "://" in bare or "/" in bare or ":" in bare:
            raise ValueError(
                "must be an address alone, such as 0.0.0.0 or ::1; the port is PORT's"
            ) from None
        if not _HOST_NAME.fullmatch(bare.lower()):
            raise ValueError("must be an address or the name of a host") from None
        return bare


def origin(value: str) -> str:
    """An origin of web pages as browsers write it, or ``*``.

    Raises:
        ValueError: It is none.
    """
    if value == "*":
        return value
    parts = _split(value.rstrip("/"), ("http", "https"))
    if parts.path or parts.query or parts.fragment:
        raise ValueError("must be an origin alone, such as https://app.example.com")
    host = parts.hostname or ""
    if not host.isascii() or (":" not in host and not _HOST_NAME.fullmatch(host)):
        raise ValueError("has a host name that is none: * stands only alone, for every origin")
    return _origin_of(parts)


# ------------------------------------------------------------------------------------------
# The model


def model_name(name: str) -> str:
    """The name of a model.

    Raises:
        ValueError: It is no name, or one that was retired.
    """
    name = name.removeprefix("models/")
    if not re.fullmatch(r"[\w.:@-]{1,128}", name, re.ASCII):
        raise ValueError("must be the name of a model, such as gemini-3.8-live")
    if (successor := RETIRED_MODELS.get(name.lower())) is not None:
        raise ValueError(f"is {name}, which was shut down: its successor is {successor}")
    return name


def doubts_of_model(name: str) -> str | None:
    """Why a model may not be there, or None if nothing is known against it."""
    if (doubt := _DOUBTFUL_MODELS.get(name)) is not None:
        return doubt
    if name not in _LIVE_MODELS and "live" not in name and "native-audio" not in name:
        return f"is not known as a model of the Live API, as {_LIVE_MODELS[0]} is"
    return None


# ------------------------------------------------------------------------------------------
# What pydantic says, in our words


def in_words(issue: Mapping[str, Any]) -> str:
    """What is wrong with a value, as a sentence goes on after the name of its setting."""
    limits = issue.get("ctx", {})
    match issue["type"]:
        case "int_parsing" | "int_type" | "int_from_float" | "int_parsing_size":
            said = "must be a whole number"
        case "float_parsing" | "float_type":
            said = "must be a number"
        case "finite_number":
            said = "must be a number that has an end"
        case "greater_than":
            said = f"must be more than {_number(limits['gt'])}"
        case "greater_than_equal":
            said = f"must be at least {_number(limits['ge'])}"
        case "less_than":
            said = f"must be less than {_number(limits['lt'])}"
        case "less_than_equal":
            said = f"must be at most {_number(limits['le'])}"
        case "bool_parsing" | "bool_type":
            said = "must be true or false"
        case "literal_error":
            said = f"must be {limits['expected']}".replace("'", "")
        case "ip_any_network":
            said = "must be addresses or networks with a comma between, such as 10.0.0.0/8,::1"
        case "path_type":
            said = "must be a path"
        case "value_error":
            return str(limits.get("error") or issue["msg"].removeprefix("Value error, "))
        case _:
            said = "is not what it must be"
    value = issue.get("input")
    if isinstance(value, (str, int, float)) and len(text := str(value)) <= 24:
        return f"{said}, and is {text!r}"
    return f"{said}, and is {found(value)} long" if isinstance(value, str) else said


def _number(limit: float) -> str:
    return f"{limit:,g}" if isinstance(limit, float) and limit < 1e6 else f"{limit:,.0f}"
