"""What Asterisk's events mean, decided without a connection: events in, steps out."""

from __future__ import annotations

import json

import pytest

from server.carrier import CallStatus, ResumeRequest, StatusUpdate, TransferUpdate, VoiceRequest
from server.carrier.asterisk.ari import too_old
from server.carrier.asterisk.exchange import (
    Answer,
    Drop,
    Exchange,
    HangUp,
    Join,
    OpenStream,
    Play,
    Tell,
    bridge_of,
    read_event,
)
from server.carrier.webhooks import ConnectStream, EndCall, RefuseCall, SayAndEndCall

CALL, MEDIA = "1764.1", "offhook.media.1.1764.1"
OURS, OUR_MEDIA = "offhook-a", "offhook.media.1.offhook-a"


def event(kind: str, channel: str = "", state: str = "Up", **other: object):
    """An event as ARI writes it, with members of no use here."""
    told: dict[str, object] = {"type": kind, "timestamp": "2026-11-28T19:48:48.152+0000"}
    if channel:
        caller = {"name": "", "number": "+15005550100"}
        told["channel"] = {"id": channel, "name": "PJSIP/x", "state": state, "caller": caller}
    return read_event(json.dumps(told | other))


def dial(status: str, **who: str):
    channels = {role: {"id": name, "state": "Down"} for role, name in who.items()}
    return read_event(json.dumps({"type": "Dial", "dialstatus": status} | channels))


def talking() -> Exchange:
    """An inbound call that was answered at 10, and whose stream is there."""
    exchange = Exchange()
    exchange.take(event("StasisStart", CALL, "Ring"), 9.0)
    exchange.do(CALL, ConnectStream("tick"))
    exchange.take(event("ChannelStateChange", CALL), 10.0)
    exchange.take(event("StasisStart", MEDIA), 10.0)
    return exchange


def told(steps) -> list[object]:
    return [step.report for step in steps if isinstance(step, Tell)]


def test_an_inbound_call_is_asked_about_and_answered_with_a_stream():
    exchange = Exchange()

    asked = exchange.take(event("StasisStart", CALL, "Ring"), 9.0)
    answered = exchange.do(CALL, ConnectStream("tick"))
    up = exchange.take(event("ChannelStateChange", CALL), 10.0)
    there = exchange.take(event("StasisStart", MEDIA), 10.0)

    assert asked == [Tell(VoiceRequest(CALL, "+15005550100", begins=True))]
    assert asked[0].asks
    assert answered == [Answer(CALL), OpenStream(CALL, MEDIA, "tick")]
    assert told(up) == [StatusUpdate(CALL, CallStatus.IN_PROGRESS, 1)]
    assert there == [Join(CALL, MEDIA)]


@pytest.mark.parametrize(
    ("reply", "steps"),
    [
        (RefuseCall(), [HangUp(CALL, "busy")]),
        (EndCall(), [HangUp(CALL)]),
        (SayAndEndCall("Sorry.", "en"), [Answer(CALL), Play(CALL)]),
        (None, []),
    ],
)
def test_what_an_inbound_call_is_answered(reply, steps):
    exchange = Exchange()
    exchange.take(event("StasisStart", CALL, "Ring"), 9.0)

    assert exchange.do(CALL, reply) == steps


def test_a_call_of_ours_rings_is_answered_and_gets_its_stream():
    exchange = Exchange()
    exchange.dial(OURS, "tick")

    ringing = exchange.take(event("ChannelStateChange", OURS, "Ringing"), 1.0)
    up = exchange.take(event("ChannelStateChange", OURS), 3.0)
    there = exchange.take(event("StasisStart", OURS), 3.0)

    assert told(ringing) == [StatusUpdate(OURS, CallStatus.RINGING, 1)]
    assert told(up) == [StatusUpdate(OURS, CallStatus.IN_PROGRESS, 2)]
    assert there == [OpenStream(OURS, OUR_MEDIA, "tick")]


@pytest.mark.parametrize(
    ("word", "cause", "status"),
    [
        ("BUSY", 17, CallStatus.BUSY),
        ("NOANSWER", 16, CallStatus.NO_ANSWER),
        ("CHANUNAVAIL", 20, CallStatus.FAILED),
        ("CANCEL", 16, CallStatus.CANCELED),
        ("", 17, CallStatus.BUSY),
        ("", 19, CallStatus.NO_ANSWER),
        ("", 34, CallStatus.FAILED),
    ],
)
def test_a_call_that_nobody_takes_ends_as_what_it_was(word, cause, status):
    exchange = Exchange()
    exchange.dial(OURS, "tick")
    exchange.take(dial(word, peer=OURS), 1.0)

    steps = exchange.take(event("ChannelDestroyed", OURS, cause=cause, tech_cause=486), 2.0)

    assert told(steps) == [StatusUpdate(OURS, status, 1, {"sip_response_code": "486"})]
    assert exchange.legs == {}


