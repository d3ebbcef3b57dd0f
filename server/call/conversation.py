"""The state of one call that all its parts share. Nothing here waits.

What the caller hears and whose turn it is are objects of :mod:`server.dialogue`; the stage says
what kind of conversation it is at the moment, and so what may happen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from math import inf
from typing import Literal

import trio

from server.agent.agent import Agent
from server.call.errands import Errands
from server.call.options import CallOptions
from server.call.passing import Passing
from server.call.report.notes import Notes
from server.carrier import MediaStream, Steering
from server.dialogue.cushion import Cushion, Lateness
from server.dialogue.ear import BargeInMode, Ear
from server.dialogue.endings import EndReason
from server.dialogue.opening import Opening
from server.dialogue.playout import Playout
from server.dialogue.turns import Turns
from server.hooks.turns import shared_turns
from server.metrics import Metrics
from server.model import PastTurn, Session
from server.records.recording import Recorder
from server.signal import Once, Presence, Signal
from server.voice.judge import Judge

MAX_BEHIND_S = 15.0
"""The carrier gives up a question after so long: what waits here for longer brings no line."""


class Stage(Enum):
    """What kind of conversation a call is at the moment."""

    OPENING = auto()
    """Nobody is on the line yet."""
    TALK = auto()
    """Two are talking."""
    AWAY = auto()
    """The caller is with somebody else, or it rings there: nothing can be said."""
    TO_MACHINE = auto()
    """A message is being left: nobody is heard, and nothing interrupts."""
    FAREWELL = auto()
    """The agent says goodbye; then the call ends."""
    FAREWELL_TO_MACHINE = auto()
    """It has to end while a message is being left: nobody is heard here either."""


TRANSITIONS: Mapping[Stage, Mapping[str, Stage]] = {
    Stage.OPENING: {
        "answered": Stage.TALK,
        "machine": Stage.TO_MACHINE,
        "goodbye": Stage.FAREWELL,
    },
    Stage.TALK: {
        "sent away": Stage.AWAY,
        "machine": Stage.TO_MACHINE,
        "goodbye": Stage.FAREWELL,
    },
    Stage.AWAY: {"back": Stage.TALK},
    Stage.TO_MACHINE: {
        "answered": Stage.TO_MACHINE,
        "person": Stage.TALK,
        "goodbye": Stage.FAREWELL_TO_MACHINE,
    },
    Stage.FAREWELL: {
        "answered": Stage.FAREWELL,
        "machine": Stage.FAREWELL_TO_MACHINE,
        "spoke": Stage.TALK,
    },
    Stage.FAREWELL_TO_MACHINE: {
        "answered": Stage.FAREWELL_TO_MACHINE,
        "person": Stage.FAREWELL,
    },
}
"""What may happen in each stage; whoever makes it happen asks :meth:`Conversation.may` before."""


@dataclass(frozen=True, slots=True)
class Party:
    """Who talks with whom."""

    direction: Literal["inbound", "outbound"]
    number: str
    """The other party's number, in full."""
    agent: Agent
    metadata: Mapping[str, str]
    """The API client's own labels."""


@dataclass(slots=True)
class Line:
    """One media stream of the call.

    A caller whom nobody took over comes back on another, and so does one whose stream was lost.
    """

    media: MediaStream
    heard_at: float = 0.0
    """When audio last came by events, or the line began; the path knows of what it has taken."""
    silent_until: float = 0.0
    """Until when silence was heard in the place of audio that did not come."""
    is_closed: bool = False
    """The stream takes nothing more."""
    end: tuple[EndReason, str] | None = None
    """What the stream's last event means for the call."""
    failure: Exception | None = None
    """What went wrong when it pushed: raised by the task that waits for the line's end."""
    taken_to: tuple[str, str] | None = None
    """With whom the carrier may yet connect the caller, in words and by number: it was told of that
    transfer, has not answered, and has not made it so far."""
    taken_by: float = -inf
    """When it will have, if it does."""
    news: Signal = field(default_factory=Signal)
    """Something that task has to see to."""
    over: Once = field(default_factory=Once)
    """The stream's last event has been read."""
    released: Once = field(default_factory=Once)
    """The call has no more use for it."""

    @property
    def may_come_back(self) -> bool:
        """Whether the stream broke off without the carrier's word, and another may come for it."""
        is_gone = self.end is not None and self.end[0] is EndReason.CALLER_GONE
        return is_gone and self.media.abilities.comes_back

    def lose(self, detail: str) -> None:
        """It is of no use any more, though the carrier has not said that it is over."""
        if self.end is None:
            self.end = EndReason.CALLER_GONE, detail
        self.news.set()


