"""What Asterisk's events mean, decided without a connection: events in, steps out."""

from __future__ import annotations

import json

import pytest
import structlog.testing

from server.call.report.progress import Progress
from server.carrier import (
    MAX_CALL_SID_CHARS,
    CallStatus,
    ResumeRequest,
    StatusUpdate,
    TransferUpdate,
    VoiceRequest,
)
from server.carrier.asterisk.ari import too_old
from server.carrier.asterisk.events import Channel, Dialplan, Event, Party, read_event
from server.carrier.asterisk.exchange import Exchange, bridge_of, call_of
from server.carrier.asterisk.steps import (
    Answer,
    Continue,
    Drop,
    Fetch,
    Find,
    Gone,
    HangUp,
    Heard,
    Join,
    Limit,
    Look,
    Move,
    OpenStream,
    Play,
    SayThere,
    Tell,
    Unfollow,
)
from server.carrier.webhooks import ConnectStream, EndCall, PassOn, RefuseCall, SayAndEndCall

CALL, MEDIA = "1764.1", "offhook.media.1.1764.1"
OURS, OUR_MEDIA = "offhook-a", "offhook.media.1.offhook-a"


IN_AN_APP = Dialplan("1", "Stasis", "offhook")
IN_THE_DIALPLAN = Dialplan("+15005550101", "Dial", "PJSIP/1@trunk")
WITH_SOMEBODY_ELSE = Dialplan("100", "Dial", "PJSIP/operator")


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
    exchange.opened(MEDIA)
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
    assert answered == [Answer(CALL), OpenStream(CALL, MEDIA, "tick"), Limit(CALL)]
    assert told(up) == [StatusUpdate(CALL, CallStatus.IN_PROGRESS, 3)]
    assert there == [Join(CALL, MEDIA)]


@pytest.mark.parametrize(
    ("reply", "steps"),
    [
        (RefuseCall(), [Continue(CALL)]),
        (PassOn("1"), [Move(CALL, "1", ("given",))]),
        (EndCall(), [HangUp(CALL)]),
        (SayAndEndCall("Sorry.", "en"), [Answer(CALL), Play(CALL)]),
        (None, []),
    ],
)
def test_what_an_inbound_call_is_answered(reply, steps):
    exchange = Exchange()
    exchange.take(event("StasisStart", CALL, "Ring"), 9.0)

    assert exchange.do(CALL, reply) == steps


def test_a_call_that_the_dialplan_has_answered_is_known_to_be_and_not_answered_again():
    exchange = Exchange()

    asked = exchange.take(event("StasisStart", CALL), 9.0)
    begun = exchange.do(CALL, ConnectStream("tick"))
    over = exchange.found(CALL, None, 14.4)

    assert told(asked) == [
        StatusUpdate(CALL, CallStatus.IN_PROGRESS, 3),
        VoiceRequest(CALL, "+15005550100", begins=True),
    ]
    assert begun == [OpenStream(CALL, MEDIA, "tick"), Limit(CALL)]
    assert told(over) == [StatusUpdate(CALL, CallStatus.COMPLETED, 4, {"duration_s": "5"})]


def test_an_answered_call_that_no_other_process_takes_is_still_answered():
    exchange = Exchange()

    asked = exchange.take(event("ApplicationMoveFailed", CALL, args=["given"]), 9.0)

    assert told(asked)[0] == StatusUpdate(CALL, CallStatus.IN_PROGRESS, 3)
    assert exchange.legs[CALL].answered_at == 9.0


@pytest.mark.parametrize("name", ["x" * (MAX_CALL_SID_CHARS + 1), "a/b"])
def test_a_call_of_a_name_that_no_record_takes_is_hung_up_and_the_log_says_so(name):
    with structlog.testing.capture_logs() as lines:
        steps = Exchange().take(event("StasisStart", name, "Ring"), 9.0)

    assert steps == [HangUp(name)]
    assert [(line["log_level"], line["chars"]) for line in lines] == [("error", len(name))]


def test_a_call_of_ours_rings_is_answered_and_gets_its_stream():
    exchange = Exchange()
    exchange.dial(OURS, "tick")

    ringing = exchange.take(event("ChannelStateChange", OURS, "Ringing"), 1.0)
    up = exchange.take(event("ChannelStateChange", OURS), 3.0)
    there = exchange.take(event("StasisStart", OURS), 3.0)

    assert told(ringing) == [StatusUpdate(OURS, CallStatus.RINGING, 2)]
    assert told(up) == [StatusUpdate(OURS, CallStatus.IN_PROGRESS, 3)]
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

    assert told(steps) == [StatusUpdate(OURS, status, 4, {"sip_response_code": "486"})]
    assert exchange.legs == {}


