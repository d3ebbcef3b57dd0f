"""The agent as the model plays it: what is said, turn by turn, faster than real time."""

from __future__ import annotations

import binascii
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Any

import trio

import codec
from server.model import AGENT_RATE_HZ, CALLER_RATE_HZ
from server.simulators.gemini.caller import CALLER_BYTES_PER_S, CallerSide
from server.simulators.gemini.connection import Connection
from server.simulators.gemini.functions import FunctionCalls
from server.simulators.gemini.schema import ServiceClosesError
from server.simulators.gemini.scripts import FunctionCall, ModelScript, ScriptedTurn
from server.simulators.gemini.setup import Family
from server.simulators.gemini.speech import AGENT_BYTES_PER_S, Speech, babble

_TOKENS_PER_S = 25  # of audio, either way


@dataclass(slots=True)
class _Reply:
    """An agent turn that is to be spoken, or is being spoken."""

    speech: Speech
    heard: str | None = None
    """What the recogniser made of the caller's turn; None in answer to text."""
    calls: tuple[FunctionCall, ...] | None = None
    """Functions called before it, one after the other; None for what the script says of all."""
    cut: trio.Event = field(default_factory=trio.Event)
    """Set when the caller speaks over it, or before it."""


class AgentSide:
    """What one session says: answers are queued, and one task speaks them.

    Args:
        connection: Where it is sent.
        caller: Whose audio is counted as tokens.
        functions: Called before an answer, if the script wants it.
        script: How the model behaves.
        lead_ins: What an answer begins with, in turn.
        new_handle: Makes up a handle to resume the session with.

    Attributes:
        turn: Agent turns begun so far, those of the session it resumes included.
        greeted: Whether the greeting has been begun.
        answered: Turns of the caller's that were heard so far.
        handles: What the session can be resumed with, newest last; none is given while it
            generates or waits for tools, but the ones before stay good.
        said_samples: All of the audio that was sent, counted.
        unsaid_samples: Audio that a turn would have had, if the connection had lasted.
    """

    CHUNK_MS = (40, 80, 120, 200, 100, 160)
    """Audio chunks come in all these sizes."""

    def __init__(
        self,
        connection: Connection,
        caller: CallerSide,
        functions: FunctionCalls,
        script: ModelScript,
        *,
        lead_ins: Sequence[Speech],
        new_handle: Callable[[], str],
    ) -> None:
        self.turn = 0
        self.greeted = False
        self.answered = 0
        self.handles: deque[str] = deque(maxlen=32)
        self.said_samples = 0
        self.unsaid_samples = 0
        self._connection = connection
        self._caller = caller
        self._functions = functions
        self._script = script
        self._family: Family = "3.8"
        self._new_handle = new_handle
        self._said_bytes = 0  # in the turn under way
        self._replies: deque[_Reply] = deque()
        self._reply: _Reply | None = None
        self._asked = trio.Event()
        self._chunk_ms = cycle(self.CHUNK_MS)
        self._lead_ins = cycle(lead_ins)

    def set_up(self, family: Family, script: ModelScript) -> None:
        """Speak as a model of this family does, and as the script wants it."""
        self._family = family
        self._script = script

    def resume(self, other: AgentSide) -> None:
        """Go on with the turns of the session that this one resumes."""
        self.turn = other.turn
        self.greeted = other.greeted
        self.answered = other.answered

    def say(self, speech: Speech) -> None:
        """Say this in the next turn."""
        self._ask(_Reply(speech))

    def greet(self, recorded: Speech) -> None:
        """Say in the next turn what the script wants said first."""
        greeting = self._script.greeting
        self._ask(_Reply(babble(greeting, recorded) if greeting else recorded))

    def answer_keys(self, otherwise: Speech) -> None:
        """Say in the next turn what the script wants said to keys that were pressed."""
        self._ask(self._next_scripted() or _Reply(otherwise))

    def _next_scripted(self) -> _Reply | None:
        self.answered += 1
        if self.answered > len(self._script.turns):
            return None
        turn: ScriptedTurn = self._script.turns[self.answered - 1]
        speech = babble(turn.says, next(self._lead_ins))
        return _Reply(speech, turn.hears or None, turn.calls)

    def say_back(self, turn: bytes) -> None:
        """Say in the next turn what the caller has said in theirs.

        Args:
            turn: Its pcm, at 16 kHz.
        """
        seconds = len(turn) / CALLER_BYTES_PER_S
        heard = f"({seconds:.1f} seconds of speech)"
        if (scripted := self._next_scripted()) is not None:
            self._ask(replace(scripted, heard=scripted.heard or heard))
            return
        lead_in: Speech = next(self._lead_ins)
        pause = bytes(2 * (AGENT_RATE_HZ // 5))
        # The caller's 16 kHz samples played at 24 kHz: half as high again, and no computing.
        speech = Speech(
            f"{lead_in.text} ({seconds:.1f} seconds of your voice)", lead_in.pcm + pause + turn
        )
        self._ask(_Reply(speech, heard))

    def _ask(self, reply: _Reply) -> None:
        self._replies.append(reply)
        self._asked.set()

    def cut(self) -> None:
        """Take back what is being said and what was going to be."""
        for reply in self._replies:
            reply.cut.set()
        if self._reply is not None:
            self._reply.cut.set()
            self._functions.stop_waiting()

    # One task. Its sleeps are cut short by an interruption and its sends never are, for half a
    # message would ruin the connection.

    async def speak(self) -> None:
        """Speak the answers, one turn after the other, until cancelled.

        Raises:
            ServiceClosesError: The script wants the connection to end in the middle of a turn.
        """
        while True:
            while not self._replies:
                self._asked = trio.Event()
                await self._asked.wait()
            reply = self._replies.popleft()
            if reply.cut.is_set():
                continue  # taken back before it was begun: nobody ever knew of it
            self._reply = reply
            self.turn += 1
            if self.turn in self._script.silent_turns:
                self._connection.note("stays silent")
            elif await self._take_turn(reply):
                await self._complete("completes")
            else:
                self._connection.note("is interrupted")
                if self.turn % 2:
                    await self._send_content(interrupted=True)
                    await self._complete("completes")
                else:
                    await self._complete("completes", interrupted=True)
            self._reply = None

    async def _take_turn(self, reply: _Reply) -> bool:
        """Do all of one turn up to its turnComplete; False as soon as it is interrupted."""
        script = self._script
        if await self._cut_by(reply, trio.current_time() + script.reply_delay_s):
            return False
        await self._connection.send(
            {"sessionResumptionUpdate": {"newHandle": "", "resumable": False}}
        )
        if reply.heard is not None:
            await self._send_content(inputTranscription={"text": reply.heard, "finished": True})
        functions = self._functions_before(reply)
        if functions and script.before_functions:
            speech = babble(script.before_functions, next(self._lead_ins))
            await self._say_aside(speech)
            if await self._cut_by(reply, trio.current_time() + speech.seconds / script.speed):
                return False
        for together in functions:
            if not await self._call_functions(together, reply):
                return False
        thinks = reply.heard is not None and self.turn in script.thinking_turns
        if thinks and not await self._think(reply):
            return False
        if self.turn in script.empty_turns:
            self._connection.note("says nothing")
            return True
        return await self._utter(reply)

    def _functions_before(self, reply: _Reply) -> list[list[FunctionCall]]:
        """The functions to be called before an answer, those together that come in one message."""
        if reply.calls is not None:
            return [[call] for call in reply.calls]
        due = [] if reply.heard is None else self._functions.due(self._script, self.turn)
        return [due] if due else []

    async def _utter(self, reply: _Reply) -> bool:
        """Send the words and the audio of one turn; False as soon as it is interrupted."""
        script = self._script
        self.greeted = True
        self._connection.note(f"says {reply.speech.text}")
        # The transcript leads: half of it before any audio, the rest with the first chunk.
        words = reply.speech.text.split()
        await self._send_content(outputTranscription={"text": " ".join(words[: len(words) // 2])})
        bundled: dict[str, Any] = {}
        if self.turn not in script.early_turns:  # they know no more of their sentence
            rest = " ".join(words[len(words) // 2 :])
            bundled["outputTranscription"] = {"text": f" {rest}"}
        started_at = trio.current_time()
        pcm = reply.speech.pcm
        sent_bytes, before_bytes = 0, self._said_bytes
        self.unsaid_samples = len(pcm) // 2
        while sent_bytes < len(pcm):
            size = next(self._chunk_ms) * AGENT_BYTES_PER_S // 1000
            chunk = pcm[sent_bytes : sent_bytes + size]
            if self.turn in script.quiet_turns:
                chunk = b"\x01\x00" * (len(chunk) // 2)
            sent_bytes += len(chunk)
            self._said_bytes = before_bytes + sent_bytes
            if sent_bytes == len(pcm) and self.turn % 2 == 0:
                bundled["generationComplete"] = True
            await self._send_content(modelTurn={"parts": self._audio_parts(chunk)}, **bundled)
            bundled.clear()
            self.said_samples += len(chunk) // 2
            self.unsaid_samples -= len(chunk) // 2
            sent_s = sent_bytes / AGENT_BYTES_PER_S
            drop = script.drop
            if drop is not None and self.turn == drop.turn and sent_s >= drop.after_s:
                raise ServiceClosesError(drop.code, drop.reason)
            if self.turn in script.stalled_turns and sent_bytes >= len(pcm) // 2:
                self._connection.note("stalls in the middle")
                await reply.cut.wait()
                return False
            if self.turn in script.early_turns and sent_bytes >= len(pcm) // 2:
                self._connection.note("stops in the middle")
                return True
            if await self._cut_by(reply, started_at + sent_s / script.speed):
                self.unsaid_samples = 0  # nobody wants to hear it
                return False
        await self._connection.send({})  # such frames occur
        if self.turn % 2:
            await self._send_content(generationComplete=True)
        self._connection.note("generated")
        # The service takes it that audio is played as it comes, and lets the turn last as long.
        return not await self._cut_by(reply, started_at + reply.speech.seconds)

    def _audio_parts(self, chunk: bytes) -> list[dict[str, Any]]:
        """Put a chunk into one part, a long one into two: the newer models send several."""
        script = self._script
        half = len(chunk) // 4 * 2 if len(chunk) > AGENT_BYTES_PER_S // 6 else len(chunk)
        parts = [part for part in (chunk[:half], chunk[half:]) if part]
        if script.audio_rate_hz != AGENT_RATE_HZ:
            parts = [
                codec.Resampler(AGENT_RATE_HZ, script.audio_rate_hz).resample(part)
                for part in parts
            ]
        return [
            {
                "inlineData": {
                    "mimeType": script.audio_label,
                    "data": binascii.b2a_base64(part, newline=False).decode("ascii"),
                }
            }
            for part in parts
        ]

    async def _think(self, reply: _Reply) -> bool:
        """Say that an answer is on its way, and be silent; False as soon as it is interrupted."""
        aside: Speech = next(self._lead_ins)
        self._connection.note("thinks")
        await self._say_aside(aside, generationComplete=True)
        if await self._cut_by(reply, trio.current_time() + aside.seconds):
            return False
        await self._complete("thinks on", status="IN_PROGRESS")
        self.turn += 1
        if self._script.forgets:
            await reply.cut.wait()
        return not await self._cut_by(reply, trio.current_time() + self._script.thinking_s)

    async def _say_aside(self, speech: Speech, **bundled: bool) -> None:
        """Send something, all at once, that is no answer."""
        await self._send_content(
            modelTurn={"parts": self._audio_parts(speech.pcm)},
            outputTranscription={"text": speech.text},
            **bundled,
        )
        self._said_bytes = len(speech.pcm)

    async def _call_functions(self, functions: Sequence[FunctionCall], reply: _Reply) -> bool:
        """Call functions and wait for all the answers; False as soon as it is interrupted."""
        calls = self._functions.call(functions)
        self._connection.note(f"calls {len(calls)} functions")
        await self._connection.send({"toolCall": {"functionCalls": calls}})
        if self._script.cancel_tool_calls:
            await self._take_back([str(call["id"]) for call in calls[1::2]])
        if self._family.startswith("3.8"):
            # These end the turn when they call; the answer is the next turn.
            await self._complete("calls")
            self.turn += 1
        await self._functions.wait_answered()
        if reply.cut.is_set():
            await self._take_back(sorted(self._functions.awaited))
            return False
        return not await self._cut_by(reply, trio.current_time() + self._script.result_delay_s)

    async def _take_back(self, ids: list[str]) -> None:
        if ids:
            self._functions.take_back(ids)
            await self._connection.send({"toolCallCancellation": {"ids": ids}})

    async def _complete(self, what: str, status: str = "IDLE", **bundled: bool) -> None:
        """End the turn: turnComplete with the tokens used, then a handle if no tool is open."""
        said = _TOKENS_PER_S * self._said_bytes // AGENT_BYTES_PER_S
        heard = _TOKENS_PER_S * self._caller.heard_samples // CALLER_RATE_HZ
        usage = {
            "promptTokenCount": heard,
            "responseTokenCount": said,
            "totalTokenCount": heard + said,
            "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": heard}],
            "responseTokensDetails": [{"modality": "AUDIO", "tokenCount": said}],
        }
        self._said_bytes = 0
        self._connection.note(what)
        content: dict[str, Any] = {"turnComplete": True} | bundled
        message: dict[str, Any] = {"serverContent": content, "usageMetadata": usage}
        if self._family == "3.8-thinking" or self._script.thinking_turns:
            # Google's documents have it in the one place and in the other.
            (content if self.turn % 2 else message)["interactionStatus"] = status
        await self._connection.send(message)
        if not self._functions.awaited:
            handle = self._new_handle()
            self.handles.append(handle)
            await self._connection.send(
                {"sessionResumptionUpdate": {"newHandle": handle, "resumable": True}}
            )

    async def _send_content(self, **fields: Any) -> None:
        await self._connection.send({"serverContent": fields})

    async def _cut_by(self, reply: _Reply, deadline: float) -> bool:
        """Sleep until the deadline, or until the reply is cut; say which."""
        with trio.move_on_at(deadline):
            await reply.cut.wait()
        return reply.cut.is_set()
