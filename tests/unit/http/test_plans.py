"""Plans (proxy/http/plan.py) change the speed and nothing else.

Every script runs in two worlds, one of which never keeps a plan. What went over each connection and in which order,
every log operator, every statistic, every attribute of each stream must be the same.
"""

from __future__ import annotations

from typing import Any

import pytest

from proxy.config import model
from proxy.config.model import SocketAddress
from tests.unit.http.http_world import World, cluster, manager, route, table, virtual_host
from tests.unit.http.plan_worlds import CHUNKED, DATED, GET, LOG, OK5, ROUNDS, Compare, busy, exchange, repeated

PAIRS: dict[str, tuple[bytes, tuple[bytes, ...], bool, int | None, int | None]] = {
    # request, response in reads, whether the upstream closes then, how often the plans must run (None: whatever)
    "plain": (GET, (OK5,), False, 2, 2),
    "body in its own read": (GET, (OK5[:-5], b"hello"), False, 2, 2),
    "slow body": (GET, (OK5[:-5], b"h", b"el", b"lo"), False, 2, 2),
    "body cut by the first read": (GET, (OK5[:-2], b"lo"), False, 2, 2),
    "slow head": (GET, (OK5[:20], OK5[20:]), False, 2, 0),
    "chunked": (GET, (CHUNKED + b"5\r\nhello\r\n0\r\n\r\n",), False, 2, 2),
    "chunked in reads": (GET, (CHUNKED, b"5\r\nhel", b"lo\r\n", b"0\r\n", b"\r\n"), False, 2, 2),
    "chunked and empty": (GET, (CHUNKED + b"0\r\n\r\n",), False, 2, 2),
    "until close": (GET, (b"HTTP/1.1 200 OK\r\n" + DATED + b"\r\nhello",), True, None, None),
    "until close in reads": (GET, (b"HTTP/1.1 200 OK\r\n" + DATED + b"\r\n", b"hel", b"lo"), True, None, None),
    "204": (GET, (b"HTTP/1.1 204 No Content\r\n" + DATED + b"\r\n",), False, 2, None),
    "304": (GET, (b"HTTP/1.1 304 Not Modified\r\n" + DATED + b"content-length: 5\r\n\r\n",), False, 2, None),
    "empty": (GET, (b"HTTP/1.1 200 OK\r\n" + DATED + b"content-length: 0\r\n\r\n",), False, 2, None),
    "404": (GET, (OK5.replace(b"200 OK", b"404 Not Found"),), False, 2, 2),
    "500": (GET, (OK5.replace(b"200 OK", b"500 Oops"),), False, 2, 2),
    "odd status": (GET, (OK5.replace(b"200 OK", b"299 Odd"),), False, 2, 2),
    "no date": (GET, (OK5.replace(DATED, b""),), False, 2, 0),
    "own service time": (GET, (OK5.replace(DATED, DATED + b"x-envoy-upstream-service-time: 77\r\n"),), False, 2, None),
    "a name that ends like service time": (
        GET, (OK5.replace(DATED, DATED + b"a-x-envoy-upstream-service-time: 3\r\n"),), False, 2, None),
    "grpc status": (GET, (OK5.replace(DATED, DATED + b"grpc-status: 14\r\n"),), False, 2, 0),
    "grpc timeout": (GET.replace(b"host", b"content-type: application/grpc\r\ngrpc-timeout: 1S\r\nhost"), (OK5,), False,
                     None, None),
    "own server": (GET, (OK5.replace(DATED, DATED + b"server: nginx\r\n"),), False, 2, 2),
    "set-cookie": (GET, (OK5.replace(DATED, DATED + b"set-cookie: a=b\r\n"),), False, 2, 0),
    "upstream closes": (GET, (OK5.replace(DATED, DATED + b"connection: close\r\n"),), False, None, None),
    "upstream keeps alive": (GET, (OK5.replace(DATED, DATED + b"connection: keep-alive\r\n"),), False, 2, 2),
    "http/1.0 upstream": (GET, (OK5.replace(b"HTTP/1.1", b"HTTP/1.0"),), False, None, None),
    "interim first": (GET, (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK5,), False, 2, None),
    "interim in its own read": (GET, (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", OK5), False, 2, None),
    "two responses": (GET, (OK5 + OK5,), False, None, None),
    "more than the body": (GET, (OK5 + b"x",), False, None, None),
    "cut in the body": (GET, (OK5[:-3],), True, None, None),
    "cut in a chunk": (GET, (CHUNKED + b"5\r\nhel",), True, None, None),
    "bad chunk": (GET, (CHUNKED + b"5\r\nhellox\r\n",), False, None, None),
    "trailers": (GET, (CHUNKED + b"0\r\nx: y\r\n\r\n",), False, 2, 2),
    "large body": (GET, (b"HTTP/1.1 200 OK\r\n" + DATED + b"content-length: 100000\r\n\r\n" + b"x" * 100_000,), False,
                   2, 2),
    "head": (b"HEAD" + GET[3:], (OK5[:-5],), False, 2, 0),
    "head, chunked": (b"HEAD" + GET[3:], (CHUNKED,), False, 2, 0),
    "delete": (b"DELETE" + GET[3:], (OK5,), False, 2, 2),
    "options": (b"OPTIONS" + GET[3:], (OK5,), False, 2, 2),
    "post without a body": (b"POST" + GET[3:], (OK5,), False, 2, 2),
    "post with no length": (GET.replace(b"GET", b"POST").replace(b"host", b"content-length: 0\r\nhost"), (OK5,), False,
                            None, None),
    "post with a body": (b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello", (OK5,), False, 0, None),
    "post that ends like a head": (b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\n\r\n\r\n", (OK5,), False,
                                   0, None),
    "connection: close": (GET.replace(b"host", b"connection: close\r\nhost"), (OK5,), False, None, None),
    "connection: keep-alive": (GET.replace(b"host", b"Connection: Keep-Alive\r\nhost"), (OK5,), False, None, None),
    "connection nominates": (GET.replace(b"host", b"connection: user-agent\r\nhost"), (OK5,), False, 0, None),
    "te": (GET.replace(b"host", b"te: trailers\r\nhost"), (OK5,), False, 0, None),
    "own request id": (GET.replace(b"host", b"x-request-id: 1234\r\nhost"), (OK5,), False, 0, None),
    "no host": (b"GET /x HTTP/1.1\r\n\r\n", (), False, 0, 0),
    "authorization": (GET.replace(b"host", b"authorization: Basic eA==\r\nhost"), (OK5,), False, 0, None),
    "cookie": (GET.replace(b"host", b"cookie: a=b\r\nhost"), (OK5,), False, 0, None),
    "client certificate": (GET.replace(b"host", b"x-forwarded-client-cert: x\r\nhost"), (OK5,), False, 0, None),
    "expect": (GET.replace(b"host", b"expect: 100-continue\r\nhost"), (OK5,), False, 0, None),
    "x-forwarded-for": (GET.replace(b"host", b"x-forwarded-for: 1.2.3.4\r\nhost"), (OK5,), False, 0, None),
    "retry headers of a stranger": (GET.replace(b"host", b"x-envoy-retry-on: 5xx\r\nhost"), (OK5,), False, 0, None),
    "grpc": (GET.replace(b"host", b"content-type: application/grpc\r\nhost"), (OK5,), False, None, None),
    "query": (GET.replace(b"/x", b"/x?a=b"), (OK5,), False, 2, 2),
    "normalized": (GET.replace(b"/x", b"/a/../x%41"), (OK5,), False, None, None),
    "absolute form": (GET.replace(b"/x", b"http://b/x"), (OK5,), False, None, None),
    "empty lines first": (b"\r\n" + GET, (OK5,), False, None, None),
    "long": (GET.replace(b"host", b"x: " + b"y" * 3000 + b"\r\nhost"), (OK5,), False, 0, None),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pair(compare: Compare, name: str) -> None:
    request, answer, finish, request_plans, response_plans = PAIRS[name]
    runs, outcome = compare(repeated(request, *answer, finish=finish))
    assert len(outcome.log) >= ROUNDS or name == "no host"
    if request_plans is not None:
        assert runs.requests == request_plans
    if response_plans is not None:
        assert runs.responses == response_plans


@pytest.mark.parametrize("settings", [
    {"tracing": model.Tracing(random_sampling=0.0)}, {"tracing": model.Tracing(random_sampling=30.0)},
    {"tracing": model.Tracing(), "pack_trace_reason": False}, {"generate_request_id": False},
    {"server_header_transformation": model.PASS_THROUGH}, {"server_header_transformation": model.APPEND_IF_ABSENT},
    {"server_name": b"x"}, {"via": b"v"}, {"always_set_request_id_in_response": True}, {"use_remote_address": True},
    {"add_user_agent": True}, {"append_x_forwarded_port": True}, {"always_forward_client_cert": True},
    {"proxy_100_continue": True}, {"normalize_path": True}, {"strip_any_host_port": True},
    {"http1": model.Http1Options(proper_case_words=True)}, {"http1": model.Http1Options(enable_trailers=True)},
    {"stream_idle_timeout": 1.0}, {"request_timeout": 1.0}, {"request_headers_timeout": 1.0},
    {"max_stream_duration": 1.0}, {"max_requests_per_connection": 3}, {"idle_timeout": 1.0}, {"idle_timeout": 0.0},
    {"suppress_envoy_headers": True}, {"max_connection_duration": 0.01}, {"delayed_close_timeout": 0.0},
], ids=str)
@pytest.mark.parametrize("answer", [OK5, CHUNKED + b"1\r\nx\r\n0\r\nt: 1\r\n\r\n"], ids=["length", "chunked"])
def test_settings_of_the_manager(compare: Compare, settings: dict[str, Any], answer: bytes) -> None:
    compare(repeated(GET, answer), manager(log=LOG, **settings))


@pytest.mark.parametrize("settings", [
    {"max_requests_per_connection": 1}, {"max_requests_per_connection": 3}, {"max_connection_duration": 0.005},
    {"idle_timeout": 0.002}, {"max_stream_duration": 1.0}, {"default": model.Thresholds(max_requests=0)},
    {"default": model.Thresholds(max_connections=0)}, {"alt_stat_name": "alt:1"}, {"lb_policy": model.RANDOM},
    {"http1": model.Http1Options(enable_trailers=True)},
], ids=str)
def test_settings_of_the_cluster(compare: Compare, settings: dict[str, Any]) -> None:
    def script(world: World) -> None:
        client = world.client()
        for _ in range(6):
            client.send(GET)
            world.advance(0.003)
            for upstream in world.upstreams:
                if upstream.transport.protocol.stream is not None:
                    upstream.send(OK5)
    compare(script, None, cluster(**settings))


POLICIES = [
    model.RetryPolicy(frozenset({"5xx"}), 2),
    model.RetryPolicy(frozenset({"reset", "connect-failure"}), 2),
    model.RetryPolicy(frozenset({"retriable-status-codes"}), 1, retriable_status_codes=frozenset({200})),
    model.RetryPolicy(frozenset({"retriable-headers"}), 1,
                      retriable_headers=(model.HeaderMatcher(b"date", None),)),
    model.RetryPolicy(frozenset({"5xx"}), 2, per_try_timeout=0.5),
    model.RetryPolicy(frozenset({"5xx"}), 2, per_try_idle_timeout=0.5),
    model.RetryPolicy(frozenset({"5xx"}), 2, retriable_request_headers=(model.HeaderMatcher(b"user-agent", None),)),
]


@pytest.mark.parametrize("policy", POLICIES, ids=range(len(POLICIES)))
@pytest.mark.parametrize("status", [b"200", b"404", b"503"])
def test_retry_policies(compare: Compare, policy: model.RetryPolicy, status: bytes) -> None:
    hosts = virtual_host(route(prefix=b"/other", name="other"), route(retry_policy=policy, name="policy"))
    answer = OK5.replace(b"200 OK", status + b" x")

    def script(world: World) -> None:
        # The response head is known from a route without a policy.
        other = world.client()
        for _ in range(ROUNDS):
            exchange(other, GET.replace(b"/x", b"/other"), answer)
        client = world.client()
        for _ in range(ROUNDS):
            client.send(GET)
            for _ in range(4):
                for upstream in world.upstreams:
                    if upstream.transport.protocol.stream is not None:
                        upstream.send(answer)
                world.advance(0.3)
    compare(script, manager(hosts, log=LOG))


@pytest.mark.parametrize("policy", POLICIES, ids=range(len(POLICIES)))
@pytest.mark.parametrize("sent", [b"", OK5[:-2]])
def test_silent_upstreams(compare: Compare, policy: model.RetryPolicy, sent: bytes) -> None:
    def script(world: World) -> None:
        client = world.client()
        for _ in range(3):
            client.send(GET)
            while not client.take():
                busy(world).send(OK5)
                world.advance(0.3)
        client.send(GET)
        if sent:
            busy(world).send(sent)
        world.advance(20)
    runs, _ = compare(script, manager(virtual_host(route(retry_policy=policy, timeout=5.0)), log=LOG))


OTHERS = {
    "same": virtual_host(route(name="two"), name="w", domains=(b"b",)),
    "attempt count upstream": virtual_host(route(), name="w", domains=(b"b",), include_request_attempt_count=True),
    "attempt count downstream": virtual_host(route(), name="w", domains=(b"b",),
                                             include_attempt_count_in_response=True),
    "response header": virtual_host(route(), name="w", domains=(b"b",), mutations=model.HeaderMutations(
        response_add=(model.HeaderToAdd(b"x-vhost", "w"),))),
    "request header": virtual_host(route(mutations=model.HeaderMutations(
        request_add=(model.HeaderToAdd(b"x-remote", "%DOWNSTREAM_REMOTE_ADDRESS%"),))), name="w", domains=(b"b",)),
    "decorator": virtual_host(route(decorator=b"op"), name="w", domains=(b"b",)),
    "prefix rewrite": virtual_host(route(prefix_rewrite=b"/y"), name="w", domains=(b"b",)),
    "host rewrite": virtual_host(route(host_rewrite_literal=b"c"), name="w", domains=(b"b",)),
    "auto host rewrite": virtual_host(route(auto_host_rewrite=True), name="w", domains=(b"b",)),
    "idle timeout": virtual_host(route(idle_timeout=1.0), name="w", domains=(b"b",)),
    "stream duration": virtual_host(route(max_stream_duration=1.0), name="w", domains=(b"b",)),
    "no timeout": virtual_host(route(timeout=0.0), name="w", domains=(b"b",)),
    "high priority": virtual_host(route(high_priority=True), name="w", domains=(b"b",)),
    "direct response": virtual_host(model.Route("d", model.RouteMatch(model.PREFIX, b"/"), model.DirectResponse(200)),
                                    name="w", domains=(b"b",)),
    "other cluster": virtual_host(route("two"), name="w", domains=(b"b",)),
    "unknown cluster": virtual_host(route("none"), name="w", domains=(b"b",)),
    "weighted": virtual_host(model.Route("", model.RouteMatch(model.PREFIX, b"/"), model.RouteAction(weighted_clusters=(
        model.WeightedCluster("up", 50), model.WeightedCluster("two", 50)))), name="w", domains=(b"b",)),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("tracing", [None, model.Tracing(random_sampling=0.0)], ids=["", "tracing"])
def test_two_virtual_hosts_with_the_same_response(compare: Compare, other: str, tracing: model.Tracing | None) -> None:
    def script(world: World) -> None:
        client = world.client()
        for n in range(3 * ROUNDS):
            client.send(GET if n % 2 else GET.replace(b"host: a", b"host: b"))
            for upstream in world.upstreams:
                if upstream.transport.protocol.stream is not None:
                    upstream.send(OK5)
    hosts = (virtual_host(route(name="one"), domains=(b"a",)), OTHERS[other])
    compare(script, manager(routes=table(*hosts), log=LOG, tracing=tracing), cluster(),
            cluster(SocketAddress("10.0.0.2", 80), name="two"))
