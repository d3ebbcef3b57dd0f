"""What our hook relies on in hypercorn; the whole of it runs in test_drain."""

from __future__ import annotations

import importlib.metadata
import inspect
import signal

import hypercorn.trio.run
import pytest
import trio
import trio.testing
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config

from server.hypercorn_hook import drain_before_stopping, tell_worker_count
from server.serving import listen


@pytest.fixture
def worker(monkeypatch):
    # Whatever the hook replaces is put back after the test.
    monkeypatch.setattr(hypercorn.trio.run, "raise_shutdown", hypercorn.trio.run.raise_shutdown)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    yield hypercorn.trio.run.worker_serve
    signal.signal(signal.SIGTERM, on_sigterm)


async def _app(scope, receive, send) -> None:
    assert scope["type"] == "lifespan"
    for stage in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{stage}.complete"})


def test_this_is_the_hypercorn_that_the_hook_was_written_for():
    assert importlib.metadata.version("hypercorn").startswith("0.18.")
    source = inspect.getsource(hypercorn.trio.run.worker_serve)
    assert source.count("start_soon(raise_shutdown, ") == 2
    assert "context.terminate.wait" in source
    # A worker looks up what serves only when it has imported the app, and with it the hook.
    source = inspect.getsource(hypercorn.trio.run.trio_worker)
    assert source.index("load_application(") < source.index("worker_serve, app, config")


async def test_a_worker_says_how_many_there_are_before_it_starts_the_app(monkeypatch):
    monkeypatch.setattr(hypercorn.trio.run, "worker_serve", hypercorn.trio.run.worker_serve)
    happened: list[object] = []
    tell_worker_count(happened.append)
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.workers = 3
    config.errorlog = None

    async def app(scope, receive, send) -> None:
        happened.append(scope["type"])
        await _app(scope, receive, send)

    async def at_once() -> None:
        pass

    with trio.fail_after(60):
        await hypercorn.trio.run.worker_serve(ASGIWrapper(app), config, shutdown_trigger=at_once)

    assert happened == [3, "lifespan"]


@pytest.mark.parametrize("told_by", ["the master", "max_requests"])
async def test_a_worker_listens_until_its_calls_are_drained(nursery, worker, monkeypatch, told_by):
    drained = trio.Event()
    asked = drain_before_stopping(drained.wait)
    told = trio.Event()
    if told_by == "max_requests":
        context = hypercorn.trio.run.WorkerContext(1)
        monkeypatch.setattr(hypercorn.trio.run, "WorkerContext", lambda _: context)
        told = context.terminate
    listener = listen("127.0.0.1", 0)
    address = listener.getsockname()
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.errorlog = None
    over = trio.Event()

    async def serve(task_status) -> None:
        trigger = told.wait if told_by == "the master" else trio.sleep_forever
        await worker(ASGIWrapper(_app), config, shutdown_trigger=trigger, task_status=task_status)
        over.set()

    await nursery.start(serve)
    assert not asked.is_set()
    result = told.set()
    if result is not None:
        await result
    with trio.fail_after(60):
        await asked.wait()
        await trio.testing.wait_all_tasks_blocked()
        async with await trio.open_tcp_stream(*address):  # it still listens
            pass
        assert not over.is_set()
        drained.set()
        await over.wait()
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream(*address)
