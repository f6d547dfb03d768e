"""Which outcomes are retried: every token of retry_on against every outcome, limits, back-off, callers' headers."""

from __future__ import annotations

import itertools
from typing import Any, cast

import pytest

from proxy.config import model
from proxy.http import reset
from proxy.http.headers import Headers
from proxy.http.retry import LIMIT_EXCEEDED, LOCAL_RESET, NO, OVERFLOW, YES, RetryState, internal_policy
from proxy.stats.groups import ClusterStats, ThresholdStats
from proxy.upstream.cluster import Breaker, Cluster

TOKENS = ("5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "envoy-ratelimited",
          "retriable-4xx",
          "refused-stream", "retriable-status-codes", "retriable-headers", "unavailable")
STATUSES = (200, 400, 409, 418, 429, 500, 502, 503, 504, 599)
ON_STATUS = {
    "5xx": {500, 502, 503, 504, 599}, "gateway-error": {502, 503, 504}, "retriable-4xx": {409},
    "retriable-status-codes": {418, 200},
}
RESETS = {
    reset.CONNECTION_FAILURE: {"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure"},
    reset.CONNECTION_TIMEOUT: {"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure"},
    reset.CONNECTION_TERMINATION: {"5xx", "gateway-error", "reset"},
    reset.PROTOCOL_ERROR: {"5xx", "gateway-error", "reset"},
    LOCAL_RESET: {"5xx", "gateway-error", "reset"},
    reset.OVERFLOW: set(),
}


class FakeCluster:
    def __init__(self) -> None:
        self.stats = ClusterStats("cluster.c")


def state(tokens: tuple[str, ...] | frozenset[str], num_retries: int = 1, max_retries: int = 3,
          **settings: Any) -> tuple[RetryState, ClusterStats, Breaker]:
    cluster = FakeCluster()
    breaker = Breaker(model.Thresholds(max_retries=max_retries), ThresholdStats("t"))
    policy = model.RetryPolicy(frozenset(tokens), num_retries, retriable_status_codes=frozenset({418, 200}),
                               retriable_headers=(model.HeaderMatcher(b"x-again", None),), **settings)
    return RetryState(policy, cast(Cluster, cluster), breaker), cluster.stats, breaker


@pytest.mark.parametrize("tokens", [*itertools.combinations(TOKENS, 1), *itertools.combinations(TOKENS, 2)],
                         ids=",".join)
def test_outcomes(tokens: tuple[str, ...]) -> None:
    for status, limited, again in itertools.product(STATUSES, (False, True), (False, True)):
        headers = Headers.of([*([(b"x-envoy-ratelimited", b"true")] if limited else ()),
                              *([(b"x-again", b"")] if again else ())])
        if limited:
            wanted = "envoy-ratelimited" in tokens
        else:
            wanted = (any(status in ON_STATUS.get(t, ()) for t in tokens) or (again and "retriable-headers" in tokens))
        assert state(tokens)[0].on_response(status, headers) == (YES if wanted else NO), (status, limited, again)
    for reason, retried_on in RESETS.items():
        assert state(tokens)[0].on_reset(reason) == (YES if retried_on & set(tokens) else NO), reason


def test_number_of_retries() -> None:
    one, stats, breaker = state(("5xx",), num_retries=2)
    none = Headers([])
    assert [one.on_response(500, none) for _ in range(3)] == [YES, YES, LIMIT_EXCEEDED]
    assert (stats.upstream_rq_retry, stats.upstream_rq_retry_limit_exceeded, one.count) == (2, 1, 2)
    assert breaker.retries == 0


def test_success_is_counted_after_a_retry_only() -> None:
    one, stats, _ = state(("5xx",))
    assert one.on_response(200, Headers([])) == NO
    assert stats.upstream_rq_retry_success == 0
    one.on_response(500, Headers([]))
    assert one.on_response(200, Headers([])) == NO
    assert stats.upstream_rq_retry_success == 1


def test_breaker() -> None:
    first, stats, breaker = state(("5xx",), max_retries=1)
    second = RetryState(first.policy, cast(Cluster, FakeCluster()), breaker)
    assert first.on_response(500, Headers([])) == YES
    assert second.on_response(500, Headers([])) == OVERFLOW
    first.close()
    first.close()
    assert breaker.retries == 0
    assert second.on_response(500, Headers([])) == YES


@pytest.mark.parametrize(("count", "ceiling"), [(1, 0.025), (2, 0.075), (3, 0.175), (4, 0.25), (50, 0.25)])
def test_backoff(count: int, ceiling: float) -> None:
    one, _, _ = state(("5xx",))
    one.count = count
    waits = [one.backoff() for _ in range(300)]
    assert 0 <= min(waits) < ceiling * 0.2 and ceiling * 0.8 < max(waits) <= ceiling


def test_internal_callers() -> None:
    base = model.RetryPolicy(frozenset({"reset"}), 1, retriable_status_codes=frozenset({503}))

    def asked(policy: model.RetryPolicy | None, **headers: bytes) -> model.RetryPolicy | None:
        return internal_policy(policy,
                               Headers.of((b"x-envoy-" + k.replace("_", "-").encode(), v) for k, v in headers.items()))

    assert asked(None) is None and asked(base) == base
    assert asked(None, max_retries=b"3") is None
    both = asked(base, retry_on=b"5xx, retriable-4xx", retry_grpc_on=b"cancelled", max_retries=b"7",
                 retriable_status_codes=b"409, 1000, x,410")
    assert both is not None
    assert both.retry_on == {"reset", "5xx", "retriable-4xx", "cancelled"}
    assert both.num_retries == 7
    assert both.retriable_status_codes == {503, 409, 410}
    for nonsense in (b"-1", b"x", b"", b"1" * 10, b"\xb2"):
        assert asked(base, max_retries=nonsense) == base
