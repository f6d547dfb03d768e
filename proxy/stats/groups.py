"""Counters as plain integers on plain objects: one group of statistics for each scope (Envoy's stat prefix).

The request path writes ``stats.upstream_cx_total += 1``; everything else (names, merging, formats) happens when
someone looks. A group's annotations declare its statistics; what follows from others is derived in ``collect``.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

G = TypeVar("G", bound="StatGroup")

Counter = int
Gauge = int
"""Additive over workers."""
Level = int
"""A gauge that every worker knows alike (members of a cluster): the largest is shown."""
Shared = int
"""A counter of what every worker does for itself (resolving a cluster's name): the largest is shown."""
Histogram = dict[int, int]
"""value (ms, or a count) -> how often since the last flush."""


class Snapshot:
    """Statistics of one worker (or the sum of several) by full name."""

    __slots__ = ("counters", "gauges", "histograms", "levels", "shared")

    def __init__(self) -> None:
        self.counters: dict[str, int] = {}
        self.gauges: dict[str, int] = {}
        self.levels: dict[str, int] = {}
        self.shared: dict[str, int] = {}
        self.histograms: dict[str, dict[int, int]] = {}

    def to_wire(self) -> dict[str, Any]:
        """A value of plain dicts, for marshal."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_wire(cls, value: dict[str, Any]) -> Snapshot:
        """The inverse of ``to_wire``."""
        snapshot = cls()
        for name in cls.__slots__:
            setattr(snapshot, name, value[name])
        return snapshot


class StatGroup:
    """Base of all groups. Annotations with the name of a kind (``Counter``, ...) become attributes, set to 0 or {}."""

    __slots__ = ("prefix",)
    KINDS: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls) -> None:
        own = {n: k for n, k in cls.__dict__.get("__annotations__", {}).items()
               if k in ("Counter", "Gauge", "Level", "Shared", "Histogram")}
        cls.KINDS = {**cls.KINDS, **own}

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        for name, kind in self.KINDS.items():
            setattr(self, name, {} if kind == "Histogram" else 0)

    def collect(self, out: Snapshot, flush: bool) -> None:
        """Add this group's values to a snapshot. ``flush`` hands over the histograms and empties them."""
        prefix = self.prefix
        for name, kind in self.KINDS.items():
            value = getattr(self, name)
            if kind == "Counter":
                out.counters[f"{prefix}.{name}"] = value
            elif kind == "Gauge":
                out.gauges[f"{prefix}.{name}"] = value
            elif kind == "Level":
                out.levels[f"{prefix}.{name}"] = value
            elif kind == "Shared":
                out.shared[f"{prefix}.{name}"] = value
            elif flush and value:
                out.histograms[f"{prefix}.{name}"] = value
                setattr(self, name, {})
            else:
                out.histograms.setdefault(f"{prefix}.{name}", {})


class ListenerStats(StatGroup):
    """``listener.<ip>_<port>``."""

    downstream_cx_total: Counter
    downstream_cx_destroy: Counter
    downstream_cx_overflow: Counter
    downstream_cx_overload_reject: Counter
    downstream_cx_transport_socket_connect_timeout: Counter
    downstream_global_cx_overflow: Counter
    downstream_pre_cx_timeout: Counter
    downstream_listener_filter_error: Counter
    downstream_listener_filter_remote_close: Counter
    no_filter_chain_match: Counter
    downstream_cx_active: Gauge
    downstream_pre_cx_active: Gauge
    downstream_cx_length_ms: Histogram
    __slots__ = tuple(__annotations__)


class ListenerWorkerStats(StatGroup):
    """``listener.<ip>_<port>.worker_<n>``: the share of one worker (``main_thread`` for the admin listener)."""

    downstream_cx_total: Counter
    downstream_cx_active: Gauge
    __slots__ = tuple(__annotations__)


class ListenerHttpStats(StatGroup):
    """``listener.<ip>_<port>.http.<stat_prefix>``. ``rq_class[n]`` counts responses nxx."""

    rq_class: list[int]
    __slots__ = tuple(__annotations__)

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix)
        self.rq_class = [0] * 10

    def collect(self, out: Snapshot, flush: bool) -> None:
        super().collect(out, flush)
        for n in range(1, 6):
            out.counters[f"{self.prefix}.downstream_rq_{n}xx"] = self.rq_class[n]
        out.counters[f"{self.prefix}.downstream_rq_completed"] = sum(self.rq_class)


