"""What a stranger's connection says: nearly HTTP, nearly WebSockets, and other protocols.

All of it is made from one generator of random numbers, so that a conversation is repeated by its
number. Nothing here knows a socket: :mod:`tests.fuzz_socket` delivers it.
"""

from __future__ import annotations

import base64
import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.load.killers import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HANDSHAKE,
    HEADERS,
    HOST,
    KILLERS,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    begin_h2,
    fields,
    h2_frame,
    h2_request,
    h2c,
    priorities,
    settings_of,
    upgrade,
)
from benchmarks.load.stranger import frame
from tests.fuzz_path import cut, many_frames, mutate, one_frame

LEAVE, HALF_CLOSE, RESET, STAY = "leave", "half-close", "reset", "stay"
MAX_BYTES = 256 * 1024
"""Of one part: four times what the server takes of anything."""


@dataclass(frozen=True, slots=True)
class Part:
    """One input: what is sent, in which pieces, and how long an answer is waited for."""

    kind: str
    pieces: tuple[bytes, ...]
    pause_s: float
    """Between the pieces; 0 leaves it to TCP how they arrive."""
    listen_s: float

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Conversation:
    """What one connection says, part by part while the server listens, and how it ends."""

    parts: tuple[Part, ...]
    ending: str
    tls: str
    """How it begins where the port expects TLS: as ``"http/1.1"``, ``"h2"`` or nothing is agreed
    on, or ``"none"`` of it."""


# ------------------------------------------------------------------------------------------
# Heads


