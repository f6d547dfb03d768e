"""`python -m demo`: the demo. Exit status 0 only if everything was as expected."""

from __future__ import annotations

import argparse
import os
import sys

from demo import interrupts, mesh
from demo.processes import DemoError
from demo.report import Report
from demo.stage import LoopbackStage, PodStage, Stage, stop_kept
from demo.story import Story

WITH_CAPTURE = (
    "Pods on a bridge of their own: productpage 10.10.0.10, an application (uid 1000) with its sidecar (pilot-agent",
    "and proxy, uid 1337), and three servers, reviews v1 to v3. The sidecar's configuration is what istiod gave a real",
    "one, cut down (examples/sidecar.json). Setting up ...",
)
WITH_ROOT = (
    "root adds: a pod of its own whose traffic the kernel redirects, so that an application needs no change at all;",
    "the rules themselves; addresses that nobody configured passing through; the proxy as uid 1337.",
)
NEXT = (
    "Try next:",
    "  make demo KEEP=1                 the same, left running: enter the pod and look around",
    "  make test                        the tests (conformance: against real Envoy)",
    "  make bench                       the speed, beside Envoy and HAProxy",
    "  less examples/sidecar.json       what the sidecar ran; examples/quickstart.yaml is a plain reverse proxy",
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--loopback", action="store_true", help="without capture even where capture is possible")
    parser.add_argument("--keep", action="store_true", help="leave it running (also: KEEP=1 in the environment)")
    parser.add_argument("--stop", nargs="?", const="", metavar="PID", help="end what --keep left running")
    parser.add_argument("--proxy", metavar="FILE", help="run this program instead of our proxy, for instance Envoy")
    options = parser.parse_args(arguments)
    os.umask(0o022)
    interrupts.install()
    if options.stop is not None:
        print(f"{stop_kept(options.stop)} demo(s) ended")
        return 0
    keep = options.keep or os.environ.get("KEEP", "0") not in ("", "0")
    report = Report()
    try:
        kept = play(report, loopback=options.loopback, keep=keep, proxy=options.proxy)
    except KeyboardInterrupt:
        print("\ninterrupted; everything was removed", flush=True)
        return 130
    except DemoError as error:
        print(f"\nFAIL {error}", flush=True)
        return 1
    if report.failures:
        print(f"\n{len(report.failures)} not as expected:", *report.failures, sep="\n  ")
    print("", *(kept or NEXT), sep="\n", flush=True)
    return 1 if report.failures else 0


def play(report: Report, *, loopback: bool, keep: bool, proxy: str | None) -> list[str]:
    """One demo from start to end; what to tell the user when it was left running, else nothing."""
    reason = "as asked" if loopback else mesh.why_not()
    stage: Stage | None = None
    left = False
    try:
        try:
            with interrupts.held():
                stage = PodStage(proxy) if reason is None else LoopbackStage(proxy)
            introduce(report, stage, reason)
            stage.open()
            Story(stage, report).tell()
            if keep:
                stage.start_sidecar()
                stage.leave()
                left = True
        finally:
            interrupts.hold()
    finally:
        if stage is not None and not left:
            stage.close()
    if left:
        hint = [*stage.enter_hint(), f"The sidecar's output: {stage.sidecar.output}", "Remove it: make demo-stop"]
        return ["Left running.", *hint]
    report.section("Everything removed again")
    remains = stage.left_over()
    report.lines(remains)
    report.expect(not remains, "no process, namespace, interface or file is left")
    return []


def introduce(report: Report, stage: Stage, reason: str | None) -> None:
    if reason is None:
        for line in WITH_CAPTURE:
            report.title(line)
        return
    report.title(f"No traffic capture ({reason}): the same story on plain listeners (examples/loopback.yaml).")
    for line in WITH_ROOT:
        report.title(line)


if __name__ == "__main__":
    sys.exit(main())
