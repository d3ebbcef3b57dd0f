"""What a carrier tells on a connection of ours, where a server has several processes."""

from __future__ import annotations

import time

import msgspec
import pytest
import trio

from server import service as services
from server.call.takeover.state import AwayState
from server.carrier import CallStatus, ResumeRequest, StatusUpdate, TransferUpdate, VoiceRequest
from server.carrier.webhooks import ConnectStream, EndCall, PassOn, RefuseCall, SayAndEndCall
from server.cluster.registry import Holding, Member, Seized
from server.dialogue.endings import EndReason
from tests.call.test_call_state import state
from tests.support.nodes import Store, two_nodes
from tests.support.serving import Server, serving

pytestmark = [pytest.mark.sockets]

CALL = "1764.1"
ASKED = VoiceRequest(CALL, "+15005550100", begins=True)


async def in_progress(server: Server, call_sid: str = CALL):
    """A call of a server's that came in by an event."""
    answer = await server.service.take_report(
        VoiceRequest(call_sid, "", begins=True, is_given=True)
    )
    assert isinstance(answer, ConnectStream)
    return server.service.calls.register.get_live(call_sid)


async def test_alone_a_process_takes_every_new_call():
    async with serving() as server:
        answer = await server.service.take_report(ASKED)

    assert isinstance(answer, ConnectStream)


async def test_a_process_that_stands_aside_gives_new_calls_to_another(monkeypatch):
    async with two_nodes(monkeypatch, Store()) as (first, second):
        at_first = await first.service.take_report(ASKED)
        first.service.cluster.stands_aside = True
        answer = await first.service.take_report(VoiceRequest("1764.2", "", begins=True))
        second.service.calls.draining = True
        second.service.cluster.publish()
        alone = await first.service.take_report(VoiceRequest("1764.3", "", begins=True))
        second.service.calls.draining = False

    assert isinstance(at_first, ConnectStream)
    assert answer == PassOn("b")
    assert isinstance(alone, ConnectStream)  # it was on its way here, and nobody else has room


async def test_a_call_that_was_given_here_is_not_given_on(monkeypatch):
    async with two_nodes(monkeypatch, Store()) as (first, _):
        first.service.cluster.stands_aside = True
        given = VoiceRequest(CALL, "", begins=True, is_given=True)
        answer = await first.service.take_report(given)

    assert isinstance(answer, ConnectStream)


async def test_a_call_that_the_pbx_brings_to_another_process_goes_back_to_its_own(monkeypatch):
    async with two_nodes(monkeypatch, Store()) as (first, second):
        call = await in_progress(second)
        answer = await first.service.take_report(ASKED)

    assert call is not None
    assert answer == PassOn("b")
    assert first.service.calls.register.get(CALL) is None


@pytest.mark.parametrize("why", ["its process is gone", "nobody can say whose it is"])
async def test_a_call_that_the_pbx_brings_is_begun_where_it_cannot_go_back(monkeypatch, why):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        store.calls[CALL] = Holding(GONE if "gone" in why else second.service.cluster.me, 1)
        store.is_away = "nobody" in why
        answer = await first.service.take_report(ASKED)
        store.is_away = False

    assert isinstance(answer, ConnectStream)


async def test_a_call_that_has_ended_here_and_that_the_pbx_brings_again_is_over(monkeypatch):
    async with two_nodes(monkeypatch, Store()) as (first, _):
        call = await in_progress(first)
        call.end(EndReason.TRANSFERRED)
        with trio.fail_after(60):
            await call.finished.wait()
        first.service.cluster.stands_aside = True
        answer = await first.service.take_report(ASKED)

    assert answer == EndCall()


async def test_a_process_that_is_full_refuses(monkeypatch):
    async with serving(max_calls=1) as server:
        await in_progress(server)
        answer = await server.service.take_report(VoiceRequest("1764.2", "", begins=True))

    assert isinstance(answer, RefuseCall)


async def test_a_lost_stream_of_a_call_that_another_has_taken_is_not_replaced_here(monkeypatch):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        call = await in_progress(first)
        store.calls[CALL] = Holding(second.service.cluster.me, 2)
        answer = await first.service.take_report(ResumeRequest(CALL))
        over = StatusUpdate(CALL, CallStatus.COMPLETED, 9)
        await first.service.take_report(over)
        with trio.fail_after(60):
            await call.finished.wait()

    assert answer is None
    assert call.end_reason is EndReason.MOVED


async def test_a_call_of_a_process_that_lives_is_left_to_it(monkeypatch):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        await in_progress(second)
        answer = await first.service.take_report(ResumeRequest(CALL))

    assert answer is None


async def test_a_call_whose_process_has_left_nothing_gets_an_apology(monkeypatch):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, _):
        gone = Member("z", 1)
        store.calls[CALL] = Holding(gone, 1)
        monkeypatch.setattr(first.service.rescue.lookout, "has_settled", lambda: True)
        answer = await first.service.take_report(ResumeRequest(CALL))

    assert isinstance(answer, SayAndEndCall)


GONE = Member("z", 1)


