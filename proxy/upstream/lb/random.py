"""RANDOM: uniform over the hosts, weights ignored."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.config import model
    from proxy.upstream.cluster import Host


class Random:
    """Any host with equal probability."""

    __slots__ = ("_hosts",)

    def __init__(self, config: model.Cluster, hosts: Sequence[Host]) -> None:
        self._hosts = hosts

    def choose(self) -> Host:
        """The next host; there is at least one."""
        return self._hosts[int(random.random() * len(self._hosts))]
