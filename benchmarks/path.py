"""What does one 20 ms chunk cost between the two sockets' bytes, in C and in readable Python?

Every row starts with a WebSocket message as the phone (or the model) sends it and ends with the
one the other side gets; "with frames" includes taking the frame apart, unmasking, masking and
framing. All rows use the same codec, so they differ in framing, JSON, base64 and layers only. The
times are thread CPU time, medians over interleaved rounds. No sockets: ``calls`` has those.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

from rich.table import Table
from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT, SERVER, Protocol

import codec
from benchmarks.options import Options, machine, machine_line
from codec.ear import Ear, Played
from codec.path import MediaPath, WebSocket
from codec.shapes import ALAW, AudioMessages
from server.carrier import CallerAudio, SendAudio
from server.carrier.twilio.messages import TwilioProtocol, audio_messages
from server.model import AGENT_RATE_HZ, CALLER_RATE_HZ, AgentAudio
from server.model.gemini.messages import AUDIO_MESSAGES, audio_message
from server.model.gemini.protocol import GeminiProtocol

SID = "MZ0123456789abcdef0123456789abcdef"
START = json.dumps(
    {
        "event": "start",
        "streamSid": SID,
        "start": {
            "callSid": "CA" + "0" * 32,
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        },
    }
)
BINARY, A_LAW = AudioMessages(None), AudioMessages(None, law=ALAW)
"""As Asterisk's ``chan_websocket`` has it."""
CALLS = 400
"""As many paths take turns in the cold rows: nothing of a call is left in the caches."""

Convert = Callable[[list[bytes]], object]
"""Take every message of a list all the way; what it returns is only looked at by the check."""


def run(options: Options) -> dict[str, object]:
    """Measure, print a table, return the medians in microseconds per chunk."""
    chunks = 400 if options.quick else 2000
    rounds = 7 if options.quick else 25
    caller_text, agent_text = caller_messages(chunks), agent_messages(chunks)
    caller_frames = [Frame(Opcode.TEXT, text).serialize(mask=True) for text in caller_text]
    agent_frames = [Frame(Opcode.TEXT, text).serialize(mask=False) for text in agent_text]
    bare = [Frame(Opcode.BINARY, payload).serialize(mask=True) for payload in payloads(chunks)]

    rows: list[tuple[str, Convert, list[bytes], Convert, list[bytes]]] = [
        ("media path, with frames", *path_rows(caller_frames, agent_frames, calls=1)),
        (
            f"media path, with frames, {CALLS} calls in turn",
            *path_rows(caller_frames, agent_frames, calls=CALLS),
        ),
        ("media path, binary frames", *path_rows(bare, agent_frames, calls=1, carrier=BINARY)),
        ("media path, A-law frames", *path_rows(bare, agent_frames, calls=1, carrier=A_LAW)),
        ("of which frames", *framing_rows(caller_frames, agent_frames)),
        ("of which the codec, called from Python", *codec_rows(caller_text, agent_text)),
        ("json, base64, codec", *stdlib_rows(caller_text, agent_text)),
        ("TwilioProtocol, GeminiProtocol, codec", *protocol_rows(caller_text, agent_text)),
        (
            "the same between websockets' sans-I/O, with frames",
            *websockets_rows(caller_frames, agent_frames),
        ),
    ]
    times: dict[str, tuple[list[float], list[float]]] = {row[0]: ([], []) for row in rows}
    for _ in range(rounds):
        for name, caller, caller_data, agent, agent_data in rows:
            times[name][0].append(microseconds_each(caller, caller_data))
            times[name][1].append(microseconds_each(agent, agent_data))

    table = Table(title="Microseconds per 20 ms chunk")
    for heading in ("", "caller", "agent"):
        table.add_column(heading, justify="left" if not heading else "right")
    figures: dict[str, dict[str, float]] = {}
    for name, (caller_us, agent_us) in times.items():
        figures[name] = {
            "caller_us": round(statistics.median(caller_us), 3),
            "agent_us": round(statistics.median(agent_us), 3),
        }
        table.add_row(name, *(f"{value:.2f}" for value in figures[name].values()))
    options.console.print(table)
    kib = call_memory_bytes(caller_frames, agent_frames) / 1024
    options.console.print(f"{kib:.1f} KiB of memory per call outside Python's objects, at most")
    facts = machine(["websockets", "msgspec", "Cython"])
    options.console.print(f"{machine_line(facts)}; {rounds} rounds of {chunks} chunks")
    return {"chunks": chunks, "rounds": rounds, "path": figures, "kib_per_call": round(kib, 1)}


