"""DNS over UDP, many datagrams a system call: recvmmsg(2) and sendmmsg(2), which Python has no functions for.

For a remembered answer nothing is made of a datagram but its bytes as a key: the client's address serves for the reply
as the kernel wrote it, and the reply is sent from where the memo has it, with the id in front. That takes a sixth less
processor time than recvfrom and sendto.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Callable
from struct import Struct, unpack_from
from typing import Any, Literal

from proxy.dns.message import OUR_UDP
from proxy.dns.query import Address
from proxy.dns.service import MAX_REMEMBERED, DnsService, log

BATCH = 32
"""Datagrams at once: more would save little, and a reply waits for all of its batch."""
DATAGRAM = OUR_UDP
"""Bytes of a query that are taken; one that is longer is cut and then refused as damaged."""
_STRIDE = DATAGRAM + 64
"""From one query to the next in memory: no power of two, so that they do not share the cache's lines."""

class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """struct msghdr."""

    _fields_ = (("name", ctypes.c_void_p), ("name_size", ctypes.c_uint32), ("vector", ctypes.c_void_p),
                ("vector_size", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_size", ctypes.c_size_t),
                ("flags", ctypes.c_int))


class _Message(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (("header", _Header), ("size", ctypes.c_uint32))


def _function(name: str, *arguments: type[Any]) -> Callable[..., int]:
    found = getattr(ctypes.CDLL(None, use_errno=True), name)
    found.argtypes = arguments
    found.restype = ctypes.c_int
    return found  # type: ignore[no-any-return]


_recvmmsg = _function("recvmmsg", ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
_sendmmsg = _function("sendmmsg", ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)


class BatchReader:
    """Answers what one socket receives. ``answer_one`` is given what the memos do not know: (datagram, client)."""

    __slots__ = ("_address_size", "_addresses", "_answer_one", "_data", "_descriptor", "_kept", "_replies",
                 "_send_failed", "_service", "_sizes", "_slots", "_stats", "_to_receive", "_to_send")

    def __init__(self, sock: socket.socket, service: DnsService, answer_one: Callable[[bytes, Address], None],
                 send_failed: Callable[[Address, OSError], None]) -> None:
        self._descriptor = sock.fileno()
        self._service = service
        self._stats = service.stats
        self._answer_one = answer_one
        self._send_failed = send_failed
        self._address_size = 28 if sock.family == socket.AF_INET6 else 16  # sockaddr_in6, sockaddr_in
        self._data = bytearray(BATCH * _STRIDE)
        self._addresses = bytearray(BATCH * self._address_size)
        data = ctypes.addressof(ctypes.c_char.from_buffer(self._data))
        addresses = ctypes.addressof(ctypes.c_char.from_buffer(self._addresses))
        received, sent = (_Message * BATCH)(), (_Message * BATCH)()
        # Of a reply the id stands in the query's buffer, the rest in the memo.
        into, parts = (_Vector * BATCH)(), (_Vector * (2 * BATCH))()
        for at in range(BATCH):
            into[at] = _Vector(data + at * _STRIDE, DATAGRAM)
            parts[2 * at] = _Vector(data + at * _STRIDE, 2)
            address = addresses + at * self._address_size
            received[at].header = _Header(address, self._address_size, ctypes.addressof(into[at]), 1)
            sent[at].header = _Header(address, self._address_size, ctypes.addressof(parts[2 * at]), 2)
        self._kept = (received, sent, into, parts)
        self._to_receive = ctypes.addressof(received)
        self._to_send = ctypes.addressof(sent)
        self._sizes = memoryview(received).cast("B").cast("I")
        self._replies = memoryview(parts).cast("B").cast(_WORD)
        width, size = ctypes.sizeof(_Message) // 4, _Message.size.offset // 4
        # For each datagram: its number, where its size stands, where its key begins, where the reply's address and size
        # go.
        self._slots = [(at, at * width + size, at * _STRIDE + 2, 4 * at + 2, 4 * at + 3) for at in range(BATCH)]

    def readable(self) -> None:
        """One batch."""
        count = _recvmmsg(self._descriptor, self._to_receive, BATCH, socket.MSG_DONTWAIT, None)
        if count <= 0:
            return  # none, or an error that the next call gets over
        service = self._service
        # With the log at debug every query gets its line.
        memo, fresh = (_NOTHING, _NOTHING) if log.debug_on else (service.memo, service.fresh)
        data, sizes, replies, keys = self._data, self._sizes, self._replies, _KEYS
        others: list[int] = []
        from_cache = 0
        for at, size_at, begin, address_to, size_to in self._slots[:count]:
            size = sizes[size_at]
            if size < MAX_KEY:
                key, = keys[size](data, begin)
                reply = memo.get(key)
                if reply is None:
                    reply = fresh.get(key)
                    if reply is None:
                        others.append(at)
                        continue
                    from_cache += 1
                replies[address_to], replies[size_to], _ = reply()
            else:
                others.append(at)
        answered = count - len(others)
        if answered:
            stats = self._stats
            stats.requests_total += answered
            stats.requests_udp += answered
            stats.answers_local += answered - from_cache
            stats.cache_hits += from_cache
            if not others:
                self._send(0, count)
            else:
                # What lies between the others, before these are answered: that may empty a memo, and with it the
                # replies that are to be sent.
                begin = 0
                for end in (*others, count):
                    if end > begin:
                        self._send(begin, end)
                    begin = end + 1
        for at in others:
            begin = at * _STRIDE
            size = sizes[self._slots[at][1]]
            self._answer_one(bytes(data[begin:begin + size]), self._address(at))

    def _send(self, begin: int, end: int) -> None:
        """Send the replies of these datagrams."""
        while begin < end:
            sent = _sendmmsg(self._descriptor, self._to_send + begin * _MESSAGE_SIZE, end - begin, socket.MSG_DONTWAIT)
            if sent <= 0:
                number = ctypes.get_errno()
                self._send_failed(self._address(begin), OSError(number, os.strerror(number)))
                sent = 1
            begin += sent

    def _address(self, at: int) -> Address:
        """The client's address as socket.recvfrom would give it."""
        begin = at * self._address_size
        if self._address_size == 16:
            port, packed = unpack_from("!H4s", self._addresses, begin + 2)
            return socket.inet_ntop(socket.AF_INET, packed), port
        port, flow, packed = unpack_from("!HI16s", self._addresses, begin + 2)
        scope, = unpack_from("=I", self._addresses, begin + 24)
        return socket.inet_ntop(socket.AF_INET6, packed), port, flow, scope


_WORD: Literal["Q", "I"] = "Q" if ctypes.sizeof(ctypes.c_size_t) == 8 else "I"
_NOTHING: dict[bytes, Any] = {}
_MESSAGE_SIZE = ctypes.sizeof(_Message)
MAX_KEY = MAX_REMEMBERED + 1
_KEYS = [Struct(f"{max(0, size - 2)}s").unpack_from for size in range(MAX_KEY)]
"""By the size of a datagram the function that takes all but its id: the fastest way to bytes from the middle."""
