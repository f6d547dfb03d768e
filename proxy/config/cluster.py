"""config.cluster.v3: clusters."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from proxy.config import model, runtime
from proxy.config.core import header_name, runtime_double, socket_address
from proxy.config.endpoint import load_assignment
from proxy.config.extensions import Registry
from proxy.config.http_options import (
    UPSTREAM_OPTIONS,
    CommonOptions,
    UpstreamHttpOptions,
    common_options,
    http1_options,
    limit,
)
from proxy.config.listener import transport_socket
from proxy.config.model import Cluster, SocketAddress, TcpKeepalive, Thresholds
from proxy.config.reader import Reader, ignore

HTTP_OPTIONS_KEY = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_OLD_OPTIONS = ("max_requests_per_connection", "common_http_protocol_options", "http_protocol_options",
                "upstream_http_protocol_options")

DNS_RESOLVERS: Registry[bool] = Registry(
    "DNS resolver",
    (),
    {
        "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig": ignore,
        "envoy.extensions.network.dns_resolver.getaddrinfo.v3.GetAddrInfoDnsResolverConfig": ignore,
    },
)


def dns_resolver(reader: Reader) -> bool:
    """core.v3.TypedExtensionConfig with a DNS resolver; the system's resolver answers in any case."""
    return reader.extension("typed_config", DNS_RESOLVERS)


def bind_config(reader: Reader) -> tuple[SocketAddress, ...]:
    """core.v3.BindConfig as source addresses in the order in which they are tried."""
    first = reader.sub("source_address", socket_address)
    extra = reader.each("extra_source_addresses", lambda one: one.need("address", socket_address))
    old = reader.each("additional_source_addresses", socket_address)
    if extra and old:
        reader.error("additional_source_addresses", "Can't specify both `extra_source_addresses` and "
                                                    "`additional_source_addresses` in the cluster's bind config")
    if (extra or old) and first is None:
        reader.error("source_address", "Extra/additional addresses cannot be specified if source_address is not set.")
    sources = (*(() if first is None else (first,)), *extra, *old)
    if len({":" in source.host for source in sources}) < len(sources):
        reader.error("", "Only two different IP version source addresses can be supported in BindConfig's "
                         "source_address and extra_source_addresses/additional_source_addresses fields")
    return sources


def _thresholds(reader: Reader) -> tuple[str, Thresholds]:
    default = Thresholds()
    return reader.enum("priority"), Thresholds(
        max_connections=reader.integer("max_connections", default.max_connections),
        max_pending_requests=reader.integer("max_pending_requests", default.max_pending_requests),
        max_requests=reader.integer("max_requests", default.max_requests),
        max_retries=reader.integer("max_retries", default.max_retries),
    )


def _circuit_breakers(reader: Reader) -> tuple[Thresholds, Thresholds]:
    """cluster.v3.CircuitBreakers as (DEFAULT, HIGH); of several entries for a priority the first counts."""
    found: dict[str, Thresholds] = {}
    for priority, limits in reader.each("thresholds", _thresholds):
        if priority in found:
            reader.warn("thresholds", f"a second entry for priority {priority} is ignored")
        found.setdefault(priority, limits)
    return found.get("DEFAULT", Thresholds()), found.get("HIGH", Thresholds())


def _keepalive(reader: Reader) -> TcpKeepalive:
    return TcpKeepalive(reader.integer("keepalive_probes"), reader.integer("keepalive_time"),
                        reader.integer("keepalive_interval"))


def _connection_options(reader: Reader) -> TcpKeepalive | None:
    return reader.sub("tcp_keepalive", _keepalive)


def _least_request(reader: Reader) -> tuple[int, float]:
    bias = reader.sub("active_request_bias", runtime_double)
    return reader.integer("choice_count", 2), 1.0 if bias is None else bias


def _original_dst(reader: Reader) -> tuple[bool, bytes, int]:
    use_header = reader.boolean("use_http_header")
    name = header_name(reader, "http_header_name", reader.string("http_header_name"))
    if name and not use_header:
        reader.error("http_header_name", f"ORIGINAL_DST cluster: invalid config http_header_name={name.decode()} and "
                                         "use_http_header is false. Set use_http_header to true if http_header_name is "
                                         "desired.")
    return use_header, name or b"x-envoy-original-dst-host", reader.integer("upstream_port_override")


def _http_options(reader: Reader) -> UpstreamHttpOptions:
    """The cluster's protocol options: the typed ones, else the deprecated fields of the cluster."""
    typed = reader.extensions("typed_extension_protocol_options", UPSTREAM_OPTIONS)
    for key in set(typed) - {HTTP_OPTIONS_KEY}:
        reader.error(f"typed_extension_protocol_options[{key}]", "Didn't find a registered network or http filter or "
                     f"protocol options implementation for name: {key!r}; supported: {HTTP_OPTIONS_KEY}")
    if HTTP_OPTIONS_KEY in typed:
        for name in _OLD_OPTIONS:
            if reader.has(name):
                reader.take(name)
                reader.error(name, "has no effect together with typed_extension_protocol_options")
        return typed[HTTP_OPTIONS_KEY]
    common = reader.sub("common_http_protocol_options", common_options) or CommonOptions()
    if requests := reader.integer("max_requests_per_connection"):
        common = replace(common, max_requests_per_connection=requests)
    http1 = reader.sub("http_protocol_options", http1_options)
    reader.sub("upstream_http_protocol_options", ignore)
    return UpstreamHttpOptions(common, http1 or model.Http1Options())


