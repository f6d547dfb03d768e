"""Listeners: filter-chain match, protocol sniffing, several addresses, hand-off, limits."""

from __future__ import annotations

from tests.conformance.dsl import Case, accept, close, connect, end, get, on, recv, send, shut, stat
from tests.conformance.snippets import (
    HTTP_INSPECTOR,
    ORIGINAL_DST,
    A,
    bootstrap,
    chain,
    cluster,
    hcm,
    listener,
    tcp,
)

ANSWER = "- {{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: {0}}}}}}}"


def says(name: str, match: str = "") -> str:
    """A filter chain whose connection manager answers with `name`."""
    return chain(hcm(ANSWER.format(name), prefix=name), match)


SNIFF = bootstrap(
    listener("main", says("http10", "{application_protocols: [http/1.0]}"),
             says("http11", "{application_protocols: [http/1.1, h2c]}"), listener_filters=HTTP_INSPECTOR,
             extra="listener_filters_timeout: 0.2s\ncontinue_on_listener_filters_timeout: true\n"
                   "default_filter_chain:\n  filters:\n" + "\n".join(
                       "  " + line for line in tcp("a", prefix="rest").splitlines())),
    listener("strict", says("strict_http11", "{application_protocols: [http/1.1]}"), listener_filters=HTTP_INSPECTOR,
             extra="listener_filters_timeout: 0.2s"),
    listener("raw", says("raw_buffer", "{transport_protocol: raw_buffer}"),
             says("alpn_loses", "{application_protocols: [http/1.1]}"), listener_filters=HTTP_INSPECTOR),
    listener("tls_only", says("tls", "{transport_protocol: tls}"), extra="access_log:\n- name: file\n  typed_config:\n"
             '    "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog\n'
             "    path: $(log)\n    log_format: {text_format_source: {inline_string: "
             '"listener %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %DOWNSTREAM_LOCAL_ADDRESS%\\n"}}'),
    A,
)  # fmt: skip
MATCHING = bootstrap(
    listener("main",
             says("port", "{destination_port: $(main), prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}"),
             says("anything")),
    listener("prefixes", says("host", "{prefix_ranges: [{address_prefix: 127.0.0.1, prefix_len: 32}]}"),
             says("net", "{prefix_ranges: [{address_prefix: 127.0.0.0, prefix_len: 8}]}"), says("any")),
    listener("source", says("source_net", "{source_prefix_ranges: [{address_prefix: 127.0.0.0, prefix_len: 8}]}"),
             says("source_any")),
    listener("kind", says("local", "{source_type: SAME_IP_OR_LOOPBACK}"), says("external", "{source_type: EXTERNAL}")),
    listener("ports", says("exact_port", "{destination_port: $(ports)}"), says("other_port", "{destination_port: 1}")),
    listener("none", says("never", "{destination_port: 1}")),
    listener("fallback", says("never_either", "{destination_port: 1}"),
             extra="default_filter_chain:\n  filters:\n" + "\n".join(
                 "  " + line for line in hcm(ANSWER.format("default"), prefix="fallback").splitlines())),
)  # fmt: skip
ADDRESSES = bootstrap(
    listener("main", says("main"), extra="additional_addresses:\n- address: {socket_address: {address: 127.0.0.1, "
                                         "port_value: $(second)}}"),
    listener("prefixed", says("prefixed"), extra="stat_prefix: my_prefix"),
    listener("original", chain(tcp("original", prefix="original")), listener_filters=ORIGINAL_DST,
             extra="use_original_dst: true"),
    listener("wide", says("wide")).replace("address: 127.0.0.1", "address: 0.0.0.0"),
    cluster("original", kind="ORIGINAL_DST", extra="lb_policy: CLUSTER_PROVIDED"),
)  # fmt: skip
LIMITED = bootstrap(
    listener("main", chain(hcm(prefix="main"))), A,
    extra="""
layered_runtime: {layers: [{name: static, static_layer: {envoy.resource_limits.listener.main.connection_limit: 1}}]}
""",
)


