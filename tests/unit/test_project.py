"""The project's own files agree with each other: dependencies, commands, Makefile, licence."""

from __future__ import annotations

import os
import pkgutil
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
MAKE_HELP = ["make", "--no-print-directory", "help"]
TARGETS = {"demo", "demo-stop", "test", "bench", "lint", "soak", "image", "image-base", "image-test", "clean", "help"}


def pins() -> dict[str, str]:
    """constraints.txt: package -> version."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    found = dict(line.split("==") for line in wanted)
    assert len(found) == len(wanted), "a package is pinned twice"
    return found


def requirements() -> dict[str, str]:
    """Every requirement of pyproject.toml: package -> what it says of the version."""
    lines = [*PYPROJECT["build-system"]["requires"], *PROJECT["dependencies"]]
    lines += [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    return {re.split(r"[<>=!~ ]", line)[0]: line for line in lines}


def test_every_pin_is_exact() -> None:
    assert all(re.fullmatch(r"\d[\w.]*", version) for version in pins().values())


@pytest.mark.parametrize("package", requirements())
def test_dependency_is_pinned_to_what_it_asks_for(package: str) -> None:
    assert package in pins()
    asked = requirements()[package].removeprefix(package)
    assert asked in ("", f"=={pins()[package]}")


@pytest.mark.parametrize("script", PROJECT["scripts"])
def test_console_script_leads_to_a_function(script: str) -> None:
    assert callable(pkgutil.resolve_name(PROJECT["scripts"][script]))


def test_make_help_has_a_line_for_each_target() -> None:
    lines = subprocess.run(MAKE_HELP, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    described = {name: rest.strip() for name, _, rest in (line.partition(" ") for line in lines)}
    assert set(described) == TARGETS
    assert all(described.values())


@pytest.mark.parametrize("path", [".ci/run", "scripts/run", "scripts/check", "scripts/lint"])
def test_script_is_executable(path: str) -> None:
    assert os.access(ROOT / path, os.X_OK)


def test_ci_runs_what_a_laptop_runs() -> None:
    assert "make test" in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_licence_is_the_declared_one() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text


def test_no_source_file_has_two_roles() -> None:
    """A file of more than 500 lines does more than one thing."""
    folders = ("proxy", "agent", "init", "demo", "scripts", "bench")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert not {path: length for path, length in lengths.items() if length > 500}
