"""The bootstrap against the recorded ones of the real program, and every setting that the recordings do not show."""

import copy
import json
from typing import Any

import pytest
from agent_loading import bootstrap, load, recorded_cases

from agent import addresses, child_command
from agent.bootstrap import document, node
from agent.bootstrap.facts import Sockets, family_of
from agent.errors import ConfigError

# The recorder named a folder and the template of the real image; both are part of ProxyConfig, and so of the node.
RECORDER = {"configPath": "CONFIG_PATH", "proxyBootstrapTemplatePath": "/var/lib/istio/envoy/envoy_bootstrap_tmpl.json"}
POD = {"POD_NAME": "reviews-1", "POD_NAMESPACE": "books", "INSTANCE_IP": "10.0.0.1"}


def without_trap_8(recorded: dict[str, Any]) -> dict[str, Any]:
    """The real program reads EXIT_ON_ZERO_ACTIVE_CONNECTIONS from the environment only and then counts connections by
    statistics that proxyMetadata alone did not switch on. Here proxyMetadata is enough, so the statistics are there.
    """
    expected = copy.deepcopy(recorded)
    expected["node"]["metadata"]["EXIT_ON_ZERO_ACTIVE_CONNECTIONS"] = "true"
    patterns = expected["stats_config"]["stats_matcher"]["inclusion_list"]["patterns"]
    patterns.insert(patterns.index({"suffix": "shadow_denied"}) + 1, {"suffix": "downstream_cx_active"})
    return expected


# The one case that differs, with its reason. Nothing else does, not even a volatile field.
DIFFERENT = {"proxy-metadata": without_trap_8}


def settings_of(case: dict[str, Any]) -> Any:
    return load(
        {**RECORDER, **case["proxy_config"]}, *case["args"][1:], interfaces=case["interface_addresses"], **case["env"]
    )


@pytest.mark.parametrize("case", recorded_cases(), ids=lambda case: case and case["name"])
def test_bootstrap_equals_that_of_the_real_program(case: dict[str, Any]) -> None:
    made = document.bootstrap(document.facts_of(settings_of(case), Sockets()))
    expected = DIFFERENT.get(case["name"], lambda recorded: recorded)(case["bootstrap"])
    assert json.loads(json.dumps(made)) == expected


@pytest.mark.parametrize("case", recorded_cases(), ids=lambda case: case and case["name"])
def test_arguments_equal_those_of_the_real_program(case: dict[str, Any]) -> None:
    settings = settings_of(case)
    words = child_command.arguments(settings, f"{settings.config.config_path}/envoy-rev.json")
    assert list(words) == case["proxy_args"]


# --- node ---------------------------------------------------------------------------------------------------------


def metadata(*given: Any, **variables: Any) -> dict[str, Any]:
    made = bootstrap(*given, **{**POD, **variables})[0]["node"]["metadata"]
    assert isinstance(made, dict)
    return made


def test_metadata_sources_later_wins() -> None:
    made = metadata(
        {"proxyMetadata": {"ISTIO_META_A": "metadata", "ISTIO_META_B": "metadata", "OTHER": "x"}},
        ISTIO_META_B="environment",
        ISTIO_META_C="environment",
        ISTIO_METAJSON_ANY='{"C": "json", "D": {"e": [1]}}',
        DNS_PROXY_ADDR="localhost:53",
    )
    assert {name: made.get(name) for name in ("A", "B", "C", "D", "OTHER", "DNS_PROXY_ADDR")} == {
        "A": "metadata", "B": "environment", "C": "json", "D": {"e": [1]}, "OTHER": None,
        "DNS_PROXY_ADDR": "localhost:53",
    }  # fmt: skip


def test_metadata_that_is_not_json_only_warns() -> None:
    made, warnings = bootstrap(
        {}, **POD, ISTIO_METAJSON_X="{", ISTIO_METAJSON_Y="[1]", ISTIO_METAJSON_LABELS='{"a":"b"}'
    )
    assert made["node"]["metadata"]["LABELS"] == {"a": "b"}
    assert len(warnings) == 2
    assert "ISTIO_METAJSON_X is ignored: not JSON" in warnings[0]
    assert "ISTIO_METAJSON_Y is ignored: expected a JSON object" in warnings[1]


