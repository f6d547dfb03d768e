"""What the configuration compilers produce: frozen objects in the units and types that the data plane works with.

One class a resource, named as in Envoy's API. Times are seconds as float, where 0.0 means "off" (Envoy's own
convention for timeouts); HTTP text (names, paths, header values) is bytes; an absent limit is ``UNLIMITED``.
Nothing here refers to protobuf: the messages stay in the main process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

IPNetwork = IPv4Network | IPv6Network

UNLIMITED = 4294967295
"""Envoy's "no limit" for uint32 thresholds."""

BytesPredicate = Callable[[bytes], bool]


class SocketAddress(NamedTuple):
    """config.core.v3.SocketAddress: an IP literal (or, for a DNS cluster's endpoint, a name) and a port."""

    host: str
    port: int

    @property
    def text(self) -> str:
        """``ip:port``, with brackets for IPv6, as Envoy prints addresses."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


# --- header matching and mutation -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HeaderMatcher:
    """config.route.v3.HeaderMatcher. ``matches`` gets one value; a header with several matches if any value does.

    ``present_only`` with ``want_present`` covers present_match (and its inversion). ``missing_is_empty`` is
    treat_missing_header_as_empty. ``invert`` applies to a value matcher on a present header only.
    """

    name: bytes
    matches: BytesPredicate | None
    invert: bool = False
    want_present: bool = True
    missing_is_empty: bool = False


@dataclass(frozen=True, slots=True)
class QueryParameterMatcher:
    """config.route.v3.QueryParameterMatcher; looks at the first occurrence. ``matches`` None: presence."""

    name: bytes
    matches: BytesPredicate | None
    want_present: bool = True


APPEND_IF_EXISTS_OR_ADD = 0
ADD_IF_ABSENT = 1
OVERWRITE_IF_EXISTS_OR_ADD = 2
OVERWRITE_IF_EXISTS = 3


@dataclass(frozen=True, slots=True)
class HeaderToAdd:
    """config.core.v3.HeaderValueOption. ``value`` is a format string of proxy.access_log.format (missing = empty)."""

    name: bytes
    value: str
    action: int = APPEND_IF_EXISTS_OR_ADD
    keep_empty_value: bool = False


@dataclass(frozen=True, slots=True)
class HeaderMutations:
    """request/response_headers_to_add/remove of one level (route, virtual host, ...)."""

    request_add: tuple[HeaderToAdd, ...] = ()
    request_remove: tuple[bytes, ...] = ()
    response_add: tuple[HeaderToAdd, ...] = ()
    response_remove: tuple[bytes, ...] = ()


# --- access log --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AccessLog:
    """config.accesslog.v3.AccessLog with a file or stdout/stderr sink and a text format.

    ``format`` is the text format including its newline. ``flags`` None: no filter; a frozenset (possibly empty:
    any flag) is response_flag_filter.
    """

    path: str
    format: str
    flags: frozenset[str] | None = None


# --- routes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """config.route.v3.RetryPolicy. ``retry_on`` holds the known tokens only, each once."""

    retry_on: frozenset[str]
    num_retries: int = 1
    per_try_timeout: float = 0.0
    per_try_idle_timeout: float = 0.0
    retriable_status_codes: frozenset[int] = frozenset()
    avoid_previous_hosts: bool = False
    host_selection_retry_max_attempts: int = 1
    base_interval: float = 0.025
    max_interval: float = 0.250
    retriable_headers: tuple[HeaderMatcher, ...] = ()
    retriable_request_headers: tuple[HeaderMatcher, ...] = ()

    @property
    def unusual(self) -> bool:
        """Responses below 400 may be retried, too."""
        return bool(self.retriable_headers or "envoy-ratelimited" in self.retry_on
                    or any(code < 400 for code in self.retriable_status_codes))


@dataclass(frozen=True, slots=True)
class WeightedCluster:
    """One entry of weighted_clusters."""

    name: str
    weight: int
    mutations: HeaderMutations = HeaderMutations()
    host_rewrite_literal: bytes = b""


@dataclass(frozen=True, slots=True)
class RouteAction:
    """config.route.v3.RouteAction. Exactly one of ``cluster``, ``cluster_header``, ``weighted_clusters`` is set."""

    cluster: str = ""
    cluster_header: bytes = b""
    weighted_clusters: tuple[WeightedCluster, ...] = ()
    weighted_header_name: bytes = b""
    cluster_not_found_response_code: int = 503
    timeout: float = 15.0
    idle_timeout: float | None = None
    max_stream_duration: float | None = None
    prefix_rewrite: bytes = b""
    regex_rewrite: tuple[object, object] | None = None
    """(pattern, substitution): ``pattern.sub(substitution, path)`` is the new path (proxy.config.regex)"""
    host_rewrite_literal: bytes = b""
    host_rewrite_header: bytes = b""
    auto_host_rewrite: bool = False
    append_x_forwarded_host: bool = False
    retry_policy: RetryPolicy | None = None
    upgrade_types: tuple[tuple[bytes, bool], ...] = ()
    """upgrade_configs of the route: (lower-case type, enabled); overrides the connection manager's."""
    high_priority: bool = False


