"""One listening socket: bind, accept within bounds, survive lack of descriptors, close without losing clients."""

from __future__ import annotations

import errno
import socket
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable
from pathlib import Path

from proxy.config.model import SocketAddress
from proxy.log import get

log = get("conn_handler")

OUT_OF_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
PAUSE = 0.2
"""Seconds without accepting after running out of descriptors or memory; a closing connection ends it sooner."""

LAST_ACCEPTS = 65536
"""Connections taken from the queue of a socket that is being closed, at most."""


class BindError(Exception):
    """An address that cannot be bound; the text is Envoy's."""


def default_backlog() -> int:
    """net.core.somaxconn."""
    try:
        return int(Path("/proc/sys/net/core/somaxconn").read_text())
    except (OSError, ValueError):
        return socket.SOMAXCONN


class ListenSocket:
    """Calls ``accepted(socket, peer name)`` for each connection, up to ``per_event`` for one event of the loop."""

    def __init__(self, loop: AbstractEventLoop, address: SocketAddress, backlog: int | None, per_event: int,
                 accepted: Callable[[socket.socket, tuple[str, int]], None]) -> None:
        self.address = address
        self._loop = loop
        self._backlog = backlog
        self._per_event = range(per_event or 1)
        self._accepted = accepted
        self._sock: socket.socket | None = None
        self._listening = False
        self._paused: TimerHandle | None = None

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
        self._loop.add_reader(sock, self._readable)

    def _readable(self) -> None:
        sock = self._sock
        if sock is None:
            return
        family = sock.family
        for _ in self._per_event:
            try:
                fd, peer = sock._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError as error:
                self._accept_failed(error)
                return
            self._accepted(socket.socket(family, socket.SOCK_STREAM, 0, fd), peer)

    def _accept_failed(self, error: OSError) -> None:
        # Other errors belong to the connection that was about to be accepted (accept(2)): it is gone.
        if error.errno in OUT_OF_RESOURCES and self._sock is not None and self._paused is None:
            log.warning("listener %s: accept failed: %s; trying again in %s s", self.address.text, error.strerror,
                        PAUSE)
            self._loop.remove_reader(self._sock)
            self._paused = self._loop.call_later(PAUSE, self.resume)

    @property
    def paused(self) -> bool:
        """Not accepting, for lack of descriptors or memory."""
        return self._paused is not None

    def resume(self) -> None:
        """Accept again after a pause: the time is up, or a descriptor has become free."""
        if self._paused is not None:
            self._paused.cancel()
            self._paused = None
            if self._sock is not None:
                self._loop.add_reader(self._sock, self._readable)

    def close(self) -> None:
        """Stop listening. What the kernel has already queued is accepted and served first."""
        sock = self._sock
        if sock is None:
            return
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
            self._accepted(socket.socket(sock.family, socket.SOCK_STREAM, 0, fd), peer)
