"""One worker's data plane: clusters, listeners and their filter chains on one event loop."""

from __future__ import annotations

import asyncio
import heapq
from asyncio import AbstractEventLoop
from typing import TYPE_CHECKING, Any

from proxy.access_log.file import FilesystemStats, LogFiles
from proxy.context import Context
from proxy.limits.pools import SPARE
from proxy.limits.rules import make_pools
from proxy.limits.worker import WorkerLimits
from proxy.listener.accept import BindError
from proxy.listener.manager import ListenerManager
from proxy.overload.streams import StreamResetter
from proxy.tcp.tcp_proxy import TcpProxy
from proxy.upstream.manager import ClusterManager

if TYPE_CHECKING:
    from proxy.config.model import Bootstrap, SocketAddress
    from proxy.dns.server import DnsServer
    from proxy.limits.pools import Order, Pools
    from proxy.listener.connection import Connection
    from proxy.listener.filter_chain import Closable
    from proxy.listener.listener import ActiveListener
    from proxy.options import Options
    from proxy.stats.groups import Snapshot

__all__ = ["BindError", "DataPlane"]


LAST_ROUNDS = 50
"""Rounds of the loop that connections get to end in when the worker ends; they need two or three."""


class DataPlane:
    """Everything that serves traffic in one worker. Life: construct, ``bind``, ``start``, ..., ``close``.

    The constructor raises access_log.file.LogFileError for a log file that cannot be opened.
    """

    def __init__(self, bootstrap: Bootstrap, options: Options, loop: AbstractEventLoop, worker: int,
                 pools: Pools | None = None) -> None:
        self.log_files = LogFiles(loop, options.file_flush_interval, options.file_flush_min_size_kb * 1024)
        self.context = Context(loop, bootstrap, options, self.log_files, worker)
        self.log_files.stats = self.context.registry.group(FilesystemStats, "filesystem")
        # Without pools that were made for all workers, limits are this worker's own.
        if pools is None:
            self.context.limits = WorkerLimits(make_pools(bootstrap, 1, SPARE), 0)
        else:
            self.context.limits = WorkerLimits(pools, worker, loop.call_later)
        self.clusters = ClusterManager(self.context)
        self.listeners = ListenerManager(self.context)
        self.dns: DnsServer | None = None
        if options.dns.enabled:
            from proxy.dns.server import DnsServer  # a megabyte that most processes can do without

            self.dns = DnsServer(self.context, options.dns)
        if (overload := self.context.overload) is not None:
            StreamResetter(overload, self._overload_concerns, self.context.registry, loop)

    def bind(self) -> None:
        """Bind every listening address. Raises BindError with Envoy's text."""
        self.listeners.bind()
        if self.dns is not None:
            self.dns.bind()

    async def start(self) -> None:
        """Initialise the clusters (names are resolved, within a limit), then accept. Raises BindError."""
        if self.dns is not None:
            self.dns.start()  # first: names of clusters may be asked here
        await self.clusters.start()
        self.listeners.start()

    def addresses(self) -> dict[str, list[SocketAddress]]:
        """Listener name -> bound addresses."""
        return {one.config.name: one.addresses for one in self.listeners.listeners}

    def snapshot(self, flush: bool) -> Snapshot:
        """All statistics of this worker; ``flush`` hands over what histograms have gathered."""
        self.clusters.show_breakers()
        for listener in self.listeners.listeners:
            for chain in listener.chains:
                if isinstance(chain.network_filter, TcpProxy):
                    chain.network_filter.settle()
        return self.context.registry.snapshot(flush)

    def cluster_status(self) -> list[dict[str, Any]]:
        """Clusters with their hosts, for /clusters."""
        return self.clusters.status()

    def connections(self, limit: int) -> tuple[int, list[dict[str, Any]]]:
        """How many downstream connections are open, and the ``limit`` oldest, for /connections.

        ``age`` is seconds, ``active`` counts requests under way (a raw connection is one), ``requests`` all so far.
        """
        found = [(connection, protocol) for listener in self.listeners.listeners
                 for connection, protocol in listener.all_connections()]
        oldest = heapq.nsmallest(limit, found, key=lambda each: (each[0].accepted_at, each[0].id))
        now = self.context.loop.time()
        return len(found), [_describe(connection, protocol, now) for connection, protocol in oldest]

    def limit_clients(self) -> dict[str, list[tuple[str, int]]]:
        """Who holds the connections that count for each limit, for /limits."""
        limits = self.context.limits
        return {} if limits is None else limits.clients(
            connection for listener in self.listeners.listeners for connection, _ in listener.all_connections())

    def drain_listeners(self, inbound_only: bool, graceful: bool, skip_exit: bool) -> None:
        """/drain_listeners."""
        self.listeners.drain(inbound_only=inbound_only, graceful=graceful, skip_exit=skip_exit)

    def set_health_failed(self, failed: bool) -> None:
        """/healthcheck/fail and /healthcheck/ok."""
        self.context.health_failed = failed
        self.listeners.health_changed()

    def _overload_concerns(self) -> list[ActiveListener]:
        return [one for one in self.listeners.listeners if not one.config.bypass_overload_manager]

    def set_overload(self, values: dict[str, float]) -> None:
        """How strongly overload actions and load-shed points act (0 to 1), by name; others stay as they are."""
        if self.context.overload is not None:
            self.context.overload.apply(values)

    async def set_runtime(self, values: dict[str, object], order: Order) -> None:
        """Values of the runtime, and which connection limits there are; in force when this returns."""
        self.context.runtime = values
        if self.context.limits is not None:
            await self.context.limits.apply(order, self.listeners.listeners)

    def reopen_logs(self) -> None:
        """Open the access log files by their paths again."""
        self.log_files.reopen()

    def flush_logs(self) -> None:
        """Write out what waits in the access logs."""
        self.log_files.flush()

    async def close_connections(self) -> None:
        """Stop listening and cut every connection, and let them write their last log lines."""
        self.listeners.close()
        for _ in range(LAST_ROUNDS):
            if not self.listeners.has_connections:
                return
            # Protocols hear of their end in a later round of the loop.
            await asyncio.sleep(0)

    def close(self) -> None:
        """Close sockets and write out logs; the loop may be stopped afterwards."""
        if self.dns is not None:
            self.dns.close()
        self.listeners.close()
        self.clusters.close()
        self.context.close()
        self.log_files.close()


def _describe(connection: Connection, protocol: Closable | None, now: float) -> dict[str, Any]:
    """One connection; ``protocol`` is None while its listener filters wait for data."""
    config = connection.listener.config
    requests, active = (0, 0) if protocol is None else protocol.work()
    return {"listener": config.name or config.addresses[0].text, "direction": config.traffic_direction,
            "peer": connection.remote.text, "local": connection.local.text,
            "age": round(now - connection.accepted_at, 3), "requests": requests, "active": active}
