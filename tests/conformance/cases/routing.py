"""Virtual hosts, route matching, direct responses, redirects, rewrites, header mutations, weighted clusters."""

from __future__ import annotations

from tests.conformance.dsl import Case, connect, get, post, reply
from tests.conformance.snippets import A, bootstrap, cluster, http


def answer(match: str, name: str, status: int = 200) -> str:
    """A route that answers by itself with its own name."""
    return f"- {{match: {match}, name: {name}, direct_response: {{status: {status}, body: {{inline_string: {name}}}}}}}"


def vhost(name: str, *domains: str) -> str:
    """A virtual host that answers by itself with its own name."""
    return f"- name: {name}\n  domains: [{', '.join(repr(d) for d in domains)}]\n  routes: [" + (
        f"{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: {name}}}}}}}]"
    )


VHOSTS = bootstrap(
    http(vhosts="\n".join([
        vhost("exact", "foo.com", "MiXed.com", "port.com:81"),
        vhost("suffix", "*.foo.com"),
        vhost("long_suffix", "*.bar.foo.com", "*-x.foo.com"),
        vhost("prefix", "foo.*"),
        vhost("long_prefix", "foo.b.*"),
        vhost("empty", "empty.com"),
        "- {name: no_routes, domains: [none.com]}",
        vhost("other", "*"),
    ])),
    http("no_default", vhosts=vhost("only", "only.com")),
    http("no_port", vhosts=vhost("only", "only.com"), table="ignore_port_in_host_matching: true"),
)
HOSTS = (
    "foo.com", "FOO.com", "mixed.COM", "port.com", "port.com:81", "foo.com:99", "a.foo.com", "b.c.foo.com",
    "a.bar.foo.com", "y-x.foo.com", "-x.foo.com", ".foo.com", "foo.net", "foo.b.net", "foo.", "none.com", "",
)  # fmt: skip

MATCHES = bootstrap(http(routes="\n".join([
    answer("{path: /exact}", "exact"),
    answer("{path: /folded, case_sensitive: false}", "folded_path"),
    answer("{prefix: /pre/}", "prefix"),
    answer("{prefix: /Fold, case_sensitive: false}", "folded_prefix"),
    answer("{safe_regex: {regex: '/re/[0-9]+'}}", "regex"),
    answer("{path_separated_prefix: /sep}", "separated"),
    answer("{prefix: /h, headers: [{name: x-e, string_match: {exact: v}}]}", "h_exact"),
    answer("{prefix: /h, headers: [{name: x-i, string_match: {exact: v, ignore_case: true}}]}", "h_folded"),
    answer("{prefix: /h, headers: [{name: x-p, string_match: {prefix: ab}}]}", "h_prefix"),
    answer("{prefix: /h, headers: [{name: x-s, string_match: {suffix: yz}}]}", "h_suffix"),
    answer("{prefix: /h, headers: [{name: x-c, string_match: {contains: mid}}]}", "h_contains"),
    answer("{prefix: /h, headers: [{name: x-r, string_match: {safe_regex: {regex: 'a.*b'}}}]}", "h_regex"),
    answer("{prefix: /h, headers: [{name: x-n, range_match: {start: 10, end: 20}}]}", "h_range"),
    answer("{prefix: /h, headers: [{name: x-present, present_match: true}]}", "h_present"),
    answer("{prefix: /h, headers: [{name: ':method', string_match: {exact: PUT}}]}", "h_method"),
    answer("{prefix: /h, headers: [{name: ':authority', string_match: {prefix: 'auth.'}}]}", "h_authority"),
    answer("{prefix: /two, headers: [{name: x-1, present_match: true}, {name: x-2, string_match: {exact: b}}]}", "two"),
    answer("{prefix: /absent, headers: [{name: x-a, present_match: true, invert_match: true}]}", "absent"),
    answer("{prefix: /not, headers: [{name: x-a, string_match: {exact: v}, invert_match: true}]}", "inverted"),
    answer("{prefix: /missing, headers: [{name: x-a, string_match: {exact: ''}, treat_missing_header_as_empty: true}]}",
           "missing_is_empty"),
    answer("{prefix: /q, query_parameters: [{name: a, string_match: {exact: '1'}}]}", "q_exact"),
    answer("{prefix: /q, query_parameters: [{name: b, present_match: true}]}", "q_present"),
    answer("{prefix: /none, runtime_fraction: {default_value: {numerator: 0}}}", "never"),
    answer("{prefix: /none, runtime_fraction: {default_value: {numerator: 100}}}", "always"),
    "- {match: {prefix: /nobody}, direct_response: {status: 204}}",
    "- {match: {prefix: /empty}, direct_response: {status: 404}}",
    "- {match: {prefix: /teapot}, direct_response: {status: 418, body: {inline_string: short and stout}}}",
])))  # fmt: skip


