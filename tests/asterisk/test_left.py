"""Calls that do not talk when their process is killed: they ring, are with others, or begin."""

from __future__ import annotations

import os
import signal
import wave
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
import trio

from benchmarks.ports import free_port
from server.agent.greeting import read_greeting
from server.carrier.asterisk.stand_in import EVENTS as STOOD_IN_FOR
from tests.asterisk.conftest import KEY, nothing_left
from tests.asterisk.test_processes import (
    Begin,
    calls_of,
    is_answered_again,
    is_ready,
    losing_answers,
    servers_of,
)
from tests.asterisk.test_real import SPEECH, THEM, US, hears_speech
from tests.support.asterisk import Asterisk, needs_asterisk, until
from tests.support.redis_servers import SECRET as CLUSTER_SECRET
from tests.support.sip_phone import Message, Phone, open_phone

pytestmark = [needs_asterisk, pytest.mark.sockets, pytest.mark.slow]

QUESTION = read_greeting(SPEECH / "caller-question.wav")


@dataclass
class Nodes:
    """Two nodes of a server behind a PBX."""

    pbx: Asterisk
    ports: dict[str, int]
    begin: Begin
    processes: dict[str, trio.Process] = field(default_factory=dict)

    async def start(self, name: str, **own: object) -> None:
        """Start one of them, and wait until it takes calls."""
        port = self.ports[name]
        self.processes[name] = await self.begin(
            port=port,
            node=name,
            **{
                "node_url": f"http://127.0.0.1:{port}",
                "asterisk_client": "offhook" if name == "a" else f"offhook-{name}",
            }
            | own,
        )
        await is_ready(port)
        await self.pbx.has_app(f"offhook-{name}.0")

    def kill(self, name: str) -> None:
        """End one without a goodbye."""
        os.killpg(self.processes[name].pid, signal.SIGKILL)

    async def make_call(self, name: str) -> str:
        """Have one of them place a call; returns its name."""
        async with httpx2.AsyncClient(trust_env=False, verify=False) as http:
            answer = await http.post(
                f"http://127.0.0.1:{self.ports[name]}/make-call",
                json={"destination_number": THEM},
                headers={"X-API-Key": KEY},
            )
        assert answer.status_code == 201, answer.text
        return answer.json()["call_sid"]

    async def left_ringing(self, phone: Phone) -> tuple[str, Message]:
        """Kill a node whose call rings a phone, beside the other: the call, and what rings."""
        await self.start("a")
        call_sid = await self.make_call("a")
        invite = await phone.rings()
        await self.start("b")
        self.kill("a")
        return call_sid, invite

    async def is_followed(self, name: str, call_sid: str) -> None:
        """Wait until one of them is told of a call."""

        async def is_so() -> bool:
            app = await self.pbx.ask("applications", f"offhook-{name}.0")
            return call_sid in app.get("channel_ids", ())

        await until(is_so)

    async def is_stood_in_for(self, name: str) -> None:
        """Wait until another hears the app of one that is gone."""

        async def is_so() -> bool:
            app = await self.pbx.ask("applications", f"offhook-{name}.0")
            allowed = [one["type"] for one in app.get("events_allowed", ())]
            return allowed == list(STOOD_IN_FOR)

        await until(is_so)

    async def record(self, name: str, call_sid: str) -> dict:
        """A call's record, once it is over."""
        found: dict = {}

        async def is_over() -> bool:
            async with httpx2.AsyncClient(trust_env=False, verify=False) as http:
                url = f"http://127.0.0.1:{self.ports[name]}/calls/{call_sid}"
                answer = await http.get(url, headers={"X-API-Key": KEY})
            if answer.is_success:
                found.update(answer.json())
            return found.get("state") == "ended"

        await until(is_over)
        return found


async def is_recorded(path: Path) -> None:
    """Wait until somebody is heard on the agent's side of a call's recording."""

    async def is_so() -> bool:
        return loudest_on_the_right(path) > 1_000

    await until(is_so)


def loudest_on_the_right(path: Path) -> int:
    """The greatest sample of a file's right side; 0 where there is no file."""
    if not path.exists():
        return 0
    with wave.open(str(path)) as file:
        return max(memoryview(file.readframes(file.getnframes())).cast("h")[1::2], default=0)


