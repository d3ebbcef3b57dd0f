"""What a server under test has instead of Twilio's: an Asterisk's ARI, and its media streams.

As the other doubles it obeys at once and never fails; ``tests/support/ari.py`` is the one that can.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from websockets.http11 import Request
from websockets.server import ServerProtocol

from benchmarks.load.call import MULAW_BYTES_PER_S, LoadCall
from benchmarks.load.sockets import Socket, port_of
from benchmarks.load.trail import CALLER_CODES, stretches_of_bare
from benchmarks.load.wheel import clock

USER, SECRET, APP = "offhook", "secret", "offhook"
COMMAND = b'{"command":'


class AsteriskCall(LoadCall):
    """A :class:`LoadCall` whose phone is behind Asterisk: bare audio, and JSON for the rest."""

    def __init__(self, number: int, *, over: Callable[[str], None], **facts: Any) -> None:
        super().__init__(number, **facts)
        self.call_sid = f"1764.{number}"
        self._over = over

    def opened(self, socket: Socket) -> None:
        self._phone = socket
        self._send_frame = socket.send_bare

    def start(self, parameters: dict[str, str]) -> None:
        self._started_at = clock()
        self._say(
            {
                "event": "MEDIA_START",
                "connection_id": "offhook",
                "channel_id": parameters["media_id"],
                "format": "ulaw",
                "optimal_frame_size": 160,
                "ptime": 20,
                "channel_variables": json.loads(parameters["variables"]),
            }
        )

    def received(self, message: bytes) -> None:
        now = clock()
        if message.startswith(COMMAND):
            self._obey(json.loads(message), now)
            return
        for level, length in stretches_of_bare(message):
            self.agent.arrive(level, length, now)
        self.note_opening(now)
        self._play_end = max(now, self._play_end) + len(message) / MULAW_BYTES_PER_S
        if not self.answered.is_set():
            self.answered.set()
            self._heard.answers.append(now - self._started_at)

    def _say_stop(self) -> None:
        self._over(self.call_sid)

    def _say_frame(self) -> None:
        self._send_frame(CALLER_CODES[self.caller.send(clock())])

    def _obey(self, message: dict[str, Any], now: float) -> None:
        match message["command"]:
            case "FLUSH_MEDIA":
                self._clear(now)
                self._marks.clear()
            case "MARK_MEDIA":
                name = message["correlation_id"].encode()
                self._marks.append(name)
                self._wheel.at(max(now, self._play_end), self._reach_mark(name))

    def _echo(self, name: bytes) -> None:
        self._say({"event": "MEDIA_MARK_PROCESSED", "correlation_id": name.decode()})


class AsteriskDouble:
    """ARI, for calls that come in."""

    def __init__(self) -> None:
        self._rings: dict[str, asyncio.Future[dict[str, str]]] = {}
        self._events: tuple[asyncio.StreamWriter, ServerProtocol] | None = None
        self._heard = asyncio.Event()
        self._served: set[asyncio.Task[None]] = set()

    async def serve(self) -> str:
        """Listen; returns the base URL."""
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        return f"http://127.0.0.1:{port_of(self._server)}"

    async def aclose(self) -> None:
        """End what is still connected."""
        served = list(self._served)
        for task in served:
            task.cancel()
        await asyncio.gather(*served, return_exceptions=True)

    async def ring(self, call: LoadCall) -> dict[str, str]:
        """A call comes in; returns what is known of its media channel when that is asked for."""
        await self._heard.wait()
        media = self._rings[call.call_sid] = asyncio.get_running_loop().create_future()
        caller = {"number": f"+1202555{call.number % 10_000:04}"}
        self._tell("StasisStart", call.call_sid, args=[], state="Ring", caller=caller)
        return await media

    def over(self, call_sid: str) -> None:
        """A caller has hung up."""
        self._rings.pop(call_sid, None)
        self._tell("StasisEnd", call_sid)

    def _tell(
        self, kind: str, channel_id: str, args: list[str] | None = None, **facts: Any
    ) -> None:
        if self._events is None:
            return
        writer, protocol = self._events
        event = {"type": kind, "args": args or [], "channel": {"id": channel_id, **facts}}
        protocol.send_text(json.dumps(event).encode())
        _flush(writer, protocol)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._served.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                first, *lines = head.decode().split("\r\n")
                fields = {
                    name.lower(): value
                    for name, _, value in (line.partition(": ") for line in lines)
                }
                if "upgrade" in fields:
                    await self._listen(head, reader, writer)
                    break
                body = await reader.readexactly(int(fields.get("content-length", "0")))
                method, target, _ = first.split(" ")
                parts = urlsplit(target)
                status, answer = self._do(
                    method, parts.path.split("/")[2:], dict(parse_qsl(parts.query)), body
                )
                content = json.dumps(answer).encode()
                writer.write(
                    b"HTTP/1.1 %d Answer\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n%b" % (status, len(content), content)
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the server is gone, or all of this is
        finally:
            self._served.discard(task)
            writer.close()

    def _do(
        self, method: str, path: list[str], query: Mapping[str, str], body: bytes
    ) -> tuple[int, object]:
        match (method, *path):
            case ("GET", "asterisk", "info"):
                return 200, {"system": {"version": "22.10.1"}}
            case ("GET", "asterisk", "modules", name):
                return 200, {"name": name, "status": "Running"}
            case ("GET", "applications", _):
                return 200, {"channel_ids": [], "bridge_ids": []}
            case ("PUT", "applications", _, "eventFilter"):
                self._heard.set()
            case ("GET", "channels", call_sid) if call_sid not in self._rings:
                return 404, {"message": "Channel not found"}
            case ("POST", "channels", call_sid, "answer"):
                self._tell("ChannelStateChange", call_sid, state="Up")
            case ("POST", "channels", "externalMedia"):
                self._open(query["channelId"], json.loads(body)["variables"])
        return 200, {}

    def _open(self, media_id: str, variables: Mapping[str, str]) -> None:
        media = self._rings.get(variables["OFFHOOK_CALL"])
        if media is not None and not media.done():
            media.set_result({"media_id": media_id, "variables": json.dumps(variables)})
            asyncio.get_running_loop().call_soon(self._tell, "StasisStart", media_id)

    async def _listen(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        protocol = ServerProtocol()
        protocol.receive_data(head)
        for event in protocol.events_received():
            assert isinstance(event, Request)
            protocol.send_response(protocol.accept(event))
        _flush(writer, protocol)
        self._events = writer, protocol
        while data := await reader.read(65_536):
            protocol.receive_data(data)
            protocol.events_received()
            _flush(writer, protocol)
        self._events = None


def _flush(writer: asyncio.StreamWriter, protocol: ServerProtocol) -> None:
    for data in protocol.data_to_send():
        if data:
            writer.write(data)


def environment(url: str) -> dict[str, str]:
    """The settings of a server whose carrier this is."""
    return {
        "CARRIER": "asterisk",
        "ASTERISK_URL": url,
        "ASTERISK_USER": USER,
        "ASTERISK_SECRET": SECRET,
        "ASTERISK_APP": APP,
    }
