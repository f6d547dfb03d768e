"""From series to one table, printed and written as Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.cases import Case, Kind, Metric, targets_of
from bench.measure import Series
from bench.stats import Ratio, median, paired_ratio
from bench.subjects import DIRECT, ENVOY

HEADINGS = ("case", "proxy", "result", "p50", "p99", "core", "to Envoy", "target")
RESULTS = Path(__file__).with_name("results")
JUDGED_METRICS: dict[Kind, tuple[Metric, ...]] = {
    Kind.THROUGHPUT: ("rate",),
    Kind.LATENCY: ("p99",),
    Kind.MEMORY: ("idle", "load"),
    Kind.CONNECTIONS: ("new", "used"),
}
UNITS = {Kind.MEMORY: "MB", Kind.CONNECTIONS: "B"}
DISTURBED = 0.05
OK, MISSED, FAILED = "ok", "MISSED", "FAILED"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `verdict` is ok, MISSED, FAILED, or empty where there is no target."""

    case: str
    subject: str
    metric: Metric
    value: float | None
    unit: str
    p50_us: float | None
    p99_us: float | None
    core_busy: float | None
    ratio: Ratio | None
    target: str
    verdict: str
    failure: str

    def cells(self) -> tuple[str, ...]:
        ratio = self.ratio
        label = self.case if self.metric == "rate" else f"{self.case} ({self.metric})"
        spread = "" if ratio is None or ratio.low == ratio.high else f" ({ratio.low:.2f}-{ratio.high:.2f})"
        return (
            label,
            self.subject,
            FAILED if self.failure else amount(self.value, self.unit),
            duration(self.p50_us),
            duration(self.p99_us),
            "" if self.core_busy is None else f"{self.core_busy:.0%}",
            "" if ratio is None else f"{ratio.median:.2f}x{spread}",
            f"{self.target} {self.verdict}".strip(),
        )


def amount(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:,.1f} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def duration(microseconds: float | None) -> str:
    if microseconds is None:
        return ""
    return f"{microseconds:.0f} us" if microseconds < 1000 else f"{microseconds / 1000:.2f} ms"


def rows(case: Case, series: Sequence[Series], judged: str) -> list[Row]:
    """The lines of one case; targets are applied to the proxy named `judged`."""
    baseline = next((s for s in series if s.subject == ENVOY and not s.failure), None)
    return [row(case, values, metric, baseline, judged) for metric in JUDGED_METRICS[case.kind] for values in series]


def row(case: Case, values: Series, metric: Metric, baseline: Series | None, judged: str) -> Row:
    shown: Metric = "rate" if case.kind is Kind.LATENCY else metric
    failed = bool(values.failure)
    value = None if failed else middle(values.metrics.get(shown))
    ratio = None
    if baseline is not None and not failed and values is not baseline:
        ratio = paired_ratio(values.metrics[metric], baseline.metrics[metric])
    text, verdict = "", ""
    if values.subject == judged:
        for target in targets_of(case.name, metric):
            compared = value if target.absolute else (ratio.median if ratio else None)
            text = target.text()
            verdict = FAILED if failed else "" if compared is None else OK if target.met(compared) else MISSED
    return Row(
        case=case.name,
        subject=values.subject,
        metric=metric,
        value=value,
        unit=UNITS.get(case.kind, case.unit),
        p50_us=None if failed else middle(values.metrics.get("p50")),
        p99_us=None if failed else middle(values.metrics.get("p99")),
        core_busy=None if failed or values.subject == DIRECT else middle(values.core_busy),
        ratio=ratio,
        target=text,
        verdict=verdict,
        failure=values.failure,
    )


def middle(values: Sequence[float] | None) -> float | None:
    return median(values) if values else None


def table(lines: Iterable[Row]) -> str:
    """A Markdown table, padded so that it reads as well in a terminal."""
    cells = [HEADINGS, *(line.cells() for line in lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADINGS))]

    def render(line: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([render(cells[0]), rule, *(render(line) for line in cells[1:])])


def notes(lines: Sequence[Row], series: Sequence[Series]) -> str:
    """What the table has no room for: disturbance, reasons of failures, the generator's lateness, unshared memory."""
    text = []
    disturbance = max((share for values in series for share in values.others_busy), default=0.0)
    if disturbance > DISTURBED:
        text.append(
            f"- other processes took up to {disturbance:.0%} of the proxy's core in a measurement: expect noise"
        )
    text += [f"- {line.case}, {line.subject}: FAILED: {one_line(line.failure)}" for line in first_failures(lines)]
    for values in series:
        found = values.notes
        if "generator_lag_p99_us" in found and not values.failure:
            text.append(
                f"- {values.case}, {values.subject}: the generator noticed a due request "
                f"{found['generator_lag_p50_us']:.0f} us late at the median, {found['generator_lag_p99_us']:.0f} us "
                "at p99; that is part of the latencies above"
            )
        if "idle_pss_mb" in found:
            text.append(
                f"- {values.case}, {values.subject}: processes: {found['processes']:.0f}; the kernel's own PSS, which "
                f"shares file pages with processes outside, was {found['idle_pss_mb']:.1f} MB idle and "
                f"{found['load_pss_mb']:.1f} MB under load"
            )
    return "\n".join(text)


def first_failures(lines: Sequence[Row]) -> list[Row]:
    found: dict[tuple[str, str], Row] = {}
    for line in lines:
        if line.failure:
            found.setdefault((line.case, line.subject), line)
    return list(found.values())


def one_line(text: str) -> str:
    return " ".join(text.split())


def document(title: str, facts: dict[str, str], lines: Sequence[Row], series: Sequence[Series]) -> str:
    """The Markdown file of one run."""
    parts = [f"# {title}", "\n".join(f"- {name}: {value}" for name, value in facts.items()), table(lines)]
    if extra := notes(lines, series):
        parts.append(extra)
    return "\n\n".join(parts) + "\n"


def write(
    stem: str,
    title: str,
    facts: dict[str, str],
    lines: Sequence[Row],
    series: Sequence[Series],
    directory: Path,
) -> list[Path]:
    """Write `stem`.md and `stem`.json; their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    markdown, data = directory / f"{stem}.md", directory / f"{stem}.json"
    markdown.write_text(document(title, facts, lines, series), encoding="utf-8")
    content: dict[str, Any] = {
        "title": title,
        "facts": facts,
        "rows": [asdict(line) for line in lines],
        "series": [asdict(values) for values in series],
    }
    data.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return [markdown, data]
