"""LEAST_REQUEST: the least busy of ``choice_count`` random hosts; with unequal weights, weight by activity."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from proxy.upstream.lb.edf import EdfScheduler

if TYPE_CHECKING:
    from proxy.config import model
    from proxy.upstream.cluster import Host


class LeastRequest:
    """Power of two choices (Envoy: LeastRequestLoadBalancer)."""

    __slots__ = ("_bias", "_choices", "_edf", "_hosts")

    def __init__(self, config: model.Cluster, hosts: Sequence[Host]) -> None:
        self._hosts = hosts
        self._choices = range(config.choice_count - 1)
        self._bias = config.active_request_bias
        equal = len({h.weight for h in hosts}) == 1
        self._edf = None if equal else EdfScheduler(hosts, self._effective_weight)

    def _effective_weight(self, host: Host) -> float:
        return float(host.weight / (host.stats.rq_active + 1) ** self._bias)

    def choose(self) -> Host:
        """The next host; there is at least one."""
        hosts = self._hosts
        count = len(hosts)
        if count == 1:
            return hosts[0]
        if self._edf is not None:
            return self._edf.choose()
        best = hosts[int(random.random() * count)]
        for _ in self._choices:
            other = hosts[int(random.random() * count)]
            if other.stats.rq_active < best.stats.rq_active:
                best = other
        return best
