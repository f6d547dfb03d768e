"""Routes as the data plane works with them: matches, actions, header mutations, retries (see proxy.config.model)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

BytesPredicate = Callable[[bytes], bool]


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
    new_timeouts: bool = False
    """Whether there is a max_stream_duration, even an empty one: ``timeout`` is not used then."""
    max_stream_duration: float | None = None
    grpc_timeout_header_max: float | None = None
    """None: grpc-timeout does not limit the stream's duration; 0.0: it does, without a bound."""
    grpc_timeout_header_offset: float = 0.0
    max_grpc_timeout: float | None = None
    """None: grpc-timeout is not used in place of ``timeout``; 0.0: it is, without a bound."""
    grpc_timeout_offset: float = 0.0
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