def test_a_caller_who_hangs_up_leaves_nothing_behind():
    exchange = talking()

    left = exchange.take(event("StasisEnd", CALL), 17.4)
    steps = exchange.found(CALL, None, 17.4)
    media_over = exchange.take(event("ChannelDestroyed", MEDIA), 17.5)
    again = exchange.take(event("ChannelDestroyed", CALL, cause=16), 17.5)

    assert left == [Look(CALL)]
    assert steps[0] == Drop(MEDIA)
    assert told(steps) == [StatusUpdate(CALL, CallStatus.COMPLETED, 4, {"duration_s": "7"})]
    assert media_over == again == []
    assert exchange.legs == {}


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


def away_unheard() -> Exchange:
    """A caller who may have been sent away, of which nothing was told."""
    exchange = talking()
    exchange.legs[CALL].is_followed = True
    exchange.legs[CALL].sent_to = IN_THE_DIALPLAN.exten
    return exchange


def test_a_caller_who_was_sent_away_without_our_being_told_is_away():
    exchange = away_unheard()

    doubtful = exchange.doubtful([CALL], {CALL})
    steps = exchange.found(CALL, Channel(CALL, "Up", dialplan=IN_THE_DIALPLAN), 20.0)
    media_over = exchange.take(event("ChannelDestroyed", MEDIA), 20.1)
    back = exchange.take(event("StasisStart", CALL, args=["transferred", "BUSY"]), 24.0)

    assert doubtful == [CALL]
    assert steps == [Drop(MEDIA)]
    assert media_over == []
    assert back[0] == Tell(TransferUpdate(CALL, CallStatus.BUSY, wants_document=True))


@pytest.mark.parametrize("asked_before", [False, True])
def test_a_caller_of_whom_it_is_told_late_that_they_were_sent_away_is_away(asked_before):
    exchange = away_unheard()
    left = exchange.take(event("StasisEnd", CALL), 19.0)
    if asked_before:  # in the moment before the dialplan goes on
        between = exchange.found(CALL, Channel(CALL, "Up", dialplan=Dialplan(app_name="")), 19.5)
        assert between == [Gone(CALL)]
    outside = Channel(CALL, "Up", dialplan=IN_THE_DIALPLAN)

    steps = exchange.found(CALL, outside, 20.0, has_waited=asked_before)
    leg = exchange.legs[CALL]
    sent = leg.is_away, leg.was_sent, leg.has_left
    back = exchange.take(event("StasisStart", CALL, args=["transferred", "BUSY"]), 24.0)

    assert left == [Look(CALL)]
    assert steps == [Drop(MEDIA)]
    assert sent == (True, True, False)
    assert back[0] == Tell(TransferUpdate(CALL, CallStatus.BUSY, wants_document=True))


@pytest.mark.parametrize("is_told", [True, False])
def test_a_caller_whom_somebody_takes_after_a_transfer_that_was_not_made_is_let_go(is_told):
    exchange = away_unheard()
    outside = Channel(CALL, "Up", dialplan=WITH_SOMEBODY_ELSE)

    left = exchange.take(event("StasisEnd", CALL), 80.0) if is_told else []
    looked_at = exchange.found(CALL, outside, 80.1)
    at_last = exchange.found(CALL, outside, 81.1, has_waited=True)

    assert left == ([Look(CALL)] if is_told else [])
    assert looked_at == [Gone(CALL)]
    assert at_last[0] == Drop(MEDIA)
    assert [update.status for update in told(at_last)] == [CallStatus.COMPLETED]
    assert CALL not in exchange.legs


def test_a_caller_whom_somebody_takes_and_gives_back_after_a_transfer_that_was_not_made_goes_on():
    exchange = away_unheard()

    exchange.take(event("StasisEnd", CALL), 80.0)
    between = exchange.found(CALL, Channel(CALL, "Up", dialplan=WITH_SOMEBODY_ELSE), 80.1)
    back = exchange.take(event("StasisStart", CALL), 80.5)
    opened = exchange.do(CALL, ConnectStream("tock"))

    assert between == [Gone(CALL)]
    assert back == [Drop(MEDIA), Tell(ResumeRequest(CALL))]
    assert opened == [OpenStream(CALL, "offhook.media.2.1764.1", "tock")]


@pytest.mark.parametrize("is_told", [True, False])
def test_a_caller_who_was_sent_away_and_is_given_back_by_somebody_else_is_back(is_told):
    exchange = away_unheard()
    exchange.legs[CALL].is_away = is_told

    exchange.take(event("StasisEnd", CALL), 19.0)
    exchange.found(CALL, Channel(CALL, "Up", dialplan=IN_THE_DIALPLAN), 19.1)
    back = exchange.take(event("StasisStart", CALL), 24.0)
    opened = exchange.do(CALL, ConnectStream("tock"))

    assert told(back) == [TransferUpdate(CALL, CallStatus.FAILED, wants_document=True)]
    assert back[-1] == Unfollow(CALL)
    assert opened[0] == OpenStream(CALL, "offhook.media.2.1764.1", "tock")


def test_a_caller_who_is_brought_here_to_be_sent_away_is_on_their_way():
    exchange = away_unheard()
    exchange.legs[CALL].is_away = True

    assert exchange.take(event("StasisStart", CALL), 19.0) == []
    assert exchange.legs[CALL].is_away


