"""Opening connections to Gemini Live."""

from __future__ import annotations

import copy
import logging
import ssl
import traceback
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
)
from typing import Any

import structlog
import trio
from google.genai import types
from websockets.client import ClientProtocol
from websockets.trio.client import ClientConnection
from websockets.trio.client import connect as websocket_connect

from server.agent.agent import Agent
from server.errors import ModelError
from server.media.dial import notice_dead_path, open_wire, plane_context
from server.media.words import Plane
from server.model import (
    Conversation,
    PastTurn,
)
from server.model.gemini.connection import Connect, GeminiConnection, MessageSocket
from server.model.gemini.dialects import dialect_of
from server.model.gemini.endpoint import (
    DEFAULT_URL,
    ApiKey,
    Credentials,
    Endpoint,
    developer_api,
)
from server.model.gemini.faults import Faults, credentials_replaced
from server.model.gemini.setup import (
    agent_config,
    recent_history,
    resumed_config,
    setup_message,
    told_turns,
)
from server.refusal import Kind

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)
DEFAULT_MODEL = "gemini-3.8-live"
MAX_MESSAGE_BYTES = 16 * 2**20
"""Largest message accepted; the library's 1 MiB is only about 16 s of base64 audio."""
# At DEBUG the library logs every header, the API key among them; at INFO every connection.
_websocket_logger = logging.getLogger(f"{__name__}.websocket")
_websocket_logger.setLevel(logging.WARNING)


