"""Tables and chains of nf_tables (linux/netfilter/nf_tables.h). Its numbers are in network order."""

import errno
import socket
import struct
from collections.abc import Mapping

from init.errors import KernelError
from init.netlink.wire import ACK, NETFILTER, REQUEST, UNSUPPORTED, Message, Netlink, attribute, unpack

_FAMILIES = {"inet": 1, "ip": 2, "ip6": 10}
_SUBSYSTEM = 10
_BATCH_BEGIN, _BATCH_END = 16, 17
_GETTABLE, _DELTABLE, _GETCHAIN, _GETGEN = ((_SUBSYSTEM << 8) | number for number in (1, 2, 4, 16))
_NFGENMSG = struct.Struct("!BBH")  # family, version, resource
_TABLE_NAME, _TABLE_USE = 1, 3
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_USE = 1, 3, 4, 5, 6
_ACCEPT = 1
_GEN_ID = 1
_BATCH_GENID = 1


def chains_of(family: str) -> Mapping[str, frozenset[str]]:
    """Table -> names of its chains, for a family `ip`, `ip6` or `inet` of this network namespace.

    Empty on a kernel without nf_tables. Raises KernelError.
    """
    header = _NFGENMSG.pack(_FAMILIES[family], 0, 0)
    found: dict[str, set[str]] = {}
    try:
        with Netlink(NETFILTER) as netlink:
            for table in map(_attributes, netlink.dump(_GETTABLE, header)):
                found.setdefault(_name(table.get(_TABLE_NAME)), set())
            # A kernel in which nobody ever made a table is not asked twice.
            for chain in map(_attributes, netlink.dump(_GETCHAIN, header) if found else ()):
                found.setdefault(_name(chain.get(_CHAIN_TABLE)), set()).add(_name(chain.get(_CHAIN_NAME)))
    except OSError as error:
        # EINVAL: netfilter's netlink is there, nf_tables is not.
        if error.errno in UNSUPPORTED | {errno.EINVAL}:
            return {}
        advice = ": run as root with the capability NET_ADMIN" if error.errno == errno.EPERM else ""
        raise KernelError(f"cannot list the nftables tables of family {family}: {error.strerror}{advice}") from error
    return {table: frozenset(chains) for table, chains in found.items()}


def remove_blank_table(version: int, table: str) -> bool:
    """Delete the nft table `table` of IPv4 or IPv6 if it decides nothing. Returns whether it was deleted.

    It decides nothing when all it holds is base chains that have no rule and accept. The deletion is bound to the
    generation of the rule set that was looked at: if anybody changes anything in between, the kernel refuses it. A
    kernel without nf_tables, or without such a table, is no error.
    """
    header = _NFGENMSG.pack(_FAMILIES["ip" if version == 4 else "ip6"], 0, 0)
    everything = _NFGENMSG.pack(socket.AF_UNSPEC, 0, 0)
    name = attribute(_TABLE_NAME, table.encode() + b"\0")
    try:
        with Netlink(NETFILTER) as netlink:
            generation = _attributes(netlink.ask(_GETGEN, everything)[0]).get(_GEN_ID, b"")
            use = _attributes(netlink.ask(_GETTABLE, header + name)[0]).get(_TABLE_USE, b"")
            chains = [
                chain
                for chain in map(_attributes, netlink.dump(_GETCHAIN, header))
                if _name(chain.get(_CHAIN_TABLE)) == table
            ]
            if int.from_bytes(use, "big") != len(chains) or not all(map(_is_blank, chains)):
                return False
            batch = _NFGENMSG.pack(socket.AF_UNSPEC, 0, _SUBSYSTEM)
            netlink.exchange(
                (_BATCH_BEGIN, REQUEST, batch + attribute(_BATCH_GENID, generation)),
                (_DELTABLE, REQUEST | ACK, header + name),
                (_BATCH_END, REQUEST, batch),
            )
            return True
    except (OSError, IndexError):
        return False


def _is_blank(chain: Mapping[int, bytes]) -> bool:
    accepts = int.from_bytes(chain.get(_CHAIN_POLICY, b""), "big") == _ACCEPT
    return _CHAIN_HOOK in chain and accepts and not any(chain.get(_CHAIN_USE, b"\1"))


def _attributes(message: Message) -> Mapping[int, bytes]:
    return unpack(_NFGENMSG, message.body)[1]


def _name(value: bytes | None) -> str:
    return (value or b"").partition(b"\0")[0].decode("utf-8", "replace")
