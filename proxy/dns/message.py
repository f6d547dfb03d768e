"""DNS messages on the wire: names, records, replies. RFC 1035 section 4, RFC 6891 (OPT).

A name inside the program is its uncompressed wire form with the root byte: ``b"\\x03foo\\x03bar\\x00"``. Its key is the
same in lower case; ``bytes.lower`` is right for it, because a length byte (at most 63) is never a letter.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from struct import Struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.dns.query import Query

QR, AA, TC, RD, RA, AD, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
OPCODE_MASK, RCODE_MASK = 0x7800, 0x000F

NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)
BADVERS = 16
"""An extended code: its upper bits stand in the OPT record."""

A, NS, CNAME, SOA, PTR, MX, TXT, AAAA, SRV, NAPTR, DNAME = 1, 2, 5, 6, 12, 15, 16, 28, 33, 35, 39
OPT, DS, RRSIG, DNSKEY, SVCB, HTTPS, TKEY, TSIG, IXFR, AXFR, MAILB, MAILA, ANY, CAA = (
    41, 43, 46, 48, 64, 65, 249, 250, 251, 252, 253, 254, 255, 257)
TYPES = {
    "A": A, "NS": NS, "CNAME": CNAME, "SOA": SOA, "PTR": PTR, "MX": MX, "TXT": TXT, "AAAA": AAAA, "SRV": SRV,
    "NAPTR": NAPTR, "DNAME": DNAME, "OPT": OPT, "DS": DS, "RRSIG": RRSIG, "DNSKEY": DNSKEY, "SVCB": SVCB,
    "HTTPS": HTTPS, "TKEY": TKEY, "TSIG": TSIG, "IXFR": IXFR, "AXFR": AXFR, "MAILB": MAILB, "MAILA": MAILA, "ANY": ANY,
    "CAA": CAA,
}
CLASS_IN, CLASS_CHAOS, CLASS_ANY = 1, 3, 255

MAX_NAME = 255
"""Bytes of a name on the wire, root byte included (RFC 1035 section 2.3.4)."""
MAX_LABEL = 63
MAX_POINTERS = 126
"""Jumps in one name: more than the labels that a name can have, so only a bomb needs more."""
MAX_MESSAGE = 65535
PLAIN_UDP = 512
"""Bytes of a reply over UDP to a client without EDNS."""
OUR_UDP = 4096
"""The largest datagram that we take and send, announced in our OPT record. RFC 6891 section 6.2.5 suggests it. The 1232
bytes of "DNS flag day 2020" keep replies from being fragmented on a network; our clients are on this host."""
POINTER_TO_QUESTION = b"\xc0\x0c"
"""The name of the question, which begins right after the header."""

HEADER = Struct(">HHHHHH")
_RR = Struct(">HHIH")
_OPT = Struct(">BHHIH")
_ESCAPE = re.compile(r"\\(?:(\d{3})|(.))|(.)", re.DOTALL)
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_*/+@!#$%&'=?^`{|}~:,<>[]")

_TYPE_TEXT = {number: name for name, number in TYPES.items()}
_CLASS_TEXT = {CLASS_IN: "IN", CLASS_CHAOS: "CH", 4: "HS", 254: "NONE", CLASS_ANY: "ANY"}
_RCODE_TEXT = ("NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET", "NXRRSET",
               "NOTAUTH", "NOTZONE")


class MessageError(ValueError):
    """Bytes that are no DNS message, or text that is no name; the text says why."""


# --- names ------------------------------------------------------------------------------------------------------------


def name_to_wire(text: str) -> bytes:
    """The wire form of a name such as ``foo.bar``; a dot at the end makes no difference, case is kept.

    ``\\.`` and ``\\123`` stand for bytes as in zone files (RFC 1035 section 5.1). Raises MessageError.
    """
    if text in ("", "."):
        return b"\0"
    out = bytearray()
    label = bytearray()
    ended = False
    for code, escaped, plain in _ESCAPE.findall(text):
        ended = plain == "."
        if ended:
            _append_label(out, label, text)
            label.clear()
        elif code:
            if int(code) > 255:
                raise MessageError(f"name {text[:300]!r}: \\{code} is no byte")
            label.append(int(code))
        elif plain == "\\":
            raise MessageError(f"name {text[:300]!r}: nothing follows the last backslash")
        else:
            label += (escaped or plain).encode("utf-8", "surrogateescape")
    if not ended:
        _append_label(out, label, text)
    out.append(0)
    if len(out) > MAX_NAME:
        raise MessageError(f"name {text[:300]!r}: longer than {MAX_NAME} bytes")
    return bytes(out)


def _append_label(out: bytearray, label: bytearray, text: str) -> None:
    if not 0 < len(label) <= MAX_LABEL:
        what = "an empty label" if not label else f"a label of {len(label)} bytes, at most {MAX_LABEL} expected"
        raise MessageError(f"name {text[:300]!r}: {what}")
    out.append(len(label))
    out += label


def name_to_text(wire: bytes) -> str:
    """The text of a name, with its dot at the end; whatever is not printable (or a dot) as an escape."""
    if wire == b"\0":
        return "."
    parts = []
    at = 0
    while at < len(wire) and (size := wire[at]):
        label = wire[at + 1:at + 1 + size]
        parts.append("".join(chr(byte) if byte in _PLAIN else
                             f"\\{chr(byte)}" if 0x20 < byte < 0x7F else f"\\{byte:03d}" for byte in label))
        at += 1 + size
    return ".".join(parts) + "."


def parent(name: bytes) -> bytes:
    """The name without its first label; the root is its own parent."""
    return name[name[0] + 1:] if name[0] else name


def labels(name: bytes) -> list[bytes]:
    """The labels of a name, without the root."""
    out = []
    at = 0
    while size := name[at]:
        out.append(name[at + 1:at + 1 + size])
        at += 1 + size
    return out


def read_name(message: bytes, at: int) -> tuple[bytes, int]:
    """The name that begins at an offset, uncompressed, and the offset behind it. Raises MessageError.

    A pointer must point before the name it stands in begins or continues, so no loop gets started; jumps and length are
    bounded (RFC 1035 section 4.1.4).
    """
    out = bytearray()
    after = -1
    lowest = at
    jumps = 0
    try:
        while True:
            size = message[at]
            if size == 0:
                out.append(0)
                return bytes(out), at + 1 if after < 0 else after
            if size <= MAX_LABEL:
                end = at + 1 + size
                if end > len(message):
                    raise MessageError("a name goes beyond the end of the message")
                out += message[at:end]
                if len(out) >= MAX_NAME:
                    raise MessageError(f"a name is longer than {MAX_NAME} bytes")
                at = end
                continue
            if size < 0xC0:
                raise MessageError(f"a label begins with 0x{size:02x}")
            target = (size & 0x3F) << 8 | message[at + 1]
            if after < 0:
                after = at + 2
            jumps += 1
            if target >= lowest or jumps > MAX_POINTERS:
                raise MessageError("a compression pointer does not point backwards")
            at = lowest = target
    except IndexError:
        raise MessageError("a name goes beyond the end of the message") from None


def skip_name(message: bytes, at: int) -> int:
    """The offset behind a name; pointers are not followed. Raises MessageError."""
    size_of_message = len(message)
    while at < size_of_message:
        size = message[at]
        if size == 0:
            return at + 1
        if size <= MAX_LABEL:
            at += 1 + size
        elif size >= 0xC0 and at + 2 <= size_of_message:
            return at + 2
        else:
            raise MessageError(f"a label begins with 0x{size:02x}")
    raise MessageError("a name goes beyond the end of the message")


# --- records and replies ----------------------------------------------------------------------------------------------


def record(owner: bytes, kind: int, ttl: int, data: bytes, rclass: int = CLASS_IN) -> bytes:
    """A resource record. ``owner`` is a name, or POINTER_TO_QUESTION where the question's name is meant (0x20)."""
    return owner + _RR.pack(kind, rclass, ttl, len(data)) + data


