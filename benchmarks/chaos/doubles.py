"""The telephone company, everybody's telephones and the model, in one process of their own.

Our simulators, which speak the real protocols over real sockets, with callers and agents whose
audio is numbered. So many calls are kept up: when one ends another begins, in either direction.
Each is judged when it is over by what was said and what arrived, both ways. Controlled by lines of
JSON, as the relay is.

| ``do`` | Takes | Does |
| --- | --- | --- |
| ``begin`` | ``url`` (the server's own), ``public_url``, ``calls``, ``call_s`` | keeps calls up |
| ``ring`` | ``calls`` | so many more at once, which call in |
| ``stop`` | | no more calls begin; the answer comes when the last is over, or ``within_s`` |
| ``hang_up`` | | everybody who is still on the line hangs up |
| ``ended`` | | the calls that have been judged since this was last asked |
| ``now`` | | how many calls there are |
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import httpx2
import trio

from benchmarks.chaos.calls import CallSeen, SessionSeen, judge_call
from benchmarks.chaos.lines import answers_only
from benchmarks.chaos.numbered import (
    FRAME_S,
    GROUP,
    MAX_S,
    NUMBERS,
    agent_pcm,
    caller_frames,
    numbers_in,
    of_mulaw,
    of_pcm,
    of_stream,
)
from benchmarks.load.trail import AGENT_LEVELS, CALLER_LEVELS
from server.simulators.gemini import GeminiSimulator, ModelScript, SimulatedSession, Speech
from server.simulators.gemini.caller import CallerSide, pcm_of
from server.simulators.phone import HangUp, PhoneScript, SayFrames, StreamEnd
from server.simulators.twilio import SimulatedCall, TwilioSimulator
from server.simulators.twilio.people import People

PHONE_NUMBER = "+15005550006"
RING_S = 0.4
RETRY_S = 0.5
HTTP_TIMEOUT_S = 20.0
SOONER_S = 10.0
"""A connection may be opened so long before its call is dialled."""
SETTLE_S = 15.0
"""How long the sessions of a call may outlive it before it is judged without their end."""
TURN_S = (1.0, 3.0)
QUIET_S = (0.3, 1.5)
CUT = 0.2
"""How many of the agent's turns are interrupted."""
LATE_S = 0.25
KEPT_CALLS = 300
"""Calls that the carrier still knows when they are over."""


def mono(trio_time: float) -> float:
    """A time of trio's clock on the one that all processes of this machine share."""
    return trio_time - trio.current_time() + time.monotonic()


class NumberedCaller(CallerSide):
    """What a model hears of a numbered caller: levels, and when each of them came."""

    def __init__(self) -> None:
        super().__init__(keep_heard_s=0.0)
        self.number: int | None = None
        """Whose audio it is, as soon as that can be heard."""
        self.levels = bytearray()
        self.times = array("d")

    def hear(self, blob: Mapping[str, str]) -> Iterable[Literal["start"] | bytes]:
        """Note what came; nobody's turn begins by it."""
        pcm = pcm_of(blob)
        self.heard_samples += len(pcm) // 2
        levels = of_pcm(pcm)
        self.levels += levels
        self.times.extend([time.monotonic()] * len(levels))
        if self.number is None and len(self.levels) >= GROUP:
            self.number = next(iter(numbers_in(bytes(self.levels[-4 * GROUP :]))), None)
        return ()


