"""`python -m bench --agent`: what the agent costs: time from exec to readiness, memory, processor time idle and probed.

The pod is examples/sidecar.json with its own ports, so as root each run has a network namespace of its own; without
root the ports must be free.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import memory
from bench.process import ProcessError, cpu_jiffies, get

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "examples" / "sidecar.json"
STARTS = 10
IDLE_SECONDS = 20.0
PROBE_SECONDS = 5.0
PROBES = 1000
"""Readiness probes a second."""
READY_SECONDS = 20.0
END_SECONDS = 10.0
INSIDE = "PYSIDECAR_BENCH_AGENT"
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `good` is None where there is no target."""

    what: str
    value: str
    target: str
    good: bool | None


class Pod:
    """`pilot-agent proxy` over the example."""

    def __init__(self, folder: Path, binary: str = "") -> None:
        fields = {"customConfigFile": str(CONFIG), "concurrency": 2, "terminationDrainDuration": "0s"}
        if binary:
            fields["binaryPath"] = binary
        environment = {**os.environ, "PROXY_CONFIG": json.dumps(fields), "PYTHONPATH": str(ROOT)}
        self._log = folder / "agent.log"
        with self._log.open("wb") as log:
            self.began = time.monotonic()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "agent", "proxy", "sidecar"],
                cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.pid = self._process.pid

    def wait_ready(self) -> float:
        """Seconds from exec to the first 200 on 15021. Raises ProcessError."""
        while time.monotonic() < self.began + READY_SECONDS:
            if self._process.poll() is not None:
                break
            try:
                if get(15021, "/healthz/ready", "pod", 1.0)[0] == 200:
                    return time.monotonic() - self.began
            except OSError:
                pass
            time.sleep(0.002)
        raise ProcessError(f"the agent is not ready: {self._log.read_text(errors='replace')[-1500:]}")

    def proxy(self) -> list[int]:
        """The proxy's processes."""
        found, fresh = [], [self.pid]
        while fresh:
            fresh = [child for pid in fresh for child in _children(pid)]
            found += fresh
        return found

    def stop(self) -> None:
        """SIGTERM, and whatever it takes."""
        self._process.terminate()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def startup(folder: Path, binary: str = "") -> list[float]:
    """Seconds of each start."""
    seconds = []
    for _ in range(STARTS):
        pod = Pod(folder, binary)
        try:
            seconds.append(pod.wait_ready())
        finally:
            pod.stop()
    return seconds


def seconds_of(pids: list[int], act: Callable[[], None]) -> tuple[float, float]:
    """Processor time of the processes and time on the clock while something happens."""
    before, began = sum(map(cpu_jiffies, pids)), time.monotonic()
    act()
    elapsed = time.monotonic() - began
    return (sum(map(cpu_jiffies, pids)) - before) / _TICKS, elapsed


def probe() -> None:
    """PROBES a second of the status port, each on a connection of its own as kubelet does. Raises ProcessError."""
    began = time.monotonic()
    for number in range(int(PROBES * PROBE_SECONDS)):
        if get(15020, "/healthz/ready", "pod")[0] != 200:
            raise ProcessError("a readiness probe failed")
        if (ahead := began + number / PROBES - time.monotonic()) > 0:
            time.sleep(ahead)


def measure(folder: Path) -> list[Row]:
    """Everything. Raises ProcessError when the agent does not do what it should."""
    rows = []
    ours = startup(folder)
    middle = statistics.median(ours)
    rows.append(Row("start, exec to 200 on 15021", f"{middle:.2f} s (at most {max(ours):.2f})", "0.6 s", middle <= 0.6))
    envoy = shutil.which("envoy", path=os.path.dirname(sys.executable))
    if envoy is not None:
        theirs = startup(folder, envoy)
        rows.append(Row("the same with Envoy under it", f"{statistics.median(theirs):.2f} s", "", None))
    pod = Pod(folder)
    try:
        pod.wait_ready()
        time.sleep(1.0)  # what follows a start
        proxy = pod.proxy()
        used, elapsed = seconds_of([pod.pid], lambda: time.sleep(IDLE_SECONDS))
        share = used / elapsed
        rows.append(Row("agent, processor idle", f"{share:.2%}", "0.1%", share <= 0.001))
        size = memory.measure([pod.pid])
        rows.append(
            Row("agent, memory (PSS / if alone)", f"{size.pss:.1f} / {size.alone:.1f} MB", "30 MB", size.pss < 30)
        )
        used, elapsed = seconds_of(proxy, probe)
        proxy_share = used / elapsed
        rows.append(Row(f"proxy, during {PROBES} probes/s of 15020", f"{proxy_share:.1%}", "1%", proxy_share <= 0.01))
        used, elapsed = seconds_of([pod.pid], probe)
        rate = PROBES * PROBE_SECONDS / elapsed
        rows.append(Row(f"agent, processor at {rate:.0f} probes/s", f"{used / elapsed:.0%}", "", None))
        size = memory.measure([pod.pid])
        rows.append(Row("agent, memory afterwards", f"{size.pss:.1f} / {size.alone:.1f} MB", "30 MB", size.pss < 30))
    finally:
        pod.stop()
    return rows


def table(rows: list[Row]) -> str:
    """For the terminal and for Markdown."""
    lines = ["| what | result | target |", "|---|---|---|"]
    for row in rows:
        verdict = "" if row.good is None else " ok" if row.good else " MISSED"
        lines.append(f"| {row.what} | {row.value} | {row.target}{verdict} |")
    return "\n".join(lines)


def main() -> int:
    """0 when all targets were met, 1 when one was missed or the agent failed."""
    if os.geteuid() == 0 and INSIDE not in os.environ and shutil.which("unshare") is not None:
        inside = 'ip link set lo up && exec "$0" -m bench --agent'
        command = ["unshare", "--net", "sh", "-c", inside, sys.executable]
        return subprocess.run(command, cwd=ROOT, env={**os.environ, INSIDE: "1"}, check=False).returncode
    try:
        with tempfile.TemporaryDirectory(prefix="pysidecar-bench-") as folder:
            rows = measure(Path(folder))
    except ProcessError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(table(rows))
    return 1 if any(row.good is False for row in rows) else 0
