"""The pump between two sockets: what it passes on, and what it leaves to Python."""

from __future__ import annotations

import base64
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from websockets.frames import Frame, Opcode

import codec
from codec.latency import Histogram, Latencies
from codec.path import MediaPath, WebSocket
from codec.pump import Descriptor, Left, Pump, Pumps
from server.model.gemini.messages import AUDIO_MESSAGES
from tests.support.path_messages import SID, joined_path, media, open_path
from tests.support.path_reference import texts
from tests.support.websocket_oracle import write_frames

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there is no media plane")

CHUNK = bytes(range(160))
MARK = b'{"event":"mark","streamSid":"%b","mark":{"name":"1:20"}}' % SID.encode()
CLOSE = Frame(Opcode.CLOSE, b"\x03\xe8")


@dataclass
class Pumped:
    """A caller's pump, and the far ends of its two sockets."""

    pump: Pump
    path: MediaPath
    phone: socket.socket
    model: socket.socket
    source: Descriptor
    sink: Descriptor
    latencies: Latencies

    def say(self, *messages: bytes) -> None:
        frames = [Frame(Opcode.TEXT, message) for message in messages]
        self.phone.sendall(write_frames(frames, masked=True))

    def heard(self) -> bytes:
        """The pcm that has come out at the model's end."""
        data = b""
        try:
            while some := self.model.recv(65536):
                data += some
        except BlockingIOError:
            pass
        return pcm_of(data)


def pcm_of(data: bytes) -> bytes:
    messages = [json.loads(text) for text in texts(data, masked=True)]
    return b"".join(base64.b64decode(m["realtimeInput"]["audio"]["data"]) for m in messages)


@pytest.fixture
def pumped() -> Iterator[Pumped]:
    phone, ours = socket.socketpair()
    model, theirs = socket.socketpair()
    for sock in (ours, theirs, model):
        sock.setblocking(False)
    path = open_path()
    source, sink, latencies = Descriptor(ours.fileno()), Descriptor(theirs.fileno()), Latencies()
    pump = Pump(path, source, sink, latencies, Histogram([1.0]), from_phone=True)
    yield Pumped(pump, path, phone, model, source, sink, latencies)
    for sock in (phone, ours, model, theirs):
        sock.close()


def test_passes_audio_from_one_socket_to_the_other(pumped):
    pumped.say(media(CHUNK, 1), media(CHUNK, 2))

    assert pumped.pump.run(1.5) == Left.NOTHING
    assert pumped.heard() == codec.MulawDecoder(16_000).decode(CHUNK * 2)
    assert (pumped.path.heard_at, pumped.latencies.count) == (1.5, 1)


def test_a_message_that_is_read_in_pieces_is_whole(pumped):
    said = write_frames(
        [Frame(Opcode.TEXT, media(CHUNK, number)) for number in (1, 2)], masked=True
    )

    for byte in said:
        pumped.phone.sendall(bytes([byte]))
        assert pumped.pump.run(1.0) == Left.NOTHING

    assert pumped.heard() == codec.MulawDecoder(16_000).decode(CHUNK * 2)


def test_stops_at_a_message_that_is_not_audio_and_goes_on_behind_it(pumped):
    pumped.say(media(CHUNK, 1), MARK, media(CHUNK, 2))

    assert pumped.pump.run(0.0) == Left.NEWS
    assert pumped.pump.take_message() == MARK
    assert pumped.pump.take_message() is None
    assert pumped.path.next_from_phone() is None  # Python goes on
    data = pumped.path.model.take_output()
    assert pumped.heard() + pcm_of(data) == codec.MulawDecoder(16_000).decode(CHUNK * 2)


def test_only_audio_counts_as_heard(pumped):
    pumped.say(media(CHUNK, 1))
    pumped.pump.run(1.5)

    pumped.say(MARK)
    pumped.pump.run(7.5)

    assert pumped.path.heard_at == 1.5


def test_reads_nothing_more_while_a_message_waits_to_be_taken(pumped):
    pumped.say(MARK)
    pumped.pump.run(0.0)
    pumped.say(media(CHUNK, 1))

    assert pumped.pump.run(0.0) == Left.READING
    assert pumped.pump.take_message() == MARK
    assert pumped.pump.run(0.0) == Left.NOTHING


def test_audio_that_may_not_pass_is_news(pumped):
    pumped.path.caller_passes = False
    pumped.say(media(CHUNK, 1))

    assert pumped.pump.run(0.0) == Left.NEWS
    assert pumped.path.take_caller() == CHUNK


def test_half_a_frame_waits_for_its_other_half(pumped):
    data = write_frames([Frame(Opcode.TEXT, media(CHUNK, 1))], masked=True)
    pumped.phone.sendall(data[:100])
    first = pumped.pump.run(0.0)
    pumped.phone.sendall(data[100:])

    assert (first, pumped.pump.run(0.0)) == (Left.NOTHING, Left.NOTHING)
    assert pumped.heard() == codec.MulawDecoder(16_000).decode(CHUNK)


