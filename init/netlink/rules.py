"""Policy rules, those of `ip rule` (rtnetlink(7), linux/fib_rules.h)."""

import socket
import struct
from dataclasses import dataclass

from init.netlink.wire import CREATE, ROUTE, UNSUPPORTED, Netlink, as_number, number, unpack
from init.rules import Version

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
WHOLE = 0xFFFFFFFF  # the mask of a rule that compares the whole mark

_NEW, _DELETE, _GET = 32, 33, 34
_HEADER = struct.Struct("=BBBBBBBBI")  # family, lengths of to and from, tos, table, two reserved, action, flags
_LOOKUP = 1  # the action of a rule that leads to a table
_PRIORITY, _MARK, _NO_GROUP, _NO_PREFIX, _TABLE, _MASK, _PAD, _PROTOCOL = 6, 10, 13, 14, 15, 16, 18, 21
_UNSET = 0xFFFFFFFF  # of the two that suppress routes


@dataclass(frozen=True, slots=True)
class Rule:
    """One policy rule. `plain`: it looks at the mark, if at anything, leads to a table and does nothing else."""

    version: Version
    priority: int
    mark: int
    mask: int
    table: int
    plain: bool


def all_rules(version: Version) -> list[Rule]:
    """The rules of a family in the order in which they are asked; none where the kernel has none. Raises OSError."""
    family = FAMILIES[version]
    try:
        with Netlink(ROUTE) as netlink:
            messages = netlink.dump(_GET, _HEADER.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return []
        raise
    return [parse(version, message.body) for message in messages if message.body[:1] == bytes([family])]


def add(version: Version, mark: int, table: int, priority: int | None = None) -> None:
    """`ip rule add fwmark MARK lookup TABLE`; without a priority the kernel takes the one before all others.

    That there is such a rule is no error. Raises OSError.
    """
    # Not EXCL: the kernel then takes a rule that looks at more, of the same priority, for the same one.
    with Netlink(ROUTE) as netlink:
        netlink.ask(_NEW, request(version, mark, table, priority), CREATE)


def delete(version: Version, mark: int, table: int, priority: int) -> None:
    """Delete the first rule of this priority, mark and table, whatever else it looks at.

    Raises OSError: ENOENT if there is none.
    """
    with Netlink(ROUTE) as netlink:
        netlink.ask(_DELETE, request(version, mark, table, priority))


def request(version: Version, mark: int, table: int, priority: int | None) -> bytes:
    """The body of a request that adds or deletes a rule."""
    head = _HEADER.pack(FAMILIES[version], 0, 0, 0, 0, 0, 0, _LOOKUP, 0)
    rank = b"" if priority is None else number(_PRIORITY, priority)
    return head + rank + number(_MARK, mark) + number(_MASK, WHOLE) + number(_TABLE, table)


def parse(version: Version, body: bytes) -> Rule:
    """The rule of one answer. Raises OSError."""
    (_, to, source, tos, table, _, _, action, flags), attributes = unpack(_HEADER, body)
    value = {kind: as_number(data) for kind, data in attributes.items()}
    others = attributes.keys() - {_PRIORITY, _MARK, _NO_GROUP, _NO_PREFIX, _TABLE, _MASK, _PAD, _PROTOCOL}
    suppresses = any(value.get(kind, _UNSET) != _UNSET for kind in (_NO_GROUP, _NO_PREFIX))
    mark = value.get(_MARK, 0)
    return Rule(
        version,
        value.get(_PRIORITY, 0),
        mark,
        value.get(_MASK, WHOLE if mark else 0),
        value.get(_TABLE, table),
        action == _LOOKUP and not (to or source or tos or flags or others or suppresses),
    )
