"""What the proxy is told of DNS capture: the pod's variables in, the proxy's environment out."""

from pathlib import Path
from typing import Any

import pytest
from agent_loading import load

from agent import dns, launch
from agent.bootstrap.facts import Sockets
from agent.errors import ConfigError

POD = {"POD_NAME": "reviews-1", "POD_NAMESPACE": "books", "INSTANCE_IP": "10.0.0.1"}
CAPTURE = {**POD, "ISTIO_META_DNS_CAPTURE": "true"}


def told(*given: Any, is_root: bool = False, warnings: list[str] | None = None, **variables: str) -> dict[str, str]:
    return dns.environment(load(*given, **variables), [] if warnings is None else warnings, is_root=is_root)


def listen(tmp_path: Path, address: str, resolvers: str, **named: Any) -> str:
    file = tmp_path / "resolv.conf"
    file.write_text(resolvers)
    return told(DNS_PROXY_ADDR=address, DNS_RESOLV_CONF=str(file), **CAPTURE, **named)["DNS_LISTEN"]


@pytest.mark.parametrize(
    ("flags", "variables", "served"),
    [
        ((), {}, False),
        ((), {"ISTIO_META_DNS_CAPTURE": "true"}, True),
        (("router",), {"ISTIO_META_DNS_CAPTURE": "true"}, False),
        (("router",), {"ISTIO_META_ENABLE_DNS_SERVER": "true"}, True),
        ((), {"ISTIO_META_DNS_CAPTURE": "true", "DISABLE_ENVOY": "true"}, False),
    ],
)
def test_who_gets_it(flags: tuple[str, ...], variables: dict[str, str], served: bool) -> None:
    settings = load(None, *flags, **POD, **variables)
    assert dns.is_served(settings) is served
    assert bool(dns.environment(settings, [])) is served


def test_the_proxys_environment(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver 10.96.0.10\n")
    made = told({"configPath": "/run/proxy"}, DNS_RESOLV_CONF=str(file), DNS_SERVE_STALE="0s", **CAPTURE)
    assert made == {
        "DNS_LISTEN": "127.0.0.1:15053",
        "DNS_NAME_TABLE": "/run/proxy/name-table.json",
        "DNS_DOMAIN": "books.svc.cluster.local",
        "DNS_NAMESPACE": "books",
        "DNS_RESOLV_CONF": str(file),
        "DNS_FORWARD_PARALLEL": "false",
        "DNS_FORWARD_TIMEOUT": "5s",
        "DNS_SERVE_STALE": "0s",
    }


def test_a_pod_that_does_not_know_its_namespace() -> None:
    made = told(ISTIO_META_DNS_CAPTURE="true", INSTANCE_IP="10.0.0.1")
    assert "DNS_DOMAIN" not in made and "DNS_NAMESPACE" not in made
    assert told(None, "--domain", "a.svc.mesh", ISTIO_META_DNS_CAPTURE="true")["DNS_DOMAIN"] == "a.svc.mesh"


def test_proxy_metadata_will_do() -> None:
    made = told({"proxyMetadata": {"ISTIO_META_DNS_CAPTURE": "true", "DNS_FORWARD_TIMEOUT": "1500ms"}}, **POD)
    assert made["DNS_FORWARD_TIMEOUT"] == "1.5s"


@pytest.mark.parametrize(
    ("address", "resolvers", "expected"),
    [
        ("localhost:15053", "nameserver 10.0.0.2\nnameserver fd00::2", "127.0.0.1:15053,[::1]:15053"),
        ("localhost:15053", "nameserver fe80::1%eth0\n", "[::1]:15053"),
        ("localhost:15053", "search a.b\nnameserver what\nnameserver", "127.0.0.1:15053"),
        ("127.0.0.5:1053", "nameserver fd00::2", "127.0.0.5:1053"),
        ("[fd00::5]:1053", "", "[fd00::5]:1053"),
        (":1053", "", "0.0.0.0:1053,[::]:1053"),
    ],
)
def test_where_it_listens(tmp_path: Path, address: str, resolvers: str, expected: str) -> None:
    assert listen(tmp_path, address, resolvers) == expected


def test_port_53_is_for_an_agent_that_is_root(tmp_path: Path) -> None:
    warnings: list[str] = []
    assert listen(tmp_path, "localhost:53", "", is_root=True, warnings=warnings) == "127.0.0.1:53"
    assert not warnings
    assert listen(tmp_path, "localhost:53", "", is_root=False, warnings=warnings) == "127.0.0.1:15053"
    assert "DNS_PROXY_ADDR: localhost:53 needs an agent that is root" in warnings[0]


def test_on_port_53_the_servers_are_in_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a virtual machine /etc/resolv.conf names us."""
    file = tmp_path / "resolv.conf"
    monkeypatch.setattr(dns, "RESOLV_CONF_BEHIND_US", str(file))
    at_53 = {"DNS_PROXY_ADDR": "localhost:53", **CAPTURE}
    assert told(is_root=True, **at_53)["DNS_RESOLV_CONF"] == dns.RESOLV_CONF
    file.write_text("nameserver fd00::2\n")
    made = told(is_root=True, **at_53)
    assert (made["DNS_RESOLV_CONF"], made["DNS_LISTEN"]) == (str(file), "[::1]:53")
    assert told(is_root=False, **at_53)["DNS_RESOLV_CONF"] == dns.RESOLV_CONF
    assert told(is_root=True, **CAPTURE)["DNS_RESOLV_CONF"] == dns.RESOLV_CONF
    assert told(is_root=True, DNS_RESOLV_CONF="/run/resolv.conf", **at_53)["DNS_RESOLV_CONF"] == "/run/resolv.conf"


@pytest.mark.parametrize(
    "address", ["", "localhost", "15053", "localhost:", "localhost:0", "localhost:99999", "a b:53"]
)
def test_an_address_that_is_none(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match="DNS_PROXY_ADDR"):
        listen(tmp_path, address, "", is_root=True)


def test_it_is_in_the_command_that_is_launched() -> None:
    command = launch.plan(load(None, **CAPTURE), Sockets()).command
    assert command is not None
    assert command.environment["DNS_DOMAIN"] == "books.svc.cluster.local"
    plain = launch.plan(load(None, **POD), Sockets()).command
    assert plain is not None and not plain.environment
