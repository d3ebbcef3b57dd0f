"""What another process of this server has to answer: whole requests are passed on to it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from http import HTTPStatus
from math import inf
from typing import Any, cast

import httpx2
import structlog
import trio
from quart import Quart, Response, request

from server.cluster.choosing import QUIET_S, seen_of, takers
from server.cluster.passing_on import FINAL, PASSED_BACK, PASSED_ON, Hop, WorkerLost
from server.cluster.registry import Holding, Member, RegistryAway
from server.errors import CallRefused
from server.service import Service
from server.switchboard.register import LOOK_UP_TIMEOUT_S
from server.switchboard.rescue import CallLost
from server.web.api import Answer, error_body, refusal, retry_after
from server.web.http_request import content_of
from server.web.path_prefix import NAMED

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

WORKER_PAUSE_S = 2
"""When another process will be in the place of one that is gone."""
REGISTRY_PAUSE_S = 1
"""When to ask again for a call that the registry may know of."""
CLAIM_TRIES = 20
MAX_ASKED = 10
"""Processes of other machines that a list of calls is put together with: more would cost all of
them more than whoever asks has of it."""
MAX_ASKED_FOR_CALL = 100
"""Processes that are asked whether they know a call, while the registry cannot say whose it is."""
ASKED_AT_ONCE = 20
"""Of all who are asked the same; the others wait for their turn."""
LIST_TIMEOUT_S = 2.0
"""For others to say which calls they have; one that is gone shall not hold the list up."""
LOOK_UP_S = 5.0
"""For a call's process to say what it knows of the call: one that is stopped says nothing."""
KNOWS_S = 2.0
"""For others to say whether they know a call, while nobody can say whose it is."""
TAKEOVER_ASK_S, QUIET_ASK_S = 1.2, 0.5
"""For the process of a call to say that it has it, while its caller hears nothing; then another
takes the call. One of which nothing was heard lately, though others were, has less time."""
OWNER_S = 2.0
"""For one that has said so to say how the call goes on: it makes sure that the call is its own, and
that its stream is not heard any more."""
HOLD_ON_S = 2.0
"""How long the carrier waits for a registry that is away; it asks again after three seconds."""
HOLD_ON_PAUSE_S = 0.1
DENIALS = 2
"""So often a call's process has to say that it does not have it: at first its way there may be the
longer one."""
BEGIN_S = 2.0
"""For the process of a call that comes in to begin it, beside what a ``route`` and the database may
take: the carrier waits for fifteen seconds, and another process may have to begin it yet."""
ORPHAN_S = 30.0
"""For so long after its process was last heard of, a call may yet be taken over by another."""
MAX_TAKERS = 3
"""Processes that are asked to take a call which this one cannot."""


