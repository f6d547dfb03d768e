"""Conversations through a connection manager: what a client and an upstream see, and what is counted and logged."""

from __future__ import annotations

import pytest

from proxy.config import model
from tests.unit.http.http_messages import CHUNKED, DATED, GET, GET_UP, OK5, OK5_DOWN, POST5, Make, local
from tests.unit.http.http_world import manager, virtual_host


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


def test_a_client_that_does_not_read_gets_no_further_responses(world_of: Make) -> None:
    entry = model.Route("d", model.RouteMatch(model.PREFIX, b"/"), model.DirectResponse(200, b"hi"))
    world = world_of(manager(virtual_host(entry)))
    client = world.client()
    client.transport.protocol.pause_writing()
    client.send(GET * 3)
    assert client.transport.paused and client.take() == b""
    client.transport.protocol.resume_writing()
    assert client.take().count(b"HTTP/1.1 200 OK\r\n") == 3
    assert not client.transport.paused
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
