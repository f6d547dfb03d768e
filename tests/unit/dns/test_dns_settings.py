"""Flags and environment of DNS: one table, and what is said about values that cannot be used."""

from __future__ import annotations

import pytest

from proxy.config.model import SocketAddress
from proxy.dns.settings import SETTINGS, DnsSettings, Listen, SettingsError, build, parse_duration
from proxy.options import OptionError, parse, usage

LOOPBACK = (Listen(SocketAddress("127.0.0.1", 15053), False), Listen(SocketAddress("::1", 15053), False))
ON = {"dns-listen": "15053"}

VALUES = [
    ("listen", "15053", LOOPBACK),
    ("listen", "localhost:15053", LOOPBACK),
    ("listen", "127.0.0.1:53", (Listen(SocketAddress("127.0.0.1", 53)),)),
    ("listen", "[::1]:53, 0.0.0.0:53", (Listen(SocketAddress("::1", 53)), Listen(SocketAddress("0.0.0.0", 53)))),
    ("listen", "[0:0::1]:15053,localhost:15053", (Listen(SocketAddress("::1", 15053)), LOOPBACK[0])),
    ("name_table", "/etc/istio/table.json", "/etc/istio/table.json"),
    ("domain", "Ns1.svc.Cluster.local.", "ns1.svc.cluster.local"),
    ("namespace", "ns2", "ns2"),
    ("resolv_conf", "/x", "/x"),
    ("forward_timeout", "2s", 2.0),
    ("forward_timeout", "1m", 60.0),
    ("parallel", "true", True),
    ("parallel", "F", False),
    ("cache_size", "0", 0),
    ("cache_max_ttl", "90m", 5400.0),
    ("serve_stale", "0", 0.0),
]
BAD = [
    ("listen", "", "expected a port"), ("listen", "0", "expected a port"), ("listen", "65536", "expected a port"),
    ("listen", "1.2.3:53", "expected a port"), ("listen", "::1:53", "expected a port"),
    ("listen", "[127.0.0.1]:53", "expected a port"), ("listen", "127.0.0.1", "expected a port"),
    ("listen", "example.com:53", "expected a port"), ("listen", "224.0.0.1:53", "expected a port"),
    ("listen", "15053,", "expected a port"), ("listen", "٣", "expected a port"),
    ("listen", ",".join(f"127.0.0.{n}:53" for n in range(1, 18)), "17 addresses, expected at most 16"),
    ("name_table", "", "expected the path of a file"),
    ("domain", "a..b", "expected a domain such as ns1.svc.cluster.local: name 'a..b': an empty label"),
    ("namespace", "a.b", "expected the name of a namespace"),
    ("forward_timeout", "5", "expected a duration such as 5s"),
    ("forward_timeout", "-1s", "expected a duration such as 5s"),
    ("forward_timeout", "1ms", "expected 0.1 to 60 seconds"),
    ("forward_timeout", "2m", "expected 0.1 to 60 seconds"),
    ("parallel", "yes", "expected true or false"),
    ("cache_size", "-1", "expected a number from 0 to 1000000"),
    ("cache_size", "1000001", "expected a number from 0 to 1000000"),
    ("cache_max_ttl", "1000h", "expected 0 to 604800 seconds"),
    ("serve_stale", "x", "expected a duration such as 5s"),
]
BY_FIELD = {setting.field: setting for setting in SETTINGS}


@pytest.mark.parametrize(("field", "text", "value"), VALUES)
def test_value_by_flag_and_by_environment(field: str, text: str, value: object) -> None:
    setting = BY_FIELD[field]
    by_flag = build({**ON, setting.flag: text}, {})
    by_variable = build({}, {"DNS_LISTEN": "15053", setting.variable: text})
    assert getattr(by_flag, field) == getattr(by_variable, field) == value
    assert by_flag == parse(["--dns-listen", "15053"] * (field != "listen") + [f"--{setting.flag}", text]).dns


@pytest.mark.parametrize(("field", "text", "what"), BAD)
def test_bad_value_names_its_source(field: str, text: str, what: str) -> None:
    setting = BY_FIELD[field]
    with pytest.raises(SettingsError) as raised:
        build({**ON, setting.flag: text}, {})
    assert str(raised.value).startswith(f"--{setting.flag} '{text[:200]}': ") and what in str(raised.value)
    with pytest.raises(OptionError, match=f"^error: --{setting.flag} "):
        parse(["--dns-listen", "15053"] * (field != "listen") + [f"--{setting.flag}", text])
    if text:
        with pytest.raises(SettingsError, match=f"^{setting.variable} '"):
            build({}, {"DNS_LISTEN": "15053", setting.variable: text})


def test_the_flag_goes_before_the_variable_and_an_empty_variable_is_none() -> None:
    environment = {"DNS_LISTEN": "1", "DNS_CACHE_SIZE": "7", "DNS_FORWARD_PARALLEL": ""}
    settings = build({"dns-listen": "15053"}, environment)
    assert (settings.listen, settings.cache_size, settings.parallel) == (LOOPBACK, 7, False)


def test_off_without_an_address() -> None:
    """Variables that other programs use as well turn nothing on; a flag that could do nothing is refused."""
    assert build({}, {"DNS_FORWARD_TIMEOUT": "1s"}) == DnsSettings()
    assert not DnsSettings().enabled
    with pytest.raises(SettingsError, match="--dns-domain: without effect, because DNS is off; expected --dns-listen"):
        build({"dns-domain": "a.b"}, {"DNS_FORWARD_TIMEOUT": "1s"})


def test_the_namespace_is_the_domains_first_label() -> None:
    assert build({**ON, "dns-domain": "ns1.svc.cluster.local"}, {}).namespace == "ns1"
    assert build({**ON, "dns-domain": "ns1.svc.cluster.local", "dns-namespace": "x"}, {}).namespace == "x"
    assert build(ON, {}).namespace == ""


@pytest.mark.parametrize(("text", "seconds"), [
    ("0", 0), ("1.5s", 1.5), (".5m", 30), ("1h1m1s1ms1us1ns", 3661.001001001)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


def test_help_lists_flags_with_their_variables() -> None:
    text = " ".join(usage("proxy").split())
    for setting in SETTINGS:
        assert f"--{setting.flag} {setting.type} {setting.help} In the environment: {setting.variable}." in text
    assert len({setting.variable for setting in SETTINGS}) == len(SETTINGS)
