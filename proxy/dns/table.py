"""What names mean: the name table with its short names, search domains, wildcards and reverse names, ready to be asked.

Which names a host has is pilot-agent's rule (pkg/dns/client/dns.go): the host itself; for a service of the proxy's own
cluster also ``short.namespace.``, ``short.namespace.svc.``, ``alt_hosts`` and, in the proxy's namespace, ``short.``.

A name with one of the pod's search domains behind it is a CNAME of the name without it, so that a client's walk through
its search list ends with the first reply. The original stores one such name a host, for the first search domain; here
the domain is taken off when somebody asks. What differs from the original, each for a name that means something else:

- A name that is in the table is never a CNAME, whoever else's search domain would make it one.
- ``x.y.svc.cluster.local`` is a service of the cluster: if it is not in the table, only upstream servers know it.
- Behind a search domain other than the first stands no single label, and none of the cluster's names unless the domain
  is the cluster's: ``db.prod`` plus ``corp.example`` may well be a machine. A client that means the short name has
  asked with the first search domain before.
- Whether a host is in the proxy's cluster is decided by whole labels, not by the end of a string.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from proxy.config.errors import ConfigError, ConfigErrors
from proxy.dns.message import MAX_LABEL, MAX_NAME, labels, name_to_text, name_to_wire, parent
from proxy.dns.name_table import KUBERNETES, Host, NameTable, Notes

MAX_SEARCH = 32
"""Search domains that are used (Kubernetes allows as many)."""
MAX_BYTES = 48 * 1024 * 1024
"""Of a table on its way to a worker (proxy.ipc.MAX_MESSAGE is 64 MiB); 100,000 services take about 30 MB."""

HOST, SHORT, SHORT_NAMESPACE, SHORT_SVC, ALT_HOST = range(5)
"""Why a name is one of a host's, the strongest first: a host's own name beats other hosts' aliases, and these stand in
the order in which a search list would find them."""
_RULES = ("host", "short name", "short name and namespace", "short name, namespace and svc", "alt_hosts")
_RULE_BITS = 3
_RULE_MASK = (1 << _RULE_BITS) - 1

_STAR = b"\x01*"
_LENGTHS = tuple(bytes((length,)) for length in range(MAX_LABEL + 1))
_IN_ADDR_ARPA = name_to_wire("in-addr.arpa")
_IP6_ARPA = name_to_wire("ip6.arpa")
_NIBBLES = {b"0123456789abcdef"[value]: value for value in range(16)}


class Record:
    """What a name has. ``cname`` is the name it is an alias of, None if the addresses are its own.

    ``v4`` and ``v6`` are packed addresses one after the other, ``host`` is the NDS host, ``rule`` a text that says why
    the name is one of its names.
    """

    __slots__ = ("cname", "host", "kubernetes", "rule", "v4", "v6")

    def __init__(self, host: str, kubernetes: bool, v4: bytes, v6: bytes, rule: str, cname: bytes | None) -> None:
        self.host = host
        self.kubernetes = kubernetes
        self.v4 = v4
        self.v6 = v6
        self.rule = rule
        self.cname = cname

    def __repr__(self) -> str:
        alias = f" -> {name_to_text(self.cname)}" if self.cname is not None else ""
        return f"<Record {self.host} ({self.rule}){alias} A={len(self.v4) // 4} AAAA={len(self.v6) // 16}>"


class Found(NamedTuple):
    """A record, the table's key that matched (for a wildcard with its ``*`` label), and whether it is a wildcard."""

    record: Record
    key: bytes
    wildcard: bool


