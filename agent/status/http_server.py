"""A small HTTP/1.1 server on h11. The port is open to the whole network, so everything is bounded: the number of
connections, the size of a request, the time for one, and the time a connection may stay idle.
"""

import asyncio
import errno
import http
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import h11

from agent import log
from agent.status.compression import accepts_gzip, gzip

MAX_CONNECTIONS = 256
MAX_HEAD = 16 * 1024
MAX_BODY = 64 * 1024  # no request needs one; what comes is read and dropped
REQUEST_TIMEOUT_S = 5.0  # from the first byte of a request to its last, and for a response to leave
# Longer than any probe period, so that a proxy never reuses a connection in the moment we close it.
IDLE_TIMEOUT_S = 600.0
_READ_SIZE = 16 * 1024
_WRITE_SIZE = 64 * 1024  # a client has REQUEST_TIMEOUT_S for each such piece of a response
_RESPONSE_TIMEOUT_S = 60.0  # and this for all of it
# Of bodies on their way to clients, all together. Whoever reads slowly holds one; the oldest are cut to make room.
MAX_UNSENT = 48 * 1024 * 1024
_MIN_COMPRESSED = 1024
_LINGER_S = 1.0
CLOSE_S = 1.0  # for responses under way when the server closes: a probe that hangs must not hold the exit
_BACKLOG = 128


_log = log.scope()


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str  # without the query
    peer: str  # address literal; IPv4 in its own form also on a dual-stack socket
    query: str = ""  # without the question mark
    headers: tuple[tuple[str, str], ...] = ()  # names in lower case, in their order

    @property
    def from_loopback(self) -> bool:
        return self.peer == "::1" or self.peer.startswith("127.")

    def header(self, name: str) -> str:
        """The values of that name (in lower case), joined by commas; "" when there is none."""
        return ", ".join(value for key, value in self.headers if key == name)


@dataclass(frozen=True, slots=True)
class Reply:
    """A body of some size is compressed on its way where the client takes gzip."""

    status: int
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Awaitable[Reply]]


class _Connection:
    """One client. It is busy from the moment its request is complete until the response has left."""

    __slots__ = ("busy", "peer", "protocol", "reader", "since", "task", "unsent", "writer")

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, since: float) -> None:
        self.reader = reader
        self.writer = writer
        self.protocol = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self.peer = _peer(writer)
        self.busy = False
        self.since = since  # when it was opened or last answered
        self.unsent = 0  # bytes of the response that is on its way
        self.task: asyncio.Task[None] | None = None


