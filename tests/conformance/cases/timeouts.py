"""Timeouts and limits, configured small: routes, streams, connections, heads."""

from __future__ import annotations

from tests.conformance.dsl import (
    OK,
    Case,
    Step,
    bad,
    connect,
    end,
    get,
    head,
    msg,
    post,
    recv,
    request,
    response,
    send,
    signal,
    until,
    wait,
)
from tests.conformance.snippets import BASIC, QUICK_CLOSE, A, bootstrap, cluster, http

SILENT = (request(), end())
GRPC = "content-type: application/grpc"

ROUTES = bootstrap(http(routes="""
- {match: {path: /short}, route: {cluster: a, timeout: 0.2s}}
- {match: {path: /none}, route: {cluster: a, timeout: 0s}}
- {match: {path: /long}, route: {cluster: a, timeout: 1.5s}}
- {match: {path: /idle}, route: {cluster: a, idle_timeout: 0.2s}}
- {match: {path: /max}, route: {cluster: a, max_stream_duration: {max_stream_duration: 0.2s}}}
- {match: {path: /cluster-max}, route: {cluster: bounded}}
- {match: {prefix: /}, route: {cluster: a}}
"""), A, cluster("bounded", "up:a", extra="""
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    common_http_protocol_options: {max_stream_duration: 0.2s}
    explicit_http_config: {http_protocol_options: {}}
"""))
STREAMS = bootstrap(
    http("idle", extra=f"{QUICK_CLOSE}\nstream_idle_timeout: 0.2s"),
    http("overall", extra=f"{QUICK_CLOSE}\nrequest_timeout: 0.2s"),
    http("heads", extra=f"{QUICK_CLOSE}\nrequest_headers_timeout: 0.2s"),
    http("duration", extra=f"{QUICK_CLOSE}\ncommon_http_protocol_options: {{max_stream_duration: 0.2s}}"),
    A,
)
CONNECTIONS = bootstrap(
    http("idle", extra=f"{QUICK_CLOSE}\ndrain_timeout: 0.1s\ncommon_http_protocol_options: {{idle_timeout: 0.2s}}"),
    http("lifetime",
         extra=f"{QUICK_CLOSE}\ndrain_timeout: 0.1s\ncommon_http_protocol_options: {{max_connection_duration: 0.2s}}"),
    http("requests", extra=f"{QUICK_CLOSE}\ncommon_http_protocol_options: {{max_requests_per_connection: 2}}"),
    http("slow_close", extra="delayed_close_timeout: 0.5s"),
    http("no_delay", extra="delayed_close_timeout: 0s"),
    A,
)  # fmt: skip
HEADS = bootstrap(
    http("small", extra=f"{QUICK_CLOSE}\nmax_request_headers_kb: 1"),
    http("few", extra=f"{QUICK_CLOSE}\ncommon_http_protocol_options: {{max_headers_count: 5}}"),
    A,
)
UPSTREAM = bootstrap(http(), cluster("a", "up:a", extra="""
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    common_http_protocol_options: {idle_timeout: 0.2s}
    explicit_http_config: {http_protocol_options: {}}
"""))

TIMED_OUT = (
    "cluster.a.upstream_rq_timeout", "cluster.a.upstream_rq_tx_reset", "cluster.a.upstream_rq_504",
    "cluster.a.upstream_rq_5xx", "cluster.a.upstream_cx_destroy_local_with_active_rq",
    "cluster.a.upstream_rq_max_duration_reached", "cluster.bounded.upstream_rq_max_duration_reached",
    "cluster.bounded.upstream_rq_504", "http.main.downstream_rq_5xx", "http.main.downstream_rq_idle_timeout",
    "http.main.downstream_rq_max_duration_reached",
)  # fmt: skip


def of(prefix: str) -> tuple[str, ...]:
    """Timer statistics of a connection manager."""
    return tuple(f"http.{prefix}.{name}" for name in (
        "downstream_rq_idle_timeout", "downstream_rq_timeout", "downstream_rq_header_timeout",
        "downstream_rq_max_duration_reached", "downstream_cx_idle_timeout", "downstream_cx_max_duration_reached",
        "downstream_cx_max_requests_reached", "downstream_cx_drain_close", "downstream_rq_4xx", "downstream_rq_5xx",
        "downstream_cx_destroy_local", "downstream_cx_delayed_close_timeout", "downstream_rq_too_large",
        "downstream_cx_protocol_error",
    ))  # fmt: skip


def to(listener: str, *steps: Step) -> list[Step]:
    """Connect to this listener first."""
    return [connect(listener), *steps]


