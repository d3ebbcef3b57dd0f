"""What a call adds to the process's metrics, and that it is what its record says."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from server.agent.agent import Agent
from server.call.report.costs import Prices
from server.dialogue.endings import EndReason
from server.dialogue.turns import Patience
from server.model import Reconnected, Usage, Way
from tests.support.calls_on_a_rig import Rig as MemoryRig
from tests.support.fakes import MemoryModel
from tests.support.rig import calling


def value(metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


async def test_a_call_is_active_while_it_lasts_and_has_ended_once(nursery, autojump_clock):
    rig = MemoryRig()
    metrics = rig.call.conversation.metrics
    nursery.start_soon(rig.call.run)
    await wait_all_tasks_blocked()
    active = value(metrics, "offhook_calls_active")
    rig.call.end(EndReason.HUNG_UP)
    rig.call.end(EndReason.ERROR)
    await rig.call.finished.wait()

    assert active == 1
    assert value(metrics, "offhook_calls_active") == 0
    ended = {
        sample.labels["reason"]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "offhook_calls_ended_total"
    }
    assert ended == {"hung-up": 1}


async def test_tokens_and_costs_are_counted_when_it_ends_by_what_they_are(nursery, autojump_clock):
    rig = MemoryRig(
        model=MemoryModel(name="gemini-3.8-live"), prices=Prices(carrier_minute_usd=0.1)
    )
    metrics = rig.call.conversation.metrics
    nursery.start_soon(rig.call.run)
    nursery.start_soon(rig.call.serve, rig.media, rig.media.start())
    await wait_all_tasks_blocked()
    rig.session.event(
        Usage({"AUDIO": 1_000_000, "TEXT": 7}, {"AUDIO": 500_000, "SMELL": 3}, 1_500_010, 1)
    )
    assert value(metrics, "offhook_cost_usd_total", part="model") == 0
    rig.media.hang_up()
    await rig.call.finished.wait()

    tokens = {
        (way, modality): value(
            metrics, "offhook_model_tokens_total", direction=way, modality=modality
        )
        for way, modality in (
            ("prompt", "audio"),
            ("prompt", "text"),
            ("response", "audio"),
            ("response", "other"),
            ("response", "smell"),
        )
    }
    assert tokens == {
        ("prompt", "audio"): 1_000_000,
        ("prompt", "text"): 7,
        ("response", "audio"): 500_000,
        ("response", "other"): 3,
        ("response", "smell"): None,
    }
    # 3 dollars for a million audio tokens in, 12 for a million out; no minute has begun.
    assert value(metrics, "offhook_cost_usd_total", part="model") == pytest.approx(9.0, abs=0.001)
    assert value(metrics, "offhook_cost_usd_total", part="carrier") == 0.0


async def test_begun_minutes_are_counted_as_the_carriers(nursery, autojump_clock):
    rig = MemoryRig(
        agent=Agent(greeting=""),  # nobody minds that the model says nothing
        patience=Patience(silence_timeout_s=0.0),
        prices=Prices(carrier_minute_usd=0.1),
        media_timeout_s=1_000.0,
    )
    nursery.start_soon(rig.call.run)
    nursery.start_soon(rig.call.serve, rig.media, rig.media.start())
    await trio.sleep(61.0)
    rig.media.hang_up()
    await rig.call.finished.wait()

    cost_usd = value(rig.call.conversation.metrics, "offhook_cost_usd_total", part="carrier")
    assert cost_usd == pytest.approx(0.2)


async def test_a_connection_that_was_replaced_is_counted_and_changes_the_model(
    nursery, autojump_clock
):
    rig = MemoryRig(model=MemoryModel(name="a model without a price"))
    nursery.start_soon(rig.call.run)
    await wait_all_tasks_blocked()
    rig.session.event(
        Reconnected(
            reason="go-away",
            way=Way.RESUME,
            model="gemini-3.8-live",
            gap_s=0.31234,
            lost_s=0.0,
            repeated_s=1.5,
            words_repeated=False,
        )
    )
    rig.session.event(Usage({"AUDIO": 1_000_000}, {}, 1_000_000, 1))
    rig.call.end(EndReason.HUNG_UP)
    await rig.call.finished.wait()
    record = rig.call.record().as_dict()

    metrics = rig.call.conversation.metrics
    labels = {"reason": "go-away", "way": "resume"}
    assert value(metrics, "offhook_model_reconnects_total", **labels) == 1
    (news,) = [moment for moment in record["timeline"] if moment["what"] == "model reconnected"]
    assert news["gap_s"] == 0.312
    assert value(metrics, "offhook_cost_usd_total", part="model") == pytest.approx(3.0)


async def test_what_is_measured_is_observed_once_each_and_as_the_record_has_it(autojump_clock):
    async with calling(callee="interrupts") as rig:
        await rig.over()
    timings, replies = rig.record["timings"], rig.record["replies"]

    def observed(name: str, **labels: str) -> tuple[float | None, float | None]:
        return tuple(value(rig.metrics, f"{name}_{part}", **labels) for part in ("count", "sum"))

    first = observed("offhook_answer_to_first_audio_seconds")
    assert first == (1, pytest.approx(timings["answer_to_first_audio_ms"] / 1000, abs=1e-6))
    cuts = rig.noted.count("barge-in")
    assert cuts > 0
    assert observed("offhook_interrupt_to_clear_seconds")[0] == len(rig.phone.clears)
    assert timings["interrupt_to_clear"]["count"] == len(rig.phone.clears)
    whole = [reply for reply in replies if "total_ms" in reply]
    assert len(whole) > 0
    for stage in ("vad", "model", "codec", "playout", "total"):
        count, total_s = observed("offhook_reply_seconds", stage=stage)
        stages_ms = [reply[f"{stage}_ms"] for reply in replies if f"{stage}_ms" in reply]
        assert count == len(stages_ms)
        assert total_s == pytest.approx(sum(stages_ms) / 1000, abs=0.001 * len(stages_ms))
    assert timings["caller_to_reply"]["count"] == len(whole)
    for direction, name in (("caller", "caller_to_model"), ("agent", "model_to_caller")):
        count, _ = observed("offhook_chunk_latency_seconds", direction=direction)
        assert count == timings[name]["count"] > 10
    assert timings["caller_audio_s"] == pytest.approx(len(rig.phone.said) / 8_000)
