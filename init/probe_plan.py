"""What `--run-validation` tries: settings -> probes as data. `probe` runs them.

A probe is one TCP connection, made as some uid and gid, of which the rules say at which port of this pod it arrives.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from itertools import chain
from typing import Literal

from init.rules import PASSTHROUGH, Version
from init.settings import Settings
from init.values import IPAddress, unmapped

Direction = Literal["inbound", "outbound"]
Span = tuple[int, int]  # first and last of consecutive ports or addresses

LISTEN = {4: "127.0.0.1", 6: "::1"}  # where REDIRECT sends what this pod itself connects
DNS_PORT = 53
DEFAULT_PORT = 15002  # of outbound probes when --iptables-probe-port is 0
MAX_ID = 65534  # `nobody`; the ids down from it are likely to exist in any user namespace
# Reserved for documentation (RFC 5737, 3849, 9637): nobody can answer if a probe is not captured.
DOCUMENTATION = {4: ("192.0.2.1", "198.51.100.1", "203.0.113.1"), 6: ("2001:db8::1", "3fff::1")}
# What is never tried: this host, addresses without meaning, those that need a zone, groups, reserved ones.
NEVER = {
    4: ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3"),
    6: ("::/96", "::ffff:0:0/96", "fe80::/10", "ff00::/8"),
}
BITS = {4: 32, 6: 128}


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom the kernel takes for the creator of a socket: what owner matches look at."""

    uid: int
    gid: int

    def __str__(self) -> str:
        return f"uid {self.uid} gid {self.gid}"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the machine answers: who this process is and whom it can become, the addresses of this network namespace,
    and the interface that a packet to an address leaves by (None: no route, or the address is this host's own)."""

    identity: Identity
    can_become: Callable[[Identity], bool]
    addresses: Sequence[IPAddress]
    interface_to: Callable[[IPAddress], str | None]


@dataclass(frozen=True, slots=True)
class Probe:
    """A connection to `address` and `port`, made by `identity`, that the rules send to port `arrives_at`."""

    direction: Direction
    version: Version
    identity: Identity
    source: str  # address to connect from, or empty: the kernel's choice
    address: IPAddress
    port: int
    arrives_at: int

    @property
    def name(self) -> str:
        """Direction and family, for a line of log."""
        return f"{self.direction} IPv{self.version}"

    @property
    def destination(self) -> str:
        """Address and port as they are written together."""
        return endpoint(self.address, self.port)


@dataclass(frozen=True, slots=True)
class Skipped:
    """Why a direction is not probed. `harmless`: there is nothing to probe, or another's part to do so."""

    direction: Direction
    version: Version
    reason: str
    harmless: bool

    def __str__(self) -> str:
        return f"{self.direction} IPv{self.version} is not probed: {self.reason}"


def endpoint(address: IPAddress | str, port: int) -> str:
    """`address:port`, an IPv6 address in brackets."""
    return f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"


def choose_probes(settings: Settings, around: Surroundings) -> tuple[list[Probe], list[Skipped]]:
    """Both directions of every family that has rules: what to try, and what cannot be tried."""
    versions: tuple[Version, ...] = (4, 6) if settings.ipv6 else (4,)
    chosen = [choose(settings, version, around) for version in versions for choose in (inbound, outbound)]
    return [one for one in chosen if isinstance(one, Probe)], [one for one in chosen if isinstance(one, Skipped)]


def inbound(settings: Settings, version: Version, around: Surroundings) -> Probe | Skipped:
    """The proxy calls its own pod by an address that is not loopback: rule 12a of the recipe sends that to the inbound
    capture port. (What comes from outside takes PREROUTING; no connection of this pod to itself can try that chain.)
    """

    def skipped(reason: str) -> Skipped:
        return Skipped("inbound", version, reason, False)

    if "lo" in settings.exclude_interfaces:
        return skipped("lo is an excluded interface")
    port = settings.probe_port
    exempt = _first_free(port, port, _excluded_ports(settings)) is None
    if exempt or port == settings.inbound_tunnel_port:
        return skipped(f"port {port} is exempt from capture: choose another with --iptables-probe-port")
    loopback = ip_network(settings.loopback(version), strict=False)
    own = [address for address in map(unmapped, around.addresses) if _is_global(address, version)]
    passthrough = ip_address(PASSTHROUGH[version].partition("/")[0])
    address = next((address for address in (passthrough, *own) if address not in loopback), None)
    if address is None:
        return skipped(f"ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR {loopback} covers every address of this pod")
    identity = _proxy(settings, around.identity)
    if not around.can_become(identity):
        return skipped(
            f"{around.identity} is not the proxy and cannot become {identity}: run this as one of them, or as root "
            "with the capabilities SETUID and SETGID"
        )
    return Probe("inbound", version, identity, LISTEN[version], address, port, settings.inbound_capture_port)


def outbound(settings: Settings, version: Version, around: Surroundings) -> Probe | Skipped:
    """An application calls somebody outside that the settings capture."""

    def skipped(reason: str) -> Skipped:
        return Skipped("outbound", version, reason, True)

    targets = captured_targets(settings, version, around.addresses)
    first = next(targets, None)
    if first is None:
        return skipped("these settings capture no destination that can be tried")
    identity = _application(settings, around.identity)
    if identity is None:
        return skipped("these settings capture only groups that are the proxy's own")
    if not around.can_become(identity):
        return skipped(f"what {around.identity} sends is not captured, and it cannot become {identity}")
    excluded: set[str] = set()
    for address, port in chain((first,), targets):
        interface = around.interface_to(address)
        if interface in settings.exclude_interfaces:
            excluded.add(interface)
        elif interface is not None:
            return Probe("outbound", version, identity, "", address, port, settings.proxy_port)
    if excluded:
        return skipped(f"what is captured leaves by the excluded interface {' or '.join(sorted(excluded))}")
    return skipped(f"there is no route to a captured destination such as {endpoint(*first)}")


def captured_targets(
    settings: Settings, version: Version, addresses: Sequence[IPAddress]
) -> Iterator[tuple[IPAddress, int]]:
    """Destinations that `settings` capture, the most harmless first: addresses for documentation, then one in each
    captured range, then neighbours of this pod's own `addresses` (they need no default route)."""
    bits = BITS[version]
    everywhere = (0, 2**bits - 1)
    captured = [everywhere]
    if settings.outbound_ranges is not None:
        captured = [_span_of(cidr.text) for cidr in settings.outbound_ranges if cidr.version == version]
    taken = [_span_of(text) for text in (*NEVER[version], settings.loopback(version))]
    taken += [_span_of(cidr.text) for cidr in settings.outbound_ranges_exclude if cidr.version == version]
    closed_addresses, closed_ports = _merged(taken), _excluded_ports(settings)
    start = settings.probe_port or DEFAULT_PORT
    any_port = _first_free(start, 65535, closed_ports) or _first_free(1, start, closed_ports)
    for ranges, port in ((captured, any_port), ([everywhere], _included_port(settings, closed_ports))):
        if port is None:
            continue
        open_addresses = _merged(ranges)
        for address in map(ip_address, DOCUMENTATION[version]):
            if _is_within(int(address), open_addresses) and not _is_within(int(address), closed_addresses):
                yield address, port
        for first, last in ranges:
            # The first address of a network names the network, and the last may be its broadcast address.
            number = _first_free(first + 1 if last - first > 1 else first, last, closed_addresses)
            if number is not None:
                yield _address(number, version), port
        for own in map(unmapped, addresses):
            for number in (int(own) ^ 1, int(own) ^ 2) if _is_global(own, version) else ():
                if _is_within(number, open_addresses) and not _is_within(number, closed_addresses):
                    yield _address(number, version), port


def _proxy(settings: Settings, own: Identity) -> Identity:
    """Whose calls to its own pod are captured: the first uid's. Everybody else's return at its rule 12b, which is
    absent only when a loopback range is captured."""
    shared = any(cidr.is_loopback for cidr in settings.outbound_ranges or ())
    is_any = own.uid in settings.proxy_uids or own.gid in settings.proxy_gids
    if own.uid == settings.proxy_uids[0] or (shared and is_any):
        return own
    return Identity(settings.proxy_uids[0], settings.proxy_gids[0])


def _application(settings: Settings, own: Identity) -> Identity | None:
    """An identity that is not the proxy's and whose group is captured: this process's own as far as possible."""
    others = range(MAX_ID, -1, -1)
    groups = (own.gid, *others)
    exempt = set(settings.owner_groups_exclude)
    if settings.owner_groups is not None:
        groups = (own.gid, *settings.owner_groups) if own.gid in settings.owner_groups else settings.owner_groups
        exempt = set()  # both together: Istio ignores it
    exempt.update(settings.proxy_gids)
    uid = next((uid for uid in (own.uid, *others) if uid not in settings.proxy_uids), None)
    gid = next((gid for gid in groups if gid not in exempt), None)
    return None if uid is None or gid is None else Identity(uid, gid)


def _is_global(address: IPAddress, version: Version) -> bool:
    """Whether it is an address of that family by which others can call this pod."""
    own = (address.is_loopback, address.is_link_local, address.is_multicast, address == ip_address("::6"))
    return address.version == version and not any(own)


def _excluded_ports(settings: Settings) -> list[Span]:
    ports = [_ports(item) for item in settings.outbound_ports_exclude]
    if settings.redirect_dns:
        ports.append((DNS_PORT, DNS_PORT))  # may go where DNS goes
    return _merged(ports)


def _included_port(settings: Settings, excluded: list[Span]) -> int | None:
    """A port that is captured whatever the address."""
    found = (_first_free(*_ports(item), excluded) for item in settings.outbound_ports)
    return next((port for port in found if port is not None), None)


def _ports(item: str) -> Span:
    first, _, last = item.partition(":")
    return int(first), int(last or first)


def _span_of(cidr: str) -> Span:
    network = ip_network(cidr, strict=False)
    return int(network.network_address), int(network.broadcast_address)


def _address(number: int, version: Version) -> IPAddress:
    return ip_address(number.to_bytes(BITS[version] // 8, "big"))


def _merged(spans: Sequence[Span]) -> list[Span]:
    """The same numbers in ascending spans that neither overlap nor touch."""
    merged: list[Span] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def _first_free(first: int, last: int, taken: list[Span]) -> int | None:
    """The first number of first..last that is in no span of `taken` (merged)."""
    below = bisect_right(taken, first, key=lambda span: span[0]) - 1
    if below >= 0:
        first = max(first, taken[below][1] + 1)
    return first if first <= last else None


def _is_within(number: int, spans: list[Span]) -> bool:
    return bool(spans) and _first_free(number, number, spans) is None
