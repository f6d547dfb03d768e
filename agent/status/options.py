"""What configures the status server."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StatusOptions:
    """Plain values; the names in brackets are where they come from."""

    port: int  # ProxyConfig statusPort
    node_type: str = "sidecar"
    instance_ip: str = ""  # INSTANCE_IP: where the application listens; "" = this host
    app_probers: str = ""  # ISTIO_KUBE_APP_PROBERS, as it is
    prometheus_annotations: str | None = None  # ISTIO_PROMETHEUS_ANNOTATIONS, as it is; None = not set
    legacy_localhost: bool = False  # REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION
    probe_keepalive: bool = False  # ENABLE_PROBE_KEEPALIVE_CONNECTIONS
    http2_probing: bool = True  # ISTIO_ENABLE_HTTP2_PROBING
    merge_proxy_stats: bool = True  # PILOT_AGENT_MERGE_ENVOY_STATS
    metrics_localhost_only: bool = False  # METRICS_LOCALHOST_ACCESS_ONLY
    prometheus_port: int = 15090  # ENVOY_PROMETHEUS_PORT
    profiling: bool = True  # --profiling
