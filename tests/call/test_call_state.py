"""What another process needs of a call, written and read: no event loop."""

from __future__ import annotations

import zlib
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.agent.agent import Agent
from server.call.takeover import keeping
from server.call.takeover.going_on import agent_of
from server.call.takeover.state import (
    FIXED,
    MAX_STATE_BYTES,
    PLAIN_BYTES,
    AgentState,
    AwayState,
    CallState,
    CostState,
    MachineState,
    StateTooLong,
    StateUnreadable,
    StateWriter,
    ToolState,
    TurnState,
)
from server.carrier import AnsweredBy, CallStatus
from server.dialogue.transcript import SpokenTurn

PROMPT = (
    "You answer the telephone of a restaurant. Be brief and friendly, take reservations, and tell "
    "the opening hours: Tuesday to Sunday from noon to eleven. Never promise a table outdoors. "
) * 4


def state(**differences) -> CallState:
    agent = Agent()
    turns = [
        TurnState("agent" if n % 2 else "caller", f"Turn {n}: " + "table " * 8, n * 4.0, 3.0, False)
        for n in range(20)
    ]
    return CallState(
        **{
            "kept_at": 1_790_000_100.25,
            "direction": "inbound",
            "number": "+15005550006",
            "metadata": {"order": "17 · ñandú"},
            "client": "shop",
            "traceparent": "",
            "agent": AgentState(
                prompt=PROMPT,
                greeting=agent.greeting,
                greeting_text="",
                farewell=agent.farewell,
                voicemail="",
                apology="",
                voice="Kore",
                language="es-VE",
                tools=("transfer_call", "hang_up", "look_up"),
                has_recording=False,
            ),
            "created_at": 1_790_000_000.0,
            "answered_at": 1_790_000_010.5,
            "ends_at": 1_790_003_610.5,
            "max_duration_s": 3_600.0,
            "status": CallStatus.IN_PROGRESS,
            "sequence_number": 2,
            "turn": 10,
            "handle": "h" * 120,
            "model": "gemini-3.8-live",
            "on_fallback": False,
            "key_name": "GEMINI_API_KEY",
            "transcript": tuple(turns),
            "greeted": True,
            "first_audio_s": 0.25,
            "costs": CostState({"AUDIO": 900}, {"AUDIO": 400}, 0, 0.01, True, 80.0, 40.0),
            "tools": (ToolState("c1", "look_up", False),),
            "away": AwayState("sales", "+15005550123"),
            "machine": MachineState(AnsweredBy.MACHINE_START, "message"),
            "recording_parts": 1,
            "parts_at_s": (10.5,),
            "began_at": 1_790_000_000.75,
            **differences,
        }
    )


def test_a_state_is_read_as_it_was_written():
    assert CallState.decode(state().encode()) == state()


def test_when_the_parts_of_a_recording_began_is_not_known_from_an_older_program():
    content = msgspec.json.decode(msgspec.json.encode(state(recording_parts=2)))
    del content["parts_at_s"]

    old = CallState.decode(b"1" + zlib.compress(msgspec.json.encode(content)))

    assert old.recorded_at_s == (None, None)
    assert state(recording_parts=2, parts_at_s=(10.5, 60.25)).recorded_at_s == (10.5, 60.25)


def test_by_the_clock_of_all_it_is_not_known_from_an_older_program_when_a_call_began():
    content = msgspec.json.decode(msgspec.json.encode(state()))
    del content["began_at"]

    old = CallState.decode(b"1" + zlib.compress(msgspec.json.encode(content)))

    assert old == msgspec.structs.replace(state(), began_at=None)


def test_whoever_takes_a_call_up_tells_its_own_receiver():
    url = "https://shop.example.com/hook"
    left = state()
    own = msgspec.structs.replace(left.agent, events_url=url)

    found = CallState.decode(msgspec.structs.replace(left, agent=own).encode())

    assert agent_of(found, Agent()).events_url == url
    assert agent_of(left, Agent(events_url=url)).events_url is None


def test_whoever_takes_a_call_up_hears_it_and_thinks_aloud_as_its_own_agent_does():
    ours = Agent(turn_end="local", thinking_sound=b"\x7f" * 800)

    found = agent_of(state(), ours)

    assert (found.turn_end, found.thinking_sound) == ("local", ours.thinking_sound)


def test_a_usual_state_is_small():
    content = msgspec.json.encode(state())

    assert 2_500 < len(content) < 5_000
    assert len(state().encode()) < len(content) / 2


def test_of_many_states_of_a_call_what_is_fixed_is_written_once():
    members = msgspec.structs.asdict(state())
    fixed = {name: members.pop(name) for name in FIXED}
    writer = StateWriter()

    writer.fix(fixed)
    first = writer.write(members)
    second = writer.write(members | {"turn": 11, "transcript": []})
    writer.fix(fixed | {"client": "another"})
    third = writer.write(members)

    assert CallState.decode(first) == state()
    assert CallState.decode(second) == state(turn=11, transcript=())
    assert CallState.decode(third) == state(client="another")
    assert zlib.decompress(first[1:]).startswith(b"{")


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_a_state_is_read_as_it_was_written_if_it_is_just_short_enough_to_be_left_as_it_is(more):
    members = msgspec.structs.asdict(state())
    writer = StateWriter()
    writer.fix({name: members.pop(name) for name in FIXED})
    members |= {"transcript": [], "model": ""}
    others = len(msgspec.json.encode(members)) - 1
    members["model"] = "m" * (PLAIN_BYTES - others + more)

    written = writer.write(members)

    read = msgspec.json.decode(zlib.decompress(written[1:]))
    assert read["model"] == members["model"]


