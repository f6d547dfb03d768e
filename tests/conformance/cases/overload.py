"""The overload manager: actions and load-shed points, each with an injected resource of its own."""

from __future__ import annotations

from tests.conformance.dsl import (
    Case,
    Op,
    Step,
    admin,
    bad,
    close,
    connect,
    end,
    get,
    msg,
    on,
    post,
    pressure,
    recv,
    request,
    response,
    send,
    signal,
    stat,
    wait,
)
from tests.conformance.snippets import A, bootstrap, chain, cluster, hcm, listener, tcp

_MONITORS = "type.googleapis.com/envoy.extensions.resource_monitors"
_TIMERS = "type.googleapis.com/envoy.config.overload.v3.ScaleTimersOverloadActionConfig"
ACTIONS = ("stop_accepting_requests", "disable_http_keepalive", "stop_accepting_connections",
           "reject_incoming_connections", "shrink_heap")
POINTS = ("tcp_listener_accept", "http_connection_manager_decode_headers", "http1_server_abort_dispatch",
          "hcm_ondata_creating_codec", "http_downstream_filter_check", "connection_pool_new_connection",
          "tcp_proxy_on_data", "tcp_proxy_upstream_connect", "http2_server_go_away_on_dispatch",
          "http2_server_go_away_and_close_on_dispatch", "http3_server_go_away_on_dispatch")  # fmt: skip


def _reaction(kind: str, name: str, extra: str = "") -> str:
    trigger = f"{{name: {name}, scaled: {{scaling_threshold: 0.5, saturation_threshold: 0.9}}}}"
    return f"  - {{name: envoy.{kind}.{name}, triggers: [{trigger}]{extra}}}\n"


def _monitor(name: str) -> str:
    typed = f'"@type": {_MONITORS}.injected_resource.v3.InjectedResourceConfig, filename: "$(pressure:{name})"'
    return f"  - {{name: {name}, typed_config: {{{typed}}}}}\n"


OVERLOAD = (
    "overload_manager:\n  refresh_interval: 0.02s\n  resource_monitors:\n"
    + "".join(_monitor(name) for name in (*ACTIONS, *POINTS, "reduce_timeouts"))
    + "  actions:\n" + "".join(_reaction("overload_actions", name) for name in ACTIONS)
    + _reaction("overload_actions", "reduce_timeouts", f', typed_config: {{"@type": {_TIMERS}, timer_scale_factors: ['
                "{timer: HTTP_DOWNSTREAM_CONNECTION_IDLE, min_timeout: 0.1s}, "
                "{timer: HTTP_DOWNSTREAM_STREAM_IDLE, min_timeout: 0.1s}]}")
    + "  loadshed_points:\n" + "".join(_reaction("load_shed_points", name) for name in POINTS)
)  # fmt: skip
ROUTES = """
- {match: {prefix: /direct}, direct_response: {status: 200, body: {inline_string: hi}}}
- {match: {prefix: /other}, route: {cluster: b}}
- {match: {prefix: /}, route: {cluster: a}}
"""
SHORT = "delayed_close_timeout: 0.05s\ndrain_timeout: 0.1s"
CONFIG = bootstrap(
    listener("main", chain(hcm(ROUTES, extra=SHORT))),
    listener("marked", chain(hcm(ROUTES, prefix="marked", extra=f"{SHORT}\nappend_local_overload: true"))),
    listener("bypass", chain(hcm(ROUTES, prefix="bypass", extra=SHORT)), extra="bypass_overload_manager: true"),
    listener("raw", chain(tcp("a", prefix="raw"))),
    A,
    cluster("b"),
    extra=OVERLOAD,
)
HTTP = (
    "http.main.downstream_rq_total", "http.main.downstream_rq_2xx", "http.main.downstream_rq_5xx",
    "http.main.downstream_rq_overload_close", "http.main.downstream_rq_rx_reset", "http.main.rq_total",
    "http.main.rq_overload_local_reply", "http.main.downstream_rq_response_before_rq_complete",
    "http.main.downstream_cx_overload_disable_keepalive", "http.main.downstream_cx_drain_close",
    "http.main.downstream_cx_delayed_close_timeout", "http.main.downstream_cx_destroy_local",
    "http.main.downstream_cx_protocol_error", "listener.127.0.0.1_$(main).downstream_cx_total",
    "listener.127.0.0.1_$(main).downstream_cx_overload_reject",
)  # fmt: skip
REPLIES = tuple(name for name in HTTP if name not in (
    "http.main.downstream_rq_rx_reset", "http.main.downstream_rq_response_before_rq_complete"))  # fmt: skip
