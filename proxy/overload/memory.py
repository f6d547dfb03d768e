"""Resource monitors of memory: of all our processes (fixed_heap), and of the control group (cgroup_memory)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from proxy.overload import cgroup
from proxy.overload.monitor import MonitorError

CALIBRATION = 10.0
"""Seconds between two exact looks at what the processes share."""

_PAGE = os.sysconf("SC_PAGE_SIZE")


def anonymous(pid: int, proc: Path) -> int:
    """Bytes of a process that are backed by no file (statm: resident without shared); 0 when it is gone. 14 us."""
    try:
        fields = (proc / str(pid) / "statm").read_bytes().split()
        return (int(fields[1]) - int(fields[2])) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0


def proportional(pid: int, proc: Path) -> int | None:
    """The same bytes, a page that several processes share divided among them (smaps_rollup: Pss_Anon).

    Takes 0.2 ms for a process of 20 MB and 6 ms for one of 300 MB, during which it can map no memory.
    """
    try:
        for line in (proc / str(pid) / "smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss_Anon:"):
                return int(line.split()[1]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    return None


class FixedHeapMonitor:
    """Memory of main and workers against ``max_heap_size_bytes``.

    Envoy asks its allocator for the mapped bytes that are not free. Python has no such number, so this is what the
    kernel knows: pages that are backed by no file (code and libraries do not count, as with Envoy). Workers are forks
    of main and share pages with it; what would be counted twice is found out exactly every CALIBRATION seconds and
    whenever the workers are others, and subtracted in between. Where /proc shows no proportional sizes nothing is
    subtracted: the pressure is too high rather than too low.
    """

    def __init__(self, max_heap_size_bytes: int, pids: Callable[[], Iterable[int]], now: Callable[[], float],
                 proc: Path = Path("/proc")) -> None:
        self._max = max_heap_size_bytes
        self._pids = pids
        self._now = now
        self._proc = proc
        self._calibrated_for: frozenset[int] = frozenset()
        self._calibrate_at = 0.0
        self._shared = 0

    def used(self) -> int:
        """Bytes."""
        pids = frozenset(self._pids())
        total = sum(anonymous(pid, self._proc) for pid in pids)
        now = self._now()
        if pids != self._calibrated_for or now >= self._calibrate_at:
            self._calibrated_for = pids
            self._calibrate_at = now + CALIBRATION
            sizes = [proportional(pid, self._proc) for pid in pids]
            own = [size for size in sizes if size is not None]
            self._shared = max(0, total - sum(own)) if len(own) == len(sizes) else 0
        return max(0, total - self._shared)

    def pressure(self) -> float:
        """Part of the maximum."""
        return self.used() / self._max


class CgroupMemoryMonitor:
    """Memory of the control group against its limit, or against ``max_memory_bytes`` where that is not 0.

    Page cache counts, as it does for the kernel when it enforces the limit (and for Envoy).
    """

    def __init__(self, max_memory_bytes: int, proc: Path = Path("/proc/self")) -> None:
        self._max = max_memory_bytes
        self._files: tuple[Path, Path] | None = None
        for version, usage, limit in ((2, "memory.current", "memory.max"),
                                      (1, "memory.usage_in_bytes", "memory.limit_in_bytes")):
            directory = cgroup.find(version, "memory", usage, limit, proc=proc)
            if directory is not None:
                self._files = directory / usage, directory / limit
                return

    def pressure(self) -> float:
        """Part of the limit; 0 without one. Raises MonitorError."""
        if self._files is None:
            raise MonitorError("No supported cgroup memory implementation found")
        usage, limit = self._files
        try:
            used = cgroup.read_number(usage)
            maximum = self._max or cgroup.read_number(limit)
        except cgroup.CgroupError as error:
            raise MonitorError(str(error)) from None
        if maximum >= cgroup.UNLIMITED:
            return 0.0
        return used / maximum if maximum else 1.0
