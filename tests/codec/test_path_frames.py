"""RFC 6455 as ``codec`` speaks it, held against the ``websockets`` library's own parser."""

from __future__ import annotations

import os
import struct
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from codec.path import WebSocket
from tests.support.inputs import inputs
from tests.support.websocket_oracle import (
    FIXED_KEY,
    Outcome,
    compare,
    fixed_random,
    ours,
    read_frames,
    write_frames,
)

LIMIT = 300
"""Small, so that what is found with a few bytes is found."""


def server(max_message_bytes: int = LIMIT) -> WebSocket:
    return WebSocket(is_client=False, max_message_bytes=max_message_bytes)


def client(max_message_bytes: int = LIMIT) -> WebSocket:
    return WebSocket(is_client=True, max_message_bytes=max_message_bytes, random=fixed_random)


# --- Streams to hold against the library ----------------------------------------------------------

payloads = st.one_of(
    st.binary(max_size=12),
    st.text(max_size=12).map(str.encode),
    # Either side of the three forms of a length, and of our limit.
    st.sampled_from([0, 1, 2, 124, 125, 126, 127, LIMIT - 1, LIMIT, LIMIT + 1]).map(bytes),
)
close_payloads = st.tuples(
    st.one_of(
        st.sampled_from([0, 999, 1000, 1001, 1004, 1005, 1006, 1011, 1014, 1015, 2999, 3000, 4999]),
        st.integers(0, 0xFFFF),
    ),
    st.one_of(st.text(max_size=8).map(str.encode), st.binary(max_size=8)),
).map(lambda close: struct.pack("!H", close[0]) + close[1])


@st.composite
def frames(draw: st.DrawFn, *, masked: bool) -> bytes:
    """One frame, right or wrong in any of the ways a header can be wrong."""
    opcode = draw(st.one_of(st.sampled_from([0, 1, 2, 8, 9, 10]), st.integers(0, 15)))
    payload = draw(close_payloads if opcode == 8 and draw(st.booleans()) else payloads)
    final = 0x80 if opcode >= 8 or draw(st.booleans()) else 0
    fault = draw(st.sampled_from([None] * 8 + ["reserved", "final", "mask", "length"]))
    reserved = draw(st.sampled_from([0x40, 0x20, 0x10])) if fault == "reserved" else 0
    if fault == "final":
        final ^= 0x80
    if fault == "mask":
        masked = not masked
    length = len(payload)
    if fault == "length":
        length = draw(st.sampled_from([length + 1, 2**16, 2**31, 2**63, 2**64 - 1]))
    mask_bit = 0x80 if masked else 0
    # A length may be written longer than it needs to be; the library lets that pass, and so we.
    shortest = 0 if length < 126 else 1 if length < 2**16 else 2
    form = draw(st.integers(shortest, 2))
    header = bytes([final | reserved | opcode]) + (
        bytes([mask_bit | length])
        if form == 0
        else struct.pack("!BH", mask_bit | 126, length)
        if form == 1
        else struct.pack("!BQ", mask_bit | 127, length)
    )
    if masked:
        header += FIXED_KEY
        payload = bytes(byte ^ FIXED_KEY[i % 4] for i, byte in enumerate(payload))
    return header + payload


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, bool]:
    """A stream of frames as one side's peer may send it, and whether that side is a client."""
    is_client = draw(st.booleans())
    data = b"".join(draw(st.lists(frames(masked=not is_client), max_size=6)))
    return data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data, is_client


@settings(max_examples=inputs(400))
@given(streams())
def test_accepts_and_refuses_what_the_library_does(stream: tuple[bytes, bool]) -> None:
    data, is_client = stream

    compare(data, is_client=is_client, max_message_bytes=LIMIT)


@settings(max_examples=inputs(200))
@given(streams(), st.data())
def test_every_split_gives_the_same(stream: tuple[bytes, bool], data: st.DataObject) -> None:
    content, is_client = stream
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=6)))
    pieces = [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]

    whole = ours([content], is_client=is_client, max_message_bytes=LIMIT)

    in_pieces = ours(pieces, is_client=is_client, max_message_bytes=LIMIT)
    assert in_pieces.with_the_latest_pong == whole
    singly = [content[at : at + 1] for at in range(len(content))]
    assert ours(singly, is_client=is_client, max_message_bytes=LIMIT).with_the_latest_pong == whole


