"""Every effective setting of `pilot-agent proxy`, typed, in groups. Times are seconds.

Defaults and names are those of the real program unless a field says "ours" or "ASM" (Alibaba Service Mesh).
`agent.effective.load` fills the tree; `origins` tells where each value came from.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from agent.environment import (
    boolean,
    choice,
    duration,
    exit_status,
    file_name,
    listening_port,
    natural,
    port,
    ratio,
    rsa_bits,
    text,
    variable,
)
from agent.options import ProxyOptions
from agent.proxy_config import ProxyConfig

_XDS, _CERTIFICATES, _WASM, _CLOUD = "xDS", "certificates", "Wasm", "cloud metadata"
_ECC = "ECDSA"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this proxy is."""

    pod_name: str = variable("POD_NAME", text, "", "name of the pod")
    pod_namespace: str = variable("POD_NAMESPACE", text, "", "namespace of the pod")
    instance_ip: str = variable("INSTANCE_IP", text, "", "primary address of the pod")
    service_account: str = variable("SERVICE_ACCOUNT", text, "", "service account of the pod")
    host_ip: str = variable("HOST_IP", text, "", "address of the node; stands for $(HOST_IP) in addresses")
    trust_domain: str = variable("TRUST_DOMAIN", text, "cluster.local", "SPIFFE trust domain")
    cluster_id: str = variable("ISTIO_META_CLUSTER_ID", text, "", "cluster of the pod")
    # The metadata services of clouds are not asked (agent.cloud).
    cloud_platform: str = variable(
        "CLOUD_PLATFORM", choice("", "aws", "azure", "gcp", "none", any_case=True), "", "the cloud that the pod runs in"
    )
    gcp_metadata: str = variable("GCP_METADATA", text, "", "project|number|cluster|zone of GCP")
    gcp_zone: str = variable("GCP_ZONE", text, "", "zone in GCP", pending=_CLOUD)
    gcp_quota_project: str = variable("GCP_QUOTA_PROJECT", text, "", "project that GCP calls count for")


@dataclass(frozen=True, slots=True)
class Launch:
    """How the proxy is started, and what its bootstrap says."""

    cpu_limit: int = variable("ISTIO_CPU_LIMIT", natural, 0, "cores of the container, rounded up; 0 = unknown")
    bootstrap_template: str = variable("ISTIO_BOOTSTRAP", text, "", "bootstrap template, beats every other")
    bootstrap_override: str = variable("ISTIO_BOOTSTRAP_OVERRIDE", text, "", "file merged over the bootstrap")
    disable_proxy: bool = variable("DISABLE_ENVOY", boolean, False, "proxyless: no proxy is started")
    skip_deprecated_logs: bool = variable("ENVOY_SKIP_DEPRECATED_LOGS", boolean, True, "--skip-deprecated-logs")
    core_dump: bool = variable("ISTIO_ENVOY_ENABLE_CORE_DUMP", boolean, False, "--enable-core-dump")
    delta_xds: bool = variable("ISTIO_DELTA_XDS", boolean, True, "incremental xDS in the bootstrap")
    dual_stack: bool = variable("ISTIO_DUAL_STACK", boolean, False, "listen on the other IP family too")
    # None = as ISTIO_META_ENABLE_HBONE says.
    peer_metadata_discovery: bool | None = variable(
        "PEER_METADATA_DISCOVERY", boolean, None, "peers are looked up over xDS"
    )
    self_discovery: bool = variable("ISTIO_META_ENABLE_SELF_DISCOVERY", boolean, False, "adds local_cluster")
    strip_fragment: bool = variable(
        "HTTP_STRIP_FRAGMENT_FROM_PATH_UNSAFE_IF_DISABLED", boolean, True, "strip #fragment from paths"
    )
    compliance_policy: str = variable(
        "COMPLIANCE_POLICY", choice("", "fips-140-2", "fips-140-3", "pqc"), "", "restricts TLS", pending=_CERTIFICATES
    )


