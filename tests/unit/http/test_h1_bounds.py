"""What hostile peers can make the codecs hold or do."""

from __future__ import annotations

import sys

import pytest

from proxy.http import h1
from proxy.http.h1 import FIELD_MEMO, MAX_CHUNK_LINE, MEMO_ENTRIES, MEMO_LINE
from tests.unit.http.http_samples import (
    CHUNKED_EVENT,
    CHUNKED_POST,
    GET,
    MAX_FIELDS,
    MAX_HEAD,
    OK,
    Client,
    Server,
    data,
    end,
    error,
    request,
    response,
)

TOO_LARGE = error(b"http1.headers_too_large", 431)
TOO_MANY = error(b"http1.too_many_headers", 431)
MEGABYTE = 1 << 20


@pytest.mark.parametrize("piece", [MEGABYTE, 65536, 1000])
@pytest.mark.parametrize("codec", [Server, Client])
def test_head_of_a_megabyte(codec: type[Server] | type[Client], piece: int) -> None:
    start = b"GET / HTTP/1.1\r\nhost: a\r\nx: " if codec is Server else OK + b"x: "
    wire = start + b"y" * MEGABYTE + b"\r\n\r\n"
    one = codec()
    most = 0
    for at in range(0, len(wire), piece):
        one.feed(wire[at:at + piece])
        most = max(most, len(one._rest))
    assert one.events.list == [TOO_LARGE]
    assert most <= MAX_HEAD + 3


@pytest.mark.parametrize("excess", range(-1, 5))
def test_the_head_limit_is_exact_however_the_bytes_arrive(excess: int) -> None:
    limit = 200
    wire = GET[:-4] + b"\r\nx: "
    wire += b"y" * (limit + excess - len(wire)) + b"\r\n\r\n"
    expected = "error" if excess > 0 else "request"
    for pieces in ([wire], [wire[i:i + 1] for i in range(len(wire))], [wire[:-1], wire[-1:]], [wire[:-3], wire[-3:]]):
        one = Server(max_head=limit)
        for piece in pieces:
            one.feed(piece)
        assert [e[0] for e in one.events.list] == [expected]


def test_megabyte_of_target() -> None:
    one = Server()
    one.feed(b"GET /" + b"a" * MEGABYTE)
    assert one.events.list == [TOO_LARGE]


@pytest.mark.parametrize(("count", "expected"), [(MAX_FIELDS - 1, "request"), (MAX_FIELDS, "error")])
def test_number_of_fields_counts_host(count: int, expected: str) -> None:
    one = Server()
    one.feed(GET[:-2] + b"a: b\r\n" * count + b"\r\n")
    assert [e[0] for e in one.events.list] == [expected]
    if expected == "error":
        assert one.events.list == [TOO_MANY]


@pytest.mark.parametrize("field", [b"a: b\r\n", b"a: " + b"b" * 5000 + b"\r\n", b"a: " + b"b" * 70000])
@pytest.mark.parametrize("keep", [True, False])
def test_endless_trailers(field: bytes, keep: bool) -> None:
    one = Server()
    one.keep_trailers = keep
    one.feed(CHUNKED_POST + b"0\r\n")
    fed = most = 0
    while len(one.events.list) == 1:
        one.feed(field)
        fed += len(field)
        most = max(most, len(one._rest))
        assert fed < 2 * MAX_HEAD + 70000
    assert one.events.list[1] in (TOO_LARGE, TOO_MANY)
    assert most <= MAX_HEAD + 1


def test_trailers_that_are_not_wanted_are_dropped_as_they_come() -> None:
    one = Server()
    one.keep_trailers = False
    one.feed(CHUNKED_POST + b"0\r\n" + b"a: b\r\n" * 1000)
    assert one._trailers == []
    one.feed(b"\r\n")
    assert one.events.list == [CHUNKED_EVENT, end()]


@pytest.mark.parametrize("size", [MAX_CHUNK_LINE - 1, MAX_CHUNK_LINE, MAX_CHUNK_LINE + 1, MAX_CHUNK_LINE + 2])
def test_chunk_line_limit_is_exact(size: int) -> None:
    line = b"1;" + b"x" * (size - 2)
    expected = [CHUNKED_EVENT, data(b"x"), end()] if size <= MAX_CHUNK_LINE else [CHUNKED_EVENT, error()]
    wire = line + b"\r\nx\r\n0\r\n\r\n"
    for cut in (0, 1, size - 1, size, size + 1, size + 2):
        one = Server()
        one.feed(CHUNKED_POST + wire[:cut])
        one.feed(wire[cut:])
        assert one.events.list == expected, cut


def test_endless_chunk_size_line() -> None:
    one = Server()
    one.feed(CHUNKED_POST + b"5;")
    for _ in range(1000):
        one.feed(b"x" * 100)
        assert len(one._rest) <= MAX_CHUNK_LINE + 2
    assert one.events.list == [CHUNKED_EVENT, error()]


def test_endless_empty_lines_hold_nothing() -> None:
    one = Server()
    for _ in range(100):
        one.feed(b"\r\n" * 5000 + b"\r")
        assert len(one._rest) <= 1
        one.feed(b"\n")
    one.feed(GET)
    assert one.events.list == [request()]


def test_many_pipelined_requests_do_not_nest() -> None:
    count = 10_000
    assert count > sys.getrecursionlimit()
    one = Server()
    one.feed(GET * count)
    assert one.events.list == [request()] * count


def test_many_pipelined_requests_after_the_first_was_answered_late() -> None:
    class Late(Server):
        def on_request(self, *args: object) -> None:
            super().on_request(*args)  # type: ignore[arg-type]
            self.answer = True

    count = 2000
    one = Late(answer=False)
    one.feed(GET * count)
    assert one.events.list == [request()]
    one.next_message()
    assert one.events.list == [request()] * count


def test_many_chunks_do_not_nest_and_are_joined() -> None:
    one = Server()
    one.feed(CHUNKED_POST + b"1\r\nx\r\n" * 10_000 + b"0\r\n\r\n")
    assert one.events.list == [CHUNKED_EVENT, data(b"x" * 10_000), end()]


def test_many_interim_responses_do_not_nest() -> None:
    one = Client()
    one.feed(b"HTTP/1.1 100 Continue\r\n\r\n" * 3000 + OK + b"content-length: 0\r\n\r\n")
    assert one.events.list[-1] == response(headers=[(b"content-length", b"0")], end_stream=True)
    assert len(one.events.list) == 3001


def test_held_bytes_ask_the_owner_to_stop() -> None:
    one = Server(answer=False)
    one.feed(GET + b"x" * Server.MAX_HELD)
    assert one.holds == 0
    one.feed(b"x")
    assert one.holds == 1
    assert len(one._rest) == Server.MAX_HELD + 1


def test_ignored_bytes_are_dropped() -> None:
    one = Server()
    one.feed(b"\x01")
    for _ in range(100):
        one.feed(b"x" * 100_000)
        assert not one.has_partial
    assert one.events.list == [error()]


def test_field_memo_is_bounded_and_keeps_no_secrets() -> None:
    FIELD_MEMO.clear()
    for n in range(3 * MEMO_ENTRIES):
        h1.parse_field(b"x-%d: v" % n)
        assert len(FIELD_MEMO) <= MEMO_ENTRIES
    FIELD_MEMO.clear()
    for line in (b"Authorization: Basic eA==", b"cookie: a=b", b"set-cookie: a=b", b"x-request-id: 1",
                 b"X: " + b"y" * MEMO_LINE):
        h1.parse_field(line)
    assert FIELD_MEMO == {}
