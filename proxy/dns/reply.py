"""A server's reply: checked whole before anything of it is used, kept in a form that any client can be given.

Kept are the records as the server sent them (a name of theirs may point to the question, which therefore stays at its
place and carries the case of whoever asked), without the OPT record, which is between two hops only (RFC 6891 6.1.1).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from struct import Struct, error
from typing import TYPE_CHECKING

from proxy.dns.message import (
    AA,
    AAAA,
    AD,
    ANY,
    CD,
    CLASS_IN,
    CNAME,
    DNAME,
    HEADER,
    MAX_MESSAGE,
    MAX_NAME,
    MAX_POINTERS,
    MX,
    NAPTR,
    NOERROR,
    NS,
    NXDOMAIN,
    OPCODE_MASK,
    OPT,
    PTR,
    QR,
    RA,
    RCODE_MASK,
    RD,
    SOA,
    SRV,
    TC,
    A,
    MessageError,
    opt_record,
    rcode_text,
    read_name,
)

if TYPE_CHECKING:
    from proxy.dns.query import Query

MAX_RECORDS = 4096
"""A message of 64 KiB has room for 5957 of the smallest records; 4096 addresses of one name are no more than that."""

_RECORD = Struct(">HHIH")
_TTL = Struct(">I")
_SIZES = {A: 4, AAAA: 16}
_NAMES = {
    NS: (0, 1, 0), 3: (0, 1, 0), 4: (0, 1, 0), CNAME: (0, 1, 0), SOA: (0, 2, 20), 7: (0, 1, 0), 8: (0, 1, 0),
    9: (0, 1, 0), PTR: (0, 1, 0), 14: (0, 2, 0), MX: (2, 1, 0), 17: (0, 2, 0), 18: (2, 1, 0), 21: (2, 1, 0),
    26: (2, 2, 0), SRV: (6, 1, 0), 36: (2, 1, 0), DNAME: (0, 1, 0),
}
"""Types with names in their data that may be compressed (RFC 3597 section 4): bytes before, names, bytes behind."""


class BadReply(ValueError):
    """Bytes that no server should send; the text says what is wrong."""


class Reply:
    """One checked reply.

    ``flags``: AA, TC, RA and AD as received. ``rcode`` includes the upper bits of an OPT record. ``body``: the records.
    ``counts``: of answer, authority and additional section. ``ends``: where each record ends in ``body``, ``places``:
    where its TTL stands there, ``ttls``: what it is. ``ttl``: seconds for which the whole may be cached, 0: not at all;
    from the SOA record when ``negative`` (no record of the type that was asked for; RFC 2308).
    """

    __slots__ = ("body", "counts", "ends", "flags", "negative", "places", "rcode", "ttl", "ttls")

    def __init__(self, flags: int, rcode: int, body: bytes = b"", counts: tuple[int, int, int] = (0, 0, 0),
                 ends: Sequence[int] = (), places: Sequence[int] = (), ttls: Sequence[int] = (), ttl: int = 0,
                 negative: bool = False) -> None:
        self.flags = flags
        self.rcode = rcode
        self.body = body
        self.counts = counts
        self.ends = ends
        self.places = places
        self.ttls = ttls
        self.ttl = ttl
        self.negative = negative

    def __repr__(self) -> str:
        return f"<Reply {rcode_text(self.rcode)} records={self.counts} ttl={self.ttl}>"

    @property
    def size(self) -> int:
        """Roughly the bytes of memory."""
        return 700 + len(self.body) + 8 * len(self.ends)

    def render(self, query: Query, age: int = 0, *, hidden: int = AA, ttl: int = -1) -> bytes:
        """The message for a client: its id and question, TTLs ``age`` seconds lower, within its limit.

        ``hidden``: flags that are not shown; AA, because only a server's own words are authoritative. ``ttl``: instead
        of ageing, all TTLs are at most this (stale answers). Whole records only. TC tells that some of the answer is
        missing (without an answer: of the authority section); the rest may be missing silently (RFC 2181 section 9).
        """
        body: bytes | bytearray = self.body
        if age > 0 or ttl >= 0:
            body = bytearray(body)
            put = _TTL.pack_into
            if ttl >= 0:
                for at, seconds in zip(self.places, self.ttls, strict=True):
                    put(body, at, min(seconds, ttl))
            else:
                for at, seconds in zip(self.places, self.ttls, strict=True):
                    put(body, at, seconds - age if seconds > age else 0)
        asked = query.flags
        # RFC 6840 5.7 and 5.8: AD is for those who say that they understand it.
        flags = self.flags & ~hidden if query.dnssec_ok or asked & AD else self.flags & ~(hidden | AD)
        opt = b"" if query.edns is None else opt_record(NOERROR, query.dnssec_ok)
        answers, authority, additional = self.counts
        room = query.limit - 12 - len(query.question) - len(opt)
        if len(body) > room:
            kept = bisect_right(self.ends, room)
            if kept < (answers or authority):
                flags |= TC
            body = body[:self.ends[kept - 1] if kept else 0]
            answers = min(answers, kept)
            authority = min(authority, kept - answers)
            additional = kept - answers - authority
        head = HEADER.pack(query.id, QR | flags | asked & (RD | CD) | self.rcode & RCODE_MASK, 1, answers, authority,
                           additional + 1 if opt else additional)
        return b"".join((head, query.question, body, opt))


def parse_reply(message: bytes, question: bytes) -> Reply:
    """Check a reply and take it apart; its id is not looked at. Raises BadReply.

    ``question`` are the bytes that were asked (name, type, class), which must stand there exactly. A refusal may come
    without its question (old servers do that to OPT records). Bytes behind the last record are dropped.
    """
    if not 12 <= len(message) <= MAX_MESSAGE:
        raise BadReply(f"{len(message)} bytes are no message")
    _, bits, questions, answers, authority, additional = HEADER.unpack_from(message)
    if not bits & QR or bits & OPCODE_MASK:
        raise BadReply("it is no reply to a standard query")
    flags = bits & (AA | TC | RA | AD)
    rcode = bits & RCODE_MASK
    start = 12 + len(question)
    if questions == 0 and rcode not in (NOERROR, NXDOMAIN) and not (answers or authority):
        return Reply(flags & ~TC, rcode)
    if questions != 1 or message[12:start] != question:
        raise BadReply("it repeats another question")
    if answers + authority + additional > MAX_RECORDS:
        raise BadReply(f"{answers + authority + additional} records, at most {MAX_RECORDS} expected")
    try:
        return _Walk(message, start, question, flags, rcode, (answers, authority, additional)).reply()
    except (IndexError, error):
        raise BadReply("it is cut short") from None


class _Walk:
    """One pass over the records."""

    __slots__ = ("at", "begin", "counts", "flags", "known", "message", "patches", "qclass", "qtype", "rcode")

    def __init__(self, message: bytes, begin: int, question: bytes, flags: int, rcode: int,
                 counts: tuple[int, int, int]) -> None:
        self.message = message
        self.at = self.begin = begin
        self.flags = flags
        self.rcode = rcode
        self.counts = counts
        self.qtype = int.from_bytes(question[-4:-2], "big")
        self.qclass = int.from_bytes(question[-2:], "big")
        # Where a label or a pointer of a checked name stands -> bytes of the name from there, and 256 for each pointer.
        # So each byte of the message is looked at once, whatever the pointers say.
        self.known: dict[int, int] = {}
        self.patches: list[tuple[int, int]] = []
        self.name(12)

    def reply(self) -> Reply:
        message, begin = self.message, self.begin
        answers, authority, additional = self.counts
        # Arrays, because thousands of replies are kept: 8 bytes a record instead of 170.
        ends, places, ttls = array("H"), array("H"), array("I")
        lowest = 0x7FFFFFFF
        matched = False
        negative_ttl = -1
        opt: tuple[int, int] | None = None
        behind: list[tuple[int, int, int]] = []
        for index in range(answers + authority + additional):
            start = self.at
            at = self.name(start)
            kind, rclass, ttl, size = _RECORD.unpack_from(message, at)
            data = at + 10
            end = data + size
            if end > len(message):
                raise BadReply("it is cut short")
            self.at = end
            if kind == OPT:
                if opt is not None or message[start] or index < answers + authority:
                    raise BadReply("an OPT record where none may be")
                opt = start, end
                self.rcode |= ttl >> 24 << 4
                continue
            if rclass == CLASS_IN:
                self.data(kind, data, end)
            if ttl & 0x80000000:  # RFC 2181 section 8
                ttl = 0
                self.patches.append((at + 4, 0))
            if kind == SOA and answers <= index < answers + authority and negative_ttl < 0 and size >= 20:
                negative_ttl = min(ttl, _TTL.unpack_from(message, end - 4)[0] & 0x7FFFFFFF)
                if not matched and negative_ttl < ttl:  # RFC 2308 section 5
                    ttl = negative_ttl
                    self.patches.append((at + 4, ttl))
            if index < answers and (kind == self.qtype or self.qtype == ANY):
                matched = True
            lowest = min(lowest, ttl)
            if opt is None:
                ends.append(end - begin)
                places.append(at + 4 - begin)
                ttls.append(ttl)
            else:
                behind.append((start, at, end))
        body = self.cut(opt)
        for start, at, end in behind:
            self.move(start, at, end, body, ends, places, ttls)
        additional = len(ends) - answers - authority
        return Reply(self.flags, self.rcode, bytes(body), (answers, authority, additional), ends, places, ttls,
                     self.lifetime(lowest, matched, negative_ttl), not matched)

    def lifetime(self, lowest: int, matched: bool, negative_ttl: int) -> int:
        """Seconds for the cache."""
        if self.rcode not in (NOERROR, NXDOMAIN) or self.flags & TC or self.qclass != CLASS_IN or not self.counts[0] + \
                self.counts[1]:
            return 0
        if matched and self.rcode == NOERROR:
            return lowest
        # Without a SOA record nobody says for how long the answer holds (RFC 2308 section 5); it may be a referral.
        return max(0, min(lowest, negative_ttl))

    def cut(self, opt: tuple[int, int] | None) -> bytearray:
        """The records up to the OPT record, with corrected TTLs."""
        body = bytearray(self.message[self.begin:self.at if opt is None else opt[0]])
        for place, ttl in self.patches:
            if place - self.begin < len(body):
                _TTL.pack_into(body, place - self.begin, ttl)
        return body

    def move(self, start: int, at: int, end: int, body: bytearray, ends: array[int], places: array[int],
             ttls: array[int]) -> None:
        """Append a record that stood behind the OPT record; without pointers, as it gets to another place."""
        message = self.message
        kind, rclass, ttl, _ = _RECORD.unpack_from(message, at)
        data = message[at + 10:end]
        try:
            owner = read_name(message, start)[0]
            if rclass == CLASS_IN and kind in _NAMES:
                data = self.expanded(kind, at + 10)
        except MessageError as problem:
            raise BadReply(str(problem)) from None
        if len(body) + len(owner) + 10 + len(data) > 0xFFFF:
            return
        ttl = 0 if ttl & 0x80000000 else ttl
        places.append(len(body) + len(owner) + 4)
        ttls.append(ttl)
        body += owner + _RECORD.pack(kind, rclass, ttl, len(data)) + data
        ends.append(len(body))

    def expanded(self, kind: int, at: int) -> bytes:
        before, names, behind = _NAMES[kind]
        parts = [self.message[at:at + before]]
        at += before
        for _ in range(names):
            name, at = read_name(self.message, at)
            parts.append(name)
        parts.append(self.message[at:at + behind])
        return b"".join(parts)

    def data(self, kind: int, at: int, end: int) -> None:
        """Check the data of a type that clients take apart; others are opaque (RFC 3597)."""
        if (size := _SIZES.get(kind)) is not None:
            if end - at != size:
                raise BadReply(f"a record of type {kind} with {end - at} bytes of data, {size} expected")
        elif (shape := _NAMES.get(kind)) is not None:
            before, names, behind = shape
            at += before
            for _ in range(names):
                at = self.name(at)
            if at + behind != end:
                raise BadReply(f"data of a record of type {kind} does not end with its name")
        elif kind == NAPTR:
            at += 4
            for _ in range(3):
                at += 1 + self.message[at]
            if self.name(at) != end:
                raise BadReply("data of a NAPTR record does not end with its name")

    def name(self, at: int) -> int:
        """Check a name and return the offset behind it. Pointers must point backwards (RFC 1035 section 4.1.4)."""
        message, known = self.message, self.known
        places: list[tuple[int, int, int]] = []
        behind = -1
        lowest = at
        length = jumps = tail = 0
        while True:
            if behind >= 0 and at in known:
                tail = known[at] & 0xFF
                jumps += known[at] >> 8
                break
            size = message[at]
            if size >= 0xC0:
                target = (size & 0x3F) << 8 | message[at + 1]
                if behind < 0:
                    behind = at + 2
                    if not length and known.get(target, 0xFFFF) <= 0xFF and target < at:
                        return behind
                if not 12 <= target < lowest:
                    raise BadReply("a compression pointer does not point backwards")
                places.append((at, length, jumps))
                jumps += 1
                at = lowest = target
            elif size > 63:
                raise BadReply(f"a label begins with 0x{size:02x}")
            else:
                places.append((at, length, jumps))
                length += size + 1
                at += size + 1
                if not size:
                    break
                if length >= MAX_NAME:
                    raise BadReply(f"a name is longer than {MAX_NAME} bytes")
        length += tail
        if length > MAX_NAME:
            raise BadReply(f"a name is longer than {MAX_NAME} bytes")
        if jumps > MAX_POINTERS:
            raise BadReply(f"a name of {jumps} pointers, at most {MAX_POINTERS} expected")
        for place, before, jumped in places:
            known[place] = length - before | jumps - jumped << 8
        return at if behind < 0 else behind
