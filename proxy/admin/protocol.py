"""HTTP/1.1 server side of the admin interface: httptools within fixed bounds, one request at a time."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

import httptools

from proxy.admin.messages import FORM, PLAIN, Response, parse
from proxy.http.date import http_date
from proxy.http.headers import Headers

if TYPE_CHECKING:
    from proxy.admin.server import AdminServer

MAX_HEAD = 60 * 1024
"""Bytes of a request head."""
MAX_HEADERS = 100
MAX_BODY = 64 * 1024
"""Bytes of a request body; only forms have one that counts."""
MAX_PIPELINED = 32
"""Requests that wait while one is answered."""
REQUEST_TIMEOUT = 10.0
"""Seconds from the first byte of a request to its last."""
IDLE_TIMEOUT = 300.0
"""Seconds without a request after which a connection is closed."""
WRITE_TIMEOUT = 60.0
"""Seconds that a client may take to read a response."""

@dataclass(slots=True)
class Exchange:
    """One request as it came, and what was answered: the input of the access log."""

    arrived_at: float
    """Loop time."""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    target: bytes = b""
    method: str = ""
    body: bytearray = field(default_factory=bytearray)
    keep_alive: bool = True
    refusal: Response | None = None
    status: int = 0
    sent: int = 0

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header by its lower-case name."""
        return next((value for key, value in self.headers if key == name), None)

    def header_fields(self) -> Headers:
        """The request's headers with Envoy's pseudo headers, as the access log asks for them."""
        authority = self.header(b"host") or b""
        rest = [(name, value) for name, value in self.headers if name != b"host"]
        pseudo = [(b":authority", authority), (b":path", self.target), (b":method", self.method.encode())]
        return Headers.of(pseudo + rest)