"""Without those in which replies to unfinished requests differ, for overload or not."""
UPSTREAM = (
    "cluster.a.upstream_cx_total", "cluster.a.upstream_rq_total", "cluster.a.upstream_rq_cancelled",
    "cluster.a.upstream_rq_pending_total", "cluster.a.upstream_rq_pending_overflow", "cluster.a.upstream_rq_503",
    "cluster.a.upstream_cx_destroy_local", "cluster.a.upstream_cx_connect_attempts_exceeded",
    "tcp.raw.downstream_cx_total", "tcp.raw.downstream_cx_overload_close",
)  # fmt: skip


def shed(name: str) -> tuple[str, ...]:
    """The statistics of a load-shed point."""
    return (f"overload.envoy.load_shed_points.{name}.shed_load_count",)


def under(name: str, *steps: Step, level: float = 1.0) -> list[Step]:
    """Steps while the resource of this action or load-shed point is exhausted."""
    return [pressure(name, level), *steps, pressure(name, 0.0)]


UPLOAD = msg("POST /u HTTP/1.1", "Host: x.com", "Content-Length: 10", body=b"hello")
REFUSING = [
    get("/a"), get("/direct"), get("/h", method="HEAD"), get("/a") + get("/other"), response(),
    post("/g", b"", "Content-Type: application/grpc"),
    msg("GET /nohost HTTP/1.1"),
    *on("upload", *bad(UPLOAD)),
    *on("expects", *bad(msg("POST /e HTTP/1.1", "Host: x.com", "Expect: 100-continue", "Content-Length: 10"))),
    *on("old", *bad(msg("GET /o HTTP/1.0", "Host: x.com"))),
    *on("closing", *bad(get("/c", "Connection: close"))),
    *on("websocket", *bad(get("/w", "Connection: Upgrade", "Upgrade: websocket"))),
    *on("broken", *bad(b"GET /x HTTP/1.1\r\nnonsense\r\n\r\n")),
]  # fmt: skip


def silent(listener_name: str = "main", peer: str = "new") -> list[Op]:
    """A connection that is closed at once."""
    return on(peer, connect(listener_name), end())