def gets(*paths: str) -> list[bytes]:
    """A GET for each path."""
    return [get(path) for path in paths]


PATHS = ("/exact", "/exact?x", "/exact/", "/Exact", "/FOLDED", "/pre/", "/pre", "/pre/x?y", "/foldER", "/re/12?q",
         "/re/12/3", "/re/x", "/sep", "/sep/a", "/sepa", "/sep?x", "/none", "/other")  # fmt: skip
BY_HEADER = [
    get("/h", header) for header in (
        "x-e: v", "x-e: V", "x-i: V", "x-p: abc", "x-s: xyz", "x-c: amidst", "x-r: a123b", "x-r: a123bc", "x-n: 10",
        "x-n: 20", "x-n: 1x", "x-present:", "x-nothing: 1",
    )
] + [get("/h", "x-e: u", "x-e: v"), get("/h", "x-e: u,v"), get("/h", method="PUT"), get("/h", host="auth.com"),
     get("/two", "x-1: a", "x-2: b"), get("/two", "x-1: a"), get("/absent"), get("/absent", "x-a: v"), get("/not"),
     get("/not", "x-a: v"), get("/not", "x-a: w"), get("/missing"), get("/missing", "x-a: v")]  # fmt: skip
BY_QUERY = gets("/q?a=1", "/q?a=2&a=1", "/q?b", "/q?b=", "/q?x=1&a=1", "/q?A=1", "/q?a=%31", "/q")

REDIRECTS = bootstrap(http(routes="""
- {match: {prefix: /https}, redirect: {https_redirect: true}}
- {match: {prefix: /scheme}, redirect: {scheme_redirect: ftp}}
- {match: {prefix: /host}, redirect: {host_redirect: new.com}}
- {match: {prefix: /port}, redirect: {port_redirect: 8443}}
- {match: {prefix: /full}, redirect: {https_redirect: true, host_redirect: new.com, port_redirect: 443}}
- {match: {prefix: /path}, redirect: {path_redirect: /to}}
- {match: {prefix: /query}, redirect: {path_redirect: '/to?own=1'}}
- {match: {prefix: /pre/}, redirect: {prefix_rewrite: /post/}}
- {match: {prefix: /re/}, redirect: {regex_rewrite: {pattern: {regex: '^/re/(.*)$'}, substitution: '/\\1/er'}}}
- {match: {prefix: /strip}, redirect: {path_redirect: /to, strip_query: true}}
- {match: {prefix: /302}, redirect: {path_redirect: /to, response_code: FOUND}}
- {match: {prefix: /303}, redirect: {path_redirect: /to, response_code: SEE_OTHER}}
- {match: {prefix: /307}, redirect: {path_redirect: /to, response_code: TEMPORARY_REDIRECT}}
- {match: {prefix: /308}, redirect: {path_redirect: /to, response_code: PERMANENT_REDIRECT}}
- match: {prefix: /headers}
  redirect: {path_redirect: /to}
  response_headers_to_add: [{header: {key: x-added, value: here}}]
"""))  # fmt: skip

TLS_ONLY = bootstrap(http(vhosts="""
- {name: all, domains: ["*"], require_tls: ALL, routes: [{match: {prefix: /}, route: {cluster: a}}]}
"""), A)

REWRITES = bootstrap(http(routes="""
- {match: {prefix: /p1/}, route: {cluster: a, prefix_rewrite: /n/}}
- {match: {prefix: /p2}, route: {cluster: a, prefix_rewrite: /}}
- {match: {path: /exact}, route: {cluster: a, prefix_rewrite: /whole}}
- match: {prefix: /re/}
  route: {cluster: a, regex_rewrite: {pattern: {regex: '/([a-z]+)/([0-9]+)'}, substitution: '/\\2/\\1'}}
- {match: {prefix: /hl}, route: {cluster: a, host_rewrite_literal: new.com}}
- {match: {prefix: /hh}, route: {cluster: a, host_rewrite_header: x-host}}
- {match: {prefix: /hx}, route: {cluster: a, host_rewrite_literal: new.com, append_x_forwarded_host: true}}
- {match: {prefix: /auto}, route: {cluster: dns, auto_host_rewrite: true}}
- {match: {prefix: /both}, route: {cluster: a, prefix_rewrite: /new, host_rewrite_literal: new.com}}
- {match: {prefix: /dns}, route: {cluster: dns, prefix_rewrite: /new, auto_host_rewrite: true}}
- match: {safe_regex: {regex: '/rx/.*'}}
  route: {cluster: a, prefix_rewrite: /all}
"""), A, cluster("dns", "up:dns", kind="STRICT_DNS", address="localhost", extra="dns_lookup_family: V4_ONLY"))

