"""A whole server in this process, on a free port."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import httpx2
import trio
from twilio.request_validator import RequestValidator
from websockets.exceptions import ConnectionClosed
from websockets.trio.client import connect

from server.app import OffhookApp, create_app
from server.service import Service
from server.serving.listening import listen
from server.serving.single import serve
from server.settings.settings import Settings
from server.simulators.gemini import GeminiSimulator
from server.simulators.twilio import TwilioSimulator

CALL_SID = "CA" + "1" * 32
"""A call that nobody has heard of."""


@dataclass
class Server:
    app: OffhookApp
    http: httpx2.AsyncClient
    url: str

    @property
    def service(self) -> Service:
        return self.app.service

    @property
    def twilio(self) -> TwilioSimulator:
        assert self.service.accounts.simulated_twilio is not None
        return self.service.accounts.simulated_twilio

    @property
    def gemini(self) -> GeminiSimulator:
        assert self.service.accounts.simulated_gemini is not None
        return self.service.accounts.simulated_gemini

    @property
    def stream_url(self) -> str:
        return self.url.replace("http", "ws") + "/stream"

    async def make_call(self, ending: str = "5550101", **body):
        body = {"destination_number": f"+1500{ending}"} | body
        return await self.http.post("/make-call", json=body)

    async def finished(self, call_sid: str) -> dict:
        call = self.service.calls.register.get(call_sid)
        assert call is not None
        await call.finished.wait()
        await self.twilio.calls[call_sid].wait_ended()
        return (await self.http.get(f"/calls/{call_sid}")).json()

    async def signed_post(self, path: str, form: dict[str, str], token: str | None = None):
        validator = RequestValidator(token or self.twilio.account.auth_token)
        signature = validator.compute_signature(self.url + path, form)
        headers = {"X-Twilio-Signature": signature}
        return await self.http.post(path, data=form, headers=headers)


@asynccontextmanager
async def serving(*, on_port: int = 0, **overrides) -> AsyncGenerator[Server]:
    listener = listen("127.0.0.1", on_port)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    account = dict.fromkeys(
        ("twilio_account_sid", "twilio_auth_token", "twilio_phone_number", "gemini_api_key")
    )
    settings = {"simulated_ring_s": 0.3, "drain_timeout_s": 0.0, "public_url": url}
    settings["close_timeout_s"] = 1.0  # calls that are left behind at the end wait for it
    settings["max_loop_lag_s"] = 60.0  # a machine that runs tests is busy
    app = create_app(Settings.load(_env_file=None, **(account | settings | overrides)))
    stop = trio.Event()

    async def run(task_status):
        await serve(app, listener, stop=stop, task_status=task_status)

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        # Plain HTTP: to read all the certificates there are takes longer than most of the tests.
        async with httpx2.AsyncClient(
            base_url=url, trust_env=False, verify=False, timeout=60
        ) as http:
            yield Server(app, http, url)
        stop.set()


def start_message(ticket: str, call_sid: str = CALL_SID, **media_format) -> str:
    form = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1} | media_format
    start = {
        "accountSid": "AC1",
        "streamSid": "MZ1",
        "callSid": call_sid,
        "tracks": ["inbound"],
        "mediaFormat": form,
        "customParameters": {"ticket": ticket},
    }
    message = {"event": "start", "sequenceNumber": "1", "streamSid": "MZ1", "start": start}
    return json.dumps(message)


def media_message(payload: bytes, stream_sid: str = "MZ1") -> str:
    media = {"track": "inbound", "chunk": "1", "timestamp": "5"}
    media["payload"] = base64.b64encode(payload).decode()
    return json.dumps(
        {"event": "media", "sequenceNumber": "2", "streamSid": stream_sid, "media": media}
    )


@asynccontextmanager
async def ringing_call(server: Server) -> AsyncGenerator[tuple[str, str]]:
    """A call that rings for long, and the ticket its stream would show."""
    call_sid = (await server.make_call("5550105")).json()["call_sid"]
    (ticket,) = (
        name
        for name, held in server.service.calls.tickets._tickets.items()
        if held.call.call_sid == call_sid
    )
    yield call_sid, ticket
    await server.http.post(f"/calls/{call_sid}/hang-up")


async def closing_of(socket) -> tuple[int | None, str | None]:
    with trio.fail_after(60), suppress(ConnectionClosed):
        while True:
            await socket.recv()
    return socket.close_code, socket.close_reason


def open_socket(server: Server):
    # Unbounded: a client that does not read its queue empty could not see the close answered.
    return connect(server.stream_url, compression=None, proxy=None, max_queue=None)
