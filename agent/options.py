"""The flags of every command as tables, and the frozen options that the commands work with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.durations import format_seconds, parse_go_duration
from agent.errors import UsageError
from agent.flags import HELP, Flag, Parsed

NODE_TYPES = ("sidecar", "router", "waypoint", "ztunnel", "agentgateway")
_LATER_NODE_TYPES = ("ztunnel", "agentgateway")  # these have a supervisor of another shape
PROXY_LOG_LEVELS = ("trace", "debug", "info", "warning", "warn", "error", "critical", "off")
REQUEST_PORTS = (15000, 15004, 15020, 15021)
_MAX_WAIT = 2**31 - 1
_MAX_CONCURRENCY = 4096

GLOBAL_FLAGS = (
    HELP,
    Flag("log_target", ("stdout",), "where log lines go: stdout, stderr or a file; may be repeated"),
    Flag("log_as_json", False, "write log lines as JSON"),
    Flag("log_output_level", "", "least level that is logged, as level or scope:level,... (default default:info)"),
    Flag("log_stacktrace_level", "default:none", "least level that adds a stack trace, as scope:level,..."),
    Flag("log_caller", "", "scopes whose lines name the calling code, comma-separated"),
    Flag("vklog", 0, "verbosity of the scope klog: above 0 its debug lines are logged"),
)

PROXY_FLAGS = (
    *GLOBAL_FLAGS,
    Flag("domain", "", "DNS domain of the pod (default $POD_NAMESPACE.svc.cluster.local)"),
    Flag("meshConfig", "./etc/istio/config/mesh", "MeshConfig file whose defaultConfig applies, if it exists"),
    Flag("stsPort", 0, "port of the security token service, for node metadata"),
    Flag("tokenManagerPlugin", "", "accepted; the real program does not use it either"),
    Flag("serviceCluster", "istio-proxy", "service cluster, where ProxyConfig has the empty string"),
    Flag("proxyLogLevel", "warning", "log level of the proxy, components may follow: info,misc:error"),
    Flag("proxyComponentLogLevel", "", "log levels of components of the proxy; unused if --proxyLogLevel has some"),
    Flag("concurrency", 0, "workers of the proxy; beats ProxyConfig; a given 0 = as many as the container has CPUs"),
    Flag("templateFile", "", "JSON template of the bootstrap"),
    Flag("outlierLogPath", "", "file for outlier detection events of the proxy"),
    Flag("profiling", True, "profiling paths on the status port"),
    Flag("explain-config", False, "print every effective setting with its source, and end"),
    # Flags of pods that were injected by Istio 1.6; today they are fields of ProxyConfig or variables.
    Flag("drainDuration", "", "ProxyConfig drainDuration"),
    Flag("parentShutdownDuration", "", "accepted: there is no hot restart any more"),
    Flag("discoveryAddress", "", "ProxyConfig discoveryAddress"),
    Flag("zipkinAddress", "", "ProxyConfig tracing.zipkin.address"),
    Flag("statusPort", 0, "ProxyConfig statusPort"),
    Flag("proxyAdminPort", 0, "ProxyConfig proxyAdminPort"),
    Flag("controlPlaneAuthPolicy", "", "ProxyConfig controlPlaneAuthPolicy"),
    Flag("dnsRefreshRate", "", "refresh rate of the bootstrap's DNS clusters"),
    Flag("trust-domain", "", "environment variable TRUST_DOMAIN"),
    Flag("controlPlaneBootstrap", True, "accepted: it chose between two templates that were merged since"),
)

WAIT_FLAGS = (
    *GLOBAL_FLAGS,
    Flag("timeoutSeconds", 60, "seconds to wait in all"),
    Flag("requestTimeoutMillis", 500, "milliseconds for one request"),
    Flag("periodMillis", 500, "milliseconds before each request"),
    Flag("url", "http://localhost:15021/healthz/ready", "what to ask"),
)

REQUEST_FLAGS = (*GLOBAL_FLAGS, Flag("debug-port", 15000, f"port to ask: {', '.join(map(str, REQUEST_PORTS))}"))

VERSION_FLAGS = (
    *GLOBAL_FLAGS,
    Flag("short", False, "print the version alone", short="s"),
    Flag("output", "", "json or yaml", short="o"),
)

COMPLETION_FLAGS = (*GLOBAL_FLAGS, Flag("no-descriptions", False, "complete names without their descriptions"))


@dataclass(frozen=True, slots=True)
class LogOptions:
    targets: tuple[str, ...]
    as_json: bool
    output_level: str
    stacktrace_level: str
    caller: str
    klog_verbosity: int = 0


@dataclass(frozen=True, slots=True)
class ProxyOptions:
    """`pilot-agent proxy`. `given` names the flags that stood on the command line."""

    node_type: str
    domain: str
    mesh_config: str
    service_cluster: str
    proxy_log_level: str
    proxy_component_log_level: str
    concurrency: int | None  # None = the flag was not given
    template_file: str
    outlier_log_path: str
    sts_port: int
    profiling: bool
    explain_config: bool
    logging: LogOptions  # the form of the proxy's lines follows the agent's
    trust_domain: str  # "" = the flag was not given
    dns_refresh_rate_s: float | None
    config_flags: Mapping[str, Any]  # ProxyConfig fields that were given as flags, as JSON values
    given: frozenset[str]
    unknown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WaitOptions:
    """`pilot-agent wait`; times are seconds."""

    timeout_s: float
    request_timeout_s: float
    period_s: float
    url: str


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """`pilot-agent request METHOD PATH [BODY]`."""

    port: int
    method: str
    target: str
    body: str


@dataclass(frozen=True, slots=True)
class VersionOptions:
    short: bool
    output: str


def log_options(parsed: Parsed) -> LogOptions:
    return LogOptions(
        targets=parsed.texts("log_target"),
        as_json=parsed.switch("log_as_json"),
        output_level=parsed.text("log_output_level"),
        stacktrace_level=parsed.text("log_stacktrace_level"),
        caller=parsed.text("log_caller"),
        klog_verbosity=parsed.integer("vklog"),
    )


def proxy_options(parsed: Parsed) -> ProxyOptions:
    """Raises UsageError naming the flag, the value and what was expected."""
    node_type = parsed.positionals[0] if parsed.positionals else "sidecar"
    if node_type not in NODE_TYPES:
        raise UsageError(f'invalid proxy type "{node_type[:64]}": expected one of {", ".join(NODE_TYPES)}')
    if node_type in _LATER_NODE_TYPES:
        raise UsageError(f'proxy type "{node_type}" is not supported yet: expected sidecar, router or waypoint')
    return ProxyOptions(
        node_type=node_type,
        domain=parsed.text("domain"),
        mesh_config=parsed.text("meshConfig"),
        service_cluster=parsed.text("serviceCluster"),
        proxy_log_level=parsed.text("proxyLogLevel"),
        proxy_component_log_level=parsed.text("proxyComponentLogLevel"),
        concurrency=_in_range(parsed, "concurrency", _MAX_CONCURRENCY) if "concurrency" in parsed.given else None,
        template_file=parsed.text("templateFile"),
        outlier_log_path=parsed.text("outlierLogPath"),
        sts_port=_in_range(parsed, "stsPort", 65535),
        profiling=parsed.switch("profiling"),
        explain_config=parsed.switch("explain-config"),
        logging=log_options(parsed),
        trust_domain=parsed.text("trust-domain"),
        dns_refresh_rate_s=_duration(parsed, "dnsRefreshRate"),
        config_flags=_config_flags(parsed),
        given=frozenset(parsed.given),
        unknown=tuple(parsed.unknown),
    )


def _in_range(parsed: Parsed, name: str, most: int) -> int:
    value = parsed.integer(name)
    if not 0 <= value <= most:
        raise UsageError(f"--{name}: {value} is out of range: expected 0 to {most}")
    return value


def _duration(parsed: Parsed, name: str) -> float | None:
    if not parsed.text(name):
        return None
    try:
        seconds = parse_go_duration(parsed.text(name))
    except ValueError as error:
        raise UsageError(f"--{name}: {error}") from None
    if seconds <= 0:
        raise UsageError(f"--{name}: {parsed.text(name)!r}: expected a duration of more than 0s")
    return seconds


def _config_flags(parsed: Parsed) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    drain = _duration(parsed, "drainDuration")
    if drain is not None:
        fields["drainDuration"] = format_seconds(drain)
    _duration(parsed, "parentShutdownDuration")
    for name in ("statusPort", "proxyAdminPort"):
        if name in parsed.given:
            fields[name] = parsed.integer(name)
    for name in ("discoveryAddress", "zipkinAddress", "controlPlaneAuthPolicy"):
        if parsed.text(name):
            fields[name] = parsed.text(name)
    return fields


def wait_options(parsed: Parsed) -> WaitOptions:
    """Raises UsageError naming the flag, the value and what was expected."""
    timeout, request, period = (
        _in_range(parsed, name, _MAX_WAIT) for name in ("timeoutSeconds", "requestTimeoutMillis", "periodMillis")
    )
    return WaitOptions(
        timeout_s=timeout, request_timeout_s=request / 1000, period_s=period / 1000, url=parsed.text("url")
    )


def request_options(parsed: Parsed) -> RequestOptions:
    """Raises UsageError naming the flag or the argument and what was expected."""
    words = parsed.positionals
    if not 2 <= len(words) <= 3:
        raise UsageError(f"request needs METHOD PATH [BODY], not {len(words)} arguments")
    port = parsed.integer("debug-port")
    if port not in REQUEST_PORTS:
        raise UsageError(f"--debug-port: {port}: expected one of {', '.join(map(str, REQUEST_PORTS))}")
    method, target, body = words[0], words[1], words[2] if len(words) == 3 else ""
    if not method.isascii() or not method.isalpha():
        raise UsageError(f"METHOD: {method[:64]!r} is not an HTTP method")
    target = f"/{target.removeprefix('/')}"
    if not target.isascii() or any(not 0x20 < ord(letter) < 0x7F for letter in target):
        raise UsageError(f"PATH: {target[:256]!r} is not a path: escape what is no printable ASCII letter (%20)")
    return RequestOptions(port, method.upper(), target, body)


def version_options(parsed: Parsed) -> VersionOptions:
    """Raises UsageError for an output format that does not exist."""
    output = parsed.text("output")
    if output not in ("", "json", "yaml"):
        raise UsageError(f'--output must be "json" or "yaml", not "{output[:64]}"')
    return VersionOptions(short=parsed.switch("short"), output=output)
