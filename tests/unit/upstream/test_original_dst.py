"""ORIGINAL_DST clusters."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import model
from proxy.config.model import SocketAddress
from proxy.http.headers import Headers
from proxy.upstream.cluster import LbContext
from proxy.upstream.original_dst import parse_host_header
from tests.unit.http.http_world import World
from tests.unit.upstream.upstream_world import User, answer, the_cluster, world_with

PLACE = SocketAddress("10.1.2.3", 8080)


def world_of(**settings: Any) -> World:
    return world_with(model.Cluster("up", type=model.ORIGINAL_DST, lb_policy=model.CLUSTER_PROVIDED, **settings))


@pytest.mark.parametrize(("value", "expected"), [
    (b"1.2.3.4:80", SocketAddress("1.2.3.4", 80)), (b"[::1]:65535", SocketAddress("::1", 65535)),
    (b"[FD00::0001]:1", SocketAddress("fd00::1", 1)),
    *[(bad, None) for bad in (b"", b"1.2.3.4", b"1.2.3.4:", b":80", b"1.2.3.4:0", b"1.2.3.4:65536", b"1.2.3.4:-1",
                              b"1.2.3.4:+1",
                              b"1.2.3.4:8 0", b"1.2.3:80", b"1.2.3.4.5:80", b"name:80", b"1.2.3.4:\xb2", b"\xff:80",
                              b"1.2.3.4:123456", b"01.2.3.4:80")],
])
def test_header(value: bytes, expected: SocketAddress | None) -> None:
    assert parse_host_header(value) == expected


@given(st.binary(max_size=30))
def test_any_header(value: bytes) -> None:
    found = parse_host_header(value)
    assert found is None or (0 < found.port < 65536 and found.host)


def test_hosts_are_made_once() -> None:
    world = world_of()
    cluster = the_cluster(world)
    first = cluster.choose(LbContext(PLACE))
    assert first is not None and first.address == PLACE and first.text == b"10.1.2.3:8080"
    assert cluster.choose(LbContext(PLACE)) is first
    assert cluster.choose(LbContext(SocketAddress("10.1.2.3", 81))) is not first
    assert cluster.choose(LbContext(None)) is None
    assert (cluster.stats.membership_total, cluster.stats.membership_change) == (2, 2)


def test_named_in_a_header() -> None:
    named = Headers.of([(b"x-envoy-original-dst-host", b"10.9.9.9:99")])
    wrong = Headers.of([(b"x-envoy-original-dst-host", b"nonsense")])
    cluster = the_cluster(world_of(use_http_header=True))
    for headers, place, expected in ((named, PLACE, "10.9.9.9:99"), (named, None, "10.9.9.9:99"),
                                     (wrong, PLACE, PLACE.text),
                                     (wrong, None, None), (Headers([]), PLACE, PLACE.text), (None, PLACE, PLACE.text)):
        host = cluster.choose(LbContext(place, headers))
        assert (host.address.text if host else None) == expected
    assert cluster.stats.original_dst_host_invalid == 2
    host = the_cluster(world_of()).choose(LbContext(PLACE, named))
    assert host is not None and host.address == PLACE, "the header counts only where it is configured"


def test_other_header_name() -> None:
    cluster = the_cluster(world_of(use_http_header=True, http_header_name=b"x-to"))
    host = cluster.choose(LbContext(PLACE, Headers.of([(b"x-to", b"10.9.9.9:99")])))
    assert host is not None and host.address.port == 99


def test_port_override() -> None:
    cluster = the_cluster(world_of(upstream_port_override=15))
    host = cluster.choose(LbContext(PLACE))
    assert host is not None and host.address == SocketAddress("10.1.2.3", 15)


def test_cleanup() -> None:
    world = world_of(cleanup_interval=5.0)
    cluster = the_cluster(world)
    unused, used = (cluster.choose(LbContext(SocketAddress("10.0.0.1", port))) for port in (1, 2))
    assert unused is not None and used is not None
    user = User()
    used.pools[0].acquire(user)
    world.loop.run()
    world.advance(3)
    assert len(cluster.hosts) == 2
    world.advance(8)
    assert list(cluster.hosts) == [used], "a host with a connection stays"
    answer(world, user)
    world.upstreams[0].finish()
    world.advance(11)
    assert list(cluster.hosts) == []
    assert cluster.stats.membership_total == 0


def test_a_host_in_use_is_not_forgotten() -> None:
    world = world_of(cleanup_interval=5.0)
    cluster = the_cluster(world)
    host = cluster.choose(LbContext(PLACE))
    for _ in range(10):
        world.advance(3)
        assert cluster.choose(LbContext(PLACE)) is host


def test_close_ends_idle_connections() -> None:
    world = world_of()
    host = the_cluster(world).choose(LbContext(PLACE))
    assert host is not None
    user = User()
    host.pools[0].acquire(user)
    world.loop.run()
    answer(world, user)
    world.context.clusters.close()
    world.loop.run()
    assert world.upstreams[0].closed
