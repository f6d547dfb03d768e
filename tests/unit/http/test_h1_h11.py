"""h11 as a strict second opinion on both codecs: generated messages, right ones and broken ones.

What both accept must mean the same. What we accept h11 must accept, but for the short lists below. Where only one of
them accepts nothing can be smuggled past the other through us, so that is allowed in one direction: we are stricter.
"""

from __future__ import annotations

import re

import h11
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.http.http1_server import METHODS
from tests.unit.http.http_samples import Client, Server

Message = tuple[object, ...]
"""(start line parts, header pairs, body, trailers)."""

TOKEN = st.text("abcXYZ019!#$%&'*+-.^_`|~", min_size=1, max_size=8).map(str.encode)
VALUE = st.binary(max_size=12).map(
    lambda b: bytes(c for c in b if c in b"\t" or 0x20 <= c < 0x7f or c >= 0x80).strip(b" \t"))
FRAMING = {b"content-length", b"transfer-encoding"}
RESERVED = {b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"expect"}
FIELDS = st.lists(st.tuples(TOKEN.filter(lambda n: n.lower() not in RESERVED), VALUE), max_size=6)
SPACE = st.sampled_from([b"", b" ", b"\t", b"  "])
BODY = st.binary(max_size=40)
EXTENSION = st.sampled_from([b"", b";a", b";a=b", b';q="x;y"', b";\xff"])
TARGET = st.text("/abc?=&%.~", max_size=12).map(lambda t: b"/" + t.encode())

HEX = st.sampled_from([b"%x", b"%X", b"0%x"])


@st.composite
def lines(draw: st.DrawFn, fields: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(name + b":" + draw(SPACE) + value + draw(SPACE) + b"\r\n" for name, value in fields)


@st.composite
def framed(draw: st.DrawFn, body: bytes) -> tuple[bytes, bytes]:
    """(framing field, encoded body)."""
    if draw(st.booleans()):
        return b"Content-Length: %d\r\n" % len(body), body
    pieces = []
    at = 0
    while at < len(body):
        size = draw(st.integers(1, len(body) - at))
        pieces.append(draw(HEX) % size + draw(EXTENSION) + b"\r\n" + body[at:at + size] + b"\r\n")
        at += size
    trailers = draw(lines(draw(FIELDS)))
    return b"Transfer-Encoding: chunked\r\n", b"".join(pieces) + b"0" + draw(EXTENSION) + b"\r\n" + trailers + b"\r\n"


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    method = draw(st.sampled_from(sorted(METHODS - {b"CONNECT"})))
    framing, body = draw(framed(draw(BODY))) if draw(st.booleans()) else (b"", b"")
    fields = draw(lines(draw(FIELDS)))
    head = draw(st.permutations([b"Host: " + draw(st.sampled_from([b"a", b"a.b:80", b"[::1]:1"])) + b"\r\n", framing,
                                 fields]))
    return method + b" " + draw(TARGET) + b" HTTP/1.1\r\n" + b"".join(head) + b"\r\n" + body


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    status = draw(st.sampled_from([200, 204, 299, 304, 404, 503]))
    framing, body = (b"", b"") if status in (204, 304) else draw(framed(draw(BODY)))
    fields = draw(lines(draw(FIELDS)))
    reason = draw(st.sampled_from([b"OK", b"", b"\xfc b c"]))
    return b"HTTP/1.1 %d %b\r\n" % (status,
                                    reason) + b"".join(draw(st.permutations([framing, fields]))) + b"\r\n" + body


INSERTS = [b"\r", b"\n", b"\r\n", b" ", b"\t", b"\0", b"\x0b", b"\x7f", b"\xff", b":", b";", b",", b"-", b"+", b"0",
           b"5",
           b"0x", b"Content-Length: 3\r\n", b"content-length:0\r\n", b"Transfer-Encoding: chunked\r\n",
           b"Transfer-Encoding : chunked\r\n", b"transfer-encoding: identity\r\n", b"Transfer-Encoding:\x0bchunked\r\n",
           b"Host: b\r\n", b" folded\r\n", b"\"", b"HTTP/1.0", b"\r\n\r\n"]


@st.composite
def broken(draw: st.DrawFn, good: bytes) -> bytes:
    """A few bytes put in, taken out or doubled."""
    wire = good
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(wire)))
        what = draw(st.sampled_from(["insert", "insert", "delete", "double", "line"]))
        if what == "insert":
            wire = wire[:at] + draw(st.sampled_from(INSERTS)) + wire[at:]
        elif what == "delete":
            wire = wire[:at] + wire[at + draw(st.integers(1, 3)):]
        elif what == "double":
            wire = wire[:at] + wire[at:at + 4] + wire[at:]
        else:
            starts = [m.end() for m in re.finditer(rb"\r\n", wire)] or [0]
            at = draw(st.sampled_from(starts))
            wire = wire[:at] + draw(st.sampled_from(INSERTS)) + wire[at:]
    return wire


def by_h11(wire: bytes, client: bool) -> tuple[list[Message], bool]:
    """(messages complete before anything went wrong, whether something did)."""
    connection = h11.Connection(h11.CLIENT if client else h11.SERVER)
    messages: list[Message] = []
    if client:
        connection.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
        connection.send(h11.EndOfMessage())
    connection.receive_data(wire)
    start: tuple[object, ...] | None = None
    body = b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                start, body = ((event.method, event.target), sorted(event.headers)), b""
            elif isinstance(event, h11.Response):
                start, body = ((event.status_code,), sorted(event.headers)), b""
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert start is not None
                messages.append((*start, body, sorted(event.headers)))
                start = None
                if client:
                    break
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                    break
                connection.start_next_cycle()
            else:
                break
    except h11.RemoteProtocolError:
        return messages, True
    return messages, False


