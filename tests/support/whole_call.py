"""Whole simulated calls with every log line on stderr, and on stdout what must not be in one.

A process of its own: how logs are set up belongs to a process.
"""

from __future__ import annotations

import json
import secrets
import sys
from typing import Any

import trio
from twilio.base.exceptions import TwilioRestException

from server import logs
from server.simulators.phone import HangUp, HearSpeech, Say, Script, Wait
from tests.support.serving import Server, serving

DESTINATION = "+15005550103"  # the simulated callee there hangs up soon
CALLER = "+15005550199"
KEY = "offhook_" + secrets.token_urlsafe(32)
TALKS = Script(
    "says something",
    (HearSpeech(), Wait(0.5), Say("interrupt"), Wait(0.5), HearSpeech(), Wait(0.5), HangUp()),
)
PROMPT = "You are a parrot named Gwendolyn."


async def main() -> None:
    async with serving(api_key=KEY, simulated_ring_s=0.1) as server:
        server.http.headers["X-API-Key"] = KEY
        forbidden = await odd_requests(server)
        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(outbound, server, forbidden)
                nursery.start_soon(inbound, server, forbidden)
        twilio, gemini = (
            server.twilio,
            server.gemini,
        )
        assert twilio is not None
        assert gemini is not None
        forbidden["secrets"] += [twilio._auth_token, gemini._api_key, KEY]
    print(json.dumps(forbidden))  # noqa: T201


async def outbound(server: Server, forbidden: dict[str, Any]) -> None:
    answer = await server.make_call("5550103", prompt=PROMPT, metadata={"order": "4711-secret"})
    learn(await server.finished(answer.json()["call_sid"]), forbidden)


async def inbound(server: Server, forbidden: dict[str, Any]) -> None:
    twilio = server.twilio
    assert twilio is not None
    url = f"{server.url}/twiml"
    phone = twilio.dial_in(url, from_number=CALLER, script=TALKS)
    await phone.wait_ended()
    learn((await server.http.get(f"/calls/{phone.call_sid}")).json(), forbidden)


def learn(record: dict[str, Any], forbidden: dict[str, Any]) -> None:
    forbidden["calls"].append(record["call_sid"])
    forbidden["spoken"] += [turn["text"] for turn in record["transcript"] if turn["text"].strip()]


async def odd_requests(server: Server) -> dict[str, Any]:
    """Requests that go wrong, each with something that nobody should find in a log."""
    await server.http.post("/make-call", json={"destination_number": "+15005550003"})
    await server.http.post("/make-call", json={"destination_number": "+1500555019"})
    await server.http.post("/make-call", content=b'{"destination_number": "+15005550198"')
    await server.http.get("/calls/+15005550197?number=%2B15005550196")
    await server.http.get("/calls", headers={"X-API-Key": "a-stolen-key-of-somebody"})
    await server.http.post("/call-status", data={"CallSid": "CA1", "From": "+15005550195"})
    await server.signed_post("/call-status", {"CallSid": "+15005550194", "CallStatus": "odd"})

    class Careless:
        async def place_call(self, *args: object, **kwargs: object) -> None:
            raise TwilioRestException(400, "/Calls?token=abc", f"cannot call {DESTINATION}")

    carrier, server.service.calls.carrier = (
        server.service.calls.carrier,
        Careless(),
    )  # a bug of ours
    await server.make_call()
    server.service.calls.carrier = carrier
    return {
        "calls": [],
        "spoken": [PROMPT, "4711-secret"],
        "secrets": ["a-stolen-key-of-somebody", "token=abc"],
        "numbers": ["5550103", "5550199", "5550003", "555019", "5550006"],
    }


if __name__ == "__main__":
    logs.configure(level="DEBUG", json="--readable" not in sys.argv)
    trio.run(main)
