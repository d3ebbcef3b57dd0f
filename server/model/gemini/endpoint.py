"""Where models of Google's are, and what proves who asks: two platforms, with one protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol
from urllib.parse import urlsplit

from server.errors import ConfigurationError

Platform = Literal["developer", "vertex"]
DEFAULT_URL = "wss://generativelanguage.googleapis.com"
API_VERSION = "v1beta"
"""The documented version of the Live API (the SDK's default, v1, is not documented for Live)."""
VERTEX_VERSION = "v1beta1"
GLOBAL = "global"
JURISDICTIONS = frozenset({"us", "eu"})
"""Locations of several regions, at hosts of their own."""


class Credentials(Protocol):
    """What proves who asks, on every connection anew."""

    def headers(self) -> Mapping[str, str]:
        """Those of a connection that is opened now; it waits for nothing.

        Raises:
            ModelError: There is nothing to show at this moment.
        """
        ...

    def secrets(self) -> tuple[str, ...]:
        """What no error and no log may have in it."""
        ...

    def refused(self, headers: Mapping[str, str]) -> bool:
        """The service did not take these headers; True if others will be there that it may."""
        ...


class ApiKey:
    """A key of the Developer API.

    Args:
        key: Sent in a header, and found in no log, no error and no ``repr``.

    Raises:
        ConfigurationError: It cannot be a header.
    """

    def __init__(self, key: str) -> None:
        if not key or not key.isascii() or not key.isprintable():
            raise ConfigurationError("GEMINI_API_KEY is empty or has characters no key has")
        self._key = key

    def headers(self) -> Mapping[str, str]:
        """The key, in its header."""
        return {"x-goog-api-key": self._key}

    def secrets(self) -> tuple[str, ...]:
        """The key."""
        return (self._key,)

    def refused(self, headers: Mapping[str, str]) -> bool:
        """False: there is no other key."""
        return False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One platform's address, and how it names models."""

    platform: Platform
    url: str
    """Where connections lead."""
    place: str = ""
    """What stands before ``/publishers/…`` in the name of a model on Vertex AI."""

    @property
    def host(self) -> str:
        """Who is connected to."""
        return urlsplit(self.url).hostname or ""

    def resource(self, model: str) -> str:
        """The name of a model as a set-up has it; one with a path of its own keeps that."""
        if "/" in model:
            return model
        return f"{self.place}/publishers/google/models/{model}" if self.place else f"models/{model}"


def developer_api(url: str = DEFAULT_URL) -> Endpoint:
    """The Gemini Developer API.

    Args:
        url: Base URL, ``wss://…``; ``ws://…`` for a local double.

    Raises:
        ConfigurationError: It is none.
    """
    service = f"google.ai.generativelanguage.{API_VERSION}.GenerativeService.BidiGenerateContent"
    return Endpoint("developer", f"{_base(url)}/ws/{service}")


def vertex_ai(project: str, location: str, url: str | None = None) -> Endpoint:
    """Vertex AI, in one project and location.

    Args:
        project: Its id.
        location: A region, ``us`` or ``eu``, or ``global``.
        url: Base URL of a local double; None for Google's own.

    Raises:
        ConfigurationError: It is none.
    """
    service = f"google.cloud.aiplatform.{VERTEX_VERSION}.LlmBidiService/BidiGenerateContent"
    return Endpoint(
        "vertex",
        f"{_base(url or vertex_url(location))}/ws/{service}",
        f"projects/{project}/locations/{location}",
    )


def vertex_url(location: str) -> str:
    """Google's own base URL for a location."""
    if location == GLOBAL:
        return "wss://aiplatform.googleapis.com"
    if location in JURISDICTIONS:
        return f"wss://aiplatform.{location}.rep.googleapis.com"
    return f"wss://{location}-aiplatform.googleapis.com"


def _base(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise ConfigurationError("GEMINI_URL must be a ws:// or wss:// base URL")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