def test_a_phone_that_rings_and_is_heard_of_by_us_alone_is_not_away():
    exchange = Exchange()
    exchange.await_answer(OURS, "tick", "")
    exchange.legs[OURS].is_followed = True
    settled(exchange, {OURS})
    rings = Channel(OURS, "Ringing", dialplan=Dialplan("", "AppDial2"))

    assert exchange.found(OURS, rings, 3.0) == []
    assert exchange.legs[OURS].is_in_hand


@pytest.mark.parametrize("runs", ["", "Stasis"])
def test_a_caller_who_may_have_been_sent_away_and_is_here_goes_on(runs):
    exchange = away_unheard()

    steps = exchange.found(CALL, Channel(CALL, "Up", dialplan=Dialplan(app_name=runs)), 20.0)

    assert steps == []
    assert exchange.legs[CALL].media_id == MEDIA


def test_a_caller_whose_stream_has_ended_while_they_were_to_be_sent_away_is_asked_about_again():
    exchange = talking()
    exchange.legs[CALL].is_away = True
    asked = exchange.take(event("ChannelDestroyed", MEDIA), 11.0)
    unopened = exchange.do(CALL, ConnectStream("second"))
    meanwhile = exchange.found(CALL, Channel(CALL, "Up", dialplan=IN_AN_APP), 12.0)
    exchange.legs[CALL].is_away = False

    stayed = exchange.found(CALL, Channel(CALL, "Up", dialplan=IN_AN_APP), 13.0)
    once = exchange.found(CALL, Channel(CALL, "Up", dialplan=IN_AN_APP), 13.0)
    opened = exchange.do(CALL, ConnectStream("third"))

    assert asked == [Drop(MEDIA), Tell(ResumeRequest(CALL))]
    assert unopened == meanwhile == once == []
    assert stayed == [Tell(ResumeRequest(CALL))]
    assert opened == [OpenStream(CALL, "offhook.media.2.1764.1", "third")]


def test_a_caller_whose_stream_has_ended_and_who_has_left_is_not_asked_about_again():
    exchange = away_unheard()
    exchange.legs[CALL].is_away = True
    exchange.take(event("ChannelDestroyed", MEDIA), 11.0)
    exchange.do(CALL, ConnectStream("second"))
    exchange.legs[CALL].is_away = False

    assert exchange.found(CALL, Channel(CALL, "Up", dialplan=IN_THE_DIALPLAN), 13.0) == []
    assert exchange.legs[CALL].is_away


def test_a_phone_that_was_just_answered_is_not_away_though_it_has_not_come():
    exchange = Exchange()
    exchange.dial(OURS, "tick").is_dialling = False
    exchange.take(event("ChannelStateChange", OURS), 3.0)
    settled(exchange, {OURS})

    exchange.found(OURS, Channel(OURS, "Up", dialplan=Dialplan(app_name="AppDial2")), 3.1)

    assert not exchange.legs[OURS].is_away


def test_that_the_stream_ends_of_a_caller_who_talks_with_somebody_else_is_no_news():
    exchange = talking()
    exchange.legs[CALL].is_away = True

    answered = exchange.take(dial("ANSWER", caller=CALL, peer="1764.9"), 13.0)
    ended = exchange.take(event("ChannelDestroyed", MEDIA), 13.1)

    assert answered[0] == Drop(MEDIA)
    assert ended == []


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


def test_a_caller_who_is_back_from_a_transfer_is_told_of_only_while_they_are_here():
    exchange = talking()
    exchange.legs[CALL].is_away = exchange.legs[CALL].is_followed = True

    back = exchange.take(event("StasisStart", CALL, args=["transferred", "BUSY"]), 14.0)
    again = exchange.take(event("StasisStart", CALL, args=["transferred", "BUSY"]), 14.1)

    assert back[1:] == [Unfollow(CALL)]
    assert again[1:] == []  # Asterisk counts: it would be told nothing of them here


def test_a_phone_that_rang_for_another_process_is_told_of_only_while_it_is_here_once_answered():
    exchange = Exchange()
    exchange.await_answer(OURS, "tick", "offhook-0")
    exchange.legs[OURS].is_followed = True

    answered = exchange.take(event("ChannelStateChange", OURS, state="Up"), 13.0)
    here = exchange.take(event("StasisStart", OURS), 13.1)

    assert Unfollow(OURS) not in answered  # it is in the other's hands yet
    assert Unfollow(OURS) in here
    assert not exchange.legs[OURS].is_followed


def test_a_media_channel_of_nobodys_is_ended():
    exchange = Exchange()

    assert exchange.take(event("StasisStart", MEDIA), 1.0) == [Drop(MEDIA)]


@pytest.mark.parametrize("name", ["a/b", "x" * 129, "a b", ""])
def test_a_call_whose_name_could_be_something_else_is_not_taken(name):
    told = {"type": "StasisStart", "channel": {"id": name, "state": "Ring"}}

    steps = Exchange().take(read_event(json.dumps(told)), 1.0)

    assert steps == [HangUp(name)]


