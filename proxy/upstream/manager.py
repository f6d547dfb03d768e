"""All clusters of one worker by name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from proxy.config import model
from proxy.upstream.cluster import Cluster
from proxy.upstream.original_dst import OriginalDstCluster
from proxy.upstream.strict_dns import StrictDnsCluster

if TYPE_CHECKING:
    from proxy.context import Context

TYPES: dict[str, Callable[[model.Cluster, Context], Cluster]] = {
    model.STATIC: Cluster,
    model.STRICT_DNS: StrictDnsCluster,
    model.ORIGINAL_DST: OriginalDstCluster,
}

RESOLVE_LIMIT = 5.0
"""Seconds that start-up waits for the first DNS answers; a cluster without one answers 503 until it has."""


class ClusterManager:
    """Made once per worker from the bootstrap's clusters."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._clusters = {c.name: TYPES[c.type](c, context) for c in context.bootstrap.clusters}
        context.clusters = self

    def get(self, name: str) -> Cluster | None:
        """The cluster of that name."""
        return self._clusters.get(name)

    async def start(self) -> None:
        """Initialise every cluster; returns when all are ready or the time is up."""
        pending = [self._context.spawn(c.start(), f"start {c.name}") for c in self._clusters.values()]
        if pending:
            await asyncio.wait(pending, timeout=RESOLVE_LIMIT)

    def status(self) -> list[dict[str, Any]]:
        """For /clusters."""
        return [c.status() for c in self._clusters.values()]

    def show_breakers(self) -> None:
        """Refresh gauges that follow from others before a snapshot."""
        active: dict[str, int] = {}
        for cluster in self._clusters.values():
            active[cluster.stat_name] = active.get(cluster.stat_name, 0) + sum(b.requests for b in cluster.breakers)
            cluster.stats.upstream_rq_active = active[cluster.stat_name]
            for breaker in cluster.breakers:
                breaker.show()

    def close(self) -> None:
        """Close idle connections."""
        for cluster in self._clusters.values():
            cluster.close()
