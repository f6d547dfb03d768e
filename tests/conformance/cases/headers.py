"""What the connection manager adds, removes and overwrites in requests and responses."""

from __future__ import annotations

from tests.conformance.dsl import Case, Step, bad, chunks, connect, get, msg, reply
from tests.conformance.snippets import BASIC, QUICK_CLOSE, A, bootstrap, http

UUID = "11112222-3333-4333-8333-444455556666"
CONTROL = (
    "retry-on", "retry-grpc-on", "max-retries", "upstream-rq-timeout-ms", "upstream-rq-per-try-timeout-ms",
    "upstream-rq-timeout-alt-response", "upstream-alt-stat-name", "expected-rq-timeout-ms", "force-trace", "ip-tags",
    "retriable-status-codes", "retriable-header-names", "hedge-on-per-try-timeout", "upstream-stream-duration-ms",
    "decorator-operation", "downstream-service-cluster", "downstream-service-node", "original-path", "original-host",
    "attempt-count", "original-dst-host", "is-timeout-retry", "peer-metadata", "peer-metadata-id", "internal",
    "external-address", "something",
)  # fmt: skip
EVERY_CONTROL = [f"x-envoy-{name}: 1" for name in CONTROL]




def to(listener: str, *data: Step) -> list[Step]:
    """Connect to this listener and exchange these requests."""
    return [connect(listener), *data]


EDGE = bootstrap(
    http("edge", extra=f"{QUICK_CLOSE}\nuse_remote_address: true"),
    http("hops", extra=f"{QUICK_CLOSE}\nuse_remote_address: true\nxff_num_trusted_hops: 1"),
    http("keep_id", extra=f"{QUICK_CLOSE}\nuse_remote_address: true\npreserve_external_request_id: true\n"
                          "always_set_request_id_in_response: true"),
    http("no_append", extra=f"{QUICK_CLOSE}\nuse_remote_address: true\nskip_xff_append: true"),
    http("inner_hops", extra=f"{QUICK_CLOSE}\nxff_num_trusted_hops: 1"),
    A,
)  # fmt: skip
NAMES = bootstrap(
    http("agent", extra=f"{QUICK_CLOSE}\nadd_user_agent: true"),
    http("port", extra=f"{QUICK_CLOSE}\nappend_x_forwarded_port: true"),
    http("via", extra=f"{QUICK_CLOSE}\nvia: hop.one"),
    http("server_name", extra=f"{QUICK_CLOSE}\nserver_name: mine/1"),
    http("append", extra=f"{QUICK_CLOSE}\nserver_header_transformation: APPEND_IF_ABSENT"),
    http("pass", extra=f"{QUICK_CLOSE}\nserver_header_transformation: PASS_THROUGH"),
    http("xfcc", extra=f"{QUICK_CLOSE}\nforward_client_cert_details: ALWAYS_FORWARD_ONLY"),
    http("no_id", extra=f"{QUICK_CLOSE}\ngenerate_request_id: false"),
    A,
    flags=("--service-cluster", "my-cluster", "--service-node", "my-node"),
)
STRIP = bootstrap(
    http("any", extra=f"{QUICK_CLOSE}\nstrip_any_host_port: true"),
    http("own", extra=f"{QUICK_CLOSE}\nstrip_matching_host_port: true"),
    http("dot", extra=f"{QUICK_CLOSE}\nstrip_trailing_host_dot: true"),
    A,
)
UNDERSCORES = bootstrap(
    *(
        http(name, extra=f"{QUICK_CLOSE}\ncommon_http_protocol_options: {{headers_with_underscores_action: {action}}}")
        for name, action in (("reject", "REJECT_REQUEST"), ("drop", "DROP_HEADER"))
    ),
    A,
)
HTTP_10 = bootstrap(
    http(extra=f"{QUICK_CLOSE}\nhttp_protocol_options: {{accept_http_10: true}}"),
    http("default_host",
         extra=f"{QUICK_CLOSE}\nhttp_protocol_options: {{accept_http_10: true, default_host_for_http_10: d.com}}"),
    A,
)  # fmt: skip
TRACING = bootstrap(
    http("never", "- {match: {prefix: /}, route: {cluster: a}, decorator: {operation: op/*}}",
         extra=f"{QUICK_CLOSE}\ntracing: {{random_sampling: {{value: 0}}}}"),
    http("always", "- {match: {prefix: /}, route: {cluster: a}, decorator: {operation: op/*}}",
         extra=f"{QUICK_CLOSE}\ntracing: {{random_sampling: {{value: 100}}, client_sampling: {{value: 100}}}}"),
    http("hidden",
         "- {match: {prefix: /}, route: {cluster: a}, decorator: {operation: op/*, propagate: false}}",
         extra=f"{QUICK_CLOSE}\ntracing: {{random_sampling: {{value: 100}}}}"),
    http("edge", "- {match: {prefix: /}, route: {cluster: a}, decorator: {operation: op/*}}",
         extra=f"{QUICK_CLOSE}\nuse_remote_address: true\ntracing: {{random_sampling: {{value: 0}}}}"),
    A,
)  # fmt: skip
PATHS = bootstrap(
    http("norm", extra=f"{QUICK_CLOSE}\nnormalize_path: true"),
    http("merge", extra=f"{QUICK_CLOSE}\nnormalize_path: true\nmerge_slashes: true"),
    http("refuse", extra=f"{QUICK_CLOSE}\npath_with_escaped_slashes_action: REJECT_REQUEST"),
    http("forward", extra=f"{QUICK_CLOSE}\npath_with_escaped_slashes_action: UNESCAPE_AND_FORWARD"),
    http("redirect", extra=f"{QUICK_CLOSE}\npath_with_escaped_slashes_action: UNESCAPE_AND_REDIRECT"),
    A,
)
FRAMING = bootstrap(
    http("trailers", "- {match: {prefix: /}, route: {cluster: t}}",
         extra=f"{QUICK_CLOSE}\nhttp_protocol_options: {{enable_trailers: true}}"),
    http("both", extra=f"{QUICK_CLOSE}\nhttp_protocol_options: {{allow_chunked_length: true}}"),
    A,
    A.replace("- name: a", "- name: t").replace("cluster_name: a", "cluster_name: t") + """
  typed_extension_protocol_options:
    envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
      "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
      explicit_http_config: {http_protocol_options: {enable_trailers: true}}
""",
)  # fmt: skip

