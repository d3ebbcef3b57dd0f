"""What a head, a chunk or a trailer may look like before h11 parses it: in time with its length."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import h11
import pytest
from h11._readers import header_field_re
from hypothesis import given
from hypothesis import strategies as st

from server.hooks.http11 import (
    MAX_CHUNK_HEAD_BYTES,
    MAX_HEAD_LINES,
    MAX_LINE_BYTES,
    Lines,
    _Reader,
)
from tests.support.growth import FEW, growth

HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"POST /twiml HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def read(*segments: bytes) -> list[object]:
    """All events of what a client sends, or the refusal in their place."""
    connection = _Reader(h11.SERVER, max_incomplete_event_size=2**16)
    events: list[object] = []
    for segment in segments:
        connection.receive_data(segment)
        while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            events.append(event)
    return events


def refused(*segments: bytes) -> int:
    with pytest.raises(h11.RemoteProtocolError) as refusal:
        read(*segments)
    return refusal.value.error_status_hint


@pytest.mark.parametrize("blank", [b" ", b"\t"])
@pytest.mark.parametrize(
    "before", [HEAD, HEAD + b"Content-Type: a\r\n", CHUNKED + b"0\r\na: b\r\n", CHUNKED + b"0\r\n"]
)
def test_a_line_that_goes_on_in_the_next_is_refused(before, blank):
    assert refused(before + blank + b"x\r\n\r\n") == 400


def test_folded_lines_are_refused_before_the_last_of_them_has_come():
    assert refused(HEAD + b"If-None-Match: a\r\n", b" " * 2_000) == 400


@pytest.mark.parametrize("control", [b"\x00", b"\v", b"\f", b"\r"])
def test_a_control_character_is_refused_before_the_line_is_parsed(control):
    with pytest.raises(h11.RemoteProtocolError, match="control character"):
        Lines().check(HEAD + b"a:  " + control + b"b\r\n\r\n")
    assert refused(HEAD + b"a:  " + control + b"b\r\n\r\n") == 400


def test_whatever_of_a_field_passes_is_no_trouble_for_the_parser():
    for byte in range(256):
        line = b"a:  " + bytes([byte]) + b" b"
        try:
            Lines().check(HEAD + line + b"\r\n\r\n")
        except h11.RemoteProtocolError:
            continue
        assert byte == ord("\n") or header_field_re.fullmatch(line), byte


def test_what_follows_a_body_without_a_trailer_is_no_part_of_it():
    events = read(CHUNKED + b"0\r\n\r\n" + b"GET / HTTP/1.1\r\na: b\r\n c\r\n\r\n")

    assert isinstance(events[-1], h11.EndOfMessage)


def test_a_head_in_two_reads_that_part_a_line_s_end_is_whole():
    (request, end) = read(HEAD + b"a: b\r", b"\nc: d\r\n\r", b"\n")

    assert dict(request.headers) == {b"host": b"x", b"a": b"b", b"c": b"d"}
    assert isinstance(end, h11.EndOfMessage)


def test_as_many_lines_as_there_may_be_may_come_one_by_one():
    head = HEAD + b"a: b\r\n" * (MAX_HEAD_LINES - 2)

    (request, _) = read(*head.splitlines(keepends=True), b"\r", b"\n")

    assert len(request.headers) == MAX_HEAD_LINES - 1
    assert refused(head, b"a") == 431


def test_a_second_request_begins_with_its_own_first_line():
    connection = _Reader(h11.SERVER)
    for target in (b"/" + b"a" * 100, b"/" + b"b" * 200):
        connection.receive_data(b"GET " + target + b" HTTP/1.1\r\nHo")
        assert connection.next_event() is h11.NEED_DATA
        connection.receive_data(b"st: x\r\n\r\n")
        assert connection.next_event().target == target
        assert isinstance(connection.next_event(), h11.EndOfMessage)
        connection.send(h11.Response(status_code=204, headers=[]))
        connection.send(h11.EndOfMessage())
        connection.start_next_cycle()

    connection.receive_data(b"GET /" + b"c" * MAX_LINE_BYTES)
    with pytest.raises(h11.RemoteProtocolError) as refusal:
        connection.next_event()
    assert refusal.value.error_status_hint == 414


PIECES = (
    *(b"\r\n", b"\n", b"\r", b" ", b"\t", b"\x00", b":", b"a", b"c: d\r\n", b"\r\n\r\n", b"\n\n"),
    b"e:\r\n" * (MAX_HEAD_LINES - 3),
    b"f" * (MAX_LINE_BYTES - 2),
)


def verdict(*segments: bytes) -> list[object] | None:
    """What is read of a client's segments; None where it is refused."""
    try:
        return read(*segments)
    except h11.RemoteProtocolError:
        return None


