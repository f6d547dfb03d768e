"""Fixtures of the HTTP tests."""

from __future__ import annotations

from tests.unit.http.http_world import world_of as world_of
from tests.unit.http.plan_worlds import compare as compare
