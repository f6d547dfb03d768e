"""ProxyConfig: sources and their order, validation, and the proxy's arguments in every recorded case."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from agent_loading import load

from agent import addresses, child_command, custom_config, proxy_config, proxy_config_schema
from agent.errors import ConfigError, UsageError


def effective(
    document: Any = None, *arguments: str, annotations: dict[str, str] | None = None, **variables: str
) -> tuple[proxy_config.ProxyConfig, tuple[str, ...]]:
    settings = load(document, *arguments, annotations=annotations, **variables)
    return settings.config, settings.warnings


def test_defaults() -> None:
    config, warnings = effective()
    assert (config.config_path, config.binary_path) == ("./etc/istio/proxy", "/usr/local/bin/envoy")
    assert (config.drain_duration_s, config.termination_drain_duration_s) == (45, 5)
    assert (config.status_port, config.proxy_admin_port, config.concurrency) == (15020, 15000, None)
    assert warnings == ()


def test_order_of_sources(tmp_path: Path) -> None:
    mesh = tmp_path / "mesh"
    fields = ["statusPort", "proxyAdminPort", "drainDuration", "configPath"]
    mesh.write_text("defaultConfig:\n  statusPort: 1\n  proxyAdminPort: 1\n  drainDuration: 1s\n  configPath: mesh\n")
    config, _ = effective(
        {"statusPort": 2, "proxyAdminPort": 2, "drainDuration": "2s"},
        f"--meshConfig={mesh}",
        "--statusPort=4",
        annotations={"proxy.istio.io/config": "statusPort: 3\nproxyAdminPort: 3\n"},
    )
    assert (config.status_port, config.proxy_admin_port, config.drain_duration_s, config.config_path) == (
        4,
        3,
        2,
        "mesh",
    )
    assert [config.sources[name] for name in fields] == [
        "flag --statusPort", "annotation proxy.istio.io/config", "PROXY_CONFIG",
        f"mesh configuration {mesh}: defaultConfig",
    ]  # fmt: skip


def test_status_port_annotation_comes_last() -> None:
    config, _ = effective({"statusPort": 2}, "--statusPort=3", annotations={"status.sidecar.istio.io/port": "4"})
    assert config.status_port == 4
    assert effective(annotations={"status.sidecar.istio.io/port": "0"})[0].status_port == 0


@pytest.mark.parametrize(
    ("document", "arguments", "limit", "expected"),
    [
        ({}, (), "", None),
        ({}, (), "3", 3),
        ({"concurrency": 0}, (), "3", 0),  # explicit 0 is not unset
        ({"concurrency": "2"}, (), "3", 2),
        ({"concurrency": 2}, ("--concurrency=4",), "3", 4),
        ({"concurrency": 2}, ("--concurrency=0",), "", 2),
        ({"concurrency": None}, (), "3", 3),
    ],
)
def test_concurrency(document: Any, arguments: tuple[str, ...], limit: str, expected: int | None) -> None:
    config, warnings = effective(document, *arguments, ISTIO_CPU_LIMIT=limit)
    assert config.concurrency == expected
    assert any("--concurrency is legacy" in warning for warning in warnings) == (expected == 4)


@pytest.mark.parametrize(
    ("document", "variable", "expected"),
    [({}, "12", 12), ({"terminationDrainDuration": "1.5s"}, "12", 1.5), ({"terminationDrainDuration": "0s"}, "12", 0)],
)
def test_termination_drain(document: Any, variable: str, expected: float) -> None:
    config, _ = effective(document, TERMINATION_DRAIN_DURATION_SECONDS=variable)
    assert config.termination_drain_duration_s == expected


def test_snake_case_names() -> None:
    assert effective({"drain_duration": "7s", "proxy_admin_port": 7})[0].drain_duration_s == 7


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"statusPort": 0}, "PROXY_CONFIG: statusPort: 0: expected an integer from 1 to 65535"),
        ({"proxyAdminPort": 70000}, "proxyAdminPort: 70000: expected an integer"),
        ({"proxyAdminPort": True}, "proxyAdminPort: true: expected an integer"),
        ({"proxyAdminPort": 1.5}, "proxyAdminPort: 1.5: expected an integer"),
        ({"proxyAdminPort": "9" * 5000}, "expected an integer"),
        ({"concurrency": -1}, "concurrency: -1: expected an integer from 0"),
        ({"drainDuration": "1m"}, "drainDuration: \"1m\": '1m' is not a duration in seconds"),
        ({"drainDuration": "1.5s"}, 'drainDuration: "1.5s": expected whole seconds'),
        ({"drainDuration": 5}, "drainDuration: 5: expected a string"),
        ({"terminationDrainDuration": "-1s"}, "expected a duration of at least 0s"),
        ({"configPath": ""}, 'configPath: "": expected a path'),
        ({"binaryPath": "a\0b"}, "binaryPath"),
        ({"customConfigFile": ["x"]}, 'customConfigFile: ["x"]: expected a string'),
        ({"statusPort": 1, "status_port": 2}, "ProxyConfig field statusPort is given twice"),
        ({"discoveryAddress": "istiod"}, 'discoveryAddress: "istiod": expected host:port'),
        ({"discoveryAddress": ""}, 'discoveryAddress: "": expected host:port'),
        ({"discoveryAddress": "a:99999"}, "a port from 1 to 65535"),
        ({"discoveryAddress": "a b:1"}, "expected host:port"),
        ({"controlPlaneAuthPolicy": "SOME"}, "expected one of NONE, MUTUAL_TLS, INHERIT"),
        ({"interceptionMode": 9}, "interceptionMode: 9: expected one of REDIRECT, TPROXY, NONE"),
        ({"tracing": {"zipkin": {"address": "zipkin"}}}, 'tracing.zipkin.address: "zipkin": expected host:port'),
        ({"tracing": {"zipkin": {"address": "a:1"}, "datadog": {"address": "a:1"}}}, "only one of zipkin, datadog"),
        ({"tracing": {"sampling": 101}}, "tracing.sampling: 101: expected a percentage"),
        ({"tracing": []}, "tracing: []: expected a mapping of field names"),
        (
            {"proxyStatsMatcher": {"inclusionPrefixes": "x"}},
            'proxyStatsMatcher.inclusionPrefixes: "x": expected a list',
        ),
        (
            {"proxyStatsMatcher": {"inclusionPrefixes": [1]}},
            "proxyStatsMatcher.inclusionPrefixes[0]: 1: expected a str",
        ),
        ({"proxyMetadata": {"a": 1}}, "proxyMetadata.a: 1: expected a string"),
        ({"proxyMetadata": "x"}, 'proxyMetadata: "x": expected a mapping'),
        ({"statsCompression": "yes"}, 'statsCompression: "yes": expected true or false'),
        (
            {"connectionSettings": {"globalDownstreamConnectionLimit": -1}},
            "globalDownstreamConnectionLimit: -1: expected",
        ),
        ({"readinessProbe": {"httpGet": {"port": 0}}}, "readinessProbe.httpGet.port: 0: expected an integer from 1"),
        (
            {"proxyHeaders": {"server": {"value": "a", "Value": 1, "disabled": 1}}},
            "proxyHeaders.server.disabled: 1: exp",
        ),
        ("[1]", "PROXY_CONFIG is not a ProxyConfig document: expected a mapping"),
        ("a: [", "PROXY_CONFIG is not a ProxyConfig document:"),
    ],
)
def test_refused(document: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        effective(document)
    assert message in str(error.value)
    assert len(str(error.value)) < 400


def test_all_errors_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        effective({"statusPort": 0, "drainDuration": "x"}, annotations={"status.sidecar.istio.io/port": "many"})
    assert "statusPort: 0" in str(error.value)
    assert "drainDuration" in str(error.value)
    assert 'annotation status.sidecar.istio.io/port: "many": expected an integer from 0' in str(error.value)


def test_canonical_form() -> None:
    """What istiod gets: one spelling, enums by name, no zero values but those of wrappers and messages."""
    config, warnings = effective(
        {
            "interception_mode": 0,
            "control_plane_auth_policy": 0,
            "stat_name_length": "200",
            "stats_compression": False,
            "extraStatTags": [],
            "tracing": {"zipkin": {"address": "z:1"}, "max_path_tag_length": 0, "noSuch": 1},
            "gatewayTopology": {"numTrustedProxies": 1.0, "forwardClientCertDetails": 3, "proxyProtocol": {}},
            "fileFlushInterval": "2.500s",
            "proxyHeaders": {"requestId": {"disabled": False}},
        }
    )
    made = {name: value for name, value in config.document.items() if config.sources[name] != proxy_config.DEFAULT}
    assert made == {
        "statNameLength": 200,
        "statsCompression": False,
        "tracing": {"zipkin": {"address": "z:1"}},
        "gatewayTopology": {
            "numTrustedProxies": 1,
            "forwardClientCertDetails": "APPEND_FORWARD",
            "proxyProtocol": {},
        },
        "fileFlushInterval": "2.5s",
        "proxyHeaders": {"requestId": {"disabled": False}},
    }
    assert warnings == ("PROXY_CONFIG: unknown ProxyConfig field 'tracing.noSuch' is ignored",)


def test_metadata_and_headers_are_merged_within_and_the_rest_is_replaced() -> None:
    config, _ = effective(
        {"proxyMetadata": {"a": "1", "b": "1"}, "runtimeValues": {"a": "1"}, "proxyHeaders": {"requestId": {}}},
        annotations={
            "proxy.istio.io/config": "proxyMetadata: {b: '2'}\nruntimeValues: {b: '2'}\nproxyHeaders: {server: {}}\n"
        },
    )
    assert config.proxy_metadata == {"a": "1", "b": "2"}
    assert config.document["runtimeValues"] == {"b": "2"}
    assert config.document["proxyHeaders"] == {"requestId": {}, "server": {}}


def test_service_cluster_and_tracing_service_name_displace_each_other() -> None:
    config, _ = effective({"tracingServiceName": "APP_LABEL_AND_NAMESPACE"})
    assert "serviceCluster" not in config.document
    assert config.document["tracingServiceName"] == "APP_LABEL_AND_NAMESPACE"
    both, _ = effective({"tracingServiceName": 1}, annotations={"proxy.istio.io/config": "serviceCluster: x"})
    assert (both.document["serviceCluster"], "tracingServiceName" in both.document) == ("x", False)


def test_the_empty_service_cluster_is_the_flag() -> None:
    assert effective({"serviceCluster": ""}, "--serviceCluster=x")[0].document["serviceCluster"] == "x"
    with pytest.raises(ConfigError, match="flag --serviceCluster: serviceCluster: expected a name"):
        effective({"serviceCluster": ""}, "--serviceCluster=")
    assert effective({"serviceCluster": "y"}, "--serviceCluster=x")[0].document["serviceCluster"] == "y"


@pytest.mark.parametrize(
    ("address", "valid"), [("istiod-2:15012", True), ("[::1]:80", True), ("istiod", False), ("", False)]
)
def test_discovery_address_annotation(address: str, valid: bool) -> None:
    annotations = {"sidecar.istio.io/discoveryAddress": address}
    if valid:
        config = effective({"discoveryAddress": "a:1"}, annotations=annotations)[0]
        assert (config.discovery_address, config.document["discoveryAddress"]) == (address, address)
    else:
        with pytest.raises(ConfigError, match="annotation sidecar.istio.io/discoveryAddress"):
            effective(annotations=annotations)


def test_statsd_is_resolved_or_left_out_with_a_warning() -> None:
    given = {"statsdUdpAddress": "statsd.example:9125"}
    settings = load(given, resolve_host=lambda host, _port: {"statsd.example": "fd00::7"}[host])
    assert settings.config.document["statsdUdpAddress"] == "[fd00::7]:9125"

    def fails(_host: str, _port: int) -> str:
        raise OSError("no such host")

    settings = load(given, resolve_host=fails)
    assert "statsdUdpAddress" not in settings.config.document
    assert "statsdUdpAddress 'statsd.example' is left out: no such host" in settings.warnings[0]


@pytest.mark.parametrize("name", proxy_config_schema.FIELDS)
def test_no_field_takes_just_anything(name: str) -> None:
    for value in (object, [{}], {"no": {"such": ["thing"]}}, True, 1e300, "\0"):
        notes = proxy_config_schema.Notes()
        try:
            made = proxy_config_schema.FIELDS[name].read(value, name, notes)
        except proxy_config_schema.Invalid as error:
            assert error.at.startswith(name)
            assert str(error).startswith(("expected", "the field", "'"))
        else:
            assert notes.unknown or made == value


@pytest.mark.parametrize("content", ["a: [", "- x", "defaultConfig: 5"])
def test_mesh_file_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "mesh").write_text(content)
    with pytest.raises(ConfigError, match=f"mesh configuration {tmp_path}/mesh"):
        effective({}, f"--meshConfig={tmp_path}/mesh")


def test_what_is_not_honoured_is_named() -> None:
    given = {
        "caCertificatesPem": ["x"],
        "privateKeyProvider": {"qat": {}},
        "readinessProbe": {"tcpSocket": {"port": 1}},
    }
    assert given.keys() == proxy_config.NOT_HONOURED.keys()
    _, warnings = effective({**given, "image": {}, "holdApplicationUntilProxyStarts": True, "noSuchField": 1})
    text = "\n".join(warnings)
    assert all(name in text for name in proxy_config.NOT_HONOURED)
    assert "unknown ProxyConfig field 'noSuchField' is ignored" in text
    assert "image" not in text
    assert len(warnings) == 4


def test_fields_that_older_releases_had_are_accepted() -> None:
    config, warnings = effective(
        {"parentShutdownDuration": "60s", "connectTimeout": "1s", "discoveryRefreshDelay": "1s"}
    )
    assert warnings == ()
    assert "parentShutdownDuration" not in config.document


def test_every_field_of_the_agent_has_its_effect() -> None:
    """Each, set to something else than its default, changes one value of the effective configuration."""
    values = {
        "configPath": "x", "binaryPath": "x", "customConfigFile": "x", "drainDuration": "9s", "concurrency": 9,
        "terminationDrainDuration": "9s", "statusPort": 9, "proxyAdminPort": 9, "fileFlushInterval": "9s",
        "fileFlushMinSizeKb": 9, "proxyBootstrapTemplatePath": "x", "discoveryAddress": "x:9",
        "controlPlaneAuthPolicy": "NONE", "statsdUdpAddress": "10.0.0.1:9", "proxyMetadata": {"a": "b"},
    }  # fmt: skip
    plain = effective()[0]
    for name, value in values.items():
        config = effective({name: value})[0]
        changed = {slot for slot in plain.__slots__ if getattr(config, slot) != getattr(plain, slot)}
        assert len(changed - {"sources", "document"}) == 1, name
        assert config.sources == {**plain.sources, name: "PROXY_CONFIG"}


def arguments_for(document: Any, *arguments: str, override: str = "", **variables: str) -> list[str]:
    settings = load(document, *arguments, interfaces=["fd00::9"], **variables)
    file = settings.config.custom_config_file or f"{settings.config.config_path}/envoy-rev.json"
    return list(child_command.arguments(settings, file, override))


def test_optional_arguments() -> None:
    words = arguments_for(
        {"customConfigFile": "/c.yaml", "fileFlushInterval": "0.25s", "fileFlushMinSizeKb": 8},
        "--proxyLogLevel=debug",
        "--proxyComponentLogLevel=misc:error,http:info",
        override='{"a":1}',
        ISTIO_ENVOY_ENABLE_CORE_DUMP="true",
        ENVOY_SKIP_DEPRECATED_LOGS="false",
    )
    assert words == [
        "-c", "/c.yaml", "--drain-time-s", "45", "--drain-strategy", "immediate", "--local-address-ip-version", "v6",
        "--file-flush-interval-msec", "250", "--disable-hot-restart", "--allow-unknown-static-fields",
        "--file-flush-min-size-kb", "8", "-l", "debug", "--component-log-level", "misc:error,http:info",
        "--enable-core-dump", "--config-yaml", '{"a":1}',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("level", "components", "expected"),
    [
        ("info,misc:error", "http:debug", ["-l", "info", "--component-log-level", "misc:error"]),
        ("info", "", ["-l", "info"]),
        ("", "", []),
        ("misc:error", "", ["--component-log-level", "misc:error"]),
    ],
)
def test_log_levels(level: str, components: str, expected: list[str]) -> None:
    words = arguments_for({}, f"--proxyLogLevel={level}", f"--proxyComponentLogLevel={components}")
    assert words[words.index("--allow-unknown-static-fields") + 1 : words.index("--skip-deprecated-logs")] == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--proxyLogLevel=loud"], "--proxyLogLevel: 'loud'"),
        (["--proxyLogLevel=info,debug"], "names more than one level"),
        (["--proxyLogLevel=info,misc:loud"], "--proxyLogLevel: 'misc:loud'"),
        (["--proxyComponentLogLevel=error"], "--proxyComponentLogLevel: 'error'"),
    ],
)
def test_log_levels_refused(flags: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        arguments_for({}, *flags)
    assert message in str(error.value)


def test_a_program_without_a_path_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "envoy").write_text("")
    with pytest.raises(ConfigError, match="binaryPath: there is no program 'envoy' in PATH"):
        child_command.program("envoy")
    (tmp_path / "envoy").chmod(0o755)
    assert child_command.program("envoy") == (str(tmp_path / "envoy"),)


def test_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "envoy"
    with pytest.raises(ConfigError, match="is not a file"):
        child_command.program(str(script))
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    assert child_command.program(str(script)) == (str(script),)
    monkeypatch.setattr(child_command, "DEFAULT_BINARY", str(script))
    assert child_command.program(str(script)) == (str(script),)
    script.unlink()
    assert child_command.program(str(script)) == (sys.executable, "-m", "proxy")
    monkeypatch.setattr(child_command, "OWN_PROXY", "no_such_package")
    with pytest.raises(ConfigError, match="no_such_package"):
        child_command.program(str(script))


@pytest.mark.parametrize(
    ("content", "override", "awaits", "port"),
    [
        ("static_resources: {}", None, (), None),
        ("dynamic_resources: {}", None, (), None),
        ("dynamic_resources: {ads_config: {}, cds_config: {ads: {}}}", None, ("cds",), None),
        ('{"dynamicResources": {"ldsConfig": {"ads": {}}, "cdsConfig": {"ads": {}}}}', None, ("cds", "lds"), None),
        ("admin: {address: {socket_address: {port_value: 5}}}", None, (), 5),
        (
            "admin: {address: {socket_address: {port_value: 5}}}",
            {"admin": {"address": {"socketAddress": {"portValue": 6}}}, "dynamic_resources": {"lds_config": {"a": 1}}},
            ("lds",),
            6,
        ),
        ("admin: [1]", None, (), None),
    ],
)
def test_custom_config(tmp_path: Path, content: str, override: Any, awaits: tuple[str, ...], port: int | None) -> None:
    (tmp_path / "c.yaml").write_text(content)
    warnings: list[str] = []
    found = custom_config.inspect(str(tmp_path / "c.yaml"), override, warnings)
    assert (found.awaits, found.admin_port, warnings) == (awaits, port, [])


def test_custom_config_that_only_the_proxy_can_judge(tmp_path: Path) -> None:
    (tmp_path / "c.pb").write_bytes(b"\x0a\xff")
    warnings: list[str] = []
    assert custom_config.inspect(str(tmp_path / "c.pb"), None, warnings).awaits == ("cds", "lds")
    assert "c.pb" in warnings[0]
    with pytest.raises(ConfigError, match=r"customConfigFile: cannot read .*absent.*No such file"):
        custom_config.inspect(str(tmp_path / "absent"), None, warnings)


def test_override(tmp_path: Path) -> None:
    path = tmp_path / "override.yaml"
    path.write_text("a: $(HOST_IP):80\n")
    assert custom_config.read_override(str(path), "fd00::1")[0] == '{"a":"[fd00::1]:80"}'
    assert custom_config.read_override(str(path), "10.0.0.1") == ('{"a":"10.0.0.1:80"}', {"a": "$(HOST_IP):80"})
    path.write_text("")
    assert custom_config.read_override(str(path), "10.0.0.1") == ("", {})


@pytest.mark.parametrize("content", [None, "a: [", "[1]", "a: " + "x" * 200_000, "a: &a [*a]"])
def test_override_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "override.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=f"ISTIO_BOOTSTRAP_OVERRIDE: cannot use '{path}'"):
        custom_config.read_override(str(path), "")


@pytest.mark.parametrize(
    ("instance_ip", "interfaces", "expected", "version"),
    [
        ("10.0.0.1", ["192.0.2.2", "10.0.0.1"], ("10.0.0.1", "192.0.2.2"), "v4"),
        ("fd00::1", ["192.0.2.2"], ("fd00::1", "192.0.2.2"), "v4"),
        ("fd00::1", ["fd00::2"], ("fd00::1", "fd00::2"), "v6"),
        ("::ffff:10.0.0.1", [], ("10.0.0.1",), "v4"),
        ("nonsense", [], ("127.0.0.1", "::1"), "v4"),
    ],
)
def test_addresses(instance_ip: str, interfaces: list[str], expected: tuple[str, ...], version: str) -> None:
    assert addresses.node_addresses(instance_ip, interfaces) == expected
    assert addresses.ip_version(expected) == version
    assert addresses.loopbacks(expected)[0] == ("::1" if version == "v6" else "127.0.0.1")


def test_interface_addresses_are_those_of_the_machine() -> None:
    found = addresses.interface_addresses()
    assert all(not text.startswith(("127.", "fe80:", "169.254.")) and text != "::1" for text in found)
    assert addresses.interface_addresses(set(os.listdir("/sys/class/net"))) == []
