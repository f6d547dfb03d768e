"""Addresses for hosts that have none, so that capture can tell them apart. Pure: service entries in, addresses out.

Two algorithms, both istiod's. `allocate` is the controller of Istio 1.25 and later (pilot/pkg/controllers/ipallocate):
addresses in order, kept in each entry's ``status.addresses``, so that they stay whoever asks next. `hashed_addresses`
is what istiod did before (pilot/pkg/serviceregistry/serviceentry, autoAllocateIPs): from the names alone, without
memory, the same in every istiod that has the same entries.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_NetworkT = TypeVar("_NetworkT", ipaddress.IPv4Network, ipaddress.IPv6Network)

LABEL = "networking.istio.io/enable-autoallocate-ip"
"""``"false"``: no addresses for this entry."""
NONE = "NONE"
DYNAMIC_DNS = "DYNAMIC_DNS"


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """What an Istio ServiceEntry says about addresses.

    ``resolution`` is the API's word (NONE, STATIC, DNS, DNS_ROUND_ROBIN, DYNAMIC_DNS), ``addresses`` what the user
    wrote, ``assigned`` the addresses of each host in ``status.addresses``, ``created`` the creation time in seconds.
    """

    namespace: str
    name: str
    hosts: tuple[str, ...]
    resolution: str = NONE
    addresses: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    assigned: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    created: float = 0.0

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"


# --- in order, kept in the entries ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prefixes:
    """From where addresses are taken (PILOT_IP_AUTOALLOCATE_IPV4_PREFIX and ..._IPV6_PREFIX)."""

    v4: ipaddress.IPv4Network = ipaddress.IPv4Network("240.240.0.0/16")
    v6: ipaddress.IPv6Network = ipaddress.IPv6Network("2001:2::/48")

    @classmethod
    def parse(cls, v4: str, v6: str) -> Prefixes:
        """Two CIDRs. Raises ValueError that says which is wrong. Bits behind the prefix are ignored."""
        return cls(_network("IPv4", ipaddress.IPv4Network, v4), _network("IPv6", ipaddress.IPv6Network, v6))


def _network(what: str, kind: type[_NetworkT], text: str) -> _NetworkT:
    try:
        found = kind(text, strict=False)
    except ValueError:
        found = None
    if found is None or "/" not in text or found.num_addresses < 2:
        raise ValueError(f"{what} prefix {text!r}: a CIDR with room for an address expected, such as {_EXAMPLES[what]}")
    return found


_EXAMPLES = {"IPv4": "240.240.0.0/16", "IPv6": "2001:2::/48"}
DEFAULT_PREFIXES = Prefixes()


@dataclass(frozen=True, slots=True)
class Used:
    """What one run of an allocator remembers: addresses given so far, with their entries, and where to look next.

    Without it the entries' own ``assigned`` is all that is known (a new istiod), and an address that was given up may
    be given out again at once.
    """

    owners: Mapping[Address, str] = field(default_factory=dict)
    next_v4: ipaddress.IPv4Address | None = None
    next_v6: ipaddress.IPv6Address | None = None


@dataclass(frozen=True, slots=True)
class Allocation:
    """``assigned``: for each entry that gets addresses, by its key, the addresses of its hosts (to be kept in its
    status). ``warnings`` tell of conflicts and exhausted prefixes. ``used`` goes into the next `allocate`."""

    assigned: Mapping[str, Mapping[str, tuple[str, ...]]]
    warnings: tuple[str, ...]
    used: Used


class _Pool:
    """Addresses of one prefix."""

    def __init__(self, prefix: Network, owners: dict[Address, str], begin: Address | None) -> None:
        self.prefix = prefix
        self.owners = owners
        self.first = int(prefix.network_address) + 1
        self.last = int(prefix.broadcast_address)
        self.make = type(prefix.network_address)
        # The next one may be just behind the prefix: then the first is tried.
        self.next = self.first if begin is None else int(begin)
        self.count = sum(self.first <= int(one) <= self.last for one in owners if one.version == prefix.version)

    def take(self, owner: str) -> Address | None:
        """The next free address, once around from the last one; None if all are taken."""
        if self.count > self.last - self.first:
            return None
        at = self.next if self.first <= self.next <= self.last else self.first
        while (address := self.make(at)) in self.owners:
            at = at + 1 if at < self.last else self.first
        self.mark(address, owner)
        self.next = at + 1
        return address

    def mark(self, address: Address, owner: str) -> bool:
        """Note whose an address is; False if it is another's. Addresses outside of the prefix are not ours to judge."""
        if address not in self.prefix:
            return True
        if address not in self.owners:
            self.owners[address] = owner
            self.count += int(address) >= self.first
        return self.owners[address] == owner

    @property
    def begin(self) -> Address | None:
        """Where the next search starts; None at the very end of the address space."""
        return self.make(self.next) if self.next < 1 << self.prefix.max_prefixlen else None


def allocate(entries: Iterable[ServiceEntry], prefixes: Prefixes = DEFAULT_PREFIXES, used: Used | None = None,
             ) -> Allocation:
    """Addresses for every host of the entries that should have some.

    A host keeps what it has. When two entries have the same address, a user's own choice wins, then the older entry;
    the other gets new addresses for all its hosts. Entries get theirs in the given order.
    """
    entries = list(entries)
    used = used or Used()
    warnings: list[str] = []
    owners = dict(used.owners)
    v4 = _Pool(prefixes.v4, owners, used.next_v4)
    v6 = _Pool(prefixes.v6, owners, used.next_v6)
    moved = _conflicts(entries, prefixes, warnings)
    for entry in sorted(entries, key=lambda one: one.key in moved):
        for address in (*_parsed(entry.addresses), *_all_assigned(entry)):
            (v4 if address.version == 4 else v6).mark(address, entry.key)
    assigned: dict[str, dict[str, tuple[str, ...]]] = {}
    for entry in entries:
        if not wants_addresses(entry):
            continue
        hosts = assigned[entry.key] = {}
        for host in dict.fromkeys(entry.hosts):
            if host.startswith("*") and entry.resolution != DYNAMIC_DNS:
                continue
            kept = [] if entry.key in moved else [str(one) for one in _parsed(entry.assigned.get(host, ()))]
            hosts[host] = tuple(kept) if kept else tuple(_next(v4, v6, entry, host, warnings))
    next_v4, next_v6 = v4.begin, v6.begin
    assert not isinstance(next_v4, ipaddress.IPv6Address) and not isinstance(next_v6, ipaddress.IPv4Address)
    return Allocation(assigned, tuple(warnings), Used(owners, next_v4, next_v6))


