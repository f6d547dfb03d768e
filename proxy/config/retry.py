"""config.route.v3.RetryPolicy."""

from __future__ import annotations

from proxy.config.extensions import Registry
from proxy.config.matchers import header_matcher
from proxy.config.model import RetryPolicy
from proxy.config.reader import Reader, ignore

HTTP_TOKENS = frozenset((
    "5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "envoy-ratelimited", "retriable-4xx",
    "refused-stream", "retriable-status-codes", "retriable-headers", "http3-post-connect-failure",
))
GRPC_TOKENS = frozenset(("cancelled", "deadline-exceeded", "resource-exhausted", "unavailable", "internal"))
KNOWN_TOKENS = HTTP_TOKENS | GRPC_TOKENS

RETRY_HOST_PREDICATES: Registry[bool] = Registry(
    "retry host predicate",
    ("envoy.config.route.v3.RetryPolicy.RetryHostPredicate.typed_config",),
    {"envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate": ignore},
)


def _host_predicate(reader: Reader) -> bool:
    return reader.extension("typed_config", RETRY_HOST_PREDICATES)


def _back_off(reader: Reader) -> tuple[float, float]:
    """RetryBackOff; the longest interval is ten times the first where it is not given."""
    base = max(reader.seconds("base_interval"), 0.001)
    longest = reader.optional_seconds("max_interval")
    longest = base * 10 if longest is None else max(longest, 0.001)
    if longest < base:
        reader.error("max_interval", "retry_policy.max_interval must greater than or equal to the base_interval")
    return base, longest


def retry_policy(reader: Reader) -> RetryPolicy:
    """config.route.v3.RetryPolicy. Tokens of retry_on that Envoy does not know are left out with a warning."""
    text = reader.string("retry_on")
    tokens = {token.strip() for token in text.split(",")} - {""}
    if unknown := sorted(tokens - KNOWN_TOKENS):
        reader.warn("retry_on", f"Unknown retry_on policy token(s) [{', '.join(unknown)}] in retry_on config {text!r}. "
                                "These tokens will be silently ignored.")
    base, longest = reader.sub("retry_back_off", _back_off) or (0.025, 0.250)
    predicates = reader.each("retry_host_predicate", _host_predicate)
    attempts = reader.integer("host_selection_retry_max_attempts")
    if attempts < 0:
        reader.error("host_selection_retry_max_attempts", f"{attempts} is negative")
    return RetryPolicy(
        retry_on=frozenset(tokens & KNOWN_TOKENS),
        num_retries=reader.integer("num_retries", 1),
        per_try_timeout=reader.seconds("per_try_timeout"),
        per_try_idle_timeout=reader.seconds("per_try_idle_timeout"),
        retriable_status_codes=frozenset(reader.numbers("retriable_status_codes")),
        avoid_previous_hosts=bool(predicates),
        host_selection_retry_max_attempts=attempts or 1,
        base_interval=base,
        max_interval=longest,
        retriable_headers=reader.each("retriable_headers", header_matcher),
        retriable_request_headers=reader.each("retriable_request_headers", header_matcher),
    )
