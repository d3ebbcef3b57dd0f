"""One request, one call: what was answered to a request is answered again, not done again.

A client that has lost its connection cannot know whether a phone rings. With an
``Idempotency-Key`` it may ask again: the draft of the IETF's HTTP API group, "The Idempotency-Key
HTTP Header Field".

What is being worked on is known here only; answers are also kept with the records, so that a
request finds the answer that was given before a restart.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.errors import CallRefused

MAX_KEY_CHARS = 255


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer of the API."""

    body: Mapping[str, Any]
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As it is stored."""
        return {"body": dict(self.body), "status": self.status, "headers": dict(self.headers)}


def fingerprint_of(content: bytes) -> bytes:
    """What two requests for the same have in common."""
    return hashlib.sha256(content).digest()


def key_reused() -> CallRefused:
    """Another request has had this key."""
    return CallRefused(
        "this Idempotency-Key was used for another request",
        reason="idempotency-key-reused",
        status=422,
    )


@dataclass(slots=True)
class _Request:
    fingerprint: bytes
    expires_at: float
    answer: Answer | None = None


class Idempotency:
    """Answers kept for as long as the same request may come again.

    Args:
        ttl_s: How long an answer is kept.
        max_kept: How many answers are kept for one client; then its oldest goes first.
    """

    def __init__(self, *, ttl_s: float = 86_400.0, max_kept: int = 10_000) -> None:
        self._ttl_s = ttl_s
        self._max_kept = max_kept
        self._requests: dict[str, OrderedDict[str, _Request]] = {}

    def begin(self, client: str, key: str, content: bytes, now: float) -> Answer | None:
        """A request has come.

        Args:
            client: Whose API key it showed; keys of different clients are different.
            key: Its ``Idempotency-Key``.
            content: What it asks for, in one agreed form.
            now: ``trio.current_time()``.

        Returns:
            The answer it has had already; None when it is new and :meth:`end` must follow.

        Raises:
            CallRefused: The same request is still being worked on (409), or the key was used for
                another one (422).
        """
        requests = self._requests.setdefault(client, OrderedDict())
        self._drop_old(requests, now)
        fingerprint = fingerprint_of(content)
        known = requests.get(key)
        if known is None:
            requests[key] = _Request(fingerprint, now + self._ttl_s)
            return None
        if known.fingerprint != fingerprint:
            raise key_reused()
        if known.answer is None:
            raise CallRefused(
                "the first request with this Idempotency-Key is still being worked on",
                reason="in-flight",
                status=409,
                retry_after_s=1,
            )
        return known.answer

    def end(self, client: str, key: str, answer: Answer | None) -> None:
        """The work is done: keep the answer, or with None forget that there was a request."""
        requests = self._requests[client]
        if answer is None:
            del requests[key]
        else:
            requests[key].answer = answer

    def _drop_old(self, requests: OrderedDict[str, _Request], now: float) -> None:
        too_many = len(requests) - self._max_kept + 1
        old: list[str] = []
        for key, request in requests.items():
            if request.answer is None:  # being worked on: its own request needs it
                continue
            if len(old) >= too_many and request.expires_at > now:
                break  # the rest is younger
            old.append(key)
        for key in old:
            del requests[key]
