"""Who the proxy says it is: node id, cluster, locality and metadata, which istiod decides by."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agent import cloud
from agent.bootstrap.facts import Facts
from agent.documents import no_constant
from agent.errors import ConfigError
from agent.flags import BOOLEANS
from agent.settings import AgentSettings

Json = Any

_META = "ISTIO_META_"
_META_JSON = "ISTIO_METAJSON_"
_SERVICE_CLUSTER = "istio-proxy"
# Of an unstamped build. istiod reads the version to keep from older proxies what they do not know; "unknown" counts as
# the newest, and that is what this agent was made after.
_ISTIO_VERSION = "unknown"
_LOCALITY_LABEL = "istio-locality"
_LOCALITY_LABELS = ("topology.istio.io/locality", _LOCALITY_LABEL)
_APP_LABELS = ("app", "app.kubernetes.io/name", "service.istio.io/canonical-name")
_TEMPLATE_HASH = "pod-template-hash"
_ISTIOD = "istiod.istio-system.svc"
_TLS_FILES = ("TLS_CLIENT_CERT_CHAIN", "TLS_CLIENT_KEY", "TLS_CLIENT_ROOT_CERT")

# Keys whose value istiod decodes as a type of its own. A value of another type ends the start, as in the real program.
_BOOLEANS = (
    "ENABLE_SELF_DISCOVERY", "DNS_CAPTURE", "DNS_AUTO_ALLOCATE", "ENABLE_HBONE", "DISABLE_HBONE_SEND",
    "INBOUND_LISTENER_EXACT_BALANCE", "OUTBOUND_LISTENER_EXACT_BALANCE",
)  # fmt: skip
_TEXTS = (
    "ISTIO_VERSION", "ISTIO_REVISION", "NAMESPACE", "NODE_NAME", "WORKLOAD_NAME", "INTERCEPTION_MODE",
    "SERVICE_ACCOUNT", "HTTP_PROXY_PORT", "MESH_ID", "CLUSTER_ID", "NETWORK", "REQUESTED_NETWORK_VIEW",
    "TLS_SERVER_CERT_CHAIN", "TLS_SERVER_KEY", "TLS_SERVER_ROOT_CERT", *_TLS_FILES, "BASE", "IDLE_TIMEOUT", "HTTP10",
    "GENERATOR", "DNS_PROXY_ADDR", "AUTO_REGISTER_GROUP", "WORKLOAD_ENTRY", "UNPRIVILEGED_POD", "CLOUDRUN_ADDR",
    "NAME", "OWNER", "APP_CONTAINERS", "ISTIO_PROXY_SHA",
)  # fmt: skip
# More that is decoded so, though the agent says it itself.
_OWN_BOOLEANS = ("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "METADATA_DISCOVERY", "ENVOY_SKIP_DEPRECATED_LOGS")
_OWN_TEXTS = ("INSTANCE_IPS", "STS_PORT", "OUTLIER_LOG_PATH", "WORKLOAD_IDENTITY_SOCKET_FILE", "POD_PORTS")
_MAPS = ("LABELS", "STATIC_LABELS", "ANNOTATIONS", "PLATFORM_METADATA")
_NUMBERS = (
    "ENVOY_STATUS_PORT", "ENVOY_PROMETHEUS_PORT", "ENVOY_SECURE_METRICS_PORT", "ENVOY_SECURE_MERGED_METRICS_PORT"
)  # fmt: skip


def raw_metadata(settings: AgentSettings, warnings: list[str]) -> dict[str, Json]:
    """What proxyMetadata and the environment say, later wins: ISTIO_META_<key>, then each ISTIO_METAJSON_* flat."""
    raw: dict[str, Json] = {
        name.removeprefix(_META): value
        for name, value in settings.config.proxy_metadata.items()
        if name.startswith(_META)
    }
    for name, value in settings.node_variables.items():
        if name.startswith(_META):
            raw[name.removeprefix(_META)] = value
    for name, value in settings.node_variables.items():
        if name.startswith(_META_JSON):
            raw.update(_json_object(name, value, warnings))
    address = settings.dns.address
    if address and settings.origins["DNS_PROXY_ADDR"] != "default":
        raw["DNS_PROXY_ADDR"] = address
    return raw


def _json_object(name: str, value: str, warnings: list[str]) -> dict[str, Json]:
    try:
        document = json.loads(value, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        warnings.append(f"environment variable {name} is ignored: not JSON: {error}")
        return {}
    if not isinstance(document, dict):
        warnings.append(f"environment variable {name} is ignored: expected a JSON object")
        return {}
    return {key: each for key, each in document.items() if each is not None}


def metadata(facts: Facts) -> dict[str, Json]:
    """The whole of node.metadata. Raises ConfigError for a value that istiod could not decode."""
    sockets = {"credential": facts.sockets.credential, "file-credential": facts.sockets.external_sds}
    flags = {name: "true" for name, answers in sockets.items() if answers}
    return {**facts.raw_metadata, **typed_metadata(facts), **flags}


def typed_metadata(facts: Facts) -> dict[str, Json]:
    """What istiod knows by name. Raises ConfigError for a value that it could not decode."""
    settings, raw = facts.settings, facts.raw_metadata
    _check_types(raw)
    made: dict[str, Json] = _set({name: raw.get(name) for name in _TEXTS})
    made.update(_set({"ISTIO_VERSION": raw.get("ISTIO_VERSION") or _ISTIO_VERSION}))
    made.update({name: "true" for name in _BOOLEANS if BOOLEANS.get(raw.get(name, ""))})
    made.update(_pod_ports(raw.get("POD_PORTS", "")))
    labels, static_labels = _labels(facts)
    made.update(
        _set(
            {
                "INSTANCE_IPS": ",".join(dict.fromkeys(settings.addresses)),
                "NAME": settings.identity.pod_name,
                "NAMESPACE": settings.identity.pod_namespace,
                "SERVICE_ACCOUNT": settings.identity.service_account,
                "STS_PORT": str(settings.options.sts_port or ""),
                "ENVOY_STATUS_PORT": settings.ports.status,
                "ENVOY_PROMETHEUS_PORT": settings.ports.prometheus,
                "ENVOY_SECURE_METRICS_PORT": settings.ports.secure_metrics,
                "ENVOY_SECURE_MERGED_METRICS_PORT": settings.ports.secure_merged_metrics,
                "EXIT_ON_ZERO_ACTIVE_CONNECTIONS": "true" if settings.drain.exit_on_zero else "",
                "ENVOY_SKIP_DEPRECATED_LOGS": "true" if settings.launch.skip_deprecated_logs else "",
                "WORKLOAD_IDENTITY_SOCKET_FILE": settings.security.socket_file,
                "OUTLIER_LOG_PATH": settings.options.outlier_log_path,
                "PILOT_SAN": _pilot_san(settings),
                "LABELS": labels,
                "STATIC_LABELS": static_labels,
                "ANNOTATIONS": dict(settings.annotations),
                "PLATFORM_METADATA": facts.platform,
            }
        )
    )
    # Sent even when false, unlike every other boolean.
    made["METADATA_DISCOVERY"] = "true" if wants_metadata_discovery(settings, raw) else "false"
    made["PROXY_CONFIG"] = dict(settings.config.document)
    return made


def _set(values: Mapping[str, Json]) -> dict[str, Json]:
    return {name: value for name, value in values.items() if value}


def _is_boolean(value: Json) -> bool:
    return isinstance(value, str) and value in BOOLEANS


def _is_map(value: Json) -> bool:
    return isinstance(value, dict) and all(isinstance(each, str) for each in value.values())


def _is_number(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_TYPES: Sequence[tuple[Sequence[str], Callable[[Json], bool], str]] = (
    ((*_TEXTS, *_OWN_TEXTS), lambda value: isinstance(value, str), "a string"),
    ((*_BOOLEANS, *_OWN_BOOLEANS), _is_boolean, "true or false"),
    (_MAPS, _is_map, "an object of strings"),
    (_NUMBERS, _is_number, "a number"),
    (("PROXY_CONFIG",), lambda value: isinstance(value, dict), "an object"),
    (("PILOT_SAN",), lambda value: isinstance(value, list), "a list"),
)


def _check_types(raw: Mapping[str, Json]) -> None:
    for names, fits, expected in _TYPES:
        for name in names:
            if raw.get(name) is not None and not fits(raw[name]):
                shown = str(raw[name])[:64]
                raise ConfigError(f"node metadata {name} ({_META}{name}): {shown!r}: expected {expected}")


def _pod_ports(text: Json) -> dict[str, Json]:
    """POD_PORTS is a JSON list within a string, brought into the order and form that istiod writes itself."""
    if text == "":
        return {}
    where = f"node metadata POD_PORTS ({_META}POD_PORTS)"
    try:
        ports = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON: {error}") from None
    if not isinstance(ports, list):
        raise ConfigError(f"{where}: expected a JSON list of container ports, in a string")
    found = []
    for port in ports:
        number = port.get("containerPort", 0) if isinstance(port, dict) else None
        if not isinstance(number, int) or isinstance(number, bool):
            raise ConfigError(f"{where}: {str(port)[:64]}: expected an object with containerPort")
        entry: dict[str, Json] = {"name": port["name"]} if port.get("name") else {}
        found.append({**entry, "containerPort": number, "protocol": str(port.get("protocol", ""))})
    return {"POD_PORTS": json.dumps(found, separators=(",", ":"))} if found else {}


def _labels(facts: Facts) -> tuple[dict[str, str], dict[str, str]]:
    """(LABELS, STATIC_LABELS): those of ISTIO_METAJSON_LABELS, under the pod's own from the downward API."""
    settings = facts.settings
    static = _json_object(
        f"{_META_JSON}LABELS", settings.node_variables.get(f"{_META_JSON}LABELS") or "{}", facts.warnings
    )
    static = {name: value for name, value in static.items() if isinstance(value, str)}
    own = {name: value for name, value in settings.labels.items() if name != _TEMPLATE_HASH}
    labels = {**static, **own}
    text = locality_text(labels)
    return ({**labels, _LOCALITY_LABEL: text} if text else labels), static


