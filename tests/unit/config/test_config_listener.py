"""Listeners, filter chains, listener filters, the TCP proxy and access logs."""

from __future__ import annotations

import copy
import uuid
from ipaddress import ip_network
from typing import Any

import pytest
from config_cases import CHAIN, EXTENSIONS, LISTENER, Case, Json, tcp_proxy

from proxy.config import model
from proxy.config.access_log import DEFAULT_FORMAT
from proxy.config.model import AccessLog, FilterChainMatch, Listener, ListenerFilter, SocketAddress, TcpProxy

FILE = f"{EXTENSIONS}.access_loggers.file.v3.FileAccessLog"


def listener(**fields: Any) -> Listener:
    case = Case()
    case.listener |= fields
    return case.load().bootstrap.listeners[0]


def errors(**fields: Any) -> dict[str, str]:
    case = Case()
    case.listener |= fields
    return case.errors()


def test_simple_fields() -> None:
    compiled = listener(
        additional_addresses=[{"address": {"socket_address": {"address": "::1", "port_value": 10000}}}],
        bind_to_port=False, use_original_dst=True, traffic_direction="INBOUND", listener_filters_timeout="0s",
        continue_on_listener_filters_timeout=True, per_connection_buffer_limit_bytes=9, stat_prefix="p",
        tcp_backlog_size=5, drain_type="MODIFY_ONLY", max_connections_to_accept_per_socket_event=2,
        enable_reuse_port=True, ignore_global_conn_limit=True, bypass_overload_manager=True, metadata={})
    assert compiled.addresses == (SocketAddress("127.0.0.1", 10000), SocketAddress("::1", 10000))
    assert (compiled.bind_to_port, compiled.use_original_dst, compiled.traffic_direction) == (False, True, "INBOUND")
    assert (compiled.listener_filters_timeout, compiled.continue_on_listener_filters_timeout) == (0.0, True)
    assert (compiled.per_connection_buffer_limit_bytes, compiled.stat_prefix, compiled.tcp_backlog_size) == (9, "p", 5)
    assert (compiled.modify_only_drain, compiled.max_connections_to_accept_per_socket_event) == (True, 2)
    assert compiled.listener_filters == (ListenerFilter(model.ORIGINAL_DST_FILTER),)


def test_a_listener_without_name_gets_one() -> None:
    case = Case()
    del case.listener["name"]
    uuid.UUID(case.load().bootstrap.listeners[0].name)


def test_the_deprecated_way_not_to_bind() -> None:
    assert listener(deprecated_v1={"bind_to_port": False}).bind_to_port is False


@pytest.mark.parametrize(("fields", "path", "message"), [
    ({"address": None}, "address", "error adding listener named 'l1': address is necessary"),
    ({"filter_chains": []}, "filter_chains", "no filter chains specified"),
    ({"filter_chains": [{}]}, "filter_chains[0].filters",
     "a filter chain without network filters is not supported yet"),
    ({"enable_reuse_port": False}, "enable_reuse_port", "every worker has its own listening socket"),
    ({"transparent": True}, "transparent", "TPROXY comes later"), ({"freebind": True}, "freebind", "not supported yet"),
    ({"connection_balance_config": {"exact_balance": {}}}, "connection_balance_config", "is not supported yet"),
    ({"max_connections_to_accept_per_socket_event": 0}, "max_connections_to_accept_per_socket_event", "greater than 0"),
    ({"address": {"socket_address": {"address": "x", "port_value": 1}}}, "address.socket_address.address",
     "malformed IP address: x"),
    ({"address": {"socket_address": {"address": "::", "port_value": 1, "ipv4_compat": True}}},
     "address.socket_address.ipv4_compat", "is not supported yet"),
    ({"address": {"socket_address": {"address": "::", "port_value": 1, "protocol": "UDP"}}},
     "address.socket_address.protocol", "UDP is not supported yet"),
    ({"address": {"socket_address": {"address": "::", "named_port": "http"}}},
     "address.socket_address.named_port", "give port_value"),
    ({"udp_listener_config": {}}, "udp_listener_config", "UDP listeners are not supported yet"),
    ({"listener_filters": [{"name": "x"}]}, "listener_filters[0].typed_config",
     "a type URL (@type) is required; supported listener filters: "),
    ({"listener_filters": [{"name": "x", "typed_config": {
        "@type": f"{EXTENSIONS}.filters.listener.tls_inspector.v3.TlsInspector"}}]},
     "listener_filters[0].typed_config", "TlsInspector is not supported yet (TLS comes later)"),
    ({"listener_filters": [{"name": "x", "config_discovery": {"config_source": {"ads": {}}, "type_urls": ["x"]}}]},
     "listener_filters[0].config_discovery", "extension discovery (ECDS) is not supported yet"),
])
def test_refusals(fields: Json, path: str, message: str) -> None:
    assert message in errors(**fields)[f"{LISTENER}.{path}"]


