"""Retry policies: what is retried, how often, and what is seen of it."""

from __future__ import annotations

from tests.conformance.dsl import (
    OK,
    Case,
    accept,
    close,
    end,
    get,
    head,
    msg,
    post,
    recv,
    reply,
    request,
    reset,
    response,
    send,
    signal,
    wait,
)
from tests.conformance.snippets import A, bootstrap, cluster, http


def route(name: str, policy: str, more: str = "", to: str = "a") -> str:
    """A route /name with this retry policy."""
    return f"- {{match: {{path: /{name}}}, route: {{cluster: {to}, retry_policy: {{{policy}}}{more}}}}}"


QUICK = "retry_back_off: {base_interval: 0.001s, max_interval: 0.002s}"
ISTIO = (
    "retry_on: 'connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes', num_retries: 2, "
    "retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts, typed_config: {'@type': "
    "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}], "
    "host_selection_retry_max_attempts: 5, retriable_status_codes: [503]"
)
RETRIES = bootstrap(
    http(vhosts="""
- name: all
  domains: ["*"]
  include_request_attempt_count: true
  include_attempt_count_in_response: true
  routes:
""" + "\n".join("  " + line for line in [
        route("5xx", f"retry_on: 5xx, {QUICK}"),
        route("thrice", f"retry_on: 5xx, num_retries: 3, {QUICK}"),
        route("gateway", f"retry_on: gateway-error, {QUICK}"),
        route("reset", f"retry_on: reset, {QUICK}"),
        route("before", f"retry_on: reset-before-request, {QUICK}"),
        route("connect", f"retry_on: connect-failure, num_retries: 2, {QUICK}"),
        route("refused", f"retry_on: connect-failure, num_retries: 2, {QUICK}", to="refused"),
        route("mixed", ISTIO, to="mixed"),
        route("4xx", f"retry_on: retriable-4xx, {QUICK}"),
        route("codes", f"retry_on: retriable-status-codes, retriable_status_codes: [418, 503], {QUICK}"),
        route("headers", "retry_on: retriable-headers, retriable_headers: [{name: x-again, present_match: true}], "
              + QUICK),
        route("grpc", f"retry_on: 'unavailable,cancelled', {QUICK}"),
        route("limited", f"retry_on: envoy-ratelimited, {QUICK}"),
        route("per-try", f"retry_on: reset, num_retries: 1, per_try_timeout: 0.2s, {QUICK}"),
        route("per-try-5xx", f"retry_on: 5xx, num_retries: 2, per_try_timeout: 0.1s, {QUICK}"),
        route("per-try-only", "retry_on: connect-failure, per_try_timeout: 0.1s"),
        route("per-try-idle", f"retry_on: 5xx, num_retries: 1, per_try_idle_timeout: 0.1s, {QUICK}"),
        route("timeout", f"retry_on: 5xx, num_retries: 10, per_try_timeout: 0.15s, {QUICK}", ", timeout: 0.25s"),
        route("request-headers",
              f"retry_on: 5xx, retriable_request_headers: [{{name: x-may, present_match: true}}], {QUICK}"),
        route("zero", f"retry_on: 5xx, num_retries: 0, {QUICK}"),
        route("istio", ISTIO),
        route("budget", f"retry_on: 5xx, num_retries: 3, {QUICK}", to="no_retries"),
        route("group", f"retry_on: 5xx, num_retries: 2, {QUICK}", to="group"),
        "- {match: {prefix: /plain}, route: {cluster: a}}",
    ]) + "\n  retry_policy: {retry_on: 5xx, num_retries: 1, retry_back_off: {base_interval: 0.001s}}"),
    A,
    cluster("refused", "refused"),
    cluster("mixed", "refused", "up:mixed"),
    cluster("no_retries", "up:a", extra="circuit_breakers: {thresholds: [{max_retries: 0}]}"),
    cluster("group", "up:group/0", "up:group/1", "up:group/2"),
)

