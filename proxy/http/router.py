"""The router: from a request to a route, a cluster, a host and a connection, and the response or the failure back.

Envoy: Router::Filter and UpstreamRequest. One attempt is under way at a time; its state is on the stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.config import model
from proxy.http import reset
from proxy.http import retry as retries
from proxy.http import server_connection as sc
from proxy.http.headers import field
from proxy.http.http1_client import request_head
from proxy.http.plan import SERVICE_TIMES, RequestPlan, service_time
from proxy.http.redirect import https_location, location
from proxy.http.retry import RetryState, internal_policy
from proxy.http.rewrite import rewrite_request
from proxy.stats.groups import CodeStats
from proxy.upstream.pool import OVERFLOW_ACTIVE, OVERFLOW_PENDING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.context import Context
    from proxy.http.client_connection import ClientConnection
    from proxy.http.headers import Headers
    from proxy.http.manager import HttpConnectionManager
    from proxy.http.reset import Reset
    from proxy.http.route_table import CompiledRoute
    from proxy.http.stream import Stream
    from proxy.upstream.cluster import Cluster, Host
    from proxy.upstream.dial import DialFailure

NO_LENGTH_NEEDED = frozenset((b"GET", b"HEAD", b"DELETE", b"TRACE", b"CONNECT"))
"""Methods whose requests without a body are sent without content-length."""
IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
"""RFC 9110 section 9.2.2: safe to send again when the connection broke before an answer."""

CONSUMED = (
    b"x-envoy-retry-on", b"x-envoy-retry-grpc-on", b"x-envoy-max-retries", b"x-envoy-upstream-rq-timeout-ms",
    b"x-envoy-upstream-rq-per-try-timeout-ms", b"x-envoy-upstream-rq-timeout-alt-response",
    b"x-envoy-retriable-status-codes", b"x-envoy-retriable-header-names", b"x-envoy-hedge-on-per-try-timeout",
    b"x-envoy-upstream-alt-stat-name", b"x-envoy-upstream-stream-duration-ms",
)
"""Control headers of internal callers that end at the router."""

MAX_ALTERNATIVES = 64
"""Alternative statistics names of one cluster: callers choose them, so somebody has to stop."""
RETRIED = b"retried and the latest "
ATTEMPT_1 = field(b"x-envoy-attempt-count", b"1")


def _milliseconds(value: bytes | None) -> float | None:
    return int(value) / 1000 if value is not None and value.isdigit() and len(value) < 10 else None


class Router:
    """One for each connection manager."""

    __slots__ = ("_context", "_manager", "_now", "_stats", "_suppress")

    def __init__(self, manager: HttpConnectionManager, context: Context) -> None:
        self._manager = manager
        self._context = context
        self._stats = manager.stats
        self._now = manager.now
        self._suppress = manager.config.suppress_envoy_headers

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
        host = stream.host = cluster.choose(stream)
        if host is None:
            self._no_host(stream, cluster)
            return
        self._prepare(stream, route, action, cluster)
        if stream.request_complete or stream.upgrade is not None:
            self._request_complete(stream, action)
        self._dispatch(stream, host)

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

    def _reply(self, stream: Stream, status: int, body: bytes, details: bytes,
               headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """A local reply for a request that has a route: with the route's response headers."""
        if stream.attempt_count and stream.route.vhost.include_attempt_count_in_response:  # type: ignore[union-attr]
            headers = [(b"x-envoy-attempt-count", b"%d" % stream.attempt_count), *headers]
        stream.local_reply(status, body, details, headers=headers, mutator=stream.mutator)

    def _redirect(self, stream: Stream, route: CompiledRoute, action: model.RedirectAction) -> None:
        self._direct_response(stream, route, action.response_code, b"", [(b"location", location(stream, route, action))])

    def _direct_response(self, stream: Stream, route: CompiledRoute, status: int, body: bytes,
                         headers: Sequence[tuple[bytes, bytes]]) -> None:
        self._stats.rq_direct_response += 1
        stream.local_reply(status, body, b"direct_response", headers=headers, mutator=route.mutator)

    def _no_host(self, stream: Stream, cluster: Cluster) -> None:
        cluster.stats.upstream_cx_none_healthy += 1
        stream.add_flag(b"UH")
        self._charge(stream, 503)
        self._reply(stream, 503, b"no healthy upstream", b"no_healthy_upstream")

    def _prepare(self, stream: Stream, route: CompiledRoute, action: model.RouteAction, cluster: Cluster) -> None:
        """Timeouts, retries and the headers that go upstream, in Envoy's order."""
        headers: Headers = stream.request_headers  # type: ignore[assignment]
        policy = action.retry_policy
        timeout = action.timeout
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
        if action.max_stream_duration is not None:
            stream.timeout = 0.0
            stream.conn.timers.pop(sc.T_MAX_STREAM, None)
            if action.max_stream_duration:
                stream.conn.arm(sc.T_MAX_STREAM, action.max_stream_duration)
        elif (timeout or per_try) and not self._suppress:
            headers.set(b"x-envoy-expected-rq-timeout-ms", b"%d" % int((per_try or timeout) * 1000))
        if action.idle_timeout is not None:
            stream.conn.timers.pop(sc.T_STREAM_IDLE, None)
            if action.idle_timeout:
                stream.conn.arm(sc.T_STREAM_IDLE, action.idle_timeout)
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

    def _dispatch(self, stream: Stream, host: Host, *, fresh: bool = False) -> None:
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
        if (whole is None or not whole.endswith(b"\r\n\r\n") or request_id is None or head.count(request_id) != 1
                or stream.mutator is not None or action.weighted_clusters
                or action.auto_host_rewrite or action.max_stream_duration is not None or stream.attempt_count != 1
                or action.idle_timeout is not None or stream.per_try_timeout or stream.internal or stream.body):
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

    # The response's way back

    def _charge(self, stream: Stream, status: int) -> None:
        """Count a response code against the cluster (and host)."""
        cluster: Cluster = stream.cluster  # type: ignore[assignment]
        codes = cluster.stats.codes
        codes[status] = codes.get(status, 0) + 1
        if stream.internal:
            codes = cluster.stats.internal_codes
            codes[status] = codes.get(status, 0) + 1
        if stream.alt_stat_name:
            self._charge_alternative(stream, cluster, status)
        host = stream.host
        if host is not None:
            if status >= 500:
                host.stats.rq_error += 1
            else:
                host.stats.rq_success += 1

    def _charge_alternative(self, stream: Stream, cluster: Cluster, status: int) -> None:
        """x-envoy-upstream-alt-stat-name: an internal caller wants its own statistics besides."""
        alternatives = cluster.alternatives
        name = stream.alt_stat_name.decode("latin-1").replace(":", "_")
        if name not in alternatives and len(alternatives) < MAX_ALTERNATIVES:
            prefix = f"cluster.{cluster.stat_name}.{name}"
            alternatives[name] = self._context.registry.group(CodeStats, prefix)
        found = alternatives.get(name)
        if found is not None:
            found.codes[status] = found.codes.get(status, 0) + 1
            found.internal_codes[status] = found.internal_codes.get(status, 0) + 1

    def upstream_headers(self, stream: Stream, status: int, headers: Headers, end_stream: bool) -> None:
        """The final response head of an attempt."""
        now = self._now()
        stream.first_upstream_rx = now
        if stream.policy is not None and (status >= 400 or stream.retry is not None or stream.policy.unusual):
            retry = self._retry_state(stream, stream.policy)
            verdict = retry.on_response(status, headers)
            if verdict == retries.YES:
                codes = stream.cluster.stats.retry_codes  # type: ignore[union-attr]
                codes[status] = codes.get(status, 0) + 1
                self._try_again(stream)
                return
            self._note_verdict(stream, verdict)
        stream.policy = stream.retry = None
        stream.retain = False
        timers = stream.conn.timers
        if timers:
            timers.pop(sc.T_PER_TRY, None)
        if stream.upgrade is not None and 200 <= status < 300:
            # It did as if nothing had been asked for: what follows could be taken for the other protocol.
            stream.local_reply(status, b"", b"websocket_handshake_unsuccessful", close=True)
            return
        self._charge(stream, status)
        stream.details = b"via_upstream"
        stream.response_code = status
        if stream.upgrade is not None:
            if status == 101:
                timers.pop(sc.T_ROUTE, None)
                self._stats.downstream_cx_upgrades_active += 1
        elif stream.request_complete and not self._suppress:
            elapsed = int((now - stream.last_upstream_tx) * 1000)  # type: ignore[operator]
            headers.replace(SERVICE_TIMES[elapsed] if elapsed < 100 else service_time(elapsed))
        route: CompiledRoute = stream.route  # type: ignore[assignment]
        mutator = stream.mutator
        if route.vhost.include_attempt_count_in_response:
            headers.set(b"x-envoy-attempt-count", b"%d" % stream.attempt_count)
        if mutator is not None:
            mutator.response(headers, stream)
        if end_stream:
            self.upstream_end(stream)
        stream.send_headers(status, headers, end_stream=end_stream)

    def upstream_end(self, stream: Stream) -> None:
        """The response has arrived in full."""
        now = stream.last_upstream_rx = self._now()
        times = stream.cluster.stats.upstream_rq_time  # type: ignore[union-attr]
        elapsed = int((now - stream.upstream_started) * 1000)
        times[elapsed] = times.get(elapsed, 0) + 1
        if stream.internal:
            times = stream.cluster.stats.internal_rq_time  # type: ignore[union-attr]
            times[elapsed] = times.get(elapsed, 0) + 1

    def connect_failed(self, stream: Stream, failure: DialFailure) -> None:
        """No connection for the attempt."""
        if failure is OVERFLOW_PENDING or failure is OVERFLOW_ACTIVE:
            if failure is OVERFLOW_PENDING:
                stream.upstream_host = None
            self._failed(stream, reset.OVERFLOW, b"")
            return
        stream.upstream_transport_failure_reason = failure.reason or None
        self._failed(stream, reset.CONNECTION_TIMEOUT if failure.timed_out else reset.CONNECTION_FAILURE, failure.reason)

    def upstream_reset(self, stream: Stream, reason: Reset, reused: bool) -> None:
        """The connection was lost, or the upstream broke the grammar, before the response was complete."""
        stream.upstream = None
        if stream.responded:
            stream.add_flag(reason.flag)
            stream.details = b"upstream_reset_after_response_started{%b}" % reason.details
            stream.conn.reset_stream(stream)
        else:
            stale = (reused and reason is reset.CONNECTION_TERMINATION and not stream.stale_retried
                     and not stream.interim and stream.method in IDEMPOTENT and stream.request_complete
                     and not stream.bytes_received)
            self._failed(stream, reason, b"", stale)

    def _failed(self, stream: Stream, reason: Reset, transport: bytes, stale: bool = False) -> None:
        """An attempt ended without a response: try again, or say so.

        ``stale``: an idle connection was closed while the request was on its way (RFC 9112 section 9.3.1), and it is
        safe to send that on a new one, whatever the policy is.
        """
        conn = stream.conn
        conn.timers.pop(sc.T_PER_TRY, None)
        retried = False
        if stream.policy is not None:
            retry = self._retry_state(stream, stream.policy)
            verdict = retry.on_reset(reason)
            retried = retry.count > 0
            if verdict == retries.YES:
                self._try_again(stream)
                return
            self._note_verdict(stream, verdict)
        if stale and not retried:
            stream.stale_retried = True
            self._dispatch(stream, stream.host, fresh=True)  # type: ignore[arg-type]
            return
        stream.add_flag(reason.flag)
        if not stream.interim:
            self._charge(stream, reason.status)
        inside = reason.details + (b"|" + transport if transport else b"")
        body = reset.PREFIX + (RETRIED if retried else b"") + b"reset reason: " + reason.text
        headers = [(b"x-envoy-overloaded", b"true")] if reason is reset.OVERFLOW and not self._suppress else []
        when = b"after" if stream.interim else b"before"
        details = b"upstream_reset_%b_response_started{%b}" % (when, inside)
        self._reply(stream, reason.status, body, details, headers)

    @staticmethod
    def _retry_state(stream: Stream, policy: model.RetryPolicy) -> RetryState:
        if stream.retry is None:
            cluster: Cluster = stream.cluster  # type: ignore[assignment]
            action: model.RouteAction = stream.route.action  # type: ignore[union-attr, assignment]
            stream.retry = RetryState(policy, cluster, cluster.breakers[action.high_priority])
            if stream.host is not None:
                stream.retry.hosts.append(stream.host)
        return stream.retry

    @staticmethod
    def _note_verdict(stream: Stream, verdict: int) -> None:
        if verdict == retries.LIMIT_EXCEEDED:
            stream.add_flag(b"URX")
        elif verdict == retries.OVERFLOW:
            stream.add_flag(b"UO")

    def _try_again(self, stream: Stream) -> None:
        """Wait for the back-off, then dispatch anew."""
        if stream.upstream is not None:
            stream.upstream.abandon()
        stream.conn.timers.pop(sc.T_PER_TRY, None)
        stream.conn.timers.pop(sc.T_PER_TRY_IDLE, None)
        stream.first_upstream_rx = None
        stream.upstream_transport_failure_reason = None
        stream.conn.arm(sc.T_BACKOFF, stream.retry.backoff())  # type: ignore[union-attr]

    def _next_attempt(self, stream: Stream) -> None:
        cluster: Cluster = stream.cluster  # type: ignore[assignment]
        retry: RetryState = stream.retry  # type: ignore[assignment]
        stream.attempt_count += 1
        host = cluster.choose(stream)
        if retry.policy.avoid_previous_hosts:
            for _ in range(retry.policy.host_selection_retry_max_attempts):
                if host is None or host not in retry.hosts:
                    break
                host = cluster.choose(stream)
        if host is None:
            self._no_host(stream, cluster)
            return
        headers: Headers = stream.request_headers  # type: ignore[assignment]
        if stream.route.vhost.include_request_attempt_count:  # type: ignore[union-attr]
            headers.set(b"x-envoy-attempt-count", b"%d" % stream.attempt_count)
        until = stream.conn.timers.get(sc.T_ROUTE)
        if until is not None and not stream.per_try_timeout and b"x-envoy-expected-rq-timeout-ms" in headers:
            left = until - self._now()
            headers.set(b"x-envoy-expected-rq-timeout-ms", b"%d" % max(1, int(left * 1000)))
        self._dispatch(stream, host)

    # Timeouts and the end

    def timeout(self, stream: Stream, kind: int) -> None:
        """A router timer of the stream has expired."""
        if kind == sc.T_BACKOFF:
            self._next_attempt(stream)
            return
        cluster: Cluster = stream.cluster  # type: ignore[assignment]
        stats = cluster.stats
        if stream.host is not None:
            stream.host.stats.rq_timeout += 1
        if kind in (sc.T_PER_TRY, sc.T_PER_TRY_IDLE):
            idle = kind == sc.T_PER_TRY_IDLE
            if idle:
                stats.upstream_rq_per_try_idle_timeout += 1
            else:
                stats.upstream_rq_per_try_timeout += 1
            if stream.responded:
                stream.add_flag(b"UT")
            self._give_up(stream)
            if stream.policy is not None:
                verdict = self._retry_state(stream, stream.policy).on_reset(retries.LOCAL_RESET)
                if verdict == retries.YES:
                    self._try_again(stream)
                    return
                self._note_verdict(stream, verdict)
            stream.add_flag(b"UT")
            self._charge(stream, 504)
            self._reply(stream, 504, b"upstream request timeout",
                        b"upstream_per_try_idle_timeout" if idle else b"upstream_per_try_timeout")
        elif kind == sc.T_ROUTE:
            stats.upstream_rq_timeout += 1
            stream.add_flag(b"UT")
            status = 204 if stream.alt_timeout_response else 504
            if not stream.responded:
                self._charge(stream, status)
            self._reply(stream, status, b"" if status == 204 else b"upstream request timeout", b"response_timeout")
        else:
            stats.upstream_rq_max_duration_reached += 1
            stream.add_flag(b"UMSDR")
            self._reply(stream, 504, b"upstream max stream duration reached",
                        b"upstream_max_stream_duration_reached")

    def _give_up(self, stream: Stream) -> None:
        """Let go of the attempt: a connection in use is closed, a place in the queue is left."""
        if stream.pool is not None:
            stream.pool.cancel(stream)
            stream.pool = None
        if stream.upstream is not None:
            stream.upstream.abandon()

    def abandon(self, stream: Stream) -> None:
        """The stream is over, or answered locally: whatever the attempt was doing ends."""
        if stream.pool is not None or stream.upstream is not None:
            self._give_up(stream)
        if stream.retry is not None:
            stream.retry.close()
            stream.retry = None
        stream.body = ()

    def downstream_gone(self, stream: Stream) -> None:
        """The client is gone: the request is cancelled."""
        self.abandon(stream)
