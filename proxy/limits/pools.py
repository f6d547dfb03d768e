"""The pools of all limits: main makes them before it forks, workers inherit them and are told what is in force.

A limit is known by its key: ``GLOBAL``, ``listener_key(name)``, or the id of a network filter. Limits of the
configuration have their pools from the start; for those that only the admin interface sets, some pools are held ready
(``SPARE``), so the number of descriptors is bounded: two a pool.
"""

from __future__ import annotations

import mmap
import resource
from typing import NamedTuple

from proxy.limits.tokens import MOST, Later, Pool, words_needed

GLOBAL = "global"
SPARE = 32
"""Limits that /runtime_modify may add to those of the configuration."""

Order = list[tuple[str, int, bool]]
"""What main tells workers of limits: (key, position of its pool, a limit is in force that could bind)."""


def listener_key(name: str) -> str:
    """The key of a listener's own limit."""
    return f"listener/{name}"


class Limit(NamedTuple):
    """A limit in force. ``value`` None: counted, but not limited. ``source`` is what set it, for the operator."""

    key: str
    value: int | None
    kind: str
    """``global``, ``listener`` or ``filter``."""
    name: str
    """Of the listener, or the statistics' prefix of the filter."""
    source: str


class NoDescriptors(Exception):
    """Too many limits for the descriptors that a process may have; the text is for the operator."""


class TooManyLimits(Exception):
    """No pool is left for a limit; the text is for the operator."""


def most_connections(workers: int) -> int:
    """What all workers could hold with their descriptors (RLIMIT_NOFILE): limits from here on never bind.

    The hard limit of descriptors may be a thousand million; more than ``tokens.MOST`` connections have no memory.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if hard == resource.RLIM_INFINITY else min(hard * workers, MOST)


class Pools:
    """All pools of one proxy: ``keys`` (those of the configuration) have theirs from the start.

    Raises NoDescriptors.
    """

    def __init__(self, workers: int, keys: list[str], spare: int) -> None:
        size = words_needed(workers)
        self._memory = memoryview(mmap.mmap(-1, 8 * size * max(1, len(keys) + spare))).cast("Q")
        self.all: list[Pool] = []
        try:
            for at in range(len(keys) + spare):
                self.all.append(Pool(self._memory[at * size:(at + 1) * size], workers))
        except OSError as error:
            for pool in self.all:
                pool.close()
            raise NoDescriptors(f"{len(keys)} connection limits need two file descriptors each: {error.strerror}"
                                ) from None
        self._places = {key: at for at, key in enumerate(keys)}
        self._most = most_connections(workers)
        self.limits: dict[str, Limit] = {}
        """What is in force, by key."""

    def descriptors(self) -> set[int]:
        """What a worker has to keep open."""
        return {descriptor for pool in self.all for descriptor in pool.descriptors()}

    def pool(self, key: str) -> Pool:
        """The pool of a key that has one."""
        return self.all[self._places[key]]

    # --- main -------------------------------------------------------------------------------------------------------

    def check(self, limits: list[Limit]) -> None:
        """Raise TooManyLimits if these cannot be in force together."""
        new = [limit for limit in limits if limit.key not in self._places]
        if len(new) > len(self.all) - len(self._places):
            raise TooManyLimits(f"{new[-1].source}: at most {SPARE} limits can be added at run time")

    def put_in_force(self, limits: list[Limit]) -> None:
        """These and no others; to be followed by ``order`` to every worker. Raises TooManyLimits.

        What was limited once is counted from then on, also when the limit is taken away.
        """
        self.check(limits)
        given = {limit.key: limit for limit in limits}
        for key, limit in self.limits.items():
            given.setdefault(key, limit._replace(value=None, source=""))
        for key, limit in given.items():
            at = self._places.setdefault(key, len(self._places))
            self.all[at].set_limit(limit.value if self._binds(limit) else None)
        self.limits = given

    def _binds(self, limit: Limit) -> bool:
        return limit.value is not None and limit.value < self._most

    def order(self) -> Order:
        """What a worker has to know."""
        return [(key, self._places[key], self._binds(limit)) for key, limit in self.limits.items()]

    def reap(self, worker: int) -> None:
        """A worker has been waited for: give back what it held."""
        for pool in self.all:
            pool.reap(worker)

    @property
    def lost(self) -> list[Pool]:
        """Pools that need an audit."""
        return [pool for pool in self.all if pool.lost]

    def tidy(self) -> None:
        """Now and then: keep takers from work that is over."""
        for pool in self.all:
            pool.tidy()


class WorkerPools:
    """The pools of one worker that are in use; ``later`` as for `Pool.attach`."""

    def __init__(self, pools: Pools, worker: int, later: Later | None = None) -> None:
        self._pools = pools
        self._worker = worker
        self._later = later
        self.in_use: dict[str, Pool] = {}
        """By the key of the limit."""
        self.apply(pools.order())

    def apply(self, order: Order) -> set[str]:
        """Follow main; the keys that are new. Connections that are there already are the caller's to charge."""
        new = set()
        for key, at, binds in order:
            pool = self._pools.all[at]
            if key in self.in_use:
                pool.enforce(binds)
            else:
                pool.attach(self._worker, binds, self._later)
                self.in_use[key] = pool
                new.add(key)
        return new
