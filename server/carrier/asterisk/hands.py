"""What carries the steps of calls out: each is one request to Asterisk, or a few."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog
import trio
from msgspec import Struct

from server.carrier.asterisk.ari import AppState, Ari
from server.carrier.asterisk.events import Channel
from server.carrier.asterisk.exchange import (
    ASKS_THERE,
    BRIDGE_PREFIX,
    IS_THERE,
    MEDIA_PREFIX,
    PLAYBACK_PREFIX,
    STASIS,
    bridge_of,
    call_of,
)
from server.carrier.asterisk.messages import CALL_VARIABLE, TICKET_VARIABLE
from server.carrier.asterisk.steps import (
    Answer,
    Continue,
    Drop,
    HangUp,
    Heard,
    Join,
    Limit,
    Move,
    OpenStream,
    Play,
    SayThere,
    Step,
    Unfollow,
)
from server.errors import CallNotInProgress, CarrierError

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

JOIN_TIMEOUT_S = 25.0
"""From the start of a stream until it is in a bridge with the caller: some ten milliseconds, and
where a machine is held up as long as the two requests may take, and the event before them.
"""
CLEAN_UP_S = 5.0
"""For what has to be taken away though nobody waits for it any more."""
LIMIT_VARIABLE = "TIMEOUT(absolute)"
"""Asterisk's function that ends a channel after so many seconds."""
APP_VARIABLE = "OFFHOOK_APP"
"""Of a channel outside: the app that it is given to when it is answered, or comes back."""
LAST_WORDS_S = 60.0
"""Asterisk itself ends a call so long after its apology has begun, should nobody here do it."""
FETCH_AGAIN_S, FETCH_LATER_S, FETCHES = 0.25, 2.0, 40
"""How often a call is asked for that is about to come to another app, how often from then on, and
how many times before that: the dialplan may do something else first."""
ANSWER_S = 1.0
"""For so long a process may take to say, by way of Asterisk, that it hears its app."""
OWN_ANSWER_S = 10.0
"""For so long we may take to hear what we tell ourselves by way of Asterisk."""


class _Bridge(Struct):
    id: str
    name: str = ""
    channels: list[str] = []


@dataclass(slots=True)
class _Joining:
    """What becomes of a stream that its caller is to hear."""

    over: trio.Event = field(default_factory=trio.Event)
    is_done: bool = False


class _Variable(Struct):
    value: str


