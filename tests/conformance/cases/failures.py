"""Upstreams that refuse, hang, close, or send nonsense; circuit breakers; the local replies that follow."""

from __future__ import annotations

from tests.conformance.dsl import (
    OK,
    Case,
    Differs,
    Turn,
    accept,
    bad,
    chunks,
    close,
    end,
    get,
    head,
    msg,
    on,
    post,
    recv,
    reply,
    request,
    reset,
    response,
    send,
    signal,
    stat,
    until,
    wait,
)
from tests.conformance.snippets import BASIC, A, bootstrap, cluster, http

SHORT_CONNECT = "connect_timeout: 0.2s"
BROKEN = bootstrap(
    http(routes="""
- {match: {prefix: /refused}, route: {cluster: refused}}
- {match: {prefix: /full}, route: {cluster: full}}
- {match: {prefix: /empty}, route: {cluster: empty}}
- {match: {prefix: /dns-empty}, route: {cluster: dns_empty}}
- {match: {prefix: /original}, route: {cluster: original}}
- {match: {prefix: /alt}, route: {cluster: alt}}
- {match: {prefix: /bound}, route: {cluster: bound}}
"""),
    cluster("refused", "refused"),
    cluster("full", "full", extra=SHORT_CONNECT),
    cluster("empty"),
    cluster("dns_empty", kind="STRICT_DNS"),
    cluster("original", kind="ORIGINAL_DST", extra="lb_policy: CLUSTER_PROVIDED"),
    cluster("alt", "refused", extra="alt_stat_name: other:name"),
    cluster("bound", "up:bound", extra="upstream_bind_config: {source_address: {address: 127.0.0.6, port_value: 0}}"),
)
FAILED = (
    "cluster.{}.upstream_cx_total", "cluster.{}.upstream_cx_connect_fail", "cluster.{}.upstream_cx_connect_timeout",
    "cluster.{}.upstream_rq_total", "cluster.{}.upstream_rq_pending_total",
    "cluster.{}.upstream_rq_pending_failure_eject", "cluster.{}.upstream_cx_none_healthy", "cluster.{}.upstream_rq_503",
    "cluster.{}.upstream_rq_5xx", "cluster.{}.external.upstream_rq_503", "cluster.{}.upstream_rq_completed",
    "cluster.{}.upstream_cx_destroy", "cluster.{}.upstream_cx_destroy_remote", "cluster.{}.upstream_cx_destroy_local",
)  # fmt: skip
AFTER = (
    "cluster.a.upstream_rq_rx_reset", "cluster.a.upstream_rq_tx_reset", "cluster.a.upstream_rq_cancelled",
    "cluster.a.upstream_cx_protocol_error", "cluster.a.upstream_cx_destroy_with_active_rq",
    "cluster.a.upstream_cx_destroy_local_with_active_rq", "cluster.a.upstream_cx_destroy_remote_with_active_rq",
    "cluster.a.upstream_rq_200", "cluster.a.upstream_rq_502", "cluster.a.upstream_rq_503",
    "cluster.a.upstream_rq_5xx", "cluster.a.upstream_rq_completed", "http.main.downstream_rq_tx_reset",
    "http.main.downstream_rq_5xx", "http.main.downstream_rq_2xx",
    "http.main.rq_reset_after_downstream_response_started", "http.main.downstream_cx_destroy_local_active_rq",
)  # fmt: skip
EARLY = ("http.main.downstream_rq_response_before_rq_complete", "cluster.a.upstream_cx_total",
         "cluster.a.upstream_cx_destroy_local_with_active_rq", "http.main.downstream_rq_2xx")  # fmt: skip


def of(name: str) -> tuple[str, ...]:
    """The statistics of a cluster whose connections fail."""
    return tuple(stat_name.format(name) for stat_name in FAILED)


CONNECTING = [
    Case("connect-refused", BROKEN, [get("/refused"), get("/refused", method="HEAD")], log=2, stats=of("refused")),
    Case("connect-refused-post", BROKEN, [post("/refused", b"hello")], stats=of("refused")),
    Case("connect-timeout", BROKEN, [get("/full")], stats=of("full")),
    Case("no-endpoints", BROKEN, [get("/empty"), get("/empty", method="HEAD"), post("/empty", b"hello")], log=3,
         stats=of("empty")),
    Case("no-endpoints-dns", BROKEN, [get("/dns-empty")], stats=of("dns_empty")),
    Case("no-original-destination", BROKEN,
         [get("/original"), get("/original", "x-envoy-original-dst-host: 1.2.3.4:5")], log=2, stats=of("original")),
    Case("alt-stat-name", BROKEN, [get("/alt")], stats=of("other_name") + of("alt")[:3]),
    Case("source-address", BROKEN, [get("/bound")], {"bound": []}),
    Case("unfinished-upload-to-no-endpoint", BROKEN,
         [*bad(msg("POST /empty HTTP/1.1", "Host: x", "Content-Length: 10", body=b"hello"))]),
]  # fmt: skip