class Table:
    """Immutable. ``names`` maps keys to a host's number and rule, ``wildcards`` the same by the key behind ``*.``,
    ``pointers`` a packed address to the number of the host that a reverse query is answered with.
    """

    __slots__ = ("_hosts", "_search", "_search_wire", "_service_domain", "names", "pointers", "warnings", "wildcards")

    def __init__(self, hosts: Sequence[tuple[str, bool, bytes, bytes]], names: dict[bytes, int],
                 wildcards: dict[bytes, int], pointers: dict[bytes, int], search: Sequence[bytes],
                 service_domain: bytes, warnings: Sequence[str] = ()) -> None:
        self._hosts = hosts
        self.names = names
        self.wildcards = wildcards
        self.pointers = pointers
        self._search_wire = tuple(search)
        self._service_domain = service_domain
        cluster = _cluster_domain(service_domain)
        self._search = tuple((domain, number == 0, cluster is not None and is_below(domain, cluster))
                             for number, domain in enumerate(search))
        self.warnings = tuple(warnings)

    def __len__(self) -> int:
        """Names, without those that a search domain makes."""
        return len(self.names) + len(self.wildcards)

    def __repr__(self) -> str:
        return f"<Table {len(self._hosts)} hosts, {len(self)} names, {len(self.pointers)} addresses>"

    # --- asking -------------------------------------------------------------------------------------------------------

    def find(self, key: bytes) -> Found | None:
        """What a name is. Exact names first, then search domains in their order, then the longest wildcard."""
        found = self._find_exact(key)
        return self._find_wildcard(key) if found is None and self.wildcards else found

    def _find_exact(self, key: bytes) -> Found | None:
        number = self.names.get(key)
        if number is not None:
            return Found(self._record(number), key, False)
        for search in self._search:
            domain = search[0]
            if key.endswith(domain):
                target = key[:-len(domain)] + b"\0"
                number = self.names.get(target)
                if number is not None and self._stands_for(key, target, number, search):
                    return Found(self._record(number, target, domain), target, False)
        return None

    def _find_wildcard(self, key: bytes) -> Found | None:
        behind = [search for search in self._search if key.endswith(search[0])]
        remainder = parent(key)
        while len(remainder) > 1:
            number = self.wildcards.get(remainder)
            if number is not None:
                return Found(self._record(number), _STAR + remainder, True)
            for search in behind:
                domain = search[0]
                if remainder.endswith(domain):
                    wildcard = remainder[:-len(domain)] + b"\0"
                    number = self.wildcards.get(wildcard)
                    if number is not None:
                        target = key[:-len(domain)] + b"\0"
                        # What stands for itself is no wildcard's, even where it must not be a CNAME's target.
                        if self._find_exact(target) is None and self._stands_for(key, target, number, search):
                            return Found(self._record(number, target, domain), _STAR + wildcard, True)
            remainder = parent(remainder)
        return None

    def pointer(self, key: bytes) -> str | None:
        """The host of an address, by the key of its name under in-addr.arpa or ip6.arpa."""
        address = address_of_reverse(key)
        number = self.pointers.get(address) if address is not None else None
        return None if number is None else self._hosts[number][0]

    def hosts(self) -> Iterator[str]:
        """The names of all hosts."""
        return (host[0] for host in self._hosts)

    def _record(self, number: int, cname: bytes | None = None, domain: bytes = b"") -> Record:
        host = self._hosts[number >> _RULE_BITS]
        rule = _RULES[number & _RULE_MASK]
        if cname is not None:
            rule += f", search domain {name_to_text(domain)}"
        return Record(*host, rule, cname)

    def _stands_for(self, key: bytes, target: bytes, number: int, search: tuple[bytes, bool, bool]) -> bool:
        """Whether ``key``, which is ``target`` and a search domain, is a CNAME of it (see the top of this file)."""
        domain, first, of_cluster = search
        if target.endswith(domain) or self._is_service(key):
            return False  # an absolute name once more, or a name of the cluster's own
        if first:
            return True
        kubernetes = self._hosts[number >> _RULE_BITS][1]
        return target[target[0] + 1] != 0 and (of_cluster or not kubernetes)

    def _is_service(self, key: bytes) -> bool:
        """``name.namespace.svc.cluster.local``: two labels before the domain of services."""
        domain = self._service_domain
        if not domain or not key.endswith(domain):
            return False
        end = len(key) - len(domain)
        second = key[0] + 1
        return second < end and second + key[second] + 1 == end

    # --- from main to a worker ----------------------------------------------------------------------------------------

    def to_wire(self) -> tuple[Any, ...]:
        """Plain containers for marshal. They are the table's own, so that neither end has work for each name."""
        return self._hosts, self.names, self.wildcards, self.pointers, self._search_wire, self._service_domain

    @classmethod
    def from_wire(cls, value: tuple[Any, ...]) -> Table:
        """The table that `to_wire` made; without its warnings."""
        return cls(*value)


