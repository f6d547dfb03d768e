"""Timeouts of the connection manager, of routes, clusters and idle connections."""

from __future__ import annotations

import pytest

from tests.unit.http.http_messages import GET, OK5, POST5, Make
from tests.unit.http.http_world import cluster, manager, route, virtual_host


def test_route_timeout(world_of: Make) -> None:
    world = world_of(manager(virtual_host(route(timeout=2.0))))
    client = world.client()
    client.send(GET)
    world.advance(1.9)
    assert client.take() == b""
    world.advance(0.2)
    assert client.take().endswith(b"\r\n\r\nupstream request timeout")
    assert world.log == [b"504 UT response_timeout"]
    assert world.upstreams[0].closed and not client.closed
    world.settled()


def test_route_timeout_within_the_body(world_of: Make) -> None:
    world = world_of(manager(virtual_host(route(timeout=2.0))))
    client = world.client()
    client.send(GET)
    world.upstreams[0].send(OK5[:-2])
    world.advance(2.1)
    assert world.log == [b"200 UT response_timeout"]
    world.advance(1.1)
    assert client.closed
    world.settled()


def test_stream_idle_timeout_starts_anew_with_data(world_of: Make) -> None:
    world = world_of(manager(virtual_host(route(timeout=0.0)), stream_idle_timeout=10.0))
    client = world.client()
    client.send(POST5)
    for byte in b"hell":
        world.advance(8)
        client.send(bytes([byte]))
    assert world.log == []
    world.advance(10.1)
    assert client.take().endswith(b"\r\n\r\nstream timeout")
    assert world.log == [b"408 SI stream_idle_timeout"]
    world.settled()


@pytest.mark.parametrize(("settings", "sent", "after", "log", "body"), [
    ({"request_headers_timeout": 3.0}, GET[:10], 3.1, b"408 - request_header_timeout", b"request header timeout"),
    ({"request_timeout": 3.0}, POST5, 3.1, b"408 - request_overall_timeout", b"request timeout"),
    ({"request_timeout": 3.0}, GET[:10], 3.1, b"408 - request_overall_timeout", b"request timeout"),
    ({"stream_idle_timeout": 3.0}, GET[:10], 3.1, b"408 SI stream_idle_timeout", b"stream timeout"),
    ({"stream_idle_timeout": 3.0}, GET, 3.1, b"504 SI stream_idle_timeout", b"stream timeout"),
    ({"max_stream_duration": 3.0}, GET, 3.1, b"504 - max_duration_timeout", b"downstream duration timeout"),
    ({"max_stream_duration": 3.0}, POST5, 3.1, b"408 - max_duration_timeout", b"downstream duration timeout"),
])
def test_timeouts_of_the_connection_manager(world_of: Make, settings: dict[str, float], sent: bytes, after: float,
                                            log: bytes, body: bytes) -> None:
    world = world_of(manager(**settings))  # type: ignore[arg-type]
    client = world.client()
    client.send(sent)
    world.advance(after - 0.2)
    assert client.take() == b""
    world.advance(0.2)
    assert client.take().endswith(b"\r\n\r\n" + body)
    assert world.log == [log]
    world.advance(2)
    world.settled()


def test_slow_head_within_the_limit(world_of: Make) -> None:
    world = world_of(manager(request_headers_timeout=3.0))
    client = world.client()
    client.send(GET[:10])
    world.advance(2.5)
    client.send(GET[10:])
    world.advance(10)
    world.upstreams[0].send(OK5)
    assert world.log == [b"200 - via_upstream"]
    world.settled()


def test_cluster_stream_duration(world_of: Make) -> None:
    world = world_of(manager(), cluster(max_stream_duration=1.0))
    client = world.client()
    client.send(GET)
    world.advance(1.1)
    assert client.take().endswith(b"upstream max stream duration reached")
    assert world.log == [b"504 UMSDR upstream_max_stream_duration_reached"]
    world.settled()


def test_idle_connection_of_a_client(world_of: Make) -> None:
    world = world_of(manager(idle_timeout=60.0))
    never, once = world.client(), world.client()
    once.send(GET)
    world.upstreams[0].send(OK5)
    world.advance(60.1)
    assert never.closed and not once.closed
    world.advance(5.1)
    assert not once.closed
    world.advance(1.1)
    assert once.closed
    assert world.stat("http.h.downstream_cx_idle_timeout") == 2
    world.settled()


def test_idle_connection_of_an_upstream(world_of: Make) -> None:
    world = world_of(manager(idle_timeout=0.0), cluster(idle_timeout=30.0))
    client = world.client()
    for _ in range(3):
        client.send(GET)
        world.upstreams[0].send(OK5)
        world.advance(20)
    assert not world.upstreams[0].closed
    world.advance(10.1)
    assert world.upstreams[0].closed
    assert world.stat("cluster.up.upstream_cx_idle_timeout") == 1
    world.settled()


def test_maximum_age_of_an_upstream_connection(world_of: Make) -> None:
    world = world_of(manager(idle_timeout=0.0), cluster(max_connection_duration=10.0))
    client = world.client()
    client.send(GET)
    world.advance(10.1)
    world.upstreams[0].send(OK5)
    assert world.upstreams[0].closed
    client.send(GET)
    world.upstreams[1].send(OK5)
    world.advance(10.1)
    assert world.upstreams[1].closed
    world.settled()


def test_connect_timeout(world_of: Make) -> None:
    world = world_of(manager(), cluster(connect_timeout=2.0))
    world.hold = True
    client = world.client()
    client.send(GET)
    world.advance(2.1)
    assert client.take().endswith(b"reset reason: connection timeout")
    assert world.log == [b"503 UF upstream_reset_before_response_started{connection_timeout}"]
    world.dials.clear()
    world.settled()
