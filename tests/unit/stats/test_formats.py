"""Text, JSON and Prometheus output as pure functions."""

from __future__ import annotations

import json

import pytest
from prometheus_client import parser

from proxy.config.model import StatsConfig
from proxy.dns.stats import DnsStats
from proxy.stats.groups import ClusterStats, HttpStats, ListenerHttpStats, ListenerStats, Registry
from proxy.stats.histogram import HistogramStore
from proxy.stats.prometheus import Namer, render
from proxy.stats.render import as_json, decimal, text
from proxy.stats.selection import HistogramView, Selected, Selection, Used, select
from proxy.stats.server import Memory, ServerFacts, add, connections

SELECTED = Selected([("b.total", 3), ("d.total", 0)], [("a.now", 1), ("c.now", 2)],
                    [HistogramView("h.time", {}, {13: 1}), HistogramView("i.time", {}, {})])


def test_text_mixes_counters_and_gauges_by_name() -> None:
    middle = "".join(f"P{p}(nan,13.5) " for p in (0, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 100)).rstrip()
    assert text(SELECTED) == (f"a.now: 1\nb.total: 3\nc.now: 2\nd.total: 0\nh.time: {middle}\n"
                              "i.time: No recorded values\n")


def test_json_is_one_line() -> None:
    document = json.loads(as_json(SELECTED))
    assert "\n" not in as_json(SELECTED)
    assert document["stats"][:2] == [{"name": "a.now", "value": 1}, {"name": "b.total", "value": 3}]
    histograms = document["stats"][4]["histograms"]
    assert histograms["supported_quantiles"] == [0, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 100]
    assert histograms["computed_quantiles"][0]["values"][0] == {"cumulative": 13.5, "interval": None}


@pytest.mark.parametrize(("value", "shown"), [(0.0, "0"), (13.5, "13.5"), (100.0, "100"), (float("nan"), "nan"),
                                              (1.0466666666666666, "1.0466666666666666"), (1e6, "1000000")])
def test_decimals(value: float, shown: str) -> None:
    assert decimal(value) == shown


def everything(size: int) -> Selected:
    """What a proxy with so many clusters shows."""
    registry = Registry()
    for n in range(size):
        group = registry.group(ClusterStats, f"cluster.outbound|{n}||svc.ns.local")
        group.codes = {200: n + 1, 503: 1}
        group.upstream_rq_time = {n: 1}
    http = registry.group(HttpStats, "http.in\"gress")
    http.rq_class[2] = 7
    registry.group(ListenerHttpStats, "listener.0.0.0.0_80.http.in\"gress").rq_class[4] = 1
    registry.group(ListenerStats, "listener.[__1]_80").downstream_cx_length_ms[200] = 4
    registry.group(ListenerStats, "listener.0.0.0.0_80").downstream_cx_length_ms[7] = 1
    store = HistogramStore()
    snapshot = registry.snapshot(flush=True)
    store.flush([snapshot.histograms])
    return select(Selection(), snapshot, store, Used())


def families_of(output: str) -> list[str]:
    return [line.split()[2] for line in output.splitlines() if line.startswith("# TYPE ")]


@pytest.mark.parametrize("summary", [False, True])
def test_prometheus_can_read_it(summary: bool) -> None:
    selected = everything(20)
    output = render(selected, Namer(StatsConfig()), summary)
    samples = [sample for family in parser.text_string_to_metric_families(output) for sample in family.samples]
    assert len(samples) == output.count("\n") - output.count("# TYPE ")

    def labels(name: str, label: str) -> set[str]:
        return {sample.labels[label] for sample in samples if sample.name == name and label in sample.labels}

    # The parser gives every counter the suffix that OpenMetrics demands.
    assert labels("envoy_cluster_ns_local_upstream_rq_total", "envoy_response_code") == {"200", "503"}
    assert labels("envoy_http_downstream_rq_xx_total", "envoy_http_conn_manager_prefix") == {'in"gress'}


def test_each_family_stands_together_under_one_type_line() -> None:
    # a.b and a_b are one family to Prometheus.
    selected = everything(5)
    odd = Selected([("a.b", 1), ("a.c", 2), ("a_b", 3), *selected.counters], selected.gauges, selected.histograms)
    output = render(odd, Namer(StatsConfig()))
    families = families_of(output)
    assert len(families) == len(set(families))
    current = ""
    for line in output.splitlines():
        if line.startswith("# TYPE "):
            current = line.split()[2]
        else:
            name = line.partition("{")[0]
            assert name == current or name in {f"{current}_{part}" for part in ("bucket", "sum", "count")}


def test_names_are_remembered() -> None:
    namer = Namer(StatsConfig())
    assert namer.series("cluster.a.x") is namer.series("cluster.a.x")


FACTS = ServerFacts(
    state=0, live=True, uptime=7, concurrency=2, version=0xABCDEF, restart_epoch=0, memory=Memory(1, 2, 3),
    unknown_fields=1, worker_restarts=0, workers_started=True, connections=4, listeners=3, listeners_created=6,
    listeners_stopped=1, clusters=5)


def test_statistics_of_the_main_process() -> None:
    snapshot = Registry().snapshot()
    add(snapshot, FACTS)
    assert snapshot.levels["server.version"] == 11259375
    assert snapshot.levels["server.total_connections"] == 4
    assert snapshot.levels["listener_manager.workers_started"] == 1
    assert snapshot.counters["listener_manager.listener_create_success"] == 6


def test_open_connections_are_counted_once() -> None:
    snapshot = Registry().snapshot()
    snapshot.gauges = {"listener.a.downstream_cx_active": 2, "listener.b.downstream_cx_active": 3,
                       "listener.a.worker_0.downstream_cx_active": 2, "http.x.downstream_cx_active": 9}
    assert connections(snapshot) == 5


@pytest.mark.parametrize("summary", [False, True])
def test_dns_has_pilot_agents_names(summary: bool) -> None:
    """Families of their own, a histogram in seconds; tag rules of the configuration do not touch them."""
    registry = Registry()
    group = registry.group(DnsStats, "dns")
    group.requests_total = 7
    group.upstream_request_duration = {3: 1, 40: 1}
    store = HistogramStore()
    snapshot = registry.snapshot(flush=True)
    store.flush([snapshot.histograms])
    page = render(select(Selection(), snapshot, store, Used()), Namer(StatsConfig()), summary)
    assert "# TYPE istio_agent_dns_requests_total counter\nistio_agent_dns_requests_total{} 7\n" in page
    assert "envoy" not in page
    family = "istio_agent_dns_upstream_request_duration_seconds"
    assert f"# TYPE {family} {'summary' if summary else 'histogram'}\n" in page
    expected = ([f'{family}{{quantile="1"}} 0.0405'] if summary else
                [f'{family}_bucket{{le="0.0005"}} 0\n', f'{family}_bucket{{le="0.005"}} 1\n',
                 f'{family}_bucket{{le="0.05"}} 2\n', f'{family}_bucket{{le="+Inf"}} 2\n', f"{family}_count{{}} 2\n"])
    for line in expected:
        assert line in page
    samples = {sample.name: sample.value for found in parser.text_string_to_metric_families(page)
               for sample in found.samples}
    assert samples[f"{family}_sum"] == pytest.approx(0.043, abs=0.001)