@given(
    st.sampled_from([HEAD, HEAD + b"a: b", CHUNKED + b"0\r\n", CHUNKED + b"0\r\na: b"]),
    st.lists(st.sampled_from(PIECES), max_size=6).map(b"".join),
    st.lists(st.integers(1, 500) | st.integers(1, 20_000), max_size=8),
)
def test_in_how_many_reads_lines_come_changes_nothing(before, text, cuts):
    said = before + text
    places = sorted({0, len(said), *(len(said) - cut for cut in cuts if cut < len(said))})

    assert verdict(*(said[a:b] for a, b in pairwise(places))) == verdict(said)


@given(
    st.sampled_from([HEAD, CHUNKED + b"0\r\na: b\r\n"]),
    st.lists(st.sampled_from(PIECES[:-2]), max_size=12).map(b"".join),
)
def test_lines_may_come_byte_by_byte(before, text):
    said = before + text

    assert verdict(*(bytes([byte]) for byte in said)) == verdict(said)


def test_a_chunk_may_have_a_short_extension_and_not_a_long_one():
    extension = b";a=" + b"b" * (MAX_CHUNK_HEAD_BYTES - 6)

    events = read(CHUNKED + b"1" + extension + b"\r\nx\r\n1;c\r\ny\r\n0\r\n\r\n")

    assert [event.data for event in events if isinstance(event, h11.Data)] == [b"x", b"y"]
    assert refused(CHUNKED + b"1" + extension + b"b\r\nx\r\n0\r\n\r\n") == 400
    assert refused(CHUNKED + b"1;" + b" " * MAX_CHUNK_HEAD_BYTES) == 400
    assert refused(CHUNKED + b"1\r\nx\r\n1;" + b" " * MAX_CHUNK_HEAD_BYTES) == 400


def test_a_chunk_may_come_byte_by_byte():
    pieces = [bytes([byte]) for byte in b"12;a\r\n" + b"x" * 18 + b"\r\n300\r\n"]

    events = read(CHUNKED, *pieces, b"y" * 0x300, b"\r", b"\n", b"0\r", b"\n\r", b"\n")

    said = b"".join(event.data for event in events if isinstance(event, h11.Data))
    assert said == b"x" * 18 + b"y" * 0x300
    assert isinstance(events[-1], h11.EndOfMessage)


WORST: dict[str, Callable[[int], bytes]] = {
    "blanks before a character that is in no line": lambda n: (
        HEAD + b"a:" + b" " * n + b"\x00\r\n\r\n"
    ),
    "blanks before a lonely return": lambda n: HEAD + b"a:" + b"\t" * n + b"\rb\r\n\r\n",
    "the same behind a body": lambda n: CHUNKED + b"0\r\na:" + b" " * n + b"\f\r\n\r\n",
    "blanks in a chunk's first line": lambda n: CHUNKED + b"1;" + b" " * n + b"\n\r\n",
    "blanks and words": lambda n: HEAD + b"a:" + b" b" * (n // 2) + b"\r\n\r\n",
    "lengths": lambda n: HEAD + b"Content-Length: " + b"0," * (n // 2) + b"0\r\n\r\n",
}


@pytest.mark.parametrize("kind", WORST)
def test_the_worst_request_takes_time_in_proportion_to_its_length(kind):
    def parse(size: int) -> None:
        with suppress(h11.RemoteProtocolError):
            read(WORST[kind](size))

    assert growth(parse, MAX_LINE_BYTES // 8 - 8) < FEW


@pytest.mark.parametrize("before", [HEAD, CHUNKED + b"0\r\n"])
def test_lines_that_come_little_by_little_are_looked_at_once(before):
    def parse(size: int) -> None:
        said = before + (b"a: " + b"b" * (size // 32) + b"\r\n") * 32
        read(*(said[begin : begin + 64] for begin in range(0, len(said), 64)))

    assert growth(parse, 7 * 1024) < FEW