# --- Receiving ------------------------------------------------------------------------------------


def refused(data: bytes, *, is_client: bool = False, limit: int = LIMIT) -> Outcome:
    outcome = compare(data, is_client=is_client, max_message_bytes=limit)
    assert outcome.failure is not None
    assert outcome.close_code == 1006
    return outcome


@pytest.mark.parametrize(
    ("header", "code"),
    [
        pytest.param(b"\xc1\x80", 1002, id="first reserved bit"),
        pytest.param(b"\xa1\x80", 1002, id="second reserved bit"),
        pytest.param(b"\x91\x80", 1002, id="third reserved bit"),
        pytest.param(b"\x83\x80", 1002, id="reserved data opcode"),
        pytest.param(b"\x8b\x80", 1002, id="reserved control opcode"),
        pytest.param(b"\x81\x00", 1002, id="unmasked frame of a client"),
        pytest.param(b"\x09\x80", 1002, id="ping in fragments"),
        pytest.param(b"\x89\xfe\x00\x7e", 1002, id="ping of 126 bytes"),
        pytest.param(b"\x80\x80", 1002, id="continuation of nothing"),
        pytest.param(b"\x82\xfe\x01\x2d", 1009, id="one byte over the limit"),
        pytest.param(b"\x82\xff" + b"\x00\x00\x00\x00\x00\x10\x00\x00", 1009, id="1 MiB"),
        pytest.param(b"\x82\xff" + b"\x80" + bytes(7), 1009, id="2 to the 63rd"),
        pytest.param(b"\x82\xff" + b"\xff" * 8, 1009, id="2 to the 64th less one"),
    ],
)
def test_refuses_at_the_header_before_the_payload_has_come(header: bytes, code: int) -> None:
    assert refused(header).close_code_sent == code


def test_a_server_must_not_mask() -> None:
    assert refused(b"\x81\x80\x00\x00\x00\x00", is_client=True).close_code_sent == 1002


def test_a_new_message_within_fragments_is_refused() -> None:
    data = write_frames(
        [Frame(Opcode.TEXT, b"a", fin=False), Frame(Opcode.TEXT, b"b")], masked=True
    )

    assert refused(data).close_code_sent == 1002


def test_fragments_count_together_towards_the_limit() -> None:
    parts = [Frame(Opcode.BINARY, bytes(200), fin=False), Frame(Opcode.CONT, bytes(101))]

    assert refused(write_frames(parts, masked=True)).close_code_sent == 1009


def test_a_ping_between_fragments_does_not_count_towards_the_limit() -> None:
    websocket = server()
    parts = [
        Frame(Opcode.BINARY, bytes(LIMIT - 1), fin=False),
        Frame(Opcode.PING, b"still there?"),
        Frame(Opcode.CONT, b"\x01"),
    ]

    websocket.receive(write_frames(parts, masked=True))

    assert websocket.next_message() == bytes(LIMIT - 1) + b"\x01"
    assert websocket.take_output() == b"\x8a\x0cstill there?"


@pytest.mark.parametrize(
    "text", [b"\xff", b"\xc3", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"ok \x80 ok ok"]
)
def test_text_that_is_not_utf8_closes_with_1007(text: bytes) -> None:
    assert refused(write_frames([Frame(Opcode.TEXT, text)], masked=True)).close_code_sent == 1007


def test_a_character_may_be_cut_between_fragments() -> None:
    websocket = server()
    parts = [Frame(Opcode.TEXT, b"h\xc3", fin=False), Frame(Opcode.CONT, b"\xa9")]

    websocket.receive(write_frames(parts, masked=True))

    assert websocket.next_message() == "hé".encode()
    assert websocket.is_text


