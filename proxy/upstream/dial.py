"""Opening a TCP connection to an upstream host, with its time limit, source address, socket options and statistics."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from proxy.deadlines import NEVER

if TYPE_CHECKING:
    from proxy.config.model import SocketAddress, TcpKeepalive
    from proxy.context import Context
    from proxy.upstream.cluster import Cluster, Host

OnConnected = Callable[[asyncio.Transport, Any], None]


class DialFailure:
    """Why no connection came about. ``reason`` is Envoy's transport failure reason (empty for a timeout)."""

    __slots__ = ("reason", "timed_out")

    def __init__(self, reason: bytes, timed_out: bool = False) -> None:
        self.reason = reason
        self.timed_out = timed_out


class Dial:
    """One attempt to connect. Ends in one call of ``on_connected`` or ``on_failed``, or silently in cancel()."""

    __slots__ = ("_cluster", "_context", "_host", "_on_connected", "_on_failed", "_started", "_task", "deadline")

    def __init__(self, context: Context, cluster: Cluster, host: Host, factory: Callable[[], asyncio.BaseProtocol],
                 on_connected: OnConnected, on_failed: Callable[[DialFailure], None]) -> None:
        self._context = context
        self._cluster = cluster
        self._host = host
        self._on_connected = on_connected
        self._on_failed = on_failed
        self._started = context.loop.time()
        timeout = cluster.config.connect_timeout
        self.deadline = self._started + timeout if timeout else NEVER
        stats = cluster.stats
        stats.upstream_cx_total += 1
        stats.upstream_cx_active += 1
        host.stats.cx_total += 1
        host.stats.cx_active += 1
        self._task = context.spawn(self._run(factory), "dial")
        context.deadlines.watch(self)

    async def _run(self, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        address = self._host.address
        try:
            transport, protocol = await self._context.loop.create_connection(
                factory, address.host, address.port, local_addr=self._source(address))
        except OSError as error:
            self._fail(DialFailure(b"delayed_connect_error: " + _describe(error)))
            return
        self._context.deadlines.unwatch(self)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if (keepalive := self._cluster.config.tcp_keepalive) is not None:
            set_keepalive(sock, keepalive)
        stats = self._cluster.stats
        elapsed = int((self._context.loop.time() - self._started) * 1000)
        stats.upstream_cx_connect_ms[elapsed] = stats.upstream_cx_connect_ms.get(elapsed, 0) + 1
        self._on_connected(transport, protocol)

    def _source(self, address: SocketAddress) -> tuple[str, int] | None:
        v6 = ":" in address.host
        for source in self._cluster.config.source_addresses:
            if (":" in source.host) == v6:
                return (source.host, source.port)
        return None

    def _fail(self, failure: DialFailure) -> None:
        self._close(local=failure.timed_out)
        stats = self._cluster.stats
        stats.upstream_cx_connect_fail += 1
        self._host.stats.cx_connect_fail += 1
        if failure.timed_out:
            stats.upstream_cx_connect_timeout += 1
        self._on_failed(failure)

    def _close(self, local: bool) -> None:
        self._context.deadlines.unwatch(self)
        self._cluster.stats.upstream_cx_active -= 1
        self._host.stats.cx_active -= 1
        self._cluster.stats.upstream_cx_destroy += 1
        if local:
            self._cluster.stats.upstream_cx_destroy_local += 1
        else:
            self._cluster.stats.upstream_cx_destroy_remote += 1

    def on_deadline(self, now: float) -> None:
        """connect_timeout has passed."""
        self._task.cancel()
        self._fail(DialFailure(b"", timed_out=True))

    def cancel(self) -> None:
        """Stop without calling back."""
        self._task.cancel()
        self._close(local=True)


def _describe(error: OSError) -> bytes:
    # create_connection reports several failed addresses as one error without a number.
    number = error.errno
    return (os.strerror(number) if number else str(error)).encode("utf-8", "replace")


def set_keepalive(sock: socket.socket, keepalive: TcpKeepalive) -> None:
    """Switch TCP keep-alive probes on (config.core.v3.TcpKeepalive)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPCNT, keepalive.probes), (socket.TCP_KEEPIDLE, keepalive.time),
                          (socket.TCP_KEEPINTVL, keepalive.interval)):
        if value:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def dial(context: Context, cluster: Cluster, host: Host, factory: Callable[[], asyncio.BaseProtocol],
         on_connected: OnConnected, on_failed: Callable[[DialFailure], None]) -> Dial:
    """Start connecting to a host of a cluster; see ``Dial``."""
    return Dial(context, cluster, host, factory, on_connected, on_failed)


def connection_closed(cluster: Cluster, host: Host, opened_at: float, now: float, *, local: bool,
                      active_rq: bool) -> None:
    """Account for the end of a connection that was reported connected; once a connection."""
    stats = cluster.stats
    stats.upstream_cx_active -= 1
    host.stats.cx_active -= 1
    stats.upstream_cx_destroy += 1
    if local:
        stats.upstream_cx_destroy_local += 1
    else:
        stats.upstream_cx_destroy_remote += 1
    if active_rq:
        stats.upstream_cx_destroy_with_active_rq += 1
        if local:
            stats.upstream_cx_destroy_local_with_active_rq += 1
        else:
            stats.upstream_cx_destroy_remote_with_active_rq += 1
    length = int((now - opened_at) * 1000)
    stats.upstream_cx_length_ms[length] = stats.upstream_cx_length_ms.get(length, 0) + 1
