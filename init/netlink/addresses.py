"""Addresses of interfaces (rtnetlink(7): RTM_NEWADDR and its kin)."""

import ipaddress
import socket
import struct

from init.errors import KernelError
from init.netlink.wire import CREATE, EXCL, ROUTE, UNSUPPORTED, Netlink, attribute, unpack
from init.values import IPAddress

LO = "lo"
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

_NEW, _DELETE, _GET = 20, 21, 22
_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface
_ADDRESS, _LOCAL = 1, 2  # both are there and differ on a point-to-point interface: the second is this end's


def local_addresses() -> list[IPAddress]:
    """Every address of this network namespace in the kernel's order: IPv4 before IPv6. Raises KernelError."""
    try:
        return [address.ip for _, address in _all(socket.AF_UNSPEC)]
    except OSError as error:
        raise KernelError(f"cannot list the addresses of this network namespace: {error.strerror}") from error


def on_lo() -> list[Interface]:
    """The IPv6 addresses of lo with their prefix lengths; none on a kernel without IPv6. Raises OSError."""
    try:
        index = socket.if_nametoindex(LO)
        found = _all(socket.AF_INET6)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return []
        raise
    # A kernel without IPv6 lists the addresses of all families.
    return [address for interface, address in found if interface == index and address.version == 6]


def add_to_lo(address: Interface) -> None:
    """`ip address add ADDRESS dev lo`. Raises OSError: EEXIST if lo has it."""
    # lo does no duplicate address detection, so the flag that forbids it is not needed (and would show in `ip`).
    _change(_NEW, CREATE | EXCL, address)


def delete_from_lo(address: Interface) -> None:
    """`ip address del ADDRESS dev lo`. Raises OSError: EADDRNOTAVAIL if lo does not have it."""
    _change(_DELETE, 0, address)


def _change(kind: int, flags: int, address: Interface) -> None:
    with Netlink(ROUTE) as netlink:
        netlink.ask(kind, request(address, socket.if_nametoindex(LO)), flags)


def request(address: Interface, index: int) -> bytes:
    """The body of a request that adds or deletes an address."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    head = _IFADDRMSG.pack(family, address.network.prefixlen, 0, 0, index)
    return head + attribute(_LOCAL, address.packed) + attribute(_ADDRESS, address.packed)


def _all(family: int) -> list[tuple[int, Interface]]:
    with Netlink(ROUTE) as netlink:
        messages = netlink.dump(_GET, _IFADDRMSG.pack(family, 0, 0, 0, 0))
    return [read for message in messages if (read := parse(message.body)) is not None]


def parse(body: bytes) -> tuple[int, Interface] | None:
    """Index of the interface and address of one answer; None for a family without IP addresses. Raises OSError."""
    (_, bits, _, _, index), attributes = unpack(_IFADDRMSG, body)
    packed = attributes.get(_LOCAL, attributes.get(_ADDRESS, b""))
    if len(packed) not in (4, 16) or bits > 8 * len(packed):
        return None
    return index, ipaddress.ip_interface((packed, bits))
