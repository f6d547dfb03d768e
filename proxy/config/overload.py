"""config.overload.v3.OverloadManager: resource monitors, triggers, actions and load-shed points."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from proxy.config import overload_model as model
from proxy.config.extensions import Registry
from proxy.config.overload_model import (
    ACTIONS,
    GLOBAL_CONNECTIONS,
    LOAD_SHED_POINTS,
    OTHER_PROTOCOLS,
    REDUCE_TIMEOUTS,
    RESET_STREAMS,
    SHRINK_HEAP,
    Monitor,
    OverloadManager,
    Reaction,
    ScaledTimer,
    Trigger,
)
from proxy.config.reader import Reader, Skip

MIN_REFRESH = 0.01
"""Seconds. Envoy accepts an interval of 0 and then never rests."""

# --- resource monitors ----------------------------------------------------------------------------------------------


def _fixed_heap(reader: Reader) -> Monitor:
    """resource_monitors.fixed_heap.v3.FixedHeapConfig."""
    return model.FixedHeap(reader.integer("max_heap_size_bytes"))


def _cgroup_memory(reader: Reader) -> Monitor:
    """resource_monitors.cgroup_memory.v3.CgroupMemoryConfig."""
    return model.CgroupMemory(reader.integer("max_memory_bytes"))


def _cpu_utilization(reader: Reader) -> Monitor:
    """resource_monitors.cpu_utilization.v3.CpuUtilizationConfig."""
    return model.CpuUtilization(container=reader.enum("mode") == "CONTAINER")


def _downstream_connections(reader: Reader) -> Monitor:
    """resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig."""
    return model.DownstreamConnections(reader.integer("max_active_downstream_connections"))


def _injected_resource(reader: Reader) -> Monitor:
    """resource_monitors.injected_resource.v3.InjectedResourceConfig. As in Envoy the file may come later."""
    filename = reader.string("filename")
    if "\0" in filename:
        reader.error("filename", "a path without NUL is expected")
    elif filename and "/" not in filename:
        reader.error("filename", f"invalid file path {filename}: its directory is expected, too")
    elif filename and not Path(filename).parent.is_dir():
        reader.error("filename", f"unable to add filesystem watch for file {filename}: No such file or directory")
    return model.InjectedResource(filename)


_M = "envoy.extensions.resource_monitors"
RESOURCE_MONITORS: Registry[Monitor] = Registry(
    "resource monitor",
    ("envoy.config.overload.v3.ResourceMonitor.typed_config",),
    {
        f"{_M}.fixed_heap.v3.FixedHeapConfig": _fixed_heap,
        f"{_M}.cgroup_memory.v3.CgroupMemoryConfig": _cgroup_memory,
        f"{_M}.cpu_utilization.v3.CpuUtilizationConfig": _cpu_utilization,
        f"{_M}.downstream_connections.v3.DownstreamConnectionsConfig": _downstream_connections,
        f"{_M}.injected_resource.v3.InjectedResourceConfig": _injected_resource,
    },
)


def _resource_monitor(reader: Reader) -> tuple[str, Monitor]:
    """overload.v3.ResourceMonitor. Its name is what triggers refer to; only that of the connections is fixed."""
    name = reader.string("name")
    monitor = reader.extension("typed_config", RESOURCE_MONITORS)
    if isinstance(monitor, model.DownstreamConnections) != (name == GLOBAL_CONNECTIONS):
        reader.error("name", f"Didn't find a registered implementation for '{name}' with this type: the name "
                             f"{GLOBAL_CONNECTIONS} and DownstreamConnectionsConfig belong together")
    return name, monitor


# --- triggers, actions, load-shed points ------------------------------------------------------------------------------


def _threshold(reader: Reader) -> tuple[float, float | None]:
    """overload.v3.ThresholdTrigger."""
    return float(reader.take("value") or 0.0), None


def _scaled(reader: Reader) -> tuple[float, float | None]:
    """overload.v3.ScaledTrigger."""
    start, end = (float(reader.take(name) or 0.0) for name in ("scaling_threshold", "saturation_threshold"))
    if start >= end:
        reader.error("scaling_threshold", "scaling_threshold must be less than saturation_threshold")
    return start, end


def _trigger(reader: Reader) -> Trigger:
    """overload.v3.Trigger."""
    limits = reader.sub("threshold", _threshold) or reader.sub("scaled", _scaled)
    if limits is None:
        raise Skip  # said already
    return Trigger(reader.string("name"), *limits)


def _triggers(reader: Reader, resources: frozenset[str], unknown: str, duplicate: str) -> tuple[Trigger, ...]:
    triggers = reader.each("triggers", _trigger)
    for trigger in triggers:
        if trigger.resource not in resources:
            reader.error("triggers", f"Unknown trigger resource {trigger.resource} for {unknown}; "
                                     f"known: {', '.join(sorted(resources)) or 'none'}")
    for _ in _repeated(trigger.resource for trigger in triggers):
        reader.error("triggers", f"Duplicate trigger resource for {duplicate}")
    return triggers


def _scaled_timer(reader: Reader) -> ScaledTimer:
    """overload.v3.ScaleTimersOverloadActionConfig.ScaleTimer."""
    timer = reader.enum("timer")
    scale = reader.sub("min_scale", lambda percent: float(percent.take("value") or 0.0) / 100)
    return ScaledTimer(timer, reader.optional_seconds("min_timeout"), scale or 0.0)


def _scaled_timers(reader: Reader) -> tuple[ScaledTimer, ...]:
    """overload.v3.ScaleTimersOverloadActionConfig."""
    timers = reader.each("timer_scale_factors", _scaled_timer)
    for name in _repeated(timer.timer for timer in timers):
        reader.error("timer_scale_factors", f"Found duplicate entry for timer type {name}")
    return timers


ACTION_CONFIGS: Registry[tuple[ScaledTimer, ...]] = Registry(
    "overload action configuration",
    ("envoy.config.overload.v3.OverloadAction.typed_config",),
    {"envoy.config.overload.v3.ScaleTimersOverloadActionConfig": _scaled_timers},
)


def _action(resources: frozenset[str], timers: list[ScaledTimer], accounts: bool, reader: Reader) -> Reaction:
    """overload.v3.OverloadAction; what it says of timers is added to ``timers``."""
    name = reader.string("name")
    if name not in ACTIONS:
        reader.error("name", f"Unknown Overload Manager Action {name}; supported: {', '.join(ACTIONS)}")
        reader.take("typed_config")
    elif name == REDUCE_TIMEOUTS:
        if reader.has("typed_config"):
            timers += reader.extension("typed_config", ACTION_CONFIGS)
        else:
            reader.error("typed_config", f'Overload action "{name}" requires typed_config')
    elif reader.has("typed_config"):
        reader.take("typed_config")
        why = ("settings of this action are not supported yet" if name == SHRINK_HEAP else
               f'Overload action "{name}" has an unexpected value for the typed_config field')
        reader.error("typed_config", why)
    if name == RESET_STREAMS and not accounts:
        reader.error("name", f'Overload action "{name}" requires buffer_factory_config.')
    what = f"overload action {name}"
    return Reaction(name, _triggers(reader, resources, what, what))


def _load_shed_point(resources: frozenset[str], reader: Reader) -> Reaction:
    """overload.v3.LoadShedPoint. Envoy takes any name and never asks for an unknown one."""
    name = reader.string("name")
    if name in ACTIONS:
        reader.error("name", f'Load shed point "{name}" conflicts with an overload action of the same name')
    elif name not in LOAD_SHED_POINTS and name not in OTHER_PROTOCOLS:
        known = ", ".join((*LOAD_SHED_POINTS, *sorted(OTHER_PROTOCOLS)))
        reader.error("name", f"Unknown load shed point {name}; supported: {known}")
    return Reaction(name, _triggers(reader, resources, f"loadshed point {name}", f"LoadShedPoint {name}"))


def _repeated(names: Iterable[str]) -> list[str]:
    """Those that come a second time."""
    seen: set[str] = set()
    return [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]


def overload_manager(reader: Reader) -> OverloadManager:
    """Compile a config.overload.v3.OverloadManager."""
    monitors = reader.each("resource_monitors", _resource_monitor)
    names = frozenset(name for name, _ in monitors)
    for name in _repeated(name for name, _ in monitors):
        reader.error("resource_monitors", f"Duplicate resource monitor {name}")
    interval = reader.seconds("refresh_interval", 1.0)
    if interval < MIN_REFRESH:
        reader.warn("refresh_interval", f"{interval} s is too short; {MIN_REFRESH} s is used")
        interval = MIN_REFRESH
    power = reader.sub("buffer_factory_config",
                       lambda buffers: buffers.integer("minimum_account_to_track_power_of_two"))
    timers: list[ScaledTimer] = []
    actions = reader.each("actions", partial(_action, names | {GLOBAL_CONNECTIONS}, timers, power is not None))
    for name in _repeated(action.name for action in actions):
        reader.error("actions", f"Duplicate overload action {name}")
    if GLOBAL_CONNECTIONS not in names:
        for action in actions:
            if any(trigger.resource == GLOBAL_CONNECTIONS for trigger in action.triggers):
                reader.warn("actions", f"{action.name} has a trigger on {GLOBAL_CONNECTIONS}, which no resource "
                                       "monitor provides: the trigger never fires")
    points = reader.each("loadshed_points", partial(_load_shed_point, names - {GLOBAL_CONNECTIONS}))
    for name in _repeated(point.name for point in points):
        reader.error("loadshed_points", f"Duplicate loadshed point {name}")
    return OverloadManager(monitors, actions, points, interval, tuple(timers), power or 0)
