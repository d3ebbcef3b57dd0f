"""Throw hostile input at the media path and hold every bit of it to an oracle.

    python -m tests.fuzz_path --inputs 1000000
    .ci/fuzz-path --inputs 1000000              the same in a sanitized build

Four kinds of input, each from its own number, so that a failure is repeated by ``--only NUMBER``:

* frames: a stream of WebSocket frames, mostly nearly right, cut anywhere; everything accepted,
  answered or refused must be what the ``websockets`` library makes of it;
* messages: JSON for either side, with bytes changed; what the path takes for audio must be the
  audio that ``TwilioProtocol`` and ``GeminiProtocol`` read;
* calls: both sides and every control in any order; no byte of audio may be lost or made up;
* ears: a caller and an agent making any noise; the ear must find what the readable one finds.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import random
import struct
import sys
import time
from collections import Counter
from pathlib import Path

import structlog

import codec
from codec.ear import Ear, Played
from codec.path import WebSocket
from server.carrier import CallerAudio
from server.carrier.twilio.messages import TwilioProtocol, audio_messages
from server.model import AgentAudio
from server.model.gemini.messages import AUDIO_MESSAGES
from server.model.gemini.protocol import GeminiProtocol
from tests.support.ear_reference import random_scene, same_in_both
from tests.support.path_messages import SID, open_path
from tests.support.path_reference import texts
from tests.support.websocket_oracle import compare, ours

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


# --- Frames ---------------------------------------------------------------------------------------

TEXTS = ["abc", "", "grüß dich", "\u2028", "😀" * 30, '{"event":"stop"}']
CODES = [1000, 1001, 1003, 1005, 1006, 1007, 1011, 1014, 1015, 999, 2999, 3000, 4999, 5000, 0]
SIZES = [0, 1, 2, 3, 7, 8, 9, 124, 125, 126, 127, 128]
OPCODES = bytes([1, 1, 1, 1, 2, 2, 2, 9, 10, 8])
OPCODES_WITHIN_FRAGMENTS = bytes([0, 0, 0, 0, 0, 0, 9, 9, 10, 8])
LENGTHS = [2**63, 2**64 - 1, 2**63 - 1, 2**32, 2**31, 65536, 65535, 0]


def many_frames(rng: random.Random, *, masked: bool, limit: int) -> bytes:
    """A stream of frames, in and out of fragments."""
    frames = []
    opcodes = OPCODES
    for _ in range(rng.randrange(1, 8)):
        opcode = rng.choice(opcodes) if rng.random() < 0.97 else rng.randrange(16)
        frame = one_frame(rng, opcode, masked=masked, limit=limit)
        frames.append(frame)
        if opcode < 8:
            opcodes = OPCODES if frame[0] & 0x80 else OPCODES_WITHIN_FRAGMENTS
    return b"".join(frames)


def one_frame(rng: random.Random, opcode: int, *, masked: bool, limit: int) -> bytes:
    """One frame as the wire has it; about one in seven breaks a rule."""
    kind = rng.randrange(8)
    if opcode == 8 and kind < 6:
        payload = struct.pack("!H", rng.choice(CODES) if kind else rng.randrange(65536))
        payload += rng.choice(TEXTS).encode()[: rng.choice([0, 1, 2, 5, 123, 124])]
    elif kind < 3:
        payload = rng.choice(TEXTS).encode()
        if opcode >= 8:
            payload = payload[:125]
    elif kind < 6:
        payload = bytes(rng.choice(SIZES if rng.random() < 0.05 else SIZES[:-3]))
    elif kind == 6 or opcode >= 8:
        payload = rng.randbytes(rng.choice(SIZES[:-3]))
    else:
        payload = b"x" * rng.choice([limit - 1, limit, limit + 1, limit // 2, limit // 3])
    first = opcode
    if rng.random() < (0.99 if opcode >= 8 else 0.6):
        first |= 0x80
    if rng.random() < 0.02:
        first |= rng.choice([0x10, 0x20, 0x40, 0x70])
    if rng.random() < 0.01:
        masked = not masked
    length = len(payload) if rng.random() < 0.98 else rng.choice(LENGTHS)
    mask_bit = 0x80 if masked else 0
    if length < 126 and rng.random() < 0.95:
        head = bytes([first, mask_bit | length])
    elif length < 65536 and rng.random() < 0.95:
        head = struct.pack("!BBH", first, mask_bit | 126, length)
    else:
        head = struct.pack("!BBQ", first, mask_bit | 127, length)
    if not masked:
        return head + payload
    key = rng.randbytes(4)
    wide = key * (len(payload) // 4 + 1)
    size = len(payload)
    mixed = int.from_bytes(payload, "big") ^ int.from_bytes(wide[:size], "big")
    return head + key + mixed.to_bytes(size, "big")


SCRAPS = [b'"', b"\\", b"{", b"}", b",", b" ", b"\0", b"=", b"0", b"1", b"-", b"]", b'"x":1,']
SCRAPS += [b'"payload":"AAAA",', b'"event":"stop",', b'"data":"AAAA",', b'"":{},', b"\xc3\xa9"]


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Change, drop, repeat or cut a few bytes."""
    mutated = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if not mutated:
            break
        at = rng.randrange(len(mutated))
        match rng.randrange(6):
            case 0:
                mutated[at] = rng.randrange(256)
            case 1:
                mutated[at] ^= 1 << rng.randrange(8)
            case 2:
                del mutated[at : at + rng.choice([1, 2, 8])]
            case 3 if (brace := mutated.find(rng.choice(b"{},:"), at)) >= 0:
                mutated[brace + 1 : brace + 1] = rng.choice(SCRAPS)
            case 3:
                mutated[at:at] = mutated[at : at + rng.choice([1, 4, 16])]
            case 4:
                del mutated[at:]
            case 5:
                mutated[at:at] = rng.choice(SCRAPS)
    return bytes(mutated)


