"""Playout to caller: the one writer of the media stream."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import trio

from server.agent import phrases
from server.call.conversation import Conversation, Line
from server.carrier import CarrierCommand, Clear, SendAudio
from server.carrier.keypad import tones
from server.dialogue.playout import HeardTurn
from server.dialogue.thinking import BACKGROUND
from server.dialogue.turns import at_work_since
from server.errors import StreamEnded
from server.hooks.trio_clock import missed_s

CUT_AT_ONCE = 8
"""Turns of either side among which are all that may be cut with one."""
THINKING_AFTER_S = 0.8
"""Silence after which the caller would like to hear that somebody is there."""


class Playing:
    """Sends the caller what the playout says, and writes down what they have heard."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._interrupted_at: float | None = None

    async def run(self) -> None:
        """Send what is due, whenever something is; what comes in between is let out at once."""
        c = self._conversation
        while True:
            await c.connected.wait()
            # The event is made before looking, so that what comes while we send is seen.
            unsent = c.unsent.next()
            self._send_due()
            if (due := self._next_due()) == inf:
                await unsent.wait()  # as a rule: without a scope, which takes 650 bytes
            else:
                with trio.move_on_at(due):
                    await unsent.wait()

    async def think_aloud(self) -> None:
        """Have a sound heard while the caller waits for an answer or a function."""
        c = self._conversation
        while True:
            # The event is made before looking, so that what comes meanwhile is seen.
            changed = c.turn_changed.next()
            now, due = trio.current_time(), inf
            if c.is_talk and c.line is not None and c.end_reason is None:
                since = at_work_since(c.turns, c.playout.audible_until(now))
                due = since + THINKING_AFTER_S
            c.playout.thinking.wanted = now >= due
            self.let_out()
            with trio.move_on_at(inf if now >= due else due):
                await changed.wait()

    def let_out(self) -> None:
        """Send what may be sent now; whoever has changed what is to be played calls this."""
        self._send_due()
        if self._next_due() != inf:
            self._conversation.unsent.set()

    def _next_due(self) -> float:
        c = self._conversation
        if c.line is None or c.line.is_closed:
            return inf
        opens_at = inf if c.playout.timeline.open else c.opening.plays_at
        return min(c.playout.next_due(), opens_at)

    def _send_due(self) -> None:
        c, line = self._conversation, self._conversation.line
        if line is not None and not line.is_closed:
            c.passing.collect()
            now = trio.current_time()
            if not c.playout.timeline.open and now >= c.opening.plays_at:
                c.playout.open(now, buffer_s=line.media.abilities.buffer_s)
            try:
                while (command := c.playout.next_command(now)) is not None:
                    line.media.send(self._widened(command))
                    now = trio.current_time()
                    self._note_sent(command, now)
            except StreamEnded:
                # Whoever hears the line sees the same end, and says whether it is the call's.
                line.is_closed = True
        c.changed.set()

    def _widened(self, command: CarrierCommand) -> CarrierCommand:
        """A command with what mu-law cannot carry of its audio, if that is kept."""
        wide = self._conversation.passing.wide
        if wide is None or not isinstance(command, SendAudio):
            return command
        return replace(command, wide=wide.take(command.turn, command.at, len(command.payload)))

    def _note_sent(self, command: CarrierCommand, now: float) -> None:
        c, notes = self._conversation, self._conversation.notes
        assert c.answered_at is not None
        if (recorder := c.passing.recorder) is not None:
            c.passing.collect_recording()
            recorder.sent(command, now + missed_s())
        match command:
            case SendAudio(turn=turn) if turn == BACKGROUND:
                pass  # nothing that anybody says
            case SendAudio(received_at=received_at, turn=turn):
                if (reply := notes.replies.audio_sent(turn, now)) is not None:
                    notes.measured(reply, "vad", "model", "codec")
                if notes.timings.answer_to_first_audio_s is None:
                    c.opening.greeting_began(now)
                    first_s = now - c.answered_at
                    notes.timings.answer_to_first_audio_s = first_s
                    c.metrics.answer_to_audio.observe(first_s)
                    notes.note("first audio", after_ms=round(first_s * 1000, 3))
                if received_at > c.answered_at:
                    notes.agent_passed(now - received_at)
            case Clear() if self._interrupted_at is not None:
                notes.timings.interrupt_to_clear.record(now - self._interrupted_at)
                c.metrics.interrupt_to_clear.observe(now - self._interrupted_at)
                self._interrupted_at = None

    # -- what the caller does not hear -------------------------------------------------------

    def hold(self, now: float) -> None:
        """Stop the agent in the middle of a word: the caller may mean to interrupt it."""
        c = self._conversation
        if c.playout.hold(now):
            self._interrupted_at = now
            self.let_out()
            c.notes.note("agent held")

    def resume(self) -> None:
        """Let the agent go on: the caller did not mean to interrupt it."""
        c = self._conversation
        if c.playout.is_held:
            c.playout.resume()
            self.let_out()
            c.notes.note("false alarm")

    def cut(self, turn: int, at: float, *, by: str) -> bool:
        """Barge-in: stop the agent before anything else is sent; False if there was nothing."""
        c = self._conversation
        cut = c.playout.interrupt(turn, at)
        c.write_heard(at, last=CUT_AT_ONCE)
        c.turns.agent_cut(turn, starved_s=c.playout.starved_s(turn))
        c.ear.agent_cut()
        if cut is None:
            return False
        if self._interrupted_at is None:
            self._interrupted_at = at
        self.let_out()
        self._interrupted_at = None  # where nothing was left at the carrier, nothing was cleared
        c.notes.note("barge-in", turn=cut.turn, by=by, heard_s=round(cut.heard_s, 3))
        self.note_heard(cut)
        if c.options.barge_in_hint and not c.speaks_to_machine:
            heard = c.notes.transcript.agent_heard_text(cut.turn)
            c.hint = phrases.barge_in_hint(heard)
            c.turn_changed.set()
        return True

    def leave(self, line: Line) -> None:
        """The caller is elsewhere and the call goes on: what was sent is heard no more."""
        self._leave(line, trio.current_time(), waits=False)

    def lose(self, line: Line, heard_until: float) -> HeardTurn | None:
        """The line is lost and may come back; a turn of which nothing was sent waits for that.

        Returns:
            The turn that was cut by it, if any.
        """
        return self._leave(line, heard_until, waits=True)

    def _leave(self, line: Line, heard_until: float, *, waits: bool) -> HeardTurn | None:
        c = self._conversation
        line.media.leave()
        c.passing.collect()
        if (recorder := c.passing.recorder) is not None:
            c.passing.collect_recording()
            recorder.sent(Clear(), heard_until + missed_s())
        c.line = None
        c.connected.gone()
        cut = c.playout.leave(heard_until, waits=waits)
        c.write_heard(heard_until, last=CUT_AT_ONCE)
        if cut is not None:
            self.note_heard(cut)
            c.turns.agent_cut(cut.turn, starved_s=c.playout.starved_s(cut.turn))
            c.ear.agent_cut()
        c.changed.set()
        c.unsent.set()
        line.released.set()
        return cut

    # -- what the caller has heard -----------------------------------------------------------

    def mark_reached(self, name: str, now: float) -> None:
        """The carrier has played what was sent up to a mark."""
        c, notes = self._conversation, self._conversation.notes
        if (reply := notes.replies.mark_reached(name, now)) is not None:
            notes.measured(reply, "playout", "total")
        if heard := c.playout.mark_reached(name, now):
            self.note_heard(heard)
        self.let_out()  # and whoever waits for silence is told there

    def note_heard(self, heard: HeardTurn) -> None:
        """A turn was heard to its end, or to where it was cut."""
        c = self._conversation
        c.opening.greeting_over()
        if not heard.cut and not c.turns.has_more_to_come(trio.current_time()):
            c.heard_out = max(c.heard_out, heard.turn)
        c.notes.transcript.agent_heard(
            heard.turn, heard_s=heard.heard_s, made_s=heard.made_s, cut=heard.cut
        )
        c.notes.on_heard(heard.turn)

    # -- keys --------------------------------------------------------------------------------

    async def press_keys(self, keys: str) -> None:
        """Play the tones of telephone keys to the other party; returns when they were heard.

        Raises:
            ValueError: There is no such key.
            StreamEnded: The line was lost before it was known that they were heard.
        """
        c = self._conversation
        name = c.playout.keys.push(tones(keys))
        c.notes.note("keys", count=len(keys))  # which ones may be nobody's business
        self.let_out()
        try:
            await c.changed.until(lambda: not c.playout.keys.is_pending(name))
            if c.playout.keys.were_lost(name):
                raise StreamEnded("the line was lost before all keys were heard")
        finally:
            c.playout.keys.withdraw(name)