def left(store: Store, **differences: object) -> None:
    """A process that is gone has left a call that goes on."""
    now = time.time()
    talked = {
        **{"kept_at": now, "created_at": now, "answered_at": now, "ends_at": now + 3600.0},
        **{"away": None, "machine": None, "tools": ()},
    }
    store.states[CALL] = msgspec.structs.replace(state(), **(talked | differences)).encode()
    store.calls[CALL] = Holding(GONE, 1)


def can_tell_who_is_gone(monkeypatch, server: Server) -> None:
    monkeypatch.setattr(server.service.rescue.lookout, "has_settled", lambda: True)


async def test_a_call_that_another_takes_from_one_that_is_gone_is_left_to_it(monkeypatch):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        left(store)
        can_tell_who_is_gone(monkeypatch, first)
        registry = first.service.cluster.registry
        seize = registry.seize

        async def too_late(call_sid: str, holding: Holding) -> Seized | None:
            store.calls[call_sid] = Holding(second.service.cluster.me, 2)
            return await seize(call_sid, holding)

        monkeypatch.setattr(registry, "seize", too_late)
        answer = await first.service.take_report(ResumeRequest(CALL))

    assert answer is None


@pytest.mark.slow
async def test_a_call_that_has_come_to_be_ours_without_our_being_told_goes_on_here(monkeypatch):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, _):
        left(store)
        can_tell_who_is_gone(monkeypatch, first)
        store.calls[CALL] = Holding(first.service.cluster.me, 2)
        answer = await first.service.take_report(ResumeRequest(CALL))

    assert isinstance(answer, ConnectStream)


@pytest.mark.parametrize("is_sure", [True, False])
async def test_a_caller_who_comes_back_to_whoever_takes_the_call_over_then_goes_on(
    monkeypatch, is_sure
):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, _):
        left(store, away=AwayState("sales", "+15005550123", is_sure=is_sure))
        can_tell_who_is_gone(monkeypatch, first)
        answer = await first.service.take_report(
            TransferUpdate(CALL, CallStatus.BUSY, wants_document=True)
        )
        call = first.service.calls.register.get_live(CALL)

    assert isinstance(answer, ConnectStream)
    assert call is not None


async def test_a_caller_does_not_come_back_to_a_call_that_another_has_taken(monkeypatch):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second):
        left(store, away=AwayState("sales", "+15005550123"))
        can_tell_who_is_gone(monkeypatch, first)
        asked = TransferUpdate(CALL, CallStatus.BUSY, wants_document=True)
        await first.service.take_report(asked)
        call = first.service.calls.register.get_live(CALL)
        store.calls[CALL] = Holding(second.service.cluster.me, 9)
        answer = await first.service.take_report(asked)
        with trio.fail_after(60):
            await call.finished.wait()

    assert answer is None
    assert call.end_reason is EndReason.MOVED


async def test_a_call_that_somebody_else_takes_all_the_time_is_never_ended_here(monkeypatch):
    monkeypatch.setattr(services, "ASK_AGAIN_S", 0.0)
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, _):
        left(store)
        can_tell_who_is_gone(monkeypatch, first)

        async def too_late(call_sid: str, holding: Holding) -> Seized | None:
            await trio.lowlevel.checkpoint()
            return None

        monkeypatch.setattr(first.service.cluster.registry, "seize", too_late)
        with trio.fail_after(60):
            answer = await first.service.take_report(ResumeRequest(CALL))

    assert answer is None


async def test_a_call_that_has_ended_here_is_over_though_another_that_is_gone_had_it_before(
    monkeypatch,
):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, _):
        call = await in_progress(first)
        call.end(EndReason.HUNG_UP)
        with trio.fail_after(60):
            await call.finished.wait()
        store.calls[CALL], store.states[CALL] = Holding(Member("z", 1), 1), b"1{}"
        store.ended.clear()
        answer = await first.service.take_report(ResumeRequest(CALL))

    assert isinstance(answer, EndCall)


async def test_a_call_that_has_ended_here_is_over_while_the_registry_is_away(monkeypatch):
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, _):
        call = await in_progress(first)
        store.is_away = True
        call.end(EndReason.HUNG_UP)
        with trio.fail_after(60):
            await call.finished.wait()
            answer = await first.service.take_report(ResumeRequest(CALL))

    assert isinstance(answer, EndCall)


@pytest.mark.parametrize("whose", [None, "b"])
async def test_whose_a_call_is_is_asked_until_the_registry_is_back(monkeypatch, whose):
    monkeypatch.setattr(services, "ASK_AGAIN_S", 0.0)
    answers: list[object] = []
    store = Store()
    async with two_nodes(monkeypatch, store) as (first, second), trio.open_nursery() as nursery:
        if whose is not None:
            store.calls[CALL] = Holding(second.service.cluster.me, 1)
        store.is_away, store.asked = True, trio.Event()

        async def ask() -> None:
            answers.append(await first.service.take_report(ResumeRequest(CALL)))

        nursery.start_soon(ask)
        with trio.fail_after(60):
            await store.asked.wait()
        while_away = list(answers)
        store.is_away = False

    assert while_away == []
    assert answers == ([EndCall()] if whose is None else [None])


async def test_a_call_of_nobodys_is_ended():
    async with serving() as server:
        answer = await server.service.take_report(ResumeRequest("offhook-late"))

    assert isinstance(answer, EndCall)
