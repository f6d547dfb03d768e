"""What is said about a proxy that ended although nobody asked it to: how, the likely cause, its last words."""

import signal
from collections.abc import Sequence

from agent.child import ExitStatus
from agent.errors import ProxyDied
from agent.lifecycle.oom import MemoryCgroup


class ProxyCrashed(ProxyDied):
    """The proxy was started, and ended although nobody asked it to: what CRASH_EXIT_CODE is for."""


_CAUSES = {
    signal.SIGSEGV: "a defect in the proxy",
    signal.SIGBUS: "a defect in the proxy, or a full disk under a mapped file",
    signal.SIGILL: "a binary for another CPU",
    signal.SIGABRT: "a failed check of its own",
    signal.SIGFPE: "a defect in the proxy",
    signal.SIGSYS: "a system call that the container's seccomp profile forbids",
    signal.SIGXCPU: "a limit on CPU time",
    signal.SIGXFSZ: "a limit on the size of files",
}
_STATUSES = {126: "the program may not be executed", 127: "a program or library that is missing"}


def describe(status: ExitStatus, when: str, oom: MemoryCgroup | None, kills_before: int | None,
             last_lines: Sequence[str]) -> str:  # fmt: skip
    """One line. `when` is added as it is; `kills_before` is the count of OOM kills when the proxy was started."""
    text = f"the proxy {status}{when}"
    cause = _cause(status, oom, kills_before)
    if cause:
        text += f"; likely cause: {cause}"
    if last_lines:
        text += f"; its last lines: {' | '.join(last_lines)}"
    return text


def _cause(status: ExitStatus, oom: MemoryCgroup | None, kills_before: int | None) -> str:
    if status.signal == signal.SIGKILL:
        return _kill(oom, kills_before)
    if status.signal:
        return _CAUSES.get(signal.Signals(status.signal), "") if status.signal in _CAUSES else ""
    # The shell's way to tell of a signal: a wrapper script was killed, or what it started.
    if status.status == 128 + signal.SIGKILL:
        return _kill(oom, kills_before)
    kills = None if oom is None else oom.oom_kills()
    if kills is not None and kills_before is not None and kills > kills_before:
        return _kill(oom, kills_before)  # not its main process, but one of its workers
    return _STATUSES.get(status.status, "")


def _kill(oom: MemoryCgroup | None, kills_before: int | None) -> str:
    kills = None if oom is None else oom.oom_kills()
    if oom is None or kills is None or kills_before is None:
        return "out of memory, or somebody's kill -9 (the memory cgroup is not readable)"
    if kills <= kills_before:
        return "somebody's kill -9, or memory ran out on the node (the container's cgroup counts no OOM kill)"
    limit = oom.limit_bytes()
    return "out of memory" + ("" if limit is None else f": the container's limit is {limit / 2**20:.0f} MiB")
