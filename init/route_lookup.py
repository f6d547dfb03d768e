"""Where the kernel would send a packet: the question of `ip route get` (rtnetlink(7): RTM_GETROUTE)."""

import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address

from init.errors import KernelError
from init.netlink.wire import ROUTE, Netlink, as_number, attribute, number, unpack
from init.values import IPAddress

_GET = 26
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, lengths of to and from, tos, table, protocol, scope, type, flags
_TO, _OIF, _SOURCE, _MARK, _UID = 1, 4, 7, 16, 25
_LOCAL = 2  # type of a route that ends in this namespace


@dataclass(frozen=True, slots=True)
class Route:
    """`source` is the address that a socket bound to none gets; `is_local` says that the packet stays here."""

    interface: str
    source: IPAddress | None
    is_local: bool


def lookup(destination: IPAddress, mark: int = 0, uid: int | None = None) -> Route:
    """The route of a packet that this namespace sends. Raises KernelError where it has none."""
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    body = _RTMSG.pack(family, destination.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    body += attribute(_TO, destination.packed) + number(_MARK, mark)
    body += b"" if uid is None else number(_UID, uid)
    try:
        with Netlink(ROUTE) as netlink:
            messages = netlink.ask(_GET, body)
        if not messages:
            raise OSError(0, "an empty answer of the kernel")
        head, attributes = unpack(_RTMSG, messages[0].body)
        interface = socket.if_indextoname(as_number(attributes.get(_OIF, b"")))
    except OSError as error:
        raise KernelError(
            f"no packet can be sent to {destination}: {error.strerror or error}: see `ip route`"
        ) from error
    source = attributes.get(_SOURCE, b"")
    return Route(interface, ip_address(source) if len(source) in (4, 16) else None, head[7] == _LOCAL)
