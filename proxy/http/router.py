"""The router: from a request to a route, a cluster, a host and a connection.

Envoy: Router::Filter and UpstreamRequest. What comes back is in proxy.http.upstream_side. One attempt is under way at a
time; its state is on the stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.config import model
from proxy.http import server_connection as sc
from proxy.http.grpc import is_grpc, response_timeout, set_grpc_timeout, stream_duration
from proxy.http.headers import field
from proxy.http.http1_client import request_head
from proxy.http.plan import RequestPlan
from proxy.http.redirect import https_location, location
from proxy.http.retry import internal_policy
from proxy.http.rewrite import rewrite_request
from proxy.http.upstream_side import UpstreamSide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.http.client_connection import ClientConnection
    from proxy.http.headers import Headers
    from proxy.http.route_table import CompiledRoute
    from proxy.http.stream import Stream
    from proxy.upstream.cluster import Cluster, Host

NO_LENGTH_NEEDED = frozenset((b"GET", b"HEAD", b"DELETE", b"TRACE", b"CONNECT"))
"""Methods whose requests without a body are sent without content-length."""

CONSUMED = (
    b"x-envoy-retry-on", b"x-envoy-retry-grpc-on", b"x-envoy-max-retries", b"x-envoy-upstream-rq-timeout-ms",
    b"x-envoy-upstream-rq-per-try-timeout-ms", b"x-envoy-upstream-rq-timeout-alt-response",
    b"x-envoy-retriable-status-codes", b"x-envoy-retriable-header-names", b"x-envoy-hedge-on-per-try-timeout",
    b"x-envoy-upstream-alt-stat-name", b"x-envoy-upstream-stream-duration-ms",
)
"""Control headers of internal callers that end at the router."""

ATTEMPT_1 = field(b"x-envoy-attempt-count", b"1")


def _milliseconds(value: bytes | None) -> float | None:
    return int(value) / 1000 if value is not None and value.isdigit() and len(value) < 10 else None


class Router(UpstreamSide):
    """One for each connection manager."""

    __slots__ = ()

    # The request's way out

    def route(self, stream: Stream) -> None:
        """All filters have seen the request head: answer it, or find a host for it."""
        stats = self._stats
        stats.rq_total += 1
        route = stream.route
        if route is None:
            stats.no_route += 1
            stream.add_flag(b"NR")
            stream.local_reply(404, b"", b"route_not_found")
            return
        action = route.action
        if route.vhost.require_tls != "NONE" and (route.vhost.require_tls == "ALL" or not stream.internal) and (
                stream.request_headers.get(b"x-forwarded-proto") != b"https"):  # type: ignore[union-attr]
            self._direct_response(stream, route, 301, b"", [(b"location", https_location(stream))])
            return
        if not isinstance(action, model.RouteAction):
            if isinstance(action, model.RedirectAction):
                self._redirect(stream, route, action)
            else:
                self._direct_response(stream, route, action.status, action.body, ())
            return
        cluster = self._cluster(stream, route, action)
        if cluster is None:
            stats.no_cluster += 1
            stream.add_flag(b"NC")
            stream.local_reply(action.cluster_not_found_response_code, b"", b"cluster_not_found")
            return
        stream.cluster = cluster
        stream.upstream_cluster = cluster.log_name
        stream.upstream_cluster_raw = cluster.raw_name
        stream.mutator = stream.mutator or route.mutator
        if self._manager.shedding is not None and self._manager.shedding.checks_route(stream):
            return
        host = stream.host = cluster.choose(stream)
        if host is None:
            self._no_host(stream, cluster)
            return
        self._prepare(stream, route, action, cluster)
        if stream.request_complete or stream.upgrade is not None:
            self._request_complete(stream, action)
        self.dispatch(stream, host)

    def _cluster(self, stream: Stream, route: CompiledRoute, action: model.RouteAction) -> Cluster | None:
        clusters = self._context.clusters
        if action.cluster:
            return clusters.get(action.cluster)
        headers: Headers = stream.request_headers  # type: ignore[assignment]
        if action.cluster_header:
            name = headers.get(action.cluster_header)
            return clusters.get(name.decode("latin-1")) if name else None
        return route.pick_weighted(stream, clusters)

    def note_cluster(self, stream: Stream) -> None:
        """Set where the request would have gone, for the log."""
        route = stream.route
        if route is not None and isinstance(route.action, model.RouteAction):
            cluster = self._cluster(stream, route, route.action)
            if cluster is not None:
                stream.upstream_cluster = cluster.log_name
                stream.upstream_cluster_raw = cluster.raw_name

    def _redirect(self, stream: Stream, route: CompiledRoute, action: model.RedirectAction) -> None:
        where = location(stream, route, action)
        self._direct_response(stream, route, action.response_code, b"", [(b"location", where)])

    def _direct_response(self, stream: Stream, route: CompiledRoute, status: int, body: bytes,
                         headers: Sequence[tuple[bytes, bytes]]) -> None:
        self._stats.rq_direct_response += 1
        stream.local_reply(status, body, b"direct_response", headers=headers, mutator=route.mutator)

    def _prepare(self, stream: Stream, route: CompiledRoute, action: model.RouteAction, cluster: Cluster) -> None:
        """Timeouts, retries and the headers that go upstream, in Envoy's order."""
        headers: Headers = stream.request_headers  # type: ignore[assignment]
        policy = action.retry_policy
        grpc = action.max_grpc_timeout is not None and not action.new_timeouts and is_grpc(headers)
        timeout = response_timeout(action, headers) if grpc else 0.0 if action.new_timeouts else action.timeout
        per_try = policy.per_try_timeout if policy is not None else 0.0
        if stream.internal:
            policy = internal_policy(policy, headers)
            asked = _milliseconds(headers.get(b"x-envoy-upstream-rq-timeout-ms"))
            timeout = timeout if asked is None else asked
            asked = _milliseconds(headers.get(b"x-envoy-upstream-rq-per-try-timeout-ms"))
            per_try = per_try if asked is None else asked
            stream.stream_duration = _milliseconds(headers.get(b"x-envoy-upstream-stream-duration-ms"))
            stream.alt_timeout_response = b"x-envoy-upstream-rq-timeout-alt-response" in headers
            stream.alt_stat_name = headers.get(b"x-envoy-upstream-alt-stat-name") or b""
            for name in CONSUMED:
                headers.remove(name)
        if per_try and timeout and per_try >= timeout:
            per_try = 0.0
        stream.timeout = timeout
        stream.per_try_timeout = per_try
        duration = stream_duration(action, headers) if action.new_timeouts else None
        if duration is not None:
            stream.conn.timers.pop(sc.T_MAX_STREAM, None)
            if duration:
                stream.conn.arm(sc.T_MAX_STREAM, duration)
        if timeout or per_try:
            expected = round((per_try or timeout) * 1000)
            if not self._suppress:
                headers.set(b"x-envoy-expected-rq-timeout-ms", b"%d" % expected)
            if grpc:
                set_grpc_timeout(headers, expected)
        if action.idle_timeout is not None:
            stream.conn.timers.pop(sc.T_STREAM_IDLE, None)
            if action.idle_timeout:
                stream.conn.arm(sc.T_STREAM_IDLE, self._manager.stream_idle(action.idle_timeout))
        stream.attempt_count = 1
        if route.vhost.include_request_attempt_count:
            headers.replace(ATTEMPT_1)
        if route.rewrites:
            rewrite_request(stream, route, action, suppress=self._suppress)
        mutator = stream.mutator
        if mutator is not None:
            mutator.request(headers, stream)
        if policy is not None and stream.upgrade is None and all(c(headers) for c in route.retriable_request):
            stream.policy = policy
            stream.retain = not stream.request_complete

    def dispatch(self, stream: Stream, host: Host, *, fresh: bool = False) -> None:
        """Take a connection of the host, or wait for one."""
        stream.host = host
        stream.upstream_host = host.text
        if stream.retry is not None:
            stream.retry.hosts.append(host)
        action: model.RouteAction = stream.route.action  # type: ignore[union-attr, assignment]
        pool = host.pools[action.high_priority]
        stream.pool = pool
        pool.acquire(stream, fresh=fresh)

    def send(self, stream: Stream, connection: ClientConnection) -> None:
        """A connection is there: the request goes out, with as much body as there is."""
        headers: Headers = stream.request_headers  # type: ignore[assignment]
        stream.upstream = connection
        stream.upstream_local_address = connection.local_address
        now = stream.upstream_started = self._now()
        framing = b""
        if stream.request_chunked:
            framing = b"transfer-encoding: chunked\r\n"
        elif (stream.request_complete and not stream.body and stream.method not in NO_LENGTH_NEEDED
                and b"content-length" not in headers.index):
            framing = b"content-length: 0\r\n"
        head = request_head(stream.method, stream.path, stream.authority, headers, framing)  # type: ignore[arg-type]
        complete = stream.request_complete and not stream.body and not stream.request_chunked
        connection.start(stream, head, stream.method == b"HEAD", stream.upgrade is not None, complete)
        if stream.recording:
            self._keep_plan(stream, head)
        if stream.first_upstream_tx is None:
            stream.first_upstream_tx = now
        if complete:
            stream.last_upstream_tx = now
        else:
            self._send_held(stream, connection)
        if stream.per_try_timeout and stream.request_complete:
            stream.conn.arm(sc.T_PER_TRY, stream.per_try_timeout)
        if stream.policy is not None and stream.policy.per_try_idle_timeout:
            stream.per_try_idle = stream.policy.per_try_idle_timeout
            stream.conn.arm(sc.T_PER_TRY_IDLE, stream.per_try_idle)
        config = stream.cluster.config  # type: ignore[union-attr]
        limit = config.max_stream_duration if stream.stream_duration is None else stream.stream_duration
        if limit:
            stream.conn.arm(sc.T_CLUSTER_STREAM, limit)
        if stream.conn.write_paused:
            connection.pause_reading()

    @staticmethod
    def _keep_plan(stream: Stream, head: bytes) -> None:
        """Remember where this request went, if the next one like it may go the same way."""
        route: CompiledRoute = stream.route  # type: ignore[assignment]
        action: model.RouteAction = route.action  # type: ignore[assignment]
        headers: Headers = stream.request_headers  # type: ignore[assignment]
        whole = stream.conn.whole
        request_id = headers.get(b"x-request-id")
        if (whole is None or request_id is None or head.count(request_id) != 1
                or stream.mutator is not None or action.weighted_clusters
                or action.auto_host_rewrite or action.new_timeouts or stream.attempt_count != 1
                or action.idle_timeout is not None or stream.per_try_timeout
                or (stream.policy is not None and stream.policy.per_try_idle_timeout)
                or route.vhost.include_attempt_count_in_response or stream.internal or stream.body):
            return
        cluster: Cluster = stream.cluster  # type: ignore[assignment]
        if cluster.config.max_stream_duration:
            return
        prefix, _, suffix = head.partition(request_id)
        plan = RequestPlan(stream, cluster, cluster.breakers[action.high_priority], prefix, suffix)
        stream.manager.request_plans.keep(whole, plan)

    def _send_held(self, stream: Stream, connection: ClientConnection) -> None:
        for data in stream.body:
            self._send_data(stream, connection, data)
        if not stream.retain:
            stream.body = ()
            stream.body_size = 0
        stream.conn.unhold(sc.ServerConnection.BODY_FULL)
        if stream.request_complete:
            self._finish_request(stream, connection)

    @staticmethod
    def _send_data(stream: Stream, connection: ClientConnection, data: bytes) -> None:
        connection.send(b"%x\r\n%b\r\n" % (len(data), data) if stream.request_chunked else data)

    def _finish_request(self, stream: Stream, connection: ClientConnection) -> None:
        if stream.request_chunked:
            config = stream.cluster.config  # type: ignore[union-attr]
            if stream.request_trailers and config.http1.enable_trailers and self._manager.config.http1.enable_trailers:
                connection.send(b"".join([b"0\r\n", *[f[2] for f in stream.request_trailers], b"\r\n"]))
            else:
                connection.send(b"0\r\n\r\n")
        stream.last_upstream_tx = self._now()
        connection.finish_request()

    def request_data(self, stream: Stream, data: bytes) -> None:
        """A piece of the request body: on to the upstream, or kept until there is one."""
        connection = stream.upstream
        if stream.retain or connection is None:
            if not stream.body:
                stream.body = []
            stream.body.append(data)  # type: ignore[attr-defined]
            stream.body_size += len(data)
            if stream.body_size > self._manager.body_limit:
                if stream.retain:
                    # Too much to keep for another attempt (Envoy: retry_or_shadow_abandoned).
                    stream.retain = False
                    stream.policy = stream.retry = None
                    if stream.cluster is not None:
                        stream.cluster.stats.retry_or_shadow_abandoned += 1
                    if connection is not None:
                        stream.body = ()
                        stream.body_size = 0
                if connection is None:
                    stream.conn.hold(sc.ServerConnection.BODY_FULL)
        if connection is not None:
            self._send_data(stream, connection, data)

    def request_end(self, stream: Stream) -> None:
        """The request is complete: the response timeout begins."""
        if stream.route is not None and isinstance(stream.route.action, model.RouteAction):
            self._request_complete(stream, stream.route.action)
        if stream.upstream is not None:
            self._finish_request(stream, stream.upstream)
            if stream.per_try_timeout:
                stream.conn.arm(sc.T_PER_TRY, stream.per_try_timeout)

    @staticmethod
    def _request_complete(stream: Stream, action: model.RouteAction) -> None:
        if stream.timeout:
            stream.conn.arm(sc.T_ROUTE, stream.timeout)