CASES = [
    Case("overload-stop-accepting-requests", CONFIG,
         [get("/before"), *under("stop_accepting_requests", *REFUSING), get("/after")], log=15,
         stats=REPLIES),
    Case("overload-decode-headers", CONFIG,
         [get("/before"), *under("http_connection_manager_decode_headers", *REFUSING), get("/after")], log=15,
         stats=REPLIES + shed("http_connection_manager_decode_headers")),
    Case("overload-marked-reply", CONFIG,
         [*under("stop_accepting_requests", connect("marked"), get("/a"), get("/direct"))], log=2),
    Case("overload-bypassed", CONFIG,
         [*under("stop_accepting_requests", pressure("reject_incoming_connections", 1.0), connect("bypass"),
                 get("/a"), *silent(), pressure("reject_incoming_connections", 0.0))],
         stats=(*HTTP, "listener.127.0.0.1_$(bypass).downstream_cx_overload_reject",
                "http.bypass.downstream_rq_2xx", "http.bypass.downstream_rq_overload_close")),
    Case("overload-disable-keepalive", CONFIG,
         [get("/before"), *under("disable_http_keepalive", get("/a"), get("/other"), end(),
                                 *on("direct", get("/direct"), end()))], log=4, stats=HTTP),
    Case("overload-reject-connections", CONFIG,
         [get("/before"), *under("reject_incoming_connections", *silent(), *silent("raw", "tcp"), get("/still")),
          *on("late", get("/after"))], log=3,
         stats=(*HTTP, "listener.127.0.0.1_$(raw).downstream_cx_overload_reject")),
    Case("overload-listener-accept", CONFIG,
         [get("/before"), *under("tcp_listener_accept", *silent(), *silent("raw", "tcp"), get("/still")),
          *on("late", get("/after"))], log=3,
         stats=HTTP + shed("tcp_listener_accept")),
    Case("overload-stop-accepting-connections", CONFIG,
         [get("/before"), pressure("stop_accepting_connections", 1.0), *on("waits", connect(), send(get("/waited"))),
          get("/still"), pressure("stop_accepting_connections", 0.0), *on("waits", response())], log=3, stats=HTTP),
    Case("overload-scaled-below-saturation", CONFIG,
         [pressure("stop_accepting_connections", 0.89), get("/a"), pressure("stop_accepting_connections", 0.0)],
         stats=HTTP),
    Case("overload-abort-dispatch", CONFIG,
         [get("/before"), *under("http1_server_abort_dispatch", *bad(get("/a")), *on("new", *bad(get("/direct"))),
                                 *on("upload", *bad(UPLOAD)))], log=4,
         stats=HTTP + shed("http1_server_abort_dispatch")),
    Case("overload-creating-codec", CONFIG,
         [get("/before"), *under("hcm_ondata_creating_codec", get("/still"),
                                 *on("new", connect(), send(get("/new")), end()))], log=2,
         stats=HTTP + shed("hcm_ondata_creating_codec")),
    Case("overload-filter-check", CONFIG,
         [get("/before"), *under("http_downstream_filter_check", get("/a"), get("/direct"), get("/h", method="HEAD"),
                                 *on("upload", *bad(UPLOAD)))], log=5,
         stats=REPLIES + shed("http_downstream_filter_check")),
    Case("overload-new-upstream-connection", CONFIG,
         [get("/before"), *under("connection_pool_new_connection", get("/still"), get("/other"), get("/direct"))],
         {"a": [], "b": []}, log=4, stats=UPSTREAM + shed("connection_pool_new_connection")),
    Case("overload-new-upstream-connection-tcp", CONFIG,
         [*under("connection_pool_new_connection", connect("raw"), end())],
         stats=UPSTREAM + shed("connection_pool_new_connection")),
    Case("overload-tcp-data", CONFIG,
         [connect("raw"), send(b"one"), recv(3), *under("tcp_proxy_on_data", send(b"two"), end())],
         [(recv(3), send(b"eno"), end(either=True))], stats=UPSTREAM + shed("tcp_proxy_on_data")),
    Case("overload-tcp-connect", CONFIG,
         [*under("tcp_proxy_upstream_connect", connect("raw"), end())],
         stats=UPSTREAM + shed("tcp_proxy_upstream_connect")),
    Case("overload-idle-connections", CONFIG,
         [connect(), get("/a"), *on("fresh", connect()), stat("listener.127.0.0.1_$(main).downstream_cx_total", 2),
          *under("reduce_timeouts", end(), *on("fresh", end()))],
         stats=(*HTTP, "http.main.downstream_cx_idle_timeout")),
    Case("overload-idle-streams", CONFIG,
         [send(get("/a")), wait("asked"), *under("reduce_timeouts", response()), close(), signal("over")],
         [(request(), signal("asked"), wait("over"))], stats=(*HTTP, "http.main.downstream_rq_idle_timeout")),
    Case("overload-go-away", CONFIG,
         [get("/before"), *under("http2_server_go_away_on_dispatch", get("/a"), get("/other"), end(),
                                 *on("direct", get("/direct"), end()))], log=4,
         stats=HTTP + shed("http2_server_go_away_on_dispatch")),
    Case("overload-go-away-and-close", CONFIG,
         [get("/before"), *under("http2_server_go_away_and_close_on_dispatch", send(get("/a")), end(),
                                 *on("new", connect(), send(b"GET"), end()))],
         stats=HTTP + shed("http2_server_go_away_and_close_on_dispatch")),
    Case("overload-point-of-http3", CONFIG, [*under("http3_server_go_away_on_dispatch", get("/a"))],
         stats=HTTP + shed("http3_server_go_away_on_dispatch")),
    Case("overload-statistics", CONFIG,
         [pressure("reject_incoming_connections", 0.7), pressure("tcp_listener_accept", 0.6),
          pressure("disable_http_keepalive", 0.95),
          admin("GET", "/stats?filter=^(overload|envoy.overload).*(pressure|updates|active|scale_percent)$"),
          admin("GET", "/stats/prometheus?filter=overload.*(pressure|updates|active|scale_percent)$"),
          pressure("reject_incoming_connections", 0.0), pressure("tcp_listener_accept", 0.0),
          pressure("disable_http_keepalive", 0.0)], log=0),
]  # fmt: skip