class Conversation:
    """A call, as far as its parts have to know of each other.

    Attributes:
        party: Who talks with whom.
        carrier: Steers the call.
        options: The call's settings.
        notes: What is written down of it.
        session: The model's side; given once, right after this is made.
        playout: What the caller is to hear, and has heard.
        turns: Whose turn it is.
        opening: How the call begins.
        ear: What is found in the caller's audio.
        passing: What the compiled path passes on by itself.
        errands: Tasks that are begun when they are first wanted.
        line: The media stream, while there is one.
        connected: Set while there is a line.
        begun: Set when the model is there, and has been asked for the greeting if it is to give it.
        stage: See :class:`Stage`.
        answered_at: When the phone left the hook.
        agent_turn: The newest turn of the agent's.
        finished_turn: The newest turn of which all audio has come.
        heard_out: The newest turn that was heard to its end, with no more to come of it.
        hint: What the model is to be told now or never.
        changed: Something was said, heard or decided.
        turn_changed: It may be another's turn now.
        unsent: There may be something to send to the caller.
    """

    def __init__(
        self,
        party: Party,
        *,
        carrier: Steering,
        options: CallOptions,
        notes: Notes,
        lateness: Lateness | None = None,
        voices: Judge | None = None,
    ) -> None:
        self.party = party
        self.carrier = carrier
        self.options = options
        self.notes = notes
        self.line: Line | None = None
        self.connected = Presence()
        self.begun = Once()
        self.stage = Stage.OPENING
        self.answered_at: float | None = None
        self.agent_turn = self.finished_turn = self.heard_out = 0
        self.hint = ""
        self.changed = Signal()
        self.turn_changed = Signal()
        self.unsent = Signal()
        self._ending: tuple[EndReason, str] | None = None
        self.errands = Errands()

        agent = party.agent
        self.playout = Playout(
            lead_s=options.lead_s,
            mark_every_s=options.mark_every_s,
            remember=options.barge_in is not BargeInMode.MODEL,
            cushion=Cushion(lateness),
            thinking=agent.thinking_sound,
        )
        self.turns = Turns(options.patience)
        self.opening = Opening(
            greets=bool(agent.greeting or agent.greeting_text or agent.greeting_audio),
            when=options.greeting_when,
            deadline_s=options.greeting_deadline_s,
            protect_s=options.greeting_protect_s,
            hello_s=options.greeting_hello_s,
        )
        mode = options.barge_in
        if agent.turn_end == "local" and mode is BargeInMode.BOTH:
            mode = BargeInMode.LOCAL  # the model hears nothing that it could agree with
        self.ear = Ear(
            self.playout,
            self.opening,
            mode=mode,
            end_silence_s=options.speech_end_s,
            confirm_s=options.barge_in_confirm_s,
            voices=voices,
        )
        self.passing = Passing(self.playout, self.turns, self.ear, notes)
        self.session: Session

    # -- the stage -------------------------------------------------------------------------

    def may(self, event: str) -> bool:
        """Whether this may happen now; nothing more happens to a call that ends."""
        return self.end_reason is None and event in TRANSITIONS[self.stage]

    def move(self, event: str) -> None:
        """Go to the stage that this event leads to.

        Raises:
            KeyError: It cannot have: a bug of ours.
        """
        self.stage = TRANSITIONS[self.stage][event]
        self.changed.set()
        self.turn_changed.set()

    @property
    def is_talk(self) -> bool:
        """Whether the model and the caller talk, or will as soon as it is answered."""
        return self.stage in (Stage.OPENING, Stage.TALK)

    @property
    def speaks_to_machine(self) -> bool:
        """Whether a message is being left: nobody is heard, and nothing interrupts."""
        return self.stage in (Stage.TO_MACHINE, Stage.FAREWELL_TO_MACHINE)

    @property
    def is_lost(self) -> bool:
        """Whether the caller's line is lost, and may come back; never while they are elsewhere.

        Nothing that goes by what is heard, or not heard, is decided meanwhile.
        """
        away = self.stage is Stage.AWAY
        return self.answered_at is not None and self.line is None and not away

    async def comes_back(self) -> bool:
        """Wait for a line for as long as it may be lost; False if none comes."""
        return await self.line_comes(self.connected.is_set, self.options.line_lost_timeout_s)

    async def line_comes(self, is_there: Callable[[], bool], patience_s: float) -> bool:
        """Wait for a line of the caller's; False if it does not come in time.

        While requests have to wait here for their turns, one that brings it may be among them, and
        one that is on its way is there as soon as whoever brings it can: neither is the carrier's
        silence.

        Args:
            is_there: Whether it has come.
            patience_s: How long the carrier may be silent.
        """
        now, turns = trio.current_time(), shared_turns()
        until, last = now + patience_s, now + patience_s + MAX_BEHIND_S
        while now < until:
            with trio.move_on_at(until):
                await self.changed.until(is_there)
                return True
            now = trio.current_time()
            last_sign_s = min(turns.since_behind_s(), self.connected.since_coming_s())
            until = min(now + patience_s - last_sign_s, last)
        return is_there()  # it may have come in the very pass in which the wait ended

    @property
    def metrics(self) -> Metrics:
        """The process's metrics."""
        return self.notes.metrics

    @property
    def call_sid(self) -> str:
        """The carrier's name for the call; empty before it has accepted it."""
        return self.notes.call_sid

    def end(self, reason: EndReason, detail: str = "") -> None:
        """Ask the call to end; the first reason counts, later ones are ignored."""
        if self._ending is None:
            self._ending = reason, detail
            self.errands.end()

    def disown(self) -> None:
        """End here, in silence, whatever else it was to end of: another process has the call."""
        self._ending = EndReason.MOVED, ""
        self.errands.end()

    def let_go(self) -> Recorder | None:
        """The call is over, and so is what was made for it: let go of whatever knows the call.

        Rings would be left for the garbage collector, which does not look while there are calls.

        Returns:
            The recorder, if there is one: what it has is still to be written.
        """
        self.errands.let_go()
        self.passing.let_go()
        self.ear.close()
        self.session.leave()
        del self.carrier
        self.line = None
        return self.passing.recorder

    @property
    def end_reason(self) -> EndReason | None:
        """Why the call ends; None while it goes on."""
        return None if self._ending is None else self._ending[0]

    @property
    def end_detail(self) -> str:
        """What more is known of why the call ends."""
        return "" if self._ending is None else self._ending[1]

    # -- what the session asks of its call ---------------------------------------------------

    def is_quiet(self) -> bool:
        """Whether neither side can be heard, and neither waits for a word of the other's."""
        self.passing.collect()
        heard = self.playout.queued_s or self.playout.is_playing(trio.current_time())
        return not heard and not self.turns.is_busy

    @property
    def is_heard_out(self) -> bool:
        """Whether all that the agent has to say has been heard; "one moment" is not all."""
        return self.playout.all_heard and not self.turns.has_more_to_come(trio.current_time())

    def history(self) -> list[PastTurn]:
        """What has been said so far, as the caller heard it, oldest first."""
        self.passing.collect()
        self.write_heard(trio.current_time())
        transcript = self.notes.transcript
        return [
            PastTurn(turn.speaker, text)
            for turn in transcript.turns
            if not turn.is_ahead and (text := transcript.heard_text(turn))
        ]

    # -- the transcript ----------------------------------------------------------------------

    def was_cut(self, turn: int) -> bool:
        """Whether the caller has not heard this turn to its end, and will not."""
        heard = self.playout.turn_heard(turn, trio.current_time())
        return heard is not None and heard.cut

    def write_heard(self, now: float, *, last: int = 0) -> None:
        """Write down how much has been heard of every turn up to now, or of the last ones."""
        transcript = self.notes.transcript
        for turn in transcript.turns[-last:]:
            if turn.number is not None and (heard := self.playout.turn_heard(turn.number, now)):
                transcript.agent_heard(
                    heard.turn, heard_s=heard.heard_s, made_s=heard.made_s, cut=heard.cut
                )

    def since_answer(self, now: float) -> float:
        """Seconds since the phone left the hook; 0 before."""
        return now - (self.answered_at if self.answered_at is not None else now)
