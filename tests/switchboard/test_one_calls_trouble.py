"""What goes wrong in one call, its last step included, is that call's alone; what goes wrong in the
server itself is not hidden.
"""

from __future__ import annotations

import pkgutil
import sqlite3
from contextlib import closing, suppress
from dataclasses import replace

import httpx2
import pytest
import structlog.testing
import trio
from trio.testing import wait_all_tasks_blocked

from server.agent.agent import Agent
from server.app import create_app
from server.carrier import CallStatus, StatusUpdate
from server.carrier.twilio.reports import parse_status
from server.dialogue.endings import EndReason
from server.errors import CallRefused
from server.model import AgentAudio, AgentTranscript, Usage
from server.settings.settings import Settings
from server.simulators.twilio import sign
from server.switchboard.calls import Calls
from tests.support.access import SIMULATED
from tests.support.fakes import MemoryCarrier, MemoryMedia, MemoryModel
from tests.support.serving import CALL_SID, serving
from tests.support.switchboards import make_calls, serve_stream, started

pytestmark = pytest.mark.sockets

ENDLESS = 10**400 - 1
NUMBER = "+15005550006"


class KeptRecords:
    """Takes records as the database does, or raises."""

    def __init__(self) -> None:
        self.kept: list[dict] = []
        self.fails = False

    def keep(self, record: dict) -> None:
        if self.fails:
            raise OverflowError("int too large to convert to float")
        self.kept.append(record)


class BadTraces:
    def call_ended(self, call: object) -> None:
        raise ValueError("attribute")

    def close(self) -> None:
        pass


class BadRecordings:
    """Records nothing, and says so with an exception, at the beginning or at the end."""

    def __init__(self, when: str) -> None:
        self._when = when

    def begin(self, call_sid: str, now: float, part: int = 1) -> object:
        if self._when == "begin":
            raise RuntimeError("begin")
        return _BadRecorder()

    def end(self, recorder: object, now: float) -> None:
        raise OSError("end")


class _BadRecorder:
    def __getattr__(self, name: str):
        raise RuntimeError(name)


class BadHangUp(MemoryCarrier):
    async def hang_up(self, call_sid: str) -> None:
        raise TypeError("hang-up")

    async def say_and_hang_up(self, call_sid: str, text: str, language: str) -> None:
        raise ExceptionGroup("several", [TypeError("say"), ValueError("hang-up")])


class BadClose(MemoryMedia):
    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "close")


def usage(tokens: int) -> Usage:
    return Usage(
        turn=1, prompt_tokens={"AUDIO": tokens}, response_tokens={"TEXT": 5}, total_tokens=tokens
    )


async def talking(calls: Calls, nursery: trio.Nursery, media: MemoryMedia | None = None):
    """A call that has its stream, whose agent has said a word."""
    call = await calls.place(NUMBER, Agent())
    media = media or MemoryMedia()
    started(calls, media, call.call_sid)
    nursery.start_soon(serve_stream, calls, media)
    await wait_all_tasks_blocked()
    calls.model.session.event(AgentAudio(b"\x00\x10" * 2_400, 1, trio.current_time()))
    calls.model.session.event(AgentTranscript("Hello.", 1))
    await trio.sleep(0.5)
    return call, media


async def assert_only_this_call_is_over(calls: Calls, call, nursery: trio.Nursery) -> None:
    with trio.fail_after(60):
        await call.finished.wait()
    await wait_all_tasks_blocked()
    assert calls.live_count == 0
    assert calls.register.get_live(call.call_sid) is None
    assert calls.register.get_recent(call.call_sid).end_reason is call.end_reason
    assert call not in [held.call for held in calls.tickets._tickets.values()]
    assert calls.metrics.calls_active._value.get() == 0
    following, media = await talking(calls, nursery)
    media.hang_up()
    await following.finished.wait()
    assert following.end_reason in (EndReason.CALLER_HUNG_UP, EndReason.ERROR)


# -- the last steps of a call ----------------------------------------------------------------


