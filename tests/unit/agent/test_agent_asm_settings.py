"""Settings of Alibaba Service Mesh's sidecar document that belong to the agent's configuration, one test each.

Each says what the injector writes into the pod when the setting is made, and what follows from it here.
"""

from pathlib import Path
from typing import Any

import pytest
from agent_loading import bootstrap, load

from agent import child_command, pod_files

# What the document shows of an injected pod.
SHOWN = {
    "concurrency": 2,
    "configPath": "/etc/istio/proxy",
    "discoveryAddress": "istiod-1-22-6.istio-system.svc:15012",
    "holdApplicationUntilProxyStarts": True,
    "interceptionMode": "REDIRECT",
    "proxyMetadata": {"BOOTSTRAP_XDS_AGENT": "false", "DNS_AGENT": "", "EXIT_ON_ZERO_ACTIVE_CONNECTIONS": "true"},
    "runtimeValues": {"overload.global_downstream_max_connections": "5000"},
    "terminationDrainDuration": "5s",
    "tracing": {"zipkin": {"address": "zipkin.istio-system:9411"}},
}
ARGUMENTS = (
    "sidecar", "--domain", "default.svc.cluster.local", "--proxyLogLevel=warning",
    "--proxyComponentLogLevel=misc:error", "--log_output_level=default:info",
)  # fmt: skip
POD = {"POD_NAME": "a", "POD_NAMESPACE": "default", "INSTANCE_IP": "10.0.0.1"}


def words(*given: Any, **variables: str) -> list[str]:
    return list(child_command.arguments(load(*given, **POD, **variables), "/f"))


def concurrency(*given: Any, **variables: str) -> str | None:
    """--concurrency of the proxy; None = one worker for each CPU of the node."""
    found = words(*given, **variables)
    return found[found.index("--concurrency") + 1] if "--concurrency" in found else None


def test_the_injected_pod_of_the_document() -> None:
    made, warnings = bootstrap(SHOWN, *ARGUMENTS, "--concurrency", "3", **POD)
    settings = load(SHOWN, *ARGUMENTS, "--concurrency", "3", **POD)
    assert warnings == []
    assert settings.warnings == ("flag --concurrency is legacy: use the ProxyConfig field concurrency",)
    assert made["node"]["metadata"]["PROXY_CONFIG"]["discoveryAddress"] == "istiod-1-22-6.istio-system.svc:15012"


@pytest.mark.parametrize(("limit", "workers"), [("2", "2"), ("3", "3"), (None, None)])
def test_resource_settings_for_injected_istio_proxies(limit: str | None, workers: str | None) -> None:
    """A CPU limit reaches the agent as ISTIO_CPU_LIMIT, in whole cores; without a limit there is no variable."""
    variables = {} if limit is None else {"ISTIO_CPU_LIMIT": limit}
    assert concurrency({}, *ARGUMENTS, **variables) == workers


def test_number_of_sidecar_proxy_threads() -> None:
    """`--concurrency 3`, which beats PROXY_CONFIG."""
    assert concurrency(SHOWN, *ARGUMENTS, "--concurrency", "3") == "3"


def test_number_of_sidecar_proxy_threads_0_follows_the_limits() -> None:
    """ASM's reading of 0: by the CPU limits, else the CPU requests of the container."""
    assert concurrency({}, *ARGUMENTS, "--concurrency", "0", ISTIO_CPU_LIMIT="2") == "2"
    assert concurrency({"concurrency": 0}, *ARGUMENTS, "--concurrency", "0", ISTIO_CPU_LIMIT="2") == "2"


@pytest.mark.parametrize(
    ("limit", "request_", "expected"), [("2500", "100", "3"), ("0", "100", "1"), (None, "1200", "2")]
)
def test_number_of_sidecar_proxy_threads_0_limits_take_precedence_over_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, request_: str, expected: str
) -> None:
    """Where the injector mounts both numbers as files."""
    for name, content in (("CPU_LIMIT", limit), ("CPU_REQUEST", request_)):
        monkeypatch.setattr(pod_files, name, str(tmp_path / name))
        if content is not None:
            (tmp_path / name).write_text(content)
    assert concurrency({}, *ARGUMENTS, "--concurrency", "0") == expected
    settings = load({}, *ARGUMENTS, "--concurrency", "0")
    assert settings.config.sources["concurrency"].startswith(f"file {tmp_path}")


def test_number_of_sidecar_proxy_threads_0_in_istios_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """The field alone, without the flag: one worker for each CPU of the node, with a warning under a lower limit."""
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert concurrency({"concurrency": 0}, ISTIO_CPU_LIMIT="2") is None
    settings = load({"concurrency": 0}, ISTIO_CPU_LIMIT="2")
    assert (settings.config.concurrency, settings.config.document["concurrency"]) == (0, 0)
    assert "CPU limit is 2: workers will be throttled" in settings.warnings[0]
    assert load({"concurrency": 0}).warnings == ()


