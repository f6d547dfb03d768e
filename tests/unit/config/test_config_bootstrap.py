"""Bootstrap, admin, runtime, statistics."""

from __future__ import annotations

from typing import Any

import pytest
from config_cases import EVERYTHING, MANAGER, SHARED, Case, Json, Options, errors, load
from fingerprints import fingerprint

from proxy.config import model
from proxy.config.access_log import DEFAULT_FORMAT
from proxy.config.load import load_bootstrap
from proxy.config.model import AccessLog, Admin, Bootstrap, Node, SocketAddress, StatsConfig, StatsTag


def test_an_empty_configuration_has_envoys_defaults() -> None:
    assert load({}).bootstrap == Bootstrap(Node(), Admin(), (), ())


def test_no_message_is_left_in_what_workers_get() -> None:
    fingerprint(load_bootstrap(Options(config_path=str(EVERYTHING))).bootstrap)


def test_node_and_admin() -> None:
    compiled = load({
        "node": {"id": "a", "cluster": "b", "metadata": {"x": 1}, "locality": {"region": "r"}},
        "admin": {"address": {"socket_address": {"address": "::1", "port_value": 15000}},
                  "access_log_path": "/dev/null",
                  "profile_path": "/x", "ignore_global_conn_limit": True},
    }).bootstrap
    assert compiled.node == Node("a", "b")
    assert compiled.admin == Admin(SocketAddress("::1", 15000), (AccessLog("/dev/null", DEFAULT_FORMAT),))


@pytest.mark.parametrize(("document", "path", "message"), [
    ({"dynamic_resources": {"cds_config": {"ads": {}}}}, "dynamic_resources.cds_config", "dynamic resources (xDS)"),
    ({"dynamic_resources": {"ads_config": {"api_type": "GRPC"}}}, "dynamic_resources.ads_config", "xDS"),
    ({"static_resources": {"secrets": [{"name": "x"}]}}, "static_resources.secrets", "TLS comes later"),
    ({"stats_sinks": [{"name": "x"}]}, "stats_sinks", "is not supported yet"),
    ({"cluster_manager": {"local_cluster_name": "x"}}, "cluster_manager.local_cluster_name", "is not supported yet"),
    ({"stats_flush_interval": "400s"}, "stats_flush_interval", "value must be less than 300s"),
    ({"node": {"locality": {"zone": "z"}}}, "node.locality", "statistics by zone"),
    ({"stats_flush_on_admin": True}, "stats_flush_on_admin", "is not supported yet"),
    ({"admin": {"address": {"pipe": {"path": "/x"}}}}, "admin.address.pipe", "Unix domain sockets"),
    ({"admin": {"address": {"socket_address": {"address": "localhost", "port_value": 1}}}},
     "admin.address.socket_address.address", "malformed IP address: localhost"),
    ({"admin": {"address": {"socket_address": {"address": "127.0.0.1"}}}}, "admin.address.socket_address",
     "field: 'port_specifier', reason: is required"),
])
def test_refusals(document: Json, path: str, message: str) -> None:
    found = errors(document)
    assert message in found[path]


# --- runtime ----------------------------------------------------------------------------------------------------------


def runtime(*layers: Json) -> Json:
    return {"layered_runtime": {"layers": [{"name": f"l{n}", "static_layer": layer} for n, layer in enumerate(layers)]}}


def test_later_layers_win_and_structs_are_dotted() -> None:
    compiled = load(runtime({"a": {"b": 1, "c": "x"}, "d": True}, {"a.b": 2, "e": {"numerator": 5}})).bootstrap
    assert dict(compiled.runtime) == {"a.b": 2, "a.c": "x", "d": True, "e": {"numerator": 5}}


def test_unknown_keys_are_warned_about_with_their_path() -> None:
    assert load(runtime({"some.key": 1})).warnings == [
        "layered_runtime.layers[0].static_layer[some.key]: this runtime key is not known and has no effect"]


def test_a_limit_of_no_listener_is_warned_about() -> None:
    case = Case()
    case.listener["name"] = "main"
    case.document |= runtime({"envoy.resource_limits.listener.main.connection_limit": 1,
                              "envoy.resource_limits.listener.mian.connection_limit": 1})
    assert [warning for warning in case.load().warnings if "static_layer" in warning] == [
        "layered_runtime.layers[0].static_layer[envoy.resource_limits.listener.mian.connection_limit]: "
        "there is no listener 'mian'; this runtime key has no effect"]


@pytest.mark.parametrize("layer", [
    {"envoy.reloadable_features.coalesce_lb_rebuilds_on_batch_update": False},
    {"envoy.deprecated_features:envoy.config.listener.v3.Listener.hidden_envoy_deprecated_use_original_dst": True},
    {"envoy.reloadable_features.fixed_heap_use_allocated": True}, {"re2.max_program_size.error_level": "32768"},
    {"overload.global_downstream_max_connections": 2147483647}, {"overload.global_downstream_max_connections": "5e9"},
    {"envoy.reloadable_features.strict_chunk_parsing": False},
    {"envoy.reloadable_features.strict_chunk_parsing": "false"},
])
def test_keys_without_effect_pass_silently(layer: Json) -> None:
    assert load(runtime(layer)).warnings == []