async def test_a_token_count_of_400_digits_ends_no_other_call(autojump_clock, nursery):
    records = KeptRecords()
    calls = make_calls(records=records, model=MemoryModel(name="gemini-3.8-live"))
    await nursery.start(calls.run)
    call, media = await talking(calls, nursery)

    with structlog.testing.capture_logs() as logged:
        calls.model.session.event(usage(ENDLESS))
        await trio.sleep(1.0)
        media.hang_up()
        await call.finished.wait()
        await wait_all_tasks_blocked()
        [record] = records.kept
        call.record().as_dict()

    assert call.end_reason is EndReason.CALLER_HUNG_UP
    assert [turn["speaker"] for turn in record["transcript"]] == ["agent"]
    assert record["cost"] is None
    steps = [entry["step"] for entry in logged if "step" in entry]
    assert len(steps) == len(set(steps))  # each was told of once
    await assert_only_this_call_is_over(calls, call, nursery)


@pytest.mark.parametrize("billed", ["9" * 400, "9" * 5_000])
async def test_a_call_duration_of_400_digits_ends_the_call_and_nothing_else(
    autojump_clock, nursery, billed
):
    records = KeptRecords()
    calls = make_calls(records=records)
    await nursery.start(calls.run)
    call, _ = await talking(calls, nursery)
    form = {"CallSid": CALL_SID, "CallStatus": "completed", "CallDuration": billed}
    update = parse_status(form | {"SequenceNumber": "9"})

    calls.update_status(replace(update, call_sid=call.call_sid))
    await assert_only_this_call_is_over(calls, call, nursery)

    assert call.progress.status is CallStatus.COMPLETED
    assert records.kept[0]["cost"]["billed_minutes"] == 1


@pytest.mark.parametrize(
    "duration", ["9" * 400, "\N{SUPERSCRIPT TWO}", "1e999"], ids=["endless", "odd", "inf"]
)
async def test_an_update_that_nobody_has_bounded_ends_no_other_call(
    autojump_clock, nursery, duration
):
    calls = make_calls(records=KeptRecords())
    await nursery.start(calls.run)
    call, _ = await talking(calls, nursery)
    facts = {"duration_s": duration}

    calls.update_status(StatusUpdate(call.call_sid, CallStatus.COMPLETED, 9, facts))

    await assert_only_this_call_is_over(calls, call, nursery)


@pytest.mark.parametrize(
    "amount",
    [float("inf"), float("-inf"), float("nan"), 1e300, -1.0, ENDLESS, -ENDLESS],
    ids=lambda amount: f"{str(amount)[:5]}",
)
async def test_a_counter_takes_nothing_that_it_would_never_forget(autojump_clock, nursery, amount):
    calls = make_calls(records=KeptRecords())
    await nursery.start(calls.run)
    call, media = await talking(calls, nursery)
    call.conversation.session.lost_s = amount
    calls.model.session.event(usage(amount))
    await trio.sleep(1.0)

    media.hang_up()
    await assert_only_this_call_is_over(calls, call, nursery)

    assert calls.metrics.streams.lost_frames.labels("server")._value.get() == 0
    assert calls.metrics.tokens.labels("prompt", "audio")._value.get() == 0


@pytest.mark.parametrize(
    ("settings", "ours"),
    [
        ({"carrier": BadHangUp()}, True),
        ({"carrier": BadHangUp()}, False),
        ({"traces": BadTraces()}, False),
        ({"recordings": BadRecordings("begin")}, False),
        ({"recordings": BadRecordings("end")}, False),
    ],
    ids=["hang-up", "close", "traces", "begin of a recording", "end of a recording"],
)
async def test_a_last_step_that_fails_keeps_no_other_from_being_done(
    autojump_clock, nursery, settings, ours
):
    records = KeptRecords()
    calls = make_calls(records=records, **settings)
    await nursery.start(calls.run)
    call = await calls.place(NUMBER, Agent())
    media = MemoryMedia() if ours else BadClose()
    started(calls, media)
    nursery.start_soon(_serve, calls, media)
    await wait_all_tasks_blocked()

    call.end(EndReason.HUNG_UP)
    with trio.fail_after(60):
        await call.finished.wait()
    await wait_all_tasks_blocked()

    assert calls.live_count == 0
    assert [record["call_sid"] for record in records.kept] == [call.call_sid]
    assert records.kept[0]["state"] == "ended"
    assert calls.metrics.calls_active._value.get() == 0
    assert calls.tickets._tickets == {}


