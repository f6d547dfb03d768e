"""Reads everything that configures a pod and makes it one tree of settings.

Order, highest first: flag, environment variable, annotation file, PROXY_CONFIG, mesh configuration file, default. (A
variable and a field of ProxyConfig are two settings unless one is documented as the fallback of the other.)
"""

import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from agent import addresses, pod_files, proxy_config
from agent.environment import DEFAULT, Reader
from agent.errors import ConfigError
from agent.options import ProxyOptions
from agent.proxy_config import Layer, Outside, ProxyConfig
from agent.settings import AgentSettings, Dns, Drain, Identity, Launch, Ports, Security, Status, Wasm, Xds

_EXCLUDE_INTERFACES = "traffic.sidecar.istio.io/excludeInterfaces"
_CLUSTER_DOMAIN = "svc.cluster.local"
_STATSD_LOOKUP_S = 15.0
_NODE_VARIABLES = ("ISTIO_META_", "ISTIO_METAJSON_")

# Flags that are settings of their own; the rest are fields of ProxyConfig, or logging. Flag -> field of ProxyOptions.
FLAGS: Mapping[str, str] = {
    "domain": "domain",
    "meshConfig": "mesh_config",
    "serviceCluster": "service_cluster",
    "proxyLogLevel": "proxy_log_level",
    "proxyComponentLogLevel": "proxy_component_log_level",
    "concurrency": "concurrency",
    "templateFile": "template_file",
    "outlierLogPath": "outlier_log_path",
    "stsPort": "sts_port",
    "profiling": "profiling",
    "dnsRefreshRate": "dns_refresh_rate_s",
}
# The same for logging. Flag -> field of LogOptions.
LOG_FLAGS: Mapping[str, str] = {
    "log_target": "targets",
    "log_as_json": "as_json",
    "log_output_level": "output_level",
    "log_stacktrace_level": "stacktrace_level",
    "log_caller": "caller",
    "vklog": "klog_verbosity",
}


def load(
    options: ProxyOptions,
    variables: Mapping[str, str],
    *,
    interfaces: Callable[[Sequence[str]], Sequence[str]] = addresses.interface_addresses,
    resolve_host: Callable[[str, int], str] | None = None,
) -> AgentSettings:
    """The whole tree. Nothing is logged: `warnings` has what was ignored or replaced.

    `interfaces` returns the addresses of the interfaces except those named; `resolve_host` the address of a host name.
    Raises ConfigError naming the source, the field or variable, the value and what was expected.
    """
    warnings: list[str] = []
    try:
        return _load(options, variables, interfaces, resolve_host or _lookup, warnings)
    except ConfigError as error:
        error.warnings = tuple(warnings)
        raise


def _load(
    options: ProxyOptions,
    variables: Mapping[str, str],
    interfaces: Callable[[Sequence[str]], Sequence[str]],
    resolve_host: Callable[[str, int], str],
    warnings: list[str],
) -> AgentSettings:
    annotations, complaint = pod_files.read_annotations()
    labels, labels_complaint = pod_files.read_labels()
    warnings += filter(None, (complaint, labels_complaint))
    warnings += (f"unknown flag {flag} is ignored" for flag in options.unknown)

    merged = proxy_config.merge(_layers(options, variables.get("PROXY_CONFIG", ""), annotations, warnings))
    reader = Reader(variables, merged.proxy_metadata())
    identity, launch, drain = reader.fill(Identity), reader.fill(Launch), reader.fill(Drain)
    status, ports, dns = reader.fill(Status), reader.fill(Ports), reader.fill(Dns)
    xds, security, wasm = reader.fill(Xds), reader.fill(Security), reader.fill(Wasm)
    if security.file_mounted and security.provisioned_certificates:
        raise ConfigError("FILE_MOUNTED_CERTS and PROV_CERT exclude each other: certificates have one source")
    origins = dict(reader.origins)
    if options.trust_domain:
        identity = replace(identity, trust_domain=options.trust_domain)
        origins["TRUST_DOMAIN"] = "flag --trust-domain"

    cpus, cpu_source = _cpus(launch)
    outside = Outside(
        concurrency_flag=options.concurrency,
        cpu_limit=cpus,
        cpu_source=cpu_source,
        termination_drain_s=drain.termination_fallback_s,
        service_cluster_flag=options.service_cluster,
        template_flag=options.template_file,
        annotations=annotations,
    )
    warnings += (*reader.warnings, *reader.pending_warnings())
    config = _resolve_statsd(proxy_config.resolve(merged, outside, warnings), resolve_host, warnings)

    ca_headers, xds_headers = _prefixed(variables, "CA_HEADER_"), _prefixed(variables, "XDS_HEADER_")
    if ca_headers or xds_headers:
        warnings.append(f"not honoured yet (xDS, certificates): headers {', '.join((*ca_headers, *xds_headers))}")
    if identity.instance_ip and not addresses.is_address(identity.instance_ip):
        warnings.append(f"INSTANCE_IP: {identity.instance_ip[:64]!r} is ignored: expected an IP address")
    excluded = [name.strip() for name in annotations.get(_EXCLUDE_INTERFACES, "").split(",")]
    origins.update(
        (f"--{flag}", proxy_config.FLAG if flag in options.given else DEFAULT) for flag in (*FLAGS, *LOG_FLAGS)
    )
    return AgentSettings(
        options=options,
        config=config,
        domain=options.domain or f"{identity.pod_namespace}.{_CLUSTER_DOMAIN}",
        addresses=addresses.node_addresses(identity.instance_ip, _of_interfaces(interfaces, excluded, warnings)),
        labels=labels,
        annotations=annotations,
        identity=identity,
        launch=launch,
        drain=drain,
        status=status,
        ports=ports,
        dns=dns,
        xds=xds,
        security=security,
        wasm=wasm,
        ca_headers=ca_headers,
        xds_headers=xds_headers,
        node_variables={name: value for name, value in variables.items() if name.startswith(_NODE_VARIABLES)},
        origins={**origins, **config.sources},
        warnings=tuple(warnings),
    )


