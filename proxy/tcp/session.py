"""One proxied TCP connection: the client's side, the upstream's side, and what happens to each when the other ends.

On the way of the bytes there is one ``write`` and one addition; everything else (statistics, idle time) is worked out
when it is needed. Envoy: tcp_proxy Filter.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from struct import pack
from typing import TYPE_CHECKING, cast

from proxy.config.model import SocketAddress
from proxy.deadlines import NEVER
from proxy.listener.connection_info import ConnectionInfo
from proxy.upstream.dial import Dial, DialFailure, connection_closed

if TYPE_CHECKING:
    from proxy.listener.connection import Connection
    from proxy.tcp.tcp_proxy import TcpProxy
    from proxy.upstream.cluster import Cluster, Host

NO_LIMIT = 1 << 62
_RESET_ON_CLOSE = pack("ii", 1, 0)


def set_watermarks(transport: asyncio.WriteTransport, limit: int) -> None:
    """High and low watermark of what may wait to be written; 0 bytes: no limit."""
    limit = limit or NO_LIMIT
    transport.set_write_buffer_limits(high=limit, low=limit // 2)


def reset(transport: asyncio.Transport) -> None:
    """End a connection with RST, after what is already waiting has been handed to the kernel."""
    sock = transport.get_extra_info("socket")
    if sock is not None and not transport.is_closing():
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        except OSError:
            pass  # already gone
    transport.close()


class UpstreamConnection(asyncio.Protocol):
    """The upstream's side of a session."""

    __slots__ = ("_now", "eof", "lost", "reset_by_peer", "session", "transport")

    transport: asyncio.Transport

    def __init__(self, session: TcpSession) -> None:
        self.session = session
        self._now = session.now
        self.eof = False
        self.lost = False
        self.reset_by_peer = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        session = self.session
        session.bytes_sent += len(data)
        session.active_at = self._now()
        session.write(data)

    def eof_received(self) -> bool:
        self.eof = True
        self.session.upstream_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.reset_by_peer = isinstance(exc, ConnectionResetError)
        self.session.upstream_lost(self)

    def pause_writing(self) -> None:
        self.session.hold()

    def resume_writing(self) -> None:
        self.session.release()


