"""Load balancing: distributions, proportions of weights, preference for idle hosts."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from proxy.config import model
from tests.unit.upstream.upstream_world import endpoints, picks, the_cluster, world_with


def cluster_of(*weights: int, **settings: Any) -> Any:
    world = world_with(model.Cluster("up", endpoints=endpoints(*weights), **settings))
    return the_cluster(world)


@pytest.mark.parametrize("policy", [model.ROUND_ROBIN, model.LEAST_REQUEST, model.RANDOM])
def test_one_host(policy: str) -> None:
    assert picks(cluster_of(1, lb_policy=policy), 5) == [1] * 5


@pytest.mark.parametrize("policy", [model.ROUND_ROBIN, model.LEAST_REQUEST, model.RANDOM])
def test_no_host(policy: str) -> None:
    cluster = cluster_of(lb_policy=policy)
    assert cluster.choose(None) is None
    assert cluster.stats.lb_healthy_panic == 1


def test_round_robin_is_cyclic_from_any_start() -> None:
    starts = set()
    for seed in range(30):
        random.seed(seed)
        got = picks(cluster_of(1, 1, 1, 1), 12)
        starts.add(got[0])
        assert got == [(got[0] - 1 + n) % 4 + 1 for n in range(12)]
    assert starts == {1, 2, 3, 4}


@pytest.mark.parametrize("weights", [(1, 2, 1, 4), (10, 1), (1, 100, 3), (4294967295, 1, 1)])
@pytest.mark.parametrize("policy", [model.ROUND_ROBIN, model.LEAST_REQUEST])
def test_weights_are_proportions(weights: tuple[int, ...], policy: str) -> None:
    random.seed(1)
    rounds = 8
    total = sum(weights) if sum(weights) < 1000 else 1000
    got = Counter(picks(cluster_of(*weights, lb_policy=policy), total * rounds))
    for number, weight in enumerate(weights, 1):
        assert abs(got[number] - total * rounds * weight / sum(weights)) <= 1 + 1e-6 * total


def test_weighted_picks_are_interleaved() -> None:
    random.seed(2)
    got = picks(cluster_of(1, 3), 400)
    assert "1 1" not in " ".join(map(str, got)), "1 comes every fourth time"


def test_random_is_uniform_and_ignores_weights() -> None:
    random.seed(3)
    got = Counter(picks(cluster_of(1, 50, 1, lb_policy=model.RANDOM), 6000))
    assert all(1800 < got[n] < 2200 for n in (1, 2, 3))


def test_least_request_prefers_the_idle() -> None:
    random.seed(4)
    cluster = cluster_of(1, 1, 1, lb_policy=model.LEAST_REQUEST)
    cluster.hosts[0].stats.rq_active = 5
    cluster.hosts[1].stats.rq_active = 1
    got = Counter(picks(cluster, 9000))
    # Two choices with replacement: a host wins unless a better one was drawn.
    for number, share in ((1, 1 / 9), (2, 3 / 9), (3, 5 / 9)):
        assert abs(got[number] / 9000 - share) < 0.03


def test_least_request_with_many_choices_finds_the_idle_one() -> None:
    random.seed(5)
    cluster = cluster_of(1, 1, 1, 1, lb_policy=model.LEAST_REQUEST, choice_count=60)
    for host in cluster.hosts[:3]:
        host.stats.rq_active = 1
    assert Counter(picks(cluster, 200))[4] > 195


def test_least_request_with_weights_counts_activity() -> None:
    random.seed(6)
    cluster = cluster_of(2, 1, lb_policy=model.LEAST_REQUEST)
    cluster.hosts[0].stats.rq_active = 3
    picks(cluster, 50)
    got = Counter(picks(cluster, 3000))
    assert abs(got[1] / 3000 - 1 / 3) < 0.03, "2/(3+1) against 1"
    unbiased = cluster_of(2, 1, lb_policy=model.LEAST_REQUEST, active_request_bias=0.0)
    unbiased.hosts[0].stats.rq_active = 3
    assert abs(Counter(picks(unbiased, 3000))[1] / 3000 - 2 / 3) < 0.03


def test_new_hosts_take_part_at_once() -> None:
    cluster = cluster_of(1, 1)
    picks(cluster, 3)
    cluster.set_hosts(cluster_of(1, 1, 1).hosts)
    assert Counter(picks(cluster, 9)) == {1: 3, 2: 3, 3: 3}
    assert (cluster.stats.membership_change, cluster.stats.membership_total) == (2, 3)