NOT_TRACED = tuple(
    f"http.{name}.tracing.{stat}"
    for name in ("never", "always", "hidden", "edge")
    for stat in ("not_traceable", "random_sampling", "client_enabled", "service_forced", "health_check")
)

REQUEST = [
    Case("hop-by-hop-request-headers", BASIC, [get("/", "Connection: x-hop, keep-alive, te", "X-Hop: 1",
         "Keep-Alive: timeout=5", "Proxy-Connection: keep-alive", "TE: trailers, deflate", "Proxy-Authorization: b",
         "Trailer: x-t", "x-stay: 1")]),
    Case("te-without-trailers", BASIC, [get("/", "TE: gzip")]),
    Case("te-with-weights", BASIC, [get("/", "TE: gzip;q=0.5, trailers;q=1")]),
    Case("connection-names-content-length", BASIC,
         [msg("POST / HTTP/1.1", "Host: x", "Connection: content-length", "Content-Length: 2", body=b"ab")]),
    Case("connection-close-and-more", BASIC, [get("/", "Connection: foo, close", "Foo: 1")]),
    Case("control-headers-are-removed", BASIC, [get("/", *EVERY_CONTROL)]),
    Case("forwarded-for-is-trusted", BASIC, [get("/", "X-Forwarded-For: 9.9.9.9, 1.1.1.1", "X-Request-Id: my-id")]),
    Case("forwarded-for-is-no-address", BASIC, [get("/", "X-Forwarded-For: unknown")]),
    Case("forwarded-for-ipv6", BASIC, [get("/", "X-Forwarded-For: 2001:db8::1")]),
    Case("forwarded-for-twice", BASIC, [get("/", "X-Forwarded-For: 1.1.1.1", "x-forwarded-for: 2.2.2.2")]),
    Case("forwarded-proto-is-kept", BASIC, [get("/", "X-Forwarded-Proto: https")]),
    Case("forwarded-proto-is-odd", BASIC, [get("/", "X-Forwarded-Proto: ftp")]),
    Case("request-id-is-kept", BASIC, [get("/", f"X-Request-Id: {UUID}"), get("/", "X-Request-Id: not-a-uuid")], log=2),
    Case("request-id-empty", BASIC, [get("/", "X-Request-Id:")]),
    Case("client-cert-header-is-removed", BASIC, [get("/", "X-Forwarded-Client-Cert: By=x")]),
    Case("referer-must-be-a-url", BASIC,
         [get("/", "Referer: http://a/b"), get("/", "Referer: /relative"), get("/", "referer: ftp://a")], log=3),
    Case("user-agent-first-of-two", BASIC, [get("/", "User-Agent: one", "User-Agent: two")]),
    Case("cookies-stay-apart", BASIC, [get("/", "Cookie: a=1", "Accept: */*", "Cookie: b=2")]),
    Case("envoy-headers-of-the-client-stay-in-place", BASIC,
         [get("/", "x-envoy-expected-rq-timeout-ms: 5", "x-first: 1", "x-forwarded-proto: http", "x-last: 1")]),
]

