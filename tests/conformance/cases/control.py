"""Internal callers and the x-envoy-* headers by which they control the router."""

from __future__ import annotations

from tests.conformance.cases.headers import EVERY_CONTROL
from tests.conformance.dsl import OK, Case, Step, connect, end, get, reply, request
from tests.conformance.snippets import QUICK_CLOSE, A, bootstrap, http

LOOPBACK = "internal_address_config: {cidr_ranges: [{address_prefix: 127.0.0.0, prefix_len: 8}]}"
TENS = "internal_address_config: {cidr_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}"
INTERNAL = bootstrap(
    http("edge", extra=f"{QUICK_CLOSE}\nuse_remote_address: true\n{LOOPBACK}"),
    http("inner", extra=f"{QUICK_CLOSE}\n{TENS}"),
    http("pinned", "- {match: {prefix: /}, route: {cluster: a, timeout: 3s, retry_policy: {retry_on: 5xx}}}",
         extra=f"{QUICK_CLOSE}\nuse_remote_address: true\n{LOOPBACK}"),
    A,
)  # fmt: skip
STATS = tuple(f"cluster.a.{name}" for name in (
    "upstream_rq_retry", "upstream_rq_retry_success", "upstream_rq_retry_limit_exceeded", "upstream_rq_total",
    "upstream_rq_timeout", "upstream_rq_per_try_timeout", "internal.upstream_rq_200", "external.upstream_rq_200",
    "internal.upstream_rq_503", "internal.upstream_rq_completed", "external.upstream_rq_completed",
))  # fmt: skip
UNTIMED = [line for line in EVERY_CONTROL if "timeout-ms" not in line and "duration" not in line]
E503 = reply(503, b"busy")
SILENT = (request(), end())


def edge(*data: Step) -> list[Step]:
    """On the listener that takes every loopback client for an internal one."""
    return [connect("edge"), *data]


CASES = [
    Case("internal-caller", INTERNAL, edge(get("/"), get("/", "X-Forwarded-For: 127.0.0.9")), log=2, stats=STATS),
    Case("internal-by-forwarded-for", INTERNAL, [connect("inner"), get("/", "X-Forwarded-For: 10.1.2.3"),
         get("/", "X-Forwarded-For: 10.1.2.3, 10.1.2.4"), get("/", "X-Forwarded-For: 1.2.3.4"), get("/")], log=4,
         stats=STATS),
    Case("internal-header-of-a-stranger", INTERNAL,
         [connect("inner"), get("/", "X-Envoy-Internal: true", "X-Forwarded-For: 1.2.3.4")]),
    Case("control-headers-reach-the-router", INTERNAL, edge(get("/", *UNTIMED)), stats=STATS),
    Case("control-retry-on", INTERNAL, edge(get("/", "x-envoy-retry-on: 5xx")), [E503], stats=STATS),
    Case("control-max-retries", INTERNAL, edge(get("/", "x-envoy-retry-on: 5xx", "x-envoy-max-retries: 2")),
         [E503, E503, OK], stats=STATS),
    Case("control-max-retries-zero", INTERNAL,
         [connect("pinned"), get("/", "x-envoy-max-retries: 0"), get("/", "x-envoy-max-retries: x")], [E503, E503],
         log=2, stats=STATS),
    Case("control-retriable-codes", INTERNAL,
         edge(get("/", "x-envoy-retry-on: retriable-status-codes", "x-envoy-retriable-status-codes: 418,x, 419"),
              get("/", "x-envoy-retriable-status-codes: 418")), [reply(419), OK, reply(418)], log=2, stats=STATS),
    Case("control-retriable-header-names", INTERNAL,
         edge(get("/", "x-envoy-retry-on: retriable-headers", "x-envoy-retriable-header-names: x-other, X-Again"),
              get("/", "x-envoy-retriable-header-names: x-again")),
         [reply(200, b"no", "x-again: 1"), OK, reply(200, b"no", "x-again: 1")], log=2, stats=STATS),
    Case("control-retry-grpc-on", INTERNAL,
         edge(get("/", "x-envoy-retry-grpc-on: unavailable,5xx"), get("/", "x-envoy-retry-on: unavailable"),
              get("/", "x-envoy-retry-grpc-on: 5xx")),
         [reply(200, b"", "grpc-status: 14"), OK, reply(200, b"", "grpc-status: 14"), E503], log=3, stats=STATS),
    Case("control-timeout", INTERNAL, edge(get("/", "x-envoy-upstream-rq-timeout-ms: 200")), [SILENT], stats=STATS),
    Case("control-timeout-zero", INTERNAL, edge(get("/", "x-envoy-upstream-rq-timeout-ms: 0"),
                                                get("/", "x-envoy-upstream-rq-timeout-ms: abc")), log=2, stats=STATS),
    Case("control-timeout-alt-response", INTERNAL,
         edge(get("/", "x-envoy-upstream-rq-timeout-ms: 200", "x-envoy-upstream-rq-timeout-alt-response: 1")),
         [SILENT], stats=STATS),
    Case("control-per-try-timeout", INTERNAL,
         edge(get("/", "x-envoy-upstream-rq-per-try-timeout-ms: 200", "x-envoy-retry-on: 5xx")), [SILENT],
         stats=STATS),
    Case("control-per-try-not-below-the-timeout", INTERNAL,
         [connect("pinned"), get("/", "x-envoy-upstream-rq-per-try-timeout-ms: 3000")], stats=STATS),
    Case("control-alt-stat-name", INTERNAL, edge(get("/", "x-envoy-upstream-alt-stat-name: mine")),
         stats=(*STATS, "cluster.a.mine.upstream_rq_200", "cluster.a.mine.internal.upstream_rq_200")),
    Case("control-stream-duration", INTERNAL, edge(get("/", "x-envoy-upstream-stream-duration-ms: 200")), [SILENT],
         stats=STATS),
]  # fmt: skip