MUTATIONS = bootstrap(*(
    http(name, table=f"""
{order}
request_headers_to_add: [{{header: {{key: x-order, value: table}}}}]
response_headers_to_add: [{{header: {{key: x-order, value: table}}}}]
response_headers_to_remove: [x-from-table]
""", vhosts="""
- name: all
  domains: ["*"]
  request_headers_to_add: [{header: {key: x-order, value: vhost}}]
  request_headers_to_remove: [x-vhost-drops]
  response_headers_to_add: [{header: {key: x-order, value: vhost}}]
  routes:
  - match: {prefix: /order}
    request_headers_to_add: [{header: {key: x-order, value: route}}]
    request_headers_to_remove: [x-route-drops]
    response_headers_to_add: [{header: {key: x-order, value: route}}]
    response_headers_to_remove: [x-from-upstream]
    route:
      weighted_clusters:
        clusters:
        - name: a
          weight: 1
          request_headers_to_add: [{header: {key: x-order, value: cluster}}]
          response_headers_to_add: [{header: {key: x-order, value: cluster}}]
          request_headers_to_remove: [x-cluster-drops]
  - match: {prefix: /actions}
    request_headers_to_add:
    - {header: {key: x-append, value: new}}
    - {header: {key: x-absent, value: new}, append_action: ADD_IF_ABSENT}
    - {header: {key: x-over, value: new}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}
    - {header: {key: x-only, value: new}, append_action: OVERWRITE_IF_EXISTS}
    response_headers_to_add:
    - {header: {key: x-append, value: new}}
    - {header: {key: x-absent, value: new}, append_action: ADD_IF_ABSENT}
    - {header: {key: x-over, value: new}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}
    - {header: {key: x-only, value: new}, append_action: OVERWRITE_IF_EXISTS}
    - {header: {key: server, value: new}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}
    route: {cluster: a}
  - match: {prefix: /formats}
    request_headers_to_add:
    - {header: {key: x-percent, value: '100%%'}}
    - {header: {key: x-req, value: 'a %REQ(x-in)% b'}}
    - {header: {key: x-missing, value: '%REQ(x-not-there)%'}}
    - {header: {key: x-kept, value: '%REQ(x-not-there)%'}, keep_empty_value: true}
    - {header: {key: x-protocol, value: '%PROTOCOL%'}}
    - {header: {key: x-peer, value: '%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%'}}
    response_headers_to_add:
    - {header: {key: x-code, value: 'code %RESPONSE_CODE%'}}
    - {header: {key: x-host, value: '%REQ(:authority)%'}}
    - {header: {key: x-upstream, value: '%UPSTREAM_HOST%'}}
    route: {cluster: a}
  - match: {prefix: /direct}
    response_headers_to_add: [{header: {key: x-order, value: route}}]
    direct_response: {status: 200, body: {inline_string: direct}}
  - match: {prefix: /}
    route: {cluster: empty}
""") for name, order in (("main", ""), ("specific", "most_specific_header_mutations_wins: true"))
), A, cluster("empty"))  # fmt: skip

WEIGHTED = bootstrap(http(routes="""
- match: {prefix: /w}
  route:
    weighted_clusters:
      header_name: x-weight
      clusters: [{name: a, weight: 20}, {name: b, weight: 30}, {name: zero, weight: 0}, {name: c, weight: 50}]
- match: {prefix: /by-header}
  route: {cluster_header: x-cluster}
- match: {prefix: /unknown}
  route: {cluster: nowhere}
- match: {prefix: /404}
  route: {cluster: nowhere, cluster_not_found_response_code: NOT_FOUND}
- match: {prefix: /500}
  route: {cluster: nowhere, cluster_not_found_response_code: INTERNAL_SERVER_ERROR}
- match: {prefix: /named}
  name: a route with spaces
  route: {cluster: a}
""", table="validate_clusters: false"), A, cluster("b", "up:b"), cluster("c", "up:c"), cluster("zero"))  # fmt: skip

WEIGHTS = ("0", "19", "20", "49", "50", "99", "119", "100", "4294967295", "x", "-1")