def microseconds_each(convert: Convert, messages: list[bytes]) -> float:
    started = time.thread_time_ns()
    convert(messages)
    return (time.thread_time_ns() - started) / len(messages) / 1000


# --- Messages -------------------------------------------------------------------------------------


def payloads(count: int) -> list[bytes]:
    noise = random.Random(1)
    return [noise.randbytes(160) for _ in range(count)]


def caller_messages(count: int) -> list[bytes]:
    return [
        b'{"event":"media","sequenceNumber":"%d","streamSid":"%s","media":{"track":"inbound",'
        b'"chunk":"%d","timestamp":"%d","payload":"%s"}}'
        % (n + 1, SID.encode(), n, 20 * n, base64.b64encode(payload))
        for n, payload in enumerate(payloads(count), start=1)
    ]


def agent_messages(count: int) -> list[bytes]:
    noise = random.Random(2)
    return [
        b'{"serverContent":{"modelTurn":{"parts":[{"inlineData":'
        b'{"mimeType":"audio/pcm;rate=24000","data":"%s"}}]}}}'
        % base64.b64encode(noise.randbytes(960))
        for _ in range(count)
    ]


# --- The ways to do it ----------------------------------------------------------------------------


def open_path(carrier: AudioMessages | None = None) -> MediaPath:
    """A path by which everything may pass, to Twilio or to another carrier."""
    path = MediaPath()
    path.phone = WebSocket(is_client=False, max_message_bytes=64 * 1024)
    path.join_model(WebSocket(is_client=True, max_message_bytes=16 * 2**20), AUDIO_MESSAGES)
    path.start(SID, audio_messages(SID) if carrier is None else carrier)
    path.resume(last_chunk=0, timestamp_ms=0)
    path.caller_passes = True
    path.played = Played()
    path.played.open, path.played.play_end = True, math.inf
    return path


def path_rows(
    caller: list[bytes], agent: list[bytes], *, calls: int, carrier: AudioMessages | None = None
) -> Any:
    def from_phone(frames: list[bytes]) -> int:
        for number, frame in enumerate(frames):
            path = paths[number % calls]
            path.phone.receive(frame)
            assert path.next_from_phone() is None
            path.model.take_output()
        return sum(path.caller_sent_bytes for path in paths)

    def from_model(frames: list[bytes]) -> int:
        for path in paths:
            path.follow(limit_bytes=1 << 40)
        for number, frame in enumerate(frames):
            path = paths[number % calls]
            path.model.receive(frame)
            assert path.next_from_model() is None
            path.phone.take_output()
        return sum(path.take_run()[0] for path in paths)

    paths = [open_path(carrier) for _ in range(calls)]
    assert from_phone(caller) == 160 * len(caller)
    assert from_model(agent) == 160 * len(agent)
    return from_phone, caller, from_model, agent


def framing_rows(caller: list[bytes], agent: list[bytes]) -> Any:
    """Read a frame of the size that comes in, write one of the size that goes out."""

    def pass_through(source: WebSocket, sink: WebSocket, size: int) -> Convert:
        outgoing = b"x" * size

        def convert(frames: list[bytes]) -> None:
            for frame in frames:
                source.receive(frame)
                source.next_message()
                sink.send_text(outgoing)
                sink.take_output()

        return convert

    phone = WebSocket(is_client=False, max_message_bytes=65536)
    model = WebSocket(is_client=True, max_message_bytes=65536)
    caller_bytes = len(audio_message(bytes(640)))
    agent_bytes = len(agent_text_out(bytes(160)))
    return (
        pass_through(phone, model, caller_bytes),
        caller,
        pass_through(model, phone, agent_bytes),
        agent,
    )


def codec_rows(caller: list[bytes], agent: list[bytes]) -> Any:
    decoder = codec.MulawDecoder(CALLER_RATE_HZ)
    encoder = codec.MulawEncoder(AGENT_RATE_HZ)
    payload, pcm = random.Random(3).randbytes(160), random.Random(4).randbytes(960)
    return (
        lambda messages: [decoder.decode(payload) for _ in messages],
        caller,
        lambda messages: [encoder.encode(pcm) for _ in messages],
        agent,
    )


