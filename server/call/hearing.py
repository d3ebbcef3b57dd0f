"""Caller to model: what the media stream brings, judged and passed on.

On the media plane nearly all audio goes by the compiled path, which says when something was found
in it, or is to be looked at. Everything else comes as events, one way for every stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from math import inf

import trio

from codec.ear import SpeechEnded, SpeechStarted, Stop
from codec.line import BYTES_PER_S, SILENCE
from server.agent import phrases
from server.call.conversation import Conversation, Line, Stage
from server.call.handover import Handover
from server.call.machine import Machine
from server.call.playing import Playing
from server.carrier import (
    CallerAudio,
    CarrierEvent,
    DigitPressed,
    MarkReached,
    StreamStopped,
)
from server.carrier.keypad import PressedKeys
from server.dialogue.ear import BargeInMode, Found
from server.dialogue.endings import EndReason
from server.dialogue.playout import HeardTurn
from server.dialogue.remedies import Awaited
from server.errors import CarrierProtocolError
from server.hooks.trio_clock import missed_s
from server.voice.told import MAX_TURN_S, CallerTurns, Told, TurnEnds

STREAM_OVER_S = 1.0
"""How long the end of a stream may take to get here after the carrier has said so elsewhere."""
TOLD_GAP_S = 1.0
"""An interruption of the line that both have noticed: shorter ones are not worth a word."""
MISSED_S = 0.2
"""So much at the end of what the agent said is no word that anybody would miss."""
ENOUGH_QUIET_S = 2.0
"""Silence after which any model knows that nothing more is coming."""
QUIET_S = 0.2
"""A carrier that sends nothing in silence is given so long, more than its jitter, and then silence
is heard in its place, piece by piece."""
QUIET = SILENCE * round(QUIET_S * BYTES_PER_S)
MAX_TOGETHER_BYTES = 800
"""The longest message to the model, as the compiled path writes them, too."""


class Hearing:
    """Hears the caller, and has the model hear them.

    Args:
        conversation: The call.
        playing: Stops the agent when the caller interrupts it.
        machine: Listens for an answering machine; None if none is to be found.
        handover: Knows why the carrier may have stopped a line.

    Attributes:
        telling: Tells the model of the caller's turns, where it has to be told.
        replaced_until: Until when the carrier may stop a stream only to open another, as it was
            told to.
    """

    def __init__(
        self,
        conversation: Conversation,
        playing: Playing,
        machine: Machine | None,
        handover: Handover,
    ) -> None:
        self._conversation = conversation
        self._playing = playing
        self._machine = machine
        self._handover = handover
        self._keys = PressedKeys(conversation.options.dtmf_pause_s)
        self._was_asked = self._has_come = False
        self.replaced_until = -inf
        self.telling = Telling(conversation)
        conversation.passing.relay.on_caller = self._take_passed
        conversation.ear.on_found = self._take_judged

    async def run(self) -> None:
        """Hear every line of the call, until one ends that is the end of the call."""
        c = self._conversation
        if c.is_lost and not await self._wait_connected(trio.current_time()):
            c.end(EndReason.CALLER_GONE, "the caller's line was lost, and did not come back")
            return
        while True:
            await c.connected.wait()
            assert c.line is not None
            line, self._has_come = c.line, True
            line.heard_at = trio.current_time()
            self.telling.goes_on(line.heard_at)
            line.media.listen(partial(self._take_events, line), c.passing.relay)
            reason, detail = await self._wait_over(line)
            line.over.set()
            self.telling.end()
            self._handover.line_stopped(line)
            if c.stage is Stage.AWAY:
                self._playing.leave(line)
                self._take_found(c.ear.line_over(), trio.current_time())
            elif not (self._may_come_back(line) and await self._wait_back(line, detail)):
                c.end(reason, detail)
                return

    def _may_come_back(self, line: Line) -> bool:
        """Whether another stream may come for one that has ended."""
        is_replaced = trio.current_time() < self.replaced_until
        return line.may_come_back or (is_replaced and line.media.abilities.comes_back)

    async def _wait_back(self, line: Line, detail: str) -> bool:
        """The line is lost: wait for another; False if none comes in time."""
        c = self._conversation
        if c.end_reason is not None or c.options.line_lost_timeout_s <= 0:
            return False
        always_comes = line.media.abilities.sends_silence
        lost_at = self.heard_at(line) if always_comes else trio.current_time()
        cut = self._playing.lose(line, lost_at)
        self._take_found(c.ear.line_over(), trio.current_time())
        c.notes.note("line lost", detail=detail or "the stream broke off")
        c.metrics.streams.lines.labels("lost").inc()
        if not await self._wait_connected(lost_at):
            return False
        self._tell_what_was_lost(lost_at, cut)
        return True

    async def _wait_connected(self, lost_at: float) -> bool:
        """Wait for another line than the one that was heard until then; False if none comes."""
        c = self._conversation
        if not await c.comes_back():
            c.metrics.streams.lines.labels("not-back").inc()
            return False
        now = trio.current_time()
        c.notes.note_trouble("line back", gap_s=round(now - lost_at, 3))
        c.metrics.streams.lines.labels("back").inc()
        c.turns.answered(now, again=True)  # nobody is taken for silent
        if self._machine is not None:
            self._machine.line_back(now)
        c.turn_changed.set()
        return True

    def _tell_what_was_lost(self, lost_at: float, cut: HeardTurn | None) -> None:
        """The line is there again: the model is to know what was lost with the one before.

        Args:
            lost_at: Until when that was heard.
            cut: What the agent was saying then.
        """
        c, now = self._conversation, trio.current_time()
        gap_s = now - lost_at
        if cut is not None:
            cut = c.playout.turn_heard(cut.turn, now) or cut  # more of it may have come meanwhile
            self._playing.note_heard(cut)
        if not c.speaks_to_machine:
            self._tell_of_gap(gap_s, cut if cut is not None and self._has_missed(cut) else None)
        c.turn_changed.set()

    def _tell_of_gap(self, gap_s: float, missed: HeardTurn | None) -> None:
        """Have the model say what the caller has missed, or know of it if others are to speak.

        Or if the caller is to hear a newer turn, which may be the rest of it: that would be said a
        second time.
        """
        c = self._conversation
        if missed is None:
            if gap_s >= TOLD_GAP_S:
                c.hint = phrases.line_was_lost(gap_s)
            return
        heard = c.notes.transcript.agent_heard_text(missed.turn)
        newer = c.turns.audible_turn
        goes_on = newer > missed.turn and not c.was_cut(newer)
        if goes_on or c.turns.caller_speaking or c.turns.tools_open:
            c.hint = phrases.line_was_lost(gap_s, heard=heard, goes_on=goes_on)
        else:
            c.turns.ask(Awaited.CONTINUATION, trio.current_time())
            c.session.send_text(phrases.line_back(heard, heard_s=missed.heard_s))

    async def wait_line_over(self, *, by_caller: bool = False) -> bool:
        """The carrier says that the call's stream is over: wait for that; False if it is not so.

        A stream that is still heard is not over: somebody repeats what the carrier has said.

        Args:
            by_caller: It is the caller's own side that has given the stream up, and has proved to
                be that. What a slow network still brings of it does not count.
        """
        self._was_asked = True
        line = self._conversation.line
        if line is None:
            return True
        if by_caller:
            line.lose("the caller's side has given it up")
        elif not line.media.abilities.sends_silence:
            return True
        with trio.move_on_after(STREAM_OVER_S):
            await line.over.wait()
        return line.over.is_set() or trio.current_time() - self.heard_at(line) > STREAM_OVER_S / 2

    @property
    def never_came(self) -> bool:
        """Whether the carrier has asked how the call goes on, but brought no stream of it here.

        Of a call that was taken up, somebody else may have it: whoever repeated the question had
        it taken from a process that talks with the caller.
        """
        answered = self._conversation.answered_at is not None
        return answered and self._was_asked and not self._has_come

    def _has_missed(self, cut: HeardTurn) -> bool:
        """Whether the caller has missed a word of it, what the model has not said yet included."""
        is_whole = cut.turn <= self._conversation.finished_turn
        return not is_whole or cut.made_s - cut.heard_s > MISSED_S

    async def _wait_over(self, line: Line) -> tuple[EndReason, str]:
        """Wait until a line is over; says what that means for a call."""
        while True:
            # The event is made before looking, so that news that come while we act are seen.
            news = line.news.next()
            if line.failure is not None:
                raise line.failure
            if line.end is not None:
                return line.end
            gone_at, quiet_at = self._gone_at(line), self._quiet_at(line)
            with trio.move_on_at(min(gone_at, quiet_at, self.telling.next_due())):
                await news.wait()
            now = trio.current_time()
            if line.end is None and now >= self.telling.next_due():
                self.telling.change(now)
            if line.end is None and now >= self._gone_at(line):
                line.lose("no audio from the carrier")
            elif line.end is None and now >= self._quiet_at(line):
                self._hear_silence(line, now)

    def _gone_at(self, line: Line) -> float:
        """When a carrier that sends no more audio is taken for gone; never where silence is usual.

        Nothing else is a sign of life where frames always come: marks are echoed by any socket.
        """
        if not line.media.abilities.sends_silence:
            return inf
        return self.heard_at(line) + self._conversation.options.media_timeout_s

    def _quiet_at(self, line: Line) -> float:
        """When a caller who was speaking is heard to be silent, by a carrier that sends no silence.

        Else neither our ear nor the model would ever hear the end of what they have said.
        """
        heard_at = self.heard_at(line)
        silence_s = line.silent_until - heard_at
        is_wanted = self._conversation.turns.caller_speaking or 0.0 < silence_s < ENOUGH_QUIET_S
        if line.media.abilities.sends_silence or not is_wanted:
            return inf
        return max(heard_at + QUIET_S, line.silent_until)

    def _hear_silence(self, line: Line, now: float) -> None:
        """Hear what the carrier has not sent, up to now, as far as it tells anything."""
        c = self._conversation
        with _OwnTrouble(line):
            c.passing.collect()
            if self._machine is not None:
                self._machine.hear(QUIET, now)
            heard = c.ear.hear(QUIET, now)
            self._take_found(heard.found, now)
            self._pass_on(heard.payload, now)
        line.silent_until = max(line.silent_until, now) + QUIET_S

    def heard_at(self, line: Line) -> float:
        """When audio of this line was last heard, or it began."""
        return max(line.heard_at, self._conversation.passing.path.heard_at)

    # -- what comes --------------------------------------------------------------------------

    def _take_events(
        self, line: Line, events: Sequence[CarrierEvent | CarrierProtocolError]
    ) -> None:
        """A read of the socket has brought this: nothing in here waits."""
        if line.released.is_set():
            return
        with _OwnTrouble(line):
            self._conversation.passing.collect()
            for is_audio, group in groupby(events, lambda event: isinstance(event, CallerAudio)):
                if is_audio:
                    line.heard_at = trio.current_time()
                    for stretch in stretches(one for one in group if isinstance(one, CallerAudio)):
                        self._take_audio(stretch)
                    continue
                for event in group:
                    self._take_event(event, line)
        if line.end is not None:
            line.news.set()

    def _take_event(self, event: CarrierEvent | CarrierProtocolError, line: Line) -> None:
        c = self._conversation
        match event:
            case MarkReached(name=name, received_at=received_at):
                self._playing.mark_reached(name, received_at)
            case DigitPressed(digit=digit):
                c.notes.note("digit")
                c.turns.spoke_at = trio.current_time()
                c.turns.caller_active(c.turns.spoke_at)
                c.changed.set()
                if self._machine is not None:
                    self._machine.key_pressed()
                self._keys.press(digit)
                c.errands.begin(self._hear_keys)
            case StreamStopped(said=said):
                line.end = (EndReason.CALLER_HUNG_UP if said else EndReason.CALLER_GONE), ""
            case CarrierProtocolError():
                raise event
            case _:
                pass

    def _take_audio(self, chunks: Sequence[CallerAudio]) -> None:
        """Audio has come that is no business of the path's: chunks that came together."""
        c, now = self._conversation, trio.current_time()
        payload = b"".join(chunk.payload for chunk in chunks)
        if (recorder := c.passing.recorder) is not None:
            c.passing.collect_recording()
            recorder.caller(payload, chunks[0].timestamp_ms, chunks[0].received_at + missed_s())
        c.notes.timings.caller_audio_s += len(payload) / BYTES_PER_S
        if c.passing.wide is not None:
            for chunk in chunks:
                c.passing.wide.heard(chunk.payload, chunk.wide)
        if self._machine is not None:
            self._machine.hear(payload, now)
        heard = c.ear.hear(payload, now)
        self._take_found(heard.found, now)
        self._pass_on(heard.payload, chunks[0].received_at)

    def _take_passed(self) -> None:
        """The path has held caller audio, or found something in it: nothing in here waits."""
        c, line = self._conversation, self._conversation.line
        passing, path, now = c.passing, c.passing.path, trio.current_time()
        assert line is not None
        with _OwnTrouble(line):
            passing.collect()
            # What is only kept stays there until a turn is told that may have begun in it.
            payload = b"" if path.keeps_only else path.take_caller()
            if payload:
                # Ear and recorder have heard it already.
                c.notes.timings.caller_audio_s += len(payload) / BYTES_PER_S
                if self._machine is not None:
                    self._machine.hear(payload, now)
                found = c.ear.take()
                to_model = c.opening.hear(payload, now)
                self._take_found(found, now)
                self._pass_on(to_model, path.heard_at)
            else:
                self._take_found(c.ear.take(), path.heard_at)
            c.session.note_passed()
            is_heard_here = self._machine is not None and self._machine.listens(now)
            path.caller_passes = c.opening.is_over and not (is_heard_here or c.speaks_to_machine)
            c.ear.follow_opening()

    def _take_judged(self, found: tuple[Found, ...]) -> None:
        """Something was found in audio that has gone by meanwhile: nothing in here waits."""
        c, line = self._conversation, self._conversation.line
        if line is None or c.end_reason is not None:
            return
        with _OwnTrouble(line):
            c.passing.collect()
            self._take_found(found, trio.current_time())
            c.ear.follow_opening()

    def _pass_on(self, payload: bytes, received_at: float) -> None:
        c = self._conversation
        if c.speaks_to_machine:
            payload = SILENCE * len(payload)
            self.telling.end()
        is_whole_turn = self.telling.is_released()
        self.telling.keep_in_order()
        if c.session.send_audio(c.passing.decode(payload)):
            c.notes.caller_passed(trio.current_time() - received_at)
        if is_whole_turn:
            self.telling.end()

    # -- what is found in it -------------------------------------------------------------------

    def _take_found(self, found: Iterable[SpeechStarted | SpeechEnded | Stop], now: float) -> None:
        for one in found:
            if self._machine is not None:
                self._machine.heard(one, now)
            if not self._conversation.speaks_to_machine:
                self._caller_found(one, now)

    def _caller_found(self, found: SpeechStarted | SpeechEnded | Stop, now: float) -> None:
        c, replies = self._conversation, self._conversation.notes.replies
        match found:
            case SpeechStarted():
                c.turns.caller_started(now)
                if c.line is not None:
                    c.line.news.set()  # its silence may have to be heard
                replies.caller_started()
                c.notes.transcript.caller_started(c.agent_turn)
            case SpeechEnded(at=at, speech_s=speech_s, sure=sure, goes_on=goes_on):
                agent_until = c.playout.audible_until(now)
                if not self.telling.is_told(found, now, agent_until):
                    speech_s = 0.0
                c.turns.caller_ended(
                    *(at, now),
                    speech_s=speech_s,
                    agent_until=agent_until,
                    sure=sure,
                    may_hasten=not (goes_on or c.session.text_interrupts),
                )
                replies.caller_ended(at, now)
                self._playing.let_out()  # the greeting may have waited for this
            case Stop.HOLD:
                self._playing.hold(now)
            case Stop.RESUME:
                self._playing.resume()
            case Stop.CUT:
                if self._playing.cut(c.agent_turn, now, by="local") and c.is_talk:
                    c.turns.agent_cut(c.agent_turn, owed_from=now)
        self.telling.follow(found, now)
        c.turn_changed.set()

    async def _hear_keys(self) -> None:
        """Tell the model what is pressed, once it has been asked for the greeting."""
        await self._conversation.begun.wait()
        await self._keys.run(self._tell_keys, self._wait_no_message)

    async def _wait_no_message(self) -> None:
        """Wait until no message is being left: a word to the model would be taken up in it."""
        c = self._conversation
        await c.changed.until(lambda: not c.speaks_to_machine)

    async def _tell_keys(self, pressed: str) -> None:
        """Tell the model which keys the caller has pressed; it answers every message."""
        c = self._conversation
        c.passing.collect()  # what has been said was no answer to this
        c.turns.ask(Awaited.ANSWER, trio.current_time())
        c.turn_changed.set()
        c.session.send_text(phrases.keys_pressed(pressed))


