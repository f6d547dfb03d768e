"""The static listeners: readiness, the proxy's statistics, and both over mTLS where they are asked for."""

from collections.abc import Sequence
from typing import Any

from agent.bootstrap.facts import TYPES, Facts
from agent.bootstrap.tls import server_socket
from agent.errors import ConfigError

Json = Any

_HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_FILTERS = "envoy.extensions.filters"
_COMPRESSION = "envoy.extensions.compression"
_ROUTER = {
    "name": "envoy.filters.http.router",
    "typed_config": {"@type": f"{TYPES}{_FILTERS}.http.router.v3.Router"},
}
_STATS, _MERGED, _READY = "/stats/prometheus", "/metrics", "/healthz/ready"
_CONTENT_TYPES = (
    "text/plain", "application/vnd.google.protobuf", "application/openmetrics-text", "application/openmetrics-protobuf"
)  # fmt: skip


def _compressor(name: str, message: str) -> dict[str, Json]:
    return {
        "name": f"envoy.filters.http.compressor.{name}",
        "typed_config": {
            "@type": f"{TYPES}{_FILTERS}.http.compressor.v3.Compressor",
            "compressor_library": {
                "name": f"stats_{name}",
                "typed_config": {"@type": f"{TYPES}{_COMPRESSION}.{name}.compressor.v3.{message}"},
            },
            "response_direction_config": {"common_config": {"content_type": list(_CONTENT_TYPES)}},
        },
    }


def _http(stat_prefix: str, routes: Sequence[tuple[str, str]], filters: Sequence[Json] = ()) -> dict[str, Json]:
    """A connection manager with (path prefix, cluster) as its routes."""
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": f"{TYPES}{_HCM}",
            "codec_type": "AUTO",
            "stat_prefix": stat_prefix,
            "route_config": {
                "virtual_hosts": [
                    {
                        "name": "backend",
                        "domains": ["*"],
                        "routes": [
                            {"match": {"prefix": prefix}, "route": {"cluster": cluster}} for prefix, cluster in routes
                        ],
                    }
                ]
            },
            "http_filters": [*filters, _ROUTER],
        },
    }


def _address(address: str, port: int) -> dict[str, Json]:
    return {"socket_address": {"protocol": "TCP", "address": address, "port_value": port}}


def _listener(address: str, port: int, chain: dict[str, Json], **rest: Json) -> dict[str, Json]:
    """Exempt from every limit on connections: whoever asks for health must get an answer under overload too."""
    return {
        "name": f"{address}_{port}",
        "address": _address(address, port),
        "ignore_global_conn_limit": True,
        "bypass_overload_manager": True,
        **rest,
        "filter_chains": [chain],
    }


def _also_on(address: str | None, port: int) -> dict[str, Json]:
    return {} if address is None else {"additionalAddresses": [{"address": _address(address, port)}]}


def _secure(facts: Facts, port: int, manager: dict[str, Json]) -> dict[str, Json]:
    inspector = {
        "name": "envoy.filters.listener.tls_inspector",
        "typed_config": {"@type": f"{TYPES}{_FILTERS}.listener.tls_inspector.v3.TlsInspector"},
    }
    chain = {
        "filter_chain_match": {"transport_protocol": "tls"},
        "transport_socket": server_socket(),
        "filters": [manager],
    }
    return _listener(facts.family.wildcard, port, chain, listener_filters=[inspector])


def _check_ports(facts: Facts) -> None:
    """Raises ConfigError when two listeners of the pod would have one port."""
    config, ports = facts.settings.config, facts.settings.ports
    taken: dict[int, str] = {}
    for name, port in (
        ("ProxyConfig statusPort", config.status_port),
        ("ProxyConfig proxyAdminPort", config.proxy_admin_port),
        ("ENVOY_STATUS_PORT", ports.status if ports.status != config.status_port else 0),
        ("ENVOY_PROMETHEUS_PORT", ports.prometheus),
        ("ENVOY_SECURE_METRICS_PORT", ports.secure_metrics),
        ("ENVOY_SECURE_MERGED_METRICS_PORT", ports.secure_merged_metrics),
    ):
        if port and port in taken:
            raise ConfigError(f"{name} and {taken[port]} are both {port}: expected a port for each")
        taken[port] = name


def listeners(facts: Facts) -> list[dict[str, Json]]:
    """Raises ConfigError when two have one port.

    Pods of Istio 1.6 have the agent itself on 15021: then there is no listener that would lead there.
    """
    _check_ports(facts)
    family, ports = facts.family, facts.settings.ports
    compressors = [_compressor("brotli", "Brotli"), _compressor("zstd", "Zstd"), _compressor("gzip", "Gzip")]
    filters = compressors if facts.proxy_config.get("statsCompression", True) else []
    # The real program looks for this in proxyMetadata only, and its status server in the environment only.
    local = facts.settings.status.metrics_localhost_only
    made = [
        _listener(
            family.localhost if local else family.wildcard,
            ports.prometheus,
            {"filters": [_http("stats", [(_STATS, "prometheus_stats")], filters)]},
            **_also_on(family.other_localhost if local else family.other_wildcard, ports.prometheus),
        )
    ]
    if ports.secure_metrics:
        made.append(_secure(facts, ports.secure_metrics, _http("secure_stats", [(_STATS, "prometheus_stats")])))
    if ports.secure_merged_metrics:
        routes = [(_STATS, "agent"), (_MERGED, "agent")]
        made.append(_secure(facts, ports.secure_merged_metrics, _http("secure_merged_stats", routes)))
    if ports.status == facts.settings.config.status_port:
        return made
    rest = _also_on(family.other_wildcard, ports.status)
    if ports.status_proxy_protocol:
        rest["listener_filters"] = [
            {
                "name": "envoy.listener.proxy_protocol",
                "typed_config": {
                    "@type": f"{TYPES}{_FILTERS}.listener.proxy_protocol.v3.ProxyProtocol",
                    "allow_requests_without_proxy_protocol": True,
                },
            }
        ]
    chain = {"filters": [_http("agent", [(_READY, "agent")])]}
    return [*made, _listener(family.wildcard, ports.status, chain, **rest)]
