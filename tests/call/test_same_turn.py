"""What a model says when it has its functions' results, in the turn in which it called them: the
caller may have cut, or missed, what it said before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from codec.ear import Stop
from codec.line import BYTES_PER_S, FRAME_BYTES, FRAME_S, SILENCE
from server.agent.agent import Agent
from server.agent.builtin import transfer_tool
from server.agent.tool import tool
from server.call.conversation import Stage
from server.carrier import (
    CallStatus,
    CarrierCommand,
    Clear,
    MarkReached,
    SendAudio,
    SendMark,
    StreamStopped,
)
from server.dialogue.endings import EndReason
from server.dialogue.remedies import Patience
from server.model import Usage
from server.model.gemini.model import GeminiModel
from server.model.lasting.model import LastingModel
from server.simulators.gemini import FunctionCall, GeminiSimulator, ModelScript
from server.simulators.gemini.scripts import ScriptedTurn
from server.simulators.phone import load_speech
from tests.support.calls_on_a_rig import Rig
from tests.support.fakes import MemoryMedia

pytestmark = pytest.mark.sockets

MODELS = (
    "gemini-3.8-live",  # which ends its turn at the call
    "gemini-3.1-flash-live-preview",
    "gemini-2.5-flash-native-audio-latest",
)
SALES = "+15005550123"
ONE_MOMENT, ANSWER = "One moment please.", "Here is what has come of it."
LOOK_UP_S = 8.0
TAKES_S = 0.5
"""The model, from the results to its answer."""


@tool(timeout_s=30.0)
async def look_up() -> str:
    """Look something up."""
    await trio.sleep(LOOK_UP_S)
    return "found"


class HeardMedia(MemoryMedia):
    """A stream that plays what it is sent, and echoes marks when it has played up to them."""

    def __init__(self) -> None:
        super().__init__()
        self._played_at = 0.0
        self._marks: list[tuple[float, str]] = []

    def send(self, command: CarrierCommand) -> None:
        super().send(command)
        now = trio.current_time()
        match command:
            case SendAudio(payload=payload):
                self._played_at = max(now, self._played_at) + len(payload) / BYTES_PER_S
            case SendMark(name=name):
                self._marks.append((self._played_at, name))
            case Clear():
                self._played_at = now
                self._marks = [(now, name) for _, name in self._marks]

    async def run(self, frame: bytes = SILENCE * FRAME_BYTES) -> None:
        """Be a line on which nothing is said, until it is lost."""
        while not self.left:
            self.say(frame)
            due = [name for at, name in self._marks if at <= trio.current_time()]
            self._marks = [mark for mark in self._marks if mark[1] not in due]
            for name in due:
                self.event(MarkReached(name, trio.current_time()))
            await trio.sleep(FRAME_S)


class Asked(Rig):
    """A call whose caller has asked for something that takes a function."""

    media: HeardMedia

    def __init__(self, nursery: trio.Nursery, gemini: GeminiSimulator, model: str, **options: Any):
        gemini_model = GeminiModel(api_key="k", connect=gemini.connect, model=model)
        tools = (look_up, transfer_tool({"sales": SALES}))
        super().__init__(
            agent=Agent(greeting="", tools=tools),
            model=LastingModel(gemini_model),
            patience=Patience(silence_timeout_s=0.0),
            **options,
        )
        self.nursery, self.gemini = nursery, gemini
        self.media = HeardMedia()

    async def ask(self) -> None:
        """Say something, and be told to wait."""
        await self.begin(self.nursery)
        await self.call.conversation.session.wait_ready()
        speech = load_speech("question")
        for at in range(0, len(speech), FRAME_BYTES):
            self.media.say(speech[at : at + FRAME_BYTES])
            await trio.sleep(FRAME_S)
        self.nursery.start_soon(self.media.run)
        with trio.fail_after(10):
            await self.call.conversation.turn_changed.until(
                lambda: bool(self.call.conversation.turns.tools_open)
            )

    async def come_back(self) -> None:
        self.media = HeardMedia()
        self.nursery.start_soon(self.call.serve, self.media, self.media.start())
        self.nursery.start_soon(self.media.run)

    async def is_answered(self) -> None:
        """Wait until the function's answer was heard."""
        c = self.call.conversation
        with trio.fail_after(30):
            await c.changed.until(
                lambda: not c.turns.tools_open and c.heard_out == c.agent_turn > 1
            )

    @property
    def nudges(self) -> list[str]:
        return [text for session in self.gemini.sessions for text in session.texts]

    @property
    def said(self) -> list[tuple[str, str, bool]]:
        """What the agent has said: as it was heard, what of it was not, and whether it was cut."""
        return [
            (turn["text"], turn.get("unheard", ""), turn["cut"])
            for turn in self.call.record().as_dict()["transcript"]
            if turn["speaker"] == "agent"
        ]


