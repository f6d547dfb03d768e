"""A server's reply: what is refused, for how long it holds, what a client is given of it."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from proxy.dns.message import AA, AD, HEADER, TC
from proxy.dns.reply import MAX_RECORDS, BadReply, Reply, parse_reply
from tests.unit.dns.dns_captures import CAPTURES
from tests.unit.dns.dns_upstream_world import SOA, query_of, query_packet, response, rrsets

NAME = b"\x03foo\x07example\x00"
QUESTION = NAME + b"\0\1\0\1"
POINTER = b"\xc0\x0c"
A4 = b"\0\1\0\1\0\0\0\x3c\0\4\x0a\1\1\1"


def reply_of(*records: str, kind: str = "A", name: str = "foo.example.", **more: object) -> Reply:
    query = dns.message.from_wire(query_packet(name, kind, edns=1232))
    message = response(query, records, **more)  # type: ignore[arg-type]
    return parse_reply(message, query_of(name, kind).question)


def raw(*records: bytes, counts: tuple[int, int, int] | None = None, flags: int = 0x8180, question: bytes = QUESTION,
        questions: int = 1) -> bytes:
    return HEADER.pack(7, flags, questions, *(counts or (len(records), 0, 0))) + question + b"".join(records)


LONG = b"".join(b"\x3f" + bytes([97 + i]) * 63 for i in range(3))
BAD = {
    "too short": (b"\0\7\x81\x80", "4 bytes are no message"),
    "too long": (raw(bytes(65536)), "no message"),
    "a query": (raw(flags=0x0100), "no reply to a standard query"),
    "another opcode": (raw(flags=0xA180), "no reply to a standard query"),
    "no question": (raw(question=b"", questions=0), "another question"),
    "two questions": (raw(question=QUESTION * 2, questions=2), "another question"),
    "another name": (raw(question=b"\x03fop\x07example\x00\0\1\0\1"), "another question"),
    "another case": (raw(question=b"\x03foO\x07example\x00\0\1\0\1"), "another question"),
    "another type": (raw(question=NAME + b"\0\2\0\1"), "another question"),
    "another class": (raw(question=NAME + b"\0\1\0\3"), "another question"),
    "fewer records": (raw(POINTER + A4, counts=(2, 0, 0)), "cut short"),
    "cut in a record": (raw(POINTER + A4)[:-1], "cut short"),
    "cut in a header": (raw(POINTER + A4)[:-8], "cut short"),
    "cut in a name": (raw(b"\x05ab"), "cut short"),
    "too many records": (raw(counts=(MAX_RECORDS, 1, 0)), "4097 records"),
    "most records": (raw(counts=(65535, 65535, 65535)), "196605 records"),
    "pointer to itself": (raw(b"\xc0\x1d" + A4), "does not point backwards"),
    "pointer forwards": (raw(b"\xc0\x30" + A4), "does not point backwards"),
    "pointer into the header": (raw(b"\xc0\x04" + A4), "does not point backwards"),
    "pointers in a circle": (raw(b"\x01a\xc0\x1d" + A4), "does not point backwards"),
    "label of 64 bytes": (raw(b"\x40" + bytes(64) + b"\0" + A4), "a label begins with 0x40"),
    "extended label": (raw(b"\x80" + b"\0" + A4), "a label begins with 0x80"),
    "name of 255 bytes": (raw(LONG + b"\x3d" + b"d" * 61 + b"\0" + A4), None),
    "name of 256 bytes": (raw(LONG + b"\x3e" + b"d" * 62 + b"\0" + A4), "longer than 255"),
    "name too long by a pointer": (raw(LONG + b"\x3e" + b"d" * 62 + POINTER + A4), "longer than 255"),
    "name of 300 bytes": (raw(LONG + LONG + b"\0" + A4), "longer than 255"),
    "address of 5 bytes": (raw(POINTER + b"\0\1\0\1\0\0\0\0\0\5\1\2\3\4\5"), "type 1 with 5 bytes of data, 4 expected"),
    "IPv6 address of 4 bytes": (raw(POINTER + b"\0\x1c\0\1\0\0\0\0\0\4\1\2\3\4"), "16 expected"),
    "CNAME with more": (raw(POINTER + b"\0\5\0\1\0\0\0\0\0\3\xc0\x0c\0"), "does not end with its name"),
    "CNAME beyond its data": (raw(POINTER + b"\0\5\0\1\0\0\0\0\0\1\xc0\x0c"), "does not end with its name"),
    "CNAME to itself": (raw(POINTER + b"\0\5\0\1\0\0\0\0\0\2\xc0\x29"), "does not point backwards"),
    "short SOA": (raw(POINTER + b"\0\6\0\1\0\0\0\0\0\4\xc0\x0c\xc0\x0c"), "type 6 does not end with its name"),
    "NAPTR with a string too long": (raw(POINTER + b"\0\x23\0\1\0\0\0\0\0\7\0\0\0\0\xff\0\0"), "cut short"),
    "OPT as an answer": (raw(b"\0\0\x29\4\xd0\0\0\0\0\0\0"), "an OPT record where none may be"),
    "OPT twice": (raw(*[b"\0\0\x29\4\xd0\0\0\0\0\0\0"] * 2, counts=(0, 0, 2)), "an OPT record where none may be"),
    "OPT with a name": (raw(POINTER + b"\0\x29\4\xd0\0\0\0\0\0\0", counts=(0, 0, 1)), "an OPT record where none"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case: str) -> None:
    message, why = BAD[case]
    if why is None:
        parse_reply(message, QUESTION)
        return
    with pytest.raises(BadReply, match=why):
        parse_reply(message, QUESTION)


def test_refusals_may_come_without_a_question() -> None:
    assert parse_reply(raw(flags=0x8181, question=b"", questions=0), QUESTION).rcode == 1
    for flags in (0x8180, 0x8183):
        with pytest.raises(BadReply):
            parse_reply(raw(flags=flags, question=b"", questions=0), QUESTION)


def test_bytes_behind_the_last_record_are_dropped() -> None:
    assert parse_reply(raw(POINTER + A4) + b"junk", QUESTION).body == POINTER + A4


def test_opaque_data_is_not_looked_at() -> None:
    """Of unknown types, and of known ones in another class (RFC 3597)."""
    for head in (b"\xff\x01\0\1", b"\0\1\0\3", b"\0\5\0\xfe"):
        record = POINTER + head + b"\0\0\0\x09\0\5\xc0\xff\xff\xff\xff"
        assert parse_reply(raw(record), QUESTION).body == record


TTLS = {
    "addresses": (["foo.example. 60 IN A 10.1.1.1 10.1.1.2"], {}, 60),
    "the least counts": (["foo.example. 60 IN CNAME bar.example.", "bar.example. 7 IN A 10.1.1.1"], {}, 7),
    "authority counts": (["foo.example. 60 IN A 10.1.1.1"], {"authority": ("example. 5 IN NS ns.example.",)}, 5),
    "additional counts": (["foo.example. 60 IN A 10.1.1.1"], {"additional": ("ns.example. 4 IN A 10.1.1.9",)}, 4),
    "0": (["foo.example. 0 IN A 10.1.1.1"], {}, 0),
    "NXDOMAIN: SOA's minimum": ([], {"authority": (SOA,), "rcode": "NXDOMAIN"}, 60),
    "NXDOMAIN: SOA's TTL": ([], {"authority": (SOA.replace(" 300 ", " 30 "),), "rcode": "NXDOMAIN"}, 30),
    "no data": ([], {"authority": (SOA,)}, 60),
    "CNAME to nothing": (["foo.example. 10 IN CNAME bar.example."], {"authority": (SOA,)}, 10),
    "CNAME to nothing, longer": (["foo.example. 100 IN CNAME bar.example."], {"authority": (SOA,)}, 60),
    "NXDOMAIN without SOA": ([], {"rcode": "NXDOMAIN"}, 0),
    "no data without SOA": ([], {}, 0),
    "referral": ([], {"authority": ("example. 300 IN NS ns.example.",)}, 0),
    "SOA as an additional record": ([], {"additional": (SOA,)}, 0),
    "SERVFAIL": (["foo.example. 60 IN A 10.1.1.1"], {"rcode": "SERVFAIL"}, 0),
    "REFUSED": ([], {"rcode": "REFUSED", "authority": (SOA,)}, 0),
    "truncated": (["foo.example. 60 IN A 10.1.1.1"], {"tc": True}, 0),
    "RRSIG is no answer": (["foo.example. 60 IN TXT hello"], {}, 0),
}


@pytest.mark.parametrize("case", TTLS)
def test_for_how_long(case: str) -> None:
    records, more, ttl = TTLS[case]
    assert reply_of(*records, **more).ttl == ttl


def test_types_that_are_answered_by_themselves() -> None:
    assert reply_of("foo.example. 60 IN CNAME bar.example.", kind="CNAME").ttl == 60
    assert reply_of("foo.example. 60 IN A 10.1.1.1", kind="ANY").ttl == 60
    assert reply_of(SOA, kind="SOA", name="example.").ttl == 300
    assert not reply_of(SOA, kind="SOA", name="example.").negative


def test_ttls_with_the_highest_bit_are_zero() -> None:
    """RFC 2181 section 8."""
    reply = parse_reply(raw(POINTER + b"\0\1\0\1\x80\0\0\x3c\0\4\x0a\1\1\1"), QUESTION)
    assert reply.ttl == 0
    assert reply.body == POINTER + b"\0\1\0\1\0\0\0\0\0\4\x0a\1\1\1"


def test_a_negative_answer_shows_its_own_ttl() -> None:
    """RFC 2308 section 5: else clients would keep it for longer than we do."""
    reply = reply_of(rcode="NXDOMAIN", authority=(SOA,))
    message = dns.message.from_wire(reply.render(query_of("foo.example."), 20))
    assert message.authority[0].ttl == 40
    assert reply.negative


# --- what clients get -------------------------------------------------------------------------------------------------


def test_id_question_and_flags_are_the_clients() -> None:
    reply = reply_of("foo.example. 60 IN CNAME bar.example.", "bar.example. 50 IN A 10.1.1.1", aa=True)
    query = query_of("fOO.exAMPle.", number=4711, cd=True)
    message = dns.message.from_wire(reply.render(query))
    assert message.id == 4711
    assert message.question[0].name.to_text() == "fOO.exAMPle."
    assert message.answer[0].name.to_text() == "fOO.exAMPle."
    assert message.answer[1].name.to_text().lower() == "bar.example."
    assert dns.flags.to_text(message.flags) == "QR RD RA CD"
    assert message.edns == -1
    without = dns.message.from_wire(reply.render(query_of("foo.example.", rd=False), hidden=0))
    assert dns.flags.to_text(without.flags) == "QR AA RA"


@pytest.mark.parametrize(("asked", "shown"), [({}, False), ({"ad": True}, True), ({"do": True}, True)])
def test_authenticated_is_for_those_who_understand_it(asked: dict[str, bool], shown: bool) -> None:
    reply = Reply(AD, 0)
    message = dns.message.from_wire(reply.render(query_of("foo.example.", **asked)))
    assert bool(message.flags & dns.flags.AD) == shown


def test_ttls_get_older() -> None:
    reply = reply_of("foo.example. 60 IN CNAME bar.example.", "bar.example. 5 IN A 10.1.1.1 10.1.1.2")
    query = query_of("foo.example.")
    for age, ttls in ((0, [60, 5]), (3, [57, 2]), (5, [55, 0]), (50, [10, 0]), (100, [0, 0])):
        assert [rrset.ttl for rrset in dns.message.from_wire(reply.render(query, age)).answer] == ttls
    assert [rrset.ttl for rrset in dns.message.from_wire(reply.render(query, ttl=30)).answer] == [30, 5]
    assert reply.render(query) == reply.render(query)


def test_opt_is_ours_and_only_for_edns_clients() -> None:
    reply = reply_of("foo.example. 60 IN A 10.1.1.1")
    assert b"\0\0\x29" not in reply.body
    message = dns.message.from_wire(reply.render(query_of("foo.example.", edns=1400)))
    assert (message.edns, message.payload, message.ednsflags, message.options) == (0, 4096, 0, ())
    message = dns.message.from_wire(reply.render(query_of("foo.example.", do=True)))
    assert message.ednsflags == dns.flags.DO


def test_upper_bits_of_the_code() -> None:
    query = dns.message.from_wire(query_packet("foo.example.", edns=1232))
    assert parse_reply(response(query, rcode="BADVERS"), QUESTION).rcode == 16


MANY = [f"10.1.{i // 250}.{i % 250}" for i in range(600)]


@pytest.mark.parametrize(("more", "limit", "kept"), [
    ({}, 512, (512 - 29) // 16), ({"edns": 512}, 512, (512 - 29 - 11) // 16), ({"edns": 1232}, 1232, 74),
    ({"edns": 65535}, 4096, 253), ({"edns": 100}, 512, 29), ({"tcp": True}, 65535, 600),
])
def test_what_does_not_fit_is_left_out_and_told(more: dict[str, int], limit: int, kept: int) -> None:
    reply = reply_of(f"foo.example. 60 IN A {' '.join(MANY)}")
    query = query_of("foo.example.", **more)
    wire = reply.render(query)
    message = dns.message.from_wire(wire)
    assert len(wire) <= limit == query.limit
    assert limit - len(wire) < 16 or kept == 600
    assert wire[12 + len(query.question):].startswith(reply.body[:16 * kept])
    assert len(message.answer[0]) == kept
    assert bool(message.flags & dns.flags.TC) == (kept < 600)
    assert (message.edns == 0) == ("edns" in more)


def test_what_need_not_be_there_is_left_out_silently() -> None:
    """RFC 2181 section 9."""
    additional = tuple(f"n{i}.example. 60 IN A 10.2.0.{i}" for i in range(40))
    authority = tuple(f"example. 60 IN NS n{i}.example." for i in range(40))
    reply = reply_of("foo.example. 60 IN A 10.1.1.1", authority=authority[:3], additional=additional)
    message = dns.message.from_wire(reply.render(query_of("foo.example.")))
    assert not message.flags & dns.flags.TC
    assert len(message.answer) == 1
    assert len(message.authority[0]) == 3
    assert 0 < len(message.additional) < 40
    reply = reply_of("foo.example. 60 IN A 10.1.1.1", authority=authority, additional=additional)
    message = dns.message.from_wire(reply.render(query_of("foo.example.")))
    assert not message.flags & dns.flags.TC
    assert 0 < len(message.authority[0]) < 40
    assert not message.additional
    # Without an answer the authority section is what was asked for.
    message = dns.message.from_wire(reply_of(authority=authority).render(query_of("foo.example.")))
    assert message.flags & dns.flags.TC


def test_one_record_larger_than_the_limit() -> None:
    text = " ".join(f'"{"x" * 250}"' for _ in range(4))
    reply = reply_of(f"foo.example. 60 IN TXT {text}", kind="TXT")
    wire = reply.render(query_of("foo.example.", "TXT"))
    message = dns.message.from_wire(wire)
    assert len(wire) == 12 + 17
    assert message.flags & dns.flags.TC
    assert not message.answer


def test_flags_of_a_truncated_reply_stay() -> None:
    assert reply_of("foo.example. 60 IN A 10.1.1.1", tc=True, aa=True).flags & (TC | AA) == TC | AA


# --- dnspython's opinion ----------------------------------------------------------------------------------------------


def records_of(section: list[dns.rrset.RRset]) -> list[str]:
    return sorted(line for rrset in section for line in rrset.to_text().split("\n"))


def same(one: dns.message.Message, other: dns.message.Message) -> None:
    """Equal but for OPT, which is between two hops."""
    assert one.question == other.question
    assert one.rcode() == other.rcode()
    for mine, theirs in zip(one.sections[1:], other.sections[1:], strict=True):
        assert records_of(mine) == records_of(theirs)


@pytest.mark.parametrize("name", CAPTURES)
def test_real_replies_are_relayed_as_they_are(name: str) -> None:
    wire = CAPTURES[name]
    theirs = dns.message.from_wire(wire)
    question = theirs.question[0]
    more = {"edns": 4096} if theirs.edns >= 0 else {}
    query = query_of(question.name.to_text(), dns.rdatatype.to_text(question.rdtype), **more)
    reply = parse_reply(wire, query.question)
    mine = dns.message.from_wire(reply.render(query, hidden=0))
    same(mine, theirs)
    assert mine.edns == theirs.edns
    least = min((rrset.ttl for section in theirs.sections[1:] for rrset in section), default=0)
    soa = [rrset[0].minimum for rrset in theirs.authority if rrset.rdtype == 6]
    assert reply.ttl == (least if theirs.answer else min([least, *soa]) if soa else 0)


def test_opt_need_not_be_the_last_record() -> None:
    """What follows it moves, so its names must not point to what moved."""
    query = dns.message.from_wire(query_packet("foo.example.", edns=1232))
    records = ("ns.example. 50 IN A 10.2.0.1", "mail.ns.example. 40 IN MX 10 mx.ns.example.",
               "mx.ns.example. 30 IN SOA a.ns.example. b.mx.ns.example. 1 2 3 4 5")
    message = dns.message.make_response(query)
    message.use_edns(-1)
    message.answer.extend(rrsets("foo.example. 60 IN CNAME www.example."))
    message.additional.extend(rrsets(*records))
    wire = message.to_wire()
    plain = parse_reply(wire, QUESTION)
    behind = 29 + plain.ends[0]
    opt = b"\0\0\x29\x10\0\0\0\0\0\0\0"
    for first in range(4):
        # Put it before the n-th additional record: pointers to names behind it move as well.
        cut = 29 + plain.ends[first]
        moved = bytearray(wire[:cut] + opt + wire[cut:])
        moved[10:12] = (4).to_bytes(2, "big")
        for at in range(len(moved) - 1):
            target = (moved[at] & 0x3F) << 8 | moved[at + 1]
            if moved[at] & 0xC0 == 0xC0 and at >= cut and target >= cut:
                moved[at:at + 2] = (0xC000 | target + len(opt)).to_bytes(2, "big")
        same(dns.message.from_wire(bytes(moved)), message)
        mine = parse_reply(bytes(moved), QUESTION)
        same(dns.message.from_wire(mine.render(query_of("foo.example."))), message)
        assert mine.counts == (1, 0, 3)
        assert mine.ttl == plain.ttl
        ages = dns.message.from_wire(mine.render(query_of("foo.example."), 30))
        assert [rrset.ttl for rrset in ages.additional] == [20, 10, 0]
    assert behind < len(wire)