def stdlib_rows(caller: list[bytes], agent: list[bytes]) -> Any:
    decoder = codec.MulawDecoder(CALLER_RATE_HZ)
    encoder = codec.MulawEncoder(AGENT_RATE_HZ)

    def from_phone(texts: list[bytes]) -> list[str]:
        out = []
        for text in texts:
            payload = base64.b64decode(json.loads(text)["media"]["payload"])
            data = base64.b64encode(decoder.decode(payload)).decode()
            blob = {"mimeType": "audio/pcm;rate=16000", "data": data}
            out.append(json.dumps({"realtimeInput": {"audio": blob}}))
        return out

    def from_model(texts: list[bytes]) -> list[str]:
        out = []
        for text in texts:
            [part] = json.loads(text)["serverContent"]["modelTurn"]["parts"]
            payload = encoder.encode(base64.b64decode(part["inlineData"]["data"]))
            out.append(agent_text_out(payload))
        return out

    return from_phone, caller, from_model, agent


def agent_text_out(payload: bytes) -> str:
    media = {"payload": base64.b64encode(payload).decode()}
    return json.dumps({"event": "media", "streamSid": SID, "media": media})


def protocol_rows(caller: list[bytes], agent: list[bytes]) -> Any:
    caller_text = [text.decode() for text in caller]  # a WebSocket library gives str for text
    twilio, gemini = TwilioProtocol(), GeminiProtocol()
    twilio.receive_text(START, 0.0)
    decoder = codec.MulawDecoder(CALLER_RATE_HZ)
    encoder = codec.MulawEncoder(AGENT_RATE_HZ)

    def from_phone(texts: list[str]) -> list[bytes]:
        out = []
        for text in texts:
            event = twilio.receive_text(text, 0.0)
            assert isinstance(event, CallerAudio)
            out.append(audio_message(decoder.decode(event.payload)))
        return out

    def from_model(texts: list[bytes]) -> list[str]:
        out = []
        for text in texts:
            [event] = gemini.receive(text, 0.0)
            assert isinstance(event, AgentAudio)
            out.append(twilio.send(SendAudio(encoder.encode(event.pcm))))
        return out

    return from_phone, caller_text, from_model, agent


def websockets_rows(caller: list[bytes], agent: list[bytes]) -> Any:
    twilio, gemini = TwilioProtocol(), GeminiProtocol()
    twilio.receive_text(START, 0.0)
    decoder = codec.MulawDecoder(CALLER_RATE_HZ)
    encoder = codec.MulawEncoder(AGENT_RATE_HZ)
    phone, model = Protocol(SERVER), Protocol(CLIENT)

    def from_phone(frames: list[bytes]) -> None:
        for data in frames:
            phone.receive_data(data)
            [frame] = phone.events_received()
            assert isinstance(frame, Frame)
            event = twilio.receive_text(bytes(frame.data).decode(), 0.0)
            assert isinstance(event, CallerAudio)
            model.send_text(audio_message(decoder.decode(event.payload)))
            model.data_to_send()

    def from_model(frames: list[bytes]) -> None:
        for data in frames:
            model.receive_data(data)
            [frame] = model.events_received()
            assert isinstance(frame, Frame)
            [event] = gemini.receive(bytes(frame.data), 0.0)
            assert isinstance(event, AgentAudio)
            phone.send_text(twilio.send(SendAudio(encoder.encode(event.pcm))).encode())
            phone.data_to_send()

    return from_phone, caller, from_model, agent


# --- Memory ---------------------------------------------------------------------------------------


def call_memory_bytes(caller: list[bytes], agent: list[bytes]) -> float:
    """What a call's audio holds on to outside Python's objects, at most, in all of this.

    With all it has in a call: an ear, what has been played, what was sent and is written down every
    second. Chunks come 20 ms apart; of the agent's, four at a time, for half of the time.
    """
    open_path()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        paths = [open_path() for _ in range(10)]
        for path in paths:
            path.played = Played(remember=True)
            path.played.open = True
            path.ear = Ear(path.played, barge_in=True)
            path.keep_sent = True
        most, chunks = 0, iter(agent)
        for number, heard in enumerate(caller):
            now = number * 0.02
            for path in paths:
                path.phone.receive(heard)
                path.next_from_phone(now)
                path.model.take_output()
                if path.has_caller_news():
                    path.take_sent()
                    path.ear.take_found()
            if number % 200 < 25:  # half a second of four brings two of speech
                for said in itertools.islice(chunks, 4):
                    for path in paths:
                        assert path.played is not None
                        path.played.play_end = max(now + 0.001, path.played.play_end)
                        path.take_run()
                        path.follow(limit_bytes=8_000)
                        path.model.receive(said)
                        path.next_from_model(now)
                        path.phone.take_output()
            most = max(most, tracemalloc.get_traced_memory()[0] - before)
        return most / len(paths)
    finally:
        tracemalloc.stop()
