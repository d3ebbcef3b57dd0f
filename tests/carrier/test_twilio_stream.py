"""A media stream over a transport that lives in memory."""

import base64
import json

import pytest
import trio

from server.carrier import CallerAudio, Clear, StreamStarted, StreamStopped
from server.carrier.transport import OnMessages
from server.carrier.twilio.stream import TwilioMediaStream
from server.errors import CarrierProtocolError, StreamEnded
from tests.support.streams import nobodys_relay
from tests.support.twilio_messages import CALL, CONNECTED, FRAME, STOP, STREAM, media, start

ENDED = None


class ScriptedTransport:
    """Gives the messages it was made with, then waits for more or ends."""

    def __init__(self, *messages: str | bytes | None) -> None:
        self._to_us, self._inbox = trio.open_memory_channel[str | bytes](1000)
        self._listener: OnMessages | None = None
        self.sent: list[str] = []
        self.closed: tuple[int, str] | None = None
        for message in messages:
            self.give(message)

    def give(self, *messages: str | bytes | None) -> None:
        said = [message for message in messages if message is not ENDED]
        if self._listener is not None:
            self._listener(said, ENDED in messages)
            return
        for message in said:
            self._to_us.send_nowait(message)
        if ENDED in messages:
            self._to_us.close()

    async def receive(self) -> str | bytes:
        try:
            return await self._inbox.receive()
        except trio.EndOfChannel:
            raise StreamEnded("closed") from None

    def listen(self, on_messages: OnMessages) -> None:
        self._listener = on_messages

    def join(self, relay) -> bool:
        return False

    def forget_unsent(self) -> None:
        pass

    def leave(self, relay) -> None:
        raise AssertionError("it was never joined")

    def send(self, text: str) -> None:
        if self.closed is not None:
            raise StreamEnded("closed")
        self.sent.append(text)

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        self.closed = (code, reason)


class Heard:
    """A stream that has started, and what has been pushed from it since, read by read."""

    def __init__(self, transport: ScriptedTransport, stream: TwilioMediaStream) -> None:
        self.transport = transport
        self.stream = stream
        self.pushed: list[list[object]] = []
        stream.listen(lambda events: self.pushed.append(list(events)), nobodys_relay())

    def brings(self, *messages: str | bytes | None) -> list[object]:
        """What is pushed of messages that come together."""
        before = len(self.pushed)
        self.transport.give(*messages)
        new = self.pushed[before:]
        assert len(new) <= 1
        return new[0] if new else []


async def started() -> Heard:
    transport = ScriptedTransport(CONNECTED, start())
    stream = TwilioMediaStream(transport)
    assert await stream.receive_start() is not None
    return Heard(transport, stream)


async def test_a_stream_begins_with_who_it_is_for(autojump_clock):
    stream = TwilioMediaStream(ScriptedTransport(CONNECTED, start()))
    await trio.sleep(3.0)

    event = await stream.receive_start()

    assert event == StreamStarted(STREAM, CALL, {"ticket": "t1"}, trio.current_time())
    assert stream.stream_sid == STREAM


async def test_events_are_pushed_in_order_together_as_they_came_and_stop_is_the_last(
    autojump_clock,
):
    heard = await started()
    await trio.sleep(3.0)
    now = trio.current_time()

    first = heard.brings(media(1), media(2))
    last = heard.brings(STOP)

    assert first == [CallerAudio(FRAME, 0, now), CallerAudio(FRAME, 20, now)]
    assert last == [StreamStopped(said=True)]
    assert heard.stream.counts.media == 2


async def test_a_socket_that_closes_without_stop_gives_all_it_had_and_one_stop():
    heard = await started()

    events = heard.brings(media(1), media(2), ENDED)
    after = heard.brings(ENDED)

    assert [type(event) for event in events] == [CallerAudio, CallerAudio, StreamStopped]
    assert events[-1] == StreamStopped(said=False)
    assert after == []


async def test_what_comes_after_stop_is_not_an_event():
    heard = await started()

    events = heard.brings(STOP, media(1))
    after = heard.brings(media(2), ENDED)

    assert events == [StreamStopped(said=True)]
    assert after == []


async def test_what_is_ignored_is_counted_and_pushed_to_nobody():
    heard = await started()

    nothing = heard.brings("{", b"binary", '{"event":"weather"}')
    events = heard.brings("{", media(1))

    assert nothing == []
    assert heard.pushed == [events]
    assert [type(event) for event in events] == [CallerAudio]
    counts = heard.stream.counts
    assert (counts.malformed, counts.binary, counts.unknown) == (2, 1, 1)


async def test_the_start_is_waited_for_through_whatever_else_comes(autojump_clock, nursery):
    transport = ScriptedTransport()
    stream = TwilioMediaStream(transport)

    async def carrier() -> None:
        for message in (CONNECTED, "nonsense", start()):
            await trio.sleep(1.0)
            transport.give(message)

    began = trio.current_time()
    nursery.start_soon(carrier)
    event = await stream.receive_start()

    assert isinstance(event, StreamStarted)
    assert event.received_at - began == pytest.approx(3.0)


async def test_a_socket_that_ends_before_its_stream_starts_is_nobodys():
    stream = TwilioMediaStream(ScriptedTransport(CONNECTED, ENDED))

    assert await stream.receive_start() is None
    assert await stream.receive_start() is None
    assert stream.stream_sid == ""


async def test_a_stream_that_starts_wrongly_is_a_protocol_error():
    bad_format = {"encoding": "audio/l16", "sampleRate": 8000, "channels": 1}
    stream = TwilioMediaStream(ScriptedTransport(start(mediaFormat=bad_format)))

    with pytest.raises(CarrierProtocolError):
        await stream.receive_start()


async def test_a_protocol_error_is_the_last_thing_that_is_pushed():
    heard = await started()

    events = heard.brings(media(1), *["{"] * 60, media(2))
    after = heard.brings(media(3), STOP, ENDED)

    assert [type(event) for event in events] == [CallerAudio, CarrierProtocolError]
    assert after == []


async def test_sending_reaches_the_transport_until_it_is_closed():
    heard = await started()

    heard.stream.send(Clear())
    await heard.stream.aclose(1008, "bad ticket")

    assert [json.loads(text) for text in heard.transport.sent] == [
        {"event": "clear", "streamSid": STREAM}
    ]
    assert heard.transport.closed == (1008, "bad ticket")
    with pytest.raises(StreamEnded):
        heard.stream.send(Clear())


async def test_nothing_is_sent_to_a_stream_that_has_stopped():
    heard = await started()
    heard.brings(STOP)

    with pytest.raises(StreamEnded):
        heard.stream.send(Clear())
    assert heard.transport.sent == []


async def test_a_close_reason_is_cut_to_what_a_close_frame_holds():
    transport = ScriptedTransport()

    await TwilioMediaStream(transport).aclose(1008, "ñ" * 100)

    assert transport.closed == (1008, "ñ" * 61)


async def test_a_long_silence_of_ignored_messages_ends_with_the_socket():
    noise = [base64.b64encode(bytes(9)).decode()] * 20
    stream = TwilioMediaStream(ScriptedTransport(*noise, ENDED))

    assert await stream.receive_start() is None
    assert stream.counts.malformed == 20