PART_OF_HEAD = b"GET / HTTP/1.1\r\nHost: x.com\r\n"
PART_OF_BODY = msg("POST /up HTTP/1.1", "Host: x.com", "Content-Length: 10", body=b"hello")
LARGE = "x-a: " + "a" * 1024

GRPC_TIMES = bootstrap(http(routes="""
- {match: {prefix: /capped}, route: {cluster: a, max_grpc_timeout: 0.2s}}
- {match: {prefix: /uncapped}, route: {cluster: a, max_grpc_timeout: 0s, grpc_timeout_offset: 0.05s}}
- match: {prefix: /duration}
  route: {cluster: a, max_stream_duration: {grpc_timeout_header_max: 0.2s, grpc_timeout_header_offset: 0.05s}}
- match: {prefix: /istio}
  route:
    cluster: a
    timeout: 0s
    max_grpc_timeout: 0s
    max_stream_duration: {max_stream_duration: 0s, grpc_timeout_header_max: 0s}
- {match: {prefix: /new}, route: {cluster: a, max_stream_duration: {}}}
- {match: {prefix: /old}, route: {cluster: a}}
"""), A)
DEADLINES = ("100m", "5S", "1H", "1M", "100000u", "100000001n", "1x", "5", "123456789S", "99999999H")