class HttpInspectorStats(StatGroup):
    """``http_inspector``."""

    http10_found: Counter
    http11_found: Counter
    http2_found: Counter
    http_not_found: Counter
    __slots__ = tuple(__annotations__)


class ConnectionLimitStats(StatGroup):
    """``connection_limit.<stat_prefix>``."""

    limited_connections: Counter
    active_connections: Gauge
    __slots__ = tuple(__annotations__)


class TcpProxyStats(StatGroup):
    """``tcp.<stat_prefix>``."""

    downstream_cx_total: Counter
    downstream_cx_no_route: Counter
    downstream_cx_rx_bytes_total: Counter
    downstream_cx_tx_bytes_total: Counter
    downstream_cx_drain_close: Counter
    downstream_cx_overload_close: Counter
    downstream_flow_control_paused_reading_total: Counter
    downstream_flow_control_resumed_reading_total: Counter
    idle_timeout: Counter
    max_downstream_connection_duration: Counter
    upstream_flush_total: Counter
    upstream_flush_active: Gauge
    downstream_cx_rx_bytes_buffered: Gauge
    downstream_cx_tx_bytes_buffered: Gauge
    __slots__ = tuple(__annotations__)


class HttpStats(ListenerHttpStats):
    """``http.<stat_prefix>`` of an HTTP connection manager and its router."""

    downstream_cx_total: Counter
    downstream_cx_destroy: Counter
    downstream_cx_destroy_local: Counter
    downstream_cx_destroy_remote: Counter
    downstream_cx_destroy_active_rq: Counter
    downstream_cx_destroy_local_active_rq: Counter
    downstream_cx_destroy_remote_active_rq: Counter
    downstream_cx_drain_close: Counter
    downstream_cx_idle_timeout: Counter
    downstream_cx_max_duration_reached: Counter
    downstream_cx_max_requests_reached: Counter
    downstream_cx_protocol_error: Counter
    downstream_cx_upgrades_total: Counter
    downstream_cx_overload_disable_keepalive: Counter
    downstream_cx_delayed_close_timeout: Counter
    downstream_cx_rx_bytes_total: Counter
    downstream_cx_tx_bytes_total: Counter
    downstream_cx_active: Gauge
    downstream_cx_upgrades_active: Gauge
    downstream_cx_rx_bytes_buffered: Gauge
    downstream_cx_tx_bytes_buffered: Gauge
    downstream_rq_active: Gauge
    downstream_cx_length_ms: Histogram
    downstream_rq_time: Histogram
    downstream_rq_total: Counter
    downstream_rq_rx_reset: Counter
    downstream_rq_tx_reset: Counter
    downstream_rq_non_relative_path: Counter
    downstream_rq_response_before_rq_complete: Counter
    downstream_rq_timeout: Counter
    downstream_rq_header_timeout: Counter
    downstream_rq_idle_timeout: Counter
    downstream_rq_max_duration_reached: Counter
    downstream_rq_overload_close: Counter
    downstream_rq_failed_path_normalization: Counter
    downstream_rq_redirected_with_normalized_path: Counter
    downstream_rq_ws_on_non_ws_route: Counter
    downstream_flow_control_paused_reading_total: Counter
    downstream_flow_control_resumed_reading_total: Counter
    no_route: Counter
    no_cluster: Counter
    rq_total: Counter
    rq_redirect: Counter
    rq_direct_response: Counter
    rq_overload_local_reply: Counter
    without_codec: int
    """Connections that were refused before anything was parsed, and how many of them are still open."""
    without_codec_active: int
    __slots__ = tuple(__annotations__)

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix)
        self.without_codec = self.without_codec_active = 0

    def collect(self, out: Snapshot, flush: bool) -> None:
        super().collect(out, flush)
        # HTTP/1 is the only protocol there is so far.
        out.counters[f"{self.prefix}.downstream_cx_http1_total"] = self.downstream_cx_total - self.without_codec
        out.gauges[f"{self.prefix}.downstream_cx_http1_active"] = self.downstream_cx_active - self.without_codec_active
        out.counters[f"{self.prefix}.downstream_rq_http1_total"] = self.downstream_rq_total