def compile_table(table: NameTable, domain: str, namespace: str, search_domains: Iterable[str]) -> Table:
    """A table for a proxy in ``domain`` (``ns1.svc.cluster.local``) and ``namespace``, with a pod's search domains.

    ``warnings`` of the table tell which hosts and search domains were left out because they are no DNS names. Raises
    ConfigErrors if the table would take more than MAX_BYTES, MessageError if ``domain`` is no name.
    """
    notes = Notes()
    service_domain = _without_namespace(domain, namespace)
    service_key = _key(service_domain) if service_domain else b""
    hosts: list[tuple[str, bool, bytes, bytes]] = []
    names: dict[bytes, int] = {}
    wildcards: dict[bytes, int] = {}
    for host in table.hosts:
        number = len(hosts) << _RULE_BITS
        try:
            own = _key(host.name)
            if own in (b"\0", _STAR + b"\0"):
                raise ValueError(f"name {host.name!r}: it would be every name")
            if not host.name.isprintable():
                raise ValueError(f"name {host.name[:300]!r}: characters that must not get into a log")
        except ValueError as error:
            notes.add(f"host left out: {error}")
            continue
        hosts.append((host.name, host.registry == KUBERNETES, host.v4, host.v6))
        for rule, key in _names_of(host, own, service_key, namespace):
            where, at = (wildcards, key[2:]) if key.startswith(_STAR) else (names, key)
            before = where.get(at)
            if before is None or before & _RULE_MASK > rule:
                where[at] = number | rule
            elif rule == HOST:
                other = hosts[before >> _RULE_BITS][0]
                notes.add(f"host {host.name!r}: the same name as host {other!r}, which is used")
    pointers = _pointers(hosts)
    result = Table(hosts, names, wildcards, pointers, _search(search_domains, notes), service_key,
                   (*table.warnings, *notes.all()))
    size = (sum(map(len, names)) + sum(map(len, wildcards)) + 10 * len(result) + 26 * len(pointers)
            + sum(4 * len(host[0]) + len(host[2]) + len(host[3]) + 24 for host in hosts))
    if size > MAX_BYTES:
        raise ConfigErrors([ConfigError("table", f"{len(result)} names take {size} bytes, at most {MAX_BYTES}")])
    return result


def _names_of(host: Host, own: bytes, service_domain: bytes, namespace: str) -> Iterator[tuple[int, bytes]]:
    """All names of a host, each with its rule. An alias that is no DNS name is none."""
    yield HOST, own
    if host.registry != KUBERNETES or not service_domain or not is_below(own, service_domain):
        return
    if host.shortname and host.namespace:
        try:
            short = _key(host.shortname)[:-1]
            with_namespace = short + _key(host.namespace)
            if len(with_namespace) + 1 + service_domain[0] <= MAX_NAME:
                yield SHORT_SVC, with_namespace[:-1] + service_domain[:service_domain[0] + 1] + b"\0"
                yield SHORT_NAMESPACE, with_namespace
            if host.namespace == namespace:
                yield SHORT, short + b"\0"
        except ValueError:
            pass
    for alias in host.alt_hosts:
        try:
            key = _key(alias)
        except ValueError:
            continue
        if key not in (b"\0", _STAR + b"\0"):
            yield ALT_HOST, key


def _key(text: str) -> bytes:
    """The key of a name. Raises ValueError (MessageError), as proxy.dns.message.name_to_wire, which is slower."""
    if text.isascii() and "\\" not in text:
        parts = text.lower().removesuffix(".").encode().split(b".")
        if all(0 < len(part) <= MAX_LABEL for part in parts):
            key = b"".join([_LENGTHS[len(part)] + part for part in parts]) + b"\0"
            if len(key) <= MAX_NAME:
                return key
    return name_to_wire(text).lower()


def is_below(key: bytes, domain: bytes) -> bool:
    """Whether a name is a domain's or the domain itself."""
    while len(key) > len(domain):
        key = parent(key)
    return key == domain


def _without_namespace(domain: str, namespace: str) -> str:
    """``svc.cluster.local`` of ``ns1.svc.cluster.local``."""
    first, _, rest = domain.removesuffix(".").partition(".")
    return rest if first == namespace else domain


