"""Connection limits: which connection is refused, how it ends, what is counted, and how a limit changes at run time."""

from __future__ import annotations

from tests.conformance.dsl import (
    Case,
    Differs,
    Step,
    accept,
    admin,
    close,
    connect,
    end,
    get,
    on,
    recv,
    send,
    shut,
    stat,
)
from tests.conformance.snippets import ACCESS_LOG, A, bootstrap, chain, hcm, listener, nest, tcp

HELLO = "- {match: {prefix: /}, direct_response: {status: 200, body: {inline_string: hello}}}"
DOWNSTREAM_CONNECTIONS = "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
LISTENER_LOG = """
access_log:
- name: file
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
    path: $(log)
    log_format: {text_format_source: {inline_string: "listener %RESPONSE_CODE% %RESPONSE_FLAGS%\\n"}}
"""


def runtime(*values: str, admin_layer: bool = True) -> str:
    """Runtime layers: a static one, and one that can be changed."""
    layers = f"\nlayered_runtime:\n  layers:\n  - name: static\n    static_layer: {{{', '.join(values)}}}\n"
    return layers + ("  - name: admin\n    admin_layer: {}\n" if admin_layer else "")


def own_limit(name: str, value: int) -> str:
    """The runtime key of a listener's limit."""
    return f"envoy.resource_limits.listener.{name}.connection_limit: {value}"


def monitor(limit: int) -> str:
    """The resource monitor of all connections."""
    return f"""
overload_manager:
  resource_monitors:
  - name: envoy.resource_monitors.global_downstream_max_connections
    typed_config:
      "@type": type.googleapis.com/{DOWNSTREAM_CONNECTIONS}
      max_active_downstream_connections: {limit}
"""


def filter_limit(prefix: str, limit: int, extra: str = "") -> str:
    """The network filter."""
    kind = "type.googleapis.com/envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit"
    return (f'- name: limit\n  typed_config: {{"@type": {kind}, stat_prefix: {prefix}, max_connections: {limit}'
            f"{', ' if extra else ''}{extra}}}\n")


def counted(name: str, *more: str) -> tuple[str, ...]:
    """Statistics of a listener, and others."""
    return tuple(f"listener.127.0.0.1_$({name}).{stat_name}" for stat_name in (
        "downstream_cx_total", "downstream_cx_destroy", "downstream_cx_active", "downstream_cx_overflow",
        "downstream_global_cx_overflow", "downstream_cx_overload_reject", "no_filter_chain_match",
    )) + more  # fmt: skip


def filter_stats(prefix: str) -> tuple[str, ...]:
    """Statistics of a network filter."""
    return f"connection_limit.{prefix}.limited_connections", f"connection_limit.{prefix}.active_connections"


HTTP_STATS = tuple(f"http.main.downstream_cx_{name}" for name in (
    "total", "active", "http1_total", "destroy", "destroy_local", "destroy_remote", "rx_bytes_total"))  # fmt: skip
TCP_STATS = ("tcp.tcp.downstream_cx_total", "tcp.tcp.downstream_cx_rx_bytes_total", "cluster.a.upstream_cx_total")
UNLOGGED = hcm(HELLO, prefix="main").replace(nest(ACCESS_LOG, 4) + "\n", "")
SECOND = listener("second", chain(hcm(HELLO, prefix="second")))
FREE = listener("free", chain(hcm(HELLO, prefix="free")), extra="ignore_global_conn_limit: true")
OWN = bootstrap(
    listener("main", chain(hcm(HELLO, prefix="main"))), SECOND,
    listener("none", chain(hcm(HELLO, prefix="none"), "{destination_port: 1}")),
    extra=runtime(own_limit("main", 1), own_limit("none", 1)))  # fmt: skip
MONITORED = bootstrap(listener("main", chain(hcm(HELLO, prefix="main"))), SECOND, FREE, extra=monitor(2))
BOTH = bootstrap(listener("main", chain(hcm(HELLO, prefix="main"))), SECOND,
                 extra=monitor(3) + runtime(own_limit("main", 1), "overload.global_downstream_max_connections: 1"))
