"""What is refused, what is accepted and what is silently repaired: one row of bytes is one case."""

from __future__ import annotations

from tests.conformance.dsl import (
    Case,
    Differs,
    Step,
    bad,
    chunks,
    end,
    msg,
    response,
    send,
)
from tests.conformance.snippets import BASIC, QUICK_CLOSE, A, bootstrap, http

H = "Host: x.com"
TE = "Transfer-Encoding: chunked"
STATS = (
    "http.main.downstream_cx_protocol_error",
    "http.main.downstream_rq_total",
    "http.main.downstream_rq_4xx",
    "http.main.downstream_rq_5xx",
    "http.main.downstream_rq_completed",
    "http.main.downstream_cx_destroy_local",
    "http.main.downstream_cx_destroy_local_active_rq",
    "http.main.downstream_cx_destroy_active_rq",
    "http.main.downstream_cx_delayed_close_timeout",
    "http.main.downstream_rq_non_relative_path",
    "http.main.downstream_rq_too_large",
    "cluster.a.upstream_rq_total",
)


def line(request_line: str | bytes) -> bytes:
    """A request with this request line."""
    return msg(request_line, H)


def header(text: str | bytes) -> bytes:
    """A GET with this header line after Host."""
    return msg("GET / HTTP/1.1", H, text)


def body(framing: str, data: bytes, *more: str) -> bytes:
    """A POST with this framing and body."""
    return msg("POST /up HTTP/1.1", H, framing, *more, body=data)


REFUSED: dict[str, bytes] = {
    # framing
    "length-and-chunked": body(TE, chunks(b"abc"), "Content-Length: 3"),
    "te-gzip-chunked": body("Transfer-Encoding: gzip, chunked", chunks()),
    "te-chunked-chunked": body("Transfer-Encoding: chunked, chunked", chunks()),
    "te-identity": body("Transfer-Encoding: identity", b""),
    "te-twice": body(TE, chunks(), TE),
    "te-gzip": body("Transfer-Encoding: gzip", b""),
    "te-empty": body("Transfer-Encoding:", b""),
    "length-twice": body("Content-Length: 2", b"ab", "Content-Length: 2"),
    "length-twice-differing": body("Content-Length: 2", b"ab", "Content-Length: 3"),
    "length-list": body("Content-Length: 2, 2", b"ab"),
    "length-negative": body("Content-Length: -1", b""),
    "length-plus": body("Content-Length: +2", b"ab"),
    "length-hex": body("Content-Length: 0x2", b"ab"),
    "length-empty": body("Content-Length:", b""),
    "length-overflow": body("Content-Length: 18446744073709551616", b""),
    "length-inner-space": body("Content-Length: 1 2", b"ab"),
    # header lines
    "nul-in-value": header(b"x-a: b\x00c"),
    "control-in-value": header(b"x-a: b\x01c"),
    "delete-in-value": header(b"x-a: b\x7fc"),
    "space-before-colon": header("x-a : b"),
    "no-colon": header("x-a"),
    "empty-name": header(": b"),
    "name-with-space": header("x a: b"),
    "name-with-brackets": header("x(a): b"),
    "name-not-ascii": header(b"x-\xe4: b"),
    "name-with-nul": header(b"x-\x00a: b"),
    "colon-first": header(":path: /b"),
    "fold-on-the-first-header": msg("GET / HTTP/1.1", " folded: b", H),
    "leading-space-request-line": line(" GET / HTTP/1.1"),
    # request line
    "method-unknown": line("FOO / HTTP/1.1"),
    "method-lower-case": line("get / HTTP/1.1"),
    "method-mixed-case": line("Get / HTTP/1.1"),
    "method-with-colon": line("GE:T / HTTP/1.1"),
    "method-query": line("QUERY / HTTP/1.1"),
    "url-with-space": line("GET /a b HTTP/1.1"),
    "url-with-high-byte": line(b"GET /\xe4 HTTP/1.1"),
    "url-with-control": line(b"GET /\x01 HTTP/1.1"),
    "url-with-delete": line(b"GET /\x7f HTTP/1.1"),
    "url-without-slash": line("GET foo HTTP/1.1"),
    "url-star-with-get": line("GET * HTTP/1.1"),
    "url-with-fragment": line("GET /a#b HTTP/1.1"),
    "url-missing": line("GET HTTP/1.1"),
    "scheme-ftp": line("GET ftp://h/ HTTP/1.1"),
    "scheme-without-host": line("GET http:/// HTTP/1.1"),
    "version-0.9": b"GET /\r\n\r\n",
    "version-1.0": line("GET / HTTP/1.0"),
    "version-1.0-keep-alive": msg("GET / HTTP/1.0", H, "Connection: keep-alive"),
    "version-1.2": line("GET / HTTP/1.2"),
    "version-2.0": line("GET / HTTP/2.0"),
    "version-1.10": line("GET / HTTP/1.10"),
    "version-lower-case": line("GET / http/1.1"),
    "version-https": line("GET / HTTPS/1.1"),
    "version-without-dot": line("GET / HTTP/11"),
    "garbage": b"\x00\x01\x02\x03garbage\r\n\r\n",
    "tls-client-hello": bytes.fromhex("16030100c8010000c403030000") + b"\x00" * 64,
    "socks": b"\x05\x01\x00\r\n\r\n",
    "response-as-request": msg("HTTP/1.1 200 OK", "content-length: 0"),
    # host
    "host-missing": msg("GET / HTTP/1.1", "x-a: b"),
    "host-with-space": msg("GET / HTTP/1.1", "Host: a b"),
    "host-with-slash": msg("GET / HTTP/1.1", "Host: a/b"),
    # connection
    "connection-names-host": header("Connection: host"),
    "connection-names-authority": header("Connection: :authority"),
    "connection-names-forwarded-for": header("Connection: x-forwarded-for"),
    "connection-names-forwarded-proto": header("Connection: close, x-forwarded-proto"),
    "connection-names-very-many": header("Connection: " + ", ".join(f"x-{n}" for n in range(200))),
    "upgrade-not-enabled": msg("GET / HTTP/1.1", H, "Connection: Upgrade", "Upgrade: websocket"),
    "upgrade-unknown": msg("GET / HTTP/1.1", H, "Connection: upgrade", "Upgrade: foo"),
    "connect-with-path": line("CONNECT /a HTTP/1.1"),
    "connect-with-length": msg("CONNECT h.com:443 HTTP/1.1", "Host: h.com:443", "Content-Length: 3", body=b"abc"),
    "connect-with-chunked": msg("CONNECT h.com:443 HTTP/1.1", "Host: h.com:443", TE, body=chunks()),
    # limits
    "head-of-61-kilobytes": header("x-a: " + "a" * 61 * 1024),
    "request-line-of-61-kilobytes": line("GET /" + "a" * 61 * 1024 + " HTTP/1.1"),
    "101-headers": msg("GET / HTTP/1.1", H, *[f"x-{n}: {n}" for n in range(100)]),
}
"""Each gets a local reply and the end of the connection."""

