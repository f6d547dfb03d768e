"""Memory of idle connections: one worker with many of them beside the same worker with none."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

from bench import memory
from bench.config import PATH_1K
from bench.process import Child, ProcessError, pinned
from bench.subjects import CHECKOUT, Run, Running, SubjectError

COUNT = 15_000
"""Fewer than the 20,000 descriptors that a process often may have at most."""
QUICK_COUNT = 1_000
SETTLE_SECONDS = 1.0
HELD_SECONDS = 60.0


def bytes_each(run: Run, running: Running, count: int, used: bool) -> float:
    """What `count` connections add to all processes of a proxy, for each of them.

    `used`: each has served one request; else nothing was ever sent on it. Raises SubjectError or ProcessError.
    """
    child = running.child
    assert child is not None
    time.sleep(SETTLE_SECONDS)
    before, descriptors = memory.measure(child.members()).alone, open_descriptors(child)
    with holder(run, running, count, PATH_1K if used else "-"):
        await_accepted(child, descriptors + count)
        time.sleep(SETTLE_SECONDS)
        after = memory.measure(child.members()).alone
        if (missing := descriptors + count - open_descriptors(child)) > 0:
            raise SubjectError(f"{missing} of {count} connections were lost meanwhile")
    return (after - before) * 1e6 / count


@contextlib.contextmanager
def holder(run: Run, running: Running, count: int, path: str) -> Iterator[None]:
    """A process on the load core that holds the connections; a process of its own, for its descriptors."""
    command = [sys.executable, "-m", "bench.holder", str(running.ports.http), str(count), run.host, path]
    with subprocess.Popen(
        pinned(command, run.cores.load, "KILL"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=CHECKOUT,
    ) as popen:
        assert popen.stdout is not None and popen.stdin is not None and popen.stderr is not None
        try:
            if popen.stdout.readline() != "held\n":
                popen.kill()
                raise ProcessError(popen.stderr.read().strip()[-600:] or "the holder of connections ended")
            yield
            popen.stdin.close()
            popen.wait(HELD_SECONDS)
        finally:
            popen.kill()


def open_descriptors(child: Child) -> int:
    """Of all its processes: a connection is one, whatever statistics the configuration shows."""
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in child.members())


def await_accepted(child: Child, wanted: int) -> None:
    deadline = time.monotonic() + HELD_SECONDS
    while (found := open_descriptors(child)) < wanted:
        if time.monotonic() > deadline:
            raise SubjectError(f"{wanted - found} connections were not accepted")
        time.sleep(0.1)
