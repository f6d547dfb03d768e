"""What http_inspector makes of the first bytes of a connection; the verdicts are those of Envoy 1.40."""

from __future__ import annotations

import pytest

from proxy.listener.http_inspector import HTTP2, HTTP10, HTTP11, MAX_INSPECT_SIZE, NOT_HTTP, PREFACE, classify

VERDICTS = {
    b"GET / HTTP/1.1\r\n": HTTP11,
    b"GET / HTTP/1.1\n": HTTP11,
    b"GET / HTTP/1.0\r\n": HTTP10,
    b"GET /\r\n": HTTP10,
    b"GET / HTTP/0.9\r\n": HTTP10,
    b"GET / HTTP/3.7\r\n": HTTP10,
    b"GET / HTTP/1.2\r\n": HTTP10,
    b"GET / HTTP/x\r\n": NOT_HTTP,
    b"GET / http/1.1\r\n": NOT_HTTP,
    b"GET / HTTP/11\r\n": NOT_HTTP,
    b"GET / HTTP/1.10\r\n": NOT_HTTP,
    b"GET / HTTP/1.1 x\r\n": NOT_HTTP,
    b"GET /a b HTTP/1.1\r\n": NOT_HTTP,
    b"GET  /  HTTP/1.1 \r\n": HTTP11,
    b"GET\t/\tHTTP/1.1\r\n": HTTP11,
    b"GET /\rHTTP/1.1\r\n": HTTP11,
    b"GET a HTTP/1.1\r\n": NOT_HTTP,
    b"GET \x80 HTTP/1.1\r\n": NOT_HTTP,
    b"GET \x01 HTTP/1.1\r\n": NOT_HTTP,
    b"GET http://a.example/x HTTP/1.1\r\n": HTTP11,
    b"GET\r\n": NOT_HTTP,
    b"G\r\n": NOT_HTTP,
    b"FOO / HTTP/1.1\r\n": HTTP11,
    b"get / HTTP/1.1\r\n": HTTP11,
    b"M-SEARCH * HTTP/1.1\r\n": HTTP11,
    b"OPTIONS * HTTP/1.1\r\n": HTTP11,
    b"CONNECT a:1 HTTP/1.1\r\n": HTTP11,
    b"\r\nGET / HTTP/1.1\r\n": NOT_HTTP,
    b" GET / HTTP/1.1\r\n": NOT_HTTP,
    b"\n": NOT_HTTP,
    b"SSH-2.0-x\r\n": NOT_HTTP,
    PREFACE: HTTP2,
    b"PRI * HTTP/2.0\r\nX": HTTP10,
    b"GET /" + b"a" * 60000 + b" HTTP/1.1\r\n": HTTP11,
}

UNDECIDED = (
    b"G", b"X", b"GET", b"GETX ", b"GET /", b"GET / HTTP/1.1\r", b"PRI", b"PRI *", b"PRI * HTTP/2.0\r\n", b"PRX",
    b"SSH", b"GET / HTTP/1.1\rx",
)


def test_whole_lines() -> None:
    assert {data: classify(data) for data in VERDICTS} == VERDICTS


def test_what_follows_the_line_does_not_matter() -> None:
    more = {data: verdict for data, verdict in VERDICTS.items() if data.endswith(b"\n")}
    assert {data: classify(data + b"\x00 GET\r\n\r\n") for data in more} == more


def test_undecided() -> None:
    assert [classify(data) for data in UNDECIDED] == [None] * len(UNDECIDED)


@pytest.mark.parametrize("data", [d for d in VERDICTS if len(d) < 100], ids=repr)
def test_every_prefix_is_undecided_until_the_verdict_and_never_contradicts_it(data: bytes) -> None:
    verdicts = [classify(data[:size]) for size in range(1, len(data) + 1)]
    decided = [verdict for verdict in verdicts if verdict is not None]
    assert set(decided) == {VERDICTS[data]}
    assert verdicts == [None] * (len(verdicts) - len(decided)) + decided
    if VERDICTS[data] != NOT_HTTP:
        assert len(decided) == 1


def test_binary_protocols_are_known_by_their_first_byte() -> None:
    tokens = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    assert [first for first in range(256) if classify(bytes([first])) is None] == sorted(tokens)


def test_a_line_longer_than_the_limit_is_not_http() -> None:
    line = b"GET /" + b"a" * MAX_INSPECT_SIZE
    assert classify(line[: MAX_INSPECT_SIZE - 1]) is None
    assert classify(line[:MAX_INSPECT_SIZE]) == NOT_HTTP
