"""Output that nobody reads, that is read late, or that goes nowhere, holds nobody up."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from server.logs import output
from server.logs.output import LINE_BYTES, Queue
from tests.support.processes import server_process

pytestmark = [
    pytest.mark.sockets,
    pytest.mark.skipif(os.name != "posix", reason="pipes that are polled"),
]
ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def fill(fd: int) -> None:
    """Write to a pipe until it takes no more, however little."""
    os.set_blocking(fd, False)
    for size in (65536, 4096, 1):
        while True:
            try:
                os.write(fd, b"x" * size)
            except BlockingIOError:
                break
    os.set_blocking(fd, True)


def read_until(fd: int, end: bytes) -> bytes:
    found, give_up_at = b"", time.monotonic() + PATIENCE_S
    while end not in found and time.monotonic() < give_up_at:
        if select.select([fd], [], [], 1.0)[0]:
            found += os.read(fd, 65536)
    return found.lstrip(b"x")


# ------------------------------------------------------------------------------------------
# The queue


def test_lines_keep_their_order_and_none_is_missing(pipe):
    queue = Queue()
    for number in range(2_000):
        queue.put(pipe[1], b"%d\n" % number)
    queue.put(pipe[1], b"end")

    assert read_until(pipe[0], b"end").split() == [b"%d" % n for n in range(2_000)] + [b"end"]
    assert queue.dropped == 0


def test_what_finds_no_room_is_counted_and_said_in_its_place(pipe, monkeypatch):
    monkeypatch.setattr(output, "MAX_QUEUED_BYTES", 10 * (LINE_BYTES + 3))
    monkeypatch.setattr(output, "ROOM_AGAIN_BYTES", 5 * (LINE_BYTES + 3))
    fill(pipe[1])
    queue = Queue()

    for number in range(25):
        queue.put(pipe[1], b"%02d\n" % number)
    assert queue.dropped == 15
    found = read_until(pipe[0], b"dropped\n")
    queue.put(pipe[1], b"after\n")
    found += read_until(pipe[0], b"after\n")

    lines = found.decode().splitlines()
    assert lines[:10] == [f"{number:02d}" for number in range(10)]
    assert lines[10:] == ["offhook: 15 lines of output dropped", "after"]


def test_a_reader_that_is_slow_sees_gaps_and_not_every_second_line(pipe, monkeypatch):
    monkeypatch.setattr(output, "MAX_QUEUED_BYTES", 100 * (LINE_BYTES + 4))
    monkeypatch.setattr(output, "ROOM_AGAIN_BYTES", 50 * (LINE_BYTES + 4))
    fill(pipe[1])
    queue = Queue()
    put, found = 0, b""
    for _ in range(30):
        for _ in range(300):
            queue.put(pipe[1], b"%03d\n" % (put % 1000))
            put += 1
        found += os.read(pipe[0], 4096)
    done = queue.mark()
    while not done.is_set():
        found += os.read(pipe[0], 4096) if select.select([pipe[0]], [], [], 0.01)[0] else b""
    queue.put(pipe[1], b"end\n")
    text = (found + read_until(pipe[0], b"end\n")).lstrip(b"x").decode()

    said = [int(number) for number in re.findall(r"offhook: (\d+) lines", text)]
    assert sum(said) == queue.dropped > 0
    assert len(re.findall(r"^\d{3}$", text, re.M)) + sum(said) == put
    assert len(said) < 40


def test_a_file_that_takes_nothing_costs_lines_and_says_so_when_it_does_again(tmp_path):
    path = tmp_path / "log"
    fd = os.open(path, os.O_CREAT | os.O_RDONLY)  # EBADF for each write
    queue = Queue()
    queue.put(fd, b"one\ntwo\n")
    assert queue.mark().wait(PATIENCE_S)
    lost = queue.dropped
    os.dup2(works := os.open(path, os.O_WRONLY), fd)

    queue.put(fd, b"three\n")
    assert queue.mark().wait(PATIENCE_S)

    os.close(fd)
    os.close(works)
    assert lost == 2
    assert path.read_text() == "three\noffhook: 2 lines of output dropped\n"


def test_a_reader_that_has_gone_costs_lines_only():
    read, write = os.pipe()
    os.close(read)
    queue = Queue()
    for _ in range(100):
        queue.put(write, b"line\n")
    assert queue.mark().wait(PATIENCE_S)
    os.close(write)

    assert queue.dropped == 100


def test_a_descriptor_that_somebody_made_non_blocking_gets_everything(pipe):
    os.set_blocking(pipe[1], False)
    queue = Queue()
    line = b"y" * 9_999 + b"\n"
    for _ in range(20):
        queue.put(pipe[1], line)
    queue.put(pipe[1], b"end")

    assert read_until(pipe[0], b"end") == 20 * line + b"end"


def test_a_queue_that_was_closed_writes_what_it_can_without_waiting(pipe):
    queue = Queue()
    queue.close(hangs=False)
    queue.put(pipe[1], b"late\n")
    assert os.read(pipe[0], 100) == b"late\n"

    fill(pipe[1])
    queue.put(pipe[1], b"too late\n")
    assert queue.dropped == 1


def test_a_formatter_that_fails_does_not_end_the_thread(tmp_path):
    fd = os.open(tmp_path / "log", os.O_CREAT | os.O_RDONLY)
    queue = Queue()
    queue.say_dropped = lambda lines: str(1 // 0)
    queue.put(fd, b"lost\n")
    assert queue.mark().wait(PATIENCE_S)
    os.dup2(works := os.open(tmp_path / "log", os.O_WRONLY), fd)
    queue.put(fd, b"written\n")
    assert queue.mark().wait(PATIENCE_S)
    os.close(fd)
    os.close(works)

    assert (tmp_path / "log").read_text() == "written\noffhook: 1 lines of output dropped\n"


def test_threads_that_write_at_once_lose_nothing(pipe):
    queue = Queue()

    def write(name: int) -> None:
        for number in range(500):
            queue.put(pipe[1], b"%d %d\n" % (name, number))

    threads = [threading.Thread(target=write, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    found, give_up_at = b"", time.monotonic() + PATIENCE_S
    while found.count(b"\n") < 4_000 and time.monotonic() < give_up_at:
        found += os.read(pipe[0], 65536)
    for thread in threads:
        thread.join()

    lines = [tuple(map(int, line.split())) for line in found.splitlines()]
    for name in range(8):
        assert [number for who, number in lines if who == name] == list(range(500))


# ------------------------------------------------------------------------------------------
# A process


IMPATIENT = "output.EXIT_TIMEOUT_S = 0.1"
"""For a process whose output nobody reads: there is nothing to wait for at its end."""


def run(code: str, **options) -> subprocess.Popen[bytes]:
    code = f"from server import logs\nfrom server.logs import output\noutput.take_over()\n{code}"
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **options)


def test_everything_that_python_writes_comes_out_in_order():
    code = """
