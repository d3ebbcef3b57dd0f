"""What a session that is resumed does not know, because its handle came before it."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from google.genai import types

from server.agent import phrases
from server.agent.agent import Agent
from server.dialogue.turns import CONNECTION_LOST
from server.model import (
    AgentAudio,
    GenerationComplete,
    GoingAway,
    PastTurn,
    ResumptionHandle,
    Standing,
    ToolCall,
    ToolCallsRequested,
    ToolResult,
    TurnComplete,
    Way,
    spoken,
)
from server.model.lasting.heard import MAX_SHORT, ToolCallsMade
from server.model.lasting.model import LastingModel
from server.model.lasting.plan import ConnectionPlan, State
from server.model.lasting.since_handle import (
    MAX_DONE,
    MAX_SAID_CHARACTERS,
    SinceHandle,
    last_said,
)
from server.model.lasting.unanswered import UnansweredInput
from server.simulators.gemini import ModelScript
from tests.model.test_lasting_services import WholeService
from tests.support.lasting_inputs import DROPPED, take_all
from tests.support.lasting_talks import TOOL, Conversation, Talk, silence, speech, talking

SAID = [
    PastTurn("agent", "Good morning."),
    PastTurn("caller", "Book a table."),
    PastTurn("agent", "Booked, anything else?"),
]
BOOKED = ('book({"at":8})', '{"output":"B7"}')


def opened(
    since: SinceHandle, turn: int = 2, *, resumed: bool = True, takes_notes: bool = True
) -> str:
    return since.opened(Conversation(turns=SAID), turn, resumed=resumed, takes_notes=takes_notes)


# --- The rule


def test_what_was_answered_since_the_handle_is_told_and_no_more():
    since = SinceHandle()
    since.handle_came(1)
    since.answered([BOOKED])

    note = opened(since)

    assert "Caller: Book a table.\nYou: Booked, anything else?" in note
    assert "Good morning" not in note
    assert 'book({"at":8})' in note
    assert "do not run it again" in note
    assert '{"output":"B7"}' in note


def test_nothing_is_told_where_nothing_was_answered_since_the_handle():
    since = SinceHandle()
    assert opened(since) == ""

    since.answered([BOOKED])
    since.handle_came(2)

    assert opened(since) == ""
    assert since.story(conversation := Conversation(turns=SAID)) is conversation


def test_it_is_told_until_the_model_has_answered_and_can_be_resumed_with_that():
    since = SinceHandle()
    since.answered([BOOKED])
    first = opened(since)

    since.handle_came(2)  # it may be from before it was told
    second = opened(since)
    since.answered([])
    third = opened(since, 3)
    since.answered([])
    since.handle_came(3)

    assert first == second == third != ""
    assert opened(since, 3) == ""


def test_a_session_that_is_not_resumed_is_told_the_functions_with_the_story():
    since = SinceHandle()
    since.answered([BOOKED])

    *story, besides = since.story(Conversation(turns=SAID)).history()

    assert story == SAID
    assert besides == PastTurn("caller", phrases.forgotten("", done=[BOOKED]))
    assert opened(since, resumed=False) == ""


def test_only_a_model_that_takes_no_notes_cannot_be_told():
    since = SinceHandle()
    opened(since, takes_notes=False)
    assert not since.is_beyond_telling

    since.answered([])
    assert since.is_beyond_telling
    since.answered([])
    opened(since, takes_notes=True)
    assert not since.is_beyond_telling


def test_what_is_told_is_bounded():
    since = SinceHandle()
    since.answered((f"look_up_{n}", "") for n in range(100))
    long = [PastTurn("agent", "a" * 3_000), PastTurn("caller", "b" * 3_000)] * 9

    told = last_said(long, 100)

    assert sum(len(turn.text) for turn in told) == MAX_SAID_CHARACTERS
    assert told[-1].text == "b" * 3_000
    assert opened(since).count("do not run it again") == MAX_DONE
    made = ToolCallsMade()
    made.requested([ToolCall("1", "save", {"text": "x" * MAX_SHORT})], 1)
    assert made.done([ToolResult("1", "save", {"output": "y" * MAX_SHORT})]) == [("save", "")]
    assert made.done([ToolResult("2", "save", {})]) == []


def test_an_answer_says_which_functions_results_it_has_covered():
    kept = UnansweredInput()
    first, second = ToolResult("1", "book", {"output": 1}), ToolResult("2", "book", {"output": 2})
    kept.put((first,))
    take_all(kept)
    covered = kept.sent_up_to()
    kept.put((second,))
    take_all(kept)

    assert kept.answered(covered) == [first]
    assert kept.answered(covered) == []
    assert kept.answered(kept.sent_up_to()) == [second]


@pytest.mark.parametrize(
    ("takes_notes", "way"), [(True, Way.RESUME), (False, Way.FRESH)], ids=["notes", "none"]
)
@pytest.mark.parametrize("is_asked", [False, True])
def test_a_handle_from_before_an_answer_is_used_if_the_model_can_be_told_of_that(
    takes_notes: bool, way: Way, is_asked: bool
):
    plan = ConnectionPlan(0.0)
    plan.begin()
    plan.opened(0.0)
    opened(plan.since_handle, takes_notes=takes_notes)
    plan.note_handle("h1")
    plan.since_handle.answered([])

    if is_asked:
        assert plan.ask(Way.RESUME, "no-reply", 20.0)
    else:
        plan.lost(DROPPED, 20.0)

    assert (plan.state, plan.way) == (State.LEAVING, way)


# --- Whole sessions

MODELS = {
    "gemini-3.8-live": Way.RESUME,
    "gemini-2.5-flash-native-audio-latest": Way.RESUME,
    "gemini-3.1-flash-live-preview": Way.FRESH,
}


async def generated(talk: Talk, answers: int) -> None:
    """The model has generated so many answers, and the last of them is still playing."""
    await talk.say_until(lambda: len(talk.all(GenerationComplete)) == answers, silence(0.1))
    assert not isinstance(talk.events[-1], TurnComplete | ResumptionHandle)


async def greeted(talk: Talk) -> None:
    talk.session.send_text("Greet.")
    talk.conversation.turns = SAID[:1]
    await talk.say_until(
        lambda: any(event.handle for event in talk.all(ResumptionHandle)), silence(0.1)
    )


async def dropped(talk: Talk, drops: int) -> None:
    """The connection is lost for so many times in all, and there is another."""
    await talk.services[-1].cut()
    await talk.say_until(lambda: len(talk.reconnects) == drops, silence(0.1))


def told(talk: Talk, way: Way) -> str:
    """All that the newest connection was told in words."""
    service = talk.services[-1]
    (part,) = service.setup["systemInstruction"]["parts"]
    return "\n".join([part["text"] if way is Way.FRESH else "", *service.texts])


@pytest.mark.parametrize("calls", [0, 1], ids=["", "function"])
@pytest.mark.parametrize("model", MODELS)
async def test_a_drop_while_a_finished_answer_plays_makes_the_model_forget_nothing(
    autojump_clock, model: str, calls: int
):
    config = types.LiveConnectConfig(tools=[TOOL])
    script = ModelScript(tool_calls=calls)
    async with talking(script, script, model=model, config=config) as talk:
        await greeted(talk)
        await talk.say(speech(2.0))
        if calls:
            await talk.say_until(lambda: bool(talk.all(ToolCallsRequested)), silence(0.1))
            (call,) = talk.all(ToolCallsRequested)[0].calls
            talk.session.send_tool_results((ToolResult(call.id, call.name, {"output": "B7"}),))
        await generated(talk, 2)
        talk.conversation.turns = list(SAID)
        for drops in (1, 2):  # the second one before there is another handle
            await dropped(talk, drops)
            await talk.say(silence(2.0))
            words = told(talk, MODELS[model])
            assert "Booked, anything else?" in words
            assert words.count("look_up({})") == words.count('{"output":"B7"}') == calls
        spoken_before = len(talk.all(AgentAudio))
        await talk.say(silence(2.0))
        assert len(talk.all(AgentAudio)) == spoken_before  # it was not asked for anything

        await talk.say(speech(1.0))
        await talk.say_until(
            lambda: talk.all(ToolCallsRequested)[calls:] or talk.all(GenerationComplete)[2:],
            silence(0.1),
        )

    assert talk.reconnects == [("closed-1006", MODELS[model])] * 2
    assert all(service.mistakes == [] for service in talk.services)


async def test_what_an_answer_and_a_new_handle_have_covered_is_not_told(autojump_clock):
    async with talking() as talk:
        await greeted(talk)
        await talk.say(speech(1.0))
        await talk.say_until(lambda: len(talk.all(TurnComplete)) == 2, silence(0.1))
        talk.conversation.turns = list(SAID)
        await dropped(talk, 1)
        await talk.say(silence(2.0))

    assert talk.reconnects == [("closed-1006", Way.RESUME)]
    assert talk.services[-1].texts == []


async def test_a_forced_change_while_a_finished_answer_plays_is_told_of(autojump_clock):
    async with talking() as talk:
        await greeted(talk)
        await talk.say(speech(4.0))
        await generated(talk, 2)
        talk.conversation.turns = list(SAID)
        talk.session._take(talk.session._connection, GoingAway(2.0))
        await talk.say_until(lambda: bool(talk.reconnects), silence(0.1))
        await talk.say(silence(1.0))

    assert talk.reconnects == [("go-away", Way.RESUME)]
    assert talk.all(TurnComplete)[-1].reason == CONNECTION_LOST
    (words,) = talk.services[-1].texts
    assert "Booked, anything else?" in words


@pytest.mark.parametrize("has_handle", [True, False], ids=["handle", "none"])
@pytest.mark.parametrize("is_answered", [True, False], ids=["answered", "not-answered"])
async def test_functions_of_another_process_are_told_to_a_connection_that_does_not_know_of_them(
    autojump_clock, is_answered: bool, has_handle: bool
):
    service = WholeService(is_wire=True)
    service.key_name = "KEY"
    conversation = Conversation(turns=SAID)
    left = Standing(4, "h4", "whole", key_name="KEY", done=("book",), interrupted=("pay",))
    session = LastingModel(service).new_session(Agent(), conversation, lambda event: None, left)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run)
        await session.wait_ready()
        session.send_text("the line was interrupted, and so on")
        if is_answered:
            session._take(session._connection, AgentAudio(bytes(960), 5, trio.current_time()))
            session._take(session._connection, GenerationComplete(5))
        if has_handle:
            session._take(session._connection, ResumptionHandle("h5"))
        at_first = list(service.heard)
        session._take(session._connection, DROPPED)
        await trio.sleep(1.0)
        again = service.heard[len(at_first) :]
        nursery.cancel_scope.cancel()

    assert at_first == [b"the line was interrupted, and so on"]
    functions = phrases.forgotten("", done=[("book", "")], interrupted=["pay"])
    if not is_answered:
        assert again == at_first
    elif has_handle:
        assert again == []
    else:
        (note,) = again
        assert functions.partition("Do not answer")[0].encode() in note


def test_functions_of_another_process_are_told_with_the_story_once_words_about_them_are_answered():
    since = SinceHandle()
    since.go_on(done=("book",), interrupted=("pay",), in_first_words=True)
    conversation = Conversation(turns=SAID)
    before = since.story(conversation)
    since.answered([])

    *_, besides = since.story(conversation).history()
    since.handle_came(1)

    assert before is conversation
    assert besides.text == phrases.forgotten("", done=[("book", "")], interrupted=["pay"])
    assert since.story(conversation) is conversation


@pytest.mark.parametrize("takes_notes", [True, False])
async def test_functions_that_the_call_tells_nobody_of_are_told_before_all_that_it_says(
    autojump_clock, takes_notes: bool
):
    service = WholeService(is_wire=True, takes_notes=takes_notes)
    service.key_name = "KEY"
    left = Standing(
        *(4, "h4", "whole"),
        key_name="KEY",
        done=("book",),
        interrupted=("pay",),
        in_first_words=False,
    )
    conversation = Conversation(turns=SAID)
    session = LastingModel(service).new_session(Agent(), conversation, lambda event: None, left)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run)
        await session.wait_ready()
        session.send_text("the transfer has failed")
        session.send_text("and so on")
        at_first = list(service.heard)
        session._take(session._connection, ResumptionHandle("h5"))
        session._take(session._connection, DROPPED)
        await trio.sleep(1.0)
        again = service.heard[len(at_first) :]
        session._take(session._connection, AgentAudio(bytes(960), 5, trio.current_time()))
        session._take(session._connection, GenerationComplete(5))
        session._take(session._connection, TurnComplete(5, None))
        session._take(session._connection, ResumptionHandle("h6"))
        session._take(session._connection, DROPPED)
        await trio.sleep(1.0)
        nursery.cancel_scope.cancel()

    told = phrases.forgotten(spoken(SAID), done=[("book", "")], interrupted=["pay"])
    texts = ["the transfer has failed", "and so on"]
    handles, stories = zip(*service.opened_with, strict=True)
    functions = phrases.forgotten("", done=[("book", "")], interrupted=["pay"])
    if takes_notes:
        assert at_first == again == [text.encode() for text in (told, *texts)]
        assert handles == ("h4", "h5", "h6")
    else:
        assert at_first == [f"{told}\n{texts[0]}".encode(), texts[1].encode()]
        assert again == [text.encode() for text in texts]
        assert handles == ("h4", None, "h6")
    assert functions in stories[1]
    assert functions not in stories[2]
    assert len(service.heard) == len(at_first) + len(again)


def test_what_could_not_be_told_by_a_note_is_not_forgotten_before_a_text_has_told_it():
    since = SinceHandle()
    since.go_on(done=("book",), interrupted=(), in_first_words=False)
    note = opened(since, takes_notes=False)
    since.answered([])
    since.handle_came(3)

    told, *others = (since.before(text) for text in ("Go on.", "Go on."))
    since.handle_came(4)
    is_known = not since.is_beyond_telling
    since.answered([])
    since.handle_came(5)

    assert note == ""
    assert "You have called book a moment ago" in told
    assert others == ["Go on."]
    assert not is_known
    assert not since.is_beyond_telling


async def test_a_note_does_not_take_the_place_of_another_that_waits(autojump_clock):
    service = WholeService(is_wire=False)
    session = LastingModel(service).new_session(Agent(), Conversation(), lambda event: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run)
        await session.wait_ready()
        await trio.testing.wait_all_tasks_blocked()
        session.send_note("what was forgotten")
        session.send_note("by the way")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert service.heard == [b"what was forgotten\nby the way"]
