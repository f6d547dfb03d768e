"""Which package may import what: `init` stands alone, `proxy` and `agent` do not know each other, none knows the tests.

Read from the source text, so that an import inside a function or behind a condition counts too.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("proxy", "agent", "init")
OURS = (*PRODUCT, "demo", "bench", "tests", "scripts")
MAY_IMPORT = {
    "proxy": {"proxy"},
    "agent": {"agent"},
    "init": {"init"},
    "demo": {"demo"},
    "bench": {"bench", "proxy"},
}
# One module may do what its package may not: `pilot-agent istio-iptables` is that program, in the same process.
EXCEPTIONS = {"agent/cli.py": {"init"}}
BY_NAME = ("__import__", "import_module", "importlib.import_module", "pytest.importorskip")


def imported(source: str, package: str) -> Iterator[str]:
    """The absolute names of all modules that `source`, a module of `package`, imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            yield ".".join([*above, *([node.module] if node.module else [])])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in BY_NAME:
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant):
                    yield str(argument.value)


def imports_of(folder: str) -> dict[str, set[str]]:
    """The names of the top-level packages that each module below `folder` imports."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        package = ".".join(path.relative_to(ROOT).parent.parts)
        names = imported(path.read_text(encoding="utf-8"), package)
        found[str(path.relative_to(ROOT))] = {name.partition(".")[0] for name in names}
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_package_imports_only_what_it_may(package: str) -> None:
    modules = imports_of(package)
    assert modules, f"no modules in {package}"
    wrong = {
        path: names & (set(OURS) - MAY_IMPORT[package] - EXCEPTIONS.get(path, set())) for path, names in modules.items()
    }
    assert not {path: names for path, names in wrong.items() if names}


def declared(lines: list[str]) -> set[str]:
    """The packages that requirement lines name."""
    return {re.split(r"[<>=!~ \[;]", line)[0].lower() for line in lines}


@pytest.mark.parametrize("package", [*PRODUCT, "demo", "bench", "tests"])
def test_third_party_imports_are_declared(package: str) -> None:
    """What the product imports is a dependency in pyproject.toml; the agent stays small, init is on its own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    runtime, extras = declared(project["dependencies"]), project["optional-dependencies"]
    allowed = {
        "agent": {"h11", "h2", "prometheus-client", "pyyaml"},
        "init": {"python-iptables"},  # for one backend, imported when it is asked for
        "bench": runtime | declared(extras["bench"]),
        "tests": runtime | declared(extras["test"]),
    }.get(package, runtime)
    providers = packages_distributions()
    for path, names in imports_of(package).items():
        beside = {sibling.stem for sibling in (ROOT / path).parent.glob("*.py")} if package == "tests" else set()
        for name in names - set(sys.stdlib_module_names) - set(OURS) - beside:
            distributions = {found.lower().replace("_", "-") for found in providers.get(name, [name])}
            assert distributions & allowed, f"{path} imports {name} ({distributions}), allowed: {sorted(allowed)}"


@pytest.mark.parametrize(
    "source",
    [
        "import agent.cli",
        "from agent import cli",
        "def f():\n    import agent",
        "if False:\n    from agent.status import server",
        "import importlib\nimportlib.import_module('agent.cli')",
        "__import__('agent')",
    ],
)
def test_every_form_of_import_is_seen(source: str) -> None:
    assert "agent" in {name.partition(".")[0] for name in imported(source, "proxy.http")}


@pytest.mark.parametrize(
    ("source", "names"),
    [("from . import router", ["proxy.http"]), ("from ..config import model", ["proxy.config"])],
)
def test_relative_imports_are_resolved(source: str, names: list[str]) -> None:
    assert list(imported(source, "proxy.http")) == names
