"""Connection pools: reuse, order of waiting, circuit breakers, cancellation, end; and dialling."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from proxy.config import model
from proxy.config.model import SocketAddress
from proxy.upstream.pool import OVERFLOW_ACTIVE, OVERFLOW_PENDING, Pool
from tests.unit.http.http_world import World, cluster
from tests.unit.upstream.upstream_world import User, answer, peer_of, the_cluster, world_with


def pool_of(**settings: Any) -> tuple[World, Pool]:
    world = world_with(cluster(**settings))
    return world, the_cluster(world).hosts[0].pools[0]


def acquire(world: World, pool: Pool, count: int = 1, *, fresh: bool = False) -> list[User]:
    users = [User() for _ in range(count)]
    for user in users:
        pool.acquire(user, fresh=fresh)
    world.loop.run()
    return users


def test_the_latest_idle_connection_is_used_first() -> None:
    world, pool = pool_of()
    users = acquire(world, pool, 3)
    assert len(world.upstreams) == 3
    for index in (1, 0, 2):
        answer(world, users[index])
    again = acquire(world, pool, 3)
    assert [u.connection for u in again] == [users[i].connection for i in (2, 0, 1)]
    assert len(world.upstreams) == 3


def test_fresh() -> None:
    world, pool = pool_of()
    (first,) = acquire(world, pool)
    answer(world, first)
    (second,) = acquire(world, pool, fresh=True)
    assert second.connection is not first.connection


def test_waiters_are_served_in_order() -> None:
    world, pool = pool_of(default=model.Thresholds(max_connections=1))
    first, *waiting = acquire(world, pool, 4)
    assert [u.connection for u in waiting] == [None] * 3
    served = first
    for expected in waiting:
        answer(world, served)
        assert expected.connection is first.connection
        served = expected
    assert len(world.upstreams) == 1
    assert world.stat("cluster.up.upstream_cx_overflow") == 3


def test_a_waiter_takes_whichever_connection_is_free_first() -> None:
    world, pool = pool_of()
    (first,) = acquire(world, pool)
    world.hold = True
    (second,) = acquire(world, pool)
    answer(world, first)
    assert second.connection is first.connection
    world.answer_dial()
    world.loop.run()
    assert len(pool.idle) == 1, "what was dialled for nobody is kept"


def test_a_pool_without_connections_may_always_open_one() -> None:
    world, pool = pool_of(default=model.Thresholds(max_connections=0))
    (first, second) = acquire(world, pool, 2)
    assert first.connection is not None and second.connection is None
    answer(world, first)
    assert second.connection is first.connection


def test_places_to_wait_are_limited() -> None:
    world, pool = pool_of(default=model.Thresholds(max_pending_requests=2))
    world.hold = True
    users = acquire(world, pool, 3)
    assert [u.failure for u in users] == [None, None, OVERFLOW_PENDING]
    assert world.stat("cluster.up.upstream_rq_pending_overflow") == 1
    assert world.stat("cluster.up.circuit_breakers.default.rq_pending_open") == 1
    world.answer_dial()
    world.answer_dial()
    world.loop.run()
    assert world.stat("cluster.up.circuit_breakers.default.rq_pending_open") == 0
    assert world.stat("cluster.up.upstream_rq_pending_active") == 0


def test_active_requests_are_limited() -> None:
    world, pool = pool_of(default=model.Thresholds(max_requests=1))
    first, second = acquire(world, pool, 2)
    assert first.connection is not None and second.failure is OVERFLOW_ACTIVE
    assert len(pool.idle) == 1
    (third,) = acquire(world, pool)
    assert third.failure is OVERFLOW_ACTIVE and len(pool.idle) == 1
    assert world.stat("cluster.up.upstream_rq_active_overflow") == 2
    answer(world, first)
    (fourth,) = acquire(world, pool)
    assert fourth.connection is not None


def test_priorities_have_their_own_limits() -> None:
    world, pool = pool_of(default=model.Thresholds(max_requests=0), high=model.Thresholds(max_requests=5))
    high = the_cluster(world).hosts[0].pools[1]
    (default,), (important,) = acquire(world, pool), acquire(world, high)
    assert default.failure is OVERFLOW_ACTIVE and important.connection is not None


def test_cancel() -> None:
    world, pool = pool_of()
    world.hold = True
    gone, other = acquire(world, pool, 2)
    pool.cancel(gone)
    pool.cancel(gone)
    world.answer_dial()
    world.answer_dial()
    world.loop.run()
    assert gone.connection is None and other.connection is not None
    assert len(pool.idle) == 1
    assert world.stat("cluster.up.upstream_rq_cancelled") == 1
    assert world.stat("cluster.up.upstream_rq_pending_active") == 0


def test_failed_dial_fails_who_waits() -> None:
    world, pool = pool_of()
    world.refuse = True
    users = acquire(world, pool, 2)
    for user in users:
        assert user.failure is not None
        assert user.failure.reason == b"delayed_connect_error: Connection refused" and not user.failure.timed_out
    world.refuse = False
    (user,) = acquire(world, pool)
    assert user.connection is not None
    assert world.stat("cluster.up.upstream_cx_active") == 1 + len(world.dials)
    assert the_cluster(world).breakers[0].connections == 1 + len(world.dials)


def test_connect_timeout() -> None:
    world, pool = pool_of(connect_timeout=0.5)
    world.hold = True
    (user,) = acquire(world, pool)
    world.advance(0.4)
    assert user.failure is None
    world.advance(0.2)
    assert user.failure is not None and user.failure.timed_out
    assert world.stat("cluster.up.upstream_cx_connect_timeout") == 1
    assert world.stat("cluster.up.upstream_cx_active") == 0
    assert world.loop.errors == []


def test_a_lost_connection_is_replaced_for_who_waits() -> None:
    world, pool = pool_of(default=model.Thresholds(max_connections=1))
    first, second = acquire(world, pool, 2)
    first.use()
    peer_of(world, first.connection).reset()
    assert second.connection is not None and second.connection is not first.connection


def test_lost_while_idle() -> None:
    world, pool = pool_of()
    (first,) = acquire(world, pool)
    answer(world, first)
    peer_of(world, first.connection).finish()
    assert pool.idle == []
    assert the_cluster(world).breakers[0].connections == 0


def test_drain() -> None:
    world, pool = pool_of()
    idle, busy = acquire(world, pool, 2)
    answer(world, idle)
    busy.use()
    world.hold = True
    waiting = User()
    pool.acquire(waiting, fresh=True)
    pool.drain()
    world.loop.run()
    assert waiting.failure is not None
    assert peer_of(world, idle.connection).closed and not peer_of(world, busy.connection).closed
    peer_of(world, busy.connection).send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    assert peer_of(world, busy.connection).closed
    assert the_cluster(world).breakers[0].connections == 0
    assert world.stat("cluster.up.upstream_cx_active") == 0


@pytest.mark.parametrize(("sources", "host", "expected"), [
    ((), "10.0.0.1", None),
    (("127.0.0.6",), "10.0.0.1", ("127.0.0.6", 0)),
    (("127.0.0.6", "::6"), "fd00::1", ("::6", 0)),
    (("127.0.0.6",), "fd00::1", None),
])
def test_source_address(sources: tuple[str, ...], host: str, expected: tuple[str, int] | None) -> None:
    world = world_with(cluster(SocketAddress(host, 80), source_addresses=tuple(SocketAddress(s, 0) for s in sources)))
    world.hold = True
    acquire(world, the_cluster(world).hosts[0].pools[0])
    assert world.dials[0][2:] == (SocketAddress(host, 80), expected)


def test_socket_options() -> None:
    world, pool = pool_of(tcp_keepalive=model.TcpKeepalive(probes=3, time=60))
    acquire(world, pool)
    assert world.upstreams[0].transport.socket.options == [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3), (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)]
