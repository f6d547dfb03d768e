"""Sessions of tcp_proxy where load-shed points are configured; others are not asked anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.tcp.session import TcpSession

if TYPE_CHECKING:
    from proxy.upstream.cluster import Cluster, Host


class SheddingSession(TcpSession):
    """A session that may end for overload: before it has a cluster, instead of a dial, or at any data."""

    __slots__ = ()

    def _connect(self) -> None:
        sheds = self._proxy.sheds_connect
        if sheds is not None and sheds():
            self._shed()
        else:
            super()._connect()

    def _dial_host(self, cluster: Cluster, host: Host) -> None:
        sheds = self._proxy.sheds_dial
        if sheds is None or not sheds():
            super()._dial_host(cluster, host)
            return
        # As in Envoy: the pool has no connection for it, and the attempt counts as one that failed.
        cluster.stats.upstream_rq_pending_total += 1
        cluster.stats.upstream_rq_cancelled += 1
        self.upstream_host = None
        # Not at once: max_connect_attempts may be more than Python's stack holds.
        self._proxy.context.loop.call_soon(self._try_again)

    def _try_again(self) -> None:
        if not self._closed:
            self._connect()

    def data_received(self, data: bytes) -> None:
        sheds = self._proxy.sheds_data
        if sheds is None or not sheds():
            super().data_received(data)
        elif not self._closed:
            self.bytes_received += len(data)
            self._shed()

    def _shed(self) -> None:
        """End both connections: the client's with FIN once what it is owed was sent."""
        self._proxy.stats.downstream_cx_overload_close += 1
        self.add_flag(b"OM")
        self._finished = self._upstream_closed_by_us = True
        upstream = self._upstream
        self._close_downstream()
        if upstream is not None:
            upstream.transport.abort()
