"""layered_runtime: its layers, flattened; the keys that change what a proxy does are known here."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from proxy.config.model import RuntimeLayer
from proxy.config.reader import Reader, Scope, ignore
from proxy.runtime.values import integer, text

FEATURE = "envoy.reloadable_features."
REJECT_PATH_WITH_FRAGMENT = f"{FEATURE}http_reject_path_with_fragment"
MAX_REQUEST_HEADERS_COUNT = f"{FEATURE}max_request_headers_count"
MAX_REQUEST_HEADERS_KB = f"{FEATURE}max_request_headers_size_kb"
MAX_RESPONSE_HEADERS_COUNT = f"{FEATURE}max_response_headers_count"
MAX_RESPONSE_HEADERS_KB = f"{FEATURE}max_response_headers_size_kb"
RE2_MAX_PROGRAM_SIZE = "re2.max_program_size.error_level"
CLIENT_SAMPLING = "tracing.client_enabled"
RANDOM_SAMPLING = "tracing.random_sampling"
OVERALL_SAMPLING = "tracing.global_enabled"

HONOURED = frozenset((
    REJECT_PATH_WITH_FRAGMENT, MAX_REQUEST_HEADERS_COUNT, MAX_REQUEST_HEADERS_KB, MAX_RESPONSE_HEADERS_COUNT,
    MAX_RESPONSE_HEADERS_KB, RE2_MAX_PROGRAM_SIZE, CLIENT_SAMPLING, RANDOM_SAMPLING, OVERALL_SAMPLING,
))
"""Keys that compilers look up."""


def _always(value: object) -> bool:
    return True


HARMLESS: tuple[tuple[str, Callable[[object], bool], str], ...] = (
    (r"envoy\.reloadable_features\.coalesce_lb_rebuilds_on_batch_update", _always,
     "when load balancers are rebuilt after an update; a static configuration has no updates"),
    (r"envoy\.reloadable_features\.fixed_heap_use_allocated", _always,
     "how Envoy's fixed_heap resource monitor measures; ours asks the kernel"),
    (r"envoy\.deprecated_features:.*", _always,
     "permits a deprecated field; each field is accepted or refused on its own"),
    (r"re2\.max_program_size\.warn_level", _always, "only counts and logs"),
    (r"overload\.premature_reset_.*", _always, "counts resets of HTTP/2 streams"),
)
"""(pattern of keys, test of the value, why it has no visible effect)."""

LISTENER_LIMIT = re.compile(r"envoy\.resource_limits\.listener\.(.*)\.connection_limit")
LIVE = rf"overload\.global_downstream_max_connections|{LISTENER_LIMIT.pattern}"
"""Keys that are looked at again whenever they change (proxy.limits)."""

VISIBLE_FEATURES: dict[str, bool | None] = {
    "always_use_v6": None,
    "codec_client_enable_idle_timer_only_when_connected": None,
    "connection_close_through_filter_manager": None,
    "enable_new_query_param_present_match_behavior": None,
    "enable_stats_explicit_tags": None,
    "enable_universal_header_validator": False,
    "filter_manager_forward_added_data_on_continue": None,
    "getaddrinfo_no_ai_flags": None,
    "grpc_timeout_returns_deadline_exceeded": False,
    "hide_transport_failure_reason_in_response_body": True,
    "http1_allow_query_method": True,
    "http1_close_connection_on_zombie_stream_complete": None,
    "http_inspector_fast_fail_invalid_method_bytes": True,
    "http_pause_generic_upgrade_request_body": None,
    "least_request_lb_count_pending_requests": True,
    "map_http_stream_reset_to_tcp_rst": None,
    "match_headers_individually": True,
    "non_graceful_drain_notifies_connections": False,
    "preserve_downstream_keepalive": None,
    "propagate_downstream_rst_to_upstream": None,
    "re2_use_latin1_mode": True,
    "response_headers_to_remove_on_1xx": None,
    "sanitize_upstream_stream_duration_header": True,
    "skip_pending_overflow_count_on_active_rq": True,
    "strict_chunk_parsing": False,
    "strip_dotdot_segments_with_parameters": None,
    "strip_path_parameters_per_segment": None,
    "strip_upgrade_header_on_failed_websocket_upgrades": None,
}
"""Feature flags of Envoy 1.40 that change what clients, upstreams or statistics show here, with the value that is how
this proxy behaves; None: neither is promised."""

REFUSED: tuple[tuple[str, str], ...] = (
    (r"circuit_breakers\..*", "circuit breakers from the runtime are not supported yet; set circuit_breakers"),
    (r"upstream\..*", "upstream settings from the runtime are not supported yet"),
    (r"(?:outlier_detection|health_check)\..*", "outlier detection and health checks are not supported yet"),
    (r"(?:http|http_connection_manager|listener|router|access_log|overload|regex|fault|ratelimit)\..*",
     "this setting from the runtime is not supported yet"),
)
"""(pattern of keys, why they are refused): their effect would be visible."""


def layered_runtime(reader: Reader) -> tuple[RuntimeLayer, ...]:
    """bootstrap.v3.LayeredRuntime."""
    layers = reader.each("layers", _layer)
    names = [layer.name for layer in layers]
    for name in sorted({name for name in names if names.count(name) > 1}):
        reader.error("layers", f"Duplicate layer name: {name}")
    if sum(layer.admin for layer in layers) > 1:
        reader.error("layers", "Too many admin layers specified in LayeredRuntime, at most one may be specified")
    return layers


def _layer(reader: Reader) -> RuntimeLayer:
    """bootstrap.v3.RuntimeLayer."""
    kind = reader.chosen("layer_specifier")
    values: dict[str, object] = {}
    if kind == "static_layer":
        values = _flatten(reader, reader.struct("static_layer"))
        for key, value in values.items():
            _check(reader, key, value)
    elif kind == "admin_layer":
        reader.sub("admin_layer", ignore)
    elif kind is not None:
        reader.take(kind)
        reader.error(kind, "is not supported yet; supported: static_layer, admin_layer")
    return RuntimeLayer(reader.string("name"), tuple(values.items()), kind == "admin_layer")


def _flatten(reader: Reader, struct: dict[str, object]) -> dict[str, object]:
    """Nested structs as dotted keys; a struct with a numerator is a fraction."""
    flat: dict[str, object] = {}
    todo = list(reversed(struct.items()))
    while todo:
        key, value = todo.pop()
        if isinstance(value, dict) and not value.keys() & {"numerator", "denominator"}:
            todo.extend((f"{key}.{below}", inner) for below, inner in reversed(value.items()))
        elif isinstance(value, dict | bool | int | float | str):
            flat[key] = value
        else:
            reader.error(f"static_layer[{key}]", f"Invalid runtime entry value for {key}: true or false, a number, a "
                                                 "text or keys below it are expected")
    return flat


def _check(reader: Reader, key: str, value: object) -> None:
    where = f"static_layer[{key}]"
    if LISTENER_LIMIT.fullmatch(key):
        reader.scope.runtime_limits[key] = reader.at(where)
    if key in HONOURED or (problem := _problem(key, value)) is None:
        return
    if problem:
        reader.error(where, problem)
    else:
        reader.scope.runtime_unknown[key] = reader.at(where)


def _problem(key: str, value: object) -> str | None:
    """Why a key would have an effect that is missing here; empty: it is not known; None: it may be set."""
    if re.fullmatch(LIVE, key):
        # Envoy reads anything else as "no limit": a typing error would take a limit away.
        return None if integer(value) is not None else f"{text(value)!r}: a number of connections is expected"
    if any(re.fullmatch(pattern, key) and test(value) for pattern, test, _ in HARMLESS):
        return None
    feature = key.removeprefix(FEATURE)
    if feature != key and feature in VISIBLE_FEATURES:
        ours = VISIBLE_FEATURES[feature]
        if ours is not None and str(value).lower() == str(ours).lower():
            return None
        only = "" if ours is None else f"; supported: {str(ours).lower()}"
        return f"this feature flag is not supported yet{only}"
    return next((why for pattern, why in REFUSED if re.fullmatch(pattern, key)), "")


def why_fixed(key: str, value: str, looked_up: frozenset[str]) -> str | None:
    """Why a key cannot be overridden while the proxy works, None if it can. An empty ``value`` takes it away."""
    if key in HONOURED or key in looked_up:
        return "is looked up when the configuration is loaded; changing it at run time is not supported yet"
    return (_problem(key, value) if value else None) or None


def no_such_listener(key: str, listeners: Collection[str]) -> str | None:
    """What is wrong with a key that limits a listener which does not exist: a typing error must not open the door."""
    found = LISTENER_LIMIT.fullmatch(key)
    if found is None or found[1] in listeners:
        return None
    return f"there is no listener {found[1]!r}; this runtime key has no effect"


def warn_unknown(scope: Scope, listeners: Collection[str]) -> None:
    """Warn about keys that nothing looked up. To be called when everything is compiled."""
    for key, where in scope.runtime_limits.items():
        if (why := no_such_listener(key, listeners)) is not None:
            scope.warn(where, why)
    for key, where in scope.runtime_unknown.items():
        if key not in scope.runtime_asked and key not in scope.runtime_live:
            scope.warn(where, "this runtime key is not known and has no effect")
