"""Replies that are damaged or made to hurt: refused or relayed whole; never a crash, a loop, more than is allowed."""

from __future__ import annotations

import random

import dns.exception
import dns.message
import dns.name
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dns.message import HEADER, TC
from proxy.dns.query import Query
from proxy.dns.reply import BadReply, Reply, parse_reply
from tests.unit.dns.dns_captures import CAPTURES
from tests.unit.dns.test_dns_reply import same

QUESTION = b"\x03foo\x07example\x00\0\1\0\1"
LIMITS = ({}, {"edns": 512}, {"edns": 1232, "dnssec_ok": True}, {"edns": 4096}, {"tcp": True})


def check(message: bytes, question: bytes, name: bytes = b"\x03foo\x07example\x00") -> Reply | None:
    """Refused, or given to clients of all kinds within their limits, so that dnspython reads it."""
    try:
        reply = parse_reply(message, question)
    except BadReply:
        return None
    for more in LIMITS:
        query = Query(1, 0x0100, name, 1, 1, **more)
        query.question = question
        for age in (0, 1, 1 << 31):
            wire = reply.render(query, age)
            assert len(wire) <= query.limit
            relayed = dns.message.from_wire(wire, ignore_trailing=False)
            assert len(relayed.question) == 1
            counts = HEADER.unpack_from(wire)[3:]
            assert all(mine <= theirs for mine, theirs in zip(counts[:2], reply.counts[:2], strict=True))
            assert not counts[2] or counts[2] <= reply.counts[2] + 1
    assert len(reply.ends) == len(reply.places) == len(reply.ttls) == sum(reply.counts)
    assert all(ttl < 1 << 31 for ttl in reply.ttls)
    assert list(reply.ends) == sorted(set(reply.ends))
    assert not reply.ends or reply.ends[-1] == len(reply.body)
    return reply


def question_of(wire: bytes) -> bytes:
    end = wire.index(0, 12) + 5
    return wire[12:end]


@pytest.mark.parametrize("name", CAPTURES)
def test_every_byte_changed_every_length_cut(name: str) -> None:
    wire = CAPTURES[name]
    question = question_of(wire)
    known = check(wire, question, question[:-4])
    assert known is not None
    for cut in range(len(wire)):
        assert check(wire[:cut], question, question[:-4]) is None
    dice = random.Random(name)
    for at in range(2, len(wire)):
        for value in {0, 0xC0, 0xFF, wire[at] ^ 0x01, wire[at] ^ 0x80, dice.randrange(256)} - {wire[at]}:
            damaged = bytearray(wire)
            damaged[at] = value
            if 12 <= at < 12 + len(question):
                with pytest.raises(BadReply):
                    parse_reply(bytes(damaged), question)
            else:
                careful(bytes(damaged), question)


def careful(message: bytes, question: bytes) -> None:
    """What we take and dnspython does not, is at most the data of a type that only a client takes apart."""
    try:
        reply = parse_reply(message, question)
    except BadReply:
        return
    for limit in (512, 4096):
        query = Query(1, 0x0100, question[:-4], 1, 1)
        query.question, query.limit = question, limit
        assert len(reply.render(query, 5)) <= limit


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_captures_with_pieces_moved(data: st.DataObject) -> None:
    wire = bytearray(data.draw(st.sampled_from(list(CAPTURES.values()))))
    question = question_of(bytes(wire))
    begin = 12 + len(question)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(begin, len(wire)))
        piece = data.draw(st.binary(max_size=12) | st.sampled_from(
            [b"\xc0\x0c", b"\xc0" + bytes([begin]), b"\0\0\x29\4\xd0\0\0\0\0\0\0", bytes(wire[begin:begin + 16])]))
        wire[at:at + data.draw(st.integers(0, 12))] = piece
    wire[2] |= 0x80
    wire[6:12] = data.draw(st.sampled_from([bytes(wire[6:12]), b"\0\2\0\0\0\1", b"\0\0\0\1\0\1", b"\0\1\0\1\0\3"]))
    careful(bytes(wire), question)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_arbitrary_records(body: bytes, answers: int, authority: int, additional: int) -> None:
    careful(HEADER.pack(7, 0x8180, 1, answers, authority, additional) + QUESTION + body, QUESTION)


LABEL = st.binary(min_size=1, max_size=63)
NAME = st.lists(LABEL, max_size=3).map(lambda labels: b"".join(bytes([len(x)]) + x for x in labels) + b"\0")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(NAME, st.sampled_from([1, 2, 5, 6, 15, 16, 28, 33, 65, 257, 65280]),
                          st.integers(0, (1 << 31) - 1), NAME, st.binary(max_size=40)), max_size=8),
       st.integers(0, 8), st.booleans())
