"""DNS over UDP: one socket, read by the loop's reader, not by a datagram transport: no callback a datagram.

What the memos know is answered as it is read. The rest waits for its turn, one query a client (address and port) after
the other, so that a client that floods us with names that nobody knows takes time from itself only.
"""

from __future__ import annotations

import socket
from asyncio import AbstractEventLoop
from collections.abc import Callable
from struct import pack
from typing import Any

from proxy.config.model import SocketAddress
from proxy.dns.fair_queue import FairQueue
from proxy.dns.query import Address
from proxy.dns.service import DnsService, log
from proxy.dns.udp_batch import BATCH, DATAGRAM, BatchReader
from proxy.listener.accept import BindError, keep_to_loopback

RECEIVE_BUFFER = 4 << 20
"""Bytes asked of the kernel (net.core.rmem_max bounds it), so that bursts wait and are not lost."""

MAX_WAITING = 1024
"""Queries that wait; beyond it the client with most of them loses its oldest."""
SLICE = 16
"""Queries answered before the socket, and all else in this worker, have their turn again."""

_WILDCARDS = ("0.0.0.0", "::")
_IP_PKTINFO = 8
"""linux/in.h; the socket module has no name for it before Python 3.14."""


def is_loopback(host: str) -> bool:
    """127.0.0.0/8 or ::1."""
    return host == "::1" or host.startswith("127.")


class _Waiting:
    """A query that waits."""

    __slots__ = ("client", "packet")

    def __init__(self, packet: bytes, client: Address) -> None:
        self.packet = packet
        self.client = client


class UdpListener:
    """One address. Raises BindError from ``bind``."""

    def __init__(self, loop: AbstractEventLoop, address: SocketAddress, service: DnsService) -> None:
        self.address = address
        self._loop = loop
        self._service = service
        self._stats = service.stats
        self._sock: socket.socket | None = None
        self._waiting: FairQueue[_Waiting] = FairQueue()
        self._working = False
        self._send: Callable[[bytes, Any], Any] = _closed
        self._readable: Callable[[], None] = _closed

    def bind(self) -> None:
        """Create and bind the socket; datagrams wait in it until ``start``."""
        host, port = self.address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = None
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if is_loopback(host):
                keep_to_loopback(sock)
            sock.bind((host, port))
            if host in _WILDCARDS:
                # The answer must come from the address that was asked, which only the datagram knows.
                _want_destination(sock, family)
        except OSError as error:
            if sock is not None:
                sock.close()
            raise BindError(f"cannot bind '{self.address.text}' for DNS over UDP: {error.strerror}") from error
        self._sock = sock
        self.address = SocketAddress(host, sock.getsockname()[1])
        if host in _WILDCARDS:
            wildcard = _Wildcard(sock, self._answer_wildcard)
            self._readable, self._send = wildcard.readable, wildcard.send
        else:
            batch = BatchReader(sock, self._service, self._answer, self._send_failed)
            self._readable, self._send = batch.readable, sock.sendto

    def start(self) -> None:
        """Answer."""
        if self._sock is not None:
            self._loop.add_reader(self._sock, self._readable)

    def close(self) -> None:
        """Close the socket."""
        if self._sock is not None:
            self._loop.remove_reader(self._sock)
            self._sock.close()
            self._sock = None
            self._send = self._readable = _closed

    def _answer(self, packet: bytes, client: Address) -> None:
        """A query that the memos do not know."""
        waiting = self._waiting
        waiting.push(client[:2], _Waiting(packet, client))
        if len(waiting) > MAX_WAITING and (found := waiting.longest()) is not None:
            waiting.remove(*found)
            stats = self._stats
            stats.dropped_total += 1
            stats.requests_total += 1
            stats.requests_udp += 1
            if log.debug_on:
                log.debug("a query of %s is dropped: %d wait already", found[0], MAX_WAITING)
        if not self._working:
            self._working = True
            self._loop.call_soon(self._work)

    def _work(self) -> None:
        """Answer some of those that wait."""
        self._working = False
        waiting, answer, respond = self._waiting, self._service.answer, self._respond
        for _ in range(SLICE):
            one = waiting.pop(_whoever)
            if one is None or self._sock is None:
                return
            respond(answer(one.packet, False, one.client, respond), one.client)
        if waiting:
            self._working = True
            self._loop.call_soon(self._work)

    def _answer_wildcard(self, packet: bytes, client: Address) -> None:
        rest = self._service.remembered(packet[2:])
        if rest is not None:
            self._respond(packet[:2] + rest, client)
        else:
            self._answer(packet, client)

    def _respond(self, reply: bytes | None, client: Address) -> None:
        if reply and self._sock is not None:
            try:
                self._send(reply, client)
            except OSError as error:
                self._send_failed(client, error)

    def _send_failed(self, client: Address, error: OSError) -> None:
        # Its buffer is full, the client's port is 0, a firewall forbids it: the client asks again.
        self._stats.send_failed_total += 1
        if log.debug_on:
            log.debug("cannot send a reply to %s: %s", client, error.strerror)


def _whoever(_client: object) -> bool:
    return True


def _closed(*_: object) -> Any:
    raise BlockingIOError


def _want_destination(sock: socket.socket, family: int) -> None:
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)


class _Client(tuple[Any, ...]):
    """A client's address that knows which of ours it asked."""

    ancillary: list[tuple[int, int, bytes]]


class _Wildcard:
    """A socket of all addresses: one datagram after the other, each answered from the address that it was sent to."""

    __slots__ = ("_answer", "_sock", "_space")

    def __init__(self, sock: socket.socket, answer: Callable[[bytes, Address], None]) -> None:
        self._sock = sock
        self._answer = answer
        self._space = socket.CMSG_SPACE(64)

    def readable(self) -> None:
        """A batch of datagrams."""
        for _ in range(BATCH):
            try:
                packet, ancillary, _, address = self._sock.recvmsg(DATAGRAM, self._space)
            except OSError:
                return  # none, or an error that the next call gets over
            client = _Client(address)
            client.ancillary = self._reversed(ancillary)
            self._answer(packet, client)

    @staticmethod
    def _reversed(ancillary: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
        back = []
        for level, kind, data in ancillary:
            if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                # in_pktinfo: interface, the address to send from, the header's destination. The interface is left to
                # routing.
                back.append((level, kind, pack("i4s4s", 0, data[4:8], bytes(4))))
            elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
                back.append((level, kind, data))
        return back

    def send(self, reply: bytes, client: Any) -> None:
        """Send to a client of ``readable``."""
        self._sock.sendmsg((reply,), client.ancillary, 0, client)
