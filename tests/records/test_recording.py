"""Recordings: both sides where they were heard, whole at any moment, never in a call's way."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
import wave
from array import array
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import httpx2
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from codec import decode_mulaw
from server.carrier import Clear, SendAudio, SendMark
from server.carrier.asterisk.messages import AsteriskProtocol
from server.hooks.trio_clock import STEP_S, is_standing, pausing_clock
from server.metrics import Metrics
from server.records import recording
from server.records.recording import READERS, Recorder, Recordings
from server.records.wav_file import WavFile
from server.web import calls_api
from server.web.calls_api import RecordingBody
from tests.support.call_names import CALL_NAMES
from tests.support.kept_garbage import garbage_kept
from tests.support.limits import at_most, no_threads
from tests.support.rig import calling
from tests.support.serving import serving

pytestmark = pytest.mark.sockets

SECOND = 8_000
QUIET = b"\xff"
SID = "CA" + "0" * 32


def seconds(code: int, count: float) -> bytes:
    return bytes([code]) * round(count * SECOND)


def length_of(path: Path) -> float:
    """How many seconds of a call are in a file."""
    with wave.open(str(path)) as file:
        return file.getnframes() / file.getframerate()


def make_recorder(began_at: float = 100.0) -> Recorder:
    return Recorder(SID, began_at)


def all_of(recorder: Recorder, ended_at: float) -> tuple[bytes, bytes]:
    recorder.end(ended_at)
    return recorder.take(ended_at)


# ------------------------------------------------------------------------------------------
# Where it is heard


def test_agent_audio_stands_where_it_is_played_not_where_it_was_sent():
    recorder = make_recorder()
    recorder.sent(SendAudio(seconds(1, 2.0)), 100.5)
    recorder.sent(SendMark("1:2000"), 100.5)
    recorder.sent(SendAudio(seconds(2, 1.0)), 101.0)  # the carrier still plays the first
    recorder.sent(SendAudio(seconds(3, 0.5)), 105.0)
    _, agent = all_of(recorder, 106.0)

    silence = seconds(0xFF, 0.5)
    assert agent == (
        silence + seconds(1, 2.0) + seconds(2, 1.0) + 3 * silence + seconds(3, 0.5) + silence
    )


def test_what_a_barge_in_cut_is_not_in_the_recording():
    recorder = make_recorder()
    recorder.sent(SendAudio(seconds(1, 2.0)), 100.0)
    recorder.sent(SendAudio(seconds(2, 2.0)), 100.0)
    recorder.sent(Clear(), 101.0)
    recorder.sent(SendAudio(seconds(3, 1.0)), 101.5)
    _, agent = all_of(recorder, 103.0)

    assert agent == (seconds(1, 1.0) + seconds(0xFF, 0.5) + seconds(3, 1.0) + seconds(0xFF, 0.5))


def test_what_was_not_played_when_the_call_ended_was_not_heard():
    recorder = make_recorder()
    recorder.sent(SendAudio(seconds(1, 30.0)), 100.0)

    assert all_of(recorder, 101.0) == (seconds(0xFF, 1.0), seconds(1, 1.0))


def test_a_gap_in_the_carriers_clock_is_silence():
    recorder = make_recorder()
    recorder.caller(seconds(1, 1.0), 0, 101.0)
    recorder.caller(seconds(2, 1.0), 1_500, 102.5)
    caller, _ = all_of(recorder, 102.5)

    assert caller == seconds(1, 1.0) + seconds(0xFF, 0.5) + seconds(2, 1.0)


def test_a_burst_after_a_stall_stays_where_the_carriers_clock_says():
    recorder = make_recorder()
    taken = b""
    recorder.caller(seconds(1, 1.0), 0, 101.0)
    for now in (101.0, 102.0, 103.0):
        taken += recorder.take(now)[0]
    for number in range(100):
        recorder.caller(seconds(2, 0.02), 1_000 + 20 * number, 103.0)
    taken += all_of(recorder, 103.0)[0]

    assert taken == seconds(1, 1.0) + seconds(2, 2.0)


def test_a_carrier_whose_clock_is_nonsense_cannot_make_the_recording_longer_than_the_call():
    recorder = make_recorder()
    recorder.caller(seconds(1, 0.02), 10**12, 100.5)
    caller, agent = all_of(recorder, 101.0)

    assert len(caller) == len(agent) <= 1.02 * SECOND


def test_a_caller_who_comes_back_on_another_stream_goes_on_where_the_call_is():
    recorder = make_recorder()
    recorder.line(100.0)
    recorder.caller(seconds(1, 1.0), 0, 101.0)
    recorder.line(105.0)
    recorder.caller(seconds(2, 1.0), 0, 106.0)
    caller, _ = all_of(recorder, 106.0)

    assert caller == seconds(1, 1.0) + seconds(0xFF, 4.0) + seconds(2, 1.0)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("caller"), st.integers(1, 800)),
            st.tuples(st.just("agent"), st.integers(1, 40_000)),
            st.tuples(st.just("clear"), st.just(0)),
            st.tuples(st.just("wait"), st.integers(1, 20_000)),
        ),
        max_size=60,
    )
)
def test_taking_it_in_pieces_or_at_once_gives_the_same(events):
    at_once, in_pieces = make_recorder(0.0), make_recorder(0.0)
    pieces: list[tuple[bytes, bytes]] = []
    now, said = 0.0, 0
    for number, (what, amount) in enumerate(events):
        payload = bytes([number % 250]) * amount
        for recorder in (at_once, in_pieces):
            if what == "caller":
                recorder.caller(payload, said // 8, now)
            elif what == "agent":
                recorder.sent(SendAudio(payload), now)
            elif what == "clear":
                recorder.sent(Clear(), now)
        if what == "caller":
            said += amount
        elif what == "wait":
            # The caller's frames keep up with the clock, as the carrier's do.
            now += amount / SECOND
            missing = round(now * SECOND) - said
            if missing > 0:
                for recorder in (at_once, in_pieces):
                    recorder.caller(bytes(missing), said // 8, now)
                said += missing
            pieces.append(in_pieces.take(now))
    pieces.append(all_of(in_pieces, now))

    together = tuple(b"".join(side) for side in zip(*pieces, strict=True))
    assert together == all_of(at_once, now)
    assert len(together[0]) == len(together[1])


def test_an_hour_is_recorded_in_constant_memory():
    recorder = make_recorder(0.0)
    most_s = 0.0
    for second in range(3_600):
        recorder.sent(SendAudio(seconds(1, 0.9)), float(second))
        recorder.caller(seconds(2, 1.0), 1_000 * second, second + 1.0)
        caller, agent = recorder.take(second + 1.0)
        most_s = max(most_s, len(caller) / 8_000, len(agent) / 8_000)

    assert most_s < 3.0
    assert recorder.duration_s == 3_600.0


def taken(recorder: Recorder, now: float) -> list[tuple[bytes, bytes, int]]:
    """What is taken of it at once: the pieces, each with the gap after it."""
    pieces = []
    while not pieces or pieces[-1][2] or (recorder.gaps and pieces[-1][0]):
        pieces.append((*recorder.take(now), recorder.take_gap()))
    return pieces


def sound_of(pieces: list[tuple[bytes, bytes, int]]) -> tuple[bytes, bytes]:
    """Both sides of pieces, with silence for the gaps."""
    gaps = [QUIET * gap for *_, gap in pieces]
    caller = b"".join(said + gap for (said, _, _), gap in zip(pieces, gaps, strict=True))
    return caller, b"".join(said + gap for (_, said, _), gap in zip(pieces, gaps, strict=True))


def test_of_a_long_pause_no_silence_is_made_and_all_stays_in_its_place():
    recorder = make_recorder(0.0)
    recorder.sent(SendAudio(seconds(1, 20.0)), 0.5)  # the carrier plays on
    recorder.caller(seconds(2, 1.0), 0, 1.0)
    recorder.line(600.0)
    recorder.caller(seconds(3, 1.0), 0, 601.0)
    recorder.sent(SendAudio(seconds(4, 2.0)), 599.5)  # told of late
    recorder.end(1_200.0)
    pieces = taken(recorder, 1_200.0)
    caller, agent = sound_of(pieces)

    made = sum(len(said) for said, _, _ in pieces)
    assert made < 25 * SECOND
    assert all(len(said) == len(heard) for said, heard, _ in pieces)
    assert len(caller) == len(agent) == 1_200 * SECOND
    assert recorder.duration_s == 1_200.0
    assert caller == b"".join(
        [seconds(2, 1.0), QUIET * (599 * SECOND), seconds(3, 1.0), QUIET * (599 * SECOND)]
    )
    assert agent[SECOND // 2 : 41 * SECOND // 2] == seconds(1, 20.0)
    assert agent[1_199 * SECOND // 2 : 1_203 * SECOND // 2] == seconds(4, 2.0)
    assert agent.count(QUIET) == (1_200 - 22) * SECOND


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["caller", "agent", "clear", "line", "take"]),
            st.integers(0, 3_000),
            st.sampled_from([0.0, 0.02, 1.0, 7.0, 50.0]),
        ),
        max_size=30,
    )
)
def test_gaps_change_nothing_of_what_is_heard_where(events):
    with_gaps, without = make_recorder(0.0), make_recorder(0.0)
    sounds: list[tuple[bytes, bytes]] = []
    for recorder, gap_s in ((with_gaps, 5.0), (without, 1e9)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recording, "GAP_S", gap_s)
            pieces, now = [], 0.0
            for number, (what, amount, later_s) in enumerate(events):
                now += later_s
                payload = bytes([number % 250]) * amount
                if what == "caller":
                    recorder.caller(payload, round(now * 1000), now)
                elif what == "agent":
                    recorder.sent(SendAudio(payload), now)
                elif what == "clear":
                    recorder.sent(Clear(), now)
                elif what == "line":
                    recorder.line(now)
                else:
                    pieces += taken(recorder, now)
            recorder.end(now)
            pieces += taken(recorder, now)
            assert not recorder.gaps
            sounds.append(sound_of(pieces))

    assert sounds[0] == sounds[1]
    assert with_gaps.duration_s == without.duration_s == len(sounds[0][0]) / SECOND


FRAME_S = 0.02
NEAR = 2 * 160  # samples: what a carrier's clock may be ahead


STARTS = '{"event": "MEDIA_START", "channel_id": "media.1", "format": "ulaw"}'


def frame(number: int) -> bytes:
    return bytes([number % 250]) * (158 - number // 250) + b"\xfe" * (2 + number // 250)


def stalled(
    stall_s: float,
    *,
    clock_is_late: bool = False,
    takes_every_s: float = 1.0,
    at_once: bool = False,
    lost: int = 0,
) -> bytes:
    """The caller's side of a call whose stream stalls after a second and then brings all of it.

    Two seconds after that the call is over.

    Args:
        stall_s: How long nothing comes.
        clock_is_late: Whether the stream has no clock of its own, as Asterisk's, so that what
            comes first after the stall is taken for what was said just now.
        takes_every_s: How often the writer takes.
        at_once: Whether what comes after the first frame is told of in one piece.
        lost: How many of the first frames of the stall never come.
    """
    recorder = make_recorder(0.0)
    pieces, took_at = [], 0.0
    back_at = 1.0 + stall_s
    first = 50 + lost
    burst, end = 50 + round(stall_s / FRAME_S), 150 + round(stall_s / FRAME_S)
    step = burst if at_once else 1

    def ms(number: int) -> int:
        is_late = clock_is_late and number >= first
        return 20 * number + is_late * round(1000 * back_at - 20 * first)

    def told(numbers: range, now: float) -> None:
        if numbers:
            recorder.caller(b"".join(map(frame, numbers)), ms(numbers[0]), now)

    def take(now: float) -> None:
        nonlocal took_at
        while took_at + takes_every_s <= now:
            took_at += takes_every_s
            pieces.extend(taken(recorder, took_at))

    for number in (*range(50), *range(burst, end)):
        now = (number + 1) * FRAME_S
        take(now - FRAME_S)
        if number == burst:
            told(range(first, first + 1), back_at)
            for each in range(first + 1, burst, step):
                told(range(each, min(each + step, burst)), back_at)
        told(range(number, number + 1), now)
    recorder.end(end * FRAME_S)
    pieces.extend(taken(recorder, end * FRAME_S))
    caller, _ = sound_of(pieces)

    assert abs(len(caller) - 160 * end) <= NEAR
    for number in (*range(50), *range(burst + 3, end)):
        place = 160 * number
        assert frame(number) in caller[max(0, place - NEAR) : place + 160 + NEAR], number
    return caller


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("stall_s", [2.0, 12.0])
def test_what_comes_late_stands_where_the_silence_was_that_stood_for_it(stall_s, at_once):
    caller = stalled(stall_s, clock_is_late=True, takes_every_s=60.0, at_once=at_once)

    assert caller.count(QUIET) <= NEAR
    assert frame(100) in caller[16_000 - NEAR : 16_160 + NEAR]


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("clock_is_late", [False, True])
@pytest.mark.parametrize("stall_s", [2.0, 7.0, 13.0, 25.0])
def test_what_comes_after_late_audio_stands_where_it_was_said(stall_s, clock_is_late, at_once):
    stalled(stall_s, clock_is_late=clock_is_late, at_once=at_once)


@pytest.mark.parametrize("pause_s", [0.5, 1.0, 3.0, 8.0])
def test_a_caller_who_pauses_after_a_late_burst_is_recorded_when_they_speak_again(pause_s):
    """Asterisk's stream has no clock but ours, which the burst has set too late."""
    recorder, clock = make_recorder(0.0), AsteriskProtocol()
    clock.receive(STARTS, 0.0)
    pieces, took_at = [], 0.0

    def says(number: int, now: float) -> None:
        nonlocal took_at
        while took_at + 1.0 <= now:
            took_at += 1.0
            pieces.extend(taken(recorder, took_at))
        heard = clock.receive(frame(number), now)
        recorder.caller(heard.payload, heard.timestamp_ms, now)

    for number in range(50):
        says(number, (number + 1) * FRAME_S)
    for number in range(50, 150):
        says(number, 3.0)
    for number in range(150, 250):
        says(number, (number + 1) * FRAME_S)
    again = 250 + round(pause_s / FRAME_S)
    for number in range(again, again + 50):
        says(number, (number + 1) * FRAME_S)
    recorder.end((again + 50) * FRAME_S)
    pieces.extend(taken(recorder, (again + 50) * FRAME_S))
    caller, _ = sound_of(pieces)

    for number in (*range(50), *range(153, 250), *range(again, again + 50)):
        place = 160 * number
        assert frame(number) in caller[max(0, place - NEAR) : place + 160 + NEAR], number


