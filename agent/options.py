"""The flags of every command as tables, and the frozen options that the commands work with."""

from collections.abc import Mapping
from dataclasses import dataclass

from agent.durations import format_seconds, parse_go_duration
from agent.errors import UsageError
from agent.flags import HELP, Flag, Parsed

NODE_TYPES = ("sidecar", "router", "waypoint", "ztunnel", "agentgateway")
_LATER_NODE_TYPES = ("ztunnel", "agentgateway")  # these have a supervisor of another shape
PROXY_LOG_LEVELS = ("trace", "debug", "info", "warning", "warn", "error", "critical", "off")
_MAX_WAIT = 2**31 - 1
_MAX_CONCURRENCY = 4096

GLOBAL_FLAGS = (
    HELP,
    Flag("log_target", ("stdout",), "where log lines go: stdout, stderr or a file; may be repeated"),
    Flag("log_as_json", False, "write log lines as JSON"),
    Flag("log_output_level", "", "least level that is logged, as level or scope:level,... (default default:info)"),
    Flag("log_stacktrace_level", "default:none", "least level that adds a stack trace, as scope:level,..."),
    Flag("log_caller", "", "scopes whose lines name the calling code, comma-separated"),
)

PROXY_FLAGS = (
    *GLOBAL_FLAGS,
    Flag("domain", "", "DNS domain of the pod (default $POD_NAMESPACE.svc.cluster.local)"),
    Flag("meshConfig", "./etc/istio/config/mesh", "MeshConfig file whose defaultConfig applies, if it exists"),
    Flag("stsPort", 0, "port of the security token service"),
    Flag("tokenManagerPlugin", "", "token provider of the security token service"),
    Flag("serviceCluster", "istio-proxy", "service cluster of the proxy"),
    Flag("proxyLogLevel", "warning", "log level of the proxy, components may follow: info,misc:error"),
    Flag("proxyComponentLogLevel", "", "log levels of components of the proxy; unused if --proxyLogLevel has some"),
    Flag("concurrency", 0, "worker threads of the proxy; beats ProxyConfig unless 0"),
    Flag("templateFile", "", "bootstrap template of the proxy"),
    Flag("outlierLogPath", "", "file for outlier detection events of the proxy"),
    Flag("profiling", True, "profiling paths on the status port"),
    # Flags of pods that were injected by Istio 1.6; today they are fields of ProxyConfig.
    Flag("drainDuration", "", "ProxyConfig drainDuration"),
    Flag("statusPort", 0, "ProxyConfig statusPort"),
    Flag("proxyAdminPort", 0, "ProxyConfig proxyAdminPort"),
)

# Accepted because pods carry them; `pilot-agent proxy` says so when one was given and nothing follows from it.
# All of these belong to the bootstrap.
PROXY_FLAGS_NOT_HONOURED = (
    "domain",
    "stsPort",
    "tokenManagerPlugin",
    "serviceCluster",
    "templateFile",
    "outlierLogPath",
)

WAIT_FLAGS = (
    *GLOBAL_FLAGS,
    Flag("timeoutSeconds", 60, "seconds to wait in all"),
    Flag("requestTimeoutMillis", 500, "milliseconds for one request"),
    Flag("periodMillis", 500, "milliseconds before each request"),
    Flag("url", "http://localhost:15021/healthz/ready", "what to ask"),
)

VERSION_FLAGS = (
    *GLOBAL_FLAGS,
    Flag("short", False, "print the version alone", short="s"),
    Flag("output", "", "json or yaml", short="o"),
)


@dataclass(frozen=True, slots=True)
class LogOptions:
    targets: tuple[str, ...]
    as_json: bool
    output_level: str
    stacktrace_level: str
    caller: str


@dataclass(frozen=True, slots=True)
class ProxyOptions:
    """`pilot-agent proxy`. `config_flags` are ProxyConfig fields that were given as flags, as JSON values."""

    node_type: str
    mesh_config: str
    proxy_log_level: str
    proxy_component_log_level: str
    concurrency: int
    config_flags: Mapping[str, str | int]
    not_honoured: tuple[str, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WaitOptions:
    """`pilot-agent wait`; times are seconds."""

    timeout_s: float
    request_timeout_s: float
    period_s: float
    url: str


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
    )


def proxy_options(parsed: Parsed) -> ProxyOptions:
    """Raises UsageError naming the flag, the value and what was expected."""
    node_type = parsed.positionals[0] if parsed.positionals else "sidecar"
    if node_type not in NODE_TYPES:
        raise UsageError(f'invalid proxy type "{node_type[:64]}": expected one of {", ".join(NODE_TYPES)}')
    if node_type in _LATER_NODE_TYPES:
        raise UsageError(f'proxy type "{node_type}" is not supported yet: expected sidecar, router or waypoint')
    concurrency = parsed.integer("concurrency")
    if not 0 <= concurrency <= _MAX_CONCURRENCY:
        raise UsageError(f"--concurrency: {concurrency} is not a number of workers (0 to {_MAX_CONCURRENCY})")
    not_honoured = [f"--{name}" for name in PROXY_FLAGS_NOT_HONOURED if name in parsed.given]
    if "profiling" in parsed.given and parsed.switch("profiling"):
        not_honoured.append("--profiling")
    return ProxyOptions(
        node_type=node_type,
        mesh_config=parsed.text("meshConfig"),
        proxy_log_level=parsed.text("proxyLogLevel"),
        proxy_component_log_level=parsed.text("proxyComponentLogLevel"),
        concurrency=concurrency,
        config_flags=_config_flags(parsed),
        not_honoured=tuple(not_honoured),
        unknown=tuple(parsed.unknown),
    )


def _config_flags(parsed: Parsed) -> dict[str, str | int]:
    fields: dict[str, str | int] = {}
    if parsed.text("drainDuration"):
        try:
            fields["drainDuration"] = format_seconds(parse_go_duration(parsed.text("drainDuration")))
        except ValueError as error:
            raise UsageError(f"--drainDuration: {error}") from None
    for name in ("statusPort", "proxyAdminPort"):
        if name in parsed.given:
            fields[name] = parsed.integer(name)
    return fields


def wait_options(parsed: Parsed) -> WaitOptions:
    """Raises UsageError naming the flag, the value and what was expected."""
    for name in ("timeoutSeconds", "requestTimeoutMillis", "periodMillis"):
        if not 0 <= parsed.integer(name) <= _MAX_WAIT:
            raise UsageError(f"--{name}: {parsed.integer(name)} is out of range: expected 0 to {_MAX_WAIT}")
    return WaitOptions(
        timeout_s=parsed.integer("timeoutSeconds"),
        request_timeout_s=parsed.integer("requestTimeoutMillis") / 1000,
        period_s=parsed.integer("periodMillis") / 1000,
        url=parsed.text("url"),
    )


def version_options(parsed: Parsed) -> VersionOptions:
    """Raises UsageError for an output format that does not exist."""
    output = parsed.text("output")
    if output not in ("", "json", "yaml"):
        raise UsageError(f'--output must be "json" or "yaml", not "{output[:64]}"')
    return VersionOptions(short=parsed.switch("short"), output=output)