def soa(owner: bytes, primary: bytes, mailbox: bytes, serial: int, negative_ttl: int) -> bytes:
    """A SOA record for a negative answer: its TTL and its minimum are both ``negative_ttl`` (RFC 2308 section 5)."""
    timers = (serial & 0xFFFFFFFF, 3600, 600, 86400, negative_ttl)
    return record(owner, SOA, negative_ttl, primary + mailbox + b"".join(t.to_bytes(4, "big") for t in timers))


def opt_record(rcode: int = NOERROR, dnssec_ok: bool = False) -> bytes:
    """Our OPT record: no options, our size of datagrams, the upper bits of ``rcode`` (RFC 6891 section 6.1.2)."""
    return _OPT.pack(0, OPT, OUR_UDP, (rcode >> 4) << 24 | (0x8000 if dnssec_ok else 0), 0)


def reply(query: Query, rcode: int = NOERROR, answers: Sequence[bytes] = (), authority: Sequence[bytes] = (),
          flags: int = RA) -> bytes:
    """A whole reply with the query's id and question, within the client's limit; TC when something is left out.

    ``answers`` and ``authority`` are records in wire form, used from the first on as long as they fit: never a part of
    one. ``flags`` are AA and RA; RD and CD come from the query (RFC 4035 section 3.2.2). EDNS is answered with an OPT.
    """
    opt = b"" if query.edns is None else opt_record(rcode, query.dnssec_ok)
    question = query.question
    room = query.limit - 12 - len(question) - len(opt)
    counts = [0, 0]
    out = []
    for at, section in enumerate((answers, authority)):
        for one in section:
            room -= len(one)
            if room < 0:
                flags |= TC
                break
            out.append(one)
            counts[at] += 1
        if flags & TC:
            break
    bits = QR | flags | query.flags & (OPCODE_MASK | RD | CD) | rcode & RCODE_MASK
    head = HEADER.pack(query.id, bits, 1 if question else 0, counts[0], counts[1], 1 if opt else 0)
    return b"".join((head, question, *out, opt))


# --- texts ------------------------------------------------------------------------------------------------------------


def type_text(number: int) -> str:
    """``AAAA``, or ``TYPE1234`` for one without a name here (RFC 3597)."""
    return _TYPE_TEXT.get(number) or f"TYPE{number}"


def type_number(text: str) -> int:
    """The number of ``AAAA``, ``aaaa``, ``TYPE28`` or ``28``. Raises MessageError."""
    upper = text.upper()
    if upper in TYPES:
        return TYPES[upper]
    digits = upper.removeprefix("TYPE")
    if digits.isascii() and digits.isdigit() and len(digits) <= 5 and 0 < int(digits) <= 0xFFFF:
        return int(digits)
    raise MessageError(f"{text[:40]!r} is no record type such as A, AAAA or TYPE65")


def class_text(number: int) -> str:
    """``IN``, or ``CLASS5`` for one without a name here."""
    return _CLASS_TEXT.get(number) or f"CLASS{number}"


def rcode_text(number: int) -> str:
    """``NXDOMAIN``."""
    return _RCODE_TEXT[number] if number < len(_RCODE_TEXT) else "BADVERS" if number == BADVERS else f"RCODE{number}"