EDGES = [
    Case("edge", EDGE, to("edge", get("/"))),
    Case("edge-forwarded-for", EDGE, to("edge", get("/", "X-Forwarded-For: 1.1.1.1", "X-Forwarded-Proto: https"))),
    Case("edge-replaces-request-id", EDGE, to("edge", get("/", "X-Request-Id: mine"))),
    Case("edge-removes-control-headers", EDGE, to("edge", get("/", *EVERY_CONTROL))),
    Case("edge-trusted-hop", EDGE, to("hops", get("/", "X-Forwarded-For: 3.3.3.3,2.2.2.2", "X-Forwarded-Proto: https"),
                                      get("/")), log=2),
    Case("edge-keeps-request-id", EDGE, to("keep_id", get("/", "X-Request-Id: mine"), get("/")), log=2),
    Case("edge-without-append", EDGE, to("no_append", get("/", "X-Forwarded-For: 1.1.1.1"))),
    Case("inner-trusted-hop", EDGE, to("inner_hops", get("/", "X-Forwarded-For: 3.3.3.3, 2.2.2.2, 1.1.1.1"),
                                       get("/", "X-Forwarded-For: 1.1.1.1")), log=2),
]

OPTIONS = [
    Case("add-user-agent", NAMES, to("agent", get("/"), get("/", "User-Agent: mine")), log=2),
    Case("append-forwarded-port", NAMES, to("port", get("/"), get("/", "X-Forwarded-Port: 1")), log=2),
    Case("via", NAMES, to("via", get("/"), get("/", "Via: 1.1 a")), [reply(200, b"ok", "via: 1.1 b")], log=2),
    Case("server-name", NAMES, to("server_name", get("/")), [reply(200, b"ok", "server: nginx")]),
    Case("server-append-if-absent", NAMES, to("append", get("/"), get("/")), [reply(200, b"ok", "server: nginx")],
         log=2),
    Case("server-pass-through", NAMES, to("pass", get("/"), get("/")), [reply(200, b"ok", "server: nginx")], log=2),
    Case("client-cert-always-forwarded", NAMES, to("xfcc", get("/", "X-Forwarded-Client-Cert: By=x"))),
    Case("no-request-id", NAMES, to("no_id", get("/"), get("/", "X-Request-Id: mine")), log=2),
    Case("strip-any-port", STRIP, to("any", get("/", host="x.com:81"), get("/", host="[::1]:9"), get("/", host="x:y")),
         log=3),
    Case("strip-own-port", STRIP, to("own", get("/", host="x.com:81"), get("/", host="x.com:80")), log=2),
    Case("strip-trailing-dot", STRIP, to("dot", get("/", host="x.com."), get("/", host="x.com.:81"),
                                             get("/", host=".")), log=3),
    Case("underscores-rejected", UNDERSCORES, to("reject", *bad(get("/", "x_a: 1")))),
    Case("underscores-dropped", UNDERSCORES, to("drop", get("/", "x_a: 1", "x-b: 2", "_: 3"))),
    Case("chunked-with-length-allowed", FRAMING,
         to("both", msg("POST / HTTP/1.1", "Host: x", "Content-Length: 3", "Transfer-Encoding: chunked",
                        body=chunks(b"hello")))),
    Case("trailers-enabled", FRAMING,
         to("trailers", msg("POST / HTTP/1.1", "Host: x", "Transfer-Encoding: chunked",
                            body=chunks(b"hello", trailers=b"X-T: 1\r\nX-U: 2\r\n"))),
         [msg("HTTP/1.1 200 OK", "transfer-encoding: chunked", body=chunks(b"hi", trailers=b"X-V: 3\r\n"))]),
]  # fmt: skip

