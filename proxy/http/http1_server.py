"""The server side of HTTP/1.1 and 1.0 without I/O: request heads judged, bodies unframed, response heads encoded."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING

from proxy.http.h1 import AUTHORITY, CODEC_ERROR, HeadError, Http1Codec, bare_line_feed, parse_fields, parse_length
from proxy.http.headers import Headers

if TYPE_CHECKING:
    from proxy.config.model import Http1Options

METHODS = frozenset(
    b"ACL BIND CHECKOUT CONNECT COPY DELETE GET HEAD LINK LOCK MERGE MKACTIVITY MKCALENDAR MKCOL MOVE M-SEARCH NOTIFY "
    b"OPTIONS PATCH POST PROPFIND PROPPATCH PURGE PUT QUERY REBIND REPORT SEARCH SOURCE SUBSCRIBE TRACE UNBIND UNLINK "
    b"UNLOCK UNSUBSCRIBE".split()
)
_LONGEST_METHOD = max(map(len, METHODS))
_METHOD_SO_FAR = re.compile(rb"[A-Z-]{1,%d}(?: |\Z)" % _LONGEST_METHOD)
_TARGET = re.compile(rb"[\x21-\x7e]+")
_TARGET_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_VERSION = re.compile(rb"HTTP/([0-9])\.([0-9])")
_ABSOLUTE = re.compile(rb"([A-Za-z][A-Za-z0-9+.\-]*)://([^/?#]*)([^#]*)(#.*)?")
_CONNECT_TARGET = re.compile(rb"(?:[A-Za-z0-9\-._~%!$&'()*+,;=]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")

FRAMING = frozenset((b"content-length", b"transfer-encoding", b"connection"))
NO_BODY, CHUNKED = 0, -1
MAX_CONNECTION_HEADER = 1024
"""Bytes of the connection header; more names than a client can mean are refused."""
UNNAMABLE = frozenset((
    b":authority", b":method", b":path", b":scheme", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto",
))
"""Headers that a connection header must not nominate for removal: they carry what the next hop trusts."""


def connection_tokens(value: bytes) -> list[bytes]:
    """The lower-case tokens of a connection header."""
    return [token for token in (t.strip(b" \t") for t in value.lower().split(b",")) if token]


class Http1ServerCodec(Http1Codec):
    """Requests. ``on_request`` is called with each head; on_data* and on_end follow unless ``length`` is NO_BODY."""

    __slots__ = ("_options", "_underscores")

    def __init__(self, options: Http1Options, max_head: int, max_fields: int, underscores: str = "ALLOW") -> None:
        super().__init__(max_head, max_fields)
        self._options = options
        self._underscores = underscores

    def on_request(self, method: bytes, path: bytes, authority: bytes | None, http10: bool, headers: Headers,
                   length: int, tokens: list[bytes]) -> None:
        """A request head. ``headers`` lacks host (it is ``authority``; None: absent) and transfer-encoding.

        ``length`` is NO_BODY, CHUNKED or the announced bytes. ``tokens`` are those of the connection header, whose
        nominated fields are still there: whether an upgrade is allowed decides about some of them.
        """
        raise NotImplementedError

    def _check_start_line(self, partial: bytes) -> None:
        if _METHOD_SO_FAR.match(partial) is None or bare_line_feed(partial):
            raise HeadError(CODEC_ERROR)
        end = partial.find(b"\r\n")
        if end >= 0:
            self._request_line(partial[:end])

    def _request_line(self, line: bytes) -> tuple[bytes, bytes, bool]:
        if b"\n" in line:
            raise HeadError(CODEC_ERROR)
        parts = line.split(b" ")
        if len(parts) == 2 and not parts[1].startswith(b"HTTP/"):
            parts.append(b"HTTP/0.9")
        if len(parts) != 3:
            if len(parts) > 1 and parts[0] in METHODS and _TARGET_CONTROL.search(line):
                raise HeadError(b"http1.invalid_characters")
            raise HeadError(CODEC_ERROR)
        method, target, version = parts
        if method not in METHODS:
            raise HeadError(CODEC_ERROR)
        if _TARGET.fullmatch(target) is None:
            raise HeadError(b"http1.invalid_characters" if _TARGET_CONTROL.search(target) else CODEC_ERROR)
        if version == b"HTTP/1.1":
            return method, target, False
        match = _VERSION.fullmatch(version)
        if match is None:
            raise HeadError(CODEC_ERROR)
        if version not in (b"HTTP/1.0", b"HTTP/0.9") or not self._options.accept_http_10:
            raise HeadError(b"low_version", 426)
        return method, target, True

    def _start(self, lines: list[bytes]) -> None:
        line = lines[0]
        del lines[0]
        parts = line.split(b" ")
        if len(parts) == 3 and parts[2] == b"HTTP/1.1" and parts[0] in METHODS and _TARGET.fullmatch(parts[1]):
            method, target, _ = parts
            old = False
        else:
            method, target, old = self._request_line(line)
        headers = parse_fields(lines, self.max_fields)
        index = headers.index
        fields = headers.fields
        host = index.pop(b"host", None)
        authority: bytes | None = None
        if host is not None:
            if fields[0] is host:
                del fields[0]
            else:
                fields.remove(host)
            authority = host[1]
            if len(fields) != len(index):
                authority = self._join_hosts(headers, authority)
        path = target
        if target[0] != 47 or method == b"CONNECT":
            path, authority = self._other_form(method, target, authority)
        if self._underscores != "ALLOW":
            self._apply_underscores(headers)
        length = NO_BODY
        tokens: list[bytes] = []
        if not FRAMING.isdisjoint(index):
            length, tokens = self._framing(method, headers)
            if b"host" in tokens:
                authority = None
        if length == NO_BODY:
            self._state = self.HELD
        elif length == CHUNKED:
            self.expect_chunks()
        else:
            self.expect_length(length)
        self.on_request(method, path, authority, old, headers, length, tokens)

    @staticmethod
    def _join_hosts(headers: Headers, first: bytes) -> bytes:
        more = [f[1] for f in headers.fields if f[0] == b"host"]
        if not more:
            return first
        headers.fields = [f for f in headers.fields if f[0] != b"host"]
        return b",".join([first, *more])

    def _other_form(self, method: bytes, target: bytes, authority: bytes | None) -> tuple[bytes, bytes | None]:
        """Authority, asterisk and absolute form (RFC 9112 section 3.2)."""
        if method == b"CONNECT":
            if _CONNECT_TARGET.fullmatch(target) is None:
                raise HeadError(b"http1.invalid_url")
            return b"", target
        if target == b"*":
            if method == b"OPTIONS":
                return target, authority
            raise HeadError(b"http1.invalid_url")
        match = _ABSOLUTE.fullmatch(target)
        if match is None or not self._options.allow_absolute_url:
            raise HeadError(CODEC_ERROR)
        if match[1].lower() not in (b"http", b"https"):
            raise HeadError(b"http1.invalid_scheme")
        if not match[2]:
            raise HeadError(b"http1.invalid_url")
        if AUTHORITY.fullmatch(match[2]) is None:
            raise HeadError(b"http.invalid_authority")
        return (match[3] or b"/") + (match[4] or b""), match[2]

    def _apply_underscores(self, headers: Headers) -> None:
        for name in [n for n in headers.index if b"_" in n]:
            if self._underscores == "REJECT_REQUEST":
                raise HeadError(b"http1.unexpected_underscore")
            headers.remove(name)

    def _framing(self, method: bytes, headers: Headers) -> tuple[int, list[bytes]]:
        """Message length by RFC 9112 section 6.3; both framings, or two lengths, are refused."""
        tokens: list[bytes] = []
        if b"connection" in headers.index:
            value = b",".join(headers.get_all(b"connection"))
            tokens = connection_tokens(value)
            if len(value) > MAX_CONNECTION_HEADER or not UNNAMABLE.isdisjoint(tokens):
                raise HeadError(b"http1.connection_header_rejected")
        encodings = headers.get_all(b"transfer-encoding")
        lengths = headers.get_all(b"content-length")
        if encodings:
            if len(encodings) > 1 or encodings[0].lower() != b"chunked":
                raise HeadError(b"http1.invalid_transfer_encoding", 501)
            if lengths:
                if not self._options.allow_chunked_length:
                    raise HeadError(b"http1.content_length_and_chunked_not_allowed")
                headers.remove(b"content-length")
            if method == b"CONNECT":
                raise HeadError(b"http1.invalid_transfer_encoding", 501)
            headers.remove(b"transfer-encoding")
            return CHUNKED, tokens
        if lengths:
            if len(lengths) > 1:
                raise HeadError(CODEC_ERROR)
            length = parse_length(lengths[0])
            if length and method == b"CONNECT":
                raise HeadError(b"http1.body_disallowed")
            return length, tokens
        return NO_BODY, tokens


def reason_phrase(status: int) -> bytes:
    """The registered phrase of a status code, else ``Unknown`` (as Envoy prints it)."""
    return _REASONS.get(status, b"Unknown")


_REASONS = {int(s): s.phrase.encode() for s in HTTPStatus} | {
    # IANA's older names, which Envoy prints.
    302: b"Found", 413: b"Payload Too Large", 414: b"URI Too Long", 416: b"Range Not Satisfiable",
    422: b"Unprocessable Entity", 425: b"Too Early", 418: b"Unknown", 103: b"Early Hints",
}
STATUS_LINES = {code: b"HTTP/1.1 %d %b\r\n" % (code, reason_phrase(code)) for code in range(100, 600)}
STATUS_LINES_10 = {code: b"HTTP/1.0" + line[8:] for code, line in STATUS_LINES.items()}


def status_line(status: int, http10: bool) -> bytes:
    """The response's first line, with CRLF."""
    line = (STATUS_LINES_10 if http10 else STATUS_LINES).get(status)
    return line if line is not None else b"HTTP/1.%d %d %b\r\n" % (not http10, status, reason_phrase(status))
