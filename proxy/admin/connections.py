"""`/connections`, which Envoy does not have: who is connected; an operator sees what a drain still waits for."""

from __future__ import annotations

from typing import Any

from proxy.admin.console import Console
from proxy.admin.messages import Request, Response, as_json, bad_request

DEFAULT_LIMIT = 100
MAX_LIMIT = 10_000
"""Connections in one answer; ``total`` counts the others too."""

Row = dict[str, Any]
"""One connection: the keys of FIELDS, see dataplane.DataPlane.connections."""

FIELDS = ("listener", "direction", "peer", "local", "age", "requests", "active")


async def handle_connections(console: Console, request: Request) -> Response:
    """Open downstream connections, the oldest first; the admin interface's own are not among them."""
    try:
        limit = parse_limit(request.get("limit"))
    except ValueError as error:
        return bad_request(f"{error}\n")
    if request.get("format") not in (None, "text", "json"):
        return bad_request("usage: /connections?format=(json|text)\n")
    total, rows = await console.server.connections(limit)
    if request.get("format") == "json":
        return as_json({"total": total, "connections": [{name: row[name] for name in FIELDS} for row in rows]})
    return Response(200, text(total, rows))


def parse_limit(value: str | None) -> int:
    """How many connections are wanted. Raises ValueError with the usage."""
    if value is None:
        return DEFAULT_LIMIT
    if not (value.isascii() and value.isdigit() and len(value) <= 5 and 0 < int(value) <= MAX_LIMIT):
        raise ValueError(f"usage: /connections?limit=(1 to {MAX_LIMIT})")
    return int(value)


def merge(parts: list[tuple[int, list[Row]]], limit: int) -> tuple[int, list[Row]]:
    """The workers' counts and lists as one, the oldest connections first."""
    rows = [row for _, part in parts for row in part]
    rows.sort(key=lambda row: -row["age"])
    return sum(total for total, _ in parts), rows[:limit]


def text(total: int, rows: list[Row]) -> str:
    """A line a connection, after one with the number of all."""
    lines = [f"{total} connections" + (f", the oldest {len(rows)}:" if len(rows) < total else ":")]
    for row in rows:
        lines.append(f"{row['listener']} {row['direction']} {row['peer']} -> {row['local']} age {row['age']:.1f}s "
                     f"requests {row['requests']} active {row['active']}")
    return "".join(line + "\n" for line in lines)