def settled(exchange: Exchange, there: set[str], bridges: set[str] = frozenset()) -> set[object]:
    return set(exchange.settle(exchange.open_legs(), there, bridges, 20.0))


def test_what_was_missed_is_made_up_for():
    exchange = talking()
    left_by_another = "1764.7"

    there = {CALL, left_by_another, "offhook.media.4.1764.3"}
    bridges = {"offhook.bridge.4.1764.3", "somebody-elses", bridge_of(MEDIA)}
    steps = settled(exchange, there, bridges)

    assert steps == {
        Find(left_by_another),
        Drop("offhook.media.4.1764.3"),
        Drop(MEDIA),
        Tell(ResumeRequest(CALL)),
    }


def found_at_last(exchange: Exchange, now: float) -> list[object]:
    """What follows where a call is with somebody else, and does not come back."""
    channel = Channel(CALL, "Up", dialplan=IN_AN_APP)
    assert exchange.found(CALL, channel, now) == [Gone(CALL)]
    return exchange.found(CALL, channel, now, has_waited=True)


@pytest.mark.parametrize(
    "channel",
    [
        Channel(CALL, "Up", dialplan=IN_AN_APP),
        Channel(CALL, "Ring", dialplan=IN_AN_APP),
        Channel(OURS, "Ringing", dialplan=Dialplan(app_name="AppDial2")),
    ],
    ids=["talking", "coming in", "rung by us"],
)
def test_a_call_of_which_nothing_was_told_has_been_left_behind(channel):
    exchange = Exchange()

    assert exchange.seen(channel.id, channel, 21.0) == [Tell(ResumeRequest(channel.id))]


def test_a_caller_who_came_in_unheard_and_of_whom_nobody_knows_is_taken_for_new():
    exchange = Exchange()
    channel = Channel(
        CALL, "Ring", Party("+15005550100"), Dialplan("1000", "Stasis", "offhook,X-Agent=sales")
    )
    asked = VoiceRequest(
        CALL, "+15005550100", begins=True, called="1000", headers={"X-Agent": "sales"}
    )

    exchange.seen(CALL, channel, 21.0)

    assert exchange.do(CALL, EndCall()) == [Tell(asked)]
    assert exchange.do(CALL, PassOn("1")) == [Move(CALL, "1", ("X-Agent=sales", "given"))]


@pytest.mark.parametrize(
    "reply", [EndCall(), RefuseCall(), ConnectStream("tick"), SayAndEndCall("Sorry.", "en")]
)
def test_what_a_caller_who_came_in_unheard_is_answered_at_last(reply):
    unheard, heard = Exchange(), Exchange()
    unheard.seen(CALL, Channel(CALL, "Ring", dialplan=IN_AN_APP), 21.0)
    unheard.do(CALL, EndCall())
    heard.take(event("StasisStart", CALL, "Ring"), 21.0)

    assert unheard.do(CALL, reply) == heard.do(CALL, reply)


@pytest.mark.parametrize(
    ("channel", "is_answered_meanwhile"),
    [
        (Channel(CALL, "Up", dialplan=IN_AN_APP), False),
        (Channel(CALL, "Ring", dialplan=IN_AN_APP), True),
        (Channel(OURS, "Ringing", dialplan=Dialplan(app_name="AppDial2")), False),
    ],
    ids=["talking", "answered meanwhile", "rung by us"],
)
def test_a_call_that_was_left_behind_and_is_over_is_hung_up(channel, is_answered_meanwhile):
    exchange = Exchange()
    exchange.seen(channel.id, channel, 21.0)
    if is_answered_meanwhile:
        exchange.take(event("ChannelStateChange", channel.id), 21.1)

    assert exchange.do(channel.id, EndCall()) == [HangUp(channel.id)]


def test_a_call_that_another_process_has_taken_over_unheard_is_over_and_nothing_is_asked():
    exchange = talking()
    before = exchange.open_legs()

    steps = exchange.settle(before, set(), (), 20.0)
    doubtful = exchange.doubtful(before, set())
    looked_at = found_at_last(exchange, 20.0)

    assert steps == [Drop(MEDIA)]
    assert doubtful == [CALL]
    assert told(looked_at) == [StatusUpdate(CALL, CallStatus.COMPLETED, 4, {"duration_s": "10"})]
    assert exchange.legs == {}


def test_a_call_that_started_unheard_and_left_unheard_is_over():
    exchange = Exchange()
    exchange.adopt(CALL, 20.0)

    settled(exchange, {CALL})
    settled(exchange, set())
    looked_at = found_at_last(exchange, 22.0)

    assert told(looked_at) == [StatusUpdate(CALL, CallStatus.COMPLETED, 4)]