def _prefixed(variables: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): value for name, value in variables.items() if name.startswith(prefix)}


def _of_interfaces(
    interfaces: Callable[[Sequence[str]], Sequence[str]], excluded: Sequence[str], warnings: list[str]
) -> Sequence[str]:
    try:
        return interfaces(excluded)
    except OSError as error:
        warnings.append(f"the addresses of the interfaces are unknown: {error.strerror}")
        return ()


def _layers(
    options: ProxyOptions, proxy_config_text: str, annotations: Mapping[str, str], warnings: list[str]
) -> list[Layer]:
    annotated = annotations.get(proxy_config.CONFIG_ANNOTATION, "")
    layers = (
        proxy_config.mesh_layer(options.mesh_config, warnings),
        proxy_config.parse_layer("PROXY_CONFIG", proxy_config_text, warnings),
        proxy_config.parse_layer(f"annotation {proxy_config.CONFIG_ANNOTATION}", annotated, warnings),
        proxy_config.layer(proxy_config.FLAG, options.config_flags, warnings),
    )
    return [each for each in layers if each is not None]


def _cpus(launch: Launch) -> tuple[int, str]:
    """Cores of the container and where the number stands. Older injectors mount it instead of setting the variable."""
    if launch.cpu_limit:
        return launch.cpu_limit, "environment variable ISTIO_CPU_LIMIT"
    for path in (pod_files.CPU_LIMIT, pod_files.CPU_REQUEST):
        cpus = pod_files.read_cpus(path)
        if cpus:
            return cpus, f"file {path}"
    return 0, ""


def _resolve_statsd(config: ProxyConfig, resolve: Callable[[str, int], str], warnings: list[str]) -> ProxyConfig:
    """The proxy takes an address only. What cannot be resolved is left out with a warning, as in the real program."""
    if not config.statsd_udp_address:
        return config
    host, _, port = config.statsd_udp_address.rpartition(":")
    document = {name: value for name, value in config.document.items() if name != "statsdUdpAddress"}
    try:
        address = resolve(host.strip("[]"), int(port))
    except OSError as error:
        warnings.append(f"{config.sources['statsdUdpAddress']}: statsdUdpAddress {host!r} is left out: {error}")
        return replace(config, statsd_udp_address="", document=document)
    resolved = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    return replace(config, statsd_udp_address=resolved, document={**document, "statsdUdpAddress": resolved})


def _lookup(host: str, port: int) -> str:
    """The first address of a host name, IPv4 before IPv6. Raises OSError, also when it takes longer than 15 s."""
    found: list[str] = []
    failure: list[OSError] = []

    def ask() -> None:
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
            found.extend(str(answer[4][0]) for answer in sorted(answers, key=lambda each: each[0] != socket.AF_INET))
        except OSError as error:
            failure.append(error)
        except UnicodeError as error:  # a label of more than 63 characters
            failure.append(OSError(str(error)))

    # The resolver has no time limit of its own; a daemon thread does not hold the process.
    thread = threading.Thread(target=ask, name="statsd-lookup", daemon=True)
    thread.start()
    thread.join(_STATSD_LOOKUP_S)
    if found:
        return found[0]
    raise failure[0] if failure else OSError(f"no answer of the resolver in {_STATSD_LOOKUP_S:g}s")
