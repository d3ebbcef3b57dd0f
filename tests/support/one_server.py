"""A server on a free port of this machine; its address on stdout, its log on stderr."""

from __future__ import annotations

import sys

import trio

from server import logs
from server.app import create_app
from server.serving.single import listen, serve, stop_on_signal
from server.settings.settings import Settings


async def main() -> None:
    listener = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    app = create_app(Settings.load(_env_file=None, public_url=url, drain_timeout_s=0.0))
    stop = trio.Event()

    async def run(task_status: trio.TaskStatus[None]) -> None:
        await serve(app, listener, stop=stop, task_status=task_status)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_on_signal, stop)
        await nursery.start(run)
        sys.stdout.write(f"{url}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    logs.configure(level="INFO", json=True)
    trio.run(main)