class HttpServer:
    """Answers each request with what `handler` returns. Use: `start`, then `close`, on one event loop."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._connections: dict[_Connection, None] = {}  # in order of opening
        self._closing = False

    async def start(self, port: int) -> None:
        """Listen on all addresses, IPv6 and IPv4. Raises OSError when the port cannot be had."""
        listener = _listen(port)
        try:
            self._server = await asyncio.start_server(self._accepted, sock=listener, limit=_READ_SIZE)
        except BaseException:
            listener.close()
            raise

    @property
    def port(self) -> int:
        """The port that it listens on."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening, let the responses under way leave (within CLOSE_S), close every connection."""
        self._closing = True
        if self._server is not None:
            self._server.close()
        tasks = {c.task for c in self._connections if c.task is not None}
        for connection in self._connections:
            if not connection.busy:
                connection.writer.transport.abort()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=CLOSE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        if len(self._connections) >= MAX_CONNECTIONS and not self._evict():
            writer.transport.abort()
            return
        connection = _Connection(reader, writer, loop.time())
        self._connections[connection] = None
        writer.transport.set_write_buffer_limits(high=0)  # drain() then waits until everything has left
        connection.task = loop.create_task(self._serve(connection), name=f"status:{connection.peer}")

    def _evict(self) -> bool:
        """Make room: idle clients and slow ones must not keep a probe out, nor those that have stopped waiting for a
        response (they closed, as kubelet does at its timeout) or do not read it. False when every handler is at work.
        """
        idle = [c for c in self._connections if not c.busy or c.reader.at_eof() or c.unsent]
        if not idle:
            return False
        oldest = min(idle, key=lambda c: (c.busy, c.since))
        del self._connections[oldest]
        oldest.writer.transport.abort()
        if oldest.busy and oldest.task is not None:
            oldest.task.cancel()
        return True

    async def _serve(self, connection: _Connection) -> None:
        try:
            while not self._closing and await self._one(connection):
                pass
            connection.writer.close()  # nothing is left to send: _answer waited for that
        except (OSError, TimeoutError, h11.LocalProtocolError):
            pass  # the client has gone, is too slow, or cannot be answered any more
        finally:
            self._connections.pop(connection, None)
            if not connection.writer.is_closing():
                connection.writer.transport.abort()

    async def _one(self, connection: _Connection) -> bool:
        """One request and its response. False when the connection is over."""
        protocol = connection.protocol
        try:
            head = await self._read(connection)
        except h11.RemoteProtocolError as error:
            if protocol.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                await self._answer(connection, "", Reply(error.error_status_hint))
                await self._linger(connection)
            return False
        if head is None:
            return False
        connection.busy = True
        method = head.method.decode("ascii")
        if method == "CONNECT" or head.http_version not in (b"1.0", b"1.1"):
            await self._answer(connection, "", Reply(405 if method == "CONNECT" else 505))
            return False
        request = _request(method, head, connection.peer)
        try:
            reply = await self._handler(request)
        except Exception as error:
            _log.error(f"status server: {method} {head.target.decode('ascii', 'replace')[:256]}: {error!r}")
            reply = Reply(500)
        await self._answer(connection, method, reply, compress=accepts_gzip(request.header("accept-encoding")))
        if protocol.our_state is not h11.DONE or protocol.their_state is not h11.DONE:
            return False
        protocol.start_next_cycle()
        connection.busy = False
        connection.since = asyncio.get_running_loop().time()
        return True

    async def _read(self, connection: _Connection) -> h11.Request | None:
        """The next request, its body read and dropped. None when the client closed or was idle for too long."""
        protocol = connection.protocol
        head: h11.Request | None = None
        size = 0
        if not protocol.trailing_data[0]:
            try:
                async with asyncio.timeout(IDLE_TIMEOUT_S):
                    data = await connection.reader.read(_READ_SIZE)
            except TimeoutError:
                return None
            if not data:
                return None
            protocol.receive_data(data)
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            while True:
                event = protocol.next_event()
                if isinstance(event, h11.Request):
                    head = event
                elif isinstance(event, h11.Data):
                    size += len(event.data)
                    if size > MAX_BODY:
                        raise h11.RemoteProtocolError("request body is too large", error_status_hint=413)
                elif event is h11.NEED_DATA:
                    if protocol.they_are_waiting_for_100_continue:
                        go_on = h11.InformationalResponse(status_code=100, headers=[])
                        connection.writer.write(protocol.send(go_on) or b"")
                    protocol.receive_data(await connection.reader.read(_READ_SIZE))
                elif isinstance(event, h11.ConnectionClosed):
                    return None
                else:
                    return head  # EndOfMessage, or PAUSED after a CONNECT or an upgrade, which no handler accepts

    async def _answer(self, connection: _Connection, method: str, reply: Reply, *, compress: bool = False) -> None:
        protocol = connection.protocol
        body = reply.body
        headers = [("date", time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())), *reply.headers.items()]
        if len(body) >= _MIN_COMPRESSED:
            headers.append(("vary", "accept-encoding"))
            if compress:
                headers.append(("content-encoding", "gzip"))
                body = await gzip(body)
        headers.append(("content-length", str(len(body))))
        if body:
            headers.append(("content-type", reply.content_type))
        if self._closing:
            headers.append(("connection", "close"))
        response = h11.Response(status_code=reply.status, headers=headers, reason=_reason(reply.status))
        parts = [protocol.send(response)]
        if body and method != "HEAD":
            parts.append(protocol.send(h11.Data(data=body)))
        parts.append(protocol.send(h11.EndOfMessage()))
        data = b"".join(part for part in parts if part)
        del body, reply, parts
        connection.busy = True
        self._make_room(connection, len(data))
        try:
            async with asyncio.timeout(_RESPONSE_TIMEOUT_S):
                await _write(connection.writer, data)
        finally:
            connection.unsent = 0

    def _make_room(self, connection: _Connection, size: int) -> None:
        """Note that `size` bytes wait to be sent; whoever has waited longest gives way when that is too much."""
        connection.unsent = size
        connection.since = asyncio.get_running_loop().time()
        unsent = sum(each.unsent for each in self._connections)
        for slow in sorted(self._connections, key=lambda each: each.since):
            if unsent <= MAX_UNSENT or slow is connection:
                return
            if slow.unsent and slow.task is not None:
                unsent -= slow.unsent
                slow.unsent = 0
                slow.writer.transport.abort()
                slow.task.cancel()

    async def _linger(self, connection: _Connection) -> None:
        """Drop what a refused client still sends: a close at once would be a reset, and it would not see why."""
        connection.writer.write_eof()
        try:
            async with asyncio.timeout(_LINGER_S):
                while await connection.reader.read(_READ_SIZE):
                    pass
        except TimeoutError:
            pass


def _listen(port: int) -> socket.socket:
    try:
        listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    except OSError:
        return _bind(socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC), "0.0.0.0", port)
    try:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        return _bind(listener, "::", port)
    except OSError as error:
        listener.close()
        if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise
    # IPv6 is compiled in but switched off.
    return _bind(socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC), "0.0.0.0", port)


def _bind(listener: socket.socket, host: str, port: int) -> socket.socket:
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _peer(writer: asyncio.StreamWriter) -> str:
    name = writer.get_extra_info("peername")
    return str(name[0]).removeprefix("::ffff:") if name else ""


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    for at in range(0, len(data), _WRITE_SIZE):
        writer.write(data[at : at + _WRITE_SIZE])
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            await writer.drain()


def _request(method: str, head: h11.Request, peer: str) -> Request:
    """`head` may have its target in origin form, or in absolute form (`http://host/path`)."""
    target = head.target.decode("ascii", "replace")
    if not target.startswith("/"):
        _, _, rest = target.partition("://")
        target = "/" + rest.partition("/")[2]
    path, _, query = target.partition("?")
    headers = tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in head.headers)
    return Request(method, path, peer, query, headers)


def _reason(status: int) -> bytes:
    try:
        return http.HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""  # a probe passes on whatever status the application gave
