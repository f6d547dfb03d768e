"""The HTTP connection manager of one filter chain: everything that its connections and streams share."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from proxy.http import server_connection as sc
from proxy.http.filters import FILTERS, ROUTER
from proxy.http.filters.base import FilterChain
from proxy.http.grpc import DEADLINE_EXCEEDED
from proxy.http.headers import Field
from proxy.http.path import PathNormalizer
from proxy.http.plan import PlanMemo, RequestPlan, ResponsePlan
from proxy.http.request_rules import RequestRules
from proxy.http.response_rules import ResponseRules
from proxy.http.route_table import RouteTable
from proxy.http.router import Router
from proxy.http.shedding import DataPoints, SheddingConnection
from proxy.http.stream import Stream
from proxy.overload.http import HttpOverload
from proxy.overload.timers import ReducedTimeouts
from proxy.stats.groups import HttpStats, ListenerHttpStats

if TYPE_CHECKING:
    from proxy.config import model
    from proxy.context import Context
    from proxy.http.headers import Headers
    from proxy.http.route_table import CompiledRoute
    from proxy.listener.connection import Connection
    from proxy.listener.listener import ActiveListener


def own_address(version: str = "v4") -> str:
    """A non-loopback address of this machine, which stands for loopback peers in x-forwarded-for (as in Envoy).

    ``version``: the address family to prefer (--local-address-ip-version).
    """
    probes = [(socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")]
    for family, probe in probes if version == "v4" else probes[::-1]:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as s:
                s.connect((probe, 9))  # a UDP connect sends nothing: it only asks the routing table
                return str(s.getsockname()[0])
        except OSError:
            continue
    return "127.0.0.1"


def proper_case(f: Field) -> bytes:
    """A field with each word of its name capitalised (header_key_format.proper_case_words)."""
    return b"%b: %b\r\n" % (b"-".join(w.capitalize() for w in f[0].split(b"-")), f[1])


class HttpConnectionManager:
    """extensions.filters.network.http_connection_manager.v3.HttpConnectionManager at work."""

    make_stream = Stream

    def __init__(self, config: model.HttpConnectionManager, listener: ActiveListener, context: Context) -> None:
        self.config = config
        self.context = context
        self.now = context.loop.time
        version = context.options.local_address_ip_version
        self.own_address = own_address(version) if config.use_remote_address else "127.0.0.1"
        prefix = f"http.{config.stat_prefix}"
        self.stats = context.registry.group(HttpStats, prefix)
        self.listener_stats = context.registry.group(ListenerHttpStats, f"{listener.stat_prefix}.{prefix}")
        self.loggers = tuple(context.log_files.logger(c) for c in config.access_logs)
        self.egress = listener.config.traffic_direction == "OUTBOUND"
        self.tracing = config.tracing is not None
        self.request_rules = RequestRules(config, context)
        self.response_rules = ResponseRules(config)
        self.route_table = RouteTable(config.route_config)
        self.path_normalizer = PathNormalizer(config)
        self.filters = FilterChain(
            FILTERS[f.type_url](f, context) for f in config.http_filters if f.type_url != ROUTER
        )
        self.router = Router(self, context)
        self.upgrades = dict(config.upgrade_types)
        self.max_requests = config.max_requests_per_connection
        self.stream_timers = bool(config.stream_idle_timeout or config.request_timeout or config.max_stream_duration)
        self.proper_case = proper_case if config.http1.proper_case_words else None
        self.rewrites_host = (config.strip_matching_host_port or config.strip_any_host_port
                              or config.strip_trailing_host_dot)
        self.request_plans: PlanMemo[RequestPlan] = PlanMemo()
        self.response_plans: PlanMemo[ResponsePlan] = PlanMemo()
        f = self.filters
        self.plannable = not (f.request_headers or f.request_end or f.response_headers or f.response_data
                              or f.response_end or self.max_requests or self.proper_case or config.via
                              or config.strip_matching_host_port  # depends on the connection
                              or config.always_set_request_id_in_response) and self.route_table.deterministic
        """Plans may stand for requests and responses: nothing looks at each of them."""
        self.body_limit = listener.config.per_connection_buffer_limit_bytes or 1 << 62
        self.idle_timeout = config.idle_timeout
        self.stream_idle_timeout = config.stream_idle_timeout
        self.max_connection_duration = config.max_connection_duration
        self.shedding: HttpOverload | None = None
        """Set while requests are being refused for overload."""
        self._overload: HttpOverload | None = None
        self.data_points: DataPoints | None = None
        self._connection: type[sc.ServerConnection] = sc.ServerConnection
        self._reduced: ReducedTimeouts | None = None
        if context.overload is not None and not listener.config.bypass_overload_manager:
            self._overload = HttpOverload(context.overload, self)
            self.data_points = DataPoints(context.overload)
            if self.data_points.any is not None:
                self._connection = SheddingConnection
            self._reduced = ReducedTimeouts(context.overload, self, listener)

    def protocol(self, connection: Connection) -> sc.ServerConnection:
        """The protocol of a new connection."""
        return self._connection(self, connection)

    def stream_idle(self, full: float) -> float:
        """A route's idle timeout as it is now, in seconds: shorter in overload."""
        return full if self._reduced is None else self._reduced.stream_idle(full)

    def ends_keepalive(self) -> bool:
        """The response being encoded ends its connection, for overload (disable_http_keepalive)."""
        overload = self._overload
        if overload is None or overload.keepalive is None or not overload.keepalive():
            return False
        self.stats.downstream_cx_overload_disable_keepalive += 1
        return True

    reads_at_once = True

    def opened_in_vain(self, connection: Connection) -> None:
        """As listener.filter_chain.NetworkFilter."""
        self.stats.downstream_cx_total += 1
        self.stats.downstream_cx_active += 1
        self.stats.without_codec += 1
        self.stats.without_codec_active += 1

    def received_in_vain(self, size: int) -> None:
        """Bytes of a connection that gets no codec."""
        self.stats.downstream_cx_rx_bytes_total += size

    def closed_in_vain(self, connection: Connection, now: float, local: bool) -> None:
        """Count its end."""
        stats = self.stats
        stats.downstream_cx_active -= 1
        stats.without_codec_active -= 1
        stats.downstream_cx_destroy += 1
        if local:
            stats.downstream_cx_destroy_local += 1
        else:
            stats.downstream_cx_destroy_remote += 1
        length = int((now - connection.accepted_at) * 1000)
        stats.downstream_cx_length_ms[length] = stats.downstream_cx_length_ms.get(length, 0) + 1

    def rewrite_host(self, stream: Stream) -> bytes:
        """strip_trailing_host_dot, strip_any_host_port and strip_matching_host_port."""
        config = self.config
        authority = stream.authority or b""
        name, colon, port = authority.rpartition(b":")
        if not (colon and port.isdigit() and not name.endswith(b":")):
            name, port = authority, b""
        if config.strip_trailing_host_dot:
            name = name.removesuffix(b".")
        if config.strip_any_host_port or (
            config.strip_matching_host_port and port == b"%d" % stream.conn.connection.local.port
        ):
            port = b""
        return name + b":" + port if port else name

    def decorate_request(self, stream: Stream, route: CompiledRoute) -> None:
        """The visible part of tracing: who tells whom the operation's name (ActiveStream::traceRequest)."""
        headers: Headers = stream.request_headers  # type: ignore[assignment]
        operation = route.config.decorator_operation
        if self.egress:
            if operation and route.config.decorator_propagate:
                headers.set(b"x-envoy-decorator-operation", operation)
        elif not headers.remove(b"x-envoy-decorator-operation") and operation and route.config.decorator_propagate:
            stream.decorator = operation

    def stream_timeout(self, conn: sc.ServerConnection, kind: int) -> None:
        """A timer of the current stream has expired."""
        stream = conn.stream
        stats = self.stats
        if stream is None:
            # Still waiting for the rest of a head: the request begins and ends with this reply.
            if not conn._head_started:
                return
            conn._head_started = False
            conn.ignore()
            stream = conn.stream = conn._new_stream()
            stream.protocol = b"HTTP/1.1"
        if kind == sc.T_STREAM_IDLE:
            stats.downstream_rq_idle_timeout += 1
            stream.add_flag(b"SI")
            status = 504 if stream.request_complete else 408
            stream.local_reply(status, b"stream timeout", b"stream_idle_timeout")
        elif kind == sc.T_REQUEST:
            stats.downstream_rq_timeout += 1
            stream.local_reply(408, b"request timeout", b"request_overall_timeout", close=True)
        elif kind == sc.T_REQUEST_HEADERS:
            stats.downstream_rq_header_timeout += 1
            stream.local_reply(408, b"request header timeout", b"request_header_timeout", close=True)
        elif kind == sc.T_MAX_STREAM:
            stats.downstream_rq_max_duration_reached += 1
            status = 504 if stream.request_complete else 408
            stream.local_reply(status, b"downstream duration timeout", b"max_duration_timeout",
                               grpc_status=DEADLINE_EXCEEDED)
        else:
            self.router.timeout(stream, kind)
