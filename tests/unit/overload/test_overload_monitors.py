"""Resource monitors on recorded files, and a few on the real ones of this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.overload import cgroup
from proxy.overload.cpu import ALPHA, ContainerTimes, CpuUtilizationMonitor, HostTimes
from proxy.overload.memory import CALIBRATION, CgroupMemoryMonitor, FixedHeapMonitor
from proxy.overload.monitor import InjectedResourceMonitor, MonitorError

PAGE = os.sysconf("SC_PAGE_SIZE")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# --- injected


def test_injected_resource(tmp_path: Path) -> None:
    path = tmp_path / "pressure"
    monitor = InjectedResourceMonitor(str(path))
    with pytest.raises(MonitorError, match="No such file"):
        monitor.pressure()
    path.write_text("0.75\n")
    assert monitor.pressure() == 0.75
    for text, why in (("1.5", "pressure out of range"), ("x", "failed to parse"), ("", "failed to parse"),
                      ("nan", "pressure out of range"), ("-0.1", "pressure out of range")):
        (tmp_path / "next").write_text(text)
        os.replace(tmp_path / "next", path)
        for _ in range(2):  # also when the file has not changed since
            with pytest.raises(MonitorError, match=why):
                monitor.pressure()
    (tmp_path / "next").write_text("1")
    os.replace(tmp_path / "next", path)
    assert monitor.pressure() == 1.0
    path.unlink()
    with pytest.raises(MonitorError):
        monitor.pressure()
    os.mkfifo(path)
    with pytest.raises(MonitorError, match="failed to parse"):  # and main goes on
        monitor.pressure()


def test_an_injected_resource_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pressure"
    path.write_text("0.5")
    os.utime(path, (1, 1))
    monitor = InjectedResourceMonitor(str(path))
    reads = []
    read = monitor._read
    monkeypatch.setattr(monitor, "_read", lambda: reads.append(1) or read())
    assert [monitor.pressure() for _ in range(3)] == [0.5] * 3
    assert reads == [1]


def test_an_injected_resource_that_flips_within_a_tick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.overload.monitor.SETTLED", 3600)
    path = tmp_path / "pressure"
    path.write_text("0")
    monitor = InjectedResourceMonitor(str(path))
    now = time.time_ns()
    for text in ("1", "x", "0"):
        path.write_text(text)
        os.utime(path, ns=(now, now))
        if text == "x":
            with pytest.raises(MonitorError):
                monitor.pressure()
        else:
            assert monitor.pressure() == int(text)


# --- memory


def process(proc: Path, pid: int, resident: int, shared: int, pss_anon_kb: int | None) -> None:
    folder = proc / str(pid)
    folder.mkdir(exist_ok=True)
    (folder / "statm").write_text(f"9999 {resident} {shared} 1 0 500 0\n")
    if pss_anon_kb is not None:
        (folder / "smaps_rollup").write_text(
            f"5600-7fff ---p 00000000 00:00 0 [rollup]\nRss: 9 kB\nPss_Anon: {pss_anon_kb} kB\nPss_File: 4 kB\n")


def test_fixed_heap_counts_shared_pages_once(tmp_path: Path) -> None:
    clock = Clock()
    pids = [1, 2]
    # Both map 100 anonymous pages, 80 of which they share: 20 + 20 + 80 in all.
    for pid in pids:
        process(tmp_path, pid, 150, 50, 60 * PAGE // 1024)
    monitor = FixedHeapMonitor(240 * PAGE, lambda: pids, clock, tmp_path)
    assert monitor.used() == 120 * PAGE
    assert monitor.pressure() == 0.5
    # A worker grows: seen at once, without the expensive look.
    process(tmp_path, 2, 250, 50, None)
    (tmp_path / "2" / "smaps_rollup").unlink()
    clock.now += CALIBRATION / 2
    assert monitor.used() == 220 * PAGE
    # The next exact look is due: nothing is known of process 2, so nothing is subtracted.
    clock.now += CALIBRATION
    assert monitor.used() == 300 * PAGE
    # Other processes: looked at exactly again.
    process(tmp_path, 3, 60, 50, 10 * PAGE // 1024)
    pids[:] = [1, 3]
    assert monitor.used() == 70 * PAGE
    pids[:] = [4]
    assert monitor.used() == 0


def test_fixed_heap_of_this_process() -> None:
    monitor = FixedHeapMonitor(1 << 40, lambda: [os.getpid()], Clock())
    before = monitor.used()
    assert 5e6 < before < 2e9
    ballast = bytearray(os.urandom(1)) * (64 << 20)
    assert monitor.used() - before > 48 << 20
    del ballast


def limits(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def proc_self(tmp_path: Path, cgroup_lines: str, *mounts: tuple[str, Path, str, str]) -> Path:
    """A /proc/self with these mounts: (root, mount point, type, options)."""
    proc = tmp_path / "self"
    proc.mkdir()
    (proc / "cgroup").write_text(cgroup_lines)
    (proc / "mountinfo").write_text("".join(
        f"35 31 0:32 {root} {at} rw,relatime shared:1 - {kind} {kind} {opts}\n" for root, at, kind, opts in mounts))
    return proc


def test_cgroup_memory_version_2(tmp_path: Path) -> None:
    mount = tmp_path / "fs"
    proc = proc_self(tmp_path, "0::/kube/pod\n", ("/", mount, "cgroup2", "rw"))
    limits(mount / "kube/pod", memory__current="300\n", memory__max="1000\n")
    assert CgroupMemoryMonitor(0, proc).pressure() == 0.3
    assert CgroupMemoryMonitor(600, proc).pressure() == 0.5
    limits(mount / "kube/pod", memory__max="max\n")
    assert CgroupMemoryMonitor(0, proc).pressure() == 0.0
    assert CgroupMemoryMonitor(600, proc).pressure() == 0.5
    limits(mount / "kube/pod", memory__max="many\n")
    with pytest.raises(MonitorError, match=r"memory\.max: 'many' is not a number"):
        CgroupMemoryMonitor(0, proc).pressure()


def test_cgroup_memory_version_1_in_a_container(tmp_path: Path) -> None:
    # Without a cgroup namespace: the path is the host's, the mount shows the container's part of the hierarchy.
    mount = tmp_path / "memory"
    proc = proc_self(tmp_path, "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n",
                     ("/docker/abc", mount, "cgroup", "rw,memory"))
    limits(mount, memory__usage_in_bytes="50\n", memory__limit_in_bytes="100\n")
    assert CgroupMemoryMonitor(0, proc).pressure() == 0.5
    limits(mount, memory__limit_in_bytes="9223372036854771712\n")
    assert CgroupMemoryMonitor(0, proc).pressure() == 0.0


def test_without_control_groups(tmp_path: Path) -> None:
    for proc in (tmp_path / "nothing", proc_self(tmp_path, "nonsense\n\n:::\n")):
        with pytest.raises(MonitorError, match="No supported cgroup memory implementation found"):
            CgroupMemoryMonitor(0, proc).pressure()
        with pytest.raises(MonitorError, match="no control group"):
            ContainerTimes(Clock(), proc).sample()


def test_mixed_versions(tmp_path: Path) -> None:
    # systemd's hybrid layout: version 2 is mounted but has no controllers.
    one, two = tmp_path / "memory", tmp_path / "unified"
    two.mkdir()
    proc = proc_self(tmp_path, "4:memory:/\n0::/\n", ("/", two, "cgroup2", "rw"), ("/", one, "cgroup", "rw,memory"))
    limits(one, memory__usage_in_bytes="1\n", memory__limit_in_bytes="4\n")
    assert CgroupMemoryMonitor(0, proc).pressure() == 0.25
    assert cgroup.directories(2, "memory", proc) == [two]


# --- processor


def test_host_times(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 30 850 9 9 9 0 0 0\ncpu0 1 2 3 4\n")
    times = HostTimes(tmp_path)
    assert times.sample() == (150.0, 1000.0)
    monitor = CpuUtilizationMonitor(times)
    stat.write_text("cpu  150 20 30 900 9 9 9 0 0 0\n")
    assert monitor.pressure() == pytest.approx(0.5 * ALPHA)
    stat.write_text("cpu  250 20 30 900 9 9 9 0 0 0\n")
    assert monitor.pressure() == pytest.approx(ALPHA + (1 - ALPHA) * 0.5 * ALPHA)
    with pytest.raises(MonitorError, match="Erroneous CPU stats calculation"):
        monitor.pressure()  # no time has passed
    for text in ("cpu  1 2 3\n", "", "cpu0 1 2 3 4\n", "cpu  a b c d\n"):
        stat.write_text(text)
        with pytest.raises(MonitorError, match="Unexpected format"):
            times.sample()
    stat.unlink()
    with pytest.raises(MonitorError, match="No such file"):
        times.sample()


def test_container_times_version_2(tmp_path: Path) -> None:
    clock, mount = Clock(), tmp_path / "fs"
    proc = proc_self(tmp_path, "0::/pod\n", ("/", mount, "cgroup2", "rw"))
    files: Callable[..., None] = lambda **texts: limits(mount / "pod", **texts)  # noqa: E731
    files(cpu__stat="usage_usec 1000000\nuser_usec 5\n", cpu__max="200000 100000\n", cpuset__cpus__effective="0-3,8\n")
    monitor = CpuUtilizationMonitor(ContainerTimes(clock, proc))
    clock.now += 1
    files(cpu__stat="usage_usec 2000000\n")
    assert monitor.pressure() == pytest.approx(0.5 * ALPHA)  # a second of processor time of two
    for name, text in (("cpu__max", "max 100000\n"), ("cpuset__cpus__effective", "0\n")):
        files(**{name: text})
    clock.now += 1
    with pytest.raises(MonitorError, match="Erroneous"):
        files(cpu__stat="usage_usec 0\n")
        monitor.pressure()
    for name, text in (("cpu__stat", "nothing\n"), ("cpu__max", "0 0\n"), ("cpuset__cpus__effective", "a\n")):
        good = (mount / "pod" / name.replace("__", ".")).read_text()
        files(**{name: text})
        with pytest.raises(MonitorError, match=name.replace("__", r"\.")):
            monitor.pressure()
        files(**{name: good})


def test_container_times_version_1(tmp_path: Path) -> None:
    clock, cpu, acct = Clock(), tmp_path / "cpu", tmp_path / "cpuacct"
    proc = proc_self(tmp_path, "2:cpuacct:/x\n1:cpu:/x\n", ("/", cpu, "cgroup", "rw,cpu"),
                     ("/", acct, "cgroup", "rw,cpuacct"))
    limits(cpu / "x", cpu__shares="2000\n")
    limits(acct / "x", cpuacct__usage="1000000000\n")
    monitor = CpuUtilizationMonitor(ContainerTimes(clock, proc))
    clock.now += 1
    limits(acct / "x", cpuacct__usage="2000000000\n")
    assert monitor.pressure() == pytest.approx(0.5 * ALPHA)


def test_this_machine() -> None:
    work, total = HostTimes().sample()
    assert 0 < work < total
