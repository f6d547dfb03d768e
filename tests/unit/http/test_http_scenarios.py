"""Conversations through a connection manager: what a client and an upstream see, and what is counted and logged."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from proxy.config import model
from proxy.config.model import SocketAddress
from tests.unit.http.http_world import HOST, World, cluster, manager, route, table, virtual_host

Make = Callable[..., World]
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
GET_UP = b"GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-proto: http\r\nx-request-id: <id>\r\nx-envoy-expected-rq-timeout-ms: 15000\r\n"
DATED = b"date: Tue, 14 Nov 2023 22:13:20 GMT\r\n"
OK5 = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n" + DATED + b"\r\nhello"
OK5_DOWN = (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n" + DATED
            + b"x-envoy-upstream-service-time: 0\r\nserver: envoy\r\n\r\nhello")
POST5 = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"


def local(status: bytes, body: bytes = b"", *extra: bytes, close: bool = False) -> bytes:
    """A local reply."""
    lines = [b"HTTP/1.1 " + status, *extra]
    if body:
        lines += [b"content-length: %d" % len(body), b"content-type: text/plain"]
    lines += [DATED[:-2], b"server: envoy"]
    if close:
        lines.append(b"connection: close")
    if not body:
        lines.append(b"content-length: 0")
    return b"\r\n".join([*lines, b"", body])


def test_one_request(world_of: Make) -> None:
    world = world_of()
    client = world.client()
    client.send(GET)
    (upstream,) = world.upstreams
    assert upstream.take() == GET_UP + b"\r\n"
    upstream.send(OK5)
    assert client.take() == OK5_DOWN
    assert world.log == [b"200 - via_upstream"]
    world.settled()


def test_keep_alive_reuses_the_connection(world_of: Make) -> None:
    world = world_of()
    client = world.client()
    for _ in range(5):
        client.send(GET)
        assert world.upstreams[0].take() == GET_UP + b"\r\n"
        world.upstreams[0].send(OK5)
        assert client.take() == OK5_DOWN
        world.advance(0)
    assert len(world.upstreams) == 1
    assert world.stat("cluster.up.upstream_rq_total") == 5
    world.settled()


def test_byte_by_byte(world_of: Make) -> None:
    world = world_of()
    client = world.client()
    client.send(*[bytes([b]) for b in CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"])
    upstream = world.upstreams[0]
    head, _, body = upstream.take().partition(b"\r\n\r\n")
    assert head.startswith(b"POST / HTTP/1.1\r\nhost: a\r\n") and head.endswith(b"\r\ntransfer-encoding: chunked")
    assert body == b"".join(b"1\r\n%b\r\n" % bytes([b]) for b in b"hello") + b"0\r\n\r\n"
    upstream.send(*[bytes([b]) for b in OK5])
    assert client.take() == OK5_DOWN
    assert world.log == [b"200 - via_upstream"]
    world.settled()


def test_pipelined_requests_are_served_one_after_the_other(world_of: Make) -> None:
    world = world_of()
    client = world.client()
    paths = [b"/%d" % n for n in range(4)]
    client.send(b"".join(b"GET %b HTTP/1.1\r\nhost: a\r\n\r\n" % p for p in paths))
    for path in paths:
        (upstream,) = [u for u in world.upstreams if u.received]
        assert upstream.take().startswith(b"GET %b HTTP/1.1\r\n" % path)
        upstream.send(b"HTTP/1.1 200 OK\r\n" + DATED + b"content-length: 2\r\n\r\n" + path)
        assert client.take().endswith(b"\r\n\r\n" + path)
    world.settled()


def test_thousands_of_pipelined_requests_answered_at_once(world_of: Make) -> None:
    entry = model.Route("d", model.RouteMatch(model.PREFIX, b"/"), model.DirectResponse(200, b"hi"))
    world = world_of(manager(virtual_host(entry)))
    client = world.client()
    client.send(GET * 3000)
    assert client.take().count(b"HTTP/1.1 200 OK\r\n") == 3000
    assert world.stat("http.h.downstream_rq_2xx") == 3000
    world.settled()


def test_pipelined_bytes_are_bounded(world_of: Make) -> None:
    world = world_of()
    client = world.client()
    client.send(GET)
    sent = 0
    while not client.transport.paused:
        client.send(GET * 100)
        sent += len(GET) * 100
        assert sent < 1 << 20
    assert world.stat("http.h.downstream_flow_control_paused_reading_total") == 1
    answers = 0
    while client.transport.paused:
        (busy,) = [u for u in world.upstreams if u.transport.protocol.stream is not None]
        busy.send(OK5)
        answers += 1
        assert answers <= 101
    assert client.received.count(b"HTTP/1.1 200 OK") == answers
    world.settled()


def test_a_bad_request_after_a_good_one(world_of: Make) -> None:
    world = world_of()
    client = world.client()
    client.send(GET + b"nonsense\r\n\r\n")
    assert client.take() == b""
    world.upstreams[0].send(OK5)
    assert client.take() == OK5_DOWN + local(b"400 Bad Request", b"Bad Request", close=True)
    assert world.log == [b"200 - via_upstream", b"400 DPE http1.codec_error"]
    world.settled()


def test_100_continue_is_answered_by_us(world_of: Make) -> None:
    world = world_of()
    client = world.client()
    client.send(POST5[:-2] + b"expect: 100-continue\r\n\r\n")
    assert client.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert b"expect" not in world.upstreams[0].received.replace(b"x-envoy-expected", b"")
    client.send(b"hello")
    assert world.upstreams[0].take().endswith(b"\r\n\r\nhello")
    world.upstreams[0].send(OK5)
    assert client.take() == OK5_DOWN
    world.settled()


def test_100_continue_of_the_upstream(world_of: Make) -> None:
    world = world_of(manager(proxy_100_continue=True))
    client = world.client()
    client.send(POST5[:-2] + b"expect: 100-continue\r\n\r\n")
    assert b"\r\nexpect: 100-continue\r\n" in world.upstreams[0].take()
    world.upstreams[0].send(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert client.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"hello")
    world.upstreams[0].send(OK5)
    assert client.take() == OK5_DOWN
    assert world.stat("cluster.up.upstream_rq_100") == 1
    world.settled()


def test_interim_responses_are_swallowed(world_of: Make) -> None:
    world = world_of()
    client = world.client()
    client.send(GET)
    world.upstreams[0].send(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK5)
    assert client.take() == OK5_DOWN
    world.settled()


def test_early_response_ends_the_connections(world_of: Make) -> None:
    world = world_of()
    client = world.client()
    client.send(POST5 + b"he")
    world.upstreams[0].send(OK5)
    assert client.take() == (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n" + DATED
                             + b"server: envoy\r\nconnection: close\r\n\r\nhello")
    assert world.upstreams[0].closed
    assert not client.closed, "the rest of the body is read and dropped for a while"
    client.send(b"llo" + GET)
    world.advance(1.1)
    assert client.closed
    assert client.take() == b""
    assert world.stat("http.h.downstream_rq_response_before_rq_complete") == 1
    world.settled()


@pytest.mark.parametrize(("answer", "expected", "log"), [
    (b"", local(b"503 Service Unavailable", b"upstream connect error or disconnect/reset before headers. "
                b"reset reason: connection termination"),
     b"503 UC upstream_reset_before_response_started{connection_termination}"),
    (b"HTTP/1.1 2", local(b"502 Bad Gateway", b"upstream connect error or disconnect/reset before headers. "
                          b"reset reason: protocol error"),
     b"502 UPE upstream_reset_before_response_started{protocol_error}"),
    (b"garbage\r\n", local(b"502 Bad Gateway", b"upstream connect error or disconnect/reset before headers. "
                           b"reset reason: protocol error"),
     b"502 UPE upstream_reset_before_response_started{protocol_error}"),
])
@pytest.mark.parametrize("how", ["finish", "reset"])
def test_upstream_gone_before_the_response(world_of: Make, answer: bytes, expected: bytes, log: bytes,
                                           how: str) -> None:
    world = world_of()
    client = world.client()
    client.send(GET)
    if answer:
        world.upstreams[0].send(answer)
    getattr(world.upstreams[0], how)()
    assert client.take() == expected
    assert world.log == [log]
    assert not client.closed
    client.send(GET)
    world.upstreams[1].send(OK5)
    assert client.take() == OK5_DOWN
    world.settled()


@pytest.mark.parametrize("framing", [b"content-length: 9\r\n", b"transfer-encoding: chunked\r\n"])
@pytest.mark.parametrize("how", ["finish", "reset"])
def test_upstream_gone_within_the_body(world_of: Make, framing: bytes, how: str) -> None:
    world = world_of()
    client = world.client()
    client.send(GET)
    world.upstreams[0].send(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n5\r\nhel")
    getattr(world.upstreams[0], how)()
    assert b"0\r\n\r\n" not in client.take()
    world.advance(1.1)
    assert client.closed
    assert world.log == [b"200 UPE upstream_reset_after_response_started{protocol_error}"]
    world.settled()


def test_body_until_close(world_of: Make) -> None:
    world = world_of()
    client = world.client()
    client.send(GET)
    world.upstreams[0].send(b"HTTP/1.1 200 OK\r\n" + DATED + b"\r\nhel", b"lo")
    world.upstreams[0].finish()
    assert client.take() == (b"HTTP/1.1 200 OK\r\n" + DATED + b"x-envoy-upstream-service-time: 0\r\nserver: envoy\r\n"
                             b"transfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n")
    assert world.log == [b"200 - via_upstream"]
    world.settled()


def test_client_gone(world_of: Make) -> None:
    world = world_of()
    client = world.client()
    client.send(GET)
    client.finish()
    assert world.upstreams[0].closed
    assert world.log == [b"0 DC downstream_remote_disconnect"]
    world.settled()


def test_client_gone_within_a_head(world_of: Make) -> None:
    world = world_of()
    client = world.client()
    client.send(GET[:10])
    client.finish()
    assert world.log == [b"0 DC downstream_remote_disconnect"]
    world.settled()


def test_client_gone_while_dialling(world_of: Make) -> None:
    world = world_of()
    world.hold = True
    client = world.client()
    client.send(GET)
    client.reset()
    assert world.log == [b"0 DC downstream_remote_disconnect"]
    world.answer_dial()
    world.loop.run()
    assert world.stat("cluster.up.upstream_rq_cancelled") == 1
    other = world.client()
    other.send(GET)
    assert len(world.upstreams) == 1, "the connection serves the next"
    world.upstreams[0].send(OK5)
    assert other.take() == OK5_DOWN
    world.settled()


def test_body_arrives_before_the_connection(world_of: Make) -> None:
    world = world_of(None, per_connection_buffer_limit_bytes=10)
    world.hold = True
    client = world.client()
    client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 16\r\n\r\n", b"01234567", b"89abc")
    assert client.transport.paused
    world.hold = False
    world.answer_dial()
    world.loop.run()
    assert not client.transport.paused
    client.send(b"def")
    assert world.upstreams[0].take().endswith(b"\r\n\r\n0123456789abcdef")
    world.upstreams[0].send(OK5)
    assert client.take() == OK5_DOWN
    world.settled()


def test_backpressure_both_ways(world_of: Make) -> None:
    world = world_of()
    client = world.client()
    client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n")
    upstream = world.upstreams[0]
    upstream.transport.protocol.pause_writing()
    assert client.transport.paused
    upstream.transport.protocol.resume_writing()
    assert not client.transport.paused
    client.send(b"x" * 100)
    upstream.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n")
    client.transport.protocol.pause_writing()
    assert upstream.transport.paused
    client.transport.protocol.resume_writing()
    assert not upstream.transport.paused
    upstream.send(b"x" * 10)
    assert world.log == [b"200 - via_upstream"]
    world.settled()


def test_a_paused_client_that_leaves_frees_the_upstream(world_of: Make) -> None:
    world = world_of()
    client = world.client()
    client.send(GET)
    client.transport.protocol.pause_writing()
    world.upstreams[0].send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nx")
    assert world.upstreams[0].transport.paused
    client.reset()
    assert world.upstreams[0].closed
    world.settled()


# Timeouts


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


# Retries


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


# Drain and the end of connections


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


# Bodies, HEAD, upgrades, local replies


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
        world.upstreams[0].send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\nt: 1\r\n\r\n")
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