@dataclass(frozen=True, slots=True)
class RedirectAction:
    """config.route.v3.RedirectAction."""

    response_code: int = 301
    https_redirect: bool = False
    scheme_redirect: bytes = b""
    host_redirect: bytes = b""
    port_redirect: int = 0
    path_redirect: bytes = b""
    prefix_rewrite: bytes = b""
    regex_rewrite: tuple[object, object] | None = None
    strip_query: bool = False


@dataclass(frozen=True, slots=True)
class DirectResponse:
    """config.route.v3.DirectResponseAction; the body is read at configuration time."""

    status: int
    body: bytes = b""


PREFIX, PATH, SAFE_REGEX, PATH_SEPARATED_PREFIX = range(4)


@dataclass(frozen=True, slots=True)
class RouteMatch:
    """config.route.v3.RouteMatch. ``regex.fullmatch(path)`` gets the path without its query."""

    kind: int
    value: bytes = b""
    regex: object | None = None
    case_sensitive: bool = True
    headers: tuple[HeaderMatcher, ...] = ()
    query_parameters: tuple[QueryParameterMatcher, ...] = ()
    grpc: bool = False
    runtime_fraction: float | None = None
    """Share of requests from 0.0 to 1.0; None: all."""


@dataclass(frozen=True, slots=True)
class Route:
    """config.route.v3.Route."""

    name: str
    match: RouteMatch
    action: RouteAction | RedirectAction | DirectResponse
    mutations: HeaderMutations = HeaderMutations()
    decorator_operation: bytes = b""
    decorator_propagate: bool = True


@dataclass(frozen=True, slots=True)
class VirtualHost:
    """config.route.v3.VirtualHost. A retry_policy of the virtual host is already merged into its routes."""

    name: str
    domains: tuple[bytes, ...]
    routes: tuple[Route, ...]
    mutations: HeaderMutations = HeaderMutations()
    include_request_attempt_count: bool = False
    include_attempt_count_in_response: bool = False
    require_tls: str = "NONE"


@dataclass(frozen=True, slots=True)
class RouteConfiguration:
    """config.route.v3.RouteConfiguration."""

    name: str
    virtual_hosts: tuple[VirtualHost, ...]
    mutations: HeaderMutations = HeaderMutations()
    most_specific_header_mutations_wins: bool = False
    ignore_port_in_host_matching: bool = False


# --- network filters ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Http1Options:
    """config.core.v3.Http1ProtocolOptions as the server or the client codec uses it."""

    accept_http_10: bool = False
    default_host_for_http_10: bytes = b""
    allow_absolute_url: bool = True
    allow_chunked_length: bool = False
    enable_trailers: bool = False
    proper_case_words: bool = False
    override_stream_error_on_invalid_http_message: bool = False


@dataclass(frozen=True, slots=True)
class Tracing:
    """HttpConnectionManager.Tracing without a provider: sampling in percent, visible in request ids."""

    client_sampling: float = 100.0
    random_sampling: float = 100.0
    overall_sampling: float = 100.0


@dataclass(frozen=True, slots=True)
class HttpFilterConfig:
    """One entry of http_filters: its name and what its compiler made of the typed_config (None for the router)."""

    name: str
    type_url: str
    config: object | None


OVERWRITE, APPEND_IF_ABSENT, PASS_THROUGH = range(3)
KEEP_UNCHANGED, REJECT_REQUEST, UNESCAPE_AND_REDIRECT, UNESCAPE_AND_FORWARD = range(1, 5)