def wants_addresses(entry: ServiceEntry) -> bool:
    """Whether an entry gets addresses: not with addresses of its own, nor resolution NONE (the address that a client
    meant would be lost), nor where its label says no."""
    return (entry.resolution != NONE and not entry.addresses and entry.labels.get(LABEL, "").lower() != "false")


def _next(v4: _Pool, v6: _Pool, entry: ServiceEntry, host: str, warnings: list[str]) -> Iterator[str]:
    for pool in (v4, v6):
        address = pool.take(entry.key)
        if address is None:
            warnings.append(f"{entry.key}: no address left in {pool.prefix} for host {host!r}")
        else:
            yield str(address)


def _conflicts(entries: Sequence[ServiceEntry], prefixes: Prefixes, warnings: list[str]) -> set[str]:
    """The keys of the entries that have to give up what was assigned to them."""
    users: dict[Address, str] = {}
    for entry in entries:
        for address in _parsed(entry.addresses):
            users.setdefault(address, entry.key)
    holders: dict[Address, str] = {}
    moved = set()
    for entry in sorted(entries, key=lambda one: (one.created, one.key)):
        mine = [one for one in _all_assigned(entry) if one in (prefixes.v4 if one.version == 4 else prefixes.v6)]
        for address in mine:
            other = users.get(address) or holders.get(address)
            if other not in (None, entry.key):
                warnings.append(f"{entry.key}: {address} is {other}'s; its hosts get new addresses")
                moved.add(entry.key)
                break
        else:
            holders.update(dict.fromkeys(mine, entry.key))
    return moved


def _all_assigned(entry: ServiceEntry) -> list[Address]:
    return _parsed(one for addresses in entry.assigned.values() for one in addresses)


def _parsed(texts: Iterable[str]) -> list[Address]:
    """The addresses among texts; CIDRs and nonsense are skipped, ::ffff:1.2.3.4 is 1.2.3.4."""
    found: list[Address] = []
    for text in texts:
        try:
            address: Address = ipaddress.ip_address(text)
        except ValueError:
            continue
        found.append(getattr(address, "ipv4_mapped", None) or address)
    return found


# --- from the names ---------------------------------------------------------------------------------------------------

SLOTS = 256 * 254
"""Addresses 240.240.x.y with x of 0..255 and y of 1..254."""
_STEP_PRIME = 65011
_OCTETS = 255


@dataclass(frozen=True, slots=True)
class HashedService:
    """One host of one entry. ``address`` is the user's; with several of them one is enough."""

    namespace: str
    host: str
    resolution: str
    address: str = ""


def hashed_addresses(services: Iterable[HashedService]) -> dict[tuple[str, str], tuple[str, str]]:
    """The IPv4 and IPv6 address of each service that should have one, by namespace and host.

    The order (istiod: of creation) matters only for hosts with the same slot. IPv4 addresses are those of istiod; the
    IPv6 address has both octets in full, ``2001:2::f0f0:190b`` where istiod writes ``2001:2::f0f0:19b``, which is the
    address of another slot too. More than SLOTS services: the last ones get none.
    """
    slots: dict[int, tuple[str, str]] = {}
    for service in services:
        if service.address or service.host.startswith("*") or service.resolution == NONE:
            continue
        if len(slots) >= SLOTS:
            break
        slots[_free_slot(slots, fnv1a_32(f"{service.namespace}/{service.host}".encode()))] = (
            service.namespace, service.host)
    found: dict[tuple[str, str], tuple[str, str]] = {}
    shift = 1
    for slot in sorted(slots):
        # An occupied slot never has .0; stepping over it moves all slots behind it, as in istiod.
        shift += (slot + shift) % _OCTETS == 0
        third, fourth = divmod(slot + shift, _OCTETS)
        found.setdefault(slots[slot], (f"240.240.{third}.{fourth}", str(_hashed_v6(third, fourth))))
    return found


def _hashed_v6(third: int, fourth: int) -> ipaddress.IPv6Address:
    return ipaddress.IPv6Address(int(ipaddress.IPv6Address("2001:2::f0f0:0")) | third << 8 | fourth)


def _free_slot(slots: Mapping[int, object], hashed: int) -> int:
    """Double hashing in 32-bit arithmetic. The second modulus is one less than the first, as in istiod."""
    slot = hashed % SLOTS
    step = _STEP_PRIME - hashed % _STEP_PRIME
    tries = 0
    while slot in slots and tries < 64 * SLOTS:
        tries += 1
        slot = (hashed + tries * step & 0xFFFFFFFF) % (SLOTS - 1)
    # istiod would search for ever where its sequence does not reach the slots that are left.
    return slot if slot not in slots else next(one for one in range(SLOTS) if one not in slots)


def fnv1a_32(data: bytes) -> int:
    """FNV-1a with 32 bits (Go: hash/fnv New32a)."""
    value = 0x811C9DC5
    for byte in data:
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value
