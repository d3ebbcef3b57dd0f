"""``python -m benchmarks.load.burst``: calls that come in at once, from a process of their own.

A line in says where and how many (:class:`Burst`), the line out that all is ready; ``go`` begins
it, a line out says that all have been heard, and the last what became of every call. All are JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit
from xml.etree import ElementTree

from twilio.request_validator import RequestValidator

from benchmarks.load.call import Heard, LoadCall, Talk, Words
from benchmarks.load.sockets import backend
from benchmarks.load.wheel import Wheel, clock

WEBHOOK_TIMEOUT_S = 15.0
"""The carrier's own: a voice webhook that takes longer has failed."""
STREAM_TIMEOUT_S = 15.0
HEARD_TIMEOUT_S = 30.0
TALK_S = 3.0
"""For so long after the last greeting all calls stay, and the server must keep them."""
FIRST_NUMBER = 100_000
"""Other calls of the same benchmark have lower ones."""


@dataclass(frozen=True, slots=True)
class Burst:
    """What comes in.

    Attributes:
        port: Where the server listens on this machine.
        public_url: What it calls itself.
        account_sid, auth_token: The carrier's.
        calls: How many.
        within_s: How long it takes the last of them to come after the first.
    """

    port: int
    public_url: str
    account_sid: str
    auth_token: str
    calls: int
    within_s: float = 1.0


class _Failed(Exception):
    pass


class _RefusedUnread(Exception):
    pass


class _Phones:
    def __init__(self, burst: Burst) -> None:
        self.burst = burst
        self.backend = backend()
        self.wheel = Wheel()
        self.heard = Heard()
        self.words = Words(self.backend)
        self.validator = RequestValidator(burst.auth_token)
        self.calls: list[LoadCall] = []
        self.webhook_s: list[float] = []
        self.heard_s: list[float] = []
        self.came_of_it: dict[str, int] = {}
        self.last_heard_at = clock()

    async def run(self) -> dict[str, Any]:
        """Let all of them come in; the value is what became of them."""
        count, began = self.burst.calls, clock()
        self.wheel.start()
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                wait_s = began + number * self.burst.within_s / count - clock()
                await asyncio.sleep(max(0.0, wait_s))
                group.create_task(self.one(number))
        took_s = self.last_heard_at - began
        _say("heard")
        await asyncio.sleep(TALK_S)
        for call in self.calls:
            if call.lost:
                self.note(call.lost)
            call.hang_up()
        await asyncio.sleep(0.5)
        self.wheel.stop()
        return {
            "came_of_it": self.came_of_it,
            "webhook_s": sorted(self.webhook_s),
            "heard_s": sorted(self.heard_s),
            "took_s": took_s,
        }

    def note(self, what: str) -> None:
        self.came_of_it[what] = self.came_of_it.get(what, 0) + 1

    async def one(self, number: int) -> None:
        began = clock()
        call = LoadCall(
            FIRST_NUMBER + number,
            account_sid=self.burst.account_sid,
            wheel=self.wheel,
            words=self.words,
            heard=self.heard,
            talk=Talk(),
        )
        step, timeout_s = "webhook", WEBHOOK_TIMEOUT_S
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self.ask(call)
            self.webhook_s.append(clock() - began)
            found = ElementTree.fromstring(answer).find("Connect/Stream")
            if found is None:
                self.note("refused")
                return
            self.note("admitted")
            step = "stream"
            async with asyncio.timeout(STREAM_TIMEOUT_S):
                url = found.attrib["url"]
                signature = self.validator.compute_signature(url, {})
                where = f"ws://127.0.0.1:{self.burst.port}{urlsplit(url).path}"
                await self.backend.connect(where, {"X-Twilio-Signature": signature}, call)
            step = "greeting"
            self.calls.append(call)
            call.start({one.attrib["name"]: one.attrib["value"] for one in found.iter("Parameter")})
            call.speak()
            async with asyncio.timeout(HEARD_TIMEOUT_S):
                await call.answered.wait()
            self.last_heard_at = clock()
            self.heard_s.append(self.last_heard_at - began)
            self.note("heard")
        except _RefusedUnread:
            self.note("refused unread")
        except TimeoutError:
            self.note(f"no {step} in time")
        except Exception as error:  # whatever the server has done to it
            self.note(f"{step}: {type(error).__name__}: {str(error)[:60]}")

    async def ask(self, call: LoadCall) -> bytes:
        """The answer to the call's voice webhook."""
        form = {
            "CallSid": call.call_sid,
            "AccountSid": self.burst.account_sid,
            "From": f"+1202555{call.number % 10_000:04}",
            "To": "+15005550006",
            "CallStatus": "ringing",
            "Direction": "inbound",
            "ApiVersion": "2010-04-01",
        }
        url = f"{self.burst.public_url}/twiml"
        signature = self.validator.compute_signature(url, form)
        body = urlencode(form)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.burst.port)
        try:
            writer.write(
                (
                    f"POST /twiml HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
                    "Content-Type: application/x-www-form-urlencoded\r\n"
                    f"X-Twilio-Signature: {signature}\r\n\r\n{body}"
                ).encode()
            )
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"HTTP/1.1 503") and b"retry-after" in head:
                raise _RefusedUnread
            if not head.startswith(b"HTTP/1.1 200"):
                raise _Failed(head.split(b"\r\n")[0].decode())
            length = head.lower().partition(b"content-length:")[2].split()[0]
            return await reader.readexactly(int(length))
        finally:
            writer.close()


REALTIME_PRIORITY = 5
"""Below the generator's, with which we share its cores: it keeps time for the calls that talk."""


def _stand_back() -> None:
    """Where we are preferred to other programs, prefer the generator to us."""
    if hasattr(os, "sched_getscheduler") and os.sched_getscheduler(0) == os.SCHED_RR:
        os.sched_setparam(0, os.sched_param(REALTIME_PRIORITY))


async def _main() -> None:
    _stand_back()
    read = asyncio.get_running_loop().run_in_executor
    phones = _Phones(Burst(**json.loads(await read(None, sys.stdin.readline))))
    _say("ready")
    if await read(None, sys.stdin.readline):
        _say(await phones.run())


def _say(what: object) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(_main())
    else:
        uvloop.run(_main())
