"""Where events may go."""

from __future__ import annotations

import ipaddress
import socket
from functools import partial
from threading import Event

import httpcore2
import pytest
import trio
import trio.testing
from trio.testing import MemoryReceiveStream

from server.events.targets import MAX_NAMES, AddressRefused, GuardedBackend, target_of
from server.hooks.sockets import translate_errors_without_rings
from server.settings.events import check_url, is_public
from tests.support.kept_garbage import garbage_kept
from tests.support.limits import no_threads


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0",
        "100.64.0.1", "100.100.100.200", "192.0.0.192", "168.63.129.16", "224.0.0.1",
        "255.255.255.255", "240.0.0.1", "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254",
        "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::", "2001::1", "fec0::1", "fe80::1%1",
    ],
)  # fmt: skip
def test_addresses_inside_are_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_addresses_of_the_internet_are(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/hook", "ftp://example.com/", "https://", "example.com", "https://[::1/",
        "https://user:word@example.com/", "https://example.com/#part", "https://exa mple.com/",
        "https://example.com:99999/", "https://10.0.0.1/", "https://[::ffff:127.0.0.1]/",
        "https://example.com/\r\nx", "https://example.com/" + "a" * 2_000,
    ],
)  # fmt: skip
def test_what_cannot_be_a_receiver_is_refused_before_a_call(url):
    with pytest.raises(ValueError, match="must"):
        check_url(url, allow_private=False)


def test_in_development_a_receiver_may_be_on_this_machine():
    url = "http://127.0.0.1:9000/hook"

    assert check_url(url, allow_private=True) == url
    assert target_of(url) == "http://127.0.0.1:9000"
    assert target_of("https://Example.com/a?b") == "https://example.com:443"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "0x7f.1", "::ffff:127.0.0.1"])
async def test_a_name_that_stands_for_this_machine_is_not_connected_to(host):
    with pytest.raises(AddressRefused):
        await GuardedBackend(allow_private=False).connect_tcp(host, 9)


async def test_a_name_that_no_thread_can_ask_for_cannot_be_resolved_just_now():
    with no_threads(), pytest.raises(httpcore2.ConnectError):
        await GuardedBackend(allow_private=True).connect_tcp("localhost", 9)


async def test_a_name_is_asked_for_once_and_what_it_stood_for_is_connected_to(monkeypatch):
    stands_for = ["1.1.1.1", "127.0.0.1"]  # another thing each time

    def resolve(host, port, **_):
        address = stands_for.pop(0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    backend = GuardedBackend(allow_private=False, resolve=resolve)
    connected: list[str] = []

    async def connect_tcp(host, *arguments):
        connected.append(host)
        return MemoryReceiveStream()

    monkeypatch.setattr(backend._below, "connect_tcp", connect_tcp)

    await backend.connect_tcp("rebinding.example", 443)

    assert (connected, stands_for) == (["1.1.1.1"], ["127.0.0.1"])


@pytest.mark.sockets
@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["127.0.0.1", "127.0.0.2"], []])
async def test_a_connection_that_fails_leaves_nothing_to_the_garbage_collector(addresses):
    translate_errors_without_rings()  # as the server has it
    with socket.socket() as taken:
        taken.bind(("", 0))  # and nobody listens there
        port = taken.getsockname()[1]

        def resolve(host, port, **_):
            return [(None, None, None, "", (address, port)) for address in addresses]

        async def fail() -> None:
            try:  # what pytest.raises gives would be a ring of its own
                await GuardedBackend(allow_private=True, resolve=resolve).connect_tcp("x", port)
            except httpcore2.ConnectError:
                failed.append(addresses)

        failed: list[list[str]] = []
        with trio.fail_after(60.0):
            await fail()  # what first uses make stays
            with garbage_kept() as left:
                await fail()

    assert left == []
    assert len(failed) == 2


@pytest.mark.sockets
async def test_names_that_nobody_resolves_are_in_the_way_of_no_receiver_that_answers():
    may_answer = Event()

    def resolve(host, port, **_):
        if host != "ours.example":
            may_answer.wait(60)
        return [(None, None, None, "", ("127.0.0.1", port))]

    async def serve(stream):
        await stream.aclose()

    backend = GuardedBackend(
        allow_private=True, is_trusted=lambda target: "ours.example" in target, resolve=resolve
    )
    with trio.fail_after(60.0):
        async with trio.open_nursery() as nursery:
            [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
            port = listener.socket.getsockname()[1]
            for number in range(MAX_NAMES + 1):
                nursery.start_soon(backend.connect_tcp, f"{number}.example", port)
            await trio.testing.wait_all_tasks_blocked()
            await (await backend.connect_tcp("ours.example", port)).aclose()
            may_answer.set()
            nursery.cancel_scope.cancel()
