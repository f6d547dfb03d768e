"""`/dns`, which Envoy does not have: what a DNS query would be answered with here, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from proxy.admin.console import Console
from proxy.admin.messages import Request, Response, as_json, bad_request
from proxy.dns.message import RCODE_MASK, MessageError, name_to_text, name_to_wire, rcode_text, type_number, type_text
from proxy.dns.query import NOT_ANSWERED

Explanation = Mapping[str, Any]
"""One worker's: dns.service.DnsService.explain."""

_USAGE = "usage: /dns?name=(host name, or none)&type=(A|AAAA|...)&format=(json|text)\n"


async def handle_dns(console: Console, request: Request) -> Response:
    """The table's answer, or what cache and servers are like; nothing is asked. Without a name: table and servers."""
    name = request.get("name")
    if request.get("format") not in (None, "text", "json"):
        return bad_request(_USAGE)
    try:
        wire, qtype = name_to_wire(name or "."), type_number(request.get("type") or "A")
    except MessageError as error:
        return bad_request(f"{error}\n{_USAGE}")
    if qtype in NOT_ANSWERED:
        return bad_request(f"type {type_text(qtype)} is no question that is answered here\n{_USAGE}")
    workers = await console.server.explain_name(wire, qtype)
    if workers is None:
        return Response(404, "DNS is off: --dns-listen or DNS_LISTEN turns it on\n")
    if not workers:
        return Response(503, "no worker answers\n")
    document = describe(wire, qtype, workers) if name else overview(workers)
    return as_json(document) if request.get("format") == "json" else Response(200, text(document))


def describe(name: bytes, qtype: int, workers: Sequence[tuple[int, Explanation]]) -> dict[str, Any]:
    """One document of the workers' explanations. The table is the same in all; each has its own cache and servers."""
    first = workers[0][1]
    document = {"name": name_to_text(name), "type": type_text(qtype), "source": first["source"],
                "reason": first["reason"], "table": first["table"]}
    if reply := first["reply"]:
        from dnslib import DNSRecord  # used nowhere else in main, and 2 MB

        message = DNSRecord.parse(reply)
        document["rcode"] = rcode_text(reply[3] & RCODE_MASK)
        document["answers"] = [" ".join(str(record).split()) for record in message.rr]
        document["authority"] = [" ".join(str(record).split()) for record in message.auth]
    if "upstream" in first:
        document |= _upstream(workers)
    return document


def overview(workers: Sequence[tuple[int, Explanation]]) -> dict[str, Any]:
    """What there is to answer from."""
    document = {"table": workers[0][1]["table"], **_upstream(workers)}
    for worker in document["workers"]:
        # No name was asked for: what the cache has of the one that stood in for it is nobody's question.
        worker["cache"] = {key: value for key, value in worker["cache"].items() if key != "found"}
    return document


def _upstream(workers: Sequence[tuple[int, Explanation]]) -> dict[str, Any]:
    return {"workers": [{"worker": index, **explanation["upstream"]} for index, explanation in workers]}


def text(document: Mapping[str, Any]) -> str:
    """For people."""
    table = document["table"]
    lines = []
    if "name" in document:
        lines += [f"{document['name']} {document['type']}: {_SOURCES[document['source']]}",
                  f"reason: {document['reason']}"]
    if "rcode" in document:
        lines.append(f"answer: {document['rcode']}")
        lines += [f"  {record}" for record in document["answers"]]
        lines += [f"  (authority) {record}" for record in document["authority"]]
    lines.append(f"name table: {table['names']} names" if table["loaded"] else "name table: none yet")
    for worker in document.get("workers", ()):
        lines += _worker_lines(worker)
    return "".join(line + "\n" for line in lines)


_SOURCES = {"table": "answered from the name table", "upstream": "answered from the cache or by the servers"}


def _worker_lines(worker: Mapping[str, Any]) -> list[str]:
    cache = worker["cache"]
    lines = [f"worker {worker['worker']}: {worker['active']} queries under way, {worker['queued']} queued"]
    found = cache.get("found", ())
    for entry in found:
        flags = "".join(f", {flag}" for flag in ("dnssec_ok", "checking_disabled") if entry[flag])
        state = "stale" if entry["stale"] else f"{entry['left_s']:.0f} s left"
        lines.append(f"  cache: {entry['rcode']}, {entry['answers']} answers, {entry['age_s']:.0f} s old, "
                     f"{state}{flags}")
    if not cache["limit"]:
        lines.append("  cache: off")
    elif not found:
        size = f"{cache['entries']} of {cache['limit']} answers"
        lines.append(f"  cache: not in it ({size})" if "found" in cache else f"  cache: {size}")
    for server in worker["servers"]:
        lines.append(f"  server {server['address']}: {server['state']}, round trip {server['rtt_ms']:.1f} ms, "
                     f"asked {server['asked']}, replies {server['replies']}, failures {server['failures']}, "
                     f"pending {server['pending']}")
    if not worker["servers"]:
        lines.append("  servers: none, so the answer is SERVFAIL")
    return lines