def test_binary_is_not_text() -> None:
    websocket = client()

    websocket.receive(write_frames([Frame(Opcode.BINARY, b"\xff")], masked=False))

    assert websocket.next_message() == b"\xff"
    assert not websocket.is_text


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"\x03", 1002),
        (struct.pack("!H", 999), 1002),
        (struct.pack("!H", 1004), 1002),
        (struct.pack("!H", 1005), 1002),
        (struct.pack("!H", 1006), 1002),
        (struct.pack("!H", 1015), 1002),
        (struct.pack("!H", 2999), 1002),
        (struct.pack("!H", 5000), 1002),
        (struct.pack("!H", 1000) + b"\xff", 1007),
    ],
)
def test_a_bad_close_frame_is_refused(payload: bytes, code: int) -> None:
    data = write_frames([Frame(Opcode.CLOSE, payload)], masked=True)

    assert refused(data).close_code_sent == code


@pytest.mark.parametrize(
    ("payload", "code", "reason"),
    [
        (b"", 1005, ""),
        (struct.pack("!H", 1000), 1000, ""),
        (struct.pack("!H", 1011) + "zu spät".encode(), 1011, "zu spät"),
        (struct.pack("!H", 4321) + b"ours", 4321, "ours"),
    ],
)
def test_a_close_is_answered_with_the_same_and_remembered(
    payload: bytes, code: int, reason: str
) -> None:
    websocket = client()

    websocket.receive(write_frames([Frame(Opcode.CLOSE, payload)], masked=False))

    assert websocket.next_message() is None
    assert websocket.ended
    assert not websocket.is_open
    assert (websocket.close_code, websocket.close_reason) == (code, reason)
    assert websocket.failure is None
    [answer] = read_frames(websocket.take_output(), masked=True)
    assert (answer.opcode, bytes(answer.data)) == (Opcode.CLOSE, payload)


def test_what_came_before_a_close_is_still_given_and_nothing_after_it() -> None:
    websocket = server()
    parts = [
        Frame(Opcode.TEXT, b"stop"),
        Frame(Opcode.CLOSE, b"\x03\xe8"),
        Frame(Opcode.TEXT, b"late"),
    ]

    websocket.receive(write_frames(parts, masked=True))

    assert not websocket.ended
    assert websocket.next_message() == b"stop"
    assert websocket.next_message() is None
    assert websocket.ended
    websocket.receive(write_frames([Frame(Opcode.TEXT, b"later")], masked=True))
    assert websocket.next_message() is None


def test_after_our_own_close_messages_are_received_until_the_answer() -> None:
    websocket = server()

    websocket.send_close(1008, "bad ticket")
    websocket.receive(write_frames([Frame(Opcode.TEXT, b"meanwhile")], masked=True))

    assert not websocket.is_open
    assert websocket.next_message() == b"meanwhile"
    websocket.receive(write_frames([Frame(Opcode.CLOSE, b"\x03\xf0")], masked=True))
    assert websocket.next_message() is None
    assert (websocket.close_code, websocket.close_code_sent) == (1008, 1008)
    [only] = read_frames(websocket.take_output(), masked=False)
    assert bytes(only.data) == b"\x03\xf0bad ticket"


def test_a_lost_connection_is_1006_and_sends_nothing() -> None:
    websocket = server()
    websocket.receive(b"\x81\xfe\x00")

    websocket.receive_eof()

    assert websocket.next_message() is None
    assert (websocket.ended, websocket.close_code, websocket.is_open) == (True, 1006, False)
    assert websocket.take_output() == b""


def test_a_connection_lost_after_a_close_keeps_its_code() -> None:
    websocket = server()
    websocket.receive(write_frames([Frame(Opcode.CLOSE, b"\x03\xe9")], masked=True))
    websocket.next_message()

    websocket.receive_eof()

    assert websocket.close_code == 1001


def test_a_message_of_sixteen_mebibytes_passes_where_it_may() -> None:
    websocket = client(16 * 2**20)
    message = os.urandom(16 * 2**20)
    data = write_frames([Frame(Opcode.BINARY, message)], masked=False)

    for start in range(0, len(data), 65536):
        websocket.receive(data[start : start + 65536])
        received = websocket.next_message()

    assert received == message


