"""The resource monitor of processor time: of the machine, or of the control group in which we run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from proxy.overload import cgroup
from proxy.overload.monitor import MonitorError

ALPHA = 0.05
"""Weight of the newest measurement in the moving average, as in Envoy."""

_MILLICORES = 1000
_NS = 1_000_000_000


class HostTimes:
    """/proc/stat (proc(5)): user, nice and system time against that with idle. In ticks."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._path = proc / "stat"

    def sample(self) -> tuple[float, float]:
        """(work, total)."""
        try:
            with self._path.open("rb") as file:
                line = file.readline(1024)
        except OSError as error:
            raise MonitorError(f"{self._path}: {error.strerror}") from None
        fields = line.split()
        if len(fields) < 5 or fields[0] != b"cpu" or not all(field.isdigit() for field in fields[1:5]):
            raise MonitorError(f"Unexpected format in linux cpu stats file {self._path}")
        work = sum(map(int, fields[1:4]))
        return float(work), float(work + int(fields[4]))


class ContainerTimes:
    """Processor time that the control group used against what it may use in the time that passed. In nanoseconds.

    Version 2: cpu.stat, with cpu.max and the processors of cpuset.cpus.effective. Version 1: cpuacct.usage, with
    cpu.shares of which 1000 mean a processor (as Envoy has it).
    """

    def __init__(self, now: Callable[[], float], proc: Path = Path("/proc/self")) -> None:
        self._now = now
        self._v2 = cgroup.find(2, "", "cpu.stat", "cpu.max", "cpuset.cpus.effective", proc=proc)
        self._usage = cgroup.find(1, "cpuacct", "cpuacct.usage", proc=proc)
        self._shares = cgroup.find(1, "cpu", "cpu.shares", proc=proc)

    def sample(self) -> tuple[float, float]:
        """(work, total): ``total`` is the time, ``work`` that part of it which all usable processors were busy."""
        try:
            if self._v2 is not None:
                used = cgroup.read_key(self._v2 / "cpu.stat", "usage_usec") * 1000
                return used / _cores(self._v2), self._now() * _NS
            if self._usage is not None and self._shares is not None:
                shares = cgroup.read_number(self._shares / "cpu.shares") or 1
                used = cgroup.read_number(self._usage / "cpuacct.usage")
                return used * _MILLICORES / shares, self._now() * _NS
        except cgroup.CgroupError as error:
            raise MonitorError(str(error)) from None
        raise MonitorError("no control group with cpu.stat, cpu.max and cpuset.cpus.effective (version 2) or with "
                           "cpuacct.usage and cpu.shares (version 1)")


def _cores(directory: Path) -> float:
    """Processors that the group may use. Raises CgroupError."""
    path = directory / "cpuset.cpus.effective"
    cores = 0
    for part in cgroup.read_text(path).split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise cgroup.CgroupError(f"{path}: {part!r} is not a range of processors")
        cores += int(last) - int(first) + 1 if dash else 1
    path = directory / "cpu.max"
    quota, _, period = cgroup.read_text(path).partition(" ")
    if quota == "max":
        return float(max(1, cores))
    if not quota.isdigit() or not period.isdigit() or not int(period) or not int(quota):
        raise cgroup.CgroupError(f"{path}: 'QUOTA PERIOD' was expected, not {quota[:20]!r} {period[:20]!r}")
    return min(float(max(1, cores)), int(quota) / int(period))


class CpuUtilizationMonitor:
    """A moving average of the part of the time that was worked, sample by sample."""

    def __init__(self, times: HostTimes | ContainerTimes) -> None:
        self._times = times
        self._average = 0.0
        self._last: tuple[float, float] | None = None
        try:
            self._last = times.sample()
        except MonitorError:
            pass  # it will be said when somebody asks

    def pressure(self) -> float:
        """0 to 1. Raises MonitorError."""
        now = self._times.sample()
        last, self._last = self._last, now
        if last is None:
            return self._average
        work, total = now[0] - last[0], now[1] - last[1]
        if work < 0 or total <= 0:
            raise MonitorError(f"Erroneous CPU stats calculation. Work_over_period='{work:.0f}' cannot be a negative "
                               f"number and total_over_period='{total:.0f}' must be a positive number.")
        self._average = work / total * ALPHA + (1 - ALPHA) * self._average
        return self._average
