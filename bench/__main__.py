"""`python -m bench`: measure our proxy beside Envoy and HAProxy, print one table, keep it in bench/results/."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from bench import agent, machine, profiling, report
from bench.cases import CASES, TARGETS, select
from bench.machine import Cores, MachineError
from bench.measure import Effort, Series, measure
from bench.report import FAILED, MISSED, Row
from bench.subjects import DIRECT, OURS, PEERS, Run, Subject, upstream

FULL = Effort(pairs=5, seconds=4, warmup=1)
QUICK = Effort(pairs=1, seconds=1, warmup=0)
NOISY_SHARE = 0.10
LOG_BYTES_PER_SECOND = 40_000_000
"""Access log at 100,000 lines a second; all proxies of a case keep theirs until the case ends."""

EPILOG = """\
exit status: 0 when every run counted (a missed target is reported only), 1 when a run failed or, with --strict, a
target was missed, 2 for a wrong option or a missing program, 130 after Ctrl-C.
"""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="print the cases with their targets and end")
    parser.add_argument("--only", metavar="NAME[,NAME]", help="run these cases only")
    parser.add_argument("--quick", action="store_true", help="one short pair a case, under a minute: a smoke test")
    parser.add_argument("--pairs", type=positive, metavar="N", help=f"pairs a case (default {FULL.pairs})")
    parser.add_argument("--seconds", type=positive, metavar="S", help=f"seconds a measurement (default {FULL.seconds})")
    parser.add_argument(
        "--peers", default=",".join(PEERS), metavar="NAME[,NAME]", help="what to compare with (default %(default)s)"
    )
    parser.add_argument(
        "--subject", default=OURS, choices=(OURS, *PEERS), help="what to measure; a peer's name shows the noise"
    )
    parser.add_argument("--before", type=Path, metavar="DIR", help="another checkout of ours, measured in the same run")
    parser.add_argument(
        "--host", default="details:9080", help="host header, which chooses the virtual host (default %(default)s)"
    )
    parser.add_argument("--strict", action="store_true", help="exit with status 1 when a target was missed")
    parser.add_argument("--agent", action="store_true", help="measure the agent instead: start, memory, processor time")
    parser.add_argument("--profile", metavar="NAME", help="run one case against ours and print where time goes")
    options = parser.parse_args(arguments)
    options.peer_names = [name for name in options.peers.split(",") if name]
    if unknown := [name for name in options.peer_names if name not in PEERS]:
        parser.error(f"--peers: no peer named {', '.join(unknown)}; known: {', '.join(PEERS)}")
    if options.before is not None and not (options.before / "proxy" / "__main__.py").is_file():
        parser.error(f"--before: {options.before} is not a checkout: it has no proxy/__main__.py")
    try:
        options.cases = select(options.profile or options.only)
    except ValueError as error:
        parser.error(f"{'--profile' if options.profile else '--only'}: {error}")
    return options


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def effort_of(options: argparse.Namespace) -> Effort:
    default = QUICK if options.quick else FULL
    return Effort(options.pairs or default.pairs, options.seconds or default.seconds, default.warmup)


def subjects_of(options: argparse.Namespace) -> list[Subject]:
    """The ceiling, what is judged, the same at another revision, the peers."""
    chosen = [Subject(DIRECT, "direct"), Subject(judged_name(options), options.subject)]
    if options.before is not None:
        chosen.append(Subject("before", "ours", options.before.resolve()))
    kinds: dict[str, Subject] = {"envoy": Subject("envoy", "envoy"), "haproxy": Subject("haproxy", "haproxy")}
    return [*chosen, *(kinds[name] for name in options.peer_names)]


def judged_name(options: argparse.Namespace) -> str:
    return OURS if options.subject == OURS else f"{options.subject} again"


def list_cases() -> None:
    for case in CASES:
        wanted = ", ".join(f"{t.metric} {t.text()}" for t in TARGETS if t.case == case.name)
        print(f"{case.name:22} {case.what}; target: {wanted}")


@contextlib.contextmanager
def scratch(log_bytes: int) -> Iterator[Path]:
    """A temporary directory in memory where that has room for the access logs, else on disk."""
    for parent in ("/dev/shm", tempfile.gettempdir()):
        if os.access(parent, os.W_OK) and shutil.disk_usage(parent).free > log_bytes:
            with tempfile.TemporaryDirectory(prefix="pysidecar-bench-", dir=parent) as path:
                yield Path(path)
            return
    raise MachineError(f"no temporary directory with {log_bytes / 1e9:.1f} GB for access logs; use fewer --pairs")


def progress(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def on_sigterm(_number: int, _frame: object) -> NoReturn:
    """Unwinds like Ctrl-C, so that every process is taken down."""
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    if options.list:
        list_cases()
        return 0
    if options.agent:
        return agent.main()
    signal.signal(signal.SIGTERM, on_sigterm)
    lines: list[Row] = []
    try:
        machine.require_tools()
        cores = machine.choose_cores(sorted(os.sched_getaffinity(0)), machine.thread_siblings())
        os.sched_setaffinity(0, {cores.load})
        return run(options, cores, lines)
    except MachineError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if lines:
            print(report.table(lines))
        print("bench: interrupted; nothing was written", file=sys.stderr)
        return 130


def run(options: argparse.Namespace, cores: Cores, lines: list[Row]) -> int:
    """Measure every chosen case; `lines` grows case by case, so that an interrupted run can still show them."""
    effort = effort_of(options)
    chosen = subjects_of(options)
    log_bytes = (effort.pairs + 1) * effort.seconds * len(chosen) * LOG_BYTES_PER_SECOND
    with scratch(log_bytes) as directory, upstream(directory, cores) as port:
        setup = Run(directory, cores, options.host, port)
        if options.profile:
            return profiling.profile(setup, options.cases[0], chosen[1], effort.seconds)
        facts = facts_of(options, cores, effort)
        series: list[Series] = []
        for case in options.cases:
            progress(f"{case.name}: {case.what}")
            of_case = measure(setup, case, chosen, effort, series, progress)
            series += of_case
            lines += report.rows(case, of_case, judged_name(options))
    return conclude(options, facts, lines, series)


def facts_of(options: argparse.Namespace, cores: Cores, effort: Effort) -> dict[str, str]:
    background = machine.background_load(cores)
    facts = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "effort": f"pairs: {effort.pairs}, {effort.seconds} s each; medians, ratios pair by pair (lowest-highest)",
        "placement": f"proxy with one worker on processor {cores.proxy}; wrk and nginx on processor {cores.load}",
        "host": options.host,
        "busy before": f"{background:.0%}",
        **machine.describe(),
    }
    if background > NOISY_SHARE:
        progress(f"others keep this machine {background:.0%} busy: expect noise")
    return facts


def conclude(options: argparse.Namespace, facts: dict[str, str], lines: list[Row], series: list[Series]) -> int:
    title = "Quick run: not a result" if options.quick else "Benchmark"
    print(report.document(title, facts, lines, series), end="")
    stem = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S") + ("-quick" if options.quick else "")
    written = report.write(stem, title, facts, lines, series, report.RESULTS)
    print(f"\nwritten: {', '.join(os.path.relpath(path) for path in written)}")
    verdicts = [line.verdict for line in lines]
    missed, failed = verdicts.count(MISSED), sum(1 for line in lines if line.failure)
    print(f"targets: {verdicts.count('ok')} ok, {missed} missed; {failed} rows failed")
    return 1 if failed or (options.strict and (missed or FAILED in verdicts)) else 0


if __name__ == "__main__":
    sys.exit(main())
