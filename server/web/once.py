"""One request, one call: what was answered to a request is answered again, not done again.

A client that has lost its connection cannot know whether a phone rings. With an
``Idempotency-Key`` it may ask again: the draft of the IETF's HTTP API group, "The Idempotency-Key
HTTP Header Field".

What is being worked on is known in memory, and to the registry where there are other processes;
answers are also kept with the records, so that a request finds the answer that was given before a
restart, or by another machine.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import trio

from server.cluster.cluster import Cluster
from server.cluster.registry import RegistryAway
from server.errors import CallRefused
from server.records.store import Records
from server.records.words import RecordsUnavailable, StoredRequest
from server.web.api import Answer

MAX_KEY_CHARS = 255
END_S = 1.0
"""For the registry to be told that a request is done; it would find that out by itself."""
MAX_VOID = 10_000
"""Requests of which nothing came, though the database may not know; then the oldest is left to it.
"""


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


def outcome_unknown() -> CallRefused:
    """Nobody has seen the first request with this key to its end."""
    return CallRefused(
        "the first request with this Idempotency-Key was broken off while it was worked on: "
        "a phone may have rung; see GET /calls, and ask again with another key",
        reason="outcome-unknown",
        status=409,
    )


def in_flight() -> CallRefused:
    """The first request with this key has no answer yet."""
    return CallRefused(
        "the first request with this Idempotency-Key is still being worked on",
        reason="in-flight",
        status=409,
        retry_after_s=1,
    )


@dataclass(slots=True)
class _Request:
    fingerprint: bytes
    expires_at: float
    answer: Answer | None = None
    is_unknown: bool = False
    """A phone may have rung for it, and nobody has seen what came of that."""


class Memory:
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
            CallRefused: The same request is still being worked on, or what became of it is not
                known (409); or the key was used for another one (422).
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
        if known.is_unknown:
            raise outcome_unknown()
        if known.answer is None:
            raise in_flight()
        return known.answer

    def end(
        self, client: str, key: str, answer: Answer | None, *, is_unknown: bool = False
    ) -> None:
        """The work is done: keep the answer, or with None forget that there was a request, unless
        what became of it is not known.
        """
        requests = self._requests[client]
        if answer is None and not is_unknown:
            del requests[key]
        else:
            requests[key].answer = answer
            requests[key].is_unknown = answer is None

    def _drop_old(self, requests: OrderedDict[str, _Request], now: float) -> None:
        too_many = len(requests) - self._max_kept + 1
        old: list[str] = []
        for key, request in requests.items():
            if request.answer is None and not request.is_unknown:
                # It is being worked on: its own request needs it.
                continue
            if len(old) >= too_many and request.expires_at > now:
                break  # the rest is younger
            old.append(key)
        for key in old:
            del requests[key]


@dataclass(slots=True)
class Dial:
    """How far a request has come.

    Attributes:
        may_have_rung: Whether a phone may have rung for it, and nobody has said yet what came of
            that.
    """

    may_have_rung: bool = False

    def begin(self) -> None:
        """A phone may ring from here on, whoever goes away."""
        self.may_have_rung = True


class Once:
    """Does what a request asks for once, and gives its answer again to the same request.

    Args:
        records: Where answers are kept beyond this process.
        cluster: What is worked on in other processes, its registry knows.
        ttl_s: How long an answer is kept.
    """

    def __init__(self, records: Records, cluster: Cluster, *, ttl_s: float) -> None:
        self._records = records
        self._cluster = cluster
        self._ttl_s = ttl_s
        self._memory = Memory(ttl_s=ttl_s)
        # When requests were marked as worked on of which nothing came, and whose marks the database
        # could not be told to forget.
        self._void: OrderedDict[tuple[str, str], float] = OrderedDict()

    async def answer(
        self,
        client: str,
        key: str,
        content: bytes,
        do: Callable[[Callable[[], None]], Awaitable[tuple[Answer, bool]]],
    ) -> tuple[Answer, bool]:
        """Do what a request asks for, unless it was done.

        Args:
            client: Whose API key it showed; keys of different clients are different.
            key: Its ``Idempotency-Key``.
            content: What it asks for, in one agreed form.
            do: Does it, and calls what it is given before a phone may ring; with the answer,
                whether to do it again could ring a phone twice.

        Returns:
            The answer, and whether it is an earlier one.

        Raises:
            CallRefused: The same request is still being worked on, or what became of it is not
                known (409); or the key was used for another one (422).
        """
        earlier = self._memory.begin(client, key, content, trio.current_time())
        if earlier is not None:
            return earlier, True
        kept: Answer | None = None
        dial = Dial()
        try:
            async with self._alone(client, key, fingerprint_of(content)):
                fingerprint = fingerprint_of(content).hex()
                if (kept := await self._recall(client, key, fingerprint)) is not None:
                    return kept, True
                answer, kept = await self._do(client, key, fingerprint, do, dial)
                return answer, False
        finally:
            self._memory.end(client, key, kept, is_unknown=dial.may_have_rung)

    @asynccontextmanager
    async def _alone(self, client: str, key: str, fingerprint: bytes) -> AsyncGenerator[None]:
        """No other process works on this request meanwhile, as far as can be known.

        Raises:
            CallRefused: Somebody does (409), or on another request with this key (422).
        """
        registry = self._cluster.registry
        with suppress(RegistryAway):
            others = await registry.begin_request(client, key, fingerprint)
            if others is not None:
                raise in_flight() if others == fingerprint else key_reused()
        try:
            yield
        finally:
            # The answer is with the records by now: who comes next finds it there.
            with trio.move_on_after(END_S, shield=True), suppress(RegistryAway):
                await registry.end_request(client, key)

    async def _do(
        self,
        client: str,
        key: str,
        fingerprint: str,
        do: Callable[[Callable[[], None]], Awaitable[tuple[Answer, bool]]],
        dial: Dial,
    ) -> tuple[Answer, Answer | None]:
        """Do what was asked and keep the answer: the answer, and what of it is given again."""
        # A void mark is made anew as it was: which of the two the database has is the same then.
        void_at, now = self._void.pop((client, key), 0.0), time.time()
        marked_at = void_at if void_at > now - self._ttl_s else now
        kept: StoredRequest | None = None
        try:
            mark = StoredRequest(fingerprint, created_at=marked_at)
            await self._records.write_request(client, key, mark)
            answer, is_final = await do(dial.begin)
            dial.may_have_rung = False
            if is_final:
                kept = StoredRequest(fingerprint, answer.as_dict())
            return answer, answer if is_final else None
        finally:
            # Whoever went away before it was dialled may ask again; after that, nobody may.
            if not dial.may_have_rung:
                is_written = await self._records.write_request(client, key, kept)
                if kept is None and not is_written:
                    self._note_void(client, key, marked_at)

    def _note_void(self, client: str, key: str, marked_at: float) -> None:
        self._void[client, key] = marked_at
        if len(self._void) > MAX_VOID:
            self._void.popitem(last=False)

    async def _recall(self, client: str, key: str, fingerprint: str) -> Answer | None:
        """The answer that an earlier process has given to this request, if the database knows.

        Raises:
            CallRefused: It was another request, or one that was not seen to its end, as when its
                process died.
        """
        try:
            stored = await self._records.find_request(client, key)
        except RecordsUnavailable:
            return None  # a call does not wait for the database; this process's own are known
        if stored is None:
            return None
        if stored.answer is None and stored.created_at == self._void.get((client, key)):
            return None  # it is our own, of a request of which nothing came
        if stored.fingerprint != fingerprint:
            raise key_reused()
        if stored.answer is None:
            raise outcome_unknown()
        return Answer(**stored.answer)