@pytest.mark.parametrize("end", ["nothing came", "the end", "a closed number"])
def test_what_cannot_be_read_is_left_to_the_socket_itself(pumped, end):
    if end == "the end":
        pumped.phone.close()
    elif end == "a closed number":
        pumped.say(media(CHUNK, 1))
        pumped.source.number = -1

    assert pumped.pump.run(0.0) == Left.READING
    assert pumped.heard() == b""


def test_the_peers_goodbye_is_news(pumped):
    pumped.phone.sendall(write_frames([CLOSE], masked=True))

    assert pumped.pump.run(0.0) == Left.NEWS
    assert pumped.path.phone.ended
    assert pumped.path.phone.output_bytes > 0


def test_a_ping_has_to_be_answered_by_somebody(pumped):
    pumped.phone.sendall(write_frames([Frame(Opcode.PING, b"x")], masked=True))

    assert pumped.pump.run(0.0) == Left.NEWS
    assert pumped.path.phone.output_bytes > 0


@pytest.mark.parametrize("why", ["Python holds something for it", "it is closed"])
def test_a_socket_that_may_not_be_written_to_is_not(pumped, why):
    if why == "it is closed":
        pumped.sink.number = -1
    else:
        pumped.sink.takes_output = False
    pumped.say(media(CHUNK, 1))

    assert pumped.pump.run(0.0) == Left.OUTPUT
    assert (pumped.heard(), pumped.latencies.count) == (b"", 0)
    pumped.pump.written()
    assert pumped.latencies.count == 1
    assert pcm_of(pumped.path.model.take_output()) == codec.MulawDecoder(16_000).decode(CHUNK)


def test_a_socket_that_takes_no_more_loses_nothing(pumped):
    decoder, sent, left = codec.MulawDecoder(16_000), b"", Left.NOTHING
    for number in range(1, 2_000):
        pumped.say(media(CHUNK, number))
        sent += decoder.decode(CHUNK)
        left = Left(pumped.pump.run(0.0))
        if left is not Left.NOTHING:
            break

    data = b""
    while len(data) < 10_000_000:
        try:
            data += pumped.model.recv(65536)
        except BlockingIOError:
            break
    data += pumped.path.model.take_output()
    assert left is Left.OUTPUT
    assert pcm_of(data) == sent


def test_of_what_a_socket_has_not_taken_whole_messages_can_be_forgotten(pumped):
    chunks = [bytes([number % 250]) * 160 for number in range(1_000)]
    pumped.sink.takes_output = False
    for number, chunk in enumerate(chunks, start=1):
        if number == len(chunks):
            pumped.sink.takes_output = True
        pumped.say(media(chunk, number))
        assert pumped.pump.run(0.0) == Left.OUTPUT

    pumped.path.model.forget_unsent()
    begun = pumped.path.model.output_bytes
    pumped.path.model.send_text(b"after")
    data, left = b"", pumped.path.model.take_output()
    while len(data) < 10_000_000:
        try:
            data += pumped.model.recv(65536)
        except BlockingIOError:
            break

    *heard, after = texts(data + left, masked=True)
    audio = [json.loads(text)["realtimeInput"]["audio"]["data"] for text in heard]
    pcm = codec.MulawDecoder(16_000).decode(b"".join(chunks))
    assert 0 < begun < 2_000  # of one message
    assert 0 < len(audio) < len(chunks)
    assert pcm.startswith(b"".join(map(base64.b64decode, audio)))
    assert after == b"after"


def test_more_than_one_pass_reads_is_left_to_the_socket_itself(pumped):
    messages = [media(CHUNK, number) for number in range(1, 101)]
    pumped.say(*messages)

    assert pumped.pump.run(0.0) == Left.READING
    before = pumped.heard()
    assert 0 < len(before) < 100 * 640
    assert codec.MulawDecoder(16_000).decode(CHUNK * 100).startswith(before)


@pytest.mark.parametrize("from_phone", [False, True])
def test_needs_both_its_sockets_and_connections(from_phone):
    timings = Latencies(), Histogram([1.0])
    with pytest.raises(TypeError):
        Pump(joined_path(), None, Descriptor(-1), *timings, from_phone=from_phone)
    with pytest.raises(TypeError):
        Pump(joined_path(), Descriptor(-1), None, *timings, from_phone=from_phone)
    with pytest.raises(TypeError):
        Pump(MediaPath(), Descriptor(-1), Descriptor(-1), *timings, from_phone=from_phone)


# -- all of them ---------------------------------------------------------------------------------

