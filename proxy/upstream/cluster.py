"""A cluster of one worker: its hosts, how one of them is chosen, its limits and statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from proxy.config import model
from proxy.config.model import SocketAddress
from proxy.stats.groups import ClusterStats, CodeStats, HostStats, ThresholdStats
from proxy.upstream.lb import POLICIES, LoadBalancer
from proxy.upstream.pool import Pool

if TYPE_CHECKING:
    from proxy.context import Context
    from proxy.http.headers import Headers


class LbContext:
    """What a policy may look at. The HTTP stream and the TCP session have the same attributes."""

    __slots__ = ("original_dst", "request_headers")

    def __init__(self, original_dst: SocketAddress | None, request_headers: Headers | None = None) -> None:
        self.original_dst = original_dst
        self.request_headers = request_headers


class Host:
    """One upstream address. ``text`` is ``ip:port`` as logged; pools are per priority (default, high)."""

    __slots__ = ("address", "endpoint", "hostname", "pools", "stats", "text", "used_at", "weight")

    def __init__(self, cluster: Cluster, address: SocketAddress, endpoint: model.Endpoint) -> None:
        self.address = address
        self.endpoint = endpoint
        self.hostname = endpoint.hostname.encode()
        self.text = address.text.encode()
        self.weight = endpoint.weight
        self.stats = HostStats("")
        self.used_at = 0.0
        cluster.stats.transport_matches += 1
        self.pools = (Pool(cluster, self, cluster.breakers[0]), Pool(cluster, self, cluster.breakers[1]))

    def close(self) -> None:
        """Drop idle connections; busy ones end with their request."""
        for pool in self.pools:
            pool.drain()


class Breaker:
    """Circuit breaker of one priority: what is open now, against its limits (per worker)."""

    __slots__ = ("connections", "limits", "pending", "requests", "retries", "stats")

    def __init__(self, limits: model.Thresholds, stats: ThresholdStats) -> None:
        self.limits = limits
        self.stats = stats
        self.connections = 0
        self.pending = 0
        self.requests = 0
        self.retries = 0

    def show(self) -> None:
        """Bring the ``*_open`` gauges up to date; called when statistics are read."""
        limits = self.limits
        self.stats.cx_open = int(self.connections >= limits.max_connections)
        self.stats.rq_open = int(self.requests >= limits.max_requests)
        self.stats.rq_pending_open = int(self.pending >= limits.max_pending_requests)
        self.stats.rq_retry_open = int(self.retries >= limits.max_retries)


class Cluster:
    """config.cluster.v3.Cluster at work. Subclasses fill ``hosts`` (DNS) or make hosts on demand (ORIGINAL_DST)."""

    def __init__(self, config: model.Cluster, context: Context) -> None:
        self.config = config
        self.context = context
        self.name = config.name
        self.raw_name = config.name.encode()
        self.stat_name = (config.alt_stat_name or config.name).replace(":", "_")
        self.log_name = (config.alt_stat_name or config.name).encode()
        prefix = f"cluster.{self.stat_name}"
        registry = context.registry
        self.stats = registry.group(ClusterStats, prefix)
        self.breakers = (
            Breaker(config.default, registry.group(ThresholdStats, f"{prefix}.circuit_breakers.default")),
            Breaker(config.high, registry.group(ThresholdStats, f"{prefix}.circuit_breakers.high")),
        )
        self.alternatives: dict[str, CodeStats] = {}
        """By x-envoy-upstream-alt-stat-name."""
        self.hosts: Sequence[Host] = ()
        self._lb: LoadBalancer | None = None
        if config.type == model.STATIC:
            self.set_hosts([Host(self, e.address, e) for e in config.endpoints])
            self.stats.max_host_weight = 0  # as in Envoy, which sets it with updates only

    def set_hosts(self, hosts: Sequence[Host]) -> None:
        """Replace the members; the load balancer starts anew over them."""
        stats = self.stats
        stats.membership_change += 1
        stats.membership_total = stats.membership_healthy = len(hosts)
        stats.max_host_weight = max((h.weight for h in hosts), default=0)
        self.hosts = hosts
        self._lb = POLICIES[self.config.lb_policy](self.config, hosts) if hosts else None

    def choose(self, lb: Any) -> Host | None:
        """The host for a request (``lb`` has LbContext's attributes); None when there is none."""
        balancer = self._lb
        if balancer is None:
            self.stats.lb_healthy_panic += 1
            return None
        return balancer.choose()

    async def start(self) -> None:
        """Become ready: resolve names where that is needed."""

    def close(self) -> None:
        """Close every idle connection."""
        for host in self.hosts:
            host.close()

    def status(self) -> dict[str, Any]:
        """What /clusters shows of this cluster, as plain values."""
        config = self.config
        return {
            "name": self.name,
            "observability_name": config.alt_stat_name or config.name,
            "thresholds": [
                {"max_connections": t.max_connections, "max_pending_requests": t.max_pending_requests,
                 "max_requests": t.max_requests, "max_retries": t.max_retries}
                for t in (config.default, config.high)
            ],
            "hosts": [
                {
                    "address": host.address.text,
                    "hostname": host.endpoint.hostname,
                    "weight": host.weight,
                    "region": host.endpoint.region,
                    "zone": host.endpoint.zone,
                    "sub_zone": host.endpoint.sub_zone,
                    "stats": {name: getattr(host.stats, name) for name in HostStats.KINDS},
                }
                for host in self.hosts
            ],
        }