CASES = [
    Case("hosts", VHOSTS, [get("/", host=host) for host in HOSTS], log=len(HOSTS)),
    Case("host-unknown", VHOSTS,
         [connect("no_default"), get("/"), get("/", host="only.com"), get("/", host="only.com:80")],
         log=3, stats=("http.no_default.no_route", "http.no_default.downstream_rq_4xx", "http.no_default.rq_total")),
    Case("host-with-port-ignored", VHOSTS, [connect("no_port"), get("/", host="only.com:80"), get("/", host="a:1")],
         log=2),
    Case("route-paths", MATCHES, gets(*PATHS), log=len(PATHS),
         stats=("http.main.rq_direct_response", "http.main.no_route", "http.main.downstream_rq_2xx")),
    Case("route-headers", MATCHES, BY_HEADER, log=len(BY_HEADER)),
    Case("route-query", MATCHES, BY_QUERY, log=len(BY_QUERY)),
    Case("direct-responses", MATCHES, [*gets("/nobody", "/empty", "/teapot"), get("/teapot", method="HEAD"),
                                       post("/teapot", b"hello")], log=5),
    Case("redirect-kinds", REDIRECTS,
         gets("/https?a=1", "/scheme", "/host/x?y", "/port", "/full/x", "/path?a=1", "/query?a=1", "/pre/x?q",
              "/re/x?q", "/strip?a=1", "/302", "/303", "/307", "/308", "/headers"), log=15,
         stats=("http.main.rq_redirect", "http.main.rq_direct_response", "http.main.downstream_rq_3xx")),
    Case("redirect-keeps-port", REDIRECTS,
         [get(path, host=host) for path in ("/https", "/host", "/port", "/path", "/full")
          for host in ("o.com:80", "o.com:443", "o.com:1234", "[::1]:80", "[::1]")], log=25),
    Case("redirect-of-head-and-post", REDIRECTS, [get("/path", method="HEAD"), post("/path", b"hello")], log=2),
    Case("redirect-prefers-forwarded-proto", REDIRECTS, [get("/path", "x-forwarded-proto: https")]),
    Case("require-tls", TLS_ONLY, [get("/a?b=1"), get("/", host="x.com:80"), get("/", "x-forwarded-proto: https")],
         log=3),
    Case("prefix-rewrites", REWRITES, gets("/p1/x?a=/p1/", "/p2/a", "/p2", "/p2?x", "/exact?y=1", "/rx/y/z"), log=6),
    Case("regex-rewrite", REWRITES, gets("/re/abc/12/x?q=/abc/1", "/re/none"), log=2),
    Case("host-rewrites", REWRITES, [*gets("/hl", "/hx"), get("/hh", "x-host: from.header"), get("/hh")], log=4),
    Case("auto-host-rewrite", REWRITES, [get("/auto"), get("/dns")], {"dns": []}, log=2),
    Case("host-and-path-rewrite", REWRITES, gets("/both/x?y")),
    Case("header-order", MUTATIONS, [get("/order", "x-order: client", "x-vhost-drops: 1", "x-route-drops: 1",
                                         "x-cluster-drops: 1", "x-kept: 1")],
         [reply(200, b"ok", "x-order: upstream", "x-from-upstream: 1", "x-from-table: 1")]),
    Case("header-order-most-specific-wins", MUTATIONS, [connect("specific"), get("/order", "x-order: client")],
         [reply(200, b"ok", "x-order: upstream")]),
    Case("header-append-actions", MUTATIONS,
         [get("/actions"), get("/actions", "x-append: o", "x-absent: o", "x-over: o", "x-over: p", "x-only: o")],
         [reply(200, b"ok"), reply(200, b"ok", "x-append: o", "x-absent: o", "x-over: o", "x-over: p", "x-only: o")],
         log=2),
    Case("header-formats", MUTATIONS, [get("/formats", "x-in: v"), get("/formats")], [reply(201, b"ok")], log=2),
    Case("headers-on-local-replies", MUTATIONS, [get("/direct"), get("/none")], log=2),
    Case("weighted-by-header", WEIGHTED, [get("/w", f"x-weight: {weight}") for weight in WEIGHTS[:-3]],
         {"a": [], "b": [], "c": []}, log=len(WEIGHTS) - 3),
    Case("cluster-by-header", WEIGHTED,
         [get("/by-header", "x-cluster: b"), get("/by-header", "x-cluster: none"), get("/by-header")], {"b": []}, log=3,
         stats=("http.main.no_cluster", "http.main.downstream_rq_5xx")),
    Case("unknown-cluster", WEIGHTED, [*gets("/unknown", "/404", "/500", "/named"), get("/unknown", method="HEAD")],
         log=5, stats=("http.main.no_cluster", "http.main.downstream_rq_5xx", "http.main.downstream_rq_4xx")),
]
