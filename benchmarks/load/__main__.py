"""``python -m benchmarks.load``: one point of a load benchmark, told what to do on stdin.

The first line in is a :class:`Plan`; the first line out says where the doubles listen. When the
server has been started with that, its address and process come in, and the outcome of the calls
goes out; or, with ``"stay"``, what each line asks for while the calls go on: a window's figures
(``window_s``), or that calls end and others begin (``turn_over_s``). Every line is JSON. It ends
when stdin does.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import ssl
import sys
import time
from array import array
from base64 import b64encode
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx2
from twilio.request_validator import RequestValidator

from benchmarks.load.asterisk import SECRET, USER, AsteriskCall, AsteriskDouble
from benchmarks.load.call import Heard, LoadCall, Talk, Words
from benchmarks.load.doubles import CarrierDouble, ModelDouble, self_signed
from benchmarks.load.sockets import backend
from benchmarks.load.trail import Trail
from benchmarks.load.wheel import Wheel, clock
from benchmarks.percentiles import percentiles
from benchmarks.processes import CoreTimes, cpu_s, resident_kib

SETUP_TIMEOUT_S = 10.0
RAMP_TIMEOUT_S = 60.0
RAMP_CALL_S = 0.2
"""What each of many calls may take to set up, while all before it talk."""
GRACE_S = 1.0
"""How long after the window what was sent in it may still arrive."""
LATE_S = 0.02
"""A frame's own length: one that is longer on its way is late."""
MEASURED_IN = 10
"""Of so many calls in rooms, one."""
TURN_OVER_S = 0.05
"""How often it is looked whose call is over."""
PREPARE_S = 0.15
"""From the greeting's sending to the answer, where a prepared greeting is measured."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with a server."""

    calls: int
    window_s: float
    account_sid: str
    auth_token: str
    gemini_api_key: str
    directory: str
    """For the certificate to trust."""
    warm_s: float = 5.0
    talk: Talk = field(default_factory=Talk)
    answers: int = 0
    """So many calls before, one after the other, whose greeting is ready when they are answered."""
    samples: bool = False
    """Whether the outcome has every latency, not only percentiles."""
    tls: bool = False
    """Whether the model is reached by TLS."""
    carrier: str = "twilio"
    """Whose calls they are: ``twilio``, or ``asterisk`` with mu-law in binary frames."""
    rooms: tuple[str, ...] = ()
    """Files with mu-law that callers' lines have, in turn; every tenth is quiet, and is measured.
    Twilio's."""
    others: bool = False
    """Whether the model also takes sessions of calls that are not the generator's."""

    @classmethod
    def from_json(cls, line: str) -> Plan:
        given = json.loads(line)
        talk = given.pop("talk")
        talk["cut_delays_s"] = tuple(talk["cut_delays_s"])
        given["rooms"] = tuple(given["rooms"])
        return cls(**given, talk=Talk(**talk))


class Failed(Exception):
    """The server did not take a call, or lost one."""


