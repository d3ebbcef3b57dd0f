"""The processes of one server, as one of them sees the others.

A call lives in the memory of one process: its nursery, its model session, its greeting. But any
process may accept any connection, so each has to bring what is about a call to the process that
has it. They meet in a private directory (made from a secret that only they share):

::

    N.lock    held by process N as long as it lives; whoever gets the lock is N
    N.http    its Unix socket for requests that another process passes on, whole and unchanged
    N.media   its Unix socket for connected media sockets (SCM_RIGHTS): no byte of audio goes
              through two processes
    calls/    whose each call is, see :mod:`server.cluster.claims`
    board     how many calls each has, see :mod:`server.cluster.board`
    gate      locked by whoever comes, leaves, or takes a call over

Who gets a new call is decided by the one that is asked for it (:meth:`Workers.choose`), which is
even where the kernel's own choice among processes that accept is not.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Container, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import structlog
import trio
from hypercorn.utils import wrap_app

from server.cluster.board import BEAT_S, MAX_WORKERS, Board, Load, Member
from server.cluster.meeting import (
    AVAILABLE,
    clear_away,
    is_locked,
    listen,
    private_directory,
    shared_secret,
    take_place,
)
from server.cluster.passing_on import (
    GIVEN,
    PASSED_ON,
    PassedOn,
    WorkerLost,
    facts_of,
    request_of,
    take_over,
)
from server.errors import ConfigurationError
from server.hooks.hypercorn_worker import make_config, serve_worker
from server.logs import Sparing

if AVAILABLE:
    from server.cluster.claims import Claims, Gate

if TYPE_CHECKING:
    from hypercorn.typing import Framework

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

CONNECT_TIMEOUT_S = 2.0
JOIN_TRIES = 10
ORPHANED_S = 4 * 3600.0
"""No call that began so long ago lasts: the carrier's own limit, unless it is told another."""
GATE_TIMEOUT_S = 10.0
"""How long a process that comes or goes may wait for others that do."""


