"""One session: the set-up, what the client sends, and the end of the connection."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import trio
from websockets.exceptions import ConnectionClosed
from websockets.frames import Close

from server.simulators.gemini.agent import AgentSide
from server.simulators.gemini.caller import CALLER_BYTES_PER_S, CallerSide
from server.simulators.gemini.connection import Connection, Moment
from server.simulators.gemini.functions import FunctionCalls
from server.simulators.gemini.schema import ServiceClosesError, read_client_message
from server.simulators.gemini.scripts import ModelScript
from server.simulators.gemini.setup import Family
from server.simulators.gemini.sockets import ServerSocket
from server.simulators.gemini.speech import Speech


class Service(Protocol):
    """What a session needs of the simulator it is of."""

    script: ModelScript
    script_after_resume: ModelScript
    greeting: Speech
    still_here: Speech
    voicemail: Speech
    lead_ins: tuple[Speech, ...]

    def new_caller(self) -> CallerSide:
        """What a session's caller is heard by."""
        ...

    def new_handle(self) -> str:
        """Make up a resumption handle."""
        ...

    def new_call_id(self) -> str:
        """Make up an id for a function call."""
        ...

    def check_setup(self, setup: Mapping[str, Any]) -> Family:
        """The family of a set-up's model; raises ServiceClosesError for a wrong one."""
        ...

    def find_resumable(self, handle: str) -> SimulatedSession:
        """Find the session a handle stands for; raises ServiceClosesError if there is none."""
        ...


