"""The hook into hypercorn: what it relies on, and that it does what it says."""

from __future__ import annotations

import json

import pytest
import trio

from server.errors import StreamEnded
from server.hooks.detach import _LendableStream, detachable
from server.media import plane
from tests.support.serving import (
    closing_of,
    media_message,
    open_socket,
    ringing_call,
    serving,
    start_message,
)

pytestmark = [pytest.mark.skipif(not plane.AVAILABLE, reason="needs epoll"), pytest.mark.sockets]


def test_another_server_has_nothing_to_detach():
    assert detachable({"type": "websocket"}) is None
    assert detachable({"type": "websocket", "state": {}}) is None
    assert detachable({"type": "websocket", "state": {"offhook.connection": object()}}) is None


@pytest.mark.slow
@pytest.mark.parametrize(("media_path", "wires"), [("fast", 2), ("ordinary", 0)])
async def test_a_call_has_its_sockets_on_the_plane_and_leaves_none_behind(media_path, wires):
    async with (
        serving(simulated_ring_s=None, media_path=media_path) as server,
        ringing_call(server) as (call_sid, ticket),
    ):
        async with open_socket(server) as socket:
            await socket.send(start_message(ticket, call_sid))
            with trio.fail_after(60):
                assert json.loads(await socket.recv())["event"] == "media"
            assert (server.service.plane.wires if server.service.plane else 0) == wires
            await socket.send(media_message(b"\xff" * 160))
        with trio.fail_after(60):
            await server.service.calls.register.get(call_sid).finished.wait()
        # The route's own clean-up follows the call's.
        with trio.fail_after(60):
            while server.service.plane and server.service.plane.wires:
                await trio.lowlevel.checkpoint()


def requests_being_served() -> int:
    """How many connections' tasks wait for the app's answer to a request."""
    tasks, count = [trio.lowlevel.current_root_task()], 0
    while tasks:
        task = tasks.pop()
        assert task is not None
        count += task.name.startswith("server.hooks.connections._Requests._ask")
        for nursery in task.child_nurseries:
            tasks += nursery.child_tasks
    return count


@pytest.mark.parametrize(("media_path", "requests"), [("fast", 0), ("ordinary", 1)])
async def test_a_call_on_the_plane_outlives_its_request(media_path, requests):
    async with (
        serving(simulated_ring_s=None, media_path=media_path) as server,
        ringing_call(server) as (call_sid, ticket),
        open_socket(server) as socket,
    ):
        await socket.send(start_message(ticket, call_sid))
        call = server.service.calls.register.get(call_sid)
        with trio.fail_after(60):
            while requests_being_served() != requests:
                await socket.recv()
            assert json.loads(await socket.recv())["event"] in ("media", "mark")
            heard_s = call.conversation.notes.timings.caller_audio_s
            await socket.send(media_message(b"\xff" * 160))
            while call.conversation.notes.timings.caller_audio_s == heard_s:
                await trio.lowlevel.checkpoint()
        assert not call.is_over


async def test_the_servers_close_frame_is_the_only_one():
    async with (
        serving(simulated_ring_s=None) as server,
        ringing_call(server) as (call_sid, _),
        open_socket(server) as socket,
    ):
        await socket.send(start_message("a guess", call_sid))
        code, reason = await closing_of(socket)

    assert code == 1008
    assert reason == "unknown, used or expired ticket"


async def test_requests_and_refused_upgrades_go_the_ordinary_way():
    async with serving() as server:
        for _ in range(3):  # one connection, kept alive
            assert (await server.http.get("/healthz")).status_code == 200
        assert (await server.http.get("/stream")).status_code in (400, 404, 405)


async def test_a_socket_that_is_closed_already_cannot_be_lent_which_is_nobodys_fault(caplog):
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    stream = await trio.testing.open_stream_to_socket_listener(listeners[0])
    lendable = _LendableStream(stream)
    await lendable.aclose()

    with pytest.raises(StreamEnded, match="has left"):
        lendable.lend()

    assert not lendable.is_lent
    assert not caplog.records
    await listeners[0].aclose()
