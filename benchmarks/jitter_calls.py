"""Calls over real sockets, through relays that delay, jitter and stall: what their callers hear.

    telephones and carrier  <-->  relay  <-->  server  <-->  relay  <-->  model

All of it is in one process, whose clock stops while the program cannot keep up: what is late is
late for the network's sake, however busy the machine is. The model says turns of a tone that never
pauses, so that every silence within one is a gap.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from benchmarks.chaos.relay import Relay
from benchmarks.percentiles import percentiles
from codec.line import BYTES_PER_S, FRAME_S
from server import logs
from server.app import create_app
from server.model import AGENT_RATE_HZ
from server.serving.listening import listen
from server.serving.single import serve
from server.settings.settings import Settings
from server.simulators.clock import PatientClock
from server.simulators.gemini import GeminiSimulator, ModelScript, SimulatedSession, Speech
from server.simulators.phone import SimulatedPhone
from server.simulators.twilio import TwilioSimulator

ACCOUNT_SID, TOKEN, PHONE_NUMBER = "AC" + "0" * 32, "simulated" * 4, "+15005550006"
CLOCK_SPEED = 8.0
"""As fast as the machine can, in fact: the clock waits for the program."""
TURN_S = (2.0, 5.0)
BETWEEN_S = 2.5
APART_BYTES = BYTES_PER_S
"""A silence as long as this is between two turns."""
HEARD_BYTES = BYTES_PER_S // 100
SET_UP_TIMEOUT_S = 30.0
NETWORKS: dict[str, dict[str, float]] = {
    "clean": {},
    "80 ms +- 20, 1 % lost": {"delay_s": 0.06, "jitter_s": 0.04, "loss": 0.01},
}


@dataclass(frozen=True, slots=True)
class TurnHeard:
    """A turn as a caller has heard it."""

    after_s: float
    """From the model's saying it to its first sound."""
    gaps_s: list[float]


def tone(seconds: float) -> Speech:
    """Something without a pause in it."""
    wave = (
        round(9_000 * math.sin(2 * math.pi * 333 * n / AGENT_RATE_HZ)) for n in range(AGENT_RATE_HZ)
    )
    second = array("h", wave).tobytes()
    return Speech("a tone", (second * math.ceil(seconds))[: 2 * round(seconds * AGENT_RATE_HZ)])


def turns_in(heard: bytes) -> list[tuple[int, list[int]]]:
    """Where each turn begins in what a telephone has played, and the gaps in it, in bytes."""
    turns: list[tuple[int, list[int]]] = []
    end = -APART_BYTES
    for sound in re.finditer(b"(?s)[^\xff](?:.{0,%d}[^\xff])*" % HEARD_BYTES, heard):
        if sound.start() - end >= APART_BYTES:
            turns.append((sound.start(), []))
        else:
            turns[-1][1].append(sound.start() - end)
        end = sound.end()
    return turns


class Talk:
    """One call: the model's turns, and what its caller has heard of them."""

    def __init__(self, phone: SimulatedPhone, session: SimulatedSession, speed: float) -> None:
        self.phone = phone
        self._session = session
        self._speed = speed
        self._said_at: list[float] = []

    async def say(
        self, sessions: Sequence[SimulatedSession], turns: int, dice: random.Random
    ) -> None:
        """Say so many turns, each when the one before must have been heard."""
        for _ in range(turns):
            while not self._session.is_open:
                later = [one for one in sessions if one.resumed_from is self._session]
                self._session = later[0] if later else self._session
                await trio.sleep(0.1)
            speech = tone(dice.uniform(*TURN_S))
            self._said_at.append(trio.current_time())
            self._session.agent.say(speech)
            await trio.sleep(speech.seconds / min(1.0, self._speed) + BETWEEN_S)

    def heard(self) -> list[TurnHeard]:
        """What was heard of these turns; the greeting is none of them."""
        began_at = self.phone.started_at
        assert began_at is not None
        heard = []
        for byte, gaps in turns_in(self.phone.heard):
            at = began_at + byte / BYTES_PER_S + FRAME_S  # the end of what is played at once
            if (said_at := max((one for one in self._said_at if one <= at), default=None)) is None:
                continue  # the greeting
            heard.append(TurnHeard(at - said_at, [gap / BYTES_PER_S for gap in gaps]))
        return heard


