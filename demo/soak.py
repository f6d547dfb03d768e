"""`make soak`: mixed load for a long time; fails on a failed request, a leak, or a complaint in the sidecar's output.

    python -m demo.soak [--seconds N]

The stage is that of the demo without capture. Every tenth of the time memory (PSS) and open files of agent and proxy
are printed. A leak is more of them at the end than `GROWTH` and some slack allow over what was after the first tenth.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from demo import interrupts
from demo.processes import COMPLAINTS, DemoError, Process, members
from demo.report import Report
from demo.stage import LoopbackStage

HOUR = 3600
SAMPLES = 10
GROWTH = 1.10
SLACK_KB = 4096
SLACK_FILES = 16


@dataclass(frozen=True)
class Sample:
    """Of all processes of a session: proportional set size in KB, open file descriptors."""

    memory: int
    files: int


def sample(session: int) -> Sample:
    memory = files = 0
    for pid in members(session):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        memory += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        files += len(os.listdir(f"/proc/{pid}/fd"))
    return Sample(memory, files)


def soak(stage: LoopbackStage, report: Report, seconds: float) -> None:
    """Raises DemoError when the stage does not come up."""
    stage.open()
    session = stage.sidecar.popen.pid
    out, inside = stage.reviews.url, stage.inbound.url
    loads = [
        stage.load("keep-alive-in", f"{inside}/headers", "--clients", "4"),
        stage.load("keep-alive-out", f"{out}/spread/soak", "--clients", "4"),
        stage.load("connections-in", f"{inside}/", "--clients", "2", "--new-connections"),
        stage.load("connections-out", f"{out}/reviews/soak", "--clients", "2", "--new-connections"),
    ]
    report.section(f"{seconds:g} s of load in both directions")
    first, last = watch(session, report, seconds)
    results = [finish(load) for load in loads]
    report.section("Result")
    for load, result in zip(loads, results, strict=True):
        failed = sum(result["failed"].values())
        what = f" {result['failed']}" if failed else ""
        report.expect(not failed, f"{load.name}: {result['requests']} requests, {failed} failed{what}")
    for name, before, after, slack in (
        ("PSS in KB", first.memory, last.memory, SLACK_KB),
        ("open files", first.files, last.files, SLACK_FILES),
    ):
        report.expect(after <= before * GROWTH + slack, f"{name}: {before} after the first tenth, {after} at the end")
    text = stage.sidecar.text()
    report.expect(not any(complaint in text for complaint in COMPLAINTS), "no complaint in the sidecar's output")


def watch(session: int, report: Report, seconds: float) -> tuple[Sample, Sample]:
    """Print samples; those after the first tenth of the time and at the end."""
    samples = []
    for tenth in range(1, SAMPLES + 1):
        time.sleep(seconds / SAMPLES)
        samples.append(sample(session))
        memory, files = samples[-1].memory / 1024, samples[-1].files
        report.lines([f"{tenth * seconds / SAMPLES:7.0f} s   PSS {memory:6.1f} MB   files {files}"])
    return samples[0], samples[-1]


def finish(load: Process) -> dict[str, dict[str, int]]:
    load.close_stdin()
    load.wait(seconds=30)
    return load.last_line_as_json()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="demo.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=HOUR)
    parser.add_argument("--proxy", metavar="FILE", help="run this program instead of our proxy, for instance Envoy")
    options = parser.parse_args(arguments)
    os.umask(0o022)
    interrupts.install()
    report = Report()
    stage: LoopbackStage | None = None
    try:
        try:
            with interrupts.held():
                stage = LoopbackStage(options.proxy)
            soak(stage, report, options.seconds)
        finally:
            interrupts.hold()
    except KeyboardInterrupt:
        return 130
    except DemoError as error:
        report.expect(False, str(error))
    finally:
        if stage is not None:
            stage.close()
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
