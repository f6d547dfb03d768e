"""What the connection manager does to request headers before any filter sees them.

Envoy: ConnectionManagerUtility::mutateRequestHeaders. One test tells whether a request carries any header that needs
care; the usual request only gets x-forwarded-proto and x-request-id.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

from proxy.http.headers import field
from proxy.http.request_id import (
    CLIENT_FORCED,
    NOT_TRACEABLE,
    SAMPLING,
    SERVICE_FORCED,
    RequestIds,
    is_uuid,
    percent_enabled,
    sampling_value,
    trace_reason,
    with_trace_reason,
)
from proxy.stats.groups import TracingStats

if TYPE_CHECKING:
    from proxy.config import model
    from proxy.context import Context
    from proxy.http.headers import Headers
    from proxy.http.stream import Stream

PROTO_HTTP = field(b"x-forwarded-proto", b"http")
INTERNAL = field(b"x-envoy-internal", b"true")

EXTERNAL_ONLY_STRIPPED = frozenset((
    b"x-envoy-retry-on", b"x-envoy-retry-grpc-on", b"x-envoy-max-retries", b"x-envoy-upstream-rq-timeout-ms",
    b"x-envoy-upstream-rq-per-try-timeout-ms", b"x-envoy-upstream-rq-timeout-alt-response",
    b"x-envoy-upstream-alt-stat-name", b"x-envoy-expected-rq-timeout-ms", b"x-envoy-force-trace", b"x-envoy-ip-tags",
    b"x-envoy-retriable-status-codes", b"x-envoy-retriable-header-names", b"x-envoy-hedge-on-per-try-timeout",
    b"x-envoy-upstream-stream-duration-ms",
))
EDGE_STRIPPED = frozenset((
    b"x-envoy-decorator-operation", b"x-envoy-downstream-service-cluster", b"x-envoy-downstream-service-node",
    b"x-envoy-original-path", b"x-envoy-original-host",
))
HOP_BY_HOP = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"upgrade", b"te"))
SPECIAL = EXTERNAL_ONLY_STRIPPED | HOP_BY_HOP | frozenset((
    b"x-envoy-internal", b"x-forwarded-client-cert", b"referer", b"x-forwarded-for", b"x-envoy-external-address",
))

NOT_PLANNED = frozenset((
    b"x-request-id", b"x-client-trace-id", b"expect", b"authorization", b"proxy-authorization", b"cookie",
))
"""Requests with one of these differ each time, or are not to be remembered."""

_REFERER = re.compile(rb"(?:[A-Za-z][A-Za-z0-9+.\-]*://[^/?#@]*(?:[/?][^#]*)?|[^:/?#]*(?:[/?][^#]*)?)")
"""An absolute URL without user information, or a relative reference; neither with a fragment."""


def remove_hop_by_hop(headers: Headers, tokens: list[bytes], upgrade: bytes | None) -> None:
    """Connection-level fields and what connection nominates (RFC 9110 section 7.6.1). An upgrade keeps its two."""
    for name in tokens:
        if name not in (b"close", b"keep-alive") and name not in (b"upgrade", b"te"):
            headers.remove(name)
    te = headers.get(b"te")
    if te is not None:
        if b"trailers" in [t.strip() for t in b",".join(headers.get_all(b"te")).lower().split(b",")]:
            headers.set(b"te", b"trailers")
        else:
            headers.remove(b"te")
    headers.remove(b"keep-alive")
    headers.remove(b"proxy-connection")
    if upgrade is None:
        headers.remove(b"connection")
        headers.remove(b"upgrade")


class RequestRules:
    """The rules of one connection manager, compiled from its configuration."""

    def __init__(self, config: model.HttpConnectionManager, context: Context) -> None:
        self._config = config
        self._ids = RequestIds()
        self._tracing = config.tracing
        self._sampled_below = 0.0
        if config.tracing is not None:
            self._sampled_below = min(config.tracing.random_sampling, config.tracing.overall_sampling) * 100
        self._edge = config.use_remote_address
        self._usual = not (config.use_remote_address or config.internal_cidrs or config.add_user_agent
                           or config.append_x_forwarded_port or config.via)
        node, options = context.bootstrap.node, context.options
        self._node_cluster = (node.cluster or options.service_cluster).encode()
        self._node_id = (node.id or options.service_node).encode()
        self._tracing_stats = context.registry.group(TracingStats, f"http.{config.stat_prefix}.tracing")

    def apply(self, stream: Stream, tokens: list[bytes]) -> None:
        """Change ``stream.request_headers``; sets ``stream.internal`` and the logged remote address."""
        headers: Headers = stream.request_headers  # type: ignore[assignment]
        index = headers.index
        if not self._usual or not SPECIAL.isdisjoint(index):
            self._unusual(stream, headers, tokens)
            index = headers.index
        elif b"x-forwarded-proto" not in index:
            headers.put(PROTO_HTTP)
        config = self._config
        tracing = self._tracing
        known = index.get(b"x-request-id")
        if known is None or not known[1]:
            if known is not None:
                if config.generate_request_id:
                    headers.set(b"x-request-id", self.new_id())
            elif config.generate_request_id:
                request_id = self.new_id() if b"x-client-trace-id" not in index else self._trace(
                    self._ids.make(), headers, tracing)
                headers.put((b"x-request-id", request_id, b"x-request-id: %b\r\n" % request_id))
            elif tracing is not None:
                self._tracing_stats.not_traceable += 1
        elif tracing is not None:
            traced = self._trace(known[1], headers, tracing)
            if traced != known[1]:
                headers.set(b"x-request-id", traced)

    def new_id(self) -> bytes:
        """A new request id, marked with the tracing decision for a request that asks for nothing itself."""
        request_id = self._ids.make()
        if self._tracing is not None:
            if self._sampled_below and int(request_id[:8], 16) % 10000 < self._sampled_below:
                self._tracing_stats.random_sampling += 1
                if self._config.pack_trace_reason:
                    return with_trace_reason(request_id, SAMPLING)
            else:
                self._tracing_stats.not_traceable += 1
        return request_id

    def plannable(self, headers: Headers) -> bool:
        """Whether requests with these headers are treated alike, but for a new request id each."""
        index = headers.index
        return (self._usual and self._config.generate_request_id and NOT_PLANNED.isdisjoint(index)
                and (SPECIAL.isdisjoint(index) or SPECIAL.intersection(index) == {b"connection"}))

    def _trace(self, request_id: bytes, headers: Headers, tracing: model.Tracing | None) -> bytes:
        """Mark the id with the tracing decision (ConnectionManagerUtility::mutateTracingRequestHeader)."""
        if tracing is None:
            return request_id
        value = sampling_value(request_id)
        if not is_uuid(request_id) or value is None:
            self._tracing_stats.not_traceable += 1
            return request_id
        reason = trace_reason(request_id)
        if reason == NOT_TRACEABLE:
            index = headers.index
            if b"x-client-trace-id" in index and percent_enabled(tracing.client_sampling, None):
                reason = CLIENT_FORCED
            elif b"x-envoy-force-trace" in index:
                reason = SERVICE_FORCED
            elif percent_enabled(tracing.random_sampling, value):
                reason = SAMPLING
        if reason != NOT_TRACEABLE and not percent_enabled(tracing.overall_sampling, value):
            reason = NOT_TRACEABLE
        stats = self._tracing_stats
        if reason == NOT_TRACEABLE:
            stats.not_traceable += 1
        elif reason == SAMPLING:
            stats.random_sampling += 1
        elif reason == SERVICE_FORCED:
            stats.service_forced += 1
        else:
            stats.client_enabled += 1
        return with_trace_reason(request_id, reason) if self._config.pack_trace_reason else request_id

    def _unusual(self, stream: Stream, headers: Headers, tokens: list[bytes]) -> None:
        config = self._config
        index = headers.index
        if tokens or not HOP_BY_HOP.isdisjoint(index):
            remove_hop_by_hop(headers, tokens, stream.upgrade)
        self._addresses(stream, headers)
        if not stream.internal:
            for name in EXTERNAL_ONLY_STRIPPED:
                if name in index:
                    headers.remove(name)
            headers.remove(b"x-envoy-internal")
            if self._edge:
                for name in EDGE_STRIPPED:
                    headers.remove(name)
                if not config.preserve_external_request_id and config.generate_request_id and b"x-request-id" in index:
                    headers.set(b"x-request-id", b"")
        if (config.use_remote_address and config.xff_num_trusted_hops == 0) or b"x-forwarded-proto" not in index:
            headers.set(b"x-forwarded-proto", stream.scheme)
        if config.append_x_forwarded_port and b"x-forwarded-port" not in index:
            headers.add(b"x-forwarded-port", b"%d" % stream.conn.connection.local.port)
        if stream.internal:
            headers.remove(b"x-envoy-internal")
            headers.put(INTERNAL)
        elif self._edge:
            headers.set(b"x-envoy-external-address", stream.trusted_address.encode())
        if config.add_user_agent:
            headers.set(b"x-envoy-downstream-service-cluster", self._node_cluster)
            if b"user-agent" not in index:
                headers.add(b"user-agent", self._node_cluster)
            headers.set(b"x-envoy-downstream-service-node", self._node_id)
        if not config.always_forward_client_cert:
            headers.remove(b"x-forwarded-client-cert")
        referer = headers.get(b"referer")
        if referer is not None and not _REFERER.fullmatch(referer):
            headers.remove(b"referer")
        if config.via:
            old = headers.get(b"via")
            headers.set(b"via", config.via if old is None else old + b", " + config.via)

    def _addresses(self, stream: Stream, headers: Headers) -> None:
        """The client's address: the peer's, or the one that x-forwarded-for gives; internal or not; appends to XFF."""
        config = self._config
        peer = stream.conn.connection.remote.host
        values = headers.get_all(b"x-forwarded-for")
        entries = [e.strip() for e in b",".join(values).split(b",")] if values else []
        if len(values) > 1:
            headers.set(b"x-forwarded-for", b",".join(values))
        if config.use_remote_address:
            trusted = peer
            hops = config.xff_num_trusted_hops
            if hops and (found := _address(entries[-hops] if len(entries) >= hops else None)):
                trusted = found
                stream.downstream_remote_address = _without_port(found)
            if config.internal_cidrs is not None:
                stream.internal = not entries and self._is_internal(peer)
            if not config.skip_xff_append:
                own = stream.manager.own_address if ipaddress.ip_address(peer).is_loopback else peer
                appended = own.encode()
                headers.set(b"x-forwarded-for", b",".join([b",".join(values), appended]) if values else appended)
        else:
            hops = config.xff_num_trusted_hops
            found = _address(entries[-1 - hops] if len(entries) > hops else None)
            trusted = found or peer
            if found:
                stream.downstream_remote_address = _without_port(found)
            if config.internal_cidrs is not None:
                stream.internal = len(entries) == 1 and found is not None and self._is_internal(found)
        stream._trusted = trusted

    def _is_internal(self, address: str) -> bool:
        ip = ipaddress.ip_address(address)
        return any(ip in cidr for cidr in self._config.internal_cidrs or ())


def _without_port(address: str) -> bytes:
    """How an address that came in a header is logged."""
    return (f"[{address}]:0" if ":" in address else f"{address}:0").encode()


def _address(text: bytes | None) -> str | None:
    if not text:
        return None
    try:
        return str(ipaddress.ip_address(text.decode("ascii")))
    except ValueError:
        return None
