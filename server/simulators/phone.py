"""A simulated telephone: Twilio's end of one media stream, and the scripted person who holds it.

It speaks through a :class:`server.carrier.transport.TextSocket`: over a socket when
``simulator.py`` connects it, over memory in a test on the mock clock. The person is a generator
of 20 ms frames, so that a script reads like a script and costs nothing while it runs.
"""

from __future__ import annotations

import base64
import json
import math
import secrets
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib import resources
from typing import Any, Protocol

import msgspec
import trio
from msgspec import Struct

import codec
from server.carrier import CallStatus
from server.carrier.transport import TextSocket
from server.errors import StreamEnded
from server.media.wav import data_of

FRAME_BYTES = 160
FRAME_S = 0.02
BYTES_PER_S = 8000
SILENCE = b"\xff" * FRAME_BYTES  # Mu-law's positive zero.

BUFFER_BYTES = 600 * BYTES_PER_S
"""What Twilio holds for playing before it throws audio away: ten minutes (warning 31931)."""

# ------------------------------------------------------------------------------------------
# Mu-law, only as much of it as a telephone needs


def _expand(code: int) -> int:
    """One mu-law code as a 16-bit sample (ITU-T G.711, table 2a)."""
    code = ~code & 0xFF
    magnitude = (((code & 0x0F) << 3) + 0x84 << (code >> 4 & 7)) - 0x84
    return -magnitude if code & 0x80 else magnitude


_LINEAR = [_expand(code) for code in range(256)]
_LOW_BYTES = bytes(sample & 0xFF for sample in _LINEAR)
_HIGH_BYTES = bytes(sample >> 8 & 0xFF for sample in _LINEAR)

_LOUD_SAMPLE = 500  # About -36 dBFS: over a line's noise, under the quietest vowel.
_LOUD_SAMPLES_PER_FRAME = 8
_QUIET_CODES = bytes(code for code, sample in enumerate(_LINEAR) if abs(sample) < _LOUD_SAMPLE)


def is_loud(frame: bytes) -> bool:
    """Whether somebody can be heard in 20 ms of mu-law."""
    return len(frame.translate(None, _QUIET_CODES)) > _LOUD_SAMPLES_PER_FRAME


@cache
def load_speech(clip: str) -> bytes:
    """Mu-law of a recorded sentence: ``server/speech/caller-<clip>.wav``."""
    wav = resources.files("server").joinpath("speech", f"caller-{clip}.wav").read_bytes()
    return data_of(wav)


def two_channel_wav(left: bytes, right: bytes) -> bytes:
    """Put two mu-law recordings side by side, the shorter one ending in silence.

    Returns:
        A WAV file's content: 8 kHz, 16-bit, two channels.
    """
    length = max(len(left), len(right))
    samples = bytearray(4 * length)
    for channel, codes in enumerate((left, right)):
        padded = codes.ljust(length, b"\xff")
        samples[2 * channel :: 4] = padded.translate(_LOW_BYTES)
        samples[2 * channel + 1 :: 4] = padded.translate(_HIGH_BYTES)

    def numbers(*sized: tuple[int, int]) -> bytes:
        return b"".join(number.to_bytes(size, "little") for number, size in sized)

    # PCM, two channels, 8000 Hz, 32000 bytes per second, 4 bytes per moment, 16 bits.
    wav_format = numbers((1, 2), (2, 2), (8000, 4), (32000, 4), (4, 2), (16, 2))
    head = b"WAVEfmt " + numbers((16, 4)) + wav_format + b"data" + numbers((len(samples), 4))
    return b"RIFF" + numbers((len(head) + len(samples), 4)) + head + samples


# ------------------------------------------------------------------------------------------
# What a scripted person does


@dataclass(frozen=True, slots=True)
class Wait:
    """Say nothing for a while."""

    duration_s: float


