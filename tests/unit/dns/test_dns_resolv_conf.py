"""resolv.conf: what glibc takes and what not, with dnspython as second opinion on ordinary files."""

from __future__ import annotations

from pathlib import Path

import dns.resolver
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.model import SocketAddress
from proxy.dns.resolv_conf import (
    MAX_SEARCH,
    MAX_SERVERS,
    parse,
    parse_server,
    without_ourselves,
)

POD = """search ns1.svc.cluster.local svc.cluster.local cluster.local corp.example
nameserver 10.96.0.10
options ndots:5
"""

CASES = {
    "a pod's": (POD, ["10.96.0.10"], ["ns1.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"],
                []),
    "empty": ("", [], [], []),
    "comments": ("# a\n;b\n\n   \nnameserver 1.2.3.4 # kube-dns\n", ["1.2.3.4"], [], []),
    "no newline at the end, tabs, CR": ("nameserver\t1.2.3.4  \r\nsearch\ta.b\tc.d", ["1.2.3.4"], ["a.b", "c.d"], []),
    "IPv6 with scope": ("nameserver 2001:DB8::1\nnameserver fe80::1%eth0\nnameserver fe80::2%3\n",
                        ["2001:db8::1", "fe80::1%eth0", "fe80::2%3"], [], []),
    "more than glibc's three": ("".join(f"nameserver 10.0.0.{i}\n" for i in range(5)),
                                [f"10.0.0.{i}" for i in range(5)], [], []),
    "one twice": ("nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.1\n", ["10.0.0.1", "10.0.0.2"], [], []),
    "short forms of inet_aton": ("nameserver 10.1\nnameserver 0x7f.1\n", ["10.0.0.1", "127.0.0.1"], [], []),
    "last of domain and search wins": ("search a.b c.d\ndomain x.y z.w\n", [], ["x.y"], []),
    "last of search wins": ("domain x.y\nsearch a.b\nsearch c.d e.f\n", [], ["c.d", "e.f"], []),
    "dots and case": ("search Foo.Bar. . baz.\n", [], ["foo.bar", "baz"], []),
    "sortlist": ("sortlist 130.155.160.0/255.255.240.0\n", [], [], []),
    "not an address": ("nameserver dns.example\nnameserver 1.2.3.4\n", ["1.2.3.4"], [],
                       ["f:1: nameserver 'dns.example' is ignored: expected an IPv4 or IPv6 address"]),
    "scope on IPv4": ("\nnameserver 1.2.3.4%eth0\n", [], [],
                      ["f:2: nameserver '1.2.3.4%eth0' is ignored: expected an IPv4 or IPv6 address"]),
    "empty scope": ("nameserver fe80::1%\n", [], [],
                    ["f:1: nameserver 'fe80::1%' is ignored: expected an IPv4 or IPv6 address"]),
    "port": ("nameserver 1.2.3.4:53\n", [], [],
             ["f:1: nameserver '1.2.3.4:53' is ignored: expected an IPv4 or IPv6 address"]),
    "no value": ("nameserver\nsearch\n", [], [], ["f:1: nameserver without a value is ignored",
                                                 "f:2: search without a value is ignored"]),
    "indented": (" nameserver 1.2.3.4\n", [], [],
                 ["f:1: 'nameserver' is ignored: expected one of domain, nameserver, options, search, sortlist at the "
                  "beginning of a line"]),
    "unknown": ("nameservers 1.2.3.4\n", [], [],
                ["f:1: 'nameservers' is ignored: expected one of domain, nameserver, options, search, sortlist at the "
                 "beginning of a line"]),
    "not a domain": (f"search a..b {'x' * 64}.c good.example\n", [], ["good.example"],
                     ["f:1: search domain is ignored: name 'a..b': an empty label",
                      f"f:1: search domain is ignored: name '{'x' * 64}.c': a label of 64 bytes, at most 63 expected"]),
}


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str) -> None:
    text, servers, search, warnings = CASES[name]
    found = parse(text, "f")
    assert [server.host for server in found.servers] == servers
    assert {server.port for server in found.servers} <= {53}
    assert list(found.search) == search
    assert list(found.warnings) == warnings


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case[3] and case[1] and "glibc" not in
                                  name and "inet_aton" not in name and "twice" not in name and "scope" not in name])
def test_dnspython_reads_the_same(name: str, tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(CASES[name][0])
    other = dns.resolver.Resolver(str(path))
    found = parse(CASES[name][0])
    assert [server.host for server in found.servers] == other.nameservers
    if found.search:
        assert [domain + "." for domain in found.search] == [domain.to_text() for domain in other.search]


def test_bounds() -> None:
    found = parse("".join(f"nameserver 10.0.0.{i}\n" for i in range(MAX_SERVERS + 1)) +
                  "search " + " ".join(f"d{i}.example" for i in range(MAX_SEARCH + 1)), "f")
    assert len(found.servers) == MAX_SERVERS
    assert len(found.search) == MAX_SEARCH
    assert found.warnings == (f"f:17: nameserver 10.0.0.16 is ignored: at most {MAX_SERVERS} servers are used",
                              f"f:18: search domain d32.example is ignored: at most {MAX_SEARCH} are used")
    assert len(parse("x\n" * 1000).warnings) == 32


@given(st.text() | st.lists(st.sampled_from(["nameserver", "search", "domain", " ", "\t", "\n", "\0", "\udcff",
                                             "1.2.3.4", "::1", "%", "a.b", "\\", "\\9", "#"])).map("".join))
def test_whatever_the_text_it_is_read(text: str) -> None:
    found = parse(text)
    for server in found.servers:
        assert parse_server(server.host) == server


OURSELVES = [
    # server, listening, ours
    ("127.0.0.1:53", "127.0.0.1:53", True),
    ("127.0.0.1:53", "127.0.0.1:15053", False),
    ("10.96.0.10:53", "127.0.0.1:53", False),
    ("0.0.0.0:53", "127.0.0.1:53", True),
    ("[::]:53", "[::1]:53", True),
    ("[::ffff:127.0.0.1]:53", "127.0.0.1:53", True),
    ("[0:0::1]:53", "[::1]:53", True),
    ("127.0.0.53:53", "0.0.0.0:53", True),
    ("192.0.2.1:53", "0.0.0.0:53", False),
    ("192.0.2.1:53", "[::]:53", False),
    ("127.0.0.1:53", "[::]:53", True),
]


def address(text: str) -> SocketAddress:
    host, _, port = text.rpartition(":")
    return SocketAddress(host.strip("[]"), int(port))


@pytest.mark.parametrize(("server", "listening", "ours"), OURSELVES)
def test_servers_that_are_ourselves(server: str, listening: str, ours: bool) -> None:
    other = address("198.51.100.7:53")
    kept, refused = without_ourselves([address(server), other], [address(listening)])
    assert (kept, refused) == (([other], [address(server)]) if ours else ([address(server), other], []))