@pytest.mark.parametrize("stood_s", [6.0, 20.0])
def test_nothing_is_left_out_of_a_page_whose_clock_stood_with_its_sound(stood_s):
    recorder, pieces = make_recorder(0.0), []
    for number in range(50):
        recorder.caller(frame(number), 20 * number, (number + 1) * FRAME_S)
    for second in range(2, 1 + round(stood_s)):
        pieces.extend(taken(recorder, float(second)))
    for number in range(50, 150):
        recorder.caller(frame(number), 20 * number, stood_s + (number + 1) * FRAME_S)
    recorder.end(stood_s + 150 * FRAME_S)
    pieces.extend(taken(recorder, stood_s + 150 * FRAME_S))
    caller, _ = sound_of(pieces)

    assert all(frame(number) in caller for number in range(150))


def test_of_what_comes_late_no_more_is_left_out_than_silence_was_made_up():
    recorder = make_recorder(0.0)
    pieces = [recorder.take(6.0)[0]]
    recorder.caller(seconds(1, 9.0), 0, 6.0)
    recorder.end(9.0)
    pieces.append(recorder.take(9.0)[0])

    assert b"".join(pieces) == QUIET * (6 * SECOND) + seconds(1, 3.0)


def test_silence_stays_that_nothing_comes_for():
    caller = stalled(4.0, clock_is_late=True, lost=100)

    assert 2 * SECOND - NEAR <= caller.count(QUIET) <= 2 * SECOND + NEAR