def test_labels_of_the_pod_go_over_static_ones() -> None:
    made = metadata(
        labels={"app": "pod", "pod-template-hash": "5f"}, ISTIO_METAJSON_LABELS='{"app":"static","only":"static"}'
    )
    assert made["LABELS"] == {"app": "pod", "only": "static"}
    assert made["STATIC_LABELS"] == {"app": "static", "only": "static"}
    assert made["app"] == "static"  # flat, as the real program has it


@pytest.mark.parametrize(
    ("labels", "locality", "kept"),
    [
        ({"topology.istio.io/locality": "r.z.s", "istio-locality": "x"}, ("r", "z", "s"), "r/z/s"),
        ({"istio-locality": "r/z.1"}, ("r", "z.1"), "r/z.1"),
        ({"istio-locality": "r"}, ("r",), "r"),
        ({}, (), None),
    ],
)
def test_locality(labels: dict[str, str], locality: tuple[str, ...], kept: str | None) -> None:
    made = bootstrap({}, labels=labels, **POD)[0]["node"]
    assert made["locality"] == dict(zip(("region", "zone", "sub_zone"), locality, strict=False))
    assert made["metadata"].get("LABELS", {}).get("istio-locality") == kept


@pytest.mark.parametrize(
    ("given", "labels", "variables", "expected"),
    [
        ({"serviceCluster": "mine"}, {"app": "a"}, {}, "mine"),
        ({}, {"app": "a", "service.istio.io/canonical-name": "c"}, {}, "a.books"),
        ({}, {"service.istio.io/canonical-name": "c"}, {}, "c.books"),
        ({}, {}, {"ISTIO_META_WORKLOAD_NAME": "w"}, "w.books"),
        ({}, {}, {}, "istio-proxy.books"),
        ({}, {}, {"POD_NAMESPACE": ""}, "istio-proxy"),
        ({"tracingServiceName": "APP_LABEL_AND_NAMESPACE"}, {"app": "a"}, {}, "a.books"),
        ({"tracingServiceName": "CANONICAL_NAME_ONLY"}, {"app": "a", "service.istio.io/canonical-name": "c"}, {}, "c"),
        ({"tracingServiceName": "CANONICAL_NAME_AND_NAMESPACE"}, {"app": "a"}, {}, "a.books"),
        ({"tracingServiceName": "CANONICAL_NAME_ONLY"}, {}, {"ISTIO_META_WORKLOAD_NAME": "w"}, "w"),
        ({"tracingServiceName": "CANONICAL_NAME_ONLY"}, {}, {}, "istio-proxy.books"),
    ],
)
def test_service_cluster(given: Any, labels: dict[str, str], variables: dict[str, str], expected: str) -> None:
    assert bootstrap(given, labels=labels, **{**POD, **variables})[0]["node"]["cluster"] == expected


