"""The measurements: pairs in alternating order, so that drift of the machine falls on every proxy alike."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from bench import connections, machine, memory, openloop, wrk
from bench.cases import Case, Kind, Metric
from bench.config import BODY_1K, BODY_1M, PATH_1K, PATH_1M
from bench.process import ProcessError, run_pinned
from bench.stats import median
from bench.subjects import CHECKOUT, ENVOY, OURS, Run, Running, Subject, SubjectError, start

LATENCY_SHARE = 0.5
"""Part of Envoy's peak at which the latency is measured."""

RATE_HELD = 0.98
"""A run that did not reach this part of its intended rate measured the generator or the queue, not the latency."""

PEAK_CASE = "http1-keepalive-log"
"""The case whose rate is the peak: the configuration is that of the latency case."""

PEAK_RUNS = 3
SETTLE_SECONDS = 1.0
EXTRA_SECONDS = 30.0

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure; `warmup` seconds of load precede the first pair of a case (0: none)."""

    pairs: int
    seconds: int
    warmup: int


@dataclass(slots=True)
class Series:
    """Values of one proxy in one case, pair by pair; `failure` is why they do not count.

    Rates are in the unit of the case, times in microseconds, memory in MB. `core_busy` and `others_busy` (0 to 1) are
    how busy the proxy's core was in each measurement, and how much of it went to processes of others.
    """

    case: str
    subject: str
    metrics: dict[Metric, list[float]] = field(default_factory=dict)
    core_busy: list[float] = field(default_factory=list)
    others_busy: list[float] = field(default_factory=list)
    notes: dict[str, float] = field(default_factory=dict)
    failure: str = ""

    def add(self, metric: Metric, value: float) -> None:
        self.metrics.setdefault(metric, []).append(value)


Entry = tuple[Running, Series]
Step = Callable[[Running, Series], None]


def measure(
    run: Run, case: Case, subjects: Sequence[Subject], effort: Effort, earlier: Sequence[Series], progress: Progress
) -> list[Series]:
    """All values of one case. `earlier`: what this run measured before; the latency case takes Envoy's peak from it."""
    if case.kind is Kind.MEMORY:
        return [memory_of(run, case, subject, effort, progress) for subject in subjects if subject.kind != "direct"]
    if case.kind is Kind.CONNECTIONS:
        count = connections.QUICK_COUNT if effort.pairs == 1 else connections.COUNT
        return [connections_of(run, case, s, count, progress) for s in subjects if s.kind in (OURS, ENVOY)]
    series = [Series(case.name, subject.name) for subject in subjects]
    started: list[Entry] = []
    try:
        for subject, values in zip(subjects, series, strict=True):
            try:
                started.append((start(run, subject, access_log=case.access_log), values))
            except (SubjectError, ProcessError) as error:
                fail(values, str(error), progress)
        if case.kind is Kind.LATENCY:
            measure_latency(run, case, started, effort, earlier, progress)
        else:
            for running, values in started:
                if effort.warmup:
                    attempt(lambda r, _: warm_up(run, case, r, effort.warmup), running, values, progress)
            in_pairs(started, effort.pairs, lambda r, v: throughput(run, case, r, v, effort.seconds), progress)
    finally:
        for running, values in started:
            finish(running, values, progress)
    return series


def in_pairs(entries: Sequence[Entry], pairs: int, step: Step, progress: Progress) -> None:
    """`pairs` rounds over all proxies that have not failed, every other round backwards."""
    for pair in range(pairs):
        for running, values in alternate(entries, pair):
            attempt(step, running, values, progress)
            if not values.failure:
                progress(f"{values.case} {pair + 1}/{pairs} {values.subject}: {last_values(values)}")


def alternate(entries: Sequence[Entry], pair: int) -> Iterator[Entry]:
    return iter(entries) if pair % 2 == 0 else reversed(entries)


def attempt(step: Step, running: Running, values: Series, progress: Progress) -> None:
    if values.failure:
        return
    try:
        step(running, values)
    except (SubjectError, ProcessError, wrk.WrkError) as error:
        fail(values, str(error), progress)


def fail(values: Series, reason: str, progress: Progress) -> None:
    """The first reason is kept: what follows is usually its consequence."""
    values.failure = values.failure or reason
    progress(f"{values.case} {values.subject}: FAILED: {reason}")


def finish(running: Running, values: Series, progress: Progress) -> None:
    problems = running.finish()
    if problems:
        fail(values, "; ".join(problems), progress)


def last_values(values: Series) -> str:
    return ", ".join(f"{metric} {numbers[-1]:,.0f}" for metric, numbers in values.metrics.items())


def load(
    run: Run, case: Case, running: Running, seconds: int, meanwhile: Callable[[], None] | None = None
) -> wrk.WrkReport:
    """One run of wrk. Raises SubjectError unless every response was right."""
    command = wrk.command(running.port(case.listener), case.path, run.host, seconds, case.new_connection)
    output = run_pinned(command, run.cores.load, timeout=seconds + EXTRA_SECONDS, meanwhile=meanwhile)
    report = wrk.parse(output)
    if complaint := report.complaint(case.body_bytes):
        raise SubjectError(complaint)
    if case.listener == "http":
        running.logged_requests += report.requests
    return report


@contextlib.contextmanager
def watched_core(run: Run, running: Running, values: Series) -> Iterator[None]:
    """Note how busy the proxy's core was meanwhile, and how much of it processes took that are not the proxy's."""
    core, child = run.cores.proxy, running.child
    before, own_before = machine.cpu_times(core), child.cpu_jiffies() if child else 0
    yield
    after, own_after = machine.cpu_times(core), child.cpu_jiffies() if child else 0
    values.core_busy.append(machine.busy_share(before, after))
    values.others_busy.append(machine.others_share(before, after, own_after - own_before))


