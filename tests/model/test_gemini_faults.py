"""What goes wrong with a connection to Gemini, and how it is told."""

from __future__ import annotations

import json
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from websockets.exceptions import InvalidHandshake
from websockets.frames import Close

from server.agent.agent import Agent
from server.errors import ConfigurationError, ModelError, ModelQuotaExceeded, ModelSetupRefused
from server.media.dial import WireSocket
from server.media.plane import Plane
from server.media.words import Messages
from server.model import (
    GoingAway,
    ResumptionHandle,
    SessionEvent,
)
from server.model.gemini.connection import GeminiConnection
from server.model.gemini.dialects import dialect_of
from server.model.gemini.faults import Faults
from server.model.gemini.model import GeminiModel
from server.refusal import Kind
from server.simulators.gemini import (
    Drop,
    GeminiSimulator,
    MemorySocket,
    ModelScript,
    memory_sockets,
    refused,
)
from tests.support.gemini_talks import (
    KEY,
    MODELS,
    receive_audio,
    silence,
)

pytestmark = pytest.mark.sockets


def test_a_handshake_that_failed_is_told_by_its_words_and_logged_by_its_kind() -> None:
    with pytest.raises(ModelError) as caught, Faults(lambda: [KEY], "a-host").translated_opening():
        raise InvalidHandshake("an odd header")

    assert "an odd header" in str(caught.value)
    assert "odd" not in caught.value.loggable
    assert "InvalidHandshake" in caught.value.loggable


class OneRead:
    """A wire that has brought several messages with one read."""

    has_inbox = False

    def __init__(self, *messages: bytes) -> None:
        self._messages = [(message, True) for message in messages]

    def listen(self, on_messages: Callable[[Messages, bool], None]) -> None:
        on_messages(self._messages, False)


def over_one_read(*messages: bytes) -> GeminiConnection:
    wire: Any = OneRead(*messages)
    socket = WireSocket(wire, close_timeout_s=1.0)
    return GeminiConnection(socket, dialect_of(MODELS[0]), Faults(lambda: [KEY], "a-host"))


async def test_audio_may_be_followed_once_no_turn_that_was_cut_is_under_way() -> None:
    blob = '{"inlineData":{"mimeType":"audio/pcm;rate=24000","data":"AAAA"}}'
    spoken = f'{{"serverContent":{{"modelTurn":{{"parts":[{blob}]}}}}}}'.encode()
    cut, over = (
        b'{"serverContent":{"interrupted":true}}',
        b'{"serverContent":{"turnComplete":true}}',
    )

    drained = []
    for messages in ((spoken,), (spoken, cut), (spoken, cut, over)):
        connection = over_one_read(*messages)
        connection.listen([].append)
        drained.append(connection.is_drained)

    assert drained == [True, False, True]


async def test_what_has_come_before_an_error_is_told_before_it() -> None:
    handle = b'{"sessionResumptionUpdate":{"newHandle":"h","resumable":true}}'
    connection = over_one_read(handle, b'{"error":{"code":400,"message":"no"}}')
    told: list[SessionEvent | ModelError] = []

    connection.listen(told.append)

    assert told[0] == ResumptionHandle("h")
    assert [type(one) for one in told[1:]] == [ModelSetupRefused]
    assert connection.is_drained


async def opened(simulator: GeminiSimulator, **options: Any) -> BaseException:
    """Open a session that cannot be opened, and return what is raised."""
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(simulator.run, port=None))
        model = GeminiModel(**{"api_key": KEY, "connect": simulator.connect} | options)
        try:
            with pytest.raises(ModelError) as caught:
                async with model.open_connection(Agent()):
                    pytest.fail("the session was opened")
        finally:
            nursery.cancel_scope.cancel()
    return caught.value