def test_number_of_sidecar_proxy_threads_unset() -> None:
    assert concurrency({}) is None
    assert concurrency({}, ISTIO_CPU_LIMIT="4") == "4"


@pytest.mark.parametrize("level", ["info", "debug", "trace", "warning", "error", "critical", "off"])
def test_log_level(level: str) -> None:
    found = words(SHOWN, "sidecar", f"--proxyLogLevel={level}")
    assert found[found.index("-l") + 1] == level


@pytest.mark.parametrize(
    ("field", "text", "pattern"),
    [
        ("inclusionRegexps", ".*outlier_detection.*", {"safe_regex": {"regex": ".*outlier_detection.*"}}),
        ("inclusionPrefixes", "cluster.outbound", {"prefix": "cluster.outbound"}),
        ("inclusionSuffixes", "upstream_rq_timeout", {"suffix": "upstream_rq_timeout"}),
    ],
)
def test_proxy_stats_matcher(field: str, text: str, pattern: dict[str, Any]) -> None:
    """By regular expression, prefix or suffix, on top of what the pod needs itself."""
    plain, _ = bootstrap(SHOWN, **POD)
    made, _ = bootstrap({**SHOWN, "proxyStatsMatcher": {field: [text]}}, **POD)
    needed, patterns = (each["stats_config"]["stats_matcher"]["inclusion_list"]["patterns"] for each in (plain, made))
    assert [each for each in patterns if each != pattern] == needed
    assert pattern not in needed


def test_envoy_runtime_parameters_downstream_connection_limit() -> None:
    """The cap is the runtime value's; without one the proxy does not limit its connections."""
    made, _ = bootstrap(SHOWN, **POD)
    monitor = made["overload_manager"]["resource_monitors"][0]["typed_config"]
    assert monitor["max_active_downstream_connections"] == 5000
    unlimited = bootstrap({}, **POD)[0]["overload_manager"]["resource_monitors"][0]["typed_config"]
    assert unlimited["max_active_downstream_connections"] == 2**31 - 1
    listeners = made["static_resources"]["listeners"]
    assert all(listener["ignore_global_conn_limit"] for listener in listeners), "probes are answered at the limit"


def test_sidecar_graceful_shutdown_exit_on_zero_active_connections() -> None:
    for settings in (load(SHOWN), load({}, EXIT_ON_ZERO_ACTIVE_CONNECTIONS="true")):
        assert settings.drain.exit_on_zero
        # "waits for a default of 5 seconds, then polls the active connections": of both directions.
        assert (settings.drain.minimum_s, settings.drain.count) == (5.0, "all")


@pytest.mark.parametrize(
    ("given", "variable", "expected"),
    [
        ({"terminationDrainDuration": "10s"}, "10", 10),
        ({}, "10", 10),  # older injectors write the variable alone
        ({"terminationDrainDuration": "15s"}, "10", 15),
        ({}, None, 5),
    ],
)
def test_termination_drain_duration(given: Any, variable: str | None, expected: int) -> None:
    variables = {} if variable is None else {"TERMINATION_DRAIN_DURATION_SECONDS": variable}
    assert load(given, **variables).config.termination_drain_duration_s == expected


@pytest.mark.parametrize("value", [True, False])
def test_hold_application_until_proxy_starts(value: bool) -> None:
    """The injector's business (a postStart hook with `pilot-agent wait`); istiod is told."""
    settings = load({**SHOWN, "holdApplicationUntilProxyStarts": value}, **POD)
    assert settings.warnings == ()
    assert settings.config.document["holdApplicationUntilProxyStarts"] is value


def test_sidecar_inbound_traffic_interception_policy() -> None:
    variables = {"ISTIO_META_INTERCEPTION_MODE": "TPROXY", "ISTIO_META_POD_PORTS": "[\n]"}
    made, _ = bootstrap({**SHOWN, "interceptionMode": "TPROXY"}, **POD, **variables)
    assert made["node"]["metadata"]["INTERCEPTION_MODE"] == "TPROXY"
    assert made["node"]["metadata"]["PROXY_CONFIG"]["interceptionMode"] == "TPROXY"


def test_dns_proxy() -> None:
    """The environment says what istiod must know to send a name table."""
    variables = {"ISTIO_META_DNS_AUTO_ALLOCATE": "true", "ISTIO_META_DNS_CAPTURE": "true"}
    metadata = bootstrap({}, **POD, **variables)[0]["node"]["metadata"]
    assert (metadata["DNS_AUTO_ALLOCATE"], metadata["DNS_CAPTURE"]) == ("true", "true")
    assert load({}, **variables).dns.capture


