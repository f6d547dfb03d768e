"""Bodies, HEAD, upgrades, local replies."""

from __future__ import annotations

import pytest

from proxy.config import model
from proxy.config.model import SocketAddress
from tests.unit.http.http_messages import CHUNKED, DATED, GET, OK5, OK5_DOWN, Make, local
from tests.unit.http.http_world import HOST, cluster, manager, route, table, virtual_host


@pytest.mark.parametrize(("answer", "expected"), [
    (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", b"content-length: 5\r\n"),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n"),
])
def test_head(world_of: Make, answer: bytes, expected: bytes) -> None:
    world = world_of()
    client = world.client()
    client.send(b"HEAD" + GET[3:])
    world.upstreams[0].send(answer)
    got = client.take()
    assert expected in got and got.endswith(b"\r\n\r\n")
    client.send(GET)
    assert len(world.upstreams) == 1
    world.settled()


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_responses_without_a_body(world_of: Make, status: bytes) -> None:
    world = world_of()
    client = world.client()
    client.send(GET)
    world.upstreams[0].send(b"HTTP/1.1 " + status + b"\r\n" + DATED + b"\r\n")
    assert client.take() == (b"HTTP/1.1 " + status + b"\r\n" + DATED
                             + b"x-envoy-upstream-service-time: 0\r\nserver: envoy\r\n\r\n")
    client.send(GET)
    assert len(world.upstreams) == 1
    world.settled()


def test_chunked_response_with_trailers(world_of: Make) -> None:
    for trailers in (False, True):
        options = model.Http1Options(enable_trailers=trailers)
        world = world_of(manager(http1=options), cluster(http1=options))
        client = world.client()
        client.send(CHUNKED + b"1\r\nx\r\n0\r\nq: 1\r\n\r\n")
        assert world.upstreams[0].take().endswith(b"0\r\nq: 1\r\n\r\n" if trailers else b"0\r\n\r\n")
        world.upstreams[0].send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
                                b"2\r\nab\r\n3\r\ncde\r\n0\r\nt: 1\r\n\r\n")
        assert client.take().endswith(b"5\r\nabcde\r\n" + (b"0\r\nt: 1\r\n\r\n" if trailers else b"0\r\n\r\n"))
        world.settled()


UPGRADE = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: WebSocket\r\n\r\n"


