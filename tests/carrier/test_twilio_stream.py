"""A media stream over a transport that lives in memory."""

import base64
import json

import pytest
import trio

from server.carrier import CallerAudio, Clear, StreamStarted, StreamStopped
from server.carrier.twilio.stream import TwilioMediaStream
from server.errors import CarrierProtocolError, StreamEnded
from tests.support.twilio_messages import CALL, CONNECTED, FRAME, STOP, STREAM, media, start

ENDED = None


class ScriptedTransport:
    """Gives the messages it was made with, then waits for more or ends."""

    def __init__(self, *messages: str | bytes | None) -> None:
        self._to_us, self._inbox = trio.open_memory_channel[str | bytes](1000)
        self.sent: list[str] = []
        self.closed: tuple[int, str] | None = None
        for message in messages:
            self.give(message)

    def give(self, message: str | bytes | None) -> None:
        if message is ENDED:
            self._to_us.close()
        else:
            self._to_us.send_nowait(message)

    async def receive(self) -> str | bytes:
        try:
            return await self._inbox.receive()
        except trio.EndOfChannel:
            raise StreamEnded("closed") from None

    def receive_nowait(self) -> str | bytes | None:
        try:
            return self._inbox.receive_nowait()
        except trio.WouldBlock:
            return None
        except trio.EndOfChannel:
            raise StreamEnded("closed") from None

    async def send(self, text: str) -> None:
        if self.closed is not None:
            raise StreamEnded("closed")
        self.sent.append(text)

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        self.closed = (code, reason)


async def test_events_come_in_order_and_stop_is_the_last(autojump_clock):
    stream = TwilioMediaStream(ScriptedTransport(CONNECTED, start(), media(1), media(2), STOP))
    await trio.sleep(3.0)
    now = trio.current_time()

    events = [await stream.receive() for _ in range(4)]

    assert events == [
        StreamStarted(STREAM, CALL, {"ticket": "t1"}, now),
        CallerAudio(FRAME, 0, now),
        CallerAudio(FRAME, 20, now),
        StreamStopped(said=True),
    ]
    assert stream.stream_sid == STREAM
    assert stream.counts.media == 2


async def test_a_socket_that_closes_without_stop_gives_all_it_had_and_one_stop():
    stream = TwilioMediaStream(ScriptedTransport(start(), media(1), media(2), ENDED))

    kinds = [type(await stream.receive()) for _ in range(3)]
    last = await stream.receive()

    assert kinds == [StreamStarted, CallerAudio, CallerAudio]
    assert last == StreamStopped(said=False)
    with pytest.raises(StreamEnded):
        await stream.receive()
    with pytest.raises(StreamEnded):
        stream.receive_nowait()


async def test_what_comes_after_stop_is_not_an_event():
    stream = TwilioMediaStream(ScriptedTransport(start(), STOP, media(), ENDED))

    events = [await stream.receive() for _ in range(2)]

    assert events[1] == StreamStopped(said=True)
    with pytest.raises(StreamEnded):
        await stream.receive()


async def test_receive_nowait_skips_what_is_ignored_and_never_waits():
    transport = ScriptedTransport(start(), "{", b"binary", '{"event":"weather"}', media(1))
    stream = TwilioMediaStream(transport)
    await stream.receive()

    first = stream.receive_nowait()
    nothing = stream.receive_nowait()
    transport.give(ENDED)
    last = stream.receive_nowait()

    assert isinstance(first, CallerAudio)
    assert nothing is None
    assert last == StreamStopped(said=False)
    assert (stream.counts.malformed, stream.counts.binary, stream.counts.unknown) == (1, 1, 1)


async def test_receive_waits_for_a_message_that_says_something(autojump_clock, nursery):
    transport = ScriptedTransport()
    stream = TwilioMediaStream(transport)

    async def carrier() -> None:
        for message in (CONNECTED, "nonsense", start()):
            await trio.sleep(1.0)
            transport.give(message)

    began = trio.current_time()
    nursery.start_soon(carrier)
    event = await stream.receive()

    assert isinstance(event, StreamStarted)
    assert event.received_at - began == pytest.approx(3.0)


async def test_a_broken_stream_is_a_protocol_error():
    bad_format = {"encoding": "audio/l16", "sampleRate": 8000, "channels": 1}
    stream = TwilioMediaStream(ScriptedTransport(start(mediaFormat=bad_format)))

    with pytest.raises(CarrierProtocolError):
        await stream.receive()


async def test_sending_reaches_the_transport_until_it_is_closed():
    transport = ScriptedTransport(start())
    stream = TwilioMediaStream(transport)
    await stream.receive()

    await stream.send(Clear())
    await stream.aclose(1008, "bad ticket")

    assert [json.loads(text)["event"] for text in transport.sent] == ["clear"]
    assert transport.closed == (1008, "bad ticket")
    with pytest.raises(StreamEnded):
        await stream.send(Clear())


async def test_a_close_reason_is_cut_to_what_a_close_frame_holds():
    transport = ScriptedTransport()

    await TwilioMediaStream(transport).aclose(1008, "ñ" * 100)

    assert transport.closed == (1008, "ñ" * 61)


async def test_a_long_silence_of_ignored_messages_ends_with_the_socket():
    noise = [base64.b64encode(bytes(9)).decode()] * 20
    stream = TwilioMediaStream(ScriptedTransport(*noise, ENDED))

    assert await stream.receive() == StreamStopped(said=False)
    assert stream.counts.malformed == 20
