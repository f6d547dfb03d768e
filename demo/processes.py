"""Processes of the demo: started with their output in a file, found again, ended for good."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo import interrupts

POLL = 0.02
"""Seconds between two looks at a condition."""

TAIL = 30
"""Lines of a process's output that an error quotes."""

MARK = "PYSIDECAR_DEMO"
"""Variable in the environment of every process of a demo: its folder."""

COMPLAINTS = ("Traceback", "[error]", "[critical]")
"""What an agent or a proxy in good order never writes."""


class DemoError(Exception):
    """Something that the demo needs did not happen; the text says what."""


def wait_until(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Raises DemoError when `condition` stays false for so long."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise DemoError(f"{what}: not within {seconds:g} s")
        time.sleep(POLL)


@dataclass(frozen=True)
class Done:
    """A command that ran to its end; standard error is part of the output."""

    status: int
    output: str


def run(command: Sequence[str], *, text: str = "", seconds: float = 30.0) -> Done:
    """Run to the end. Raises DemoError when it takes longer; nothing that the command started runs on."""
    popen = None
    try:
        with interrupts.held():
            popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        output, _ = popen.communicate(text, seconds)
    except BaseException as error:
        if popen is not None:
            end_sessions([popen.pid])
            popen.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise DemoError(f"{' '.join(command)}: still running after {seconds:g} s") from error
        raise
    return Done(popen.returncode, output)


def must(command: Sequence[str], *, text: str = "") -> str:
    """Run, and raise DemoError with the output unless the command succeeds."""
    done = run(command, text=text)
    if done.status:
        raise DemoError(f"{' '.join(command)}: exit status {done.status}\n{done.output}")
    return done.output


@dataclass
class Process:
    """One process that was started, with the file that has its output."""

    name: str
    popen: subprocess.Popen[bytes]
    output: Path

    def text(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def tail(self) -> str:
        """The last lines of its output."""
        return "\n".join(self.text().splitlines()[-TAIL:])

    def wait_for_text(self, text: str, *, seconds: float = 15.0) -> None:
        """Raises DemoError with its output when it ends, or stays silent, before it says `text`."""

        def said() -> bool:
            if text in self.text():
                return True
            if self.popen.poll() is not None:
                raise DemoError(f"{self.name} ended with status {self.popen.returncode}:\n{self.tail()}")
            return False

        wait_until(said, seconds=seconds, what=f"{self.name} says {text!r}")

    def last_line_as_json(self) -> dict[str, Any]:
        """Raises DemoError when it is not JSON."""
        line = self.text().rpartition("\n{")[2]
        try:
            result: dict[str, Any] = json.loads("{" + line)
        except ValueError as error:
            raise DemoError(f"{self.name} ended without a result:\n{self.tail()}") from error
        return result

    def close_stdin(self) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.close()

    def wait(self, *, seconds: float) -> int:
        """Its exit status. Raises DemoError when it runs on."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired as expired:
            raise DemoError(f"{self.name}: still running after {seconds:g} s") from expired


@dataclass
class Processes:
    """All that were started; `folder` gets a file of output each."""

    folder: Path
    started: list[Process] = field(default_factory=list)

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: dict[str, str] | None = None,
        cwd: Path | None = None,
        owner: int | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> Process:
        """Start it in a session of its own, so that Ctrl-C reaches the demo first.

        `owner` is the uid that the output file belongs to: who reopens /dev/stdout has to own what is behind it.
        """
        output = self.folder / f"{name}.log"
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if owner is not None:
                os.fchown(descriptor, owner, owner)
            with interrupts.held():
                popen = subprocess.Popen(
                    command,
                    stdin=stdin,
                    stdout=descriptor,
                    stderr=subprocess.STDOUT,
                    env={**(os.environ if environment is None else environment), MARK: str(self.folder)},
                    cwd=cwd,
                    start_new_session=True,
                )
                process = Process(name, popen, output)
                self.started.append(process)
        finally:
            os.close(descriptor)
        return process

    def stop_all(self) -> None:
        """End every process that still runs, and what it started."""
        end_sessions([process.popen.pid for process in self.started if process.popen.poll() is None])
        for process in self.started:
            process.popen.wait()
            if process.popen.stdin is not None:
                process.popen.stdin.close()


def members(session: int) -> list[int]:
    """The processes of a session that still run, whatever process group they are in."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, _, _, of_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(of_session) == session and state not in "ZX":
                    found.append(int(entry.name))
    return found


def end_sessions(sessions: Sequence[int], *, grace: float = 1.0) -> None:
    """SIGTERM to all processes of these sessions, SIGKILL to those that are left after `grace` seconds."""
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        left = [pid for session in sessions for pid in members(session)]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while any(members(session) for session in sessions) and time.monotonic() < deadline:
            time.sleep(POLL)