class Workers:
    """This process among those of its server: alone until :meth:`join` says that there are others.

    It is long because it is the only door to them: their loads, their calls, their requests.
    """

    def __init__(self) -> None:
        self.number = 0
        self.count = 1
        """How many processes there shall be; while another server takes over, its own besides."""
        self.places = 1
        """How many there can be."""
        self.speaks_for_all = True
        """Whether it says what would be the same from each of them."""
        self.stands_aside = False
        """Whether others are chosen for new calls; one that comes all the same is not refused."""
        self.report: Callable[[], Load] = Load
        """How this process is doing."""
        self._board: Board | None = None
        self._directory = Path()
        self._lock = -1
        self._gate: Gate | None = None
        self._claims: Claims | None = None
        self._refusals = Sparing()
        self._clients: dict[int, httpx2.AsyncClient] = {}

    @property
    def are_several(self) -> bool:
        """Whether there are others."""
        return self._board is not None

    def join(
        self,
        count: int,
        *,
        places: int | None = None,
        where: str | None = None,
        speaks_for_all: bool | None = None,
    ) -> None:
        """Take a place among so many; called before the app starts.

        Args:
            count: How many processes there shall be.
            places: How many there can be, those of a server that takes over from this one, or the
                other way round, among them; None for no others, and one alone takes no place.
            where: The name of their directory; None for the one that only they can know.
            speaks_for_all: Whether it says what all would; None: the first does.

        Raises:
            ConfigurationError: This system has no way to do it, or there are too many.
        """
        if count < 2 and places is None:
            return
        if not AVAILABLE:
            raise ConfigurationError(
                "several processes need Unix sockets, which this system does not have: "
                "serve with one"
            )
        if count > MAX_WORKERS:
            raise ConfigurationError(f"{count} processes; there can be {MAX_WORKERS} at most")
        self.count, self.places = count, places or count
        for _ in range(JOIN_TRIES):
            # The last one to leave, at this moment, clears away what we are about to use.
            with suppress(FileNotFoundError):
                self._directory = private_directory(where or f"offhook-{shared_secret('place')}")
                gate = Gate(self._directory / "gate")
                try:
                    with gate.held(GATE_TIMEOUT_S) as alone:
                        if alone and gate.is_the_one:
                            self._enter(gate)
                            if speaks_for_all is None:
                                speaks_for_all = self.number == 0
                            self.speaks_for_all = speaks_for_all
                            return
                finally:
                    if self._board is None:
                        gate.close()
        raise ConfigurationError(f"{self._directory} is cleared away again and again")

    def _enter(self, gate: Gate) -> None:
        """Take a place; nobody else comes or leaves meanwhile."""
        self.number, self._lock = take_place(self._directory, self.places)
        try:
            calls = self._directory / "calls"
            calls.mkdir(mode=0o700, exist_ok=True)
            self._gate, self._claims = gate, Claims(calls, gate)
            # Of one in our place that has died: its last calls' carrier may yet ask for them.
            self._claims.release_all(self.number, older_than_s=ORPHANED_S)
            self._board = Board(self._directory / "board", number=self.number, count=self.places)
        except BaseException:
            os.close(self._lock)
            raise

    def leave(self) -> None:
        """Give the place back; the last one to leave clears the directory away."""
        board, self._board = self._board, None
        if board is None:
            return
        assert self._gate is not None
        try:
            with self._gate.held(GATE_TIMEOUT_S) as alone:
                self._go(board, alone=alone)
        except OSError as error:
            # Nothing is left to do it for, and what is left lying about is found by the next one.
            logger.warning("place among the processes not given back", error=str(error))
        finally:
            self._gate.close()

    def _go(self, board: Board, *, alone: bool) -> None:
        try:
            board.close()
            assert self._claims is not None
            self._claims.release_all(self.number)
            for name in ("http", "media"):
                (self._directory / f"{self.number}.{name}").unlink(missing_ok=True)
        finally:
            os.close(self._lock)
        if alone:
            clear_away(self._directory)

    # -- how they are doing ----------------------------------------------------------------

    def publish(self) -> None:
        """Say how this process is doing, now that it has changed."""
        if self._board is not None:
            load = self.report()
            if self.stands_aside:
                load = replace(load, accepts=False, draining=True)
            self._board.write(load)

    @property
    def live_elsewhere(self) -> int:
        """How many calls the others have."""
        return 0 if self._board is None else self._board.live_elsewhere()

    @property
    def waiting_elsewhere(self) -> int:
        """How many calls wait there to be dialled."""
        return 0 if self._board is None else self._board.waiting_elsewhere()

    @property
    def accepts_elsewhere(self) -> bool:
        """Whether any of the others would take the next call."""
        return self._board is not None and self._board.accepts_elsewhere()

    def others(self) -> list[int]:
        """The processes that are there beside this one."""
        return [] if self._board is None else self._board.others()

    # -- whose call is it ------------------------------------------------------------------

    def choose(self, but: frozenset[int] = frozenset()) -> int:
        """Which process is to have the next call."""
        if self._board is None:
            return self.number
        self.publish()
        return self._board.choose(but)

    def of_key(self, client: str, key: str) -> int:
        """The process that remembers what was answered to an ``Idempotency-Key``."""
        if self._board is None:
            return self.number

        def weight(number: int) -> bytes:
            return hashlib.sha256(f"{number}\0{client}\0{key}".encode()).digest()

        stay = {n for n in self._board.staying() if self.is_alive(self.member(n))}
        return max(stay or {self.number}, key=weight)

    def member(self, number: int | None = None) -> Member:
        """The process that has this number now; ours if None."""
        number = self.number if number is None else number
        return Member(number, 0 if self._board is None else self._board.born(number))

    def is_alive(self, member: Member) -> bool:
        """Whether a process lives. One that is slow does: its calls are its own all the same."""
        if self._board is None or self._gate is None or member != self.member(member.number):
            return False
        if self._board.is_there(member.number):
            return True
        with self._gate.held() as alone:  # whoever comes is not to find a place taken by this look
            return not alone or is_locked(self._directory / f"{member.number}.lock")

    def claim(
        self, call_sid: str, number: int | None = None, *, gone: Container[Member] = ()
    ) -> int:
        """Say that a call is ours, or another's: the first claim counts, while its owner is there.

        Args:
            call_sid: The call.
            number: Whose it is to be; None for ours.
            gone: Processes that have just turned out not to be there, whatever the board says.

        Returns:
            Whose it is. Who claims it at the same time gets the same answer.
        """
        if self._board is None or self._claims is None:
            return self.number
        ours = self.member()

        def is_there(owner: Member) -> bool:
            return owner == ours or (owner not in gone and self.is_alive(owner))

        try:
            return self._claims.make(call_sid, self.member(number), is_there=is_there).number
        except OSError as error:
            self._tell_unusable(error)
            return self.number  # a call that is here is served here, at least

    def owner(self, call_sid: str) -> int | None:
        """Whose a call is; None for one that nobody has, or had and is gone."""
        if self._board is None or self._claims is None:
            return self.number
        try:
            owner = self._claims.owner(call_sid)
        except OSError as error:
            self._tell_unusable(error)
            return None
        return None if owner is None or owner != self.member(owner.number) else owner.number

    def is_orphan(self, call_sid: str) -> bool:
        """Whether a call was another process's that is gone, with all that it knew of the call."""
        if self._board is None or self._claims is None or self._gate is None:
            return False
        try:
            owner = self._claims.owner(call_sid)
        except OSError as error:
            self._tell_unusable(error)
            return False
        if owner is None or owner == self.member():
            return False
        if owner != self.member(owner.number):
            return True
        with self._gate.held() as alone:  # whoever comes is not to find a place taken by this look
            return alone and not is_locked(self._directory / f"{owner.number}.lock")

    def release(self, call_sid: str) -> None:
        """The call is forgotten here; what comes about it now is about nothing."""
        if self._board is not None and self._claims is not None:
            try:
                self._claims.release(call_sid, self.member())
            except OSError as error:
                self._tell_unusable(error)

    def _tell_unusable(self, error: OSError) -> None:
        self._refusals.log(
            time.monotonic(),
            logger.error,
            "directory of the processes cannot be used; calls stay where they come",
            error=str(error),
        )

    # -- passing requests on ---------------------------------------------------------------

    async def pass_on(
        self,
        number: int,
        scope: Mapping[str, Any],
        body: bytes,
        *,
        timeout_s: float,
    ) -> httpx2.Response:
        """Have another process answer a request, as if it had come there.

        Args:
            number: Which one.
            scope: The request's own.
            body: The request's own.
            timeout_s: How long it may take.

        Raises:
            WorkerLost: It is gone.
        """
        return await self._pass_on(number, scope, body, timeout_s, given=False)

    async def _pass_on(
        self, number: int, scope: Mapping[str, Any], body: bytes, timeout_s: float, *, given: bool
    ) -> httpx2.Response:
        # Only what has chosen a process has looked at the key, and keeps it.
        but = b"idempotency-key" if given else b""
        request = request_of(scope, body, facts_of(scope, by=self.number, given=given), but)
        try:
            with trio.fail_after(timeout_s):
                return await self._client(number).send(request)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise WorkerLost(number, reached=False) from error
        except (httpx2.TransportError, trio.TooSlowError) as error:
            raise WorkerLost(number, reached=True) from error

    async def give_call(
        self, number: int, scope: Mapping[str, Any], body: bytes, *, timeout_s: float
    ) -> httpx2.Response:
        """Pass on a request for a new call, which counts there from this moment.

        An ``Idempotency-Key`` has been looked at already, and stays here.

        Raises:
            WorkerLost: It is gone.
        """
        assert self._board is not None
        self._board.give(number)
        try:
            return await self._pass_on(number, scope, body, timeout_s, given=True)
        except WorkerLost as lost:
            if not lost.reached:
                self._board.take_back(number)
            raise

    def take_call(self, scope: Mapping[str, Any]) -> None:
        """A request for a new call is answered here; :meth:`answered` must follow."""
        if self._board is not None:
            self._board.take(scope[PASSED_ON] if scope.get(GIVEN) else None)

    def answered(self) -> None:
        """The request for a new call has been answered."""
        if self._board is not None:
            self._board.answered()
            self.publish()

    def _client(self, number: int) -> httpx2.AsyncClient:
        if number not in self._clients:
            self._clients[number] = httpx2.AsyncClient(
                transport=httpx2.AsyncHTTPTransport(uds=str(self._directory / f"{number}.http")),
                timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S),
                # An idle connection may be closed just as it is used again.
                limits=httpx2.Limits(max_keepalive_connections=0),
                trust_env=False,
            )
        return self._clients[number]

    # -- passing media sockets on ----------------------------------------------------------

    async def connect(self, number: int, name: str) -> trio.SocketStream:
        """Connect to one of another process's Unix sockets.

        Raises:
            WorkerLost: It is gone.
        """
        try:
            with trio.fail_after(CONNECT_TIMEOUT_S):
                return await trio.open_unix_socket(self._directory / f"{number}.{name}")
        except (OSError, trio.TooSlowError) as error:
            raise WorkerLost(number, reached=False) from error

    # -- what the others pass on -----------------------------------------------------------

    async def serve(
        self,
        app: Framework,
        take_media: Callable[[socket.socket, Mapping[str, Any]], Awaitable[None]],
        *,
        max_message_bytes: int,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Take what the other processes pass on, until cancelled.

        Args:
            app: Answers requests.
            take_media: Serves a media socket, which is its own from then on.
            max_message_bytes: The longest head of a request, and WebSocket message.
        """
        config = make_config(
            f"fd://{listen(self._directory / f'{self.number}.http').detach()}",
            errorlog=logging.getLogger("hypercorn.error"),
            max_message_bytes=max_message_bytes,
        )
        media = listen(self._directory / f"{self.number}.media")
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(media))

        async def take(stream: trio.SocketStream) -> None:
            await self._take_media(stream, take_media)

        try:
            async with trio.open_nursery() as nursery:
                passed_on = wrap_app(PassedOn(app), config.wsgi_max_body_size, "asgi")
                await nursery.start(serve_worker, passed_on, config)
                await nursery.start(trio.serve_listeners, take, [listener])
                nursery.start_soon(self._beat)
                task_status.started()
        finally:
            with trio.CancelScope(shield=True):  # nothing to wait for: nobody answers any more
                clients, self._clients = self._clients, {}
                for client in clients.values():
                    await client.aclose()

    async def _beat(self) -> None:
        while True:
            self.publish()
            await trio.sleep(BEAT_S)

    async def _take_media(
        self,
        stream: trio.SocketStream,
        take_media: Callable[[socket.socket, Mapping[str, Any]], Awaitable[None]],
    ) -> None:
        if (taken := await take_over(stream)) is None:
            return  # whoever was about to give it has gone
        try:
            await take_media(*taken)
        except Exception:
            logger.exception("media stream failed by a bug of ours")
