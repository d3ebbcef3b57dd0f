"""Functions of the user's that are called with events."""

from __future__ import annotations

import sys
import types

import pytest
import trio
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from server.errors import ConfigurationError
from server.events import handlers as handlers_module
from server.events.event import content_of
from server.events.handlers import Handling, load_handlers, on
from server.metrics import Metrics


def content(kind, call_sid="CA1"):
    record = {"call_sid": call_sid, "created_at": 1.0}
    return content_of(kind, record, at=1.0, public_url="https://x.example")


def outcomes(metrics: Metrics) -> dict[str, float]:
    return {
        name: metrics.registry.get_sample_value("offhook_events_handled_total", {"outcome": name})
        for name in ("ok", "error", "late", "left-out")
    }


async def test_a_function_is_called_with_the_events_that_it_wants(nursery, autojump_clock):
    seen = []

    @on("call.ended")
    async def ended(event):
        seen.append(event["data"]["links"]["call"])

    handling = Handling([ended], Metrics(CollectorRegistry()))
    nursery.start_soon(handling.run)

    handling.tell(content("call.started"))
    handling.tell(content("call.ended"))
    await wait_all_tasks_blocked()

    assert seen == ["https://x.example/calls/CA1"]


async def test_one_that_fails_or_hangs_is_told_of_and_takes_no_other_with_it(
    nursery, autojump_clock
):
    seen = []

    @on("call.started")
    async def fails(event):
        raise RuntimeError("no")

    @on("call.started")
    async def hangs(event):
        await trio.sleep_forever()

    @on()
    async def works(event):
        seen.append(event["type"])

    metrics = Metrics(CollectorRegistry())
    handling = Handling([fails, hangs, works], metrics)
    nursery.start_soon(handling.run)

    with capture_logs() as logs:
        handling.tell(content("call.started"))
        handling.tell(content("call.ended"))
        await trio.sleep(handlers_module.TIMEOUT_S + 1.0)

    assert seen == ["call.started", "call.ended"]
    assert outcomes(metrics) == {"ok": 2, "error": 1, "late": 1, "left-out": 0}
    told = [line["event"] for line in logs]
    assert told == ["event handler failed", "event handler took too long"]


async def test_events_are_left_out_rather_than_kept_without_a_bound(autojump_clock):
    @on()
    async def works(event):
        pass

    metrics = Metrics(CollectorRegistry())
    handling = Handling([works], metrics)  # nobody runs it

    for _ in range(handlers_module.MAX_WAITING + 3):
        handling.tell(content("call.ended"))

    assert outcomes(metrics)["left-out"] == 3


def test_what_cannot_be_a_handler_is_refused_where_it_stands():
    with pytest.raises(TypeError, match="async def"):
        on("call.ended")(lambda event: None)
    with pytest.raises(TypeError, match="no event"):
        on("call.begun")


def test_modules_are_searched_for_handlers(monkeypatch):
    module = types.ModuleType("my_events")

    @on("call.ended")
    async def ended(event):
        pass

    module.ended = ended
    monkeypatch.setitem(sys.modules, "my_events", module)
    monkeypatch.setitem(sys.modules, "nothing_here", types.ModuleType("nothing_here"))

    assert load_handlers(["my_events"]) == (ended,)
    with pytest.raises(ConfigurationError, match="EVENT_HANDLERS: nothing_here has no function"):
        load_handlers(["nothing_here"])
    with pytest.raises(ConfigurationError, match="cannot be imported"):
        load_handlers(["not_there_at_all"])