import logging, os, sys, warnings
logs.configure(json=True)
print("printed")
logging.getLogger("x").warning("logged")
sys.stdout.write("a part")
sys.stdout.buffer.write(b"")
print(" and the rest")
sys.stderr.buffer.write(b"bytes\\n")
warnings.warn("warned to +15005550123")
class Late:
    def __del__(self): print("finalized")
late = Late(); late.itself = late
if os.fork() == 0:
    print("child"); sys.exit()
os.wait()
raise SystemExit("the end")
"""
    process = run(code, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    lines = process.communicate(timeout=PATIENCE_S)[0].decode().splitlines()

    assert process.returncode == 1
    assert lines.index("child") < lines.index("the end")
    lines.remove("child")  # which has a queue of its own, and may be ahead of its parent's
    assert lines[0] == "printed"
    assert json.loads(lines[1])["event"] == "logged"
    assert lines[2:4] == ["a part and the rest", "bytes"]
    assert "warned to +15*******23" in json.loads(lines[4])["event"]
    assert "finalized" in lines


@pytest.mark.parametrize("end", ["raise SystemExit('x')", "1 / 0", "output.drain(); os._exit(1)"])
def test_a_process_ends_though_nobody_reads_it(pipe, end):
    fill(pipe[1])
    code = f"import os, sys\nfor n in range(100_000): print(n)\nprint('!', file=sys.stderr)\n{end}"
    process = run(f"{IMPATIENT}\n{code}", stdout=pipe[1], stderr=pipe[1])

    assert process.wait(PATIENCE_S) == 1


def test_streams_are_as_programs_expect_them(pipe):
    code = """
