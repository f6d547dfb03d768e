"""The proxy's process: start, exit status, end, and nothing left behind.

No orphan, whichever of the two dies first:

- The child leads a process group of its own. A Ctrl-C on the terminal so reaches the agent alone, which drains, and
  whatever the child leaves in its group is killed when it ends.
- The kernel sends the child SIGKILL when the agent's main thread dies (PR_SET_PDEATHSIG), so not even SIGKILL of the
  agent leaves a proxy. The setting belongs to the one process: a proxy that forks workers sets it in them too, and a
  `binaryPath` that is a shell script has to `exec` the proxy.
"""

import asyncio
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agent import log
from agent.child_command import ChildCommand
from agent.errors import ProxyDied

_PR_SET_PDEATHSIG = 1
# How long a proxy has for its own end after SIGTERM (flushing access logs; Envoy takes milliseconds) before SIGKILL.
END_GRACE_S = 3.0
_NO_PARENT = 125  # exit status of a child whose agent was gone before it could ask for the signal

_log = log.scope()


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: by a signal (then `signal` is its number) or with a status."""

    status: int
    signal: int

    @classmethod
    def of(cls, info: os.waitid_result) -> "ExitStatus":
        if info.si_code == os.CLD_EXITED:
            return cls(info.si_status, 0)
        return cls(0, info.si_status)

    @property
    def orderly(self) -> bool:
        return self.status == 0 and self.signal == 0

    def __str__(self) -> str:
        if not self.signal:
            return f"exited with status {self.status}"
        try:
            name = signal.Signals(self.signal).name
        except ValueError:
            name = "unnamed signal"
        return f"was killed by {name} ({self.signal})"


class Child:
    """One running proxy. Must live on a loop in the main thread: it is told of exits by SIGCHLD."""

    def __init__(self, process: "subprocess.Popen[bytes]", loop: asyncio.AbstractEventLoop) -> None:
        self.pid = process.pid
        self.exited: asyncio.Future[ExitStatus] = loop.create_future()
        self._process = process  # unreferenced, Popen would complain about a child that still runs

    def __repr__(self) -> str:
        return f"<Child {self.pid} {self.exited.result() if self.exited.done() else 'running'}>"

    @classmethod
    def start(cls, command: ChildCommand, loop: asyncio.AbstractEventLoop, run_as: int | None = None) -> "Child":
        """Start the proxy with our environment, stdout and stderr (inherited, so that nothing stands in between and
        `/dev/stdout` in its configuration works), as uid and gid `run_as` when given.

        Raises ProxyDied with the reason when it cannot be started.
        """
        words = [*command.program, *command.arguments]
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                process_group=0,
                user=run_as,
                group=run_as,
                extra_groups=None if run_as is None else [],
                # Runs after the change of uid, which would clear the setting. One thread here, so no lock can hang it.
                preexec_fn=_die_with(os.getpid()),
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ProxyDied(f"the proxy cannot be started: {words[0]}: {reason}") from None
        child = cls(process, loop)
        loop.add_signal_handler(signal.SIGCHLD, child._reap)
        child._reap()  # it may have ended before the handler stood
        return child

    def signal(self, number: int) -> None:
        """Send a signal to the proxy's main process; nothing happens when it is gone."""
        if not self.exited.done():
            os.kill(self.pid, number)

    async def end(self, hurry: asyncio.Event) -> ExitStatus:
        """SIGTERM, and after END_GRACE_S or as soon as `hurry` is set SIGKILL for the whole process group."""
        if not self.exited.done():
            self.signal(signal.SIGTERM)
            await wait_first(END_GRACE_S, self.exited, hurry)
        if not self.exited.done():
            why = "asked to hurry" if hurry.is_set() else f"still running {END_GRACE_S:g}s after SIGTERM"
            _log.warn(f"proxy is killed: {why}")
            self.kill()
        return await self.exited

    def kill(self) -> None:
        """SIGKILL for the whole process group. The pid is safe: until reaped it cannot belong to anyone else."""
        if not self.exited.done():
            _kill_group(self.pid)

    def _reap(self) -> None:
        if self.exited.done():
            return
        info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if info is None:
            return
        # Before reaping: the group's number is ours as long as its leader is a zombie.
        _kill_group(self.pid)
        os.waitid(os.P_PID, self.pid, os.WEXITED)
        self._process.returncode = 0  # reaped here; Popen must not wait for it again
        self.exited.set_result(ExitStatus.of(info))


async def wait_first(seconds: float | None, exited: "asyncio.Future[ExitStatus]", event: asyncio.Event) -> None:
    """Return when the process has ended, the event is set or the time is over, whichever comes first."""
    loop = asyncio.get_running_loop()
    waiter = loop.create_task(event.wait(), name="wait_first:event")
    try:
        first: set[asyncio.Future[Any]] = {exited, waiter}
        await asyncio.wait(first, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiter.cancel()


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    except PermissionError:
        _log.warn(f"processes of another user in the proxy's process group {pid} cannot be killed")


def _die_with(parent: int) -> Callable[[], None]:
    """What the child does between fork and exec. The library is loaded here: after the fork nothing may allocate."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def ask_for_signal() -> None:
        if prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        if os.getppid() != parent:
            os._exit(_NO_PARENT)  # the agent died before the setting took effect

    return ask_for_signal
