"""Results of functions: written where the function runs, and no more of them than can be told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any

import pytest
from pydantic import BaseModel, Field, model_serializer
from trio.testing import wait_all_tasks_blocked

from server.agent.results import MAX_OBJECT_BYTES, MAX_RESULT_BYTES
from server.agent.tool import ToolError, tool


class Order(BaseModel):
    """Tells who writes it."""

    rows: list[Any] = []
    told: Callable[[], None]

    @model_serializer
    def _written(self) -> dict[str, bool]:
        self.told()
        return {"in_a_thread": _is_in_a_thread()}


@dataclass(slots=True)
class Report:
    rows: Any


def _is_in_a_thread() -> bool:
    return threading.current_thread() is not threading.main_thread()


async def test_a_generator_runs_where_its_function_does_and_its_values_are_told(bench):
    @tool
    def rows() -> Iterator[bool]:
        """Look them up."""
        yield _is_in_a_thread()
        yield _is_in_a_thread()

    @tool
    def found() -> dict[str, Any]:
        """Look them up, too."""
        return {"rows": (_is_in_a_thread() for _ in range(2)), "all": True}

    at_work = bench(rows, found)
    at_work.ask("rows")
    await at_work.wait_answers(1)
    at_work.ask("found")
    await at_work.wait_answers(2)

    assert at_work.responses == [
        {"output": [True, True]},
        {"output": {"rows": [True, True], "all": True}},
    ]


async def test_a_generator_of_a_function_on_the_loop_is_told_too(autojump_clock, bench):
    @tool
    async def rows() -> Iterator[int]:
        """Look them up."""
        return (2 * row for row in range(3))

    at_work = bench(rows)
    at_work.ask("rows")
    await wait_all_tasks_blocked()

    assert at_work.responses == [{"output": [0, 2, 4]}]


async def test_a_generator_that_waits_holds_nobody_up_and_is_left_behind_in_time(bench):
    release = threading.Event()

    @tool(timeout_s=0.05)
    def rows() -> Iterator[int]:
        """Wait for something that does not come."""
        release.wait(10)
        yield 1

    at_work = bench(rows)
    at_work.ask("rows")
    try:
        await at_work.wait_answers(1)
    finally:
        release.set()

    assert "0.05 seconds" in at_work.responses[0]["error"]


async def test_a_generator_that_does_not_end_is_told_as_too_long(bench):
    taken = []

    @tool
    def rows() -> Any:
        """Count."""
        return {"rows": [(taken.append(row) for row in count())]}

    at_work = bench(rows)
    at_work.ask("rows")
    await at_work.wait_answers(1)

    assert "too long" in at_work.responses[0]["error"]
    assert len(taken) <= MAX_RESULT_BYTES


async def test_what_goes_wrong_in_a_generator_goes_wrong_in_its_function(bench):
    @tool
    def refuses() -> Iterator[int]:
        """Refuse."""
        yield 1
        raise ToolError("there are no more")

    @tool
    def fails() -> Iterator[int]:
        """Fail."""
        yield int("one")

    at_work = bench(refuses, fails)
    at_work.ask("refuses")
    await at_work.wait_answers(1)
    at_work.ask("fails")
    await at_work.wait_answers(2)

    refused, failed = (response["error"] for response in at_work.responses)
    assert refused == "there are no more"
    assert "the function failed" in failed


async def test_the_result_of_a_plain_function_is_written_in_its_thread(bench):
    @tool
    def order() -> Order:
        """Look it up."""
        return Order(told=lambda: None)

    at_work = bench(order)
    at_work.ask("order")
    await at_work.wait_answers(1)

    assert at_work.responses == [{"output": {"in_a_thread": True}}]


MANY = MAX_OBJECT_BYTES // 2


@pytest.mark.parametrize(
    "returned",
    [
        lambda told: [Order(told=told)] * MANY,
        lambda told: [Order(told=told), b"x" * MAX_RESULT_BYTES],
        lambda told: Order(told=told, rows=[0] * MANY),
        lambda told: Report([Order(told=told), {"rows": [0] * MANY}]),
    ],
)
async def test_what_is_too_long_is_not_written_first(autojump_clock, bench, returned):
    written = []
    value = returned(lambda: written.append(1))

    @tool
    async def report() -> Any:
        """Look it up."""
        return value

    at_work = bench(report)
    at_work.ask("report")
    await wait_all_tasks_blocked()

    assert "too long" in at_work.responses[0]["error"]
    assert not written


async def test_a_model_is_told_though_it_has_more_than_it_tells(autojump_clock, bench):
    @tool
    async def order() -> Order:
        """Look it up."""
        return Order(told=lambda: None, rows=["x" * MAX_RESULT_BYTES])

    at_work = bench(order)
    at_work.ask("order")
    await wait_all_tasks_blocked()

    assert at_work.responses == [{"output": {"in_a_thread": False}}]


class Customer(BaseModel):
    """Knows its orders, which know it."""

    name: str
    orders: list[Any] = Field(default=[], exclude=True)

    @cached_property
    def newest(self) -> Any:
        """Kept with the fields once it was asked for."""
        return self.orders[-1]


class Booked(BaseModel):
    customer: Customer


async def test_a_model_that_leads_back_to_itself_beside_what_it_tells_is_told(
    autojump_clock, bench
):
    @tool
    async def book() -> Booked:
        """Book."""
        booked = Booked(customer=Customer(name="Ada"))
        booked.customer.orders.append(booked)
        assert booked.customer.newest is booked
        return booked

    at_work = bench(book)
    at_work.ask("book")
    await wait_all_tasks_blocked()

    assert at_work.responses == [{"output": {"customer": {"name": "Ada"}}}]