BROKEN_BODIES: dict[str, bytes] = {
    "chunk-size-not-hex": body(TE, b"zz\r\nabc\r\n0\r\n\r\n"),
    "chunk-size-empty": body(TE, b"\r\nabc\r\n0\r\n\r\n"),
    "chunk-size-0x": body(TE, b"0x3\r\nabc\r\n0\r\n\r\n"),
    "chunk-size-negative": body(TE, b"-3\r\nabc\r\n0\r\n\r\n"),
    "chunk-size-overflow": body(TE, b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
    "chunk-lines-lf-only": body(TE, b"3\nabc\n0\n\n"),
    "second-chunk-size-not-hex": body(TE, b"3\r\nabc\r\nzz\r\n"),
    "trailer-without-colon": body(TE, b"3\r\nabc\r\n0\r\nbad trailer\r\n\r\n"),
}

ACCEPTED: dict[str, bytes] = {
    "101-headers-less-one": msg("GET / HTTP/1.1", H, *[f"x-{n}: {n}" for n in range(99)]),
    "head-of-59-kilobytes": header("x-a: " + "a" * 59 * 1024),
    "length-with-spaces": body("Content-Length:   2  ", b"ab"),
    "length-with-leading-zeros": body("Content-Length: 002", b"ab"),
    "length-zero-get": msg("GET / HTTP/1.1", H, "Content-Length: 0"),
    "tab-and-high-bytes-in-value": header(b"x-a: b\tc \xc3\xa4 \xff"),
    "spaces-around-value": header("x-a:   b c  \t"),
    "empty-value": header("x-a:"),
    "no-space-after-colon": header("x-a:b"),
    "underscore-in-name": header("x_a: b"),
    "all-token-characters-in-name": header("x!#$%&'*+-.^_`|~9: b"),
    "same-header-thrice": msg("GET / HTTP/1.1", H, "x-a: 1", "X-A: 2", "x-A: 3", "cookie: a=1", "Cookie: b=2"),
    "url-with-odd-characters": line('GET /a"<>{}|\\^`?q="<> HTTP/1.1'),
    "url-with-double-slash": line("GET //a//b HTTP/1.1"),
    "url-with-dots": line("GET /a/../b/./c HTTP/1.1"),
    "url-absolute": line("GET http://foo.com:80/bar?x=1 HTTP/1.1"),
    "url-absolute-without-path": line("GET http://foo.com HTTP/1.1"),
    "url-absolute-https": line("GET https://foo.com/bar HTTP/1.1"),
    "url-absolute-upper-case": line("GET HTTP://foo.com/bar HTTP/1.1"),
    "url-query-with-question-marks": line("GET /a?b?c=/d&e HTTP/1.1"),
    "host-twice": msg("GET / HTTP/1.1", "Host: a", "Host: b"),
    "host-empty": msg("GET / HTTP/1.1", "Host:"),
    "host-with-userinfo": msg("GET / HTTP/1.1", "Host: u@x_y.com"),
    "host-in-capitals": msg("GET / HTTP/1.1", "HOST: X.Com:80"),
    "host-ipv6": msg("GET / HTTP/1.1", "Host: [::1]:8080"),
    "host-last": msg("GET / HTTP/1.1", "x-a: b", "Host: last.com"),
    "upgrade-without-connection": header("Upgrade: websocket"),
    "upgrade-h2c": msg("GET / HTTP/1.1", H, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: A"),
    "expect-other": header("Expect: other"),
    "method-webdav": line("MKCALENDAR / HTTP/1.1"),
    "method-link": line("LINK / HTTP/1.1"),
    "method-purge": line("PURGE / HTTP/1.1"),
    "method-source": line("SOURCE / HTTP/1.1"),
    "query-with-content-type": msg("QUERY / HTTP/1.1", H, "content-type: a/b", "content-length: 2", body=b"ab"),
    "chunk-size-with-space": body(TE, b"3 \r\nabc\r\n0\r\n\r\n"),
    "chunk-size-with-zeros": body(TE, b"0003\r\nabc\r\n000\r\n\r\n"),
    "chunk-size-in-capitals": body(TE, b"A\r\n0123456789\r\n0\r\n\r\n"),
}

HTTP1_ONLY = bootstrap(http(extra=QUICK_CLOSE + "\ncodec_type: HTTP1"), A)
CODEC_ERROR = [header("no colon")]


def lenient(name: str, anchor: str, data: bytes, like: list[Step] | None = None) -> Case:
    """Envoy accepts it; we refuse it like any other malformed head."""
    return Case(name, BASIC, [data], differs=Differs(anchor, {"client": like or CODEC_ERROR}))


LENIENT = [
    lenient("two-spaces-in-request-line", "request-line-space", line("GET  / HTTP/1.1")),
    lenient("version-with-space", "request-line-space", line("GET / HTTP/1.1 ")),
    lenient("url-with-tab", "request-line-space", line(b"GET /\t HTTP/1.1"), [line(b"GET /\x01 HTTP/1.1")]),
    lenient("lf-only-lines", "lf-only-lines", b"GET / HTTP/1.1\nHost: x.com\nx-a: b\n\n"),
    lenient("lf-only-one-line", "lf-only-lines", b"GET / HTTP/1.1\r\nHost: x.com\nx-a: b\r\n\r\n"),
    lenient("lf-only-last-line", "lf-only-lines", b"GET / HTTP/1.1\r\nHost: x.com\r\n\n"),
    lenient("bare-cr-in-value", "bare-cr", header("x-a: b\rc")),
    lenient("bare-cr-before-the-end", "bare-cr", header("x-a: b\r")),
    lenient("folded-value", "obs-fold", header("x-a: b\r\n  c")),
    lenient("folded-value-with-tab", "obs-fold", header("x-a: b\r\n\tc")),
    lenient("chunk-longer-than-its-size", "chunk-overrun", body(TE, b"3\r\nabcd\r\n0\r\n\r\n"),
            [body(TE, b"3\r\nabc\r\nzz\r\n")]),
]

CASES = (
    [Case(f"refused-{name}", BASIC, bad(data), stats=STATS) for name, data in REFUSED.items()]
    + [Case(f"broken-body-{name}", BASIC, bad(data), stats=STATS) for name, data in BROKEN_BODIES.items()]
    + [Case(f"accepted-{name}", BASIC, [data], stats=STATS) for name, data in ACCEPTED.items()]
    + LENIENT
    + [
        Case("connect-without-route", BASIC, [send(msg("CONNECT h.com:443 HTTP/1.1", "Host: h.com:443")), response()]),
        Case("http2-preface", HTTP1_ONLY, bad(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")),
        Case("url-absolute-with-query-only", BASIC, [line("GET http://foo.com?x=1 HTTP/1.1")], stats=STATS),
        Case("options-star", BASIC, [line("OPTIONS * HTTP/1.1")], stats=STATS),
        Case("head-of-a-megabyte", BASIC, [send(header("x-a: " + "a" * 1024 * 1024)), response(), end(either=True)]),
    ]
)
