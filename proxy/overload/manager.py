"""Main's half of the overload manager: resources are looked at every refresh interval, workers told what changes."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from proxy import log
from proxy.config import overload_model as model
from proxy.overload.cpu import ContainerTimes, CpuUtilizationMonitor, HostTimes
from proxy.overload.memory import CgroupMemoryMonitor, FixedHeapMonitor
from proxy.overload.monitor import InjectedResourceMonitor, Monitor, MonitorError
from proxy.overload.stats import ActionStats, ManagerStats, PointStats, ProactiveStats, ResourceStats, ShrinkStats
from proxy.overload.triggers import ReactionState, single
from proxy.stats.groups import Registry, Snapshot

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

SHRINK_INTERVAL = 10.0
"""Seconds between two times that memory is given back (Envoy: HeapShrinker)."""

_log = log.get("main")


class CountedConnections(Protocol):
    """What is known of the limit of all downstream connections (limits.tokens.Pool)."""

    @property
    def in_use(self) -> int:
        """Open now."""

    @property
    def refused(self) -> int:
        """Refused so far."""


class ConnectionsMonitor:
    """Open downstream connections against their limit; who is refused is decided and counted elsewhere."""

    def __init__(self, limit: int, counted: CountedConnections) -> None:
        self._limit = limit
        self._counted = counted

    @property
    def refused(self) -> int:
        """Connections that the limit refused so far."""
        return self._counted.refused

    def pressure(self) -> float:
        """Part of the limit."""
        return self._counted.in_use / self._limit


class OverloadManager:
    """Monitors, actions and load-shed points of one configuration.

    ``tell`` passes new values on to all workers, ``shrink`` has them give memory back, ``pids`` are the processes of
    the proxy; ``connections`` is asked where the monitor of connections is configured.
    """

    def __init__(self, config: model.OverloadManager, loop: AbstractEventLoop, *,
                 tell: Callable[[dict[str, float]], None], shrink: Callable[[], None],
                 pids: Callable[[], Iterable[int]], connections: CountedConnections | None) -> None:
        self._loop = loop
        self._interval = config.refresh_interval
        self._looked_at = 0.0
        self._tell = tell
        self._shrink = shrink
        self.values: dict[str, float] = {}
        """Actions and load-shed points that are not idle, as the workers were told. Changed in place."""
        registry = self._registry = Registry()
        self._stats = registry.group(ManagerStats, "overload")
        self._resources: list[tuple[str, Monitor, ProactiveStats]] = []
        for name, monitor in config.monitors:
            kind = ProactiveStats if isinstance(monitor, model.DownstreamConnections) else ResourceStats
            self._resources.append((name, self._monitor(monitor, pids, connections),
                                    registry.group(kind, f"overload.{name}")))
        self._errors: dict[str, str] = {}
        self._reactions: list[tuple[ReactionState, ActionStats | PointStats]] = []
        self._shrink_stats: ShrinkStats | None = None
        for action in config.actions:
            stats = registry.group(ShrinkStats if action.name == model.SHRINK_HEAP else ActionStats,
                                   f"overload.{action.name}")
            if isinstance(stats, ShrinkStats):
                self._shrink_stats = stats
            self._reactions.append((ReactionState(action), stats))
        for point in config.load_shed_points:
            self._reactions.append((ReactionState(point), registry.group(PointStats, f"overload.{point.name}")))

    def _monitor(self, config: model.Monitor, pids: Callable[[], Iterable[int]],
                 connections: CountedConnections | None) -> Monitor:
        if isinstance(config, model.FixedHeap):
            return FixedHeapMonitor(config.max_heap_size_bytes, pids, self._loop.time)
        if isinstance(config, model.CgroupMemory):
            return CgroupMemoryMonitor(config.max_memory_bytes)
        if isinstance(config, model.CpuUtilization):
            return CpuUtilizationMonitor(ContainerTimes(self._loop.time) if config.container else HostTimes())
        if isinstance(config, model.DownstreamConnections) and connections is not None:
            return ConnectionsMonitor(config.max_active_downstream_connections, connections)
        assert isinstance(config, model.InjectedResource)
        return InjectedResourceMonitor(config.filename)

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Look at the resources from now on, for ever."""
        if self._shrink_stats is not None:
            self._loop.call_later(SHRINK_INTERVAL, self._shrink_heap)
        self._looked_at = self._loop.time()
        self._loop.call_later(self._interval, self._look)

    def _look(self) -> None:
        self._loop.call_later(self._interval, self._look)
        now = self._loop.time()
        delay = int((now - self._looked_at) * 1000)
        self._looked_at = now
        delays = self._stats.refresh_interval_delay
        delays[delay] = delays.get(delay, 0) + 1
        self.refresh()

    def refresh(self) -> None:
        """Ask every monitor, and tell the workers what has changed."""
        for name, monitor, stats in self._resources:
            try:
                pressure = monitor.pressure()
            except MonitorError as error:
                stats.failed_updates += 1
                self._failed(name, str(error))
                continue
            self._errors.pop(name, None)
            stats.pressure = int(pressure * 100)
            self._update(name, pressure)
        changes = {}
        for state, _ in self._reactions:
            if state.value != self.values.get(state.name, 0.0):
                changes[state.name] = state.value
                self.values[state.name] = state.value
        if changes:
            self._tell(changes)
            for name, value in changes.items():
                if not value:
                    del self.values[name]

    def _failed(self, name: str, why: str) -> None:
        if self._errors.get(name) != why:
            self._errors[name] = why
            _log.info("Failed to update resource %s: %s", name, why)

    def _update(self, resource: str, pressure: float) -> None:
        for state, stats in self._reactions:
            before = state.value
            value = state.update(resource, pressure)
            if value is None:
                continue
            if isinstance(stats, ActionStats):
                # Envoy shows the trigger that changed last, not the action.
                stats.active = int(value >= 1)
                stats.scale_percent = int(single(value * 100))
            else:
                stats.scale_percent = int(single(state.value * 100))
            if (before >= 1) != (state.value >= 1):
                _log.info("%s became %s (%s is at %d%%)", state.name, "saturated" if state.value >= 1 else
                          "scaling" if state.value else "inactive", resource, pressure * 100)

    def _shrink_heap(self) -> None:
        self._loop.call_later(SHRINK_INTERVAL, self._shrink_heap)
        if self.values.get(model.SHRINK_HEAP, 0.0) >= 1 and self._shrink_stats is not None:
            self._shrink_stats.shrink_count += 1
            self._shrink()
            release_memory()

    # --- statistics ---------------------------------------------------------------------------------------------------

    def collect(self, out: Snapshot) -> None:
        """Add the statistics, but for what histograms have gathered."""
        for _, monitor, stats in self._resources:
            if isinstance(monitor, ConnectionsMonitor):
                stats.failed_updates = monitor.refused
        own = self._registry.snapshot()
        out.counters.update(own.counters)
        out.gauges.update(own.gauges)
        for name in own.histograms:
            out.histograms.setdefault(name, {})

    def flush(self) -> dict[str, dict[int, int]]:
        """Hand over what histograms have gathered."""
        return self._registry.snapshot(flush=True).histograms


def release_memory() -> None:
    """Give memory that is not used back to the kernel: Python's garbage first, then the allocator's free pages."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        pass  # not glibc
