"""The pump behind TLS: what it passes by itself, and what it leaves to Python."""

from __future__ import annotations

import json
import select
import shutil
import socket
import ssl
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked
from websockets.frames import Frame, Opcode

import codec
from codec.latency import Histogram, Latencies
from codec.path import MediaPath, WebSocket
from codec.pump import Descriptor, Left, Pump
from codec.tls import AVAILABLE
from server.media import plane as plane_module
from server.media.bounds import MAX_INBOX, Bounds
from server.media.plane import Plane
from server.media.wire import MESSAGES_PER_PASS
from tests.support.inputs import inputs
from tests.support.path_messages import audio, media, open_path
from tests.support.path_reference import texts
from tests.support.peers import messages
from tests.support.tls_peers import Authority, Linked, authority_in, parts_of
from tests.support.websocket_oracle import write_frames

pytestmark = [
    pytest.mark.skipif(not AVAILABLE, reason="built without OpenSSL"),
    pytest.mark.skipif(not plane_module.AVAILABLE, reason="needs epoll"),
    pytest.mark.sockets,
]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority_in(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def model(authority: Authority) -> Iterator[Linked]:
    """A connection to a model, its handshake done."""
    linked = model_of(authority)
    yield linked
    linked.close()


def model_of(authority: Authority) -> Linked:
    linked = Linked(authority.compiled(), authority.server())
    linked.shake_hands()
    return linked


def pumps_of(linked: Linked, path: MediaPath, phone: Descriptor) -> tuple[Pump, Pump]:
    """From the model, behind TLS, and to it."""
    latencies = Latencies(), Histogram([1.0])
    return (
        Pump(path, linked.ours, phone, *latencies, from_phone=False),
        Pump(path, phone, linked.ours, *latencies, from_phone=True),
    )


@pytest.fixture
def phone() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    for each in (near, far):
        each.setblocking(False)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    yield near, far
    for each in (near, far):
        each.close()


@settings(
    max_examples=inputs(40),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    size=st.sampled_from([80, 960, 9000]),
    records=st.lists(st.floats(0, 1), max_size=6),
    cuts=st.lists(st.floats(0, 1), max_size=6),
)
def test_the_pump_passes_frames_however_records_cut_them(authority, phone, size, records, cuts):
    linked, path, expected = model_of(authority), open_path(), open_path()
    near, far = phone
    pump, _ = pumps_of(linked, path, Descriptor(near.fileno()))
    spoken = [audio(bytes([number]) * size) for number in range(4)]
    frames = write_frames([Frame(Opcode.TEXT, each) for each in spoken], masked=False)
    expected.model.receive(frames)
    assert expected.next_from_model(0.0) is None

    sealed = b""
    for part in parts_of(frames, records):
        sealed += linked.server.sealed(part)
    left = Left.NOTHING
    for part in parts_of(sealed, cuts):
        linked.server.far.sendall(part)
        while left is Left.READING or select.select([linked.ours], [], [], 0)[0]:
            left = Left(pump.run(0.0))
    heard = far.recv(1 << 20)
    linked.close()

    assert left is Left.NOTHING
    assert texts(heard, masked=False) == texts(expected.phone.take_output(), masked=False)


def test_the_pump_asks_nobody_where_a_record_has_only_begun(model, phone):
    path = open_path()
    pump, _ = pumps_of(model, path, Descriptor(phone[0].fileno()))
    sealed = model.server.sealed(
        write_frames([Frame(Opcode.TEXT, audio(bytes(960)))], masked=False)
    )

    model.server.far.sendall(sealed[:500])
    begun = pump.run(0.0)
    model.server.far.sendall(sealed[500:])

    assert (begun, pump.run(0.0)) == (Left.NOTHING, Left.NOTHING)
    assert phone[1].recv(65536)


def test_the_pump_writes_to_tls_itself_and_loses_nothing_when_that_is_full(model, phone):
    path = open_path()
    _, pump = pumps_of(model, path, Descriptor(phone[0].fileno()))
    decoder, said, left, chunk = codec.MulawDecoder(16_000), b"", Left.NOTHING, bytes(range(160))

    for number in range(1, 3000):
        frame = Frame(Opcode.TEXT, media(chunk, number))
        phone[1].sendall(write_frames([frame], masked=True))
        said += decoder.decode(chunk)
        left = Left(pump.run(0.0))
        if left is not Left.NOTHING:
            break
    model.server.take()
    while path.model.output_bytes:
        path.model.output_written(model.ours.send(path.model.next_output(65536)))
        model.server.take()
    messages = [json.loads(text) for text in texts(model.server.read(), masked=True)]

    assert left is Left.OUTPUT
    heard = [b64decode(each["realtimeInput"]["audio"]["data"]) for each in messages]
    assert b"".join(heard) == said


@pytest.mark.parametrize("lacks", range(6))
def test_a_line_is_closed_whichever_memory_there_is_none_for(authority, phone, lacks):
    testing = pytest.importorskip("_testcapi")
    model = model_of(authority)
    pump, _ = pumps_of(model, open_path(), Descriptor(phone[0].fileno()))
    pump.run(0.0)  # has read the sessions that the model offers
    close = model.ours.close

    testing.set_nomemory(lacks, lacks + 1)
    try:
        close()
    finally:
        testing.remove_mem_hooks()

    assert model.ours.fileno() == -1
    assert model.ours.version() is None
    model.close()


@pytest.mark.parametrize("how", ["goodbye", "tampered"])
def test_the_pump_leaves_to_python_what_comes_behind_audio(model, phone, how):
    path = open_path()
    pump, _ = pumps_of(model, path, Descriptor(phone[0].fileno()))
    frame = write_frames([Frame(Opcode.TEXT, audio(bytes(960)))], masked=False)
    model.server.far.sendall(model.server.sealed(frame))
    if how == "goodbye":
        with pytest.raises(ssl.SSLWantReadError):
            model.server.tls.unwrap()
        model.server.give()
    else:
        record = model.server.sealed(b"x")
        model.server.far.sendall(record[:-1] + bytes([record[-1] ^ 1]))

    assert pump.run(0.0) == Left.READING
    assert phone[1].recv(65536)
    assert pump.run(0.0) == Left.READING


FRAGMENT_BYTES = 512  # the least that a record can be bound to


@contextmanager
def halves_of_a_ticket(authority: Authority, file: Path) -> Iterator[tuple[Linked, bytes, bytes]]:
    """A connection whose server has one more message of TLS for us, in two records."""
    # A ticket has the host's name in it, and is longer than a record because that is.
    host = ".".join(["x" * 63] * 3 + ["y" * 61])
    authority.ca.issue_cert(host).private_key_and_cert_chain_pem.write_to_path(file)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = f"""openssl s_server -accept 127.0.0.1:{port} -cert {file} -servername {host}
        -cert2 {file} -key2 {file} -max_send_frag {FRAGMENT_BYTES} -num_tickets 1 -no_anti_replay
        -max_early_data 16384 -ciphersuites TLS_AES_256_GCM_SHA384 -context {"c" * 32}"""
    server = subprocess.Popen(
        command.split(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert server.stdout is not None
    try:
        while b"ACCEPT" not in server.stdout.readline():
            assert server.poll() is None
        with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
            linked = Linked(authority.compiled(), authority.server(), host)
            far, records = linked.server.far, line.makefile("rb")
            with pytest.raises(ssl.SSLWantReadError):
                linked.ours.do_handshake()
            line.sendall(far.recv(65536))
            while linked.ours.version() is None:
                far.sendall(record_of(records))
                with suppress(ssl.SSLWantReadError):
                    linked.ours.do_handshake()
            line.sendall(far.recv(65536))
            first = record_of(records)
            if len(first) < FRAGMENT_BYTES:
                pytest.skip("this OpenSSL's tickets are too short to be cut")
            yield linked, first, record_of(records)
            linked.close()
    finally:
        server.kill()
        server.communicate()


def record_of(file: IO[bytes]) -> bytes:
    head = file.read(5)
    return head + file.read(int.from_bytes(head[3:], "big"))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_who_could_not_write_while_half_a_message_was_here_is_told_of_the_rest(
    authority, phone, tmp_path
):
    path = open_path()
    with halves_of_a_ticket(authority, tmp_path / "server.pem") as (linked, first, second):
        from_model, to_model = pumps_of(linked, path, Descriptor(phone[0].fileno()))
        spoken = write_frames([Frame(Opcode.TEXT, media(bytes(160), 1))], masked=True)

        linked.server.far.sendall(first)
        read = [from_model.run(0.0)]
        phone[1].sendall(spoken)
        written = to_model.run(0.0)
        with pytest.raises(ssl.SSLWantReadError):
            linked.ours.send(path.model.next_output(65536))
        read.append(from_model.run(0.0))
        linked.server.far.sendall(second)
        read.append(from_model.run(0.0))

        assert written == Left.OUTPUT
        assert read == [Left.NOTHING, Left.READING, Left.READING]
        assert not linked.ours.pending()
        assert linked.ours.send(path.model.next_output(65536)) == path.model.output_bytes
        assert from_model.run(0.0) == Left.NOTHING


# -- the plane --------------------------------------------------------------------------------


@pytest.fixture
async def plane(nursery: trio.Nursery) -> Plane:
    plane = Plane()
    await nursery.start(plane.run)
    return plane


def frames_of(count: int, size: int) -> bytes:
    """As many messages, each with its number."""
    numbered = [b"%d " % number for number in range(count)]
    return write_frames(
        [Frame(Opcode.TEXT, each + b"x" * (size - len(each))) for each in numbered], masked=False
    )


def number_of(message: tuple[bytes, bool] | None) -> int:
    assert message is not None
    return int(message[0].split()[0])


def test_what_a_peer_has_said_is_read_after_a_write_that_failed(model):
    model.server.far.sendall(model.server.sealed(b"last words"))
    model.server.far.close()

    for _ in range(2):
        with pytest.raises(OSError, match="Broken pipe"):
            model.ours.send(b"x" * 100)

    assert model.ours.recv(100) == b"last words"
    assert model.ours.recv(100) == b""
    with pytest.raises(OSError, match="Broken pipe"):
        model.ours.send(b"x")


async def test_the_last_words_behind_tls_are_heard_though_a_write_has_failed(plane, model):
    wire = plane.new_wire(model.ours, WebSocket(is_client=True, max_message_bytes=65536))
    model.server.far.sendall(model.server.sealed(frames_of(30, 200)))
    model.server.far.close()
    wire.send_text(b"for somebody who has gone")

    with trio.fail_after(60):
        heard = [int(message.split()[0]) async for message in messages(wire)]

    assert heard == list(range(30))
    wire.close()


async def test_behind_tls_nothing_is_forgotten_that_has_once_been_offered(plane, model):
    wire = plane.new_wire(model.ours, WebSocket(is_client=True, max_message_bytes=65536))
    sent = 0
    while not wire.websocket.output_bytes:
        wire.send_text(b"." * 500)  # whole, or not at all
        sent += 1
    wire.forget_unsent()
    wire.send_text(b"next")
    peer, read = WebSocket(is_client=False, max_message_bytes=65536), []
    with trio.fail_after(60):
        while b"next" not in read:
            peer.receive(model.server.read())
            read += iter(peer.next_message, None)
            await trio.lowlevel.checkpoint()

    assert read == [b"." * 500] * sent + [b"next"]
    wire.close()


async def test_what_tls_holds_waits_for_room_and_is_read_then(plane, model):
    bounds = Bounds(read_bytes=4096, inbox=10, backlog_bytes=4096)
    frames = frames_of(75, 200)
    assert 3 * bounds.read_bytes < len(frames) < 16384
    # One record: what of it is left after a read is TLS's, and the socket tells nothing of it.
    model.server.far.sendall(model.server.sealed(frames))
    websocket = WebSocket(is_client=True, max_message_bytes=65536)
    wire = plane.new_wire(model.ours, websocket, bounds=bounds)
    await wait_all_tasks_blocked(0.01)
    unheard = len(wire._inbox)

    with trio.fail_after(60):
        heard = [number_of(await wire.receive()) for _ in range(75)]

    assert unheard <= 2 * 4096 // 200
    assert heard == list(range(75))
    wire.close()


async def test_what_tls_had_read_before_there_was_a_wire_is_heard(plane, model):
    # One record: behind the handshake's answer is more than whoever shook hands asked for.
    model.server.far.sendall(model.server.sealed(b"HTTP/1.1 101 \r\n\r\n" + frames_of(30, 200)))
    early = model.ours.recv(1000).partition(b"\r\n\r\n")[2]

    wire = plane.new_wire(model.ours, WebSocket(is_client=True, max_message_bytes=65536), early)
    with trio.fail_after(60):
        heard = [number_of(await wire.receive()) for _ in range(30)]

    assert heard == list(range(30))
    wire.close()


async def test_a_flood_that_nobody_takes_stays_with_the_peer(plane, model, nursery):
    count = 10 * MAX_INBOX
    wire = plane.new_wire(model.ours, WebSocket(is_client=True, max_message_bytes=65536))

    async def flood() -> None:
        far = trio.socket.from_stdlib_socket(model.server.far)
        left = memoryview(model.server.sealed(frames_of(count, 2000)))
        while left:
            left = left[await far.send(left) :]

    nursery.start_soon(flood)
    await wait_all_tasks_blocked(0.05)
    unheard = len(wire._inbox)
    with trio.fail_after(60):
        heard = [number_of(await wire.receive()) for _ in range(count)]

    assert unheard < MAX_INBOX + MESSAGES_PER_PASS
    assert heard == list(range(count))
    wire.close()
