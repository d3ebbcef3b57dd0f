from __future__ import annotations

from contextlib import ExitStack
from ipaddress import ip_network

import pytest
import trio
from werkzeug.datastructures import Headers

from server.switchboard.capacity import fitting_calls
from server.switchboard.strangers import Strangers, client_address, most_signed, most_strangers

PROXIES = (ip_network("10.0.0.0/8"), ip_network("::1/128"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.9", None, "203.0.113.9"),
        ("203.0.113.9", "198.51.100.1", "203.0.113.9"),  # not a proxy of ours: not believed
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "1.1.1.1, 198.51.100.1", "198.51.100.1"),  # the first is the client's own
        ("10.0.0.1", "198.51.100.1, 10.0.0.2", "198.51.100.1"),
        ("10.0.0.1", "not-an-address", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("::1", "::ffff:198.51.100.1", "198.51.100.1"),
        ("::1", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", None, "fe80::/64"),
        ("<local>", None, "<local>"),
    ],
)
def test_where_a_request_comes_from(peer, forwarded, address):
    headers = {} if forwarded is None else {"x-forwarded-for": forwarded}

    assert client_address(peer, headers, PROXIES) == address


@pytest.mark.parametrize(
    ("lines", "address"),
    [
        (["1.1.1.1", "198.51.100.1"], "198.51.100.1"),  # the proxy's own line comes last
        (["1.1.1.1, 2.2.2.2", "198.51.100.1"], "198.51.100.1"),
        (["1.1.1.1", "198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        (["198.51.100.1", "10.0.0.2"], "198.51.100.1"),
        (["198.51.100.1", "", " , "], "198.51.100.1"),
        (["198.51.100.1", "not-an-address"], "10.0.0.1"),
    ],
)
def test_of_several_lines_the_last_hop_that_a_proxy_has_written_counts(lines, address):
    headers = Headers([("X-Forwarded-For", line) for line in lines])

    assert client_address("10.0.0.1", headers, iter(PROXIES)) == address


@pytest.mark.parametrize(
    ("hop", "address"),
    [
        ("198.51.100.1:4711", "198.51.100.1"),
        ("[2001:db8:1:2::5]:4711", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2::5]", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::5", "2001:db8:1:2::/64"),
        ("198.51.100.1:port", "10.0.0.1"),
    ],
)
def test_a_hop_may_have_a_port(hop, address):
    assert client_address("10.0.0.1", {"X-Forwarded-For": hop}, PROXIES) == address


async def test_the_oldest_socket_of_a_full_address_makes_room_and_others_stay():
    strangers = Strangers(per_address=2, in_all=100)
    scopes = [trio.CancelScope() for _ in range(4)]
    with ExitStack() as waiting:
        waiting.enter_context(strangers.among("other", scopes[0]))
        for scope in scopes[1:]:
            waiting.enter_context(strangers.among("one", scope))

        assert [scope.cancel_called for scope in scopes] == [False, True, False, False]
        assert len(strangers) == 3
    assert len(strangers) == 0


async def test_there_is_a_limit_for_all_addresses_together():
    strangers = Strangers(per_address=2, in_all=3)
    scopes = [trio.CancelScope() for _ in range(5)]
    with ExitStack() as waiting:
        for number, scope in enumerate(scopes):
            waiting.enter_context(strangers.among(f"address {number}", scope))

        assert [scope.cancel_called for scope in scopes] == [True, True, False, False, False]


async def test_signed_sockets_have_places_of_their_own_and_the_oldest_makes_room():
    strangers = Strangers(per_address=1, in_all=1, signed=3)
    scopes = [trio.CancelScope() for _ in range(5)]
    with ExitStack() as waiting:
        for scope in scopes[:4]:
            waiting.enter_context(strangers.among("", scope))
        waiting.enter_context(strangers.among("one", scopes[4]))

        assert [scope.cancel_called for scope in scopes] == [True, False, False, False, False]
        assert len(strangers) == 4
    assert len(strangers) == 0


@pytest.mark.parametrize("max_calls", [1, 600, 5_000])
@pytest.mark.parametrize("descriptors", [None, 300, 4_096, 2**20])
async def test_no_burst_of_calls_is_too_many_signed_sockets_at_once(descriptors, max_calls):
    strangers = Strangers(signed=most_signed(descriptors, max_calls))
    calls = min(max_calls, fitting_calls(descriptors, 0, records_calls=False))
    scopes = [trio.CancelScope() for _ in range(int(calls))]
    with ExitStack() as waiting:
        for scope in scopes:
            waiting.enter_context(strangers.among("", scope))

    assert not any(scope.cancel_called for scope in scopes)


@pytest.mark.parametrize(
    ("descriptors", "places"), [(None, 1_000), (300, 37), (4_096, 512), (2**20, 1_000), (4, 1)]
)
def test_places_for_media_sockets_leave_descriptors_for_calls(descriptors, places):
    assert most_strangers(descriptors) == places
