"""Environment variables: defaults, sources, validation; and the one tree that all settings end up in."""

import dataclasses
from ipaddress import ip_address
from typing import Any

import pytest
from agent_loading import load

from agent import addresses, explain, pod_files
from agent.environment import (
    DEFAULT,
    METADATA,
    Reader,
    boolean,
    duration,
    exit_status,
    file_name,
    natural,
    port,
    ratio,
    rsa_bits,
    text,
)
from agent.environment import variables_of as variables
from agent.errors import ConfigError
from agent.settings import GROUPS, AgentSettings, Drain, Identity, Launch, Ports

EVERY = [(group, field, variable, default) for group in GROUPS for field, variable, default in variables(group)]

# A value for each kind of variable, and one that is malformed; another kind has choices.
SAMPLES: dict[Any, tuple[str, Any, str]] = {
    boolean: ("T", True, "yes"),
    natural: ("7", 7, "-1"),
    port: ("7", 7, "65536"),
    ratio: ("0.25", 0.25, "1.5"),
    duration: ("1m30s", 90.0, "5"),
    exit_status: ("7", 7, "256"),
    rsa_bits: ("4096", 4096, "1024"),
    file_name: ("other", "other", "a/b"),
}


def sample(variable: Any, default: Any) -> tuple[str, Any, str | None]:
    """(text, value, malformed text) for a variable; the value is not its default."""
    if variable.parse is text:
        return "some text", "some text", None
    written, value, malformed = SAMPLES.get(variable.parse, ("7", 7, "0"))
    if variable.parse is boolean and default is True:
        return "F", False, malformed
    if variable.parse not in SAMPLES and variable.parse.__name__ == "parse":
        choices = ("gcp", "fips-140-3", "inbound", "first-party-jwt", "ECDSA", "P384")
        for name in choices:
            try:
                return name, variable.parse(name), "nonsense"
            except ValueError:
                continue
    return written, value, malformed


@pytest.mark.parametrize(("group", "field", "variable", "default"), EVERY, ids=lambda each: getattr(each, "name", None))
def test_every_variable(group: type[Any], field: str, variable: Any, default: Any) -> None:
    """Environment beats proxyMetadata beats the default; what is malformed is reported and passed over."""
    written, value, malformed = sample(variable, default)
    assert value != default

    def read(environment: dict[str, str], metadata: dict[str, str]) -> tuple[Any, str, list[str]]:
        reader = Reader(environment, metadata)
        found = getattr(reader.fill(group), field)
        return found, reader.origins[variable.name], reader.warnings

    name = variable.name
    assert read({}, {}) == (default, DEFAULT, [])
    assert read({name: written}, {}) == (value, "environment", [])
    assert read({}, {name: written}) == (value, METADATA, [])
    if malformed is None:
        # A text that is set to the empty string stays empty: the default is not applied.
        assert read({name: ""}, {name: written}) == ("", "environment", [])
        return
    assert read({name: ""}, {name: written}) == (value, METADATA, [])
    found, origin, warnings = read({name: malformed}, {})
    assert (found, origin) == (default, DEFAULT)
    assert len(warnings) == 1
    assert f"environment variable {name}: {malformed!r} is ignored: " in warnings[0]


def test_variables_have_one_meaning() -> None:
    names = [variable.name for _, _, variable, _ in EVERY]
    assert len(names) == len(set(names))
    assert all(variable.help for _, _, variable, _ in EVERY)


def test_what_nothing_follows_from_yet_is_named_by_purpose() -> None:
    settings = load({}, OUTPUT_CERTS="/x", PROV_CERT="/y", PROXY_CONFIG_XDS_AGENT="true", SECRET_TTL="24h")
    assert settings.warnings == (
        "not honoured yet (xDS): environment variable PROXY_CONFIG_XDS_AGENT",
        "not honoured yet (certificates): environment variables PROV_CERT, OUTPUT_CERTS",
    )


def test_settings_of_a_drain_from_proxy_metadata() -> None:
    """No injector has to copy them into the environment."""
    given = {"proxyMetadata": {"EXIT_ON_ZERO_ACTIVE_CONNECTIONS": "true", "MINIMUM_DRAIN_DURATION": "3s"}}
    settings = load(given, MINIMUM_DRAIN_DURATION="2s", EXIT_ON_ZERO_MAX_DURATION="1m", EXIT_ON_ZERO_COUNT="inbound")
    assert settings.drain == Drain(True, 2.0, "inbound", 60.0, None, 255)
    assert settings.origins["EXIT_ON_ZERO_ACTIVE_CONNECTIONS"] == METADATA
    assert settings.origins["MINIMUM_DRAIN_DURATION"] == "environment"
    assert settings.origins["CRASH_EXIT_CODE"] == DEFAULT


def test_the_tree_is_frozen_and_complete() -> None:
    settings = load({}, POD_NAME="a", POD_NAMESPACE="b", CRASH_EXIT_CODE="0", ENVOY_STATUS_PORT="15031")
    groups = {each.name: each.type for each in dataclasses.fields(AgentSettings)}
    assert {group.__name__.lower() for group in GROUPS} <= groups.keys()
    assert (settings.identity.pod_name, settings.domain) == ("a", "b.svc.cluster.local")
    assert (settings.drain.crash_exit_code, settings.ports) == (0, Ports(status=15031))
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.identity.pod_name = "other"  # type: ignore[misc]
    for group in GROUPS:
        assert not hasattr(group(), "__dict__")


