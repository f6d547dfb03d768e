"""`--profile`: one case against our proxy with a sampler inside, and where its processor time went."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bench.cases import Case, Kind
from bench.machine import MachineError
from bench.measure import load
from bench.process import Child
from bench.subjects import CHECKOUT, OURS, Run, Subject, start

SAMPLER = Path(__file__).with_name("sampler")
TOP = 40
NATIVE_OBJECTS = 8
NATIVE_SYMBOLS = 30

Place = tuple[str, int, str]


@dataclass(frozen=True, slots=True)
class Profile:
    """Samples of one process: per function on top of the stack, of those at its very first line, and anywhere on it."""

    pid: int
    samples: int
    own: Counter[Place]
    entry: Counter[Place]
    total: Counter[Place]


def parse(text: str) -> Profile:
    """What sampler/sitecustomize.py wrote for one process."""
    content = json.loads(text)
    own: Counter[Place] = Counter()
    entry: Counter[Place] = Counter()
    for file, line, name, at_entry, count in content["own"]:
        own[file, line, name] += count
        if at_entry:
            entry[file, line, name] += count
    total = Counter({(file, line, name): count for file, line, name, count in content["total"]})
    return Profile(content["pid"], content["samples"], own, entry, total)


def render(profile: Profile, top: int = TOP) -> str:
    """The functions that took most time themselves."""
    lines = [
        f"process {profile.pid}: {profile.samples} samples, evenly spaced in processor time",
        "",
        "  self  entry  total  function",
    ]
    for place, count in profile.own.most_common(top):
        lines.append(
            f"{count / profile.samples:6.1%} {profile.entry[place] / profile.samples:6.1%} "
            f"{profile.total[place] / profile.samples:6.1%}  {describe(place)}"
        )
    lines += [
        "",
        "entry: part of self that was seen as the function began. A function that the event loop calls has the loop's",
        "own time there as well (libuv, waiting for events, system calls outside of Python).",
    ]
    return "\n".join(lines)


def describe(place: Place) -> str:
    file, line, name = place
    path = Path(file)
    with contextlib.suppress(ValueError):
        path = path.relative_to(CHECKOUT)
    parts = path.parts
    shown = str(Path(*parts[-3:])) if path.is_absolute() and len(parts) > 3 else str(path)
    return f"{name}  {shown}:{line}"


def profile(run: Run, case: Case, subject: Subject, seconds: int) -> int:
    """Print both views of one throughput case; 0. Raises MachineError for what cannot be profiled."""
    if case.kind is not Kind.THROUGHPUT or subject.kind != OURS:
        raise MachineError(f"--profile: a throughput case of ours is needed, not {case.name} of {subject.name}")
    directory = run.directory / "samples"
    directory.mkdir()
    path = os.pathsep.join(p for p in (str(SAMPLER), os.environ.get("PYTHONPATH", "")) if p)
    environment = {"PYSIDECAR_BENCH_PROFILE": str(directory), "PYTHONPATH": path}
    running = start(run, subject, access_log=case.access_log, environment=environment)
    try:
        report = load(run, case, running, seconds)
    finally:
        problems = running.finish()
    profiles = [parse(file.read_text(encoding="utf-8")) for file in directory.glob("*.json")]
    if not profiles:
        raise MachineError(f"--profile: no samples were written; use more --seconds. {'; '.join(problems)}")
    print(f"{case.name}: {report.rate:,.0f} requests a second with the sampler on\n")
    print(render(max(profiles, key=lambda found: found.samples)))
    print(f"\nnative symbols, from a second run:\n{native(run, case, subject, seconds)}")
    for problem in problems:
        print(f"note: {problem}")
    return 0


def native(run: Run, case: Case, subject: Subject, seconds: int) -> str:
    """What perf sees (kernel, libuv, the interpreter), or why it sees nothing."""
    if shutil.which("perf") is None:
        return "perf not found; get it with: apt-get install linux-perf"
    running = start(run, subject, access_log=case.access_log)
    data = run.directory / "perf.data"
    try:
        assert running.child is not None
        members = ",".join(map(str, running.child.members()))
        command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "999", "-o", str(data), "-p", members]
        with Child("perf", command, core=run.cores.load, output=run.directory / "perf") as perf:
            load(run, case, running, seconds)
            perf.interrupt()
    finally:
        running.finish()
    if not data.exists():
        return f"perf recorded nothing: {perf.tail()}"
    objects = perf_report(data, "overhead,dso")
    symbols = perf_report(data, "overhead,dso,sym")
    if not symbols:
        return f"perf report printed nothing: {perf.tail()}"
    return "\n".join([*objects[:NATIVE_OBJECTS], "", *symbols[:NATIVE_SYMBOLS]])


def perf_report(data: Path, fields: str) -> list[str]:
    """Lines of the report without comments."""
    command = ["perf", "report", "-i", str(data), "--stdio", "-q", "-F", fields]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return [line.rstrip() for line in done.stdout.splitlines() if line.strip()]
