"""Which statistics an output shows: ``/stats`` parameters, stats_matcher and Envoy's idea of a used statistic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from proxy.stats.groups import Snapshot
from proxy.stats.histogram import Bins, HistogramStore

COUNTERS, GAUGES, HISTOGRAMS, TEXT_READOUTS = "Counters", "Gauges", "Histograms", "TextReadouts"
ALL = frozenset((COUNTERS, GAUGES, HISTOGRAMS, TEXT_READOUTS))

WITNESSES = {
    "downstream_cx_active": "downstream_cx_total",
    "downstream_cx_http1_active": "downstream_cx_http1_total",
    "downstream_cx_rx_bytes_buffered": "downstream_cx_rx_bytes_total",
    "downstream_cx_upgrades_active": "downstream_cx_upgrades_total",
    "downstream_pre_cx_active": "downstream_cx_total",
    "downstream_rq_active": "downstream_rq_total",
    "upstream_cx_active": "upstream_cx_total",
    "upstream_cx_rx_bytes_buffered": "upstream_cx_rx_bytes_total",
    "upstream_flush_active": "upstream_flush_total",
    "upstream_rq_active": "upstream_rq_total",
    "upstream_rq_pending_active": "upstream_rq_pending_total",
    "write_total_buffered": "write_buffered",
}
"""Gauges that go up and down between two looks -> the counter beside them that tells whether they were ever written."""

UNSET_LEVELS = frozenset(("hot_restart_epoch", "max_host_weight"))
"""Levels that nothing writes before they have a value."""


class Used:
    """The statistics that were ever written: ``usedonly``. A counter stays used when counters are reset."""

    __slots__ = ("_names",)

    def __init__(self) -> None:
        self._names: set[str] = set()

    def note(self, snapshot: Snapshot) -> None:
        """Remember what a snapshot shows to have been written."""
        names = self._names
        names.update([name for name, value in snapshot.counters.items() if value])
        names.update([name for name, value in snapshot.levels.items()
                      if value or name.rpartition(".")[2] not in UNSET_LEVELS])
        for name, value in snapshot.gauges.items():
            if value:
                names.add(name)
            elif name not in names:
                scope, dot, leaf = name.rpartition(".")
                witness = WITNESSES.get(leaf)
                if witness is not None and f"{scope}{dot}{witness}" in names:
                    names.add(name)

    def __contains__(self, name: str) -> bool:
        return name in self._names


class HistogramView(NamedTuple):
    """One histogram: the last flush interval and everything since the start."""

    name: str
    interval: Bins
    cumulative: Bins


@dataclass(frozen=True, slots=True)
class Selection:
    """The parameters ``usedonly``, ``filter``, ``invert_filter`` and ``type``."""

    used_only: bool = False
    matches: Callable[[str], bool] | None = None
    invert: bool = False
    kinds: frozenset[str] = ALL


class Selected(NamedTuple):
    """What is shown, each part sorted by name. Levels are gauges here."""

    counters: list[tuple[str, int]]
    gauges: list[tuple[str, int]]
    histograms: list[HistogramView]


def select(selection: Selection, snapshot: Snapshot, histograms: HistogramStore, used: Used,
           included: Callable[[str], bool] | None = None) -> Selected:
    """The statistics that pass ``selection`` and the configuration's stats_matcher ``included``."""

    def shown(name: str) -> bool:
        if included is not None and not included(name):
            return False
        matches = selection.matches
        return matches is None or matches(name) is not selection.invert

    def numbers(*sources: dict[str, int]) -> list[tuple[str, int]]:
        return sorted((name, value) for source in sources for name, value in source.items()
                      if (not selection.used_only or name in used) and shown(name))

    kinds = selection.kinds
    views = []
    if HISTOGRAMS in kinds:
        for name in sorted(histograms.cumulative):
            total = histograms.cumulative[name]
            if (total or not selection.used_only) and shown(name):
                views.append(HistogramView(name, histograms.interval.get(name, {}), total))
    return Selected(numbers(snapshot.counters) if COUNTERS in kinds else [],
                    numbers(snapshot.gauges, snapshot.levels) if GAUGES in kinds else [], views)
