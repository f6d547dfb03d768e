"""A client's message: what it asks, and the reply at once to one that is no proper question."""

from __future__ import annotations

from proxy.dns.message import (
    AXFR,
    BADVERS,
    FORMERR,
    HEADER,
    IXFR,
    MAILA,
    MAILB,
    MAX_MESSAGE,
    MAX_NAME,
    NOTIMP,
    OPCODE_MASK,
    OPT,
    OUR_UDP,
    PLAIN_UDP,
    QR,
    TKEY,
    TSIG,
    MessageError,
    class_text,
    name_to_text,
    reply,
    skip_name,
    type_text,
)

MAX_ADDITIONAL = 4
"""Records behind the question. Clients send an OPT record, at most a signature (TSIG, SIG(0)) besides."""

NOT_ANSWERED = frozenset((OPT, TKEY, TSIG, IXFR, AXFR, MAILB, MAILA))
"""Types that are no question (RFC 6895 section 3.1) or ask for zone transfers, whose replies are several messages."""

Address = tuple[object, ...]
"""As socket.recvfrom gives it: (host, port) or (host, port, flow, scope)."""


class Query:
    """One question.

    ``flags`` are the header's 16 bits as received, ``name`` is in the client's case and ``key`` in lower case,
    ``question`` is name, type and class as sent. ``edns`` is the client's size of UDP messages, None without an OPT
    record. ``limit`` is the largest reply in bytes: 65535 over TCP; over UDP 512, or what EDNS allows, but at most
    OUR_UDP.
    """

    __slots__ = ("client", "dnssec_ok", "edns", "flags", "id", "key", "limit", "name", "qclass", "qtype", "question",
                 "tcp")

    def __init__(self, number: int, flags: int, name: bytes, qtype: int, qclass: int, *, edns: int | None = None,
                 dnssec_ok: bool = False, tcp: bool = False, client: Address = ()) -> None:
        self.id = number
        self.flags = flags
        self.name = name
        self.key = name.lower()
        self.qtype = qtype
        self.qclass = qclass
        self.question = name + qtype.to_bytes(2, "big") + qclass.to_bytes(2, "big") if name else b""
        self.edns = edns
        self.dnssec_ok = dnssec_ok
        self.tcp = tcp
        self.limit = MAX_MESSAGE if tcp else PLAIN_UDP if edns is None else min(max(PLAIN_UDP, edns), OUR_UDP)
        self.client = client

    def __repr__(self) -> str:
        return f"<Query {self.text} id={self.id} {'tcp' if self.tcp else 'udp'} limit={self.limit}>"

    @property
    def text(self) -> str:
        """``foo.bar. IN A``, for logs."""
        return f"{name_to_text(self.name)} {class_text(self.qclass)} {type_text(self.qtype)}"


def parse_query(packet: bytes, tcp: bool, client: Address) -> Query | bytes | None:
    """What a client asks; a ready reply (FORMERR, NOTIMP, BADVERS) to what is no question; None: no answer at all.

    Nothing is answered that is too short for a header or is itself a reply: two servers could keep each other busy.
    Never raises.
    """
    if len(packet) < 12:
        return None
    number, flags, questions, answers, authority, additional = HEADER.unpack_from(packet)
    if flags & QR:
        return None
    if flags & OPCODE_MASK:
        return _refuse(number, flags, NOTIMP, tcp, client)
    # RFC 9619: exactly one question. Records before it are part of no standard query.
    if questions != 1 or answers or authority or additional > MAX_ADDITIONAL:
        return _refuse(number, flags, FORMERR, tcp, client)
    try:
        name, at = _question_name(packet)
        qtype = int.from_bytes(packet[at:at + 2], "big")
        qclass = int.from_bytes(packet[at + 2:at + 4], "big")
        opt = _find_opt(packet, at + 4, additional) if additional else None
    except MessageError:
        return _refuse(number, flags, FORMERR, tcp, client)
    if opt is None:
        query = Query(number, flags, name, qtype, qclass, tcp=tcp, client=client)
    else:
        size, extended = opt
        query = Query(number, flags, name, qtype, qclass, edns=size, dnssec_ok=bool(extended & 0x8000), tcp=tcp,
                      client=client)
        if extended >> 16 & 0xFF:
            return reply(query, BADVERS)
    if qtype in NOT_ANSWERED or not qtype:
        return reply(query, FORMERR if qtype in (OPT, 0) else NOTIMP)
    return query


def _refuse(number: int, flags: int, rcode: int, tcp: bool, client: Address) -> bytes:
    return reply(Query(number, flags, b"", 0, 0, tcp=tcp, client=client), rcode)


def _question_name(packet: bytes) -> tuple[bytes, int]:
    """The question's name and the offset behind it. A pointer there could only point into the header."""
    at = 12
    size_of_packet = len(packet)
    while at < size_of_packet and (size := packet[at]):
        if size > 63:
            raise MessageError("the question's name has a pointer")
        at += 1 + size
    at += 1
    if at + 4 > size_of_packet or at - 12 > MAX_NAME:
        raise MessageError("the question is cut short, or its name too long")
    return packet[12:at], at


def _find_opt(packet: bytes, at: int, records: int) -> tuple[int, int] | None:
    """Size and extended flags of the OPT record among the additional ones, None without. Raises MessageError."""
    found = None
    for _ in range(records):
        start = at
        at = skip_name(packet, at)
        end = at + 10
        if end > len(packet):
            raise MessageError("a record is cut short")
        end += int.from_bytes(packet[at + 8:at + 10], "big")
        if end > len(packet):
            raise MessageError("a record is cut short")
        if packet[at:at + 2] == b"\0\x29":
            if found is not None or packet[start]:
                raise MessageError("OPT occurs twice, or its owner is not the root")  # RFC 6891 section 6.1.1
            found = int.from_bytes(packet[at + 2:at + 4], "big"), int.from_bytes(packet[at + 4:at + 8], "big")
        at = end
    return found