def test_takes_any_kind_of_bytes() -> None:
    websocket = server()
    data = write_frames([Frame(Opcode.TEXT, b"abc")], masked=True)

    websocket.receive(bytearray(data[:2]))
    websocket.receive(memoryview(data)[2:5])
    websocket.receive(data[5:])

    assert websocket.next_message() == b"abc"
    with pytest.raises(TypeError):
        websocket.receive("abc")  # type: ignore[arg-type]
    with pytest.raises(BufferError):
        websocket.receive(memoryview(b"abcdef")[::2])


# --- Sending --------------------------------------------------------------------------------------


def pings(*payloads: bytes, masked: bool) -> bytes:
    return write_frames([Frame(Opcode.PING, payload) for payload in payloads], masked=masked)


@pytest.mark.parametrize("is_client", [False, True])
def test_of_pings_that_come_together_the_latest_is_answered(is_client: bool) -> None:
    websocket = client() if is_client else server()
    many = [b"%d" % number for number in range(1000)]

    websocket.receive(pings(*many, masked=not is_client))
    assert websocket.next_message() is None

    assert websocket.output_bytes == (9 if is_client else 5)
    [pong] = read_frames(websocket.take_output(), masked=is_client)
    assert (pong.opcode, bytes(pong.data)) == (Opcode.PONG, b"999")
    assert websocket.take_output() == b""


def test_while_output_waits_one_pong_is_owed_and_comes_after_it() -> None:
    websocket = server()
    websocket.send_text(b"abc")
    for number in range(1000):
        websocket.receive(pings(b"%03d" % number, masked=True))
        websocket.next_message()

    assert websocket.output_bytes == 10
    assert websocket.next_output(100) == b"\x81\x03abc"
    websocket.output_written(5)
    assert websocket.next_output(100) == b"\x8a\x03999"
    websocket.output_written(5)
    assert websocket.output_bytes == 0


def test_a_pong_that_is_owed_goes_before_a_close_and_is_not_owed_twice() -> None:
    websocket = server()
    parts = [Frame(Opcode.PING, b"x"), Frame(Opcode.CLOSE, b"\x03\xe8")]

    websocket.receive(write_frames(parts, masked=True))
    websocket.next_message()

    assert websocket.take_output() == b"\x8a\x01x\x88\x02\x03\xe8"


def test_output_is_given_piece_by_piece_until_it_is_written() -> None:
    websocket = server()
    websocket.send_text(b"abcdef")

    assert websocket.next_output(4) == websocket.next_output(4) == b"\x81\x06ab"
    websocket.output_written(3)
    websocket.send_text(b"g")
    assert websocket.next_output(100) == b"bcdef\x81\x01g"
    with pytest.raises(ValueError, match="more was written"):
        websocket.output_written(9)
    websocket.output_written(8)
    assert websocket.next_output(100) == b""


def test_what_cannot_be_written_can_be_dropped() -> None:
    websocket = server()
    websocket.send_text(b"abc")
    websocket.receive(pings(b"x", masked=True))
    websocket.next_message()

    websocket.drop_output()

    assert websocket.output_bytes == 0
    assert websocket.take_output() == b""


def test_what_is_unsent_can_be_forgotten_behind_the_frame_that_is_begun() -> None:
    websocket = server()
    for text in (b"whole", b"begun", b"speech", b"a mark"):
        websocket.send_text(text)
    websocket.output_written(7 + 3)

    websocket.forget_unsent()
    websocket.send_text(b"clear")

    assert websocket.take_output() == b"egun" + b"\x81\x05clear"


def test_of_what_is_unsent_the_close_and_the_pong_are_not_forgotten() -> None:
    websocket = server()
    websocket.send_text(b"speech")
    websocket.receive(pings(b"x", masked=True))
    websocket.next_message()
    websocket.send_close(1000)

    websocket.forget_unsent()

    assert websocket.output_bytes == 7
    assert websocket.take_output() == b"\x8a\x01x\x88\x02\x03\xe8"


