"""Clusters and their endpoints."""

from __future__ import annotations

from typing import Any

import pytest
from config_cases import CLUSTER, HTTP_OPTIONS, Case, Json

from proxy.config import model
from proxy.config.model import Cluster, Endpoint, Http1Options, SocketAddress, TcpKeepalive, Thresholds


def cluster(**fields: Any) -> Cluster:
    case = Case()
    case.cluster |= fields
    return case.load().bootstrap.clusters[0]


def errors(**fields: Any) -> dict[str, str]:
    case = Case()
    case.cluster |= fields
    return case.errors()


def test_defaults() -> None:
    assert cluster() == Cluster(name="c1", endpoints=(Endpoint(SocketAddress("127.0.0.1", 8001)),))


def test_simple_fields() -> None:
    compiled = cluster(connect_timeout="0.250s", alt_stat_name="c1;", per_connection_buffer_limit_bytes=5,
                       dns_refresh_rate="60s", dns_lookup_family="V4_ONLY", cleanup_interval="9223372035s",
                       type="STRICT_DNS", lb_policy="RANDOM")
    assert (compiled.connect_timeout, compiled.alt_stat_name, compiled.per_connection_buffer_limit_bytes) == (
        0.25, "c1;", 5)
    assert (compiled.dns_refresh_rate, compiled.dns_lookup_family, compiled.cleanup_interval) == (
        60.0, "V4_ONLY", 9223372035.0)
    assert (compiled.type, compiled.lb_policy) == (model.STRICT_DNS, model.RANDOM)


@pytest.mark.parametrize(("duration", "seconds"), [("1.5s", 1.5), ("0.0019s", 0.001), ("3s", 3.0), ("0.0001s", 0.0)])
def test_durations_are_milliseconds(duration: str, seconds: float) -> None:
    assert cluster(connect_timeout=duration).connect_timeout == seconds


@pytest.mark.parametrize(("fields", "path", "message"), [
    ({"connect_timeout": "0s"}, "connect_timeout", "value must be greater than 0s"),
    ({"connect_timeout": "9223372037s"}, "connect_timeout", "Duration out-of-range"),
    ({"name": ""}, "name", "value length must be at least 1 characters"),
    ({"lb_policy": "RING_HASH"}, "lb_policy",
     "RING_HASH is not supported yet; supported: ROUND_ROBIN, LEAST_REQUEST, RANDOM, CLUSTER_PROVIDED"),
    ({"type": "EDS"}, "type", "EDS is not supported yet; supported: STATIC, STRICT_DNS, ORIGINAL_DST"),
    ({"type": "LOGICAL_DNS"}, "type", "LOGICAL_DNS is not supported yet"),
    ({"cluster_type": {"name": "x"}}, "cluster_type", "custom cluster types are not supported yet"),
    ({"lb_policy": "CLUSTER_PROVIDED"}, "lb_policy", "cluster provided LB specified but cluster 'c1' did not provide"),
    ({"type": "ORIGINAL_DST", "load_assignment": None}, "lb_policy",
     "cluster: LB policy ROUND_ROBIN is not valid for Cluster type ORIGINAL_DST. Only 'CLUSTER_PROVIDED' is allowed"),
    ({"type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"}, "load_assignment",
     "ORIGINAL_DST clusters must have no load assignment configured"),
    ({"outlier_detection": {}}, "outlier_detection", "is not supported yet"),
    ({"health_checks": [{}]}, "health_checks", "is not supported yet"),
    ({"http2_protocol_options": {}}, "http2_protocol_options", "HTTP/2 comes later"),
    ({"transport_socket": {"name": "tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"}}},
     "transport_socket.typed_config", "UpstreamTlsContext is not supported yet (TLS comes later)"),
    ({"transport_socket": {"name": "envoy.transport_sockets.tls"}}, "transport_socket.name", "is not supported yet"),
    ({"transport_socket_matches": [{"name": "x"}]}, "transport_socket_matches", "TLS comes later"),
    ({"common_lb_config": {"locality_weighted_lb_config": {}}}, "common_lb_config.locality_weighted_lb_config",
     "is not supported yet"),
    ({"common_lb_config": {"healthy_panic_threshold": {"value": 101}}},
     "common_lb_config.healthy_panic_threshold.value",
     "value must be less than or equal to 100"),
    ({"upstream_bind_config": {"source_address": {"address": "lo", "port_value": 0}}},
     "upstream_bind_config.source_address.address", "malformed IP address: lo"),
    ({"load_assignment": {"cluster_name": "c1", "endpoints": [{"priority": 1}]}},
     "load_assignment.endpoints[0].priority", "1 is not supported yet; supported: 0"),
    ({"respect_dns_ttl": True}, "respect_dns_ttl", "is not supported yet"),
    ({"lb_policy": "LEAST_REQUEST", "least_request_lb_config": {"choice_count": 1}},
     "least_request_lb_config.choice_count", "value must be greater than or equal to 2"),
    ({"round_robin_lb_config": {"slow_start_config": {}}}, "round_robin_lb_config.slow_start_config",
     "is not supported yet"),
    ({"circuit_breakers": {"per_host_thresholds": [{"max_connections": 1}]}}, "circuit_breakers.per_host_thresholds",
     "is not supported yet"),
    ({"circuit_breakers": {"thresholds": [{"max_connection_pools": 5}]}},
     "circuit_breakers.thresholds[0].max_connection_pools", "is not supported yet"),
    ({"typed_extension_protocol_options": {"x": {"@type": f"type.googleapis.com/{HTTP_OPTIONS}",
                                                 "explicit_http_config": {"http_protocol_options": {}}}}},
     "typed_extension_protocol_options[x]", "Didn't find a registered network or http filter or protocol options"),
])
def test_refusals(fields: Json, path: str, message: str) -> None:
    assert message in errors(**fields)[f"{CLUSTER}.{path}"]


