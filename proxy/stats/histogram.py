"""Histograms as libcircllhist keeps them: bins of two significant decimal digits, quantiles interpolated inside a bin.

A histogram is ``dict[bin, count]``; a bin is named by its lower edge. The values recorded here are whole numbers
(milliseconds or counts), so every bin edge is a whole number as well: the bin of 12345 is 12000, that of 7 is 7.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

Bins = Mapping[int, int]

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 1.0)
"""Envoy's supported quantiles."""
BUCKETS = (0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0, 30000.0, 60000.0,
           300000.0, 600000.0, 1800000.0, 3600000.0)
"""Envoy's default upper bounds (config.metrics.v3.HistogramBucketSettings)."""
NAN = float("nan")


def bin_of(value: int) -> int:
    """The bin of a value: itself below 100, else rounded down to two significant digits. Negative values count as 0."""
    if value < 100:
        return value if value > 0 else 0
    scale: int = 10 ** (len(str(value)) - 2)
    return value // scale * scale


def width_of(edge: int) -> float:
    """The width of the bin with this lower edge; the bin of zero has none."""
    if edge < 10:
        return 0.1 if edge else 0.0
    return float(10 ** (len(str(edge)) - 2))


def bottom_of(edge: int) -> float:
    """The lower edge as libcircllhist computes it (two digits times a power of ten), which now and then shows."""
    power: int = 10 ** (len(str(edge)) - 1)
    return edge / power * power


def quantiles(bins: Bins, wanted: Sequence[float] = QUANTILES) -> list[float]:
    """The value at each quantile (ascending, 0.0 to 1.0), NaN for an empty histogram.

    libcircllhist: the sample at rank ``ceil(q * n)`` (at least the first); the ``n`` samples of a bin are taken to lie
    at ``1/(n+1) ... n/(n+1)`` of its width.
    """
    total = sum(bins.values())
    if not total:
        return [NAN] * len(wanted)
    result = []
    edges = iter(sorted(edge for edge, count in bins.items() if count))
    edge = next(edges)
    below, upto = 0, bins[edge]
    for quantile in wanted:
        exact = quantile * total
        rank = max(1, int(exact) + (exact > int(exact)))
        while upto < rank:
            edge = next(edges)
            below, upto = upto, upto + bins[edge]
        result.append(bottom_of(edge) + width_of(edge) * ((rank - below) / (bins[edge] + 1)))
    return result


def count(bins: Bins) -> int:
    """How many samples there are."""
    return sum(bins.values())


def approximate_sum(bins: Bins) -> float:
    """The sum of all samples, each taken as the harmonic midpoint of its bin, as libcircllhist estimates it."""
    total = 0.0
    for edge in sorted(bins):
        if edge:
            bottom, width = bottom_of(edge), width_of(edge)
            # The order of operations is libcircllhist's, to the last bit.
            total += (bottom + width * (bottom / (bottom + (bottom + width)))) * bins[edge]
    return total


def cumulative_buckets(bins: Bins, bounds: Sequence[float] = BUCKETS) -> list[int]:
    """For each upper bound the number of samples in bins that begin at or below it."""
    edges = sorted(bins)
    result = []
    at = running = 0
    for bound in bounds:
        while at < len(edges) and bottom_of(edges[at]) <= bound:
            running += bins[edges[at]]
            at += 1
        result.append(running)
    return result


def disjoint_buckets(bins: Bins, bounds: Sequence[float] = BUCKETS) -> list[int]:
    """The samples of each bucket alone; what lies above the last bound is in none."""
    upto = cumulative_buckets(bins, bounds)
    return [n - before for n, before in zip(upto, [0, *upto], strict=False)]


class HistogramStore:
    """What was recorded in the last flush interval and since the start, by statistic name.

    A name is present as soon as a worker knows it. Until the first flush every histogram reads as empty.
    """

    __slots__ = ("cumulative", "flushes", "interval")

    def __init__(self) -> None:
        self.interval: dict[str, dict[int, int]] = {}
        self.cumulative: dict[str, dict[int, int]] = {}
        self.flushes = 0

    def flush(self, recorded: Iterable[Mapping[str, Mapping[int, int]]]) -> None:
        """End one interval with what each worker handed over for it: name -> {value: how often}."""
        interval: dict[str, dict[int, int]] = {name: {} for name in self.cumulative}
        for histograms in recorded:
            for name, values in histograms.items():
                bins = interval.setdefault(name, {})
                total = self.cumulative.setdefault(name, {})
                for value, times in values.items():
                    edge = bin_of(value)
                    bins[edge] = bins.get(edge, 0) + times
                    total[edge] = total.get(edge, 0) + times
        self.interval = interval
        self.flushes += 1
