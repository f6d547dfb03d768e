"""Order statistics of repeated measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two middle ones. Raises ValueError for an empty sequence."""
    if not values:
        raise ValueError("median of no values")
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile of an ascending sequence: the smallest value that `percent` of all do not exceed."""
    if not ordered:
        raise ValueError("percentile of no values")
    if not 0 < percent <= 100:
        raise ValueError(f"percentile {percent}: expected a number above 0 and up to 100")
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ratios of pairs measured next to each other: their median, and the extremes that show how far to trust it."""

    median: float
    low: float
    high: float


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Where the median of all such values lies with 95% confidence (sign test); None: fewer than six are too few."""
    ordered = sorted(values)
    size = len(ordered)
    outside, tail = 0, 1
    while 2 * tail <= 0.05 * 2**size:
        outside += 1
        tail += math.comb(size, outside)
    return (ordered[outside - 1], ordered[size - outside]) if outside else None


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Ratio pair by pair. Raises ValueError unless both have the same, non-zero length and no denominator is 0."""
    if len(numerators) != len(denominators):
        raise ValueError(f"{len(numerators)} numerators for {len(denominators)} denominators")
    if not all(denominators):
        raise ValueError("a denominator is 0")
    ratios = [n / d for n, d in zip(numerators, denominators, strict=True)]
    return Ratio(median(ratios), min(ratios), max(ratios))
