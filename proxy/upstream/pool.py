"""Connection pools: one per worker, host and priority. HTTP/1: one request a connection, the latest idle one first.

A request that finds no idle connection waits in order of arrival; connections are opened for as many waiters as
there are, within the circuit breaker, and a waiter takes whichever connection is free first (Envoy: ConnPoolImplBase).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from proxy.config.overload_model import NEW_CONNECTION
from proxy.overload.worker import find
from proxy.upstream.dial import Dial, DialFailure

if TYPE_CHECKING:
    import asyncio

    from proxy.http.client_connection import ClientConnection
    from proxy.upstream.cluster import Breaker, Cluster, Host

OVERFLOW_PENDING = DialFailure(b"overflow")
OVERFLOW_ACTIVE = DialFailure(b"overflow")
"""Given to ``pool_failed`` when the circuit breaker refuses the request: no place to wait, or one request too many."""


class PoolUser(Protocol):
    """A request that wants a connection. Exactly one of the two is called, unless ``Pool.cancel`` comes first."""

    def pool_ready(self, connection: ClientConnection) -> None:
        """The connection is this request's alone until it is released."""

    def pool_failed(self, failure: DialFailure) -> None:
        """No connection: connect failure, timeout, or one of the overflows."""


class Pool:
    """Idle and pending of one host and priority."""

    __slots__ = ("_breaker", "_closed", "_cluster", "_dials", "_host", "_host_stats", "_open", "_pending",
                 "_sheds", "_stats", "idle")

    def __init__(self, cluster: Cluster, host: Host, breaker: Breaker) -> None:
        self._cluster = cluster
        self._host = host
        self._stats = cluster.stats
        self._host_stats = host.stats
        self._breaker = breaker
        self._sheds = find(cluster.context.overload, NEW_CONNECTION)
        self.idle: list[ClientConnection] = []
        self._pending: deque[PoolUser] = deque()
        self._dials: set[Dial] = set()
        self._open = 0
        self._closed = False

    def acquire(self, user: PoolUser, *, fresh: bool = False) -> None:
        """Ask for a connection. ``fresh``: a new one, not one that has been idle."""
        breaker = self._breaker
        if self.idle and not fresh:
            if breaker.requests >= breaker.limits.max_requests:
                self._overflow(user)
                return
            self._assign(self.idle.pop(), user)
            return
        stats = self._cluster.stats
        if breaker.pending >= breaker.limits.max_pending_requests:
            stats.upstream_rq_pending_overflow += 1
            user.pool_failed(OVERFLOW_PENDING)
            return
        breaker.pending += 1
        stats.upstream_rq_pending_total += 1
        stats.upstream_rq_pending_active += 1
        self._host.stats.rq_pending_active += 1
        if self._sheds is not None and len(self._dials) <= len(self._pending) and self._sheds():
            stats.upstream_rq_cancelled += 1
            self._left_pending()
            user.pool_failed(OVERFLOW_PENDING)
            return
        self._pending.append(user)
        self._connect()

    def _connect(self) -> None:
        if len(self._dials) >= len(self._pending):
            return
        breaker = self._breaker
        if breaker.connections >= breaker.limits.max_connections:
            self._cluster.stats.upstream_cx_overflow += 1
            # As in Envoy a pool without any connection may always open one, so that requests cannot starve.
            if self._open or self._dials:
                return
        breaker.connections += 1
        self._cluster.stats.upstream_cx_http1_total += 1
        made: list[Dial] = []

        def connected(_: asyncio.Transport, connection: ClientConnection) -> None:
            self._dials.discard(made[0])
            self._open += 1
            if self._closed or not self._pending:
                self.release(connection)
            else:
                self._serve(connection)

        def failed(failure: DialFailure) -> None:
            self._dials.discard(made[0])
            self._breaker.connections -= 1
            waiting = self._take_pending()
            self._cluster.stats.upstream_rq_pending_failure_eject += len(waiting)
            for user in waiting:
                user.pool_failed(failure)

        from proxy.http.client_connection import ClientConnection

        made.append(Dial(self._cluster.context, self._cluster, self._host,
                         lambda: ClientConnection(self, self._cluster, self._host), connected, failed))
        self._dials.add(made[0])

    def _take_pending(self) -> list[PoolUser]:
        waiting = list(self._pending)
        self._pending.clear()
        for _ in waiting:
            self._left_pending()
        return waiting

    def _left_pending(self) -> None:
        self._breaker.pending -= 1
        self._cluster.stats.upstream_rq_pending_active -= 1
        self._host.stats.rq_pending_active -= 1

    def _serve(self, connection: ClientConnection) -> None:
        # A loop: as many as max_pending_requests may have to be refused here.
        breaker = self._breaker
        while self._pending:
            user = self._pending.popleft()
            self._left_pending()
            if breaker.requests < breaker.limits.max_requests:
                self._assign(connection, user)
                return
            self._overflow(user)
        self.release(connection)

    def _overflow(self, user: PoolUser) -> None:
        self._cluster.stats.upstream_rq_active_overflow += 1
        user.pool_failed(OVERFLOW_ACTIVE)

    def _assign(self, connection: ClientConnection, user: PoolUser) -> None:
        self.assigned()
        user.pool_ready(connection)

    def assigned(self) -> None:
        """Account for a request that has got a connection."""
        self._breaker.requests += 1
        self._stats.upstream_rq_total += 1
        host = self._host_stats
        host.rq_total += 1
        host.rq_active += 1

    def request_done(self) -> None:
        """A request that got a connection is over, whatever became of the connection."""
        self._breaker.requests -= 1
        self._host_stats.rq_active -= 1

    def release(self, connection: ClientConnection) -> None:
        """Take a reusable connection back: for the next waiter, or to idle."""
        if self._closed:
            connection.close()
        elif self._pending:
            self._serve(connection)
        else:
            self.idle.append(connection)
            connection.became_idle()

    def connection_lost(self, connection: ClientConnection) -> None:
        """A connection that had been established is gone."""
        self._open -= 1
        self._breaker.connections -= 1
        self.forget_idle(connection)
        if self._pending and not self._closed:
            self._connect()

    def forget_idle(self, connection: ClientConnection) -> None:
        """Do not hand this connection out any more."""
        if connection in self.idle:
            self.idle.remove(connection)

    def cancel(self, user: PoolUser) -> None:
        """A waiting request is no longer interested; a dial begun for it goes on and serves the next."""
        try:
            self._pending.remove(user)
        except ValueError:
            return
        self._left_pending()
        self._cluster.stats.upstream_rq_cancelled += 1

    def drain(self) -> None:
        """Close idle connections now and busy ones when they come back."""
        self._closed = True
        for connection in list(self.idle):
            connection.close()
        for dial in list(self._dials):
            dial.cancel()
            self._breaker.connections -= 1
        self._dials.clear()
        for user in self._take_pending():
            user.pool_failed(DialFailure(b"cluster removed"))