def warm_up(run: Run, case: Case, running: Running, seconds: int) -> None:
    load(run, case, running, seconds)


def throughput(run: Run, case: Case, running: Running, values: Series, seconds: int) -> None:
    with watched_core(run, running, values):
        report = load(run, case, running, seconds)
    bytes_per_second = report.requests * case.body_bytes / report.seconds
    values.add("rate", bytes_per_second / 1e6 if case.unit == "MB/s" else report.rate)
    values.add("p50", report.p50_us)
    values.add("p99", report.p99_us)


def measure_latency(
    run: Run, case: Case, entries: Sequence[Entry], effort: Effort, earlier: Sequence[Series], progress: Progress
) -> None:
    """Every proxy at the same constant rate: half of what Envoy can carry."""
    peak = known_peak(earlier) or measured_peak(run, case, entries, effort, progress)
    if not peak:
        for _, values in entries:
            fail(values, "Envoy's peak is not known: it did not run", progress)
        return
    rate = peak * LATENCY_SHARE
    progress(f"{case.name}: {rate:,.0f} requests a second, half of Envoy's peak of {peak:,.0f}")
    in_pairs(entries, effort.pairs, lambda r, v: latency(run, case, r, v, rate, effort.seconds), progress)


def known_peak(earlier: Sequence[Series]) -> float:
    """Envoy's median rate from an earlier case of this run, 0 where there is none."""
    for values in earlier:
        if (values.case, values.subject) == (PEAK_CASE, "envoy") and not values.failure:
            return median(values.metrics["rate"])
    return 0.0


def measured_peak(run: Run, case: Case, entries: Sequence[Entry], effort: Effort, progress: Progress) -> float:
    """Envoy's median rate from a few runs made for this, 0 when it is not among the proxies or fails."""
    rates: list[float] = []
    for running, values in entries:
        if values.subject == "envoy":
            for _ in range(min(PEAK_RUNS, effort.pairs)):
                attempt(lambda r, _: rates.append(load(run, case, r, effort.seconds).rate), running, values, progress)
    return median(rates) if rates else 0.0


def latency(run: Run, case: Case, running: Running, values: Series, rate: float, seconds: int) -> None:
    port = running.port(case.listener)
    command = openloop.command(port, case.path, run.host, rate, seconds, case.body_bytes, wrk.CONNECTIONS)
    with watched_core(run, running, values):
        output = run_pinned(command, run.cores.load, timeout=seconds + EXTRA_SECONDS, cwd=CHECKOUT)
    report = openloop.parse(output)
    if report.error:
        raise SubjectError(report.error)
    if report.rate < rate * RATE_HELD:
        raise SubjectError(f"held {report.rate:,.0f} of {rate:,.0f} requests a second")
    running.logged_requests += report.completed
    values.add("rate", report.rate)
    values.add("p50", report.p50_us)
    values.add("p99", report.p99_us)
    values.notes["generator_lag_p50_us"] = report.lag_p50_us
    values.notes["generator_lag_p99_us"] = report.lag_p99_us


MEMORY_LOADS = ((PATH_1K, BODY_1K), (PATH_1M, BODY_1M))


def memory_of(run: Run, case: Case, subject: Subject, effort: Effort, progress: Progress) -> Series:
    """One proxy with two workers: when it has just become ready, and the peak under small and under large bodies."""
    values = Series(case.name, subject.name)
    try:
        running = start(run, subject, access_log=case.access_log, workers=2)
    except (SubjectError, ProcessError) as error:
        fail(values, str(error), progress)
        return values
    try:
        attempt(lambda r, v: sample_memory(run, case, r, v, effort), running, values, progress)
        if not values.failure:
            progress(f"{case.name} {subject.name}: {last_values(values)}")
    finally:
        finish(running, values, progress)
    return values


def connections_of(run: Run, case: Case, subject: Subject, count: int, progress: Progress) -> Series:
    """One proxy with one worker, started anew for each metric: memory that was used once does not all go back."""
    values = Series(case.name, subject.name)
    metrics: tuple[tuple[Metric, bool], ...] = (("new", False), ("used", True))
    for metric, used in metrics:
        if values.failure:
            break
        try:
            running = start(run, subject, access_log=case.access_log)
        except (SubjectError, ProcessError) as error:
            fail(values, str(error), progress)
            break
        try:
            values.add(metric, connections.bytes_each(run, running, count, used))
        except (SubjectError, ProcessError, OSError) as error:
            fail(values, str(error), progress)
        finally:
            finish(running, values, progress)
    values.notes["connections"] = count
    if not values.failure:
        progress(f"{case.name} {subject.name}: {last_values(values)}")
    return values


def sample_memory(run: Run, case: Case, running: Running, values: Series, effort: Effort) -> None:
    child = running.child
    assert child is not None
    time.sleep(SETTLE_SECONDS)
    idle = memory.measure(child.members())
    samples: list[memory.Memory] = []
    for path, body_bytes in MEMORY_LOADS:
        load(
            run,
            Case(case.name, case.what, path=path, body_bytes=body_bytes),
            running,
            effort.seconds,
            meanwhile=lambda: samples.append(memory.measure(child.members())),
        )
    values.add("idle", idle.alone)
    values.add("load", max(sample.alone for sample in samples))
    values.notes["processes"] = len(child.members())
    values.notes["idle_pss_mb"] = idle.pss
    values.notes["load_pss_mb"] = max(sample.pss for sample in samples)
