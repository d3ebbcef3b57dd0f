"""The fastest bridge on asyncio that we know how to write, to be measured against.

uvloop, and on both sides picows, whose frames are made and masked in C and go to the kernel at
once. No coroutine runs for a message: what comes in on one socket is changed and sent on the other
in the same callback. Audio is found by its key and put between two halves of JSON that are made
beforehand. Codec and base64 are this project's own, in C (``binascii`` takes about three times as
long), and keep the state of their stream. After the start, the garbage collector has nothing old to
look at. And there are no features: no signatures, no tickets, no marks, no pacing, no records, no
ear, no second try. Messages are taken whole, one part of audio in each, as the carrier and the
model send them.

picows answers GET requests only, so the voice webhook, which is a POST, is a small protocol on
``PORT``, and its TwiML sends the media stream to a port of its own.

``python -m benchmarks.peers.fastest``, with ``HOST``, ``PORT``, ``PUBLIC_URL``, ``GEMINI_URL`` and
``GEMINI_API_KEY``; ``SSL_CERT_FILE`` has what to trust where the model is reached by TLS.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import ssl
import sys
from functools import partial
from urllib.parse import urlsplit

import picows
import uvloop

from codec import MulawDecoder, MulawEncoder
from codec._base64 import decode, encode

MODEL_URL = (
    f"{os.environ['GEMINI_URL']}/ws/google.ai.generativelanguage.v1beta."
    f"GenerativeService.BidiGenerateContent?key={os.environ['GEMINI_API_KEY']}"
)
TLS = ssl.create_default_context() if MODEL_URL.startswith("wss:") else None
TEXT = picows.WSMsgType.TEXT

SETUP = json.dumps(
    {
        "setup": {
            "model": "models/gemini-3.8-live",
            "generationConfig": {"responseModalities": ["AUDIO"]},
            "systemInstruction": {"parts": [{"text": "You answer the phone. Be short."}]},
        }
    }
).encode()
GREET = json.dumps({"realtimeInput": {"text": "Greet the caller."}}).encode()
AUDIO = b'{"realtimeInput":{"audio":{"mimeType":"audio/pcm;rate=16000","data":"'
AUDIO_END = b'"}}}'
MEDIA_END = b'"}}'


class Side(picows.WSListener):
    """Either socket of a call; the end of one is the end of the other."""

    transport: picows.WSTransport | None = None
    other: Side | None = None
    is_over = False

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self.transport = transport

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        self.end()
        other, self.other = self.other, None
        if other is not None:
            other.other = None
            other.end()

    def end(self) -> None:
        """Say goodbye, and close."""
        self.is_over = True
        if self.transport is not None:
            self.transport.send_close(picows.WSCloseCode.OK)
            self.transport.disconnect()


class Phone(Side):
    """The carrier's media stream."""

    def __init__(self) -> None:
        super().__init__()
        self._decode = MulawDecoder(16_000).decode
        self._early: list[bytes] = []
        self.tell_model = self._early.append
        """Sends a message to the model, or keeps it until the model is set up."""

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        message = frame.get_payload_as_bytes()
        at = message.find(b'"payload":"')
        if at < 0:
            self._obey(frame.msg_type, message)
            return
        at += 11
        # What is no base64 is None, which the codec refuses, and picows then ends the call.
        pcm = self._decode(decode(message[at : message.index(b'"', at)]))  # type: ignore[arg-type]
        self.tell_model(AUDIO + encode(pcm) + AUDIO_END)

    def _obey(self, kind: picows.WSMsgType, message: bytes) -> None:
        if kind == picows.WSMsgType.CLOSE:
            self.end()
        elif b'"start"' in message:
            sid = json.loads(message)["start"]["streamSid"]
            self._dialing = asyncio.create_task(self._dial(sid.encode()))

    async def _dial(self, sid: bytes) -> None:
        try:
            await picows.ws_connect(lambda: Model(self, sid), MODEL_URL, ssl_context=TLS)
        except (OSError, TimeoutError, picows.WSError) as error:
            print(f"no model: {error!r}", file=sys.stderr)
            self.end()

    def model_ready(self, send: partial[None]) -> None:
        """The model is set up: it gets what the caller has said so far, and all that follows."""
        for message in self._early:
            send(message)
        self._early.clear()
        self.tell_model = send


class Model(Side):
    """A session of the model's.

    Args:
        phone: Whom it talks with.
        sid: The media stream's name.
    """

    def __init__(self, phone: Phone, sid: bytes) -> None:
        super().__init__()
        self.other, phone.other = phone, self
        self._phone_ready = phone.model_ready
        self._encoder = MulawEncoder(24_000)
        self._encode = self._encoder.encode
        assert phone.transport is not None
        self._tell_phone = partial(phone.transport.send, TEXT)
        self._media = b'{"event":"media","streamSid":"%b","media":{"payload":"' % sid
        self._clear = b'{"event":"clear","streamSid":"%b"}' % sid

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        super().on_ws_connected(transport)
        if self.other is None or self.other.is_over:
            self.end()  # the caller has hung up meanwhile
        else:
            transport.send(TEXT, SETUP)

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        message = frame.get_payload_as_bytes()
        at = message.find(b'"data":')
        if at < 0:
            self._obey(transport, frame.msg_type, message)
            return
        at = message.index(b'"', at + 7) + 1
        mulaw = self._encode(decode(message[at : message.index(b'"', at)]))  # type: ignore[arg-type]
        self._tell_phone(self._media + encode(mulaw) + MEDIA_END)

    def _obey(self, transport: picows.WSTransport, kind: picows.WSMsgType, message: bytes) -> None:
        # In a string these would have a backslash before their closing quote.
        if b'"interrupted"' in message:
            self._tell_phone(self._clear)
            self._encoder.reset()
        elif b'"setupComplete"' in message:
            transport.send(TEXT, GREET)
            self._phone_ready(partial(transport.send, TEXT))
        elif kind == picows.WSMsgType.CLOSE:
            self.end()


class Webhook(asyncio.Protocol):
    """Answers voice webhooks, on connections that stay.

    Args:
        twiml: What every call is told.
    """

    def __init__(self, twiml: bytes) -> None:
        self._twiml = twiml
        self._data = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if not found or len(body) < int(length[1] if length else 0):
            return
        self._data = b""
        status, content = b"404 Not Found", b""
        if head.startswith(b"POST /twiml "):
            status, content = b"200 OK", self._twiml
        self._transport.write(
            b"HTTP/1.1 %b\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%b"
            % (status, len(content), content)
        )


async def main() -> None:
    """Serve until ended."""
    host, port = os.environ["HOST"], int(os.environ["PORT"])
    streams = await picows.ws_create_server(
        lambda request: Phone() if request.path == b"/stream" else None, host, 0, backlog=1024
    )
    public = urlsplit(os.environ["PUBLIC_URL"]).hostname
    url = f"ws://{public}:{streams.sockets[0].getsockname()[1]}/stream"
    twiml = f'<Response><Connect><Stream url="{url}"/></Connect></Response>'.encode()
    webhooks = await asyncio.get_running_loop().create_server(lambda: Webhook(twiml), host, port)
    gc.collect()
    gc.freeze()
    await webhooks.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
