"""The demo itself: it passes with and without capture, leaves nothing behind, and notices what is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from demo import mesh

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 90
KINDS = {"pods": [], "loopback": ["--loopback"]}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> list[str]:
    """Arguments for the demo with capture and without."""
    if request.param == "pods" and (reason := mesh.why_not()):
        pytest.skip(f"traffic cannot be captured here: {reason}")
    return KINDS[request.param]


class Demo:
    """One demo that runs."""

    def __init__(self, output: Path, *arguments: str, **environment: str) -> None:
        self.output = output
        inherited = {name: value for name, value in os.environ.items() if name != "KEEP"}
        with output.open("wb") as file:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "demo", *arguments],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**inherited, **environment},
            )

    def text(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert self.popen.poll() is None, f"the demo ended with {self.popen.returncode}:\n{self.text()}"
            assert time.monotonic() < deadline, f"not within {SECONDS} s:\n{self.text()}"
            time.sleep(0.02)

    def remains(self) -> list[str]:
        """Processes, namespaces and folders of this demo that are there."""
        label = f"/pysidecar-demo-{self.popen.pid}-"
        found = [str(path) for path in Path("/tmp").glob(f"pysidecar-demo-{self.popen.pid}-*")]
        for folder in (mesh.RUN_NETNS, mesh.ETC_NETNS):
            found += [str(path) for path in folder.glob(f"pysidecar-{self.popen.pid}-*")]
        for path in Path("/proc").glob("[0-9]*"):
            try:
                marked = label.encode() in (path / "environ").read_bytes()
                state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if marked and state not in "ZX":
                found.append(f"{path}: {(path / 'cmdline').read_bytes()!r}")
        return found


def test_demo_passes_and_leaves_nothing(kind: list[str], tmp_path: Path) -> None:
    demo = Demo(tmp_path / "output", *kind)
    status = demo.popen.wait(SECONDS)
    text = demo.text()
    assert status == 0, text
    assert "FAIL" not in text and "Traceback" not in text, text
    assert text.count("ok   ") == (25 if not kind else 20), text
    assert "0 failed" in text and "Try next:" in text
    assert not demo.remains()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["start", "middle"])
def test_interrupted_demo_leaves_nothing(kind: list[str], number: int, moment: str, tmp_path: Path) -> None:
    demo = Demo(tmp_path / "output", *kind)
    if moment == "start":
        demo.wait_for(lambda: any("demo.server" in line for line in demo.remains()))
    else:
        demo.wait_for(lambda: "Routes:" in demo.text())
    demo.popen.send_signal(number)
    status = demo.popen.wait(SECONDS)
    assert status == 130, demo.text()
    assert not demo.remains()


def test_kept_demo_runs_until_it_is_stopped(kind: list[str], tmp_path: Path) -> None:
    demo = Demo(tmp_path / "output", *kind, KEEP="1")
    try:
        assert demo.popen.wait(SECONDS) == 0, demo.text()
        assert "Left running." in demo.text() and "make demo-stop" in demo.text()
        assert any("demo.server" in line for line in demo.remains())
        assert any("pilot-agent" in line for line in demo.remains())
    finally:
        command = [sys.executable, "-m", "demo", "--stop", str(demo.popen.pid)]
        stop = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert stop.returncode == 0, stop.stderr
    assert not demo.remains()


def test_proxy_that_does_not_start_fails_the_demo(kind: list[str], tmp_path: Path) -> None:
    demo = Demo(tmp_path / "output", *kind, "--proxy", "/bin/false")
    assert demo.popen.wait(SECONDS) == 1, demo.text()
    assert "FAIL the sidecar did not become ready" in demo.text()
    assert not demo.remains()


def test_short_soak_finds_no_leak() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "demo.soak", "--seconds", "2"], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout and done.stdout.count("ok   ") == 7