@dataclass(frozen=True, slots=True)
class Drain:
    """The end of the proxy. The fixed time of a drain is `ProxyConfig.termination_drain_duration_s`."""

    exit_on_zero: bool = variable(
        "EXIT_ON_ZERO_ACTIVE_CONNECTIONS", boolean, False, "end when no connection is open, instead of after a time"
    )
    minimum_s: float = variable("MINIMUM_DRAIN_DURATION", duration, 5.0, "before connections are counted first")
    # Ours: inbound, outbound or all (ASM counts both directions, and so does Istio).
    count: str = variable(
        "EXIT_ON_ZERO_COUNT", choice("inbound", "outbound", "all"), "all", "connections that hold the exit (ours)"
    )
    # Ours: None = no limit but the pod's grace period.
    maximum_s: float | None = variable("EXIT_ON_ZERO_MAX_DURATION", duration, None, "longest drain (ours)")
    # ASM: has already been applied to terminationDrainDuration where that is unset.
    termination_fallback_s: int | None = variable(
        "TERMINATION_DRAIN_DURATION_SECONDS", natural, None, "terminationDrainDuration of old releases and ASM"
    )
    # Ours: the agent's exit status when the proxy dies unasked; 0 is what the real program does.
    crash_exit_code: int = variable("CRASH_EXIT_CODE", exit_status, 255, "exit status when the proxy died (ours)")


@dataclass(frozen=True, slots=True)
class Status:
    """The status server on `ProxyConfig.status_port`."""

    app_probers: str = variable("ISTIO_KUBE_APP_PROBERS", text, "", "probes of the application, JSON")
    prometheus_annotations: str | None = variable(
        "ISTIO_PROMETHEUS_ANNOTATIONS", text, None, "where the application has its metrics, JSON"
    )
    legacy_localhost_probes: bool = variable(
        "REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION", boolean, False, "probe localhost instead of INSTANCE_IP"
    )
    probe_keepalive: bool = variable("ENABLE_PROBE_KEEPALIVE_CONNECTIONS", boolean, False, "keep connections of probes")
    http2_probing: bool = variable("ISTIO_ENABLE_HTTP2_PROBING", boolean, True, "HTTP/2 for probes of scheme HTTPS")
    merge_proxy_stats: bool = variable("PILOT_AGENT_MERGE_ENVOY_STATS", boolean, True, "statistics of the proxy too")
    metrics_localhost_only: bool = variable(
        "METRICS_LOCALHOST_ACCESS_ONLY", boolean, False, "metrics are for loopback only"
    )


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports of the proxy's own listeners; 0 = no such listener."""

    status: int = variable("ENVOY_STATUS_PORT", listening_port, 15021, "readiness, through the proxy")
    prometheus: int = variable("ENVOY_PROMETHEUS_PORT", listening_port, 15090, "statistics of the proxy")
    secure_metrics: int = variable("ENVOY_SECURE_METRICS_PORT", port, 0, "statistics of the proxy over mTLS")
    secure_merged_metrics: int = variable("ENVOY_SECURE_MERGED_METRICS_PORT", port, 0, "merged metrics over mTLS")
    status_proxy_protocol: bool = variable(
        "ENVOY_STATUS_PORT_ENABLE_PROXY_PROTOCOL", boolean, False, "PROXY protocol on the status listener"
    )