def test_booleans_are_texts_and_false_ones_stay_as_they_were_written() -> None:
    made = metadata(ISTIO_META_DNS_CAPTURE="1", ISTIO_META_ENABLE_HBONE="f", ISTIO_META_DNS_AUTO_ALLOCATE="T")
    assert (made["DNS_CAPTURE"], made["ENABLE_HBONE"], made["DNS_AUTO_ALLOCATE"]) == ("true", "f", "true")
    assert made["METADATA_DISCOVERY"] == "false"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"ISTIO_META_DNS_AUTO_ALLOCATE": "yes"},
            "node metadata DNS_AUTO_ALLOCATE (ISTIO_META_DNS_AUTO_ALLOCATE): 'yes'",
        ),
        ({"ISTIO_METAJSON_X": '{"OWNER": 1}'}, "node metadata OWNER (ISTIO_META_OWNER): '1': expected a string"),
        ({"ISTIO_META_POD_PORTS": "["}, "POD_PORTS (ISTIO_META_POD_PORTS): not JSON"),
        ({"ISTIO_META_POD_PORTS": '{"a":1}'}, "expected a JSON list of container ports"),
        ({"ISTIO_META_POD_PORTS": '[{"containerPort":"x"}]'}, "expected an object with containerPort"),
        ({"POD_NAME": "a~b"}, "must not contain '~'"),
        ({"ISTIO_META_LOAD_STATS_CONFIG_JSON": "["}, "node metadata LOAD_STATS_CONFIG_JSON"),
    ],
)
def test_metadata_that_istiod_could_not_read_ends_the_start(variables: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        bootstrap({}, **{**POD, **variables})
    assert message in str(error.value)


def test_pod_ports_are_written_in_one_form() -> None:
    made = metadata(ISTIO_META_POD_PORTS='[ {"protocol":"TCP", "containerPort":80, "name":"http", "hostPort":1} ]')
    assert made["POD_PORTS"] == '[{"name":"http","containerPort":80,"protocol":"TCP"}]'
    assert metadata(ISTIO_META_POD_PORTS="[\n]")["POD_PORTS"] == "[\n]"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"discoveryAddress": "localhost:15010"}, ["istiod.istio-system.svc"]),
        ({"discoveryAddress": "istiod-2.istio-system.svc:15012"}, ["istiod-2.istio-system.svc"]),
        ({"controlPlaneAuthPolicy": "NONE"}, None),
    ],
)
def test_pilot_san(given: Any, expected: Any) -> None:
    assert metadata(given).get("PILOT_SAN") == expected


def test_other_metadata_of_settings() -> None:
    made = metadata(
        {},
        "--outlierLogPath=/dev/stdout",
        "--stsPort=15463",
        annotations={"a": "b"},
        ENVOY_SECURE_METRICS_PORT="15091",
        ENVOY_SKIP_DEPRECATED_LOGS="false",
        ISTIO_META_ISTIO_VERSION="1.24.0",
        EXIT_ON_ZERO_ACTIVE_CONNECTIONS="true",
    )
    assert made["OUTLIER_LOG_PATH"] == "/dev/stdout"
    assert made["STS_PORT"] == "15463"
    assert made["ANNOTATIONS"] == {"a": "b"}
    assert made["ENVOY_SECURE_METRICS_PORT"] == 15091
    assert "ENVOY_SKIP_DEPRECATED_LOGS" not in made
    assert made["ISTIO_VERSION"] == "1.24.0"
    assert made["EXIT_ON_ZERO_ACTIVE_CONNECTIONS"] == "true"


def test_sockets_of_others() -> None:
    facts = document.facts_of(load({}, **POD), Sockets(credential=True, external_sds=True))
    made = document.bootstrap(facts)
    assert made["node"]["metadata"]["credential"] == "true"
    assert made["node"]["metadata"]["file-credential"] == "true"
    names = [cluster["name"] for cluster in made["static_resources"]["clusters"]]
    assert names == ["prometheus_stats", "agent", "sds-grpc", "sds-files-grpc", "xds-grpc"]


def test_locality_text_has_no_other_label() -> None:
    assert node.locality_text({"region": "x"}) == ""


# --- listeners and addresses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ips", "dual", "expected"),
    [
        (["10.0.0.1"], False, ("127.0.0.1", "0.0.0.0", None, "V4_ONLY")),
        (["fd00::1"], True, ("::1", "::", None, "V6_ONLY")),
        (["fd00::1", "10.0.0.1"], False, ("127.0.0.1", "0.0.0.0", None, "V4_ONLY")),
        (["fd00::1", "10.0.0.1"], True, ("::1", "::", "0.0.0.0", "ALL")),
        (["10.0.0.1", "fd00::1"], True, ("127.0.0.1", "0.0.0.0", "::", "ALL")),
    ],
)
def test_families(ips: list[str], dual: bool, expected: tuple[str, str, str | None, str]) -> None:
    family = family_of(ips, dual)
    assert (family.localhost, family.wildcard, family.other_wildcard, family.dns_lookup) == expected
    assert addresses.loopbacks(ips)[0] in (family.localhost, family.other_localhost, "127.0.0.1")


