"""What another process of this server has to answer: whole requests are passed on to it."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import cast

import httpx2
import structlog
import trio
from quart import Response, request

from server.cluster.board import Member
from server.cluster.passing_on import GIVEN, PASSED_ON, WorkerLost
from server.service import Service
from server.web.api import Answer, error_body, retry_after

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

WORKER_PAUSE_S = 2
"""When another process will be in the place of one that is gone."""
PASSED_BACK = (
    "Content-Type",
    "Location",
    "Retry-After",
    "WWW-Authenticate",
    "Idempotent-Replayed",
)


class Elsewhere:
    """Brings the request at hand to the process whose it is; one that was passed on stays.

    Args:
        service: This process's.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        # The longest is a dial: its turn, and the carrier asked several times.
        self._timeout_s = service.settings.max_dial_wait_s + 5 * service.settings.carrier_timeout_s

    @property
    def may_be_asked(self) -> bool:
        """Whether there are others, and this request is not from one of them."""
        return self._service.workers.are_several and PASSED_ON not in request.scope

    async def owner(self, call_sid: str, *, timeout_s: float | None = None) -> Response | None:
        """The answer of the process that has this call; None if that is this one, or nobody.

        Args:
            call_sid: The call.
            timeout_s: How long it may take, if less than the longest request.
        """
        if not self.may_be_asked:
            return None
        number = self._service.workers.owner(call_sid)
        if number is None or number == self._service.workers.number:
            return None
        try:
            return _response(await self._ask(number, timeout_s))
        except WorkerLost:
            logger.warning("a process does not answer for its call", worker=number)
            return None

    async def everyone(self) -> list[httpx2.Response]:
        """The answers of all others that are there."""
        answers: list[httpx2.Response] = []

        async def ask(number: int) -> None:
            with suppress(WorkerLost):
                answers.append(await self._ask(number))

        if self.may_be_asked:
            async with trio.open_nursery() as nursery:
                for number in self._service.workers.others():
                    nursery.start_soon(ask, number)
        return answers

    async def of_key(self, client: str, key: str) -> Response | None:
        """The answer of the process that knows this idempotency key; None if it is this one.

        Raises:
            WorkerLost: It is gone; what it knew may not be known to the next in its place.
        """
        number = self._service.workers.of_key(client, key)
        if not self.may_be_asked or number == self._service.workers.number:
            return None
        return _response(await self._ask(number))

    async def for_new_call(self) -> httpx2.Response | None:
        """The answer of the process that is to have a new call; None if that is this one.

        Raises:
            WorkerLost: It may have placed the call before it was gone.
        """
        workers, gone = self._service.workers, frozenset[int]()
        if not workers.are_several or self.is_given:
            return None
        body = await self._body()
        while (number := workers.choose(gone)) != workers.number:
            try:
                return await self._give(number, body)
            except WorkerLost as lost:
                if lost.reached:
                    raise
                gone |= {number}
        return None

    async def for_named_call(self, call_sid: str) -> Response | None:
        """The answer of the process that is to have this new call; None if that is this one.

        Who has a call that the carrier has named is decided once and for all.
        """
        workers, gone = self._service.workers, frozenset[Member]()
        if not self.may_be_asked:
            return None
        body = await self._body()
        for _ in range(workers.places):
            chosen = workers.choose(frozenset(member.number for member in gone))
            number = workers.claim(call_sid, chosen, gone=gone)
            if number == workers.number:
                return None
            asked = workers.member(number)
            try:
                return _response(await self._give(number, body))
            except WorkerLost as lost:
                if lost.reached and workers.is_alive(asked):
                    error = json.dumps(worker_lost(lost).body)  # it may have the call by now
                    return Response(error, 502, content_type="application/json")
                gone |= {asked}
        workers.claim(call_sid, gone=gone)
        return None

    @property
    def is_given(self) -> bool:
        """Whether another process has chosen this one for a new call."""
        return bool(request.scope.get(GIVEN))

    async def _ask(self, number: int, timeout_s: float | None = None) -> httpx2.Response:
        self._service.metrics.passed_on.labels("request").inc()
        body = await self._body()
        return await self._service.workers.pass_on(
            number, request.scope, body, timeout_s=timeout_s or self._timeout_s
        )

    async def _give(self, number: int, body: bytes) -> httpx2.Response:
        # Nothing may wait between the choice of a process and this: it is counted from here on.
        self._service.metrics.passed_on.labels("new-call").inc()
        return await self._service.workers.give_call(
            number, request.scope, body, timeout_s=self._timeout_s
        )

    async def _body(self) -> bytes:
        return cast(bytes, await request.get_data())


def passed_back(answer: httpx2.Response) -> dict[str, str]:
    """Those headers of another process's answer that go on to the client."""
    return {name: answer.headers[name] for name in PASSED_BACK if name in answer.headers}


def _response(answer: httpx2.Response) -> Response:
    return Response(answer.content, answer.status_code, passed_back(answer))


def worker_lost(lost: WorkerLost) -> Answer:
    """The answer where the process that has to give it is gone."""
    if lost.reached:  # to ask again might ring a phone twice
        return Answer(error_body("worker-lost", f"{lost}; what it did is not known"), 502)
    return Answer(error_body("worker-lost", str(lost)), 503, retry_after(WORKER_PAUSE_S))