FILTERED = bootstrap(listener("main", chain(filter_limit("f", 1) + hcm(HELLO, prefix="main")), extra=LISTENER_LOG))
FILTERED_LATE = bootstrap(
    listener("main", chain(filter_limit("f", 1, "delay: 0.4s") + hcm(HELLO, prefix="main"))))  # fmt: skip
FILTERED_VERY_LATE = bootstrap(
    listener("main", chain(filter_limit("f", 1, "delay: 3s") + hcm(HELLO, prefix="main"))))  # fmt: skip
FILTERED_TCP = bootstrap(listener("main", chain(filter_limit("f", 1) + tcp()), extra=LISTENER_LOG), A)
FILTERED_TCP_LATE = bootstrap(listener("main", chain(filter_limit("f", 1, "delay: 0.4s") + tcp())), A)
SWITCHED = bootstrap(
    listener("main", chain(filter_limit("f", 1, "runtime_enabled: {default_value: false, runtime_key: limit.on}")
                           + hcm(HELLO, prefix="main"))), extra=runtime("limit.off: true"))  # fmt: skip
SWITCHED_ONCE = bootstrap(
    listener("main", chain(filter_limit("f", 1, "runtime_enabled: {default_value: false, runtime_key: limit.on}")
                           + UNLOGGED)), listener("second", chain(UNLOGGED)), extra=runtime())  # fmt: skip
TWICE = bootstrap(listener("main", chain(filter_limit("f", 2) + filter_limit("g", 1) + hcm(HELLO, prefix="main"))))
SHARED = bootstrap(
    listener("main", chain(filter_limit("f", 1) + hcm(HELLO, prefix="main"))),
    listener("second", chain(filter_limit("f", 1) + hcm(HELLO, prefix="second"))))  # fmt: skip

BYPASS = listener("bypass", chain(UNLOGGED), extra="bypass_overload_manager: true")
MAIN = listener("main", chain(UNLOGGED))
LEGACY, LEGACY_AND_ONE = (bootstrap(MAIN, BYPASS, extra=runtime(f"overload.global_downstream_max_connections: {limit}"))
                          for limit in (2, 3))  # fmt: skip
"""There is one admin connection all the time, which counts in Envoy."""
LATER = "listener.127.0.0.1_$({0}).downstream_cx_destroy"
MAIN_LIMIT = "envoy.resource_limits.listener.main.connection_limit"


def modify(query: str) -> Step:
    """Change the runtime."""
    return admin("POST", f"/runtime_modify?{query}")