SMALL_BUFFER = bootstrap(http(vhosts="""
- name: all
  domains: ["*"]
  per_request_buffer_limit_bytes: 20
  routes:
  - match: {prefix: /}
    route: {cluster: a, retry_policy: {retry_on: 5xx, retry_back_off: {base_interval: 60s, max_interval: 60s}}}
"""), A)


def counted(name: str = "a") -> tuple[str, ...]:
    """Statistics of retries."""
    return tuple(f"cluster.{name}.{stat}" for stat in (
        "upstream_rq_retry", "upstream_rq_retry_success", "upstream_rq_retry_limit_exceeded",
        "upstream_rq_retry_overflow", "upstream_rq_retry_backoff_exponential", "upstream_rq_total",
        "upstream_rq_completed", "upstream_rq_200", "upstream_rq_503", "upstream_rq_5xx", "retry.upstream_rq_503",
        "retry.upstream_rq_5xx", "retry.upstream_rq_completed", "upstream_rq_timeout", "upstream_rq_per_try_timeout",
        "upstream_cx_connect_fail", "upstream_cx_connect_attempts_exceeded", "upstream_rq_pending_failure_eject",
        "upstream_rq_rx_reset", "upstream_rq_tx_reset", "upstream_rq_504",
    ))  # fmt: skip


def grpc(status: int) -> bytes:
    """A trailers-only response of gRPC, as HTTP/1 can carry it."""
    return reply(200, b"", "content-type: application/grpc", f"grpc-status: {status}")


E503 = reply(503, b"busy")
E503_LAST = reply(503, b"busy", "connection: close")
LAST = reply(200, b"ok", "connection: close")
"""The next request opens a connection: on a reused one that ends we try once more by ourselves."""
CUT = (request(), close())
SILENT = (request(), end())

