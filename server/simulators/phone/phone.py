"""The phone itself: Twilio's end of one media stream, and the person who holds it."""

from __future__ import annotations

import base64
import json
import math
import secrets
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec
import trio
from msgspec import Struct

from codec.line import BYTES_PER_S, FRAME_S
from server.errors import StreamEnded
from server.simulators.phone.acting import (
    Acting,
    Beeped,
    Deed,
    KeyPressed,
    RawMessage,
    SpeechBegan,
    SpeechEnded,
    act,
)
from server.simulators.phone.earpiece import Earpiece
from server.simulators.phone.sound import SILENCE, is_loud, mix
from server.simulators.phone.steps import Drop, FallSilent, Forever, HangUp, PhoneScript, Wait
from server.simulators.phone.transport import PhoneTransport


class StreamEnd(StrEnum):
    """Why a stream is over."""

    HUNG_UP = "the callee hung up"
    DROPPED = "the line dropped"
    STOPPED = "stopped by the carrier"
    CLOSED = "closed by the server"


@dataclass(slots=True)
class Utterance:
    """One sentence the callee said; times in seconds from the stream's start."""

    clip: str
    began_s: float
    ended_s: float


@dataclass(slots=True)
class MarkSeen:
    """One mark from the server, and when and why it went back."""

    name: str
    echoed_s: float | None = None
    cleared: bool = False
    """It went back because of a clear: its audio was not played."""


@dataclass(frozen=True, slots=True)
class ClearSeen:
    """One clear from the server."""

    at_s: float
    dropped_bytes: int
    received_before: int
    """How many media messages had come before it."""


@dataclass(slots=True)
class StreamWarnings:
    """What Twilio would have complained about, by its warning's number."""

    binary_31950: int = 0
    invalid_31951: int = 0


class _MediaFromServer(Struct, forbid_unknown_fields=True):
    payload: bytes


class _MarkFromServer(Struct, forbid_unknown_fields=True):
    name: str


class _Media(Struct, tag_field="event", tag="media", rename="camel", forbid_unknown_fields=True):
    stream_sid: str
    media: _MediaFromServer


class _Mark(Struct, tag_field="event", tag="mark", rename="camel", forbid_unknown_fields=True):
    stream_sid: str
    mark: _MarkFromServer


class _Clear(Struct, tag_field="event", tag="clear", rename="camel", forbid_unknown_fields=True):
    stream_sid: str


_decode_message = msgspec.json.Decoder(_Media | _Mark | _Clear).decode


def new_sid(prefix: str) -> str:
    """A name in Twilio's form: two letters and 32 hexadecimal digits."""
    return prefix + secrets.token_hex(16)


# Speech with shorter gaps than this, half a second, is one stretch of speech in the list of events.
_SPEECH_GAP_FRAMES = 25


