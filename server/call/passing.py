"""What the compiled path passes on by itself, and the account that is kept of it.

Nearly every chunk goes from socket to socket without Python. Before anything is decided that
depends on it, :meth:`Passing.collect` writes down what has gone by meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from codec.line import BYTES_PER_S
from codec.path import MediaPath
from server.call.report.notes import Notes
from server.carrier import SendAudio
from server.dialogue.ear import Ear
from server.dialogue.playout import Playout
from server.dialogue.turns import Turns
from server.hooks.trio_clock import missed_s
from server.media.relay import Relay, nobody
from server.media.wide import Wide
from server.records.recording import Recorder, Recordings

AUDIBLE_DBFS = -50.0
"""Agent audio below this cannot be heard on a telephone; the model speaks at about -20."""


class Passing:
    """The path of one call, and what has gone by it.

    Attributes:
        relay: Where streams and sessions join the path; it tells the call's parts when it has held
            caller audio or found something in it, and when it may pass on no more of the agent's
            turn by itself.
        path: The path; what does not go by it goes through the same filters.
        recorder: Writes the call down; None if nobody does.
        wide: What mu-law cannot carry, where the caller's end can; None where it cannot.
    """

    def __init__(self, playout: Playout, turns: Turns, ear: Ear, notes: Notes) -> None:
        self.path = MediaPath()
        self.path.played = playout.timeline
        self.path.ear = ear.judge
        timings = notes.timings
        self.relay = Relay(
            self.path,
            caller_latencies=(timings.caller_chunks, notes.caller_latency),
            agent_latencies=(timings.agent_chunks, notes.agent_latency),
        )
        self.recorder: Recorder | None = None
        self.wide: Wide | None = None
        self._playout = playout
        self._turns = turns
        self._timings = timings
        self._recorded_at = notes.began_at  # in the world's time
        self._turn = 0  # that is followed
        self._counted_bytes = 0  # of the caller's

    def follow(self, turn: int, now: float) -> None:
        """Let the path pass on what else comes of this turn, as far as may be."""
        limit_bytes = self._playout.passable_bytes(turn, now)
        if limit_bytes > 0:
            self._turn = turn
            self.path.follow(
                limit_bytes=limit_bytes,
                audible_dbfs=AUDIBLE_DBFS,
                thin_s=self._playout.cushion.thin_s(turn),
            )

    def collect(self) -> None:
        """Write down what the path has passed on meanwhile, either way."""
        path = self.path
        sent_bytes = path.caller_sent_bytes
        if sent_bytes != self._counted_bytes:
            self._timings.caller_audio_s += (sent_bytes - self._counted_bytes) / BYTES_PER_S
            self._counted_bytes = sent_bytes
        if path.has_run:
            self._collect_run()

    def _collect_run(self) -> None:
        passed_bytes, audible_bytes, last_at, late_at = self.path.take_run()
        if passed_bytes:
            self._playout.passed(self._turn, passed_bytes, late_at)
            for audible, size in (
                (False, passed_bytes - audible_bytes),
                (True, audible_bytes),
            ):
                if size:
                    self._turns.agent_audio(
                        self._turn, size / BYTES_PER_S, audible=audible, now=last_at
                    )

    def decode(self, payload: bytes) -> bytes:
        """What the model is to hear for caller audio."""
        decoder = self.path.decoder
        return decoder.decode(payload) if self.wide is None else self.wide.decode(payload, decoder)

    def record(self, recorder: Recorder, on_stop: Callable[[str], None]) -> None:
        """Have everything written down from now on."""

        def stopped(reason: str) -> None:
            self.path.recording = False
            on_stop(reason)

        self.recorder = recorder
        recorder.on_stop, recorder.on_take = stopped, self.collect_recording
        self.path.recording = True

    def end_recording(self, recordings: Recordings, now: float) -> None:
        """The call is over: have the rest written down soon."""
        if self.recorder is not None:
            try:
                self.collect_recording()
            finally:
                recordings.end(self.recorder, now)

    def collect_recording(self) -> None:
        """Give the recorder what the path has passed on meanwhile."""
        if self.recorder is None or not self.path.recording:
            return
        now = trio.current_time() + missed_s()
        caller, agent = self.path.take_recording()
        if caller:
            began_ms = self.path.recorded_ms - len(caller) // 8
            self.recorder.caller(caller, began_ms, self.path.heard_at + missed_s())
        if agent:
            # It came since then, and each chunk before the caller had heard the one before; but
            # after a pause of ours they had long heard that, which nobody was there to see.
            self.recorder.sent(SendAudio(agent), self._recorded_at)
        self._recorded_at = now

    def let_go(self) -> None:
        """The call is over: tell nobody anything more, and know nobody."""
        self.relay.on_caller = self.relay.on_agent = nobody
        if self.recorder is not None:
            self.recorder.on_stop = self.recorder.on_take = None