class Hands:
    """Asks Asterisk to do things with channels and bridges.

    Args:
        ari: Asterisk's REST interface.
        app: Our own app.
        apps: How the apps of all processes begin, before ``-`` and the process's name.
        client: The connection of ``websocket_client.conf`` that leads here.
        law: ``ulaw`` or ``alaw``.
        apology: The recording that is played where a call has failed, as ARI names it.
        process: This process's name, which media streams show as ``process``; empty if it is alone.
        longest_s: When Asterisk itself ends a call that comes in, or was another process's.
    """

    def __init__(
        self,
        ari: Ari,
        *,
        app: str,
        apps: str,
        client: str,
        law: str,
        apology: str,
        process: str,
        longest_s: float,
    ) -> None:
        self._ari = ari
        self._app = app
        self._apps = apps
        self._client = client
        self._law = law
        self._apology = apology
        self._process = process
        self._longest_s = longest_s
        self._joins: dict[str, _Joining] = {}
        self._asking: set[tuple[str, trio.Event]] = set()

    async def do(self, step: Step) -> bool:
        """Carry out one step, which must be neither a report nor a question.

        Returns:
            False if there was nothing to do it to.

        Raises:
            CallNotInProgress: The call is over.
            CarrierError: Refused or not reached.
        """
        match step:
            case Answer(call_sid):
                with in_progress():
                    await self._ari.post("channels", call_sid, "answer")
            case OpenStream(call_sid, media_id, ticket):
                await self._open_stream(call_sid, media_id, ticket)
            case Join(call_sid, media_id):
                await self._join(call_sid, media_id)
            case Limit(call_sid):
                await self.limit(call_sid, self._longest_s)
            case Play(call_sid):
                # Its end may be told to nobody: then whoever hears it is not kept for long.
                await self.limit(call_sid, LAST_WORDS_S)
                with in_progress():
                    await self._ari.post(
                        *("channels", call_sid, "play"),
                        media=self._apology,
                        playbackId=f"{PLAYBACK_PREFIX}{call_sid}",
                    )
            case Move(call_sid, process, arguments):
                with in_progress():
                    await self._ari.post(
                        *("channels", call_sid, "move"),
                        app=f"{self._apps}-{process}",
                        appArgs=",".join(arguments),
                    )
            case Continue(call_sid):
                with in_progress():
                    await self._ari.post("channels", call_sid, "continue")
            case Drop(media_id):
                return await self._drop(media_id)
            case Unfollow(channel_id):
                return await self._unfollow(channel_id)
            case HangUp(channel_id):
                return await self.hang_up(channel_id)
            case SayThere(app):
                if app.startswith(f"{self._apps}-"):
                    await self._tell_app(app, IS_THERE)
            case Heard(app):
                for asked in [event for one, event in self._asking if one == app]:
                    asked.set()
            case _:
                raise TypeError(f"{type(step).__name__} is nothing that is done at Asterisk")
        return True

    async def hang_up(self, channel_id: str) -> bool:
        """End a channel, though whoever asks goes away; False if there was none.

        Raises:
            CarrierError: Refused or not reached.
        """
        with trio.CancelScope(shield=True):  # the request has a deadline of its own
            was_there = await self._ari.delete("channels", channel_id)
        return was_there

    async def look(self, channel_id: str) -> Channel | None:
        """How a channel stands; None where it is gone.

        Raises:
            CarrierError: Refused or not reached.
        """
        try:
            return await self._ari.get(Channel, "channels", channel_id)
        except CarrierError as error:
            if error.status != 404:
                raise
            return None

    async def app(self, name: str) -> AppState:
        """What an app has in its hands, or hears of; nothing of one that is not there.

        Raises:
            CarrierError: Refused or not reached.
        """
        try:
            return await self._ari.get(AppState, "applications", name)
        except CarrierError as error:
            if error.status != 404:
                raise
            return AppState([], [])

    async def is_heard(self, app: str) -> bool:
        """Whether a process hears an app, as it says itself when it is asked by way of Asterisk: it
        may be cut off from everything else.

        Raises:
            CarrierError: Refused or not reached; or we would not hear an answer at this moment.
        """
        try:
            if await self._answers(app, ANSWER_S):
                return True
        except CarrierError as error:
            if error.status != 404:
                raise
            return False
        if not await self._answers(self._app, OWN_ANSWER_S):
            raise CarrierError("our own events of Asterisk are not heard")
        return False

    async def _answers(self, app: str, timeout_s: float) -> bool:
        answered = trio.Event()
        self._asking.add((app, answered))
        try:
            await self._tell_app(app, ASKS_THERE)
            with trio.move_on_after(timeout_s):
                await answered.wait()
        finally:
            self._asking.discard((app, answered))
        return answered.is_set()

    async def _tell_app(self, app: str, name: str) -> None:
        await self._ari.post(
            *("events", "user", name), variables={"app": self._app}, application=app
        )

    async def has(self, channel_id: str) -> bool:
        """Whether our app has a channel in its hands: one that had our name may have left it.

        Raises:
            CarrierError: Refused or not reached.
        """
        return channel_id in (await self.app(self._app)).channel_ids

    async def send_away(
        self, channel_id: str, context: str, extension: str, was_told: Callable[[], bool]
    ) -> None:
        """Have a channel go on at a line of the dialplan.

        Args:
            channel_id: The channel.
            context: Where the line is.
            extension: Which it is.
            was_told: Whether our app was told since that the channel has left.

        Raises:
            CarrierError: Refused or not reached; it is still here, or that is not known.
        """
        try:
            await self._ari.post(
                *("channels", channel_id, "continue"),
                context=context,
                extension=extension,
                priority=1,
            )
        except CarrierError as error:
            if not (error.outcome_unknown and await self._has_left(channel_id, was_told)):
                raise

    async def _has_left(self, channel_id: str, was_told: Callable[[], bool]) -> bool:
        """Whether a channel is known to go on in the dialplan."""
        try:
            channel = await self.look(channel_id)
        except CarrierError:
            return was_told()
        return channel is not None and channel.dialplan.app_name != STASIS

    async def app_of(self, channel_id: str) -> str:
        """The app that a channel outside comes to next; empty where that is not known.

        Raises:
            CarrierError: Refused or not reached.
        """
        try:
            path = "channels", channel_id, "variable"
            return (await self._ari.get(_Variable, *path, variable=APP_VARIABLE)).value
        except CarrierError as error:
            if error.status != 404:
                raise
            return ""

    async def move_here(self, call_sid: str, arguments: tuple[str, ...] = ()) -> None:
        """Take a call over that another process's app has in its hands.

        Args:
            call_sid: The call.
            arguments: What our app is told with it.

        Raises:
            CallNotInProgress: The call is over.
            CarrierError: Refused or not reached.
        """
        told = ",".join(arguments)
        with in_progress():
            await self._ari.post("channels", call_sid, "move", app=self._app, appArgs=told)

    async def fetch(
        self, call_sid: str, arguments: tuple[str, ...], is_wanted: Callable[[], bool]
    ) -> None:
        """Take a call over as soon as another process's app has it in its hands, which may be soon;
        until then, or until it is over, or is not to come any more.

        Args:
            call_sid: The call.
            arguments: What our app is told with it.
            is_wanted: Whether it is still to come.

        Raises:
            CallNotInProgress: The call is over.
        """
        tries = 0
        while is_wanted():
            try:
                await self.move_here(call_sid, arguments)
            except CarrierError as error:
                if error.status == 404:
                    raise
            else:
                return
            tries += 1
            await trio.sleep(FETCH_AGAIN_S if tries < FETCHES else FETCH_LATER_S)

    async def empty_bridges(self, app: str) -> list[str]:
        """The media channels of an app of which nothing is left but a bridge.

        Raises:
            CarrierError: Refused or not reached.
        """
        return [
            f"{MEDIA_PREFIX}{bridge.id.removeprefix(BRIDGE_PREFIX)}"
            for bridge in await self._ari.get(list[_Bridge], "bridges")
            if bridge.id.startswith(BRIDGE_PREFIX) and bridge.name == app and not bridge.channels
        ]

    async def joined(self) -> set[str]:
        """The calls and media channels that hear each other, of all processes.

        Raises:
            CarrierError: Refused or not reached.
        """
        joined: set[str] = set()
        for bridge in await self._ari.get(list[_Bridge], "bridges"):
            are_media = {name.startswith(MEDIA_PREFIX) for name in bridge.channels}
            if bridge.id.startswith(BRIDGE_PREFIX) and len(are_media) == 2:
                joined.update(bridge.channels)
        return joined

    async def talks(self, channel_id: str) -> bool:
        """Whether a channel outside talks with another: they are in a bridge.

        Raises:
            CarrierError: Refused or not reached.
        """
        return any(
            channel_id in bridge.channels and not bridge.id.startswith(BRIDGE_PREFIX)
            for bridge in await self._ari.get(list[_Bridge], "bridges")
        )

    async def clear_away(self, call_sid: str, *, but: str) -> None:
        """Take away what another process had of a call; never raises what Asterisk answers.

        Args:
            call_sid: The call.
            but: The media channel that it has now.
        """
        try:
            for bridge in await self._ari.get(list[_Bridge], "bridges"):
                media_id = f"{MEDIA_PREFIX}{bridge.id.removeprefix(BRIDGE_PREFIX)}"
                is_of_call = bridge.id.startswith(BRIDGE_PREFIX) and call_of(bridge.id) == call_sid
                if is_of_call and media_id != but:
                    await self._drop(media_id)
        except CarrierError as error:  # then it is there until Asterisk is restarted
            logger.warning("a bridge was not cleared away", error=error.message)

    async def follow(self, channel_id: str) -> None:
        """Have our app told of a channel, though it leaves it.

        Raises:
            CarrierError: Refused or not reached.
        """
        await self._ari.post(
            "applications", self._app, "subscription", eventSource=f"channel:{channel_id}"
        )

    async def _unfollow(self, channel_id: str) -> bool:
        try:
            return await self._ari.delete(
                "applications", self._app, "subscription", eventSource=f"channel:{channel_id}"
            )
        except CarrierError as error:
            is_none = error.status in (409, 422)  # it is not followed, or not there any more
            # Asterisk counts: asked twice, it would tell our app nothing of a call in its hands.
            if not is_none and not error.outcome_unknown:
                raise
            return False

    async def set(self, channel_id: str, variables: Mapping[str, str]) -> None:
        """Set variables of a channel.

        Raises:
            CallNotInProgress: The call is over.
            CarrierError: Refused or not reached.
        """
        with in_progress():
            for name, value in variables.items():
                await self._ari.post(
                    *("channels", channel_id, "variable"), variable=name, value=value
                )

    async def limit(self, channel_id: str, longest_s: float) -> None:
        """Have Asterisk itself end a channel, or not with 0; where it cannot, all else still does.

        Args:
            channel_id: The channel.
            longest_s: When, from now on.
        """
        try:
            await self.set(channel_id, {LIMIT_VARIABLE: str(math.ceil(longest_s))})
        except CarrierError as error:
            logger.warning("Asterisk sets no end to a call: func_timeout?", error=error.message)

    async def doubt(self) -> str:
        """What may be a mistake, in words; empty if nothing is.

        Raises:
            CarrierError: Refused or not reached.
        """
        try:
            await self._ari.get(dict, "sounds", self._apology.removeprefix("sound:"))
        except CarrierError as error:
            if error.status != 404:
                raise
            return (
                "ASTERISK_APOLOGY is no recording that Asterisk has: where a call fails, its "
                "caller hears nothing"
            )
        return ""

    async def wait_joined(self, media_id: str) -> bool:
        """Wait until a media channel and its call hear each other; False if they never will."""
        joining = self._joins.get(media_id)
        if joining is None:  # it was opened by another process, which has joined them since
            return True
        with trio.move_on_after(JOIN_TIMEOUT_S):
            await joining.over.wait()
        return joining.is_done

    async def _open_stream(self, call_sid: str, media_id: str, ticket: str) -> None:
        self._joins[media_id] = _Joining()
        arguments = f"v(process={self._process})" if self._process else ""
        try:
            await self._ari.post(
                *("channels", "externalMedia"),
                app=self._app,
                channelId=media_id,
                external_host=self._client,
                transport="websocket",
                encapsulation="none",
                format=self._law,
                transport_data=f"f(json){arguments}",
                variables={CALL_VARIABLE: call_sid, TICKET_VARIABLE: ticket},
            )
        except BaseException:
            self._end_join(media_id)
            raise

    async def _join(self, call_sid: str, media_id: str) -> None:
        bridge_id = bridge_of(media_id)
        joining = self._joins.get(media_id, _Joining())
        try:
            with in_progress():
                await self._ari.post("bridges", type="mixing", bridgeId=bridge_id, name=self._app)
                both = f"{call_sid},{media_id}"
                await self._ari.post("bridges", bridge_id, "addChannel", channel=both)
            joining.is_done = True
        finally:
            joining.over.set()

    def _end_join(self, media_id: str) -> None:
        if (joining := self._joins.pop(media_id, None)) is not None:
            joining.over.set()

    async def _drop(self, media_id: str) -> bool:
        self._end_join(media_id)
        with trio.CancelScope(shield=True):
            was_there = await self._ari.delete("channels", media_id)
            await self._ari.delete("bridges", bridge_of(media_id))
        return was_there


@contextmanager
def in_progress() -> Generator[None]:
    """Give a request about a call that is over an error of its own."""
    try:
        yield
    except CarrierError as error:
        if error.status in (404, 409, 412, 422):  # not there, or in nobody's hands any more
            raise CallNotInProgress(error.message, status=error.status) from error
        raise