def test_duplicate_names() -> None:
    case = Case()
    case.clusters.append(dict(case.cluster))
    assert case.errors() == {"static_resources.clusters": "cluster manager: duplicate cluster 'c1'"}


def test_original_destination() -> None:
    compiled = cluster(type="ORIGINAL_DST", lb_policy="CLUSTER_PROVIDED", load_assignment=None, original_dst_lb_config={
        "use_http_header": True, "http_header_name": "X-Where", "upstream_port_override": 80})
    assert (compiled.type, compiled.lb_policy) == (model.ORIGINAL_DST, model.CLUSTER_PROVIDED)
    assert (compiled.use_http_header, compiled.http_header_name, compiled.upstream_port_override) == (
        True, b"x-where", 80)
    found = errors(type="ORIGINAL_DST", lb_policy="CLUSTER_PROVIDED", load_assignment=None,
                   original_dst_lb_config={"http_header_name": "x"})
    assert "use_http_header is false" in found[f"{CLUSTER}.original_dst_lb_config.http_header_name"]


def endpoint(host: str, port: int, **fields: Any) -> Json:
    return {"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}, **fields}


def test_endpoints() -> None:
    compiled = cluster(type="STRICT_DNS", load_assignment={"cluster_name": "other", "endpoints": [
        {"locality": {"region": "r", "zone": "z", "sub_zone": "s"}, "load_balancing_weight": 3, "lb_endpoints": [
            endpoint("a.example", 80, load_balancing_weight=7, health_status="HEALTHY",
                     metadata={"filter_metadata": {"istio": {"workload": "x"}}}),
            endpoint("FE80::1", 81)]},
        {"lb_endpoints": [endpoint("10.0.0.1", 82)]}]})
    assert compiled.endpoints == (
        Endpoint(SocketAddress("a.example", 80), "", 7, "r", "z", "s"),
        Endpoint(SocketAddress("fe80::1", 81), "", 1, "r", "z", "s"),
        Endpoint(SocketAddress("10.0.0.1", 82)),
    )


@pytest.mark.parametrize(("entry", "path", "message"), [
    (endpoint("a.example", 80), "endpoint.address.socket_address.address", "malformed IP address: a.example"),
    (endpoint("10.0.0.1", 80, health_status="UNHEALTHY"), "health_status", "UNHEALTHY is not supported yet"),
    (endpoint("10.0.0.1", 80, metadata={"filter_metadata": {"envoy.lb": {"canary": True}}}), "metadata",
     "is not supported yet"),
    ({"endpoint": {"address": {"pipe": {"path": "/x"}}}}, "endpoint.address.pipe", "Unix domain sockets"),
    ({"endpoint": {}}, "endpoint.address", "Address must be set"),
    ({"endpoint_name": "x"}, "endpoint_name", "give endpoint"),
    ({}, "endpoint", "value is required"),
    (endpoint("10.0.0.1", 80, load_balancing_weight=0), "load_balancing_weight", "greater than or equal to 1"),
])
def test_endpoint_refusals(entry: Json, path: str, message: str) -> None:
    found = errors(load_assignment={"cluster_name": "c1", "endpoints": [{"lb_endpoints": [entry]}]})
    assert message in found[f"{CLUSTER}.load_assignment.endpoints[0].lb_endpoints[0].{path}"]


def test_circuit_breakers() -> None:
    case = Case()
    case.cluster["circuit_breakers"] = {"thresholds": [
        {"max_connections": 4294967295, "max_retries": 5, "max_connection_pools": 4294967295},
        {"priority": "HIGH", "max_requests": 7, "max_pending_requests": 8}, {"max_connections": 1}]}
    loaded = case.load()
    compiled = loaded.bootstrap.clusters[0]
    assert compiled.default == Thresholds(max_connections=model.UNLIMITED, max_retries=5)
    assert compiled.high == Thresholds(max_requests=7, max_pending_requests=8)
    assert loaded.warnings == [f"{CLUSTER}.circuit_breakers.thresholds: a second entry for priority DEFAULT is ignored"]


def test_least_request() -> None:
    compiled = cluster(lb_policy="LEAST_REQUEST", least_request_lb_config={
        "choice_count": 5, "active_request_bias": {"default_value": 0.5, "runtime_key": "x"}})
    assert (compiled.choice_count, compiled.active_request_bias) == (5, 0.5)


def test_source_addresses_and_keepalive() -> None:
    bind = {"source_address": {"address": "127.0.0.6", "port_value": 0},
            "extra_source_addresses": [{"address": {"address": "::6", "port_value": 0}}]}
    compiled = cluster(upstream_bind_config=bind, upstream_connection_options={"tcp_keepalive": {
        "keepalive_probes": 3, "keepalive_time": 300, "keepalive_interval": 30}})
    assert compiled.source_addresses == (SocketAddress("127.0.0.6", 0), SocketAddress("::6", 0))
    assert compiled.tcp_keepalive == TcpKeepalive(3, 300, 30)
    assert cluster(upstream_connection_options={"tcp_keepalive": {}}).tcp_keepalive == TcpKeepalive()
    assert cluster(upstream_connection_options={}).tcp_keepalive is None
    case = Case()
    case.document["cluster_manager"] = {"upstream_bind_config": bind}
    assert case.load().bootstrap.clusters[0].source_addresses == compiled.source_addresses
    case.cluster["upstream_bind_config"] = {"source_address": {"address": "127.0.0.9", "port_value": 0}}
    assert case.load().bootstrap.clusters[0].source_addresses == (SocketAddress("127.0.0.9", 0),)


def options(**fields: Any) -> Json:
    return {"typed_extension_protocol_options": {HTTP_OPTIONS: {"@type": f"type.googleapis.com/{HTTP_OPTIONS}",
                                                                **fields}}}


def test_http_options() -> None:
    compiled = cluster(**options(
        common_http_protocol_options={"idle_timeout": "90s", "max_connection_duration": "5s", "max_headers_count": 7,
                                      "max_response_headers_kb": 9, "max_stream_duration": "6s",
                                      "max_requests_per_connection": 100},
        explicit_http_config={"http_protocol_options": {"enable_trailers": True}}))
    assert compiled.http1 == Http1Options(enable_trailers=True)
    assert (compiled.idle_timeout, compiled.max_connection_duration, compiled.max_stream_duration) == (90.0, 5.0, 6.0)
    assert (compiled.max_response_headers_count, compiled.max_response_headers_kb) == (7, 9)
    assert compiled.max_requests_per_connection == 100


def test_the_downstream_protocol_is_http1() -> None:
    compiled = cluster(**options(use_downstream_protocol_config={"http_protocol_options": {"enable_trailers": True},
                                                                 "http2_protocol_options": {}}))
    assert compiled.http1 == Http1Options(enable_trailers=True)


def test_deprecated_http_options() -> None:
    compiled = cluster(max_requests_per_connection=3, common_http_protocol_options={"idle_timeout": "7s"},
                       http_protocol_options={"enable_trailers": True})
    assert (compiled.max_requests_per_connection, compiled.idle_timeout, compiled.http1.enable_trailers) == (3, 7.0,
                                                                                                             True)
    both = options(explicit_http_config={"http_protocol_options": {}}) | {"max_requests_per_connection": 3}
    assert errors(**both) == {
        f"{CLUSTER}.max_requests_per_connection": "has no effect together with typed_extension_protocol_options"}


@pytest.mark.parametrize(("fields", "path"), [
    ({"explicit_http_config": {"http2_protocol_options": {}}}, "explicit_http_config.http2_protocol_options"),
    ({"auto_config": {}}, "auto_config"), ({"retry_policy": {}}, "retry_policy"),
])
def test_other_http_versions_are_refused(fields: Json, path: str) -> None:
    assert f"{CLUSTER}.typed_extension_protocol_options[{HTTP_OPTIONS}].{path}" in errors(**options(**fields))
