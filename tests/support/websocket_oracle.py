"""What the ``websockets`` library makes of a stream of bytes, to hold our framing to the same.

Our parser refuses at a frame's header what the library refuses once the whole frame is there, so
the library is given zeros until it has made up its mind. It differs on purpose in one more way:
the library counts a control frame between fragments towards the message's limit, we do not. And the
library answers every ping, we the latest of those that came together (RFC 6455 5.5.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from websockets.exceptions import PayloadTooBig
from websockets.frames import CLOSE, CONT, PING, TEXT, Frame, Opcode
from websockets.protocol import CLIENT, SERVER, Protocol
from websockets.streams import StreamReader

from codec.path import WebSocket

FIXED_KEY = b"\x37\xfa\x21\x3d"


def fixed_random(size: int) -> bytes:
    """A mask key everyone knows, so that outputs can be compared."""
    return (FIXED_KEY * (size // 4 + 1))[:size]


@dataclass
class Outcome:
    """All that a peer or a caller could see."""

    messages: list[tuple[bool, bytes]] = field(default_factory=list)
    """Complete messages, with whether each was text."""
    pongs: list[bytes] = field(default_factory=list)
    close_code_sent: int | None = None
    close_code: int | None = None
    close_reason: str = ""
    failure: str | None = None
    """None for a stream that is fine so far or was closed in good order."""

    @property
    def with_the_latest_pong(self) -> Outcome:
        """The same, if all pings had come together."""
        return replace(self, pongs=self.pongs[-1:])


def ours(pieces: Iterable[bytes], *, is_client: bool, max_message_bytes: int) -> Outcome:
    """Feed the pieces to a :class:`WebSocket`."""
    websocket = WebSocket(
        is_client=is_client, max_message_bytes=max_message_bytes, random=fixed_random
    )
    outcome = Outcome()
    output = bytearray()
    for piece in pieces:
        websocket.receive(piece)
        while (message := websocket.next_message()) is not None:
            outcome.messages.append((websocket.is_text, message))
        output += websocket.take_output()
    for frame in read_frames(bytes(output), masked=is_client):
        if frame.opcode is CLOSE:
            assert websocket.close_code_sent is not None
        else:
            outcome.pongs.append(bytes(frame.data))
    outcome.close_code_sent = websocket.close_code_sent
    if websocket.ended:
        outcome.close_code = websocket.close_code
        outcome.close_reason = websocket.close_reason
    outcome.failure = websocket.failure
    return outcome


def theirs(
    data: bytes, *, is_client: bool, max_message_bytes: int, settle: bool
) -> tuple[Outcome, Protocol, int]:
    """Feed the same bytes to the library.

    Args:
        settle: Go on with zeros until the frame that is under way is complete.

    Returns:
        What it made of them, itself, and how many frames it accepted.
    """
    protocol = Protocol(CLIENT if is_client else SERVER, max_size=max_message_bytes)
    protocol.receive_data(data)
    frames = [event for event in protocol.events_received() if isinstance(event, Frame)]
    if settle and protocol.parser_exc is None:
        protocol.receive_data(bytes(max_message_bytes + 14))
        assert not protocol.events_received(), "the library accepts what we refuse"

    outcome = Outcome()
    message = bytearray()
    is_text = False
    for frame in frames:
        if frame.opcode is PING:
            outcome.pongs.append(bytes(frame.data))
        if frame.opcode not in (TEXT, Opcode.BINARY, CONT):
            continue
        if frame.opcode is not CONT:
            is_text = frame.opcode is TEXT
        message += frame.data
        if not frame.fin:
            continue
        if is_text and not _is_utf8(bytes(message)):
            # The library leaves this to the layer above, which fails with 1007.
            outcome.close_code_sent = 1007
            outcome.close_code = 1006
            outcome.failure = "text"
            return outcome, protocol, len(frames)
        outcome.messages.append((is_text, bytes(message)))
        message.clear()

    if protocol.close_sent is not None:
        outcome.close_code_sent = int(protocol.close_sent.code)
    received = protocol.close_rcvd
    if received is not None:
        outcome.close_code = int(received.code)
        outcome.close_reason = received.reason
    elif protocol.parser_exc is not None:
        outcome.close_code = 1006
    if protocol.parser_exc is not None:
        outcome.failure = str(protocol.parser_exc)
    return outcome, protocol, len(frames)


def compare(data: bytes, *, is_client: bool, max_message_bytes: int) -> Outcome:
    """Hold our framing against the library's for one stream; returns what we made of it."""
    mine = ours([data], is_client=is_client, max_message_bytes=max_message_bytes)
    other, protocol, frames_accepted = theirs(
        data,
        is_client=is_client,
        max_message_bytes=max_message_bytes,
        settle=mine.failure is not None and mine.close_code_sent != 1007,
    )
    if other.close_code_sent == 1009 and isinstance(protocol.parser_exc, PayloadTooBig):
        first, length = _header(data, frames_accepted)
        if first & 0x08:
            # A control frame: the library counts it towards the message around it.
            if first & 0x80 and not first & 0x70 and length <= 125:
                before = ours(
                    [data[: _frame_at(data, frames_accepted)]],
                    is_client=is_client,
                    max_message_bytes=max_message_bytes,
                )
                assert before.messages == other.messages, (mine, other)
                assert before.pongs == other.pongs[-1:], (mine, other)
                assert mine.messages[: len(other.messages)] == other.messages, (mine, other)
                return mine
            other.close_code_sent = 1002
    assert (mine.failure is None) == (other.failure is None), (mine, other)
    other.failure = mine.failure
    assert mine == other.with_the_latest_pong, (mine, other)
    return mine


def read_frames(data: bytes, *, masked: bool) -> list[Frame]:
    """Take a whole stream of frames apart with the library's parser."""
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    frames: list[Frame] = []
    while True:
        at_end = reader.at_eof()
        try:
            next(at_end)
        except StopIteration as stop:
            if stop.value:
                return frames
        parser = Frame.parse(reader.read_exact, mask=masked)
        try:
            next(parser)
        except StopIteration as stop:
            frames.append(stop.value)


def write_frames(frames: Sequence[Frame], *, masked: bool) -> bytes:
    """Put frames on the wire with the library's writer."""
    return b"".join(frame.serialize(mask=masked) for frame in frames)


def _header(data: bytes, index: int) -> tuple[int, int]:
    """First byte and payload length of the frame with this index."""
    at = _frame_at(data, index)
    return data[at], _lengths(data, at)[1]


def _frame_at(data: bytes, index: int) -> int:
    """Where the frame with this index begins."""
    at = 0
    for _ in range(index):
        at += sum(_lengths(data, at))
    return at


def _lengths(data: bytes, at: int) -> tuple[int, int]:
    """How long the header and the payload of the frame that begins here are."""
    length = data[at + 1] & 0x7F
    header_bytes = {126: 4, 127: 10}.get(length, 2)
    if header_bytes > 2:
        length = int.from_bytes(data[at + 2 : at + header_bytes], "big")
    return header_bytes + (4 if data[at + 1] & 0x80 else 0), length


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
