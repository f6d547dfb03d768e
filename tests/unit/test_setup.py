"""scripts/setup.py: where it puts things, what it copies, what it says without root. Nothing is installed here."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def setup(public_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script, with a small project in a public folder as its checkout."""
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / "scripts/setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "setup_script", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    checkout = public_tmp_path / "checkout"
    for path in ("proxy/server.py", "scripts/run", ".git/HEAD", ".venv/bin/python", "proxy/__pycache__/server.pyc"):
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        (checkout / path).write_text(path)
    (checkout / "scripts/run").chmod(0o755)
    monkeypatch.setattr(module, "ROOT", checkout)
    monkeypatch.setattr(module, "OUTSIDE", public_tmp_path / "outside")
    yield module


@pytest.fixture
def root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")


def test_public_checkout_is_used_in_place(setup: ModuleType, root: None) -> None:
    place = setup.choose_place()
    assert (place.code, place.venv) == (setup.ROOT, setup.ROOT / ".venv")


def test_checkout_in_a_private_folder_is_used_outside(setup: ModuleType, root: None) -> None:
    setup.ROOT.parent.chmod(0o700)
    try:
        place = setup.choose_place()
    finally:
        setup.ROOT.parent.chmod(0o755)
    assert place.home.parent == setup.OUTSIDE
    assert place.code == place.home / "code" and place.venv == place.home / "venv"


def test_one_private_file_is_enough(setup: ModuleType, root: None) -> None:
    assert setup.readable_as_proxy(setup.ROOT)
    (setup.ROOT / "proxy/server.py").chmod(0o600)
    assert not setup.readable_as_proxy(setup.ROOT)


def test_root_makes_nothing_in_the_checkout_of_another_user(setup: ModuleType, root: None) -> None:
    os.chown(setup.ROOT, 1000, 1000)
    place = setup.choose_place()
    assert place.code == setup.ROOT and place.home.parent == setup.OUTSIDE


def test_interpreter_that_uid_1337_cannot_run_is_passed_over(
    setup: ModuleType, root: None, public_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = public_tmp_path / "private"
    private.mkdir(mode=0o700)
    python = private / "python3"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} \"$@\"\n")
    python.chmod(0o755)
    assert setup.interpreter_works(str(python), as_proxy=False)
    assert not setup.interpreter_works(str(python), as_proxy=True)
    monkeypatch.setattr(setup.sys, "_base_executable", str(python), raising=False)
    chosen = setup.choose_interpreter(as_proxy=True)
    assert chosen in setup.SYSTEM_PYTHONS
    assert setup.choose_interpreter(as_proxy=False) == str(python)


def test_copy_holds_the_project_and_nothing_else(setup: ModuleType, public_tmp_path: Path) -> None:
    copy = public_tmp_path / "copy"
    assert setup.refresh_copy(setup.ROOT, copy) == 2
    found = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    assert found == {"proxy/server.py", "scripts/run"}
    assert os.access(copy / "scripts/run", os.X_OK) and not os.access(copy / "proxy/server.py", os.X_OK)


def test_copy_follows_every_change(setup: ModuleType, public_tmp_path: Path) -> None:
    copy = public_tmp_path / "copy"
    setup.refresh_copy(setup.ROOT, copy)
    assert setup.refresh_copy(setup.ROOT, copy) == 0
    (setup.ROOT / "proxy/server.py").write_text("changed")
    (setup.ROOT / "proxy/new.py").write_text("new")
    (setup.ROOT / "scripts/run").unlink()
    assert setup.refresh_copy(setup.ROOT, copy) == 3
    found = {str(path.relative_to(copy)): path.read_text() for path in copy.rglob("*") if path.is_file()}
    assert found == {"proxy/server.py": "changed", "proxy/new.py": "new"}


def test_copy_is_readable_by_everybody(setup: ModuleType, public_tmp_path: Path) -> None:
    (setup.ROOT / "proxy/server.py").chmod(0o600)
    copy = public_tmp_path / "copy"
    setup.refresh_copy(setup.ROOT, copy)
    assert (copy / "proxy/server.py").stat().st_mode & 0o777 == 0o644


def test_without_root_the_missing_package_is_named(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.os, "geteuid", lambda: 1000)
    purpose = setup.Purpose(commands={"no-such-command": "some-package"})
    with pytest.raises(setup.SetupError, match=r"no-such-command(.|\n)*apt-get install some-package"):
        setup.ensure_commands(purpose)


def test_what_only_root_needs_is_not_asked_of_others(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.os, "geteuid", lambda: 1000)
    setup.ensure_commands(setup.Purpose(root_commands={"no-such-command": "some-package"}))


def test_key_of_the_environment_follows_the_pins(setup: ModuleType) -> None:
    for name in ("pyproject.toml", "constraints.txt"):
        (setup.ROOT / name).write_text("one")
    place = setup.Place("/usr/bin/python3", setup.ROOT, setup.ROOT)
    before = setup.environment_key(place)
    assert setup.environment_key(place) == before
    (setup.ROOT / "constraints.txt").write_text("two")
    assert setup.environment_key(place) != before


def test_unknown_purpose_is_refused() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts/setup.py", "party"], capture_output=True, text=True)
    assert done.returncode == 2 and "demo|lint|test|bench" in done.stderr