RESPONSES = [
    Case("hop-by-hop-response-headers", BASIC, [get("/"), get("/")],
         [reply(200, b"ok", "Connection: x-hop, keep-alive", "X-Hop: 1", "Keep-Alive: timeout=5",
                "Proxy-Connection: keep-alive", "TE: trailers", "Trailer: x", "Upgrade: h2c",
                "Proxy-Authenticate: Basic")], log=2),
    Case("response-headers-in-order", BASIC, [get("/")],
         [msg("HTTP/1.1 200 OK", "Server: nginx/1", "Set-Cookie: a=1", "X-Envoy-Upstream-Service-Time: 99999",
              "Content-Length: 2", "Date: yesterday", "SET-COOKIE: b=2", "X-Request-Id: theirs", body=b"ok")]),
    Case("response-with-control-headers", BASIC, [get("/")],
         [reply(200, b"ok", "x-envoy-overloaded: true", "x-envoy-decorator-operation: o", "x-envoy-attempt-count: 3",
                "x-envoy-ratelimited: true", "x-envoy-degraded: true", "x-envoy-canary: true")],
         stats=("cluster.a.canary.upstream_rq_200", "cluster.a.external.upstream_rq_200",
                "cluster.a.upstream_rq_200")),
    Case("response-values-verbatim", BASIC, [get("/")],
         [reply(200, b"ok", "x-a:  spaces  ", "x-b:\ttab\tin", "x-empty:", "x-\xfc: n", "x-high: \xe4")]),
]  # fmt: skip

HTTP10 = [
    Case("http-10-closes", HTTP_10, bad(msg("GET / HTTP/1.0", "Host: x.com"))),
    Case("http-10-keep-alive", HTTP_10, [msg("GET /1 HTTP/1.0", "Host: x.com", "Connection: keep-alive"),
                                         msg("GET /2 HTTP/1.0", "Host: x.com", "Connection: keep-alive")], log=2),
    Case("http-10-chunked-upstream", HTTP_10, bad(msg("GET / HTTP/1.0", "Host: x.com", "Connection: keep-alive")),
         [msg("HTTP/1.1 200 OK", "transfer-encoding: chunked", body=chunks(b"hello"))]),
    Case("http-10-without-host", HTTP_10, bad(msg("GET / HTTP/1.0"))),
    Case("http-10-default-host", HTTP_10, to("default_host", *bad(msg("GET / HTTP/1.0")))),
    Case("http-10-head-and-post", HTTP_10, [msg("HEAD / HTTP/1.0", "Host: x", "Connection: Keep-Alive"),
         msg("POST / HTTP/1.0", "Host: x", "Connection: keep-alive", "Content-Length: 2", body=b"ab")],
         [msg("HTTP/1.1 200 OK", "content-length: 5")], log=2),
    Case("http-10-with-chunked", HTTP_10,
         bad(msg("POST / HTTP/1.0", "Host: x", "Transfer-Encoding: chunked", body=chunks(b"hello")))),
    Case("http-09", HTTP_10, bad(b"GET /\r\n\r\n")),
]  # fmt: skip

