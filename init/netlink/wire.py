"""Netlink as bytes: messages, attributes, and one request at a time on a socket (netlink(7), RFC 3549).

Numbers are in the byte order of this host. Every failure is an OSError with an errno: the kernel's own, EBADMSG for an
answer that makes no sense, EMSGSIZE for one beyond the limits, ETIMEDOUT for none in time.
"""

import errno
import os
import socket
import struct
import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

TIMEOUT = 5.0  # seconds for one whole answer
MAX_MESSAGES = 100_000  # of one answer
MAX_BYTES = 64 << 20  # of one answer
_BUFFER = 1 << 16  # the kernel fills at most half of it at a time
_TRIES = 8  # for a list that changed while it was read
_MAX_REASON = 200  # characters of the kernel's own explanation

ROUTE, NETFILTER = 0, 12  # protocols
REQUEST, ACK, EXCL, DUMP, CREATE = 0x1, 0x4, 0x200, 0x300, 0x400
_INTERRUPTED, _CAPPED, _EXPLAINED = 0x10, 0x100, 0x200  # flags of answers
_ERROR, _DONE, _OVERRUN = 2, 3, 4
_FIRST_OWN_KIND = 0x10  # lower ones are netlink's
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_CODE = struct.Struct("=i")
_KIND_BITS = 0x3FFF  # of an attribute's type; the others say "nested" and "network order"
_REASON = 1  # NLMSGERR_ATTR_MSG
_SOL_NETLINK, _EXT_ACK, _STRICT_CHECK = 270, 11, 12

UNSUPPORTED = frozenset((errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.EPFNOSUPPORT))


@dataclass(frozen=True, slots=True)
class Message:
    """One message of an answer, without its header."""

    kind: int
    body: bytes


def message(kind: int, flags: int, body: bytes, sequence: int) -> bytes:
    """A whole message; the length of `body` is a multiple of four."""
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def number(kind: int, value: int) -> bytes:
    """An attribute whose value is a number of 32 bits in the host's order."""
    return attribute(kind, value.to_bytes(4, sys.byteorder))


def as_number(value: bytes) -> int:
    """The number that an attribute of any width holds in the host's order."""
    return int.from_bytes(value, sys.byteorder)


def attributes(data: bytes) -> dict[int, bytes]:
    """Type -> value, the last one if a type repeats. Raises OSError (EBADMSG)."""
    found = {}
    at = 0
    while at < len(data):
        if len(data) - at < _ATTRIBUTE.size:
            raise _malformed("an attribute without a whole header")
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if not _ATTRIBUTE.size <= length <= len(data) - at:
            raise _malformed(f"an attribute of {length} bytes where {len(data) - at} are left")
        found[kind & _KIND_BITS] = data[at + _ATTRIBUTE.size : at + length]
        at += _aligned(length)
    return found


def unpack(layout: struct.Struct, body: bytes) -> tuple[tuple[int, ...], dict[int, bytes]]:
    """The fixed part and the attributes of a body. Raises OSError (EBADMSG)."""
    if len(body) < layout.size:
        raise _malformed(f"a body of {len(body)} bytes where {layout.size} are the least")
    return layout.unpack_from(body), attributes(body[_aligned(layout.size) :])


class Answer:
    """Gathers the messages that answer the requests numbered `sequences`."""

    def __init__(self, sequences: range) -> None:
        self.messages: list[Message] = []
        self.interrupted = False  # the list changed while the kernel wrote it
        self._sequences = sequences
        self._count = self._bytes = 0

    def feed(self, data: bytes) -> bool:
        """Take one datagram; True if it ends the answer. Raises OSError: what the kernel refused, or nonsense."""
        self._bytes += len(data)
        if self._bytes > MAX_BYTES:
            raise OSError(errno.EMSGSIZE, f"an answer of more than {MAX_BYTES >> 20} MiB")
        at = 0
        while at < len(data):
            if len(data) - at < _HEADER.size:
                raise _malformed("a message without a whole header")
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
            if not _HEADER.size <= length <= len(data) - at:
                raise _malformed(f"a message of {length} bytes where {len(data) - at} are left")
            body = data[at + _HEADER.size : at + length]
            at += _aligned(length)
            self._count += 1
            if self._count > MAX_MESSAGES:
                raise OSError(errno.EMSGSIZE, f"an answer of more than {MAX_MESSAGES} messages")
            if sequence in self._sequences and self._take(kind, flags, body):
                return True
        return False

    def _take(self, kind: int, flags: int, body: bytes) -> bool:
        self.interrupted |= bool(flags & _INTERRUPTED)
        if kind in (_ERROR, _DONE):
            code = _code(kind, body)
            if code:
                reason = _reason(body, flags) if kind == _ERROR else ""
                raise OSError(code, os.strerror(code) + (f" ({reason})" if reason else ""))
            return True
        if kind == _OVERRUN:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        if kind >= _FIRST_OWN_KIND:
            self.messages.append(Message(kind, body))
        return False