async def test_a_wrong_key_is_refused_in_googles_words(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    error = await opened(simulator, api_key="another-key")

    assert isinstance(error, ModelSetupRefused)
    assert (error.code, error.retryable) == (1007, False)
    assert error.reason == "API key not valid. Please pass a valid API key."


async def test_an_unknown_model_is_refused(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    error = await opened(simulator, model="gemini-4-live")

    assert isinstance(error, ModelSetupRefused)
    assert error.code == 1008
    assert "models/gemini-4-live is not found" in str(error)


@pytest.mark.parametrize(
    ("close", "kind", "retryable"),
    [
        (Close(1007, "Request contains an invalid argument."), ModelSetupRefused, False),
        (Close(1008, "policy"), ModelSetupRefused, False),
        (Close(1011, "You exceeded your current quota"), ModelQuotaExceeded, False),
        (Close(1011, "RESOURCE_EXHAUSTED"), ModelQuotaExceeded, False),
        (Close(1011, "Internal error encountered."), ModelError, True),
        (Close(1006, ""), ModelError, True),
    ],
)
async def test_a_close_before_the_service_is_ready(
    close: Close, kind: type[ModelError], retryable: bool, autojump_clock: trio.abc.Clock
) -> None:
    simulator = GeminiSimulator(api_key=KEY, script=ModelScript(refuse_setup=close))

    error = await opened(simulator)

    assert type(error) is kind
    assert isinstance(error, ModelError)
    assert (error.code, error.reason, error.retryable) == (close.code, close.reason, retryable)


@pytest.mark.parametrize(
    ("close", "refusal", "retryable"),
    [
        (Close(1007, "API key expired. Please renew the API key."), Kind.KEY, False),
        (Close(1011, "Your prepayment credits are depleted."), Kind.CREDITS, False),
        (Close(1011, "Rate limit exceeded. Too many requests."), Kind.RATE, True),
        (Close(1007, "Request contains an invalid argument."), None, False),
        (Close(1011, "Internal error encountered."), None, True),
    ],
)
async def test_a_close_says_whether_it_is_about_the_account(
    close: Close, refusal: Kind | None, retryable: bool, autojump_clock: trio.abc.Clock
) -> None:
    simulator = GeminiSimulator(api_key=KEY, script=ModelScript(refuse_setup=close))

    error = await opened(simulator)

    assert isinstance(error, ModelError)
    assert (error.refusal, error.retryable) == (refusal, retryable)


@pytest.mark.parametrize("kept", [len(KEY), 10])
async def test_a_key_in_a_close_reason_that_was_cut_is_in_no_error(
    kept: int, autojump_clock: trio.abc.Clock
) -> None:
    reason = f"Consumer suspended: api_key:{KEY[:kept]}"
    simulator = GeminiSimulator(api_key=KEY, script=ModelScript(refuse_setup=Close(1008, reason)))

    error = await opened(simulator)

    assert KEY[:10] not in str(error)
    assert isinstance(error, ModelError)
    assert error.refusal is Kind.PERMISSION


@pytest.mark.parametrize("plane", [True, False])
@pytest.mark.parametrize(
    ("status", "message", "refusal"),
    [
        (400, "API key not valid. Please pass a valid API key.", Kind.KEY),
        (403, "Your project has been denied access.", Kind.PERMISSION),
        (429, "Your prepayment credits are depleted.", Kind.CREDITS),
        (503, "The model is overloaded.", Kind.BUSY),
    ],
)
async def test_the_json_of_a_refused_handshake_is_read(
    status: int, message: str, refusal: Kind, plane: bool, nursery: trio.Nursery
) -> None:
    details = [{"@type": "the long name of a type"}] * 20
    body = json.dumps({"error": {"code": status, "details": details, "message": message}})
    simulator = GeminiSimulator(api_key=KEY, script=refused(status, body))
    await nursery.start(simulator.run)
    media = Plane() if plane else None
    if media is not None:
        await nursery.start(media.run)
    with pytest.raises(ModelError) as caught, trio.fail_after(60):
        async with GeminiModel(api_key=KEY, url=simulator.url, plane=media).open_connection(
            Agent()
        ):
            pass

    nursery.cancel_scope.cancel()
    assert caught.value.refusal is refusal


INVALID = {"code": 400, "message": "A secret value.", "status": "INVALID_ARGUMENT"}


@pytest.mark.parametrize(
    ("told", "kind", "retryable"),
    [
        (INVALID, ModelSetupRefused, False),
        ({"code": 403, "message": "no", "status": "PERMISSION_DENIED"}, ModelSetupRefused, False),
        ({"code": 429, "message": "slow down"}, ModelQuotaExceeded, True),
        ({"status": "RESOURCE_EXHAUSTED"}, ModelQuotaExceeded, False),
        ({"code": 503, "status": "UNAVAILABLE"}, ModelError, True),
        ({"message": "nothing else"}, ModelSetupRefused, False),
        ({}, ModelSetupRefused, False),
        ({"code": 10**400, "status": 7, "message": []}, ModelSetupRefused, False),
    ],
)
async def test_an_error_that_is_told_in_a_message_ends_the_set_up_at_once(
    told: dict[str, Any],
    kind: type[ModelError],
    retryable: bool,
    autojump_clock: trio.abc.Clock,
) -> None:
    simulator = GeminiSimulator(api_key=KEY, script=ModelScript(tells_error=told))
    started = trio.current_time()

    error = await opened(simulator)

    assert type(error) is kind
    assert isinstance(error, ModelError)
    assert error.retryable is retryable
    assert trio.current_time() - started < 1.0


async def test_what_is_told_is_in_the_error_and_not_in_what_is_logged(
    autojump_clock: trio.abc.Clock,
) -> None:
    simulator = GeminiSimulator(api_key=KEY, script=ModelScript(tells_error=INVALID))

    error = await opened(simulator)

    assert isinstance(error, ModelError)
    assert "A secret value." in str(error)
    assert error.loggable == "Gemini says 400 INVALID_ARGUMENT: a reason unknown here"


@pytest.mark.parametrize(
    ("reason", "logged"),
    [
        ("API key expired. Please renew the API key.", "the API key has expired"),
        ("A caller's secret.", "a reason unknown here"),
        ("", "no reason given"),
    ],
)
async def test_a_close_reason_is_logged_in_words_of_ours(
    reason: str, logged: str, autojump_clock: trio.abc.Clock
) -> None:
    simulator = GeminiSimulator(api_key=KEY, script=ModelScript(refuse_setup=Close(1007, reason)))

    error = await opened(simulator)

    assert isinstance(error, ModelError)
    assert error.reason == reason
    assert error.loggable == f"Gemini closed the session with 1007: {logged}"


async def test_a_service_that_never_gets_ready(autojump_clock: trio.abc.Clock) -> None:
    simulator = GeminiSimulator(api_key=KEY, script=ModelScript(setup_delay_s=60))
    started = trio.current_time()

    error = await opened(simulator, setup_timeout_s=7)

    assert isinstance(error, ModelError)
    assert (error.code, error.retryable) == (None, True)
    assert trio.current_time() - started == pytest.approx(7)


@pytest.mark.parametrize(
    ("drop", "retryable"),
    [
        (Drop(1, 0.5, 1006), True),
        (Drop(1, 0.5, 1011, "Internal error encountered."), True),
        (Drop(1, 0.5, 1008, "The operation was aborted."), True),
        (Drop(1, 0.5, 1007, "The context is exhausted."), False),
    ],
)
async def test_a_session_that_is_lost_says_so_to_receiver_and_sender(
    drop: Drop, retryable: bool, autojump_clock: trio.abc.Clock
) -> None:
    simulator = GeminiSimulator(api_key=KEY, script=ModelScript(drop=drop))
    pcm = b""
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(simulator.run, port=None))
        model = GeminiModel(api_key=KEY, connect=simulator.connect)
        async with model.open_connection(Agent()) as session:
            await session.send(session.text_message("Greet the caller."))
            with pytest.raises(ModelError) as received:  # noqa: PT012
                async for chunk in receive_audio(session):
                    pcm += chunk
            with pytest.raises(ModelError) as sent:
                await session.send(session.audio_message(silence(0.02)))
        nursery.cancel_scope.cancel()

    assert len(pcm) >= 0.5 * 48_000  # nothing that came before is lost
    for error in (received.value, sent.value):
        assert (error.code, error.reason) == (drop.code, drop.reason)
        assert error.retryable is retryable


async def test_going_away_is_announced_before_it_happens(autojump_clock: trio.abc.Clock) -> None:
    simulator = GeminiSimulator(api_key=KEY, script=ModelScript(go_away_at_s=6, go_away_left_s=15))
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(simulator.run, port=None))
        model = GeminiModel(api_key=KEY, connect=simulator.connect)
        async with model.open_connection(Agent()) as session:
            opened_at = trio.current_time()
            announced = await session.receive()
            announced_at = trio.current_time()
            with pytest.raises(ModelError):
                await session.receive()
            closed_at = trio.current_time()
        nursery.cancel_scope.cancel()

    assert announced == GoingAway(15.0)
    assert (announced_at - opened_at, closed_at - opened_at) == pytest.approx((6, 21))


