"""The configuration files that a run generates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import config
from bench.config import Ports

PORTS = Ports(http=20001, tcp=20002, admin=20003)
TEMPLATE = json.loads(config.TEMPLATE.read_text(encoding="utf-8"))


def generated(log: Path | None) -> Any:
    return config.sidecar(TEMPLATE, PORTS, 20004, log)


def values_of(node: Any, field: str) -> list[Any]:
    found = []
    if isinstance(node, dict):
        for name, value in node.items():
            found += [value] if name == field else []
            found += values_of(value, field)
    elif isinstance(node, list):
        for item in node:
            found += values_of(item, field)
    return found


def test_only_the_ports_of_the_run_are_bound() -> None:
    listeners = generated(None)["static_resources"]["listeners"]
    bound = {li["name"]: li["address"]["socket_address"] for li in listeners if li.get("bind_to_port", True)}
    assert bound == {
        config.HTTP_LISTENER: {"address": "127.0.0.1", "port_value": PORTS.http},
        config.TCP_LISTENER: {"address": "127.0.0.1", "port_value": PORTS.tcp},
    }
    assert all("additional_addresses" not in li for li in listeners if li["name"] in bound)


def test_settings_of_the_sidecar_are_on() -> None:
    (manager,) = [
        network_filter["typed_config"]
        for listener in generated(None)["static_resources"]["listeners"]
        if listener["name"] == config.HTTP_LISTENER
        for chain in listener["filter_chains"]
        for network_filter in chain["filters"]
    ]
    assert manager["normalize_path"] is True
    assert manager["request_id_extension"]["typed_config"]["use_request_id_for_trace_sampling"] is True
    assert manager["tracing"]["random_sampling"] == {"value": 1}
    assert manager["stream_idle_timeout"] == "0s"
    assert manager["server_name"] == "istio-envoy"
    assert manager["upgrade_configs"] == [{"upgrade_type": "websocket"}]
    assert manager["proxy_100_continue"] is True
    assert manager["use_remote_address"] is False
    assert manager["path_with_escaped_slashes_action"] == "KEEP_UNCHANGED"
    assert [f["name"] for f in manager["http_filters"]] == ["envoy.filters.http.router"]
    routes = manager["route_config"]
    assert routes["ignore_port_in_host_matching"] is True
    assert [host["name"].partition(".")[0] for host in routes["virtual_hosts"]] == [
        "details", "productpage", "ratings", "reviews", "allow_any",
    ]  # fmt: skip
    assert all(host["include_request_attempt_count"] for host in routes["virtual_hosts"])


def test_endpoints_of_the_measured_clusters_are_the_upstream() -> None:
    clusters = {cluster["name"]: cluster for cluster in generated(None)["static_resources"]["clusters"]}
    for name in (
        "outbound|9080||details.bookinfo.svc.cluster.local",
        "outbound|6379||redis.bookinfo.svc.cluster.local",
    ):
        assert {a["port_value"] for a in values_of(clusters[name], "socket_address")} == {20004}
    assert all(cluster["type"] != "STRICT_DNS" for cluster in clusters.values())


def test_access_log_is_one_file_or_none(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    loggers = [logger for loggers in values_of(generated(log), "access_log") for logger in loggers]
    assert loggers
    assert {logger["typed_config"]["path"] for logger in loggers} == {str(log)}
    assert all("%REQ(X-REQUEST-ID)%" in json.dumps(logger) for logger in loggers)
    assert values_of(generated(None), "access_log") == []


def test_template_is_left_alone() -> None:
    before = json.dumps(TEMPLATE)
    generated(Path("/tmp/x"))
    assert json.dumps(TEMPLATE) == before


@pytest.mark.parametrize("access_log", [True, False])
def test_haproxy_logs_only_where_asked(access_log: bool) -> None:
    text = config.haproxy(PORTS, 20004, access_log)
    assert ("log stdout" in text) is access_log
    assert ("log-format" in text) is access_log
    assert "bind 127.0.0.1:20001" in text
    assert "bind 127.0.0.1:20002" in text


def test_nginx_keeps_everything_under_its_prefix(tmp_path: Path) -> None:
    text = config.nginx(tmp_path, 20004)
    assert f'return 200 "{"x" * 1024}";' in text
    paths = [word.rstrip(";") for word in text.split() if word.startswith("/") and word.endswith(";")]
    assert paths
    assert all(path.startswith(str(tmp_path)) for path in paths)
