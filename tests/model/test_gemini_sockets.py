"""Connections to Gemini over real sockets."""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from websockets.http11 import Request
from websockets.server import ServerProtocol

from server.agent.agent import Agent
from server.errors import ModelError, ModelQuotaExceeded, ModelSetupRefused
from server.hooks.sockets import translate_errors_without_rings
from server.model import (
    AgentAudio,
    GenerationComplete,
    TurnComplete,
)
from server.model.gemini.model import GeminiModel
from server.simulators.gemini import (
    Drop,
    GeminiSimulator,
    ModelScript,
    Speech,
)
from tests.support.gemini_talks import (
    KEY,
    receive_audio,
    silence,
    speech,
)
from tests.support.kept_garbage import garbage_kept
from tests.support.limits import no_threads

pytestmark = pytest.mark.sockets

QUICK = ModelScript(setup_delay_s=0, reply_delay_s=0, speed=100)


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[GeminiSimulator]:
    simulator = GeminiSimulator(api_key=KEY, **{"script": QUICK} | options)
    simulator.greeting = Speech("Good morning.", simulator.greeting.pcm[:24_000])
    async with trio.open_nursery() as nursery:
        await nursery.start(simulator.run)
        yield simulator
        nursery.cancel_scope.cancel()


async def test_a_conversation_over_a_socket(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with trio.fail_after(60):
        async with serving() as simulator:
            model = GeminiModel(api_key=KEY, url=simulator.url)
            async with model.open_connection(Agent()) as session:
                await session.send(session.text_message("Greet the caller."))
                greeting = b""
                while not isinstance(event := await session.receive(), TurnComplete):
                    if isinstance(event, AgentAudio):
                        greeting += event.pcm
                await session.send(session.audio_message(speech(0.3) + silence(0.6)))
                answer = b""
                while not isinstance(event := await session.receive(), GenerationComplete):
                    if isinstance(event, AgentAudio):
                        answer += event.pcm
            await simulator.sessions[0].ended.wait()

    assert greeting == simulator.greeting.pcm
    assert speech(0.3) in answer
    assert simulator.sessions[0].closed_by_client == 1000
    assert KEY not in caplog.text  # the library would log every header at DEBUG


async def test_a_dropped_socket_is_1006() -> None:
    with trio.fail_after(60):
        script = ModelScript(setup_delay_s=0, reply_delay_s=0, speed=100, drop=Drop(1, 0.1, 1006))
        async with serving(script=script) as simulator:
            model = GeminiModel(api_key=KEY, url=simulator.url)
            async with model.open_connection(Agent()) as session:
                await session.send(session.text_message("Greet the caller."))
                with pytest.raises(ModelError) as caught:
                    async for _ in receive_audio(session):
                        pass

    assert (caught.value.code, caught.value.retryable) == (1006, True)


async def test_a_cancelled_call_still_closes_cleanly() -> None:
    with trio.fail_after(60):
        async with serving() as simulator:
            model = GeminiModel(api_key=KEY, url=simulator.url)
            for _ in range(10):
                with trio.CancelScope() as call:
                    async with model.open_connection(Agent()):
                        call.cancel()
                        await trio.sleep_forever()
                await simulator.sessions[-1].ended.wait()

    # The library alone loses the close frame in half of the cases.
    assert [session.closed_by_client for session in simulator.sessions] == [1000] * 10


async def accept_session(stream: trio.SocketStream) -> None:
    """Answer as the service does until a session is ready."""
    protocol = ServerProtocol()
    while not (requests := protocol.events_received()):
        protocol.receive_data(await stream.receive_some())
    assert isinstance(requests[0], Request)
    protocol.send_response(protocol.accept(requests[0]))
    protocol.send_text(b'{"setupComplete":{}}')
    await stream.send_all(b"".join(protocol.data_to_send()))


async def test_a_service_that_no_longer_reads_cannot_hold_up_a_hang_up(
    nursery: trio.Nursery,
) -> None:
    async def accept_and_fall_silent(stream: trio.SocketStream) -> None:
        await accept_session(stream)
        await trio.sleep_forever()

    (listener,) = await nursery.start(
        partial(trio.serve_tcp, accept_and_fall_silent, 0, host="127.0.0.1")
    )
    url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"
    model = GeminiModel(api_key=KEY, url=url, close_timeout_s=0.05)

    with trio.fail_after(60), trio.move_on_after(0.1) as call:
        async with model.open_connection(Agent()) as session:
            while True:  # until the kernel takes no more, and the last one hangs half sent
                await session.send(session.audio_message(silence(20)))
    nursery.cancel_scope.cancel()

    assert call.cancelled_caught


async def test_what_the_block_raises_comes_out_as_it_was() -> None:
    group = ExceptionGroup("of the call", [ValueError("one"), KeyError("two")])
    with trio.fail_after(60):
        async with serving() as simulator:
            model = GeminiModel(api_key=KEY, url=simulator.url)
            with pytest.raises(ExceptionGroup) as caught:
                async with model.open_connection(Agent()):
                    raise group

    assert caught.value.message == group.message
    assert caught.value.exceptions == group.exceptions


async def test_nobody_listening_is_an_unreachable_model() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()

    with pytest.raises(ModelError, match="cannot be reached") as caught, trio.fail_after(60):
        async with GeminiModel(api_key=KEY, url=f"ws://127.0.0.1:{port}").open_connection(Agent()):
            pass

    assert (caught.value.code, caught.value.retryable) == (None, True)


async def test_a_path_that_is_not_there_is_refused() -> None:
    with trio.fail_after(60):
        async with serving() as simulator:
            model = GeminiModel(api_key=KEY, url=f"{simulator.url}/elsewhere")
            with pytest.raises(ModelSetupRefused, match="HTTP 404"):
                async with model.open_connection(Agent()):
                    pass


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("302 Found\r\nLocation: ws://127.0.0.1:1/", ModelSetupRefused),
        ("403 Forbidden", ModelSetupRefused),
        ("429 Too Many Requests", ModelQuotaExceeded),
        ("503 Service Unavailable", ModelError),
    ],
)
async def test_an_http_answer_instead_of_a_websocket(
    status: str, kind: type[ModelError], nursery: trio.Nursery
) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())

    (listener,) = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
    port = listener.socket.getsockname()[1]

    with pytest.raises(ModelError) as caught, trio.fail_after(60):
        async with GeminiModel(api_key=KEY, url=f"ws://127.0.0.1:{port}").open_connection(Agent()):
            pass

    nursery.cancel_scope.cancel()
    assert type(caught.value) is kind
    assert f"HTTP {status[:3]}" in str(caught.value)


