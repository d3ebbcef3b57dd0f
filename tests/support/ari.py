"""A small Asterisk of ours, as ARI shows one: channels, bridges, apps and their events, no sound.

What it answers and tells, and in which order, is what Asterisk 22.10 does (``tests/asterisk`` asks
the real one). Telephones are the test's: :meth:`FakeAri.calls_in`, :meth:`FakeAri.answers`.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import trio
from websockets.exceptions import InvalidState
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

MODULES = ("chan_websocket.so", "res_websocket_client.so", "res_stasis.so")


@dataclass
class Fault:
    """What becomes of the next requests of a kind."""

    method: str
    ends: str
    status: int = 0
    """The answer; 0 for none: the connection is closed."""
    is_done: bool = False
    """Whether it is done all the same."""
    left: float = 1
    query: str = ""
    """What must be in its query, if anything must."""
    until: trio.Event | None = None
    """It is not answered before that."""


@dataclass
class Asked:
    """A request."""

    method: str
    path: str
    query: dict[str, str]
    body: Any

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class FakeAri:
    """One that runs."""

    url: str = ""
    version: str = "22.10.1"
    channels: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name: what ARI shows of each, and ``app``, whose hands it is in."""
    bridges: dict[str, set[str]] = field(default_factory=dict)
    bridge_names: dict[str, str] = field(default_factory=dict)
    variables: dict[str, dict[str, str]] = field(default_factory=dict)
    """Of channels, those that are gone, too."""
    asked: list[Asked] = field(default_factory=list)
    followed: set[tuple[str, str]] = field(default_factory=set)
    """Apps, and channels that each is told of wherever they are; they outlive who listens."""
    sent_away: list[str] = field(default_factory=list)
    """Channels that go on in the dialplan."""
    dialled: list[str] = field(default_factory=list)
    """Channels whose phone rings, or rang."""
    faults: list[Fault] = field(default_factory=list)
    apps: dict[str, Listener] = field(default_factory=dict)
    is_mute: bool = False
    """Whether nobody is told of anything."""
    news: trio.Event = field(default_factory=trio.Event)
    _ending: set[str] = field(default_factory=set)

    # -- the test's ------------------------------------------------------------------------

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until something holds that requests change."""
        with trio.fail_after(60):
            while not holds():
                await self.news.wait()

    def fails(self, method: str, ends: str, **fault: Any) -> None:
        """The next request like this is not answered, or with an error."""
        self.faults.append(Fault(method, ends, **fault))

    def happens(self) -> None:
        """Something has changed."""
        news, self.news = self.news, trio.Event()
        news.set()

    async def tell(self, app: str, kind: str, channel_id: str = "", **other: Any) -> None:
        """Tell whoever listens of an event."""
        if not self.is_mute and (listener := self.apps.get(app)) is not None:
            told = {"type": kind, "timestamp": "2026-11-28T19:48:48.152+0000"} | other
            if channel_id:
                told["channel"] = self.shown(channel_id)
            await listener.send(json.dumps(told))

    def shown(self, channel_id: str) -> dict[str, Any]:
        """A channel as ARI shows it."""
        known = self.channels.get(channel_id, {})
        runs = {"dialplan": {"app_name": "Stasis" if known.get("app") else "Dial"}}
        return {"id": channel_id, "state": "Up"} | runs | known

    async def calls_in(
        self, app: str, channel_id: str, *args: str, exten: str = "1000", state: str = "Ring"
    ) -> None:
        """A call comes in, and the dialplan gives it to an app; one that is Up it has answered."""
        caller = {"name": "", "number": "+15005550100"}
        dialplan = {"exten": exten, "app_name": "Stasis", "app_data": ",".join((app, *args))}
        self.channels[channel_id] = {
            "state": state,
            "app": app,
            "caller": caller,
            "dialplan": dialplan,
        }
        await self.tell(app, "StasisStart", channel_id, args=list(args))

    async def answers(self, channel_id: str) -> None:
        """Whom we call answers; without anybody who hears of it, the call is over at once."""
        app = self.channels[channel_id]["app"]
        self.channels[channel_id]["state"] = "Up"
        for one in {app} | self._followers(channel_id):
            await self.tell(one, "Dial", peer=self.shown(channel_id), dialstatus="ANSWER")
            await self.tell(one, "ChannelStateChange", channel_id)
        await self._given(channel_id, app, [])

    async def comes_back(self, channel_id: str, dialstatus: str) -> None:
        """Nobody has taken a transfer: the dialplan gives the caller to an app again."""
        who = {"caller": self.shown(channel_id), "peer": {"id": "1764.99", "state": "Down"}}
        for one in self._followers(channel_id):
            await self.tell(one, "Dial", dialstatus=dialstatus, **who)
        app = self.variables[channel_id]["OFFHOOK_APP"]
        self.channels[channel_id]["app"] = app
        await self._given(channel_id, app, ["transferred", dialstatus])

    async def goes_round(self, channel_id: str, to: str = "") -> None:
        """Somebody has the dialplan take a caller from their app, and give them to it again, or to
        another."""
        app = self.channels[channel_id]["app"]
        for members in self.bridges.values():
            members.discard(channel_id)
        await self.tell(app, "StasisEnd", channel_id)
        self.channels[channel_id]["app"] = to or app
        await self._given(channel_id, to or app, [])

    async def _given(self, channel_id: str, app: str, args: list[str]) -> None:
        dialplan = {"app_name": "Stasis", "app_data": ",".join((app, *args))}
        self.channels[channel_id]["dialplan"] = dialplan
        if app in self.apps:
            await self.tell(app, "StasisStart", channel_id, args=args)
        else:
            await self.ends(channel_id)
        self.happens()

    def _followers(self, channel_id: str) -> set[str]:
        return {one for one, name in self.followed if name == channel_id}

    async def ends(self, channel_id: str, cause: int = 16) -> None:
        """A channel is over."""
        if channel_id in self._ending:  # two have asked for it at once
            return
        self._ending.add(channel_id)
        app = self.channels[channel_id]["app"]
        is_media = channel_id.startswith("offhook.media.")
        await self.tell(app, "StasisEnd", channel_id)
        del self.channels[channel_id]
        self._ending.discard(channel_id)
        followers = {one for one, name in self.followed if name == channel_id}
        self.followed -= {(one, channel_id) for one in followers}
        for members in self.bridges.values():
            members.discard(channel_id)
        if is_media or channel_id.startswith("offhook-"):  # it is subscribed to those
            followers.add(app)
        for one in followers:
            await self.tell(one, "ChannelDestroyed", channel_id, cause=cause)
        self.happens()

    # -- what is asked of it ---------------------------------------------------------------

    async def answer(self, asked: Asked) -> tuple[int, Any]:
        """Do what a request asks for, and say how it went."""
        parts, query = asked.path.strip("/").split("/")[1:], asked.query
        match (asked.method, *(unquote(part) for part in parts)):
            case ("GET", "asterisk", "info"):
                return 200, {"system": {"version": self.version}}
            case ("GET", "asterisk", "modules", name):
                return 200, {"name": name, "status": "Running"}
            case ("GET", "sounds", _):
                return 200, {}
            case ("PUT", "applications", _, "eventFilter"):
                return 200, {}
            case ("POST", "applications", app, "subscription"):
                if query["eventSource"].removeprefix("channel:") not in self.channels:
                    return 422, {"message": "Event source does not exist"}
                self.followed.add((app, query["eventSource"].removeprefix("channel:")))
                return 200, {}
            case ("DELETE", "applications", app, "subscription"):
                pair = app, query["eventSource"].removeprefix("channel:")
                is_followed = pair in self.followed
                self.followed.discard(pair)
                return (200, {}) if is_followed else (409, {"message": "not subscribed"})
            case ("GET", "applications", app):
                inside = {name for name, one in self.channels.items() if one["app"] == app}
                theirs = sorted(inside | {name for one, name in self.followed if one == app})
                if app not in self.apps and not theirs:
                    return 404, {"message": "Application not found"}
                bridges = [
                    one
                    for one, members in self.bridges.items()
                    if self.bridge_names.get(one, app) == app or members & inside
                ]
                return 200, {"name": app, "channel_ids": theirs, "bridge_ids": bridges}
            case ("POST", "events", "user", name):
                return await self._tell_user_event(name, query["application"], asked.body)
            case ("POST", "channels"):
                return await self._originate(asked)
            case ("POST", "channels", "externalMedia"):
                return await self._open_media(asked)
            case ("GET", "bridges"):
                return 200, [
                    {"id": one, "name": self.bridge_names.get(one, ""), "channels": sorted(m)}
                    for one, m in self.bridges.items()
                ]
            case ("POST", "bridges"):
                self.bridges.setdefault(query["bridgeId"], set())
                self.bridge_names[query["bridgeId"]] = query.get("name", "")
                return 200, {"id": query["bridgeId"]}
            case ("POST", "bridges", bridge, "addChannel"):
                names = set(query["channel"].split(","))
                if names - self.channels.keys():
                    return 422, {"message": "Channel not in Stasis application"}
                for members in self.bridges.values():
                    members -= names
                self.bridges[bridge] |= names
                return 204, None
            case ("DELETE", "bridges", bridge):
                return (404, {}) if self.bridges.pop(bridge, None) is None else (204, None)
            case (_, "channels", channel_id, *_) if channel_id not in self.channels:
                return 404, {"message": "Channel not found"}
            case ("GET", "channels", channel_id):
                return 200, self.shown(channel_id)
            case ("DELETE", "channels", channel_id):
                await self.ends(channel_id)
                return 204, None
            case ("POST", "channels", channel_id, "answer"):
                if self.channels[channel_id]["state"] == "Up":  # nothing changes, so none is told
                    return 204, None
                self.channels[channel_id]["state"] = "Up"
                await self.tell(self.channels[channel_id]["app"], "ChannelStateChange", channel_id)
                return 204, None
            case ("GET", "channels", channel_id, "variable"):
                value = self.variables.get(channel_id, {}).get(query["variable"])
                return (404, {"message": "Variable"}) if value is None else (200, {"value": value})
            case ("POST", "channels", channel_id, "variable") if not self._is_in_hand(channel_id):
                return 409, {"message": "Channel not in Stasis application"}
            case ("POST", "channels", channel_id, "variable"):
                self.variables.setdefault(channel_id, {})[query["variable"]] = query["value"]
                return 204, None
            case ("POST", "channels", channel_id, "play"):
                await self.tell(
                    self.channels[channel_id]["app"],
                    "PlaybackFinished",
                    playback={"id": query["playbackId"], "state": "done"},
                )
                return 201, {"id": query["playbackId"]}
            case ("POST", "channels", channel_id, "move") if not self._is_in_hand(channel_id):
                return 409, {"message": "Channel not in Stasis application"}
            case ("POST", "channels", channel_id, "move"):
                await self._move(channel_id, query)
                return 204, None
            case ("POST", "channels", channel_id, "continue"):
                app, self.channels[channel_id]["app"] = self.channels[channel_id]["app"], ""
                dialplan = {"exten": query.get("extension", ""), "app_name": "Dial"}
                self.channels[channel_id]["dialplan"] = dialplan
                self.sent_away.append(channel_id)
                await self.tell(app, "StasisEnd", channel_id)
                return 204, None
        raise AssertionError(f"nothing is known of {asked}")

    async def _tell_user_event(self, name: str, app: str, body: Any) -> tuple[int, Any]:
        """Tell an app what another has for it; one with channels is there though nobody hears."""
        if (await self.answer(Asked("GET", f"/ari/applications/{app}", {}, None)))[0] == 404:
            return 404, {"message": "Application not found"}
        userevent = body["variables"] | {"eventname": name}
        await self.tell(app, "ChannelUserevent", eventname=name, userevent=userevent)
        return 204, None

    def _is_in_hand(self, channel_id: str) -> bool:
        """Whether an app has a channel: not one that is dialled, or goes on in the dialplan."""
        known = self.channels[channel_id]
        rings = channel_id.startswith("offhook-") and known["state"] != "Up"
        return bool(known["app"]) and not rings

    async def _originate(self, asked: Asked) -> tuple[int, Any]:
        name, app = asked.query["channelId"], asked.query["app"]
        if name in self.channels:
            return 409, {"message": "Channel with given unique ID already exists"}
        self.channels[name] = {"state": "Down", "app": app}
        self.variables[name] = (asked.body or {}).get("variables", {})
        self.dialled.append(name)
        await self.tell(app, "Dial", peer=self.shown(name), dialstatus="")
        return 200, self.shown(name)

    async def _open_media(self, asked: Asked) -> tuple[int, Any]:
        name, app = asked.query["channelId"], asked.query["app"]
        if name in self.channels:
            return 409, {"message": "Channel with given unique ID already exists"}
        self.channels[name] = {"state": "Up", "app": app}
        self.variables[name] = asked.body["variables"]
        await self.tell(app, "StasisStart", name, args=[])
        return 200, self.shown(name)

    async def _move(self, channel_id: str, query: dict[str, str]) -> None:
        args = [one for one in query.get("appArgs", "").split(",") if one]
        old, new = self.channels[channel_id]["app"], query["app"]
        if new not in self.apps:
            await self.tell(old, "ApplicationMoveFailed", channel_id, args=args, destination=new)
            return
        self.channels[channel_id]["app"] = new
        await self.tell(new, "StasisStart", channel_id, args=args)
        await self.tell(old, "StasisEnd", channel_id)

    # -- sockets ---------------------------------------------------------------------------

    async def serve(self, stream: trio.SocketStream) -> None:
        """Answer requests on one connection, or tell events on it."""
        data = b""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                while True:
                    while b"\r\n\r\n" not in data:
                        more = await stream.receive_some()
                        if not more:
                            return
                        data += more
                    head, _, data = data.partition(b"\r\n\r\n")
                    first, *lines = head.decode().split("\r\n")
                    fields = dict(line.lower().split(": ", 1) for line in lines)
                    if "upgrade" in fields:
                        await self._listen(stream, head + b"\r\n\r\n" + data)
                        return
                    while len(data) < int(fields.get("content-length", "0")):
                        data += await stream.receive_some()
                    length = int(fields.get("content-length", "0"))
                    body, data = data[:length], data[length:]
                    method, target, _ = first.split(" ")
                    parts = urlsplit(target)
                    asked = Asked(
                        method,
                        parts.path,
                        dict(parse_qsl(parts.query)),
                        json.loads(body) if body else None,
                    )
                    if not await self._see_to(asked, stream):
                        return

    async def _see_to(self, asked: Asked, stream: trio.SocketStream) -> bool:
        self.asked.append(asked)
        fault = next((one for one in self.faults if self._is(one, asked)), None)
        status, answer = 200, None
        if fault is not None:
            fault.left -= 1
        if fault is None or fault.is_done:
            status, answer = await self.answer(asked)
        self.happens()
        if fault is not None:
            if fault.until is not None:
                await fault.until.wait()
            if not fault.status:
                return False
            status, answer = fault.status, {"error": "as the test has it"}
        content = b"" if answer is None else json.dumps(answer).encode()
        await stream.send_all(
            b"HTTP/1.1 %d Answer\r\nContent-Length: %d\r\n\r\n%b" % (status, len(content), content)
        )
        return True

    def _is(self, fault: Fault, asked: Asked) -> bool:
        is_like = fault.method == asked.method and asked.path.endswith(fault.ends)
        return fault.left > 0 and is_like and (not fault.query or fault.query in str(asked.query))

    async def _listen(self, stream: trio.SocketStream, data: bytes) -> None:
        protocol = ServerProtocol()
        listener = Listener(stream, protocol)
        app = ""
        try:
            while True:
                protocol.receive_data(data) if data else protocol.receive_eof()
                for event in protocol.events_received():
                    if isinstance(event, Request):
                        app = dict(parse_qsl(urlsplit(event.path).query))["app"]
                        protocol.send_response(protocol.accept(event))
                        replaced, self.apps[app] = self.apps.get(app), listener
                        if replaced is not None:
                            await replaced.send(json.dumps({"type": "ApplicationReplaced"}))
                            await replaced.aclose()
                    assert not (isinstance(event, Frame) and event.opcode is Opcode.TEXT)
                await listener.flush()
                self.happens()
                if not data:
                    return
                data = await stream.receive_some()
        finally:
            if self.apps.get(app) is listener:
                del self.apps[app]
            self.happens()


@dataclass
class Listener:
    """Who hears the events of an app."""

    stream: trio.SocketStream
    protocol: ServerProtocol
    turn: trio.Lock = field(default_factory=trio.Lock)

    async def send(self, text: str) -> None:
        """Tell one event."""
        with suppress(InvalidState):  # it has just gone
            self.protocol.send_text(text.encode())
        await self.flush()

    async def flush(self) -> None:
        """Write what is there to be written."""
        async with self.turn:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                for data in self.protocol.data_to_send():
                    if data:
                        await self.stream.send_all(data)

    async def aclose(self) -> None:
        """Cut the connection off."""
        await self.stream.aclose()


ALWAYS = math.inf


@asynccontextmanager
async def fake_ari(port: int = 0) -> AsyncGenerator[FakeAri]:
    """One on loopback for as long as the block lasts."""
    pbx = FakeAri()
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        pbx.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.start_soon(trio.serve_listeners, pbx.serve, listeners)
        yield pbx
        nursery.cancel_scope.cancel()
