"""`/dns`: what it says of names of the table and of others, in both forms."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fakes import FakeServer

from proxy.admin import dns, messages
from proxy.admin.console import Console
from proxy.dns.message import AAAA, NOERROR, POINTER_TO_QUESTION, A, name_to_wire, record, reply
from proxy.dns.query import Query

TABLE = {"loaded": True, "names": 42}
SERVER = {"address": "10.0.0.10:53", "state": "up", "rtt_ms": 1.25, "rtt_variance_ms": 0.5, "unanswered_in_sequence": 0,
          "refusals_in_sequence": 0, "asked": 3, "replies": 2, "failures": 1, "pending": 0}
ENTRY = {"dnssec_ok": True, "checking_disabled": False, "rcode": "NXDOMAIN", "negative": True, "answers": 0,
         "authority": 1, "additional": 0, "age_s": 3.0, "left_s": 27.0, "stale": False}


def table_answer(name: bytes, qtype: int) -> list[tuple[int, dict[str, Any]]]:
    query = Query(0, 0x0100, name, qtype, 1, tcp=True)
    records = [record(POINTER_TO_QUESTION, A, 30, bytes((10, 0, 0, 1)))] if qtype == A else []
    return [(n, {"source": "table", "reason": "name table: host web (host)", "table": TABLE,
                 "reply": reply(query, NOERROR, records)}) for n in (0, 1)]


def upstream(*workers: dict[str, Any]) -> Any:
    return lambda name, qtype: [(n, {
        "source": "upstream", "reason": "not in the name table", "table": {"loaded": False, "names": 0}, "reply": b"",
        "upstream": {"servers": [SERVER], "parallel": False, "active": 1, "queued": 2, "waiting": 3,
                     "cache": {"entries": 7, "bytes": 99, "limit": 100, "found": [ENTRY]}, **more},
    }) for n, more in enumerate(workers)]


def ask(server: FakeServer, target: str) -> messages.Response:
    return asyncio.run(dns.handle_dns(Console(server), messages.parse("GET", target)))


def test_a_name_of_the_table() -> None:
    server = FakeServer()
    server.names = table_answer
    assert ask(server, "/dns?name=Web.ns1").body == (
        "Web.ns1. A: answered from the name table\n"
        "reason: name table: host web (host)\n"
        "answer: NOERROR\n"
        "  Web.ns1. 30 IN A 10.0.0.1\n"
        "name table: 42 names\n")
    document = json.loads(ask(server, "/dns?name=web.ns1&type=aaaa&format=json").body)
    assert document == {"name": "web.ns1.", "type": "AAAA", "source": "table", "reason": "name table: host web (host)",
                        "table": TABLE, "rcode": "NOERROR", "answers": [], "authority": []}


def test_another_name() -> None:
    server = FakeServer()
    off = {"cache": {"entries": 0, "bytes": 0, "limit": 0, "found": []}, "servers": []}
    empty = {"cache": {"entries": 7, "bytes": 0, "limit": 100, "found": []}}
    stale = {"cache": {"entries": 7, "bytes": 0, "limit": 100, "found": [ENTRY | {"stale": True, "dnssec_ok": False}]}}
    server.names = upstream({}, off, empty, stale)
    line = ("  server 10.0.0.10:53: up, round trip 1.2 ms, asked 3, replies 2, failures 1, pending 0\n")
    assert ask(server, "/dns?name=x.example").body == (
        "x.example. A: answered from the cache or by the servers\n"
        "reason: not in the name table\n"
        "name table: none yet\n"
        "worker 0: 1 queries under way, 2 queued\n"
        "  cache: NXDOMAIN, 0 answers, 3 s old, 27 s left, dnssec_ok\n" + line +
        "worker 1: 1 queries under way, 2 queued\n"
        "  cache: off\n"
        "  servers: none, so the answer is SERVFAIL\n"
        "worker 2: 1 queries under way, 2 queued\n"
        "  cache: not in it (7 of 100 answers)\n" + line +
        "worker 3: 1 queries under way, 2 queued\n"
        "  cache: NXDOMAIN, 0 answers, 3 s old, stale\n" + line)
    document = json.loads(ask(server, "/dns?name=x.example&format=json").body)
    assert [worker["worker"] for worker in document["workers"]] == [0, 1, 2, 3]
    assert document["workers"][0]["servers"] == [SERVER]


@pytest.mark.parametrize(("query", "status", "text"), [
    ("?name=x&format=html", 400, "usage: /dns?name=(host name, or none)"),
    ("?name=a&type=AXFR", 400, "type AXFR is no question that is answered here\nusage: "),
    ("?name=a..b", 400, "name 'a..b': an empty label\nusage: "), ("?name=a&type=NOPE", 400, "'NOPE' is no record type"),
    ("?name=a", 404, "DNS is off: --dns-listen or DNS_LISTEN turns it on\n"),
    ("", 404, "DNS is off: --dns-listen or DNS_LISTEN turns it on\n"),
])
def test_refused(query: str, status: int, text: str) -> None:
    answer = ask(FakeServer(), f"/dns{query}")
    assert answer.status == status and answer.body.startswith(text)


def test_without_a_name_what_there_is_to_answer_from() -> None:
    server = FakeServer()
    server.names = upstream({}, {})
    document = json.loads(ask(server, "/dns?format=json").body)
    assert document["table"] == {"loaded": False, "names": 0}
    assert [worker["servers"] for worker in document["workers"]] == [[SERVER], [SERVER]]
    assert [worker["cache"] for worker in document["workers"]] == [{"entries": 7, "bytes": 99, "limit": 100}] * 2
    assert ask(server, "/dns").body.startswith(
        "name table: none yet\nworker 0: 1 queries under way, 2 queued\n  cache: 7 of 100 answers\n  server ")


def test_no_worker_answers() -> None:
    server = FakeServer()
    server.names = lambda name, qtype: []
    assert ask(server, "/dns?name=x").status == 503


def test_what_is_asked() -> None:
    server = FakeServer()
    asked = []
    server.names = lambda name, qtype: asked.append((name, qtype)) or []
    ask(server, "/dns?name=X.y&type=28")
    assert asked == [(name_to_wire("X.y"), AAAA)]
