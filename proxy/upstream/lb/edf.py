"""Earliest deadline first: the weighted schedule of round robin and least request (Envoy: EdfScheduler)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from heapq import heapify, heapreplace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.upstream.cluster import Host


class EdfScheduler:
    """Each pick pushes the host's deadline back by 1/weight; the weight is asked anew at every pick."""

    __slots__ = ("_heap", "_order", "_weight")

    def __init__(self, hosts: Sequence[Host], weight: Callable[[Host], float]) -> None:
        self._weight = weight
        self._order = len(hosts)
        # A random phase per host keeps the workers of many proxies from picking the same host first.
        self._heap = [(random.random() / weight(host), i, host) for i, host in enumerate(hosts)]
        heapify(self._heap)

    def choose(self) -> Host:
        """The host with the earliest deadline."""
        deadline, _, host = self._heap[0]
        self._order += 1
        heapreplace(self._heap, (deadline + 1.0 / self._weight(host), self._order, host))
        return host
