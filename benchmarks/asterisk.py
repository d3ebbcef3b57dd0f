"""What does somebody on the telephone hear of an agent behind a real Asterisk?

A server of its own, an Asterisk on loopback and telephones of ours on SIP and RTP (those of the
tests). Calls are placed one after the other: from the moment a telephone says that it is answered
to the first frame of the agent's that reaches it; then the caller interrupts, and from the first
loud frame of that to the last of the agent's it is counted again. Then calls that talk both ways at
once, every frame told by its sound: what is missing, we have lost.

It takes root and an Asterisk (``.ci/asterisk DIR``), which ``ASTERISK_ROOT`` names. The telephones
and the model's simulator are in one process, and what that is late by is in the figures.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import trio
from rich import box
from rich.table import Table

import codec
from benchmarks.load.trail import (
    CALLER_CODES,
    CALLER_FRAME_S,
    CALLER_LEVELS,
    SAMPLES,
    Trail,
)
from benchmarks.options import Options, machine, machine_line
from benchmarks.percentiles import percentiles
from benchmarks.processes import running
from server.agent.greeting import read_greeting
from server.simulators.gemini import MODEL_SCRIPTS, GeminiSimulator
from server.simulators.gemini.speech import CHARS_PER_S, babble

KEY = "a-key-of-the-api"
CALLS, QUICK_CALLS = 20, 3
TALK_S, QUICK_TALK_S = 60.0, 5.0
RING_S = 2.0
"""The greeting is ready by then."""
LOUD = 200.0
"""Root mean square of a frame in which somebody speaks."""
BEFORE_CUT = 100
"""Loud frames of the agent's until it is interrupted."""
QUIET_S = 0.3
"""So long without a loud frame, and the agent has fallen silent."""
PATIENCE_S = 60.0
"""How long anything that has to happen may take, beside what is heard or said meanwhile."""
CALL_S = RING_S + 8.0
"""Of a call that is interrupted, about."""
START_S = 15.0
"""Of Asterisk and the server, about."""
BOUNDS_MS = {"first word": 100.0, "silence": 120.0}
SPEECH = Path(__file__).parents[1] / "server" / "speech"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    own = parser.add_argument_group("asterisk")
    own.add_argument("--calls", type=int, help=f"of each kind (default: {CALLS})")
    own.add_argument("--seconds", type=float, help=f"that calls talk (default: {TALK_S:g})")
    own.add_argument("--check", action="store_true", help="fail if a bound is broken")


@dataclass
class Figures:
    """What was measured, in seconds and frames."""

    first_word_s: list[float] = field(default_factory=list)
    silence_s: list[float] = field(default_factory=list)
    calls: int = 0
    sent: int = 0
    """Frames of the callers' and the agents' of calls that talked."""
    lost_to_model: int = 0
    lost_to_caller: int = 0
    lost_by_rtp: int = 0
    """Packets that never reached a telephone, by their numbers."""

    def as_dict(self) -> dict[str, Any]:
        """The figures other tools read."""
        names = ("p50", "p95", "max")
        return {
            "first_word_ms": percentiles(self.first_word_s, names, unit=1000, digits=1),
            "silence_ms": percentiles(self.silence_s, names, unit=1000, digits=1),
            "measured": len(self.first_word_s),
            "talking_calls": self.calls,
            "frames": self.sent,
            "frames_lost_to_model": self.lost_to_model,
            "frames_lost_to_caller": self.lost_to_caller,
            "packets_lost": self.lost_by_rtp,
        }

    def problems(self) -> list[str]:
        """Which bounds are broken."""
        shown = self.as_dict()
        found = [
            f"{what}: p95 {shown[name]['p95']} ms, more than {BOUNDS_MS[what]:g}"
            for what, name in (("first word", "first_word_ms"), ("silence", "silence_ms"))
            if shown[name]["p95"] > BOUNDS_MS[what]
        ]
        lost = self.lost_to_model + self.lost_to_caller - self.lost_by_rtp
        return found + ([f"{lost} frames lost by us"] if lost > 0 else [])