def test_a_call_that_is_only_about_to_be_moved_here_has_not_left():
    exchange = Exchange()
    exchange.adopt(CALL, 20.0)
    before = exchange.open_legs()
    asked_before = exchange.settle(before, set(), (), 20.0)
    exchange.take(event("StasisStart", CALL), 20.1)
    told_late = exchange.settle(before, set(), (), 20.2)

    assert asked_before == told_late == []
    assert exchange.found(CALL, Channel(CALL, "Up", dialplan=IN_AN_APP), 20.2) == []


def test_a_caller_who_is_sent_away_while_it_is_asked_what_there_is_has_not_left():
    exchange = talking()
    before = exchange.open_legs()
    exchange.legs[CALL].is_away = True

    steps = exchange.settle(before, {MEDIA}, (), 20.0)

    assert steps == []
    assert not exchange.legs[CALL].has_left


def test_a_phone_that_was_just_answered_has_not_left():
    exchange = Exchange()
    exchange.dial(OURS, "tick").is_dialling = False
    exchange.take(event("ChannelStateChange", OURS), 3.0)

    assert settled(exchange, set()) == set()
    assert not exchange.legs[OURS].has_left


@pytest.mark.parametrize("call", [CALL, OURS])
def test_a_caller_who_talks_with_somebody_else_in_the_dialplan_was_not_left_behind(call):
    exchange = Exchange()
    transferred = Channel(call, "Up", dialplan=IN_THE_DIALPLAN)

    assert exchange.seen(call, transferred, 21.0) == [Unfollow(call)]
    assert exchange.legs == {}


def test_a_call_that_is_gone_before_it_is_looked_at_was_not_left_behind():
    assert Exchange().seen(CALL, None, 21.0) == []


def test_a_call_that_came_just_when_events_were_heard_again_was_not_left_behind():
    exchange = Exchange()
    found = settled(exchange, {CALL})
    exchange.take(event("StasisStart", CALL, "Ring"), 20.1)

    assert found == {Find(CALL)}
    assert exchange.seen(CALL, Channel(CALL, "Up", dialplan=IN_AN_APP), 21.0) == []


def test_a_call_that_is_being_dialled_was_not_missed():
    exchange = Exchange()
    exchange.dial(OURS, "tick")

    assert settled(exchange, set()) == set()
    assert exchange.open_legs() == {}


def test_a_stream_that_is_opened_while_it_is_asked_what_there_is_was_not_lost():
    exchange = talking()
    exchange.take_stream(CALL)
    before = exchange.open_legs()
    exchange.open_stream(CALL, "second")
    exchange.opened("offhook.media.2.1764.1")

    assert exchange.settle(before, {CALL}, (), 20.0) == []


def test_a_media_channel_that_came_unheard_is_joined_once():
    exchange = talking()
    exchange.take_stream(CALL)
    exchange.open_stream(CALL, "second")
    second = "offhook.media.2.1764.1"

    steps = settled(exchange, {CALL, second})
    told_late = exchange.take(event("StasisStart", second), 20.1)

    assert steps == {Join(CALL, second)}
    assert told_late == []


def test_a_call_of_ours_that_was_answered_unheard_gets_its_stream():
    exchange = Exchange()
    exchange.dial(OURS, "tick").is_dialling = False

    doubtful = exchange.doubtful([OURS], {OURS})
    steps = exchange.found(OURS, Channel(OURS, "Up"), 20.0)
    told_late = exchange.take(event("StasisStart", OURS), 20.1)

    assert doubtful == [OURS]
    assert told(steps) == [StatusUpdate(OURS, CallStatus.IN_PROGRESS, 3)]
    assert steps[1:] == [OpenStream(OURS, OUR_MEDIA, "tick")]
    assert told_late == []


def test_a_call_of_ours_that_was_heard_to_be_answered_but_not_to_come_gets_its_stream():
    exchange = Exchange()
    exchange.dial(OURS, "tick").is_dialling = False
    exchange.take(event("ChannelStateChange", OURS), 3.0)

    doubtful = exchange.doubtful([OURS], {OURS})
    steps = exchange.found(OURS, Channel(OURS, "Up"), 20.0)
    told_late = exchange.take(event("StasisStart", OURS), 20.1)

    assert doubtful == [OURS]
    assert steps == [OpenStream(OURS, OUR_MEDIA, "tick")]
    assert told_late == []
    assert exchange.doubtful([OURS], {OURS}) == []


def test_a_stream_that_a_call_of_ours_was_given_since_is_not_replaced_by_the_one_it_waited_for():
    exchange = Exchange()
    exchange.dial(OURS, "tick").is_dialling = False
    exchange.take(event("ChannelStateChange", OURS), 3.0)
    exchange.open_stream(OURS, "second")

    assert exchange.found(OURS, Channel(OURS, "Up"), 20.0) == []
    assert exchange.take(event("StasisStart", OURS), 20.1) == []


