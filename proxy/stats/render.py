"""Statistics as Envoy's text and JSON (`/stats`)."""

from __future__ import annotations

import json
from typing import Any

from proxy.stats.histogram import BUCKETS, Bins, bottom_of, cumulative_buckets, disjoint_buckets, quantiles, width_of
from proxy.stats.selection import HistogramView, Selected

SUMMARY, CUMULATIVE, DISJOINT, DETAILED, NATIVE = "summary", "cumulative", "disjoint", "detailed", "prometheusnative"
_SPREAD = {CUMULATIVE: cumulative_buckets, DISJOINT: disjoint_buckets}
_PERCENT = ("0", "25", "50", "75", "90", "95", "99", "99.5", "99.9", "100")


def decimal(value: float) -> str:
    """The shortest text that reads back as the value, whole numbers without a point (libfmt's ``{}``)."""
    if value != value:
        return "nan"
    return str(int(value)) if value == int(value) else repr(value)


def text(selected: Selected, buckets: str = SUMMARY) -> str:
    """``name: value`` lines, counters and gauges together in the order of their names, histograms after them."""
    lines = [f"{name}: {value}\n" for name, value in sorted(selected.counters + selected.gauges)]
    lines += [_histogram_text(view, buckets) for view in selected.histograms]
    return "".join(lines)


def _histogram_text(view: HistogramView, buckets: str) -> str:
    if not view.cumulative:
        return f"{view.name}: No recorded values\n"
    if spread := _SPREAD.get(buckets):
        pairs = zip(BUCKETS, spread(view.interval), spread(view.cumulative), strict=True)
        return f"{view.name}: {' '.join(f'B{bound:g}({i},{c})' for bound, i, c in pairs)}\n"
    summary = " ".join(f"P{percent}({decimal(i)},{decimal(c)})" for percent, i, c in zip(
        _PERCENT, quantiles(view.interval), quantiles(view.cumulative), strict=True))
    if buckets == DETAILED:
        return (f"{view.name}:\n  totals={_bins_text(view.cumulative)}\n  intervals={_bins_text(view.interval)}\n"
                f"  summary={summary}\n")
    return f"{view.name}: {summary}\n"


def _bins_text(bins: Bins) -> str:
    return ", ".join(f"{bottom_of(edge):g},{width_of(edge):g}:{bins[edge]}" for edge in sorted(bins))


def as_json(selected: Selected, buckets: str = SUMMARY) -> str:
    """``{"stats": [...]}`` on one line; a quantile of nothing is null."""
    stats: list[dict[str, Any]] = [{"name": name, "value": value}
                                   for name, value in sorted(selected.counters + selected.gauges)]
    if selected.histograms:
        stats.append({"histograms": _histograms_json(selected.histograms, buckets)})
    return json.dumps({"stats": stats}, separators=(",", ":"), ensure_ascii=False)


def _histograms_json(views: list[HistogramView], buckets: str) -> Any:
    if spread := _SPREAD.get(buckets):
        return [{"name": view.name,
                 "buckets": [{"upper_bound": _plain(bound), "interval": i, "cumulative": c} for bound, i, c in
                             zip(BUCKETS, spread(view.interval), spread(view.cumulative), strict=True)]}
                for view in views]
    supported = [_plain(float(percent)) for percent in _PERCENT]
    if buckets == DETAILED:
        return {"supported_percentiles": supported,
                "details": [{"name": view.name, "totals": _bins_json(view.cumulative),
                             "intervals": _bins_json(view.interval), "percentiles": _quantiles_json(view)}
                            for view in views]}
    return {"supported_quantiles": supported,
            "computed_quantiles": [{"name": view.name, "values": _quantiles_json(view)} for view in views]}


def _quantiles_json(view: HistogramView) -> list[dict[str, float | None]]:
    return [{"cumulative": _plain(c), "interval": _plain(i)}
            for i, c in zip(quantiles(view.interval), quantiles(view.cumulative), strict=True)]


def _bins_json(bins: Bins) -> list[dict[str, float | None]]:
    return [{"lower_bound": _plain(bottom_of(edge)), "width": _plain(width_of(edge)), "count": bins[edge]}
            for edge in sorted(bins)]


def _plain(value: float) -> float | None:
    """JSON has no NaN, and Envoy writes whole numbers without a point."""
    if value != value:
        return None
    return int(value) if value == int(value) else value
