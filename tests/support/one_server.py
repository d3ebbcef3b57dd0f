"""A server on a free port of this machine; its address on stdout, its log on stderr."""

from __future__ import annotations

import sys
from functools import partial

import trio

from server import logs
from server.app import create_app
from server.serving.listening import listen
from server.serving.single import serve
from server.serving.stops import stop_signals
from server.settings.settings import Settings


async def main() -> None:
    listener = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    app = create_app(Settings.load(_env_file=None, public_url=url, drain_timeout_s=0.0))
    stop, signals = trio.Event(), stop_signals()
    signals.install()
    with signals.told(stop):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve, app, listener, stop=stop))
            sys.stdout.write(f"{url}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    logs.configure(level="INFO", json=True)
    trio.run(main)
