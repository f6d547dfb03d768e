"""The HTTP connection manager without its routes."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest
from config_cases import EXTENSIONS, MANAGER, ROUTER, Case, Json

from proxy.config import model
from proxy.config.http_filters import ROUTER as ROUTER_TYPE
from proxy.config.http_filters import RouterConfig
from proxy.config.model import Http1Options, HttpConnectionManager, HttpFilterConfig, RouteConfiguration, Tracing


def manager(**fields: Any) -> HttpConnectionManager:
    case = Case()
    case.manager |= fields
    compiled = case.load().bootstrap.listeners[0].filter_chains[0].network_filter
    assert isinstance(compiled, HttpConnectionManager)
    return compiled


def errors(**fields: Any) -> dict[str, str]:
    case = Case()
    case.manager |= fields
    return case.errors()


def test_defaults() -> None:
    compiled = manager(route_config={})
    assert compiled == HttpConnectionManager(
        "web", RouteConfiguration("", ()),
        (HttpFilterConfig("envoy.filters.http.router", ROUTER_TYPE, RouterConfig()),))


def test_istios_settings() -> None:
    compiled = manager(
        server_name="istio-envoy", stream_idle_timeout="0s", normalize_path=True, proxy_100_continue=True,
        use_remote_address=False, forward_client_cert_details="APPEND_FORWARD",
        set_current_client_cert_details={"subject": True, "dns": True, "uri": True},
        path_with_escaped_slashes_action="KEEP_UNCHANGED", upgrade_configs=[{"upgrade_type": "WebSocket"}],
        tracing={"client_sampling": {"value": 100}, "random_sampling": {"value": 1}, "overall_sampling": {},
                 "custom_tags": [{"tag": "x", "literal": {"value": "y"}}]},
        request_id_extension={"typed_config": {"@type": f"{EXTENSIONS}.request_id.uuid.v3.UuidRequestIdConfig",
                                               "use_request_id_for_trace_sampling": True, "pack_trace_reason": False}})
    assert (compiled.server_name, compiled.stream_idle_timeout, compiled.normalize_path) == (b"istio-envoy", 0.0, True)
    assert compiled.upgrade_types == ((b"websocket", True),)
    assert compiled.tracing == Tracing(100.0, 1.0, 0.0)
    assert compiled.pack_trace_reason is False


def test_protocol_options() -> None:
    compiled = manager(
        common_http_protocol_options={"idle_timeout": "60s", "max_connection_duration": "5s", "max_headers_count": 7,
                                      "max_stream_duration": "6s", "headers_with_underscores_action": "REJECT_REQUEST",
                                      "max_requests_per_connection": 9},
        http_protocol_options={"accept_http_10": True, "default_host_for_http_10": "d", "allow_chunked_length": True,
                               "enable_trailers": True, "allow_absolute_url": False,
                               "header_key_format": {"proper_case_words": {}}})
    assert (compiled.idle_timeout, compiled.max_connection_duration, compiled.max_headers_count) == (60.0, 5.0, 7)
    assert (compiled.max_stream_duration, compiled.headers_with_underscores_action) == (6.0, "REJECT_REQUEST")
    assert compiled.max_requests_per_connection == 9
    assert compiled.http1 == Http1Options(True, b"d", False, True, True, True)


@pytest.mark.parametrize(("of_manager", "of_codec", "expected"), [
    (None, None, False), (True, None, True), (True, False, False), (False, True, True), (None, True, True),
])
def test_stream_error_on_invalid_http_message(of_manager: bool | None, of_codec: bool | None, expected: bool) -> None:
    compiled = manager(stream_error_on_invalid_http_message=of_manager,
                       http_protocol_options={"override_stream_error_on_invalid_http_message": of_codec})
    assert compiled.http1.override_stream_error_on_invalid_http_message is expected
    if of_codec is None:
        compiled = manager(stream_error_on_invalid_http_message=of_manager)
        assert compiled.http1.override_stream_error_on_invalid_http_message is expected


def test_internal_addresses() -> None:
    assert manager().internal_cidrs is None
    assert manager(internal_address_config={}).internal_cidrs == ()
    compiled = manager(internal_address_config={"unix_sockets": True, "cidr_ranges": [
        {"address_prefix": "10.0.0.0", "prefix_len": 8}]})
    assert (compiled.internal_cidrs, compiled.internal_unix_sockets) == ((ip_network("10.0.0.0/8"),), True)


@pytest.mark.parametrize(("mode", "forwarded"), [
    ("SANITIZE", False), ("FORWARD_ONLY", False), ("APPEND_FORWARD", False), ("SANITIZE_SET", False),
    ("ALWAYS_FORWARD_ONLY", True),
])
def test_forward_client_cert_details(mode: str, forwarded: bool) -> None:
    assert manager(forward_client_cert_details=mode).always_forward_client_cert is forwarded


def test_the_routers_settings() -> None:
    router = {"name": "r",
              "typed_config": {**ROUTER["typed_config"], "suppress_envoy_headers": True,  # type: ignore[dict-item]
                                            "dynamic_stats": True, "start_child_span": True}}
    assert manager(http_filters=[router]).suppress_envoy_headers is True


@pytest.mark.parametrize(("fields", "path", "message"), [
    ({"codec_type": "HTTP2"}, "codec_type", "HTTP2 is not supported yet; supported: AUTO, HTTP1"),
    ({"codec_type": "HTTP3"}, "codec_type", "HTTP3 is not supported yet; supported: AUTO, HTTP1"),
    ({"route_config": None}, "", "field: 'route_specifier', reason: is required"),
    ({"route_config": None, "rds": {"config_source": {"ads": {}}}}, "rds", "dynamic resources (xDS) come later"),
    ({"stat_prefix": ""}, "stat_prefix", "value length must be at least 1 characters"),
    ({"http_filters": []}, "http_filters", "a connection manager without HTTP filters is not supported yet"),
    ({"http_filters": [ROUTER, ROUTER]}, "http_filters",
     "Error: terminal filter named envoy.filters.http.router of type "
     "envoy.filters.http.router must be the last filter in a http filter chain."),
    ({"http_filters": [{"name": "x"}]}, "http_filters[0].typed_config", "a type URL (@type) is required"),
    ({"http_filters": [{**ROUTER, "disabled": True}]}, "http_filters[0].disabled", "is not supported yet"),
    ({"common_http_protocol_options": {"max_response_headers_kb": 5}},
     "common_http_protocol_options.max_response_headers_kb", "cannot be set on http_connection_manager"),
    ({"max_request_headers_kb": 9000}, "max_request_headers_kb", "value must be less than or equal to 8192"),
    ({"request_timeout": "-1s"}, "request_timeout", "Expected positive duration"),
    ({"strip_matching_host_port": True, "strip_any_host_port": True}, "strip_any_host_port", "Only one of"),
    ({"upgrade_configs": [{"upgrade_type": "websocket"}, {"upgrade_type": "WebSocket"}]}, "upgrade_configs",
     "Error: multiple upgrade configs with the same name: 'websocket'"),
    ({"upgrade_configs": [{"upgrade_type": "CONNECT"}]}, "upgrade_configs[0].upgrade_type",
     "CONNECT is not supported yet"),
    ({"upgrade_configs": [{"upgrade_type": "x", "filters": [ROUTER]}]}, "upgrade_configs[0].filters",
     "not supported yet"),
    ({"tracing": {"provider": {"name": "x"}}}, "tracing.provider", "tracers come later"),
    ({"local_reply_config": {}}, "local_reply_config", "is not supported yet"),
    ({"original_ip_detection_extensions": [{"name": "x"}]}, "original_ip_detection_extensions", "is not supported yet"),
    ({"server_name": "a\nb"}, "server_name", "value does not match regex pattern"),
    ({"http_protocol_options": {"allow_custom_methods": True}}, "http_protocol_options.allow_custom_methods",
     "is not supported yet"),
    ({"http_protocol_options": {"header_key_format": {"stateful_formatter": {"name": "x"}}}},
     "http_protocol_options.header_key_format.stateful_formatter", "is not supported yet"),
    ({"access_log_options": {"flush_access_log_on_new_request": True}}, "access_log_options", "is not supported yet"),
])
def test_refusals(fields: Json, path: str, message: str) -> None:
    assert message in errors(**fields)[f"{MANAGER}.{path}" if path else MANAGER]


@pytest.mark.parametrize(("value", "constant"), [
    ("IMPLEMENTATION_SPECIFIC_DEFAULT", model.KEEP_UNCHANGED), ("REJECT_REQUEST", model.REJECT_REQUEST),
    ("UNESCAPE_AND_REDIRECT", model.UNESCAPE_AND_REDIRECT), ("UNESCAPE_AND_FORWARD", model.UNESCAPE_AND_FORWARD),
])
def test_escaped_slashes(value: str, constant: int) -> None:
    assert manager(path_with_escaped_slashes_action=value).path_with_escaped_slashes_action == constant
