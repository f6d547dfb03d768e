"""Retries with their back-off, and what replaces a stale connection."""

from __future__ import annotations

import random

import pytest

from proxy.config import model
from proxy.config.model import SocketAddress
from tests.unit.http.http_messages import GET, GET_UP, OK5, OK5_DOWN, POST5, Make
from tests.unit.http.http_world import World, cluster, manager, route, virtual_host


def retrying(*tokens: str, num_retries: int = 2, **settings: object) -> model.HttpConnectionManager:
    policy = model.RetryPolicy(frozenset(tokens), num_retries, **settings)  # type: ignore[arg-type]
    return manager(virtual_host(route(retry_policy=policy), include_request_attempt_count=True,
                                include_attempt_count_in_response=True))


def test_connect_failure_is_retried_with_backoff(world_of: Make) -> None:
    random.seed(4)
    world = world_of(retrying("connect-failure"))
    world.refuse = True
    client = world.client()
    client.send(GET)
    assert client.take() == b""
    world.advance(0.03)
    assert world.stat("cluster.up.upstream_cx_connect_fail") == 2
    world.refuse = False
    world.advance(0.08)
    assert b"\r\nx-envoy-attempt-count: 3\r\n" in world.upstreams[0].take()
    world.upstreams[0].send(OK5)
    assert b"\r\nx-envoy-attempt-count: 3\r\n" in client.take()
    assert world.log == [b"200 - via_upstream"]
    assert world.stat("cluster.up.upstream_rq_retry") == 2
    assert world.stat("cluster.up.upstream_rq_retry_success") == 1
    assert world.stat("cluster.up.circuit_breakers.default.rq_retry_open") == 0
    world.settled()


def test_retries_end(world_of: Make) -> None:
    world = world_of(retrying("connect-failure"))
    world.refuse = True
    client = world.client()
    client.send(GET)
    world.advance(1)
    assert client.take().endswith(
        b"upstream connect error or disconnect/reset before headers. retried and the latest reset reason: "
        b"remote connection failure")
    assert world.log == [b"503 URX,UF upstream_reset_before_response_started{remote_connection_failure|"
                         b"delayed_connect_error:_Connection_refused}"]
    assert world.stat("cluster.up.upstream_rq_retry_limit_exceeded") == 1
    world.settled()


def test_body_is_sent_again(world_of: Make) -> None:
    world = world_of(retrying("5xx"))
    client = world.client()
    client.send(POST5 + b"he")
    client.send(b"llo")
    world.upstreams[0].send(b"HTTP/1.1 503 X\r\ncontent-length: 3\r\n\r\nbad")
    world.advance(1)
    assert world.upstreams[1].take().endswith(b"\r\n\r\nhello")
    world.upstreams[1].send(OK5)
    assert client.take().endswith(b"\r\n\r\nhello")
    assert world.stat("cluster.up.retry.upstream_rq_503") == 1
    world.settled()


def test_per_try_timeout(world_of: Make) -> None:
    world = world_of(retrying("5xx", per_try_timeout=1.0))
    client = world.client()
    client.send(GET)
    assert b"\r\nx-envoy-expected-rq-timeout-ms: 1000\r\n" in world.upstreams[0].take()
    world.advance(1.1)
    assert world.upstreams[0].closed and len(world.upstreams) == 2
    world.upstreams[1].send(OK5)
    assert world.log == [b"200 - via_upstream"]
    assert world.stat("cluster.up.upstream_rq_per_try_timeout") == 1
    world.settled()


def test_retries_in_progress_are_limited(world_of: Make) -> None:
    world = world_of(retrying("5xx"), cluster(default=model.Thresholds(max_retries=1)))
    first, second = world.client(), world.client()
    first.send(GET)
    second.send(GET)
    failed = b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n"
    world.upstreams[0].send(failed)
    world.upstreams[1].send(failed)
    assert first.take() == b""
    assert second.take().startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert world.log == [b"500 UO via_upstream"]
    world.advance(0.1)
    world.upstreams[1].send(OK5)
    assert world.log[1:] == [b"200 - via_upstream"]
    world.settled()


