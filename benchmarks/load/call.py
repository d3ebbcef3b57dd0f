"""One call with both its ends: what the phone says and hears, and what the model says and hears."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from array import array
from binascii import b2a_base64
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.load.sockets import Backend, Socket
from benchmarks.load.trail import (
    AGENT_CHUNK_S,
    AGENT_LEVELS,
    AGENT_PAYLOADS,
    CALLER_FRAME_S,
    CALLER_LEVELS,
    CALLER_PAYLOADS,
    Trail,
    stretches_of_mulaw,
    stretches_of_pcm,
)
from benchmarks.load.wheel import CHUNK_TICKS, FRAME_TICKS, Wheel, clock
from codec.line import FRAME_BYTES

MULAW_BYTES_PER_S = 8_000
TURN_COMPLETE_DELAY_S = 0.05
GREETING_DELAY_S = (0.3, 1.8)
"""When the agent first speaks: before a server would ask it to once more."""
GOLDEN = 0.618034
"""Steps of this fraction of a circle spread any number of calls evenly over it."""


@dataclass(frozen=True, slots=True)
class Talk:
    """How the agent talks in every call."""

    turn_s: float = 2.0
    cycle_s: float = 4.0
    """From the beginning of a turn to the next; the agent's share of the time is their ratio."""
    cut_every: int = 2
    """Every so-many-th turn is interrupted; 0 for none."""
    cut_delays_s: tuple[float, ...] = (0.0, 0.005, 0.2, 0.8)
    """How long after a turn's last chunk it is interrupted, in turn: with that chunk, just behind
    it, while it plays. At four times real time all of a turn has been sent by then."""

    @property
    def chunks(self) -> int:
        return round(self.turn_s / AGENT_CHUNK_S)


@dataclass(slots=True)
class Heard:
    """What all calls note together, in seconds; emptied when the window opens."""

    caller: array[float] = field(default_factory=lambda: array("d"))
    agent: array[float] = field(default_factory=lambda: array("d"))
    openings: array[float] = field(default_factory=lambda: array("d"))
    """Of the agent's chunks, each turn's first."""
    clears: array[float] = field(default_factory=lambda: array("d"))
    answers: array[float] = field(default_factory=lambda: array("d"))

    def forget(self) -> None:
        for latencies in (self.caller, self.agent, self.openings, self.clears, self.answers):
            del latencies[:]


class Words:
    """Every message that is the same for all calls, made once."""

    def __init__(self, backend: Backend) -> None:
        head = (
            b'{"serverContent":{"modelTurn":{"parts":[{"inlineData":'
            b'{"mimeType":"audio/pcm;rate=24000","data":"'
        )
        self.chunks = [backend.prepare(head + data + b'"}}]}}}') for data in AGENT_PAYLOADS]
        self.interrupted = backend.prepare(b'{"serverContent":{"interrupted":true}}')
        self.generation_complete = backend.prepare(b'{"serverContent":{"generationComplete":true}}')
        self.turn_complete = backend.prepare(b'{"serverContent":{"turnComplete":true}}')
        self.setup_complete = backend.prepare(b'{"setupComplete":{}}')


_FRAME = (
    b'{"event":"media","sequenceNumber":"%d","streamSid":"%b",'
    b'"media":{"track":"inbound","chunk":"%d","timestamp":"%d","payload":"%b"}}'
)


