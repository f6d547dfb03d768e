"""ROUND_ROBIN: cyclic from a random start where weights are equal, else earliest deadline first."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from proxy.upstream.lb.edf import EdfScheduler

if TYPE_CHECKING:
    from proxy.config import model
    from proxy.upstream.cluster import Host


class RoundRobin:
    """Envoy's default policy."""

    __slots__ = ("_edf", "_hosts", "_next")

    def __init__(self, config: model.Cluster, hosts: Sequence[Host]) -> None:
        self._hosts = hosts
        self._next = random.randrange(len(hosts))
        equal = len({h.weight for h in hosts}) == 1
        self._edf = None if equal else EdfScheduler(hosts, lambda host: host.weight)

    def choose(self) -> Host:
        """The next host; there is at least one."""
        if self._edf is not None:
            return self._edf.choose()
        at = self._next
        self._next = at + 1 if at + 1 < len(self._hosts) else 0
        return self._hosts[at]