JOINED = {b"user-agent", b"te", b"via", b"expect", b"upgrade", b"date", b"server", b"location"}


class Strict(Server):
    """Without the empty lines that RFC 9112 section 2.2 lets a server skip, and h11 does not."""

    EMPTY_LINES_FIRST = False


def by_us(wire: bytes, client: bool) -> tuple[list[Message], bool]:
    codec = Client() if client else Strict()
    codec.feed(wire)
    messages: list[Message] = []
    start: tuple[object, ...] = ()
    body = b""
    for event in codec.events.list:
        kind = event[0]
        if kind == "error":
            return messages, True
        if kind == "request":
            _, method, path, authority, _, pairs, framing, _ = event
            pairs = [*pairs, *([(b"host", authority)] if authority is not None else ()),
                     *([(b"transfer-encoding", b"chunked")] if framing == "chunked" else ())]
            start, body = ((method, path), sorted(pairs)), b""
            if framing == "none":
                messages.append((*start, b"", []))
        elif kind == "response":
            _, status, pairs, end_stream, _, _ = event
            start, body = ((status,), sorted(pairs)), b""
            if end_stream:
                messages.append((*start, b"", []))
        elif kind == "data":
            body += event[1]
        elif kind == "end":
            messages.append((*start, body, sorted(event[1])))
    return messages, False


def without_te(messages: list[Message]) -> list[Message]:
    """The client codec does not report transfer-encoding."""
    return [(m[0], [f for f in m[1] if f[0] != b"transfer-encoding"],
             *m[2:]) for m in messages]  # type: ignore[attr-defined]


@settings(max_examples=80, deadline=None)
@given(st.lists(requests(), min_size=1, max_size=3))
def test_good_requests(wires: list[bytes]) -> None:
    wire = b"".join(wires)
    ours, failed = by_us(wire, False)
    assert (ours, failed) == by_h11(wire, False)
    assert len(ours) == len(wires)


@settings(max_examples=80, deadline=None)
@given(responses())
def test_good_responses(wire: bytes) -> None:
    ours, failed = by_us(wire, True)
    theirs, _ = by_h11(wire, True)
    assert not failed and len(ours) == 1
    assert ours == without_te(theirs)


ONLY_WE_ACCEPT = re.compile(
    rb"[0-9a-f][ \t]+;"                  # white space before a chunk extension
    rb"|[0-9a-f];[^\r]*[ \t]"            # white space within a chunk extension
    , re.IGNORECASE)


def excused(wire: bytes, ours: list[Message]) -> bool:
    """h11 may refuse this: chunk extensions as above; framing fields in trailers, which frame nothing (RFC 9110
    section 6.5.1); no host (judged later, as by Envoy), or several (joined)."""
    if ONLY_WE_ACCEPT.search(wire) is not None or any(f[0] in FRAMING for m in ours for f in trailers(m)):
        return True
    codec = Strict()  # also of a message that is not complete
    codec.feed(wire)
    return any(e[3] is None or b"," in e[3] for e in codec.events.list if e[0] == "request")


def trailers(message: Message) -> list[tuple[bytes, bytes]]:
    return message[3]  # type: ignore[return-value]


@settings(max_examples=300, deadline=None)
@given(requests().flatmap(broken), st.sampled_from([b"", b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"]))
def test_broken_requests(wire: bytes, following: bytes) -> None:
    wire += following
    ours, failed = by_us(wire, False)
    theirs, their_failed = by_h11(wire, False)
    judge(wire, ours, failed, theirs, their_failed)


@settings(max_examples=300, deadline=None)
@given(responses().flatmap(broken))
def test_broken_responses(wire: bytes) -> None:
    ours, _ = by_us(wire, True)
    theirs, _ = by_h11(wire, True)
    assert not ours or theirs or excused(wire, ours), "h11 refuses what we accept"
    for mine, their in zip(ours, without_te(theirs), strict=False):
        same(mine, their)


def judge(wire: bytes, ours: list[Message], failed: bool, theirs: list[Message], their_failed: bool) -> None:
    for mine, their in zip(ours, theirs, strict=False):
        same(mine, their)
    if not failed and their_failed:
        assert excused(wire, ours), "h11 refuses what we accept"
    if len(ours) > len(theirs):
        assert their_failed and excused(wire, ours) or closing(ours[len(theirs) - 1] if theirs else None)


def same(mine: Message, their: Message) -> None:
    """One message in two opinions."""
    assert mine[2] == their[2], "another body"
    assert mine[0] == their[0]
    assert [f for f in trailers(mine) if f[0] not in FRAMING] == [f for f in trailers(their) if f[0] not in FRAMING]
    if not {f[0] for f in mine[1]} & (JOINED | {b"host"}):  # type: ignore[attr-defined]
        assert mine[1] == their[1]


def closing(message: Message | None) -> bool:
    """h11 stops after a message that ends the connection."""
    return message is not None and any(name == b"connection" and b"close" in value.lower()
                                       for name, value in message[1])  # type: ignore[attr-defined]