def test_a_caller_who_came_back_from_a_transfer_unheard_is_asked_about():
    exchange = talking()
    exchange.legs[CALL].is_away = True
    back = Channel(CALL, "Up", dialplan=Dialplan("1", "Stasis", "offhook,transferred,BUSY"))

    ringing = exchange.found(CALL, Channel(CALL, "Up", dialplan=Dialplan("1", "Dial", "x")), 20.0)
    steps = exchange.found(CALL, back, 21.0)

    assert exchange.doubtful([CALL], {CALL}) == []
    assert ringing == []
    assert steps == [Tell(TransferUpdate(CALL, CallStatus.BUSY, wants_document=True))]


def test_last_words_whose_end_was_missed_end_the_call():
    exchange = talking()
    exchange.say(CALL)

    assert exchange.doubtful([CALL], {CALL}) == [CALL]
    assert exchange.found(CALL, Channel(CALL, "Up"), 20.0) == [HangUp(CALL)]


def test_a_call_that_is_gone_is_over():
    steps = talking().found(CALL, None, 20.0)

    assert told(steps) == [StatusUpdate(CALL, CallStatus.COMPLETED, 4, {"duration_s": "10"})]


def test_a_call_that_is_gone_before_its_end_is_told_ends_as_is_told_then():
    exchange = Exchange()
    exchange.dial(OURS, "tick")

    steps = exchange.found(OURS, None, 20.0)
    ended = exchange.take(event("ChannelDestroyed", OURS, cause=17), 20.1)
    later = exchange.found(OURS, None, 21.0, has_waited=True)

    assert steps == [Gone(OURS)]
    assert told(ended) == [StatusUpdate(OURS, CallStatus.BUSY, 4, {})]
    assert later == []


def test_a_call_that_is_gone_and_nothing_is_told_of_its_end_has_failed():
    exchange = Exchange()
    exchange.dial(OURS, "tick")

    exchange.found(OURS, None, 20.0)
    later = exchange.found(OURS, None, 21.0, has_waited=True)

    assert told(later) == [StatusUpdate(OURS, CallStatus.FAILED, 4, {})]
    assert exchange.legs == {}


# -- between processes ---------------------------------------------------------------------


@pytest.mark.parametrize(("call", "is_outbound"), [(CALL, False), (OURS, True)])
def test_a_call_that_is_taken_over_starts_here_without_a_word(call, is_outbound):
    exchange = Exchange(mark="b-")
    leg = exchange.adopt(call, 20.0)

    started = exchange.take(event("StasisStart", call), 20.1)
    steps = exchange.open_stream(call, "tick")

    assert started == []
    assert steps == [OpenStream(call, f"offhook.media.b-1.{call}", "tick"), Limit(call)]
    assert leg.is_outbound is is_outbound


def test_a_phone_that_rings_gets_its_stream_only_when_it_is_answered():
    exchange = Exchange()
    rings = Channel(OURS, "Ringing", dialplan=Dialplan(app_name="AppDial2"))
    exchange.seen(OURS, rings, 20.0)

    steps = exchange.do(OURS, ConnectStream("tick"))
    up = exchange.take(event("StasisStart", OURS), 24.0)

    assert steps == []
    assert told(up) == [StatusUpdate(OURS, CallStatus.IN_PROGRESS, 3)]
    assert OpenStream(OURS, OUR_MEDIA, "tick") in up


def test_a_call_that_was_left_before_it_was_answered_is_answered():
    exchange = Exchange()
    exchange.seen(CALL, Channel(CALL, "Ring", dialplan=IN_AN_APP), 20.0)

    assert exchange.do(CALL, ConnectStream("tick"))[0] == Answer(CALL)


@pytest.mark.parametrize("is_heard", [True, False], ids=["heard", "looked up"])
def test_a_phone_that_another_process_has_had_dialled_is_fetched_when_it_is_answered(is_heard):
    exchange = Exchange()
    exchange.await_answer(OURS, "tick", "offhook-0")

    if is_heard:
        up = exchange.take(event("ChannelStateChange", OURS), 24.0)
    else:
        up = exchange.found(OURS, Channel(OURS, "Up"), 24.0)
    was_expected = exchange.expected("offhook-0")
    here = exchange.take(event("StasisStart", OURS), 24.1)

    assert told(up) == [StatusUpdate(OURS, CallStatus.IN_PROGRESS, 3)]
    assert up[1:] == [Fetch(OURS)]
    assert was_expected
    assert here == [OpenStream(OURS, OUR_MEDIA, "tick")]
    assert not exchange.expected("offhook-0")


async def test_an_answer_is_news_whoever_has_told_before_that_the_phone_rings(
    autojump_clock,
):
    first, second, progress = Exchange(), Exchange(), Progress()
    for number in range(5):
        call = f"offhook-{number}"
        first.dial(call, "tick")
        (rings,) = told(first.take(event("ChannelStateChange", call, "Ringing"), 1.0))
    progress.go_on(rings.status, rings.sequence_number)
    second.await_answer("offhook-4", "tock", "offhook-0")

    (up,) = told(second.take(event("ChannelStateChange", "offhook-4"), 24.0))

    assert progress.update(up)
    assert progress.status is CallStatus.IN_PROGRESS


