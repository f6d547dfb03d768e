"""Configuration files of one run: the sidecar's (for Envoy and for us, byte for byte the same), HAProxy's, nginx's."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]

TEMPLATE = Path(__file__).resolve().parent.parent / "examples" / "sidecar.json"
HTTP_LISTENER = "0.0.0.0_9080"
TCP_LISTENER = "10.96.0.15_6379"
HCM = "envoy.filters.network.http_connection_manager"
SERVER_NAME = "istio-envoy"
SERVED = ("outbound|9080|", "outbound|6379|")
"""Clusters of the two listeners: their endpoints become the upstream."""

BODY_1K = 1024
BODY_1M = 1024 * 1024
PATH_1K = "/1k"
PATH_1M = "/1m"
PATH_ECHO = "/echo"
ECHOED = "$http_x_request_id $http_x_forwarded_proto $http_x_envoy_attempt_count"
"""Answers with what the upstream saw of the headers that a sidecar adds, so that a run can prove they were on."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Loopback ports of one proxy."""

    http: int
    tcp: int
    admin: int


def sidecar(template: Json, ports: Ports, upstream_port: int, access_log: Path | None) -> Json:
    """The configuration of a whole sidecar, so that what it measures is reached on loopback without kernel rules.

    The HTTP and the TCP listener are bound, the endpoints of their clusters become the upstream; the listeners that
    would bind a sidecar's own ports go, and so do clusters that would ask a name server. Everything else stays.
    `access_log` is the file that every access logger writes; None takes the loggers away.
    """
    document: Json = copy.deepcopy(template)
    resources = document["static_resources"]
    bound = {HTTP_LISTENER: ports.http, TCP_LISTENER: ports.tcp}
    listeners = [li for li in resources["listeners"] if li["name"] in bound or li.get("bind_to_port") is False]
    for listener in listeners:
        if (port := bound.get(listener["name"])) is not None:
            bind(listener, port)
    resources["listeners"] = listeners
    resources["clusters"] = [cluster for cluster in resources["clusters"] if cluster.get("type") != "STRICT_DNS"]
    for endpoint in endpoints(resources["clusters"]):
        endpoint["address"] = loopback(upstream_port)
    document["admin"]["address"] = loopback(ports.admin)
    set_access_log(document, access_log)
    return document


def bind(listener: Json, port: int) -> None:
    """On loopback, with the server name that Istio sets on inbound connection managers only."""
    listener["address"] = loopback(port)
    listener.pop("bind_to_port", None)
    listener.pop("additional_addresses", None)
    for chain in listener["filter_chains"]:
        for network_filter in chain["filters"]:
            if network_filter["name"] == HCM:
                network_filter["typed_config"]["server_name"] = SERVER_NAME


def loopback(port: int) -> Json:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def endpoints(clusters: list[Json]) -> Iterator[Json]:
    """Those of the clusters that are served."""
    for cluster in clusters:
        if cluster["name"].startswith(SERVED):
            for locality in cluster["load_assignment"]["endpoints"]:
                for lb_endpoint in locality["lb_endpoints"]:
                    yield lb_endpoint["endpoint"]


def set_access_log(node: Any, path: Path | None) -> None:
    """Point every `access_log` below `node` at `path`, or remove it."""
    if isinstance(node, list):
        for item in node:
            set_access_log(item, path)
    elif isinstance(node, dict):
        if path is None:
            node.pop("access_log", None)
        for logger in node.get("access_log", ()):
            logger["typed_config"]["path"] = str(path)
        for value in node.values():
            set_access_log(value, path)


HAPROXY_LOG_FORMAT = (
    "[%tr] %{+Q}r %ST %tsc %U %B %Ta %{+Q}[var(txn.xff)] %{+Q}[var(txn.agent)] "
    "%{+Q}[var(txn.request_id)] %{+Q}[var(txn.authority)] %si:%sp %b %bi:%bp %fi:%fp %ci:%cp"
)


def haproxy(ports: Ports, upstream_port: int, access_log: bool) -> str:
    """One thread, the headers that the sidecar sets, pooled upstream connections; a peer, not an equal in features."""
    logging = f'log global\n    log-format "{HAPROXY_LOG_FORMAT}"' if access_log else ""
    return f"""\
global
    nbthread 1
    maxconn 400
    {"log stdout len 4096 format raw local0" if access_log else ""}
defaults
    timeout connect 10s
    timeout client 1h
    timeout server 1h
frontend http
    mode http
    bind 127.0.0.1:{ports.http}
    {logging}
    http-request set-header x-request-id %[uuid()]
    http-request set-header x-forwarded-proto http
    http-request set-header x-envoy-attempt-count 1
    http-request set-var(txn.xff) req.hdr(x-forwarded-for)
    http-request set-var(txn.agent) req.hdr(user-agent)
    http-request set-var(txn.request_id) req.hdr(x-request-id)
    http-request set-var(txn.authority) req.hdr(host)
    http-response set-header server {SERVER_NAME}
    default_backend http_upstream
backend http_upstream
    mode http
    http-reuse always
    server upstream 127.0.0.1:{upstream_port}
frontend tcp
    mode tcp
    bind 127.0.0.1:{ports.tcp}
    default_backend tcp_upstream
backend tcp_upstream
    mode tcp
    server upstream 127.0.0.1:{upstream_port}
"""


def nginx(prefix: Path, port: int) -> str:
    """One process without logs; a keep-alive connection is never closed because of a request count or of idleness."""
    temporary = "\n".join(
        f"    {kind}_temp_path {prefix}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""\
daemon off;
master_process off;
pid {prefix}/nginx.pid;
error_log {prefix}/nginx-error.log error;
events {{ worker_connections 8192; }}
http {{
{temporary}
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    open_file_cache max=16 inactive=1h;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        root {prefix}/www;
        location = {PATH_1K} {{ return 200 "{"x" * BODY_1K}"; }}
        location = {PATH_ECHO} {{ return 200 "{ECHOED}"; }}
    }}
}}
"""


def write_upstream_files(prefix: Path) -> None:
    """What nginx serves from disk: the large body."""
    (prefix / "www").mkdir()
    (prefix / "www" / PATH_1M.lstrip("/")).write_bytes(b"x" * BODY_1M)