def test_a_caller_who_hangs_up_leaves_nothing_behind():
    exchange = talking()

    steps = exchange.take(event("StasisEnd", CALL), 17.4)
    media_over = exchange.take(event("ChannelDestroyed", MEDIA), 17.5)
    again = exchange.take(event("ChannelDestroyed", CALL, cause=16), 17.5)

    assert steps[0] == Drop(MEDIA)
    assert told(steps) == [StatusUpdate(CALL, CallStatus.COMPLETED, 2, {"duration_s": "7"})]
    assert media_over == again == []


def test_a_stream_that_ends_before_its_call_is_asked_about_and_replaced():
    exchange = talking()

    steps = exchange.take(event("ChannelDestroyed", MEDIA), 17.5)
    another = exchange.do(CALL, ConnectStream("second"))

    assert steps == [Drop(MEDIA), Tell(ResumeRequest(CALL))]
    assert another == [OpenStream(CALL, "offhook.media.2.1764.1", "second")]


def test_a_stream_that_we_take_away_is_no_news():
    exchange = talking()

    assert exchange.take_stream(CALL) == [Drop(MEDIA)]
    assert exchange.take(event("ChannelDestroyed", MEDIA), 17.5) == []


def test_the_last_words_are_played_without_a_stream_and_end_the_call():
    exchange = talking()

    steps = exchange.say(CALL)
    another = exchange.do(CALL, ConnectStream("second"))
    played = exchange.take(
        event("PlaybackFinished", playback={"id": f"offhook.say.{CALL}", "state": "done"}), 19.0
    )

    assert steps == [Drop(MEDIA), Play(CALL)]
    assert another == []
    assert played == [HangUp(CALL)]


def test_somebody_elses_playback_ends_no_call():
    assert talking().take(event("PlaybackFinished", playback={"id": "x"}), 19.0) == []


def test_a_transfer_that_somebody_answers_is_told():
    exchange = talking()
    exchange.legs[CALL].is_away = True

    left = exchange.take(event("StasisEnd", CALL), 11.0)
    ringing = exchange.take(dial("RINGING", caller=CALL, peer="1764.9"), 12.0)
    answered = exchange.take(dial("ANSWER", caller=CALL, peer="1764.9"), 13.0)

    assert left == ringing == []
    assert told(answered) == [TransferUpdate(CALL, CallStatus.IN_PROGRESS, wants_document=False)]


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (["transferred", "BUSY"], CallStatus.BUSY),
        (["transferred", "NOANSWER"], CallStatus.NO_ANSWER),
        (["transferred"], CallStatus.FAILED),
    ],
)
def test_a_caller_comes_back_from_a_transfer(args, status):
    exchange = talking()
    exchange.legs[CALL].is_away = True

    steps = exchange.take(event("StasisStart", CALL, args=args), 14.0)

    assert steps == [Tell(TransferUpdate(CALL, status, wants_document=True))]
    assert steps[0].asks
    assert not exchange.legs[CALL].is_away


def test_a_media_channel_of_nobodys_is_ended():
    exchange = Exchange()

    assert exchange.take(event("StasisStart", MEDIA), 1.0) == [HangUp(MEDIA)]


@pytest.mark.parametrize("name", ["a/b", "x" * 129, "a b", ""])
def test_a_call_whose_name_could_be_something_else_is_not_taken(name):
    told = {"type": "StasisStart", "channel": {"id": name, "state": "Ring"}}

    steps = Exchange().take(read_event(json.dumps(told)), 1.0)

    assert steps == [HangUp(name)]


def test_what_was_missed_is_made_up_for():
    exchange = talking()
    left_by_another = "1764.7"

    there = {CALL, left_by_another, "offhook.media.4.1764.3"}
    bridges = {"offhook.bridge.4.1764.3", "somebody-elses", bridge_of(MEDIA)}
    steps = exchange.settle(there, bridges, 20.0)

    assert set(steps) == {
        Tell(ResumeRequest(left_by_another)),
        HangUp("offhook.media.4.1764.3"),
        Drop("offhook.media.4.1764.3"),
        Drop(MEDIA),
        Tell(ResumeRequest(CALL)),
    }


def test_a_call_that_is_being_dialled_was_not_missed():
    exchange = Exchange()
    exchange.dial(OURS, "tick")

    assert exchange.settle(set(), set(), 20.0) == []
    assert exchange.unheard_of == []


def test_a_call_that_is_gone_is_over():
    steps = talking().gone(CALL, 20.0)

    assert told(steps) == [StatusUpdate(CALL, CallStatus.COMPLETED, 2, {"duration_s": "10"})]


def test_every_stream_has_a_bridge_of_its_own():
    assert bridge_of(MEDIA) == "offhook.bridge.1.1764.1"


@pytest.mark.parametrize(
    "version", ["22.10.1+dfsg+~cs6.17", "22.8.0", "20.18.2", "23.2.0", "24.0.0", "GIT-master-abc"]
)
def test_a_version_that_will_do(version):
    assert too_old(version) is None


@pytest.mark.parametrize("version", ["22.7.0", "20.9.3~dfsg", "21.11.0", "18.26.4", "23.1.0"])
def test_a_version_that_is_too_old(version):
    problem = too_old(version)

    assert problem is not None
    assert "22.8" in problem
