"""The whole bootstrap, from settings."""

import socket
from typing import Any

from agent import cloud
from agent.bootstrap import clusters, listeners, node, statistics
from agent.bootstrap.facts import SDS_DIRECTORY, TYPES, Facts, Sockets, family_of
from agent.settings import AgentSettings

Json = Any

CREDENTIAL_SOCKET = "./var/run/secrets/credential-uds/socket"
_SOCKET_TIMEOUT_S = 1.0
_UNLIMITED = 2**31 - 1
_GLOBAL_LIMIT_RUNTIME = "overload.global_downstream_max_connections"
_GLOBAL_LIMIT_VARIABLE = "GLOBAL_DOWNSTREAM_MAX_CONNECTIONS"  # after ISTIO_META_
_TEXT_LOG = "%Y-%m-%dT%T.%fZ\t%l\tenvoy %n %g:%#\t%v\tthread=%t"
_JSON_LOG = {
    "time": "%Y-%m-%dT%T.%fZ",
    "level": "%l",
    "scope": "envoy %n",
    "msg": "%j",
    "caller": "%g:%#",
    "thread": "%t",
}
_RUNTIME: dict[str, Json] = {
    "re2.max_program_size.error_level": "32768",
    "envoy.deprecated_features:envoy.config.listener.v3.Listener.hidden_envoy_deprecated_use_original_dst": True,
    "envoy.reloadable_features.http_reject_path_with_fragment": False,
    "envoy.reloadable_features.fixed_heap_use_allocated": True,
    "envoy.reloadable_features.coalesce_lb_rebuilds_on_batch_update": False,
}


def facts_of(settings: AgentSettings, sockets: Sockets | None = None) -> Facts:
    """Raises ConfigError for node metadata that cannot be."""
    warnings: list[str] = []
    raw = node.raw_metadata(settings, warnings)
    discovery = settings.options.node_type == "waypoint" or node.wants_metadata_discovery(settings, raw)
    if discovery and not _is_delta(settings):
        warnings.append("PEER_METADATA_DISCOVERY needs ISTIO_DELTA_XDS: peers are not looked up")
    return Facts(
        settings=settings,
        family=family_of(settings.addresses, settings.launch.dual_stack),
        sockets=sockets
        or Sockets(answers(CREDENTIAL_SOCKET), answers(f"{SDS_DIRECTORY}/{settings.security.socket_file}")),
        raw_metadata=raw,
        tls_files=node.tls_files(raw),
        metadata_discovery=discovery and _is_delta(settings),
        platform=cloud.metadata(settings.identity, warnings),
        warnings=warnings,
    )


def _is_delta(settings: AgentSettings) -> bool:
    return settings.launch.delta_xds or settings.options.node_type == "waypoint"