class NumberedModel(GeminiSimulator):
    """A Gemini Live service that says numbered turns of its own accord."""

    def __init__(self, api_key: str, dice: random.Random) -> None:
        super().__init__(api_key=api_key, script=ModelScript(reply_delay_s=0.1))
        self.said: dict[str, int] = {}
        """Frames of each thing that was said, by its text."""
        self._dice = dice
        self._utterances = 0

    def new_caller(self) -> CallerSide:
        """Listen for numbers."""
        return NumberedCaller()

    @property
    def greeting(self) -> Speech:
        """A new one for each call."""
        return self.new_speech()

    @greeting.setter
    def greeting(self, speech: Speech) -> None:
        pass

    @property
    def still_here(self) -> Speech:
        """A new one each time it is asked."""
        return self.new_speech()

    @still_here.setter
    def still_here(self, speech: Speech) -> None:
        pass

    def new_speech(self, seconds: float | None = None) -> Speech:
        """Something to say that was never said before."""
        self._utterances += 1
        frames = round((seconds or self._dice.uniform(*TURN_S)) / FRAME_S)
        text = str(self._utterances)
        self.said[text] = frames
        return Speech(text, agent_pcm(self._utterances % NUMBERS, frames))

    async def talk(self) -> None:
        """Have every session take its turns, from its first on."""
        known: set[int] = set()
        async with trio.open_nursery() as nursery:
            while True:
                for session in list(self.sessions):
                    if id(session) not in known:
                        known.add(id(session))
                        nursery.start_soon(self._take_turns, session)
                await trio.sleep(0.1)
                known &= {id(session) for session in self.sessions}

    async def _take_turns(self, session: SimulatedSession) -> None:
        dice = random.Random(self._dice.random())
        while session.is_open:
            await trio.sleep(dice.uniform(*QUIET_S))
            # Before the telephone is answered, a model is silent but for its greeting.
            if not (session.agent.greeted and session.caller.heard_samples):
                continue
            speech = self.new_speech()
            session.agent.say(speech)
            await trio.sleep(speech.seconds * (dice.random() if dice.random() < CUT else 1.2))
            session.agent.cut()  # does nothing to a turn that is over


class Everybody(People):
    """Whoever is called answers, says numbered frames, and hangs up after them."""

    def __init__(self, crowd: Crowd) -> None:
        super().__init__("silent", {}, RING_S)
        self._crowd = crowd

    def at(self, number: str) -> PhoneScript:
        """Somebody new."""
        return self._crowd.new_person()


