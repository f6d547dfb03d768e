"""For all tests: marks by folder, what is skipped where, and a folder that other users can read.

On a laptop a test that lacks something (root, a program, recorded data beside the checkout) is skipped. With CI=true
nothing is skipped: there a skip is a failure, so that no test silently stops running.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

CI = os.environ.get("CI") == "true"
ROOT = Path(__file__).resolve().parent.parent
MARK_OF_FOLDER = {"conformance": "conformance", "netns": "netns", "e2e": "e2e"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(ROOT).parts[1:2]
        if folder and folder[0] in MARK_OF_FOLDER:
            item.add_marker(MARK_OF_FOLDER[folder[0]])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, pytest.TestReport]:
    report: pytest.TestReport = yield
    return report if hasattr(report, "wasxfail") else judged(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, pytest.CollectReport]:
    report: pytest.CollectReport = yield
    return judged(report)


Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def judged(report: Report) -> Report:
    """In CI a skip becomes a failure that tells the reason of the skip."""
    if CI and report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI=true does not allow: {reason}"
    return report


@pytest.fixture
def public_tmp_path() -> Iterator[Path]:
    """A folder that every user can enter and read. (pytest's own is private to who runs the tests.)"""
    folder = Path(tempfile.mkdtemp(prefix="pysidecar-test-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Recorded data of real programs, beside the checkout. Skips where it is absent."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no recorded data in {folder}")
    return folder
