"""What the connection manager does to request and response headers, seen from the other side."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from proxy.config import model
from proxy.http.request_rules import EDGE_STRIPPED, EXTERNAL_ONLY_STRIPPED
from tests.unit.http.http_world import World, manager, route, virtual_host

Make = Callable[..., World]
Pairs = list[tuple[bytes, bytes]]
PROTO = (b"x-forwarded-proto", b"http")
ID = (b"x-request-id", b"<id>")
PEER = b"10.9.9.9"
INTERNAL = {"internal_cidrs": (ip_network("10.0.0.0/8"),)}
NO_TIMEOUT = manager(virtual_host(route(timeout=0.0)))


def sent_upstream(world: World, *lines: bytes, start: bytes = b"GET / HTTP/1.1") -> Pairs:
    """The request headers that an upstream gets, without host."""
    client = world.client()
    client.send(b"\r\n".join([start, b"host: a", *lines, b"", b""]))
    assert world.upstreams, client.received
    head = world.upstreams[0].take().partition(b"\r\n\r\n")[0]
    return [tuple(line.split(b": ", 1)) for line in head.split(b"\r\n")[2:]]  # type: ignore[misc]


def forwarded_back(world: World, *lines: bytes, status: bytes = b"200 OK", request: tuple[bytes, ...] = ()) -> Pairs:
    """The response headers that a client gets."""
    client = world.client()
    client.send(b"\r\n".join([b"GET / HTTP/1.1", b"host: a", *request, b"", b""]))
    world.upstreams[0].send(b"\r\n".join([b"HTTP/1.1 " + status, b"content-length: 0", *lines, b"", b""]))
    head = client.take().partition(b"\r\n\r\n")[0]
    return [tuple(line.split(b": ", 1)) for line in head.split(b"\r\n")[1:]]  # type: ignore[misc]


@pytest.mark.parametrize(("settings", "lines", "expected"), [
    ({}, (), [PROTO, ID]),
    ({}, (b"Accept: x", b"X-A: 1", b"x-a: 2"), [(b"accept", b"x"), (b"x-a", b"1"), (b"x-a", b"2"), PROTO, ID]),
    ({"generate_request_id": False}, (), [PROTO]),
    ({}, (b"x-request-id: mine",), [(b"x-request-id", b"mine"), PROTO]),
    ({}, (b"x-request-id:",), [ID, PROTO]),
    ({}, (b"x-forwarded-proto: https",), [(b"x-forwarded-proto", b"https"), ID]),
    # Hop by hop.
    ({},
     (b"connection: keep-alive, x-a, te", b"x-a: 1", b"te: gzip, Trailers", b"keep-alive: 5", b"proxy-connection: x"),
     [(b"te", b"trailers"), PROTO, ID]),
    ({}, (b"te: gzip",), [PROTO, ID]),
    ({}, (b"upgrade: websocket",), [PROTO, ID]),
    ({}, (b"connection: upgrade", b"upgrade: h2c", b"http2-settings: x"), [(b"http2-settings", b"x"), PROTO, ID]),
    ({}, (b"proxy-authorization: x", b"trailer: y"), [(b"proxy-authorization", b"x"), (b"trailer", b"y"), PROTO, ID]),
    ({}, (b"expect: 100-Continue",), [PROTO, ID]),
    ({}, (b"expect: other",), [(b"expect", b"other"), PROTO, ID]),
    # What only those inside may say.
    *[({}, (name + b": 1",), [PROTO, ID]) for name in sorted(EXTERNAL_ONLY_STRIPPED)],
    *[({}, (name + b": 1",),
       [(name, b"1"), PROTO, ID]) for name in sorted(EDGE_STRIPPED - {b"x-envoy-decorator-operation"})],
    ({}, (b"x-envoy-internal: true",), [PROTO, ID]),
    ({}, (b"x-envoy-attempt-count: 9", b"x-envoy-peer-metadata: y"),
     [(b"x-envoy-attempt-count", b"9"), (b"x-envoy-peer-metadata", b"y"), PROTO, ID]),
    ({}, (b"x-forwarded-client-cert: x",), [PROTO, ID]),
    ({"always_forward_client_cert": True}, (b"x-forwarded-client-cert: x",),
     [(b"x-forwarded-client-cert", b"x"), PROTO, ID]),
    ({}, (b"referer: http://a/b",), [(b"referer", b"http://a/b"), PROTO, ID]),
    ({}, (b"referer: http://user@a/b",), [PROTO, ID]),
    # Addresses.
    ({}, (b"x-forwarded-for: 1.2.3.4",), [(b"x-forwarded-for", b"1.2.3.4"), PROTO, ID]),
    ({"use_remote_address": True}, (),
     [(b"x-forwarded-for", PEER), PROTO, (b"x-envoy-external-address", PEER), ID]),
    ({"use_remote_address": True}, (b"x-forwarded-for: 1.2.3.4", b"x-forwarded-proto: https"),
     [(b"x-forwarded-for", b"1.2.3.4," + PEER), PROTO, (b"x-envoy-external-address", PEER), ID]),
    ({"use_remote_address": True, "skip_xff_append": True}, (b"x-forwarded-for: 1.2.3.4",),
     [(b"x-forwarded-for", b"1.2.3.4"), PROTO, (b"x-envoy-external-address", PEER), ID]),
    ({"use_remote_address": True, "xff_num_trusted_hops": 1},
     (b"x-forwarded-for: 9.9.9.9, 1.2.3.4", b"x-forwarded-proto: https"),
     [(b"x-forwarded-for", b"9.9.9.9, 1.2.3.4," + PEER), (b"x-forwarded-proto", b"https"),
      (b"x-envoy-external-address", b"1.2.3.4"), ID]),
    ({"use_remote_address": True, **INTERNAL}, (b"x-envoy-max-retries: 3", b"x-envoy-decorator-operation: o"),
     [(b"x-envoy-decorator-operation", b"o"), (b"x-forwarded-for", PEER), PROTO, (b"x-envoy-internal", b"true"), ID]),
    ({"use_remote_address": True, **INTERNAL}, (b"x-forwarded-for: 1.2.3.4", b"x-envoy-original-path: /o"),
     [(b"x-forwarded-for", b"1.2.3.4," + PEER), PROTO, (b"x-envoy-external-address", PEER), ID]),
    (INTERNAL, (b"x-forwarded-for: 10.1.1.1",),
     [(b"x-forwarded-for", b"10.1.1.1"), PROTO, (b"x-envoy-internal", b"true"), ID]),
    (INTERNAL, (b"x-forwarded-for: 10.1.1.1, 10.1.1.2", b"x-envoy-internal: true"),
     [(b"x-forwarded-for", b"10.1.1.1, 10.1.1.2"), PROTO, ID]),
    (INTERNAL, (b"x-forwarded-for: nonsense",), [(b"x-forwarded-for", b"nonsense"), PROTO, ID]),
    ({"use_remote_address": True}, (b"x-request-id: theirs",),
     [ID, (b"x-forwarded-for", PEER), PROTO, (b"x-envoy-external-address", PEER)]),
    ({"use_remote_address": True, "preserve_external_request_id": True}, (b"x-request-id: theirs",),
     [(b"x-request-id", b"theirs"), (b"x-forwarded-for", PEER), PROTO, (b"x-envoy-external-address", PEER)]),
    # More.
    ({"append_x_forwarded_port": True}, (), [PROTO, (b"x-forwarded-port", b"10000"), ID]),
    ({"via": b"me"}, (b"via: you",), [(b"via", b"you, me"), PROTO, ID]),
    ({"add_user_agent": True}, (b"user-agent: ua",),
     [(b"user-agent", b"ua"), PROTO, (b"x-envoy-downstream-service-cluster", b""),
      (b"x-envoy-downstream-service-node", b""), ID]),
])
def test_requests(world_of: Make, settings: dict[str, Any], lines: tuple[bytes, ...], expected: Pairs) -> None:
    world = world_of(replace(NO_TIMEOUT, **settings))
    assert sent_upstream(world, *lines) == expected


@pytest.mark.parametrize(("method", "framing"), [
    (b"GET", []), (b"HEAD", []), (b"DELETE", []), (b"TRACE", []), (b"POST", [(b"content-length", b"0")]),
    (b"PUT", [(b"content-length", b"0")]), (b"PATCH", [(b"content-length", b"0")]),
    (b"OPTIONS", [(b"content-length", b"0")]),
])
def test_framing_of_requests_without_a_body(world_of: Make, method: bytes, framing: Pairs) -> None:
    assert sent_upstream(world_of(NO_TIMEOUT), start=method + b" / HTTP/1.1") == [PROTO, ID, *framing]


def test_content_length_that_connection_nominates(world_of: Make) -> None:
    got = sent_upstream(world_of(NO_TIMEOUT), b"connection: content-length", b"content-length: 5",
                        start=b"POST / HTTP/1.1")
    assert got == [PROTO, ID, (b"transfer-encoding", b"chunked")]


def test_internal_control_headers(world_of: Make) -> None:
    world = world_of(replace(manager(), **INTERNAL))
    got = sent_upstream(world, b"x-forwarded-for: 10.1.1.1", b"x-envoy-upstream-rq-timeout-ms: 3000",
                        b"x-envoy-max-retries: 2",
                        b"x-envoy-retry-on: 5xx", b"x-envoy-upstream-rq-per-try-timeout-ms: 700", b"x-envoy-ip-tags: t")
    assert got == [(b"x-forwarded-for", b"10.1.1.1"), (b"x-envoy-ip-tags", b"t"), PROTO,
                   (b"x-envoy-internal", b"true"), ID,
                   (b"x-envoy-expected-rq-timeout-ms", b"700")]


@pytest.mark.parametrize(("settings", "authority"), [
    ({}, b"A.b.:10000"), ({"strip_any_host_port": True}, b"A.b."), ({"strip_matching_host_port": True}, b"A.b."),
    ({"strip_trailing_host_dot": True}, b"A.b:10000"),
    ({"strip_trailing_host_dot": True, "strip_any_host_port": True}, b"A.b"),
])
def test_host(world_of: Make, settings: dict[str, Any], authority: bytes) -> None:
    world = world_of(manager(**settings))
    world.client().send(b"GET / HTTP/1.1\r\nhost: A.b.:10000\r\n\r\n")
    assert world.upstreams[0].take().startswith(b"GET / HTTP/1.1\r\nhost: " + authority + b"\r\n")


UUID = b"12345678-1234-%b234-8234-123456789abc"


@pytest.mark.parametrize(("tracing", "lines", "digit", "counted"), [
    (model.Tracing(random_sampling=100.0), (), b"9", "random_sampling"),
    (model.Tracing(random_sampling=0.0), (), b"4", "not_traceable"),
    (model.Tracing(random_sampling=0.0), (b"x-client-trace-id: x",), b"b", "client_enabled"),
    (model.Tracing(client_sampling=0.0, random_sampling=0.0), (b"x-client-trace-id: x",), b"4", "not_traceable"),
    (model.Tracing(client_sampling=100.0, overall_sampling=0.0), (b"x-client-trace-id: x",), b"4", "not_traceable"),
    # 0x12345678 % 10000 = 9896
    (model.Tracing(random_sampling=98.97), (b"x-request-id: " + UUID % b"4",), b"9", "random_sampling"),
    (model.Tracing(random_sampling=98.96), (b"x-request-id: " + UUID % b"4",), b"4", "not_traceable"),
    (model.Tracing(random_sampling=0.0), (b"x-request-id: " + UUID % b"9",), b"9", "random_sampling"),
    (model.Tracing(random_sampling=0.0), (b"x-request-id: " + UUID % b"a",), b"a", "service_forced"),
    (model.Tracing(random_sampling=0.0), (b"x-request-id: " + UUID % b"b",), b"b", "client_enabled"),
    (model.Tracing(random_sampling=0.0), (b"x-request-id: " + UUID % b"7",), b"4", "not_traceable"),
])
def test_trace_reason(world_of: Make, tracing: model.Tracing, lines: tuple[bytes, ...], digit: bytes,
                      counted: str) -> None:
    world = world_of(manager(tracing=tracing))
    client = world.client()
    client.send(b"\r\n".join([b"GET / HTTP/1.1", b"host: a", *lines, b"", b""]))
    found = re.search(rb"x-request-id: [0-9a-f]{8}-[0-9a-f]{4}-(.)", world.upstreams[0].received)
    assert found is not None and found[1] == digit
    assert {n: v for n,
            v in world.stats().items() if n.startswith("http.h.tracing.")} == {f"http.h.tracing.{counted}": 1}


DATE = (b"date", b"Tue, 14 Nov 2023 22:13:20 GMT")
SERVER = (b"server", b"envoy")
TOOK = (b"x-envoy-upstream-service-time", b"0")
LENGTH = (b"content-length", b"0")


@pytest.mark.parametrize(("settings", "lines", "expected"), [
    ({}, (), [LENGTH, TOOK, DATE, SERVER]),
    ({}, (b"date: yesterday",), [LENGTH, (b"date", b"yesterday"), TOOK, SERVER]),
    ({}, (b"server: nginx",), [LENGTH, SERVER, TOOK, DATE]),
    ({"server_name": b"s"}, (), [LENGTH, TOOK, DATE, (b"server", b"s")]),
    ({"server_header_transformation": model.APPEND_IF_ABSENT}, (b"server: nginx",),
     [LENGTH, (b"server", b"nginx"), TOOK, DATE]),
    ({"server_header_transformation": model.APPEND_IF_ABSENT}, (), [LENGTH, TOOK, DATE, SERVER]),
    ({"server_header_transformation": model.PASS_THROUGH}, (), [LENGTH, TOOK, DATE]),
    ({},
     (b"connection: x-a", b"keep-alive: 5", b"proxy-connection: x", b"upgrade: h2", b"te: t", b"trailer: x", b"x-a: 1"),
     [LENGTH, (b"te", b"t"), (b"trailer", b"x"), (b"x-a", b"1"), TOOK, DATE, SERVER]),
    ({}, (b"x-envoy-upstream-service-time: 99", b"z: 1"), [LENGTH, TOOK, (b"z", b"1"), DATE, SERVER]),
    ({"suppress_envoy_headers": True}, (), [LENGTH, DATE, SERVER]),
    ({"via": b"me"}, (b"via: you",), [LENGTH, (b"via", b"you, me"), TOOK, DATE, SERVER]),
    ({"always_set_request_id_in_response": True}, (), [LENGTH, TOOK, DATE, SERVER, ID]),
    ({}, (b"set-cookie: a=b", b"Set-Cookie: c=d"),
     [LENGTH, (b"set-cookie", b"a=b"), (b"set-cookie", b"c=d"), TOOK, DATE, SERVER]),
    ({"http1": model.Http1Options(proper_case_words=True)}, (b"x-a: 1",),
     [(b"Content-Length", b"0"), (b"X-A", b"1"), (b"X-Envoy-Upstream-Service-Time", b"0"), (b"Date", DATE[1]),
      (b"Server", b"envoy")]),
])
def test_responses(world_of: Make, settings: dict[str, Any], lines: tuple[bytes, ...], expected: Pairs) -> None:
    assert forwarded_back(world_of(manager(**settings)), *lines) == expected


def test_dates_move_on(world_of: Make) -> None:
    world = world_of()
    dates = set()
    for _ in range(3):
        dates.add(dict(forwarded_back(world))[b"date"])
        world.advance(1)
    assert dates == {b"Tue, 14 Nov 2023 22:13:%02d GMT" % n for n in (20, 21, 22)}


@pytest.mark.parametrize(("direction", "decorator", "sent", "upstream", "downstream"), [
    ("INBOUND", b"op", (), None, b"op"),
    ("INBOUND", b"op", (b"x-envoy-decorator-operation: theirs",), None, None),
    ("OUTBOUND", b"op", (), b"op", None),
    ("OUTBOUND", b"", (), None, None),
    ("OUTBOUND", b"op", (b"x-envoy-decorator-operation: theirs",), b"op", None),
])
def test_decorator(world_of: Make, direction: str, decorator: bytes, sent: tuple[bytes, ...], upstream: bytes | None,
                   downstream: bytes | None) -> None:
    config = manager(virtual_host(route(decorator=decorator)), tracing=model.Tracing())
    world = world_of(config, traffic_direction=direction)
    assert dict(sent_upstream(world, *sent)).get(b"x-envoy-decorator-operation") == upstream
    world = world_of(config, traffic_direction=direction)
    answer = dict(forwarded_back(world, request=sent))
    assert answer.get(b"x-envoy-decorator-operation") == downstream