class SimulatedSession:
    """One connection as the service sees it.

    Attributes:
        setup: The set-up that was accepted, in camelCase; empty before.
        caller: What was heard of the caller.
        functions: The functions that were called.
        agent: What was said.
        texts: What was said to the model in text, oldest first.
        mistakes: What the client did that the API does not allow but the service tolerates.
        resumed_from: The session this one goes on with.
        ended: Set when all is over.
        closed_by_client: The client's close code, None while it is open or if we closed.
    """

    def __init__(self, service: Service, socket: ServerSocket) -> None:
        self.setup: Mapping[str, Any] = {}
        self.caller = service.new_caller()
        self.functions = FunctionCalls(service.new_call_id)
        self.texts: list[str] = []
        self.mistakes: list[str] = []
        self.closed_by_client: int | None = None
        self.resumed_from: SimulatedSession | None = None
        self.ended = trio.Event()
        self._service = service
        self._script = service.script
        self._connection = Connection(socket)
        self._family: Family = "3.8"
        self._interruptible = True
        self._awaits_history = False
        self.agent = AgentSide(
            self._connection,
            self.caller,
            self.functions,
            self._script,
            lead_ins=service.lead_ins,
            new_handle=service.new_handle,
        )

    def __repr__(self) -> str:
        return f"<SimulatedSession turn={self.turn} {'open' if self.is_open else 'closed'}>"

    @property
    def timeline(self) -> deque[Moment]:
        """What happened, oldest first; per turn, never per chunk."""
        return self._connection.timeline

    @property
    def opened_at(self) -> float:
        """``trio.current_time()`` when the connection was opened."""
        return self._connection.opened_at

    @property
    def is_open(self) -> bool:
        """False as soon as either side has closed."""
        return self._connection.is_open

    @property
    def heard(self) -> bytearray:
        """The caller audio, pcm at 16 kHz, as far as the simulator keeps it."""
        return self.caller.heard

    @property
    def heard_samples(self) -> int:
        """All of the caller audio, counted."""
        return self.caller.heard_samples

    @property
    def turn(self) -> int:
        """Agent turns begun so far, those of the session it resumes included."""
        return self.agent.turn

    @property
    def tool_results(self) -> Mapping[str, Mapping[str, Any]]:
        """Answers to tool calls by id."""
        return self.functions.results

    async def run(self, refusal: Close | None = None) -> None:
        """Serve the connection until either side closes it.

        Args:
            refusal: Close with this as soon as the client has spoken (a wrong key).
        """
        connection = self._connection
        try:
            setup = await connection.receive()
            if refusal is not None:
                await connection.close(refusal)
                return
            self._accept(read_client_message(setup))
            await trio.sleep(self._script.setup_delay_s)
            if self._script.refuse_setup is not None:
                await connection.close(self._script.refuse_setup)
                return
            if self._script.tells_error is not None:
                await connection.send({"error": self._script.tells_error})
                while True:
                    await connection.receive()
            await connection.send({"setupComplete": {"sessionId": f"session-{id(self):x}"}})
            connection.note("set up")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.agent.speak)
                if self._script.go_away_at_s is not None:
                    nursery.start_soon(self._go_away, self._script.go_away_at_s)
                try:
                    while True:
                        self._receive(await connection.receive())
                finally:
                    nursery.cancel_scope.cancel()
        except* ServiceClosesError as refused:
            await connection.close(_first(refused).close)
        except* ConnectionClosed as closed:
            frame = _first(closed).rcvd
            self.closed_by_client = frame.code if frame is not None else 1006
            connection.note(f"closed by the client with {self.closed_by_client}")
        finally:
            connection.is_open = False

    async def cut(self) -> None:
        """Cut the connection, without a word."""
        await self._connection.close(Close(1006, ""))

    async def _go_away(self, at_s: float) -> None:
        await trio.sleep(at_s)
        self._connection.note("announces that it goes away")
        await self._connection.send({"goAway": {"timeLeft": f"{self._script.go_away_left_s:g}s"}})
        await trio.sleep(self._script.go_away_left_s)
        raise ServiceClosesError(1008, "The operation was aborted.")

    # Hearing: one task, and nothing in it waits but for the next message.

    def _accept(self, message: Mapping[str, Any]) -> None:
        if "setup" not in message:
            raise ServiceClosesError(1007, "setup must be the first message and only the first")
        setup = message["setup"]
        self._family = self._service.check_setup(setup)
        if self._script.only_model not in setup["model"]:
            self._script = self._service.script_after_resume
        handle = setup.get("sessionResumption", {}).get("handle")
        if handle:
            self._resume(handle)
        realtime = setup.get("realtimeInputConfig", {})
        detection = realtime.get("automaticActivityDetection", {})
        self.caller.set_up(detection, self._script.start_speech_s)
        self._interruptible = realtime.get("activityHandling", "").upper() != "NO_INTERRUPTION"
        history = setup.get("historyConfig", {})
        self._awaits_history = history.get("initialHistoryInClientContent", False)
        if self._awaits_history:
            # It takes the place of a session that has failed, as one that resumes it does.
            self.agent.greeted = True
            self._heal()
        self.functions.declare(setup.get("tools", ()))
        self.agent.set_up(self._family, self._script)
        self.setup = setup

    def _resume(self, handle: str) -> None:
        if self._script.refuse_handles is not None:
            refusal = self._script.refuse_handles
            raise ServiceClosesError(refusal.code, refusal.reason)
        self.resumed_from = self._service.find_resumable(handle)
        self.agent.resume(self.resumed_from.agent)
        self._heal()
        self._connection.note("resumed")

    def _heal(self) -> None:
        """Behave well from now on, if the script is of a fault that a new connection mends."""
        if self._script.heals:
            self._script = self._service.script_after_resume

    def _receive(self, data: bytes) -> None:
        message = read_client_message(data)
        if "setup" in message:
            raise ServiceClosesError(1007, "setup must be the first message and only the first")
        if (content := message.get("clientContent")) is not None:
            self._receive_content(content)
        elif (realtime := message.get("realtimeInput")) is not None:
            if self._awaits_history:
                self._note_mistake("realtimeInput before the initial history was complete")
            else:
                self._receive_realtime(realtime)
        elif (response := message.get("toolResponse")) is not None:
            for result in response.get("functionResponses", ()):
                if (mistake := self.functions.receive_result(result)) is not None:
                    self._note_mistake(mistake)
        elif "contextUpdate" in message:
            self._connection.note("context updated")

    def _receive_content(self, content: Mapping[str, Any]) -> None:
        texts = [
            part["text"]
            for turn in content.get("turns", ())
            for part in turn.get("parts", ())
            if "text" in part
        ]
        self.texts += texts
        complete = content.get("turnComplete", False)
        if self._awaits_history:
            self._awaits_history = not complete
            return
        self.agent.cut()
        # On 3.1 it seeds the history and starts nothing, which has muted many a greeting.
        if complete and self._family != "3.1":
            self._answer_text(" ".join(texts))

    def _receive_realtime(self, realtime: Mapping[str, Any]) -> None:
        chunks = realtime.get("mediaChunks", ())
        if chunks and self._family == "3.1":
            raise ServiceClosesError(1007, "realtime_input.media_chunks is deprecated. Use audio.")
        if chunks and self._family == "2.5":
            self._receive_audio(chunks[0])  # only the first counts; 3.8 ignores them all
        if (audio := realtime.get("audio")) is not None:
            self._receive_audio(audio)
        if (text := realtime.get("text")) is not None:
            self.texts.append(text)
            self.agent.cut()
            self._answer_text(text)
        if "activityStart" in realtime or "activityEnd" in realtime:
            if not self.caller.is_manual:
                raise ServiceClosesError(
                    1007, "Explicit activity control is not supported with automatic detection."
                )
            if "activityStart" in realtime:
                self.caller.begin_manual_turn()
                self._caller_starts()
            else:
                self._caller_ends(self.caller.end_manual_turn())
        # 3.8 does not take it for the end of a turn.
        ends = realtime.get("audioStreamEnd") and self._family in ("3.1", "2.5")
        if ends and self.caller.hearing.speaking:
            self._caller_ends(self.caller.hearing.end())

    def _receive_audio(self, blob: Mapping[str, str]) -> None:
        for news in self.caller.hear(blob):
            if isinstance(news, bytes):
                self._caller_ends(news)
            else:
                self._caller_starts()

    def _caller_starts(self) -> None:
        self._connection.note("caller starts")
        if self._interruptible:
            self.agent.cut()

    def _caller_ends(self, turn: bytes) -> None:
        self._connection.note(f"caller ends after {len(turn) / CALLER_BYTES_PER_S:.1f} s")
        self.agent.say_back(turn)

    def _answer_text(self, text: str) -> None:
        """Say one of the few things it can say: whoever mentions voicemail wants a message left."""
        service = self._service
        if "voicemail" in text.lower():
            self.agent.say(service.voicemail)
        elif self.agent.greeted and "pressed" in text:
            self.agent.answer_keys(service.still_here)
        elif self.agent.greeted:
            self.agent.say(service.still_here)
        else:
            self.agent.greet(service.greeting)

    def _note_mistake(self, mistake: str) -> None:
        if mistake not in self.mistakes:
            self.mistakes.append(mistake)


_Leaf = TypeVar("_Leaf", bound=Exception)


def _first(group: ExceptionGroup[_Leaf]) -> _Leaf:
    one = group.exceptions[0]
    return _first(one) if isinstance(one, ExceptionGroup) else one