@dataclass(frozen=True, slots=True)
class HearSpeech:
    """Say nothing until somebody can be heard, or for too long."""

    timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class HearPause:
    """Say nothing until nobody was heard for ``quiet_s``, or for too long."""

    quiet_s: float = 0.9
    timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Say:
    """Say a recorded sentence, or as much of it as ``break_off_s`` allows."""

    clip: str
    break_off_s: float | None = None


@dataclass(frozen=True, slots=True)
class Beep:
    """Sound one tone, as an answering machine does when it begins to record."""

    hz: float = 1_000.0
    duration_s: float = 0.4


@dataclass(frozen=True, slots=True)
class Press:
    """Press keys (``0-9 * # A-D``), 200 ms apart."""

    digits: str


@dataclass(frozen=True, slots=True)
class SendRaw:
    """Put something on the socket that no Twilio would; ``{sid}`` stands for the stream's sid."""

    messages: tuple[str | bytes, ...]


@dataclass(frozen=True, slots=True)
class HangUp:
    """Put the phone down."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Lose the connection: the socket closes without a ``stop``."""


@dataclass(frozen=True, slots=True)
class FallSilent:
    """Lose the network: nothing more is sent, and nobody closes the socket."""


@dataclass(frozen=True, slots=True)
class Forever:
    """Do the same steps again and again; at least one of them must take time."""

    steps: tuple[Step, ...]


Step = (
    Wait
    | HearSpeech
    | HearPause
    | Say
    | Beep
    | Press
    | SendRaw
    | HangUp
    | Drop
    | FallSilent
    | Forever
)
"""One line of a script. A new kind of step is a dataclass here and a case in :func:`act`."""


@dataclass(frozen=True, slots=True)
class Speakerphone:
    """A telephone on the table: what it plays it hears again, later and quieter."""

    delay_s: float = 0.2
    gain: float = 0.25
    """-12 dB."""


@dataclass(frozen=True, slots=True)
class Script:
    """What becomes of a call to somebody, and what they do on the phone.

    ``dataclasses.replace`` makes variants: shorter ringing, other steps.
    """

    name: str
    steps: tuple[Step, ...] = ()
    """After the last one they stay on the line and say nothing."""
    ring_s: float = 1.5
    """How long the phone rings before ``outcome``."""
    outcome: CallStatus = CallStatus.IN_PROGRESS
    """``IN_PROGRESS`` if they answer; else BUSY, NO_ANSWER or FAILED."""
    speakerphone: Speakerphone | None = None
    """None for a handset, which does not hear itself."""
    answered_by: str = "human"
    """What answering machine detection takes them for when it is asked to wait for the beep."""
    verdict_s: float | None = 3.0
    """When it says so, from the answer; None: right after the first :class:`Beep`."""


@dataclass(frozen=True, slots=True)
class SpeechBegan:
    """From the next frame on a sentence is said."""

    clip: str


@dataclass(frozen=True, slots=True)
class SpeechEnded:
    """The sentence is over, or broken off."""


@dataclass(frozen=True, slots=True)
class Beeped:
    """The tone is over."""


@dataclass(frozen=True, slots=True)
class KeyPressed:
    """A key went down."""

    digit: str


@dataclass(frozen=True, slots=True)
class RawMessage:
    """One message of a :class:`SendRaw`."""

    message: str | bytes


Deed = (
    bytes
    | SpeechBegan
    | SpeechEnded
    | Beeped
    | KeyPressed
    | RawMessage
    | HangUp
    | Drop
    | FallSilent
)
"""``bytes`` is the 20 ms frame that is said; everything else takes no time."""

Acting = Generator[Deed, bytes, None]
"""Yields deeds; for each frame said it is given the frame heard meanwhile."""


