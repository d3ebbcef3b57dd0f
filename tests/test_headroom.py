"""What the system says of this process, read from files of our own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.headroom import (
    NO_LIMIT_BYTES,
    busy_s,
    lowest_free_descriptor,
    memory_state,
    own_limits,
)

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
MIB = 1024 * 1024


@pytest.fixture
def proc(tmp_path) -> Path:
    """A process of 300 MiB of address space, 100 of data and 50 in RAM; 1000 MiB are available."""
    own = tmp_path / "proc" / "self"
    own.mkdir(parents=True)
    pages = [300 * MIB // PAGE, 50 * MIB // PAGE, 0, 0, 0, 100 * MIB // PAGE, 0]
    (own / "statm").write_text(" ".join(map(str, pages)) + "\n")
    (own.parent / "meminfo").write_text(
        "MemTotal:  9 kB\nMemFree: 1 kB\nMemAvailable:   1024000 kB\n"
    )
    (own / "cgroup").write_text("0::/\n")
    return tmp_path / "proc"


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def left_mib(proc: Path, cgroups: Path, **limits: int) -> tuple[int, str]:
    state = memory_state(proc, cgroups, limits)
    assert state is not None
    assert state.used_bytes == 50 * MIB
    return state.left_bytes // MIB, state.limit


def test_without_a_limit_it_is_what_the_system_has(proc, tmp_path):
    assert left_mib(proc, tmp_path / "none") == (1000, "system")


def test_the_tightest_cgroup_counts_be_it_ours_or_one_above(proc, tmp_path):
    (proc / "self" / "cgroup").write_text("0::/pod/container\n")
    own = tmp_path / "cgroups" / "pod" / "container"
    write(own, memory__max=400 * MIB, memory__current=100 * MIB)
    assert left_mib(proc, tmp_path / "cgroups") == (300, "cgroup")

    write(own.parent, memory__max=500 * MIB, memory__current=450 * MIB)
    assert left_mib(proc, tmp_path / "cgroups") == (50, "cgroup")

    write(own.parent, memory__max="max")
    assert left_mib(proc, tmp_path / "cgroups") == (300, "cgroup")


def test_where_a_cgroup_is_held_up_is_a_limit_as_where_it_is_ended(proc, tmp_path):
    own = tmp_path / "cgroups"
    write(own, memory__max="max", memory__high=300 * MIB, memory__current=100 * MIB)
    assert left_mib(proc, own) == (200, "cgroup")

    write(own, memory__max=250 * MIB)
    assert left_mib(proc, own) == (150, "cgroup")

    write(own, memory__high=90 * MIB)
    assert left_mib(proc, own) == (0, "cgroup")


def test_files_that_nobody_reads_are_not_used_memory(proc, tmp_path):
    write(
        tmp_path / "cgroups",
        memory__max=400 * MIB,
        memory__current=390 * MIB,
        memory__stat=f"anon 1\ninactive_file {200 * MIB}\nactive_file 5",
    )

    assert left_mib(proc, tmp_path / "cgroups") == (210, "cgroup")


def test_a_container_that_sees_its_cgroup_as_the_root_is_found(proc, tmp_path):
    (proc / "self" / "cgroup").write_text("0::/../docker/abc\n")
    write(tmp_path / "cgroups", memory__max=400 * MIB, memory__current=100 * MIB)

    assert left_mib(proc, tmp_path / "cgroups") == (300, "cgroup")


def test_the_first_version_of_cgroups_has_files_of_other_names(proc, tmp_path):
    (proc / "self" / "cgroup").write_text("4:cpu,memory:/a\n3:cpuset:/b\n0::/\n")
    top = tmp_path / "cgroups" / "memory"
    write(
        top / "a",
        memory__limit_in_bytes=200 * MIB,
        memory__usage_in_bytes=150 * MIB,
        memory__stat=f"total_inactive_file {10 * MIB}",
    )
    write(top, memory__limit_in_bytes=NO_LIMIT_BYTES * 7, memory__usage_in_bytes=1)

    assert left_mib(proc, tmp_path / "cgroups") == (60, "cgroup")


def test_a_limit_of_the_process_counts_for_what_it_is_about(proc, tmp_path):
    nowhere = tmp_path / "none"

    assert left_mib(proc, nowhere, **{"as": 310 * MIB}) == (10, "process")
    assert left_mib(proc, nowhere, data=120 * MIB) == (20, "process")
    assert left_mib(proc, nowhere, data=90 * MIB) == (0, "process")


def test_where_the_system_says_nothing_nothing_is_known(tmp_path):
    assert memory_state(tmp_path) is None


def test_time_that_was_waited_for_a_core_is_busy_time(tmp_path):
    write(tmp_path / "thread-self", schedstat="1500000000 500000000 7")

    assert busy_s(tmp_path) == 2.0
    assert 0.0 < busy_s(tmp_path / "none") < 10_000.0


def test_this_system_can_be_asked():
    assert busy_s() > 0.0
    assert all(limit > 0 for limit in own_limits().values())
    first = lowest_free_descriptor()
    assert first is not None
    with Path(os.devnull).open():
        second = lowest_free_descriptor()
    assert second is not None
    assert second > first