def test_a_pong_that_is_owed_is_not_forgotten_with_what_it_waits_for() -> None:
    websocket = server()
    websocket.send_text(b"speech")
    half = write_frames([Frame(Opcode.TEXT, b"in two ", fin=False)], masked=True)
    websocket.receive(half + pings(b"x", masked=True))
    assert websocket.next_message() is None

    websocket.forget_unsent()
    websocket.receive(write_frames([Frame(Opcode.CONT, b"pieces")], masked=True))

    assert websocket.next_message() == b"in two pieces"
    assert websocket.next_output(100) == b"\x8a\x01x"


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536])
@pytest.mark.parametrize("is_client", [False, True])
def test_a_frame_that_is_begun_is_finished_wherever_the_socket_stopped(
    size: int, is_client: bool
) -> None:
    message = os.urandom(size)
    whole = WebSocket(is_client=is_client, max_message_bytes=LIMIT)
    whole.send_binary(message)
    length = whole.output_bytes
    for written in {1, 2, 5, 9, length // 2, length - 1, length} & set(range(1, length + 1)):
        websocket = WebSocket(is_client=is_client, max_message_bytes=LIMIT)
        for payload in (message, message, b"more"):
            websocket.send_binary(payload)
        data = websocket.next_output(written)
        websocket.output_written(written)

        websocket.forget_unsent()
        websocket.send_text(b"clear")

        read = read_frames(data + websocket.take_output(), masked=is_client)
        assert [bytes(frame.data) for frame in read] == [message, b"clear"]


@dataclass
class Peer:
    """What the other end reads of a WebSocket whose socket takes its output piece by piece."""

    websocket: WebSocket
    waiting: deque[tuple[Opcode, bytes, int]] = field(default_factory=deque)
    taken: int = 0
    owed: bytes | None = None
    expected: list[tuple[Opcode, bytes]] = field(default_factory=list)
    data: bytes = b""

    def put(self, opcode: Opcode, payload: bytes) -> None:
        size = 2 + len(payload) + (4 if self.websocket.is_client else 0)
        size += 0 if len(payload) < 126 else 2 if len(payload) < 65_536 else 8
        self.waiting.append((opcode, payload, size))

    def take(self, size: int) -> None:
        if not self.waiting and self.owed is not None:
            self.put(Opcode.PONG, self.owed)
            self.owed = None
        data = self.websocket.next_output(size)
        self.data += data
        self.websocket.output_written(len(data))
        self.taken += len(data)
        while self.waiting and self.taken >= self.waiting[0][2]:
            opcode, payload, whole = self.waiting.popleft()
            self.expected.append((opcode, payload))
            self.taken -= whole

    def forget(self) -> None:
        begun = 1 if self.taken else 0
        rest = [each for each in list(self.waiting)[begun:] if each[0] >= 8]
        self.waiting = deque([*list(self.waiting)[:begun], *rest])
        self.websocket.forget_unsent()


acts = st.one_of(
    st.tuples(st.sampled_from(["text", "binary"]), st.sampled_from([0, 1, 9, 125, 126, 65_600])),
    st.tuples(st.just("take"), st.one_of(st.integers(1, 20), st.integers(1, 70_000))),
    st.tuples(st.sampled_from(["ping", "forget"]), st.integers(0, 125)),
)


@given(is_client=st.booleans(), said=st.lists(acts, max_size=30), closes=st.booleans())
@settings(max_examples=inputs(300))
def test_whatever_is_forgotten_the_peer_reads_whole_frames_in_their_order(
    is_client: bool, said: list[tuple[str, int]], closes: bool
) -> None:
    websocket = WebSocket(is_client=is_client, max_message_bytes=LIMIT)
    peer = Peer(websocket)
    for number, (act, size) in enumerate([*said, ("close", 0)] if closes else said):
        payload = bytes([number]) * size
        match act:
            case "text":
                websocket.send_text(payload)
                peer.put(Opcode.TEXT, payload)
            case "binary":
                websocket.send_binary(payload)
                peer.put(Opcode.BINARY, payload)
            case "take":
                peer.take(size)
            case "ping":
                websocket.receive(pings(payload, masked=not is_client))
                assert websocket.next_message() is None
                peer.owed = payload
            case "forget":
                peer.forget()
            case "close":
                websocket.send_close(1000)
                if peer.owed is not None:
                    peer.put(Opcode.PONG, peer.owed)
                    peer.owed = None
                peer.put(Opcode.CLOSE, b"\x03\xe8")
                peer.forget()
    while websocket.output_bytes:
        peer.take(50_000)

    read = read_frames(peer.data, masked=is_client)
    assert [(frame.opcode, bytes(frame.data)) for frame in read] == peer.expected
    assert not peer.waiting


def test_whoever_is_refused_is_told_and_no_longer_heard() -> None:
    websocket = server()
    websocket.receive(write_frames([Frame(Opcode.TEXT, b"unread")], masked=True))

    websocket.refuse(1008, "too much")
    websocket.refuse(1011, "again")
    websocket.receive(write_frames([Frame(Opcode.TEXT, b"more")], masked=True))

    assert websocket.next_message() is None
    assert websocket.ended
    assert (websocket.failure, websocket.close_code_sent) == ("too much", 1008)
    assert websocket.take_output() == b"\x88\x0a\x03\xf0too much"


def test_every_frame_is_counted_whatever_it_is() -> None:
    websocket = server()
    parts = [
        Frame(Opcode.PING, b""),
        Frame(Opcode.PONG, b""),
        Frame(Opcode.TEXT, b"", fin=False),
        Frame(Opcode.CONT, b"", fin=False),
        Frame(Opcode.CONT, b""),
    ]
    data = write_frames(parts, masked=True)

    websocket.receive(data + data[:-1])
    while websocket.next_message() is not None:
        pass

    assert websocket.frames == 9


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 200_001])
@pytest.mark.parametrize("is_client", [False, True])
def test_the_library_reads_what_we_write(size: int, is_client: bool) -> None:
    message = os.urandom(size)
    websocket = WebSocket(is_client=is_client, max_message_bytes=LIMIT)

    websocket.send_text(message)
    websocket.send_text(b"next")

    first, second = read_frames(websocket.take_output(), masked=is_client)
    assert (first.opcode, first.fin, bytes(first.data)) == (Opcode.TEXT, True, message)
    assert bytes(second.data) == b"next"