def test_a_transfer_of_an_older_program_is_sure():
    content = msgspec.json.decode(msgspec.json.encode(state()))
    del content["away"]["is_sure"]

    assert CallState.decode(b"1" + zlib.compress(msgspec.json.encode(content))) == state()


def test_a_member_that_is_not_known_here_is_left_out():
    content = msgspec.json.decode(msgspec.json.encode(state())) | {"mood": "good"}
    written = b"1" + zlib.compress(msgspec.json.encode(content))

    assert CallState.decode(written) == state()


@pytest.mark.parametrize(
    "written",
    [
        b"",
        b"1",
        b"2" + state().encode()[1:],
        state().encode()[:-1],
        state().encode() + b"x",
        b"1" + zlib.compress(b"{}"),
        b"1" + zlib.compress(b"[" * 100_000),
        b"1" + zlib.compress(b"\xff"),
        b"1" + zlib.compress(b" " * (MAX_STATE_BYTES + 1)),
    ],
)
def test_what_is_no_state_is_told_so(written):
    with pytest.raises(StateUnreadable):
        CallState.decode(written)


@pytest.mark.parametrize(
    "differences",
    [
        {"created_at": -1.0},
        {"ends_at": 1e300},
        {"status": "dancing"},
        {"turn": -1},
        {"turn": 2**40},
        {"number": "1" * 300},
        {"handle": "h" * 10_000},
        {"direction": "sideways"},
        {"transcript": [msgspec.structs.asdict(state().transcript[0])] * 21},
        {"recording_parts": 1_000},
        {"parts_at_s": [1.0] * 100},
        {"metadata": {"n": 1}},
    ],
)
def test_a_part_that_is_beyond_its_bounds_is_an_error(differences):
    content = msgspec.json.decode(msgspec.json.encode(state())) | differences
    written = b"1" + zlib.compress(msgspec.json.encode(content))

    with pytest.raises(StateUnreadable):
        CallState.decode(written)


def test_an_error_quotes_nothing_that_was_said():
    content = msgspec.json.encode(state()).replace(b'"inbound"', b'"my secret"')

    with pytest.raises(StateUnreadable) as failed:
        CallState.decode(b"1" + zlib.compress(content))
    assert "secret" not in str(failed.value)


def test_a_state_beyond_all_bounds_is_not_written():
    huge = msgspec.structs.replace(state().agent, prompt="x" * MAX_STATE_BYTES)

    with pytest.raises(StateTooLong, match="too long"):
        state(agent=huge).encode()


@given(st.binary(max_size=400))
def test_any_bytes_are_a_state_or_an_error(written):
    for each in (written, b"1" + written, b"1" + zlib.compress(written)):
        with suppress(StateUnreadable):
            CallState.decode(each)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=8,
    ),
    st.sampled_from(list(CallState.__struct_fields__)),
)
def test_any_json_in_the_place_of_a_member_is_a_state_or_an_error(value, name):
    try:
        content = msgspec.json.encode(
            msgspec.json.decode(msgspec.json.encode(state())) | {name: value}
        )
    except OverflowError:
        return

    try:
        read = CallState.decode(b"1" + zlib.compress(content))
    except StateUnreadable:
        return
    assert CallState.decode(read.encode()) == read


@pytest.mark.parametrize(
    "differences",
    [
        {"voice": "v" * 257},
        {"prompt": "p" * 200_001},
        {"outcome": {"x" * 257: {}}},
        {"tools": ("look_up",) * 513},
        {"events_url": "https://" + "x" * 2_000},
    ],
)
def test_what_nobody_could_read_is_refused_where_it_is_written(differences):
    whole = state()
    agent = msgspec.structs.replace(whole.agent, **differences)

    with pytest.raises(StateTooLong, match=f"{next(iter(differences))}") as refused:
        msgspec.structs.replace(whole, agent=agent).encode()
    assert "xxxx" not in str(refused.value)


@given(st.lists(st.sampled_from(["turn", "more", "drop", "keep"]), max_size=120))
def test_the_last_turns_are_kept_as_they_are_however_many_there_were(steps):
    turns, dropped, written = [], 0, keeping._Turns()

    for number, step in enumerate([*steps, "keep"]):
        match step:
            case "turn":
                turns.append(SpokenTurn("caller", float(number), text="a"))
            case "more" if turns:
                turns[-1].text += "b"
            case "drop" if len(turns) > 8:
                del turns[0]
                dropped += 1
            case "keep":
                count = dropped + len(turns)
                kept = written.written(turns, count, lambda turn: turn.text.encode())

    texts = [bytes(each).decode() for each in kept]
    now = [turn.text for turn in turns[-keeping.MAX_TURNS :]]
    assert texts[len(texts) - len(now) :] == now
    assert len(texts) <= keeping.MAX_TURNS
