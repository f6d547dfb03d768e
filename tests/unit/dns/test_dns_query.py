"""What clients send: every kind of question, every kind of nonsense, and that no nonsense does harm."""

from __future__ import annotations

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.dns.message import OUR_UDP, name_to_wire
from proxy.dns.query import Query, parse_query

CLIENT = ("127.0.0.1", 5353)
HEAD = bytes.fromhex("0007 0100 0001 0000 0000 0000")
QUESTION = b"\3Foo\3bar\0" + bytes.fromhex("001c 0001")
OPT = bytes.fromhex("00 0029 04d0 00 00 8000 0000")


def head(flags: int = 0x0100, questions: int = 1, answers: int = 0, authority: int = 0, additional: int = 0) -> bytes:
    return b"".join(n.to_bytes(2, "big") for n in (7, flags, questions, answers, authority, additional))


def parsed(packet: bytes, tcp: bool = False) -> Query:
    query = parse_query(packet, tcp, CLIENT)
    assert isinstance(query, Query), query
    return query


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize(("edns", "udp_limit"), [(None, 512), (0, 512), (512, 512), (1232, 1232), (4096, 4096),
                                                 (65535, OUR_UDP)])
def test_question(edns: int | None, udp_limit: int, tcp: bool) -> None:
    how = {} if edns is None else {"use_edns": 0, "payload": edns, "want_dnssec": edns == 1232}
    message = dns.message.make_query("Foo.Bar", "AAAA", **how)
    message.flags |= dns.flags.CD
    query = parsed(message.to_wire(), tcp)
    assert (query.id, query.flags, query.tcp, query.client) == (message.id, 0x0110, tcp, CLIENT)
    assert (query.name, query.key) == (name_to_wire("Foo.Bar"), name_to_wire("foo.bar"))
    assert (query.qtype, query.qclass, query.question) == (28, 1, name_to_wire("Foo.Bar") + b"\0\x1c\0\1")
    assert (query.edns, query.dnssec_ok) == (edns, edns == 1232)
    assert query.limit == (65535 if tcp else udp_limit)
    assert repr(query) == f"<Query Foo.Bar. IN AAAA id={message.id} {'tcp' if tcp else 'udp'} limit={query.limit}>"


def test_options_of_edns_and_a_signature_are_no_obstacle() -> None:
    cookie = dns.edns.GenericOption(10, b"12345678")
    message = dns.message.make_query("foo.bar", "A", use_edns=0, payload=1400, options=[cookie])
    assert parsed(message.to_wire()).edns == 1400
    signature = name_to_wire("mykey") + bytes.fromhex("00fa 00ff 00000000 0000")
    packet = head(additional=2) + QUESTION + OPT + signature
    assert parsed(packet).edns == 1232


@pytest.mark.parametrize(("packet", "what"), [
    (b"", "nothing"), (HEAD[:11], "no whole header"), (head(flags=0x8180) + QUESTION, "a reply"),
    (head(flags=0xFFFF), "a reply of any kind"),
])
def test_no_answer(packet: bytes, what: str) -> None:
    assert parse_query(packet, False, CLIENT) is None, what