def test_well_formed_replies_are_relayed_whole(records: list[tuple[bytes, int, int, bytes, bytes]], answers: int,
                                               opt: bool) -> None:
    out = []
    for owner, kind, ttl, name, data in records:
        body = {1: data[:4].ljust(4, b"x"), 28: data[:16].ljust(16, b"x"), 2: name, 5: name, 15: b"\0\1" + name,
                6: name + b"\1m\0" + bytes(20), 33: bytes(6) + name, 16: bytes([len(data)]) + data,
                65: b"\0\1" + name, 257: b"\0\5issue" + data}.get(kind, data)
        out.append(owner + kind.to_bytes(2, "big") + b"\0\1" + ttl.to_bytes(4, "big") +
                   len(body).to_bytes(2, "big") + body)
    answers = min(answers, len(out))
    tail = [b"\0\0\x29\x10\0\0\0\0\0\0\0"] if opt else []
    wire = HEADER.pack(7, 0x8180, 1, answers, 0, len(out) - answers + len(tail)) + QUESTION + b"".join(out + tail)
    reply = parse_reply(wire, QUESTION)
    query = Query(7, 0x0100, QUESTION[:-4], 1, 1, tcp=True)
    if not any(kind == 6 for _, kind, *_ in records):
        same(dns.message.from_wire(reply.render(query)), dns.message.from_wire(wire))
    assert reply.counts == (answers, 0, len(out) - answers)


# --- bombs ------------------------------------------------------------------------------------------------------------


def steps(message: bytes, question: bytes) -> int:
    """How often a byte of the message is looked at."""
    count = 0

    class Counted(bytes):
        def __getitem__(self, at):  # type: ignore[no-untyped-def, override]
            nonlocal count
            count += 1
            return bytes.__getitem__(self, at)

    try:
        parse_reply(Counted(message), question)
    except BadReply:
        pass
    return count


def test_pointers_cannot_multiply_work() -> None:
    """A chain of 127 labels that thousands of names point to, at all its places: each place is walked once."""
    chain = b"".join(b"\1" + bytes([97 + i % 26]) for i in range(126)) + b"\0"
    data = b"\0\1" + chain  # an MX record, so that pointers into it are meant to be
    first = b"\xc0\x0c\0\x0f\0\1\0\0\0\1" + len(data).to_bytes(2, "big") + data
    begin = 12 + len(QUESTION) + 14
    names = [(0xC000 | begin + 2 * (i % 126)).to_bytes(2, "big") for i in range(4000)]
    records = [first] + [name + b"\0\1\0\1\0\0\0\1\0\4abcd" for name in names]
    message = HEADER.pack(7, 0x8180, 1, len(records), 0, 0) + QUESTION + b"".join(records)
    assert len(parse_reply(message, QUESTION).ends) == 4001
    assert steps(message, QUESTION) < 40_000


def test_pointers_into_opaque_data() -> None:
    """Each pointer to another place of what is no name yet: still once for each byte."""
    data = b"\1a" * 7000 + b"\0"
    first = b"\xc0\x0c\xff\1\0\1\0\0\0\1" + len(data).to_bytes(2, "big") + data
    end = 12 + len(QUESTION) + len(first) - 1
    names = [(0xC000 | end - 2 * (1 + i % 120)).to_bytes(2, "big") for i in range(3000)]
    records = [first] + [name + b"\0\1\0\1\0\0\0\1\0\4abcd" for name in names]
    message = HEADER.pack(7, 0x8180, 1, len(records), 0, 0) + QUESTION + b"".join(records)
    assert len(parse_reply(message, QUESTION).ends) == 3001
    assert steps(message, QUESTION) < 30_000


def test_pointers_to_pointers() -> None:
    """A ladder of thousands of pointers, each to the one before, is walked once; and no client gets a long one."""
    ladder = b"\xc0\x0c" + b"".join((0xC000 | 12 + len(QUESTION) + 12 + 2 * i).to_bytes(2, "big") for i in range(7000))
    first = b"\xc0\x0c\xff\1\0\1\0\0\0\1" + len(ladder).to_bytes(2, "big") + ladder
    top = 12 + len(QUESTION) + 12 + len(ladder) - 2
    for place in (top, top - 2 * (7000 - 124)):
        records = [first] + [(0xC000 | place).to_bytes(2, "big") + b"\0\1\0\1\0\0\0\1\0\4abcd"] * 3000
        message = HEADER.pack(7, 0x8180, 1, len(records), 0, 0) + QUESTION + b"".join(records)
        assert steps(message, QUESTION) < 50_000
        if place == top:
            with pytest.raises(BadReply, match="a name of 7002 pointers, at most 126 expected"):
                parse_reply(message, QUESTION)
        else:
            parse_reply(message, QUESTION)


def test_what_is_expanded_stays_small() -> None:
    """Records behind an OPT record lose their pointers; 3000 names of 255 bytes would be 750 kB."""
    long = b"".join(b"\x3f" + bytes([97 + i]) * 63 for i in range(3)) + b"\x3d" + b"d" * 61 + b"\0"
    first = long + b"\0\1\0\1\0\0\0\1\0\4abcd"
    at = 12 + len(QUESTION)
    records = [(0xC000 | at).to_bytes(2, "big") + b"\0\1\0\1\0\0\0\1\0\4abcd"] * 3000
    message = (HEADER.pack(7, 0x8180, 1, 1, 0, 3001) + QUESTION + first + b"\0\0\x29\x10\0\0\0\0\0\0\0" +
               b"".join(records))
    reply = parse_reply(message, QUESTION)
    assert len(reply.body) <= 65535
    query = Query(7, 0x0100, QUESTION[:-4], 1, 1, tcp=True, edns=4096)
    wire = reply.render(query)
    assert len(wire) <= 65535
    assert not HEADER.unpack_from(wire)[1] & TC
    dns.message.from_wire(wire)