@pytest.mark.parametrize("call", [CALL, OURS])
def test_since_when_a_call_lasts_that_was_taken_over_is_not_told(call):
    exchange = Exchange()
    exchange.adopt(call, 20.0)

    over = exchange.take(event("ChannelDestroyed", call, cause=16), 24.0)

    assert told(over) == [StatusUpdate(call, CallStatus.COMPLETED, 4)]


@pytest.mark.parametrize("word", ["BUSY", "NOANSWER"])
def test_a_caller_whom_another_process_has_sent_away_is_fetched_when_nobody_takes_them(word):
    exchange = Exchange()
    exchange.await_caller(CALL, "offhook-0", 20.0)

    rings = exchange.take(dial("RINGING", caller=CALL, peer="1764.9"), 21.0)
    over = exchange.take(dial(word, caller=CALL, peer="1764.9"), 24.0)
    here = exchange.take(event("StasisStart", CALL, args=["transferred", word]), 24.1)

    assert rings == []
    assert over == [Fetch(CALL, ("transferred", word))]
    assert [type(one) for one in told(here)] == [TransferUpdate]
    assert not exchange.is_awaited(CALL)


@pytest.mark.parametrize("app", ["", "offhook-0"], ids=["our name", "another's"])
def test_a_caller_whom_a_process_was_about_to_send_away_is_back_once_they_are_here(app):
    exchange = Exchange()
    exchange.await_caller(CALL, app, 20.0)
    exchange.legs[CALL].is_followed = True
    is_back = [
        Tell(TransferUpdate(CALL, CallStatus.FAILED, wants_document=True)),
        Unfollow(CALL),
    ]

    found = exchange.found(CALL, Channel(CALL, "Up", dialplan=IN_AN_APP), 21.0)
    here = exchange.take(event("StasisStart", CALL), 21.1)

    assert found == ([Fetch(CALL)] if app else is_back)
    assert here == (is_back if app else [])
    assert exchange.do(CALL, ConnectStream("tick"))[0] == OpenStream(CALL, MEDIA, "tick")


def test_a_caller_is_waited_for_whom_another_process_has_sent_away_after_it_got_them_from_here():
    exchange = talking()
    exchange.take(event("StasisEnd", CALL), 20.0)
    exchange.await_caller(CALL, "offhook-1", 20.1)
    rings = Channel(CALL, "Up", dialplan=Dialplan("1", "Dial", "x"))

    assert exchange.found(CALL, rings, 20.2) == []
    assert exchange.is_awaited(CALL)


def test_a_caller_whom_we_are_about_to_send_away_is_on_their_way():
    exchange = Exchange()
    exchange.adopt(CALL, 20.0)
    exchange.open_stream(CALL, "tick")
    exchange.legs[CALL].is_away = True

    assert exchange.found(CALL, Channel(CALL, "Up", dialplan=IN_AN_APP), 21.0) == []


def test_a_caller_who_talks_with_somebody_else_is_not_waited_for():
    exchange = Exchange()
    exchange.await_caller(CALL, "offhook-0", 20.0)

    exchange.take(dial("ANSWER", caller=CALL, peer="1764.9"), 24.0)

    assert not exchange.expected("offhook-0")


def test_media_channels_of_two_processes_have_different_names_and_the_same_call():
    names = set()
    for mark in ("a-", "b-"):
        exchange = Exchange(mark=mark)
        exchange.adopt(CALL, 20.0)
        exchange.open_stream(CALL, "tick")
        names.add(exchange.legs[CALL].media_id)

    assert len(names) == 2
    assert {call_of(name) for name in names} == {call_of(bridge_of(n)) for n in names} == {CALL}


def test_a_call_that_another_process_has_taken_is_let_go_of():
    exchange = talking()

    left = exchange.take(event("StasisEnd", CALL), 17.4)
    media_over = exchange.take(event("ChannelDestroyed", MEDIA), 17.5)
    steps = found_at_last(exchange, 17.5)

    assert left == [Look(CALL)]
    assert media_over == [Drop(MEDIA)]
    assert told(steps) == [StatusUpdate(CALL, CallStatus.COMPLETED, 4, {"duration_s": "8"})]
    assert exchange.legs == {}


def test_a_call_that_has_left_and_is_back_goes_on():
    exchange = talking()

    left = exchange.take(event("StasisEnd", CALL), 17.4)
    too_early = exchange.found(CALL, Channel(CALL, "Up"), 17.4)
    back = exchange.take(event("StasisStart", CALL), 17.5)
    steps = exchange.found(CALL, Channel(CALL, "Up"), 18.4, has_waited=True)

    assert too_early == [Gone(CALL)]
    assert left == [Look(CALL)]
    assert back == [Drop(MEDIA), Tell(ResumeRequest(CALL))]  # they hear each other no more
    assert steps == []
    assert exchange.do(CALL, ConnectStream("tock")) == [
        OpenStream(CALL, "offhook.media.2.1764.1", "tock")
    ]


