"""Process 1 of a container inherits every orphan of it, and has to collect those that end."""

import asyncio
import os
from collections.abc import Callable, Collection
from pathlib import Path

_PAUSE_S = 1.0


class Zombies:
    """Collects processes that nobody else waits for.

    Children that the agent started itself are waited for by whoever started them, within moments. So a zombie is
    collected only if it was one already a second before. Whoever handles SIGCHLD calls `child_ended`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ours: Callable[[], Collection[int]]) -> None:
        """`ours`: pids that are left alone whatever happens."""
        self._loop = loop
        self._ours = ours
        self._seen: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None

    def child_ended(self) -> None:
        """SIGCHLD: look, after a moment."""
        if self._timer is None:
            self._timer = self._loop.call_later(_PAUSE_S, self._look)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        zombies = {pid for pid in _children() if pid not in self._ours() and _is_zombie(pid)}
        for pid in zombies & self._seen:
            try:
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                pass  # somebody was faster
        self._seen = zombies - self._seen
        if self._seen:
            self.child_ended()


def _children() -> list[int]:
    """Our children, adopted ones included. (They hang on the thread that started or adopted them.)"""
    found: list[int] = []
    for thread in Path("/proc/self/task").iterdir():
        try:
            found += map(int, (thread / "children").read_text().split())
        except OSError:
            continue  # the thread has ended, or the kernel lacks CONFIG_PROC_CHILDREN
    return found


def _is_zombie(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False
