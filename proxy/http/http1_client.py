"""The client side of HTTP/1.1 without I/O: response heads judged, bodies unframed, request heads encoded."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from proxy.http.h1 import CODEC_ERROR, HeadError, Http1Codec, bare_line_feed, parse_fields, parse_length
from proxy.http.http1_server import STATUS_LINES as SERVER_STATUS_LINES

if TYPE_CHECKING:
    from proxy.http.headers import Headers

_STATUS_LINE = re.compile(rb"HTTP/([0-9]\.[0-9]) ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_START = b"HTTP/"


class Http1ClientCodec(Http1Codec):
    """Responses. ``expect_response`` before each request; then on_response, and unless that ends it on_data*, on_end.

    Interim responses (RFC 9110 section 15.2) come through ``on_interim``; after 101 everything is on_data.
    """

    EMPTY_LINES_FIRST = False

    __slots__ = ("_head_request", "_upgrade", "keep_alive", "until_close")

    def __init__(self, max_head: int, max_fields: int) -> None:
        super().__init__(max_head, max_fields)
        self._state = self.HELD
        self._head_request = False
        self._upgrade = False
        self.keep_alive = True
        """The connection may be used again after this response."""
        self.until_close = False
        """The body ends when the peer closes."""

    def expect_response(self, *, head_request: bool, upgrade: bool) -> None:
        """A request is being sent; parse its response."""
        self._head_request = head_request
        self._upgrade = upgrade
        self.until_close = False
        self._state = self.HEAD

    def on_response(self, status: int, headers: Headers, end_stream: bool) -> None:
        """The final response head, without transfer-encoding. ``end_stream``: there is no body and no on_end."""
        raise NotImplementedError

    def on_interim(self, status: int, headers: Headers) -> None:
        """100, 102, 103, ...: the final head is still to come."""
        raise NotImplementedError

    def _check_start_line(self, partial: bytes) -> None:
        if partial[:5] != _START[: len(partial)] or bare_line_feed(partial):
            raise HeadError(CODEC_ERROR)

    def _start(self, lines: list[bytes]) -> None:
        status, http11 = STATUS_LINES.get(lines[0]) or _judge_status_line(lines[0])
        del lines[0]
        headers = parse_fields(lines, self.max_fields)
        if status < 200 and status != 101:
            self.on_interim(status, headers)
            return
        if status == 101:
            if not self._upgrade:
                raise HeadError(CODEC_ERROR)
            self.keep_alive = False
            self.expect_raw()
            self.on_response(status, headers, False)
            return
        index = headers.index
        self.keep_alive = http11
        encodings: list[bytes] | tuple[bytes, ...] = ()
        lengths: list[bytes] | tuple[bytes, ...] = ()
        if len(index) == len(headers.fields):
            f = index.get(b"connection")
            if f is not None:
                self._connection_option(f[1])
            f = index.get(b"content-length")
            if f is not None:
                lengths = (f[1],)
            f = index.get(b"transfer-encoding")
            if f is not None:
                encodings = (f[1],)
        else:
            self._connection_option(b",".join(headers.get_all(b"connection")))
            encodings = headers.get_all(b"transfer-encoding")
            lengths = headers.get_all(b"content-length")
        if encodings:
            if lengths or len(encodings) > 1 or encodings[0].lower() != b"chunked":
                raise HeadError(CODEC_ERROR)
            headers.remove(b"transfer-encoding")
        elif len(lengths) > 1:
            raise HeadError(CODEC_ERROR)
        empty = self._head_request or status in (204, 304)
        if status == 204 and (encodings or (lengths and parse_length(lengths[0]))):
            raise HeadError(b"http1.body_disallowed")
        length = parse_length(lengths[0]) if lengths else -1
        if empty or length == 0:
            self.expect_nothing()
            self.on_response(status, headers, True)
            return
        if encodings:
            self.expect_chunks()
        elif length > 0:
            self.expect_length(length)
        else:
            self.keep_alive = False
            self.until_close = True
            self.expect_raw()
        self.on_response(status, headers, False)

    def _connection_option(self, value: bytes) -> None:
        value = value.lower()
        if b"close" in value:
            self.keep_alive = False
        elif b"keep-alive" in value:
            self.keep_alive = True


def _judge_status_line(line: bytes) -> tuple[int, bool]:
    """(status, whether HTTP/1.1) of a response's first line (RFC 9112 section 4); raises HeadError."""
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise HeadError(CODEC_ERROR)
    return int(match[2]), match[1] not in (b"1.0", b"0.9")


STATUS_LINES = {line[:-2]: (status, True) for status, line in SERVER_STATUS_LINES.items()}
"""The usual first lines, by the bytes."""


def request_head(method: bytes, path: bytes, authority: bytes, headers: Headers, framing: bytes) -> bytes:
    """Encode a request head; ``framing`` is the framing field that the codec adds (with CRLF) or nothing."""
    return b"".join([method, b" ", path, b" HTTP/1.1\r\nhost: ", authority, b"\r\n",
                     *[f[2] for f in headers.fields], framing, b"\r\n"])