import sys, logging
print(sys.stdout.fileno(), sys.stderr.fileno(), sys.stdout.isatty(), sys.stderr.name,
      sys.stdout.encoding, sys.stderr.errors, sys.stderr is sys.__stderr__)
sys.stdout.close()
sys.stdout.reconfigure(encoding="latin-1", errors="replace")
print("ñandú \\u4e00")
"""
    process = run(code, stdout=subprocess.PIPE, env={**os.environ, "PYTHONUTF8": "1"})
    out = process.communicate(timeout=PATIENCE_S)[0]

    assert out == b"1 2 False <stderr> utf-8 backslashreplace True\n\xf1and\xfa ?\n"


def test_a_handler_that_has_the_old_stream_gets_the_new_one(pipe):
    fill(pipe[1])
    code = f"""
import logging, sys
log = logging.getLogger("old")
log.addHandler(logging.StreamHandler(sys.stderr))
from server.logs import output
{IMPATIENT}
output.take_over()
for n in range(100_000): log.error("line")
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=pipe[1])

    assert process.wait(PATIENCE_S) == 0


def test_a_log_says_how_many_of_its_lines_are_missing(pipe):
    fill(pipe[1])
    code = """
import logging, sys
from prometheus_client import CollectorRegistry, generate_latest
from server.metrics import Metrics
logs.configure(json=True)
for _ in range(20_000): logging.getLogger("x").warning("a line to +15005550123 of some length")
print(generate_latest(Metrics(CollectorRegistry()).registry).decode(), flush=True)
sys.stdin.read()
logging.getLogger("x").warning("after")
"""
    process = run(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=pipe[1])
    while b"lines_dropped_total" not in (line := process.stdout.readline()) or b"#" in line:
        assert process.poll() is None
    counted = float(line.split()[1])
    found = read_until(pipe[0], b"log lines dropped")
    process.communicate(b"", timeout=PATIENCE_S)
    while select.select([pipe[0]], [], [], 0.0)[0]:
        found += os.read(pipe[0], 4096)

    lines = [json.loads(line) for line in found.decode().splitlines()]
    assert process.returncode == 0
    assert [line["event"] for line in lines[-2:]] == [
        "log lines dropped: whoever reads them is too slow", "after",
    ]  # fmt: skip
    assert lines[-2]["lines"] == counted > 0
    assert len(lines) - 2 + counted == 20_000
    assert b"5550123" not in found


# ------------------------------------------------------------------------------------------
# A server


@contextmanager
def unread_pipe() -> Iterator[int]:
    """A pipe that is full already: the first line finds no room."""
    read, write = os.pipe()
    fill(write)
    try:
        yield write
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["python -m server", "hypercorn -w"])
async def test_a_server_whose_output_nobody_reads_serves_and_stops(command, tmp_path):
    with unread_pipe() as write:
        async with server_process(tmp_path, command, output=write, log_level="DEBUG") as server:
            call = await server.talking_call()
            for _ in range(300):
                answer = await server.http.get("/healthz")
                assert answer.is_success
            heard = len(call.phone.heard)
            await server.http.get("/calls")
            while len(call.phone.heard) == heard:  # noqa: ASYNC110
                await trio.sleep(0.05)
            server.tell_to_stop()
            await call.wait_ended()
            status = await server.process.wait()

    assert status == 0


def test_a_process_that_was_given_no_output_writes_nowhere_and_no_file_becomes_its_output():
    script = """
import os, sys
os.close(1)
os.close(2)
sys.stdout = sys.stderr = None
from server import logs
from server.logs import output
output.take_over()
logs.configure()
print("to nobody")
taken = os.open("/dev/zero", os.O_RDONLY)
os._exit(0 if taken > 2 and sys.stderr is not None else 1)
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)

    assert ended.returncode == 0
