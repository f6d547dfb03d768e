"""extensions.filters.network.tcp_proxy.v3.TcpProxy of one filter chain: what its sessions share."""

from __future__ import annotations

import random
from itertools import accumulate
from typing import TYPE_CHECKING

from proxy.config.overload_model import NEW_CONNECTION, TCP_CONNECT, TCP_DATA
from proxy.listener.connection_info import ConnectionInfo
from proxy.overload.worker import find
from proxy.stats.groups import TcpProxyStats
from proxy.tcp.session import TcpSession
from proxy.tcp.shedding import SheddingSession

if TYPE_CHECKING:
    from proxy.config import model
    from proxy.context import Context
    from proxy.listener.connection import Connection
    from proxy.listener.listener import ActiveListener


class TcpProxy:
    """Connects each connection with a host of its cluster and moves bytes between them."""

    def __init__(self, config: model.TcpProxy, listener: ActiveListener, context: Context) -> None:
        self.config = config
        self.context = context
        self.now = context.loop.time
        self.stats = context.registry.group(TcpProxyStats, f"tcp.{config.stat_prefix}")
        self.loggers = tuple(context.log_files.logger(c) for c in config.access_logs)
        self.buffer_limit = listener.config.per_connection_buffer_limit_bytes
        self.sessions: set[TcpSession] = set()
        overload = None if listener.config.bypass_overload_manager else context.overload
        self.sheds_connect = find(overload, TCP_CONNECT)
        self.sheds_data = find(overload, TCP_DATA)
        self.sheds_dial = find(context.overload, NEW_CONNECTION)
        """Load-shed points: None where they are not configured."""
        some = self.sheds_connect or self.sheds_data or self.sheds_dial
        self._session: type[TcpSession] = TcpSession if some is None else SheddingSession
        self._names = [name for name, _ in config.weighted_clusters]
        self._weights = list(accumulate(weight for _, weight in config.weighted_clusters))

    def protocol(self, connection: Connection) -> TcpSession:
        """The protocol of a new connection."""
        return self._session(self, connection)

    reads_at_once = False

    def opened_in_vain(self, connection: Connection) -> None:
        """As listener.filter_chain.NetworkFilter."""
        self.stats.downstream_cx_total += 1

    def received_in_vain(self, size: int) -> None:
        """It does not read."""

    def closed_in_vain(self, connection: Connection, now: float, local: bool) -> None:
        """Log it."""
        if self.loggers:
            info = ConnectionInfo(connection, now)
            for log in self.loggers:
                log(info)

    def cluster_name(self) -> str:
        """The cluster for a new session; drawn by weight where there are several."""
        if not self._names:
            return self.config.cluster
        return random.choices(self._names, cum_weights=self._weights)[0]

    def settle(self) -> None:
        """Bring the byte counters up to date: sessions count for themselves until someone looks."""
        for session in self.sessions:
            session.settle()
