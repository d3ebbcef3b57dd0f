"""What our hook relies on in hypercorn; the whole of it runs in test_drain."""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
import os
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import hypercorn.trio.run
import pytest
import trio
import trio.testing
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config

from server.app import create_app
from server.hooks import hypercorn_worker
from server.hooks.hypercorn_worker import (
    NOT_LOADED,
    Served,
    install,
    refuse_other_servers,
    serve_worker,
)
from server.hooks.keeper import FAILED_STATUS
from server.hooks.stopping import StopSignals
from server.serving.listening import listen
from server.settings.settings import Settings

pytestmark = pytest.mark.sockets

ROOT = Path(__file__).parents[2]


@pytest.fixture
def install_hook(monkeypatch):
    # Whatever the hook replaces is put back after the test.
    monkeypatch.setattr(hypercorn.trio.run, "worker_serve", hypercorn.trio.run.worker_serve)
    monkeypatch.setattr(hypercorn.trio, "worker_serve", hypercorn.trio.worker_serve)
    monkeypatch.setattr(
        hypercorn_worker, "STOP_SIGNALS", StopSignals({signal.SIGTERM: False, signal.SIGINT: True})
    )
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield install
    for number, handler in before.items():
        signal.signal(number, handler)


async def _app(scope, receive, send) -> None:
    assert scope["type"] == "lifespan"
    for stage in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{stage}.complete"})


def _config(**settings: object) -> Config:
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.errorlog = None
    for name, value in settings.items():
        setattr(config, name, value)
    return config


def test_this_is_the_hypercorn_that_the_hook_was_written_for():
    assert importlib.metadata.version("hypercorn").startswith("0.18.")
    # A worker looks up what serves only when it has imported the app, and with it the hook.
    source = inspect.getsource(hypercorn.trio.run.trio_worker)
    assert source.index("load_application(") < source.index("worker_serve, app, config")
    # What is done there beside what serve_worker does would be lost.
    source = inspect.getsource(hypercorn.trio.run)
    assert [line.strip() for line in source.splitlines() if "lifespan." in line] == [
        "await lifespan_nursery.start(lifespan.handle_lifespan)",
        "await lifespan.wait_for_startup()",
        "await lifespan.wait_for_shutdown()",
    ]


async def test_a_worker_says_how_many_there_are_before_it_starts_the_app(install_hook):
    happened: list[object] = []
    told = trio.Event()
    told.set()

    async def app(scope, receive, send) -> None:
        happened.append(scope["type"])
        await _app(scope, receive, send)

    install_hook(app, Served(join=happened.append))
    with trio.fail_after(60):
        await hypercorn.trio.run.worker_serve(
            ASGIWrapper(app), _config(workers=3), shutdown_trigger=told.wait
        )

    assert happened == [3, "lifespan"]


@pytest.mark.parametrize("told_by", ["the master", "max_requests", "a signal"])
async def test_a_worker_listens_until_its_calls_are_drained(nursery, install_hook, told_by):
    drained, told, over = trio.Event(), trio.Event(), trio.Event()
    draining = trio.Event()

    async def drain() -> None:
        draining.set()
        await drained.wait()

    install_hook(_app, Served(drain))
    listener = listen("127.0.0.1", 0)
    address = listener.getsockname()
    config = _config(bind=[f"fd://{listener.detach()}"], max_requests=0)

    async def serve(task_status) -> None:
        await hypercorn.trio.run.worker_serve(
            ASGIWrapper(_app), config, shutdown_trigger=told.wait, task_status=task_status
        )
        over.set()

    await nursery.start(serve)
    with trio.fail_after(60):
        match told_by:
            case "the master":
                told.set()
            case "a signal":
                signal.raise_signal(signal.SIGTERM)
            case _:
                async with await trio.open_tcp_stream(*address) as client:
                    await client.send_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    with suppress(trio.BrokenResourceError):
                        await client.receive_some()
        await draining.wait()
        await trio.testing.wait_all_tasks_blocked()
        async with await trio.open_tcp_stream(*address):  # it still listens
            pass
        signal.raise_signal(signal.SIGTERM)  # another says nothing new
        assert not over.is_set()
        drained.set()
        await over.wait()
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream(*address)


async def test_a_worker_whose_app_has_failed_ends_with_a_status_that_is_restarted(install_hook):
    failed = trio.Event()
    failed.set()
    install_hook(_app, Served(trio.sleep_forever, failed=failed))

    with trio.fail_after(60), pytest.raises(SystemExit) as ended:
        await hypercorn.trio.run.worker_serve(
            ASGIWrapper(_app), _config(), shutdown_trigger=trio.sleep_forever
        )

    assert ended.value.code == FAILED_STATUS


async def test_an_app_that_a_program_serves_with_hypercorn_is_drained_too(install_hook, nursery):
    drained, told = trio.Event(), trio.Event()

    async def drain() -> None:
        drained.set()

    install_hook(_app, Served(drain))
    with trio.fail_after(60):
        async with trio.open_nursery() as serving:
            serving.start_soon(
                partial(hypercorn.trio.serve, _app, _config(), shutdown_trigger=told.wait)
            )
            told.set()

    assert drained.is_set()


async def test_an_app_that_fails_while_it_drains_is_not_waited_for():
    told, failed = trio.Event(), trio.Event()

    async def never_drained() -> None:
        failed.set()
        await trio.sleep_forever()

    told.set()
    with trio.fail_after(60):
        await serve_worker(
            ASGIWrapper(_app),
            _config(),
            shutdown_trigger=told.wait,
            drain=never_drained,
            failed=failed,
        )

    assert failed.is_set()


@pytest.mark.parametrize("server", ["uvicorn.importer", "gunicorn.util", "hypercorn.asyncio.run"])
def test_another_server_that_makes_the_app_is_refused_in_one_line(server, capsys):
    caller = {"__name__": server, "refuse": refuse_other_servers}

    with pytest.raises(SystemExit) as ended:
        exec("refuse()", caller)

    assert ended.value.code == NOT_LOADED
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "hypercorn -c server/hypercorn.toml server.asgi:app" in said


def test_the_hypercorn_command_without_the_trio_worker_refuses_to_start():
    command = [sys.executable, "-m", "hypercorn", "--bind", "127.0.0.1:0", "server.asgi:app"]
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}

    ended = subprocess.run(
        command, cwd=ROOT, env=kept, capture_output=True, text=True, timeout=60, check=False
    )

    assert ended.returncode != 0
    assert "offhook: hypercorn.asyncio cannot serve it" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_app_that_asyncio_serves_does_not_start():
    app = create_app(Settings.load(_env_file=None, database_url="sqlite://"))
    sent = []

    async def start() -> None:
        async def receive():
            return {"type": "lifespan.startup"}

        async def send(event) -> None:
            sent.append(event)

        await app({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)

    asyncio.run(start())

    assert [event["type"] for event in sent] == ["lifespan.startup.failed"]
    assert "hypercorn -c server/hypercorn.toml server.asgi:app" in sent[0]["message"]
