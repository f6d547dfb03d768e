"""Drain and the end of connections."""

from __future__ import annotations

import pytest

from tests.unit.http.http_messages import GET, OK5, OK5_DOWN, Make
from tests.unit.http.http_world import cluster, manager


def test_drain(world_of: Make) -> None:
    world = world_of()
    client = world.client()
    client.send(GET)
    world.listener.draining = True
    world.upstreams[0].send(OK5)
    assert b"\r\nconnection: close\r\n" in client.take()
    assert not client.closed
    world.advance(3)
    client.send(GET)
    world.upstreams[0].send(OK5)
    assert b"\r\nconnection: close\r\n" in client.take()
    world.advance(2.1)
    world.advance(1.1)
    assert client.closed
    assert world.stat("http.h.downstream_cx_drain_close") == 1
    world.settled()


def test_connection_close_of_the_client(world_of: Make) -> None:
    world = world_of()
    client = world.client()
    client.send(GET[:-2] + b"connection: close\r\n\r\n")
    assert b"connection" not in world.upstreams[0].take()
    world.upstreams[0].send(OK5)
    assert client.take().endswith(b"connection: close\r\n\r\nhello")
    assert client.closed and not world.upstreams[0].closed
    world.settled()


def test_connection_close_of_the_upstream(world_of: Make) -> None:
    world = world_of()
    client = world.client()
    client.send(GET)
    world.upstreams[0].send(OK5.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
    assert client.take() == OK5_DOWN
    assert world.upstreams[0].closed and not client.closed
    assert world.stat("cluster.up.upstream_cx_close_notify") == 1
    world.settled()


def test_requests_of_one_connection_are_limited_on_both_sides(world_of: Make) -> None:
    world = world_of(manager(max_requests_per_connection=3), cluster(max_requests_per_connection=2))
    client = world.client()
    for n in range(3):
        client.send(GET)
        world.upstreams[n // 2].send(OK5)
        assert (b"\r\nconnection: close\r\n" in client.take()) is (n == 2)
    assert client.closed and world.upstreams[0].closed and not world.upstreams[1].closed
    assert world.stat("http.h.downstream_cx_max_requests_reached") == 1
    assert world.stat("cluster.up.upstream_cx_max_requests") == 1
    world.settled()


CLOSING_GET = GET[:-2] + b"connection: close\r\n\r\n"


@pytest.mark.parametrize("room", [None, 10, 0])
@pytest.mark.parametrize("times", [1, 3])
def test_fin_goes_with_the_last_bytes_if_the_kernel_takes_them_all(world_of: Make, room: int | None, times: int
                                                                   ) -> None:
    world = world_of()
    for _ in range(times):  # later ones are answered by plans
        client = world.client()
        client.sock.room = room
        client.send(CLOSING_GET)
        world.upstreams[0].send(OK5)
        assert client.take().endswith(b"connection: close\r\n\r\nhello")
        assert client.sock.ended is (room is None)
        assert client.closed
    world.settled()


def test_fin_waits_for_what_the_client_has_not_taken(world_of: Make) -> None:
    world = world_of()
    client = world.client()
    client.send(CLOSING_GET)
    client.transport.unsent = 1
    world.upstreams[0].send(OK5)
    assert client.take().endswith(b"connection: close\r\n\r\nhello")
    assert not client.sock.ended


def test_last_bytes_for_a_client_that_is_gone(world_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_of()
    client = world.client()
    client.send(CLOSING_GET)

    def gone(*_: object) -> int:
        raise ConnectionResetError

    monkeypatch.setattr(client.sock, "send", gone)
    world.upstreams[0].send(OK5)
    assert client.take() == b"" and client.closed
    world.settled()