async def _serve(calls: Calls, media: MemoryMedia) -> None:
    with suppress(RuntimeError):  # whoever serves the stream is told, too
        await serve_stream(calls, media)


async def test_records_that_cannot_be_kept_end_no_call(autojump_clock, nursery):
    records = KeptRecords()
    records.fails = True
    calls = make_calls(records=records)
    await nursery.start(calls.run)
    call, media = await talking(calls, nursery)

    media.hang_up()

    await assert_only_this_call_is_over(calls, call, nursery)


async def test_a_part_of_a_record_that_cannot_be_made_leaves_the_rest(autojump_clock, nursery):
    records = KeptRecords()
    calls = make_calls(records=records)
    await nursery.start(calls.run)
    call, media = await talking(calls, nursery)

    def fail(**_: object) -> None:
        raise ValueError("transcript")

    call.conversation.notes.transcript.as_list = fail
    call.conversation.notes.timings = None  # and whatever is counted there
    media.hang_up()
    await call.finished.wait()
    await wait_all_tasks_blocked()
    [record] = records.kept

    assert record["reason"] == "caller-hung-up"
    assert record["transcript"] is None
    assert record["timings"] is None
    assert record["timeline"][-1]["what"] == "ended"
    assert calls.live_count == 0


@pytest.mark.parametrize("error", [ValueError("collect"), MemoryError()], ids=["bug", "memory"])
async def test_what_fails_in_what_is_heard_ends_its_call_and_not_whoever_reads_the_socket(
    autojump_clock, nursery, error
):
    records = KeptRecords()
    calls = make_calls(records=records)
    await nursery.start(calls.run)
    call, media = await talking(calls, nursery)

    def fail() -> None:
        raise error

    call.conversation.passing.collect = fail
    media.say(bytes(160))
    with trio.fail_after(60):
        await call.finished.wait()
    await wait_all_tasks_blocked()
    [record] = records.kept

    assert (record["reason"], record["state"]) == ("error", "ended")
    assert calls.live_count == 0


# -- calls that begin when nobody runs them any more -----------------------------------------


async def test_a_call_accepted_while_the_server_ends_is_hung_up_and_kept(autojump_clock):
    records, carrier = KeptRecords(), MemoryCarrier(answer_s=5.0)
    calls = make_calls(records=records, carrier=carrier)
    refused: list[str] = []

    async def place() -> None:
        try:
            await calls.place(NUMBER, Agent())
        except CallRefused as refusal:
            refused.append(refusal.reason)

    async with trio.open_nursery() as callers, trio.open_nursery() as nursery:
        await nursery.start(calls.run)
        callers.start_soon(place)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert carrier.hung_up == ["CA1"]
    assert refused == ["failed"]
    assert calls.live_count == 0


async def test_calls_that_a_server_ends_are_hung_up(autojump_clock):
    calls = make_calls(records=KeptRecords())
    async with trio.open_nursery() as nursery:
        await nursery.start(calls.run)
        await calls.place(NUMBER, Agent())
        await calls.place(NUMBER, Agent())  # accepted, and not begun when the end comes
        nursery.cancel_scope.cancel()

    assert sorted(calls.carrier.hung_up) == ["CA1", "CA2"]
    assert calls.live_count == 0
    with pytest.raises(CallRefused):
        await calls.answer("CA3", NUMBER, Agent())


# -- the whole server ------------------------------------------------------------------------


class NoCall:
    """What is no call: whoever runs calls can only fail over it."""

    call_sid = "CA0"


