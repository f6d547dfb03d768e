"""The proxy's process: start, exit status, end, and nothing left behind.

No orphan, whichever of the two dies first:

- The child leads a process group of its own. A Ctrl-C on the terminal so reaches the agent alone, which drains, and
  whatever the child leaves in its group is killed when it ends.
- The kernel sends the child SIGKILL when the agent's main thread dies (PR_SET_PDEATHSIG), so not even SIGKILL of the
  agent leaves a proxy. The setting belongs to the one process: a proxy that forks workers sets it in them too, and a
  `binaryPath` that is a shell script has to `exec` the proxy.
- The child is watched and signalled through a pidfd where the kernel has them (5.3), which no reuse of its number can
  lead astray; SIGCHLD does the watching elsewhere.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from agent import log
from agent.child_command import ChildCommand
from agent.errors import ProxyDied
from agent.lifecycle import capability
from agent.lifecycle.output import Relay

_PR_SET_PDEATHSIG = 1
# How long a proxy has for its own end (flushing access logs; Envoy takes milliseconds): once after the admin port was
# asked, again after SIGTERM, then comes SIGKILL.
QUIT_GRACE_S = 2.0
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

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        loop: asyncio.AbstractEventLoop,
        relay: Relay,
        others: Callable[[], None],
    ) -> None:
        self.pid = process.pid
        self.exited: asyncio.Future[ExitStatus] = loop.create_future()
        self._process = process  # unreferenced, Popen would complain about a child that still runs
        self._loop = loop
        self._relay = relay
        self._others = others
        self._pidfd = _pidfd_of(self.pid)
        if self._pidfd >= 0:
            loop.add_reader(self._pidfd, self._reap)
        loop.add_signal_handler(signal.SIGCHLD, self._some_child_ended)

    def __repr__(self) -> str:
        return f"<Child {self.pid} {self.exited.result() if self.exited.done() else 'running'}>"

    @classmethod
    def start(
        cls,
        command: ChildCommand,
        loop: asyncio.AbstractEventLoop,
        run_as: int | None = None,
        others: Callable[[], None] = lambda: None,
    ) -> "Child":
        """Start the proxy with our environment and stdout (inherited, so that nothing stands in between and
        `/dev/stdout` in its configuration works). As uid and gid `run_as` when given, and then it may bind low ports.

        `others` is called with every SIGCHLD: it may be about a process that is not the proxy.
        Raises ProxyDied with the reason when it cannot be started.
        """
        words = [*command.program, *command.arguments]
        relay = Relay(loop)
        try:
            if run_as is not None:
                relay.give_to(run_as)
            with contextlib.nullcontext() if run_as is None else capability.kept():
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stderr=relay.write_end,
                    env={**os.environ, **command.environment},
                    process_group=0,
                    user=run_as,
                    group=run_as,
                    extra_groups=None if run_as is None else [],
                    # Runs after the change of uid. There is one thread here, so no lock can hang it.
                    preexec_fn=_before_exec(os.getpid(), run_as is not None),
                )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            relay.close()
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ProxyDied(f"the proxy cannot be started: {words[0]}: {reason}") from None
        relay.spawned()
        child = cls(process, loop, relay, others)
        child._reap()  # it may have ended before anybody watched
        return child

    def last_lines(self) -> list[str]:
        """What it last wrote to its standard error."""
        return self._relay.last_lines()

    def signal(self, number: int) -> None:
        """Send a signal to the proxy's main process; nothing happens when it is gone."""
        if self.exited.done():
            return
        if self._pidfd >= 0:
            signal.pidfd_send_signal(self._pidfd, number)
        else:
            os.kill(self.pid, number)

    async def end(self, quit: Coroutine[Any, Any, bool] | None, hurry: asyncio.Event) -> ExitStatus:
        """Have the proxy end by itself if it can: `quit` asks it (and says whether it took the request), then SIGTERM.

        SIGKILL for the whole process group comes when nothing helped in time, or as soon as `hurry` is set.
        """
        if quit is not None and await self._first(quit, hurry):
            await wait_first(QUIT_GRACE_S, self.exited, hurry)
        if not self.exited.done() and not hurry.is_set():
            self.signal(signal.SIGTERM)
            await wait_first(END_GRACE_S, self.exited, hurry)
        if not self.exited.done():
            why = "asked to hurry" if hurry.is_set() else f"still running {END_GRACE_S:g}s after SIGTERM"
            _log.warn(f"proxy is killed: {why}")
            self.kill()
        return await self.exited

    async def _first(self, quit: Coroutine[Any, Any, bool], hurry: asyncio.Event) -> bool:
        asking = self._loop.create_task(quit, name="child:quit")
        hurried = self._loop.create_task(hurry.wait(), name="child:hurry")
        try:
            first: set[asyncio.Future[Any]] = {asking, hurried, self.exited}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            return asking.done() and asking.result()
        finally:
            hurried.cancel()
            if not asking.done():
                asking.cancel()
                await asyncio.wait([asking])

    def kill(self) -> None:
        """SIGKILL for the whole process group. The pid is safe: until reaped it cannot belong to anyone else."""
        if not self.exited.done():
            _kill_group(self.pid)

    def close(self) -> None:
        """Release what watches over it; it has ended, or been killed."""
        self._relay.close()
        self._unwatch()
        self._loop.remove_signal_handler(signal.SIGCHLD)

    def _unwatch(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _some_child_ended(self) -> None:
        self._reap()
        self._others()

    def _reap(self) -> None:
        if self.exited.done():
            return
        info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if info is None:
            return
        # Before reaping: the group's number is ours as long as its leader is a zombie.
        _kill_group(self.pid)
        self._relay.close()  # with its last lines, before anybody reports
        self._unwatch()
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


def _pidfd_of(pid: int) -> int:
    """-1 where the kernel has none, or a sandbox forbids them."""
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):
        return -1


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    except PermissionError:
        _log.warn(f"processes of another user in the proxy's process group {pid} cannot be killed")


def _before_exec(parent: int, low_ports: bool) -> Callable[[], None]:
    """What the child does between fork and exec. The library is loaded here: after the fork nothing may allocate."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    take_capability = capability.net_bind_service() if low_ports else None

    def run() -> None:
        if take_capability is not None:
            take_capability()
        # After the change of uid and capabilities, which clear it.
        if prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        if os.getppid() != parent:
            os._exit(_NO_PARENT)  # the agent died before the setting took effect

    return run
