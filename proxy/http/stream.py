"""One HTTP request and its response: from the connection manager through the filters to the router and back.

The stream is the meeting point: the server connection feeds it the request, the router gives it an upstream
connection, and that feeds it the response. It ends in ``finish``, exactly once, where statistics and log are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import time
from typing import TYPE_CHECKING

from proxy.http.grpc import grpc_reply, is_grpc
from proxy.http.h1 import HeadError
from proxy.http.headers import Headers
from proxy.http.http1_server import NO_BODY, status_line
from proxy.http.path import UNUSUAL, PathError
from proxy.http.plan import ResponsePlan
from proxy.stream_info import StreamInfo

if TYPE_CHECKING:
    from proxy.config.model import RetryPolicy, SocketAddress, WeightedCluster
    from proxy.http.client_connection import ClientConnection
    from proxy.http.filters.base import HttpFilter
    from proxy.http.headers import Field
    from proxy.http.manager import HttpConnectionManager
    from proxy.http.mutations import Mutator
    from proxy.http.plan import RequestPlan
    from proxy.http.reset import Reset
    from proxy.http.retry import RetryState
    from proxy.http.route_table import CompiledRoute
    from proxy.http.server_connection import ServerConnection
    from proxy.upstream.cluster import Cluster, Host
    from proxy.upstream.dial import DialFailure
    from proxy.upstream.pool import Pool

CHUNKED_FIELD = b"transfer-encoding: chunked\r\n"
CLOSE_FIELD = b"connection: close\r\n"
KEEP_ALIVE_FIELD = b"connection: keep-alive\r\n"
EMPTY_BODY_FIELD = b"content-length: 0\r\n"
PLANNED_TOKENS: tuple[list[bytes], ...] = ([], [b"close"], [b"keep-alive"])
LOCAL_DISCONNECT = b"downstream_local_disconnect(purging_socket_that_have_not_progressed_to_connections)"
"""Envoy's words for what happens to requests when the process ends."""
LAST_CHUNK = b"0\r\n\r\n"


