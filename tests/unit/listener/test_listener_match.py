"""Filter-chain match: which of several chains a connection gets, as real Envoy decides."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, cast

import pytest

from proxy.config.model import EXTERNAL, SAME_IP_OR_LOOPBACK, FilterChainMatch, SocketAddress
from proxy.listener.connection import Connection
from proxy.listener.match import MatchError, compile_matches


def match(**criteria: Any) -> FilterChainMatch:
    for name in ("prefix_ranges", "source_prefix_ranges", "direct_source_prefix_ranges"):
        if name in criteria:
            criteria[name] = tuple(ip_network(text) for text in criteria[name])
    return FilterChainMatch(**criteria)


@dataclass(frozen=True)
class Peer:
    """A connection as far as matching looks at it."""

    local: str = "10.0.0.1"
    port: int = 80
    remote: str = "192.0.2.7"
    remote_port: int = 40000
    transport: str = "raw_buffer"
    application: str = ""
    server_name: str = ""

    def connection(self) -> Connection:
        made = Connection(cast(socket.socket, None), SocketAddress(self.remote, self.remote_port),
                          SocketAddress(self.local, self.port), cast(Any, None), 0, 0.0)
        made.transport_protocol = self.transport
        made.application_protocol = self.application
        made.server_name = self.server_name
        return made


ANY = match()

CASES: list[tuple[str, dict[str, FilterChainMatch], list[tuple[Peer, str | None]]]] = [
    ("a single chain without criteria", {"any": ANY}, [(Peer(), "any"), (Peer(local="::1", remote="::1"), "any")]),
    ("destination port", {"443": match(destination_port=443), "any": ANY},
     [(Peer(port=443), "443"), (Peer(port=80), "any")]),
    ("no chain", {"443": match(destination_port=443)}, [(Peer(port=80), None)]),
    ("the longest prefix",
     {"8": match(prefix_ranges=["10.0.0.0/8"]), "32": match(prefix_ranges=["10.0.0.1/32"]), "any": ANY},
     [(Peer(), "32"), (Peer(local="10.0.0.2"), "8"), (Peer(local="11.0.0.1"), "any"), (Peer(local="::1"), "any")]),
    ("several prefixes", {"x": match(prefix_ranges=["10.0.0.0/8", "192.168.0.0/16"])},
     [(Peer(local="192.168.3.4"), "x"), (Peer(local="192.169.0.1"), None)]),
    ("a prefix of everything is more than none",
     {"all4": match(prefix_ranges=["0.0.0.0/0"]), "any": ANY},
     [(Peer(), "all4"), (Peer(local="fe80::1"), "any")]),
    ("IPv6 prefixes", {"64": match(prefix_ranges=["2001:db8::/64"]), "any": ANY},
     [(Peer(local="2001:db8::5"), "64"), (Peer(local="2001:db8:0:1::5"), "any"),
      (Peer(local="2001:db8::5%eth0"), "64")]),
    ("no way back from the port to chains without one",
     {"port": match(destination_port=80, prefix_ranges=["10.1.0.0/16"]), "any": ANY}, [(Peer(), None)]),
    ("a transport protocol goes before application protocols",
     {"raw": match(transport_protocol="raw_buffer"), "http": match(application_protocols=("http/1.1",))},
     [(Peer(application="http/1.1"), "raw")]),
    ("application protocols",
     {"http": match(application_protocols=("http/1.1", "h2c")), "any": ANY},
     [(Peer(application="http/1.1"), "http"), (Peer(application="h2c"), "http"),
      (Peer(application="http/1.0"), "any"), (Peer(), "any")]),
    ("transport and application",
     {"tls": match(transport_protocol="tls", application_protocols=("h2c",)),
      "raw": match(transport_protocol="raw_buffer", application_protocols=("h2c",)),
      "any": ANY},
     [(Peer(application="h2c"), "raw"), (Peer(transport="tls", application="h2c"), "tls"),
      (Peer(transport="tls"), None), (Peer(transport="quic"), "any")]),
    ("server names",
     {"exact": match(server_names=("a.foo.com",)), "deep": match(server_names=("*.b.foo.com",)),
      "wild": match(server_names=("*.foo.com",)), "any": ANY},
     [(Peer(server_name="a.foo.com"), "exact"), (Peer(server_name="x.foo.com"), "wild"),
      (Peer(server_name="c.b.foo.com"), "deep"), (Peer(server_name="z.c.b.foo.com"), "deep"),
      (Peer(server_name="b.foo.com"), "wild"), (Peer(server_name="foo.com"), "any"), (Peer(), "any")]),
    ("source type",
     {"local": match(source_type=SAME_IP_OR_LOOPBACK), "far": match(source_type=EXTERNAL)},
     [(Peer(), "far"), (Peer(remote="10.0.0.1"), "local"), (Peer(remote="127.3.2.1"), "local"),
      (Peer(remote="::1", local="::1"), "local")]),
    ("source type or any", {"local": match(source_type=SAME_IP_OR_LOOPBACK), "any": ANY},
     [(Peer(), "any"), (Peer(remote="127.0.0.1"), "local")]),
    ("source prefix and port",
     {"net": match(source_prefix_ranges=["192.0.2.0/24"]),
      "port": match(source_prefix_ranges=["192.0.2.0/24"], source_ports=(40000, 40001)),
      "host": match(source_prefix_ranges=["192.0.2.9/32"], source_ports=(1,))},
     [(Peer(), "port"), (Peer(remote_port=40001), "port"), (Peer(remote_port=5), "net"),
      (Peer(remote="192.0.2.9"), None), (Peer(remote="192.0.3.1"), None)]),
    ("the direct source goes before the source type",
     {"direct": match(direct_source_prefix_ranges=["192.0.2.0/24"], source_type=SAME_IP_OR_LOOPBACK), "any": ANY},
     [(Peer(), None), (Peer(remote="10.9.9.9"), "any")]),
    ("one chain under several keys",
     {"x": match(destination_port=80, application_protocols=("a", "b"), source_ports=(1, 2)), "any": ANY},
     [(Peer(application="b", remote_port=2), "x"), (Peer(application="b", remote_port=3), None),
      (Peer(port=81), "any")]),
]


@pytest.mark.parametrize(("chains", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_match(chains: dict[str, FilterChainMatch], expected: list[tuple[Peer, str | None]]) -> None:
    find = compile_matches([(criteria, name) for name, criteria in chains.items()])
    assert [find(peer.connection()) for peer, _ in expected] == [name for _, name in expected]
    backwards = compile_matches([(criteria, name) for name, criteria in reversed(chains.items())])
    assert [backwards(peer.connection()) for peer, _ in expected] == [name for _, name in expected]


def test_two_chains_with_the_same_criteria_are_refused() -> None:
    same = match(destination_port=80, application_protocols=("a", "b"))
    with pytest.raises(MatchError, match="2 filter chains have the same matching rules"):
        compile_matches([(same, 1), (match(destination_port=80, application_protocols=("b",)), 2)])
