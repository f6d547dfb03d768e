"""Whether and when a request is tried again (Envoy: RetryStateImpl)."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

from proxy.config.model import HeaderMatcher, RetryPolicy
from proxy.http import reset
from proxy.http.route_table import header_condition

if TYPE_CHECKING:
    from proxy.http.headers import Headers
    from proxy.http.reset import Reset
    from proxy.upstream.cluster import Breaker, Cluster, Host

YES, NO, LIMIT_EXCEEDED, OVERFLOW = range(4)

LOCAL_RESET = reset.Reset(b"local reset", 504, b"UT")
"""A per-try timeout cut the attempt."""

ON_RESET = frozenset(("5xx", "gateway-error", "reset"))
ON_CONNECT_FAILURE = ON_RESET | {"connect-failure", "reset-before-request"}
GATEWAY_ERRORS = frozenset((502, 503, 504))

GRPC_TOKENS: dict[bytes | None, str] = {
    b"1": "cancelled", b"4": "deadline-exceeded", b"8": "resource-exhausted", b"13": "internal", b"14": "unavailable",
}
"""grpc-status of a response head (a trailers-only response; trailers come too late) -> word of retry_on."""


class RetryState:
    """What is left of a request's retries; made with its first attempt when the route has a policy."""

    __slots__ = ("_breaker", "_cluster", "_left", "_open", "count", "hosts", "policy")

    def __init__(self, policy: RetryPolicy, cluster: Cluster, breaker: Breaker) -> None:
        self.policy = policy
        self._left = policy.num_retries
        self._cluster = cluster
        self._breaker = breaker
        self._open = False
        self.count = 0
        """Retries that were begun."""
        self.hosts: list[Host] = []
        """Hosts tried so far."""

    def on_response(self, status: int, headers: Headers) -> int:
        """Judge a response head."""
        policy = self.policy
        retry_on = policy.retry_on
        limited = b"x-envoy-ratelimited" in headers.index
        wanted = (
            ("5xx" in retry_on and 500 <= status < 600 and not limited)
            or ("gateway-error" in retry_on and status in GATEWAY_ERRORS and not limited)
            or ("retriable-4xx" in retry_on and status == 409 and not limited)
            or ("retriable-status-codes" in retry_on and status in policy.retriable_status_codes and not limited)
            or ("envoy-ratelimited" in retry_on and limited)
            or ("retriable-headers" in retry_on and not limited
                and any(header_condition(m)(headers) for m in policy.retriable_headers))
            or (not limited and GRPC_TOKENS.get(headers.get(b"grpc-status"), "") in retry_on)
        )
        return self._judge(wanted)

    def on_reset(self, reason: Reset) -> int:
        """Judge an attempt without a response."""
        if reason is reset.OVERFLOW:
            return self._judge(False)
        failed_connect = reason is reset.CONNECTION_FAILURE or reason is reset.CONNECTION_TIMEOUT
        return self._judge(not self.policy.retry_on.isdisjoint(ON_CONNECT_FAILURE if failed_connect else ON_RESET))

    def _judge(self, wanted: bool) -> int:
        self.close()
        stats = self._cluster.stats
        if not wanted:
            if self.count:
                stats.upstream_rq_retry_success += 1
            return NO
        if self._left == 0:
            stats.upstream_rq_retry_limit_exceeded += 1
            return LIMIT_EXCEEDED
        breaker = self._breaker
        if breaker.retries >= breaker.limits.max_retries:
            stats.upstream_rq_retry_overflow += 1
            return OVERFLOW
        self._left -= 1
        self.count += 1
        self._open = True
        breaker.retries += 1
        stats.upstream_rq_retry += 1
        stats.upstream_rq_retry_backoff_exponential += 1
        return YES

    def backoff(self) -> float:
        """Seconds to wait before the next attempt: uniform below (2^n - 1) x base, capped."""
        policy = self.policy
        ceiling = ((1 << min(self.count, 20)) - 1) * policy.base_interval
        return random.random() * min(ceiling, policy.max_interval)

    def close(self) -> None:
        """The retry in progress, if any, no longer counts against the circuit breaker."""
        if self._open:
            self._open = False
            self._breaker.retries -= 1


def _words(value: bytes | None) -> frozenset[str]:
    return frozenset(word.strip() for word in (value or b"").decode("latin-1").split(",") if word.strip())


def internal_policy(policy: RetryPolicy | None, headers: Headers) -> RetryPolicy | None:
    """The route's policy as the x-envoy-* headers of an internal caller change it."""
    asked = headers.get(b"x-envoy-retry-on")
    grpc = headers.get(b"x-envoy-retry-grpc-on")
    if asked is not None or grpc is not None:
        words = frozenset(GRPC_TOKENS.values())
        tokens = (_words(asked) - words) | (_words(grpc) & words)
        policy = replace(policy, retry_on=policy.retry_on | tokens) if policy else RetryPolicy(tokens)
    if policy is None:
        return None
    limit = headers.get(b"x-envoy-max-retries")
    if limit is not None and limit.isdigit() and len(limit) < 10:
        policy = replace(policy, num_retries=int(limit))
    codes = headers.get(b"x-envoy-retriable-status-codes")
    if codes is not None:
        listed = frozenset(int(c) for c in codes.replace(b" ", b"").split(b",") if c.isdigit() and len(c) == 3)
        policy = replace(policy, retriable_status_codes=policy.retriable_status_codes | listed)
    names = headers.get(b"x-envoy-retriable-header-names")
    if names is not None:
        present = tuple(HeaderMatcher(name.lower().encode("latin-1"), None) for name in sorted(_words(names)))
        policy = replace(policy, retriable_headers=policy.retriable_headers + present)
    return policy