def test_names_and_addresses_are_unique() -> None:
    case = Case()
    case.listeners.append(copy.deepcopy(case.listener))
    assert case.errors().keys() == {"static_resources.listeners"}
    case.listeners[1]["name"] = "l2"
    (message,) = case.errors().values()
    assert message.startswith("error adding listener: 'l2' has duplicate address '127.0.0.1:10000' as existing")
    case.listeners[1]["address"]["socket_address"]["port_value"] = 10001
    case.load()
    for one in case.listeners:
        one["address"]["socket_address"]["port_value"] = 0
    case.load()


def filters(disabled: Json) -> ListenerFilter:
    compiled = listener(listener_filters=[{"name": "x", "filter_disabled": disabled, "typed_config": {
        "@type": f"{EXTENSIONS}.filters.listener.http_inspector.v3.HttpInspector"}}])
    return compiled.listener_filters[0]


@pytest.mark.parametrize(("predicate", "ports", "others"), [
    ({"destination_port_range": {"start": 10, "end": 12}}, (10, 11), (9, 12)),
    ({"not_match": {"destination_port_range": {"start": 10, "end": 12}}}, (9, 12), (10, 11)),
    ({"any_match": True}, (1, 65535), ()),
    ({"or_match": {"rules": [{"destination_port_range": {"start": 1, "end": 2}},
                             {"destination_port_range": {"start": 5, "end": 6}}]}}, (1, 5), (2, 6)),
    ({"and_match": {"rules": [{"destination_port_range": {"start": 1, "end": 9}},
                              {"not_match": {"destination_port_range": {"start": 5, "end": 6}}}]}}, (1, 8), (5, 9)),
])
def test_where_a_listener_filter_is_disabled(predicate: Json, ports: tuple[int, ...], others: tuple[int, ...]) -> None:
    disabled = filters(predicate).disabled
    assert disabled is not None
    assert all(map(disabled, ports)) and not any(map(disabled, others))


# --- filter chains ----------------------------------------------------------------------------------------------------


def test_filter_chain_match() -> None:
    case = Case()
    case.chain["filter_chain_match"] = {
        "destination_port": 80, "prefix_ranges": [{"address_prefix": "10.1.2.3", "prefix_len": 8}],
        "server_names": ["A.com", "*.b.com"], "transport_protocol": "raw_buffer", "application_protocols": ["http/1.1"],
        "direct_source_prefix_ranges": [{"address_prefix": "::1", "prefix_len": 128}], "source_type": "EXTERNAL",
        "source_prefix_ranges": [{"address_prefix": "0.0.0.0"}], "source_ports": [1, 2]}
    compiled = case.load().bootstrap.listeners[0].filter_chains[0]
    assert (compiled.name, compiled.match) == ("fc1", FilterChainMatch(
        80, (ip_network("10.0.0.0/8"),), ("a.com", "*.b.com"), "raw_buffer", ("http/1.1",), (ip_network("::1/128"),),
        model.EXTERNAL, (ip_network("0.0.0.0/0"),), (1, 2)))


