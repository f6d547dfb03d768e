"""The addresses of the pod, which decide between IPv4 and IPv6."""

import ctypes
import ipaddress
import socket
import struct
import time
from collections.abc import Collection, Iterator, Sequence

_IFF_UP = 0x1
_WAIT_S, _WAIT_INTERVAL_S = 120.0, 0.1  # as the real program waits

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class _SockAddr(ctypes.Structure):
    _fields_ = [("family", ctypes.c_ushort), ("data", ctypes.c_ubyte * 26)]


class _IfAddrs(ctypes.Structure):
    """struct ifaddrs of getifaddrs(3)."""


_IfAddrs._fields_ = [
    ("next", ctypes.POINTER(_IfAddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.POINTER(_SockAddr)),
]  # more members follow, none of them ours


def interface_addresses(excluded: Collection[str] = (), *, wait_s: float = _WAIT_S) -> list[str]:
    """Addresses of the interfaces that are up, neither loopback nor link-local, without the `excluded` interfaces.

    An interface with an unspecified address (0.0.0.0) is about to get one: that is waited for, up to `wait_s` seconds.
    Raises OSError.
    """
    until = time.monotonic() + wait_s
    while True:
        found = _all_addresses()
        settled = all(not address.is_unspecified for _, address in found)
        if settled or time.monotonic() >= until:
            return [str(address) for name, address in found if not (address.is_unspecified or name in excluded)]
        time.sleep(_WAIT_INTERVAL_S)


def _all_addresses() -> list[tuple[str, Address]]:
    """(interface, address); Python's standard library has no such list."""
    libc = ctypes.CDLL(None, use_errno=True)
    head = ctypes.POINTER(_IfAddrs)()
    if libc.getifaddrs(ctypes.byref(head)) != 0:
        raise OSError(ctypes.get_errno(), "getifaddrs failed")
    try:
        return list(_walk(head))
    finally:
        libc.freeifaddrs(head)


def _walk(entry: "ctypes._Pointer[_IfAddrs]") -> Iterator[tuple[str, Address]]:
    while entry:
        item = entry.contents
        if item.address and item.flags & _IFF_UP:
            raw = bytes(item.address.contents.data)
            # sockaddr_in: port, address. sockaddr_in6: port, flow label, address.
            if item.address.contents.family == socket.AF_INET:
                address: Address = ipaddress.IPv4Address(raw[2:6])
            elif item.address.contents.family == socket.AF_INET6:
                address = ipaddress.IPv6Address(struct.unpack_from("16s", raw, 6)[0])
            else:
                entry = item.next
                continue
            if not (address.is_loopback or address.is_link_local):
                yield item.name.decode(errors="replace"), address
        entry = item.next


def node_addresses(instance_ip: str, interfaces: Sequence[str]) -> tuple[str, ...]:
    """INSTANCE_IP first when it is one, then those of the interfaces; both loopbacks when there is none at all."""
    found: dict[str, None] = {}
    for text in (instance_ip, *interfaces):
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            continue
        mapped = getattr(address, "ipv4_mapped", None)
        found[str(mapped or address)] = None
    return tuple(found) or ("127.0.0.1", "::1")


def is_address(text: str) -> bool:
    """Whether it is an IP address as `node_addresses` takes it."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def ip_version(addresses: Sequence[str]) -> str:
    """`v6` when every address is IPv6, else `v4`: the proxy's --local-address-ip-version."""
    return "v6" if all(":" in address for address in addresses) else "v4"


def loopbacks(addresses: Sequence[str]) -> tuple[str, str]:
    """Where the proxy's admin port is asked: the loopback of the pod's family first, then the other one.

    Literals, because `localhost` resolves to one family only in some images while an admin listens on one only.
    """
    return ("::1", "127.0.0.1") if ip_version(addresses) == "v6" else ("127.0.0.1", "::1")
