"""The live channel of a real browser whose line is cut, and whose server is started anew."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import trio

from tests.support.browser import here, in_browser, sign_in, until
from tests.support.chromium import needs_chromium
from tests.support.processes import API_KEY
from tests.support.serving import Server, serving

pytestmark = [pytest.mark.sockets, pytest.mark.slow, needs_chromium]
INTERRUPTS, TALKS_ON = "5550102", "5550108"
CUTS = 3
COLLECT = """async () => {
  const { live } = await import("/static/console/live.js");
  window.lines = [];
  live.addEventListener("line", ({ detail: { line } }) => lines.push([line.at_s, line.what]));
}"""


@dataclass
class Line:
    """A line between a browser and a server, which can be cut."""

    port: int
    _connections: set[trio.CancelScope] = field(default_factory=set)

    async def serve(self, near: trio.SocketStream) -> None:
        with trio.CancelScope() as connection:
            self._connections.add(connection)
            try:
                async with (
                    near,
                    await trio.open_tcp_stream("127.0.0.1", self.port) as far,
                    trio.open_nursery() as nursery,
                ):
                    nursery.start_soon(self._pass_on, near, far, connection)
                    await self._pass_on(far, near, connection)
            finally:
                self._connections.discard(connection)

    async def _pass_on(
        self, source: trio.SocketStream, to: trio.SocketStream, connection: trio.CancelScope
    ) -> None:
        try:
            async for data in source:
                await to.send_all(data)
        except trio.BrokenResourceError:
            pass  # whoever has cut it is told by the other side
        connection.cancel()

    async def cut(self) -> None:
        """Cut whatever is connected now."""
        for connection in tuple(self._connections):
            connection.cancel()


async def test_a_channel_that_is_cut_goes_on_without_a_gap(nursery, tmp_path):
    database = f"sqlite:///{tmp_path}/calls.db"
    async with serving(api_key=API_KEY, database_url=database) as server:
        server.http.headers["Authorization"] = f"Bearer {API_KEY}"
        line = Line(server.http.base_url.port)
        [listener] = await nursery.start(partial(trio.serve_tcp, line.serve, 0, host="127.0.0.1"))
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"

        def look(page: Any) -> tuple[str, list[Any], int, int]:
            asked: list[str] = []
            page.on("request", lambda request: asked.append(request.url))
            sign_in(page, url)
            until(page, "document.querySelector('[data-tile=sessions] dd').textContent")
            page.evaluate(COLLECT)
            opened = sum("/events" in one for one in asked)
            lists = sum("/calls?" in one for one in asked)
            call_sid = here(server.make_call, INTERRUPTS).json()["call_sid"]
            for _ in range(CUTS):
                known = page.evaluate("lines.length")
                until(page, f"lines.length > {known}")
                here(line.cut)
                page.wait_for_selector(".connection[data-state=connecting]")
                page.wait_for_selector(".connection[data-state=open]")
            until(page, "lines.some(([, what]) => what === 'ended')")
            opened = sum("/events" in one for one in asked) - opened
            lists = sum("/calls?" in one for one in asked) - lists
            return call_sid, page.evaluate("lines"), opened, lists

        call_sid, lines, opened, lists = await in_browser(look, is_cut=True)
        record = (await server.http.get(f"/calls/{call_sid}")).json()

    told = {json.dumps([float(at_s), what]) for at_s, what in lines}
    whole = [json.dumps([float(one["at_s"]), one["what"]]) for one in record["timeline"]]
    assert [one for one in whole if one not in told and "completed" not in one] == []
    assert len(told) == len(lines)
    assert opened >= CUTS
    assert lists == 0


async def test_a_server_that_was_started_anew_is_shown_without_the_calls_of_before(
    nursery, tmp_path
):
    database = f"sqlite:///{tmp_path}/calls.db"
    settings = {"api_key": API_KEY, "database_url": database}
    restart, over = trio.Event(), trio.Event()

    async def serve(task_status: trio.TaskStatus[Server]) -> None:
        async with serving(**settings) as first:
            first.http.headers["Authorization"] = f"Bearer {API_KEY}"
            task_status.started(first)
            await restart.wait()
        async with serving(on_port=first.http.base_url.port, **settings):
            await over.wait()

    server: Server = await nursery.start(serve)

    def look(page: Any) -> None:
        sign_in(page, server.url)
        page.wait_for_selector(".connection[data-state=open]")
        here(server.make_call, TALKS_ON)
        page.wait_for_selector("li.call")
        trio.from_thread.run_sync(restart.set)
        page.wait_for_selector(".connection[data-state=connecting]")
        page.wait_for_selector(".connection[data-state=open]")
        page.wait_for_selector("li.call", state="detached")
        until(page, "document.querySelector('[data-tile=state] dd').textContent === 'Ready'")

    await in_browser(look, is_cut=True)
    over.set()