def test_mask_keys_come_from_the_operating_system_and_never_twice() -> None:
    websocket = WebSocket(is_client=True, max_message_bytes=LIMIT)

    for _ in range(1000):
        websocket.send_text(b"")
    data = websocket.take_output()

    keys = {data[at + 2 : at + 6] for at in range(0, len(data), 6)}
    assert len(keys) > 990  # two of a thousand are the same once in nine thousand runs


def test_a_failing_source_of_keys_leaves_nothing_half_written() -> None:
    def broken(size: int) -> bytes:
        raise OSError("no entropy")

    websocket = WebSocket(is_client=True, max_message_bytes=LIMIT, random=broken)

    with pytest.raises(OSError, match="no entropy"):
        websocket.send_text(b"abc")

    assert websocket.take_output() == b""


def test_nothing_is_sent_after_a_close() -> None:
    websocket = server()
    websocket.send_close()
    websocket.send_close(1011, "again")

    with pytest.raises(ValueError, match="closed for sending"):
        websocket.send_text(b"abc")

    assert websocket.take_output() == b"\x88\x02\x03\xe8"


def test_refuses_to_send_a_close_that_may_not_be_sent() -> None:
    websocket = server()

    with pytest.raises(ValueError, match="1005"):
        websocket.send_close(1005)
    with pytest.raises(ValueError, match="123 bytes"):
        websocket.send_close(1000, "ü" * 62)

    assert websocket.is_open


def test_counts_what_waits_to_be_written() -> None:
    websocket = server()

    websocket.send_text(b"abc")

    assert websocket.output_bytes == 5
    websocket.take_output()
    assert websocket.output_bytes == 0
