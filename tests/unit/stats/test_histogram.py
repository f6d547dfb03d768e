"""Bins, quantiles and buckets as libcircllhist and Envoy compute them (figures taken from real Envoy)."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.stats import histogram as h


@pytest.mark.parametrize(("value", "edge", "width"), [
    (-3, 0, 0.0), (0, 0, 0.0), (1, 1, 0.1), (9, 9, 0.1), (10, 10, 1.0), (99, 99, 1.0), (100, 100, 10.0),
    (109, 100, 10.0), (110, 110, 10.0), (999, 990, 10.0), (1000, 1000, 100.0), (12345, 12000, 1000.0),
    (3_599_999, 3_500_000, 100_000.0),
])
def test_bins(value: int, edge: int, width: float) -> None:
    assert h.bin_of(value) == edge
    assert h.width_of(edge) == width


@given(st.integers(1, 10**12))
def test_a_value_lies_in_its_bin(value: int) -> None:
    edge = h.bin_of(value)
    assert edge <= value < edge + h.width_of(edge)
    assert h.bin_of(edge) == edge


def test_quantiles_of_one_bin() -> None:
    # Envoy: 29 connections accepted one by one.
    assert h.quantiles({1: 29}) == [
        1.0033333333333334, 1.0266666666666666, 1.05, 1.0733333333333333, 1.09, 1.0933333333333333,
        1.0966666666666667, 1.0966666666666667, 1.0966666666666667, 1.0966666666666667]


def test_quantiles_of_one_sample_are_the_middle_of_its_bin() -> None:
    assert h.quantiles({13: 1}) == [13.5] * 10


def test_quantiles_over_several_bins() -> None:
    # Envoy: lengths of 29 connections, 7 of them less than a millisecond.
    assert h.quantiles({0: 7, 1: 21, 3: 1}) == [
        0, 1.0045454545454546, 1.0363636363636364, 1.0681818181818181, 1.0909090909090908, 1.0954545454545455,
        3.05, 3.05, 3.05, 3.05]


def test_quantiles_of_nothing() -> None:
    assert all(math.isnan(q) for q in h.quantiles({}))
    assert all(math.isnan(q) for q in h.quantiles({5: 0}))


BINS = st.dictionaries(st.integers(0, 10**7).map(h.bin_of), st.integers(1, 1000), min_size=1, max_size=30)


@given(BINS)
def test_quantiles_ascend_and_stay_inside(bins: dict[int, int]) -> None:
    quantiles = h.quantiles(bins)
    assert quantiles == sorted(quantiles)
    assert min(bins) <= quantiles[0]
    assert quantiles[-1] <= max(bins) + h.width_of(max(bins))


@given(BINS)
def test_buckets_count_every_sample_once(bins: dict[int, int]) -> None:
    cumulative = h.cumulative_buckets(bins)
    assert cumulative == sorted(cumulative)
    assert sum(h.disjoint_buckets(bins)) == cumulative[-1] <= h.count(bins)
    if max(bins) <= h.BUCKETS[-1]:
        assert cumulative[-1] == h.count(bins)


def test_a_bucket_holds_the_bin_that_begins_at_its_bound() -> None:
    # Envoy: lengths around 100, 250 and 1000 ms; what lasted 100 to 109 ms counts as "up to 100".
    bins = {95: 1, 96: 1, 98: 1, 100: 5, 110: 3, 240: 3, 250: 2, 260: 3, 270: 1, 1000: 2, 1100: 1}
    assert h.cumulative_buckets(bins) == [0] * 6 + [8, 16, 20, 22] + [23] * 9
    assert h.approximate_sum(bins) == 6715.8376567062241520034149289131


def test_sums_are_of_harmonic_midpoints() -> None:
    assert f"{h.approximate_sum({1: 29}):.32g}" == "30.38095238095238315167989640031"
    assert f"{h.approximate_sum({13: 1}):.32g}" == "13.481481481481480955153529066592"
    assert h.approximate_sum({0: 5}) == 0


def test_the_store_keeps_the_last_interval_and_everything() -> None:
    store = h.HistogramStore()
    store.flush([{"a": {1: 2, 105: 1}}, {"a": {100: 1}, "b": {}}])
    assert store.interval == store.cumulative == {"a": {1: 2, 100: 2}, "b": {}}
    store.flush([{"a": {1: 1}}])
    assert store.interval == {"a": {1: 1}, "b": {}}
    assert store.cumulative == {"a": {1: 3, 100: 2}, "b": {}}
    assert store.flushes == 2
    assert store.interval["a"] is not store.cumulative["a"]