class Crowd:
    """The calls that are kept up, and what is known of those that are over."""

    def __init__(self, twilio: TwilioSimulator, model: NumberedModel, seed: int) -> None:
        self.twilio = twilio
        self.model = model
        self.live = 0
        self.judging = 0
        self.refused = 0
        self.ended: list[CallSeen] = []
        self.late: list[tuple[float, float]] = []
        """From when to when this process was late."""
        self._dice = random.Random(f"{seed}/crowd")
        self._people = 0
        self._goes_on = True
        self._hung_up = False
        self._url = self._public_url = self._key = ""
        self._call_s = (20.0, 60.0)
        self._changed = trio.Event()
        self._times: dict[int, array[float]] = {}
        """When each frame of each person's was said, and another one heard."""
        self._old: list[str] = []

    def new_person(self) -> PhoneScript:
        """Somebody who talks for as long as the dice say."""
        self._people += 1
        number = self._people % NUMBERS
        frames = round(min(self._dice.uniform(*self._call_s), MAX_S - 1) / FRAME_S)
        steps = (SayFrames(self._saying(number, frames)), HangUp())
        return PhoneScript(f"number {number}", steps)

    def _saying(self, number: int, frames: int) -> Iterator[bytes]:
        times = self._times[number] = array("d")
        for frame in caller_frames(number, frames):
            if self._hung_up:
                return
            times.append(time.monotonic())
            yield frame

    async def keep_up(self, command: dict[str, Any], nursery: trio.Nursery) -> None:
        """Keep so many calls up until told to stop."""
        self._url, self._public_url = command["url"], command["public_url"]
        self._key, self._call_s = command["api_key"], tuple(command["call_s"])
        nursery.start_soon(self._see_all, nursery)
        for place in range(command["calls"]):
            nursery.start_soon(self._fill, place)

    async def _see_all(self, nursery: trio.Nursery) -> None:
        """See every call through that the carrier has, whoever knows of it."""
        known: set[str] = set()
        while True:
            for sid, call in list(self.twilio.calls.items()):
                if sid not in known:
                    known.add(sid)
                    nursery.start_soon(self._see_through, call)
            await trio.sleep(0.1)

    async def _fill(self, place: int) -> None:
        """One call after the other; every other place is dialled by us, the rest call in."""
        dice = random.Random(f"{self._dice.random()}/{place}")
        await trio.sleep(0.1 * place)
        async with httpx2.AsyncClient(
            base_url=self._url,
            headers={"Authorization": f"Bearer {self._key}"},
            trust_env=False,
            timeout=HTTP_TIMEOUT_S,
            limits=httpx2.Limits(max_keepalive_connections=0),
        ) as client:
            while self._goes_on:
                call = await self._dial(client) if place % 2 else self.ring()
                if call is None:
                    await trio.sleep(RETRY_S * (1 + dice.random()))
                    continue
                await call.wait_ended()
                if not call.phones:
                    await trio.sleep(RETRY_S * (1 + dice.random()))

    async def _dial(self, client: httpx2.AsyncClient) -> SimulatedCall | None:
        try:
            answer = await client.post("/make-call", json={"destination_number": "+15005550100"})
            answer.raise_for_status()
            return self.twilio.calls[answer.json()["call_sid"]]
        except (httpx2.HTTPError, KeyError, ValueError):
            self.refused += 1
            return None

    def ring(self) -> SimulatedCall:
        """Have somebody call in."""
        return self.twilio.dial_in(
            f"{self._public_url}/twiml",
            from_number="+15005550166",
            script=self.new_person(),
            status_url=f"{self._public_url}/call-status",
        )

    async def _see_through(self, call: SimulatedCall) -> None:
        """Wait until a call is over, and judge it."""
        self.live += 1
        try:
            await call.wait_ended()
        finally:
            self.live -= 1
            self._changed.set()
            self._changed = trio.Event()
        self.judging += 1
        try:
            self.ended.append(await self._judge(call))
        finally:
            self.judging -= 1
        call.phones.clear()
        self._old.append(call.call_sid)
        if len(self._old) > KEPT_CALLS:
            self.twilio.calls.pop(self._old.pop(0), None)

    async def _judge(self, call: SimulatedCall) -> CallSeen:
        said = b"".join(of_mulaw(phone.said, CALLER_LEVELS) for phone in call.phones)
        heard, places = of_stream(b"".join(phone.heard for phone in call.phones), AGENT_LEVELS)
        number = (numbers_in(said[:8]) or [-1])[0]
        frame_times = self._times.pop(number, array("d"))
        ended = mono(call.ended_at or trio.current_time())
        times = array("d", (frame_times[at] if at < len(frame_times) else ended for at in places))
        sessions = self._sessions_of(call, number, numbers_in(heard)) if number >= 0 else []
        with trio.move_on_after(SETTLE_S):
            for session in sessions:
                await session.ended.wait()
        seen = []
        for session in sessions:
            caller = session.caller
            assert isinstance(caller, NumberedCaller)
            opened_at = mono(session.opened_at)
            moments = [(opened_at + one.at_s, one.what) for one in session.timeline]
            seen.append(SessionSeen(bytes(caller.levels), caller.times, moments))
        return judge_call(
            call_sid=call.call_sid,
            number=number,
            direction=call.direction,
            began=mono(call.created_at),
            answered=mono(call.answered_at) if call.answered_at else None,
            ended=ended,
            hung_up=bool(call.phones) and call.phones[-1].end is StreamEnd.HUNG_UP,
            streams=[str(phone.end) for phone in call.phones],
            notes=[(round(at_s, 2), what) for at_s, what in call.timeline][-12:],
            unanswered=sum(status is None for _, status in call.reports)
            + sum("11205" in what for _, what in call.timeline),
            said=said,
            heard=(heard, times),
            sessions=seen,
            frames_of=self.model.said,
        )

    def _sessions_of(
        self, call: SimulatedCall, number: int, heard: Sequence[int]
    ) -> list[SimulatedSession]:
        """The connections of a caller's; one that was lost before it had heard whose it is, as by a
        process that was killed just after the answer, is known by what was heard of it while the
        call lasted: numbers come again.
        """
        found = []
        since, until = call.created_at - SOONER_S, call.ended_at or trio.current_time()
        for session in self.model.sessions:
            caller = session.caller
            assert isinstance(caller, NumberedCaller)
            if caller.number == number or (
                caller.number is None
                and since <= session.opened_at <= until
                and (session.resumed_from in found or self._has_said(session, heard))
            ):
                found.append(session)
        return found

    def _has_said(self, session: SimulatedSession, heard: Sequence[int]) -> bool:
        texts = {
            one.what.removeprefix("says ") for one in session.timeline
        } & self.model.said.keys()
        return any(int(text) % NUMBERS in heard for text in texts)

    async def stop(self, within_s: float) -> None:
        """Let nobody call any more, and wait until those who talk are through."""
        self._goes_on = False
        with trio.move_on_after(within_s):
            while self.live:
                await self._changed.wait()

    async def watch_clock(self) -> None:
        """Note when this process itself is late: what it says of the time is wrong then."""
        while True:
            due = trio.current_time() + LATE_S
            await trio.sleep_until(due)
            late_s = trio.current_time() - due
            if late_s > LATE_S:
                self.late.append((mono(due), mono(due) + late_s))

    def hang_up(self) -> None:
        """Everybody puts the phone down."""
        self._hung_up = True


