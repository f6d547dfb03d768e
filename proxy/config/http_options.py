"""Protocol options of HTTP codecs (config.core.v3.protocol) and of clusters (extensions.upstreams.http.v3)."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.config.extensions import Registry
from proxy.config.model import Http1Options
from proxy.config.reader import Reader, ignore


@dataclass(frozen=True, slots=True)
class CommonOptions:
    """core.v3.HttpProtocolOptions; ``None``: not set."""

    idle_timeout: float | None = None
    max_connection_duration: float = 0.0
    max_headers_count: int | None = None
    max_response_headers_kb: int | None = None
    max_stream_duration: float = 0.0
    headers_with_underscores_action: str = "ALLOW"
    max_requests_per_connection: int = 0


def common_options(reader: Reader) -> CommonOptions:
    """core.v3.HttpProtocolOptions. Each user must refuse what has no effect where it stands."""
    return CommonOptions(
        idle_timeout=reader.optional_seconds("idle_timeout"),
        max_connection_duration=reader.seconds("max_connection_duration"),
        max_headers_count=reader.limit("max_headers_count"),
        max_response_headers_kb=reader.limit("max_response_headers_kb"),
        max_stream_duration=reader.seconds("max_stream_duration"),
        headers_with_underscores_action=reader.enum("headers_with_underscores_action"),
        max_requests_per_connection=reader.integer("max_requests_per_connection"),
    )


def limit(reader: Reader, configured: int | None, key: str, default: int) -> int:
    """A limit of header size or count; a runtime key replaces Envoy's default."""
    return int(reader.scope.runtime_number(key, default)) if configured is None else configured


def _header_key_format(reader: Reader) -> bool:
    """Whether header names are written with capitals (proper_case_words)."""
    if reader.chosen("header_format") == "proper_case_words":
        return reader.sub("proper_case_words", ignore) is not None
    return False


def http1_options(reader: Reader, *, override_default: bool = False) -> Http1Options:
    """core.v3.Http1ProtocolOptions. ``override_default``: stream_error_on_invalid_http_message of the manager."""
    return Http1Options(
        accept_http_10=reader.boolean("accept_http_10"),
        default_host_for_http_10=reader.octets("default_host_for_http_10"),
        allow_absolute_url=reader.boolean("allow_absolute_url", True),
        allow_chunked_length=reader.boolean("allow_chunked_length"),
        enable_trailers=reader.boolean("enable_trailers"),
        proper_case_words=bool(reader.sub("header_key_format", _header_key_format)),
        override_stream_error_on_invalid_http_message=reader.boolean(
            "override_stream_error_on_invalid_http_message", override_default),
    )


@dataclass(frozen=True, slots=True)
class UpstreamHttpOptions:
    """How a cluster speaks HTTP."""

    common: CommonOptions = CommonOptions()
    http1: Http1Options = Http1Options()


def _explicit(reader: Reader) -> Http1Options | None:
    """ExplicitHttpConfig: HTTP/1 only."""
    return reader.sub("http_protocol_options", http1_options)


def _downstream(reader: Reader) -> Http1Options | None:
    """UseDownstreamHttpConfig: downstream is always HTTP/1, so the options of other versions are never used."""
    return reader.sub("http_protocol_options", http1_options)


def upstream_http_options(reader: Reader) -> UpstreamHttpOptions:
    """extensions.upstreams.http.v3.HttpProtocolOptions."""
    common = reader.sub("common_http_protocol_options", common_options) or CommonOptions()
    http1 = reader.sub("explicit_http_config", _explicit) or reader.sub("use_downstream_protocol_config", _downstream)
    reader.sub("upstream_http_protocol_options", ignore)
    reader.each("http_filters", _upstream_filter)
    return UpstreamHttpOptions(common, http1 or Http1Options())


UPSTREAM_HTTP_FILTERS: Registry[bool] = Registry(
    "upstream HTTP filter",
    (),
    {"envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec": ignore},
)


def _upstream_filter(reader: Reader) -> bool:
    return reader.extension("typed_config", UPSTREAM_HTTP_FILTERS)


UPSTREAM_OPTIONS: Registry[UpstreamHttpOptions] = Registry(
    "protocol option",
    ("envoy.config.cluster.v3.Cluster.TypedExtensionProtocolOptionsEntry.value",),
    {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": upstream_http_options},
)
