"""Is this HTTP, and which version: judged by the first line only (extensions.filters.listener.http_inspector)."""

from __future__ import annotations

import re

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""RFC 9113 section 3.4."""

MAX_INSPECT_SIZE = 64 * 1024
"""Bytes; what has no end of line within them is not HTTP."""

HTTP10, HTTP11, HTTP2, NOT_HTTP = "http/1.0", "http/1.1", "h2c", ""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_METHOD = re.compile(_TOKEN + rb"(?:\Z|[ \t\r])")
_LINE = re.compile(
    rb"(?:%b[ \t\r]+(?:[/*][\x0c\x21-\x7e]*|[A-Za-z][A-Za-z0-9+\-.]*://[\x21-\x7e]+)"
    rb"|CONNECT[ \t\r]+[\x21-\x7e]+)"
    rb"(?:[ \t\r]+(HTTP/[0-9]\.[0-9]))?[ \t\r]*\n" % _TOKEN
)


def classify(data: bytes) -> str | None:
    """Judge the first bytes of a connection (at least one); None: more are needed.

    As Envoy's parser any token is a method, and a line may end in LF alone.
    """
    if data.startswith(PREFACE[: len(data)]):
        return HTTP2 if len(data) >= len(PREFACE) else None
    if _METHOD.match(data) is None:
        return NOT_HTTP
    end = data.find(b"\n")
    if end < 0:
        return None if len(data) < MAX_INSPECT_SIZE else NOT_HTTP
    line = _LINE.fullmatch(data, 0, end + 1)
    if line is None:
        return NOT_HTTP
    return HTTP11 if line[1] == b"HTTP/1.1" else HTTP10
