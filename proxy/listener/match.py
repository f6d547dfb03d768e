"""Filter-chain match: the criteria of all chains of a listener compiled into one decision tree.

The criteria are looked at in Envoy's fixed order; at each the most specific entry that fits is followed, and a later
miss never comes back (FilterChainManagerImpl::findFilterChain). A criterion that no chain of a branch sets has no node.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from proxy.config.model import ANY_SOURCE, EXTERNAL, SAME_IP_OR_LOOPBACK, FilterChainMatch, IPNetwork

if TYPE_CHECKING:
    from proxy.listener.connection import Connection

L = TypeVar("L")

Node = Callable[["Connection"], L | None]
"""Finds the leaf for a connection, None when nothing matches."""

Rest = Sequence[tuple[FilterChainMatch, L]]


class MatchError(ValueError):
    """Two chains match the same connections."""


def compile_matches(entries: Rest[L]) -> Node[L]:
    """The tree over (criteria, leaf) pairs; MatchError when two entries cannot be told apart."""
    return _compile(entries, 0)


def address_bits(host: str) -> tuple[int, int]:
    """An IP literal as (number, width in bits)."""
    if ":" in host:
        # A scope is not part of what prefixes are compared with.
        return int.from_bytes(socket.inet_pton(socket.AF_INET6, host.partition("%")[0]), "big"), 128
    return int.from_bytes(socket.inet_pton(socket.AF_INET, host), "big"), 32


def is_same_ip_or_loopback(connection: Connection) -> bool:
    """The connection comes from this machine (Envoy: Utility::isSameIpOrLoopback)."""
    remote = connection.remote.host
    return remote == connection.local.host or remote.startswith("127.") or remote == "::1"


class _Prefixes(Generic[L]):
    """Longest-prefix lookup by address family."""

    def __init__(self, by_network: Iterable[tuple[IPNetwork | None, Node[L]]], address: Callable[[Connection], str],
                 ) -> None:
        tables: dict[int, dict[int, dict[int, Node[L]]]] = {32: {}, 128: {}}
        self._any: Node[L] = _nothing
        for network, node in by_network:
            if network is None:
                self._any = node
            else:
                bits = network.max_prefixlen
                shift = bits - network.prefixlen
                tables[bits].setdefault(shift, {})[int(network.network_address) >> shift] = node
        self._tables = {bits: sorted(by_shift.items()) for bits, by_shift in tables.items()}
        self._address = address

    def __call__(self, connection: Connection) -> L | None:
        number, bits = address_bits(self._address(connection))
        for shift, table in self._tables[bits]:
            node = table.get(number >> shift)
            if node is not None:
                return node(connection)
        return self._any(connection)


def _nothing(_: Connection) -> None:
    return None


def _exact(nodes: dict[object, Node[L]], value: Callable[[Connection], object], unset: object) -> Node[L]:
    other = nodes.pop(unset, _nothing)
    get = nodes.get

    def find(connection: Connection) -> L | None:
        return get(value(connection), other)(connection)

    return find


def _server_name(nodes: dict[object, Node[L]]) -> Node[L]:
    other = nodes.pop("", _nothing)
    exact = {cast(str, name): node for name, node in nodes.items()}

    def find(connection: Connection) -> L | None:
        name = connection.server_name
        node = exact.get(name)
        while node is None and name:
            # "*.example.com" is any depth below example.com, not example.com itself.
            name = name.partition(".")[2]
            node = exact.get(f"*.{name}") if name else None
        return (node or other)(connection)

    return find


def _source_type(nodes: dict[object, Node[L]]) -> Node[L]:
    other = nodes.get(ANY_SOURCE, _nothing)
    local = nodes.get(SAME_IP_OR_LOOPBACK, other)
    external = nodes.get(EXTERNAL, other)

    def find(connection: Connection) -> L | None:
        return (local if is_same_ip_or_loopback(connection) else external)(connection)

    return find


def _destination_prefixes(nodes: dict[object, Node[L]]) -> Node[L]:
    return _Prefixes(cast("Iterable[tuple[IPNetwork | None, Node[L]]]", nodes.items()), lambda c: c.local.host)


def _source_prefixes(nodes: dict[object, Node[L]]) -> Node[L]:
    return _Prefixes(cast("Iterable[tuple[IPNetwork | None, Node[L]]]", nodes.items()), lambda c: c.remote.host)


_STEPS: tuple[tuple[object, Callable[[FilterChainMatch], Sequence[object]], Callable[..., Node[object]]], ...] = (
    # (value of "unset", keys of a chain, how to look up)
    (None, lambda m: () if m.destination_port is None else (m.destination_port,),
     lambda nodes: _exact(nodes, lambda c: c.local.port, None)),
    (None, lambda m: m.prefix_ranges, _destination_prefixes),
    ("", lambda m: tuple(n.lower() for n in m.server_names), _server_name),
    ("", lambda m: (m.transport_protocol,), lambda nodes: _exact(nodes, lambda c: c.transport_protocol, "")),
    ("", lambda m: m.application_protocols, lambda nodes: _exact(nodes, lambda c: c.application_protocol, "")),
    (None, lambda m: m.direct_source_prefix_ranges, _source_prefixes),
    (ANY_SOURCE, lambda m: (m.source_type,), _source_type),
    (None, lambda m: m.source_prefix_ranges, _source_prefixes),
    (None, lambda m: m.source_ports, lambda nodes: _exact(nodes, lambda c: c.remote.port, None)),
)


def _compile(entries: Rest[L], step: int) -> Node[L]:
    if step == len(_STEPS):
        if len(entries) > 1:
            raise MatchError(f"{len(entries)} filter chains have the same matching rules")
        leaf = entries[0][1]
        return lambda _: leaf
    unset, keys_of, make = _STEPS[step]
    groups: dict[object, list[tuple[FilterChainMatch, L]]] = {}
    for match, leaf in entries:
        for key in dict.fromkeys(keys_of(match) or (unset,)):
            groups.setdefault(key, []).append((match, leaf))
    nodes = {key: _compile(group, step + 1) for key, group in groups.items()}
    if groups.keys() == {unset}:
        return nodes[unset]
    return cast("Node[L]", make(nodes))