class AdminProtocol(asyncio.Protocol):
    """One connection. Reading pauses from the moment a request is complete until its answer has left."""

    def __init__(self, server: AdminServer) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._exchange: Exchange | None = None
        self._waiting: deque[Exchange] = deque()
        self._answering: asyncio.Task[None] | None = None
        self._head_bytes = 0
        self._in_head = False
        self._blocked = False
        self._finishing = False
        """Nothing more is read; the connection closes when what was read is answered."""
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self.opened_at = server.loop.time()
        self.peer = ""
        self.closed_locally = False

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A connection was accepted."""
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's are not registered as such
        transport.set_write_buffer_limits(high=0)
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if peer else ""
        self._arm(IDLE_TIMEOUT)
        self._server.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._disarm()
        self._finishing = True
        self._transport = None
        self._waiting.clear()
        self._server.closed(self)

    def pause_writing(self) -> None:
        """There are bytes that the client has not taken yet."""
        self._blocked = True

    def resume_writing(self) -> None:
        """The client has taken everything."""
        self._blocked = False
        self._next()

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        self._server.received(len(data))
        if self._finishing:
            return
        idle = self._exchange is None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Whatever was to be switched to: the request is answered as it stands, and nothing after it is read.
            self._finishing = True
        except httptools.HttpParserError:
            self._refuse(_plain(HTTPStatus.BAD_REQUEST))
        exchange = self._exchange
        if exchange is not None and not self._finishing:
            if self._in_head:
                self._head_bytes += len(data)
                if self._head_bytes > MAX_HEAD:
                    exchange.refusal = _plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            if exchange.refusal is not None:
                self._refuse(exchange.refusal)
            elif idle:
                self._arm(REQUEST_TIMEOUT)
        self._next()

    def eof_received(self) -> bool:
        """A client that has sent its last request still gets the answer."""
        self._finishing = True
        return self._answering is not None or bool(self._waiting)

    # --- httptools ---

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head = True
        self._head_bytes = 0
        self._exchange = Exchange(self._server.loop.time())

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self._current().target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole header."""
        exchange = self._current()
        exchange.headers.append((name.lower(), value))
        if len(exchange.headers) > MAX_HEADERS:
            exchange.refusal = _plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_headers_complete(self) -> None:
        """The head is complete."""
        self._in_head = False
        exchange = self._current()
        exchange.method = self._parser.get_method().decode("latin-1")
        exchange.keep_alive = self._parser.should_keep_alive()
        if sum(len(name) + len(value) for name, value in exchange.headers) + len(exchange.target) > MAX_HEAD:
            exchange.refusal = _plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif exchange.refusal is None and self._parser.get_http_version() != "1.1":
            exchange.refusal = _plain(HTTPStatus.UPGRADE_REQUIRED)
        elif exchange.refusal is None and exchange.header(b"host") is None:
            exchange.refusal = Response(400, "", "")
        elif (exchange.header(b"expect") or b"").lower() == b"100-continue":
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        exchange = self._current()
        if len(exchange.body) + len(body) > MAX_BODY:
            exchange.refusal = _plain(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        elif exchange.refusal is None:
            exchange.body += body

    def on_message_complete(self) -> None:
        """The request is complete."""
        exchange = self._current()
        self._exchange = None
        self._waiting.append(exchange)
        if len(self._waiting) > MAX_PIPELINED:
            self.abort()

    def _current(self) -> Exchange:
        assert self._exchange is not None
        return self._exchange

    # --- answering ---

    def _next(self) -> None:
        """Answer the next request when there is one and the last answer has left; else read on."""
        transport = self._transport
        if transport is None or self._answering is not None:
            return
        if self._blocked:
            self._arm(WRITE_TIMEOUT)
        elif self._waiting:
            transport.pause_reading()
            self._disarm()
            exchange = self._waiting.popleft()
            self._server.began()
            self._answering = self._server.spawn(self._answer(exchange), f"admin {exchange.method} {exchange.target!r}")
        elif self._finishing:
            self.closed_locally = True
            transport.close()
        elif not transport.is_reading():
            transport.resume_reading()
            self._arm(IDLE_TIMEOUT if self._exchange is None else REQUEST_TIMEOUT)

    async def _answer(self, exchange: Exchange) -> None:
        try:
            last = not exchange.keep_alive or exchange.refusal is not None
            if exchange.refusal is not None:
                response = exchange.refusal
            elif not exchange.target.startswith(b"/"):
                response = exchange.refusal = Response(404, "", "")
            else:
                form = ""
                if (exchange.header(b"content-type") or b"").partition(b";")[0].strip().lower() == FORM.encode():
                    form = exchange.body.decode("latin-1")
                response = await self._server.dispatch(parse(exchange.method, exchange.target.decode("latin-1"), form))
            if last or self._server.closing:
                self._finishing = True
                self._waiting.clear()
            self._send(exchange, response, close=self._finishing and not self._waiting)
            self._server.answered(self, exchange)
        finally:
            self._answering = None
            self._next()

    def _send(self, exchange: Exchange, response: Response, close: bool) -> None:
        body = response.body.encode("utf-8", "surrogateescape")
        exchange.status, exchange.sent = response.status, len(body)
        lines = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}"]
        # What never reached a command is a local reply of the connection manager: it has a length.
        local_reply = exchange.refusal is not None
        if local_reply:
            lines.append(f"content-length: {len(body)}")
            if body:
                lines.append(f"content-type: {response.content_type}")
        else:
            lines += [f"content-type: {response.content_type}", "cache-control: no-cache, max-age=0",
                      "x-content-type-options: nosniff"]
        lines += [f"date: {http_date(time.time())}", "server: envoy"]
        if close:
            lines.append("connection: close")
        if not local_reply:
            lines.append("transfer-encoding: chunked")
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        self._write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (b"" if exchange.method == "HEAD" else body))

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._server.sent(len(data))
            self._transport.write(data)

    def _refuse(self, refusal: Response) -> None:
        """Answer the request that is being read, whatever else it brings, and close."""
        exchange = self._exchange or Exchange(self._server.loop.time())
        exchange.refusal = exchange.refusal or refusal
        self._exchange = None
        self._waiting.append(exchange)
        self._finishing = True

    # --- time and end ---

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self._server.loop.call_later(seconds, self.abort)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def busy(self) -> bool:
        """A request is being answered, or its answer is still on its way out."""
        return self._answering is not None or self._blocked

    def close(self) -> None:
        """Close after the answer that is being made, if any."""
        self._finishing = True
        self._waiting.clear()
        self._next()

    def abort(self) -> None:
        """Close now, whatever is under way."""
        self._finishing = True
        self._waiting.clear()
        self.closed_locally = True
        if self._transport is not None:
            self._transport.abort()


def _plain(status: HTTPStatus) -> Response:
    return Response(status.value, status.phrase, PLAIN)