def test_flag_beats_variable() -> None:
    assert load({}, "--trust-domain=a", TRUST_DOMAIN="b").identity == Identity(trust_domain="a")
    assert load({}, TRUST_DOMAIN="b").identity == Identity(trust_domain="b")
    assert load({}, "--domain=x", POD_NAMESPACE="y").domain == "x"


def test_order_of_addresses() -> None:
    assert load({}, INSTANCE_IP="10.0.0.1", interfaces=["10.0.0.2", "10.0.0.1"]).addresses == ("10.0.0.1", "10.0.0.2")


def test_an_instance_ip_that_is_none() -> None:
    settings = load({}, INSTANCE_IP="10.0.0.300")
    assert settings.addresses == ("10.0.0.9",)
    assert settings.warnings == ("INSTANCE_IP: '10.0.0.300' is ignored: expected an IP address",)


def test_an_interface_that_has_no_address_yet_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """For two minutes; whatever there is then counts."""
    now, later = [0.0], [("lo1", ip_address("10.0.0.1")), ("net1", ip_address("10.0.0.2"))]
    monkeypatch.setattr(addresses.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(addresses.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    unset = [("eth0", ip_address("0.0.0.0")), *later]
    monkeypatch.setattr(addresses, "_all_addresses", lambda: unset if now[0] < 1 else later)
    assert addresses.interface_addresses(["net1"]) == ["10.0.0.1"]
    assert 1 <= now[0] < 1.2
    monkeypatch.setattr(addresses, "_all_addresses", lambda: unset)
    assert addresses.interface_addresses() == ["10.0.0.1", "10.0.0.2"]
    assert now[0] >= 121


def test_interfaces_that_an_annotation_excludes(monkeypatch: pytest.MonkeyPatch) -> None:
    from agent import effective

    asked: list[Any] = []
    monkeypatch.setattr(
        pod_files, "read_annotations", lambda: ({"traffic.sidecar.istio.io/excludeInterfaces": "net1, net2"}, "")
    )
    monkeypatch.setattr(pod_files, "read_labels", lambda: ({}, ""))
    effective.load(
        load({}).options,
        {},
        interfaces=lambda excluded: asked.append(excluded) or ["10.0.0.1"],  # type: ignore[func-returns-value]
    )
    assert asked == [["net1", "net2"]]


def test_extra_headers_and_interfaces_that_cannot_be_listed() -> None:
    settings = load({}, CA_HEADER_authorization="secret", XDS_HEADER_x="y")
    assert (settings.ca_headers, settings.xds_headers) == ({"authorization": "secret"}, {"x": "y"})
    assert "headers authorization, x" in settings.warnings[0]
    assert "secret" not in explain.render(settings)

    def fails(_excluded: Any) -> Any:
        raise OSError(12, "Cannot allocate memory")

    from agent import effective

    settings = effective.load(settings.options, {}, interfaces=fails)
    assert settings.addresses == ("127.0.0.1", "::1")
    assert settings.warnings == ("the addresses of the interfaces are unknown: Cannot allocate memory",)


def test_explain_config_names_every_setting_and_its_source() -> None:
    settings = load(
        {"tracing": {"lightstep": {"address": "a:1", "accessToken": "secret"}}, "proxyMetadata": {"SECRET_TTL": "1h"}},
        "--proxyLogLevel=info",
        annotations={"proxy.istio.io/config": "statusPort: 15022"},
        ISTIO_CPU_LIMIT="3",
        ISTIO_META_NODE_NAME="node1",
        MINIMUM_DRAIN_DURATION="soon",
        interfaces=["10.0.0.9"],
    )
    printed = explain.render(settings)
    rows = {row[0]: tuple(row[1:]) for row in (line.split("\t") for line in printed.splitlines()) if len(row) == 3}
    assert rows["SETTING"] == ("VALUE", "SOURCE")
    assert {variable.name for _, _, variable, _ in EVERY} <= rows.keys()
    assert rows["--proxyLogLevel"] == ('"info"', "flag")
    assert rows["--domain"] == ('""', "default")
    assert rows["ISTIO_CPU_LIMIT"] == ("3", "environment")
    assert rows["SECRET_TTL"] == ('"3600s"', "ProxyConfig proxyMetadata")
    assert rows["--log_target"] == ('["stdout"]', "default")
    assert rows["MINIMUM_DRAIN_DURATION"] == ('"5s"', "default")
    assert rows["EXIT_ON_ZERO_MAX_DURATION"] == ("unset", "default")
    assert rows["ISTIO_META_NODE_NAME"] == ('"node1"', "environment (node metadata)")
    assert rows["ProxyConfig statusPort"] == ("15022", "annotation proxy.istio.io/config")
    assert rows["ProxyConfig concurrency"] == ("3", "environment variable ISTIO_CPU_LIMIT")
    assert rows["ProxyConfig drainDuration"] == ('"45s"', "default")
    assert rows["ProxyConfig tracing"][1] == "PROXY_CONFIG"
    assert "secret" not in printed.replace("SECRET", "")
    assert "warning: environment variable MINIMUM_DRAIN_DURATION: 'soon' is ignored" in printed


def test_certificates_have_one_source() -> None:
    with pytest.raises(ConfigError, match="FILE_MOUNTED_CERTS and PROV_CERT exclude each other"):
        load({}, FILE_MOUNTED_CERTS="true", PROV_CERT="/etc/certs")


def test_proxyless() -> None:
    assert load({}, DISABLE_ENVOY="true").launch == Launch(disable_proxy=True)
