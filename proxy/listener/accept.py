"""One listening socket: bind, accept within bounds, survive lack of descriptors, close without losing clients."""

from __future__ import annotations

import errno
import os
import resource
import socket
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable
from ctypes import addressof, create_string_buffer
from pathlib import Path
from socket import SocketType
from struct import pack

from proxy.config.model import SocketAddress
from proxy.log import get

log = get("conn_handler")

OUT_OF_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
PAUSE = 0.2
"""Seconds without accepting after running out of descriptors or memory; a closing connection ends it sooner."""

ACCEPT_BATCH = 16
"""Connections taken for one event of the loop where the configuration sets no limit. A round of the loop for each
connection makes accepting a quarter more expensive."""

LAST_ACCEPTS = 65536
"""Connections taken from the queue of a socket that is being closed, at most."""

HANDSHAKE_PATIENCE = 0.05
"""Seconds for handshakes that are under way when a socket is to be closed: closing it would reset them."""

RESERVE = 256
"""Descriptors that new connections from clients leave alone (an eighth of all, where those are few): the connections
that are open need them for upstream connections, and for log files."""

QUIET = 10.0
"""Seconds without a failed accept after which the next one is news, and worth a line in the log."""

SO_ATTACH_FILTER = 26
"""asm-generic/socket.h."""

_NO_NEW_HANDSHAKES = b"".join(pack("HBBI", *instruction) for instruction in (
    (0x30, 0, 0, 13),          # load the byte of the TCP header that has the flags
    (0x54, 0, 0, 0x12),        # of these SYN and ACK
    (0x15, 0, 1, 0x02),        # SYN alone?
    (0x06, 0, 0, 0),           # drop the packet
    (0x06, 0, 0, 0xFFFFFFFF),  # take it
))
"""A classic BPF program for a listening socket (linux/filter.h)."""


class BindError(Exception):
    """An address that cannot be bound; the text is Envoy's."""


def default_backlog() -> int:
    """net.core.somaxconn."""
    try:
        return int(Path("/proc/sys/net/core/somaxconn").read_text())
    except (OSError, ValueError):
        return socket.SOMAXCONN


def keep_to_loopback(sock: socket.socket) -> None:
    """Before ``bind``: have the kernel drop what does not come over the loopback interface.

    It does so for loopback addresses anyway, unless net.ipv4.conf.*.route_localnet is on, as service meshes and
    container networks may have it. IPv6 has no such switch, and a socket kept to `lo` could not answer redirected
    queries there: the routes of the host's own addresses are not that interface's. In IPv4 they come and go over it.
    """
    if sock.family == socket.AF_INET6:
        return
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
    except OSError as error:
        log.debug("SO_BINDTODEVICE lo: %s", error.strerror)  # without CAP_NET_RAW Linux has it from 5.7 on


_SOCK_STREAM = int(socket.SOCK_STREAM)


class Handle:
    """An accepted socket that a transport of the loop takes over. It closes the descriptor itself, and needs no more
    than this of a socket; what it would call on a socket.socket costs one percent of a short connection."""

    __slots__ = ("_sock",)
    family = int(socket.AF_INET)
    """For the loop AF_INET6 is the same."""
    type = _SOCK_STREAM

    def __init__(self, sock: SocketType) -> None:
        self._sock = sock

    def fileno(self) -> int:
        """What the transport opens."""
        return self._sock.fileno()

    def close(self) -> None:
        """Called when the transport has closed the descriptor, whose number may be another one's before long."""
        self._sock.detach()


class Exhaustion:
    """When this process last ran out of descriptors or memory, whichever socket noticed."""

    last = -QUIET

    @classmethod
    def news(cls, now: float) -> bool:
        """It has run out. Whether that begins a new burst, which is worth a line in the log."""
        last, cls.last = cls.last, now
        return now - last >= QUIET or now < last