CLOSING_TURNS: dict[str, Turn] = {
    "closes-on-accept": (accept(), close()),
    "closes-after-the-request": (request(), close()),
    "resets-after-the-request": (request(), reset()),
    "closes-in-the-status-line": (request(), send(b"HTTP/1.1 2"), close()),
    "closes-in-the-head": (request(), send(b"HTTP/1.1 200 OK\r\ncontent-le"), close()),
    "closes-after-100": (request(), send(msg("HTTP/1.1 100 Continue")), close()),
}
NONSENSE: dict[str, bytes] = {
    "garbage": b"garbage\r\n\r\n",
    "binary-garbage": b"\x16\x03\x01\x00\x05\r\n\r\n",
    "http-09": b"<html>\r\n\r\n",
    "http-2-settings": bytes.fromhex("000000040000000000"),
    "bad-status": b"HTTP/1.1 20x OK\r\n\r\n",
    "status-600": b"HTTP/1.1 600 Odd\r\ncontent-length: 0\r\n\r\n",
    "http-1.2": b"HTTP/1.2 200 OK\r\ncontent-length: 0\r\n\r\n",
    "http-3.0": b"HTTP/3.0 200 OK\r\ncontent-length: 0\r\n\r\n",
    "no-reason": b"HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n",
    "no-colon": b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
    "space-before-colon": b"HTTP/1.1 200 OK\r\nx-a : b\r\ncontent-length: 0\r\n\r\n",
    "nul-in-value": b"HTTP/1.1 200 OK\r\nx-a: b\x00\r\ncontent-length: 0\r\n\r\n",
    "bad-name": b"HTTP/1.1 200 OK\r\nx(a): b\r\ncontent-length: 0\r\n\r\n",
    "length-and-chunked": msg("HTTP/1.1 200 OK", "content-length: 3", "transfer-encoding: chunked", body=chunks(b"x")),
    "two-lengths": msg("HTTP/1.1 200 OK", "content-length: 2", "content-length: 2", body=b"ok"),
    "bad-length": msg("HTTP/1.1 200 OK", "content-length: abc"),
    "negative-length": msg("HTTP/1.1 200 OK", "content-length: -1"),
    "te-gzip": msg("HTTP/1.1 200 OK", "transfer-encoding: gzip", body=b"x"),
    "te-twice": msg("HTTP/1.1 200 OK", "transfer-encoding: chunked", "transfer-encoding: chunked", body=chunks(b"x")),
    "204-with-length": msg("HTTP/1.1 204 No Content", "content-length: 2", body=b"ok"),
    "204-with-chunked": msg("HTTP/1.1 204 No Content", "transfer-encoding: chunked", body=chunks(b"x")),
    "102-then-200": msg("HTTP/1.1 102 Processing") + OK,
    "100-headers": msg("HTTP/1.1 200 OK", *[f"x-{n}: 1" for n in range(99)], "content-length: 2", body=b"ok"),
    "101-headers": msg("HTTP/1.1 200 OK", *[f"x-{n}: 1" for n in range(100)], "content-length: 2", body=b"ok"),
    "79-kilobytes": msg("HTTP/1.1 200 OK", "x-a: " + "a" * 79 * 1024, "content-length: 2", body=b"ok"),
    "81-kilobytes": msg("HTTP/1.1 200 OK", "x-a: " + "a" * 81 * 1024, "content-length: 2", body=b"ok"),
    "endless-head": b"HTTP/1.1 200 OK\r\nx-a: " + b"a" * 300 * 1024,
    "304-with-body": msg("HTTP/1.1 304 Not Modified", "content-length: 2", body=b"ok"),
    "leading-empty-lines": b"\r\n\r\n" + OK,
}
"""What an upstream sends for a whole request; Envoy decides what is acceptable."""