def listeners(*given: Any, **variables: Any) -> dict[str, Any]:
    return {
        each["name"]: each for each in bootstrap(*given, **{**POD, **variables})[0]["static_resources"]["listeners"]
    }


def test_ports() -> None:
    made = listeners(
        ENVOY_STATUS_PORT="1", ENVOY_PROMETHEUS_PORT="2", ENVOY_SECURE_METRICS_PORT="3",
        ENVOY_SECURE_MERGED_METRICS_PORT="4", ENVOY_STATUS_PORT_ENABLE_PROXY_PROTOCOL="true",
    )  # fmt: skip
    assert list(made) == ["0.0.0.0_2", "0.0.0.0_3", "0.0.0.0_4", "0.0.0.0_1"]
    assert made["0.0.0.0_1"]["listener_filters"][0]["name"] == "envoy.listener.proxy_protocol"
    for name, routes in (("0.0.0.0_3", ["prometheus_stats"]), ("0.0.0.0_4", ["agent", "agent"])):
        chain = made[name]["filter_chains"][0]
        tls = chain["transport_socket"]["typed_config"]
        assert tls["require_client_certificate"] is True
        assert chain["filter_chain_match"] == {"transport_protocol": "tls"}
        hosts = chain["filters"][0]["typed_config"]["route_config"]["virtual_hosts"]
        assert [route["route"]["cluster"] for route in hosts[0]["routes"]] == routes


@pytest.mark.parametrize(
    ("given", "variables", "message"),
    [
        ({"statusPort": 15090}, {}, "ENVOY_PROMETHEUS_PORT and ProxyConfig statusPort are both 15090"),
        ({"proxyAdminPort": 15021}, {}, "ENVOY_STATUS_PORT and ProxyConfig proxyAdminPort are both 15021"),
        ({}, {"ENVOY_SECURE_METRICS_PORT": "15021"}, "ENVOY_SECURE_METRICS_PORT and ENVOY_STATUS_PORT are both 15021"),
    ],
)
def test_two_listeners_on_one_port(given: Any, variables: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bootstrap(given, **POD, **variables)


@pytest.mark.parametrize("source", ["environment", "proxyMetadata"])
def test_metrics_localhost_access_only(source: str) -> None:
    given = {"METRICS_LOCALHOST_ACCESS_ONLY": "true"}
    made = listeners(
        {"proxyMetadata": given} if source == "proxyMetadata" else {}, **given if source == "environment" else {}
    )
    assert list(made) == ["127.0.0.1_15090", "0.0.0.0_15021"]
    assert made["127.0.0.1_15090"]["address"]["socket_address"]["address"] == "127.0.0.1"


def test_stats_compression() -> None:
    def filters(given: Any) -> list[str]:
        chain = listeners(given)["0.0.0.0_15090"]["filter_chains"][0]
        return [each["name"] for each in chain["filters"][0]["typed_config"]["http_filters"]]

    assert filters({"statsCompression": False}) == ["envoy.filters.http.router"]
    assert len(filters({"statsCompression": True})) == len(filters({})) == 4


# --- statistics ---------------------------------------------------------------------------------------------------


def patterns(made: dict[str, Any]) -> list[str]:
    found = made["stats_config"]["stats_matcher"]["inclusion_list"]["patterns"]
    return [next(iter(each.values())) if "safe_regex" not in each else each["safe_regex"]["regex"] for each in found]


def test_annotations_replace_proxy_stats_matcher() -> None:
    given = {"proxyStatsMatcher": {"inclusionPrefixes": ["a"], "inclusionSuffixes": ["b"], "inclusionRegexps": ["c"]}}
    made, _ = bootstrap(
        given,
        annotations={
            "sidecar.istio.io/statsInclusionPrefixes": "x,http.{pod_ip}_",
            "sidecar.istio.io/statsInclusionRegexps": "y",
        },
        interfaces=["10.0.0.2"],
        **POD,
    )
    found = patterns(made)
    assert found[1:5] == ["x", "http.10.0.0.1_", "http.10.0.0.2_", "cluster_manager"]
    assert "a" not in found and "c" not in found
    assert "b" in found and "y" in found


def test_statistics_from_annotations() -> None:
    made, warnings = bootstrap(
        {"extraStatTags": ["a", "b"]},
        annotations={
            "sidecar.istio.io/extraStatTags": "b,c",
            "sidecar.istio.io/statsHistogramBuckets": '{"istio":[1,5.5],"envoy":[2]}',
            "sidecar.istio.io/statsFlushInterval": "1m30s",
            "sidecar.istio.io/statsEvictionInterval": "3m",
        },
        **POD,
    )
    names = [tag["tag_name"] for tag in made["stats_config"]["stats_tags"]]
    assert names[names.index("mongo_prefix") + 1 : names.index("cache")] == ["a", "b", "c"]
    assert made["stats_config"]["histogram_bucket_settings"] == [
        {"match": {"prefix": "envoy"}, "buckets": [2]},
        {"match": {"prefix": "istio"}, "buckets": [1, 5.5]},
    ]
    assert (made["stats_flush_interval"], made["stats_eviction_interval"], warnings) == ("90s", "180s", [])


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        ("statsHistogramBuckets", "["),
        ("statsHistogramBuckets", '{"a":["x"]}'),
        ("statsHistogramBuckets", "[1]"),
        ("statsFlushInterval", "often"),
        ("statsFlushInterval", "0s"),
        ("statsEvictionInterval", "7s"),
    ],
)
def test_annotations_about_statistics_that_are_wrong_only_warn(annotation: str, value: str) -> None:
    made, warnings = bootstrap({}, annotations={f"sidecar.istio.io/{annotation}": value}, **POD)
    assert len(warnings) == 1
    assert f"annotation sidecar.istio.io/{annotation} is ignored" in warnings[0]
    assert "stats_flush_interval" not in made
    assert "stats_eviction_interval" not in made
    assert "histogram_bucket_settings" not in made["stats_config"]


