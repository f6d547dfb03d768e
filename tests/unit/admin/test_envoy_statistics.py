"""Real Envoy's numbers through our output must give Envoy's output, byte for byte: names, labels, order, histograms."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from envoys import Envoy, bootstrap, running

from proxy.config.model import StatsConfig, StatsTag
from proxy.stats import prometheus, render
from proxy.stats.selection import HistogramView, Selected

ISTIO = Path(__file__).resolve().parents[4] / "shared/istio/config/plain-productpage-v1/static.json"
NAMES = quote(r"^(cluster|http\.[^a]|http\.agent|tcp|listener\.[^a]|listener_manager|server\.(live|worker|state|init))")
"""Everything that holds still between two questions; of the admin interface itself nothing does."""

CONFIGS: dict[str, Any] = {
    "default tags": {},
    "Istio's tags": None,
    "both": {"stats_tags": [
        {"tag_name": "mesh", "fixed_value": 'm"1\\'}, {"tag_name": "cluster_name", "regex": "^cluster(\\.(.+);)"},
        {"tag_name": "envoy.cluster_name"}, {"tag_name": "kind", "regex": "(downstream|upstream)_"}]},
    "one default tag": {"use_all_default_tags": False, "stats_tags": [{"tag_name": "envoy.listener_address"}]},
}


def istios_tags() -> dict[str, Any]:
    """stats_config of a sidecar as istiod wrote it, without its stats_matcher."""
    if not ISTIO.exists():
        complain = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        complain(f"{ISTIO} is missing")
    config: dict[str, Any] = json.loads(ISTIO.read_text())["stats_config"]
    del config["stats_matcher"]
    return config


def compiled(config: dict[str, Any]) -> StatsConfig:
    """The configuration as our compiler makes it."""
    return StatsConfig(
        tags=tuple(StatsTag(tag["tag_name"], tag.get("regex", ""), tag.get("fixed_value", ""))
                   for tag in config.get("stats_tags", ())),
        use_all_default_tags=config.get("use_all_default_tags", True))


@pytest.fixture(scope="module", params=list(CONFIGS))
def setup(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
          ) -> Iterator[tuple[Envoy, StatsConfig]]:
    stats = CONFIGS[request.param]
    if stats is None:
        stats = istios_tags()
    config = bootstrap("/dev/null", stats_config=stats, stats_flush_interval="0.2s")
    with running(config, tmp_path_factory.mktemp("envoy")) as envoy:
        assert envoy.call("web", "/code/404") == 404
        assert envoy.call("web", "/refused") == 503
        assert envoy.call("named", "/code/204") == 204
        assert envoy.call("six", "/code/301", "::1") == 301
        for seconds in (0.105, 0.112, 0.222):
            envoy.hold("web", seconds)
        envoy.until(lambda: is_at_rest(envoy))
        yield envoy, compiled(stats)


def is_at_rest(envoy: Envoy) -> bool:
    """Every connection was recorded, and the flush interval that recorded it is over."""
    lengths = quote("^http.[^a].*downstream_cx_length_ms|^http.agent.*downstream_cx_length_ms")
    (stats,) = envoy.json(f"/stats?format=json&histogram_buckets=detailed&filter={lengths}")["stats"]
    details = stats["histograms"]["details"]
    return (sum(one["count"] for histogram in details for one in histogram["totals"]) == 7
            and not any(histogram["intervals"] for histogram in details))


def bins(listed: list[dict[str, float]]) -> dict[int, int]:
    return {round(one["lower_bound"]): int(one["count"]) for one in listed}


def told(envoy: Envoy) -> Selected:
    """What Envoy knows, in our terms."""
    counters, gauges = ([(one["name"], one["value"]) for one in envoy.json(
        f"/stats?format=json&type={kind}&filter={NAMES}")["stats"]] for kind in ("Counters", "Gauges"))
    (histograms,) = envoy.json(f"/stats?format=json&type=Histograms&histogram_buckets=detailed&filter={NAMES}")["stats"]
    return Selected(counters, gauges, [
        HistogramView(one["name"], bins(one["intervals"]), bins(one["totals"]))
        for one in histograms["histograms"]["details"]])


def test_prometheus(setup: tuple[Envoy, StatsConfig]) -> None:
    envoy, config = setup
    namer = prometheus.Namer(config)
    assert prometheus.render(told(envoy), namer) == envoy.get(f"/stats/prometheus?filter={NAMES}").text
    assert prometheus.render(told(envoy), namer, summary=True) == envoy.get(
        f"/stats/prometheus?histogram_buckets=summary&filter={NAMES}").text


@pytest.mark.parametrize("buckets", ["summary", "cumulative", "disjoint", "detailed"])
def test_text_and_json(setup: tuple[Envoy, StatsConfig], buckets: str) -> None:
    envoy, _ = setup
    selected = told(envoy)
    path = f"/stats?histogram_buckets={buckets}&filter={NAMES}"
    assert render.text(selected, buckets) == envoy.get(path).text
    assert json.loads(render.as_json(selected, buckets)) == envoy.json(path + "&format=json")