async def test_a_hang_up_amid_the_handshake_leaves_nothing_to_the_garbage_collector() -> None:
    translate_errors_without_rings()  # as the server has it
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    model = GeminiModel(api_key=KEY, url=f"ws://127.0.0.1:{port}")

    async def open_and_hang_up() -> None:
        async def connect() -> None:
            async with model.open_connection(Agent()):
                raise AssertionError("nobody has answered")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect)
            async with await listener.accept() as stream:
                await stream.receive_some()
                nursery.cancel_scope.cancel()

    with trio.fail_after(60):
        await open_and_hang_up()  # what first uses make stays
        with garbage_kept() as left:
            await open_and_hang_up()
    await listener.aclose()

    assert left == []


@pytest.mark.parametrize("does", ["receives", "sends"])
async def test_a_session_that_is_reset_leaves_nothing_to_the_garbage_collector(does: str) -> None:
    translate_errors_without_rings()  # as the server has it
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    model = GeminiModel(api_key=KEY, url=f"ws://127.0.0.1:{port}")
    codes: list[int | None] = []

    async def talk() -> None:
        try:  # what pytest.raises gives would be a ring of its own
            async with model.open_connection(Agent()) as session:
                while True:
                    if does == "receives":
                        await session.receive()
                    else:
                        await session.send(session.audio_message(silence(0.02)))
        except ModelError as error:
            codes.append(error.code)

    async def open_and_reset() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk)
            async with await listener.accept() as stream:
                await accept_session(stream)
                linger = struct.pack("ii", 1, 0)
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    with trio.fail_after(60):
        await open_and_reset()  # what first uses make stays
        with garbage_kept() as left:
            await open_and_reset()
    await listener.aclose()

    assert left == []
    assert codes == [1006, 1006]


@pytest.mark.parametrize("plane", [None, object()], ids=["ordinary", "fast"])
async def test_a_name_that_no_thread_can_ask_for_is_a_model_that_may_be_reached_yet(
    plane: Any,
) -> None:
    model = GeminiModel(api_key=KEY, url="ws://localhost:9", plane=plane)
    with no_threads(), pytest.raises(ModelError, match="no thread") as failed:
        async with model.open_connection(Agent()):
            pass

    assert failed.value.retryable