async def test_the_key_is_in_no_error_and_no_repr(autojump_clock: trio.abc.Clock) -> None:
    suspended = Close(1008, f"Consumer 'api_key:{KEY}' has been suspended.")
    simulator = GeminiSimulator(api_key=KEY, script=ModelScript(refuse_setup=suspended))

    error = await opened(simulator)

    assert "has been suspended" in str(error)
    assert KEY not in "".join(traceback.format_exception(error))
    assert KEY not in repr(GeminiModel(api_key=KEY))


@pytest.mark.parametrize("url", ["https://example.org", "ws://", "localhost:80", ""])
def test_a_url_that_is_none_is_a_mistake_in_the_settings(url: str) -> None:
    with pytest.raises(ConfigurationError, match="GEMINI_URL"):
        GeminiModel(api_key=KEY, url=url)


@pytest.mark.parametrize("key", ["", "clé", "two\nlines"])
def test_a_key_that_is_none_is_a_mistake_in_the_settings(key: str) -> None:
    with pytest.raises(ConfigurationError, match="GEMINI_API_KEY"):
        GeminiModel(api_key=key)


async def test_closing_is_bounded_when_the_service_does_not_agree(
    simulator: GeminiSimulator, autojump_clock: trio.abc.Clock
) -> None:
    class Deaf(MemorySocket):
        async def aclose(self, code: int, reason: str) -> None:
            await trio.sleep_forever()

    @asynccontextmanager
    async def connect(url: str, headers: object) -> AsyncIterator[MemorySocket]:
        client, server = memory_sockets()
        client.__class__ = Deaf
        await server.send(b'{"setupComplete":{}}', text=True)
        yield client

    model = GeminiModel(api_key=KEY, connect=connect, close_timeout_s=2)
    async with model.open_connection(Agent()):
        left_at = trio.current_time()

    assert trio.current_time() - left_at == pytest.approx(2)
