"""How long a caller waited, stage by stage, from times that can be checked by hand."""

from __future__ import annotations

import pytest

from server.dialogue.replies import Replies


def test_the_stages_add_up_from_the_callers_last_sound_to_the_agents_first():
    replies = Replies()
    replies.caller_started()
    replies.caller_ended(10.0, noticed_at=10.5)
    replies.audio_received(3, 11.2)
    replies.audio_sent(3, 11.201)
    replies.audio_sent(3, 11.4)
    reply = replies.mark_reached("3:1000", 12.321)

    assert reply is replies.all[0]
    assert reply.as_dict() == {
        "turn": 3,
        "vad_ms": 500.0,
        "model_ms": 700.0,
        "codec_ms": 1.0,
        "playout_ms": 120.0,
        "total_ms": 1321.0,
    }


def test_only_the_first_turn_after_the_caller_answers_them():
    replies = Replies()
    replies.caller_ended(10.0, noticed_at=10.5)
    replies.audio_received(1, 11.0)
    replies.audio_received(2, 14.0)

    assert [reply.turn for reply in replies.all] == [1]


def test_what_the_agent_was_still_saying_is_no_answer():
    replies = Replies()
    replies.audio_received(1, 9.0)
    replies.caller_ended(10.0, noticed_at=10.5)
    replies.audio_received(1, 10.6)
    assert not replies.all

    replies.audio_received(2, 11.0)
    assert [reply.turn for reply in replies.all] == [2]


def test_a_caller_who_speaks_on_has_not_ended():
    replies = Replies()
    replies.caller_ended(10.0, noticed_at=10.5)
    replies.caller_started()
    replies.audio_received(1, 11.0)

    assert not replies.all


def test_a_model_that_is_sooner_than_our_detector_costs_no_detection():
    replies = Replies()
    replies.caller_ended(10.0, noticed_at=10.5)
    replies.audio_received(1, 10.3)
    replies.audio_sent(1, 10.31)

    stages = replies.all[0].stages_s()
    assert stages["vad"] == pytest.approx(0.3)
    assert stages["model"] == 0


def test_an_answer_that_was_cut_before_its_first_mark_has_no_total():
    replies = Replies()
    replies.caller_ended(10.0, noticed_at=10.5)
    replies.audio_received(1, 11.0)
    replies.audio_sent(1, 11.0)

    assert "total_ms" not in replies.all[0].as_dict()
    assert replies.mark_reached("7:1000", 12.0) is None
    assert replies.mark_reached("keys:3", 12.0) is None


@pytest.mark.parametrize("name", ["keys:1", "", ":", "1:", "1:x", "9" * 5000 + ":1", "hello"])
def test_marks_of_something_else_are_nobodys_reply(name):
    assert Replies().mark_reached(name, 1.0) is None
