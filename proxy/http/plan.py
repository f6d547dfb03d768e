"""Plans: what was done with a message head, kept for the next head that is the same byte for byte.

What the proxy makes of a head follows from its bytes and the configuration, but for a few places: the request id, the
host, the time. When the general path (Stream.begin, Router) has handled a head that was seen before, it leaves a plan:
its outcome with those places cut out. The next time the plan runs instead. A plan that finds the circumstances
different (no idle connection, a drain, a retry) declines before it has done anything, and the general path decides.

A head is remembered at its second appearance only, so that heads which never repeat cost a hash and no memory; those
with credentials are never kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from proxy.http.h1 import Http1Codec
from proxy.http.headers import Field, Headers, field

if TYPE_CHECKING:
    from proxy.http.client_connection import ClientConnection
    from proxy.http.route_table import CompiledRoute
    from proxy.http.server_connection import ServerConnection
    from proxy.http.stream import Stream
    from proxy.upstream.cluster import Breaker, Cluster

P = TypeVar("P")


def service_time(milliseconds: int) -> Field:
    """x-envoy-upstream-service-time."""
    return field(b"x-envoy-upstream-service-time", b"%d" % milliseconds)


SERVICE_TIMES = [service_time(n) for n in range(100)]
JOIN_LIMIT = 65536


class PlanMemo(dict[bytes, P], Generic[P]):
    """Plans by head. Bounded: a full memo starts anew."""

    ENTRIES = 512
    SEEN = 8192
    LONGEST = 2048

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[int] = set()

    def worth(self, head: bytes) -> bool:
        """Whether a plan should be kept for this head: it is short, and not new."""
        if len(head) > self.LONGEST:
            return False
        mark = hash(head)
        seen = self._seen
        if mark in seen:
            return True
        if len(seen) >= self.SEEN:
            seen.clear()
        seen.add(mark)
        return False

    def keep(self, head: bytes, plan: P) -> None:
        """Remember a plan."""
        if len(self) >= self.ENTRIES:
            self.clear()
        self[head] = plan


class RequestPlan:
    """A request without a body that goes to one cluster, with nothing to decide but the host."""

    __slots__ = ("_authority", "_breaker", "_close", "_cluster", "_decorator", "_fields", "_high", "_id_at", "_index",
                 "_is_head", "_method", "_path", "_policy", "_prefix", "_route", "_suffix", "_timeout", "unusual")

    def __init__(self, stream: Stream, cluster: Cluster, breaker: Breaker, prefix: bytes, suffix: bytes) -> None:
        headers: Headers = stream.request_headers  # type: ignore[assignment]
        self._fields = headers.fields[:]
        self._index = headers.index.copy()
        self._id_at = headers.fields.index(headers.index[b"x-request-id"])
        self._method = stream.method
        self._path = stream.path
        self._authority = stream.authority
        self._route: CompiledRoute = stream.route  # type: ignore[assignment]
        self._cluster = cluster
        self._breaker = breaker
        self._high = cluster.breakers.index(breaker)
        self._prefix = prefix
        self._suffix = suffix
        self._is_head = stream.method == b"HEAD"
        self._policy = stream.policy
        self.unusual = stream.policy is not None and stream.policy.unusual
        """Responses below 400 may be retried, too."""
        self._timeout = stream.timeout
        self._decorator = stream.decorator
        self._close = stream.saw_close

    def run(self, conn: ServerConnection) -> bool:
        """Send the request that this plan stands for; False, and nothing done, if that takes more than a plan."""
        manager = conn.manager
        cluster = self._cluster
        if not cluster.hosts or conn.write_paused:
            return False
        stream = manager.make_stream(conn, manager)
        headers = stream.request_headers = Headers(self._fields, self._index)
        host = cluster.choose(stream)
        if host is None:
            return False

        stats = manager.stats
        stats.downstream_rq_total += 1
        stats.downstream_rq_active += 1
        stats.rq_total += 1
        conn.requests += 1
        conn.stream = stream
        conn._state = Http1Codec.HELD
        if manager.stream_timers:
            conn.arm_stream(True)
        stream.method = self._method
        stream.path = self._path
        stream.authority = self._authority
        stream.protocol = b"HTTP/1.1"
        stream.request_complete = True
        route = stream.route = self._route
        stream.route_name = route.name
        stream.plan = self
        stream.policy = self._policy
        stream.attempt_count = 1
        if self._decorator:
            stream.decorator = self._decorator
        if self._close:
            stream.saw_close = True
        if self._timeout:
            stream.timeout = self._timeout
            conn.arm(conn.T_ROUTE, self._timeout)
        request_id = manager.request_rules.new_id()
        known = (b"x-request-id", request_id, b"x-request-id: %b\r\n" % request_id)
        headers.fields = fields = self._fields[:]
        fields[self._id_at] = known
        headers.index = {**self._index, b"x-request-id": known}

        stream.cluster = cluster
        stream.upstream_cluster = cluster.log_name
        stream.upstream_cluster_raw = cluster.raw_name
        stream.last_downstream_rx = stream.start
        breaker = self._breaker
        pool = host.pools[self._high]
        if not pool.idle or breaker.requests >= breaker.limits.max_requests:
            manager.router.dispatch(stream, host)
            return True
        connection = pool.idle.pop()
        stream.host = host
        stream.upstream_host = host.text
        stream.upstream = connection
        stream.upstream_local_address = connection.local_address
        stream.upstream_started = stream.first_upstream_tx = stream.last_upstream_tx = stream.start
        pool.assigned()
        connection.start(stream, b"%b%b%b" % (self._prefix, request_id, self._suffix), self._is_head)
        return True


class ResponsePlan:
    """A response whose head goes on as the last time, but for the service time."""

    __slots__ = ("_closing_suffix", "_decorator", "_fields", "_index", "_keep_alive", "_left", "_prefix", "_state",
                 "_status", "_suffix", "_took_at")

    def __init__(self, stream: Stream, connection: ClientConnection, status: int, headers: Headers, prefix: bytes,
                 suffix: bytes, framing: bytes) -> None:
        self._fields = headers.fields[:]
        self._index = headers.index.copy()
        self._took_at = headers.fields.index(headers.index[b"x-envoy-upstream-service-time"])
        self._status = status
        self._state = connection._state
        self._left = connection._left
        self._keep_alive = connection.keep_alive
        self._prefix = prefix
        self._suffix = suffix + framing + b"\r\n"
        self._closing_suffix = suffix + b"connection: close\r\n" + framing + b"\r\n"
        self._decorator = stream.decorator

    def run(self, stream: Stream, connection: ClientConnection, data: bytes, end: int) -> bool:
        """Pass the response on, if it can be done as before; ``data[end:]`` is what has arrived of its body."""
        conn = stream.conn
        status = self._status
        if (conn.drain_state or conn.listener.draining or conn.write_paused or stream.retry is not None
                or stream.decorator != self._decorator or (
                    stream.policy is not None and (status >= 400 or stream.plan.unusual))):  # type: ignore[union-attr]
            return False
        manager = stream.manager
        now = conn.now()
        stream.response_code = status
        stream.details = b"via_upstream"
        stream.responded = True
        stream.first_upstream_rx = now
        elapsed = int((now - stream.last_upstream_tx) * 1000)  # type: ignore[operator]
        took = SERVICE_TIMES[elapsed] if elapsed < 100 else service_time(elapsed)
        cluster: Cluster = stream.cluster  # type: ignore[assignment]
        codes = cluster.stats.codes
        codes[status] = codes.get(status, 0) + 1
        if status < 500:
            stream.host.stats.rq_success += 1  # type: ignore[union-attr]
        else:
            stream.host.stats.rq_error += 1  # type: ignore[union-attr]
        fields = self._fields[:]
        fields[self._took_at] = took
        stream.response_headers = Headers(fields, {**self._index, took[0]: took})
        connection.keep_alive = self._keep_alive
        suffix = self._suffix
        if stream.saw_close:
            conn.end_after_response()
            suffix = self._closing_suffix
        head = b"%b%b%b" % (self._prefix, took[2], suffix)
        size = len(data) - end
        if self._state == Http1Codec.LENGTH and size == self._left and size <= JOIN_LIMIT:
            stream.bytes_sent = size
            head += data[end:]
            if stream.saw_close:
                conn.out.append(head)  # FIN goes with it
            else:
                manager.stats.downstream_cx_tx_bytes_total += len(head)
                conn.transport.write(head)
            stream.response_complete = True
            stream.last_upstream_rx = stream.last_downstream_tx = now
            times = cluster.stats.upstream_rq_time
            elapsed = int((now - stream.upstream_started) * 1000)
            times[elapsed] = times.get(elapsed, 0) + 1
            stream.upstream = None  # the connection may serve the next in the queue from here on
            connection.finished(now)
            stream.finish()
            return True
        connection._state = self._state
        connection._left = self._left
        if connection._state == Http1Codec.CHUNK_SIZE:
            stream.response_chunked = True
        conn.out.append(head)
        if size:
            connection.feed(data[end:])
        connection.settle()
        if conn.out:
            conn.flush()
        return True
