"""Name tables for tests, questions about them, and what two other programs read in a reply."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rdatatype
import dnslib

from proxy.dns.local import LocalAnswer, answer
from proxy.dns.message import name_to_text, name_to_wire, type_number
from proxy.dns.name_table import read_name_table
from proxy.dns.query import Query
from proxy.dns.table import Table, compile_table

RECORDED = Path(__file__).resolve().parents[4] / "shared/istio/config"

SEARCH = ("ns1.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example")


def kubernetes(name: str, namespace: str, *ips: str, domain: str = "svc.cluster.local", **more: Any) -> dict[str, Any]:
    """The entry of a service."""
    info = {"ips": list(ips), "registry": "Kubernetes", "shortname": name, "namespace": namespace, **more}
    return {f"{name}.{namespace}.{domain}": info}


def external(host: str, *ips: str) -> dict[str, Any]:
    """The entry of a ServiceEntry's host."""
    return {host: {"ips": list(ips), "registry": "External"}}


def table_of(*entries: dict[str, Any], domain: str = "ns1.svc.cluster.local", namespace: str = "ns1",
             search: tuple[str, ...] = SEARCH) -> Table:
    """The table of a proxy in namespace ns1."""
    document = {"table": {name: info for entry in entries for name, info in entry.items()}}
    return compile_table(read_name_table(document), domain, namespace, search)


def query(name: str, kind: str = "A", *, edns: int | None = None, tcp: bool = False, flags: int = 0x0100,
          qclass: int = 1) -> Query:
    """A question as a client sends it."""
    return Query(0x1234, flags, name_to_wire(name), type_number(kind), qclass, edns=edns, tcp=tcp)


def read(asked: Query, reply: bytes) -> dns.message.Message:
    """The reply as dnspython reads it, strictly; it is what dnslib reads too, and answers this question."""
    assert len(reply) <= asked.limit
    message = dns.message.from_wire(reply, raise_on_truncation=False, ignore_trailing=False, one_rr_per_rrset=True)
    other = dnslib.DNSRecord.parse(reply)
    assert message.id == asked.id == other.header.id
    assert message.flags & dns.flags.QR and other.header.qr
    assert len(message.question) == 1 == len(other.questions)
    assert message.question[0].name.to_wire() == asked.name == bytes(asked.question[:-4])
    for ours, theirs in ((message.answer, other.rr), (message.authority, other.auth)):
        assert len(ours) == len(theirs)
        for mine, yours in zip(ours, theirs, strict=True):
            assert mine.rdtype == yours.rtype and mine.ttl == yours.ttl and mine.rdclass == yours.rclass == 1
            assert mine.name.to_wire() == name_to_wire(str(yours.rname))
            if mine.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
                assert str(mine[0]) == str(yours.rdata)
    assert message.edns == (-1 if asked.edns is None else 0)
    return message


def answers(message: dns.message.Message) -> list[str]:
    """``CNAME web.ns1.`` and the like, in the reply's order; the owner before it unless it is the question."""
    out = []
    for one in message.answer:
        owner = "" if one.name.to_wire() == message.question[0].name.to_wire() else f"{one.name} "
        out.append(f"{owner}{dns.rdatatype.to_text(one.rdtype)} {one[0]}")
    return out


def ask(table: Table, name: str, kind: str = "A", rotation: int = 0, **how: Any) -> tuple[str, list[str], str] | None:
    """Code, answers and reason; None if the table has no reply."""
    asked = query(name, kind, **how)
    found: LocalAnswer | None = answer(table, asked, rotation)
    if found is None:
        return None
    message = read(asked, found.reply)
    return dns.rcode.to_text(message.rcode()), answers(message), found.reason


def text(key: bytes) -> str:
    """A key for people."""
    return name_to_text(key)