def cut(rng: random.Random, data: bytes) -> list[bytes]:
    """The same bytes in pieces, as sockets give them."""
    how = rng.randrange(8)
    if how == 0:
        return [data[at : at + 1] for at in range(len(data))]
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(how - 1))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def fuzz_frames(rng: random.Random) -> str:
    """Returns how the stream ended, for the tally."""
    limit = rng.choice([125, 300, 300, 300, 70_000]) if rng.random() < 0.01 else 300
    is_client = rng.random() < 0.4
    data = many_frames(rng, masked=not is_client, limit=limit)
    if rng.random() < 0.3:
        data = mutate(rng, data)
    outcome = compare(data, is_client=is_client, max_message_bytes=limit)
    again = ours(cut(rng, data), is_client=is_client, max_message_bytes=limit)
    assert again.with_the_latest_pong == outcome, (again, outcome)
    return f"frames: {outcome.failure or (outcome.close_code and 'closed') or 'open'}"


# --- Messages -------------------------------------------------------------------------------------


def frame_of(text: bytes, *, masked: bool) -> bytes:
    """A text message in one frame, masked with zeros where there has to be a mask."""
    head = struct.pack("!BBQ", 0x81, 127 | (0x80 if masked else 0), len(text))
    return head + (bytes(4) if masked else b"") + text


