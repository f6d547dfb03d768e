"""A pool's main and workers in one process, and workers that die between any two system calls."""

from __future__ import annotations

import copy
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from proxy.limits import tokens
from proxy.limits.tokens import Pool, eventfd_count, words_needed

WORKERS = 3


class Killed(BaseException):
    """What SIGKILL would be."""


class Window:
    """A worker's timer (tokens.Timer)."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.over = callback
        self.of: object = getattr(callback, "__self__", None)

    def cancel(self) -> None:
        self.over = lambda: None


class Family:
    """Main's pool and that of each worker, in one process: what they share is shared, what they know is their own.

    ``windows``: workers may open some; whoever wants to see the end of one calls ``pass_time``.
    """

    def __init__(self, workers: int = WORKERS, limit: int | None = None, windows: bool = False) -> None:
        self.windows: list[Window] | None = [] if windows else None
        memory = memoryview(mmap.mmap(-1, 8 * words_needed(workers))).cast("Q")
        self.main = Pool(memory, workers)
        self.limited = limit is not None
        self.main.set_limit(limit)
        self.workers: list[Pool] = []
        self.workers += map(self.fork, range(workers))

    def fork(self, at: int) -> Pool:
        worker = copy.copy(self.main)
        if self.windows is not None and at < len(self.workers):
            self.windows = [window for window in self.windows if window.of is not self.workers[at]]
        worker.attach(at, self.limited, None if self.windows is None else self.later)
        return worker

    def later(self, seconds: float, callback: Callable[[], None]) -> Window:
        assert self.windows is not None and tokens.SHORTEST <= seconds <= tokens.WINDOW
        self.windows.append(Window(callback))
        return self.windows[-1]

    def pass_time(self) -> None:
        """All windows are over."""
        while self.windows:
            self.windows.pop().over()

    def set_limit(self, limit: int | None) -> None:
        """As main does it, with every worker following."""
        self.main.set_limit(limit)
        self.limited = limit is not None
        for worker in self.workers:
            worker.enforce(self.limited)

    def replace(self, at: int) -> None:
        """A worker is dead: main reaps it and forks another one."""
        self.main.reap(at)
        assert not self.main.lost, "nobody else was at work"
        self.workers[at] = self.fork(at)

    @property
    def free(self) -> int:
        return eventfd_count(self.main._free)

    @property
    def debt(self) -> int:
        return eventfd_count(self.main._debt)

    def close(self) -> None:
        self.main.close()


@contextmanager
def killed_at(call: int, before: bool) -> Iterator[list[int]]:
    """Die before or after the effect of a system call, counted from 0; yields how many were made."""
    made = [0]
    originals = tokens._read, tokens._write

    def dying(original: Callable[..., int | None]) -> Callable[..., int | None]:
        def system_call(*arguments: int) -> int | None:
            at, made[0] = made[0], made[0] + 1
            if at == call and before:
                raise Killed
            try:
                return original(*arguments)
            finally:
                if at == call:
                    raise Killed

        return system_call

    tokens._read, tokens._write = map(dying, originals)  # type: ignore[assignment]
    try:
        yield made
    finally:
        tokens._read, tokens._write = originals