def test_exit_on_zero_keeps_the_statistics_that_it_counts_by() -> None:
    assert "downstream_cx_active" in patterns(bootstrap({}, **POD, EXIT_ON_ZERO_ACTIVE_CONNECTIONS="true")[0])
    assert "downstream_cx_active" not in patterns(bootstrap({}, **POD)[0])


def test_sinks() -> None:
    made, _ = bootstrap({"statsdUdpAddress": "[fd00::7]:9125", "envoyMetricsService": {"address": "m:1"}}, **POD)
    assert [sink["name"] for sink in made["stats_sinks"]] == [
        "envoy.stat_sinks.metrics_service",
        "envoy.stat_sinks.statsd",
    ]
    address = made["stats_sinks"][1]["typed_config"]["address"]["socket_address"]
    assert address == {"address": "fd00::7", "port_value": 9125}


# --- clusters and tracing -----------------------------------------------------------------------------------------


def cluster(name: str, *given: Any, **variables: Any) -> dict[str, Any]:
    made = bootstrap(*given, **{**POD, **variables})[0]["static_resources"]["clusters"]
    found = [each for each in made if each["name"] == name]
    assert len(found) == 1, [each["name"] for each in made]
    return dict(found[0])


@pytest.mark.parametrize(
    ("tracer", "name", "message"),
    [("zipkin", "zipkin", "ZipkinConfig"), ("datadog", "datadog_agent", "DatadogConfig"),
     ("lightstep", "lightstep", "LightstepConfig")],
)  # fmt: skip
def test_tracers(tracer: str, name: str, message: str) -> None:
    given = {"configPath": "/c", "tracing": {tracer: {"address": "$(HOST_IP):9411"}}}
    found = cluster(name, given, HOST_IP="10.0.0.254")
    endpoint = found["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
    assert endpoint == {"address": "10.0.0.254", "port_value": 9411}
    assert found.get("dns_refresh_rate") == ("30s" if tracer == "zipkin" else None)
    config = bootstrap(given, **POD)[0]["tracing"]["http"]
    assert config["name"] == f"envoy.tracers.{tracer}"
    assert config["typed_config"]["@type"] == f"type.googleapis.com/envoy.config.trace.v3.{message}"
    assert config["typed_config"].get("service_name") == ("istio-proxy.books" if tracer == "datadog" else None)


def test_tracers_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"tracing\.stackdriver: the proxy has no such tracer"):
        bootstrap({"tracing": {"stackdriver": {}}}, **POD)
    made, warnings = bootstrap({"tracing": {"openCensusAgent": {"address": "a:1"}}}, **POD)
    assert "tracing" not in made
    assert "openCensusAgent" in warnings[0]