def test_nothing_is_left_out_for_clocks_that_differ_or_for_a_silence_of_long_ago():
    recorder = make_recorder(0.0)
    recorder.caller(seconds(1, 1.0), 3_000, 4.0)
    recorder.caller(seconds(2, 31.0), 4_000, 35.0)
    recorder.caller(seconds(3, 0.5), 35_000, 35.0)
    recorder.line(35.0)
    recorder.caller(seconds(4, 1.0), 0, 36.0)
    caller, _ = all_of(recorder, 36.0)

    assert caller == QUIET * (3 * SECOND) + b"".join(
        [seconds(1, 1.0), seconds(2, 31.0), seconds(3, 0.5), seconds(4, 1.0)]
    )


def test_a_recording_that_is_given_up_in_a_gap_is_as_long_as_what_was_written():
    recorder = make_recorder(0.0)
    recorder.caller(seconds(1, 1.0), 0, 1.0)
    recorder.line(100.0)
    recorder.stop("disk-full")

    assert recorder.duration_s == 0.0
    assert not recorder.gaps


# ------------------------------------------------------------------------------------------
# The file


@asynccontextmanager
async def running(directory: Path, **options):
    recordings = Recordings(directory, metrics=Metrics(CollectorRegistry()), **options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recordings.sweep)
        await nursery.start(recordings.run)
        yield recordings
        nursery.cancel_scope.cancel()


def read(path: Path) -> tuple[bytes, bytes]:
    """Both channels of a WAV, as samples."""
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, 8_000)
        frames = file.readframes(file.getnframes())
        assert len(frames) == 4 * file.getnframes()
    samples = memoryview(frames).cast("h")
    return samples[0::2].tobytes(), samples[1::2].tobytes()


