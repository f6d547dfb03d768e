"""Order statistics."""

from __future__ import annotations

import random
import statistics

import pytest

from bench.stats import Ratio, median, median_interval, paired_ratio, percentile


@pytest.mark.parametrize(
    ("values", "expected"), [([3.0], 3.0), ([3.0, 1.0], 2.0), ([9.0, 1.0, 5.0], 5.0), ([4.0, 1.0, 3.0, 2.0], 2.5)]
)
def test_median(values: list[float], expected: float) -> None:
    assert median(values) == expected


@pytest.mark.parametrize(("count", "expected"), [(5, None), (6, (1, 6)), (9, (2, 8)), (12, (3, 10)), (20, (6, 15))])
def test_where_the_median_lies(count: int, expected: tuple[int, int] | None) -> None:
    assert median_interval(list(reversed(range(1, count + 1)))) == expected  # tables of the sign test


def test_median_agrees_with_the_standard_library() -> None:
    generator = random.Random(7)
    for size in range(1, 30):
        values = [generator.random() for _ in range(size)]
        assert median(values) == pytest.approx(statistics.median(values))


def test_median_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        median([])


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (99, 99), (100, 100), (0.5, 1), (99.5, 100)])
def test_percentile_is_the_nearest_rank(percent: float, expected: int) -> None:
    assert percentile(range(1, 101), percent) == expected


def test_percentile_of_one_value() -> None:
    assert percentile([7], 99) == 7


@pytest.mark.parametrize("percent", [0, -1, 101])
def test_percentile_out_of_range_is_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile([1], percent)


def test_ratio_is_taken_pair_by_pair() -> None:
    # The medians' own ratio would be 20 / 10; the pairs say 2, 1 and 4.
    assert paired_ratio([20, 10, 40], [10, 10, 10]) == Ratio(2.0, 1.0, 4.0)
    # A machine that slows down by half in the last pair changes no ratio.
    assert paired_ratio([30, 30, 15], [20, 20, 10]) == Ratio(1.5, 1.5, 1.5)


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], [1.0, 2.0]), ([], []), ([1.0], [0.0])])
def test_impossible_ratios_are_refused(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError):
        paired_ratio(ours, theirs)