TRACES = [
    Case("trace-not-sampled", TRACING, to("never", get("/"), get("/", f"X-Request-Id: {UUID}")), log=2,
         stats=NOT_TRACED),
    Case("trace-sampled", TRACING, to("always", get("/"), get("/", f"X-Request-Id: {UUID}")), log=2,
         stats=NOT_TRACED),
    Case("trace-client-id", TRACING, to("always", get("/", "x-client-trace-id: 1", f"X-Request-Id: {UUID}"),
                                        get("/", "x-envoy-force-trace: 1")), log=2, stats=NOT_TRACED),
    Case("trace-foreign-id", TRACING, to("always", get("/", "X-Request-Id: short"),
                                         get("/", f"X-Request-Id: {UUID[:14]}9{UUID[15:]}"),
                                         get("/", f"X-Request-Id: {UUID.upper()}")), log=3, stats=NOT_TRACED),
    Case("decorator-hidden", TRACING, to("hidden", get("/"), get("/", "x-envoy-decorator-operation: theirs")), log=2),
    Case("decorator-request-override", TRACING, to("always", get("/", "x-envoy-decorator-operation: theirs")),
         [reply(200, b"ok", "x-envoy-decorator-operation: upstreams")], stats=NOT_TRACED),
    Case("decorator-at-the-edge", TRACING, to("edge", get("/", "x-envoy-decorator-operation: theirs")),
         [reply(200, b"ok", "x-envoy-decorator-operation: upstreams")], stats=NOT_TRACED),
]  # fmt: skip

ODD_PATHS = (
    "/a/./b/../c", "/../../etc", "/a/..", "/a/../", "/.", "/..", "/a//b", "/a/%2e%2e/b", "/%41%7e%7E%2d", "/a%2Fb",
    "/a%5cb", "/a\\b", "/%zz", "/%", "/a?x=/../b//c%41", "/%00", "/a%20b", "/a;p=1/../b", "//a/b", "/a/.b/..c", "/%25",
)  # fmt: skip
ESCAPED = ("/a%2Fb", "/a%5cb?x=%2f", "/a%2f%2e%2e%2fb", "/plain/../x")


def each_path(listener: str, paths: tuple[str, ...]) -> list[Step]:
    """Every path on a connection of its own: some replies end it."""
    return [step for path in paths for step in (connect(listener), get(path))]


NORMALIZED = [
    Case("paths-unchanged", BASIC, each_path("main", ODD_PATHS), log=len(ODD_PATHS)),
    Case("paths-normalized", PATHS, each_path("norm", ODD_PATHS), log=len(ODD_PATHS)),
    Case("paths-with-slashes-merged", PATHS, each_path("merge", ODD_PATHS), log=len(ODD_PATHS)),
    Case("escaped-slashes-refused", PATHS, each_path("refuse", ESCAPED), log=len(ESCAPED)),
    Case("escaped-slashes-forwarded", PATHS, each_path("forward", ESCAPED), log=len(ESCAPED)),
    Case("escaped-slashes-redirected", PATHS, each_path("redirect", ESCAPED), log=len(ESCAPED),
         stats=("http.redirect.downstream_rq_redirected_with_normalized_path",
                "http.redirect.downstream_rq_failed_path_normalization")),
]  # fmt: skip

CASES = REQUEST + EDGES + OPTIONS + RESPONSES + HTTP10 + TRACES + NORMALIZED