@dataclass(frozen=True, slots=True)
class HttpConnectionManager:
    """extensions.filters.network.http_connection_manager.v3.HttpConnectionManager; defaults are Envoy's."""

    stat_prefix: str
    route_config: RouteConfiguration
    http_filters: tuple[HttpFilterConfig, ...]
    access_logs: tuple[AccessLog, ...] = ()
    server_name: bytes = b"envoy"
    server_header_transformation: int = OVERWRITE
    via: bytes = b""
    use_remote_address: bool = False
    skip_xff_append: bool = False
    xff_num_trusted_hops: int = 0
    internal_cidrs: tuple[IPNetwork, ...] | None = None
    """internal_address_config.cidr_ranges; None: nothing is internal."""
    internal_unix_sockets: bool = False
    generate_request_id: bool = True
    preserve_external_request_id: bool = False
    always_set_request_id_in_response: bool = False
    pack_trace_reason: bool = True
    tracing: Tracing | None = None
    add_user_agent: bool = False
    append_x_forwarded_port: bool = False
    always_forward_client_cert: bool = False
    """forward_client_cert_details ALWAYS_FORWARD_ONLY; every other mode removes the header on plaintext."""
    proxy_100_continue: bool = False
    upgrade_types: tuple[tuple[bytes, bool], ...] = ()
    normalize_path: bool = False
    merge_slashes: bool = False
    path_with_escaped_slashes_action: int = KEEP_UNCHANGED
    reject_path_with_fragment: bool = True
    """Runtime guard envoy.reloadable_features.http_reject_path_with_fragment; false: the fragment is cut off."""
    strip_matching_host_port: bool = False
    strip_any_host_port: bool = False
    strip_trailing_host_dot: bool = False
    http1: Http1Options = Http1Options()
    max_request_headers_kb: int = 60
    max_headers_count: int = 100
    headers_with_underscores_action: str = "ALLOW"
    stream_idle_timeout: float = 300.0
    request_timeout: float = 0.0
    request_headers_timeout: float = 0.0
    drain_timeout: float = 5.0
    delayed_close_timeout: float = 1.0
    idle_timeout: float = 3600.0
    max_connection_duration: float = 0.0
    http1_safe_max_connection_duration: bool = False
    max_requests_per_connection: int = 0
    max_stream_duration: float = 0.0
    suppress_envoy_headers: bool = False
    """Router.suppress_envoy_headers of the chain's router."""


@dataclass(frozen=True, slots=True)
class TcpProxy:
    """extensions.filters.network.tcp_proxy.v3.TcpProxy."""

    stat_prefix: str
    cluster: str = ""
    weighted_clusters: tuple[tuple[str, int], ...] = ()
    access_logs: tuple[AccessLog, ...] = ()
    idle_timeout: float = 3600.0
    max_connect_attempts: int = 1
    max_downstream_connection_duration: float = 0.0


# --- listeners ---------------------------------------------------------------------------------------------------

ANY_SOURCE, SAME_IP_OR_LOOPBACK, EXTERNAL = range(3)


@dataclass(frozen=True, slots=True)
class FilterChainMatch:
    """config.listener.v3.FilterChainMatch; an empty criterion matches anything."""

    destination_port: int | None = None
    prefix_ranges: tuple[IPNetwork, ...] = ()
    server_names: tuple[str, ...] = ()
    transport_protocol: str = ""
    application_protocols: tuple[str, ...] = ()
    direct_source_prefix_ranges: tuple[IPNetwork, ...] = ()
    source_type: int = ANY_SOURCE
    source_prefix_ranges: tuple[IPNetwork, ...] = ()
    source_ports: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class FilterChain:
    """config.listener.v3.FilterChain with its single, terminal network filter."""

    name: str
    match: FilterChainMatch
    network_filter: HttpConnectionManager | TcpProxy


ORIGINAL_DST_FILTER = "envoy.filters.listener.original_dst"
HTTP_INSPECTOR_FILTER = "envoy.filters.listener.http_inspector"


@dataclass(frozen=True, slots=True)
class ListenerFilter:
    """One listener filter. ``disabled`` (filter_disabled) gets the local (destination) port."""

    type: str
    disabled: Callable[[int], bool] | None = None


