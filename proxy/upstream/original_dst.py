"""ORIGINAL_DST clusters: the host is where the client wanted to go, made on demand and dropped when unused."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from proxy.config import model
from proxy.config.model import SocketAddress
from proxy.upstream.cluster import Cluster, Host

if TYPE_CHECKING:
    from proxy.context import Context


def parse_host_header(value: bytes) -> SocketAddress | None:
    """``ip:port`` (``[v6]:port``) of x-envoy-original-dst-host; None when it is not one."""
    host, colon, port = value.rpartition(b":")
    if not colon or not port.isdigit() or len(port) > 5 or not 0 < int(port) < 65536:
        return None
    try:
        return SocketAddress(str(ipaddress.ip_address(host.decode("ascii").strip("[]"))), int(port))
    except ValueError:
        return None


class OriginalDstCluster(Cluster):
    """Hosts by address; ``cleanup_interval`` seconds without a connection or request, and a host is forgotten."""

    def __init__(self, config: model.Cluster, context: Context) -> None:
        super().__init__(config, context)
        self._by_address: dict[SocketAddress, Host] = {}
        self.deadline = context.loop.time() + config.cleanup_interval
        context.deadlines.watch(self)

    def choose(self, lb: Any) -> Host | None:
        """The host at the restored destination, or at the one that the configured header names."""
        config = self.config
        address: SocketAddress | None = lb.original_dst
        if config.use_http_header and lb.request_headers is not None:
            value = lb.request_headers.get(config.http_header_name)
            if value is not None:
                named = parse_host_header(value)
                if named is None:
                    self.stats.original_dst_host_invalid += 1
                else:
                    address = named
        if address is None:
            return None
        if config.upstream_port_override:
            address = SocketAddress(address.host, config.upstream_port_override)
        host = self._by_address.get(address)
        if host is None:
            host = self._by_address[address] = Host(self, address, model.Endpoint(address))
            self._changed()
        host.used_at = self.context.loop.time()
        return host

    def _changed(self) -> None:
        self.hosts = list(self._by_address.values())
        stats = self.stats
        stats.membership_change += 1
        stats.membership_total = stats.membership_healthy = len(self.hosts)

    def on_deadline(self, now: float) -> None:
        """Forget hosts that nothing has used since the last interval."""
        interval = self.config.cleanup_interval
        stale = [a for a, h in self._by_address.items()
                 if now - h.used_at >= interval and not h.stats.cx_active and not h.stats.rq_active]
        for address in stale:
            del self._by_address[address]
        if stale:
            self._changed()
        self.deadline = now + interval
