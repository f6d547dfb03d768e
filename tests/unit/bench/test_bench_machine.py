"""What is read from the machine."""

from __future__ import annotations

import pytest

from bench import machine, memory
from bench.machine import Cores, CpuTimes, MachineError

PROC_STAT = """\
cpu  300 0 100 1000 10 5 5 0 0 0
cpu0 200 1 50 500 4 2 3 6 7 7
cpu1 100 0 50 500 6 3 2 0 0 0
intr 1
"""


def test_cpu_times_of_one_processor() -> None:
    assert machine.parse_cpu_times(PROC_STAT, 0) == CpuTimes(busy=262, total=766, processes=257)
    with pytest.raises(MachineError, match="processor 7"):
        machine.parse_cpu_times(PROC_STAT, 7)


def test_shares_between_two_readings() -> None:
    before, after = CpuTimes(100, 1000, 90), CpuTimes(190, 1100, 160)
    assert machine.busy_share(before, after) == 0.9
    assert machine.others_share(before, after, own_jiffies=50) == 0.2
    assert machine.others_share(before, after, own_jiffies=71) == 0.0
    assert machine.busy_share(before, before) == machine.others_share(before, before, 0) == 0.0


def test_two_threads_of_one_core_are_not_two_cores() -> None:
    siblings = {0: frozenset({0, 2}), 1: frozenset({1, 3}), 2: frozenset({0, 2}), 3: frozenset({1, 3})}
    assert machine.choose_cores([0, 1, 2, 3], siblings) == Cores(load=0, proxy=3)
    assert machine.choose_cores([0, 1], {}) == Cores(load=0, proxy=1)
    with pytest.raises(MachineError, match=r"\[0, 2\]"):
        machine.choose_cores([0, 2], siblings)
    with pytest.raises(MachineError, match="two cores"):
        machine.choose_cores([3], {})


@pytest.mark.parametrize(("text", "cpus"), [("0\n", {0}), ("0-2,8\n", {0, 1, 2, 8}), ("1,3", {1, 3})])
def test_cpu_list(text: str, cpus: set[int]) -> None:
    assert machine.parse_cpu_list(text) == cpus


def mapping(start: int, name: str, inode: int, rss: int, pss: int, anonymous: int) -> str:
    return (
        f"{start:012x}-{start + 0x1000:012x} r-xp 00002000 fd:01 {inode} {name}\n"
        f"Size: 999 kB\nRss: {rss} kB\nPss: {pss} kB\nPss_Dirty: 1 kB\nAnonymous: {anonymous} kB\nVmFlags: rd ex\n"
    )


def test_smaps_of_one_process() -> None:
    text = mapping(0x1000, "/usr/bin/x", 77, 400, 100, 0) + mapping(0x9000, "", 0, 300, 150, 300)
    program, heap = memory.parse_smaps(text)
    assert program.key == ("fd:01", 77, 0x2000)
    assert (program.rss, program.pss, program.anonymous) == (400, 100, 0)
    assert heap.key is None
    assert heap.pss == 150


def test_a_file_counts_once_and_whole_for_a_group() -> None:
    program = mapping(0x1000, "/usr/bin/x", 77, 400, 100, 0)
    processes = [memory.parse_smaps(program + mapping(0x9000, "", 0, 300, size, 300)) for size in (150, 250)]
    found = memory.add_up(processes)
    assert found.pss == pytest.approx((100 + 150 + 100 + 250) * 1024 / 1e6)
    assert found.alone == pytest.approx((400 + 150 + 250) * 1024 / 1e6)


def test_copied_pages_of_a_file_count_as_memory_of_the_process() -> None:
    # 200 kB of 300 were written to by this process, which shares none of them.
    found = memory.add_up([memory.parse_smaps(mapping(0x1000, "/lib/y", 5, 300, 300, 200))])
    assert found.alone == pytest.approx(300 * 1024 / 1e6)