class TracingStats(StatGroup):
    """``http.<stat_prefix>.tracing``."""

    random_sampling: Counter
    service_forced: Counter
    client_enabled: Counter
    not_traceable: Counter
    health_check: Counter
    __slots__ = tuple(__annotations__)


class CodeStats(StatGroup):
    """Response codes: ``codes`` (with the internal ones among them) and ``retry_codes`` of swallowed responses."""

    codes: dict[int, int]
    internal_codes: dict[int, int]
    retry_codes: dict[int, int]
    __slots__ = tuple(__annotations__)

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix)
        self.codes = {}
        self.internal_codes = {}
        self.retry_codes = {}

    def collect(self, out: Snapshot, flush: bool) -> None:
        super().collect(out, flush)
        out.counters[f"{self.prefix}.upstream_rq_completed"] = 0
        internal = self.internal_codes
        external = {c: n - internal.get(c, 0) for c, n in self.codes.items()}
        for scope, codes in (("", self.codes), ("internal.", internal), ("external.", external),
                             ("retry.", self.retry_codes)):
            for code, count in codes.items():
                if count:
                    for name in (str(code), f"{code // 100}xx", "completed"):
                        key = f"{self.prefix}.{scope}upstream_rq_{name}"
                        out.counters[key] = out.counters.get(key, 0) + count