def act(steps: tuple[Step, ...]) -> Acting:
    """Act steps out, a frame at a time."""
    for step in steps:
        match step:
            case Wait(duration_s):
                for _ in _frames(duration_s):
                    yield SILENCE
            case HearSpeech(timeout_s):
                for _ in _frames(timeout_s):
                    if is_loud((yield SILENCE)):
                        break
            case HearPause(quiet_s, timeout_s):
                quiet_frames = 0
                for _ in _frames(timeout_s):
                    quiet_frames = 0 if is_loud((yield SILENCE)) else quiet_frames + 1
                    if quiet_frames >= len(_frames(quiet_s)):
                        break
            case Say(clip, break_off_s):
                speech = load_speech(clip)
                if break_off_s is not None:
                    speech = speech[: len(_frames(break_off_s)) * FRAME_BYTES]
                yield SpeechBegan(clip)
                for start in range(0, len(speech), FRAME_BYTES):
                    yield speech[start : start + FRAME_BYTES].ljust(FRAME_BYTES, SILENCE[:1])
                yield SpeechEnded()
            case Beep(hz, duration_s):
                tone = _tone(hz, duration_s)
                for start in range(0, len(tone), FRAME_BYTES):
                    yield tone[start : start + FRAME_BYTES]
                yield Beeped()
            case Press(digits):
                for digit in digits:
                    yield KeyPressed(digit)
                    yield from act((Wait(0.2),))
            case SendRaw(messages):
                for message in messages:
                    yield RawMessage(message)
            case HangUp() | Drop() | FallSilent():
                yield step
            case Forever(steps_again):
                while True:
                    yield from act(steps_again)


def _frames(duration_s: float) -> range:
    return range(round(duration_s / FRAME_S))


@cache
def _tone(hz: float, duration_s: float) -> bytes:
    """Mu-law of a sine at -10 dBFS, in whole frames."""
    samples = len(_frames(duration_s)) * FRAME_BYTES
    return bytes(
        _compress(round(10_000 * math.sin(2 * math.pi * hz * n / BYTES_PER_S)))
        for n in range(samples)
    )


_CODES = sorted(range(256), key=_LINEAR.__getitem__)


def _compress(sample: int) -> int:
    """A mu-law code next to a 16-bit sample: near enough for a beep."""
    return _CODES[min(bisect_left(_CODES, sample, key=_LINEAR.__getitem__), 255)]


_MEDIA = '{"event":"media","sequenceNumber":"0","streamSid":%s,"media":%s}'
_SOME_AUDIO = '{"track":"inbound","chunk":"1","timestamp":"0","payload":"%s"}'
GARBAGE: tuple[str | bytes, ...] = (
    "{",
    "",
    "null",
    '{"no event": true}',
    '{"event":"weather","streamSid":"{sid}","weather":{"sky":"clear"}}',
    '{"event":"media","streamSid":"{sid}"}',
    _MEDIA % ('"{sid}"', _SOME_AUDIO % "not base64!"),
    _MEDIA % ('"MZ00000000000000000000000000000000"', _SOME_AUDIO % ("AAAA" * 40)),
    _MEDIA % ('"{sid}"', '{"track":"outbound","chunk":"1","timestamp":"0","payload":"AAAA"}'),
    '{"event":"connected","protocol":"Call","version":"1.0.0"}',
    "x" * 60_000,
    b"\x00\x01binary",
)
"""Each is ignored by a server that is worth its name; ``{sid}`` stands for the stream's sid."""

_LISTEN = (HearSpeech(), HearPause())
_STOP = '{"event":"stop","sequenceNumber":"9","streamSid":"{sid}","stop":{}}'