def spare_descriptors() -> tuple[int, int]:
    """(how many descriptors this process may have beside its reserve, the reserve)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 1 << 31, RESERVE
    reserve = min(RESERVE, soft // 8)
    return soft - reserve, reserve


def open_descriptors() -> int:
    """How many descriptors are open: two microseconds.

    Before Linux 6.2, which cannot tell, it is the number that the next one would have: the lowest that is free. That is
    less where descriptors of lower numbers have been closed meanwhile.
    """
    try:
        if size := os.stat("/proc/self/fd").st_size:
            return size
        descriptor = os.open("/", os.O_PATH)
    except OSError:
        return 1 << 31
    os.close(descriptor)
    return descriptor


class ListenSocket:
    """Calls ``accepted(socket, peer name)`` for each connection, up to ``per_event`` for one event of the loop.

    These are the sockets of the C module that socket.socket is made of.

    ``loopback_only``: what comes from another host is not for it, whatever routing says (see `keep_to_loopback`).
    """

    def __init__(self, loop: AbstractEventLoop, address: SocketAddress, backlog: int | None, per_event: int,
                 accepted: Callable[[SocketType, tuple[str, int]], None], *, loopback_only: bool = False) -> None:
        self.address = address
        self._loopback_only = loopback_only
        self._loop = loop
        self._backlog = backlog
        self._spare, reserve = spare_descriptors()
        # Upstream connections of what was accepted take their descriptors a few rounds of the loop later: when the
        # descriptors become few they have to fit in what is left.
        self._per_event = range(min(per_event or ACCEPT_BATCH, max(1, reserve // ACCEPT_BATCH)))
        self._few = self._spare - reserve
        self._scarce = False
        self.accepted = accepted
        self._sock: socket.socket | None = None
        self._family = int(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
        self._listening = False
        self._suspended = False
        self._paused: TimerHandle | None = None
        self._closing: TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        """The socket exists: bound, listening, or in its last moments."""
        return self._sock is not None

    def bind(self) -> None:
        """Create and bind the socket. Raises BindError."""
        host, port = self.address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = None
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if self._loopback_only:
                keep_to_loopback(sock)
            # Accepted sockets inherit it.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.bind((host, port))
        except OSError as error:
            if sock is not None:
                sock.close()
            raise BindError(f"cannot bind '{self.address.text}': {error.strerror}") from error
        self._sock = sock
        self.address = SocketAddress(host, sock.getsockname()[1])

    def start(self) -> None:
        """Listen and accept. Raises BindError (another process may listen since ``bind``)."""
        sock = self._sock
        if sock is None or self._listening:
            return
        try:
            sock.listen(default_backlog() if self._backlog is None else self._backlog)
        except OSError as error:
            raise BindError(f"cannot listen on '{self.address.text}': {error.strerror}") from error
        self._listening = True
        if not self._suspended:
            self._loop.add_reader(sock, self._readable)

    def suspend(self, suspended: bool) -> None:
        """Leave new connections in the kernel's queue, or take them again (overload: stop_accepting_connections)."""
        if suspended == self._suspended:
            return
        self._suspended = suspended
        if self._sock is None or not self._listening or self._paused is not None:
            return
        if suspended:
            self._loop.remove_reader(self._sock)
        else:
            self._loop.add_reader(self._sock, self._readable)

    def _readable(self) -> None:
        sock = self._sock
        if sock is None:
            return
        if self._scarce and not self._count_descriptors():
            return
        family = self._family
        few = self._few
        for _ in self._per_event:
            try:
                fd, peer = sock._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError as error:
                self._accept_failed(error)
                return
            self.accepted(SocketType(family, _SOCK_STREAM, 0, fd), peer)
            if fd >= few:  # new ones have the lowest number that is free, so all below are in use
                self._scarce = True
            if self._scarce:
                return  # one for each event from now on, and none uncounted

    def _count_descriptors(self) -> bool:
        """Whether one more connection may be accepted though descriptors are scarce."""
        count = open_descriptors()
        if count >= self._spare:
            self._pause("only reserved descriptors are left")
            return False
        self._scarce = count >= self._few
        return True

    def _accept_failed(self, error: OSError) -> None:
        # Other errors belong to the connection that was about to be accepted (accept(2)): it is gone.
        if error.errno in OUT_OF_RESOURCES:
            self._pause(f"accept failed: {error.strerror}")

    def _pause(self, why: str) -> None:
        if self._sock is None or self._paused is not None:
            return
        self._scarce = True
        if Exhaustion.news(self._loop.time()):
            log.warning("listener %s: %s; new connections wait", self.address.text, why)
        self._loop.remove_reader(self._sock)
        self._paused = self._loop.call_later(PAUSE, self.resume)

    @property
    def paused(self) -> bool:
        """Not accepting, for lack of descriptors or memory."""
        return self._paused is not None

    def resume(self) -> None:
        """Accept again after a pause, if there is room: the time is up, or a descriptor has become free."""
        if self._paused is not None:
            self._paused.cancel()
            if open_descriptors() >= self._spare:
                Exhaustion.news(self._loop.time())  # the burst goes on
                self._paused = self._loop.call_later(PAUSE, self.resume)
                return
            self._paused = None
            if self._sock is not None and not self._suspended:
                self._loop.add_reader(self._sock, self._readable)

    def stop(self) -> None:
        """Close soon, without losing a client: no handshake begins any more, those under way are finished and served.

        A client whose first packet is dropped tries again a second later and is refused then.
        """
        sock = self._sock
        if sock is None or self._closing is not None:
            return
        if not self._listening or not _refuse_handshakes(sock):
            self.close()
        else:
            self._closing = self._loop.call_later(HANDSHAKE_PATIENCE, self.close)

    def close(self) -> None:
        """Close now. What the kernel has already queued is accepted and served first."""
        sock = self._sock
        if sock is None:
            return
        if self._closing is not None:
            self._closing.cancel()
        if self._paused is not None:
            self._paused.cancel()
            self._paused = None
        elif self._listening:
            self._loop.remove_reader(sock)
        if self._listening:
            self._take_queued(sock)
        self._sock = None
        sock.close()

    def _take_queued(self, sock: socket.socket) -> None:
        for _ in range(LAST_ACCEPTS):
            try:
                fd, peer = sock._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in OUT_OF_RESOURCES:
                    return
                continue
            self.accepted(SocketType(self._family, _SOCK_STREAM, 0, fd), peer)


def _refuse_handshakes(sock: socket.socket) -> bool:
    program = create_string_buffer(_NO_NEW_HANDSHAKES, len(_NO_NEW_HANDSHAKES))
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, pack("HL", len(program) // 8, addressof(program)))
    except OSError as error:
        log.debug("SO_ATTACH_FILTER: %s", error.strerror)
        return False
    return True