class Telling:
    """Tells a model of the caller's turns that does not find them itself, and no other.

    Args:
        conversation: The call.
    """

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._told: CallerTurns | None = None
        if conversation.party.agent.turn_end == "local":
            wait_for_cut = conversation.options.barge_in is not BargeInMode.MODEL
            self._told = CallerTurns(wait_for_cut=wait_for_cut)
        self._was_holding = conversation.opening.holding

    def is_released(self) -> bool:
        """What is passed on next was held with speech in it; True if that is over already."""
        c, was_holding = self._conversation, self._was_holding
        self._was_holding = c.opening.holding
        is_spoken = was_holding and not c.opening.holding and c.opening.has_heard_speech
        if self._told is None or c.speaks_to_machine or not is_spoken:
            return False
        self._tell(self._told.released(trio.current_time()))
        return not c.ear.caller_speaks

    def follow(self, found: SpeechStarted | SpeechEnded | Stop, now: float) -> None:
        """The caller has begun to speak, or has interrupted the agent; its end is told before."""
        c, told = self._conversation, self._told
        if told is None or c.opening.holding:
            return
        match found:
            case SpeechStarted(at=at):
                agent_heard = c.playout.timeline.is_speaking(now)
                self._tell(told.started(at, now, agent_heard=agent_heard))
            case Stop.CUT:
                self._tell(told.cut(now))

    def is_told(self, ended: SpeechEnded, now: float, agent_until: float) -> bool:
        """Tell of the end of what was said; False if the model knows nothing of it, and owes none.

        What is held at the beginning of a call will be told when it is let go.
        """
        if self._told is None or self._conversation.opening.holding:
            return True
        at, speech_s = ended.at, ended.speech_s
        if ended.goes_on and self._told.may_go_on(at):
            if self._conversation.line is not None:
                self._conversation.line.news.set()  # it has to end in time
            return True
        self._tell(self._told.ended(at, now, speech_s=speech_s, agent_until=agent_until))
        return self._told.take_known()

    def next_due(self) -> float:
        """When the caller's turn is too long, or one that was is told of again."""
        c = self._conversation
        if self._told is None or c.speaks_to_machine:
            return inf
        return self._told.next_due(c.playout.audible_until(trio.current_time()))

    def change(self, now: float) -> None:
        """The caller's turn was too long and is over for the model; or it goes on as another."""
        c, told = self._conversation, self._told
        assert told is not None
        agent_until = c.playout.audible_until(now)
        if not told.is_over(now):
            self._tell(told.again(now, agent_until=agent_until))
            return
        self._tell(told.overdue(now) if c.ear.caller_speaks else told.close())
        told.take_known()
        c.turns.caller_ended(now, now, speech_s=MAX_TURN_S, agent_until=agent_until)
        c.turn_changed.set()

    def disbelieve(self) -> None:
        """What goes on is not taken for the caller's speech any more: it is no turn."""
        if self._told is not None and self._told.is_on:
            self.end()
            self.goes_on(trio.current_time(), is_believed=False)

    def goes_on(self, now: float, *, is_believed: bool = True) -> None:
        """Where the caller speaks on, it is another turn from now on."""
        if self._told is not None and self._conversation.ear.caller_speaks:
            self._told.goes_on(now, is_believed=is_believed)

    def end(self) -> None:
        """Whatever the caller does, they are in no turn any more."""
        if self._told is not None:
            self._tell(self._told.close())

    def keep_in_order(self) -> None:
        """What is kept in the path, in case a turn began in it, was said before what comes now."""
        if self._conversation.passing.path.keeps_only:
            self._take_kept()

    def _take_kept(self) -> None:
        c, path = self._conversation, self._conversation.passing.path
        if path.caller_passes and (kept := path.take_caller()):
            c.session.send_audio(path.decoder.decode(kept))

    def _tell(self, told: Told) -> None:
        c = self._conversation
        for one in told:
            if isinstance(one, TurnEnds):
                c.session.caller_ends()
                continue
            self._take_kept()
            c.session.caller_begins(one.before_s)
            if c.ear.caller_speaks and not c.turns.caller_speaking:
                c.turns.caller_started(trio.current_time())  # it goes on, as another turn
            if c.line is not None:
                c.line.news.set()  # it has to end in time


class _OwnTrouble:
    """Leaves what goes wrong to the call's own task: it is not the socket's that told us."""

    __slots__ = ("_line",)

    def __init__(self, line: Line) -> None:
        self._line = line

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, Exception):
            self._line.failure = error
            self._line.news.set()
            return True
        return False


def stretches(chunks: Iterable[CallerAudio]) -> Iterator[list[CallerAudio]]:
    """Chunks that follow each other without a gap, up to 100 ms of them together."""
    together: list[CallerAudio] = []
    size, ends_ms = 0, 0
    for chunk in chunks:
        follows = chunk.timestamp_ms == ends_ms and size + len(chunk.payload) <= MAX_TOGETHER_BYTES
        if together and not follows:
            yield together
            together, size = [], 0
        together.append(chunk)
        size += len(chunk.payload)
        ends_ms = chunk.timestamp_ms + len(chunk.payload) * 1_000 // BYTES_PER_S
    if together:
        yield together
