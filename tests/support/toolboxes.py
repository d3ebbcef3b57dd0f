"""A toolbox, and a call for it to be in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import trio
from prometheus_client import CollectorRegistry

from server.agent.tool import Tool, tool
from server.call.toolbox import Toolbox
from server.carrier import CallStatus
from server.metrics import Metrics
from server.model import ToolCall, ToolResult


@dataclass
class FakeCall:
    """A call as far as a tool can see it."""

    call_sid: str = "CA1"
    direction: Literal["inbound", "outbound"] = "outbound"
    number: str = "+15005550006"
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    hang_ups: int = 0
    transferred: list[tuple[str, str]] = field(default_factory=list)
    transfer_outcome: CallStatus | Exception = CallStatus.COMPLETED
    keys: str = ""

    def note(self, what: str, **facts: Any) -> None:
        self.notes.append((what, facts))

    def hang_up_when_heard(self) -> bool:
        self.hang_ups += 1
        return self.hang_ups == 1

    async def transfer(self, destination: str, number: str) -> CallStatus:
        self.transferred.append((destination, number))
        await trio.sleep(20.0)
        if isinstance(self.transfer_outcome, Exception):
            raise self.transfer_outcome
        return self.transfer_outcome

    def report_voicemail(self) -> Literal["silence"] | None:
        return "silence" if self.direction == "outbound" else None

    def fill_outcome(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        raise ValueError("no outcome")

    async def press_keys(self, keys: str) -> None:
        await trio.sleep(0.2 * len(keys))
        self.keys += keys


async def clean_up_badly(words: str) -> None:
    """Work in two tasks until cancelled: one ends then, and the other's clean-up fails."""

    async def work() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise RuntimeError(words)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.start_soon(work)


def is_busy(box: Toolbox) -> bool:
    """Whether the model waits for an answer."""
    return bool(box._open)


class Bench:
    """A toolbox at work, and everything it has answered."""

    def __init__(self, tools: list[Tool], timeout_s: float) -> None:
        self.call = FakeCall()
        self.metrics = Metrics(CollectorRegistry())
        self.box = Toolbox(tools, self.call, metrics=self.metrics, timeout_s=timeout_s)
        self.answers: list[tuple[float, tuple[ToolResult, ...]]] = []
        self._ids = 0
        self._news = trio.Event()

    def answer(self, results: tuple[ToolResult, ...]) -> None:
        self.answers.append((trio.current_time(), results))
        self._news.set()

    @property
    def is_busy(self) -> bool:
        return is_busy(self.box)

    async def wait_answers(self, count: int) -> None:
        with trio.fail_after(30):
            while len(self.answers) < count:
                self._news = trio.Event()
                await self._news.wait()

    def ask(self, name: str, **arguments: Any) -> str:
        self._ids += 1
        identity = f"id-{self._ids}"
        self.box.request((ToolCall(identity, name, arguments),))
        return identity

    @property
    def responses(self) -> list[Mapping[str, Any]]:
        return [result.response for _, results in self.answers for result in results]

    @property
    def ids(self) -> list[str]:
        return [result.id for _, results in self.answers for result in results]

    def count(self, name: str, outcome: str) -> float:
        labels = {"tool": name, "outcome": outcome}
        return self.metrics.registry.get_sample_value("offhook_tool_calls_total", labels) or 0


@tool
async def echo(value: Any) -> Any:
    """Say it back."""
    return value


@tool
async def slowly(seconds: float) -> str:
    """Take a while."""
    await trio.sleep(seconds)
    return f"after {seconds:g}"