REFUSED = {
    "no question": (head(questions=0), "FORMERR"),
    "two questions": (head(questions=2) + QUESTION + QUESTION, "FORMERR"),
    "an answer": (head(answers=1) + QUESTION + QUESTION, "FORMERR"),
    "authority": (head(authority=1) + QUESTION + QUESTION, "FORMERR"),
    "many additional": (head(additional=5) + QUESTION + OPT, "FORMERR"),
    "header only": (head(), "FORMERR"),
    "name cut": (head() + b"\3Fo", "FORMERR"),
    "type cut": (head() + QUESTION[:-3], "FORMERR"),
    "class cut": (head() + QUESTION[:-1], "FORMERR"),
    "pointer": (head() + b"\xc0\x0c" + QUESTION[-4:], "FORMERR"),
    "pointer behind a label": (head() + b"\1a\xc0\x0c" + QUESTION[-4:], "FORMERR"),
    "long name": (head() + (b"\x3f" + b"x" * 63) * 4 + b"\0\0\1\0\1", "FORMERR"),
    "opt cut": (head(additional=1) + QUESTION + OPT[:-1], "FORMERR"),
    "opt missing": (head(additional=1) + QUESTION, "FORMERR"),
    "opt data cut": (head(additional=1) + QUESTION + OPT[:-2] + b"\0\4abc", "FORMERR"),
    "two opts": (head(additional=2) + QUESTION + OPT + OPT, "FORMERR"),
    "opt with a name": (head(additional=1) + QUESTION + b"\1a" + OPT, "FORMERR"),
    "opt in a pointer": (head(additional=1) + QUESTION + b"\xc0\x0c" + OPT[1:], "FORMERR"),
    "type 0": (head() + QUESTION[:-4] + b"\0\0\0\1", "FORMERR"),
    "type OPT": (head() + QUESTION[:-4] + b"\0\x29\0\1", "FORMERR"),
    "zone transfer": (head() + QUESTION[:-4] + b"\0\xfc\0\1", "NOTIMP"),
    "incremental transfer": (head() + QUESTION[:-4] + b"\0\xfb\0\1", "NOTIMP"),
    "update": (head(flags=0x2800) + QUESTION, "NOTIMP"),
    "notify": (head(flags=0x2000) + QUESTION, "NOTIMP"),
    "edns 1": (head(additional=1) + QUESTION + bytes.fromhex("00 0029 04d0 00 01 8000 0000"), "BADVERS"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    packet, code = REFUSED[case]
    reply = parse_query(packet, False, CLIENT)
    assert isinstance(reply, bytes)
    message = dns.message.from_wire(reply)
    assert dns.rcode.to_text(message.rcode()) == code
    assert message.id == 7 and message.flags & dns.flags.QR and not message.answer
    assert message.opcode() == int.from_bytes(packet[2:4], "big") >> 11 & 15
    assert (message.edns == 0) == (case in ("edns 1",)), "OPT only where the query's was understood"


@example(head(additional=1) + QUESTION + OPT)
@given(st.one_of(
    st.binary(max_size=600),
    st.binary(max_size=100).map(lambda rest: HEAD + rest),
    st.tuples(st.integers(0, 5), st.binary(max_size=60)).map(lambda n: head(additional=n[0]) + QUESTION + n[1]),
    # a good query with some bytes changed
    st.lists(st.tuples(st.integers(0, 36), st.integers(0, 255)), max_size=4).map(
        lambda changes: mutated(head(additional=1) + QUESTION + OPT, changes)),
))
def test_any_bytes(packet: bytes) -> None:
    """Never an exception; a refusal is a reply that others can read, never larger than 512 bytes; a query is one that
    dnspython reads alike."""
    found = parse_query(packet, False, CLIENT)
    if found is None:
        assert len(packet) < 12 or packet[2] & 0x80
    elif isinstance(found, bytes):
        assert len(found) <= 512
        message = dns.message.from_wire(found)
        assert message.flags & dns.flags.QR and message.id == int.from_bytes(packet[:2], "big")
        assert message.rcode() in (dns.rcode.FORMERR, dns.rcode.NOTIMP, dns.rcode.BADVERS)
    else:
        assert 512 <= found.limit <= OUR_UDP
        assert found.question == packet[12:12 + len(found.question)]
        theirs = dns.message.from_wire(packet, ignore_trailing=True, continue_on_error=True)
        assert theirs.question[0].name.to_wire() == found.name
        assert theirs.question[0].rdtype == found.qtype and theirs.question[0].rdclass == found.qclass
        if not theirs.errors:  # type: ignore[attr-defined]
            assert (theirs.payload if theirs.edns >= 0 else None) == found.edns


def mutated(packet: bytes, changes: list[tuple[int, int]]) -> bytes:
    changed = bytearray(packet)
    for at, value in changes:
        changed[at % len(changed)] = value
    return bytes(changed)