class Stream(StreamInfo):
    """A request in flight. The attributes below are the router's and the filters' to read and change."""

    __slots__ = (
        "cluster", "conn", "finished", "host", "manager", "plan", "request_complete", "responded", "response_chunked",
        "response_complete", "route", "upstream", "upstream_started",
    )

    # As in StreamInfo: what follows is the exception, and costs the usual request nothing.
    pool: Pool | None = None
    """Where the stream waits for a connection."""
    policy: RetryPolicy | None = None
    """The retry policy in force."""
    retry: RetryState | None = None
    """Made when something has gone wrong for the first time."""
    mutator: Mutator | None = None
    """The header mutations in force: the chosen weighted cluster's, or the route's."""
    weighted: WeightedCluster | None = None
    upgrade: bytes | None = None
    decorator: bytes = b""
    body: Sequence[bytes] = ()
    """Body pieces held back: until a connection is there, or for another attempt (``retain``)."""
    body_size = 0
    retain = False
    paused_at = 0
    request_trailers: list[Field] | None = None
    per_filter: dict[str, object] | None = None
    """What filters remember of this request, by filter name."""
    timeout = 0.0
    per_try_timeout = 0.0
    per_try_idle = 0.0
    http10 = False
    internal = False
    saw_close = False
    request_chunked = False
    stale_retried = False
    alt_timeout_response = False
    alt_stat_name = b""
    stream_duration: float | None = None
    """x-envoy-upstream-stream-duration-ms of an internal caller, in seconds."""
    interim = False
    """The upstream has sent an interim response."""
    recording = False
    """The outcome of this request shall be kept as a plan."""
    _trusted: str | None = None

    def __init__(self, conn: ServerConnection, manager: HttpConnectionManager) -> None:
        self.conn = conn
        self.manager = manager
        self.start_time = time()
        self.start = conn.now()
        self.method = self.path = self.authority = self.protocol = self.request_headers = None
        self.response_headers = self.details = self.route_name = self.upstream_host = self.upstream_cluster = None
        self.upstream_cluster_raw = self.upstream_local_address = None
        self.last_downstream_rx = self.first_upstream_tx = None
        self.last_upstream_tx = self.first_upstream_rx = self.last_upstream_rx = self.last_downstream_tx = None
        self.response_code = self.bytes_sent = self.attempt_count = 0
        self.end = self.start
        self.connection_id = conn.id
        self.downstream_local_address = conn.local_text
        self.downstream_remote_address = conn.remote_text
        self.route: CompiledRoute | None = None
        self.cluster: Cluster | None = None
        self.host: Host | None = None
        self.upstream: ClientConnection | None = None
        self.upstream_started = 0.0
        self.plan: RequestPlan | None = None
        self.request_complete = self.responded = self.response_complete = self.finished = False
        self.response_chunked = False

    @property
    def original_dst(self) -> SocketAddress | None:
        """The restored destination, for ORIGINAL_DST clusters."""
        connection = self.conn.connection
        return connection.local if connection.restored else None

    @property
    def trusted_address(self) -> str:
        """The client's address as far as x-forwarded-for can be trusted."""
        return self._trusted or self.conn.connection.remote.host

    @property
    def downstream_direct_local_address(self) -> bytes:  # type: ignore[override]
        """Of the socket itself."""
        return self.conn.direct_local_text

    @property
    def downstream_direct_remote_address(self) -> bytes:  # type: ignore[override]
        """The peer's, whatever x-forwarded-for says."""
        return self.conn.remote_text

    @property
    def filter_chain_name(self) -> bytes | None:  # type: ignore[override]
        """The filter chain of the connection."""
        return self.conn.filter_chain_name

    @property
    def virtual_host_name(self) -> bytes | None:  # type: ignore[override]
        """The virtual host of the route."""
        return self.route.vhost.name.encode() if self.route is not None else None

    @property
    def is_tunnel(self) -> bool:
        """An upgrade that the upstream has accepted."""
        return self.upgrade is not None and self.response_code == 101

    # The request, from the server connection.

    def begin(self, method: bytes, path: bytes, authority: bytes | None, http10: bool, headers: Headers, length: int,
              tokens: list[bytes]) -> None:
        """A request head has arrived (Envoy: ConnectionManagerImpl::ActiveStream::decodeHeaders)."""
        self.method = method
        self.path = path or None
        self.authority = authority
        self.request_headers = headers
        self.protocol = b"HTTP/1.1"
        manager = self.manager
        if length == NO_BODY:
            self.request_complete = method != b"CONNECT"
            self.last_downstream_rx = self.start
        else:
            self.request_chunked = length < 0
        index = headers.index
        whole = self.conn.whole
        if tokens or http10:
            self._connection_options(http10, tokens)
        if b"expect" in index:
            self._expect(headers)
            whole = None
        if http10:
            self.http10 = True
            self.protocol = b"HTTP/1.0"
            if authority is None and manager.config.http1.default_host_for_http_10:
                authority = self.authority = manager.config.http1.default_host_for_http_10
        if authority is None:
            self.local_reply(400, b"", b"missing_host_header", close=True)
            return
        if path[:1] != b"/" and method != b"CONNECT":
            manager.stats.downstream_rq_non_relative_path += 1
            self.local_reply(404, b"", b"absolute_path_rejected")
            return
        if method == b"QUERY" and b"content-type" not in index:
            self.local_reply(400, b"", b"query_missing_content_type", close=True)
            return
        if UNUSUAL.search(path) is not None and not self._normalize(path):
            return
        if manager.rewrites_host:
            self.authority = manager.rewrite_host(self)
        if (whole is not None and length == NO_BODY and tokens in PLANNED_TOKENS and not http10 and manager.plannable
                and manager.request_plans.worth(whole) and manager.request_rules.plannable(headers)):
            self.recording = True
        manager.request_rules.apply(self, tokens)
        route = self.route = manager.route_table.route(self)
        if route is not None:
            self.route_name = route.name
            if manager.tracing:
                manager.decorate_request(self, route)
        elif manager.tracing:
            headers.remove(b"x-envoy-decorator-operation")
        if self.upgrade is not None:
            if not self._upgrade_allowed():
                manager.stats.downstream_rq_ws_on_non_ws_route += 1
                manager.router.note_cluster(self)
                self.local_reply(403, b"", b"upgrade_failed", close=True)
                return
            # Whatever follows belongs to the new protocol, also before the upstream has agreed to it.
            manager.stats.downstream_cx_upgrades_total += 1
            self.request_complete = self.request_chunked = False
            self.conn.expect_raw()
        self.request_filters(manager.filters.request_headers, 0)

    def _connection_options(self, http10: bool, tokens: list[bytes]) -> None:
        headers: Headers = self.request_headers  # type: ignore[assignment]
        if b"content-length" in tokens and headers.remove(b"content-length"):
            self.request_chunked = not self.request_complete
        if b"close" in tokens or (http10 and b"keep-alive" not in tokens):
            self.saw_close = True
        if b"upgrade" in tokens and b"upgrade" in headers.index:
            kind = headers.index[b"upgrade"][1].lower()
            # RFC 9113 section 3.1: h2c upgrades are obsolete; the request is served as it stands.
            if kind != b"h2c":
                self.upgrade = kind

    def _expect(self, headers: Headers) -> None:
        if headers.index[b"expect"][1].lower() == b"100-continue" and not self.manager.config.proxy_100_continue:
            headers.remove(b"expect")
            self._send_interim(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.conn.flush()

    def _send_interim(self, head: bytes) -> None:
        self.manager.stats.rq_class[1] += 1
        self.manager.listener_stats.rq_class[1] += 1
        self.conn.write(head)

    def _normalize(self, path: bytes) -> bool:
        manager = self.manager
        try:
            self.path, redirect = manager.path_normalizer.apply(path)
        except PathError as error:
            self.path = error.path or path
            manager.stats.downstream_rq_failed_path_normalization += 1
            self.local_reply(400, b"", b"path_normalization_failed", close=True)
            return False
        if redirect:
            manager.stats.downstream_rq_redirected_with_normalized_path += 1
            self.local_reply(307, b"", b"path_normalization_failed", headers=[(b"location", self.path)])
            return False
        return True

    def _upgrade_allowed(self) -> bool:
        kind = self.upgrade or b""
        if self.route is not None and kind in self.route.upgrades:
            return self.route.upgrades[kind]
        return self.manager.upgrades.get(kind, False)

    def request_filters(self, callbacks: Sequence[HttpFilter], at: int) -> None:
        """Run the request-header callbacks from one of them on, then the router. A filter that stops resumes here."""
        for position in range(at, len(callbacks)):
            if not callbacks[position].on_request_headers(self):
                self.paused_at = position + 1
                return
            if self.finished or self.responded:
                return
        self.manager.router.route(self)

    def continue_request(self) -> None:
        """A filter that stopped the request lets it go on."""
        self.request_filters(self.manager.filters.request_headers, self.paused_at)

    def request_data(self, data: bytes) -> None:
        """A piece of the request body."""
        self.bytes_received += len(data)
        for http_filter in self.manager.filters.request_data:
            data = http_filter.on_request_data(self, data)
        if data and not self.response_complete:
            self.manager.router.request_data(self, data)

    def request_end(self, trailers: list[Field] | None) -> None:
        """The request is complete."""
        self.request_complete = True
        self.last_downstream_rx = self.conn.now()
        self.request_trailers = trailers
        for http_filter in self.manager.filters.request_end:
            http_filter.on_request_end(self)
        if not self.response_complete:
            self.manager.router.request_end(self)

    # PoolUser: the router asked for a connection.

    def pool_ready(self, connection: ClientConnection) -> None:
        """A connection is ours: send the request."""
        self.pool = None
        self.manager.router.send(self, connection)

    def pool_failed(self, failure: DialFailure) -> None:
        """There is no connection to be had."""
        self.pool = None
        self.manager.router.connect_failed(self, failure)

    # The response, from the upstream connection.

    def upstream_interim(self, status: int, headers: Headers) -> None:
        """100 is passed on where the client's expectation was; the others are swallowed, as in Envoy."""
        if status == 100 and self.manager.config.proxy_100_continue and not self.responded:
            self._send_interim(b"".join([status_line(100, False), *[f[2] for f in headers.fields], b"\r\n"]))

    def upstream_headers(self, status: int, headers: Headers, end_stream: bool) -> None:
        """The upstream's final response head."""
        self.manager.router.upstream_headers(self, status, headers, end_stream)

    def upstream_data(self, data: bytes) -> None:
        """A piece of the response body."""
        self.send_data(data)
        conn = self.conn
        if len(conn.timers) > 1:
            conn.touch()
        if conn.write_paused and self.upstream is not None:
            conn.flush()
            self.upstream.pause_reading()

    def upstream_end(self, trailers: list[Field] | None) -> None:
        """The response is complete."""
        self.manager.router.upstream_end(self)
        self.send_end(trailers)

    def upstream_reset(self, reason: Reset, reused: bool) -> None:
        """The upstream connection is gone before the response was complete. ``reused``: it had served before."""
        self.manager.router.upstream_reset(self, reason, reused)

    # The response, towards the client.

    def local_reply(self, status: int, body: bytes, details: bytes, *, headers: Sequence[tuple[bytes, bytes]] = (),
                    close: bool = False, mutator: Mutator | None = None, grpc_status: int | None = None) -> None:
        """Answer ourselves (Envoy: sendLocalReply). Once a response has begun, cut the stream instead."""
        if self.finished:
            return
        self.manager.router.abandon(self)
        self.details = details
        if self.responded:
            self.conn.reset_stream(self)
            return
        self.local_reply_body = body
        self.response_code = status
        is_head = self.method == b"HEAD"
        reply = Headers.of(headers)
        if mutator is not None:
            mutator.response(reply, self)
        if self.request_headers is not None and is_grpc(self.request_headers):
            status, body = grpc_reply(status, body, reply, grpc_status)
        elif body:
            reply.set(b"content-length", b"%d" % len(body))
            reply.set(b"content-type", b"text/plain")
        self.send_headers(status, reply, end_stream=not body or is_head, close=close, local=True)
        if body and not is_head:
            self.send_data(body)
            self.send_end(None)
        self.conn.flush()

    def send_headers(self, status: int, headers: Headers, *, end_stream: bool, close: bool = False,
                     local: bool = False) -> None:
        """Finish and encode a response head (Envoy: ConnectionManagerImpl::ActiveStream::encodeHeaders)."""
        manager = self.manager
        for http_filter in manager.filters.response_headers:
            http_filter.on_response_headers(self, status, headers)
        self.response_code = status
        self.response_headers = headers
        self.responded = True
        conn = self.conn
        dated = b"date" in headers.index
        manager.response_rules.apply(self, headers)
        index = headers.index
        persistence = framing = b""
        tunnel = status == 101 and self.upgrade is not None
        if conn.closing_after(self, close, headers):
            if not tunnel:
                persistence = CLOSE_FIELD
        elif self.http10 and not tunnel:
            persistence = KEEP_ALIVE_FIELD
        if b"content-length" not in index and status >= 200 and status != 204:
            if end_stream and not (self.method == b"HEAD" and (local or not self.http10)) and status != 304:
                framing = EMPTY_BODY_FIELD
            elif not tunnel and not self.http10 and status != 304:
                self.response_chunked = not end_stream
                framing = CHUNKED_FIELD
        line = status_line(status, self.http10)
        if manager.proper_case:
            wires = [manager.proper_case(f) for f in headers.fields]
        else:
            wires = [f[2] for f in headers.fields]
        head = b"".join([line, *wires])
        if dated and not end_stream and not local and self.upstream is not None and self.upstream.head:
            self._keep_plan(self.upstream, status, headers, head, framing)
        conn.write(b"%b%b%b\r\n" % (head, persistence, framing))
        if end_stream:
            self._response_done()

    def _keep_plan(self, upstream: ClientConnection, status: int, headers: Headers, head: bytes,
                   framing: bytes) -> None:
        """Remember how this response head went on, if the next one like it may go the same way."""
        manager = self.manager
        took = headers.index.get(b"x-envoy-upstream-service-time")
        if (took is None or self.http10 or self.upgrade is not None or self.method == b"HEAD"
                or self.mutator is not None or self.retry is not None or not manager.plannable
                or (self.route is not None and self.route.vhost.include_attempt_count_in_response)
                or not self.request_complete or upstream.until_close or b"set-cookie" in headers.index
                or b"grpc-status" in headers.index  # it may have to be retried
                or head.count(took[2]) != 1 or manager.config.suppress_envoy_headers
                or not manager.response_plans.worth(upstream.head)):
            return
        prefix, _, suffix = head.partition(took[2])
        plan = ResponsePlan(self, upstream, status, headers, prefix, suffix, framing)
        manager.response_plans.keep(upstream.head, plan)

    def send_data(self, data: bytes) -> None:
        """Encode a piece of the response body."""
        for http_filter in self.manager.filters.response_data:
            data = http_filter.on_response_data(self, data)
        self.bytes_sent += len(data)
        if self.response_chunked:
            if data:
                self.conn.write_chunk(data)
        else:
            self.conn.write(data)

    def send_end(self, trailers: list[Field] | None) -> None:
        """Encode the end of the response."""
        if self.response_chunked:
            if trailers and self.manager.config.http1.enable_trailers:
                self.conn.write(b"".join([b"0\r\n", *[f[2] for f in trailers], b"\r\n"]))
            else:
                self.conn.write(LAST_CHUNK)
        self._response_done()

    def _response_done(self) -> None:
        self.response_complete = True
        self.last_downstream_tx = self.conn.now()
        for http_filter in self.manager.filters.response_end:
            http_filter.on_response_end(self)
        self.finish()

    def finish(self) -> None:
        """The one end of every stream: the upstream is let go, statistics and log are written."""
        if self.finished:
            return
        self.finished = True
        if self.upgrade is not None and self.response_code == 101:
            self.manager.stats.downstream_cx_upgrades_active -= 1
        if self.upstream is not None or self.pool is not None or self.retry is not None or self.body:
            self.manager.router.abandon(self)
        conn = self.conn
        manager = self.manager
        end = self.end = conn.now()
        stats = manager.stats
        stats.downstream_rq_active -= 1
        status = self.response_code
        if status:
            status //= 100
            stats.rq_class[status] += 1
            manager.listener_stats.rq_class[status] += 1
        elapsed = int((end - self.start) * 1000)
        times = stats.downstream_rq_time
        times[elapsed] = times.get(elapsed, 0) + 1
        for log in manager.loggers:
            log(self)
        conn.stream_finished(self, end)

    def downstream_gone(self) -> None:
        """The client closed or reset its connection while the request was in flight."""
        if not self.finished:
            self.add_flag(b"DC")
            self.details = b"downstream_remote_disconnect"
            self.manager.stats.downstream_rq_rx_reset += 1
            self.manager.router.downstream_gone(self)
            self.finish()

    def cut(self) -> None:
        """We close the client's connection while the request is in flight."""
        if not self.finished:
            self.add_flag(b"DC")
            self.details = LOCAL_DISCONNECT
            self.manager.router.abandon(self)
            self.finish()

    def protocol_error(self, error: HeadError) -> None:
        """The client broke the grammar in the middle of this request's body."""
        if self.finished:
            return
        self.add_flag(b"DPE")
        self.manager.router.downstream_gone(self)
        body = b"" if self.responded else status_line(error.status, False)[13:-2]
        self.local_reply(error.status, body, error.details, close=True)