@pytest.mark.parametrize(("match", "path", "message"), [
    ({"destination_port": 70000}, "destination_port", "less than or equal to 65535"),
    ({"server_names": ["a", "a*.com"]}, "server_names[1]", 'partial wildcards are not supported in "server_names"'),
    ({"address_suffix": "x"}, "address_suffix", "is not supported yet"),
    ({"prefix_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 33}]}, "prefix_ranges[0].prefix_len",
     "33 is too long"),
    ({"prefix_ranges": [{"address_prefix": "x"}]}, "prefix_ranges[0].address_prefix", "malformed IP address: x"),
    ({"source_ports": [0]}, "source_ports", "item 0: value must be greater than or equal to 1"),
    ({"transport_protocol": "quic"}, "transport_protocol", "quic is not supported yet"),
])
def test_bad_matches(match: Json, path: str, message: str) -> None:
    case = Case()
    case.chain["filter_chain_match"] = match
    assert message in case.errors()[f"{CHAIN}.filter_chain_match.{path}"]


def test_chains_with_the_same_match() -> None:
    case = Case()
    first = {"name": "a", "filters": [tcp_proxy()],
             "filter_chain_match": {"destination_port": 80, "source_ports": [1, 2]}}
    second = {"name": "b", "filters": [tcp_proxy()],
              "filter_chain_match": {"destination_port": 80, "source_ports": [2, 3]}}
    case.listener["filter_chains"] = [first, second]
    assert case.errors() == {f"{LISTENER}.filter_chains": (
        "error adding listener '127.0.0.1:10000': filter chain 'b' has the same matching rules defined as 'a'")}
    second["filter_chain_match"] = {"destination_port": 80, "source_ports": [3]}
    case.load()


def test_a_terminal_filter_must_be_last() -> None:
    case = Case()
    case.chain["filters"] = [tcp_proxy(), tcp_proxy()]
    assert "must be the last filter in a network filter chain" in case.errors()[f"{CHAIN}.filters[0]"]


def limit(**fields: Any) -> Json:
    return {"name": "limit", "typed_config": {
        "@type": f"{EXTENSIONS}.filters.network.connection_limit.v3.ConnectionLimit", "stat_prefix": "x",
        "max_connections": 3, **fields}}


def test_connection_limits_in_front() -> None:
    case = Case()
    case.chain["filters"] = [
        limit(), limit(delay="1.5s", runtime_enabled={"default_value": False, "runtime_key": "k"}), tcp_proxy()]
    loaded = case.load()
    chain = loaded.bootstrap.listeners[0].filter_chains[0]
    assert chain.connection_limits == (
        model.ConnectionLimit(f"{CHAIN}.filters[0].typed_config", "x", 3),
        model.ConnectionLimit(f"{CHAIN}.filters[1].typed_config", "x", 3, 1.5, "k", False))
    assert isinstance(chain.network_filter, TcpProxy)
    case.document["layered_runtime"] = {"layers": [{"name": "a", "static_layer": {"k": True, "other": 1}}]}
    assert [warning for warning in case.load().warnings if "runtime key is not known" in warning] == [
        "layered_runtime.layers[0].static_layer[other]: this runtime key is not known and has no effect"]


@pytest.mark.parametrize(("filters", "place", "message"), [
    ([limit()], f"{CHAIN}.filters[0]",
     "Error: non-terminal filter named limit of type envoy.filters.network.connection_limit is the last filter"),
    ([tcp_proxy(), limit()], f"{CHAIN}.filters[0]", "must be the last filter in a network filter chain"),
    ([limit(max_connections=0), tcp_proxy()], f"{CHAIN}.filters[0].typed_config.max_connections",
     "value must be greater than or equal to 1"),
    ([limit(max_connections=None), tcp_proxy()], f"{CHAIN}.filters[0].typed_config.max_connections",
     "value is required"),
    ([limit(delay="-1s"), tcp_proxy()], f"{CHAIN}.filters[0].typed_config.delay", "Expected positive duration"),
    ([limit(stat_prefix=""), tcp_proxy()], f"{CHAIN}.filters[0].typed_config.stat_prefix", "at least 1"),
])
def test_bad_connection_limits(filters: list[Json], place: str, message: str) -> None:
    case = Case()
    case.chain["filters"] = filters
    assert message in case.errors()[place]


def test_other_network_filters_are_refused() -> None:
    case = Case()
    case.chain["filters"].insert(0, {"name": "rbac", "typed_config": {
        "@type": f"{EXTENSIONS}.filters.network.rbac.v3.RBAC", "stat_prefix": "x"}})
    (message,) = case.errors().values()
    assert message.startswith("envoy.extensions.filters.network.rbac.v3.RBAC is not supported yet; supported network")


def test_tls_is_refused_and_raw_buffer_is_not() -> None:
    case = Case()
    case.chain["transport_socket"] = {"name": "x", "typed_config": {
        "@type": f"{EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext"}}
    assert "DownstreamTlsContext is not supported yet" in case.errors()[f"{CHAIN}.transport_socket.typed_config"]
    case.chain["transport_socket"] = {"name": "envoy.transport_sockets.raw_buffer"}
    case.chain["transport_socket_connect_timeout"] = "15s"
    case.load()


# --- tcp_proxy --------------------------------------------------------------------------------------------------------


def proxy(**fields: Any) -> TcpProxy:
    case = Case()
    case.chain["filters"] = [tcp_proxy(**fields)]
    compiled = case.load().bootstrap.listeners[0].filter_chains[0].network_filter
    assert isinstance(compiled, TcpProxy)
    return compiled


def test_tcp_proxy() -> None:
    assert proxy() == TcpProxy("tcp", "c1")
    assert proxy(cluster="unknown").cluster == "unknown"
    assert proxy(cluster=None, weighted_clusters={"clusters": [{"name": "a", "weight": 1}, {"name": "b", "weight": 2}]},
                 idle_timeout="0s", max_connect_attempts=3, max_downstream_connection_duration="5s",
                 hash_policy=[{"source_ip": {}}]) == TcpProxy(
        "tcp", weighted_clusters=(("a", 1), ("b", 2)), idle_timeout=0.0, max_connect_attempts=3,
        max_downstream_connection_duration=5.0)


@pytest.mark.parametrize(("fields", "path", "message"), [
    ({"stat_prefix": ""}, "stat_prefix", "at least 1 characters"), ({"cluster": None}, "", "'cluster_specifier'"),
    ({"tunneling_config": {"hostname": "x"}}, "tunneling_config", "is not supported yet"),
    ({"access_log_options": {"flush_access_log_on_connected": True}}, "access_log_options", "is not supported yet"),
    ({"upstream_connect_mode": "ON_DOWNSTREAM_DATA"}, "upstream_connect_mode",
     "is not supported yet; supported: IMMEDIATE"),
    ({"cluster": None, "weighted_clusters": {"clusters": [{"name": "a"}]}}, "weighted_clusters.clusters[0].weight",
     "greater than or equal to 1"),
])
def test_tcp_proxy_refusals(fields: Json, path: str, message: str) -> None:
    case = Case()
    case.chain["filters"] = [tcp_proxy(**fields)]
    at = f"{CHAIN}.filters[0].typed_config"
    assert message in case.errors()[f"{at}.{path}" if path else at]


# --- access logs ------------------------------------------------------------------------------------------------------


def log(config: Json, **fields: Any) -> AccessLog:
    return listener(access_log=[{"name": "x", "typed_config": config, **fields}]).access_logs[0]


@pytest.mark.parametrize(("config", "path", "text"), [
    ({"@type": FILE, "path": "/x"}, "/x", DEFAULT_FORMAT),
    ({"@type": FILE, "path": "/x", "format": "%START_TIME%\n"}, "/x", "%START_TIME%\n"),
    ({"@type": FILE, "path": "/x", "log_format": {"text_format": "a\n"}}, "/x", "a\n"),
    ({"@type": FILE, "path": "/x", "log_format": {"text_format_source": {"inline_string": "b\n"}}}, "/x", "b\n"),
    ({"@type": FILE, "path": "/x", "log_format": {"text_format_source": {"inline_bytes": "Ywo="}}}, "/x", "c\n"),
    ({"@type": f"{EXTENSIONS}.access_loggers.stream.v3.StdoutAccessLog"}, "/dev/stdout", DEFAULT_FORMAT),
    ({"@type": f"{EXTENSIONS}.access_loggers.stream.v3.StderrAccessLog", "log_format": {"text_format": "d"}},
     "/dev/stderr", "d"),
])
def test_access_logs(config: Json, path: str, text: str) -> None:
    assert log(config) == AccessLog(path, text)


def test_access_log_filter() -> None:
    plain = {"@type": FILE, "path": "/x"}
    assert log(plain, filter={"response_flag_filter": {"flags": ["NR", "UF"]}}).flags == frozenset(("NR", "UF"))
    assert log(plain, filter={"response_flag_filter": {}}).flags == frozenset()


@pytest.mark.parametrize(("config", "extra", "path", "message"), [
    ({"@type": FILE}, {}, "typed_config.path", "at least 1 characters"),
    ({"@type": FILE, "path": "/x", "json_format": {}}, {}, "typed_config.json_format",
     "JSON formats are not supported yet"),
    ({"@type": FILE, "path": "/x", "log_format": {"json_format": {}}}, {}, "typed_config.log_format.json_format",
     "JSON formats are not supported yet"),
    ({"@type": FILE, "path": "/x", "log_format": {"text_format": "%NOTHING%"}}, {},
     "typed_config.log_format.text_format", "NOTHING"),
    ({"@type": FILE, "path": "/x", "log_format": {"text_format": "a", "omit_empty_values": True}}, {},
     "typed_config.log_format.omit_empty_values", "is not supported yet"),
    ({"@type": FILE, "path": "/x", "log_format": {"text_format_source": {"filename": "/nowhere"}}}, {},
     "typed_config.log_format.text_format_source.filename", "unable to read file '/nowhere'"),
    ({"@type": FILE, "path": "/x", "log_format": {"text_format_source": {"environment_variable": "NO_SUCH_ONE"}}}, {},
     "typed_config.log_format.text_format_source.environment_variable",
     "Environment variable doesn't exist: NO_SUCH_ONE"),
    ({"@type": FILE, "path": "/x"}, {"filter": {"duration_filter": {}}}, "filter.duration_filter",
     "is not supported yet; supported: response_flag_filter"),
    ({"@type": FILE, "path": "/x"}, {"filter": {"response_flag_filter": {"flags": ["XX"]}}},
     "filter.response_flag_filter.flags", "item 0: 'XX' is not one of "),
    ({"@type": f"{EXTENSIONS}.access_loggers.grpc.v3.HttpGrpcAccessLogConfig"}, {}, "typed_config",
     "HttpGrpcAccessLogConfig is not supported yet (gRPC comes later); supported access loggers: "),
])
def test_access_log_refusals(config: Json, extra: Json, path: str, message: str) -> None:
    found = errors(access_log=[{"name": "x", "typed_config": config, **extra}])
    assert message in found[f"{LISTENER}.access_log[0].{path}"]