def answers(path: str) -> bool:
    """Whether somebody listens on a Unix socket. One that was left behind by a dead process does not count."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_SOCKET_TIMEOUT_S)
        try:
            probe.connect(path)
        except OSError:
            return False
        return True


def bootstrap(facts: Facts) -> dict[str, Json]:
    """The bootstrap as JSON data; `facts.warnings` has what was left out. Raises ConfigError naming the setting."""
    settings = facts.settings
    me = node.node(facts)
    document: dict[str, Json] = {
        "application_log_config": {
            "log_format": {"json_format": _JSON_LOG} if settings.options.logging.as_json else {"text_format": _TEXT_LOG}
        },
        "node": me,
        "layered_runtime": {
            "layers": [
                {"name": "global config", "static_layer": runtime(facts)},
                {"name": "admin", "admin_layer": {}},
            ]
        },
        "bootstrap_extensions": _extensions(facts.metadata_discovery),
        **statistics.intervals(facts),
        "stats_config": statistics.stats_config(facts),
        "admin": _admin(facts),
        "dynamic_resources": _dynamic_resources(_is_delta(settings)),
        "static_resources": {"clusters": clusters.clusters(facts), "listeners": listeners.listeners(facts)},
        "overload_manager": _overload_manager(facts),
        "deferred_stat_options": {"enable_deferred_creation_stats": True},
    }
    optional = {
        "tracing": clusters.tracing(facts, me["cluster"]),
        "stats_sinks": statistics.sinks(facts),
        "cluster_manager": clusters.cluster_manager(facts),
    }
    return {**document, **{name: value for name, value in optional.items() if value}}


def _extensions(metadata_discovery: bool) -> list[dict[str, Json]]:
    def typed(name: str, type_url: str, value: Json) -> dict[str, Json]:
        config = {"@type": f"{TYPES}udpa.type.v1.TypedStruct", "type_url": f"{TYPES}{type_url}", "value": value}
        return {"name": name, "typed_config": config}

    internal = "envoy.extensions.bootstrap.internal_listener.v3.InternalListener"
    made = [typed("envoy.bootstrap.internal_listener", internal, {"buffer_size_kb": 64})]
    if metadata_discovery:
        value: dict[str, Json] = {"config_source": {"ads": {}}}
        made.insert(0, typed("metadata_discovery", "istio.workload.BootstrapExtension", value))
    return made


def _admin(facts: Facts) -> dict[str, Json]:
    return {
        "access_log": [
            {
                "name": "envoy.access_loggers.file",
                "typed_config": {
                    "@type": f"{TYPES}envoy.extensions.access_loggers.file.v3.FileAccessLog",
                    "path": "/dev/null",
                },
            }
        ],
        "profile_path": "/var/lib/istio/data/envoy.prof",
        "address": {
            "socket_address": {
                "address": facts.family.localhost,
                "port_value": facts.settings.config.proxy_admin_port,
            }
        },
    }


def _dynamic_resources(delta: bool) -> dict[str, Json]:
    from_ads = {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}
    return {
        "lds_config": from_ads,
        "cds_config": from_ads,
        "ads_config": {
            "api_type": "DELTA_GRPC" if delta else "GRPC",
            "set_node_on_first_message_only": True,
            "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
        },
    }


def runtime(facts: Facts) -> dict[str, Json]:
    """Built-in values under runtimeValues, where "" removes one and true and false become booleans."""
    flags = dict(_RUNTIME)
    if facts.settings.launch.compliance_policy == "fips-140-2":
        flags["envoy.reloadable_features.google_grpc_disable_tls_13"] = True
    if not facts.settings.launch.strip_fragment:
        flags["envoy.reloadable_features.http_strip_fragment_from_path_unsafe_if_disabled"] = "false"
    for name, value in facts.proxy_config.get("runtimeValues", {}).items():
        if value == "":
            flags.pop(name, None)
        else:
            flags[name] = {"true": True, "false": False}.get(value, value)
    return flags


def _overload_manager(facts: Facts) -> dict[str, Json]:
    message = "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
    return {
        "resource_monitors": [
            {
                "name": "envoy.resource_monitors.global_downstream_max_connections",
                "typed_config": {
                    "@type": f"{TYPES}{message}",
                    "max_active_downstream_connections": connection_limit(facts),
                },
            }
        ]
    }


def connection_limit(facts: Facts) -> int:
    """Most downstream connections of the proxy: the first of connectionSettings, the variable and the runtime value."""
    configured = facts.proxy_config.get("connectionSettings", {}).get("globalDownstreamConnectionLimit", 0)
    if configured:
        return int(configured)
    for where, text in (
        (f"ISTIO_META_{_GLOBAL_LIMIT_VARIABLE}", facts.raw_metadata.get(_GLOBAL_LIMIT_VARIABLE)),
        (
            f"runtimeValues {_GLOBAL_LIMIT_RUNTIME}",
            facts.proxy_config.get("runtimeValues", {}).get(_GLOBAL_LIMIT_RUNTIME),
        ),
    ):
        if text in (None, ""):
            continue
        if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 19:
            return int(text)
        facts.warnings.append(f"{where}: {str(text)[:64]!r} is ignored: expected a number of connections")
    return _UNLIMITED
