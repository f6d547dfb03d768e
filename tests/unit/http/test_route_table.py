"""Virtual hosts, route matches, redirects, rewrites and header mutations."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, cast

import pytest

from proxy.config import model
from proxy.http.headers import Headers
from proxy.http.mutations import Mutator
from proxy.http.redirect import location
from proxy.http.rewrite import rewrite_request
from proxy.http.route_table import HOST_MEMO, CompiledRoute, RouteTable
from proxy.http.stream import Stream
from proxy.upstream.manager import ClusterManager
from tests.unit.http.http_world import table, virtual_host


class Request:
    """What routing reads and writes of a stream."""

    def __init__(self, path: bytes = b"/", authority: bytes | None = b"a", method: bytes = b"GET",
                 headers: dict[bytes, bytes] | None = None) -> None:
        self.path, self.authority, self.method, self.scheme = path, authority, method, b"http"
        self.request_headers = Headers.of((headers or {}).items())
        self.host = self.weighted = self.mutator = None


def stream(*args: Any, **kwargs: Any) -> Stream:
    return cast(Stream, Request(*args, **kwargs))


DOMAINS = [b"example.com", b"Mixed.Case", b"with.port:8080", b"*.example.com", b"*.deep.example.com", b"*-x.com",
           b"pre.*", b"pre.longer.*", b"[::1]:80"]


@pytest.mark.parametrize(("authority", "domain"), [
    (b"example.com", b"example.com"), (b"EXAMPLE.com", b"example.com"), (b"mixed.case", b"Mixed.Case"),
    (b"example.com:80", b"*"), (b"with.port:8080", b"with.port:8080"), (b"with.port", b"*"),
    (b"a.example.com", b"*.example.com"), (b"a.b.example.com", b"*.example.com"), (b".example.com", b"*"),
    (b"a.deep.example.com", b"*.deep.example.com"), (b"deep.example.com", b"*.example.com"),
    (b"a-x.com", b"*-x.com"), (b"-x.com", b"*"), (b"pre.a", b"pre.*"), (b"pre.", b"*"),
    (b"pre.longer.a", b"pre.longer.*"),
    (b"[::1]:80", b"[::1]:80"), (b"", b"*"), (b"other", b"*"),
])
def test_virtual_hosts(authority: bytes, domain: bytes) -> None:
    for catch_all in ([b"*"], []):
        hosts = [virtual_host(name=d.decode(), domains=(d,)) for d in [*catch_all, *DOMAINS]]
        compiled = RouteTable(table(*hosts))
        for _ in range(2):  # the second answer comes from the memo
            found = compiled.virtual_host(authority)
            if domain == b"*" and not catch_all:
                assert found is None
            else:
                assert found is not None and found.config.name == domain.decode()


def test_ignored_port() -> None:
    compiled = RouteTable(table(virtual_host(name="a", domains=(b"a",)), virtual_host(name="6", domains=(b"[::1]",)),
                                ignore_port_in_host_matching=True))
    for authority, name in ((b"a:80", "a"), (b"A", "a"), (b"[::1]:80", "6"), (b"[::1]", "6"), (b"a:b", None)):
        found = compiled.virtual_host(authority)
        assert (found.config.name if found else None) == name


def test_the_memo_of_authorities_is_bounded() -> None:
    compiled = RouteTable(table(virtual_host(domains=(b"*.x",))))
    for n in range(3 * HOST_MEMO):
        assert compiled.virtual_host(b"%d.x" % n) is not None
        assert compiled.virtual_host(b"%d.y" % n) is None
        assert len(compiled._memo) <= HOST_MEMO


def entry(name: str, match: model.RouteMatch, action: Any = None) -> model.Route:
    return model.Route(name, match, action or model.RouteAction(cluster="up"))


def is_(value: bytes) -> Callable[[bytes], bool]:
    return lambda given: given == value


ROUTES = [
    entry("post", model.RouteMatch(model.PREFIX, b"/", headers=(model.HeaderMatcher(b":method", is_(b"POST")),))),
    entry("exact", model.RouteMatch(model.PATH, b"/exact")),
    entry("exact-folded", model.RouteMatch(model.PATH, b"/Folded", case_sensitive=False)),
    entry("prefix", model.RouteMatch(model.PREFIX, b"/pre")),
    entry("prefix-folded", model.RouteMatch(model.PREFIX, b"/UP", case_sensitive=False)),
    entry("segment", model.RouteMatch(model.PATH_SEPARATED_PREFIX, b"/seg")),
    entry("regex", model.RouteMatch(model.SAFE_REGEX, regex=re.compile(rb"/r[0-9]+"))),
    entry("header", model.RouteMatch(model.PREFIX, b"/h", headers=(
        model.HeaderMatcher(b"x", is_(b"1")), model.HeaderMatcher(b"y", None, want_present=False)))),
    entry("inverted",
          model.RouteMatch(model.PREFIX, b"/i", headers=(model.HeaderMatcher(b"x", is_(b"1"), invert=True),))),
    entry("missing", model.RouteMatch(model.PREFIX, b"/m", headers=(
        model.HeaderMatcher(b"x", is_(b""), missing_is_empty=True),))),
    entry("query", model.RouteMatch(model.PREFIX, b"/q", query_parameters=(
        model.QueryParameterMatcher(b"a", is_(b"1")), model.QueryParameterMatcher(b"b", None, want_present=False)))),
    entry("grpc", model.RouteMatch(model.PREFIX, b"/g", grpc=True)),
    entry("host", model.RouteMatch(model.PREFIX, b"/a", headers=(model.HeaderMatcher(b":authority", is_(b"h")),))),
    entry("never", model.RouteMatch(model.PREFIX, b"/n", runtime_fraction=0.0)),
]


@pytest.mark.parametrize(("request_", "name"), [
    (stream(b"/exact"), "exact"), (stream(b"/exact?x"), "exact"), (stream(b"/exactly"), None),
    (stream(b"/EXACT"), None), (stream(b"/fOLDED"), "exact-folded"),
    (stream(b"/prefix/x?y"), "prefix"), (stream(b"/upper"), "prefix-folded"),
    (stream(b"/seg"), "segment"), (stream(b"/seg/x"), "segment"), (stream(b"/segment"), None),
    (stream(b"/r12"), "regex"), (stream(b"/r12?q"), "regex"), (stream(b"/r12/x"), None), (stream(b"/x/r1"), None),
    (stream(b"/x", method=b"POST"), "post"), (stream(b"/x", method=b"CONNECT"), None),
    (stream(b"/h", headers={b"x": b"1"}), "header"), (stream(b"/h", headers={b"x": b"2"}), None), (stream(b"/h"), None),
    (stream(b"/h", headers={b"x": b"1", b"y": b""}), None),
    (stream(b"/i", headers={b"x": b"2"}), "inverted"), (stream(b"/i", headers={b"x": b"1"}), None),
    (stream(b"/i"), None),
    (stream(b"/m"), "missing"), (stream(b"/m", headers={b"x": b"1"}), None),
    (stream(b"/q?a=1"), "query"), (stream(b"/q?a=2&a=1"), None), (stream(b"/q?a=1&b"), None),
    (stream(b"/q?c&a=1"), "query"),
    (stream(b"/g", headers={b"content-type": b"application/grpc+proto"}), "grpc"),
    (stream(b"/g", headers={b"content-type": b"application/grpc-web"}), None),
    (stream(b"/a", authority=b"h"), "host"), (stream(b"/a"), None), (stream(b"/n"), None),
], ids=lambda v: v.path.decode() if isinstance(v, Request) else str(v))
def test_routes(request_: Stream, name: str | None) -> None:
    found = RouteTable(table(virtual_host(*ROUTES))).route(request_)
    assert (found.config.name if found else None) == name


def test_the_first_route_wins() -> None:
    first, second = entry("1", model.RouteMatch(model.PREFIX, b"/")), entry("2", model.RouteMatch(model.PATH, b"/x"))
    found = RouteTable(table(virtual_host(first, second))).route(stream(b"/x"))
    assert found is not None and found.config.name == "1"


def compiled(action: Any, match: model.RouteMatch | None = None) -> CompiledRoute:
    one = entry("", match or model.RouteMatch(model.PREFIX, b"/old"), action)
    return CompiledRoute(one, virtual_host(one), table())


@pytest.mark.parametrize(("settings", "request_", "expected"), [
    ({"host_redirect": b"n"}, stream(b"/old?q", b"a:81"), b"http://n/old?q"),
    ({"https_redirect": True}, stream(b"/old", b"a:80"), b"https://a/old"),
    ({"https_redirect": True}, stream(b"/old", b"o.com:1234"), b"https://o.com:1234/old"),
    ({"scheme_redirect": b"ftp"}, stream(b"/old", b"a:80"), b"ftp://a:80/old"),
    ({"https_redirect": True, "port_redirect": 443}, stream(b"/old"), b"https://a:443/old"),
    ({"host_redirect": b"n", "port_redirect": 8}, stream(b"/old", b"[::1]:5"), b"http://n:8/old"),
    ({"port_redirect": 8}, stream(b"/old", b"[::1]"), b"http://[::1]:8/old"),
    ({"path_redirect": b"/new"}, stream(b"/old/x?q=1"), b"http://a/new?q=1"),
    ({"path_redirect": b"/new?own"}, stream(b"/old/x?q=1"), b"http://a/new?own"),
    ({"path_redirect": b"/new", "strip_query": True}, stream(b"/old?q"), b"http://a/new"),
    ({"prefix_rewrite": b"/new"}, stream(b"/old/x?q"), b"http://a/new/x?q"),
    ({"regex_rewrite": (re.compile(rb"[0-9]"), rb"n")}, stream(b"/old1/2?3"), b"http://a/oldn/n?3"),
    ({"https_redirect": True}, stream(b"/old", headers={b"x-forwarded-proto": b"https"}), b"https://a/old"),
])
def test_redirects(settings: dict[str, Any], request_: Stream, expected: bytes) -> None:
    action = model.RedirectAction(**settings)
    assert location(request_, compiled(action), action) == expected


@pytest.mark.parametrize(("settings", "request_", "path", "authority", "headers"), [
    ({"prefix_rewrite": b"/new"}, stream(b"/old/x?q"), b"/new/x?q", b"a", {b"x-envoy-original-path": b"/old/x?q"}),
    ({"prefix_rewrite": b"/"}, stream(b"/old/x"), b"//x", b"a", {b"x-envoy-original-path": b"/old/x"}),
    ({"regex_rewrite": (re.compile(rb"^/old/(\w+)"), rb"/\1/n")}, stream(b"/old/x?old"), b"/x/n?old", b"a",
     {b"x-envoy-original-path": b"/old/x?old"}),
    ({"host_rewrite_literal": b"n"}, stream(b"/old"), b"/old", b"n", {b"x-envoy-original-host": b"a"}),
    ({"host_rewrite_literal": b"a"}, stream(b"/old"), b"/old", b"a", {}),
    ({"host_rewrite_header": b"x"}, stream(b"/old", headers={b"x": b"n"}), b"/old", b"n",
     {b"x": b"n", b"x-envoy-original-host": b"a"}),
    ({"host_rewrite_header": b"x"}, stream(b"/old"), b"/old", b"a", {}),
    ({"host_rewrite_literal": b"n", "append_x_forwarded_host": True}, stream(b"/old"), b"/old", b"n",
     {b"x-envoy-original-host": b"a", b"x-forwarded-host": b"a"}),
])
def test_rewrites(settings: dict[str, Any], request_: Stream, path: bytes, authority: bytes,
                  headers: dict[bytes, bytes]) -> None:
    action = model.RouteAction(cluster="up", **settings)
    rewrite_request(request_, compiled(action), action, suppress=False)
    assert (request_.path, request_.authority) == (path, authority)
    assert dict(request_.request_headers.pairs()) == headers  # type: ignore[union-attr]


def test_rewrites_without_envoy_headers() -> None:
    action = model.RouteAction(cluster="up", prefix_rewrite=b"/n", host_rewrite_literal=b"h")
    request_ = stream(b"/old")
    rewrite_request(request_, compiled(action), action, suppress=True)
    assert request_.request_headers.pairs() == []  # type: ignore[union-attr]


def test_weighted_clusters_follow_their_weights() -> None:
    clusters = cast(ClusterManager, type("Clusters", (), {"get": staticmethod(lambda name: name)}))
    action = model.RouteAction(weighted_clusters=(model.WeightedCluster("a", 1), model.WeightedCluster("b", 0),
                                                  model.WeightedCluster("c", 3)), weighted_header_name=b"x")
    route = compiled(action)
    for number, name in ((0, "a"), (1, "c"), (3, "c"), (4, "a"), (119, "c")):
        assert route.pick_weighted(stream(headers={b"x": b"%d" % number}), clusters) == name
    picks = [route.pick_weighted(stream(headers={b"x": b"no number"}), clusters) for _ in range(4000)]
    assert set(picks) == {"a", "c"} and 800 < picks.count("a") < 1200  # type: ignore[arg-type]


# Mutations

APPEND, ABSENT, SET, REPLACE = (model.APPEND_IF_EXISTS_OR_ADD, model.ADD_IF_ABSENT, model.OVERWRITE_IF_EXISTS_OR_ADD,
                                model.OVERWRITE_IF_EXISTS)


@pytest.mark.parametrize(("additions", "removals", "expected"), [
    ([(b"n", "1", APPEND)], (), [(b"x", b"0"), (b"y", b"0"), (b"n", b"1")]),
    ([(b"x", "1", APPEND)], (), [(b"x", b"0"), (b"y", b"0"), (b"x", b"1")]),
    ([(b"x", "1", ABSENT), (b"n", "1", ABSENT)], (), [(b"x", b"0"), (b"y", b"0"), (b"n", b"1")]),
    ([(b"x", "1", SET), (b"n", "1", SET)], (), [(b"y", b"0"), (b"x", b"1"), (b"n", b"1")]),
    ([(b"x", "1", REPLACE), (b"n", "1", REPLACE)], (), [(b"y", b"0"), (b"x", b"1")]),
    ([(b"x", "1", APPEND)], (b"x",), [(b"y", b"0"), (b"x", b"1")]),
    ([(b"n", "%REQ(none)%", APPEND)], (), [(b"x", b"0"), (b"y", b"0")]),
    ([(b"n", "100%%", APPEND)], (), [(b"x", b"0"), (b"y", b"0"), (b"n", b"100%")]),
    ([(b"n", "%REQ(x)%!", APPEND)], (), [(b"x", b"0"), (b"y", b"0"), (b"n", b"0!")]),
])
def test_mutations(additions: list[tuple[bytes, str, int]], removals: tuple[bytes, ...],
                   expected: list[tuple[bytes, bytes]]) -> None:
    level = model.HeaderMutations(tuple(model.HeaderToAdd(*a) for a in additions), removals)
    request_ = stream(headers={b"x": b"0", b"y": b"0"})
    headers = request_.request_headers
    assert headers is not None
    mutator = Mutator.of([level], False)
    assert mutator is not None
    mutator.request(headers, request_)
    assert headers.pairs() == expected
    assert headers.index == Headers(headers.fields).index


def test_empty_value_kept_when_wanted() -> None:
    level = model.HeaderMutations((model.HeaderToAdd(b"n", "", keep_empty_value=True),))
    request_ = stream()
    Mutator([level]).request(request_.request_headers, request_)  # type: ignore[arg-type]
    assert request_.request_headers.pairs() == [(b"n", b"")]  # type: ignore[union-attr]


def test_levels_of_mutations() -> None:
    def level(value: str) -> model.HeaderMutations:
        return model.HeaderMutations(request_add=(model.HeaderToAdd(b"a", value), model.HeaderToAdd(b"s", value, SET)))
    levels = [level("route"), level("vhost"), level("table")]
    for last, cluster, appended, winner in (
            (False, None, [b"route", b"vhost", b"table"], b"table"),
            (True, None, [b"table", b"vhost", b"route"], b"route"),
            (False, level("cluster"), [b"cluster", b"route", b"vhost", b"table"], b"table")):
        request_ = stream()
        mutator = Mutator.of(levels, last, cluster)
        assert mutator is not None and request_.request_headers is not None
        mutator.request(request_.request_headers, request_)
        assert request_.request_headers.get_all(b"a") == appended
        assert request_.request_headers.get_all(b"s") == [winner]
    assert Mutator.of([model.HeaderMutations()] * 3, False) is None