METHODS = (
    [b"GET"] * 8 + [b"POST"] * 6 + [b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE"]
)
ODD_METHODS = [
    b"CONNECT", b"PRI", b"get", b"Get", b"", b" GET", b"G\x00T", b"\xff", b"M-SEARCH", b"GET\t",
    b"A" * 300, b"GE\r\nT", b"\x16\x03\x01", b"{}", b"\xc3\xa9",
]  # fmt: skip
PATHS = [
    b"/healthz", b"/readyz", b"/metrics", b"/docs", b"/openapi.json", b"/", b"/stream", b"/twiml",
    b"/stream/0", b"/stream/1",
    b"/call-status", b"/amd-status", b"/transfer-status", b"/make-call", b"/calls",
    b"/calls?limit=5", b"/calls/CA" + b"0" * 32, b"/calls/CA0/recording", b"/drain",
]  # fmt: skip
ODD_TARGETS = [
    b"*", b"", b"?", b"/?", b"//", b"///stream", b"/stream/", b"/stream/7", b"/stream/" + b"9" * 30,
    b"/%", b"/%zz", b"/%ff",
    b"/%ff%00%0d%0a", b"/\xff", b"/\xc3\xa9", b"/a b", b"/\x00", b"/healthz#x", b"/healthz?\xff=1",
    b"/healthz?a=%ff&a=%00", b"/..", b"/../../etc/passwd", b"/%2e%2e/%2e%2e/", b"/" + b"a" * 9_000,
    b"/?" + b"a=1&" * 3_000, b"http://x/healthz", b"https://x:443/stream", b"http://\xff/",
    b"http://[::1/healthz", b"http:///", b"x:443", b"[::1]:443", b"//x@y/stream", b"ws://x/stream",
    b"/stream?ticket=" + b"A" * 500, b"/calls/%00", b"/calls/" + b"%F0%9F%98%80" * 20, b"\\stream",
    b"/calls?limit=99999999999999999999", b"/calls?limit=-1&before=\xff", b"/twiml?%",
]  # fmt: skip
VERSIONS = [
    b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/9.9", b"HTTP/0.9", b"HTTP/1", b"HTTP/11.1",
    b"http/1.1", b"HTTP/1.1 ", b"", b"ICY", b"HTTP/-1.1", b"HTTP/1.\xff", b"RTSP/1.0", b"SIP/2.0",
    b"HTTP/\xd9\xa1.1", b"HTTP/1.10",
]  # fmt: skip
ODD_VALUES = [
    b"", b" ", b"\t\t", b"\x00", b"\xff", b"\xc3\xa9", b"\x7f", b"\x01", b"a" * 5_000, b"-1", b"0",
    b"1", b"99999999999999999999", b"1e3", b"0x10", b"+5", b"5, 5", b"5,6", b",", b",,", b";", b'"',
    b"%00", b"{}", b"a\rb", b"chunked", b"identity", b"gzip", b"chunked, chunked", b"close",
    b"keep-alive", b"Upgrade", b"upgrade, close", b"h2c", b"websocket", b"WebSocket", b"13", b"12",
    b"13, 8", b"x" * 20_000, "\u202e\u2028".encode(), b"=?utf-8?q?=C3?=", b"127.0.0.1", b"::1",
    b"\xff" * 200, b"a, \xff", b"a; b=\xfe", b"100-continue",
]  # fmt: skip
VALUES = {
    b"Host": [b"x", b"localhost", b"x:80", b"[::1]", b"\xff"],
    b"Connection": [b"close", b"keep-alive", b"Upgrade", b"keep-alive, Upgrade", b"TE"],
    b"Upgrade": [b"websocket", b"h2c", b"HTTP/2.0", b"TLS/1.0", b"websocket, h2c"],
    b"Sec-WebSocket-Key": [b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhl", b"x" * 24],
    b"Sec-WebSocket-Version": [b"13", b"8", b"7", b"0"],
    b"Sec-WebSocket-Protocol": [b"audio", b"a, b", b"graphql-ws"],
    b"Sec-WebSocket-Extensions": [
        b"permessage-deflate", b"permessage-deflate; client_max_window_bits=99", b"x-webkit-deflate"
    ],
    b"Sec-WebSocket-Accept": [b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="],
    b"HTTP2-Settings": [b"AAMAAABkAAQAoAAAAAIAAAAA", b"A", b"AAAA", b"", settings_of((2, 7))],
    b"Content-Length": [b"0", b"2", b"5", b"100", b"70000", b"9" * 30],
    b"Transfer-Encoding": [b"chunked", b"gzip, chunked", b"identity", b" chunked", b"CHUNKED"],
    b"TE": [b"trailers", b"chunked"],
    b"Trailer": [b"X-A", b"Content-Length"],
    b"Expect": [b"100-continue", b"200-ok"],
    b"Content-Type": [
        b"application/json", b"application/x-www-form-urlencoded", b"text/plain; charset=utf-16",
        b"multipart/form-data; boundary=x", b"multipart/form-data", b"application/json; charset=x",
        b'multipart/form-data; boundary="\xff"',
    ],
    b"Content-Encoding": [b"gzip", b"br", b"identity"],
    b"Authorization": [b"Bearer x", b"Bearer", b"Basic eDp5", b"Bearer \xff"],
    b"X-API-Key": [b"guess", b"\xff\xfe"],
    b"Idempotency-Key": [b"once", b"x" * 300],
    b"X-Twilio-Signature": [b"AAAAAAAAAAAAAAAAAAAAAAAAAAA="],
    b"X-Twilio-Webhooks-Signature-Settings": [b"key=KY1,algorithm=HMAC_SHA256", b"key"],
    b"X-Forwarded-For": [b"1.2.3.4", b"1.2.3.4, 5.6.7.8", b"::1", b"unknown", b"fe80::1%eth0"],
    b"X-Forwarded-Proto": [b"https", b"http, https"],
    b"X-Forwarded-Host": [b"example.com"],
    b"Forwarded": [b"for=1.2.3.4;proto=https", b'for="[::1]"'],
    b"Origin": [b"null", b"https://example.com"],
    b"Access-Control-Request-Method": [b"POST"],
    b"Cookie": [b"a=b", b"a=b; c=\xff", b"=;=;"],
    b"Range": [b"bytes=0-5", b"bytes=5-0", b"bytes=-", b"bytes=0-0,1-1,2-2"],
    b"If-None-Match": [b"*", b'"x"'],
    b"If-Modified-Since": [b"Sat, 29 Oct 1994 19:43:31 GMT", b"0"],
    b"Accept": [b"*/*", b"text/html;q=9"],
    b"Accept-Encoding": [b"gzip"],
    b"User-Agent": [b"TwilioProxy/1.1"],
    b"Proxy-Connection": [b"keep-alive"],
    b":path": [b"/healthz"],
    b"X-A": [b"b"],
}  # fmt: skip
NAMES = list(VALUES)
ENDS = [b"\n", b"\r", b"\r\r\n", b"\n\r", b"\x0b", b"\x85", b""]


def method(rng: random.Random) -> bytes:
    return rng.choice(METHODS if rng.random() < 0.9 else ODD_METHODS)


def target(rng: random.Random) -> bytes:
    return rng.choice(PATHS if rng.random() < 0.7 else ODD_TARGETS)


def version(rng: random.Random) -> bytes:
    return b"HTTP/1.1" if rng.random() < 0.9 else rng.choice(VERSIONS)


def value(rng: random.Random, name: bytes) -> bytes:
    """A field's value: a possible one, an odd one, or one with a byte that is not ASCII."""
    chance = rng.random()
    if chance < 0.5:
        return rng.choice(VALUES[name])
    if chance < 0.8:
        return rng.choice(ODD_VALUES)
    possible = rng.choice(VALUES[name])
    if chance < 0.9:
        at = rng.randrange(len(possible) + 1)
        return possible[:at] + bytes([rng.randrange(128, 256)]) + possible[at:]
    return mutate(rng, possible)


def field(rng: random.Random, name: bytes | None = None) -> bytes:
    """A header line, now and then written as no header line may be."""
    name = name or rng.choice(NAMES)
    said = value(rng, name)
    end = b"\r\n" if rng.random() < 0.97 else rng.choice(ENDS)
    match rng.randrange(60):
        case 0:
            return name + b": " + said + b"\r\n folded" + end
        case 1:
            return name + b" : " + said + end
        case 2:
            return name + end
        case 3:
            return b": " + said + end
        case 4:
            return name[:3] + b"\0" + name[3:] + b": " + said + end
        case 5:
            return name[:3] + b"\xff" + name[3:] + b": " + said + end
        case 6:
            return name.swapcase() + b":" + said + end
        case 7:
            return (name + b": " + said + end) * rng.choice([2, 3, 150])
        case 8:
            return b" " + name + b": " + said + end
        case 9:
            return name + b": " + said + b"\0" + end
    return name + b": " + said + end


def fields_of(rng: random.Random, *names: bytes) -> bytes:
    """Some lines of any names, and these for certain, in any order."""
    lines = [field(rng, name) for name in names]
    lines += [field(rng) for _ in range(rng.choice([0, 1, 2, 2, 4, 8]))]
    if rng.random() < 0.95:
        lines.append(HOST)
    rng.shuffle(lines)
    return b"".join(lines)


def head(rng: random.Random, *names: bytes, end: bytes = b"\r\n") -> bytes:
    """A whole request head."""
    said = b" ".join([method(rng), target(rng), version(rng)]) + b"\r\n" + fields_of(rng, *names)
    return said + (end if rng.random() < 0.98 else rng.choice(ENDS))


# ------------------------------------------------------------------------------------------
# Bodies


FORM = b"CallSid=CA" + b"0" * 32 + b"&CallStatus=ringing&From=%2B15005550006"
BODIES = [
    b"", b"x", b"hello", FORM, b"a=%ff&b=%zz&%00", b"&" * 2_000, b"CallSid=" + b"A" * 9_000,
    b'{"destination_number": "+15005550101"}', b"{", b"[" * 3_000, b"null", b"\xff\xfe{\0}\0",
    b"\xef\xbb\xbf{}",
    b'--x\r\nContent-Disposition: form-data; name="CallSid"\r\n\r\nCA\r\n--x--\r\n',
    b"--x\r\n\xff: \xff\r\n\r\n",
    b"--x\r\nContent-Disposition: form-data; name=\xff\r\n\r\n\r\n--x",
    b"y" * 70_000, b"\x00" * 100,
]  # fmt: skip
CHUNK_HEADS = [
    b"5", b"05", b"5;x", b'5;x="y"', b"5 ", b" 5", b"-5", b"+5", b"0x5", b"5g", b"", b"f" * 8,
    b"f" * 16, b"f" * 40, b"\xff", b"5;\xff=\xfe", b"5;" + b"x" * 5_000, b"5\t", b"5,5", b"G",
]  # fmt: skip
FRAMINGS = [
    b"Content-Length: %d\r\n",
    b"Content-Length: %d\r\nContent-Length: %d\r\n",
    b"Content-Length: %d, %d\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    b"Transfer-Encoding:\tchunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
]


def chunks(rng: random.Random, body: bytes) -> bytes:
    """A chunked body; some of its sizes are none."""
    coded, rest = b"", body
    while rest and len(coded) < MAX_BYTES:
        size = rng.choice([1, 5, 1_000, len(rest)])
        piece, rest = rest[:size], rest[size:]
        size_line = b"%x" % len(piece) if rng.random() < 0.9 else rng.choice(CHUNK_HEADS)
        end = b"\r\n" if rng.random() < 0.97 else rng.choice(ENDS)
        coded += size_line + end + piece + end
    trailers = fields_of(rng) if rng.random() < 0.2 else b""
    return coded + b"0\r\n" + trailers + b"\r\n"


def request(rng: random.Random) -> list[bytes]:
    """A request without a body."""
    return [head(rng)]


def polite(rng: random.Random) -> list[bytes]:
    """A request with nothing wrong, after which the connection goes on."""
    return [b"GET %b HTTP/1.1\r\n%b\r\n" % (rng.choice(PATHS), HOST)]


def post(rng: random.Random) -> list[bytes]:
    """A request with a body, whose length is told in one way, in two, or wrongly."""
    body = rng.choice(BODIES)
    framing = rng.choice(FRAMINGS)
    sizes = [len(body), len(body), len(body) + 1, 0, 10**9]
    framing %= tuple(rng.choice(sizes) for _ in range(framing.count(b"%d")))
    coded = chunks(rng, body) if b"hunked" in framing else body
    kind = b"Content-Type: " + rng.choice(VALUES[b"Content-Type"]) + b"\r\n"
    path = target(rng)
    verb = b"POST" if rng.random() < 0.9 else method(rng)
    lines = framing + kind + (fields_of(rng) if rng.random() < 0.4 else HOST)
    whole = b"%b %b %b\r\n%b\r\n" % (verb, path, version(rng), lines)
    if rng.random() < 0.3:
        return [whole, coded]
    return [whole + coded]


def expect(rng: random.Random) -> list[bytes]:
    """A body that wants to be asked for."""
    first = b"POST %b %b\r\n%bExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    body = rng.choice(BODIES)
    asked = first % (target(rng), version(rng), HOST, len(body))
    return [asked, body] if rng.random() < 0.7 else [asked + body + polite(rng)[0]]


def pipelined(rng: random.Random) -> list[bytes]:
    """Several requests in one go; what follows a body that is too long is the smuggler's."""
    makers = [request, polite, polite, post, handshake]
    return [b"".join(b"".join(rng.choice(makers)(rng)) for _ in range(rng.randrange(2, 12)))]


# ------------------------------------------------------------------------------------------
# WebSockets


HANDSHAKE_NAMES = [
    b"Connection", b"Upgrade", b"Sec-WebSocket-Version", b"Sec-WebSocket-Key",
    b"Sec-WebSocket-Protocol", b"Sec-WebSocket-Extensions", b"X-Twilio-Signature",
    b"X-Forwarded-For", b"Origin", b"Content-Length", b"Transfer-Encoding", b"Expect", b"Host",
]  # fmt: skip
TICKET = {"customParameters": {"ticket": "A" * 22}, "mediaFormat": {"encoding": "audio/x-mulaw"}}
MESSAGES = [
    {"event": "connected", "protocol": "Call", "version": "1.0.0"},
    {
        "event": "start",
        "streamSid": "MZ0",
        "start": {"callSid": "CA0", "streamSid": "MZ0"} | TICKET,
    },
    {"event": "start"},
    {"event": "media", "streamSid": "MZ0", "media": {"payload": "//8=", "chunk": "1"}},
    {"event": "mark", "mark": {"name": "1"}},
    {"event": "stop", "stop": {}},
    {"event": 7},
    {},
    [],
]


def handshake(rng: random.Random) -> list[bytes]:
    """An upgrade with one line or several of the handshake broken, doubled or missing."""
    lines = HANDSHAKE.splitlines(keepends=True)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        name = rng.choice(HANDSHAKE_NAMES)
        own = [at for at, line in enumerate(lines) if line.startswith(name)]
        match rng.randrange(4):
            case 0 if own:
                del lines[own[0]]
            case 1 if own:
                lines[own[0]] = mutate(rng, lines[own[0]])
            case 2 if own:
                lines[own[0]] = field(rng, name)
            case _:
                lines.append(field(rng, name))
    rng.shuffle(lines)
    verb = b"GET" if rng.random() < 0.95 else method(rng)
    path = b"/stream" if rng.random() < 0.8 else target(rng)
    return [b"%b %b %b\r\n%b%b\r\n" % (verb, path, version(rng), HOST, b"".join(lines))]


def frames(rng: random.Random) -> list[bytes]:
    """Frames on an open socket: any opcode, length and flag, or messages of a media stream."""
    said = []
    for _ in range(rng.choice([1, 1, 2, 4])):
        match rng.randrange(6):
            case 0:
                message = json.dumps(rng.choice(MESSAGES)).encode()
                said.append(frame(mutate(rng, message) if rng.random() < 0.3 else message))
            case 1:
                ping = one_frame(rng, 9, masked=True, limit=300)
                said.append(ping * rng.choice([1, 50, 400]))
            case 2:
                said.append(one_frame(rng, rng.randrange(16), masked=True, limit=70_000))
            case 3:
                said.append(many_frames(rng, masked=True, limit=300))
            case 4:
                code = rng.choice([0, 999, 1000, 1004, 1005, 1006, 1015, 2999, 5000, 65535])
                reason = rng.choice([b"", b"bye", b"\xff\xfe", b"x" * 123, b"y" * 130])
                said.append(frame(struct.pack("!H", code) + reason, first=0x88))
            case 5:
                size = rng.choice([0, 5, 125, 126, 65_535, 65_536, 2**31, 2**63 - 1, 2**64 - 1])
                wide = struct.pack("!BBQ", rng.choice([0x81, 0x82, 0x80, 0x89, 1]), 0xFF, size)
                narrow = struct.pack("!BBH", 0x81, 0xFE, size % 65_536)
                said.append(rng.choice([wide, narrow]) + b"\0\0\0\0" + b"x" * min(size, 300))
    return said


def media_socket(rng: random.Random) -> list[bytes]:
    """A handshake and frames, in one segment or after the answer."""
    opening = upgrade() if rng.random() < 0.8 else handshake(rng)[0]
    said = frames(rng)
    if rng.random() < 0.25:
        return [opening + said[0], *said[1:]]
    return [opening, *said]


# ------------------------------------------------------------------------------------------
# HTTP/2, which is not spoken here


H2_PSEUDO = [b":method", b":path", b":scheme", b":authority", b":protocol", b":status", b":x", b":"]


def h2c_upgrade(rng: random.Random) -> list[bytes]:
    """A request to go on in HTTP/2, and perhaps its frames as if that had been granted."""
    odd = [(rng.randrange(12), rng.choice([0, 1, 2, 7, 2**14, 2**31, 2**32 - 1])) for _ in range(3)]
    settings = rng.choice(
        [
            settings_of(*odd[: rng.randrange(4)]),
            rng.choice(VALUES[b"HTTP2-Settings"]),
            base64.urlsafe_b64encode(rng.randbytes(rng.randrange(20))),
            rng.choice(ODD_VALUES),
            mutate(rng, settings_of(*odd)),
        ]
    )
    asked = h2c(settings)
    if rng.random() < 0.3:
        line = rng.choice([b"HTTP2-Settings: A\r\n", field(rng), b"Content-Length: 0\r\n"])
        asked = asked[:-2] + line + b"\r\n"
    return [asked, *h2(rng)[: rng.randrange(3)]]


def h2_frames(rng: random.Random) -> bytes:
    """Some frame, or a flood of them."""
    stream = rng.choice([0, 1, 1, 1, 2, 3, 5, 2**31 - 1, 2**32 - 1])
    flags = rng.choice([0, END_STREAM, END_HEADERS, END_STREAM | END_HEADERS, 0x20, 0xFF])
    match rng.randrange(13):
        case 0:
            names = [b"content-length", b"", b"X-A", b"cookie", b"\xff", b"te", b"x" * 200]
            names = [rng.choice(names + H2_PSEUDO) for _ in range(rng.randrange(5))]
            odd = [(name, rng.choice(ODD_VALUES)) for name in names]
            return h2_request(*odd, method=method(rng), path=target(rng), stream=1)
        case 1:
            names = [rng.choice(H2_PSEUDO) for _ in range(rng.randrange(4))]
            odd = [(name, rng.choice(ODD_VALUES + PATHS + METHODS)) for name in names]
            return h2_frame(HEADERS, fields(odd), flags=flags, stream=stream)
        case 2:
            return h2_frame(DATA, rng.choice(BODIES)[:16_000], flags=flags, stream=stream)
        case 3:
            return priorities(rng.choice([1, 50, 1_100, 2_000]))
        case 4:
            depends = struct.pack("!IB", rng.choice([0, 1, 3, 99, stream & 0x7FFFFFFF]), 1)
            return h2_frame(PRIORITY, depends, stream=stream)
        case 5:
            resets = []
            for number in range(1, 2 * rng.choice([1, 20, 100]), 2):
                resets.append(h2_request(stream=number))
                resets.append(h2_frame(RST_STREAM, b"\0\0\0\x08", stream=number))
            return b"".join(resets)
        case 6:
            odd = struct.pack("!HI", rng.randrange(10), rng.choice([0, 1, 2**16, 2**31, 2**32 - 1]))
            return h2_frame(SETTINGS, odd * rng.choice([1, 3]), flags=rng.choice([0, 1]))
        case 7:
            step = struct.pack("!I", rng.choice([0, 1, 2**31 - 1, 2**32 - 1]))
            return h2_frame(WINDOW_UPDATE, step, stream=stream)
        case 8:
            return h2_frame(PING, b"x" * rng.choice([8, 8, 0, 9])) * rng.choice([1, 100])
        case 9:
            return h2_frame(GOAWAY, bytes(8) + rng.choice(ODD_VALUES)[:16_000])
        case 10:
            promised = struct.pack("!I", 2) + fields([(b":path", b"/")])
            return h2_frame(PUSH_PROMISE, promised, flags=flags, stream=stream)
        case 11:
            begun = h2_request(stream=1, flags=END_STREAM)
            more = h2_frame(CONTINUATION, fields([(b"x", b"y" * 100)]), flags=flags, stream=stream)
            return begun + more * rng.choice([1, 30])
    return h2_frame(
        rng.randrange(256), rng.randbytes(rng.randrange(40)), flags=flags, stream=stream
    )


def h2(rng: random.Random) -> list[bytes]:
    """The preface and frames; or half of it, or something that is nearly it."""
    said = [h2_frames(rng) for _ in range(rng.choice([0, 1, 1, 2, 4]))]
    if rng.random() < 0.6:
        said.insert(0, h2_request(method=rng.choice([b"GET", b"POST"]), path=rng.choice(PATHS)))
    match rng.randrange(10):
        case 0:
            return [PREFACE[: rng.randrange(len(PREFACE))]]
        case 1:
            return [mutate(rng, PREFACE), *said]
        case 2:
            return [b"PRI * HTTP/2.0\r\n" + fields_of(rng) + b"\r\nSM\r\n\r\n", *said]
    if rng.random() < 0.5:
        return [begin_h2(*said)]
    return [begin_h2(), *said]


# ------------------------------------------------------------------------------------------
# What is something else


def tls_record(rng: random.Random) -> list[bytes]:
    """A ClientHello and what else TLS may begin with."""
    name = rng.choice([b"localhost", b"\xff" * 10, b"", b"x" * 255])
    sni = struct.pack("!HHBH", len(name) + 5, len(name) + 3, 0, len(name)) + name
    alpn = rng.choice([b"\x02h2", b"\x08http/1.1", b"\x00", b"\xffx", b"\x02h2\x08http/1.1"])
    extensions = struct.pack("!H", 0) + sni
    extensions += struct.pack("!HHH", 16, len(alpn) + 2, len(alpn)) + alpn
    extensions += struct.pack("!HH", rng.randrange(65_536), 4) + rng.randbytes(4)
    ciphers = b"\x13\x01\x13\x02\xc0\x2f\x00\xff"
    hello = b"\x03\x03" + rng.randbytes(32) + b"\0" + struct.pack("!H", len(ciphers)) + ciphers
    hello += b"\x01\0" + struct.pack("!H", len(extensions)) + extensions
    whole = b"\x01" + len(hello).to_bytes(3, "big") + hello
    record = struct.pack("!BHH", 22, rng.choice([0x301, 0x303, 0x200, 0xFFFF]), len(whole)) + whole
    alert = b"\x15\x03\x03\0\x02\x02\x28"
    return rng.choice(
        [
            [record],
            [record, alert],
            [mutate(rng, record)],
            [record[: rng.randrange(len(record))]],
            [alert],
            [b"\x80\x2e\x01\0\x02\0\x15\0\0\0\x10" + rng.randbytes(30)],  # SSL 2
            [struct.pack("!BHH", rng.randrange(20, 25), 0x303, 16_384) + rng.randbytes(300)],
        ]
    )


def proxy_line(rng: random.Random) -> list[bytes]:
    """The PROXY protocol, which no proxy is asked for here."""
    lines = [
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
        b"PROXY UNKNOWN\r\n",
        b"PROXY TCP6 ::1 ::1 99999 -1\r\n",
        b"PROXY \xff\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + rng.randbytes(12),
        b"\r\n\r\n\0\r\nQUIT\n\x20\0\xff\xff",
    ]
    return [rng.choice(lines) + (polite(rng)[0] if rng.random() < 0.7 else b"")]


def elsewhere(rng: random.Random) -> list[bytes]:
    """Bytes that were meant for another kind of server, or for none."""
    said = [
        b"EHLO x\r\nMAIL FROM:<>\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"INVITE sip:x@y SIP/2.0\r\nVia: SIP/2.0/TCP x\r\n\r\n",
        b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"\0" * 300,
        b"\r\n" * 3_000,
        b"\n",
        b" \r\n" + polite(rng)[0],
        b"\x05\x01\0",
        b"<policy-file-request/>\0",
        b"GET /healthz\r\n",
        b"GET  /healthz  HTTP/1.1\r\nHost: x\r\n\r\n",
        rng.randbytes(rng.choice([1, 20, 500, 4_000])),
    ]
    return [rng.choice(said)]


def killer(rng: random.Random) -> list[bytes]:
    """What has once ended a server, with something about it changed or not."""
    pieces = list(rng.choice(list(KILLERS.values())))
    if rng.random() < 0.6:
        at = rng.randrange(len(pieces))
        pieces[at] = mutate(rng, pieces[at])
    return pieces


# ------------------------------------------------------------------------------------------
# Conversations


MAKERS: dict[str, tuple[int, Callable[[random.Random], list[bytes]]]] = {
    "request": (16, request),
    "polite": (10, polite),
    "post": (12, post),
    "expect": (4, expect),
    "pipelined": (5, pipelined),
    "handshake": (14, handshake),
    "media socket": (16, media_socket),
    "h2c": (6, h2c_upgrade),
    "h2": (10, h2),
    "TLS record": (3, tls_record),
    "PROXY line": (2, proxy_line),
    "elsewhere": (3, elsewhere),
    "killer": (4, killer),
}
"""What is said, and how often."""
KINDS = list(MAKERS)
WEIGHTS = [weight for weight, _ in MAKERS.values()]
LISTENS_S = [0.0] * 6 + [0.004] * 9 + [0.03] * 3 + [0.2]
"""Mostly just until the server may have answered."""


def conversation(rng: random.Random) -> Conversation:
    """What the next connection says."""
    said: list[tuple[str, bytes]] = []
    for _ in range(rng.choice([0, 0, 0, 1, 4])):
        said += [("polite", data) for data in polite(rng)]
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        (kind,) = rng.choices(KINDS, WEIGHTS)
        said += [(kind, data) for data in MAKERS[kind][1](rng)]
    if rng.random() < 0.25:
        said = disturbed(rng, said)
    parts = tuple(part(rng, kind, data) for kind, data in said if data)
    ending = rng.choices([LEAVE, HALF_CLOSE, RESET, STAY], [70, 15, 14, 1])[0]
    tls = rng.choices(["http/1.1", "h2", "", "none"], [60, 10, 15, 15])[0]
    return Conversation(parts, ending, tls)


def disturbed(rng: random.Random, said: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """The same with bits turned, blocks repeated, pieces of something else, or an early end."""
    at = rng.randrange(len(said))
    kind, data = said[at]
    match rng.randrange(6):
        case 0:
            return [*said[:at], (kind, data[: rng.randrange(len(data) + 1)])]
        case 1:
            other = b"".join(MAKERS[rng.choice(KINDS)][1](rng))
            middle = rng.randrange(len(data) + 1)
            data = data[:middle] + other[rng.randrange(len(other) + 1) :]
        case 2:
            begin = rng.randrange(len(data) + 1)
            block = data[begin : begin + rng.choice([1, 10, 100, 1_000])]
            data = data[:begin] + block * rng.choice([2, 3, 40]) + data[begin:]
        case 3:
            begin = rng.randrange(len(data) + 1)
            data = data[:begin] + bytes([rng.randrange(128, 256)]) + data[begin:]
        case _:
            data = mutate(rng, data)
    return [*said[:at], (kind, data[:MAX_BYTES]), *said[at + 1 :]]


def part(rng: random.Random, kind: str, data: bytes) -> Part:
    """One input in the pieces in which it is sent."""
    pieces, pause_s = [data[:MAX_BYTES]], 0.0
    chance = rng.random()
    if chance < 0.02 and len(data) <= 400:
        pieces = [data[at : at + 1] for at in range(len(data))]
    elif chance < 0.25 and len(data) <= 20_000:
        pieces = cut(rng, data) if chance < 0.2 else pieces
        pieces = pieces if len(pieces) <= 8 else [data]
        pause_s = rng.choice([0.0, 0.0, 0.001, 0.003])
    return Part(kind, tuple(piece for piece in pieces if piece), pause_s, rng.choice(LISTENS_S))


def numbered(seed: int, number: int) -> Conversation:
    """The conversation with this number."""
    return conversation(random.Random(f"{seed}:socket:{number}"))


def named(name: str) -> Conversation:
    """A killer as it was, each piece after an answer."""
    return Conversation(
        tuple(Part("killer", (data,), 0.0, 0.5) for data in KILLERS[name]), LEAVE, "http/1.1"
    )
