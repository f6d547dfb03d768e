"""Where the kernel would send a packet: the question of `ip route get`, by netlink."""

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from init.errors import KernelError
from init.values import IPAddress

TIMEOUT = 5.0  # seconds for one answer

_HEADER = struct.Struct("=LHHLL")  # length, type, flags, sequence, port
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, prefix lengths (to, from), tos, table, protocol, scope, type, flags
_ROUTE, _REQUEST, _ERROR, _GETROUTE = 0, 0x1, 2, 26
_DST, _OIF, _PREFSRC, _MARK, _UID = 1, 4, 7, 16, 25
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
    body += _attribute(_DST, destination.packed) + _attribute(_MARK, struct.pack("=I", mark))
    if uid is not None:
        body += _attribute(_UID, struct.pack("=I", uid))
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _ROUTE) as sock:
            sock.settimeout(TIMEOUT)
            sock.send(_HEADER.pack(_HEADER.size + len(body), _GETROUTE, _REQUEST, 1, 0) + body)
            answer = sock.recv(1 << 16)
        length, kind, _, _, _ = _HEADER.unpack_from(answer)
        if kind == _ERROR:
            (code,) = struct.unpack_from("=i", answer, _HEADER.size)
            raise OSError(-code, os.strerror(-code))
        route = _RTMSG.unpack_from(answer, _HEADER.size)
        attributes = dict(_attributes(answer[_HEADER.size + _RTMSG.size : length]))
        (index,) = struct.unpack("=I", attributes[_OIF])
        interface = socket.if_indextoname(index)
    except (OSError, struct.error, KeyError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "an answer without an interface"
        raise KernelError(f"no packet can be sent to {destination}: {reason}: see `ip route`") from error
    source = attributes.get(_PREFSRC)
    return Route(interface, ip_address(source) if source else None, route[7] == _LOCAL)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            return
        yield kind & 0x3FFF, data[4:length]
        data = data[(length + 3) & ~3 :]
