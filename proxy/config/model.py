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

from proxy.config.overload_model import OverloadManager
from proxy.config.route_model import (
    ADD_IF_ABSENT as ADD_IF_ABSENT,
)
from proxy.config.route_model import (
    APPEND_IF_EXISTS_OR_ADD as APPEND_IF_EXISTS_OR_ADD,
)
from proxy.config.route_model import (
    OVERWRITE_IF_EXISTS as OVERWRITE_IF_EXISTS,
)
from proxy.config.route_model import (
    OVERWRITE_IF_EXISTS_OR_ADD as OVERWRITE_IF_EXISTS_OR_ADD,
)
from proxy.config.route_model import (
    PATH as PATH,
)
from proxy.config.route_model import (
    PATH_SEPARATED_PREFIX as PATH_SEPARATED_PREFIX,
)
from proxy.config.route_model import (
    PREFIX as PREFIX,
)
from proxy.config.route_model import (
    SAFE_REGEX as SAFE_REGEX,
)
from proxy.config.route_model import (
    BytesPredicate as BytesPredicate,
)
from proxy.config.route_model import (
    DirectResponse as DirectResponse,
)
from proxy.config.route_model import (
    HeaderMatcher as HeaderMatcher,
)
from proxy.config.route_model import (
    HeaderMutations as HeaderMutations,
)
from proxy.config.route_model import (
    HeaderToAdd as HeaderToAdd,
)
from proxy.config.route_model import (
    QueryParameterMatcher as QueryParameterMatcher,
)
from proxy.config.route_model import (
    RedirectAction as RedirectAction,
)
from proxy.config.route_model import (
    RetryPolicy as RetryPolicy,
)
from proxy.config.route_model import (
    Route as Route,
)
from proxy.config.route_model import (
    RouteAction as RouteAction,
)
from proxy.config.route_model import (
    RouteConfiguration as RouteConfiguration,
)
from proxy.config.route_model import (
    RouteMatch as RouteMatch,
)
from proxy.config.route_model import (
    VirtualHost as VirtualHost,
)
from proxy.config.route_model import (
    WeightedCluster as WeightedCluster,
)

IPNetwork = IPv4Network | IPv6Network

UNLIMITED = 4294967295
"""Envoy's "no limit" for uint32 thresholds."""



class SocketAddress(NamedTuple):
    """config.core.v3.SocketAddress: an IP literal (or, for a DNS cluster's endpoint, a name) and a port."""

    host: str
    port: int

    @property
    def text(self) -> str:
        """``ip:port``, with brackets for IPv6, as Envoy prints addresses."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


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
    append_local_overload: bool = False
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


@dataclass(frozen=True, slots=True)
class ConnectionLimit:
    """extensions.filters.network.connection_limit.v3.ConnectionLimit. ``id`` tells it from all others."""

    id: str
    stat_prefix: str
    max_connections: int
    delay: float = 0.0
    runtime_key: str = ""
    enabled_by_default: bool = True


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
    """config.listener.v3.FilterChain: connection limits, then the terminal network filter."""

    name: str
    match: FilterChainMatch
    network_filter: HttpConnectionManager | TcpProxy
    connection_limits: tuple[ConnectionLimit, ...] = ()


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
    ignore_global_conn_limit: bool = False
    """The limit of all connections neither counts nor refuses its connections."""
    bypass_overload_manager: bool = False
    """Overload actions and load-shed points leave its connections alone."""


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
class RuntimeLayer:
    """config.bootstrap.v3.RuntimeLayer, flattened. ``admin``: the one that /runtime_modify writes to."""

    name: str
    values: tuple[tuple[str, object], ...] = ()
    admin: bool = False


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
    runtime_layers: tuple[RuntimeLayer, ...] = ()
    runtime_fixed: frozenset[str] = frozenset()
    """Keys that were looked up when this was compiled: changing them later has no effect."""
    overload: OverloadManager | None = None
