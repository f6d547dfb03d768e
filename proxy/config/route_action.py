"""What a route does: config.route.v3.RouteAction, RedirectAction and DirectResponseAction."""

from __future__ import annotations

from functools import partial

from proxy.config.core import data_source, header_mutations, header_name
from proxy.config.http_filters import per_route_settings
from proxy.config.matchers import regex_rewrite
from proxy.config.model import DirectResponse, RedirectAction, RouteAction, WeightedCluster
from proxy.config.reader import Reader, Skip
from proxy.config.retry import retry_policy

MAX_DIRECT_RESPONSE_BYTES = 4096
"""Default of max_direct_response_body_size_bytes."""

_NOT_FOUND_CODES = {"SERVICE_UNAVAILABLE": 503, "NOT_FOUND": 404, "INTERNAL_SERVER_ERROR": 500}
_REDIRECT_CODES = {"MOVED_PERMANENTLY": 301, "FOUND": 302, "SEE_OTHER": 303, "TEMPORARY_REDIRECT": 307,
                   "PERMANENT_REDIRECT": 308}
_CLUSTERS = ("cluster", "cluster_header", "weighted_clusters")


def _weighted_cluster(prefix: str, reader: Reader) -> WeightedCluster:
    name = reader.string("name")
    if not name and not reader.has("cluster_header"):
        reader.error("name", "At least one of name or cluster_header need to be specified")
    weight = reader.limit("weight")
    if weight is None:
        reader.error("weight", "value is required")
        raise Skip
    if prefix:
        weight = int(reader.scope.runtime_number(f"{prefix}.{name}", weight))
    _check_cluster(reader, "name", name, "weighted cluster")
    per_route_settings(reader)
    return WeightedCluster(name, weight, header_mutations(reader), reader.octets("host_rewrite_literal"))


def _weighted_clusters(reader: Reader) -> tuple[tuple[WeightedCluster, ...], bytes]:
    prefix = reader.string("runtime_key_prefix")
    clusters = reader.each("clusters", partial(_weighted_cluster, prefix))
    if clusters and sum(cluster.weight for cluster in clusters) <= 0:
        reader.error("clusters", "Sum of weights in the weighted_cluster must be greater than 0.")
    header = header_name(reader, "header_name", reader.string("header_name"))
    return clusters, header


def _check_cluster(reader: Reader, field: str, name: str, what: str) -> None:
    known = reader.scope.clusters
    if known is not None and name and name not in known:
        reader.error(field, f"route: unknown {what} {name!r}")


def upgrade_config(reader: Reader) -> tuple[bytes, bool]:
    """UpgradeConfig of a route or of the connection manager: type in lower case, and whether it is allowed."""
    kind = reader.string("upgrade_type")
    if kind.upper() in ("CONNECT", "CONNECT-UDP"):
        reader.error("upgrade_type", f"{kind} is not supported yet; supported: upgrades of HTTP/1.1 such as websocket")
    return kind.lower().encode(), reader.boolean("enabled", True)


def _max_stream_duration(reader: Reader) -> tuple[bool, float | None, float | None, float]:
    """RouteAction.MaxStreamDuration: present; max_stream_duration (0.0 switches the connection manager's limit off);
    grpc_timeout_header_max and grpc_timeout_header_offset.
    """
    return (True, reader.optional_seconds("max_stream_duration"), reader.optional_seconds("grpc_timeout_header_max"),
            reader.seconds("grpc_timeout_header_offset"))


def route_action(reader: Reader) -> RouteAction:
    """config.route.v3.RouteAction."""
    kind = reader.chosen("cluster_specifier")
    if kind is not None and kind not in _CLUSTERS:
        reader.take(kind)
        reader.error(kind, f"is not supported yet; supported: {', '.join(_CLUSTERS)}")
    cluster = reader.string("cluster")
    _check_cluster(reader, "cluster", cluster, "cluster")
    weighted, weighted_header = reader.sub("weighted_clusters", _weighted_clusters) or ((), b"")
    prefix_rewrite = reader.octets("prefix_rewrite")
    regex_and_text = reader.sub("regex_rewrite", regex_rewrite)
    if prefix_rewrite and regex_and_text is not None:
        reader.error("regex_rewrite", "Specify only one of prefix_rewrite, regex_rewrite or path_rewrite_policy")
    durations = reader.sub("max_stream_duration", _max_stream_duration) or (False, None, None, 0.0)
    upgrades = reader.each("upgrade_configs", upgrade_config)
    for upgrade in {kind for kind, _ in upgrades if sum(other == kind for other, _ in upgrades) > 1}:
        reader.error("upgrade_configs", f"Duplicate upgrade {upgrade.decode()}")
    return RouteAction(
        cluster=cluster,
        cluster_header=header_name(reader, "cluster_header", reader.string("cluster_header")),
        weighted_clusters=weighted,
        weighted_header_name=weighted_header,
        cluster_not_found_response_code=_NOT_FOUND_CODES[reader.enum("cluster_not_found_response_code")],
        timeout=reader.seconds("timeout", 15.0),
        idle_timeout=reader.optional_seconds("idle_timeout"),
        new_timeouts=durations[0],
        max_stream_duration=durations[1],
        grpc_timeout_header_max=durations[2],
        grpc_timeout_header_offset=durations[3],
        max_grpc_timeout=reader.optional_seconds("max_grpc_timeout"),
        grpc_timeout_offset=reader.seconds("grpc_timeout_offset"),
        prefix_rewrite=prefix_rewrite,
        regex_rewrite=regex_and_text,
        host_rewrite_literal=reader.octets("host_rewrite_literal"),
        host_rewrite_header=header_name(reader, "host_rewrite_header", reader.string("host_rewrite_header")),
        auto_host_rewrite=reader.boolean("auto_host_rewrite"),
        append_x_forwarded_host=reader.boolean("append_x_forwarded_host"),
        retry_policy=reader.sub("retry_policy", retry_policy),
        upgrade_types=upgrades,
        high_priority=reader.enum("priority") == "HIGH",
    )


def redirect_action(reader: Reader) -> RedirectAction:
    """config.route.v3.RedirectAction."""
    return RedirectAction(
        response_code=_REDIRECT_CODES[reader.enum("response_code")],
        https_redirect=reader.boolean("https_redirect"),
        scheme_redirect=reader.octets("scheme_redirect"),
        host_redirect=reader.octets("host_redirect"),
        port_redirect=reader.integer("port_redirect"),
        path_redirect=reader.octets("path_redirect"),
        prefix_rewrite=reader.octets("prefix_rewrite"),
        regex_rewrite=reader.sub("regex_rewrite", regex_rewrite),
        strip_query=reader.boolean("strip_query"),
    )


def direct_response(max_body: int, reader: Reader) -> DirectResponse:
    """config.route.v3.DirectResponseAction with a body of at most ``max_body`` bytes."""
    body = reader.sub("body", data_source) or b""
    if len(body) > max_body:
        reader.error("body", f"response body size is {len(body)} bytes; maximum is {max_body}")
    return DirectResponse(reader.integer("status"), body)