FOR_LONG_S = 60.0
HAS_EPOLL = pytest.mark.skipif(not hasattr(select, "epoll"), reason="needs epoll")


@pytest.fixture
def epoll() -> Iterator[select.epoll]:
    with select.epoll() as epoll:
        yield epoll


def all_of(epoll: select.epoll, *each: Pumped) -> Pumps:
    pumps = Pumps()
    for one in each:
        epoll.register(one.source.number, select.EPOLLIN)
        pumps.put(one.source.number, one.pump)
    return pumps


other_pumped = pumped


@HAS_EPOLL
@pytest.mark.parametrize("timeout_s", [0.0, 0.01])
def test_they_pass_audio_on_by_themselves_until_the_time_is_over(pumped, epoll, timeout_s):
    pumps = all_of(epoll, pumped)
    pumped.say(media(CHUNK))

    left = pumps.serve(epoll.fileno(), timeout_s, FOR_LONG_S, 0.0)

    assert left == []
    assert len(pumped.heard()) == 4 * len(CHUNK)
    assert pumped.latencies.count == 1


@HAS_EPOLL
def test_what_is_left_is_seen_to_before_anybody_else_is_served(pumped, other_pumped, epoll):
    pumps = all_of(epoll, pumped, other_pumped)
    pumped.say(media(CHUNK), MARK)
    other_pumped.say(media(CHUNK))

    left = pumps.serve(epoll.fileno(), FOR_LONG_S, FOR_LONG_S, 0.0)

    assert left == [
        (pumped.source.number, select.EPOLLIN, Left.NEWS),
        (other_pumped.source.number, select.EPOLLIN, Left.ALL),
    ]
    assert pumped.pump.take_message() == MARK
    assert len(pumped.heard()) == 4 * len(CHUNK)
    assert other_pumped.heard() == b""


@HAS_EPOLL
@pytest.mark.parametrize("alone", [(0.0, 0.0), (FOR_LONG_S, None)], ids=["late", "no time"])
def test_nothing_is_done_when_too_much_time_has_passed_or_none_goes_on(pumped, epoll, alone):
    pumps = all_of(epoll, pumped)
    pumped.say(media(CHUNK))

    left = pumps.serve(epoll.fileno(), FOR_LONG_S, *alone)

    assert left == [(pumped.source.number, select.EPOLLIN, Left.ALL)]
    assert pumped.heard() == b""


TWO_THREADS = """
import select, sys, threading
from codec.pump import Pumps

def run():
    with may_run:
        ran.append(True)

pumps, epoll = Pumps(), select.epoll()
ran, may_run = [], threading.Lock()
sys.setswitchinterval(600.0)  # nobody asks for a turn before that: whoever has it lets go itself
may_run.acquire()
threading.Thread(target=run, daemon=True).start()
may_run.release()
for _ in range(10_000):
    pumps.serve(epoll.fileno(), 0.0, 60.0, 0.0)
sys.exit(len(ran))
"""


@HAS_EPOLL
@pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="needs a GIL")
def test_who_does_not_wait_lets_no_other_thread_go_first():
    """In a process with these two threads alone."""
    subprocess.run([sys.executable, "-c", TWO_THREADS], check=True)


@HAS_EPOLL
def test_a_socket_without_a_pump_is_left(pumped, epoll):
    pumps = all_of(epoll, pumped)
    pumps.remove(pumped.source.number)
    pumped.say(media(CHUNK))

    left = pumps.serve(epoll.fileno(), FOR_LONG_S, FOR_LONG_S, 0.0)

    assert (len(pumps), left) == (0, [(pumped.source.number, select.EPOLLIN, Left.ALL)])


@HAS_EPOLL
def test_a_bug_is_raised_for_whoever_asks_the_pump_itself(pumped, epoll):
    def fails(count):
        raise ValueError("a bug")

    pumps, path = all_of(epoll, pumped), pumped.path
    mute = WebSocket(is_client=True, max_message_bytes=65536, random=fails)
    path.join_model(mute, AUDIO_MESSAGES)
    odd = Pump(
        *(path, pumped.source, pumped.sink),
        *(pumped.latencies, Histogram([1.0])),
        from_phone=True,
    )
    pumps.put(pumped.source.number, odd)
    pumped.say(media(CHUNK))

    left = pumps.serve(epoll.fileno(), FOR_LONG_S, FOR_LONG_S, 0.0)

    assert left == [(pumped.source.number, select.EPOLLIN, Left.ALL)]
    with pytest.raises(ValueError, match="a bug"):
        odd.run(0.0)


@HAS_EPOLL
def test_without_an_epoll_nobody_waits(epoll):
    number = epoll.fileno()
    epoll.close()

    with pytest.raises(OSError, match="epoll"):
        Pumps().serve(number, FOR_LONG_S, FOR_LONG_S, 0.0)