def locality_text(labels: Mapping[str, str]) -> str:
    """region/zone/subzone; a label without a slash has dots in their place."""
    text = next((labels[name] for name in _LOCALITY_LABELS if name in labels), "")
    return text if "/" in text else text.replace(".", "/")


def locality(facts: Facts, made: Mapping[str, Json]) -> dict[str, str]:
    """region, zone and sub_zone: of a label, else of the cloud, else none, and istiod takes those of the node."""
    text = locality_text(made.get("LABELS", {}))
    return _locality(text) if text else cloud.locality(facts.platform)


def _locality(text: str) -> dict[str, str]:
    parts = [*text.split("/"), "", ""][:3] if text else []
    return _set(dict(zip(("region", "zone", "sub_zone"), parts, strict=False)))


def _pilot_san(settings: AgentSettings) -> list[str]:
    if settings.config.control_plane_auth_policy != "MUTUAL_TLS":
        return []
    host = settings.config.discovery_address.split(":")[0]
    return [_ISTIOD if host == "localhost" else host]


def service_cluster(document: Mapping[str, Json], made: Mapping[str, Json]) -> str:
    """node.cluster: how this proxy calls itself in spans."""
    labels: Mapping[str, str] = made.get("LABELS", {})
    naming = document.get("tracingServiceName")
    if naming in ("CANONICAL_NAME_ONLY", "CANONICAL_NAME_AND_NAMESPACE"):
        canonical = _first_label(labels, _APP_LABELS[::-1]) or made.get("WORKLOAD_NAME") or _SERVICE_CLUSTER
        if naming == "CANONICAL_NAME_AND_NAMESPACE" and made.get("NAMESPACE"):
            return f"{canonical}.{made['NAMESPACE']}"
        return _cluster_or_default(str(canonical), made)
    return _cluster_or_default(document.get("serviceCluster", _SERVICE_CLUSTER), made)