def test_upgrade(world_of: Make) -> None:
    world = world_of(manager(upgrade_types=((b"websocket", True),)))
    client = world.client()
    client.send(UPGRADE + b"early")
    upstream = world.upstreams[0]
    sent = upstream.take()
    assert b"\r\nconnection: upgrade\r\nupgrade: WebSocket\r\n" in sent and sent.endswith(b"\r\n\r\nearly")
    upstream.send(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: WebSocket\r\n\r\nhi")
    got = client.take()
    assert got.startswith(b"HTTP/1.1 101 Switching Protocols\r\n") and got.endswith(b"\r\n\r\nhi")
    assert b"\r\nconnection: upgrade\r\nupgrade: WebSocket\r\n" in got
    client.send(b"ping")
    assert upstream.take() == b"ping"
    world.advance(20)
    upstream.send(b"pong")
    assert client.take() == b"pong"
    assert world.stat("http.h.downstream_cx_upgrades_active") == 1
    upstream.finish()
    assert world.stat("http.h.downstream_cx_upgrades_active") == 0
    world.advance(1.1)
    assert client.closed
    world.settled()


@pytest.mark.parametrize("upgrades", [(), ((b"websocket", False),)])
def test_upgrade_refused(world_of: Make, upgrades: tuple[tuple[bytes, bool], ...]) -> None:
    world = world_of(manager(upgrade_types=upgrades))
    client = world.client()
    client.send(UPGRADE + b"GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n")
    assert client.take() == local(b"403 Forbidden", close=True)
    assert world.upstreams == []
    world.advance(2)
    assert client.closed
    world.settled()


def test_upgrade_that_the_upstream_ignores(world_of: Make) -> None:
    world = world_of(manager(upgrade_types=((b"websocket", True),)))
    client = world.client()
    client.send(UPGRADE)
    world.upstreams[0].send(b"HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 4\r\n\r\nbody")
    assert client.take() == local(b"200 OK", close=True)
    assert world.log == [b"200 - websocket_handshake_unsuccessful"]
    world.advance(2)
    world.settled()


@pytest.mark.parametrize(("config", "sent", "status", "log"), [
    (manager(virtual_host(domains=(b"other",))), GET, b"404 Not Found", b"404 NR route_not_found"),
    (manager(virtual_host(route("gone"))), GET, b"503 Service Unavailable", b"503 NC cluster_not_found"),
    (manager(), b"GET / HTTP/1.1\r\n\r\n", b"400 Bad Request", b"400 - missing_host_header"),
    (manager(), b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", b"404 Not Found", b"404 - absolute_path_rejected"),
    (manager(), b"GET /#f HTTP/1.1\r\nhost: a\r\n\r\n", b"400 Bad Request", b"400 - path_normalization_failed"),
    (manager(), b"QUERY / HTTP/1.1\r\nhost: a\r\n\r\n", b"400 Bad Request", b"400 - query_missing_content_type"),
])
def test_local_replies(world_of: Make, config: model.HttpConnectionManager, sent: bytes, status: bytes,
                       log: bytes) -> None:
    world = world_of(config)
    client = world.client()
    client.send(sent)
    assert client.take() == local(status, close=status.startswith(b"400"))
    assert world.log == [log]
    world.advance(2)
    world.settled()


def test_no_hosts(world_of: Make) -> None:
    world = world_of(manager(), model.Cluster("up"))
    client = world.client()
    client.send(GET)
    assert client.take() == local(b"503 Service Unavailable", b"no healthy upstream")
    assert world.log == [b"503 UH no_healthy_upstream"]
    world.settled()


def test_http_1_0(world_of: Make) -> None:
    world = world_of(manager(http1=model.Http1Options(accept_http_10=True, default_host_for_http_10=b"d")))
    client = world.client()
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    assert world.upstreams[0].take().startswith(b"GET / HTTP/1.1\r\nhost: d\r\n")
    world.upstreams[0].send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    got = client.take()
    assert got.startswith(b"HTTP/1.0 200 OK\r\n") and got.endswith(b"\r\nconnection: close\r\n\r\nhello")
    assert client.closed
    world.settled()


def test_circuit_breakers(world_of: Make) -> None:
    limits = model.Thresholds(max_connections=1, max_pending_requests=1)
    world = world_of(manager(), cluster(default=limits))
    clients = [world.client() for _ in range(3)]
    for client in clients:
        client.send(GET)
    assert len(world.upstreams) == 1
    assert clients[2].take() == local(
        b"503 Service Unavailable",
        b"upstream connect error or disconnect/reset before headers. reset reason: overflow",
        b"x-envoy-overloaded: true")
    assert world.log == [b"503 UO upstream_reset_before_response_started{overflow}"]
    for client in clients[:2]:
        world.upstreams[0].send(OK5)
        assert client.take() == OK5_DOWN
    assert len(world.upstreams) == 1
    world.settled()


def test_bad_chunk_within_a_request(world_of: Make) -> None:
    world = world_of()
    client = world.client()
    client.send(CHUNKED)
    client.send(b"5\r\nhello\r\nx\r\n")
    assert client.take() == local(b"400 Bad Request", b"Bad Request", close=True)
    assert world.upstreams[0].closed
    assert world.log == [b"400 DPE http1.codec_error"]
    world.advance(2)
    world.settled()


def test_weighted_clusters_and_source_address(world_of: Make) -> None:
    weighted = (model.WeightedCluster("up", 1), model.WeightedCluster("two", 99, host_rewrite_literal=b"w"))
    entry = model.Route("", model.RouteMatch(model.PREFIX, b"/"),
                        model.RouteAction(weighted_clusters=weighted, weighted_header_name=b"x-slot"))
    source = SocketAddress("127.0.0.6", 0)
    world = world_of(manager(routes=table(virtual_host(entry))), cluster(),
                     cluster(SocketAddress("10.0.0.2", 1), name="two", source_addresses=(source,)))
    world.hold = True
    client = world.client()
    client.send(GET[:-2] + b"x-slot: 101\r\n\r\n")
    assert world.dials[0][2:] == (SocketAddress("10.0.0.2", 1), ("127.0.0.6", 0))
    world.answer_dial()
    world.loop.run()
    assert world.upstreams[0].take().startswith(b"GET / HTTP/1.1\r\nhost: w\r\n")
    world.upstreams[0].send(OK5)
    client.send(GET[:-2] + b"x-slot: 100\r\n\r\n")
    assert world.dials[0][2:] == (HOST, None)