class LoadCall:
    """A phone that says numbered frames, and a model that says numbered chunks.

    Args:
        number: Which call this is; it decides its phases and its levels.
        account_sid: Twilio's.
        wheel: Keeps time.
        words: Messages to send.
        heard: Where latencies go.
        talk: How the agent talks.
        room: Mu-law that the caller's line has in place of numbered frames.
    """

    def __init__(
        self,
        number: int,
        *,
        account_sid: str,
        wheel: Wheel,
        words: Words,
        heard: Heard,
        talk: Talk,
        room: bytes = b"",
    ) -> None:
        self.number = number
        chance = random.Random(number)
        self.call_sid = f"CA{chance.getrandbits(128):032x}"
        self.stream_sid = f"MZ{chance.getrandbits(128):032x}"
        self.caller = Trail(CALLER_FRAME_S, len(CALLER_LEVELS), number * 7, heard.caller)
        self.agent = Trail(AGENT_CHUNK_S, len(AGENT_LEVELS), number * 11, heard.agent)
        self.session_ready = asyncio.Event()
        self.session_closed = asyncio.Event()
        self.answered = asyncio.Event()
        """The first agent audio has come."""
        self.ended = False
        """We have ended the call: from now on its sockets may close."""
        self.lost = ""
        """Why the call ended without us; empty if it did not."""
        self.missed_clears = 0
        self.unasked_clears = 0

        self._room = [
            b2a_base64(room[at : at + FRAME_BYTES], newline=False)
            for at in range(0, len(room) // FRAME_BYTES * FRAME_BYTES, FRAME_BYTES)
        ]
        self._account_sid = account_sid
        self._wheel = wheel
        self._words = words
        self._heard = heard
        self._talk = talk
        self._chance = chance
        self._phone: Socket | None = None
        self._model: Socket | None = None
        self._send_frame: Callable[[bytes], None]
        self._sid = self.stream_sid.encode()
        self._speaking = False
        self._taking_turns = False
        self._sequence = 1
        self._frames = 0
        self._frame_phase = chance.randrange(FRAME_TICKS)
        self._chunk_phase = chance.randrange(CHUNK_TICKS)
        self._started_at = 0.0
        self._play_end = 0.0  # when the phone has played everything it has got
        self._marks: deque[bytes] = deque()
        self._turns = 0
        self._opening = -1  # the turn's first piece, until it has arrived
        self._chunks_left = 0
        self._turn_began_at = 0.0
        self._next_turn_at = 0.0
        self._cut_delays = itertools.cycle(talk.cut_delays_s)
        self._cuts: deque[tuple[int, float]] = deque()  # first piece not cut, and when

    # -- the phone -------------------------------------------------------------------------

    def opened(self, socket: Socket) -> None:
        """The media stream's socket is open."""
        self._phone = socket
        self._send_frame = socket.send

    def start(self, parameters: dict[str, str]) -> None:
        """Say ``connected`` and ``start``."""
        self._say({"event": "connected", "protocol": "Call", "version": "1.0.0"})
        start = {
            "accountSid": self._account_sid,
            "streamSid": self.stream_sid,
            "callSid": self.call_sid,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": parameters,
        }
        self._started_at = clock()
        self._say(
            {
                "event": "start",
                "sequenceNumber": "1",
                "streamSid": self.stream_sid,
                "start": start,
            }
        )

    def speak(self) -> None:
        """From now on the phone says a frame every 20 ms."""
        self._speaking = True
        self._wheel.every(FRAME_TICKS, self._frame_phase, self._say_frame)

    def take_turns(self) -> None:
        """From now on the agent takes its turns."""
        self._taking_turns = True
        self._wheel.every(CHUNK_TICKS, self._chunk_phase, self._say_chunk)
        self._wheel.at(clock() + self._chance.uniform(*GREETING_DELAY_S), self._begin_turn)

    def hang_up(self) -> None:
        """Say ``stop`` and close the socket, as Twilio does when the caller hangs up."""
        if self.ended:
            return
        self.ended = True
        if self._speaking:
            self._wheel.no_more(FRAME_TICKS, self._frame_phase, self._say_frame)
        if self._taking_turns:
            self._wheel.no_more(CHUNK_TICKS, self._chunk_phase, self._say_chunk)
        if self._phone is not None and not self.lost:
            self._say_stop()
            self._phone.close()

    def received(self, message: bytes) -> None:
        """The server says something to the phone."""
        now = clock()
        at = message.find(b'"payload":')
        if at < 0:
            self._obey(json.loads(message), now)
            return
        stretches = stretches_of_mulaw(message, message.index(b'"', at + 10) + 1)
        samples = 0
        for level, length in stretches:
            self.agent.arrive(level, length, now)
            samples += length
        self.note_opening(now)
        self._play_end = max(now, self._play_end) + samples / MULAW_BYTES_PER_S
        if not self.answered.is_set():
            self.answered.set()
            self._heard.answers.append(now - self._started_at)

    def note_opening(self, now: float) -> None:
        """Agent audio has arrived: perhaps the first of its turn."""
        if 0 <= self._opening < self.agent.arrived:
            self._heard.openings.append(now - self.agent.sent_at(self._opening))
            self._opening = -1

    def closed(self) -> None:
        """The media stream's socket is closed."""
        if not self.ended and not self.lost:
            self.lost = "the server closed the media stream"

    def _say_stop(self) -> None:
        stop = {"accountSid": self._account_sid, "callSid": self.call_sid}
        self._sequence += 1
        self._say(
            {
                "event": "stop",
                "sequenceNumber": str(self._sequence),
                "streamSid": self.stream_sid,
                "stop": stop,
            }
        )

    def _say(self, message: dict[str, Any]) -> None:
        assert self._phone is not None
        self._phone.send(json.dumps(message, separators=(",", ":")).encode())

    def _say_frame(self) -> None:
        frames = self._frames = self._frames + 1
        sequence = self._sequence = self._sequence + 1
        room = self._room
        payload = room[frames % len(room)] if room else CALLER_PAYLOADS[self.caller.send(clock())]
        self._send_frame(_FRAME % (sequence, self._sid, frames, 20 * (frames - 1), payload))

    def _obey(self, message: dict[str, Any], now: float) -> None:
        match message["event"]:
            case "clear":
                self._clear(now)
                while self._marks:
                    self._echo(self._marks.popleft())
            case "mark":
                name = json.dumps(message["mark"]["name"]).encode()
                self._marks.append(name)
                self._wheel.at(max(now, self._play_end), self._reach_mark(name))

    def _clear(self, now: float) -> None:
        self._opening = -1
        if self._cuts:
            piece, cut_at = self._cuts.popleft()
            self._heard.clears.append(now - cut_at)
            self.agent.cut(piece)
        else:
            self.unasked_clears += 1
        self._play_end = now

    def _reach_mark(self, name: bytes) -> Callable[[], None]:
        def reach() -> None:
            if name in self._marks and not self.ended:
                self._marks.remove(name)
                self._echo(name)

        return reach

    def _echo(self, name: bytes) -> None:
        self._sequence += 1
        self._send_frame(
            b'{"event":"mark","sequenceNumber":"%d","streamSid":"%b","mark":{"name":%b}}'
            % (self._sequence, self._sid, name)
        )

    # -- the model -------------------------------------------------------------------------

    def session_opened(self, socket: Socket) -> None:
        """The server has set a session up for this call."""
        self._model = socket
        self.session_ready.set()

    def model_hears(self, message: bytes) -> None:
        """The server says something to the model."""
        now = clock()
        at = message.find(b'"data":')
        if at < 0 or self._room:
            return  # text: the greeting asked for, which comes without it; or nothing of ours
        for level, samples in stretches_of_pcm(message, message.index(b'"', at + 7) + 1):
            self.caller.arrive(level, samples, now)

    def session_lost(self) -> None:
        """The model's socket is closed."""
        self.session_closed.set()
        self._model = None
        if not self.ended and not self.lost:
            self.lost = "the server closed the model session"

    def _begin_turn(self) -> None:
        """The agent begins to speak, and knows when it will again."""
        if self.ended:
            return
        if self._cuts:
            self.missed_clears += len(self._cuts)
            self._cuts.clear()
        self._turns += 1
        self._opening = self.agent.sent
        now = self._turn_began_at = clock()
        self._chunks_left = self._talk.chunks
        cycle_s = self._talk.cycle_s
        if self._turns == 1:
            # After the greeting each call has its own place in the cycle.
            earliest = now + self._talk.turn_s
            self._next_turn_at = earliest + (self.number * GOLDEN * cycle_s - earliest) % cycle_s
        else:
            self._next_turn_at += cycle_s
        self._wheel.at(self._next_turn_at, self._begin_turn)

    def say_all(self) -> None:
        """Say a whole turn at once: a greeting that is ready before the phone is answered."""
        self._chunks_left = self._talk.chunks
        while self._chunks_left:
            self._say_chunk()

    def _say_chunk(self) -> None:
        if not self._chunks_left or self._model is None:
            return
        self._chunks_left -= 1
        level = self.agent.send(clock())
        self._model.send_prepared(self._words.chunks[level])
        if not self._chunks_left:
            self._end_turn()

    def _end_turn(self) -> None:
        assert self._model is not None
        cut_every = self._talk.cut_every
        # At any time as many calls are in a turn that will be cut as in one that will not.
        if cut_every and self._turns and (self._turns + self.number) % cut_every == 0:
            self._wheel.at(clock() + next(self._cut_delays), self._interrupt)
        else:
            self._model.send_prepared(self._words.generation_complete)
            self._wheel.at(self._turn_began_at + self._talk.turn_s, self._complete_turn)

    def _interrupt(self) -> None:
        if self._model is not None and not self.ended:
            now = clock()
            self._cuts.append((self.agent.sent, now))
            self._model.send_prepared(self._words.interrupted)
            self._wheel.at(now + TURN_COMPLETE_DELAY_S, self._complete_turn)

    def _complete_turn(self) -> None:
        if self._model is not None and not self.ended:
            self._model.send_prepared(self._words.turn_complete)
