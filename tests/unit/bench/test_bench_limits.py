"""What `python -m bench.limits` compares."""

from __future__ import annotations

import json

from bench import config, limits

TEMPLATE = json.loads(config.TEMPLATE.read_text(encoding="utf-8"))


def test_configurations_differ_in_the_limit_alone() -> None:
    none, holds = limits.limited(TEMPLATE, None), limits.limited(TEMPLATE, 7)
    assert "overload_manager" not in none
    (monitor,) = holds.pop("overload_manager")["resource_monitors"]
    assert monitor["typed_config"]["max_active_downstream_connections"] == 7
    assert holds == none


def test_the_check_alone() -> None:
    assert 0 < limits.check_alone(1, 10_000) < 1000
    assert 0 < limits.check_alone(2, 10_000) < 1000