CASES = [
    Case("grpc-timeout-of-the-caller", GRPC_TIMES,
         [get(f"/{path}", GRPC, f"grpc-timeout: {deadline}") for path in ("capped", "uncapped", "duration", "istio")
          for deadline in DEADLINES] + [get(f"/{path}", GRPC) for path in ("capped", "uncapped", "duration", "istio")]
         + [get(f"/{path}", "grpc-timeout: 3S") for path in ("capped", "duration", "istio", "new", "old")],
         log=4 * len(DEADLINES) + 9),
    Case("grpc-timeout-expires", GRPC_TIMES, [get("/capped", GRPC, "grpc-timeout: 5S"),
                                        get("/uncapped", GRPC, "grpc-timeout: 100m")],
         [(request(), end()), (request(), end())], log=2, stats=("cluster.a.upstream_rq_timeout",)),
    Case("grpc-stream-duration", GRPC_TIMES, [get("/duration", GRPC, "grpc-timeout: 5S"),
                                        get("/istio", "grpc-timeout: 100m")],
         [(request(), end()), (request(), end())], log=2, stats=("http.main.downstream_rq_max_duration_reached",)),
    Case("route-timeout", ROUTES, [get("/short"), get("/after")], [SILENT], log=2, stats=TIMED_OUT),
    Case("route-timeout-head-and-grpc", ROUTES, [get("/short", method="HEAD"), get("/short", GRPC)], [SILENT, SILENT],
         log=2, stats=TIMED_OUT),
    Case("route-timeout-during-the-response", ROUTES, [send(get("/short")), until(b"part"), end()],
         [(request(), send(msg("HTTP/1.1 200 OK", "content-length: 9", body=b"part")), end())], stats=TIMED_OUT),
    Case("route-timeout-waits-for-the-upload", ROUTES,
         [send(msg("POST /short HTTP/1.1", "Host: x", "Content-Length: 10", body=b"hello")), wait("part"),
          send(b"world"), response()], [(head(), recv(5), signal("part"), recv(5), end())], stats=TIMED_OUT),
    Case("route-without-timeout", ROUTES, [get("/none"), get("/long")], log=2),
    Case("route-idle-timeout", ROUTES, [get("/idle")], [SILENT], stats=TIMED_OUT),
    Case("route-idle-timeout-during-the-response", ROUTES, [send(get("/idle")), until(b"part"), end()],
         [(request(), send(msg("HTTP/1.1 200 OK", "content-length: 9", body=b"part")), end())], stats=TIMED_OUT),
    Case("route-max-stream-duration", ROUTES, [get("/max")], [SILENT], stats=TIMED_OUT),
    Case("cluster-max-stream-duration", ROUTES, [get("/cluster-max")], [SILENT], stats=TIMED_OUT),
    Case("cluster-max-stream-duration-during-the-response", ROUTES, [send(get("/cluster-max")), until(b"part"), end()],
         [(request(), send(msg("HTTP/1.1 200 OK", "content-length: 9", body=b"part")), end())], stats=TIMED_OUT),
    Case("stream-idle-waiting-for-the-upstream", STREAMS, to("idle", get("/")), [SILENT], stats=of("idle")),
    Case("stream-idle-in-the-head", STREAMS, to("idle", *bad(PART_OF_HEAD)), stats=of("idle")),
    Case("stream-idle-in-the-body", STREAMS, to("idle", *bad(PART_OF_BODY)), [(head(), recv(5), end())],
         stats=of("idle")),
    Case("stream-idle-in-the-response", STREAMS, to("idle", send(get("/")), until(b"part"), end()),
         [(request(), send(msg("HTTP/1.1 200 OK", "content-length: 9", body=b"part")), end())], stats=of("idle")),
    Case("request-timeout-in-the-head", STREAMS, to("overall", *bad(PART_OF_HEAD)), stats=of("overall")),
    Case("request-timeout-in-the-body", STREAMS, to("overall", *bad(PART_OF_BODY)), [(head(), recv(5), end())],
         stats=of("overall")),
    Case("request-timeout-not-for-the-response", STREAMS, to("overall", get("/"), post("/", b"hello")),
         [(request(), send(OK))], log=2, stats=of("overall")),
    Case("request-headers-timeout", STREAMS, to("heads", *bad(PART_OF_HEAD)), stats=of("heads")),
    Case("request-headers-timeout-after-a-request", STREAMS, to("heads", get("/"), *bad(b"GET /")), log=2,
         stats=of("heads")),
    Case("max-stream-duration", STREAMS, to("duration", get("/")), [SILENT], stats=of("duration")),
    Case("max-stream-duration-in-the-body", STREAMS, to("duration", *bad(PART_OF_BODY)), [(head(), recv(5), end())],
         stats=of("duration")),
    Case("connection-idle-before-a-request", CONNECTIONS, to("idle", end()), log=0, stats=of("idle")),
    Case("connection-idle-after-a-request", CONNECTIONS, to("idle", get("/"), end()), stats=of("idle")),
    Case("connection-lifetime-before-a-request", CONNECTIONS, to("lifetime", end()), log=0, stats=of("lifetime")),
    Case("connection-lifetime", CONNECTIONS, to("lifetime", get("/"), end()), stats=of("lifetime")),
    Case("requests-per-client-connection", CONNECTIONS, to("requests", get("/1"), get("/2"), end()), log=2,
         stats=of("requests")),
    Case("requests-per-client-connection-pipelined", CONNECTIONS,
         to("requests", send(get("/1"), get("/2"), get("/3")), response(), response(), end(either=True)), log=2,
         stats=of("requests")[:-3]),
    Case("delayed-close", CONNECTIONS, to("slow_close", *bad(b"NONSENSE\r\n\r\n")), stats=of("slow_close")),
    Case("delayed-close-client-is-faster", CONNECTIONS, to("slow_close", b"NONSENSE\r\n\r\n"), stats=of("slow_close")),
    Case("no-delayed-close", CONNECTIONS, to("no_delay", *bad(b"NONSENSE\r\n\r\n")), stats=of("no_delay")),
    Case("head-larger-than-a-kilobyte", HEADS, to("small", *bad(get("/", LARGE))), stats=of("small")),
    Case("head-larger-than-a-kilobyte-dribbled", HEADS,
         to("small", send(b"GET / HTTP/1.1\r\nHost: x.com\r\n", LARGE.encode()), response(), end()), stats=of("small")),
    Case("head-smaller-than-a-kilobyte", HEADS, to("small", get("/", LARGE[:900])), stats=of("small")),
    Case("too-many-headers", HEADS, to("few", *bad(get("/", *[f"x-{n}: 1" for n in range(5)]))), stats=of("few")),
    Case("as-many-headers-as-allowed", HEADS, to("few", get("/", *[f"x-{n}: 1" for n in range(4)])), stats=of("few")),
    Case("too-many-trailers", HEADS,
         to("few", msg("POST / HTTP/1.1", "Host: x", "Transfer-Encoding: chunked",
                       body=b"0\r\n" + b"".join(b"x-%d: 1\r\n" % n for n in range(6)) + b"\r\n")), stats=of("few")),
    Case("upstream-connection-idle", UPSTREAM, [get("/1"), wait("gone"), get("/2")],
         [(request(), send(OK), end(), signal("gone"))], log=2,
         stats=("cluster.a.upstream_cx_idle_timeout", "cluster.a.upstream_cx_destroy_local",
                "cluster.a.upstream_cx_total")),
    Case("default-delayed-close-is-a-second", bootstrap(http(extra=""), A), bad(b"NONSENSE\r\n\r\n")),
    Case("slow-body-is-not-slow-enough", BASIC,
         [send(PART_OF_BODY), wait("part"), send(b"world"), response()],
         [(head(), recv(5), signal("part"), recv(5), send(OK))]),
]  # fmt: skip
