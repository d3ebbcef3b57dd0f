"""Recordings: a two-channel WAV per call, written while it goes on, in constant memory.

Left is the caller, right the agent as heard: placed where the carrier plays it, without what a
barge-in cut. A :class:`Recorder` only notes payloads, so the call pays next to nothing; about once
a second one task takes from every recorder what has become certain, and a thread decodes it and
appends it to the file. The header says how much there is after every write, so the file is whole
whenever the process should die. A disk that is full or too slow ends a recording, never a call.
"""

from __future__ import annotations

import errno
import re
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any

import structlog
import trio

from codec.line import SILENCE
from server.carrier import CarrierCommand, Clear, SendAudio
from server.errors import ConfigurationError
from server.hooks.sockets import NoThread
from server.hooks.trio_clock import is_standing, missed_s, told_of_pauses
from server.metrics import Metrics, RecordingStopped
from server.records.wav_file import SAMPLES_PER_S, WavFile
from server.records.waveform import Waveforms

logger: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

WRITE_EVERY_S = 1.0
STALL_S = 5.0
"""Without caller audio for so long, silence is written: less may still be made up for."""
GAP_S = 10.0
"""Silence that is longer is not made, but left out for the file to have a hole there: after a long
pause of the process all calls would make theirs at once."""
MAX_BUFFER_S = 30.0
"""What a recording may hold in memory; a disk that is further behind is too slow for it."""
JUMP_SAMPLES = 40 * SAMPLES_PER_S // 1000
"""40 ms. A carrier's clock that is this far ahead of what came says that something is missing; and
what came that is this far ahead of now, that some of it has come late."""
LATE_S = 30.0
"""What came late is heard within so much audio; later ones are what clocks differ by."""
CLOSE_TIMEOUT_S = 5.0
SWEEP_EVERY_S = 3_600.0
DAY_S = 86_400.0