async def have_calls(
    network: dict[str, float], *, calls: int, turns: int, speed: float, seed: int
) -> list[TurnHeard]:
    """Have so many calls at once.

    Args:
        network: The weather between carrier and server and between server and model, both ways.
        calls: How many.
        turns: Of the agent's, in each.
        speed: How fast the model sends.
        seed: Decides what is said and what is lost.
    """
    script = ModelScript(speed=speed, reply_delay_s=0.0)
    gemini = GeminiSimulator(script=script, script_after_resume=script, keep_heard_s=0.0)
    gemini.greeting = tone(1.0)
    twilio = TwilioSimulator(account_sid=ACCOUNT_SID, auth_token=TOKEN, phone_number=PHONE_NUMBER)
    listener, stop = listen("127.0.0.1", 0), trio.Event()
    async with trio.open_nursery() as nursery:
        relay = Relay(nursery, seed)
        gemini_url = await nursery.start(gemini.run)
        model_port = await relay.listen("model", gemini_url.removeprefix("ws://"))
        carrier_port = await relay.listen("carrier", f"127.0.0.1:{listener.getsockname()[1]}")
        public_url = f"http://127.0.0.1:{carrier_port}"
        app = create_app(
            Settings.load(
                _env_file=None,
                public_url=public_url,
                twilio_account_sid=ACCOUNT_SID,
                twilio_auth_token=TOKEN,
                twilio_phone_number=PHONE_NUMBER,
                twilio_api_url=await nursery.start(twilio.run),
                gemini_api_key="simulated",
                gemini_url=f"ws://127.0.0.1:{model_port}",
                api_key=TOKEN,
                database_url="sqlite://",
                drain_timeout_s=0.0,
                silence_timeout_s=0.0,
                max_calls=calls + 1,
                max_loop_lag_s=60.0,
            )
        )
        await nursery.start(partial(serve, app, listener, stop=stop))
        talks = []
        for _ in range(calls):
            with trio.fail_after(SET_UP_TIMEOUT_S):
                talks.append(await _ring(twilio, gemini, public_url, speed))
        await relay.obey({"do": "set", "way": "both", **network})
        await trio.sleep(2 * BETWEEN_S)
        async with trio.open_nursery() as all_calls:
            for number, talk in enumerate(talks):
                dice = random.Random(f"{seed}/{number}")
                all_calls.start_soon(talk.say, gemini.sessions, turns, dice)
                await trio.sleep(BETWEEN_S / calls)
        for talk in talks:
            talk.phone.stop()
        for call in twilio.calls.values():
            await call.wait_ended()
        stop.set()
        nursery.cancel_scope.cancel()
    return list(itertools.chain.from_iterable(talk.heard() for talk in talks))


def run_calls(
    network: dict[str, float], *, calls: int, turns: int, speed: float, seed: int = 1
) -> dict[str, Any]:
    """What callers hear over a network of :data:`NETWORKS`."""
    logs.configure(level="CRITICAL")
    clock = PatientClock(speed=CLOCK_SPEED)
    heard = trio.run(
        partial(have_calls, network, calls=calls, turns=turns, speed=speed, seed=seed),
        clock=clock,
    )
    return summary(heard)


async def _ring(
    twilio: TwilioSimulator, gemini: GeminiSimulator, public_url: str, speed: float
) -> Talk:
    before = len(gemini.sessions)
    call = twilio.dial_in(
        f"{public_url}/twiml",
        from_number="+15005550166",
        script="silent",
        status_url=f"{public_url}/call-status",
    )
    phone = await call.wait_stream()
    # The simulator tells nobody of new sessions.
    while len(gemini.sessions) == before:  # noqa: ASYNC110
        await trio.sleep(0.02)
    return Talk(phone, gemini.sessions[-1], speed)


def summary(turns: list[TurnHeard]) -> dict[str, Any]:
    """What all the turns came to."""
    gaps = [gap for turn in turns for gap in turn.gaps_s]
    after = percentiles((turn.after_s for turn in turns), ("p50", "p95"), unit=1_000)
    return {
        "turns": len(turns),
        "gapless_share": sum(not turn.gaps_s for turn in turns) / len(turns),
        "gaps_per_turn": len(gaps) / len(turns),
        "gap_ms_per_turn": 1_000 * sum(gaps) / len(turns),
        "longest_ms": 1_000 * max(gaps, default=0.0),
        "first_p50_ms": after["p50"],
        "first_p95_ms": after["p95"],
    }