def run(options: Options) -> dict[str, object]:
    """Measure, and print the figures beside their bounds."""
    try:
        from tests.support import asterisk
    except ImportError as error:
        raise SystemExit(f"this takes the tests and what they need: {error}") from None
    if reason := asterisk.why_not():
        raise SystemExit(reason)
    chosen, console = options.arguments, options.console
    console.print(machine_line(machine(("trio", "websockets"))), highlight=False)
    calls = chosen.calls or (QUICK_CALLS if options.quick else CALLS)
    talk_s = chosen.seconds or (QUICK_TALK_S if options.quick else TALK_S)
    figures = Figures()
    takes_s = START_S + (calls + 1) * CALL_S + talk_s
    console.print(f"takes some {takes_s:.0f} s, and gives up after {bound_s(calls, talk_s):.0f} s")
    is_late = False
    try:
        with console.status("starting") as status:
            tell = status.update if console.is_terminal else console.print
            trio.run(_measure, figures, calls, talk_s, tell)
    except* trio.TooSlowError:
        is_late = True
    if is_late:
        done = len(figures.silence_s)
        raise SystemExit(f"something did not happen in time, after {done} calls")
    console.print(_table(figures, talk_s))
    if (problems := figures.problems()) and chosen.check:
        raise SystemExit("\n".join(problems))
    return figures.as_dict()


def bound_s(calls: int, talk_s: float) -> float:
    """When the whole is given up, whatever it waits for: each call has its own bound, too."""
    return 3 * PATIENCE_S + (calls + 1) * (PATIENCE_S + RING_S) / 2 + talk_s


def _table(figures: Figures, talk_s: float) -> Table:
    shown = Table(title=f"Asterisk, {figures.calls} calls at the RTP side", box=box.SIMPLE_HEAD)
    for heading in ("", "p50", "p95", "max", "bound"):
        shown.add_column(heading, justify="right" if heading else "left")
    measured = figures.as_dict()
    for name, key, what in (
        ("first frame of the agent's after the answer, ms", "first_word_ms", "first word"),
        ("silence after the caller's first loud frame, ms", "silence_ms", "silence"),
    ):
        shown.add_row(name, *(str(one) for one in measured[key].values()), f"{BOUNDS_MS[what]:g}")
    shown.add_row(
        f"frames lost of {figures.sent:,} in {talk_s:g} s a call",
        f"{figures.lost_to_model} to the model",
        f"{figures.lost_to_caller} to the caller",
        f"{figures.lost_by_rtp} by RTP",
        "0 by us",
    )
    return shown


async def _measure(
    figures: Figures, calls: int, talk_s: float, tell: Callable[[str], None]
) -> None:
    with trio.fail_after(bound_s(calls, talk_s)):
        await _measure_all(figures, calls, talk_s, tell)


async def _measure_all(
    figures: Figures, calls: int, talk_s: float, tell: Callable[[str], None]
) -> None:
    from tests.support.asterisk import SECRET, USER, asterisk

    words = "w" * round(CHARS_PER_S * (talk_s + 2.0))
    gemini = GeminiSimulator(
        api_key="model-key",
        script=replace(MODEL_SCRIPTS["answers"], greeting=words),
        keep_heard_s=2 * talk_s + PATIENCE_S,
    )
    wanted = codec.MulawEncoder(24_000).encode(babble(words, gemini.greeting).pcm)
    with tempfile.TemporaryDirectory(prefix="offhook-bench-") as name:
        async with asterisk() as pbx, trio.open_nursery() as nursery:
            await nursery.start(gemini.run)
            environment = {
                "HOST": "127.0.0.1",
                "PORT": str(pbx.server_port),
                "CARRIER": "asterisk",
                "ASTERISK_URL": pbx.url,
                "ASTERISK_USER": USER,
                "ASTERISK_SECRET": SECRET,
                "GEMINI_API_KEY": "model-key",
                "GEMINI_URL": gemini.url,
                "API_KEY": KEY,
                "CALLS_PER_S": "100",
                "MAX_LOOP_LAG_S": "60",
            }
            log = Path(name) / "server.log"
            with log.open("wb") as output:
                server = running(
                    "server",
                    environment=environment,
                    directory=Path(name),
                    stdout=output,
                    stderr=output,
                )
                with server as process:
                    await pbx.has_app("offhook-0")
                    base = f"http://127.0.0.1:{pbx.server_port}"
                    async with httpx2.AsyncClient(
                        base_url=base, headers={"X-API-Key": KEY}, trust_env=False, verify=False
                    ) as http:
                        for number in range(calls + 1):
                            tell(f"call {number} of {calls} that is interrupted (0 is for warmth)")
                            await _interrupted(pbx, http, figures if number else Figures())
                        tell(f"{calls} calls that talk for {talk_s:g} s")
                        await _talking(pbx, gemini, figures, wanted, calls, talk_s)
                    assert process.poll() is None, log.read_text()[-2000:]
            nursery.cancel_scope.cancel()