CASES = [
    # A listener's own limit.
    Case("limit-of-a-listener", OWN,
         [on("one", get("/1")), on("two", connect(), end()), on("other", connect("second"), get("/")),
          on("one", get("/2"), close()), stat(LATER.format("main"), 1), on("three", get("/3"))],
         log=4, stats=counted("main")),
    Case("limit-of-a-listener-data-unread", OWN,
         [on("one", get("/1")), on("two", connect(), send(get("/never")), end(either=True))], stats=counted("main")),
    Case("limit-of-a-listener-frees-without-a-chain", OWN,
         [on("one", connect("none"), end()), on("two", connect("none"), end())], log=0, stats=counted("none")),
    Case("limit-of-a-listener-raised-and-lowered", OWN,
         [on("one", get("/1")), on("two", connect(), end()), modify(f"{MAIN_LIMIT}=2"), on("three", get("/3")),
          on("four", connect(), end()), modify(f"{MAIN_LIMIT}=1"), on("one", get("/5")), on("three", get("/6")),
          on("one", close()), stat(LATER.format("main"), 1), on("five", connect(), end()), on("three", close()),
          stat(LATER.format("main"), 2), on("six", get("/7")), modify(f"{MAIN_LIMIT}=")],
         log=5, stats=counted("main")),
    Case("limit-of-a-listener-that-had-none", OWN,
         [on("one", connect("second"), get("/1")), on("two", connect("second"), get("/2")),
          modify("envoy.resource_limits.listener.second.connection_limit=2"), on("three", connect("second"), end()),
          on("one", close()), stat(LATER.format("second"), 1), on("four", connect("second"), get("/3")),
          modify("envoy.resource_limits.listener.second.connection_limit="), on("five", connect("second"), get("/4"))],
         log=4, stats=counted("second")),
    Case("limit-of-a-listener-zero", OWN,
         [modify(f"{MAIN_LIMIT}=0"), on("one", connect(), end()), modify(f"{MAIN_LIMIT}=")], log=0,
         stats=counted("main")),
    *(Case(f"limit-of-a-listener-written-as-{name}", OWN,
           [modify(f"{MAIN_LIMIT}={text}"), on("one", get("/1")), on("two", connect(), end()),
            modify(f"{MAIN_LIMIT}=")], log=1, stats=counted("main"))
      for name, text in (
          # What is no number is refused here: limit-not-a-number in docs/differences-from-envoy.md.
          ("fraction", "1.9"), ("hexadecimal", "0x1"), ("spaces", "%201%20"), ("exponent", "1e0"), ("sign", "%2B1"))),
    # All connections.
    Case("limit-of-all", MONITORED,
         [on("one", get("/1")), on("two", connect("second"), get("/2")), on("three", connect(), end()),
          on("four", connect("second"), end()), on("one", close()), stat(LATER.format("main"), 1),
          on("five", connect("second"), get("/3"))], log=3,
         stats=counted("main", *counted("second"),
                       "overload.envoy.resource_monitors.global_downstream_max_connections.failed_updates")),
    Case("limit-of-all-data-unread", MONITORED,
         [on("one", get("/1")), on("two", get("/2")), on("three", connect(), send(get("/never")), end(either=True))],
         log=2, stats=counted("main")),
    Case("limit-of-all-but-one-listener", MONITORED,
         [on("one", connect("free"), get("/1")), on("two", connect("free"), get("/2")),
          on("three", connect("free"), get("/3")), on("four", get("/4")), on("five", get("/5")),
          on("six", connect(), end()), on("seven", connect("free"), get("/6"))], log=6,
         stats=counted("main", *counted("free"))),
    Case("limit-of-all-and-bypass", bootstrap(MAIN, BYPASS, extra=monitor(1)),
         [on("one", get("/1")), on("two", connect("bypass"), get("/2")), on("three", connect(), end())],
         log=0, stats=counted("main", *counted("bypass"))),
    Case("limit-of-all-and-the-admin-interface", LEGACY, [on("one", get("/1")), on("two", get("/2"))], log=0,
         stats=counted("main"), differs=Differs("operator-gets-in", {"config": LEGACY_AND_ONE})),
    Case("limit-of-all-and-the-operator", LEGACY, [on("one", get("/1")), on("two", connect("bypass"), get("/2"))],
         log=0, stats=counted("main", *counted("bypass")),
         differs=Differs("operator-gets-in", {"config": LEGACY_AND_ONE})),
    Case("limits-of-both-kinds", BOTH,
         [on("one", get("/1")), on("two", connect(), end()), on("three", connect("second"), get("/2")),
          on("four", connect("second"), get("/3")), on("five", connect("second"), end()), on("six", connect(), end())],
         log=3, stats=counted("main", *counted("second"))),
    # The network filter.
    Case("limit-filter", FILTERED,
         [on("one", get("/1")), on("two", connect(), end()), on("one", get("/2"), close()),
          stat(LATER.format("main"), 2), on("three", get("/3"))], log=6,
         stats=counted("main", *filter_stats("f"), *HTTP_STATS)),
    Case("limit-filter-data-unread", FILTERED,
         [on("one", get("/1")), on("two", connect(), send(get("/never")), end(either=True))], log=3,
         stats=counted("main", *filter_stats("f"))),
    Case("limit-filter-delay", FILTERED_LATE,
         [on("one", get("/1")), on("two", connect(), send(get("/never")), end()), on("three", connect(), end())],
         stats=counted("main", *filter_stats("f"), *HTTP_STATS)),
    Case("limit-filter-delay-client-ends", FILTERED_LATE,
         [on("one", get("/1")), on("two", connect(), send(b"GET"), shut(), end())],
         stats=counted("main", *filter_stats("f"), *HTTP_STATS)),
    Case("limit-filter-delay-counts", FILTERED_VERY_LATE,
         [on("one", get("/1")), on("two", connect()), stat("connection_limit.f.active_connections", 2),
          on("one", close()), stat("connection_limit.f.active_connections", 1), on("three", connect(), end()),
          on("two", end()), stat("connection_limit.f.active_connections", 0), on("four", get("/2"))], log=2,
         stats=counted("main", *filter_stats("f"))),
    Case("limit-filter-tcp", FILTERED_TCP,
         [on("one", connect(), recv(5)), on("two", connect(), end()), on("one", close()), stat(LATER.format("main"), 2),
          on("three", connect(), recv(5), close())],
         [(accept(), send(b"hello"), end()), (accept(), send(b"hello"), end())], log=6,
         stats=counted("main", *filter_stats("f"), *TCP_STATS)),
    Case("limit-filter-tcp-delay", FILTERED_TCP_LATE,
         [on("one", connect(), recv(5)), on("two", connect(), end()), on("three", connect(), shut(), end()),
          on("four", connect(), send(b"never"), end()), on("one", close())], [(accept(), send(b"hello"), end())], log=4,
         stats=counted("main", *filter_stats("f"), *TCP_STATS)),
    Case("limit-filter-switched-on", SWITCHED,
         [modify("limit.on=true"), on("one", get("/1")), on("two", connect(), end()), on("one", close()),
          stat(LATER.format("main"), 2), modify("limit.on=")], stats=counted("main", *filter_stats("f"))),
    Case("limit-filter-switched-on-by-a-number", SWITCHED,
         [modify("limit.on=1"), on("one", get("/1")), on("two", connect(), end()), on("one", close()),
          stat(LATER.format("main"), 2), modify("limit.on=")], stats=counted("main", *filter_stats("f"))),
    Case("limit-filter-switched-on-later", SWITCHED_ONCE,
         [on("one", get("/1")), modify("limit.on=true"), on("one", close()), stat(LATER.format("main"), 1),
          on("two", get("/2"))], log=0, stats=filter_stats("f"),
         differs=Differs("limit-filter-switch", {"client": [
             on("one", connect("second"), get("/1")), modify("limit.on=true"), on("one", close()),
             stat(LATER.format("second"), 1), on("two", get("/2"))]})),
    Case("limit-filter-twice", TWICE, [on("one", get("/1")), on("one", close()), stat(LATER.format("main"), 1),
                                       on("two", get("/2"))], log=2,
         stats=(*filter_stats("f"), *filter_stats("g"))),
    Case("limit-filter-counts-for-itself", SHARED,
         [on("one", get("/1")), on("two", connect("second"), get("/2")), on("three", connect("second"), end())], log=2,
         stats=filter_stats("f")),
    # The runtime.
    Case("runtime-modify", OWN,
         [admin("POST", "/runtime_modify"), modify("a=1&a=2&b="), modify("a="), admin("GET", "/runtime_modify?a=1"),
          modify("flag"), modify("=x"), modify("=")], log=0,
         stats=("runtime.load_success", "runtime.load_error", "runtime.num_keys", "runtime.num_layers",
                "runtime.admin_overrides_active", "runtime.override_dir_exists", "runtime.override_dir_not_exists")),
    Case("runtime-modify-without-admin-layer", MONITORED, [admin("POST", "/runtime_modify?a=1")], log=0),
]  # fmt: skip