def test_zipkin_address_of_old_pods() -> None:
    assert cluster("zipkin", {"zipkinAddress": "z:9411", "tracing": {"sampling": 5}})["type"] == "STRICT_DNS"
    assert cluster("zipkin", {}, "--zipkinAddress=z:9411", "--dnsRefreshRate=5m")["dns_refresh_rate"] == "300s"
    made = bootstrap({"zipkinAddress": "z:9411", "tracing": {"datadog": {"address": "d:1"}}}, **POD)[0]
    assert made["tracing"]["http"]["name"] == "envoy.tracers.datadog"


@pytest.mark.parametrize(
    ("tls", "certificates", "root", "sni", "alpn"),
    [
        ({"mode": "ISTIO_MUTUAL"}, ["default"], "ROOTCA", "envoy_metrics_service", ["istio", "h2"]),
        ({"mode": "SIMPLE", "caCertificates": "/ca"}, None, "file-root:/ca", None, ["h2"]),
        (
            {"mode": "MUTUAL", "caCertificates": "/ca", "clientCertificate": "/c", "privateKey": "/k", "sni": "s"},
            ["file-cert:/c~/k"], "file-root:/ca", "s", ["h2"],
        ),
    ],
)  # fmt: skip
def test_tls_of_remote_services(tls: Any, certificates: Any, root: str, sni: Any, alpn: Any) -> None:
    service = {"address": "m:1", "tlsSettings": {**tls, "subjectAltNames": ["x"]}, "tcpKeepalive": {"time": "10s"}}
    found = cluster("envoy_metrics_service", {"envoyMetricsService": service})
    context = found["transport_socket"]["typed_config"]
    common = context["common_tls_context"]
    secrets = [each["name"] for each in common.get("tls_certificate_sds_secret_configs", ())]
    assert (secrets or None, context.get("sni"), common["alpn_protocols"]) == (certificates, sni, alpn)
    validation = common["combined_validation_context"]
    assert validation["validation_context_sds_secret_config"]["name"] == root
    assert validation["default_validation_context"] == {"match_subject_alt_names": [{"exact": "x"}]}
    assert found["upstream_connection_options"] == {"tcp_keepalive": {"keepalive_time": 10}}


def test_tls_files_of_the_metadata_beat_the_settings() -> None:
    given = {"tracing": {"zipkin": {"address": "z:1"}, "tlsSettings": {"mode": "SIMPLE", "caCertificates": "/ca"}}}
    common = cluster("zipkin", given, ISTIO_META_TLS_CLIENT_ROOT_CERT="/other")["transport_socket"]["typed_config"]
    found = common["common_tls_context"]["combined_validation_context"]["validation_context_sds_secret_config"]["name"]
    assert found == "file-root:/other"
    assert "alpn_protocols" not in common["common_tls_context"]


