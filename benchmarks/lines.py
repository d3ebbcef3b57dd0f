"""What do callers notice when every media socket of a server is cut at once?

Twenty calls over real sockets, each with the agent in the middle of its greeting: a simulated
carrier cuts all of them without a close frame and asks how each goes on. Both ends, the carrier and
the model are in this process. Figures are of real time, and of a clock that leaves out the time in
which the process could not keep up with all of them: on a machine of its own both are near.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx2
import trio
from rich import box
from rich.table import Table

from benchmarks.percentiles import percentiles
from server.app import OffhookApp, create_app
from server.serving.listening import listen
from server.serving.single import serve
from server.settings.settings import Settings
from server.simulators.twilio import SimulatedCall

CALLS = 20
ROUNDS = 5
QUICK_ROUNDS = 2
STREAM_S, AGENT_S = 0.5, 1.0
"""What is promised: until the new stream is there, at the most; until the agent is heard, p95."""
PATIENCE_S = 30.0
NOBODY = dict.fromkeys(
    ("twilio_account_sid", "twilio_auth_token", "twilio_phone_number", "gemini_api_key", "api_key")
)


@dataclass(frozen=True, slots=True)
class _Times:
    """From the cut of one line, by the call's clock and in real time."""

    stream_s: float
    heard_s: float
    stream_real_s: float
    heard_real_s: float


async def cut_lines(rounds: int, calls: int, **settings: Any) -> dict[str, Any]:
    """Cut the sockets of so many calls, so often; when each was served, and heard, again."""
    listener = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    fixed = {"public_url": url, "database_url": "sqlite://", "drain_timeout_s": 0.0}
    fixed |= {"calls_per_s": 1000.0, "simulated_ring_s": 0.3, "simulated_callee": "never-hangs-up"}
    app = create_app(Settings.load(_env_file=None, **(NOBODY | fixed | settings)))
    stop = trio.Event()
    times: list[_Times] = []
    lived = 0
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve, app, listener, stop=stop))
        async with httpx2.AsyncClient(base_url=url, trust_env=False, verify=False) as http:
            for _ in range(rounds):
                phones = await _talking(app, http, calls)
                async with trio.open_nursery() as cutting:
                    for phone in phones:
                        cutting.start_soon(_cut, phone, times)
                for phone in phones:
                    call = app.service.calls.register.get(phone.call_sid)
                    lived += call is not None and call.end_reason is None
                    await http.post(f"/calls/{phone.call_sid}/hang-up")
                    await phone.wait_ended()
        stop.set()
    return {
        "cut": rounds * calls,
        "lived": lived,
        "heard": len(times),
        "stream_ms": _in_ms(one.stream_s for one in times),
        "heard_ms": _in_ms(one.heard_s for one in times),
        "stream_real_ms": _in_ms(one.stream_real_s for one in times),
        "heard_real_ms": _in_ms(one.heard_real_s for one in times),
    }


async def _cut(phone: SimulatedCall, times: list[_Times]) -> None:
    """Cut one line, and note when its caller has another, and hears the agent."""
    began, began_real_s = trio.current_time(), time.perf_counter()
    await phone.phone.cut()
    with trio.move_on_after(PATIENCE_S):
        await phone.wait_streams(2)
        stream, stream_real_s = trio.current_time(), time.perf_counter()
        await phone.phone.sounded.wait()
        times.append(
            _Times(
                stream_s=stream - began,
                heard_s=trio.current_time() - began,
                stream_real_s=stream_real_s - began_real_s,
                heard_real_s=time.perf_counter() - began_real_s,
            )
        )


async def _talking(app: OffhookApp, http: httpx2.AsyncClient, calls: int) -> list[SimulatedCall]:
    """Calls whose agent is heard."""
    twilio = app.service.accounts.simulated_twilio
    assert twilio is not None
    phones: list[SimulatedCall] = []

    async def place() -> None:
        body = {"destination_number": "+15005550108"}
        answer = await http.post("/make-call", json=body, timeout=PATIENCE_S)
        phone = twilio.calls[answer.raise_for_status().json()["call_sid"]]
        await (await phone.wait_stream()).sounded.wait()
        phones.append(phone)

    async with trio.open_nursery() as nursery:
        for _ in range(calls):
            nursery.start_soon(place)
    return phones


def _in_ms(durations_s: Iterable[float]) -> dict[str, float]:
    return percentiles(durations_s, ("p50", "p95", "max"), unit=1000, digits=1)


def holds(outcome: Mapping[str, Any], which_clock: str = "") -> bool:
    """Whether every call lived and was heard again, and as soon as is promised.

    Args:
        outcome: Of :func:`cut_lines`.
        which_clock: ``_real`` for real time; that of the calls without it.
    """
    return bool(
        outcome["cut"]
        and outcome["lived"] == outcome["heard"] == outcome["cut"]
        and outcome[f"stream{which_clock}_ms"]["max"] <= 1000 * STREAM_S
        and outcome[f"heard{which_clock}_ms"]["p95"] <= 1000 * AGENT_S
    )


def lines_table(outcomes: dict[str, dict[str, Any]]) -> Table:
    """One row for each media path."""
    shown = Table(
        title=f"all media sockets of {CALLS} calls cut at once; ms from the cut",
        box=box.SIMPLE_HEAD,
    )
    headings = (
        "media path",
        "clock",
        "calls that live",
        "that are heard",
        "new stream",
        "agent heard again",
        "holds",
    )
    for heading in headings:
        shown.add_column(heading)
    rows = [(name, clock) for name in outcomes for clock in ("real", "patient")]
    for name, clock in rows:
        outcome, which_clock = outcomes[name], "_real" if clock == "real" else ""
        stream, heard = outcome[f"stream{which_clock}_ms"], outcome[f"heard{which_clock}_ms"]
        shown.add_row(
            name,
            clock,
            f"{outcome['lived']} of {outcome['cut']}",
            f"{outcome['heard']} of {outcome['cut']}",
            "  ".join(f"{which} {value:.0f}" for which, value in stream.items()),
            "  ".join(f"{which} {value:.0f}" for which, value in heard.items()),
            "[green]yes[/]" if holds(outcome, which_clock) else "[red]no[/]",
        )
    return shown
