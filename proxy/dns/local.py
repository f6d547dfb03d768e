"""A question and the name table -> a reply, or None: then the name is not ours and upstream servers are asked.

Names of the cluster (registry Kubernetes) are ours with all their types: what is not an address does not exist, and no
upstream server is asked (it might say NXDOMAIN, which many clients take as "no addresses either"). Of other hosts the
table has the addresses only; their MX, TXT or SRV records are with upstream servers, see `corrected`. HTTPS and SVCB
count as addresses: they would lead clients around the address that the mesh gave.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from proxy.dns.message import (
    AA,
    AAAA,
    ANY,
    CLASS_ANY,
    CLASS_IN,
    CNAME,
    HTTPS,
    NXDOMAIN,
    POINTER_TO_QUESTION,
    PTR,
    RCODE_MASK,
    SVCB,
    A,
    name_to_text,
    name_to_wire,
    record,
    reply,
    soa,
    type_text,
)
from proxy.dns.query import Query
from proxy.dns.table import Found, Record, Table

TTL = 30
"""Seconds, of all records and of "no such record": short, for tables change (pilot-agent: defaultTTLInSeconds)."""

_MAILBOX = name_to_wire("nobody.invalid")
_HEADER = 12
_RECORD_OVERHEAD = 12
"""Bytes of a record with a compressed owner, without its data."""


class LocalAnswer(NamedTuple):
    """A reply, why it is what it is (for the log), and how many rotations give different replies."""

    reply: bytes
    reason: str
    variants: int


def answer(table: Table, query: Query, rotation: int = 0) -> LocalAnswer | None:
    """The table's reply to a query; None if it has none.

    ``rotation`` is which of several addresses comes first. Flags are as pilot-agent has them: AA=1, RA=0.
    """
    if query.qclass != CLASS_IN and query.qclass != CLASS_ANY:
        return None
    found = table.find(query.key)
    if found is None:
        return _answer_reverse(table, query)
    one = found.record
    make = _BY_TYPE.get(query.qtype)
    if make is None:
        return no_data(query, f"{_why(found)}, no {type_text(query.qtype)} record") if one.kubernetes else None
    records, variants = make(one, query, rotation)
    if not records:
        return no_data(query, f"{_why(found)}, no {type_text(query.qtype)} record")
    return LocalAnswer(reply(query, answers=records, flags=AA), _why(found), variants)


def no_data(query: Query, reason: str) -> LocalAnswer:
    """NOERROR without answers: the name exists, this type does not. With a SOA, so that clients may remember it.

    The name is its own zone, with the fixed contents that RFC 6303 section 3 gives to zones served locally.
    """
    start = soa(POINTER_TO_QUESTION, POINTER_TO_QUESTION, _MAILBOX, 1, TTL)
    return LocalAnswer(reply(query, authority=(start,), flags=AA), reason, 1)


def corrected(table: Table, query: Query, upstream: bytes) -> bytes:
    """An upstream server's reply for the client: its NXDOMAIN for a name of the table means "no such type" here."""
    if upstream[3] & RCODE_MASK != NXDOMAIN or query.qclass != CLASS_IN or table.find(query.key) is None:
        return upstream
    return no_data(query, "").reply


def passed_on(table: Table, query: Query) -> str:
    """Why `answer` gave none, for people."""
    found = table.find(query.key)
    if found is None or query.qclass not in (CLASS_IN, CLASS_ANY):
        return "not in the name table"
    return f"{_why(found)} has addresses only; {type_text(query.qtype)} records are with the servers"


def _answer_reverse(table: Table, query: Query) -> LocalAnswer | None:
    host = table.pointer(query.key)
    if host is None:
        return None
    if query.qtype != PTR and query.qtype != ANY:
        return no_data(query, f"name table: address of {host}, no {type_text(query.qtype)} record")
    pointer = record(POINTER_TO_QUESTION, PTR, TTL, name_to_wire(host).lower())
    return LocalAnswer(reply(query, answers=(pointer,), flags=AA), f"name table: address of {host}", 1)


def _why(found: Found) -> str:
    wildcard = f", wildcard {name_to_text(found.key)}" if found.wildcard else ""
    return f"name table: host {found.record.host} ({found.record.rule}{wildcard})"


# --- records of a name ------------------------------------------------------------------------------------------------
# Each gives the records in order and how many rotations there are.

Records = tuple[list[bytes], int]


def _a(one: Record, query: Query, rotation: int) -> Records:
    return _addresses(one, A, one.v4, 4, query, rotation)


def _aaaa(one: Record, query: Query, rotation: int) -> Records:
    return _addresses(one, AAAA, one.v6, 16, query, rotation)


def _addresses(one: Record, kind: int, packed: bytes, size: int, query: Query, rotation: int) -> Records:
    """The CNAME, if there is one, and the addresses from the ``rotation``-th on.

    Of very many only as many as a reply has room for, and one more that makes it a truncated one.
    """
    count = len(packed) // size
    if not count:
        return [], 1
    records = []
    owner = POINTER_TO_QUESTION
    if one.cname is not None:
        # The target stands in the CNAME's data, behind header, question and the record's own fields.
        owner = (0xC000 | _HEADER + len(query.question) + _RECORD_OVERHEAD).to_bytes(2, "big")
        records.append(_cname_record(one.cname))
    begin = rotation % count * size
    turned = packed[begin:] + packed[:begin]
    turned = turned[:(query.limit // (_RECORD_OVERHEAD + size) + 1) * size]
    records += [record(owner, kind, TTL, turned[at:at + size]) for at in range(0, len(turned), size)]
    return records, count


def _cname(one: Record, query: Query, rotation: int) -> Records:
    return ([] if one.cname is None else [_cname_record(one.cname)]), 1


def _any(one: Record, query: Query, rotation: int) -> Records:
    """All that there is (RFC 1034 section 3.6.2: of an alias the CNAME)."""
    if one.cname is not None:
        return _cname(one, query, rotation)
    v4, variants4 = _a(one, query, rotation)
    v6, variants6 = _aaaa(one, query, rotation)
    return v4 + v6, max(variants4, variants6)


def _nothing(one: Record, query: Query, rotation: int) -> Records:
    return [], 1


def _cname_record(target: bytes) -> bytes:
    return record(POINTER_TO_QUESTION, CNAME, TTL, target)


_BY_TYPE: dict[int, Callable[[Record, Query, int], Records]] = {
    A: _a, AAAA: _aaaa, CNAME: _cname, ANY: _any, HTTPS: _nothing, SVCB: _nothing,
}
