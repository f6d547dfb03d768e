"""Merging of workers, what is used, and which statistics an output shows."""

from __future__ import annotations

import pytest

from proxy.stats.groups import ClusterStats, HttpStats, ListenerStats, Registry, Snapshot
from proxy.stats.histogram import HistogramStore
from proxy.stats.merge import merge
from proxy.stats.selection import COUNTERS, GAUGES, HISTOGRAMS, WITNESSES, Selection, Used, select


def snapshot(counters: dict[str, int] | None = None, gauges: dict[str, int] | None = None,
             levels: dict[str, int] | None = None) -> Snapshot:
    one = Snapshot()
    one.counters, one.gauges, one.levels = counters or {}, gauges or {}, levels or {}
    return one


def test_counters_and_gauges_add_and_the_largest_level_counts() -> None:
    one, other = snapshot({"a": 1, "b": 2}, {"g": 1}, {"m": 3}), snapshot({"a": 10}, {"g": 2}, {"m": 2, "n": 0})
    one.histograms, other.histograms = {"h": {1: 1}}, {"h": {1: 2, 5: 1}}
    total = merge([one, other])
    assert (total.counters, total.gauges, total.levels, total.histograms) == (
        {"a": 11, "b": 2}, {"g": 3}, {"m": 3, "n": 0}, {"h": {1: 3, 5: 1}})
    assert one.counters == {"a": 1, "b": 2} and one.histograms == {"h": {1: 1}}


def test_used_is_what_was_ever_written() -> None:
    used = Used()
    used.note(snapshot({"c.hit": 1, "c.miss": 0, "l.downstream_cx_total": 2}, {"l.downstream_cx_active": 0, "g": 0},
                       {"k.membership_total": 0, "k.max_host_weight": 0}))
    assert {name for name in ("c.hit", "c.miss", "l.downstream_cx_active", "g", "k.membership_total",
                              "k.max_host_weight") if name in used} == {
        "c.hit", "l.downstream_cx_active", "k.membership_total"}
    used.note(snapshot({"c.hit": 0, "l.downstream_cx_total": 0}, {"l.downstream_cx_active": 0}))  # after a reset
    assert "c.hit" in used and "l.downstream_cx_active" in used


def test_witnesses_exist() -> None:
    registry = Registry()
    groups = [registry.group(cls, cls.__name__) for cls in (ListenerStats, HttpStats, ClusterStats)]
    assert groups
    names = registry.snapshot()
    for gauge, counter in WITNESSES.items():
        if gauge in ("upstream_flush_active", "write_total_buffered"):
            continue  # of other groups
        scopes = [name.rpartition(".")[0] for name in names.gauges if name.endswith("." + gauge)]
        assert scopes, gauge
        assert all(f"{scope}.{counter}" in names.counters for scope in scopes), gauge


STORE = HistogramStore()
STORE.flush([{"a.time": {5: 1}, "b.time": {}}])
EVERYTHING = snapshot({"b.n": 1, "a.n": 0}, {"a.g": 2}, {"b.level": 0})


@pytest.mark.parametrize(("selection", "shown"), [
    (Selection(), "a.n b.n a.g b.level a.time b.time"),
    (Selection(used_only=True), "b.n a.g b.level a.time"),
    (Selection(matches=lambda name: name.startswith("a.")), "a.n a.g a.time"),
    (Selection(matches=lambda name: name.startswith("a."), invert=True), "b.n b.level b.time"),
    (Selection(kinds=frozenset((COUNTERS,))), "a.n b.n"),
    (Selection(kinds=frozenset((GAUGES,))), "a.g b.level"),
    (Selection(kinds=frozenset((HISTOGRAMS,))), "a.time b.time"),
    (Selection(kinds=frozenset()), ""),
])
def test_selection(selection: Selection, shown: str) -> None:
    used = Used()
    used.note(EVERYTHING)
    selected = select(selection, EVERYTHING, STORE, used)
    names = [name for name, *_ in (*selected.counters, *selected.gauges, *selected.histograms)]
    assert names == shown.split()


def test_what_stats_matcher_excludes_is_nowhere() -> None:
    selected = select(Selection(), EVERYTHING, STORE, Used(), lambda name: name.startswith("b"))
    assert [name for name, _ in selected.counters + selected.gauges] == ["b.n", "b.level"]
    assert [view.name for view in selected.histograms] == ["b.time"]


def test_response_codes_of_a_cluster() -> None:
    group = ClusterStats("cluster.a")
    out = Snapshot()
    group.collect(out, False)
    assert out.counters["cluster.a.upstream_rq_completed"] == 0
    assert not [name for name in out.counters if "rq_2" in name]
    assert "cluster.a.upstream_rq_time" not in out.histograms
    group.codes = {200: 5, 503: 2}
    group.internal_codes = {200: 1}
    group.retry_codes = {503: 1}
    group.upstream_rq_time, group.internal_rq_time = {3: 2, 4: 1}, {3: 1, 4: 1}
    group.collect(out, False)
    assert out.histograms["cluster.a.upstream_rq_time"] == {}  # known, but not flushed yet
    out = Snapshot()
    group.collect(out, True)
    found = {name.removeprefix("cluster.a."): value for name, value in out.counters.items() if value}
    assert found == {
        "upstream_rq_200": 5, "upstream_rq_2xx": 5, "upstream_rq_503": 2, "upstream_rq_5xx": 2,
        "upstream_rq_completed": 7, "internal.upstream_rq_200": 1, "internal.upstream_rq_2xx": 1,
        "internal.upstream_rq_completed": 1, "external.upstream_rq_200": 4, "external.upstream_rq_2xx": 4,
        "external.upstream_rq_503": 2, "external.upstream_rq_5xx": 2, "external.upstream_rq_completed": 6,
        "retry.upstream_rq_503": 1, "retry.upstream_rq_5xx": 1, "retry.upstream_rq_completed": 1}
    times = {name.removeprefix("cluster.a."): bins for name, bins in out.histograms.items() if "rq_time" in name}
    assert times == {"upstream_rq_time": {3: 2, 4: 1}, "internal.upstream_rq_time": {3: 1, 4: 1},
                     "external.upstream_rq_time": {3: 1}}
    assert group.upstream_rq_time == group.internal_rq_time == {}
