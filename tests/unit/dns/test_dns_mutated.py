"""Damaged messages through the whole service: every reply is one that two other programs can read."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rcode
import dnslib
from dns_captures import CAPTURES
from dns_service_world import World, packet
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dns.message import OUR_UDP
from proxy.dns.service import LATER

# Replies of real servers turned into queries, and queries for what the table has.
SEEDS = [wire[:2] + b"\1\0" + wire[4:] for wire in CAPTURES.values()] + [
    packet(name, kind, use_edns=edns) for name in ("three.ns1", "web.ns1", "www.google.com.corp.example", "x.example")
    for kind in ("A", "ANY", "PTR", "HTTPS") for edns in (False, 0)]
CHANGES = st.lists(st.tuples(st.integers(0, 300), st.one_of(st.integers(0, 255), st.binary(max_size=4))), max_size=5)


def damaged(wire: bytes, changes: list[tuple[int, int | bytes]]) -> bytes:
    """Each change replaces one byte, by another or by several or none."""
    changed = bytearray(wire)
    for at, what in changes:
        at %= len(changed) + 1
        changed[at:at + 1] = bytes((what,)) if isinstance(what, int) else what
    return bytes(changed)


def dnslib_can_read(message: dns.message.Message) -> bool:
    """Labels may be any bytes (RFC 2181 section 11); dnslib takes only UTF-8."""
    try:
        for question in message.question:
            for label in question.name.labels:
                label.decode()
    except UnicodeDecodeError:
        return False
    return True


@settings(max_examples=400)
@given(st.sampled_from(SEEDS), CHANGES, st.booleans())
def test_replies_to_damaged_messages(wire: bytes, changes: list[tuple[int, int | bytes]], tcp: bool) -> None:
    """Within the limit, with this id and this question; the memo says the same once more."""
    wire = damaged(wire, changes)
    world = World()
    reply = world.ask(wire, tcp)
    if reply is None or reply is LATER:
        return
    assert len(reply) <= (65535 if tcp else OUR_UDP)
    message = dns.message.from_wire(reply)
    assert message.id == int.from_bytes(wire[:2], "big") and message.flags & dns.flags.QR
    if dnslib_can_read(message):
        assert dnslib.DNSRecord.parse(reply).header.rcode == message.rcode() & 15
    if message.question:
        assert wire[12:].startswith(message.question[0].name.to_wire())
    second = world.ask(wire, tcp)
    assert second is not None and second[2:12] == reply[2:12]
    assert (sorted(str(rrset) for rrset in dns.message.from_wire(second).authority)
            == sorted(str(rrset) for rrset in message.authority))


def test_the_seeds_reach_every_end() -> None:
    """Else the test above would test little."""
    ends = set()
    for wire in SEEDS:
        reply = World().ask(wire)
        ends.add("later" if reply is LATER else "none" if reply is None else dns.rcode.to_text(reply[3] & 15))
    assert {"NOERROR", "FORMERR", "later"} <= ends