def test_a_call_that_is_back_and_whose_stream_has_ended_meanwhile_gets_another():
    exchange = talking()

    exchange.take(event("StasisEnd", CALL), 17.4)
    meanwhile = exchange.take(event("ChannelDestroyed", MEDIA), 17.5)
    back = exchange.take(event("StasisStart", CALL), 17.6)
    opened = exchange.do(CALL, ConnectStream("tock"))

    assert meanwhile == [Drop(MEDIA)]
    assert back == [Tell(ResumeRequest(CALL))]
    assert opened == [OpenStream(CALL, "offhook.media.2.1764.1", "tock")]


def test_a_call_that_is_back_and_hears_its_last_words_is_not_asked_about():
    exchange = talking()
    exchange.say(CALL)

    exchange.take(event("StasisEnd", CALL), 17.4)

    assert exchange.take(event("StasisStart", CALL), 17.6) == []


def test_who_asks_by_way_of_asterisk_whether_we_are_there_is_told():
    def asked(name: str, app: object) -> list[object]:
        told = event("ChannelUserevent", eventname=name, userevent={"app": app})
        return [] if told is None else Exchange().take(told, 1.0)

    assert asked("offhook.asks", "offhook-b") == [SayThere("offhook-b")]
    assert asked("offhook.there", "offhook-b") == [Heard("offhook-b")]
    assert asked("anything", "offhook-b") == []
    assert asked("offhook.asks", ["offhook-b"]) == []


def test_a_call_of_ours_that_is_not_known_is_never_taken_for_one_that_comes_in():
    exchange = Exchange()

    steps = exchange.take(event("StasisStart", OURS), 20.0)

    assert told(steps) == [
        StatusUpdate(OURS, CallStatus.IN_PROGRESS, 3),
        ResumeRequest(OURS),
    ]
    assert exchange.do(OURS, EndCall()) == [HangUp(OURS)]


def test_a_call_that_was_given_here_is_not_given_on():
    exchange = Exchange()

    steps = exchange.take(event("StasisStart", CALL, "Ring", args=["X-A=1", "given"]), 9.0)

    asked = VoiceRequest(CALL, "+15005550100", begins=True, headers={"X-A": "1"}, is_given=True)
    assert steps == [Tell(asked)]


def test_a_call_that_nobody_there_could_take_is_asked_about_here():
    exchange = Exchange()
    exchange.take(event("StasisStart", CALL, "Ring", args=["X-A=1"]), 9.0)
    passed_on = exchange.do(CALL, PassOn("1"))

    steps = exchange.take(
        event("ApplicationMoveFailed", CALL, "Ring", args=["X-A=1", "given"], destination="o-1"),
        9.1,
    )

    assert passed_on == [Move(CALL, "1", ("X-A=1", "given"))]
    asked = VoiceRequest(CALL, "+15005550100", begins=True, headers={"X-A": "1"}, is_given=True)
    assert steps == [Tell(asked)]


# -- what an inbound call says -------------------------------------------------------------


def test_which_number_is_called_and_what_the_dialplan_tells_of_headers():
    dialplan = {"context": "from-trunk", "exten": "+15005550006", "priority": 1}
    channel = {"id": CALL, "state": "Ring", "caller": {"number": "1"}, "dialplan": dialplan}
    args = ["X-Agent=sales, the second", "not a header", "x" * 300]
    told_of = read_event(json.dumps({"type": "StasisStart", "channel": channel, "args": args}))

    (step,) = Exchange().take(told_of, 9.0)

    assert step.report.called == "+15005550006"
    assert step.report.headers == {"X-Agent": "sales, the second"}


def test_an_extension_that_nobody_dialled_is_no_number():
    channel = {"id": CALL, "state": "Ring", "dialplan": {"exten": "s"}}

    (step,) = Exchange().take(
        read_event(json.dumps({"type": "StasisStart", "channel": channel})), 9
    )

    assert step.report.called == ""


def test_a_long_name_or_number_is_no_reason_to_lose_a_call():
    caller = {"name": "n" * 5_000, "number": "7" * 5_000}
    channel = {"id": CALL, "state": "Ring", "caller": caller}

    (step,) = Exchange().take(
        read_event(json.dumps({"type": "StasisStart", "channel": channel})), 9
    )

    assert step.report.number == "7" * 64


def test_of_an_event_that_is_otherwise_it_is_read_what_and_whose_it_is():
    text = json.dumps({"type": "ChannelDestroyed", "channel": {"id": CALL}, "cause": {"no": 1}})

    assert read_event(text) == Event("ChannelDestroyed", Channel(CALL))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"type": 1}', '{"channel": {"id": "x"}}', "9"])
def test_what_is_no_event_is_none(text):
    assert read_event(text) is None


def test_of_calls_that_are_over_nothing_is_kept():
    exchange = Exchange()
    for number in range(3):
        call = f"1764.{number}"
        exchange.take(event("StasisStart", call, "Ring"), 9.0)
        exchange.do(call, ConnectStream("tick"))
        exchange.take(event("ChannelDestroyed", call), 10.0)

    assert exchange == Exchange()


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
