"""`/limits`, which Envoy does not have: connection limits, how near they are, and who holds the connections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from proxy.admin.console import Console
from proxy.admin.messages import Request, Response, as_json, bad_request

if TYPE_CHECKING:
    from proxy.limits.pools import Pools

TOP_CLIENTS = 10

Clients = dict[str, list[tuple[str, int]]]
"""Key of a limit -> (IP address, connections that count for it)."""


async def handle_limits(console: Console, request: Request) -> Response:
    """Every connection limit with its clients, those with the most connections first."""
    if request.get("format") not in (None, "text", "json"):
        return bad_request("usage: /limits?format=(json|text)\n")
    rows = document(console.server.runtime.pools, await console.server.limit_clients())
    if request.get("format") == "json":
        return as_json({"limits": rows})
    return Response(200, text(rows))


def document(pools: Pools, clients: Clients) -> list[dict[str, Any]]:
    """A limit each: ``limit`` is None where one was taken away; what was limited once is counted on."""
    rows = []
    for key, limit in pools.limits.items():
        pool = pools.pool(key)
        rows.append({
            "kind": limit.kind, "name": limit.name, "source": limit.source, "limit": limit.value,
            "in_use": pool.in_use, "highest": pool.highest, "refused": pool.refused,
            "clients": [{"address": address, "connections": count} for address, count in clients.get(key, ())],
        })
    return rows


def merge(parts: Iterable[Clients]) -> Clients:
    """The workers' clients as one: those with the most connections."""
    totals: dict[str, Counter[str]] = {}
    for part in parts:
        for key, counts in part.items():
            total = totals.setdefault(key, Counter())
            for address, count in counts:
                total[address] += count
    return {key: sorted(total.items(), key=lambda item: (-item[1], item[0]))[:TOP_CLIENTS]
            for key, total in totals.items()}


def text(rows: list[dict[str, Any]]) -> str:
    """A line a limit, and indented one for each client."""
    lines = []
    for row in rows:
        name = f"{row['kind']} {row['name']}".strip()
        limit = "no limit any more" if row["limit"] is None else f"limit {row['limit']} by {row['source']}"
        lines.append(f"{name}: {limit}, in use {row['in_use']}, highest {row['highest']}, refused {row['refused']}")
        lines += (f"  {client['address']} {client['connections']}" for client in row["clients"])
    return "".join(line + "\n" for line in lines) or "no limits\n"
