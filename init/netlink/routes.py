"""Routes of one table, and the one that keeps packets in this namespace (rtnetlink(7): RTM_NEWROUTE and its kin)."""

import errno
import socket
import struct
from dataclasses import dataclass

from init.netlink.addresses import LO
from init.netlink.rules import FAMILIES
from init.netlink.wire import CREATE, EXCL, ROUTE, UNSUPPORTED, Netlink, as_number, number, unpack
from init.rules import Version

_NEW, _DELETE, _GET = 24, 25, 26
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, lengths of to and from, tos, table, protocol, scope, type, flags
_OIF, _METRIC, _METRICS, _CACHEINFO, _TABLE, _PREF = 4, 6, 8, 12, 15, 20
_UNNAMED = {_OIF, _METRIC, _METRICS, _CACHEINFO, _TABLE, _PREF}  # all that a route to an interface may say
_LOCAL = 2  # type of a route that ends in this namespace
_BY_OPERATOR = 3  # RTPROT_BOOT: what `ip` writes
_HOST, _ANY_SCOPE = 254, 255
_CLONED = 0x200  # flag of what the kernel remembers of single destinations


@dataclass(frozen=True, slots=True)
class Route:
    """One route. `keeps_all`: it is `local default dev lo`, so that every packet that gets here stays."""

    version: Version
    table: int
    metric: int
    keeps_all: bool


def of_table(version: Version, table: int) -> list[Route]:
    """The routes of a table; none of a table or a family that does not exist. Raises OSError."""
    family = FAMILIES[version]
    try:
        lo = socket.if_nametoindex(LO)
        with Netlink(ROUTE) as netlink:
            messages = netlink.dump(_GET, _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0) + number(_TABLE, table))
    except OSError as error:
        if error.errno in UNSUPPORTED | {errno.ENOENT}:
            return []
        raise
    # Kernels before 4.20 list all tables and, where there is no IPv6, all families.
    routes = (parse(version, message.body, lo) for message in messages if message.body[:1] == bytes([family]))
    return [route for route in routes if route is not None and route.table == table]


def add_local_default(version: Version, table: int, metric: int = 0) -> None:
    """`ip route add local default dev lo table TABLE`. Raises OSError: EEXIST if the table has a default route."""
    scope = _HOST if version == 4 else 0
    with Netlink(ROUTE) as netlink:
        netlink.ask(_NEW, request(version, table, metric, scope, socket.if_nametoindex(LO)), CREATE | EXCL)


def delete_local_default(version: Version, table: int, metric: int = 0) -> None:
    """`ip route del local default dev lo table TABLE`; of any metric if it is 0. Raises OSError: ESRCH if absent."""
    with Netlink(ROUTE) as netlink:
        netlink.ask(_DELETE, request(version, table, metric, _ANY_SCOPE, socket.if_nametoindex(LO)))


def request(version: Version, table: int, metric: int, scope: int, lo: int) -> bytes:
    """The body of a request that adds or deletes the route `local default` by the interface with the index `lo`."""
    head = _RTMSG.pack(FAMILIES[version], 0, 0, 0, 0, _BY_OPERATOR, scope, _LOCAL, 0)
    rank = number(_METRIC, metric) if metric else b""
    return head + number(_TABLE, table) + number(_OIF, lo) + rank


def parse(version: Version, body: bytes, lo: int) -> Route | None:
    """The route of one answer; None for what the kernel only remembers. Raises OSError."""
    (_, to, source, tos, table, _, _, kind, flags), attributes = unpack(_RTMSG, body)
    if flags & _CLONED:
        return None
    value = {key: as_number(attributes[key]) for key in (_OIF, _METRIC, _TABLE) if key in attributes}
    plain = not (to or source or tos or attributes.keys() - _UNNAMED)
    return Route(
        version, value.get(_TABLE, table), value.get(_METRIC, 0), plain and kind == _LOCAL and value.get(_OIF) == lo
    )