@pytest.fixture
async def nodes(database, redis, pbx, tmp_path):
    shared = {
        "registry_url": redis.url,
        "cluster_secret": CLUSTER_SECRET,
        "lease_s": 1,
        "database_url": database,
        "recordings_dir": tmp_path / "recordings",
        "ring_timeout_s": 60,
        "transfer_targets": f"sales={THEM}",
        "transfer_ring_timeout_s": 60,
    }
    async with servers_of(pbx, tmp_path, model="transfers", **shared) as begin:
        yield Nodes(pbx, {"a": pbx.server_port, "b": pbx.other_port}, begin)


async def test_a_phone_that_rings_when_its_process_is_killed_is_answered_by_the_agent(
    nodes, nursery, tmp_path
):
    pbx = nodes.pbx
    async with open_phone(pbx.sip, port=pbx.callee_port) as phone:
        nursery.start_soon(phone.run)
        call_sid, invite = await nodes.left_ringing(phone)
        await nodes.is_followed("b", call_sid)
        await nodes.is_stood_in_for("a")
        await phone.pick_up(invite)
        await hears_speech(phone, frames=30)
        (call,) = await calls_of(nodes.ports["b"])
        await phone.hang_up()
        record = await nodes.record("b", call_sid)
        await is_recorded(tmp_path / "recordings" / f"{call_sid}.wav")
        await nothing_left(pbx)

    assert call["call_sid"] == call_sid
    assert record["reason"] == "caller-hung-up"


async def test_a_phone_that_rings_when_its_process_is_killed_and_is_refused_ends_as_that(nodes):
    pbx = nodes.pbx
    async with open_phone(pbx.sip, port=pbx.callee_port) as phone:
        call_sid, invite = await nodes.left_ringing(phone)
        await nodes.is_followed("b", call_sid)
        await phone.refuse(invite, 486)
        record = await nodes.record("b", call_sid)
        await nothing_left(pbx)

    assert record["reason"] == "busy"


async def test_a_phone_that_is_refused_before_another_process_takes_its_call_over_has_failed(nodes):
    pbx = nodes.pbx
    async with open_phone(pbx.sip, port=pbx.callee_port) as phone:
        call_sid, invite = await nodes.left_ringing(phone)
        await phone.refuse(invite, 486)
        await nothing_left(pbx)
        record = await nodes.record("b", call_sid)

    assert record["reason"] == "failed"  # why was told to nobody


@pytest.mark.parametrize("is_taken", [False, True], ids=["nobody takes", "somebody takes"])
async def test_a_caller_on_the_way_to_somebody_else_outlives_their_process(
    nodes, nursery, is_taken
):
    pbx = nodes.pbx
    async with open_phone(pbx.sip) as phone, open_phone(pbx.sip, port=pbx.callee_port) as sales:
        nursery.start_soon(phone.run)
        await nodes.start("a")
        await phone.call(US)
        await hears_speech(phone)
        phone.says += QUESTION
        with trio.fail_after(60):
            invite = await sales.rings()
        (call,) = await calls_of(nodes.ports["a"])
        await nodes.start("b")
        nodes.kill("a")
        await nodes.is_followed("b", call["call_sid"])
        await nodes.is_stood_in_for("a")
        heard = len(phone.heard)
        if is_taken:
            nursery.start_soon(sales.run)
            await sales.pick_up(invite)
            record = await nodes.record("b", call["call_sid"])
            sales.says += QUESTION
            await hears_speech(phone, after=heard)
            await phone.hang_up()
        else:
            await sales.refuse(invite, 486)
            await hears_speech(phone, after=heard)
            await phone.hang_up()
            record = await nodes.record("b", call["call_sid"])
        await nothing_left(pbx)

    assert record["reason"] == ("transferred" if is_taken else "caller-hung-up")


async def test_a_phone_is_answered_by_the_agent_though_a_deploy_came_while_it_rang(
    pbx, tmp_path, nursery
):
    async with (
        servers_of(pbx, tmp_path, port=pbx.server_port, host="127.0.0.1") as begin,
        open_phone(pbx.sip, port=pbx.callee_port) as phone,
    ):
        nursery.start_soon(phone.run)
        old = await begin()
        await is_ready(pbx.server_port)
        await pbx.has_app("offhook-0")
        await Nodes(pbx, {"0": pbx.server_port}, begin).make_call("0")
        invite = await phone.rings()
        await begin("--take-over")
        await pbx.has_app("offhook-1")
        await phone.pick_up(invite)
        await hears_speech(phone, frames=30)
        await phone.hang_up()
        await nothing_left(pbx)
        with trio.fail_after(60):
            status = await old.wait()

    assert status == 0