def _discovery(name: str, reader: Reader) -> tuple[str, str]:
    """Type and load balancing policy."""
    if reader.chosen("cluster_discovery_type") == "cluster_type":
        kind = "STATIC"
        reader.take("cluster_type")
        reader.error("cluster_type", "custom cluster types are not supported yet; give type")
    else:
        kind = reader.supported_enum("type", model.STATIC, model.STRICT_DNS, model.ORIGINAL_DST)
    before = len(reader.scope.errors)
    policy = reader.supported_enum("lb_policy", model.ROUND_ROBIN, model.LEAST_REQUEST, model.RANDOM,
                                   model.CLUSTER_PROVIDED)
    if len(reader.scope.errors) > before:
        return kind, model.CLUSTER_PROVIDED if kind == model.ORIGINAL_DST else model.ROUND_ROBIN
    if kind == model.ORIGINAL_DST and policy != model.CLUSTER_PROVIDED:
        reader.error("lb_policy", f"cluster: LB policy {policy} is not valid for Cluster type ORIGINAL_DST. Only "
                                  "'CLUSTER_PROVIDED' is allowed with cluster type 'ORIGINAL_DST'")
    elif kind != model.ORIGINAL_DST and policy == model.CLUSTER_PROVIDED:
        reader.error("lb_policy", f"cluster manager: cluster provided LB specified but cluster {name!r} "
                                  "did not provide one. Check cluster documentation.")
    return kind, policy


def cluster(default_sources: tuple[SocketAddress, ...], reader: Reader) -> Cluster:
    """config.cluster.v3.Cluster; ``default_sources`` are the cluster manager's upstream_bind_config."""
    name = reader.string("name")
    kind, policy = _discovery(name, reader)
    options = _http_options(reader)
    common = options.common
    least_request, original_dst = (2, 1.0), (False, b"x-envoy-original-dst-host", 0)
    if policy == model.LEAST_REQUEST:
        least_request = reader.sub("least_request_lb_config", _least_request) or least_request
    if kind == model.ORIGINAL_DST:
        original_dst = reader.sub("original_dst_lb_config", _original_dst) or original_dst
        if reader.has("load_assignment"):
            reader.error("load_assignment", "ORIGINAL_DST clusters must have no load assignment configured")
    reader.sub("round_robin_lb_config", ignore)
    reader.sub("common_lb_config", ignore)
    reader.sub("transport_socket", transport_socket)
    reader.sub("typed_dns_resolver_config", dns_resolver)
    sources = reader.sub("upstream_bind_config", bind_config)
    default, high = reader.sub("circuit_breakers", _circuit_breakers) or (Thresholds(), Thresholds())
    return Cluster(
        name=name,
        type=kind,
        lb_policy=policy,
        alt_stat_name=reader.string("alt_stat_name"),
        connect_timeout=reader.seconds("connect_timeout", 5.0),
        endpoints=reader.sub("load_assignment", partial(load_assignment, kind == model.STRICT_DNS)) or (),
        choice_count=least_request[0],
        active_request_bias=least_request[1],
        default=default,
        high=high,
        source_addresses=default_sources if sources is None else sources,
        tcp_keepalive=reader.sub("upstream_connection_options", _connection_options),
        per_connection_buffer_limit_bytes=reader.integer("per_connection_buffer_limit_bytes", 1024 * 1024),
        http1=options.http1,
        idle_timeout=3600.0 if common.idle_timeout is None else common.idle_timeout,
        max_connection_duration=common.max_connection_duration,
        max_requests_per_connection=common.max_requests_per_connection,
        max_stream_duration=common.max_stream_duration,
        max_response_headers_kb=limit(reader, common.max_response_headers_kb, runtime.MAX_RESPONSE_HEADERS_KB, 80),
        max_response_headers_count=limit(reader, common.max_headers_count, runtime.MAX_RESPONSE_HEADERS_COUNT, 100),
        dns_refresh_rate=reader.seconds("dns_refresh_rate", 5.0),
        dns_lookup_family=reader.enum("dns_lookup_family"),
        cleanup_interval=reader.seconds("cleanup_interval", 5.0),
        use_http_header=original_dst[0],
        http_header_name=original_dst[1],
        upstream_port_override=original_dst[2],
    )


def check_clusters(reader: Reader, field: str, clusters: tuple[Cluster, ...]) -> None:
    """Note an error for every name that several clusters have."""
    seen: set[str] = set()
    for one in clusters:
        if one.name and one.name in seen:
            reader.error(field, f"cluster manager: duplicate cluster {one.name!r}")
        seen.add(one.name)