def _cluster_or_default(name: str, made: Mapping[str, Json]) -> str:
    if name and name != _SERVICE_CLUSTER:
        return name
    namespace = made.get("NAMESPACE", "")
    app = _first_label(made.get("LABELS", {}), _APP_LABELS)
    if app is not None:
        return f"{app}.{namespace}"
    if made.get("WORKLOAD_NAME"):
        return f"{made['WORKLOAD_NAME']}.{namespace}"
    return f"{_SERVICE_CLUSTER}.{namespace}" if namespace else _SERVICE_CLUSTER


def _first_label(labels: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((labels[name] for name in names if name in labels), None)


def node_id(settings: AgentSettings) -> str:
    """Four fields; istiod refuses any other number of them."""
    identity = settings.identity
    fields = (
        settings.options.node_type,
        settings.addresses[0],
        f"{identity.pod_name}.{identity.pod_namespace}",
        settings.domain,
    )
    if any("~" in field for field in fields):
        raise ConfigError(f"node id {'~'.join(fields)!r}: POD_NAME, POD_NAMESPACE and --domain must not contain '~'")
    return "~".join(fields)


def node(facts: Facts) -> dict[str, Json]:
    """The `node` of the bootstrap. Raises ConfigError."""
    made = metadata(facts)
    return {
        "id": node_id(facts.settings),
        "cluster": service_cluster(facts.proxy_config, made),
        "locality": locality(facts, made),
        "metadata": made,
    }


def tls_files(raw: Mapping[str, Json]) -> dict[str, str]:
    return {name: raw[name] for name in _TLS_FILES if isinstance(raw.get(name), str)}


def wants_metadata_discovery(settings: AgentSettings, raw: Mapping[str, Json]) -> bool:
    """PEER_METADATA_DISCOVERY; unset it follows ENABLE_HBONE."""
    chosen = settings.launch.peer_metadata_discovery
    if chosen is None:
        chosen = BOOLEANS.get(str(raw.get("ENABLE_HBONE", "")), False)
    return chosen