CASES = [
    Case("retry-5xx", RETRIES, [get("/5xx")], [E503], stats=counted()),
    Case("retry-5xx-exhausted", RETRIES, [get("/5xx")], [E503, reply(500, b"worse")], stats=counted()),
    Case("retry-three-times", RETRIES, [get("/thrice")], [E503, reply(500), CUT], stats=counted()),
    Case("retry-5xx-after-close", RETRIES, [get("/5xx")], [CUT], stats=counted()),
    Case("retry-5xx-and-close-exhausted", RETRIES, [get("/5xx")], [CUT, CUT], stats=counted()),
    Case("retry-with-body", RETRIES, [post("/5xx", b"hello"),
                                      msg("POST /5xx HTTP/1.1", "Host: x", "Transfer-Encoding: chunked",
                                          body=b"5\r\nhello\r\n0\r\n\r\n")], [E503, OK, E503], log=2, stats=counted()),
    Case("retry-body-too-large", RETRIES, [post("/5xx", b"x" * 1200000)], [E503],
         stats=(*counted(), "cluster.a.retry_or_shadow_abandoned")),
    Case("retry-gateway-error", RETRIES, [get("/gateway"), get("/gateway"), get("/gateway")],
         [reply(500), reply(502), LAST, CUT, OK], log=3, stats=counted()),
    Case("retry-reset", RETRIES, [get("/reset"), get("/reset")], [E503_LAST, (request(), reset())], log=2,
         stats=counted()),
    Case("retry-reset-before-request", RETRIES, [get("/before")], [CUT], stats=counted()),
    Case("retry-reset-before-request-reused", RETRIES, [get("/plain"), post("/before", b"hello")], [OK, CUT], log=2,
         stats=counted()),
    Case("retry-connect-failure-not-after-accept", RETRIES, [get("/connect")], [CUT], stats=counted()),
    Case("retry-garbage", RETRIES, [get("/5xx"), get("/reset")],
         [b"garbage\r\n\r\n", OK, b"garbage\r\n\r\n", b"garbage\r\n\r\n"], log=2, stats=counted()),
    Case("retry-refused-exhausted", RETRIES, [get("/refused")], stats=counted("refused")),
    Case("retry-on-another-host", RETRIES, [get("/mixed"), get("/mixed"), post("/mixed", b"hello")], {"mixed": []},
         log=3, loose=((r"x-envoy-attempt-count: [12]", "x-envoy-attempt-count: <1 or 2>"),)),
    Case("retry-409", RETRIES, [get("/4xx"), get("/4xx")], [reply(409, b"conflict"), OK, reply(404, b"no")], log=2,
         stats=counted()),
    Case("retry-status-codes", RETRIES, [get("/codes"), get("/codes")], [reply(418), OK, reply(502)], log=2,
         stats=counted()),
    Case("retry-headers", RETRIES, [get("/headers"), get("/headers")], [reply(200, b"no", "x-again: 1"), OK, E503],
         log=2, stats=counted()),
    Case("retry-grpc-status", RETRIES, [get("/grpc") for _ in range(6)],
         [grpc(14), OK, grpc(1), grpc(0), grpc(13), grpc(14), grpc(14), grpc(0), grpc(0)], log=6, stats=counted()),
    Case("retry-ratelimited", RETRIES, [get("/limited"), get("/5xx")],
         [reply(429, b"no", "x-envoy-ratelimited: true"), OK, reply(503, b"no", "x-envoy-ratelimited: true")], log=2,
         stats=counted()),
    Case("per-try-timeout-then-success", RETRIES, [get("/per-try")], [SILENT], stats=counted()),
    Case("per-try-timeout-exhausted", RETRIES, [get("/per-try-5xx")], [SILENT, SILENT, SILENT], stats=counted()),
    Case("per-try-timeout-not-retried", RETRIES, [get("/per-try-only")], [SILENT], stats=counted()),
    Case("per-try-idle-timeout", RETRIES, [get("/per-try-idle")], [SILENT, SILENT],
         stats=(*counted(), "cluster.a.upstream_rq_per_try_idle_timeout")),
    Case("timeout-across-tries", RETRIES, [get("/timeout")], [SILENT, SILENT], stats=counted(),
         loose=((r"(x-envoy-expected-rq-timeout-ms): \d+", r"\1: <ms>"),)),
    Case("retriable-request-headers", RETRIES, [get("/request-headers"), get("/request-headers", "x-may: 1")],
         [E503, E503], log=2, stats=counted()),
    Case("retries-zero", RETRIES, [get("/zero")], [E503], stats=counted()),
    Case("retry-policy-of-the-virtual-host", RETRIES, [get("/plain")], [E503], stats=counted()),
    Case("istio-policy", RETRIES, [get("/istio"), get("/istio"), get("/istio")], [E503, LAST, CUT, reply(500)], log=3,
         stats=counted()),
    Case("retry-overflow", RETRIES, [get("/budget")], [E503], stats=counted("no_retries")),
    Case("retry-not-after-headers", RETRIES, [send(get("/5xx")), end()],
         [(request(), send(msg("HTTP/1.1 200 OK", "content-length: 9", body=b"part")), close())], stats=counted()),
    Case("retry-early-response", RETRIES,
         [send(msg("POST /5xx HTTP/1.1", "Host: x", "Content-Length: 10", body=b"hello")), wait("again"),
          send(b"world"), response()],
         [(head(), recv(5), send(E503), end()), (head(), recv(5), signal("again"), recv(5), send(OK))],
         stats=counted()),
    Case("retry-buffer-overflows-between-tries", SMALL_BUFFER,
         [send(msg("POST / HTTP/1.1", "Host: x", "Content-Length: 100", body=b"hello")), wait("failed"),
          send(b"x" * 50), response(), end()],
         [(head(), recv(5), send(E503), end(), signal("failed"))], stats=counted(),
         refused="per_request_buffer_limit_bytes: is not supported yet"),
    Case("attempt-count-of-the-client", RETRIES, [get("/5xx", "x-envoy-attempt-count: 7")]),
    Case("retry-moves-round-robin", RETRIES, [get("/group"), get("/group")], {"group": [E503, E503, OK, E503]}, log=2),
    Case("retry-after-close-on-accept", RETRIES, [get("/reset"), get("/connect")], [(accept(), close())], log=2,
         stats=counted()),
]  # fmt: skip