@dataclass(frozen=True, slots=True)
class Dns:
    """DNS capture, which the proxy serves. Texts go to it as they are: it checks them."""

    capture: bool = variable("ISTIO_META_DNS_CAPTURE", boolean, False, "answer the pod's DNS")
    server: bool = variable("ISTIO_META_ENABLE_DNS_SERVER", boolean, False, "the same for every type of proxy")
    address: str = variable("DNS_PROXY_ADDR", text, "localhost:15053", "where it listens")
    forward_parallel: bool = variable("DNS_FORWARD_PARALLEL", boolean, False, "ask all resolvers at once")
    forward_timeout_s: float = variable("DNS_FORWARD_TIMEOUT", duration, 5.0, "time for one query")
    name_table: str = variable(
        "DNS_NAME_TABLE", text, "", "file of the mesh's names (default: <configPath>/name-table.json)"
    )
    resolv_conf: str = variable("DNS_RESOLV_CONF", text, "", "resolvers and search domains (default: /etc/resolv.conf)")
    cache_size: str = variable("DNS_CACHE_SIZE", text, "", "answers of resolvers that are kept, 0 = none")
    cache_max_ttl: str = variable("DNS_CACHE_MAX_TTL", text, "", "longest time that one is kept")
    serve_stale: str = variable("DNS_SERVE_STALE", text, "", "time that an old answer serves while no resolver answers")


@dataclass(frozen=True, slots=True)
class Xds:
    """Towards the control plane."""

    grpc_bootstrap: str = variable(
        "GRPC_XDS_BOOTSTRAP", text, "./etc/istio/proxy/grpc-bootstrap.json", "bootstrap of proxyless gRPC"
    )
    proxy_config_agent: bool = variable("PROXY_CONFIG_XDS_AGENT", boolean, False, "PCDS", pending=_XDS)
    keepalive_interval_s: float = variable("GRPC_KEEPALIVE_INTERVAL", duration, 30.0, "gRPC ping", pending=_XDS)
    keepalive_timeout_s: float = variable("GRPC_KEEPALIVE_TIMEOUT", duration, 10.0, "gRPC ping's answer", pending=_XDS)
    # Really spelled GPRC.
    max_streams: int = variable("ISTIO_GPRC_MAXSTREAMS", natural, 100_000, "streams a connection", pending=_XDS)
    max_message_bytes: int = variable("ISTIO_GPRC_MAXRECVMSGSIZE", natural, 4 << 20, "largest message", pending=_XDS)
    san: str = variable("ISTIOD_SAN", text, "", "name in istiod's certificate", pending=_XDS)
    auth_provider: str = variable("XDS_AUTH_PROVIDER", text, "", "stored only, as in the real program")


@dataclass(frozen=True, slots=True)
class Security:
    """Certificates and who signs them."""

    ca_address: str = variable("CA_ADDR", text, "", "CA; empty = discoveryAddress")
    ca_provider: str = variable("CA_PROVIDER", text, "Citadel", "kind of CA", pending=_CERTIFICATES)
    ca_root: str = variable("CA_ROOT_CA", text, "", "root file for the CA, or SYSTEM", pending=_CERTIFICATES)
    xds_root: str = variable("XDS_ROOT_CA", text, "", "root file for xDS, or SYSTEM", pending=_CERTIFICATES)
    pilot_cert_provider: str = variable("PILOT_CERT_PROVIDER", text, "istiod", "who signed istiod's certificate")
    provisioned_certificates: str = variable(
        "PROV_CERT", text, "", "directory of a certificate for the control plane", pending=_CERTIFICATES
    )
    file_mounted: bool = variable(
        "FILE_MOUNTED_CERTS", boolean, False, "certificates come from files", pending=_CERTIFICATES
    )
    output: str = variable("OUTPUT_CERTS", text, "", "directory for issued certificates", pending=_CERTIFICATES)
    jwt_policy: str = variable(
        "JWT_POLICY", choice("third-party-jwt", "first-party-jwt"), "third-party-jwt", "kind of service account token"
    )
    secret_ttl_s: float = variable("SECRET_TTL", duration, 86400.0, "validity asked for", pending=_CERTIFICATES)
    grace_ratio: float = variable("SECRET_GRACE_PERIOD_RATIO", ratio, 0.5, "when to renew", pending=_CERTIFICATES)
    grace_jitter: float = variable(
        "SECRET_GRACE_PERIOD_RATIO_JITTER", ratio, 0.01, "spread of it", pending=_CERTIFICATES
    )
    rsa_bits: int = variable("WORKLOAD_RSA_KEY_SIZE", rsa_bits, 2048, "bits of an RSA key", pending=_CERTIFICATES)
    ecc_algorithm: str = variable(
        "ECC_SIGNATURE_ALGORITHM", choice("", _ECC), "", "ECDSA keys instead of RSA", pending=_CERTIFICATES
    )
    ecc_curve: str = variable("ECC_CURVE", choice("P256", "P384"), "P256", "curve of ECDSA keys", pending=_CERTIFICATES)
    pkcs8: bool = variable("PKCS8_KEY", boolean, False, "keys as PKCS 8", pending=_CERTIFICATES)
    file_debounce_s: float = variable("FILE_DEBOUNCE_DURATION", duration, 0.1, "retry of files", pending=_CERTIFICATES)
    fetcher: str = variable("CREDENTIAL_FETCHER_TYPE", text, "JWT", "source of the token", pending=_CERTIFICATES)
    fetcher_provider: str = variable(
        "CREDENTIAL_IDENTITY_PROVIDER", text, "GoogleComputeEngine", "identity provider", pending=_CERTIFICATES
    )
    socket_file: str = variable("WORKLOAD_IDENTITY_SOCKET_FILE", file_name, "socket", "file name of the SDS socket")
    cert_signer: str = variable("ISTIO_META_CERT_SIGNER", text, "", "signer that the CA is to use")
    crl: bool = variable("PILOT_ENABLE_CA_CRL", boolean, True, "attach the CRL file", pending=_CERTIFICATES)
    token_audiences: str = variable("TOKEN_AUDIENCES", text, "istio-ca", "audience of the token")
    kubernetes_host: str = variable("KUBERNETES_SERVICE_HOST", text, "", "set inside a cluster")


