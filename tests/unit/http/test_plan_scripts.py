"""Longer conversations with and without plans; what plans are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from proxy.config import model
from proxy.config.model import SocketAddress
from proxy.http.plan import PlanMemo
from tests.unit.http.http_world import World, cluster, manager, route, virtual_host
from tests.unit.http.plan_worlds import GET, LOG, OK5, ROUNDS, Compare, busy, exchange


def test_two_routes_with_all_methods(compare: Compare) -> None:
    """A response head known from GET answers HEAD, and the other way round."""
    def script(world: World) -> None:
        client = world.client()
        for method in [b"GET", b"HEAD", b"DELETE"] * ROUNDS + [b"HEAD", b"HEAD", b"GET"]:
            exchange(client, method + GET[3:], OK5[:-5] if method == b"HEAD" else OK5)
    compare(script)


def test_pipelined_in_one_read(compare: Compare) -> None:
    def script(world: World) -> None:
        client = world.client()
        for _ in range(5):
            client.send(GET + GET.replace(b"/x", b"/y"))
            for _ in range(2):
                world.advance(0.001)
                busy(world).send(OK5)
    _, outcome = compare(script)
    assert len(outcome.log) == 10


def test_pipelined_after_a_local_reply(compare: Compare) -> None:
    """Two requests in one read, the first of which is answered at once."""
    hosts = virtual_host(model.Route("d", model.RouteMatch(model.PREFIX, b"/direct"), model.DirectResponse(200, b"d")),
                         route())

    def script(world: World) -> None:
        client = world.client()
        for _ in range(5):
            exchange(client, GET.replace(b"/x", b"/direct") + GET, OK5)
    _, outcome = compare(script, manager(hosts, log=LOG))
    assert len(outcome.log) == 10


def test_pipelined_while_a_plan_is_at_work(compare: Compare) -> None:
    def script(world: World) -> None:
        client = world.client()
        for _ in range(ROUNDS):
            client.send(GET, GET)
            for _ in range(2):
                world.advance(0.001)
                busy(world).send(OK5)
    compare(script)


def test_half_a_request_follows(compare: Compare) -> None:
    def script(world: World) -> None:
        client = world.client()
        for _ in range(ROUNDS):
            client.send(GET + GET[:10])
            busy(world).send(OK5)
            client.send(GET[10:])
            busy(world).send(OK5)
    compare(script)


def test_service_times(compare: Compare) -> None:
    def script(world: World) -> None:
        client = world.client()
        for after in (0.0, 0.0015, 0.05, 0.0999, 0.1001, 1.5, 12.0):
            exchange(client, GET, OK5, after=after)
    runs, _ = compare(script)
    assert runs.responses == 5


def test_drain_begins_between(compare: Compare) -> None:
    def script(world: World) -> None:
        client = world.client()
        for n in range(6):
            world.listener.draining = n >= 4
            exchange(client, GET, OK5)
    runs, _ = compare(script)
    assert (runs.requests, runs.responses) == (4, 2)


def test_drain_begins_during_the_request(compare: Compare) -> None:
    def script(world: World) -> None:
        client = world.client()
        for n in range(4):
            client.send(GET)
            world.listener.draining = n == 3
            busy(world).send(OK5)
    compare(script)


def test_client_leaves(compare: Compare) -> None:
    def script(world: World) -> None:
        for cut in (0, 40, len(OK5) - 2):
            client = world.client()
            for _ in range(3):
                exchange(client, GET, OK5)
            client.send(GET)
            if cut:
                busy(world).send(OK5[:cut])
            client.finish()
    compare(script)


def test_stale_connections(compare: Compare) -> None:
    def script(world: World) -> None:
        client = world.client()
        for _ in range(3):
            exchange(client, GET, OK5)
        client.send(GET)
        busy(world).finish()
        busy(world).send(OK5)
        exchange(client, GET, OK5)
    compare(script)


def test_slow_reader(compare: Compare) -> None:
    def script(world: World) -> None:
        client = world.client()
        protocol = client.transport.protocol
        for n in range(6):
            client.send(GET)
            if n > 2:
                protocol.pause_writing()
            busy(world).send(OK5[:-3])
            if n == 4:
                protocol.resume_writing()
            busy(world).send(b"llo")
            client.send(GET)
            if n > 2:
                protocol.resume_writing()
            busy(world).send(OK5)
    compare(script)


@pytest.mark.parametrize("policy", [model.ROUND_ROBIN, model.LEAST_REQUEST, model.RANDOM])
def test_hosts_are_chosen_alike(compare: Compare, policy: str) -> None:
    """Also when the chosen host has no idle connection."""
    hosts = [SocketAddress(f"10.0.0.{n}", 80) for n in range(1, 4)]

    def script(world: World) -> None:
        clients = [world.client() for _ in range(4)]
        for n in range(12):
            for client in clients[:1 + n % 4]:
                client.send(GET)
            for upstream in list(world.upstreams):
                if upstream.transport.protocol.stream is not None:
                    upstream.send(OK5)
    runs, _ = compare(script, None, cluster(*hosts, lb_policy=policy))
    assert runs.requests > 0


def test_no_hosts(compare: Compare) -> None:
    def script(world: World) -> None:
        client = world.client()
        for _ in range(3):
            exchange(client, GET, OK5)
        up = world.context.clusters.get("up")
        assert up is not None
        hosts = up.hosts
        up.set_hosts([])
        client.send(GET)
        up.set_hosts(hosts)
        exchange(client, GET, OK5)
    compare(script)


def test_original_destination(compare: Compare) -> None:
    """One manager serves connections to several destinations."""
    places = [SocketAddress("10.1.0.1", 80), SocketAddress("10.1.0.2", 8080)]

    def script(world: World) -> None:
        clients = [world.client(local=place) for place in places]
        for _ in range(ROUNDS):
            for client in clients:
                exchange(client, GET.replace(b"host: a", b"host: a:80"), OK5)
    for settings in ({}, {"strip_matching_host_port": True}, {"append_x_forwarded_port": True}):
        compare(script, manager(log=LOG, **settings),
                model.Cluster("up", type=model.ORIGINAL_DST, lb_policy=model.CLUSTER_PROVIDED))


def test_what_is_kept(world_of: Callable[..., World]) -> None:
    """A plan is kept at the second appearance of a head, never for one with credentials, and memos are bounded."""
    world = world_of()
    client = world.client()
    memo = world.manager.request_plans
    exchange(client, GET, OK5)
    assert not memo and not world.manager.response_plans
    exchange(client, GET, OK5)
    assert list(memo) == [GET] and list(world.manager.response_plans) == [OK5[:-5]]
    for n in range(PlanMemo.ENTRIES + 10):
        for _ in range(2):
            exchange(client, GET.replace(b"/x", b"/%d" % n), OK5.replace(b"date", b"x: %d\r\ndate" % n))
        assert len(memo) <= PlanMemo.ENTRIES and len(world.manager.response_plans) <= PlanMemo.ENTRIES
    for name in (b"authorization", b"proxy-authorization", b"cookie", b"x-forwarded-client-cert"):
        for _ in range(4):
            exchange(client, GET.replace(b"host", name + b": secret\r\nhost"), OK5)
    assert not any(b"secret" in head for head in memo)
    for _ in range(4):
        exchange(client, GET, OK5.replace(b"date", b"set-cookie: secret\r\ndate"))
    assert not any(b"secret" in head for head in world.manager.response_plans)


def test_heads_seen_are_remembered_as_marks_only() -> None:
    memo: PlanMemo[Any] = PlanMemo()
    for n in range(3 * PlanMemo.SEEN):
        assert not memo.worth(b"%d" % n)
        assert len(memo._seen) <= PlanMemo.SEEN
    assert not memo.worth(b"x" * (PlanMemo.LONGEST + 1))
    assert not memo.worth(b"x" * (PlanMemo.LONGEST + 1))
    assert not memo.worth(b"new") and memo.worth(b"new")
