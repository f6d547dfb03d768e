"""Tokens among real processes that are killed at any moment.

What holds is checked by other means than the pool's own: whoever has a token also takes one of as many file locks. The
kernel gives these back when a process dies, so one that finds no lock is one too many.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import signal
import time
from pathlib import Path
from typing import NoReturn

import pytest

from proxy.limits import tokens
from proxy.limits.tokens import Pool, eventfd_count, words_needed

WORKERS, LIMIT = 4, 5
KILLS = 60
ONE_TOO_MANY = 3
"""Exit code."""


class Never:
    """A timer: this worker ends its windows itself."""

    def cancel(self) -> None:
        """It will not."""


def work(pool: Pool, at: int, folder: Path, seed: int, parent: int, windows: bool) -> NoReturn:
    """Take and release at random until killed, or nobody is there to do that."""
    code = 1
    try:
        tokens.ROOM = 0
        pool.attach(at, True, (lambda _, callback: Never()) if windows else None)
        chance = random.Random(seed)
        locks = [os.open(folder / str(number), os.O_RDWR) for number in range(LIMIT)]
        held: list[int] = []
        while os.getppid() == parent:
            if chance.random() < 0.2:
                pool.settle()
            if held and chance.random() < 0.5:
                fcntl.flock(held.pop(), fcntl.LOCK_UN)
                pool.release()
            elif pool.take():
                for lock in locks:
                    if lock not in held and locked(lock):
                        held.append(lock)
                        break
                else:
                    code = ONE_TOO_MANY
                    break
    finally:
        os._exit(code)


def locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def settle(pool: Pool) -> None:
    """Audit until nothing is in doubt, as main does."""
    deadline = time.monotonic() + 10
    while pool.lost and not pool.audit():
        assert time.monotonic() < deadline, "no quiet moment in ten seconds"


@pytest.mark.parametrize(("seed", "windows"), [(1, False), (2, False), (3, True), (4, True)])
def test_killed_at_any_moment(tmp_path: Path, seed: int, windows: bool) -> None:
    for number in range(LIMIT):
        (tmp_path / str(number)).touch()
    pool = Pool(memoryview(mmap.mmap(-1, 8 * words_needed(WORKERS))).cast("Q"), WORKERS)
    pool.set_limit(LIMIT)
    chance = random.Random(seed)

    def fork(at: int) -> int:
        own_seed, parent = chance.randrange(1 << 30), os.getpid()
        pid = os.fork()
        if pid == 0:
            work(pool, at, tmp_path, own_seed, parent, windows)
        return pid

    pids = {at: fork(at) for at in range(WORKERS)}
    busy = 0
    try:
        for _ in range(KILLS):
            time.sleep(chance.random() * 0.01)  # the moment of the kill
            at = chance.randrange(WORKERS)
            os.kill(pids[at], signal.SIGKILL)
            _, status = os.waitpid(pids.pop(at), 0)
            assert os.WIFSIGNALED(status), f"a worker ended with code {os.waitstatus_to_exitcode(status)}"
            pool.reap(at)
            busy += pool.lost
            pids[at] = fork(at)
            if pool.lost:
                pool.audit()
    finally:
        statuses = []
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
            statuses.append(os.waitpid(pid, 0)[1])
    assert all(os.WIFSIGNALED(status) for status in statuses)
    for at in range(WORKERS):
        pool.reap(at)
    settle(pool)
    assert busy and pool.refused
    assert (pool.in_use, eventfd_count(pool._free), eventfd_count(pool._debt)) == (0, LIMIT, 0)
    assert pool.highest == LIMIT
    pool.close()
