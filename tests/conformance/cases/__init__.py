"""All cases. A module holds those of one subject in `CASES`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from tests.conformance.dsl import Case

MODULES = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def _collect() -> list[Case]:
    found: list[Case] = []
    for name in MODULES:
        found += import_module(f".{name}", __name__).CASES
    names = [case.name for case in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    assert not twice, f"case names used twice: {twice}"
    order = list(dict.fromkeys(case.config for case in found))  # one after another, so that a pair runs only once
    return sorted(found, key=lambda case: order.index(case.config))


ALL = _collect()
