"""Documents that do not fit the messages: every error at once, with the path of the field."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from config_cases import (
    CHAIN,
    CLUSTER,
    EVERYTHING,
    EXTENSIONS,
    HTTP_OPTIONS,
    LISTENER,
    MANAGER,
    ROUTE,
    Case,
    Json,
    Options,
    errors,
    load,
)
from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config.document import parse_yaml
from proxy.config.errors import ConfigErrors
from proxy.config.load import load_bootstrap


def test_all_errors_are_reported_together() -> None:
    case = Case()
    case.manager["foo"] = 1
    case.manager["streamIdleTimeout"] = "5 mins"
    case.manager["codec_type"] = "HTTP9"
    case.manager["normalize_path"] = "yes"
    case.listener["address"]["socket_address"]["port_value"] = 70000
    case.listener["tcp_backlog_size"] = -1
    case.cluster["lbpolicy"] = "RANDOM"
    case.cluster["name"] = 7
    case.cluster["health_checks"] = {}
    case.cluster["circuit_breakers"] = {"thresholds": [{"max_connections": 1.5}, None]}
    case.cluster["lb_policy"] = "RING_HASH"  # fits the message, but is not supported
    case.route["weighted_clusters"] = {"clusters": []}
    found = case.errors()
    assert found.pop(f"{CLUSTER}.lb_policy").startswith("RING_HASH is not supported yet; supported: ")
    assert found == {
        f"{MANAGER}.foo": "no such field in envoy.extensions.filters.network.http_connection_manager.v3."
                          "HttpConnectionManager",
        f"{MANAGER}.stream_idle_timeout": "'5 mins' is not a duration such as '5s' or '0.25s'",
        f"{MANAGER}.codec_type": "'HTTP9' is not one of AUTO, HTTP1, HTTP2, HTTP3",
        f"{MANAGER}.normalize_path": "'yes' is not true or false",
        f"{LISTENER}.address.socket_address.port_value": "value must be less than or equal to 65535",
        f"{LISTENER}.tcp_backlog_size": "-1 is out of range: 0 to 4294967295",
        f"{CLUSTER}.lbpolicy": "no such field in envoy.config.cluster.v3.Cluster; did you mean lb_policy?",
        f"{CLUSTER}.name": "7 is not a string",
        f"{CLUSTER}.health_checks": "{} is not a list",
        f"{CLUSTER}.circuit_breakers.thresholds[0].max_connections": "1.5 is not an integer",
        f"{CLUSTER}.circuit_breakers.thresholds[1]": "null is not allowed in a list",
        f"{ROUTE}.weighted_clusters": "cannot be set together with cluster: only one of cluster, cluster_header, "
                                      "weighted_clusters, cluster_specifier_plugin, inline_cluster_specifier_plugin "
                                      "may be set",
    }


def test_snake_case_and_camel_case_are_the_same() -> None:
    snake, camel = Case(), Case()
    snake.manager["stream_idle_timeout"] = "7s"
    camel.manager["streamIdleTimeout"] = "7s"
    assert snake.load().message == camel.load().message
    both = Case()
    both.manager |= {"stream_idle_timeout": "7s", "streamIdleTimeout": "7s"}
    assert both.errors() == {f"{MANAGER}.stream_idle_timeout": "is given twice, as snake_case and as camelCase"}


@pytest.mark.parametrize("null", ["stream_idle_timeout", "tracing", "upgrade_configs", "server_name"])
def test_null_is_not_set(null: str) -> None:
    case = Case()
    case.manager[null] = None
    assert case.load().bootstrap == Case().load().bootstrap


@pytest.mark.parametrize(("type_url", "message"), [
    ("type.googleapis.com/foo.Bar", "could not find @type 'type.googleapis.com/foo.Bar'; supported network filters: "),
    ("type.googleapis.com/envoy.extensions.filters.network.nothing.v3.Nothing", "could not find @type "),
    (None, "@type is missing; supported network filters: "),
])
def test_an_unknown_type_names_what_is_known(type_url: str | None, message: str) -> None:
    case = Case()
    case.chain["filters"][0]["typed_config"] = {"@type": type_url, "stat_prefix": "x"}
    found = case.errors()
    assert list(found) == [f"{CHAIN}.filters[0].typed_config"]
    assert found[f"{CHAIN}.filters[0].typed_config"].startswith(message)


def test_a_known_type_without_compiler_names_what_is_supported() -> None:
    case = Case()
    case.manager["http_filters"].insert(0, {"name": "fault", "typed_config": {
        "@type": f"{EXTENSIONS}.filters.http.fault.v3.HTTPFault"}})
    assert case.errors() == {f"{MANAGER}.http_filters[0].typed_config": (
        "envoy.extensions.filters.http.fault.v3.HTTPFault is not supported yet; supported HTTP filters: "
        "envoy.extensions.filters.http.router.v3.Router")}


def typed_struct(package: str, value: Json) -> Json:
    return {"@type": f"type.googleapis.com/{package}.TypedStruct", "value": value,
            "type_url": f"{EXTENSIONS}.filters.http.router.v3.Router"}


@pytest.mark.parametrize("package", ["udpa.type.v1", "xds.type.v3"])
def test_a_typed_struct_is_what_it_names(package: str) -> None:
    case = Case()
    case.manager["http_filters"][0]["typed_config"] = typed_struct(package, {"suppress_envoy_headers": True})
    listener = case.load().bootstrap.listeners[0]
    assert listener.filter_chains[0].network_filter.suppress_envoy_headers is True


def test_errors_in_a_typed_struct_have_paths() -> None:
    case = Case()
    at = f"{MANAGER}.http_filters[0].typed_config.value"
    case.manager["http_filters"][0]["typed_config"] = typed_struct("udpa.type.v1", {"dynamic_stats": False})
    assert case.errors() == {f"{at}.dynamic_stats": "is not supported yet"}
    case.manager["http_filters"][0]["typed_config"] = typed_struct("udpa.type.v1", {"dynamic_stats": 1, "foo": 2})
    assert case.errors().keys() == {f"{at}.dynamic_stats", f"{at}.foo"}


def test_unknown_names_may_pass_with_a_warning_but_nothing_else() -> None:
    case = Case()
    case.manager["foo"] = {"bar": 1}
    case.cluster["baz"] = 1
    loaded = load(case.document, allow_unknown=True)
    assert loaded.warnings == [
        f"{MANAGER}.foo: unknown field of envoy.extensions.filters.network.http_connection_manager.v3."
        "HttpConnectionManager, ignored",
        f"{CLUSTER}.baz: unknown field of envoy.config.cluster.v3.Cluster, ignored",
    ]
    assert loaded.bootstrap == Case().load().bootstrap
    case.cluster["outlier_detection"] = {}
    case.cluster["type"] = "NOTHING"
    assert errors(case.document, allow_unknown=True).keys() == {f"{CLUSTER}.outlier_detection", f"{CLUSTER}.type"}


@pytest.mark.parametrize(("field", "value"), [
    ("connect_timeout", "1"), ("connect_timeout", 1), ("connect_timeout", "1.0000000001s"), ("connect_timeout", "s"),
    ("connect_timeout", "999999999999s"), ("connect_timeout", {}),
    ("type", 99), ("type", "static"), ("type", True), ("type", None), ("name", ["x"]), ("name", "\ud800"),
    ("respect_dns_ttl", 1), ("metadata", []), ("typed_extension_protocol_options", [1]),
    ("per_connection_buffer_limit_bytes", "many"), ("per_connection_buffer_limit_bytes", True),
    ("per_connection_buffer_limit_bytes", -5), ("per_connection_buffer_limit_bytes", 2**32),
    ("common_lb_config", {"healthy_panic_threshold": {"value": "half"}}),
    ("load_assignment", "x"), ("metadata", {"filter_metadata": {"a": 1}}),
])
def test_wrong_values_are_refused_where_they_are(field: str, value: Any) -> None:
    case = Case()
    case.cluster[field] = value
    if value is None:
        case.load()
        return
    for path in case.errors():
        assert path.startswith(f"{CLUSTER}.{field}"), path


@pytest.mark.parametrize("value", [1000, "1000", 1000.0])
def test_integers_may_be_strings_or_whole_floats(value: object) -> None:
    case = Case()
    case.cluster["per_connection_buffer_limit_bytes"] = value
    assert case.load().bootstrap.clusters[0].per_connection_buffer_limit_bytes == 1000


def test_a_reference_to_something_left_out_is_no_error_of_its_own() -> None:
    case = Case()
    case.cluster["name"] = 7
    assert case.errors() == {f"{CLUSTER}.name": "7 is not a string"}


def test_nesting_is_bounded() -> None:
    case = Case()
    inner: Json = {"any_match": True}
    for _ in range(200):
        inner = {"not_match": inner}
    case.listener["listener_filters"] = [{"name": "x", "filter_disabled": inner, "typed_config": {
        "@type": f"{EXTENSIONS}.filters.listener.http_inspector.v3.HttpInspector"}}]
    (_, message), = case.errors().items()
    assert "deep" in message or "Max" in message


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_are_read_by_their_extension(tmp_path: Path) -> None:
    case = Case()
    message: Any = case.load().message
    files = {
        "a.json": json.dumps(case.document).encode(), "b.yaml": EVERYTHING.read_bytes(), "c.yml": b"{}",
        "d.pb": message.SerializeToString(), "e.pb_text": text_format.MessageToString(message).encode(),
        "f": json.dumps(case.document).encode(),
    }
    expected = case.load().bootstrap
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        loaded = load_bootstrap(Options(config_path=str(path)))
        if name in ("a.json", "d.pb", "e.pb_text", "f"):
            assert loaded.bootstrap == expected, name


@pytest.mark.parametrize(("name", "data", "problem"), [
    ("a.json", b"\xff", "is not UTF-8"), ("a.json", b"[]", "must be a mapping of field names, not list"),
    ("a.yaml", b"- a", "must be a mapping of field names, not list"), ("a.json", b"a: 1", "JSON: Expecting value"),
    ("a.json", b'{"node": {"id": "\\ud800"}}', r"node.id: .* is not valid Unicode"),
    ("a.pb", b"\x0a\xff", "Unable to parse file"), ("a.pb_text", b"foo: 1", "no field named"),
])
def test_files_that_cannot_be_read_say_why(tmp_path: Path, name: str, data: bytes, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ConfigErrors, match=problem):
        load_bootstrap(Options(config_path=str(path)))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigErrors, match="unable to read file: /nowhere/x.yaml: No such file"):
        load_bootstrap(Options(config_path="/nowhere/x.yaml"))


def test_one_source_is_needed() -> None:
    with pytest.raises(ConfigErrors, match="At least one of --config-path or --config-yaml"):
        load_bootstrap(Options())


@pytest.mark.parametrize(("text", "problem"), [
    ("a: [", "--config-yaml: YAML: "), ("- a", "--config-yaml: the text: the document must be a mapping"),
])
def test_a_bad_config_yaml_is_named(text: str, problem: str) -> None:
    with pytest.raises(ConfigErrors) as raised:
        load_bootstrap(Options(config_yaml=text))
    assert str(raised.value).startswith(problem)


def test_unknown_field_numbers_of_a_binary_file(tmp_path: Path) -> None:
    message = Bootstrap()
    message.static_resources.clusters.add(name="c")
    data = message.SerializeToString()
    # Field 2000 with value 1 after the cluster's name.
    cluster = message.static_resources.clusters[0].SerializeToString() + b"\x80\x7d\x01"
    data = b"\x12" + bytes([len(cluster) + 2]) + b"\x12" + bytes([len(cluster)]) + cluster
    path = tmp_path / "a.pb"
    path.write_bytes(data)
    with pytest.raises(ConfigErrors, match=r"static_resources.clusters\[0\]: unknown field number 2000"):
        load_bootstrap(Options(config_path=str(path)))
    loaded = load_bootstrap(Options(config_path=str(path), allow_unknown_static_fields=True))
    assert loaded.warnings == ["static_resources.clusters[0]: unknown field number 2000, ignored"]


def test_config_yaml_is_merged_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(Case().document))
    extra = "node: {id: other}\nstatic_resources: {clusters: [{name: c2}]}\n"
    loaded = load_bootstrap(Options(config_path=str(path), config_yaml=extra))
    assert loaded.bootstrap.node.id == "other"
    assert [cluster.name for cluster in loaded.bootstrap.clusters] == ["c1", "c2"]


# --- anything ---------------------------------------------------------------------------------------------------------

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(
        ["5s", "-1s", "STATIC", "10.0.0.1", "(", "%", "[::]", "type.googleapis.com/google.protobuf.Duration"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["@type", "name", "value", "prefix", "route", "cluster", "x"]), inner, max_size=3),
    max_leaves=5)


def nodes(value: Any, steps: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [steps] if steps else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += nodes(inner, (*steps, key))
    return found


DOCUMENT = parse_yaml(EVERYTHING.read_text(encoding="utf-8"))
NODES = nodes(DOCUMENT)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_junk_anywhere_gives_errors_and_nothing_else(data: st.DataObject) -> None:
    document = copy.deepcopy(DOCUMENT)
    for steps in data.draw(st.lists(st.sampled_from(NODES), min_size=1, max_size=3)):
        at: Any = document
        try:
            for step in steps[:-1]:
                at = at[step]
            at[steps[-1]] = data.draw(JUNK)
        except (KeyError, IndexError, TypeError):
            continue
    try:
        load(document)
    except ConfigErrors as raised:
        assert all(error.message for error in raised.errors)


def test_the_typed_options_of_a_cluster_have_paths() -> None:
    case = Case()
    case.cluster["typed_extension_protocol_options"] = {HTTP_OPTIONS: {
        "@type": f"type.googleapis.com/{HTTP_OPTIONS}", "explicit_http_config": {"http2_protocol_options": {}}}}
    assert case.errors() == {
        f"{CLUSTER}.typed_extension_protocol_options[{HTTP_OPTIONS}].explicit_http_config.http2_protocol_options":
            "is not supported yet: HTTP/2 comes later"}
