"""What the handlers of admin commands work with: the main process and the statistics of all its parts together."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from proxy import version
from proxy.admin.api import LIVE, STATES, Server
from proxy.stats import server as server_stats
from proxy.stats.groups import Registry, Snapshot
from proxy.stats.histogram import HistogramStore
from proxy.stats.prometheus import CUSTOM, Namer
from proxy.stats.selection import Selected, Selection, Used, select

AGENTS = tuple(CUSTOM)
"""Statistics that are pilot-agent's in Istio. stats_matcher is Envoy's, and Istio's would leave them out."""
MEMORY_AGE = 1.0
"""Seconds for which a look at /proc is good."""


class Statistics(NamedTuple):
    """Everything at one moment."""

    snapshot: Snapshot
    histograms: HistogramStore


class Console:
    """Made once; ``registry`` holds the admin interface's own groups."""

    def __init__(self, server: Server) -> None:
        """Raises proxy.stats.tags.TagError."""
        self.server = server
        config = server.loaded.bootstrap
        self.namer = Namer(config.stats)
        self.registry = Registry()
        self.histograms = HistogramStore()
        self._included = config.stats.included
        self._is_included: dict[str, bool] = {}
        self._used = Used()
        self._reset_at: dict[str, int] = {}
        self._memory = server_stats.Memory()
        self._memory_at = 0.0
        self._initialized = False

    async def statistics(self) -> Statistics:
        """The workers' statistics, main's and the admin interface's."""
        snapshot = await self.server.snapshot()
        own = self._own(server_stats.connections(snapshot))
        base = self._reset_at
        snapshot.counters.update({name: value - base.get(name, 0)
                                  for source in (own.counters, snapshot.shared) for name, value in source.items()})
        snapshot.gauges.update(own.gauges)
        snapshot.levels.update(own.levels)
        self._used.note(snapshot)
        return Statistics(snapshot, self._all_histograms())

    async def select(self, selection: Selection) -> Selected:
        """The statistics that an output shows, by name; what stats_matcher excludes is in none, except DNS."""
        statistics = await self.statistics()
        return select(selection, statistics.snapshot, statistics.histograms, self._used,
                      None if self._included is None else self._shown)

    async def reset_counters(self) -> None:
        """Set every counter to 0. What was written before stays used."""
        before = await self.statistics()
        await self.server.reset_counters()
        self._reset_at = {**self._own(0).counters, **before.snapshot.shared}

    def flush(self) -> None:
        """End a flush interval of the admin interface's own histograms."""
        recorded = self.registry.snapshot(flush=True).histograms
        milliseconds = self.server.initialization_time_ms
        once = recorded["server.initialization_time_ms"] = {}
        if milliseconds is not None and not self._initialized:
            self._initialized = True
            once[milliseconds] = 1
        self.histograms.flush([recorded])

    def memory(self) -> server_stats.Memory:
        """Memory of main and its workers, looked up at most once a second."""
        now = time.monotonic()
        if now - self._memory_at > MEMORY_AGE or not self._memory_at:
            self._memory = server_stats.memory_of(server_stats.family(os.getpid()))
            self._memory_at = now
        return self._memory

    def uptime(self) -> int:
        """Whole seconds since the start."""
        return max(0, int(time.time() - self.server.started_at))

    def _own(self, connections: int) -> Snapshot:
        snapshot = self.registry.snapshot()
        server_stats.add(snapshot, self._facts(connections))
        return snapshot

    def _all_histograms(self) -> HistogramStore:
        theirs, mine = self.server.histograms, self.histograms
        store = HistogramStore()
        store.interval = {**theirs.interval, **mine.interval}
        store.cumulative = {**theirs.cumulative, **mine.cumulative}
        return store

    def _shown(self, name: str) -> bool:
        known = self._is_included.get(name)
        if known is None:
            assert self._included is not None
            if len(self._is_included) > 200_000:
                self._is_included.clear()
            known = self._is_included[name] = name.startswith(AGENTS) or self._included(name)
        return known

    def _facts(self, connections: int) -> server_stats.ServerFacts:
        server = self.server
        bootstrap, options = server.loaded.bootstrap, server.options
        listeners = len(bootstrap.listeners)
        return server_stats.ServerFacts(
            state=STATES[server.state],
            live=server.state == LIVE,
            uptime=self.uptime(),
            concurrency=options.concurrency,
            version=int(version.BUILD[:6], 16),
            restart_epoch=options.restart_epoch,
            memory=self.memory(),
            unknown_fields=sum(": unknown field " in warning for warning in server.loaded.warnings),
            worker_restarts=server.worker_restarts,
            workers_started=server.workers_started,
            connections=connections,
            listeners=listeners,
            listeners_created=listeners * options.concurrency,
            listeners_stopped=server.listeners_stopped,
            clusters=len(bootstrap.clusters),
        )
