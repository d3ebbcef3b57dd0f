"""Frames that say nothing, on the ordinary path: what hypercorn makes of them with our bounds."""

from __future__ import annotations

import pytest
from hypercorn.protocol import ws_stream
from websockets.frames import Frame, Opcode
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.events import CloseConnection, Event, Ping, TextMessage

from server.hooks.bounded_frames import (
    MAX_BYTES_AFTER_CLOSE,
    MAX_IDLE_FRAMES,
    BoundedConnection,
    bound_frames,
)
from tests.support.kept_garbage import garbage_kept
from tests.support.websocket_oracle import write_frames


@pytest.fixture
def connection() -> BoundedConnection:
    return BoundedConnection(ConnectionType.SERVER, [])


def told(connection: BoundedConnection, *frames: Frame) -> list[Event]:
    connection.receive_data(write_frames(frames, masked=True))
    return list(connection.events())


def test_hypercorn_makes_its_connections_where_ours_is_put():
    bound_frames()
    headers = [(b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ==")]

    _, _, connection = ws_stream.Handshake(headers, "1.1").accept(None, [])

    assert type(connection) is BoundedConnection


def test_messages_go_through_and_of_pings_the_latest(connection):
    frames = [
        Frame(Opcode.PING, b"1"),
        Frame(Opcode.TEXT, b"one"),
        Frame(Opcode.PING, b"2"),
        Frame(Opcode.TEXT, b"t", fin=False),
        Frame(Opcode.CONT, b"wo"),
    ]

    assert told(connection, *frames) == [
        TextMessage("one"),
        TextMessage("t", message_finished=False),
        TextMessage("wo"),
        Ping(b"2"),
    ]


@pytest.mark.parametrize(
    "frames",
    [
        [Frame(Opcode.PING, b"")] * 100,
        [Frame(Opcode.PONG, b"x")] * 100,
        [Frame(Opcode.TEXT, b"x", fin=False), *[Frame(Opcode.CONT, b"x", fin=False)] * 100],
        [Frame(Opcode.TEXT, b"", fin=False), *[Frame(Opcode.CONT, b"", fin=False)] * 100],
        [Frame(Opcode.TEXT, b"x", fin=False), *[Frame(Opcode.PING, b"x")] * 100],
    ],
    ids=["pings", "pongs", "fragments of a byte", "empty fragments", "pings in a fragment"],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_many_frames_and_no_message_are_a_reason_to_close(connection, frames, at_once):
    events = []
    for some in [frames] if at_once else [[frame] for frame in frames]:
        if connection.state is ConnectionState.OPEN:
            events += told(connection, *some)

    assert isinstance(events[-1], CloseConnection)
    assert events[-1].code == 1008
    assert len(events) <= MAX_IDLE_FRAMES + 1
    # hypercorn answers a close with the same code, and ends the connection.
    answer = connection.send(events[-1].response())
    assert answer[:4] == b"\x88\x20\x03\xf0"


def test_frames_between_messages_are_no_reason(connection):
    for _ in range(10):
        frames = [Frame(Opcode.PING, b"")] * (MAX_IDLE_FRAMES - 1) + [Frame(Opcode.TEXT, b"x")]
        events = told(connection, *frames)

        assert [type(event) for event in events] == [TextMessage, Ping]


def test_after_our_close_nothing_is_kept_and_the_end_is_near(connection):
    connection.send(CloseConnection(1009))

    assert told(connection, Frame(Opcode.TEXT, b"late")) == []
    assert told(connection, Frame(Opcode.TEXT, b"x" * 1000, fin=False)) == []
    [end] = told(connection, Frame(Opcode.CONT, b"x" * MAX_BYTES_AFTER_CLOSE, fin=False))
    assert isinstance(end, CloseConnection)
    assert connection.state is ConnectionState.LOCAL_CLOSING  # nothing more is sent


def test_the_peers_own_close_ends_it(connection):
    frames = [Frame(Opcode.TEXT, b"x"), Frame(Opcode.CLOSE, b"\x03\xe8"), Frame(Opcode.PING, b"")]

    message, close = told(connection, *frames)

    assert message == TextMessage("x")
    assert isinstance(close, CloseConnection)
    assert close.code == 1000


@pytest.mark.parametrize("frames", [[], [Frame(Opcode.TEXT, b"one")]])
def test_a_connection_that_is_dropped_leaves_nothing_to_the_garbage_collector(frames):
    def make_and_drop() -> None:
        connection = BoundedConnection(ConnectionType.SERVER, [])
        if frames:
            told(connection, *frames)

    make_and_drop()
    with garbage_kept() as left:
        make_and_drop()

    assert left == []