SMUGGLING: dict[str, tuple[str, bytes]] = {
    "value-folded": ("obs-fold", b"HTTP/1.1 200 OK\r\nx-a: b\r\n c\r\ncontent-length: 2\r\n\r\nok"),
    "lf-only-lines": ("lf-only-lines", b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok"),
    "bare-cr": ("bare-cr", b"HTTP/1.1 200 OK\r\nx-a: b\rc\r\ncontent-length: 2\r\n\r\nok"),
    "two-digit-status": ("status-code-digits", b"HTTP/1.1 20 OK\r\ncontent-length: 0\r\n\r\n"),
    "status-099": ("status-code-digits", b"HTTP/1.1 099 Odd\r\ncontent-length: 0\r\n\r\n"),
    "unasked-101": ("unasked-101",
                    msg("HTTP/1.1 101 Switching Protocols", "upgrade: websocket", "connection: upgrade")),
}
"""Envoy accepts it from an upstream; we treat it like any other malformed head."""

BROKEN_BODY: dict[str, Turn] = {
    "short-length-then-close": (request(), send(msg("HTTP/1.1 200 OK", "content-length: 10", body=b"hello")), close()),
    "short-length-then-reset": (request(), send(msg("HTTP/1.1 200 OK", "content-length: 10", body=b"hello")),
                                wait("seen"), reset()),
    "chunk-cut": (request(), send(msg("HTTP/1.1 200 OK", "transfer-encoding: chunked", body=b"a\r\nhello")), close()),
    "chunks-without-end": (request(), send(msg("HTTP/1.1 200 OK", "transfer-encoding: chunked",
                                               body=b"5\r\nhello\r\n")), close()),
    "chunk-size-bad": (request(), send(msg("HTTP/1.1 200 OK", "transfer-encoding: chunked", body=b"5\r\nhello\r\n")),
                       wait("seen"), send(b"zz\r\n")),
}  # fmt: skip

CLOSING = [
    Case(f"upstream-{name}", BASIC, [get("/")], [turn], stats=AFTER, log=1) for name, turn in CLOSING_TURNS.items()
]
INVALID = [
    Case(f"upstream-sends-{name}", BASIC, [get("/")], [(request(), send(data))], stats=AFTER)
    for name, data in NONSENSE.items()
] + [
    Case(f"upstream-sends-{name}", BASIC, [get("/")], [(request(), send(data))], stats=AFTER,
         differs=Differs(anchor, {"up": [(request(), send(NONSENSE["no-colon"]))]}))
    for name, (anchor, data) in SMUGGLING.items()
]  # fmt: skip
TRUNCATED = [
    Case(f"upstream-body-{name}", BASIC, [send(get("/")), until(b"hello"), signal("seen"), end()], [turn], stats=AFTER)
    for name, turn in BROKEN_BODY.items()
]

UPLOAD = msg("POST /up HTTP/1.1", "Host: x.com", "Content-Length: 10", body=b"hello")
EARLY_RESPONSES = [
    Case("early-response", BASIC, [send(UPLOAD), response(), end()], [(head(), recv(5), send(OK), end())], stats=EARLY),
    Case("early-response-then-the-rest", BASIC, [send(UPLOAD), response(), send(b"world"), end(either=True)],
         [(head(), recv(5), send(OK), end())], stats=EARLY),
    Case("early-response-chunked", BASIC,
         [send(msg("POST /up HTTP/1.1", "Host: x", "Transfer-Encoding: chunked", body=b"5\r\nhello\r\n")),
          response(), end()], [(head(), until(b"hello\r\n"), send(reply(413, b"no")), end())], stats=EARLY),
    Case("early-local-reply", BROKEN, bad(msg("POST /nothing HTTP/1.1", "Host: x", "Content-Length: 10", body=b"he"))),
]  # fmt: skip

LIMITED = bootstrap(
    http(routes="""
- {match: {prefix: /pending}, route: {cluster: pending}}
- {match: {prefix: /requests}, route: {cluster: requests}}
- {match: {prefix: /connections}, route: {cluster: connections}}
- {match: {prefix: /per-connection}, route: {cluster: per_connection}}
- {match: {prefix: /high}, route: {cluster: pending, priority: HIGH}}
"""),
    cluster("pending", "up:a",
            extra="circuit_breakers: {thresholds: [{max_connections: 1, max_pending_requests: 1}]}"),
    cluster("requests", "up:a", extra="circuit_breakers: {thresholds: [{max_requests: 1}]}"),
    cluster("connections", "up:a", extra="circuit_breakers: {thresholds: [{max_connections: 1}]}"),
    cluster("per_connection", "up:a", extra="""
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    common_http_protocol_options: {max_requests_per_connection: 2}
    explicit_http_config: {http_protocol_options: {}}
"""),
)  # fmt: skip


def limits(name: str) -> tuple[str, ...]:
    """Statistics of a cluster at its limits."""
    return tuple(f"cluster.{name}.{stat_name}" for stat_name in (
        "upstream_cx_total", "upstream_cx_overflow", "upstream_rq_total", "upstream_rq_pending_total",
        "upstream_rq_pending_overflow", "upstream_rq_active_overflow", "upstream_rq_503", "upstream_rq_200",
        "upstream_cx_max_requests", "upstream_cx_destroy_local",
    ))  # fmt: skip


HELD = (request(), signal("held"), wait("go"), send(OK))
CIRCUITS = [
    Case("pending-overflow", LIMITED,
         [on("first", send(get("/pending/1")), wait("held")),
          on("second", send(get("/pending/2"))), stat("cluster.pending.upstream_rq_pending_active", 1),
          on("third", get("/pending/3"), get("/pending/3", method="HEAD")), signal("go"), on("first", response()),
          on("second", response())],
         [HELD], log=4, stats=limits("pending")),
    Case("requests-overflow", LIMITED,
         [on("first", send(get("/requests/1")), wait("held")), on("second", get("/requests/2")), signal("go"),
          on("first", response()), on("second", get("/requests/3"))], [HELD], log=3, stats=limits("requests")),
    Case("connections-limit-queues", LIMITED,
         [on("first", send(get("/connections/1")), wait("held")), on("second", send(get("/connections/2"))),
          stat("cluster.connections.upstream_rq_pending_active", 1), signal("go"), on("first", response()),
          on("second", response())], [HELD], log=2, stats=limits("connections")),
    Case("requests-per-connection", LIMITED, [get(f"/per-connection/{n}") for n in range(5)], log=5,
         stats=limits("per_connection")),
    Case("high-priority-has-its-own-limits", LIMITED,
         [on("first", send(get("/pending/1")), wait("held")), on("second", get("/high")), signal("go"),
          on("first", response())], [HELD], log=2, stats=limits("pending")),
    Case("client-gives-up-while-pending", LIMITED,
         [on("first", send(get("/pending/1")), wait("held")), on("second", send(get("/pending/2"))),
          stat("cluster.pending.upstream_rq_pending_active", 1), on("second", close()),
          stat("cluster.pending.upstream_rq_pending_active", 0), signal("go"), on("first", response())], [HELD], log=2,
         stats=(*limits("pending"), "cluster.pending.upstream_rq_cancelled", "cluster.pending.upstream_rq_tx_reset")),
]  # fmt: skip

MAINTENANCE = bootstrap(http(), A, extra="""
layered_runtime: {layers: [{name: static, static_layer: {upstream.maintenance_mode.a: 100}}]}
""")
DROPPING = bootstrap(http(), A.replace("    endpoints:", """    policy:
      drop_overloads: [{category: all, drop_percentage: {numerator: 100}}]
    endpoints:"""))
POLICIES = [
    Case("maintenance-mode", MAINTENANCE, [get("/"), get("/", method="HEAD")], log=2,
         stats=("cluster.a.upstream_rq_maintenance_mode", "cluster.a.upstream_rq_503"),
         refused="upstream.maintenance_mode.a]: upstream settings from the runtime are not supported yet"),
    Case("drop-overloads", DROPPING, [get("/")],
         stats=("cluster.a.upstream_rq_503", "cluster.a.upstream_rq_drop_overload"),
         refused="policy.drop_overloads: is not supported yet"),
]

GRPC = "content-type: application/grpc"
GRPC_REPLIES = [
    Case("grpc-no-endpoints", BROKEN, [get("/empty", GRPC), post("/empty", b"\0\0\0\0\0", GRPC + "+proto")], log=2),
    Case("grpc-refused", BROKEN, [get("/refused", GRPC), get("/nothing", GRPC)], log=2, stats=of("refused")),
    Case("grpc-web-is-not-grpc", BROKEN, [get("/empty", "content-type: application/grpc-web")]),
]

RETRYING = bootstrap(http(routes="- {match: {prefix: /}, route: {cluster: a, retry_policy: {retry_on: reset}}}"), A)
STALE = [
    Case("stale-connection", BASIC, [get("/1"), get("/2")], [OK, (request(), close()), reply(200, b"again")], log=2,
         differs=Differs("stale-connection", {"config": RETRYING})),
    Case("stale-connection-reset", BASIC, [get("/1"), get("/2", method="HEAD")], [OK, (request(), reset()), OK], log=2,
         differs=Differs("stale-connection", {"config": RETRYING})),
    Case("stale-connection-post-is-not-repeated", BASIC, [get("/1"), post("/2", b"hello")], [OK, (request(), close())],
         log=2, stats=AFTER),
    Case("stale-connection-after-some-bytes", BASIC, [get("/1"), get("/2")],
         [OK, (request(), send(b"HTTP/1.1 2"), close())], log=2, stats=AFTER),
]

CASES = (
    CONNECTING + CLOSING + INVALID + TRUNCATED + EARLY_RESPONSES + CIRCUITS + POLICIES + GRPC_REPLIES + STALE
)
