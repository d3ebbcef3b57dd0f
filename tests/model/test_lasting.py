"""Sessions that outlive their connections: in memory on a mock clock."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from google.genai import types

from server.agent import phrases
from server.agent.agent import Agent
from server.errors import ModelError, ModelQuotaExceeded, ModelSetupRefused
from server.model import (
    AgentAudio,
    CallerTranscript,
    GenerationComplete,
    Interrupted,
    PastTurn,
    Reconnected,
    ToolCall,
    ToolCallsRequested,
    ToolResult,
    TurnComplete,
    Way,
)
from server.model.gemini.model import GeminiModel
from server.model.lasting.model import LastingModel
from server.model.lasting.unanswered import MAX_WAITING_S, PCM_BYTES_PER_S
from server.simulators.gemini import (
    MODEL_SCRIPTS,
    Drop,
    GeminiSimulator,
    MemorySocket,
    ModelScript,
)
from tests.model.test_lasting_services import StandIn
from tests.support.lasting_talks import (
    HISTORY,
    KEY,
    QUOTA,
    TOOL,
    Conversation,
    Talk,
    silence,
    speech,
    talking,
)

# --- Rotating


async def test_an_old_connection_is_replaced_in_a_silence_and_nothing_is_lost(autojump_clock):
    async with talking(connection_age_s=20.0) as talk:
        for _ in range(10):
            await talk.say(speech(1.0) + silence(4.0))

    assert talk.reconnects == [("age", Way.RESUME)] * 2
    assert talk.heard == talk.said
    assert all(event.reason is None for event in talk.all(TurnComplete))
    turns = [event.turn for event in talk.all(TurnComplete)]
    assert turns == list(range(1, 11))
    assert [event.gap_s for event in talk.all(Reconnected)] == pytest.approx([0.1, 0.1])
    assert [event.lost_s for event in talk.all(Reconnected)] == [0.0, 0.0]


async def test_the_old_socket_is_closed_before_the_session_is_resumed(autojump_clock):
    async with talking(connection_age_s=5.0) as talk:
        await talk.say(speech(1.0) + silence(9.0))

    first, second, *_ = talk.services
    assert first.closed_by_client == 1000
    assert second.resumed_from is first
    assert not any("still in use" in moment.what for moment in second.timeline)


async def test_a_session_says_whether_it_has_a_connection_just_now(autojump_clock):
    script = ModelScript(drop=Drop(2, 0.3, 1006))
    async with talking(script, ModelScript(setup_delay_s=4.0)) as talk:
        before = talk.session.is_connected
        talk.session.send_text("Greet.")
        await talk.say_until(lambda: bool(talk.all(TurnComplete)), silence(0.1))
        talk.session.send_text("Go on.")
        await talk.say_until(lambda: len(talk.all(TurnComplete)) == 2, silence(0.1))
        away = talk.session.is_connected
        await talk.say(silence(3.0))
        still_away = talk.session.is_connected
        await talk.say_until(lambda: bool(talk.reconnects), silence(0.1))
        after = talk.session.is_connected

    assert (before, away, still_away, after) == (True, False, False, True)


async def test_the_agent_finishes_its_sentence_before_a_rotation(autojump_clock):
    async with talking(ModelScript(go_away_at_s=2.0, go_away_left_s=40.0)) as talk:
        talk.session.send_text("Greet.")
        await talk.say(silence(10.0))

    assert talk.pcm(1) == talk.gemini.greeting.pcm
    assert talk.all(TurnComplete) == [TurnComplete(1, None)]
    names = [type(event) for event in talk.events]
    assert names.index(TurnComplete) < names.index(Reconnected)
    assert talk.reconnects == [("go-away", Way.RESUME)]


async def test_a_call_in_which_the_agent_can_still_be_heard_is_not_quiet(autojump_clock):
    async with talking(ModelScript(go_away_at_s=2.0, go_away_left_s=40.0)) as talk:
        talk.session.send_text("Greet.")
        talk.conversation.quiet = False
        await talk.say(silence(20.0))
        assert talk.reconnects == []

        talk.conversation.quiet = True
        await talk.say(silence(0.5))
        assert talk.reconnects == [("go-away", Way.RESUME)]


async def test_without_any_silence_the_rotation_comes_before_the_service_closes(autojump_clock):
    async with talking(ModelScript(go_away_at_s=2.0, go_away_left_s=40.0)) as talk:
        talk.conversation.quiet = False
        await talk.say(silence(1.0) + speech(1.0) + silence(29.8))
        assert talk.reconnects == []
        await talk.say(silence(1.0))

    assert talk.reconnects == [("go-away", Way.RESUME)]
    assert talk.heard == talk.said


async def test_a_caller_who_speaks_or_waits_for_an_answer_is_not_rotated_away(autojump_clock):
    async with talking(ModelScript(reply_delay_s=4.0), connection_age_s=5.0) as talk:
        talk.session.send_text("Greet.")
        await talk.say(silence(4.0) + speech(3.0) + silence(4.0))
        assert talk.reconnects == []
        await talk.say_until(lambda: bool(talk.reconnects), silence(0.5))

    assert [event.reason for event in talk.all(TurnComplete)] == [None, None]
    assert talk.heard == talk.said


async def test_a_sound_that_may_be_speech_is_waited_for_but_a_noisy_line_is_rotated(autojump_clock):
    async with talking(ModelScript(go_away_at_s=6.0, go_away_left_s=60.0)) as talk:
        talk.session.send_text("Greet.")
        await talk.say(silence(5.0))
        talk.is_noise = True
        await talk.say(speech(4.0))
        assert talk.reconnects == []
        await talk.say(speech(6.0))
        assert talk.reconnects == [("go-away", Way.RESUME)]


async def test_no_rotation_while_a_tool_call_is_open(autojump_clock):
    config = types.LiveConnectConfig(tools=[TOOL])
    script = ModelScript(tool_calls=1)
    async with talking(script, connection_age_s=5.0, config=config) as talk:
        await talk.say(speech(1.0) + silence(12.0))
        assert talk.reconnects == []

        (request,) = talk.all(ToolCallsRequested)
        (call,) = request.calls
        talk.session.send_tool_results((ToolResult(call.id, call.name, {"output": 1}),))
        await talk.say_until(lambda: bool(talk.reconnects), silence(0.5))

    assert talk.services[0].tool_results == {call.id: {"output": 1}}
    assert talk.services[0].mistakes == []


# --- Coming back


@pytest.mark.parametrize(
    ("script", "reason"), [("drop-1006", "closed-1006"), ("drop-1011", "closed-1011")]
)
async def test_a_question_whose_answer_broke_off_is_answered_again(
    script: str, reason: str, autojump_clock
):
    question = speech(2.0)
    async with talking(script) as talk:
        talk.session.send_text("Greet.")
        await talk.say(silence(6.0) + question + silence(8.0))

    assert talk.reconnects == [(reason, Way.RESUME)]
    assert talk.all(TurnComplete) == [
        TurnComplete(1, None),
        TurnComplete(2, "CONNECTION_LOST"),
        TurnComplete(3, None),
    ]
    assert 0 < len(talk.pcm(2)) < len(talk.pcm(3))
    assert question in talk.pcm(3)
    (news,) = talk.all(Reconnected)
    assert news.repeated_s == pytest.approx(2.0 + 0.3 + 0.8, abs=0.15)
    assert news.words_repeated
    assert news.gap_s == pytest.approx(0.1)


async def test_words_of_a_question_of_which_only_the_end_is_said_again_are_not_all_repeated(
    autojump_clock,
):
    async with talking("drop-1006") as talk:
        talk.session.send_text("Greet.")
        await talk.say(silence(6.0) + speech(15.0) + silence(8.0))

    (news,) = talk.all(Reconnected)
    assert talk.all(CallerTranscript)
    assert 8.0 < news.repeated_s < 10.1
    assert not news.words_repeated


async def test_a_greeting_that_broke_off_is_asked_for_again(autojump_clock):
    async with talking(ModelScript(drop=Drop(turn=1, after_s=1.0, code=1006))) as talk:
        talk.session.send_text("Greet.")
        talk.conversation.turns = [PastTurn("agent", "Good")]
        await trio.sleep(10.0)

    assert talk.reconnects == [("closed-1006", Way.FRESH)]
    assert [service.texts for service in talk.services] == [["Greet."], ["Good", "Greet."]]


async def test_a_service_that_always_breaks_off_is_given_up(autojump_clock):
    async with talking(ModelScript(drop=Drop(turn=1, after_s=1.0, code=1006))) as talk:
        talk.session.send_text("Greet.")
        await trio.sleep(60.0)

        assert talk.failure is not None
        assert 5 < len(talk.services) < 15


async def test_a_caller_who_is_cut_off_in_mid_sentence_is_heard_whole(autojump_clock):
    async with talking(ModelScript(go_away_at_s=9.0, go_away_left_s=2.0)) as talk:
        talk.session.send_text("Greet.")
        question = speech(6.0)
        # The service closes in the middle of the question.
        await talk.say(silence(6.0) + question + silence(8.0))

    assert question in talk.pcm(2)
    assert talk.all(Reconnected)[0].lost_s == 0


async def test_a_turn_that_was_cut_stays_cut(autojump_clock):
    async with talking(ModelScript(drop=Drop(turn=2, after_s=0.3, code=1006))) as talk:
        talk.session.send_text("Greet.")
        await talk.say(silence(1.0) + speech(1.0) + silence(8.0))

    assert [event.turn for event in talk.all(Interrupted)] == [1]
    turns = [event.turn for event in talk.events if isinstance(event, AgentAudio)]
    assert turns == sorted(turns)
    assert [event.turn for event in talk.all(TurnComplete)] == [1, 2, 3]


async def test_caller_audio_waits_for_the_connection_and_overtakes_real_time(autojump_clock):
    async with talking(
        ModelScript(drop=Drop(1, 0.3, 1006)), ModelScript(setup_delay_s=4.0)
    ) as talk:
        talk.conversation.turns = [PastTurn("caller", "Hello?")]
        talk.session.send_text("Greet.")
        await trio.sleep(0.5)
        numbered = b"".join(n.to_bytes(2, "little") * 320 for n in range(1, 1 + 300))
        await talk.say(numbered)
        await trio.lowlevel.checkpoint()

    assert talk.services[1].heard == numbered
    times = {moment.what: moment.at_s for moment in talk.services[1].timeline}
    assert times["set up"] == pytest.approx(4.0)


async def test_only_so_much_waits_and_what_has_to_go_is_counted(autojump_clock):
    gemini = GeminiSimulator(api_key=KEY, script=ModelScript(drop=Drop(1, 0.3, 1006)))
    down_until = math.inf

    @asynccontextmanager
    async def connect_if_up(url: str, headers: Any) -> AsyncIterator[MemorySocket]:
        if gemini.sessions and trio.current_time() < down_until:
            raise OSError("connection refused")
        async with GeminiSimulator.connect(gemini, url, headers) as socket:
            yield socket

    gemini.connect = connect_if_up  # type: ignore[method-assign]
    async with talking(gemini=gemini) as talk:
        talk.session.send_text("Greet.")
        await trio.sleep(1.0)
        down_until = trio.current_time() + 16.0
        await talk.say_until(lambda: bool(talk.reconnects), speech(1.0))

    (news,) = talk.all(Reconnected)
    assert news.gap_s > MAX_WAITING_S
    assert news.lost_s == pytest.approx(news.gap_s - MAX_WAITING_S, abs=1.2)
    assert news.lost_s + len(talk.services[-1].heard) / PCM_BYTES_PER_S == pytest.approx(
        len(talk.said) / PCM_BYTES_PER_S, abs=0.1
    )


async def test_of_what_is_said_before_the_first_connection_only_so_much_waits(autojump_clock):
    gemini = GeminiSimulator(api_key=KEY)

    @asynccontextmanager
    async def connect_late(url: str, headers: Any) -> AsyncIterator[MemorySocket]:
        await trio.sleep(14.0)
        async with GeminiSimulator.connect(gemini, url, headers) as socket:
            yield socket

    service = GeminiModel(api_key=KEY, connect=connect_late)
    talk = Talk(gemini, Conversation())
    talk.session = LastingModel(service).new_session(Agent(), talk.conversation, talk.take)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(gemini.run, port=None))
        nursery.start_soon(talk.session.run)
        await talk.say(speech(15.0))
        nursery.cancel_scope.cancel()

    assert talk.session.lost_s == pytest.approx(14.0 - MAX_WAITING_S, abs=0.2)
    assert len(talk.heard) / PCM_BYTES_PER_S == pytest.approx(15.0 - talk.session.lost_s, abs=0.1)
    assert bytes(talk.said).endswith(talk.heard[-PCM_BYTES_PER_S:])


async def test_a_service_that_stays_away_is_given_up_after_the_budget(autojump_clock):
    @asynccontextmanager
    async def refuse(url: str, headers: Any) -> AsyncIterator[MemorySocket]:
        raise OSError("connection refused")
        yield

    model = LastingModel(GeminiModel(api_key=KEY, connect=refuse))
    began = trio.current_time()
    with pytest.raises(ModelError, match="connection refused"):
        await model.new_session(Agent(), Conversation(), [].append).run()

    assert 20.0 < trio.current_time() - began <= 30.0


async def test_an_attempt_that_hangs_ends_with_the_budget(autojump_clock):
    began = trio.current_time()
    with pytest.raises(ModelError):
        async with talking(ModelScript(setup_delay_s=1e6), reconnect_budget_s=12.0):
            pass

    assert trio.current_time() - began == pytest.approx(12.0, abs=0.1)


class JustInTime:
    """A service that is ready in the pass of the loop in which the time for it is up."""

    name = "just in time"
    key_name = ""

    def __init__(self, clock: trio.testing.MockClock) -> None:
        self._clock = clock

    @asynccontextmanager
    async def open_connection(self, *_: Any, **options: Any) -> AsyncIterator[StandIn]:
        ready = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pass_time, ready)
            await ready.wait()
        yield StandIn()

    async def _pass_time(self, ready: trio.Event) -> None:
        await trio.testing.wait_all_tasks_blocked()
        ready.set()
        self._clock.jump(1_000.0)


async def test_a_connection_that_is_ready_as_its_time_is_up_is_no_bug(autojump_clock):
    session = LastingModel(JustInTime(autojump_clock)).new_session(
        Agent(), Conversation(), lambda event: None
    )

    with pytest.raises(ModelError, match="in time"):
        await session.run()


async def test_a_wrong_set_up_is_tried_once(autojump_clock):
    gemini = GeminiSimulator(api_key=KEY, script=MODEL_SCRIPTS["bad-setup"])
    with pytest.raises(ModelSetupRefused):
        async with talking(gemini=gemini):
            pass

    assert len(gemini.sessions) == 1


async def test_quota_is_told_at_once_when_a_session_is_opened(autojump_clock):
    gemini = GeminiSimulator(api_key=KEY, script=MODEL_SCRIPTS["quota"])
    with pytest.raises(ModelQuotaExceeded):
        async with talking(gemini=gemini):
            pass

    assert len(gemini.sessions) == 1


async def test_quota_in_mid_call_ends_the_session_for_good(autojump_clock):
    drop = Drop(1, 0.5, QUOTA.code, QUOTA.reason)
    async with talking(ModelScript(drop=drop)) as talk:
        talk.session.send_text("Greet.")
        await trio.sleep(5.0)

        assert isinstance(talk.failure, ModelQuotaExceeded)
        assert not talk.session.send_audio(silence(0.02))
        assert not talk.session.send_note("Hello?")
        assert not await talk.session.reconnect(Way.FRESH, "no-reply")
    assert len(talk.services) == 1


# --- A fresh session


async def test_a_used_up_context_is_replaced_by_a_session_that_is_told_the_story(autojump_clock):
    drop = Drop(2, 0.5, 1007, "The context is too long.")
    async with talking(ModelScript(drop=drop)) as talk:
        talk.session.send_text("Greet.")
        talk.conversation.turns = list(HISTORY)
        await talk.say(silence(6.0) + speech(1.0) + silence(6.0))

    assert talk.reconnects == [("closed-1007", Way.FRESH)]
    fresh = talk.services[1]
    assert fresh.resumed_from is None
    assert fresh.setup["historyConfig"] == {"initialHistoryInClientContent": True}
    assert "handle" not in fresh.setup["sessionResumption"]
    assert fresh.texts == [turn.text for turn in HISTORY]
    assert fresh.mistakes == []
    assert talk.all(TurnComplete)[-1] == TurnComplete(3, None)


async def test_a_lost_handle_is_replaced_by_a_session_that_is_told_the_story(autojump_clock):
    async with talking("lost-handle") as talk:
        talk.session.send_text("Greet.")
        talk.conversation.turns = list(HISTORY)
        await talk.say(silence(6.0) + speech(1.0) + silence(6.0))

    assert talk.reconnects == [("closed-1006", Way.FRESH)]
    assert talk.services[-1].texts == [turn.text for turn in HISTORY]
    assert talk.all(TurnComplete)[-1] == TurnComplete(3, None)


async def test_a_model_that_ignores_turns_is_told_the_story_in_its_instruction(autojump_clock):
    model = "gemini-2.5-flash-native-audio-latest"
    async with talking(model=model) as talk:
        talk.conversation.turns = list(HISTORY)
        assert await talk.session.reconnect(Way.FRESH, "no-reply")

    setup = talk.services[-1].setup
    assert "historyConfig" not in setup
    (part,) = setup["systemInstruction"]["parts"]
    assert part["text"].endswith("You: Good morning.\nCaller: I would like a table.")


async def test_a_very_long_story_is_told_from_its_end(autojump_clock):
    async with talking() as talk:
        talk.conversation.turns = [PastTurn("caller", f"{n} ".ljust(1_000)) for n in range(100)]
        await talk.session.reconnect(Way.FRESH, "no-reply")
        await trio.sleep(1.0)

    assert [int(text.split()[0]) for text in talk.services[-1].texts] == list(range(84, 100))


async def test_an_answer_whose_question_is_gone_is_taken_up_in_words(autojump_clock):
    long_answer = ModelScript(speed=1.0, drop=Drop(1, 4.0, 1011))
    async with talking(long_answer) as talk:
        talk.session._input._max_bytes = PCM_BYTES_PER_S  # the question is soon forgotten
        talk.session.send_text("Greet.")
        await talk.say(silence(10.0))

    assert talk.services[-1].texts[-1] == phrases.CUT_OFF


async def test_an_answer_that_waits_for_a_function_is_taken_up_by_its_result(autojump_clock):
    long_answer = ModelScript(speed=1.0, drop=Drop(1, 4.0, 1011))
    call = ToolCall("id-1", "look_up", {})
    async with talking(long_answer) as talk:
        talk.session._input._max_bytes = PCM_BYTES_PER_S
        talk.session.send_text("Greet.")
        await talk.say(silence(2.0))
        talk.session._take(talk.session._connection, ToolCallsRequested((call,), 1))
        await talk.say(silence(8.0))
        in_between = list(talk.services[-1].texts)
        talk.session.send_tool_results((ToolResult(call.id, call.name, {"output": 7}),))
        await talk.say(silence(1.0))

    assert len(talk.services) == 2
    assert phrases.CUT_OFF not in in_between
    assert "look_up" in talk.services[-1].texts[-1]


# --- Asked for, and elsewhere


@pytest.mark.parametrize("way", [Way.RESUME, Way.FRESH])
async def test_a_silent_model_is_asked_again_over_a_new_connection(way: Way, autojump_clock):
    async with talking("silent-model") as talk:
        talk.session.send_text("Greet.")
        talk.conversation.turns = list(HISTORY)
        question = speech(1.0)
        await talk.say(silence(6.0) + question + silence(3.0))

        assert await talk.session.reconnect(way, "no-reply")
        await talk.say(silence(5.0))

    assert talk.reconnects == [("no-reply", way)]
    assert question in talk.pcm(2)


async def test_there_is_not_always_a_way(autojump_clock):
    async with talking() as talk:
        assert not await talk.session.reconnect(Way.RESUME, "no-reply")
        assert not await talk.session.reconnect(Way.FALLBACK, "no-reply")
    assert len(talk.services) == 1


async def test_the_fallback_takes_over_when_asked_and_stays(autojump_clock):
    async with talking(fallback=True) as talk:
        assert await talk.session.reconnect(Way.FALLBACK, "no-reply")
        assert not await talk.session.reconnect(Way.FALLBACK, "no-reply")
        assert await talk.session.reconnect(Way.FRESH, "no-reply")
        await trio.sleep(0.1)

    models = [service.setup["model"] for service in talk.services]
    other = "models/gemini-3.1-flash-live-preview"
    assert models == ["models/gemini-3.8-live", other, other]
    assert [event.model for event in talk.all(Reconnected)] == ["gemini-3.1-flash-live-preview"] * 2


async def test_the_fallback_takes_over_when_the_quota_is_used_up(autojump_clock):
    drop = Drop(2, 0.5, QUOTA.code, QUOTA.reason)
    async with talking(ModelScript(drop=drop), fallback=True) as talk:
        talk.session.send_text("Greet.")
        talk.conversation.turns = list(HISTORY)
        await talk.say(silence(6.0) + speech(1.0) + silence(5.0))

    assert talk.reconnects == [("closed-1011", Way.FALLBACK)]
    assert talk.all(TurnComplete)[-1] == TurnComplete(3, None)


# --- Tool calls over a reconnect


async def test_a_tool_answer_reaches_a_model_that_does_not_remember_the_call(autojump_clock):
    config = types.LiveConnectConfig(tools=[TOOL])
    async with talking(ModelScript(tool_calls=2, cancel_tool_calls=True), config=config) as talk:
        await talk.say(speech(1.0) + silence(3.0))
        (request,) = talk.all(ToolCallsRequested)
        assert await talk.session.reconnect(Way.FRESH, "no-reply")
        results = [ToolResult(call.id, call.name, {"output": "blue"}) for call in request.calls]
        talk.session.send_tool_results(tuple(results))
        await trio.sleep(5.0)

    fresh = talk.services[-1]
    (words,) = fresh.texts  # one of the two was taken back
    assert words == phrases.was_called("look_up", "{}", '{"output":"blue"}')
    assert fresh.tool_results == {}
    assert fresh.mistakes == []
    assert talk.all(Reconnected)[0].repeated_s == 0


async def test_an_answered_call_is_told_in_words_if_the_answer_may_be_forgotten(autojump_clock):
    config = types.LiveConnectConfig(tools=[TOOL])
    script = ModelScript(tool_calls=1, reply_delay_s=1.0, drop=Drop(2, 0.2, 1008, "aborted"))
    async with talking(script, config=config) as talk:
        await talk.say(speech(1.0) + silence(2.5))
        (request,) = talk.all(ToolCallsRequested)
        (call,) = request.calls
        talk.session.send_tool_results((ToolResult(call.id, call.name, {"output": "red"}),))
        await talk.say(silence(5.0))

    assert talk.services[0].tool_results == {call.id: {"output": "red"}}
    assert '{"output":"red"}' in talk.services[1].texts[-1]


async def test_an_answer_in_the_turn_that_called_is_not_asked_for_again_once_it_was_given(
    autojump_clock,
):
    config = types.LiveConnectConfig(tools=[TOOL])
    model = "gemini-2.5-flash-native-audio-latest"
    async with talking(ModelScript(tool_calls=1), config=config, model=model) as talk:
        await talk.say(speech(1.0) + silence(2.0))
        (request,) = talk.all(ToolCallsRequested)
        (call,) = request.calls
        filler = AgentAudio(bytes(960), request.turn, trio.current_time())
        talk.session._take(talk.session._connection, filler)  # "One moment."
        talk.session.send_tool_results((ToolResult(call.id, call.name, {"output": "red"}),))
        await talk.say_until(lambda: bool(talk.all(GenerationComplete)), silence(0.1))
        assert talk.all(TurnComplete) == []
        assert await talk.session.reconnect(Way.FRESH, "no-reply")
        await talk.say(silence(3.0))

    assert talk.all(GenerationComplete) == [GenerationComplete(request.turn)]
    assert talk.services[1].texts == []


# --- A dead connection


class StalledSocket:
    """A connection that takes nothing any more, and says nothing."""

    def __init__(self, socket: MemorySocket) -> None:
        self._socket = socket
        self.stalled = False
        self.sending = trio.Event()

    async def send(self, message: bytes, *, text: bool) -> None:
        if self.stalled:
            self.sending.set()
            await self._socket.recv(decode=False)  # until it is closed
        await self._socket.send(message, text=text)

    async def recv(self, *, decode: Any) -> bytes:
        return await self._socket.recv(decode=False)

    async def aclose(self, code: int, reason: str) -> None:
        await self._socket.aclose(code, reason)


async def test_a_connection_into_which_nothing_can_be_sent_is_replaced(autojump_clock):
    gemini = GeminiSimulator(api_key=KEY)
    sockets: list[StalledSocket] = []

    @asynccontextmanager
    async def connect_stalling(url: str, headers: Any) -> AsyncIterator[StalledSocket]:
        async with GeminiSimulator.connect(gemini, url, headers) as socket:
            sockets.append(StalledSocket(socket))
            yield sockets[-1]

    gemini.connect = connect_stalling  # type: ignore[assignment, method-assign]
    async with talking(gemini=gemini) as talk:
        await talk.say(silence(1.0))
        sockets[0].stalled = True
        began = trio.current_time()
        await talk.say(speech(1.0))
        recovered_s = trio.current_time() - began
        await talk.say(silence(6.0))

    assert [reason for reason, _ in talk.reconnects] == ["broken"]
    assert recovered_s < 12.0
    assert talk.pcm(1)