def _code(kind: int, body: bytes) -> int:
    """The errno of an error or of the end of a list; 0 is success. Old kernels end a list without saying."""
    if len(body) < _CODE.size:
        if kind == _ERROR:
            raise _malformed("an error without a number")
        return 0
    code: int = _CODE.unpack_from(body)[0]
    return max(0, -code)


def _reason(body: bytes, flags: int) -> str:
    """What the kernel says about an error in words, or the empty string."""
    if not flags & _EXPLAINED or len(body) < _CODE.size + _HEADER.size:
        return ""
    (length,) = struct.unpack_from("=I", body, _CODE.size)
    try:
        found = attributes(body[_CODE.size + (_HEADER.size if flags & _CAPPED else _aligned(length)) :])
    except OSError:
        return ""
    text = found.get(_REASON, b"").rstrip(b"\0").decode("utf-8", "replace")
    return "".join(filter(str.isprintable, text))[:_MAX_REASON]


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _malformed(what: str) -> OSError:
    return OSError(errno.EBADMSG, f"the kernel's answer makes no sense: {what}")


class Netlink:
    """A socket of one protocol, closed by its `with` block. All its methods raise OSError."""

    def __init__(self, protocol: int) -> None:
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self._socket.bind((0, 0))
        except OSError:
            self._socket.close()
            raise
        # Old kernels know neither: errors are then shorter (before 4.12) and lists longer (before 4.20).
        for option in (_EXT_ACK, _STRICT_CHECK):
            try:
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            except OSError:
                pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()

    def dump(self, kind: int, body: bytes) -> list[Message]:
        """Everything of a kind that the kernel has; read again if it changed meanwhile."""
        for _ in range(_TRIES):
            answer = self.exchange((kind, REQUEST | DUMP, body))
            if not answer.interrupted:
                return answer.messages
        raise OSError(errno.EAGAIN, f"the list changed each of the {_TRIES} times that it was read")

    def ask(self, kind: int, body: bytes, flags: int = 0) -> list[Message]:
        """One request, and the messages that came before its acknowledgement."""
        return self.exchange((kind, REQUEST | ACK | flags, body)).messages

    def exchange(self, *requests: tuple[int, int, bytes]) -> Answer:
        """Send requests (type, flags, body) at once; the answer ends at the first acknowledgement or end of a list."""
        first = self._sequence + 1
        self._sequence += len(requests)
        answer = Answer(range(first, first + len(requests)))
        self._socket.settimeout(TIMEOUT)
        self._socket.send(b"".join(message(*request, first + at) for at, request in enumerate(requests)))
        deadline = time.monotonic() + TIMEOUT
        while True:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data, _, flags, sender = self._socket.recvmsg(_BUFFER)
            except TimeoutError as error:
                raise OSError(errno.ETIMEDOUT, f"no answer of the kernel within {TIMEOUT:g} s") from error
            if flags & socket.MSG_TRUNC:
                raise OSError(errno.EMSGSIZE, f"an answer of more than {_BUFFER} bytes at a time")
            # Another process may write to this socket, too; only the kernel is number 0.
            if sender[0] == 0 and answer.feed(data):
                return answer
            if time.monotonic() > deadline:
                raise OSError(errno.ETIMEDOUT, f"the kernel's answer did not end within {TIMEOUT:g} s")
