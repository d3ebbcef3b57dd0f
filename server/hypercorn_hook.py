"""A hook into hypercorn: a worker drains before it stops listening, and knows how many there are.

Under the ``hypercorn`` command the app runs in a spawned worker process. When that is to stop, the
master sets an event, and the worker closes its listeners at once and its connections after a grace
period, and tells nobody: calls would be cut without a goodbye, and the carrier's callbacks refused
meanwhile. A worker that gets a SIGTERM of its own (systemd sends one to every process of a
service, and the master one to each worker still running when the first has ended) just dies.

Every way in which hypercorn's trio worker stops goes through ``raise_shutdown``, which waits for a
trigger and then raises what ends the listeners. :func:`drain_before_stopping` puts a wait for the
drain between the two. That is no public interface: pyproject.toml pins hypercorn to 0.18, and
tests/test_hypercorn_hook.py fails when another version goes another way.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import hypercorn.trio.run
import trio

_worker: Any = hypercorn.trio.run  # to mypy, what it imports is not its to give away


def tell_worker_count(tell: Callable[[int], None]) -> None:
    """Have this process's hypercorn worker say how many there are, before it starts the app.

    Called while the application module is imported. The number is in the configuration, of which
    an app is told nothing.
    """
    worker_serve = _worker.worker_serve

    async def worker_serve_telling(app: Any, config: Any, **options: Any) -> None:
        tell(config.workers)
        await worker_serve(app, config, **options)

    _worker.worker_serve = worker_serve_telling


def drain_before_stopping(drain: Callable[[], Awaitable[None]]) -> trio.Event:
    """Have this process's hypercorn worker wait for ``drain`` before it closes its listeners.

    Called while the application module is imported, which is before the worker serves. SIGTERM
    becomes a request to stop, and further ones are ignored: the drain has a deadline of its own.

    Args:
        drain: Ends the calls; awaited once, in the worker's event loop.

    Returns:
        An event that is set when the worker has been asked to stop.
    """
    asked = trio.Event()
    drain_began = trio.Event()
    drained = trio.Event()
    raise_shutdown = _worker.raise_shutdown

    async def raise_shutdown_when_drained(trigger: Callable[..., Awaitable[None]]) -> None:
        # hypercorn runs this twice side by side: for the master's word and for max_requests.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_wait_triggered, trigger, asked)
            nursery.start_soon(_wait_signalled, asked)
            await asked.wait()
            nursery.cancel_scope.cancel("the worker was asked to stop")
        if not drain_began.is_set():
            drain_began.set()
            await drain()
            drained.set()
        await drained.wait()
        await raise_shutdown(trio.lowlevel.checkpoint)

    _worker.raise_shutdown = raise_shutdown_when_drained
    return asked


async def _wait_triggered(trigger: Callable[..., Awaitable[None]], asked: trio.Event) -> None:
    await trigger()
    asked.set()


async def _wait_signalled(asked: trio.Event) -> None:
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread may receive signals
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return  # whoever set this knows better, and the second of our two waiters must not
    signals = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signals.append(signal.SIGINT)  # a worker ignores Ctrl+C unless it is the only process
    try:
        with trio.open_signal_receiver(*signals) as received:
            async for _ in received:
                asked.set()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