def _cluster_domain(service_domain: bytes) -> bytes | None:
    """``cluster.local`` of ``svc.cluster.local``; None without a domain."""
    if not service_domain:
        return None
    above = parent(service_domain)
    return above if above[0] else service_domain


def _search(search_domains: Iterable[str], notes: Notes) -> list[bytes]:
    """The keys of the search domains, each once; the root adds nothing to a name."""
    found: dict[bytes, None] = {}
    for text in search_domains:
        try:
            key = _key(text) if text not in ("", ".") else b"\0"
        except ValueError as error:
            notes.add(f"search domain left out: {error}")
            continue
        if len(key) > 1:
            found[key] = None
    if len(found) > MAX_SEARCH:
        notes.add(f"{len(found)} search domains, the first {MAX_SEARCH} are used")
    return list(found)[:MAX_SEARCH]


# --- addresses to names -----------------------------------------------------------------------------------------------


def _pointers(hosts: Sequence[tuple[str, bool, bytes, bytes]]) -> dict[bytes, int]:
    """For each address the host that it points to.

    Of several the one that says most: a service of the cluster before others, then the one with the fewest addresses
    (a pod's own name before its headless service), then the first by name. One only, because C libraries disagree on
    which of several is used. Hosts of other registries name only addresses that nobody on the Internet has.
    """
    best: dict[bytes, tuple[bool, int, int]] = {}
    for number, (name, kubernetes, v4, v6) in enumerate(hosts):
        if name.startswith("*"):
            continue
        for packed, size in ((v4, 4), (v6, 16)):
            count = len(packed) // size
            for at in range(0, len(packed), size):
                address = packed[at:at + size]
                rank = (not kubernetes, count, number)
                if (before := best.get(address)) is not None and before < rank:
                    continue
                if _may_point(address, kubernetes):
                    best[address] = rank
    return {address: rank[2] for address, rank in best.items()}


_V4_PRIVATE = ((0x0A000000, 8), (0xAC100000, 12), (0xC0A80000, 16), (0x64400000, 10), (0xC6120000, 15), (0xF0000000, 4))
"""RFC 1918, RFC 6598 (100.64/10), RFC 2544 (198.18/15) and 240/4, where auto-allocated addresses are."""
_V4_NEVER = ((0, 8), (0x7F000000, 8), (0xA9FE0000, 16), (0xE0000000, 4), (0xFFFFFFFF, 32))
"""This host, loopback, link-local, multicast, broadcast: not an address of one service."""


def _may_point(address: bytes, kubernetes: bool) -> bool:
    if len(address) == 4:
        number = int.from_bytes(address, "big")
        if any(number >> 32 - bits == prefix >> 32 - bits for prefix, bits in _V4_NEVER):
            return False
        return kubernetes or any(number >> 32 - bits == prefix >> 32 - bits for prefix, bits in _V4_PRIVATE)
    if address[0] == 0xFF or address[:2] == b"\xfe\x80" or address[:15] == bytes(15):
        return False
    # fc00::/7 (RFC 4193) and 2001:2::/48 (RFC 5180), where auto-allocated addresses are.
    return kubernetes or address[0] & 0xFE == 0xFC or address[:6] == b"\x20\x01\x00\x02\x00\x00"


def address_of_reverse(key: bytes) -> bytes | None:
    """The packed address of a whole name under in-addr.arpa or ip6.arpa, None for another name."""
    if key.endswith(_IN_ADDR_ARPA):
        octets = labels(key)[-3::-1]
        if len(octets) != 4 or not all(label.isdigit() and len(label) <= 3 for label in octets):
            return None
        numbers = [int(label) for label in octets]
        # "01" is no decimal octet as reverse zones have it (RFC 1035 section 3.5)
        if any(number > 255 or (len(label) > 1 and label[0] == 0x30)
               for number, label in zip(numbers, octets, strict=True)):
            return None
        return bytes(numbers)
    if key.endswith(_IP6_ARPA) and len(key) == 64 + len(_IP6_ARPA):
        nibbles = [_NIBBLES.get(key[at + 1], -1) if key[at] == 1 else -1 for at in range(62, -2, -2)]
        if -1 not in nibbles:
            return bytes(high << 4 | low for high, low in zip(nibbles[::2], nibbles[1::2], strict=True))
    return None
