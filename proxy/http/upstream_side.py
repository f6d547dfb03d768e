"""The router's other half: what comes back from an attempt, and what follows from it.

A response, a lost connection, a refusal or a timeout becomes the client's response, another attempt, or a local reply
(Envoy: Router::Filter's upstream callbacks).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.config import model
from proxy.http import reset
from proxy.http import retry as retries
from proxy.http import server_connection as sc
from proxy.http.plan import SERVICE_TIMES, service_time
from proxy.http.retry import RetryState
from proxy.stats.groups import CodeStats
from proxy.upstream.pool import OVERFLOW_ACTIVE, OVERFLOW_PENDING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.context import Context
    from proxy.http.headers import Headers
    from proxy.http.manager import HttpConnectionManager
    from proxy.http.reset import Reset
    from proxy.http.route_table import CompiledRoute
    from proxy.http.stream import Stream
    from proxy.upstream.cluster import Cluster, Host
    from proxy.upstream.dial import DialFailure

IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
"""RFC 9110 section 9.2.2: safe to send again when the connection broke before an answer."""
MAX_ALTERNATIVES = 64
"""Alternative statistics names of one cluster: callers choose them, so somebody has to stop."""
RETRIED = b"retried and the latest "


class UpstreamSide:
    """Base of the router: everything that happens after a request was dispatched."""

    __slots__ = ("_context", "_manager", "_now", "_stats", "_suppress")

    def __init__(self, manager: HttpConnectionManager, context: Context) -> None:
        self._manager = manager
        self._context = context
        self._stats = manager.stats
        self._now = manager.now
        self._suppress = manager.config.suppress_envoy_headers

    def dispatch(self, stream: Stream, host: Host, *, fresh: bool = False) -> None:
        """Send the request to a host. ``fresh``: on a new connection."""
        raise NotImplementedError

    def _reply(self, stream: Stream, status: int, body: bytes, details: bytes,
               headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """A local reply for a request that has a route: with the route's response headers."""
        if stream.attempt_count and stream.route.vhost.include_attempt_count_in_response:  # type: ignore[union-attr]
            headers = [(b"x-envoy-attempt-count", b"%d" % stream.attempt_count), *headers]
        stream.local_reply(status, body, details, headers=headers, mutator=stream.mutator)

    def _no_host(self, stream: Stream, cluster: Cluster) -> None:
        cluster.stats.upstream_cx_none_healthy += 1
        stream.add_flag(b"UH")
        self._charge(stream, 503)
        self._reply(stream, 503, b"no healthy upstream", b"no_healthy_upstream")

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
        if stream.policy is not None and (status >= 400 or stream.retry is not None or stream.policy.unusual
                                          or b"grpc-status" in headers.index):
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
        reason = reset.CONNECTION_TIMEOUT if failure.timed_out else reset.CONNECTION_FAILURE
        self._failed(stream, reason, failure.reason)

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
            self.dispatch(stream, stream.host, fresh=True)  # type: ignore[arg-type]
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
        self.dispatch(stream, host)

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
