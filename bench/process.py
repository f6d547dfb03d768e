"""Child processes: pinned to a core, found again with all their descendants, always taken down."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

STOP_SECONDS = 8.0
READY_SECONDS = 20.0
SAMPLE_SECONDS = 0.25
TAIL_BYTES = 1500


class ProcessError(Exception):
    """A process did not start, did not answer, or did not end."""


class Child:
    """A process in a session of its own, so that its descendants can be told from everybody else's.

    It is killed when the harness dies in a way that leaves no time for `stop` (PR_SET_PDEATHSIG).
    `core` is the only processor it and its descendants may use.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        core: int,
        output: Path,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.output = output
        self.errors = output.with_suffix(".stderr")
        with output.open("ab") as out, self.errors.open("ab") as err:
            self._popen = subprocess.Popen(
                pinned(command, core, "TERM"),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=cwd,
                env=None if environment is None else dict(environment),
                start_new_session=True,
            )
        self.pid = self._popen.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def exited(self) -> int | None:
        """Exit status, negative for a signal, None while it runs."""
        return self._popen.poll()

    def members(self) -> list[int]:
        """Process ids of this process and all its living descendants."""
        return session_members(self.pid)

    def cpu_jiffies(self) -> int:
        """Processor time of all members so far, in the unit of /proc/stat."""
        return sum(cpu_jiffies(pid) for pid in self.members())

    def cpu_nanoseconds(self) -> int:
        """The same, exact; of members that are still there. Raises ProcessError where the kernel does not tell."""
        return sum(map(cpu_nanoseconds, self.members()))

    def interrupt(self) -> None:
        """SIGINT, and wait: for programs that write their result then. Raises ProcessError when it does not end."""
        self._popen.send_signal(signal.SIGINT)
        try:
            self._popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise ProcessError(f"{self.name} did not end within {STOP_SECONDS:.0f} s of SIGINT") from None

    def stop(self) -> list[str]:
        """SIGTERM, then SIGKILL to whatever is left of the session; what had to be killed, in words."""
        complaints: list[str] = []
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
            try:
                self._popen.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                complaints.append(f"{self.name} did not end within {STOP_SECONDS:.0f} s of SIGTERM")
        left = [pid for pid in self.members() if pid != self.pid]
        if left:
            complaints.append(f"{self.name} left {len(left)} processes behind")
        for pid in self.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._popen.wait()
        return complaints

    def tail(self) -> str:
        """The end of what it wrote to standard error, or to standard output when that is empty."""
        for path in (self.errors, self.output):
            text = path.read_bytes()[-TAIL_BYTES:].decode("utf-8", "replace").strip()
            if text:
                return text
        return "(it wrote nothing)"


def pinned(command: Sequence[str], core: int, signal_name: str) -> list[str]:
    """The command on one processor, ended by a signal when the harness dies."""
    return ["setpriv", "--pdeathsig", signal_name, "taskset", "--cpu-list", str(core), *command]


def run_pinned(
    command: Sequence[str],
    core: int,
    *,
    timeout: float,
    cwd: Path | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> str:
    """Run a load generator on `core`; its standard output. `meanwhile` is called every SAMPLE_SECONDS as it runs.

    Raises ProcessError when it fails or takes longer than `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    with subprocess.Popen(
        pinned(command, core, "KILL"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
    ) as popen:
        try:
            while True:
                try:
                    output, errors = popen.communicate(timeout=SAMPLE_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    if time.monotonic() > deadline:
                        raise ProcessError(f"{command[0]} did not end within {timeout:.0f} s") from None
                    if meanwhile is not None:
                        meanwhile()
        except BaseException:
            popen.kill()
            raise
    if popen.returncode != 0:
        raise ProcessError(f"{command[0]} exited with status {popen.returncode}: {(errors or output).strip()[-600:]}")
    return output


def session_members(session: int) -> list[int]:
    """Living processes (zombies left out) of a session, from /proc."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path("/proc", entry, "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        state, _ppid, _pgrp, sid = stat.rpartition(")")[2].split()[:4]
        if int(sid) == session and state != "Z":
            found.append(int(entry))
    return found


def cpu_jiffies(pid: int) -> int:
    """User and system time of a process, 0 when it is gone."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    fields = stat.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def cpu_nanoseconds(pid: int) -> int:
    """User and system time of all threads of a process, 0 when it is gone. Raises ProcessError as above."""
    total = 0
    for thread in Path("/proc", str(pid), "task").glob("*"):
        try:
            total += int((thread / "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            if thread.exists():
                raise ProcessError("/proc/PID/task/TID/schedstat is missing: no CONFIG_SCHED_INFO") from None
    return total


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def get(port: int, path: str, host: str, timeout: float = 5.0) -> tuple[int, dict[str, str], bytes]:
    """One HTTP/1.1 exchange on loopback: status, headers with lower-case names, body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Host": host, "User-Agent": "bench-probe"})
        response = connection.getresponse()
        body = response.read()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, body
    finally:
        connection.close()


def wait_ready(child: Child, answers: Callable[[], str]) -> None:
    """Until `answers` returns an empty string; otherwise ProcessError with its last complaint."""
    deadline = time.monotonic() + READY_SECONDS
    complaint = "not asked"
    while time.monotonic() < deadline:
        status = child.exited()
        if status is not None:
            raise ProcessError(f"{child.name} ended with status {status}: {child.tail()}")
        try:
            complaint = answers()
        except (OSError, http.client.HTTPException) as error:
            complaint = f"{type(error).__name__}: {error}"
        if not complaint:
            return
        time.sleep(0.02)
    raise ProcessError(f"{child.name} was not ready after {READY_SECONDS:.0f} s ({complaint}): {child.tail()}")
