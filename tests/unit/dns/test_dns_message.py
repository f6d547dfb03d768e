"""Names and records on the wire, with dnspython as second opinion."""

from __future__ import annotations

import dns.message
import dns.name
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dns.message import (
    AA,
    CLASS_IN,
    MAX_NAME,
    NXDOMAIN,
    POINTER_TO_QUESTION,
    RA,
    A,
    MessageError,
    class_text,
    labels,
    name_to_text,
    name_to_wire,
    parent,
    rcode_text,
    read_name,
    record,
    reply,
    skip_name,
    soa,
    type_number,
    type_text,
)
from proxy.dns.query import Query

NAMES = st.lists(st.binary(min_size=1, max_size=20), max_size=8).map(
    lambda parts: b"".join(bytes((len(part),)) + part for part in parts) + b"\0")


@given(NAMES)
def test_text_of_a_name_and_back(wire: bytes) -> None:
    text = name_to_text(wire)
    assert name_to_wire(text) == wire
    assert text.isascii() and text.isprintable()
    assert dns.name.from_text(text).to_wire() == wire
    assert read_name(b"xx" + wire + b"yy", 2) == (wire, 2 + len(wire))
    assert skip_name(wire + b"yy", 0) == len(wire)
    assert len(labels(wire)) == text.rstrip(".").count(".") - text.count("\\.") + 1 or wire == b"\0" or "\\" in text
    assert parent(wire) == (name_to_wire(str(dns.name.from_text(text).parent())) if wire != b"\0" else b"\0")


@pytest.mark.parametrize(("text", "wire"), [
    ("", b"\0"), (".", b"\0"), ("a", b"\1a\0"), ("Foo.bar.", b"\3Foo\3bar\0"), (r"a\.b.c", b"\3a.b\1c\0"),
    (r"\065\\", b"\2A\\\0"), ("ä", b"\2\xc3\xa4\0"), ("x" * 63, b"\x3f" + b"x" * 63 + b"\0"),
])
def test_name_to_wire(text: str, wire: bytes) -> None:
    assert name_to_wire(text) == wire


@pytest.mark.parametrize(("text", "what"), [
    ("a..b", "an empty label"), (".a", "an empty label"), ("x" * 64, "a label of 64 bytes, at most 63 expected"),
    ("a\\", "nothing follows the last backslash"), ("a\\256", "\\256 is no byte"),
    (".".join(["x" * 63] * 4), f"longer than {MAX_NAME} bytes"),
])
def test_what_is_no_name(text: str, what: str) -> None:
    with pytest.raises(MessageError, match="^name '") as raised:
        name_to_wire(text)
    assert what in str(raised.value)


def pointer(at: int) -> bytes:
    return (0xC000 | at).to_bytes(2, "big")


@pytest.mark.parametrize(("message", "at", "what"), [
    (b"\3foo", 0, "beyond the end"), (b"\x05foo", 0, "beyond the end"), (b"", 0, "beyond the end"),
    (b"\xc0", 0, "beyond the end"), (b"\x40x\0", 0, "begins with 0x40"), (b"\x80x\0", 0, "begins with 0x80"),
    (pointer(0), 0, "backwards"), (pointer(2) + pointer(0), 2, "backwards"), (pointer(9), 0, "backwards"),
    (b"\1a" + pointer(0), 0, "backwards"),
    # a bomb: each pointer is followed by another one to the pointer before
    (b"\0\0" + b"".join(pointer(2 * n) for n in range(1, 200)), 398, "backwards"),
    ((b"\x3f" + b"x" * 63) * 4 + b"\0", 0, "longer than 255 bytes"),
    # a name that grows by going back into itself
    ((b"\x3f" + b"x" * 63) * 3 + b"\0" + (b"\x3f" + b"y" * 63) + pointer(0), 193, "longer than 255 bytes"),
])
def test_names_that_cannot_be_read(message: bytes, at: int, what: str) -> None:
    with pytest.raises(MessageError, match=what):
        read_name(message, at)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_reading_any_bytes_ends(message: bytes, at: int) -> None:
    try:
        name, after = read_name(message, at)
    except MessageError:
        return
    assert len(name) <= MAX_NAME and at < after <= len(message) and skip_name(message, at) == after


def query(limit: int, edns: int | None = None, flags: int = 0x0110) -> Query:
    found = Query(7, flags, name_to_wire("Foo.example"), A, CLASS_IN, edns=edns, dnssec_ok=edns is not None)
    found.limit = limit
    return found


@given(st.integers(0, 40), st.integers(60, 700), st.booleans(), st.booleans())
def test_a_reply_has_whole_records_and_keeps_its_limit(count: int, limit: int, edns: bool, with_soa: bool) -> None:
    addresses = [record(POINTER_TO_QUESTION, A, 30, bytes((10, 0, 0, n))) for n in range(count)]
    start = [soa(POINTER_TO_QUESTION, name_to_wire("ns.x"), name_to_wire("m.x"), 1, 30)] if with_soa else []
    asked = query(limit, 1232 if edns else None)
    wire = reply(asked, answers=addresses, authority=start, flags=AA | RA)
    assert len(wire) <= limit
    message = dns.message.from_wire(wire)
    got = len(message.answer[0]) if message.answer else 0
    whole = got == count and bool(message.authority) == with_soa
    assert bool(message.flags & dns.flags.TC) == (not whole)
    if not whole:
        smallest = len(addresses[0]) if got < count else len(start[0])
        assert len(wire) + smallest > limit
    assert message.flags & (dns.flags.QR | dns.flags.AA | dns.flags.RA | dns.flags.RD | dns.flags.CD) == 0x8590
    assert message.id == 7
    assert message.edns == (0 if edns else -1)
    assert bool(message.ednsflags & dns.flags.DO) == edns
    assert str(message.question[0].name) == "Foo.example."


def test_a_negative_reply_has_its_ttl_twice() -> None:
    start = soa(POINTER_TO_QUESTION, name_to_wire("ns.example"), name_to_wire(r"a\.b.example"), 5, 30)
    message = dns.message.from_wire(reply(query(512), NXDOMAIN, authority=[start]))
    assert message.rcode() == dns.rcode.NXDOMAIN
    assert message.authority[0].ttl == message.authority[0][0].minimum == 30
    assert str(message.authority[0][0].rname) == r"a\.b.example."


@pytest.mark.parametrize("text", ["A", "aaaa", "HTTPS", "TYPE65280", "65280", "type1"])
def test_types(text: str) -> None:
    expected = int(text) if text.isdigit() else dns.rdatatype.from_text(text)
    assert type_number(text) == expected
    assert type_number(type_text(expected)) == expected


@pytest.mark.parametrize("text", ["", "NOPE", "TYPE", "TYPE0", "65536", "TYPE-1", "٣"])
def test_what_is_no_type(text: str) -> None:
    with pytest.raises(MessageError, match="is no record type such as A, AAAA or TYPE65"):
        type_number(text)


def test_texts_of_numbers() -> None:
    assert (class_text(1), class_text(3), class_text(7)) == ("IN", "CH", "CLASS7")
    assert (rcode_text(3), rcode_text(16), rcode_text(15)) == ("NXDOMAIN", "BADVERS", "RCODE15")
