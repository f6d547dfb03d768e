"""The TCP proxy: bytes both ways, half-closes, resets, failures, idle connections."""

from __future__ import annotations

from tests.conformance.dsl import (
    Case,
    accept,
    close,
    connect,
    end,
    get,
    on,
    recv,
    reset,
    send,
    shut,
    signal,
    until,
    wait,
)
from tests.conformance.snippets import bootstrap, chain, cluster, listener, tcp

BULK = b"".join(b"%07d " % number for number in range(131072))


def tcp_listener(name: str, to: str = "a", extra: str = "") -> str:
    """A listener with nothing but a TCP proxy of the same name."""
    return listener(name, chain(tcp(to, prefix=name, extra=extra)))


TCP = bootstrap(
    tcp_listener("main"),
    tcp_listener("to_refused", "refused"),
    tcp_listener("to_full", "full"),
    tcp_listener("empty", "empty"),
    tcp_listener("unknown", "nowhere"),
    tcp_listener("thrice", "refused", "max_connect_attempts: 3"),
    tcp_listener("either", "mixed", "max_connect_attempts: 6"),
    tcp_listener("idle", extra="idle_timeout: 0.2s"),
    tcp_listener("lifetime", extra="max_downstream_connection_duration: 0.2s"),
    tcp_listener("weighted", extra="").replace(
        "cluster: a\n", "weighted_clusters: {clusters: [{name: a, weight: 1}, {name: a, weight: 2}]}\n"
    ),
    tcp_listener("limited", "limited"),
    tcp_listener("bound", "bound"),
    tcp_listener("original", "original"),
    listener("small", chain(tcp("a", prefix="small")), extra="per_connection_buffer_limit_bytes: 4096"),
    cluster("a", "up:a"),
    cluster("refused", "refused"),
    cluster("mixed", "refused", "up:mixed"),
    cluster("full", "full", extra="connect_timeout: 0.2s"),
    cluster("empty"),
    cluster("limited", "up:a", extra="circuit_breakers: {thresholds: [{max_connections: 1}]}"),
    cluster("bound", "up:a", extra="upstream_bind_config: {source_address: {address: 127.0.0.6, port_value: 0}}"),
    cluster("original", kind="ORIGINAL_DST", extra="lb_policy: CLUSTER_PROVIDED"),
)  # fmt: skip


def counted(name: str, to: str = "a") -> tuple[str, ...]:
    """Statistics of a TCP proxy and of its cluster."""
    return (
        *(f"tcp.{name}.{stat_name}" for stat_name in (
            "downstream_cx_total", "downstream_cx_no_route", "downstream_cx_rx_bytes_total",
            "downstream_cx_tx_bytes_total", "idle_timeout", "max_downstream_connection_duration",
        )),
        f"listener.127.0.0.1_$({name}).downstream_cx_total",
        f"listener.127.0.0.1_$({name}).downstream_cx_destroy",
        *(f"cluster.{to}.{stat_name}" for stat_name in (
            "upstream_cx_total", "upstream_cx_connect_fail", "upstream_cx_connect_timeout",
            "upstream_cx_connect_attempts_exceeded", "upstream_cx_none_healthy", "upstream_cx_overflow",
            "upstream_cx_rx_bytes_total", "upstream_cx_tx_bytes_total", "upstream_cx_destroy",
            "upstream_cx_destroy_local", "upstream_cx_destroy_remote", "upstream_rq_total",
        )),
    )  # fmt: skip


PING = (recv(4), send(b"pong"))

CASES = [
    Case("tcp-echo", TCP, [send(b"ping"), recv(4), close()], [(*PING, end())], stats=counted("main")),
    Case("tcp-server-speaks-first", TCP, [connect(), until(b"\n"), send(b"thanks"), end()],
         [(accept(), send(b"hello\n"), recv(6), close())], stats=counted("main")),
    Case("tcp-client-half-closes", TCP, [send(b"ping"), shut(), recv(4), end()],
         [(recv(4), end(), send(b"pong"), close())], stats=counted("main")),
    Case("tcp-server-half-closes", TCP, [send(b"ping"), recv(4), end(), send(b"more"), close()],
         [(*PING, shut(), recv(4), end())], stats=counted("main")),
    Case("tcp-client-closes-at-once", TCP, [connect(), wait("accepted"), close()],
         [(accept(), signal("accepted"), end())], stats=counted("main")),
    Case("tcp-client-resets", TCP, [send(b"ping"), recv(4), reset()], [(*PING, end())], stats=counted("main")),
    Case("tcp-server-resets", TCP, [send(b"ping"), recv(4), signal("go"), end()], [(*PING, wait("go"), reset())],
         stats=counted("main")),
    Case("tcp-server-closes", TCP, [send(b"ping"), recv(4), end()], [(*PING, close())], stats=counted("main")),
    Case("tcp-megabyte-each-way", TCP, [send(BULK), shut(), recv(len(BULK)), end()],
         [(recv(len(BULK)), end(), send(BULK), close())], stats=counted("main")),
    Case("tcp-slow-reader", TCP, [connect("small"), send(b"go"), wait("sent"), recv(len(BULK)), end()],
         [(recv(2), signal("sent"), send(BULK), close())], stats=counted("small")),
    Case("tcp-half-closed-then-bulk", TCP, [connect("small"), send(b"go"), shut(), recv(len(BULK)), end()],
         [(recv(2), end(), send(BULK), close())]),
    Case("tcp-refused", TCP, [connect("to_refused"), end()], stats=counted("to_refused", "refused")),
    Case("tcp-refused-after-data", TCP, [connect("to_refused"), send(b"ping"), end(either=True)]),
    Case("tcp-three-attempts", TCP, [connect("thrice"), end()], stats=counted("thrice", "refused")),
    Case("tcp-another-host", TCP, [connect("either"), send(b"ping"), recv(4), close()], {"mixed": [(*PING, end())]},
         loose=((' UF - - "delayed_connect_error:_Connection_refused"', ' - - - "-"'),)),
    Case("tcp-connect-timeout", TCP, [connect("to_full"), end()], stats=counted("to_full", "full")),
    Case("tcp-no-endpoints", TCP, [connect("empty"), end()], stats=counted("empty", "empty")),
    Case("tcp-unknown-cluster", TCP, [connect("unknown"), end()], stats=counted("unknown")[:8]),
    Case("tcp-no-original-destination", TCP, [connect("original"), end()], stats=counted("original", "original")),
    Case("tcp-idle", TCP, [connect("idle"), send(b"ping"), recv(4), end()], [(*PING, end())], stats=counted("idle")),
    Case("tcp-idle-without-bytes", TCP, [connect("idle"), end()], [(accept(), end())], stats=counted("idle")),
    Case("tcp-lifetime", TCP, [connect("lifetime"), send(b"ping"), recv(4), end()], [(*PING, end())],
         stats=counted("lifetime")),
    Case("tcp-weighted", TCP, [connect("weighted"), send(b"ping"), recv(4), close()], [(*PING, end())]),
    Case("tcp-source-address", TCP, [connect("bound"), send(b"ping"), recv(4), close()], [(*PING, end())]),
    Case("tcp-connection-limit", TCP,
         [on("first", connect("limited"), send(b"ping"), recv(4)), on("second", connect("limited"), end()),
          signal("over"), on("first", end())], [(*PING, wait("over"), close())], log=2,
         stats=counted("limited", "limited")),
    Case("tcp-http-through-it", TCP, [get("/")]),
]  # fmt: skip
