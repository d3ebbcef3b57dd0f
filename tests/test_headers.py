"""What header fields say: cookies, and what somebody has answered with."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import Headers

from server.headers import cookie_of, read_retry_after

LONGEST_S = 300.0
NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "wait_s"),
    [
        ("0", 0.0),
        ("7", 7.0),
        (" 30 ", 30.0),
        ("1.5", 1.5),
        ("Fri, 20 Nov 2026 12:00:09 GMT", 9.0),
        ("Friday, 20-Nov-26 12:00:09 GMT", 9.0),
        ("Fri Nov 20 12:00:09 2026", 9.0),
        ("Fri, 20 Nov 2026 11:59:00 GMT", 0.0),
        ("86400", LONGEST_S),
        ("9" * 15, LONGEST_S),
        ("Sun, 20 Nov 2050 12:00:00 GMT", LONGEST_S),
        (None, None),
        ("", None),
        ("-5", None),
        ("soon", None),
        ("1e9", None),
        ("9" * 400, None),
        ("\u0667", None),
        ("Fri, 99 Nov 2026 12:00:00 GMT", None),
        ("Fri, 20 Nov 999999 12:00:00 GMT", None),
    ],
)
def test_both_forms_are_read_and_bounded(text, wait_s):
    assert read_retry_after(text, NOW, longest_s=LONGEST_S) == wait_s


@given(st.text(max_size=80))
def test_whatever_it_says_is_a_short_time_or_nothing(text):
    wait_s = read_retry_after(text, NOW, longest_s=LONGEST_S)

    assert wait_s is None or 0 <= wait_s <= LONGEST_S


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9999, 12, 30)))
def test_any_date_is_a_short_time(date):
    text = date.strftime("%a, %d %b %Y %H:%M:%S GMT")
    wait_s = read_retry_after(text, NOW, longest_s=LONGEST_S)
    left = date.replace(tzinfo=UTC, microsecond=0) - NOW

    if wait_s is not None:
        assert wait_s == min(max(left / timedelta(seconds=1), 0), LONGEST_S)


# -- cookies ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "value"),
    [
        (["name=value"], "value"),
        (["a=1; name=va=lue; b=2"], "va=lue"),
        (["a=1", "name=value"], "value"),
        (["  name =  value  ;"], "value"),
        (["name="], ""),
        (["Name=value; my-name=value; a=name=value"], None),
        (["name=one; name=two"], None),
        (["name=one", "name=two"], None),
        ([""], None),
        ([], None),
    ],
)
def test_a_cookie_counts_if_it_is_there_once(lines, value):
    assert cookie_of(Headers([("Cookie", line) for line in lines]), "name") == value


VALUES = st.text("abc019._-=", max_size=20)


@given(before=VALUES, value=VALUES, after=VALUES, space=st.sampled_from(["", " ", "  ", "\t"]))
def test_a_cookie_is_found_whatever_stands_beside_it(before, value, after, space):
    line = f"a={before};{space}name={value}{space};{space}b={after}"

    assert cookie_of({"Cookie": line}, "name") == value


@pytest.mark.parametrize(
    "shape",
    [
        lambda length: "name=" + " " * length + "x y",
        lambda length: "name=" + "\t" * length + '"',
        lambda length: 'name="' + "\\" * length,
        lambda length: ";" * length,
        lambda length: "a=;" * (length // 3),
        lambda length: "=" * length,
    ],
)
def test_a_cookie_is_read_in_time_that_is_proportional_to_what_was_sent(shape):
    def shortest_s(length):
        headers = {"Cookie": shape(length)}
        took_s = []
        for _ in range(5):
            began_at = time.perf_counter()
            cookie_of(headers, "name")
            took_s.append(time.perf_counter() - began_at)
        return min(took_s)

    # Sixteen times as much takes sixteen times as long, and not 256 times.
    assert shortest_s(32_768) < 80 * shortest_s(2_048)
