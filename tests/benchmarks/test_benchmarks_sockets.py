"""The ways to serve sockets that are compared, and what follows from the figures."""

from __future__ import annotations

import sys

import pytest

from benchmarks.sockets import (
    KERNEL_SHARE,
    WAYS,
    WORTH_IT,
    CannotMeasure,
    build,
    conclusion,
    pass_on,
    row_of,
    saved_of_the_whole,
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    try:
        return build(tmp_path_factory.mktemp("passes"))
    except CannotMeasure as missing:
        if "does not compile" in str(missing):
            raise
        pytest.skip(str(missing))


def rounds_of(*cpu_us):
    rest = {"wakeups_per_s": 900.0, "messages_per_s": 2000.0, "passes_per_s": 1000.0}
    return [{"cpu_us": each, "p50_us": 1, "p99_us": 2, "p999_us": 3} | rest for each in cpu_us]


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="epoll and io_uring are Linux's")
@pytest.mark.parametrize("way", WAYS)
def test_every_message_of_four_calls_comes_out_whole(built, way):
    if way not in built.ways:
        pytest.skip(built.missing)

    found = pass_on(built.program, way, calls=4, seconds=0.3, work_us=0.0, cores=None)

    assert found["sent"] >= 4 * 40  # or it raises: something is missing, or broken
    assert found["variant"] == way


def test_a_way_is_compared_round_by_round_without_the_time_that_stands_for_the_codec():
    first, other = rounds_of(10.0, 30.0, 12.0), rounds_of(9.0, 19.0, 9.0)

    row = row_of("edge", other, first, work_us=8.0)

    assert (row.cpu_us, row.ratio, row.lowest, row.highest) == (1.0, 0.5, 0.25, 0.5)
    assert row.per_pass == 2.0


def test_a_way_is_worth_it_only_if_it_saves_enough_of_the_whole_with_any_number_of_calls():
    first = rounds_of(10.0)
    enough = 10.0 * (1 - (WORTH_IT + 0.01) / KERNEL_SHARE)
    cheap, dear = (row_of("uring", rounds_of(us), first, work_us=0.0) for us in (enough, 9.0))
    as_now = row_of("level", first, first, work_us=0.0)

    (good,) = conclusion({100: [as_now, cheap], 300: [as_now, cheap]}, KERNEL_SHARE)
    (bad,) = conclusion({100: [as_now, cheap], 300: [as_now, dear]}, KERNEL_SHARE)

    assert good.startswith("io_uring: +21% at 100 calls, +21% at 300 calls")
    assert good.endswith(": worth it")
    assert bad.endswith(": not worth it")
    assert saved_of_the_whole(1.0, KERNEL_SHARE) == 0.0


def test_rounds_that_differ_decide_nothing():
    first = rounds_of(10.0, 10.0, 10.0)
    as_now = row_of("level", first, first, work_us=0.0)
    either = row_of("edge", rounds_of(1.0, 2.0, 30.0), first, work_us=0.0)

    (line,) = conclusion({100: [as_now, either]}, KERNEL_SHARE)

    assert line.endswith(": not decided, as rounds differ")
