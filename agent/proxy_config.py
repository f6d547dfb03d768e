"""ProxyConfig: where it comes from, how the sources are merged, and what the agent takes from it.

Sources, later beats earlier: built-in defaults, `defaultConfig` of the mesh configuration file, PROXY_CONFIG, the pod
annotation `proxy.istio.io/config`, flags of old pods. Names and values are those of istio.mesh.v1alpha1.ProxyConfig.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.documents import DocumentError, describe, parse_mapping, read_text
from agent.durations import parse_proto_duration
from agent.errors import ConfigError

CONFIG_ANNOTATION = "proxy.istio.io/config"
STATUS_PORT_ANNOTATION = "status.sidecar.istio.io/port"
DEFAULT_BINARY = "/usr/local/bin/envoy"
_INT32_MAX = 2**31 - 1
_UINT32_MAX = 2**32 - 1
_MAX_MESH_BYTES = 1024 * 1024

Json = Any


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """The fields that the agent honours; durations are seconds."""

    config_path: str
    binary_path: str
    custom_config_file: str  # "" when unset
    drain_duration_s: int
    termination_drain_duration_s: float
    concurrency: int | None  # None = unset, which is not 0
    status_port: int  # 0 = no status server
    proxy_admin_port: int
    file_flush_interval_s: float
    file_flush_min_size_kb: int | None
    sources: Mapping[str, str]  # field -> where its value came from; defaults are absent


@dataclass(frozen=True, slots=True)
class Layer:
    """One source: its name for messages, and its fields by their camelCase name as plain JSON values."""

    source: str
    fields: Mapping[str, Json]


def _text(value: Json) -> str:
    if not isinstance(value, str):
        raise ValueError("expected a string")
    return value


def _path(value: Json) -> str:
    if not _text(value) or "\0" in value:
        raise ValueError("expected a path")
    return _text(value)


def _optional_path(value: Json) -> str:
    return "" if value == "" else _path(value)


def _integer(value: Json, least: int, most: int) -> int:
    """protobuf JSON takes an integer as a number, an integral float or a string."""
    if isinstance(value, str) and len(value) < 12 and value.isascii() and value.removeprefix("-").isdigit():
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"expected an integer from {least} to {most}")
    return value


def _port(value: Json) -> int:
    return _integer(value, 1, 65535)


def _workers(value: Json) -> int:
    return _integer(value, 0, _INT32_MAX)


def _size_kb(value: Json) -> int:
    return _integer(value, 0, _UINT32_MAX)


def _duration(value: Json) -> float:
    seconds = parse_proto_duration(_text(value))
    if seconds < 0:
        raise ValueError("expected a duration of at least 0s")
    return seconds


def _whole_seconds(value: Json) -> int:
    seconds = _duration(value)
    if seconds < 1 or not seconds.is_integer():
        raise ValueError("expected whole seconds, at least 1s")
    return int(seconds)


# The fields that the agent honours, with what reads them.
HONOURED: Mapping[str, Callable[[Json], Any]] = {
    "configPath": _path,
    "binaryPath": _path,
    "customConfigFile": _optional_path,
    "drainDuration": _whole_seconds,
    "terminationDrainDuration": _duration,
    "concurrency": _workers,
    "statusPort": _port,
    "proxyAdminPort": _port,
    "fileFlushInterval": _duration,
    "fileFlushMinSizeKb": _size_kb,
}

# Fields that concern the injector alone: nothing follows from them here, and nothing is missing.
NOT_FOR_THE_AGENT = frozenset({"holdApplicationUntilProxyStarts", "image"})

# The remaining fields of the message, with what will need them. A set one is reported.
NOT_HONOURED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "serviceCluster", "tracingServiceName", "statsdUdpAddress", "envoyMetricsService", "envoyAccessLogService",
            "envoyMetricsServiceAddress", "zipkinAddress", "statNameLength", "proxyBootstrapTemplatePath",
            "interceptionMode", "tracing", "proxyMetadata", "runtimeValues", "extraStatTags", "gatewayTopology",
            "meshId", "proxyStatsMatcher", "proxyHeaders", "statsCompression", "connectionSettings",
            "availabilityZone",
        ),
        "bootstrap generation",
    ),
    **dict.fromkeys(
        ("discoveryAddress", "discoveryRefreshDelay", "controlPlaneAuthPolicy", "caCertificatesPem"), "xDS"
    ),
    "privateKeyProvider": "certificates",
    "sds": "certificates",
    "readinessProbe": "health of the workload",
    "parentShutdownDuration": "hot restart",
}  # fmt: skip

_DEFAULTS: Mapping[str, Json] = {
    "configPath": "./etc/istio/proxy",
    "binaryPath": DEFAULT_BINARY,
    "customConfigFile": "",
    "drainDuration": "45s",
    "terminationDrainDuration": "5s",
    "statusPort": 15020,
    "proxyAdminPort": 15000,
    "fileFlushInterval": "1s",
}

# Merged field by field within; every other field is replaced as a whole.
_MERGED_WITHIN = ("proxyMetadata", "proxyHeaders")


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


_KNOWN = {**dict.fromkeys(HONOURED), **dict.fromkeys(NOT_FOR_THE_AGENT), **dict.fromkeys(NOT_HONOURED)}
_BY_ANY_NAME = {spelling: name for name in _KNOWN for spelling in (name, _snake(name))}


def layer(source: str, document: Mapping[str, Json], warnings: list[str]) -> Layer:
    """One source as a layer: names made camelCase, nulls dropped, unknown names reported and left out.

    Raises ConfigError when a field stands there under both of its names.
    """
    fields: dict[str, Json] = {}
    for spelling, value in document.items():
        name = _BY_ANY_NAME.get(spelling)
        if name is None:
            warnings.append(f"{source}: unknown ProxyConfig field {spelling[:64]!r} is ignored")
        elif name in fields:
            raise ConfigError(f"{source}: ProxyConfig field {name} is given twice")
        elif value is not None:
            fields[name] = value
    return Layer(source, fields)


def parse_layer(source: str, text: str, warnings: list[str]) -> Layer:
    """A bare ProxyConfig document. Raises ConfigError naming the source when it is not one."""
    try:
        return layer(source, parse_mapping(text), warnings)
    except DocumentError as error:
        raise ConfigError(f"{source} is not a ProxyConfig document: {error}") from None


def mesh_layer(path: str, warnings: list[str]) -> Layer | None:
    """`defaultConfig` of a MeshConfig file; None when there is no such file.

    The other fields of MeshConfig are istiod's. Raises ConfigError naming the file when it cannot be used.
    """
    source = f"mesh configuration {path}"
    try:
        document = parse_mapping(read_text(path, _MAX_MESH_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, DocumentError) as error:
        raise ConfigError(f"{source} cannot be used: {error}") from None
    defaults = document.get("defaultConfig", document.get("default_config"))
    if defaults is None:
        return None
    if not isinstance(defaults, dict) or not all(isinstance(key, str) for key in defaults):
        raise ConfigError(f"{source}: defaultConfig: expected a mapping of field names, not {describe(defaults)}")
    return layer(f"{source}: defaultConfig", defaults, warnings)


def resolve(
    layers: Sequence[Layer],
    warnings: list[str],
    *,
    cpu_limit: int = 0,
    concurrency_flag: int = 0,
    termination_drain_s: float | None = None,
    annotations: Mapping[str, str] | None = None,
) -> ProxyConfig:
    """Merge the layers, lowest first, and read the fields that the agent honours.

    `cpu_limit` (cores) fills an unset concurrency, `termination_drain_s` an unset terminationDrainDuration; a non-zero
    `concurrency_flag` beats everything; the annotation of the status port comes last.
    Raises ConfigError with every wrong field, its value, its source and what was expected.
    """
    merged, sources = _merge(layers)
    if "concurrency" not in merged and cpu_limit:
        merged["concurrency"], sources["concurrency"] = cpu_limit, "environment variable ISTIO_CPU_LIMIT"
    if concurrency_flag:
        warnings.append("flag --concurrency is legacy: use the ProxyConfig field concurrency")
        merged["concurrency"], sources["concurrency"] = concurrency_flag, "flag --concurrency"
    if "terminationDrainDuration" not in merged and termination_drain_s is not None:
        merged["terminationDrainDuration"] = f"{termination_drain_s:.0f}s"
        sources["terminationDrainDuration"] = "environment variable TERMINATION_DRAIN_DURATION_SECONDS"

    errors: list[str] = []
    values: dict[str, Any] = {}
    for name, read in HONOURED.items():
        raw = merged.get(name, _DEFAULTS.get(name))
        try:
            values[name] = None if raw is None else read(raw)
        except ValueError as error:
            errors.append(f"{sources[name]}: {name}: {describe(raw)}: {error}")
    port = (annotations or {}).get(STATUS_PORT_ANNOTATION)
    if port is not None:
        sources["statusPort"] = f"annotation {STATUS_PORT_ANNOTATION}"
        try:
            values["statusPort"] = _integer(port, 0, 65535)  # 0 switches the status server off
        except ValueError as error:
            errors.append(f"{sources['statusPort']}: {describe(port)}: {error}")
    if errors:
        raise ConfigError("; ".join(errors))
    _report_not_honoured(merged, sources, warnings)
    return ProxyConfig(
        config_path=values["configPath"],
        binary_path=values["binaryPath"],
        custom_config_file=values["customConfigFile"],
        drain_duration_s=values["drainDuration"],
        termination_drain_duration_s=values["terminationDrainDuration"],
        concurrency=values["concurrency"],
        status_port=values["statusPort"],
        proxy_admin_port=values["proxyAdminPort"],
        file_flush_interval_s=values["fileFlushInterval"],
        file_flush_min_size_kb=values["fileFlushMinSizeKb"],
        sources=sources,
    )


def _merge(layers: Sequence[Layer]) -> tuple[dict[str, Json], dict[str, str]]:
    merged: dict[str, Json] = {}
    sources: dict[str, str] = {}
    for source in layers:
        for name, value in source.fields.items():
            earlier = merged.get(name)
            if name in _MERGED_WITHIN and isinstance(earlier, dict) and isinstance(value, dict):
                value = {**earlier, **value}
            merged[name], sources[name] = value, source.source
    return merged, sources


def _report_not_honoured(merged: Mapping[str, Json], sources: Mapping[str, str], warnings: list[str]) -> None:
    """One warning a source and purpose, so that a pod's usual PROXY_CONFIG does not fill the log."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name in merged:
        if name in NOT_HONOURED:
            groups.setdefault((sources[name], NOT_HONOURED[name]), []).append(name)
    for (source, purpose), names in groups.items():
        warnings.append(f"{source}: not honoured yet ({purpose}): {', '.join(names)}")