def test_sidecar_proxy_environment_variables() -> None:
    """Variables of ASM that nothing reads travel as metadata when they are named so, and do no harm otherwise."""
    variables = {
        "CANONICAL_SERVICE": "a", "CANONICAL_REVISION": "v1", "DNS_AGENT": "", "ISTIO_META_POD_NAME": "a",
        "ISTIO_META_CONFIG_NAMESPACE": "default",
    }  # fmt: skip
    settings = load(SHOWN, **POD, **variables)
    assert settings.warnings == ()
    metadata = bootstrap(SHOWN, **POD, **variables)[0]["node"]["metadata"]
    assert (metadata["POD_NAME"], metadata["CONFIG_NAMESPACE"]) == ("a", "default")
    assert "CANONICAL_SERVICE" not in metadata


def test_tracing_settings_in_the_bootstrap() -> None:
    made, _ = bootstrap(SHOWN, **POD)
    assert made["tracing"]["http"]["typed_config"]["collector_cluster"] == "zipkin"
    zipkin = made["static_resources"]["clusters"][-1]
    address = zipkin["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
    assert (zipkin["name"], address) == ("zipkin", {"address": "zipkin.istio-system", "port_value": 9411})


def test_lifecycle_post_start_is_pilot_agent_wait() -> None:
    """The document's own hook runs `pilot-agent wait` without flags."""
    from agent.flags import parse
    from agent.options import WAIT_FLAGS, wait_options

    options = wait_options(parse(WAIT_FLAGS, [], tolerate_unknown=False))
    assert (options.url, options.timeout_s) == ("http://localhost:15021/healthz/ready", 60)


def test_arguments_of_2021_pods() -> None:
    """The hot upgrade of Istio 1.6: flags that are fields of ProxyConfig today, and the agent itself on 15021."""
    given = (
        "sidecar", "--domain", "default.svc.cluster.local", "--serviceCluster", "nginx.default", "--drainDuration",
        "45s", "--parentShutdownDuration", "1m0s", "--discoveryAddress", "istiod.istio-system.svc:15012",
        "--zipkinAddress", "zipkin.istio-system:9411", "--proxyLogLevel=warning",
        "--proxyComponentLogLevel=misc:error", "--proxyAdminPort", "15000", "--concurrency", "2",
        "--controlPlaneAuthPolicy", "NONE", "--dnsRefreshRate", "300s", "--statusPort", "15021",
        "--trust-domain=cluster.local", "--controlPlaneBootstrap=false",
    )  # fmt: skip
    settings = load({}, *given, JWT_POLICY="first-party-jwt", **POD)
    config = settings.config
    assert (config.drain_duration_s, config.status_port, config.concurrency) == (45, 15021, 2)
    assert (config.discovery_address, config.control_plane_auth_policy) == ("istiod.istio-system.svc:15012", "NONE")
    assert config.document["tracing"] == {"zipkin": {"address": "zipkin.istio-system:9411"}}
    assert settings.warnings == ("flag --concurrency is legacy: use the ProxyConfig field concurrency",)
    made, warnings = bootstrap({}, *given, **POD)
    assert warnings == []
    assert made["static_resources"]["clusters"][-1]["dns_refresh_rate"] == "300s"
    # A listener on 15021 that leads to the agent would be in the agent's way.
    assert [listener["name"] for listener in made["static_resources"]["listeners"]] == ["0.0.0.0_15090"]


def test_environment_of_2021_pods() -> None:
    """What the SidecarSet of the hot upgrade gives the container; the drain time is in the variable alone."""
    variables = {
        **POD, "JWT_POLICY": "first-party-jwt", "PILOT_CERT_PROVIDER": "istiod",
        "CA_ADDR": "istiod.istio-system.svc:15012", "SERVICE_ACCOUNT": "default", "CANONICAL_SERVICE": "nginx",
        "CANONICAL_REVISION": "latest", "ISTIO_META_POD_PORTS": "[\n]", "ISTIO_META_CLUSTER_ID": "c1",
        "ISTIO_META_POD_NAME": "a", "ISTIO_META_CONFIG_NAMESPACE": "default",
        "ISTIO_META_INTERCEPTION_MODE": "REDIRECT",
        "ISTIO_METAJSON_ANNOTATIONS": '{"kubernetes.io/psp":"ack.privileged"}\n', "ISTIO_META_WORKLOAD_NAME": "nginx",
        "ISTIO_META_MESH_ID": "cluster.local", "DNS_AGENT": "", "TERMINATION_DRAIN_DURATION_SECONDS": "5",
    }  # fmt: skip
    config = '{"configPath":"/etc/istio/proxy","proxyMetadata":{"DNS_AGENT":""}}\n'
    settings = load(config, **variables)
    assert settings.warnings == ()
    assert settings.config.termination_drain_duration_s == 5
    assert settings.config.sources["terminationDrainDuration"] == (
        "environment variable TERMINATION_DRAIN_DURATION_SECONDS"
    )
    made, warnings = bootstrap(config, **variables)
    assert warnings == []
    assert made["node"]["cluster"] == "nginx.default"
    metadata = made["node"]["metadata"]
    assert (metadata["kubernetes.io/psp"], metadata["CLUSTER_ID"]) == ("ack.privileged", "c1")