@asynccontextmanager
async def asked(model: str, *calls: FunctionCall, **options: Any) -> AsyncIterator[Asked]:
    script = ModelScript(
        setup_delay_s=0.0,
        turns=(ScriptedTurn("", calls or (FunctionCall("look_up"),), ANSWER),),
        before_functions=ONE_MOMENT,
        result_delay_s=TAKES_S,
    )
    gemini = GeminiSimulator(api_key="k", script=script)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(gemini.run, port=None))
        rig = Asked(nursery, gemini, model, **options)
        await rig.ask()
        yield rig
        rig.call.end(EndReason.HUNG_UP)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("model", MODELS)
async def test_an_answer_is_heard_though_the_words_before_it_were_cut(autojump_clock, model):
    async with asked(model) as rig:
        rig.call.conversation.ear.on_found((Stop.CUT,))
        await rig.is_answered()

        (cut, answer) = rig.said
        assert rig.nudges == []
        assert (cut[0] + " " + cut[1]).strip() == ONE_MOMENT
        assert cut[2]
        assert answer == (ANSWER, "", False)


@pytest.mark.parametrize(
    ("after_s", "lost_s"), [(0.0, 1.0), (2.0, LOOK_UP_S)], ids=["in their middle", "until after it"]
)
async def test_an_answer_is_heard_though_the_line_was_lost_after_the_words_before_it(
    autojump_clock, after_s, lost_s
):
    # A model that takes notes is told of the gap, and gives up what it does for that.
    async with asked("gemini-3.1-flash-live-preview", line_lost_timeout_s=60.0) as rig:
        await trio.sleep(after_s)
        rig.media.event(StreamStopped(said=False))
        await trio.sleep(lost_s)
        await rig.come_back()
        await rig.is_answered()

        assert rig.nudges == []
        assert rig.said[-1] == (ANSWER, "", False)


@pytest.mark.parametrize("model", MODELS)
async def test_a_caller_is_taken_away_as_soon_as_they_have_heard_so_and_told_when_they_are_back(
    autojump_clock, model
):
    async with asked(model, FunctionCall("transfer", {"destination": "sales"})) as rig:
        asked_at = trio.current_time()
        c = rig.call.conversation
        await c.changed.until(lambda: c.stage is Stage.AWAY)
        waited_s = trio.current_time() - asked_at
        rig.media.hang_up()
        await trio.sleep(20.0)
        rig.call.handover.report(CallStatus.NO_ANSWER)
        await rig.come_back()
        await rig.is_answered()

        assert waited_s < 2.0
        assert rig.nudges == []
        assert [turn[0] for turn in rig.said] == [ONE_MOMENT, ANSWER]


@pytest.mark.parametrize("model", MODELS)
async def test_what_was_said_in_one_turn_of_the_models_is_counted_once(
    autojump_clock, model, monkeypatch
):
    async with asked(model) as rig:
        counted: list[Usage] = []
        monkeypatch.setattr(rig.call.conversation.notes.costs, "count", counted.append)
        await rig.is_answered()
        await trio.sleep(1.0)

        assert [turn for turn in rig.said if turn[0]] == [
            (ONE_MOMENT, "", False),
            (ANSWER, "", False),
        ]
        numbers = [usage.turn for usage in counted]
        assert numbers == sorted(set(numbers))
        assert rig.call.conversation.notes.replies.all[0].turn == 1
