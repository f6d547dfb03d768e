"""The last bytes of a connection and FIN, on a real socket."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest

from proxy.config.model import SocketAddress
from proxy.listener.connection import Connection

ADDRESS = SocketAddress("127.0.0.1", 1)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Connection]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        accepted = listening.accept()[0]
    with client, accepted:
        accepted.setblocking(False)
        yield client, Connection(accepted, ADDRESS, ADDRESS, None, 1, 0.0)  # type: ignore[arg-type]


def test_both_arrive_at_once(pair: tuple[socket.socket, Connection]) -> None:
    client, connection = pair
    with select.epoll() as poll:
        poll.register(client, select.EPOLLIN | select.EPOLLRDHUP)
        assert connection.send_last(b"x" * 1000) == 1000
        assert poll.poll() == [(client.fileno(), select.EPOLLIN | select.EPOLLRDHUP)]
    assert client.recv(2000) == b"x" * 1000
    assert client.recv(1) == b""


def test_as_much_as_the_kernel_takes(pair: tuple[socket.socket, Connection]) -> None:
    client, connection = pair
    data = b"x" * 100_000_000
    sent = connection.send_last(data)
    assert 0 < sent < len(data)
    assert connection.send_last(data) == 0
    received = 0
    while received < sent:
        received += len(client.recv(1 << 20))
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recv(1)  # no FIN: more is to come


def test_nobody_is_there(pair: tuple[socket.socket, Connection]) -> None:
    _, connection = pair
    connection.sock.shutdown(socket.SHUT_WR)
    assert connection.send_last(b"x") == 1