class Generator:
    """Drives one server through one plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.backend = backend()
        self.wheel = Wheel()
        self.heard = Heard()
        self.words = Words(self.backend)
        self.model = ModelDouble(
            self.backend, self.words, plan.gemini_api_key, takes_others=plan.others
        )
        self.carrier = CarrierDouble()
        self.asterisk = AsteriskDouble()
        self.validator = RequestValidator(plan.auth_token)
        self.rooms = [Path(file).read_bytes() for file in plan.rooms]
        self.calls: list[LoadCall] = []
        self.begun = 0
        self.ends_at: dict[LoadCall, float] = {}
        """When each call hangs up, while calls turn over."""
        self.trust: ssl.SSLContext | None = None
        """To reach the server with, where it ends TLS."""
        self.public_url = ""
        """What the carrier calls the server, if that is another address than it is reached at."""

    async def open(self) -> dict[str, str]:
        """Start the doubles; the value is where they are."""
        tls = trusted = None
        if self.plan.tls:
            tls, trusted = self_signed(Path(self.plan.directory))
        return {
            "gemini_url": await self.model.serve(tls),
            "twilio_url": await self.carrier.serve(),
            "asterisk_url": await self.asterisk.serve(),
            "trusted": str(trusted or ""),
            "backend": f"{self.backend.name} on {type(asyncio.get_running_loop()).__module__}",
        }

    async def run(self, server_url: str, pid: int) -> dict[str, Any]:
        """Place the calls, let them talk, and count."""
        plan = self.plan
        async with self.talking(server_url, pid) as facts:
            outcome = await self.measure(pid, plan.window_s)
            base_kib = facts.pop("base_kib")
            outcome["rss_kib_per_call"] = (outcome.pop("rss_kib") - base_kib) / plan.calls
            return outcome | facts

    @asynccontextmanager
    async def talking(self, server_url: str, pid: int) -> AsyncGenerator[dict[str, Any]]:
        """Place the calls, and hang up at the block's end; the value is what that took."""
        plan = self.plan
        self.wheel.start()
        async with httpx2.AsyncClient(
            trust_env=False, timeout=SETUP_TIMEOUT_S, verify=self.trust or True
        ) as self.http:
            # A call that does not count: whatever a server loads or makes once is there then.
            call = await self.begin(server_url)
            call.speak()
            call.take_turns()
            await asyncio.sleep(plan.warm_s / 2)
            await self.finish([call])
            self.heard.forget()
            for _ in range(plan.answers):
                await self.answer_prepared(server_url)
            answers = self.heard.answers[:]
            base_kib = resident_kib(pid)

            ramp_began = clock()
            await self.ramp(server_url)
            ramp_s = clock() - ramp_began
            await asyncio.sleep(plan.warm_s)

            gc.collect()
            gc.freeze()
            gc.disable()
            yield {"ramp_s": ramp_s, "answer_ms": in_ms(answers), "base_kib": base_kib}
            await self.finish(self.calls)
        self.wheel.stop()

    async def ramp(self, server_url: str) -> None:
        """Begin every call, one after the other, each talking at once.

        Raises:
            Failed: The server was too slow for it.
        """
        timeout_s = max(RAMP_TIMEOUT_S, RAMP_CALL_S * self.plan.calls)
        try:
            async with asyncio.timeout(timeout_s):
                for _ in range(self.plan.calls):
                    call = await self.begin(server_url)
                    self.calls.append(call)
                    call.speak()
                    call.take_turns()
        except TimeoutError:
            raise Failed(f"only {len(self.calls)} calls were set up in {timeout_s:.0f} s") from None

    async def begin(self, server_url: str, *, prepared: bool = False) -> LoadCall:
        """Let one call come in: voice webhook, media stream, ``start``, model session.

        Raises:
            Failed: The server refused some of it, or took too long.
        """
        plan = self.plan
        facts: dict[str, Any] = {
            "account_sid": plan.account_sid,
            "wheel": self.wheel,
            "words": self.words,
            "heard": self.heard,
            "talk": plan.talk,
        }
        is_quiet = not self.rooms or self.begun % MEASURED_IN == 0
        room = b"" if is_quiet else self.rooms[self.begun % len(self.rooms)]
        call = (
            AsteriskCall(self.begun, over=self.asterisk.over, **facts)
            if plan.carrier == "asterisk"
            else LoadCall(self.begun, room=room, **facts)
        )
        self.begun += 1
        self.model.expecting = call
        try:
            async with asyncio.timeout(SETUP_TIMEOUT_S):
                stream_url, parameters = await self.ring(server_url, call)
                if prepared:
                    await call.session_ready.wait()
                    call.say_all()
                    await asyncio.sleep(PREPARE_S)
                headers = self.proof(stream_url)
                if self.public_url:
                    stream_url = stream_url.replace(
                        self.public_url.replace("http", "ws", 1),
                        server_url.replace("http", "ws", 1),
                    )
                await self.backend.connect(stream_url, headers, call, self.trust)
                call.start(parameters)
                await call.session_ready.wait()
        except TimeoutError:
            raise Failed(f"call {self.begun} was not set up in {SETUP_TIMEOUT_S:g} s") from None
        except (OSError, httpx2.HTTPError) as error:
            raise Failed(f"call {self.begun}: {error!r}") from error
        return call

    async def ring(self, server_url: str, call: LoadCall) -> tuple[str, dict[str, str]]:
        """Ask what to do with an inbound call: the stream's URL and its parameters."""
        if self.plan.carrier == "asterisk":
            return f"{server_url.replace('http', 'ws', 1)}/stream", await self.asterisk.ring(call)
        form = {
            "CallSid": call.call_sid,
            "AccountSid": self.plan.account_sid,
            "From": f"+1202555{call.number % 10_000:04}",
            "To": "+15005550006",
            "CallStatus": "ringing",
            "Direction": "inbound",
            "ApiVersion": "2010-04-01",
        }
        url = f"{self.public_url or server_url}/twiml"
        headers = {"X-Twilio-Signature": self.validator.compute_signature(url, form)}
        answer = await self.http.post(f"{server_url}/twiml", data=form, headers=headers)
        if answer.status_code != 200:
            raise Failed(f"/twiml answered {answer.status_code}: {answer.text[:200]}")
        stream = ElementTree.fromstring(answer.text).find("Connect/Stream")
        if stream is None:
            raise Failed(f"/twiml answered no stream: {answer.text[:200]}")
        parameters = {one.attrib["name"]: one.attrib["value"] for one in stream.iter("Parameter")}
        return stream.attrib["url"], parameters

    def proof(self, stream_url: str) -> dict[str, str]:
        """The headers by which the carrier shows that a media stream is its own."""
        if self.plan.carrier == "asterisk":
            return {"Authorization": f"Basic {b64encode(f'{USER}:{SECRET}'.encode()).decode()}"}
        return {"X-Twilio-Signature": self.validator.compute_signature(stream_url, {})}

    async def answer_prepared(self, server_url: str) -> None:
        """One call whose greeting waits for the answer; the time to its first audio is noted."""
        call = await self.begin(server_url, prepared=True)
        call.speak()
        async with asyncio.timeout(SETUP_TIMEOUT_S):
            await call.answered.wait()
        await asyncio.sleep(0.05)
        await self.finish([call])

    async def finish(self, calls: list[LoadCall]) -> None:
        """Hang up, and give the server a moment to end its sessions."""
        for call in calls:
            call.hang_up()
        try:
            async with asyncio.timeout(SETUP_TIMEOUT_S):
                for call in calls:
                    await call.session_closed.wait()
        except TimeoutError:
            pass  # the point is measured; a server that does not hang up will be killed

    async def turn_over(
        self, server_url: str, seconds: float, call_s: tuple[float, float]
    ) -> dict[str, Any]:
        """For so long have every call hang up after a while, and another begin in its place.

        Args:
            server_url: Where calls begin.
            seconds: How long.
            call_s: The shortest and the longest that a call may last.

        Returns:
            The calls that hung up meanwhile, and how soon all heard the agent.
        """
        until, dice, lost = clock() + seconds, random.Random(self.begun), []
        call_sids = []
        self.heard.forget()
        del self.wheel.lags[:]
        while (now := clock()) < until:
            for place, call in enumerate(self.calls):
                ends_at = self.ends_at.setdefault(call, now + dice.uniform(*call_s))
                if ends_at > now and not call.lost:
                    continue
                del self.ends_at[call]
                await self.finish([call])
                call_sids.append(call.call_sid)
                if call.lost:
                    lost.append(call.lost)
                following = self.calls[place] = await self.begin(server_url)
                following.speak()
                following.take_turns()
            await asyncio.sleep(TURN_OVER_S)
        gc.collect()  # nobody else does
        return {
            "call_sids": call_sids,
            "lost": lost,
            "agent_to_caller_ms": in_ms(self.heard.agent),
        }

    async def measure(self, pid: int, window_s: float) -> dict[str, Any]:
        """Watch all calls talk for so long; audio is counted from the beginning of the calls."""
        plan, heard = self.plan, self.heard
        pinned_to = sorted(os.sched_getaffinity(pid)) if hasattr(os, "sched_getaffinity") else []
        heard.forget()
        del self.wheel.lags[:]
        began, cores_before = clock(), CoreTimes.read()
        cpu_before, own_before = cpu_s(pid), time.process_time()
        await asyncio.sleep(window_s)
        took_s = clock() - began
        own_s = time.process_time() - own_before
        by_process = {member: now - cpu_before.get(member, 0) for member, now in cpu_s(pid).items()}
        server_s = sum(by_process.values())
        cores_now = CoreTimes.read()
        rss_kib = resident_kib(pid)
        sent = [(call.caller.sent, call.agent.sent) for call in self.calls]
        caller, agent, openings = heard.caller[:], heard.agent[:], heard.openings[:]
        await asyncio.sleep(GRACE_S)

        trails = [(call.caller, upto) for call, (upto, _) in zip(self.calls, sent, strict=True)]
        trails += [(call.agent, upto) for call, (_, upto) in zip(self.calls, sent, strict=True)]
        core_load = sum(cores_now.load_since(cores_before, core) for core in pinned_to)
        lost = [call.lost for call in self.calls if call.lost]
        samples = {"caller_to_model": caller, "agent_to_caller": agent}
        return {
            "samples_ms": {
                name: [round(one * 1000, 4) for one in latencies] if plan.samples else []
                for name, latencies in samples.items()
            },
            "window_s": took_s,
            "cpu_ms_per_call_s": server_s / plan.calls / took_s * 1000,
            "rss_kib": rss_kib,
            "caller_to_model_ms": in_ms(caller),
            "agent_to_caller_ms": in_ms(agent),
            "first_chunk_ms": in_ms(openings),
            "interrupt_to_clear_ms": in_ms(heard.clears),
            "lost_ms": sum(trail.in_ms(trail.lost + trail.missing(upto)) for trail, upto in trails),
            "doubled_ms": total_ms(trails, "doubled"),
            "stale_ms": total_ms(trails, "stale"),
            "silence_ms": total_ms(trails, "silence"),
            "strange_ms": total_ms(trails, "strange"),
            "late_ms": 20.0 * sum(one > LATE_S for one in caller)
            + 40.0 * sum(one > LATE_S for one in agent),
            "frames": len(caller),
            "chunks": len(agent),
            "clears": len(heard.clears),
            "missed_clears": sum(call.missed_clears for call in self.calls),
            "unasked_clears": sum(call.unasked_clears for call in self.calls),
            "calls_lost": len(lost),
            "why_lost": sorted(set(lost)),
            "server_core": server_s / took_s,
            "server_processes": sorted((one / took_s for one in by_process.values()), reverse=True),
            "generator_core": own_s / took_s,
            "others_on_server_core": max(0.0, core_load - server_s / took_s) if pinned_to else None,
            "generator_late_ms": in_ms(self.wheel.lags),
            "call_sids": [call.call_sid for call in self.calls],
        }


