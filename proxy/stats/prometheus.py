"""Statistics in Prometheus' text format, named and labelled as Envoy does it (`/stats/prometheus`)."""

from __future__ import annotations

import re
from typing import NamedTuple

from proxy.config.model import StatsConfig
from proxy.stats import tags
from proxy.stats.histogram import BUCKETS, QUANTILES, approximate_sum, count, cumulative_buckets, quantiles
from proxy.stats.render import decimal
from proxy.stats.selection import HistogramView, Selected

CONTENT_TYPE = "text/plain; charset=UTF-8"
MAX_CACHED = 200_000
"""Names; far above what one configuration makes, so that only names that come and go without end empty the cache."""

CUSTOM = {"dns.": "istio_agent_dns_"}
"""Families without Envoy's prefix, by the beginning of the statistic's name; what pilot-agent counts has its names."""
SECONDS = frozenset(("dns.upstream_request_duration",))
"""Histograms of milliseconds that are shown in seconds, with the unit in the name (pilot-agent's way, not Envoy's)."""
_MS_IN_SECOND = 1000

_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_]")
_BOUNDS = tuple(decimal(bound) for bound in BUCKETS)
_BOUNDS_IN_SECONDS = tuple(decimal(bound / _MS_IN_SECOND) for bound in BUCKETS)
_QUANTILES = tuple(decimal(quantile) for quantile in QUANTILES)


class Series(NamedTuple):
    """Where a statistic goes: its family (and the name that orders families) and the text inside its braces."""

    family: str
    order: str
    labels: str


class Namer:
    """Remembers each statistic's series, so that a scrape only looks names up."""

    __slots__ = ("_known", "_rules")

    def __init__(self, config: StatsConfig) -> None:
        """Raises tags.TagError."""
        self._rules = tags.rules_of(config)
        self._known: dict[str, Series] = {}

    def series(self, name: str) -> Series:
        """The series of a statistic's full name."""
        found = self._known.get(name)
        if found is None:
            if len(self._known) >= MAX_CACHED:
                self._known.clear()
            found = self._known[name] = self._name(name)
        return found

    def _name(self, name: str) -> Series:
        for beginning, prefix in CUSTOM.items():
            if name.startswith(beginning):
                family = prefix + _NOT_IN_NAMES.sub("_", name.removeprefix(beginning))
                if name in SECONDS:
                    family += "_seconds"
                return Series(family, family, "")
        rest, found = tags.extract(name, self._rules)
        labels: dict[str, str] = {}
        for tag, value in found:
            # Prometheus refuses a label that occurs twice.
            labels.setdefault(_NOT_IN_NAMES.sub("_", tag), value)
        return Series("envoy_" + _NOT_IN_NAMES.sub("_", rest), rest,
                      ",".join(f'{label}="{_escape(value)}"' for label, value in labels.items()))


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def render(selected: Selected, namer: Namer, summary: bool = False) -> str:
    """Counters, gauges, then histograms; every family's lines together under one ``# TYPE`` line.

    ``summary`` shows quantiles of the last flush interval instead of buckets since the start.
    """
    out: list[str] = []
    for kind, numbers in (("counter", selected.counters), ("gauge", selected.gauges)):
        families: dict[str, tuple[str, list[str]]] = {}
        for name, value in numbers:
            family, order, labels = namer.series(name)
            families.setdefault(family, (order, []))[1].append(f"{family}{{{labels}}} {value}\n")
        _append(out, families, kind)
    families = {}
    lines_of = _summary_lines if summary else _bucket_lines
    for view in selected.histograms:
        family, order, labels = namer.series(view.name)
        families.setdefault(family, (order, []))[1].extend(lines_of(view, family, labels))
    _append(out, families, "summary" if summary else "histogram")
    return "".join(out)


def _append(out: list[str], families: dict[str, tuple[str, list[str]]], kind: str) -> None:
    for family in sorted(families, key=lambda f: families[f][0]):
        out.append(f"# TYPE {family} {kind}\n")
        out.extend(families[family][1])


def _bucket_lines(view: HistogramView, family: str, labels: str) -> list[str]:
    bins = view.cumulative
    samples = count(bins)
    comma = "," if labels else ""
    seconds = view.name in SECONDS
    lines = [f'{family}_bucket{{{labels}{comma}le="{bound}"}} {below}\n'
             for bound, below in zip(_BOUNDS_IN_SECONDS if seconds else _BOUNDS, cumulative_buckets(bins), strict=True)]
    lines.append(f'{family}_bucket{{{labels}{comma}le="+Inf"}} {samples}\n')
    total = approximate_sum(bins) / _MS_IN_SECOND if seconds else approximate_sum(bins)
    lines.append(f"{family}_sum{{{labels}}} {total:.32g}\n")
    lines.append(f"{family}_count{{{labels}}} {samples}\n")
    return lines


def _summary_lines(view: HistogramView, family: str, labels: str) -> list[str]:
    bins = view.interval
    comma = "," if labels else ""
    scale = _MS_IN_SECOND if view.name in SECONDS else 1
    lines = [f'{family}{{{labels}{comma}quantile="{quantile}"}} {value / scale:.32g}\n'
             for quantile, value in zip(_QUANTILES, quantiles(bins), strict=True)]
    lines.append(f"{family}_sum{{{labels}}} {approximate_sum(bins) / scale:.32g}\n")
    lines.append(f"{family}_count{{{labels}}} {count(bins)}\n")
    return lines