class TcpSession(ConnectionInfo, asyncio.Protocol):
    """The client's side, and the session as a whole with its log fields."""

    __slots__ = ("_closed", "_cluster", "_counted_received", "_counted_sent", "_dial", "_early", "_eof", "_finished",
                 "_held", "_host", "_idle", "_lost", "_name", "_opened_at", "_proxy", "_until", "_upstream",
                 "_upstream_closed_by_us", "active_at", "connection", "deadline", "forward", "now", "original_dst",
                 "transport", "write")

    transport: asyncio.Transport
    write: Callable[[bytes], None]
    """To the client."""

    def __init__(self, proxy: TcpProxy, connection: Connection) -> None:
        now = proxy.now()
        super().__init__(connection, now)
        self._proxy = proxy
        self.now = proxy.now
        self.connection = connection
        connection.info = self
        self.original_dst: SocketAddress | None = connection.local if connection.restored else None
        self._name = proxy.cluster_name()
        self._cluster: Cluster | None = None
        self._host: Host | None = None
        self._dial: Dial | None = None
        self._upstream: UpstreamConnection | None = None
        """Set while the upstream connection is established and not lost."""
        self._opened_at = 0.0
        self._early: list[bytes] = []
        """Read before the upstream was connected: at most one read, then reading stops."""
        self.forward: Callable[[bytes], None] = self._keep_early
        """To the upstream."""
        self._eof = self._lost = self._held = self._finished = self._closed = False
        self._upstream_closed_by_us = False
        self._counted_received = self._counted_sent = 0
        config = proxy.config
        self.active_at = now
        self._idle = config.idle_timeout or NEVER
        limit = config.max_downstream_connection_duration
        self._until = now + limit if limit else NEVER
        self.deadline = min(now + self._idle, self._until)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.write = self.transport.write
        proxy = self._proxy
        set_watermarks(self.transport, proxy.buffer_limit)
        proxy.stats.downstream_cx_total += 1
        proxy.sessions.add(self)
        proxy.context.deadlines.watch(self)
        self._connect()

    def data_received(self, data: bytes) -> None:
        self.bytes_received += len(data)
        self.active_at = self.now()
        self.forward(data)

    def _keep_early(self, data: bytes) -> None:
        self._early.append(data)
        # Not counted before it is forwarded: Envoy does not read before the upstream is connected.
        self.bytes_received -= len(data)
        if not self._closed:
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        self._eof = True
        upstream = self._upstream
        if upstream is not None:
            if upstream.eof:
                self._finish(local=True)
            else:
                upstream.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        if self._upstream is not None and not self._upstream.transport.is_closing():
            cast("Cluster", self._cluster).stats.upstream_flow_control_paused_reading_total += 1
            self._upstream.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._upstream is not None and not self._upstream.transport.is_closing():
            cast("Cluster", self._cluster).stats.upstream_flow_control_resumed_reading_total += 1
            self._upstream.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = self._closed = True
        now = self.now()
        cluster = self._cluster
        if self._dial is not None and cluster is not None:
            self._dial.cancel()
            self._dial = None
            cluster.breakers[0].connections -= 1
            cluster.stats.upstream_rq_cancelled += 1
            self._left_pending(cluster)
        self.write = _drop
        upstream = self._upstream
        if upstream is not None:
            self.forward = _drop
            if not self._finished:
                self._upstream_closed_by_us = True
            if exc is not None and not self._finished:
                reset(upstream.transport)
            else:
                self._close_upstream(upstream)
        else:
            self._done()
        self.settle()
        self.end = now
        self.connection.closed(now)
        for log in self._proxy.loggers:
            log(self)

    # Connecting

    def _connect(self) -> None:
        proxy = self._proxy
        context = proxy.context
        cluster = self._cluster = context.clusters.get(self._name)
        if cluster is None:
            proxy.stats.downstream_cx_no_route += 1
            self._fail(b"NC")
            return
        self.upstream_cluster = cluster.log_name
        self.upstream_cluster_raw = cluster.raw_name
        stats = cluster.stats
        breaker = cluster.breakers[0]
        if breaker.connections >= breaker.limits.max_connections:
            stats.upstream_cx_overflow += 1
            self._fail(b"UO")
            return
        if self.attempt_count >= proxy.config.max_connect_attempts:
            stats.upstream_cx_connect_attempts_exceeded += 1
            self._fail(b"URX")
            return
        host = self._host = cluster.choose(self)
        if host is None:
            stats.upstream_cx_none_healthy += 1
            self._fail(b"UH")
            return
        self.attempt_count += 1
        self.upstream_host = host.text
        self._dial_host(cluster, host)

    def _dial_host(self, cluster: Cluster, host: Host) -> None:
        stats = cluster.stats
        cluster.breakers[0].connections += 1
        stats.upstream_rq_pending_total += 1
        stats.upstream_rq_pending_active += 1
        host.stats.rq_pending_active += 1
        self._dial = Dial(self._proxy.context, cluster, host, lambda: UpstreamConnection(self), self._connected,
                          self._dial_failed)

    def _left_pending(self, cluster: Cluster) -> None:
        cluster.stats.upstream_rq_pending_active -= 1
        cast("Host", self._host).stats.rq_pending_active -= 1

    def _dial_failed(self, failure: DialFailure) -> None:
        self._dial = None
        cluster = cast("Cluster", self._cluster)
        cluster.breakers[0].connections -= 1
        cluster.stats.upstream_rq_pending_failure_eject += 1
        self._left_pending(cluster)
        self.add_flag(b"UF")
        self.upstream_transport_failure_reason = failure.reason or None
        self._connect()

    def _connected(self, transport: asyncio.Transport, upstream: UpstreamConnection) -> None:
        self._dial = None
        cluster, host = cast("Cluster", self._cluster), cast("Host", self._host)
        self._left_pending(cluster)
        stats = cluster.stats
        stats.upstream_rq_total += 1
        stats.upstream_rq_active += 1
        host.stats.rq_total += 1
        host.stats.rq_active += 1
        self._opened_at = self.now()
        self._upstream = upstream
        if upstream.lost:
            self.upstream_lost(upstream)
            return
        name = transport.get_extra_info("sockname")
        if name:
            self.upstream_local_address = SocketAddress(name[0], name[1]).text.encode()
        set_watermarks(transport, cluster.config.per_connection_buffer_limit_bytes)
        self.forward = transport.write
        early = self._early
        if early:
            self._early = []
            for data in early:
                self.bytes_received += len(data)
                transport.write(data)
            if not self._held and not self._closed:
                self.transport.resume_reading()
        if self._eof:
            self.eof_received()

    def _fail(self, flag: bytes) -> None:
        self.add_flag(flag)
        if self._early and not self._closed:
            # Data that nobody will get: the client learns it by RST, as if we had never read it.
            self._closed = True
            reset(self.transport)
        else:
            self._close_downstream()

    # The upstream's side

    def hold(self) -> None:
        """The upstream takes no more for now."""
        self._held = True
        self._proxy.stats.downstream_flow_control_paused_reading_total += 1
        if not self._closed:
            self.transport.pause_reading()

    def release(self) -> None:
        """The upstream takes data again."""
        self._held = False
        self._proxy.stats.downstream_flow_control_resumed_reading_total += 1
        if not self._closed:
            self.transport.resume_reading()

    def upstream_eof(self) -> None:
        """The upstream has sent everything: the client learns it, and may still send."""
        if self._closed:
            return
        if self._eof:
            self._finish(local=False)
        else:
            self.transport.write_eof()

    def upstream_lost(self, upstream: UpstreamConnection) -> None:
        """The upstream connection is gone."""
        if upstream is not self._upstream:
            return  # not reported as connected (yet), or the attempt was cancelled
        self._upstream = None
        self.forward = _drop
        cluster, host = cast("Cluster", self._cluster), cast("Host", self._host)
        cluster.breakers[0].connections -= 1
        cluster.stats.upstream_rq_active -= 1
        host.stats.rq_active -= 1
        connection_closed(cluster, host, self._opened_at, self.now(), local=self._upstream_closed_by_us, active_rq=True)
        if self._lost:
            self._done()
        elif upstream.reset_by_peer and not self._finished:
            self.add_flag(b"UR")
            self._closed = True
            reset(self.transport)
        else:
            self._close_downstream()

    # The end

    def _finish(self, local: bool) -> None:
        """Both sides have sent everything: close, once what is left has been written.

        ``local``: the client was last, so that it is us who ends the upstream connection.
        """
        self._upstream_closed_by_us = local
        self._finished = True
        upstream = self._upstream
        self._close_downstream()
        if upstream is not None:
            self._close_upstream(upstream)

    def _close_downstream(self) -> None:
        if not self._closed:
            self._closed = True
            self.transport.close()

    def _close_upstream(self, upstream: UpstreamConnection) -> None:
        if upstream.transport.is_closing():
            return
        if upstream.transport.get_write_buffer_size():
            self._proxy.stats.upstream_flush_total += 1
        upstream.transport.close()

    def _done(self) -> None:
        proxy = self._proxy
        proxy.sessions.discard(self)
        proxy.context.deadlines.unwatch(self)
        self.deadline = NEVER

    def settle(self) -> None:
        """Add the bytes since the last call to the statistics."""
        stats = self._proxy.stats
        cluster = self._cluster
        received = self.bytes_received - self._counted_received
        if received:
            self._counted_received += received
            stats.downstream_cx_rx_bytes_total += received
            if cluster is not None:
                cluster.stats.upstream_cx_tx_bytes_total += received
        sent = self.bytes_sent - self._counted_sent
        if sent:
            self._counted_sent += sent
            stats.downstream_cx_tx_bytes_total += sent
            if cluster is not None:
                cluster.stats.upstream_cx_rx_bytes_total += sent

    def on_deadline(self, now: float) -> None:
        """Idle for too long, open for too long, or neither yet."""
        if now >= self._until:
            self._until = NEVER
            self._proxy.stats.max_downstream_connection_duration += 1
            self.add_flag(b"DT")
            self._abort()
        elif now >= self.active_at + self._idle:
            self._proxy.stats.idle_timeout += 1
            self._abort()
        else:
            self.deadline = min(self.active_at + self._idle, self._until)

    def close(self) -> None:
        """End both connections now, as when the listener or the worker ends."""
        self._abort()

    def work(self) -> tuple[int, int]:
        """Requests so far and under way: it knows none and is one itself."""
        return 0, 1

    def _abort(self) -> None:
        self._finished = self._closed = self._upstream_closed_by_us = True
        upstream = self._upstream
        if not self._lost:
            self.transport.abort()
        if upstream is not None:
            upstream.transport.abort()


def _drop(_: bytes) -> None:
    """Where bytes go that nobody can take any more."""