@dataclass(frozen=True, slots=True)
class Listener:
    """config.listener.v3.Listener. ``addresses[0]`` is ``address``, the rest are additional_addresses."""

    name: str
    addresses: tuple[SocketAddress, ...]
    filter_chains: tuple[FilterChain, ...]
    default_filter_chain: FilterChain | None = None
    listener_filters: tuple[ListenerFilter, ...] = ()
    listener_filters_timeout: float = 15.0
    continue_on_listener_filters_timeout: bool = False
    bind_to_port: bool = True
    use_original_dst: bool = False
    traffic_direction: str = "UNSPECIFIED"
    access_logs: tuple[AccessLog, ...] = ()
    per_connection_buffer_limit_bytes: int = 1024 * 1024
    stat_prefix: str = ""
    tcp_backlog_size: int | None = None
    modify_only_drain: bool = False
    max_connections_to_accept_per_socket_event: int = 0
    """0: not set."""


# --- clusters ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One lb_endpoint with its locality."""

    address: SocketAddress
    hostname: str = ""
    weight: int = 1
    region: str = ""
    zone: str = ""
    sub_zone: str = ""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """circuit_breakers.thresholds of one priority."""

    max_connections: int = 1024
    max_pending_requests: int = 1024
    max_requests: int = 1024
    max_retries: int = 3


@dataclass(frozen=True, slots=True)
class TcpKeepalive:
    """config.core.v3.TcpKeepalive; 0 keeps the kernel's value."""

    probes: int = 0
    time: int = 0
    interval: int = 0


STATIC, STRICT_DNS, ORIGINAL_DST = "STATIC", "STRICT_DNS", "ORIGINAL_DST"
ROUND_ROBIN, LEAST_REQUEST, RANDOM, CLUSTER_PROVIDED = "ROUND_ROBIN", "LEAST_REQUEST", "RANDOM", "CLUSTER_PROVIDED"


@dataclass(frozen=True, slots=True)
class Cluster:
    """config.cluster.v3.Cluster; defaults are Envoy's."""

    name: str
    type: str = STATIC
    lb_policy: str = ROUND_ROBIN
    alt_stat_name: str = ""
    connect_timeout: float = 5.0
    endpoints: tuple[Endpoint, ...] = ()
    choice_count: int = 2
    active_request_bias: float = 1.0
    default: Thresholds = Thresholds()
    high: Thresholds = Thresholds()
    source_addresses: tuple[SocketAddress, ...] = ()
    """upstream_bind_config: source_address and extra_source_addresses; the first of the peer's family is used."""
    tcp_keepalive: TcpKeepalive | None = None
    per_connection_buffer_limit_bytes: int = 1024 * 1024
    http1: Http1Options = Http1Options()
    idle_timeout: float = 3600.0
    max_connection_duration: float = 0.0
    max_requests_per_connection: int = 0
    max_stream_duration: float = 0.0
    max_response_headers_kb: int = 80
    max_response_headers_count: int = 100
    dns_refresh_rate: float = 5.0
    dns_lookup_family: str = "AUTO"
    cleanup_interval: float = 5.0
    use_http_header: bool = False
    http_header_name: bytes = b"x-envoy-original-dst-host"
    upstream_port_override: int = 0


# --- bootstrap ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Node:
    """config.core.v3.Node as far as headers and logs show it."""

    id: str = ""
    cluster: str = ""


@dataclass(frozen=True, slots=True)
class Admin:
    """config.bootstrap.v3.Admin; ``address`` None: no admin listener."""

    address: SocketAddress | None = None
    access_logs: tuple[AccessLog, ...] = ()


@dataclass(frozen=True, slots=True)
class StatsTag:
    """config.metrics.v3.TagSpecifier: a tag with a regex (group 1 is cut out, group 2 or 1 is the value) or a value."""

    name: str
    regex: str = ""
    fixed_value: str = ""


@dataclass(frozen=True, slots=True)
class StatsConfig:
    """config.metrics.v3.StatsConfig. ``included`` decides by full dotted name; None: everything."""

    tags: tuple[StatsTag, ...] = ()
    use_all_default_tags: bool = True
    included: Callable[[str], bool] | None = None


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """config.bootstrap.v3.Bootstrap: the whole configuration of one proxy."""

    node: Node
    admin: Admin
    listeners: tuple[Listener, ...]
    clusters: tuple[Cluster, ...]
    stats: StatsConfig = StatsConfig()
    stats_flush_interval: float = 5.0
    runtime: tuple[tuple[str, object], ...] = ()
    """layered_runtime flattened: key -> value of the last layer that has it."""