SCRIPTS: dict[str, Script] = {
    script.name: script
    for script in (
        Script(
            "talks",
            (*_LISTEN, Say("question"), *_LISTEN, Say("goodbye"), *_LISTEN, HangUp()),
        ),
        Script("asks-once", (*_LISTEN, Say("question"), *_LISTEN, HangUp())),
        Script(
            "interrupts",
            (
                HearSpeech(),
                Wait(2.2),
                Say("interrupt"),
                Wait(0.3),
                *_LISTEN,
                Say("goodbye"),
                *_LISTEN,
                HangUp(),
            ),
        ),
        Script(
            "hangs-up",
            (HearSpeech(), Wait(0.4), Say("question", break_off_s=0.8), HangUp()),
        ),
        Script("busy", ring_s=0.5, outcome=CallStatus.BUSY),
        Script("no-answer", ring_s=600.0, outcome=CallStatus.NO_ANSWER),
        Script("fails", ring_s=0.2, outcome=CallStatus.FAILED),
        Script("drops", (HearSpeech(), Wait(0.4), Say("question", break_off_s=0.8), Drop())),
        Script(
            "garbage",
            (
                SendRaw(GARBAGE),
                *_LISTEN,
                Say("question"),
                SendRaw(GARBAGE),
                *_LISTEN,
                SendRaw((_STOP, _MEDIA % ('"{sid}"', _SOME_AUDIO % "AAAA"), _STOP)),
                Drop(),
            ),
        ),
        Script("vanishes", (HearSpeech(), Wait(0.4), Say("question"), FallSilent())),
        # "Hello?", as people say it when they pick up; then they let the other side speak.
        Script(
            "says-hello",
            (
                Wait(0.2),
                Say("hello", break_off_s=0.5),
                *_LISTEN,
                Say("question"),
                *_LISTEN,
                HangUp(),
            ),
        ),
        Script(
            "coughs",
            (
                HearSpeech(),
                Wait(2.5),
                Say("cough"),
                *_LISTEN,
                Say("question"),
                HearSpeech(),
                Wait(1.0),
                Say("cough"),
                *_LISTEN,
                HangUp(),
            ),
        ),
        Script(
            "echoing-speakerphone",
            (*_LISTEN, Say("question"), *_LISTEN, Say("goodbye"), *_LISTEN, HangUp()),
            speakerphone=Speakerphone(),
        ),
        Script(
            "asks-and-waits", (*_LISTEN, Say("question"), HearSpeech(60.0), HearPause(), HangUp())
        ),
        Script(
            "voicemail",
            (Say("voicemail"), Wait(0.5), Beep(), Wait(25.0), HangUp()),
            answered_by="machine_end_beep",
            verdict_s=None,
        ),
        Script(
            "taken-for-a-machine",
            (Say("question"), *_LISTEN, Say("goodbye"), *_LISTEN, HangUp()),
            answered_by="machine_end_silence",
            verdict_s=4.0,
        ),
        # Somebody who does not take the first pause for the end.
        Script(
            "asks-patiently",
            (
                HearSpeech(),
                HearPause(quiet_s=2.0),
                Say("question"),
                HearSpeech(60.0),
                HearPause(quiet_s=3.0),
                HangUp(),
            ),
        ),
        Script(
            # Who is told to wait hears something before the answer.
            "asks-and-is-told-to-wait",
            (
                *_LISTEN,
                Say("question"),
                HearSpeech(60.0),
                HearPause(),
                HearSpeech(60.0),
                HearPause(),
                HangUp(),
            ),
        ),
        Script("types-digits", (*_LISTEN, Press("12#"), HearSpeech(60.0), HearPause(), HangUp())),
        Script("oversized", (SendRaw(("x" * 2**20,)), *_LISTEN, HangUp())),
        Script(
            "never-hangs-up",
            (*_LISTEN, Forever((Say("followup"), *_LISTEN, Wait(1.0)))),
        ),
        Script("silent"),
    )
}
"""The people there are, by name."""


def find_script(script: str | Script) -> Script:
    """A script by its name, or itself.

    Raises:
        ValueError: There is none of that name; the message has the list.
    """
    if isinstance(script, Script):
        return script
    if script not in SCRIPTS:
        raise ValueError(f"no script {script!r}; there are {', '.join(SCRIPTS)}")
    return SCRIPTS[script]


# ------------------------------------------------------------------------------------------
# What the phone plays


