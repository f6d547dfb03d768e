"""`/clusters` and `/listeners`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from proxy.admin import patterns
from proxy.admin.console import Console
from proxy.admin.messages import Request, Response, as_json, bad_request
from proxy.config.model import Listener, SocketAddress

Status = Mapping[str, Any]
"""One cluster: name, observability_name, thresholds (of the default and the high priority), hosts with their stats."""

_LIMITS = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
_COUNTERS = ("cx_connect_fail", "cx_total", "rq_error", "rq_success", "rq_timeout", "rq_total")
_GAUGES = ("cx_active", "rq_active", "rq_pending_active")
_NOT_CONFIGURABLE = (("canary", "false"), ("priority", "0"), ("success_rate", "-1"),
                     ("local_origin_success_rate", "-1"))
"""Every host is healthy, of priority 0, no canary and not rated: configuration that would change it is refused."""


async def handle_clusters(console: Console, request: Request) -> Response:
    """Clusters with their hosts and the hosts' statistics."""
    try:
        matches = patterns.search(request.get("filter") or "")
    except patterns.PatternError as error:
        return bad_request(f"Invalid re2 regex: {error}")
    shown = [status for status in await console.server.clusters() if matches(status["name"])]
    if request.get("format") == "json":
        return as_json(clusters_document(shown))
    return Response(200, clusters_text(shown))


def clusters_text(statuses: Iterable[Status]) -> str:
    """``<cluster>::<key>::<value>`` and ``<cluster>::<host>::<key>::<value>`` lines."""
    lines = []
    for status in statuses:
        name = status["name"]
        lines.append(f"{name}::observability_name::{status['observability_name']}")
        for priority, limits in zip(("default", "high"), status["thresholds"], strict=True):
            lines += [f"{name}::{priority}_priority::{limit}::{limits[limit]}" for limit in _LIMITS]
        lines.append(f"{name}::added_via_api::false")
        for host in status["hosts"]:
            prefix = f"{name}::{host['address']}"
            stats = host["stats"]
            lines += [f"{prefix}::{stat}::{stats[stat]}" for stat in sorted(_COUNTERS + _GAUGES)]
            lines += [f"{prefix}::hostname::{host['hostname']}", f"{prefix}::health_flags::healthy"]
            lines += [f"{prefix}::{key}::{host[key]}" for key in ("weight", "region", "zone", "sub_zone")]
            lines += [f"{prefix}::{key}::{value}" for key, value in _NOT_CONFIGURABLE]
    return "".join(line + "\n" for line in lines)


def clusters_document(statuses: Iterable[Status]) -> dict[str, Any]:
    """admin.v3.Clusters as JSON, default values omitted."""
    return {"cluster_statuses": [_cluster(status) for status in statuses]}


def _cluster(status: Status) -> dict[str, Any]:
    document: dict[str, Any] = {"name": status["name"]}
    if status["hosts"]:
        document["host_statuses"] = [_host(host) for host in status["hosts"]]
    default, high = status["thresholds"]
    document["circuit_breakers"] = {"thresholds": [{limit: default[limit] for limit in _LIMITS},
                                                   {"priority": "HIGH", **{limit: high[limit] for limit in _LIMITS}}]}
    document["observability_name"] = status["observability_name"]
    return document


def _host(host: Status) -> dict[str, Any]:
    stats = host["stats"]
    document: dict[str, Any] = {
        "address": address_document(host["address"]),
        "stats": [_stat(name, stats[name]) for name in _COUNTERS]
        + [{"type": "GAUGE", **_stat(name, stats[name])} for name in _GAUGES],
        "health_status": {"eds_health_status": "HEALTHY"},
        "weight": host["weight"],
    }
    if host["hostname"]:
        document["hostname"] = host["hostname"]
    document["locality"] = {key: host[key] for key in ("region", "zone", "sub_zone") if host[key]}
    return document


def _stat(name: str, value: int) -> dict[str, str]:
    # admin.v3.SimpleMetric.value is a uint64: a string in proto JSON.
    return {"name": name, "value": str(value)} if value else {"name": name}


def address_document(text: str) -> dict[str, Any]:
    """``ip:port`` or ``[ip]:port`` as a config.core.v3.Address."""
    host, _, port = text.rpartition(":")
    return {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}


async def handle_listeners(console: Console, request: Request) -> Response:
    """Listeners with their addresses, those that are drained or not bound to a port included."""
    listeners = console.server.loaded.bootstrap.listeners
    if request.get("format") == "json":
        return as_json(listeners_document(listeners))
    return Response(200, listeners_text(listeners))


def listeners_text(listeners: Iterable[Listener]) -> str:
    """``<name>::<ip>:<port>``, a line an address."""
    return "".join(f"{listener.name}::{address.text}\n" for listener in listeners for address in listener.addresses)


def listeners_document(listeners: Iterable[Listener]) -> dict[str, Any]:
    """admin.v3.Listeners as JSON."""
    return {"listener_statuses": [_listener(listener) for listener in listeners]}


def _listener(listener: Listener) -> dict[str, Any]:
    first, *others = map(_address, listener.addresses)
    document: dict[str, Any] = {"name": listener.name, "local_address": first}
    if others:
        document["additional_local_addresses"] = others
    return document


def _address(address: SocketAddress) -> dict[str, Any]:
    return address_document(address.text)