READERS = 8
"""Requests that may wait for the disk at the same time."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+@-]{0,127}")
"""A call's name that may be in a file's, as all are that carriers give."""
_UNIQUE = re.compile(r"(CA|BR|offhook-)[0-9a-f]{32}")
"""Names that nobody else gives a file. A PBX may have recordings of its own by the names of its
calls, so a file with another name says that it is ours."""
_OURS = re.compile(rf"({_UNIQUE.pattern}(-phone|\.[0-9]{{1,2}})?|offhook\..+)\.(wav|part)")
"""What may be deleted when it is old: nothing that somebody else might have put there."""

# ------------------------------------------------------------------------------------------
# One call, without I/O


class Recorder:
    """What one call's two sides sound like. No I/O and no clock.

    Args:
        call_sid: Names the file.
        began_at: When the first sample is, in the world's time: what we miss, others say.
        part: Which recording of the call it is: each process that has had it makes its own.
    """

    def __init__(self, call_sid: str, began_at: float, part: int = 1) -> None:
        self.call_sid = call_sid
        self.part = part
        self.parts_at_s: tuple[float | None, ...] = ()
        """When each part of it begins, up to this one, in seconds since the call began; None where
        that is not known."""
        self.stopped: str | None = None
        """Why the recording ended before its call did, or None."""
        self.ended_at: float | None = None
        self.on_stop: Callable[[str], None] | None = None
        """Told the reason when the recording stops before its call."""
        self.on_take: Callable[[], None] | None = None
        """Asked for what the call still has: before anything is taken, and after a pause of the
        process before anything else is read."""
        self.gaps: deque[tuple[int, int]] = deque()
        """Where nothing came of the caller for long, and how much is missing; not yet taken."""
        self._began_at = began_at
        self._taken = 0  # samples that have left for the file
        self._caller = bytearray()  # from there on, without the gaps
        self._made_up = 0  # silence that stands for what was missing last
        self._since = 0  # what has come of the caller after it
        self._line_began = self._clock_end = 0
        self._set_back = 0  # by how much the stream's clock is ahead of what was said
        self._agent: deque[tuple[int, bytes]] = deque()  # where it is heard, and what
        self._play_end = 0

    # -- what the call tells ---------------------------------------------------------------

    def line(self, now: float) -> None:
        """The caller is on another stream, whose clock begins at zero."""
        if self.stopped is None:
            self._pad_caller(self._sample(now))
            self._line_began, self._clock_end, self._set_back = self._end, 0, 0
            self._made_up = 0  # what the other stream has not brought never comes

    def caller(self, payload: bytes, timestamp_ms: int, now: float) -> None:
        """The caller said this, at this time of the stream's clock."""
        if self.stopped is not None:
            return
        told = timestamp_ms * (SAMPLES_PER_S // 1000)
        if abs(told - self._clock_end) > JUMP_SAMPLES:
            # It does not go on: one that was ahead is told anew what time it is.
            self._line_began, self._set_back = self._line_began + self._set_back, 0
        self._clock_end = told + len(payload)
        at = self._line_began + told
        if at - self._end > JUMP_SAMPLES:
            # Whatever the carrier's clock says, it cannot be later than now.
            self._pad_caller(min(at, self._sample(now)))
        self._caller += payload
        self._since += len(payload)
        # What comes late is more than there can be by now. The clock does not tell: a page's stands
        # where its sound does.
        ahead = self._end - self._sample(now)
        if ahead > JUMP_SAMPLES:
            taken_back = self._take_back(ahead)
            # A clock that took what came first for what was said just now is as far ahead.
            back = min(taken_back, max(0, at + len(payload) - self._end))
            self._line_began, self._set_back = self._line_began - back, self._set_back + back

    def sent(self, command: CarrierCommand, now: float) -> None:
        """Audio was sent to the carrier, which plays it after everything sent before."""
        if self.stopped is not None:
            return
        at = self._sample(now)
        match command:
            case SendAudio(payload=payload) if payload:
                start = max(at, self._play_end)
                self._agent.append((start, payload))
                self._play_end = start + len(payload)
            case Clear():
                while self._agent and self._agent[-1][0] >= at:
                    self._agent.pop()
                if self._agent:
                    start, payload = self._agent[-1]
                    self._agent[-1] = (start, payload[: at - start])
                self._play_end = min(self._play_end, at)

    def end(self, now: float) -> None:
        """The call is over; what comes now is taken for the last time."""
        self.ended_at = now
        if self.stopped is None:
            self._pad_caller(self._sample(now))

    def stop(self, reason: str, *, unwritten: int = 0) -> None:
        """Give the recording up, with so many taken samples not written; the call goes on."""
        if self.stopped is None:
            self.stopped = reason
            self._taken -= unwritten
            self._caller.clear()
            self.gaps.clear()
            self._agent.clear()
            if self.on_stop is not None:
                self.on_stop(reason)

    # -- what the writer takes -------------------------------------------------------------

    def take(self, now: float) -> tuple[bytes, bytes]:
        """What has become certain since the last time: caller and agent, equally long.

        It ends where there is a gap: see :meth:`take_gap`.
        """
        self.collect()
        upto = self._sample(now if self.ended_at is None else self.ended_at)
        behind = upto - self._end
        if self.ended_at is not None or behind > STALL_S * SAMPLES_PER_S:
            self._pad_caller(upto)
        self._fill_gap()
        count = max(0, min(len(self._caller), upto - self._taken))
        # A carrier that is far ahead of the clock must not fill the memory.
        count = max(count, len(self._caller) - int(MAX_BUFFER_S * SAMPLES_PER_S))
        if self.ended_at is not None:
            count = len(self._caller)
        if self.gaps:
            count = min(count, self.gaps[0][0] - self._taken)
        caller = bytes(self._caller[:count])
        del self._caller[:count]
        agent = self._take_agent(count)
        self._taken += count
        return caller, agent

    def take_gap(self) -> int:
        """How many samples there are, after what was taken, in which neither side is heard."""
        if not self.gaps or self.gaps[0][0] != self._taken:
            return 0
        at, missing = self.gaps.popleft()
        heard_at = self._agent[0][0] if self._agent else at + missing
        count = min(max(0, heard_at - at), missing)
        if count < missing:
            self.gaps.appendleft((at + count, missing - count))
        self._taken += count
        return count

    def collect(self) -> None:
        """Have the call hand over what it still has."""
        if self.on_take is not None:
            self.on_take()

    @property
    def duration_s(self) -> float:
        """How long the recording is, what still waits to be written included."""
        return self._end / SAMPLES_PER_S

    def caller_tail(self, length_bytes: int) -> bytes:
        """What the caller said last, in mu-law, as far as it has not left for the file."""
        return bytes(self._caller[-length_bytes:])

    def as_dict(self) -> dict[str, Any]:
        """The recording as the record of its call shows it."""
        state = "stopped" if self.stopped else "live" if self.ended_at is None else "complete"
        url = f"/calls/{self.call_sid}/recording"
        shown: dict[str, Any] = {
            "state": state,
            "reason": self.stopped,
            "duration_s": round(self.duration_s, 3),
            "url": url,
            "parts_at_s": list(self.parts_at_s),
        }
        if self.part > 1:
            parts = [url, *(f"{url}?part={part}" for part in range(2, self.part + 1))]
            shown |= {"url": parts[-1], "parts": parts}
        return shown

    def _sample(self, now: float) -> int:
        return max(0, round((now - self._began_at) * SAMPLES_PER_S))

    @property
    def _end(self) -> int:
        return self._taken + len(self._caller) + sum(missing for _, missing in self.gaps)

    def _pad_caller(self, upto: int) -> None:
        missing = upto - self._end
        if missing <= 0:
            return
        if self._since:
            self._made_up, self._since = 0, 0
        self._made_up += missing
        if self.gaps and sum(self.gaps[-1]) == self._end:
            at, before = self.gaps.pop()
            self.gaps.append((at, before + missing))
        elif missing > GAP_S * SAMPLES_PER_S:
            self.gaps.append((self._end, missing))
        else:
            self._caller += SILENCE * missing

    def _take_back(self, count: int) -> int:
        """Shorten the silence made up last, as what it stood for has come late.

        Of what has left for the file nothing is taken back: of what came late, the first is left
        out instead, whose place that was.

        Returns:
            By how much; never more than was made up.
        """
        count = min(count, self._made_up)
        if count == 0 or self._since > LATE_S * SAMPLES_PER_S:
            return 0
        of_gap = 0
        if self.gaps and sum(self.gaps[-1]) == self._end - self._since:
            at, missing = self.gaps.pop()
            of_gap = min(count, missing)
            if of_gap < missing:
                self.gaps.append((at, missing - of_gap))
        self._made_up -= of_gap
        start = max(0, len(self._caller) - self._since - self._made_up)
        before = len(self._caller)
        del self._caller[start : start + count - of_gap]
        of_caller = before - len(self._caller)
        self._made_up -= of_caller
        self._since = min(self._since, len(self._caller) - start)
        return of_gap + of_caller

    def _fill_gap(self) -> None:
        """Make silence of the beginning of a gap, as far as the agent is heard there."""
        if not self.gaps or self.gaps[0][0] != self._taken:
            return
        at, missing = self.gaps[0]
        heard_until = at
        for start, payload in self._agent:
            if start > heard_until:
                break
            heard_until = max(heard_until, start + len(payload))
        if (count := min(heard_until - at, missing)) > 0:
            self._caller[:0] = SILENCE * count
            self.gaps.popleft()
            if count < missing:
                self.gaps.appendleft((at + count, missing - count))

    def _take_agent(self, count: int) -> bytes:
        heard = bytearray(SILENCE * count)
        end = self._taken + count
        while self._agent and self._agent[0][0] < end:
            start, payload = self._agent.popleft()
            payload = payload[max(0, self._taken - start) :]
            offset = max(0, start - self._taken)
            fits = payload[: count - offset]
            heard[offset : offset + len(fits)] = fits
            if len(fits) < len(payload):
                self._agent.appendleft((end, payload[len(fits) :]))
        return bytes(heard)


# ------------------------------------------------------------------------------------------
# All calls


def _file_name(call_sid: str, part: int) -> str:
    name = call_sid if _UNIQUE.fullmatch(call_sid) else f"offhook.{call_sid}"
    return f"{name}.wav" if part == 1 else f"{name}.{part}.wav"


_Piece = tuple[Recorder, bytes, bytes, int, bool]
"""Of a recording, what the caller said and the agent, the gap after it, and whether that is all."""


def _reason_of(error: Exception | None, *, is_slow: bool) -> RecordingStopped | None:
    """Why a recording ends; None for one that does not."""
    match error:
        case None:
            return "disk-too-slow" if is_slow else None
        case OSError() if not isinstance(error, NoThread):
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            return "disk-full" if is_full else "disk-error"
        case _:
            return "error"


def check_directory(directory: Path, setting: str = "RECORDINGS_DIR") -> None:
    """Make the folder of a setting, and find out whether files can be made in it.

    Raises:
        ConfigurationError: They cannot; the setting is named.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        reason = "is a file" if isinstance(error, FileExistsError) else error.strerror
        raise ConfigurationError(
            f"{setting}: {directory} cannot be used: {reason}; it must be a folder in which "
            "this user may make files"
        ) from None


class Recordings:
    """Every recording of this process: one task that writes, one that deletes what is old.

    Each has a thread of its own at most, as to look through a slow disk may take longer than
    memory lasts for what is to be written.

    Args:
        directory: Where the files go; it is made when the first call is recorded.
        metrics: The process's metrics.
        retention_days: Older recordings are deleted; None keeps them for ever.
    """

    def __init__(
        self, directory: Path, *, metrics: Metrics, retention_days: float | None = None
    ) -> None:
        self._directory = directory
        self._waveforms = Waveforms(SAMPLES_PER_S)
        self._metrics = metrics
        self._retention_days = retention_days
        self._recorders: set[Recorder] = set()
        self._files: dict[Recorder, WavFile] = {}
        self._left: list[_Piece] = []  # for the next time
        self._refused_at = inf
        self._ended = trio.Event()
        # A disk that hangs takes no other work's thread: calls need some, to ask for names.
        self._writer = trio.CapacityLimiter(1)
        self._sweeper = trio.CapacityLimiter(1)
        self.reading = trio.CapacityLimiter(READERS)
        """The threads of those who read recordings."""

    def begin(self, call_sid: str, now: float, part: int = 1) -> Recorder | None:
        """Record a call from now on; None if its name could not be a file's."""
        if not _NAME.fullmatch(call_sid):
            logger.warning("call not recorded: its name cannot be a file's")
            return None
        recorder = Recorder(call_sid, now, part)
        self._recorders.add(recorder)
        return recorder

    def end(self, recorder: Recorder, now: float) -> None:
        """The recorder's call is over: write the rest soon."""
        recorder.end(now)
        self._ended.set()

    def path(self, call_sid: str, part: int = 1) -> Path | None:
        """Where a call's recording is, or None if there is none. May block for an instant."""
        if not _NAME.fullmatch(call_sid):
            return None
        path = self._directory / _file_name(call_sid, part)
        return path if path.is_file() else None

    def draw(self, call_sid: str, part: int, points: int) -> dict[str, Any] | None:
        """What a call's recording looks like, or None if there is none. Blocks."""
        try:
            path = self.path(call_sid, part)
            return None if path is None else self._waveforms.draw(path, points)
        except FileNotFoundError:  # it was old, and has just been deleted
            return None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write until cancelled, and then what is left."""
        task_status.started()
        try:
            with told_of_pauses(self._collect):
                while True:
                    ended = self._ended = trio.Event()
                    if not is_standing():  # else what callers said meanwhile is about to be read
                        await self._write()
                    with trio.move_on_after(WRITE_EVERY_S):
                        await ended.wait()
        except trio.Cancelled:
            with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                now = trio.current_time() + missed_s()
                for recorder in self._recorders:
                    if recorder.ended_at is None:
                        recorder.end(now)
                await self._write(is_last_time=True)
                async with self._writer:  # a thread may still be at what was taken before
                    pass
            raise

    def _collect(self) -> None:
        """The process was held up: what was said before that is told from what comes now."""
        for recorder in list(self._recorders):
            try:
                recorder.collect()
            except Exception as error:  # of one call, whose recording ends here
                self._stop(recorder, "error", 0, exc_info=error)

    async def sweep(self) -> None:
        """Delete what is old, now and again; returns if all is kept for ever."""
        while self._retention_days is not None:
            with suppress(NoThread):  # it may get a little older
                await trio.to_thread.run_sync(
                    self._delete_old,
                    time.time() - self._retention_days * DAY_S,
                    abandon_on_cancel=True,
                    limiter=self._sweeper,
                )
            await trio.sleep(SWEEP_EVERY_S)

    async def _write(self, *, is_last_time: bool = False) -> None:
        """Take what there is from every recorder, write it, and see what became of it."""
        work = [*self._left, *self._take(trio.current_time() + missed_s())]
        self._left = []
        if not work:
            return
        failures: dict[Recorder, Exception] = {}
        untouched = [work]  # whoever takes it out has it: the thread, or we

        def write_all() -> None:
            for recorder, caller, agent, gap, is_last in untouched.pop():
                try:
                    if recorder not in failures:
                        self._append(recorder, caller, agent, gap, is_last)
                except Exception as raised:
                    failures[recorder] = raised

        with trio.move_on_after(MAX_BUFFER_S) as patience:
            try:
                await trio.to_thread.run_sync(
                    write_all, abandon_on_cancel=True, limiter=self._writer
                )
                self._refused_at = inf
            except NoThread as no_thread:
                if is_last_time:
                    write_all()  # here: nobody is left whom that holds up
                elif self._put_off(work, trio.current_time()):
                    return
                else:
                    failures = dict.fromkeys((recorder for recorder, *_ in work), no_thread)
            except trio.Cancelled:
                with suppress(IndexError):  # else a thread has begun, and does all of it
                    self._left += untouched.pop()
                raise
        if patience.cancelled_caught:
            self._left.clear()  # no thread has begun; of what is given up nothing is written later
        for recorder in dict.fromkeys(recorder for recorder, *_ in work):
            error = failures.get(recorder)
            reason = _reason_of(error, is_slow=patience.cancelled_caught)
            if reason is not None:
                if recorder.stopped is None:
                    unwritten = sum(
                        len(caller) + gap for each, caller, _, gap, _ in work if each is recorder
                    )
                    bug = None if isinstance(error, OSError) else error
                    self._stop(recorder, reason, unwritten, exc_info=bug)
                self._left.append((recorder, b"", b"", 0, True))  # its file may be open yet
            if recorder.stopped is not None:
                self._recorders.discard(recorder)
            if recorder not in self._recorders:
                recorder.on_stop = None  # who is told knows the recorder
        failures.clear()  # or what was raised holds what holds it

    def _put_off(self, work: list[_Piece], now: float) -> bool:
        """Leave what no thread can write for the next time, unless that has gone on for long."""
        self._refused_at = min(self._refused_at, now)
        if now - self._refused_at >= MAX_BUFFER_S:
            return False
        self._left += work
        return True

    def _take(self, now: float) -> Generator[_Piece]:
        """What has become certain of each call, and whether that is all."""
        for recorder in list(self._recorders):
            is_last, has_more = recorder.ended_at is not None, True
            while has_more:
                try:
                    caller, agent = recorder.take(now)
                    gap = recorder.take_gap()
                    has_more = bool(gap or (caller and recorder.gaps))
                except Exception as error:  # of one call, whose recording ends here
                    self._stop(recorder, "error", 0, exc_info=error)
                    caller, agent, gap, has_more = b"", b"", 0, False
                if is_last and not has_more:
                    # Whoever has this piece is the last to write: who writes next has none.
                    self._recorders.discard(recorder)
                yield recorder, caller, agent, gap, is_last and not has_more

    def _append(
        self, recorder: Recorder, caller: bytes, agent: bytes, gap: int, is_last: bool
    ) -> None:
        file = self._files.get(recorder)
        try:
            if file is None and recorder.stopped is None:
                file = self._files[recorder] = WavFile(
                    self._directory / _file_name(recorder.call_sid, recorder.part)
                )
            if file is not None and caller and recorder.stopped is None:
                file.append(caller, agent)
            if file is not None and gap and recorder.stopped is None:
                file.skip(gap)
        except Exception:
            is_last = True
            raise
        finally:
            # Stopped, too: it may have been given up while this thread hung.
            if file is not None and (is_last or recorder.stopped is not None):
                del self._files[recorder]
                file.close()

    def _stop(
        self,
        recorder: Recorder,
        reason: RecordingStopped,
        unwritten: int,
        exc_info: BaseException | None = None,
    ) -> None:
        try:
            recorder.stop(reason, unwritten=unwritten)
        finally:
            self._metrics.records.recordings_stopped.labels(reason).inc()
            logger.warning(
                "recording stopped", reason=reason, call_sid=recorder.call_sid, exc_info=exc_info
            )

    def _delete_old(self, oldest_kept: float) -> None:
        """Delete what is older; what cannot be deleted is in the way of nothing else."""
        deleted, failures = 0, list[str | None]()
        try:
            for path in self._directory.iterdir():
                try:
                    if _OURS.fullmatch(path.name) and path.stat().st_mtime < oldest_kept:
                        path.unlink()
                        deleted += 1
                except FileNotFoundError:
                    pass  # by another process of this server at this moment
                except OSError as error:
                    failures.append(error.strerror)
        except FileNotFoundError:
            pass  # there has been none yet
        except OSError as error:
            failures.append(error.strerror)
        if failures:
            logger.warning(
                "old recordings not deleted", error=failures[0], recordings=len(failures)
            )
        if deleted:
            logger.info("old recordings deleted", recordings=deleted)