@pytest.mark.parametrize(("layer", "message"), [
    ({"overload.something_else": 1000}, "this setting from the runtime is not supported yet"),
    ({"envoy.reloadable_features.strict_chunk_parsing": True},
     "this feature flag is not supported yet; supported: false"),
    ({"overload.global_downstream_max_connections": "many"}, "'many': a number of connections is expected"),
    ({"envoy.resource_limits.listener.a.connection_limit": True}, "'true': a number of connections is expected"),
    ({"upstream.use_retry": 0}, "upstream settings from the runtime are not supported yet"),
    ({"circuit_breakers.c1.default.max_connections": 5}, "circuit breakers from the runtime are not supported yet"),
    ({"list": [1]}, "Invalid runtime entry value for list"),
    ({"nothing": None}, "Invalid runtime entry value for nothing"),
])
def test_keys_with_visible_effect_are_refused(layer: Json, message: str) -> None:
    (key,) = layer
    assert message in errors(runtime(layer))[f"layered_runtime.layers[0].static_layer[{key}]"]


def test_layers() -> None:
    twice = {"layered_runtime": {"layers": [{"name": "a", "static_layer": {}}, {"name": "a", "admin_layer": {}}]}}
    assert errors(twice) == {"layered_runtime.layers": "Duplicate layer name: a"}
    admins = {"layered_runtime": {"layers": [{"name": "a", "admin_layer": {}}, {"name": "b", "admin_layer": {}}]}}
    assert errors(admins) == {
        "layered_runtime.layers": "Too many admin layers specified in LayeredRuntime, at most one may be specified"}
    disk = {"layered_runtime": {"layers": [{"name": "a", "disk_layer": {"symlink_root": "/x"}}]}}
    assert "supported: static_layer, admin_layer" in errors(disk)["layered_runtime.layers[0].disk_layer"]
    assert "is required" in errors({"layered_runtime": {"layers": [{"name": "a"}]}})["layered_runtime.layers[0]"]


def manager_with(layer: Json, **fields: Any) -> model.HttpConnectionManager:
    case = Case()
    case.document |= runtime(layer)
    case.manager |= fields
    compiled = case.load().bootstrap.listeners[0].filter_chains[0].network_filter
    assert isinstance(compiled, model.HttpConnectionManager)
    return compiled


def test_keys_that_are_honoured() -> None:
    assert manager_with({}).reject_path_with_fragment is True
    assert manager_with({"envoy.reloadable_features.http_reject_path_with_fragment": False}
                        ).reject_path_with_fragment is False
    assert manager_with({"envoy.reloadable_features.max_request_headers_count": 7}).max_headers_count == 7
    assert manager_with({"envoy.reloadable_features.max_request_headers_size_kb": 9}).max_request_headers_kb == 9
    assert manager_with({"envoy.reloadable_features.max_request_headers_size_kb": 9}, max_request_headers_kb=8
                        ).max_request_headers_kb == 8
    assert manager_with({"tracing.random_sampling": 5}, tracing={}).tracing == model.Tracing(random_sampling=5.0)


def test_the_size_of_regex_programs_comes_from_the_runtime() -> None:
    case = Case()
    case.entry["match"] = {"safe_regex": {"regex": "(abc[a-z0-9]{3,50}[a-z]{1,40}){1,3}"}}
    at = f"{MANAGER}.route_config.virtual_hosts[0].routes[0].match.safe_regex.regex"
    assert "RE2 program size of 699 > max program size of 100" in case.errors()[at]
    case.document |= runtime({"re2.max_program_size.error_level": "32768"})
    case.load()


# --- statistics -------------------------------------------------------------------------------------------------------


def stats(**fields: Any) -> StatsConfig:
    return load({"stats_config": fields}).bootstrap.stats


def test_tags() -> None:
    compiled = stats(stats_tags=[{"tag_name": "a", "regex": "^x\\.((.+?)\\.)"}, {"tag_name": "b", "fixed_value": "v"},
                                 {"tag_name": "envoy.cluster_name"}], use_all_default_tags=False)
    assert compiled == StatsConfig((StatsTag("a", "^x\\.((.+?)\\.)"), StatsTag("b", "", "v"),
                                    StatsTag("envoy.cluster_name")), False)


@pytest.mark.parametrize("tag", [{"tag_name": "x", "regex": "(a"}, {"tag_name": "x"}])
def test_bad_tags(tag: Json) -> None:
    assert list(errors({"stats_config": {"stats_tags": [tag]}})) == ["stats_config.stats_tags[0].regex"]


@pytest.mark.parametrize(("matcher", "included", "excluded"), [
    ({"inclusion_list": {"patterns": [{"prefix": "cluster."}, {"suffix": "_total"}]}},
     ("cluster.x", "a_total"), ("listener.x",)),
    ({"exclusion_list": {"patterns": [{"safe_regex": {"regex": "vhost\\..*"}}]}}, ("cluster.x",), ("vhost.x",)),
    ({"reject_all": True}, (), ("cluster.x",)),
])
def test_which_statistics_exist(matcher: Json, included: tuple[str, ...], excluded: tuple[str, ...]) -> None:
    predicate = stats(stats_matcher=matcher).included
    assert predicate is not None
    assert all(map(predicate, included)) and not any(map(predicate, excluded))


def test_a_matcher_that_rejects_nothing_is_none() -> None:
    assert stats(stats_matcher={"reject_all": False}).included is None
    assert "is required" in errors({"stats_config": {"stats_matcher": {}}})["stats_config.stats_matcher"]


# --- recorded configurations ------------------------------------------------------------------------------------------


def test_recorded_bootstraps_are_understood_outside_of_their_resources() -> None:
    files = sorted((SHARED / "istio/config").glob("*/static.json"))
    if not files:
        pytest.skip(f"no recorded data in {SHARED}")
    for static in files:
        found = errors_of(str(static))
        assert found and all(path.startswith("static_resources.") for path in found), static


def errors_of(path: str) -> set[str]:
    from proxy.config.errors import ConfigErrors

    try:
        load_bootstrap(Options(config_path=path))
    except ConfigErrors as raised:
        return {error.path for error in raised.errors}
    return set()