@dataclass(frozen=True, slots=True)
class Wasm:
    """Fetching Wasm modules."""

    remote_load: bool = variable(
        "ISTIO_AGENT_ENABLE_WASM_REMOTE_LOAD_CONVERSION", boolean, True, "fetch modules", pending=_WASM
    )
    insecure_registries: str = variable("WASM_INSECURE_REGISTRIES", text, "", "without TLS", pending=_WASM)
    expiry_s: float = variable("WASM_MODULE_EXPIRY", duration, 86400.0, "unused modules are kept", pending=_WASM)
    purge_s: float = variable("WASM_PURGE_INTERVAL", duration, 3600.0, "between two purges", pending=_WASM)
    request_timeout_s: float = variable("WASM_HTTP_REQUEST_TIMEOUT", duration, 15.0, "one request", pending=_WASM)
    max_retries: int = variable("WASM_HTTP_REQUEST_MAX_RETRIES", natural, 5, "retries", pending=_WASM)


GROUPS = (Identity, Launch, Drain, Status, Ports, Dns, Xds, Security, Wasm)


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """The whole tree."""

    options: ProxyOptions  # flags, with node_type
    config: ProxyConfig  # merged from all its sources and validated
    domain: str  # DNS domain of the pod: --domain, else POD_NAMESPACE.svc.cluster.local
    addresses: tuple[str, ...]  # of the pod, INSTANCE_IP first
    labels: Mapping[str, str]  # of the pod, from the downward API
    annotations: Mapping[str, str]
    identity: Identity
    launch: Launch
    drain: Drain
    status: Status
    ports: Ports
    dns: Dns
    xds: Xds
    security: Security
    wasm: Wasm
    ca_headers: Mapping[str, str]  # CA_HEADER_<name>: extra headers of requests to the CA
    xds_headers: Mapping[str, str]  # XDS_HEADER_<name>: likewise to the control plane
    # ISTIO_META_* and ISTIO_METAJSON_* of the environment, which become node metadata as they are.
    node_variables: Mapping[str, str]
    # Source of each value by its public name: a variable, a ProxyConfig field, or a flag with its dashes.
    origins: Mapping[str, str]
    warnings: tuple[str, ...]  # for the log: what was ignored or replaced, and why