def fuzz_messages(rng: random.Random) -> str:
    """One message, mutated; one that is taken must be the audio that the full parser reads."""
    path = open_path()
    path.recording = True
    payload = rng.randbytes(rng.choice([0, 1, 2, 3, 4, 160, 161, 481]))
    text = base64.b64encode(payload)
    if rng.random() < 0.5:
        message = (
            b'{"event":"media","sequenceNumber":"4","streamSid":"%s","media":{"track":"inbound",'
            b'"chunk":"2","timestamp":"%d","payload":"%s"}}'
            % (SID.encode(), rng.choice([0, 5, 20, 999999999999999]), text)
        )
    else:
        message = (
            b'{"serverContent":{"modelTurn":{"role":"model","parts":[{"inlineData":'
            b'{"mimeType":"audio/pcm;rate=24000","data":"%s"}}]}}}' % text
        )
    if rng.random() < 0.7:
        message = mutate(rng, message)
    if rng.random() < 0.1:
        message = message.replace(b'":', b'" :\n').replace(b",", b"\t, ")

    if b"event" in message:
        path.phone.receive(frame_of(message, masked=True))
        if path.next_from_phone() is not None or path.phone.ended:
            return "messages: handed up"
        twilio = TwilioProtocol()
        twilio.receive_text(START, 0.0)
        event = twilio.receive_text(message.decode(), 0.0)
        assert isinstance(event, CallerAudio), (message, event)
        assert path.take_recording()[0] == event.payload, message
        assert path.timestamp_ms == event.timestamp_ms + len(event.payload) // 8, message
        assert path.counts()[1] == twilio.counts.missing_chunks, message
        return "messages: caller audio"
    path.model.receive(frame_of(message, masked=False))
    if path.next_from_model() is not None or path.model.ended:
        return "messages: handed up"
    events = GeminiProtocol().receive(message, 0.0)
    assert [type(event) for event in events] == [AgentAudio], (message, events)
    assert isinstance(events[0], AgentAudio)
    assert path.take_recording()[1] == codec.MulawEncoder(24_000).encode(events[0].pcm), message
    return "messages: agent audio"


# --- Calls ----------------------------------------------------------------------------------------


def fuzz_calls(rng: random.Random) -> str:
    """A call's worth of everything at once; the books must balance after every step."""
    path = open_path(phone_limit=rng.choice([125, 2000, 65536]))
    path.recording = True
    heard_bytes = taken_bytes = said_bytes = passed_bytes = written_bytes = 0
    now = 0.0

    for _ in range(rng.randrange(1, 25)):
        assert path.phone is not None
        assert path.model is not None
        now += rng.choice([0.0, 0.02, 1.0])
        match rng.randrange(16):
            case 0 | 1 | 2:
                chunk = base64.b64encode(rng.randbytes(rng.choice([1, 160, 160, 4000])))
                text = (
                    b'{"event":"media","streamSid":"%s","media":{"timestamp":"%d","payload":"%s"}}'
                )
                at_ms = path.timestamp_ms if rng.random() < 0.9 else rng.randrange(2**40)
                data = frame_of(text % (SID.encode(), at_ms, chunk), masked=True)
                for piece in cut(rng, data if rng.random() < 0.95 else mutate(rng, data)):
                    path.phone.receive(piece)
                    while path.next_from_phone(now) is not None:
                        pass
            case 3 | 4 | 5:
                said = base64.b64encode(rng.randbytes(rng.choice([2, 960, 5000, 60_000])))
                text = (
                    b'{"serverContent":{"modelTurn":{"parts":[{"inlineData":'
                    b'{"mimeType":"audio/pcm","data":"%s"}}]}}}'
                )
                data = frame_of(text % said, masked=False)
                path.model.receive(data if rng.random() < 0.95 else mutate(rng, data))
                while path.next_from_model(now) is not None:
                    pass
            case 6:
                path.stop()
                if rng.random() < 0.8:
                    path.start(SID, audio_messages(SID))
            case 7:
                path.caller_passes = rng.random() < 0.7
            case 8:
                path.model_ready, path.keep_sent = rng.random() < 0.8, rng.random() < 0.8
            case 9:
                if rng.random() < 0.3:
                    websocket = WebSocket(is_client=True, max_message_bytes=2**24)
                    path.join_model(websocket, AUDIO_MESSAGES)
                elif rng.random() < 0.3:
                    path.phone.receive_eof()
            case 10:
                written_bytes += audio_bytes(path.phone.take_output())
                path.model.take_output()
            case 11 | 12:
                passed_bytes += path.take_run()[0]
                with contextlib.suppress(ValueError):
                    path.follow(limit_bytes=rng.choice([0, 159, 8000]))
            case 13:
                taken_bytes += len(path.take_caller())
                path.take_sent()
            case 14:
                path.resume(last_chunk=rng.choice([-1, 0, 2**70]), timestamp_ms=None)
            case 15:
                played = Played(remember=rng.random() < 0.5)
                played.open, played.play_end = True, now + rng.choice([0.0, 5.0])
                path.played = rng.choice([None, played])
                path.ear = rng.choice([None, Ear(played, barge_in=rng.random() < 0.5)])
        caller, agent = path.take_recording()
        heard_bytes, said_bytes = heard_bytes + len(caller), said_bytes + len(agent)
        assert heard_bytes >= path.caller_sent_bytes + taken_bytes
    assert heard_bytes == path.caller_sent_bytes + taken_bytes + len(path.take_caller())
    assert said_bytes == passed_bytes + path.take_run()[0]
    assert path.phone is not None
    assert said_bytes == written_bytes + audio_bytes(path.phone.take_output())
    return "calls"


