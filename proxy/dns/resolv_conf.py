"""resolv.conf as glibc reads it (resolv.conf(5)): whom to ask, and the search list that the clients on this host use.

Differences, all on purpose: more than glibc's three servers count (pilot-agent asks every one); without a
``nameserver`` line there is no server (glibc takes 127.0.0.1, which captured traffic cannot mean); nothing is silent:
what is not understood becomes a warning with its line. ``options`` and ``sortlist`` are for the clients' resolvers.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from proxy.config.model import SocketAddress
from proxy.dns.message import MessageError, name_to_wire

PORT = 53
MAX_BYTES = 64 * 1024
MAX_SERVERS = 16
MAX_SEARCH = 32
"""Search domains; Kubernetes allows a pod as many."""
_KEYWORDS = frozenset(("nameserver", "search", "domain"))
_NOT_OURS = frozenset(("options", "sortlist"))
_BLANK = " \t"


@dataclass(frozen=True, slots=True)
class ResolvConf:
    """``servers`` in the file's order; ``search``: domains in lower case, without the dot at the end; ``warnings``:
    one text for each line that was not used."""

    servers: tuple[SocketAddress, ...] = ()
    search: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def parse(text: str, path: str = "resolv.conf") -> ResolvConf:
    """What the text says; never raises. ``path`` is for the warnings."""
    servers: dict[SocketAddress, None] = {}
    search: tuple[str, ...] = ()
    warnings: list[str] = []

    def warn(number: int, what: str) -> None:
        if len(warnings) < 32:
            warnings.append(f"{path}:{number}: {what}")

    for number, line in enumerate(text.split("\n"), 1):
        # A comment only begins a line; "nameserver 10.0.0.10 # kube-dns" works because the rest is not looked at.
        if line[:1] in ("#", ";") or not line.strip():
            continue
        keyword, *values = line.split()
        if line[0] in _BLANK or keyword not in _KEYWORDS:
            if keyword not in _NOT_OURS:
                known = ", ".join(sorted(_KEYWORDS | _NOT_OURS))
                warn(number, f"{keyword[:40]!r} is ignored: expected one of {known} at the beginning of a line")
        elif not values:
            warn(number, f"{keyword} without a value is ignored")
        elif keyword == "nameserver":
            address = parse_server(values[0])
            if address is None:
                warn(number, f"nameserver {values[0][:60]!r} is ignored: expected an IPv4 or IPv6 address")
            elif len(servers) >= MAX_SERVERS and address not in servers:
                warn(number, f"nameserver {values[0][:60]} is ignored: at most {MAX_SERVERS} servers are used")
            else:
                servers[address] = None
        else:
            # The last of all domain and search lines wins.
            search, complaints = _domains(values[:1] if keyword == "domain" else values)
            for complaint in complaints:
                warn(number, complaint)
    return ResolvConf(tuple(servers), search, tuple(warnings))


def parse_server(text: str) -> SocketAddress | None:
    """An address as glibc takes it: also ``10.1`` and the other forms of inet_aton, and ``fe80::1%eth0``."""
    address, percent, scope = text.partition("%")
    if ":" not in address:
        try:
            packed = socket.inet_aton(address)
        except (OSError, ValueError):
            return None
        return None if percent else SocketAddress(socket.inet_ntoa(packed), PORT)
    try:
        packed = socket.inet_pton(socket.AF_INET6, address)
    except (OSError, ValueError):
        return None
    if percent and not (0 < len(scope) <= 16 and scope.isprintable()):
        return None
    return SocketAddress(socket.inet_ntop(socket.AF_INET6, packed) + percent + scope, PORT)


def _domains(values: Iterable[str]) -> tuple[tuple[str, ...], list[str]]:
    found: dict[str, None] = {}
    complaints = []
    for value in values:
        domain = value.lower().removesuffix(".")
        if not domain:
            continue  # "search .": names as they are
        try:
            name_to_wire(domain)
        except MessageError as error:
            complaints.append(f"search domain is ignored: {error}")
            continue
        if len(found) >= MAX_SEARCH:
            complaints.append(f"search domain {domain[:60]} is ignored: at most {MAX_SEARCH} are used")
            continue
        found[domain] = None
    return tuple(found), complaints


# --- servers that are ourselves ---------------------------------------------------------------------------------------


def without_ourselves(servers: Iterable[SocketAddress], listening: Iterable[SocketAddress]) -> tuple[
        list[SocketAddress], list[SocketAddress]]:
    """Servers to ask, and those that are where we listen: asking them would be asking ourselves, for ever."""
    own = [(_canonical(address.host), address.port) for address in listening]
    kept: list[SocketAddress] = []
    refused: list[SocketAddress] = []
    for server in servers:
        host = _canonical(server.host)
        # The unspecified address as a destination reaches the loopback one.
        host = _LOOPBACK.get(host, host)
        ours = any(port == server.port and (own_host == host or (own_host in _LOOPBACK and _is_local(host)))
                   for own_host, port in own)
        (refused if ours else kept).append(server)
    return kept, refused


_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def _canonical(host: str) -> str:
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)


def _is_local(host: str) -> bool:
    """Whether this host has the address: only then a socket can be bound to it."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)
        with socket.socket(found[0][0], socket.SOCK_DGRAM) as probe:
            probe.bind(found[0][4])
    except OSError:
        return False
    return True
