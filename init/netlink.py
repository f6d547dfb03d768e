"""The few questions to the kernel for which no iptables binary is needed."""

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator

from init.errors import KernelError
from init.settings import IPAddress

TIMEOUT = 5.0  # seconds for one answer
_BUFFER = 1 << 16
_MAX_MESSAGES = 100_000  # of one answer

_HEADER = struct.Struct("=LHHLL")  # length, type, flags, sequence, port
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE = 2, 3

_ROUTE = 0
_GETADDR = 22
_IFADDRMSG = struct.Struct("=BBBBI")
_IFA_ADDRESS, _IFA_LOCAL = 1, 2

_NETFILTER = 12
_NFTABLES = 10
_BATCH_BEGIN, _BATCH_END = 16, 17
_GETTABLE, _DELTABLE, _GETCHAIN, _GETGEN = ((_NFTABLES << 8) | number for number in (1, 2, 4, 16))
_NFGENMSG = struct.Struct("!BBH")
_TABLE_NAME, _TABLE_USE = 1, 3
_CHAIN_TABLE, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_USE = 1, 4, 5, 6
_ACCEPT = 1
_GEN_ID = 1
_BATCH_GENID = 1


def local_addresses() -> list[IPAddress]:
    """Every address of this network namespace in the kernel's order: IPv4 before IPv6. Raises KernelError."""
    request = _message(_GETADDR, _REQUEST | _DUMP, _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0), 1)
    try:
        with _open(_ROUTE) as sock:
            sock.send(request)
            bodies = list(_answers(sock))
    except OSError as error:
        raise KernelError(f"cannot list the addresses of this network namespace: {error.strerror}") from error
    found = []
    for body in bodies:
        attributes = dict(_attributes(body[_IFADDRMSG.size :]))
        packed = attributes.get(_IFA_LOCAL, attributes.get(_IFA_ADDRESS))
        if packed is not None and len(packed) in (4, 16):
            found.append(ipaddress.ip_address(packed))
    return found


def remove_blank_table(version: int, table: str) -> bool:
    """Delete the nft table `table` of IPv4 or IPv6 if it decides nothing. Returns whether it was deleted.

    It decides nothing when all it holds is base chains that have no rule and accept. The deletion is bound to the
    generation of the rule set that was looked at: if anybody changes anything in between, the kernel refuses it. A
    kernel without nf_tables, or without such a table, is no error.
    """
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    header = _NFGENMSG.pack(family, 0, 0)
    name = _attribute(_TABLE_NAME, table.encode() + b"\0")
    try:
        with _open(_NETFILTER) as sock:
            generation = _ask(sock, _GETGEN, _ACK, _NFGENMSG.pack(socket.AF_UNSPEC, 0, 0))[0].get(_GEN_ID, b"")
            use = _ask(sock, _GETTABLE, _ACK, header + name)[0].get(_TABLE_USE, b"")
            chains = [
                chain
                for chain in _ask(sock, _GETCHAIN, _DUMP, header)
                if chain.get(_CHAIN_TABLE) == table.encode() + b"\0"
            ]
            if int.from_bytes(use, "big") != len(chains) or not all(map(_is_blank, chains)):
                return False
            begin = _NFGENMSG.pack(socket.AF_UNSPEC, 0, _NFTABLES)
            sock.send(
                _message(_BATCH_BEGIN, _REQUEST, begin + _attribute(_BATCH_GENID, generation), 1)
                + _message(_DELTABLE, _REQUEST | _ACK, header + name, 2)
                + _message(_BATCH_END, _REQUEST, begin, 3)
            )
            list(_answers(sock))
            return True
    except (OSError, IndexError):
        return False


def _is_blank(chain: dict[int, bytes]) -> bool:
    accepts = int.from_bytes(chain.get(_CHAIN_POLICY, b""), "big") == _ACCEPT
    return _CHAIN_HOOK in chain and accepts and not any(chain.get(_CHAIN_USE, b"\1"))


def _open(protocol: int) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        sock.settimeout(TIMEOUT)
        sock.bind((0, 0))
    except OSError:
        sock.close()
        raise
    return sock


def _ask(sock: socket.socket, kind: int, flags: int, body: bytes) -> list[dict[int, bytes]]:
    """The attributes of each netfilter message that answers a request."""
    sock.send(_message(kind, _REQUEST | flags, body, 1))
    return [dict(_attributes(answer[_NFGENMSG.size :])) for answer in _answers(sock)]


def _answers(sock: socket.socket) -> Iterator[bytes]:
    """The bodies of messages up to the end of a dump or the acknowledgement. Raises OSError: the kernel refused."""
    for _ in range(_MAX_MESSAGES):
        data = sock.recv(_BUFFER)
        while len(data) >= _HEADER.size:
            length, kind, _, _, _ = _HEADER.unpack_from(data)
            body = data[_HEADER.size : length]
            if kind == _ERROR:
                (code,) = struct.unpack_from("=i", body)
                if code:
                    raise OSError(-code, os.strerror(-code))
                return
            if kind == _DONE:
                return
            yield body
            data = data[max(_HEADER.size, (length + 3) & ~3) :]
    raise OSError("netlink answer without an end")


def _message(kind: int, flags: int, body: bytes, sequence: int) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            return
        yield kind & 0x3FFF, data[4:length]
        data = data[(length + 3) & ~3 :]