@pytest.mark.parametrize(
    ("tls", "message"), [({"mode": "SIMPLE"}, "needs caCertificates"), ({"mode": "MUTUAL"}, "needs clientCertificate")]
)
def test_tls_that_cannot_be(tls: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bootstrap({"envoyAccessLogService": {"address": "a:1", "tlsSettings": tls}}, **POD)


def test_no_tls_when_it_is_disabled() -> None:
    given = {"envoyAccessLogService": {"address": "a:1", "tlsSettings": {"mode": "DISABLE"}}}
    assert "transport_socket" not in cluster("envoy_accesslog_service", given)


def test_cluster_manager() -> None:
    made, _ = bootstrap(
        {}, "--outlierLogPath=/dev/stdout", **POD, ISTIO_META_ENABLE_SELF_DISCOVERY="true",
        ISTIO_META_LOAD_STATS_CONFIG_JSON='{"api_type": "GRPC"}',
    )  # fmt: skip
    assert made["cluster_manager"] == {
        "local_cluster_name": "local_cluster",
        "outlier_detection": {"event_log_path": "/dev/stdout"},
        "load_stats_config": {"api_type": "GRPC"},
        "enable_deferred_cluster_creation": True,
    }
    assert made["static_resources"]["clusters"][-1]["type"] == "EDS"


# --- the rest -----------------------------------------------------------------------------------------------------


def test_peer_metadata_discovery() -> None:
    for variables in ({"PEER_METADATA_DISCOVERY": "true"}, {"ISTIO_META_ENABLE_HBONE": "true"}):
        made, warnings = bootstrap({}, **POD, **variables)
        assert made["bootstrap_extensions"][0]["name"] == "metadata_discovery"
        assert "workload_discovery" in patterns(made)
        assert (made["node"]["metadata"]["METADATA_DISCOVERY"], warnings) == ("true", [])
    made, warnings = bootstrap({}, **POD, PEER_METADATA_DISCOVERY="true", ISTIO_DELTA_XDS="false")
    assert len(made["bootstrap_extensions"]) == 1
    assert "needs ISTIO_DELTA_XDS" in warnings[0]


def test_waypoint_has_incremental_xds_always() -> None:
    made, _ = bootstrap({}, "waypoint", **POD, ISTIO_DELTA_XDS="false")
    assert made["dynamic_resources"]["ads_config"]["api_type"] == "DELTA_GRPC"
    assert made["node"]["id"].startswith("waypoint~10.0.0.1~reviews-1.books~")
    assert bootstrap({}, **POD, ISTIO_DELTA_XDS="false")[0]["dynamic_resources"]["ads_config"]["api_type"] == "GRPC"


@pytest.mark.parametrize(
    ("given", "variables", "limit", "complaint"),
    [
        ({}, {}, 2**31 - 1, ""),
        ({"runtimeValues": {"overload.global_downstream_max_connections": "5"}}, {}, 5, ""),
        ({"runtimeValues": {"overload.global_downstream_max_connections": "5"},
          "proxyMetadata": {"ISTIO_META_GLOBAL_DOWNSTREAM_MAX_CONNECTIONS": "6"}}, {}, 6, ""),
        ({}, {"ISTIO_META_GLOBAL_DOWNSTREAM_MAX_CONNECTIONS": "7"}, 7, ""),
        ({"connectionSettings": {"globalDownstreamConnectionLimit": 8}},
         {"ISTIO_META_GLOBAL_DOWNSTREAM_MAX_CONNECTIONS": "7"}, 8, ""),
        ({}, {"ISTIO_META_GLOBAL_DOWNSTREAM_MAX_CONNECTIONS": "many"}, 2**31 - 1, "'many' is ignored"),
    ],
)  # fmt: skip
def test_global_connection_limit(given: Any, variables: dict[str, str], limit: int, complaint: str) -> None:
    made, warnings = bootstrap(given, **POD, **variables)
    monitor = made["overload_manager"]["resource_monitors"][0]["typed_config"]
    assert monitor["max_active_downstream_connections"] == limit
    assert (complaint in "".join(warnings)) and bool(warnings) == bool(complaint)


def test_runtime_values() -> None:
    given = {"runtimeValues": {"re2.max_program_size.error_level": "", "a": "true", "b": "false", "c": "1"}}
    layer = bootstrap(given, **POD, HTTP_STRIP_FRAGMENT_FROM_PATH_UNSAFE_IF_DISABLED="false")[0]["layered_runtime"]
    flags = layer["layers"][0]["static_layer"]
    assert "re2.max_program_size.error_level" not in flags
    assert (flags["a"], flags["b"], flags["c"]) == (True, False, "1")
    assert flags["envoy.reloadable_features.http_strip_fragment_from_path_unsafe_if_disabled"] == "false"
    fips = bootstrap({}, **POD, COMPLIANCE_POLICY="fips-140-2")[0]["layered_runtime"]["layers"][0]["static_layer"]
    assert fips["envoy.reloadable_features.google_grpc_disable_tls_13"] is True
