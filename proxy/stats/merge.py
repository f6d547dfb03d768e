"""Adding up the statistics of several workers."""

from __future__ import annotations

from collections.abc import Iterable

from proxy.stats.groups import Snapshot


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """One snapshot for all: counters, gauges and histograms add, of levels and shared counters the largest counts."""
    total = Snapshot()
    for snapshot in snapshots:
        for mine, theirs in ((total.counters, snapshot.counters), (total.gauges, snapshot.gauges)):
            get = mine.get
            for name, value in theirs.items():
                mine[name] = get(name, 0) + value
        for mine, theirs in ((total.levels, snapshot.levels), (total.shared, snapshot.shared)):
            for name, value in theirs.items():
                known = mine.get(name)
                mine[name] = value if known is None or value > known else known
        for name, values in snapshot.histograms.items():
            bins = total.histograms.setdefault(name, {})
            for key, times in values.items():
                bins[key] = bins.get(key, 0) + times
    return total
