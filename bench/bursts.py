"""Short bursts of new connections, each with one request: what wrk cannot do in less than a second."""

from __future__ import annotations

import contextlib
import select
import socket

READ = 65536
PATIENCE = 5.0
"""Seconds without any event."""


class BurstError(Exception):
    """A connection was not served."""


def close_all(opened: dict[int, tuple[socket.socket, list[bytes]]]) -> None:
    for sock, _ in opened.values():
        sock.close()


def burst(port: int, request: bytes, count: int, at_once: int, body_bytes: int) -> None:
    """Open ``count`` connections to a loopback port, at most ``at_once`` at a time, until the peer has closed each.

    Raises BurstError unless each answers 200 with at least ``body_bytes``.
    """
    opened: dict[int, tuple[socket.socket, list[bytes]]] = {}
    with contextlib.ExitStack() as cleanup, select.epoll() as poll:
        cleanup.callback(close_all, opened)
        left = count
        while left or opened:
            while left and len(opened) < at_once:
                left -= 1
                sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
                opened[sock.fileno()] = sock, []
                sock.sendall(request)
                poll.register(sock, select.EPOLLIN)
            ready = poll.poll(PATIENCE)
            if not ready:
                raise BurstError(f"nothing for {PATIENCE:.0f} s on {len(opened)} connections")
            for fileno, _ in ready:
                sock, received = opened[fileno]
                try:
                    data = sock.recv(READ)
                except OSError as error:
                    raise BurstError(str(error)) from None
                if data:
                    received.append(data)
                    continue
                del opened[fileno]
                sock.close()
                answer = b"".join(received)
                if not answer.startswith(b"HTTP/1.1 200 ") or len(answer) < body_bytes:
                    raise BurstError(f"the answer begins with {answer[:80]!r}")