def total_ms(trails: list[tuple[Trail, int]], name: str) -> float:
    return sum(trail.in_ms(getattr(trail, name)) for trail, _ in trails)


def in_ms(latencies_s: array[float]) -> dict[str, float | None]:
    """The four percentiles of latencies given in seconds, in milliseconds; None without any."""
    names = ("p50", "p95", "p99", "p999")
    return {**dict.fromkeys(names), **percentiles(latencies_s, names, unit=1000, digits=4)}


async def main() -> None:
    read = asyncio.get_running_loop().run_in_executor
    plan = Plan.from_json(await read(None, sys.stdin.readline))
    generator = Generator(plan)
    _say(await generator.open())
    line = await read(None, sys.stdin.readline)
    if line:
        told = json.loads(line)
        server_url, pid = told["server_url"], told["pid"]
        if told.get("trusted"):
            generator.trust = ssl.create_default_context(cafile=told["trusted"])
            generator.public_url = told["public_url"]
        try:
            if not told["stay"]:
                _say(await generator.run(server_url, pid))
                return
            async with generator.talking(server_url, pid):
                _say({"call_sids": [call.call_sid for call in generator.calls]})
                while line := await read(None, sys.stdin.readline):
                    asked = json.loads(line)
                    if "turn_over_s" in asked:
                        call_s = tuple(asked["call_s"])
                        seconds = asked["turn_over_s"]
                        _say(await generator.turn_over(server_url, seconds, call_s))
                    else:
                        _say(await generator.measure(pid, asked["window_s"]))
        except Failed as failure:
            _say({"failed": str(failure)})
        finally:
            await generator.asterisk.aclose()


def _say(facts: Mapping[str, Any]) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(main())
    else:
        uvloop.run(main())
