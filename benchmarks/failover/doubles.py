"""The telephone company, everybody's telephones and the model, for all nodes in one process.

As in :mod:`benchmarks.chaos.doubles`, with calls that stay until they are told to hang up, agents
that are hardly ever silent, and calls that come at a rate. Controlled by lines of JSON.

| ``do`` | Takes | Does |
| --- | --- | --- |
| ``keys`` | the accounts, ``unknowns`` | starts; says where carrier and model are |
| ``place`` | ``urls``, ``calls``, ``within_s`` | so many calls to each, which are heard |
| ``load`` | ``urls``, ``public_url``, ``per_s``, ``call_s`` | calls begin from now on, both ways |
| ``dial`` | ``urls``, ``each``, ``seconds`` | so many ask for calls at each, as fast as they may |
| ``cut`` | | every media socket that there is is cut |
| ``hang_up`` | ``within_s`` | no more calls begin, and everybody hangs up |
| ``seen`` | | every call, every request at the API, every attempt, how late this process was |
| ``forget`` | | what is over |
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import httpx2
import trio

from benchmarks.chaos.calls import CallSeen
from benchmarks.chaos.doubles import PHONE_NUMBER, Crowd, Everybody, NumberedModel, mono
from benchmarks.chaos.numbered import MAX_S, of_mulaw
from benchmarks.failover.seen import Attempt, silences, sounds_of
from benchmarks.load.trail import AGENT_LEVELS, SILENCE
from server.simulators.gemini import SimulatedSession
from server.simulators.phone import SimulatedPhone, StreamEnd
from server.simulators.twilio import Faults, SimulatedCall, TwilioSimulator

RING_S = 0.2
TURN_S = (2.0, 4.0)
PAUSE_S = 0.15
"""After a turn; with what it takes to begin the next one, far below a gap."""
CALL_S = (MAX_S - 10.0, MAX_S - 1.0)
HTTP_TIMEOUT_S = 20.0
RETRY_MOST_S = 5.0
LOOK_EVERY_S = 0.1
BYTES_PER_S = 8_000
PLACE_EVERY_S = 0.05


class TalkativeModel(NumberedModel):
    """A Gemini Live service that says one numbered turn after the other."""

    async def _take_turns(self, session: SimulatedSession) -> None:
        dice = random.Random(self._dice.random())
        while session.is_open:
            # Before the telephone is answered, a model is silent but for its greeting.
            if session.agent.greeted and session.caller.heard_samples:
                speech = self.new_speech(dice.uniform(*TURN_S))
                session.agent.say(speech)
                await trio.sleep(speech.seconds)
            await trio.sleep(PAUSE_S)


class StandingCrowd(Crowd):
    """Calls that stay, and calls that come at a rate; what became of each."""

    def __init__(self, twilio: TwilioSimulator, model: NumberedModel, api_key: str) -> None:
        super().__init__(twilio, model, seed=0)
        self.traces: dict[str, dict[str, Any]] = {}
        """Of calls that are over."""
        self.attempts: list[Attempt] = []
        self._key = api_key
        self._call_s = CALL_S
        self._load = trio.CancelScope()

    async def see_all(self, nursery: trio.Nursery) -> None:
        """See every call through that the carrier has."""
        await self._see_all(nursery)

    def client(self, url: str) -> httpx2.AsyncClient:
        """What a user of the API at an address asks with."""
        return httpx2.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {self._key}"},
            trust_env=False,
            timeout=HTTP_TIMEOUT_S,
            limits=httpx2.Limits(max_keepalive_connections=0),
        )

    async def ask_for_call(self, client: httpx2.AsyncClient) -> tuple[SimulatedCall | None, str]:
        """Have a call placed: the call, or why not, and in how many seconds it may be tried."""
        began = time.monotonic()
        call, why = None, ""
        try:
            answer = await client.post("/make-call", json={"destination_number": "+15005550100"})
            if answer.is_success:
                call = self.twilio.calls.get(answer.json()["call_sid"])
            else:
                why = f"{answer.status_code} {answer.headers.get('retry-after', '')}".strip()
        except (httpx2.HTTPError, KeyError, ValueError) as error:
            why = type(error).__name__
        self.attempts.append(Attempt(began, not why, why))
        return call, why

    async def place(self, urls: Sequence[str], calls: int, within_s: float) -> dict[str, Any]:
        """Place calls, and wait until their agents are heard."""
        self._call_s = CALL_S
        heard: list[str] = []
        refused: list[str] = []

        async def place_one(url: str) -> None:
            async with self.client(url) as client:
                while True:
                    call, why = await self.ask_for_call(client)
                    if call is not None:
                        break
                    refused.append(why)
                    await trio.sleep(_wait_s(why))
            for _ in range(round(within_s / LOOK_EVERY_S)):
                if call.ended_at is not None or _is_heard(call):
                    break
                await trio.sleep(LOOK_EVERY_S)
            if _is_heard(call):
                heard.append(call.call_sid)

        with trio.move_on_after(within_s):
            async with trio.open_nursery() as nursery:
                for _ in range(calls):
                    for url in urls:
                        nursery.start_soon(place_one, url)
                        await trio.sleep(PLACE_EVERY_S)
        return {"heard": len(heard), "refused": refused[-5:]}

    async def load(self, urls: Sequence[str], public_url: str, per_s: float, call_s: Any) -> None:
        """Have calls begin at a rate, every other one inbound, until nobody is to call any more."""
        self._public_url, self._call_s = public_url, tuple(call_s)
        self._load = trio.CancelScope()
        begins = trio.current_time()
        with self._load:
            async with trio.open_nursery() as nursery:
                for number in range(100_000):
                    await trio.sleep_until(begins + number / per_s)
                    nursery.start_soon(self._call_once, urls[number // 2 % len(urls)], number % 2)

    async def _call_once(self, url: str, comes_in: int) -> None:
        if not comes_in:
            async with self.client(url) as client:
                await self.ask_for_call(client)
            return
        began = time.monotonic()
        call = self.ring()
        await call.wait_streams(1)
        what = "" if call.phones or call.answered_at else "; ".join(w for _, w in call.timeline)
        self.attempts.append(Attempt(began, not what, what))

    async def dial(self, urls: Sequence[str], each: int, seconds: float) -> None:
        """Ask for calls as fast as they are given, and obey whoever says when to come again."""
        self._call_s = (1.0, 2.0)

        async def ask(url: str) -> None:
            async with self.client(url) as client:
                while True:
                    _, why = await self.ask_for_call(client)
                    await trio.sleep(_wait_s(why) if why else 0)

        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for url in urls:
                    for _ in range(each):
                        nursery.start_soon(ask, url)

    async def cut(self) -> int:
        """Cut every media socket there is."""
        phones = [call.phone for call in self.twilio.calls.values() if _is_streaming(call)]
        for phone in phones:
            await phone.cut()
        return len(phones)

    async def let_end(self, within_s: float) -> None:
        """Let nobody call any more, have everybody hang up, and wait until all is judged."""
        self._load.cancel("nobody calls any more")
        self.hang_up()
        for _ in range(round(within_s / LOOK_EVERY_S)):
            if not (self.live or self.judging):
                break
            await trio.sleep(LOOK_EVERY_S)
        self._hung_up = False

    async def _judge(self, call: SimulatedCall) -> CallSeen:
        self.traces[call.call_sid] = trace_of(call)  # before its telephones are forgotten
        return await super()._judge(call)

    def seen(self) -> dict[str, Any]:
        """What there is to be known."""
        live = [trace_of(c) for c in self.twilio.calls.values() if c.call_sid not in self.traces]
        return {
            "traces": [*self.traces.values(), *live],
            "judged": [
                {"call_sid": one.call_sid, "doubled": one.doubled, "strange": one.strange}
                for one in self.ended
            ],
            "asked": [asdict(one) | {"at": mono(one.at)} for one in self.twilio.account.requests],
            "attempts": [asdict(one) for one in self.attempts],
            "late": self.late,
            "live": self.live,
        }

    def forget(self) -> None:
        """Forget what is over."""
        for call_sid in self.traces:
            self.twilio.calls.pop(call_sid, None)
        self.traces.clear()
        self.ended.clear()
        self.attempts.clear()
        self.late.clear()
        self.twilio.account.requests.clear()


def _wait_s(why: str) -> float:
    """How long to wait after a refusal, which may say it."""
    last = why.rpartition(" ")[2]
    return min(float(last), RETRY_MOST_S) if " " in why and last.isdecimal() else 0.5


def _is_heard(call: SimulatedCall) -> bool:
    return any(phone.first_sound_s is not None for phone in call.phones)


def _is_streaming(call: SimulatedCall) -> bool:
    return bool(call.phones) and call.phone.started_at is not None and call.phone.end is None


def trace_of(call: SimulatedCall) -> dict[str, Any]:
    """One call, as :class:`benchmarks.failover.seen.Trace` has it."""
    streams, sounds, behind_s = [], [], 0.0
    for phone, url in zip(call.phones, call.stream_urls, strict=True):
        if phone.started_at is None:
            continue
        began = mono(phone.started_at)
        took_s = (_end_of(phone) or time.monotonic()) - began
        behind_s = took_s - len(phone.heard) / BYTES_PER_S  # the one that the caller has now
        sounded = None if phone.first_sound_s is None else began + phone.first_sound_s
        streams.append({"began": began, "ended": _end_of(phone), "sounded": sounded, "url": url})
        sounds += sounds_of(began, of_mulaw(phone.heard, AGENT_LEVELS), SILENCE)
    ended = mono(call.ended_at) if call.ended_at is not None else None
    return {
        "call_sid": call.call_sid,
        "answered": mono(call.answered_at) if call.answered_at is not None else None,
        "ended": ended,
        "hung_up": bool(call.phones) and call.phone.end is StreamEnd.HUNG_UP,
        "streams": streams,
        "silences": silences(sounds, ended or time.monotonic()),
        "behind_s": behind_s,
        "notes": [f"{at_s:.2f} {what}" for at_s, what in call.timeline[-8:]],
    }


def _end_of(phone: SimulatedPhone) -> float | None:
    """When a stream was over; its last event is that."""
    if phone.end is None or phone.started_at is None:
        return None
    return mono(phone.started_at) + phone.events[-1][0]


async def serve(out: trio.abc.SendStream) -> None:
    """Be the doubles for whoever writes these lines, until they end."""
    logging.disable()  # what a library thinks of a connection that is cut on purpose
    commands = trio.lowlevel.FdStream(os.dup(0))
    kept = b""
    async with commands, trio.open_nursery() as nursery:
        crowd: StandingCrowd | None = None
        async for data in commands:
            kept += data
            while b"\n" in kept:
                line, _, kept = kept.partition(b"\n")
                command = json.loads(line)
                if (do := command.pop("do")) == "keys":
                    crowd, answer = await _open(command, nursery)
                else:
                    assert crowd is not None
                    answer = await _obey(crowd, do, command, nursery)
                await out.send_all(json.dumps({"ok": True, **answer}).encode() + b"\n")
        nursery.cancel_scope.cancel()


async def _open(
    keys: dict[str, Any], nursery: trio.Nursery
) -> tuple[StandingCrowd, dict[str, Any]]:
    model = TalkativeModel(keys["gemini_api_key"], random.Random("model"))
    twilio = TwilioSimulator(
        account_sid=keys["account_sid"],
        auth_token=keys["auth_token"],
        phone_number=PHONE_NUMBER,
        ring_s=RING_S,
        faults=Faults(**keys["unknowns"]),
    )
    crowd = StandingCrowd(twilio, model, keys["api_key"])
    twilio.account.people = Everybody(crowd)
    model_url = await nursery.start(model.run)
    api_url = await nursery.start(twilio.run)
    nursery.start_soon(model.talk)
    nursery.start_soon(crowd.watch_clock)
    nursery.start_soon(crowd.see_all, nursery)
    return crowd, {"gemini_url": model_url, "twilio_url": api_url}


async def _obey(
    crowd: StandingCrowd, do: str, facts: dict[str, Any], nursery: trio.Nursery
) -> dict[str, Any]:
    match do:
        case "place":
            return await crowd.place(**facts)
        case "load":
            nursery.start_soon(lambda: crowd.load(**facts))
            return {}
        case "dial":
            await crowd.dial(**facts)
            return {}
        case "cut":
            return {"streams": await crowd.cut()}
        case "hang_up":
            await crowd.let_end(**facts)
            return {"live": crowd.live}
        case "seen":
            return crowd.seen()
        case "forget":
            crowd.forget()
            return {}
        case other:
            raise ValueError(f"there is no command {other!r}")


def main() -> None:
    """Run as a process."""
    argparse.ArgumentParser(description="a telephone company and a model").parse_args()

    async def on_standard_streams() -> None:
        async with trio.lowlevel.FdStream(os.dup(1)) as out:
            await serve(out)

    trio.run(on_standard_streams)


if __name__ == "__main__":
    main()
