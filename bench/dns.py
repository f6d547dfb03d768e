"""`python -m bench.dns`: DNS answers beside dnsmasq and unbound with the same names, by the same dnsperf, in one run.

As root, in a network namespace of its own that it makes: the server of other names listens on port 53.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bench import dns_servers as servers
from bench import machine
from bench.dns_servers import DNSMASQ, OURS, SUBJECTS, UNBOUND, Name
from bench.machine import Cores, MachineError
from bench.process import Child, ProcessError, free_port, run_pinned
from bench.report import RESULTS
from bench.stats import Ratio, median, paired_ratio, percentile

INSIDE = "PYSIDECAR_BENCH_DNS"
OUTSTANDING = 100
CLIENTS = 4
SMALL, LARGE = 20, 10_000
HALF = 0.5
"""Of the slowest server's rate: the load under which latencies are compared. At half of the fastest's, dnsperf, which
writes a line for each query, is the one that makes queries wait."""
P99_TARGET_US = 1000.0
NOISY_SHARE = 0.10
_TICKS = os.sysconf("SC_CLK_TCK")
_LATENCY = re.compile(r"^> \S+ \S+ \S+ (\d+\.\d+)", re.MULTILINE)


class Case(NamedTuple):
    """`known`: size of the table; `upstream`: whether other names are asked for. `target`: ratio to the faster peer."""

    name: str
    what: str
    known: int
    upstream: bool
    target: float


CASES = (
    Case("known-20", f"names of a table of {SMALL}", SMALL, False, 0.9),
    Case("known-10000", f"names of a table of {LARGE:,}", LARGE, False, 0.9),
    Case("cached", f"{servers.UPSTREAM_NAMES:,} names of another server, in the cache", SMALL, True, 0.8),
)


@dataclass(slots=True)
class Result:
    """What one server did in one case. Rates are answers a second, times microseconds."""

    rates: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    p50_us: float = 0.0
    p99_us: float = 0.0
    half: float = 0.0
    problem: str = ""


class Load(NamedTuple):
    """What dnsperf says: answers, answers a second."""

    completed: int
    rate: float


def parse_dnsperf(output: str) -> Load:
    """Raises ProcessError when a query was lost or answered with anything but NOERROR."""
    completed = re.search(r"Queries completed:\s+(\d+)", output)
    lost = re.search(r"Queries lost:\s+(\d+)", output)
    rate = re.search(r"Queries per second:\s+([0-9.]+)", output)
    codes = re.search(r"Response codes:\s+(.*)", output)
    if completed is None or lost is None or rate is None or codes is None:
        raise ProcessError(f"dnsperf said: {output.strip()[-400:]}")
    if int(lost[1]) or not re.fullmatch(r"NOERROR \d+ \(100\.00%\)", codes[1].strip()):
        raise ProcessError(f"dnsperf: {lost[1]} queries lost, {codes[1].strip()}")
    return Load(int(completed[1]), float(rate[1]))


def parse_latencies(output: str) -> list[float]:
    """Microseconds of every answer, ascending (dnsperf -v)."""
    return sorted(float(seconds) * 1e6 for seconds in _LATENCY.findall(output))


REALTIME = ("chrt", "--fifo", "10")
"""Before a command: other processes of the machine wait for it."""


def dnsperf(port: int, queries: Path, cores: Cores, seconds: int, *more: str, prefix: Sequence[str] = ()) -> str:
    """What it prints. Into a file: a line a query, which a pipe to us would slow down."""
    output = queries.with_name("output")
    into_file = ["sh", "-c", 'exec "$@" > "$0"', str(output)]
    command = [*into_file, *prefix, "dnsperf", "-s", "127.0.0.1", "-p", str(port), "-d", str(queries),
               "-l", str(seconds), "-c", str(CLIENTS), "-T", "1", "-q", str(OUTSTANDING), *more]
    run_pinned(command, cores.load, timeout=seconds + 20)
    return output.read_text(encoding="utf-8", errors="replace")


class Contest:
    """The servers of one case, all up at the same time; one that idles costs the others nothing."""

    def __init__(self, case: Case, folder: Path, cores: Cores, prefix: Sequence[str]) -> None:
        self._cores = cores
        self._prefix = prefix
        self._children: dict[str, tuple[Child, int]] = {}
        self._stack = contextlib.ExitStack()
        names: Sequence[Name] = servers.known_names(case.known)
        asked = servers.upstream_names() if case.upstream else names
        self._queries = servers.query_file(folder, case.name, asked)
        self._folder, self._names = folder, names
        self.results = {subject: Result() for subject in SUBJECTS}

    def __enter__(self) -> Contest:
        try:
            for subject in SUBJECTS:
                port = free_port()
                child = servers.start(subject, self._folder, self._cores.proxy, port, self._names,
                                      self._prefix)
                self._stack.callback(child.stop)
                self._children[subject] = (child, port)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _measure(self, subject: str, act: Callable[[Result, Child, int], None]) -> None:
        result = self.results[subject]
        if not result.problem:
            try:
                act(result, *self._children[subject])
            except ProcessError as error:
                result.problem = str(error)

    def full_load(self, subject: str, seconds: int, count: bool = True) -> None:
        """As many as it can."""

        def act(result: Result, child: Child, port: int) -> None:
            before = child.cpu_jiffies()
            load = parse_dnsperf(dnsperf(port, self._queries, self._cores, seconds, prefix=self._prefix))
            if count:
                result.rates.append(load.rate)
                result.cpu_us.append((child.cpu_jiffies() - before) / _TICKS / max(1, load.completed) * 1e6)

        self._measure(subject, act)

    def half_load(self, subject: str, seconds: int, rate: float) -> None:
        """So many a second, for latencies."""

        def act(result: Result, child: Child, port: int) -> None:
            result.half = rate
            output = dnsperf(port, self._queries, self._cores, seconds, "-Q", str(int(result.half)), "-v",
                             prefix=self._prefix)
            parse_dnsperf(output)
            latencies = parse_latencies(output)
            result.p50_us, result.p99_us = percentile(latencies, 50), percentile(latencies, 99)

        self._measure(subject, act)


def measure(case: Case, folder: Path, cores: Cores, pairs: int, seconds: int,
            prefix: Sequence[str] = ()) -> dict[str, Result]:
    """Every server in turn, `pairs` times, every other time backwards."""
    with Contest(case, folder, cores, prefix) as contest:
        for subject in SUBJECTS:
            contest.full_load(subject, 1, count=False)
        for number in range(pairs):
            for subject in SUBJECTS if number % 2 == 0 else SUBJECTS[::-1]:
                contest.full_load(subject, seconds)
        peaks = [median(result.rates) for result in contest.results.values() if result.rates]
        for subject in SUBJECTS:
            contest.half_load(subject, seconds, HALF * min(peaks, default=0.0))
        return contest.results


def ratio(results: dict[str, Result]) -> tuple[str, Ratio] | None:
    """The faster of the peers and how much of its rate is ours, pair by pair."""
    peers = [peer for peer in (DNSMASQ, UNBOUND) if not results[peer].problem]
    if not peers or results[OURS].problem:
        return None
    faster = max(peers, key=lambda peer: median(results[peer].rates))
    return faster, paired_ratio(results[OURS].rates, results[faster].rates)


def rows(case: Case, results: dict[str, Result]) -> list[tuple[str, ...]]:
    """The table's lines of one case."""
    lines: list[tuple[str, ...]] = []
    found = ratio(results)
    for subject, result in results.items():
        if result.problem:
            lines.append((case.name, subject, f"FAILED: {result.problem}", "", "", "", "", ""))
            continue
        share = target = latency = ""
        if subject == OURS and found is not None:
            faster, to = found
            share = f"{to.median:.2f}x {faster} ({to.low:.2f}-{to.high:.2f})"
            target = f">= {case.target}x {'ok' if to.median >= case.target else 'MISSED'}"
            latency = f"< 1 ms {'ok' if result.p99_us < P99_TARGET_US else 'MISSED'}"
        lines.append((case.name, subject, f"{median(result.rates):,.0f}", f"{median(result.cpu_us):.2f} us", share,
                      target, f"{result.p50_us:.0f} / {result.p99_us:.0f} us at {result.half:,.0f}/s", latency))
    return lines


