"""config.overload.v3 as frozen objects: what the overload manager watches, and what it does then."""

from __future__ import annotations

from dataclasses import dataclass

GLOBAL_CONNECTIONS = "envoy.resource_monitors.global_downstream_max_connections"
"""The one monitor that Envoy knows by its name (a "proactive" resource)."""

_ACTION = "envoy.overload_actions."
STOP_ACCEPTING_REQUESTS = f"{_ACTION}stop_accepting_requests"
DISABLE_KEEPALIVE = f"{_ACTION}disable_http_keepalive"
STOP_ACCEPTING_CONNECTIONS = f"{_ACTION}stop_accepting_connections"
REJECT_CONNECTIONS = f"{_ACTION}reject_incoming_connections"
SHRINK_HEAP = f"{_ACTION}shrink_heap"
REDUCE_TIMEOUTS = f"{_ACTION}reduce_timeouts"
RESET_STREAMS = f"{_ACTION}reset_high_memory_stream"
ACTIONS = (STOP_ACCEPTING_REQUESTS, DISABLE_KEEPALIVE, STOP_ACCEPTING_CONNECTIONS, REJECT_CONNECTIONS, SHRINK_HEAP,
           REDUCE_TIMEOUTS, RESET_STREAMS)

_POINT = "envoy.load_shed_points."
TCP_ACCEPT = f"{_POINT}tcp_listener_accept"
DECODE_HEADERS = f"{_POINT}http_connection_manager_decode_headers"
ABORT_DISPATCH = f"{_POINT}http1_server_abort_dispatch"
CREATING_CODEC = f"{_POINT}hcm_ondata_creating_codec"
FILTER_CHECK = f"{_POINT}http_downstream_filter_check"
NEW_CONNECTION = f"{_POINT}connection_pool_new_connection"
TCP_DATA = f"{_POINT}tcp_proxy_on_data"
TCP_CONNECT = f"{_POINT}tcp_proxy_upstream_connect"
GO_AWAY = f"{_POINT}http2_server_go_away_on_dispatch"
GO_AWAY_AND_CLOSE = f"{_POINT}http2_server_go_away_and_close_on_dispatch"
"""In Envoy these two concern HTTP/1 connections, too."""
OTHER_PROTOCOLS = frozenset(f"{_POINT}{name}" for name in (
    "http3_server_go_away_on_dispatch", "http3_server_go_away_and_close_on_dispatch",
))
"""Points of HTTP/3 connections. There are none, so that these have nothing to act on."""
LOAD_SHED_POINTS = (TCP_ACCEPT, DECODE_HEADERS, ABORT_DISPATCH, CREATING_CODEC, FILTER_CHECK, NEW_CONNECTION, TCP_DATA,
                    TCP_CONNECT, GO_AWAY, GO_AWAY_AND_CLOSE)

CONNECTION_IDLE = "HTTP_DOWNSTREAM_CONNECTION_IDLE"
STREAM_IDLE = "HTTP_DOWNSTREAM_STREAM_IDLE"
CONNECTION_MAX = "HTTP_DOWNSTREAM_CONNECTION_MAX"


@dataclass(frozen=True, slots=True)
class FixedHeap:
    """resource_monitors.fixed_heap.v3: memory of all processes together against this many bytes."""

    max_heap_size_bytes: int


@dataclass(frozen=True, slots=True)
class CgroupMemory:
    """resource_monitors.cgroup_memory.v3: the control group's memory against ``max_memory_bytes``, 0: its own limit."""

    max_memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class CpuUtilization:
    """resource_monitors.cpu_utilization.v3: of the machine, or of the ``container`` (control group)."""

    container: bool = False


@dataclass(frozen=True, slots=True)
class DownstreamConnections:
    """resource_monitors.downstream_connections.v3: open connections of all workers together."""

    max_active_downstream_connections: int


@dataclass(frozen=True, slots=True)
class InjectedResource:
    """resource_monitors.injected_resource.v3: the pressure (0 to 1) stands in a file."""

    filename: str


Monitor = FixedHeap | CgroupMemory | CpuUtilization | DownstreamConnections | InjectedResource


@dataclass(frozen=True, slots=True)
class Trigger:
    """overload.v3.Trigger. ``saturation`` None: a threshold, all or nothing; else a scaled one between the two."""

    resource: str
    threshold: float
    saturation: float | None = None


@dataclass(frozen=True, slots=True)
class Reaction:
    """An overload.v3.OverloadAction or LoadShedPoint; the trigger that asks for most counts."""

    name: str
    triggers: tuple[Trigger, ...]


@dataclass(frozen=True, slots=True)
class ScaledTimer:
    """ScaleTimersOverloadActionConfig.ScaleTimer. ``min_timeout`` in seconds, or ``min_scale`` of the full time."""

    timer: str
    min_timeout: float | None
    min_scale: float

    def minimum(self, full: float) -> float:
        """What is left of a timeout in full overload, seconds."""
        return full * self.min_scale if self.min_timeout is None else min(full, self.min_timeout)


@dataclass(frozen=True, slots=True)
class OverloadManager:
    """overload.v3.OverloadManager. ``refresh_interval`` in seconds."""

    monitors: tuple[tuple[str, Monitor], ...]
    actions: tuple[Reaction, ...] = ()
    load_shed_points: tuple[Reaction, ...] = ()
    refresh_interval: float = 1.0
    timers: tuple[ScaledTimer, ...] = ()
    """Of the action reduce_timeouts."""
    account_power: int = 0
    """buffer_factory_config.minimum_account_to_track_power_of_two; 0: not set."""

    @property
    def max_active_downstream_connections(self) -> int | None:
        """The limit of the monitor of connections, None without one."""
        for _, monitor in self.monitors:
            if isinstance(monitor, DownstreamConnections):
                return monitor.max_active_downstream_connections
        return None
