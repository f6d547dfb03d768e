"""docs/unsupported.md is what the script makes of the recorded configurations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts import gen_unsupported

ROOT = Path(__file__).resolve().parents[3]


def test_the_committed_document_is_up_to_date(shared: Path) -> None:
    generated = gen_unsupported.rendered(shared / "istio/config")
    assert generated == (ROOT / "docs/unsupported.md").read_text(encoding="utf-8")


def test_refusals_are_counted_without_indices(tmp_path: Path) -> None:
    for name, count in (("one", 2), ("two", 1)):
        folder = tmp_path / name
        folder.mkdir()
        clusters = [{"name": f"c{n}", "outlier_detection": {}} for n in range(count)]
        (folder / "static.json").write_text(json.dumps({"static_resources": {"clusters": clusters}}))
    rows = [line for line in gen_unsupported.rendered(tmp_path).splitlines() if line.startswith("| `")]
    assert rows == ["| `static_resources.clusters[].outlier_detection` | is not supported yet: health checks and "
                    "outlier detection come later | 3 | all |"]


def test_a_folder_without_cases_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gen_unsupported.main([str(tmp_path)]) == 1
    assert "no */static.json" in capsys.readouterr().err
