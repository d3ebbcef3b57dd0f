"""The packages alone: what a call's set-up costs where nothing is done but to speak the protocols.

hypercorn with an ASGI app that answers, ``websockets`` for the model and h11 for the carrier's API,
all on trio, and nothing of ours: no routes, signatures, keys or tickets, no forms and no records.
What a server on these packages spends above it is what that server does; below it, it does without
one of them.

``python -m benchmarks.peers.bare``, with ``HOST``, ``PORT``, ``PUBLIC_URL``, ``GEMINI_URL``,
``GEMINI_API_KEY`` and ``TWILIO_API_URL``.
"""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit
from xml.sax.saxutils import quoteattr

import h11
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from websockets.exceptions import ConnectionClosed
from websockets.trio.client import connect

SETUP = json.dumps(
    {
        "setup": {
            "model": "models/gemini-3.8-live",
            "generationConfig": {"responseModalities": ["AUDIO"]},
            "systemInstruction": {"parts": [{"text": "You answer the phone."}]},
        }
    }
)
GREET = json.dumps({"realtimeInput": {"text": "Greet the caller."}})


class Bare:
    """A server of calls that only opens what a call needs.

    Args:
        nursery: Where the calls' sessions live.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._calls: dict[str, trio.CancelScope] = {}
        self._carrier: trio.SocketStream | None = None
        self._http = h11.Connection(h11.CLIENT)
        stream_url = os.environ["PUBLIC_URL"].replace("http", "ws", 1) + "/stream"
        self._twiml = (
            f"<Response><Connect><Stream url={quoteattr(stream_url)}/></Connect></Response>"
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request of hypercorn's."""
        if scope["type"] == "websocket":
            await self._stream(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope["path"], receive, send)
        else:
            while (event := await receive())["type"] != "lifespan.shutdown":
                await send({"type": f"{event['type']}.complete"})

    async def _answer(self, path: str, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            event = await receive()
            body += event.get("body", b"")
            more = event.get("more_body", False)
        status, content = 204, b""
        if path == "/twiml":
            self._begin(parse_qs(body.decode())["CallSid"][0])
            status, content = 200, self._twiml.encode()
        elif path == "/make-call":
            call_sid = await self._dial(json.loads(body)["destination_number"])
            self._begin(call_sid)
            status, content = 201, json.dumps({"call_sid": call_sid}).encode()
        length = [] if status == 204 else [(b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": status, "headers": length})
        await send({"type": "http.response.body", "body": content, "more_body": False})

    async def _dial(self, number: str) -> str:
        """Ask the carrier for a call, over the one connection there is to it; returns its name."""
        parts = urlsplit(os.environ["TWILIO_API_URL"])
        if self._carrier is None:
            self._carrier = await trio.open_tcp_stream(parts.hostname or "", parts.port or 80)
        form = urlencode({"To": number, "Twiml": self._twiml}).encode()
        head = [
            ("Host", parts.netloc),
            ("Content-Type", "application/x-www-form-urlencoded"),
            ("Content-Length", str(len(form))),
        ]
        request = h11.Request(method="POST", target="/2010-04-01/Calls.json", headers=head)
        data = [self._http.send(part) for part in (request, h11.Data(form), h11.EndOfMessage())]
        await self._carrier.send_all(b"".join(each or b"" for each in data))
        body = b""
        while not isinstance(event := self._http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._carrier.receive_some())
            elif isinstance(event, h11.Data):
                body += event.data
        self._http.start_next_cycle()
        return str(json.loads(body)["sid"])

    def _begin(self, call_sid: str) -> None:
        scope = self._calls[call_sid] = trio.CancelScope()
        self._nursery.start_soon(self._session, scope)

    async def _session(self, scope: trio.CancelScope) -> None:
        """Hold a session of the model, until the call is over."""
        url = (
            f"{os.environ['GEMINI_URL']}/ws/google.ai.generativelanguage.v1beta."
            "GenerativeService.BidiGenerateContent"
        )
        headers = {"x-goog-api-key": os.environ["GEMINI_API_KEY"]}
        options: dict[str, Any] = {"compression": None, "proxy": None, "ping_interval": None}
        with scope:
            async with connect(url, additional_headers=headers, **options) as model:
                await model.send(SETUP)
                await model.recv(decode=False)
                await model.send(GREET)
                try:
                    while True:
                        await model.recv(decode=False)
                except ConnectionClosed:
                    pass

    async def _stream(self, receive: Any, send: Any) -> None:
        """Hold a media stream; with it ends the call that it names."""
        call_sid = ""
        while (event := await receive())["type"] != "websocket.disconnect":
            if event["type"] == "websocket.connect":
                await send({"type": "websocket.accept"})
            elif "start" in (message := json.loads(event["text"])):
                call_sid = message["start"]["callSid"]
        if (call := self._calls.pop(call_sid, None)) is not None:
            call.cancel()


async def main() -> None:
    """Serve until ended."""
    config = Config()
    config.bind = [f"{os.environ['HOST']}:{os.environ['PORT']}"]
    config.keep_alive_timeout = 600.0
    async with trio.open_nursery() as nursery:
        await serve(Bare(nursery), config, shutdown_trigger=trio.sleep_forever)


if __name__ == "__main__":
    trio.run(main)