async def test_the_file_has_the_caller_on_the_left_and_the_agent_on_the_right(tmp_path):
    everything = bytes(range(256)) * 32
    async with running(tmp_path / "new" / "directory") as recordings:
        now = trio.current_time()
        recorder = recordings.begin(SID, now)
        recorder.sent(SendAudio(everything), now)
        recorder.caller(everything, 0, now + len(everything) / SECOND)
        recordings.end(recorder, now + len(everything) / SECOND)
    path = tmp_path / "new" / "directory" / f"{SID}.wav"

    assert read(path) == (decode_mulaw(everything), decode_mulaw(everything))
    assert recorder.as_dict()["state"] == "complete"
    assert recorder.as_dict()["duration_s"] == pytest.approx(1.024)
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600


async def test_the_file_is_silent_where_the_process_was_held_up_for_long(tmp_path):
    async with running(tmp_path) as recordings:
        now = trio.current_time() - 600.0
        recorder = recordings.begin(SID, now)
        recorder.caller(seconds(1, 1.0), 0, now + 1.0)
        recorder.sent(SendAudio(seconds(2, 3.0)), now)
        recorder.line(now + 300.0)
        recorder.caller(seconds(3, 1.0), 0, now + 301.0)
        recordings.end(recorder, now + 600.0)
    path = tmp_path / f"{SID}.wav"
    caller, agent = read(path)

    zeros = bytes(2 * 299 * SECOND)
    assert caller == b"".join(
        [decode_mulaw(seconds(1, 1.0)), zeros, decode_mulaw(seconds(3, 1.0)), zeros]
    )
    assert agent == decode_mulaw(seconds(2, 3.0)) + bytes(2 * 597 * SECOND)
    assert recorder.as_dict()["state"] == "complete"
    assert recorder.duration_s == 600.0


def hold_up(seconds: float) -> None:
    """Do what SIGSTOP does to the loop."""
    time.sleep(seconds)


async def test_every_call_is_asked_for_what_it_has_as_soon_as_a_pause_is_noticed(tmp_path):
    with pausing_clock():
        async with running(tmp_path) as recordings:
            asked: list[str] = []
            failing, other = (recordings.begin(f"CA{n:032}", trio.current_time()) for n in (1, 2))
            failing.on_take = lambda: 1 // 0
            other.on_take = lambda: asked.append("asked")
            while is_standing():
                await trio.lowlevel.checkpoint()
            before = len(asked)

            hold_up(STEP_S + 0.2)
            trio.current_time()

            assert len(asked) == before + 1
            assert failing.as_dict()["reason"] == "error"


async def test_a_server_that_stops_writes_what_it_has(tmp_path):
    async with running(tmp_path) as recordings:
        recorder = recordings.begin(SID, trio.current_time() - 1.0)
        recorder.caller(seconds(1, 1.0), 0, trio.current_time())

    assert len(read(tmp_path / f"{SID}.wav")[0]) >= 2 * SECOND


@pytest.mark.parametrize(
    "call_sid", ["", "../CA1", "CA/1", "..", ".CA1", "-CA1", "CA\0", "x" * 129]
)
async def test_a_name_that_no_call_has_names_no_file(tmp_path, call_sid):
    async with running(tmp_path) as recordings:
        assert recordings.begin(call_sid, 0.0) is None
        assert recordings.path(call_sid) is None


@pytest.mark.parametrize("call_sid", CALL_NAMES.values(), ids=CALL_NAMES.keys())
async def test_calls_of_every_carrier_are_recorded_and_deleted_when_they_are_old(
    tmp_path, call_sid
):
    async with running(tmp_path) as recordings:
        for part in (1, 2):
            recorder = recordings.begin(call_sid, trio.current_time(), part)
            recorder.caller(seconds(1, 0.1), 0, trio.current_time())
            recordings.end(recorder, trio.current_time() + 0.1)
            with trio.fail_after(60):
                while recordings.path(call_sid, part) is None or recordings._files:  # noqa: ASYNC110
                    await trio.sleep(0.01)
    assert len(list(tmp_path.iterdir())) == 2
    for path in tmp_path.iterdir():
        os.utime(path, (time.time() - 8 * 86_400.0,) * 2)

    async with running(tmp_path, retention_days=7.0):
        with trio.fail_after(60):
            while list(tmp_path.iterdir()):  # noqa: ASYNC110
                await trio.sleep(0.01)


KILLED = """
import sys, time
from pathlib import Path
from server.records.wav_file import WavFile
file = WavFile(Path(sys.argv[1]))
print("writing", flush=True)
while True:
    file.append(bytes(range(256)) * 32, bytes(range(256)) * 32)
"""


