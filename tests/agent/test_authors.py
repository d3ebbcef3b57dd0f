"""What whoever writes a tool is told, and how their docstrings are read."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress

import pytest
import trio
from structlog.testing import capture_logs

from codec import beat
from server.agent.results import Result
from server.agent.roster.agents import NewCall
from server.agent.roster.files import read_agents
from server.agent.tool import tool
from server.events.handlers import on
from server.logs.authors import BLOCKS, SAY_EVERY_S, USES_ASYNCIO, Held, hint_of
from server.settings.settings import Settings
from tests.support.kept_garbage import garbage_kept
from tests.support.serving import serving

DOCSTRINGS = {
    "google": """Book a table.

    Only after the caller has agreed.

    Args:
        guests: How many people,
            children included.
        when (str): The day.

    Returns:
        Whether it worked.
    """,
    "numpy": """Book a table.

    Only after the caller has agreed.

    Parameters
    ----------
    guests : int
        How many people,
        children included.
    when : str
        The day.

    Returns
    -------
    str
        Whether it worked.
    """,
    "sphinx": """Book a table.

    Only after the caller has agreed.

    :param guests: How many people,
        children included.
    :param str when: The day.
    :returns: Whether it worked.
    """,
}


@pytest.mark.parametrize("style", DOCSTRINGS)
def test_a_docstring_of_any_usual_style_is_read(style):
    def book(guests: int, when: str) -> str:
        return f"{guests} {when}"

    book.__doc__ = DOCSTRINGS[style]

    made = tool(book)

    assert made.description == "Book a table.\n\nOnly after the caller has agreed."
    described = {name: one["description"] for name, one in made.parameters["properties"].items()}
    assert described == {"guests": "How many people, children included.", "when": "The day."}


async def _sleeps() -> None:
    await asyncio.sleep(0.01)


async def _asks_for_the_loop() -> None:
    asyncio.get_running_loop()


async def _awaits_a_future() -> None:
    loop = asyncio.new_event_loop()
    try:
        await loop.create_future()
    finally:
        loop.close()


@pytest.mark.parametrize("function", [_sleeps, _asks_for_the_loop, _awaits_a_future])
async def test_whoever_uses_asyncio_is_told_what_to_do(function):
    with pytest.raises((RuntimeError, TypeError)) as failed:
        await Held("f").watch(function())

    assert hint_of(failed.value) == USES_ASYNCIO


@pytest.mark.parametrize("error", [RuntimeError("no"), ValueError("no running event loop")])
def test_other_failures_have_no_hint(error):
    assert hint_of(error) is None


async def _waits_for_ever() -> None:
    await trio.sleep_forever()


async def _waits_and_fails() -> None:
    await trio.lowlevel.cancel_shielded_checkpoint()  # it has waited, and is not cancelled there
    raise ValueError


async def _fails_as_it_is_cancelled() -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise ValueError


@pytest.mark.parametrize("function", [_waits_for_ever, _waits_and_fails, _fails_as_it_is_cancelled])
async def test_a_function_that_comes_to_nothing_leaves_nothing_to_the_garbage_collector(function):
    async def come_to_nothing() -> None:
        with trio.move_on_after(0), suppress(ValueError):
            await Held("f").watch(function())
        await trio.lowlevel.checkpoint()  # trio has what it threw until then

    await come_to_nothing()
    with garbage_kept() as left:
        await come_to_nothing()

    assert left == []


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


async def test_a_function_that_keeps_the_loop_is_named_once_a_minute(clock):
    async def blocks(seconds: float) -> str:
        await trio.lowlevel.checkpoint()
        clock[0] += seconds
        await trio.lowlevel.checkpoint()
        return "done"

    held = Held("slow")
    with capture_logs() as logged:
        assert await held.watch(blocks(0.01)) == "done"
        assert logged == []
        await held.watch(blocks(0.4))
        await held.watch(blocks(0.4))
        clock[0] += SAY_EVERY_S
        await held.watch(blocks(0.4))

    assert [(line["function"], line["held_ms"], line["hint"]) for line in logged] == [
        ("slow", 400, BLOCKS)
    ] * 2


async def test_what_waits_keeps_nobody(clock, autojump_clock):
    async def waits() -> None:
        await trio.sleep(5.0)

    with capture_logs() as logged:
        await Held("patient").watch(waits())

    assert logged == []


async def test_a_watched_function_is_cancelled_and_fails_like_any_other(autojump_clock):
    ended = []

    async def waits() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("cancelled")

    async def fails() -> None:
        await trio.sleep(1.0)
        raise ValueError("no")

    with trio.move_on_after(1.0) as scope:
        await Held("f").watch(waits())
    with pytest.raises(ValueError, match="no"):
        await Held("f").watch(fails())

    assert scope.cancelled_caught
    assert ended == ["cancelled"]


class _Call:
    """A call, as far as a tool has it."""

    number = "+15005550199"

    def __init__(self) -> None:
        self.noted_at: list[float] = []

    def note(self, what: str, **facts: object) -> str:
        self.noted_at.append(trio.current_time())  # an error in any other thread
        return what

    async def press_keys(self, keys: str) -> None:
        raise AssertionError


@pytest.fixture
def use_tool():
    async def use(function, call: _Call) -> object:
        result = await tool(function).run({}, call, trio.CapacityLimiter(1))
        assert isinstance(result, Result)
        return result.value

    return use


async def test_a_plain_function_has_the_call_from_its_thread(use_tool):
    def remember(call) -> str:
        """Write it down."""
        return f"{call.note('asked', where='here')} by {call.number}"

    call = _Call()

    assert await use_tool(remember, call) == "asked by +15005550199"
    assert len(call.noted_at) == 1


async def test_a_plain_function_is_told_what_it_cannot_await(use_tool):
    def press(call) -> None:
        """Press a key."""
        call.press_keys("1")

    with pytest.raises(TypeError, match=r"call\.press_keys has to be awaited: write `async def`"):
        await use_tool(press, _Call())


async def test_a_route_and_a_handler_are_watched_like_a_tool(clock, tmp_path):
    @on("call.ended")
    async def ended(event) -> None:
        clock[0] += 0.3

    (tmp_path / "agents.py").write_text(
        "import asyncio\nasync def route(call):\n    await asyncio.sleep(1)\n"
    )
    agents = read_agents(Settings(_env_file=None, agents=tmp_path / "agents.py"))
    assert agents.route is not None

    with capture_logs() as logged:
        await ended.function({})
        with pytest.raises(RuntimeError, match="no running event loop"):
            await agents.route(NewCall("inbound", "+15005550199"))

    told = [(line["kind"], line["function"].rpartition(".")[2], line["hint"]) for line in logged]
    assert told == [("event handler", "ended", BLOCKS), ("route", "route", USES_ASYNCIO)]
    assert ended.name.endswith("ended")


@pytest.mark.slow
@pytest.mark.sockets
async def test_a_tool_that_blocks_is_named_and_the_loop_is_seen_to_be_late(tmp_path, monkeypatch):
    """On a served call: not the watch alone, but what whoever runs the server gets to see."""
    (tmp_path / "blocking_tools.py").write_text(
        "import time\n"
        "from server.agent.tool import tool\n"
        "from server.logs import authors\n\n\n"
        "@tool\n"
        "async def look_up() -> str:\n"
        '    """Look something up."""\n'
        "    time.sleep(0.4)\n"
        "    while authors.where and 'look_up' not in str(authors.where()):\n"
        "        time.sleep(0.05)  # until it was seen\n"
        "    return 'found'\n"
    )
    script = tmp_path / "model.toml"
    script.write_text('[[turns]]\ncalls = [{name = "look_up"}]\nsays = "Found."\n')
    monkeypatch.syspath_prepend(tmp_path)

    with capture_logs() as logged:
        async with serving(
            tools=["blocking_tools"],
            simulated_model_script=script,
            simulated_callee="asks-once",
            watch_loop=True,
        ) as server:
            await server.finished((await server.make_call("5550117")).json()["call_sid"])
            counted = (await server.http.get("/metrics")).text

    (told,) = (line for line in logged if line["event"] == "a function held up every call")
    assert (told["kind"], told["function"]) == ("tool", "look_up")
    assert told["held_ms"] >= 400
    if beat.AVAILABLE:
        assert any(re.search(r"/blocking_tools\.py:\d+ look_up$", place) for place in told["at"])
    late = dict(re.findall(r'offhook_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)', counted))
    assert float(late["+Inf"]) > float(late["0.25"])