class Earpiece:
    """Twilio's playing buffer and the ear behind it: a frame at a time, no clock.

    Attributes:
        heard: Everything played since the stream's start, silence where there was nothing.
        discarded_bytes: What came while the buffer was full.
    """

    def __init__(self) -> None:
        self.heard = bytearray()
        self.discarded_bytes = 0
        self._buffer = bytearray()
        self._end = 0  # Position in all audio ever taken where the buffer ends.
        self._marks: deque[tuple[int, str]] = deque()

    def push(self, payload: bytes) -> None:
        """Play this after everything before; beyond ten minutes it is thrown away."""
        room = BUFFER_BYTES - len(self._buffer)
        self._buffer += payload[:room]
        self._end += min(room, len(payload))
        self.discarded_bytes += max(0, len(payload) - room)

    def mark(self, name: str) -> list[str]:
        """Remember a mark; it is returned at once if nothing is left to play before it."""
        if not self._buffer:
            return [name]
        self._marks.append((self._end, name))
        return []

    def clear(self) -> tuple[int, list[str]]:
        """Drop everything that has not been played.

        Returns:
            Bytes dropped, and the names of all marks that were waiting.
        """
        dropped = len(self._buffer)
        self._buffer.clear()
        self._end -= dropped
        names = [name for _, name in self._marks]
        self._marks.clear()
        return dropped, names

    def play(self) -> tuple[bytes, list[str]]:
        """Play 20 ms.

        Returns:
            The frame, and the marks that were reached with it.
        """
        buffer = self._buffer
        if not buffer:
            self.heard += SILENCE
            return SILENCE, []
        frame = bytes(buffer[:FRAME_BYTES])
        del buffer[:FRAME_BYTES]
        if len(frame) < FRAME_BYTES:
            frame = frame.ljust(FRAME_BYTES, b"\xff")
        self.heard += frame
        names = []
        played = self._end - len(buffer)
        while self._marks and self._marks[0][0] <= played:
            names.append(self._marks.popleft()[1])
        return frame, names


# ------------------------------------------------------------------------------------------
# The phone


class PhoneTransport(TextSocket, Protocol):
    """A text transport that can also misbehave, and knows how the other side closed it."""

    async def send(self, text: str | bytes) -> None:
        """Send a text frame, or a binary one; raises as :class:`TextSocket` does."""
        ...

    async def abort(self) -> None:
        """Let the connection go without a word."""
        ...

    @property
    def closed_by_peer(self) -> tuple[int, str] | None:
        """Close code and reason of the other side, once :class:`StreamEnded` was raised."""
        ...


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
    received_s: float
    echoed_s: float | None = None
    cleared: bool = False
    """It went back because of a clear: its audio was not played."""