class ClusterStats(CodeStats):
    """``cluster.<alt_stat_name or name>``.

    ``codes``, ``internal_codes`` and ``retry_codes`` (code -> count) become upstream_rq_<code>, _<class>, _completed.
    """

    upstream_cx_total: Counter
    upstream_cx_http1_total: Counter
    upstream_cx_connect_fail: Counter
    upstream_cx_connect_timeout: Counter
    upstream_cx_connect_attempts_exceeded: Counter
    upstream_cx_idle_timeout: Counter
    upstream_cx_max_duration_reached: Counter
    upstream_cx_max_requests: Counter
    upstream_cx_overflow: Counter
    upstream_cx_none_healthy: Counter
    upstream_cx_protocol_error: Counter
    upstream_cx_close_notify: Counter
    upstream_cx_destroy: Counter
    upstream_cx_destroy_local: Counter
    upstream_cx_destroy_remote: Counter
    upstream_cx_destroy_with_active_rq: Counter
    upstream_cx_destroy_local_with_active_rq: Counter
    upstream_cx_destroy_remote_with_active_rq: Counter
    upstream_cx_rx_bytes_total: Counter
    upstream_cx_tx_bytes_total: Counter
    upstream_cx_active: Gauge
    upstream_cx_rx_bytes_buffered: Gauge
    upstream_cx_tx_bytes_buffered: Gauge
    upstream_cx_connect_ms: Histogram
    upstream_cx_length_ms: Histogram
    upstream_rq_active: Gauge
    upstream_rq_pending_active: Gauge
    upstream_rq_time: Histogram
    upstream_rq_total: Counter
    upstream_rq_pending_total: Counter
    upstream_rq_pending_overflow: Counter
    upstream_rq_active_overflow: Counter
    upstream_rq_pending_failure_eject: Counter
    upstream_rq_cancelled: Counter
    upstream_rq_timeout: Counter
    upstream_rq_max_duration_reached: Counter
    upstream_rq_per_try_timeout: Counter
    upstream_rq_per_try_idle_timeout: Counter
    upstream_rq_rx_reset: Counter
    upstream_rq_tx_reset: Counter
    upstream_rq_retry: Counter
    upstream_rq_retry_success: Counter
    upstream_rq_retry_overflow: Counter
    upstream_rq_retry_limit_exceeded: Counter
    upstream_rq_retry_backoff_exponential: Counter
    retry_or_shadow_abandoned: Counter
    upstream_flow_control_paused_reading_total: Counter
    upstream_flow_control_resumed_reading_total: Counter
    upstream_flow_control_backed_up_total: Counter
    upstream_flow_control_drained_total: Counter
    bind_errors: Counter
    original_dst_host_invalid: Counter
    update_attempt: Shared
    update_success: Shared
    update_failure: Shared
    update_empty: Shared
    update_no_rebuild: Shared
    membership_change: Shared
    membership_total: Level
    membership_healthy: Level
    membership_degraded: Level
    membership_excluded: Level
    max_host_weight: Level
    warming_state: Level
    lb_healthy_panic: Counter
    internal_rq_time: dict[int, int]
    """The share of internal requests in upstream_rq_time."""
    transport_matches: int
    """How often a transport socket was looked up, once for each host: ``default.total_match_count``."""
    __slots__ = tuple(__annotations__)

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix)
        self.internal_rq_time = {}
        self.transport_matches = 0

    def collect(self, out: Snapshot, flush: bool) -> None:
        out.shared[f"{self.prefix}.default.total_match_count"] = self.transport_matches
        times, internal_times = self.upstream_rq_time, self.internal_rq_time
        super().collect(out, flush)
        # Envoy makes these histograms with the first response; what was flushed is known to whoever got it.
        del out.histograms[f"{self.prefix}.upstream_rq_time"]
        external_times = {ms: rest for ms, n in times.items() if (rest := n - internal_times.get(ms, 0))}
        for scope, recorded in (("", times), ("internal.", internal_times), ("external.", external_times)):
            if recorded:
                out.histograms[f"{self.prefix}.{scope}upstream_rq_time"] = recorded if flush else {}
        if flush:
            self.internal_rq_time = {}


class ThresholdStats(StatGroup):
    """``cluster.<name>.circuit_breakers.<default|high>``."""

    cx_open: Gauge
    cx_pool_open: Gauge
    rq_open: Gauge
    rq_pending_open: Gauge
    rq_retry_open: Gauge
    __slots__ = tuple(__annotations__)


class HostStats(StatGroup):
    """The per-host lines of /clusters."""

    cx_connect_fail: Counter
    cx_total: Counter
    rq_error: Counter
    rq_success: Counter
    rq_timeout: Counter
    rq_total: Counter
    cx_active: Gauge
    rq_active: Gauge
    rq_pending_active: Gauge
    __slots__ = tuple(__annotations__)


class Registry:
    """All groups of one process by prefix; two users of one prefix share the group, as Envoy's scopes do."""

    def __init__(self) -> None:
        self._groups: dict[tuple[type[StatGroup], str], StatGroup] = {}

    def group(self, cls: type[G], prefix: str) -> G:
        """The group of this class and prefix, made when it is first asked for."""
        found = self._groups.get((cls, prefix))
        if found is None:
            found = self._groups[cls, prefix] = cls(prefix)
        return found  # type: ignore[return-value]

    def snapshot(self, flush: bool = False) -> Snapshot:
        """Every statistic by full name; ``flush`` hands over and empties the histograms."""
        out = Snapshot()
        for group in self._groups.values():
            group.collect(out, flush)
        return out