def test_client_gone_while_waiting_for_a_retry(world_of: Make) -> None:
    world = world_of(retrying("5xx"))
    client = world.client()
    client.send(GET)
    world.upstreams[0].send(b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n")
    client.finish()
    world.advance(1)
    assert world.log == [b"0 DC downstream_remote_disconnect"]
    assert world.context.clusters.get("up").breakers[0].retries == 0  # type: ignore[union-attr]
    world.settled()


def test_previous_hosts_are_avoided(world_of: Make) -> None:
    policy = model.RetryPolicy(frozenset({"5xx"}), 3, avoid_previous_hosts=True, host_selection_retry_max_attempts=50)
    hosts = [SocketAddress(f"10.0.0.{n}", 80) for n in range(1, 5)]
    world = world_of(manager(virtual_host(route(retry_policy=policy))), cluster(*hosts, lb_policy=model.RANDOM))
    client = world.client()
    client.send(GET)
    for n in range(4):
        world.upstreams[n].send(b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n")
        world.advance(1)
    assert {u.address for u in world.upstreams} == set(hosts)  # type: ignore[attr-defined]
    world.settled()


def warm(world: World) -> None:
    """Leave one idle upstream connection."""
    client = world.client()
    client.send(GET)
    world.upstreams[0].send(OK5)
    world.upstreams[0].take()
    world.log.clear()


def test_stale_connection_is_replaced(world_of: Make) -> None:
    world = world_of()
    warm(world)
    client = world.client()
    client.send(GET)
    assert world.upstreams[0].take() == GET_UP + b"\r\n"
    world.upstreams[0].finish()
    assert world.upstreams[1].take() == GET_UP + b"\r\n"
    world.upstreams[1].send(OK5)
    assert client.take() == OK5_DOWN
    assert world.log == [b"200 - via_upstream"]
    world.settled()


@pytest.mark.parametrize(("sent", "answer"), [
    (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", b""),
    (b"PATCH / HTTP/1.1\r\nhost: a\r\n\r\n", b""),
    (b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx", b""),
    (b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\n", b""),
    (GET, b"H"),
    (GET, b"HTTP/1.1 102 Processing\r\n\r\n"),
])
def test_stale_connection_is_not_replaced_when_that_is_unsafe(world_of: Make, sent: bytes, answer: bytes) -> None:
    world = world_of()
    warm(world)
    client = world.client()
    client.send(sent)
    if answer:
        world.upstreams[0].send(answer)
    world.upstreams[0].finish()
    assert len(world.upstreams) == 1
    assert client.take().startswith(b"HTTP/1.1 50")
    world.advance(2)
    world.settled()


def test_stale_connection_is_replaced_once(world_of: Make) -> None:
    world = world_of()
    warm(world)
    client = world.client()
    client.send(GET)
    world.upstreams[0].finish()
    world.upstreams[1].finish()
    assert client.take().startswith(b"HTTP/1.1 503 ")
    assert len(world.upstreams) == 2
    world.settled()


def test_idle_connection_closed_by_the_upstream_is_not_used(world_of: Make) -> None:
    world = world_of()
    warm(world)
    world.upstreams[0].finish()
    client = world.client()
    client.send(GET)
    world.upstreams[1].send(OK5)
    assert client.take() == OK5_DOWN
    world.settled()


def test_bytes_without_a_request_end_the_upstream_connection(world_of: Make) -> None:
    world = world_of()
    warm(world)
    world.upstreams[0].send(OK5)
    assert world.upstreams[0].closed
    assert world.stat("cluster.up.upstream_cx_protocol_error") == 1
    client = world.client()
    client.send(GET)
    world.upstreams[1].send(OK5)
    assert client.take() == OK5_DOWN
    world.settled()


def test_two_responses_in_one_read(world_of: Make) -> None:
    world = world_of()
    client = world.client()
    client.send(GET + GET)
    world.upstreams[0].send(OK5 + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
    assert client.take() == OK5_DOWN
    assert world.upstreams[0].closed
    world.upstreams[1].send(OK5)
    assert client.take() == OK5_DOWN
    world.settled()