HEADINGS = ("case", "server", "answers/s", "CPU an answer", "to the faster peer", "target", "p50 / p99 at half load",
            "target")


def table(lines: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table, padded so that it reads as well in a terminal."""
    cells = [HEADINGS, *lines]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADINGS))]
    padded = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
              for line in cells]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([padded[0], rule, *padded[1:]])


def require_tools() -> None:
    """Raises MachineError naming what is missing."""
    packages = {"dnsperf": "dnsperf", DNSMASQ: "dnsmasq-base", UNBOUND: "unbound", "taskset": "util-linux",
                "setpriv": "util-linux", "ip": "iproute2"}
    missing = [name for name in packages if machine.find_program(name) is None]
    if missing:
        wanted = " ".join(sorted({packages[name] for name in missing}))
        raise MachineError(f"not found: {', '.join(missing)}; get it with: apt-get install {wanted}")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.dns", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one pair of a second: does it work? not a result")
    parser.add_argument("--pairs", type=int, default=0, metavar="N", help="measurements of each server (default 5)")
    parser.add_argument("--seconds", type=int, default=0, metavar="S", help="length of one (default 4)")
    parser.add_argument("--only", metavar="NAME[,NAME]", help=f"of {', '.join(case.name for case in CASES)}")
    parser.add_argument("--realtime", action="store_true",
                        help="servers and dnsperf go before all else (SCHED_FIFO), on a machine that others use")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 when a target was missed")
    options = parser.parse_args(arguments)
    options.pairs = options.pairs or (1 if options.quick else 5)
    options.seconds = options.seconds or (1 if options.quick else 4)
    wanted = options.only.split(",") if options.only else [case.name for case in CASES]
    options.cases = [case for case in CASES if case.name in wanted]
    if unknown := set(wanted) - {case.name for case in CASES}:
        parser.error(f"--only: no case named {', '.join(sorted(unknown))}")
    if options.pairs < 1 or options.seconds < 1:
        parser.error("--pairs and --seconds: expected 1 or more")
    return options


def run(options: argparse.Namespace) -> int:
    """Measure and print; the exit status."""
    cores = machine.choose_cores(sorted(os.sched_getaffinity(0)), machine.thread_siblings())
    os.sched_setaffinity(0, {cores.load})
    background = machine.background_load(cores)
    if background > NOISY_SHARE:
        print(f"  others keep this machine {background:.0%} busy: expect noise", file=sys.stderr)
    lines: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory(prefix="pysidecar-bench-dns-") as folder:
        for case in options.cases:
            print(f"  {case.name}: {case.what}", file=sys.stderr, flush=True)
            (place := Path(folder, case.name)).mkdir()
            upstream = servers.start_upstream(place, cores.load)
            try:
                prefix = REALTIME if options.realtime else ()
                lines += rows(case, measure(case, place, cores, options.pairs, options.seconds, prefix))
            finally:
                upstream.stop()
    facts = machine.describe()
    title = "Quick run of DNS: not a result" if options.quick else "DNS"
    text = f"""\
# {title}

- date: {datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")}
- placement: one server at a time on processor {cores.proxy}; dnsperf ({CLIENTS} clients, {OUTSTANDING} queries under
  way) and the server of other names on processor {cores.load}
- effort: {options.pairs} x {options.seconds} s each; medians, ratios pair by pair (lowest-highest)
- busy before: {background:.0%}{"; servers and dnsperf with realtime priority" if options.realtime else ""}
- cpu: {facts["cpu"]}, kernel: {facts["kernel"]}, python: {facts["python"]}, revision: {facts.get("revision", "")}
- {versions()}

{table(lines)}
"""
    print(text, end="")
    stem = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S") + "-dns" + ("-quick" if options.quick else "")
    (path := RESULTS / f"{stem}.md").write_text(text, encoding="utf-8")
    print(f"\nwritten: {os.path.relpath(path)}")
    return 1 if "FAILED" in text or (options.strict and "MISSED" in text) else 0


def versions() -> str:
    """Of the other programs."""
    found = [(DNSMASQ, "--version", r"version ([0-9.]+)"), (UNBOUND, "-V", r"Version ([0-9.]+)"),
             ("dnsperf", "-h", r"Version ([0-9.]+)")]
    return ", ".join(f"{name}: {machine.program_version(name, flag, pattern)}" for name, flag, pattern in found)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    if os.geteuid() != 0:
        print("bench.dns: needs root, for the server of other names on port 53: left out", file=sys.stderr)
        return 0
    try:
        require_tools()
        if INSIDE not in os.environ and shutil.which("unshare") is not None:
            inside = 'ip link set lo up && exec "$0" -m bench.dns "$@"'
            given = sys.argv[1:] if arguments is None else list(arguments)
            command = ["unshare", "--net", "sh", "-c", inside, sys.executable, *given]
            return subprocess.run(command, cwd=servers.CHECKOUT, env={**os.environ, INSIDE: "1"},
                                  check=False).returncode
        return run(options)
    except (MachineError, ProcessError) as error:
        print(f"bench.dns: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench.dns: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
