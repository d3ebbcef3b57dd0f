"""A real Asterisk for all tests of a module, and a server for each of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from server.simulators.gemini import MODEL_SCRIPTS, GeminiSimulator
from tests.support.asterisk import SECRET, USER, Asterisk, asterisk, until
from tests.support.databases import postgresql
from tests.support.redis_servers import RedisServer, server_binary
from tests.support.serving import Server, serving
from tests.support.sip_phone import Phone, open_phone

KEY = "a-key-of-the-api"


@dataclass
class Exchange:
    """A PBX, a server behind it and its model."""

    pbx: Asterisk
    server: Server
    gemini: GeminiSimulator
    nursery: trio.Nursery

    @asynccontextmanager
    async def phone(self, *, is_callee: bool = False) -> AsyncGenerator[Phone]:
        """A telephone that speaks and listens; one that is called has the trunk's address."""
        port = self.pbx.callee_port if is_callee else 0
        async with open_phone(self.pbx.sip, port=port) as phone:
            yield phone

    async def make_call(self, number: str = "+15005550101", **body: object) -> str:
        """Have the server call a number; returns the call's name."""
        answer = await self.server.http.post(
            "/make-call", json={"destination_number": number} | body
        )
        assert answer.status_code == 201, answer.text
        return answer.json()["call_sid"]

    @property
    def calls(self) -> list:
        """The server's calls, the newest last."""
        return list(self.server.service.calls.register.live)

    async def only_call(self):
        """The one call that the server has; waits until there is one."""

        async def is_there() -> bool:
            return len(self.calls) == 1

        await until(is_there)
        return self.calls[0]

    async def nothing_left(self) -> None:
        """Wait until Asterisk has no channel and no bridge any more."""
        await nothing_left(self.pbx)


async def nothing_left(pbx: Asterisk) -> None:
    """Wait until an Asterisk has no channel and no bridge any more."""
    left: list[object] = []

    async def is_empty() -> bool:
        left[:] = [await pbx.ask("channels"), await pbx.ask("bridges")]
        return not any(left)

    try:
        await until(is_empty)
    except trio.TooSlowError:
        pytest.fail(f"still at Asterisk: {left}")


@asynccontextmanager
async def exchange_of(pbx: Asterisk, *, model: str = "answers", **settings) -> AsyncGenerator:
    """A server that serves a PBX; its model is simulated, and its telephones are not."""
    gemini = GeminiSimulator(script=MODEL_SCRIPTS[model])
    async with trio.open_nursery() as nursery:
        await nursery.start(gemini.run)
        settings = {
            "carrier": "asterisk",
            "asterisk_url": pbx.url,
            "asterisk_user": USER,
            "asterisk_secret": SECRET,
            "asterisk_number": "+15005550006",
            "gemini_api_key": "simulated",
            "gemini_url": gemini.url,
            "api_key": KEY,
            "public_url": None,
            "calls_per_s": 1000.0,
            "ring_timeout_s": 5,
        } | settings
        async with serving(on_port=pbx.server_port, **settings) as server:
            server.http.headers["X-API-Key"] = KEY
            await pbx.has_app(str(settings.get("asterisk_app", "offhook")))
            yield Exchange(pbx, server, gemini, nursery)
        nursery.cancel_scope.cancel()


@pytest.fixture
async def pbx():
    """A PBX that has just been started."""
    async with asterisk() as one:
        yield one


@pytest.fixture
async def exchange(pbx):
    """A server behind it."""
    async with exchange_of(pbx) as one:
        yield one


@pytest.fixture
def database():
    """A PostgreSQL."""
    with postgresql() as url:
        yield url


@pytest.fixture
async def redis(tmp_path):
    server_binary()
    one = RedisServer(tmp_path)
    await trio.to_thread.run_sync(one.start)
    yield one
    one.kill()
