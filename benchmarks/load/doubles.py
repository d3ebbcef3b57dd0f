"""What the server under test connects to: a Gemini Live service and Twilio's REST API, on loopback.

Both are here for the load and nothing else: they obey at once and never fail. For what a service
may do wrong, see the simulators in ``server``.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.load.call import LoadCall, Words
from benchmarks.load.sockets import Backend, Peer, Socket, port_of


class ModelDouble:
    """A Gemini Live service whose sessions are the other ends of :class:`LoadCall`.

    Attributes:
        expecting: The call whose session the next connection is. Calls are set up one after the
            other, so this needs no word from the server about which call it means.
    """

    def __init__(
        self, backend: Backend, words: Words, api_key: str, *, takes_others: bool = False
    ) -> None:
        self.expecting: LoadCall | None = None
        self.words = words
        self.refused = 0
        self._backend = backend
        self._api_key = api_key
        self._takes_others = takes_others

    async def serve(self, tls: ssl.SSLContext | None) -> str:
        """Listen; returns the base URL."""
        self._server = await self._backend.serve(self._welcome, tls)
        port = port_of(self._server)
        return f"wss://localhost:{port}" if tls else f"ws://127.0.0.1:{port}"

    def close(self) -> None:
        """Listen no more."""
        self._server.close()

    def _welcome(self, path: str, headers: Mapping[str, str]) -> Peer | None:
        parts = urlsplit(path)
        shown = headers.get("x-goog-api-key") or parts.query.removeprefix("key=")
        if not parts.path.endswith("BidiGenerateContent") or shown != self._api_key:
            self.refused += 1
            return None
        call, self.expecting = self.expecting, None
        if call is not None:
            return _Session(call, self.words)
        if self._takes_others:
            return _OtherSession(self.words)
        self.refused += 1
        return None


class _Session:
    """One connection: set-up first, then what it receives is the call's."""

    def __init__(self, call: LoadCall, words: Words) -> None:
        self._call = call
        self._words = words
        self._socket: Socket

    def opened(self, socket: Socket) -> None:
        self._socket = socket

    def received(self, message: bytes) -> None:
        if "setup" not in json.loads(message):
            self._socket.close()
            return
        self.received = self._call.model_hears  # type: ignore[method-assign]
        self._socket.send_prepared(self._words.setup_complete)
        self._call.session_opened(self._socket)

    def closed(self) -> None:
        self._call.session_lost()


class _OtherSession:
    """A session of nobody's: two seconds of greeting, and not a word after that."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self._socket: Socket

    def opened(self, socket: Socket) -> None:
        self._socket = socket

    def received(self, message: bytes) -> None:
        if b'"setup"' in message:
            self._socket.send_prepared(self._words.setup_complete)
            for chunk in (self._words.chunks * 2)[:50]:
                self._socket.send_prepared(chunk)
            self._socket.send_prepared(self._words.generation_complete)

    def closed(self) -> None:
        pass


class CarrierDouble:
    """Twilio's REST API, as far as a server under load asks anything of it: hang this call up."""

    def __init__(self) -> None:
        self.hang_ups = 0

    async def serve(self) -> str:
        """Listen; returns the base URL."""
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        return f"http://127.0.0.1:{port_of(self._server)}"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        request, *lines = head.decode().split("\r\n")
        fields = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }
        await reader.readexactly(int(fields.get("content-length", "0")))
        self.hang_ups += 1
        call_sid = request.split()[1].rpartition("/")[2].removesuffix(".json")
        body = json.dumps({"sid": call_sid, "status": "completed"}).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        await writer.drain()
        writer.close()


def self_signed(directory: Path) -> tuple[ssl.SSLContext, Path]:
    """Make a certificate authority of our own and a certificate for localhost.

    Returns:
        The server's context, and the file to trust.

    Raises:
        ImportError: trustme is not installed.
    """
    import trustme

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    trusted = directory / "authority.pem"
    authority.cert_pem.write_to_path(trusted)
    return context, trusted
