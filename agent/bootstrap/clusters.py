"""The static clusters, and the tracer that sends to one of them."""

from collections.abc import Mapping
from typing import Any

from agent.bootstrap.facts import SDS_DIRECTORY, TYPES, Facts
from agent.bootstrap.tls import transport_socket
from agent.documents import DocumentError, parse_mapping
from agent.durations import format_seconds, parse_proto_duration
from agent.errors import ConfigError

Json = Any

FILES_SDS_SOCKET = "./var/run/secrets/credential-uds/files-socket"
LIGHTSTEP_TOKEN = "lightstep_access_token.txt"
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_UNLIMITED = 100_000  # streams on the one connection to the agent are as many as istiod has subscriptions for

# Tracer -> its cluster. Others have none.
_TRACER_CLUSTERS: Mapping[str, str] = {"zipkin": "zipkin", "lightstep": "lightstep", "datadog": "datadog_agent"}
_ZIPKIN_REFRESH = "30s"


def _http2() -> dict[str, Json]:
    return {
        "typed_extension_protocol_options": {
            _HTTP_OPTIONS: {
                "@type": f"{TYPES}{_HTTP_OPTIONS}",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        }
    }


def _cluster(name: str, kind: str, address: Mapping[str, Json], **rest: Json) -> dict[str, Json]:
    """`alt_stat_name` ends with the `;` by which the tag cluster_name finds its end."""
    endpoint = {"endpoint": {"address": dict(address)}}
    return {
        "name": name,
        "alt_stat_name": f"{name};",
        "type": kind,
        "connect_timeout": "1s",
        "lb_policy": "ROUND_ROBIN",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        **rest,
    }


def _local(facts: Facts, name: str, port: int) -> dict[str, Json]:
    address = {"protocol": "TCP", "address": facts.family.localhost, "port_value": port}
    return _cluster(name, "STATIC", {"socket_address": address}, connect_timeout="0.250s")


def _pipe(name: str, path: str, **rest: Json) -> dict[str, Json]:
    return _cluster(name, "STATIC", {"pipe": {"path": path}}, **_http2(), **rest)


def _by_name(facts: Facts, name: str, address: str, where: str, **rest: Json) -> dict[str, Json]:
    """A cluster of a host name. The flag --dnsRefreshRate of old pods beats the rate that is built in."""
    refresh = facts.settings.options.dns_refresh_rate_s
    if refresh is not None:
        rest["dns_refresh_rate"] = format_seconds(refresh)
    return _cluster(
        name,
        "STRICT_DNS",
        {"socket_address": facts.address(address, where)},
        respect_dns_ttl=True,
        dns_lookup_family=facts.family.dns_lookup,
        **rest,
    )


def clusters(facts: Facts) -> list[dict[str, Json]]:
    """Raises ConfigError for an address or a tracer that cannot be."""
    config = facts.settings.config
    made = [
        _local(facts, "prometheus_stats", config.proxy_admin_port),
        _local(facts, "agent", config.status_port),
        _pipe("sds-grpc", f"{SDS_DIRECTORY}/{facts.settings.security.socket_file}"),
    ]
    if facts.sockets.external_sds:
        made.append(_pipe("sds-files-grpc", FILES_SDS_SOCKET))
    limits = {"max_connections": _UNLIMITED, "max_pending_requests": _UNLIMITED, "max_requests": _UNLIMITED}
    made.append(
        _pipe(
            "xds-grpc",
            f"{config.config_path}/XDS",
            circuit_breakers={"thresholds": [{"priority": level, **limits} for level in ("DEFAULT", "HIGH")]},
            upstream_connection_options={"tcp_keepalive": {"keepalive_time": 300}},
            max_requests_per_connection=1,
        )
    )
    made += _tracer_cluster(facts)
    for field, name in (
        ("envoyMetricsService", "envoy_metrics_service"),
        ("envoyAccessLogService", "envoy_accesslog_service"),
    ):
        made += _remote_service(facts, field, name)
    if facts.settings.launch.self_discovery:
        made.append(_LOCAL_CLUSTER)
    return made


def _remote_service(facts: Facts, field: str, name: str) -> list[dict[str, Json]]:
    service: Mapping[str, Json] = facts.proxy_config.get(field, {})
    if not service.get("address"):
        return []
    rest = _http2()
    socket = transport_socket(facts, service.get("tlsSettings"), name, http2=True)
    if socket is not None:
        rest["transport_socket"] = socket
    if "tcpKeepalive" in service:
        rest["upstream_connection_options"] = {"tcp_keepalive": _keepalive(service["tcpKeepalive"])}
    return [_by_name(facts, name, service["address"], f"ProxyConfig {field}.address", **rest)]


def _keepalive(settings: Mapping[str, Json]) -> dict[str, int]:
    made: dict[str, int] = {}
    if settings.get("probes"):
        made["keepalive_probes"] = settings["probes"]
    for field, name in (("time", "keepalive_time"), ("interval", "keepalive_interval")):
        seconds = int(parse_proto_duration(settings.get(field, "0s")))
        if seconds:
            made[name] = seconds
    return made


# --- tracing ------------------------------------------------------------------------------------------------------


def tracer(facts: Facts) -> str:
    """The tracer that ProxyConfig chooses; "" when it chooses none."""
    tracing: Mapping[str, Json] = facts.proxy_config.get("tracing", {})
    return next((name for name in _TRACER_CLUSTERS if name in tracing), "")


def _tracer_cluster(facts: Facts) -> list[dict[str, Json]]:
    tracing: Mapping[str, Json] = facts.proxy_config.get("tracing", {})
    if "stackdriver" in tracing:
        raise ConfigError("ProxyConfig tracing.stackdriver: the proxy has no such tracer: expected another one")
    if "openCensusAgent" in tracing:
        facts.warnings.append("ProxyConfig tracing.openCensusAgent: the proxy has no such tracer any more: no spans")
    name = tracer(facts)
    if not name:
        return []
    rest: dict[str, Json] = {"dns_refresh_rate": _ZIPKIN_REFRESH} if name == "zipkin" else {}
    if name == "lightstep":
        rest.update(_http2())
    socket = transport_socket(facts, tracing.get("tlsSettings"), "tracer", http2=name == "lightstep")
    if socket is not None:
        rest["transport_socket"] = socket
    where = f"ProxyConfig tracing.{name}.address"
    return [_by_name(facts, _TRACER_CLUSTERS[name], tracing[name].get("address", ""), where, **rest)]


def tracing(facts: Facts, service_name: str) -> dict[str, Json] | None:
    """The `tracing` of the bootstrap; None without a tracer."""
    configs: Mapping[str, tuple[str, dict[str, Json]]] = {
        "zipkin": (
            "ZipkinConfig",
            {
                "collector_cluster": "zipkin",
                "collector_endpoint": "/api/v2/spans",
                "collector_endpoint_version": "HTTP_JSON",
                "trace_id_128bit": True,
                "shared_span_context": False,
            },
        ),
        "lightstep": (
            "LightstepConfig",
            {
                "collector_cluster": "lightstep",
                "access_token_file": f"{facts.settings.config.config_path}/{LIGHTSTEP_TOKEN}",
            },
        ),
        "datadog": ("DatadogConfig", {"collector_cluster": "datadog_agent", "service_name": service_name}),
    }
    name = tracer(facts)
    if not name:
        return None
    message, config = configs[name]
    typed = {"@type": f"{TYPES}envoy.config.trace.v3.{message}", **config}
    return {"http": {"name": f"envoy.tracers.{name}", "typed_config": typed}}


# --- the cluster manager ------------------------------------------------------------------------------------------

_LEAST_REQUEST = "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest"
_LOCAL_CLUSTER: dict[str, Json] = {
    "name": "local_cluster",
    "alt_stat_name": "local_cluster;",
    "type": "EDS",
    "connect_timeout": "1s",
    "load_balancing_policy": {
        "policies": [
            {
                "typed_extension_config": {
                    "name": "envoy.load_balancing_policies.least_request",
                    "typed_config": {
                        "@type": f"{TYPES}{_LEAST_REQUEST}",
                        "locality_lb_config": {"zone_aware_lb_config": {"min_cluster_size": "1"}},
                    },
                }
            }
        ]
    },
    "eds_cluster_config": {
        "eds_config": {"ads": {}, "resource_api_version": "V3"},
        "service_name": "local_cluster",
    },
}


def cluster_manager(facts: Facts) -> dict[str, Json] | None:
    """None when nothing needs one. Raises ConfigError for a LOAD_STATS_CONFIG_JSON that is not JSON."""
    made: dict[str, Json] = {}
    if facts.settings.launch.self_discovery:
        made["local_cluster_name"] = "local_cluster"
    if facts.settings.options.outlier_log_path:
        made["outlier_detection"] = {"event_log_path": facts.settings.options.outlier_log_path}
    load_stats = facts.raw_metadata.get("LOAD_STATS_CONFIG_JSON")
    if isinstance(load_stats, str):
        try:
            made["load_stats_config"] = parse_mapping(load_stats)
        except DocumentError as error:
            raise ConfigError(f"node metadata LOAD_STATS_CONFIG_JSON: {error}") from None
    return {**made, "enable_deferred_cluster_creation": True} if made else None
