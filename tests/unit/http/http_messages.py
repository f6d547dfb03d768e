"""Messages that the conversations of the HTTP tests are made of."""

from __future__ import annotations

from collections.abc import Callable

from tests.unit.http.http_world import World

Make = Callable[..., World]
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
GET_UP = (b"GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-proto: http\r\nx-request-id: <id>\r\n"
          b"x-envoy-expected-rq-timeout-ms: 15000\r\n")
DATED = b"date: Tue, 14 Nov 2023 22:13:20 GMT\r\n"
OK5 = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n" + DATED + b"\r\nhello"
OK5_DOWN = (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n" + DATED
            + b"x-envoy-upstream-service-time: 0\r\nserver: envoy\r\n\r\nhello")
POST5 = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"


def local(status: bytes, body: bytes = b"", *extra: bytes, close: bool = False) -> bytes:
    """A local reply."""
    lines = [b"HTTP/1.1 " + status, *extra]
    if body:
        lines += [b"content-length: %d" % len(body), b"content-type: text/plain"]
    lines += [DATED[:-2], b"server: envoy"]
    if close:
        lines.append(b"connection: close")
    if not body:
        lines.append(b"content-length: 0")
    return b"\r\n".join([*lines, b"", body])