class _Connection(ClientConnection):
    """A connection whose reader outlives cancellation, until the socket is closed.

    A hang-up cancels the whole call. The library's reader would close the socket at that moment,
    before our close frame is out, and the service would see every call end as 1006.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        stream: trio.abc.Stream,
        protocol: ClientProtocol,
        **options: Any,
    ) -> None:
        notice_dead_path(stream)
        super().__init__(nursery, stream, protocol, **options)

    async def recv_events(self) -> None:
        try:
            with trio.CancelScope(shield=True):
                await super().recv_events()  # ends as soon as the stream is closed
        finally:
            # By their frames they lead back to this connection and its protocol, which keep them.
            protocol = self.protocol
            for kept in (protocol.parser_exc, protocol.handshake_exc, self.connection_exc):
                error = kept
                while error is not None:
                    error.__traceback__ = None
                    error = error.__cause__


class _connect(websocket_connect):  # noqa: N801 - named as the class it specialises
    """Never follows a redirect: the library would take our key along to another host."""

    async def __aenter__(self) -> ClientConnection:
        try:
            return await super().__aenter__()
        except trio.Cancelled as cancelled:
            # Frames of the library's have it, and the one before it, among their names.
            error: BaseException | None = cancelled
            while error is not None:
                error.__traceback__ = None
                error = error.__context__
            raise

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class GeminiModel:
    """Opens connections to one model of Google's.

    Args:
        api_key: Of the Gemini Developer API; see :class:`ApiKey`.
        model: The model's name.
        url: Base URL, ``wss://…``; ``ws://…`` for a local double.
        endpoint: Where the model is, if not at the Developer API.
        credentials: What proves who asks there, in the place of a key.
        config: Settings for every session (tools, temperature …) under each agent's own.
        connect_timeout_s: Longest wait for the connection.
        setup_timeout_s: Longest wait for the service to be ready after that.
        close_timeout_s: Longest wait for a clean close; then the socket is dropped.
        connect: Opens the socket; None for a real one.
        plane: Where real sockets are put; None leaves them to the ``websockets`` library.
        proxy: An HTTP proxy that real sockets go through, ``http://user:password@host:port``.
        key_name: The setting that the key, or the credentials, come from.

    Raises:
        ConfigurationError: The URL is not a WebSocket URL, or the key cannot be a header.
    """

    def __init__(
        self,
        *,
        api_key: str = "",
        model: str = DEFAULT_MODEL,
        url: str = DEFAULT_URL,
        config: types.LiveConnectConfig | None = None,
        connect_timeout_s: float = 10.0,
        setup_timeout_s: float = 10.0,
        close_timeout_s: float = 2.0,
        connect: Connect | None = None,
        plane: Plane | None = None,
        proxy: str | None = None,
        key_name: str = "GEMINI_API_KEY",
        endpoint: Endpoint | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self._endpoint = endpoint or developer_api(url)
        self._credentials = credentials or ApiKey(api_key)
        self.name = model
        self.key_name = key_name
        self._faults = Faults(self._credentials.secrets, self._endpoint.host)
        self._config = config
        self._connect_timeout_s = connect_timeout_s
        self._setup_timeout_s = setup_timeout_s
        self._close_timeout_s = close_timeout_s
        self._plane = plane
        self._proxy = proxy
        self._connect = connect if connect is not None else self._connect_websocket
        # Made once: loading the certificate store takes milliseconds, which a call would feel.
        tls = ssl.create_default_context() if self._endpoint.url.startswith("wss") else None
        self._wire_tls = None if plane is None or tls is None else plane_context(tls)
        self._tls = tls if plane is None else None  # one of them: it has all the authorities
        self._dialect = dialect_of(model, self._endpoint.platform)
        self._dropped_logged: set[str] = set()
        self._last_begun: tuple[Agent, Mapping[str, Any]] | None = None
        self._others: dict[str, GeminiModel] = {}

    def __repr__(self) -> str:
        return f"<GeminiModel {self.name!r} at {self._endpoint.host!r}>"

    def of_model(self, name: str) -> GeminiModel:
        """The same account with another of its models; it is made once."""
        if (other := self._others.get(name)) is None:
            other = self._others[name] = copy.copy(self)
            other.name = name
            other._dialect = dialect_of(name, self._endpoint.platform)
            other._dropped_logged = set()
        return other

    @asynccontextmanager
    async def open_connection(
        self,
        agent: Agent,
        conversation: Conversation | None = None,
        *,
        handle: str | None = None,
        first_turn: int = 1,
    ) -> AsyncGenerator[GeminiConnection]:
        """Connect, set the agent up, wait until the service is ready; close when the block ends.

        Closing is clean and bounded by ``close_timeout_s`` even when the block was cancelled.

        Args:
            agent: Who answers the phone.
            conversation: Asked what has been said so far, which a new session is then told.
            handle: Go on with the session that the service has kept under this handle.
            first_turn: Number of the first agent turn.

        Raises:
            ModelSetupRefused: The service refused the set-up, or the handle; trying the same again
                will not help.
            ModelQuotaExceeded: The account's quota is used up.
            ModelError: It could not be reached, or closed before it was ready.
        """
        history: tuple[PastTurn, ...] = ()
        if conversation is not None and handle is None:
            history = recent_history(conversation.history())
        message, told = self._setup_message(agent, handle, history)
        try:
            async with AsyncExitStack() as stack:
                headers = self._credentials.headers()
                try:
                    with self._faults.translated_opening():
                        connecting = self._connect(self._endpoint.url, headers)
                        socket = await stack.enter_async_context(connecting)
                        stack.push_async_callback(self._close, socket)
                        connection = GeminiConnection(
                            *(socket, self._dialect, self._faults, first_turn),
                            takes_turns=self._takes_turns(agent),
                        )
                        with trio.fail_after(self._setup_timeout_s):
                            await connection.set_up(message, told)
                except ModelError as error:
                    if error.refusal is Kind.KEY and self._credentials.refused(headers):
                        raise credentials_replaced(error) from error
                    raise
                # The session lasts as long as its call; what it was set up with need not.
                del message, told, history, headers, conversation
                # Nothing is translated past this point: an error raised by the caller's block is
                # the caller's, whatever its type.
                yield connection
        except BaseException as error:
            # What the library's frames, and contextlib's, know of it would lead back to it.
            traceback.clear_frames(error.__traceback__)
            raise

    def _setup_message(
        self, agent: Agent, handle: str | None, history: tuple[PastTurn, ...]
    ) -> tuple[Mapping[str, Any], tuple[PastTurn, ...]]:
        """The set-up of a session, and the turns that it announces."""
        begins = handle is None and not history
        if begins and self._last_begun is not None and self._last_begun[0] == agent:
            return self._last_begun[1], ()  # most calls have the agent of the one before
        config = agent_config(agent, self._config)
        if self._takes_turns(agent):
            config = told_turns(config)
        elif agent.turn_end == "local":
            self._log_dropped(("turn_end",))
        config = resumed_config(config, self._dialect, handle=handle, history=history)
        message, dropped = setup_message(self._endpoint.resource(self.name), config, self._dialect)
        self._log_dropped(dropped)
        if begins:
            self._last_begun = agent, message
        return message, history if config.history_config else ()

    def _takes_turns(self, agent: Agent) -> bool:
        """Whether a session of this agent's is told where the caller's turns begin and end."""
        return agent.turn_end == "local" and self._dialect.takes_turns

    def _connect_websocket(
        self, url: str, headers: Mapping[str, str]
    ) -> AbstractAsyncContextManager[MessageSocket]:
        if self._plane is not None:
            return open_wire(
                self._plane,
                url,
                headers,
                tls=self._wire_tls,
                max_message_bytes=MAX_MESSAGE_BYTES,
                connect_timeout_s=self._connect_timeout_s,
                close_timeout_s=self._close_timeout_s,
                proxy=self._proxy,
            )
        return _connect(
            url,
            ssl=self._tls,
            additional_headers=headers,
            # None is none: one from the environment would be a hop nobody asked for.
            proxy=self._proxy,
            # 52 us a chunk to save 28 % of a base64 text.
            compression=None,
            # Pongs come up to 30 s late from a healthy service; speech is the sign of life.
            ping_interval=None,
            open_timeout=self._connect_timeout_s,
            close_timeout=self._close_timeout_s,
            max_size=MAX_MESSAGE_BYTES,
            logger=_websocket_logger,
            create_connection=_Connection,
        )

    async def _close(self, socket: MessageSocket) -> None:
        # A call that is hung up is cancelled: without the shield no close frame would be sent.
        with trio.move_on_after(self._close_timeout_s, shield=True):
            await socket.aclose(1000, "")

    def _log_dropped(self, dropped: Sequence[str]) -> None:
        news = [name for name in dropped if name not in self._dropped_logged]
        if news:
            self._dropped_logged.update(news)
            logger.warning("settings left out that this model refuses", model=self.name, names=news)
