"""Fields that no compiler reads and that may be set all the same, each with the reason why that changes nothing.

"Harmless" means without visible effect in Envoy, in every configuration that is accepted here: neither a client, an
upstream nor an operator could tell. A field that only acts together with something that is refused is harmless.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

UNLIMITED = 4294967295


class When(NamedTuple):
    """A field that is harmless only with some values."""

    test: Callable[[Any], bool]
    reason: str


Reason = str | When


def _true(value: Any) -> bool:
    return bool(getattr(value, "value", value))


def _zero(value: Any) -> bool:
    return not getattr(value, "value", value)


def _zero_duration(value: Any) -> bool:
    return not value.seconds and not value.nanos


def _unlimited(value: Any) -> bool:
    return bool(value.value == UNLIMITED)


def _not_canary(value: Any) -> bool:
    balancer = value.filter_metadata.get("envoy.lb") if "envoy.lb" in value.filter_metadata else None
    return balancer is None or "canary" not in balancer.fields or not balancer.fields["canary"].bool_value


_LABEL = "a label; the extension is found by its type"
_METADATA = "metadata is for filters and operators that ask for it by name; those are refused"
_TRACER = "for spans; there is no tracer (provider is refused)"
_TLS = "for TLS, which is refused"
_HASH = "only hash load balancing uses it, which is refused"
_HEALTH = "for hosts that health checks or outlier detection found unhealthy; both are refused"
_HTTP2 = "only HTTP/2 connections use it; HTTP/2 is refused on both sides"
_XDS = "only xDS servers see it; dynamic resources are refused"
_RATE_LIMIT = "only rate limit filters read it, which are refused"
_DEFAULT = "the default"
_INERT = "Envoy does not implement it"

_C = "envoy.config"
_HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_UPSTREAM = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_CARES = "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig"

HARMLESS: dict[str, dict[str, Reason]] = {
    # --- bootstrap
    f"{_C}.bootstrap.v3.Bootstrap": {
        "node_context_params": _XDS,
        "grpc_async_client_manager_config": "for gRPC clients, which are refused",
        "memory_allocator_manager": "settings of tcmalloc",
        "default_socket_interface": When(
            lambda value: value == "envoy.extensions.network.socket_interface.default_socket_interface", _DEFAULT),
    },
    f"{_C}.core.v3.Node": {
        **dict.fromkeys(("metadata", "dynamic_parameters", "user_agent_name", "user_agent_version",
                         "user_agent_build_version", "extensions", "client_features", "listening_addresses"), _XDS),
        "locality": When(lambda value: not value.zone, f"without a zone {_XDS}"),
    },
    f"{_C}.bootstrap.v3.RuntimeLayer": {"name": "a label that has to be unique"},
    f"{_C}.bootstrap.v3.Admin": {
        "profile_path": "where a profiler writes that does not exist here",
        "ignore_global_conn_limit": "the admin interface is never counted and never refused",
    },
    f"{_C}.core.v3.TypedExtensionConfig": {"name": _LABEL},
    "envoy.extensions.bootstrap.internal_listener.v3.InternalListener": {
        "buffer_size_kb": "for connections to internal listeners, which are refused",
    },
    # --- listeners
    f"{_C}.listener.v3.Listener": {
        "metadata": _METADATA,
        "enable_reuse_port": When(_true, _DEFAULT),
        "transparent": When(_zero, _DEFAULT),
        "freebind": When(_zero, _DEFAULT),
        "tcp_fast_open_queue_length": When(_zero, "zero keeps TCP fast open off"),
    },
    f"{_C}.listener.v3.ListenerFilter": {"name": _LABEL},
    f"{_C}.listener.v3.Filter": {"name": _LABEL},
    f"{_C}.listener.v3.FilterChain": {
        "metadata": _METADATA,
        "transport_socket_connect_timeout": "how long a TLS handshake may take; TLS is refused",
        "use_proxy_proto": When(_zero, _DEFAULT),
    },
    f"{_C}.core.v3.TransportSocket": {"name": _LABEL},
    f"{_C}.core.v3.SocketAddress": {
        "resolver_name": When(lambda value: value == "envoy.ip", _DEFAULT),
    },
    # --- network filters
    "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy": {
        "metadata_match": "selects a subset of a cluster; lb_subset_config is refused",
        "hash_policy": _HASH,
        "downstream_idle_timeout": _INERT,
        "upstream_idle_timeout": _INERT,
    },
    "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight": {
        "metadata_match": "selects a subset of a cluster; lb_subset_config is refused",
    },
    _HCM: {
        "codec_type": When(lambda value: value in (0, 1),
                           "without TLS, AUTO means HTTP/1 unless HTTP/2's preface comes, which is answered with 400"),
        "http2_protocol_options": _HTTP2,
        "http3_protocol_options": "for QUIC listeners, which are refused",
        "forward_client_cert_details": "without TLS every mode but ALWAYS_FORWARD_ONLY removes the header",
        "set_current_client_cert_details": "fills x-forwarded-client-cert from a client certificate; TLS is refused",
        "add_proxy_protocol_connection_state": "for upstream PROXY protocol, which is refused",
        "path_with_escaped_slashes_action": When(lambda value: value in (0, 1), "IMPLEMENTATION_SPECIFIC_DEFAULT is "
                                                                                "KEEP_UNCHANGED"),
    },
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter": {"name": _LABEL},
    f"{_HCM}.Tracing": {
        "verbose": _TRACER, "max_path_tag_length": _TRACER, "custom_tags": _TRACER, "spawn_upstream_span": _TRACER,
        "operation": _TRACER, "upstream_operation": _TRACER,
    },
    "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig": {
        "use_request_id_for_trace_sampling": When(_true, _DEFAULT),
    },
    "envoy.extensions.filters.http.router.v3.Router": {
        "dynamic_stats": When(_true, _DEFAULT),
        "start_child_span": _TRACER,
        "suppress_grpc_request_failure_code_stats": "statistics of gRPC calls, which need HTTP/2",
    },
    f"{_C}.core.v3.Http1ProtocolOptions": {
        "use_balsa_parser": When(_true, _DEFAULT),
    },
    # --- access logs
    f"{_C}.accesslog.v3.AccessLog": {"name": _LABEL},
    f"{_C}.core.v3.SubstitutionFormatString": {
        "content_type": "of local replies; an access log has none",
        "json_format_options": "for JSON formats, which are refused",
    },
    # --- routes
    f"{_C}.route.v3.RouteConfiguration": {
        "metadata": _METADATA,
        "max_direct_response_body_size_bytes": "a check of the configuration only",
        "validate_clusters": "a check of the configuration only",
    },
    f"{_C}.route.v3.VirtualHost": {
        "metadata": _METADATA,
        "rate_limits": _RATE_LIMIT,
        "cors": "only the CORS filter reads it, which is refused",
    },
    f"{_C}.route.v3.Route": {"metadata": _METADATA},
    f"{_C}.route.v3.RouteAction": {
        "metadata_match": "selects a subset of a cluster; lb_subset_config is refused",
        "hash_policy": _HASH,
        "rate_limits": _RATE_LIMIT,
        "include_vh_rate_limits": _RATE_LIMIT,
        "cors": "only the CORS filter reads it, which is refused",
        "early_data_policy": "for requests in TLS or QUIC early data; both are refused",
    },
    f"{_C}.route.v3.WeightedCluster": {
        "total_weight": "Envoy uses the sum of the weights",
        "use_hash_policy": When(_zero, _DEFAULT),
    },
    f"{_C}.route.v3.WeightedCluster.ClusterWeight": {
        "metadata_match": "selects a subset of a cluster; lb_subset_config is refused",
    },
    f"{_C}.route.v3.RetryPolicy.RetryHostPredicate": {"name": _LABEL},
    "envoy.type.matcher.v3.RegexMatcher.GoogleRE2": {
        "max_program_size": "a check of the configuration only",
    },
    # --- clusters
    f"{_C}.cluster.v3.Cluster": {
        "metadata": _METADATA,
        "least_request_lb_config": "read only with lb_policy LEAST_REQUEST",
        "wait_for_warm_on_init": When(_true, _DEFAULT),
        "close_connections_on_host_health_failure": _HEALTH,
        "ignore_health_on_host_removal": _HEALTH,
        "protocol_selection": "downstream is HTTP/1, so both values mean HTTP/1",
    },
    f"{_C}.cluster.v3.Cluster.CommonLbConfig": {
        "healthy_panic_threshold": _HEALTH,
        "zone_aware_lb_config": "needs local_cluster_name, which is refused",
        "update_merge_window": "merges updates of health and weights; a static configuration has none",
        "ignore_new_hosts_until_first_hc": _HEALTH,
        "consistent_hashing_lb_config": _HASH,
        "override_host_status": "for stateful sessions, whose filter is refused",
    },
    f"{_C}.cluster.v3.UpstreamConnectionOptions": {
        "happy_eyeballs_config": "chooses among additional addresses of a host, which are refused",
    },
    f"{_C}.cluster.v3.CircuitBreakers.Thresholds": {
        "max_connection_pools": When(_unlimited, "no limit"),
    },
    f"{_C}.core.v3.BindConfig": {"freebind": When(_zero, _DEFAULT)},
    f"{_C}.core.v3.UpstreamHttpProtocolOptions": dict.fromkeys(
        ("auto_sni", "auto_san_validation", "override_auto_sni_header"), _TLS),
    f"{_UPSTREAM}.UseDownstreamHttpConfig": {
        "http2_protocol_options": "used for requests that came over HTTP/2, which is refused downstream",
        "http3_protocol_options": "used for requests that came over HTTP/3, which is refused downstream",
    },
    f"{_C}.core.v3.HttpProtocolOptions": {
        "headers_with_underscores_action": "acts on requests from clients; in a cluster Envoy does not use it",
    },
    _CARES: {
        "udp_max_queries": "how often the resolver changes its UDP port",
        "max_udp_channel_duration": "how often the resolver changes its UDP port",
        "use_resolvers_as_fallback": "about resolvers, which are refused",
    },
    "envoy.extensions.network.dns_resolver.getaddrinfo.v3.GetAddrInfoDnsResolverConfig": {
        "num_resolver_threads": "how many threads wait for answers",
    },
    # --- endpoints
    f"{_C}.endpoint.v3.ClusterLoadAssignment": {
        "cluster_name": "a label where endpoints are static",
    },
    f"{_C}.endpoint.v3.ClusterLoadAssignment.Policy": {
        "overprovisioning_factor": _HEALTH,
        "weighted_priority_health": _HEALTH,
        "endpoint_stale_after": "for endpoints that EDS no longer confirms",
    },
    f"{_C}.endpoint.v3.LocalityLbEndpoints": {
        "metadata": _METADATA,
        "load_balancing_weight": "counts only with locality_weighted_lb_config, which is refused",
    },
    f"{_C}.endpoint.v3.LbEndpoint": {
        "metadata": When(_not_canary, _METADATA),
        "health_status": When(lambda value: value == 1, "without health checks UNKNOWN is as good as HEALTHY"),
    },
    f"{_C}.endpoint.v3.Endpoint": {
        "health_check_config": "for health checks, which are refused",
    },
}

_LATER = "is not supported yet"
_NO_XDS = f"{_LATER}: dynamic resources (xDS) come later; give static_resources"
_NO_TLS = f"{_LATER}: TLS comes later"
_NO_HTTP2 = f"{_LATER}: HTTP/2 comes later"
_NO_HTTP3 = f"{_LATER}; HTTP/1 only"
_NO_GRPC = f"{_LATER}: gRPC comes later"
_NO_HEALTH = f"{_LATER}: health checks and outlier detection come later"
_NO_HASH = f"{_LATER}: hash load balancing comes later"

WHY_NOT: dict[str, dict[str, str]] = {
    f"{_C}.bootstrap.v3.Bootstrap.StaticResources": {"secrets": _NO_TLS},
    f"{_C}.bootstrap.v3.Bootstrap.DynamicResources": dict.fromkeys(("lds_config", "cds_config", "ads_config"), _NO_XDS),
    f"{_C}.core.v3.Node": {
        "locality": "statistics by zone (cluster.NAME.zone.FROM.TO) are not supported yet; give no zone",
    },
    f"{_C}.bootstrap.v3.Bootstrap": {"hds_config": _NO_XDS, "stats_sinks": _NO_GRPC},
    f"{_C}.listener.v3.Listener": {
        "enable_reuse_port": "false is not supported: every worker has its own listening socket",
        "transparent": f"{_LATER}: TPROXY comes later",
        "internal_listener": "internal listeners are not supported yet",
        "udp_listener_config": "UDP listeners are not supported yet",
    },
    _HCM: {
        "rds": _NO_XDS, "scoped_routes": _NO_XDS,
    },
    f"{_HCM}.Tracing": {"provider": f"{_LATER}: tracers come later"},
    f"{_C}.cluster.v3.Cluster": {
        "transport_socket_matches": _NO_TLS,
        "transport_socket_matcher": _NO_TLS,
        "eds_cluster_config": _NO_XDS,
        "http2_protocol_options": _NO_HTTP2,
        "health_checks": _NO_HEALTH,
        "outlier_detection": _NO_HEALTH,
        "ring_hash_lb_config": _NO_HASH,
        "maglev_lb_config": _NO_HASH,
    },
    f"{_UPSTREAM}.ExplicitHttpConfig": {"http2_protocol_options": _NO_HTTP2, "http3_protocol_options": _NO_HTTP3},
    f"{_UPSTREAM}": {"auto_config": f"{_LATER}: TLS and HTTP/2 come later", "outlier_detection": _NO_HEALTH},
}


def is_harmless(message_type: str, field: str, value: Any) -> bool:
    """Whether a field that no compiler read may be set to ``value``."""
    reason = HARMLESS.get(message_type, {}).get(field)
    if isinstance(reason, When):
        return reason.test(value)
    return reason is not None


def why_not(message_type: str, field: str) -> str:
    """The error for a field that no compiler reads."""
    return WHY_NOT.get(message_type, {}).get(field, _LATER)
