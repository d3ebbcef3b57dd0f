"""What has once ended a whole server by one connection: bytes that any stranger can send.

Each is a few pieces; before the next piece the server has said something, or has had a moment for
it. The first half needs nothing but HTTP/1.1. The second speaks HTTP/2 in clear text, by an upgrade
or by its preface, to servers that should not.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable

HOST = b"Host: x\r\n"
HANDSHAKE = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE = range(9)
CONTINUATION = 9
END_STREAM, END_HEADERS = 0x1, 0x4

Fields = Iterable[tuple[bytes, bytes]]


def upgrade(
    more: bytes = b"", *, handshake: bytes = HANDSHAKE, target: bytes = b"/stream"
) -> bytes:
    """A WebSocket handshake with more header lines."""
    return b"GET %b HTTP/1.1\r\n%b%b%b\r\n" % (target, HOST, handshake, more)


def h2c(settings: bytes) -> bytes:
    """A request to go on in HTTP/2."""
    return (
        b"GET /healthz HTTP/1.1\r\n%bConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: %b\r\n\r\n" % (HOST, settings)
    )


def h2_frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    """A frame of HTTP/2 (RFC 9113 section 4.1)."""
    return len(payload).to_bytes(3, "big") + struct.pack("!BBI", kind, flags, stream) + payload


def fields(names_and_values: Fields) -> bytes:
    """Header fields without compression (RFC 7541 section 6.2.2)."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in names_and_values)


def _text(text: bytes) -> bytes:
    length, head = len(text), bytearray()
    if length < 127:
        return bytes([length]) + text
    head.append(127)
    length -= 127
    while length >= 128:
        head.append(length % 128 | 128)
        length //= 128
    head.append(length)
    return bytes(head) + text


def h2_request(
    *more: tuple[bytes, bytes],
    method: bytes = b"GET",
    path: bytes | None = b"/healthz",
    stream: int = 1,
    flags: int = END_STREAM | END_HEADERS,
) -> bytes:
    """The frame that begins a request."""
    pseudo = [(b":method", method), (b":scheme", b"http"), (b":authority", b"x")]
    if path is not None:
        pseudo.insert(1, (b":path", path))
    return h2_frame(HEADERS, fields([*pseudo, *more]), flags=flags, stream=stream)


def begin_h2(*frames: bytes) -> bytes:
    """The preface, the first settings, and what comes with them."""
    return PREFACE + h2_frame(SETTINGS) + b"".join(frames)


def priorities(count: int) -> bytes:
    """So many streams are given a weight, and none is opened."""
    weight = struct.pack("!IB", 0, 0)
    return b"".join(h2_frame(PRIORITY, weight, stream=2 * n + 1) for n in range(count))


def settings_of(*values: tuple[int, int]) -> bytes:
    """What HTTP2-Settings holds."""
    packed = b"".join(struct.pack("!HI", name, value) for name, value in values)
    return base64.urlsafe_b64encode(packed).rstrip(b"=")


CONNECT = [(b":method", b"CONNECT"), (b":authority", b"x")]
KILLERS: dict[str, tuple[bytes, ...]] = {
    "subprotocol above ASCII": (upgrade(b"Sec-WebSocket-Protocol: \xff\r\n"),),
    "extension above ASCII": (upgrade(b"Sec-WebSocket-Extensions: \xff\r\n"),),
    "connection above ASCII": (
        upgrade(handshake=HANDSHAKE.replace(b" Upgrade\r\n", b" Upgrade, \xff\r\n", 1)),
    ),
    "frame with the handshake": (upgrade() + b"\x81\x82\0\0\0\0{}",),
    "half a frame with the handshake": (upgrade() + b"\x81",),
    "h2c settings of one letter": (h2c(b"A"),),
    "h2c settings too short": (h2c(b"AAAA"),),
    "h2c settings with a wrong value": (h2c(settings_of((2, 7))),),
    "h2 path above ASCII": (begin_h2(h2_request(path=b"/\xff\xfe")),),
    "h2 method above ASCII": (begin_h2(h2_request(method=b"\xff")),),
    "h2 data after the answer": (
        begin_h2(h2_request(method=b"POST", path=b"/calls", flags=END_HEADERS)),
        h2_frame(SETTINGS, flags=1),  # the answer comes after the server's own
        h2_frame(DATA, b"x" * 10, stream=1),
    ),
    "h2 CONNECT without a path": (
        begin_h2(h2_frame(HEADERS, fields(CONNECT), flags=END_HEADERS, stream=1)),
    ),
    "h2 2,000 priorities": (begin_h2(priorities(2_000)),),
}
"""By what is wrong with them."""