def test_the_file_is_whole_whenever_its_writer_is_killed(tmp_path):
    writers = []
    for number in range(5):
        path = tmp_path / f"{number}.wav"
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        writers.append((path, process))
    for number, (_, process) in enumerate(writers):
        with process:
            assert process.stdout.readline() == b"writing\n" or os.name == "nt"
            time.sleep(0.003 * number)
            process.kill()

    block = decode_mulaw(bytes(range(256)) * 32)
    for path, _ in writers:
        left, right = read(path)
        assert left == right == block * (len(left) // len(block))
        # The header may be behind the file by what was being written, never ahead of it.
        assert path.stat().st_size >= 44 + 2 * len(left)
    assert any(len(read(path)[0]) for path, _ in writers)


async def test_a_full_disk_ends_the_recording_which_stays_whole(tmp_path):
    told = []
    async with running(tmp_path) as recordings:
        full = recordings.begin(SID, trio.current_time() - 6.0)
        full.on_stop = told.append
        short = recordings.begin("CA1", trio.current_time() - 1.0)
        with at_most("FSIZE", 100_000):  # to the program, a disk that is full
            full.caller(seconds(1, 2.0), 0, trio.current_time())
            await recordings._write()
            full.caller(seconds(1, 2.0), 2_000, trio.current_time())
            short.caller(seconds(2, 1.0), 0, trio.current_time())
            await recordings._write()
        full.caller(seconds(1, 2.0), 4_000, trio.current_time())

    assert told == ["disk-full"]
    assert full.as_dict() == {
        "state": "stopped",
        "reason": "disk-full",
        "duration_s": 2.0,
        "url": f"/calls/{SID}/recording",
        "parts_at_s": [],
    }
    assert full.take(10.0) == (b"", b"")
    assert read(tmp_path / f"{SID}.wav")[0] == decode_mulaw(seconds(1, 2.0))
    assert short.as_dict()["state"] == "complete"
    assert recordings._metrics.records.recordings_stopped.labels("disk-full")._value.get() == 1


async def test_a_directory_that_cannot_be_made_ends_the_recording(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    async with running(tmp_path / "file" / "recordings") as recordings:
        recorder = recordings.begin(SID, trio.current_time() - 1.0)
        recorder.caller(seconds(1, 1.0), 0, trio.current_time())
        await recordings._write()

    assert recorder.stopped == "disk-error"


async def test_those_who_read_from_a_disk_that_hangs_take_no_thread_of_the_calls(
    tmp_path, monkeypatch
):
    go_on = threading.Event()
    monkeypatch.setattr(Recordings, "path", lambda *_: go_on.wait(60.0) and None)
    many = 5 + int(trio.to_thread.current_default_thread_limiter().total_tokens)
    statuses: list[int] = []

    async def read(server, what: str) -> None:
        statuses.append((await server.http.get(f"/calls/{SID}/{what}")).status_code)

    async with serving(recordings_dir=tmp_path) as server, trio.open_nursery() as nursery:
        for number in range(many):
            nursery.start_soon(read, server, ("recording", "waveform")[number % 2])
        reading = server.service.recordings.reading
        with trio.fail_after(60):
            while reading.statistics().tasks_waiting < many - READERS:  # noqa: ASYNC110
                await trio.sleep(0.01)
            await trio.to_thread.run_sync(list)  # as whoever asks for a name
        go_on.set()

    assert statuses == [404] * many


async def test_what_no_thread_can_write_is_written_by_the_next(tmp_path):
    with trio.fail_after(60):
        async with running(tmp_path) as recordings:
            with no_threads():
                recorder = recordings.begin(SID, trio.current_time() - 1.0)
                recorder.caller(seconds(1, 1.0), 0, trio.current_time())
                recordings.end(recorder, trio.current_time())
                while not recordings._left:  # noqa: ASYNC110
                    await trio.sleep(0.01)

    assert recorder.stopped is None
    assert length_of(tmp_path / f"{SID}.wav") == pytest.approx(recorder.duration_s)


async def test_a_recording_that_no_thread_can_write_for_long_ends_and_is_closed(tmp_path):
    recordings = Recordings(tmp_path, metrics=Metrics(CollectorRegistry()))
    recorder = recordings.begin(SID, trio.current_time() - 1.0)
    recorder.caller(seconds(1, 1.0), 0, trio.current_time())
    await recordings._write()
    were_open = [*recordings._files]
    recordings._refused_at = trio.current_time() - recording.MAX_BUFFER_S
    with no_threads():
        await recordings._write()
    await recordings._write()

    assert recorder.stopped == "error"
    assert (were_open, [*recordings._files]) == ([recorder], [])


async def test_the_last_of_a_recording_is_written_by_whoever_stops_though_there_is_no_thread(
    tmp_path,
):
    with ExitStack() as shortage:
        async with running(tmp_path) as recordings:
            recorder = recordings.begin(SID, trio.current_time() - 1.0)
            recorder.caller(seconds(1, 1.0), 0, trio.current_time())
            shortage.enter_context(no_threads())

    assert length_of(tmp_path / f"{SID}.wav") == pytest.approx(recorder.duration_s)
    assert recorder.duration_s >= 1.0
    assert recorder.stopped is None


async def test_a_disk_that_hangs_ends_the_recordings_and_nobody_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "MAX_BUFFER_S", 0.05)
    hangs = trio.Event()
    answers = []

    def hang(self, caller, agent):
        trio.from_thread.run_sync(hangs.set)
        answers.append(trio.from_thread.run(released.wait))

    released = trio.Event()
    monkeypatch.setattr(WavFile, "append", hang)
    with trio.fail_after(60):
        async with running(tmp_path) as recordings:
            recorder = recordings.begin(SID, trio.current_time() - 1.0)
            recorder.caller(seconds(1, 1.0), 0, trio.current_time())
            await hangs.wait()
            while recorder.stopped is None:  # noqa: ASYNC110
                await trio.sleep(0.01)
            released.set()
            while recordings._files:  # noqa: ASYNC110
                await trio.sleep(0.01)  # the thread sees that it was given up, and closes

    assert recorder.stopped == "disk-too-slow"


async def test_while_a_disk_hangs_each_recording_is_left_once_however_often_it_is_tried(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(recording, "MAX_BUFFER_S", 0.05)
    goes_on = threading.Event()
    monkeypatch.setattr(WavFile, "append", lambda *_: goes_on.wait(60.0))
    recordings = Recordings(tmp_path, metrics=Metrics(CollectorRegistry()))
    left: list[int] = []
    try:
        with trio.fail_after(60):
            for number in range(4):
                recorder = recordings.begin(f"CA{number:032}", trio.current_time() - 1.0)
                recorder.caller(seconds(1, 1.0), 0, trio.current_time())
                recordings.end(recorder, trio.current_time())
                await recordings._write()
                left.append(len(recordings._left))
            unwritten = sum(len(caller) for _, caller, *_ in recordings._left)
    finally:
        goes_on.set()
    with trio.fail_after(60):
        async with recordings._writer:  # the thread is through with what it had
            pass
        await recordings._write()

    assert left == [1, 2, 3, 4]
    assert unwritten == 0  # nobody waits for it any more
    assert (recordings._left, recordings._files) == ([], {})
    assert recorder.stopped == "disk-too-slow"


async def test_a_stop_while_the_last_of_a_recording_is_written_leaves_it_whole(
    tmp_path, monkeypatch
):
    began, goes_on = trio.Event(), threading.Event()
    append = WavFile.append

    def wait_and_append(self, caller: bytes, agent: bytes) -> None:
        trio.from_thread.run_sync(began.set)
        goes_on.wait(60.0)
        append(self, caller, agent)

    monkeypatch.setattr(WavFile, "append", wait_and_append)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            recordings = Recordings(tmp_path, metrics=Metrics(CollectorRegistry()))
            await nursery.start(recordings.run)
            recorder = recordings.begin(SID, trio.current_time() - 1.0)
            recorder.caller(seconds(1, 1.0), 0, trio.current_time())
            recordings.end(recorder, trio.current_time())
            await began.wait()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()  # it waits for the thread, to write what is left
                goes_on.set()

    assert length_of(tmp_path / f"{SID}.wav") == pytest.approx(recorder.duration_s)
    assert recorder.duration_s >= 1.0


async def test_recordings_are_written_while_old_ones_are_looked_for_on_a_slow_disk(
    tmp_path, monkeypatch
):
    looks, goes_on = trio.Event(), threading.Event()

    def look(self, oldest_kept: float) -> None:
        trio.from_thread.run_sync(looks.set)
        goes_on.wait(60.0)

    monkeypatch.setattr(Recordings, "_delete_old", look)
    with trio.fail_after(60):
        async with running(tmp_path, retention_days=7.0) as recordings:
            await looks.wait()
            recorder = recordings.begin(SID, trio.current_time() - 1.0)
            recorder.caller(seconds(1, 1.0), 0, trio.current_time())
            recordings.end(recorder, trio.current_time())
            while not (path := recordings.path(SID)) or not length_of(path):  # noqa: ASYNC110
                await trio.sleep(0.01)
            goes_on.set()


async def test_an_old_recording_that_cannot_be_deleted_is_in_no_others_way(tmp_path):
    paths = [tmp_path / f"CA{digit * 32}.wav" for digit in "123"]
    for path in paths:
        path.write_bytes(b"x") if path is not paths[1] else path.mkdir()
        os.utime(path, (time.time() - 8 * 86_400.0,) * 2)
    with capture_logs() as logs:
        async with running(tmp_path, retention_days=7.0):
            with trio.fail_after(60):
                while paths[0].exists() or paths[2].exists():  # noqa: ASYNC110
                    await trio.sleep(0.01)
                while not logs:  # noqa: ASYNC110
                    await trio.sleep(0.01)

    assert [*tmp_path.iterdir()] == [paths[1]]
    (told,) = [one for one in logs if one["event"] == "old recordings not deleted"]
    assert told["recordings"] == 1


async def test_an_old_recording_that_cannot_be_deleted_leaves_nothing_to_the_garbage_collector(
    tmp_path,
):
    (tmp_path / f"{SID}.wav").mkdir()
    async with running(tmp_path) as recordings:
        with capture_logs() as logs:
            recordings._delete_old(time.time() + 60.0)  # what first uses make stays
            with garbage_kept() as left:
                recordings._delete_old(time.time() + 60.0)

    assert left == []
    assert [one["event"] for one in logs] == ["old recordings not deleted"] * 2


async def test_a_recording_that_cannot_be_begun_leaves_no_file_behind(tmp_path, monkeypatch):
    def fail(self, path: Path) -> None:
        path.write_bytes(b"RIFF")
        raise OSError(errno.ENOSPC, "the disk is full")

    monkeypatch.setattr(WavFile, "_write_all_to", fail)
    async with running(tmp_path) as recordings:
        recorder = recordings.begin(SID, trio.current_time() - 1.0)
        recorder.caller(seconds(1, 1.0), 0, trio.current_time())
        recordings.end(recorder, trio.current_time())
        with trio.fail_after(60):
            while recorder.stopped is None:  # noqa: ASYNC110
                await trio.sleep(0.01)

    assert recorder.stopped == "disk-full"
    assert [*tmp_path.iterdir()] == []


async def test_old_recordings_of_ours_are_deleted_and_nothing_else(tmp_path):
    ours = [tmp_path / f"{SID}.wav", tmp_path / f"{SID}-phone.wav", tmp_path / f"{SID}.part"]
    young = tmp_path / f"CA{'1' * 32}.wav"
    theirs = ("holiday.wav", "CA1.wav", f"{SID}.txt", "1732900000.5.wav", "offhook.wav")
    not_ours = [tmp_path / name for name in theirs]
    for path in (*ours, young, *not_ours):
        path.write_bytes(b"x")
        if path is not young:
            os.utime(path, (time.time() - 8 * 86_400.0,) * 2)
    async with running(tmp_path, retention_days=7.0):
        with trio.fail_after(60):
            while any(path.exists() for path in ours):  # noqa: ASYNC110
                await trio.sleep(0.01)

    assert sorted(tmp_path.iterdir()) == sorted([young, *not_ours])


# ------------------------------------------------------------------------------------------
# In a call


async def test_a_call_is_recorded_as_the_callee_heard_it(autojump_clock, tmp_path):
    np = pytest.importorskip("numpy")
    recordings = Recordings(tmp_path, metrics=Metrics(CollectorRegistry()))
    async with calling(callee="interrupts") as rig:
        rig.call._recordings = recordings
        await rig.over()
    recorder = rig.call.conversation.passing.recorder
    sides = recorder.take(trio.current_time())
    left, right, said, heard = (
        np.frombuffer(decode_mulaw(side), "<i2").astype(float)
        for side in (*sides, rig.phone.said, rig.phone.heard)
    )

    def envelope(samples):
        frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
        return np.sqrt((frames**2).mean(axis=1))

    def likeness(delay: int) -> float:
        """Of what was recorded and what was heard, so many frames apart."""
        ours, theirs = envelope(right)[max(0, delay) :], envelope(heard)[max(0, -delay) :]
        size = min(len(ours), len(theirs))
        return float(np.corrcoef(ours[:size], theirs[:size])[0, 1])

    assert rig.call.record().as_dict()["recording"]["duration_s"] == pytest.approx(
        rig.call.duration_s
    )
    # The caller is there to the sample, the agent to the frame: the phone plays whole ones.
    assert np.array_equal(left[: len(said)], said[: len(left)])
    assert abs(len(left) - len(said)) < 0.1 * SECOND
    assert max(likeness(delay) for delay in (-2, -1, 0, 1, 2)) > 0.98


@pytest.mark.parametrize("media_path", ["fast", "ordinary"])
async def test_a_call_over_sockets_is_recorded_whole_on_either_path(
    tmp_path, media_path, patient_clock
):
    async with serving(
        recordings_dir=tmp_path, media_path=media_path, greeting_protect_s=0
    ) as server:
        call_sid = (await server.make_call("5550103")).json()["call_sid"]
        call = server.service.calls.register.get_live(call_sid)
        with trio.fail_after(60):
            record = await server.finished(call_sid)
            while server.service.recordings._files:  # noqa: ASYNC110
                await trio.sleep(0.01)
        phone = server.twilio.calls[call_sid]
        passed_bytes = call.conversation.passing.path.caller_sent_bytes
    samples = array("h", (tmp_path / f"{call_sid}.wav").read_bytes()[44:])
    caller, agent = samples[0::2], samples[1::2]
    said = array("h", decode_mulaw(phone.said))
    heard = array("h", decode_mulaw(phone.heard))
    audible_s = [sum(abs(one) > 500 for one in side) / SECOND for side in (agent, heard)]

    assert (passed_bytes > 0) == (media_path == "fast")
    assert caller[: len(said)] == said[: len(caller)]
    assert abs(len(caller) - len(said)) < 0.2 * SECOND
    assert audible_s[0] == pytest.approx(audible_s[1], rel=0.1)
    assert record["recording"]["duration_s"] == pytest.approx(len(caller) / SECOND, abs=0.2)


async def test_a_full_disk_does_not_end_the_call(tmp_path, monkeypatch, fast_clock):
    def fail(self, caller, agent):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(WavFile, "append", fail)
    async with serving(recordings_dir=tmp_path) as server:
        call_sid = (await server.make_call("5550103")).json()["call_sid"]
        call = server.service.calls.register.get(call_sid)
        with trio.fail_after(60):
            await call.finished.wait()
            while call.conversation.passing.recorder.stopped is None:  # noqa: ASYNC110
                await trio.sleep(0.01)
        record = (await server.http.get(f"/calls/{call_sid}")).json()

    assert record["reason"] == "caller-hung-up"
    assert record["recording"]["reason"] == "disk-full"
    assert "recording stopped" in [moment["what"] for moment in record["timeline"]]
    assert record["had_trouble"]
    assert (tmp_path / f"{call_sid}.wav").read_bytes()[40:44] == bytes(4)


async def test_a_recording_is_fetched_whole_or_in_part_with_the_key(tmp_path, fast_clock):
    async with serving(recordings_dir=tmp_path, api_key="sesame") as server:
        unknown = await server.http.get(f"/calls/{SID}/recording")
        server.http.headers["Authorization"] = "Bearer sesame"
        call_sid = (await server.make_call("5550103")).json()["call_sid"]
        with trio.fail_after(60):
            await server.finished(call_sid)
            content = b""
            while content[40:44] in (b"", bytes(4)):
                await trio.sleep(0.05)
                content = (tmp_path / f"{call_sid}.wav").read_bytes()
        where = f"/calls/{call_sid}/recording"
        whole = await server.http.get(where)
        part = await server.http.get(where, headers={"Range": "bytes=44-1043"})
        beyond = await server.http.get(where, headers={"Range": "bytes=999999999-"})
        none = await server.http.get("/calls/CAunknown/recording")
        drawn = await server.http.get(f"/calls/{call_sid}/waveform?points=100")
        never_drawn = await server.http.get("/calls/CAunknown/waveform")
        too_fine = await server.http.get(f"/calls/{call_sid}/waveform?points=100000")
        server.http.headers.pop("Authorization")
        no_key = await server.http.get(f"/calls/{call_sid}/waveform")

    statuses = [answer.status_code for answer in (drawn, never_drawn, too_fine, no_key)]
    assert statuses == [200, 404, 422, 401]
    assert 50 < drawn.json()["length"] <= 100
    assert max(drawn.json()["data"]) > 10
    assert drawn.headers["Cache-Control"] == "no-store"
    assert unknown.status_code == 401
    assert whole.status_code == 200
    assert whole.headers["Content-Type"] == "audio/wav"
    assert whole.headers["Accept-Ranges"] == "bytes"
    assert "no-store" in whole.headers["Cache-Control"]
    assert whole.content == content
    assert part.status_code == 206
    assert part.headers["Content-Range"] == f"bytes 44-1043/{len(content)}"
    assert part.content == content[44:1044]
    assert beyond.status_code == 416
    assert none.status_code == 404


@asynccontextmanager
async def fetching(directory: Path):
    """A recording of a thousand bytes, and what asks a server for a range of it."""
    path = directory / f"{SID}.wav"
    path.write_bytes(bytes(index % 251 for index in range(1000)))
    async with serving(recordings_dir=directory) as server:

        async def fetch(wanted: str, method: str = "GET") -> httpx2.Response:
            where, headers = f"/calls/{SID}/recording", {"Range": wanted}
            return await server.http.request(method, where, headers=headers)

        with trio.fail_after(60):
            yield path, fetch


async def test_a_range_of_a_recording_ends_where_the_recording_does(tmp_path):
    ranges = {
        "bytes=0-1048575": (0, 999),  # a player asks for so much, however much there is
        "bytes=900-1000": (900, 999),
        "bytes=900-": (900, 999),
        "bytes=999-5000": (999, 999),
        "bytes=-500": (500, 999),
        "bytes=-1000": (0, 999),
        "bytes=-5000": (0, 999),  # RFC 9110, 14.1.2: then all of it is meant
        "bytes=44-99": (44, 99),
    }
    async with fetching(tmp_path) as (path, fetch):
        answers = {wanted: await fetch(wanted) for wanted in ranges}
    content = path.read_bytes()

    for wanted, (first, last) in ranges.items():
        answer = answers[wanted]
        assert answer.status_code == 206, wanted
        assert answer.headers["Content-Range"] == f"bytes {first}-{last}/1000", wanted
        assert answer.content == content[first : last + 1], wanted


async def test_a_range_that_is_not_there_or_cannot_be_read_is_refused(tmp_path):
    beyond = ["bytes=1000-66535", "bytes=1000-", "bytes=2000-2001"]
    unreadable = ["bytes=-0", "bytes=x-", "bytes=5-2", "-"]
    async with fetching(tmp_path) as (path, fetch):
        answers = {wanted: await fetch(wanted) for wanted in beyond + unreadable}
        path.write_bytes(b"")
        empty = await fetch("bytes=-500")  # there is no range of nothing: all of it

    for wanted, answer in answers.items():
        assert answer.status_code == 416, wanted
        assert answer.headers["Content-Range"] == "bytes */1000", wanted
    assert (empty.status_code, empty.content) == (200, b"")


async def test_whoever_asks_for_several_ranges_or_in_another_unit_gets_all(tmp_path):
    several = ["bytes=0-1,5-6", "bytes=0-1, -5", "bytes=5-6,0-1", "bytes=0-5,3-8"]
    several += ["pages=1-2", "pages=x"]
    async with fetching(tmp_path) as (path, fetch):
        answers = [await fetch(wanted) for wanted in several]
        head = await fetch("bytes=0-1", "HEAD")
        beyond = await fetch("bytes=1000-", "HEAD")

    assert [answer.status_code for answer in answers] == [200] * len(several)
    assert all(answer.content == path.read_bytes() for answer in answers)
    for answer in (head, beyond):
        assert (answer.status_code, answer.headers["Content-Length"]) == (200, "1000")
        assert "Content-Range" not in answer.headers


async def test_a_range_of_a_recording_that_grows_or_goes_is_of_what_there_was(
    tmp_path, monkeypatch
):
    open_it, find = RecordingBody._open, Recordings.path

    def grow_first(body: RecordingBody) -> None:
        with path.open("ab") as file:
            file.write(bytes(500))
        open_it(body)

    def delete_then(*whose: object) -> Path | None:
        found = find(*whose)
        path.unlink()
        return found

    async with fetching(tmp_path) as (path, fetch):
        monkeypatch.setattr(RecordingBody, "_open", grow_first)
        grown = [await fetch(wanted) for wanted in ("bytes=900-5000", "bytes=-100")]
        monkeypatch.setattr(Recordings, "path", delete_then)
        gone = await fetch("bytes=0-")

    assert [answer.status_code for answer in grown] == [206, 206]
    ranges = [answer.headers["Content-Range"] for answer in grown]
    assert ranges == ["bytes 900-999/1000", "bytes 1400-1499/1500"]
    assert [len(answer.content) for answer in grown] == [100, 100]
    assert gone.status_code == 404


async def test_without_a_directory_nothing_is_recorded(fast_clock):
    async with serving() as server:
        call_sid = (await server.make_call("5550104")).json()["call_sid"]
        with trio.fail_after(60):
            record = await server.finished(call_sid)
        answer = await server.http.get(f"/calls/{call_sid}/recording")

    assert record["recording"] is None
    assert answer.status_code == 404


def test_each_process_that_has_had_a_call_makes_a_recording_of_its_own():
    first, third = Recorder(SID, 0.0), Recorder(SID, 0.0, part=3)
    url = f"/calls/{SID}/recording"
    first.parts_at_s, third.parts_at_s = (1.5,), (1.5, None, 60.0)

    assert "parts" not in first.as_dict()
    assert first.as_dict()["parts_at_s"] == [1.5]
    assert third.as_dict()["parts_at_s"] == [1.5, None, 60.0]
    assert third.as_dict()["url"] == f"{url}?part=3"
    assert third.as_dict()["parts"] == [url, f"{url}?part=2", f"{url}?part=3"]


async def test_a_later_part_is_a_file_beside_the_first(tmp_path):
    for part in (1, 2):
        recordings = Recordings(tmp_path, metrics=Metrics(CollectorRegistry()))
        async with trio.open_nursery() as nursery:
            await nursery.start(recordings.run)
            recorder = recordings.begin(SID, trio.current_time(), part)
            recorder.caller(bytes(160), 0, trio.current_time())
            nursery.cancel_scope.cancel()  # what is left is written then

    assert recordings.path(SID) == tmp_path / f"{SID}.wav"
    assert recordings.path(SID, 2) == tmp_path / f"{SID}.2.wav"
    assert recordings.path(SID, 3) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a file that takes long to open")
async def test_it_is_closed_when_its_client_leaves_while_it_is_opened(tmp_path, nursery):
    path = tmp_path / "recording.wav"
    os.mkfifo(path)
    body, left = RecordingBody(path, trio.CapacityLimiter(1)), trio.Event()

    async def open_it() -> None:
        with trio.CancelScope() as scope:
            nursery.start_soon(leave, scope)
            async with body:
                await trio.sleep_forever()
        left.set()

    async def leave(scope: trio.CancelScope) -> None:
        await wait_all_tasks_blocked()
        scope.cancel()

    with trio.fail_after(60):
        await open_it()  # and nobody waits for the disk
        await left.wait()
        with await trio.to_thread.run_sync(path.open, "wb"):  # which lets it be opened
            while body._opened is None or not body._opened.closed:  # noqa: ASYNC110
                await trio.sleep(0.01)


async def test_whoever_stops_does_not_wait_for_a_disk_that_hangs(tmp_path, nursery, monkeypatch):
    monkeypatch.setattr(calls_api, "CLOSE_TIMEOUT_S", 0.05)
    path = tmp_path / "recording.wav"
    path.write_bytes(bytes(SECOND))
    body = RecordingBody(path, trio.CapacityLimiter(1))
    hangs, goes_on, is_over = trio.Event(), threading.Event(), trio.Event()
    read_it = body._read

    def hang() -> bytes:
        trio.from_thread.run_sync(hangs.set)
        goes_on.wait(60.0)
        return read_it()

    monkeypatch.setattr(body, "_read", hang)

    async def read(task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            async with body:
                task_status.started(scope)
                await body.__anext__()
        is_over.set()

    with trio.fail_after(60):
        scope = await nursery.start(read)
        await hangs.wait()
        scope.cancel()
        await is_over.wait()
        goes_on.set()
        while not body._opened.closed:  # noqa: ASYNC110
            await trio.sleep(0.01)
