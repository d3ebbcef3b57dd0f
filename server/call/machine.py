"""What a call does about an answering machine: hang up, or leave a message that is confirmed.

Whether there is one, :mod:`server.dialogue.voicemail` finds out. The call
starts :meth:`Machine.run` when the model is there, if the settings say anything about machines.
"""

from __future__ import annotations

import trio

from codec.ear import SpeechEnded, SpeechStarted, Stop
from server.agent import phrases
from server.call.conversation import Conversation, Stage
from server.call.playing import Playing
from server.carrier import AnsweredBy, MachineVerdict
from server.dialogue.endings import EndReason
from server.dialogue.remedies import NEVER, Awaited
from server.dialogue.voicemail import AnsweringMachine, Finding, VoicemailPolicy

START_S = 4.0
"""How long a model that is there may take to begin a message; then it is asked once more."""
LOOK_AGAIN_S = 1.0
"""How often it is looked whether the agent, who is waited for, is so still."""


class Machine:
    """The machine that may have taken a call.

    Attributes:
        is_over: It is clear who has answered, and nothing is to be found out any more.
    """

    def __init__(self, conversation: Conversation, playing: Playing) -> None:
        self._conversation = conversation
        self._playing = playing
        self._signs = AnsweringMachine()
        self._after_turn = 0  # the message is in a later turn than this
        self._asked_at = NEVER  # or since when the model is there to be asked
        self.is_over = False

    @property
    def answered_by(self) -> AnsweredBy | None:
        """What the carrier said about who has answered."""
        return self._signs.answered_by

    @property
    def was_told(self) -> bool:
        """Whether the model has said that it is a machine."""
        return self._signs.was_told

    @property
    def silent_until(self) -> float:
        """Until when no word of the agent's is expected: the model has said that it is a machine,
        was told to be silent, and it is not decided yet. -NEVER if one is.
        """
        return -NEVER if self.is_over else self._signs.told_until

    def listens(self, now: float) -> bool:
        """Whether caller audio has to be heard here, for the beep."""
        return not self.is_over and self._signs.listens(now)

    # -- signs -----------------------------------------------------------------------------

    def report(self, verdict: MachineVerdict) -> None:
        """The carrier says who has answered: a hint, which counts once."""
        if self._signs.answered_by is not None:
            return
        self._signs.verdict(verdict.answered_by, trio.current_time())
        self._conversation.notes.note(
            "answered by", who=verdict.answered_by.value, took_s=verdict.took_s
        )
        self._conversation.notes.keep_soon()  # it is said once
        self._conversation.turn_changed.set()

    def told(self) -> None:
        """The model says that it is one: a beep matters again, however late it comes."""
        self._signs.told(trio.current_time())
        self._conversation.passing.path.caller_passes = False
        self._conversation.turn_changed.set()

    def hear(self, payload: bytes, now: float) -> None:
        """Take caller audio, for the beep."""
        if self._signs.hear(payload, now):
            self._conversation.notes.note("beep")
            self._conversation.turn_changed.set()

    def heard(self, found: SpeechStarted | SpeechEnded | Stop, now: float) -> None:
        """Take what the ear has made of caller audio."""
        match found:
            case SpeechStarted():
                self._signs.speech_started(now)
            case SpeechEnded(speech_s=speech_s):
                self._signs.speech_ended(now, speech_s)
            case _:
                return
        self._conversation.turn_changed.set()

    def key_pressed(self) -> None:
        """The other party has pressed a key."""
        self._signs.key_pressed(trio.current_time())
        self._conversation.turn_changed.set()

    def line_back(self, now: float) -> None:
        """The line was lost, and is there again."""
        self._signs.silence_begins(now)

    def interrupted(self, turn: int, at: float) -> None:
        """Our own word has stopped the model; nobody is there, and the message comes yet."""
        self._after_turn = max(self._after_turn, turn)
        self._playing.cut(turn, at, by="model")
        self._conversation.changed.set()

    def reconnected(self) -> None:
        """The model is there again, and has been told what it had not answered yet."""
        self._asked_at = trio.current_time()
        self._conversation.changed.set()

    def go_on(self, answered_by: AnsweredBy | None, *, is_over: bool, was_told: bool) -> None:
        """So much another process knew of it."""
        self.is_over = is_over
        if answered_by is not None:
            self._signs.verdict(answered_by, trio.current_time())
        if was_told:
            self._signs.told(trio.current_time())

    def go_on_with_message(self) -> None:
        """Another process had decided: who is heard from now on, before the model is there, too,
        is somebody.
        """
        self._signs.decided()

    # -- what follows ----------------------------------------------------------------------

    async def run(self) -> None:
        """Find out whether a machine has answered, and do what the settings say about that."""
        c = self._conversation
        if c.stage is Stage.TO_MACHINE:  # another process had come so far
            await self._leave_message()
            return
        silence_counts = True
        while not self.is_over:
            changed = c.turn_changed.next()
            if c.line is None or c.stage is Stage.AWAY:
                # Nobody can be heard, or is spoken to: that nobody is says nothing now.
                silence_counts = False
                await changed.wait()
                continue
            c.passing.collect()
            now = trio.current_time()
            is_waited_for = self._is_agent_waited_for(now)
            if not (silence_counts or is_waited_for):
                self._signs.silence_begins(now)
            silence_counts = not is_waited_for
            agent_until = c.playout.audible_until(now) if silence_counts else NEVER
            if (finding := self._signs.decide(now, agent_until=agent_until)) is not None:
                break
            # Whether the agent is waited for is told when it changes, or is a matter of time.
            look_again_at = NEVER if silence_counts else now + LOOK_AGAIN_S
            with trio.move_on_at(min(self._signs.next_due(agent_until), look_again_at)):
                await changed.wait()
        else:
            return
        if finding is Finding.PERSON:
            self._is_person()
        elif finding is Finding.FAX or c.options.voicemail is VoicemailPolicy.HANG_UP:
            c.end(EndReason.VOICEMAIL, "hung up")
        elif c.may("machine"):
            c.move("machine")
            c.passing.path.caller_passes = False  # the model hears nothing of it meanwhile
            c.notes.keep_soon()
            await self._leave_message()
        else:  # it ends, or a message is being left
            self.is_over = True

    def _is_agent_waited_for(self, now: float) -> bool:
        """Whether a person there would be silent as well: they wait for a word of the agent's.

        A model that has said itself that it is a machine owes it nothing: it was told to be silent.
        """
        turns = self._conversation.turns
        if turns.caller_speaking or self.was_told:
            return False
        return turns.is_busy or turns.has_more_to_come(now)

    async def _leave_message(self) -> None:
        """Leave the message: nothing interrupts it, and its last mark confirms it."""
        c, note = self._conversation, self._conversation.notes.note
        self._playing.cut(c.agent_turn, trio.current_time(), by="machine")
        self._after_turn = c.agent_turn
        left = False
        with trio.move_on_after(c.options.voicemail_timeout_s):
            for _ in range(2):
                await c.changed.until(lambda: not c.is_lost)
                note("leaving message")
                c.session.send_text(phrases.leave_message(c.party.agent.voicemail))
                if left := await self._message_heard():
                    break
        # It may have been heard in the very pass in which its time was over.
        left = left or (c.agent_turn > self._after_turn and self._is_heard_whole())
        note("message left" if left else "no message left")
        if not self._signs.somebody_spoke:
            c.end(EndReason.VOICEMAIL, "message left" if left else "no message left")
            return
        # Whoever answers a message is not a machine.
        self._is_person()
        if c.may("person"):
            c.move("person")
            c.turns.ask(Awaited.ANSWER, trio.current_time())
            c.session.send_text(phrases.NOT_A_MACHINE)

    def _is_person(self) -> None:
        """Whatever the carrier says: nobody who goes on with the call is to hang up on them."""
        self._conversation.notes.note("a person after all")
        self.is_over = True
        self._conversation.notes.keep_soon()

    async def _message_heard(self) -> bool:
        """Wait until the message has been played to its end.

        Returns:
            False if it is not even begun, or the line was lost in the middle of it.
        """
        c = self._conversation
        while True:
            if not await self._is_begun() and not c.is_lost:
                return False
            await c.changed.until(lambda: not c.is_lost and self._is_said_or_gone())
            if c.agent_turn > self._after_turn:
                if self._is_heard_whole():
                    return True
                self._after_turn = c.agent_turn
                return False

    async def _is_begun(self) -> bool:
        """Wait until the message begins; False if a model that is there takes too long for it."""
        c = self._conversation
        self._asked_at = trio.current_time()
        while c.agent_turn <= self._after_turn:
            # The event is made before looking, so that what comes meanwhile is seen.
            changed = c.changed.next()
            give_up_at = self._asked_at + START_S if c.session.is_connected else NEVER
            if trio.current_time() >= give_up_at:
                return False
            with trio.move_on_at(give_up_at):
                await changed.wait()
        return True

    def _is_heard_whole(self) -> bool:
        c = self._conversation
        return c.is_heard_out and not c.is_lost and not c.was_cut(c.agent_turn)

    def _is_said_or_gone(self) -> bool:
        c = self._conversation
        return c.is_heard_out or c.agent_turn <= self._after_turn
