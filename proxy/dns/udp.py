"""DNS over UDP: one socket. A query whose answer is remembered costs two system calls and a handful of Python steps.

The loop's reader on a raw socket, not a datagram transport: no callback and no buffer a datagram.
"""

from __future__ import annotations

import socket
from asyncio import AbstractEventLoop
from collections.abc import Callable
from struct import pack
from typing import Any

from proxy.config.model import SocketAddress
from proxy.dns.message import OUR_UDP
from proxy.dns.query import Address
from proxy.dns.service import DnsService, log
from proxy.listener.accept import BindError

BATCH = range(64)
"""Datagrams taken for one event of the loop; then TCP, HTTP and timers have their turn."""
RECEIVE_BUFFER = 4 << 20
"""Bytes asked of the kernel (net.core.rmem_max bounds it), so that bursts wait and are not lost."""

_WILDCARDS = ("0.0.0.0", "::")
_IP_PKTINFO = 8
"""linux/in.h; the socket module has no name for it before Python 3.14."""


class UdpListener:
    """One address. Raises BindError from ``bind``."""

    def __init__(self, loop: AbstractEventLoop, address: SocketAddress, service: DnsService) -> None:
        self.address = address
        self._loop = loop
        self._service = service
        self._stats = service.stats
        self._sock: socket.socket | None = None
        self._receive: Callable[[int], Any] = _closed
        self._send: Callable[[bytes, Any], Any] = _closed

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
            wildcard = _Wildcard(sock)
            self._receive, self._send = wildcard.receive, wildcard.send
        else:
            self._receive, self._send = sock.recvfrom, sock.sendto

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
            self._receive = self._send = _closed

    def _readable(self) -> None:
        receive, send = self._receive, self._send
        service = self._service
        # With the log at debug every query gets its line.
        memo, fresh = (_NOTHING, _NOTHING) if log.debug_on else (service.memo, service.fresh)
        from_table = from_cache = 0
        for _ in BATCH:
            try:
                packet, client = receive(OUR_UDP)
            except BlockingIOError:
                break
            except OSError as error:
                log.debug("%s: %s", self.address.text, error.strerror)
                break
            question = packet[2:]
            reply = memo.get(question)
            if reply is not None:
                from_table += 1
                answer = packet[:2] + reply()
            else:
                answer = fresh.get(question)
                if answer is not None:
                    from_cache += 1
                    answer = packet[:2] + answer
                else:
                    answer = service.answer(packet, False, client, self._respond)
                    if not answer:
                        continue
            try:
                send(answer, client)
            except OSError as error:
                self._send_failed(client, error)
        remembered = from_table + from_cache
        if remembered:
            stats = self._stats
            stats.requests_total += remembered
            stats.requests_udp += remembered
            stats.answers_local += from_table
            stats.cache_hits += from_cache

    def _respond(self, reply: bytes | None, client: Address) -> None:
        if reply is not None and self._sock is not None:
            try:
                self._send(reply, client)
            except OSError as error:
                self._send_failed(client, error)

    def _send_failed(self, client: Address, error: OSError) -> None:
        # Its buffer is full, the client's port is 0, a firewall forbids it: the client asks again.
        self._stats.send_failed_total += 1
        if log.debug_on:
            log.debug("cannot send a reply to %s: %s", client, error.strerror)


_NOTHING: dict[bytes, Any] = {}


def _closed(*_: object) -> Any:
    raise BlockingIOError


def _want_destination(sock: socket.socket, family: int) -> None:
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)


class _Wildcard:
    """Receives and sends like a socket; the client's address carries the address that was asked (as ancillary data)."""

    __slots__ = ("_receive", "_send", "_space")

    def __init__(self, sock: socket.socket) -> None:
        self._receive = sock.recvmsg
        self._send = sock.sendmsg
        self._space = socket.CMSG_SPACE(64)

    def receive(self, size: int) -> tuple[bytes, Address]:
        """The datagram and (host, port, ..., ancillary data for the reply)."""
        packet, ancillary, _, client = self._receive(size, self._space)
        back = []
        for level, kind, data in ancillary:
            if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                # in_pktinfo: interface, the address to send from, the header's destination. The interface is left to
                # routing.
                back.append((level, kind, pack("i4s4s", 0, data[4:8], bytes(4))))
            elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
                back.append((level, kind, data))
        return packet, (*client, back)

    def send(self, reply: bytes, client: Address) -> None:
        """Send to the address that ``receive`` gave."""
        ancillary: Any = client[-1]
        self._send((reply,), ancillary, 0, client[:-1])
