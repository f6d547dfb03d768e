"""Route configurations: virtual hosts, routes, matchers, actions, retries, header mutations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from config_cases import ENTRY, EXTENSIONS, HOST, ROUTE, TABLE, Case, Json

from proxy.config import model
from proxy.config.model import (
    DirectResponse,
    HeaderMutations,
    HeaderToAdd,
    RedirectAction,
    RetryPolicy,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    WeightedCluster,
)


def table_of(case: Case) -> RouteConfiguration:
    compiled = case.load().bootstrap.listeners[0].filter_chains[0].network_filter
    assert isinstance(compiled, model.HttpConnectionManager)
    return compiled.route_config


def entry(**fields: Any) -> Route:
    case = Case()
    case.entry |= fields
    return table_of(case).virtual_hosts[0].routes[0]


def action(**fields: Any) -> RouteAction:
    compiled = entry(route={"cluster": "c1", **fields}).action
    assert isinstance(compiled, RouteAction)
    return compiled


def match(**fields: Any) -> RouteMatch:
    return entry(match={"prefix": "/", **fields}).match


def errors(**fields: Any) -> dict[str, str]:
    case = Case()
    case.entry |= fields
    return case.errors()


# --- matching ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fields", "kind", "value"), [
    ({"prefix": "/a"}, model.PREFIX, b"/a"), ({"path": "/a"}, model.PATH, b"/a"), ({"prefix": ""}, model.PREFIX, b""),
    ({"path_separated_prefix": "/a/b"}, model.PATH_SEPARATED_PREFIX, b"/a/b"),
])
def test_paths(fields: Json, kind: int, value: bytes) -> None:
    assert entry(match=fields).match == RouteMatch(kind, value)


def test_regex_path() -> None:
    regex: Any = entry(match={"safe_regex": {"regex": "/beta/.*"}, "case_sensitive": False}).match.regex
    assert regex.fullmatch(b"/beta/x") is not None and regex.fullmatch(b"/beta") is None


def test_other_criteria() -> None:
    compiled = match(case_sensitive=False, grpc={}, runtime_fraction={"default_value": {
        "numerator": 25, "denominator": "TEN_THOUSAND"}})
    assert (compiled.case_sensitive, compiled.grpc, compiled.runtime_fraction) == (False, True, 0.0025)


@pytest.mark.parametrize(("runtime", "share"), [
    ({}, 0.5), ({"k": 30}, 0.3), ({"k": "70"}, 0.7), ({"k": 300}, 1.0),
    ({"k": {"numerator": 1, "denominator": "MILLION"}}, 1e-6),
    ({"k": {"numerator": "x"}}, 0.5), ({"k": "x"}, 0.5),
])
def test_runtime_fraction(runtime: Json, share: float) -> None:
    case = Case()
    case.document["layered_runtime"] = {"layers": [{"name": "a", "static_layer": runtime}]}
    case.entry["match"]["runtime_fraction"] = {"default_value": {"numerator": 50}, "runtime_key": "k"}
    compiled = table_of(case).virtual_hosts[0].routes[0].match
    assert compiled.runtime_fraction == pytest.approx(share)


@pytest.mark.parametrize(("fields", "yes", "no"), [
    ({"string_match": {"exact": "a"}}, [b"a"], [b"A", b"ab", b""]),
    ({"string_match": {"exact": "a", "ignore_case": True}}, [b"a", b"A"], [b"b"]),
    ({"string_match": {"prefix": "ab"}}, [b"ab", b"abc"], [b"a", b"Ab"]),
    ({"string_match": {"prefix": "ab", "ignore_case": True}}, [b"ABc"], [b"a"]),
    ({"string_match": {"suffix": "ab"}}, [b"ab", b"cab"], [b"abc"]),
    ({"string_match": {"suffix": "ab", "ignore_case": True}}, [b"CAB"], [b"abc"]),
    ({"string_match": {"contains": "b"}}, [b"abc"], [b"B"]),
    ({"string_match": {"contains": "b", "ignore_case": True}}, [b"aBc"], [b"a"]),
    ({"string_match": {"safe_regex": {"regex": "a|b+"}}}, [b"a", b"bb"], [b"ab", b"c"]),
    ({"range_match": {"start": -5, "end": 10}}, [b"-5", b"9", b" 7 "], [b"10", b"", b"1.5", b"1_0", b"9" * 5000]),
    ({"exact_match": "a"}, [b"a"], [b"b"]), ({"prefix_match": "a"}, [b"ab"], [b"ba"]),
    ({"suffix_match": "a"}, [b"ba"], [b"ab"]), ({"contains_match": "a"}, [b"bab"], [b"b"]),
    ({"safe_regex_match": {"regex": "a.*"}}, [b"abc"], [b"ba"]),
])
def test_header_values(fields: Json, yes: list[bytes], no: list[bytes]) -> None:
    (matcher,) = match(headers=[{"name": "X-One", "invert_match": True, **fields}]).headers
    assert matcher.name == b"x-one" and matcher.invert and matcher.matches is not None
    assert all(map(matcher.matches, yes)) and not any(map(matcher.matches, no))


@pytest.mark.parametrize(("fields", "present"), [
    ({}, True), ({"present_match": True}, True), ({"present_match": False}, False), ({"invert_match": True}, False),
    ({"present_match": False, "invert_match": True}, True),
])
def test_header_presence(fields: Json, present: bool) -> None:
    (matcher,) = match(headers=[{"name": ":path", **fields}]).headers
    assert (matcher.name, matcher.matches, matcher.want_present, matcher.invert) == (b":path", None, present, False)


def test_query_parameters() -> None:
    exact, absent, there = match(query_parameters=[
        {"name": "A", "string_match": {"exact": "x"}}, {"name": "b", "present_match": False},
        {"name": "c"}]).query_parameters
    assert exact.name == b"A" and exact.matches is not None and exact.matches(b"x") and not exact.matches(b"y")
    assert (absent.matches, absent.want_present) == (None, False)
    assert (there.matches, there.want_present) == (None, True)


@pytest.mark.parametrize(("fields", "path", "message"), [
    ({}, "", "field: 'path_specifier', reason: is required"),
    ({"connect_matcher": {}}, "connect_matcher",
     "is not supported yet; supported: prefix, path, path_separated_prefix"),
    ({"path_separated_prefix": "/a/"}, "path_separated_prefix", "does not match regex pattern"),
    ({"safe_regex": {"regex": "(?=x)"}}, "safe_regex.regex", "invalid perl operator: (?="),
    ({"safe_regex": {"regex": ""}}, "safe_regex.regex", "at least 1 characters"),
    ({"prefix": "/", "headers": [{"name": ""}]}, "headers[0].name", "at least 1 characters"),
    ({"prefix": "/", "headers": [{"name": "a b"}]}, "headers[0].name", "'a b' is not a header name"),
    ({"prefix": "/", "headers": [{"name": "a", "string_match": {}}]}, "headers[0].string_match", "'match_pattern'"),
    ({"prefix": "/", "headers": [{"name": "a", "string_match": {"safe_regex": {"regex": "a"}, "ignore_case": True}}]},
     "headers[0].string_match.ignore_case", "ignore_case has no effect for safe_regex."),
    ({"prefix": "/", "tls_context": {}}, "tls_context", "is not supported yet"),
    ({"prefix": "/", "dynamic_metadata": [{}]}, "dynamic_metadata", "is not supported yet"),
])
def test_bad_matches(fields: Json, path: str, message: str) -> None:
    found = errors(match=fields)
    assert message in found[f"{ENTRY}.match.{path}" if path else f"{ENTRY}.match"]


# --- actions ----------------------------------------------------------------------------------------------------------


def test_route_action() -> None:
    assert action() == RouteAction(cluster="c1")
    assert action(
        timeout="0s", idle_timeout="0s",
        max_stream_duration={"max_stream_duration": "0s", "grpc_timeout_header_max": "0s"},
        prefix_rewrite="/x", host_rewrite_literal="h", append_x_forwarded_host=True, priority="HIGH",
        cluster_not_found_response_code="INTERNAL_SERVER_ERROR", max_grpc_timeout="0s",
        upgrade_configs=[{"upgrade_type": "WebSocket", "enabled": False}],
        hash_policy=[{"header": {"header_name": "x"}}, {"cookie": {"name": "c", "ttl": "0s"}}],
    ) == RouteAction(
        cluster="c1", timeout=0.0, idle_timeout=0.0, new_timeouts=True, max_stream_duration=0.0,
        grpc_timeout_header_max=0.0, max_grpc_timeout=0.0, prefix_rewrite=b"/x",
        host_rewrite_literal=b"h", append_x_forwarded_host=True, high_priority=True,
        cluster_not_found_response_code=500, upgrade_types=((b"websocket", False),))
    assert action(auto_host_rewrite=True).auto_host_rewrite is True
    assert action(host_rewrite_header="X-H").host_rewrite_header == b"x-h"
    assert action(max_stream_duration={}).max_stream_duration is None


def test_cluster_header() -> None:
    compiled = entry(route={"cluster_header": "X-Cluster"}).action
    assert isinstance(compiled, RouteAction) and compiled.cluster_header == b"x-cluster"


def test_weighted_clusters() -> None:
    case = Case()
    case.document["layered_runtime"] = {"layers": [{"name": "a", "static_layer": {"split.c1": 7}}]}
    case.entry["route"] = {"weighted_clusters": {"runtime_key_prefix": "split", "header_name": "X-Random", "clusters": [
        {"name": "c1", "weight": 1, "host_rewrite_literal": "h", "request_headers_to_remove": ["A"]}]}}
    compiled = table_of(case).virtual_hosts[0].routes[0].action
    assert isinstance(compiled, RouteAction)
    assert compiled.weighted_header_name == b"x-random"
    assert compiled.weighted_clusters == (WeightedCluster("c1", 7, HeaderMutations(request_remove=(b"a",)), b"h"),)


def test_regex_rewrite() -> None:
    compiled = action(regex_rewrite={"pattern": {"regex": "^/service/([^/]+)(/.*)$"}, "substitution": r"\2/at/\1"})
    assert compiled.regex_rewrite is not None
    pattern: Any = compiled.regex_rewrite[0]
    assert pattern.sub(compiled.regex_rewrite[1], b"/service/foo/v1") == b"/v1/at/foo"


@pytest.mark.parametrize(("fields", "path", "message"), [
    ({"cluster": "x"}, "cluster", "route: unknown cluster 'x'"),
    ({"cluster": None, "weighted_clusters": {"clusters": [{"name": "x", "weight": 1}]}},
     "weighted_clusters.clusters[0].name", "route: unknown weighted cluster 'x'"),
    ({"cluster": None, "weighted_clusters": {"clusters": [{"name": "c1", "weight": 0}]}},
     "weighted_clusters.clusters", "Sum of weights in the weighted_cluster must be greater than 0."),
    ({"cluster": None, "weighted_clusters": {"clusters": []}}, "weighted_clusters.clusters", "at least 1 item(s)"),
    ({"cluster": None, "weighted_clusters": {"clusters": [{"name": "c1"}]}},
     "weighted_clusters.clusters[0].weight", "value is required"),
    ({"cluster": None, "weighted_clusters": {"clusters": [{"name": "c1", "weight": 1}], "use_hash_policy": True}},
     "weighted_clusters.use_hash_policy", "is not supported yet"),
    ({"cluster": None}, "", "field: 'cluster_specifier', reason: is required"),
    ({"cluster": None, "cluster_specifier_plugin": "x"}, "cluster_specifier_plugin",
     "is not supported yet; supported:"),
    ({"prefix_rewrite": "/x", "regex_rewrite": {"pattern": {"regex": "a"}, "substitution": "b"}}, "regex_rewrite",
     "Specify only one of prefix_rewrite, regex_rewrite or path_rewrite_policy"),
    ({"regex_rewrite": {"pattern": {"regex": "a"}, "substitution": r"\1"}}, "regex_rewrite.substitution",
     "names group 1"),
    ({"regex_rewrite": {"substitution": "x"}}, "regex_rewrite.pattern", "value is required"),
    ({"upgrade_configs": [{"upgrade_type": "a"}, {"upgrade_type": "A"}]}, "upgrade_configs", "Duplicate upgrade a"),
    ({"request_mirror_policies": [{"cluster": "c1"}]}, "request_mirror_policies", "is not supported yet"),
    ({"hedge_policy": {}}, "hedge_policy", "is not supported yet"),
    ({"internal_redirect_policy": {}}, "internal_redirect_policy", "is not supported yet"),
    ({"prefix_rewrite": "a\r\nb"}, "prefix_rewrite", "does not match regex pattern"),
])
def test_bad_route_actions(fields: Json, path: str, message: str) -> None:
    found = errors(route={"cluster": "c1", **fields})
    assert message in found[f"{ROUTE}.{path}" if path else ROUTE]


def test_redirects() -> None:
    assert entry(route=None, redirect={}).action == RedirectAction()
    assert entry(route=None, redirect={
        "scheme_redirect": "https", "host_redirect": "h", "port_redirect": 8443, "path_redirect": "/x",
        "response_code": "PERMANENT_REDIRECT", "strip_query": True,
    }).action == RedirectAction(308, False, b"https", b"h", 8443, b"/x", strip_query=True)
    assert entry(route=None, redirect={"https_redirect": True, "prefix_rewrite": "/y"}).action == RedirectAction(
        https_redirect=True, prefix_rewrite=b"/y")


def test_direct_responses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"from a file")
    monkeypatch.setenv("SOME_BODY", "from the environment")
    for source, expected in (({"inline_string": "x"}, b"x"), ({"inline_bytes": "/w=="}, b"\xff"),
                             ({"filename": str(body)}, b"from a file"),
                             ({"environment_variable": "SOME_BODY"}, b"from the environment")):
        assert entry(route=None, direct_response={"status": 503, "body": source}).action == DirectResponse(503,
                                                                                                           expected)
    assert entry(route=None, direct_response={"status": 200}).action == DirectResponse(200)


def test_the_size_of_direct_responses() -> None:
    case = Case()
    case.entry["route"] = None
    case.entry["direct_response"] = {"status": 200, "body": {"inline_string": "x" * 5000}}
    assert case.errors() == {
        f"{ENTRY}.direct_response.body": "response body size is 5000 bytes; maximum is 4096"}
    case.table["max_direct_response_body_size_bytes"] = 5000
    case.load()


@pytest.mark.parametrize(("fields", "path", "message"), [
    ({"route": None}, "", "field: 'action', reason: is required"), ({"match": None}, ".match", "value is required"),
    ({"route": None, "direct_response": {"status": 100}}, ".direct_response.status", "greater than or equal to 200"),
    ({"route": None, "direct_response": {"status": 200, "body_format": {"text_format": "x"}}},
     ".direct_response.body_format", "is not supported yet"),
    ({"route": None, "non_forwarding_action": {}}, ".non_forwarding_action", "is not supported yet; supported: route"),
    ({"decorator": {}}, ".decorator.operation", "at least 1 characters"),
    ({"tracing": {}}, ".tracing", "not supported yet"),
    ({"stat_prefix": "x"}, ".stat_prefix", "is not supported yet"),
])
def test_bad_routes(fields: Json, path: str, message: str) -> None:
    assert message in errors(**fields)[f"{ENTRY}{path}"]


def test_names_and_decorators() -> None:
    compiled = entry(name="n", decorator={"operation": "op", "propagate": False},
                     metadata={"filter_metadata": {"x": {}}})
    assert (compiled.name, compiled.decorator_operation, compiled.decorator_propagate) == ("n", b"op", False)


# --- retries ----------------------------------------------------------------------------------------------------------

ISTIO = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
PREVIOUS = {"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {
    "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}


def test_retry_policy() -> None:
    compiled = action(retry_policy={
        "retry_on": ISTIO, "num_retries": 2, "per_try_timeout": "1s", "retry_host_predicate": [PREVIOUS],
        "host_selection_retry_max_attempts": "5", "retriable_status_codes": [503, 429]}).retry_policy
    assert compiled == RetryPolicy(
        frozenset(ISTIO.split(",")), 2, 1.0, 0.0, frozenset((503, 429)), True, 5)
    assert action(retry_policy={}).retry_policy == RetryPolicy(frozenset())


@pytest.mark.parametrize(("back_off", "intervals"), [
    ({"base_interval": "1s"}, (1.0, 10.0)), ({"base_interval": "0.1s", "max_interval": "0.2s"}, (0.1, 0.2)),
    ({"base_interval": "0.0001s"}, (0.001, 0.01)),
])
def test_back_off(back_off: Json, intervals: tuple[float, float]) -> None:
    compiled = action(retry_policy={"retry_on": "5xx", "retry_back_off": back_off}).retry_policy
    assert compiled is not None and (compiled.base_interval, compiled.max_interval) == pytest.approx(intervals)


def test_unknown_tokens_are_left_out_with_a_warning() -> None:
    case = Case()
    case.route["retry_policy"] = {"retry_on": "5xx, foo,503"}
    loaded = case.load()
    assert loaded.warnings == [f"{ROUTE}.retry_policy.retry_on: Unknown retry_on policy token(s) [503, foo] in "
                               "retry_on config '5xx, foo,503'. These tokens will be silently ignored."]
    compiled = table_of(case).virtual_hosts[0].routes[0].action
    assert isinstance(compiled, RouteAction) and compiled.retry_policy == RetryPolicy(frozenset(("5xx",)))


def test_the_virtual_hosts_policy_is_for_routes_without_one() -> None:
    case = Case()
    case.host["retry_policy"] = {"retry_on": "5xx"}
    case.host["routes"] = [
        {"match": {"prefix": "/a"}, "route": {"cluster": "c1"}},
        {"match": {"prefix": "/b"}, "route": {"cluster": "c1", "retry_policy": {"retry_on": "reset"}}},
        {"match": {"prefix": "/c"}, "redirect": {}}]
    first, second, third = (route.action for route in table_of(case).virtual_hosts[0].routes)
    assert isinstance(first, RouteAction) and first.retry_policy == RetryPolicy(frozenset(("5xx",)))
    assert isinstance(second, RouteAction) and second.retry_policy == RetryPolicy(frozenset(("reset",)))
    assert third == RedirectAction()


@pytest.mark.parametrize(("fields", "path", "message"), [
    ({"retry_back_off": {}}, "retry_back_off.base_interval", "value is required"),
    ({"retry_back_off": {"base_interval": "1s", "max_interval": "0.5s"}}, "retry_back_off.max_interval",
     "retry_policy.max_interval must greater than or equal to the base_interval"),
    ({"retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts"}]},
     "retry_host_predicate[0].typed_config", "a type URL (@type) is required; supported retry host predicates: "),
    ({"retry_priority": {"name": "x"}}, "retry_priority", "is not supported yet"),
    ({"rate_limited_retry_back_off": {"reset_headers": [{"name": "x"}]}}, "rate_limited_retry_back_off",
     "is not supported yet"),
])
def test_bad_retry_policies(fields: Json, path: str, message: str) -> None:
    found = errors(route={"cluster": "c1", "retry_policy": fields})
    assert message in found[f"{ROUTE}.retry_policy.{path}"]


# --- header mutations -------------------------------------------------------------------------------------------------


def header(key: str, value: str = "v", **fields: Any) -> Json:
    return {"header": {"key": key, "value": value}, **fields}


def test_mutations_of_every_level() -> None:
    case = Case()
    for level in (case.table, case.host, case.entry):
        level |= {"request_headers_to_add": [header("X-A", "%START_TIME%")], "request_headers_to_remove": ["X-B"],
                  "response_headers_to_add": [header("c", "", keep_empty_value=True)],
                  "response_headers_to_remove": ["d"]}
    expected = HeaderMutations((HeaderToAdd(b"x-a", "%START_TIME%"),), (b"x-b",),
                               (HeaderToAdd(b"c", "", keep_empty_value=True),), (b"d",))
    case.table["most_specific_header_mutations_wins"] = True
    table = table_of(case)
    host = table.virtual_hosts[0]
    assert table.mutations == host.mutations == host.routes[0].mutations == expected
    assert table.most_specific_header_mutations_wins is True


@pytest.mark.parametrize(("fields", "expected"), [
    ({}, model.APPEND_IF_EXISTS_OR_ADD), ({"append_action": "ADD_IF_ABSENT"}, model.ADD_IF_ABSENT),
    ({"append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}, model.OVERWRITE_IF_EXISTS_OR_ADD),
    ({"append_action": "OVERWRITE_IF_EXISTS"}, model.OVERWRITE_IF_EXISTS),
    ({"append": False}, model.OVERWRITE_IF_EXISTS_OR_ADD), ({"append": True}, model.APPEND_IF_EXISTS_OR_ADD),
])
def test_append_actions(fields: Json, expected: int) -> None:
    assert entry(request_headers_to_add=[header("a", **fields)]).mutations.request_add[0].action == expected


@pytest.mark.parametrize(("option", "path", "message"), [
    (header(":path"), "header.key", ":-prefixed or host headers may not be modified"),
    (header("Host"), "header.key", ":-prefixed or host headers may not be modified"),
    (header(""), "header.key", "at least 1 characters"), (header("a b"), "header.key", "is not a header name"),
    (header("a", "x\r\ny: z"), "header.value", "does not match regex pattern"),
    (header("a", "%NOTHING%"), "header.value", "NOTHING"), ({}, "header", "value is required"),
    (header("a", append=False, append_action="ADD_IF_ABSENT"), "append", "Both append and append_action are set"),
    ({"header": {"key": "a", "raw_value": "eA=="}}, "header.raw_value", "is not supported yet"),
])
def test_bad_additions(option: Json, path: str, message: str) -> None:
    found = errors(request_headers_to_add=[option])
    assert message in found[f"{ENTRY}.request_headers_to_add[0].{path}"]


def test_bad_removals() -> None:
    found = errors(request_headers_to_remove=["a", ":path"], response_headers_to_remove=["HOST"])
    assert found == {
        f"{ENTRY}.request_headers_to_remove[1]": ":-prefixed or host headers may not be removed",
        f"{ENTRY}.response_headers_to_remove[0]": ":-prefixed or host headers may not be removed"}


# --- virtual hosts and tables -----------------------------------------------------------------------------------------


def test_virtual_host() -> None:
    case = Case()
    case.host |= {"domains": ["A.com", "*.b"], "include_request_attempt_count": True,
                  "include_attempt_count_in_response": True, "require_tls": "EXTERNAL_ONLY"}
    case.table |= {"ignore_port_in_host_matching": True}
    table = table_of(case)
    host = table.virtual_hosts[0]
    assert (table.name, table.ignore_port_in_host_matching) == ("r", True)
    assert (host.name, host.domains, host.require_tls) == ("v", (b"a.com", b"*.b"), "EXTERNAL_ONLY")
    assert host.include_request_attempt_count and host.include_attempt_count_in_response


@pytest.mark.parametrize(("domains", "message"), [
    (["*", "*"], "Only a single wildcard domain is permitted in route r"),
    (["a.com", "A.com"], "Only unique values for domains are permitted. Duplicate entry of domain a.com in route r"),
])
def test_duplicate_domains(domains: list[str], message: str) -> None:
    case = Case()
    case.host["domains"] = domains
    assert case.errors() == {f"{TABLE}.virtual_hosts": message}


def test_unknown_clusters_may_be_allowed() -> None:
    case = Case()
    case.route["cluster"] = "x"
    case.table["validate_clusters"] = False
    case.load()


@pytest.mark.parametrize(("fields", "path", "message"), [
    ({"domains": []}, "domains", "at least 1 item(s)"), ({"name": ""}, "name", "at least 1 characters"),
    ({"virtual_clusters": [{"name": "x"}]}, "virtual_clusters", "is not supported yet"),
    ({"per_request_buffer_limit_bytes": 5}, "per_request_buffer_limit_bytes", "is not supported yet"),
    ({"typed_per_filter_config": {"x": {"@type": f"{EXTENSIONS}.filters.http.cors.v3.CorsPolicy"}}},
     "typed_per_filter_config[x]", "CorsPolicy is not supported yet"),
])
def test_bad_virtual_hosts(fields: Json, path: str, message: str) -> None:
    case = Case()
    case.host |= fields
    assert message in case.errors()[f"{HOST}.{path}"]