async def _interrupted(pbx: Any, http: httpx2.AsyncClient, figures: Figures) -> None:
    """One call that we place: it is answered, greeted, and the caller interrupts."""
    from tests.support.sip_phone import open_phone

    async with open_phone(pbx.sip, port=pbx.callee_port) as phone, trio.open_nursery() as nursery:
        nursery.start_soon(phone.run)
        with trio.fail_after(PATIENCE_S):
            answer = await http.post("/make-call", json={"destination_number": "+15005550101"})
            answer.raise_for_status()
            await phone.take_call(ring_s=RING_S)
            answered_at = trio.current_time()
            while (
                len(loud := [at for at, one in phone.heard if _loudness(one) > LOUD]) < BEFORE_CUT
            ):
                await phone.news.wait()
            figures.first_word_s.append(phone.heard[0][0] - answered_at)
            said = read_greeting(SPEECH / "caller-interrupt.wav")
            begins = next(
                at for at in range(0, len(said), 160) if _loudness(said[at : at + 160]) > LOUD
            )
            phone.says += said[begins:]
            while not phone.spoke_at:
                await phone.news.wait()
            while trio.current_time() - loud[-1] < QUIET_S or loud[-1] < phone.spoke_at:
                with trio.move_on_after(QUIET_S):
                    await phone.news.wait()
                loud = [at for at, one in phone.heard if _loudness(one) > LOUD]
        figures.silence_s.append(loud[-1] - phone.spoke_at)
        await phone.hang_up()
        nursery.cancel_scope.cancel()


async def _talking(
    pbx: Any,
    gemini: GeminiSimulator,
    figures: Figures,
    wanted: bytes,
    calls: int,
    talk_s: float,
) -> None:
    """So many calls at once, whose callers and agents talk all the time."""
    before = len(gemini.sessions)
    phones: list[tuple[Any, int]] = []
    enough = trio.Event()

    async def call() -> None:
        from tests.support.sip_phone import open_phone

        async with open_phone(pbx.sip) as phone, trio.open_nursery() as nursery:
            nursery.start_soon(phone.run)
            with trio.fail_after(PATIENCE_S):
                await phone.call("+15005550006")
                while not phone.heard:
                    await phone.news.wait()
            frames = round(talk_s / CALLER_FRAME_S)
            phone.says += b"".join(CALLER_CODES[at % len(CALLER_CODES)] for at in range(frames))
            await trio.sleep(talk_s + 1.0)
            phones.append((phone, frames))
            if len(phones) == calls:
                enough.set()
            with trio.fail_after(PATIENCE_S):  # the last has begun so much later, at most
                await enough.wait()
            await phone.hang_up()
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(calls):
            nursery.start_soon(call)
    figures.calls = calls
    for session in list(gemini.sessions)[before:]:
        figures.lost_to_model += _lost_to_model(bytes(session.heard), phones[0][1])
    for phone, frames in phones:
        whole = min(frames, len(wanted) // 160)
        figures.sent += frames + whole
        figures.lost_to_caller += lost_in_order(
            [wanted[at * 160 : at * 160 + 160] for at in range(whole)],
            [frame for _, frame in phone.heard],
        )
        figures.lost_by_rtp += phone.lost


def _lost_to_model(pcm: bytes, frames: int) -> int:
    """How many numbered frames of a caller's never reached the model."""
    trail = Trail(CALLER_FRAME_S, len(CALLER_LEVELS), 0, array("d"))
    for _ in range(frames):
        trail.send(0.0)
    samples = memoryview(pcm).cast("h")
    for middle in range(SAMPLES // 2, len(samples), SAMPLES):
        trail.arrive(CALLER_LEVELS.of_sample[samples[middle] & 0xFFFF], SAMPLES, 0.0)
    return (trail.lost + trail.missing(frames)) // SAMPLES


def lost_in_order(wanted: Sequence[bytes], heard: Sequence[bytes], reach: int = 50) -> int:
    """How many of the wanted frames are not among those that were heard, in their order."""
    lost, at = 0, next((at for at, one in enumerate(heard) if one == wanted[0]), 0)
    for frame in wanted:
        found = next((n for n in range(at, min(at + reach, len(heard))) if heard[n] == frame), None)
        if found is None:
            lost += 1
        else:
            at = found + 1
    return lost


@functools.cache
def _loudness(frame: bytes) -> float:
    """A frame's root mean square: what was heard is looked through at each frame that comes."""
    samples = memoryview(codec.decode_mulaw(frame)).cast("h")
    return float((sum(one * one for one in samples) / max(1, len(samples))) ** 0.5)