def audio_bytes(data: bytes) -> int:
    """How much audio is in frames for the phone."""
    messages = [json.loads(text) for text in texts(data, masked=False)]
    return sum(len(base64.b64decode(each["media"]["payload"])) for each in messages)


# --- Ears -----------------------------------------------------------------------------------------


def fuzz_ears(rng: random.Random) -> str:
    """The ear, held to the readable one."""
    found = same_in_both(random_scene(rng))
    return f"ears: {'something' if found else 'nothing'} found"


# --- The driver -----------------------------------------------------------------------------------

KINDS = {
    "frames": (fuzz_frames,),
    "messages": (fuzz_messages,),
    "calls": (fuzz_calls,),
    "ears": (fuzz_ears,),
}
KINDS["all"] = (KINDS["frames"] * 8 + KINDS["messages"] * 2 + KINDS["calls"]) * 8 + KINDS["ears"]


def fuzz(inputs: int, *, seed: int, kind: str = "all") -> Counter[str]:
    """Run so many inputs; returns how they ended. Raises with the number of one that fails."""
    tally: Counter[str] = Counter()
    for number in range(inputs):
        tally[fuzz_one(seed, number, kind)] += 1
    return tally


def fuzz_one(seed: int, number: int, kind: str = "all") -> str:
    """Run one input by its number."""
    rng = random.Random(seed << 40 | number)
    kinds = KINDS[kind]
    try:
        return kinds[number % len(kinds)](rng)
    except Exception as error:
        error.add_note(
            f"repeat with: python -m tests.fuzz_path --kind {kind} --seed {seed} --only {number}"
        )
        raise


def main() -> int:
    """Parse arguments, run, print the tally."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_path", description=__doc__)
    parser.add_argument("--inputs", type=int, default=300_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", type=int, help="run just the input with this number")
    parser.add_argument("--kind", choices=KINDS, default="all", help="of what (default: all)")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    sys.stdout.write(f"seed {arguments.seed}, codec from {Path(codec.__file__).parent}\n")
    if arguments.only is not None:
        sys.stdout.write(f"{fuzz_one(arguments.seed, arguments.only, arguments.kind)}\n")
        return 0
    started = time.monotonic()
    tally = fuzz(arguments.inputs, seed=arguments.seed, kind=arguments.kind)
    for ending, count in tally.most_common():
        sys.stdout.write(f"{count:>12,}  {ending}\n")
    elapsed_s = time.monotonic() - started
    sys.stdout.write(f"{arguments.inputs:,} inputs in {elapsed_s:.0f} s, nothing wrong\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