@dataclass(frozen=True, slots=True)
class ClearSeen:
    """One clear from the server."""

    at_s: float
    dropped_bytes: int
    marks_returned: int
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

    script: Script
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
    beeped_s: float | None = None
    """When the first beep was over."""
    beeped: trio.Event = field(default_factory=trio.Event)

    _transport: PhoneTransport = field(init=False, repr=False)
    _room: deque[bytes] = field(default_factory=deque, repr=False)
    """What a speakerphone has played and not heard again yet."""
    _sequence_number: int = 0
    _stop_wanted: bool = False
    _waiting_marks: dict[str, list[MarkSeen]] = field(default_factory=dict)
    _quiet_frames: int = _SPEECH_GAP_FRAMES

    @property
    def heard(self) -> bytes:
        """Mu-law the callee heard, from the stream's start, as long as ``said`` to the frame."""
        return bytes(self.earpiece.heard)

    @property
    def first_media_s(self) -> float | None:
        """When the first media message came."""
        return self.received[0][0] if self.received else None

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
        acting = act((*self.script.steps, Forever((Wait(1.0),))))
        deed = next(acting)
        frame_number = 0
        while True:
            frame_number += 1
            await self._listen_until(began + frame_number * FRAME_S)
            if self._stop_wanted:
                await self._send_stop()
                return StreamEnd.STOPPED
            while not isinstance(deed, bytes):
                end = await self._do(deed)
                if end is not None:
                    return end
                deed = next(acting)
            heard = await self._exchange_frames(deed, frame_number)
            deed = acting.send(heard)

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
        mixed = (
            max(-32_768, min(32_767, _LINEAR[own] + round(_LINEAR[echo] * speakerphone.gain)))
            for own, echo in zip(spoken, played, strict=True)
        )
        return codec.encode_mulaw(array("h", mixed).tobytes())

    async def _do(self, deed: Deed) -> StreamEnd | None:
        """What takes no time; returns why the stream is over if it is."""
        now_s = self._now_s()
        match deed:
            case SpeechBegan(clip):
                self.utterances.append(Utterance(clip, now_s, math.inf))
                self._note(f"the callee says: {clip}")
            case SpeechEnded():
                self.utterances[-1].ended_s = now_s
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
                await self._listen_until(math.inf)  # until the server gives up, or for ever
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
                seen = MarkSeen(mark.name, now_s)
                self.marks.append(seen)
                self._waiting_marks.setdefault(mark.name, []).append(seen)
                await self._echo(self.earpiece.mark(mark.name), cleared=False)
            case _Clear():
                dropped, names = self.earpiece.clear()
                self.clears.append(ClearSeen(now_s, dropped, len(names), len(self.received)))
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
            if self._quiet_frames >= _SPEECH_GAP_FRAMES:
                self._note("the agent is heard")
            self._quiet_frames = 0
        else:
            self._quiet_frames += 1
            if self._quiet_frames == _SPEECH_GAP_FRAMES:
                self._note("the agent is silent")


# ------------------------------------------------------------------------------------------
# A transport in memory


class MemoryTransport:
    """One end of a socket that lives in memory."""

    def __init__(
        self,
        to_peer: trio.MemorySendChannel[str | bytes],
        from_peer: trio.MemoryReceiveChannel[str | bytes],
    ) -> None:
        self._to_peer = to_peer
        self._from_peer = from_peer
        self._peer: MemoryTransport | None = None
        self._closed: tuple[int, str] | None = None

    @property
    def closed_by_peer(self) -> tuple[int, str] | None:
        """Close code and reason of the other side; None while it is open."""
        return self._peer._closed if self._peer is not None else None

    async def receive(self) -> str | bytes:
        """Wait for the next message; raises StreamEnded after the last one."""
        try:
            return await self._from_peer.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise StreamEnded("the socket is closed") from None

    def receive_nowait(self) -> str | bytes | None:
        """The next message if it is already here; raises StreamEnded after the last one."""
        try:
            return self._from_peer.receive_nowait()
        except trio.WouldBlock:
            return None
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise StreamEnded("the socket is closed") from None

    async def send(self, text: str | bytes) -> None:
        """Send a message; raises StreamEnded when either side has closed."""
        try:
            await self._to_peer.send(text)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise StreamEnded("the socket is closed") from None

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close both directions; what was sent before still arrives."""
        if self._closed is None:
            self._closed = (code, reason)
        self._to_peer.close()
        self._from_peer.close()

    async def abort(self) -> None:
        """Close as a broken line does."""
        await self.aclose(1006)


def memory_transports(buffered_messages: int = 1024) -> tuple[MemoryTransport, MemoryTransport]:
    """Two ends of a socket in memory: what one sends the other receives, in order."""
    to_right, from_left = trio.open_memory_channel[str | bytes](buffered_messages)
    to_left, from_right = trio.open_memory_channel[str | bytes](buffered_messages)
    left, right = MemoryTransport(to_right, from_right), MemoryTransport(to_left, from_left)
    left._peer, right._peer = right, left
    return left, right
