"""Several processes behind a real Asterisk: killed, relieved, and with answers that are lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import httpx2
import pytest
import trio

from benchmarks.processes import family
from server.agent.greeting import read_greeting
from server.carrier.asterisk.ari import Ari
from server.carrier.asterisk.carrier import AsteriskCarrier
from server.simulators.gemini import MODEL_SCRIPTS, GeminiSimulator
from tests.asterisk.conftest import KEY, exchange_of, nothing_left
from tests.asterisk.test_real import SPEECH, THEM, US, ended, hears_speech, talk_shortly
from tests.support.asterisk import SECRET, USER, Asterisk, needs_asterisk, until
from tests.support.redis_servers import SECRET as CLUSTER_SECRET
from tests.support.sip_phone import Phone, open_phone

pytestmark = [needs_asterisk, pytest.mark.sockets, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
Begin = Callable[..., Awaitable[trio.Process]]


@asynccontextmanager
async def servers_of(
    pbx: Asterisk, directory: Path, *, model: str = "", **common: object
) -> AsyncGenerator[Begin]:
    """Starts servers of a PBX as processes; they end with the block, however they are.

    Args:
        pbx: Whose calls they have.
        directory: Where they run, and have what they share.
        model: How the model behaves, by the name of a script; empty for what it does otherwise.
        common: Settings of all of them.
    """
    gemini = GeminiSimulator(api_key="model-key")
    if model:
        gemini = GeminiSimulator(api_key="model-key", script=MODEL_SCRIPTS[model])
    started: list[trio.Process] = []
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        # Unix sockets are made in it, so its name is short.
        temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="offhook-"))
        await nursery.start(gemini.run)
        settings = {
            "carrier": "asterisk",
            "asterisk_url": pbx.url,
            "asterisk_user": USER,
            "asterisk_secret": SECRET,
            "gemini_api_key": "model-key",
            "gemini_url": gemini.url,
            "api_key": KEY,
            "max_loop_lag_s": 60,
            "drain_timeout_s": 60,
            "voice_judge": "off",
            **common,
        }

        async def begin(*words: str, **own: object) -> trio.Process:
            named = {name.upper(): str(value) for name, value in (settings | own).items()}
            environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
            environment |= named | {"TMPDIR": temporary}
            start = partial(
                trio.run_process,
                [sys.executable, "-m", "server", *words],
                cwd=directory,
                env=environment,
                check=False,
                start_new_session=True,
                stderr=subprocess.STDOUT,
            )
            process = await nursery.start(start)
            started.append(process)
            return process

        try:
            yield begin
        finally:
            for process in started:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        nursery.cancel_scope.cancel()


async def is_ready(port: int) -> None:
    """Wait until a server takes calls."""
    async with httpx2.AsyncClient(trust_env=False, verify=False) as http:

        async def answers() -> bool:
            with suppress(httpx2.HTTPError):
                return (await http.get(f"http://127.0.0.1:{port}/readyz")).is_success
            return False

        await until(answers, 90.0)


async def calls_of(port: int) -> list[dict]:
    """The live calls that a server tells of."""
    async with httpx2.AsyncClient(trust_env=False, verify=False) as http:
        answer = await http.get(f"http://127.0.0.1:{port}/calls", headers={"X-API-Key": KEY})
        return [one for one in answer.json()["calls"] if one["state"] == "live"]


async def is_answered_again(phone: Phone) -> None:
    """Ask the agent something until it is heard."""
    heard = len(phone.heard)
    phone.says += read_greeting(SPEECH / "caller-question.wav")
    await hears_speech(phone, after=heard)


async def test_a_call_goes_on_in_another_process_when_its_own_is_killed(
    database, redis, pbx, tmp_path, nursery
):
    shared = {
        "registry_url": redis.url,
        "cluster_secret": CLUSTER_SECRET,
        "lease_s": 1,
        "database_url": database,
    }
    async with servers_of(pbx, tmp_path, **shared) as begin, open_phone(pbx.sip) as phone:
        ports = {"a": pbx.server_port, "b": pbx.other_port}
        processes = {}
        for name, client in (("a", "offhook"), ("b", "offhook-b")):
            port = ports[name]
            processes[name] = await begin(
                port=port,
                node=name,
                node_url=f"http://127.0.0.1:{port}",
                asterisk_client=client,
            )
        for name, port in ports.items():
            await is_ready(port)
            await pbx.has_app(f"offhook-{name}.0")
        nursery.start_soon(phone.run)
        await phone.call(US)
        await hears_speech(phone, frames=50)
        apps = {name: await pbx.ask("applications", f"offhook-{name}.0") for name in ports}
        (owner,) = [name for name, app in apps.items() if app["channel_ids"]]
        survivor = "b" if owner == "a" else "a"
        os.killpg(processes[owner].pid, signal.SIGKILL)

        async def has_moved() -> bool:
            app = await pbx.ask("applications", f"offhook-{survivor}.0")
            return len(app["channel_ids"]) == 2 and len(app["bridge_ids"]) == 1

        await until(has_moved)
        await is_answered_again(phone)
        (call,) = await calls_of(ports[survivor])
        await phone.hang_up()
        await nothing_left(pbx)

    assert call["direction"] == "inbound"
    assert call["number"]


async def test_two_workers_share_the_calls_and_one_that_is_killed_loses_none(
    pbx, tmp_path, nursery
):
    settings = {"port": pbx.server_port, "host": "127.0.0.1", "lease_s": 1}
    async with (
        servers_of(pbx, tmp_path, **settings) as begin,
        open_phone(pbx.sip) as first,
        open_phone(pbx.sip) as second,
    ):
        parent = await begin("--workers", "2")
        await is_ready(pbx.server_port)
        for name in ("0", "1"):
            await pbx.has_app(f"offhook-{name}")
        for phone in (first, second):
            nursery.start_soon(phone.run)
            await phone.call(US)
            await hears_speech(phone, frames=50)
        apps = [await pbx.ask("applications", f"offhook-{name}") for name in ("0", "1")]
        before = await joined(pbx)
        os.kill(workers_of(parent)[0], signal.SIGKILL)

        async def are_joined_again() -> bool:
            """Whether both callers and streams are in bridges, one with another stream."""
            now = await joined(pbx)
            return sorted(map(len, now)) == [2, 2] and now != before

        await until(are_joined_again)
        for phone in (first, second):
            await is_answered_again(phone)
        for phone in (first, second):
            await phone.hang_up()
        await nothing_left(pbx)

    assert [len(app["channel_ids"]) for app in apps] == [2, 2]  # a caller, and that one's sound


async def joined(pbx: Asterisk) -> set[frozenset[str]]:
    """Who is in a bridge with whom."""
    return {frozenset(one["channels"]) for one in await pbx.ask("bridges")}


def workers_of(parent: trio.Process) -> list[int]:
    """The processes that serve, of one that has started several."""
    spawned = [
        each
        for each in family(parent.pid)
        if b"multiprocessing.spawn" in Path(f"/proc/{each}/cmdline").read_bytes()
    ]
    return [each for each in spawned if not set(family(each)[1:]) & set(spawned)]


async def test_callers_notice_nothing_of_a_deploy(pbx, tmp_path, nursery):
    served_by: list[str] = []

    async def call_another() -> None:
        """Call, be greeted, and hang up."""
        async with open_phone(pbx.sip) as phone, trio.open_nursery() as talk:
            talk.start_soon(phone.run)
            await phone.call(US)
            await hears_speech(phone)
            app = await pbx.ask("applications", "offhook-1")
            served_by.append("1" if app.get("channel_ids") else "0")
            await phone.hang_up()

    async with (
        servers_of(pbx, tmp_path, port=pbx.server_port, host="127.0.0.1") as begin,
        open_phone(pbx.sip) as first,
    ):
        old = await begin()
        await is_ready(pbx.server_port)
        await pbx.has_app("offhook-0")
        nursery.start_soon(first.run)
        await first.call(US)
        await hears_speech(first)
        await begin("--take-over")
        with trio.fail_after(120):
            while "1" not in served_by:
                await call_another()
        await is_answered_again(first)
        await first.hang_up()
        with trio.fail_after(60):
            status = await old.wait()
        await call_another()
        await nothing_left(pbx)

    assert "1" in served_by
    assert served_by[-1] == "1"
    assert status == 0


@asynccontextmanager
async def losing_answers(pbx: Asterisk, to: bytes) -> AsyncGenerator[tuple[str, list[int]]]:
    """Between a server and Asterisk: the first answer to such a request never comes.

    Yields:
        Where it is, and how many such requests there were.
    """
    asked = [0]

    async def pass_on(client: trio.SocketStream) -> None:
        ari = await trio.open_tcp_stream("127.0.0.1", pbx.http_port)
        is_lost = False
        async with client, ari, trio.open_nursery() as nursery:

            async def forth() -> None:
                nonlocal is_lost
                async for data in client:
                    if data.startswith(to):
                        asked[0] += 1
                        is_lost = asked[0] == 1
                    await ari.send_all(data)

            async def back() -> None:
                with suppress(trio.BrokenResourceError):  # the server may close while it is told
                    async for data in ari:
                        if is_lost:
                            break
                        await client.send_all(data)
                nursery.cancel_scope.cancel()

            with suppress(trio.BrokenResourceError):
                nursery.start_soon(back)
                await forth()
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, pass_on, [listener])
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}", asked
        nursery.cancel_scope.cancel()


async def test_a_phone_rings_once_though_the_answer_to_its_dial_is_lost(pbx, nursery):
    async with (
        losing_answers(pbx, b"POST /ari/channels?") as (url, asked),
        exchange_of(pbx, asterisk_url=url) as exchange,
        exchange.phone(is_callee=True) as phone,
    ):
        nursery.start_soon(phone.run)
        call_sid = await exchange.make_call(THEM)
        await phone.take_call()
        await hears_speech(phone)
        there = [one["id"] for one in await pbx.ask("channels")]
        (call,) = exchange.calls
        await phone.hang_up()
        await ended(exchange, call)

    assert asked[0] in (1, 2)  # Asterisk may have told of the call before it is asked again
    assert [one for one in there if "media" not in one] == [call_sid]
    assert call.end_reason == "caller-hung-up"


async def test_asterisk_refuses_a_second_call_of_a_name_where_no_events_are_heard(pbx):
    async with losing_answers(pbx, b"POST /ari/channels?") as (url, asked):
        ari = Ari(url, USER, SECRET, timeout_s=20.0)
        carrier = AsteriskCarrier(
            ari,
            app="offhook",
            client="offhook",
            number=US,
            dial="PJSIP/{number}@trunk",
            law="ulaw",
            transfer_context="offhook-transfer",
            apology="sound:offhook-apology",
            ring_timeout_s=30.0,
        )
        async with carrier, open_phone(pbx.sip, port=pbx.callee_port):
            placed = await carrier.place_call(THEM, ticket="tick", max_duration_s=60.0)
            there = [one["id"] for one in await pbx.ask("channels")]
            await carrier.hang_up(placed.call_sid)
            await nothing_left(pbx)

    assert asked == [2]
    assert there == [placed.call_sid]


async def test_which_number_is_called_says_who_answers(pbx, tmp_path, nursery):
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "sales.toml").write_text(
        f'name = "sales"\nprompt = "You sell."\nnumbers = ["{US}"]\n'
    )
    async with exchange_of(pbx, agents=tmp_path / "agents") as exchange, exchange.phone() as phone:
        call = await talk_shortly(exchange, phone, nursery)

    assert call.conversation.party.agent.name == "sales"
