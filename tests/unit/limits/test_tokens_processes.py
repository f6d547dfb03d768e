"""Tokens among real processes that are killed at any moment, also while the limit changes.

What holds is checked by other means than the pool's own: whoever has a token also takes one of as many file locks. The
kernel gives these back when a process dies, so one that finds no lock is one too many. Where the limit changes, numbers
of connections are added up under a lock instead.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import signal
import socket
import time
from collections.abc import Callable
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


MOST_HELD = 8
"""By one worker, where there is no limit."""
ANY = 999
"""Instead of a limit: there is none, or it is being changed."""


class Counts:
    """What workers hold, and how many it may be, with the number of changes in front of it."""

    def __init__(self, folder: Path) -> None:
        self._words = memoryview(mmap.mmap(-1, 8 * (WORKERS + 1))).cast("Q")
        self._lock = folder / "lock"
        self._lock.touch()
        self.bind(ANY)

    @property
    def bound(self) -> int:
        return self._words[WORKERS]

    def bind(self, limit: int) -> None:
        self._words[WORKERS] = (self.bound // 1000 + 1) * 1000 + limit

    def add(self, at: int, count: int) -> int:
        """The sum afterwards. Whoever is killed meanwhile gives the lock back."""
        with self._lock.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._words[at] += count
            return self.held

    def dead(self, at: int) -> None:
        self._words[at] = 0

    @property
    def held(self) -> int:
        return sum(self._words[:WORKERS])


def follow(pool: Pool, at: int, counts: Counts, charged: bool, orders: socket.socket, seed: int) -> NoReturn:
    """Take and release at random, and do as main says, until killed or main is gone."""
    code = 1
    try:
        tokens.ROOM = 0
        orders.setblocking(False)
        pool.attach(at, charged, lambda _, callback: Never())
        chance = random.Random(seed)
        held = 0
        while True:
            try:
                order = orders.recv(1)
            except BlockingIOError:
                if chance.random() < 0.2:
                    pool.settle()
            else:
                if not order:
                    break
                pool.enforce(order == b"+")
                orders.send(order)
            if held and (held == MOST_HELD or chance.random() < 0.5):
                held -= 1
                counts.add(at, -1)
                pool.release()
                continue
            bound = counts.bound
            if pool.take():
                held += 1
                if counts.add(at, 1) > bound % 1000 and counts.bound == bound:
                    code = ONE_TOO_MANY
                    break
    finally:
        os._exit(code)


class Followers:
    """Main, and its workers."""

    def __init__(self, workers: int, folder: Path, seed: int) -> None:
        self.pool = Pool(memoryview(mmap.mmap(-1, 8 * words_needed(workers))).cast("Q"), workers)
        self.counts = Counts(folder)
        self.chance = random.Random(seed)
        self.limited = False
        self.pids: dict[int, int] = {}
        self._orders: dict[int, socket.socket] = {}
        for at in range(workers):
            self.fork(at)

    def fork(self, at: int) -> None:
        seed = self.chance.randrange(1 << 30)
        ours, theirs = socket.socketpair()
        self.pids[at] = os.fork()
        if self.pids[at] == 0:
            for other in [ours, *self._orders.values()]:
                other.close()
            follow(self.pool, at, self.counts, self.limited, theirs, seed)
        theirs.close()
        self._orders[at] = ours

    def kill(self, at: int) -> None:
        """With whatever it is doing; everything is given back, or will be by an audit."""
        os.kill(self.pids[at], signal.SIGKILL)
        _, status = os.waitpid(self.pids.pop(at), 0)
        self._orders.pop(at).close()
        assert os.WIFSIGNALED(status), f"a worker ended with code {os.waitstatus_to_exitcode(status)}"
        self.counts.dead(at)
        self.pool.reap(at)

    def change(self, limit: int | None, victim: int | None) -> None:
        """As main does it; ``victim`` is killed while workers follow."""
        self.counts.bind(ANY)
        self.pool.set_limit(limit)
        self.limited = limit is not None
        order = b"+" if self.limited else b"-"
        self._send(order)
        if victim is not None:
            self.kill(victim)
            self.fork(victim)
        self._wait(victim)
        self._send(order)  # once more (RuntimeControl.change)
        self._wait(None)
        self.counts.bind(ANY if limit is None else limit)

    def _send(self, order: bytes) -> None:
        for orders in self._orders.values():
            orders.send(order)

    def _wait(self, victim: int | None) -> None:
        for at, orders in self._orders.items():
            assert at == victim or orders.recv(1), "this worker has ended"

    def wait_for(self, condition: Callable[[int], bool]) -> None:
        """Until it holds for what is held."""
        deadline = time.monotonic() + 10
        while not condition(self.counts.held):
            if self.pool.lost:
                self.pool.audit()
            assert time.monotonic() < deadline, "not in ten seconds"


@pytest.mark.parametrize("workers", [1, WORKERS])
def test_a_limit_that_changes_among_workers_that_are_killed(tmp_path: Path, workers: int) -> None:
    main = Followers(workers, tmp_path, workers)
    try:
        for _ in range(60):
            limit = main.chance.choice([None, 0, 1, 2, LIMIT, LIMIT + 2])
            main.change(limit, main.chance.randrange(workers) if main.chance.random() < 0.5 else None)
            if limit is None:
                main.wait_for(lambda held: held >= MOST_HELD // 2)
            else:
                main.wait_for(lambda held, limit=limit: held == limit)  # type: ignore[misc]
    finally:
        for at in list(main.pids):
            main.kill(at)
    pool = main.pool
    settle(pool)
    assert pool.in_use == 0 and pool.highest and pool.refused
    if workers > 1:
        assert eventfd_count(pool._free) - eventfd_count(pool._debt) == pool.issued
    pool.close()
