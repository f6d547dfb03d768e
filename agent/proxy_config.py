"""ProxyConfig: where it comes from, how the sources are merged, and what the agent takes from it.

Sources, later beats earlier: built-in defaults, `defaultConfig` of the mesh configuration file, PROXY_CONFIG, the pod
annotation `proxy.istio.io/config`, flags of old pods, two annotations with a field of their own. Names and values are
those of istio.mesh.v1alpha1.ProxyConfig (`proxy_config_schema`).
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.documents import DocumentError, describe, parse_mapping, read_text
from agent.durations import format_seconds, parse_proto_duration
from agent.errors import ConfigError, reason
from agent.proxy_config_schema import (
    BY_ANY_NAME,
    FIELDS,
    OBSOLETE,
    ONEOF,
    TRACERS,
    Invalid,
    Notes,
    snake,
    to_address,
    to_integer,
)

CONFIG_ANNOTATION = "proxy.istio.io/config"
STATUS_PORT_ANNOTATION = "status.sidecar.istio.io/port"
DISCOVERY_ANNOTATION = "sidecar.istio.io/discoveryAddress"
DEFAULT_BINARY = "/usr/local/bin/envoy"
DEFAULT_SERVICE_CLUSTER = "istio-proxy"
DEFAULT = "default"
FLAG = "flag"
_DEFAULT_FILE_FLUSH_S = 1.0  # Envoy's own is 10s
_MAX_MESH_BYTES = 1024 * 1024

Json = Any

_DEFAULTS: Mapping[str, Json] = {
    "configPath": "./etc/istio/proxy",
    "binaryPath": DEFAULT_BINARY,
    "serviceCluster": DEFAULT_SERVICE_CLUSTER,
    "drainDuration": "45s",
    "terminationDrainDuration": "5s",
    "proxyAdminPort": 15000,
    "controlPlaneAuthPolicy": "MUTUAL_TLS",
    "discoveryAddress": "istiod.istio-system.svc:15012",
    "statNameLength": 189,
    "statusPort": 15020,
}

# Fields that need a part of the agent that is not there yet. A set one is reported.
NOT_HONOURED: Mapping[str, str] = {
    "caCertificatesPem": "certificates",
    "privateKeyProvider": "certificates",
    "readinessProbe": "health of the workload",
}

# Merged entry by entry within, for which names are compared in this form; every other field is replaced as a whole.
_MERGED_WITHIN: Mapping[str, Callable[[str], str]] = {"proxyMetadata": str, "proxyHeaders": snake}


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """The fields that the agent itself works with, and `document`, the whole in canonical form. Times are seconds."""

    config_path: str
    binary_path: str
    custom_config_file: str  # "" when unset
    bootstrap_template: str  # proxyBootstrapTemplatePath; "" when unset
    drain_duration_s: int
    termination_drain_duration_s: float
    concurrency: int | None  # None = unset, which is not 0
    discovery_address: str
    control_plane_auth_policy: str  # NONE, MUTUAL_TLS or INHERIT
    statsd_udp_address: str  # "" when unset
    status_port: int  # 0 = no status server
    proxy_admin_port: int
    file_flush_interval_s: float
    file_flush_min_size_kb: int | None
    proxy_metadata: Mapping[str, str]
    document: Mapping[str, Json]
    sources: Mapping[str, str]  # field -> where its value came from; DEFAULT for a default


@dataclass(frozen=True, slots=True)
class Layer:
    """One source: its name for messages, and its fields by their camelCase name as plain JSON values."""

    source: str
    fields: Mapping[str, Json]

    def source_of(self, name: str) -> str:
        """The flags are one layer; each is named as it was written."""
        return f"{FLAG} --{name}" if self.source == FLAG else self.source


@dataclass(frozen=True, slots=True)
class Merged:
    """All layers as one, still as they were written."""

    fields: dict[str, Json]
    sources: dict[str, str]

    def proxy_metadata(self) -> Mapping[str, str]:
        """Names and values of proxyMetadata that are usable; `resolve` refuses one that is not as a whole."""
        metadata = self.fields.get("proxyMetadata")
        if not isinstance(metadata, dict):
            return {}
        return {name: value for name, value in metadata.items() if isinstance(name, str) and isinstance(value, str)}


@dataclass(frozen=True, slots=True)
class Outside:
    """What else bears upon ProxyConfig. Numbers are None where nothing was said."""

    concurrency_flag: int | None = None  # --concurrency
    cpu_limit: int = 0  # cores of the container; 0 = unknown
    cpu_source: str = "environment variable ISTIO_CPU_LIMIT"
    termination_drain_s: float | None = None  # TERMINATION_DRAIN_DURATION_SECONDS
    service_cluster_flag: str = DEFAULT_SERVICE_CLUSTER  # --serviceCluster
    template_flag: str = ""  # --templateFile
    annotations: Mapping[str, str] = field(default_factory=dict)


def layer(source: str, document: Mapping[str, Json], warnings: list[str]) -> Layer:
    """One source as a layer: names made camelCase, nulls dropped, unknown names reported and left out.

    Raises ConfigError when a field stands there under both of its names.
    """
    fields: dict[str, Json] = {}
    notes = Notes()
    for spelling, value in document.items():
        name = BY_ANY_NAME.get(spelling)
        if name is None:
            notes.unknown_name(spelling[:64])
        elif name in fields:
            raise ConfigError(f"{source}: ProxyConfig field {name} is given twice")
        elif value is not None and name not in OBSOLETE:
            fields[name] = value
    _report_unknown(source, notes, warnings)
    return Layer(source, fields)


def _report_unknown(source: str, notes: Notes, warnings: list[str]) -> None:
    warnings.extend(f"{source}: unknown ProxyConfig field {name!r} is ignored" for name in notes.unknown)
    more = notes.unknown_count - len(notes.unknown)
    if more:
        warnings.append(f"{source}: {more} more unknown ProxyConfig fields are ignored")


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
        raise ConfigError(f"{source} cannot be used: {reason(error)}") from None
    defaults = document.get("defaultConfig", document.get("default_config"))
    if defaults is None:
        return None
    if not isinstance(defaults, dict) or not all(isinstance(key, str) for key in defaults):
        raise ConfigError(f"{source}: defaultConfig: expected a mapping of field names, not {describe(defaults)}")
    return layer(f"{source}: defaultConfig", defaults, warnings)


def merge(layers: Sequence[Layer]) -> Merged:
    """The layers over the defaults, lowest first."""
    merged, sources = dict(_DEFAULTS), dict.fromkeys(_DEFAULTS, DEFAULT)
    for source in layers:
        for name, value in source.fields.items():
            earlier = merged.get(name)
            if name in _MERGED_WITHIN and isinstance(earlier, dict) and isinstance(value, dict):
                form = _MERGED_WITHIN[name]
                given = {form(str(key)) for key in value}
                value = {**{key: each for key, each in earlier.items() if form(str(key)) not in given}, **value}
            if name in ONEOF:
                for other in ONEOF:
                    merged.pop(other, None)
                    sources.pop(other, None)
            merged[name], sources[name] = value, source.source_of(name)
    _use_zipkin_address(merged, sources)
    return Merged(merged, sources)


def _use_zipkin_address(merged: dict[str, Json], sources: dict[str, str]) -> None:
    """The deprecated zipkinAddress is tracing.zipkin.address, unless `tracing` chooses a tracer."""
    address, tracing = merged.get("zipkinAddress"), merged.get("tracing", {})
    if not address or not isinstance(tracing, dict) or any(name in tracing for name in TRACERS):
        return
    merged["tracing"] = {**tracing, "zipkin": {"address": address}}
    sources["tracing"] = sources["zipkinAddress"]


def resolve(merged: Merged, outside: Outside, warnings: list[str]) -> ProxyConfig:
    """Validate, and apply what comes from elsewhere.

    Raises ConfigError with every wrong field, its value, its source and what was expected.
    """
    fields, sources = dict(merged.fields), dict(merged.sources)
    _apply_flags(fields, sources, outside)
    _apply_concurrency(fields, sources, outside, warnings)
    if sources["terminationDrainDuration"] == DEFAULT and outside.termination_drain_s is not None:
        fields["terminationDrainDuration"] = format_seconds(outside.termination_drain_s)
        sources["terminationDrainDuration"] = "environment variable TERMINATION_DRAIN_DURATION_SECONDS"

    errors: list[str] = []
    document: dict[str, Json] = {}
    for name, value in fields.items():
        notes = Notes()
        try:
            canonical = FIELDS[name].read(value, name, notes)
        except Invalid as error:
            errors.append(f"{sources[name]}: {error.at}: {describe(error.value)}: {error}")
            continue
        _report_unknown(sources[name], notes, warnings)
        if FIELDS[name].is_printed(canonical):
            document[name] = canonical
    if fields.get("serviceCluster") == "":
        errors.append(f"{sources['serviceCluster']}: serviceCluster: expected a name")
    status_port = _apply_annotations(document, sources, outside.annotations, errors)
    if errors:
        raise ConfigError("; ".join(errors))
    _report_not_honoured(document, sources, warnings)
    return ProxyConfig(
        config_path=document["configPath"],
        binary_path=document["binaryPath"],
        custom_config_file=document.get("customConfigFile", ""),
        bootstrap_template=document.get("proxyBootstrapTemplatePath", ""),
        drain_duration_s=int(parse_proto_duration(document["drainDuration"])),
        termination_drain_duration_s=parse_proto_duration(document["terminationDrainDuration"]),
        concurrency=document.get("concurrency"),
        discovery_address=document["discoveryAddress"],
        control_plane_auth_policy=document.get("controlPlaneAuthPolicy", "NONE"),
        statsd_udp_address=document.get("statsdUdpAddress", ""),
        status_port=status_port,
        proxy_admin_port=document["proxyAdminPort"],
        file_flush_interval_s=(
            parse_proto_duration(document["fileFlushInterval"])
            if "fileFlushInterval" in document
            else _DEFAULT_FILE_FLUSH_S
        ),
        file_flush_min_size_kb=document.get("fileFlushMinSizeKb"),
        proxy_metadata=document.get("proxyMetadata", {}),
        document=document,
        sources=sources,
    )


def _apply_flags(fields: dict[str, Json], sources: dict[str, str], outside: Outside) -> None:
    if fields.get("serviceCluster") == "":
        fields["serviceCluster"], sources["serviceCluster"] = outside.service_cluster_flag, "flag --serviceCluster"
    if outside.template_flag:
        fields["proxyBootstrapTemplatePath"] = outside.template_flag
        sources["proxyBootstrapTemplatePath"] = "flag --templateFile"


def _apply_concurrency(fields: dict[str, Json], sources: dict[str, str], outside: Outside, warnings: list[str]) -> None:
    """Both readings of 0. Istio's: `concurrency: 0` is one worker for each CPU of the node. ASM's, which its injector
    writes as the flag `--concurrency 0`: as many as the container has CPUs.
    """
    flag, limit = outside.concurrency_flag, outside.cpu_limit
    if flag:
        warnings.append("flag --concurrency is legacy: use the ProxyConfig field concurrency")
        fields["concurrency"], sources["concurrency"] = flag, "flag --concurrency"
    elif limit and (fields.get("concurrency") is None or (flag == 0 and fields["concurrency"] in (0, "0"))):
        fields["concurrency"], sources["concurrency"] = limit, outside.cpu_source
    elif fields.get("concurrency") in (0, "0") and 0 < limit < (os.cpu_count() or 1):
        warnings.append(
            f"concurrency is 0: one worker for each CPU of the node ({os.cpu_count()}), but the container's CPU limit "
            f"is {limit}: workers will be throttled"
        )


def _apply_annotations(
    document: dict[str, Json], sources: dict[str, str], annotations: Mapping[str, str], errors: list[str]
) -> int:
    """Two annotations with a field of their own, which beat everything. Returns the status port."""
    address = annotations.get(DISCOVERY_ANNOTATION)
    if address is not None:
        document["discoveryAddress"] = address
        sources["discoveryAddress"] = f"annotation {DISCOVERY_ANNOTATION}"
        try:
            to_address(address)
        except ValueError as error:
            errors.append(f"{sources['discoveryAddress']}: {describe(address)}: {error}")
    port = annotations.get(STATUS_PORT_ANNOTATION)
    if port is None:
        return int(document.get("statusPort", 0))
    sources["statusPort"] = f"annotation {STATUS_PORT_ANNOTATION}"
    try:
        value = to_integer(port, 0, 65535)  # 0 switches the status server off
    except ValueError as error:
        # The real program takes this for 0, and is never ready.
        errors.append(f"{sources['statusPort']}: {describe(port)}: {error}")
        return 0
    document.pop("statusPort", None)
    if value:
        document["statusPort"] = value
    return value


def _report_not_honoured(document: Mapping[str, Json], sources: Mapping[str, str], warnings: list[str]) -> None:
    for name, purpose in NOT_HONOURED.items():
        if name in document:
            warnings.append(f"{sources[name]}: not honoured yet ({purpose}): {name}")
