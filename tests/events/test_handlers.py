"""Functions of the user's that are called with events."""

from __future__ import annotations

import gc
import sys
import types
import weakref

import pytest
import trio
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from server.errors import ConfigurationError
from server.events import handlers as handlers_module
from server.events.event import CallTold, payload_of
from server.events.handlers import Handling, load_handlers, on
from server.metrics import Metrics
from tests.support.toolboxes import clean_up_badly


def event(kind, call_sid="CA1", **facts):
    told = CallTold({"call_sid": call_sid, "created_at": 1.0, **facts})
    return kind, call_sid, payload_of(kind, told, at=1.0, public_url="https://x.example")


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

    handling.tell(*event("call.started"))
    handling.tell(*event("call.ended"))
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
        handling.tell(*event("call.started"))
        handling.tell(*event("call.ended"))
        await trio.sleep(handlers_module.TIMEOUT_S + 1.0)

    assert seen == ["call.started", "call.ended"]
    assert outcomes(metrics) == {"ok": 2, "error": 1, "late": 1, "left-out": 0}
    told = [line["event"] for line in logs]
    assert told == ["event handler failed", "event handler took too long"]


@pytest.mark.parametrize("in_a_task", [False, True])
async def test_what_a_failed_function_says_is_in_no_log(nursery, autojump_clock, capsys, in_a_task):
    async def fail(event):
        raise RuntimeError(f"cannot write {event['data']['call']['detail']}")

    @on()
    async def fails(event):
        if not in_a_task:
            await fail(event)
        async with trio.open_nursery() as tasks:
            tasks.start_soon(fail, event)

    handling = Handling([fails], Metrics(CollectorRegistry()))
    nursery.start_soon(handling.run)

    handling.tell(*event("call.ended", detail="my card is 4111"))
    await wait_all_tasks_blocked()

    said = "".join(capsys.readouterr())
    assert "event handler failed" in said
    assert "RuntimeError" in said
    assert "in fail" in said
    assert "4111" not in said


async def test_a_function_that_has_failed_leaves_nothing_behind(nursery, autojump_clock):
    raised = []

    class Broken(Exception):
        pass

    @on()
    async def fails(event):
        error = Broken("no")
        raised.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    handling = Handling([fails], Metrics(CollectorRegistry()))
    nursery.start_soon(handling.run)
    gc.disable()  # what only it could free would stay while there are calls
    try:
        handling.tell(*event("call.ended"))
        await wait_all_tasks_blocked()
        left = [each() for each in raised]
    finally:
        gc.enable()

    assert left == [None]


async def test_events_are_left_out_rather_than_kept_without_a_bound(autojump_clock):
    @on()
    async def works(event):
        pass

    metrics = Metrics(CollectorRegistry())
    handling = Handling([works], metrics)  # nobody runs it

    for _ in range(handlers_module.MAX_WAITING + 3):
        handling.tell(*event("call.ended"))

    assert outcomes(metrics)["left-out"] == 3


async def test_large_events_are_left_out_before_they_are_many(autojump_clock):
    @on()
    async def works(event):
        pass

    metrics = Metrics(CollectorRegistry())
    handling = Handling([works], metrics)  # nobody runs it
    kind, call_sid, payload = event("call.ended", detail="x" * 100_000)

    for _ in range(handlers_module.MAX_WAITING):
        handling.tell(kind, call_sid, payload)

    room = handlers_module.MAX_WAITING_BYTES // len(payload)
    assert outcomes(metrics)["left-out"] == handlers_module.MAX_WAITING - room


async def test_what_one_function_does_to_an_event_is_nothing_to_the_others(nursery, autojump_clock):
    seen = []

    @on()
    async def clears(event):
        event["data"].clear()

    @on()
    async def works(event):
        seen.append(event["data"]["call"]["call_sid"])

    handling = Handling([clears, works], Metrics(CollectorRegistry()))
    nursery.start_soon(handling.run)

    handling.tell(*event("call.ended"))
    await wait_all_tasks_blocked()

    assert seen == ["CA1"]


async def test_a_function_that_wants_to_exit_fails_alone(nursery, autojump_clock):
    @on()
    async def exits(event):
        sys.exit(1)

    metrics = Metrics(CollectorRegistry())
    handling = Handling([exits], metrics)
    nursery.start_soon(handling.run)

    handling.tell(*event("call.started"))
    handling.tell(*event("call.ended"))
    await wait_all_tasks_blocked()

    assert outcomes(metrics)["error"] == 2


async def test_a_function_that_fails_as_the_server_stops_raises_nothing(autojump_clock):
    @on()
    async def untidy(event):
        await clean_up_badly("no")

    metrics = Metrics(CollectorRegistry())
    handling = Handling([untidy], metrics)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handling.run)
        handling.tell(*event("call.started"))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert outcomes(metrics)["ok"] == 0


async def test_a_server_that_stops_has_every_function_called_first(nursery, autojump_clock):
    seen = []

    @on()
    async def slow(event):
        await trio.sleep(1.0)
        seen.append(event["type"])

    metrics = Metrics(CollectorRegistry())
    handling = Handling([slow], metrics)
    nursery.start_soon(handling.run)
    handling.tell(*event("call.started"))
    handling.tell(*event("call.ended"))

    await handling.finish()

    assert seen == ["call.started", "call.ended"]


async def test_a_server_that_stops_does_not_wait_for_ever(nursery, autojump_clock, monkeypatch):
    monkeypatch.setattr(handlers_module, "TIMEOUT_S", 0.4 * handlers_module.FINISH_TIMEOUT_S)

    @on()
    async def hangs(event):
        await trio.sleep_forever()

    metrics = Metrics(CollectorRegistry())
    handling = Handling([hangs], metrics)
    nursery.start_soon(handling.run)
    for _ in range(5):
        handling.tell(*event("call.ended"))

    began_at = trio.current_time()
    await handling.finish()

    assert trio.current_time() - began_at == handlers_module.FINISH_TIMEOUT_S
    assert (outcomes(metrics)["late"], outcomes(metrics)["left-out"]) == (2, 3)


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
