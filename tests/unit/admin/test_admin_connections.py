"""`/connections`: what it says, in both forms, and how the workers' answers become one."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fakes import FakeServer

from proxy.admin import connections, messages
from proxy.admin.console import Console


def row(age: float, **values: Any) -> dict[str, Any]:
    """One connection as a worker tells of it."""
    return {"listener": "virtualInbound", "direction": "INBOUND", "peer": "10.0.0.9:50000", "local": "10.0.0.1:9080",
            "age": age, "requests": 3, "active": 1, **values}


def ask(server: FakeServer, target: str) -> messages.Response:
    """The answer of the handler."""
    return asyncio.run(connections.handle_connections(Console(server), messages.parse("GET", target)))


def test_text_names_all_there_is_to_know() -> None:
    server = FakeServer()
    server.open = [row(12.34), row(1.0, listener="raw", direction="OUTBOUND", requests=0)]
    assert ask(server, "/connections").body == (
        "2 connections:\n"
        "virtualInbound INBOUND 10.0.0.9:50000 -> 10.0.0.1:9080 age 12.3s requests 3 active 1\n"
        "raw OUTBOUND 10.0.0.9:50000 -> 10.0.0.1:9080 age 1.0s requests 0 active 1\n")
    assert ask(server, "/connections?limit=1").body.startswith("2 connections, the oldest 1:\nvirtualInbound")


def test_json() -> None:
    server = FakeServer()
    server.open = [row(5.5, secret="not a field")]
    answer = ask(server, "/connections?format=json")
    assert (answer.status, answer.content_type) == (200, messages.JSON)
    assert json.loads(answer.body) == {"total": 1, "connections": [row(5.5)]}


@pytest.mark.parametrize("query", ["limit=0", "limit=10001", "limit=x", "limit=", "limit=-1", "limit=%D9%A1",
                                   "limit=" + "9" * 5000, "format=html"])
def test_parameters_that_are_refused(query: str) -> None:
    answer = ask(FakeServer(), f"/connections?{query}")
    assert answer.status == 400
    assert answer.body.startswith("usage: /connections?")


def test_workers_answers_become_one_list() -> None:
    parts = [(3, [row(9.0), row(1.0)]), (1, [row(5.0)]), (0, [])]
    total, rows = connections.merge(parts, 2)
    assert total == 4
    assert [each["age"] for each in rows] == [9.0, 5.0]