async def test_a_caller_whom_nobody_has_seen_when_their_process_is_killed_is_answered(
    nodes, nursery, tmp_path
):
    pbx = nodes.pbx
    async with open_phone(pbx.sip) as phone:
        nursery.start_soon(phone.run)
        await nodes.start("a")
        await nodes.start("b")
        os.killpg(nodes.processes["a"].pid, signal.SIGSTOP)  # it is told, and does nothing
        nursery.start_soon(phone.call, US)

        async def has_come() -> bool:
            app = await pbx.ask("applications", "offhook-a.0")
            return bool(app.get("channel_ids"))

        await until(has_come)
        nodes.kill("a")
        await hears_speech(phone)
        (call,) = await calls_of(nodes.ports["b"])
        await phone.hang_up()
        record = await nodes.record("b", call["call_sid"])
        await is_recorded(tmp_path / "recordings" / f"offhook.{call['call_sid']}.wav")
        await nothing_left(pbx)

    assert record["reason"] == "caller-hung-up"


async def test_a_caller_whose_process_is_killed_just_as_they_are_answered_is_not_left_in_silence(
    nodes, nursery
):
    pbx = nodes.pbx
    async with open_phone(pbx.sip) as phone:
        nursery.start_soon(phone.run)
        await nodes.start("a")
        await nodes.start("b")
        nursery.start_soon(phone.call, US)
        with trio.fail_after(60):
            await phone.answered.wait()
        apps = {name: await pbx.ask("applications", f"offhook-{name}.0") for name in "ab"}
        (owner,) = [name for name, app in apps.items() if app["channel_ids"]]
        nodes.kill(owner)
        heard = len(phone.heard)
        await hears_speech(phone, after=heard)  # the agent, or words that it cannot go on
        await phone.hang_up()
        await nothing_left(pbx)


@asynccontextmanager
async def way_to(path: Path) -> AsyncGenerator[tuple[int, trio.CancelScope]]:
    """A port that leads to a Unix socket, and what cuts it off."""

    async def pass_on(client: trio.SocketStream) -> None:
        with suppress(OSError, trio.BrokenResourceError):
            there = await trio.open_unix_socket(path)
            async with client, there, trio.open_nursery() as nursery:

                async def move(one: trio.SocketStream, other: trio.SocketStream) -> None:
                    with suppress(trio.BrokenResourceError):
                        async for data in one:
                            await other.send_all(data)
                    nursery.cancel_scope.cancel("one side has closed")

                nursery.start_soon(move, client, there)
                nursery.start_soon(move, there, client)

    async def lead(listener: trio.SocketListener, way: trio.CancelScope) -> None:
        with way:
            await trio.serve_listeners(pass_on, [listener])

    way = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(lead, listener, way)
        yield listener.socket.getsockname()[1], way
        nursery.cancel_scope.cancel("the block has ended")


async def test_calls_of_a_process_that_is_cut_off_from_all_but_asterisk_are_left_to_it(
    nodes, redis, nursery
):
    pbx = nodes.pbx
    asks = b"POST /ari/events/user/offhook.asks"
    async with (
        way_to(redis.socket) as (port, way),
        losing_answers(pbx, asks) as (url, asked),
        open_phone(pbx.sip) as phone,
        open_phone(pbx.sip, port=pbx.callee_port) as callee,
    ):
        for one in (phone, callee):
            nursery.start_soon(one.run)
        nowhere = f"http://127.0.0.1:{free_port()}"  # so that it cannot be asked, either
        await nodes.start("a", registry_url=f"redis://127.0.0.1:{port}", node_url=nowhere)
        way.cancel("the network is split")
        await phone.call(US)
        await hears_speech(phone)
        (talks,) = await calls_of(nodes.ports["a"])
        call_sid = await nodes.make_call("a")
        invite = await callee.rings()
        await nodes.start("b", asterisk_url=url)

        async def is_asked_again() -> bool:
            return asked[0] >= 4  # one answer is lost, and each time it answers it is left alone

        await until(is_asked_again)
        await callee.pick_up(invite)
        await hears_speech(callee)
        await is_answered_again(phone)
        of_a = {one["call_sid"] for one in await calls_of(nodes.ports["a"])}
        of_b = await calls_of(nodes.ports["b"])
        for one in (phone, callee):
            await one.hang_up()
        await nothing_left(pbx)

    assert of_a == {talks["call_sid"], call_sid}
    assert of_b == []