class Elsewhere:
    """Brings the request at hand to the process whose it is; one that was passed on stays.

    Args:
        service: This process's.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        # The longest is a dial: its turn, and the carrier asked several times.
        self._timeout_s = service.settings.max_dial_wait_s + 5 * service.settings.carrier_timeout_s
        self._begin_s = BEGIN_S + LOOK_UP_TIMEOUT_S + service.settings.agents_route_timeout_s

    @property
    def may_be_asked(self) -> bool:
        """Whether there are others, and this request is not from one of them."""
        return self._service.cluster.are_several and PASSED_ON not in request.scope

    @property
    def _may_look_up(self) -> bool:
        """Whether somebody else may have the call: who was named by a path may have lost it."""
        hop: Hop | None = _hop()
        return self._service.cluster.are_several and (hop is None or hop.named)

    # -- about a call ----------------------------------------------------------------------

    async def owner(self, call_sid: str, *, timeout_s: float | None = None) -> Response | None:
        """The answer of the process that has this call; None if that is this one, or nobody.

        Args:
            call_sid: The call.
            timeout_s: How long it may take, if less than the longest request.

        Raises:
            RegistryAway: Nobody who can be asked knows the call, and somebody may have it.
        """
        theirs, _ = await self.look_up(call_sid, timeout_s=timeout_s)
        return theirs

    async def look_up(
        self, call_sid: str, *, timeout_s: float | None = None
    ) -> tuple[Response | None, Holding | None]:
        """The answer of the process that has this call, and who that is or was.

        Args:
            call_sid: The call.
            timeout_s: How long it may take, if less than the longest request.

        Returns:
            No answer if it is this process, or one that does not answer. Nobody's holding if it is
            nobody's, or was not looked up: the call is known here, or another has looked it up.

        Raises:
            RegistryAway: Nobody who can be asked knows the call, and somebody may have it.
        """
        cluster = self._service.cluster
        if not cluster.are_several:
            return None, None
        hop: Hop | None = _hop()
        if hop is not None and hop.if_known and not self._is_known(call_sid):
            return _not_here(), None
        if not self._may_look_up:
            return None, None
        named = cast("dict[str, Any]", request.scope).get(NAMED)
        if named is not None and self._is_known(call_sid):
            return None, None
        if named not in (None, cluster.me.name) and hop is None:
            with suppress(WorkerLost):
                asked = Hop(cluster.me.name, named=True)
                return _response(await self._ask(named, asked, timeout_s)), None
        try:
            holding = await cluster.registry.owner(call_sid)
        except RegistryAway:
            if self._is_known(call_sid):
                return None, None
            return await self._whoever_knows(call_sid, timeout_s), None
        if holding is None or holding.member == cluster.me or self._is_gone(holding.member):
            return None, holding
        name = holding.member.name
        try:
            return _response(await self._ask(name, Hop(cluster.me.name), timeout_s)), holding
        except WorkerLost:
            logger.warning("a process does not answer for its call", worker=name)
            return None, holding

    def check_nobodys(self, call_sid: str, holding: Holding | None) -> None:
        """Make sure that a call that nobody knows is nobody's.

        Args:
            call_sid: The call.
            holding: Whose it is or was; None also for one that another process takes for ours.

        Raises:
            RegistryAway: Its process may have just died, and nobody have taken it over yet; or we
                are about to have it, or had it until now.
        """
        cluster, hop = self._service.cluster, _hop()
        if holding is None and (hop is None or hop.named):
            return
        if holding is None or holding.member == cluster.me:
            may_live = not self._service.calls.register.has_ended(call_sid)
        else:
            age_s = self._age_s(holding.member)
            may_live = age_s < ORPHAN_S or not self._service.rescue.lookout.has_settled()
        if may_live:
            raise RegistryAway("the process of this call is gone, and another may go on with it")

    def _age_s(self, member: Member) -> float:
        """How long ago a process was heard of."""
        seen = seen_of(self._service.cluster.registry.others(), member)
        return inf if seen is None else seen.age_s

    async def in_progress(self, call_sid: str) -> tuple[Response | None, bool]:
        """The answer of the process that has this call, which the carrier asks how it goes on.

        One that is gone, or does not answer in time, loses the call to this process, or to another
        if this one cannot take it: the carrier has one place for what it is told, so whoever
        answers has the call.

        Args:
            call_sid: The call.

        Returns:
            No answer if it is this process that has the call, by now, or nobody; and whether
            another had it, but has left nothing to go on with.

        Raises:
            RegistryAway: Nobody who can be asked knows the call, and somebody may have it.
        """
        cluster, rescue = self._service.cluster, self._service.rescue
        if not cluster.are_several:
            return None, False
        hop: Hop | None = _hop()
        if hop is not None and not hop.named:
            return await self._of_ours(call_sid, at_once=hop.if_known), False
        give_up_at, denied = trio.current_time() + HOLD_ON_S, Counter[Holding]()
        while True:
            try:
                holding = await cluster.registry.owner(call_sid)
                if holding is None or holding.member == cluster.me:
                    await rescue.settled(call_sid)
                    if holding is None or rescue.is_here(call_sid, holding.generation):
                        return None, False
                if (theirs := await self._of_another(call_sid, holding, denied)) is not None:
                    return _response(theirs), False
                if trio.current_time() >= give_up_at:
                    raise RegistryAway("who has this call changes all the time")
            except CallLost as lost:
                return None, not lost.has_ended
            except CallRefused as refused:  # it may be taken when it is asked for again
                return cast(Response, refusal(refused).response()), False
            except RegistryAway:
                if self._service.calls.register.get_live(call_sid) is not None:
                    return None, False
                try:
                    return await self._whoever_knows(call_sid, OWNER_S, if_known=False), False
                except RegistryAway:
                    if trio.current_time() >= give_up_at:
                        raise
                await trio.sleep(HOLD_ON_PAUSE_S)

    async def _of_ours(self, call_sid: str, *, at_once: bool) -> Response | None:
        """What is said to another process that takes a call for ours; None to go on with it.

        Args:
            call_sid: The call.
            at_once: Whether that one is to know first that we are there: to make sure of the call
                takes longer than it may wait for one that is gone.
        """
        rescue = self._service.rescue
        if at_once and rescue.has(call_sid):
            return Response("", HTTPStatus.ACCEPTED)
        return None if await rescue.is_ours(call_sid) else _not_here()

    async def _of_another(
        self, call_sid: str, holding: Holding, denied: Counter[Holding]
    ) -> httpx2.Response | None:
        """What a call's process answers, or one that takes the call over in its place and ours.

        Args:
            call_sid: The call.
            holding: Whose it is.
            denied: How often each has said that it does not have it.

        Returns:
            None if it is to be seen anew whose it is: it may be ours by now.
        """
        if holding.member != self._service.cluster.me and denied[holding] < DENIALS:
            theirs = await self._of_holder(holding.member)
            if theirs is not None and theirs.status_code == HTTPStatus.NOT_FOUND:
                denied[holding] += 1
                await trio.sleep(HOLD_ON_PAUSE_S)
                return None
            if theirs is not None:
                return theirs
        if (theirs := await self._by_who_can(holding.member)) is None:
            await self._service.rescue.take(call_sid, holding)
        return theirs

    async def _of_holder(self, member: Member) -> httpx2.Response | None:
        """What a call's process answers; None if it is gone, or as silent as if it were.

        Raises:
            RegistryAway: Nothing is known of it yet.
        """
        cluster, asked_at = self._service.cluster, trio.current_time()
        hop = Hop(cluster.me.name, if_known=True)
        if self._is_gone(member):
            return None
        timeout_s = TAKEOVER_ASK_S
        if cluster.sibling_number(member.name) is None:
            if (age_s := self._age_s(member)) == inf:
                raise RegistryAway("the process of this call was not heard of yet")
            has_settled = self._service.rescue.lookout.has_settled()
            timeout_s = ask_timeout_s(age_s, has_settled=has_settled)
        try:
            try:
                answer = await self._ask(member.name, hop, timeout_s)
            except WorkerLost:
                if self._age_s(member) >= trio.current_time() - asked_at:
                    raise
                # It has said since that it is there, and is slow, or our way to it is.
                answer = await self._ask(member.name, hop, timeout_s)
        except WorkerLost:
            logger.warning("a process does not answer for its call", worker=member.name)
            return None
        if answer.status_code != HTTPStatus.ACCEPTED:
            return answer
        try:
            return await self._ask(member.name, Hop(cluster.me.name), OWNER_S)
        except WorkerLost as lost:  # the carrier asks again, and then it is there, or is not
            return httpx2.Response(HTTPStatus.SERVICE_UNAVAILABLE, json=worker_lost(lost).body)

    def _is_gone(self, member: Member) -> bool:
        return self._service.rescue.lookout.is_gone(member)

    async def _by_who_can(self, owner: Member) -> httpx2.Response | None:
        """What another process answers that takes a call over in our place; None if that is for
        us to do.
        """
        cluster = self._service.cluster
        if self._service.rescue.takes_calls() or _hop() is not None or owner == cluster.me:
            return None
        for name in takers(cluster.registry.others(), but=owner)[:MAX_TAKERS]:
            with suppress(WorkerLost):
                hop = Hop(cluster.me.name, named=True)
                theirs = await self._ask(name, hop, TAKEOVER_ASK_S + HOLD_ON_S)
                if theirs.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
                    return theirs
        return None

    def _is_known(self, call_sid: str) -> bool:
        return self._service.calls.register.get(call_sid) is not None

    async def _whoever_knows(
        self, call_sid: str, timeout_s: float | None, *, if_known: bool = True
    ) -> Response:
        """The answer of the one among all others that knows a call.

        Args:
            call_sid: The call.
            timeout_s: How long it may take, if less than the longest request.
            if_known: See :class:`Hop`.

        Raises:
            RegistryAway: None of them does, as far as they answer.
        """
        cluster = self._service.cluster
        names = [*dict.fromkeys((*cluster.siblings(), *cluster.seen()))][:MAX_ASKED_FOR_CALL]
        hop = Hop(cluster.me.name, if_known=if_known)
        timeout_s = KNOWS_S if timeout_s is None else min(timeout_s, KNOWS_S)
        for answer in await self._all(names, hop, timeout_s, until=_knows):
            if _knows(answer):
                return _response(answer)
        raise RegistryAway("who has this call is not known at this moment")

    async def everyone(self) -> list[httpx2.Response]:
        """The answers of all others of this machine that are there."""
        if not self.may_be_asked:
            return []
        cluster = self._service.cluster
        return await self._all(cluster.siblings(), Hop(cluster.me.name), None)

    async def of_all_machines(self) -> tuple[list[httpx2.Response], bool]:
        """The answers of all others, on any machine, as far as they are few and answer soon.

        Returns:
            The answers, without refusals, and whether they are all there are.
        """
        if not self.may_be_asked:
            return [], True
        cluster = self._service.cluster
        here, there = cluster.siblings(), cluster.there()
        asked = dict.fromkeys((*here, *there[:MAX_ASKED]))
        answers = [
            answer
            for answer in await self._all(asked, Hop(cluster.me.name), LIST_TIMEOUT_S)
            if answer.status_code == HTTPStatus.OK
        ]
        are_all = len(answers) == len(here) + len(there)
        return answers, are_all and not cluster.registry.is_away

    async def _all(
        self,
        names: Iterable[str],
        hop: Hop,
        timeout_s: float | None,
        *,
        until: Callable[[httpx2.Response], bool] = lambda answer: False,
    ) -> list[httpx2.Response]:
        """The answers of all these, as far as they come in time; few are asked at once.

        Args:
            names: Whom to ask.
            hop: Why.
            timeout_s: How long it may take, if less than the longest request.
            until: Says of an answer whether it is enough.
        """
        answers: list[httpx2.Response] = []
        left = iter([*names])

        async def ask() -> None:
            for name in left:
                with suppress(WorkerLost):
                    answers.append(await self._ask(name, hop, timeout_s))
                    if until(answers[-1]):
                        nursery.cancel_scope.cancel("that is enough")

        with trio.move_on_after(timeout_s or self._timeout_s):
            async with trio.open_nursery() as nursery:
                for _ in range(ASKED_AT_ONCE):
                    nursery.start_soon(ask)
        return answers

    # -- for a call that nobody has yet ------------------------------------------------------

    async def of_key(self, client: str, key: str) -> Response | None:
        """The answer of the process that knows this idempotency key; None if it is this one.

        Raises:
            WorkerLost: It is gone; what it knew may not be known to the next in its place.
        """
        cluster = self._service.cluster
        name = cluster.of_key(client, key)
        if not self.may_be_asked or name == cluster.me.name:
            return None
        return _response(await self._ask(name, Hop(cluster.me.name)))

    async def new_call(
        self,
        here: Callable[[], Awaitable[tuple[Answer, bool]]],
        *,
        on_give: Callable[[], None] = lambda: None,
    ) -> tuple[Answer, bool]:
        """The answer to a request for a new call, of this process or another.

        Args:
            here: Begins it, if that is this one.
            on_give: Told when another is about to have it, which begins the call though nobody
                waits for its answer any more.

        Returns:
            With the answer, whether asking again could begin a second call.
        """
        try:
            theirs = await self._for_new_call(on_give)
        except WorkerLost as lost:
            return worker_lost(lost), True
        if theirs is not None:
            kept = passed_back(theirs)
            return Answer(theirs.json(), theirs.status_code, kept), FINAL in theirs.headers
        new_calls = self._service.cluster.new_calls
        new_calls.take(request.scope)  # nothing has waited since this process was chosen
        try:
            return await here()
        finally:
            new_calls.answered()

    async def _for_new_call(self, on_give: Callable[[], None]) -> httpx2.Response | None:
        """The answer of the process that is to have a new call; None if that is this one.

        Raises:
            WorkerLost: It may have placed the call before it was gone.
        """
        cluster, gone = self._service.cluster, frozenset[str]()
        if not cluster.are_several or self.is_given:
            return None
        body = await self._body()
        while (name := cluster.new_calls.choose(gone)) != cluster.me.name:
            on_give()
            try:
                return await self._give(name, body)
            except WorkerLost as lost:
                if lost.reached:
                    raise
                gone |= {name}
        return None

    async def for_named_call(self, call_sid: str) -> Response | int:
        """The answer of the process that is to have this new call; if that is this one, at which
        generation the call is ours, which may be one that another has left.

        Who has a call that the carrier has named is decided once and for all. While the registry
        is away, it is whoever was asked, and at a higher generation than any that we may have
        claimed for somebody without being told so.

        Raises:
            RegistryAway: It is over, or becomes another's again and again, or it is another's that
                is gone, and cannot be had.
            CallLost: It has ended, or cannot go on, in the process that had it.
        """
        cluster, gone = self._service.cluster, frozenset[str]()
        if not self.may_be_asked:
            hop: Hop | None = _hop()
            return 1 if hop is None else hop.generation
        if self._is_known(call_sid):
            return cluster.generation(call_sid)
        body, generation = await self._body(), 1
        for _ in range(CLAIM_TRIES):
            try:
                holding = await cluster.claim(call_sid, cluster.new_calls.choose(gone))
            except RegistryAway:
                return generation + 1
            asked, generation = holding.member, holding.generation
            if asked == cluster.me:
                return generation
            if asked.name not in gone and not self._is_gone(asked):
                if (theirs := await self._give_named(asked, body, generation)) is not None:
                    return theirs
                gone |= {asked.name}
            try:
                found = await self._service.rescue.take_or_begin(call_sid, holding)
            except CallRefused as refused:
                return cast(Response, refusal(refused).response())
            if found is not None:
                return found
        raise RegistryAway("who is to have this call could not be settled")

    async def _give_named(self, asked: Member, body: bytes, generation: int) -> Response | None:
        """What a process answers that is to have a named call; None if it is gone, or as silent."""
        for _ in range(2):  # it may be slow
            asked_at = trio.current_time()
            try:
                return _response(await self._give(asked.name, body, generation, self._begin_s))
            except WorkerLost as lost:
                if not lost.reached or self._is_gone(asked):
                    return None
            if trio.current_time() - asked_at < self._begin_s:
                break
            if self._age_s(asked) >= QUIET_S:
                logger.warning("a process does not begin its call", worker=asked.name)
                return None  # should it do so yet, the call is another's by then
        answer = worker_lost(WorkerLost(asked.name, reached=True))  # it may have the call by now
        return Response(json.dumps(answer.body), 502, content_type="application/json")

    @property
    def is_given(self) -> bool:
        """Whether another process has chosen this one for a new call."""
        hop: Hop | None = _hop()
        return hop is not None and hop.given

    async def _ask(self, name: str, hop: Hop, timeout_s: float | None = None) -> httpx2.Response:
        self._service.metrics.passed_on.labels("request").inc()
        body = await self._body()
        return await self._service.cluster.peers.ask(
            name, request.scope, body, hop, timeout_s=timeout_s or self._timeout_s
        )

    async def _give(
        self, name: str, body: bytes, generation: int = 1, timeout_s: float | None = None
    ) -> httpx2.Response:
        # Nothing may wait between the choice of a process and this: it is counted from here on.
        self._service.metrics.passed_on.labels("new-call").inc()
        return await self._service.cluster.new_calls.give(
            name, request.scope, body, timeout_s=timeout_s or self._timeout_s, generation=generation
        )

    async def _body(self) -> bytes:
        return await content_of(request)


def answer_when_away(app: Quart) -> None:
    """Say that a call may be somebody's, where the registry cannot be asked whose."""

    @app.errorhandler(RegistryAway)
    async def answer(away: RegistryAway) -> Any:
        body = error_body("registry-away", str(away))
        return Answer(body, 503, retry_after(REGISTRY_PAUSE_S)).response()


def _hop() -> Hop | None:
    """How the request at hand has come here, if another process has passed it on."""
    return cast("dict[str, Any]", request.scope).get(PASSED_ON)


def ask_timeout_s(age_s: float, *, has_settled: bool) -> float:
    """How long a call's process may take to say that it is there.

    Args:
        age_s: How long ago it was heard of.
        has_settled: Whether others were heard of since the registry was away; until then the age
            says nothing.
    """
    return QUIET_ASK_S if has_settled and age_s >= QUIET_S else TAKEOVER_ASK_S


def _knows(answer: httpx2.Response) -> bool:
    """Whether a process that was asked about a call has it."""
    return answer.status_code != HTTPStatus.NOT_FOUND


def _not_here() -> Response:
    return Response(json.dumps(error_body("not-found", "not here")), HTTPStatus.NOT_FOUND)


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
