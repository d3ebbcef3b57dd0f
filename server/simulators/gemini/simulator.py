"""The simulated service: it judges keys, keeps the sessions, and serves each in a task."""

from __future__ import annotations

import hmac
import logging
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trio
from websockets.datastructures import Headers
from websockets.exceptions import InvalidStatus
from websockets.frames import Close
from websockets.http11 import Request, Response
from websockets.trio.server import ServerConnection, serve

from server.simulators.gemini import speech
from server.simulators.gemini.caller import CallerSide
from server.simulators.gemini.schema import ServiceClosesError
from server.simulators.gemini.scripts import ANSWERS, ModelScript
from server.simulators.gemini.session import SimulatedSession
from server.simulators.gemini.setup import Family, check_setup
from server.simulators.gemini.sockets import (
    MemorySocket,
    ServerSocket,
    WebSocket,
    answer_pings_late,
    memory_sockets,
)

_PATH = re.compile(
    # The official JavaScript client asks for two slashes.
    r"/{1,2}ws/google\.ai\.generativelanguage\.(v1|v1beta|v1alpha)\.GenerativeService\."
    "BidiGenerateContent"
)


class GeminiSimulator:
    """A Gemini Live service for calls that cost nothing.

    Args:
        api_key: The only key it knows.
        script: How it behaves.
        script_after_resume: How it behaves in sessions that resume another: healthy by default,
            so that a fault strikes once and recovery can be seen.
        keep_heard_s: How much of each session's caller audio is kept for a look at it.

    Attributes:
        url: Base URL, once :meth:`run` has started with a port.
        sessions: The last thousand connections, oldest first.
    """

    def __init__(
        self,
        *,
        api_key: str = "simulated",
        script: ModelScript = ANSWERS,
        script_after_resume: ModelScript = ANSWERS,
        keep_heard_s: float = 20.0,
    ) -> None:
        self.url = ""
        self.script = script
        self.script_after_resume = script_after_resume
        self.keep_heard_s = keep_heard_s
        self.sessions: deque[SimulatedSession] = deque(maxlen=1_000)
        self.greeting = speech.load_agent_speech(*speech.GREETING)
        self.still_here = speech.load_agent_speech(*speech.STILL_HERE)
        self.voicemail = speech.load_agent_speech(*speech.VOICEMAIL)
        self.lead_ins = tuple(speech.load_agent_speech(*one) for one in speech.LEAD_INS)
        self._api_key = api_key
        self._handles_made = 0
        self._call_ids_made = 0
        self._arrivals, self._arriving = trio.open_memory_channel[_Arrival](0)

    async def run(
        self,
        *,
        port: int | None = 0,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; started with the base URL.

        Args:
            port: Port on the loopback interface, 0 for a free one; None for no socket at all,
                only for :meth:`connect`.
        """
        async with trio.open_nursery() as nursery:
            if port is not None:
                server = await nursery.start(
                    partial(
                        serve,
                        self._welcome,
                        port,
                        host="127.0.0.1",
                        process_request=self._check_request,
                        compression=None,
                        ping_interval=None,
                        max_size=16 * 2**20,
                        logger=_websocket_logger,
                    )
                )
                address = server.listeners[0].socket.getsockname()
                self.url = f"ws://127.0.0.1:{address[1]}"
            task_status.started(self.url)
            async for arrival in self._arriving:
                nursery.start_soon(self._serve, arrival)

    @asynccontextmanager
    async def connect(self, url: str, headers: Mapping[str, str]) -> AsyncGenerator[MemorySocket]:
        """Connect without a socket, while :meth:`run` runs: for calls on a mock clock."""
        if self.script.refuse_handshake is not None:
            status, body = self.script.refuse_handshake
            raise InvalidStatus(Response(status, "Refused", Headers(), body.encode()))
        client, server = memory_sockets()
        refusal = self._refusal(url, headers)
        await self._arrivals.send(_Arrival(server, refusal, server.hang_up))
        try:
            yield client
        finally:
            client.hang_up()

    def new_caller(self) -> CallerSide:
        """What a session's caller is heard by; a double that listens otherwise has its own."""
        return CallerSide(self.keep_heard_s)

    def new_handle(self) -> str:
        """Make up a resumption handle."""
        self._handles_made += 1
        return f"handle-{self._handles_made}"

    def new_call_id(self) -> str:
        """Make up an id for a function call; like the service's, it is never used again."""
        self._call_ids_made += 1
        return f"call-{self._call_ids_made}"

    def check_setup(self, setup: Mapping[str, Any]) -> Family:
        """The family of the model that a set-up names.

        Raises:
            ServiceClosesError: The set-up is refused.
        """
        return check_setup(setup)

    def find_resumable(self, handle: str) -> SimulatedSession:
        """Find the session a handle stands for.

        Raises:
            ServiceClosesError: It stands for none, or for one whose socket is still open.
        """
        for session in reversed(self.sessions):
            if handle in session.agent.handles:
                if session.is_open:
                    raise ServiceClosesError(1011, "The session is still in use.")
                return session
        raise ServiceClosesError(1008, "Requested entity was not found.")

    def _check_request(self, connection: ServerConnection, request: Request) -> Response | None:
        if self.script.refuse_handshake is not None:
            return connection.respond(*self.script.refuse_handshake)
        # urlsplit() would take what follows two slashes for a host.
        if _PATH.fullmatch(request.path.partition("?")[0]):
            return None
        return connection.respond(404, "Not Found\n")

    async def _welcome(self, connection: ServerConnection) -> None:
        """Hand a connection to ``run``, where a bug of ours is not just a line in a log."""
        request = connection.request
        assert request is not None
        if self.script.pong_delay_s:
            answer_pings_late(connection, self.script.pong_delay_s)
        refusal = self._refusal(request.path, request.headers)
        served = trio.Event()
        await self._arrivals.send(_Arrival(WebSocket(connection), refusal, served.set))
        await served.wait()

    async def _serve(self, arrival: _Arrival) -> None:
        session = SimulatedSession(self, arrival.socket)
        self.sessions.append(session)
        if len(self.sessions) > _RECORDINGS:
            self.sessions[-_RECORDINGS - 1].caller.forget()
        try:
            await session.run(arrival.refusal)
        finally:
            session.ended.set()
            arrival.release()

    def _refusal(self, url: str, headers: Mapping[str, str]) -> Close | None:
        """Judge the key as Google does: the connection is accepted, then closed."""
        query = parse_qs(urlsplit(url).query)
        given = headers.get("x-goog-api-key") or query.get("key", [""])[0]
        if not given:
            return Close(1008, "Method doesn't allow unregistered callers.")
        if not hmac.compare_digest(given.encode(), self._api_key.encode()):
            return Close(1007, "API key not valid. Please pass a valid API key.")
        return None


# At DEBUG the library logs every header, the client's key among them; at INFO every connection.
_websocket_logger = logging.getLogger(f"{__name__}.websocket")
_websocket_logger.setLevel(logging.WARNING)

_RECORDINGS = 20
"""Sessions whose caller audio is kept: 20 s of it is 640 kB."""


@dataclass(frozen=True, slots=True)
class _Arrival:
    socket: ServerSocket
    refusal: Close | None
    release: Callable[[], None]
    """To be called when the session is over."""
