"""Wire samples of HTTP/1 messages with what they mean, and codecs that record what they were told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from proxy.config.model import Http1Options
from proxy.http.h1 import HeadError
from proxy.http.headers import Field, Headers
from proxy.http.http1_client import Http1ClientCodec
from proxy.http.http1_server import CHUNKED, NO_BODY, Http1ServerCodec

MAX_HEAD = 60 * 1024
MAX_FIELDS = 100
Event = tuple[Any, ...]
STOP = ("stop",)


class Events:
    """What a codec reported; body data is joined, because how it was split means nothing."""

    def __init__(self) -> None:
        self.list: list[Event] = []

    def data(self, data: bytes) -> None:
        assert data, "on_data with nothing"
        if self.list and self.list[-1][0] == "data":
            data = self.list.pop()[1] + data
        self.list.append(("data", data))

    def error(self, error: HeadError) -> None:
        # Data of the message that failed may or may not have been handed out before.
        if self.list and self.list[-1][0] == "data":
            self.list.pop()
        self.list.append(("error", error.status, error.details))


def trailer_pairs(trailers: list[Field] | None) -> list[tuple[bytes, bytes]]:
    return [f[:2] for f in trailers or ()]


class Server(Http1ServerCodec):
    """Answers every request at once: the next one may follow."""

    def __init__(self, options: Http1Options | None = None, *, answer: bool = True, max_head: int = MAX_HEAD,
                 max_fields: int = MAX_FIELDS, underscores: str = "ALLOW") -> None:
        super().__init__(options or Http1Options(), max_head, max_fields, underscores)
        self.keep_trailers = True
        self.events = Events()
        self.answer = answer
        self.holds = 0

    def on_request(self, method: bytes, path: bytes, authority: bytes | None, http10: bool, headers: Headers,
                   length: int, tokens: list[bytes]) -> None:
        assert headers.index == Headers(headers.fields).index
        framing = {NO_BODY: "none", CHUNKED: "chunked"}.get(length, length)
        self.events.list.append(("request", method, path, authority, http10, headers.pairs(), framing, tokens))
        if method == b"CONNECT" or b"upgrade" in tokens:
            self.expect_raw()
        elif length == NO_BODY and self.answer:
            self.next_message()

    def on_data(self, data: bytes) -> None:
        self.events.data(data)

    def on_end(self, trailers: list[Field] | None) -> None:
        self.events.list.append(("end", trailer_pairs(trailers)))
        if self.answer:
            self.next_message()

    def on_error(self, error: HeadError) -> None:
        self.events.error(error)

    def on_hold(self) -> None:
        self.holds += 1


class Client(Http1ClientCodec):
    """Expects one response after the other, all to the same kind of request."""

    def __init__(self, *, head_request: bool = False, upgrade: bool = False, max_head: int = MAX_HEAD,
                 max_fields: int = MAX_FIELDS) -> None:
        super().__init__(max_head, max_fields)
        self.keep_trailers = True
        self.events = Events()
        self._kind = {"head_request": head_request, "upgrade": upgrade}
        self.expect_response(**self._kind)

    def on_interim(self, status: int, headers: Headers) -> None:
        self.events.list.append(("interim", status, headers.pairs()))

    def on_response(self, status: int, headers: Headers, end_stream: bool) -> None:
        assert headers.index == Headers(headers.fields).index
        self.events.list.append(("response", status, headers.pairs(), end_stream, self.keep_alive, self.until_close))
        if end_stream:
            self.expect_response(**self._kind)

    def on_data(self, data: bytes) -> None:
        self.events.data(data)

    def on_end(self, trailers: list[Field] | None) -> None:
        self.events.list.append(("end", trailer_pairs(trailers)))
        self.expect_response(**self._kind)

    def on_error(self, error: HeadError) -> None:
        self.events.error(error)


def request(method: bytes = b"GET", path: bytes = b"/", authority: bytes | None = b"a", http10: bool = False,
            headers: list[tuple[bytes, bytes]] | None = None, framing: str | int = "none",
            tokens: list[bytes] | None = None) -> Event:
    return ("request", method, path, authority, http10, headers or [], framing, tokens or [])


def response(status: int = 200, headers: list[tuple[bytes, bytes]] | None = None, end_stream: bool = False,
             keep_alive: bool = True, until_close: bool = False) -> Event:
    return ("response", status, headers or [], end_stream, keep_alive, until_close)


def data(body: bytes) -> Event:
    return ("data", body)


def end(*trailers: tuple[bytes, bytes]) -> Event:
    return ("end", list(trailers))


def error(details: bytes = b"http1.codec_error", status: int = 400) -> Event:
    return ("error", status, details)


@dataclass(frozen=True)
class Sample:
    """Bytes and the events that they must cause."""

    name: str
    wire: bytes
    events: list[Event]
    kind: dict[str, Any] = field(default_factory=dict)
    """Arguments of the codec."""

    def __str__(self) -> str:
        return self.name


CHARACTERS = error(b"http1.invalid_characters")
CL5 = (b"content-length", b"5")
POST5 = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n"
CHUNKED_POST = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
POST5_EVENT = request(b"POST", headers=[CL5], framing=5)
CHUNKED_EVENT = request(b"POST", framing="chunked")
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


def head(*lines: bytes, line: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join([line, b"host: a", *lines, b"", b""])


def framed(*lines: bytes) -> bytes:
    return head(*lines, line=b"POST / HTTP/1.1") + b"hello"


OLD = {"options": Http1Options(accept_http_10=True)}
TE = error(b"http1.invalid_transfer_encoding", 501)

REQUESTS = [
    Sample("get", GET, [request()]),
    Sample("fields", head(b"Accept: */*", b"X-A:1", b"x-a:\t2 \t", b"Empty:"),
           [request(headers=[(b"accept", b"*/*"), (b"x-a", b"1"), (b"x-a", b"2"), (b"empty", b"")])]),
    Sample("tab and high bytes in a value", head(b"x: a\tb\xff"), [request(headers=[(b"x", b"a\tb\xff")])]),
    Sample("joined as Envoy joins", head(b"user-agent: a", b"x: 1", b"user-agent: b"),
           [request(headers=[(b"user-agent", b"a,b"), (b"x", b"1")])]),
    Sample("two hosts", head(b"host: b"), [request(authority=b"a,b")]),
    Sample("no host", b"GET / HTTP/1.1\r\nx: 1\r\n\r\n", [request(authority=None, headers=[(b"x", b"1")])]),
    Sample("no field at all", b"GET / HTTP/1.1\r\n\r\n", [request(authority=None)]),
    Sample("empty host", b"GET / HTTP/1.1\r\nhost:\r\n\r\n", [request(authority=b"")]),
    Sample("length", POST5 + b"hello", [POST5_EVENT, data(b"hello"), end()]),
    Sample("length of nothing", head(b"content-length: 0", line=b"POST / HTTP/1.1"),
           [request(b"POST", headers=[(b"content-length", b"0")])]),
    Sample("length, then pipelined", POST5 + b"hello" + GET, [POST5_EVENT, data(b"hello"), end(), request()]),
    Sample("body of a get", head(b"content-length: 5") + b"hello" + GET,
           [request(headers=[CL5], framing=5), data(b"hello"), end(), request()]),
    Sample("pipelined", GET * 3, [request()] * 3),
    Sample("chunked", CHUNKED_POST + b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
           [CHUNKED_EVENT, data(b"hello world"), end()]),
    Sample("chunked, upper-case coding and digits", CHUNKED_POST.replace(b"chunked", b"CHUNKED")
           + b"A\r\n0123456789\r\n0a\r\n0123456789\r\n000\r\n\r\n",
           [CHUNKED_EVENT, data(b"01234567890123456789"), end()]),
    Sample("chunk extensions", CHUNKED_POST + b"5;a=b\r\nhello\r\n5 ; q=\"x;y\"\r\nhello\r\n0;last\r\n\r\n" + GET,
           [CHUNKED_EVENT, data(b"hellohello"), end(), request()]),
    Sample("trailers", CHUNKED_POST + b"1\r\nx\r\n0\r\nA: 1\r\nb:2\r\n\r\n" + GET,
           [CHUNKED_EVENT, data(b"x"), end((b"a", b"1"), (b"b", b"2")), request()]),
    Sample("chunked and empty", CHUNKED_POST + b"0\r\n\r\n" + GET, [CHUNKED_EVENT, end(), request()]),
    Sample("empty lines first", b"\r\n\r\n" + GET + b"\r\n" + GET, [request(), request()]),
    Sample("absolute form", b"GET http://b:80/x?y HTTP/1.1\r\nhost: a\r\n\r\n",
           [request(path=b"/x?y", authority=b"b:80")]),
    Sample("absolute form without a path", b"GET http://b?y HTTP/1.1\r\nhost: a\r\n\r\n",
           [request(path=b"?y", authority=b"b")]),
    Sample("asterisk", b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", [request(b"OPTIONS", b"*")]),
    Sample("connect", b"CONNECT b:443 HTTP/1.1\r\nhost: a\r\n\r\n\x16\x03raw",
           [request(b"CONNECT", b"", b"b:443"), data(b"\x16\x03raw")]),
    Sample("upgrade", head(b"connection: Upgrade", b"upgrade: websocket") + b"\x00\r\n\r\nraw",
           [request(headers=[(b"connection", b"Upgrade"), (b"upgrade", b"websocket")], tokens=[b"upgrade"]),
            data(b"\x00\r\n\r\nraw")]),
    Sample("connection options", head(b"connection: Close, ,X-A", b"connection: te"),
           [request(headers=[(b"connection", b"Close, ,X-A"), (b"connection", b"te")],
                    tokens=[b"close", b"x-a", b"te"])]),
    Sample("host nominated", head(b"connection: host"),
           [request(authority=None, headers=[(b"connection", b"host")], tokens=[b"host"])]),
    Sample("http/1.0", b"GET / HTTP/1.0\r\n\r\n", [request(authority=None, http10=True)], OLD),
    Sample("http/0.9", b"GET /\r\n\r\n", [request(authority=None, http10=True)], OLD),
    Sample("length with chunks, allowed",
           framed(b"content-length: 5", b"transfer-encoding: chunked")[:-5] + b"0\r\n\r\n",
           [request(b"POST", framing="chunked"), end()], {"options": Http1Options(allow_chunked_length=True)}),
    Sample("underscore dropped", head(b"a_b: 1", b"c: 2"), [request(headers=[(b"c", b"2")])],
           {"underscores": "DROP_HEADER"}),

    Sample("http/1.0 refused", b"GET / HTTP/1.0\r\n\r\n", [error(b"low_version", 426)]),
    Sample("http/1.2", head(line=b"GET / HTTP/1.2"), [error(b"low_version", 426)]),
    Sample("http/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [error()]),
    Sample("lower-case version", head(line=b"GET / http/1.1"), [error()]),
    Sample("long version", head(line=b"GET / HTTP/1.10"), [error()]),
    Sample("lower-case method", head(line=b"get / HTTP/1.1"), [error()]),
    Sample("unknown method", head(line=b"BREW / HTTP/1.1"), [error()]),
    Sample("tls hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n", [error()]),
    Sample("two spaces", head(line=b"GET  / HTTP/1.1"), [error()]),
    Sample("trailing space", head(line=b"GET / HTTP/1.1 "), [error()]),
    Sample("tab in the request line", head(line=b"GET\t/ HTTP/1.1"), [error()]),
    Sample("high byte in the target", head(line=b"GET /\xff HTTP/1.1"), [error()]),
    Sample("control in the target", head(line=b"GET /\x01 HTTP/1.1"), [CHARACTERS]),
    Sample("relative target", head(line=b"GET foo HTTP/1.1"), [error()]),
    Sample("asterisk for get", head(line=b"GET * HTTP/1.1"), [error(b"http1.invalid_url")]),
    Sample("foreign scheme", head(line=b"GET ftp://b/ HTTP/1.1"), [error(b"http1.invalid_scheme")]),
    Sample("connect with a path", head(line=b"CONNECT /x HTTP/1.1"), [error(b"http1.invalid_url")]),
    Sample("connect with a length", head(b"content-length: 1", line=b"CONNECT b:1 HTTP/1.1"),
           [error(b"http1.body_disallowed")]),
    Sample("connect with chunks", head(b"transfer-encoding: chunked", line=b"CONNECT b:1 HTTP/1.1"), [TE]),
    Sample("bad host", b"GET / HTTP/1.1\r\nhost: a/b\r\n\r\n", [error(b"http.invalid_authority")]),
    Sample("bad absolute host", head(line=b"GET http://a\"b/ HTTP/1.1"), [error(b"http.invalid_authority")]),
    Sample("bare lf", b"GET / HTTP/1.1\nhost: a\r\n\r\n", [error()]),
    Sample("bare lf in fields", head(b"x: 1\ny: 2"), [error()]),
    Sample("bare cr in a value", head(b"x: 1\ry: 2"), [error()]),
    Sample("bare cr first", b"\r" + GET, [error()]),
    Sample("bare lf first", b"\n" + GET, [error()]),
    Sample("folded", head(b"x: 1", b" 2"), [error()]),
    Sample("space before the colon", head(b"x : 1"), [error()]),
    Sample("no colon", head(b"x"), [error()]),
    Sample("no name", head(b": 1"), [error()]),
    Sample("pseudo-header", head(b":path: /x"), [error()]),
    Sample("high byte in a name", head(b"\xe4: 1"), [error()]),
    Sample("control in a value", head(b"x: a\x01"), [CHARACTERS]),
    Sample("nul in a value", head(b"x: a\0b"), [CHARACTERS]),
    Sample("del in a value", head(b"x: a\x7f"), [CHARACTERS]),
    Sample("underscore", head(b"a_b: 1"), [error(b"http1.unexpected_underscore")], {"underscores": "REJECT_REQUEST"}),
    Sample("nominated x-forwarded-for", head(b"connection: X-Forwarded-For"),
           [error(b"http1.connection_header_rejected")]),
    Sample("long connection header", head(b"connection: " + b"a," * 600), [error(b"http1.connection_header_rejected")]),
    Sample("length and chunks", framed(b"content-length: 5", b"transfer-encoding: chunked"),
           [error(b"http1.content_length_and_chunked_not_allowed")]),
    Sample("two codings", framed(b"transfer-encoding: gzip, chunked"), [TE]),
    Sample("chunked twice", framed(b"transfer-encoding: chunked", b"transfer-encoding: chunked"), [TE]),
    Sample("chunked in quotes", framed(b"transfer-encoding: \"chunked\""), [TE]),
    Sample("vertical tab before chunked", framed(b"transfer-encoding: \x0bchunked"), [CHARACTERS]),
    *[Sample(f"length {value!r}", framed(b"content-length:" + value), [error()])
      for value in (b"", b"-1", b"+5", b"0x5", b"5, 5", b"5 5", b"1_0", b"9" * 19, b"\xb2")],
    Sample("two lengths", framed(b"content-length: 5", b"content-length: 5"), [error()]),
    *[Sample(f"chunk size {size!r}", CHUNKED_POST + size + b"\r\nhello\r\n0\r\n\r\n", [CHUNKED_EVENT, error()])
      for size in (b"", b"g", b"-5", b"0x5", b" 5", b"5 x", b"5\t\r", b"1" * 17, b"5;\x01", b"5;\0")],
    Sample("chunk line by lf", CHUNKED_POST + b"5\nhello\r\n0\r\n\r\n", [CHUNKED_EVENT, error()]),
    Sample("chunk too long", CHUNKED_POST + b"3\r\nhello\r\n0\r\n\r\n", [CHUNKED_EVENT, error()]),
    Sample("chunk end by lf", CHUNKED_POST + b"5\r\nhello\n0\r\n\r\n", [CHUNKED_EVENT, error()]),
    Sample("bad trailer", CHUNKED_POST + b"0\r\na b: 1\r\n\r\n", [CHUNKED_EVENT, error()]),
    Sample("trailer by lf", CHUNKED_POST + b"0\r\na: 1\nb: 2\r\n\r\n", [CHUNKED_EVENT, error()]),
    Sample("good, then bad", GET + b"\x01", [request(), error()]),
    Sample("body, then garbage", POST5 + b"hello!!", [POST5_EVENT, data(b"hello"), end(), error()]),
    Sample("unfinished body", POST5 + b"hel", [POST5_EVENT, data(b"hel")]),
    Sample("unfinished head", GET[:-1], []),
]

OK = b"HTTP/1.1 200 OK\r\n"
CL5_OK = OK + b"content-length: 5\r\n\r\nhello"
CL5_OK_EVENTS = [response(headers=[CL5]), data(b"hello"), end()]

RESPONSES = [
    Sample("length", CL5_OK, CL5_OK_EVENTS),
    Sample("two responses", CL5_OK * 2, CL5_OK_EVENTS * 2),
    Sample("no reason", b"HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n",
           [response(headers=[(b"content-length", b"0")], end_stream=True)]),
    Sample("odd reason", b"HTTP/1.1 299 \xfcber\t \r\ncontent-length: 0\r\n\r\n",
           [response(299, [(b"content-length", b"0")], end_stream=True)]),
    Sample("until close", OK + b"\r\nhello", [response(keep_alive=False, until_close=True), data(b"hello")]),
    Sample("chunked", OK + b"transfer-encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\na: b\r\n\r\n" + CL5_OK,
           [response(), data(b"hello"), end((b"a", b"b")), *CL5_OK_EVENTS]),
    Sample("chunked to a head request", OK + b"transfer-encoding: chunked\r\n\r\n" * 1 + CL5_OK[:-5],
           [response(end_stream=True), response(headers=[CL5], end_stream=True)], {"head_request": True}),
    Sample("204", b"HTTP/1.1 204 No Content\r\n\r\n" + CL5_OK, [response(204, end_stream=True), *CL5_OK_EVENTS]),
    Sample("304 with length", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n" + CL5_OK,
           [response(304, [CL5], end_stream=True), *CL5_OK_EVENTS]),
    Sample("interim", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + CL5_OK,
           [("interim", 100, []), ("interim", 103, [(b"link", b"x")]), *CL5_OK_EVENTS]),
    Sample("upgrade", b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n\x81\0raw",
           [response(101, [(b"upgrade", b"websocket"), (b"connection", b"upgrade")], keep_alive=False),
            data(b"\x81\0raw")], {"upgrade": True}),
    Sample("connection: close", OK + b"connection: close\r\ncontent-length: 5\r\n\r\nhello",
           [response(headers=[(b"connection", b"close"), CL5], keep_alive=False), data(b"hello"), end()]),
    Sample("http/1.0", b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
           [response(headers=[CL5], keep_alive=False), data(b"hello"), end()]),
    Sample("http/1.0 keep-alive", b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\ncontent-length: 5\r\n\r\nhello",
           [response(headers=[(b"connection", b"Keep-Alive"), CL5]), data(b"hello"), end()]),

    Sample("101 that nobody asked for", b"HTTP/1.1 101 X\r\n\r\n", [error()]),
    Sample("garbage", b"nonsense\r\n\r\n", [error()]),
    Sample("empty line first", b"\r\n" + CL5_OK, [error()]),
    Sample("status of two digits", b"HTTP/1.1 20 X\r\n\r\n", [error()]),
    Sample("status of four digits", b"HTTP/1.1 2000 X\r\n\r\n", [error()]),
    Sample("status below 100", b"HTTP/1.1 099 X\r\n\r\n", [error()]),
    Sample("control in the reason", b"HTTP/1.1 200 a\x01\r\n\r\n", [error()]),
    Sample("lf lines", b"HTTP/1.1 200 OK\ncontent-length: 0\n\n\r\n\r\n", [error()]),
    Sample("folded", OK + b"a: 1\r\n 2\r\n\r\n", [error()]),
    Sample("length and chunks", OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n", [error()]),
    Sample("two lengths", OK + b"content-length: 5\r\ncontent-length: 5\r\n\r\n", [error()]),
    Sample("bad length", OK + b"content-length: five\r\n\r\n", [error()]),
    Sample("other coding", OK + b"transfer-encoding: gzip\r\n\r\n", [error()]),
    Sample("204 with a body", b"HTTP/1.1 204 X\r\ncontent-length: 5\r\n\r\nhello",
           [error(b"http1.body_disallowed")]),
    Sample("204 with chunks", b"HTTP/1.1 204 X\r\ntransfer-encoding: chunked\r\n\r\n",
           [error(b"http1.body_disallowed")]),
    Sample("chunk overrun", OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhello\r\n", [response(), error()]),
    Sample("bad field", OK + b"a b: 1\r\n\r\n", [error()]),
]