@dataclass(slots=True)
class SimulatedPhone:
    """Twilio's end of one media stream: the script talks, the earpiece listens.

    Everything it saw stays readable after the stream; all times are seconds since ``start``.
    """

    script: PhoneScript
    call_sid: str = field(default_factory=lambda: new_sid("CA"))
    account_sid: str = "AC" + "0" * 32
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Custom parameters of the TwiML, such as ``ticket``."""
    stream_sid: str = field(default_factory=lambda: new_sid("MZ"))

    started_at: float | None = None
    """``trio.current_time()`` when ``start`` was sent."""
    end: StreamEnd | None = None
    said: bytearray = field(default_factory=bytearray, repr=False)
    """Mu-law the callee sent, from the stream's start."""
    earpiece: Earpiece = field(default_factory=Earpiece)
    events: list[tuple[float, str]] = field(default_factory=list)
    """What happened, for people to read: who began and ended to speak, clears, keys, the end."""
    utterances: list[Utterance] = field(default_factory=list)
    received: list[tuple[float, int]] = field(default_factory=list, repr=False)
    """Every media message from the server: when it came and its bytes."""
    marks: list[MarkSeen] = field(default_factory=list)
    clears: list[ClearSeen] = field(default_factory=list)
    warnings: StreamWarnings = field(default_factory=StreamWarnings)
    first_sound_s: float | None = None
    """When the agent could first be heard."""
    sounded: trio.Event = field(default_factory=trio.Event)
    """Set then."""
    beeped_s: float | None = None
    """When the first beep was over."""
    beeped: trio.Event = field(default_factory=trio.Event)

    _acting: Acting | None = field(default=None, repr=False)
    _deed: Deed | None = field(default=None, repr=False)
    """What is done next."""
    _transport: PhoneTransport = field(init=False, repr=False)
    _room: deque[bytes] = field(default_factory=deque, repr=False)
    """What a speakerphone has played and not heard again yet."""
    _is_speaking: bool = False
    _sequence_number: int = 0
    _stop_wanted: bool = False
    _waiting_marks: dict[str, list[MarkSeen]] = field(default_factory=dict)
    _quiet_frames: int = _SPEECH_GAP_FRAMES

    @property
    def heard(self) -> bytes:
        """Mu-law the callee heard, from the stream's start, as long as ``said`` to the frame."""
        return bytes(self.earpiece.heard)

    @property
    def bytes_after_clear(self) -> int:
        """Audio that came after a clear while the callee was still talking: a cut turn's leftovers.

        The agent's next turn cannot have begun before its interrupter has finished.
        """
        total = 0
        for clear in self.clears:
            for utterance in self.utterances:
                if utterance.began_s <= clear.at_s <= utterance.ended_s:
                    total += sum(
                        length
                        for at_s, length in self.received[clear.received_before :]
                        if at_s < utterance.ended_s
                    )
        return total

    def on_another_stream(self, parameters: Mapping[str, str]) -> SimulatedPhone:
        """The same person on the call's next stream, who goes on where they were.

        Args:
            parameters: Custom parameters of that stream's TwiML.
        """
        phone = SimulatedPhone(
            self.script,
            call_sid=self.call_sid,
            account_sid=self.account_sid,
            parameters=parameters,
            beeped_s=self.beeped_s,
            beeped=self.beeped,
            _acting=self._acting,
            _deed=self._deed,
        )
        if self._is_speaking:
            phone.utterances.append(Utterance(self.utterances[-1].clip, 0.0, math.inf))
            phone._is_speaking = True
        return phone

    async def cut(self) -> None:
        """Break the stream off: the connection goes without a word, and the person stays."""
        self._note("the stream is cut")
        await self._transport.abort()

    def stop(self) -> None:
        """End the stream from the carrier's side: ``stop`` is sent and the socket closed."""
        self._stop_wanted = True

    async def run(self, transport: PhoneTransport) -> StreamEnd:
        """Open the stream, talk and listen in real time until one side ends it.

        The transport is closed on the way out, and on cancellation too.
        """
        self._transport = transport
        try:
            self.end = await self._live()
        except StreamEnded:
            self.end = StreamEnd.CLOSED
        finally:
            with trio.move_on_after(1.0, shield=True):
                await transport.aclose()
        if self.utterances and self.utterances[-1].ended_s == math.inf:
            self.utterances[-1].ended_s = self._now_s()
        self._note(self.end.value)
        return self.end

    async def _live(self) -> StreamEnd:
        await self._send('{"event":"connected","protocol":"Call","version":"1.0.0"}')
        began = self.started_at = trio.current_time()
        await self._send_start()
        if self._acting is None or self._deed is None:
            self._acting = act((*self.script.steps, Forever((Wait(1.0),))))
            self._deed = next(self._acting)
        frame_number = 0
        while True:
            frame_number += 1
            await self._listen_until(began + frame_number * FRAME_S)
            if self._stop_wanted:
                await self._send_stop()
                return StreamEnd.STOPPED
            while not isinstance(self._deed, bytes):
                end = await self._do(self._deed)
                if end is not None:
                    return end
                self._deed = next(self._acting)
            heard = await self._exchange_frames(self._deed, frame_number)
            self._deed = self._acting.send(heard)

    async def _listen_until(self, deadline: float) -> None:
        """Obey what comes until the next frame is due, and all that has come if it is overdue."""
        while True:
            text = None
            with trio.move_on_at(deadline):
                text = await self._transport.receive()
            if text is None:
                break
            await self._obey(text)
        while (text := self._transport.receive_nowait()) is not None:
            await self._obey(text)

    async def _exchange_frames(self, spoken: bytes, frame_number: int) -> bytes:
        """Send 20 ms of the callee and play 20 ms to them."""
        spoken = self._with_echo(spoken)
        payload = base64.b64encode(spoken).decode("ascii")
        await self._send(
            f'{{"event":"media","sequenceNumber":"{self._next_number()}",'
            f'"streamSid":"{self.stream_sid}","media":{{"track":"inbound","chunk":"{frame_number}",'
            f'"timestamp":"{20 * (frame_number - 1)}","payload":"{payload}"}}}}'
        )
        self.said += spoken
        heard, marks = self.earpiece.play()
        self._note_speech(is_loud(heard))
        self._room.append(heard)
        await self._echo(marks, cleared=False)
        return heard

    def _with_echo(self, spoken: bytes) -> bytes:
        """Twenty milliseconds of the callee and of what their telephone played a moment ago."""
        speakerphone = self.script.speakerphone
        if speakerphone is None:
            self._room.clear()
            return spoken
        if len(self._room) < round(speakerphone.delay_s / FRAME_S):
            return spoken
        played = self._room.popleft()
        if played == SILENCE:
            return spoken
        return mix(spoken, played, speakerphone.gain)

    async def _do(self, deed: Deed) -> StreamEnd | None:
        """What takes no time; returns why the stream is over if it is."""
        now_s = self._now_s()
        match deed:
            case SpeechBegan(clip):
                self.utterances.append(Utterance(clip, now_s, math.inf))
                self._is_speaking = True
                self._note(f"the callee says: {clip}")
            case SpeechEnded():
                self.utterances[-1].ended_s = now_s
                self._is_speaking = False
                self._note("the callee is silent")
            case Beeped():
                self._note("the callee beeps")
                if self.beeped_s is None:
                    self.beeped_s = now_s
                    self.beeped.set()
            case KeyPressed(digit):
                self._note(f"the callee presses {digit}")
                await self._send_event("dtmf", {"track": "inbound_track", "digit": digit})
            case RawMessage(message):
                if isinstance(message, str):
                    message = message.replace("{sid}", self.stream_sid)
                await self._transport.send(message)
            case HangUp():
                await self._send_stop()
                return StreamEnd.HUNG_UP
            case Drop():
                await self._transport.abort()
                return StreamEnd.DROPPED
            case FallSilent():
                self._note("the line is dead")
                with suppress(StreamEnded):
                    await self._listen_until(math.inf)  # until the server gives up, or for ever
                return StreamEnd.DROPPED
        return None

    async def _obey(self, text: str | bytes) -> None:
        """One message of the server's; what Twilio would ignore is ignored and counted."""
        if isinstance(text, bytes):
            self.warnings.binary_31950 += 1
            return
        try:
            message = _decode_message(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            self.warnings.invalid_31951 += 1
            return
        if message.stream_sid != self.stream_sid:
            self.warnings.invalid_31951 += 1
            return
        now_s = self._now_s()
        match message:
            case _Media(media=media):
                self.received.append((now_s, len(media.payload)))
                self.earpiece.push(media.payload)
            case _Mark(mark=mark):
                seen = MarkSeen(mark.name)
                self.marks.append(seen)
                self._waiting_marks.setdefault(mark.name, []).append(seen)
                await self._echo(self.earpiece.mark(mark.name), cleared=False)
            case _Clear():
                dropped, names = self.earpiece.clear()
                self.clears.append(ClearSeen(now_s, dropped, len(self.received)))
                self._note(f"the server clears {dropped / BYTES_PER_S:.2f} s")
                await self._echo(names, cleared=True)

    async def _echo(self, names: list[str], *, cleared: bool) -> None:
        for name in names:
            waiting = self._waiting_marks[name]
            seen = waiting.pop(0)
            if not waiting:
                del self._waiting_marks[name]
            seen.echoed_s, seen.cleared = self._now_s(), cleared
            await self._send_event("mark", {"name": name})

    async def _send_start(self) -> None:
        await self._send_event(
            "start",
            {
                "accountSid": self.account_sid,
                "streamSid": self.stream_sid,
                "callSid": self.call_sid,
                "tracks": ["inbound"],
                "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
                "customParameters": dict(self.parameters),
            },
        )

    async def _send_stop(self) -> None:
        await self._send_event("stop", {"accountSid": self.account_sid, "callSid": self.call_sid})

    async def _send_event(self, kind: str, facts: dict[str, Any]) -> None:
        message = {
            "event": kind,
            "sequenceNumber": str(self._next_number()),
            "streamSid": self.stream_sid,
            kind: facts,
        }
        await self._send(json.dumps(message, separators=(",", ":")))

    async def _send(self, text: str) -> None:
        await self._transport.send(text)

    def _next_number(self) -> int:
        self._sequence_number += 1
        return self._sequence_number

    def _now_s(self) -> float:
        return trio.current_time() - self.started_at if self.started_at is not None else 0.0

    def _note(self, what: str) -> None:
        self.events.append((self._now_s(), what))

    def _note_speech(self, loud: bool) -> None:
        """List where the agent's speech begins and ends, not every breath of it."""
        if loud:
            if self.first_sound_s is None:
                self.first_sound_s = self._now_s()
                self.sounded.set()
            if self._quiet_frames >= _SPEECH_GAP_FRAMES:
                self._note("the agent is heard")
            self._quiet_frames = 0
        else:
            self._quiet_frames += 1
            if self._quiet_frames == _SPEECH_GAP_FRAMES:
                self._note("the agent is silent")