async def test_a_server_whose_inside_has_ended_is_not_ready_and_says_so(tmp_path):
    database = f"sqlite:///{tmp_path}/offhook.db"
    app = create_app(Settings.load(_env_file=None, **SIMULATED, database_url=database))
    async with app.test_app():
        client = app.test_client()
        answer = await client.post("/make-call", json={"destination_number": "+15005550108"})
        phone = app.service.accounts.simulated_twilio.calls[(await answer.get_json())["call_sid"]]
        ready = (await client.get("/readyz")).status_code

        with structlog.testing.capture_logs() as logged, trio.fail_after(60):
            app.service.calls._accepted_in.send_nowait(NoCall())
            await app.service.failed.wait()
            not_ready = await client.get("/readyz")
            refused = await client.post("/make-call", json={"destination_number": "+15005550103"})
            form = {"CallSid": "CA" + "2" * 32, "From": "+15005550199", "CallStatus": "ringing"}
            form["Direction"] = "inbound"
            fields = {name: [value] for name, value in form.items()}
            signature = sign(
                f"{app.service.accounts.public_url}/twiml",
                app.service.accounts.webhooks._auth_token,
                fields,
            )
            headers = {"X-Twilio-Signature": signature}
            document = await client.post("/twiml", form=form, headers=headers)
            alive = await client.get("/healthz")

    assert ready == 200
    assert (not_ready.status_code, (await not_ready.get_json())["reason"]) == (503, "failed")
    assert (refused.status_code, (await refused.get_json())["error"]) == (503, "failed")
    assert document.status_code == 200
    assert "<Stream" not in await document.get_data(as_text=True)
    assert alive.status_code == 200
    told = [entry for entry in logged if entry["log_level"] == "critical"]
    assert [entry["event"] for entry in told] == ["the inside of the server has failed"]
    assert isinstance(told[0]["exc_info"], BaseException)
    # Its call was hung up, and its record was written, before the database was closed.
    assert phone.status in (CallStatus.COMPLETED, CallStatus.CANCELED)
    with closing(sqlite3.connect(tmp_path / "offhook.db")) as kept:
        assert kept.execute("SELECT call_sid, state FROM offhook_calls").fetchall() == [
            (phone.call_sid, "ended")
        ]


async def test_a_server_whose_inside_has_ended_is_served_no_longer():
    with trio.fail_after(60):
        async with serving() as server:
            server.service.calls._accepted_in.send_nowait(NoCall())
            await server.service.failed.wait()
            with suppress(httpx2.TransportError):
                while True:  # until it has stopped listening, though nobody has told it to
                    await server.http.get("/healthz")


async def test_a_server_that_is_shut_down_has_not_failed(fast_clock):
    async with serving() as server:
        await server.finished((await server.make_call("5550103")).json()["call_sid"])

    assert not server.service.failed.is_set()


@pytest.mark.parametrize(
    "step",
    [
        "server.records.recording.Recordings._delete_old",
        "server.records.database.database.Database.write",
        "server.switchboard.admission.LagMeter.record",
        "server.garbage.gc.get_count",
    ],
    ids=lambda step: step.split(".")[1],
)
async def test_a_helper_that_fails_ends_no_call_and_goes_on(
    step, tmp_path, fast_clock, monkeypatch
):
    original, again, times = pkgutil.resolve_name(step), trio.Event(), 0

    def fail_first(*arguments: object) -> object:
        nonlocal times
        times += 1
        if times == 1:
            raise RuntimeError("can't start new thread")
        token.run_sync_soon(again.set)
        return original(*arguments)

    token = trio.lowlevel.current_trio_token()
    monkeypatch.setattr("server.supervision.PAUSE_S", (0.01, 0.01))
    monkeypatch.setattr("server.records.store.RETRY_S", (0.01, 0.01))
    monkeypatch.setattr(step, fail_first)
    async with serving(recordings_dir=tmp_path) as server:
        with trio.fail_after(60):
            record = await server.finished((await server.make_call("5550103")).json()["call_sid"])
            await again.wait()
        ready = await server.http.get("/readyz")

    assert record["reason"] == "caller-hung-up"
    assert ready.status_code == 200
    assert not server.service.failed.is_set()