async def serve(seed: int, out: trio.abc.SendStream) -> None:
    """Be the doubles for whoever writes these lines, until they end."""
    logging.disable()  # what a library thinks of a connection that is cut on purpose
    commands = trio.lowlevel.FdStream(os.dup(0))
    kept = b""
    keys: dict[str, str] = {}
    async with commands, trio.open_nursery() as nursery:
        crowd: Crowd | None = None

        async def answer(**facts: Any) -> None:
            await out.send_all(json.dumps({"ok": True, **facts}).encode() + b"\n")

        async for data in commands:
            kept += data
            while b"\n" in kept:
                line, _, kept = kept.partition(b"\n")
                command = json.loads(line)
                match command.pop("do"):
                    case "keys":
                        keys = command
                        dice = random.Random(f"{seed}/model")
                        model = NumberedModel(keys["gemini_api_key"], dice)
                        twilio = TwilioSimulator(
                            account_sid=keys["account_sid"],
                            auth_token=keys["auth_token"],
                            phone_number=PHONE_NUMBER,
                            ring_s=RING_S,
                        )
                        crowd = Crowd(twilio, model, seed)
                        twilio.account.people = Everybody(crowd)
                        model_url = await nursery.start(model.run)
                        api_url = await nursery.start(twilio.run)
                        nursery.start_soon(model.talk)
                        nursery.start_soon(crowd.watch_clock)
                        await answer(gemini_url=model_url, twilio_url=api_url)
                    case "begin":
                        assert crowd is not None
                        await crowd.keep_up(command | {"api_key": keys["api_key"]}, nursery)
                        await answer()
                    case "ring":
                        assert crowd is not None
                        for _ in range(command["calls"]):
                            crowd.ring()
                        await answer()
                    case "stop":
                        assert crowd is not None
                        await crowd.stop(command["within_s"])
                        await answer(live=crowd.live)
                    case "hang_up":
                        assert crowd is not None
                        crowd.hang_up()
                        await answer()
                    case "ended":
                        assert crowd is not None
                        ended, crowd.ended = crowd.ended, []
                        late, crowd.late = crowd.late, []
                        await answer(calls=[asdict(one) for one in ended], late=late)
                    case "now":
                        assert crowd is not None
                        await answer(live=crowd.live, refused=crowd.refused, judging=crowd.judging)
        nursery.cancel_scope.cancel()


def main() -> None:
    """Run as a process."""
    parser = argparse.ArgumentParser(description="a telephone company and a model")
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed

    async def on_standard_streams() -> None:
        async with trio.lowlevel.FdStream(answers_only()) as out:
            await serve(seed, out)

    trio.run(on_standard_streams)


if __name__ == "__main__":
    main()
