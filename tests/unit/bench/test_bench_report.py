"""Rows, verdicts and the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import report
from bench.cases import CASES, TARGETS, Case, Kind, Target, select
from bench.measure import Series
from bench.report import FAILED, MISSED, OK, Row

KEEPALIVE = select("http1-keepalive")[0]
LATENCY = select("latency")[0]
MEMORY = select("memory")[0]


def throughput(subject: str, *rates: float, failure: str = "") -> Series:
    times = [100.0] * len(rates)
    return Series(
        KEEPALIVE.name,
        subject,
        {"rate": list(rates), "p50": times, "p99": times},
        core_busy=[0.99] * len(rates),
        failure=failure,
    )


def row_of(rows: list[Row], subject: str, metric: str = "rate") -> Row:
    return next(row for row in rows if (row.subject, row.metric) == (subject, metric))


@pytest.mark.parametrize(("ours", "verdict"), [(150.0, OK), (149.0, MISSED)])
def test_target_is_judged_on_the_median_of_the_pairs(ours: float, verdict: str) -> None:
    rows = report.rows(KEEPALIVE, [throughput("ours", ours, 10, 900), throughput("envoy", 100, 100, 100)], "ours")
    found = row_of(rows, "ours")
    assert found.ratio is not None
    assert found.ratio.median == ours / 100
    assert (found.target, found.verdict) == (">= 1.5x", verdict)
    envoy = row_of(rows, "envoy")
    assert (envoy.ratio, envoy.verdict, envoy.value) == (None, "", 100)


def test_only_the_judged_proxy_has_a_target() -> None:
    rows = report.rows(KEEPALIVE, [throughput("before", 50), throughput("ours", 200), throughput("envoy", 100)], "ours")
    assert [(row.subject, row.verdict) for row in rows] == [("before", ""), ("ours", OK), ("envoy", "")]


def test_a_failed_run_has_a_reason_and_no_numbers() -> None:
    rows = report.rows(KEEPALIVE, [throughput("ours", 300, failure="3 timeouts"), throughput("envoy", 100)], "ours")
    found = row_of(rows, "ours")
    assert (found.value, found.ratio, found.p99_us, found.verdict) == (None, None, None, FAILED)
    assert "3 timeouts" in report.document("t", {}, rows, [])


def test_without_envoy_there_is_neither_ratio_nor_verdict() -> None:
    failed = throughput("envoy", failure="not installed")
    for series in ([throughput("ours", 300)], [throughput("ours", 300), failed]):
        found = row_of(report.rows(KEEPALIVE, series, "ours"), "ours")
        assert (found.ratio, found.target, found.verdict) == (None, ">= 1.5x", "")


@pytest.mark.parametrize(("p99", "verdict"), [(400.0, OK), (401.0, MISSED)])
def test_latency_is_judged_by_p99(p99: float, verdict: str) -> None:
    ours = Series("latency", "ours", {"rate": [14e3], "p50": [900.0], "p99": [p99]})
    envoy = Series("latency", "envoy", {"rate": [14e3], "p50": [100.0], "p99": [400.0]})
    found = row_of(report.rows(LATENCY, [ours, envoy], "ours"), "ours", "p99")
    assert (found.value, found.verdict) == (14e3, verdict)


def test_memory_has_a_bound_in_megabytes_and_one_as_a_ratio() -> None:
    ours = Series("memory", "ours", {"idle": [46.0], "load": [60.0]})
    envoy = Series("memory", "envoy", {"idle": [70.0], "load": [100.0]})
    rows = report.rows(MEMORY, [ours, envoy], "ours")
    assert (row_of(rows, "ours", "idle").target, row_of(rows, "ours", "idle").verdict) == ("<= 45 MB", MISSED)
    assert (row_of(rows, "ours", "load").target, row_of(rows, "ours", "load").verdict) == ("<= 1.0x", OK)


def test_table_is_aligned_markdown() -> None:
    rows = report.rows(
        KEEPALIVE, [throughput("ours", 61234, 61000, 70000), throughput("envoy", 28000, 30000, 28000)], "ours"
    )
    lines = report.table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells == [
        "http1-keepalive", "ours", "61,234 req/s", "100 us", "100 us", "99%", "2.19x (2.03-2.50)", ">= 1.5x ok",
    ]  # fmt: skip


@pytest.mark.parametrize(("us", "text"), [(None, ""), (99.4, "99 us"), (1500.0, "1.50 ms")])
def test_duration(us: float | None, text: str) -> None:
    assert report.duration(us) == text


def test_disturbance_is_told() -> None:
    quiet, loud = throughput("ours", 1), throughput("envoy", 1)
    quiet.others_busy = [0.01]
    assert report.notes([], [quiet]) == ""
    loud.others_busy = [0.02, 0.4]
    assert "40%" in report.notes([], [quiet, loud])


def test_both_files_are_written(tmp_path: Path) -> None:
    series = [throughput("ours", 200), throughput("envoy", 100)]
    rows = report.rows(KEEPALIVE, series, "ours")
    markdown, data = report.write("now", "Title", {"cpu": "some"}, rows, series, tmp_path / "results")
    assert "| ours " in markdown.read_text(encoding="utf-8")
    content = json.loads(data.read_text(encoding="utf-8"))
    assert content["facts"] == {"cpu": "some"}
    assert content["rows"][0]["ratio"]["median"] == 2.0
    assert content["series"][1]["metrics"]["rate"] == [100]


def test_every_target_belongs_to_a_case_and_a_metric_that_is_judged() -> None:
    by_name = {case.name: case for case in CASES}
    for target in TARGETS:
        assert target.metric in report.JUDGED_METRICS[by_name[target.case].kind]
    assert {target.case for target in TARGETS} == by_name.keys()


@pytest.mark.parametrize(
    ("at_least", "value", "met"), [(True, 1.5, True), (True, 1.49, False), (False, 1.5, True), (False, 1.51, False)]
)
def test_target_bounds_are_inclusive(at_least: bool, value: float, met: bool) -> None:
    assert Target("c", "rate", at_least, 1.5).met(value) is met


def test_selection_keeps_the_order_of_the_table() -> None:
    assert [case.name for case in select("memory, http1-keepalive")] == ["http1-keepalive", "memory"]
    assert select(None) == list(CASES)


@pytest.mark.parametrize("names", ["http2", "", "memory,nothing"])
def test_unknown_names_are_refused_with_what_is_known(names: str) -> None:
    with pytest.raises(ValueError, match="known: http1-keepalive, "):
        select(names)


def test_throughput_cases_name_a_body_that_can_be_checked() -> None:
    for case in CASES:
        assert isinstance(case, Case)
        assert case.body_bytes > 0
        assert (case.unit == "MB/s") == (case.body_bytes >= 1 << 20)
    assert [case.kind for case in CASES].count(Kind.LATENCY) == 1
