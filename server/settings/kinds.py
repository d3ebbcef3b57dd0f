"""The kinds of values that settings have: types that clean, check and explain what was written."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr

from server.settings import accounts, cluster, events, values
from server.settings.numbers import e164, own_number


def _http_proxy(secret: SecretStr) -> SecretStr:
    parts = urlsplit(secret.get_secret_value())
    wanted = "must be http://host:port or http://user:password@host:port"
    try:
        _ = parts.port
    except ValueError:
        raise ValueError(wanted) from None
    if parts.scheme != "http" or not parts.hostname or (parts.username and not parts.password):
        raise ValueError(wanted)
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(wanted)
    return secret


def _secret(secret: SecretStr) -> SecretStr:
    values.secret(secret.get_secret_value())
    return secret


def _checked(check: Callable[[str], str]) -> Callable[[SecretStr], SecretStr]:
    """What checks a secret as a text is checked."""

    def checked(secret: SecretStr) -> SecretStr:
        check(secret.get_secret_value())
        return secret

    return checked


def words(given: Any) -> Any:
    """A list as environment variables write it: separated by commas."""
    return [word.strip() for word in given.split(",") if word.strip()] if _is_text(given) else given


def pairs(given: Any) -> Any:
    """``name:value,name:value`` (or with ``=``) as a mapping."""
    if not _is_text(given):
        return given
    pairs = [re.split("[:=]", word, maxsplit=1) for word in words(given)]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise ValueError("must be name:value pairs separated by commas")
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name is there twice")
    return {name.strip(): value.strip() for name, value in pairs}


def _is_text(given: Any) -> bool:
    return isinstance(given, str)


def _matching(pattern: str, wanted: str) -> AfterValidator:
    """A pattern that is explained in words."""

    def check(given: str) -> str:
        if re.fullmatch(pattern, given) is None:
            raise ValueError(f"{wanted}, and one has {values.found(given)}")
        return given

    return AfterValidator(check)


def _prefix(given: str) -> str:
    prefix = re.sub(r"[\s().-]", "", given)
    if re.fullmatch(r"\+[1-9]\d{0,14}", prefix, re.ASCII) is None:
        raise ValueError("must be beginnings of numbers with their +, such as +58 or +1305")
    return prefix


def level_name(given: Any) -> Any:
    """A level by its name, of which one has two."""
    return "WARNING" if _is_text(given) and given.upper() == "WARN" else given


Proxy = Annotated[SecretStr, AfterValidator(_http_proxy)]
Secret = Annotated[SecretStr, AfterValidator(_secret)]
Model = Annotated[str, AfterValidator(values.model_name)]
SocketUrl = Annotated[str, AfterValidator(values.socket_url)]
KeyName = Annotated[
    str,
    _matching(values.KEY_NAME, "names must be up to 32 of a-z, 0-9, - and _"),
]
KeyHash = Annotated[
    str,
    _matching(
        "[0-9a-fA-F]{64}(;scope=(all|read))?",
        "each must be the SHA-256 of a key, 64 digits of 0-9 and a-f, and perhaps ;scope=read",
    ),
]
TargetName = Annotated[
    str, _matching(r"[\w .-]{1,64}", "names must be up to 64 letters, digits, spaces, _ . and -")
]
Number = Annotated[str, AfterValidator(e164)]
OwnNumber = Annotated[str, AfterValidator(values.phone_number_text), AfterValidator(own_number)]
PbxName = Annotated[str, AfterValidator(accounts.pbx_name)]
BuiltIn = Literal["hang_up", "transfer", "send_dtmf", "none"]
Prefix = Annotated[str, AfterValidator(_prefix)]
Origin = Annotated[str, AfterValidator(values.origin)]
RegistryUrl = Annotated[SecretStr, AfterValidator(_checked(cluster.registry_url))]
EventsSecret = Annotated[Secret, AfterValidator(_checked(events.secret_text))]
ClusterSecret = Annotated[Secret, AfterValidator(_checked(cluster.cluster_secret))]
