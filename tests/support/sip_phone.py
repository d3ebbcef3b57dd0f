"""A telephone on SIP and RTP, as little of it as calls through a PBX need: it calls and is called.

RFC 3261 with one dialog at a time, no retransmissions (loopback loses nothing) and no
authentication; G.711 every 20 ms, and key presses as RFC 4733 has them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

FRAME_BYTES, FRAME_S = 160, 0.02
PAYLOAD_TYPES = {"ulaw": 0, "alaw": 8}
SILENCE = {"ulaw": b"\xff", "alaw": b"\xd5"}
KEYS_TYPE = 101
KEYS = "0123456789*#ABCD"


class Ended(Exception):
    """The other side has refused the call, or ended it."""


@dataclass
class Message:
    """One SIP message."""

    start: str
    headers: dict[str, str]
    body: str

    @classmethod
    def read(cls, data: bytes) -> Message:
        head, _, body = data.decode().partition("\r\n\r\n")
        start, *lines = head.split("\r\n")
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            value = value.strip()
            headers[name] = f"{headers[name]},{value}" if name in headers else value
        return cls(start, headers, body)

    @property
    def status(self) -> int:
        """Of an answer; 0 of a request."""
        return int(self.start.split()[1]) if self.start.startswith("SIP/2.0") else 0

    @property
    def method(self) -> str:
        """Of a request, or of what an answer answers."""
        return self.headers["cseq"].split()[1]


@dataclass
class Phone:
    """One telephone; :meth:`call` and :meth:`take_call` have it talk."""

    sip: trio.socket.SocketType
    rtp: trio.socket.SocketType
    pbx: tuple[str, int]
    law: str = "ulaw"
    heard: list[tuple[float, bytes]] = field(default_factory=list)
    """Frames, and when they came."""
    lost: int = 0
    """Frames that were never heard, by their sequence numbers."""
    ended: trio.Event = field(default_factory=trio.Event)
    says: bytearray = field(default_factory=bytearray)
    """What is still to be said; silence follows."""
    is_mute: bool = False
    """Sends no RTP at all."""
    spoke_at: float = 0.0
    """When the first frame of what was to be said last was sent."""
    answered: trio.Event = field(default_factory=trio.Event)
    news: trio.Event = field(default_factory=trio.Event)
    """Set when the next frame is heard."""
    _peer: tuple[str, int] = ("", 0)
    _dialog: dict[str, str] = field(default_factory=dict)
    _cseq: int = 1
    _sent: int = 0
    _last_sequence: int | None = None

    @property
    def port(self) -> int:
        """Where it listens for SIP."""
        return self.sip.getsockname()[1]

    # -- signalling ------------------------------------------------------------------------

    async def call(self, number: str) -> None:
        """Call a number, and return when it has answered.

        Raises:
            Ended: It was refused; the message is the status.
        """
        me = f"sip:phone@127.0.0.1:{self.port}"
        self._dialog = {
            "to_uri": f"sip:{number}@{self.pbx[0]}:{self.pbx[1]}",
            "from": f"<{me}>;tag=t{self.port}",
            "to": f"<sip:{number}@{self.pbx[0]}:{self.pbx[1]}>",
            "call_id": f"c{self.port}-{trio.current_time()}",
        }
        await self._request("INVITE", self._sdp())
        while True:
            message = await self._receive()
            if message.status < 200:
                continue
            self._dialog["to"] = message.headers["to"]
            if message.status != 200:
                await self._request("ACK", branch="invite")
                raise Ended(str(message.status))
            contact = re.search(r"<(sip:[^>]+)>", message.headers["contact"])
            assert contact is not None
            self._dialog["to_uri"] = contact[1]
            self._take_sdp(message.body)
            await self._request("ACK", branch="ack")
            self.answered.set()
            return

    async def take_call(self, *, ring_s: float = 0.0, refuse: int = 0, ignore: bool = False) -> str:
        """Wait for a call and take it; returns the number that was dialled.

        Args:
            ring_s: How long it rings.
            refuse: A status that it is refused with.
            ignore: Ring until whoever calls gives up.

        Raises:
            Ended: It was not taken.
        """
        invite = await self._invited()
        if refuse:
            await self._answer(invite, refuse)
            raise Ended(str(refuse))
        await self._answer(invite, 180)
        with trio.move_on_after(ring_s if not ignore else 60.0):
            await self.ring_on(invite)
        return await self.pick_up(invite)

    async def rings(self) -> Message:
        """Wait until somebody calls, and ring; returns what :meth:`pick_up` takes."""
        invite = await self._invited()
        await self._answer(invite, 180)
        return invite

    async def ring_on(self, invite: Message) -> None:
        """Ring until whoever calls gives up.

        Raises:
            Ended: They have.
        """
        while True:
            message = await self._receive()
            if message.start.startswith("CANCEL"):
                await self._answer(message, 200)
                await self._answer(invite, 487)
                raise Ended("cancelled")

    async def refuse(self, invite: Message, status: int) -> None:
        """Refuse a call that rings."""
        await self._answer(invite, status)

    async def pick_up(self, invite: Message) -> str:
        """Take a call that rings; returns the number that was dialled."""
        self._take_sdp(invite.body)
        contact = re.search(r"<(sip:[^>]+)>", invite.headers["contact"])
        assert contact is not None
        self._dialog |= {
            "to_uri": contact[1],
            "from": f"{invite.headers['to']};tag=t{self.port}",
            "to": invite.headers["from"],
        }
        await self._answer(invite, 200, self._sdp())
        self.answered.set()
        number = re.search(r"sip:([^@]+)@", invite.start)
        assert number is not None
        return number[1]

    async def _invited(self) -> Message:
        while True:
            invite = await self._receive()
            if invite.start.startswith("INVITE"):
                self._dialog = {"call_id": invite.headers["call-id"]}
                return invite

    async def hang_up(self) -> None:
        """End the call."""
        if not self.ended.is_set():
            self._cseq += 1
            await self._request("BYE")
            self.ended.set()

    async def _request(self, method: str, body: str = "", branch: str = "") -> None:
        dialog = self._dialog
        me = f"127.0.0.1:{self.port}"
        branch = "invite" if method == "INVITE" else branch or f"b{self._cseq}"
        lines = [
            f"{method} {dialog['to_uri']} SIP/2.0",
            f"Via: SIP/2.0/UDP {me};branch=z9hG4bK{dialog['call_id']}{branch};rport",
            f"From: {dialog['from']}",
            f"To: {dialog['to']}",
            f"Call-ID: {dialog['call_id']}",
            f"CSeq: {self._cseq} {method}",
            f"Contact: <sip:phone@{me}>",
            "Max-Forwards: 70",
            f"Content-Length: {len(body)}",
        ]
        if body:
            lines.append("Content-Type: application/sdp")
        await self.sip.sendto("\r\n".join([*lines, "", body]).encode(), self.pbx)

    async def _answer(self, request: Message, status: int, body: str = "") -> None:
        to = request.headers["to"]
        if status > 100 and ";tag=" not in to:
            to = f"{to};tag=t{self.port}"
        lines = [
            f"SIP/2.0 {status} Status",
            *(f"Via: {via}" for via in request.headers["via"].split(",")),
            f"From: {request.headers['from']}",
            f"To: {to}",
            f"Call-ID: {request.headers['call-id']}",
            f"CSeq: {request.headers['cseq']}",
            f"Contact: <sip:phone@127.0.0.1:{self.port}>",
            f"Content-Length: {len(body)}",
        ]
        if body:
            lines.append("Content-Type: application/sdp")
        await self.sip.sendto("\r\n".join([*lines, "", body]).encode(), self.pbx)

    async def _receive(self) -> Message:
        while True:
            data, self.pbx = await self.sip.recvfrom(65536)
            message = Message.read(data)
            if not message.start.startswith("OPTIONS"):
                return message
            await self._answer(message, 200)

    def _sdp(self) -> str:
        kind, port = PAYLOAD_TYPES[self.law], self.rtp.getsockname()[1]
        lines = [
            *("v=0", "o=- 1 1 IN IP4 127.0.0.1", "s=-", "c=IN IP4 127.0.0.1", "t=0 0"),
            f"m=audio {port} RTP/AVP {kind} {KEYS_TYPE}",
            f"a=rtpmap:{KEYS_TYPE} telephone-event/8000",
            f"a=fmtp:{KEYS_TYPE} 0-16",
            "a=ptime:20",
        ]
        return "\r\n".join([*lines, ""])

    def _take_sdp(self, sdp: str) -> None:
        found = re.search(r"^m=audio (\d+)", sdp, re.MULTILINE)
        assert found is not None
        self._peer = ("127.0.0.1", int(found[1]))

    # -- sound -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Speak and listen while a call is there, and see the other side end it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            await self.answered.wait()
            nursery.start_soon(self._speak)
            nursery.start_soon(self._wait_bye)
            await self.ended.wait()
            nursery.cancel_scope.cancel()

    async def _wait_bye(self) -> None:
        while True:
            message = await self._receive()
            if message.start.startswith("BYE"):
                await self._answer(message, 200)
                self.ended.set()

    async def _speak(self) -> None:
        began, is_speaking = trio.current_time(), False
        for number in range(1_000_000):
            await trio.sleep_until(began + number * FRAME_S)
            if self.is_mute:
                continue
            if self.says and not is_speaking:
                self.spoke_at = trio.current_time()
            is_speaking = bool(self.says)
            frame = bytes(self.says[:FRAME_BYTES])
            del self.says[:FRAME_BYTES]
            frame = frame.ljust(FRAME_BYTES, SILENCE[self.law])
            await self._send(PAYLOAD_TYPES[self.law], frame, at=number * FRAME_BYTES)

    async def _send(self, kind: int, payload: bytes, *, at: int) -> None:
        head = struct.pack("!BBHII", 0x80, kind, self._sent & 0xFFFF, at & 0xFFFFFFFF, self.port)
        self._sent += 1
        await self.rtp.sendto(head + payload, self._peer)

    async def press(self, key: str) -> None:
        """Press a key for a tenth of a second (RFC 4733: the end is told three times)."""
        code, at = KEYS.index(key), int(trio.current_time() * 8_000)
        for step in (1, 2, 3, 4, 5, 5, 5):
            end = 0x80 if step == 5 else 0
            await self._send(KEYS_TYPE, struct.pack("!BBH", code, end | 10, step * 160), at=at)
            await trio.sleep(FRAME_S)

    async def _listen(self) -> None:
        while True:
            packet, _ = await self.rtp.recvfrom(2048)
            kind = packet[1] & 0x7F
            if kind != PAYLOAD_TYPES[self.law]:
                continue
            (sequence,) = struct.unpack_from("!H", packet, 2)
            if self._last_sequence is not None:
                self.lost += max(0, ((sequence - self._last_sequence) & 0xFFFF) - 1)
            self._last_sequence = sequence
            self.heard.append((trio.current_time(), packet[12:]))
            news, self.news = self.news, trio.Event()
            news.set()


@asynccontextmanager
async def open_phone(
    pbx: tuple[str, int], *, port: int = 0, law: str = "ulaw"
) -> AsyncGenerator[Phone]:
    """A telephone for as long as the block lasts.

    Args:
        pbx: Where the PBX listens for SIP.
        port: Where the telephone does; 0 for anywhere.
        law: What it speaks.
    """
    kind = trio.socket.SOCK_DGRAM
    with trio.socket.socket(type=kind) as sip, trio.socket.socket(type=kind) as rtp:
        await sip.bind(("127.0.0.1", port))
        await rtp.bind(("127.0.0.1", 0))
        yield Phone(sip, rtp, pbx, law)