def counted(name: str) -> tuple[str, ...]:
    """Statistics of a listener."""
    return tuple(f"listener.127.0.0.1_$({name}).{stat_name}" for stat_name in (
        "downstream_cx_total", "downstream_cx_destroy", "no_filter_chain_match", "downstream_pre_cx_timeout",
        "downstream_cx_overflow", "downstream_listener_filter_remote_close",
    ))  # fmt: skip


SNIFFED = ("http_inspector.http10_found", "http_inspector.http11_found", "http_inspector.http2_found",
           "http_inspector.http_not_found")  # fmt: skip

CASES = [
    Case("sniff-http-11", SNIFF, [get("/")], stats=counted("main") + SNIFFED),
    Case("sniff-http-10", SNIFF, [b"GET / HTTP/1.0\r\nHost: x\r\n\r\n", end()], stats=counted("main") + SNIFFED),
    Case("sniff-in-two-parts", SNIFF, [connect(), send(b"GE"), send(b"T / HT"), get("/")[8:]], log=1,
         stats=counted("main")),
    Case("sniff-no-http", SNIFF, [send(b"\x00\x01ping"), recv(4), close()],
         [(recv(6), send(b"pong"), end())], stats=counted("main") + SNIFFED),
    Case("sniff-unknown-method", SNIFF, [send(b"FOO / HTTP/1.1\r\n"), recv(4), close()],
         [(recv(16), send(b"pong"), end())], stats=counted("main") + SNIFFED),
    Case("sniff-silent-client", SNIFF, [connect(), recv(5), close()], [(accept(), send(b"hello"), end())],
         stats=counted("main") + SNIFFED),
    Case("sniff-half-a-line", SNIFF, [send(b"GET /"), recv(4), close()], [(recv(5), send(b"pong"), end())],
         stats=counted("main") + SNIFFED),
    Case("sniff-client-closes", SNIFF, [connect("strict"), shut(), end()], log=0, stats=counted("strict")),
    Case("sniff-timeout-closes", SNIFF, [connect("strict"), end()], log=0, stats=counted("strict")),
    Case("sniff-timeout-with-bytes", SNIFF, [connect("strict"), send(b"GET /"), end(either=True)], log=0,
         stats=counted("strict")),
    Case("sniff-no-chain", SNIFF, [connect("strict"), send(b"\x00\x01\x02\x03"), end(either=True)], log=0,
         stats=counted("strict")),
    Case("match-transport-before-application", SNIFF, [connect("raw"), get("/")]),
    Case("no-chain-is-logged", SNIFF, [connect("tls_only"), end()], stats=counted("tls_only")),
    Case("match-never-goes-back", MATCHING, [end()], log=0, stats=counted("main")),
    Case("match-longest-prefix", MATCHING, [connect("prefixes"), get("/")]),
    Case("match-source-prefix", MATCHING, [connect("source"), get("/")]),
    Case("match-source-type", MATCHING, [connect("kind"), get("/")]),
    Case("match-destination-port", MATCHING, [connect("ports"), get("/")]),
    Case("match-nothing", MATCHING, [connect("none"), end()], log=0, stats=counted("none")),
    Case("match-default-chain", MATCHING, [connect("fallback"), get("/")], stats=counted("fallback")),
    Case("second-address", ADDRESSES, [connect("second"), get("/"), connect(), get("/")], log=2,
         stats=counted("main") + counted("second")),
    Case("listener-stat-prefix", ADDRESSES, [connect("prefixed"), get("/")],
         stats=("listener.my_prefix.downstream_cx_total", "listener.my_prefix.http.prefixed.downstream_rq_2xx")),
    Case("any-address", ADDRESSES, [connect("wide"), get("/")],
         stats=("listener.0.0.0.0_$(wide).downstream_cx_total",)),
    Case("original-destination-without-redirect", ADDRESSES, [connect("original"), end()]),
    Case("listener-connection-limit", LIMITED,
         [on("first", get("/1")), on("second", connect(), end()), on("first", get("/2"), close()),
          stat("listener.127.0.0.1_$(main).downstream_cx_destroy", 1), on("third", get("/3"))], log=3,
         stats=counted("main")),
    Case("half-head-then-silence-is-served-later", SNIFF, [send(b"GET / HTTP/1.1\r\nHost: x"), b"\r\n\r\n"]),
]  # fmt: skip
