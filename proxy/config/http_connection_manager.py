"""extensions.filters.network.http_connection_manager.v3.HttpConnectionManager."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from proxy.config import model, runtime
from proxy.config.access_log import access_log
from proxy.config.core import cidr_range, percent
from proxy.config.extensions import Registry
from proxy.config.http_filters import ROUTER, RouterConfig, check_chain, http_filter
from proxy.config.http_options import CommonOptions, common_options, http1_options, limit
from proxy.config.model import Http1Options, HttpConnectionManager, IPNetwork, Tracing
from proxy.config.reader import Reader, Skip
from proxy.config.route import route_configuration
from proxy.config.route_action import upgrade_config

_SERVER_HEADER = {"OVERWRITE": model.OVERWRITE, "APPEND_IF_ABSENT": model.APPEND_IF_ABSENT,
                  "PASS_THROUGH": model.PASS_THROUGH}
_ESCAPED_SLASHES = {"IMPLEMENTATION_SPECIFIC_DEFAULT": model.KEEP_UNCHANGED, "KEEP_UNCHANGED": model.KEEP_UNCHANGED,
                    "REJECT_REQUEST": model.REJECT_REQUEST, "UNESCAPE_AND_REDIRECT": model.UNESCAPE_AND_REDIRECT,
                    "UNESCAPE_AND_FORWARD": model.UNESCAPE_AND_FORWARD}


def _sampling(reader: Reader, field: str, default: float, key: str) -> float:
    """A percentage of HttpConnectionManager.Tracing; a runtime key overrides it."""
    value = reader.sub(field, percent)
    return reader.scope.runtime_number(key, default if value is None else value)


def _tracing(reader: Reader) -> Tracing:
    """HttpConnectionManager.Tracing without a provider: what is left is visible in request ids."""
    return Tracing(
        client_sampling=_sampling(reader, "client_sampling", 100.0, runtime.CLIENT_SAMPLING),
        random_sampling=_sampling(reader, "random_sampling", 100.0, runtime.RANDOM_SAMPLING),
        overall_sampling=_sampling(reader, "overall_sampling", 100.0, runtime.OVERALL_SAMPLING),
    )


def _internal_addresses(reader: Reader) -> tuple[bool, tuple[IPNetwork, ...]]:
    return reader.boolean("unix_sockets"), reader.each("cidr_ranges", cidr_range)


@dataclass(frozen=True, slots=True)
class RequestIds:
    """extensions.request_id.uuid.v3.UuidRequestIdConfig."""

    pack_trace_reason: bool = True


def _uuid(reader: Reader) -> RequestIds:
    return RequestIds(pack_trace_reason=reader.boolean("pack_trace_reason", True))


REQUEST_IDS: Registry[RequestIds] = Registry(
    "request id extension",
    ("envoy.extensions.filters.network.http_connection_manager.v3.RequestIDExtension.typed_config",),
    {"envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig": _uuid},
)


def _request_ids(reader: Reader) -> RequestIds:
    return reader.extension("typed_config", REQUEST_IDS)


def _upgrades(reader: Reader) -> tuple[tuple[bytes, bool], ...]:
    upgrades = reader.each("upgrade_configs", upgrade_config)
    seen: set[bytes] = set()
    for kind, _ in upgrades:
        if kind in seen:
            reader.error("upgrade_configs",
                         f"Error: multiple upgrade configs with the same name: '{kind.decode()}'")
        seen.add(kind)
    return upgrades


def http_connection_manager(reader: Reader) -> HttpConnectionManager:
    """Compile a connection manager with its routes and HTTP filters."""
    reader.supported_enum("codec_type", "AUTO", "HTTP1")
    common = reader.sub("common_http_protocol_options", common_options) or CommonOptions()
    if common.max_response_headers_kb is not None:
        reader.error("common_http_protocol_options.max_response_headers_kb",
                     "Error: max_response_headers_kb cannot be set on http_connection_manager.")
    override = reader.boolean("stream_error_on_invalid_http_message")
    http1 = reader.sub("http_protocol_options", partial(http1_options, override_default=override))
    internal = reader.sub("internal_address_config", _internal_addresses)
    request_ids = reader.sub("request_id_extension", _request_ids) or RequestIds()
    strip_matching, strip_any = reader.boolean("strip_matching_host_port"), reader.boolean("strip_any_host_port")
    if strip_matching and strip_any:
        reader.error("strip_any_host_port",
                     "Error: Only one of `strip_matching_host_port` or `strip_any_host_port` can be set.")
    if not reader.has("http_filters"):
        reader.error("http_filters", "a connection manager without HTTP filters is not supported yet; the last one "
                                     f"must be {ROUTER}")
    filters = reader.each("http_filters", http_filter)
    check_chain(reader, "http_filters", filters)
    router = next((entry.config for entry in filters if isinstance(entry.config, RouterConfig)), RouterConfig())
    routes = reader.sub("route_config", route_configuration)
    result = HttpConnectionManager(
        stat_prefix=reader.string("stat_prefix"),
        route_config=routes or model.RouteConfiguration("", ()),
        http_filters=filters,
        access_logs=reader.each("access_log", access_log),
        server_name=reader.octets("server_name", b"envoy"),
        server_header_transformation=_SERVER_HEADER[reader.enum("server_header_transformation")],
        via=reader.octets("via"),
        use_remote_address=reader.boolean("use_remote_address"),
        skip_xff_append=reader.boolean("skip_xff_append"),
        xff_num_trusted_hops=reader.integer("xff_num_trusted_hops"),
        internal_cidrs=None if internal is None else internal[1],
        internal_unix_sockets=internal is not None and internal[0],
        generate_request_id=reader.boolean("generate_request_id", True),
        preserve_external_request_id=reader.boolean("preserve_external_request_id"),
        always_set_request_id_in_response=reader.boolean("always_set_request_id_in_response"),
        pack_trace_reason=request_ids.pack_trace_reason,
        tracing=reader.sub("tracing", _tracing),
        add_user_agent=reader.boolean("add_user_agent"),
        append_x_forwarded_port=reader.boolean("append_x_forwarded_port"),
        always_forward_client_cert=reader.enum("forward_client_cert_details") == "ALWAYS_FORWARD_ONLY",
        proxy_100_continue=reader.boolean("proxy_100_continue"),
        append_local_overload=reader.boolean("append_local_overload"),
        upgrade_types=_upgrades(reader),
        normalize_path=reader.boolean("normalize_path"),
        merge_slashes=reader.boolean("merge_slashes"),
        path_with_escaped_slashes_action=_ESCAPED_SLASHES[reader.enum("path_with_escaped_slashes_action")],
        reject_path_with_fragment=reader.scope.runtime_flag(runtime.REJECT_PATH_WITH_FRAGMENT, True),
        strip_matching_host_port=strip_matching,
        strip_any_host_port=strip_any,
        strip_trailing_host_dot=reader.boolean("strip_trailing_host_dot"),
        http1=http1 or Http1Options(override_stream_error_on_invalid_http_message=override),
        max_request_headers_kb=limit(
            reader, reader.limit("max_request_headers_kb"), runtime.MAX_REQUEST_HEADERS_KB, 60),
        max_headers_count=limit(reader, common.max_headers_count, runtime.MAX_REQUEST_HEADERS_COUNT, 100),
        headers_with_underscores_action=common.headers_with_underscores_action,
        stream_idle_timeout=reader.seconds("stream_idle_timeout", 300.0),
        request_timeout=reader.seconds("request_timeout"),
        request_headers_timeout=reader.seconds("request_headers_timeout"),
        drain_timeout=reader.seconds("drain_timeout", 5.0),
        delayed_close_timeout=reader.seconds("delayed_close_timeout", 1.0),
        idle_timeout=3600.0 if common.idle_timeout is None else common.idle_timeout,
        max_connection_duration=common.max_connection_duration,
        http1_safe_max_connection_duration=reader.boolean("http1_safe_max_connection_duration"),
        max_requests_per_connection=common.max_requests_per_connection,
        max_stream_duration=common.max_stream_duration,
        suppress_envoy_headers=router.suppress_envoy_headers,
    )
    if routes is None and reader.chosen("route_specifier") == "route_config":
        raise Skip
    return result
