"""Many waiters and a circuit breaker that lets none of them through."""

from __future__ import annotations

from proxy.config import model
from proxy.upstream.pool import OVERFLOW_ACTIVE
from tests.unit.http.http_world import cluster
from tests.unit.upstream.upstream_world import User, the_cluster, world_with

MANY = 5000
"""More than Python's stack has room for."""


def test_all_who_wait_are_refused_without_recursion() -> None:
    limits = model.Thresholds(max_requests=1, max_pending_requests=MANY, max_connections=2)
    world = world_with(cluster(default=limits))
    pool = the_cluster(world).hosts[0].pools[0]
    users = [User() for _ in range(MANY)]
    for user in users:
        pool.acquire(user)
    world.loop.run()
    first, *others = users
    assert first.connection is not None
    assert all(user.failure is OVERFLOW_ACTIVE for user in others)
    assert world.stat("cluster.up.upstream_rq_active_overflow") == MANY - 1
    assert world.stat("cluster.up.upstream_rq_pending_active") == 0
    assert len(pool.idle) == 1
